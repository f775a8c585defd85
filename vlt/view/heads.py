"""Attention, head by head."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from vlt.errors import VltError
from vlt.view.drawing import (
    COLOURS,
    HATCHES,
    SIZE,
    SMALL,
    WIDTH,
    Figure,
    Scale,
    colour_bar,
    coordinate,
    finding,
    folded,
    numbers,
    peak,
    shown,
    tidy,
    times,
)

PANELS = 64  # in one figure
OUTER = ("frame", "segment", "head")  # axes that become panels


def attention(array: xr.DataArray) -> Figure:
    """Attention of any part: a panel for each head (and each frame or segment), rows that look, columns that are looked
    at, all on one scale.

    array: [(frame or segment,) (head,) rows, columns] of `run.attention(...)`, drawn as colours; with `seen` (groups of
    columns) as its last axis, drawn as bars. Tokens are told by their words where there is room, else by their groups. At
    most 64 panels.
    Raises `VltError` for an array of other axes or of more panels.
    """
    panels, outer = _panels(array)
    grouped = array.dims[-1] == "seen"
    n = len(panels)
    wide = array.shape[-1] > 40 or (grouped and array.shape[-2] > 1)
    columns = array.shape[1] if len(outer) == 2 and array.shape[1] <= 5 else min(n, 2 if wide and len(outer) < 2 else 4)
    lines = math.ceil(n / columns)
    each = (WIDTH - 1.5) / columns if n > 1 else 4.0
    tall = 1.2 if grouped else min(max(0.14 * array.shape[-2], 0.7), each)
    figure = Figure(each * columns + 1.5, lines * (tall + 0.2) + 1.0, layout="constrained")
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    scale = Scale.of(array.values)
    what = str(array.attrs.get("long_name", "attention"))
    for axes in grid.ravel()[n:]:
        axes.set_visible(False)
    for i, (axes, (name, panel)) in enumerate(zip(grid.ravel(), panels, strict=False)):
        axes.set_title(name, fontsize=SMALL, pad=3)
        if grouped:
            _group_bars(tidy(axes), panel, scale, each)
        else:
            tidy(axes).imshow(panel.values, aspect="auto", interpolation="nearest", **scale.style)
            _ticks(axes.yaxis, panel, str(panel.dims[0]), tall)
            _ticks(axes.xaxis, panel, str(panel.dims[1]), each - 0.3)
        if i % columns and not grouped:
            axes.set_ylabel("")
        if i + columns < n:
            axes.set_xlabel("")
        elif i // columns < lines - 1:  # the lowest of its column, above an empty place
            axes.tick_params(labelbottom=True)
    if grouped:
        _group_names(figure, grid, array, scale, what)
    else:
        high = min(figure.get_figheight() - 0.8, 2.5)
        place = {"shrink": high / (figure.get_figheight() - 0.8), "anchor": (0.0, 1.0), "aspect": high / 0.09, "pad": 0.02}
        colour_bar(figure, scale, what, ax=grid.ravel().tolist(), **place)
    figure.alt = _attention_alt(array, what)
    return figure


def _panels(array: Any) -> tuple[list[tuple[str, xr.DataArray]], list[str]]:
    """(title, [rows, columns]) of each panel, and the axes that panels are of."""
    form = "[(frame or segment,) (head,) rows, columns]"
    if not isinstance(array, xr.DataArray):
        raise VltError(f"attention draws a labelled array (xarray.DataArray) {form}; this is a {type(array).__name__}")
    outer = [str(dim) for dim in array.dims[:-2]]
    if array.ndim < 2 or len(outer) > 2 or not set(outer) <= set(OUTER):
        raise VltError(f"attention draws {form}; this is [{', '.join(map(str, array.dims))}]")
    numbers(array, "attention")
    n = math.prod(array.sizes[dim] for dim in outer)
    if n > PANELS:
        raise VltError(f"attention draws {PANELS} panels at most; this has {n}: choose some, or average (.isel, .mean)")
    if array.dims[-1] == "seen" and array.shape[-1] > len(COLOURS):
        raise VltError(f"attention draws {len(COLOURS)} groups of columns at most; this has {array.shape[-1]}: choose some")
    panels = []
    for at in np.ndindex(*array.shape[:-2]):
        names = []
        for dim, i in zip(outer, at, strict=True):
            number = int(array.coords[dim].values[i]) if dim in array.coords else i
            names.append(f"{dim} {number}")
        panels.append((", ".join(names), array[at]))
    return panels, outer


def _ticks(axis: Any, array: xr.DataArray, dim: str, inches: float) -> None:
    """Places of an axis by what they are: words, rows, seconds, groups, numbers; no more of them than there is room for."""
    n = array.sizes[dim]
    upright = axis.axis_name == "y"
    at, names, label = _told(array, dim, n * SMALL * 1.3 <= inches * 72)
    if not names:
        step = next(s * 10**k for k in range(9) for s in (1, 2, 5) if n * 0.25 <= inches * s * 10**k)
        numbers_of = array.coords[dim].values if dim in array.coords else np.arange(n)
        at = [i for i in range(n) if int(numbers_of[i]) % step == 0]
        names = [str(numbers_of[int(i)]) for i in at]
    turned = not upright and not _apart(at, [len(name) * 0.06 + 0.05 for name in names], inches / n)
    sizes = [0.125 if turned or upright else len(name) * 0.06 + 0.05 for name in names]
    kept: list[int] = []
    for i in reversed(range(len(at))):  # from the end: what is said last matters most
        if _apart([at[j] for j in (i, *kept[:1])], [sizes[j] for j in (i, *kept[:1])], inches / n):
            kept.insert(0, i)
    axis.set_ticks([at[i] for i in kept], [names[i] for i in kept], rotation=90 if turned else 0, parse_math=False)
    axis.set_label_text(folded(label, inches), fontsize=SIZE)


def _told(array: xr.DataArray, dim: str, fits: bool) -> tuple[list[float], list[str], str]:
    """(places, names, label); no names where numbers tell all. fits: is there room for a name at every place?"""
    n, label = array.sizes[dim], dim.replace("_seen", " looked at").replace("_", " ")
    word, group, query, row, seconds, frame, start = (
        coordinate(array, dim, key) for key in ("word", "group", "query", "patch_row", "seconds", "frame", "start")
    )
    one = group is not None and len({str(name) for name in group} - {"prompt"}) == 1  # which would tell nothing
    if word is not None and query is not None and (fits or one):
        kind = group if group is not None else ["soft token"] * n
        names = [f"{k} {q}" if q >= 0 else shown(w, 14) for w, k, q in zip(word, kind, query, strict=True)]
        return list(range(n)), names, label
    if group is not None:
        spans = [(at, str(name)) for at, name in _spans(group) if name != "prompt"]
        return [at for at, _ in spans], [name for _, name in spans], label
    if row is not None:
        spans = [(at, str(number)) for at, number in _spans(row) if number >= 0]
        return [at for at, _ in spans], [name for _, name in spans], f"{label}, by row"
    if frame is not None and seconds is not None:
        spans = [(at, name) for at, name in _spans(frame)]
        return [at for at, _ in spans], times(dict.fromkeys(seconds.tolist())), f"{label}, by frame (s)"
    if start is not None:
        return list(range(n)), times(start), f"{label}, by start (s)"
    return [], [], label


def _spans(values: np.ndarray) -> list[tuple[float, Any]]:
    """(middle, value) of every run of places of one value."""
    starts = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return [((a + b - 1) / 2, values[a]) for a, b in zip(starts, [*starts[1:], len(values)], strict=True)]


def _apart(at: Sequence[float], sizes: Sequence[float], step: float) -> bool:
    """Do labels of these sizes keep clear of each other? In inches; step: of one place."""
    pairs = zip(at, at[1:], sizes, sizes[1:], strict=False)
    return all((b - a) * step >= (size + next_size) / 2 for a, b, size, next_size in pairs)


def _group_bars(axes: Axes, panel: xr.DataArray, scale: Scale, inches: float) -> None:
    """panel [rows, group]: one row's groups side by side, or for every row a bar of each group."""
    rows, groups = panel.shape
    for g in range(groups):
        x = np.arange(rows) + (g - (groups - 1) / 2) * 0.8 / groups if rows > 1 else np.asarray([g])
        style: dict[str, Any] = {"color": COLOURS[g], "hatch": HATCHES[g], "edgecolor": "white", "linewidth": 0}
        axes.bar(x, panel.values[:, g], width=0.8 / groups if rows > 1 else 0.7, **style)
    if rows > 1:
        _ticks(axes.xaxis, panel, str(panel.dims[0]), inches - 0.3)
        axes.set_xlim(-0.5, rows - 0.5)
    else:
        axes.set_xticks(range(groups), [str(g) for g in panel["seen"].values], parse_math=False)
        axes.set_xlabel("group looked at", fontsize=SIZE)
    axes.set_ylim(scale.low * 1.05, scale.high * 1.05)
    axes.yaxis.set_major_formatter(scale.number)


def _group_names(figure: Figure, grid: np.ndarray, array: xr.DataArray, scale: Scale, what: str) -> None:
    for axes in grid[:, 0]:
        axes.set_ylabel(scale.title(what), fontsize=SIZE)
    if array.shape[-2] > 1:
        keys = [Patch(facecolor=COLOURS[g], hatch=HATCHES[g], edgecolor="white") for g in range(array.shape[-1])]
        names = [str(g) for g in array["seen"].values]
        figure.legend(
            keys, names, loc="outside right upper", fontsize=SMALL, frameon=False, title="looked at", title_fontsize=SMALL
        )


def _attention_alt(array: xr.DataArray, what: str) -> str:
    of = f" of {array.attrs['of']}" if "of" in array.attrs else ""
    return finding(array, what + of, "at " + ", ".join(_place(array, dim, i) for dim, i in peak(array).items()))


def _place(array: xr.DataArray, dim: str, i: int) -> str:
    name = dim.replace("_seen", " looked at").replace("_", " ")
    value = array.coords[dim].values[i] if dim in array.coords else i
    word, query = coordinate(array, dim, "word"), coordinate(array, dim, "query")
    row, column = coordinate(array, dim, "patch_row"), coordinate(array, dim, "patch_column")
    if word is not None and (query is None or query[i] < 0):
        return f"{name} {value} '{shown(word[i])}'"
    if row is not None and column is not None:
        return f"{name} in row {row[i]}, column {column[i]}" if row[i] >= 0 else f"{name} {value}, which is no place"
    return f"{name} {value}"
