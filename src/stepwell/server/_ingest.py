"""`POST /v1/ingest`: records as lines, answered when they are committed. The wire is told in `exporters.http`.

What must stay true:

1. An answer of 200 means that every line not in `rejected` is in the store; the store is idempotent, so a client that
   got no answer sends the same again.
2. Records go to the store as the bytes they came as.
3. Bodies in memory are bounded over all requests; beyond that the answer is 503, and recorders try again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Annotated, Final

from fastapi import APIRouter, Header, Request, Response
from msgspec import json
from pydantic import BaseModel, Field

from stepwell.server._access import InStore
from stepwell.server._body import ENCODINGS, decompressed, is_deeper_than, lines_of, pieces_of
from stepwell.server._errors import Problem
from stepwell.server._limits import Limits
from stepwell.server._metrics import Metrics
from stepwell.store import Rejection, Store

__all__ = ["ERROR_CHARACTERS", "Add", "Counts", "Ingest", "Ingested", "add_records", "router"]

TYPES: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl")
ERROR_CHARACTERS: Final = 500  # of one line's reason
Counts = dict[str, int]
Add = Callable[[bytes, Store, Limits], tuple[Counts, bytes]]
_WRITERS: Final = 1  # two would fight for the interpreter: a third less of steps a second

router = APIRouter(tags=["ingest"])


class Refused(BaseModel):
    """A line that was not taken."""

    line: int = Field(description="Its place in the body, from 0.", ge=0)
    id: str | None = Field(description="The record's id, where it could be read.")
    error: str


class Ingested(BaseModel):
    """What became of the lines; the three together are all of them."""

    accepted: int = Field(description="Records that changed the store.", ge=0)
    duplicates: int = Field(description="Records that said nothing new.", ge=0)
    rejected: list[Refused]


class Ingest:
    """Adds bodies to stores, one at a time, on a thread of its own."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self.limits = limits
        self._metrics = metrics
        self._waiting_bytes = 0
        self._threads = ThreadPoolExecutor(_WRITERS, thread_name_prefix="stepwell-ingest")

    def close(self) -> None:
        """Let what is being written be finished."""
        self._threads.shutdown()

    async def take(self, request: Request, store: Store, add: Add | None = None) -> bytes:
        """Store what `add` makes of a request's body, its lines by default; return the answer.

        Raises `Problem`, `StoreError`.
        """
        with self._room() as room:
            pieces = [piece async for piece in pieces_of(request, self.limits.body_bytes, self.limits.body_s, room)]
            body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            pieces.clear()
            encoding = request.headers.get("content-encoding", "")
            loop = asyncio.get_running_loop()
            counts, answer = await loop.run_in_executor(self._threads, self._add, body, encoding, store, add)
        self._metrics.records.update(counts)
        return answer

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

    def _add(self, body: bytes, encoding: str, store: Store, add: Add | None) -> tuple[Counts, bytes]:
        """Run on a thread: from a body to the counts of its records and the answer."""
        return (add or add_lines)(decompressed(body, encoding, self.limits.body_bytes), store, self.limits)


def add_lines(body: bytes, store: Store, limits: Limits) -> tuple[Counts, bytes]:
    """Store a body's lines; return the counts of them and the answer, in JSON. Raises `Problem`, `StoreError`."""
    counts, refused = add_records(lines_of(body, limits), store, limits)
    answer = {
        "accepted": counts["accepted"],
        "duplicates": counts["duplicate"],
        "rejected": [{"line": each.index, "id": each.id, "error": each.error[:ERROR_CHARACTERS]} for each in refused],
    }
    return counts, json.encode(answer)


def add_records(lines: list[bytes], store: Store, limits: Limits) -> tuple[Counts, list[Rejection]]:
    """Store records; return the counts of them, and those not taken. Raises `StoreError`."""
    depth = limits.depth
    deep = {number for number, line in enumerate(lines) if is_deeper_than(depth, line)}
    places = [number for number in range(len(lines)) if number not in deep] if deep else range(len(lines))
    result = store.add([lines[number] for number in places] if deep else lines)
    refused = [Rejection(places[each.index], each.id, each.error) for each in result.rejected]
    refused += [Rejection(number, None, f"not a record: it is nested deeper than {depth}") for number in deep]
    refused.sort(key=lambda each: each.index)
    return {"accepted": result.accepted, "duplicate": result.duplicates, "rejected": len(refused)}, refused


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
