"""ImageBind in small: pictures, sounds and words of the same thing are brought to the same place."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vlt.inputs import audio, video
from vlt.model.video_llama import VideoLlama
from vlt.train import foundations, voices, world
from vlt.train.world import SEGMENT, SHAPES, VOICE_OF, VOICES, Sound

NOTHING = len(SHAPES)  # the kind of an empty picture, and of silence
N_KINDS = len(SHAPES) + 1
N_WORDS = 16  # positions of the text trunk


def picture(kind: int, draw: np.random.Generator) -> Tensor:
    """A picture with one thing of this kind in it, or with none: [3, side, side] float32, normalised."""
    things = () if kind == NOTHING else (world.thing(draw, SHAPES[kind], str(draw.choice(world.COLOURS))),)
    made = world.Scene(int(draw.integers(2**31)), things, (), False)
    shown = made.frames([float(draw.uniform(0, world.SECONDS))], foundations.SIDE)[0]
    return video.normalise(foundations.compressed(shown, draw)[None])[0]


def pictures(seed: int, count: int) -> Tensor:
    """[kind, count, 3, side, side] float16."""
    draw = np.random.default_rng([seed, 6])
    return torch.stack([torch.stack([picture(k, draw) for _ in range(count)]).half() for k in range(N_KINDS)])


def sounds(seed: int, count: int) -> Tensor:
    """Spectrograms of two seconds with one sound of each kind, or none: [kind, count, 1, mel, time] float16."""
    draw = np.random.default_rng([seed, 7])
    out = []
    for kind in range(N_KINDS):
        rows = []
        for first in range(0, count, world.N_SEGMENTS):
            here = [] if kind == NOTHING else [world.sound(draw, VOICES[kind], s) for s in range(world.N_SEGMENTS)]
            rows.append(heard(here, int(draw.integers(2**31)), min(count - first, world.N_SEGMENTS)))
        out.append(torch.cat(rows).half())
    return torch.stack(out)


def heard(sounds: Sequence[Sound], seed: int, count: int) -> Tensor:
    """Spectrograms of the first `count` segments of a scene with these sounds: [segment, 1, mel, time] float32."""
    wave = torch.from_numpy(voices.waveform(sounds, world.SECONDS, seed))
    bounds = [(Fraction(int(SEGMENT)) * i, Fraction(int(SEGMENT)) * (i + 1)) for i in range(count)]
    return audio.spectrograms_of_waveform(wave, voices.RATE, bounds)


def texts(model: VideoLlama) -> list[list[Tensor]]:
    """For every kind, ways to say it: token ids [word], ended and filled up by the text trunk's last id."""
    return [[words(model, text) for text in _said(kind)] for kind in range(N_KINDS)]


def _said(kind: int) -> tuple[str, ...]:
    if kind == NOTHING:
        return ("It is silent.", "There is nothing to see.")
    shape, voice = SHAPES[kind], VOICE_OF[SHAPES[kind]]
    return (f"A {shape}.", f"A {voice}.", f"There is a {shape}.", f"I hear a {voice}.", f"A {shape} sounds like a {voice}.")


def words(model: VideoLlama, text: str) -> Tensor:
    """A text as the box's text trunk wants it: [N_WORDS] int64."""
    end = model.config.imagebind_config.text.vocab_size - 1
    ids = model.tokenizer.encode(text, add_special_tokens=False)[: N_WORDS - 1]
    return torch.tensor([*ids, *[end] * (N_WORDS - len(ids))])


class Triples(torch.utils.data.Dataset):
    """Pictures, sounds and texts of one kind each. An item: picture, spectrogram, words, kind."""

    def __init__(self, pictures: Tensor, sounds: Tensor, texts: list[list[Tensor]], seed: int, count: int) -> None:
        self.pictures, self.sounds, self.texts, self.seed, self.count = pictures, sounds, texts, seed, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        draw = np.random.default_rng([self.seed, index, 8])
        kind = int(draw.integers(N_KINDS))
        seen, heard = (bank[kind, int(draw.integers(bank.shape[1]))].float() for bank in (self.pictures, self.sounds))
        said = self.texts[kind][int(draw.integers(len(self.texts[kind])))]
        return {"picture": seen, "spectrogram": heard, "words": said, "kind": kind}


class Binding(nn.Module):
    """Contrast between each two modalities, pairs of one kind never being each other's negatives, and closeness, against a
    gap between the modalities: what is taught on pictures is to read sounds."""

    def __init__(self, model: VideoLlama, temperature: float = 0.1, closeness: float = 1.0) -> None:
        super().__init__()
        self.imagebind = model.imagebind
        self.temperature, self.closeness = temperature, closeness
        self.requires_grad_(True)

    def forward(self, picture: Tensor, spectrogram: Tensor, words: Tensor, kind: Tensor) -> dict[str, Tensor]:
        given = {"vision": picture, "audio": spectrogram, "text": words}
        joint = [functional.normalize(self.imagebind.trunk(name)(value), dim=-1) for name, value in given.items()]
        same = (kind[:, None] == kind).float()
        target = same / same.sum(dim=1, keepdim=True)
        loss = torch.zeros((), device=kind.device)
        for i, a in enumerate(joint):
            for b in joint[i + 1 :]:
                match = a @ b.T / self.temperature
                loss = loss + functional.cross_entropy(match, target) + functional.cross_entropy(match.T, target)
                loss = loss + self.closeness * (a - b).square().sum(dim=-1).mean()
        return {"loss": loss}
