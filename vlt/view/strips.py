"""Heat on what was seen, heard and said: frames, spectrograms, tokens. Each is a strip as wide as its figure and laid out
in inches, so that strips stand exactly under each other, and words exactly in their boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from vlt.errors import VltError
from vlt.inputs import audio
from vlt.inputs.video import denormalise
from vlt.probe.trace import Trace
from vlt.view.drawing import (
    COLOURS,
    SIZE,
    SMALL,
    WIDTH,
    Figure,
    Scale,
    bare,
    colour_bar,
    finding,
    folded,
    peak,
    places,
    shown,
    tidy,
)
from vlt.view.drawing import times as as_times

LEFT, RIGHT = 0.75, 0.98  # inches beside what is drawn: for its labels, for its colour bar
ROOM = WIDTH - LEFT - RIGHT
GAP = 0.06
LINE = 8  # frames beside each other
BARS = 0.75  # inches, height of an axis of bars
ALPHA = 0.7  # of heat, so that what it lies on is seen through

ON_FRAMES = (("frame", "patch_row", "patch_column"), ("frame", "height", "width"), ("frame", "image_query"), ("frame",))
ON_SOUND = (("segment", "mel_row", "time_column"), ("segment", "mel", "time"), ("segment",))
ON_TOKENS = (("token",), ("token_seen",))


class Strip:
    """A part of a figure. top: inches from the figure's upper edge. what: heat is, in words."""

    def __init__(self, figure: Figure, top: float, what: str) -> None:
        self.figure, self.top, self.what = figure, top, what

    def axes(self, left: float, down: float, width: float, height: float) -> Axes:
        """Inches from the strip's upper left corner."""
        whole, tall = self.figure.get_size_inches()
        box = (left / whole, 1 - (self.top + down + height) / tall, width / whole, height / tall)
        return self.figure.add_axes(box)

    def bar(self, scale: Scale, down: float, height: float, label: str = "", alpha: float = 1.0, room: float = ROOM) -> None:
        """room: how far what it explains reaches to the right."""
        axes = self.axes(LEFT + room + 0.1, down, 0.09, height)
        axes.set_facecolor("0.5")  # as the pictures under the heat are, on average
        colour_bar(self.figure, scale, label or self.what, cax=axes, alpha=alpha)


def what_of(heat: xr.DataArray, what: str) -> str:
    """What heat is, in words."""
    return what or str(heat.attrs.get("long_name", "heat"))


def check_grid(heat: xr.DataArray, patches: tuple[int, ...], pixels: tuple[int, ...], who: str) -> None:
    """patches, pixels: rows and columns of the run's own."""
    fine = heat.dims[-1] in ("width", "time")
    if heat.ndim == 3 and heat.shape[1:] != (pixels if fine else patches):
        came, there = (f"{rows} x {columns}" for rows, columns in (heat.shape[1:], pixels if fine else patches))
        what = "places" if fine else "patches"
        raise VltError(f"{who}: this heat has {came} {what}, the run's pictures have {there}: rows x columns")


# ---------------------------------------------------------------------- frames


def _lines(n: int) -> tuple[int, float]:
    """How many lines of frames, and the side of a frame in inches."""
    columns = min(n, LINE)
    return math.ceil(n / LINE), min((ROOM - GAP * (columns - 1)) / columns, 1.2)


def _line_height(heat: xr.DataArray, side: float) -> float:
    return 0.2 + side + GAP + (side + 0.22 if heat.ndim == 3 else BARS + 0.4)


def _across(n: int) -> float:
    columns = min(n, LINE)
    return columns * _lines(n)[1] + (columns - 1) * GAP


def frames_width(heat: xr.DataArray) -> float:
    """Of a figure of frames alone."""
    across = _across(heat.sizes["frame"])
    return LEFT + (across + RIGHT if heat.ndim == 3 else max(across, 2.9) + GAP)  # 2.9: what the label of bars needs


def frames_height(heat: xr.DataArray) -> float:
    lines, side = _lines(heat.sizes["frame"])
    return lines * _line_height(heat, side)


def frames(strip: Strip, run: Trace, heat: xr.DataArray, top: float | None = None) -> str:
    """Frames, and under them heat [frame, patch_row, patch_column] on the frames in grey; or bars. Returns alt text."""
    value, axes_of = run.reading("frames")
    at = places(heat, axes_of[0], "over_frames")
    patches = run.axes_of("patches")[1].coordinates
    grid = (int(patches["patch_row"].max()) + 1, int(patches["patch_column"].max()) + 1)
    check_grid(heat, grid, tuple(value.shape[-2:]), "over_frames")
    pixels = denormalise(value[at]).cpu().numpy()
    seconds = as_times(axes_of[0].coordinates["seconds"][at])
    scale = Scale.of(heat.values, top)
    lines, side = _lines(len(at))
    for line in range(lines):
        down, some = line * _line_height(heat, side), range(line * LINE, min((line + 1) * LINE, len(at)))
        for i in some:
            axes = bare(strip.axes(LEFT + (i % LINE) * (side + GAP), down + 0.2, side, side))
            axes.imshow(pixels[i])
            axes.set_title(f"frame {at[i]}", fontsize=SMALL, pad=2)
            if i % LINE == 0:
                axes.set_ylabel("seen", fontsize=SIZE)
        lower = down + 0.2 + side + GAP
        if heat.ndim == 3:
            for i in some:
                axes = bare(strip.axes(LEFT + (i % LINE) * (side + GAP), lower, side, side))
                _on_grey(axes, pixels[i], heat.values[i], scale)
                axes.set_xlabel(f"{seconds[i]} s", fontsize=SMALL, labelpad=2)
                if i % LINE == 0:
                    axes.set_ylabel("heat", fontsize=SIZE)
        else:
            axes = strip.axes(LEFT - GAP / 2, lower, len(some) * (side + GAP), BARS)
            _frame_bars(axes, heat[list(some)], [seconds[i] for i in some], scale, strip.what)
    if heat.ndim == 3:
        strip.bar(scale, 0.2, 2 * side + GAP, alpha=ALPHA, room=_across(len(at)))
    return _frames_alt(heat, at, seconds, strip.what)


def _on_grey(axes: Axes, picture: np.ndarray, heat: np.ndarray, scale: Scale) -> None:
    """Grey of little contrast: what is in the picture stays visible, and hardly changes the colours of the heat."""
    grey = 0.3 + 0.35 * picture.mean(-1, keepdims=True).repeat(3, -1) / 255
    height, width = picture.shape[:2]
    axes.imshow(grey)
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axes.imshow(heat, extent=extent, interpolation="nearest", alpha=ALPHA, **scale.style)


def _frame_bars(axes: Axes, heat: xr.DataArray, seconds: Sequence[str], scale: Scale, what: str) -> None:
    values = heat.values.reshape(len(seconds), -1)
    n = values.shape[1]
    x = np.arange(len(seconds))[:, None] + (np.arange(n) - (n - 1) / 2) * 0.8 / n
    tidy(axes).bar(x.ravel(), values.ravel(), width=0.8 / n * (0.85 if n > 1 else 0.7), color=COLOURS[0])
    axes.set_xlim(-0.5, len(seconds) - 0.5)
    axes.set_xticks(range(len(seconds)), seconds)
    within = f"; in each, image queries 0 to {n - 1}" if heat.ndim == 2 else ""
    axes.set_xlabel(f"time of the frame (s){within}", fontsize=SIZE, loc="left" if len(seconds) < 4 else "center")
    _height(axes, scale, what)


def _height(axes: Axes, scale: Scale, what: str) -> None:
    """The upright axis of bars."""
    axes.set_ylim(scale.low * 1.05, scale.high * 1.05)
    axes.yaxis.set_major_locator(MaxNLocator(3))
    axes.yaxis.set_major_formatter(scale.number)
    axes.set_ylabel(folded(scale.title(what), BARS), fontsize=SIZE)
    if scale.low < 0:
        axes.axhline(0, color="black", linewidth=0.6)


def _frames_alt(heat: xr.DataArray, at: np.ndarray, seconds: Sequence[str], what: str) -> str:
    where = peak(heat)
    i = where["frame"]
    names = {"patch_row": "patch row", "patch_column": "column", "image_query": "image query"}
    names |= {"height": "pixel row", "width": "column"}
    rest = "".join(f", {names[dim]} {where[dim]}" for dim in map(str, heat.dims[1:]))
    over = f"{what} over {len(at)} frame{'s' * (len(at) > 1)}"
    return finding(heat, over, f"at frame {at[i]} ({seconds[i]} s){rest}")


# ---------------------------------------------------------------------- sound

SOUND = 0.8  # inches, height of a spectrogram
_LAID: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}


def sound_height(heat: xr.DataArray) -> float:
    return 0.1 + SOUND + GAP + (SOUND if heat.ndim == 3 else BARS) + 0.4


def sound(strip: Strip, run: Trace, heat: xr.DataArray, top: float | None = None) -> str:
    """The spectrograms of the segments along the time of the sound, and under them heat [segment, mel_row, time_column] on
    the same in faint grey; or bars. Returns alt text."""
    value = run["spectrograms"]
    at = places(heat, run.axes_of("spectrograms")[0], "over_sound")
    start, end = value["start"].values[at], value["end"].values[at]
    lay = Laid(run, start, end)
    patches = tuple((n - lay.kernel) // lay.stride + 1 for n in value.shape[2:])
    check_grid(heat, patches, tuple(value.shape[2:]), "over_sound")
    if "mel" in heat.dims:
        lay.kernel = lay.stride = 1
    decibels = 10 / np.log(10) * (value.values[at, 0] * audio.LOG_MEL_STD + audio.LOG_MEL_MEAN)
    low, high = decibels.min(), max(decibels.max(), decibels.min() + 1)
    loud = Scale(low, high, "Greys")
    faint = Scale(2 * low - high, 2 * high - low, "gray_r")  # around the middle grey on which the colour bar stands
    upper = strip.axes(LEFT, 0.1, ROOM, SOUND)
    lower = strip.axes(LEFT, 0.1 + SOUND + GAP, ROOM, SOUND if heat.ndim == 3 else BARS)
    scale = Scale.of(heat.values, top)
    for i in range(len(at)):
        lay.spectrogram(upper, i, decibels[i], loud.style)
        if heat.ndim == 3:
            lay.spectrogram(lower, i, decibels[i], faint.style)
            lay.heat(lower, i, heat.values[i], scale)
    for axes in (upper, lower)[: 2 if heat.ndim == 3 else 1]:
        _frequencies(axes, value["hz"].values)
    if heat.ndim == 1:
        tidy(lower).bar(lay.left, heat.values, width=0.96 * (end - start), align="edge", color=COLOURS[0])
        _height(lower, scale, strip.what)
    lay.along(upper, False)
    lay.along(lower, True)
    strip.bar(loud, 0.1, SOUND, "power (dB)")
    if heat.ndim == 3:
        strip.bar(scale, 0.1 + SOUND + GAP, SOUND, alpha=ALPHA)
    return _sound_alt(heat, at, as_times([*start, *end]), lay, value["hz"].values, strip.what)


class Laid:
    """Segments on one axis: at their own times; side by side where they overlap, or lie so far apart that one would not
    see them."""

    def __init__(self, run: Trace, start: np.ndarray, end: np.ndarray) -> None:
        trunk: Any = run.model.config.imagebind_config.audio
        self.kernel, self.stride = trunk.kernel_size, trunk.stride
        self.start, self.end = start, end
        self.sounding = np.minimum(end, run.clip.sound.start + run.clip.sound.duration)  # the rest is padding
        span = end.max() - start.min()
        self.apart = bool((start[1:] < end[:-1] - 1e-6).any() or (end - start).sum() < 0.5 * span)
        self.left = np.arange(len(start)) * (end - start).max() * 1.04 if self.apart else start

    def spectrogram(self, axes: Axes, i: int, values: np.ndarray, style: dict[str, Any]) -> None:
        """values [mel, time]; columns whose window reaches into the padding are left out."""
        n = audio.whole_columns(self.sounding[i] - self.start[i], values.shape[1])
        extent = (self.left[i], self.left[i] + self.sounding[i] - self.start[i], -0.5, len(values) - 0.5)
        axes.imshow(values[:, :n], extent=extent, **_LAID, **style)

    def heat(self, axes: Axes, i: int, values: np.ndarray, scale: Scale) -> None:
        """values [mel_row, time_column]: each where the middle of its patch is, so that patches that overlap do not."""
        mel, time = (self._edges(n) for n in values.shape)
        seconds = self.left[i] + 0.0125 + 0.01 * time
        extent = (seconds[0], seconds[1], mel[0], mel[1])
        axes.imshow(values, extent=extent, alpha=ALPHA, **_LAID, **scale.style)

    def _edges(self, n: int) -> np.ndarray:
        """Of n patches, in bins: from half a step before the first one's middle to half a step behind the last one's."""
        first = (self.kernel - 1) / 2 - self.stride / 2
        return np.asarray([first, first + n * self.stride])

    def along(self, axes: Axes, labelled: bool) -> None:
        width = (self.end - self.start).max()
        axes.set_xlim(self.left.min(), self.left.max() + width)
        if self.apart:
            axes.set_xticks(self.left, as_times(self.start))
        for x in self.left[1:]:
            axes.axvline(x, color="white", linewidth=0.8)
        axes.tick_params(labelbottom=labelled)
        if labelled:
            side = "start of each segment in the sound (s); segments stand side by side"
            axes.set_xlabel(side if self.apart else "time (s)", fontsize=SIZE)


def _frequencies(axes: Axes, hz: np.ndarray) -> None:
    tidy(axes).set_ylim(-0.5, len(hz) - 0.5)
    if not np.isfinite(hz).all():  # a trunk of other mel bins than the original's
        axes.set_ylabel("mel bin", fontsize=SIZE)
        return
    marks = [f for f in (250, 1000, 3000, 7000) if hz[0] <= f <= hz[-1]]
    axes.set_yticks(np.interp(marks, hz, np.arange(len(hz))), [str(f) for f in marks])
    axes.set_ylabel("frequency\n(Hz)", fontsize=SIZE)


def _sound_alt(heat: xr.DataArray, at: np.ndarray, edges: list[str], lay: Laid, hz: np.ndarray, what: str) -> str:
    where = peak(heat)
    i = where["segment"]
    text = f"in segment {at[i]} ({edges[i]} to {edges[len(at) + i]} s)"
    if heat.ndim == 3:
        low, first = (where[str(dim)] * lay.stride for dim in heat.dims[1:])
        seconds = audio.column_times(first + lay.kernel)[[first, -1]] + lay.start[i]
        text += f", at {seconds[0]:.2f}{f' to {seconds[1]:.2f}' * (lay.kernel > 1)} s"
        if np.isfinite(hz).all():
            text += f" and {hz[low]:.0f}{f' to {hz[low + lay.kernel - 1]:.0f}' * (lay.kernel > 1)} Hz"
    return finding(heat, f"{what} over {len(at)} segment{'s' * (len(at) > 1)} of sound", text)


# ---------------------------------------------------------------------- tokens

STEP, BOX = 0.19, 0.155  # inches, from line to line, and height of a word's box


class Text:
    """Tokens as boxes on lines: a new line where the group changes, or where the room ends.

    heat [token]. boxes: left, line and width of each; words: as they are written; groups: (line, name).
    """

    def __init__(self, run: Trace, heat: xr.DataArray) -> None:
        known = run.tokens
        self.at = places(heat, known, "over_tokens")
        word, group, query = (known.coordinates[key][self.at] for key in ("word", "group", "query"))
        self.words = [str(q) if q >= 0 else shown(w) for w, q in zip(word, query, strict=True)]
        self.names = [f"{g} {q}" if q >= 0 else f"'{shown(w)}'" for w, g, q in zip(word, group, query, strict=True)]
        self.groups: list[tuple[int, str]] = []
        self.boxes: list[tuple[float, int, float]] = []
        measure = Measure()
        x, line = 0.0, -1
        for i, text in enumerate(self.words):
            width = measure(text) + (0.05 if query[i] < 0 else 0.09)
            space = 0.04 if str(word[i]).startswith(" ") else 0.0
            begins = i == 0 or group[i] != group[i - 1]
            if begins or x + space + width > ROOM:
                x, line, space = 0.0, line + 1, 0.0
            if begins:
                self.groups.append((line, str(group[i])))
            self.boxes.append((x + space, line, width))
            x += space + width + 0.015
        self.height = (line + 1) * STEP + 0.1


class Measure:
    """How wide words are, in inches."""

    def __init__(self) -> None:
        self.canvas: Any = Figure(1, 1).canvas
        self.font = FontProperties(size=SMALL)

    def __call__(self, text: str) -> float:
        width, _, _ = self.canvas.get_renderer().get_text_width_height_descent(text, self.font, ismath=False)
        return width / self.canvas.figure.dpi


def tokens(strip: Strip, text: Text, heat: xr.DataArray, top: float | None = None, word: int | None = None) -> str:
    """word: number of the token that the heat is about, which gets a frame. Returns alt text."""
    scale = Scale.of(heat.values, top)
    axes = strip.axes(LEFT, 0.05, ROOM, text.height - 0.1)
    axes.set_xlim(0, ROOM)
    axes.set_ylim(text.height - 0.1, 0)  # inches, from above
    axes.axis("off")
    boxes = [Rectangle((x, line * STEP), width, BOX) for x, line, width in text.boxes]
    drawn = PatchCollection(boxes, linewidth=0, **scale.style)
    drawn.set_array(heat.values)
    axes.add_collection(drawn)
    style: dict[str, Any] = {"va": "center_baseline", "fontsize": SMALL, "parse_math": False}
    for (x, line, width), written, value in zip(text.boxes, text.words, heat.values, strict=True):
        middle = (x + width / 2, line * STEP + BOX / 2)
        axes.text(*middle, written, color=scale.ink(value), ha="center", **style)
    for line, group in text.groups:
        axes.text(-0.1, line * STEP + BOX / 2, group, ha="right", fontstyle="italic", **style)
    if word is not None and word in text.at:
        x, line, width = text.boxes[int(np.flatnonzero(text.at == word)[0])]
        axes.add_patch(Rectangle((x, line * STEP), width, BOX, fill=False, edgecolor=COLOURS[5], linewidth=1.5, clip_on=False))
    strip.bar(scale, 0.05, max(min(text.height - 0.1, 1.6), 0.9))
    (i,) = peak(heat).values()
    over = f"{strip.what} over {len(text.at)} token{'s' * (len(text.at) > 1)}"
    return finding(heat, over, f"at token {text.at[i]}, {text.names[i]}")


def check_run(run: Any, who: str) -> None:
    if not isinstance(run, Trace):
        raise VltError(f"{who} takes the run first (of vlt.trace), and then its array; this is a {type(run).__name__}")
