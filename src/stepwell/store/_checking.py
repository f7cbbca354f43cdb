"""What may be missing in the embedded store though the file itself is whole: rows that others refer to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from stepwell.errors import CorruptStoreError
from stepwell.store._messages import Bodies
from stepwell.store._packs import read_pack

__all__ = ["find_lost"]

_LOST: Final = "SELECT count(*) FROM payload WHERE number NOT IN (SELECT number FROM steps)"
_REFERRING: Final = "SELECT number, pack, refs FROM payload WHERE pack IS NOT NULL OR refs IS NOT NULL"


def find_lost(db: sqlite3.Connection) -> list[str]:
    """Return what is missing; reads every payload's references and every pack."""
    (lost,) = db.execute(_LOST).fetchone()
    problems = [f"{lost} payloads belong to no step"] if lost else []
    problems += _unreadable_packs(db)
    bodies = Bodies(db)
    broken = sum(not _resolves(bodies, *row) for row in db.execute(_REFERRING))
    if broken:
        problems.append(f"{broken} payloads refer to what is not there")
    return problems


def _unreadable_packs(db: sqlite3.Connection) -> Iterator[str]:
    for number, body in db.execute("SELECT number, body FROM packs"):
        try:
            read_pack(number, body)
        except CorruptStoreError as error:
            yield str(error)


def _resolves(bodies: Bodies, number: int, pack: int | None, refs: str | None) -> bool:
    try:
        if pack is not None:
            refs = bodies.packs.step(pack, number)["refs"]
        return refs is None or bodies.are_there(refs)
    except CorruptStoreError:
        return False
