"""A browser, where there is one, that tells what went wrong in it and what it asked for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CLIPS = Path(__file__).parents[2] / "data" / "clips"
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Page:
    """page: Playwright's. errors: of the console and of scripts. outside: requests that left the machine."""

    def __init__(self, page: Any) -> None:
        self.page, self.errors, self.outside = page, [], []
        page.on("console", lambda said: self.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self._check(request.url))
        page.set_default_timeout(60_000)

    def _check(self, url: str) -> None:
        here = ("file:", "data:", "blob:", "http://127.0.0.1:", "ws://127.0.0.1:", "about:", "chrome-extension:")
        if not url.startswith(here):
            self.outside.append(url)

    def wider_than(self, width: int) -> bool:
        """Is something wider than a window of this width?"""
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.wait_for_timeout(200)
        return bool(self.page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"))


@pytest.fixture
def page(chromium: Any) -> Iterator[Page]:
    context = chromium.new_context(viewport={"width": 1280, "height": 1600}, accept_downloads=True)
    yield Page(context.new_page())
    context.close()
