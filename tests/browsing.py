"""A real browser for tests: Debian's chromium, driven by playwright, against a server on a real socket."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from served import AppServer

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox",  # the suite may run as root
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
)
AIRLINE = Path(__file__).resolve().parents[2] / "shared" / "data" / "airline_agent.jsonl"

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


@contextmanager
def a_browser() -> Iterator[Browser]:
    """Start chromium; it ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


class Visit:
    """A page of a server in a fresh profile, and all that went wrong on it: errors, refusals, foreign requests."""

    def __init__(self, browser: Browser, server: AppServer, **options: Any) -> None:
        self._context = browser.new_context(
            base_url=server.url, **{"viewport": {"width": 1400, "height": 900}, **options}
        )
        self.page: Page = self._context.new_page()
        self.problems: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.problems.append(f"script: {error}"))
        self.page.on("request", lambda request: self._look(server.url, request.url))
        self.page.on("response", lambda answer: self._look_at_answer(answer.status, answer.url))

    def _note(self, kind: str, text: str) -> None:
        if kind in {"error", "warning"}:
            self.problems.append(f"console {kind}: {text}")

    def _look(self, own: str, url: str) -> None:
        self.requests.append(url)
        if not url.startswith((own, "data:", "blob:")):
            self.problems.append(f"foreign request: {url}")

    def _look_at_answer(self, status: int, url: str) -> None:
        if status >= 500:
            self.problems.append(f"{status} of {url}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()
        assert self.problems == []
