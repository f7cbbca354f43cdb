"""The run page over real conversations: calls meet their answers, what is new is told, totals are right."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import viewing
from browsing import AIRLINE
from served import AppServer

import stepwell
from stepwell.server.pages._content import read
from stepwell.server.pages._panel import panel_of
from stepwell.server.pages._rows import family_of
from stepwell.store import MAX_PAGE, Store, open_store

ROOT = Path(__file__).resolve().parents[1]

needs_airline = pytest.mark.skipif(not AIRLINE.is_file(), reason=f"the conversations are not here: {AIRLINE}")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("airline") / "home"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("STEPWELL_")}
    environment["PYTHONPATH"] = str(Path(stepwell.__file__).parents[1])
    command = [sys.executable, ROOT / "benchmarks" / "replay_airline.py", "--limit", "12", "--home", home]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=100)
    return home


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    store = open_store(f"sqlite:{home / 'steps.db'}", read_only=True)
    yield store
    store.close()


@needs_airline
def test_each_call_leads_to_the_step_with_its_arguments_and_each_tool_back(store: Store) -> None:
    told = Counter[str]()
    for run in store.runs(limit=MAX_PAGE).items:
        family = family_of(run.id, store.tree(run.id))
        for row in family.rows:
            panel = panel_of(store, family, row)
            for call in panel.calls:
                told["calls"] += 1
                told["steps"] += (
                    call.step is not None and read(store.step(call.step.step.id).input) == call.call.arguments
                )
                told["results"] += call.result is not None
                told["last"] += call.later is None
            told["tools"] += row.step.type == "tool"
            told["asked for"] += panel.asked_by is not None
            told["answered"] += len(panel.results)
    assert told["calls"] == told["steps"] == told["tools"] == told["asked for"] > 40
    assert told["results"] == told["answered"] == told["calls"] - told["last"]


@needs_airline
def test_all_but_the_first_call_of_a_conversation_fold_what_was_sent_before(store: Store) -> None:
    calls = first = 0
    for run in store.runs(limit=MAX_PAGE).items:
        family = family_of(run.id, store.tree(run.id))
        for row in family.calls():
            panel = panel_of(store, family, row)
            calls += 1
            first += panel.before is None
            shown = sum(passage.last - passage.first for passage in panel.passages)
            assert shown == len(panel.messages)
            assert len(panel.passages) == 1 or [each.kind for each in panel.passages] == ["same", "new"]
    assert (first, calls > 100) == (12, True)


@needs_airline
def test_the_steps_of_all_runs_are_those_that_sql_counts(home: Path, store: Store) -> None:
    with sqlite3.connect(home / "steps.db") as db:
        ((steps, llm, tools),) = db.execute("SELECT count(*), sum(type = 'llm'), sum(type = 'tool') FROM steps")
    db.close()
    sums = [family_of(run.id, store.tree(run.id)).root.sums for run in store.runs(limit=MAX_PAGE).items]
    assert (sum(each.steps for each in sums), sum(each.calls for each in sums), sum(each.tools for each in sums)) == (
        steps,
        llm,
        tools,
    )


def test_a_result_sent_in_the_next_run_of_the_thread_belongs_to_its_call(tmp_path: Path) -> None:
    made = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    answer = {"role": "assistant", "content": None, "tool_calls": [made]}
    asked = [{"role": "user", "content": "hello"}]
    result = {"role": "tool", "tool_call_id": "c1", "content": "seen"}
    thread = {"thread_id": "talk"}
    with AppServer(tmp_path / "home") as server:
        viewing.add(
            server.store,
            viewing.a_run("one", 5.0, trace="one", **thread),
            viewing.a_step(
                "l1", "llm", 1, 2, "one", root="one", trace="one", generation=viewing.a_call(asked, answer), **thread,
            ),
            viewing.a_step("t1", "tool", 2, 3, "one", root="one", trace="one", name="look", input={}, **thread),
            viewing.a_step("two", "run", 6, 9, None, root="two", trace="two", **thread),
            viewing.a_step(
                "l2", "llm", 7, 8, "two", root="two", trace="two",
                generation=viewing.a_call([*asked, answer, result], {"role": "assistant", "content": "ok"}), **thread,
            ),
        )  # fmt: skip
        assert 'href="/steps/l2#m-2">its result' in server.client.get("/runs/one?step=l1").text
        later = server.client.get("/runs/two?step=l2").text
        assert "1 message as in the call before" in later
        assert 'href="/steps/l1">in an earlier run' in later
        assert 'href="/steps/t1">its step' in later


def test_a_run_is_saved_as_markdown_and_as_the_records_it_is_made_of(tmp_path: Path) -> None:
    fence = "before\n````\nafter"
    with AppServer(tmp_path / "home") as server:
        viewing.add(
            server.store,
            viewing.a_run("one", 5.0, trace="one", input="why?", output=fence),
            viewing.a_step("t1", "tool", 2, 3, "one", root="one", trace="one", name="look *up*", output="x" * 30_000),
        )
        markdown = server.client.get("/export/md/one")
        assert markdown.headers["content-disposition"] == 'attachment; filename="run.md"'
        assert "# agent (run, 5.00 s)\n\n2 steps, 0 model calls, 1 tools, 0 failed\n" in markdown.text
        assert f"Output:\n\n`````\n{fence}\n`````\n" in markdown.text
        assert "## look \\*up\\* (tool, 1.00 s)" in markdown.text
        assert "(20,000 of 30,000 characters)" in markdown.text
        lines = server.client.get("/export/jsonl/one").content.splitlines()
        copy = open_store("sqlite::memory:")
        assert copy.add(lines).rejected == ()
        assert copy.step("t1") == server.store.step("t1")
        copy.close()
