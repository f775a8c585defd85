"""Which of what it saw, heard and read made it say that? captum's methods on our own scorer, at any stage."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import captum.attr
import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.model import stages
from vlt.probe import edits, paths
from vlt.probe.axes import Axis
from vlt.probe.labels import labelled
from vlt.probe.scorer import Scorer, Target
from vlt.probe.trace import Trace

# Axes that heat is summed over: what stands at one place.
WIDTHS = ("channel", "vision_width", "qformer_width", "audio_qformer_width", "joint_width", "llm_width")
# Places that are changed together where an option does not tell otherwise: axis -> how many side by side.
CELLS = {"frames": {"height": 8, "width": 8}, "spectrograms": {"mel": 16, "time": 17}}
BASELINES = ("blank", "zero", "mean")


@dataclasses.dataclass(frozen=True)
class Attribution:
    """heat: what each place brings [the stage's axes without its width], signed unless the method says otherwise: above
    0 it speaks for the target. run, at, method, target, baseline: what was asked. score: the target's; score_without: of
    the baseline, nan where there is none. error: by how much the heat's sum misses their difference (completeness), nan
    where the method promises none. forwards, backwards: passes of the language model; seconds: it took."""

    heat: xr.DataArray
    run: Trace = dataclasses.field(repr=False)
    at: str
    method: str
    target: Target
    baseline: str
    score: float
    score_without: float
    error: float
    forwards: int
    backwards: int
    seconds: float
    task: Task = dataclasses.field(repr=False)


@dataclasses.dataclass
class Task:
    """One attribution under way. value, baseline: [1, ...] at the stage. cells: which places are changed together
    [1, ...] int64. options: of the method; each takes out what it knows."""

    scorer: Scorer
    value: Tensor
    baseline: Tensor
    cells: Tensor
    batch: int
    progress: bool
    options: dict[str, Any]
    backwards: int = 0

    def option(self, name: str, default: Any) -> Any:
        return self.options.pop(name, default)


def attribute(
    run: Trace,
    at: str = "frames",
    method: str = "occlusion",
    target: Target = "answer",
    *,
    baseline: str | Tensor = "blank",
    cells: Mapping[str, int] | None = None,
    batch: int = 16,
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Attribution:
    """How much every place of a stage speaks for what was said.

    at: a stage of either branch ("frames", "spectrograms", "frame_tokens", ...), or "prefix", whose places are words and
    soft tokens. method: of `METHODS`. target: "answer"; a word of it, by number or text; or ("bell", "buzz"): the first
    rather than the second (see `Scorer`). Only what follows the stage is run.

    baseline: what a place is without its content: "blank", the same stage for frames of one colour, digital silence or,
    at the prefix, both and the vocabulary's mean word; "zero" (which RMSNorm makes degenerate at the prefix); "mean",
    over the stage's places; or a tensor. cells: for methods that take places away, how many go together along an axis,
    {"frame": 8, "height": 16, "width": 16}. options: n_steps (integrated_gradients 32), n_samples (smoothgrad,
    gradient_shap, shapley_sampling 25, kernel_shap 200), deviation (smoothgrad, of the values' own: 0.1), stride
    (occlusion: axis -> step, by default half a cell).
    """
    if method not in METHODS:
        raise VltError(f"no method {method!r}; {nearest(method, METHODS)}; all: {', '.join(METHODS)}")
    start = time.perf_counter()
    scorer = Scorer(run, at, target, batch)
    without, name = _baseline(scorer, baseline)
    axes = scorer.axes
    task = Task(scorer, scorer.value, without, _cells(axes, scorer.value, at, cells), batch, progress, dict(options))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        heat, complete = METHODS[method](task, axes)
        if task.options:
            raise VltError(f"{method} has no option {next(iter(task.options))!r}")
        passes = scorer.forwards
        score, score_without = (float(s) for s in scorer(torch.cat([scorer.value, without])))
    error = float(heat.sum()) - (score - score_without) if complete else float("nan")
    places = [i for i, axis in enumerate(axes) if axis.name not in WIDTHS]
    array = labelled(heat, [axes[i] for i in places], f"{method} at {at}")
    seconds = time.perf_counter() - start
    return Attribution(array, run, at, method, target, name, score, score_without, error, passes, task.backwards, seconds, task)


def _baseline(scorer: Scorer, baseline: str | Tensor) -> tuple[Tensor, str]:
    value, run = scorer.value, scorer.run
    if isinstance(baseline, Tensor):
        if baseline.shape not in (value.shape, value.shape[1:]):
            raise VltError(f"a baseline at {scorer.at!r} has shape {list(value.shape[1:])}; got {list(baseline.shape)}")
        return baseline.to(value).reshape(value.shape), "given"
    if baseline == "zero":
        return torch.zeros_like(value), baseline
    if baseline == "mean":
        axes = [i + 1 for i, axis in enumerate(scorer.axes) if axis.name not in WIDTHS]
        return value.mean(dim=axes, keepdim=True).expand_as(value).clone(), baseline
    if baseline != "blank":
        raise VltError(f"no baseline {baseline!r}; {nearest(baseline, BASELINES)}, or a tensor")
    branch = stages.branch(scorer.at)
    kinds = {"video": edits.blank(), "audio": edits.mute()}
    gone = [kinds[b] for b in dict.fromkeys(run.prompt.branches) if branch in (None, b)]
    with torch.no_grad():
        if branch is not None:
            return _without(run, gone).stage(scorer.at), baseline
        out = _same_words(run, gone) if gone else value.clone()
        words: Any = run.model.get_input_embeddings().weight
        text = torch.as_tensor(run.tokens.find("text"), device=out.device)
        out[:, text] = words.float().mean(0).to(out)
        return out, baseline


def _without(run: Trace, gone: list[edits.Edit]) -> Trace:
    other = run.edited(gone)
    other.__dict__["answer"] = run.answer
    return other


def _same_words(run: Trace, gone: list[edits.Edit]) -> Tensor:
    return _without(run, gone).stage("prefix").clone()


def _cells(axes: list[Axis], value: Tensor, at: str, sizes: Mapping[str, int] | None) -> Tensor:
    """Numbers the places that go together, from 0 without gaps."""
    asked = dict(CELLS.get(at, {}) if sizes is None else sizes)
    names = [axis.name for axis in axes]
    if unknown := set(asked) - set(names):
        raise VltError(f"cells: {at!r} has no axis {unknown.pop()!r}; it has {', '.join(names)}")
    number = torch.zeros((1,) * value.ndim, dtype=torch.int64)
    for i, axis in enumerate(axes):
        if axis.name in WIDTHS:
            continue
        size = asked.get(axis.name, 1)
        if not isinstance(size, int) or size < 1:
            raise VltError(f"cells: {axis.name} = {size!r}; expected a number of places from 1 on")
        along = (torch.arange(axis.size) // size).view([-1 if j == i + 1 else 1 for j in range(value.ndim)])
        number = number * (int(along.max()) + 1) + along
    return number.expand(value.shape).contiguous().to(value.device)


Found = tuple[Tensor, bool]  # heat without widths, and whether it promises completeness


def _placed(task: Task, axes: list[Axis], x: Tensor) -> Tensor:
    """Summed over what stands at one place."""
    widths = [i for i, axis in enumerate(axes) if axis.name in WIDTHS]
    return x[0].sum(dim=widths) if widths else x[0]


def _gradient(task: Task, axes: list[Axis], kind: str) -> Found:
    x = task.value.detach().clone()
    with torch.enable_grad():
        method = captum.attr.Saliency(task.scorer) if kind == "saliency" else captum.attr.InputXGradient(task.scorer)
        out = method.attribute(x.requires_grad_()).detach()
    task.backwards += 1
    return _placed(task, axes, out), False


def _integrated(task: Task, axes: list[Axis]) -> Found:
    steps = task.option("n_steps", 32)
    with torch.enable_grad():
        method = captum.attr.IntegratedGradients(task.scorer)
        x = task.value.detach().clone().requires_grad_()
        out = method.attribute(x, task.baseline, n_steps=steps, internal_batch_size=task.batch).detach()
    task.backwards += steps
    return _placed(task, axes, out), True


def _smooth(task: Task, axes: list[Axis]) -> Found:
    count, deviation = task.option("n_samples", 25), task.option("deviation", 0.1)
    with torch.enable_grad():
        method = captum.attr.NoiseTunnel(captum.attr.Saliency(task.scorer))
        x = task.value.detach().clone().requires_grad_()
        noise = deviation * float(task.value.std())
        sizes = {"nt_samples": count, "nt_samples_batch_size": min(task.batch, count)}
        out = method.attribute(x, nt_type="smoothgrad", stdevs=noise, **sizes).detach()
    task.backwards += count
    return _placed(task, axes, out), False


def _gradient_shap(task: Task, axes: list[Axis]) -> Found:
    count = task.option("n_samples", 25)
    total = torch.zeros_like(task.value)
    done = 0
    with torch.enable_grad():
        method = captum.attr.GradientShap(task.scorer)
        while done < count:  # it has no batches of its own
            now = min(task.batch, count - done)
            x = task.value.detach().clone().requires_grad_()
            total += method.attribute(x, task.baseline, n_samples=now).detach() * now
            done += now
    task.backwards += count
    return _placed(task, axes, total / count), True


def _grad_cam(task: Task, axes: list[Axis]) -> Found:
    """Grad-CAM (arXiv 1610.02391): the width's numbers, weighted by their gradients' mean over places, where above 0."""
    widths = [i + 1 for i, axis in enumerate(axes) if axis.name in WIDTHS]
    if len(widths) != 1 or task.scorer.at in ("frames", "spectrograms"):
        raise VltError(f"grad_cam needs a stage of features, such as 'patches' or 'frame_tokens'; got {task.scorer.at!r}")
    with torch.enable_grad():
        x = task.value.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(task.scorer(x).sum(), x)
    task.backwards += 1
    weight = slope.mean(dim=[i for i in range(1, x.ndim) if i not in widths], keepdim=True)
    return (weight * x.detach()).sum(dim=widths[0]).clamp(min=0)[0], False


def _occlusion(task: Task, axes: list[Axis]) -> Found:
    window, step = [], []
    strides = task.option("stride", {})
    for i, axis in enumerate(axes):
        size = task.value.shape[i + 1] if axis.name in WIDTHS else _side(task.cells, i + 1)
        window.append(size)
        step.append(size if axis.name in WIDTHS else min(int(strides.get(axis.name, max(size // 2, 1))), size))
    method = captum.attr.Occlusion(task.scorer)
    out = method.attribute(
        task.value,
        sliding_window_shapes=tuple(window),
        strides=tuple(step),
        baselines=task.baseline,
        perturbations_per_eval=task.batch,
        show_progress=task.progress,
    )
    widths = [i for i, axis in enumerate(axes) if axis.name in WIDTHS]
    return (out[0].mean(dim=widths) if widths else out[0]), False


def _side(cells: Tensor, dim: int) -> int:
    """How many places along an axis are of the first cell."""
    line = cells.movedim(dim, 0).reshape(cells.shape[dim], -1)[:, 0]
    return int((line == line[0]).sum())


def _masked(task: Task, axes: list[Axis], kind: str) -> Found:
    common = {"baselines": task.baseline, "feature_mask": task.cells, "perturbations_per_eval": task.batch}
    if kind == "ablation":
        out = captum.attr.FeatureAblation(task.scorer).attribute(task.value, show_progress=task.progress, **common)
    elif kind == "shapley":
        count = task.option("n_samples", 25)
        method = captum.attr.ShapleyValueSampling(task.scorer)
        out = method.attribute(task.value, n_samples=count, show_progress=task.progress, **common)
    else:
        count = task.option("n_samples", 200)
        method = captum.attr.KernelShap(task.scorer)
        out = method.attribute(task.value, n_samples=count, show_progress=task.progress, **common)
    # captum gives every number its whole cell's share: each place gets its part of it
    sizes = torch.bincount(task.cells.flatten())
    widths = [i + 1 for i, axis in enumerate(axes) if axis.name in WIDTHS]
    shares = out / sizes[task.cells]
    return (shares.sum(dim=widths) if widths else shares)[0], kind in ("shapley", "kernel")


def _from_path(task: Task, axes: list[Axis], how: str) -> Found:
    """Heat of attention at the stages that a path passes, for the word that the target names (the first by default)."""
    run, at, target = task.scorer.run, task.scorer.at, task.scorer.target
    word = 0 if target == "answer" else target
    if isinstance(word, tuple | list):
        raise VltError(f"{how} follows one word; it knows no contrast ({target!r})")
    found = paths.path(run, word, how)
    if at == "prefix":
        return torch.as_tensor(found["tokens"].values), False
    names = {"frames": "video", "frame_tokens": "frame_tokens", "spectrograms": "audio", "segment_tokens": "segments"}
    if at not in names:
        raise VltError(f"{how} has heat at {', '.join(names)}, prefix; not at {at!r}")
    heat = torch.as_tensor(found[names[at]].values)
    if at == "frames":
        side = task.value.shape[-1] // heat.shape[-1]
        heat = heat.repeat_interleave(side, 1).repeat_interleave(side, 2) / side**2
    elif at == "frame_tokens":
        heat = heat.flatten()
    elif at == "spectrograms":
        heat = _over_mel(run, heat, task.value.shape[-2:])
    else:
        heat = heat.flatten()
    return heat, False


def _over_mel(run: Trace, heat: Tensor, size: Any) -> Tensor:
    """Heat on a spectrogram's patches, spread evenly over the cells that each covers."""
    trunk = run.model.config.imagebind_config.audio
    out = torch.zeros(heat.shape[0], *size)
    for row, column in np.ndindex(*heat.shape[1:]):
        top, left, kernel = row * trunk.stride, column * trunk.stride, trunk.kernel_size
        out[:, top : top + kernel, left : left + kernel] += heat[:, row, column, None, None] / kernel**2
    return out


METHODS: dict[str, Callable[[Task, list[Axis]], Found]] = {
    "saliency": lambda task, axes: _gradient(task, axes, "saliency"),
    "gradient_x_input": lambda task, axes: _gradient(task, axes, "product"),
    "integrated_gradients": _integrated,
    "smoothgrad": _smooth,
    "gradient_shap": _gradient_shap,
    "grad_cam": _grad_cam,
    "occlusion": _occlusion,
    "ablation": lambda task, axes: _masked(task, axes, "ablation"),
    "shapley_sampling": lambda task, axes: _masked(task, axes, "shapley"),
    "kernel_shap": lambda task, axes: _masked(task, axes, "kernel"),
    "rollout": lambda task, axes: _from_path(task, axes, "rollout"),
    "relevance": lambda task, axes: _from_path(task, axes, "relevance"),
}
