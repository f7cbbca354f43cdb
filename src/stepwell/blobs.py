"""Attachments: files named by the SHA-256 of their bytes, each stored once.

What must stay true: a blob appears under its name only when it is whole; what a caller attached is read at once, so a
file changed later does not change the record. Who puts a blob, or asks whether it is here, relies on it: a blob is
removed only when that was some time ago.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from stepwell.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from hashlib import _Hash

__all__ = ["BlobStore", "Incoming"]

_CHUNK: Final = 1024 * 1024


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _is_idle(path: Path, idle_s: float) -> bool:
    return path.stat().st_mtime <= time.time() - idle_s


class Incoming:
    """A blob that arrives in pieces, from `BlobStore.receiving`."""

    def __init__(self, digest: _Hash, file: BinaryIO, keep: Callable[[BinaryIO, str], None]) -> None:
        self._digest = digest
        self._file = file
        self._keep = keep

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raises `OSError`."""
        self._digest.update(piece)
        self._file.write(piece)

    def keep(self, sha256: str) -> None:
        """Give it its name, now that it is whole. Raises `UsageError` where it has another hash, `OSError`."""
        if self._digest.hexdigest() != sha256:
            raise UsageError(f"what arrived is not the blob {sha256}")
        self._keep(self._file, sha256)


class BlobStore:
    """A folder of content-addressed files: `ab/ab12...`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Store bytes; return their SHA-256 as 64 hex digits. Raises `OSError` where the folder can't be written."""
        from hashlib import sha256  # it loads OpenSSL: only programs that attach something need it

        digest = sha256(data).hexdigest()
        target = self._target(digest)
        if not self.has(digest):
            with self._incoming() as file:
                file.write(data)
                self._keep(file, target)
        return digest

    def has(self, sha256: str) -> bool:
        """Say whether a blob is here; it then stays for a while, see `remove`."""
        target = self._target(sha256)
        try:
            os.utime(target)
        except FileNotFoundError:
            return False
        except OSError:  # not ours to write, nor to remove
            return target.exists()
        return True

    def remove(self, sha256: str, *, idle_s: float) -> int | None:
        """Remove a blob that nobody put or asked for in the last `idle_s` seconds; return its size in bytes.

        It is 0 where there is no such blob, None where it was used since. Raises `UsageError` for what is no SHA-256,
        `OSError`.
        """
        try:
            path = self.path(sha256)
            if not _is_idle(path, idle_s):
                return None
            aside = self.folder / f".incoming-{os.urandom(8).hex()}"
            path.rename(aside)  # so that from here on nobody is told that it is here
        except (NotFoundError, FileNotFoundError):
            return 0
        if not _is_idle(aside, idle_s):  # somebody was, just before
            aside.rename(path)
            return None
        size = aside.stat().st_size
        aside.unlink()
        return size

    def put_file(
        self, source: Path, *, max_bytes: int, check: Callable[[bytes], object] | None = None
    ) -> tuple[str, int]:
        """Store a copy of a file, unless `check` raises when given a piece of it; return SHA-256 and size in bytes.

        Raises `OSError` where it can't be read or stored, `UsageError` where it is larger than `max_bytes` or no
        regular file (opening a pipe would wait for its writer).
        """
        if source.exists() and not source.is_file():
            raise UsageError(f"{str(source)!r} is not a file")
        from hashlib import sha256

        digest, size = sha256(), 0
        with source.open("rb") as original, self._incoming() as file:
            while chunk := original.read(_CHUNK):
                size += len(chunk)
                if size > max_bytes:
                    raise UsageError(f"{str(source)!r} is larger than {max_bytes} bytes")
                if check is not None:
                    check(chunk)
                digest.update(chunk)
                file.write(chunk)
            self._keep(file, self._target(digest.hexdigest()))
        return digest.hexdigest(), size

    @contextlib.contextmanager
    def receiving(self) -> Generator[Incoming]:
        """Yield what takes a blob in pieces; what was not kept by the end is gone. Raises `OSError`."""
        from hashlib import sha256

        with self._incoming() as file:
            yield Incoming(sha256(), file, lambda file, digest: self._keep(file, self._target(digest)))

    def path(self, sha256: str) -> Path:
        """Return where a blob is. Raises `UsageError` for what is no SHA-256, `NotFoundError` for one not here."""
        if len(sha256) != 64 or set(sha256) - set("0123456789abcdef"):
            raise UsageError(f"{sha256!r} is not a SHA-256 in 64 lower-case hex digits")
        target = self._target(sha256)
        if not target.is_file():
            raise NotFoundError(f"no blob {sha256}")
        return target

    def _target(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    @contextlib.contextmanager
    def _incoming(self) -> Generator[BinaryIO]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self.folder / f".incoming-{os.urandom(8).hex()}"
        try:
            with open(path, "xb", opener=_private) as file:  # Path.open takes no opener
                yield file
        finally:
            path.unlink(missing_ok=True)

    def _keep(self, file: BinaryIO, target: Path) -> None:
        file.flush()
        target.parent.mkdir(mode=0o700, exist_ok=True)
        Path(file.name).replace(target)
