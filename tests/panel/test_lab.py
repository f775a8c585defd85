"""A real JupyterLab in a real browser: a notebook is opened and run, its slider moved; in the panel a word is clicked and the
sound switched off, by mouse and by keyboard."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

from tests.panel.conftest import CLIPS, Page

NOTEBOOKS = CLIPS.parents[1] / "notebooks"
TOKEN = "of-this-test"
SETTINGS = {  # no question about news, and cells that are out of sight stay in the page
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="module")
def lab(chromium: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """JupyterLab's address. It serves copies, and touches no settings but its own."""
    root, home = tmp_path_factory.mktemp("lab"), tmp_path_factory.mktemp("home")
    (root / "notebooks").mkdir()
    (root / "data").symlink_to(CLIPS.parent)
    shutil.copy(NOTEBOOKS / "02_the_eye.ipynb", root / "notebooks")
    _to_the_panel(NOTEBOOKS / "10_your_own.ipynb", root / "notebooks" / "10_your_own.ipynb")
    settings = home / "config" / "labconfig" / "default_setting_overrides.json"
    settings.parent.mkdir(parents=True)
    settings.write_text(json.dumps(SETTINGS))
    places = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    places |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    environment = os.environ | {name: str(home / folder) for name, folder in places.items()} | {"OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0"]
    options += [f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={root}"]
    with (home / "log").open("w") as log:
        server = subprocess.Popen([sys.executable, "-m", "jupyterlab", *options], env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 180
        while time.monotonic() < end:
            try:
                urllib.request.urlopen(f"{address}/api?token={TOKEN}", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.1)
        else:
            pytest.fail(f"JupyterLab does not answer: {(home / 'log').read_text()}")
        yield address
    finally:
        server.terminate()
        try:
            server.wait(timeout=30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _to_the_panel(source: Path, copy: Path) -> None:
    """The notebook up to its panel; what follows calls by code what is clicked here."""
    notebook = nbformat.read(source, as_version=4)
    last = next(i for i, cell in enumerate(notebook.cells) if "vlt.Probe(" in cell.source)
    notebook.cells = notebook.cells[: last + 1]
    nbformat.write(notebook, copy)


def opened(page: Page, lab: str, name: str) -> None:
    """Opens a notebook, runs all its cells, and waits for the last."""
    at = page.page
    at.goto(f"{lab}/lab/tree/notebooks/{name}?token={TOKEN}&reset")
    at.locator("#jupyterlab-splash").wait_for(state="detached")
    at.locator(".jp-NotebookPanel .jp-Spinner").wait_for(state="detached")
    at.locator("#jp-main-statusbar", has_text="Idle").wait_for()  # before that "run" is lost
    at.get_by_role("menuitem", name="Run", exact=True).click()
    at.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    cells = at.locator(".jp-CodeCell").count()
    at.locator(f".jp-InputPrompt:text-is('[{cells}]:')").wait_for(timeout=180_000)
    assert at.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_a_lesson_and_its_slider(lab: str, page: Page) -> None:
    opened(page, lab, "02_the_eye.ipynb")
    pictures = page.page.locator(".widget-output img")
    pictures.first.wait_for()
    before = pictures.first.get_attribute("src")
    handle = page.page.locator(".widget-slider .noUi-handle").first
    handle.focus()
    handle.press("ArrowRight")
    other = "old => { const img = document.querySelector('.widget-output img'); return img && img.src !== old; }"
    page.page.wait_for_function(other, arg=_whole(page, before))
    page.page.wait_for_function("document.querySelectorAll('.widget-output img').length === 1")
    assert not page.errors and not page.outside


def _whole(page: Page, source: str | None) -> str:
    return str(page.page.evaluate("source => new URL(source, location).href", source))


PAINTED = """() => {
    const canvas = document.querySelector(".vlt .spectrogram canvas");
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return pixels.some((value) => value !== pixels[0] && value !== 255);
}"""


def test_the_panel(lab: str, page: Page) -> None:
    opened(page, lab, "10_your_own.ipynb")
    panel = page.page.locator(".vlt")
    words = panel.locator(".answer .words button")
    words.first.wait_for()
    said = "".join(words.all_inner_texts())
    assert "bell" in said
    heat = panel.locator(".spectrogram canvas")
    page.page.wait_for_function(PAINTED)
    before = heat.evaluate("canvas => canvas.toDataURL()")

    panel.get_by_label("method of explanation").select_option("saliency")
    words.filter(has_text="bell").click()
    panel.locator(".legend", has_text="saliency for “bell”").wait_for()
    bell = heat.evaluate("canvas => canvas.toDataURL()")
    assert bell != before
    words.filter(has_text="white").press("Enter")  # by keyboard
    panel.locator(".legend", has_text="saliency for “white”").wait_for()
    assert heat.evaluate("canvas => canvas.toDataURL()") != bell

    panel.get_by_role("group", name="switches").get_by_label("sound").press("Space")
    panel.locator(".edited .words button").first.wait_for()
    without = "".join(panel.locator(".edited .words button").all_inner_texts())
    assert "bell" not in without and "silent" in without and "bell" in "".join(words.all_inner_texts())
    assert "(change −" in panel.locator(".change").inner_text()  # the first answer has become less likely

    panel.get_by_role("group", name="switches").get_by_label("video").press("Space")
    panel.get_by_text("nothing is seen or heard, so this is a guess from the words").wait_for()
    assert "off: video, sound" in panel.inner_text()
    assert page.page.evaluate("document.activeElement.name") == "video"  # what comes takes no focus
    for name in ("video", "sound"):
        panel.get_by_role("group", name="switches").get_by_label(name).press("Space")
    page.page.wait_for_function("[...document.querySelectorAll('.vlt .cell input')].every((tick) => !tick.disabled)")
    panel.locator(".edited").wait_for(state="detached")
    panel.get_by_label("segment 1 is heard").click()
    panel.locator(".edited .words button", has_text="silent").wait_for()
    panel.get_by_label("frame 3 is seen").click()
    panel.get_by_text("off: what is seen at 6 s, the sound of 2–4 s").wait_for()
    assert not page.errors and not page.outside

    # what runs long can be cancelled, and leaves the panel as it was
    page.page.evaluate("""() => {  // once there is progress, which nothing here may be too slow to see
        const progress = document.querySelector(".vlt progress"), cancel = document.querySelector(".vlt .work button");
        const observer = new MutationObserver(() => { if (progress.value > 0) observer.disconnect(), cancel.click(); });
        observer.observe(progress, { attributes: true });
    }""")
    panel.get_by_label("method of explanation").select_option("kernel_shap")  # of the word that was clicked last
    panel.get_by_role("alert").filter(has_text="stopped").wait_for()
    panel.get_by_role("button", name="Cancel").wait_for(state="hidden")

    # another question
    panel.get_by_label("question", exact=True).fill("What colour is the square?")
    panel.get_by_role("button", name="Ask").click()
    page.page.wait_for_function("document.querySelectorAll('.vlt .answer .words button').length === 5")
    assert words.all_inner_texts() == ["The", "square", "is", "white", "."]

    # another clip: one that is silent, by its path; and one from this computer
    panel.get_by_label("path of another clip").fill(str(CLIPS / "silent.mp4"))
    panel.get_by_role("button", name="Open").click()
    panel.locator(".name", has_text="silent.mp4").wait_for()
    assert panel.locator(".spectrogram").count() == 0
    panel.get_by_label("frame 5 at 10 s").click()
    panel.get_by_label("another clip from this computer").set_input_files(CLIPS / "hum.mp4")
    panel.locator(".name", has_text="hum.mp4").wait_for()
    panel.get_by_label("question", exact=True).fill("What do you hear?")
    panel.get_by_label("question", exact=True).press("Enter")
    words.filter(has_text="hum").wait_for()
    panel.get_by_label("question", exact=True).fill(" ")
    panel.get_by_role("button", name="Ask").click()
    panel.get_by_role("alert").filter(has_text="the question is empty").wait_for()
    assert not page.errors and not page.outside
