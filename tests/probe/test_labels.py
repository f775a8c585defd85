"""Labels are true: what an array says of a place is so in the file and in the model."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.probe.conftest import ATTENTIONS, PLACES, QUESTION
from vlt.inputs.clip import Clip
from vlt.model.video_llama import VideoLlama
from vlt.probe import edits
from vlt.probe.trace import Trace, trace

RATE = 16_000


def test_frames_have_their_times(bell: Trace) -> None:
    clip, array = bell.clip, bell["patches"]
    numbers = clip.frame_indices(8)
    assert len(set(numbers.tolist())) == 8
    assert array.frame_number.values.tolist() == numbers.tolist()
    assert array.seconds.values.tolist() == clip.frame_times[numbers].tolist()
    # and the pixels are those of these frames
    pixels = clip.frames(size=64, indices=array.frame_number.values[[2, 5]])
    np.testing.assert_array_equal(bell["frames"].values[[2, 5]], pixels.numpy())


def test_frames_of_a_file_whose_rate_varies_have_their_times(boxed: VideoLlama, media) -> None:
    stamps = [0, 1, 2, 3, 10, 11, 12, 30, 31, 50]
    run = trace(boxed, Clip(media("varies.mp4", frames=10, stamps=stamps, sound=None)), QUESTION, n_frames=5)
    array = run["frames"]
    np.testing.assert_allclose(array.seconds.values, np.asarray(stamps)[array.frame_number.values] / 10, atol=1e-6)


def test_frame_tokens_are_frame_by_frame(bell: Trace) -> None:
    """Of each frame's image queries, with the frame's position added."""
    tokens, queries = bell["frame_tokens"], bell["image_queries"].values
    position = bell.model.frame_position.weight.numpy()
    assert tokens.dims == ("frame_token", "qformer_width")
    for at in (0, 7, 8, 37, 63):
        frame, query = int(tokens.frame[at]), int(tokens.image_query[at])
        np.testing.assert_allclose(tokens.values[at], queries[frame, query] + position[frame], atol=1e-6)
        assert float(tokens.seconds[at]) == float(bell["frames"].seconds[frame])


def test_a_patch_is_where_its_row_and_column_say(bell: Trace) -> None:
    """Only the patches of the pixels that change have other embeddings."""
    axis = bell.axes_of("patches")[1]
    seen = bell.model.vision_model.embeddings
    frames = bell.given["frames"][0]
    for row, column in ((0, 0), (2, 5), (7, 1)):
        changed = frames.clone()
        changed[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] += 1
        moved = (seen(changed) - seen(frames)).abs().sum(dim=(0, 2)) > 1e-3
        (place,) = moved.nonzero()[0].tolist()
        assert int(moved.sum()) == 1
        assert set(axis.find(f"row {row}")) & set(axis.find(f"column {column}")) == {place}
        assert (axis.coordinates["patch_row"][place], axis.coordinates["patch_column"][place]) == (row, column)
    assert list(axis.find("class")) == [0]
    assert len(axis.find("patch")) == 64


def test_a_sound_patch_is_where_its_labels_say(bell: Trace) -> None:
    trunk, axis = bell.model.imagebind.trunk("audio"), bell.axes_of("imagebind.0")[1]
    heard = bell["spectrograms"]
    whole = bell.given["spectrograms"][0]
    for row, column in ((0, 0), (3, 7), (7, 11)):
        changed = whole.clone()
        mel, time = row * 16 + 8, column * 16 + 8
        changed[:, :, mel, time] += 50
        moved = (trunk.tokens(changed) - trunk.tokens(whole)).abs().sum(dim=(0, 2)) > 1e-3
        (place,) = moved.nonzero()[0].tolist()
        assert int(moved.sum()) == 1
        known = {key: value[place] for key, value in axis.coordinates.items()}
        assert (known["patch_row"], known["patch_column"]) == (row, column)
        assert known["hz_low"] < float(heard.hz[mel]) < known["hz_high"]
        assert known["segment_seconds"] == float(heard.segment_seconds[column * 16])


def test_segments_have_their_seconds(bell: Trace) -> None:
    array, bounds = bell["segment_tokens"], bell.clip.segments(8, "whole")
    assert array.start.values.tolist() == [float(a) for a, _ in bounds]
    assert array.end.values.tolist() == [float(b) for _, b in bounds]
    original = trace(bell.model, bell.clip, QUESTION, coverage="original")["segment_tokens"]
    assert original.end.values[-1] < array.end.values[-1] == pytest.approx(16)


def test_sound_that_begins_late_has_the_clips_seconds(boxed: VideoLlama, media) -> None:
    """Frames and segments have one clock: that of the clip."""
    clip = Clip(media("late.mp4", seconds=3.0, sound_after=1.0))
    assert clip.sound.start == pytest.approx(1.0, abs=0.05)
    run = trace(boxed, clip, QUESTION)
    assert float(run["frames"].seconds[0]) == 0
    assert float(run["segment_tokens"].start[0]) == pytest.approx(clip.sound.start)


def test_mel_bins_are_kaldis(bell: Trace) -> None:
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 130)
    np.testing.assert_allclose(bell["spectrograms"].hz.values, 700 * (np.exp(edges[1:-1] / 1127) - 1), rtol=1e-5)


@pytest.mark.parametrize("hz", [500, 1500, 4000])
def test_a_tone_is_heard_at_its_pitch_and_time(boxed: VideoLlama, tmp_path: Path, hz: int) -> None:
    seconds = np.arange(12 * RATE) / RATE
    sounding = (seconds >= 6.5) & (seconds < 7.0)
    path = tmp_path / "tone.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((0.5 * np.sin(2 * np.pi * hz * seconds) * sounding * 32767).astype("<i2").tobytes())
    array = trace(boxed, Clip(path), QUESTION)["spectrograms"][:, 0]
    # that padding is louder than silence is the original's way: look at what lies in the sound
    loudest = array.where(array.segment_seconds < 1.98, drop=True)
    loudest = loudest[tuple(np.unravel_index(loudest.values.argmax(), loudest.shape))]
    assert float(loudest.hz) == pytest.approx(hz, rel=0.04)
    assert 6.5 - 0.03 <= float(loudest.start) + float(loudest.segment_seconds) <= 7.03
    assert float(loudest.start) <= 7.0
    assert float(loudest.end) >= 6.5


# ------------------------------------------------------------------ in arrays


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_knows_what_looks_and_what_is_looked_at(bell: Trace, name: str) -> None:
    """All that is known of either axis is in the array, and of the right one."""
    site, array = PLACES[name], bell.attention(name)
    rows, columns = (bell.tokens if axis.name == "token" else axis for axis in bell.labels.seen(site))
    assert array.dims[-2:] == (rows.name, columns.name if columns.name != rows.name else f"{columns.name}_seen")
    assert array.shape[-2:] == (rows.size, columns.size)
    for axis, dim in ((rows, array.dims[-2]), (columns, array.dims[-1])):
        for key, value in axis.coordinates.items():
            here = [c for c in (key, f"{key}_seen") if c in array.coords and array.coords[c].dims == (dim,)]
            assert len(here) == 1, (key, dim)
            np.testing.assert_array_equal(array.coords[here[0]].values, value)
    assert array.dims[:-2] == (*site.inner, "head")


def test_parts_of_attention_keep_their_labels(bell: Trace) -> None:
    array = bell.attention("language_model.2.self", rows="answering", columns="audio", head=[2, 0])
    begin = bell.row.begin
    assert array["head"].values.tolist() == [2, 0]
    assert array.token.values.tolist() == list(range(begin - 1, begin + 5))
    assert array.word.values.tolist() == [":", " I", " hear", " a", " bell", "."]
    assert array["query_seen"].values.tolist() == list(range(8))
    assert set(array["group_seen"].values) == {"audio"}
    groups = bell.attention("language_model.2.self", columns=["audio", "video", "question"], mean=True)
    assert groups.dims == ("token", "seen")
    assert groups.coords["seen"].values.tolist() == ["audio", "video", "question"]
    frames = bell.attention("video_qformer.1.cross", columns=["frame 0", "frame 1-7"], mean=True)
    assert frames.coords["seen"].values.tolist() == ["frame 0", "frame 1-7"]
    np.testing.assert_allclose(frames.sum("seen").values, 1, atol=1e-6)


@pytest.mark.parametrize("question", ["What \N{BELL}\N{BELL} is  it?", "\N{BELL} here?", "聞こえる音は?", "Was hörst du?"])
def test_every_token_of_a_question_is_of_it(bell: Trace, question: str) -> None:
    """Also those whose text another has: the first bytes of a character, and white space."""
    run = trace(bell.model, bell.clip, question)
    table = run.tokens.table().iloc[: run.row.begin]
    asked = np.flatnonzero(table["group"] == "question")
    ids = bell.model.tokenizer.encode(question, add_special_tokens=False)
    assert len(ids) - 1 <= len(asked) <= len(ids) + 1 and np.array_equal(asked, np.arange(asked[0], asked[-1] + 1))
    assert "".join(table["word"].iloc[asked]).split() == question.split()
    cut = run.rerun(edits.knockout("question"), answer="I hear a bell.").logprobs
    whole = run.rerun(edits.knockout(asked.tolist()), answer="I hear a bell.").logprobs
    np.testing.assert_allclose(cut, whole, atol=1e-5)


def test_words_and_groups_of_tokens(bell: Trace) -> None:
    array = bell["language_model.1"]
    table = bell.tokens.table()
    assert array.word.values.tolist() == table["word"].tolist()
    assert "".join(table["word"]).endswith("heard. What do you hear?###Assistant: I hear a bell.###")
    assert table.groupby("group").size().to_dict() == {"audio": 8, "video": 16, "question": 5, "answer": 6, "prompt": 61}
    prefix = torch.from_numpy(bell["prefix"].values)
    for branch in ("audio", "video"):  # the soft tokens are where it is said, in their order
        soft = prefix[np.flatnonzero(table["group"] == branch)]
        assert torch.equal(soft, bell.stage(f"{branch}_prefix")[0])
        assert table.loc[table["group"] == branch, "query"].tolist() == list(range(len(soft)))
