"""Records on their way into a store: some at a time, and what became of them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from msgspec import Struct, json

from stepwell import model as wire
from stepwell._answers import Place
from stepwell.client._models import Added, Refused
from stepwell.client._requests import Request
from stepwell.errors import UsageError

__all__ = ["Record", "batches", "together"]

Record = bytes | Mapping[str, Any] | wire.Record

NDJSON: Final = "application/x-ndjson"
_BATCH: Final = 2000  # records, and bytes of them, in one request
_BATCH_BYTES: Final = 4 * 1024 * 1024


class _Line(Struct):
    line: int
    id: str | None
    error: str


class _Ingested(Struct):
    accepted: int
    duplicates: int
    rejected: list[_Line]


_ingested: Final = json.Decoder(_Ingested)


def batches(records: Iterable[Record]) -> Iterator[Request[Added]]:
    """Ask to keep records, some at a time; the places of those refused are among all."""
    frames: list[bytes] = []
    first = size = 0
    for record in records:
        frame = _frame(record, first + len(frames))
        if frames and (len(frames) >= _BATCH or size + len(frame) > _BATCH_BYTES):
            yield _batch(frames, first)
            first += len(frames)
            frames, size = [], 0
        frames.append(frame)
        size += len(frame)
    if frames:
        yield _batch(frames, first)


def _frame(record: Record, index: int) -> bytes:
    if isinstance(record, bytes):
        frame = record.replace(b"\n", b" ")  # between values: in a string it is written \\n
    else:
        try:
            frame = json.encode(record)
        except (TypeError, ValueError, RecursionError) as error:
            raise UsageError(f"record {index} can't be written as JSON: {error}") from error
    if not frame.strip():
        raise UsageError(f"record {index} is empty")
    return frame


def _batch(frames: list[bytes], first: int) -> Request[Added]:
    def ask(place: Place) -> object:
        result = place.store.add(frames)
        refused = [{"line": each.index, "id": each.id, "error": each.error} for each in result.rejected]
        return {"accepted": result.accepted, "duplicates": result.duplicates, "rejected": refused}

    def read(body: bytes) -> Added:
        said = _ingested.decode(body)
        refused = tuple(Refused(index=first + each.line, id=each.id, error=each.error) for each in said.rejected)
        return Added(accepted=said.accepted, duplicates=said.duplicates, rejected=refused)

    return Request("/v1/ingest", ask, read, method="POST", body=b"\n".join(frames), type=NDJSON)


def together(parts: Iterable[Added]) -> Added:
    """Return what became of all batches."""
    accepted = duplicates = 0
    rejected: tuple[Refused, ...] = ()
    for part in parts:
        accepted += part.accepted
        duplicates += part.duplicates
        rejected += part.rejected
    return Added(accepted=accepted, duplicates=duplicates, rejected=rejected)
