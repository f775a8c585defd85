"""Captions and instructions, in the files that the original is trained on -> examples and batches."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlt.errors import VltError, first_line, nearest
from vlt.inputs import media as files
from vlt.inputs import prompt, video
from vlt.inputs.clip import Clip
from vlt.inputs.prompt import Slot, Text
from vlt.model.config import VideoLlamaConfig
from vlt.train import supervision

PURPOSES = {"captions": "pre-training (vl-1, al-1)", "instructions": "instruction tuning (vl-2, al-2)"}
LAYOUTS = {  # what a file can hold, and what that can be used for
    "WebVid captions": ("captions",),
    "captions of pictures": ("captions", "instructions"),
    "LLaVA instructions": ("instructions",),
    "VideoChat instructions": ("instructions",),
}
EXPECTED = (
    'in UTF-8 a table with the columns videoid and name, or as JSON {"annotations": [{"image_id", "caption"}]}, '
    '[{"image", "conversations"}] or [{"video", "QA"}]'
)

# Of the words that ask for a description, one is drawn for each picture (the original's, from MiniGPT-4).
PROMPTS = tuple(
    f"<Image><ImageHere></Image> {request}"
    for request in (
        "Describe this image in detail.",
        "Take a look at this image and describe what you notice.",
        "Please provide a detailed description of the picture.",
        "Could you describe the contents of this image for me?",
    )
)
PREFIX = "COCO_train2014_"  # LLaVA's file names lack it, those of COCO's pictures have it
MAX_WORDS = 50  # of a WebVid caption
MAX_CONVERSATION = 512  # tokens, in both phases


@dataclasses.dataclass(frozen=True)
class Problem:
    """A row that cannot be used. source: "webvid.csv, row 3"."""

    source: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One picture or video, and what is said about it. Small: there may be millions.

    file, number: where it is written; the first row, after a table's header, is row 1.
    folder, name: where the media are, and the path of this one in there. kind: "video" or "image".
    use: "caption", "description" or "conversation" (see `vlt.train.supervision`).
    turns: (question, answer) as written, a picture's place in the first question being `<image>`. A caption's question
    is "". A WebVid caption is cleaned, everything else is raw.
    """

    file: str
    number: int
    folder: Path
    name: str
    kind: str
    use: str
    turns: tuple[tuple[str, str], ...]

    @property
    def source(self) -> str:
        return f"{self.file}, row {self.number}"

    @property
    def media(self) -> Path:
        return self.folder / self.name

    def found(self) -> Path:
        """The file on the disk. Raises `VltError` where it is none, or a link leads out of the folder.

        A picture of a conversation may also have the name that COCO gives it.
        """
        try:
            path = self.media
            if self.use == "conversation" and self.kind == "image" and not path.exists():
                other = path.with_name(PREFIX + path.name)
                path = other if other.exists() else path
            # not Path.resolve: it raises RuntimeError where links go in a circle
            inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self.folder))
        except OSError as error:
            raise VltError(f"{self.media}: cannot be opened ({error.strerror})") from error
        if not inside:
            raise VltError(f"{path}: a link leads out of the media folder; put the file itself there")
        files.check_file(path)
        return path


def read(
    path: str | os.PathLike[str], media: str | os.PathLike[str], purpose: str, check_files: bool = False
) -> tuple[list[Row], list[Problem]]:
    """The rows of a file that can be used, and those that cannot, in order.

    path: a table or a JSON file, recognised by what is in it, or a folder: then all .csv and .tsv files in there.
    media: the folder that the rows' paths start from; a path that leads out of it is a problem.
    purpose: "captions" (pre-training) or "instructions" (instruction tuning).
    check_files: also look for every file, and follow its links, now. Otherwise both wait until an example is made, so
    that millions of rows do not cost millions of looks at a disk.

    Raises `VltError` where a file cannot be read, is of no known layout, serves another purpose or has no usable row.
    """
    path, media = Path(path), Path(media)
    if purpose not in PURPOSES:
        raise VltError(f"no purpose {purpose!r}; {nearest(purpose, PURPOSES)}")
    if not media.is_dir():
        raise VltError(f"{media}: is no folder; expected the one that the media's paths start from")
    tables = sorted(p for p in path.iterdir() if p.suffix in (".csv", ".tsv")) if path.is_dir() else [path]
    if not tables:
        raise VltError(f"{path}: no .csv or .tsv file is in this folder; expected WebVid's tables, or one file")
    rows: list[Row] = []
    problems: list[Problem] = []
    for table in tables:
        usable, first = len(rows), len(problems)
        for found in _read_file(table, media, purpose, check_files):
            (rows if isinstance(found, Row) else problems).append(found)  # type: ignore[arg-type]
        if len(rows) == usable:
            came = f"{problems[first].source}: {problems[first].reason}" if problems[first:] else "it has none"
            raise VltError(f"{table}: no row of it can be used ({came}); expected {EXPECTED}")
    return rows, problems


def _read_file(path: Path, folder: Path, purpose: str, check_files: bool) -> Iterator[Row | Problem]:
    """Every row of one file. What is wrong with the whole of it is a `VltError` that names it."""
    try:
        if not path.is_file():
            raise VltError("no such file" if not path.exists() else "is not a regular file")
        with path.open(encoding="utf-8-sig", newline="") as file:
            is_json = file.read(4096).lstrip()[:1] in ("{", "[")
            file.seek(0)
            layout, items = _json(file) if is_json else _table(file)
            if purpose not in LAYOUTS[layout]:
                takes = " and ".join(PURPOSES[p] for p in LAYOUTS[layout])
                raise VltError(f"holds {layout}, which {takes} takes; it was given to {PURPOSES[purpose]}")
            for number, item in enumerate(items, 1):
                try:
                    row = Row(path.name, number, folder, *_fields(layout, item, purpose))
                    if check_files:
                        row.found()
                    yield row
                except VltError as error:
                    yield Problem(f"{path.name}, row {number}", str(error))
    except VltError as error:
        raise VltError(f"{path}: {error}") from error
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # ValueError: of json, and what is not UTF-8
        raise VltError(f"{path}: cannot be read ({first_line(error)}); expected {EXPECTED}") from error


def _json(file: TextIO) -> tuple[str, list[Any]]:
    """The layout, and its rows."""
    content = json.load(file)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return "captions of pictures", content["annotations"]
    for item in content if isinstance(content, list) else ():  # the first row may be a broken one
        for key, layout in (("conversations", "LLaVA instructions"), ("QA", "VideoChat instructions")):
            if isinstance(item, dict) and key in item:
                return layout, content
    raise VltError(f"is JSON of an unknown layout; expected {EXPECTED}")


def _table(file: TextIO) -> tuple[str, Iterator[dict[str, str] | VltError]]:
    """The layout, and its rows: cells by column, or what is wrong with a row."""
    delimiter = "\t" if "\t" in file.readline(csv.field_size_limit()) else ","
    file.seek(0)
    lines = csv.reader(file, delimiter=delimiter, strict=True)
    columns = [column.strip() for column in next(lines, [])]
    if not {"videoid", "name"} <= set(columns):
        raise VltError(f"is of an unknown layout; expected {EXPECTED}")
    return "WebVid captions", _cells(lines, columns)


def _cells(lines: Any, columns: list[str]) -> Iterator[dict[str, str] | VltError]:
    while True:
        first = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if "expected after" not in str(error):  # no end of a cell or of a quotation: nothing behind it can be trusted
                raise csv.Error(f"lines {first} to {lines.line_num}: {error}") from error
            yield VltError(f"a quotation ends inside a cell, in lines {first} to {lines.line_num}; all of them are left out")
            continue
        if not cells:
            continue  # an empty line is no row
        if len(cells) != len(columns):
            yield VltError(f"has {len(cells)} cells; the header has {len(columns)}")
        else:
            yield dict(zip(columns, cells, strict=True))


def _fields(layout: str, item: Any, purpose: str) -> tuple[str, str, str, tuple[tuple[str, str], ...]]:
    """A row's name, kind, use and turns. Raises `VltError`, which says what is wrong with the row."""
    if isinstance(item, VltError):
        raise item
    if not isinstance(item, dict):
        raise VltError(f"is a {type(item).__name__}; expected an object")
    if layout == "WebVid captions":
        name, folder = f"{_text(item, 'videoid')}.mp4", item.get("page_dir", "")
        return _safe(f"{folder}/{name}" if folder else name), "video", "caption", (("", _cleaned(_text(item, "name"))),)
    if layout == "captions of pictures":
        number = item.get("image_id")
        name = str(number) if type(number) is int else _text(item, "image_id")
        use = "caption" if purpose == "captions" else "description"
        return _safe(f"{name}.jpg"), "image", use, (("", _text(item, "caption")),)
    if layout == "LLaVA instructions":
        return _safe(_text(item, "image")), "image", "conversation", _said(_items(item, "conversations"))
    turns = tuple((_text(turn, "q"), _text(turn, "a")) for turn in _items(item, "QA"))
    return _safe(_text(item, "video")), "video", "conversation", turns


def _text(item: dict[str, Any], key: str) -> str:
    if key not in item:
        raise VltError(f"has no {key!r}")
    value = item[key]
    if not isinstance(value, str):
        raise VltError(f"{key!r} is a {type(value).__name__}; expected text")
    if not value.strip():
        raise VltError(f"{key!r} is empty")
    if re.search("[\ud800-\udfff]", value):
        raise VltError(f"{key!r} holds half a character (a lone surrogate)")
    return value


def _items(item: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = item.get(key)
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return value
    raise VltError(f"{key!r} is missing, empty or no list of objects")


def _safe(name: str) -> str:
    """The path of a file inside the media folder, as far as words tell; links are followed when the file is opened."""
    path = PurePath(name)
    if path.anchor or ".." in path.parts:
        raise VltError(f"the path {name[:200]!r} leads out of the media folder")
    if re.search(r"[\x00-\x1f\x7f-\x9f]", name):
        raise VltError(f"the path {name[:200]!r} holds control characters")
    return name


def _cleaned(caption: str) -> str:
    """As the original cleans WebVid's captions: lower case, signs taken out, and at most 50 words."""
    words = re.sub(r'[.!"()*#:;~]', " ", caption.lower()).split()
    if not words:
        raise VltError("'name' holds signs only")
    return " ".join(words[:MAX_WORDS])


def _said(said: list[dict[str, Any]]) -> tuple[tuple[str, str], ...]:
    roles = [str(turn.get("from"))[:20] for turn in said]
    if roles != ["human", "gpt"] * (len(said) // 2):
        raise VltError(f"roles are {', '.join(roles[:6])}; expected human and gpt in turn, as many of each")
    values = [_text(turn, "value") for turn in said]
    count = sum(value.count("<image>") for value in values)
    if count != 1 or "<image>" not in values[0]:
        raise VltError(f"<image> stands in it {count} times; expected once, in the first question")
    if values[0].strip() == "<image>":
        raise VltError("the first question is empty")
    return tuple(zip(values[::2], values[1::2], strict=True))


class Examples(Dataset):
    """Rows as examples: `examples[i]` is {"prompt": Prompt, "frames": [frame, 3, size, size] float32, normalised}, or
    a `Problem` where the medium cannot be read or the text is cut before anything is learnt.

    Of a video, `config.trained_frames` frames: for a caption drawn, half of them from each half, else uniformly. A
    video of fewer gives all it has; a picture is one frame. What is drawn is drawn from (seed, i) and nothing else.

    branch: "video" or "audio", which soft tokens are put in. max_caption: tokens of a caption or description; of a
    conversation, soft tokens included, MAX_CONVERSATION are kept.
    """

    def __init__(
        self, rows: Sequence[Row], tokenizer: Any, config: VideoLlamaConfig, branch: str, max_caption: int | None, seed: int
    ) -> None:
        if branch not in config.num_queries:
            raise VltError(f"this model has no branch {branch!r}; it has: {', '.join(config.num_queries)}")
        self.template = prompt.template(config.template).name
        self.rows, self.tokenizer, self.config = rows, tokenizer, config
        self.branch, self.max_caption, self.seed = branch, max_caption, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Any] | Problem:
        return self.example(range(len(self))[i])

    def example(self, i: int, again: int = 0) -> dict[str, Any] | Problem:
        """again: how often this row has come before. Each time, other frames and another request are drawn."""
        row, draw = self.rows[i], np.random.default_rng([self.seed, again, i])
        try:
            frames, sampled = self._frames(row, draw)
            lesson, room = self._lesson(row, sampled, draw), MAX_CONVERSATION - self.config.num_queries[self.branch]
            limits = {"max_tokens": room} if row.use == "conversation" else {"max_learnt": self.max_caption}
            return {"prompt": supervision.tokenise(lesson, self.tokenizer, **limits), "frames": frames}
        except VltError as error:
            return Problem(row.source, str(error))

    def _frames(self, row: Row, draw: np.random.Generator) -> tuple[Tensor, str]:
        """Frames, and the sentence that says when they were sampled."""
        path, size = row.found(), self.config.vision_config.image_size
        if row.kind == "image":  # not through `Clip`, which would decode it twice
            if not files.is_picture(path):
                raise VltError(f"{path}: is no PNG or JPEG picture")
            return video.normalise(video.read_picture(path, size)), ""
        clip, count = Clip(path), self.config.trained_frames
        if clip.kind != "video" or clip.fps is None:
            raise VltError(f"{path}: is no video (kind: {clip.kind})")
        drawn = row.use == "caption"
        indices = video.headtail_indices(clip.n_frames, count, draw) if drawn else clip.frame_indices(count)
        return clip.frames(size=size, indices=indices), prompt.frame_times(indices.tolist(), clip.fps)

    def _lesson(self, row: Row, sampled: str, draw: np.random.Generator) -> supervision.Lesson:
        (question, answer), *others = row.turns
        if row.use == "caption":
            return supervision.caption(answer, self.branch)
        if row.use == "description":
            request = PROMPTS[draw.integers(len(PROMPTS))]
            return supervision.description(request, answer, self.branch, self.template)
        if row.kind == "image":
            before, after = question.split("<image>")
            asked: Text = (f"{before}<Image>", Slot(self.branch), f"</Image>{after}")
        else:
            asked = ("<Video>", Slot(self.branch), f"</Video> {sampled}{question}")
        return supervision.conversation([(asked, answer), *(((q,), a) for q, a in others)], self.template)


class Mixture(Dataset):
    """Several sets in one, `length` examples long; the i-th is a function of (seed, i) alone, so that training can go
    on at any of them.

    ratios: whole numbers, as 100 and 24, in lowest terms 25 and 6: of every 31 examples, 25 are of the first set, in
    random order. Each set is gone through in one random order after another: no row comes again before all have come.
    """

    def __init__(self, sets: Sequence[Examples], ratios: Sequence[int], length: int, seed: int) -> None:
        if not sets or len(sets) != len(ratios) or not all(len(s) for s in sets):
            raise VltError(f"{len(sets)} sets of {[len(s) for s in sets]} rows and {len(ratios)} ratios; expected one for each")
        if not all(isinstance(n, int) and n > 0 for n in (*ratios, length)):
            raise VltError(f"ratios {list(ratios)} and length {length!r}; expected whole numbers from 1 on")
        self.sets, self.length, self.seed = sets, length, seed
        self.shares = [ratio // math.gcd(*ratios) for ratio in ratios]

    def __len__(self) -> int:
        return self.length

    def place(self, i: int) -> tuple[int, int, int]:
        """Which set, which of its rows, and how often that row has come before."""
        block, at = divmod(range(self.length)[i], sum(self.shares))
        order = np.searchsorted(np.cumsum(self.shares), _order(sum(self.shares), self.seed, 0, block), side="right")
        which = int(order[at])
        before = block * self.shares[which] + int((order[:at] == which).sum())
        again, at = divmod(before, len(self.sets[which]))
        return which, int(_order(len(self.sets[which]), self.seed, which + 1, again)[at]), again

    def __getitem__(self, i: int) -> dict[str, Any] | Problem:
        which, row, again = self.place(i)
        return self.sets[which].example(row, again)


@functools.lru_cache(maxsize=16)  # an order of 2.5 million rows takes 10 MB, and too long to be drawn for each example
def _order(size: int, *key: int) -> np.ndarray:
    """A random order of `size` things, the same for the same key: [thing] uint32."""
    return np.random.default_rng(key).permutation(np.arange(size, dtype=np.uint32))


def collate(items: Iterable[dict[str, Any] | Problem]) -> dict[str, list[Any]]:
    """Examples -> {"groups": [{"prompt": [Prompt, ...], "frames": [clip, frame, 3, size, size]}, ...], "problems":
    [Problem, ...]}. Frames of one shape make one group; where all were problems there is none."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    problems = []
    for item in items:
        if isinstance(item, Problem):
            problems.append(item)
        else:
            groups.setdefault(tuple(item["frames"].shape), []).append(item)
    stacked = [{"prompt": [e["prompt"] for e in g], "frames": torch.stack([e["frames"] for e in g])} for g in groups.values()]
    return {"groups": stacked, "problems": problems}
