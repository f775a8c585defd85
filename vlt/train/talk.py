"""What is said in the small world: captions, questions, and their true answers, as sentences.

An answer repeats what it was asked about: with two things in the picture, the question names one by its shape or colour.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from vlt.train.world import SHAPE_OF, SHAPES, Scene, Thing

TIMES = {1: "once", 2: "twice", 3: "three times"}
NUMBERS = ("no objects", "one object", "two objects")
WHEN = ("at the beginning", "in the middle", "at the end")


@dataclasses.dataclass(frozen=True)
class Talk:
    """A question of some kind and its true answer. branches: what one must see or hear to know it."""

    kind: str
    question: str
    answer: str
    branches: tuple[str, ...]


def caption(made: Scene) -> str:
    """What is to be seen: every thing with its colour, its shape and what it does."""
    if not made.things:
        return "there is nothing to see."
    return " and ".join(f"a {t.colour} {t.shape} {_moves(t)}" for t in made.things) + "."


def sound_caption(made: Scene) -> str:
    """What is to be heard."""
    return f"a {made.voice} sounds {TIMES[len(made.sounds)]}." if made.sounds else "it is silent."


def _moves(thing: Thing) -> str:
    return "stays still" if thing.motion == "still" else f"moves {thing.motion}"


def when(made: Scene) -> str:
    """In which part of the clip its only sound is: segments 0 to 2, 3 and 4, 5 to 7."""
    segment = made.sounds[0].segment
    return WHEN[0 if segment < 3 else 1 if segment < 5 else 2]


def seen(made: Scene, draw: np.random.Generator) -> list[Talk]:
    """Questions that can be answered by looking."""
    out = [
        Talk("caption", "what do you see?", caption(made), ("video",)),
        Talk("number", "how many objects are there?", _number(len(made.things)), ("video",)),
    ]
    asked = (
        str(draw.choice([t.shape for t in made.things])) if made.things and draw.random() < 0.5 else str(draw.choice(SHAPES))
    )
    there = asked in [t.shape for t in made.things]
    answer = f"yes, there is a {asked}." if there else f"no, there is no {asked}."
    out.append(Talk("existence", f"is there a {asked}?", answer, ("video",)))
    for thing in made.things:
        by_colour, by_shape = f"the {thing.colour} object", f"the {thing.shape}"
        out += [
            Talk("shape", f"what shape is {by_colour}?", f"{by_colour} is a {thing.shape}.", ("video",)),
            Talk("colour", f"what colour is {by_shape}?", f"{by_shape} is {thing.colour}.", ("video",)),
            Talk("motion", f"how does {by_shape} move?", f"{by_shape} {_moves(thing)}.", ("video",)),
        ]
    return out


def _number(count: int) -> str:
    return f"there {'is' if count == 1 else 'are'} {NUMBERS[count]}."


def heard(made: Scene) -> list[Talk]:
    """Questions that can be answered by listening. What makes a sound is the shape whose voice it is, seen or not."""
    if made.voice is None:
        return [
            Talk("hear", "what do you hear?", "i hear nothing.", ("audio",)),
            Talk("how often", "how often does it sound?", "it does not sound.", ("audio",)),
        ]
    out = [
        Talk("hear", "what do you hear?", f"i hear a {made.voice}.", ("audio",)),
        Talk("how often", "how often does it sound?", f"it sounds {TIMES[len(made.sounds)]}.", ("audio",)),
        Talk("source", "what makes this sound?", f"a {SHAPE_OF[made.voice]} makes this sound.", ("audio",)),
    ]
    if len(made.sounds) == 1:
        out.append(Talk("when", "when does it sound?", f"it sounds {when(made)}.", ("audio",)))
    return out


def seen_and_heard(made: Scene) -> list[Talk]:
    """Questions that need both."""
    if made.voice is None or not made.things:
        return []
    shape = SHAPE_OF[made.voice]
    if made.source is None:
        match, colour = f"no, a {shape} is not there.", "it is not there."
    else:
        match, colour = f"yes, the {shape} is there.", f"it is {made.things[made.source].colour}."
    return [
        Talk("match", "do you see what makes this sound?", match, ("video", "audio")),
        Talk("source colour", "what colour is the object that sounds?", colour, ("video", "audio")),
    ]


def about(made: Scene, draw: np.random.Generator) -> list[Talk]:
    """All questions that the scene has answers to."""
    return [*seen(made, draw), *heard(made), *seen_and_heard(made)]


def words(talks: Sequence[Talk]) -> set[str]:
    """The words that occur in them."""
    return {word for talk in talks for text in (talk.question, talk.answer) for word in re.findall(r"[a-z]+", text)}
