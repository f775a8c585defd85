"""A panel in a notebook: question a clip, click a word to see where the model looked and listened, switch parts off."""

from __future__ import annotations

import copy
import json
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePath
from typing import Any

import anywidget
import torch
import traitlets

from vlt.errors import VltError, check_type
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.panel import pictures
from vlt.panel.jobs import Job, interruptible
from vlt.probe import edits
from vlt.probe.trace import Trace, trace

HERE = Path(__file__).parent
PLAYED = 2**26  # bytes of a file that are sent to the browser's player
UPLOADED = 2**29  # bytes of a file that are taken from the browser
_TELL = 0.1  # seconds between two signs of progress
_NOTHING: dict[str, Any] = {"edited": None, "edits": [], "word": None, "heat": None}  # that would be true of another run


class Probe(anywidget.AnyWidget):
    """A panel: a clip with heat on its frames and its sound, a question, the answer, and switches.

    model, clip: as `vlt.load` and `vlt.Clip` give them. question: the first one. method: of `vlt.attribute`. options: of
    `vlt.trace`. The first answer is there when the panel is; all else runs in a thread of its own, so the notebook stays
    free (but leave the model alone meanwhile: a model is watched by one at a time). What the buttons do can be called:
    `ask`, `switch`, `explain`, `load_clip`, `cancel`; `wait` until it is done; `state()` is what is to be seen, `run` and
    `edited` are the traces behind it.
    """

    _esm = HERE / "front.js"
    _css = HERE / "front.css"
    shown = traitlets.Dict().tag(sync=True)
    view = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    media = traitlets.Bytes().tag(sync=True)
    _uploads: tempfile.TemporaryDirectory[str] | None = None

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
        self._receiving = 0  # the upload under way
        check_type(model, VideoLlama, "the model of vlt.Probe(model, clip)")
        if method not in pictures.METHODS:
            raise VltError(f"no method {method!r}; all: {', '.join(pictures.METHODS)}")
        self.run = trace(model, clip, question, **options)
        said = pictures.said(self.run)
        super().__init__(status=_idle())
        self._show(self.run)
        self.view = {**self._fresh(question, said), "method": method}
        self._settled: tuple[Trace | None, dict[str, Any]] = (self.edited, self.view)
        self.on_msg(self._on_message)

    # ------------------------------------------------------------------ what the buttons do

    def ask(self, question: str) -> None:
        """Another question about the same clip. What is switched off stays off."""
        if not isinstance(question, str) or not question.strip():
            raise VltError("the question is empty")
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
            switches = self._switches(video, audio, positions, frames_off, segments_off)
            self.edited = None
            self.view = {**self.view, "switches": switches, **_NOTHING}
            self._start(1, "answering again", self._switch)

    def _switches(
        self,
        video: bool | None,
        audio: bool | None,
        positions: bool | None,
        frames_off: Sequence[int] | None,
        segments_off: Sequence[int] | None,
    ) -> dict[str, Any]:
        switches = dict(self.view["switches"])
        for name, value in {"video": video, "audio": audio, "positions": positions}.items():
            if value is not None:
                check_type(value, bool, f"the switch {name}")
                if (branch := "video" if name == "positions" else name) not in self.run.setting.branches:
                    raise VltError(f"{name}: this run has no {branch}; it has {', '.join(self.run.setting.branches)}")
                switches[name] = value
        for name, off in {"frames_off": frames_off, "segments_off": segments_off}.items():
            if off is not None:
                switches[name] = self._numbers(name, off)
        return switches

    def explain(self, word: int | str, method: str | None = None, edited: bool = False) -> None:
        """Heat for a word of the answer, by its number or text; edited: of the answer without what is off."""
        run = self.edited if edited else self.run
        if run is None:
            raise VltError("nothing is switched off: there is no second answer")
        number, method = run.word(word), method or self.view["method"]
        if method not in pictures.METHODS:
            raise VltError(f"no method {method!r}; all: {', '.join(pictures.METHODS)}")
        told = {"method": method, "word": {"edited": edited, "number": number}}
        with self._lock:
            self.view = {**self.view, **told, "heat": None}
            what = f"looking for what said {run.answer.tokens[number].strip()!r}"
            self._start(0, what, lambda job: self._explain(job, run, told))

    def load_clip(self, path: str | Path) -> None:
        """Another clip, and the same question about it."""
        self._start(3, "opening the clip", lambda job: self._ask(job, Clip(path), self.run.question))

    def cancel(self) -> None:
        """Ends what runs, or waits, at its next step; what was to be seen before is seen again."""
        if self._receiving:
            self._receiving = 0
            self.status = {**_idle(), "error": "stopped"}
        for job in list(self._jobs):
            job.stopped = True

    def wait(self, seconds: float = 600) -> None:
        """Until nothing runs any more. Raises `VltError` with what went wrong."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            with self._lock:  # one that is there has begun
                job = self._jobs[-1] if self._jobs else None
            if job is None:
                break
            job.thread.join(left)
        if self.status["busy"]:
            raise VltError(f"still {self.status['what']} after {seconds} s")
        if self.status["error"]:
            raise VltError(self.status["error"])

    def state(self) -> dict[str, Any]:
        """What is to be seen, without the pictures: question, answers, switches with the edits that they stand for (see
        `vlt.edits.loads`), and heat. It can be saved as JSON."""
        return {"clip": self.shown["name"], **copy.deepcopy(self.view)}

    def close(self) -> None:
        self.cancel()
        if self._uploads is not None:
            self._uploads.cleanup()
            self._uploads = None
        super().close()

    # ------------------------------------------------------------------ from the browser

    def _on_message(self, _: Any, message: dict[str, Any], buffers: list[Any]) -> None:
        known: dict[str, Callable[..., None]] = {
            "ask": self.ask,
            "switch": self.switch,
            "explain": self.explain,
            "load_clip": self.load_clip,
            "cancel": self.cancel,
            "upload": lambda **told: self._upload(buffers, **told),
        }
        kind, told = message.get("kind"), {k: v for k, v in message.items() if k != "kind"}
        try:
            if kind not in known:
                raise VltError(f"the panel knows no {kind!r}")
            known[kind](**told)
        except (VltError, TypeError) as e:
            self.status = {**self.status, "error": str(e)}

    def _upload(self, buffers: list[Any], number: int, name: str, at: int, total: int) -> None:
        """A piece of a file from the browser. It is kept under a name of ours, in a folder that goes with the panel. number:
        of the upload; a new one takes the place of one under way."""
        if total > UPLOADED:
            raise VltError(f"{name}: {total / 2**20:,.0f} MiB; a file from the browser has {UPLOADED / 2**20:,.0f} at most")
        if at == 0:
            self._receiving = number
        elif number != self._receiving:  # it was cancelled, or another has taken its place
            return
        suffix = "".join(c for c in PurePath(name).suffix.lower() if c.isalnum())[:8]
        if self._uploads is None:
            self._uploads = tempfile.TemporaryDirectory(prefix="vlt")
        path = Path(self._uploads.name) / f"upload.{suffix}"
        piece = bytes(buffers[0]) if buffers else b""
        there = path.stat().st_size if path.exists() and at else 0
        if at != there or at + len(piece) > total:
            raise VltError(f"{name}: pieces came in another order; try again")
        with path.open("ab" if at else "wb") as file:
            file.write(piece)
        if at + len(piece) < total:
            self.status = {**_idle(), "busy": True, "what": "receiving the clip", "done": (at + len(piece)) / max(total, 1)}
            return
        self._receiving = 0
        whole = path.with_name(f"{time.time_ns()}.{suffix}")  # the clip before stays readable
        path.rename(whole)
        self._start(3, "opening the clip", lambda job: self._uploaded(job, whole, PurePath(name).name))

    # ------------------------------------------------------------------ in the thread

    def _start(self, rank: int, what: str, work: Callable[[Job], None]) -> None:
        """rank: of explaining 0, switching 1, asking 2, opening 3; what is of no higher rank, and not done, is pointless
        now, and the rest is done before."""

        def begun(job: Job) -> None:
            self.status = {**_idle(), "busy": True, "what": what}
            work(job)

        with self._lock:
            for older in self._jobs:
                older.stopped = older.stopped or older.rank <= rank
            job = Job(rank, begun, self._ended, self._jobs[-1] if self._jobs else None)
            self._jobs.append(job)
            self.status = {**self.status, "busy": True, "what": self.status["what"] or what, "error": ""}
            job.thread.start()

    def _ended(self, job: Job, error: str) -> None:
        with self._lock:
            self._jobs.remove(job)
            if not error and not job.stopped:
                self._settled = (self.edited, self.view)
            elif error != "stopped":
                self._error = error
            if self._jobs:  # those have their own status
                return
            if error:
                self.edited, self.view = self._settled
            self.status, self._error = {**_idle(), "error": self._error or error}, ""

    def _uploaded(self, job: Job, path: Path, name: str) -> None:
        """Opens a file from the browser."""
        try:
            self._ask(job, Clip(path), self.run.question, name)
        except VltError as e:
            raise VltError(str(e).replace(str(path), name)) from e
        finally:
            self._drop(path)

    def _drop(self, path: Path) -> None:
        """A file from the browser that is not shown, or not any more."""
        if self._uploads is not None and path.parent == Path(self._uploads.name) and path != self.run.clip.path:
            path.unlink(missing_ok=True)

    def _ask(self, job: Job, clip: Clip, question: str, name: str = "") -> None:
        job.check()
        same = clip is self.run.clip
        edited: Trace | None = None
        run = trace(self.model, clip, question, **self._options(clip))
        view = self._fresh(question, self._said(job, run))
        if same:  # what was switched off stays off
            view["switches"] = self.view["switches"]
            edited, told = self._without(job, run, view)
            view |= told
        before = self.run.clip.path
        with self._lock, self.hold_sync():
            job.check()
            if same and view["switches"] != self.view["switches"]:  # meanwhile; a job for that waits
                edited, view = None, {**view, "switches": self.view["switches"], **_NOTHING}
            self.run, self.edited = run, edited
            if not same:
                self._show(run, name)
            self.view = {**view, "method": self.view["method"]}
            self._settled = (self.edited, self.view)
        self._drop(before)

    def _options(self, clip: Clip) -> dict[str, Any]:
        """Those of the first clip, as far as this one has a use for them."""
        usable, options = self.model.usable(clip), dict(self.options)
        if options.get("branches") is not None:
            options["branches"] = [b for b in options["branches"] if b in usable] or None
        if "video" not in usable:
            options.pop("n_frames", None)
        if "audio" not in usable:
            options.pop("coverage", None)
        return options

    def _switch(self, job: Job) -> None:
        job.check()
        edited, told = self._without(job, self.run, self.view)
        with self._lock:
            job.check()
            self.edited, self.view = edited, {**self.view, **_NOTHING, **told}

    def _without(self, job: Job, run: Trace, view: dict[str, Any]) -> tuple[Trace | None, dict[str, Any]]:
        """The run without what is off, and what is to be seen of it."""
        off = self._edits(run, view["switches"])
        if not off:
            return None, {}
        again = run.edited(off)
        said = self._said(job, again)
        again.check_fired()
        with interruptible(job, self.model):
            change = again.score(run.answer.text) - view["answer"]["logp"]
        job.check()
        return again, {"edited": {**said, "change": change}, "edits": json.loads(edits.dumps(off))}

    def _edits(self, run: Trace, switches: dict[str, Any]) -> list[edits.Edit]:
        """What the switches stand for."""
        there = run.setting.branches
        off = [edits.without(branch) for branch in there if not switches[branch]]
        if "video" in there and switches["video"]:
            off += [edits.zero("frame_position")] if not switches["positions"] else []
            off += [edits.blank(frame=switches["frames_off"])] if switches["frames_off"] else []
        if "audio" in there and switches["audio"] and switches["segments_off"]:
            off.append(edits.mute(segment=switches["segments_off"]))
        return off

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

    def _said(self, job: Job, run: Trace) -> dict[str, Any]:
        """The answer of a run; it appears word by word, as it comes."""
        ids: list[int] = []

        def say(token: int) -> None:
            ids.append(token)
            self._tell(said="".join(self.model.pieces(ids)))

        with interruptible(job, self.model, say):
            _ = run.answer
        with interruptible(job, self.model):
            said = pictures.said(run)
        job.check()
        return said

    def _tell(self, **told: Any) -> None:
        if time.monotonic() - self._told > _TELL:
            self._told = time.monotonic()
            self.status = {**self.status, **told}

    # ------------------------------------------------------------------ what is to be seen

    def _show(self, run: Trace, name: str = "") -> None:
        data, kind = pictures.media(run.clip.path, PLAYED)
        with torch.no_grad(), self.hold_sync():
            self.media = data
            self.shown = {**pictures.shown(run), "media": kind, **({"name": name} if name else {})}

    def _fresh(self, question: str, said: dict[str, Any]) -> dict[str, Any]:
        switches = {"video": True, "audio": True, "positions": True, "frames_off": [], "segments_off": []}
        return {"question": question, "answer": said, "switches": switches, **_NOTHING}

    def _numbers(self, name: str, numbers: Sequence[int]) -> list[int]:
        sound = self.shown["sound"]
        count = len(self.shown["frames"]) if name == "frames_off" else len(sound["segments"]) if sound else 0
        for number in numbers:
            if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
                raise VltError(f"{name}: {number!r}; this clip has {count}, numbered from 0")
        return sorted(set(numbers))


def _idle() -> dict[str, Any]:
    return {"busy": False, "what": "", "done": None, "said": "", "error": ""}
