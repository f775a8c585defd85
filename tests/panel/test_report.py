"""A run as one file: what it holds is the run's, it is small, and it opens offline; text from strangers stays text."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import vlt
from vlt.cli import app
from vlt.errors import VltError
from vlt.inputs.video import denormalise
from vlt.model.video_llama import VideoLlama
from vlt.panel import report
from vlt.probe import edits, sweep
from vlt.probe.trace import Trace, trace

from .conftest import CLIPS, Page

EVIL = '</script><script>document.title="got"</script><img src=x onerror=document.title="got"> &amp; "What"?'


@pytest.fixture(scope="module")
def bell(boxed: VideoLlama) -> Trace:
    return trace(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), "What do you hear?")


@pytest.fixture(scope="module")
def saved(bell: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "run.html"
    bell.save_html(path, methods=["relevance", "saliency"], progress=False)
    return path


def data_of(path: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="run">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return json.loads(found[1])


def test_holds_the_run(saved: Path, bell: Trace) -> None:
    held = data_of(saved)
    assert held["view"]["answer"]["text"] == bell.answer.text
    assert set(held["page"]["heats"]) == {f"{word} {method}" for word in range(4) for method in ("relevance", "saliency")}
    heat = vlt.attribute(bell, "spectrograms", "saliency", "bell", progress=False).heat.values
    bars = held["page"]["heats"]["3 saliency"]["segment_bars"]
    assert np.allclose(bars, heat.reshape(8, -1).sum(1), rtol=0.01, atol=2e-3 * heat.sum())
    rows = {row["name"]: row for row in held["page"]["sweep"]}
    table = vlt.sweep(bell, {"mute": vlt.edits.mute()}, progress=False)
    assert rows["mute"]["answer"] == table["answer"]["mute"] and rows["mute"]["change"] == pytest.approx(
        table["change"]["mute"]
    )
    assert [row["stage"] for row in held["page"]["stages"]] == list(bell.stages().index)


def test_is_small_and_fetches_nothing(saved: Path) -> None:
    text = saved.read_text(encoding="utf-8")
    assert len(text.encode()) < 2 * 2**20
    assert "http://" not in text and "https://" not in text
    assert "default-src 'none'" in text


def test_text_is_escaped(boxed: VideoLlama, tmp_path: Path) -> None:
    clip = tmp_path / "<b>&clip.mp4"
    shutil.copy(CLIPS / "silent.mp4", clip)
    run = trace(boxed, vlt.Clip(clip), EVIL, branches=["video"], answer="</script> it is")
    text = report.page(run, ["saliency"], sweep=False, progress=False)
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "<b>" not in text
    held = tmp_path / "p.html"
    held.write_text(text, encoding="utf-8")
    assert data_of(held)["view"]["question"] == EVIL  # nothing is lost


def test_what_the_box_does_not_know_is_told(saved: Path, boxed: VideoLlama, page: Page, tmp_path: Path) -> None:
    run = trace(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), "Why?", max_new_tokens=3)
    run.save_html(tmp_path / "x.html", methods=["relevance"], sweep=False, progress=False)
    page.page.goto((tmp_path / "x.html").as_uri())
    assert page.page.get_by_role("note").inner_text().startswith("the box: it has not learnt this question")
    page.page.goto(saved.as_uri())
    assert page.page.get_by_role("note").count() == 0 and page.errors == []


def test_refusals(bell: Trace, tmp_path: Path) -> None:
    with pytest.raises(VltError, match="no method 'magic'"):
        bell.save_html(tmp_path / "x.html", methods=["magic"])
    with pytest.raises(VltError, match="no method was given"):
        bell.save_html(tmp_path / "x.html", methods=[])
    with pytest.raises(VltError, match=r"saved as \.html"):
        bell.save_html(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_sound_alone_and_a_picture(boxed: VideoLlama, tmp_path: Path) -> None:
    run = trace(boxed, vlt.Clip(CLIPS / "sound_only.mp4"), "What do you hear?")
    run.save_html(tmp_path / "x.html", methods=["relevance"], progress=False)
    held = data_of(tmp_path / "x.html")
    assert held["shown"]["frames"] == [] and "frames" not in held["page"]["heats"]["0 relevance"]


@pytest.mark.parametrize(
    "edit", [edits.without("audio"), edits.custom("video_prefix", lambda value: 0 * value)], ids=["without", "a function"]
)
def test_of_an_edited_run_it_says_so(bell: Trace, tmp_path: Path, edit: edits.Edit) -> None:
    run = bell.rerun(edit)
    run.save_html(tmp_path / "x.html", progress=False)
    held = data_of(tmp_path / "x.html")
    followed = ["relevance"] if edit.kind == "without" else []  # else there is nothing for it to follow
    assert held["shown"]["methods"] == ["integrated_gradients", *followed]
    assert held["view"]["answer"]["text"] == run.answer.text and held["page"]["edits"] == [str(edit)]
    assert held["view"]["edits"] == ([str(edit)] if edit.kind == "custom" else json.loads(edits.dumps([edit])))
    swept = held["page"]["sweep"]
    assert {row["name"]: row["edit"] for row in swept}["reverse"] == str(edits.reverse()) and swept[0]["name"] == "as above"
    assert held["view"]["switches"]["audio"] is (edit.kind != "without")
    assert None in [row["ms"] for row in held["page"]["stages"]]


def test_of_a_run_that_is_yet_to_be_made(bell: Trace, tmp_path: Path) -> None:
    bell.edited(edits.blank(frame=[2, 3])).save_html(tmp_path / "x.html", methods=["relevance"], progress=False)
    assert len(data_of(tmp_path / "x.html")["page"]["sweep"]) == 17


def test_answers_that_were_cut_off_are_marked(boxed: VideoLlama, tmp_path: Path, page: Page) -> None:
    run = trace(boxed, vlt.Clip(CLIPS / "two_bell.mp4"), "What do you hear?", max_new_tokens=5)
    run.save_html(tmp_path / "x.html", methods=["relevance"], progress=False)
    swept, variants = data_of(tmp_path / "x.html")["page"]["sweep"], sweep.possible(run)
    cut = [run.answer.ended == "length", *(run.rerun(edit).answer.ended == "length" for edit in variants.values())]
    assert [row["cut"] for row in swept] == cut and len(set(cut)) == 2
    page.page.goto((tmp_path / "x.html").as_uri())
    told = page.page.locator("table").first.locator("tbody tr").all_inner_texts()
    assert ["\u2026 (cut off)" in row for row in told] == cut and page.errors == []


def test_a_name_of_any_bytes(boxed: VideoLlama, tmp_path: Path) -> None:
    clip = tmp_path / os.fsdecode(b"bad\xff.mp4")
    shutil.copy(CLIPS / "silent.mp4", clip)
    run = trace(boxed, vlt.Clip(clip), "What do you see?", branches=["video"])
    run.save_html(tmp_path / "x.html", methods=["relevance"], sweep=False, progress=False)
    assert data_of(tmp_path / "x.html")["shown"]["name"] == "bad\ufffd.mp4"


def test_command(tmp_path: Path) -> None:
    asked = ["probe", str(CLIPS / "silent.mp4"), "--ask", "What do you see?", "--branch", "video"]
    path = tmp_path / "run.html"
    done = CliRunner().invoke(app, [*asked, "--html", str(path)])
    assert done.exit_code == 0, done.output
    held = data_of(path)
    assert held["view"]["answer"]["text"] in done.output and held["shown"]["sound"] is None
    assert CliRunner().invoke(app, [*asked, "--html", str(tmp_path / "run.txt")]).exit_code != 0


# ---------------------------------------------------------------------- in a browser


def pixels(page: Page, selector: str) -> str:
    return str(page.page.locator(selector).first.evaluate("canvas => canvas.toDataURL()"))


def test_a_page_in_a_browser(saved: Path, page: Page) -> None:
    page.page.context.set_offline(True)
    page.page.goto(saved.as_uri())
    words = page.page.locator(".vlt .words button")
    assert words.all_inner_texts() == ["I", "hear", "a", "bell", "."]
    words.nth(0).click()
    seen, heard = pixels(page, ".strip canvas"), pixels(page, ".spectrogram canvas")
    words.nth(3).click()
    assert words.nth(3).get_attribute("aria-pressed") == "true"
    assert pixels(page, ".strip canvas") != seen and pixels(page, ".spectrogram canvas") != heard
    assert "relevance for “bell”" in page.page.locator(".legend").inner_text()
    by_relevance = pixels(page, ".spectrogram canvas")
    page.page.get_by_label("method of explanation").select_option("saliency")
    assert pixels(page, ".spectrogram canvas") != by_relevance
    words.nth(3).press("ArrowLeft")  # the keyboard alone is enough
    page.page.keyboard.press("Enter")
    assert words.nth(2).get_attribute("aria-pressed") == "true"
    page.page.keyboard.press("ArrowLeft")  # it is still there
    page.page.keyboard.press("Enter")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    assert words.nth(4).is_disabled()  # a full stop has no heat
    assert [str(words.nth(4).get_attribute(name)).endswith("no heat of punctuation") for name in ("title", "aria-label")] == [
        True
    ] * 2
    assert "punctuation" not in str(words.nth(3).get_attribute("title"))
    page.page.get_by_label("frame 3 at 6 s").click()
    page.page.wait_for_function("document.querySelector('video').currentTime > 5.9")
    assert page.page.locator(".playhead").is_visible()
    assert "mute" in page.page.locator("table").first.inner_text()
    page.page.set_viewport_size({"width": 380, "height": 900})
    rows = (
        page.page.locator("table")
        .first.locator("tr")
        .evaluate_all("all => all.map((row) => row.getBoundingClientRect().height)")
    )
    assert max(rows) < 120  # words are not cut into letters
    assert (
        not page.page.get_by_text("blank('frames')").is_visible()
        and page.page.get_by_text("I hear nothing.").first.is_visible()
    )
    assert not page.wider_than(400) and not page.wider_than(1280)
    assert page.errors == [] and page.outside == []


def test_pictures_are_those_that_were_seen_and_heard(saved: Path, bell: Trace) -> None:
    shown = data_of(saved)["shown"]

    def decoded(uri: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), dtype=float)

    frames = denormalise(bell.stage("frames")[0]).numpy().astype(float)
    for i, frame in enumerate(shown["frames"]):
        off = [np.abs(decoded(frame["image"]) - other).mean() for other in frames]
        assert int(np.argmin(off)) == i and off[i] < 3 and frame["seconds"] == 2.0 * i
    heard = 255 - decoded(shown["sound"]["image"])  # loud is dark
    assert int(heard.reshape(128, 8, -1).mean((0, 2)).argmax()) == 1  # the bell is in the second segment
    loudest = int(bell["spectrograms"][1, 0].mean("time").values.argmax())
    assert abs(127 - int(heard.reshape(128, 8, -1)[:, 1].mean(1).argmax()) - loudest) <= 1  # low frequencies below
    hz = bell["spectrograms"]["hz"].values
    assert [float(np.interp(tick["place"] * 128 - 0.5, range(128), hz)) for tick in shown["sound"]["ticks"]] == pytest.approx(
        [500, 2000, 5000], rel=0.05
    )


AT = """(canvas, [x, y]) => {
    const at = [Math.floor(x * canvas.width), Math.floor(y * canvas.height)];
    return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
}"""


def test_heat_is_painted_where_it_is(saved: Path, tmp_path: Path, page: Page) -> None:
    """One patch of one frame, for; one cell of one segment, against."""
    frames, segments = np.zeros((8, 8, 8)), np.zeros((8, 8, 8))
    frames[2, 1, 6], segments[5, 0, 7] = 1.0, -1.0
    held = data_of(saved)
    heat = held["page"]["heats"]["3 relevance"] | {
        "frames": frames.tolist(),
        "segments": segments.tolist(),
        "signed": True,
        "little": [],
    }
    heat |= {"frame_bars": frames.sum((1, 2)).tolist(), "segment_bars": segments.sum((1, 2)).tolist()}
    held["page"]["heats"]["3 relevance"] = heat
    text = saved.read_text(encoding="utf-8")
    (tmp_path / "x.html").write_text(
        text.replace(re.findall(r'id="run">(.*?)</script>', text, re.DOTALL)[0], json.dumps(held).replace("<", "\\u003c"))
    )
    page.page.goto((tmp_path / "x.html").as_uri())
    page.page.locator(".words button", has_text="bell").click()
    page.page.get_by_label("frame 2 at 4 s").click()
    page.page.wait_for_function("document.querySelector('video').currentTime > 3.9")

    def lit(selector: str, x: float, y: float) -> int:
        """Red less blue."""
        red, _, blue, there = page.page.locator(selector).first.evaluate(AT, [x, y])
        return int(red) - int(blue) if there else 0

    for selector in (".cell:nth-child(3) button canvas", ".player canvas"):
        assert lit(selector, 6.5 / 8, 1.5 / 8) > 100
        for x, y in ((1.5, 1.5), (6.5, 6.5), (1.5, 6.5)):
            assert abs(lit(selector, x / 8, y / 8)) < 10
    assert abs(lit(".cell:nth-child(6) button canvas", 6.5 / 8, 1.5 / 8)) < 10
    at = (5 + 7.5 / 8) / 8
    assert lit(".spectrogram canvas", at, 0.5 / 8) < -40
    for x, y in ((1 - at, 0.5), (at, 7.5), ((5 + 0.5 / 8) / 8, 0.5)):
        assert abs(lit(".spectrogram canvas", x, y / 8)) < 10
    assert page.page.locator(".bar i.against").count() == 1
    assert page.page.locator(".segments .cell:nth-child(6) .bar i.against").count() == 1
    left = page.page.locator(".playhead").evaluate("node => parseFloat(node.style.left)")
    assert left == pytest.approx(100 * 4 / 16, abs=1)
    assert page.errors == []


def test_heat_that_can_be_compared_is_drawn_on_one_scale(bell: Trace, tmp_path: Path, page: Page) -> None:
    """What was seen brings next to nothing to *bell*: next to nothing is what its frames show, in bars and in colours."""
    bell.save_html(tmp_path / "x.html", methods=["integrated_gradients", "saliency"], sweep=False, progress=False)
    page.page.goto((tmp_path / "x.html").as_uri())
    page.page.locator(".words button", has_text="bell").click()

    def tallest() -> tuple[float, float]:
        """Of the bars of frames and of segments, in hundredths of the room that they have."""
        bars = [float(bar.evaluate("bar => parseFloat(bar.style.height)")) for bar in page.page.locator(".bar i").all()]
        assert len(bars) == 8 + 8
        return max(bars[:8]), max(bars[8:])

    def painted() -> float:
        """By how much the first frame differs from the picture that was seen, at most, of 255."""
        look = """async (canvas, source) => {
            const image = new Image(), own = document.createElement("canvas");
            image.src = source;
            await image.decode();
            own.width = own.height = 160;
            own.getContext("2d").imageSmoothingEnabled = false;
            own.getContext("2d").drawImage(image, 0, 0, 160, 160);
            const [a, b] = [canvas, own].map((each) => each.getContext("2d").getImageData(0, 0, 160, 160).data);
            return a.reduce((most, value, i) => Math.max(most, Math.abs(value - b[i])), 0);
        }"""
        source = data_of(tmp_path / "x.html")["shown"]["frames"][0]["image"]
        return float(page.page.locator(".strip canvas").first.evaluate(look, source))

    assert "drawn on one scale" in page.page.locator(".legend").inner_text()
    frames, segments = tallest()
    assert frames < 5 < 90 < segments and painted() < 10  # in its own colours
    page.page.get_by_label("method of explanation").select_option("saliency")
    assert "these cannot be compared" in page.page.locator(".legend").inner_text()
    assert min(tallest()) > 90 and painted() > 60
    assert page.errors == []


def test_what_a_page_saves(saved: Path, page: Page) -> None:
    page.page.goto(saved.as_uri())
    page.page.locator(".words button", has_text="bell").click()
    with page.page.expect_download() as got:
        page.page.get_by_role("button", name="Save as JSON").click()
    state = json.loads(Path(got.value.path()).read_text())
    assert state["clip"] == "two_bell.mp4" and state["heat"]["word"] == "bell"
    with page.page.expect_download() as got:
        page.page.get_by_role("button", name="Save as PNG").click()
    assert Path(got.value.path()).read_bytes().startswith(b"\x89PNG")
    assert page.errors == []


def test_strangers_text_in_a_browser(boxed: VideoLlama, tmp_path: Path, page: Page) -> None:
    run = trace(boxed, vlt.Clip(CLIPS / "silent.mp4"), EVIL, branches=["video"], answer=EVIL)
    run.save_html(tmp_path / "x.html", methods=["relevance"], sweep=False, progress=False)
    page.page.goto((tmp_path / "x.html").as_uri())
    page.page.locator(".words button:enabled").first.click()
    assert page.page.title() != "got" and page.page.locator("main img, main script").count() == 0
    assert page.page.get_by_label("question").inner_text() == " ".join(EVIL.split())
    assert page.errors == []
