"""A cursor: how far one exporter has come in the journal, and what it counts on the way.

What must stay true: all counts change under the journal's lock, which `lock` is, so that what is counted while holding
it is seen together with `ledger`.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple, Protocol

from stepwell._pool import Faults
from stepwell._segment import FIRST, Segment
from stepwell._session import CursorFile, Position, Session

if TYPE_CHECKING:  # the module above this one
    from stepwell._journal import Journal

__all__ = ["JournalCursor", "Ledger", "Source"]


class Source(Protocol):
    """What a shipper reads from: frames not yet delivered, in order, and a way to say that they now are."""

    def read(self, max_frames: int, max_bytes: int) -> list[bytes]:
        """Return the frames after those of the last `read`; an empty list when there are none."""
        ...

    def commit(self) -> None:
        """Note that what was read so far needs no further delivery. Touches no file."""
        ...

    def save(self) -> None:
        """Write down what was committed, for the next process."""
        ...


class Ledger(NamedTuple):
    """Frames: all `appended` = read and committed + `unread` + `in_flight` + `dropped`, by reason."""

    appended: int
    unread: int
    in_flight: int
    dropped: dict[str, int]

    @property
    def open(self) -> int:
        """Frames still to be delivered."""
        return self.unread + self.in_flight


class JournalCursor:
    """How far one exporter has read (`sequence`, `offset`, `seen`) and delivered (`done`); a `Source`."""

    def __init__(self, journal: Journal, key: str | None, lock: threading.RLock, segment: Segment) -> None:
        self._journal = journal
        self.key = key
        self.lock = lock
        self.file: CursorFile | None = None
        self.sequence, self.offset = self.done = Position(segment.sequence, FIRST)
        self.seen = 0  # frames read of the segment `sequence`
        self.in_flight = 0  # frames read and not committed
        self.dropped: Counter[str] = Counter()  # frames that went before they were read

    def read(self, max_frames: int, max_bytes: int) -> list[bytes]:
        return self._journal.read(self, max_frames, max_bytes)

    def commit(self) -> None:
        self._journal.commit(self)

    def save(self) -> None:
        self._journal.save(self)

    def ledger(self) -> Ledger:
        """Return the counts of this moment."""
        return self._journal.ledger(self)

    def open_file(self, session: Session | None, faults: Faults) -> None:
        """Have the place in a session from now on, where it outlives the process."""
        self.file = None
        if self.key is not None and session is not None:
            try:
                self.file = CursorFile.create(session.folder, self.key)
            except OSError as error:
                faults.append(("use the disk for the journal", error))

    def go_to(self, segment: Segment) -> None:
        self.sequence, self.offset, self.seen = segment.sequence, FIRST, 0
