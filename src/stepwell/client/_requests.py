"""Every question a client can ask: how a server is asked, how a store, and what is made of the answer.

What must stay true: arguments are checked here, before anybody is asked, and what a store says is encoded and read as
if a server had sent it. So the same question has the same answer, or error, wherever the data is.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote

from msgspec import DecodeError, Struct, json, structs
from pydantic import BaseModel, TypeAdapter, ValidationError

from stepwell import model as wire
from stepwell._answers import Place, keep_score, page_of, thread_in_detail
from stepwell._checks import checked_choice, checked_id, checked_tags, shown
from stepwell.client._filters import (
    Query,
    ScoreFilters,
    StepFilters,
    ThreadFilters,
    check_page,
    query_of,
    score_query,
    step_filter,
    thread_filter,
)
from stepwell.client._models import (
    Added,
    Changes,
    Found,
    FullStep,
    Refused,
    Run,
    Score,
    Stats,
    Step,
    Thread,
    ThreadDetail,
)
from stepwell.errors import ClientError, UsageError
from stepwell.model import decode_record, encode_record
from stepwell.store import Order

__all__ = [
    "Download",
    "Listing",
    "Paging",
    "Record",
    "Request",
    "attachment",
    "batches",
    "changes",
    "export",
    "feedback",
    "find",
    "runs",
    "score",
    "scores",
    "stats",
    "step",
    "steps",
    "steps_in_full",
    "thread",
    "thread_steps",
    "threads",
    "together",
    "tree",
]

T = TypeVar("T")
Record = bytes | Mapping[str, Any] | wire.Record

NDJSON: Final = "application/x-ndjson"
_BATCH: Final = 2000  # records, and bytes of them, in one request
_BATCH_BYTES: Final = 4 * 1024 * 1024
_PIECE: Final = 64 * 1024


class Listing(NamedTuple, Generic[T]):
    """One page as it was answered."""

    items: tuple[T, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class Request(Generic[T]):
    """A question with an answer in one piece."""

    path: str
    ask: Callable[[Place], object]
    read: Callable[[bytes], T]
    method: Literal["GET", "POST", "DELETE"] = "GET"
    query: Query | tuple[()] = ()
    body: bytes | None = None
    type: str = "application/json"

    def of_answer(self, body: bytes) -> T:
        """Return what an answer says. Raises `ClientError`."""
        try:
            return self.read(body)
        except (DecodeError, ValidationError, UsageError, UnicodeDecodeError, RecursionError) as error:
            # The errors' own texts hold parts of the answer.
            raise ClientError(
                f"the answer to {self.path} is not what a stepwell server says: {type(error).__name__}"
            ) from error

    def of_place(self, place: Place) -> T:
        """Return what a store says. Raises as it does."""
        found = self.ask(place)
        return self.of_answer(found if isinstance(found, bytes) else json.encode(found))


@dataclass(frozen=True, slots=True)
class Download:
    """A question whose answer comes in pieces of bytes."""

    path: str
    pieces: Callable[[Place], Iterator[bytes]]
    query: Query | tuple[()] = ()


Paging = Callable[[str | None], Request[Listing[T]]]  # from a cursor to the request of its page


class _Full(Struct):
    items: list[wire.StepRecord]


class _Page(BaseModel, Generic[T]):
    items: tuple[T, ...]
    next_cursor: str | None


class _Tree(BaseModel):
    items: list[Step]


class _Line(Struct):
    line: int
    id: str | None
    error: str


class _Ingested(Struct):
    accepted: int
    duplicates: int
    rejected: list[_Line]


_full: Final = json.Decoder(_Full)
_ingested: Final = json.Decoder(_Ingested)


def _in_path(id: object, what: str) -> str:
    """Return an id for a path: no dot in it is one of a folder's. Raises `UsageError`."""
    return quote(checked_id(id, what), safe="").replace(".", "%2E")


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return TypeAdapter(kind).validate_json


def _page_reader(page: type[_Page[T]]) -> Callable[[bytes], Listing[T]]:
    def read(body: bytes) -> Listing[T]:
        found = page.model_validate_json(body)
        return Listing(found.items, found.next_cursor)

    return read


_step_page: Final = _page_reader(_Page[Step])
_run_page: Final = _page_reader(_Page[Run])
_thread_page: Final = _page_reader(_Page[Thread])
_score_page: Final = _page_reader(_Page[Score])
_changes: Final = _reader(Changes)
_found: Final = _reader(Found)
_stats: Final = _reader(Stats)
_tree: Final = _reader(_Tree)
_score: Final = _reader(Score)
_thread: Final = _reader(ThreadDetail)


def _page_query(limit: int, cursor: str | None, order: Order) -> Query:
    return [("limit", str(limit)), *([] if cursor is None else [("cursor", cursor)]), ("order", order)]


# -- lists


def steps(given: StepFilters, limit: int, order: Order) -> Paging[Step]:
    """Ask for steps by start."""
    check_page(limit, order)
    filter = step_filter(given)
    query = query_of(filter)

    def page(cursor: str | None) -> Request[Listing[Step]]:
        def ask(place: Place) -> object:
            return page_of(place.store.steps(filter, limit=limit, cursor=cursor, order=order))

        return Request("/v1/records/steps", ask, _step_page, query=query + _page_query(limit, cursor, order))

    return page


def runs(given: StepFilters, limit: int, order: Order) -> Paging[Run]:
    """Ask for top-level runs and steps without a parent, by start."""
    check_page(limit, order)
    filter = step_filter(given)
    query = query_of(filter)

    def page(cursor: str | None) -> Request[Listing[Run]]:
        def ask(place: Place) -> object:
            return page_of(place.store.runs(filter, limit=limit, cursor=cursor, order=order))

        return Request("/v1/records/runs", ask, _run_page, query=query + _page_query(limit, cursor, order))

    return page


def thread_steps(thread_id: str, limit: int, order: Order) -> Paging[Step]:
    """Ask for the steps of a thread, by start."""
    return steps({"thread_id": checked_id(thread_id, "thread_id")}, limit, order)


def threads(given: ThreadFilters, limit: int, order: Order) -> Paging[Thread]:
    """Ask for threads by latest activity."""
    check_page(limit, order)
    filter = thread_filter(given)
    query = query_of(filter)

    def page(cursor: str | None) -> Request[Listing[Thread]]:
        def ask(place: Place) -> object:
            return page_of(place.store.threads(filter, limit=limit, cursor=cursor, order=order))

        return Request("/v1/threads", ask, _thread_page, query=query + _page_query(limit, cursor, order))

    return page


def scores(given: ScoreFilters, limit: int, order: Order) -> Paging[Score]:
    """Ask for scores by creation."""
    check_page(limit, order)
    filter = score_query(given)
    query = query_of(filter)

    def page(cursor: str | None) -> Request[Listing[Score]]:
        def ask(place: Place) -> object:
            return page_of(place.store.scores(filter, limit=limit, cursor=cursor, order=order))

        return Request("/v1/scores", ask, _score_page, query=query + _page_query(limit, cursor, order))

    return page


# -- one thing


def step(id: str) -> Request[FullStep]:
    """Ask for a whole step."""
    path = f"/v1/records/steps/{_in_path(id, 'step id')}"
    return Request(path, lambda place: encode_record(place.store.step(id)), _read_step)


def _read_step(body: bytes) -> FullStep:
    record = decode_record(body)
    if not isinstance(record, wire.StepRecord):
        raise UsageError("it is no step")
    return FullStep.of(record)


def steps_in_full(ids: Sequence[str]) -> Request[list[FullStep]]:
    """Ask for whole steps, those that are there."""
    many = step_filter({"ids": ids}).ids or ()
    return Request(
        "/v1/records/full",
        lambda place: {"items": place.store.steps_in_full(many)},
        lambda body: [FullStep.of(record) for record in _full.decode(body).items],
        query=[("ids", id) for id in many] or [("ids", "")],
    )


def tree(id: str) -> Request[list[Step]]:
    """Ask for a step and all steps below it."""
    path = f"/v1/records/tree/{_in_path(id, 'step id')}"
    return Request(path, lambda place: {"items": place.store.tree(id)}, lambda body: _tree(body).items)


def find(id: str) -> Request[Found]:
    """Ask what an id names."""
    return Request(f"/v1/records/find/{_in_path(id, 'id')}", lambda place: place.store.find(id), _found)


def thread(id: str) -> Request[ThreadDetail]:
    """Ask for a thread."""
    return Request(f"/v1/threads/{_in_path(id, 'thread id')}", lambda place: thread_in_detail(place.store, id), _thread)


def changes(after: int | None, limit: int) -> Request[Changes]:
    """Ask for what changed since a position."""
    check_page(limit, "asc")
    if after is not None and (type(after) is not int or not 0 <= after < 1 << 63):
        raise UsageError(f"after must be a position that changes gave, got {shown(after)}")

    def ask(place: Place) -> object:
        items, position = place.store.changes(after, limit)
        return {"items": items, "position": position}

    query = [*([] if after is None else [("after", str(after))]), ("limit", str(limit))]
    return Request("/v1/records/changes", ask, _changes, query=query)


def stats() -> Request[Stats]:
    """Ask how much there is."""
    return Request("/v1/stats", lambda place: place.store.stats(), _stats)


# -- what is written


def score(
    step_id: str,
    name: str,
    value: float | None,
    *,
    label: str | None,
    comment: str | None,
    type: Literal["HUMAN", "CODE", "AI"],
    tags: Sequence[str] | None,
) -> Request[Score]:
    """Ask to keep a score; its id is made here, so that one sent twice is one."""
    if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
        raise UsageError(f"value of a score must be a finite number, got {shown(value)}")
    if value is None and label is None:
        raise UsageError("a score has a value, a label, or both")
    for what, text in (("label", label), ("comment", comment)):
        if text is not None:
            _check_text(text, what)
    score = wire.Score(
        id=str(uuid.uuid4()),
        step_id=_check_text(checked_id(step_id, "step_id"), "step_id"),
        name=_check_text(checked_id(name, "name of a score"), "name of a score"),
        type=cast("Any", checked_choice(type, "type of a score", ("HUMAN", "CODE", "AI"))),
        value=None if value is None else float(value),
        label=label,
        comment=comment,
        tags=[_check_text(tag, "tag") for tag in checked_tags(tags)] or None,
    )
    fields = {name: value for name, value in structs.asdict(score).items() if value is not None}
    return Request(
        "/v1/scores", lambda place: keep_score(place.store, score), _score, method="POST", body=json.encode(fields)
    )


def _check_text(text: str, what: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds half of a surrogate pair, which UTF-8 can't: {shown(text)}") from None
    return text


def feedback(step_id: str, label: str, comment: str | None) -> Request[Score]:
    """Ask to keep a user's verdict."""
    checked_choice(label, "feedback", ("positive", "negative"))
    value = 1.0 if label == "positive" else 0.0
    return score(step_id, "feedback", value, label=label, comment=comment, type="HUMAN", tags=None)


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


# -- what comes in pieces


def export(given: StepFilters) -> Download:
    """Ask for records as lines."""
    filter = step_filter(given)
    query = query_of(filter)

    def pieces(place: Place) -> Iterator[bytes]:
        for record in place.store.records(filter if given else None):
            yield record + b"\n"

    return Download("/v1/records", pieces, query)


def attachment(sha256: str) -> Download:
    """Ask for the bytes of an attachment."""
    if not isinstance(sha256, str) or len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
        raise UsageError(f"{shown(sha256)} is not a SHA-256 in 64 lower-case hex digits")

    def pieces(place: Place) -> Iterator[bytes]:
        with place.blobs.path(sha256).open("rb") as file:
            while piece := file.read(_PIECE):
                yield piece

    return Download(f"/v1/blobs/{sha256}", pieces)
