"""Sums of steps by hour and day, kept beside them: counting what came, and answering from what was counted.

What must stay true:

1. Counting is off the ingest path, in transactions of some milliseconds. Who adds, changes or deletes steps need not
   know of it: triggers note what was counted and changed.
2. An answer is exact at any time: the sums, plus what changed since, plus the steps that were not counted yet.
3. Whole days come from rows of days, whole hours at their edges from rows of hours, and only what is left of the range
   from the steps.
"""

# ruff: noqa: S608 (what is put into SQL are our own table and column names)

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from stepwell.errors import UsageError
from stepwell.store._filters import StepFilter, several
from stepwell.store._query import MAX_INTEGER, Where
from stepwell.store._sketch import percentiles
from stepwell.store._summaries import DAY_NS, HOUR_NS, MAX_ROLLUPS, Dimension, Rollup, RollupQuery
from stepwell.store._tally import COUNTED_COLUMNS, SUMS, USER_OF, Cell, Key, Sums, Tally
from stepwell.store._users import UserTally, count_users

__all__ = ["HOUR_OF", "UNCOUNTED", "count_more", "count_statuses", "read_rollups", "where_summed"]

_ROWS: Final = 500
_TABLES: Final[dict[str, tuple[Dimension, ...]]] = {
    "rollups": ("type", "name", "model", "environment"),
    "user_rollups": ("user", "environment"),
}
_SUMMED: Final = ", ".join(f"sum({name})" for name in SUMS)
# A sum that needs more than 64 bits is an error in SQL, so that numbers as large as hostile ones are summed by halves.
_SUMMED_HALVES: Final = ", ".join(
    f"sum({name})" if name == "cost" else f"sum({name} >> 32), sum({name} & 4294967295)" for name in SUMS
)
_DIMENSIONS: Final[tuple[Dimension, ...]] = ("type", "name", "model", "user", "environment")
_SPANS: Final = {3600: HOUR_NS, 86400: DAY_NS}
_NOT_SHOWN: Final = frozenset(("success", "failed", "cost", "top", "failed_top"))  # under this name, or not at all
_SHARES: Final = (0.5, 0.9, 0.95, 0.99)
_STEPS: Final = f"SELECT {USER_OF}, {', '.join(f's.{name}' for name in COUNTED_COLUMNS)} FROM steps s"
_NEXT_STEPS: Final = f"SELECT s.number, {_STEPS.removeprefix('SELECT ')} WHERE s.number > ? ORDER BY s.number LIMIT ?"
_RECOUNTS: Final = f"SELECT user, {', '.join(COUNTED_COLUMNS)} FROM recounts s"
_NEXT_RECOUNTS: Final = (
    f"SELECT number, sign, step, user, {', '.join(COUNTED_COLUMNS)} FROM recounts "
    "WHERE number > ? ORDER BY number LIMIT ?"
)
UNCOUNTED: Final = "s.number > (SELECT number FROM counted)"
HOUR_OF: Final = f"CASE WHEN start_ns < 0 THEN -1 ELSE start_ns - start_ns % {HOUR_NS} END"  # that steps are counted in


def count_more(db: sqlite3.Connection, turn_s: float) -> bool:
    """Count steps for about so long, inside the caller's transaction; tell whether nothing is left to count."""
    ends = time.perf_counter() + turn_s
    tally, users = Tally(), UserTally()
    (counted,) = db.execute("SELECT number FROM counted").fetchone()
    recounted = _take_recounts(db, tally, users, ends)
    last, done = counted, False
    while not done and time.perf_counter() < ends:
        rows = db.execute(_NEXT_STEPS, (last, _ROWS)).fetchall()
        tally.add(row[1:] for row in rows)
        users.add((row[0], row[1:]) for row in rows)
        last = rows[-1][0] if rows else last
        done = len(rows) < _ROWS
    for table, dimensions in _TABLES.items():
        _write(db, table, dimensions, tally)
    if last > counted:
        db.execute("UPDATE counted SET number = ?", (last,))
    if recounted:
        db.execute("DELETE FROM recounts WHERE number <= ?", (recounted,))
    count_users(db, users, last)
    return done


def _take_recounts(db: sqlite3.Connection, tally: Tally, users: UserTally, ends: float) -> int:
    """Count what was noted of counted steps; return the number of the last note."""
    recounted = 0
    while rows := db.execute(_NEXT_RECOUNTS, (recounted, _ROWS)).fetchall():
        recounted = rows[-1][0]
        for sign in (1, -1):
            tally.add((row[3:] for row in rows if row[1] == sign), sign)
        users.note(row[1:] for row in rows)
        if time.perf_counter() > ends:
            break
    return int(recounted)


def _write(db: sqlite3.Connection, table: str, dimensions: tuple[Dimension, ...], tally: Tally) -> None:
    sums: dict[tuple[Any, ...], Sums] = {}
    with_durations = table == "rollups"
    for key, cell in tally.cells.items():
        values = [getattr(key, name) for name in dimensions]
        for span_s, span_ns in _SPANS.items():
            start_ns = key.hour_ns - key.hour_ns % span_ns if key.hour_ns >= 0 else -1
            place = (span_s, start_ns, *values)
            if place not in sums:
                sums[place] = Sums()
            sums[place].add_cell(key, cell, buckets=with_durations)
    names = (*SUMS, "durations") if with_durations else SUMS
    same = " AND ".join(f"{name} IS ?" for name in ("span_s", "start_ns", *dimensions))
    select = f"SELECT number, {', '.join(names)} FROM {table} WHERE {same}"
    update = f"UPDATE {table} SET {', '.join(f'{name} = ?' for name in names)} WHERE number = ?"
    columns = ("span_s", "start_ns", *dimensions, *names)
    insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
    for place, added in sums.items():
        row = db.execute(select, place).fetchone()
        if row is not None:
            added.add_numbers(row[1 : len(SUMS) + 1])
            added.add_durations(row[-1] if with_durations else None)
        stored = [*added.stored(), added.durations()] if with_durations else added.stored()
        if added.numbers[0] == 0:
            if row is not None:
                db.execute(f"DELETE FROM {table} WHERE number = ?", (row[0],))
        elif row is None:
            db.execute(insert, (*place, *stored))
        else:
            db.execute(update, (*stored, row[0]))


class _Range(NamedTuple):
    """Part of a query's range of time, as (span in s, first start, end); None where it has no bounds."""

    span_s: int
    since_ns: int | None
    until_ns: int | None


def _ranges(query: RollupQuery) -> tuple[list[_Range], list[tuple[int, int]], tuple[int, int] | None]:
    """Return the ranges of rows, those of steps, and the one that the ranges of rows make together (None: all)."""
    if query.since_ns is None and query.until_ns is None:
        return [_Range(3600 if query.every == "hour" else 86400, None, None)], [], None
    since_ns = max(query.since_ns or 0, 0)
    until_ns = MAX_INTEGER if query.until_ns is None else min(query.until_ns, MAX_INTEGER)
    first, end = -(-since_ns // HOUR_NS) * HOUR_NS, until_ns // HOUR_NS * HOUR_NS
    if first >= end:
        return [], [(since_ns, until_ns)], (0, 0)
    steps = [(since_ns, first), (end, until_ns)]
    first_day, end_day = -(-first // DAY_NS) * DAY_NS, end // DAY_NS * DAY_NS
    if query.every == "hour" or first_day >= end_day:
        rows = [_Range(3600, first, end)]
    else:
        rows = [_Range(3600, first, first_day), _Range(86400, first_day, end_day), _Range(3600, end_day, end)]
    kept = [part for part in rows if part.since_ns != part.until_ns]
    return kept, [part for part in steps if part[0] < part[1]], (first, end)


def read_rollups(db: sqlite3.Connection, query: RollupQuery) -> list[Rollup]:
    """Return the sums of a query, by start and then by its fields. Raises `UsageError` for too many."""
    _check(query)
    asked = {*query.by, *(name for name in _DIMENSIONS if getattr(query, name) is not None)}
    table = next((table for table, names in _TABLES.items() if asked <= {*names}), None)
    ranges, edges, middle = _ranges(query)
    groups = _Groups(query)
    where = Where()
    for name in _DIMENSIONS:
        if (value := getattr(query, name)) is not None:
            where.add(f"{USER_OF if name == 'user' else f's.{name}'} = ?", value)
    tally = Tally()
    for since_ns, until_ns in edges:
        _tally(db, tally, where, "s.start_ns >= ? AND s.start_ns < ?", since_ns, until_ns)
    # A plus sign keeps SQLite from the index on it: the rows above a number are few.
    within, bounds = ("1", ()) if middle is None else ("+s.start_ns >= ? AND +s.start_ns < ?", middle)
    if table is None:
        _tally(db, tally, where, within.replace("+", ""), *bounds)
    elif ranges:
        for part in ranges:
            rows = _Rows(table, part, query)
            groups.add_sums(rows.sums(db))
            if groups.timed:
                groups.add_durations(rows.select(db, "durations", "durations IS NOT NULL"))
        _tally(db, tally, where, f"{UNCOUNTED} AND {within}", *bounds)
        for sign in (1, -1):
            # The user is the one that was noted, not the one that the thread has now.
            terms = [term.replace(USER_OF, "s.user") for term in where.terms]
            condition = " AND ".join([*terms, f"s.sign = {sign}", within])
            tally.add(db.execute(f"{_RECOUNTS} WHERE {condition}", (*where.values, *bounds)), sign)
    for key, cell in tally.cells.items():
        groups.add_cell(key, cell)
    return groups.rollups()


def _check(query: RollupQuery) -> None:
    for name in query.by:
        if name not in _DIMENSIONS:
            raise UsageError(f"by must be of {', '.join(_DIMENSIONS)}, got {name!r}")
    if query.every not in {"hour", "day", None}:
        raise UsageError(f"every must be 'hour', 'day' or None, got {query.every!r}")


def _tally(db: sqlite3.Connection, tally: Tally, where: Where, term: str, *values: int) -> None:
    tally.add(db.execute(f"{_STEPS} WHERE {' AND '.join([*where.terms, term])}", (*where.values, *values)))


class _Rows(NamedTuple):
    """Which rows a query reads, and what of them it groups."""

    table: str
    part: _Range
    query: RollupQuery

    def select(self, db: sqlite3.Connection, columns: str, term: str = "1", *, grouped: bool = False) -> sqlite3.Cursor:
        """Return the start and the fields asked for, and other columns."""
        _, part, query = self
        where = Where(["span_s = ?", term], [part.span_s])
        if part.since_ns is not None:
            where.add("start_ns >= ? AND start_ns < ?", part.since_ns, part.until_ns)
        for name in _TABLES[self.table]:
            if (value := getattr(query, name)) is not None:
                where.add(f"{name} = ?", value)
        fields = ", ".join(["start_ns" if query.every else "NULL", *query.by])
        group = f"GROUP BY {fields}" if grouped and (query.every or query.by) else ""
        return db.execute(f"SELECT {fields}, {columns} FROM {self.table} WHERE {where.sql()} {group}", where.values)

    def sums(self, db: sqlite3.Connection) -> Iterator[tuple[Any, ...]]:
        """Yield the start, the fields asked for, and the sums of rows that have these in common."""
        try:
            yield from self.select(db, _SUMMED, grouped=True).fetchall()
        except sqlite3.OperationalError as error:
            if "integer overflow" not in str(error):
                raise
            fields = len(self.query.by) + 1
            for row in self.select(db, _SUMMED_HALVES, grouped=True):
                numbers = iter(row[fields:])
                sums = [next(numbers) if name == "cost" else (next(numbers) << 32) + next(numbers) for name in SUMS]
                yield (*row[:fields], *sums)


class _Groups:
    """Sums by the start and the fields that a query asks for."""

    def __init__(self, query: RollupQuery) -> None:
        self._by = tuple(query.by)
        self.timed = query.percentiles and "user" not in query.by and query.user is None
        self._span_ns = None if query.every is None else HOUR_NS if query.every == "hour" else DAY_NS
        self._groups: dict[tuple[Any, ...], Sums] = {}

    def _group(self, start_ns: int, values: Iterable[str | None]) -> Sums:
        span_ns = self._span_ns
        key = (None if span_ns is None or start_ns < 0 else start_ns - start_ns % span_ns, *values)
        found = self._groups.get(key)
        if found is None:
            if len(self._groups) >= MAX_ROLLUPS:
                raise UsageError(f"more than {MAX_ROLLUPS} rollups: ask for a shorter time, or by fewer fields")
            found = self._groups[key] = Sums()
        return found

    def add_sums(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add sums, after their start and fields."""
        fields = len(self._by) + 1
        for row in rows:
            if row[fields]:  # steps
                self._group(row[0], row[1:fields]).add_numbers(row[fields:])

    def add_durations(self, rows: Iterable[tuple[Any, ...]]) -> None:
        """Add durations, after their start and fields."""
        found: dict[tuple[Any, ...], Sums] = {}
        for *key, durations in rows:
            place = tuple(key)
            if place not in found:
                found[place] = self._group(place[0], place[1:])
            found[place].add_durations(durations)

    def add_cell(self, key: Key, cell: Cell) -> None:
        self._group(key.hour_ns, [getattr(key, name) for name in self._by]).add_cell(key, cell, buckets=self.timed)

    def rollups(self) -> list[Rollup]:
        found = [self._rollup(key, sums) for key, sums in self._groups.items() if sums.numbers[0]]
        found.sort(
            key=lambda row: (
                -1 if row.start_ns is None else row.start_ns,
                *(_sortable(getattr(row, name)) for name in self._by),
            )
        )
        return found

    def _rollup(self, key: tuple[Any, ...], sums: Sums) -> Rollup:
        numbers = dict(zip(SUMS, sums.numbers, strict=True))
        fields: dict[str, Any] = dict(zip(self._by, key[1:], strict=True))
        fields |= {name: _cut(numbers[name]) for name in SUMS if name not in _NOT_SHOWN}
        p50, p90, p95, p99 = percentiles(sums.counts(), _SHARES)
        return Rollup(
            start_ns=key[0],
            **fields,
            errors=numbers["failed"],
            cost=numbers["cost"],
            p50_ns=p50,
            p90_ns=p90,
            p95_ns=p95,
            p99_ns=p99,
        )


def _cut(number: float) -> int:
    return max(min(int(number), MAX_INTEGER), -MAX_INTEGER)


def _sortable(value: str | None) -> tuple[bool, str]:
    return value is not None, value or ""


def where_summed(filter: StepFilter) -> Where:
    """Return what a filter asks of the fields that rows of `rollups` have in common with steps."""
    where = Where()
    for name in _TABLES["rollups"]:
        if wanted := several(getattr(filter, name)):
            where.add(f"{name} IN ({', '.join('?' * len(wanted))})", *wanted)
    return where


def count_statuses(db: sqlite3.Connection) -> list[tuple[str | None, str | None, int]]:
    """Return how many steps have a type and a status, exactly, without reading those that were counted."""
    statuses = SUMS[1:6]
    sums = ", ".join(f"sum({name})" for name in ("steps", *statuses))
    counts: list[tuple[str | None, str | None, int]] = []
    for type_, steps, *known in db.execute(f"SELECT type, {sums} FROM rollups WHERE span_s = 86400 GROUP BY type"):
        counts += [(type_, status, count) for status, count in zip(statuses, known, strict=True)]
        counts.append((type_, None, steps - sum(known)))
    counts += db.execute("SELECT type, status, sum(sign) FROM recounts GROUP BY type, status")
    counts += db.execute(f"SELECT type, status, count(*) FROM steps s WHERE {UNCOUNTED} GROUP BY type, status")
    return counts
