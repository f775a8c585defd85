"""Edits: each does what it says, where it says, and nothing else; what it cannot do rightly is refused."""

from __future__ import annotations

import itertools
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.probe.conftest import AT_LANGUAGE_MODEL, ATTENTIONS, EDITABLE, PLACES, QUESTION, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.model import stages
from vlt.probe.trace import Trace, trace

EVERYWHERE = [*EDITABLE, *PLACES]


def read(run: Trace, name: str) -> np.ndarray:
    return run[name].values


# ------------------------------------------------------------------ everywhere


@pytest.mark.parametrize("at", EVERYWHERE)
def test_an_edit_that_changes_nothing_changes_nothing(bell: Trace, at: str) -> None:
    again = bell.rerun(edits.custom(at, lambda value: value))
    assert torch.equal(again.stage("logits"), bell.stage("logits"))
    assert again.answer.ids == bell.answer.ids
    assert sum(again.fired.values()) > 0


@pytest.mark.parametrize("at", EVERYWHERE)
def test_every_place_is_on_the_path(bell: Trace, at: str) -> None:
    """Noise there changes what the answer is predicted from, and comes out otherwise with another seed."""
    where = {"token": slice(0, bell.row.begin)} if at in AT_LANGUAGE_MODEL or at == "prefix" else {}
    found = []
    for seed in (0, 1):
        again = bell.edited(edits.noise(at, size=1.0, seed=seed, **where), answer=bell.answer.text)
        found.append(again.stage("logits")[0, bell.row.begin - 1 :])
    plain = bell.stage("logits")[0, bell.row.begin - 1 :]
    assert (found[0] - plain).abs().max() > 1e-3
    assert (found[1] - found[0]).abs().max() > 1e-3


@pytest.mark.parametrize("at", EVERYWHERE)
def test_only_what_is_named_is_edited(bell: Trace, at: str) -> None:
    """One place of every axis in turn becomes 0; all else stays, to the bit."""
    plain = read(bell, at)
    begin = bell.row.begin if at == "prefix" else len(plain)
    for number, axis in enumerate(bell.axes_of(at)):
        place = axis.size // 2
        where = {"token": slice(0, begin)} | {axis.name: place} if at == "prefix" else {axis.name: place}
        value = read(bell.edited(edits.zero(at, **where), answer=bell.answer.text), at)
        expected = plain.copy()
        expected[:begin][(*[slice(None)] * number, place)] = 0
        np.testing.assert_array_equal(value, expected, err_msg=axis.name)


@pytest.mark.parametrize("at", EVERYWHERE)
def test_values_are_taken_from_another_run(bell: Trace, buzz: Trace, at: str) -> None:
    where = {"token": "audio"} if at in AT_LANGUAGE_MODEL or at == "prefix" else {}
    again = bell.edited(edits.swap(at, buzz, **where), answer=bell.answer.text)
    places = bell.tokens.find("audio") if where else slice(None)
    expected = read(bell, at).copy()
    expected[places] = read(buzz, at)[places]
    np.testing.assert_allclose(read(again, at), expected, atol=1e-6)


def test_values_are_taken_at_every_place_that_a_pattern_fits(bell: Trace, buzz: Trace) -> None:
    """Each layer's: what one takes does not hinder the next."""
    again = bell.edited(edits.swap("language_model.*", buzz, token="audio"), answer=bell.answer.text)
    places = bell.tokens.find("audio")
    for name in [n for n in AT_LANGUAGE_MODEL if PLACES[n].kind == "block"]:
        np.testing.assert_allclose(read(again, name)[places], read(buzz, name)[places], atol=1e-6, err_msg=name)


# ------------------------------------------------------------------ what each kind does


def test_scale(bell: Trace) -> None:
    plain = read(bell, "video_queries")
    value = read(bell.rerun(edits.scale("video_queries", -2.5, video_query=[4, 1])), "video_queries")
    np.testing.assert_array_equal(value[[1, 4]], plain[[1, 4]] * np.float32(-2.5))
    np.testing.assert_array_equal(np.delete(value, [1, 4], 0), np.delete(plain, [1, 4], 0))


def test_noise(bell: Trace) -> None:
    """Of as many standard deviations of what it is added to."""
    plain = bell.stage("frames")[0, 2].double().numpy()
    added = read(bell.rerun(edits.noise("frames", size=0.5, frame=2)), "frames")[2] - plain
    assert added.std() == pytest.approx(0.5 * plain.std(), rel=0.02)
    assert added.mean() == pytest.approx(0, abs=0.02 * plain.std())
    same = [read(bell.edited(edits.noise("video_queries", seed=s)), "video_queries") for s in (3, 3, 4)]
    np.testing.assert_array_equal(same[0], same[1])
    assert not np.allclose(same[0], same[2])


def test_noise_is_drawn_anew_for_every_place(bell: Trace) -> None:
    """An edit of several places adds to each its own: what one layer adds must not stand out of all."""
    names = ("image_qformer.0", "image_qformer.1")
    shapes = [bell.reading(name)[0].shape for name in names]
    assert shapes[0] == shapes[1]
    drawn = {}
    for name in names:
        plain = bell.reading(name)[0]
        changed = bell.edited(edits.noise(name, seed=5), answer=bell.answer.text)
        added = changed.reading(name)[0] - plain
        drawn[name] = (added / added.std()).flatten()
    assert abs(float((drawn[names[0]] * drawn[names[1]]).mean())) < 0.05


def test_the_same_draw_is_not_added_to_itself(bell: Trace) -> None:
    first = bell.edited(edits.noise("audio_prefix"))
    for again in (edits.noise("audio_prefix"), edits.noise("audio_prefix", audio_query=3)):
        with pytest.raises(VltError, match="another edit draws the same at 'audio_prefix'; give it a seed of its own"):
            first.edited(again)
    with pytest.raises(VltError, match=r"at 'video_qformer\.1'"):
        bell.edited([edits.noise("video_qformer.1"), edits.noise("video_qformer.*")])
    plain, once = bell.stage("audio_prefix"), first.stage("audio_prefix")
    twice = first.edited(edits.noise("audio_prefix", seed=1)).stage("audio_prefix")
    added = torch.stack([(once - plain).flatten(), (twice - once).flatten()])
    assert abs(float(torch.corrcoef(added)[0, 1])) < 0.1


def test_mean_and_resample(bell: Trace, buzz: Trace) -> None:
    hum = shipped("hum")
    others = [read(buzz, "audio_queries"), read(trace(bell.model, hum, QUESTION), "audio_queries")]
    value = read(bell.rerun(edits.mean("audio_queries", [buzz, hum], audio_query=slice(2, 5))), "audio_queries")
    np.testing.assert_allclose(value[2:5], (others[0] + others[1])[2:5] / 2, atol=1e-6)
    np.testing.assert_array_equal(value[5:], read(bell, "audio_queries")[5:])
    drawn = [read(bell.edited(edits.resample("audio_queries", [buzz, hum], seed=seed)), "audio_queries") for seed in range(8)]
    which = [[np.array_equal(value, other) for other in others] for value in drawn]
    assert all(sum(found) == 1 for found in which)
    assert {found.index(True) for found in which} == {0, 1}


def test_order_of_frames(bell: Trace) -> None:
    plain = read(bell, "frames")
    np.testing.assert_array_equal(read(bell.rerun(edits.reverse()), "frames"), plain[::-1])
    np.testing.assert_array_equal(read(bell.rerun(edits.repeat(5)), "frames"), plain[[5] * 8])
    for seed in range(4):
        value = read(bell.rerun(edits.shuffle(seed=seed)), "frames")
        order = [int(np.flatnonzero([np.array_equal(v, p) for p in plain])[0]) for v in value]
        assert sorted(order) == list(range(8))
        assert order != list(range(8))
    turned = read(bell.rerun(edits.reverse("image_queries", "image_query")), "image_queries")
    np.testing.assert_array_equal(turned, read(bell, "image_queries")[:, ::-1])
    two = trace(bell.model, bell.clip, QUESTION, n_frames=2, answer="A bell.")
    for seed in range(6):  # of two frames there is one other order
        np.testing.assert_array_equal(read(two.edited(edits.shuffle(seed=seed)), "frames"), read(two, "frames")[::-1])


def test_order_of_heads_inside_the_model(bell: Trace) -> None:
    name = "video_qformer.1.cross"
    turned = read(bell.rerun(edits.reverse(name, "head")), name)
    np.testing.assert_array_equal(turned, read(bell, name)[:, ::-1])


def test_blank(bell: Trace) -> None:
    value, plain = (
        read(bell.rerun(edits.blank(frame=[0, 3], height="8:24", width=slice(0, 16))), "frames"),
        read(bell, "frames"),
    )
    expected = plain.copy()
    expected[[0, 3], :, 8:24, :16] = 0
    np.testing.assert_array_equal(value, expected)
    assert not read(bell.rerun(edits.blank()), "frames").any()


def wav(path: Path, samples: np.ndarray, rate: int = 16_000) -> Clip:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return Clip(path)


def test_mute_is_a_file_of_silence(bell: Trace, tmp_path: Path) -> None:
    silent = trace(bell.model, wav(tmp_path / "silent.wav", np.zeros(16 * 16_000)), QUESTION)
    np.testing.assert_allclose(read(bell.rerun(edits.mute()), "spectrograms"), read(silent, "spectrograms"), atol=1e-6)
    value = read(bell.rerun(edits.mute(segment="audio 2-6s")), "spectrograms")
    np.testing.assert_allclose(value[1:3], read(silent, "spectrograms")[1:3], atol=1e-6)
    np.testing.assert_array_equal(np.delete(value, [1, 2], 0), np.delete(read(bell, "spectrograms"), [1, 2], 0))


def test_mute_of_some_pitches_is_done_or_refused(bell: Trace) -> None:
    whole, plain = read(bell.rerun(edits.mute()), "spectrograms"), read(bell, "spectrograms")
    try:
        value = read(bell.rerun(edits.mute(mel="16:32", time="0:50")), "spectrograms")
    except VltError:
        return
    expected = plain.copy()
    expected[:, :, 16:32, :50] = whole[:, :, 16:32, :50]
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(("seconds", "rate"), [(1.5, 16_000), (-0.75, 11_025), (40.0, 16_000)])
def test_shift_is_a_file_that_is_shifted(bell: Trace, tmp_path: Path, seconds: float, rate: int) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 3 * rate).clip(-1, 1)
    by = round(seconds * rate)
    late = np.zeros_like(samples)
    if abs(by) < len(samples):
        late[max(by, 0) : len(late) + min(by, 0)] = samples[max(-by, 0) : len(samples) - max(by, 0)]
    run = trace(bell.model, wav(tmp_path / "a.wav", samples, rate), QUESTION, answer="A bell.")
    other = trace(bell.model, wav(tmp_path / "b.wav", late, rate), QUESTION)
    value = read(run.edited(edits.shift(seconds)), "spectrograms")
    np.testing.assert_allclose(value, read(other, "spectrograms"), atol=2e-3)
    assert not np.allclose(value, read(run, "spectrograms"), atol=0.1)


def test_sound_edits_come_one_after_the_other(bell: Trace, buzz: Trace) -> None:
    """A shift moves the sound that is there, also where an edit before it put another in its place; or it is refused."""
    try:
        value = read(bell.rerun([edits.swap_sound(buzz), edits.shift(1.0)]), "spectrograms")
    except VltError:
        return
    np.testing.assert_allclose(value, read(buzz.rerun(edits.shift(1.0)), "spectrograms"), atol=1e-6)


def test_swap_sound(bell: Trace) -> None:
    again = bell.rerun(edits.swap_sound(shipped("buzz")))
    np.testing.assert_array_equal(read(again, "spectrograms"), shipped("buzz").spectrograms(8, "whole").numpy())
    assert again.answer.text == "I hear a buzz."


def test_without_a_branch_is_as_if_it_had_not_been_asked_for(bell: Trace) -> None:
    for branch, other in (("video", "audio"), ("audio", "video")):
        again = bell.rerun(edits.without(branch))
        answer = bell.model.answer(bell.clip, QUESTION, branches=[other])
        assert again.prompt == answer.prompt
        assert again.answer.ids == answer.ids
    with pytest.raises(VltError, match="no branch 'sound'"):
        edits.without("sound")
    text = bell.rerun([edits.without("video"), edits.without("audio")])
    assert text.answer.ids == bell.model.answer(None, QUESTION).ids


def test_ask_another_question(bell: Trace) -> None:
    again = bell.rerun(edits.ask("What moves?"))
    assert again.question == "What moves?"
    assert again.answer.ids == bell.model.answer(bell.clip, "What moves?").ids
    assert bell.question == QUESTION


def test_edits_are_done_in_their_order(bell: Trace) -> None:
    double, zero = edits.scale("video_queries", 2.0), edits.custom("video_queries", lambda value: value + 1)
    plain = read(bell, "video_queries")
    np.testing.assert_array_equal(read(bell.rerun([double, zero]), "video_queries"), plain * 2 + 1)
    np.testing.assert_array_equal(read(bell.rerun([zero, double]), "video_queries"), (plain + 1) * 2)
    again = bell.rerun(zero).rerun(double)  # what comes later stands behind what was there
    np.testing.assert_array_equal(read(again, "video_queries"), (plain + 1) * 2)


def test_the_unedited_run_is_never_touched(bell: Trace) -> None:
    """Also where a function changes what it is given in place."""
    run = trace(bell.model, bell.clip, QUESTION)
    before = {name: run.stage(name).clone() for name in stages.TENSOR_STAGES}
    weights = {name: weight.clone() for name, weight in run.model.named_parameters()}
    for at in EVERYWHERE:
        run.edited(edits.custom(at, lambda value: value.zero_()), answer="A bell.").stage("logits")
    for name, value in before.items():
        assert torch.equal(run.stage(name), value), name
        assert torch.equal(bell.stage(name), value), name
    for name, weight in run.model.named_parameters():
        assert torch.equal(weight, weights[name]), name


def test_a_run_that_was_stopped_goes_on_rightly(bell: Trace) -> None:
    """Its edits are not lost where one of them was interrupted."""
    calls = []

    def stops_once(value: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt
        return value * 2

    again = bell.edited([edits.scale("video_queries", 3.0), edits.custom("video_queries", stops_once)], answer="A bell.")
    with pytest.raises(KeyboardInterrupt):
        again.stage("video_prefix")
    np.testing.assert_allclose(read(again, "video_queries"), read(bell, "video_queries") * 6, rtol=1e-5)


# ------------------------------------------------------------------ where


WHERE = [
    ("patches", {"patch_row": 2}, np.s_[:, 17:25]),
    ("patches", {"patch": "row 2", "frame": 3}, np.s_[3, 17:25]),
    ("patches", {"patch_row": [0], "patch_column": "0:2", "frame": "frame 6-7"}, np.s_[6:8, 1:3]),
    ("patches", {"patch": "class"}, np.s_[:, 0]),
    ("patches", {"vision_width": "10:12", "frame": [1]}, np.s_[1, :, 10:12]),
    ("frame_tokens", {"frame_token": "frame 3"}, np.s_[24:32]),
    ("frame_tokens", {"frame": 3, "image_query": [0, 1]}, np.s_[24:26]),
    ("frame_tokens", {"seconds": "0:4"}, np.s_[0:16]),
    ("image_queries", {"frame": "video 2-4s", "image_query": 7}, np.s_[1, 7]),
    ("segment_tokens", {"segment": "audio 0-4s"}, np.s_[:2]),
    ("segment_tokens", {"start": "4:8"}, np.s_[2:4]),
    ("spectrograms", {"hz": "0:100", "time": slice(0, 3)}, np.s_[:, :, :5, :3]),
    ("prefix", {"token": "video 2-3"}, np.s_[49:51]),
    ("prefix", {"token": ["audio", "video 0"]}, np.s_[[22, 23, 24, 25, 26, 27, 28, 29, 47]]),
    ("prefix", {"group": "question"}, np.s_[82:87]),
    ("prefix", {"word": [" sound", " imagine"]}, np.s_[[13, 18]]),
    ("prefix", {"word": " sound"}, np.s_[18]),
    ("prefix", {"word": "question"}, np.s_[71]),  # the word, not the group of that name
    ("language_model.1", {"word": "question"}, np.s_[71]),
    ("imagebind.1.self", {"head": 1, "sound_patch": "row 0", "segment": 2}, np.s_[2, 1:13, 1]),
    ("language_model.2.self", {"head": [0, 3], "token": "answering"}, np.s_[89:95, [0, 3]]),
    ("frame_position", {"frame": "frame 1-2"}, np.s_[1:3]),
]


@pytest.mark.parametrize(("at", "where", "places"), WHERE)
def test_places_are_named_by_axis_coordinate_or_phrase(bell: Trace, at: str, where: dict, places: tuple) -> None:
    expected = read(bell, at).copy()
    expected[places] = 0
    value = read(bell.edited(edits.zero(at, **where), answer=bell.answer.text), at)
    np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("at", "where", "message"),
    [
        ("patches", {"row": 2}, "'patches' has no axis 'row'; nearest: patch_row.*its axes are frame, patch, vision_width"),
        ("patches", {"patch_row": 8}, "patch_row 8 was asked for; on 'patch' it is -1 to 7"),
        ("patches", {"patch_row": 1, "patch": "row 2"}, "names no place on 'patch'"),
        ("frames", {"frame": 8}, "frame 8 was asked for; there are 8"),
        ("frames", {"frame": 1.5}, "1.5"),
        ("frame_tokens", {"seconds": "30:40"}, "names no place"),
        ("frame_tokens", {"seconds": "a:b"}, "seconds 'a:b'"),
        ("prefix", {"word": ["zebra"]}, "word 'zebra' is not there"),
        ("prefix", {"word": "imagin"}, "nearest: imagine"),
        ("prefix", {"word": "answering"}, "word 'answering' is not there"),  # a phrase is no word
        ("prefix", {"word": " "}, "say a text, or a list of them"),
        ("prefix", {"group": "answering"}, "group 'answering' is not there"),
        ("prefix", {"frame": 3}, "'prefix' has no axis 'frame': a token of the language model mixes all frames; ask at"),
        ("language_model.1", {"segment": 3}, "has no axis 'segment': a token .* mixes all segments; ask at the stage 'segment"),
        ("video_prefix", {"frame": 3}, "'video_prefix' has no axis 'frame': a video query mixes all frames; ask at the stage"),
        (
            "audio_queries",
            {"segment": 3},
            "has no axis 'segment': an audio query mixes all segments; ask at the stage 'segment_",
        ),
        ("audio_prefix", {"token": 0}, "has no axis 'token'"),
        ("language_model.1", {"token": "frame 3"}, "ask at the stage 'frame_tokens'"),
        ("language_model.1", {"head": 0}, "has no axis 'head'"),
        ("video_qformer.0.cross", {"head": 4}, "head 4 was asked for"),
    ],
)
def test_places_that_are_not_there_are_refused(bell: Trace, at: str, where: dict, message: str) -> None:
    with pytest.raises(VltError, match=message):
        bell.rerun(edits.zero(at, **where))


@pytest.mark.parametrize("at", ATTENTIONS)
def test_heads_are_edited_before_they_are_mixed(bell: Trace, at: str) -> None:
    """One head's zero is not another's."""
    where = {"token": "text"} if at in AT_LANGUAGE_MODEL else {}
    runs = [bell.edited(edits.zero(at, head=h, **where), answer=bell.answer.text) for h in (0, 1)]
    found = [run.stage("logits") for run in (bell, *runs)]
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(found, 2))
