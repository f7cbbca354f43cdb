"""Where steps stand: what all steps of a trace share that have the same thread and root run.

What must stay true: a place is complete before a second step stands on it, and never changes from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell._recorder import RECORDER

if TYPE_CHECKING:  # the modules above this one
    from stepwell._thread import Thread

__all__ = ["Place", "as_uuid"]


class Place:
    """Where steps stand: their trace, thread and root run. Shared by all for which these are the same."""

    __slots__ = ("offset", "prefix", "run_id", "sampled", "scope", "thread", "trace")

    def __init__(self, root_id: str, offset: int, thread: Thread | None = None, run_id: str | None = None) -> None:
        """Begin the part of a trace that runs in this process: its id as a UUID, the wall clock less the other."""
        self.trace = trace = root_id.replace("-", "")
        self.prefix = root_id[:19]
        self.offset = offset
        self.sampled = RECORDER.sampled(trace)
        self.settle(thread, run_id)

    def within(self, thread: Thread | None, run_id: str | None) -> Place:
        """Return the place in the same trace with this thread and root run."""
        if thread is self.thread and run_id == self.run_id:
            return self
        place = Place.__new__(Place)
        place.trace, place.prefix, place.offset, place.sampled = self.trace, self.prefix, self.offset, self.sampled
        place.settle(thread, run_id)
        return place

    def unsampled(self) -> Place:
        """Return the same place in a trace that is not kept."""
        place = Place.__new__(Place)
        place.trace, place.prefix, place.offset, place.sampled = self.trace, self.prefix, self.offset, False
        place.settle(self.thread, self.run_id)
        return place

    def settle(self, thread: Thread | None, run_id: str | None) -> None:
        """Set thread and root run, while nobody else stands here."""
        self.thread = thread
        self.run_id = run_id  # not the step: it stands here, and would keep itself alive
        # The part of a record that says all this.
        scope = f'","trace_id":"{self.trace}"' if thread is None else f'","trace_id":"{self.trace}"{thread.scope}'
        self.scope = scope if run_id is None else f'{scope},"root_run_id":"{run_id}"'


def as_uuid(digits: str) -> str:
    """Write 32 hex digits as a UUID."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
