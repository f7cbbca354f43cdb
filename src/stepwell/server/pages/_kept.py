"""Small files beside the store that pages write: read and replaced as a whole, changed by one process at a time.

What must stay true: whoever reads sees the file as it was before a change or after it.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from msgspec import DecodeError, json

from stepwell._files import open_private
from stepwell.errors import StoreError
from stepwell.server._places import Place

__all__ = ["changing", "read_kept", "write_kept"]

T = TypeVar("T")


def _path(place: Place, name: str) -> Path:
    return place.blobs.folder.parent / f"{name}.json"


def read_kept(place: Place, name: str, type: type[T], what: str) -> T | None:
    """Return what a file holds, None where there is none. Raises `StoreError` for one that does not hold `what`."""
    path = _path(place, name)
    try:
        return json.decode(path.read_bytes(), type=type)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} can't be read: {error.strerror}") from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} holds no {what} of stepwell: {error}") from error


@contextmanager
def changing(place: Place, name: str) -> Generator[None]:
    """Keep other threads and processes from changing a file within the block. Raises `StoreError`."""
    path = _path(place, name)
    try:
        lock = open_private(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_kept(place: Place, name: str, value: object) -> None:
    """Replace a file, within `changing`. Raises `StoreError`."""
    path = _path(place, name)
    new = path.with_name(f".{name}-{os.urandom(8).hex()}")
    try:
        with open(open_private(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY), "wb") as file:  # noqa: PTH123 (Path.open takes no descriptor)
            file.write(json.format(json.encode(value), indent=2) + b"\n")
        new.replace(path)
    except OSError as error:
        raise StoreError(f"{path} can't be written: {error.strerror}") from error
    finally:
        with suppress(OSError):
            new.unlink(missing_ok=True)
