"""SQL of the embedded store's lists: filters, keyset pages and their cursors.

What must stay true: a page costs the page. It is found by (time, number) after the cursor's, in an index that holds the
rows in that order, so rows with equal times are neither lost nor repeated, and depth costs nothing.
"""

# ruff: noqa: S608 (filter is the word of the protocol; what is put into SQL are our own column names)

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell.store import MAX_PAGE, Order, StepFilter, ThreadFilter
from stepwell.store._rows import pack_id, pack_trace_id

__all__ = ["Keyset", "id_range", "select_steps", "select_thread_ids", "select_threads"]

MAX_INTEGER: Final = (1 << 63) - 1  # the largest SQLite takes
_CURSOR: Final = struct.Struct(">2sqq")  # list and order, time, number
# What `Store.runs` lists; the words are those of the index `steps_top`, or SQLite would not use it.
_TOP: Final = "(s.parent_id IS NULL OR s.root_run_id = s.id)"


@dataclass(slots=True)
class Where:
    """Conditions joined by AND, and the values of their placeholders."""

    terms: list[str] = field(default_factory=list[str])
    values: list[Any] = field(default_factory=list[Any])

    def add(self, term: str, *values: Any) -> None:
        self.terms.append(term)
        self.values.extend(values)

    def sql(self) -> str:
        return " AND ".join(self.terms) or "1"


class Keyset:
    """Where a page begins, how long it is, and how the next one is named. `kind` is one letter a list."""

    def __init__(self, kind: str, limit: int, cursor: str | None, order: Order) -> None:
        if not 1 <= limit <= MAX_PAGE:
            raise UsageError(f"limit must be 1 to {MAX_PAGE}, got {limit}")
        if order not in {"asc", "desc"}:
            raise UsageError(f"order must be 'asc' or 'desc', got {order!r}")
        self.limit = limit
        self.direction = order.upper()
        self._mark = f"{kind}{order[0]}".encode()
        self.after = None if cursor is None else self._read(cursor)

    def _read(self, cursor: str) -> tuple[int, int]:
        try:
            mark, time_ns, number = _CURSOR.unpack(base64.b64decode(cursor, altchars=b"-_", validate=True))
        except (binascii.Error, struct.error, ValueError) as error:
            raise UsageError(f"cursor {cursor!r} is not one that a page gave") from error
        if mark != self._mark:
            raise UsageError(f"cursor {cursor!r} belongs to another list or order")
        return time_ns, number

    def next(self, time_ns: int, number: int) -> str:
        """Return the cursor that continues after this row."""
        return base64.urlsafe_b64encode(_CURSOR.pack(self._mark, time_ns, number)).decode()


def id_range(packed: bytearray | bytes) -> tuple[bytearray, bytearray]:
    """Return the first and last id that share the first 8 bytes, which is to say a trace."""
    head = bytearray(packed[:8])
    return head + bytes(8), head + b"\xff" * 8


def select_steps(columns: str, filter: StepFilter, page: Keyset, *, join: str = "") -> tuple[str, list[Any]]:
    """Return the statement of a page of steps: `number`, `start_ns`, then the columns; one row more than the page."""
    where, tags = _where_steps(filter), _several(filter.tag)
    lead = bool(tags) and not (filter.thread_id or filter.trace_id or filter.root_run_id or filter.parent_id)
    if lead:  # the tag's own table is in the list's order
        where.add("t.tag = ?", tags[0])
    _add_tags(where, tags[lead:])
    source = "step_tags t CROSS JOIN steps s ON s.number = t.step" if lead else "steps s"
    keys = ("t.start_ns", "t.step") if lead else ("s.start_ns", "s.number")
    _add_times(where, filter, keys[0])
    return _page(f"s.number, s.start_ns, {columns}", f"{source} {join}", keys, where, page)


def select_threads(columns: str, filter: ThreadFilter, page: Keyset) -> tuple[str, list[Any]]:
    """Return the statement of a page of threads: `number`, `active_ns`, the columns; one row more than the page."""
    keys, where = ("t.active_ns", "t.number"), _where_threads(filter)
    _add_times(where, filter, keys[0])
    return _page(f"t.number, t.active_ns, {columns}", "threads t", keys, where, page)


def _page(columns: str, source: str, keys: tuple[str, str], where: Where, page: Keyset) -> tuple[str, list[Any]]:
    time, number = keys
    if page.after is not None:
        where.add(f"({time}, {number}) {'<' if page.direction == 'DESC' else '>'} (?, ?)", *page.after)
    order = f"ORDER BY {time} {page.direction}, {number} {page.direction}"
    return f"SELECT {columns} FROM {source} WHERE {where.sql()} {order} LIMIT ?", [*where.values, page.limit + 1]


def select_thread_ids(filter: StepFilter) -> tuple[str, list[Any]]:
    """Return the statement of the threads of the steps that a filter keeps."""
    where = _where_steps(filter)
    _add_tags(where, _several(filter.tag))
    _add_times(where, filter, "s.start_ns")
    return f"SELECT s.thread_id FROM steps s WHERE {where.sql()}", where.values


def _add_tags(where: Where, tags: Sequence[str]) -> None:
    for tag in tags:
        where.add("EXISTS (SELECT 1 FROM step_tags WHERE tag = ? AND start_ns = s.start_ns AND step = s.number)", tag)


def _add_times(where: Where, filter: StepFilter | ThreadFilter, column: str) -> None:
    if filter.since_ns is not None:
        where.add(f"{column} >= ?", min(filter.since_ns, MAX_INTEGER))
    if filter.until_ns is not None:
        where.add(f"{column} < ?", min(filter.until_ns, MAX_INTEGER))


def _where_steps(filter: StepFilter) -> Where:
    """Return the conditions on `steps s`, but for tags and times, whose columns depend on the statement."""
    where = Where()
    for column in ("name", "model", "thread_id", "user", "environment", "service"):
        if (value := getattr(filter, column)) is not None:
            where.add(f"s.{column} = ?", value)
    if types := _several(filter.type):
        where.add(f"s.type IN ({', '.join('?' * len(types))})", *types)
    if filter.status is not None:
        where.add("s.status = ?", filter.status)
        if filter.status != "success":
            where.add("s.status <> 'success'")  # implied, but only this lets SQLite use `steps_unsuccessful`
    if filter.root_only:
        where.add(_TOP)
    if filter.trace_id is not None:
        _link(where, "trace_id", pack_trace_id(filter.trace_id))
    if filter.root_run_id is not None:
        _link(where, "root_run_id", pack_id(filter.root_run_id))
    if filter.parent_id is not None:
        _link(where, "parent_id", pack_id(filter.parent_id))
    return where


def _link(where: Where, column: str, packed: bytearray | str) -> None:
    stray = f"SELECT number FROM steps WHERE stray AND {column} = ?"
    if isinstance(packed, str):
        where.add(f"s.number IN ({stray})", packed)
    else:
        near = f"SELECT number FROM steps WHERE id BETWEEN ? AND ? AND {column} = ?"
        where.add(f"s.number IN ({near} UNION ALL {stray})", *id_range(packed), packed, packed)


def _where_threads(filter: ThreadFilter) -> Where:
    """Return the conditions on `threads t`, but for times."""
    where = Where()
    if filter.name is not None:
        where.add("t.name = ?", filter.name)
    if filter.environment is not None:
        where.add("t.environment = ?", filter.environment)
    if filter.user is not None:
        where.add("(t.user_name = ? OR json_extract(t.user, '$.id') = ?)", filter.user, filter.user)
    for tag in _several(filter.tag):
        where.add("EXISTS (SELECT 1 FROM json_each(t.tags) WHERE value = ?)", tag)
    return where


def _several(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
