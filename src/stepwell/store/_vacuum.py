"""Giving back the space that the embedded store does not need, and copying it while it is in use.

What must stay true:

1. What is read is the same before and after, byte for byte; numbers too, so cursors and positions go on.
2. A copy is under its name only when it is whole and on the disk, and its owner's alone.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any, Final

from msgspec import Raw, json

from stepwell.errors import StoreError, UsageError
from stepwell.store._connections import Connections
from stepwell.store._deleting import Deletion, erasing, spans_of_items
from stepwell.store._loose import loosen_messages
from stepwell.store._packs import MIN_BATCH_BYTES, PACKED_COLUMNS, Item, PackWriter, read_pack, rewrite_pack
from stepwell.store._search import forget_index

__all__ = ["backup", "vacuum"]

_ROWS: Final = 500  # in one transaction, likewise
_PACKS: Final = 32
_BYTES: Final = 2 << 20
_COLUMNS: Final = ", ".join(PACKED_COLUMNS)
_SELECT_PAYLOADS: Final = (
    f"SELECT number, {_COLUMNS} FROM payload WHERE pack IS NULL AND number > ? "  # noqa: S608 (our own column names, likewise below)
    f"AND coalesce({_COLUMNS}) IS NOT NULL ORDER BY number LIMIT {_ROWS}"
)
_SET_PAYLOAD: Final = (
    f"UPDATE payload SET {', '.join(f'{name} = NULL' for name in PACKED_COLUMNS)}, pack = ? WHERE number = ?"  # noqa: S608
)
_SELECT_MESSAGES: Final = (
    f"SELECT number, body FROM messages WHERE pack IS NULL AND number > ? ORDER BY number LIMIT {_ROWS}"  # noqa: S608
)
_SET_MESSAGE: Final = "UPDATE messages SET body = NULL, pack = ? WHERE number = ?"
_SELECT_PACKS: Final = f"SELECT number, body FROM packs WHERE number > ? ORDER BY number LIMIT {_PACKS}"  # noqa: S608
_IN_PACK: Final = "SELECT number FROM {} WHERE pack = ? AND number IN (SELECT value FROM json_each(?))"
_encode: Final = json.Encoder().encode


def vacuum(connections: Connections) -> None:
    """Take out what is dead, compress what is not, and write the file anew; see `Store.vacuum`."""
    deletion = Deletion(connections)
    _take_out_dead(connections)
    deletion.sweep()
    last = 0
    while (place := _pack_payloads(connections, last)) is not None:
        last = place
    last = 0
    while (place := _pack_messages(connections, last)) is not None:
        last = place
    with connections.writing() as db:
        forget_index(db)
    connections.vacuum()


def _take_out_dead(connections: Connections) -> None:
    """Take out of packs the payloads of steps that have another now."""
    last = 0
    while True:
        with connections.reading() as db:
            packs = [(number, read_pack(number, body)) for number, body in db.execute(_SELECT_PACKS, (last,))]
            stale = [number for number, items in packs if len(_live(db, number, items)) < len(items)]
        if stale:
            with erasing(connections) as db:
                for number in stale:
                    _rewrite(db, number)
        if len(packs) < _PACKS:
            return
        last = packs[-1][0]


def _live(db: sqlite3.Connection, pack: int, items: list[Item]) -> set[tuple[int | None, int | None]]:
    """Return what is read from this pack, as step and message of an item."""
    steps = _encode([item.step for item in items if item.step is not None]).decode()
    messages = _encode([item.message for item in items if item.message is not None]).decode()
    live: set[tuple[int | None, int | None]] = {
        (number, None) for (number,) in db.execute(_IN_PACK.format("payload"), (pack, steps))
    }
    return live | {(None, number) for (number,) in db.execute(_IN_PACK.format("messages"), (pack, messages))}


def _rewrite(db: sqlite3.Connection, pack: int) -> None:
    row = db.execute("SELECT body FROM packs WHERE number = ?", (pack,)).fetchone()
    if row is not None:  # or it was deleted meanwhile
        live = _live(db, pack, read_pack(pack, row[0]))
        removed = rewrite_pack(db, pack, lambda item: (item.step, item.message) in live)
        loosen_messages(db, spans_of_items(removed))


def _pack_payloads(connections: Connections, last: int) -> int | None:
    """Put the next payloads that are in no pack into some; return the last step's number, None after the end."""
    with connections.writing() as db:
        rows, more = _some(db, _SELECT_PAYLOADS, last)
        if rows and _size(rows) >= MIN_BATCH_BYTES:
            packs = PackWriter(db)
            placed = [(packs.add_step(number, _present(values)), number) for number, *values in rows]
            packs.flush()
            db.executemany(_SET_PAYLOAD, placed)
    return rows[-1][0] if more else None


def _pack_messages(connections: Connections, last: int) -> int | None:
    """Put the next messages that are in no pack into some, likewise."""
    with connections.writing() as db:
        rows, more = _some(db, _SELECT_MESSAGES, last)
        if rows and _size(rows) >= MIN_BATCH_BYTES:
            packs = PackWriter(db)
            placed = [(packs.add_message(number, Raw(body.encode())), number) for number, body in rows]
            packs.flush()
            db.executemany(_SET_MESSAGE, placed)
    return rows[-1][0] if more else None


def _some(db: sqlite3.Connection, query: str, last: int) -> tuple[list[tuple[Any, ...]], bool]:
    """Return the next rows, as many as one transaction may compress, and whether there may be more."""
    rows: list[tuple[Any, ...]] = []
    size = 0
    for row in db.execute(query, (last,)):
        rows.append(row)
        size += _size([row])
        if size > _BYTES:
            return rows, True
    return rows, len(rows) == _ROWS


def _size(rows: list[tuple[Any, ...]]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, str))


def _present(values: list[Any]) -> dict[str, Any]:
    return {name: value for name, value in zip(PACKED_COLUMNS, values, strict=True) if value is not None}


def backup(connections: Connections, path: Path) -> None:
    """Copy the store into a new file; see `Store.backup`."""
    if path.exists():
        raise UsageError(f"{str(path)!r} is there already: name a new file")
    part = path.with_name(f".{path.name}-{os.urandom(8).hex()}")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        try:
            connections.copy_to(part)
            _sync(part)
            _give_name(part, path)
            _sync(path.parent)
        finally:
            part.unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError(f"{str(path)!r} is there already: name a new file") from None
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror or error}") from error


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _give_name(part: Path, path: Path) -> None:
    """Name a file, unless there is one of this name; a link, because that is refused where a renaming would replace."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists():
            raise FileExistsError(path) from None
        part.rename(path)
