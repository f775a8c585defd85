"""What the box's language model reads before it sees or hears: the world in words.

Where soft tokens will stand, there stand captions. The lessons get harder: first to repeat what was said, then to recall
one fact by another, then the chat. Without that order, telling which of two things was asked about is never learnt.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlt.inputs import prompt as prompts
from vlt.inputs import video
from vlt.inputs.prompt import Slot, Text
from vlt.model.video_llama import VideoLlama
from vlt.train import lessons, supervision, talk, world
from vlt.train.supervision import IGNORED, Learnt, Lesson
from vlt.train.talk import Talk
from vlt.train.world import COLOURS, MOTIONS, N_SEGMENTS, SHAPES, VOICE_OF, VOICES, Scene, Sound, Thing

# Shares of all steps that the lessons take.
CURRICULUM = (("repeat", 0.08), ("recall", 0.27), ("chat", 0.65))
REHEARSED = 0.3
FACTS = ("colour", "shape", "motion", "existence", "match")


def imagined(draw: np.random.Generator, n_things: int | None = None) -> Scene:
    """A scene to be talked about only: nothing in it has a place."""
    count = (1, 2, 2, 2)[draw.integers(4)] if n_things is None else n_things
    if n_things is None and draw.random() < 0.02:
        count = 0
    shapes, colours = draw.permutation(SHAPES)[:count], draw.permutation(COLOURS)[:count]
    things = tuple(
        Thing(str(s), str(c), str(draw.choice(MOTIONS)), 0.0, 0.0, 0.0, 0.0) for s, c in zip(shapes, colours, strict=True)
    )
    voice = VOICE_OF[str(draw.choice(shapes))] if count and draw.random() < 0.6 else str(draw.choice(VOICES))
    segments = sorted(draw.choice(N_SEGMENTS, size=int(draw.integers(0, 4)), replace=False).tolist())
    sounds = tuple(Sound(voice, 2.0 * segment, 1.0, 1.0) for segment in segments)
    return Scene(0, things, sounds, voice not in [VOICE_OF[str(s)] for s in shapes])


def lesson(name: str, draw: np.random.Generator) -> Lesson:
    """A text of one kind of lesson. What was learnt by recalling is gone again soon, so it goes on beside the chat."""
    if name == "chat" and draw.random() < REHEARSED:
        name = "recall"
    return {"repeat": repeated, "recall": recalled, "chat": chat}[name](draw)


def repeated(draw: np.random.Generator) -> Lesson:
    """Some words in any order, and again: what followed a word before will follow it now."""
    said = draw.permutation((*SHAPES, *COLOURS, *MOTIONS, *VOICES))[: int(draw.integers(5, 13))].tolist()
    return (" ".join([*said, said[0]]), Learnt("".join(f" {word}" for word in said[1:])))


def recalled(draw: np.random.Generator) -> Lesson:
    """Some things, and of each the same fact."""
    made = imagined(draw, int(draw.integers(1, 4)))
    key = FACTS[draw.integers(len(FACTS))]
    if key == "match":
        asked = [t for t in talk.seen_and_heard(made) if t.kind != "both"]
        return (f"{talk.sound_caption(made)} {talk.caption(made)}", Learnt(f" {asked[draw.integers(len(asked))].answer}"))
    out: list[str | Learnt] = [talk.caption(made)]
    if key == "existence":
        there = [thing.shape for thing in made.things]
        for shape in draw.permutation(SHAPES)[:4].tolist():
            out += [f" The {shape} is", Learnt(" there." if shape in there else " not there.")]
        return tuple(out)
    for i in draw.permutation(len(made.things)):
        thing = made.things[i]
        start, end = {
            "colour": (f" The {thing.shape} is", f" {thing.colour}."),
            "shape": (f" It is a {thing.colour}", f" {thing.shape}."),
            "motion": (f" The {thing.shape}", f" {talk.moves(thing)}."),
        }[key]
        out += [start, Learnt(end)]
    return tuple(out)


def chat(draw: np.random.Generator) -> Lesson:
    """Questions and answers as the model will meet them, in the prompts of training and of use."""
    made, way = imagined(draw), draw.random()
    branches = (("video",), ("audio",), ("audio", "video"))[draw.integers(3)]
    if branches == ("video",):
        made = dataclasses.replace(made, sounds=())  # what has no sound is silent, and what has no frames is not to be seen
    elif branches == ("audio",):
        made = dataclasses.replace(made, things=())
    if way < 0.08:
        branch = branches[0]
        return lessons.filled(supervision.caption(lessons.told(made, branch), branch), made)
    if way < 0.1:
        known = talk.known()[draw.integers(len(VOICES))]
        return _dialogue([known], (known.question,))
    asked = talk.about(made, draw)
    if branches != ("audio", "video") and draw.random() < 0.8:
        asked = [t for t in asked if t.branches == branches]
    if "video" in branches and draw.random() < 0.15:
        asked = talk.absent(made, draw)
    chosen = [talk.reworded(asked[i], draw) for i in draw.permutation(len(asked))[: int(draw.integers(1, 4))]]
    if way < 0.4:
        branch = branches[0]
        first = f"</Video> {_sampled(draw) if draw.random() < 0.5 else ''}{chosen[0].question}"
        turns = [(("<Video>", Slot(branch), first), chosen[0].answer), *(((t.question,), t.answer) for t in chosen[1:])]
        if branches == ("audio", "video"):
            turns[0] = (prompts.message(chosen[0].question, "video", branches), chosen[0].answer)
        return lessons.filled(supervision.conversation(turns, "vicuna"), made)
    return lessons.filled(_dialogue(chosen, prompts.message(chosen[0].question, "video", branches, _sampled(draw))), made)


def _dialogue(talks: list[Talk], message: Text) -> Lesson:
    """As `prompts.Template.chat` writes it, the answers to be learnt."""
    out: list[str | Slot | Learnt] = ["###Human: ", *message]
    for i, t in enumerate(talks):
        if i:
            out += ["Human: ", t.question]
        out += ["###Assistant:", Learnt(f" {t.answer}###")]
    return tuple(out)


def _sampled(draw: np.random.Generator) -> str:
    """The sentence on frame times, of a clip of some length."""
    n_frames = 128 if draw.random() < 0.7 else int(draw.integers(16, 400))
    return prompts.frame_times(video.uniform_indices(n_frames, video.N_FRAMES).tolist(), float(world.FPS))


class Texts(torch.utils.data.Dataset):
    """The lessons in their order; an item is a text's token ids and, for each, whether it is to be learnt."""

    def __init__(self, tokenizer: Any, seed: int, count: int) -> None:
        self.tokenizer, self.seed, self.count = tokenizer, seed, count
        self.ends = np.cumsum([share for _, share in CURRICULUM]) * count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = CURRICULUM[min(int(np.searchsorted(self.ends, index, side="right")), len(CURRICULUM) - 1)][0]
        prompt = supervision.tokenise(lesson(name, np.random.default_rng([self.seed, index, 13])), self.tokenizer)
        ids, labels = prompt.parts[0], (prompt.labels or ((),))[0]
        return torch.tensor(ids), torch.tensor(labels)


def together(items: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
    """One batch of texts, filled up on the right."""
    pad = nn.utils.rnn.pad_sequence
    ids = pad([ids for ids, _ in items], batch_first=True)
    labels = pad([labels for _, labels in items], batch_first=True, padding_value=IGNORED)
    length = torch.tensor([len(ids) for ids, _ in items])
    return {"ids": ids, "mask": (torch.arange(ids.shape[1]) < length[:, None]).long(), "labels": labels}


class Reader(nn.Module):
    """The language model learns to read."""

    def __init__(self, model: VideoLlama) -> None:
        super().__init__()
        self.language_model = model.language_model
        self.requires_grad_(True)

    def forward(self, ids: Tensor, mask: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.language_model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False)
        return {"loss": out.loss}
