"""The strip over a list: what it counts, where its bars lead, and how a pointer, keys and a phone take a part of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browsing import Visit, needs_chromium
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, expect
from served import AppServer
from viewing import add

from stepwell.server.pages._plots import MAX_BARS, Scale, scale_of

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
MONDAY_NS = 1_759_708_800_000_000_000  # 2025-10-06
BAR = re.compile(r'<a href="([^"]*)" aria-label="([^"]*)" data-n="(\d+)">')


def a_run(number: int, **fields: Any) -> Iterator[dict[str, Any]]:
    """Return the run of an hour, with a tool in it; every tenth has failed, and every 80th is of ada."""
    id, at = f"run-{number}", MONDAY_NS + number * HOUR_NS
    place = {"kind": "step", "trace_id": id, "root_run_id": id, "thread_id": f"thread-{number // 100}"}
    more = {"tags": ["vip"], "user": "ada"} if number % 80 == 0 else {"user": "bob"}
    ended = {"start_ns": at, "end_ns": at + 1, "status": "success" if number % 10 else "failed"}
    yield {**place, "id": id, "type": "run", "name": "agent", **ended, **more, **fields}
    yield {
        **place,
        "id": f"{id}-tool",
        "parent_id": id,
        "type": "tool",
        "name": "look",
        "start_ns": at,
        "end_ns": at + 1,
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("strips") / "home") as server:
        add(server.store, *(record for number in range(1_200) for record in a_run(number)))
        yield server


def strip(server: AppServer, address: str) -> tuple[str, list[tuple[str, str, int]]]:
    """Return what a page's strip says of itself, and the addresses, words and numbers of its bars."""
    answer = server.client.get(address)
    assert answer.status_code == 200
    said = re.findall(r'<svg class="plot" role="group" aria-label="([^"]*)"', answer.text)
    bars = [(unescape(href), says, int(n)) for href, says, n in BAR.findall(answer.text)]
    return (said or [""])[0], bars


def query_of(href: str) -> str:
    return parse_qs(urlsplit(href).query).get("q", [""])[0]


def test_a_strip_counts_all_runs_whether_or_not_they_were_counted_before(server: AppServer) -> None:
    for _ in range(2):
        said, bars = strip(server, "/runs")
        assert said == "Runs over time: 1,200 runs, 120 failed; a bar is 1 day, UTC"
        assert bars[0] == ("/runs?q=since%3A2025-10-06+until%3A2025-10-07", "2025-10-06: 24 runs, 3 failed", 24)
        assert [n for _, _, n in bars] == [24] * 50
        said, bars = strip(server, "/steps?q=type:tool&order=asc")
        assert said == "Steps over time: 1,200 steps; a bar is 1 day, UTC"
        assert bars[-1][0] == "/steps?order=asc&q=type%3Atool+since%3A2025-11-24+until%3A2025-11-25"
        server.store.catch_up(60)


@pytest.mark.parametrize(
    ("address", "said", "first"),
    [
        (
            "/steps?q=tag:vip",
            "Steps over time: 15 steps, 15 failed; a bar is 1 day, UTC",
            "2025-10-06: 1 step, 1 failed",
        ),
        ("/steps?q=user:bob", "latest 1,000 steps, 89 failed; a bar is 1 day, UTC", "2025-10-13: 4 steps, 1 f"),
        (
            "/runs?q=status:failed",
            "Runs over time: 120 runs, 120 failed; a bar is 1 day",
            "2025-10-06: 3 runs, 3 failed",
        ),
        (
            "/threads",
            "Threads over time: 12 threads, 12 with failures; a bar is 1 day",
            "2025-10-10: 1 thread, 1 with fa",
        ),
        ("/steps?q=since:2025-10-20T00:30", "UTC; from 2025-10-20 01:00", "2025-10-20: 46 steps, 2 failed"),
        ("/runs?q=since:2025-10-08 until:2025-10-09", "24 runs, 3 failed; a bar is 30 min", "2025-10-08 00:00: 1 run"),
    ],
)
def test_a_strip_says_what_it_counts(server: AppServer, address: str, said: str, first: str) -> None:
    about, bars = strip(server, address)
    assert said in about
    assert bars[0][1].startswith(first)


def test_a_bar_leads_to_as_many_rows_as_it_says_and_stays_within_the_bounds(server: AppServer) -> None:
    _, bars = strip(server, "/runs?q=name:agent+since:2025-10-06T18:00+until:2025-10-09T03:30")
    assert [query_of(href) for href, _, _ in (bars[0], bars[-1])] == [
        "name:agent since:2025-10-06T18:00:00Z until:2025-10-06T19:00:00Z",
        "name:agent since:2025-10-09T03:00:00Z until:2025-10-09T03:30:00Z",
    ]
    for href, _, n in (bars[0], bars[20], bars[-1]):
        assert server.client.get(href).text.count("<tr data-id=") == n == 1


def test_a_narrowed_list_leads_to_more_time_and_to_all(server: AppServer) -> None:
    text = server.client.get("/runs?q=name:agent+since:2025-10-10+until:2025-10-11&messages=true").text
    links = [unescape(href) for href in re.findall(r'<a href="([^"]*)">(?:wider|all time)</a>', text)]
    assert [query_of(href) for href in links] == ["name:agent since:2025-10-09 until:2025-10-12", "name:agent"]
    assert all("messages=true" in href for href in links)
    assert "all time" not in server.client.get("/runs?q=name:agent").text


def test_there_is_no_strip_where_it_would_tell_nothing(server: AppServer, tmp_path: Path) -> None:
    for address in ("/runs?q=name:nobody", "/runs?q=id:run-1", "/runs?q=tokens:1:2"):
        assert 'class="strip"' not in server.client.get(address).text
    with AppServer(tmp_path / "home") as other:
        add(other.store, *({"kind": "step", "id": f"s-{n}", "type": "tool"} for n in range(3)))
        assert 'class="strip"' not in other.client.get("/steps").text
        add(other.store, *({"kind": "step", "id": f"t-{n}", "type": "tool", "start_ns": n * HOUR_NS} for n in range(3)))
        assert strip(other, "/steps")[0] == "Steps over time: 3 steps; a bar is 5 minutes, UTC; 3 without a time"


def test_any_time_is_drawn_and_leads_to_its_rows(tmp_path: Path) -> None:
    times = (0, 1, 1_700_000_000_000_000_000, (1 << 63) - 1)
    with AppServer(tmp_path / "home") as server:
        add(server.store, *({"kind": "step", "id": f"s-{ns}", "type": "run", "start_ns": ns} for ns in times))
        said, bars = strip(server, "/runs")
        assert (said, [n for _, _, n in bars]) == ("Runs over time: 4 runs; a bar is 520 weeks, UTC", [2, 1, 1])
        assert bars[0][1] == "1970-01-01: 2 runs"
        for href, _, n in bars[:2]:
            assert server.client.get(href).text.count("<tr data-id=") == n
        text = server.client.get("/runs?q=since:2200-01-01").text
        assert "1 run; a bar is" in text
        assert ('">wider</a>' in text, '">all time</a>' in text) == (False, True)


def test_a_strip_shows_where_the_rows_of_a_later_page_are(server: AppServer) -> None:
    text = server.client.get("/runs").text
    assert 'class="here"' not in text
    (older,) = re.findall(r'<a href="([^"]*)" rel="next"', text)
    text = server.client.get(unescape(older)).text
    assert '<rect class="here" x="91.67%" y="1" width="4.08%" height="2"/>' in text
    assert '<span class="strip-here">this page</span>' in text


def test_values_of_threads_narrow_their_list_and_are_not_left_out(server: AppServer) -> None:
    text = server.client.get("/threads").text
    assert 'class="not"' not in text
    assert 'class="not"' in server.client.get("/runs").text


@pytest.mark.parametrize(
    ("first", "last", "least", "scale", "ticks"),
    [
        (0, 0, 1, Scale(0, 1_000_000, 1), [(0.0, "Jan 1")]),
        (HOUR_NS, 2 * HOUR_NS, 1, Scale(HOUR_NS, 2 * 60 * 10**9, 31), [(0.0, "Jan 1, 01:00"), (16.13, "01:10")]),
        (
            MONDAY_NS,
            MONDAY_NS + 50 * DAY_NS - 1,
            DAY_NS,
            Scale(MONDAY_NS, DAY_NS, 50),
            [(0.0, "Oct 6"), (14.0, "Oct 13")],
        ),
        (MONDAY_NS + 1, MONDAY_NS + 400 * DAY_NS, 1, Scale(MONDAY_NS, 7 * DAY_NS, 58), [(5.17, "2025-10-27")]),
    ],
)
def test_a_scale_is_the_finest_that_has_not_too_many_bars(
    first: int, last: int, least: int, scale: Scale, ticks: list[tuple[float, str]]
) -> None:
    assert scale_of(first, last, least) == scale
    assert scale.ticks()[: len(ticks)] == ticks


TIMES = st.integers(0, (1 << 63) - 1) | st.integers(0, 10**13)


@given(TIMES, TIMES, st.sampled_from([1, HOUR_NS, DAY_NS]))
def test_every_scale_has_both_times_and_few_bars_and_labels(one: int, other: int, least: int) -> None:
    first, last = sorted((one, other))
    scale = scale_of(first, last, least)
    assert 0 == scale.at(first) <= scale.at(last) == scale.bars - 1 < MAX_BARS
    assert scale.step_ns >= least
    ticks = scale.ticks()
    assert len(ticks) <= 10
    assert all(0 <= x < 93 and label for x, label in ticks)
    assert [x for x, _ in ticks] == sorted({x for x, _ in ticks})


@needs_chromium
def test_a_pointer_and_keys_take_bars_and_the_page_goes_there(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs?q=name:agent")
        assert len(visit.requests) <= 6
        plot, says = page.locator(".strip .plot"), page.locator(".strip output")
        box = plot.bounding_box()
        assert box is not None
        height = page.evaluate("document.documentElement.scrollHeight")
        at = [box["x"] + box["width"] * (bar + 0.4) / 50 for bar in range(50)]
        middle = box["y"] + box["height"] / 2
        page.mouse.move(at[3], middle)
        expect(says).to_have_text("2025-10-09: 24 runs, 2 failed")
        page.mouse.down()
        page.mouse.move(at[8], middle)
        expect(says).to_have_text("2025-10-09 to 2025-10-14: 144 runs")
        page.keyboard.press("Escape")
        expect(says).to_have_text("")
        page.mouse.up()
        assert page.evaluate("document.documentElement.scrollHeight") == height
        page.mouse.move(at[8], middle)
        page.mouse.down()
        page.mouse.move(at[3], middle)
        with page.expect_navigation():
            page.mouse.up()
        narrowed = "name:agent since:2025-10-09 until:2025-10-15"
        assert query_of(page.url) == narrowed
        expect(page.locator("#q")).to_have_value(narrowed)
        expect(page.locator(".strip-sum b")).to_have_text("144 runs")
        page.go_back()
        page.locator(".strip .plot a").last.focus()
        for key, said in (
            ("ArrowLeft", "2025-11-23: 24 runs, 2 failed"),
            ("Shift+ArrowLeft", "2025-11-22 to 2025-11-23: 48 runs"),
            ("Escape", ""),
            ("Home", "2025-10-06: 24 runs, 3 failed"),
            ("Shift+ArrowRight", "2025-10-06 to 2025-10-07: 48 runs"),
        ):
            page.keyboard.press(key)
            expect(says).to_have_text(said)
        with page.expect_navigation():
            page.keyboard.press("Enter")
        assert query_of(page.url) == "name:agent since:2025-10-06 until:2025-10-08"
        with page.expect_navigation():
            page.locator(".strip .plot a").nth(1).click()
        assert query_of(page.url) == "name:agent since:2025-10-06T01:00:00Z until:2025-10-06T02:00:00Z"
        page.emulate_media(media="print")
        expect(page.locator(".strip")).to_be_hidden()


@needs_chromium
def test_on_a_phone_and_without_javascript_a_strip_fits_and_its_bars_are_links(
    browser: Browser, server: AppServer
) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "java_script_enabled": False}
    with Visit(browser, server, **phone) as visit:
        visit.page.goto("/steps?q=since:2025-10-20")
        box = visit.page.locator(".strip .plot").bounding_box()
        assert box is not None
        assert (box["x"] >= 0, box["x"] + box["width"] <= 390, box["height"]) == (True, True, 44)
        for link in visit.page.locator(".strip-links a").all():
            around = link.bounding_box()
            assert around is not None
            assert around["height"] >= 44
        with visit.page.expect_navigation():
            visit.page.locator(".strip .plot a").first.click()
        assert query_of(visit.page.url) == "since:2025-10-20 until:2025-10-21"


@needs_chromium
def test_what_comes_in_does_not_move_a_strip(browser: Browser, tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as busy, Visit(browser, busy) as visit:
        add(busy.store, *(record for number in range(30) for record in a_run(number)))
        visit.page.goto("/runs")
        before = visit.page.locator(".strip").inner_html()
        add(busy.store, *(record for number in range(30, 60) for record in a_run(number)))
        expect(visit.page.locator(".news a")).to_have_text("30 new: show")
        assert visit.page.locator(".strip").inner_html() == before
