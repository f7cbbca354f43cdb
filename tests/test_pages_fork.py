"""The fork: runs of one question as a tree, the place where good and bad ones part, and what is left out of it."""

from __future__ import annotations

import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import viewing
from browsing import AIRLINE
from served import AppServer

from stepwell.model import Score
from stepwell.server.pages._forks import (
    Action,
    Case,
    canonical,
    choices_of,
    grow,
    judge,
    parting_at,
    partings,
    rows_of,
)

needs_airline = pytest.mark.skipif(not AIRLINE.is_file(), reason=f"the conversations are not here: {AIRLINE}")


def a_case(id: str, calls: str, reward: float | None = None, **scores: Score) -> Case:
    """Return a case that called tools of one letter."""
    actions = [Action(f"{id}-{at}", tool, b"{}") for at, tool in enumerate(calls)]
    if reward is not None:
        scores["reward"] = Score("s", "reward", value=reward)
    return Case(id, "step", 0, actions, status="good", scores=scores)


def test_the_ends_add_up_to_the_runs_whatever_they_did() -> None:
    chance = random.Random(7)
    for _ in range(200):
        cases = [
            a_case(str(at), "".join(chance.choices("ab", k=chance.randrange(9))), chance.choice([0.0, 1.0, None]))
            for at in range(chance.randrange(1, 30))
        ]
        judge(cases, "reward", None)
        root, nodes = grow(cases)
        rows = list(rows_of(root, cases, None))
        assert sorted(at for row in rows if row.kind == "end" for at in row.node.ends) == list(range(len(cases)))
        assert sum(sum(row.counts.values()) for row in rows if row.kind == "end") == len(cases)
        for node in nodes.values():
            below = [at for child in node.children.values() for at in child.cases]
            assert sorted([*below, *node.ends]) == node.cases
        drawn = [row.node for row in rows if row.kind == "action"] + [node for row in rows for node in row.folded]
        assert len(drawn) == len({node.key for node in drawn}) == len(nodes) - 1


def test_the_first_good_and_the_first_bad_run_part_after_their_equal_calls() -> None:
    cases = [a_case("a", "xyz", 0.0), a_case("b", "q", 1.0), a_case("c", "xyw", 1.0), a_case("d", "xy", 1.0)]
    assert judge(cases, "reward", None) == 0.5
    root, nodes = grow(cases)
    first, every = partings(root, nodes, cases)
    assert first is not None
    assert (first.node, first.left, first.right) == (root, 0, 1)
    assert [(len(node.cases), node.action and node.action.tool) for node in every] == [(4, None), (3, "y")]
    further = parting_at(every[1], cases)
    assert further is not None
    assert (further.left, further.right) == (0, 2)
    same = [a_case("a", "xy", 0.0), a_case("b", "xy", 1.0)]
    judge(same, "reward", None)
    alike, none = partings(*grow(same), same)
    assert alike is not None
    assert (alike.node.ends, none) == ([0, 1], [])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [2.0]}, {"b": [2], "a": 1.0}, True),
        ('{"a": 1}', {"a": 1}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": True}, {"a": 1}, False),
        ([1, 2], [2, 1], False),
        ("\ud800", "\ud801", False),
    ],
)
def test_arguments_are_equal_in_whatever_order_and_writing(one: Any, other: Any, same: bool) -> None:
    assert (canonical(one) == canonical(other)) is same


def test_a_score_that_most_runs_have_decides_unless_another_is_chosen() -> None:
    cases = [
        a_case("a", "x", 3.0, feedback=Score("f", "feedback", label="positive")),
        a_case("b", "x", 5.0, feedback=Score("f", "feedback", label="rather not")),
        a_case("c", "x"),
    ]
    assert [(choice.name, choice.known) for choice in choices_of(cases)] == [
        ("feedback", 2), ("reward", 2), ("status", 3),
    ]  # fmt: skip
    assert choices_of([*cases, a_case("d", "x"), a_case("e", "x")])[0].name == "status"
    assert (judge(cases, "reward", None), [case.outcome for case in cases]) == (4.0, ["bad", "good", "unknown"])
    assert (judge(cases, "reward", 3), [case.outcome for case in cases]) == (3.0, ["good", "good", "unknown"])
    assert (judge(cases, "feedback", None), [case.outcome for case in cases]) == (None, ["good", "unknown", "unknown"])
    assert cases[1].why == "rather not"
    assert (judge(cases, "status", None), [case.outcome for case in cases]) == (None, ["good", "good", "good"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("forked") / "home") as server:
        viewing.add(server.store, *viewing.forked(), viewing.a_run("alone", input="another question"))
        yield server


def test_the_page_draws_equal_calls_once_and_opens_where_good_and_bad_part(server: AppServer) -> None:
    text = server.client.get("/fork?run=forked-d").text
    assert "<h1>5 runs of one question</h1>" in text
    assert "a seat, please" in text
    assert 'value="reward" selected>reward (4 of 5)' in text
    assert "Good and bad runs part in 2 places." in text
    assert len(re.findall(r'<span class="call-name">(\w+)', text)) == 5  # look, look, think, buy, buy
    assert text.count("ends here:") == 3
    assert text.count("end here:") == 1  # a and d
    assert "<h2>Call 3, where they part</h2>" in text  # a and b, not where c or e leave them
    assert (
        '<dt><del>Left</del></dt><dd><a href="/runs/forked-b" title="forked-b">forked-b</a> <span class="note">' in text
    )
    assert "<del>9F</del><ins>1A</ins>" in text
    assert "3 messages are equal; what differs first: <b>message 4</b>." in text
    assert "look 0 of <del>b</del><ins>a</ins>" in text
    other = server.client.get("/fork?run=forked-d&at=0").text
    assert "<h2>Call 1, where they part</h2>" in other
    assert "&#34;at&#34;: &#34;<del>LAX</del><ins>SFO</ins>" in other


def told_in(page: str) -> str:
    """Return how many runs went well, as the page tells it of all."""
    totals = page.partition('class="totals">')[2].partition("</form>")[0]
    return ", ".join(" ".join(words) for words in re.findall(r"</span> (\d+) <span>(\w+)</span>", totals))


def test_what_decides_and_from_which_value_is_chosen_in_the_address(server: AppServer) -> None:
    strict = server.client.get("/fork?run=forked-a&by=reward&least=2").text
    assert told_in(strict) == "4 bad, 1 unknown"
    assert "No good and bad runs to part" in strict
    assert told_in(server.client.get("/fork?run=forked-a&by=reward&least=2&least_of=other").text) == (
        "2 good, 2 bad, 1 unknown"
    )
    by_status = server.client.get("/fork?run=forked-a&by=status").text
    assert told_in(by_status) == "5 good"
    assert 'name="least"' not in by_status
    assert "4 of 5" in server.client.get("/fork?run=forked-a&by=nothing").text


def test_the_fork_is_linked_only_where_there_are_two_runs(server: AppServer) -> None:
    assert '<a href="/fork?run=forked-a">5 runs of this question</a>' in server.client.get("/runs/forked-a").text
    assert "of this question" not in server.client.get("/runs/alone").text
    assert "1 run of one question" in server.client.get("/fork?run=alone").text
    assert server.client.get("/fork?run=no-such").status_code == 404
    assert server.client.get("/fork?thread=no-such").status_code == 404


def test_runs_without_tool_steps_are_told_by_their_last_model_call(tmp_path: Path) -> None:
    def call(name: str, **arguments: Any) -> dict[str, Any]:
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c", "type": "function", "function": function}],
        }

    asked = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "<script>alert(1)</script>"}]
    with AppServer(tmp_path / "home") as server:
        for at, (id, status, calls) in enumerate(
            [("good", "success", [call("look", n=1), call("buy", n=2)]), ("bad", "failed", [call("look", n=1)])]
        ):
            sent = [*asked, *calls[:-1]]
            generation = viewing.a_call(sent, calls[-1])
            step = viewing.a_step(f"{id}-l", "llm", at, at + 1, id, root=id, generation=generation, thread_id=id)
            run = viewing.a_step(id, "run", at, at + 1, None, root=id, status=status, input=asked, thread_id=id)
            viewing.add(server.store, run, step)
        text = server.client.get("/fork?thread=bad").text
        assert "<h2>After call 1, one ends</h2>" in text
        assert '<a href="/threads/good" title="good">good</a>' in text
        assert "<ins>buy</ins>" in text
        assert "<script>alert" not in text
        assert '<a href="/fork?thread=good">2 runs of this question</a>' in server.client.get("/threads/good").text


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        runs = [viewing.a_step(f"r{at}", "run", at, at + 1, None, root=f"r{at}", input="again") for at in range(101)]
        calls = [
            viewing.a_step(f"t{at}", "tool", 100 + at / 1000, 101, "r100", root="r100", name="tick", input=at)
            for at in range(203)
        ]
        viewing.add(server.store, *runs, *calls)
        text = server.client.get("/fork?run=r100").text
        assert "The latest 100 runs are shown; there are more." in text
        assert "Of 1 run only the first calls are compared: 153 are left out." in text
        assert "48 calls more, of this run alone" in text
        assert "20 of 48: " in text
        assert "and 89 more" in text
        assert "more than 100 runs of this question" in server.client.get("/runs/r7").text


@needs_airline
def test_each_of_the_24_airline_tasks_with_both_outcomes_opens_where_they_part(tmp_path: Path) -> None:
    tasks: dict[int, list[tuple[str, float, list[Any]]]] = defaultdict(list)
    records: list[dict[str, Any]] = []
    for number, line in enumerate(AIRLINE.read_text(encoding="utf-8").splitlines()):
        row = json.loads(line)
        id = f"airline-{row['task_id']}-{row['trial']}"
        calls, made = list[Any](), list[Any]()
        for message in row["messages"]:
            calls += message.get("tool_calls") or ()
            if message["role"] == "tool":
                function = next(c["function"] for c in reversed(calls) if c["id"] == message["tool_call_id"])
                made.append((function["name"], json.loads(function["arguments"])))
        tasks[row["task_id"]].append((id, row["reward"], made))
        records.append({"kind": "thread", "id": id, "metadata": {"task_id": row["task_id"], "trial": row["trial"]}})
        for at, (name, arguments) in enumerate(made):
            place = {"root": id, "thread_id": id, "input": arguments}
            records.append(viewing.a_step(f"{id}-{at}", "tool", number * 50 + at, None, id, name=name, **place))
        score = {"id": "reward", "name": "reward", "value": row["reward"]}
        records.append(viewing.a_step(id, "run", number * 50, None, None, root=id, thread_id=id, scores=[score]))
    seen: list[int] = []
    with AppServer(tmp_path / "home") as server:
        viewing.add(server.store, *records)
        for task, trials in tasks.items():
            text = server.client.get(f"/fork?thread=airline-{task}-0").text
            assert "<h1>3 runs of one question</h1>" in text
            passing = next((trial for trial in trials if trial[1] == 1), None)
            failing = next((trial for trial in trials if trial[1] != 1), None)
            if passing is None or failing is None:
                continue
            one, other = failing[2], passing[2]
            equal = next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
            seen.append(min(len(one), len(other)) if equal is None else equal)
            heading = "One of them makes no call" if not seen[-1] else f"After call {seen[-1]}, one ends"
            assert f"<h2>{heading if equal is None else f'Call {equal + 1}, where they part'}</h2>" in text
            assert re.findall(r'<dd><a href="/threads/(.*?)" ', text)[:2] == [failing[0], passing[0]]
    assert (len(tasks), len(seen), min(seen), max(seen)) == (50, 24, 0, 8)
