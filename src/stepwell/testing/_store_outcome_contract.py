"""How every store finds failures that called themselves success, one sentence a test; a part of `StoreContract`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from stepwell.store import StepFilter, Store
from stepwell.testing._store_reading_contract import finished
from stepwell.testing._store_search_contract import StoreSearchContract

__all__ = ["StoreOutcomeContract"]

RUN = {"root_run_id": "run", "parent_id": "run"}


def a_run(id: str = "run", at: int = 0) -> bytes:
    """Encode the run that the steps below are of."""
    return finished(id, at, root_run_id=id, end_ns=at + 1000)


def a_call(id: str, at: int, output: Any, name: str = "look", input: Any = None, **fields: Any) -> bytes:
    """Encode a tool's call of the run, one nanosecond long."""
    given = {**RUN, "input": {"n": 1} if input is None else input, "output": output, "end_ns": at + 1, **fields}
    return finished(id, at, type="tool", name=name, **given)


def a_reply(id: str, at: int, calls: Sequence[str] = (), **fields: Any) -> bytes:
    """Encode a model's reply of the run: an answer, or calls of tools."""
    asked: list[Any] = [{"id": f"{id}-{name}", "function": {"name": name, "arguments": "{}"}} for name in calls]
    reply = {"role": "assistant", "content": "so", **({"tool_calls": asked} if asked else {})}
    generation: dict[str, Any] = {"model": "m", "messages": [], "message_completion": reply}
    return finished(id, at, type="llm", end_ns=at + 1, generation=generation, **{**RUN, **fields})


def found(store: Store, **conditions: Any) -> list[str]:
    """Return the ids of the steps that a filter keeps, oldest first."""
    return [row.id for row in store.steps(StepFilter(**conditions), order="asc").items]


def told(store: Store) -> dict[str, tuple[str | None, str | None]]:
    """Return what is known of each soft error, after all there is was looked at."""
    assert store.catch_up() is True
    return {row.id: (row.soft_error, row.reaction) for row in store.steps(StepFilter(has_soft_error=True)).items}


class StoreOutcomeContract(StoreSearchContract):
    """The part of the conformance suite that is about `soft_error` and `reaction`."""

    def test_a_failure_that_called_itself_success_is_found_with_what_came_next(self, store: Store) -> None:
        store.add(
            [
                a_run(),
                a_call("1", 1, "Error: no such user"),
                a_reply("2", 2, ["look"]),
                a_call("3", 3, {"error": "no such user"}, input={"n": 1}),
                a_reply("4", 4, ["look"]),
                a_call("5", 5, [], input={"n": 2}),
                a_call("6", 6, '{"status": 503}', name="find"),
                a_reply("7", 7),
                a_call("8", 8, "fine"),
                a_call("9", 9, None),
                finished("alone", 20, type="tool", output="", name="look"),
                finished("failed", 30, type="tool", output="Error", status="failed"),
                finished("llm", 40, type="llm", output="Error"),
                finished("silent", 50, type="tool"),
            ]
        )
        assert told(store) == {
            "1": ("error", "same_call"),
            "3": ("error", "other_arguments"),
            "5": ("empty", "other_tool"),
            "6": ("error", "answered"),
            "9": ("empty", "none"),
            "alone": ("empty", "none"),
        }
        assert found(store, soft_error="error", reaction="answered") == ["6"]
        assert found(store, soft_error="empty") == ["5", "9", "alone"]
        assert found(store, has_soft_error=True, since_ns=5, until_ns=20) == ["5", "6", "9"]
        assert found(store, has_soft_error=False, type="tool") == ["8", "failed", "silent"]
        assert found(store, none_of=[StepFilter(soft_error="error")], type="tool", root_run_id="run") == ["5", "8", "9"]
        page = store.steps(StepFilter(has_soft_error=True), limit=4)
        rest = store.steps(StepFilter(has_soft_error=True), limit=4, cursor=page.next_cursor)
        assert [row.id for row in (*page.items, *rest.items)] == ["alone", "9", "6", "5", "3", "1"]
        assert dict(store.facets(StepFilter(type="tool")).values["soft_error"]) == {"error": 3, "empty": 3}
        assert dict(store.facets(StepFilter(reaction="none")).values["reaction"]) == {"none": 2}
        assert [row.soft_error for row in store.tree("run") if row.id in {"1", "2", "5"}] == ["error", None, "empty"]

    def test_a_run_is_found_by_a_soft_error_anywhere_in_it(self, store: Store) -> None:
        store.add([a_run(), a_call("1", 1, "Error"), a_reply("2", 2), a_run("calm", 60)])
        trace = {"trace_id": "0af7651916cd43dd8448eb211c80319c"}  # as spans of other libraries, which name no run
        foreign = [
            finished("foreign", 70, **trace),
            finished("f1", 71, type="tool", output="", parent_id="foreign", **trace, name="look", end_ns=72),
            finished("f2", 73, type="tool", output="x", parent_id="foreign", **trace, name="look"),
        ]
        store.add(foreign)
        assert told(store) == {"1": ("error", "answered"), "f1": ("empty", "same_call")}

        def runs(**conditions: Any) -> list[str]:
            return [row.id for row in store.runs(StepFilter(**conditions), order="asc").items]

        assert runs(has_soft_error=True) == ["run", "foreign"]
        assert runs(soft_error="error") == runs(reaction="answered") == ["run"]
        assert runs(has_soft_error=False) == runs(none_of=[StepFilter(has_soft_error=True)]) == ["calm"]
        assert runs(none_of=[StepFilter(soft_error="empty")]) == ["run", "calm"]

    @pytest.mark.parametrize("caught_up", [False, True])
    def test_what_arrives_late_changes_what_came_next(self, store: Store, caught_up: bool) -> None:
        def then(*records: bytes) -> dict[str, tuple[str | None, str | None]]:
            store.add(records)
            return told(store) if caught_up else {}

        assert then(a_call("1", 1, "Error")) in ({}, {"1": ("error", "none")})
        assert then(a_reply("9", 9)) in ({}, {"1": ("error", "answered")})
        assert then(a_call("7", 7, "fine", name="find")) in ({}, {"1": ("error", "other_tool")})
        assert then(a_reply("3", 3, ["look"]), a_run()) in ({}, {"1": ("error", "other_tool")})
        assert then(a_call("5", 5, "Error", input={"n": 2})) in (
            {},
            {"1": ("error", "other_arguments"), "5": ("error", "other_tool")},
        )
        position = store.changes()[1]
        assert told(store) == {"1": ("error", "other_arguments"), "5": ("error", "other_tool")}
        assert store.changes(position)[0] == []
        store.add([finished("5", 5, type="tool", input={"n": 1}, output="seen")])
        assert told(store) == {"1": ("error", "same_call")}
        store.add([finished("1", 1, type="tool", status="failed", error={"type": "E"})])
        assert told(store) == {}

    def test_calls_that_were_made_at_once_are_no_reaction_to_each_other(self, store: Store) -> None:
        store.add([a_run(), *(a_call(f"{n}", n, "Error", end_ns=10) for n in (1, 2)), a_call("3", 10, "", name="find")])
        assert told(store) == {
            "1": ("error", "other_tool"),
            "2": ("error", "other_tool"),
            "3": ("empty", "none"),
        }

    def test_agents_that_work_beside_each_other_do_not_react_to_each_other(self, store: Store) -> None:
        agents = [finished(agent, 1, type="run", end_ns=90, **RUN) for agent in ("left", "right")]
        store.add(
            [
                a_run(),
                *agents,
                a_call("l1", 2, "Error", parent_id="left"),
                a_call("r1", 4, "", parent_id="right"),
                a_call("l2", 6, "fine", parent_id="left"),
                a_call("r2", 8, "fine", parent_id="right", input={"n": 2}),
            ]
        )
        assert told(store) == {"l1": ("error", "same_call"), "r1": ("empty", "other_arguments")}

    def test_nothing_is_known_of_what_was_deleted(self, store: Store) -> None:
        store.add([a_run(), a_call("1", 1, "Error"), finished("t", 5, type="tool", output=[], thread_id="thread")])
        assert set(told(store)) == {"1", "t"}
        store.delete_run("run")
        store.delete_thread("thread")
        assert told(store) == {}
        assert store.check() == []
        store.add([a_run(), a_call("1", 1, "Error")])
        assert told(store) == {"1": ("error", "none")}
