"""The run page behind a path that a proxy adds: every link, and all that a script asks for, stays behind it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import viewing
from browsing import Visit, a_browser, needs_chromium
from playwright.sync_api import expect
from served import AppServer


@pytest.fixture
def prefixed(tmp_path: Path) -> Iterator[Any]:
    """Serve an application that has ours below `/tools/steps`."""
    with AppServer(tmp_path / "home", below="/tools/steps") as server:
        viewing.add(server.store, *viewing.talk())
        yield server


@needs_chromium
def test_every_link_and_request_stays_behind_the_prefix(prefixed: AppServer) -> None:
    text = prefixed.client.get("/tools/steps/runs/talk?step=talk-llm-08").text
    addresses = re.findall(r'(?:href|src|action|data-live|data-panel)="([^"]*)"', text)
    assert len(addresses) > 60
    assert [each for each in addresses if not each.startswith(("/tools/steps/", "#"))] == []
    with a_browser() as browser, Visit(browser, prefixed) as visit:
        visit.page.goto("/tools/steps/runs/talk")
        visit.page.locator("#s-talk-llm-08 .link").click()
        expect(visit.page.locator("#panel .messages .fold")).to_have_text("14 messages as in call 7")
        visit.page.locator("#panel .messages .fold").click()
        expect(visit.page.locator("#panel .messages article")).to_have_count(16)
        assert visit.page.url.endswith("/tools/steps/runs/talk?step=talk-llm-08")
