"""The world's lessons for a branch: of each scene what the frozen parts below it make of it, and what is said.

What is frozen is computed once and kept: lessons give `image_queries` (of the eye) or `audio_features` (of ImageBind's
eye: the ears learn from pictures) in place of files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from vlt.inputs import prompt as prompts
from vlt.inputs import video
from vlt.inputs.prompt import Slot, Text
from vlt.model.video_llama import VideoLlama
from vlt.train import binding, foundations, supervision, talk, world
from vlt.train.supervision import Lesson
from vlt.train.world import Scene

INDICES = video.uniform_indices(
    int(world.SECONDS * world.FPS), video.N_FRAMES
)  # the frames that are sampled from the world's files
SAMPLED = prompts.frame_times(INDICES.tolist(), float(world.FPS))

# Kinds of question that are learnt slowly, and so many times more often asked.
SLOW = {"caption": 3.0, "motion": 4.0, "both": 3.0, "source colour": 2.0, "number": 2.0, "how often": 2.0, "when": 2.0}

Lessoner = Callable[[Scene, np.random.Generator], Lesson]


class Lessons(torch.utils.data.Dataset):
    """Lessons on scenes of which a stage is kept. stage: its name; kept: its values, one of each scene; lesson: what is
    said of a scene."""

    def __init__(
        self,
        scenes: Sequence[Scene],
        stage: str,
        kept: Callable[[int, np.random.Generator], Tensor],
        lesson: Lessoner,
        tokenizer: Any,
        seed: int,
        count: int,
    ) -> None:
        self.scenes, self.stage, self.kept, self.lesson = scenes, stage, kept, lesson
        self.tokenizer, self.seed, self.count = tokenizer, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        draw = np.random.default_rng([self.seed, index, 9])
        i = int(draw.integers(len(self.scenes)))
        prompt = supervision.tokenise(self.lesson(self.scenes[i], draw), self.tokenizer)
        return {"prompt": prompt, self.stage: self.kept(i, draw).float()}


def together(items: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """One batch of lessons, in one group."""
    return {"groups": [{k: [i[k] for i in items] if k == "prompt" else torch.stack([i[k] for i in items]) for k in items[0]}]}


@torch.no_grad()
def image_queries(model: VideoLlama, scenes: Sequence[Scene], seed: int) -> Tensor:
    """What the frozen eye sees of every scene: [scene, frame, image query, width] float16."""
    draw, out = np.random.default_rng([seed, 10]), []
    for made in tqdm(scenes, desc="looking at scenes", mininterval=2):
        shown = made.frames(INDICES / world.FPS, foundations.SIDE)
        shown = np.stack([foundations.compressed(picture, draw) for picture in shown])
        out.append(model.run({"frames": video.normalise(shown)[None]}, ["image_queries"])["image_queries"][0].half().cpu())
    return torch.stack(out)


@torch.no_grad()
def features(model: VideoLlama, bank: Tensor, modality: str) -> Tensor:
    """ImageBind's embeddings of pictures or sounds, kind by kind: [kind, count, joint width] float16."""
    trunk = model.imagebind.trunk(modality)
    return torch.stack(
        [torch.cat([trunk(part.to(model.device, model.dtype)) for part in kind.split(100)]).half().cpu() for kind in bank]
    )


def slides(features: Tensor, made: Scene, draw: np.random.Generator) -> Tensor:
    """What the ears learn from: eight embeddings, in each segment with sound of one picture of the thing whose voice it
    is, elsewhere of an empty picture: [segment, joint width]."""
    kinds = [world.VOICES.index(made.voice or "") if sounding else binding.NOTHING for sounding in made.heard]
    return torch.stack([features[kind, int(draw.integers(features.shape[1]))] for kind in kinds])


def told(made: Scene, branch: str) -> str:
    """What a branch takes in, in words: they stand in for its soft tokens where it has none yet."""
    return {"video": talk.caption, "audio": talk.sound_caption}[branch](made)


def caption(branch: str) -> Lessoner:
    return lambda made, draw: supervision.caption(told(made, branch), branch)


def instruction(branch: str) -> Lessoner:
    """One to three questions on a scene, as the original's conversations are written. Half of the time the prompt is the
    original's in training, where sound is said to be a video too; else it is worded as in use, for this branch alone, or
    for both, what the other takes in being told in words: the branches are never trained together."""

    def lesson(made: Scene, draw: np.random.Generator) -> Lesson:
        way = ("training", "training", "alone", "both", "both")[draw.integers(5)]
        asked = talk.heard(made) if branch == "audio" else talk.seen(made, draw)
        if way == "both":
            asked = talk.about(made, draw)
        elif branch == "video" and draw.random() < 0.1:
            asked = talk.absent(made, draw)
        weight = np.array([SLOW.get(t.kind, 1.0) for t in asked])
        order = draw.choice(len(asked), int(draw.integers(1, 4)), replace=False, p=weight / weight.sum())
        chosen = [talk.reworded(asked[i], draw) for i in order]
        question = chosen[0].question
        if way == "training":
            first: Text = ("<Video>", Slot(branch), f"</Video> {SAMPLED}{question}")
        elif way == "alone":
            first = prompts.message(question, "video" if branch == "video" else "sound", (branch,), SAMPLED)
        else:
            first = filled(prompts.message(question, "video", ("audio", "video")), made, keep=branch)
        turns = [(first, chosen[0].answer), *(((t.question,), t.answer) for t in chosen[1:])]
        return supervision.conversation(turns, "vicuna")

    return lesson


def filled(text: Any, made: Scene, keep: str = "") -> Any:
    """Words in place of the soft tokens of all branches but one."""
    return tuple(told(made, p.branch) if isinstance(p, Slot) and p.branch != keep else p for p in text)


def seen_lessons(model: VideoLlama, lesson: Lessoner, seed: int, scenes: int, count: int) -> Lessons:
    """Lessons on scenes to be looked at."""
    made = list(world.scenes(seed, scenes))
    kept = image_queries(model, made, seed)
    return Lessons(made, "image_queries", lambda i, draw: kept[i], lesson, model.tokenizer, seed, count)


def heard_lessons(model: VideoLlama, lesson: Lessoner, seed: int, scenes: int, count: int) -> Lessons:
    """Lessons on pictures that stand in for sound."""
    return slide_lessons(model, features(model, binding.pictures(seed, 500), "vision"), lesson, seed, scenes, count)


def slide_lessons(model: VideoLlama, bank: Tensor, lesson: Lessoner, seed: int, scenes: int, count: int) -> Lessons:
    """Lessons on ImageBind's embeddings from a bank [kind, count, joint width]."""
    made = list(world.scenes(seed, scenes))
    return Lessons(made, "audio_features", lambda i, draw: slides(bank, made[i], draw), lesson, model.tokenizer, seed, count)
