"""Hearing learnt from pictures: in a file of its own, as it takes long, so that it runs beside the others."""

from __future__ import annotations

from vlt.model.video_llama import VideoLlama
from vlt.train import hearing


def test_ears_learn_from_pictures(boxed: VideoLlama) -> None:
    """The audio branch, from nothing, with the box's ImageBind and language model: taught on pictures, asked about sound."""
    rows = hearing.compare(boxed, 100, seed=2000, lengths=(1.0, 20.0), ways=["pictures"], scale=0.2)
    row = {(row["question"], row["length"]): row for row in rows}
    learnt, stretched = row["source", 1.0], row["source", 20.0]
    assert learnt["low"] > learnt["chance"]  # the interval is above what always answering the same would get
    assert stretched["right"] < learnt["right"]
