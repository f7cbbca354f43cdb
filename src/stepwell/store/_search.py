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
from stepwell.store._tree import members

__all__ = ["among", "forget_index", "index_more", "sample_found", "select_found"]

MAX_TAIL: Final = 2_000
_ROWS: Final = 50
_COMMON: Final = 5_000  # matches, from which on steps are walked instead
_WALKED, _RUNS_WALKED, _WALKS = 500, 100, 20  # steps at once, runs at once, and how often
_SAMPLED, _ENOUGH = 12_000, 100  # steps and matches read, from which on so many are enough of a sample
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
    walked = _walk(db, columns, filter, match_of(text), page, page.limit + 1) if _is_common(db, text) else None
    return _select_all(db, columns, filter, text, page) if walked is None else walked[0]


def sample_found(
    db: sqlite3.Connection, columns: str, filter: StepFilter, text: str, page: Keyset
) -> tuple[list[tuple[Any, ...]], bool]:
    """Return such rows, and whether there are more: as many as are found in good time, at least `_ENOUGH`."""
    walked = _walk(db, columns, filter, match_of(text), page, _ENOUGH) if _is_common(db, text) else None
    if walked is None:
        rows = _select_all(db, columns, filter, text, page)
        return rows[: page.limit], len(rows) > page.limit
    return walked[0][: page.limit], walked[1]


def _select_all(
    db: sqlite3.Connection, columns: str, filter: StepFilter, text: str, page: Keyset
) -> list[tuple[Any, ...]]:
    found = among(db, text, roots=filter.root_only)
    rows: list[tuple[Any, ...]] = db.execute(*select_steps(columns, filter, page, among=found)).fetchall()
    return rows


def _is_common(db: sqlite3.Connection, text: str) -> bool:
    query = "SELECT count(*) FROM (SELECT 1 FROM step_texts WHERE step_texts MATCH ? LIMIT ?)"
    return _has_index(db) and db.execute(query, (match_of(text), _COMMON)).fetchone()[0] == _COMMON


def _walk(  # noqa: PLR0917 (a page of a search, and when there is enough of it)
    db: sqlite3.Connection, columns: str, filter: StepFilter, match: str, page: Keyset, enough: int
) -> tuple[list[tuple[Any, ...]], bool] | None:
    """Look at the steps in the list's order until the page is full, or a sample has been found; return what was found,
    and whether there is more. None where too few match or they lie far apart.

    Of a word that many steps have, this reads a few hundred steps instead of all that have it.
    """
    found: list[tuple[Any, ...]] = []
    matches = _Matches(db, match)
    size = _RUNS_WALKED if filter.root_only else _WALKED
    steps = Keyset("x", size, None, "asc" if page.direction == "ASC" else "desc")
    steps.after = page.after
    for _ in range(_WALKS):
        if matches.read >= _SAMPLED and len(found) >= enough:
            return found, True
        rows = db.execute(*select_steps(f"s.id, s.root_run_id, {_POSITION}, {columns}", filter, steps)).fetchall()
        more = len(rows) > size
        del rows[size:]
        having = matches.runs(rows) if filter.root_only else matches.among((row[0], row[0], row[4]) for row in rows)
        if having is None:
            break
        found += [(*row[:2], *row[5:]) for row in rows if row[0] in having]
        if len(found) > page.limit or not more:
            return found[: page.limit + 1], len(found) > page.limit
        steps.after = rows[-1][1], rows[-1][0]
    return (found, True) if len(found) >= enough else None


class _Matches:
    """Says which steps match, and which runs have one that does. `read` is what that took: the steps that it was asked
    of, and the matches that the index told.
    """

    def __init__(self, db: sqlite3.Connection, match: str) -> None:
        self.read = 0
        self._db = db
        self._match = match
        self._tail = {*_tail(db, match)}

    def among(self, steps: Iterable[tuple[int, int, int]]) -> set[int] | None:
        """Return the first of those triples whose step matches; the others are the step's number and position.

        None where the steps lie so far apart that the index would tell too much of what is between them.
        """
        several = list(steps)
        first, last = min((each[2] for each in several), default=0), max((each[2] for each in several), default=0)
        if last - first > _SPREAD * max(len(several), _WALKED):
            return None
        query = "SELECT rowid FROM step_texts WHERE step_texts MATCH ? AND rowid BETWEEN ? AND ?"
        positions = {position for (position,) in self._db.execute(query, (self._match, first, last))}
        self.read += len(several) + len(positions)
        return {listed for listed, number, position in several if position in positions or number in self._tail}

    def runs(self, rows: list[tuple[Any, ...]]) -> set[int] | None:
        """Return the numbers of runs, of rows that begin with number, start, id, root and position, that have a step
        that matches: most often it is what the run itself was asked, or returned.
        """
        listed = {row[2]: row[0] for row in rows}
        owned = ((row[2] if row[3] is None else row[3], row[0], row[4]) for row in rows)
        having = self.among((listed[id], *step) for id, *step in owned if id in listed) or set()
        left = [row for row in rows if row[0] not in having]
        if not left:
            return having
        others = self.among(_inside(self._db, left))
        return None if others is None else having | others


def _inside(db: sqlite3.Connection, rows: list[tuple[Any, ...]]) -> list[tuple[int, int, int]]:
    """Return the steps of runs, themselves included: number of the run, number and position of the step."""
    listed = {row[2]: row[0] for row in rows}
    owned = members(db, f"s.number, {_POSITION}", list(listed))
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
