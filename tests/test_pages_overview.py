"""The run at a glance above its rows: what it draws, the step of a moment, and what ran in a stretch of time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import unescape
from typing import Any

import pytest
import viewing
from browsing import Visit, needs_chromium
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, expect
from served import AppServer
from viewing import a_step

from stepwell.model import Status, StepType
from stepwell.server.pages._overview import overview_of
from stepwell.server.pages._rows import family_of
from stepwell.store import StepRow

SLOT = re.compile(r'<a href="([^"]*)" data-step="([^"]*)" data-from="([^"]*)" data-to="([^"]*)" aria-label="([^"]*)">')


def mixed() -> Iterator[dict[str, Any]]:
    """Return a run with a long model call, a tool that fails beside it, and one that is called by a message's name."""
    place = {"root": "mixed", "trace": "mixed"}
    yield viewing.a_run("mixed", 60.0, trace="mixed")
    said = viewing.a_call([{"role": "user", "content": "x"}], {"role": "assistant", "content": "y"})
    yield a_step("m-llm", "llm", 0, 40, "mixed", **place, name="think", generation=said)
    yield a_step("m-bad", "tool", 10.5, 10.6, "mixed", **place, name="look", status="failed")
    yield a_step("m-long", "tool", 50, 50.5, "mixed", **place, name="<i>" + "x" * 5_000)
    yield a_step("m-said", "user_message", 59, 59, "mixed", **place, name="user_message", output="bye")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("overviews") / "home") as server:
        viewing.add(server.store, *viewing.talk(), *mixed(), *viewing.ten_thousand(), *viewing.deep(5))
        yield server


def slots(server: AppServer, address: str) -> list[tuple[str, ...]]:
    """Return the parts of a run's time: their links, steps, edges in ms, and words."""
    return [tuple(map(unescape, found)) for found in SLOT.findall(server.client.get(address).text)]


def rows(server: AppServer, address: str) -> list[str]:
    return re.findall(r'id="s-([^"]*)"', server.client.get(address).text)


def test_a_moment_leads_to_the_step_that_ran_longest_in_it_or_failed(server: AppServer) -> None:
    first, *_ = found = slots(server, "/runs/talk?view=tree")
    assert first == (
        "/runs/talk?view=tree&step=talk-llm-01",
        "talk-llm-01",
        "5000.0",
        "6666.666667",
        "5.00 s: llm think",
    )
    assert len(found) == 25
    found = slots(server, "/runs/mixed")
    assert [(step, says) for _, step, _, _, says in found[9:12]] == [
        ("m-llm", "9.00 s: llm think"),
        ("m-bad", "10.00 s: tool look failed"),
        ("m-llm", "11.00 s: llm think"),
    ]
    assert [says for *_, says in found[-2:]] == ["50.00 s: tool <i>" + "x" * 57, "59.00 s: user_message"]
    assert len(found) == 43  # forty seconds of the call and the one in which it ended, and two more
    text = server.client.get("/runs/mixed").text
    assert 'aria-label="The run over time: 5 steps in 1 m 00 s, 1 failed"' in text
    assert '<rect fill="url(#hatch)" x="17.5%" y="23" width="0.42%" height="5"/>' in text


def test_an_overview_has_so_many_marks_at_most(server: AppServer) -> None:
    answer = server.client.get("/runs/b-run")
    assert len(answer.content) < 150_000
    (section,) = re.findall('<section class="overview".*?</section>', answer.text, re.DOTALL)
    assert len(SLOT.findall(section)) == 60
    assert section.count("<rect") < 200
    narrowed = server.client.get("/runs/b-run?view=tree&from=100000&to=210000")
    assert len(narrowed.content) < 150_000
    assert rows(server, "/runs/b-run?from=100000&to=210000&level=1") == ["b-run", "b-part-02", "b-part-03", "b-part-04"]
    assert 'aria-label="Show the 478 steps"' in narrowed.text
    assert server.client.get("/runs/b-run?from=100000&to=100650").text.count("<span>479 steps</span>") == 1
    assert 'class="overview"' not in server.client.get("/runs/deep").text  # one step has no children


def test_only_what_ran_in_a_range_is_listed_and_found(server: AppServer) -> None:
    for view in ("transcript", "tree", "timeline"):
        assert rows(server, f"/runs/talk?view={view}&from=4000&to=11000") == [
            *("talk", "talk-llm-01", "talk-tool-01", "talk-llm-02"),
        ]
    text = server.client.get("/runs/talk?from=4000&to=11000&step=talk-llm-02").text
    assert "<b>4.00 s to 11.00 s</b>" in text
    assert "of 26 steps; the others ran at another time" in text
    assert 'href="/runs/talk?step=talk-llm-02" data-swap>whole run</a>' in text
    assert rows(server, "/runs/talk?from=4000&to=11000&q=result") == ["talk", "talk-tool-01", "talk-llm-02"]
    assert rows(server, "/runs/talk?to=4000") == ["talk"]
    assert "from=123456.789" in server.client.get("/runs/talk?from=123456.789").text


TIMES = st.none() | st.integers(0, 200) | st.integers(0, (1 << 63) - 1)
TYPES: tuple[StepType, ...] = ("llm", "tool", "run", "user_message")
STATUSES: tuple[Status, ...] = ("success", "failed", "pending")
STEPS = st.tuples(TIMES, TIMES, st.sampled_from(TYPES), st.sampled_from(STATUSES))


@given(st.lists(STEPS, max_size=12))
def test_whatever_times_steps_have_all_is_inside_and_every_moment_is_of_one_that_ran(
    steps: list[tuple[int | None, int | None, StepType, Status]],
) -> None:
    made = [StepRow(id="root", start_ns=0, end_ns=1_000)] + [
        StepRow(id=f"s-{at}", parent_id="root", start_ns=start, end_ns=end, type=type, status=status)
        for at, (start, end, type, status) in enumerate(steps)
    ]
    family = family_of("root", made)
    found = overview_of(family)
    dated = sum(start is not None for start, *_ in steps)
    assert (found is None) == (dated < 2)
    if found is None:
        return
    assert all(0 <= mark.x <= mark.x + mark.width <= 100.01 and mark.width > 0 for mark in found.marks)
    assert [slot.x for slot in found.slots] == sorted({slot.x for slot in found.slots})
    assert any(mark.lane == "failed" for mark in found.marks) == any(
        start is not None and status == "failed" for start, _, _, status in steps
    )
    for slot in found.slots:
        first, last = (family.start_ns + round(ms * 1e6) for ms in (slot.since, slot.until))
        slack = family.span_ns // 10**9 + 1
        assert slot.step in {row.step.id for row in family.during(first - slack, last + slack)}


@needs_chromium
def test_a_click_selects_and_a_stretch_narrows_until_escape(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/talk")
        assert len(visit.requests) <= 6
        box = page.locator(".overview .plot").bounding_box()
        assert box is not None
        at = {second: box["x"] + box["width"] * second / 100 for second in range(100)}
        y, says = box["y"] + 10, page.locator(".overview output")
        page.mouse.move(at[11], y)
        expect(says).to_have_text("10.00 s: llm think")
        page.mouse.click(at[11], y)
        expect(page.locator("#panel .ids dd").first).to_have_text("talk-llm-02")
        page.mouse.move(at[9], y)
        page.mouse.down()
        page.mouse.move(at[18], y, steps=3)
        expect(says).to_have_text("10.00 s to 16.67 s")
        page.mouse.up()
        expect(page.locator("#range")).to_have_text("5 steps, 2 model calls, 210 tokens, price unknown")
        assert page.url.endswith("/runs/talk?step=talk-llm-02&from=10000.0&to=18333.333333")
        expect(page.locator("#rows .link")).to_have_count(5)
        page.keyboard.press("Escape")
        expect(page.locator("#rows .link")).to_have_count(26)
        assert page.url.endswith("/runs/talk?step=talk-llm-02")
        page.go_back()
        expect(page.locator("#rows .link")).to_have_count(5)
        page.locator(".overview a").last.focus()
        for key, said in (("Home", "5.00 s: llm think"), ("Shift+ArrowRight", "5.00 s to 6.67 s")):
            page.keyboard.press(key)
            expect(says).to_have_text(said)
        page.keyboard.press("Enter")
        expect(page.locator("#rows .link")).to_have_count(3)
        assert page.url.endswith("&from=5000.0&to=8333.333333")
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    with Visit(browser, server, java_script_enabled=False) as visit:
        visit.page.goto("/runs/mixed?from=9000&to=12000")
        visit.page.locator(".overview a[data-step='m-bad']").click()
        expect(visit.page.locator("#panel .ids dd").first).to_have_text("m-bad")
        expect(visit.page.locator("#rows .link")).to_have_count(3)
