"""memory: keep what was recorded, for tests and notebooks."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TypeVar

from stepwell.exporters import Batch
from stepwell.model import Record, ScoreRecord, StepRecord, ThreadRecord

__all__ = ["MemoryExporter"]

MAX_RECORDS = 100_000
R = TypeVar("R", bound=Record)


class MemoryExporter:
    """Holds the newest records, decoded, payloads as JSON bytes.

    >>> import stepwell as sw
    >>> memory = MemoryExporter()
    >>> sw.configure(export=memory, home=None)
    >>> with sw.run("greet"):
    ...     pass
    >>> sw.flush()
    True
    >>> [step.name for step in memory.steps]
    ['greet']
    """

    def __init__(self, max_records: int = MAX_RECORDS) -> None:
        self.records: deque[Record] = deque(maxlen=max_records)

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> MemoryExporter:  # noqa: ARG003 - the factory's signature
        """Open `memory:`."""
        return cls()

    def export(self, batch: Batch) -> None:
        """Keep a batch. Raises `UsageError` for what is no record."""
        self.records.extend(batch.records)

    @property
    def steps(self) -> list[StepRecord]:
        """The step records, in the order they were recorded (children end before their parents)."""
        return self._of(StepRecord)

    @property
    def threads(self) -> list[ThreadRecord]:
        """The thread records."""
        return self._of(ThreadRecord)

    @property
    def scores(self) -> list[ScoreRecord]:
        """The scores sent after their steps."""
        return self._of(ScoreRecord)

    def clear(self) -> None:
        """Forget everything."""
        self.records.clear()

    def _of(self, kind: type[R]) -> list[R]:
        return [record for record in list(self.records) if isinstance(record, kind)]
