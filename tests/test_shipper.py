"""The shipper: what can be delivered is, what can't is put down with its reason, and the ledger always balances."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import orjson
import pytest
from opentelemetry.context import get_value

from stepwell import _shipper
from stepwell._bell import Bell
from stepwell._journal import Journal
from stepwell._recovery import OrphanSource
from stepwell._shipper import DeadLetters, ExporterStats, Shipper
from stepwell.errors import ExportError, RejectedError
from stepwell.exporters import Batch, Exporter

Faults = list[tuple[str, str]]


class Destination:
    """Takes everything, unless `answer` raises; remembers what it took, what it was asked, and on which thread."""

    def __init__(self, answer: Callable[[list[int]], None] = lambda _: None) -> None:
        self.answer = answer
        self.taken: list[int] = []
        self.asked: list[int] = []
        self.threads: set[str] = set()
        self.called = Bell()
        self.closed = 0

    def export(self, batch: Batch) -> None:
        numbers = [orjson.loads(frame)["n"] for frame in batch.frames]
        self.asked.append(len(numbers))
        self.threads.add(threading.current_thread().name)
        self.called.ring()
        self.answer(numbers)
        self.taken += numbers

    def close(self) -> None:
        self.closed += 1
        self.threads.add(threading.current_thread().name)


class Bench:
    """A journal with one shipper."""

    def __init__(self, folder: Path, faults: Faults) -> None:
        self.faults = faults
        self.journal = Journal(folder / "journal", max_bytes=1 << 20, report=self.report, segment_bytes=16 * 1024)
        self.shippers: list[Shipper] = []
        self.folder = folder

    def report(self, where: str, error: BaseException) -> None:
        self.faults.append((where, type(error).__name__))

    def ship(self, exporter: Exporter, *, letters: Path | None = None, start: bool = True) -> Shipper:
        dead_letters = DeadLetters(letters or self.folder / "rejected", "test", self.report)
        shipper = Shipper(exporter, "test", self.journal.cursor("key"), dead_letters, self.report)
        self.shippers.append(shipper)
        if start:
            shipper.start()
        return shipper

    def record(self, *numbers: int) -> None:
        for number in numbers:
            self.journal.append(b'{"n":%d}' % number)

    def rejected(self) -> list[tuple[int, str]]:
        lines = (self.folder / "rejected" / "test.jsonl").read_bytes().splitlines()
        return [(letter["record"]["n"], letter["reason"]) for letter in map(orjson.loads, lines)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(_shipper, "FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(_shipper, "LONGEST_BACKOFF_S", 0.01)
    bench = Bench(tmp_path, [])
    yield bench
    for shipper in bench.shippers:
        shipper.ask_to_stop(time.monotonic())
        shipper.join(time.monotonic() + 10)
    bench.journal.close()


def soon() -> float:
    return time.monotonic() + 20


def test_what_is_recorded_is_delivered_in_order_on_one_thread(bench: Bench) -> None:
    destination = Destination()
    shipper = bench.ship(destination)
    bench.record(*range(5000))
    assert shipper.flush(soon())
    assert destination.taken == list(range(5000))
    assert max(destination.asked) <= 2000
    shipper.ask_to_stop(soon())
    assert shipper.join(soon())
    assert destination.threads == {"stepwell-test"}
    assert destination.closed == 1
    assert shipper.stats() == ExporterStats(5000, 0, 5000, 0, {}, {})


def test_what_can_be_sent_again_is_until_it_arrives(bench: Bench) -> None:
    errors = [ExportError("busy"), ConnectionRefusedError("down"), MemoryError(), TimeoutError("slow")]

    def answer(_: list[int]) -> None:
        if errors:
            raise errors.pop(0)

    destination = Destination(answer)
    shipper = bench.ship(destination)
    bench.record(1, 2, 3)
    assert shipper.flush(soon())
    assert destination.taken == [1, 2, 3]
    told = [error for _, error in bench.faults]
    assert told == ["ExportError", "ConnectionRefusedError", "MemoryError", "TimeoutError"]
    assert shipper.stats() == ExporterStats(3, 0, 3, 0, {}, {})


def test_a_bad_record_is_found_and_put_down_and_its_neighbours_arrive(bench: Bench) -> None:
    def answer(numbers: list[int]) -> None:
        if 777 in numbers:
            raise KeyError("seven")

    destination = Destination(answer)
    shipper = bench.ship(destination, start=False)
    bench.record(*range(1000))
    shipper.start()
    assert shipper.flush(soon())
    assert destination.taken == [number for number in range(1000) if number != 777]
    assert bench.rejected() == [(777, "KeyError: 'seven'")]
    assert shipper.stats() == ExporterStats(1000, 0, 999, 0, {"KeyError: 'seven'": 1}, {})
    assert len(destination.asked) < 30


def test_records_refused_by_name_are_put_down_and_the_batch_is_not_sent_again(bench: Bench) -> None:
    def answer(_: list[int]) -> None:
        raise RejectedError("some", rejected={1: "too old", 3: "too young", 99: "never sent", -1: "no place"})

    destination = Destination(answer)
    shipper = bench.ship(destination, start=False)
    bench.record(0, 1, 2, 3)
    shipper.start()
    assert shipper.flush(soon())
    assert destination.asked == [4]
    assert bench.rejected() == [(1, "too old"), (3, "too young")]
    assert shipper.stats() == ExporterStats(4, 0, 2, 0, {"too old": 1, "too young": 1}, {})


def test_a_batch_refused_as_a_whole_is_split(bench: Bench) -> None:
    def answer(numbers: list[int]) -> None:
        if len(numbers) > 2:
            raise RejectedError("413 too large")
        if 5 in numbers:
            raise RejectedError("no fives", rejected={99: "names nothing"})

    destination = Destination(answer)
    shipper = bench.ship(destination, start=False)
    bench.record(*range(16))
    shipper.start()
    assert shipper.flush(soon())
    assert sorted(destination.taken) == [number for number in range(16) if number != 5]
    assert bench.rejected() == [(5, "RejectedError: no fives")]


class HostileError(Exception):
    def __str__(self) -> str:
        raise ValueError("not even its text")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (HostileError(), "HostileError: (it can't be told)"),
        (SystemExit("leave"), "SystemExit: leave"),
        (KeyboardInterrupt(), "KeyboardInterrupt: "),
        (ValueError("\ud800 half a pair"), "ValueError: ? half a pair"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 188),
    ],
)
def test_whatever_an_exporter_raises_the_thread_lives(bench: Bench, error: BaseException, reason: str) -> None:
    def answer(numbers: list[int]) -> None:
        if 1 in numbers:
            raise error

    destination = Destination(answer)
    shipper = bench.ship(destination)
    bench.record(0, 1)
    assert shipper.flush(soon())
    bench.record(2)
    assert shipper.flush(soon())
    assert destination.taken == [0, 2]
    assert bench.rejected() == [(1, reason)]
    assert shipper.stats().balanced


class OddError(RejectedError):
    """As a third party may fill it in."""

    def __init__(self, rejected: object) -> None:
        super().__init__("odd")
        self.rejected = rejected  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("rejected", "reasons"),
    [
        ({1: HostileError()}, ["a HostileError"]),
        ({1: None}, ["None"]),
        ({"1": "text", 1.0: "a float", (1,): "a tuple"}, ["OddError: odd", "OddError: odd"]),
        (None, ["OddError: odd", "OddError: odd"]),
        ([1], ["OddError: odd", "OddError: odd"]),
    ],
)
def test_a_refusal_that_makes_no_sense_loses_nothing(bench: Bench, rejected: object, reasons: list[str]) -> None:
    def answer(_: list[int]) -> None:
        raise OddError(rejected)

    shipper = bench.ship(Destination(answer), start=False)
    bench.record(0, 1)
    shipper.start()
    assert shipper.flush(soon())
    assert [reason for _, reason in bench.rejected()] == reasons
    stats = shipper.stats()
    assert stats.balanced
    assert stats.waiting == 0


@pytest.mark.parametrize("wish", ["soon", float("nan"), -1, 0, True, [], object()])
def test_a_wish_for_a_pause_that_makes_no_sense_is_none(bench: Bench, wish: object) -> None:
    errors = [ExportError("later", retry_after_s=wish)]  # type: ignore[arg-type]

    def answer(_: list[int]) -> None:
        if errors:
            raise errors.pop()

    destination = Destination(answer)
    shipper = bench.ship(destination)
    bench.record(1)
    assert shipper.flush(soon())
    assert destination.taken == [1]
    assert shipper.stats() == ExporterStats(1, 0, 1, 0, {}, {})


def test_what_was_read_when_something_inside_failed_is_delivered_all_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    destination = Destination()
    shipper = bench.ship(destination, start=False)
    original = shipper._deliver
    failures = [MemoryError("once"), RuntimeError("twice")]

    def deliver(frames: Sequence[bytes], rejected: list[tuple[bytes, str]]) -> bool:
        if failures:
            raise failures.pop()
        return original(frames, rejected)

    monkeypatch.setattr(shipper, "_deliver", deliver)
    bench.record(*range(10))
    adopt(shipper, Left([b'{"n":100}']))
    shipper.start()
    assert shipper.flush(soon(), adopted=True)
    assert destination.taken == [*range(10), 100]
    assert shipper.stats() == ExporterStats(10, 1, 11, 0, {}, {})


def test_the_number_of_different_reasons_is_bounded(bench: Bench) -> None:
    def answer(numbers: list[int]) -> None:
        raise RejectedError("all", rejected={at: f"reason {number}" for at, number in enumerate(numbers)})

    shipper = bench.ship(Destination(answer))
    bench.record(*range(100))
    assert shipper.flush(soon())
    stats = shipper.stats()
    assert len(stats.rejected) == 51
    assert stats.rejected["other"] == 50
    assert stats.balanced


def test_an_exporter_that_changes_the_batch_changes_nothing(bench: Bench) -> None:
    class Clearing(Destination):
        def export(self, batch: Batch) -> None:
            assert isinstance(batch.frames, tuple)
            super().export(batch)

    destination = Clearing()
    shipper = bench.ship(destination)
    bench.record(1)
    assert shipper.flush(soon())
    assert destination.taken == [1]


def test_exporting_is_not_traced(bench: Bench) -> None:
    seen: list[object] = []
    shipper = bench.ship(Destination(lambda _: seen.append(get_value("suppress_instrumentation"))))
    bench.record(1)
    assert shipper.flush(soon())
    assert seen == [True]
    assert get_value("suppress_instrumentation") is None


def test_a_flush_waits_for_what_was_recorded_and_not_longer_than_it_may(bench: Bench) -> None:
    gate = threading.Event()
    destination = Destination(lambda _: gate.wait(20) and None)
    shipper = bench.ship(destination)
    bench.record(1)
    destination.called.wait(20)
    began = time.monotonic()
    assert not shipper.flush(time.monotonic() + 0.05)
    assert 0.04 < time.monotonic() - began < 5
    assert shipper.stats() == ExporterStats(1, 0, 0, 1, {}, {})
    gate.set()
    assert shipper.flush(soon())


def test_a_flush_does_not_wait_for_what_comes_after_it(bench: Bench) -> None:
    def answer(numbers: list[int]) -> None:
        bench.record(*(number + 1 for number in numbers))

    destination = Destination(answer)
    shipper = bench.ship(destination)
    bench.record(1)
    assert shipper.flush(soon())
    assert destination.taken[0] == 1


def test_a_flush_on_the_shippers_own_thread_returns_at_once(bench: Bench) -> None:
    said: list[bool] = []
    destination = Destination(lambda _: said.append(shipper.flush(soon())))
    shipper = bench.ship(destination)
    bench.record(1)
    assert shipper.flush(soon())
    assert said == [False]


def test_a_flush_cuts_a_back_off_short(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shipper, "FIRST_BACKOFF_S", 1000.0)
    monkeypatch.setattr(_shipper, "LONGEST_BACKOFF_S", 1000.0)
    errors = [ExportError("busy")]

    def answer(_: list[int]) -> None:
        if errors:
            raise errors.pop()

    destination = Destination(answer)
    shipper = bench.ship(destination)
    bench.record(1)
    destination.called.wait(20)
    assert shipper.flush(soon())
    assert destination.taken == [1]


def test_a_flush_does_not_hurry_a_destination_that_asks_for_a_pause(bench: Bench) -> None:
    times: list[float] = []

    def answer(_: list[int]) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            raise ExportError("later", retry_after_s=0.4)

    shipper = bench.ship(Destination(answer))
    bench.record(1)
    assert shipper.flush(soon())
    assert times[1] - times[0] >= 0.4


def test_back_off_grows_and_stays_within_bounds_for_ever(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shipper = bench.ship(Destination(), start=False)
    monkeypatch.setattr(_shipper, "FIRST_BACKOFF_S", 0.1)
    monkeypatch.setattr(_shipper, "LONGEST_BACKOFF_S", 30.0)
    waits: list[float] = []

    class Waiting(Bell):
        def wait(self, timeout_s: float) -> bool:
            waits.append(timeout_s)
            return True

    shipper._wake = Waiting()
    for attempt in (0, 1, 2, 5, 10, 2000):
        shipper._back_off(attempt, None)
    for wait, expected in zip(waits, (0.1, 0.2, 0.4, 3.2, 30, 30), strict=True):
        assert expected * 0.7 < wait <= expected * 1.26


def test_a_wish_for_a_very_long_pause_is_cut(bench: Bench) -> None:
    destination = Destination()
    destination.answer = lambda _: (_ for _ in ()).throw(ExportError("later", retry_after_s=1e9))
    shipper = bench.ship(destination)
    bench.record(1)
    destination.called.wait(20)
    shipper.ask_to_stop(time.monotonic() + 0.05)
    began = time.monotonic()
    assert not shipper.join(soon())
    assert time.monotonic() - began < 5


def test_stopping_delivers_what_it_can_until_the_deadline_and_leaves_the_rest_waiting(bench: Bench) -> None:
    destination = Destination()
    destination.answer = lambda _: (_ for _ in ()).throw(ConnectionRefusedError("down"))
    shipper = bench.ship(destination)
    bench.record(*range(10))
    shipper.ask_to_stop(time.monotonic() + 0.1)
    assert not shipper.join(soon())
    assert shipper.stats() == ExporterStats(10, 0, 0, 10, {}, {})
    assert destination.closed == 1


def test_an_exporter_that_hangs_holds_up_nobody_past_the_deadline(bench: Bench) -> None:
    gate = threading.Event()
    destination = Destination(lambda _: gate.wait(20) and None)
    shipper = bench.ship(destination)
    bench.record(1)
    destination.called.wait(20)
    began = time.monotonic()
    shipper.ask_to_stop(began + 0.1)
    assert not shipper.join(began + 0.1)
    assert time.monotonic() - began < 5
    gate.set()


def test_an_exporter_whose_close_hangs_holds_up_nobody(bench: Bench) -> None:
    gate = threading.Event()

    class Closing(Destination):
        def close(self) -> None:
            gate.wait(20)

    shipper = bench.ship(Closing())
    shipper.ask_to_stop(soon())
    began = time.monotonic()
    shipper.join(began + 0.1)
    assert time.monotonic() - began < 5
    gate.set()


def test_an_exporter_whose_close_raises_is_reported(bench: Bench) -> None:
    class Closing(Destination):
        def close(self) -> None:
            raise SystemExit

    shipper = bench.ship(Closing())
    shipper.ask_to_stop(soon())
    assert shipper.join(soon())
    assert bench.faults == [("close test", "SystemExit")]


def test_a_thread_that_never_started_closes_the_exporter_all_the_same(bench: Bench) -> None:
    destination = Destination()
    shipper = bench.ship(destination, start=False)
    bench.record(1)
    assert not shipper.flush(soon())
    assert not shipper.join(soon())
    assert destination.closed == 1


def test_an_exporter_needs_no_close(bench: Bench) -> None:
    class Bare:
        def export(self, batch: Batch) -> None:
            pass

    shipper = bench.ship(Bare())
    bench.record(1)
    assert shipper.flush(soon())


def test_joining_from_its_own_thread_does_not_wait_for_itself(bench: Bench) -> None:
    said: list[bool] = []
    destination = Destination(lambda _: said.append(shipper.join(soon())))
    shipper = bench.ship(destination)
    bench.record(1)
    assert shipper.flush(soon())
    assert said == [False]


def test_an_internal_failure_is_reported_and_the_thread_goes_on(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    shipper = bench.ship(Destination(), start=False)
    original = shipper.cursor.read
    failures = [RuntimeError("once")]

    def read(max_frames: int, max_bytes: int) -> list[bytes]:
        if failures:
            raise failures.pop()
        return original(max_frames, max_bytes)

    monkeypatch.setattr(shipper.cursor, "read", read)
    shipper.start()
    bench.record(1)
    assert shipper.flush(soon())
    assert bench.faults == [("ship to test", "RuntimeError")]


# -- dead letters


def test_dead_letters_go_to_memory_where_there_is_no_disk(bench: Bench, tmp_path: Path) -> None:
    in_memory = DeadLetters(None, "test", bench.report)
    in_memory.keep([(b'{"n":%d}' % number, "bad") for number in range(150)])
    assert [orjson.loads(line)["record"]["n"] for line in in_memory.kept] == list(range(50, 150))
    (tmp_path / "file").write_text("in the way")
    broken = DeadLetters(tmp_path / "file", "test", bench.report)
    broken.keep([(b'{"n":1}', "bad")])
    assert [orjson.loads(line)["reason"] for line in broken.kept] == ["bad"]
    assert bench.faults == [("keep a rejected record", "FileExistsError")]


def test_the_file_of_dead_letters_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_shipper, "DEAD_LETTER_BYTES", 100)
    letters = DeadLetters(tmp_path / "rejected", "a.b", bench.report)
    for number in range(10):
        letters.keep([(b'{"n":%d}' % number, "bad")])
    assert sorted(path.name for path in (tmp_path / "rejected").iterdir()) == ["a.b.jsonl", "a.b.old.jsonl"]
    assert (tmp_path / "rejected" / "a.b.jsonl").stat().st_mode & 0o777 == 0o600
    assert sum(path.stat().st_size for path in (tmp_path / "rejected").iterdir()) < 500


# -- what dead processes left


class Left:
    """What a dead process left, as `OrphanSource` gives it."""

    def __init__(self, *batches: Sequence[bytes]) -> None:
        self.batches = list(batches)
        self.committed = self.saved = self.finished = 0

    def read(self, max_frames: int, max_bytes: int) -> list[bytes]:
        return list(self.batches.pop(0)) if self.batches else []

    def commit(self) -> None:
        self.committed += 1

    def save(self) -> None:
        self.saved += 1

    def finish(self) -> None:
        self.finished += 1


def adopt(shipper: Shipper, left: Left) -> None:
    shipper.adopt(left)  # type: ignore[arg-type]


def test_what_was_left_is_delivered_in_turn_with_what_is_new(bench: Bench) -> None:
    destination = Destination()
    shipper = bench.ship(destination, start=False)
    left = Left(*([b'{"n":%d}' % number] for number in range(100, 110)))
    adopt(shipper, left)
    bench.record(1, 2)
    shipper.start()
    assert shipper.flush(soon(), adopted=True)
    assert sorted(destination.taken) == [1, 2, *range(100, 110)]
    assert destination.taken[:2] == [1, 2]
    assert (left.committed, left.saved, left.finished) == (10, 10, 1)
    assert shipper.stats() == ExporterStats(2, 10, 12, 0, {}, {})


def test_a_flush_does_not_wait_for_what_was_left_unless_it_is_asked_to(bench: Bench) -> None:
    gate = threading.Event()
    destination = Destination(lambda numbers: gate.wait(20) and None if 100 in numbers else None)
    shipper = bench.ship(destination, start=False)
    adopt(shipper, Left([b'{"n":100}'], [b'{"n":101}']))
    bench.record(1)
    shipper.start()
    assert shipper.flush(soon())
    assert not shipper.flush(time.monotonic() + 0.05, adopted=True)
    stats = shipper.stats()
    assert (stats.waiting, stats.delivered, stats.balanced) == (stats.adopted, 1, True)
    gate.set()
    assert shipper.flush(soon(), adopted=True)


def test_what_was_left_and_could_not_be_delivered_is_not_finished(bench: Bench) -> None:
    destination = Destination()
    destination.answer = lambda _: (_ for _ in ()).throw(ConnectionRefusedError("down"))
    shipper = bench.ship(destination)
    left = Left([b'{"n":1}'])
    adopt(shipper, left)
    destination.called.wait(20)
    shipper.ask_to_stop(time.monotonic() + 0.05)
    shipper.join(soon())
    assert (left.committed, left.finished) == (0, 0)
    assert shipper.stats() == ExporterStats(0, 1, 0, 1, {}, {})


def test_what_went_over_the_cap_before_it_was_adopted_is_counted(bench: Bench) -> None:
    shipper = bench.ship(Destination(), start=False)
    shipper.count_trimmed(5)
    assert shipper.stats() == ExporterStats(0, 5, 0, 0, {}, {"journal_full": 5})


# -- at any moment


def test_the_ledger_balances_at_every_moment(bench: Bench) -> None:
    def answer(numbers: list[int]) -> None:
        if numbers[0] % 7 == 3:
            raise ConnectionResetError("a moment")
        if len(numbers) > 3:
            raise RejectedError("some", rejected={0: "first"})

    shipper = bench.ship(Destination(answer), start=False)
    destination = shipper.exporter
    assert isinstance(destination, Destination)
    tries = [0]

    def once(numbers: list[int]) -> None:
        tries[0] += 1
        if tries[0] % 3 == 0:
            answer(numbers)

    destination.answer = once
    adopt(shipper, Left(*([b'{"n":%d}' % number] * 5 for number in range(50))))
    shipper.start()
    for number in range(20_000):
        bench.record(number)
        if number % 100 == 0:
            assert shipper.stats().balanced
    assert shipper.flush(soon(), adopted=True)
    stats = shipper.stats()
    assert stats.balanced
    assert (stats.recorded, stats.adopted, stats.waiting) == (20_000, 250, 0)


@pytest.mark.usefixtures("untraced")
def test_a_signal_handler_may_ask_for_the_ledger_at_any_moment(bench: Bench) -> None:
    shipper = bench.ship(Destination())
    asked = [0]
    recorded = 0

    def handler(*_: object) -> None:
        asked[0] += 1
        shipper.stats()
        bench.record(1)
        shipper.flush(time.monotonic())
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005)

    before = signal.signal(signal.SIGVTALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005)
        while asked[0] < 10:
            bench.record(2)
            recorded += 1
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    assert shipper.flush(soon())
    assert shipper.stats().recorded == recorded + asked[0]


def test_an_orphan_source_is_what_a_shipper_takes() -> None:
    assert {"read", "commit", "save", "finish"} <= set(dir(OrphanSource))
