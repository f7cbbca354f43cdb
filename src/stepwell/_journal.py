"""The journal: finished records as frames in segment files, read from behind by one cursor an exporter.

What must stay true:

1. `append` makes no system call and takes constant time (a new segment was prepared by `tend`). When it returns, the
   frame is in pages the kernel owns: it survives `kill -9`. It does not survive a power cut that comes before the
   kernel has written the pages, since nothing here calls fsync.
2. The thread that is inside the journal may enter `append` again (a finaliser, a signal handler). The inner frame is
   put aside and written by the outer call before that returns. Every other thread waits on the one lock, under which
   nothing foreign runs (faults are reported behind it) and no file is touched, but for a roll that finds no spare.
3. A segment is used again or removed when every cursor has passed it; or, over the size cap, when it is the oldest,
   and then each frame a cursor had not read is counted in that cursor's `dropped`.
4. Whatever interrupts `append` (a KeyboardInterrupt), the frame is counted and there, or neither.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from stepwell._bell import Bell
from stepwell._cursor import JournalCursor, Ledger
from stepwell._pool import MAX_TRASH, SPARES, Faults, SegmentPool, remove, taken
from stepwell._segment import Segment
from stepwell._session import Position, Session

__all__ = ["Journal", "Report"]

SEGMENT_BYTES: Final = 4 * 1024 * 1024
MEMORY_BYTES: Final = 32 * 1024 * 1024  # the cap where no disk is used: memory is the user's

Report = Callable[[str, BaseException], None]


class Journal:
    """The segments of one process; in memory only when `folder` is None or can't be written.

    `max_bytes` caps all segments together. `report(where, error)` hears what went wrong; nothing is raised.
    """

    def __init__(
        self, folder: Path | None, *, max_bytes: int, report: Report, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._max_bytes = max_bytes
        self._report = report
        self._lock = threading.RLock()
        self._inside = False
        self._aside: deque[bytes] = deque()
        self._faults: Faults = deque()
        self._leaving: deque[bytes] = deque()
        self._then: Callable[[bytes], None] | None = None
        self._bell = Bell()
        self._closed = False
        self._cursors: list[JournalCursor] = []
        self._segments: deque[Segment] = deque()
        self._sequence = self._bytes = self._memory_bytes = 0
        self._earlier = 0  # frames appended before the current segment
        self._lost: Counter[str] = Counter()  # frames for which there was neither disk nor memory
        self._pool = SegmentPool(folder, min(segment_bytes, max(max_bytes // 4, 16 * 1024)), self._faults)
        self._session = self._pool.session
        self._current = self._next_segment(0)
        self._put: Callable[[bytes], bool] = self._current.write
        self._tell()

    @property
    def session(self) -> Path | None:
        """The session's folder, None where all is in memory."""
        session = self._pool.session
        return None if session is None else session.folder

    @property
    def appended(self) -> int:
        """Frames taken so far."""
        return self._earlier + self._current.frames

    # -- writing

    def append(self, frame: bytes) -> None:
        """Commit one record: its JSON, without a line end."""
        rolled = False
        with self._lock:
            if self._inside:
                self._aside.append(frame)
                return
            self._inside = True
            try:
                if not self._put(frame):
                    rolled = True
                    self._roll(frame)
            finally:
                self._inside = False
            if self._aside:
                rolled = True
                self._write_aside()
        if rolled:
            self._tell()

    def append_parts(self, parts: Sequence[bytes]) -> None:
        """Append one record in pieces, which for a large one spares joining them."""
        taken = told = False
        with self._lock:
            if not self._inside and self._then is None:
                self._inside = True
                try:
                    taken = self._current.write_parts(parts)
                finally:
                    self._inside = False
                if self._aside:
                    told = True
                    self._write_aside()
        if told:
            self._tell()
        if not taken:
            self.append(b"".join(parts))

    def append_or_drop(self, frame: bytes) -> None:
        """Append, unless the lock can never be had: a thread that ended with the interpreter held it."""
        if self._lock.acquire(blocking=not sys.is_finalizing()):
            try:
                self.append(frame)
            finally:
                self._lock.release()

    def _roll(self, frame: bytes) -> None:
        """Append where the current segment does not take it: to the next one, or, sealed, to our successor."""
        if self._then is not None:
            self._leaving.append(frame)
            return
        try:
            segment = self._next_segment(len(frame))
        except (OSError, MemoryError, ValueError, OverflowError) as error:  # a map larger than the address space
            self._faults.append(("keep a record in the journal", error))
            self._earlier += 1
            self._lost["too_large" if isinstance(error, OverflowError) else "no_room"] += 1
            return
        self._go_to(segment)
        segment.write(frame)
        self._enforce_cap()
        if len(self._pool.trash) > MAX_TRASH:
            remove(self._pool.take_trash(1))  # one a roll: to unlink them all would take milliseconds each

    def _go_to(self, segment: Segment) -> None:
        self._earlier += self._current.frames
        self._current = segment
        if self._then is None:
            self._put = segment.write

    def _write_aside(self) -> None:
        while self._aside:
            self._inside = True
            try:
                frame = self._aside[0]  # stays there until it is written: better twice than never
                if not self._put(frame):
                    self._roll(frame)
                self._aside.popleft()
            finally:
                self._inside = False

    def _tell(self) -> None:
        """Do, without the lock, what others hear of: a logging handler may hold a lock that waits for ours."""
        for where, error in taken(self._faults):
            self._report(where, error)
        if self._then is not None:
            for frame in taken(self._leaving):
                self._then(frame)
        self._bell.ring()

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Hold the lock in a way that lets this thread's own finalisers record meanwhile (rule 2)."""
        with self._lock:
            nested, self._inside = self._inside, True
            try:
                yield
            finally:
                self._inside = nested
            told = not nested and bool(self._aside or self._faults)
            if told:
                self._write_aside()
        if told:
            self._tell()

    def _next_segment(self, length: int) -> Segment:
        needed = Segment.room_for(length)
        if needed > self._max_bytes:
            raise OverflowError(f"a record of {length} bytes is larger than max_journal_bytes={self._max_bytes}")
        segment = self._pool.take(needed)
        if self._pool.session is not self._session:
            self._follow_session()
        self._sequence += 1
        segment.begin(self._sequence)
        self._segments.append(segment)
        self._bytes += segment.size
        self._memory_bytes += segment.size if segment.path is None else 0
        return segment

    def _enforce_cap(self) -> None:
        """Drop the oldest segments while all together are over a cap; the current one always stays."""
        while len(self._segments) > 1 and (
            not self._cursors or self._bytes > self._max_bytes or self._memory_bytes > MEMORY_BYTES
        ):
            oldest = self._segments[0]
            for cursor in self._cursors:
                if cursor.sequence == oldest.sequence:
                    cursor.dropped["journal_full"] += oldest.frames - cursor.seen
                    cursor.go_to(self._segments[1])
            self._retire_oldest()

    def _retire_oldest(self) -> None:
        segment = self._segments.popleft()
        self._bytes -= segment.size
        self._memory_bytes -= segment.size if segment.path is None else 0
        self._pool.give_back(segment)

    # -- reading

    def cursor(self, key: str | None) -> JournalCursor:
        """Add a reader, before the first record; with a `key` its place outlives the process."""
        with self._alone():
            cursor = JournalCursor(self, key, self._lock, self._segments[0])
            self._cursors.append(cursor)
            cursor.open_file(self._session, self._faults)
            return cursor

    def _follow_session(self) -> None:
        """Have the cursors' places in the session that the pool writes to now."""
        self._session = self._pool.session
        for cursor in self._cursors:
            cursor.open_file(self._session, self._faults)

    def read(self, cursor: JournalCursor, max_frames: int, max_bytes: int) -> list[bytes]:
        """Return the cursor's next frames. They count as in flight until `commit`."""
        while True:
            with self._alone():
                if self._closed:
                    return []
                segment = self._segment_of(cursor)
                start, end = cursor.offset, segment.end
                if start >= end:
                    return []
                segment.pins += 1
            frames, after = self._read_pinned(segment, start, end, max_frames, max_bytes)
            with self._alone():
                self._unpin(segment)
                if cursor.sequence != segment.sequence:
                    continue  # dropped over the cap while we read, and counted so
                if frames is None:
                    cursor.dropped["unreadable"] += segment.frames - cursor.seen
                    cursor.offset, cursor.seen = segment.end, segment.frames
                    continue
                cursor.offset = after
                cursor.seen += len(frames)
                cursor.in_flight += len(frames)
                return frames

    def _segment_of(self, cursor: JournalCursor) -> Segment:
        """Return the segment to read from, having left those that are read and complete."""
        segments = iter(self._segments)
        segment = next(segment for segment in segments if segment.sequence == cursor.sequence)
        while cursor.offset >= segment.end and segment is not self._current:
            segment = next(segments)
            cursor.go_to(segment)
        return segment

    def _read_pinned(
        self, segment: Segment, start: int, end: int, max_frames: int, max_bytes: int
    ) -> tuple[list[bytes] | None, int]:
        try:
            return segment.read(start, end, max_frames, max_bytes)
        except (OSError, EOFError) as error:
            self._report("read the journal", error)
            return None, end

    def _unpin(self, segment: Segment) -> None:
        segment.pins -= 1
        if self._closed and not segment.pins:
            segment.abandon()

    def commit(self, cursor: JournalCursor) -> None:
        """Take what `cursor` has read as delivered, and free the segments all cursors have passed."""
        with self._alone():
            cursor.in_flight = 0
            cursor.done = Position(cursor.sequence, cursor.offset)
            if not self._closed:
                passed = min(other.done.sequence for other in self._cursors)
                while self._segments[0].sequence < passed:
                    self._retire_oldest()

    def save(self, cursor: JournalCursor) -> None:
        """Write the cursor's place down, and remove what is no longer needed."""
        if cursor.file is not None:
            try:
                cursor.file.write(*cursor.done)
            except OSError as error:
                self._report("use the disk for the journal", error)
        if self._pool.trash:
            self._sweep()

    def ledger(self, cursor: JournalCursor) -> Ledger:
        """Count what was appended, and of it what the cursor has still to read and what it has read, not committed."""
        with self._lock:
            aside = len(self._aside)
            unread = sum(s.frames for s in self._segments if s.sequence >= cursor.sequence) - cursor.seen
            return Ledger(self.appended + aside, unread + aside, cursor.in_flight, dict(cursor.dropped + self._lost))

    # -- keeping

    def tend(self) -> None:
        """Do what `append` should not: prepare the next segment, give back the memory of those left behind."""
        unmapped: list[object] = []  # let go behind the lock: unmapping takes time
        with self._alone():
            if self._closed:
                return
            session = self._pool.session
            if session is not None and session.gone:
                self._pool.renew_session(FileNotFoundError(f"{session.folder} was removed"))
                self._start_over()
            unmapped += self._pool.unmap_old(self._segments)
            session, wanted = self._pool.session, len(self._pool.spares) < SPARES
        unmapped.clear()
        self._sweep()
        if wanted:
            self._add_spare(session)

    def _start_over(self) -> None:
        """Have what comes next go to a file that exists."""
        try:
            segment = self._next_segment(0)
        except (OSError, MemoryError) as error:
            self._faults.append(("keep a record in the journal", error))
            return
        self._go_to(segment)

    def _add_spare(self, session: Session | None) -> None:
        try:
            spare = self._pool.make_spare(session)
        except (OSError, MemoryError) as error:
            self._report("use the disk for the journal", error)
            return
        with self._alone():
            closed = self._closed
            if not closed:
                self._pool.add_spare(spare, session)
        if closed:
            remove([spare])

    def _sweep(self) -> None:
        with self._alone():
            ripe = self._pool.take_trash()
        remove(ripe)

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to tend, or for `timeout_s` seconds."""
        self._bell.wait(timeout_s)

    def wake(self) -> None:
        """End a `wait`."""
        self._bell.ring()

    # -- the end

    def seal(self, then: Callable[[bytes], None]) -> None:
        """Take nothing more: a thread that is just about to append is sent on to `then`."""
        with self._alone():
            self._then = then
            self._put = _full

    def close(self) -> None:
        """End the session: remove its folder if all is delivered, else leave it for the next process to adopt."""
        with self._alone():
            if self._closed:
                return
            self._put, self._then = _full, self._then or _ignore
            self._closed = True
            keep = any(cursor.file is not None and self.ledger(cursor).open for cursor in self._cursors)
        for segment in self._segments:
            self._put_down(segment, keep=keep and segment.frames > 0)
        for segment in [*self._pool.spares, *self._pool.trash]:
            self._put_down(segment, keep=False)
        if self._session is not None:
            (self._session.release if keep else self._session.remove)()

    def _put_down(self, segment: Segment, *, keep: bool) -> None:
        if not segment.pins:  # else its reader does it
            segment.abandon()
        if segment.path is not None:
            with contextlib.suppress(OSError):
                if keep:
                    os.truncate(segment.path, segment.end)
                else:
                    segment.path.unlink()

    def abandon(self) -> None:
        """Let go of everything without touching a file: in a forked child they are the parent's.

        A frame that was on its way when the process forked is the parent's too.
        """
        self._lock = threading.RLock()  # the old one may be held by a thread that does not exist here
        self._closed, self._put, self._then = True, _full, _ignore
        for segment in [*self._segments, *self._pool.spares, *self._pool.trash]:
            segment.abandon()
        if self._session is not None:
            self._session.abandon()


def _full(_: bytes) -> bool:
    return False


def _ignore(_: bytes) -> None:
    """Take a frame that is not ours to keep."""
