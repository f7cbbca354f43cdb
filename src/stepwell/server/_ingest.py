"""`POST /v1/ingest`: records as lines, answered when they are committed. The wire is told in `exporters.http`.

What must stay true:

1. An answer of 200 means that every line not in `rejected` is in the store; the store is idempotent, so a client that
   got no answer sends the same again.
2. Records go to the store as the bytes they came as.
3. Bodies in memory are bounded over all requests; beyond that the answer is 503, and recorders try again.
4. Nothing waits for company: what came while a transaction was written shares the next one, within bounds, and each
   request has the answer that it would have had alone, also where another one makes the transaction fail.
5. One thread reads at a time, in the order in which requests came; several may write at once, where there are writers.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Final, NamedTuple

from fastapi import Header, Request, Response
from msgspec import json
from pydantic import Field

from stepwell.server._access import InStore
from stepwell.server._body import ENCODINGS, decompressed, is_deeper_than, lines_of, pieces_of
from stepwell.server._errors import ANY_ERROR, Problem
from stepwell.server._limits import Limits
from stepwell.server._metrics import Metrics
from stepwell.server._routing import Model, Router
from stepwell.server._writers import Writer, Writers
from stepwell.store import AddResult, Rejection, Store

__all__ = ["ERROR_CHARACTERS", "Answer", "Counts", "Ingest", "Ingested", "Lines", "Reader", "router"]

TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ERROR_CHARACTERS: Final = 500  # of one line's reason
GROUP_LINES: Final = 4000  # no request joins a transaction that has so many
GROUP_BYTES: Final = 4 * 1024 * 1024
Counts = dict[str, int]

router = Router(tags=["ingest"], responses=ANY_ERROR)


class Refused(Model):
    """A line that was not taken."""

    line: int = Field(description="Its place in the body, from 0.", ge=0)
    id: str | None = Field(description="The record's id, where it could be read.")
    error: str


class Ingested(Model):
    """What became of the lines; the three together are all of them."""

    accepted: int = Field(description="Records that changed the store.", ge=0)
    duplicates: int = Field(description="Records that said nothing new.", ge=0)
    rejected: list[Refused]


class Answer(NamedTuple):
    """What a request is told, and the records of each outcome."""

    counts: Counts
    body: bytes


class Lines(NamedTuple):
    """Records of a request, and what makes its answer when it is known what became of them."""

    lines: list[bytes]
    answer: Callable[[AddResult], Answer]


class Reader(NamedTuple):
    """Makes records of a body, on a thread that writes; `of_store` where that depends on what the store holds.

    `read` raises `Problem`, `StoreError`.
    """

    read: Callable[[bytes, Store, Limits], Lines]
    of_store: bool = False


class _Job(NamedTuple):
    """A request that waits."""

    body: bytes
    encoding: str
    store: Store
    reader: Reader
    answer: Future[Answer]


class _Part(NamedTuple):
    """The records of a request; `deep` are the places of those that are nested too deeply to be given to the store."""

    job: _Job
    lines: Lines
    deep: set[int]

    def fit(self) -> list[bytes]:
        lines = self.lines.lines
        return [line for number, line in enumerate(lines) if number not in self.deep] if self.deep else lines


class Ingest:
    """Adds bodies to stores, on threads of its own."""

    def __init__(self, limits: Limits, metrics: Metrics, writers: Writers) -> None:
        self.limits = limits
        self._metrics = metrics
        self._writers = writers
        self._waiting_bytes = 0
        self._jobs: deque[_Job] = deque()  # each with a call of `_work` to come, which may find it done
        self._threads = ThreadPoolExecutor(max(writers.most, 1), thread_name_prefix="stepwell-ingest")
        self._reading = threading.Lock()
        self._written = threading.Condition()
        self._being_written = 0  # groups

    def close(self) -> None:
        """Let what is being written be finished."""
        self._threads.shutdown()
        self._writers.close()

    async def take(self, request: Request, store: Store, reader: Reader | None = None) -> bytes:
        """Store what is read of a request's body, its lines by default; return the answer.

        Raises `Problem`, `StoreError`.
        """
        with self._room() as room:
            pieces = [piece async for piece in pieces_of(request, self.limits.body_bytes, self.limits.body_s, room)]
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            encoding = request.headers.get("content-encoding", "")
            job = _Job(body, encoding, store, reader or _LINES, Future())
            del body
            self._jobs.append(job)
            self._threads.submit(self._work)
            answer = await asyncio.wrap_future(job.answer)
        self._metrics.records.update(answer.counts)
        return answer.body

    @contextmanager
    def _room(self) -> Generator[Callable[[int], bool]]:
        """Give a function that asks for room for more bytes; all of it is given back at the end."""
        taken = 0

        def more(size: int) -> bool:
            nonlocal taken
            if self._waiting_bytes + size > self.limits.waiting_bytes:
                return False
            taken += size
            self._waiting_bytes += size
            return True

        try:
            yield more
        finally:
            self._waiting_bytes -= taken

    def _work(self) -> None:
        """Run on a thread: write the request that waits for longest, and those behind it that go with it."""
        with self._writers.lend() as writer:
            with self._reading:
                group = self._next_group()
                with self._written:
                    self._being_written += 1
            try:
                self._write_each(group, writer)
            finally:
                with self._written:
                    self._being_written -= 1
                    self._written.notify_all()

    def _write_each(self, group: list[_Part], writer: Writer) -> None:
        try:
            self._write(group, writer)
        except Exception as error:  # noqa: BLE001 (whatever it is belongs to the request that waits)
            if len(group) == 1:
                group[0].job.answer.set_exception(error)
                return
            for part in group:  # whose fault it is shows when each is alone
                try:
                    self._write([part], writer)
                except Exception as own:  # noqa: BLE001 (likewise)
                    part.job.answer.set_exception(own)

    def _next_group(self) -> list[_Part]:
        group: list[_Part] = []
        count = size = 0
        while self._jobs and count < GROUP_LINES and size < GROUP_BYTES:
            job = self._jobs[0]
            if group and (job.store is not group[0].job.store or job.reader.of_store):
                break
            if job.reader.of_store:  # what it reads of the store must be there already
                with self._written:
                    self._written.wait_for(lambda: not self._being_written)
            self._jobs.popleft()
            if not job.answer.set_running_or_notify_cancel():
                continue
            try:
                body = decompressed(job.body, job.encoding, self.limits.body_bytes)
                lines = job.reader.read(body, job.store, self.limits)
            except Exception as error:  # noqa: BLE001 (likewise)
                job.answer.set_exception(error)
                continue
            depth = self.limits.depth
            deep = {number for number, line in enumerate(lines.lines) if is_deeper_than(depth, line)}
            group.append(_Part(job, lines, deep))
            count += len(lines.lines)
            size += len(body)
        return group

    def _write(self, group: list[_Part], writer: Writer) -> None:
        """Add the records of a group in one transaction, then answer its requests."""
        if not group:
            return
        parts = [part.fit() for part in group]
        together = parts[0] if len(parts) == 1 else [line for lines in parts for line in lines]
        result = writer.add(group[0].job.store, together) if together else AddResult(0, 0)
        self._writers.note(len(together))
        results = _shares(result, [len(lines) for lines in parts])
        answers = [
            part.lines.answer(_with_deep(part, own, self.limits.depth))
            for part, own in zip(group, results, strict=True)
        ]
        for part, answer in zip(group, answers, strict=True):
            part.job.answer.set_result(answer)


def _shares(result: AddResult, sizes: list[int]) -> list[AddResult]:
    """Return what became of each part of a batch, as if each had been added alone."""
    if len(sizes) == 1:
        return [result]
    shares: list[AddResult] = []
    first = 0
    for size in sizes:
        end = first + size
        refused = tuple(
            Rejection(each.index - first, each.id, each.error) for each in result.rejected if first <= each.index < end
        )
        duplicates = tuple(place - first for place in result.duplicate_places if first <= place < end)
        shares.append(AddResult(size - len(duplicates) - len(refused), len(duplicates), refused, duplicates))
        first = end
    return shares


def _with_deep(part: _Part, result: AddResult, depth: int) -> AddResult:
    """Return what became of all lines, those that the store was not given among them."""
    if not part.deep:
        return result
    places = [number for number in range(len(part.lines.lines)) if number not in part.deep]
    refused = [Rejection(places[each.index], each.id, each.error) for each in result.rejected]
    refused += [Rejection(number, None, f"not a record: it is nested deeper than {depth}") for number in part.deep]
    refused.sort(key=lambda each: each.index)
    duplicates = tuple(places[place] for place in result.duplicate_places)
    return AddResult(result.accepted, result.duplicates, tuple(refused), duplicates)


def _read_lines(body: bytes, _: Store, limits: Limits) -> Lines:
    return Lines(lines_of(body, limits), _answer)


def _answer(result: AddResult) -> Answer:
    refused = result.rejected
    answer = {
        "accepted": result.accepted,
        "duplicates": result.duplicates,
        "rejected": [{"line": each.index, "id": each.id, "error": each.error[:ERROR_CHARACTERS]} for each in refused],
    }
    counts = {"accepted": result.accepted, "duplicate": result.duplicates, "rejected": len(refused)}
    return Answer(counts, json.encode(answer))


_LINES: Final = Reader(_read_lines)


@router.post(
    "/v1/ingest",
    response_model=Ingested,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": f"Records, one JSON object a line; Content-Encoding may be {' or '.join(ENCODINGS)}.",
            "content": {type: {"schema": {"type": "string"}} for type in TYPES},
        }
    },
)
async def ingest(
    request: Request,
    store: InStore,
    content_type: Annotated[str, Header(include_in_schema=False)] = TYPES[0],
) -> Response:
    """Take records as lines; those that are none are named, and their neighbours are taken."""
    if content_type.partition(";")[0].strip().lower() not in TYPES:
        raise Problem(415, f"records are taken as {', '.join(TYPES)}")
    taker: Ingest = request.app.state.ingest
    return Response(await taker.take(request, store), media_type="application/json")
