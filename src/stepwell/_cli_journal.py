"""What the journal and `rejected/` of a home folder hold, looked at without changing either."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from msgspec import DecodeError, Struct, json

from stepwell._recovery import LeftOpen, segments_of, sessions_in
from stepwell._segment import FIRST, scan
from stepwell._session import CursorFile, Position, is_locked

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
    return [_look(path) for path in sessions_in(journal)]


def _look(session: Path) -> Session:
    alive = is_locked(session)
    places = dict(_places(session))
    waiting = dict.fromkeys(places, 0)
    frames = torn = 0
    left_open = LeftOpen(session)
    for path, _ in segments_of(session):
        with suppress(OSError):
            found = scan(path.read_bytes())
            if found is None or not found.sequence:
                continue
            frames += len(found.frames)
            torn += 0 if alive else found.torn
            for at, _, frame in found.frames:
                left_open.see(frame)
                for key, place in places.items():
                    waiting[key] += (found.sequence, at) >= place
    if not alive:
        for key, place in places.items():
            waiting[key] += sum(1 for _ in left_open.frames(place))
    return Session(session, alive, frames, torn, waiting)


def _places(session: Path) -> Iterator[tuple[str, Position]]:
    """Read the place of each exporter by its key, which the cursor file holds too."""
    for path in session.glob("*.cursor"):
        with suppress(OSError, ValueError, IndexError):
            yield path.read_bytes().split(b"\n")[1].decode(), CursorFile(path).read()


class Feed:
    """Gives the journal's frames as they come, each once; a live process may be writing meanwhile."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._read: dict[tuple[str, int], int] = {}  # (session, sequence) -> offset
        self._full: set[tuple[str, int]] = set()  # a later segment was there before we read it: no frame will follow

    def frames(self) -> list[bytes]:
        """Return what was appended since the last call."""
        return [frame for session in sessions_in(self._journal) for frame in self._of_session(session)]

    def _of_session(self, session: Path) -> Iterator[bytes]:
        segments = segments_of(session)
        for path, sequence in segments:
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
                if sequence != segments[-1][1]:
                    self._full.add(place)


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
