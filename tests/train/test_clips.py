"""The clips in the repository are what their truth files say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vlt.inputs.audio import LOG_MEL_MEAN, LOG_MEL_STD
from vlt.inputs.clip import Clip
from vlt.train.world import Scene

CLIPS = sorted((Path(__file__).parents[2] / "data" / "clips").glob("*.mp4"))


def test_there_are_a_dozen_of_every_kind() -> None:
    scenes = {p.stem: Scene.of_truth(json.loads(p.with_suffix(".json").read_text())) for p in CLIPS}
    assert len(scenes) == 12
    assert {s.voice for s in scenes.values()} == {"bell", "buzz", "chirp", "click", "hum", None}
    assert {len(s.things) for s in scenes.values()} == {0, 1, 2}
    assert {name for name, s in scenes.items() if s.counterfactual} == {
        "counterfactual_bell",
        "counterfactual_two",
        "sound_only",
    }
    assert {name for name, s in scenes.items() if not s.sounds} == {"silent", "silent_two"}


@pytest.mark.parametrize("path", CLIPS, ids=lambda path: path.stem)
def test_a_clip_shows_its_scene(path: Path) -> None:
    made, clip = Scene.of_truth(json.loads(path.with_suffix(".json").read_text())), Clip(path)
    assert clip.branches == ("video",) * bool(made.things) + ("audio",) * bool(made.sounds)
    if made.things:
        seconds = clip.frame_times[clip.frame_indices()]
        assert np.abs(clip.pixels(8, 128).astype(float) - made.frames(seconds, 128)).mean() < 6
    if made.sounds:
        spectrograms = clip.spectrograms(coverage="whole")[..., :198]  # the rest is padding
        power = (spectrograms * LOG_MEL_STD + LOG_MEL_MEAN).exp().mean(dim=(1, 2, 3))
        assert power[np.array(made.heard)].min() > 10 * power[~np.array(made.heard)].max()
