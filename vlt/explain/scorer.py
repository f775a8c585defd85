"""How much is the model for an answer, given any numbers at a stage? One function of tensors, for gradients and for many
changed copies at once: what attribution is made with."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlt.errors import VltError, among, check_type
from vlt.model import stages
from vlt.probe import edits, language
from vlt.probe.axes import Axis
from vlt.probe.engine import ENCODERS, check_batch
from vlt.probe.language import Row
from vlt.probe.trace import Trace

Target = str | int | tuple[str, str]

PARTS = "parts"
PLACES = (*ENCODERS, "prefix", PARTS)
BASELINES = ("blank", "zero", "mean")
# Axes whose numbers stand at one place together.
WIDTHS = ("channel", "vision_width", "qformer_width", "audio_qformer_width", "joint_width", "llm_width")


def scorer(run: Trace, at: str, target: Target = "answer", batch: int = 16) -> Scorer:
    """The scorer of a stage, or of "parts"."""
    check_type(run, Trace, "the run of an attribution (of vlt.trace)")
    check_place(at)
    return (Parts if at == PARTS else Scorer)(run, at, target, batch)


def check_place(at: str) -> None:
    check_type(at, str, "a stage")
    if at not in PLACES:
        raise VltError(f"there is no attribution at {at!r}; {among(at, PLACES)}")


def check_baseline(name: object) -> None:
    if not isinstance(name, str) or name not in BASELINES:
        raise VltError(f"no baseline {name!r}; {among(str(name), BASELINES)}, or a tensor")


def replaced(run: Trace, values: Mapping[str, Tensor]) -> Trace:
    """The same run, in which nothing is there but these stages [1, ...], and all else follows from them."""
    other = copy.copy(run)
    other.parent, other.origin = None, run
    other.values, other.seconds = dict(values), {}
    return other


def beside(run: Trace, at: Collection[str]) -> dict[str, Tensor]:
    """The soft tokens that none of these stages lead to."""
    told = {stages.branch(stage) for stage in at}
    return {f"{b}_prefix": run.stage(f"{b}_prefix") for b in dict.fromkeys(run.prompt.branches) if b not in told}


class Scorer:
    """score(x [n, ...]) -> [n] float32: how much the model is for the target, with x in place of a stage's numbers.

    Only what follows the stage is computed, with the edits of the run that stand behind it in force. The answer is
    given (teacher-forced). Gradients reach x.

    at: the stage. target: "answer", log p of the whole answer, its stop sign included; a word of the answer (its number
    or text), log p of it; or two words ("bell", "buzz"), log p of the first, which the answer has, minus log p of the
    second in its place. batch: rows that are computed at a time where no gradient is asked for. value: what is there
    [1, ...]. forwards: rows so far; bar: it shows them.
    """

    def __init__(self, run: Trace, at: str, target: Target, batch: int) -> None:
        check_batch(batch)
        self.run, self.at, self.target, self.batch, self.forwards = run, at, target, batch, 0
        self.reader = _reader(run, target)
        self.bar: Any = tqdm(disable=True)
        with torch.no_grad():
            self.value = self._value()
            self._shared = beside(run, [at]) if at in ENCODERS else {}
            if (branch := stages.branch(at)) is not None:
                run.stage(f"{branch}_prefix")  # frames and segments that are as here need not be encoded again

    def _value(self) -> Tensor:
        value = self.run.stage(self.at)
        return value[:, : self.run.row.begin] if self.at == "prefix" else value  # the answer's words are given, not asked

    @property
    def axes(self) -> list[Axis]:
        axes = self.run.axes_of(self.at)
        return [self.run.asked, axes[1]] if self.at == "prefix" else axes

    def __call__(self, x: Tensor) -> Tensor:
        step = len(x) if torch.is_grad_enabled() and x.requires_grad else self.batch
        return torch.cat([self._scores(part) for part in x.split(step)])

    def _scores(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        self.bar.update(len(x))
        own = self.run.row
        rows = self._rows(x)
        scores = torch.stack([self.reader(logits[own.begin - 1 :]) for logits in language.read(rows, len(rows))])
        if x.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
            return scores + 0 * x.flatten(1).float().sum(1)  # nothing of it reaches the answer: a gradient of 0
        return scores

    def _rows(self, x: Tensor) -> list[Row]:
        own = self.run.row
        if self.at == "prefix":
            said = self.run.stage("prefix")[0, own.begin :].to(x)
            whole = [torch.cat([each, said]) for each in x]
            return [Row(replaced(self.run, self._shared), own.ids, given=each, known=own.axis) for each in whole]
        return [Row(replaced(self.run, {**self._shared, self.at: each[None]}), own.ids, known=own.axis) for each in x]

    # ------------------------------------------------------------------ what is there when nothing is

    def without(self, baseline: str | Tensor = "blank") -> tuple[Tensor, str]:
        """What the stage is without its content [1, ...], and the baseline's name; see `attribute`."""
        value = self.value
        if isinstance(baseline, Tensor):
            if baseline.shape not in (value.shape, value.shape[1:]):
                raise VltError(f"a baseline at {self.at!r} has shape {list(value.shape[1:])}; got {list(baseline.shape)}")
            return baseline.to(value).reshape(value.shape), "given"
        check_baseline(baseline)
        with torch.no_grad():
            return getattr(self, f"_{baseline}")(), baseline

    def _zero(self) -> Tensor:
        return torch.zeros_like(self.value)

    def _mean(self) -> Tensor:
        places = [i + 1 for i, axis in enumerate(self.axes) if axis.name not in WIDTHS]
        return self.value.mean(dim=places, keepdim=True).expand_as(self.value).clone()

    def _blank(self) -> Tensor:
        branch = stages.branch(self.at)
        if branch is not None:
            return self._emptied([branch]).stage(self.at)
        out = self._emptied(list(self.run.prompt.branches)).stage("prefix")[:, : self.run.row.begin].clone()
        out[:, torch.as_tensor(self.run.asked.find("text"), device=out.device)] = self._mean_word().to(out)
        return out

    def _emptied(self, branches: Sequence[str]) -> Trace:
        """The same run and answer, of frames of one colour and digital silence; what its edits put in, from other runs or
        as noise, is content too, and is not."""
        kinds = {"video": edits.blank(), "audio": edits.mute()}
        if not branches:
            return self.run
        own = [edit for edit in self.run.edits if not edit.sources and edit.kind != "noise"]
        other = (self.run.parent or self.run).edited([*own, *(kinds[branch] for branch in dict.fromkeys(branches))])
        other.__dict__["answer"] = self.run.answer
        return other

    def _mean_word(self) -> Tensor:
        words: Any = self.run.model.get_input_embeddings()
        return words.weight.float().mean(0)


class Parts(Scorer):
    """Of x [n, part]: every frame, every segment of sound and every word of the question is one part, and x says how much
    of it is there, from 0 (as in a blank video, in silence, as the vocabulary's mean word) to 1 (as it is)."""

    def _value(self) -> Tensor:
        run = self.run
        empty = self._emptied(list(run.prompt.branches))
        self._stages = {"video": "frame_tokens", "audio": "segment_tokens"}
        self._full = {b: run.stage(self._stages[b]) for b in dict.fromkeys(run.prompt.branches)}
        self._empty = {b: empty.stage(self._stages[b]) for b in self._full}
        self._words = torch.as_tensor(run.tokens.find("question"))
        self._counts = {b: run.axes_of({"video": "frames", "audio": "spectrograms"}[b])[0].size for b in self._full}
        return torch.ones(1, sum(self._counts.values()) + len(self._words), device=run.model.device)

    @property
    def axes(self) -> list[Axis]:
        run, words = self.run, self.run.tokens.coordinates["word"]
        names: dict[str, list[Any]] = {"kind": [], "number": [], "seconds": [], "word": []}
        for branch, count in self._counts.items():
            known = run.axes_of({"video": "frames", "audio": "spectrograms"}[branch])[0].coordinates
            names["kind"] += ["frame" if branch == "video" else "segment"] * count
            names["number"] += range(count)
            names["seconds"] += list(known["seconds" if branch == "video" else "start"])
            names["word"] += [""] * count
        at = self._words.tolist()
        names["kind"] += ["word"] * len(at)
        names["number"] += range(len(at))
        names["seconds"] += [np.nan] * len(at)
        names["word"] += [str(words[i]) for i in at]
        return [Axis("part", self.value.shape[1], names)]

    def _rows(self, x: Tensor) -> list[Row]:
        own = self.run.row
        rows = [Row(replaced(self.run, self._mixed(each)), own.ids, known=own.axis) for each in x]
        language.encode(rows, len(rows))
        empty = self._mean_word()
        for row, each in zip(rows, x, strict=True):
            prefix, share = row.prefix(), each[len(each) - len(self._words) :, None]
            at = self._words.to(prefix.device)
            mixed = share * prefix[at] + (1 - share) * empty.to(prefix)
            row.given = prefix.index_copy(0, at, mixed.to(prefix))
        return rows

    def _mixed(self, x: Tensor) -> dict[str, Tensor]:
        out, done = {}, 0
        for branch, count in self._counts.items():
            full, empty = self._full[branch], self._empty[branch]
            share = x[done : done + count].repeat_interleave(full.shape[1] // count)[None, :, None].to(full)
            out[self._stages[branch]] = share * full + (1 - share) * empty
            done += count
        return out

    def _blank(self) -> Tensor:
        return torch.zeros_like(self.value)

    def _zero(self) -> Tensor:
        raise VltError("the parts' baseline is blank; there is no zero, and no mean, of a frame and a word")

    _mean = _zero


@dataclasses.dataclass(frozen=True)
class _Reader:
    """logits [token, vocabulary] from the place that predicts the first token of the answer on -> a number. ids: the
    answer. at: one of its tokens, or None for all. other: what it is said rather than."""

    ids: Sequence[int]
    at: int | None = None
    other: int | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        log = logits[: len(self.ids)].float().log_softmax(-1)
        said = log.gather(1, torch.tensor(self.ids, device=log.device)[:, None])[:, 0]
        if self.at is None:
            return said.sum()
        return said[self.at] if self.other is None else said[self.at] - log[self.at, self.other]


def _reader(run: Trace, target: Target) -> _Reader:
    ids = run.row.ids
    if target == "answer":
        return _Reader(ids)
    if isinstance(target, tuple | list):
        if len(target) != 2 or not all(isinstance(word, str) for word in target):
            raise VltError(f"a contrast is of two words, ('bell', 'buzz'); got {target!r}")
        try:
            at = run.word(target[0])
        except VltError as e:
            raise VltError(f"{e}, and then what it is said rather than") from e
        other = language.token_of(run.model, target[1])
        if ids[at] == other:
            raise VltError(f"a contrast is of two words; {target!r} is the same twice")
        return _Reader(ids, at, other)
    return _Reader(ids, run.word(target))
