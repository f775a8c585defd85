"""Methods of attribution that change numbers and look at the score: captum's core classes on a `Scorer`."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import captum.attr
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from tqdm.auto import tqdm

from vlt.errors import VltError, check_type, nearest
from vlt.explain.scorer import WIDTHS, Scorer
from vlt.probe.axes import Axis

Progress = bool | Callable[[int, int], None]  # a bar, or none, or told (rows done, of how many); what that raises ends the work


class _Told:
    """In the place of a bar: tells a function."""

    def __init__(self, tell: Callable[[int, int], None], total: int) -> None:
        self.tell, self.total, self.done = tell, total, 0

    def update(self, n: int) -> None:
        self.done += n
        self.tell(self.done, self.total)

    def close(self) -> None: ...


@dataclasses.dataclass
class Task:
    """One attribution under way. value, baseline [1, ...] at the stage. cells [1, ...] int64: the number of the cell that
    each place belongs to; cells are changed as one. options: the method's own; what it chose by itself, it adds. smooth:
    see `smoothed`. backwards: passes of gradients so far. spread: the standard error of every cell's heat [cell] float64, by
    what the method drew (None: it draws nothing, or does not tell); noise: the greatest of them, or nan."""

    scorer: Scorer
    value: Tensor
    baseline: Tensor
    cells: Tensor
    progress: Progress
    options: dict[str, Any]
    smooth: float = 0.0
    backwards: int = 0
    spread: np.ndarray | None = None

    @property
    def noise(self) -> float:
        return math.nan if self.spread is None else float(self.spread.max())

    @property
    def axes(self) -> list[Axis]:
        return self.scorer.axes

    @property
    def widths(self) -> list[int]:
        """Dimensions of `value` whose numbers stand at one place."""
        return [i + 1 for i, axis in enumerate(self.axes) if axis.name in WIDTHS]

    @property
    def n_cells(self) -> int:
        return int(self.cells.max()) + 1

    @property
    def numbers(self) -> np.ndarray:
        """The number of the cell of every place of the heat [the stage's axes without its width]."""
        numbers = self.cells[0]
        for axis in sorted(self.widths, reverse=True):
            numbers = numbers.select(axis - 1, 0)
        return numbers.cpu().numpy()

    def leaf(self) -> Tensor:
        return self.value.detach().clone().requires_grad_()

    def batches(self, total: int) -> Iterator[int]:
        """Sizes of batches that come to `total`."""
        for done in range(0, total, self.scorer.batch):
            yield min(self.scorer.batch, total - done)

    @contextmanager
    def bar(self, total: int) -> Iterator[None]:
        """Shows how many of `total` rows have been scored, and how long the rest will take."""
        if callable(self.progress):
            bar: Any = _Told(self.progress, total)
        else:
            bar = tqdm(total=total, desc="attribution", unit="row", disable=not self.progress, leave=False)
        self.scorer.bar, before = bar, self.scorer.bar
        try:
            yield
        finally:
            self.scorer.bar = before
            bar.close()


def cells(axes: list[Axis], value: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """Numbers the places that go together, from 0 without gaps: `sizes` of them side by side along each axis."""
    check_type(sizes, Mapping, "cells = {axis: places}")
    names = [axis.name for axis in axes if axis.name not in WIDTHS]
    if unknown := set(sizes) - set(names):
        raise VltError(f"cells: no axis {unknown.pop()!r}; {nearest('', names)}")
    number = torch.zeros((1,) * value.ndim, dtype=torch.int64)
    for i, axis in enumerate(axes):
        if axis.name in WIDTHS:
            continue
        size = sizes.get(axis.name, 1)
        if not isinstance(size, int) or isinstance(size, bool) or not size >= 1:
            raise VltError(f"cells: {axis.name} = {size!r}; expected a number of places from 1 on")
        along = (torch.arange(axis.size) // size).view([-1 if j == i + 1 else 1 for j in range(value.ndim)])
        number = number * (int(along.max()) + 1) + along
    return number.expand(value.shape).contiguous().to(value.device)


def options_of(method: Callable[..., Tensor]) -> list[str]:
    return list(inspect.signature(method).parameters)[1:]


def check_options(method: Callable[..., Tensor], options: Mapping[str, Any]) -> None:
    """Refuses what a method does not take, before anything is run."""
    known = options_of(method)
    for name, value in options.items():
        if name not in known:
            if name == "rather":
                raise VltError(f"one word rather than another is a target: target=(word, {value!r})")
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise VltError(f"{method.__name__} has no option {name!r}; {has}")
        if name.startswith("n_") and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise VltError(f"{name} = {value!r}; expected a whole number from 1 on")
        if name == "stride" and not (isinstance(value, Mapping) and all(type(step) is int for step in value.values())):
            raise VltError(f"stride = {value!r}; expected {{axis: whole number of places}}")
        if name == "deviation" and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf):
            raise VltError(f"deviation = {value!r}; expected a number above 0")


# ---------------------------------------------------------------------- gradients


def check_smooth(width: float, axes: list[Axis]) -> None:
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 <= width < 100:
        raise VltError(f"smooth = {width!r}; expected a number of patches from 0 on")
    names = [axis.name for axis in axes if axis.name not in WIDTHS]
    if width and names not in (["frame", "patch"], ["frame", "height", "width"]):
        raise VltError(f"smooth: heat [{', '.join(names)}] is on no picture; give 0, or at='frames' or 'patches'")


def smoothed(heat: Tensor, axes: list[Axis], width: float, patch: int) -> Tensor:
    """Heat on pictures [frame, patch], the class token first, or [frame, height, width], averaged with its neighbours' of
    the same frame by a Gaussian whose standard deviation is `width` patches (of `patch` pixels); its sum stays."""
    whole = heat
    if heat.ndim == 2:
        patch, heat = 1, heat[:, 1:].unflatten(1, (1 + int(axes[1].coordinates["patch_row"].max()), -1))
    blurred = gaussian_filter(heat.double().cpu().numpy(), sigma=(0, width * patch, width * patch), mode="reflect")
    heat = torch.from_numpy(blurred).to(whole)
    return heat if whole.ndim == 3 else torch.cat([whole[:, :1], heat.flatten(1)], 1)


def saliency(task: Task) -> Tensor:
    """|d score / d x|, summed over a place (Simonyan et al., arXiv 1312.6034). Unsigned."""
    return _gradient(task, captum.attr.Saliency)


def gradient_x_input(task: Task) -> Tensor:
    """x * d score / d x (Shrikumar et al., arXiv 1605.01713)."""
    return _gradient(task, captum.attr.InputXGradient)


def _gradient(task: Task, kind: Any) -> Tensor:
    with torch.enable_grad():
        out = kind(task.scorer).attribute(task.leaf())
    task.backwards += 1
    return _places(task, out.detach())


def integrated_gradients(task: Task, n_steps: int | None = None) -> Tensor:
    """Gradients along the line from the baseline, times its length (Sundararajan et al., arXiv 1703.01365). n_steps: on
    the line; by default 32, doubled up to 512 until the heat's sum is what it should be (see `missed`)."""
    steps = n_steps or 32
    method = captum.attr.IntegratedGradients(task.scorer)
    brings = 0.0 if n_steps else float(torch.sub(*task.scorer(torch.cat([task.value, task.baseline]))))
    while True:
        with torch.enable_grad(), task.bar(steps):
            out = method.attribute(task.leaf(), task.baseline, n_steps=steps, internal_batch_size=task.scorer.batch).detach()
        task.backwards += steps
        if n_steps or steps >= 512 or not missed(float(out.double().sum()) - brings, brings):
            task.options["n_steps"] = steps
            return _places(task, out)
        steps *= 2


def missed(error: float, brings: float) -> bool:
    """Is the heat's sum wrong by more than a tenth of what all places bring, and more than 0.05 nats?"""
    return abs(error) > max(0.1 * abs(brings), 0.05)


def smoothgrad(task: Task, n_samples: int = 25, deviation: float = 0.1) -> Tensor:
    """Size of the mean gradient under noise (Smilkov et al., arXiv 1706.03825). Unsigned. deviation: of the noise, in root
    mean squares of what the values differ from the baseline by."""
    total = torch.zeros_like(task.value)
    with torch.enable_grad(), task.bar(n_samples):
        method = captum.attr.NoiseTunnel(captum.attr.Saliency(task.scorer))
        noise = deviation * float((task.value - task.baseline).square().mean().sqrt())
        for _ in range(n_samples):  # one by one: noise that is drawn for several at once would hang on their number
            total += method.attribute(task.leaf(), nt_type="smoothgrad", stdevs=noise, nt_samples=1, abs=False).detach()
    task.backwards += n_samples
    return _places(task, total.abs() / n_samples)


def gradient_shap(task: Task, n_samples: int = 25) -> Tensor:
    """Expected gradients: integrated ones at random places of the line (Lundberg and Lee, arXiv 1705.07874). The nearest to
    DeepLIFT here: captum's needs every non-linearity to be a module, and attention's is none."""
    total = torch.zeros_like(task.value)
    with torch.enable_grad(), task.bar(n_samples):
        method = captum.attr.GradientShap(task.scorer)
        for size in task.batches(n_samples):
            total += method.attribute(task.leaf(), task.baseline, n_samples=size).detach() * size
    task.backwards += n_samples
    return _places(task, total / n_samples)


def grad_cam(task: Task) -> Tensor:
    """Grad-CAM (Selvaraju et al., arXiv 1610.02391): a place's numbers, weighted by their gradients' mean over the places
    of the same frame (patches, the class token's is of none), or over all segments or queries, where above 0. Unsigned."""
    (width,) = task.widths
    with torch.enable_grad():
        x = task.leaf()
        (slope,) = torch.autograd.grad(task.scorer(x).sum(), x)
    task.backwards += 1
    if task.scorer.at == "frame_tokens":  # a frame's queries stand side by side
        n_frames = task.scorer.run.axes_of("image_queries")[0].size
        slope = slope.unflatten(1, (n_frames, -1)).mean(2).repeat_interleave(x.shape[1] // n_frames, dim=1)
    else:
        first = 2 if x.ndim == 4 else 1  # each frame is a picture of its own
        if task.scorer.at == "patches":
            slope = slope[:, :, 1:]
        slope = slope.mean(dim=[i for i in range(first, x.ndim) if i != width], keepdim=True)
    return (slope * x.detach()).sum(dim=width).clamp(min=0)[0]


def _places(task: Task, x: Tensor) -> Tensor:
    """Summed over what stands at one place, without the clip axis."""
    return x.sum(dim=task.widths)[0] if task.widths else x[0]


# ---------------------------------------------------------------------- taking away


def occlusion(task: Task, stride: Mapping[str, int] | None = None) -> Tensor:
    """What is lost when a window is as in the baseline, shared by its places, and of the windows that cover a place the mean
    (Zeiler and Fergus, arXiv 1311.2901). Windows are as large as cells; one that
    an edge cuts is shared as if it were whole. stride: axis -> step (half a cell)."""
    strides = dict(stride or {})
    if unknown := set(strides) - {axis.name for axis in task.axes}:
        raise VltError(f"stride: {task.scorer.at!r} has no axis {unknown.pop()!r}")
    window, step = [], []
    for i, axis in enumerate(task.axes):
        side = axis.size if axis.name in WIDTHS else _side(task.cells, i + 1)
        window.append(side)
        step.append(side if axis.name in WIDTHS else int(strides.get(axis.name, max(side // 2, 1))))
        if not 1 <= step[-1] <= side:
            raise VltError(f"stride: {axis.name} = {step[-1]}; expected 1 to the cells' {side}, so that no place is left out")
    sizes = zip(task.value.shape[1:], window, step, strict=True)
    with task.bar(1 + math.prod(1 + math.ceil((size - side) / far) for size, side, far in sizes)):
        out = captum.attr.Occlusion(task.scorer).attribute(
            task.value,
            sliding_window_shapes=tuple(window),
            strides=tuple(step),
            baselines=task.baseline,
            perturbations_per_eval=task.scorer.batch,
        )
    out = out / math.prod(side for side, axis in zip(window, task.axes, strict=True) if axis.name not in WIDTHS)
    return out.mean(dim=task.widths)[0] if task.widths else out[0]


def _side(numbers: Tensor, dim: int) -> int:
    """How many places along an axis are of the first cell."""
    line = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)[:, 0]
    return int((line == line[0]).sum())


def ablation(task: Task) -> Tensor:
    """What is lost when one cell is as in the baseline."""
    return _by_cell(task, captum.attr.FeatureAblation(task.scorer), 1 + task.n_cells)


def shapley_sampling(task: Task, n_samples: int = 25) -> Tensor:
    """Shapley values: what a cell adds, over random orders in which cells come in (Castro et al. 2009). n_samples: orders."""
    orders: list[Tensor] = []
    scores: list[Tensor] = []

    def scored(x: Tensor) -> Tensor:
        scores.append(task.scorer(x))
        return scores[-1]

    def drawn(*given: Any) -> Iterator[Tensor]:
        for order in own(*given):
            orders.append(torch.as_tensor(order))
            yield order

    method: Any = captum.attr.ShapleyValueSampling(scored)
    own, method.permutation_generator = method.permutation_generator, drawn
    heat = _by_cell(task, method, 1 + n_samples * task.n_cells, n_samples=n_samples)
    if n_samples > 1:
        none, *rest = torch.cat(scores).cpu().double().split([1, *[task.n_cells] * n_samples])
        added = torch.stack([torch.diff(each, prepend=none)[order.argsort()] for each, order in zip(rest, orders, strict=True)])
        task.spread = added.std(0).numpy() / math.sqrt(n_samples)
    return heat


def kernel_shap(task: Task, n_samples: int | None = None) -> Tensor:
    """Shapley values by weighted regression on random sets of cells (Lundberg and Lee, arXiv 1705.07874). n_samples: sets
    (by default 8 times the cells, 200 at least)."""
    count = task.options["n_samples"] = n_samples or max(200, 8 * task.n_cells)
    if task.n_cells < 2:
        raise VltError("kernel_shap shares what there is among cells, and here is one; ablation tells what it brings")
    if count < task.n_cells:
        raise VltError(f"n_samples = {count} sets do not tell {task.n_cells} cells apart; expected as many at least")
    method = captum.attr.KernelShap(task.scorer)
    fitted: list[Tensor] = []
    own = method.interpretable_model.fit

    def fit(data: Any) -> Any:
        fitted.extend(next(iter(data)))  # all of it comes as one batch
        return own(data)

    method.interpretable_model.fit = fit
    heat = _by_cell(task, method, count, n_samples=count)
    task.spread = _of_regression(*(part.double().cpu() for part in fitted))
    return heat


def _of_regression(sets: Tensor, scores: Tensor, weights: Tensor) -> np.ndarray | None:
    """The standard error of every coefficient (White's, for errors of any size). sets [sample, cell]."""
    x = torch.cat([torch.ones(len(sets), 1, dtype=sets.dtype), sets], 1)
    inverse = torch.linalg.pinv((x * weights[:, None]).T @ x, hermitian=True)
    misses = scores - x @ (inverse @ (x.T @ (weights * scores)))
    spread = inverse @ (x * (weights * misses)[:, None].square()).T @ x @ inverse
    free = len(sets) - x.shape[1]
    return (spread.diagonal()[1:].clamp(min=0) * len(sets) / free).sqrt().numpy() if free > 0 else None


def _by_cell(task: Task, method: Any, rows: int, **options: Any) -> Tensor:
    options |= {"feature_mask": task.cells, "perturbations_per_eval": task.scorer.batch}
    with task.bar(rows):
        out = method.attribute(task.value, baselines=task.baseline, **options)
    shares = out / torch.bincount(task.cells.flatten())[task.cells]  # captum gives every number its whole cell's value
    return _places(task, shares)
