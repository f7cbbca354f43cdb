"""How the embedded store derives soft errors: bounded, by any process, from steps in any state.

What holds of every store is in `stepwell.testing`.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from msgspec import json

from stepwell.store import StepFilter
from stepwell.store.sqlite import SqliteStore

SOFT = StepFilter(has_soft_error=True)


def call(id: str, at: int, output: Any, run: str = "run", **fields: Any) -> bytes:
    step = {"kind": "step", "id": id, "type": "tool", "name": "look", "status": "success", "root_run_id": run}
    return json.encode({**step, "start_ns": at, "end_ns": at, "input": {"n": 1}, "output": output, **fields})


def told(store: SqliteStore) -> list[tuple[str, str | None]]:
    return [(row.id, row.reaction) for row in store.steps(SOFT, order="asc", limit=1000).items]


def test_of_a_run_of_more_than_ten_thousand_steps_it_is_not_said_what_came_next() -> None:
    store = SqliteStore(None)
    store.add([call("a", 0, "Error"), *(call(f"s-{n}", n + 1, "fine") for n in range(9_998))])
    while not store.catch_up(0):
        pass
    assert told(store) == [("a", "same_call")]
    store.add([call("b", 20_000, ""), call("c", 20_001, "fine")])
    assert store.catch_up() is True
    assert told(store) == [("a", None), ("b", None)]
    store.close()


def test_several_that_catch_up_at_once_find_what_one_finds(tmp_path: Path) -> None:
    stores = [SqliteStore(tmp_path / "steps.db") for _ in range(3)]
    added = threading.Event()

    def derive(store: SqliteStore) -> None:
        while not added.is_set():
            store.catch_up(1)

    threads = [threading.Thread(target=derive, args=(store,)) for store in stores[1:]]
    for thread in threads:
        thread.start()
    for n in range(0, 400, 2):  # each answer comes before what it answers to
        stores[0].add([call(f"s-{n + 1}", n + 1, "fine", run=f"r-{n}", input={"n": n % 4})])
        stores[0].add([call(f"s-{n}", n, "Error", run=f"r-{n}", input={"n": 2})])
    added.set()
    for thread in threads:
        thread.join(30)
    assert stores[0].catch_up() is True
    expected = [(f"s-{n}", "same_call" if n % 4 == 2 else "other_arguments") for n in range(0, 400, 2)]
    assert told(stores[0]) == expected
    for store in stores:
        assert store.check() == []
        store.close()


def test_what_is_broken_has_no_verdict_and_stops_nothing(tmp_path: Path) -> None:
    path = tmp_path / "steps.db"
    store = SqliteStore(path)
    store.add([call(id, n, "Error", run="other", input=["x" * 5000]) for n, id in enumerate("ab")])
    store.vacuum()  # puts payloads into a pack
    with sqlite3.connect(path) as db:
        assert db.execute("UPDATE packs SET body = x'00'").rowcount == 1
    db.close()
    store.add([call("c", 5, "Error")])
    assert store.catch_up() is True
    assert told(store) == [("c", "none")]
    store.close()


def test_a_pack_that_is_lost_later_leaves_what_was_known(tmp_path: Path) -> None:
    path = tmp_path / "steps.db"
    store = SqliteStore(path)
    padding = ["x" * 5000]
    reply = {"model": "m", "messages": [], "message_completion": {"role": "assistant", "content": "so"}}
    llm = {"kind": "step", "id": "l", "type": "llm", "root_run_id": "run", "start_ns": 2, "generation": reply}
    store.add([call("a", 1, "Error", input=padding), json.encode(llm), call("b", 3, "fine", input=padding)])
    assert store.catch_up() is True
    assert told(store) == [("a", "answered")]
    store.vacuum()
    with sqlite3.connect(path) as db:
        assert db.execute("UPDATE packs SET body = x'00'").rowcount == 1
    db.close()
    store.add([call("late", 9, "fine")])
    assert store.catch_up() is True
    assert told(store) == [("a", "other_arguments")]  # as far as it can be read
    assert store.check() != []
    store.close()
