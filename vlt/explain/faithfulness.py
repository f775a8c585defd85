"""Is an explanation true of the model? Take away what it points at, and see; beside it the same for maps that know nothing."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from vlt.errors import VltError, check_seed, check_type
from vlt.explain import methods
from vlt.explain.attribution import READ_ATTENTION, Attribution, heat_of
from vlt.explain.methods import Task
from vlt.explain.scorer import scorer
from vlt.probe.trace import Trace
from vlt.view import figures
from vlt.view.drawing import WARNS, Figure

# Shares of the places that are taken as "the hottest" (DeYoung et al., arXiv 1911.03429).
TOP = (0.01, 0.05, 0.1, 0.2, 0.5)
# measure -> +1 where more is better, -1 where less is
MEASURES = {"gain": 1, "deletion": -1, "insertion": 1, "comprehensiveness": 1, "sufficiency": -1, "infidelity": -1}
MEASURES |= {"sensitivity": -1}
LEVEL, AT_MOST = 0.05, 0.08  # how often a map that knows nothing is called true: nominally, and as measured in the tests
ENOUGH = 19  # controls of a kind, with which 1 / (1 + ENOUGH) reaches the level
WARNINGS = {
    "random": "Random maps do as well (p = {:.2g}): that the answer hangs on what it calls hot is not shown.",
    "shifted": "Moved elsewhere by lot, it does as well (p = {:.2g}): that the answer hangs on where it is hot is not shown.",
}
# Scores of what was left in, of runs that are still there: run -> (stage, target, what the cells are) -> cells -> score.
_SCORED: WeakKeyDictionary[Trace, dict[Any, dict[bytes, float]]] = WeakKeyDictionary()


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """curves: score [curve, map, bound, fraction] as more and more places are taken away ("deletion", the hottest first) or
    put in ("insertion"); maps are "own" and the controls, bounds their mean, low and high. table: by measure, its value,
    of each kind of control mean, low, high (they hold the middle 95 % of maps) and p: the chance that a control does as
    well, (1 + those that do) / (1 + all). controls: how many of each kind. beats: measure -> is every p at most 0.05, or
    the least that so many controls allow? (Sensitivity has none: a map can be steady and wrong.) true: does the gain beat
    all kinds? cells: those asked for, None if the attribution's own."""

    curves: xr.DataArray = dataclasses.field(repr=False)
    table: pd.DataFrame = dataclasses.field(repr=False)
    controls: dict[str, int]
    beats: dict[str, bool]
    attribution: Attribution = dataclasses.field(repr=False)
    cells: Mapping[str, int] | None = None

    @property
    def true(self) -> bool:
        return self.beats["gain"]

    @property
    def warning(self) -> str:
        """What must stand beside the map; "" where it is true. Of the kinds of control, the one it beats least."""
        return "" if self.true else WARNINGS[self._worst].format(self.p)

    @property
    def p(self) -> float:
        """Of the gain, by the kind of control that is beaten least; at most 0.05 where the map is true. Moves that are too
        few for so small a p count where the map does not beat them all."""
        return float(self.table[f"{self._worst} p"]["gain"])

    @property
    def _worst(self) -> str:
        found = {kind: float(self.table[f"{kind} p"]["gain"]) for kind in self.controls}
        count = {kind: p for kind, p in found.items() if self.controls[kind] >= ENOUGH or not _beaten(p, self.controls[kind])}
        return max(count, key=count.__getitem__)

    @property
    def said(self) -> str:
        """The warning, and by which cells the map was tested, where by others than its own; mostly nothing."""
        lines = [f"{WARNS} {self.warning}"] if self.warning else []
        if self.cells:
            by = f"Tested by cells of {' x '.join(f'{n} {axis}' for axis, n in self.cells.items())}"
            lines.append(
                f"{by}." if self.warning else f"{by}: beats what knows nothing; of places within them nothing is shown."
            )
        return "\n".join(lines)

    def figure(self) -> Figure:
        """The curves, with those of the controls."""
        a = self.attribution
        return figures.curves(self.curves, f"{a.method.replace('_', ' ')} at {a.at}", self.said)


@torch.no_grad()
def faithfulness(
    attribution: Attribution,
    *,
    cells: Mapping[str, int] | None = None,
    steps: int = 10,
    controls: int = 20,
    shifted: bool = True,
    samples: int = 0,
    noise: float = 0.02,
    seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """Measures of one attribution, each beside maps that know nothing, on the same run, target, baseline and cells.

    deletion, insertion: mean score along the curve of `steps` steps, in the target's units (Petsiuk et al., arXiv
    1806.07421). gain: insertion less deletion, the symmetric relevance gain (Blücher et al., arXiv 2401.06654), in which
    what is odd about half-empty inputs cancels out; it decides. comprehensiveness: how much is lost, on average, without
    the hottest 1, 5, 10, 20, 50 % of the cells; sufficiency: how much is lost with nothing but them. infidelity: mean
    squared difference between what the heat says that taking away random halves costs, and what it costs (Yeh et al.,
    arXiv 1901.09392), the heat scaled to fit best. sensitivity (same paper), only if `samples` are asked for, as each
    runs the method again: the greatest change of the heat, over its length, under noise of `noise` root mean squares of
    what the values differ from the baseline by. "Hottest" goes by the heat of whole cells with its sign, also of methods
    that give none: a map of mere sizes is punished where it is hot and speaks against.

    cells: what is taken away together, as for `attribute`; by default as there. A map can be true of segments and untrue
    of the mel cells in them.
    controls: how many of each kind. "random": a number drawn for every cell. "shifted": the heat of the cells moved round
    along every axis, no two alike, so that it is as smooth as it was; a smooth map that knows nothing beats random ones too
    often, and not these. Fewer than 20 cells, such as 8 whole segments, can be moved to fewer places than that: all are
    tried, and the map must beat each.

    Raises `VltError` for fewer than 4 cells or 19 controls, and where sensitivity cannot be measured.
    """
    task = _task(attribution, cells)
    count = task.n_cells
    _check(count, steps, controls, samples, noise, seed)
    steps = max(steps, count if count <= ENOUGH else 0)  # so few are taken away one by one: else moves by one tie
    draw = np.random.default_rng(seed)
    luck, gone = draw.random(count), draw.random((4 * steps, count)) < 0.5
    maps = _maps(attribution.heat.values, task.numbers, controls, shifted, draw, first=attribution.at == "patches")
    fractions = np.unique(np.round(np.linspace(0, 1, steps + 1) * count)) / count  # fewer, where there are fewer cells
    left = {kind: [_left(values, luck, fractions) for values in found] for kind, found in maps.items()}
    asked = np.concatenate([~gone, *(each for found in left.values() for each in found)])
    scores = iter(_scores(task, asked, _known(attribution, task), progress))
    lost = attribution.score - np.array([next(scores) for _ in gone])
    shaken = _shaken(attribution, samples, noise, draw, progress)
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {kind: [] for kind in maps}
    for kind, found in maps.items():
        for values, each in zip(found, left[kind], strict=True):
            curve, measures = _measured(np.array([next(scores) for _ in each]), attribution.score, fractions)
            measures["infidelity"] = _infidelity(values, gone, lost)
            if samples:
                measures["sensitivity"] = _sensitivity(kind, attribution.heat.values, shaken, draw)
            rows.append({"map": kind, **measures})
            curves[kind].append(curve)
    table = _summary(pd.DataFrame(rows))
    others = {kind: len(found) for kind, found in maps.items() if kind != "own"}
    return Faithfulness(_bounds(curves, fractions), table, others, _beats(table, others), attribution, cells)


def _beats(table: pd.DataFrame, others: Mapping[str, int]) -> dict[str, bool]:
    told = table.drop("sensitivity", errors="ignore")
    return {str(m): all(_beaten(row[f"{kind} p"], n) for kind, n in others.items()) for m, row in told.iterrows()}


def _beaten(p: float, others: int) -> bool:
    """Is a p as small as the level, or as `others` controls allow?"""
    return p <= max(LEVEL, 1 / (1 + others))


def check_controls(controls: int) -> None:
    """Of each kind."""
    check_type(controls, int, "a number of controls")
    if not ENOUGH <= controls <= 10_000:
        raise VltError(
            f"{controls} controls; needed are {ENOUGH} to 10,000: with fewer no map can be told from chance at {LEVEL}"
        )


def _task(attribution: Attribution, cells: Mapping[str, int] | None) -> Task:
    """That of the attribution, perhaps with other cells."""
    check_type(attribution, Attribution, "what vlt.faithfulness measures (of vlt.attribute)")
    if not np.isfinite(attribution.heat).all():
        raise VltError("this heat has numbers that are not finite (nan or infinity): it is no map")
    task = attribution.task
    if cells is None:
        return task
    return dataclasses.replace(task, cells=methods.cells(task.axes, task.value, cells))


def _check(cells: int, steps: int, controls: int, samples: int, noise: float, seed: int) -> None:
    check_controls(controls)
    check_seed(seed)
    for name, value in {"steps": steps, "samples": samples}.items():
        check_type(value, int, f"a number of {name}")
    check_type(noise, (int, float), "noise")
    if cells < 4 or not 2 <= steps <= 1000 or not 0 <= samples <= 1000 or not 0 < noise < math.inf:
        raise VltError(
            f"{cells} cells, {steps} steps, {samples} samples, noise {noise}; needed are 4 cells, 2 steps and 0 samples "
            "at least, and noise above 0"
        )


def _known(attribution: Attribution, task: Task) -> dict[bytes, float]:
    """Scores of the same run, stage, target, baseline and cells that were computed before."""
    if attribution.run is None:
        return {}
    told = hashlib.sha256()
    for tensor in (task.value, task.baseline, task.cells):
        told.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    key = (attribution.at, repr(attribution.target), told.digest())
    return _SCORED.setdefault(attribution.run, {}).setdefault(key, {})


def _maps(
    heat: np.ndarray, cells: np.ndarray, controls: int, shifted: bool, draw: np.random.Generator, first: bool = False
) -> dict[str, list[np.ndarray]]:
    """By kind, each map as the heat of every cell [cell], which is taken away as a whole. Controls have the same mean over a
    cell's places, whatever its size (the last along an axis may be smaller): a map must not beat them by knowing that.
    first: along the last axis the first place is none of the picture (the class token), and stays."""
    own, sizes = (np.bincount(cells.ravel(), weights) for weights in (heat.ravel(), None))
    out: dict[str, list[np.ndarray]] = {"own": [own], "random": [draw.random(len(own)) * sizes for _ in range(controls)]}
    if not shifted:
        return out
    firsts = (np.moveaxis(cells, axis, 0).reshape(size, -1)[:, 0] for axis, size in enumerate(cells.shape))
    grid = np.arange(len(own)).reshape([len(np.unique(along)) for along in firsts])  # cells are numbered row by row
    if first and grid.shape[-1] == cells.shape[-1]:
        side = math.isqrt(grid.shape[-1] - 1)
        grid = grid[..., 1:].reshape(*grid.shape[:-1], side, side)
    out["shifted"] = []
    for moved in _moved(own[grid] / sizes[grid], controls, draw):
        control = own.copy()
        control[grid] = moved * sizes[grid]
        out["shifted"].append(control)
    return out


def _moved(heat: np.ndarray, most: int, draw: np.random.Generator) -> Iterator[np.ndarray]:
    """Somewhere else: so many times, or to all the places there are. Where a map knows nothing, each of them and it itself
    are as likely to be the best."""
    for far in 1 + draw.choice(heat.size - 1, min(most, heat.size - 1), replace=False):
        yield np.roll(heat, np.unravel_index(far, heat.shape), axis=tuple(range(heat.ndim)))


def _left(values: np.ndarray, luck: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Which cells are left in, one row after the other of what `_measured` wants [row, cell] bool. Cells that are equally
    hot go in the order of luck [cell], which is the same for all maps."""
    count = len(values)
    rank = np.empty(count, dtype=int)
    rank[np.lexsort((luck, -values))] = np.arange(count)
    sizes = [np.round(fractions * count), np.maximum(np.round(np.asarray(TOP) * count), 1)]
    hottest, top = (rank[None] < n[:, None] for n in sizes)
    return np.concatenate([~hottest, hottest, ~top, top])


def _scores(task: Task, there: np.ndarray, known: dict[bytes, float], progress: bool) -> list[float]:
    """Scores of copies in which only some cells are there [row, cell] bool; the others are as in the baseline. What is
    known is not computed again."""
    keys = [row.tobytes() for row in np.packbits(there, axis=1)]
    wanted = [*{key: row for key, row in zip(keys, there, strict=True) if key not in known}.items()]
    with tqdm(total=len(wanted), desc="faithfulness", unit="row", disable=not progress, leave=False) as bar:
        for at in range(0, len(wanted), task.scorer.batch):
            some = wanted[at : at + task.scorer.batch]
            part = torch.as_tensor(np.stack([row for _, row in some]), device=task.cells.device)
            scores = task.scorer(torch.where(part[:, task.cells[0]], task.value, task.baseline)).tolist()
            known.update(zip([key for key, _ in some], scores, strict=True))
            bar.update(len(some))
    return [known[key] for key in keys]


def _measured(scores: np.ndarray, whole: float, fractions: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The two curves [curve, fraction], and what comes of them. scores: of the rows of `_left`; whole: with all cells."""
    deletion, insertion, without, alone = np.split(scores, np.cumsum([len(fractions)] * 2 + [len(TOP)]))
    areas = [float(np.trapezoid(curve, fractions)) for curve in (deletion, insertion)]
    measures = {
        "gain": areas[1] - areas[0],
        "deletion": areas[0],
        "insertion": areas[1],
        "comprehensiveness": whole - float(without.mean()),
        "sufficiency": whole - float(alone.mean()),
    }
    return np.stack([deletion, insertion]), measures


def _infidelity(sums: np.ndarray, gone: np.ndarray, lost: np.ndarray) -> float:
    """sums: heat of whole cells [cell]. A map of the wrong sign fits best with a scale of 0."""
    said = gone @ sums
    scale = max(float(said @ lost / max(said @ said, 1e-30)), 0.0)
    return float(np.mean((scale * said - lost) ** 2))


def _shaken(
    attribution: Attribution, samples: int, noise: float, draw: np.random.Generator, progress: bool
) -> list[np.ndarray]:
    """The heat of the same method where the stage's values have changed a little."""
    task, run, at = attribution.task, attribution.run, attribution.at
    reads = attribution.method in READ_ATTENTION
    if samples and reads and at not in run.given:
        raise VltError(f"sensitivity of {attribution.method} is measured at {', '.join(run.given)}; not at {at!r}")
    if samples and reads and run.edits:
        raise VltError(f"sensitivity of {attribution.method} is measured on unedited runs; this one has {len(run.edits)} edits")
    out = []
    size = noise * (task.value - task.baseline).square().mean().sqrt()
    for _ in tqdm(range(samples), desc="sensitivity", unit="map", disable=not (progress and samples), leave=False):
        change = torch.as_tensor(draw.uniform(-1, 1, task.value.shape), dtype=task.value.dtype, device=task.value.device)
        value = task.value + size * change
        score = task.scorer
        if reads:
            score = scorer(run.again({**run.given, at: value}), at, attribution.target, score.batch)
        again = dataclasses.replace(task, scorer=score, value=value, options=dict(attribution.options), progress=False)
        out.append(heat_of(attribution.method, again, attribution.seed).cpu().numpy())
    return out


def _sensitivity(kind: str, heat: np.ndarray, shaken: list[np.ndarray], draw: np.random.Generator) -> float:
    others = shaken
    if kind == "shifted":
        others = [next(_moved(each, 1, draw)) for each in shaken]
    elif kind == "random":
        heat, others = draw.random(heat.shape), [draw.random(heat.shape) for _ in shaken]
    return max(float(np.linalg.norm(other - heat)) for other in others) / max(float(np.linalg.norm(heat)), 1e-30)


def _summary(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    own = table[table["map"] == "own"].iloc[0]
    for measure, sign in MEASURES.items():
        if measure not in table:
            continue
        row: dict[str, Any] = {"measure": measure, "value": float(own[measure])}
        for kind, found in table.groupby("map", sort=False)[measure]:
            if kind == "own":
                continue
            row |= {kind: found.mean(), f"{kind} low": found.quantile(0.025), f"{kind} high": found.quantile(0.975)}
            as_good = int((sign * (found - own[measure]) >= 0).sum())
            row[f"{kind} p"] = (1 + as_good) / (1 + len(found)) if measure != "sensitivity" else np.nan
        rows.append(row)
    return pd.DataFrame(rows).set_index("measure")


def _bounds(curves: dict[str, list[np.ndarray]], fractions: np.ndarray) -> xr.DataArray:
    found = []
    for each in curves.values():
        stack = np.stack(each)  # [map, curve, fraction]
        found.append(np.stack([stack.mean(0), *np.quantile(stack, (0.025, 0.975), axis=0)]))
    return xr.DataArray(
        np.stack(found).transpose(2, 0, 1, 3),
        dims=["curve", "map", "bound", "fraction"],
        coords={
            "curve": ["deletion", "insertion"],
            "map": list(curves),
            "bound": ["mean", "low", "high"],
            "fraction": fractions,
        },
        name="score",
    )
