"""Hearing learnt from pictures: in a file of its own, as it takes long, so that it runs beside the others."""

from __future__ import annotations

import dataclasses

import pytest

from vlt.model.video_llama import VideoLlama
from vlt.train import box, hearing

SHORT = {"al-1": (300, 32), "al-2": (200, 24)}  # steps and batch: half and a twentieth of the examples that the box had


def test_ears_learn_from_pictures(boxed: VideoLlama, monkeypatch: pytest.MonkeyPatch) -> None:
    """The audio branch, from nothing, with the box's ImageBind and language model: taught on pictures, asked about sound."""
    short = []
    for step in box.steps():
        if step.name in SHORT:
            steps, batch = SHORT[step.name]
            schedule = dataclasses.replace(step.schedule, steps=steps, batch=batch, rate=2e-3, warmup=steps // 10)
            short.append(dataclasses.replace(step, schedule=schedule))
    monkeypatch.setattr(box, "steps", lambda scale: short)
    rows = hearing.compare(boxed, 60, seed=2000, lengths=(1.0, 20.0), ways=["pictures"], scale=0.1)
    row = {(row["question"], row["length"]): row for row in rows}
    learnt, stretched = row["source", 1.0], row["source", 20.0]
    assert learnt["low"] > learnt["chance"] + 0.2  # far above what always answering the same would get
    assert stretched["right"] < learnt["right"] - 0.2
