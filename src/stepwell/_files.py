"""Opening the files that we write.

What must stay true: no file of ours is ever descriptor 0, 1 or 2. Where a program has closed its standard streams, what
C code or a stale stream still prints there would be written over our data.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["open_private"]

_FIRST_FD: Final = 3


def open_private(path: Path, flags: int) -> int:
    """Open a file, for the owner alone where it is made, and return its descriptor. Raises `OSError`."""
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    if fd >= _FIRST_FD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
    finally:
        os.close(fd)
        _plug()


def _plug() -> None:
    """Let the null device be the standard streams that are closed, as SQLite does: `mmap` too takes the lowest free."""
    with suppress(OSError):
        while (null := os.open(os.devnull, os.O_RDWR)) < _FIRST_FD:
            os.set_inheritable(null, True)
        os.close(null)
