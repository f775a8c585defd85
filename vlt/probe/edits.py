"""Edits as plain values: what becomes of a stage, of a place inside the model, of an edge of attention, of the clip.

An `Edit` can be printed, put in a list with others, saved as JSON, and used on any trace. It is checked where it is
used, against what is there; one that nothing came to is refused (its place was not run, or nobody looks there).

edits = [vlt.edits.zero("video_queries", video_query=[0, 3]), vlt.edits.knockout("audio", by="answering", layers="2:4")]
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlt.errors import VltError, check_type, first_line, nearest
from vlt.inputs.audio import SAMPLE_RATE
from vlt.inputs.clip import Clip
from vlt.probe.axes import Index

if TYPE_CHECKING:
    from vlt.probe.trace import Trace

# Kinds of edit -> what they are. The functions below make them; JSON names them.
KINDS = {
    "zero": "set to 0",
    "scale": "multiplied by a factor",
    "noise": "with noise added",
    "mean": "set to the mean over other clips",
    "swap": "taken from another trace",
    "resample": "taken from one of other clips, drawn by lot",
    "reorder": "put into another order",
    "custom": "changed by a function",
    "knockout": "not looked at",
    "blank": "frames without a picture",
    "mute": "segments of digital silence",
    "shift": "sound that comes later",
    "without": "a branch that is not in the prompt",
    "ask": "another question",
}
AT_LANGUAGE_MODEL = "language_model.*.self"


@dataclasses.dataclass(frozen=True)
class Source:
    """Another run that an edit takes values from. clip: its file. question: "" means that of the run that is edited.
    options: the other arguments of `vlt.trace`; None means those of the run that is edited. edits: those of that run. live:
    the run, where there is one already."""

    clip: str
    question: str = ""
    options: Mapping[str, Any] | None = dataclasses.field(default=None, hash=False)
    edits: tuple[Edit, ...] = ()
    live: Trace | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, other: Any) -> Source:
        if isinstance(other, Clip):
            return cls(str(other.path.absolute()))
        if hasattr(other, "rerun"):
            return cls(str(other.clip.path.absolute()), other.question, other.setting.options(), other.edits, other)
        raise VltError(f"values are taken from a Trace or a Clip, not from a {type(other).__name__}; for those use custom")

    def __str__(self) -> str:
        return f"{Path(self.clip).name!r}{f' with {list(map(str, self.edits))}' if self.edits else ''}"

    def as_json(self) -> dict[str, Any]:
        options = {} if self.options is None else {"options": dict(self.options)}
        return {"clip": self.clip, "question": self.question, **options}

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Source:
        options = row.get("options")
        if options is not None:
            if unknown := set(options) - set(_TRACING):
                raise VltError(f"a source has no option {unknown.pop()!r}; it has {', '.join(_TRACING)}")
            options = {name: _TRACING[name](value) for name, value in options.items()}
        return cls(str(row["clip"]), str(row["question"]), options)


# Options of a run that are saved with a source -> what makes them of JSON.
_TRACING: dict[str, Callable[[Any], Any]] = {
    "branches": lambda value: tuple(str(v) for v in value),
    "n_frames": lambda value: None if value is None else int(value),
    "coverage": lambda value: None if value is None else str(value),
    "history": lambda value: tuple((str(q), str(a)) for q, a in value),
    "system": lambda value: None if value is None else str(value),
}


@dataclasses.dataclass(frozen=True)
class Edit:
    """One change. kind: of KINDS. at: the name of a stage or a place, or a pattern of places. where: axis -> what of it
    (by default all). options: of this kind. sources: the runs that values are taken from."""

    kind: str
    at: str
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    def __str__(self) -> str:
        of = [f"{key}={value!r}" for key, value in {**self.where, **self.options}.items()]
        cut = self.kind == "knockout"
        there = [] if self.at == (AT_LANGUAGE_MODEL if cut else _AT.get(self.kind)) else [f"{'at=' * cut}{self.at!r}"]
        given = [*map(str, self.sources), *of]
        return f"{self.kind}({', '.join([*given, *there] if cut else [*there, *given])})"

    def __hash__(self) -> int:
        return hash((self.kind, self.at, str(self)))

    def as_json(self) -> dict[str, Any]:
        """Numbers, texts and lists only. Raises `VltError` for a custom function, and for values taken from a run that
        was itself edited."""
        if self.kind == "custom":
            raise VltError(f"{self}: a function cannot be saved; name what it does by other edits, or keep it in your code")
        for source in self.sources:
            if source.edits:
                raise VltError(f"{self}: takes values from an edited run; save that run's edits, and make it again")
        return {
            "kind": self.kind,
            "at": self.at,
            **({"where": dict(self.where)} if self.where else {}),
            **({"options": dict(self.options)} if self.options else {}),
            **({"sources": [source.as_json() for source in self.sources]} if self.sources else {}),
        }


def _edit(kind: str, at: str, where: Mapping[str, Any], sources: Sequence[Any] = (), **options: Any) -> Edit:
    if not isinstance(at, str):
        raise VltError(f"{kind}: a place is named by a string, not by {at!r}")
    _check_numbers(kind, options)
    return Edit(kind, at, {k: _plain(v) for k, v in where.items()}, options, tuple(Source.of(s) for s in sources))


def _plain(index: Any) -> Any:
    """An index as JSON can carry it."""
    if isinstance(index, slice | range):
        if (index.step or 1) != 1:
            return list(index) if isinstance(index, range) else _refuse(index)
        return f"{'' if index.start is None else index.start}:{'' if index.stop is None else index.stop}"
    if isinstance(index, np.ndarray | list | tuple):
        return [_plain(i) for i in (index.tolist() if isinstance(index, np.ndarray) else index)]
    if isinstance(index, np.generic):
        return index.item()
    if not isinstance(index, int | float | str):
        _refuse(index)
    return index


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise VltError(f"{name} is a number; got {value!r}")
    return float(value)


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise VltError(f"{name} is a whole number; got {value!r}")
    return int(value)


def _several(over: Any) -> Sequence[Any]:
    if not isinstance(over, list | tuple) or not over:
        raise VltError(f"values are taken from a list of at least one clip or trace; got {over!r}")
    return over


def _refuse(index: Any) -> Any:
    raise VltError(f"{index!r} is not understood; name places by a number, a list, a slice, '2:5', or a phrase ('frame 3')")


# ------------------------------------------------------------------ what any value can become


def zero(at: str, **where: Index) -> Edit:
    """Numbers become 0. at: a stage ("audio_prefix"), a place ("language_model.3", "video_qformer.*.cross",
    "frame_position") or a pattern of places. where: axis=places, for example frame=3, head=[0, 2], token="audio"; or what
    is known of places, as patch_row="2:5", or word="bell" (of the prompt: an answer's words are yet to be made)."""
    return _edit("zero", at, where)


def scale(at: str, factor: float, **where: Index) -> Edit:
    """Numbers are multiplied by a factor."""
    return _edit("scale", at, where, factor=_number("factor", factor))


def noise(at: str, size: float = 1.0, seed: int = 0, **where: Index) -> Edit:
    """Gaussian noise is added, of `size` times the standard deviation of what it is added to. A place draws the same from
    the same seed: edits that add to one place twice need seeds of their own."""
    return _edit("noise", at, where, size=_number("size", size), seed=_whole("seed", seed))


def mean(at: str, over: Sequence[Trace | Clip], **where: Index) -> Edit:
    """The mean of the same place in other runs. A clip is asked the same question."""
    return _edit("mean", at, where, _several(over))


def swap(at: str, source: Trace | Clip, **where: Index) -> Edit:
    """The values of another run at the same place. A clip is asked the same question."""
    return _edit("swap", at, where, [source])


def resample(at: str, over: Sequence[Trace | Clip], seed: int = 0, **where: Index) -> Edit:
    """The values of one of other runs, drawn by lot."""
    return _edit("resample", at, where, _several(over), seed=_whole("seed", seed))


def custom(at: str, function: Callable[[Any], Any], **where: Index) -> Edit:
    """What a function makes of the values: it takes and gives a tensor of the same shape, dtype and device, with the
    axes of the place and without that of the clip. In the language model it is called with the prompt's tokens, and then
    with each of the answer's alone, as they come."""
    if not callable(function):
        raise VltError(f"custom takes a function, not a {type(function).__name__}")
    return _edit("custom", at, where, function=function)


# ------------------------------------------------------------------ edges


def knockout(
    seen: str | Sequence[int], by: str | Sequence[int] | None = None, layers: Index | None = None, at: str = AT_LANGUAGE_MODEL
) -> Edit:
    """Attention knockout: `by` no longer looks at `seen`; what is left shares all the weight.

    seen, by: phrases or places of the two axes, in the language model "audio", "question", "answering" (the places from
    which the answer is predicted) and so on; by default everything else is kept from looking. layers: of those that fit
    `at`. It holds while an answer is decoded, too.
    """
    options = {"seen": _plain(seen)} | ({} if by is None else {"by": _plain(by)})
    return _edit("knockout", at, {}, **options, **({} if layers is None else {"layers": _plain(layers)}))


# ------------------------------------------------------------------ the clip


def shuffle(at: str = "frames", axis: str = "frame", seed: int = 0) -> Edit:
    """Frames (or whatever is along an axis of a stage) in a random order, never in their own. Labels (times, numbers) stay
    with the places, as they do in the model: what was moved there has other ones. So it is with `reverse` and `repeat`."""
    return _edit("reorder", at, {}, axis=axis, order="shuffle", seed=_whole("seed", seed))


def reverse(at: str = "frames", axis: str = "frame") -> Edit:
    """The last frame first."""
    return _edit("reorder", at, {}, axis=axis, order="reverse")


def repeat(frame: int, at: str = "frames", axis: str = "frame") -> Edit:
    """One frame in the place of all."""
    return _edit("reorder", at, {}, axis=axis, order=_whole("frame", frame))


def blank(**where: Index) -> Edit:
    """Frames of one colour, the mean one (numbers of 0, as frames are normalised): all of them, or frame=..., or a part
    of the picture height="0:32", width="0:32" in pixels."""
    return _edit("blank", _AT["blank"], where)


def mute(**where: Index) -> Edit:
    """Digital silence in the place of all segments, or of segment=... ("audio 0-4s")."""
    return _edit("mute", _AT["mute"], where)


def swap_sound(clip: Clip | Trace) -> Edit:
    """The sound of another clip."""
    return swap("spectrograms", clip)


def shift(seconds: float) -> Edit:
    """The sound comes so much later (below 0: earlier); what is moved out is lost, and silence moves in."""
    return _edit("shift", _AT["shift"], {}, seconds=_number("seconds", seconds))


def without(branch: str) -> Edit:
    """The prompt has no place for this branch ("video" or "audio"): the model is not told that there is any."""
    if branch not in ("video", "audio"):
        raise VltError(f"no branch {branch!r}; {nearest(branch, ('video', 'audio'))}")
    return _edit("without", _AT["without"], {}, branch=branch)


def ask(question: str) -> Edit:
    """Another question."""
    check_type(question, str, "a question")
    return _edit("ask", _AT["ask"], {}, question=question)


# ------------------------------------------------------------------ JSON


def dumps(edits: Edit | Sequence[Edit]) -> str:
    """Edits as JSON; `loads` reads them back. Of a run that values are taken from, its clip's whole path, question and options
    are kept: it is made again, by the model of the run that is edited then."""
    return json.dumps([edit.as_json() for edit in as_list(edits)], indent=1)


def loads(text: str) -> list[Edit]:
    """Edits from what `dumps` wrote. Nothing in it is run. Raises `VltError` where it does not describe edits."""
    try:
        rows = json.loads(text)
        if not isinstance(rows, list):
            raise TypeError(f"expected a list of edits, got {type(rows).__name__}")
        return [_loaded(row) for row in rows]
    except (ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        if isinstance(error, VltError):
            raise
        why = f"{error} is lacking" if isinstance(error, KeyError) else first_line(error)
        raise VltError(f"edits cannot be read from this JSON ({why}); `vlt.edits.dumps` writes them") from error


def read(path: Path) -> list[Edit]:
    """Edits from a JSON file."""
    try:
        return loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VltError(f"{path}: {first_line(error)}") from error


def _loaded(row: dict[str, Any]) -> Edit:
    unknown = set(row) - {"kind", "at", "where", "options", "sources"}
    if unknown:
        raise VltError(f"an edit has no {sorted(unknown)[0]!r}; it has kind, at, where, options, sources")
    kind, at = row["kind"], row["at"]
    if kind not in KINDS or kind == "custom":
        raise VltError(f"no kind of edit {kind!r} in JSON; {nearest(str(kind), [k for k in KINDS if k != 'custom'])}")
    sources = tuple(Source.from_json(source) for source in row.get("sources", []))
    options = dict(row.get("options", {}))
    _check_options(kind, options, sources)
    where = {str(k): _plain(v) for k, v in row.get("where", {}).items()}
    if where and kind in _WHOLE:
        raise VltError(f"{kind} is of a whole; it has no places {where}")
    if at != _AT.get(kind, at):
        raise VltError(f"{kind} stands at {_AT[kind]!r} only, not at {at!r}")
    return Edit(kind, str(at), where, options, sources)


_WHOLE = ("reorder", "knockout", "shift", "without", "ask")
_AT = {"blank": "frames", "mute": "spectrograms", "shift": "spectrograms", "without": "prompt", "ask": "prompt"}
# kind -> (its options and their types; those that may be left out), (fewest, most sources)
_OPTIONS: dict[str, tuple[dict[str, tuple[type, ...]], tuple[str, ...], tuple[int, int]]] = {
    "zero": ({}, (), (0, 0)),
    "scale": ({"factor": (int, float)}, (), (0, 0)),
    "noise": ({"size": (int, float), "seed": (int,)}, (), (0, 0)),
    "mean": ({}, (), (1, 10_000)),
    "swap": ({}, (), (1, 1)),
    "resample": ({"seed": (int,)}, (), (1, 10_000)),
    "reorder": ({"axis": (str,), "order": (str, int), "seed": (int,)}, ("seed",), (0, 0)),
    "knockout": ({"seen": (str, int, list), "by": (str, int, list), "layers": (str, int, list)}, ("by", "layers"), (0, 0)),
    "blank": ({}, (), (0, 0)),
    "mute": ({}, (), (0, 0)),
    "shift": ({"seconds": (int, float)}, (), (0, 0)),
    "without": ({"branch": (str,)}, (), (0, 0)),
    "ask": ({"question": (str,)}, (), (0, 0)),
}


def _check_options(kind: str, options: Mapping[str, Any], sources: Sequence[Source]) -> None:
    types, free, (fewest, most) = _OPTIONS[kind]
    if wrong := [name for name, value in options.items() if not isinstance(value, types.get(name, ()))]:
        raise VltError(f"{kind} has the options {', '.join(types) or 'none'}; {wrong[0]} = {options[wrong[0]]!r} is not one")
    if lacking := [name for name in types if name not in options and name not in free]:
        raise VltError(f"{kind} needs {lacking[0]!r}")
    _check_numbers(kind, options)
    if not fewest <= len(sources) <= most:
        raise VltError(f"{kind} takes values from {fewest} to {most} other runs; {len(sources)} are given")


def _check_numbers(kind: str, options: Mapping[str, Any]) -> None:
    if kind == "scale" and abs(options["factor"] - 1) < 1e-8:
        raise VltError("scale by 1 would change nothing; give another factor")
    if kind == "noise" and not 0 < options["size"] < float("inf"):
        raise VltError(f"noise of size {options['size']} would change nothing, or all; give one above 0")
    if kind == "shift" and not 1 / SAMPLE_RATE <= abs(options["seconds"]) < float("inf"):
        raise VltError(f"a shift by {options['seconds']} seconds would change nothing, or all; give a sample's length at least")
    if not 0 <= options.get("seed", 0) < 2**63:
        raise VltError(f"{kind}: seed {options['seed']}; expected 0 to 2**63 - 1")


def as_list(edits: Any) -> list[Edit]:
    """One edit, or several, as a list; anything else is refused."""
    found = [edits] if isinstance(edits, Edit) else list(edits) if isinstance(edits, Sequence) else [edits]
    for edit in found:
        if not isinstance(edit, Edit):
            raise VltError(f"an edit is made by vlt.edits ({', '.join(KINDS)}); got a {type(edit).__name__}")
    return found
