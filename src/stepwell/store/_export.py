"""Reading everything out of the embedded store, and finding what an id may mean.

What must stay true: an export holds one batch of rows at a time, and no transaction between batches, so it may run for
hours beside a writer; added to an empty store it makes an equal one.
"""

# ruff: noqa: S608 (id and filter are the words of the records; SQL is made of our own column names)

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any, Final

from stepwell.model import Score, ScoreRecord, StepRecord, encode_record
from stepwell.store import StepFilter
from stepwell.store._connections import Connections
from stepwell.store._messages import Bodies
from stepwell.store._query import Keyset, select_steps, select_thread_ids
from stepwell.store._rows import (
    RECORD_SQL,
    SCORE_COLUMNS,
    THREAD_COLUMNS,
    pack_id,
    score_of_row,
    step_of_row,
    thread_of_row,
    unpack_id,
)
from stepwell.store._search import among

__all__ = ["export", "find_by_prefix", "read_steps"]

_BATCH: Final = 500
_JOIN: Final = "LEFT JOIN payload p ON p.number = s.number"
_SCORE: Final = ", ".join(f"c.{name}" for name in SCORE_COLUMNS)
_SELECT_THREADS: Final = f"SELECT t.number, {', '.join(f't.{name}' for name in THREAD_COLUMNS)} FROM threads t"
_SELECT_EARLY_SCORES: Final = (
    f"SELECT c.number, {_SCORE} FROM scores c "
    "WHERE c.number > ? AND NOT EXISTS (SELECT 1 FROM steps WHERE id = c.step_id) ORDER BY c.number LIMIT ?"
)


def export(connections: Connections, filter: StepFilter | None) -> Iterator[bytes]:
    """Stream records as JSON lines, see `Store.records`."""
    found = None
    if filter is not None and filter.text is not None:
        with connections.reading() as db:
            found = among(db, filter.text)
    yield from _threads(connections, filter, found)
    yield from _steps(connections, filter or StepFilter(), found)
    if filter is None:
        yield from _early_scores(connections)


def _threads(connections: Connections, filter: StepFilter | None, found: str | None) -> Iterator[bytes]:
    matching, values = ("", []) if filter is None else select_thread_ids(filter, found)
    condition = f"AND t.id IN ({matching})" if matching else ""
    query = f"{_SELECT_THREADS} WHERE t.number > ? {condition} ORDER BY t.number LIMIT ?"
    for row in _batches(connections, query, values):
        yield encode_record(thread_of_row(row[1:]))


def _early_scores(connections: Connections) -> Iterator[bytes]:
    for row in _batches(connections, _SELECT_EARLY_SCORES, []):
        score = score_of_row(row[1:])
        fields: dict[str, Any] = {name: getattr(score, name) for name in score.__struct_fields__}
        fields["step_id"] = unpack_id(row[1])
        yield encode_record(ScoreRecord(**fields))


def _batches(connections: Connections, query: str, values: list[Any]) -> Iterator[tuple[Any, ...]]:
    last = 0
    while True:
        with connections.reading() as db:
            rows = db.execute(query, (last, *values, _BATCH)).fetchall()
        yield from rows
        if len(rows) < _BATCH:
            return
        last = rows[-1][0]


def _steps(connections: Connections, filter: StepFilter, found: str | None) -> Iterator[bytes]:
    page = Keyset("x", _BATCH, None, "asc")
    while True:
        with connections.reading() as db:
            rows = db.execute(*select_steps(RECORD_SQL, filter, page, join=_JOIN, among=found)).fetchall()[:_BATCH]
            scores = _scores_of(db, [row[2] for row in rows])
            bodies = Bodies(db)
            steps = [step_of_row(row[2:], bodies) for row in rows]
        for row, step in zip(rows, steps, strict=True):
            step.scores = scores.get(row[2])
            yield encode_record(step)
        if len(rows) < _BATCH:
            return
        page.after = rows[-1][1], rows[-1][0]


def read_steps(db: sqlite3.Connection, ids: Sequence[str]) -> list[StepRecord]:
    """Return whole steps, in the order of their ids, without those that are not there."""
    packed = [pack_id(id) for id in ids]
    places = ", ".join("?" * len(packed))
    query = f"SELECT s.id, {RECORD_SQL} FROM steps s {_JOIN} WHERE s.id IN ({places}) ORDER BY s.number"
    bodies, found = Bodies(db), dict[str, StepRecord]()
    rows = db.execute(query, packed).fetchall()
    scores = _scores_of(db, [row[0] for row in rows])
    for row in rows:
        step = found[str(unpack_id(row[0]))] = step_of_row(row[1:], bodies)
        step.scores = scores.get(row[0])
    return [found[id] for id in ids if id in found]


def _scores_of(db: sqlite3.Connection, ids: list[bytes | str]) -> dict[bytes | str, list[Score]]:
    scores: dict[bytes | str, list[Score]] = {}
    places = ", ".join("?" * len(ids))
    for row in db.execute(f"SELECT {_SCORE} FROM scores c WHERE c.step_id IN ({places}) ORDER BY c.number", ids):
        scores.setdefault(row[0], []).append(score_of_row(row))
    return scores


def find_by_prefix(db: sqlite3.Connection, prefix: str) -> list[str]:
    """Return up to two ids of steps that begin with a prefix."""
    found = db.execute(
        "SELECT id FROM steps WHERE id >= ? AND id < ? LIMIT 2", (prefix, prefix + "\U0010ffff")
    ).fetchall()
    digits = prefix.replace("-", "")
    first = pack_id(_as_uuid(digits.ljust(32, "0")))
    if isinstance(first, bytearray) and _as_uuid(digits).startswith(prefix):
        last = pack_id(_as_uuid(digits.ljust(32, "f")))
        found += db.execute("SELECT id FROM steps WHERE id BETWEEN ? AND ? LIMIT 2", (first, last)).fetchall()
    return [str(unpack_id(id)) for (id,) in found[:2]]


def _as_uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
