"""Conditions from several places as one filter: what a query says, and what is given beside it.

What must stay true: a step is kept only where all of it holds; two conditions that one filter can't hold are refused.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import Any, Final, TypeVar

from stepwell.errors import UsageError
from stepwell.store import StepFilter, ThreadFilter
from stepwell.store._filters import several
from stepwell.store._language import QueryError, parse_query, split_terms

__all__ = ["thread_filter", "thread_query", "with_query", "with_thread_query"]

Filter = TypeVar("Filter", StepFilter, ThreadFilter)

_THREAD_MEMBERS: Final = {
    "name": "name",
    "user": "user",
    "tag": "tag",
    "environment": "environment",
    "since_ns": "since_ns",
    "until_ns": "until_ns",
    "thread_id": "id",
}


def with_query(filter: StepFilter, query: str | None) -> StepFilter:
    """Return a filter of which also a query must hold. Raises `UsageError` that names the character, or the field."""
    if query is None:
        return filter
    return _joined(filter, parse_query(query, now_ns=time.time_ns()))


def with_thread_query(filter: ThreadFilter, query: str | None) -> ThreadFilter:
    """Return a filter of threads of which also a query must hold; raises as `with_query`."""
    return filter if query is None else _joined(filter, thread_query(query))


def _joined(filter: Filter, asked: Filter) -> Filter:
    members: dict[str, Any] = {}
    for field in fields(filter):
        given, also = getattr(filter, field.name), getattr(asked, field.name)
        open = field.default  # what keeps all: None, False or no tags, while no ids at all keep nothing
        members[field.name] = (
            also if given == open else given if also in (open, given) else _both(field.name, given, also)
        )
    return type(filter)(**members)


def _both(name: str, given: Any, asked: Any) -> Any:
    """Return the condition that holds where both do. Raises `UsageError`."""
    if name.startswith(("min_", "since_")):
        return max(given, asked)
    if name.startswith(("max_", "until_")):
        return min(given, asked)
    if name in {"tag", "none_of"}:
        return (*several(given), *several(asked))
    if name in {"type", "ids", "trace_ids"}:
        common = [value for value in several(given) if value in several(asked)]
        if common or name != "type":
            return common
    if name == "text":
        return f"{given} {asked}"
    if name == "metadata" and not any(path in given and given[path] != asked[path] for path in asked):
        return {**given, **asked}
    raise UsageError(f"{name} is one thing in the query and another beside it")


def thread_filter(filter: StepFilter) -> ThreadFilter:
    """Return the same filter of threads. Raises `UsageError` where threads don't have its fields."""
    members: dict[str, Any] = {}
    for field in fields(filter):
        value = getattr(filter, field.name)
        if value == field.default:
            continue
        if field.name not in _THREAD_MEMBERS:
            raise UsageError(
                "threads are found by name, user, tag, env, thread, since and until; search steps for the rest"
            )
        members[_THREAD_MEMBERS[field.name]] = value
    return ThreadFilter(**members)


def thread_query(text: str) -> ThreadFilter:
    """Read a query of threads. Raises `QueryError`, also at the first term that threads don't have."""
    now_ns, at = time.time_ns(), 0
    filter = parse_query(text, now_ns=now_ns)
    for term in split_terms(text):
        at = text.index(term, at)
        try:
            thread_filter(parse_query(term, now_ns=now_ns))
        except UsageError as error:
            raise QueryError(str(error), at) from None
        at += len(term)
    return thread_filter(filter)
