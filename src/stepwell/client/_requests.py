"""Every question a client can ask: how a server is asked, how a store, and what is made of the answer.

What must stay true: arguments are checked here, before anybody is asked, and what a store says is encoded and read as
if a server had sent it. So the same question has the same answer, or error, wherever the data is.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar, cast
from urllib.parse import quote

from msgspec import DecodeError, Struct, json, structs
from pydantic import BaseModel, TypeAdapter, ValidationError

from stepwell import model as wire
from stepwell._answers import (
    Place,
    caught_up_for,
    keep_score,
    page_of,
    remove_run,
    remove_thread,
    remove_user,
    thread_in_detail,
)
from stepwell._answers import search as search_in
from stepwell._checks import checked_choice, checked_id, checked_tags, shown
from stepwell.client._filters import (
    Query,
    RollupFilters,
    ScoreFilters,
    StepFilters,
    ThreadFilters,
    check_page,
    query_of,
    rollup_query,
    score_query,
    step_filter,
    thread_filter,
)
from stepwell.client._models import (
    Changes,
    Deleted,
    Found,
    FullStep,
    Hit,
    Rollup,
    Run,
    Score,
    Stats,
    Step,
    Thread,
    ThreadDetail,
    User,
)
from stepwell.errors import ClientError, UsageError
from stepwell.model import decode_record, encode_record
from stepwell.store import Order, Store
from stepwell.store import Page as StorePage

__all__ = [
    "Download",
    "Listing",
    "Paging",
    "Request",
    "attachment",
    "changes",
    "delete_run",
    "delete_thread",
    "delete_user",
    "export",
    "feedback",
    "find",
    "rollups",
    "runs",
    "score",
    "scores",
    "search",
    "stats",
    "step",
    "steps",
    "steps_in_full",
    "thread",
    "thread_steps",
    "threads",
    "tree",
    "users",
]

T = TypeVar("T")

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


class _Rollups(BaseModel):
    items: list[Rollup]


class _Tree(BaseModel):
    items: list[Step]


_full: Final = json.Decoder(_Full)


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
_hit_page: Final = _page_reader(_Page[Hit])
_user_page: Final = _page_reader(_Page[User])
_changes: Final = _reader(Changes)
_found: Final = _reader(Found)
_stats: Final = _reader(Stats)
_tree: Final = _reader(_Tree)
_rollups: Final = _reader(_Rollups)
_deleted: Final = _reader(Deleted)
_score: Final = _reader(Score)
_thread: Final = _reader(ThreadDetail)


# -- lists


def _listing(
    path: str,
    query: Query,
    rows: Callable[[Store, dict[str, Any]], StorePage[Any]],
    read: Callable[[bytes], Listing[T]],
    *,
    limit: int,
    order: Order,
) -> Paging[T]:
    """Return what asks for any page of a list; `rows` has it of a store."""
    check_page(limit, order)

    def page(cursor: str | None) -> Request[Listing[T]]:
        at = {"limit": limit, "cursor": cursor, "order": order}
        said = [(name, str(value)) for name, value in at.items() if value is not None]
        return Request(path, lambda place: page_of(rows(place.store, at)), read, query=query + said)

    return page


def steps(given: StepFilters, limit: int, order: Order) -> Paging[Step]:
    """Ask for steps by start."""
    filter, query = step_filter(given)
    return _listing(
        "/v1/records/steps",
        query,
        lambda store, at: caught_up_for(store, filter, text=False).steps(filter, **at),
        _step_page,
        limit=limit,
        order=order,
    )


def runs(given: StepFilters, limit: int, order: Order) -> Paging[Run]:
    """Ask for top-level runs and steps without a parent, by start."""
    filter, query = step_filter(given)
    return _listing(
        "/v1/records/runs",
        query,
        lambda store, at: caught_up_for(store, filter, text=False).runs(filter, **at),
        _run_page,
        limit=limit,
        order=order,
    )


def search(text: str, given: StepFilters, limit: int, order: Order) -> Paging[Hit]:
    """Ask for the steps that hold words, by start, and where."""
    filter, query = step_filter({**given, "text": text})
    return _listing(
        "/v1/search",
        query,
        lambda store, at: search_in(caught_up_for(store, filter, text=False), filter, at),
        _hit_page,
        limit=limit,
        order=order,
    )


def thread_steps(thread_id: str, limit: int, order: Order) -> Paging[Step]:
    """Ask for the steps of a thread, by start."""
    return steps({"thread_id": checked_id(thread_id, "thread_id")}, limit, order)


def threads(given: ThreadFilters, limit: int, order: Order) -> Paging[Thread]:
    """Ask for threads by latest activity."""
    filter, query = thread_filter(given)
    return _listing(
        "/v1/threads",
        query,
        lambda store, at: store.threads(filter, **at),
        _thread_page,
        limit=limit,
        order=order,
    )


def scores(given: ScoreFilters, limit: int, order: Order) -> Paging[Score]:
    """Ask for scores by creation."""
    filter = score_query(given)
    return _listing(
        "/v1/scores",
        query_of(filter),
        lambda store, at: store.scores(filter, **at),
        _score_page,
        limit=limit,
        order=order,
    )


def users(limit: int, order: Order) -> Paging[User]:
    """Ask for users by latest step."""
    return _listing("/v1/users", [], lambda store, at: store.users(**at), _user_page, limit=limit, order=order)


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
    filter, _ = step_filter({"ids": ids})
    many = filter.ids or ()
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


def rollups(given: RollupFilters) -> Request[list[Rollup]]:
    """Ask for sums of steps."""
    query = rollup_query(given)
    asked = query_of(query) if query.every else [*query_of(query), ("every", "all")]
    return Request(
        "/v1/rollups",
        lambda place: {"items": place.store.rollups(query)},
        lambda body: _rollups(body).items,
        query=asked,
    )


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


def delete_thread(id: str) -> Request[Deleted]:
    """Ask to delete a thread."""
    path = f"/v1/threads/{_in_path(id, 'thread id')}"
    return Request(path, lambda place: remove_thread(place, id), _deleted, method="DELETE")


def delete_run(id: str) -> Request[Deleted]:
    """Ask to delete the run of a step."""
    path = f"/v1/records/runs/{_in_path(id, 'step id')}"
    return Request(path, lambda place: remove_run(place, id), _deleted, method="DELETE")


def delete_user(user: str) -> Request[Deleted]:
    """Ask to delete all of a user."""
    path = f"/v1/users/{_in_path(user, 'user')}"
    return Request(path, lambda place: remove_user(place, user), _deleted, method="DELETE")


# -- what comes in pieces


def export(given: StepFilters) -> Download:
    """Ask for records as lines."""
    filter, query = step_filter(given)

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
