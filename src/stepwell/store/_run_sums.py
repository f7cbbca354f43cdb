"""The sums of long runs, remembered between two looks at a list, so that a run of 10,000 steps does not slow each one.

What must stay true: sums are those of the reader's own snapshot: they are kept with the position they were read at, and
dropped with the next change of any step of their trace.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Mapping
from threading import Lock
from typing import Any, Final

from stepwell.store._schema import LAST_POSITION

__all__ = ["RunSums"]

Id = bytes | str
Sums = tuple[int, int, int, int, float | None]

_LONG: Final = 100  # steps; sums of shorter runs cost less than asking
_MOST: Final = 10_000
_CHANGES: Final = 2_000
_MAX_AGE_S: Final = 30.0  # deletions have no position
_CHANGED: Final = "SELECT id FROM steps WHERE number > ?1 UNION ALL SELECT id FROM steps WHERE changed > ?1 LIMIT ?2"
_STRAYS: Final = "SELECT 1 FROM steps WHERE stray LIMIT 1"


class RunSums:
    """Remembers sums by the id of the run; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._position = 0
        self._kept: dict[Id, tuple[float, Sums]] = {}

    def known(self, db: sqlite3.Connection, ids: Iterable[Id]) -> tuple[int, dict[Id, Sums]]:
        """Return the position of the snapshot, and the sums that are known there."""
        (position,) = db.execute(LAST_POSITION).fetchone()
        with self._lock:
            if position < self._position:  # an older snapshot than that of another reader
                return position, {}
            if position > self._position:
                self._forget(db, position)
            now = time.monotonic()
            found = {id: self._kept[id] for id in ids if id in self._kept}
            return position, {id: sums for id, (made, sums) in found.items() if now - made < _MAX_AGE_S}

    def _forget(self, db: sqlite3.Connection, position: int) -> None:
        """Drop the sums of what changed since the last position."""
        if self._kept:
            changed = [id for (id,) in db.execute(_CHANGED, (self._position, _CHANGES))]
            if len(changed) == _CHANGES or db.execute(_STRAYS).fetchone() is not None:
                self._kept.clear()
            heads = {_head(id) for id in changed}
            self._kept = {id: kept for id, kept in self._kept.items() if _head(id) not in heads}
        self._position = position

    def keep(self, position: int, sums: Mapping[Any, Sums]) -> None:
        """Remember what was read at a position."""
        now = time.monotonic()
        long = {id: (now, each) for id, each in sums.items() if each[0] >= _LONG}
        with self._lock:
            if position == self._position and long:
                if len(self._kept) + len(long) > _MOST:
                    self._kept.clear()
                self._kept.update(long)


def _head(id: Id) -> Id:
    """Return what ids of one trace begin with."""
    return id[:8] if isinstance(id, bytes) else id
