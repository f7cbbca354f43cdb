"""What steps of the embedded store refer to: which blobs, and which messages may have lost their last reference.

What must stay true: what a committed step names is listed with it, in the same transaction; what may have lost its last
reference is listed with the loss. So a process that dies in between leaves nothing behind that nobody would find.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator
from typing import Final

from stepwell.store._spans import Spans, united

__all__ = ["BLOB_MARK", "hashes_in", "list_blobs", "loosen_messages"]

BLOB_MARK: Final = b"sha256"  # what is cheap to look for in each record
# Also where JSON stands in a string, and however it is spaced: a blob too many is kept rather than one too few.
_HASH: Final = re.compile(rb'sha256[\\"\s]*:[\\"\s]*([0-9a-f]{64})(?![0-9a-f])')
_INSERT_BLOB: Final = "INSERT INTO step_blobs (hash, step) VALUES (?, ?) ON CONFLICT DO NOTHING"


def hashes_in(data: bytes) -> set[bytes]:
    """Return the hashes of the blobs that JSON names, as 32 bytes each."""
    return {bytes.fromhex(found[1].decode()) for found in _HASH.finditer(data)}


def list_blobs(db: sqlite3.Connection, named: Iterable[tuple[Iterable[bytes], int]]) -> None:
    """Note which blobs steps name: hashes, and the step's number."""
    rows: Iterator[tuple[bytearray, int]] = ((bytearray(hash), step) for hashes, step in named for hash in hashes)
    db.executemany(_INSERT_BLOB, rows)


def loosen_messages(db: sqlite3.Connection, spans: Spans) -> None:
    """Note which messages have lost a reference."""
    db.executemany("INSERT INTO loose_messages (first, last) VALUES (?, ?)", united(spans))
