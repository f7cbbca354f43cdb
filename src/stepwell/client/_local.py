"""Where a client's data is on this machine: a store's file, a home, or a store that somebody else opened."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Final, cast

from stepwell._answers import Place
from stepwell._cli_source import Source, add_all, find_source
from stepwell.blobs import BlobStore
from stepwell.errors import CorruptStoreError, StoreError, UsageError
from stepwell.store import Store, open_store

__all__ = ["Local"]

_MEMORY: Final = "sqlite::memory:"


class Local:
    """Opens the store when it is first asked, for writing where that can be; closes it unless it was given open.

    Attachments are in the folder `blobs` beside the file. A home's store holds, when it is opened, what its journal
    still does.
    """

    def __init__(self, target: str | Path | Store | None) -> None:
        self._given: Store | None = None
        self._source: Source | None = None
        self._path: Path | None = None
        if target is None:
            self._source = find_source(None, None)
        elif isinstance(target, str | Path):
            text = str(target).removeprefix("sqlite:")
            if not text:
                raise UsageError(f"{str(target)!r} names no file: expected sqlite:PATH")
            if text != ":memory:":
                self._path = Path(text).absolute()
        else:
            self._given = target
        self._place: Place | None = None
        self._lock = Lock()

    def __str__(self) -> str:
        if self._given is not None:
            return repr(self._given)
        return repr(str(self._path or (self._source and self._source.home.absolute()) or _MEMORY))

    def place(self) -> Place:
        """Return the store and its blobs. Raises `StoreError`, `UsageError`."""
        with self._lock:
            if self._place is None:
                self._place = self._open()
            return self._place

    def _open(self) -> Place:
        if self._given is not None:
            path = cast("object", getattr(self._given, "path", None))
            return Place(self._given, BlobStore((path.parent if isinstance(path, Path) else Path()) / "blobs"))
        source = self._source
        if source is None and self._path is not None and self._path.is_dir():
            source = Source(self._path, None)
        if source is not None:
            return Place(_of_home(source), BlobStore(source.folder / "blobs"))
        if self._path is None:
            return Place(open_store(_MEMORY), BlobStore(Path("blobs").absolute()))
        if not self._path.exists():
            raise StoreError(f"there is no store {str(self._path)!r}")
        return Place(_for_writing(f"sqlite:{self._path}"), BlobStore(self._path.parent / "blobs"))

    def close(self) -> None:
        """Close what was opened here."""
        with self._lock:
            place, self._place = self._place, None
        if place is not None and place.store is not self._given:
            place.store.close()


def _for_writing(url: str) -> Store:
    try:
        return open_store(url)
    except CorruptStoreError:
        raise
    except StoreError:
        return open_store(url, read_only=True)


def _of_home(source: Source) -> Store:
    _ = source.folder  # that must be there
    store = _for_writing(source.store_url)
    with suppress(StoreError):  # where it can't be written it is read as it is
        add_all(store, source.waiting())
    return store
