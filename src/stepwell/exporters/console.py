"""console: draw what was recorded as trees, on stderr (`console:`) or stdout (`console:stdout`).

What must stay true: a run is drawn once, when it is finished, with what was seen below it; what waits for its run is
bounded; a stream that is closed is given up, it can't come back.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, Literal, TextIO

from stepwell._render import Line, Node, Screen, clean, node_of_record, tree
from stepwell.errors import UsageError
from stepwell.exporters import Batch
from stepwell.model import MESSAGE_TYPES, Record, ScoreRecord, StepRecord, ThreadRecord

__all__ = ["ConsoleExporter"]

MAX_WAITING_STEPS: Final = 5000
_GONE: Final = frozenset({errno.EPIPE, errno.EBADF, errno.EIO, errno.ENXIO})


class ConsoleExporter:
    """Draws each finished run, or step without a parent, as a tree; messages and late scores in a line each.

    Children end before their parents, so they wait here: at most `max_waiting` steps, of which the oldest trace is then
    drawn without its end. Works without rich, and in colour with it. It has no `key`: it ends with its process.
    """

    def __init__(
        self, stream: Literal["stderr", "stdout"] | TextIO = "stderr", *, max_waiting: int = MAX_WAITING_STEPS
    ):
        self._stream = stream
        self._max_waiting = max_waiting
        self._waiting: dict[str, dict[str, Node]] = {}  # by trace, the oldest first
        self._count = 0
        self._gone = False
        self._lines: list[Line] = []  # drawn and not written yet
        self._taken: Sequence[bytes] | None = None  # the batch they are of

    @classmethod
    def from_url(cls, url: str, home: Path | None) -> ConsoleExporter:  # noqa: ARG003 - the factory's signature
        """Open `console:` or `console:stdout`."""
        name = url.partition(":")[2]
        if name not in {"", "stderr", "stdout"}:
            raise UsageError(f"export={url!r}: expected console: or console:stdout")
        return cls("stdout" if name == "stdout" else "stderr")

    def export(self, batch: Batch) -> None:
        """Write what the batch finishes. Raises `OSError` where writing may work when it is tried again."""
        if batch.frames is not self._taken:  # else the shipper tries again
            self._taken = batch.frames
            for record in batch.records:
                self._lines += self._draw(record)
        self._write()
        self._taken = None

    def close(self) -> None:
        """Draw what still waits for the end of its run."""
        for trace in list(self._waiting):
            self._lines += self._partial(trace)
        self._write()

    def _draw(self, record: Record) -> list[Line]:
        if isinstance(record, StepRecord):
            return self._take(record)
        return _score(record) if isinstance(record, ScoreRecord) else _thread(record)

    def _take(self, record: StepRecord) -> list[Line]:
        node = node_of_record(record)
        trace = record.trace_id or record.id
        if record.type is None and record.status is None:
            return []  # an addition to a step that was, or will be, drawn
        if record.type in MESSAGE_TYPES and node.root_run_id is None and node.parent_id is None:
            return tree([node])
        steps = self._waiting.setdefault(trace, {})
        self._count += node.id not in steps
        steps[node.id] = node
        if node.status != "pending" and (node.parent_id is None or node.root_run_id == node.id):
            return tree(self._forget(trace))
        return self._partial(next(iter(self._waiting))) if self._count > self._max_waiting else []

    def _forget(self, trace: str) -> Iterable[Node]:
        steps = self._waiting.pop(trace)
        self._count -= len(steps)
        return steps.values()

    def _partial(self, trace: str) -> list[Line]:
        head: Line = [(f"trace {clean(trace, 64)}: steps left without the end of their run", "yellow")]
        return [head, *tree(self._forget(trace), below=True)]

    def _write(self) -> None:
        try:
            if self._lines and not self._gone:
                Screen(self._target()).write(self._lines)
        except ValueError:  # what Python raises for a stream that was closed in this process
            self._gone = True
        except OSError as error:
            if error.errno not in _GONE:
                raise
            self._gone = True
        self._lines = []

    def _target(self) -> TextIO:
        """Look the stream up now: programs and tests replace `sys.stderr`."""
        if not isinstance(self._stream, str):
            return self._stream
        stream = sys.stdout if self._stream == "stdout" else sys.stderr
        if stream is None:  # pythonw, and daemons that closed it
            raise ValueError(f"there is no {self._stream}")
        return stream


def _thread(record: ThreadRecord) -> list[Line]:
    name = f"  {clean(record.name, 200)}" if record.name else ""
    return [[("thread", "bold green"), (f"  {clean(record.id, 256)}{name}", "")]]


def _score(record: ScoreRecord) -> list[Line]:
    node = Node(record.step_id or record.id, type="score", scores=(record,))
    return [
        [("score", "bold"), *step_line[1:], (f"  of step {clean(node.id, 64)}", "dim")] for step_line in tree([node])
    ]
