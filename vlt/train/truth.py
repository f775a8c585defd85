"""Do explanations point at the cause? In the small world it is known: which pixels are of the object that was asked about,
and which segment holds the sound. Methods x kinds of question, beside controls that must come out at chance."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import multiprocessing
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from tqdm.auto import tqdm

from vlt.errors import VltError
from vlt.explain.attribution import COMPARABLE, Attribution, attribute
from vlt.explain.faithfulness import ENOUGH, LEVEL, check_controls, faithfulness
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe import edits
from vlt.probe.trace import Trace, trace
from vlt.train import box, evaluate, talk, world
from vlt.train.pointing import judge
from vlt.train.talk import Talk
from vlt.train.world import Scene

LOOK, LISTEN = ("shape", "colour", "motion"), ("hear", "source")
# Of every so many clips the maps' faithfulness is measured, and the controls are explained.
_TESTED, _CONTROLLED = 4, 2


@dataclasses.dataclass(frozen=True)
class Way:
    """One way to explain. look, listen: the stage and the options where a question is about what is seen, and heard; None:
    not measured there. rather: the target is the word rather than what is true of the other object, or the next voice."""

    method: str
    look: tuple[str, dict[str, Any]] | None = ("frames", {})
    listen: tuple[str, dict[str, Any]] | None = ("spectrograms", {})
    rather: bool = False


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
    """A question that the model answers rightly, and where the cause is. run: as it is explained. branch: on which heat is
    judged. word: of the answer, that is explained; rather: than which. cause [frame, row, column] or [segment]: how much
    of each cell of the grid is of it, 0 to 1; distractor: of the thing that was not asked about, on pictures. number: of the
    scene."""

    kind: str
    control: str
    run: Trace
    branch: str
    word: str
    rather: str
    cause: np.ndarray
    distractor: np.ndarray | None
    number: int


def cases(model: VideoLlama, scenes: Sequence[Scene], folder: Path, i: int) -> Iterator[Case]:
    """Of a scene, whose file is in the folder, one question of every kind, where the answer is right, and would be another
    of the other thing (two things may move alike); of every second scene the controls too."""
    made, stranger = scenes[i], box.newborn(0).eval().requires_grad_(False)
    nn.Module.to(stranger, model.device)
    clip, draw = Clip(folder / f"{i}.mp4"), np.random.default_rng([made.seed, 11])
    thing = int(draw.integers(len(made.things)))
    asked = [t for t in talk.seen(made, draw) if t.kind in LOOK and _about(t, made, thing)]
    asked += [t for t in talk.heard(made) if t.kind in LISTEN]
    for t in asked:
        run = trace(model, clip, t.question)
        word, rather = _words(t.kind, made, thing)
        if run.answer.text == t.answer and word != rather:
            yield from _with_controls(stranger, scenes, i, t, thing, run)


def _about(asked: Talk, made: Scene, thing: int) -> bool:
    known = made.things[thing]
    return (known.colour if asked.kind == "shape" else known.shape) in asked.question


def _with_controls(
    stranger: VideoLlama, scenes: Sequence[Scene], i: int, asked: Talk, thing: int, run: Trace
) -> Iterator[Case]:
    made = scenes[i]
    looks = asked.kind in LOOK
    seen, heard = _seen(made, run), np.array(made.heard, dtype=float)
    pictures: dict[str, Any] = {"branch": "video", "cause": seen[thing], "distractor": seen[1 - thing]}
    sound: dict[str, Any] = {"branch": "audio", "cause": heard, "distractor": None}
    asked_about, other = (pictures, sound) if looks else (sound, pictures)
    word, rather = _words(asked.kind, made, thing)
    case = Case(asked.kind, "model", run, word=word, rather=rather, number=i, **asked_about)
    yield case
    if i % _CONTROLLED:
        return
    unknown = trace(stranger, run.clip, asked.question, answer=asked.answer)
    yield dataclasses.replace(case, control="random weights", run=unknown)
    if not looks and (swapped := _swapped(run, scenes, i)) is not None:
        again, sounding = swapped
        word, rather = _words(asked.kind, sounding, thing)
        yield dataclasses.replace(case, control="sound swapped", run=again, word=word, rather=rather)
    yield dataclasses.replace(case, control="other branch", **other)


def _words(kind: str, made: Scene, thing: int) -> tuple[str, str]:
    """The word of the answer that is explained, and another that might stand there."""
    if kind in LOOK:
        return getattr(made.things[thing], kind), getattr(made.things[1 - thing], kind)
    word, other = str(made.voice), _next(made.voice)
    return (word, other) if kind == "hear" else (world.SHAPE_OF[word], world.SHAPE_OF[other])


def _next(voice: str | None) -> str:
    voices = list(world.VOICES)
    return voices[(voices.index(str(voice)) + 1) % len(voices)]


def _swapped(run: Trace, scenes: Sequence[Scene], i: int) -> tuple[Trace, Scene] | None:
    """The same pictures with the sound of the next clip that sounds otherwise and elsewhere, and that clip's scene; None
    where it is not answered rightly. The cause stays where the sound was before: now nothing is to be found there."""
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


def compare(
    model: VideoLlama,
    clips: int,
    seed: int = 1000,
    ways: Sequence[str] = (),
    controls: int = ENOUGH,
    processes: int = 1,
    quiet: bool = False,
) -> pd.DataFrame:
    """A row for every kind of question, what is explained and way: n maps; the means of `judge`, "x low" and "x high" their
    95 % intervals (Wilson's of pointing and beats, normal ones else); deletion, insertion and gain less the mean of
    `controls` random maps', and beats: the share of the tested maps that are true by `vlt.faithfulness` (of maps that know
    nothing 0.05 to 0.08; controls 0: not measured); error: the median of |what the heat's sum misses| / |what all places
    bring|, where a method promises completeness; forwards and backwards of the language model and seconds, of one map;
    distractor, without interval: on pictures, how often the hottest place is of the thing that was not asked about (of ways
    that only see that something is there, as often as of the other; squares and tubes may be of both); asked about a sound,
    of the control "other branch", cause and distractor are a thing by lot and the other one; share, without interval: of
    the control "other branch", how much of the heat of all frames and segments, each summed and without its sign, is on the
    branch that was not asked about (of methods whose heat on both can be compared).

    Of every clip, with two objects and one sound, one question of every kind, where the model answers rightly; of every
    fourth clip faithfulness, of every second the controls too. ways: of `WAYS`, by default all. processes: clips that are
    explained at a time; the rows are the same, but for the seconds. Interrupted (Ctrl-C), it returns what is done.
    """
    evaluate.check_seed(seed)
    if controls:
        check_controls(controls)
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
    if not any(rows.values()):
        raise VltError("no question was answered rightly: there is nothing to explain")
    return _table(pd.DataFrame([row for _, some in sorted(rows.items()) for row in some]))


def _each(
    model: VideoLlama, work: Callable[..., Any], count: int, processes: int
) -> Generator[tuple[int, list[dict[str, Any]]]]:
    """i and work(model, i) for every i, as they come."""
    if processes == 1:
        yield from ((i, work(model, i)) for i in range(count))
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=_begin, initargs=(model,)) as pool:
        of = {pool.submit(_in_process, work, i): i for i in range(count)}
        try:
            for done in as_completed(of):
                yield of[done], done.result()
        finally:  # interrupted, or failed: the rest is not begun
            pool.shutdown(cancel_futures=True)


_given: dict[str, VideoLlama] = {}  # to a process of its own, once


def _begin(model: VideoLlama) -> None:
    _given["model"] = model


def _in_process(work: Callable[..., Any], i: int) -> list[dict[str, Any]]:
    return list(work(_given["model"], i))


def _explained(
    model: VideoLlama, i: int, scenes: Sequence[Scene], folder: Path, ways: Sequence[str], controls: int
) -> list[dict[str, Any]]:
    asked: dict[tuple[Trace, str], float] = {}
    return [row for case in cases(model, scenes, folder, i) for way in ways for row in _judged(case, way, controls, asked)]


def _judged(case: Case, way: str, controls: int, asked: dict[tuple[Trace, str], float]) -> list[dict[str, Any]]:
    """asked: of a run and a way, how much heat there is on the branch that the question is about, for the control "other
    branch", which comes later."""
    how = WAYS[way]
    where = how.look if case.branch == "video" else how.listen
    if where is None:
        return []
    target: Any = (case.word, case.rather) if how.rather else case.word
    found = attribute(case.run, where[0], how.method, target, progress=False, batch=32, **where[1])
    told = {"question": case.kind, "explained": case.control, "way": way}
    cost = {"forwards": found.forwards, "backwards": found.backwards, "seconds": found.seconds}
    heat = float(np.abs(found.heat.values.reshape(len(found.heat), -1).sum(1)).sum())
    if case.control == "model":
        asked[case.run, way] = heat
        if found.error == found.error:
            cost["error"] = abs(found.error) / max(abs(found.score - found.score_without), 1e-30)
        cost |= _faithful(case, found, controls)
    elif case.control == "other branch" and how.method in COMPARABLE and (case.run, way) in asked:
        cost["share"] = heat / max(heat + asked[case.run, way], 1e-30)
    judged = [judge(found.heat.values, of, where[1].get("cells", {})) for of in (case.cause, case.distractor) if of is not None]
    beside = {"distractor": judged[1]["pointing"]} if len(judged) > 1 else {}
    return [told | judged[0] | beside | cost]


def _faithful(case: Case, found: Attribution, controls: int) -> dict[str, float]:
    if case.number % _TESTED or not controls:
        return {}
    true = faithfulness(found, steps=5, controls=controls, seed=case.number, progress=False)
    less = true.table["value"] - true.table["random"]
    return {measure: float(less[measure]) for measure in ("deletion", "insertion", "gain")} | {"beats": float(true.true)}


def _table(rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.sort_values("question", key=lambda kinds: kinds.map([*LOOK, *LISTEN].index), kind="stable")
    out = []
    for names, group in rows.groupby(["question", "explained", "way"], sort=False):
        row: dict[str, Any] = dict(zip(("question", "explained", "way"), names, strict=True)) | {"n": len(group)}
        for measure in group.columns[3:]:
            values = group[measure].dropna()
            if values.empty:
                continue
            row[measure] = float(values.median() if measure == "error" else values.mean())
            if measure == "beats":
                row["tested"] = len(values)
            if measure in ("pointing", "beats"):
                bounds = evaluate.wilson(row[measure] * len(values), len(values))
                row |= dict(zip((f"{measure} low", f"{measure} high"), bounds, strict=True))
            elif measure in ("mass", "rank", "deletion", "insertion", "gain"):
                half = 1.96 * float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                row |= {f"{measure} low": row[measure] - half, f"{measure} high": row[measure] + half}
        out.append(row)
    return pd.DataFrame(out)


def markdown(table: pd.DataFrame) -> str:
    """Two tables as text. How often each way points at the cause, by kind of question, and at the thing that was not asked
    about, what share of its maps is true by `vlt.faithfulness`, and its cost; then the controls, asked to look and to
    listen (on pictures: at the thing / at the other thing), and what share of all heat lies on the branch that was not asked
    about. Chance is that of the rows above it."""
    own = table[table["explained"] == "model"]
    kinds = list(dict.fromkeys(own["question"]))
    told = [f"true (n {int(own.groupby('way')['tested'].sum().max())})"] if "beats" in own else []
    lines = []
    for ways in _alike(own):
        for way in ways:
            rows = own[own["way"] == way].set_index("question")
            tested = rows[rows["beats"].notna()] if told else rows[:0]
            beats = [f"{np.average(tested['beats'], weights=tested['tested']):.2f}"] if len(tested) else ["-"] * len(told)
            cost = [*(f"{rows[name].mean():.0f}" for name in ("forwards", "backwards")), f"{rows['seconds'].mean():.1f}"]
            points = [*_by_kind(rows["pointing"], kinds), _mean(rows, "distractor")]
            lines.append([way, *points, f"{rows['rank'].mean():.2f}", *beats, *cost])
        chance = own[own["way"].isin(ways)].groupby("question")["chance"].mean()
        lines.append(["*chance*", *_by_kind(chance, kinds), "", "0.50", *[f"{LEVEL}"] * len(told), "", "", ""])
    n = own.groupby("question")["n"].max()
    head = ["way", *(f"{k} (n {int(n[k])})" for k in kinds), "other thing", "rank", *told, "forwards", "backwards", "seconds"]
    out = evaluate.as_table(head, lines)
    rest = table[table["explained"] != "model"]
    return out if rest.empty else f"{out}\n\n{_controls(rest, _alike(own))}"


def _by_kind(values: pd.Series, kinds: Sequence[str]) -> list[str]:
    return [f"{values[kind]:.2f}" if kind in values.index else "-" for kind in kinds]


def _alike(own: pd.DataFrame) -> list[list[str]]:
    """Ways in their order, those together that would get the same by chance."""
    chance = own.pivot_table("chance", "way", "question")
    out: list[list[str]] = []
    for way in dict.fromkeys(own["way"]):
        same = out and (chance.loc[way] - chance.loc[out[-1][0]]).abs().max() < 1e-9
        out = [*out[:-1], [*out[-1], way]] if same else [*out, [way]]
    return out


def _mean(rows: pd.DataFrame, measure: str) -> str:
    """Of all maps of the rows together."""
    rows = rows[rows[measure].notna()] if measure in rows else rows[:0]
    return f"{np.average(rows[measure], weights=rows['n']):.2f}" if len(rows) else "-"


def _pair(part: pd.DataFrame) -> str:
    return ": thing / other thing" if _mean(part, "distractor") != "-" else ""


def _controls(rest: pd.DataFrame, groups: Sequence[Sequence[str]]) -> str:
    sorts = list(dict.fromkeys(rest["explained"]))
    asked = {"looking": rest["question"].isin(LOOK), "listening": rest["question"].isin(LISTEN)}
    parts = {
        f"{sort}, {name}{_pair(part)} (n {int(part.groupby('way')['n'].sum().max())})": part
        for sort in sorts
        for name, of in asked.items()
        if len(part := rest[of & (rest["explained"] == sort)])
    }

    def points(part: pd.DataFrame) -> str:
        other = _mean(part, "distractor")
        return _mean(part, "pointing") + ("" if other == "-" else f" / {other}")

    lines = []
    for ways in groups:
        for way in ways:
            pointing = [points(part[part["way"] == way]) for part in parts.values()]
            shares = [_mean(rest[of & (rest["way"] == way)], "share") for of in asked.values()]
            lines.append([way, *pointing, *shares])
        chances = [_mean(part[part["way"].isin(ways)], "chance") for part in parts.values()]
        lines.append(["*chance*", *chances, "", ""])
    return evaluate.as_table(["way", *parts, "heat on sound, looking", "heat on pictures, listening"], lines)
