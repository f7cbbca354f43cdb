"""capture: record into memory for a block, and ask what was recorded.

What must stay true: an answer holds all that was recorded before the question; after the block everything is as it was
before it, down to the journal and the exporters that stood there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

from msgspec import json

from stepwell import _config
from stepwell._context import attach, get_current
from stepwell._recorder import RECORDER
from stepwell._settings import Settings
from stepwell.errors import NotFoundError
from stepwell.exporters.memory import MemoryExporter
from stepwell.model import Record, ScoreRecord, StepRecord, ThreadRecord, encode_record
from stepwell.store._merge import merge_step, merge_thread

__all__ = ["Captured", "Node", "capture"]


class Node(NamedTuple):
    """A step and the steps below it: equal to the plain tuple `(type, name, status, children)`."""

    type: str | None
    name: str | None
    status: str | None
    children: list[Node]


class Captured:
    """What was recorded, flushed before each answer. `records` are those sent, the others are merged by their ids."""

    def __init__(self, memory: MemoryExporter) -> None:
        self._memory = memory

    @property
    def records(self) -> list[Record]:
        """Every record sent, updates of earlier ones included, in order."""
        if not _config.flush():
            raise TimeoutError("what was recorded did not arrive within 5 seconds")
        return list(self._memory.records)

    @property
    def steps(self) -> list[StepRecord]:
        """The steps: parents before their children, children in the order they started."""
        children = self._by_parent()
        ordered: list[StepRecord] = []
        waiting = children.get(None, [])[::-1]
        while waiting:
            step = waiting.pop()
            ordered.append(step)
            waiting += children.get(step.id, [])[::-1]
        return ordered

    @property
    def threads(self) -> list[ThreadRecord]:
        """The threads, in the order they were opened."""
        threads: dict[str, ThreadRecord] = {}
        for record in self.records:
            if isinstance(record, ThreadRecord):
                known = threads.get(record.id)
                threads[record.id] = record if known is None else merge_thread(known, record)
        return list(threads.values())

    @property
    def scores(self) -> list[ScoreRecord]:
        """The scores sent after their steps; those given before a step's end are in its `scores`."""
        return [record for record in self.records if isinstance(record, ScoreRecord)]

    def step(self, name: str) -> StepRecord:
        """Return the one step of that name. Raises `NotFoundError` if there is none, or more than one."""
        steps = self.steps
        found = [step for step in steps if step.name == name]
        if len(found) != 1:
            names = ", ".join(repr(step.name) for step in steps) or "none"
            raise NotFoundError(f"{len(found)} steps are called {name!r}; recorded: {names}")
        return found[0]

    def fields(self, name: str) -> dict[str, Any]:
        """Return the one step of that name as the JSON object it is on the wire, decoded.

        >>> import stepwell as sw
        >>> with capture() as captured:
        ...     with sw.tool("search", input={"query": "tea"}) as step:
        ...         step.output = ["green"]
        >>> captured.fields("search")["input"], captured.fields("search")["output"]
        ({'query': 'tea'}, ['green'])
        """
        fields: dict[str, Any] = json.decode(encode_record(self.step(name)))
        return fields

    def tree(self) -> list[Node]:
        """Return the steps as nested tuples of type, name, status and children, to compare with a literal.

        >>> import stepwell as sw
        >>> with capture() as captured:
        ...     with sw.run("agent"), sw.tool("search"):
        ...         pass
        >>> captured.tree() == [("run", "agent", "success", [("tool", "search", "success", [])])]
        True
        """
        nodes: dict[str, Node] = {}
        roots: list[Node] = []
        by_id = {step.id for step in self.steps}
        for step in self.steps:
            node = nodes[step.id] = Node(step.type, step.name, step.status, [])
            above = nodes[step.parent_id].children if step.parent_id in by_id and step.parent_id else roots
            above.append(node)
        return roots

    def clear(self) -> None:
        """Forget what was recorded so far."""
        _config.flush()
        self._memory.clear()

    def _by_parent(self) -> dict[str | None, list[StepRecord]]:
        """Group the steps by parent, None for those whose parent was not recorded here."""
        steps: dict[str, StepRecord] = {}
        for record in self.records:
            if isinstance(record, StepRecord):
                known = steps.get(record.id)
                steps[record.id] = record if known is None else merge_step(known, record)
        grouped: dict[str | None, list[StepRecord]] = {}
        for step in sorted(steps.values(), key=lambda step: step.start_ns or 0):
            grouped.setdefault(step.parent_id if step.parent_id in steps else None, []).append(step)
        return grouped


@contextmanager
def capture(**settings: Any) -> Generator[Captured]:
    """Record into memory for a block, with nothing on disk; `settings` are those of `stepwell.configure`.

    Afterwards the configuration from before stands again, and what is on its way there goes on. `STEPWELL_ENABLED`,
    `STEPWELL_SAMPLE` and `OTEL_SDK_DISABLED` are of no effect in the block.

    >>> import stepwell as sw
    >>> with capture(environment="test") as captured:
    ...     with sw.run("greet") as step:
    ...         step.tags.append("polite")
    >>> captured.step("greet").tags, captured.step("greet").environment
    (['polite'], 'test')
    """
    memory = MemoryExporter()
    captured = Captured(memory)
    wanted: dict[str, Any] = {"export": memory, "home": None, "sample": 1.0, "enabled": True, **settings}
    state, context = _config._state, get_current()
    with state.lock:
        before = state.settings, state.exporters, state.pipeline, state.after_shutdown
        append, append_parts, enabled = RECORDER.append, RECORDER.append_parts, RECORDER.enabled
        told = RECORDER.faults, RECORDER._logged, RECORDER._warned
        open_steps, RECORDER.open_steps = RECORDER.open_steps, {}  # those from before are not announced in here
        state.pipeline = None  # so that `configure` leaves it alone
        try:
            _config.configure(**wanted)
        except BaseException:
            state.pipeline, RECORDER.open_steps = before[2], open_steps
            raise
        RECORDER.faults, RECORDER._logged, RECORDER._warned = Counter(), {}, set()
    try:
        yield captured
    finally:
        attach(context)
        _config.shutdown()
        with state.lock:
            state.settings, state.exporters, state.pipeline, state.after_shutdown = before
            _config._apply(before[0] or Settings())
            RECORDER.append, RECORDER.append_parts, RECORDER.enabled = append, append_parts, enabled
            RECORDER.faults, RECORDER._logged, RECORDER._warned = told
            RECORDER.open_steps = {id: step for id, step in open_steps.items() if step.is_recording()}
