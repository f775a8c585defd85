"""Is an explanation true of the model? Take away what it points at, and see; beside it the same for maps that know nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from tqdm.auto import tqdm

from vlt.errors import VltError, check_type
from vlt.explain import methods
from vlt.explain.attribution import READ_ATTENTION, Attribution, heat_of
from vlt.explain.methods import Task
from vlt.explain.scorer import scorer
from vlt.view import figures
from vlt.view.drawing import WARNS, Figure

# Shares of the places that are taken as "the hottest" (DeYoung et al., arXiv 1911.03429).
TOP = (0.01, 0.05, 0.1, 0.2, 0.5)
# measure -> +1 where more is better, -1 where less is
MEASURES = {"gain": 1, "deletion": -1, "insertion": 1, "comprehensiveness": 1, "sufficiency": -1, "infidelity": -1}
MEASURES |= {"sensitivity": -1}
CONTROLS = ("random", "shifted")
LEVEL = 0.05  # a map that knows nothing is called true as often as this, and no oftener
ENOUGH = 19  # random maps, with which 1 / (1 + ENOUGH) reaches the level
WARNING = "Cell by cell it does not beat random maps (p = {:.2f}): that the answer hangs on what it calls hot is not shown."


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """curves: score [curve, map, bound, fraction] as more and more places are taken away ("deletion", the hottest first) or
    put in ("insertion"); maps are "own" and the controls, bounds their mean, low and high. table: by measure, its value,
    of each control mean, low and high, and p: the chance that a map that knows nothing does as well, (1 + random maps
    that do) / (1 + random maps). beats: measure -> is p at most 0.05? true: does the gain beat random maps? Low and high
    hold the middle 95 % of maps."""

    curves: xr.DataArray
    table: pd.DataFrame
    beats: dict[str, bool]
    true: bool
    attribution: Attribution = dataclasses.field(repr=False)

    @property
    def warning(self) -> str:
        """What must stand beside the map; "" where it is true."""
        return "" if self.true else WARNING.format(self.table["p"]["gain"])

    def figure(self) -> Figure:
        """The curves, with those of the controls."""
        a = self.attribution
        note = f"{WARNS} {self.warning}" if self.warning else ""
        return figures.curves(self.curves, f"{a.method.replace('_', ' ')} at {a.at}", note)


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
    known: dict[bytes, float] | None = None,
) -> Faithfulness:
    """Measures of one attribution, each beside maps that know nothing, on the same run, target, baseline and cells.

    deletion, insertion: mean score along the curve of `steps` steps, in the target's units (Petsiuk et al., arXiv
    1806.07421). gain: insertion less deletion, the symmetric relevance gain (Blücher et al., arXiv 2401.06654), in which
    what is odd about half-empty inputs cancels out; it decides. comprehensiveness: how much is lost, on average, without
    the hottest 1, 5, 10, 20, 50 % of the cells; sufficiency: how much is lost with nothing but them. infidelity: mean
    squared difference between what the heat says that taking away random halves costs, and what it costs (Yeh et al.,
    arXiv 1901.09392), the heat scaled to fit best. sensitivity (same paper), only if `samples` are asked for, as each
    runs the method again: the greatest change of the heat, over its length, under noise of `noise` times the deviation of
    the stage's values.

    cells: what is taken away together, as for `attribute`; by default as there. A map can be true of segments and untrue
    of the mel cells in them. Of 8 cells one is hottest by chance in an eighth of maps: p says so.
    controls: how many of each kind: "random", numbers drawn for every cell; and, if wanted, "shifted", the heat moved
    round along every axis by lot, so that it is as smooth as it was (shuffled cell by cell it would rank as random ones
    do). known: scores of what is left in, kept between calls for the same run, stage, target, baseline and cells.

    Raises `VltError` for fewer than 4 cells or 19 controls, and where sensitivity cannot be measured.
    """
    check_type(attribution, Attribution, "what vlt.faithfulness measures")
    task = attribution.task
    if cells is not None:
        task = dataclasses.replace(task, cells=methods.cells(task.axes, task.value, cells))
    count = task.n_cells
    _check(count, steps, controls, samples, noise)
    draw = np.random.default_rng(seed)
    luck, gone = draw.random(count), draw.random((4 * steps, count)) < 0.5
    numbers = _numbers(attribution, task)
    maps = _maps(attribution.heat.values, numbers, controls, shifted, draw)
    left = {kind: [_left(values, luck, steps) for values in found] for kind, found in maps.items()}
    asked = np.concatenate([~gone, *(each for found in left.values() for each in found)])
    scores = iter(_scores(task, asked, {} if known is None else known, progress))
    lost = attribution.score - np.array([next(scores) for _ in gone])
    shaken = _shaken(attribution, samples, noise, draw)
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {kind: [] for kind in maps}
    for kind, found in maps.items():
        for values, each in zip(found, left[kind], strict=True):
            curve, measures = _measured(np.array([next(scores) for _ in each]), attribution.score, steps)
            measures["infidelity"] = _infidelity(values * np.bincount(numbers.ravel()), gone, lost)
            if samples:
                measures["sensitivity"] = _sensitivity(kind, attribution.heat.values, shaken, draw)
            rows.append({"map": kind, **measures})
            curves[kind].append(curve)
    table = _summary(pd.DataFrame(rows))
    beats = {str(measure): bool(p <= LEVEL) for measure, p in table["p"].items()}
    return Faithfulness(_bounds(curves, steps), table, beats, beats["gain"], attribution)


def check_controls(controls: int) -> None:
    check_type(controls, int, "a number of controls")
    if controls < ENOUGH:
        raise VltError(f"controls: {controls} random maps; with fewer than {ENOUGH} no map can be told from chance at {LEVEL}")


def _check(cells: int, steps: int, controls: int, samples: int, noise: float) -> None:
    check_controls(controls)
    if cells < 4 or not 2 <= steps <= 1000 or controls > 10_000 or not 0 <= samples <= 1000 or noise <= 0:
        raise VltError(
            f"{cells} cells, {steps} steps, {controls} controls, {samples} samples, noise {noise}; needed are 4 cells, 2 "
            "steps and 0 samples at least, at most 10,000 controls, and noise above 0"
        )


def _numbers(attribution: Attribution, task: Task) -> np.ndarray:
    """The number of the cell of every place of the heat."""
    numbers = task.cells[0]
    for axis, known in reversed(list(enumerate(task.axes))):
        if known.name not in attribution.heat.dims:
            numbers = numbers.select(axis, 0)
    return numbers.cpu().numpy()


def _maps(
    heat: np.ndarray, cells: np.ndarray, controls: int, shifted: bool, draw: np.random.Generator
) -> dict[str, list[np.ndarray]]:
    """By kind, each map as the mean heat of every cell [cell]."""
    count = int(cells.max()) + 1
    out = {"own": [_by_cell(heat, cells)], "random": [draw.random(count) for _ in range(controls)]}
    return out | ({"shifted": [_by_cell(_moved(heat, draw), cells) for _ in range(controls)]} if shifted else {})


def _by_cell(heat: np.ndarray, cells: np.ndarray) -> np.ndarray:
    return np.bincount(cells.ravel(), heat.ravel()) / np.bincount(cells.ravel())


def _moved(heat: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.roll(heat, [int(draw.integers(size)) for size in heat.shape], axis=tuple(range(heat.ndim)))


def _left(values: np.ndarray, luck: np.ndarray, steps: int) -> np.ndarray:
    """Which cells are left in, one row after the other of what `_measured` wants [row, cell] bool. Cells that are equally
    hot go in the order of luck [cell], which is the same for all maps."""
    count = len(values)
    rank = np.empty(count, dtype=int)
    rank[np.lexsort((luck, -values))] = np.arange(count)
    sizes = [np.round(np.linspace(0, 1, steps + 1) * count), np.maximum(np.round(np.asarray(TOP) * count), 1)]
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


def _measured(scores: np.ndarray, whole: float, steps: int) -> tuple[np.ndarray, dict[str, float]]:
    """The two curves [curve, fraction], and what comes of them. scores: of the rows of `_left`; whole: with all cells."""
    deletion, insertion, without, alone = np.split(scores, np.cumsum([steps + 1, steps + 1, len(TOP)]))
    areas = [float(np.trapezoid(curve, dx=1 / steps)) for curve in (deletion, insertion)]
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


def _shaken(attribution: Attribution, samples: int, noise: float, draw: np.random.Generator) -> list[np.ndarray]:
    """The heat of the same method where the stage's values have changed a little."""
    task, run, at = attribution.task, attribution.run, attribution.at
    reads = attribution.method in READ_ATTENTION
    if samples and reads and at not in run.given:
        raise VltError(f"sensitivity of {attribution.method} is measured at {', '.join(run.given)}; not at {at!r}")
    if samples and reads and run.edits:
        raise VltError(f"sensitivity of {attribution.method} is measured on unedited runs; this one has {len(run.edits)} edits")
    out = []
    for _ in range(samples):
        change = torch.as_tensor(draw.uniform(-1, 1, task.value.shape), dtype=task.value.dtype, device=task.value.device)
        value = task.value + noise * task.value.std() * change
        score = task.scorer
        if reads:
            score = scorer(run.again({**run.given, at: value}), at, attribution.target, score.batch)
        again = dataclasses.replace(task, scorer=score, value=value, options=dict(attribution.options), progress=False)
        out.append(heat_of(attribution.method, again, attribution.seed).cpu().numpy())
    return out


def _sensitivity(kind: str, heat: np.ndarray, shaken: list[np.ndarray], draw: np.random.Generator) -> float:
    others = shaken
    if kind == "shifted":
        others = [_moved(each, draw) for each in shaken]
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
            if kind != "own":
                row |= {kind: found.mean(), f"{kind} low": found.quantile(0.025), f"{kind} high": found.quantile(0.975)}
        random = table.loc[table["map"] == "random", measure]
        row["p"] = (1 + int((sign * (random - own[measure]) >= 0).sum())) / (1 + len(random))
        rows.append(row)
    return pd.DataFrame(rows).set_index("measure")


def _bounds(curves: dict[str, list[np.ndarray]], steps: int) -> xr.DataArray:
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
            "fraction": np.linspace(0, 1, steps + 1),
        },
        name="score",
    )
