"""Requests that wait for the same store are written together, and each is answered as if it had been alone."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served import AppServer, ids, lines, step

from stepwell.errors import StoreError
from stepwell.server._ingest import GROUP_LINES
from stepwell.store import AddResult
from stepwell.store.sqlite import SqliteStore

WAIT_S = 30


class GatedStore(SqliteStore):
    """Waits at its gate before each batch; a batch with `poison` in it fails."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.gate, self.entered = threading.Event(), threading.Event()
        self.batches: list[int] = []

    def add(self, frames: Sequence[bytes]) -> AddResult:
        self.entered.set()
        assert self.gate.wait(WAIT_S)
        self.batches.append(len(frames))
        if any(b"poison" in frame for frame in frames):
            raise StoreError("the disk is full")
        return super().add(frames)


class Crowd:
    """Sends one request that holds the store, then others, in order, that have to wait."""

    def __init__(self, server: AppServer, store: GatedStore) -> None:
        self.server, self.store = server, store
        self._senders = ThreadPoolExecutor(8)

    def send(self, path: str, body: bytes, type: str = "application/x-ndjson") -> Future[httpx.Response]:
        before = self.waiting()
        sent = self._senders.submit(self.server.client.post, path, content=body, headers={"Content-Type": type})
        if before is not None:
            until = time.monotonic() + WAIT_S
            while self.waiting() == before:
                assert time.monotonic() < until
                time.sleep(0.002)
        return sent

    def waiting(self) -> int | None:
        return len(self.server.app.state.ingest._jobs) if self.store.entered.is_set() else None

    def first(self) -> Future[httpx.Response]:
        sent = self.send("/v1/ingest", lines(step("first")))
        assert self.store.entered.wait(WAIT_S)
        return sent

    def answers(self, *bodies: bytes) -> list[httpx.Response]:
        sent = [self.first(), *(self.send("/v1/ingest", body) for body in bodies)]
        self.store.gate.set()
        return [each.result(WAIT_S) for each in sent][1:]


@pytest.fixture
def store(tmp_path: Path) -> GatedStore:
    return GatedStore(tmp_path / "steps.db")


@pytest.fixture
def crowd(tmp_path: Path, store: GatedStore) -> Iterator[Crowd]:
    with AppServer(tmp_path, store=store) as server:
        crowd = Crowd(server, store)
        yield crowd
        store.gate.set()
        crowd._senders.shutdown()


def test_requests_that_wait_share_a_transaction_and_have_answers_of_their_own(crowd: Crowd, store: GatedStore) -> None:
    deep = b'{"kind":"step","id":"deep","input":' + b"[" * 400 + b"]" * 400 + b"}"
    answers = crowd.answers(
        lines(step("a"), b"nonsense", step("b")),
        lines(step("a"), deep, step("first"), step("c"), b"{}"),
        b"",
        lines(step("a", name="again")),
    )
    assert [answer.status_code for answer in answers] == [200] * 4
    told = [answer.json() for answer in answers]
    assert [(each["accepted"], each["duplicates"]) for each in told] == [(2, 0), (1, 2), (0, 0), (1, 0)]
    refused = [[(line["line"], line["id"]) for line in each["rejected"]] for each in told]
    assert refused == [[(1, None)], [(1, None), (4, None)], [], []]
    assert "nested deeper" in told[1]["rejected"][0]["error"]
    assert ids(store) == ["a", "b", "c", "first"]
    assert store.step("a").name == "again"
    assert store.batches == [1, 3 + 4 + 1]
    assert 'stepwell_ingest_records_total{outcome="accepted"} 5' in crowd.server.client.get("/metrics").text


def test_a_request_that_makes_the_transaction_fail_fails_alone(crowd: Crowd, store: GatedStore) -> None:
    answers = crowd.answers(lines(step("a")), lines(step("poison")), lines(step("a"), step("b")))
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert answers[2].json() == {"accepted": 1, "duplicates": 1, "rejected": []}
    assert ids(store) == ["a", "b", "first"]
    assert store.batches == [1, 4, 1, 1, 2]


def test_a_body_that_can_not_be_read_is_refused_alone(crowd: Crowd, store: GatedStore) -> None:
    sent = [crowd.first()]
    sent.append(crowd.send("/v1/traces", b"no JSON", "application/json"))
    sent.append(crowd.send("/v1/ingest", lines(step("a"))))
    store.gate.set()
    assert [each.result(WAIT_S).status_code for each in sent] == [200, 400, 200]
    assert store.batches == [1, 1]


def test_a_group_is_bounded(crowd: Crowd, store: GatedStore) -> None:
    half = GROUP_LINES // 2
    bodies = [lines(*[step(f"{name}-{n}") for n in range(half)]) for name in "abc"]
    assert [answer.json()["accepted"] for answer in crowd.answers(*bodies)] == [half] * 3
    assert store.batches == [1, 2 * half, half]


def test_spans_join_lines_and_logs_begin_a_transaction(crowd: Crowd, store: GatedStore) -> None:
    span = {"traceId": "0" * 31 + "1", "spanId": "0" * 15 + "2", "name": "s", "startTimeUnixNano": "5"}
    spans = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}).encode()
    event = {"traceId": span["traceId"], "spanId": span["spanId"], "eventName": "gen_ai.user.message"}
    event |= {
        "timeUnixNano": "6",
        "body": {"kvlistValue": {"values": [{"key": "content", "value": {"stringValue": "Hi"}}]}},
    }  # type: ignore[dict-item]
    logs = json.dumps({"resourceLogs": [{"scopeLogs": [{"logRecords": [event]}]}]}).encode()
    sent = [crowd.first(), crowd.send("/v1/ingest", lines(step("a")))]
    sent += [crowd.send("/v1/traces", spans, "application/json"), crowd.send("/v1/logs", logs, "application/json")]
    sent.append(crowd.send("/v1/ingest", lines(step("b"))))
    store.gate.set()
    assert [each.result(WAIT_S).status_code for each in sent] == [200] * 5
    assert store.batches == [1, 2, 2]
    assert len(ids(store)) == 4
