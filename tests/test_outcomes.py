"""Failures that called themselves success, over real conversations: one filter in lists, the API, clients and `ls`."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import viewing
from browsing import AIRLINE
from served import AppServer, run

from stepwell.client import Client
from stepwell.store import MAX_PAGE, open_store

needs_airline = pytest.mark.skipif(not AIRLINE.is_file(), reason=f"the conversations are not here: {AIRLINE}")


def conversation(number: int, line: str) -> Iterator[viewing.Record]:
    """Return a conversation as a run in a thread, with a step for each answer of the model and each call of a tool."""
    id, calls, at = f"c{number}", dict[str, Any](), 0.0
    inside = {"root": id, "trace": id, "thread_id": f"thread-{number % 50}"}
    for place, message in enumerate(json.loads(line)["messages"]):
        at += 1
        if message["role"] == "assistant":
            calls |= {each["id"]: each["function"] for each in message.get("tool_calls") or ()}
            generation = viewing.a_call([], message)
            yield viewing.a_step(f"{id}-{place}", "llm", at, at + 0.5, id, generation=generation, **inside)
        elif message["role"] == "tool":
            made = calls[message["tool_call_id"]]
            yield viewing.a_step(
                f"{id}-{place}", "tool", at, at + 0.5, id, name=made["name"], input=json.loads(made["arguments"]),
                output=message["content"], **inside,
            )  # fmt: skip
    yield viewing.a_run(id, at, **{name: value for name, value in inside.items() if name != "root"})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    lines = AIRLINE.read_text(encoding="utf-8").splitlines()
    with AppServer(tmp_path_factory.mktemp("outcomes") / "home") as server:
        for number, line in enumerate(lines):
            viewing.add(server.store, *conversation(number, line))
        assert server.store.catch_up(60) is True
        yield server


def every(server: AppServer, path: str, q: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = server.client.get(path, params={"q": q, "limit": MAX_PAGE}).json()["items"]
    return items


@needs_airline
def test_the_counts_of_the_conversations_are_those_of_the_filter(server: AppServer) -> None:
    tools = every(server, "/v1/records/steps", "type:tool")
    errors = every(server, "/v1/records/steps", "soft_error:error")
    empty = every(server, "/v1/records/steps", "soft_error:empty")
    assert (len(tools), len(errors), len(empty)) == (862, 54, 91)
    assert Counter(each["reaction"] for each in errors) == {
        "other_tool": 24, "answered": 23, "other_arguments": 6, "none": 1,
    }  # fmt: skip
    both = every(server, "/v1/records/steps", "soft_error:true")
    assert {each["id"] for each in both} == {each["id"] for each in (*errors, *empty)}
    again = every(server, "/v1/records/steps", "soft_error:true reaction:other_arguments")
    assert [each["id"] for each in again] == [each["id"] for each in both if each["reaction"] == "other_arguments"]
    assert every(server, "/v1/records/steps", "soft_error:true reaction:same_call") == []
    assert len(every(server, "/v1/records/steps", "type:tool soft_error:false")) == 862 - 145
    holding = {each["root_run_id"] for each in errors}
    assert {each["id"] for each in every(server, "/v1/records/runs", "soft_error:error")} == holding
    assert len(every(server, "/v1/records/runs", "-soft_error:error")) == 150 - len(holding)


@needs_airline
def test_client_command_line_and_lists_find_the_same(server: AppServer, tmp_path: Path) -> None:
    expected = [each["id"] for each in every(server, "/v1/records/steps", "reaction:other_arguments soft_error:error")]
    assert len(expected) == 6
    copy = tmp_path / "copy.db"  # of which nothing was looked at yet
    with closing(open_store(f"sqlite:{copy}")) as store:
        store.add([*server.store.records()])
    listed = server.client.get("/steps", params={"q": "soft_error:error reaction:other_arguments"}).text
    assert re.findall(r'<tr data-id="([^"]+)"', listed) == expected
    assert listed.count("the result tells of an error</span>") == listed.count("then same tool, other arguments<") == 6
    assert 'href="/steps?q=soft_error%3Aerror+-reaction%3Aother_arguments"' in listed  # a facet that leaves it out
    with Client(str(copy)) as client:
        found = client.steps(soft_error="error", reaction="other_arguments").items
        assert [(each.id, each.soft_error, each.reaction) for each in found] == [
            (id, "error", "other_arguments") for id in expected
        ]
        assert [each.id for each in client.steps(query="reaction:other_arguments soft_error:error").items] == expected
    told = run("ls", "steps", "soft_error:error reaction:other_arguments", "--store", f"sqlite:{copy}", "--json")
    assert [json.loads(line)["id"] for line in told.stdout.splitlines()] == expected
    wrong = server.client.get("/v1/records/steps", params={"q": "soft_error:maybe"})
    assert wrong.json()["error"]["message"].endswith("(at character 12)")


@needs_airline
def test_the_findings_of_a_thread_are_those_of_its_runs(server: AppServer) -> None:
    soft = every(server, "/v1/records/steps", "soft_error:true")
    ((thread, count),) = Counter(each["thread_id"] for each in soft).most_common(1)
    assert f'href="/findings/{thread}?thread=true">Findings' in server.client.get(f"/threads/{thread}").text
    of_thread = server.client.get(f"/findings/{thread}?thread=true").text
    inside = [each for each in soft if each["thread_id"] == thread]
    links = [f'href="/runs/{each["root_run_id"]}?step={each["id"]}">{each["name"]}</a>' for each in inside]
    runs = {each["root_run_id"] for each in inside}
    assert (count >= 6, len(runs) > 1) == (True, True)
    assert all(link in of_thread for link in links)
    alone = [server.client.get(f"/findings/{id}").text for id in runs]
    assert all(any(link in page for page in alone) for link in links)
    assert "Findings in" in of_thread
    assert "were looked at" not in of_thread
    assert server.client.get("/findings/no-such?thread=true").status_code == 404


def test_a_long_thread_says_how_much_of_it_was_looked_at(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        for run_id in ("one", "two", "three"):
            inside = {"root": run_id, "trace": run_id, "thread_id": "long"}
            steps = [viewing.a_step(f"{run_id}-{n}", "tool", n, n + 1, run_id, **inside) for n in range(999)]
            viewing.add(server.store, viewing.a_run(run_id, 999, trace=run_id, thread_id="long"), *steps)
        assert "The first 2,000 of 3,000 steps were looked at." in server.client.get("/findings/long?thread=true").text
