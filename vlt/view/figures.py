"""Figures of what the probe finds, good enough for a paper: every function takes the labelled arrays (and the run, where
frames, spectrograms or words are to be seen), and returns a figure that says what it shows in words (`figure.alt`).

    from vlt.view import figures
    figure = figures.path(run, vlt.path(run, "bell"))
    figures.save(figure, "bell.pdf")

Heat is on cividis from 0 up (on purple and orange where there are numbers below 0); kinds are told apart by Okabe and
Ito's colours and by hatches. No letter is smaller than 7 points at the figure's own size.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.patches import Patch

from vlt.errors import VltError
from vlt.probe.sweep import UNEDITED
from vlt.probe.trace import Trace
from vlt.view import strips
from vlt.view.drawing import (
    COLOURS,
    SIZE,
    SMALL,
    WIDTH,
    Figure,
    Scale,
    colour_bar,
    heat_of,
    height_of,
    noted,
    numbers,
    save,
    shown,
    signed,
    tidy,
)
from vlt.view.explanations import curves, parts, queries, truth
from vlt.view.heads import attention

__all__ = [
    "Figure",
    "attention",
    "curves",
    "interaction",
    "lens",
    "over_frames",
    "over_sound",
    "over_tokens",
    "parts",
    "path",
    "queries",
    "save",
    "sweep",
    "truth",
]

# Bars of two kinds.
LOOKS: tuple[dict[str, Any], ...] = (
    {"facecolor": COLOURS[0], "linewidth": 0},
    {"facecolor": COLOURS[1], "linewidth": 0, "hatch": "/////", "edgecolor": "white"},
)
MOST = 30  # tokens of a lens beside each other

# ---------------------------------------------------------------------- heat on the input


def over_frames(run: Trace, heat: xr.DataArray, what: str = "", top: float | None = None, note: str = "") -> Figure:
    """Heat over the run's frames, each with its number and its time in seconds.

    heat: [frame, patch_row, patch_column], drawn as colours on the frames in grey; or [frame] or [frame, image_query],
    drawn as bars. [frame, patch] and [frame_token], as attention has them, are unfolded; class tokens have no place on a
    picture and are left out. [frame, height, width] is heat on pixels. what: heat is, in words ("relevance for 'bell'"); by
    default the array's long name. top: end of the scale, by default the greatest heat; the same for figures that are to be
    compared. note: lines under it, a warning where one begins with ⚠. Raises `VltError` for other axes, for numbers that
    are not finite, and for a run without video.
    """
    strips.check_run(run, "over_frames")
    heat = heat_of(heat, strips.ON_FRAMES, "over_frames")
    figure = Figure(strips.frames_width(heat), strips.frames_height(heat) + 0.1 + height_of(note))
    figure.alt = strips.frames(strips.Strip(figure, 0.0, strips.what_of(heat, what)), run, heat, top)
    return noted(figure, note)


def over_sound(run: Trace, heat: xr.DataArray, what: str = "", top: float | None = None, note: str = "") -> Figure:
    """Heat over the run's spectrograms (mel bins in Hz, power in dB) along the time of its sound in seconds.

    heat: [segment, mel_row, time_column] or [segment, mel, time], drawn as colours; or [segment], as bars. [segment,
    sound_patch_seen], as attention has it, is unfolded; the class token and ImageBind's extra key are left out. Segments
    that overlap, or lie far apart, stand side by side, each with its start. Arguments and errors as of `over_frames`.
    """
    strips.check_run(run, "over_sound")
    heat = heat_of(heat, strips.ON_SOUND, "over_sound")
    figure = Figure(WIDTH, strips.sound_height(heat) + 0.1 + height_of(note))
    figure.alt = strips.sound(strips.Strip(figure, 0.0, strips.what_of(heat, what)), run, heat, top)
    return noted(figure, note)


def over_tokens(run: Trace, heat: xr.DataArray, what: str = "", top: float | None = None, note: str = "") -> Figure:
    """Heat over the language model's tokens, as words on colours, group by group; soft tokens are blocks with their
    numbers. ␣ is white space, ⏎ a new line.

    heat: [token], of all tokens of the run or of some (by their coordinate `token`); or [token_seen], what one token's
    attention looks at. Arguments and errors as of `over_frames`.
    """
    strips.check_run(run, "over_tokens")
    heat = heat_of(heat, strips.ON_TOKENS, "over_tokens")
    text = strips.Text(run, heat)
    figure = Figure(WIDTH, max(text.height, 1.0) + 0.1 + height_of(note))
    figure.alt = strips.tokens(strips.Strip(figure, 0.0, strips.what_of(heat, what)), text, heat, top)
    return noted(figure, note)


def path(run: Trace, found: xr.Dataset) -> Figure:
    """Where a word of the answer comes from: heat over frames, over sound and over tokens, each on a scale of its own.

    found: what `vlt.path(run, ...)` gave: `tokens` [token], `video` [frame, patch_row, patch_column], `audio` [segment,
    mel_row, time_column], of the branches that the run has. The word has a frame of its own among the tokens. Raises
    `VltError` where it is no such Dataset, or of another run.
    """
    strips.check_run(run, "path")
    if not isinstance(found, xr.Dataset) or "tokens" not in found or not {"word", "method"} <= set(found.attrs):
        raise VltError(f"path draws the Dataset of vlt.path, with 'tokens'; this is a {type(found).__name__}")
    if (of := found.attrs.get("clip", run.clip.path.name)) != run.clip.path.name:
        raise VltError(f"path: this Dataset is of {of}, the run of {run.clip.path.name}")
    forms = {"video": strips.ON_FRAMES[:1], "audio": strips.ON_SOUND[:1], "tokens": strips.ON_TOKENS[:1]}
    heat = {name: heat_of(found[name], form, "path") for name, form in forms.items() if name in found}
    text = strips.Text(run, heat["tokens"])
    sizes = {"video": strips.frames_height, "audio": strips.sound_height, "tokens": lambda _: text.height}
    heights = {name: sizes[name](array) for name, array in heat.items()}
    note = f"{found.attrs['method']} is read from attention and proves no cause; vlt.faithfulness tests heat against the model"
    note += "\nEach part has a scale of its own."
    if "audio" in heat and "mel_row" in heat["audio"].dims:
        note += " Grey, at the end of segments: no patch is there."
    figure = Figure(WIDTH, sum(heights.values()) + 0.15 * (len(heights) - 1) + 0.1 + height_of(note))
    what = f"{found.attrs['method']} for '{shown(found.attrs['word'])}'"
    said, down = [], 0.0
    for letter, (name, array) in zip("abc", heat.items(), strict=False):
        strip = strips.Strip(figure, down, what)
        if name == "tokens":
            said.append(strips.tokens(strip, text, array, word=_word(run, found)))
        else:
            said.append(strips.frames(strip, run, array) if name == "video" else strips.sound(strip, run, array))
        figure.text(0.008, 1 - (down + 0.1) / figure.get_figheight(), letter, fontsize=9, weight="bold", va="center")
        down += heights[name] + 0.15
    figure.alt = " ".join(said)
    return noted(figure, note)


def _word(run: Trace, found: xr.Dataset) -> int | None:
    """Which token the heat is about, where it is of this run."""
    at, words = found.attrs.get("token", run.tokens.size), run.tokens.coordinates["word"]
    return at if at < len(words) and words[at].strip() == str(found.attrs["word"]).strip() else None


# ---------------------------------------------------------------------- tables


def sweep(table: pd.DataFrame) -> Figure:
    """Change of the log-probability of the unedited answer under each variant, in nats, in the table's order; beside it
    the answers. Changed answers have a hatched bar, a sign and another colour.

    table: what `vlt.sweep` gave: by name, with columns answer, same, change. Raises `VltError` for another table.
    """
    wanted = ("answer", "same", "change")
    if not isinstance(table, pd.DataFrame) or not len(table) or not set(wanted) <= set(table.columns):
        raise VltError(f"sweep draws the table of vlt.sweep, with columns {', '.join(wanted)}; this is a {_kind(table)}")
    change = table["change"].to_numpy(dtype=float)
    if not np.isfinite(change).all():
        raise VltError("sweep draws finite changes; this table holds others")
    n, same = len(table), table["same"].to_numpy(dtype=bool)
    answers = [textwrap.wrap(shown(str(text), 1000), 44, max_lines=3, placeholder=" …") or [""] for text in table["answer"]]
    row = 0.06 + 0.115 * max(map(len, answers))  # inches
    figure = Figure(WIDTH, row * n + 0.75, layout="constrained")
    axes = tidy(figure.subplots())
    axes.use_sticky_edges = False  # else a bar that ends at 0 hides the line there
    beside: dict[str, Any] = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "va": "center"}
    beside |= {"fontsize": SMALL, "parse_math": False}
    for y in range(n):
        axes.barh(y, change[y], height=0.13 / row, **LOOKS[not same[y]])
        axes.annotate(signed(change[y]), (1, y), (42, 0), ha="right", **beside)
        axes.annotate("" if same[y] else "≠", (1, y), (50, 0), **beside)
        axes.annotate("\n".join(answers[y]), (1, y), (60, 0), **beside)
    for x, name, side in ((42, "change", "right"), (60, "answer", "left")):
        axes.annotate(name, (1, -0.6), (x, 8), ha=side, fontstyle="italic", **beside)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.set_yticks(range(n), [shown(str(name), 32) for name in table.index], parse_math=False)
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_xlabel("change of log p(unedited answer) (nats)", fontsize=SIZE)
    names = ["same answer", "≠ another answer"]
    figure.legend([Patch(**look) for look in LOOKS], names, loc="lower right", fontsize=SMALL, frameon=False)
    figure.alt = _sweep_alt(table, change, same)
    return figure


def _kind(table: object) -> str:
    return f"table of {', '.join(map(str, table.columns))}" if isinstance(table, pd.DataFrame) else type(table).__name__


def _sweep_alt(table: pd.DataFrame, change: np.ndarray, same: np.ndarray) -> str:
    least, edited = int(change.argmin()), [name for name in table.index if name != UNEDITED]
    others = [str(name) for name, kept in zip(table.index, same, strict=True) if not kept]
    fall = f"most with {table.index[least]} ({signed(change[least])} nats)" if change[least] < 0 else "with none"
    count = f"{len(edited)} variant{'s' * (len(edited) != 1)}"
    text = f"Change of the unedited answer's log-probability under {count}; it falls {fall}."
    return f"{text} {'The answer changes with ' + ', '.join(others) if others else 'No answer changes'}."


def lens(found: xr.Dataset) -> Figure:
    """What the language model would say behind each layer: the likeliest word in every cell, on the colour of its
    log-probability in nats; the prefix, before the first layer, lowest.

    found: what `lens(run)` gave: `prediction` and `logprob` [layer, token, rank]. Raises `VltError` for anything else.
    """
    if not isinstance(found, xr.Dataset) or not {"prediction", "logprob", "rank"} <= set(found.variables):
        raise VltError(f"lens draws the Dataset of lens(run), with prediction and logprob; this is a {type(found).__name__}")
    log = heat_of(found["logprob"].isel(rank=[0]), [("layer", "token")], "lens")
    words = found["prediction"].isel(rank=0).transpose("layer", "token").values
    layers, tokens = log.shape
    if tokens > MOST:
        raise VltError(f"lens draws {MOST} tokens at most; this has {tokens}: choose some, as lens(run, tokens='answering')")
    width = max(1.9 + 0.62 * tokens, 3.0)
    figure = Figure(width, 0.22 * layers + 1.0, layout="constrained")
    axes = tidy(figure.subplots())
    scale = Scale(min(float(log.min()), -1e-6), 0.0)
    axes.imshow(log.values, origin="lower", aspect="auto", **scale.style)
    style: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": SMALL, "parse_math": False}
    for (y, x), word in np.ndenumerate(words):
        axes.text(x, y, shown(str(word), 11), color=scale.ink(float(log[y, x])), **style)
    axes.set_yticks(range(layers), ["prefix" if layer < 0 else str(layer) for layer in found["layer"].values])
    axes.set_ylabel("read behind layer", fontsize=SIZE)
    standing = _standing(found)
    slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if max(map(len, standing)) > 9 else {}
    axes.set_xticks(range(tokens), standing, parse_math=False, **slant)
    axes.set_xlabel("token read at", fontsize=SIZE)
    colour_bar(figure, scale, "log-probability (nats)", ax=axes, aspect=(0.22 * layers + 0.2) / 0.09, pad=0.02)
    figure.alt = _lens_alt(found["layer"].values, words)
    return figure


def _lens_alt(layers: np.ndarray, words: np.ndarray) -> str:
    last = words[-1]
    settled = []
    for x, word in enumerate(last):
        others = np.flatnonzero(words[:, x] != word)
        since = layers[others[-1] + 1 if len(others) else 0]
        settled.append(f"'{shown(word)}' from {'the prefix' if since < 0 else f'layer {since}'}")
    text = f"Likeliest words behind {len(layers)} layers at {len(last)} tokens. "
    return f"{text}The last reading is: {' '.join(map(shown, last))}. It stands: {', '.join(settled)}."


def _standing(found: xr.Dataset) -> list[str]:
    """What stands at each token that is read."""
    if "word" not in found.coords:
        return [str(token) for token in found["token"].values]
    group = found["group"].values if "group" in found.coords else [""] * found.sizes["token"]
    query = found["query"].values if "query" in found.coords else [-1] * found.sizes["token"]
    return [f"{g} {q}" if q >= 0 else shown(w, 14) for w, g, q in zip(found["word"].values, group, query, strict=True)]


def interaction(shares: pd.Series) -> Figure:
    """Shapley values of video, sound and question for log p(answer), and their interactions, in nats.

    shares: what `vlt.interaction` gave: by name, interactions as "video x sound". Raises `VltError` for another series.
    """
    if not isinstance(shares, pd.Series) or "question" not in shares.index:
        raise VltError(
            f"interaction draws the Series of vlt.interaction, 'question' among its names; this is a {type(shares).__name__}"
        )
    numbers(xr.DataArray(shares.to_numpy(dtype=float)), "interaction")
    names = [str(name) for name in shares.index]
    joint = [" x " in name for name in names]
    n = len(names)
    note = _left_out(shares)
    figure = Figure(4.5, 0.2 * n + 0.95 + height_of(note), layout="constrained")
    axes = tidy(figure.subplots())
    for y, (value, together) in enumerate(zip(shares.to_numpy(dtype=float), joint, strict=True)):
        axes.barh(y, value, height=0.75, **LOOKS[together])
        beside: dict[str, Any] = {"xytext": (3 if value >= 0 else -3, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(signed(value), (value, y), ha="left" if value >= 0 else "right", fontsize=SMALL, **beside)
    axes.axvline(0, color="black", linewidth=0.6)
    axes.margins(x=0.2)
    axes.set_yticks(range(n), [name.replace(" x ", " × ") for name in names])
    axes.set_ylim(n - 0.4, -0.6)
    axes.set_xlabel("what it adds to log p(answer) (nats)", fontsize=SIZE)
    keys = [Patch(**look) for look in LOOKS[: 1 + any(joint)]]
    figure.legend(
        keys, ["Shapley value", "interaction"][: len(keys)], loc="outside upper right", ncols=2, fontsize=SMALL, frameon=False
    )
    alone, joined = ({name: shares[name] for name, j in zip(names, joint, strict=True) if j is kind} for kind in (False, True))
    said = ", ".join(f"{name} {signed(value)}" for name, value in alone.items())
    figure.alt = f"Shapley values for log p(answer), in nats: {said}."
    if joined:
        strongest = max(joined, key=lambda name: abs(joined[name]))
        figure.alt += f" The strongest interaction is {strongest} ({signed(joined[strongest])})."
    return noted(figure, note)


def _left_out(shares: pd.Series) -> str:
    """What a sweep would tell, beside the shares."""
    values = shares.attrs.get("values")
    if not values:
        return ""
    players = [str(name) for name in shares.index if " x " not in str(name)]
    lost = [values[" + ".join(o for o in players if o != p) or "none"] - values[" + ".join(players)] for p in players]
    return "With one left out, log p changes by: " + ", ".join(f"{p} {signed(v)}" for p, v in zip(players, lost, strict=True))
