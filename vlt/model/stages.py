"""The table of stages: what each is, its axes, and what it is computed from. Everything that lists stages reads it.

clip ──► frames ─► patches ─► image_queries ─► frame_tokens ─► video_queries ─► video_prefix ─┐
  └────► spectrograms ─► audio_features ─► segment_tokens ─► audio_queries ─► audio_prefix ───┤
question ─► prompt ──────────────────────────────────────────────────────────────────────────┴► prefix ─► logits ─► answer
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from vlt.errors import VltError, nearest
from vlt.model.config import VideoLlamaConfig


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage. axes: their names, in order; none where the value is not a tensor. needs: what it is computed from
    (`prefix` needs only those of its branches that the prompt has a place for)."""

    name: str
    about: str
    axes: tuple[str, ...]
    needs: tuple[str, ...]


_ROWS = (
    ("clip", "the opened file", (), ()),
    ("question", "what is asked", (), ()),
    ("frames", "sampled, resized, normalised frames", ("clip", "frame", "channel", "height", "width"), ("clip",)),
    ("patches", "ViT output after ln_vision", ("clip", "frame", "patch", "vision width"), ("frames",)),
    ("image_queries", "image Q-Former, frame by frame", ("clip", "frame", "image query", "Q-Former width"), ("patches",)),
    ("frame_tokens", "image queries + frame position", ("clip", "frame x image query", "Q-Former width"), ("image_queries",)),
    ("video_queries", "Video Q-Former", ("clip", "video query", "Q-Former width"), ("frame_tokens",)),
    ("video_prefix", "linear to the language model", ("clip", "video query", "LLM width"), ("video_queries",)),
    ("spectrograms", "segments of sound as mel spectrograms", ("clip", "segment", "channel", "mel", "time"), ("clip",)),
    ("audio_features", "ImageBind's embedding of each segment", ("clip", "segment", "joint width"), ("spectrograms",)),
    ("segment_tokens", "audio features + segment position", ("clip", "segment", "joint width"), ("audio_features",)),
    ("audio_queries", "Audio Q-Former", ("clip", "audio query", "audio Q-Former width"), ("segment_tokens",)),
    ("audio_prefix", "linear to the language model", ("clip", "audio query", "LLM width"), ("audio_queries",)),
    ("prompt", "the chat around the question, as token ids", (), ("clip", "question")),
    ("prefix_mask", "where the prefix is not padding", ("clip", "token"), ("prompt",)),
    (
        "prefix",
        "the prompt's embeddings with both prefixes in it",
        ("clip", "token", "LLM width"),
        ("prompt", "video_prefix", "audio_prefix"),
    ),
    ("logits", "the language model", ("clip", "token", "vocabulary"), ("prefix", "prefix_mask")),
)

STAGES: dict[str, Stage] = {name: Stage(name, about, axes, needs) for name, about, axes, needs in _ROWS}

VIDEO = ("frames", "patches", "image_queries", "frame_tokens", "video_queries", "video_prefix")
AUDIO = ("spectrograms", "audio_features", "segment_tokens", "audio_queries", "audio_prefix")

# The stages that are tensors: what a person reads, edits and gives.
TENSOR_STAGES = tuple(stage.name for stage in STAGES.values() if stage.axes)


def stage(name: str) -> Stage:
    if not isinstance(name, str):
        raise VltError(f"a stage is named by a string, not by {name!r}")
    if name not in STAGES:
        raise VltError(f"no stage {name!r}; {nearest(name, STAGES)}; `vlt stages` lists all")
    return STAGES[name]


def branch(name: str) -> str | None:
    """The branch that a stage belongs to, "video" or "audio", if to one."""
    return "video" if name in VIDEO else "audio" if name in AUDIO else None


def axis_sizes(config: VideoLlamaConfig) -> dict[tuple[str, str], int | range]:
    """(stage, axis) -> its size, or the sizes it may have. Axes that are not here have any size above 0."""
    vision, text, queries = config.vision_config, config.text_config, config.num_image_queries
    frames = range(1, config.max_frames + 1)
    by_axis: dict[str, int | range] = {
        "frame": frames,
        "height": vision.image_size,
        "width": vision.image_size,
        "patch": (vision.image_size // vision.patch_size) ** 2 + 1,
        "vision width": vision.hidden_size,
        "image query": queries,
        "Q-Former width": config.image_qformer_config.hidden_size,
        "frame x image query": range(queries, queries * config.max_frames + 1, queries),
        "video query": config.num_video_queries,
        "LLM width": text.hidden_size,
        "vocabulary": text.vocab_size,
    }
    if config.has_ears:
        by_axis |= {
            "segment": range(1, config.max_segments + 1),
            "joint width": config.imagebind_config.joint_size,
            "audio query": config.num_audio_queries,
            "audio Q-Former width": config.audio_qformer_config.hidden_size,
        }
        if config.imagebind_config.audio is not None:
            by_axis |= {"mel": config.imagebind_config.audio.num_mels, "time": config.imagebind_config.audio.num_times}
    sizes = {(s.name, axis): by_axis[axis] for s in STAGES.values() for axis in s.axes if axis in by_axis}
    sizes |= {("frames", "channel"): 3, ("spectrograms", "channel"): 1}
    video_width = config.video_qformer_config.hidden_size
    return sizes | {("video_queries", "Q-Former width"): video_width}


def check(name: str, value: Tensor, config: VideoLlamaConfig) -> None:
    """Raises `VltError` where a tensor does not have its stage's axes, or is not of numbers."""
    axes, sizes = stage(name).axes, axis_sizes(config)
    expected = [sizes.get((name, axis)) for axis in axes]
    came = tuple(value.shape)
    fits = len(came) == len(axes) and all(_allows(want, size) for want, size in zip(expected, came, strict=True))
    if not fits:
        words = ", ".join(f"{axis}{_words(want)}" for axis, want in zip(axes, expected, strict=True))
        raise VltError(f"stage {name!r} was given with shape {list(came)}; expected [{words}]")
    if name == "prefix_mask":
        if not ((value == 0) | (value == 1)).all():
            raise VltError("stage 'prefix_mask' was given with values other than 0 and 1")
    elif not value.is_floating_point():
        raise VltError(f"stage {name!r} was given as {value.dtype}; expected floating point numbers")
    elif not value.isfinite().all():
        raise VltError(f"stage {name!r} was given with numbers that are not finite (nan or infinity)")


def _allows(want: int | range | None, size: int) -> bool:
    if want is None:
        return size > 0
    return size in want if isinstance(want, range) else size == want


def _words(want: int | range | None) -> str:
    if want is None:
        return ""
    if isinstance(want, range):
        step = f" in steps of {want.step}" if want.step > 1 else ""
        return f" {want.start} to {want[-1]}{step}"
    return f" {want}"


def needs(name: str, branches: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    """What a stage is computed from: the prefix, of the branches that the prompt has places for."""
    if name != "prefix":
        return stage(name).needs
    unused = {"video_prefix", "audio_prefix"} - {f"{branch}_prefix" for branch in branches()}
    return tuple(n for n in stage(name).needs if n not in unused)


def plan(given: Iterable[str], want: Iterable[str], branches: Callable[[], Sequence[str]]) -> list[str]:
    """The stages to compute, in order, so that each follows what it needs and nothing else is touched. branches: asked
    only where the language model's prefix is to be made.

    Raises `VltError` for an unknown name, for a wanted stage that needs something which was not given, and for a
    given stage that nothing wanted depends on: it would be ignored in silence.
    """
    given, want = list(given), list(want)
    for name in [*given, *want]:
        stage(name)
    order: list[str] = []
    used: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        used.add(name)
        if name in given or name in order:
            return
        if not stage(name).needs:
            way = " <- ".join((*path, name))
            hint = "; a prompt also needs its clip: give 'clip' beside the rest, or 'prompt'" if "prompt" in path else ""
            raise VltError(f"{path[0] if path else name!r} cannot be computed: {name!r} was not given ({way}){hint}")
        for need in needs(name, branches):
            visit(need, (*path, name))
        order.append(name)

    for name in want:
        visit(name, ())
    if idle := [name for name in given if name not in used]:
        raise VltError(
            f"given {', '.join(map(repr, idle))} would change nothing: what is wanted ({', '.join(want)}) does not depend "
            "on it, or only through a stage that was given too; leave it out, or the other"
        )
    return order


def describe(config: VideoLlamaConfig) -> Mapping[str, str]:
    """For every tensor stage, its axes with this model's sizes, as text."""
    sizes = axis_sizes(config)
    return {name: ", ".join(f"{axis}{_words(sizes.get((name, axis)))}" for axis in stage(name).axes) for name in TENSOR_STAGES}
