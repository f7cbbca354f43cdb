"""When the steps of a list start: how many in each hour or day, from the sums that are kept beside them.

What must stay true: the counts are exact at any time, and an answer reads so many rows at most, whatever is in the
store. Where the sums of a whole range are more than that, the answer begins later and says so.
"""

# ruff: noqa: S608 (what is put into SQL are our own table and column names)

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from stepwell.store._filters import StepFilter, several
from stepwell.store._query import MAX_INTEGER, Where
from stepwell.store._rollups import HOUR_OF, UNCOUNTED, where_summed
from stepwell.store._summaries import DAY_NS, HOUR_NS, Histogram, HistogramBin

__all__ = ["read_histogram"]

_KNOWN: Final = ("type", "name", "model", "environment", "status", "since_ns", "until_ns")
_STATUSES: Final = ("success", "failed", "cancelled", "pending", "interrupted")
_HOURS_NS: Final = 3 * DAY_NS  # what is not longer is told by the hour
_MANY_HOURS_NS: Final = 30 * DAY_NS  # and what is not longer, where so many rows of sums are all
_MAX_HOURS: Final = 4_000
_MAX_SUMS: Final = 10_000  # rows of `rollups`
_MAX_FRESH: Final = 5_000  # steps, and notes of steps, that the sums do not have yet
_LATEST_NS: Final = MAX_INTEGER // DAY_NS * DAY_NS
_WITHIN: Final = "FROM rollups WHERE span_s = ? AND start_ns >= ? AND start_ns < ?"
# What lies beyond so many rows of a range: its start, found in the index alone.
_BEYOND: Final = f"SELECT start_ns {_WITHIN} ORDER BY start_ns DESC LIMIT 1 OFFSET ?"
_FRESH: Final = (
    ("1", f"steps s WHERE {UNCOUNTED}"),
    ("sign", "recounts"),
)


class _Part(NamedTuple):
    """A stretch of time that is told by hours or by days, from `first_ns` up to `end_ns`."""

    span_ns: int
    first_ns: int
    end_ns: int


class _Asked(NamedTuple):
    """A filter as the sums know it: the condition on a row's fields, and what is counted of a row of sums."""

    where: Where
    steps: str
    errors: str
    kept: str  # what must hold of a step beside the condition


@dataclass(slots=True)
class _Counts:
    """Steps and failed ones by start and end of an hour or day; `since_ns` is where they begin, if it is late."""

    bins: dict[tuple[int, int], list[int]] = field(default_factory=dict[tuple[int, int], list[int]])
    since_ns: int | None = None

    def add(self, start_ns: int, span_ns: int, steps: int, errors: int) -> None:
        found = self.bins.setdefault((start_ns, start_ns + span_ns), [0, 0])
        found[0] += steps
        found[1] += errors


def read_histogram(db: sqlite3.Connection, filter: StepFilter) -> Histogram | None:
    """Count the steps of a filter; None where the sums do not know it, or its range has no whole hour."""
    asked, since_ns, until_ns = _asked(filter), max(filter.since_ns or 0, 0), filter.until_ns
    first = -(-since_ns // HOUR_NS) * HOUR_NS
    late = first if first > since_ns else None
    end = _LATEST_NS if until_ns is None else min(until_ns, _LATEST_NS) // HOUR_NS * HOUR_NS
    if asked is None or first >= end or (fresh := _read_fresh(db, asked)) is None:
        return None
    counts = _read(db, asked, _by_days(first, end), fresh)
    late = counts.since_ns or late
    if starts := [start for (start, _), (steps, _) in counts.bins.items() if steps]:
        first, end = max(first, min(starts) // DAY_NS * DAY_NS), min(end, max(starts) + DAY_NS)
        if end - first <= _HOURS_NS or (
            end - first <= _MANY_HOURS_NS and not db.execute(_BEYOND, (3600, first, end, _MAX_HOURS)).fetchone()
        ):
            counts = _read(db, asked, [_Part(HOUR_NS, first, end)], fresh)
            late = counts.since_ns or late
    bins = [HistogramBin(*span, *found) for span, found in sorted(counts.bins.items()) if found[0]]
    undated = 0
    if filter.since_ns is None:
        undated = sum(steps for steps, _ in _read(db, asked, [_Part(DAY_NS, -1, 0)], fresh).bins.values())
    return Histogram(bins, late, undated)


def _asked(filter: StepFilter) -> _Asked | None:
    """Return the filter as the sums know it, None where they don't."""
    known: dict[str, Any] = dict.fromkeys(_KNOWN)
    if replace(filter, **known, root_only=False, none_of=()) != StepFilter():
        return None
    where = where_summed(filter)
    for other in filter.none_of:
        types = several(other.type)
        if not types or other != StepFilter(type=other.type):
            return None
        where.add(f"NOT ifnull(type IN ({', '.join('?' * len(types))}), 0)", *types)
    statuses = [name for name in _STATUSES if name in several(filter.status)]
    if filter.root_only and statuses not in ([], ["failed"]):
        return None
    if filter.root_only:
        return _Asked(where, "failed_top" if statuses else "top", "failed_top", f"is_top AND {_one_of(statuses)}")
    errors = "failed" if not statuses or "failed" in statuses else "0"
    return _Asked(where, " + ".join(statuses) or "steps", errors, _one_of(statuses))


def _one_of(statuses: Sequence[str]) -> str:
    named = ", ".join(f"'{status}'" for status in statuses)
    return f"status IN ({named})" if statuses else "1"


def _read_fresh(db: sqlite3.Connection, asked: _Asked) -> list[tuple[int, int, int]] | None:
    """Return hours, steps and failed ones that the sums do not have yet, or have too many; None for too many steps."""
    found: list[tuple[int, int, int]] = []
    kept = f"ifnull({asked.where.sql()} AND {asked.kept}, 0)"
    for sign, source in _FRESH:
        rows = f"SELECT start_ns, {sign} * {kept} AS steps, status IS 'failed' AS failed FROM {source} LIMIT ?"
        query = f"SELECT {HOUR_OF}, sum(steps), sum(steps * failed), count(*) FROM ({rows}) GROUP BY 1"
        hours = db.execute(query, (*asked.where.values, _MAX_FRESH + 1)).fetchall()
        if sum(hour[3] for hour in hours) > _MAX_FRESH:
            return None
        found += (hour[:3] for hour in hours)
    return found


def _by_days(first: int, end: int) -> list[_Part]:
    """Return the latest hours, the whole days before them, and the earliest hours of a range, each if there are any."""
    first_day, end_day = -(-first // DAY_NS) * DAY_NS, end // DAY_NS * DAY_NS
    parts = (_Part(HOUR_NS, end_day, end), _Part(DAY_NS, first_day, end_day), _Part(HOUR_NS, first, first_day))
    return [part for part in parts if part.first_ns < part.end_ns]


def _read(
    db: sqlite3.Connection, asked: _Asked, parts: Sequence[_Part], fresh: Sequence[tuple[int, int, int]]
) -> _Counts:
    """Count the steps of some parts, of which the latest comes first."""
    counts, left = _Counts(), _MAX_SUMS
    condition = asked.where.sql()
    counted = ", ".join(f"sum(CASE WHEN {condition} THEN {sum} ELSE 0 END)" for sum in (asked.steps, asked.errors))
    query = f"SELECT start_ns, {counted}, count(*) {_WITHIN} GROUP BY start_ns"
    for span_ns, begin, end in parts:
        span_s = span_ns // 1_000_000_000
        beyond = db.execute(_BEYOND, (span_s, begin, end, left)).fetchone()
        first = begin if beyond is None else beyond[0] + span_ns
        values = (*asked.where.values, *asked.where.values, span_s, first, end)
        for start, steps, errors, rows in db.execute(query, values):
            counts.add(start, span_ns, steps, errors)
            left -= rows
        for start, steps, errors in fresh:
            if first <= start < end:
                counts.add(start - start % span_ns if start >= 0 else -1, span_ns, steps, errors)
        if beyond is not None:
            counts.since_ns = first
            break
    return counts
