"""Edits as values: saved and read back they do the same; strangers' JSON and what an edit cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.probe.conftest import QUESTION, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.probe.edits import KINDS, Edit
from vlt.probe.trace import Trace, trace


def one_of_each(other: Trace) -> dict[str, Edit]:
    hum = shipped("hum")
    return {
        "zero": edits.zero("language_model.1.self", head=np.array([0, 2]), token="audio 1-3"),
        "scale": edits.scale("video_qformer.*", 0.5, video_query=range(2, 5)),
        "noise": edits.noise("patches", size=2.0, seed=7, patch_row=3, frame=slice(None, 4)),
        "mean": edits.mean("audio_queries", [hum, other]),
        "swap": edits.swap("audio_prefix", other, audio_query=[1, 2, 5]),
        "resample": edits.resample("segment_tokens", [hum, shipped("bell")], seed=3, segment="audio 0-4s"),
        "reorder": edits.shuffle("image_queries", "image_query", seed=2),
        "knockout": edits.knockout(["question", "audio 2"], by="answering", layers=slice(1, 3)),
        "blank": edits.blank(frame=np.int64(2), height="0:32"),
        "mute": edits.mute(segment=[0, 1]),
        "shift": edits.shift(-0.5),
        "without": edits.without("video"),
        "ask": edits.ask("What moves?"),
    }


SAVED = [kind for kind in KINDS if kind != "custom"]


@pytest.mark.parametrize("kind", SAVED)
def test_saved_and_read_back_it_is_the_same(bell: Trace, buzz: Trace, kind: str) -> None:
    edit = one_of_each(buzz)[kind]
    assert edit.kind == kind
    text = edits.dumps(edit)
    (again,) = edits.loads(text)
    assert again == edit
    assert hash(again) == hash(edit)
    assert str(again) == str(edit)
    assert edits.dumps(again) == text
    first, second = bell.rerun(edit), bell.rerun(again)
    assert first.answer.ids == second.answer.ids
    assert torch.equal(first.stage("logits"), second.stage("logits"))
    assert first.fired == second.fired


def test_several_are_saved_in_their_order(buzz: Trace, tmp_path: Path) -> None:
    several = list(one_of_each(buzz).values())
    text = edits.dumps(several)
    assert edits.loads(text) == several
    assert [row["kind"] for row in json.loads(text)] == SAVED
    path = tmp_path / "edits.json"
    path.write_text(text)
    assert edits.read(path) == several
    with pytest.raises(VltError, match=r"nothing\.json"):
        edits.read(tmp_path / "nothing.json")


@pytest.mark.parametrize(
    "options",
    [
        {"n_frames": 4},
        {"coverage": "original"},
        {"branches": ["video"], "system": "You are kind."},
        {"history": [("Who?", "Me.")]},
    ],
)
def test_what_a_source_hangs_on_is_saved_too(bell: Trace, options: dict) -> None:
    at, clip = ("audio_prefix", "buzz") if "coverage" in options else ("video_prefix", "silent")
    edit = edits.swap(at, trace(bell.model, shipped(clip), QUESTION, **options))
    (again,) = edits.loads(edits.dumps(edit))
    assert again == edit
    assert torch.equal(bell.edited(again).stage(at), bell.edited(edit).stage(at))


def test_a_clip_is_taken_as_the_run_was(bell: Trace) -> None:
    """With its coverage and its number of frames."""
    run = trace(bell.model, bell.clip, QUESTION, coverage="original", n_frames=3, answer="A bell.")
    value = run.edited(edits.swap_sound(shipped("buzz")))["spectrograms"].values
    np.testing.assert_array_equal(value, shipped("buzz").spectrograms(8, "original").numpy())
    assert run.edited(edits.swap("frames", shipped("buzz")))["frames"].shape[0] == 3


def test_a_clip_is_asked_what_the_run_was_asked(bell: Trace) -> None:
    """Each edited run's own question, whatever another asked before."""
    for question in ("What do you see?", "What moves now?"):
        other = bell.edited([edits.ask(question), edits.swap("prefix", shipped("buzz"), token="question")], answer="It.")
        plain = trace(bell.model, bell.clip, question, answer="It.")
        np.testing.assert_array_equal(other["prefix"].values, plain["prefix"].values)


def test_a_clip_without_sound_may_give_its_pictures(bell: Trace) -> None:
    value = bell.rerun(edits.swap("video_queries", shipped("silent")))["video_queries"].values
    assert not np.array_equal(value, bell["video_queries"].values)


def test_runs_of_one_clip_are_told_apart(bell: Trace, buzz: Trace) -> None:
    """Values of a run and of what edits made of it are not the same, though both are of one file."""
    changed = buzz.edited(edits.scale("spectrograms", 0.5), answer="I hear a buzz.")
    plain, other = edits.swap("audio_prefix", buzz), edits.swap("audio_prefix", changed)
    assert plain != other and str(other).endswith("with [\"scale('spectrograms', factor=0.5)\"])")
    assert list(bell.rerun([plain, other]).fired.values()) == [1, 1]


def test_saved_sources_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shipped("buzz").path.parent)
    (edit,) = edits.loads(edits.dumps(edits.swap_sound(Clip("buzz.mp4"))))
    monkeypatch.chdir(tmp_path)
    assert Path(edit.sources[0].clip) == shipped("buzz").path.resolve()


def test_functions_and_edited_runs_cannot_be_saved(bell: Trace) -> None:
    with pytest.raises(VltError, match="a function cannot be saved"):
        edits.dumps(edits.custom("frames", lambda value: value))
    edited = bell.rerun(edits.zero("video_queries"))
    with pytest.raises(VltError, match="takes values from an edited run"):
        edits.dumps(edits.swap("video_prefix", edited))
    assert not bell.rerun(edits.swap("video_queries", edited))["video_queries"].values.any()  # but it can be used


STRANGE = {
    "nothing": "",
    "no JSON": "zero('frames')",
    "no list": '{"kind": "zero", "at": "frames"}',
    "no edits": "[1, 2]",
    "a text": '["zero"]',
    "null": "[null]",
    "no place": '[{"kind": "zero"}]',
    "a kind that is none": '[{"kind": "explode", "at": "frames"}]',
    "a kind that is a list": '[{"kind": [], "at": "frames"}]',
    "a function": '[{"kind": "custom", "at": "frames", "options": {"function": "print"}}]',
    "an unknown key": '[{"kind": "zero", "at": "frames", "eval": "1"}]',
    "an unknown option": '[{"kind": "zero", "at": "frames", "options": {"factor": 2}}]',
    "an option that lacks": '[{"kind": "scale", "at": "frames"}]',
    "an option of text": '[{"kind": "scale", "at": "frames", "options": {"factor": "2"}}]',
    "a source too few": '[{"kind": "swap", "at": "frames"}]',
    "a source too many": '[{"kind": "zero", "at": "frames", "sources": [{"clip": "a", "question": ""}]}]',
    "a source that is none": '[{"kind": "swap", "at": "frames", "sources": [3]}]',
    "a source's option": '[{"kind": "swap", "at": "frames", "sources": [{"clip": "a", "question": "", "options": {"x": 1}}]}]',
    "places that are none": '[{"kind": "zero", "at": "frames", "where": {"frame": {"a": 1}}}]',
    "where that is none": '[{"kind": "zero", "at": "frames", "where": [1]}]',
    "options that are none": '[{"kind": "zero", "at": "frames", "options": 3}]',
    "places of a whole": '[{"kind": "reorder", "at": "frames", "where": {"height": "0:8"}, "options": {"axis": "frame", "order": "reverse"}}]',
    "blank elsewhere": '[{"kind": "blank", "at": "audio_prefix"}]',
    "very deep": "[" * 200_000,
    "very long numbers": '[{"kind": "scale", "at": "frames", "options": {"factor": ' + "9" * 5_000 + "}}]",
    "bytes": b"\xff\xfe\x00",
    "none": None,
}


@pytest.mark.parametrize("name", STRANGE)
def test_strangers_json_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(VltError) as error:
        edits.loads(STRANGE[name])
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def made(**row: object) -> str:
    return json.dumps([row])


GONE = {"clip": "/nowhere/gone.mp4", "question": ""}
MISUSED = {
    "no place": made(kind="zero", at="eyes"),
    "a clip that is not there": made(kind="swap", at="frames", sources=[{"clip": "/nowhere.mp4", "question": ""}]),
    "silence of frames": made(kind="mute", at="frames"),
    "a colour of sound": made(kind="blank", at="video_queries", where={"frame": 1}),
    "a shift of frames": made(kind="shift", at="frames", options={"seconds": 1.0}),
    "a shift by nothing": made(kind="shift", at="spectrograms", options={"seconds": 0.0}),
    "noise of no size": made(kind="noise", at="frames", options={"size": 0.0, "seed": 1}),
    "a seed below 0": made(kind="reorder", at="frames", options={"axis": "frame", "order": "shuffle", "seed": -1}),
    "a huge seed": made(kind="noise", at="frames", options={"size": 1.0, "seed": 2**80}),
    "an infinite factor": '[{"kind": "scale", "at": "frames", "options": {"factor": Infinity}}]',
    "a shift without end": '[{"kind": "shift", "at": "spectrograms", "options": {"seconds": Infinity}}]',
    "an order that is none": made(kind="reorder", at="frames", options={"axis": "frame", "order": "sideways"}),
    "an axis that is none": made(kind="reorder", at="frames", options={"axis": "smell", "order": "reverse"}),
    "a branch that is none": made(kind="without", at="prompt", options={"branch": "smell"}),
    "a question that is none": made(kind="ask", at="prompt", options={"question": " "}),
    "half a frame": made(kind="zero", at="frames", where={"frame": 0.5}),
    "a truth for a place": made(kind="zero", at="frames", where={"frame": True}),
    "nothing for a place": made(kind="zero", at="frames", where={"frame": None}),
    "half a layer": made(kind="knockout", at="language_model.*.self", options={"seen": "audio", "layers": [0.5]}),
}


@pytest.mark.parametrize("name", MISUSED)
def test_what_reads_well_and_cannot_be_done_is_refused_in_one_line(bell: Trace, name: str) -> None:
    with pytest.raises(VltError) as error:
        bell.rerun(edits.loads(MISUSED[name]))
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------ refused where they are made, or used

MADE = {
    "a factor of noise": (lambda: edits.noise("frames", size=0.0), "would change nothing"),
    "a shift": (lambda: edits.shift(0), "would change nothing"),
    "a shift by less than a sample": (lambda: edits.shift(3e-5), "would change nothing"),
    "a factor that rounds to one": (lambda: edits.scale("frames", 1 + 1e-12), "scale by 1 would change nothing"),
    "a mean of nothing": (lambda: edits.mean("frames", []), "a list of at least one clip"),
    "a mean of no list": (lambda: edits.mean("frames", shipped("hum")), "a list of at least one clip or trace; got Clip"),
    "a factor of one": (lambda: edits.scale("frames", 1.0), "scale by 1 would change nothing"),
    "a factor in words": (lambda: edits.scale("frames", "twice"), "factor is a number; got 'twice'"),
    "a size in words": (lambda: edits.noise("frames", "much"), "size is a number; got 'much'"),
    "half a seed": (lambda: edits.noise("frames", 1.0, 0.5), "seed is a whole number; got 0.5"),
    "a shift in words": (lambda: edits.shift("later"), "seconds is a number; got 'later'"),
    "half a frame": (lambda: edits.repeat(2.5), "frame is a whole number; got 2.5"),
    "a question that is none": (lambda: edits.ask(3), "a question: expected str, got int"),
    "a draw from nothing": (lambda: edits.resample("frames", []), "at least one clip"),
    "a path": (lambda: edits.swap("frames", "a.mp4"), "from a Trace or a Clip, not from a str"),
    "a place": (lambda: edits.zero(3), "a place is named by a string"),
    "places": (lambda: edits.zero("frames", frame=object()), "is not understood"),
    "a backward slice": (lambda: edits.zero("frames", frame=slice(5, 1, -1)), "is not understood"),
    "no function": (lambda: edits.custom("frames", 3), "takes a function, not a int"),
    "a branch": (lambda: edits.without("sounds"), "no branch 'sounds'"),
}


@pytest.mark.parametrize("name", MADE)
def test_edits_that_cannot_be_are_refused_where_they_are_made(name: str) -> None:
    make, message = MADE[name]
    with pytest.raises(VltError, match=message):
        make()


USED = {
    "another shape": (edits.custom("frames", lambda value: value[:2]), r"gave \[2, 3, 64, 64\].*expected \[8, 3, 64, 64\]"),
    "another shape inside": (edits.custom("vision_model.0", lambda value: value.mT), "expected"),
    "another dtype": (edits.custom("video_queries", lambda value: value.double()), r"torch\.float64.*expected.*torch\.float32"),
    "no tensor": (edits.custom("video_queries", lambda value: None), "gave a NoneType; expected a tensor"),
    "an array": (edits.custom("video_queries", lambda value: value.numpy()), "gave a ndarray"),
    "nan": (edits.custom("frames", lambda value: value * float("nan")), "not finite"),
    "infinity": (edits.custom("language_model.1", lambda value: value / 0), "not finite"),
    "noise on what is all the same": ([edits.zero("frames"), edits.noise("frames")], "all these numbers are equal"),
    "another shape from another run": (edits.swap("patches", shipped("two_bell"), frame=9), "there are 8"),
    "sound of pictures": (edits.swap("audio_prefix", shipped("silent")), "audio"),
    "one frame's order": (edits.repeat(8), "a place from 0 to 7"),
    "no stage to edit": (edits.zero("logits"), "can stand at frames, patches"),
    "no stage": (edits.zero("video_querys"), "nearest: video_queries"),
    "no place": (edits.zero("vidio_qformer.*"), "nearest: video_qformer"),
    "no edit": ([], "no edit was given"),
    "no edits": (["zero"], "an edit is made by vlt.edits"),
    "what was asked": (edits.ask("What do you hear?"), "is what was asked already; nothing would change"),
    "a branch that is gone": ([edits.without("audio"), edits.without("audio")], "is taken from the prompt already"),
    "values of a file that is gone": (
        edits.loads(made(kind="swap", at="frames", sources=[GONE])),
        "gone.mp4: no such file; an",
    ),
    "a twin that has nothing left to cut": ([edits.knockout("audio"), edits.knockout("audio")], "did nothing"),
    "an answer to be made": (edits.noise("language_model.1"), "reaches into the answer, which is yet to be made"),
    "what is not run": ([edits.without("video"), edits.zero("video_queries")], "did nothing"),
    "what is not run inside": ([edits.without("audio"), edits.zero("imagebind.0")], "did nothing"),
}


@pytest.mark.parametrize("name", USED)
def test_edits_that_cannot_be_are_refused_where_they_are_used(bell: Trace, name: str) -> None:
    edit, message = USED[name]
    with pytest.raises(VltError, match=message) as error:
        bell.rerun(edit)
    assert "\n" not in str(error.value)


def test_runs_whose_shapes_do_not_fit_are_refused(bell: Trace) -> None:
    short = trace(bell.model, bell.clip, QUESTION, n_frames=2)
    with pytest.raises(VltError, match=r"gave \[2, 3, 64, 64\].*expected \[8, 3, 64, 64\]"):
        bell.rerun(edits.swap("frames", short))
    with pytest.raises(VltError, match="there is only 1 on this axis"):
        trace(bell.model, bell.clip, QUESTION, n_frames=1).rerun(edits.shuffle())
