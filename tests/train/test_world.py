"""The small world: what is written down as true of it can be seen and heard in it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from vlt.errors import VltError
from vlt.inputs import prompt as prompts
from vlt.inputs.clip import Clip
from vlt.train import talk, voices, words, world
from vlt.train.sights import RGB
from vlt.train.world import Scene


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return list(world.scenes(3, 400))


def test_a_seed_makes_one_scene_and_seeds_share_none() -> None:
    assert list(world.scenes(5, 30)) == list(world.scenes(5, 30))
    assert not set(world.scenes(5, 30)) & set(world.scenes(6, 30))
    a, b = world.scene(9), world.scene(9)
    assert np.array_equal(a.frames([0.0, 6.0], 64), b.frames([0.0, 6.0], 64))
    assert np.array_equal(a.waveform(), b.waveform())


def test_everything_occurs(many: list[Scene]) -> None:
    things = [thing for made in many for thing in made.things]
    assert {t.shape for t in things} == set(world.SHAPES)
    assert {t.colour for t in things} == set(world.COLOURS)
    assert {t.motion for t in things} == set(world.MOTIONS)
    assert {made.voice for made in many} == {*world.VOICES, None}
    assert {len(made.things) for made in many} == {1, 2}
    assert {len(made.sounds) for made in many} == {0, 1, 2, 3}
    sounding = [made for made in many if made.sounds]
    assert 0.25 < sum(made.counterfactual for made in sounding) / len(sounding) < 0.42


def test_things_stay_inside_and_apart(many: list[Scene]) -> None:
    for made in many:
        for second in np.linspace(0, world.SECONDS, 9):
            places = [thing.at(second) for thing in made.things]
            for (x, y), thing in zip(places, made.things, strict=True):
                assert thing.radius < x < 1 - thing.radius
                assert thing.radius < y < 1 - thing.radius
        assert not (made.masks([0.0, 8.0, 15.9], 64).sum(axis=1) > 1).any()


def test_masks_are_where_the_colour_is(many: list[Scene]) -> None:
    """The colour that is written down is that of the masked pixels, and of no others."""
    for made in many[:40]:
        frames, masks = made.frames([0.0, 14.0], 64).astype(float), made.masks([0.0, 14.0], 64)
        for j, thing in enumerate(made.things):
            inside = frames[masks[:, j]]
            assert np.abs(inside.mean(axis=0) - RGB[thing.colour]).max() < 45
            nearest = np.linalg.norm(frames - inside.mean(axis=0), axis=-1) < 40
            if thing.colour != "white":
                assert (nearest & ~masks[:, j]).sum() < 0.25 * masks[:, j].sum()


@pytest.mark.parametrize("motion", world.MOTIONS)
def test_motion_is_what_it_is_called(many: list[Scene], motion: str) -> None:
    expected = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}[motion]
    for made in [m for m in many if any(t.motion == motion for t in m.things)][:20]:
        j = [t.motion for t in made.things].index(motion)
        masks = made.masks([0.0, 14.0], 64)[:, j]
        (y0, x0), (y1, x1) = (np.argwhere(mask).mean(axis=0) for mask in masks)
        moved = np.array([x1 - x0, y1 - y0])
        if motion == "still":
            assert np.abs(moved).max() < 0.5
        else:
            assert np.dot(moved, expected) > 15
            assert abs(np.dot(moved, expected[::-1])) < 1


def test_sound_is_in_the_segments_that_are_written_down(many: list[Scene]) -> None:
    for made in many[:60]:
        loud = np.sqrt(np.mean(made.waveform()[0].reshape(world.N_SEGMENTS, -1) ** 2, axis=1))
        assert (loud > 0.02).tolist() == list(made.heard)


def test_source_and_counterfactual(many: list[Scene]) -> None:
    for made in many:
        shapes = [thing.shape for thing in made.things]
        if made.voice is None:
            assert made.source is None
            assert not made.counterfactual
        else:
            shape = world.SHAPE_OF[made.voice]
            assert made.counterfactual == (shape not in shapes)
            assert made.source == (shapes.index(shape) if shape in shapes else None)


def test_voices_differ_and_keep_their_loudness() -> None:
    time = np.arange(voices.RATE) / voices.RATE
    spectra = [np.abs(np.fft.rfft(voice(time, 1.0))) for voice in voices.VOICES.values()]
    spectra = [s / np.linalg.norm(s) for s in spectra]
    for i, a in enumerate(spectra):
        assert all(np.dot(a, b) < 0.5 for b in spectra[:i])
    for made in world.scenes(1, 50):
        assert np.abs(made.waveform()).max() <= 1


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"n_things": 2}, lambda m: len(m.things) == 2),
        ({"n_things": 0, "n_sounds": 2}, lambda m: not m.things and m.counterfactual),
        ({"n_sounds": 0}, lambda m: m.voice is None and not m.counterfactual),
        ({"n_sounds": 1, "counterfactual": True}, lambda m: m.counterfactual and m.source is None),
        ({"n_sounds": 3, "counterfactual": False}, lambda m: m.source is not None),
    ],
)
def test_what_is_asked_for_is_made(options: dict, check) -> None:
    assert all(check(made) for made in world.scenes(2, 40, **options))


def test_impossible_scenes_are_refused() -> None:
    with pytest.raises(VltError, match="0 to 2 things and 0 to 3 sounds; 3 and 1"):
        world.scene(0, n_things=3, n_sounds=1)


@pytest.mark.parametrize(
    ("n_things", "n_sounds", "branches"), [(2, 2, ("video", "audio")), (1, 0, ("video",)), (0, 1, ("audio",))]
)
def test_files(tmp_path: Path, n_things: int, n_sounds: int, branches: tuple[str, ...]) -> None:
    made = world.scene(7, n_things=n_things, n_sounds=n_sounds)
    world.write(made, tmp_path / "a.mp4")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.mp4"]
    assert Scene.of_truth(json.loads((tmp_path / "a.json").read_text())) == made
    clip = Clip(tmp_path / "a.mp4")
    assert clip.branches == branches
    if n_things:
        seconds = clip.frame_times[clip.frame_indices()]
        assert seconds.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
        difference = np.abs(clip.pixels(8, 128).astype(float) - made.frames(seconds, 128))
        assert difference.mean() < 6  # of 255: noise, chroma at half size, compression
    if n_sounds:
        starts = [float(a) for a, _ in clip.segments(coverage="whole")]
        assert starts == pytest.approx([0, 2, 4, 6, 8, 10, 12, 14], abs=0.05)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores that can be taken away"
)
def test_a_file_is_the_same_however_many_cores_write_it(tmp_path: Path) -> None:
    """As the numbers are that are measured on it."""
    made, cores = world.scene(1000, n_things=2, n_sounds=1), os.sched_getaffinity(0)
    world.write(made, tmp_path / "a.mp4")
    try:
        os.sched_setaffinity(0, {min(cores)})
        world.write(made, tmp_path / "b.mp4")
    finally:
        os.sched_setaffinity(0, cores)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_silence_can_be_a_track(tmp_path: Path) -> None:
    made = world.scene(7, n_things=1, n_sounds=0)
    world.write(made, tmp_path / "a.mp4", silence=True)
    clip = Clip(tmp_path / "a.mp4")
    assert clip.branches == ("video", "audio")
    assert clip.sound.duration == pytest.approx(16, abs=0.2)


def test_talk_is_true_of_its_scene() -> None:
    made = world.Scene(
        1,
        (world.Thing("circle", "red", "left", 0.15, 0.8, 0.3, 0.03), world.Thing("star", "blue", "still", 0.15, 0.3, 0.7, 0.0)),
        (world.Sound("click", 8.2, 1.2, 1.0),),
        False,
    )
    said = {(t.kind, t.question): t.answer for t in talk.about(made, np.random.default_rng(0))}
    assert said["caption", "What do you see?"] == "A red circle moves left and a blue star stays still."
    assert said["number", "How many objects are there?"] == "There are two objects."
    assert said["shape", "What shape is the blue object?"] == "It is a blue star."
    assert said["colour", "What colour is the circle?"] == "The circle is red."
    assert said["motion", "How does the star move?"] == "The star stays still."
    assert said["hear", "What do you hear?"] == "I hear a click."
    assert said["how often", "How often does it sound?"] == "It sounds once."
    assert said["when", "When does it sound?"] == "It sounds in the middle."
    assert said["source", "What makes this sound?"] == "A star makes this sound."
    assert said["match", "Do you see what makes this sound?"] == "The star is there."
    assert said["source colour", "What colour is the object that sounds?"] == "The star is blue."
    both = "A red circle moves left and a blue star stays still. A click sounds once, in the middle."
    assert said["both", "What do you see, and what do you hear?"] == both
    assert talk.sound_caption(made) == "A click sounds once, in the middle."
    absent = {t.kind: t.answer for t in talk.absent(made, np.random.default_rng(0))}
    assert absent["shape"].startswith("There is no ") and "red" not in absent["shape"] and "blue" not in absent["shape"]
    assert absent["colour"] == absent["motion"] and "circle" not in absent["colour"] and "star" not in absent["colour"]


def test_what_is_not_there_does_not_sound() -> None:
    """Counterfactual: a bell is heard, and its circle is not seen."""
    things = (world.Thing("star", "blue", "still", 0.15, 0.3, 0.7, 0.0),)
    sounds = tuple(world.Sound("bell", 2.0 * i + 0.2, 1.2, 1.0) for i in (0, 3, 7))
    said = {t.kind: t.answer for t in talk.about(world.Scene(1, things, sounds, True), np.random.default_rng(0))}
    assert said["match"] == "The circle is not there."
    assert said["source colour"] == "The circle is not there."
    assert said["when"] == "It sounds at the beginning, in the middle and at the end."
    assert said["how often"] == "It sounds three times."
    silent = {t.kind: t.answer for t in talk.about(world.Scene(1, things, (), False), np.random.default_rng(0))}
    assert {silent[k] for k in ("source", "match", "source colour")} == {"Nothing makes a sound."}
    assert (silent["hear"], silent["when"]) == ("I hear nothing.", "It does not sound.")


def test_other_words_ask_the_same() -> None:
    draw = np.random.default_rng(0)
    made = world.scene(3, n_things=2, n_sounds=1)
    for t in talk.about(made, draw):
        ways = {talk.reworded(t, draw).question for _ in range(60)}
        assert len(ways) > len(talk.ASKED[t.kind])  # all of them, and some in small letters
        assert not any("{" in way for way in ways)
        names = [w for w in (*world.SHAPES, *world.COLOURS) if w in t.question]
        assert all(name in way for way in ways for name in names)


def test_vocabulary_is_enough(many: list[Scene]) -> None:
    """Nothing in the world's talk, nor in the chat around it, is spelled letter by letter."""
    tokenizer, draw = words.tokenizer(), np.random.default_rng(0)
    for made in many[:100]:
        for t in (*talk.about(made, draw), *talk.absent(made, draw), *talk.known()):
            asked = talk.reworded(t, draw).question
            message = prompts.message(asked, "video", ("audio", "video"))
            for text in (t.answer, asked, *(part for part in message if isinstance(part, str))):
                pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
                assert not [
                    p for p in pieces if len(p.strip("\u2581")) == 1 and p.isalpha() and p not in ("A", "I", "a", "i")
                ], text
                assert tokenizer.decode(tokenizer.encode(text)) == text
    strange = "Grüße, 你好\n  ###  <Video>"
    assert tokenizer.decode(tokenizer.encode(strange)) == strange


def test_talk_about_every_scene(many: list[Scene]) -> None:
    draw = np.random.default_rng(0)
    talks = [t for made in many for t in talk.about(made, draw)]
    yes = ["not" not in t.answer for t in talks if t.kind == "existence"]
    assert 0.4 < sum(yes) / len(yes) < 0.75
    asked: dict[tuple[int, str], set[str]] = {}
    for i, made in enumerate(many):
        for t in talk.about(made, np.random.default_rng(i)):
            asked.setdefault((i, t.question), set()).add(t.answer)
    assert all(len(answers) == 1 for answers in asked.values())  # a question has one answer
