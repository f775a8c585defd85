"""A sweep gives the numbers of one-by-one runs, computes nothing twice, and goes on where it was stopped."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tqdm.auto import tqdm

from tests.probe.conftest import QUESTION, shipped
from vlt import edits
from vlt.errors import VltError
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe import engine
from vlt.probe import sweep as sweeping
from vlt.probe.edits import Edit
from vlt.probe.interaction import interaction
from vlt.probe.sweep import ABLATIONS, UNEDITED, ablations, possible, sweep
from vlt.probe.trace import Trace, trace

CANDIDATES = ["I hear a buzz.", "I hear nothing."]
# Prompts of several lengths, and edits inside the language model: one batch of them is padded.
INSIDE = {
    "sound cut off": edits.knockout("audio", by="answering", layers="1:4"),
    "question cut off, and no video": [edits.without("video"), edits.knockout("question", layers=[0, 1])],
    "another question": edits.ask("What moves, and where does it go?"),
    "another question, less of it": [edits.ask("What moves?"), edits.zero("language_model.1", token="audio")],
    "a head": edits.zero("language_model.2.self", head=[0, 1], token="question"),
    "noise": [edits.without("audio"), edits.noise("language_model.0", size=2.0, token="video")],
    "soft tokens": edits.scale("prefix", -1.0, token="audio"),
    "a position": edits.zero("frame_position", frame=3),
    "eyes and mind": [edits.zero("vision_model.2.mlp", patch="row 2"), edits.scale("language_model.3.mlp", 0.5)],
    "queries cut off": edits.knockout("frame 0-5", at="video_qformer.*.cross"),
}


@pytest.fixture(scope="module")
def table(bell: Trace) -> pd.DataFrame:
    return sweep(bell, ABLATIONS | INSIDE, candidates=CANDIDATES, progress=False)


@pytest.mark.parametrize("name", [*ABLATIONS, *INSIDE])
def test_the_numbers_are_those_of_one_run(bell: Trace, table: pd.DataFrame, name: str) -> None:
    again, row = bell.rerun((ABLATIONS | INSIDE)[name]), table.loc[name]
    assert row["answer"] == again.answer.text
    assert row["same"] == (again.answer.ids == bell.answer.ids)
    assert row["logprob"] == pytest.approx(again.score(bell.answer.text), abs=1e-4)
    assert row["change"] == pytest.approx(row["logprob"] - float(bell.logprobs.sum()), abs=1e-4)
    for text in CANDIDATES:
        assert row[text] == pytest.approx(again.score(text), abs=1e-4)


def test_the_first_row_is_the_unedited_run(bell: Trace, table: pd.DataFrame) -> None:
    assert list(table.index) == [UNEDITED, *ABLATIONS, *INSIDE]
    first = table.iloc[0]
    assert first["answer"] == bell.answer.text
    assert first["same"]
    assert first["logprob"] == pytest.approx(float(bell.logprobs.sum()), abs=1e-4)
    assert first["change"] == first["fired"] == 0
    assert (table.loc[[n for n in table.index[1:] if n not in ("video", "audio", "another question")], "fired"] > 0).all()
    assert table["same"].nunique() == 2


def test_the_size_of_a_batch_changes_nothing(bell: Trace, table: pd.DataFrame) -> None:
    for batch, variants in ((1, ABLATIONS | INSIDE), (3, INSIDE)):
        other = sweep(bell, variants, candidates=CANDIDATES, batch=batch, progress=False)
        expected = table.loc[[UNEDITED, *variants]]
        assert other["answer"].tolist() == expected["answer"].tolist()
        np.testing.assert_allclose(other[["logprob", *CANDIDATES]], expected[["logprob", *CANDIDATES]], atol=1e-4)


def test_of_an_edited_run(bell: Trace) -> None:
    """The edits come behind its own; what it says is what they are measured by."""
    muted = bell.rerun(edits.mute())
    found = sweep(muted, {"video": edits.without("video")}, progress=False)
    assert found.loc[UNEDITED, "answer"] == muted.answer.text != bell.answer.text
    both = bell.rerun([edits.mute(), edits.without("video")])
    assert found.loc["video", "answer"] == both.answer.text
    assert found.loc["video", "logprob"] == pytest.approx(both.score(muted.answer.text), abs=1e-4)


def test_of_a_given_answer(bell: Trace) -> None:
    """Its log-probability is what is compared; what is said is what the model says."""
    run = trace(bell.model, bell.clip, QUESTION, answer="I hear a buzz.")
    found = sweep(run, {"mute": edits.mute()}, progress=False)
    assert found.loc[UNEDITED, "logprob"] == pytest.approx(bell.score("I hear a buzz."), abs=1e-4)
    assert found.loc[UNEDITED, "answer"] == "I hear a buzz." and found.loc[UNEDITED, "same"]
    assert found.loc["mute", "answer"] == bell.rerun(edits.mute()).answer.text


def test_what_is_possible_of_a_clip(boxed: VideoLlama, bell: Trace, silent: Trace) -> None:
    assert possible(bell) == ABLATIONS
    left = possible(silent)
    assert set(ABLATIONS) - set(left) == {
        "audio",
        "mute",
        "segment_position",
        "audio_features",
        "segment_tokens",
        "audio_prefix",
    }
    assert len(sweep(silent, left, progress=False)) == len(left) + 1
    one = trace(boxed, shipped("silent"), "What moves?", n_frames=1)
    assert set(left) - set(possible(one)) == {"reverse", "shuffle", "one_frame"}


@pytest.mark.parametrize(
    "edit", [edits.without("audio"), edits.zero("frame_position"), edits.scale("audio_features", 0.0)], ids=str
)
def test_of_an_edited_run_all_that_is_possible_can_be_done(bell: Trace, edit: Edit) -> None:
    """What was in force, and is made pointless by another edit, is no error; a new edit that does nothing is."""
    run = bell.rerun(edit)
    left = possible(run)
    assert ("mute" in left) is (edit.kind != "without") and "video" in left
    assert len(sweep(run, left, progress=False)) == len(left) + 1


def test_of_a_run_that_is_yet_to_be_made_too(bell: Trace) -> None:
    run = bell.edited(edits.zero("frame_position"))
    assert len(sweep(run, {"video": edits.without("video"), "reverse": edits.reverse()}, progress=False)) == 3


def test_a_model_in_training_is_refused_wherever_it_is_run(bell: Trace) -> None:
    run = bell.edited(edits.blank(frame=3))
    bell.model.train()
    try:
        with pytest.raises(VltError, match="the model is being trained"):
            run.stage("image_queries")
    finally:
        bell.model.eval()


def test_a_new_edit_that_does_nothing_beside_one_that_did_is_told(bell: Trace) -> None:
    cut = edits.knockout("audio", by="answering")
    run = bell.rerun(cut)
    with pytest.raises(VltError, match="did nothing"):
        run.rerun(cut)
    with pytest.raises(VltError, match="did nothing"):  # nor is one that has not been seen to do anything taken for granted
        bell.edited(edits.zero("video_queries")).rerun(edits.without("video"))


# ------------------------------------------------------------------ only what follows


@contextmanager
def counting(model: VideoLlama) -> Iterator[dict[str, list[int]]]:
    """Every call of a part, and of how many clips, frames or segments."""
    calls: dict[str, list[int]] = defaultdict(list)
    parts = {name: getattr(model, name) for name in ("vision_model", "image_qformer", "video_qformer", "audio_qformer")}
    parts["imagebind"] = model.imagebind.trunk("audio")

    def note(name: str):
        def hook(module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            first = output if isinstance(output, torch.Tensor) else output.last_hidden_state
            calls[name].append(len(first))

        return hook

    handles = [part.register_forward_hook(note(name), with_kwargs=True) for name, part in parts.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


FOLLOWS = {
    "audio_prefix": (edits.zero("audio_prefix"), {}),
    "segment_tokens": (edits.zero("segment_tokens"), {"audio_qformer": [1]}),
    "mute": (edits.mute(), {"imagebind": [1], "audio_qformer": [1]}),  # eight segments of the same silence
    "inside": (edits.zero("audio_qformer.0"), {"audio_qformer": [1]}),
    "frame_tokens": (edits.zero("frame_tokens"), {"video_qformer": [1]}),
    "frame_position": (edits.zero("frame_position"), {"video_qformer": [1]}),
    "patches": (edits.scale("patches", 0.5), {"image_qformer": [8], "video_qformer": [1]}),
    "reverse": (edits.reverse(), {"video_qformer": [1]}),  # frames that are known already
    "blank": (edits.blank(), {"vision_model": [1], "image_qformer": [1], "video_qformer": [1]}),
    "two": (edits.blank(frame=[2, 5]), {"vision_model": [1], "image_qformer": [1], "video_qformer": [1]}),
    "noise": (edits.noise("frames", 0.1), {"vision_model": [8], "image_qformer": [8], "video_qformer": [1]}),
    "vit": (edits.zero("vision_model.1", frame=3), {"vision_model": [8], "image_qformer": [1], "video_qformer": [1]}),
    "question": (edits.knockout("question"), {}),
    "without": (edits.without("video"), {}),
}


@pytest.mark.parametrize("name", FOLLOWS)
def test_only_what_follows_an_edit_is_computed(bell: Trace, name: str) -> None:
    edit, expected = FOLLOWS[name]
    _ = bell.logprobs
    with counting(bell.model) as calls:
        bell.rerun(edit)
    assert calls == expected
    with counting(bell.model) as calls:
        sweep(bell, {name: edit}, progress=False)
    assert calls == expected


def test_a_sweep_runs_every_part_once(bell: Trace) -> None:
    """For all runs that need it; the others' values are shared."""
    fresh = trace(bell.model, bell.clip, QUESTION)
    with counting(fresh.model) as calls:
        sweep(fresh, ABLATIONS, batch=32, progress=False)
    assert calls["vision_model"] == [8, 1]  # the unedited run's; what is blank: the others have the same frames
    assert calls["imagebind"] == [8, 1]  # the unedited run's; silence
    assert sum(calls["video_qformer"]) == 1 + 4 + 3  # and of frame positions, image queries, frame tokens
    assert sum(calls["audio_qformer"]) == 1 + 1 + 3


def test_single_frames_and_segments_are_encoded_once(bell: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of eight noisy frames alone: eight frames are new, and not 64; the numbers are those of encoding all."""
    variants = {f"frame {i}": edits.noise("frames", 0.1, frame=i) for i in range(8)}
    variants |= {f"segment {i}": edits.noise("spectrograms", 0.1, segment=i) for i in range(8)}
    variants |= {"two": edits.noise("frames", 0.1, frame=[0, 3]), "still": edits.repeat(5)}
    _ = bell.logprobs
    with counting(bell.model) as calls:
        table = sweep(bell, variants, batch=32, progress=False)
    assert sum(calls["vision_model"]) == sum(calls["image_qformer"]) == 8 + 2
    assert sum(calls["imagebind"]) == 8
    monkeypatch.setattr(engine, "APART", ())
    with counting(bell.model) as calls:
        again = sweep(bell, variants, batch=32, progress=False)
    assert sum(calls["vision_model"]) == 8 * 10 and table["answer"].equals(again["answer"])
    np.testing.assert_allclose(table["logprob"], again["logprob"], atol=1e-4)


# ------------------------------------------------------------------ kept on disk


class Stops(tqdm):
    """A progress bar at which somebody presses Ctrl-C."""

    def update(self, n: float = 1) -> None:
        raise KeyboardInterrupt


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_stopped_sweep_goes_on(bell: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.jsonl"
    expected = sweep(bell, ABLATIONS, candidates=CANDIDATES, batch=4, progress=False)
    monkeypatch.setattr(sweeping, "tqdm", Stops)
    for done in (4, 8):
        with pytest.raises(KeyboardInterrupt):
            sweep(bell, ABLATIONS, candidates=CANDIDATES, batch=4, keep=path, progress=False)
        assert len(lines(path)) == done
    monkeypatch.undo()
    with counting(bell.model) as calls:
        found = sweep(bell, ABLATIONS, candidates=CANDIDATES, batch=4, keep=path, progress=False)
    assert sum(calls["video_qformer"]) == 4  # shuffle, one frame, image queries, frame tokens are left
    assert len(lines(path)) == len({row["key"] for row in lines(path)}) == 17
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    before = path.read_bytes()
    with counting(bell.model) as calls:
        pd.testing.assert_frame_equal(sweep(bell, ABLATIONS, candidates=CANDIDATES, keep=path, progress=False), found)
    assert not calls
    assert path.read_bytes() == before


def test_a_line_that_was_cut_off_is_made_again(bell: Trace, tmp_path: Path) -> None:
    path, chosen = tmp_path / "results.jsonl", ablations(["mute", "audio", "video_prefix"])
    expected = sweep(bell, chosen, keep=path, progress=False)
    whole = path.read_bytes()
    for left in (len(whole) - 1, len(whole) - 30, whole.index(b"\n") + 2):
        path.write_bytes(whole[:left])
        found = sweep(bell, chosen, keep=path, progress=False)
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)
        assert len(lines(path)) == 4


FOREIGN = {
    "notes": b"shopping: milk\nbread\n",
    "one line of notes": b"shopping: milk",
    "JSON": b'{"my": "results"}',
    "JSON lines": b'{"key": 1}\n{"key": 2}\n',
    "numbers": b"1\n2\n3\n",
    "bytes": bytes(range(256)),
    "bytes and a line": bytes(range(256)) + b"\n",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_strangers_file_is_refused_and_left_as_it_is(bell: Trace, tmp_path: Path, name: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(FOREIGN[name])
    with pytest.raises(VltError, match=r"notes\.txt") as error:
        sweep(bell, ablations(["audio_prefix"]), keep=path, progress=False)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == FOREIGN[name]


def test_a_place_that_cannot_be_written_is_refused(bell: Trace, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere" / "results.jsonl"):
        with pytest.raises(VltError, match=str(path.name)):
            sweep(bell, ablations(["audio_prefix"]), keep=path, progress=False)


def other_model(run: Trace) -> VideoLlama:
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        model.video_projection.weight.mul_(-1)
    return model


def headless(run: Trace) -> VideoLlama:
    model = copy.deepcopy(run.model)
    with torch.no_grad():
        model.language_model.get_decoder().layers[2].self_attn.o_proj.weight[:, 32:64] = 0
    return model


def other(run: Trace, model: VideoLlama | None = None, clip: str = "", question: str = "", **options: object) -> Trace:
    """The same run with one thing changed; also what it is said to answer is the same."""
    asked = {"coverage": run.setting.coverage if "audio" in run.setting.branches else None, "answer": run.answer.text}
    return trace(model or run.model, shipped(clip) if clip else run.clip, question or run.question, **asked | options)


OTHERS = {
    "question": lambda run: other(run, question="Where is it?"),
    "clip": lambda run: other(run, clip="silent_two"),
    "frames": lambda run: other(run, n_frames=4),
    "coverage": lambda run: other(run, coverage="original"),
    "branches": lambda run: other(run, branches=["video"], coverage=None),
    "history": lambda run: other(run, history=[("What is there?", "A star.")]),
    "system": lambda run: other(run, system="You are kind."),
    "answer": lambda run: other(run, answer="It is there."),
    "length": lambda run: other(run, max_new_tokens=2),
    "model": lambda run: other(run, model=other_model(run)),
    "a head": lambda run: other(run, model=headless(run)),
    "edits": lambda run: run.rerun(edits.reverse(), answer=run.answer.text),
}


@pytest.mark.parametrize("name", OTHERS)
def test_results_of_other_runs_are_not_mixed_up(bell: Trace, silent: Trace, tmp_path: Path, name: str) -> None:
    run = bell if name in ("coverage", "branches") else silent
    path, chosen = tmp_path / "results.jsonl", {"none": edits.zero("video_prefix")}
    first = sweep(run, chosen, keep=path, progress=False)
    changed = OTHERS[name](run)
    found = sweep(changed, chosen, keep=path, progress=False)
    expected = sweep(changed, chosen, progress=False)
    pd.testing.assert_frame_equal(found, expected, atol=1e-5)
    assert not first.equals(expected)
    assert len(lines(path)) == 4
    pd.testing.assert_frame_equal(sweep(run, chosen, keep=path, progress=False), first)  # and the first is still there


def test_results_of_a_model_with_hooks_are_not_mixed_up(silent: Trace, tmp_path: Path) -> None:
    """What changes a model and is none of its weights."""
    path, chosen = tmp_path / "results.jsonl", {"none": edits.zero("video_prefix")}
    sweep(silent, chosen, keep=path, progress=False)
    model = copy.deepcopy(silent.model)
    model.language_model.get_decoder().layers[1].mlp.register_forward_hook(lambda module, args, output: output * 1.3)
    found = sweep(other(silent, model=model), chosen, keep=path, progress=False)
    pd.testing.assert_frame_equal(found, sweep(other(silent, model=model), chosen, progress=False))
    assert len(lines(path)) == 4


def test_results_with_other_candidates_are_not_mixed_up(silent: Trace, tmp_path: Path) -> None:
    path, chosen = tmp_path / "results.jsonl", {"none": edits.zero("video_prefix")}
    for candidates in ((), ["A star."], ["A circle."], ["A star.", "A circle."]):
        found = sweep(silent, chosen, candidates=candidates, keep=path, progress=False)
        expected = sweep(silent, chosen, candidates=candidates, progress=False)
        pd.testing.assert_frame_equal(found, expected, atol=1e-5)


SOURCES = {
    "of another number of frames": lambda run: trace(run.model, shipped("buzz"), QUESTION, n_frames=2),
    "of another question": lambda run: trace(run.model, shipped("buzz"), "What moves?"),
    "of another model": lambda run: trace(other_model(run), shipped("buzz"), QUESTION),
}


@pytest.mark.parametrize("name", SOURCES)
def test_results_of_other_sources_are_not_mixed_up(bell: Trace, buzz: Trace, tmp_path: Path, name: str) -> None:
    path = tmp_path / "results.jsonl"

    def taken(source: Trace) -> dict:
        at = {"token": "question 0-1"} if source.question != QUESTION else {"token": "video"}
        return {"taken": edits.swap("prefix", source, **at)}

    other = SOURCES[name](bell)
    sweep(bell, taken(buzz), keep=path, progress=False)
    try:
        found = sweep(bell, taken(other), keep=path, progress=False)
    except VltError:
        assert name == "of another model"  # may be refused
        return
    pd.testing.assert_frame_equal(found, sweep(bell, taken(other), progress=False), atol=1e-5)


def test_a_source_that_was_written_anew_is_read_anew(bell: Trace, tmp_path: Path) -> None:
    path, source = tmp_path / "results.jsonl", tmp_path / "source.mp4"
    for name in ("buzz", "hum"):
        source.write_bytes(shipped(name).path.read_bytes())
        found = sweep(bell, {"sound": edits.swap_sound(Clip(source))}, keep=path, progress=False)
        assert found.loc["sound", "answer"] == bell.rerun(edits.swap_sound(shipped(name))).answer.text


# ------------------------------------------------------------------ refused


def test_sweeps_that_cannot_be_are_refused_before_anything_runs(bell: Trace, tmp_path: Path) -> None:
    fresh = trace(bell.model, bell.clip, QUESTION, answer="I hear a bell.")
    good = {"good": edits.zero("audio_prefix")}
    with counting(bell.model) as calls:
        for variants, options, message in (
            ({}, {}, "at least one variant"),
            ({UNEDITED: edits.mute()}, {}, "none of them named 'unedited'"),
            (good | {"bad": edits.zero("eyes")}, {}, "fits no place"),
            (good | {"bad": edits.custom("frames", lambda value: value)}, {"keep": tmp_path / "a"}, "cannot be saved"),
        ):
            with pytest.raises(VltError, match=message):
                sweep(fresh, variants, progress=False, **options)
    assert not calls
    with pytest.raises(VltError, match="no ablation ''; all: video, audio"):  # `vlt sweep --ablate ""`
        ablations([""])
    with pytest.raises(VltError, match="no ablation 'sound'; all: video, audio"):
        ablations(["video", "sound"])


def test_an_edit_that_does_nothing_is_told(bell: Trace) -> None:
    with pytest.raises(VltError, match="did nothing"):
        sweep(bell, {"both": [edits.without("video"), edits.zero("video_prefix")]}, progress=False)


def test_what_others_did_is_kept_where_one_does_nothing(bell: Trace, tmp_path: Path) -> None:
    idle = [edits.without("video"), edits.zero("video_prefix")]
    chosen = {"mute": edits.mute(), "idle": idle, "blank": edits.blank()}
    with pytest.raises(VltError, match=r"^idle: .*did nothing"):
        sweep(bell, chosen, keep=tmp_path / "kept.jsonl", progress=False)
    assert len(lines(tmp_path / "kept.jsonl")) == 3  # the unedited run, too


def test_how_often_an_edit_fired_does_not_hang_on_the_batch(bell: Trace) -> None:
    chosen = {"cut": edits.knockout("audio"), "longer": edits.ask("What do you see?")}
    one, many = (sweep(bell, chosen, batch=batch, progress=False)["fired"] for batch in (1, 16))
    assert one.to_dict() == many.to_dict()


def test_a_function_fires_as_often_as_what_it_does(bell: Trace) -> None:
    """Though it is called for every token of an answer by itself."""
    both = {
        "scale": edits.scale("language_model.2", 0.5),
        "custom": edits.custom("language_model.2", lambda value: value * 0.5),
    }
    table = sweep(bell, both, progress=False)
    assert table.loc["scale", "fired"] == table.loc["custom", "fired"] > 0
    assert table.loc["scale", "logprob"] == pytest.approx(table.loc["custom", "logprob"], abs=1e-5)


def test_candidates_that_are_not_several(bell: Trace) -> None:
    """One text is one candidate, or refused; none takes the place of the table's own columns."""
    try:
        found = sweep(bell, ablations(["mute"]), candidates="I hear a buzz.", progress=False)
        assert "I hear a buzz." in found.columns
    except VltError:
        pass
    try:
        found = sweep(bell, ablations(["mute"]), candidates=["answer"], progress=False)
        assert found.loc[UNEDITED, "answer"] == bell.answer.text
    except VltError:
        pass


@pytest.mark.parametrize("batch", [0, -1, 1.5, True])
def test_batches_have_rows(bell: Trace, batch: object) -> None:
    for do in (lambda: sweep(bell, {"deaf": edits.mute()}, batch=batch), lambda: interaction(bell, batch=batch)):  # type: ignore[arg-type]
        with pytest.raises(VltError, match="expected a number of rows from 1 on"):
            do()


def test_words_of_an_answer_are_not_edited_where_it_is_read_and_left_where_it_is_made(bell: Trace) -> None:
    hear = [i for i, word in enumerate(bell.asked.coordinates["word"]) if word.strip() == "hear"]  # the answer has it too
    by_word, by_place = edits.zero("language_model.0", word="hear"), edits.zero("language_model.0", token=hear)
    table = sweep(bell, {"word": by_word, "place": by_place}, progress=False)
    assert table.loc["word", "answer"] == table.loc["place", "answer"] and hear
    assert table.loc["word", "logprob"] == pytest.approx(table.loc["place", "logprob"], abs=1e-5)
    assert table.loc["word", "fired"] == table.loc["place", "fired"]
    with pytest.raises(VltError, match="reaches into the answer, which is yet to be made"):
        bell.rerun(edits.zero("language_model.0", word="bell"), answer=bell.answer.text)  # nowhere but there


def test_a_variant_has_edits(bell: Trace) -> None:
    with pytest.raises(VltError, match="nothing: no edit was given"):
        sweep(bell, {"deaf": edits.mute(), "nothing": []}, progress=False)


def test_a_mean_is_over_values_of_one_shape(bell: Trace, buzz: Trace) -> None:
    fewer = trace(bell.model, buzz.clip, QUESTION, n_frames=4)
    with pytest.raises(VltError, match=r"\[64, 96\] is here, and \[32, 96\] of 'buzz.mp4'"):
        bell.rerun(edits.mean("frame_tokens", [buzz, fewer]))


@pytest.mark.parametrize("variants", [{}, [edits.mute(), edits.blank()], edits.mute(), "mute", {"unedited": edits.mute()}])
def test_variants_have_names(bell: Trace, variants: object) -> None:
    with pytest.raises(VltError, match=r"give at least one variant, \{name: edits\}"):
        sweep(bell, variants)
