"""Every axis knows what it is: frames their times, segments their seconds, patches their places, tokens their words.

An `Axis` labels arrays, and finds the places that a person means by a number, a range or a phrase ("frame 3",
"audio 0-2s", "question").
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlt.errors import VltError, nearest

# What may stand for places on an axis: one, several, a range (also as "2:5"), a phrase, or several.
Index = int | Sequence[int] | Sequence[str] | slice | range | str

_PHRASE = re.compile(r"(?P<word>[a-z][a-z ]*?)(?:\s+(?P<a>\d+(?:\.\d+)?)(?:\s*-\s*(?P<b>\d+(?:\.\d+)?))?\s*(?P<unit>s)?)?")
_RANGE = re.compile(r"(\d*):(\d*)")


@dataclasses.dataclass(frozen=True)
class Word:
    """A word that a phrase may begin with. where: the places it names. number: what a number behind it counts (by
    default the places themselves, from 0). start, end: of each place in seconds, where seconds may stand behind it."""

    where: np.ndarray
    number: np.ndarray | None = None
    start: np.ndarray | None = None
    end: np.ndarray | None = None


class Axis:
    """name: as in labelled arrays. size: its length. coordinates: more that is known of every place, [size] each.
    words: those of its phrases. elsewhere: word, or "word s" with seconds -> why it is not here, and where to ask."""

    def __init__(
        self,
        name: str,
        size: int,
        coordinates: Mapping[str, Any] | None = None,
        words: Mapping[str, Word] | None = None,
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.size = name, size
        self.coordinates = {key: np.asarray(value) for key, value in (coordinates or {}).items()}
        everything = np.ones(size, dtype=bool)
        self.words = {name.replace("_", " "): Word(everything), "all": Word(everything), **(words or {})}
        self.elsewhere = dict(elsewhere or {})

    def find(self, index: Index) -> np.ndarray:
        """The places that are meant, [n] int64 in rising order (a list keeps its own order).

        index: a number; a list of numbers; a slice, range or "2:5" (without its end); or a phrase of one of the axis'
        words, alone ("audio"), with a number ("frame 3"), with both ends of a range of numbers ("frame 2-4"), or with
        seconds ("audio 0-2s": whatever overlaps them); or a list of phrases. Raises `VltError` where nothing is meant.
        """
        if isinstance(index, str):
            found = self._slice(index) if _RANGE.fullmatch(index.strip()) else self._phrase(index)
        elif isinstance(index, slice | range):
            if (index.step or 1) < 1:
                raise self._error(index)
            found = np.arange(self.size)[slice(index.start, index.stop, index.step)]
            if isinstance(index, range) and len(found) != len(index):
                raise self._error(index)
        elif not isinstance(index, int | np.integer | np.ndarray | Sequence):
            raise VltError(f"{self.name} {index!r} is not understood; say {self._known()}")
        elif not isinstance(index, int | np.integer) and len(index) and all(isinstance(i, str) for i in index):
            found = np.unique(np.concatenate([self.find(i) for i in index]))
        else:
            numbers = [index] if isinstance(index, int | np.integer) else list(index)
            if not all(isinstance(n, int | np.integer) and not isinstance(n, bool) and 0 <= n < self.size for n in numbers):
                raise self._error(index)
            if len(set(numbers)) != len(numbers):
                raise VltError(f"{self.name} {index!r} names a place twice")
            found = np.asarray(numbers, dtype=np.int64)
        if not len(found):
            raise self._error(index)
        return found

    def _slice(self, text: str) -> np.ndarray:
        match = _RANGE.fullmatch(text.strip())
        assert match is not None
        start, stop = (int(n) if n else None for n in match.groups())
        if (start or 0) >= self.size or (stop is not None and stop > self.size):
            raise self._error(text)
        return np.arange(self.size)[start:stop]

    def _phrase(self, text: str) -> np.ndarray:
        match = _PHRASE.fullmatch(text.strip().lower().replace("_", " "))
        if match is None:
            raise VltError(f"{text!r} is not understood; say {self._known()}")
        name, a, b, unit = match["word"], match["a"], match["b"], match["unit"]
        name = name if name in self.words else name.removesuffix("s")
        if reason := self.elsewhere.get(f"{name} s" if unit else name):
            raise VltError(f"{text!r}: {reason}")
        word = self.words.get(name)
        if word is None:
            raise VltError(f"the axis {self.name!r} has no {match['word']!r}; {nearest(name, self.words)}; say {self._known()}")
        if b is not None and float(b) < float(a):
            raise VltError(f"{text!r} ends before it begins")
        if a is None:
            where = word.where
        elif unit:
            if word.start is None or word.end is None:
                raise VltError(f"{text!r}: {name!r} has no times here; say {self._known()}")
            low, high = float(a), float(b if b is not None else a)
            where = word.where & (word.start < max(high, low + 1e-9)) & (word.end > low)
        else:
            number = word.number if word.number is not None else np.where(word.where, np.cumsum(word.where) - 1, -1)
            where = word.where & (number >= float(a)) & (number <= float(b if b is not None else a))
        if not where.any():
            raise VltError(f"{text!r} names no place: {self._holds(name, word)}")
        return np.flatnonzero(where)

    def _known(self) -> str:
        numbered = next((name for name, word in self.words.items() if word.number is not None), self.name.replace("_", " "))
        timed = next((f", '{name} 0-2s'" for name, word in self.words.items() if word.start is not None), "")
        return f"one of {', '.join(self.words)}, or a number behind one ('{numbered} 0', '{numbered} 0-1'{timed})"

    def _holds(self, name: str, word: Word) -> str:
        if not word.where.any():
            return f"there is no {name} here"
        number = word.number if word.number is not None else np.cumsum(word.where) - 1
        here = number[word.where]
        out = f"{name} {here.min()} to {here.max()}"
        if word.start is not None and word.end is not None:
            out += f", seconds {word.start[word.where].min():g} to {word.end[word.where].max():g}"
        return f"here are {out}"

    def _error(self, index: Any) -> VltError:
        return VltError(f"{self.name} {index!r} was asked for; there are {self.size}: 0 to {self.size - 1}")

    def table(self) -> pd.DataFrame:
        """All that is known of every place."""
        return pd.DataFrame(self.coordinates, index=pd.RangeIndex(self.size, name=self.name))

    def __repr__(self) -> str:
        return f"Axis({self.name!r}, {self.size}: {', '.join(self.words)})"

    def coords(self, taken: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The axis' own numbers and its coordinates, at the places taken."""
        places = np.arange(self.size) if taken is None else taken
        return {self.name: places} | {key: value[places] for key, value in self.coordinates.items()}


def plain(name: str, size: int, elsewhere: Mapping[str, str] | None = None) -> Axis:
    words = {name.replace("_", " "): Word(np.ones(size, dtype=bool), np.arange(size))}
    return Axis(name, size, words=words, elsewhere=elsewhere)


def frame(numbers: Sequence[int], seconds: Sequence[float]) -> Axis:
    """numbers: of the sampled frames in their file. seconds: when each is shown."""
    n = len(numbers)
    word = frame_word(np.arange(n), np.asarray(seconds, dtype=float))
    return Axis("frame", n, {"frame_number": np.asarray(numbers), "seconds": np.asarray(seconds, dtype=float)}, word)


def frame_word(frames: np.ndarray, seconds: np.ndarray) -> dict[str, Word]:
    """A frame is an instant: it is within seconds a-b where its own time is."""
    everything = np.ones(len(frames), dtype=bool)
    word = Word(everything, frames, seconds, np.nextafter(seconds, np.inf))
    return {"frame": word, "video": dataclasses.replace(word, number=None)}


def frame_token(frames: Axis, queries: int) -> Axis:
    """Frame-major, as the stage is."""
    of = np.repeat(np.arange(frames.size), queries)
    query = np.tile(np.arange(queries), frames.size)
    seconds = frames.coordinates["seconds"][of]
    words = frame_word(of, seconds) | {"image query": Word(np.ones(len(of), dtype=bool), query)}
    return Axis("frame_token", len(of), {"frame": of, "image_query": query, "seconds": seconds}, words)


def segment(bounds: Iterable[tuple[Any, Any]]) -> Axis:
    start, end = (np.asarray([float(b[i]) for b in bounds]) for i in (0, 1))
    everything = np.ones(len(start), dtype=bool)
    word = Word(everything, np.arange(len(start)), start, end)
    words = {"segment": word, "audio": dataclasses.replace(word, number=None)}
    return Axis("segment", len(start), {"start": start, "end": end}, words)


def patch(rows: int, columns: int) -> Axis:
    """A picture's patches row by row, behind the class token (whose row and column are -1)."""
    row = np.concatenate([[-1], np.repeat(np.arange(rows), columns)])
    column = np.concatenate([[-1], np.tile(np.arange(columns), rows)])
    picture = row >= 0
    words = {
        "patch": Word(picture, np.arange(len(row)) - 1),
        "row": Word(picture, row),
        "column": Word(picture, column),
        "class": Word(~picture),
    }
    return Axis("patch", len(row), {"patch_row": row, "patch_column": column}, words)


def sound_patch(name: str, hz: np.ndarray, seconds: np.ndarray, kernel: int, stride: int, nothing: bool) -> Axis:
    """A spectrogram's patches, mel row by mel row, behind the class token; perhaps, as the last, the learnt key that is
    no place of the sound. hz, seconds: of every mel bin and column (nan in the coordinates where there is no place)."""
    rows, columns = ((len(v) - kernel) // stride + 1 for v in (hz, seconds))
    low, high = (np.repeat(hz[np.arange(rows) * stride + at], columns) for at in (0, kernel - 1))
    start = np.tile(seconds[np.arange(columns) * stride], rows)
    row, column = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)

    def around(values: np.ndarray, fill: float) -> np.ndarray:
        return np.concatenate([[fill], values, [fill] * nothing])

    picture = around(np.ones(rows * columns), 0).astype(bool)
    coordinates = {
        "patch_row": around(row, -1).astype(int),
        "patch_column": around(column, -1).astype(int),
        "hz_low": around(low, np.nan),
        "hz_high": around(high, np.nan),
        "segment_seconds": around(start, np.nan),
    }
    words = {
        "patch": Word(picture, np.arange(len(picture)) - 1),
        "row": Word(picture, coordinates["patch_row"]),
        "column": Word(picture, coordinates["patch_column"]),
        "class": Word(np.arange(len(picture)) == 0),
    }
    if nothing:
        words["nothing"] = Word(np.arange(len(picture)) == len(picture) - 1)
    return Axis(name, len(picture), coordinates, words)


def mixed(what: str, branch: str) -> dict[str, str]:
    """Why what knows no frames, or segments, any more cannot be asked for one, and where to ask."""
    one, inside = ("frame", "patch") if branch == "video" else ("segment", "mel")
    why = (
        f"{what} mixes all {one}s; ask at the stage '{one}_tokens' (edits, or columns of '{branch}_qformer.*.cross'), "
        "or follow the heat back with vlt.path"
    )
    return dict.fromkeys((one, f"{one} s", f"{branch} s", inside), why)


def token(words: Sequence[str], kinds: Sequence[str], queries: Sequence[int], question: Sequence[int], prompt: int) -> Axis:
    """The language model's positions. words: what each says ("" where a soft token is). kinds: "video", "audio" or
    "text". queries: the number of a soft token within its branch, else -1. question: the places of the question's own
    words. prompt: where the answer begins."""
    n = len(words)
    kind, query, at = np.asarray(kinds), np.asarray(queries), np.arange(n)
    asked = np.isin(at, np.asarray(question, dtype=int))
    group = np.where(at >= prompt, "answer", np.where(asked, "question", np.where(kind == "text", "prompt", kind)))
    named = {
        "token": Word(np.ones(n, dtype=bool), at),
        "audio": Word(kind == "audio", query),
        "video": Word(kind == "video", query),
        "question": Word(asked),
        "prompt": Word(group == "prompt"),
        "answer": Word(at >= prompt),
        "text": Word((kind == "text") & (at < prompt)),
        "last": Word(at == prompt - 1),
        "answering": Word((at >= prompt - 1) & (at < max(n - 1, prompt))),
    }
    elsewhere = mixed("a token of the language model", "video") | mixed("a token of the language model", "audio")
    coordinates = {"word": np.asarray(words, dtype=object), "group": group, "query": query}
    return Axis("token", n, coordinates, named, elsewhere)
