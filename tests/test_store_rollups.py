"""Sums that the embedded store keeps equal a plain sum over its steps, whatever is added, changed, deleted and counted.

What holds of every store is in `stepwell.testing`.
"""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import json

from stepwell.errors import ClosedError, StoreError
from stepwell.store import Rollup, RollupQuery, StepFilter, StepRow, UserRow, open_store
from stepwell.store._schema import LAST_POSITION
from stepwell.store._sketch import Counts, lanes_of, pack, unpack
from stepwell.store.sqlite import SqliteStore

HOUR_NS = 3_600_000_000_000
DAY_NS = 24 * HOUR_NS
SHARES = ("p50_ns", "p90_ns", "p95_ns", "p99_ns")
FIELDS = ("type", "name", "model", "user", "environment")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "steps.db"


def step(id: str, **fields: Any) -> bytes:
    return json.encode({"kind": "step", "id": id, **fields})


def rows_of(db: sqlite3.Connection) -> list[StepRow]:
    """Read the steps with plain SQL; `user` is the one that a step names, else its thread's."""
    query = (
        "SELECT s.start_ns, s.end_ns, s.type, s.name, s.model, coalesce(s.user, t.user_name), s.environment, s.status, "
        "s.input_tokens, s.output_tokens, s.total_tokens, s.cached_input_tokens, s.cost, s.number "
        "FROM steps s LEFT JOIN threads t ON t.id = s.thread_id"
    )
    names = ("start_ns", "end_ns", "type", "name", "model", "user", "environment", "status")
    numbers = ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost", "child_count")
    return [StepRow(id="", **dict(zip((*names, *numbers), row, strict=True))) for row in db.execute(query)]


def plain(rows: list[StepRow], query: RollupQuery) -> list[dict[str, Any]]:
    """Sum steps in the plainest way."""
    groups: dict[tuple[Any, ...], list[StepRow]] = {}
    for row in rows:
        start_ns = row.start_ns if row.start_ns is not None else -1
        bounded = query.since_ns is not None or query.until_ns is not None
        if bounded and not max(query.since_ns or 0, 0) <= start_ns < (
            1 << 63 if query.until_ns is None else query.until_ns
        ):
            continue
        if any(getattr(query, name) not in {None, getattr(row, name)} for name in FIELDS):
            continue
        span = {"hour": HOUR_NS, "day": DAY_NS, None: None}[query.every]
        bucket = None if span is None or start_ns < 0 else start_ns // span * span
        groups.setdefault((bucket, *(getattr(row, name) for name in query.by)), []).append(row)
    found = [
        {"start_ns": key[0], **dict(zip(query.by, key[1:], strict=True)), **summed(group)}
        for key, group in groups.items()
    ]
    return sorted(found, key=order_of)


def order_of(row: dict[str, Any]) -> list[Any]:
    return [
        -1 if row["start_ns"] is None else row["start_ns"],
        *((row.get(name) is not None, row.get(name) or "") for name in FIELDS),
    ]


def summed(rows: list[StepRow]) -> dict[str, Any]:
    statuses = Counter(row.status for row in rows)
    durations = sorted(
        max(row.end_ns - row.start_ns, 0)
        for row in rows
        if row.end_ns is not None and (row.start_ns or 0) >= 0 and row.status not in {"pending", "interrupted"}
        if row.start_ns is not None
    )
    found: dict[str, Any] = {
        "steps": len(rows),
        "errors": statuses["failed"],
        **{status: statuses[status] for status in ("cancelled", "pending", "interrupted")},
        "timed": len(durations),
        "duration_ns": sum(durations),
        "cost": sum(row.cost or 0 for row in rows),
    }
    for name in ("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens"):
        found[name] = sum(getattr(row, name) or 0 for row in rows)
    for share in (50, 90, 95, 99):
        found[f"p{share}_ns"] = durations[max(1, math.ceil(share * len(durations) / 100)) - 1] if durations else None
    return found


def as_plain(row: Rollup, query: RollupQuery) -> dict[str, Any]:
    shown = {"start_ns", *query.by}
    return {
        name: getattr(row, name) for name in row.__struct_fields__ if name not in (*FIELDS, "start_ns") or name in shown
    }


def nearly(name: str, value: Any) -> Any:
    """Return what a value may be: percentiles are within two percent, and whole nanoseconds."""
    if value and name in SHARES:
        return pytest.approx(value, abs=0.02 * value + 1)
    return value


def users_of(rows: list[StepRow]) -> list[UserRow]:
    """List users with their steps in the plainest way, but for their threads."""
    groups: dict[str, list[StepRow]] = {}
    for row in rows:
        if row.user is not None:
            groups.setdefault(row.user, []).append(row)
    found: list[tuple[int, int, UserRow]] = []
    for user, steps in groups.items():
        last = max((row.start_ns if row.start_ns is not None else -1, row.child_count or 0) for row in steps)
        starts = [row.start_ns for row in steps if row.start_ns is not None and row.start_ns >= 0]
        sums = summed(steps)
        numbers = (sums["steps"], sums["errors"], sums["total_tokens"], sums["cost"])
        found.append((*last, UserRow(user, 0, *numbers, min(starts, default=None), max(starts, default=None))))
    return [row for *_, row in sorted(found, key=lambda item: item[:2], reverse=True)]


NAMES = st.sampled_from([None, "", "a", "b"])
TIMES = st.sampled_from(
    [None, 0, 1, HOUR_NS - 1, HOUR_NS, 5 * HOUR_NS + 7, DAY_NS - 1, DAY_NS, 2 * DAY_NS + 3, 9 * DAY_NS]
)
COUNTS = st.none() | st.integers(0, 1000)
STEPS = st.fixed_dictionaries(
    {"id": st.integers(0, 12).map(str)},
    optional={
        "type": st.sampled_from(["run", "llm", "tool"]),
        "name": NAMES,
        "user": NAMES,
        "environment": NAMES,
        "thread_id": st.sampled_from(["t-1", "t-2"]),
        "parent_id": st.sampled_from(["0", "1"]),
        "root_run_id": st.sampled_from(["0", "1"]),
        "status": st.sampled_from(["success", "failed", "cancelled", "pending", "interrupted"]),
        "start_ns": TIMES,
        "end_ns": st.integers(0, 20 * DAY_NS),
        "generation": st.fixed_dictionaries(
            {"prompt": st.just("p"), "model": NAMES},
            optional={
                "usage": st.fixed_dictionaries(
                    {}, optional=dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens"), COUNTS)
                ),
                "cost": st.integers(0, 100).map(lambda n: n / 4),
            },
        ),
    },
).map(lambda fields: step(**fields))
THREADS = st.builds(
    lambda thread, user: json.encode({"kind": "thread", "id": thread, "user": {"identifier": user}}),
    st.sampled_from(["t-1", "t-2"]),
    st.sampled_from(["a", "c"]),
)
DELETE = st.sampled_from(
    [
        "DELETE FROM steps WHERE number % 3 = 0",
        "DELETE FROM steps WHERE user = 'a'",
        "DELETE FROM threads WHERE id = 't-1'",
        "DELETE FROM steps WHERE thread_id = 't-2'",
        "UPDATE threads SET user_name = NULL WHERE id = 't-2'",
    ]
)
ACTIONS = st.lists(
    st.one_of(st.lists(STEPS | THREADS, min_size=1, max_size=8), st.just("count"), st.just("count a little"), DELETE),
    max_size=12,
)
QUERIES = st.builds(
    RollupQuery,
    since_ns=TIMES,
    until_ns=TIMES,
    by=st.lists(st.sampled_from(FIELDS), unique=True, max_size=3).map(lambda by: sorted(by, key=FIELDS.index)),
    every=st.sampled_from(["hour", "day", None]),
    user=st.sampled_from([None, None, "a"]),
    name=st.sampled_from([None, None, "b"]),
    environment=st.sampled_from([None, None, "a"]),
)

FILTERS = st.builds(
    StepFilter,
    since_ns=TIMES,
    until_ns=TIMES,
    type=st.sampled_from([None, None, "llm", ("run", "tool")]),
    name=st.sampled_from([None, None, "b"]),
    environment=st.sampled_from([None, None, "a"]),
    status=st.sampled_from([None, "failed"]),
    root_only=st.booleans(),
    none_of=st.sampled_from([(), (StepFilter(type="llm"),)]),
)


def check_histogram(store: SqliteStore, filter: StepFilter) -> None:
    """Compare what a histogram counts with the list of the same filter."""
    since_ns, until_ns = filter.since_ns or 0, filter.until_ns
    first = -(-since_ns // HOUR_NS) * HOUR_NS
    end = 20 * DAY_NS if until_ns is None else until_ns // HOUR_NS * HOUR_NS
    rows = store.steps(filter).items
    starts = [-1 if row.start_ns is None else row.start_ns for row in rows]
    found = store.histogram(filter)
    assert (found is None) == (first >= end)
    if found is not None:
        assert sum(bin.steps for bin in found.bins) == sum(first <= start < end for start in starts)
        for bin in found.bins:
            inside = [row for row, start in zip(rows, starts, strict=True) if bin.start_ns <= start < bin.end_ns]
            assert (bin.steps, bin.errors) == (len(inside), sum(row.status == "failed" for row in inside))
        undated = sum(row.start_ns is None for row in rows)
        assert (found.undated, found.since_ns) == (undated, None if first == since_ns else first)


@given(ACTIONS, st.lists(QUERIES, min_size=3, max_size=3), st.lists(FILTERS, min_size=3, max_size=3))
@settings(deadline=None, max_examples=100)
def test_sums_equal_a_plain_sum_over_all_steps(
    actions: list[Any], queries: list[RollupQuery], filters: list[StepFilter]
) -> None:
    store = SqliteStore(None)
    connections = store._connections
    try:
        for action in actions:
            if isinstance(action, list):
                store.add(action)
            elif action.startswith("count"):
                store.catch_up(0 if action == "count a little" else 10)
            else:
                with connections.writing() as db:
                    db.execute(f"UPDATE state SET last_number = ({LAST_POSITION})")  # whose numbers are not given again
                    db.execute(action)
                    db.execute("DELETE FROM payload WHERE number NOT IN (SELECT number FROM steps)")
        for _ in range(2):
            with connections.reading() as db:
                rows = rows_of(db)
            for query in [RollupQuery(by=["type", "name"]), *queries]:
                expected = plain(rows, query)
                if "user" in query.by or query.user is not None:
                    expected = [{name: None if name in SHARES else row[name] for name in row} for row in expected]
                found = [as_plain(row, query) for row in store.rollups(query)]
                for mine, other in zip(found, expected, strict=True):
                    assert mine == {name: nearly(name, value) for name, value in other.items()}
            for filter in filters:
                check_histogram(store, filter)
            listed = [
                UserRow(row.user, 0, *(getattr(row, name) for name in row.__struct_fields__[2:]))
                for row in store.users().items
            ]
            assert listed == users_of(rows)
            statuses = Counter(row.status or "unknown" for row in rows)
            assert store.stats().by_status == dict(statuses)
            assert store.catch_up() is True
        with connections.reading() as db:
            assert db.execute("SELECT count(*) FROM recounts").fetchone() == (0,)
            assert db.execute("SELECT ifnull(sum(steps), 0) FROM rollups WHERE span_s = 3600").fetchone() == (
                len(rows),
            )
    finally:
        store.close()


def fill(path: Path, count: int) -> None:
    store = open_store(str(path))
    store.add(
        [
            step(f"s-{n}", name=f"n-{n % 3}", start_ns=n, end_ns=2 * n, status="success", user=f"u-{n % 7}")
            for n in range(count)
        ]
    )
    store.close()


DURATIONS = st.dictionaries(st.integers(0, 1113), st.sampled_from([1, 255, 256, 65_536, 1 << 32, (1 << 50) + 3]))


@given(st.lists(DURATIONS, max_size=4), DURATIONS)
def test_counts_of_durations_add_up_whatever_their_form(rows: list[dict[int, int]], more: dict[int, int]) -> None:
    expected = Counter(more)
    lanes = 0
    for row in rows:
        expected.update(row)
        packed = pack(unpack(0, row))
        lanes += 0 if packed is None else lanes_of(packed)
    first, counts = unpack(lanes, more)
    assert {bucket: count for bucket, count in enumerate(counts, first) if count} == expected


@pytest.mark.parametrize(
    ("counts", "packed"),
    [
        ([0, 0], None),
        ([0, 7, 0, 255, 0], b"\x06\x00\x01\x07\x00\xff"),
        ([256, 1], b"\x05\x00\x02\x00\x01\x01\x00"),
        ([65_536], b"\x05\x00\x04\x00\x00\x01\x00"),
        ([1 << 32], b"\x05\x00\x08\x00\x00\x00\x00\x01\x00\x00\x00"),
    ],
)
def test_counts_are_packed_as_the_schema_says(counts: list[int], packed: bytes | None) -> None:
    assert pack(Counts(5, counts)) == packed


def test_stores_that_count_at_the_same_time_count_nothing_twice(path: Path) -> None:
    fill(path, 20_000)
    stores = [open_store(str(path)) for _ in range(3)]
    done: list[bool] = []

    def count(number: int) -> None:
        stores[number].add([step(f"new-{number}-{n}", start_ns=n, status="failed") for n in range(500)])
        done.append(stores[number].catch_up(60))

    threads = [threading.Thread(target=count, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [True, True, True]
    (row,) = stores[0].rollups()
    assert (row.steps, row.errors) == (21_500, 1_500)
    db = sqlite3.connect(path)
    assert db.execute("SELECT sum(steps) FROM rollups WHERE span_s = 86400").fetchone() == (21_500,)
    assert db.execute("SELECT sum(steps) FROM users").fetchone() == (20_000,)
    db.close()
    for store in stores:
        store.close()


def test_a_process_killed_while_it_counts_leaves_whole_chunks(path: Path) -> None:
    fill(path, 30_000)
    script = (
        "import sys; from stepwell.store import open_store\n"
        "store = open_store(sys.argv[1])\n"
        "while True: print('turn', flush=True); store.catch_up(0)\n"
    )
    for turns in (1, 2, 3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
        )
        assert process.stdout is not None
        for _ in range(turns):
            assert process.stdout.readline() == "turn\n"
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        store = open_store(str(path), read_only=True)
        assert [row.steps for row in store.rollups(RollupQuery(by=["name"]))] == [10_000, 10_000, 10_000]
        assert sum(row.steps for row in store.users().items) == 30_000
        store.close()
    db = sqlite3.connect(path)
    (counted,) = db.execute("SELECT number FROM counted").fetchone()
    assert db.execute("SELECT ifnull(sum(steps), 0) FROM rollups WHERE span_s = 86400").fetchone() == (counted,)
    db.close()


def test_a_histogram_reads_so_much_at_most_and_says_where_it_begins(path: Path) -> None:
    store = open_store(str(path))
    store.add(
        [step(f"s-{n}", name=f"n-{n}", start_ns=n // 3_000 * 2 * DAY_NS + n, status="success") for n in range(12_000)]
    )
    assert store.histogram() is None  # so many steps were not counted
    assert store.catch_up(60) is True
    found = store.histogram()
    assert found is not None
    assert (list(found.bins), found.since_ns) == ([(n * DAY_NS, (n + 1) * DAY_NS, 3_000, 0) for n in (2, 4, 6)], DAY_NS)
    for filter in (
        StepFilter(user="ada"),
        StepFilter(text="word"),
        StepFilter(root_only=True, status="success"),
        StepFilter(none_of=(StepFilter(name="n-1"),)),
    ):
        assert store.histogram(filter) is None
    store.close()


def test_steps_are_added_while_others_are_counted(path: Path) -> None:
    fill(path, 20_000)
    store = open_store(str(path))
    counting = threading.Thread(target=store.catch_up, args=(60,))
    counting.start()
    for n in range(20):
        store.add([step(f"new-{n}", start_ns=1)])
    counting.join(60)
    assert store.catch_up(60) is True
    assert [row.steps for row in store.rollups()] == [20_020]
    store.close()
    with pytest.raises(ClosedError):
        store.catch_up()


def test_sums_are_exact_in_a_file_that_is_only_read(path: Path) -> None:
    fill(path, 100)
    store = open_store(str(path), read_only=True)
    assert [row.steps for row in store.rollups()] == [100]
    assert len(store.users().items) == 7
    with pytest.raises(StoreError, match="open for reading only"):
        store.catch_up()
    store.close()
