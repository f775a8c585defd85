"""How the small world looks: things on a varied ground, with distractors, noise and sometimes blur."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from vlt.train.world import Thing

RGB = {
    "red": (215, 45, 45),
    "green": (45, 170, 65),
    "blue": (55, 90, 230),
    "yellow": (235, 215, 60),
    "purple": (160, 60, 190),
    "white": (240, 240, 240),
}
_FINE = 8  # sub-pixels along each side of a pixel, for smooth edges


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners on or in the unit circle."""
    if shape == "square":
        return [(s * math.cos(a), s * math.sin(a)) for s in (1.0,) for a in np.pi * (np.arange(4) / 2 + 0.25)]
    if shape == "triangle":
        return [(math.cos(a), math.sin(a)) for a in np.pi * (np.arange(3) * 2 / 3 - 0.5)]
    if shape == "star":
        return [
            (r * math.cos(a), r * math.sin(a))
            for i in range(10)
            for r in ((1.0, 0.42)[i % 2],)
            for a in (math.pi * (i / 5 - 0.5),)
        ]
    w = 0.33
    return [(-w, -1), (w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1), (-w, 1), (-w, w), (-1, w), (-1, -w), (-w, -w)]


def cover(thing: Thing, second: float, side: int) -> tuple[slice, slice, Float[np.ndarray, "height width"]]:
    """Which part of the picture a thing touches, and how much of each of its pixels it covers, 0..1."""
    x, y = (c * side for c in thing.at(second))
    reach = thing.radius * side + 1
    left, top = max(int(x - reach), 0), max(int(y - reach), 0)
    right, bottom = min(int(x + reach) + 2, side), min(int(y + reach) + 2, side)
    fine = Image.new("L", ((right - left) * _FINE, (bottom - top) * _FINE))
    centre, scale = ((x - left) * _FINE, (y - top) * _FINE), thing.radius * side * _FINE
    if thing.shape == "circle":
        box = [centre[0] - scale, centre[1] - scale, centre[0] + scale, centre[1] + scale]
        ImageDraw.Draw(fine).ellipse(box, fill=255)
    else:
        corners = [(centre[0] + u * scale, centre[1] + v * scale) for u, v in _outline(thing.shape)]
        ImageDraw.Draw(fine).polygon(corners, fill=255)
    share = np.asarray(fine.reduce(_FINE), dtype=np.float32) / 255
    return slice(top, bottom), slice(left, right), share


def masks(
    things: Sequence[Thing], seconds: Sequence[float] | np.ndarray, side: int
) -> Bool[np.ndarray, "frame thing side side"]:
    out = np.zeros((len(seconds), len(things), side, side), dtype=bool)
    for i, second in enumerate(seconds):
        for j, thing in enumerate(things):
            rows, columns, share = cover(thing, float(second), side)
            out[i, j, rows, columns] = share > 0.5
    return out


def draw(
    things: Sequence[Thing], seconds: Sequence[float] | np.ndarray, side: int, seed: int
) -> UInt8[np.ndarray, "frame side side 3"]:
    random = np.random.default_rng([seed, 2])
    ground = _ground(random, side)
    paint = [np.clip(np.array(RGB[t.colour]) + random.normal(0, 10, 3), 0, 255) for t in things]
    level, blurred = random.uniform(0, 5), random.random() < 0.2
    out = np.empty((len(seconds), side, side, 3), dtype=np.uint8)
    for i, second in enumerate(seconds):
        picture = ground.copy()
        for thing, colour in zip(things, paint, strict=True):
            rows, columns, share = cover(thing, float(second), side)
            picture[rows, columns] += share[..., None] * (colour - picture[rows, columns])
        if blurred:
            picture = _softened(picture)
        noise = np.random.default_rng([seed, 3, int(second * 1000)]).normal(0, level, picture.shape)
        out[i] = np.clip(picture + noise, 0, 255).astype(np.uint8)
    return out


def _ground(random: np.random.Generator, side: int) -> Float[np.ndarray, "side side 3"]:
    """A dull slope with blotches, and up to five grey specks or strokes that mean nothing."""
    y, x = np.mgrid[:side, :side] / side
    angle, low, high = random.uniform(0, 2 * np.pi), *random.uniform(25, 110, 2)
    slope = low + (high - low) * ((x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle) + 0.7) / 1.4
    blotches = Image.fromarray(random.normal(0, 10, (4, 4)).astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
    grey = slope + np.asarray(blotches)
    ground = grey[..., None] + random.normal(0, 8, 3)
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(random.integers(0, 6))):
        at, size = random.uniform(0, side, 2), random.uniform(0.01, 0.03) * side
        shade = (int(random.uniform(60, 170)),) * 3
        if random.random() < 0.5:
            pen.ellipse([*(at - size), *(at + size)], fill=shade)
        else:
            pen.line([*at, *(at + random.normal(0, 4 * size, 2))], fill=shade, width=max(round(side / 64), 1))
    return np.asarray(image, dtype=np.float32)


def _softened(picture: Float[np.ndarray, "side side 3"]) -> Float[np.ndarray, "side side 3"]:
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = (padded[:-2] + 2 * padded[1:-1] + padded[2:]) / 4
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) / 4
