"""Every page for everyone: no serious fault that axe-core knows, in both themes, enlarged, on paper; and its cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import viewing
from browsing import Visit, needs_chromium
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
    "/lines/talk?lines=3-5",
    "/fork?run=forked-a",
    "/runs",
    "/runs?q=type:run since:2025-01-01",
    "/runs?q=tokens:1:2",
    "/threads",
    "/threads/a%20talk",
    "/steps",
    "/dashboard?span=90d",
    "/compare?run=talk&run=states",
    "/review/runs",
    "/runs/talk?review=feedback&labels=wrong%20tool",
    "/login",
    "/runs/no-such",
)


def thread() -> Iterator[dict[str, Any]]:
    """Return a thread of a question, the work on it and an answer that was judged, all of it recent."""
    score = {"id": "a-score", "name": "tone", "value": 0.9, "comment": "warm"}
    turns = (("q", "user_message", {}), ("r", "run", {}), ("a", "assistant_message", {"scores": [score]}))
    for at, (id, type, more) in enumerate(turns):
        record = viewing.a_step(f"told-{id}", type, at, at + 1, None, root="told-r", trace="told", name=type, **more)
        now = time.time_ns() - 60 * viewing.SECOND + at
        recent = {"start_ns": now, "end_ns": now + 1, "thread_id": "a talk", "output": {"content": "**hello** there"}}
        yield {**record, **recent, "user": "ada", "tags": ["vip"], "environment": "prod"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("cared") / "home") as server:
        viewing.add(server.store, *viewing.talk(), *states(), *viewing.text_set(), *viewing.images())
        viewing.add(server.store, *viewing.forked())
        server.store.add([json.dumps(record).encode() for record in thread()])
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
        visit.problems.clear() if "no-such" in address or "1:2" in address else None


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
        visit.problems.clear()  # two of them are errors, which the console tells


def test_a_window_enlarged_to_200_percent_still_shows_all_of_a_page(browser: Browser, server: AppServer) -> None:
    options = {"viewport": {"width": 640, "height": 450}, "device_scale_factor": 2}  # 1280 x 900 at 200 %
    with Visit(browser, server, **options) as visit:
        for address in PAGES:
            visit.page.goto(address)
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= 640, address
        visit.problems.clear()


def test_nothing_moves_for_who_wants_less_motion(browser: Browser, server: AppServer) -> None:
    moving = """[...document.querySelectorAll('*')].filter(each => {
        const style = getComputedStyle(each);
        const moves = style.transitionDuration.split(', ').some(time => parseFloat(time) > 0);
        return moves || style.animationName !== 'none' || style.scrollBehavior === 'smooth';
    }).length"""
    with Visit(browser, server, reduced_motion="reduce") as visit:
        for address in PAGES:
            visit.page.goto(address)
            assert visit.page.evaluate(moving) == 0, address
        visit.problems.clear()


@pytest.mark.parametrize(
    ("address", "texts"),
    [
        ("/runs/talk", ("what is the weather?", "it is fine", "think")),
        ("/threads/a%20talk", ("hello there", "tone 0.9", "warm")),
    ],
)
def test_on_paper_there_is_what_was_said_and_nothing_to_click(
    browser: Browser, server: AppServer, address: str, texts: tuple[str, ...]
) -> None:
    with Visit(browser, server, color_scheme="dark") as visit:
        visit.page.goto(address)
        visit.page.emulate_media(media="print")
        for gone in (".bar", ".tabs", ".find", ".levels", ".actions", ".judge", ".legend", ".pager"):
            for each in visit.page.locator(gone).all():
                assert not each.is_visible(), gone
        shown = visit.page.locator("main").inner_text()
        for text in texts:
            assert text in shown
        assert visit.page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(255, 255, 255)"
        assert visit.page.evaluate("getComputedStyle(document.querySelector('h1')).color") == "rgb(29, 27, 24)"
