"""The folder of one process in the journal, and the files in it that are not segments.

What must stay true:

1. A process owns its session folder by an flock on the file `lock`. The lock ends with the process, however that ends.
2. A folder is locked before others can see it, and is unlocked only after it was removed, or is left for adoption.
3. No descriptor of a cursor file is kept: a late writer can't hit a file that was given the same number since.

A session folder holds `lock`, `NNNNNN.seg`, for each exporter that outlives the process `NAME.cursor`: a line with
sequence and offset up to which it has delivered, and a line with its key; and `open`: the ids of the steps that were
announced as pending and have not ended, a line each.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from stepwell._files import open_private

__all__ = [
    "DONE",
    "CursorFile",
    "Position",
    "Session",
    "interruption",
    "is_locked",
    "note_open",
    "read_open",
    "remove_session",
    "try_lock",
    "unlock",
]

DONE: Final = 10**19  # as a sequence: this exporter has delivered all there will ever be
_LOCK: Final = "lock"
_OPEN: Final = "open"
_ID: Final = re.compile(rb"[0-9a-f-]{36}")


class Session:
    """The folder this process writes to. Raises `OSError` where it can't be made."""

    def __init__(self, journal: Path) -> None:
        name = f"{time.time_ns() // 1_000_000:013d}-{os.getpid()}-{os.urandom(4).hex()}"
        hidden = journal / f".{name}"
        # Made under a hidden name and locked before it is shown: nobody can adopt it in between.
        for folder in (journal.parent, journal):  # one by one: `parents=True` makes them for everybody to read
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        hidden.mkdir(mode=0o700)
        self._lock_fd = open_private(hidden / _LOCK, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.folder = hidden.rename(journal / name)
        except OSError:
            self.release()
            raise
        self._numbers = itertools.count(1)

    def segment_path(self) -> Path:
        """Return the path of the next segment file; two threads never get the same."""
        return self.folder / f"{next(self._numbers):06d}.seg"

    @property
    def gone(self) -> bool:
        """Whether somebody removed the folder, and with it what is written there."""
        return self._lock_fd < 0 or os.fstat(self._lock_fd).st_nlink == 0

    def remove(self) -> None:
        """Remove the folder: nobody needs it any more."""
        remove_session(self.folder)
        self.release()

    def release(self) -> None:
        """Leave the folder to whoever adopts it."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            unlock(fd)

    def abandon(self) -> None:
        """Let go of the folder in a forked child: the lock stays the parent's."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


class Position(NamedTuple):
    """Up to where an exporter has delivered: the frames of `sequence` before `offset`, and all of lower sequences."""

    sequence: int
    offset: int


class CursorFile:
    """The place of one exporter on disk, rewritten in place by one small write."""

    _LINE: Final = b"%020d %020d\n"

    def __init__(self, path: Path) -> None:
        self.path = path

    @staticmethod
    def name_for(key: str) -> str:
        return blake2b(key.encode("utf-8", "replace"), digest_size=8).hexdigest() + ".cursor"

    @classmethod
    def create(cls, session: Path, key: str) -> CursorFile:
        """Make the file for an exporter that has delivered nothing. Raises `OSError`."""
        path = session / cls.name_for(key)
        fd = open_private(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, cls._LINE % (0, 0) + key.encode("utf-8", "replace") + b"\n", 0)
        finally:
            os.close(fd)
        return cls(path)

    def read(self) -> Position:
        """Return the place. A damaged one is the beginning: better twice than never. Raises `OSError`."""
        try:
            sequence, offset = self.path.read_bytes().split(b"\n", 1)[0].split(b" ")
            return Position(int(sequence), int(offset))
        except ValueError:
            return Position(0, 0)

    def write(self, sequence: int, offset: int) -> None:
        """Store the place. Raises `OSError`, also where the session is gone."""
        fd = open_private(self.path, os.O_WRONLY)
        try:
            os.pwrite(fd, self._LINE % (sequence, offset), 0)
        finally:
            os.close(fd)


def remove_session(session: Path) -> None:
    """Remove a session folder that nobody needs any more; what can't be removed stays for the next one who tries."""
    with contextlib.suppress(OSError):
        for path in session.iterdir():
            if path.name != _LOCK:
                path.unlink()
        (session / _LOCK).unlink(missing_ok=True)
        session.rmdir()


def note_open(session: Path, ids: Iterable[str]) -> None:
    """Write down which announced steps are open: should the process die, they are interrupted. Raises `OSError`."""
    written = session / f"{_OPEN}.new"
    written.write_text("".join(f"{id}\n" for id in ids))
    written.replace(session / _OPEN)


def interruption(id: str) -> bytes:
    """Return the update of a step whose end nobody will see."""
    return b'{"kind":"step","id":"%b","status":"interrupted"}' % id.encode()


def read_open(session: Path) -> list[str]:
    """Return the ids that `note_open` wrote last."""
    try:
        return [id.decode() for id in (session / _OPEN).read_bytes().split() if _ID.fullmatch(id)]
    except OSError:
        return []


def is_locked(session: Path) -> bool:
    """Tell whether a session's process lives, or somebody has adopted it, without taking the lock."""
    try:
        fd = os.open(session / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def try_lock(session: Path) -> int | None:
    """Take a session's lock and return its descriptor; None when its process lives or another one has adopted it."""
    try:
        fd = open_private(session / _LOCK, os.O_RDWR | os.O_CREAT)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(fd).st_nlink:  # else whoever had it before us has removed the folder
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def unlock(fd: int) -> None:
    """Give a lock back and close its descriptor, of which a forked child may have a copy that holds the lock too."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
