"""Makes the clips in this folder: a dozen moments of vlt's small world, each an mp4 with its truth beside it as JSON.

    python data/clips/make.py

Every clip is the first scene, counted from seed 0, that is what its name says.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from tqdm.auto import tqdm

from vlt.train import world
from vlt.train.world import Scene

CRF = 30  # small files; what is in them stays plain


def thing(made: Scene, i: int, shape: str, colour: str, motion: str) -> bool:
    t = made.things[i]
    return (t.shape, t.colour, t.motion) == (shape, colour, motion)


CLIPS: dict[str, tuple[dict[str, object], Callable[[Scene], bool]]] = {
    "bell": ({"n_things": 1, "n_sounds": 2, "counterfactual": False}, lambda m: thing(m, 0, "circle", "red", "right")),
    "buzz": ({"n_things": 1, "n_sounds": 1, "counterfactual": False}, lambda m: thing(m, 0, "square", "blue", "up")),
    "chirp": ({"n_things": 1, "n_sounds": 3, "counterfactual": False}, lambda m: thing(m, 0, "triangle", "yellow", "left")),
    "click": ({"n_things": 1, "n_sounds": 1, "counterfactual": False}, lambda m: thing(m, 0, "star", "white", "down")),
    "hum": ({"n_things": 1, "n_sounds": 2, "counterfactual": False}, lambda m: thing(m, 0, "cross", "green", "still")),
    "counterfactual_bell": (
        {"n_things": 1, "n_sounds": 2, "counterfactual": True},
        lambda m: m.voice == "bell" and thing(m, 0, "square", "purple", "right"),
    ),
    "counterfactual_two": (
        {"n_things": 2, "n_sounds": 1, "counterfactual": True},
        lambda m: m.voice == "hum" and {t.motion for t in m.things} == {"left", "right"},
    ),
    "silent": ({"n_things": 1, "n_sounds": 0}, lambda m: thing(m, 0, "star", "yellow", "up")),
    "silent_two": ({"n_things": 2, "n_sounds": 0}, lambda m: {t.motion for t in m.things} == {"up", "still"}),
    "sound_only": ({"n_things": 0, "n_sounds": 2}, lambda m: m.voice == "chirp"),
    "two_bell": (
        {"n_things": 2, "n_sounds": 1, "counterfactual": False},
        lambda m: m.voice == "bell" and {t.motion for t in m.things} == {"left", "still"},
    ),
    "two_click": (
        {"n_things": 2, "n_sounds": 3, "counterfactual": False},
        lambda m: m.voice == "click" and {t.motion for t in m.things} == {"down", "right"},
    ),
}


def main() -> None:
    for name, (fixed, wanted) in tqdm(CLIPS.items()):
        made = next(made for made in (world.scene(seed, **fixed) for seed in count()) if wanted(made))
        world.write(made, Path(__file__).with_name(f"{name}.mp4"), crf=CRF)


if __name__ == "__main__":
    main()
