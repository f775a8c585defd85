"""Shares of right answers, and that each condition takes away what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from vlt.errors import VltError
from vlt.model.answer import Encoded
from vlt.model.video_llama import VideoLlama
from vlt.train import evaluate, talk, world
from vlt.train.evaluate import CONDITIONS, Seen
from vlt.train.talk import Talk


@pytest.fixture(scope="module")
def seen(boxed: VideoLlama, tmp_path_factory: pytest.TempPathFactory) -> list[Seen]:
    """A clip with sound, and a silent one."""
    made = [world.scene(2_000_000_001, n_things=2, n_sounds=2), world.scene(2_000_000_002, n_things=1, n_sounds=0)]
    return evaluate.watch(boxed, made, tmp_path_factory.mktemp("clips"))


def test_right_is_the_greedy_answer(boxed: VideoLlama, seen: list[Seen]) -> None:
    """One pass over the true answer tells what generating tells; also of wrong ones."""
    asked: list[tuple[Encoded | None, Talk]] = []
    for s in seen:
        e = evaluate.encoded(boxed, s, "full", np.random.default_rng(0))
        asked += [(e, t) for t in talk.about(s.made, np.random.default_rng(1))]
    wrong = [(e, Talk(t.kind, t.question, "There are nine lions.", t.branches)) for e, t in asked]
    asked = [*asked, *wrong, (None, talk.known()[0])]
    answers = boxed.answer([e for e, _ in asked], [t.question for _, t in asked], max_new_tokens=40)
    generated = [a.text == t.answer and a.ended == "stop" for a, (_, t) in zip(answers, asked, strict=True)]
    assert evaluate.right(boxed, asked) == generated
    assert {True, False} == set(generated)


def test_encoding_is_that_of_the_model(boxed: VideoLlama, seen: list[Seen]) -> None:
    for s in seen:
        ours = evaluate.encoded(boxed, s, "full", np.random.default_rng(0))
        theirs = boxed.encode(s.clip)
        assert ours is not None and (ours.kind, ours.sampled, set(ours.prefix)) == (
            theirs.kind,
            theirs.sampled,
            set(theirs.prefix),
        )
        for branch, prefix in theirs.prefix.items():
            torch.testing.assert_close(ours.prefix[branch], prefix, atol=1e-5, rtol=0)


def changed(boxed: VideoLlama, s: Seen, condition: str) -> dict[str, torch.Tensor] | None:
    found = evaluate.encoded(boxed, s, condition, np.random.default_rng(0))
    return None if found is None else found.prefix


@pytest.mark.parametrize("condition", [c for c in CONDITIONS if c != "full"])
def test_a_condition_changes_its_branch_only(boxed: VideoLlama, seen: list[Seen], condition: str) -> None:
    s, branch = seen[0], CONDITIONS[condition][0]
    other = "audio" if branch == "video" else "video"
    full, now = changed(boxed, s, "full"), changed(boxed, s, condition)
    assert full is not None and now is not None
    assert torch.equal(now[other], full[other])
    if condition.startswith("no "):
        assert branch not in now
    else:
        assert (now[branch] - full[branch]).abs().max() > 1e-3


def test_what_conditions_do(boxed: VideoLlama, seen: list[Seen]) -> None:
    s = seen[0]
    queries, features = s.image_queries, s.audio_features
    assert features is not None

    def prefix(given: dict[str, torch.Tensor], branch: str) -> torch.Tensor:
        return boxed.run(given, [f"{branch}_prefix"])[f"{branch}_prefix"][0]

    def same(condition: str, expected: torch.Tensor) -> bool:
        now = changed(boxed, s, condition)
        return now is not None and torch.allclose(now[CONDITIONS[condition][0]], expected, atol=1e-5)

    assert same("frames reversed", prefix({"image_queries": queries[:, [7, 6, 5, 4, 3, 2, 1, 0]]}, "video"))
    assert same("one frame repeated", prefix({"image_queries": queries[:, [4] * 8]}, "video"))
    assert same("frame positions removed", prefix({"frame_tokens": queries.reshape(1, 64, -1)}, "video"))
    assert same("image queries averaged", prefix({"image_queries": torch.stack([queries.mean(2)] * 8, 2)}, "video"))
    assert same("segment positions removed", prefix({"segment_tokens": features}, "audio"))


def test_silence_leaves_nothing_to_shuffle(boxed: VideoLlama, seen: list[Seen]) -> None:
    assert seen[1].audio_features is None
    assert evaluate.encoded(boxed, seen[1], "no video", np.random.default_rng(0)) is None
    for condition in ("no sound", "segments shuffled"):
        now, full = changed(boxed, seen[1], condition), changed(boxed, seen[1], "full")
        assert now is not None and full is not None and torch.equal(now["video"], full["video"])


def test_shuffling_never_leaves_things_as_they_were() -> None:
    value = torch.arange(2.0)[None]
    for seed in range(20):
        assert evaluate._shuffled(value, np.random.default_rng(seed)).tolist() == [[1.0, 0.0]]


def test_intervals() -> None:
    """Worked out by hand from Wilson's formula."""
    assert evaluate.wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-4)
    assert evaluate.wilson(10, 10) == pytest.approx((0.7224672, 1.0), abs=1e-4)
    assert evaluate.wilson(0, 10)[0] == 0.0


def test_chance_forgets_what_the_question_said() -> None:
    def row(question: str, answer: str) -> tuple[Talk, bool]:
        return Talk("shape", question, answer, ("video",)), answer.endswith("a star.")

    rows = [
        row("What shape is the red object?", "The red object is a star."),
        row("What shape is the blue object?", "The blue object is a star."),
        row("What shape is the blue object?", "The blue object is a cross."),
        row("What shape is the green object?", "The green object is a circle."),
    ]
    found = evaluate.share(rows)
    assert (found["n"], found["right"], found["chance"]) == (4, 0.5, 0.5)


def test_table_and_drawing(boxed: VideoLlama, seen: list[Seen], tmp_path: Path) -> None:
    rows = evaluate.table(boxed, seen, conditions=["full", "no sound"])
    assert rows[0]["condition"] == "full"
    assert set(rows[0]) == {"condition", "question", "objects", "n", "right", "low", "high", "chance"}
    json.dumps(rows)
    assert {row["question"] for row in rows} == set(talk.KINDS) - {"voice"}
    assert sum(row["n"] for row in rows if row["condition"] == "full") == sum(
        len(talk.about(s.made, np.random.default_rng(0))) for s in seen
    )
    text = evaluate.markdown(rows)
    assert text.splitlines()[0] == "| question | objects | n | full | no sound | chance |"
    assert len({line.count("|") for line in text.splitlines()}) == 1
    evaluate.draw(rows, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 5_000
    with pytest.raises(VltError, match="cannot be drawn"):
        evaluate.draw(rows, tmp_path / "table.what")
    with pytest.raises(VltError, match="no condition 'deaf'"):
        evaluate.table(boxed, seen, conditions=["deaf"])
