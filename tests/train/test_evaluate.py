"""Shares of right answers, and that each condition takes away what it says."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import stand_in
from vlt import cli
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.model import load as loading
from vlt.model.answer import Encoded
from vlt.model.video_llama import VideoLlama
from vlt.train import box, evaluate, foundations, hearing, recipe, talk, world
from vlt.train.evaluate import CONDITIONS, Seen
from vlt.train.talk import Talk

ROOT = Path(__file__).parents[2]


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


def test_silence_is_heard(boxed: VideoLlama, seen: list[Seen]) -> None:
    """A silent scene's file holds the noise of its room: what there is to be heard is that there is nothing."""
    assert not seen[1].made.sounds and seen[1].audio_features is not None


def test_a_file_without_sound_leaves_nothing_to_shuffle(boxed: VideoLlama, seen: list[Seen]) -> None:
    mute = dataclasses.replace(seen[1], audio_features=None)
    assert evaluate.encoded(boxed, mute, "no video", np.random.default_rng(0)) is None
    for condition in ("no sound", "segments shuffled"):
        now, full = changed(boxed, mute, condition), changed(boxed, mute, "full")
        assert now is not None and full is not None and torch.equal(now["video"], full["video"])


def test_shuffling_never_leaves_things_as_they_were() -> None:
    value = torch.arange(2.0)[None]
    for seed in range(20):
        assert evaluate._shuffled(value, np.random.default_rng(seed)).tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize(
    ("condition", "stage"), [("frames shuffled", "image_queries"), ("segments shuffled", "audio_features")]
)
def test_shuffling_is_a_run_on_stages_in_another_order(condition: str, stage: str) -> None:
    """Positions stay where they are; what stands at them is exchanged. The other branch stays as it is."""
    model, draw = stand_in(), torch.Generator().manual_seed(0)
    sizes = {"image_queries": (1, 8, 8, 96), "audio_features": (1, 8, 64)}
    stages = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    clip = Clip(ROOT / "data" / "clips" / "two_bell.mp4")
    found = evaluate.encoded(model, Seen(world.scene(0), clip, **stages), condition, np.random.default_rng(3))
    order = np.random.default_rng(3).permutation(8)
    assert order.tolist() != list(range(8))
    moved = {name: value[:, order] if name == stage else value for name, value in stages.items()}
    assert found is not None
    with torch.no_grad():
        for branch, name in (("video", "image_queries"), ("audio", "audio_features")):
            prefix, still = (
                model.run({name: value[name]}, [f"{branch}_prefix"])[f"{branch}_prefix"][0] for value in (moved, stages)
            )
            torch.testing.assert_close(found.prefix[branch], prefix, atol=1e-6, rtol=0)
            assert ((prefix - still).abs().max() > 1e-4) == (name == stage)


@pytest.mark.parametrize(
    ("seed", "conditions", "message"),
    [
        (999, (), "seed 999: the box was trained on worlds of seeds below 1000; give one from there on"),
        (0, (), "seed 0: the box was trained"),
        (-1, (), "seed -1: the box was trained"),
        (1000, ("full", "frames shufled"), "no condition 'frames shufled'; nearest: frames shuffled"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_any_clip_is_written(
    monkeypatch: pytest.MonkeyPatch, seed: int, conditions: tuple[str, ...], message: str
) -> None:
    def touched(*_: Any, **__: Any) -> None:
        pytest.fail("work was begun")

    for module, name in ((world, "scenes"), (world, "write"), (evaluate, "watch"), (tempfile, "TemporaryDirectory")):
        monkeypatch.setattr(module, name, touched)
    model = stand_in()
    with pytest.raises(VltError, match=message):
        evaluate.evaluate(model, 2, seed, conditions)
    if conditions:
        with pytest.raises(VltError, match=message):
            evaluate.table(model, [], seed, conditions)
    else:
        with pytest.raises(VltError, match=message):
            hearing.compare(model, 2, seed)


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


@pytest.mark.parametrize(
    ("kind", "question", "answers", "chance"),
    [
        ("match", "Do you see what makes this sound?", ["The star is there.", "The circle is there.", "The cross is not there."], 2 / 3),
        ("source colour", "What colour is the object that sounds?", ["The star is blue.", "The circle is blue.", "The star is red."], 2 / 3),
        ("source", "What makes this sound?", ["A star makes this sound.", "A circle makes this sound.", "A cross makes this sound."], 1 / 3),
        ("shape", "What shape is the red object?", ["It is a red star.", "It is a red circle.", "It is a red cross."], 1 / 3),
    ],
)  # fmt: skip
def test_chance_leaves_out_the_shape_that_ears_alone_tell(kind: str, question: str, answers: list[str], chance: float) -> None:
    """Where it takes both: an answer names the shape, which is no part of what eyes and ears tell together."""
    asked = [Talk(kind, question, answer, ("audio", "video")) for answer in answers]
    assert evaluate.share([(t, True) for t in asked])["chance"] == pytest.approx(chance)


# Of the commands, results go to standard output and nothing else does.


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> VideoLlama:
    """A box that has learnt nothing, which every command gets."""
    model = box.newborn(0).eval().requires_grad_(False)
    monkeypatch.setattr(loading, "load", lambda *_, **__: model)
    return model


def printed(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[str, str]:
    """Standard output and standard error of a command."""
    capfd.readouterr()
    cli.app(list(map(str, arguments)), standalone_mode=False)
    return capfd.readouterr()


def test_evaluate_prints_its_table(opened: VideoLlama, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = ["--json", tmp_path / "a.json", "--figure", tmp_path / "a.png"]
    shown, said = printed(capfd, "evaluate", "--clips", 2, "--condition", "full", *files)
    assert shown == evaluate.markdown(json.loads((tmp_path / "a.json").read_text())) + "\n"
    assert "writing and watching clips" in said


def test_hearing_prints_its_table(
    opened: VideoLlama, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "compare", functools.partial(hearing.compare, scale=0.001, lengths=(1.0, 20.0)))
    shown, _ = printed(capfd, "hearing", "--clips", 2, "--json", tmp_path / "a.json")
    assert shown == hearing.markdown(json.loads((tmp_path / "a.json").read_text())) + "\n"


def test_train_box_prints_its_table(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = recipe.Schedule(2, 4, 1e-3, 1e-4, 1e-5, 1)
    step = box.Step("eyes", schedule, foundations.Eyes, lambda model, seed, count: foundations.Pictures(1, count))
    monkeypatch.setattr(box, "steps", lambda scale: [step])
    shown, said = printed(capfd, "train", "box", tmp_path / "out", "--processes", 1)
    lines = shown.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["step", "eyes"]
    assert lines[2:] == [f"{tmp_path / 'out'}: open it with vlt.load({str(tmp_path / 'out')!r})"]
    assert "loss=" in said


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
