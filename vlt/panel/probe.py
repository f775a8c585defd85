"""A panel in a notebook: question a clip, click a word to see where the model looked and listened, switch parts off."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any
from weakref import WeakSet

import anywidget
import torch
import traitlets

from vlt.errors import VltError, check_type
from vlt.inputs import prompt as prompts
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.panel import pictures, switches
from vlt.panel.jobs import Job, interruptible, turn
from vlt.panel.uploads import Uploads
from vlt.probe import edits, language
from vlt.probe.language import Row
from vlt.probe.setting import usable
from vlt.probe.trace import Trace, trace

HERE = Path(__file__).parent
PLAYED = 2**26  # bytes of a file that are sent to the browser's player
_TELL = 0.1  # seconds between two signs of progress
_NOTHING: dict[str, Any] = {"edited": None, "edits": [], "word": None, "heat": None}  # that would be true of another run
_panels: WeakSet[Probe] = WeakSet()


class Probe(anywidget.AnyWidget):
    """A panel: a clip with heat on its frames and its sound, a question, the answer, and switches.

    model, clip: as `vlt.load` and `vlt.Clip` give them. question: the first one. method: of `vlt.attribute`. options: of
    `vlt.trace`, but for answer. The first answer is there when the panel is; all else runs in a thread of its own, so the
    notebook stays free (but leave the model alone meanwhile: a model is watched by one at a time, also of several panels;
    a new one ends what the others of its model do). What the buttons do can be called:
    `ask`, `switch`, `explain`, `load_clip`, `cancel`; `wait` until it is done; `state()` is what is to be seen, `run` and
    `edited` are the traces behind it.
    """

    _esm = HERE / "front.js"
    _css = HERE / "front.css"
    shown = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    media = traitlets.Bytes().tag(sync=True)
    received: Any = traitlets.List().tag(sync=True)  # of a file from the browser: its number, and bytes, below 0 if refused

    def __init__(
        self,
        model: VideoLlama,
        clip: Clip,
        question: str = "What do you see, and what do you hear?",
        *,
        method: str = "integrated_gradients",
        **options: Any,
    ) -> None:
        self.model, self.options = model, options
        self.edited: Trace | None = None
        self._told, self._error = 0.0, ""
        self._jobs: list[Job] = []  # that have not ended, the newest last
        self._lock = threading.RLock()  # of what is to be seen: the notebook's thread and the job's change it
        self._uploads = Uploads()
        self._asked = question  # the newest that somebody wants an answer to
        check_type(model, VideoLlama, "the model of vlt.Probe(model, clip)")
        if "answer" in options:
            raise VltError(
                "answer: a panel shows what the model answers; for an answer of your own, vlt.trace(..., answer=...)"
            )
        pictures.check_method(method)
        for other in _panels:
            if other.model is model:
                other.cancel()
        self.run = trace(model, clip, question, **options)
        said = pictures.said(self.run)
        super().__init__(status=_idle())
        self.media, self.shown = self._seen(self.run)
        self.view = {**self._fresh(question, said), "method": method}
        self._settled: tuple[Trace | None, dict[str, Any]] = (self.edited, self.view)
        self.on_msg(self._on_message)
        _panels.add(self)

    # ------------------------------------------------------------------ what the buttons do

    def ask(self, question: str) -> None:
        """Another question about the same clip. What is switched off stays off."""
        if not isinstance(question, str) or not question.strip():
            raise VltError("the question is empty")
        with self._lock:
            self._asked = question.strip()
            self._start(2, "answering", lambda job: self._ask(job, self.run.clip, question.strip()))

    def switch(
        self,
        video: bool | None = None,
        audio: bool | None = None,
        positions: bool | None = None,
        frames_off: Sequence[int] | None = None,
        segments_off: Sequence[int] | None = None,
    ) -> None:
        """Switches branches and frame positions on or off; frames_off, segments_off: the numbers of those that are blank, or
        silent. What is not given stays as it is. The answer without what is off stands beside the first one."""
        with self._lock:
            told: dict[str, Any] = {"video": video, "audio": audio, "positions": positions}
            told |= {"frames_off": frames_off, "segments_off": segments_off}
            on = switches.changed(self.run, self.view["switches"], **told)
            word, waits = self.view["word"], self.view["heat"] is None  # somebody clicked, and has no heat yet
            self.edited = None
            self.view = {**self.view, "switches": on, **_NOTHING, **switches.kept(self.view)}
            self._start(1, "answering again", self._switch)
            if word and waits and not word["edited"]:
                self.explain(word["number"])

    def explain(self, word: int | str, method: str | None = None, edited: bool = False) -> None:
        """Heat for a word of the answer, by its number or text; edited: of the answer without what is off."""
        run = self.edited if edited else self.run
        if run is None:
            raise VltError("nothing is switched off: there is no second answer")
        number, method = run.word(word), method or self.view["method"]
        pictures.check_method(method)
        told = {"method": method, "word": {"edited": edited, "number": number}}
        with self._lock:
            self.view = {**self.view, **told, "heat": None}
            what = f"looking for what said {run.answer.tokens[number].strip()!r}"
            self._start(0, what, lambda job: self._explain(job, run, told))

    def load_clip(self, path: str | Path, question: str = "") -> None:
        """Another clip, and a question about it, by default the same."""
        if not str(path):
            raise VltError("give the path of a clip")
        self._open(Path(path), question)

    def _open(self, path: Path, question: str, name: str = "") -> None:
        """name: of a file from the browser, which is kept under another."""
        with self._lock:
            asked, wanted = self._asked, question.strip() or self._asked
            self._start(3, "opening the clip", lambda job: self._opened(job, path, wanted, asked, name))

    def cancel(self) -> None:
        """Ends what runs, or waits, at its next step; what was to be seen before is seen again."""
        with self._lock:
            if self._uploads.number is not None:
                self.received = [self._uploads.number, -1]  # the browser sends no more
                self._uploads.cancel()
                self.status = {**(self.status if self._jobs else _idle()), "error": "stopped"}
            for job in self._jobs:
                job.stopped = True
            if self._jobs:  # what is clicked before they have ended comes on top of that
                self._asked = self.run.question
                self._back()

    def _back(self) -> None:
        """To what was to be seen before; a method that was chosen stays."""
        self.edited, view = self._settled
        self.view = {**view, "method": self.view["method"]}

    def wait(self, seconds: float = 600) -> None:
        """Until nothing runs any more. Raises `VltError` with what went wrong."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with self._lock:  # one that is there has begun
                job = self._jobs[-1] if self._jobs else None
            if job is None:
                break
            job.thread.join(left)
        if self._uploads.number is not None:
            raise VltError("a file is being received, which comes from the browser piece by piece")
        if self.status["busy"]:
            raise VltError(f"still {self.status['what']} after {seconds} s")
        if self.status["error"]:
            raise VltError(self.status["error"])

    def state(self) -> dict[str, Any]:
        """What is to be seen, without the pictures: question, answers, switches with the edits that they stand for (see
        `vlt.edits.loads`), and heat; while something is computed, what was there before. It can be saved as JSON."""
        with self._lock:
            return {"clip": self.shown["name"], **self.shown["origin"], **copy.deepcopy(self._settled[1])}

    def close(self) -> None:
        self.cancel()
        self._uploads.close()
        super().close()

    # ------------------------------------------------------------------ from the browser

    def _on_message(self, _: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        known: dict[str, Callable[..., None]] = {
            "ask": self.ask,
            "switch": self.switch,
            "turn": lambda **told: self.switch(**switches.turned(self.view["switches"], **told)),
            "explain": self.explain,
            "method": self._method,
            "load_clip": self.load_clip,
            "cancel": self.cancel,
            "upload": lambda **told: self._upload(buffers, **told),
        }
        kind, told = message.get("kind"), {k: v for k, v in message.items() if k not in ("kind", "clip", "answer")}
        with self._lock:
            # of the same error once more nobody would hear; the pieces of a file come by themselves
            if self.status["error"] and (kind != "upload" or told.get("at") == 0):
                self.status = {**self.status, "error": ""}
            try:
                if kind not in known:
                    raise VltError(f"the panel knows no {kind!r}")
                pictures.refuse_stale(self.shown, self.view, message)
                known[kind](**told)
            except (VltError, TypeError) as e:
                self.status = {**self.status, "error": str(e)}

    def _method(self, method: str) -> None:
        """Another method; by it the word that is chosen is explained."""
        pictures.check_method(method)
        self.view = {**self.view, "method": method}
        if word := self.view["word"]:
            self.explain(word["number"], edited=word["edited"])

    def _upload(self, buffers: list[Any], number: int, name: str, at: int, total: int, question: str = "") -> None:
        """A piece of a file from the browser; see `Uploads`."""
        piece = bytes(buffers[0]) if buffers else b""
        try:
            whole = self._uploads.take(piece, number, name, at, total)
        except (VltError, TypeError):
            self.received = [number, -1]
            self.status = self.status if self._jobs else _idle()
            raise
        wanted = whole is not None or number == self._uploads.number
        if wanted or self._uploads.number is None:
            self.received = [number, at + len(piece) if wanted else -1]
        if whole is not None:
            self._open(whole, question, PurePath(name).name)
        elif not self._jobs:
            self.status = {**self._resting(), "error": self.status["error"]}

    def _resting(self) -> dict[str, Any]:
        """The status while nothing is computed."""
        if self._uploads.number is None:
            return _idle()
        return {**_idle(), "busy": True, "what": "receiving the clip", "done": self._uploads.share}

    # ------------------------------------------------------------------ in the thread

    def _start(self, rank: int, what: str, work: Callable[[Job], None]) -> None:
        """rank: of explaining 0, switching 1, asking 2, opening 3; what is of no higher rank, and not done, is pointless
        now, and the rest is done before."""

        def begun(job: Job) -> None:
            with turn(job, lambda: self._says("waiting for another panel")):
                self._says(what)
                work(job)

        with self._lock:
            for older in self._jobs:
                older.stopped = older.stopped or older.rank <= rank
            job = Job(rank, begun, self._ended, self._jobs[-1] if self._jobs else None)
            self._jobs.append(job)
            self.status = {**self.status, "busy": True, "what": self.status["what"] or what, "error": ""}
            job.thread.start()

    def _says(self, what: str) -> None:
        with self._lock:
            self.status = {**_idle(), "busy": True, "what": what, "error": self.status["error"]}

    def _ended(self, job: Job, error: str) -> None:
        with self._lock:
            self._jobs.remove(job)
            if error not in ("", "stopped"):
                self._error = error
                if job.rank > 0 and all(other.rank == 0 for other in self._jobs):  # what is explained next is without it
                    self.edited, before = self._settled
                    self.view = {**self.view, **{name: before[name] for name in ("switches", "edited", "edits")}}
            if self._jobs:  # those have their own status
                return
            if error:
                self._back()
            self._asked = self.run.question
            self._uploads.keep(self.run.clip.path)
            self.status = {**self._resting(), "error": self._error or error or self.status["error"]}
            self._error = ""

    def _opened(self, job: Job, path: Path, question: str, asked: str, name: str) -> None:
        """asked: what somebody waits for an answer to. Where there is no such clip, that is answered, or what was switched is
        done, as if nobody had tried to open it (a word that waits for its heat must be clicked again)."""
        try:
            clip = Clip(path)
            self._ask(job, clip, question, name)
        except VltError as e:
            if asked != self.run.question:
                self._ask(job, self.run.clip, asked)
            elif self.view["switches"] != self._settled[1]["switches"]:
                self._switch(job)
            raise VltError(str(e).replace(str(path), name)) if name else e from None

    def _ask(self, job: Job, clip: Clip, question: str, name: str = "") -> None:
        job.check()
        same = clip is self.run.clip
        edited: Trace | None = None
        run = trace(self.model, clip, question, **usable(self.options, self.model, clip))
        view = self._fresh(question, self._said(job, run))
        if same:  # what was switched off stays off
            view["switches"] = self.view["switches"]
            edited, told = self._without(job, run, view)
            view |= told
        seen = None if same else self._seen(run, name)
        with self._lock, self.hold_sync():
            job.check()
            self._settled = (edited, {**view, "method": self.view["method"]})
            if same and view["switches"] != self.view["switches"]:  # meanwhile; a job for that waits
                edited, view = None, {**view, "switches": self.view["switches"], **_NOTHING}
            self.run, self.edited = run, edited
            if seen is not None:
                self.media, self.shown = seen
            self.view = {**view, "method": self.view["method"]}

    def _switch(self, job: Job) -> None:
        job.check()
        edited, told = self._without(job, self.run, self.view)
        with self._lock:
            job.check()
            before, word = self._settled[1], self.view["word"]  # one that waits for its heat goes on waiting
            self.edited, self.view = edited, {**self.view, "edited": None, "edits": [], **told}
            self._settled = (self.edited, {**self.view, "word": word if self.view["heat"] else None})
            if word is None and switches.says_again(before, self.view):
                self.explain(before["word"]["number"], edited=True)

    def _without(self, job: Job, run: Trace, view: dict[str, Any]) -> tuple[Trace | None, dict[str, Any]]:
        """The run without what is off, and what is to be seen of it."""
        off = switches.as_edits(run, view["switches"])
        if not off:
            return None, {}
        again = run.edited(off)
        said = self._said(job, again)
        again.check_fired()
        with interruptible(job, self.model), torch.no_grad():
            (log, _), *_ = language.score([Row(again, run.answer.ids)])  # as it was said, also where it was cut off
            change = float(log.sum()) - view["answer"]["logp"]
        job.check()
        return again, {"edited": {**said, "change": change}, "edits": json.loads(edits.dumps(off))}

    def _explain(self, job: Job, run: Trace, told: dict[str, Any]) -> None:
        job.check()
        if run is not (self.edited if told["word"]["edited"] else self.run):
            return  # the answer that was clicked is not there any more

        def tell(done: int, total: int) -> None:
            job.check()
            self._tell(done=min(done / total, 1.0))

        with interruptible(job, self.model):
            heat = pictures.heat(run, told["word"]["number"], told["method"], tell)
        with self._lock:
            job.check()
            self.view = {**self.view, **told, "heat": heat}
            self._settled = (self.edited, self.view)

    def _said(self, job: Job, run: Trace) -> dict[str, Any]:
        """The answer of a run; it appears word by word, as it comes."""
        ids: list[int] = []
        stop = prompts.template(self.model.config.template).stop

        def say(token: int) -> None:
            ids.append(token)
            self._tell(said="".join(self.model.pieces(ids)).split(stop)[0])

        with interruptible(job, self.model, say):
            _ = run.answer
        with interruptible(job, self.model):
            said = pictures.said(run)
        job.check()
        return said

    def _tell(self, **told: Any) -> None:
        if time.monotonic() - self._told > _TELL:
            self._told = time.monotonic()
            with self._lock:
                self.status = {**self.status, **told}

    # ------------------------------------------------------------------ what is to be seen

    def _seen(self, run: Trace, name: str = "") -> tuple[bytes, dict[str, Any]]:
        """The file for the player, and what is shown of the clip."""
        data, kind = pictures.media(run.clip.path, PLAYED)
        with torch.no_grad():
            shown = {**pictures.shown(run), "media": kind, "origin": pictures.origin(run)}
            return data, {**shown, **({"name": name} if name else {})}

    def _fresh(self, question: str, said: dict[str, Any]) -> dict[str, Any]:
        return {"question": question, "answer": said, "switches": switches.ALL_ON, **_NOTHING}


def _idle() -> dict[str, Any]:
    return {"busy": False, "what": "", "done": None, "said": "", "error": ""}
