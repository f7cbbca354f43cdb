"""Finding steps by their words: an FTS5 index, built off the ingest path, and what it does not have yet.

What must stay true:

1. The index is derived and may be thrown away: `step_texts`, made and filled by `index_more`, up to the position
   `indexed` (as of `Store.changes`). The text of a step is kept under the position of its last change, so what is
   known of an older state, or of a step that is gone, is never found; it is dropped when the index is built anew.
2. A search sees steps as they are: those that the index has, and the newest `MAX_TAIL` of those it does not have yet.
3. A message that was kept once is indexed once, with the step that brought it; `message_steps` remembers which.

It is in the store's own file: in a file beside it, it could not be changed in one transaction with its position, a
reader would see two states at once, and who deletes steps or copies the store would have to think of it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from operator import itemgetter
from typing import Any, Final

from msgspec import json

from stepwell.errors import CorruptStoreError
from stepwell.store import StepFilter
from stepwell.store._messages import Bodies
from stepwell.store._packs import PackReader
from stepwell.store._query import Keyset, select_steps
from stepwell.store._texts import match_of, text_of
from stepwell.store._tree import relatives

__all__ = ["among", "forget_index", "index_more", "select_found"]

MAX_TAIL: Final = 2_000
_ROWS: Final = 50
_COMMON: Final = 5_000  # matches, from which on steps are walked instead
_WALKED, _RUNS_WALKED, _WALKS = 500, 100, 20  # steps at once, runs at once, and how often
_SPREAD: Final = 20  # positions for each of them: what lies between is read, too
_STALE: Final = 10_000  # texts of older states and deleted steps, besides as many as there are steps
_CREATE: Final = (
    "CREATE VIRTUAL TABLE step_texts USING fts5("
    "text, content = '', columnsize = 0, tokenize = 'unicode61 remove_diacritics 2')"
)
_COLUMNS: Final = (
    "s.name, s.error_message, p.input, p.output, p.generation, p.metadata, p.error, p.refs, p.pack, s.number"
)
_PAYLOADS: Final = ("input", "output", "generation", "metadata", "error")
_FROM: Final = f"{_COLUMNS} FROM steps s LEFT JOIN payload p USING (number)"
_NEXT: Final = (  # as `Store.changes` has them
    f"SELECT s.number, {_FROM} WHERE s.number > ? AND s.changed IS NULL ORDER BY s.number LIMIT ?",
    f"SELECT s.changed, {_FROM} WHERE s.changed > ? ORDER BY s.changed LIMIT ?",
)
_TAIL: Final = tuple(
    query.replace("ORDER BY s.number", "ORDER BY s.number DESC").replace(
        "ORDER BY s.changed", "ORDER BY s.changed DESC"
    )
    for query in _NEXT
)
_POSITION: Final = "ifnull(s.changed, s.number)"
_INSERT: Final = "INSERT INTO step_texts (rowid, text) VALUES (?, ?)"
_FOUND: Final = """
    SELECT number FROM steps WHERE number IN (SELECT value FROM json_each(?1)) AND changed IS NULL
    UNION ALL SELECT number FROM steps WHERE changed IN (SELECT value FROM json_each(?1))
"""
_refs = json.Decoder(list[tuple[str, int, int, int]]).decode


class _Reader:
    """Reads the text of rows. `claimed` are the messages that it took, by number, with the number of the step."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._bodies, self._packs = Bodies(db), PackReader(db)
        self.claimed: dict[int, int] = {}

    def text(self, row: tuple[Any, ...]) -> str:
        """Return the text of a row of `_COLUMNS`."""
        fields: dict[str, Any] = dict(zip(_PAYLOADS, row[2:7], strict=True))
        refs, pack, number = row[7:]
        messages: list[str] = []
        with suppress(CorruptStoreError):  # `check` tells of it; what else there is stays to be found
            if pack is not None:
                packed = self._packs.step(pack, number)
                refs = packed["refs"]
                fields |= {name: packed[name] for name in _PAYLOADS if name != "metadata"}
            if refs is not None:
                messages.extend(self._own_messages(number, refs))
        return text_of(row[:2], fields, messages)

    def _own_messages(self, step: int, refs: str) -> Iterator[str]:
        """Yield the messages of a step that no other step brought before."""
        taken: set[int] = set()
        for _, _, first, last in _refs(refs):
            query = "SELECT message, step FROM message_steps WHERE message BETWEEN ? AND ?"
            owners = dict(self._db.execute(query, (first, last)))
            for message in range(first, last + 1):
                owner = owners.get(message) or self.claimed.setdefault(message, step)
                if owner == step and message not in taken:
                    taken.add(message)
                    yield from self._bodies.read(message, message)

    def write_claims(self) -> None:
        """Remember which step brought which message."""
        rows = self.claimed.items()
        self._db.executemany("INSERT INTO message_steps (message, step) VALUES (?, ?) ON CONFLICT DO NOTHING", rows)


def index_more(db: sqlite3.Connection, turn_s: float) -> bool:
    """Index steps for about so long, inside the caller's transaction; tell whether nothing is left to index."""
    ends = time.perf_counter() + turn_s
    position, texts = db.execute("SELECT position, texts FROM indexed").fetchone()
    if not _has_index(db) or _is_stale(db, texts):
        forget_index(db)
        db.execute(_CREATE)
        position = texts = 0
    reader, done = _Reader(db), False
    while not done and time.perf_counter() < ends:
        rows = [row for query in _NEXT for row in db.execute(query, (position, _ROWS))]
        rows.sort()
        done = len(rows) < _ROWS
        del rows[_ROWS:]
        db.executemany(_INSERT, [(row[0], reader.text(row[1:])) for row in rows])
        position = rows[-1][0] if rows else position
        texts += len(rows)
    reader.write_claims()
    db.execute("UPDATE indexed SET position = ?, texts = ?", (position, texts))
    return done


def forget_index(db: sqlite3.Connection) -> None:
    """Throw the index away, with what it still has of steps that are gone; `index_more` makes it anew."""
    db.execute("DROP TABLE IF EXISTS step_texts")
    db.execute("DELETE FROM message_steps")
    db.execute("UPDATE indexed SET position = 0, texts = 0")


def _has_index(db: sqlite3.Connection) -> bool:
    return db.execute("SELECT 1 FROM sqlite_master WHERE name = 'step_texts'").fetchone() is not None


def _is_stale(db: sqlite3.Connection, texts: int) -> bool:
    """Tell whether most of what the index has is of steps that changed or went."""
    if texts <= _STALE:
        return False
    (steps,) = db.execute("SELECT ifnull(sum(steps), 0) FROM rollups WHERE span_s = 86400").fetchone()
    return bool(texts > 2 * steps + _STALE)


def among(db: sqlite3.Connection, text: str, *, roots: bool = False) -> str:
    """Return the numbers of the steps that a text finds, as a JSON array; with `roots`, those of their runs.

    Raises `UsageError` for a query without a word.
    """
    match, numbers = match_of(text), list[int]()
    if _has_index(db):
        rows = db.execute("SELECT rowid FROM step_texts WHERE step_texts MATCH ?", (match,)).fetchall()
        numbers = [number for (number,) in db.execute(_FOUND, (_array(row[0] for row in rows),))]
    found = _array([*numbers, *_tail(db, match)])
    if not roots:
        return found
    query = (
        "SELECT r.number FROM steps s JOIN steps r ON r.id = ifnull(s.root_run_id, s.id) "
        "WHERE s.number IN (SELECT value FROM json_each(?))"
    )
    return _array(number for (number,) in db.execute(query, (found,)))


def select_found(
    db: sqlite3.Connection, columns: str, filter: StepFilter, text: str, page: Keyset
) -> list[tuple[Any, ...]]:
    """Return the rows of a page as `select_steps` has them, of the steps that a text finds, or of those at the top that
    have such a step in their run.
    """
    rows = _walk(db, columns, filter, match_of(text), page) if _is_common(db, text) else None
    if rows is None:
        found = among(db, text, roots=filter.root_only)
        rows = db.execute(*select_steps(columns, filter, page, among=found)).fetchall()
    return rows


def _is_common(db: sqlite3.Connection, text: str) -> bool:
    query = "SELECT count(*) FROM (SELECT 1 FROM step_texts WHERE step_texts MATCH ? LIMIT ?)"
    return _has_index(db) and db.execute(query, (match_of(text), _COMMON)).fetchone()[0] == _COMMON


def _walk(
    db: sqlite3.Connection, columns: str, filter: StepFilter, match: str, page: Keyset
) -> list[tuple[Any, ...]] | None:
    """Look at the steps in the list's order until the page is full; None where too few match or they lie far apart.

    Of a word that many steps have, this reads a few hundred steps instead of all that have it.
    """
    found: list[tuple[Any, ...]] = []
    tail = {*_tail(db, match)}
    size = _RUNS_WALKED if filter.root_only else _WALKED
    steps = Keyset("x", size, None, "asc" if page.direction == "ASC" else "desc")
    steps.after = page.after
    for _ in range(_WALKS):
        rows = db.execute(*select_steps(f"s.id, {_POSITION}, {columns}", filter, steps)).fetchall()[:size]
        inside = _inside(db, rows) if filter.root_only else [(row[0], row[0], row[3]) for row in rows]
        first, last = min((each[2] for each in inside), default=0), max((each[2] for each in inside), default=0)
        if last - first > _SPREAD * max(len(inside), _WALKED):
            return None
        query = "SELECT rowid FROM step_texts WHERE step_texts MATCH ? AND rowid BETWEEN ? AND ?"
        positions = {position for (position,) in db.execute(query, (match, first, last))}
        having = {listed for listed, number, position in inside if position in positions or number in tail}
        found += [(*row[:2], *row[4:]) for row in rows if row[0] in having]
        if len(found) > page.limit or len(rows) < size:
            return found[: page.limit + 1]
        steps.after = rows[-1][1], rows[-1][0]
    return None


def _inside(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> list[tuple[int, int, int]]:
    """Return the steps of runs, themselves included: number of the run, number and position of the step."""
    listed = {row[2]: row[0] for row in rows}
    family = relatives(db, f"s.number, {_POSITION}", listed)
    owned = ((id if root is None else root, number, position) for id, _, root, number, position in family.values())
    return [(listed[owner], number, position) for owner, number, position in owned if owner in listed]


def _array(numbers: Iterable[int]) -> str:
    return json.encode(list(numbers)).decode()


def _tail(db: sqlite3.Connection, match: str) -> list[int]:
    """Return the numbers of steps that are not indexed yet and match, by an index of their own, for this once."""
    position = db.execute("SELECT position FROM indexed").fetchone()[0] if _has_index(db) else 0
    rows = [row for query in _TAIL for row in db.execute(query, (position, MAX_TAIL))]
    if not rows:
        return []
    rows.sort()
    rows = sorted(rows[-MAX_TAIL:], key=itemgetter(-1))  # a message is of the first step that has it
    reader = _Reader(db)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as memory:
        memory.execute(_CREATE)
        memory.executemany(_INSERT, [(row[-1], reader.text(row[1:])) for row in rows])
        return [
            number for (number,) in memory.execute("SELECT rowid FROM step_texts WHERE step_texts MATCH ?", (match,))
        ]
