"""Exports into a store on this machine: `sqlite:PATH`, or `sqlite:` alone for `<home>/steps.db`."""

from __future__ import annotations

from pathlib import Path

# Loaded here and not with the first batch, which is on another thread: a process forked while that imports would find
# the module's lock held, and wait for it for ever; and one that ends then would run source code while it goes down,
# which makes CPython forget that a KeyboardInterrupt ended it (status 1 in place of 130).
import stepwell.store.sqlite  # noqa: F401 # pyright: ignore[reportUnusedImport]
from stepwell.errors import ClosedError, ExportError, RejectedError, StoreError, UsageError
from stepwell.exporters import Batch
from stepwell.store import Store, open_store

__all__ = ["StoreExporter"]


class StoreExporter:
    """Adds batches to a store, in the call that the server's ingest makes too.

    A store that can't be written now, also a damaged one, means that the batch is sent again: the journal keeps it.
    """

    def __init__(self, store: Store | None, *, key: str) -> None:
        """Export into `store`; without one, into the store that `key` is the URL of, opened with the first batch."""
        self.key = key
        self._store = store
        self._closed = False

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> StoreExporter:
        """Open the store of a URL `sqlite:PATH`; without a path it is `steps.db` in the recorder's folder."""
        path = url.partition(":")[2]
        if not path:
            if home is None:
                raise UsageError(f"export={url!r} names no file, and nothing is kept on disk: expected sqlite:PATH")
            path = str(home / "steps.db")
        key = "sqlite::memory:" if path == ":memory:" else f"sqlite:{Path(path).absolute()}"
        return cls(None, key=key)

    def __repr__(self) -> str:
        return f"StoreExporter({self.key!r})"

    @property
    def store(self) -> Store:
        """The store that batches go to, for reading what was exported. Raises `StoreError`, `ClosedError`."""
        if self._store is None:
            if self._closed:
                raise ClosedError(f"{self!r} is closed")
            self._store = open_store(self.key)
        return self._store

    def export(self, batch: Batch) -> None:
        """Add a batch; raises `RejectedError` for the records the store refuses, `ExportError` to be called again."""
        try:
            result = self.store.add(batch.frames)
        except StoreError as error:
            raise ExportError(str(error)) from error
        if result.rejected:
            reasons = {rejection.index: rejection.error for rejection in result.rejected}
            raise RejectedError(f"{self.key} refused {len(reasons)} of {len(batch)} records", rejected=reasons)

    def close(self) -> None:
        """Close the store; closing again does nothing."""
        self._closed = True
        if self._store is not None:
            self._store.close()
