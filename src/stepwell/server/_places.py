"""Where the data of each project is: a store and a folder of blobs, so that no query of one can reach another's.

What must stay true: a project's name comes from a key, never from a request.
"""

from __future__ import annotations

import re
from pathlib import Path
from threading import Lock
from typing import Final

from stepwell._answers import Place
from stepwell.blobs import BlobStore
from stepwell.errors import UsageError
from stepwell.store import Store, open_store

__all__ = ["Place", "Places", "check_name"]

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class Places:
    """Opens the places of a home: its own, which is given, and those in `projects/NAME/`, when they are first used."""

    def __init__(self, store: Store, home: Path) -> None:
        self.home = home
        self._own = Place(store, BlobStore(home / "blobs"))
        self._projects: dict[str, Place] = {}
        self._lock = Lock()

    def of(self, project: str | None) -> Place:
        """Return a project's place; None is the home's own. Raises `StoreError`."""
        if project is None:
            return self._own
        with self._lock:
            place = self._projects.get(project)
            if place is None:
                folder = self.home / "projects" / check_name(project, "project")
                place = Place(open_store(f"sqlite:{folder / 'steps.db'}"), BlobStore(folder / "blobs"))
                self._projects[project] = place
            return place

    def open(self) -> list[Place]:
        """Return the places that are open now."""
        with self._lock:
            return [self._own, *self._projects.values()]

    def close(self) -> None:
        """Close the stores of projects; the home's own is its owner's to close."""
        with self._lock:
            while self._projects:
                self._projects.popitem()[1].store.close()


def check_name(name: str, what: str) -> str:
    """Return a name that is fit for a folder. Raises `UsageError`."""
    if not _NAME.fullmatch(name):
        raise UsageError(f"{what} {name!r} is not 1 to 64 of a-z, 0-9, - and _, the first a letter or digit")
    return name
