"""How often is the answer right, and of which parts is that the work? Question kinds x ablations, on real files."""

from __future__ import annotations

import dataclasses
import math
import re
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlt.errors import VltError, nearest
from vlt.inputs import prompt as prompts
from vlt.inputs.clip import Clip
from vlt.model.answer import Encoded
from vlt.model.video_llama import VideoLlama
from vlt.train import talk, world
from vlt.train.talk import Talk
from vlt.train.world import Scene

BATCH = 64
FIRST_SEED = 1000  # the box was trained on worlds of the seeds below


@dataclasses.dataclass(frozen=True)
class Seen:
    """A clip of the world as the frozen encoders saw it, read back from its file: [1, frame, image query, width] and
    [1, segment, joint width], or None without a sound stream."""

    made: Scene
    clip: Clip
    image_queries: Tensor
    audio_features: Tensor | None


def watch(model: VideoLlama, scenes: Iterable[Scene], folder: Path) -> list[Seen]:
    """Writes every scene as mp4, a silent one with the noise of its room, reads it back, and runs the frozen encoders."""
    out = []
    for i, made in enumerate(tqdm(scenes, desc="writing and watching clips", mininterval=2)):
        path = folder / f"{i}.mp4"
        world.write(made, path, silence=True)
        clip = Clip(path)
        given, chosen = model.inputs(clip)
        wanted = ["image_queries"] + ["audio_features"] * ("audio" in chosen)
        with torch.no_grad():
            stages = model.run({name: value for name, (value, _) in given.items()}, wanted)
        out.append(Seen(made, clip, stages["image_queries"], stages.get("audio_features")))
    return out


def _shuffled(value: Tensor, draw: np.random.Generator) -> Tensor:
    """Along its second axis, never as it was (unless there is only one)."""
    count = value.shape[1]
    if count < 2:
        return value
    while (order := draw.permutation(count)).tolist() == list(range(count)):
        pass
    return value[:, order]


# condition -> (branch, what becomes of its stage): from image_queries to frame_tokens or itself, from audio_features
# to segment_tokens or itself. `None` takes the branch out of the prompt.
Change = Callable[[Tensor, np.random.Generator], tuple[str, Tensor]]
CONDITIONS: dict[str, tuple[str, Change | None]] = {
    "full": ("", None),
    "no video": ("video", None),
    "no sound": ("audio", None),
    "frame positions removed": ("video", lambda value, _: ("frame_tokens", value.flatten(1, 2))),
    "frames shuffled": ("video", lambda value, draw: ("image_queries", _shuffled(value, draw))),
    "frames reversed": ("video", lambda value, _: ("image_queries", value.flip(1))),
    "one frame repeated": ("video", lambda value, _: ("image_queries", value[:, [value.shape[1] // 2] * value.shape[1]])),
    "image queries averaged": ("video", lambda value, _: ("image_queries", value.mean(2, keepdim=True).expand_as(value))),
    "segment positions removed": ("audio", lambda value, _: ("segment_tokens", value)),
    "segments shuffled": ("audio", lambda value, draw: ("audio_features", _shuffled(value, draw))),
}


def encoded(model: VideoLlama, seen: Seen, condition: str, draw: np.random.Generator) -> Encoded | None:
    """The clip's soft tokens under this condition; None where no branch is left."""
    branch, change = CONDITIONS[condition]
    stages = {"video": ("image_queries", seen.image_queries), "audio": ("audio_features", seen.audio_features)}
    prefix = {}
    for name, (stage, value) in stages.items():
        if value is None or (name == branch and change is None):
            continue
        if name == branch and change is not None:
            stage, value = change(value, draw)
        with torch.no_grad():
            prefix[name] = model.run({stage: value}, [f"{name}_prefix"])[f"{name}_prefix"][0]
    if not prefix:
        return None
    kind = "video" if "video" in prefix else "sound"
    sampled = prompts.frame_times(seen.clip.frame_indices(model.config.trained_frames).tolist(), seen.clip.fps or 1.0)
    return Encoded(kind, sampled if "video" in prefix else "", prefix)


@torch.no_grad()
def right(model: VideoLlama, asked: Sequence[tuple[Encoded | None, Talk]]) -> list[bool]:
    """For each question whether the greedy answer is, to the last letter and its end, the true one.

    One pass over the true answers tells: the greedy answer is the true one where each of its tokens is the likeliest
    after those before it. (For tokenizers that put no space in front, such as the box's.)
    """
    out: list[bool] = []
    stop = prompts.template(model.config.template).stop
    for first in range(0, len(asked), BATCH):
        part = asked[first : first + BATCH]
        answers = [model.tokenizer.encode(f" {t.answer}{stop}", add_special_tokens=False) for _, t in part]
        whole = [model.prompt(e, t.question).followed_by(ids) for (e, t), ids in zip(part, answers, strict=True)]
        given: dict[str, Any] = {"prompt": whole, **model.batched(whole, [e.prefix if e else {} for e, _ in part])}
        likeliest = model.run(given, ["logits"])["logits"].argmax(-1)
        out += [row[-len(ids) - 1 : -1].tolist() == ids for row, ids in zip(likeliest, answers, strict=True)]
    return out


def table(model: VideoLlama, seen: Sequence[Seen], seed: int = 0, conditions: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Rows {"condition", "question", "objects", "n", "right", "low", "high", "chance"}.

    right: share of answers that are right; low, high: its 95 % interval (Wilson; as if questions about one clip were of
    different clips). chance: what the commonest answer to this kind of question would get. objects: in the picture.
    """
    check_conditions(conditions)
    rows = []
    talks = [talk.about(s.made, np.random.default_rng([seed, i, 11])) for i, s in enumerate(seen)]
    for condition in tqdm(conditions or CONDITIONS, desc="asking", mininterval=2):
        draw = np.random.default_rng([seed, 12])
        asked: list[tuple[Encoded | None, Talk]] = []
        keys: list[tuple[str, int]] = []
        for s, questions in zip(seen, talks, strict=True):
            e = encoded(model, s, condition, draw)
            for t in questions:
                asked.append((e, t))
                keys.append((t.kind, len(s.made.things)))
        found = defaultdict(list)
        for key, (_, t), correct in zip(keys, asked, right(model, asked), strict=True):
            found[key].append((t, correct))
        for (kind, objects), results in sorted(found.items(), key=lambda row: (talk.KINDS.index(row[0][0]), row[0][1])):
            rows.append({"condition": condition, "question": kind, "objects": objects} | share(results))
    return rows


def share(results: Sequence[tuple[Talk, bool]]) -> dict[str, Any]:
    """Of answers that are right or not: how many, the share of right ones, its interval, and chance."""
    n, good = len(results), sum(correct for _, correct in results)
    low, high = wilson(good, n)
    return {"n": n, "right": good / n, "low": low, "high": high, "chance": _commonest([t for t, _ in results])}


def check_seed(seed: int) -> None:
    if seed < FIRST_SEED:
        raise VltError(f"seed {seed}: the box was trained on worlds of seeds below {FIRST_SEED}; give one from there on")


def check_conditions(conditions: Sequence[str]) -> None:
    for condition in conditions:
        if condition not in CONDITIONS:
            raise VltError(f"no condition {condition!r}; {nearest(condition, CONDITIONS)}")


def _commonest(talks: Sequence[Talk]) -> float:
    """Share of the commonest answer, apart from the names that it repeats from its question, and, where it takes both
    eyes and ears, from the shape, which ears alone tell."""
    plain = []
    for t in talks:
        known = {w for w in (*world.SHAPES, *world.COLOURS) if re.search(rf"\b{w}\b", t.question)}
        known |= set(world.SHAPES) if t.kind in ("match", "source colour") else set()
        plain.append(re.sub(rf"\b({'|'.join(known)})\b", "*", t.answer) if known else t.answer)
    return max(Counter(plain).values()) / len(plain)


def wilson(good: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share."""
    share, reach = good / n, z * z / n
    middle = (share + reach / 2) / (1 + reach)
    half = z * math.sqrt(share * (1 - share) / n + reach / (4 * n)) / (1 + reach)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def evaluate(model: VideoLlama, clips: int, seed: int, conditions: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The table on fresh clips of this seed, from 1000 on, written to mp4 and read back."""
    check_seed(seed)
    check_conditions(conditions)
    with tempfile.TemporaryDirectory() as folder:
        return table(model, watch(model, world.scenes(seed, clips), Path(folder)), seed, conditions)


Grid = tuple[list[str], list[tuple[str, int]], dict[tuple[str, str, int], dict[str, Any]]]


def _grid(rows: Sequence[dict[str, Any]]) -> Grid:
    """Conditions, (question, objects) pairs, and the row of each."""
    cells = {(row["condition"], row["question"], row["objects"]): row for row in rows}
    return list(dict.fromkeys(c for c, _, _ in cells)), list(dict.fromkeys((q, o) for _, q, o in cells)), cells


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text: a line for each kind of question, shares of right answers under each condition."""
    conditions, questions, cells = _grid(rows)
    lines = []
    for question, objects in questions:
        row = cells[conditions[0], question, objects]
        shares = [f"{cells[c, question, objects]['right']:.2f}" for c in conditions]
        lines.append([question, str(objects), str(row["n"]), *shares, f"{row['chance']:.2f}"])
    return as_table(["question", "objects", "n", *conditions, "chance"], lines)


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *lines))


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The same as a picture: light is right, dark is wrong, the last column is chance."""
    from matplotlib.figure import Figure

    conditions, questions, cells = _grid(rows)
    shares = [[cells[c, q, o]["right"] for c in conditions] + [cells[conditions[0], q, o]["chance"]] for q, o in questions]
    figure = Figure(figsize=(1.6 + 0.75 * len(shares[0]), 1.9 + 0.3 * len(shares)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for y, line in enumerate(shares):
        for x, share in enumerate(line):
            axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=8, color="black" if share > 0.6 else "white")
    axes.set_xticks(range(len(shares[0])), [*conditions, "chance"], rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(questions)), [f"{q}, {o} object{'s' * (o > 1)}" for q, o in questions], fontsize=9)
    axes.axvline(len(conditions) - 0.5, color="white", linewidth=3)
    figure.colorbar(image, ax=axes, label="answers that are right to the last letter", shrink=0.6)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise VltError(f"{path}: cannot be drawn ({error})") from error
