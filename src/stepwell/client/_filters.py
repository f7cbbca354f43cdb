"""What lists may be asked for: keyword arguments, checked, as the store's filters, and as a URL's query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import Any, Final, cast

from msgspec import json
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from stepwell._checks import shown
from stepwell._vocabulary import ScoreType, Status, StepType
from stepwell.errors import UsageError
from stepwell.store import (
    MAX_PAGE,
    Dimension,
    Every,
    Feedback,
    Reaction,
    RollupQuery,
    Scalar,
    ScoreFilter,
    ScoreQuery,
    SoftError,
    StepFilter,
    ThreadFilter,
)
from stepwell.store._conditions import with_query, with_thread_query

__all__ = [
    "Query",
    "RollupFilters",
    "ScoreFilters",
    "StepFilters",
    "ThreadFilters",
    "Time",
    "check_page",
    "query_of",
    "rollup_query",
    "score_query",
    "step_filter",
    "thread_filter",
]

Time = datetime | int
Query = list[tuple[str, str]]

_IDS: Final = ("ids", "trace_ids", "step_ids")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class StepFilters(TypedDict, total=False):
    """Which steps: all conditions given must hold. They are those of `stepwell.store.StepFilter`.

    `since` (inclusive) and `until` (exclusive) are about the step's start: a datetime with an offset, or nanoseconds
    since the Unix epoch. `query` must hold too; it is what the viewer's search box takes:
    `type:llm cost:>0.1 since:2h -tag:test "some words"`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    type: StepType | Sequence[StepType] | None
    name: str | None
    tag: str | Sequence[str]
    tag_any: Sequence[str]
    status: Status | None
    model: str | None
    provider: str | None
    agent_id: str | None
    thread_id: str | None
    trace_id: str | None
    trace_ids: Sequence[str] | None
    ids: Sequence[str] | None
    root_run_id: str | None
    parent_id: str | None
    user: str | None
    environment: str | None
    service: str | None
    release: str | None
    error_type: str | None
    has_error: bool | None
    feedback: Feedback | None
    has_feedback: bool | None
    has_soft_error: bool | None
    soft_error: SoftError | None
    reaction: Reaction | None
    score: ScoreFilter | None
    metadata: Mapping[str, Scalar] | None
    since: Time | None
    until: Time | None
    min_duration_ns: int | None
    max_duration_ns: int | None
    min_tokens: int | None
    max_tokens: int | None
    min_cost: float | None
    max_cost: float | None
    root_only: bool
    text: str | None
    query: str | None


class ThreadFilters(TypedDict, total=False):
    """Which threads: all conditions given must hold.

    `user` is the user's identifier or id; `tag` may be several, and a thread must have all of them. `since` (inclusive)
    and `until` (exclusive) are about its latest activity. `query` must hold too; it is what the viewer's search box
    takes: `user:ada tag:vip since:7d`.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    id: str | None
    name: str | None
    user: str | None
    tag: str | Sequence[str]
    environment: str | None
    since: Time | None
    until: Time | None
    query: str | None


class ScoreFilters(TypedDict, total=False):
    """Which scores: all conditions given must hold.

    `min` and `max` are of the value, inclusive; `since` (inclusive) and `until` (exclusive) of the creation.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    name: str | None
    type: ScoreType | None
    label: str | None
    min: float | None
    max: float | None
    step_id: str | None
    step_ids: Sequence[str] | None
    since: Time | None
    until: Time | None


class RollupFilters(TypedDict, total=False):
    """Which steps are summed, and by what.

    `by` are fields that the steps of a sum have in common; `every` is hour or day (UTC), or None for all time together.
    `since` (inclusive) and `until` (exclusive) are about the step's start. The other fields must be equal. Without
    `percentiles` the answer takes less time.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]

    by: Sequence[Dimension]
    every: Every | None
    since: Time | None
    until: Time | None
    type: str | None
    name: str | None
    model: str | None
    user: str | None
    environment: str | None
    percentiles: bool


_steps: Final = TypeAdapter[StepFilters](StepFilters)
_threads: Final = TypeAdapter[ThreadFilters](ThreadFilters)
_scores: Final = TypeAdapter[ScoreFilters](ScoreFilters)
_rollups: Final = TypeAdapter[RollupFilters](RollupFilters)


def step_filter(given: StepFilters) -> tuple[StepFilter, Query]:
    """Return the store's filter, and what a server is asked. Raises `UsageError` that names what is wrong."""
    checked = _checked(_steps, given)
    query: str | None = checked.pop("query", None)
    filter = StepFilter(**checked)
    _check_ids(filter)
    return with_query(filter, query), [*query_of(filter), *([] if query is None else [("q", query)])]


def thread_filter(given: ThreadFilters) -> tuple[ThreadFilter, Query]:
    """Return the store's filter, and what a server is asked. Raises `UsageError` that names what is wrong."""
    checked = _checked(_threads, given)
    query: str | None = checked.pop("query", None)
    filter = ThreadFilter(**checked)
    return with_thread_query(filter, query), [*query_of(filter), *([] if query is None else [("q", query)])]


def score_query(given: ScoreFilters) -> ScoreQuery:
    """Return the store's filter. Raises `UsageError` that names what is wrong."""
    filter = ScoreQuery(**_checked(_scores, given))
    _check_ids(filter)
    return filter


def _check_ids(filter: StepFilter | ScoreQuery) -> None:
    for name in _IDS:
        many: Sequence[str] | None = getattr(filter, name, None)
        if many is not None and len(many) > MAX_PAGE:
            raise UsageError(f"{name} may be {MAX_PAGE} at most, got {len(many)}")


def rollup_query(given: RollupFilters) -> RollupQuery:
    """Return the store's query. Raises `UsageError` that names what is wrong."""
    return RollupQuery(**_checked(_rollups, given))


def check_page(limit: int, order: str) -> None:
    """Raise `UsageError` for a page that no list has."""
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        raise UsageError(f"limit must be 1 to {MAX_PAGE}, got {shown(limit)}")
    if order not in ("asc", "desc"):
        raise UsageError(f"order must be 'asc' or 'desc', got {shown(order)}")


def _checked(adapter: TypeAdapter[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    try:
        adapter.validate_python(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = str(first["loc"][0])
        raise UsageError(f"{name}={shown(given.get(name))}: {first['msg']}") from None
    return {
        f"{name}_ns" if name in ("since", "until") else name: _time(name, value)
        if name in ("since", "until")
        else value
        for name, value in given.items()
    }


def _time(name: str, value: Time | None) -> int | None:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError(f"{name}={value!r} has no offset from UTC, as datetime.now(UTC) has")
        value = (value - _EPOCH) // timedelta(microseconds=1) * 1000
    if value is not None and value < 0:
        raise UsageError(f"{name} is before 1970")
    return value


def query_of(filter: StepFilter | ThreadFilter | ScoreQuery | RollupQuery) -> Query:
    """Return a filter as a URL's query."""
    query: Query = []
    for each in fields(filter):
        value: object = getattr(filter, each.name)
        if value is None or (isinstance(value, bool) and value is each.default):
            continue
        if isinstance(value, ScoreFilter):
            query += _of_score(value)
        elif isinstance(value, Mapping):
            query.append((each.name, json.encode(dict(cast("Mapping[str, Scalar]", value))).decode()))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            items = cast("Sequence[str]", value)
            # None at all of these keep no step, as does an id that no step has.
            query += [(each.name, item) for item in items] or ([(each.name, "")] if each.name in _IDS else [])
        else:
            query.append((each.name, _text(value)))
    return query


def _of_score(score: ScoreFilter) -> Query:
    bounds: list[tuple[str, object]] = [("min", score.min), ("max", score.max), ("label", score.label)]
    return [("score", score.name), *((f"score_{name}", _text(value)) for name, value in bounds if value is not None)]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
