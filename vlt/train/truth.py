"""Do explanations point at the cause? In the small world it is known: which pixels are of the object that was asked about,
and which segment holds the sound. Methods x kinds of question, beside what must not find it."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn
from tqdm.auto import tqdm

from vlt.errors import VltError
from vlt.explain.attribution import COMPARABLE, Attribution, attribute
from vlt.explain.faithfulness import ENOUGH, check_controls, faithfulness
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe import edits
from vlt.probe.trace import Trace, trace
from vlt.train import box, evaluate, pointing, talk, world
from vlt.train.tables import LISTEN, LOOK, MODEL, OTHER, RANDOM, SWAPPED
from vlt.train.talk import Talk
from vlt.train.world import Scene

# Of every so many clips the maps' faithfulness is measured, and the checks are made.
_TESTED, _CHECKED = 4, 2


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to explain. look, listen: the stage and the options where a question is about what is seen, and heard; None:
    not measured there. rather: the target is the word rather than what is true of the other object, or the next voice."""

    method: str
    look: tuple[str, dict[str, Any]] | None = ("frames", {})
    listen: tuple[str, dict[str, Any]] | None = ("spectrograms", {})
    rather: bool = False

    @property
    def comparable(self) -> bool:
        """Can its heat on pictures be compared with that on sound? Smoothing leaves less of it, and is of pictures only."""
        smooth = any("smooth" in options for _, options in filter(None, (self.look, self.listen)))
        return self.method in COMPARABLE and not smooth


_SMOOTH: dict[str, Any] = {"look": ("patches", {"smooth": 0.7}), "listen": ("audio_features", {})}
_SQUARES = {"height": 16, "width": 16}
_TUBES = {"frame": 8, **_SQUARES}  # one window at a place of the picture, through all frames
_SEGMENTS = {"cells": {"mel": 10_000, "time": 10_000}}  # whole ones
_FEATURES: dict[str, Any] = {"look": ("patches", {}), "listen": ("audio_features", {})}

WAYS = {
    "saliency": Way("saliency"),
    "gradient x input": Way("gradient_x_input"),
    "smoothgrad": Way("smoothgrad"),
    "gradient shap": Way("gradient_shap"),
    "integrated gradients": Way("integrated_gradients"),
    "integrated gradients, features": Way("integrated_gradients", **_FEATURES),
    "integrated gradients, features, rather": Way("integrated_gradients", **_FEATURES, rather=True),
    "integrated gradients, features, rather, smooth": Way("integrated_gradients", **_SMOOTH, rather=True),
    "grad-cam": Way("grad_cam", **_FEATURES),
    "attention": Way("attention"),
    "rollout": Way("rollout"),
    "relevance": Way("relevance"),
    "occlusion": Way("occlusion", ("frames", {"cells": _SQUARES}), ("spectrograms", _SEGMENTS)),
    "occlusion, tubes, rather": Way("occlusion", ("frames", {"cells": _TUBES}), None, rather=True),
    "shapley sampling, tubes, rather": Way(
        "shapley_sampling", ("frames", {"cells": _TUBES, "n_samples": 10}), ("spectrograms", _SEGMENTS), rather=True
    ),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A question that the model answers rightly, and where the cause is. explained: one of `tables`. run: as it is
    explained. branch: on which heat is judged. word: of the answer, that is explained; rather: than which. cause [frame, row,
    column] or [segment]: how much of each cell of the grid is of it, 0 to 1, None where there is none; distractor: of the
    thing that was not asked about, of the segment that sounded before, or None; elsewhere [cause, ...]: of other clips.
    number: of the scene."""

    kind: str
    explained: str
    run: Trace
    branch: str
    word: str
    rather: str
    cause: np.ndarray | None
    distractor: np.ndarray | None
    elsewhere: np.ndarray
    number: int


def cases(model: VideoLlama, scenes: Sequence[Scene], folder: Path, i: int) -> Iterator[Case]:
    """Of a scene, whose file is in the folder, one question of every kind, where the answer is right, and would be another
    of the other thing (two things may move alike); of every second scene the checks too."""
    made, stranger = scenes[i], None
    if i % _CHECKED == 0:
        stranger = box.newborn(made.seed).eval().requires_grad_(False)  # another for every clip: each has tastes of its own
        nn.Module.to(stranger, model.device)
    clip, draw = Clip(folder / f"{i}.mp4"), np.random.default_rng([made.seed, 11])
    thing = int(draw.integers(len(made.things)))
    asked = [t for t in talk.seen(made, draw) if t.kind in LOOK and _about(t, made, thing)]
    asked += [t for t in talk.heard(made) if t.kind in LISTEN]
    for t in asked:
        run = trace(model, clip, t.question)
        word, rather = _words(t.kind, made, thing)
        if run.answer.text == t.answer and word != rather:
            yield from _with_checks(stranger, scenes, i, t, thing, run)


def _about(asked: Talk, made: Scene, thing: int) -> bool:
    known = made.things[thing]
    return (known.colour if asked.kind == "shape" else known.shape) in asked.question


def _with_checks(
    stranger: VideoLlama | None, scenes: Sequence[Scene], i: int, asked: Talk, thing: int, run: Trace
) -> Iterator[Case]:
    made, others = scenes[i], [other for k, other in enumerate(scenes) if k != i]
    looks = asked.kind in LOOK
    seen, heard = _seen(made, run), np.array(made.heard, dtype=float)
    # Asked about a sound, what makes it is what there is to find in the pictures, if it is there.
    found = thing if looks else made.source
    pair = (None, None) if found is None else (seen[found], seen[1 - found])
    pictures: dict[str, Any] = {"branch": "video", "elsewhere": np.concatenate([_seen(other, run) for other in others])}
    pictures |= dict(zip(("cause", "distractor"), pair, strict=True))
    sound: dict[str, Any] = {"branch": "audio", "elsewhere": np.array([other.heard for other in others], dtype=float)}
    sound |= {"cause": heard, "distractor": None}
    asked_about, other = (pictures, sound) if looks else (sound, pictures)
    word, rather = _words(asked.kind, made, thing)
    case = Case(asked.kind, MODEL, run, word=word, rather=rather, number=i, **asked_about)
    yield case
    if stranger is None:
        return
    yield dataclasses.replace(case, explained=OTHER[MODEL], **other)
    unknown = dataclasses.replace(case, explained=RANDOM, run=trace(stranger, run.clip, asked.question, answer=asked.answer))
    yield unknown
    yield dataclasses.replace(unknown, explained=OTHER[RANDOM], **other)
    if not looks and (swapped := _swapped(run, scenes, i)) is not None:
        again, sounding = swapped
        word, rather = _words(asked.kind, sounding, thing)
        told: dict[str, Any] = {"cause": np.array(sounding.heard, dtype=float), "distractor": heard}
        told["elsewhere"] = np.array([each.heard for each in others if each is not sounding], dtype=float)
        yield dataclasses.replace(case, explained=SWAPPED, run=again, word=word, rather=rather, **told)


def _words(kind: str, made: Scene, thing: int) -> tuple[str, str]:
    """The word of the answer that is explained, and another that might stand there. Of a motion, where the true answers
    about the two things part: at the verb, if one of them stays still."""
    if kind == "motion":
        both = [talk.moves(each).split() for each in (made.things[thing], made.things[1 - thing])]
        return next(((a, b) for a, b in zip(*both, strict=True) if a != b), (both[0][-1],) * 2)
    if kind in LOOK:
        return getattr(made.things[thing], kind), getattr(made.things[1 - thing], kind)
    word, other = str(made.voice), _next(made.voice)
    return (word, other) if kind == "hear" else (world.SHAPE_OF[word], world.SHAPE_OF[other])


def _next(voice: str | None) -> str:
    voices = list(world.VOICES)
    return voices[(voices.index(str(voice)) + 1) % len(voices)]


def _swapped(run: Trace, scenes: Sequence[Scene], i: int) -> tuple[Trace, Scene] | None:
    """The same pictures with the sound of the next clip that sounds otherwise and elsewhere, and that clip's scene; None
    where it is not answered rightly. Heat must follow the sound."""
    made = scenes[i]
    for j in (k % len(scenes) for k in range(i + 1, i + len(scenes))):
        other = scenes[j]
        if other.voice in (made.voice, None) or any(a and b for a, b in zip(made.heard, other.heard, strict=True)):
            continue
        again = run.rerun(edits.swap_sound(Clip(run.clip.path.with_name(f"{j}.mp4"))))
        right = {t.answer for t in talk.heard(other) if t.question == run.question}
        return (again, other) if again.answer.text in right else None
    return None


def _seen(made: Scene, run: Trace) -> np.ndarray:
    """How much of each patch of each frame each thing covers [thing, frame, row, column]."""
    seconds, patch = run["frames"].seconds.values, run.model.config.vision_config.patch_size
    side = run.model.config.vision_config.image_size
    masks = made.masks(seconds, side).swapaxes(0, 1).astype(float)
    return masks.reshape(*masks.shape[:2], side // patch, patch, side // patch, patch).mean((3, 5))


def maps(
    model: VideoLlama,
    clips: int,
    seed: int = 1000,
    ways: Sequence[str] = (),
    controls: int = ENOUGH,
    processes: int = 1,
    quiet: bool = False,
) -> pd.DataFrame:
    """Explains questions about `clips` new clips with two objects and one sound, in many ways, and judges every map;
    `tables.summary` counts them.

    Of every clip one question of every kind, where the model answers rightly, and would have to answer otherwise of the
    other thing; of every fourth clip faithfulness beside so many `controls` (0: it is not measured), of every second the
    checks: random weights, others for every clip; the branch that the question is not about; the sound of another clip.
    ways: of `WAYS`, by default all. processes: clips that are explained at a time; the rows are the same, but for the
    seconds. Interrupted (Ctrl-C), it returns what is done.

    A row for every map: clip, question, explained and way; what `pointing.judge` found; distractor: is the hottest place
    of the thing that was not asked about (of a swapped sound, where it was before); which: on exactly one of the two, is
    it the right one? elsewhere: is it of the causes of other clips, on average? heat: all of it, class tokens' too, each
    place without its sign, of ways whose heat on both branches can be compared, and brings: what the whole branch adds to
    the score; deletion, insertion, gain: less the mean of random maps'; beats: is it true by `vlt.faithfulness`? error:
    what the heat's sum misses, without its sign, in what all places bring, where a method promises completeness; forwards
    and backwards of the language model, and seconds.

    Raises `VltError` for seeds that the box was trained on, fewer than two clips, ways that are none, and a model that is
    not built as the box, whose random weights would be no counterpart.
    """
    evaluate.check_seed(seed)
    if controls:
        check_controls(controls)
    _check_model(model)
    if clips < 2:
        raise VltError(f"{clips} clips; needed are 2, as maps are judged by the causes of other clips too")
    if unknown := [way for way in ways if way not in WAYS]:
        raise VltError(f"no way {unknown[0]!r}; all: {'; '.join(WAYS)}")
    scenes = list(world.scenes(seed, clips, n_things=2, n_sounds=1))
    rows: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for i, made in enumerate(scenes):
            world.write(made, folder / f"{i}.mp4", silence=True)
        work = partial(_explained, scenes=scenes, folder=folder, ways=tuple(ways or WAYS), controls=controls)
        found = _each(model, work, len(scenes), processes)
        # interrupted, what is done by then is told: the table says of how many maps
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(found):
            for i, some in tqdm(found, total=len(scenes), desc="explaining", disable=quiet, unit="clip"):
                rows[i] = some
    if not rows:
        raise VltError("interrupted before the first clip was done: there is nothing to tell")
    if not any(rows.values()):
        raise VltError("no question was answered rightly: there is nothing to explain")
    return pd.DataFrame([row for _, some in sorted(rows.items()) for row in some])


def _check_model(model: VideoLlama) -> None:
    own, boxed = (
        f"{c.vision_config.image_size} pixels, patches of {c.vision_config.patch_size} and {c.text_config.vocab_size} words"
        for c in (model.config, box.newborn(0).config)
    )
    if own != boxed:
        raise VltError(f"the small world is asked of models built as the box, with {boxed}; this one has {own}")


def _each(
    model: VideoLlama, work: Callable[..., Any], count: int, processes: int
) -> Generator[tuple[int, list[dict[str, Any]]]]:
    """i and work(model, i) for every i, as they come."""
    if processes == 1:
        yield from ((i, work(model, i)) for i in range(count))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        processes, mp_context=spawn, initializer=_begin, initargs=(model, torch.get_num_threads())
    ) as pool:
        of = {pool.submit(_in_process, work, i): i for i in range(count)}
        try:
            for done in as_completed(of):
                yield of[done], done.result()
        finally:  # interrupted, or failed: the rest is not begun
            pool.shutdown(cancel_futures=True)


_given: dict[str, VideoLlama] = {}  # to a process of its own, once


def _begin(model: VideoLlama, threads: int) -> None:
    torch.set_num_threads(threads)  # sums of other threads differ in their last bits
    _given["model"] = model


def _in_process(work: Callable[..., Any], i: int) -> list[dict[str, Any]]:
    return list(work(_given["model"], i))


def _explained(
    model: VideoLlama, i: int, scenes: Sequence[Scene], folder: Path, ways: Sequence[str], controls: int
) -> list[dict[str, Any]]:
    return [row for case in cases(model, scenes, folder, i) for way in ways for row in _judged(case, way, controls)]


def _judged(case: Case, way: str, controls: int) -> list[dict[str, Any]]:
    """One row, or none where the way is not measured."""
    how = WAYS[way]
    where = how.look if case.branch == "video" else how.listen
    if where is None or (case.explained == OTHER[RANDOM] and not how.comparable):
        return []
    target: Any = (case.word, case.rather) if how.rather else case.word
    found = attribute(case.run, where[0], how.method, target, progress=False, batch=32, **where[1])
    row: dict[str, Any] = {"clip": case.number, "question": case.kind, "explained": case.explained, "way": way}
    row |= {"forwards": found.forwards, "backwards": found.backwards, "seconds": found.seconds}
    if how.comparable:
        row["heat"] = float(np.abs(found.heat.values).sum(dtype=float))
        row["brings"] = found.score - found.score_without
    if case.explained == MODEL:
        if found.error == found.error:
            row["error"] = abs(found.error) / max(abs(found.score - found.score_without), 1e-30)
        row |= _faithful(case, found, controls)
    if case.cause is None:
        return [row]
    heat, cells = found.heat.values, where[1].get("cells", {})
    row |= pointing.judge(heat, case.cause, cells)
    if len(case.elsewhere):
        row["elsewhere"] = float(np.mean([pointing.points(heat, cause, cells) for cause in case.elsewhere]))
    if case.distractor is not None:
        row["distractor"] = pointing.points(heat, case.distractor, cells)
        if (row["pointing"] > 0) != (row["distractor"] > 0):
            row["which"] = float(row["pointing"] > 0)
    return [row]


def _faithful(case: Case, found: Attribution, controls: int) -> dict[str, float]:
    if case.number % _TESTED or not controls:
        return {}
    true = faithfulness(found, steps=5, controls=controls, seed=case.number, progress=False)
    less = true.table["value"] - true.table["random"]
    return {measure: float(less[measure]) for measure in ("deletion", "insertion", "gain")} | {"beats": float(true.true)}
