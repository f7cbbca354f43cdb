"""Deleting steps and threads of the embedded store, and what only they referred to.

What must stay true:

1. A transaction deletes a few hundred steps with everything that is theirs, so that writers beside it wait for tens of
   milliseconds, and a process that dies in between leaves a whole store with fewer steps in it.
2. What is deleted is gone: packs are written again without it, and what it leaves in pages of the file is overwritten
   (`secure_delete`). The write-ahead log, and copies, have it until they are overwritten too; `vacuum` empties the log.
3. Messages go in a second step, the sweep, that looks without a lock for who else refers to them, and then again, with
   the lock, at what was written since. Its cost is one reading of `payload_refs` and `pack_contents`.
4. No number of a step, message or pack is ever given again. A deletion of steps takes a number of its own, so that who
   remembers what was read at a position knows that it may be gone.

A step that arrives after its thread or run was deleted makes it again.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Raw, json

from stepwell.store import Deleted
from stepwell.store._connections import Connections
from stepwell.store._listing import list_old_rows
from stepwell.store._loose import hashes_in, loosen_messages
from stepwell.store._packs import Item, rewrite_pack
from stepwell.store._schema import LAST_MESSAGE, LAST_POSITION
from stepwell.store._spans import Spans, covers_any, decode_spans, spans_of_refs, united, without

__all__ = ["Deletion", "erasing", "forget_blobs", "loose_blobs", "spans_of_items"]

MAX_STEPS: Final = 500  # in one transaction, likewise
MAX_PACKS: Final = 32
MAX_MESSAGES: Final = 2000
_MANY_SPANS: Final = 50_000

_IN: Final = "IN (SELECT value FROM json_each(?))"  # a JSON array
_SELECT_ROWS: Final = f"""
    SELECT s.number, s.id, s.thread_id, s.start_ns, s.tags, s.changed, p.pack, p.refs
    FROM steps s LEFT JOIN payload p USING (number) WHERE s.number {_IN} ORDER BY s.number
"""  # noqa: S608 (a constant, likewise below)
_DELETE_TAG: Final = "DELETE FROM step_tags WHERE tag = ? AND start_ns = ? AND step = ?"
_DELETE_SCORES: Final = "DELETE FROM scores WHERE step_id = ?"
_SELECT_BLOBS: Final = f"SELECT DISTINCT hash FROM step_blobs WHERE step {_IN}"  # noqa: S608
_DELETE_BLOBS: Final = f"DELETE FROM step_blobs WHERE step {_IN}"  # noqa: S608
# A thread's activity follows its steps; one that only its steps made known goes with the last of them.
_SETTLE_THREAD: Final = """
    UPDATE threads SET active_ns =
        max(ifnull((SELECT max(start_ns) FROM steps WHERE thread_id = threads.id), -1), ifnull(created_ns, -1))
    WHERE id = ?
"""
_DELETE_BARE_THREAD: Final = """
    DELETE FROM threads WHERE id = ? AND coalesce(name, user, tags, metadata, environment) IS NULL
        AND NOT EXISTS (SELECT 1 FROM steps WHERE thread_id = threads.id)
"""
_DELETE_EMPTY_THREAD: Final = """
    DELETE FROM threads WHERE id = ? AND NOT EXISTS (SELECT 1 FROM steps WHERE thread_id = threads.id)
"""
_COVERING: Final = "SELECT pack, first_step, last_step FROM pack_contents WHERE first_step <= ? AND last_step >= ?"
_FLOOR: Final = f"UPDATE state SET last_number = ({LAST_POSITION}), last_message = ({LAST_MESSAGE})"  # noqa: S608
_REFS: Final = "SELECT refs FROM payload INDEXED BY payload_refs WHERE refs IS NOT NULL AND number > ?"
_CHANGED_REFS: Final = """
    SELECT p.refs FROM steps s JOIN payload p USING (number)
    WHERE s.changed IS NOT NULL AND s.changed > ? AND p.refs IS NOT NULL
"""

_encode: Final = json.Encoder().encode


@contextmanager
def erasing(connections: Connections) -> Generator[sqlite3.Connection]:
    """Lend the writing connection as `writing` does; what is deleted is overwritten, and its numbers stay taken."""
    with connections.writing() as db:
        db.execute("PRAGMA secure_delete = 1")
        try:
            db.execute(_FLOOR)
            yield db
        finally:
            db.execute("PRAGMA secure_delete = 0")


@dataclass(slots=True)
class Deletion:
    """One call's work on a store, and what it has taken away so far."""

    connections: Connections
    steps: int = 0
    threads: int = 0
    messages: int = 0
    blobs: set[bytes] = field(default_factory=set[bytes])

    def __post_init__(self) -> None:
        list_old_rows(self.connections)

    def result(self) -> Deleted:
        """Say what was taken away. A blob that was named again meanwhile is none of it."""
        with self.connections.reading() as db:
            blobs = sorted(hash.hex() for hash in self.blobs if not _is_named(db, hash))
        return Deleted(self.steps, self.threads, self.messages, tuple(blobs))

    def delete_steps(self, numbers: Sequence[int]) -> None:
        """Delete these steps, as far as they are there."""
        wanted = sorted(numbers)
        at = 0
        while at < len(wanted):
            some = wanted[at : at + MAX_STEPS]
            with erasing(self.connections) as db:
                rows = db.execute(_SELECT_ROWS, (_encode(some).decode(),)).fetchall()
                affordable, packs = _affordable(db, rows)
                if affordable:
                    self._delete_rows(db, affordable, packs)
            at += len(some) if len(affordable) == len(rows) else bisect_right(some, affordable[-1][0])

    def delete_thread(self, id: str) -> None:
        """Delete a thread with all its steps, those that arrive meanwhile included."""
        steps = "SELECT number FROM steps WHERE thread_id = ?"
        while True:
            with self.connections.reading() as db:
                numbers = [number for (number,) in db.execute(steps, (id,))]
            self.delete_steps(numbers)
            with erasing(self.connections) as db:
                if db.execute(f"{steps} LIMIT 1", (id,)).fetchone() is None:
                    self.threads += db.execute("DELETE FROM threads WHERE id = ?", (id,)).rowcount
                    return

    def delete_empty_threads(self, ids: Iterable[str]) -> None:
        """Delete threads, but for those that have got steps meanwhile."""
        with erasing(self.connections) as db:
            self.threads += max(db.executemany(_DELETE_EMPTY_THREAD, ((id,) for id in ids)).rowcount, 0)

    def _delete_rows(self, db: sqlite3.Connection, rows: list[tuple[Any, ...]], packs: set[int]) -> None:
        numbers = [row[0] for row in rows]
        several = (_encode(numbers).decode(),)
        loose = [span for row in rows if row[7] is not None for span in spans_of_refs(row[7])]
        gone = set(numbers)
        for pack in sorted(packs):
            loose += spans_of_items(rewrite_pack(db, pack, lambda item: item.step not in gone))
        loosen_messages(db, loose)
        tags = ((tag, row[3], row[0]) for row in rows if row[4] for tag in json.decode(row[4], type=list[str]))
        db.executemany(_DELETE_TAG, tags)
        db.executemany("DELETE FROM scores WHERE step_id = ?", ((row[1],) for row in rows))
        self._loosen_blobs(db, several)
        db.execute(f"DELETE FROM payload WHERE number {_IN}", several)  # noqa: S608
        db.execute(f"DELETE FROM soft_errors WHERE step {_IN}", several)  # noqa: S608
        db.execute(f"DELETE FROM steps WHERE number {_IN}", several)  # noqa: S608
        db.execute("UPDATE state SET last_number = last_number + 1")
        for thread in {row[2] for row in rows if row[2] is not None}:
            db.execute(_SETTLE_THREAD, (thread,))
            self.threads += db.execute(_DELETE_BARE_THREAD, (thread,)).rowcount
        self.steps += len(rows)

    def _loosen_blobs(self, db: sqlite3.Connection, several: tuple[str]) -> None:
        hashes = [hash for (hash,) in db.execute(_SELECT_BLOBS, several)]
        if not hashes:
            return
        db.execute(_DELETE_BLOBS, several)
        loose = [hash for hash in hashes if not _is_named(db, hash)]
        db.executemany("INSERT INTO loose_blobs (hash) VALUES (?) ON CONFLICT DO NOTHING", ((hash,) for hash in loose))
        self.blobs.update(loose)

    def sweep(self) -> None:
        """Delete the messages that have lost their last reference."""
        with self.connections.reading() as db:
            noted = db.execute("SELECT number, first, last FROM loose_messages").fetchall()
            if not noted:
                return
            candidates = united((first, last) for _, first, last in noted)
            (position,) = db.execute(LAST_POSITION).fetchone()
            (last_pack,) = db.execute("SELECT ifnull(max(pack), 0) FROM pack_contents").fetchone()
            dead = without(candidates, _used(db, candidates, 0, 0))
        while True:
            with erasing(self.connections) as db:
                used = _used(db, dead, position, last_pack) if dead else []
                used = united([*used, *_used_by_changed(db, dead, position)])
                dead = without(dead, used)
                found = _affordable_messages(db, dead)
                if not found:
                    db.executemany("DELETE FROM loose_messages WHERE number = ?", ((row[0],) for row in noted))
                    return
                self._delete_messages(db, found)
            dead = without(dead, [(0, found[-1][0])])

    def _delete_messages(self, db: sqlite3.Connection, found: list[tuple[int, int | None]]) -> None:
        numbers = {number for number, _ in found}
        for pack in sorted({pack for _, pack in found if pack is not None}):
            rewrite_pack(db, pack, lambda item: item.message not in numbers)
        db.execute(f"DELETE FROM messages WHERE number {_IN}", (_encode(sorted(numbers)).decode(),))  # noqa: S608
        db.execute("UPDATE state SET sweep = sweep + 1")
        self.messages += len(numbers)


def loose_blobs(connections: Connections) -> list[str]:
    """Return the blobs whose last step was deleted; see `Store.loose_blobs`."""
    with connections.reading() as db:
        loose = [hash for (hash,) in db.execute("SELECT hash FROM loose_blobs")]
        if not loose:
            return []
        named: set[bytes] = set()
        for (metadata,) in db.execute("SELECT metadata FROM threads WHERE instr(metadata, 'sha256')"):
            named |= hashes_in(metadata.encode())
        return [hash.hex() for hash in loose if hash not in named and not _is_named(db, hash)]


def forget_blobs(connections: Connections, hashes: Iterable[str]) -> None:
    """Strike blobs off the list of the loose; see `Store.forget_blobs`."""
    with connections.writing() as db:
        rows = ((bytearray.fromhex(hash),) for hash in hashes)
        db.executemany("DELETE FROM loose_blobs WHERE hash = ?", rows)


def _affordable(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> tuple[list[tuple[Any, ...]], set[int]]:
    """Return the first rows, of as many packs as one transaction may write again, and these packs.

    They are those that hold payloads of the steps; of a step that was changed also those with what it was before.
    """
    covering: list[tuple[int, int, int]] = []
    changed = [row[0] for row in rows if row[5] is not None]
    if changed:
        found = db.execute(_COVERING, (changed[-1], changed[0]))
        covering = [each for each in found if covers_any(each[1], each[2], changed)]
    packs: set[int] = set()
    for place, row in enumerate(rows):
        of_row: set[int] = set() if row[6] is None else {row[6]}
        if row[5] is not None:
            of_row.update(pack for pack, first, last in covering if first <= row[0] <= last)
        if place and len(packs | of_row) > MAX_PACKS:
            return rows[:place], packs
        packs |= of_row
    return rows, packs


def spans_of_items(items: Iterable[Item]) -> Spans:
    """Return which messages the payloads of packs refer to."""
    return [span for item in items if isinstance(item.refs, Raw) for span in spans_of_refs(item.refs)]


def _is_named(db: sqlite3.Connection, hash: bytes) -> bool:
    return db.execute("SELECT 1 FROM step_blobs WHERE hash = ? LIMIT 1", (hash,)).fetchone() is not None


def _affordable_messages(db: sqlite3.Connection, spans: Spans) -> list[tuple[int, int | None]]:
    """Return number and pack of the first messages there, as many as one transaction may delete."""
    found: list[tuple[int, int | None]] = []
    packs: set[int] = set()
    for first, last in spans:
        query = "SELECT number, pack FROM messages WHERE number BETWEEN ? AND ? ORDER BY number LIMIT ?"
        for number, pack in db.execute(query, (first, last, MAX_MESSAGES)).fetchall():
            packs.add(pack)
            if len(packs) > MAX_PACKS or len(found) == MAX_MESSAGES:
                return found
            found.append((number, pack))
    return found


def _used(db: sqlite3.Connection, candidates: Spans, position: int, last_pack: int) -> Spans:
    """Return which messages payloads refer to, at least those of candidates: of steps and packs after these."""
    first, last = candidates[0][0], candidates[-1][1]
    spans: set[tuple[int, int]] = set()
    contents = "SELECT refs FROM pack_contents WHERE pack > ?"
    for query, after, decode in ((_REFS, position, spans_of_refs), (contents, last_pack, decode_spans)):
        for (text,) in db.execute(query, (after,)):
            spans.update(span for span in decode(text) if span[0] <= last and span[1] >= first)
            if len(spans) > _MANY_SPANS:
                spans = set(united(spans))
    return united(spans)


def _used_by_changed(db: sqlite3.Connection, candidates: Spans, position: int) -> Spans:
    if not candidates:
        return []
    return [span for (refs,) in db.execute(_CHANGED_REFS, (position,)) for span in spans_of_refs(refs)]
