"""What dead processes left in the journal: adopting it by lock, and looking at it without touching it.

What must stay true:

1. A session is adopted only by the holder of its lock, which its process held until it died.
2. Adoption never loses: a session's folder goes when every exporter that had a cursor in it has delivered all. Torn
   frames are counted, never sent; what can't be read is left where it is.
3. Looking (`peek`) takes no lock and changes nothing. A live process may write meanwhile, so what is seen may be a
   moment old, but each frame is a whole one.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from stepwell._segment import read_sequence, scan
from stepwell._session import (
    DONE,
    CursorFile,
    Position,
    interruption,
    is_locked,
    read_open,
    remove_session,
    try_lock,
    unlock,
)

__all__ = ["LeftOpen", "Orphan", "OrphanSource", "adopt", "peek", "segments_of", "sessions_in", "trim"]

FORGOTTEN_AFTER_MS: Final = 24 * 60 * 60 * 1000
INTERRUPTED: Final = DONE - 1  # as a sequence: behind a dead process's last segment stand the steps it left open
_ID: Final = slice(len('{"kind":"step","id":"'), len('{"kind":"step","id":"') + 36)  # in a step's frame


class LeftOpen:
    """The long steps that were open when a process died: updates that say `interrupted`, behind all its frames."""

    def __init__(self, session: Path) -> None:
        self._ids = read_open(session)
        self._ended: set[str] = set()

    def __bool__(self) -> bool:
        return bool(self._ids)

    def see(self, frame: bytes) -> None:
        """Take note of a frame of the process: the list of what is open may be a heartbeat older than the last."""
        if self._ids and b'"status":"pending"' not in frame:
            self._ended.add(frame[_ID].decode("ascii", "replace"))

    def frames(self, start: Position) -> Iterator[tuple[Position, bytes]]:
        """Yield the updates behind a place, each with the place after it."""
        for number, id in enumerate(self._ids, start=1):
            place = Position(INTERRUPTED, number)
            if place > start and id not in self._ended:
                yield place, interruption(id)


class OrphanSource:
    """What one exporter has not yet delivered of a dead process's session; a `stepwell._cursor.Source`."""

    def __init__(self, orphan: Orphan, key: str, file: CursorFile, place: Position) -> None:
        self.key = key
        self._orphan = orphan
        self._file = file
        self._at = self._done = place
        self._frames = orphan.frames(place)

    def read(self, max_frames: int, max_bytes: int) -> list[bytes]:
        frames: list[bytes] = []
        size = 0
        while len(frames) < max_frames and size < max_bytes:
            found = next(self._frames, None)
            if found is None:
                break
            self._at, frame = found
            frames.append(frame)
            size += len(frame)
        return frames

    def commit(self) -> None:
        self._done = self._at

    def save(self) -> None:
        with contextlib.suppress(OSError):  # the next who adopts it begins earlier, and the store finds duplicates
            self._file.write(*self._done)

    def finish(self) -> None:
        """Say that `read` came back empty: nothing is left for this exporter."""
        self._orphan.finish(self)


class Orphan:
    """A dead process's session, locked by us, with a source for each of our exporters that it holds something for.

    `torn` counts places in its segments that hold no whole frame.
    """

    def __init__(self, session: Path, lock_fd: int, keys: Collection[str]) -> None:
        self.session = session
        self.torn = 0
        self._lock_fd = lock_fd
        self._complete = True  # whether all of it could be read
        self._seen: set[Path] = set()
        places = _places(session)
        names = {CursorFile.name_for(key): key for key in keys}
        self.sources = {
            names[name]: OrphanSource(self, names[name], CursorFile(session / name), place)
            for name, place in places.items()
            if name in names
        }
        self._left_to_others = len(places) > len(self.sources)
        self._unfinished = set(self.sources)

    def frames(self, start: Position) -> Iterator[tuple[Position, bytes]]:
        """Yield frames behind a place, each with the place after it, reading one segment at a time."""
        left_open = LeftOpen(self.session)
        for path, sequence in segments_of(self.session):
            if sequence < start.sequence and not left_open:
                continue
            try:
                found = scan(path.read_bytes())
            except OSError:
                self._complete = False
                continue
            if found is None:
                continue
            if path not in self._seen:
                self._seen.add(path)
                self.torn += found.torn
            for at, after, frame in found.frames:
                left_open.see(frame)
                if (sequence, at) >= start:
                    yield Position(sequence, after), frame
        yield from left_open.frames(start)

    @property
    def closed(self) -> bool:
        """Whether it was given up."""
        return self._lock_fd < 0

    def finish(self, source: OrphanSource) -> None:
        if self._complete:
            self._unfinished.discard(source.key)
            with contextlib.suppress(OSError):
                CursorFile(self.session / CursorFile.name_for(source.key)).write(DONE, 0)
        if not self._unfinished or not self._complete:
            self.close()

    def close(self) -> None:
        """Give the session up: remove it when all its exporters are done, else leave it for a process that has them."""
        if self.closed:
            return
        if not self._unfinished and not self._left_to_others:
            remove_session(self.session)
        fd, self._lock_fd = self._lock_fd, -1
        unlock(fd)

    def abandon(self) -> None:
        """Let go of it in a forked child: it stays the parent's."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)


def adopt(folder: Path, keys: Collection[str]) -> Iterator[Orphan]:
    """Lock and yield each dead session that holds something for one of the exporters `keys`; remove what is empty."""
    _remove_unborn(folder)
    for session in sessions_in(folder):
        lock_fd = try_lock(session)
        if lock_fd is None:
            continue
        orphan = Orphan(session, lock_fd, keys)
        if orphan.sources:
            yield orphan
        else:
            orphan.close()


def peek(folder: Path, key: str) -> Iterator[bytes]:
    """Yield what exporter `key` has not delivered, of every session, dead or alive; all where it has no cursor."""
    for session in sessions_in(folder):
        start = Position(0, 0)
        with contextlib.suppress(OSError):
            start = CursorFile(session / CursorFile.name_for(key)).read()
        left_open = None if is_locked(session) else LeftOpen(session)
        for path, sequence in segments_of(session):
            with contextlib.suppress(OSError):
                found = scan(path.read_bytes()) if sequence >= start.sequence or left_open else None
                if found is None or found.sequence != sequence:
                    continue  # it was delivered, and used again since
                for at, _, frame in found.frames:
                    if left_open is not None:
                        left_open.see(frame)
                    if (sequence, at) >= start:
                        yield frame
        if left_open is not None:
            yield from (frame for _, frame in left_open.frames(start))


def trim(folder: Path, max_bytes: int, keys: Collection[str]) -> Counter[str]:
    """Remove the oldest segments of dead processes while all together are over `max_bytes`.

    Return how many frames each of the exporters `keys` had not delivered of what is gone.
    """
    lost: Counter[str] = Counter()
    sizes: list[tuple[Path, int, int]] = []
    for session in sessions_in(folder):
        with contextlib.suppress(OSError):
            sizes += [(path, number, path.stat().st_size) for path, number in segments_of(session)]
    total = sum(size for _, _, size in sizes)
    for path, sequence, size in sizes:
        if total <= max_bytes:
            break
        lock_fd = try_lock(path.parent)
        if lock_fd is not None:
            try:
                lost += _remove_segment(path, sequence, keys)
                total -= size
            except OSError:
                continue  # it counts on, and the next one goes
            finally:
                unlock(lock_fd)
    return lost


def _remove_segment(path: Path, sequence: int, keys: Collection[str]) -> Counter[str]:
    found = scan(path.read_bytes())
    path.unlink()
    lost: Counter[str] = Counter()
    places = _places(path.parent)
    for key in keys:
        start = places.get(CursorFile.name_for(key))
        if start is not None and found is not None:
            lost[key] += sum((sequence, at) >= start for at, _, _ in found.frames)
    return lost


def _places(session: Path) -> dict[str, Position]:
    """Return the place of each exporter that is not done with the session, by the name of its file."""
    places: dict[str, Position] = {}
    for path in session.glob("*.cursor"):
        with contextlib.suppress(FileNotFoundError):
            try:
                place = CursorFile(path).read()
            except PermissionError:
                place = Position(0, 0)
            if place.sequence < DONE:
                places[path.name] = place
    return places


def sessions_in(folder: Path) -> list[Path]:
    """Return the session folders, oldest first: names begin with the time of their making."""
    with contextlib.suppress(OSError):
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def _remove_unborn(folder: Path) -> None:
    """Remove folders of processes that died while they made them, long ago: a younger one may be in the making."""
    with contextlib.suppress(OSError):
        for path in folder.glob(".*-*-*"):
            began_ms = path.name[1:].partition("-")[0]
            if began_ms.isdecimal() and int(began_ms) < time.time_ns() // 1_000_000 - FORGOTTEN_AFTER_MS:
                remove_session(path)


def segments_of(session: Path) -> list[tuple[Path, int]]:
    """Return a session's segment files with their sequence numbers, in order of sequence (files are used again)."""
    numbered: list[tuple[Path, int]] = []
    for path in session.glob("*.seg"):
        with contextlib.suppress(OSError):
            sequence = read_sequence(path)
            if sequence is not None:
                numbered.append((path, sequence))
    return sorted(numbered, key=lambda pair: pair[1])
