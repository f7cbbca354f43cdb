"""Review queues: what is given out to whom, what a verdict does, and what a reviewer sees; by forms and by keys."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browsing import Visit, a_browser, needs_chromium
from playwright.sync_api import expect
from served import AppServer
from viewing import a_run, a_step, add

from stepwell.errors import UsageError
from stepwell.server._keys import KeyRing
from stepwell.server.pages._queue import Queue
from stepwell.store import Store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AppServer]:
    with AppServer(tmp_path / "home") as server:
        add(server.store, *runs(4))
        yield server


def runs(count: int) -> list[dict[str, Any]]:
    """Return runs of which the one with the highest number is the latest; each has a tool."""
    made: list[dict[str, Any]] = []
    for n in range(count):
        run = a_run(f"r{n}", 10.0 + n, trace=f"r{n}", input=f"question {n}?", tags=["odd"] if n % 2 else [])
        tool = a_step(f"t{n}", "tool", n, n + 1, f"r{n}", root=f"r{n}", trace=f"r{n}", name="look", output="found")
        made += [{**run, "start_ns": run["start_ns"] + n}, tool]
    return made


def reviewer(server: AppServer) -> httpx.Client:
    return httpx.Client(base_url=server.url, trust_env=False, timeout=30)


def take(client: httpx.Client, which: str = "runs", prefix: str = "", **form: str) -> str:
    """Send a form of a queue, and return where it leads: the item's id, or `end`."""
    answer = client.post(f"{prefix}/review/{which}", data=form)
    assert answer.status_code == 303, answer.text
    path = answer.headers["Location"].partition("?")[0]
    assert path.startswith(f"{prefix}/")
    return "end" if "/review/" in path else path.rpartition("/")[2]


def scores(store: Store, id: str) -> list[tuple[Any, ...]]:
    return [(each.name, each.label, each.value, each.comment, each.type) for each in store.step(id).scores or ()]


def test_reviewers_are_given_different_items_until_none_is_left(server: AppServer) -> None:
    with reviewer(server) as ada, reviewer(server) as bob:
        assert take(ada) == "r3"
        assert take(ada) == "r3"  # again, what is hers
        assert take(bob) == "r2"
        assert take(ada, item="r3", label="positive", comment=" good ") == "r1"
        assert take(bob, item="r2", label="negative") == "r0"
        assert take(ada, item="r1") == "r1"  # passed over, and the only one that is left for her
        assert take(bob, item="r0", label="positive") == "end"
        waiting = bob.get("/review/runs").text
        assert "What is left is with others" in waiting
        assert "3 of 4 done" in waiting
        assert take(ada, item="r1", label="positive") == "end"
        done = ada.get("/review/runs").text
        assert "All 4 runs are reviewed" in done
        assert re.findall(r'row">(\w+)</th><td class="n">(\d)', done) == [("positive", "3"), ("negative", "1")]
    assert scores(server.store, "r3") == [("feedback", "positive", 1.0, "good", "HUMAN")]
    assert scores(server.store, "r2") == [("feedback", "negative", 0.0, None, "HUMAN")]


def test_a_queue_is_a_list_with_its_query_and_its_own_score_and_labels(server: AppServer) -> None:
    of = {"q": "tag:odd", "name": "tone", "labels": "warm, cold,warm", "order": "asc"}
    with reviewer(server) as ada:
        answer = ada.post("/review/runs", data=of)
        place = "/runs/r1?in=tag%3Aodd&review=tone&labels=warm%2C+cold%2Cwarm&order=asc"
        assert answer.headers["Location"] == place
        page = ada.get(place).text
        assert re.findall(r'name="label" value="(\w*)"[^>]*data-press="(\w)"', page) == [
            *(("positive", "y"), ("negative", "n"), ("warm", "1"), ("cold", "2"), ("", "s")),
        ]
        assert "0 of 2 done" in page
        assert take(ada, item="r1", label="cold", **of) == "r3"
        assert take(ada, item="r3", comment="unsure", **of) == "r3"
        assert ada.post("/review/runs", data={**of, "item": "r3", "label": "awful"}).status_code == 422
        assert take(ada, "steps", q="name:look", name="tone") == "t3"
        assert "In its run" in ada.get("/steps/t3?in=name%3Alook&review=tone").text
        assert take(ada, item="r3", label="warm", **of) == "end"
    assert scores(server.store, "r1") == [("tone", "cold", None, None, "HUMAN")]
    assert scores(server.store, "r3")[0] == ("comment", None, None, "unsure", "HUMAN")


def test_what_a_verdict_takes_out_of_the_list_does_not_bring_back_what_was_passed_over(server: AppServer) -> None:
    of = {"q": "-score:feedback"}
    with reviewer(server) as ada:
        assert take(ada, **of) == "r3"
        assert take(ada, item="r3", **of) == "r2"
        assert take(ada, item="r2", label="positive", **of) == "r1"
        assert "0 of 3 done" in ada.get("/runs/r1?in=-score:feedback&review=feedback").text


def test_an_item_that_another_has_or_that_is_done_says_so(server: AppServer) -> None:
    with reviewer(server) as ada, reviewer(server) as bob:
        assert take(ada) == "r3"
        assert "Another reviewer has this one" not in ada.get("/runs/r3?review=feedback").text
        theirs = bob.get("/runs/r3?review=feedback").text
        assert "Another reviewer has this one" in theirs
        assert "1 with another reviewer" in theirs
        assert take(ada, item="r3", label="positive") == "r2"
        assert "This one is done: <b>positive</b>" in bob.get("/runs/r3?review=feedback").text
        assert take(bob, item="r3", label="negative") == "r1"  # another verdict takes its place
    assert [label for _, label, *_ in scores(server.store, "r3")] == ["positive", "negative"]


def test_what_was_given_out_is_free_again_after_its_time_in_every_server(server: AppServer, tmp_path: Path) -> None:
    with reviewer(server) as ada, reviewer(server) as bob:
        assert take(ada) == "r3"
        path = tmp_path / "home" / "reviews.json"
        kept = json.loads(path.read_text())
        assert [(claim["name"], claim["item"]) for claim in kept["claims"]] == [("feedback", "r3")]
        with AppServer(tmp_path / "home") as other, reviewer(other) as cleo:
            assert take(cleo) == "r2"
        kept["claims"][0]["until_s"] = 1
        path.write_text(json.dumps(kept))
        assert take(bob) == "r3"
        path.write_text("no json")
        assert bob.post("/review/runs").status_code == 503
        assert bob.get("/review/runs").status_code == 503


def test_many_at_once_are_given_out_once_each(server: AppServer) -> None:
    add(server.store, *runs(24))
    found: list[list[str]] = []

    def review() -> None:
        mine = list[str]()
        with reviewer(server) as client:
            item = take(client)
            while item != "end":
                mine.append(item)
                item = take(client, item=item, label="positive")
        found.append(mine)

    threads = [threading.Thread(target=review) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(id for mine in found for id in mine) == sorted(f"r{n}" for n in range(24))


def test_more_than_a_queue_holds_is_said_and_leads_on(server: AppServer) -> None:
    add(server.store, *(a_run(f"m{n}", trace=f"m{n}", tags=["many"]) for n in range(1_001)))
    page = server.client.get("/review/runs?q=tag:many").text
    assert "0 of 1,000 done" in page
    link = re.search(r'href="([^"]*cursor=[^"]*)">The next of them', page)
    assert link is not None
    rest = server.client.get(link[1].replace("&amp;", "&")).text
    assert "Review 1 run<" in rest
    assert "the list goes on" not in rest


def test_a_queue_without_items_says_so_and_what_is_none_is_refused(server: AppServer) -> None:
    for path in ("/review/runs?q=tag:none", "/review/steps?q=type:llm"):
        assert "Nothing to review" in server.client.get(path).text
    for path in (
        *("/review/runs?q=tokens:x", "/review/runs?cursor=x", "/review/threads", f"/review/runs?name={'n' * 81}"),
        *("/runs/r1?review=comment", "/runs/r1?review=a&in=tokens:x"),
    ):
        assert server.client.get(path).status_code == 422, path
    forms: list[tuple[dict[str, str], int]] = [
        ({"order": "up"}, 422),
        ({"labels": ",".join("abcdefghij")}, 422),
        ({"item": "gone", "label": "positive"}, 404),
        ({"item": "r1", "comment": "x" * 10_001}, 422),
    ]
    for form, status in forms:
        assert server.client.post("/review/runs", data=form).status_code == status, form
    with pytest.raises(UsageError, match="1 to 80 characters"):
        Queue("runs", name="").check()


def test_no_other_origin_and_no_key_that_only_reads_reviews(server: AppServer) -> None:
    form = {"item": "r3", "label": "positive"}
    strange = {"Origin": "http://elsewhere.example"}
    assert server.client.post("/review/runs", data=form, headers=strange).status_code == 403
    ring = KeyRing(server.home)
    reads, writes = ring.add("reads", ("read",)), ring.add("both", ("read", "ingest"))
    for key, status in ((reads, 403), (writes, 303)):
        with reviewer(server) as client:
            assert client.post("/login", data={"key": key}, headers={"Origin": server.url}).status_code == 303
            answer = client.post("/review/runs", data=form, headers={"Origin": server.url})
            assert answer.status_code == status
    assert [label for _, label, *_ in scores(server.store, "r3")] == ["positive"]


@pytest.fixture
def prefixed(tmp_path: Path) -> Iterator[AppServer]:
    """Serve an application that has ours below `/tools`."""
    with AppServer(tmp_path / "home", below="/tools") as server:
        add(server.store, *runs(4))
        yield server


@needs_chromium
def test_a_reviewer_goes_through_a_queue_by_keys_and_without_scripts(prefixed: AppServer) -> None:
    with a_browser() as browser, Visit(browser, prefixed) as visit:
        page = visit.page

        def press(key: str) -> None:
            with page.expect_navigation():
                page.keyboard.press(key)

        page.goto("/tools/runs?q=name:agent")
        with page.expect_navigation():
            page.click("text=Review these")
        page.fill("#labels", "wrong tool")
        with page.expect_navigation():
            page.press("#labels", "Enter")
        assert page.url.endswith("/tools/runs/r3?in=name%3Aagent&review=feedback&labels=wrong+tool")
        visit.requests.clear()
        page.reload()
        assert len([url for url in visit.requests if "icon" not in url]) <= 6
        expect(page.locator("h1")).to_contain_text("agent")
        page.keyboard.press("j")  # the page's own keys stay
        expect(page.locator('#rows [aria-current="true"]')).to_contain_text("look")
        page.keyboard.press("Control+y")
        page.keyboard.press("m")
        page.keyboard.type("you see")
        page.keyboard.press("Escape")
        press("1")
        expect(page.locator(".review-state")).to_contain_text("1 of 4 done")
        press("s")
        assert "/tools/runs/r1?" in page.url
        press("y")
        assert "/tools/runs/r0?" in page.url
        page.go_back()
        assert "/tools/runs/r1?" in page.url
        page.reload()
        expect(page.locator(".review")).to_contain_text("This one is done: positive")
        with Visit(browser, prefixed, java_script_enabled=False) as other:
            other.page.goto("/tools/review/runs")
            other.page.click("text=Go on")
            assert "/tools/runs/r2?" in other.page.url
            other.page.fill("#review-note", "no")
            expect(other.page.locator("textarea")).to_have_count(1)  # one place for a verdict
            other.page.click("button:has-text('Bad')")
            expect(other.page.locator("h1")).to_have_text("What is left is with others")
    assert scores(prefixed.store, "r3") == [("feedback", "wrong tool", None, "you see", "HUMAN")]
    assert scores(prefixed.store, "r1") == [("feedback", "positive", 1.0, None, "HUMAN")]
    assert scores(prefixed.store, "r2") == [("feedback", "negative", 0.0, "no", "HUMAN")]
