"""Long work beside the notebook's own thread: one piece at a time, in the order they came, and each can be stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from vlt.errors import VltError
from vlt.model.video_llama import VideoLlama

# A model that is watched by two threads would mix what they see.
_one_at_a_time = threading.Lock()
_LOOK = 0.1  # seconds between two looks at whether one that waits is still wanted


class Stopped(Exception):  # noqa: N818  no error: it was asked for
    """The work was stopped."""


class Job:
    """A piece of work, which begins with `check`, once its `thread` is started. rank: it makes others of no higher rank
    pointless. after: the one that it waits for. stopped: it is to end at its next step."""

    def __init__(
        self, rank: int, work: Callable[[Job], None], ended: Callable[[Job, str], None], after: Job | None = None
    ) -> None:
        self.rank, self.stopped, self._work, self._ended, self._after = rank, False, work, ended, after
        self.thread = threading.Thread(target=self._run, name="vlt probe", daemon=True)

    def _run(self) -> None:
        error = ""
        if self._after is not None:
            self._after.thread.join()
            self._after = None
        try:
            self._work(self)
        except Stopped:
            error = "stopped"
        except VltError as e:
            error = str(e)
        except Exception as e:  # a panel that dies silently is of no use; what it showed before stays
            error = f"{type(e).__name__}: {e}"
        self._ended(self, error)

    def check(self) -> None:
        if self.stopped:
            raise Stopped


@contextmanager
def turn(job: Job, waits: Callable[[], None]) -> Iterator[None]:
    """Inside it no other job runs, of any panel. waits: is called where one does, and must end first."""
    if not _one_at_a_time.acquire(blocking=False):
        waits()
        while not _one_at_a_time.acquire(timeout=_LOOK):
            job.check()
    try:
        yield
    finally:
        _one_at_a_time.release()


@contextmanager
def interruptible(job: Job, model: VideoLlama, said: Callable[[int], None] | None = None) -> Iterator[None]:
    """Ends a stopped job before the next run of any part of the model. said: is told every token that is likeliest behind
    the last place, as the language model gets there. Runs of the same model in other threads are left alone."""
    own = threading.get_ident()

    def check(*_: Any) -> None:
        if threading.get_ident() == own:
            job.check()

    handles = [part.register_forward_pre_hook(check) for _, part in model.named_children()]

    def heard(module: nn.Module, args: Any, output: Any) -> None:
        if said is not None and threading.get_ident() == own:
            said(int(output.logits[0, -1].argmax()))

    handles.append(model.language_model.register_forward_hook(heard))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
