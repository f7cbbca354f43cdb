"""A segment: one file, or anonymous map, that holds frames; and how to read such files when their process is gone.

What must stay true:

1. A frame is committed by its header, written last and at once: a u64 on an 8-byte boundary, its low half the length,
   its high half the stamp. The record's JSON follows. Numbers are in this machine's order: a journal does not travel.
2. The stamp is drawn anew each time the file is used, so what an earlier use left behind never passes for a frame, and
   a file can be used again without being cleared (its pages are mapped already: that saves a microsecond a record).
3. Every byte is allocated before it is mapped: a full disk is an `OSError` here, never a SIGBUS on writing.
4. Between the first and the last store of `write` nothing is called, so no signal handler comes in between: a frame
   is there in whole, or not at all.

The file begins with 16 bytes: `STEPWELL`, sequence number u32, stamp u32.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from stepwell._files import open_private

__all__ = ["FIRST", "Scan", "Segment", "read_sequence", "scan"]

_MAGIC: Final = b"STEPWELL"
_FILE_HEADER: Final = struct.Struct("=8sII")
_FRAME_HEADER: Final = struct.Struct("=Q")
_STAMP_AT: Final = 4 if sys.byteorder == "little" else 0  # in the frame header
_NO_WORDS: Final = memoryview(b"").cast("Q")
FIRST: Final = _FILE_HEADER.size


class Segment:
    """Room for frames: `end` is the offset after the last committed one, `frames` their number.

    `path` None makes it a piece of memory. Raises `OSError` where the disk has no room. One thread at a time, but for
    `read`, while which `pins` is above zero: nobody may then `unmap`, `abandon` or `discard` it.
    """

    __slots__ = ("_fd", "_map", "_stamp", "_words", "end", "frames", "path", "pins", "sequence", "size")

    def __init__(self, size: int, path: Path | None) -> None:
        self.size = size
        self.path = path
        self.pins = 0
        self.sequence = self.frames = self._stamp = 0
        self.end = FIRST
        self._fd = -1
        self._map: mmap.mmap | None = None
        self._words = _NO_WORDS  # the same, for headers: one store of eight bytes
        if path is None:
            self._use(mmap.mmap(-1, size))
            return
        self._fd = open_private(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            os.posix_fallocate(self._fd, 0, size)
            self._use(mmap.mmap(self._fd, size))
        except BaseException:
            self.discard()
            raise

    def _use(self, view: mmap.mmap) -> None:
        self._map = view
        self._words = memoryview(view)[: self.size & -8].cast("Q")

    def warm(self) -> None:
        """Have the kernel give all pages now: a page's first use costs its writer more than a record does.

        Reading zeros into the map does that without holding up the interpreter, which a populated `mmap` would.
        """
        if self._map is not None:
            with Path("/dev/zero").open("rb", buffering=0) as zeros:
                zeros.readinto(self._map)

    @staticmethod
    def room_for(length: int) -> int:
        """Return the least size of a segment that takes a frame of `length` bytes."""
        return FIRST + _FRAME_HEADER.size + ((length + 7) & -8)

    def begin(self, sequence: int) -> None:
        """Make the segment empty and give it its place in the order."""
        self.sequence, self.frames, self.end = sequence, 0, FIRST
        stamp = int.from_bytes(os.urandom(4), "little") | 1  # never 0, which is what unused room holds
        self._stamp = stamp << 32
        if self._map is None:
            raise ValueError("the segment is not mapped, so nothing can be written to it")
        self._map[0:FIRST] = _FILE_HEADER.pack(_MAGIC, sequence & 0xFFFFFFFF, stamp)

    def write(self, frame: bytes) -> bool:
        """Commit one frame; return False, having done nothing, when there is no room for it."""
        length = len(frame)
        at = self.end
        body = at + 8
        end = (body + length + 7) & -8
        view = self._map
        if end > self.size or view is None:
            return False
        view[body : body + length] = frame
        self._words[at >> 3] = self._stamp | length
        self.frames += 1
        self.end = end
        return True

    def write_parts(self, parts: Sequence[bytes]) -> bool:
        """Do what `write` does with one frame in pieces, which for a large one spares joining them."""
        length = sum(map(len, parts))
        at = self.end
        place = at + 8
        end = (place + length + 7) & -8
        view = self._map
        if end > self.size or view is None:
            return False
        for part in parts:
            view[place : place + len(part)] = part
            place += len(part)
        self._words[at >> 3] = self._stamp | length
        self.frames += 1
        self.end = end
        return True

    def read(self, start: int, end: int, max_frames: int, max_bytes: int) -> tuple[list[bytes], int]:
        """Return committed frames between the offsets `start` and `end`, and the offset after the last of them.

        At least one frame comes back when there is one, even if it is larger than `max_bytes`. Raises `OSError` where
        the file is gone or cut.
        """
        frames: list[bytes] = []
        window, base, at = self._copy(start, min(end, start + max_bytes)), start, start
        while at < end and len(frames) < max_frames:
            body = at + _FRAME_HEADER.size
            if body > base + len(window):
                if frames:
                    break
                window, base = self._copy(at, body), at
            length = _FRAME_HEADER.unpack_from(window, at - base)[0] & 0xFFFFFFFF
            if body + length > base + len(window):
                if frames:
                    break
                window, base = self._copy(at, body + length), at
            frames.append(window[body - base : body - base + length])
            at = (body + length + 7) & -8
        return frames, at

    def _copy(self, start: int, stop: int) -> bytes:
        view = self._map
        if view is not None:
            return view[start:stop]
        if self._fd >= 0:
            copied = os.pread(self._fd, stop - start, start)
        elif self.path is not None:
            with self.path.open("rb") as file:
                copied = os.pread(file.fileno(), stop - start, start)
        else:
            raise FileNotFoundError("the segment was discarded")
        if len(copied) < stop - start:
            raise EOFError(f"{self.path} was cut from outside")
        return copied

    @property
    def mapped(self) -> bool:
        """Whether it takes memory, and may be written."""
        return self._map is not None

    @property
    def open_file(self) -> bool:
        """Whether it takes a file descriptor."""
        return self._fd >= 0

    def unmap(self, *, keep_file_open: bool) -> object:
        """Give up the memory of a file that is full, which ends with the object returned; it stays readable."""
        memory = self._map, self._words
        self._map, self._words = None, _NO_WORDS
        if not keep_file_open:
            self._close_file()
        return memory

    def abandon(self) -> None:
        """Let go of memory and descriptor, leaving the file as it is; nothing can be written any more."""
        self._map, self._words = None, _NO_WORDS
        self._close_file()

    def discard(self) -> None:
        """Free the memory and remove the file."""
        self.abandon()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _close_file(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Scan(NamedTuple):
    """What a segment file holds: `frames` as (offset, offset after, JSON bytes); `torn` places without a whole one."""

    sequence: int
    frames: list[tuple[int, int, bytes]]
    torn: int


def read_sequence(path: Path) -> int | None:
    """Return the sequence number in a file's header, None when it is no segment or never used. Raises `OSError`."""
    with path.open("rb") as file:
        header = file.read(FIRST)
    if len(header) < FIRST:
        return None
    magic, sequence, _ = _FILE_HEADER.unpack(header)
    return (sequence or None) if magic == _MAGIC else None


def scan(data: bytes) -> Scan | None:
    """Read the bytes of a segment file; None when it is no segment.

    After a kill the frames stand one behind the other. After a power cut pages may be missing anywhere: the scan goes
    on at the next header that bears this file's stamp before a whole frame, and counts the gap.
    """
    if len(data) < FIRST:
        return None
    magic, sequence, stamp = _FILE_HEADER.unpack_from(data)
    if magic != _MAGIC:
        return None
    found: list[tuple[int, int, bytes]] = []
    torn, at, mark = 0, FIRST, stamp.to_bytes(4, sys.byteorder)
    while at >= 0:
        frame = _frame_at(data, at, stamp)
        if frame is not None:
            after = (at + 8 + len(frame) + 7) & -8
            found.append((at, after, frame))
            at = after
            continue
        begun = data.startswith(mark, at + _STAMP_AT)
        at = _next_frame(data, at + 8, mark, stamp)
        torn += begun or at >= 0
    return Scan(sequence, found, torn)


def _frame_at(data: bytes, at: int, stamp: int) -> bytes | None:
    body = at + _FRAME_HEADER.size
    if body > len(data):
        return None
    header = _FRAME_HEADER.unpack_from(data, at)[0]
    length = header & 0xFFFFFFFF
    if header >> 32 != stamp or length == 0 or body + length > len(data):
        return None
    frame = data[body : body + length]
    try:
        # Only what a power cut or a bad disk left is not JSON: a check here, where time is no matter, saves a checksum
        # on the way of every record.
        return frame if isinstance(orjson.loads(frame), dict) else None
    except orjson.JSONDecodeError:
        return None


def _next_frame(data: bytes, at: int, mark: bytes, stamp: int) -> int:
    while (hit := data.find(mark, at + _STAMP_AT)) >= 0:
        start = hit - _STAMP_AT
        if start % 8 == 0 and start >= FIRST and _frame_at(data, start, stamp) is not None:
            return start
        at = hit + 1 - _STAMP_AT
    return -1
