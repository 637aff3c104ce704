"""A real browser for the tests of the pages: the Chromium of this system, with the network cut off."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE = (1280, 900), (390, 844)


def chromium() -> str:
    """The path of a Chromium. Without one the test is skipped, or fails where HAWQ_REQUIRE_BROWSER is set."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    missing = "" if found else "no Chromium is installed (Debian: apt-get install chromium)"
    if not all(find_spec(name) for name in ("playwright", "axe_playwright_python")):
        missing = 'no Playwright is installed: pip install ".[browser]"'
    if missing:
        assert not os.environ.get("HAWQ_REQUIRE_BROWSER"), missing
        pytest.skip(missing)
    return str(found)


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium without a window."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container root has no user namespaces, and /dev/shm is small.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield opened
        opened.close()


class Opened:
    """A page from disk in a browser of its own, and whatever it complained of."""

    def __init__(self, context: Any, path: Path) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda one: self.complaints.append(one.text) if one.type in ("error", "warning") else 0)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda one: self.requests.append(one.url))
        self._session = context.new_cdp_session(self.page)
        self._session.send("Performance.enable")
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_selector("body[data-ready]", timeout=60_000)

    def cpu_seconds(self) -> float:
        """Seconds of a core that the page's process has taken so far, whatever else the machine does."""
        metrics = self._session.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "ProcessTime"))


@contextmanager
def opened(
    chromium: Any, path: Path, size: tuple[int, int] = DESKTOP, scheme: str = "light", **options: Any
) -> Iterator[Opened]:
    """A page opened from disk, offline, at a window size and colour scheme."""
    width, height = size
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme=scheme,
        offline=True,
        reduced_motion="reduce",
        **options,
    )
    try:
        yield Opened(context, path)
    finally:
        context.close()


def axe_violations(page: Any) -> list[str]:
    """What axe-core finds wrong by WCAG 2.1 A and AA, contrast among it: rule, and where."""
    from axe_playwright_python.sync_playwright import Axe

    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]}}
    response = Axe().run(page, options=rules).response
    return [f"{one['id']}: {one['nodes'][0]['html'][:120]}" for one in response["violations"]]
