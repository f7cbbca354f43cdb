"""Processes that write records for the server: when there are some, what they write, and how they end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import NDJSON, AppServer, ServeProcess, ids, lines, step

from stepwell.errors import StoreError
from stepwell.server._writers import MANY_RECORDS, MAX_BYTES, QUIET_S, Writer, Writers
from stepwell.store import AddResult, Rejection, Store, open_store
from stepwell.store.sqlite import SqliteStore

WAIT_S = 30


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def writers(clock: Clock) -> Iterator[Writers]:
    writers = Writers(2, clock)
    yield writers
    writers.close()
    assert writers.pids == []


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    store = SqliteStore(tmp_path / "steps.db")
    yield store
    store.close()


def wait_until(met: Callable[[], Any]) -> None:
    until = time.monotonic() + WAIT_S
    while not met():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def started(writers: Writers) -> list[int]:
    writers.note(MANY_RECORDS)
    wait_until(lambda: writers.pids)
    return writers.pids


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def add(writers: Writers, store: Store, *frames: bytes) -> AddResult:
    with writers.lend() as writer:
        return writer.add(store, frames)


def test_many_records_start_processes_and_quiet_ends_them(writers: Writers, clock: Clock) -> None:
    writers.note(MANY_RECORDS - 1)
    clock.now += 6  # a new burst begins
    writers.note(MANY_RECORDS - 1)
    assert writers.pids == []
    first = started(writers)
    assert len(set(first)) == 2
    writers.note(MANY_RECORDS)
    clock.now += QUIET_S  # in which much came: they stay
    writers.wake()
    wait_until(lambda: writers._came == 0)
    with writers.lend() as one, writers.lend() as other:
        assert one is not other
        assert writers.pids == first
        clock.now += QUIET_S
        writers.wake()
        assert not any(map(is_gone, first))  # both are at work
    wait_until(lambda: not writers.pids and all(map(is_gone, first)))
    wait_until(lambda: writers._thread is None)
    assert set(started(writers)).isdisjoint(first)


def test_they_add_what_this_process_would(writers: Writers, store: SqliteStore, tmp_path: Path) -> None:
    started(writers)
    spaced = b'{"kind":"step","id":"b","input":{"b" : 1.50,\n "a":"\\u00e9"}}'
    frames = [step("a"), b"nonsense", spaced, step("a"), b'{"kind":"step","id":"c","start_ns":' + b"9" * 30 + b"}"]
    result = add(writers, store, *frames)
    with closing(SqliteStore(tmp_path / "other.db")) as other:
        expected = other.add(frames)
    assert (result, result.duplicate_places) == (expected, (3,))
    assert [refused.index for refused in result.rejected] == [1, 4]
    assert bytes(store.step("b").input) == b'{"b" : 1.50,\n "a":"\\u00e9"}'
    assert add(writers, store, *frames).duplicates == 3
    large = b'{"kind":"step","id":"large","input":"' + b"x" * MAX_BYTES + b'"}'
    assert add(writers, store, large) == AddResult(1, 0)  # too much to be sent on
    with closing(SqliteStore(None)) as memory:
        assert add(writers, memory, step("m")) == AddResult(1, 0)  # which no other process can write to
        assert ids(memory) == ["m"]
    assert ids(store) == ["a", "b", "large"]


def test_a_store_that_can_not_be_written_is_told_of_and_ends_no_process(writers: Writers, store: SqliteStore) -> None:
    pids = started(writers)
    store.close()
    assert store.path is not None
    store.path.write_bytes(b"this is no database" * 1000)
    for _ in range(2):
        with pytest.raises(StoreError, match=r"steps\.db: file is not a database"):
            add(writers, store, step("a"))
    assert writers.pids == pids


@pytest.mark.parametrize("killed", [1, 2])
def test_a_process_that_is_killed_costs_no_record(
    killed: int, writers: Writers, store: SqliteStore, caplog: pytest.LogCaptureFixture
) -> None:
    pids = started(writers)
    for pid in pids[:killed]:
        os.kill(pid, signal.SIGKILL)
    with ThreadPoolExecutor(2) as threads:
        results = threads.map(lambda number: add(writers, store, step(f"s{number}")), range(8))
        assert [result.accepted for result in results] == [1] * 8
    assert ids(store) == [f"s{number}" for number in range(8)]
    assert writers.pids == pids[killed:]
    told = [record.getMessage() for record in caplog.records]
    expected = [f"process {pid}, which wrote records, has ended: its batch is added again" for pid in pids[:killed]]
    assert sorted(told) == sorted(expected)
    if killed == 2:  # and others take their place when much comes again
        wait_until(lambda: writers._thread is None)
        assert len(started(writers)) == 2


def test_without_processes_one_thread_writes_at_a_time(writers: Writers) -> None:
    with writers.lend() as here, ThreadPoolExecutor(1) as threads:
        assert type(here) is Writer
        entered = threading.Event()

        def second() -> None:
            with writers.lend():
                entered.set()

        waiting = threads.submit(second)
        assert not entered.wait(0.1)
        assert len(started(writers)) == 2  # which are lent, while this one is at work still
        waiting.result(WAIT_S)
    with writers.lend() as writer:
        assert type(writer) is not Writer


def test_a_batch_is_made_ready_before_its_turn(store: SqliteStore, tmp_path: Path) -> None:
    with closing(SqliteStore(tmp_path / "steps.db", busy_deadline_s=0.1)) as other:
        result = store.add_in_turn([step("a"), b"{"], lambda: other.add([step("b"), step("a")]))
    assert result == AddResult(0, 1, (Rejection(1, None, result.rejected[0].error),))
    assert ids(store) == ["a", "b"]


class Slow(SqliteStore):
    """Waits at its gate before each batch."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate, self.entered = threading.Event(), threading.Event()

    def add(self, frames: Sequence[bytes]) -> AddResult:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        return super().add(frames)


def test_what_is_read_of_the_store_is_read_when_all_that_came_before_is_written(tmp_path: Path) -> None:
    event = {
        "traceId": "5b8efff798038103d269b633813fc60c",
        "spanId": "eee19b7ec3c1b174",
        "eventName": "gen_ai.evaluation.result",
        "attributes": [
            {"key": "gen_ai.evaluation.name", "value": {"stringValue": "polite"}},
            {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 0.5}},
        ],
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"scope": {"name": "x"}, "logRecords": [event]}]}]}
    store = Slow(tmp_path / "steps.db")
    with AppServer(tmp_path, store=store) as server, ThreadPoolExecutor(2) as senders:
        ingest = server.app.state.ingest
        assert len(started(ingest._writers)) == 2
        first = senders.submit(server.post, lines(step("a")))
        assert store.entered.wait(WAIT_S)
        second = senders.submit(server.client.post, "/v1/logs", json=logs)
        wait_until(lambda: not ingest._jobs or ingest._reading.locked())
        wait_until(ingest._reading.locked)
        assert not second.done()
        store.gate.set()
        assert first.result(WAIT_S).status_code == second.result(WAIT_S).status_code == 200
        assert not ingest._reading.locked()


def pour(server: ServeProcess, number: int) -> int:
    """Send thousands of steps; return how many were acknowledged until the server was gone."""
    acknowledged = 0
    for batch in range(1000):
        body = lines(*(step(f"s{number}-{batch}-{each}") for each in range(1000)))
        try:
            answer = server.client.post("/v1/ingest", content=body, headers=NDJSON)
        except httpx.HTTPError:
            break
        acknowledged += answer.json()["accepted"]
    return acknowledged


def children(pid: int) -> list[int]:
    listed = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    return [int(child) for each in listed for child in each]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_they_end_with_their_server_and_all_that_was_acknowledged_is_there(how: signal.Signals, tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "home", "--writers", "2") as server, ThreadPoolExecutor(2) as senders:
        poured = [senders.submit(pour, server, number) for number in range(2)]
        wait_until(lambda: "stepwell_ingest_writers 2" in server.client.get("/metrics").text)
        pids = children(server.process.pid)
        assert len(pids) == 2
        for pid in [server.process.pid, *pids] if how == signal.SIGTERM else [server.process.pid]:
            os.kill(pid, how)  # a signal to the group is for the server to obey
        acknowledged = sum(each.result(WAIT_S) for each in poured)
        assert server.process.wait(WAIT_S) == (0 if how == signal.SIGTERM else -signal.SIGKILL)
        wait_until(lambda: all(map(is_gone, pids)))
        assert [entry for entry in server.log() if entry["level"] != "info"] == []
    assert acknowledged >= MANY_RECORDS
    with closing(open_store(f"sqlite:{tmp_path}/home/steps.db")) as store:
        held = store.stats().steps
    assert acknowledged <= held <= acknowledged + 2 * 1000  # of a request each no answer came
