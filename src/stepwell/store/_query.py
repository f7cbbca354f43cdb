"""SQL of the embedded store's lists: filters, keyset pages and their cursors.

What must stay true: a page costs the page. It is found by (time, number) after the cursor's, in an index that holds the
rows in that order, so rows with equal times are neither lost nor repeated, and depth costs nothing.
"""

# ruff: noqa: S608 (filter is the word of the protocol; what is put into SQL are our own column names)

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell.model import MESSAGE_TYPES
from stepwell.store import MAX_PAGE, Order, Scalar, ScoreQuery, StepFilter, ThreadFilter
from stepwell.store._filters import several
from stepwell.store._rows import pack_id, pack_trace_id

__all__ = [
    "MAX_INTEGER",
    "Keyset",
    "Where",
    "has_index",
    "id_range",
    "select_scores",
    "select_steps",
    "select_thread_ids",
    "select_threads",
]

MAX_INTEGER: Final = (1 << 63) - 1  # the largest SQLite takes
_CURSOR: Final = struct.Struct(">2sqq")  # list and order, time, number
# What `Store.runs` lists; the words are those of the index `steps_top`, or SQLite would not use it.
_TOP: Final = "(s.parent_id IS NULL OR s.root_run_id = s.id)"
MESSAGES: Final = ", ".join(f"'{name}'" for name in sorted(MESSAGE_TYPES))
_EQUAL: Final = (
    *("name", "model", "provider", "thread_id", "user", "environment", "service", "release"),
    *("error_type", "feedback"),
)
_ONE_OF: Final = ("type", "status", "agent_id")
_NARROW: Final = (
    *("ids", "trace_ids", "trace_id", "root_run_id", "parent_id", "thread_id", "user", "agent_id", "model", "tag"),
    *("error_type", "has_error", "feedback", "has_feedback", "root_only"),
)
_DURATION: Final = "s.end_ns - nullif(s.start_ns, -1)"
_BOUNDS: Final = {
    "min_duration_ns": f"{_DURATION} >= ?",
    "max_duration_ns": f"{_DURATION} <= ?",
    "min_tokens": "s.total_tokens >= ?",
    "max_tokens": "s.total_tokens <= ?",
    "min_cost": "s.cost >= ?",
    "max_cost": "s.cost <= ?",
}
_HAS_ERROR: Final = "(s.status IS 'failed' OR s.error_type IS NOT NULL OR s.error_message IS NOT NULL)"
_CREATED: Final = "ifnull(c.created_ns, -1)"  # the words of the indexes
_OF_STEP: Final = "SELECT 1 FROM step_tags WHERE tag {tag} AND start_ns = s.start_ns AND step = s.number"


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
        return self._name(self._mark, time_ns, number)

    def previous(self, time_ns: int, number: int) -> str:
        """Return the cursor that, in the other order, continues with what is before this row."""
        other = b"a" if self.direction == "DESC" else b"d"
        return self._name(self._mark[:1] + other, time_ns, number)

    def _name(self, mark: bytes, time_ns: int, number: int) -> str:
        return base64.urlsafe_b64encode(_CURSOR.pack(mark, time_ns, number)).decode()


def id_range(packed: bytearray | bytes) -> tuple[bytearray, bytearray]:
    """Return the first and last id that share the first 8 bytes, which is to say a trace."""
    head = bytearray(packed[:8])
    return head + bytes(8), head + b"\xff" * 8


def select_steps(
    columns: str, filter: StepFilter, page: Keyset, *, join: str = "", among: str | None = None
) -> tuple[str, list[Any]]:
    """Return the statement of a page of steps: `number`, `start_ns`, then the columns; one row more than the page.

    `among` is a JSON array of the only numbers there may be: those of the steps that the filter's `text` finds.
    """
    where, tags = _where_steps(filter), several(filter.tag)
    _add_among(where, among)
    lead = None  # a table of some steps that is in the list's order
    if not (filter.ids or filter.thread_id or filter.trace_id or filter.root_run_id or filter.parent_id):
        is_soft = filter.has_soft_error or filter.soft_error or filter.reaction
        lead = "step_tags" if tags else "soft_errors" if is_soft and not filter.root_only else None
    if lead == "step_tags":
        where.add("t.tag = ?", tags[0])
    _add_tags(where, tags[lead == "step_tags" :])
    source = f"{lead} t CROSS JOIN steps s ON s.number = t.step" if lead else "steps s"
    keys = ("t.start_ns", "t.step") if lead else ("s.start_ns", "s.number")
    _add_times(where, filter, keys[0])
    return _page(f"s.number, s.start_ns, {columns}", f"{source} {join}", keys, where, page)


def select_threads(columns: str, filter: ThreadFilter, page: Keyset) -> tuple[str, list[Any]]:
    """Return the statement of a page of threads: `number`, `active_ns`, the columns; one row more than the page."""
    keys, where = ("t.active_ns", "t.number"), _where_threads(filter)
    _add_times(where, filter, keys[0])
    return _page(f"t.number, t.active_ns, {columns}", "threads t", keys, where, page)


def select_scores(columns: str, filter: ScoreQuery, page: Keyset) -> tuple[str, list[Any]]:
    """Return the statement of a page of scores: `number`, creation, the columns; one row more than the page."""
    keys, where = (_CREATED, "c.number"), Where()
    for term, value in (
        ("c.name = ?", filter.name),
        ("c.type = ?", filter.type),
        ("c.label = ?", filter.label),
        ("c.step_id = ?", None if filter.step_id is None else pack_id(filter.step_id)),
        ("c.value >= ?", None if filter.min is None else _number(filter.min)),
        ("c.value <= ?", None if filter.max is None else _number(filter.max)),
    ):
        if value is not None:
            where.add(term, value)
    if filter.step_ids is not None:
        ids = _some("step_ids", filter.step_ids)
        where.add(f"c.step_id IN ({', '.join('?' * len(ids))})", *map(pack_id, ids))
    _add_times(where, filter, keys[0])
    if page.after is not None:  # implied by what `_page` adds, but SQLite compares no pairs in an index of expressions
        where.add(f"{_CREATED} {'<=' if page.direction == 'DESC' else '>='} ?", page.after[0])
    return _page(f"c.number, {_CREATED}, {columns}", "scores c", keys, where, page)


def _page(columns: str, source: str, keys: tuple[str, str], where: Where, page: Keyset) -> tuple[str, list[Any]]:
    time, number = keys
    if page.after is not None:
        where.add(f"({time}, {number}) {'<' if page.direction == 'DESC' else '>'} (?, ?)", *page.after)
    order = f"ORDER BY {time} {page.direction}, {number} {page.direction}"
    return f"SELECT {columns} FROM {source} WHERE {where.sql()} {order} LIMIT ?", [*where.values, page.limit + 1]


def select_thread_ids(filter: StepFilter, among: str | None) -> tuple[str, list[Any]]:
    """Return the statement of the threads of the steps that a filter keeps; see `select_steps`."""
    where = _where_steps(filter)
    _add_among(where, among)
    _add_tags(where, several(filter.tag))
    _add_times(where, filter, "s.start_ns")
    return f"SELECT s.thread_id FROM steps s WHERE {where.sql()}", where.values


def _add_among(where: Where, among: str | None) -> None:
    if among is not None:
        where.add("s.number IN (SELECT value FROM json_each(?))", among)


def _add_tags(where: Where, tags: Sequence[str]) -> None:
    for tag in tags:
        where.add(f"EXISTS ({_OF_STEP.format(tag='= ?')})", tag)


def _add_times(where: Where, filter: StepFilter | ThreadFilter | ScoreQuery, column: str) -> None:
    if filter.since_ns is not None:
        where.add(f"{column} >= ?", min(filter.since_ns, MAX_INTEGER))
    if filter.until_ns is not None:
        where.add(f"{column} < ?", min(filter.until_ns, MAX_INTEGER))


def _where_steps(filter: StepFilter, *, runs: bool = False) -> Where:
    """Return the conditions on `steps s`, but for tags and times, whose columns depend on the statement; `runs` says
    that it is runs that are asked for.
    """
    where, runs = Where(), runs or filter.root_only
    for column in _EQUAL:
        if (value := getattr(filter, column)) is not None:
            where.add(f"{_column(column, filter)} = ?", value)
    for bound, term in _BOUNDS.items():
        if (value := getattr(filter, bound)) is not None:
            where.add(term, _number(value))
    for column in _ONE_OF:
        if wanted := several(getattr(filter, column)):
            where.add(f"{_column(column, filter)} IN ({', '.join('?' * len(wanted))})", *wanted)
    if not filter.ids and (statuses := several(filter.status)) and "success" not in statuses:
        where.add("s.status <> 'success'")  # implied, but only this lets SQLite use `steps_unsuccessful`
    _add_flags(where, filter, runs=runs)
    _add_ids(where, filter)
    _add_judgements(where, filter)
    if filter.metadata:
        _add_metadata(where, filter.metadata)
    _add_unwanted(where, filter, runs=runs)
    return where


def _add_unwanted(where: Where, filter: StepFilter, *, runs: bool) -> None:
    for other in filter.none_of:
        unwanted = _where_steps(other, runs=runs)
        _add_tags(unwanted, several(other.tag))
        _add_times(unwanted, other, "s.start_ns")
        where.add(f"NOT ifnull(({unwanted.sql()}), 0)", *unwanted.values)


def _column(name: str, filter: StepFilter) -> str:
    """Return a column, behind a plus where SQLite, to which all indexes are alike, had better use that of something
    else: of the service, as most steps may be of the same one; and of all, where ids say which steps there may be.
    """
    statuses = several(filter.status)
    is_narrowed = any(getattr(filter, other) for other in _NARROW) or (statuses and "success" not in statuses)
    return f"+s.{name}" if filter.ids or (name == "service" and is_narrowed) else f"s.{name}"


def has_index(filter: StepFilter) -> bool:
    """Tell whether there is an index, but for that on time, that finds steps by something of the filter."""
    statuses = several(filter.status)
    is_soft = filter.has_soft_error or filter.soft_error or filter.reaction
    is_narrowed = any(getattr(filter, name) for name in _NARROW if name != "root_only")
    return bool(is_narrowed or is_soft or filter.service or (statuses and "success" not in statuses))


def _add_flags(where: Where, filter: StepFilter, *, runs: bool) -> None:
    if filter.root_only:
        where.add(_TOP)
    if filter.outline_only:
        where.add(f"({_TOP} OR s.type IN ({MESSAGES}))")
    if filter.has_error is not None:
        where.add(_HAS_ERROR if filter.has_error else f"NOT {_HAS_ERROR}")
    if filter.has_feedback is not None:
        where.add("s.feedback IS NOT NULL" if filter.has_feedback else "s.feedback IS NULL")
    _add_soft_errors(where, filter, runs=runs)
    if tags := several(filter.tag_any):
        places = ", ".join("?" * len(tags))
        where.add(f"EXISTS ({_OF_STEP.format(tag=f'IN ({places})')})", *tags)


def _add_soft_errors(where: Where, filter: StepFilter, *, runs: bool) -> None:
    """Keep steps by their soft errors; runs by those of any step in them."""
    found = f"EXISTS (SELECT 1 FROM soft_errors WHERE {'run IN (s.id, s.trace_id)' if runs else 'step = s.number'}"
    wanted = _of_soft_error(filter)
    if filter.has_soft_error or wanted.terms:
        where.add(" AND ".join([found, *wanted.terms]) + ")", *wanted.values)
    if filter.has_soft_error is False:
        where.add(f"NOT {found})")


def _of_soft_error(filter: StepFilter) -> Where:
    where = Where()
    for column, value in (("kind", filter.soft_error), ("reaction", filter.reaction)):
        if value is not None:
            where.add(f"{column} = ?", value)
    return where


def _add_ids(where: Where, filter: StepFilter) -> None:
    if filter.ids is not None:
        ids = _some("ids", filter.ids)
        where.add(f"s.id IN ({', '.join('?' * len(ids))})", *map(pack_id, ids))
    if filter.trace_ids is not None:
        _add_traces(where, _some("trace_ids", filter.trace_ids))
    if filter.trace_id is not None:
        _link(where, "trace_id", pack_trace_id(filter.trace_id))
    if filter.root_run_id is not None:
        _link(where, "root_run_id", pack_id(filter.root_run_id))
    if filter.parent_id is not None:
        _link(where, "parent_id", pack_id(filter.parent_id))


def _some(name: str, ids: Sequence[str]) -> tuple[str, ...]:
    found = several(ids)
    if len(found) > MAX_PAGE:
        raise UsageError(f"{name} may be {MAX_PAGE} at most, got {len(found)}")
    return found


def _add_traces(where: Where, ids: Sequence[str]) -> None:
    """Keep the steps of any of the traces: the rows of `_link` for each, looked up in the statement's own table."""
    near = [packed for id in ids if not isinstance(packed := pack_trace_id(id), str)]
    every = [pack_trace_id(id) for id in ids]
    values: list[Any] = [value for packed in near for value in (*id_range(packed), packed)]
    rows = ", ".join(["(?, ?, ?)"] * len(near)) or "(NULL, NULL, NULL)"
    where.add(
        f"s.number IN (SELECT x.number FROM (VALUES {rows}) v CROSS JOIN steps x "
        "ON x.id BETWEEN v.column1 AND v.column2 AND x.trace_id = v.column3 "
        f"UNION ALL SELECT number FROM steps WHERE stray AND trace_id IN ({', '.join('?' * len(every))}))",
        *values,
        *every,
    )


def _add_judgements(where: Where, filter: StepFilter) -> None:
    if (score := filter.score) is None:
        return
    terms = Where(["step_id = s.id", "+name = ?"], [score.name])  # + or SQLite reads all scores of the name
    for term, value in (("value >= ?", score.min), ("value <= ?", score.max), ("label = ?", score.label)):
        if value is not None:
            terms.add(term, value)
    where.add(f"EXISTS (SELECT 1 FROM scores WHERE {terms.sql()})", *terms.values)


def _add_metadata(where: Where, wanted: Mapping[str, Scalar]) -> None:
    terms = Where(["number = s.number"])
    for dotted, value in wanted.items():
        path = _json_path(dotted)
        if isinstance(value, bool):
            terms.add(f"json_type(metadata, ?) = '{str(value).lower()}'", path)
        elif value is None:
            terms.add("json_type(metadata, ?) = 'null'", path)
        else:
            types = "'text'" if isinstance(value, str) else "'integer', 'real'"
            terms.add(f"json_type(metadata, ?) IN ({types})", path)
            terms.add("json_extract(metadata, ?) = ?", path, value if isinstance(value, str) else _number(value))
    where.add(f"EXISTS (SELECT 1 FROM payload WHERE {terms.sql()})", *terms.values)


def _json_path(dotted: str) -> str:
    """Return the path that SQLite reads; it has no way to write a quotation mark, or a backslash, in a key."""
    keys = dotted.split(".")
    if '"' in dotted or "\\" in dotted or not all(keys):
        raise UsageError(f"metadata path {dotted!r}: expected keys joined by dots, without quotation marks")
    return "$" + "".join(f'."{key}"' for key in keys)


def _number(value: float) -> float:
    """Return the number, or the nearest that SQLite takes."""
    return value if isinstance(value, float) else max(min(value, MAX_INTEGER), -MAX_INTEGER)


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
    if filter.id is not None:
        where.add("t.id = ?", filter.id)
    if filter.name is not None:
        where.add("t.name = ?", filter.name)
    if filter.environment is not None:
        where.add("t.environment = ?", filter.environment)
    if filter.user is not None:
        where.add("(t.user_name = ? OR json_extract(t.user, '$.id') = ?)", filter.user, filter.user)
    for tag in several(filter.tag):
        where.add("EXISTS (SELECT 1 FROM json_each(t.tags) WHERE value = ?)", tag)
    return where
