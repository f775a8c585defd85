"""Is an explanation true of the model? Take away what it points at, and see; beside it the same for maps that know nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import captum.metrics
import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from vlt.errors import VltError
from vlt.explain.attribution import Attribution
from vlt.explain.methods import Task

# Shares of the places that are taken as "the top" (DeYoung et al., arXiv 1911.03429).
TOP = (0.01, 0.05, 0.1, 0.2, 0.5)
CONTROLS = ("random", "shifted")
# measure -> +1 where more is better, -1 where less is
MEASURES = {"deletion": -1, "insertion": 1, "comprehensiveness": 1, "sufficiency": -1, "infidelity": -1}


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """curves: score [curve, map, fraction] as more and more places are taken away ("deletion", the hottest first) or put
    in ("insertion"); maps are "own" and the controls. table: by measure, its value, and of each control mean, low and
    high (the middle 95 %). beats: measure -> is it better than 95 % of random maps? true: does deletion or insertion beat
    random maps, and the other not fall behind their mean?"""

    curves: xr.DataArray
    table: pd.DataFrame
    beats: dict[str, bool]
    true: bool
    attribution: Attribution = dataclasses.field(repr=False)

    @property
    def warning(self) -> str:
        """What must stand beside the map; "" where it is true."""
        return "" if self.true else "this map does not beat random ones: what it points at is not what the answer hangs on"


@torch.no_grad()
def faithfulness(
    attribution: Attribution, *, steps: int = 10, controls: int = 20, seed: int = 0, progress: bool = True
) -> Faithfulness:
    """Measures of one attribution, each beside maps that know nothing, on the same run, target and baseline.

    deletion, insertion: mean score along the curve, in the target's units, with `steps` steps (Petsiuk et al., arXiv
    1806.07421). comprehensiveness: how much is lost, on average, without the hottest 1, 5, 10, 20, 50 % of the places;
    sufficiency: how much is lost with nothing but them. infidelity: mean squared difference between what the heat says
    that taking away random halves costs, and what it costs (Yeh et al., arXiv 1901.09392), the heat scaled to fit best.
    Places go together as the attribution's cells do.

    controls: of each kind: "random", numbers drawn for every cell; "shifted", the heat itself, moved round along every
    axis by lot, so that it is as smooth as it was. Raises `VltError` where there are fewer than 4 cells.
    """
    task = attribution.task
    cells, heat = _cells(attribution)
    count = int(cells.max()) + 1
    if count < 4 or not 2 <= steps <= 1000 or not 2 <= controls <= 10_000:
        raise VltError(f"{count} cells, {steps} steps, {controls} controls; needed are 4 cells, 2 steps, 2 controls at least")
    draw = np.random.default_rng(seed)
    maps = {"own": [_by_cell(heat, cells, count)]}
    maps["random"] = [draw.random(count) for _ in range(controls)]
    maps["shifted"] = [_by_cell(_moved(heat, draw), cells, count) for _ in range(controls)]
    halves = draw.random((4 * steps, count)) < 0.5
    lost = attribution.score - _scores(task, cells, ~halves).numpy()
    rows: list[dict[str, Any]] = []
    curves: dict[str, list[np.ndarray]] = {kind: [] for kind in maps}
    with tqdm(total=1 + 2 * controls, desc="faithfulness", disable=not progress, leave=False) as bar:
        for kind, found in maps.items():
            for values in found:
                curve, measures = _measured(attribution, cells, values, steps)
                measures["infidelity"] = _infidelity(values, halves, lost)
                rows.append({"map": kind, **measures})
                curves[kind].append(curve)
                bar.update()
    table = pd.DataFrame(rows)
    summary, beats = _summary(table)
    own, middle = table[table["map"] == "own"].iloc[0], table[table["map"] == "random"].mean(numeric_only=True)
    behind = [m for m in ("deletion", "insertion") if MEASURES[m] * (own[m] - middle[m]) < 0]
    drawn = xr.DataArray(
        np.stack([np.mean(curves[kind], axis=0) for kind in maps], axis=1),
        dims=["curve", "map", "fraction"],
        coords={"curve": ["deletion", "insertion"], "map": list(maps), "fraction": np.linspace(0, 1, steps + 1)},
        name="score",
    )
    true = (beats["deletion"] or beats["insertion"]) and not behind
    return Faithfulness(drawn, summary, beats, true, attribution)


def _cells(attribution: Attribution) -> tuple[np.ndarray, np.ndarray]:
    """The number of the cell of every place, and the heat there."""
    task = attribution.task
    heat = attribution.heat.values
    cells = task.cells[0]
    for axis, known in reversed(list(enumerate(task.scorer.axes))):
        if known.name not in attribution.heat.dims:
            cells = cells.select(axis, 0)
    return cells.cpu().numpy(), heat


def _by_cell(heat: np.ndarray, cells: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(cells.ravel(), heat.ravel(), minlength=count) / np.bincount(cells.ravel(), minlength=count)


def _moved(heat: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    return np.roll(heat, [int(draw.integers(size)) for size in heat.shape], axis=tuple(range(heat.ndim)))


def _scores(task: Task, cells: np.ndarray, there: np.ndarray) -> Tensor:
    """Scores of copies in which only some cells are there [n, cell] bool; the others are as in the baseline."""
    out = []
    for at in range(0, len(there), task.scorer.batch):
        part = torch.as_tensor(there[at : at + task.scorer.batch], device=task.cells.device)
        mask = part[:, task.cells[0]]
        out.append(task.scorer(torch.where(mask, task.value, task.baseline)).cpu())
    return torch.cat(out)


def _measured(
    attribution: Attribution, cells: np.ndarray, values: np.ndarray, steps: int
) -> tuple[np.ndarray, dict[str, float]]:
    task, count = attribution.task, len(values)
    rank = np.empty(count, dtype=int)
    rank[np.argsort(-values, kind="stable")] = np.arange(count)
    gone = [np.round(np.linspace(0, 1, steps + 1) * count), np.maximum(np.round(np.asarray(TOP) * count), 1)]
    top = [rank[None] < n[:, None] for n in gone]
    scores = _scores(task, cells, np.concatenate([~top[0], top[0], ~top[1], top[1]])).numpy()
    deletion, insertion, without, alone = np.split(scores, np.cumsum([steps + 1, steps + 1, len(TOP)]))
    measures = {
        "deletion": float(np.trapezoid(deletion, dx=1 / steps)),
        "insertion": float(np.trapezoid(insertion, dx=1 / steps)),
        "comprehensiveness": attribution.score - float(without.mean()),
        "sufficiency": attribution.score - float(alone.mean()),
    }
    return np.stack([deletion, insertion]), measures


def _infidelity(values: np.ndarray, gone: np.ndarray, lost: np.ndarray) -> float:
    said = gone @ values
    scale = float(said @ lost / max(said @ said, 1e-30))
    return float(np.mean((scale * said - lost) ** 2))


def _summary(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, bool]]:
    rows, beats = [], {}
    own = table[table["map"] == "own"].iloc[0]
    for measure, sign in MEASURES.items():
        row: dict[str, Any] = {"measure": measure, "value": own[measure]}
        for kind in CONTROLS:
            found = table.loc[table["map"] == kind, measure]
            row |= {kind: found.mean(), f"{kind} low": found.quantile(0.025), f"{kind} high": found.quantile(0.975)}
            if kind == "random":
                beats[measure] = bool((sign * (own[measure] - found) > 0).mean() >= 0.95)
        rows.append(row)
    return pd.DataFrame(rows).set_index("measure"), beats


def sensitivity(attribution: Attribution, attribute: Any, size: float = 0.02, samples: int = 10) -> float:
    """How much the heat changes, at most, under small changes of the values, relative to its length (Yeh et al., arXiv
    1901.09392). attribute: of a tensor [1, ...] at the stage -> heat of the same shape; it is run again for every one of
    `samples` draws, within `size` times the values' deviation."""
    radius = size * float(attribution.task.value.std())
    with torch.enable_grad():
        return float(
            captum.metrics.sensitivity_max(attribute, attribution.task.value, perturb_radius=radius, n_perturb_samples=samples)
        )
