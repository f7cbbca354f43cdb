"""Which steps are below which, in the embedded store.

What must stay true: a trace is read as one range of the index on `id`. Only where records with links of another making
are present (`stray`) are they looked up one by one, to whatever depth.
"""

# ruff: noqa: S608 (id is the word of the records; what is put into SQL are our own column names)

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from stepwell.store._query import id_range

__all__ = ["Children", "below", "children_of", "in_order", "members", "relatives"]

Id = bytes | str
Rows = dict[Id, tuple[Any, ...]]  # by id; each begins with id, parent_id, root_run_id
Children = dict[Id | None, list[tuple[Any, ...]]]

_CHUNK = 400
_STRAYS = "SELECT 1 FROM steps WHERE stray LIMIT 1"


def relatives(db: sqlite3.Connection, columns: str, ids: Iterable[Id]) -> Rows:
    """Return these steps and at least all steps below them, with the columns after id, parent_id and root_run_id."""
    select = f"SELECT s.id, s.parent_id, s.root_run_id, {columns} FROM steps s WHERE"
    has_strays = db.execute(_STRAYS).fetchone() is not None
    rows: Rows = {}
    heads: set[bytes] = set()
    wanted = list(ids)
    while wanted:
        added = _load(db, select, wanted, heads)
        rows.update(added)
        wanted = [id for id in _strays_below(db, list(added)) if id not in rows] if has_strays else []
    return rows


def members(db: sqlite3.Connection, columns: str, ids: Sequence[Id]) -> list[tuple[Any, ...]]:
    """Return the columns of at least all steps that say that they are of these runs, after the id of the run; of what
    is in no run, its own.
    """
    heads = {id[:8]: id_range(id) for id in ids if not isinstance(id, str)}
    if any(isinstance(id, str) for id in ids) or db.execute(_STRAYS).fetchone() is not None:
        return [(row[0] if row[2] is None else row[2], *row[3:]) for row in relatives(db, columns, ids).values()]
    select = f"SELECT ifnull(s.root_run_id, s.id), {columns} FROM (VALUES {', '.join(['(?, ?)'] * len(heads))}) v"
    bounds = [bound for both in heads.values() for bound in both]
    return db.execute(f"{select} CROSS JOIN steps s ON s.id BETWEEN v.column1 AND v.column2", bounds).fetchall()


def _load(db: sqlite3.Connection, select: str, ids: list[Id], heads: set[bytes]) -> Rows:
    rows: Rows = {}
    for id in ids:
        if isinstance(id, str):
            rows.update((row[0], row) for row in db.execute(f"{select} s.id = ?", (id,)))
        elif (head := id[:8]) not in heads:
            heads.add(head)
            rows.update({row[0]: row for row in db.execute(f"{select} s.id BETWEEN ? AND ?", id_range(id))})
    return rows


def _strays_below(db: sqlite3.Connection, ids: list[Id]) -> list[Id]:
    found: list[Id] = []
    for start in range(0, len(ids), _CHUNK):
        chunk = ids[start : start + _CHUNK]
        places = ", ".join("?" * len(chunk))
        for column in ("parent_id", "root_run_id"):
            found += (id for (id,) in db.execute(f"SELECT id FROM steps WHERE stray AND {column} IN ({places})", chunk))
    return found


def children_of(rows: Rows) -> Children:
    """Return the rows by parent. A step whose parent never arrived stands directly below its root run."""
    children: Children = {}
    for row in rows.values():
        id, parent_id, root_run_id = row[:3]
        if parent_id not in rows:
            parent_id = None if root_run_id == id else root_run_id
        children.setdefault(parent_id, []).append(row)
    return children


def below(row: tuple[Any, ...], children: Children) -> list[tuple[Any, ...]]:
    """Return the row and all rows below it; each once, also where links go round in a circle."""
    found = [row]
    seen: set[Id] = {row[0]}
    for parent in found:
        for child in children.get(parent[0], ()):
            if child[0] not in seen:
                seen.add(child[0])
                found.append(child)
    return found


def in_order(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return rows, which are in the order of their start, as a run shows them: each before what is below it."""
    by_id: Rows = {row[0]: row for row in rows}
    children = children_of(by_id)
    found: dict[Id, tuple[Any, ...]] = {}
    for top in (*children.get(None, ()), *rows):  # in a circle nothing is on top
        waiting = [top]
        while waiting:
            row = waiting.pop()
            if row[0] not in found:
                found[row[0]] = row
                waiting += reversed(children.get(row[0], ()))
    return list(found.values())
