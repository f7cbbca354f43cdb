"""Whatever an exporter raises and whenever a program flushes, reconfigures or shuts down, the ledger balances.

Recorded + adopted = delivered + waiting + rejected + dropped in every statistic, and at the end each step was
delivered, is among the dead letters, or waits in the journal.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import stepwell as sw
from stepwell import _config, _shipper
from stepwell._pipeline import Pipeline
from stepwell._recovery import peek
from stepwell.errors import ExportError, RejectedError
from stepwell.exporters import Batch

KEYS = ("first", "second")


class HostileError(Exception):
    def __str__(self) -> str:
        raise ValueError("not even its text")


class OddError(BaseException):
    pass


@dataclass
class Fault:
    """What one call of `export` does: take some records, then raise, or not."""

    error: BaseException | None = None
    takes: bool = False  # before it raises: at least once means that
    blames: tuple[int, ...] = ()  # of records whose number is one of these modulo 7, and else takes the batch
    refuses: tuple[int, ...] = ()  # places in the batch, in it or not


@dataclass
class Destination:
    """What arrived under one key, over all exporters with that key, and how it behaves."""

    faults: list[Fault]
    taken: set[str] = field(default_factory=set)
    gate: threading.Event = field(default_factory=threading.Event)


class Faulty:
    def __init__(self, key: str, destination: Destination) -> None:
        self.key = key
        self._destination = destination

    def export(self, batch: Batch) -> None:
        ids = [orjson.loads(frame)["id"] for frame in batch.frames]
        fault = self._destination.faults.pop() if self._destination.faults else Fault()
        self._destination.gate.wait(30)
        if fault.blames and not any(int(id[-4:], 16) % 7 in fault.blames for id in ids):
            fault = Fault()
        if fault.refuses:
            places = dict.fromkeys(fault.refuses, "refused")
            inside = [place for place in places if 0 <= place < len(ids)]
            self._destination.taken |= {id for place, id in enumerate(ids) if inside and place not in inside}
            raise RejectedError("some", rejected=places)
        if fault.error is None or fault.takes:
            self._destination.taken |= set(ids)
        if fault.error is not None:
            raise fault.error


ERRORS = st.sampled_from(
    [
        ExportError("down"),
        ExportError("later", retry_after_s=0.001),
        ExportError("odd", retry_after_s="soon"),  # type: ignore[arg-type]
        OSError("unplugged"),
        TimeoutError("slow"),
        MemoryError(),
        RejectedError("all of it"),
        KeyError("a bug"),
        HostileError(),
        RecursionError("deep"),
        SystemExit(1),
        KeyboardInterrupt(),
        GeneratorExit(),
        OddError(),
    ]
)
FAULTS = st.one_of(
    st.builds(Fault),
    st.builds(Fault, error=ERRORS, takes=st.booleans()),
    st.builds(Fault, error=ERRORS, blames=st.lists(st.integers(0, 6), min_size=1, max_size=3).map(tuple)),
    st.builds(Fault, refuses=st.lists(st.integers(-2, 12), min_size=1, max_size=4).map(tuple)),
)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(1, 20)),
        st.tuples(st.just("work"), st.integers(1, 20)),
        st.tuples(st.just("flush"), st.sampled_from([0, 1, 50])),
        st.tuples(st.just("stats"), st.just(0)),
        st.tuples(st.just("hold"), st.integers(0, 1)),
        st.tuples(st.just("release"), st.integers(0, 1)),
        st.tuples(st.just("configure"), st.integers(1, 3)),
        st.tuples(st.just("shutdown"), st.sampled_from([0, 1, 50])),
    ),
    min_size=3,
    max_size=25,
)


@dataclass
class Program:
    """A program that does what it is told, and what must hold of it."""

    home: Path | None
    destinations: list[Destination]
    recorded: dict[str, set[str]] = field(default_factory=lambda: {key: set() for key in KEYS})
    pipelines: list[Pipeline] = field(default_factory=list)
    using: tuple[str, ...] = ()

    def configure(self, which: int) -> None:
        """Export to the first (1), the second (2) or both (3)."""
        self.using = tuple(key for number, key in enumerate(KEYS) if which & 1 << number)
        exporters = [Faulty(key, self.destinations[KEYS.index(key)]) for key in self.using]
        sw.configure(export=exporters, home=self.home, exit_timeout=0.05)

    def record(self, count: int) -> None:
        for number in range(count):
            with sw.run(f"{number}") as step:
                pass
            for key in self.using:
                self.recorded[key].add(step.id)
        pipeline = _config._state.pipeline
        if pipeline is not None and pipeline not in self.pipelines:
            self.pipelines.append(pipeline)

    def work(self, count: int) -> None:
        """Record, and leave the shippers the time to meet a fault."""
        self.record(count)
        self.flush(20)

    def flush(self, milliseconds: int) -> None:
        sw.flush(milliseconds / 1000)

    def stats(self, _: int = 0) -> None:
        for name, ledger in sw.stats().exporters.items():
            assert ledger.balanced, (name, ledger)

    def hold(self, which: int) -> None:
        self.destinations[which].gate.clear()

    def release(self, which: int) -> None:
        self.destinations[which].gate.set()

    def shutdown(self, milliseconds: int) -> None:
        sw.shutdown(milliseconds / 1000)
        self.using = ()

    def end(self) -> None:
        for destination in self.destinations:
            destination.gate.set()
        self.shutdown(50)
        for pipeline in self.pipelines:
            pipeline._keeper.join(30)
            for shipper in pipeline.shippers:
                shipper.join(time.monotonic() + 30)
                assert not shipper._thread.is_alive()
                assert shipper.stats().balanced, shipper.stats()

    def missing(self, key: str) -> set[str]:
        """Return what was recorded for a destination and is nowhere."""
        missing = self.recorded[key] - self.destinations[KEYS.index(key)].taken
        assert self.home is not None
        letters = self.home / "rejected" / f"{key}.jsonl"
        lines = letters.read_bytes().splitlines() if letters.exists() else []
        missing -= {orjson.loads(line)["record"]["id"] for line in lines}
        return missing - {orjson.loads(frame)["id"] for frame in peek(self.home / "journal", key)}


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_shipper, "FIRST_BACKOFF_S", 0.0005)
        patch.setattr(_shipper, "LONGEST_BACKOFF_S", 0.002)
        yield


def run(program: Program, operations: list[tuple[str, int]]) -> None:
    for destination in program.destinations:
        destination.gate.set()
    program.configure(1)
    try:
        for name, argument in operations:
            getattr(program, name)(argument)
            program.stats()
    finally:
        program.end()


@pytest.mark.usefixtures("untraced")
@settings(max_examples=120)
@given(operations=OPERATIONS, faults=st.tuples(*[st.lists(FAULTS, min_size=2, max_size=12)] * 2))
def test_every_step_is_delivered_refused_or_waiting_whatever_happens(
    operations: list[tuple[str, int]], faults: tuple[list[Fault], list[Fault]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        program = Program(Path(folder) / "home", [Destination(list(each)) for each in faults])
        run(program, operations)
        event(f"pipelines: {min(len(program.pipelines), 4)}")
        for key in KEYS:
            assert program.missing(key) == set()


@settings(max_examples=30)
@given(operations=OPERATIONS, faults=st.tuples(*[st.lists(FAULTS, min_size=2, max_size=12)] * 2))
def test_the_ledger_balances_where_nothing_is_on_disk(
    operations: list[tuple[str, int]], faults: tuple[list[Fault], list[Fault]]
) -> None:
    program = Program(None, [Destination(list(each)) for each in faults])
    run(program, operations)
    accounted = sum(sum(s.stats().rejected.values()) + s.stats().waiting for p in program.pipelines for s in p.shippers)
    lost = sum(len(program.recorded[key] - program.destinations[KEYS.index(key)].taken) for key in KEYS)
    assert lost <= accounted
