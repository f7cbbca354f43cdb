"""The run page for everyone: no serious fault that axe-core knows, in both themes; and what opening it costs."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import viewing
from browsing import Visit, a_browser, needs_chromium
from playwright.sync_api import Browser
from served import AppServer
from test_pages_run import states, wait_for

pytestmark = needs_chromium
AXE = find_spec("axe_core_python")
PAGES = (
    "/runs/talk",
    "/runs/talk?view=tree&step=talk-llm-last",
    "/runs/states?view=timeline&step=bad",
    "/runs/text?step=text-llm&q=look",
    "/steps/images-llm",
    "/findings/talk",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("cared") / "home") as server:
        viewing.add(server.store, *viewing.talk(), *states(), *viewing.text_set(), *viewing.images())
        yield server


@pytest.mark.skipif(AXE is None, reason="axe-core-python is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("address", PAGES)
def test_axe_finds_nothing_serious(browser: Browser, server: AppServer, address: str, scheme: str) -> None:
    assert AXE is not None
    assert AXE.origin is not None
    source = (Path(AXE.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    with Visit(browser, server, color_scheme=scheme) as visit:
        visit.page.goto(address)
        visit.page.evaluate(source)
        found = visit.page.evaluate("axe.run().then(told => told.violations)")
        serious = [each for each in found if each["impact"] in {"serious", "critical"}]
        assert [(each["id"], [node["html"][:120] for node in each["nodes"][:3]]) for each in serious] == []


def test_a_run_is_painted_soon_with_few_requests(browser: Browser, server: AppServer) -> None:
    server.client.get("/runs/talk")  # templates are compiled once a process
    with Visit(browser, server) as visit:
        visit.page.goto("/runs/talk")
        paints = "performance.getEntriesByName('first-contentful-paint').map(each => each.startTime)"
        wait_for(lambda: bool(visit.page.evaluate(paints)))  # playwright's own waiting would need eval
        (painted,) = visit.page.evaluate(paints)
        assert painted < 5_000  # 0.1 to 0.2 s on an idle machine
        assert len(visit.requests) <= 6


@pytest.mark.parametrize("media", ["screen", "print"])
def test_no_page_is_wider_than_a_phone(browser: Browser, server: AppServer, media: str) -> None:
    with Visit(browser, server, viewport={"width": 390, "height": 844}) as visit:
        visit.page.emulate_media(media="print" if media == "print" else "screen")
        for address in PAGES:
            visit.page.goto(address)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 390, address
