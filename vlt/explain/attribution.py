"""Which of what it saw, heard and read made it say that? Heat on any stage, by the field's methods."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from vlt.errors import VltError, among, check_seed, check_type
from vlt.explain import attention, methods
from vlt.explain.methods import Progress, Task
from vlt.explain.scorer import PARTS, PLACES, WIDTHS, Target, check_place, scorer
from vlt.probe.labels import labelled
from vlt.probe.trace import Trace
from vlt.view import figures
from vlt.view.drawing import WARNS, Figure

METHODS = {
    method.__name__: method
    for method in (
        methods.saliency,
        methods.gradient_x_input,
        methods.integrated_gradients,
        methods.smoothgrad,
        methods.gradient_shap,
        methods.grad_cam,
        methods.occlusion,
        methods.ablation,
        methods.shapley_sampling,
        methods.kernel_shap,
        attention.attention,
        attention.rollout,
        attention.relevance,
    )
}
READ_ATTENTION = ("attention", "rollout", "relevance")
NO_BASELINE = (*READ_ATTENTION, "saliency", "gradient_x_input", "grad_cam")
# Whose heat tells how much, and not whether for or against.
UNSIGNED = (*READ_ATTENTION, "saliency", "smoothgrad", "grad_cam")
# Whose heat sums to what the whole brings over the baseline.
COMPLETE = ("integrated_gradients", "gradient_shap", "shapley_sampling", "kernel_shap")
# Whose heat on pictures is in the same units as that on sound: nats, or shares of what the answer was read from.
COMPARABLE = (*COMPLETE, "gradient_x_input", "rollout")
# Whose heat is nats of the target's score.
IN_NATS = (*COMPLETE, "gradient_x_input", "occlusion", "ablation")
NOISY = 0.25  # of the hottest cell, a standard error above which there is more noise than map
ELSEWHERE = 0.8  # the share of a contrast that is there without what is explained, above which it comes from elsewhere
LITTLE = 0.1  # nats that all places together bring, below which there is nothing much to explain
# Along which axes an eighth of the third (height, or mel) is one cell, where `cells` does not tell otherwise.
EIGHTHS = {"frames": ("height", "width"), "spectrograms": ("mel", "time")}


@dataclasses.dataclass(frozen=True)
class Attribution:
    """heat: what each place brings [the stage's axes without its width], above 0 where it speaks for the target; of methods
    that are said to be unsigned, only how much. run, at, method, target, baseline, options, seed: what was asked, or
    chosen. score: of the target; score_without: of the baseline. error: by how much the heat's sum misses their difference
    (completeness), nan where the method promises none. noise: the greatest standard error of a cell's heat, by what was drawn,
    nan where nothing is drawn, or the method does not tell. forwards, backwards: rows that went through the language model;
    seconds: it took."""

    heat: xr.DataArray = dataclasses.field(repr=False)
    run: Trace = dataclasses.field(repr=False)
    at: str
    method: str
    target: Target
    baseline: str
    options: dict[str, Any]
    seed: int
    score: float
    score_without: float
    error: float
    noise: float
    forwards: int
    backwards: int
    seconds: float
    task: Task = dataclasses.field(repr=False)

    @property
    def little(self) -> bool:
        """Do all places together bring next to nothing, and no cell much, as far as the method's heat is in nats?"""
        return abs(self._brings) < LITTLE and (self.method not in IN_NATS or self._hottest < LITTLE)

    @property
    def _brings(self) -> float:
        return self.score - self.score_without

    @property
    def _hottest(self) -> float:
        """Of the cells, without their signs."""
        return float(np.abs(np.bincount(self.task.numbers.ravel(), self.heat.values.ravel())).max())

    @property
    def warnings(self) -> list[str]:
        """What must stand beside the heat, whatever its truth; mostly nothing."""
        brings, out = self._brings, []
        if abs(brings) < LITTLE:
            why = "little to explain" if self.little else "what speaks for it and what speaks against it cancel"
            out.append(f"The score is {self.score:.2g} with all of it and {self.score_without:.2g} without: {why}.")
        elif not isinstance(self.target, str | int) and (share := self.score_without / self.score) > ELSEWHERE:
            text = (
                f"The score is {self.score:.2f} with all of it and {self.score_without:.2f} without: most comes from elsewhere"
            )
            against = f", and this speaks {'for' if brings > 0 else 'against'} {self.target[0]!r}" if share > 1 else ""
            out.append(f"{text}{against}.")
        if self.method == "attention" and not attention.asks(self.at):
            out.append("Raw attention to this stage knows neither question nor word: the map is the same for all.")
        if methods.missed(self.error, brings):
            more = "n_steps" if self.method == "integrated_gradients" else "n_samples"
            asked = f" (there were {self.options[more]})" if more in self.options else ""
            out.append(f"The heat sums to {brings + self.error:.2f} and should to {brings:.2f}: ask for more {more}{asked}.")
        if self.noise > NOISY * self._hottest:
            out.append(
                f"Another draw gives another map: a cell's standard error is up to {self.noise:.2g}, ask for more n_samples."
            )
        return out

    @property
    def told(self) -> str:
        """How it was made, and what of it a picture does not show, as lines."""
        text = f"{self.method.replace('_', ' ')} at {self.at}"
        if self.method not in NO_BASELINE:
            text += f"; baseline: {self.baseline}"
        if self.task.smooth:
            text += f"; smoothed over {self.task.smooth:g} patches"
        if self.noise == self.noise:
            text += f"; a cell's standard error is up to {self.noise:.2g}"
        if abs(self._brings) >= LITTLE:  # else a warning tells
            text += f"\n{self._scored}: {self.score:.2f} with all of it, {self.score_without:.2f} without"
            text += f" (baseline: {self.baseline})" if self.method in NO_BASELINE else ""
        if self.at == "patches":
            sizes = np.abs(self.heat.values)  # with their signs they might cancel
            share = float(sizes[:, 0].sum() / max(sizes.sum(), 1e-30))
            text += f"\nClass tokens, which are at no place and not drawn, have {share:.0%} of the heat, without its sign."
        return text + "".join(f"\n{WARNS} {warning}" for warning in self.warnings)

    @property
    def _scored(self) -> str:
        """What the score is, in words."""
        if isinstance(self.target, tuple | list):
            return "log p of {!r}, less that of {!r} in its place".format(*self.target)
        return f"log p of {'the whole answer' if self.target == 'answer' else _told(self.run, self.target)}"

    def figure(self, faithfulness: Any = None) -> Figure:
        """The heat over the frames, the spectrogram, the words, or as bars; with what `vlt.faithfulness` found, under a
        map that does not beat what knows nothing there stands a warning. Raises `VltError` for another map's faithfulness."""
        note = self.told
        if faithfulness is not None:
            if faithfulness.attribution is not self:
                a = faithfulness.attribution
                raise VltError(f"this faithfulness is of another map ({a.method} at {a.at}); measure this one's own")
            if self.method in NO_BASELINE and abs(self._brings) < LITTLE:  # else it stands beside the score
                note += f"\nTested with baseline: {self.baseline}."
            note += f"\n{faithfulness.said}" if faithfulness.said else ""
        heat, kinds = self.heat, set(self.heat.dims)
        if self.at == PARTS:
            spread, numbers = self.task.spread, self.task.numbers
            each = None if spread is None else (spread / np.bincount(numbers))[numbers]  # of one that shares its cell's heat
            return figures.parts(heat, note=note, spread=each)
        if "token" in kinds:
            return figures.over_tokens(self.run, heat, note=note)
        if kinds & {"frame", "frame_token"}:
            return figures.over_frames(self.run, heat, note=note)
        if "segment" in kinds:
            return figures.over_sound(self.run, heat, note=note)
        return figures.queries(heat, note=note)


def attribute(
    run: Trace,
    at: str = "frames",
    method: str = "integrated_gradients",
    target: Target = "answer",
    *,
    baseline: str | Tensor = "blank",
    cells: Mapping[str, int] | None = None,
    smooth: float = 0.0,
    batch: int = 16,
    seed: int = 0,
    progress: Progress = True,
    **options: Any,
) -> Attribution:
    """How much every place of a stage speaks for what was said.

    at: a stage of either branch ("frames", "spectrograms", "frame_tokens", ...); "prefix", whose places are the prompt's
    words and soft tokens; or "parts": every frame, every segment of sound and every word of the question is one place.
    method: of `METHODS`. target: "answer"; a word of it, by number or text; or ("bell", "buzz"): the first rather than
    the second (see `Scorer`; methods that read attention know no contrast, and of the answer give the mean over its
    words). Only what follows the stage is run.

    baseline: what a place is without its content: "blank", the stage as it is for frames of one colour or digital
    silence, at the prefix for both and the vocabulary's mean word; "zero" (at the prefix degenerate: RMSNorm undoes any
    shrinking); "mean", over the stage's places; or a tensor. cells: how many places are changed together along an axis,
    as {"frame": 8, "height": 16, "width": 16}; by default an eighth of the picture's sides and of the mel axis, and as
    much of time; else single places. smooth: heat on pictures is averaged with its neighbours' by a Gaussian of so many
    patches (0: not at all); a patch's heat wanders to the next, as the ViT has mixed them. options: of the
    method, in its docstring. batch: rows at a time. seed: of what is drawn. progress: show a bar; or a function that is
    told (rows done, of how many).

    Raises `VltError` for a method, target, option, baseline or cells that do not fit; nothing is run before that but the
    stage itself.
    """
    check_method(method, at)
    methods.check_options(METHODS[method], options)
    check_seed(seed)
    start = time.perf_counter()
    score = scorer(run, at, target, batch)
    without, name = score.without(baseline)
    sizes = _eighths(score.value, at) if cells is None else cells
    methods.check_smooth(smooth, score.axes)
    numbers = methods.cells(score.axes, score.value, sizes)
    task = Task(score, score.value, without, numbers, progress, dict(options), smooth)
    heat = heat_of(method, task, seed)
    passes = score.forwards
    with torch.no_grad():
        whole, rest = (float(s) for s in score(torch.cat([score.value, without])))
    error = float(heat.double().sum()) - (whole - rest) if method in COMPLETE else float("nan")
    array = labelled(heat, [axis for axis in score.axes if axis.name not in WIDTHS], method)
    array.attrs["long_name"] = f"heat for {_told(run, target)}"
    seconds = time.perf_counter() - start
    told = (array, run, at, method, target, name, task.options, seed, whole, rest, error, task.noise)
    return Attribution(*told, passes, task.backwards, seconds, task)


def check_method(method: str, at: str) -> None:
    """Refuses methods that are none, and what a method has no heat at."""
    check_type(method, str, "a method")
    check_place(at)
    if method not in METHODS:
        raise VltError(f"no method {method!r}; {among(method, METHODS)}")
    places = places_of(method)
    if at not in places:
        apart = "; parts of different kinds are looked at in different places, and those looks cannot be compared"
        why = apart if (method, at) == ("attention", PARTS) else ""
        raise VltError(f"{method} has heat at {', '.join(places)}; not at {at!r}{why}")


def places_of(method: str) -> list[str]:
    """Where a method has heat: attention where somebody looks, Grad-CAM where there are features of many places."""
    if method in READ_ATTENTION:
        return [*attention.READ, *([PARTS] if method != "attention" else [])]
    return [at for at in PLACES if method != "grad_cam" or at not in ("frames", "spectrograms", PARTS)]


def heat_of(method: str, task: Task, seed: int) -> Tensor:
    """Runs a method [the stage's axes without its width] float32; its draws are the same for the same seed."""
    with _drawing(seed, [task.value.device] if task.value.is_cuda else []), torch.no_grad():
        heat = METHODS[method](task, **task.options)
    if task.smooth:
        patch = task.scorer.run.model.config.vision_config.patch_size
        heat = methods.smoothed(heat, task.axes, task.smooth, patch)
    return heat.float()


@contextmanager
def _drawing(seed: int, devices: list[torch.device]) -> Iterator[None]:
    """captum draws from torch's numbers, and for GradientShap from numpy's; both are left as they were."""
    before = np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(before)


def _eighths(value: Tensor, at: str) -> dict[str, int]:
    if at not in EIGHTHS:
        return {}
    side = -(-value.shape[3] // 8)  # of the third axis behind the clip's: height, or mel
    return dict.fromkeys(EIGHTHS[at], side)


def _told(run: Trace, target: Target) -> str:
    if isinstance(target, tuple | list):
        return f"{target[0]!r} rather than {target[1]!r}"
    return "the answer" if target == "answer" else repr(run.answer.tokens[run.word(target)].strip())
