"""Where the journal's segments come from and where they go: prepared ones, used ones, those to be removed.

What must stay true:

1. A segment is made in a file of the session as long as there is a session and the disk has room, else in memory.
2. A segment that a reader copies from (`pins`) is neither used again nor removed.
3. Methods are called under the journal's lock, but for `make_spare` and `remove`, which touch files at leisure.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, TypeVar

from stepwell._segment import Segment
from stepwell._session import Session

__all__ = ["Faults", "SegmentPool", "remove", "taken"]

MAX_OPEN_FILES: Final = 32  # descriptors kept on unread segments, so that they outlive a deleted home folder
SPARES: Final = 2
HURRIED_BYTES: Final = 1024 * 1024  # made while the program waits: allocating more takes over a millisecond
MAX_TRASH: Final = 8  # segments waiting to be removed by others before the appender helps

T = TypeVar("T")
Faults = deque[tuple[str, BaseException]]  # (what could not be done, why), to be reported without the lock


class SegmentPool:
    """Segments of `segment_bytes` each, in a session below `folder`, or in memory where it is None or can't be used."""

    def __init__(self, folder: Path | None, segment_bytes: int, faults: Faults) -> None:
        self._folder = folder
        self._faults = faults
        self.segment_bytes = segment_bytes
        self.session: Session | None = None
        self.spares: list[Segment] = []
        self.trash: list[Segment] = []
        self._kept_open: list[Segment] = []
        self._open_session()

    def take(self, needed: int) -> Segment:
        """Return a segment of at least `needed` bytes. Raises `OSError`, `MemoryError`, `ValueError`."""
        if needed <= self.segment_bytes and self.spares:
            return self.spares.pop()
        size = max(needed, min(self.segment_bytes, HURRIED_BYTES))
        for _ in range(2):
            if self.session is None:
                break
            try:
                return Segment(size, self.session.segment_path())
            except FileNotFoundError as error:
                self.renew_session(error)
            except OSError as error:
                self._faults.append(("use the disk for the journal", error))
                break
        return Segment(size, None)

    def give_back(self, segment: Segment) -> None:
        """Keep a segment for reuse while its pages are still mapped, else have it removed."""
        ours = None if self.session is None else self.session.folder
        its = None if segment.path is None else segment.path.parent
        right_kind = segment.size == self.segment_bytes and its == ours
        if segment.mapped and not segment.pins and right_kind and len(self.spares) < SPARES:
            self.spares.append(segment)
        else:
            self.trash.append(segment)

    def take_trash(self, most: int = sys.maxsize) -> list[Segment]:
        """Return what can be removed now, the oldest first; nobody else will be told of it."""
        ripe = [segment for segment in self.trash if not segment.pins][:most]
        self.trash = [segment for segment in self.trash if segment not in ripe]
        return ripe

    def unmap_old(self, segments: deque[Segment]) -> Iterator[object]:
        """Give up the memory of all but the last two of the journal's files; it ends with the objects yielded."""
        self._kept_open = [segment for segment in self._kept_open if segment.open_file]
        last = segments[-1].sequence
        for segment in reversed(segments):
            if segment.path is None or segment.pins or last - segment.sequence <= 1:
                continue
            if not segment.mapped:
                break  # and so are those before it
            keep = len(self._kept_open) < MAX_OPEN_FILES
            yield segment.unmap(keep_file_open=keep)
            if keep:
                self._kept_open.append(segment)

    def make_spare(self, session: Session | None) -> Segment:
        """Prepare a segment. Without the lock. Raises `OSError`, `MemoryError`."""
        spare = Segment(self.segment_bytes, None if session is None else session.segment_path())
        spare.warm()
        return spare

    def add_spare(self, spare: Segment, session: Session | None) -> None:
        """Take what `make_spare` made, unless the session has changed meanwhile."""
        (self.spares if session is self.session else self.trash).append(spare)

    def _open_session(self) -> None:
        if self._folder is not None:
            try:
                self.session = Session(self._folder)
            except OSError as error:
                self._faults.append(("use its home folder; records wait in memory", error))

    def renew_session(self, error: OSError) -> None:
        """Begin a new session where somebody removed the folder of the old one."""
        self._faults.append(("find its home folder, and begins a new one", error))
        if self.session is not None:
            self.session.release()
        self.session = None
        self.trash += self.spares
        self.spares = []
        self._open_session()


def remove(segments: Iterable[Segment]) -> None:
    """Free segments that nobody knows any more. Without the lock."""
    for segment in segments:
        with contextlib.suppress(OSError):  # it is in nobody's way, and goes with its session
            segment.discard()


def taken(queue: deque[T]) -> Iterator[T]:
    """Empty a queue that other threads empty too."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
