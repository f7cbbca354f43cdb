"""Which store a command reads, and how it comes to hold what is still in the journal.

What must stay true:

1. Looking takes nothing away: frames are added to the store, which is idempotent, and stay in the journal.
2. Looking makes no folder and no store. Where there is no store, or it can't be written, a store in memory is read.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple

from stepwell._recovery import peek
from stepwell._settings import DEFAULT_HOME
from stepwell.errors import CorruptStoreError, StoreError, UsageError
from stepwell.store import Store, open_store

__all__ = ["Source", "add_all", "find_source"]

_BATCH: Final = 2000
_MEMORY: Final = "sqlite::memory:"


class Source(NamedTuple):
    """A home folder, or, where there is a `url`, a store alone."""

    home: Path
    url: str | None

    @property
    def store_path(self) -> Path:
        """The store of the home folder."""
        return self.folder / "steps.db"

    @property
    def folder(self) -> Path:
        """The home folder, absolute, which must be there. Raises `UsageError`."""
        if not self.home.is_dir():
            raise UsageError(
                f"there is no home folder {str(self.home)!r}: name one with --home, or make one with: stepwell demo"
            )
        return self.home.absolute()

    @property
    def store_url(self) -> str:
        """The store's URL, which for a home is also the key of the exporter that fills it."""
        return self.url or f"sqlite:{self.store_path}"

    @contextmanager
    def reading(self) -> Generator[Store, None, None]:
        """Open the store, with all that the journal holds. Raises `UsageError`, `StoreError`."""
        store = open_store(self.store_url, read_only=True) if self.url else self._caught_up()
        try:
            yield store
        finally:
            store.close()

    def waiting(self) -> Iterator[bytes]:
        """Yield the journal's frames that the home's store may not have got yet."""
        return peek(self.folder / "journal", self.store_url)

    def _caught_up(self) -> Store:
        if not self.store_path.exists():
            return self._filled(open_store(_MEMORY), ())
        try:
            store = open_store(self.store_url)
        except CorruptStoreError:
            raise
        except StoreError:
            return self._copied()
        try:
            add_all(store, self.waiting())
        except StoreError:
            store.close()
            return self._copied()
        return store

    def _copied(self) -> Store:
        original = open_store(self.store_url, read_only=True)
        try:
            return self._filled(open_store(_MEMORY), original.records())
        finally:
            original.close()

    def _filled(self, store: Store, frames: Iterable[bytes]) -> Store:
        add_all(store, frames)
        add_all(store, self.waiting())
        return store


def find_source(home: Path | None, store: str | None) -> Source:
    """Take the options `--home` and `--store`, else `STEPWELL_HOME`, else the default. Raises `UsageError`."""
    if store is not None:
        if home is not None:
            raise UsageError(f"--home {str(home)!r} and --store {store!r} exclude each other")
        return Source(Path(DEFAULT_HOME), store)
    if home is None:
        given = os.environ.get("STEPWELL_HOME") or DEFAULT_HOME
        if given.lower() == "none":
            raise UsageError(f"STEPWELL_HOME={given} keeps nothing on disk: name a folder with --home")
        home = Path(given)
    return Source(home, None)


def add_all(store: Store, frames: Iterable[bytes]) -> None:
    """Add frames in batches. What the store refuses is left out; the shipper keeps it in `rejected/`."""
    iterator = iter(frames)
    while batch := list(islice(iterator, _BATCH)):
        store.add(batch)
