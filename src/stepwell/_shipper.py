"""The shippers: one thread an exporter that carries frames from the journal to it.

What must stay true:

1. Retry, splitting and dead letters live here only. What can be sent again is, with back-off, as long as the process
   lives; what the destination refuses is isolated and kept in `rejected/` with the reason.
2. Every wait has a deadline or ends when somebody asks for something; no lock is held while an exporter works, or a
   file is touched. The only lock is the journal's, so that no two can be taken in different orders.
3. The ledger balances at every moment: recorded + adopted = delivered + waiting + rejected + dropped.
4. A rejected record is in `rejected/` before the cursor passes it.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from opentelemetry.context import attach, set_value

from stepwell._bell import Bell
from stepwell._cursor import JournalCursor, Source
from stepwell._files import open_private
from stepwell._journal import Report
from stepwell._recovery import OrphanSource
from stepwell.errors import ExportError, RejectedError
from stepwell.exporters import Batch, Exporter

__all__ = ["DeadLetters", "ExporterStats", "Shipper"]

POLL_S: Final = 0.2
BATCH_RECORDS: Final = 2000
BATCH_BYTES: Final = 1024 * 1024
FIRST_BACKOFF_S: Final = 0.1
LONGEST_BACKOFF_S: Final = 30.0
LONGEST_WISH_S: Final = 300.0  # a destination may ask for a longer pause, and gets this
MAX_REASONS: Final = 50
REASON_CHARACTERS: Final = 200
DEAD_LETTER_BYTES: Final = 64 * 1024 * 1024


class ExporterStats(NamedTuple):
    """The ledger of one exporter, in records: recorded + adopted = delivered + waiting + rejected + dropped."""

    recorded: int
    adopted: int
    delivered: int
    waiting: int
    rejected: dict[str, int]
    dropped: dict[str, int]

    @property
    def balanced(self) -> bool:
        """Whether the two sides are equal, as they must be."""
        gone = sum(self.rejected.values()) + sum(self.dropped.values())
        return self.recorded + self.adopted == self.delivered + self.waiting + gone


class DeadLetters:
    """What an exporter refused: one JSON line each in `rejected/NAME.jsonl`, or the newest few in memory."""

    def __init__(self, folder: Path | None, name: str, report: Report) -> None:
        self._path = None if folder is None else folder / f"{name}.jsonl"
        self._name = name
        self._report = report
        self.kept: deque[bytes] = deque(maxlen=100)

    def keep(self, rejected: Sequence[tuple[bytes, str]]) -> None:
        """Write down records, each with its reason. Never raises."""
        lines = [
            orjson.dumps({"at_ns": time.time_ns(), "exporter": self._name, "reason": reason})[:-1]
            + b',"record":'
            + frame
            + b"}\n"
            for frame, reason in rejected
        ]
        if self._path is None:
            self.kept.extend(lines)
            return
        try:
            self._write(self._path, b"".join(lines))
        except OSError as error:
            self.kept.extend(lines)
            self._report("keep a rejected record", error)

    def _write(self, path: Path, data: bytes) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size > DEAD_LETTER_BYTES:
            path.replace(path.with_suffix(".old.jsonl"))
        fd = open_private(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            while data:
                data = data[os.write(fd, data) :]
        finally:
            os.close(fd)


class Shipper:
    """Carries one cursor's frames, and what dead processes left for the same exporter.

    The thread closes the exporter at its end, so that a `close` that hangs holds up nobody past the deadline.
    """

    def __init__(
        self, exporter: Exporter, name: str, cursor: JournalCursor, letters: DeadLetters, report: Report
    ) -> None:
        self.exporter = exporter
        self.name = name
        self.cursor = cursor
        self._lock = cursor.lock
        self._letters = letters
        self._report = report
        self._orphans: deque[OrphanSource] = deque()
        self._adopted = self._delivered = 0
        self._orphan_frames = 0  # read from an orphan and not accounted for yet
        self._unsettled: tuple[Source, list[bytes]] | None = None  # read, and failed over inside of stepwell
        self._trimmed = 0
        self._rejected: Counter[str] = Counter()
        self._waiters: list[Bell] = []
        self._wake = Bell()
        self._loaded = threading.Event()
        self._stopping = False
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._run, name=f"stepwell-{name}", daemon=True)

    def start(self) -> None:
        """Start the thread. Raises `RuntimeError` where no thread can be had."""
        self._thread.start()

    def wait_loaded(self, deadline: float) -> None:
        """Wait, before a fork, until the exporter has imported what it needs, at most until `deadline`.

        The child would find the imports' locks held by a thread that it does not have, and wait for them for ever.
        """
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._loaded.wait(max(0.0, deadline - time.monotonic()))

    def adopt(self, source: OrphanSource) -> None:
        """Deliver, in turn with what is new, what a dead process left."""
        self._orphans.append(source)
        self._wake.ring()

    def count_trimmed(self, frames: int) -> None:
        """Account for frames of a dead process that went over the cap before they could be adopted."""
        with self._lock:
            self._trimmed += frames

    def stats(self) -> ExporterStats:
        """Return the ledger as of now."""
        with self._lock:
            ledger = self.cursor.ledger()
            dropped = Counter(ledger.dropped)
            dropped["journal_full"] += self._trimmed
            return ExporterStats(
                recorded=ledger.appended,
                adopted=self._adopted + self._trimmed,
                delivered=self._delivered,
                waiting=ledger.open + self._orphan_frames,
                rejected=dict(self._rejected),
                dropped=dict(+dropped),
            )

    def flush(self, deadline: float, *, adopted: bool = False) -> bool:
        """Wait until all recorded before this call is accounted for, at most until `deadline` (monotonic seconds).

        With `adopted`, wait too until nothing is left of what dead processes left.
        """
        target = self.cursor.ledger().appended
        bell = Bell()
        self._waiters.append(bell)
        try:
            while not (done := self._handled() >= target and not (adopted and self._orphans)):
                left = deadline - time.monotonic()
                if left <= 0 or not self._thread.is_alive() or self._thread is threading.current_thread():
                    break
                self._wake.ring()
                bell.wait(min(left, POLL_S))
        finally:
            self._waiters.remove(bell)
        return done

    def _handled(self) -> int:
        ledger = self.cursor.ledger()
        return ledger.appended - ledger.open

    def ask_to_stop(self, deadline: float) -> None:
        """Have the thread end when all is delivered, or at `deadline` (monotonic seconds)."""
        self._deadline = deadline
        self._stopping = True
        self._wake.ring()

    def join(self, deadline: float) -> bool:
        """Wait for the thread, and say whether all was delivered."""
        if self._thread.ident is None:
            self._close_exporter()
        elif self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))
        return self.cursor.ledger().open == 0

    def _close_exporter(self) -> None:
        close = getattr(self.exporter, "close", None)
        if close is not None:
            try:
                close()
            except BaseException as error:  # noqa: BLE001 - a third party's code
                self._report(f"close {self.name}", error)

    # -- on the thread

    def _run(self) -> None:
        attach(set_value("suppress_instrumentation", True))  # else exporting makes spans that are exported ...
        self._load()
        while not self._past_deadline():
            try:
                moved = self._ship_unsettled() and self._ship()
                moved = self._ship_orphan() or moved
            except Exception as error:  # noqa: BLE001 - the thread must live
                self._report(f"ship to {self.name}", error)
                moved = False
            if not moved:
                if self._stopping:
                    break
                self._wake.wait(POLL_S)
        self._close_exporter()

    def _ship_unsettled(self) -> bool:
        """Deliver first what a failure left, which no later `read` would give again; say whether nothing is left."""
        return self._unsettled is None or self._settle(*self._unsettled)

    def _load(self) -> None:
        try:
            load = getattr(self.exporter, "load", None)
            if load is not None:
                load()
        except BaseException as error:  # noqa: BLE001 - a third party's code; what is missing, `export` will say
            self._report(f"load {self.name}", error)
        finally:
            self._loaded.set()

    def _ship(self) -> bool:
        """Deliver the next batch; say whether there was one, and all of it is accounted for."""
        frames = self.cursor.read(BATCH_RECORDS, BATCH_BYTES)
        return bool(frames) and self._settle(self.cursor, frames)

    def _ship_orphan(self) -> bool:
        if not self._orphans or self._unsettled is not None or self._past_deadline():
            return False
        source = self._orphans[0]
        frames = source.read(BATCH_RECORDS, BATCH_BYTES)
        if not frames:
            source.finish()
            self._orphans.popleft()
            self._tell_waiters()
            return True
        with self._lock:
            self._adopted += len(frames)
            self._orphan_frames = len(frames)
        return self._settle(source, frames)

    def _settle(self, source: Source, frames: list[bytes]) -> bool:
        self._unsettled = source, frames
        rejected: list[tuple[bytes, str]] = []
        if not self._deliver(tuple(frames), rejected):
            return False
        if rejected:
            self._letters.keep(rejected)
        with self._lock:
            source.commit()
            self._unsettled = None
            if source is not self.cursor:
                self._orphan_frames = 0
            self._delivered += len(frames) - len(rejected)
            for _, reason in rejected:
                known = reason in self._rejected or len(self._rejected) < MAX_REASONS
                self._rejected[reason if known else "other"] += 1
        source.save()
        self._tell_waiters()
        return True

    def _tell_waiters(self) -> None:
        for bell in list(self._waiters):
            bell.ring()

    def _deliver(self, frames: Sequence[bytes], rejected: list[tuple[bytes, str]]) -> bool:
        """Send until every frame is taken or refused; False when the deadline came first."""
        attempt = 0
        while not self._past_deadline():
            try:
                self.exporter.export(Batch(frames))
            except RejectedError as error:
                named = _refused(error, len(frames))
                if not named:
                    return self._split(frames, rejected, error)
                rejected += [(frames[at], named[at]) for at in sorted(named)]
                self._report(f"export to {self.name}", error)
                return True
            except (ExportError, OSError, MemoryError) as error:
                self._report(f"export to {self.name}", error)
                self._back_off(attempt, _wish(error))
                attempt += 1
            except BaseException as error:  # noqa: BLE001 - anything else is put down to the content
                return self._split(frames, rejected, error)
            else:
                return True
        return False

    def _split(self, frames: Sequence[bytes], rejected: list[tuple[bytes, str]], error: BaseException) -> bool:
        if len(frames) == 1:
            self._report(f"export to {self.name}", error)
            rejected.append((frames[0], _describe(error)))
            return True
        middle = len(frames) // 2
        return self._deliver(frames[:middle], rejected) and self._deliver(frames[middle:], rejected)

    def _back_off(self, attempt: int, wished_s: float | None) -> None:
        """Wait before the next attempt: as long as the destination asks, else until somebody asks for a flush."""
        pause = FIRST_BACKOFF_S * 2 ** min(attempt, 10) if wished_s is None else wished_s
        earliest = 1.0  # never before the time asked for
        if wished_s is None:
            pause, earliest = min(pause, LONGEST_BACKOFF_S), 0.75
        until = time.monotonic() + pause * random.uniform(earliest, 1.25)  # noqa: S311 - it keeps clients apart
        while (left := min(until, self._deadline) - time.monotonic()) > 0:
            rung = self._wake.wait(min(left, POLL_S) if self._stopping else left)
            if wished_s is None and (rung or self._stopping):
                break

    def _past_deadline(self) -> bool:
        return self._stopping and time.monotonic() >= self._deadline


def _refused(error: RejectedError, count: int) -> dict[int, str]:
    """Return the places in the batch that a third party's error names, and why."""
    try:
        named = {at: _reason(why) for at, why in error.rejected.items() if isinstance(at, int) and 0 <= at < count}
    except Exception:  # noqa: BLE001 - a third party's attribute
        return {}
    return named


def _reason(why: object) -> str:
    try:
        return _text(str(why))
    except Exception:  # noqa: BLE001 - a third party's object
        return f"a {type(why).__name__}"


def _wish(error: BaseException) -> float | None:
    """Return how many seconds a destination asks to be left alone: within bounds, None where it does not say."""
    wished: object = getattr(error, "retry_after_s", None)
    if isinstance(wished, bool) or not isinstance(wished, int | float) or not wished > 0:
        return None
    return max(FIRST_BACKOFF_S, min(float(wished), LONGEST_WISH_S))


def _describe(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a third party's code
        text = "(it can't be told)"
    return _text(f"{type(error).__name__}: {text}")


def _text(reason: str) -> str:
    """Return a reason as text that can be written as JSON."""
    return reason[:REASON_CHARACTERS].encode("utf-8", "replace").decode()
