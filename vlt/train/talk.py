"""What is said in the small world: captions, questions, and their true answers, as sentences.

An answer repeats what it was asked about, and the value that is looked for stands right behind it: so a small language
model finds it. With two things in the picture, a question names one by its shape or colour.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from vlt.model.box import ASKED, COLOURS, SHAPES
from vlt.train.world import MOTIONS, SHAPE_OF, VOICE_OF, VOICES, Scene, Thing

TIMES = {1: "once", 2: "twice", 3: "three times"}
NUMBERS = ("no objects", "one object", "two objects")
WHEN = ("at the beginning", "in the middle", "at the end")

KINDS = tuple(ASKED)


@dataclasses.dataclass(frozen=True)
class Talk:
    """A question of some kind and its true answer. branches: what one must see or hear to know it."""

    kind: str
    question: str
    answer: str
    branches: tuple[str, ...]


def ordered(made: Scene) -> tuple[Thing, ...]:
    """Its things in the order in which they are spoken of: circle, square, triangle, star, cross."""
    return tuple(sorted(made.things, key=lambda thing: SHAPES.index(thing.shape)))


def caption(made: Scene) -> str:
    """What is to be seen: every thing with its colour, its shape and what it does."""
    if not made.things:
        return "There is nothing to see."
    return _sentence(" and ".join(f"a {t.colour} {t.shape} {moves(t)}" for t in ordered(made)))


def sound_caption(made: Scene) -> str:
    """What is to be heard, how often and when."""
    return f"A {made.voice} sounds {TIMES[len(made.sounds)]}, {when(made)}." if made.sounds else "It is silent."


def moves(thing: Thing) -> str:
    return "stays still" if thing.motion == "still" else f"moves {thing.motion}"


def when(made: Scene) -> str:
    """In which parts of the clip there is sound: segments 0 to 2, 3 and 4, 5 to 7."""
    parts = [WHEN[i] for i, segments in enumerate((range(3), range(3, 5), range(5, 8))) if any(made.heard[s] for s in segments)]
    return " and ".join([*([", ".join(parts[:-1])] if len(parts) > 1 else []), parts[-1]])


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _talk(kind: str, answer: str, branches: Sequence[str], **names: str) -> Talk:
    return Talk(kind, ASKED[kind][0].format(**names), answer, tuple(branches))


def seen(made: Scene, draw: np.random.Generator) -> list[Talk]:
    """Questions that can be answered by looking."""
    look = ("video",)
    number = len(made.things)
    there = [t.shape for t in made.things]
    asked = str(draw.choice(there)) if there and draw.random() < 0.5 else str(draw.choice(SHAPES))
    out = [
        _talk("caption", caption(made), look),
        _talk("number", f"There {'is' if number == 1 else 'are'} {NUMBERS[number]}.", look),
        _talk("existence", f"The {asked} is {'' if asked in there else 'not '}there.", look, shape=asked),
    ]
    for t in made.things:
        out += [
            _talk("shape", f"It is a {t.colour} {t.shape}.", look, colour=t.colour),
            _talk("colour", f"The {t.shape} is {t.colour}.", look, shape=t.shape),
            _talk("motion", f"The {t.shape} {moves(t)}.", look, shape=t.shape),
        ]
    return out


def absent(made: Scene, draw: np.random.Generator) -> list[Talk]:
    """Questions about things that are not there. They are taught, so that the model need not make something up."""
    shape = str(draw.choice([s for s in SHAPES if s not in [t.shape for t in made.things]]))
    colour = str(draw.choice([c for c in COLOURS if c not in [t.colour for t in made.things]]))
    return [
        _talk("shape", f"There is no {colour} object.", ("video",), colour=colour),
        _talk("colour", f"The {shape} is not there.", ("video",), shape=shape),
        _talk("motion", f"The {shape} is not there.", ("video",), shape=shape),
    ]


def heard(made: Scene) -> list[Talk]:
    """Questions that can be answered by listening. What makes a sound is the shape whose voice it is, seen or not."""
    listen = ("audio",)
    if made.voice is None:
        return [
            _talk("hear", "I hear nothing.", listen),
            _talk("how often", "It does not sound.", listen),
            _talk("source", "Nothing makes a sound.", listen),
            _talk("when", "It does not sound.", listen),
        ]
    return [
        _talk("hear", f"I hear a {made.voice}.", listen),
        _talk("how often", f"It sounds {TIMES[len(made.sounds)]}.", listen),
        _talk("source", f"A {SHAPE_OF[made.voice]} makes this sound.", listen),
        _talk("when", f"It sounds {when(made)}.", listen),
    ]


def seen_and_heard(made: Scene) -> list[Talk]:
    """Questions that need both."""
    both = ("video", "audio")
    out = [_talk("both", f"{caption(made)} {sound_caption(made)}", both)]
    if made.voice is None:
        return [*out, *(_talk(kind, "Nothing makes a sound.", both) for kind in ("match", "source colour"))]
    shape = SHAPE_OF[made.voice]
    if made.source is None:
        match, colour = f"The {shape} is not there.", f"The {shape} is not there."
    else:
        match, colour = f"The {shape} is there.", f"The {shape} is {made.things[made.source].colour}."
    return [*out, _talk("match", match, both), _talk("source colour", colour, both)]


def known() -> list[Talk]:
    """What is true of the whole world: whose voice is whose."""
    return [_talk("voice", f"A {shape} sounds like a {voice}.", (), shape=shape) for shape, voice in VOICE_OF.items()]


def about(made: Scene, draw: np.random.Generator) -> list[Talk]:
    """All plain questions that the scene has answers to."""
    return [*seen(made, draw), *heard(made), *seen_and_heard(made)]


def reworded(talk: Talk, draw: np.random.Generator) -> Talk:
    """The same question in one of the ways in which people ask it; now and then in small letters."""
    names = {
        name: word for name, words in (("shape", SHAPES), ("colour", COLOURS)) for word in words if _has(talk.question, word)
    }
    question = str(draw.choice(ASKED[talk.kind])).format(**names)
    return dataclasses.replace(talk, question=question.lower() if draw.random() < 0.2 else question)


def _has(text: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", text) is not None


def vocabulary() -> list[str]:
    """All words that may be asked or answered, as they are written in a sentence and at its beginning."""
    names = [{"shape": shape, "colour": colour} for shape in SHAPES for colour in COLOURS]
    texts = [way.format(**n) for ways in ASKED.values() for way in ways for n in names]
    texts += [*SHAPES, *COLOURS, *MOTIONS, *VOICES, *TIMES.values(), *NUMBERS, *WHEN]
    texts += [
        "A and moves stays There is are no nothing to see Yes The object I hear It does not sound sounds silent",
        "No makes this like but do it and",
    ]
    found = {word for text in texts for word in re.findall(r"[A-Za-z]+", text)}
    return sorted(found | {word.lower() for word in found} | {word.capitalize() for word in found})
