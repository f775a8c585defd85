"""How likely is the answer, given any numbers at a stage? One function of tensors, for gradients and for many changed
copies at once: what attribution is made with."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.model import stages
from vlt.probe import language
from vlt.probe.axes import Axis
from vlt.probe.engine import ENCODERS
from vlt.probe.language import Row
from vlt.probe.trace import Trace

Target = str | int | tuple[str, str]


class Scorer:
    """score(x [n, ...]) -> [n] float32: how much the model is for the target, with x in place of a stage's numbers.

    Only what follows the stage is computed, with the edits of the run that stand behind it in force. The answer is
    given (teacher-forced). Gradients reach x.

    at: the stage. target: "answer", log p of the whole answer, its stop sign included; a word of the answer (its number
    or text), log p of it; or two words ("bell", "buzz"), log p of the first, which the answer has, minus log p of the
    second in its place. batch: rows that are computed at a time where no gradient is asked for. forwards: rows so far.
    """

    def __init__(self, run: Trace, at: str, target: Target = "answer", batch: int = 16) -> None:
        if at not in (*ENCODERS, "prefix"):
            raise VltError(f"attribution at {at!r}; {nearest(at, (*ENCODERS, 'prefix'))}")
        self.run, self.at, self.target, self.batch, self.forwards = run, at, target, batch, 0
        with torch.no_grad():
            self.value = run.stage(at)
            self._shared = {name: run.stage(name) for name in self._beside()}
        self._read = _reader(run, target)

    def _beside(self) -> list[str]:
        """What does not follow from the stage, and is needed behind it: the other branch's soft tokens."""
        return [
            f"{b}_prefix"
            for b in dict.fromkeys(self.run.prompt.branches)
            if self.at != "prefix" and b != stages.branch(self.at)
        ]

    @property
    def axes(self) -> list[Axis]:
        return self.run.axes_of(self.at)

    def __call__(self, x: Tensor) -> Tensor:
        step = len(x) if torch.is_grad_enabled() and x.requires_grad else self.batch
        return torch.cat([self._scores(part) for part in x.split(step)])

    def _scores(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        own = self.run.row
        rows = [Row(self._with(each[None]), own.ids, given=each if self.at == "prefix" else None, known=own.axis) for each in x]
        return torch.stack([self._read(logits[own.begin - 1 :]) for logits in language.read(rows, len(rows))])

    def _with(self, value: Tensor) -> Trace:
        """The same run, in which nothing is computed but what is given."""
        other = copy.copy(self.run)
        other.parent = None  # everything that follows is computed anew
        other.values = dict(self._shared) if self.at == "prefix" else {**self._shared, self.at: value}
        other.seconds = {}
        return other


class _Reader:
    """logits from the place that predicts the first token of the answer on -> a number."""

    def __init__(self, ids: Sequence[int], at: int | None, other: int | None) -> None:
        self.ids, self.at, self.other = ids, at, other

    def __call__(self, logits: Tensor) -> Tensor:
        log = logits[: len(self.ids)].float().log_softmax(-1)
        said = log.gather(1, torch.tensor(self.ids, device=log.device)[:, None])[:, 0]
        if self.at is None:
            return said.sum()
        return said[self.at] if self.other is None else said[self.at] - log[self.at, self.other]


def _reader(run: Trace, target: Target) -> _Reader:
    ids = run.row.ids
    if target == "answer":
        return _Reader(ids, None, None)
    if isinstance(target, tuple | list):
        if len(target) != 2:
            raise VltError(f"a contrast is of two words, ('bell', 'buzz'); got {target!r}")
        place = run.word(target[0])
        other = language.token_of(run.model, target[1])
        return _Reader(ids, place, other)
    return _Reader(ids, run.word(target), None)
