"""How the small world sounds: five voices that differ in more than pitch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float32

from vlt.inputs import audio

if TYPE_CHECKING:
    from vlt.train.world import Sound

RATE = audio.SAMPLE_RATE  # Hz
_LOUDNESS = 0.12  # root mean square of a voice


def _bell(time: np.ndarray, pitch: float) -> np.ndarray:
    """Partials that are no multiples of each other, dying away, struck twice a second."""
    since = time % 0.5
    partials = (np.sin(2 * np.pi * 620 * pitch * ratio * since) / (1 + i) for i, ratio in enumerate((1, 2.76, 5.4, 8.9)))
    return np.exp(-6 * since) * sum(partials)


def _buzz(time: np.ndarray, pitch: float) -> np.ndarray:
    """A saw-tooth: every multiple of a low tone."""
    return 2 * ((120 * pitch * time) % 1) - 1


def _chirp(time: np.ndarray, pitch: float) -> np.ndarray:
    """A tone that rises from 800 to 3,000 Hz, four times a second."""
    since = time % 0.25
    return np.sin(2 * np.pi * pitch * (800 * since + 0.5 * 2200 / 0.25 * since**2))


def _click(time: np.ndarray, pitch: float) -> np.ndarray:
    """Short bursts of noise, nine a second."""
    since = time % (1 / (9 * pitch))
    return np.exp(-400 * since) * np.random.default_rng(7).normal(size=len(time))


def _hum(time: np.ndarray, pitch: float) -> np.ndarray:
    """A low tone with one overtone, trembling."""
    phase = 2 * np.pi * (210 * pitch * time + 0.6 * np.sin(2 * np.pi * 5 * time))
    return np.sin(phase) + 0.4 * np.sin(2 * phase)


VOICES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "bell": _bell,
    "buzz": _buzz,
    "chirp": _chirp,
    "click": _click,
    "hum": _hum,
}


def waveform(sounds: Sequence[Sound], seconds: float, seed: int) -> Float32[np.ndarray, "1 sample"]:
    """The sounds in a faintly noisy room, in -1..1 at 16 kHz."""
    random = np.random.default_rng([seed, 4])
    wave = random.normal(0, 10 ** random.uniform(-4, -2.7), int(seconds * RATE))
    for sound in sounds:
        time = np.arange(int(sound.seconds * RATE)) / RATE
        voice = VOICES[sound.voice](time, sound.pitch)
        fade = np.clip(np.minimum(time, time[::-1]) / 0.02, 0, 1)
        first = int(sound.start * RATE)
        wave[first : first + len(time)] += fade * voice * (_LOUDNESS * random.uniform(0.7, 1.4) / np.sqrt(np.mean(voice**2)))
    return np.clip(wave, -1, 1).astype(np.float32)[None]
