"""jsonl:PATH: append each record, as it is, as a line of a file (DESIGN section 6).

What must stay true: a line is whole or absent, also when the disk fills up and when several processes write.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

import orjson

from stepwell._files import open_private
from stepwell.errors import UsageError
from stepwell.exporters import Batch

__all__ = ["JsonLinesExporter"]

_STRIDE: Final = 1024 * 1024


class JsonLinesExporter:
    """Appends to a file, made with mode 0600. Raises `OSError` where it can't be written."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.key = f"jsonl:{self.path}"

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> JsonLinesExporter:  # noqa: ARG003 - the factory's signature
        """Open `jsonl:PATH`."""
        path = url.partition(":")[2]
        if not path:
            raise UsageError(f"export={url!r}: jsonl: needs the path of a file, as in jsonl:steps.jsonl")
        return cls(Path(path))

    def export(self, batch: Batch) -> None:
        """Append a line for each record. Raises `OSError`, having written none."""
        if not batch.frames:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        regular = self.path.is_file() or not self.path.exists()
        access = os.O_RDWR if regular else os.O_WRONLY  # a pipe opened for both would be its own reader
        fd = open_private(self.path, access | os.O_APPEND | os.O_CREAT)
        try:
            if regular:
                _append(fd, batch)
            else:  # nothing that was sent can be taken back
                _write_all(fd, b"\n".join(batch.frames) + b"\n")
        finally:
            os.close(fd)


def _append(fd: int, batch: Batch) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        before = _end_of_lines(fd)
        try:
            _write_all(fd, b"\n".join(batch.frames) + b"\n")
        except BaseException:
            os.ftruncate(fd, before)
            raise
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)  # closing does not end it where a fork has made a copy of the descriptor


def _end_of_lines(fd: int) -> int:
    """Return where the next line begins, having removed half of one that a process left when it was killed."""
    end = os.fstat(fd).st_size
    if end == 0 or os.pread(fd, 1, end - 1) == b"\n":
        return end
    tail = b""
    start = end
    while start and b"\n" not in tail:
        start = max(0, start - _STRIDE)
        tail = os.pread(fd, end - start, start)
    line = tail[tail.rfind(b"\n") + 1 :]
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        os.ftruncate(fd, end - len(line))  # its batch was not delivered, and is sent again
        return end - len(line)
    _write_all(fd, b"\n")  # somebody edited the file
    return end + 1


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
