"""A real headless Chromium for the tests that look at pages."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page

Open = Callable[[Path], "Page"]
"""Opens a file as a page that has loaded."""

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's browser. Skips the test, and says how to install it, where there is none."""
    path = next((found for name in NAMES if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no browser on the PATH ({', '.join(NAMES)}); on Debian: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # A process for each page would cost seconds of CPU time.
        browser = playwright.chromium.launch(executable_path=path, args=["--process-per-site"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def watched_pages() -> Iterator[Open]:
    """Pages whose scripts, requests and errors are watched: an assertion fails at the end for any that must not be."""
    wrong: list[str] = []

    def closed(dialog: Dialog) -> None:
        wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def is_file(url: str) -> bool:
        return url.startswith("file:///") and url.split("#")[0].endswith(".html")

    with chromium() as browser:
        context = browser.new_context(viewport={"width": 1280, "height": 900})

        def opened(path: Path) -> Page:
            page = context.new_page()
            page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
            page.on("console", lambda message: wrong.append(f"console: {message.text}"))
            page.on("dialog", closed)
            page.on(
                "request", lambda request: None if is_file(request.url) else wrong.append(f"request: {request.url}")
            )
            page.goto(path.as_uri())
            page.wait_for_selector("body[data-ready=yes]", state="attached")
            return page

        yield opened
    assert wrong == []
