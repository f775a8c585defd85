"""A small audio-visual world whose truth is known: what moves where in the picture, what sounds when, and what makes it.

A scene lasts 16 seconds, so that the original's eight segments of two seconds tile it and its eight frames lie two
seconds apart. One or two things move or stay; each shape has a voice of its own. A sound keeps inside one segment. In a
counterfactual scene the voice is that of a shape that is not there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Bool, UInt8

from vlt.errors import VltError
from vlt.inputs import audio
from vlt.model.box import COLOURS, SHAPES
from vlt.train import sights, voices

SECONDS = 16.0
N_SEGMENTS = audio.N_SEGMENTS
SEGMENT = SECONDS / N_SEGMENTS  # seconds
FPS = 8  # of files
SIDE = 128  # pixels of files, height and width

MOTIONS = ("left", "right", "up", "down", "still")
VOICES = ("bell", "buzz", "chirp", "click", "hum")
VOICE_OF = dict(zip(SHAPES, VOICES, strict=True))
SHAPE_OF = {voice: shape for shape, voice in VOICE_OF.items()}

_DIRECTION = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}


@dataclasses.dataclass(frozen=True)
class Thing:
    """Something to be seen. Lengths are in sides of the picture: x to the right, y down, of its middle at 0 seconds.

    radius: from its middle to its outermost point. speed: sides per second.
    """

    shape: str
    colour: str
    motion: str
    radius: float
    x: float
    y: float
    speed: float

    def at(self, second: float) -> tuple[float, float]:
        dx, dy = _DIRECTION[self.motion]
        return self.x + dx * self.speed * second, self.y + dy * self.speed * second


@dataclasses.dataclass(frozen=True)
class Sound:
    """Something to be heard: a voice, when it starts, and how long it lasts, in seconds. pitch: times the usual one."""

    voice: str
    start: float
    seconds: float
    pitch: float

    @property
    def segment(self) -> int:
        """The segment that it lies in, of 0..7."""
        return int(self.start // SEGMENT)


@dataclasses.dataclass(frozen=True)
class Scene:
    """One moment of the world. seed: of its background, distractors and noise. counterfactual: the voice is none of its
    things' own."""

    seed: int
    things: tuple[Thing, ...]
    sounds: tuple[Sound, ...]
    counterfactual: bool

    @property
    def voice(self) -> str | None:
        """All sounds of a scene are of one voice; None in silence."""
        return self.sounds[0].voice if self.sounds else None

    @property
    def source(self) -> int | None:
        """Which of `things` sounds; None in silence, and where what sounds is not to be seen."""
        shapes = [thing.shape for thing in self.things]
        shape = SHAPE_OF.get(self.voice or "")
        return shapes.index(shape) if shape in shapes else None

    @property
    def heard(self) -> tuple[bool, ...]:
        """For each segment, whether there is sound in it."""
        return tuple(i in {sound.segment for sound in self.sounds} for i in range(N_SEGMENTS))

    def frames(self, seconds: Sequence[float] | np.ndarray, side: int) -> UInt8[np.ndarray, "frame side side 3"]:
        """The picture at these times."""
        return sights.draw(self.things, seconds, side, self.seed)

    def masks(self, seconds: Sequence[float] | np.ndarray, side: int) -> Bool[np.ndarray, "frame thing side side"]:
        """Which pixels belong to each thing: those that it covers by more than half."""
        return sights.masks(self.things, seconds, side)

    def waveform(self) -> np.ndarray:
        """[1, sample] float32 in -1..1 at 16 kHz, with a faint noise of the room."""
        return voices.waveform(self.sounds, SECONDS, self.seed)

    def truth(self) -> dict[str, Any]:
        """All that is known of the scene, as JSON carries it."""
        return {
            "seed": self.seed,
            "seconds": SECONDS,
            "things": [dataclasses.asdict(thing) for thing in self.things],
            "sounds": [dataclasses.asdict(sound) | {"segment": sound.segment} for sound in self.sounds],
            "voice": self.voice,
            "source": self.source,
            "heard": list(self.heard),
            "counterfactual": self.counterfactual,
        }

    @classmethod
    def of_truth(cls, truth: dict[str, Any]) -> Scene:
        """The scene that a truth file describes, exactly."""
        sounds = [{key: value for key, value in sound.items() if key != "segment"} for sound in truth["sounds"]]
        things, made = tuple(Thing(**t) for t in truth["things"]), tuple(Sound(**s) for s in sounds)
        return cls(truth["seed"], things, made, truth["counterfactual"])


def scene(seed: int, n_things: int | None = None, n_sounds: int | None = None, counterfactual: bool | None = None) -> Scene:
    """A scene from a seed. What is not said is drawn: one or two things, none to three sounds, and of the scenes with
    sound one in three counterfactual."""
    draw = np.random.default_rng([seed, 1])
    n_things = int(draw.integers(1, 3)) if n_things is None else n_things
    n_sounds = int(draw.integers(0, 4)) if n_sounds is None else n_sounds
    if not 0 <= n_things <= 2 or not 0 <= n_sounds <= 3:
        raise VltError(f"a scene has 0 to 2 things and 0 to 3 sounds; {n_things} and {n_sounds} were asked for")
    things = _things(draw, n_things)
    drawn = bool(draw.random() < 1 / 3)
    other = bool(n_sounds) and (not things or (drawn if counterfactual is None else counterfactual))
    seen = [thing.shape for thing in things]
    voice = VOICE_OF[str(draw.choice([s for s in SHAPES if (s not in seen) == other or not seen]))]
    return Scene(seed, things, _sounds(draw, n_sounds, voice), other)


def scenes(seed: int, count: int, **fixed: Any) -> Iterator[Scene]:
    """`count` scenes; those of different seeds share none. fixed: as for `scene`."""
    for i in range(count):
        yield scene(seed * 1_000_000 + i, **fixed)


def _things(draw: np.random.Generator, count: int) -> tuple[Thing, ...]:
    """Things of different shape and colour that stay inside the picture and never meet."""
    shapes, colours = draw.permutation(SHAPES)[:count], draw.permutation(COLOURS)[:count]
    while True:
        things = tuple(thing(draw, str(shape), str(colour)) for shape, colour in zip(shapes, colours, strict=True))
        if count < 2 or _apart(*things):
            return things


def thing(draw: np.random.Generator, shape: str, colour: str) -> Thing:
    """Something that moves or stays, and keeps inside the picture."""
    motion, radius = str(draw.choice(MOTIONS)), float(draw.uniform(0.12, 0.18))
    speed = float(draw.uniform(0.4, 0.55)) / SECONDS if motion != "still" else 0.0
    low, high = radius + 0.02, 0.98 - radius
    start = []
    for step in _DIRECTION[motion]:
        travel = step * speed * SECONDS
        start.append(float(draw.uniform(low - min(travel, 0), high - max(travel, 0))))
    return Thing(shape, colour, motion, radius, start[0], start[1], speed)


def _apart(a: Thing, b: Thing) -> bool:
    for second in np.linspace(0, SECONDS, 33):
        (ax, ay), (bx, by) = a.at(second), b.at(second)
        if (ax - bx) ** 2 + (ay - by) ** 2 < (a.radius + b.radius + 0.02) ** 2:
            return False
    return True


def _sounds(draw: np.random.Generator, count: int, voice: str) -> tuple[Sound, ...]:
    segments = sorted(draw.choice(N_SEGMENTS, size=count, replace=False).tolist())
    return tuple(sound(draw, voice, segment) for segment in segments)


def sound(draw: np.random.Generator, voice: str, segment: int) -> Sound:
    """A voice, somewhere inside a segment."""
    seconds = float(draw.uniform(1.0, 1.5))
    start = segment * SEGMENT + float(draw.uniform(0.1, SEGMENT - 0.1 - seconds))
    return Sound(voice, start, seconds, float(draw.uniform(0.85, 1.18)))


def write(made: Scene, path: Path, crf: int = 23, bit_rate: int = 64_000, silence: bool = False) -> None:
    """The scene as H.264/AAC mp4 at `path`, and its truth beside it as JSON. crf: 0 is lossless, 51 the worst.

    A scene without things is written as sound only; one without sounds without a sound stream, or, with `silence`, with
    one that holds the noise of the room.
    """
    temporary = path.with_name(f".{path.name}")
    try:
        with av.open(str(temporary), "w", format="mp4") as container:
            # x264 encodes otherwise with one thread than with more, and would take as many as the machine has.
            options = {"crf": str(crf), "threads": "2"}
            video = container.add_stream("libx264", rate=FPS, options=options) if made.things else None
            sound = container.add_stream("aac", rate=voices.RATE, layout="mono") if made.sounds or silence else None
            if video is not None:
                video.width = video.height = SIDE
                video.pix_fmt = "yuv420p"
                for i, picture in enumerate(made.frames(np.arange(int(SECONDS * FPS)) / FPS, SIDE)):
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = i, Fraction(1, FPS)
                    container.mux(video.encode(frame))
                container.mux(video.encode(None))
            if sound is not None:
                sound.bit_rate = bit_rate
                wave = made.waveform()
                for start in range(0, wave.shape[1], 1024):
                    piece = np.ascontiguousarray(wave[:, start : start + 1024])
                    block = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
                    block.sample_rate, block.pts, block.time_base = voices.RATE, start, Fraction(1, voices.RATE)
                    container.mux(sound.encode(block))
                container.mux(sound.encode(None))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    path.with_suffix(".json").write_text(json.dumps(made.truth(), indent=1) + "\n")
