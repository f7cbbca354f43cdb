"""What the journal and `rejected/` of a home folder hold, looked at without changing either."""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import DecodeError, Struct, json

from stepwell._segment import FIRST, read_sequence, scan

__all__ = ["Feed", "Session", "rejected", "survey"]


class Session(NamedTuple):
    """One process's part of the journal: `waiting` frames by exporter key; `torn` gaps, where the process is dead."""

    path: Path
    alive: bool
    frames: int
    torn: int
    waiting: dict[str, int]


def survey(journal: Path) -> list[Session]:
    """Look at every session, the oldest first."""
    return [_look(path) for path in _folders(journal)]


def _look(session: Path) -> Session:
    alive = _is_locked(session / "lock")
    places = dict(_places(session))
    waiting = dict.fromkeys(places, 0)
    frames = torn = 0
    for path in session.glob("*.seg"):
        with suppress(OSError):
            found = scan(path.read_bytes())
            if found is None or not found.sequence:
                continue
            frames += len(found.frames)
            torn += 0 if alive else found.torn
            for key, place in places.items():
                waiting[key] += sum((found.sequence, at) >= place for at, _, _ in found.frames)
    return Session(session, alive, frames, torn, waiting)


def _folders(journal: Path) -> list[Path]:
    with suppress(OSError):
        return sorted(path for path in journal.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def _places(session: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Read the cursor files (`stepwell._session` tells their format); a damaged place is the beginning."""
    for path in session.glob("*.cursor"):
        with suppress(OSError, ValueError):
            place, key = path.read_bytes().split(b"\n")[:2]
            try:
                sequence, offset = map(int, place.split(b" "))
            except ValueError:
                sequence = offset = 0
            yield key.decode(), (sequence, offset)


def _is_locked(lock: Path) -> bool:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


class Feed:
    """Gives the journal's frames as they come, each once; a live process may be writing meanwhile."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._read: dict[tuple[str, int], int] = {}  # (session, sequence) -> offset
        self._full: set[tuple[str, int]] = set()  # a later segment was there before we read it: no frame will follow

    def frames(self) -> list[bytes]:
        """Return what was appended since the last call."""
        return [frame for session in _folders(self._journal) for frame in self._of_session(session)]

    def _of_session(self, session: Path) -> Iterator[bytes]:
        segments = sorted(_numbered(session))
        for sequence, path in segments:
            place = session.name, sequence
            if place in self._full:
                continue
            with suppress(OSError):
                found = scan(path.read_bytes())
                if found is None or found.sequence != sequence:
                    continue  # used again in between: the next call sees it as what it is now
                start = self._read.get(place, FIRST)
                yield from (frame for at, _, frame in found.frames if at >= start)
                self._read[place] = max([start, *(after for _, after, _ in found.frames)])
                if sequence != segments[-1][0]:
                    self._full.add(place)


def _numbered(session: Path) -> Iterator[tuple[int, Path]]:
    for path in session.glob("*.seg"):
        with suppress(OSError):
            sequence = read_sequence(path)
            if sequence is not None:
                yield sequence, path


class _Letter(Struct):
    reason: str


def rejected(folder: Path) -> Counter[str]:
    """Count the records in `rejected/` by reason."""
    reasons: Counter[str] = Counter()
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            for line in file:
                try:
                    reasons[json.decode(line, type=_Letter).reason] += 1
                except (DecodeError, UnicodeDecodeError, RecursionError):
                    reasons["a line that can't be read"] += 1
    return reasons
