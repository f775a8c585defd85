"""Axes: numbers, ranges and phrases name the places they say; what names none is refused, and says where to ask."""

from __future__ import annotations

import numpy as np
import pytest

from tests.probe.conftest import QUESTION, shipped
from vlt.errors import VltError
from vlt.probe import axes
from vlt.probe.axes import Axis
from vlt.probe.trace import Trace, trace

FRAMES = axes.frame([0, 16, 32, 48], [0.0, 2.0, 4.0, 6.0])
AXES = {
    "plain": axes.plain("head", 4),
    "frame": FRAMES,
    "frame token": axes.frame_token(FRAMES, 3),
    "segment": axes.segment([(0, 2), (1, 3), (2, 4), (3, 5)]),
    "patch": axes.patch(2, 3),
    "sound": axes.sound_patch("sound_patch_seen", np.arange(8) * 100.0, np.arange(12) * 0.1, 4, 4, nothing=True),
    "token": axes.token(
        ["<s>", "", "", "", "look", "", "", "What", "?", ":", "It", "is", "."],
        ["text", "audio", "audio", "audio", "text", "video", "video", *["text"] * 6],
        [-1, 0, 1, 2, -1, 0, 1, *[-1] * 6],
        [7, 8],
        10,
    ),
}

FOUND = [
    ("plain", 2, [2]),
    ("plain", [3, 1], [3, 1]),
    ("plain", np.array([0, 2]), [0, 2]),
    ("plain", np.int64(1), [1]),
    ("plain", slice(1, 3), [1, 2]),
    ("plain", slice(None, None, 2), [0, 2]),
    ("plain", slice(-2, None), [2, 3]),
    ("plain", range(1, 3), [1, 2]),
    ("plain", "1:3", [1, 2]),
    ("plain", "2:", [2, 3]),
    ("plain", ":2", [0, 1]),
    ("plain", ":", [0, 1, 2, 3]),
    ("plain", "all", [0, 1, 2, 3]),
    ("plain", "head", [0, 1, 2, 3]),
    ("plain", "head 2", [2]),
    ("plain", "Heads 1-2", [1, 2]),
    ("plain", ["head 2", "head 0"], [0, 2]),
    ("frame", "frame 3", [3]),
    ("frame", "frames 1-2", [1, 2]),
    ("frame", "frame 2s", [1]),
    ("frame", "video 1-4s", [1]),  # 4 s is where it ends
    ("frame", "video 2-4.1 s", [1, 2]),
    ("frame token", "frame 1", [3, 4, 5]),
    ("frame token", "frame 1-2", [3, 4, 5, 6, 7, 8]),
    ("frame token", "image query 2", [2, 5, 8, 11]),
    ("frame token", "image_query 0-1", [0, 1, 3, 4, 6, 7, 9, 10]),
    ("frame token", "video 5-7s", [9, 10, 11]),
    ("frame token", "frame_token 4", [4]),
    ("segment", "segment 1", [1]),
    ("segment", "audio 0-2s", [0, 1]),  # 1 to 3 overlaps, 2 to 4 only touches
    ("segment", "audio 4.5s", [3]),
    ("segment", "segment 3-4s", [2, 3]),
    ("segment", "audio", [0, 1, 2, 3]),
    ("patch", "patch", [1, 2, 3, 4, 5, 6]),
    ("patch", "patch 0", [1]),
    ("patch", "row 1", [4, 5, 6]),
    ("patch", "column 2", [3, 6]),
    ("patch", "columns 0-1", [1, 2, 4, 5]),
    ("patch", "class", [0]),
    ("patch", 0, [0]),
    ("sound", "row 1", [4, 5, 6]),
    ("sound", "column 0", [1, 4]),
    ("sound", "nothing", [7]),
    ("sound", "class", [0]),
    ("sound", "patch", [1, 2, 3, 4, 5, 6]),
    ("token", "audio", [1, 2, 3]),
    ("token", "audio 1", [2]),
    ("token", "audio 1-2", [2, 3]),
    ("token", "video", [5, 6]),
    ("token", "video 0", [5]),
    ("token", "question", [7, 8]),
    ("token", "question 1", [8]),
    ("token", "answer", [10, 11, 12]),
    ("token", "answer 0", [10]),
    ("token", "answering", [9, 10, 11]),
    ("token", "last", [9]),
    ("token", "text", [0, 4, 7, 8, 9]),
    ("token", "token 4", [4]),
    ("token", ["video", "audio 0"], [1, 5, 6]),
    ("token", "all", list(range(13))),
]


@pytest.mark.parametrize(("axis", "index", "places"), FOUND)
def test_places_that_are_meant(axis: str, index: object, places: list[int]) -> None:
    found = AXES[axis].find(index)
    assert found.tolist() == places
    assert found.dtype == np.int64


FRAMES_ELSEWHERE = "mixes all frames; ask at the stage 'frame_tokens'"
SEGMENTS_ELSEWHERE = "mixes all segments; ask at the stage 'segment_tokens'"
REFUSED = [
    ("plain", 4, "head 4 was asked for; there are 4: 0 to 3"),
    ("plain", -1, "head -1 was asked for"),
    ("plain", [0, 9], "there are 4"),
    ("plain", [], "there are 4"),
    ("plain", [1, 1], "names a place twice"),
    ("plain", True, "True was asked for"),
    ("plain", [0, True], "was asked for"),
    ("plain", 1.5, "1.5"),
    ("plain", [0.5], "0.5"),
    ("plain", None, "None"),
    ("plain", slice(3, 1), "there are 4"),
    ("plain", slice(None, None, -1), "was asked for"),
    ("plain", range(2, 9), "there are 4"),
    ("plain", "1:9", "'1:9' was asked for; there are 4"),
    ("plain", "4:", "there are 4"),
    ("plain", "2:2", "there are 4"),
    ("plain", "head 7", "names no place: here are head 0 to 3"),
    ("plain", "haed 1", "has no 'haed'; nearest: head"),
    ("plain", "head 1s", "has no times here"),
    ("plain", "", "is not understood"),
    ("plain", "!", "is not understood; say one of head, all"),
    ("frame", "frame 9", "here are frame 0 to 3, seconds 0 to 6"),
    ("frame", "frame 7-8s", "seconds 0 to 6"),
    ("frame", "frame 3-1", "ends before it begins"),
    ("segment", "audio 4-2s", "ends before it begins"),
    ("segment", "audio 9-10s", "seconds 0 to 5"),
    ("token", "frame 3", FRAMES_ELSEWHERE),
    ("token", "frame", FRAMES_ELSEWHERE),
    ("token", "frames 2-3", FRAMES_ELSEWHERE),
    ("token", "video 0-2s", FRAMES_ELSEWHERE),
    ("token", "patch 3", FRAMES_ELSEWHERE),
    ("token", "segment 1", SEGMENTS_ELSEWHERE),
    ("token", "audio 0-2s", SEGMENTS_ELSEWHERE),
    ("token", ["question", "frame 3"], FRAMES_ELSEWHERE),
    ("token", "video 5", "here are video 0 to 1"),
    ("token", "smell", "has no 'smell'"),
]


@pytest.mark.parametrize(("axis", "index", "message"), REFUSED)
def test_what_names_no_place_is_refused(axis: str, index: object, message: str) -> None:
    with pytest.raises(VltError, match=message) as error:
        AXES[axis].find(index)
    assert "\n" not in str(error.value)


def test_where_a_frame_is_asked_for_at_the_language_model_a_way_is_offered() -> None:
    with pytest.raises(VltError) as error:
        AXES["token"].find("frame 3")
    for way in ("frame_tokens", "video_qformer.*.cross", "vlt.path"):
        assert way in str(error.value)


def test_a_word_that_is_not_there_says_so() -> None:
    silent = axes.token(["a", "", "b"], ["text", "video", "text"], [-1, 0, -1], [2], 3)
    with pytest.raises(VltError, match="there is no audio here"):
        silent.find("audio")
    with pytest.raises(VltError, match="there is no answer here"):
        silent.find("answer")
    assert silent.find("answering").tolist() == [2]  # before there is an answer: where it will be predicted


@pytest.mark.parametrize("name", AXES)
def test_every_word_can_be_said_and_every_name_in_an_error_is_one(name: str) -> None:
    axis = AXES[name]
    for word, meant in axis.words.items():
        assert axis.find(word).tolist() == np.flatnonzero(meant.where).tolist()
    with pytest.raises(VltError) as error:
        axis.find("!")
    for word in axis.words:
        assert word in str(error.value)


@pytest.mark.parametrize("name", AXES)
def test_coordinates_are_as_long_as_their_axis(name: str) -> None:
    axis = AXES[name]
    assert all(len(value) == axis.size for value in axis.coords().values())
    assert axis.coords(np.array([1]))[axis.name].tolist() == [1]
    assert len(axis.table()) == axis.size


# ------------------------------------------------------------------ of a run


def words(run: Trace, phrase: str) -> list[str]:
    return run.tokens.coordinates["word"][run.tokens.find(phrase)].tolist()


def bare(pieces: list[str]) -> str:
    return "".join("".join(pieces).split())


ASKED = ["What do you hear?", "Do you see a zebra?", "###?", "Assistant:", "a", "What  colour \n is it?", "Héllo, ﬁsh?"]


@pytest.mark.parametrize("question", ASKED)
def test_the_question_is_found(bell: Trace, question: str) -> None:
    run = trace(bell.model, bell.clip, question, answer="A bell.")
    assert bare(words(run, "question")) == bare([question])
    assert bare(words(run, "last")) == ":"
    assert bare(words(run, "answer")) == "Abell.###"
    assert words(run, "answering") == [*words(run, "last"), *words(run, "answer")[:-1]]


def test_of_a_chat_only_the_last_question_is_meant(bell: Trace) -> None:
    turns = [(QUESTION, "I hear a bell."), ("What moves?", "A square.")]
    run = trace(bell.model, bell.clip, QUESTION, history=turns)
    found = run.tokens.find("question")
    assert bare(words(run, "question")) == bare([QUESTION])
    assert found.min() > max(i for i, word in enumerate(run.tokens.coordinates["word"]) if word == " square")
    assert found.max() < run.row.begin
    assert words(run, "answer") == list(run.answer.tokens)
    assert set(run.tokens.coordinates["group"][found]) == {"question"}


def test_axes_of_a_run_know_its_clip(bell: Trace) -> None:
    short = trace(bell.model, shipped("two_bell"), QUESTION, n_frames=2, answer="A bell.")
    assert [axis.size for axis in short.axes_of("patches")[:2]] == [2, 65]
    assert short.axes_of("frame_tokens")[0].find("frame 1").tolist() == list(range(8, 16))
    assert isinstance(short.tokens, Axis)
    assert bell.axes_of("segment_tokens")[0].find("audio 2-4s").tolist() == [1]
    assert bell.axes_of("language_model.0.self")[0].find("answer").tolist() == list(range(90, 96))
