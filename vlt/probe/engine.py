"""Computes stages for many edited runs of one clip at once: only what follows an edit, in as few batches as may be.

A run (`vlt.probe.trace.Trace`) is one clip, one question and some edits; what its edits do not touch is shared with the
unedited run. Edits stand at stages, between which they are applied, or at places inside the model, where a tap applies
them while a stage is computed.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vlt.errors import VltError
from vlt.model import stages
from vlt.probe import apply
from vlt.probe.apply import Selection
from vlt.probe.attention import Change, Cut, Tap, Watcher, unwatched
from vlt.probe.axes import Axis
from vlt.probe.edits import Edit
from vlt.probe.sites import Site, match

if TYPE_CHECKING:
    from vlt.model.video_llama import VideoLlama
    from vlt.probe.trace import Trace

BATCH = 16  # runs that are computed together
APART = ("patches", "image_queries", "audio_features")  # every frame, or segment, is computed by itself
ENCODERS = tuple(name for name in stages.TENSOR_STAGES if name not in ("prefix", "prefix_mask", "logits"))

# A site's name -> what stands there, or what is called with its output.
Watch = Mapping[str, Watcher | Callable[[Tensor], Any]]


class Applied:
    """An edit on its way into one run. fired: how often it changed numbers, or how many edges of attention it cut."""

    def __init__(self, edit: Edit, known: Mapping[str, Site]) -> None:
        self.edit, self.fired = edit, 0
        self.sites: list[Site] = []
        self.stage = ""  # where it stands at one
        if edit.kind in ("without", "ask"):
            self.stage = "prompt"
        elif edit.at in stages.STAGES:
            if edit.kind == "knockout" or edit.at not in (*ENCODERS, "prefix"):
                where = (
                    "attentions, as 'language_model.*.self'" if edit.kind == "knockout" else f"{', '.join(ENCODERS)}, prefix"
                )
                raise VltError(f"{edit}: stands at the stage {edit.at!r}; it can stand at {where}")
            self.stage = edit.at
        else:
            kinds = ("self", "cross") if edit.kind == "knockout" else ()
            self.sites = match(edit.at, dict(known), kinds, stage_names=edit.kind != "knockout")
            if "layers" in edit.options:
                self.sites = _of_layers(self.sites, edit.options["layers"])

    @property
    def stages(self) -> set[str]:
        """Those that come out otherwise because of it."""
        return {site.stage for site in self.sites} or {self.stage}


def inner(run: Trace, stage: str) -> list[Applied]:
    """The edits that stand inside a stage."""
    return [applied for applied in run.applied if applied.sites and stage in applied.stages]


def touches(run: Trace, stage: str) -> bool:
    """Does an edit change what this stage gives?"""
    return recomputes(run, stage) or any(applied.stage == stage for applied in run.applied)


def recomputes(run: Trace, stage: str) -> bool:
    """Must it be computed for this run, before the edits that stand at it?"""
    if run.parent is None or inner(run, stage):
        return True
    return any(touches(run, need) for need in stages.stage(stage).needs if need in ENCODERS)


def check_noise(found: Sequence[Applied]) -> None:
    """Refuses draws that would come twice: on themselves, or alike on two frames."""
    drawn: set[tuple[int, str]] = set()
    for applied in found:
        if applied.edit.kind == "noise":
            for at in [site.name for site in applied.sites] or [applied.stage]:
                if (draw := (applied.edit.options["seed"], at)) in drawn:
                    raise VltError(f"{applied.edit}: another edit draws the same at {at!r}; give it a seed of its own")
                drawn.add(draw)


def _of_layers(found: list[Site], layers: Any) -> list[Site]:
    places = Axis("layer", max(site.layer for site in found) + 1).find(layers)
    kept = [site for site in found if site.layer in set(places.tolist())]
    if not kept:
        raise VltError(f"layers {layers!r}: none of {', '.join(site.name for site in found)}")
    return kept


def compute(runs: Sequence[Trace], stage: str, batch: int = BATCH) -> None:
    """Sees to it that `run.values[stage]` is there for every run of one model; stage: of ENCODERS."""
    todo = [run for run in runs if stage not in run.values]
    touched = [run for run in todo if run.parent is None or touches(run, stage)]
    if parents := {id(run.parent): run.parent for run in todo if run.parent is not None and not recomputes(run, stage)}:
        compute(list(parents.values()), stage, batch)
    for run in todo:
        if run.parent is not None and not recomputes(run, stage):
            run.values[stage] = run.parent.values[stage]
    again = [run for run in touched if recomputes(run, stage)]
    if stage in ("frames", "spectrograms"):
        for run in again:
            run.values[stage] = run.given[stage].to(run.model.device, run.model.dtype)
    elif again:
        for need in stages.stage(stage).needs:
            compute(again, need, batch)
        for group in _groups(again, stage, batch):
            _run(group, stage)
    for run in touched:
        value = run.values.pop(stage)  # not there before all its edits are made: one may be interrupted
        for applied in run.applied:
            if applied.stage == stage:
                value = edited(run, applied, value[0], run.axes_of(stage), stage)[None]
        run.values[stage] = value


def _groups(runs: Sequence[Trace], stage: str, batch: int) -> Iterator[list[Trace]]:
    """Runs whose needs are shaped alike; one that edits a position table, which all of a batch share, stands alone."""
    alike: dict[Any, list[Trace]] = defaultdict(list)
    for i, run in enumerate(runs):
        alone = i if any(site.kind == "table" for applied in inner(run, stage) for site in applied.sites) else -1
        alike[alone, tuple(run.values[need].shape for need in stages.stage(stage).needs)].append(run)
    for group in alike.values():
        for at in range(0, len(group), batch):
            yield group[at : at + batch]


def _run(runs: Sequence[Trace], stage: str) -> None:
    start = time.perf_counter()
    apart = [run for run in runs if _has_likes(run, stage)]
    whole = [run for run in runs if run not in apart]
    if apart:
        _encode(apart, stage)
    if whole:
        for run, value in zip(whole, forward(whole, stage).split(1), strict=True):
            run.values[stage] = value
    for run in runs:
        run.seconds[stage] = (time.perf_counter() - start) / len(runs)


def _has_likes(run: Trace, stage: str) -> bool:
    """May frames, or segments, that the run's origin has too be taken from there?"""
    if stage not in APART or run.origin is None or inner(run, stage):
        return False
    (need,) = stages.stage(stage).needs
    if not {need, stage} <= set(run.origin.values):
        return False
    after = run.origin is not run.parent and any(applied.stage == stage for applied in run.applied)  # it has those edits made
    return not after and not (torch.is_grad_enabled() and run.values[need].requires_grad)


def _encode(runs: Sequence[Trace], stage: str) -> None:
    """Computes, once, only what is at no place of the runs' origins: where one frame is blank, that frame; where they are
    reversed, none."""
    check_mode(runs[0].model)
    (need,) = stages.stage(stage).needs
    known: dict[bytes, Tensor] = {}
    for origin in dict.fromkeys(run.origin for run in runs):
        assert origin is not None
        known |= zip(map(_bits, origin.values[need][0]), origin.values[stage][0], strict=True)
    keys = [[_bits(item) for item in run.values[need][0]] for run in runs]
    new: dict[bytes, Tensor] = {}
    for run, found in zip(runs, keys, strict=True):
        new |= {key: item for key, item in zip(found, run.values[need][0], strict=True) if key not in known}
    size = len(keys[0])
    whole = len(new) // size * size  # as clips of so many frames, and one of those that are left
    rest = list(new.values())
    parts = [torch.stack(rest[:whole]).unflatten(0, (-1, size))] if whole else []
    parts += [torch.stack(rest[whole:])[None]] if rest[whole:] else []
    values = [value for part in parts for value in runs[0].model.run({need: part}, [stage])[stage].flatten(0, 1)]
    known |= zip(new, values, strict=True)
    for run, found in zip(runs, keys, strict=True):
        run.values[stage] = torch.stack([known[key] for key in found])[None]


def _bits(item: Tensor) -> bytes:
    return item.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()


def forward(runs: Sequence[Trace], stage: str, watch: Watch | None = None) -> Tensor:
    """One stage of encoders for a batch of runs whose needs are there, with the edits that stand inside it."""
    given = {need: torch.cat([run.values[need] for run in runs]) for need in stages.stage(stage).needs}
    with tap(runs, stage, Layout(len(runs)), watch):
        return runs[0].model.run(given, [stage])[stage]


def edited(run: Trace, applied: Applied, value: Tensor, axes: Sequence[Axis], at: str) -> Tensor:
    """A stage's value for one clip, with an edit that stands at it."""
    edit = applied.edit
    applied.fired += 1
    if edit.kind == "reorder":
        return apply.reordered(edit, value, axes)
    selection = apply.select(axes, edit.where, repr(at))
    return apply.changed(edit, value, selection, _sourced(run, edit, at), run, at)


def _sourced(run: Trace, edit: Edit, at: str) -> Callable[[int], Tensor]:
    """The numbers of the edit's sources at the places that it names there."""

    def numbers(i: int) -> Tensor:
        with unwatched():  # a run of its own, in the middle of this one
            other = run.source(edit.sources[i])
            value, axes = other.asking() if at == "prefix" else other.reading(at)
        return apply.take(value, apply.select(axes, edit.where, f"{at!r} of {other.clip.path.name}"))

    return numbers


# ------------------------------------------------------------------ places inside the model


class Layout:
    """How a value inside the model [clips x inner, rows, ...] divides into the runs of a batch."""

    def __init__(self, count: int) -> None:
        self.count = count

    def part(self, i: int, value: Tensor, site: Site) -> slice:
        """Which of its rows are run i's (a position table is everybody's)."""
        each = value.shape[0] // self.count
        return slice(None) if site.kind == "table" else slice(i * each, (i + 1) * each)

    def inputs(self, model: VideoLlama) -> dict[nn.Module, Callable[[Mapping[str, Any]], None]]:
        """What must be told when a module runs."""
        return {}

    def axes(self, i: int, run: Trace, site: Site) -> list[Axis]:
        return run.labels.of_site(site)

    def select(self, i: int, run: Trace, site: Site, edit: Edit) -> list[Selection]:
        """The places that the edit names among those that are computed now, in one piece or several, one after the other."""
        return [apply.select(self.axes(i, run, site), edit.where, repr(site.name))]

    def places(self, i: int, axis: Axis, index: Any) -> np.ndarray:
        """Places on an axis of attention, as the tap counts them."""
        return axis.find(index)


def check_mode(model: VideoLlama) -> None:
    """In training dropout would make other numbers of the same run."""
    if any(module.training for module in model.modules()):
        raise VltError("the model is being trained: call model.eval() before it is looked into")


def check_batch(batch: object) -> None:
    if not isinstance(batch, int | np.integer) or isinstance(batch, bool) or batch < 1:
        raise VltError(f"batch {batch!r}; expected a number of rows from 1 on")


@contextmanager
def tap(runs: Sequence[Trace], stage: str, layout: Layout, watch: Watch | None = None) -> Iterator[None]:
    """Watches a batch while it runs, and applies the edits that stand inside this stage."""
    check_mode(runs[0].model)
    known = runs[0].sites
    found: dict[str, list[tuple[int, Applied]]] = defaultdict(list)
    for i, run in enumerate(runs):
        for applied in inner(run, stage):
            for site in applied.sites:
                if site.stage == stage:
                    found[site.name].append((i, applied))
    attentions: dict[nn.Module, list[Watcher]] = defaultdict(list)
    outputs: dict[nn.Module, list[Callable[[Tensor], Any]]] = defaultdict(list)
    cuts: list[tuple[Applied, Cut]] = []
    for name, pairs in found.items():
        site = known[name]
        for i, applied in pairs:
            if applied.edit.kind == "knockout":
                cuts.append((applied, _cut(site, runs[i], i, applied.edit, layout)))
                attentions[site.module].append(cuts[-1][1])
        if others := [(i, a) for i, a in pairs if a.edit.kind != "knockout"]:
            change = _change(site, runs, others, layout)
            if site.columns:
                attentions[site.module].append(Change(change))
            else:
                outputs[site.module].append(change)
    for name, watcher in (watch or {}).items():
        if isinstance(watcher, Watcher):
            attentions[known[name].module].append(watcher)
        else:
            outputs[known[name].module].append(watcher)
    with Tap(runs[0].model, attentions, outputs, layout.inputs(runs[0].model)):
        yield
    for applied, cut in cuts:
        applied.fired += cut.fired


def _change(
    site: Site, runs: Sequence[Trace], found: Sequence[tuple[int, Applied]], layout: Layout
) -> Callable[[Tensor], Tensor]:
    """What the edits of each run of a batch make of this site's value [batch, rows, ...]."""

    def change(value: Tensor) -> Tensor:
        for i, applied in found:
            run, edit = runs[i], applied.edit
            part, axes = layout.part(i, value, site), layout.axes(i, run, site)
            pieces = layout.select(i, run, site, edit)
            applied.fired += bool(pieces)
            for selection in pieces:
                own = value[part] if site.inner or site.kind == "table" else value[part][0]
                if edit.kind == "reorder":
                    new = apply.reordered(edit, own, axes)
                else:
                    new = apply.changed(edit, own, selection, _sourced(run, edit, site.name), run, site.name)
                new = new.view(value[part].shape)
                value = new if part == slice(None) else torch.cat([value[: part.start], new, value[part.stop :]])
        return value

    return change


def _cut(site: Site, run: Trace, i: int, edit: Edit, layout: Layout) -> Cut:
    rows, columns = run.labels.seen(site)
    seen = layout.places(i, columns, edit.options["seen"])
    if "by" in edit.options:
        by = layout.places(i, rows, edit.options["by"])
    else:
        by = layout.places(i, rows, "all")
        by = np.setdiff1d(by, seen) if site.kind == "self" else by
    blind = f"{edit}: would leave a place of {site.name!r} with nothing to look at; cut less"
    return Cut(torch.as_tensor(by), torch.as_tensor(seen), i, layout.count, blind)
