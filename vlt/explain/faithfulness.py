"""Is an explanation true of the model? Take away what it points at, and see; beside it the same for maps that know nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from vlt.errors import VltError
from vlt.explain.attribution import READ_ATTENTION, Attribution, heat_of
from vlt.explain.methods import Task
from vlt.explain.scorer import scorer
from vlt.view import figures
from vlt.view.drawing import WARNS, Figure

# Shares of the places that are taken as "the hottest" (DeYoung et al., arXiv 1911.03429).
TOP = (0.01, 0.05, 0.1, 0.2, 0.5)
# measure -> +1 where more is better, -1 where less is
MEASURES = {"deletion": -1, "insertion": 1, "comprehensiveness": 1, "sufficiency": -1, "infidelity": -1, "sensitivity": -1}
CONTROLS = ("random", "shifted")
WARNING = "This map does not beat random maps: nothing here shows that the answer hangs on what it points at."


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """curves: score [curve, map, bound, fraction] as more and more places are taken away ("deletion", the hottest first) or
    put in ("insertion"); maps are "own" and the controls, bounds their mean, low and high. table: by measure, its value,
    and of each control mean, low and high. beats: measure -> is it better than 95 % of random maps? true: does deletion or
    insertion beat random maps, and the other not fall behind their mean? Low and high hold the middle 95 % of maps."""

    curves: xr.DataArray
    table: pd.DataFrame
    beats: dict[str, bool]
    true: bool
    attribution: Attribution = dataclasses.field(repr=False)

    @property
    def warning(self) -> str:
        """What must stand beside the map; "" where it is true."""
        return "" if self.true else WARNING

    def figure(self) -> Figure:
        """The curves, with those of the controls."""
        a = self.attribution
        note = f"{WARNS} {self.warning}" if self.warning else ""
        return figures.curves(self.curves, f"{a.method.replace('_', ' ')} at {a.at}", note)


@torch.no_grad()
def faithfulness(
    attribution: Attribution,
    *,
    steps: int = 10,
    controls: int = 20,
    samples: int = 0,
    noise: float = 0.02,
    seed: int = 0,
    progress: bool = True,
) -> Faithfulness:
    """Measures of one attribution, each beside maps that know nothing, on the same run, target, baseline and cells.

    deletion, insertion: mean score along the curve of `steps` steps, in the target's units (Petsiuk et al., arXiv
    1806.07421). comprehensiveness: how much is lost, on average, without the hottest 1, 5, 10, 20, 50 % of the cells;
    sufficiency: how much is lost with nothing but them. infidelity: mean squared difference between what the heat says
    that taking away random halves costs, and what it costs (Yeh et al., arXiv 1901.09392), the heat scaled to fit best.
    sensitivity (same paper), only if `samples` are asked for, as each runs the method again: the greatest change of the
    heat, over its length, under noise of `noise` times the deviation of the stage's values.

    controls: how many of each kind: "random", numbers drawn for every cell; "shifted", the heat moved round along every
    axis by lot, so that it is as smooth as it was (shuffled cell by cell it would rank as random ones do). Raises
    `VltError` where there are fewer than 4 cells, and where sensitivity cannot be measured.
    """
    cells, heat = _cells(attribution)
    count = int(cells.max()) + 1
    if count < 4 or not 2 <= steps <= 1000 or not 2 <= controls <= 10_000 or not 0 <= samples <= 1000 or noise <= 0:
        raise VltError(
            f"{count} cells, {steps} steps, {controls} controls, {samples} samples, noise {noise}; needed are 4 cells, 2 "
            "steps, 2 controls, 0 samples at least, and noise above 0"
        )
    draw = np.random.default_rng(seed)
    maps = {"own": [_by_cell(heat, cells, count)]}
    maps["random"] = [draw.random(count) for _ in range(controls)]
    maps["shifted"] = [_by_cell(_moved(heat, draw), cells, count) for _ in range(controls)]
    halves = draw.random((4 * steps, count)) < 0.5
    luck, sizes = draw.random(count), np.bincount(cells.ravel(), minlength=count)
    lost = attribution.score - _scores(attribution.task, cells, ~halves).numpy()
    shaken = _shaken(attribution, samples, noise, draw)
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {kind: [] for kind in maps}
    with tqdm(total=1 + 2 * controls, desc="faithfulness", disable=not progress, leave=False) as bar:
        for kind, found in maps.items():
            for values in found:
                curve, measures = _measured(attribution, cells, values, luck, steps)
                measures["infidelity"] = _infidelity(values * sizes, halves, lost)
                if samples:
                    measures["sensitivity"] = _sensitivity(kind, heat, shaken, draw)
                rows.append({"map": kind, **measures})
                curves[kind].append(curve)
                bar.update()
    table, beats = _summary(pd.DataFrame(rows))
    behind = [m for m in ("deletion", "insertion") if MEASURES[m] * (table["value"][m] - table["random"][m]) < 0]
    true = (beats["deletion"] or beats["insertion"]) and not behind
    return Faithfulness(_bounds(curves, steps), table, beats, true, attribution)


def _cells(attribution: Attribution) -> tuple[np.ndarray, np.ndarray]:
    """The number of the cell of every place, and the heat there."""
    cells = attribution.task.cells[0]
    for axis, known in reversed(list(enumerate(attribution.task.axes))):
        if known.name not in attribution.heat.dims:
            cells = cells.select(axis, 0)
    return cells.cpu().numpy(), attribution.heat.values


def _by_cell(heat: np.ndarray, cells: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(cells.ravel(), heat.ravel(), minlength=count) / np.bincount(cells.ravel(), minlength=count)


def _moved(heat: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.roll(heat, [int(draw.integers(size)) for size in heat.shape], axis=tuple(range(heat.ndim)))


def _scores(task: Task, cells: np.ndarray, there: np.ndarray) -> Tensor:
    """Scores of copies in which only some cells are there [n, cell] bool; the others are as in the baseline."""
    out = []
    for at in range(0, len(there), task.scorer.batch):
        part = torch.as_tensor(there[at : at + task.scorer.batch], device=task.cells.device)
        out.append(task.scorer(torch.where(part[:, task.cells[0]], task.value, task.baseline)).cpu())
    return torch.cat(out)


def _measured(
    attribution: Attribution, cells: np.ndarray, values: np.ndarray, luck: np.ndarray, steps: int
) -> tuple[np.ndarray, dict[str, float]]:
    """The two curves [curve, fraction], and what comes of them. Cells that are equally hot go in the order of luck [cell],
    which is the same for all maps."""
    count = len(values)
    rank = np.empty(count, dtype=int)
    rank[np.lexsort((luck, -values))] = np.arange(count)
    sizes = [np.round(np.linspace(0, 1, steps + 1) * count), np.maximum(np.round(np.asarray(TOP) * count), 1)]
    hottest, top = (rank[None] < n[:, None] for n in sizes)
    scores = _scores(attribution.task, cells, np.concatenate([~hottest, hottest, ~top, top])).numpy()
    deletion, insertion, without, alone = np.split(scores, np.cumsum([steps + 1, steps + 1, len(TOP)]))
    measures = {
        "deletion": float(np.trapezoid(deletion, dx=1 / steps)),
        "insertion": float(np.trapezoid(insertion, dx=1 / steps)),
        "comprehensiveness": attribution.score - float(without.mean()),
        "sufficiency": attribution.score - float(alone.mean()),
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


def _summary(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, bool]]:
    rows, beats = [], {}
    own = table[table["map"] == "own"].iloc[0]
    for measure, sign in MEASURES.items():
        if measure not in table:
            continue
        row: dict[str, Any] = {"measure": measure, "value": float(own[measure])}
        for kind in CONTROLS:
            found = table.loc[table["map"] == kind, measure]
            row |= {kind: found.mean(), f"{kind} low": found.quantile(0.025), f"{kind} high": found.quantile(0.975)}
            if kind == "random":
                beats[measure] = bool((sign * (own[measure] - found) > 0).mean() >= 0.95)
        rows.append(row)
    return pd.DataFrame(rows).set_index("measure"), beats


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
