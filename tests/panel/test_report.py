"""A run as one file: what it holds is the run's, it is small, and it opens offline; text from strangers stays text."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import vlt
from vlt.cli import app
from vlt.errors import VltError
from vlt.model.video_llama import VideoLlama
from vlt.panel import report
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
    page.page.get_by_label("frame 3 at 6 s").click()
    page.page.wait_for_function("document.querySelector('video').currentTime > 5.9")
    assert page.page.locator(".playhead").is_visible()
    assert "mute" in page.page.locator("table").first.inner_text()
    assert not page.wider_than(400) and not page.wider_than(1280)
    assert page.errors == [] and page.outside == []


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

    def colour() -> float:
        """The greatest difference of red and blue in the first frame: 0 where all is grey."""
        look = "canvas => { const all = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;"
        look += " let most = 0; for (let i = 0; i < all.length; i += 4) most = Math.max(most, Math.abs(all[i] - all[i + 2]));"
        return float(page.page.locator(".strip canvas").first.evaluate(look + " return most; }"))

    assert "drawn on one scale" in page.page.locator(".legend").inner_text()
    frames, segments = tallest()
    assert frames < 5 < 90 < segments and colour() < 40
    page.page.get_by_label("method of explanation").select_option("saliency")
    assert "these cannot be compared" in page.page.locator(".legend").inner_text()
    assert min(tallest()) > 90 and colour() > 60
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
    page.page.locator(".words button").first.click()
    assert page.page.title() != "got" and page.page.locator("main img, main script").count() == 0
    assert page.page.get_by_label("question").input_value() == EVIL
    assert page.errors == []
