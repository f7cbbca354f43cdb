"""Times of day on the pages: in one zone, which is named, whatever zones server and browser are in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import viewing
from browsing import Visit, needs_chromium
from playwright.sync_api import Browser, expect
from served import AppServer

BLOCKED = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } });"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("times") / "home") as server:
        viewing.add(server.store, viewing.a_run(), viewing.a_step("late", "tool", 2.5, 3.25))
        yield server


@needs_chromium
@pytest.mark.parametrize("blocked", [False, True])
def test_times_are_in_utc_in_the_zone_of_the_browser_or_from_the_start(
    server: AppServer, browser: Browser, *, blocked: bool
) -> None:
    with Visit(browser, server, timezone_id="America/New_York") as visit:
        page = visit.page
        if blocked:
            page.add_init_script(BLOCKED)
        page.goto("/runs/run?step=late")
        head, exact = page.locator(".run-head time"), page.locator("#panel .ids time").first
        choice = page.get_by_label("Times are")
        assert (head.text_content(), exact.text_content()) == ("Oct 9, 08:53", "2025-10-09T08:53:22.500000+00:00")
        assert page.locator(".zone option").all_text_contents() == ["UTC", "America/New_York", "from the run's start"]
        choice.select_option("local")
        assert (head.text_content(), exact.text_content()) == ("Oct 9, 04:53", "2025-10-09T04:53:22.500000-04:00")
        assert head.get_attribute("datetime") == "2025-10-09T08:53:20.000000+00:00"
        choice.select_option("start")
        assert (head.text_content(), exact.text_content()) == ("Oct 9, 08:53", "+2.500 s")
        page.locator("#s-run > .link").click()
        expect(page.locator("#panel .ids time").first).to_have_text("+0.000 s", timeout=20_000)
        choice.select_option("local")
        page.goto("/runs")
        here = page.locator("td time").first
        assert here.text_content() == ("Oct 9, 08:53" if blocked else "Oct 9, 04:53")
        choice.select_option("utc")
        assert here.text_content() == "Oct 9, 08:53"
        page.set_viewport_size({"width": 390, "height": 700})
        page.goto("/runs/run")
        assert page.locator(".zone option").all_text_contents()[::2] == ["UTC", "start"]
        assert page.evaluate("document.querySelector('.bar').scrollWidth") == 390
        box = choice.bounding_box()
        assert box is not None
        assert 300 < box["x"] < box["x"] + box["width"] <= 390


@needs_chromium
def test_without_scripts_the_zone_is_named(server: AppServer, browser: Browser) -> None:
    with Visit(browser, server, timezone_id="Asia/Tokyo", java_script_enabled=False) as visit:
        for path in ("/runs", "/runs/run", "/threads", "/dashboard"):
            visit.page.goto(path)
            assert visit.page.locator(".zone").text_content() == "Times are UTC"
            for time in visit.page.locator("time").all():
                assert (time.get_attribute("datetime") or "").endswith("+00:00")
