"""Payloads and messages in compressed packs.

What agents record says most things several times: an answer is a step's output, the completion, a part of the
provider's response, and a message of the next call. A pack holds the payloads and new messages of neighbouring steps,
in order, about 64 kB of them, as one zlib stream of a JSON array, which is a seventh of that.

What must stay true:

1. Compressing is paid by what it follows: only batches are packed of which the greater part were messages that need
   not be written again.
2. What is unpacked equals what was packed, byte for byte: payloads are spliced into the pack as they are.
3. A pack is changed only to take out what was deleted or is dead: a step that is updated gets a row of its own, and
   what the pack has of it is dead. What is in packs is listed in `pack_contents`, so that few need to be opened.
"""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, json

from stepwell.errors import CorruptStoreError
from stepwell.store._schema import LAST_PACK
from stepwell.store._spans import encode_spans, spans_of_refs, united

__all__ = [
    "MIN_BATCH_BYTES",
    "PACKED_COLUMNS",
    "Item",
    "PackReader",
    "PackWriter",
    "contents_of",
    "list_pack",
    "packs_pay",
    "read_pack",
    "rewrite_pack",
]

PACK_BYTES: Final = 65_536  # what a read of one step unpacks; half of it costs a seventh more of the file
MIN_BATCH_BYTES: Final = 8_192  # what little is left of a small batch does not compress well
_LEVEL: Final = 6
_MAX_CACHED: Final = 8


class Item(Struct, omit_defaults=True):
    """What a pack holds of a step or of a message, by their number."""

    step: int | None = None
    message: int | None = None
    body: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    generation: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    attachments: Raw | UnsetType = UNSET
    refs: Raw | UnsetType = UNSET
    active_ns: int | None = None
    sdk: str | None = None


PACKED_COLUMNS: Final = Item.__struct_fields__[3:]  # of `payload`: all but the metadata, which filters read
_decode = json.Decoder(list[Item]).decode
_encode = json.Encoder().encode


def packs_pay(frames: Sequence[bytes], emptied: int) -> bool:
    """Tell whether a batch is worth packing, of which so many bytes of arrays need not be written."""
    total = sum(map(len, frames))
    return total >= MIN_BATCH_BYTES and 2 * emptied >= total


class PackWriter:
    """Fills packs, inside the caller's transaction; `flush` ends the last one."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        (last,) = db.execute(LAST_PACK).fetchone()
        self._number = int(last) + 1
        self._items: list[Item] = []
        self._bytes = 0

    def add_step(self, number: int, values: dict[str, Any]) -> int:
        """Take columns of a step's payload; return the pack's number."""
        fields: dict[str, Any] = {
            name: Raw(value.encode()) if name not in _PLAIN else value for name, value in values.items()
        }
        return self._add(
            Item(step=number, **fields), sum(len(text) for text in values.values() if isinstance(text, str))
        )

    def add_message(self, number: int, body: Raw) -> int:
        """Take a message; return the pack's number."""
        return self._add(Item(message=number, body=body), memoryview(body).nbytes)

    def _add(self, item: Item, size: int) -> int:
        if self._bytes + size > PACK_BYTES:
            self.flush()
        self._items.append(item)
        self._bytes += size
        return self._number

    def flush(self) -> None:
        """Write the pack that is being filled."""
        if self._items:
            self._db.execute("INSERT INTO packs (number, body) VALUES (?, ?)", (self._number, _write(self._items)))
            list_pack(self._db, self._number, self._items)
            self._number += 1
            self._items, self._bytes = [], 0


class PackReader:
    """Reads packs; keeps the last few."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._packs: dict[int, dict[tuple[bool, int], Item]] = {}

    def step(self, pack: int, number: int) -> dict[str, Any]:
        """Return the columns of a step's payload. Raises `CorruptStoreError` where they are not there."""
        item = self._item(pack, number, is_message=False)
        fields: dict[str, Any] = {}
        for name in PACKED_COLUMNS:
            value = getattr(item, name)
            fields[name] = None if value is UNSET else str(value, "utf-8") if isinstance(value, Raw) else value
        return fields

    def message(self, pack: int, number: int) -> str:
        """Return a message's text. Raises `CorruptStoreError` where it is not there."""
        body = self._item(pack, number, is_message=True).body
        return "" if body is UNSET else str(body, "utf-8")

    def _item(self, pack: int, number: int, *, is_message: bool) -> Item:
        try:
            return self._load(pack)[is_message, number]
        except KeyError:
            raise CorruptStoreError(f"pack {pack} does not hold what is said to be in it") from None

    def _load(self, pack: int) -> dict[tuple[bool, int], Item]:
        if (items := self._packs.pop(pack, None)) is None:
            row = self._db.execute("SELECT body FROM packs WHERE number = ?", (pack,)).fetchone()
            if row is None:
                raise CorruptStoreError(f"pack {pack} is not there")
            items = {(item.step is None, item.message or item.step or 0): item for item in read_pack(pack, row[0])}
        while len(self._packs) >= _MAX_CACHED:
            del self._packs[next(iter(self._packs))]
        self._packs[pack] = items
        return items


def list_pack(db: sqlite3.Connection, number: int, items: Iterable[Item]) -> None:
    """Write the row of `pack_contents`."""
    db.execute("REPLACE INTO pack_contents VALUES (?, ?, ?, ?)", (number, *contents_of(items)))


def contents_of(items: Iterable[Item]) -> tuple[int | None, int | None, str]:
    """Return first step, last step and references of what is in a pack."""
    steps: list[int] = []
    spans: list[tuple[int, int]] = []
    for item in items:
        if item.step is not None:
            steps.append(item.step)
            if isinstance(item.refs, Raw):
                spans += spans_of_refs(item.refs)
    return min(steps, default=None), max(steps, default=None), encode_spans(united(spans))


def rewrite_pack(db: sqlite3.Connection, number: int, is_kept: Callable[[Item], bool]) -> list[Item]:
    """Take out of a pack what is not kept, and the pack itself where nothing is; return what was taken out."""
    row = db.execute("SELECT body FROM packs WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise CorruptStoreError(f"pack {number} is not there")
    kept: list[Item] = []
    removed: list[Item] = []
    for item in read_pack(number, row[0]):
        (kept if is_kept(item) else removed).append(item)
    if not kept:
        db.execute(f"UPDATE state SET last_pack = ({LAST_PACK})")  # noqa: S608 (a constant)
        db.execute("DELETE FROM packs WHERE number = ?", (number,))
        db.execute("DELETE FROM pack_contents WHERE pack = ?", (number,))
    elif removed:
        db.execute("UPDATE packs SET body = ? WHERE number = ?", (_write(kept), number))
        list_pack(db, number, kept)
    return removed


def _write(items: list[Item]) -> bytearray:
    return bytearray(zlib.compress(_encode(items), _LEVEL))


def read_pack(number: int, body: bytes) -> list[Item]:
    """Return what a pack holds; raises `CorruptStoreError`."""
    try:
        return _decode(zlib.decompress(body))
    except (zlib.error, DecodeError, UnicodeDecodeError) as error:
        raise CorruptStoreError(f"pack {number} can't be read: {error}") from error


_PLAIN: Final = frozenset({"active_ns", "sdk"})
