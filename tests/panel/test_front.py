"""The front end alone, in a browser, before a model of numbers made up here that notes what it is sent."""

from __future__ import annotations

import base64
import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.panel.conftest import Page
from vlt.panel.probe import HERE
from vlt.panel.switches import ALL_ON

COLOURS = [(200, 30, 30), (30, 160, 30), (30, 30, 200), (200, 200, 30)]

PAGE = """<!doctype html><html><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<style>:root {{ color-scheme: light dark }} body {{ margin: 0 }} {style}</style></head><body><div id="probe"></div>
<script type="module">
{script}
window.all = {data};
window.sent = [];
const listeners = {{}};
const model = {{
  get: (name) => all[name],
  on: (name, then) => (listeners[name] = then),
  off: () => 0,
  send: (told) => {{ if (window.gone) throw Error("gone"); sent.push(told); }},
}};
window.put = (told) => {{
  Object.assign(all, told);
  for (const name of Object.keys(told)) listeners[`change:${{name}}`]?.();
}};
render({{ model, el: document.getElementById("probe") }});
</script></body></html>"""


def picture(pixels: np.ndarray) -> str:
    out = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(out, "PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def made_up() -> dict[str, Any]:
    frames = [
        {"image": picture(np.full((8, 8, 3), colour)), "seconds": 2.0 * i, "number": i} for i, colour in enumerate(COLOURS)
    ]
    sound = {
        "image": picture(np.full((16, 40), 120)),
        "segments": [{"start": 2.0 * i, "end": 2.0 * i + 2} for i in range(4)],
        "ticks": [{"place": 0.2, "text": "0.5 kHz"}, {"place": 0.9, "text": "5 kHz"}],
    }
    words = [("I", 0.99), (" hear", 0.5), (" a", 0.9), (" bell", 0.97)]
    said = {"text": "I hear a bell", "logp": -0.15, "tokens": [{"text": text, "p": p} for text, p in words]}
    return {
        "shown": {
            "name": "a.mp4", "kind": "video", "seconds": 8.0, "frames": frames, "sound": sound, "note": "", "media": "",
            "methods": ["saliency", "integrated_gradients"], "offset": 0.0, "origin": {"path": "/clips/a.mp4"},
        },
        "view": {
            "question": "What do you hear?", "answer": said, "edited": None, "edits": [], "switches": copy.deepcopy(ALL_ON),
            "word": None, "heat": None, "method": "saliency",
        },
        "status": {"busy": False, "what": "", "done": None, "said": "", "error": ""},
        "media": None, "page": None, "received": [],
    }  # fmt: skip


def heat(**told: Any) -> dict[str, Any]:
    frames, segments = np.zeros((4, 2, 2)), np.zeros((4, 2, 2))
    frames[:, 0, 1], segments[:, 1, 0] = (1, -2, 3, 0.5), (4, 0, -1, 0.25)
    return {
        "method": "integrated_gradients", "word": "bell", "seconds": 1.2, "warnings": ["Spectrograms: -0.02: little."],
        "unit": "nats of log p", "little": [], "one_scale": True, "signed": True, "frames": frames.tolist(), "frame_bars": frames.sum((1, 2)).tolist(),
        "segments": segments.tolist(), "segment_bars": segments.sum((1, 2)).tolist(), **told,
    }  # fmt: skip


@pytest.fixture
def show(page: Page, tmp_path: Path) -> Callable[..., Any]:
    """Opens the front end with a view (and other things) that differs in some; Playwright's page."""

    def show(shown: dict[str, Any] | None = None, page_held: Any = None, **view: Any) -> Any:
        told = made_up()
        told["shown"] |= shown or {}
        told["view"] |= view
        told["page"] = page_held
        text = PAGE.format(
            style=(HERE / "front.css").read_text(), script=(HERE / "front.js").read_text(), data=json.dumps(told)
        )
        (tmp_path / "x.html").write_text(text)
        page.page.goto((tmp_path / "x.html").as_uri())
        page.page.wait_for_function(
            "[...document.querySelectorAll('.strip canvas')].every((c) => c.getContext('2d').getImageData(9, 9, 1, 1).data[3])"
        )
        return page.page

    return show


def pixel(canvas: Any, x: float, y: float) -> list[int]:
    look = "(c, [x, y]) => [...c.getContext('2d').getImageData(x * c.width, y * c.height, 1, 1).data].slice(0, 3)"
    return list(canvas.evaluate(look, [x, y]))


EDITED = {
    "text": "I hear a hum",
    "logp": -0.3,
    "tokens": [{"text": t, "p": 0.9} for t in ("I", " hear", " a", " hum")],
    "change": -2.0,
}


def test_the_legend_says_what_the_colours_are(show: Callable[..., Any]) -> None:
    at = show(heat=heat(), word={"number": 3, "edited": False})
    text = at.locator(".legend").first.inner_text()
    assert " ".join(text.split()) == (
        "integrated gradients for “bell”: against −4 4 for (in nats of log p). In all 2.5 on frames, 3.3 on sound, drawn on one scale."
    )
    assert "⚠ Spectrograms: −0.02: little." in at.locator(".vlt").inner_text()
    scale = at.locator(".scale").evaluate("node => getComputedStyle(node).backgroundImage")
    assert scale.index("rgb(94, 60, 153)") < scale.index("rgb(230, 97, 1)")
    at.evaluate(
        "told => put({ view: { ...all.view, heat: told, word: { number: 3, edited: true } } })",
        heat(signed=False, one_scale=False),
    )
    text = at.locator(".legend").first.inner_text()
    assert (
        "in the answer without what is off: little" in text and "much, for or against" in text and "cannot be compared" in text
    )
    assert "little 0 3 / 4 much, for or against (frames / sound, in nats of log p). In all" in " ".join(text.split())
    scale = at.locator(".scale").evaluate("node => getComputedStyle(node).backgroundImage")
    assert "rgb(94, 60, 153)" not in scale and scale.endswith("rgb(230, 97, 1))")
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat(frames=None, frame_bars=None))
    assert "−4 4 for (in nats of log p). In all 3.3 on sound." in " ".join(at.locator(".legend").first.inner_text().split())


def test_heat_of_what_brings_next_to_nothing_is_faded(show: Callable[..., Any]) -> None:
    at = show(heat=heat(one_scale=False), word={"number": 3, "edited": False})

    def seen() -> tuple[list[int], list[int], list[float]]:
        bars = at.locator(".bar i").evaluate_all("all => all.map((bar) => Number(getComputedStyle(bar).opacity))")
        places = (at.locator(".strip canvas").nth(2), 0.75, 0.25), (at.locator(".spectrogram canvas"), 0.06, 0.75)
        return (*(pixel(*place) for place in places), bars)

    def far(a: list[int], b: list[int]) -> int:
        return max(abs(x - y) for x, y in zip(a, b, strict=True))

    frame, sound, bars = seen()
    assert bars == [1.0] * 8 and "Faded" not in at.locator(".legend").inner_text()
    bare = pixel(at.locator(".strip canvas").nth(2), 0.25, 0.25)
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat(one_scale=False, little=["frames"]))
    faded, still, bars = seen()
    assert still == sound and 0 < far(faded, bare) < 0.5 * far(frame, bare) and bars == [0.25] * 4 + [1.0] * 4
    assert "Faded: frames, bringing next to nothing." in at.locator(".legend").inner_text()
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat(one_scale=False, little=["frames", "segments"]))
    assert far(seen()[1], sound) > 20 and "Faded: frames and sound, bringing" in at.locator(".legend").inner_text()


def test_bars_and_what_is_read_aloud(show: Callable[..., Any]) -> None:
    at = show(heat=heat(), word={"number": 3, "edited": False})
    bars = at.locator(".bar").evaluate_all(
        "all => all.map((bar) => [...bar.children].map((n) => [n.className, parseFloat(n.style.bottom), parseFloat(n.style.height)]))"
    )
    ground = 100 * 2 / 6  # of bars from -2 to 4
    sizes = [1, -2, 3, 0.5, 4, 0, -1, 0.25]
    for size, ((_, line, _), (sign, bottom, height)) in zip(sizes, bars, strict=True):
        assert line == pytest.approx(ground, abs=0.01) and height == pytest.approx(max(100 * abs(size) / 6, 1), abs=0.01)
        assert sign == ("against" if size < 0 else "")
        assert (bottom if size >= 0 else bottom + height) == pytest.approx(ground, abs=0.01)
    names = at.locator(".strip button").evaluate_all("all => all.map((button) => button.getAttribute('aria-label'))")
    assert names == [f"frame {i} at {2 * i} s, heat {h}" for i, h in enumerate(("1", "−2", "3", "0.5"))]
    assert (
        at.locator(".spectrogram canvas").get_attribute("aria-label")
        == "spectrogram, 4 segments; heat by segment: 4, 0, −1, 0.25"
    )
    low, high = (at.get_by_text(text, exact=True).bounding_box()["y"] for text in ("0.5 kHz", "5 kHz"))
    assert low > high


def test_frames_under_heat_can_still_be_told_apart(show: Callable[..., Any]) -> None:
    """Paler, and not grey: what is red there stays redder than what is around it."""
    at = show()
    before = [pixel(canvas, 0.25, 0.75) for canvas in at.locator(".strip canvas").all()]
    assert before == [list(colour) for colour in COLOURS]
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat())
    pale = [pixel(canvas, 0.25, 0.75) for canvas in at.locator(".strip canvas").all()]
    for colour, seen in zip(COLOURS, pale, strict=True):
        assert int(np.argmax(seen)) == int(np.argmax(colour)) and 15 < max(seen) - min(seen) < max(colour) - min(colour)


def test_what_is_off_looks_off(show: Callable[..., Any]) -> None:
    at = show(switches={**ALL_ON, "frames_off": [1], "segments_off": [2]}, edited=EDITED)
    off = at.locator(".cell").evaluate_all("all => all.map((cell) => cell.classList.contains('off'))")
    assert off == [False, True, False, False, False, False, True, False]
    sound = at.locator(".spectrogram canvas")
    assert [pixel(sound, (i + 0.5) / 4, 0.5)[0] > 200 for i in range(4)] == [False, False, True, False]
    assert "off: what is seen at 2 s, the sound of 4–6 s" in at.locator(".vlt").inner_text()
    assert at.locator(".change").inner_text() == "log p of the first answer: −0.15 → −2.15 (change −2.00)"
    assert at.get_by_label("frame 1 is seen").is_checked() is False and at.get_by_label("frame 2 is seen").is_checked()
    at.evaluate("put({ view: { ...all.view, switches: { ...all.view.switches, video: false } } })")
    assert at.get_by_label("frame positions").is_disabled() and at.get_by_label("frame 2 is seen").is_disabled()
    assert at.get_by_label("segment 0 is heard").is_enabled()


def test_words(show: Callable[..., Any]) -> None:
    at = show(edited=EDITED, word={"number": 3, "edited": True}, heat=heat())
    first, second = at.get_by_role("group", name="Answer"), at.get_by_role("group", name="Without what is off")
    assert [word.get_attribute("class") for word in first.get_by_role("button").all()] == ["", "unsure", "", ""]
    pressed = [word.get_attribute("aria-pressed") for word in at.locator(".words button").all()]
    assert pressed == ["false"] * 7 + ["true"]
    first.get_by_role("button", name="bell").click()
    at.get_by_label("method of explanation").select_option("integrated_gradients")
    second.get_by_role("button", name="hear").click()
    about = {"kind": "explain", "clip": "/clips/a.mp4"}
    assert at.evaluate("sent") == [
        {**about, "word": 3, "edited": False, "method": "saliency", "answer": "I hear a bell"},
        {"kind": "method", "method": "integrated_gradients"},
        {**about, "word": 1, "edited": True, "method": "integrated_gradients", "answer": "I hear a hum"},
    ]
    assert "Answer to “What do you hear?”" in at.locator(".answer").inner_text()


def test_the_frame_of_the_moment_and_the_playhead(show: Callable[..., Any]) -> None:
    at = show()

    def marked() -> list[bool]:
        return [button.get_attribute("aria-pressed") == "true" for button in at.locator(".strip button").all()]

    def left() -> float:
        return float(at.locator(".playhead").evaluate("node => parseFloat(node.style.left)"))

    for i in (2, 0, 3):
        at.locator(".strip button").nth(i).click()
        assert marked() == [j == i for j in range(4)] and left() == pytest.approx(25 * i)
    # segments that overlap: the one in whose middle it is. At 4 s, those of 2 to 5 and of 3 to 6 are as near; 2.1 to 5.1 nearer
    spans = [{"start": s, "end": s + 3} for s in (0.0, 2.4, 3.9, 7.0)]
    at.evaluate("told => put({ shown: { ...all.shown, sound: { ...all.shown.sound, segments: told } } })", spans)
    assert "they overlap" in at.locator(".vlt").inner_text()
    at.locator(".strip button").nth(2).click()
    assert left() == pytest.approx(100 * (1 + 1.6 / 3) / 4)


def test_pictures_that_begin_later_than_their_sound(show: Callable[..., Any]) -> None:
    """The player's clock is ahead of the frames' by that."""
    silence = base64.b64encode(_wav(8)).decode()
    at = show(
        shown={"media": "audio/wav", "offset": 1.5},
        page_held={"media": f"data:audio/wav;base64,{silence}", "edits": ["mute('spectrograms')"], "stages": [], "sweep": []},
    )
    assert "The run was edited: mute('spectrograms')" in at.locator(".vlt").inner_text()
    at.wait_for_function("document.querySelector('audio').readyState >= 1")
    at.locator(".strip button").nth(2).click()
    at.wait_for_function("document.querySelector('audio').currentTime === 5.5")
    at.wait_for_timeout(300)  # the player says where it is
    assert at.locator(".strip button").nth(2).get_attribute("aria-pressed") == "true"
    assert at.locator(".playhead").evaluate("node => parseFloat(node.style.left)") == pytest.approx(50, abs=0.5)


def _wav(seconds: int) -> bytes:
    rate = 8000
    data = b"\x80" * (rate * seconds)
    head = b"RIFF" + (36 + len(data)).to_bytes(4, "little") + b"WAVEfmt " + (16).to_bytes(4, "little")
    head += b"".join(n.to_bytes(size, "little") for n, size in ((1, 2), (1, 2), (rate, 4), (rate, 4), (1, 2), (8, 2)))
    return head + b"data" + len(data).to_bytes(4, "little") + data


def test_the_picture_has_what_is_seen(show: Callable[..., Any]) -> None:
    at = show(
        switches={**ALL_ON, "frames_off": [3]},
        answer={**made_up()["view"]["answer"], "note": "the box: it has not learnt this question"},
        edited=EDITED,
        heat=heat(frames=None, frame_bars=None),
        word={"number": 3, "edited": True},
    )
    at.evaluate("""() => {
        window.texts = [];
        const own = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...at) { texts.push(text); return own.call(this, text, ...at); };
    }""")
    with at.expect_download() as got:
        at.get_by_role("button", name="Save as PNG").click()
    at.evaluate("put({ view: { ...all.view, edited: { ...all.view.edited, change: 1.5 } } })")
    at.get_by_role("button", name="Save as PNG").click()
    drawn = np.asarray(Image.open(got.value.path()).convert("RGB")).astype(int)
    said = " ".join(at.evaluate("texts"))
    assert "(log p of the first answer: change +1.50)" in said
    assert "a.mp4: What do you hear?" in said and "I hear a bell the box: it has not learnt this question" in said
    assert "without what is seen at 6 s: I hear a hum (log p of the first answer: change −2.00)" in said
    assert (
        "integrated gradients for “bell”, in the answer without what is off" in said
        and "⚠ Spectrograms: −0.02: little." in said
    )
    for i, colour in enumerate(COLOURS):
        pale = [255 - (255 - c) / 4 for c in colour] if i == 3 else colour
        found = (np.abs(drawn - np.array(pale)).max(2) < 4).nonzero()
        assert len(found[0]) > 20_000 and abs(found[1].mean() - (10 + 80 + 166 * i)) < 20  # a square of its own


def test_nothing_is_saved_while_the_answer_is_not_of_the_switches(show: Callable[..., Any]) -> None:
    at = show(switches={**ALL_ON, "audio": False})
    at.evaluate("window.saved = 0; HTMLAnchorElement.prototype.click = () => saved++")
    buttons = [at.get_by_role("button", name=f"Save as {kind}") for kind in ("JSON", "PNG")]

    def click() -> None:
        at.evaluate("saved = 0")
        for button in buttons:
            button.click(force=True)

    assert [button.get_attribute("aria-disabled") for button in buttons] == ["true", "true"]
    click()
    at.wait_for_timeout(300)  # a picture is made beside
    assert at.evaluate("saved") == 0
    assert buttons[0].get_attribute("title") == "the answer without what is off is not there yet"
    at.evaluate("told => put({ view: { ...all.view, edited: told } })", EDITED)
    assert [button.get_attribute("aria-disabled") for button in buttons] == ["false", "false"]
    click()
    at.wait_for_function("saved === 2")
    assert buttons[0].get_attribute("title") == ""


def test_another_clip_leaves_what_somebody_does(show: Callable[..., Any]) -> None:
    at = show()
    at.get_by_label("question", exact=True).fill("What is lo")
    at.get_by_label("method of explanation").select_option("integrated_gradients")
    at.get_by_label("path of another clip").fill("/b.mp4")
    at.get_by_role("button", name="Open").focus()
    at.keyboard.press("Enter")
    assert at.evaluate("sent.slice(1)") == [{"kind": "load_clip", "path": "/b.mp4", "question": "What is lo"}]
    at.evaluate("put({ shown: { ...all.shown, name: 'b.mp4' }, view: { ...all.view } })")
    assert "b.mp4" in at.locator(".name").inner_text() and at.get_by_label("question", exact=True).input_value() == "What is lo"
    assert at.get_by_label("method of explanation").input_value() == "integrated_gradients"
    assert at.evaluate("document.activeElement.textContent") == "Open"
    assert at.get_by_label("path of another clip").input_value() == ""  # it is open
    at.get_by_label("path of another clip").fill("/c.m")
    at.get_by_role("group", name="switches").get_by_label("sound").focus()
    at.evaluate("put({ shown: { ...all.shown, sound: null }, view: { ...all.view } })")
    assert not at.get_by_role("group", name="switches").get_by_label("sound").is_visible()
    at.get_by_role("group", name="switches").get_by_label("video").focus()
    at.evaluate("put({ shown: { ...all.shown, name: 'c.mp4' }, view: { ...all.view } })")
    assert at.get_by_label("path of another clip").input_value() == "/c.m"
    assert at.evaluate("document.activeElement.name") == "video"


def test_clicks_are_sent_one_by_one(show: Callable[..., Any]) -> None:
    at = show()
    for name in ("frame 1 is seen", "frame 2 is seen", "segment 3 is heard"):
        at.get_by_label(name).click()
    told = [("frames_off", 1), ("frames_off", 2), ("segments_off", 3)]
    about = {"kind": "turn", "on": False, "clip": "/clips/a.mp4"}
    assert at.evaluate("sent") == [{**about, "name": name, "number": i} for name, i in told]
    at.evaluate("window.gone = true")
    at.get_by_role("group", name="switches").get_by_label("video").click()
    assert "kernel does not answer" in at.get_by_role("alert").inner_text()
    assert at.get_by_role("group", name="switches").get_by_label("video").is_checked()  # nothing was switched


def test_what_is_chosen_and_asked_meanwhile_stays(show: Callable[..., Any]) -> None:
    """Views that are older than what was done last change neither the method nor the question."""
    at = show(shown={"methods": ["saliency", "integrated_gradients", "occlusion"]})
    method, question = at.get_by_label("method of explanation"), at.get_by_label("question", exact=True)
    for name in ("integrated_gradients", "occlusion"):
        method.select_option(name)
    for name in ("integrated_gradients", "occlusion", "saliency"):
        at.evaluate("told => put({ view: { ...all.view, method: told } })", name)
        assert method.input_value() == ("saliency" if name == "saliency" else "occlusion")  # the last was chosen by code
    for text in ("What is first? ", "What is second?"):
        question.fill(text)
        question.press("Enter")
    for text in ("What is first?", "What is second?", "What is third?"):
        at.evaluate("told => put({ view: { ...all.view, question: told } })", text)
        assert question.input_value() == ("What is third?" if text == "What is third?" else "What is second?")
    question.evaluate("box => box.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', repeat: true }))")
    assert [told["kind"] for told in at.evaluate("sent")] == ["method", "method", "ask", "ask"]


@pytest.mark.parametrize("key", ["mouse", "Space"])
def test_what_comes_while_a_button_is_pressed_takes_no_click(show: Callable[..., Any], key: str) -> None:
    """A view that comes between a button's going down and its going up, as of a kernel that is slow, changes no element that
    is the same."""
    at = show(edited=EDITED, switches={**ALL_ON, "video": False, "audio": False})
    words = at.locator(".answer .words button")
    sound = at.get_by_role("group", name="switches").get_by_label("sound")
    for pressed, coming in (
        (sound, {"switches": {**ALL_ON, "audio": False}, "edited": None}),
        (words.filter(has_text="bell"), {"word": {"number": 1, "edited": False}, "heat": heat()}),
        (words.filter(has_text="hear"), {"word": {"number": 3, "edited": False}, "edited": EDITED}),
    ):
        at.evaluate("sent.length = 0")
        if key == "mouse":
            pressed.hover()
            at.mouse.down()
        else:
            pressed.focus()
            at.keyboard.down(key)
        at.evaluate("told => put({ view: { ...all.view, ...told } })", coming)
        if key == "mouse":
            at.mouse.up()
        else:
            at.keyboard.up(key)
        assert len(at.evaluate("sent")) == 1
    assert words.filter(has_text="bell").get_attribute("aria-pressed") == "true"
    assert words.filter(has_text="hear").get_attribute("aria-pressed") == "false"  # until the kernel answers


def test_nothing_moves_while_work_begins_and_ends(show: Callable[..., Any]) -> None:
    at = show()

    def places() -> list[float]:
        return [
            at.locator(what).first.bounding_box()["y"] for what in (".answer .words button", ".strip canvas", ".spectrogram")
        ]

    for width in (380, 520, 1080):
        at.set_viewport_size({"width": width, "height": 900})
        before = places()
        for told in (
            {"busy": True, "what": "looking for what said 'beginning', a long time", "done": 0.5},
            {"busy": True, "what": "answering", "said": "There is a word and another " * 20},
            {"busy": False, "what": "", "said": "", "error": "stopped"},
            {"busy": False, "error": ""},
        ):
            at.evaluate("told => put({ status: { ...all.status, ...told } })", told)
            assert at.get_by_role("button", name="Cancel").is_visible() is told["busy"] and places() == before, (width, told)


@pytest.mark.parametrize("width", [380, 700, 1080])
def test_a_second_click_hits_the_same_switch(show: Callable[..., Any], width: int) -> None:
    """Neither heat nor a second answer moves what is clicked (in a narrow panel the second answer is below the first)."""
    words = ["The", "circle", "goes", "to", "the", "left", "and", "a", "bell", "is", "heard", "."]
    said = {"tokens": [{"text": word, "p": 0.9} for word in words], "text": " ".join(words), "logp": -0.1}
    at = show(answer=said)
    at.set_viewport_size({"width": width, "height": 900})
    clicked = [at.get_by_role("group", name="switches").get_by_label("sound"), at.get_by_role("button", name="Ask")]
    if width > 380:
        clicked += [
            at.locator(".answer .words button").last,
            at.get_by_label("frame 1 is seen"),
            at.get_by_label("segment 1 is heard"),
            at.get_by_label("path of"),
        ]

    def places() -> list[float]:
        return [what.bounding_box()[axis] for what in clicked for axis in "xy"]

    before = places()
    for told in (
        {"switches": {**ALL_ON, "audio": False}},
        {"edited": EDITED},
        {"edited": {**EDITED, **said}},
        {"heat": heat(warnings=[]), "word": {"number": 3, "edited": True}},
        {"edited": None, "heat": None, "switches": ALL_ON},
    ):
        at.evaluate("told => put({ view: { ...all.view, ...told } })", told)
        assert places() == before, told


def test_what_comes_is_read_aloud(show: Callable[..., Any]) -> None:
    """Where the text was before it came: of a new place nothing is read."""
    at = show(edited=EDITED, heat=heat(), word={"number": 3, "edited": True})
    at.evaluate("""() => {
        window.read = [];
        for (const place of document.querySelectorAll("[aria-live=polite]"))
            new MutationObserver(() => place.textContent && read.push(place.textContent)).observe(place, { childList: true });
    }""")

    def read(**view: Any) -> str:
        at.evaluate("told => { read.length = 0; put({ view: { ...all.view, ...told } }) }", view)
        return " | ".join(at.evaluate("read"))

    assert read() == ""  # what is as it was is not read again
    assert read(edited=None, heat=None, word=None) == ""
    assert read(edited=EDITED) == "log p of the first answer: −0.15 → −2.15 (change −2.00)"
    assert "(change +2.00)" in read(edited={**EDITED, "change": 2.0})
    first = read(heat=heat(), word={"number": 3, "edited": False})
    assert first.startswith("integrated gradients for “bell”, in the first answer: against")


def test_the_player_speaks_of_heat_where_there_is_some(show: Callable[..., Any]) -> None:
    at = show(shown={"media": "video/mp4"}, page_held={"media": "data:video/mp4,", "edits": [], "stages": [], "sweep": []})
    told = at.get_by_text("heat: of the last frame that the model has seen by then", exact=True)
    below = at.locator(".strip").bounding_box()
    assert not told.is_visible() and at.locator("video").get_attribute("aria-label") == "a.mp4"
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat())
    assert told.is_visible() and at.locator("video").get_attribute("aria-label") == "a.mp4, with heat"
    assert at.locator(".strip").bounding_box() == below
    at.evaluate("told => put({ view: { ...all.view, heat: told } })", heat(frames=None, frame_bars=None))
    assert not told.is_visible() and at.locator("video").get_attribute("aria-label") == "a.mp4"


def test_shortcuts_reach_the_notebook_and_typing_does_not(show: Callable[..., Any]) -> None:
    at = show()
    at.evaluate("""() => {
        window.heard = [];
        document.addEventListener("keydown", (event) => { heard.push(event.key); event.preventDefault(); });
    }""")
    for place in (at.get_by_label("question", exact=True), at.get_by_role("button", name="bell")):
        place.focus()
        for key in ("s", "Shift+Z", "Delete", "Control+s", "Meta+s", "Control+Shift+c", "Alt+x"):
            at.keyboard.press(key)
    letters = [key for key in at.evaluate("heard") if key not in ("Control", "Meta", "Alt", "Shift")]
    assert [key.lower() for key in letters] == ["s", "s", "c", "x"] * 2


def test_the_focus_stays_in_the_panel_where_cancel_goes(show: Callable[..., Any]) -> None:
    at = show()
    at.evaluate("put({ status: { ...all.status, busy: true, what: 'answering' } })")
    at.get_by_role("button", name="Cancel").focus()
    at.keyboard.press("Enter")
    assert at.evaluate("sent") == [{"kind": "cancel"}]
    at.evaluate("put({ status: { ...all.status, busy: false, error: 'stopped' } })")
    assert at.evaluate("document.activeElement.contains(document.querySelector('.vlt .told'))")
    assert at.evaluate("document.activeElement.tagName") == "SECTION"
    at.keyboard.press("Enter")  # one that came too late for Cancel asks nothing
    assert len(at.evaluate("sent")) == 1
    at.keyboard.press("Tab")
    assert at.evaluate("document.activeElement.textContent") == "I"
    for busy in (True, False):  # and is not taken from elsewhere
        at.get_by_role("button", name="bell").focus()
        at.evaluate("told => put({ status: { ...all.status, busy: told } })", busy)
        assert at.evaluate("document.activeElement.textContent") == "bell"


def test_what_is_refused_and_what_was_stopped(show: Callable[..., Any]) -> None:
    at = show()
    alert, chooser = at.get_by_role("alert"), at.get_by_label("another clip from this computer")

    def status(error: str) -> str:
        """Of what colour it is told."""
        at.evaluate("told => put({ status: { ...all.status, error: told } })", error)
        return str(alert.evaluate("node => getComputedStyle(node).color"))

    neutral = at.locator(".soft").first.evaluate("node => getComputedStyle(node).color")
    assert status("stopped") == neutral != status("a.mp4: cannot be read") and alert.inner_text() == "a.mp4: cannot be read"
    chooser.set_input_files({"name": "a.mp4", "mimeType": "video/mp4", "buffer": b"x"})
    at.wait_for_function("sent.length === 1")
    assert chooser.evaluate("node => node.files.length") == 1
    status("")
    assert chooser.evaluate("node => node.files.length") == 1
    status("a.mp4: cannot be read")
    assert chooser.evaluate("node => node.files.length") == 0
    at.get_by_role("button", name="Open").click()  # of no path: what is wanted is told by Python
    assert at.evaluate("sent.at(-1)") == {"kind": "load_clip", "path": "", "question": "What do you hear?"}


def test_a_saved_state_says_of_what_it_is(show: Callable[..., Any]) -> None:
    origin = {"path": "/clips/a.mp4", "model": "box", "vlt": "1.2"}
    at = show(shown={"origin": origin})
    with at.expect_download() as got:
        at.get_by_role("button", name="Save as JSON").click()
    state = json.loads(Path(got.value.path()).read_text())
    assert state == {"clip": "a.mp4", **origin, **made_up()["view"]}


def test_what_is_typed_while_an_answer_comes_stays(show: Callable[..., Any]) -> None:
    at = show()
    box = at.get_by_label("question", exact=True)
    box.fill("What do you see?")
    box.press("Enter")
    box.fill("What colour is the sq")
    at.evaluate("put({ view: { ...all.view, question: 'What do you see?' } })")
    assert box.input_value() == "What colour is the sq" and "Answer to “What do you see?”" in at.locator(".answer").inner_text()
    box.fill("What moves?")
    box.press("Enter")
    at.evaluate("put({ view: { ...all.view, question: 'What moves?' } })")
    at.evaluate("put({ view: { ...all.view, question: 'Asked by code' } })")
    assert box.input_value() == "Asked by code"


def test_an_answer_that_was_cut_off_says_so(show: Callable[..., Any]) -> None:
    at = show(answer={**made_up()["view"]["answer"], "cut": True}, edited=EDITED)
    assert "(cut off)" in at.locator(".answer").inner_text() and "(cut off)" not in at.locator(".edited").inner_text()


def test_what_the_model_does_not_know_stands_beside_its_answer(show: Callable[..., Any]) -> None:
    at = show()
    assert at.get_by_role("note").count() == 0
    at.evaluate("put({ view: { ...all.view, answer: { ...all.view.answer, note: 'the box: it has not learnt this' } } })")
    note = at.locator(".top").get_by_role("note")
    assert note.inner_text() == "the box: it has not learnt this" and note.get_attribute("class") == "soft"


@pytest.mark.parametrize("width", [380, 700, 1080])
def test_an_answer_that_finds_no_end_can_be_read(show: Callable[..., Any], page: Page, width: int) -> None:
    page.page.set_viewport_size({"width": width, "height": 900})
    tokens = [{"text": f" {'sounds' * (1 + 9 * (i % 7 == 6))}{i}", "p": 0.3} for i in range(300)]
    endless = {**EDITED, "tokens": tokens, "cut": True}
    at = show(edited=endless, switches={**ALL_ON, "video": False, "audio": False})
    sides = at.locator(".sides").bounding_box()
    assert sides["height"] < 400 and not page.wider_than(width)
    assert at.locator(".edited .words").evaluate("row => row.scrollWidth <= row.clientWidth")  # words of any length are wrapped
    assert at.get_by_text("(cut off)").is_visible()
    beside = at.locator(".edited").inner_text()
    assert "nothing is seen or heard, so this is a guess from the words" in beside
    last = at.locator(".edited button").last
    last.scroll_into_view_if_needed()
    last.focus()
    before = last.bounding_box()
    at.evaluate("put({ view: { ...all.view, word: { number: 299, edited: true } } })")
    assert at.evaluate("document.activeElement.textContent") == "sounds299" and last.bounding_box() == before
    at.evaluate("put({ view: { ...all.view, switches: { ...all.view.switches, audio: true } } })")
    assert "nothing is seen or heard" not in at.locator(".vlt").inner_text()


def test_sound_that_is_shorter_than_a_segment(show: Callable[..., Any]) -> None:
    shown = made_up()["shown"]
    at = show(shown={"sound": {**shown["sound"], "segments": [{"start": 0.0, "end": 0.5}] * 4}})
    assert "Heard: 4 segments (each 0–0.5 s: the sound is no longer)" in at.locator(".vlt").inner_text()
    assert at.locator(".segments label").all_inner_texts() == ["0", "1", "2", "3"]


UPLOAD = """async ([size, refused, ...expected]) => {
    const settled = async (count) => { // as many as are expected, in good time, and no more soon after
      for (let i = 0; i < 500 && sent.length < count; i++) await new Promise((then) => setTimeout(then, 20));
      await new Promise((then) => setTimeout(then, 300));
    };
    const input = document.querySelector("input[type=file]"), file = new File(["x"], "x.mp4");
    Object.defineProperty(file, "size", { value: size });
    file.slice = () => ({ arrayBuffer: async () => new ArrayBuffer(0) });
    Object.defineProperty(input, "files", { value: [file] });
    input.dispatchEvent(new Event("change"));
    await settled(expected[0]);
    const first = sent.length;
    if (first) put({ received: [sent[0].number, refused ? -1 : 3 * 2 ** 20] });
    await settled(expected[1]);
    return [first, sent.length];
}"""


@pytest.mark.parametrize(
    ("size", "refused", "expected"),
    [(2**29 + 1, False, (0, 0)), (2**28, True, (5, 5)), (2**28, False, (5, 8)), (2**21, False, (2, 2))],
    ids=["too large", "refused", "taken slowly", "small"],
)
def test_a_file_is_sent_as_it_is_taken(show: Callable[..., Any], size: int, refused: bool, expected: tuple[int, int]) -> None:
    at = show()
    assert tuple(at.evaluate(UPLOAD, [size, refused, *expected])) == expected
    assert ("512 at most" in at.get_by_role("alert").inner_text()) is (expected == (0, 0))


@pytest.mark.parametrize("width", [320, 420, 560, 640, 760, 900])
def test_labels_do_not_overlap(show: Callable[..., Any], page: Page, width: int) -> None:
    shown = made_up()["shown"]
    spans = [{"start": 72.5 * i, "end": 72.5 * i + 2} for i in range(8)]
    at = show(shown={"sound": {**shown["sound"], "segments": spans}, "frames": shown["frames"] * 2}, edited=EDITED)
    assert not page.wider_than(width)
    boxes = at.locator(".cell label").evaluate_all("all => all.map((label) => label.getBoundingClientRect().toJSON())")
    for a, b in ((a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]):
        apart = (
            a["right"] <= b["left"] + 1
            or b["right"] <= a["left"] + 1
            or a["bottom"] <= b["top"] + 1
            or b["bottom"] <= a["top"] + 1
        )
        assert apart, (width, a, b)
