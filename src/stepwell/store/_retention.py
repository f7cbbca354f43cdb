"""What is deleted when data has grown old, or too large: whole runs and threads, by their latest activity.

What must stay true: a run or thread with a step that may still be running is left alone, and so is one of which no time
is known, unless room is needed.
"""

# ruff: noqa: S608 (what is put into SQL are our own constants)

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from heapq import merge
from operator import itemgetter
from typing import Any, Final, NamedTuple

from stepwell.errors import NotFoundError, UsageError
from stepwell.store import MAX_PAGE, Deleted, StepFilter
from stepwell.store._connections import Connections
from stepwell.store._deleting import Deletion
from stepwell.store._query import MAX_INTEGER, Keyset, select_steps
from stepwell.store._rows import UNKNOWN_NS, pack_id, unpack_trace_id
from stepwell.store._tree import below, children_of, relatives

__all__ = ["delete_run", "delete_thread", "delete_user", "expire"]

RUNNING_NS: Final = 24 * 3600 * 1_000_000_000  # a pending step this old is one whose end was lost
MAX_STEPS: Final = 5000  # between two looks at how much is left
_PAGE: Final = 500
_SELECT_THREADS: Final = (
    "SELECT active_ns, number, id FROM threads "
    f"WHERE (active_ns, number) > (?, ?) AND active_ns < ? ORDER BY active_ns, number LIMIT {_PAGE}"
)
_SELECT_STEPS: Final = (
    "SELECT start_ns, number, id FROM steps "
    f"WHERE (start_ns, number) > (?, ?) AND start_ns < ? AND thread_id IS NULL ORDER BY start_ns, number LIMIT {_PAGE}"
)
_LISTED: Final = "s.number, s.start_ns, s.end_ns, s.status, s.thread_id"
_OF_THREAD: Final = f"SELECT {_LISTED} FROM steps s WHERE s.thread_id = ?"
_USED_BYTES: Final = """
    SELECT (c.page_count - f.freelist_count) * s.page_size
    FROM pragma_page_count c, pragma_freelist_count f, pragma_page_size s
"""
_THREADS_OF_USER: Final = """
    SELECT id FROM threads WHERE user_name = ?1 OR json_extract(user, '$.id') = ?1
        OR json_extract(user, '$.identifier') = ?1
"""


def delete_thread(connections: Connections, id: str) -> Deleted:
    """Delete a thread and its steps; see `Store.delete_thread`."""
    with connections.reading() as db:
        if db.execute("SELECT 1 FROM threads WHERE id = ?", (id,)).fetchone() is None:
            raise NotFoundError(f"there is no thread {id!r}")
    deletion = Deletion(connections)
    deletion.delete_thread(id)
    deletion.sweep()
    return deletion.result()


def delete_run(connections: Connections, id: str) -> Deleted:
    """Delete a step's whole run; see `Store.delete_run`."""
    with connections.reading() as db:
        if (numbers := _run_of(db, pack_id(id))) is None:
            raise NotFoundError(f"there is no step {id!r}")
    deletion = Deletion(connections)
    deletion.delete_steps(list(numbers))
    deletion.sweep()
    return deletion.result()


def delete_user(connections: Connections, user: str) -> Deleted:
    """Delete a user's threads and runs; see `Store.delete_user`."""
    numbers: set[int] = set()
    with connections.reading() as db:
        threads = [id for (id,) in db.execute(_THREADS_OF_USER, (user,))]
        for number, id in db.execute("SELECT number, id FROM steps WHERE user = ?", (user,)).fetchall():
            if number not in numbers:
                numbers |= (_run_of(db, id) or {}).keys()
    if not threads and not numbers:
        raise NotFoundError(f"there is no thread or step of user {user!r}")
    deletion = Deletion(connections)
    for thread in threads:
        deletion.delete_thread(thread)
    deletion.delete_steps(list(numbers))
    deletion.sweep()
    return deletion.result()


def expire(connections: Connections, before_ns: int | None, max_bytes: int | None) -> Deleted:
    """Delete what is older, then the oldest until the rest fits; see `Store.expire`."""
    if max_bytes is not None and max_bytes < 0:
        raise UsageError(f"max_bytes must be >= 0, got {max_bytes}")
    deletion = Deletion(connections)
    if before_ns is not None:
        units = _units(connections, before_ns)
        while _delete_some(deletion, units, MAX_STEPS):
            pass
    deletion.sweep()
    if max_bytes is not None:
        units = _units(connections, None)
        while (enough := _excess_steps(connections, max_bytes)) and _delete_some(deletion, units, enough):
            deletion.sweep()
    return deletion.result()


class _Unit(NamedTuple):
    """What is deleted together: a thread, or the steps of a run that are in none."""

    thread: str | None
    numbers: list[int]


def _delete_some(deletion: Deletion, units: Iterator[_Unit], enough: int) -> bool:
    """Delete the next units, of so many steps or a few more; say whether there were any."""
    numbers: list[int] = []
    threads: list[str] = []
    for unit in units:
        numbers += unit.numbers
        if unit.thread is not None:
            threads.append(unit.thread)
        if len(numbers) + len(threads) >= enough:
            break
    deletion.delete_steps(numbers)
    deletion.delete_empty_threads(threads)
    return bool(numbers or threads)


def _excess_steps(connections: Connections, max_bytes: int) -> int:
    """Estimate how many steps are to go until what is used of the file fits, 0 when it does."""
    with connections.reading() as db:
        used = int(db.execute(_USED_BYTES).fetchone()[0])
        if used <= max_bytes:
            return 0
        steps = int(db.execute("SELECT count(*) FROM steps").fetchone()[0])
    return min(steps * (used - max_bytes) // used + 1, max(MAX_STEPS, steps // 10))


def _units(connections: Connections, before_ns: int | None) -> Iterator[_Unit]:
    """Yield what may go, the longest unused first; without a bound also what has no time."""
    running_ns = time.time_ns() - RUNNING_NS
    until = MAX_INTEGER if before_ns is None else min(before_ns, MAX_INTEGER)
    seen: set[int] = set()
    pages = (_pages(connections, query, until) for query in (_SELECT_THREADS, _SELECT_STEPS))
    for active_ns, number, id, is_thread in merge(*pages, key=itemgetter(0)):
        if number in seen and not is_thread:
            continue
        with connections.reading() as db:
            rows = db.execute(_OF_THREAD, (id,)).fetchall() if is_thread else list((_run_of(db, id) or {}).values())
        latest_ns = max((max(start_ns, end_ns or UNKNOWN_NS) for _, start_ns, end_ns, _, _ in rows), default=UNKNOWN_NS)
        if is_thread:
            latest_ns = max(latest_ns, active_ns)
        else:
            seen.update(row[0] for row in rows)
        if before_ns is not None and not 0 <= latest_ns < before_ns:
            continue
        if any(status == "pending" and start_ns > running_ns for _, start_ns, _, status, _ in rows):
            continue
        yield _Unit(id if is_thread else None, [row[0] for row in rows if is_thread or row[4] is None])


def _pages(connections: Connections, query: str, until: int) -> Iterator[tuple[int, int, Any, bool]]:
    after = (UNKNOWN_NS - 1, 0)
    while True:
        with connections.reading() as db:
            rows = db.execute(query, (*after, until)).fetchall()
        for row in rows:
            yield (*row, query is _SELECT_THREADS)
        if len(rows) < _PAGE:
            return
        after = rows[-1][:2]


def _run_of(db: sqlite3.Connection, id: bytes | bytearray | str) -> dict[int, tuple[Any, ...]] | None:
    """Return the steps of a step's trace, and those below its root, by number; None for an unknown step."""
    key = bytes(id) if isinstance(id, bytearray) else id
    found = db.execute("SELECT trace_id, root_run_id FROM steps WHERE id = ?", (key,)).fetchone()
    if found is None:
        return None
    trace_id, root = found
    run: dict[int, tuple[Any, ...]] = {}
    if trace_id is not None:
        page = Keyset("x", MAX_PAGE, None, "asc")
        filter = StepFilter(trace_id=unpack_trace_id(trace_id))
        while True:
            rows = db.execute(*select_steps("s.end_ns, s.status, s.thread_id", filter, page)).fetchall()
            run.update((row[0], (row[0], *row[1:5])) for row in rows)
            if len(rows) <= MAX_PAGE:
                break
            page.after = rows[MAX_PAGE - 1][1], rows[MAX_PAGE - 1][0]
    family = relatives(db, _LISTED, [key if root is None else root, key])
    top = family[root if root in family else key]
    run.update((row[3], row[3:]) for row in below(top, children_of(family)))
    return run
