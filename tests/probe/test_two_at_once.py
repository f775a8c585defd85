"""Two runs of one model at once, in two threads: each sees and changes its own."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.probe.conftest import looks, whole
from vlt import edits
from vlt.model.answer import Answer
from vlt.probe import language
from vlt.probe.attention import Keep, Tap
from vlt.probe.trace import Trace


def logits(run: Trace) -> torch.Tensor:
    return run.model.run(whole(run), ["logits"])["logits"][0]


def together(*jobs) -> list:
    """Each in a thread of its own; what they return."""
    out: list = [None] * len(jobs)

    def work(i: int) -> None:
        try:
            out[i] = jobs[i]()
        except BaseException as error:
            out[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    return out


class Meets:
    """Called at a place of a run: the first time it waits until the other run is at its own."""

    def __init__(self, barrier: threading.Barrier) -> None:
        self.barrier, self.met = barrier, False

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        if not self.met:
            self.met = True
            self.barrier.wait(timeout=20)
        return value


def test_two_at_once_do_not_mix_what_they_read(bell: Trace, buzz: Trace) -> None:
    barrier, keeps, before = threading.Barrier(2), [Keep(), Keep()], looks(bell.model)
    site = bell.sites["language_model.1.self"]
    alone = [(logits(run), run.attention(site.name).values) for run in (bell, buzz)]

    def job(run: Trace, keep: Keep):
        def work() -> torch.Tensor:
            outputs = {run.sites["language_model.0"].module: [Meets(barrier)]}
            with torch.no_grad(), Tap(run.model, {site.module: [keep]}, outputs):
                return logits(run)

        return work

    said = together(job(bell, keeps[0]), job(buzz, keeps[1]))
    for (plain, probabilities), keep, out in zip(alone, keeps, said, strict=True):
        assert torch.equal(out, plain)
        assert np.array_equal(keep.kept[0].numpy(), probabilities)
    assert looks(bell.model) == before


@pytest.mark.parametrize("at", ["video_qformer.0", "language_model.0", "language_model.1.self", "language_model.3"])
def test_two_at_once_do_not_mix_what_they_change(bell: Trace, buzz: Trace, at: str) -> None:
    """Each waits in the midst of its run for the other, then changes the prompt's words, which hangs on knowing what
    every position is."""
    edit, before = edits.zero("language_model.2", token="text"), looks(bell.model)
    alone = [run.rerun(edit) for run in (bell, buzz)]
    assert [run.answer.text for run in alone] != [bell.answer.text, buzz.answer.text]
    barrier = threading.Barrier(2)

    def job(run: Trace):
        again = run.edited([edits.custom(at, Meets(barrier)), edit])
        return lambda: language.generate([again], 20)[0]

    found = together(job(bell), job(buzz))
    for one, two in zip(alone, found, strict=True):
        assert isinstance(two, Answer), two
        assert two.ids == one.answer.ids
    assert looks(bell.model) == before
