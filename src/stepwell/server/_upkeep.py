"""What the server does of itself from time to time, on one thread: retention, the files of blobs nobody names, and what
is derived from the records (sums, and the index of words).

What must stay true: an error ends neither the thread nor the other jobs; it is logged and counted. Several servers on
one store only do the same work twice: each of these jobs may be done beside itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from stepwell._unused_blobs import remove_unused
from stepwell.errors import ClosedError
from stepwell.server._places import Place, Places

__all__ = ["Job", "Retention", "Upkeep", "jobs_of"]

RETENTION_S: Final = 300.0
BLOBS_S: Final = 300.0
DERIVED_S: Final = 1.0
_TURN_S: Final = 2.0  # how long what is derived may take before the other jobs have their turn
_BUSY_TURN_S: Final = 0.05  # the same where more records than these came since the last time: they go first
_BUSY_RECORDS: Final = 2_000
_CLOSE_S: Final = 1.0

log: Final = logging.getLogger("stepwell.server")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """What is kept, of each project: what was in use within `keep_ns`, and no more than `max_bytes`; None is all."""

    keep_ns: int | None = None
    max_bytes: int | None = None


class Job(NamedTuple):
    """Something to do in each open place, that often."""

    name: str
    every_s: float
    run: Callable[[Place], object]


def jobs_of(
    retention: Retention, clock: Callable[[], int] = time.time_ns, records: Callable[[], int] = lambda: 0
) -> list[Job]:
    """Return what a server does; `clock` tells the time of day in nanoseconds, `records` how many have come."""
    known: dict[Place, int] = {}

    def expire(place: Place) -> None:
        before_ns = None if retention.keep_ns is None else max(clock() - retention.keep_ns, 0)
        place.store.expire(before_ns=before_ns, max_bytes=retention.max_bytes)

    def remove_blobs(place: Place) -> None:
        remove_unused(place.store, place.blobs)

    def derive(place: Place) -> None:
        before, known[place] = known.get(place, 0), records()
        came = known[place] - before
        place.store.catch_up(_BUSY_TURN_S if came > _BUSY_RECORDS else _TURN_S)

    return [
        Job("retention", RETENTION_S, expire),
        Job("blobs", BLOBS_S, remove_blobs),
        Job("derived", DERIVED_S, derive),
    ]


class Upkeep:
    """Runs jobs when they are due, from `start` to `close`. `counts` is by job and `done` or `failed`."""

    def __init__(
        self, places: Places, jobs: Sequence[Job], clock: Callable[[], float] = time.monotonic, after_s: float = 0.0
    ) -> None:
        self.counts: Counter[tuple[str, str]] = Counter(
            {(job.name, outcome): 0 for job in jobs for outcome in ("done", "failed")}
        )
        self._places = places
        self._clock = clock
        self._after_s = after_s
        self._due = [(job, clock()) for job in jobs]
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="stepwell-upkeep", daemon=True)

    @property
    def is_closing(self) -> bool:
        """Say whether a job that does one thing after another should stop."""
        return self._closing

    def start(self) -> None:
        """Begin with the first round, `after_s` from now."""
        self._due = [(job, self._clock() + self._after_s) for job, _ in self._due]
        self._thread.start()

    def wake(self) -> None:
        """Look again what is due: the clock has moved."""
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Begin nothing any more. A deletion under way ends when its store is closed, at a whole transaction."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        while not self._closing:
            for place, (job, due) in enumerate(self._due):
                if due <= self._clock():
                    self._do(job)
                    self._due[place] = (job, self._clock() + job.every_s)
            with self._changed:
                wait_s = min(due for _, due in self._due) - self._clock()
                if wait_s > 0 and not self._closing:
                    self._changed.wait(wait_s)

    def _do(self, job: Job) -> None:
        for place in self._places.open():
            if self._closing:
                return
            try:
                job.run(place)
            except ClosedError:
                return
            except Exception:
                self.counts[job.name, "failed"] += 1
                log.exception("the upkeep's job %s failed; it is tried again in %g s", job.name, job.every_s)
            else:
                self.counts[job.name, "done"] += 1
