"""The panel without a browser: what its buttons do, what goes wrong, and that nothing it shows is other than a trace's."""

from __future__ import annotations

import base64
import errno
import io
import itertools
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import vlt
from vlt.errors import VltError
from vlt.model import box
from vlt.model.video_llama import VideoLlama
from vlt.panel import pictures
from vlt.panel import probe as panels
from vlt.panel.probe import HERE, Probe
from vlt.panel.uploads import LARGEST
from vlt.probe import edits
from vlt.probe.trace import Trace, trace
from vlt.view import figures

CLIPS = Path(__file__).parents[2] / "data" / "clips"
ASKED = "What do you hear?"


@pytest.fixture(scope="module")
def bell(boxed: VideoLlama) -> Trace:
    return trace(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), ASKED)


@pytest.fixture
def probe(boxed: VideoLlama) -> Iterator[Probe]:
    made = Probe(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), ASKED, method="saliency")
    yield made
    made.close()


def test_first_answer(probe: Probe, bell: Trace) -> None:
    said = probe.view["answer"]
    assert said["text"] == bell.answer.text == "I hear a bell."
    assert [token["text"] for token in said["tokens"]] == list(bell.answer.tokens)[:-1]  # the stop sign is no word
    assert np.allclose([token["p"] for token in said["tokens"]], np.exp(bell.logprobs.values)[:-1])
    assert said["logp"] == pytest.approx(float(bell.logprobs.sum()))
    assert probe.shown["name"] == "two_bell.mp4" and len(probe.shown["frames"]) == len(probe.shown["sound"]["segments"]) == 8
    assert probe.media == (CLIPS / "two_bell.mp4").read_bytes() and probe.shown["media"] == "video/mp4"


def test_ask(probe: Probe, boxed: VideoLlama) -> None:
    probe.ask(" What colour is the square? ")
    probe.wait()
    assert probe.view["question"] == "What colour is the square?"
    assert probe.view["answer"]["text"] == boxed.answer(probe.run.clip, "What colour is the square?").text


def test_what_the_box_does_not_know_is_told(probe: Probe, tmp_path: Path) -> None:
    assert probe.state()["answer"]["note"] == ""
    probe.ask("Why?")
    probe.wait()
    assert probe.state()["answer"]["note"].startswith("the box: it has not learnt this question")
    shutil.copy(CLIPS / "silent.mp4", tmp_path / "strange.mp4")
    probe.load_clip(tmp_path / "strange.mp4", "What do you see?")
    probe.wait()
    assert "one small world" in probe.state()["answer"]["note"] and "this question" not in probe.state()["answer"]["note"]
    note = probe.view["answer"]["note"]
    assert note == box.limits("box", tmp_path / "strange.mp4", "What do you see?")  # as the command line has it
    assert note == box.limits(str(box.folder()), tmp_path / "strange.mp4", "What do you see?")
    assert box.limits("a/model", tmp_path / "strange.mp4", "Why?") == box.limits("", tmp_path / "strange.mp4", "Why?") == ""


def test_the_answer_comes_word_by_word(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_TELL", 0.0)
    said: list[str] = []
    probe.observe(lambda change: said.append(change["new"]["said"]), "status")
    probe.ask("What do you see?")
    probe.wait()
    whole = probe.view["answer"]["text"]
    came = [text for text in said if text]
    assert not [text for text in came if "###" in text]  # the stop sign
    assert len(came) > 5 and all(b.startswith(a) for a, b in itertools.pairwise(came) if b)
    assert came[-1].strip().startswith(whole)


def test_switches_are_edits(probe: Probe, bell: Trace) -> None:
    probe.switch(audio=False)
    probe.wait()
    view = probe.view
    table = vlt.sweep(bell, {"off": edits.without("audio")}, progress=False)
    assert view["edited"]["text"] == table["answer"]["off"] == "I hear nothing."
    assert view["edited"]["change"] == pytest.approx(table["change"]["off"], abs=1e-4)
    assert edits.loads(json.dumps(view["edits"])) == [edits.without("audio")]
    probe.switch(audio=True, positions=False, frames_off=[3, 1, 1], segments_off=[0])
    probe.wait()
    off = [edits.zero("frame_position"), edits.blank(frame=[1, 3]), edits.mute(segment=[0])]
    assert edits.loads(json.dumps(probe.view["edits"])) == off
    assert probe.view["edited"]["text"] == bell.rerun(off).answer.text
    probe.switch(positions=True, frames_off=[], segments_off=[])
    probe.wait()
    assert probe.view["edited"] is None and probe.edited is None and probe.view["edits"] == []


def test_what_is_off_stays_off_for_the_next_question(probe: Probe) -> None:
    probe.switch(segments_off=[1])
    probe.ask("What makes this sound?")
    probe.wait()
    assert probe.view["switches"]["segments_off"] == [1] and probe.view["edited"] is not None
    assert probe.view["edited"]["text"] != probe.view["answer"]["text"]


@pytest.mark.parametrize("method", ["saliency", "relevance", "grad_cam"])
def test_heat_is_an_attribution(probe: Probe, bell: Trace, method: str) -> None:
    probe.explain("bell", method)
    probe.wait()
    heat = probe.view["heat"]
    look, listen = ("patches", "audio_features") if method == "grad_cam" else ("frames", "spectrograms")
    assert heat["signed"] is False and heat["warnings"]  # the pictures have nothing to do with it: it is said so
    assert heat["little"] == ["frames"] and heat["unit"] == "a unit of its own"
    seen = vlt.attribute(bell, look, method, "bell", progress=False).heat.values
    heard = vlt.attribute(bell, listen, method, "bell", progress=False).heat.values
    if method == "grad_cam":
        assert heat["segments"] is None
    else:
        assert np.allclose(np.array(heat["segments"]).sum((1, 2)), heat["segment_bars"], atol=0.02 * max(heat["segment_bars"]))
    assert np.array(heat["frames"]).shape == (8, 8, 8)
    assert np.allclose(heat["frame_bars"], seen.reshape(8, -1).sum(1), rtol=0.02, atol=2e-3 * abs(seen).sum())
    assert np.allclose(heat["segment_bars"], heard.reshape(8, -1).sum(1), rtol=0.02, atol=2e-3 * abs(heard).sum())
    assert probe.view["word"] == {"edited": False, "number": 3} and heat["word"] == "bell"


def test_heat_lies_where_the_figures_have_it(probe: Probe, bell: Trace) -> None:
    """Rows of frames from the top; frequencies from the highest down."""
    probe.explain("bell", "saliency")
    probe.wait()
    heat = vlt.attribute(bell, "spectrograms", "saliency", "bell", progress=False).heat
    row = np.array(probe.view["heat"]["segments"])[1].sum(1)
    assert int(row.argmax()) == 7 - int(heat[1].sum("time").values.reshape(8, 16).sum(1).argmax())
    figures.over_sound(bell, heat)  # the same array


def test_heat_of_the_answer_without_what_is_off(probe: Probe) -> None:
    with pytest.raises(VltError, match="nothing is switched off"):
        probe.explain(0, edited=True)
    probe.switch(audio=False)
    probe.wait()
    probe.explain("nothing", edited=True)
    probe.wait()
    heat = probe.view["heat"]
    assert heat["word"] == "nothing" and "frames" in heat and "segments" not in heat  # nothing is heard in that run


def test_a_switch_leaves_the_word_that_was_chosen(probe: Probe) -> None:
    """Of the first answer with its heat, of the second with heat anew, where it is said again."""
    probe.explain("bell", "saliency")
    probe.wait()
    word, heat = probe.view["word"], probe.view["heat"]
    probe.switch(audio=False)
    assert probe.view["heat"] == heat
    probe.wait()
    assert (probe.state()["word"], probe.state()["heat"]) == (word, heat) and probe.state()["edited"] is not None
    probe.explain("nothing", edited=True)
    probe.wait()
    word, heat = probe.view["word"], probe.view["heat"]
    probe.switch(frames_off=[0, 1, 2, 3])
    probe.wait()
    assert probe.view["edited"]["text"] == "I hear nothing."
    assert probe.state()["word"] == word and probe.view["heat"]["frame_bars"] != heat["frame_bars"]
    assert np.allclose(probe.view["heat"]["frame_bars"], pictures.heat(probe.edited, "nothing", "saliency")["frame_bars"])
    probe.switch(frames_off=[0])
    probe.explain("bell")  # what is clicked meanwhile goes before
    probe.wait()
    assert probe.view["word"] == {"edited": False, "number": 3} and probe.view["heat"]["word"] == "bell"
    probe.explain("nothing", edited=True)
    probe.wait()
    probe.switch(audio=True)  # a bell is heard, where nothing was
    probe.wait()
    assert probe.view["edited"]["text"] == "I hear a bell." and probe.view["word"] is None and probe.view["heat"] is None


def test_a_switch_leaves_a_word_that_waits_for_its_heat(probe: Probe) -> None:
    """Also from one switch to the next, and another method reaches it meanwhile."""
    bell, answered = {"edited": False, "number": 3}, threading.Event()
    probe.observe(lambda change: answered.set() if change["new"]["edited"] else None, "view")
    for method in ("integrated_gradients", "saliency"):
        answered.clear()
        probe.explain("bell", "integrated_gradients")
        probe.switch(video=False)
        assert answered.wait(60) and probe.view["word"] == bell  # mostly without heat yet
        if method == "saliency":
            probe._handle_custom_msg({"kind": "method", "method": method}, [])
        probe.switch(video=True, audio=False)
        probe.wait()
        assert probe.view["word"] == bell and (probe.view["heat"]["word"], probe.view["heat"]["method"]) == ("bell", method)
        assert (
            probe.view["method"] == method and "nothing" in probe.view["edited"]["text"] and probe.state()["heat"] is not None
        )
        probe.switch(audio=True)
        probe.wait()


def test_what_is_clicked_right_after_cancel_comes_on_top_of_what_was_there(probe: Probe) -> None:
    probe.switch(audio=False)
    probe.cancel()
    assert probe.view["switches"]["audio"]
    probe.explain("bell", "saliency")
    probe.wait()
    assert probe.view["switches"]["audio"] and probe.view["edited"] is None and probe.view["heat"]["word"] == "bell"
    probe.switch(video=False)
    probe.wait()
    probe.explain("hear", "occlusion")
    probe.switch(audio=False)
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    assert (probe.view["switches"]["video"], probe.view["switches"]["audio"]) == (False, True)
    assert probe.view["heat"]["word"] == "bell" and probe.view["edited"] and probe.edited is not None


def test_another_method_explains_the_word_that_was_clicked_last(probe: Probe) -> None:
    """Also where the browser has not heard of that click yet."""
    probe._handle_custom_msg({"kind": "method", "method": "saliency"}, [])
    assert probe.view["method"] == "saliency" and not probe.status["busy"]  # no word is chosen
    probe.explain("hear", "saliency")
    probe.wait()
    probe._handle_custom_msg({"kind": "explain", "word": 3, "method": "saliency"}, [])
    probe._handle_custom_msg({"kind": "method", "method": "gradient_x_input"}, [])
    probe.wait()
    assert probe.view["word"] == {"edited": False, "number": 3}
    assert (probe.view["heat"]["word"], probe.view["heat"]["method"]) == ("bell", "gradient_x_input")


@pytest.mark.parametrize("about", [{"clip": "/clips/other.mp4"}, {"answer": "I hear a hum."}, {"answer": "I", "edited": True}])
def test_what_was_clicked_on_what_is_gone_is_not_taken_for_another(probe: Probe, about: dict[str, Any]) -> None:
    here = {"clip": str((CLIPS / "two_bell.mp4").absolute()), "answer": probe.view["answer"]["text"]}
    before = probe.state()
    for message in ({"kind": "explain", "word": 3}, {"kind": "turn", "name": "frames_off", "number": 1, "on": False}):
        probe._handle_custom_msg({**message, **here, **about}, [])
        assert probe.status["error"] == "what was clicked is not there any more; click what is to be seen now"
        assert probe.state() == before and not probe.status["busy"]
    probe._handle_custom_msg({"kind": "explain", "word": 3, "method": "saliency", **here}, [])
    probe.wait()
    assert probe.view["heat"]["word"] == "bell"


def test_cancel(probe: Probe) -> None:
    before = probe.view["answer"]
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    assert not probe.status["busy"] and probe.view["heat"] is None and probe.view["answer"] == before
    hooks = [part for part in probe.model.modules() if part._forward_pre_hooks or part._forward_hooks]
    assert not hooks
    probe.ask("What do you see?")
    probe.wait()
    assert "circle" in probe.view["answer"]["text"]


def test_the_newest_wins(probe: Probe) -> None:
    answered: list[str] = []
    probe.observe(lambda change: answered.append(change["new"]["question"]), "view")
    for question in ("What do you see?", "How many objects are there?", "What makes this sound?"):
        probe.ask(question)
    probe.wait()
    assert answered == ["What makes this sound?"]
    assert probe.view["question"] == "What makes this sound?" and probe.run.question == "What makes this sound?"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"kind": "dance"}, "knows no 'dance'"),
        ({"kind": "ask", "question": "  "}, "the question is empty"),
        ({"kind": "ask"}, "question"),
        ({"kind": "ask", "question": "What? \ud83d"}, "holds half a character"),
        ({"kind": "explain", "word": 99}, "the answer has no word 99"),
        ({"kind": "explain", "word": 1, "method": "magic"}, "no method 'magic'"),
        ({"kind": "switch", "frames_off": [8]}, "this clip has 8"),
        ({"kind": "switch", "segments_off": ["1"]}, "this clip has 8"),
        ({"kind": "load_clip", "path": "/no/such.mp4"}, "no such file"),
        ({"kind": "load_clip", "path": ""}, "give the path of a clip"),
        ({"kind": "load_clip", "path": str(CLIPS / "make.py")}, "make.py"),
        ({"kind": "upload", "number": 1, "name": "x.mp4", "at": 0, "total": 2**40}, "512 at most"),
    ],
    ids=lambda value: str(value.get("kind")) if isinstance(value, dict) else "",
)
def test_bad_input_is_told_and_loses_nothing(probe: Probe, message: dict[str, Any], told: str) -> None:
    before = probe.view["answer"]
    probe._handle_custom_msg(message, [])
    with pytest.raises(VltError, match=told):
        probe.wait()
    assert "\n" not in probe.status["error"] and probe.view["answer"] == before and probe.shown["name"] == "two_bell.mp4"


def send(probe: Probe, number: int, name: str, data: bytes, at: int, piece: int) -> None:
    told = {"kind": "upload", "number": number, "name": name, "at": at, "total": len(data), "question": ""}
    probe._handle_custom_msg(told, [memoryview(data[at : at + piece])])


def upload(probe: Probe, name: str, data: bytes, piece: int = 50_000) -> None:
    for at in range(0, len(data), piece):
        send(probe, 1, name, data, at, piece)


def test_own_clip(probe: Probe, tmp_path: Path) -> None:
    upload(probe, "../../evil/../my clip.mp4", (CLIPS / "sound_only.mp4").read_bytes())
    probe.wait()
    assert probe.shown["name"] == "my clip.mp4" and probe.shown["frames"] == [] and probe.shown["sound"]
    folder = probe.run.clip.path.parent
    assert folder.name.startswith("vlt") and folder.parent != CLIPS and probe.view["question"] == ASKED
    probe.switch(segments_off=list(range(8)))
    probe.wait()
    assert probe.view["edited"]["text"] == "I hear nothing."
    for absent in ("video", "positions"):
        with pytest.raises(VltError, match="this run has no video; it has audio"):
            probe.switch(**{absent: False})
    probe.load_clip(CLIPS / "silent.mp4")
    probe.wait()
    assert probe.view["edited"] is None and probe.view["switches"]["segments_off"] == []  # of another clip
    upload(probe, "broken.mp4", b"no video" * 100)
    with pytest.raises(VltError, match=r"^broken\.mp4: cannot be read"):
        probe.wait()
    assert probe.shown["name"] == "silent.mp4"
    upload(probe, "a.mp4", (CLIPS / "bell.mp4").read_bytes())
    probe.wait()
    upload(probe, "b.mp4", (CLIPS / "buzz.mp4").read_bytes())
    probe.wait()
    assert list(folder.iterdir()) == [probe.run.clip.path]  # neither what could not be opened nor what is shown no more
    probe.close()
    assert not folder.exists()


def test_an_upload_can_be_cancelled_and_replaced(probe: Probe) -> None:
    data = (CLIPS / "bell.mp4").read_bytes()
    send(probe, 1, "a.mp4", data, 0, 50_000)
    assert probe.status["busy"] and 0 < probe.status["done"] < 1
    probe.cancel()
    assert not probe.status["busy"] and probe.status["error"] == "stopped"
    for at in range(50_000, len(data), 50_000):  # what was on its way comes to nothing
        send(probe, 1, "a.mp4", data, at, 50_000)
    probe.wait(1) if not probe.status["error"] else None
    assert probe.shown["name"] == "two_bell.mp4"
    other = (CLIPS / "buzz.mp4").read_bytes()
    for at in range(0, max(len(data), len(other)), 50_000):  # another, begun later, takes the place of the first
        for number, name, content in ((2, "a.mp4", data), (3, "b.mp4", other)):
            if at < len(content):
                send(probe, number, name, content, at, 50_000)
    probe.wait()
    assert probe.shown["name"] == "b.mp4" and probe.run.clip.path.read_bytes() == other
    for number in (5, 6):
        send(probe, number, "a.mov", data, 0, 50_000)
        probe.cancel()
    assert [path for path in probe.run.clip.path.parent.iterdir() if path != probe.run.clip.path] == []


def test_what_is_refused_while_a_file_comes_is_told(probe: Probe) -> None:
    data = bytes(300)
    send(probe, 1, "x.mp4", data, 0, 100)
    probe._handle_custom_msg({"kind": "ask", "question": " "}, [])
    send(probe, 1, "x.mp4", data, 100, 100)
    assert probe.status["error"] == "the question is empty" and probe.status["what"] == "receiving the clip"
    probe.cancel()  # by code: the browser, which has no part in it, is told to send no more
    assert probe.received == [1, -1] and probe.status["error"] == "stopped"
    send(probe, 1, "x.mp4", data, 200, 100)  # was under way
    assert probe.received == [1, -1] and probe.status["error"] == "stopped" and probe.shown["name"] == "two_bell.mp4"
    send(probe, 2, "x.mp4", data, 0, 100)
    assert probe.status["error"] == ""
    probe.cancel()


def test_what_goes_wrong_while_a_file_comes_leaves_nothing(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (CLIPS / "bell.mp4").read_bytes()
    send(probe, 4, "a.mp4", data, 0, 50_000)
    assert probe.received == [4, 50_000]
    send(probe, 4, "a.mp4", data, 100_000, 50_000)
    assert "another order" in probe.status["error"] and not probe.status["busy"] and probe.received == [4, -1]

    def full(self: Path, *mode: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", full)
        send(probe, 5, "a.mp4", data, 0, 50_000)
    with pytest.raises(VltError, match=r"^a\.mp4: cannot be kept \(No space left on device\)$"):
        probe.wait(5)
    upload(probe, "a.mp4", data)  # as if nothing had been
    probe.wait()
    assert probe.shown["name"] == "a.mp4"
    assert list(probe.run.clip.path.parent.iterdir()) == [probe.run.clip.path]
    assert f"const LARGEST = 2 ** {LARGEST.bit_length() - 1};" in (HERE / "front.js").read_text()


def test_single_frames_and_segments_are_turned(probe: Probe) -> None:
    """Clicks that come faster than answers: none is lost."""
    for number, on in ((1, False), (2, False), (5, False), (2, True)):
        probe._handle_custom_msg({"kind": "turn", "name": "frames_off", "number": number, "on": on}, [])
    probe._handle_custom_msg({"kind": "turn", "name": "segments_off", "number": 7, "on": False}, [])
    probe.wait()
    assert probe.view["switches"]["frames_off"] == [1, 5] and probe.view["switches"]["segments_off"] == [7]
    assert edits.loads(json.dumps(probe.view["edits"])) == [edits.blank(frame=[1, 5]), edits.mute(segment=[7])]
    for wrong in ({"name": "video", "number": 1}, {"name": "frames_off", "number": 8}, {"name": "frames_off", "number": [1]}):
        probe._handle_custom_msg({"kind": "turn", "on": False, **wrong}, [])
        assert probe.status["error"] and probe.view["switches"]["frames_off"] == [1, 5]


def test_the_same_refusal_is_told_each_time(probe: Probe) -> None:
    told: list[str] = []
    probe.observe(lambda change: told.append(change["new"]["error"]), "status")
    for _ in range(3):
        probe._handle_custom_msg({"kind": "ask", "question": ""}, [])
    assert [text for text in told if text] == ["the question is empty"] * 3


def test_the_question_that_somebody_waits_for_is_asked(probe: Probe) -> None:
    probe.ask("What do you see?")
    probe.load_clip(CLIPS / "buzz.mp4")
    probe.wait()
    assert probe.shown["name"] == "buzz.mp4" and probe.view["question"] == probe.run.question == "What do you see?"
    probe.load_clip(CLIPS / "bell.mp4", "What makes this sound?")  # typed, and not sent
    probe.wait()
    assert probe.shown["name"] == "bell.mp4" and probe.view["question"] == "What makes this sound?"
    probe.ask("What do you hear?")
    probe.load_clip("/no/such.mp4")
    with pytest.raises(VltError, match=r"/no/such\.mp4: no such file"):
        probe.wait()
    assert probe.shown["name"] == "bell.mp4" and probe.view["question"] == "What do you hear?"
    assert probe.view["answer"]["text"] == "I hear a bell."
    probe.ask("What do you see?")
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    probe.load_clip(CLIPS / "buzz.mp4")  # nobody waits for that any more
    probe.wait()
    assert probe.view["question"] == "What do you hear?"


def test_a_new_panel_ends_what_the_others_do(probe: Probe, boxed: VideoLlama) -> None:
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    other = Probe(boxed, vlt.Clip(CLIPS / "silent.mp4"), "What do you see?")  # as where the cell is run again
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    other.close()


def test_a_panel_that_waits_for_another_says_so_and_can_be_cancelled(probe: Probe, boxed: VideoLlama) -> None:
    other = Probe(boxed, vlt.Clip(CLIPS / "silent.mp4"), "What do you see?", method="saliency")
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    said: list[str] = []
    other.observe(lambda change: said.append(change["new"]["what"]), "status")
    other.explain(1)
    for _ in range(50):
        if "waiting for another panel" in said:
            break
        time.sleep(0.1)
    assert "waiting for another panel" in said and probe.status["busy"]
    other.cancel()
    with pytest.raises(VltError, match="stopped"):
        other.wait(10)
    assert probe.status["busy"]  # it goes on
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    other.explain(1)
    other.wait()
    assert other.view["heat"] is not None
    other.close()


def once_something_waits(probe: Probe, then: Callable[..., Any]) -> Callable[..., Any]:
    """The function, but not before another job is behind the one that calls it."""

    def later(*given: Any) -> Any:
        while len(probe._jobs) < 2:
            time.sleep(0.01)
        return then(*given)

    return later


def no_room(*_: Any) -> Any:
    raise MemoryError("no room")


def test_a_switch_that_fails_is_undone_whatever_waits(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.switch(segments_off=[0])
    probe.wait()
    before, edited = probe.view, probe.edited

    monkeypatch.setattr(probe, "_without", once_something_waits(probe, no_room))
    probe.switch(audio=False)
    probe.explain("bell", "saliency")
    with pytest.raises(VltError, match="MemoryError: no room"):
        probe.wait()
    assert probe.view["heat"]["word"] == "bell" and probe.edited is edited
    assert {name: probe.view[name] for name in ("switches", "edited", "edits")} == {
        name: before[name] for name in ("switches", "edited", "edits")
    }


def test_what_is_cancelled_while_a_second_answer_comes_leaves_a_whole_one(
    probe: Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.switch(segments_off=[1])
    probe.wait()
    without, meanwhile = probe._without, [True]

    def slowly(*given: Any) -> Any:
        out = without(*given)
        if meanwhile and meanwhile.pop():
            probe.switch(video=False)
            for job in probe._jobs[1:]:  # what is pressed at the moment at which the answer is shown
                job.stopped = True
        return out

    monkeypatch.setattr(probe, "_without", slowly)
    probe.ask("What do you see?")
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    assert probe.view["question"] == "What do you see?" and probe.view["switches"]["video"] is True
    assert probe.view["switches"]["segments_off"] == [1] and probe.view["edited"] is not None and probe.edited is not None
    assert edits.loads(json.dumps(probe.view["edits"])) == [edits.mute(segment=[1])]


@pytest.mark.parametrize("wrong", ["/no/such.mp4", "a\0b"])
def test_what_was_switched_is_not_lost_where_a_clip_cannot_be_opened(
    probe: Probe, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setattr(panels, "Clip", once_something_waits(probe, vlt.Clip))
    probe.switch(audio=False)
    probe.load_clip(wrong)
    probe.explain("bell", "saliency")
    with pytest.raises(VltError, match="no such file"):
        probe.wait()
    assert probe.view["switches"]["audio"] is False and probe.view["edited"]["text"] == "I hear nothing."
    assert edits.loads(json.dumps(probe.view["edits"])) == [edits.without("audio")] and probe.edited is not None


def test_a_question_that_fails_leaves_no_switch_without_its_answer(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_without", once_something_waits(probe, no_room))
    probe.switch(audio=False)
    probe.ask("What do you see?")
    probe.explain("bell", "saliency")
    with pytest.raises(VltError, match="no room"):
        probe.wait()
    assert probe.view["switches"]["audio"] is True and probe.view["edited"] is None and probe.view["question"] == ASKED


def test_a_clip_that_goes_while_it_is_opened_changes_nothing(
    probe: Probe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(CLIPS / "hum.mp4", tmp_path / "van.mp4")

    def gone(*_: Any) -> Any:
        raise FileNotFoundError("van.mp4")

    monkeypatch.setattr(panels.pictures, "media", gone)
    before = probe.view
    probe.load_clip(tmp_path / "van.mp4")
    with pytest.raises(VltError, match=r"van\.mp4"):
        probe.wait()
    assert probe.view == before and probe.shown["name"] == probe.run.clip.path.name == "two_bell.mp4"


def test_files_from_the_browser_go_with_what_shows_them(probe: Probe, boxed: VideoLlama) -> None:
    data = (CLIPS / "bell.mp4").read_bytes()
    upload(probe, "a.mp4", data)
    probe.wait()
    own = probe.run.clip.path
    probe.load_clip(own, "What do you see?")  # the very file that is shown
    probe.wait()
    assert own.exists()
    other = Probe(boxed, vlt.Clip(CLIPS / "silent.mp4"), "What do you see?", method="kernel_shap")
    begun = threading.Event()
    other.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    other.explain(3)
    assert begun.wait(60)
    upload(probe, "b.mp4", data)  # which waits for the other panel, and is cancelled before it begins
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    other.close()
    assert list(own.parent.iterdir()) == [own]


def test_a_file_that_comes_beside_work(probe: Probe) -> None:
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    send(probe, 7, "a.mp4", (CLIPS / "bell.mp4").read_bytes(), 0, 50_000)
    assert probe.status["what"].startswith("looking for")  # and not as if that were the file's share
    probe._jobs[0].stopped = True
    while probe._jobs:
        time.sleep(0.01)
    with probe._lock:  # in which a job goes, and what is told then comes
        told = probe.status
    assert told["busy"] and told["what"] == "receiving the clip" and 0 < told["done"] < 1
    with pytest.raises(VltError, match="a file is being received"):
        probe.wait()
    probe.cancel()
    assert not probe.status["busy"]


def test_what_is_chosen_and_refused_stays(probe: Probe) -> None:
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    probe._handle_custom_msg({"kind": "ask", "question": ""}, [])
    probe.cancel()
    with pytest.raises(VltError, match=r"stopped|the question is empty"):
        probe.wait()
    assert probe.view["method"] == "kernel_shap" and probe.view["word"] is None
    probe._handle_custom_msg({"kind": "explain", "word": 3, "method": "saliency"}, [])
    probe._handle_custom_msg({"kind": "ask", "question": ""}, [])
    with pytest.raises(VltError, match="the question is empty"):
        probe.wait()
    assert probe.view["heat"]["method"] == "saliency"


def test_silence_is_pale(boxed: VideoLlama, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "zero.wav", np.zeros(64_000), 16000)
    made = Probe(boxed, vlt.Clip(tmp_path / "zero.wav"), ASKED)
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(made.shown["sound"]["image"].split(",")[1]))))
    assert grey.min() > 250
    made.close()


def test_the_change_is_of_the_answer_as_it_was_said(boxed: VideoLlama) -> None:
    """Also where it was cut off, and has no stop sign."""
    made = Probe(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), "What do you see?", max_new_tokens=4)
    assert made.run.answer.ended == "length" and made.view["answer"]["cut"] is True
    made.switch(frames_off=[0, 1, 2, 3])
    made.wait()
    table = vlt.sweep(made.run, {"off": edits.blank(frame=[0, 1, 2, 3])}, progress=False)
    assert made.view["edited"]["change"] == pytest.approx(table["change"]["off"], abs=1e-4)
    assert made.view["answer"]["logp"] == pytest.approx(float(made.run.logprobs.sum()))
    made.close()


def test_heat_that_is_at_no_place_is_in_the_bars(probe: Probe) -> None:
    """What the ViT's class token has of a frame is of the frame: the bars add up to what the frames bring."""
    probe.ask("What do you see?")
    probe.wait()
    probe.explain("white", "integrated_gradients")
    probe.wait()
    heat = probe.view["heat"]
    found = vlt.attribute(probe.run, "patches", "integrated_gradients", "white", progress=False)
    brings = found.score - found.score_without
    assert sum(heat["frame_bars"]) == pytest.approx(brings, abs=0.05)
    assert heat["unit"] == "nats of log p" and "frames" not in heat["little"]
    places = float(np.array(heat["frames"]).sum())
    assert abs(places - brings) > 0.5
    (told,) = [text for text in heat["warnings"] if "class tokens" in text]
    assert told.startswith(f"Patches: {sum(heat['frame_bars']) - places:.2g} of the heat is at no place")


@pytest.mark.parametrize("method", ["occlusion"])
def test_what_is_taken_away_is_what_was_measured(probe: Probe, method: str) -> None:
    """Whole segments of sound, of which `vlt truth` says that they point right, and in the time that a person waits."""
    probe.explain("bell", method)
    probe.wait()
    heat = probe.view["heat"]
    assert int(np.argmax(heat["segment_bars"])) == 1 and heat["segment_bars"][1] > 3
    lost = probe.run.logprobs.values[3] - probe.run.rerun(edits.mute(segment=1), answer="I hear a bell.").logprobs.values[3]
    assert heat["segment_bars"][1] == pytest.approx(lost, rel=0.1)


def test_short_sound_is_shown_without_what_is_behind_it(boxed: VideoLlama, tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 16000)
    soundfile.write(tmp_path / "short.wav", tone, 16000)
    made = Probe(boxed, vlt.Clip(tmp_path / "short.wav"), ASKED, method="saliency")
    sound = made.shown["sound"]
    assert {(s["start"], s["end"]) for s in sound["segments"]} == {(0.0, 0.5)}
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(sound["image"].split(",")[1]))), dtype=float)
    assert grey.shape == (128, 8 * 48)
    assert (grey.min(0) < 100).all()  # the tone is loud in every column that is shown
    made.explain("hear")
    made.wait()
    assert any("padding behind the sound's end" in text for text in made.view["heat"]["warnings"])
    made.close()


def test_where_the_player_begins_is_told(boxed: VideoLlama, tmp_path: Path) -> None:
    """Pictures that begin a second after the sound: a player counts from the sound."""
    late = tmp_path / "late.mp4"
    with av.open(str(CLIPS / "two_bell.mp4")) as source, av.open(str(late), "w") as out:
        streams = {s.index: out.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                packet.pts, packet.dts = (t + round(1 / packet.time_base) for t in (packet.pts, packet.dts))
            packet.stream = streams[packet.stream.index]
            out.mux(packet)
    made = Probe(boxed, vlt.Clip(late), ASKED)
    assert made.shown["offset"] == pytest.approx(1, abs=0.05) and made.shown["frames"][0]["seconds"] == 0
    made.load_clip(CLIPS / "two_bell.mp4")
    made.wait()
    assert made.shown["offset"] == pytest.approx(0, abs=0.05)
    made.close()


def test_clicks_wait_for_what_they_need(probe: Probe) -> None:
    """A word that is clicked while the sound is being switched off does not undo that; nor does one undo a question."""
    probe.switch(audio=False)
    probe.explain("bell", "saliency")
    probe.wait()
    assert probe.view["edited"]["text"] == "I hear nothing." and probe.edited is not None
    assert probe.view["heat"]["word"] == "bell" and probe.view["word"]["edited"] is False
    probe.ask("What do you see?")
    probe.explain("bell", "saliency")  # of an answer that is on its way out
    probe.wait()
    assert probe.view["question"] == "What do you see?" and probe.view["heat"] is None and probe.view["word"] is None
    assert probe.view["switches"]["audio"] is False and probe.view["edited"] is not None


def test_what_is_switched_while_it_answers_is_not_lost(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    probe.switch(segments_off=[1])
    probe.wait()
    without, meanwhile = probe._without, [True]

    def slowly(*given: Any) -> Any:
        out = without(*given)
        if meanwhile and meanwhile.pop():  # the second answer is there, and not yet shown
            probe.switch(video=False)
        return out

    monkeypatch.setattr(probe, "_without", slowly)
    probe.ask("What do you see?")
    probe.wait()
    assert probe.view["question"] == "What do you see?"
    assert probe.view["switches"]["video"] is False and probe.view["switches"]["segments_off"] == [1]
    off = [edits.without("video"), edits.mute(segment=[1])]
    assert edits.loads(json.dumps(probe.view["edits"])) == off and probe.edited is not None


def test_a_cancelled_switch_leaves_what_was_there(probe: Probe) -> None:
    probe.switch(segments_off=[0])
    probe.wait()
    before, edited = probe.view, probe.edited
    probe.switch(audio=False)
    probe.switch(video=False)
    probe.cancel()
    with pytest.raises(VltError, match="stopped"):
        probe.wait()
    assert probe.view == before and probe.edited is edited


def test_cancelling_leaves_other_threads_alone(probe: Probe) -> None:
    begun = threading.Event()
    probe.observe(lambda change: begun.set() if change["new"]["done"] else None, "status")
    probe.explain(3, "kernel_shap")
    assert begun.wait(60)
    probe.cancel()
    for _ in range(20):  # while the job winds down
        probe.model.language_model(inputs_embeds=torch.zeros(1, 1, 128))
    with pytest.raises(VltError, match="stopped"):
        probe.wait()


def test_wrong_switches_are_refused(probe: Probe) -> None:
    with pytest.raises(VltError, match="the switch video: expected bool, got str"):
        probe.switch("audio")


def test_options_of_trace(boxed: VideoLlama, tmp_path: Path) -> None:
    made = Probe(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), ASKED, branches=["video"], n_frames=4)
    assert len(made.shown["frames"]) == 4 and made.shown["sound"] is None
    made.load_clip(CLIPS / "bell.mp4")
    made.wait()
    assert len(made.shown["frames"]) == 4
    Image.fromarray(np.full((64, 64, 3), 90, dtype=np.uint8)).save(tmp_path / "still.png")
    made.load_clip(tmp_path / "still.png")  # which has no four frames
    made.wait()
    assert made.shown["name"] == "still.png"
    with pytest.raises(VltError, match="no method 'magic'"):
        Probe(boxed, vlt.Clip(CLIPS / "bell.mp4"), method="magic")
    with pytest.raises(VltError, match="a panel shows what the model answers"):
        Probe(boxed, vlt.Clip(CLIPS / "bell.mp4"), answer="I hear a bell.")


def test_state_is_json(probe: Probe) -> None:
    probe.switch(segments_off=[1])
    probe.wait()
    probe.explain("bell")
    probe.wait()
    state = json.loads(json.dumps(probe.state(), allow_nan=False))
    assert state["path"] == str(CLIPS / "two_bell.mp4") and state["vlt"] == metadata.version("vlt")
    assert Path(state["model"]) == box.folder()
    assert state["clip"] == "two_bell.mp4" and state["question"] == ASKED and state["heat"]["word"] == "bell"
    again = probe.run.rerun(edits.loads(json.dumps(state["edits"])))
    assert again.answer.text == state["edited"]["text"]


def test_a_state_is_of_one_run_also_while_the_next_is_computed(probe: Probe) -> None:
    probe.switch(segments_off=[1])
    probe.wait()
    before = probe.state()
    probe.switch(audio=False)
    assert probe.view["switches"]["audio"] is False and probe.view["edited"] is None and probe.state() == before
    probe.wait()
    state = probe.state()
    assert state["switches"]["audio"] is False and state["edited"]["text"] == "I hear nothing." and state["edits"]


def test_front_end_needs_no_network_and_sets_no_html() -> None:
    for name in ("front.js", "front.css"):
        text = (HERE / name).read_text()
        assert "http" not in text and "@import" not in text and "url(" not in text
        assert "innerHTML" not in text and "insertAdjacent" not in text and "eval(" not in text
