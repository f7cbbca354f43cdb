"""Moving through a run: by keys, links and addresses, with scripts and without; and while it is being written."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import viewing
from browsing import Visit, needs_chromium
from playwright.sync_api import Browser, expect
from served import AppServer
from test_pages_run import chosen, in_panel, key, states, wait_for

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("moved") / "home") as server:
        viewing.add(server.store, *viewing.talk(), *states(), *nested())
        yield server


def nested() -> list[viewing.Record]:
    def one(id: str, kind: str, at: float, end: float, parent: str, **fields: object) -> viewing.Record:
        return viewing.a_step(id, kind, at, end, parent, root="nest", trace="nest", **fields)

    many = [one(f"m{at}", "tool", 5 + at / 10, 5.05 + at / 10, "nest", name="many") for at in range(6)]
    return [
        viewing.a_run("nest", 10.0, trace="nest", input="why?"),
        one("sub", "run", 1, 4, "nest", input="sub question", output="sub answer"),
        one("sub-tool", "tool", 1, 5, "sub", output="deep needle 飞机"),
        *many,
        one("last", "tool", 9, 9.5, "nest", status="failed"),
    ]


def test_choosing_a_row_changes_the_address_and_back_undoes_exactly_that(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/talk")
        page.locator("#s-talk-tool-01 .link").click()
        in_panel(page, "talk-tool-01")
        page.locator("#s-talk-tool-02 .link").click()
        in_panel(page, "talk-tool-02")
        assert page.url.endswith("/runs/talk?step=talk-tool-02")
        page.go_back()
        in_panel(page, "talk-tool-01")
        assert chosen(page) == "talk-tool-01"
        with Visit(browser, server) as fresh:
            fresh.page.goto(page.url)
            in_panel(fresh.page, "talk-tool-01")
            assert chosen(fresh.page) == "talk-tool-01"


def test_keys_walk_fold_and_change_the_view(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/nest?view=tree")
        key(page, "j", "j")
        in_panel(page, "sub-tool")
        key(page, "k")
        in_panel(page, "sub")
        key(page, "h")
        expect(page.locator("#s-sub-tool")).to_have_count(0)
        assert "close=sub" in page.url
        key(page, "l")
        expect(page.locator("#s-sub-tool")).to_have_count(1)
        key(page, "h", "h")
        expect(page.locator("#s-sub-tool")).to_have_count(0)
        in_panel(page, "nest")
        key(page, "1")
        expect(page.locator(".levels [aria-current]")).to_have_text("1")
        key(page, "]")
        expect(page.locator("#s-sub-tool")).to_have_count(1)
        key(page, "[")
        expect(page.locator("#rows > li")).to_have_count(1)
        key(page, "]")
        expect(page.locator("#s-sub")).to_have_count(1)
        key(page, "e")
        in_panel(page, "last")
        key(page, "t")
        expect(page.locator(".tabs [aria-current]")).to_have_text("Timeline")
        assert chosen(page) == "last"
        key(page, "?")
        expect(page.locator(".legend")).to_have_attribute("open", "")


def test_keys_go_to_the_next_of_the_same_name(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        visit.page.goto("/runs/talk?step=talk-tool-02")
        key(visit.page, ".")
        in_panel(visit.page, "talk-tool-03")
        key(visit.page, ",", ",")
        in_panel(visit.page, "talk-tool-01")


@pytest.mark.parametrize("held", ["Control+j", "Alt+j", "Meta+j"])
def test_no_key_acts_with_a_modifier(browser: Browser, server: AppServer, held: str) -> None:
    with Visit(browser, server) as visit:
        visit.page.goto("/runs/talk")
        key(visit.page, held)
        visit.page.locator("#q").focus()
        visit.page.keyboard.type("jjt1")
        assert visit.page.url.endswith("/runs/talk")
        expect(visit.page.locator("#q")).to_have_value("jjt1")


def test_a_run_is_found_in_by_typing_and_matches_are_walked(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/nest")
        expect(page.locator("#s-sub-tool")).to_have_count(0)
        key(page, "/")
        page.keyboard.type("飞机")
        key(page, "Enter")
        expect(page.locator(".found")).to_contain_text("1 match")
        expect(page.locator("#rows > li")).to_have_count(3)
        expect(page.locator(".found")).to_contain_text("3 of 10 steps are listed")
        key(page, "n")
        in_panel(page, "sub-tool")
        expect(page.locator(".found")).to_contain_text("1 of 1 match")
        page.goto("/runs/nest?q=many&show=matches")
        expect(page.locator(".found")).to_contain_text("6 matches")
        key(page, "n")
        in_panel(page, "m0")
        key(page, "n")
        in_panel(page, "m1")
        key(page, "N")
        in_panel(page, "m0")
        page.locator("#s-m3 .link").click()
        in_panel(page, "m3")
        key(page, "n")
        in_panel(page, "m4")
        assert ("step=m4" in page.url, "go=" in page.url) == (True, False)
        page.goto("/runs/nest?q=many&show=all")
        expect(page.locator("#rows > li")).to_have_count(10)


def test_like_siblings_are_one_row_that_opens_in_its_place(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        visit.page.goto("/runs/nest")
        group = visit.page.locator("#g-m0")
        expect(group).to_contain_text("\u00d7 6")
        expect(group).to_contain_text("50 ms to 50 ms, median 50 ms")
        expect(group).to_contain_text("300 ms in all")
        group.locator(".link").click()
        expect(visit.page.locator("#s-m5")).to_have_count(1)
        visit.page.go_back()
        expect(visit.page.locator("#s-m5")).to_have_count(0)


def test_the_tree_has_one_tab_stop_and_says_what_each_row_is(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/nest?view=tree&step=sub")
        assert (
            page.evaluate("[...document.querySelectorAll('#rows a')].filter(each => each.tabIndex === 0).length") == 1
        )
        item = page.get_by_role("treeitem", selected=True)
        expect(item).to_have_attribute("aria-level", "2")
        expect(item).to_have_attribute("aria-expanded", "true")
        expect(item).to_contain_text("sub")
        expect(item).to_contain_text("3.00 s")
        expect(page.get_by_role("treeitem", name="last")).to_contain_text("failed")
        item.focus()
        key(page, "ArrowDown")
        in_panel(page, "sub-tool")
        key(page, "End")
        in_panel(page, "last")
        assert page.evaluate("document.activeElement.dataset.step") == "last"


def test_a_range_of_the_timeline_has_its_totals_by_address_and_by_dragging(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/talk?view=timeline&from=4000&to=11000")
        expect(page.locator("#range")).to_have_text("4 steps, 2 model calls, 210 tokens, price unknown")
        expect(page.locator(".gaps")).to_have_count(1)
        strip = page.locator(".overview .plot").bounding_box()
        assert strip is not None
        page.mouse.move(strip["x"] + strip["width"] * 0.04, strip["y"] + 10)
        page.mouse.down()
        page.mouse.move(strip["x"] + strip["width"] * 0.09, strip["y"] + 10, steps=4)
        page.mouse.up()
        expect(page.locator("#range")).to_contain_text("3 steps, 1 model calls")
        assert "from=" in page.url
        assert page.locator("#s-talk-llm-01 .first-token").count() == 1
        page.goto("/runs/nest?view=timeline")
        assert page.locator("#s-sub .tail").count() == 1


def test_all_of_it_works_without_scripts(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server, java_script_enabled=False) as visit:
        page = visit.page
        page.goto("/runs/nest")
        page.locator("#s-sub .link").click()
        expect(page.locator("#panel .ids dd").first).to_have_text("sub")
        page.locator("#s-sub .twist").click()
        expect(page.locator("#s-sub-tool")).to_have_count(1)
        page.locator("#g-m0 .link").click()
        expect(page.locator("#s-m3")).to_have_count(1)
        page.get_by_role("link", name="Timeline").click()
        expect(page.locator("#s-m3")).to_have_count(1)
        page.locator("#q").fill("needle")
        page.get_by_role("button", name="Find").click()
        expect(page.locator(".found")).to_contain_text("1 match")
        page.goto("/steps/talk-llm-08")
        page.locator(".messages .fold").click()
        expect(page.locator("h1")).to_have_text("Messages 1 to 14 of 16")
        page.goto("/runs/talk?step=talk-tool-01")
        page.locator("#panel .actions a").first.click()
        assert page.content().count("&quot;n&quot;") + page.content().count('"n"') == 1


def test_a_judgement_is_kept_with_and_without_scripts(browser: Browser, server: AppServer) -> None:
    for scripts, comment in ((True, "well said <b>"), (False, "not so well")):
        with Visit(browser, server, java_script_enabled=scripts) as visit:
            visit.page.goto("/runs/nest?step=sub")
            visit.page.locator("textarea[name=comment]").fill(comment)
            visit.page.get_by_role("button", name="Good", exact=True).click()
            expect(visit.page.locator(".scores").last).to_contain_text(comment)
            assert visit.page.url.endswith("/runs/nest?step=sub#scores")
    scores = server.store.step("sub").scores or []
    assert [(each.name, each.label, each.value, each.comment) for each in scores] == [
        ("feedback", "positive", 1.0, "well said <b>"),
        ("feedback", "positive", 1.0, "not so well"),
    ]


def test_no_other_origin_judges(server: AppServer) -> None:
    form = {"label": "negative"}
    strange = server.client.post("/judge/last", data=form, headers={"Origin": "http://elsewhere.example"})
    assert strange.status_code == 403
    assert server.client.post("/judge/last", data={"label": "awful"}).status_code == 422
    assert server.client.post("/judge/nowhere", data=form).status_code == 404
    assert server.store.step("last").scores is None


def test_a_text_is_copied_or_offered_to_be_copied(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        page = visit.page
        page.add_init_script("Object.defineProperty(navigator, 'clipboard', {value: undefined})")  # as over plain http
        page.goto("/runs/nest?step=sub-tool")
        page.locator("#panel .actions [data-copy]").first.click()
        box = page.locator(".copy-box textarea")
        expect(box).to_have_value("deep needle 飞机")
        assert box.evaluate("area => area.value.slice(area.selectionStart, area.selectionEnd)") == "deep needle 飞机"
        key(page, "Escape")
        expect(page.locator(".copy-box")).to_have_count(0)


def test_steps_that_arrive_move_nothing_that_is_read(browser: Browser, server: AppServer) -> None:
    def step(number: int) -> viewing.Record:
        return viewing.a_step(f"w{number:03d}", "tool", number, number + 0.5, "w", root="w", trace="w", output="x" * 99)

    viewing.add(
        server.store,
        viewing.a_run("w", None, trace="w") | {"start_ns": time.time_ns()},
        *(step(at) | {"name": f"n{at}"} for at in range(60)),
    )
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/w?step=w010")
        page.locator("#s-w010 .link").focus()
        page.evaluate("scrollTo(0, 300); getSelection().selectAllChildren(document.querySelector('#panel .text'))")
        before = page.evaluate("[scrollY, getSelection().toString(), document.activeElement.dataset.step]")
        assert before[0] == 300
        counted = page.locator("#s-w .took").text_content()
        for at in range(60, 260, 50):
            viewing.add(server.store, *(step(number) | {"name": f"n{number}"} for number in range(at, at + 50)))
        expect(page.locator("#new")).to_have_text("200 new steps", timeout=20_000)
        assert page.evaluate("[scrollY, getSelection().toString(), document.activeElement.dataset.step]") == before
        assert page.locator("#rows > li").count() == 61
        expect(page.locator("#s-w .took")).not_to_have_text(counted or "")
        page.locator("#new button").click()
        expect(page.locator("#rows > li")).to_have_count(102)
        assert chosen(page) == "w010"
        expect(page.locator("#new")).to_be_hidden()


def test_a_reader_at_the_end_of_a_run_that_is_written_follows_it(browser: Browser, server: AppServer) -> None:
    def step(number: int) -> viewing.Record:
        fields = {"root": "tail", "trace": "tail", "name": f"n{number}"}
        return viewing.a_step(f"tail{number:03d}", "tool", number, number + 0.5, "tail", **fields)

    begun = viewing.a_run("tail", None, trace="tail") | {"start_ns": time.time_ns()}
    viewing.add(server.store, begun, *(step(at) for at in range(60)))
    with Visit(browser, server) as visit:
        page = visit.page
        page.goto("/runs/tail")
        page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
        viewing.add(server.store, *(step(at) for at in range(60, 90)))
        expect(page.locator("#rows > li")).to_have_count(91, timeout=20_000)
        expect(page.locator("#new")).to_be_hidden()
        at_end = "scrollY + innerHeight >= document.documentElement.scrollHeight - 8"
        wait_for(lambda: bool(page.evaluate(at_end)))
        page.evaluate("scrollBy(0, -300)")
        viewing.add(server.store, step(90))
        expect(page.locator("#new")).to_have_text("1 new step", timeout=20_000)
        assert page.locator("#rows > li").count() == 91


def test_a_server_that_is_gone_is_told_of(browser: Browser, server: AppServer) -> None:
    visit = Visit(browser, server)
    visit.page.goto("/runs/states")
    visit.page.route("**/progress/**", lambda route: route.abort())
    expect(visit.page.locator("#new")).to_contain_text("not answering", timeout=20_000)
    visit.page.unroute("**/progress/**")
    expect(visit.page.locator("#new")).to_be_hidden(timeout=20_000)
    visit.problems.clear()  # the refused request is an error in the console
    visit.__exit__()


def test_a_page_needs_no_storage_and_has_a_strict_policy(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        visit.page.add_init_script(
            "Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked') }})"
        )
        answer = visit.page.goto("/runs/nest")
        assert answer is not None
        policy = answer.headers["content-security-policy"]
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        key(visit.page, "j")
        in_panel(visit.page, "sub")


def test_findings_lead_to_their_steps(browser: Browser, server: AppServer) -> None:
    with Visit(browser, server) as visit:
        visit.page.goto("/runs/talk")
        visit.page.get_by_role("link", name="Findings").click()
        expect(visit.page.locator("h2")).to_have_count(4)
        expect(visit.page.locator("main")).to_contain_text("offered in")
        expect(visit.page.locator("main")).to_contain_text("Carried along")
        visit.page.get_by_role("link", name="call 3", exact=True).click()
        in_panel(visit.page, "talk-llm-03")
