"""The sums of runs, remembered between two looks at a list, so that only those of runs that changed are added up.

What must stay true: sums are those of the reader's own snapshot: they are kept with the position they were read at, and
dropped with the next change of any step of their trace, or with any deletion, whichever process it was.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any, Final

from stepwell.store._schema import LAST_POSITION

__all__ = ["RunSums"]

Id = bytes | str
Sums = tuple[int, int, int, int, float | None]

_MOST: Final = 10_000
_CHANGES: Final = 2_000
_CHANGED: Final = "SELECT id FROM steps WHERE number > ?1 UNION ALL SELECT id FROM steps WHERE changed > ?1 LIMIT ?2"
_CLEARED: Final = "SELECT EXISTS (SELECT 1 FROM state WHERE last_number > ?), EXISTS (SELECT 1 FROM steps WHERE stray)"


class RunSums:
    """Remembers sums by the id of the run; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._position = 0
        self._count = 0
        self._kept: dict[Id, dict[Id, Sums]] = {}  # by what the ids of a trace begin with

    def known(self, db: sqlite3.Connection, ids: Iterable[Id]) -> tuple[int, dict[Id, Sums]]:
        """Return the position of the snapshot, and the sums that are known there."""
        (position,) = db.execute(LAST_POSITION).fetchone()
        with self._lock:
            if position < self._position:  # an older snapshot than that of another reader
                return position, {}
            if position > self._position:
                self._forget(db, position)
            kept = self._kept
            return position, {id: kept[head][id] for id in ids if id in kept.get(head := _head(id), ())}

    def _forget(self, db: sqlite3.Connection, position: int) -> None:
        """Drop the sums of what changed since the last position, and all where something was deleted."""
        if self._kept:
            changed = [id for (id,) in db.execute(_CHANGED, (self._position, _CHANGES))]
            if len(changed) == _CHANGES or any(db.execute(_CLEARED, (self._position,)).fetchone()):
                self._clear()
            for id in changed:
                self._count -= len(self._kept.pop(_head(id), ()))
        self._position = position

    def _clear(self) -> None:
        self._kept.clear()
        self._count = 0

    def keep(self, position: int, sums: Mapping[Any, Sums]) -> None:
        """Remember what was read at a position."""
        with self._lock:
            if position != self._position:
                return
            if self._count + len(sums) > _MOST:
                self._clear()
            for id, each in sums.items():
                of_trace = self._kept.setdefault(_head(id), {})
                self._count += id not in of_trace
                of_trace[id] = each


def _head(id: Id) -> Id:
    """Return what ids of one trace begin with."""
    return id[:8] if isinstance(id, bytes) else id
