"""What is made of bytes that come in pieces: lines of an export, files of attachments."""

from __future__ import annotations

import os
from hashlib import sha256 as new_sha256
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from stepwell.errors import ClientError

__all__ = ["Lines", "Saving", "Whole"]

WHOLE_BYTES: Final = 256 * 1024 * 1024  # as much as a server takes of a blob


class Lines:
    """Cuts pieces into lines, without their ends."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def of(self, piece: bytes) -> list[bytes]:
        """Return the lines that are whole with this piece."""
        head, end, tail = piece.rpartition(b"\n")
        if not end:
            self._rest.append(tail)
            return []
        lines = b"".join((*self._rest, head)).split(b"\n")
        self._rest = [tail] if tail else []
        return lines

    def end(self) -> None:
        """Raise `ClientError` where the last line was cut off."""
        if self._rest:
            raise ClientError("the export ended within a line")


class Whole:
    """An attachment in memory."""

    def __init__(self, sha256: str) -> None:
        self._sha256 = sha256
        self._bytes = bytearray()

    def add(self, piece: bytes) -> None:
        """Take the next piece. Raises `ClientError` where it is one too many."""
        if len(self._bytes) + len(piece) > WHOLE_BYTES:
            raise ClientError(f"the attachment {self._sha256} is longer than {WHOLE_BYTES} bytes: download it")
        self._bytes += piece

    def checked(self) -> bytes:
        """Return it. Raises `ClientError` where what came is something else."""
        if new_sha256(self._bytes).hexdigest() != self._sha256:
            raise _other(self._sha256)
        return bytes(self._bytes)


def _other(sha256: str) -> ClientError:
    return ClientError(f"what arrived is not the attachment {sha256}")


class Saving:
    """A file beside its place, which takes it when it is whole and has its hash."""

    def __init__(self, path: Path, sha256: str) -> None:
        self._path = path
        self._sha256 = sha256
        self._digest = new_sha256()
        self._new = path.with_name(f".{path.name[:100]}-{os.urandom(8).hex()}")
        self._file = self._new.open("xb")

    def __enter__(self) -> Self:
        return self

    def write(self, piece: bytes) -> None:
        """Take the next piece. Raises `OSError`."""
        self._digest.update(piece)
        self._file.write(piece)

    def keep(self) -> Path:
        """Put the file into its place. Raises `ClientError` where what came is something else, `OSError`."""
        if self._digest.hexdigest() != self._sha256:
            raise _other(self._sha256)
        self._file.close()
        return self._new.replace(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._new.unlink(missing_ok=True)
