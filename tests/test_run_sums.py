"""The sums that a reader remembers of runs: those of now, whatever another process adds, changes and deletes."""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path
from typing import Any

import pytest

from stepwell.errors import NotFoundError
from stepwell.store import StepFilter, Store, open_store
from stepwell.store._run_sums import RunSums
from stepwell.store.sqlite import SqliteStore

RUNS = 6


def step_id(run: int, number: int) -> str:
    return str(uuid.UUID(int=(run + 1) << 64 | number))


def a_step(rng: random.Random, run: int, number: int) -> dict[str, Any]:
    root = step_id(run, 0)
    record: dict[str, Any] = {
        "kind": "step",
        "id": step_id(run, number),
        "trace_id": root.replace("-", ""),
        "root_run_id": root,
        "type": rng.choice(("llm", "tool")) if number else "run",
        "start_ns": run * 100 + number,
        "status": rng.choice(("success", "failed", "pending")),
        "thread_id": f"t-{rng.randrange(4)}",
    }
    if number:
        record["parent_id"] = step_id(run, rng.randrange(number))
    if record["type"] == "llm":
        usage = {"total_tokens": rng.randrange(100)}
        record["generation"] = {"model": "m", "messages": [], "usage": usage, "cost": {"total": rng.randrange(8) / 8}}
    return record


def change(rng: random.Random, store: Store, *, strays: bool) -> None:
    what = rng.random()
    if what < 0.15:
        store.delete_thread(f"t-{rng.randrange(4)}")
    elif what < 0.2:
        store.delete_run(step_id(rng.randrange(RUNS), 0))
    elif what < 0.25 and strays:
        far = {"kind": "step", "id": f"far-{rng.randrange(9)}", "type": "tool", "start_ns": 5}
        store.add([json.dumps(far | {"parent_id": step_id(rng.randrange(RUNS), 0)}).encode()])
    else:
        run = rng.randrange(RUNS)
        steps = [a_step(rng, run, rng.randrange(12)) for _ in range(rng.randrange(1, 4))]
        store.add([json.dumps(step).encode() for step in steps])


@pytest.mark.parametrize("seed", range(4))
def test_remembered_sums_are_those_of_a_store_that_remembers_nothing(tmp_path: Path, seed: int) -> None:
    url, rng = f"sqlite:{tmp_path}/steps.db", random.Random(seed)
    with_memory, other = open_store(url), open_store(url)
    for _ in range(120):
        try:
            change(rng, rng.choice((with_memory, other)), strays=seed > 2)
        except NotFoundError:
            continue
        without = SqliteStore(tmp_path / "steps.db", read_only=True)
        assert with_memory.runs().items == without.runs().items
        without.close()
    other.close()
    with_memory.close()


def test_a_deletion_of_a_part_of_a_run_is_seen_at_once_in_a_store_that_only_reads(tmp_path: Path) -> None:
    store = open_store(f"sqlite:{tmp_path}/steps.db")
    run = step_id(0, 0)
    root = {"kind": "step", "id": run, "type": "run", "start_ns": 1, "root_run_id": run}
    below = {"kind": "step", "type": "tool", "parent_id": run, "root_run_id": run, "thread_id": "t"}
    store.add([json.dumps(each).encode() for each in (root, *(below | {"id": step_id(0, n)} for n in (1, 2, 3)))])
    reader = open_store(f"sqlite:{tmp_path}/steps.db", read_only=True)
    assert [(row.steps, row.tools) for row in reader.runs().items] == [(4, 3)]
    store.delete_thread("t")
    assert [(row.steps, row.tools) for row in reader.runs().items] == [(1, 0)]
    reader.close()
    store.close()


def test_sums_that_did_not_change_are_not_added_up_again(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "steps.db")
    rng = random.Random(1)
    store.add([json.dumps(a_step(rng, run, number)).encode() for run in range(RUNS) for number in range(3)])
    store.runs()
    store.add([json.dumps(a_step(rng, 2, 3)).encode()])
    with store._connections.reading() as db:
        ids = [uuid.UUID(step_id(run, 0)).bytes for run in range(RUNS)]
        _, known = store._run_sums.known(db, ids)
    assert [uuid.UUID(bytes=id).int >> 64 for id in known if isinstance(id, bytes)] == [1, 2, 4, 5, 6]
    assert len(store.runs(StepFilter(root_run_id=step_id(2, 0))).items) == 1
    store.close()


def test_so_many_sums_are_remembered_and_no_more() -> None:
    store, sums = SqliteStore(None), RunSums()
    with store._connections.reading() as db:
        position, _ = sums.known(db, [])
        for part in range(4):
            sums.keep(position, {f"{part}-{n}": (1, 0, 0, 0, None) for n in range(4_000)})
        known = [len(sums.known(db, [f"{part}-{n}" for n in range(4_000)])[1]) for part in range(4)]
    assert known == [0, 0, 4_000, 4_000]
    store.close()
