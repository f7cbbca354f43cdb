"""Listing what rows of older versions refer to, before something is deleted for the first time.

What must stay true: the list of a row is committed with the mark that says it is listed, a few rows at a time, so that
writers in between wait for milliseconds, and a process that dies is followed by one that goes on where it was.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from stepwell.model import encode_record
from stepwell.store._connections import Connections
from stepwell.store._loose import hashes_in, list_blobs
from stepwell.store._messages import Bodies
from stepwell.store._packs import list_pack, read_pack
from stepwell.store._rows import RECORD_SQL, step_of_row

__all__ = ["list_old_rows"]

_PACKS: Final = 64  # in one transaction, likewise
_STEPS: Final = 200
_SELECT_PACKS: Final = f"SELECT number, body FROM packs WHERE number <= ? ORDER BY number DESC LIMIT {_PACKS}"  # noqa: S608 (a number)
_SELECT_STEPS: Final = (
    f"SELECT s.number, {RECORD_SQL} FROM steps s JOIN payload p USING (number) "  # noqa: S608 (our own column names)
    f"WHERE s.number <= ? ORDER BY s.number DESC LIMIT {_STEPS}"
)


def list_old_rows(connections: Connections) -> None:
    """List the packs and blobs of rows that older versions wrote; does nothing where all is listed."""
    while True:
        with connections.reading() as db:
            step, pack = db.execute("SELECT unlisted_step, unlisted_pack FROM state").fetchone()
        if not step and not pack:
            return
        with connections.writing() as db:
            step, pack = db.execute("SELECT unlisted_step, unlisted_pack FROM state").fetchone()
            if pack:
                db.execute("UPDATE state SET unlisted_pack = ?", (_list_packs(db, pack),))
            elif step:
                db.execute("UPDATE state SET unlisted_step = ?", (_list_steps(db, step),))


def _list_packs(db: sqlite3.Connection, last: int) -> int:
    rows = db.execute(_SELECT_PACKS, (last,)).fetchall()
    for number, body in rows:
        list_pack(db, number, read_pack(number, body))
    return rows[-1][0] - 1 if len(rows) == _PACKS else 0


def _list_steps(db: sqlite3.Connection, last: int) -> int:
    bodies = Bodies(db)
    rows = db.execute(_SELECT_STEPS, (last,)).fetchall()
    for number, *values in rows:
        list_blobs(db, [(hashes_in(encode_record(step_of_row(values, bodies))), number)])
    return rows[-1][0] - 1 if len(rows) == _STEPS else 0
