"""The model in the box: where it lies, and which questions it was taught. `vlt train box` makes it; data/box/README.md says
what it can do and cannot."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from vlt.errors import VltError

# In an installed wheel it lies in the package, in a checkout in data/.
PLACES = (Path(__file__).parents[1] / "box", Path(__file__).parents[2] / "data" / "box")

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")

# Of every kind, ways to ask. The first is the plain one: it is what accuracy is measured with.
ASKED = {
    "caption": ("What do you see?", "Describe what you see.", "What is in the video?", "What can you see?"),
    "number": ("How many objects are there?", "How many objects do you see?", "How many things are there?"),
    "existence": ("Is there a {shape}?", "Do you see a {shape}?", "Can you see a {shape}?"),
    "shape": (
        "What shape is the {colour} object?",
        "What is the {colour} object?",
        "Which shape does the {colour} object have?",
    ),
    "colour": ("What colour is the {shape}?", "What color is the {shape}?", "Which colour does the {shape} have?"),
    "motion": ("How does the {shape} move?", "Where does the {shape} move?", "What does the {shape} do?"),
    "hear": ("What do you hear?", "What can you hear?", "Which sound do you hear?"),
    "how often": ("How often does it sound?", "How many times does it sound?", "How many sounds do you hear?"),
    "source": ("What makes this sound?", "Which object makes this sound?", "Where does the sound come from?"),
    "when": ("When does it sound?", "When do you hear it?", "When is the sound?"),
    "match": ("Do you see what makes this sound?", "Can you see what makes this sound?"),
    "source colour": ("What colour is the object that sounds?", "What color is the object that sounds?"),
    "both": ("What do you see, and what do you hear?", "Describe what you see and hear.", "What happens in the video?"),
    "voice": ("What does a {shape} sound like?", "Which sound does a {shape} make?"),
}


def folder() -> Path:
    for place in PLACES:
        if (place / "config.json").is_file():
            return place
    raise VltError(f"the model in the box is not there (looked in {' and '.join(map(str, PLACES))})")


@cache
def kinds() -> dict[str, str]:
    """Every question that is taught, in all its wordings, as it is written and in small letters -> its kind."""
    names = [{"shape": shape, "colour": colour} for shape in SHAPES for colour in COLOURS]
    asked = {way.format(**n): kind for kind, ways in ASKED.items() for way in ways for n in names}
    return asked | {question.lower(): kind for question, kind in asked.items()}


def limits(model: str, clip: Path, question: str) -> str:
    """What stands between the box and a true answer, where that can be told; "" of another model. model: its name, or the
    folder that it is from."""
    if model != "box" and not (model and Path(model).resolve() in [place.resolve() for place in PLACES]):
        return ""
    said = []
    if not clip.with_suffix(".json").is_file():  # the truth, which lies beside clips of its world
        said.append("it knows one small world of shapes and voices, and speaks of any clip as if it were of that world")
    if question.strip() not in kinds():
        said.append("it has not learnt this question")
    return f"the box: {'; '.join(said)} (what it knows: data/box/README.md)" if said else ""
