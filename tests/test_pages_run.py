"""The run page and the step panel in a real browser."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import viewing
from browsing import Visit, needs_chromium
from playwright.sync_api import Browser, Page, expect
from served import AppServer

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("viewed") / "home") as server:
        server.client.get("/healthz")
        for records in (viewing.deep(), viewing.text_set(), viewing.images(), viewing.talk(), viewing.ten_thousand()):
            frames = list(records)
            for at in range(0, len(frames), 1000):
                viewing.add(server.store, *frames[at : at + 1000])
        viewing.add(server.store, *states(), viewing.a_run("big", trace="big"), big())
        yield server


def big() -> dict[str, Any]:
    return viewing.a_step("big-tool", "tool", 1, 2, "big", root="big", trace="big", output="word " * 1_048_576)


def states() -> list[dict[str, Any]]:
    def one(id: str, at: int, end: float | None = 0, **fields: Any) -> dict[str, Any]:
        until = None if end is None else at + 1
        return viewing.a_step(id, "tool", at, until, "states", root="states", trace="states", **fields)

    return [
        viewing.a_run("states", 60.0, trace="states", child_count=9),
        one("fine", 1),
        one("bad", 2, status="failed", error={"type": "ValueError", "message": "no", "traceback": "Traceback: x\n  y"}),
        one("stopped", 3, status="cancelled"),
        one("cut", 4, status="interrupted"),
        one("running", 5, None),
        one("was-llm", 6, downgraded_from="llm"),
    ]


def wait_for(condition: Callable[[], bool], deadline_s: float = 20.0) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def chosen(page: Page) -> str | None:
    return page.locator('#rows .link[aria-current="true"]').get_attribute("data-step")


def in_panel(page: Page, name: str) -> None:
    """Wait until the panel shows a step."""
    expect(page.locator("#panel .ids dd").first).to_have_text(name)


def key(page: Page, *keys: str) -> None:
    for each in keys:
        page.keyboard.press(each)


class TestReading:
    def test_a_run_opens_on_its_question_and_its_outcome(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/runs/talk")
            box = visit.page.locator(".outcome").bounding_box()
            assert box is not None
            assert box["y"] + box["height"] < 450
            expect(visit.page.locator(".outcome")).to_contain_text("what is the weather?")
            expect(visit.page.locator(".outcome")).to_contain_text("it is fine")
            expect(visit.page.locator(".tabs [aria-current]")).to_have_text("Transcript")
            assert len(visit.requests) <= 6
            size = visit.page.evaluate(
                "performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation'))"
                ".reduce((sum, each) => sum + each.transferSize, 0)"
            )
            assert size < 150_000

    def test_ten_thousand_steps_are_a_small_page_that_counts_them_all(
        self, browser: Browser, server: AppServer
    ) -> None:
        with Visit(browser, server) as visit:
            for address in ("/runs/b-run", "/runs/b-run?view=tree&open=b-part-00", "/runs/b-run?q=needle&show=matches"):
                visit.page.goto(address)
                assert visit.page.evaluate("document.querySelectorAll('*').length") < 5_000
            expect(visit.page.locator(".page-of").first).to_contain_text("Rows 1 to 200 of")
            expect(visit.page.locator(".found")).to_contain_text(re.compile(r"9,5\d\d matches"))

    def test_scrolling_ten_thousand_steps_never_holds_the_page_up(self, browser: Browser, server: AppServer) -> None:
        watch = "new PerformanceObserver(list => window.held.push(...list.getEntries().map(each => each.duration)))"
        with Visit(browser, server) as visit:
            visit.page.goto("/runs/b-run?view=tree&open=b-part-00")
            visit.page.evaluate(f"window.held = []; {watch}.observe({{type: 'longtask'}})")
            height = visit.page.evaluate("document.documentElement.scrollHeight")
            for y in range(0, height, 600):
                visit.page.evaluate(f"new Promise(done => {{ scrollTo(0, {y}); requestAnimationFrame(done) }})")
            assert height > 3_000
            assert [each for each in visit.page.evaluate("window.held") if each > 200] == []

    def test_opening_a_step_of_ten_thousand_asks_for_its_panel_alone(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/runs/b-run?open=b-part-00&view=tree&step=b-llm-07-03")
            in_panel(visit.page, "b-llm-07-03")
            before = len(visit.requests)
            visit.page.locator("#s-b-tool-04321 .link").click()
            in_panel(visit.page, "b-tool-04321")
            assert [each for each in visit.requests[before:] if "/steps/b-tool-04321" in each] != []
            assert not any("/runs/b-run" in each for each in visit.requests[before:])

    @pytest.mark.parametrize("width", [1400, 390])
    def test_a_hundred_and_fifty_levels_fit_the_window(self, browser: Browser, server: AppServer, width: int) -> None:
        with Visit(browser, server, viewport={"width": width, "height": 900}) as visit:
            visit.page.goto("/runs/deep?view=tree&step=deep-149")
            assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
            row = visit.page.locator("#s-deep-149")
            expect(row).to_contain_text("level 149")
            expect(row).to_contain_text("a step with quite a long name at level 149")
            name = row.locator(".who")
            assert name.evaluate("each => each.scrollWidth <= each.clientWidth + 1")

    def test_a_value_of_five_megabytes_shows_its_ends_and_leads_to_all_of_it(
        self, browser: Browser, server: AppServer
    ) -> None:
        with Visit(browser, server) as visit:
            answer = visit.page.goto("/runs/big?step=big-tool")
            assert answer is not None
            assert len(answer.body()) < 300_000
            expect(visit.page.locator("#panel .cut").first).to_contain_text("5,237,380 of 5,242,880 characters")
            assert len(server.client.get("/raw/output/big-tool?text=true").content) == 5_242_880
            visit.page.locator("#s-big .link").click()
            in_panel(visit.page, "big")

    def test_text_is_shown_as_it_was_and_nothing_in_it_runs(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/runs/text?step=text-llm")
            panel = visit.page.locator("#panel")
            for text in ("<rules>", "be <b>kind</b>", "<think>hidden?</think>", "next 你好"):
                expect(panel).to_contain_text(text)
            assert panel.locator(".answer .md br").count() == 2
            expect(visit.page.locator("#rows")).to_contain_text("<script>document.title")
            visit.page.goto("/runs/text")
            expect(visit.page.locator("#panel .js.block")).to_have_text("one\ntwo 机票")
            assert "ran" not in visit.page.title()
            assert "你好" in visit.page.title()
            visit.page.goto("/runs/text?step=text-llm&plain=true")
            expect(visit.page.locator("#panel .answer .text")).to_contain_text("**bold**")

    def test_raw_returns_the_bytes_that_were_recorded(self, server: AppServer) -> None:
        mixed = next(viewing.text_set())["input"]
        assert server.client.get("/raw/input/text").content == json.dumps(mixed, ensure_ascii=False).encode()
        assert server.client.get("/raw/input/text?text=true").content == mixed.encode()
        message = server.client.get("/raw/messages/text-llm?at=0").json()
        assert message == {"role": "system", "content": "<rules>\n# Title\nbe <b>kind</b>\n</rules>"}
        answer = server.client.get("/raw/output/text")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert "sandbox" in answer.headers["content-security-policy"]
        assert server.client.get("/raw/prompt/text").status_code == 404

    def test_every_state_is_told_in_words(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            for view in ("transcript", "tree", "timeline"):
                visit.page.goto(f"/runs/states?view={view}")
                for id, word in (
                    ("bad", "failed"), ("stopped", "cancelled"), ("cut", "interrupted"), ("running", "pending"),
                    ("was-llm", "was llm"), ("states", "3 missing"),
                ):  # fmt: skip
                    expect(visit.page.locator(f"#s-{id}")).to_contain_text(word)
            visit.page.goto("/steps/bad")
            expect(visit.page.locator(".error")).to_contain_text("Traceback: x")

    def test_views_list_the_same_steps_in_one_order_and_no_duration_is_zero(
        self, browser: Browser, server: AppServer
    ) -> None:
        with Visit(browser, server) as visit:
            orders = []
            for view in ("transcript", "tree", "timeline"):
                visit.page.goto(f"/runs/talk?view={view}")
                orders.append(
                    visit.page.evaluate("[...document.querySelectorAll('#rows [data-step]')].map(x => x.dataset.step)")
                )
                took = visit.page.evaluate("[...document.querySelectorAll('.took')].map(x => x.textContent)")
                assert [each for each in took if each.startswith(("0 ", "0.0"))] == []
                assert "38 µs" in took
            assert orders[0] == orders[1] == orders[2]
            assert len(orders[0]) == 26

    def test_images_of_all_shapes_are_thumbnails_and_other_files_are_downloads(
        self, browser: Browser, server: AppServer
    ) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/steps/images-llm")
            assert visit.page.locator("#panel img.thumb").count() == 3
            expect(visit.page.locator("#panel img.thumb").first).to_have_js_property("naturalWidth", 64)
            assert re.search(r"[A-Za-z0-9+/]{200,}", visit.page.content()) is None
            visit.page.goto("/steps/images-tool")
            assert visit.page.locator("#panel img.thumb").count() == 1
            assert re.search(r"[A-Za-z0-9+/]{200,}", visit.page.content()) is None
            address = visit.page.locator("#panel a.file").get_attribute("href")
            assert address is not None
            answer = server.client.get(address)
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["content-disposition"] == "attachment"
            image = visit.page.locator("#panel img.thumb").get_attribute("src")
            assert server.client.get(image or "").content == viewing.png()


class TestMessages:
    def test_what_is_new_is_open_and_the_rest_is_one_line(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/steps/talk-llm-08")
            fold = visit.page.locator(".messages .fold")
            expect(fold).to_have_text("14 messages as in call 7")
            assert visit.page.locator(".messages article").count() == 2
            fold.click()
            expect(visit.page.locator(".messages article")).to_have_count(16)

    def test_the_page_of_a_later_call_is_no_larger(self, server: AppServer) -> None:
        sizes = [len(server.client.get(f"/steps/talk-llm-{number:02d}").content) for number in (5, 12)]
        assert abs(sizes[1] - sizes[0]) < 200

    def test_edited_and_dropped_messages_are_marked(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/steps/talk-llm-last")
            edited = visit.page.locator(".messages .is-edited")
            expect(edited).to_have_count(1)
            expect(edited).to_contain_text("be brief")
            expect(visit.page.locator(".dropped")).to_contain_text("1 message of call 12 not sent again")
            visit.page.get_by_text("as it was in call 12").click()
            expect(visit.page.locator(".unfolded")).to_contain_text("be kind")

    def test_a_call_leads_to_its_step_and_its_result_and_back(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/runs/talk?step=talk-llm-02")
            call = visit.page.locator("#call-1")
            expect(call).to_contain_text("tool 1")
            call.get_by_text("its step").click()
            in_panel(visit.page, "talk-tool-02")
            visit.page.get_by_text("asked for by think").click()
            in_panel(visit.page, "talk-llm-02")
            visit.page.locator("#call-1").get_by_text("its result").click()
            in_panel(visit.page, "talk-llm-03")
            visit.page.locator("#m-5").get_by_text("its step").click()
            in_panel(visit.page, "talk-tool-02")

    def test_ids_that_come_again_never_pair_with_the_step_of_another_call(self, server: AppServer) -> None:
        for number in range(1, 13):
            page = server.client.get(f"/steps/talk-llm-{number:02d}").text
            linked = re.findall(r'data-step="(talk-tool-\d\d)">its step', page.partition('class="card answer"')[2])
            assert linked == [f"talk-tool-{number:02d}"]

    def test_tools_are_listed_with_their_schema_and_the_called_one_is_marked(
        self, browser: Browser, server: AppServer
    ) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/steps/talk-llm-02")
            tools = visit.page.locator(".tools > li")
            assert tools.count() == 2
            expect(tools.nth(0)).to_contain_text("called")
            expect(tools.nth(1)).not_to_contain_text("called")
            tools.nth(0).locator("summary").first.click()
            expect(tools.nth(0)).to_contain_text("object")

    def test_input_tokens_are_the_sum_of_their_parts(self, browser: Browser, server: AppServer) -> None:
        with Visit(browser, server) as visit:
            visit.page.goto("/steps/talk-llm-02")
            expect(visit.page.locator(".usage")).to_contain_text("100 in = 40 fresh + 60 cached, 5 out, price unknown")
            expect(visit.page.locator(".facts").first).to_contain_text("first token after 500 ms")
