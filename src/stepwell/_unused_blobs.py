"""Removing the files of blobs that no step in a store names any more.

What must stay true: a blob that a record names is not removed, wherever the record is: in the store, in the journal or
among the rejected, or on its way, which is why one that was put or asked for in the last minutes stays. What stays is
looked at again the next time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from stepwell.blobs import BlobStore
from stepwell.store import Store
from stepwell.store._loose import hashes_in

__all__ = ["IDLE_S", "Removed", "remove_unused"]

IDLE_S: Final = 600.0  # twice what an exporter relies on an answer of a server
_DATABASES: Final = frozenset({".db", ".sqlite", ".sqlite3"})
_WAITING: Final = ("journal", "rejected")


class Removed(NamedTuple):
    """How many files were removed, their size together, and how many are left for another time."""

    blobs: int = 0
    bytes: int = 0
    left: int = 0


def remove_unused(store: Store, blobs: BlobStore, *, idle_s: float = IDLE_S) -> Removed:
    """Remove the files of blobs that the store has lost its last step of. Raises `StoreError`, `OSError`.

    None is removed where another database is in the same folder, which may be a store that names it.
    """
    loose = store.loose_blobs()
    home = blobs.folder.parent
    if not loose:
        return Removed()
    if sum(path.suffix in _DATABASES for path in home.iterdir()) > 1:
        return Removed(left=len(loose))
    waiting = _named_in(home)
    gone: list[str] = []
    sizes: list[int] = []
    for sha256 in loose:
        if sha256 not in waiting and (size := blobs.remove(sha256, idle_s=idle_s)) is not None:
            gone.append(sha256)
            sizes.append(size)
    store.forget_blobs(gone)
    return Removed(sum(size > 0 for size in sizes), sum(sizes), len(loose) - len(gone))


def _named_in(home: Path) -> set[str]:
    """Return the blobs that undelivered records name. Frames are whole in their files, so nothing is decoded."""
    found: set[str] = set()
    for folder in _WAITING:
        for path in (home / folder).rglob("*"):
            if path.is_file():
                found.update(hash.hex() for hash in hashes_in(path.read_bytes()))
    return found
