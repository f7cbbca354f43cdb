"""A run as numbered lines: the numbers are those of its Markdown, and addresses of lines mark them."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import pytest
import viewing
from browsing import Visit, a_browser, needs_chromium
from playwright.sync_api import expect
from served import AppServer

from stepwell.server.pages._numbered import MAX_LINES, lines_of_parts

LINE = re.compile(
    r'<li id="L(\d+)"( class="marked")?><a href="#L\d+">\d+</a><span dir="auto">(.*?)</span></li>', re.DOTALL
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("lines") / "home") as server:
        output = "\n".join(f"row {number}" for number in range(1, 1_301))
        viewing.add(server.store, *viewing.text_set(), viewing.a_run("long", trace="long", output=output))
        viewing.add(server.store, viewing.a_run("huge", trace="huge", input="\n" * 19_000, output="\n" * 19_000))
        viewing.add(server.store, viewing.a_run("going", None, trace="going", input="a\nb", status="pending"))
        yield server


def shown(server: AppServer, path: str) -> list[tuple[int, bool, str]]:
    answer = server.client.get(path)
    assert answer.status_code == 200, answer.text
    return [(int(number), bool(mark), html.unescape(text)) for number, mark, text in LINE.findall(answer.text)]


def file_of(server: AppServer, id: str) -> list[str]:
    return server.client.get(f"/export/md/{id}").text.split("\n")


def test_the_lines_are_those_of_the_file(server: AppServer) -> None:
    assert [text for _, _, text in shown(server, "/lines/text")] == file_of(server, "text")[:-1]
    pages = [line for first in (1, 501, 1001) for line in shown(server, f"/lines/long?first={first}")]
    assert [number for number, _, _ in pages] == [*range(1, len(file_of(server, "long")))]
    assert [text for _, _, text in pages] == file_of(server, "long")[:-1]
    assert list(lines_of_parts(["a\nb", "c\r\n", "", "\nd\u2028e"])) == ["a", "bc\r", "", "d\u2028e"]


def test_an_address_without_scripts_marks_lines_on_the_page_that_has_them(server: AppServer) -> None:
    lines = shown(server, "/lines/long?lines=998-1003")
    assert (lines[0][0], lines[-1][0]) == (501, 1000)
    assert [number for number, marked, _ in lines if marked] == [998, 999, 1000]
    assert [number for number, marked, _ in shown(server, "/lines/long?lines=7") if marked] == [7]
    assert shown(server, "/lines/long?lines=9000") == []
    assert "No line has such a number" in server.client.get("/lines/long?lines=9000").text
    assert [server.client.get(f"/lines/long?lines={bad}").status_code for bad in ("x", "1-", "1-2-3")] == [422] * 3
    assert server.client.get("/lines/none").status_code == 404


def test_lines_of_a_run_that_goes_on_stay_where_they_are(server: AppServer) -> None:
    before = shown(server, "/lines/going")
    viewing.add(server.store, viewing.a_step("going-tool", "tool", 1, 2, "going", root="going", trace="going", input=1))
    after = shown(server, "/lines/going")
    assert [text for _, _, text in before if "steps" not in text] == [
        text for _, _, text in after[: len(before)] if "steps" not in text
    ]
    assert len(after) > len(before)


def test_a_run_of_too_many_lines_says_where_the_rest_is(server: AppServer) -> None:
    last = server.client.get(f"/lines/huge?first={MAX_LINES}")
    assert "Lines after 20,000 are in the file." in last.text
    assert LINE.findall(last.text)[-1][0] == "20000"
    assert "are in the file" not in server.client.get("/lines/huge").text


@needs_chromium
def test_an_address_of_lines_marks_them_and_a_number_with_shift_makes_one(server: AppServer) -> None:
    with a_browser() as browser, Visit(browser, server) as visit:
        page = visit.page
        page.goto("/lines/long#L620-L622")
        marked = page.locator(".marked")
        expect(marked).to_have_count(3)
        assert [line.get_attribute("id") for line in marked.all()] == ["L620", "L621", "L622"]
        expect(page.locator("#L620")).to_be_in_viewport()
        assert page.url.endswith("?lines=620-622#L620-L622")
        before = page.evaluate("scrollY")
        page.locator("#L621 a").click()
        page.locator("#L624 a").click(modifiers=["Shift"])
        assert page.url.endswith("#L621-L624")
        expect(marked).to_have_count(4)
        assert page.evaluate("scrollY") == before
        page.go_back()
        expect(marked).to_have_count(1)
        page.goto("/lines/long#L99999")
        expect(marked).to_have_count(0)
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") == 390
