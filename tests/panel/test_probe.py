"""The panel without a browser: what its buttons do, what goes wrong, and that nothing it shows is other than a trace's."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vlt
from vlt.errors import VltError
from vlt.model.video_llama import VideoLlama
from vlt.panel import probe as panels
from vlt.panel.probe import HERE, Probe
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


def test_the_answer_comes_word_by_word(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "_TELL", 0.0)
    said: list[str] = []
    probe.observe(lambda change: said.append(change["new"]["said"]), "status")
    probe.ask("What do you see?")
    probe.wait()
    whole = probe.view["answer"]["text"]
    came = [text for text in said if text]
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
    seen = vlt.attribute(bell, look, method, "bell", progress=False).heat.values
    heard = vlt.attribute(bell, listen, method, "bell", progress=False).heat.values
    if method == "grad_cam":
        seen = seen[:, 1:]  # the class token is of no place
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
        ({"kind": "explain", "word": 99}, "the answer has no word 99"),
        ({"kind": "explain", "word": 1, "method": "magic"}, "no method 'magic'"),
        ({"kind": "switch", "frames_off": [8]}, "this clip has 8"),
        ({"kind": "switch", "segments_off": ["1"]}, "this clip has 8"),
        ({"kind": "load_clip", "path": "/no/such.mp4"}, "no such file"),
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
    told = {"kind": "upload", "number": number, "name": name, "at": at, "total": len(data)}
    probe._handle_custom_msg(told, [memoryview(data[at : at + piece])])


def upload(probe: Probe, name: str, data: bytes, piece: int = 50_000) -> None:
    for at in range(0, len(data), piece):
        send(probe, 1, name, data, at, piece)


def test_own_clip(probe: Probe, tmp_path: Path) -> None:
    upload(probe, "../../evil/../my clip.mp4", (CLIPS / "sound_only.mp4").read_bytes())
    probe.wait()
    assert probe.shown["name"] == "my clip.mp4" and probe.shown["frames"] == [] and probe.shown["sound"]
    folder = probe.run.clip.path.parent
    assert folder == Path(probe._uploads.name) and probe.view["question"] == ASKED
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
    send(probe, 4, "a.mp4", data, 0, 50_000)
    send(probe, 4, "a.mp4", data, 100_000, 50_000)
    with pytest.raises(VltError, match="another order"):
        probe.cancel() if not probe.status["error"] else None
        raise VltError(probe.status["error"])


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


def test_options_of_trace(boxed: VideoLlama) -> None:
    made = Probe(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), ASKED, branches=["video"], n_frames=4)
    assert len(made.shown["frames"]) == 4 and made.shown["sound"] is None
    made.load_clip(CLIPS / "bell.mp4")
    made.wait()
    assert len(made.shown["frames"]) == 4
    with pytest.raises(VltError, match="no method 'magic'"):
        Probe(boxed, vlt.Clip(CLIPS / "bell.mp4"), method="magic")


def test_state_is_json(probe: Probe) -> None:
    probe.switch(segments_off=[1])
    probe.wait()
    probe.explain("bell")
    probe.wait()
    state = json.loads(json.dumps(probe.state(), allow_nan=False))
    assert state["clip"] == "two_bell.mp4" and state["question"] == ASKED and state["heat"]["word"] == "bell"
    again = probe.run.rerun(edits.loads(json.dumps(state["edits"])))
    assert again.answer.text == state["edited"]["text"]


def test_front_end_needs_no_network_and_sets_no_html() -> None:
    for name in ("front.js", "front.css"):
        text = (HERE / name).read_text()
        assert "http" not in text and "@import" not in text and "url(" not in text
        assert "innerHTML" not in text and "insertAdjacent" not in text and "eval(" not in text
