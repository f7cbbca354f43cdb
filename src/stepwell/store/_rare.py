"""Pages of steps by type, name or environment, which have no index of their own: only hours with such steps are read.

An index on each would cost every step what few searches need. The sums of days and hours know already when there were
steps like these, so a page of what is rare costs the hours in which it happened, and of what never was, nothing.

What must stay true: the rows are those of `select_steps` alone. An hour that may have a step that is asked for is never
left out: the sums tell of what is counted, the notes of what changed since, and all that is not counted is looked at.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from heapq import merge
from itertools import groupby
from typing import Any, Final, NamedTuple

from stepwell.store import StepFilter
from stepwell.store._query import MAX_INTEGER, Keyset, has_index, select_steps
from stepwell.store._rollups import HOUR_OF, UNCOUNTED, where_summed
from stepwell.store._summaries import DAY_NS, HOUR_NS

__all__ = ["select_by_hours"]

MAX_UNCOUNTED: Final = 20_000  # steps, whose hours are found in ten milliseconds; of more, all is read
_LATE: Final = f"""
    SELECT DISTINCT {HOUR_OF} FROM (
        SELECT start_ns FROM steps s WHERE {UNCOUNTED}
        UNION ALL SELECT start_ns FROM recounts WHERE sign = 1
    )
"""
_LATE_COUNT: Final = """
    SELECT ifnull((SELECT max(number) FROM steps), 0) - (SELECT number FROM counted)
        + (SELECT count(*) FROM (SELECT 1 FROM recounts LIMIT ?))
"""


class _Span(NamedTuple):
    """A range of time: from inclusive, until exclusive, in ns."""

    since_ns: int
    until_ns: int


def select_by_hours(
    db: sqlite3.Connection, columns: str, filter: StepFilter, page: Keyset
) -> list[tuple[Any, ...]] | None:
    """Return the rows of a page as `select_steps` tells; None where that is no slower."""
    if not (filter.type or filter.name or filter.environment) or has_index(filter):
        return None
    (late,) = db.execute(_LATE_COUNT, (MAX_UNCOUNTED,)).fetchone()
    if late >= MAX_UNCOUNTED:
        return None
    rows: list[tuple[Any, ...]] = []
    for span in _spans(db, filter, page):
        until_ns = span.until_ns if span.until_ns <= MAX_INTEGER else None  # the last of all times belongs to it
        within = replace(filter, since_ns=span.since_ns, until_ns=until_ns)
        rows += db.execute(*select_steps(columns, within, page)).fetchall()
        if len(rows) > page.limit:
            break
    return rows[: page.limit + 1]


def _spans(db: sqlite3.Connection, filter: StepFilter, page: Keyset) -> Iterator[_Span]:
    """Yield the ranges that may have steps of the page, in its order."""
    bounds = _bounds(filter, page)
    late = defaultdict[int, list[int]](list)
    for (hour_ns,) in db.execute(_LATE):
        late[_day_of(hour_ns)].append(hour_ns)
    backwards = page.direction == "DESC"
    counted = _counted(db, filter, 86400, _Span(_day_of(bounds.since_ns), bounds.until_ns), page.direction)
    days = merge(
        counted, sorted(((day_ns, 0) for day_ns in late), reverse=backwards), key=lambda day: day[0], reverse=backwards
    )
    for day_ns, group in groupby(days, key=lambda day: day[0]):
        if day_ns < 0:
            spans = [_Span(-1, 0)]
        elif sum(count for _, count in group) >= page.limit:
            spans = [_Span(day_ns, day_ns + DAY_NS)]
        else:
            hours = _counted(db, filter, 3600, _Span(day_ns, day_ns + DAY_NS), "ASC")
            spans = _together({hour_ns for hour_ns, _ in hours}.union(late[day_ns]))
        for since_ns, until_ns in reversed(spans) if backwards else spans:
            span = _Span(max(since_ns, bounds.since_ns), min(until_ns, bounds.until_ns))
            if span.since_ns < span.until_ns:
                yield span


def _bounds(filter: StepFilter, page: Keyset) -> _Span:
    """Return what the filter and the cursor leave of all time."""
    since_ns = -1 if filter.since_ns is None else max(filter.since_ns, -1)
    until_ns = MAX_INTEGER + 1 if filter.until_ns is None else min(filter.until_ns, MAX_INTEGER)
    if page.after is not None and page.direction == "DESC":
        until_ns = min(until_ns, page.after[0] + 1)
    elif page.after is not None:
        since_ns = max(since_ns, page.after[0])
    return _Span(since_ns, until_ns)


def _counted(
    db: sqlite3.Connection, filter: StepFilter, span_s: int, within: _Span, direction: str
) -> Iterator[tuple[int, int]]:
    """Yield the starts of days or hours with steps of the filter's type, name and environment, and how many."""
    where = where_summed(filter)
    where.add("span_s = ?", span_s)
    where.add("start_ns >= ? AND start_ns < ?", within.since_ns, min(within.until_ns, MAX_INTEGER))
    query = f"SELECT start_ns, sum(steps) FROM rollups WHERE {where.sql()} GROUP BY start_ns ORDER BY start_ns"
    yield from db.execute(f"{query} {direction}", where.values)


def _together(hours: set[int]) -> list[_Span]:
    """Return hours in their order, those that follow one another as one span."""
    spans: list[_Span] = []
    for hour_ns in sorted(hours):
        if spans and spans[-1].until_ns == hour_ns:
            spans[-1] = _Span(spans[-1].since_ns, hour_ns + HOUR_NS)
        else:
            spans.append(_Span(hour_ns, hour_ns + HOUR_NS))
    return spans


def _day_of(time_ns: int) -> int:
    return time_ns - time_ns % DAY_NS if time_ns >= 0 else -1
