"""The embedded store: one SQLite file, written by any number of threads and processes, read at any time.

The schema is told in `stepwell.store._schema`; what holds of every store in `stepwell.store`.
"""

# ruff: noqa: S608 (id, type and filter are the words of the protocol; SQL is made of our own column names)

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, TypeVar

from stepwell.errors import CorruptStoreError, NotFoundError, UsageError
from stepwell.model import Score, StepRecord, ThreadRecord
from stepwell.store import (
    MAX_PAGE,
    AddResult,
    Deleted,
    Facets,
    Found,
    Histogram,
    Judgements,
    Order,
    Page,
    Rollup,
    RollupQuery,
    RunRow,
    ScoreQuery,
    StepFilter,
    StepRow,
    StoreStats,
    ThreadFilter,
    ThreadRow,
    UserRow,
    _retention,
    _vacuum,
)
from stepwell.store._checking import find_lost
from stepwell.store._connections import Connections
from stepwell.store._deleting import forget_blobs, loose_blobs
from stepwell.store._export import export, find_by_prefix, read_steps
from stepwell.store._histogram import read_histogram
from stepwell.store._judgements import read_judgements
from stepwell.store._messages import Bodies, Numbers
from stepwell.store._query import Keyset, select_scores, select_steps, select_threads
from stepwell.store._questions import read_alike
from stepwell.store._rare import select_by_hours
from stepwell.store._rollups import count_more, count_statuses, read_rollups
from stepwell.store._rows import (
    FACET_SQL,
    FACETS,
    LIST_SQL,
    RECORD_SQL,
    SCORE_COLUMNS,
    THREAD_COLUMNS,
    THREAD_FACET_SQL,
    THREAD_FACETS,
    facets_of,
    pack_id,
    run_row,
    score_of_row,
    step_of_row,
    step_row,
    thread_of_row,
    thread_row,
    unpack_id,
)
from stepwell.store._run_sums import RunSums
from stepwell.store._schema import LAST_POSITION
from stepwell.store._search import index_more, sample_found, select_found
from stepwell.store._soft_errors import judge_more
from stepwell.store._tree import below, children_of, relatives
from stepwell.store._users import read_users
from stepwell.store._write import Intake

__all__ = ["SqliteStore"]

Item = TypeVar("Item", StepRow, RunRow, ThreadRow, Score)

_ALL_STEPS: Final = StepFilter()
_ALL_THREADS: Final = ThreadFilter()
_ALL_SCORES: Final = ScoreQuery()
_MIN_PREFIX: Final = 8
_ALL_TIME: Final = RollupQuery()
_TURN_S: Final = 0.03  # how long what is derived may keep a batch waiting

_THREAD: Final = ", ".join(f"t.{name}" for name in THREAD_COLUMNS)
_SELECT_RECORD: Final = f"SELECT {RECORD_SQL} FROM steps s LEFT JOIN payload p ON p.number = s.number WHERE s.id = ?"
_SELECT_SCORES: Final = f"SELECT {', '.join(SCORE_COLUMNS)} FROM scores WHERE step_id = ? ORDER BY number"
_SCORE: Final = ", ".join(f"c.{name}" for name in SCORE_COLUMNS)
_START: Final = "SELECT start_ns FROM steps WHERE thread_id = t.id AND start_ns >= 0 ORDER BY start_ns"
_NEAR: Final = (
    40  # steps at each end of a thread among which its messages are looked for: a page of threads costs those
)
_OF_THREAD: Final = "FROM steps WHERE thread_id = t.id ORDER BY start_ns"


def _said(column: str, type: str, order: str) -> str:
    """Return the preview of a thread's first or last message of a type, else of its first or last step with any."""
    near = f"(SELECT type, {column} AS preview {_OF_THREAD}{order}, number{order} LIMIT {_NEAR})"
    return f"(SELECT preview FROM {near} WHERE preview IS NOT NULL ORDER BY type IS '{type}' DESC LIMIT 1)"


_ASKED: Final = _said("CASE type WHEN 'user_message' THEN output_preview ELSE input_preview END", "user_message", "")
_ANSWERED: Final = _said("output_preview", "assistant_message", " DESC")
_SUMS: Final = (
    f"({_START} LIMIT 1), ({_START} DESC LIMIT 1), t.steps, t.errors, t.tokens, t.priced, t.cost, {_ASKED}, {_ANSWERED}"
)
_SPAN: Final = (
    "SELECT (SELECT min(start_ns) FROM steps WHERE start_ns >= 0), "
    "(SELECT max(start_ns) FROM steps WHERE start_ns >= 0)"
)
_CHANGES: Final = (  # of rows never updated, and of rows updated since
    f"SELECT s.number, {LIST_SQL} FROM steps s WHERE s.number > ? AND s.changed IS NULL ORDER BY s.number LIMIT ?",
    f"SELECT s.changed, {LIST_SQL} FROM steps s WHERE s.changed > ? ORDER BY s.changed LIMIT ?",
)


class SqliteStore:
    """A store in one SQLite file, or in memory (`path=None`) for as long as it is open.

    A batch that finds the file locked by another process waits up to `busy_deadline_s` before it raises `StoreError`.
    """

    def __init__(self, path: Path | None, *, read_only: bool = False, busy_deadline_s: float = 30.0) -> None:
        self.path = None if path is None else path.absolute()
        self._connections = Connections(self.path, read_only=read_only, busy_deadline_s=busy_deadline_s)
        self._numbers = Numbers()
        self._run_sums = RunSums()

    @classmethod
    def from_url(cls, url: str, *, read_only: bool = False) -> SqliteStore:
        """Open the store of a URL `sqlite:PATH` or `sqlite::memory:`."""
        path = url.partition(":")[2]
        if not path:
            raise UsageError(f"store URL {url!r} names no file: expected sqlite:PATH")
        if path == ":memory:":
            if read_only:
                raise UsageError(f"store URL {url!r}: a store in memory begins empty, it can't be read-only")
            return cls(None)
        return cls(Path(path), read_only=read_only)

    def __repr__(self) -> str:
        return f"SqliteStore({self._connections.name!r})"

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        self._connections.close()

    def add(self, frames: Sequence[bytes]) -> AddResult:
        """Take JSON record lines, all that are valid, in one transaction that is committed on return."""
        return self.add_in_turn(frames, lambda: None)

    def add_in_turn(self, frames: Sequence[bytes], turn: Callable[[], object]) -> AddResult:
        """Take lines as `add` does; `turn` is called between making them ready and writing, and may wait."""
        intake = Intake(frames)
        turn()
        try:
            return self._add(intake)
        except OverflowError:
            return self._add(Intake(frames, check_numbers=True))

    def _add(self, intake: Intake) -> AddResult:
        with self._connections.writing() as db:
            result, numbers, sweep = intake.write(db, self._numbers)
        self._numbers.remember(numbers, sweep)
        return result

    def step(self, id: str) -> StepRecord:
        """Return the whole step; raises `NotFoundError`."""
        with self._connections.reading() as db:
            packed = pack_id(id)
            row = db.execute(_SELECT_RECORD, (packed,)).fetchone()
            if row is None:
                raise NotFoundError(f"there is no step {id!r}")
            step = step_of_row(row, Bodies(db))
            scores = [score_of_row(row) for row in db.execute(_SELECT_SCORES, (packed,))]
            step.scores = scores or None
            return step

    def steps_in_full(self, ids: Sequence[str]) -> list[StepRecord]:
        """Return whole steps, in the order of their ids; those that are not there are left out. At most `MAX_PAGE`."""
        _check_ids(ids)
        with self._connections.reading() as db:
            return read_steps(db, ids)

    def thread(self, id: str) -> ThreadRecord:
        """Return the thread, also one known only by its steps; raises `NotFoundError`."""
        with self._connections.reading() as db:
            row = db.execute(f"SELECT {_THREAD} FROM threads t WHERE t.id = ?", (id,)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no thread {id!r}")
        return thread_of_row(row)

    def steps(
        self, filter: StepFilter = _ALL_STEPS, *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[StepRow]:
        """List steps by start."""
        page = Keyset("s", limit, cursor, order)
        with self._connections.reading() as db:
            rows = _select(db, LIST_SQL, filter, page)
        return _page([step_row(row[2:]) for row in rows[:limit]], rows, page)

    def cursor(self, id: str, order: Order = "desc") -> str:
        """Return the cursor that continues `steps` after this step; raises `NotFoundError`."""
        with self._connections.reading() as db:
            row = db.execute("SELECT start_ns, number FROM steps WHERE id = ?", (pack_id(id),)).fetchone()
        if row is None:
            raise NotFoundError(f"there is no step {id!r}")
        return Keyset("s", 1, None, order).next(*row)

    def runs(
        self, filter: StepFilter = _ALL_STEPS, *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[RunRow]:
        """List top-level runs and steps without a parent, by start, with the sums of what is below them."""
        page = Keyset("r", limit, cursor, order)
        with self._connections.reading() as db:
            rows = _select(db, LIST_SQL, replace(filter, root_only=True), page)
            listed = rows[:limit]
            position, sums = self._run_sums.known(db, [row[2] for row in listed])
            new = [row[2] for row in listed if row[2] not in sums]
            family = relatives(db, "s.status, s.total_tokens, s.type, s.cost", new)
        children = children_of(family)
        counted = {id: _sums(below(family[id], children)) for id in new}
        self._run_sums.keep(position, counted)
        sums |= counted
        runs = [run_row(row[2:], sums[row[2]]) for row in listed]
        return _page(runs, rows, page)

    def threads(
        self, filter: ThreadFilter = _ALL_THREADS, *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[ThreadRow]:
        """List threads by latest activity, with the sums of their steps."""
        page = Keyset("t", limit, cursor, order)
        with self._connections.reading() as db:
            rows = db.execute(*select_threads(f"{_THREAD}, {_SUMS}", filter, page)).fetchall()
        return _page([thread_row(row[2:-9], row[-9:]) for row in rows[:limit]], rows, page)

    def facets(self, filter: StepFilter | ThreadFilter = _ALL_STEPS) -> Facets:
        """Count the values of the fields by which a list is narrowed, among its latest 1,000 steps or threads."""
        page = Keyset("s", MAX_PAGE, None, "desc")
        with self._connections.reading() as db:
            if isinstance(filter, StepFilter) and filter.text is not None:
                return facets_of(*sample_found(db, FACET_SQL, filter, filter.text, page), FACETS)
            if isinstance(filter, StepFilter):
                names, rows = FACETS, _select(db, FACET_SQL, filter, page)
            else:
                names = THREAD_FACETS
                rows = db.execute(*select_threads(THREAD_FACET_SQL, filter, page)).fetchall()
        return facets_of(rows[:MAX_PAGE], len(rows) > MAX_PAGE, names)

    def histogram(self, filter: StepFilter = _ALL_STEPS) -> Histogram | None:
        """Count the steps of a filter over time, None where that would take more than some milliseconds."""
        with self._connections.reading() as db:
            return read_histogram(db, filter)

    def scores(
        self, filter: ScoreQuery = _ALL_SCORES, *, limit: int = 50, cursor: str | None = None, order: Order = "desc"
    ) -> Page[Score]:
        """List scores by creation, each with the id of its step, whether or not the step is known."""
        page = Keyset("c", limit, cursor, order)
        with self._connections.reading() as db:
            rows = db.execute(*select_scores(_SCORE, filter, page)).fetchall()
        scores = [score_of_row(row[2:]) for row in rows[:limit]]
        for row, score in zip(rows, scores, strict=False):
            score.step_id = unpack_id(row[2])
        return _page(scores, rows, page)

    def judgements(self, ids: Sequence[str]) -> dict[str, Judgements]:
        """Return what those of the steps that have scores were given, by id. At most `MAX_PAGE`."""
        _check_ids(ids)
        with self._connections.reading() as db:
            return read_judgements(db, ids)

    def tree(self, id: str) -> list[StepRow]:
        """Return the step and all steps below it, by start; raises `NotFoundError`."""
        packed = pack_id(id)
        key = packed if isinstance(packed, str) else bytes(packed)
        with self._connections.reading() as db:
            family = relatives(db, f"s.start_ns, s.number, {LIST_SQL}", [key])
        if key not in family:
            raise NotFoundError(f"there is no step {id!r}")
        rows = below(family[key], children_of(family))
        return [step_row(row[5:]) for row in sorted(rows, key=itemgetter(3, 4))]

    def thread_steps(self, thread_id: str) -> list[StepRow]:
        """Return all steps of a thread, by start; an unknown thread has none."""
        with self._connections.reading() as db:
            rows = db.execute(
                f"SELECT {LIST_SQL} FROM steps s WHERE s.thread_id = ? ORDER BY s.start_ns, s.number", (thread_id,)
            ).fetchall()
        return [step_row(row) for row in rows]

    def find(self, id: str) -> Found:
        """Say what an id names: a thread, or a step, also by 8 or more of its first characters if they are unique."""
        with self._connections.reading() as db:
            if db.execute("SELECT 1 FROM steps WHERE id = ?", (pack_id(id),)).fetchone():
                return Found("step", id)
            if db.execute("SELECT 1 FROM threads WHERE id = ?", (id,)).fetchone():
                return Found("thread", id)
            found = find_by_prefix(db, id) if len(id) >= _MIN_PREFIX else []
        if not found:
            raise NotFoundError(f"there is no step or thread {id!r}")
        if len(found) > 1:
            raise UsageError(f"{id!r} is the beginning of several step ids, such as {found[0]} and {found[1]}")
        return Found("step", found[0])

    def alike(self, of: Found, *, limit: int = 50) -> list[Found]:
        """Return the threads, and the runs outside of threads, that were asked the same as this one, with itself."""
        if not 1 <= limit <= MAX_PAGE:
            raise UsageError(f"limit must be 1 to {MAX_PAGE}, got {limit}")
        with self._connections.reading() as db:
            found = read_alike(db, of.kind, pack_id(of.id) if of.kind == "step" else of.id, limit)
        if found is None:
            raise NotFoundError(f"there is no step {of.id!r}")
        return found

    def records(self, filter: StepFilter | None = None) -> Iterator[bytes]:
        """Stream records as JSON lines: threads, then steps by start, then scores whose step is unknown."""
        return export(self._connections, filter)

    def changes(self, after: int | None = None, limit: int = 500) -> tuple[list[StepRow], int]:
        """Return steps added or updated since a position, in order of change, and the position they lead to."""
        if not 1 <= limit <= MAX_PAGE:
            raise UsageError(f"limit must be 1 to {MAX_PAGE}, got {limit}")
        with self._connections.reading() as db:
            if after is None:
                return [], int(db.execute(LAST_POSITION).fetchone()[0])
            rows = [row for query in _CHANGES for row in db.execute(query, (after, limit))]
        rows.sort(key=itemgetter(0))
        del rows[limit:]
        return [step_row(row[1:]) for row in rows], rows[-1][0] if rows else after

    def delete_thread(self, id: str) -> Deleted:
        """Delete a thread, its steps and their scores; raises `NotFoundError`."""
        return _retention.delete_thread(self._connections, id)

    def delete_run(self, id: str) -> Deleted:
        """Delete all steps of the trace of a step, and those below its root; raises `NotFoundError`."""
        return _retention.delete_run(self._connections, id)

    def delete_user(self, user: str) -> Deleted:
        """Delete the threads of a user (id or identifier) and all runs with a step of the user; or `NotFoundError`."""
        return _retention.delete_user(self._connections, user)

    def expire(self, *, before_ns: int | None = None, max_bytes: int | None = None) -> Deleted:
        """Delete whole runs and threads: those that are older, then the oldest until the rest fits."""
        return _retention.expire(self._connections, before_ns, max_bytes)

    def loose_blobs(self) -> list[str]:
        """Return the SHA-256 (hex) of blobs whose last step was deleted, until `forget_blobs`."""
        return loose_blobs(self._connections)

    def forget_blobs(self, hashes: Sequence[str]) -> None:
        """Say that these blobs are gone, or are kept for other reasons."""
        forget_blobs(self._connections, hashes)

    def vacuum(self) -> None:
        """Write the store anew without its gaps, and compressed; raises `StoreError` where others are in the way."""
        _vacuum.vacuum(self._connections)

    def backup(self, path: Path) -> None:
        """Write a copy of the store as it is now to a new file; raises `UsageError` for one that is there."""
        _vacuum.backup(self._connections, path)

    def stats(self) -> StoreStats:
        """Count what the store holds."""
        with self._connections.reading() as db:
            groups = count_statuses(db)
            (threads,) = db.execute("SELECT count(*) FROM threads").fetchone()
            (scores,) = db.execute("SELECT count(*) FROM scores").fetchone()
            (version,) = db.execute("PRAGMA user_version").fetchone()
            oldest, newest = db.execute(_SPAN).fetchone()
        by_type: Counter[str] = Counter()
        by_status: Counter[str] = Counter()
        for type, status, count in groups:
            by_type[type or "unknown"] += count
            by_status[status or "unknown"] += count
        steps = by_type.total()
        counts = dict(+by_type), dict(+by_status)
        return StoreStats(steps, threads, scores, *counts, oldest, newest, self._size(), version)

    def rollups(self, query: RollupQuery = _ALL_TIME) -> list[Rollup]:
        """Sum steps by time and fields, oldest first; hours and days without any are left out."""
        with self._connections.reading() as db:
            return read_rollups(db, query)

    def users(self, *, limit: int = 50, cursor: str | None = None, order: Order = "desc") -> Page[UserRow]:
        """List users by their latest step, with the sums of all their steps."""
        page = Keyset("u", limit, cursor, order)
        with self._connections.reading() as db:
            return read_users(db, page)

    def catch_up(self, deadline_s: float = 10.0) -> bool:
        """Count, judge and index the steps that were added since; tell whether nothing is left to do."""
        ends = time.monotonic() + deadline_s
        for more in (count_more, judge_more, index_more):
            while True:
                with self._connections.writing() as db:
                    done = more(db, _TURN_S)
                if done:
                    break
                if time.monotonic() > ends:
                    return False
                self._connections.rest()
        return True

    def _size(self) -> int:
        size = 0
        if self.path is not None:
            for suffix in ("", "-wal"):
                with suppress(FileNotFoundError):
                    size += Path(f"{self.path}{suffix}").stat().st_size
        return size

    def check(self) -> list[str]:
        """Return what is wrong with the file, nothing when it is healthy; reads all of it."""
        try:
            with self._connections.reading() as db:
                problems = [line for (line,) in db.execute("PRAGMA quick_check") if line != "ok"]
                return problems + find_lost(db)
        except CorruptStoreError as error:
            return [str(error)]


def _select(db: sqlite3.Connection, columns: str, filter: StepFilter, page: Keyset) -> list[tuple[Any, ...]]:
    if filter.text is not None:
        return select_found(db, columns, filter, filter.text, page)
    rows = select_by_hours(db, columns, filter, page)
    return db.execute(*select_steps(columns, filter, page)).fetchall() if rows is None else rows


def _page(items: list[Item], rows: list[tuple[Any, ...]], page: Keyset) -> Page[Item]:
    if not items:
        return Page(items)
    more = len(rows) > len(items)
    first, last = rows[0][:2][::-1], rows[len(items) - 1][:2][::-1]
    return Page(items, page.next(*last) if more else None, page.previous(*first))


def _check_ids(ids: Sequence[str]) -> None:
    if len(ids) > MAX_PAGE:
        raise UsageError(f"ids may be {MAX_PAGE} at most, got {len(ids)}")


def _sums(rows: list[tuple[Any, ...]]) -> tuple[int, int, int, int, float | None]:
    """Sum what `RunRow` adds, in its order, of rows with status, total_tokens, type and cost after their ids."""
    costs = [row[6] for row in rows if row[6] is not None and row[5] == "llm"]
    failed, tools = sum(row[3] == "failed" for row in rows), sum(row[5] == "tool" for row in rows)
    return len(rows), failed, sum(row[4] or 0 for row in rows), tools, sum(costs) if costs else None
