"""Figures of explanations: heat on parts of what was seen, heard and asked, and how true a map is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from vlt.errors import VltError
from vlt.model.box import ASKED
from vlt.view.drawing import (
    COLOURS,
    SIZE,
    SMALL,
    WIDTH,
    Figure,
    Scale,
    finding,
    folded,
    height_of,
    noted,
    numbers,
    shown,
    tidy,
    times,
)

_KINDS = {"frame": "time of the frame (s)", "segment": "start of the segment (s)", "word": "word of the question"}
_LINES: dict[str, dict[str, Any]] = {
    "own": {"color": COLOURS[0], "linewidth": 1.6},
    "random": {"color": COLOURS[6], "linewidth": 0.9, "linestyle": "--"},
    "shifted": {"color": COLOURS[1], "linewidth": 0.9, "linestyle": "-."},
}

_MEASURED = {
    "pointing": "share of maps whose hottest place is of the cause",
    "mass": "share of the heat that lies on the cause",
    "rank": "chance that a place of the cause is hotter than another",
}
_BY_CHANCE = {"pointing": "chance", "mass": "area", "rank": "half"}  # the column of what a map that knows nothing gets


def parts(heat: xr.DataArray, what: str = "", note: str = "", spread: np.ndarray | None = None) -> Figure:
    """Heat on every frame, every segment of sound and every word of the question, as bars on one scale.

    heat: [part], with coordinates kind, number, seconds, word. what: heat is, in words; by default the array's long name.
    note: lines under it, a warning where it begins with ⚠. spread: the standard error of each [part], drawn as lines of
    one up and one down. Raises `VltError` for another array.
    """
    if not isinstance(heat, xr.DataArray) or heat.dims != ("part",) or not {"kind", "seconds", "word"} <= set(heat.coords):
        raise VltError(f"parts draws an array [part] with kinds and words; this is a {type(heat).__name__}")
    values = numbers(heat, "parts").values
    what = what or str(heat.attrs.get("long_name", "heat"))
    kinds = [kind for kind in _KINDS if kind in heat["kind"].values]
    counts = [int((heat["kind"] == kind).sum()) for kind in kinds]
    figure = Figure(WIDTH, 1.9 + height_of(note), layout="constrained")
    scale = Scale.of(values)
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False, width_ratios=counts)[0]
    for colour, (kind, axes) in enumerate(zip(kinds, panels, strict=True)):
        mine = np.flatnonzero(heat["kind"].values == kind)
        errors: dict[str, Any] = {} if spread is None else {"yerr": spread[mine], "error_kw": {"elinewidth": 0.8, "alpha": 0.7}}
        tidy(axes).bar(range(len(mine)), values[mine], width=0.7, color=COLOURS[colour], **errors)
        names = (
            [shown(str(w), 14) for w in heat["word"].values[mine]] if kind == "word" else times(heat["seconds"].values[mine])
        )
        slant: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if kind == "word" else {}
        axes.set_xticks(range(len(mine)), names, parse_math=False, **slant)
        axes.set_xlabel(folded(_KINDS[kind], max(5.5 * len(mine) / len(values), 0.8)), fontsize=SIZE)
        axes.axhline(0, color="black", linewidth=0.6)
    panels[0].yaxis.set_major_formatter(scale.number)
    panels[0].set_ylabel(folded(scale.title(what), 1.3), fontsize=SIZE)
    at = int(values.argmax())
    word = str(heat["word"].values[at])
    where = f"word '{shown(word)}'" if word else f"{heat['kind'].values[at]} {heat['number'].values[at]}"
    figure.alt = finding(
        heat, f"{what} over {' and '.join(f'{n} {k}s' for n, k in zip(counts, kinds, strict=True))}", f"at {where}"
    )
    return noted(figure, note)


def queries(heat: xr.DataArray, what: str = "", note: str = "") -> Figure:
    """Heat on the queries of a branch, which are places of nothing that could be seen or heard, as bars.

    heat: [video_query] or [audio_query]. what, note: as of `parts`. Raises `VltError` for another array.
    """
    if not isinstance(heat, xr.DataArray) or heat.dims not in (("video_query",), ("audio_query",)):
        raise VltError(f"queries draws an array [video_query] or [audio_query]; this is a {type(heat).__name__}")
    values = numbers(heat, "queries").values
    what, name = what or str(heat.attrs.get("long_name", "heat")), str(heat.dims[0]).replace("_", " ")
    figure = Figure(WIDTH, 1.9 + height_of(note), layout="constrained")
    axes, scale = tidy(figure.subplots()), Scale.of(values)
    axes.bar(range(len(values)), values, width=0.7, color=COLOURS[0])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.yaxis.set_major_formatter(scale.number)
    axes.set_ylabel(folded(scale.title(what), 1.3), fontsize=SIZE)
    axes.set_xlabel(name, fontsize=SIZE)
    figure.alt = finding(heat, f"{what} over {len(values)} queries", f"at {name} {int(values.argmax())}")
    return noted(figure, note)


def curves(found: xr.DataArray, what: str = "", note: str = "") -> Figure:
    """Deletion and insertion: the score as more and more of the hottest places are taken away, or put in; beside the map's
    own curves those of maps that know nothing, with the band that holds 95 % of them.

    found: `curves` of `vlt.faithfulness`, [curve, map, bound, fraction]. Raises `VltError` for another array.
    """
    if not isinstance(found, xr.DataArray) or set(found.dims) != {"curve", "map", "bound", "fraction"}:
        raise VltError(f"curves draws an array [curve, map, bound, fraction]; this is a {type(found).__name__}")
    numbers(found, "curves")
    figure = Figure(WIDTH, 2.4 + height_of(note), layout="constrained")
    panels = figure.subplots(1, found.sizes["curve"], sharey=True, squeeze=False)[0]
    share = 100 * found["fraction"].values
    said = []
    for axes, curve in zip(panels, found["curve"].values, strict=True):
        for name in found["map"].values:
            mean, low, high = (found.sel(curve=curve, map=name, bound=bound).values for bound in ("mean", "low", "high"))
            tidy(axes).plot(share, mean, label=f"{name} map{'s' * (name != 'own')}", **_LINES[str(name)])
            if name != "own":
                axes.fill_between(share, low, high, color=_LINES[str(name)]["color"], alpha=0.15, linewidth=0)
        axes.set_title(str(curve), fontsize=SIZE)
        axes.set_xlabel(f"hottest places {'taken away' if curve == 'deletion' else 'put in'} (%)", fontsize=SIZE)
        area = {str(name): float(found.sel(curve=curve, map=name, bound="mean").mean()) for name in found["map"].values}
        said.append(f"{curve}: mean score {area.pop('own'):.2f}, " + ", ".join(f"{n} maps {a:.2f}" for n, a in area.items()))
    panels[0].set_ylabel("score (nats)", fontsize=SIZE)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=SMALL, frameon=False)
    figure.alt = f"Curves of {what or 'a map'}. {'; '.join(said).capitalize()}."
    return noted(figure, note)


def truth(table: pd.DataFrame, measure: str = "pointing") -> Figure:
    """How often each way's hottest place is of the known cause: a panel for each kind of question, dots with 95 % intervals,
    and each a stroke at what a map that knows nothing would get. Hollow signs: in a model of random weights, and with the
    sound of another clip, where that sounds; crosses, of pointing, how often the hottest place is of the thing that was not
    asked about.

    table: of `vlt.train.tables.summary`. measure: "pointing", "mass" or "rank". Raises `VltError` for another table.
    """
    wanted = ("question", "explained", "way", measure, f"{measure} low", f"{measure} high", "chance", "area")
    if not isinstance(table, pd.DataFrame) or not len(table) or not set(wanted) <= set(table.columns):
        raise VltError(f"truth draws a table with columns {', '.join(wanted)}; this is a {type(table).__name__}")
    table = table[table["question"].isin(ASKED) & ~table["explained"].str.startswith("other branch")]
    if table.empty:
        raise VltError(f"truth draws questions of one kind ({', '.join(ASKED)}); this table has none of the model")
    kinds, ways, sorts = (list(dict.fromkeys(table[name])) for name in ("question", "way", "explained"))
    figure = Figure(WIDTH, 0.9 + 0.22 * len(ways), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    best = []
    for axes, kind in zip(panels, kinds, strict=True):
        mine = table[table["question"] == kind]
        for i, sort in enumerate(sorts):
            rows = mine[mine["explained"] == sort].assign(half=0.5).set_index("way")
            at = [ways.index(way) + 0.18 * i for way in rows.index]
            nothing = rows[_BY_CHANCE[measure]]
            stroke: dict[str, Any] = {"markersize": 5 if i else 8, "label": None if i else "chance"}
            tidy(axes).plot(nothing, at, linestyle="", marker="|", color="black", **stroke)
            low, high = (rows[f"{measure} {end}"].fillna(rows[measure]) for end in ("low", "high"))
            look: dict[str, Any] = {"color": COLOURS[i], "markersize": 3.5, "linewidth": 0.8, "marker": "osD^v"[i]}
            look |= {} if not i else {"markerfacecolor": "white", "alpha": 0.9}
            spread = [np.clip(rows[measure] - low, 0, None), np.clip(high - rows[measure], 0, None)]
            axes.errorbar(rows[measure], at, xerr=spread, linestyle="", label=sort, **look)
        own = mine[mine["explained"] == sorts[0]]
        if measure == "pointing" and "distractor" in own and own["distractor"].notna().any():
            at = [ways.index(way) for way in own["way"]]
            cross: dict[str, Any] = {"linestyle": "", "marker": "x", "markersize": 4, "color": COLOURS[0]}
            axes.plot(own["distractor"], at, label=f"{sorts[0]}, other thing", **cross)
        top = own.loc[own[measure].idxmax()]
        best.append(
            f"{kind}: {top['way']} {top[measure]:.2f} (chance {0.5 if measure == 'rank' else top[_BY_CHANCE[measure]]:.2f})"
        )
        n = [str(int(mine[mine["explained"] == sort]["n"].max())) for sort in sorts if sort in set(mine["explained"])]
        axes.set_title(f"{kind}\nn {', '.join(n)}", fontsize=SIZE)
        axes.set_xlim(-0.06, 1.06)
        axes.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    panels[0].set_yticks(range(len(ways)), ways)
    panels[0].set_ylim(len(ways) - 0.2, -0.5)
    figure.supxlabel(f"{_MEASURED[measure]} (n: of {', '.join(sorts)})", fontsize=SIZE)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), fontsize=SMALL, frameon=False)
    figure.alt = f"{_MEASURED[measure].capitalize()}, for {len(ways)} ways to explain. Best ways: {'; '.join(best)}."
    return figure
