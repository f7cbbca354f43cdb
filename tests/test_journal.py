"""The journal: nothing appended is lost, everything that goes is counted, whoever interrupts whom."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stepwell._bell import Bell
from stepwell._cursor import JournalCursor
from stepwell._journal import Journal
from stepwell._recovery import peek

SMALL = 16 * 1024
PLENTY = 64 * 1024 * 1024
Faults = list[tuple[str, str]]


@pytest.fixture
def faults() -> Faults:
    return []


@pytest.fixture
def make(tmp_path: Path, faults: Faults) -> Iterator[Callable[..., Journal]]:
    made: list[Journal] = []

    def make(folder: Path | None = tmp_path / "journal", max_bytes: int = PLENTY, size: int = SMALL) -> Journal:
        journal = Journal(
            folder,
            max_bytes=max_bytes,
            segment_bytes=size,
            report=lambda where, error: faults.append((where, type(error).__name__)),
        )
        made.append(journal)
        return journal

    yield make
    for journal in made:
        journal.close()


def frame(number: int, size: int = 700) -> bytes:
    return b'{"n":%d,"x":"%b"}' % (number, b"x" * (size - 20))


def numbers(frames: list[bytes]) -> list[int]:
    return [int(frame[5 : frame.index(b"," if b"," in frame else b"}")]) for frame in frames]


def drain(cursor: JournalCursor) -> list[int]:
    read: list[int] = []
    while frames := cursor.read(100, 1 << 20):
        read += numbers(frames)
        cursor.commit()
        cursor.save()
    return read


def balanced(cursor: JournalCursor, committed: int) -> bool:
    ledger = cursor.ledger()
    return ledger.appended == committed + ledger.open + sum(ledger.dropped.values())


def test_what_is_appended_is_read_once_in_order(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    for number in range(3):
        journal.append(frame(number))
    assert drain(cursor) == [0, 1, 2]
    assert drain(cursor) == []
    assert cursor.ledger() == (3, 0, 0, {})


def test_segments_follow_one_another_and_are_used_again(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    read: list[int] = []
    for number in range(1000):
        journal.append(frame(number))
        if number % 10 == 9:
            read += drain(cursor)
    assert read == list(range(1000))
    assert journal.session is not None
    assert len(list(journal.session.glob("*.seg"))) <= 3


def test_a_record_in_parts_is_one_frame_whether_it_fits_or_not(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    written = [frame(number, 20_000 + number) for number in range(40)]  # over segments of the smallest size
    for whole in written:
        journal.append_parts([whole[:10], whole[10:15_000], b"", whole[15_000:]])
    read: list[bytes] = []
    while frames := cursor.read(100, 1 << 20):
        read += frames
        cursor.commit()
    assert read == written
    assert cursor.ledger() == (40, 0, 0, {})


def test_parts_that_come_after_the_seal_go_to_the_successor(make: Callable[..., Journal]) -> None:
    journal = make()
    successor: list[bytes] = []
    journal.append_parts([b'{"n":', b"1}"])
    journal.seal(successor.append)
    journal.append_parts([b'{"n":', b"2}"])
    assert (journal.appended, successor) == (1, [b'{"n":2}'])


def test_every_exporter_has_its_own_place(make: Callable[..., Journal]) -> None:
    journal = make()
    fast, slow = journal.cursor("fast"), journal.cursor("slow")
    for number in range(100):
        journal.append(frame(number))
    assert drain(fast) == list(range(100))
    assert slow.ledger() == (100, 100, 0, {})
    assert numbers(slow.read(3, 1 << 20)) == [0, 1, 2]
    assert slow.ledger() == (100, 97, 3, {})
    assert drain(slow) == list(range(3, 100))


def test_a_frame_larger_than_a_segment_gets_one_of_its_own(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    for number, size in enumerate((100, 5 * SMALL, 100, 3 * SMALL, 2 * SMALL, 100)):
        journal.append(frame(number, size))
    assert drain(cursor) == [0, 1, 2, 3, 4, 5]


def test_a_frame_larger_than_the_cap_is_dropped_alone(make: Callable[..., Journal], faults: Faults) -> None:
    journal = make(max_bytes=4 * SMALL)
    cursor = journal.cursor("a")
    journal.append(frame(0))
    journal.append(frame(1, 5 * SMALL))
    journal.append(frame(2))
    assert drain(cursor) == [0, 2]
    assert cursor.ledger() == (3, 0, 0, {"too_large": 1})
    assert faults == [("keep a record in the journal", "OverflowError")]


def test_over_the_cap_the_oldest_unsent_go_and_are_counted(make: Callable[..., Journal]) -> None:
    journal = make(max_bytes=4 * SMALL)
    dead, slow = journal.cursor("dead"), journal.cursor("slow")
    for number in range(10):
        journal.append(frame(number))
    assert len(slow.read(10, 1 << 20)) == 10
    for number in range(10, 1000):
        journal.append(frame(number))
    dropped = dead.ledger().dropped["journal_full"]
    assert slow.ledger().dropped["journal_full"] == dropped - 10
    assert slow.ledger().in_flight == 10
    assert drain(dead) == list(range(dropped, 1000))
    assert 900 < dropped < 960
    assert balanced(dead, 1000 - dropped)
    assert journal.session is not None
    assert sum(path.stat().st_size for path in journal.session.glob("*.seg")) <= (4 + 8 + 2) * SMALL
    journal.tend()
    assert sum(path.stat().st_size for path in journal.session.glob("*.seg")) <= 6 * SMALL


def test_dropped_while_it_is_read_nothing_is_counted_twice(make: Callable[..., Journal]) -> None:
    journal = make(max_bytes=4 * SMALL)
    cursor = journal.cursor("a")
    for number in range(10):
        journal.append(frame(number))
    segment = journal._segments[0]
    read, original = [0], segment.read

    def read_slowly(start: int, end: int, max_frames: int, max_bytes: int) -> tuple[list[bytes], int]:
        for number in range(10, 500):
            journal.append(frame(number))
        return original(start, end, max_frames, max_bytes)

    journal._read_pinned = lambda s, *a: read_slowly(*a) if read.pop() == 0 else s.read(*a)  # type: ignore[method-assign]
    read.insert(0, 1)
    frames = cursor.read(5, 1 << 20)
    ledger = cursor.ledger()
    assert numbers(frames)[0] == ledger.dropped["journal_full"] > 10
    assert balanced(cursor, 0)
    assert segment.pins == 0


def test_with_no_exporter_nothing_is_kept(make: Callable[..., Journal]) -> None:
    journal = make()
    for number in range(1000):
        journal.append(frame(number))
    assert journal.session is not None
    assert len(list(journal.session.glob("*.seg"))) <= 2
    assert journal.appended == 1000


# -- memory and disk


def test_without_a_folder_all_is_in_memory_up_to_a_cap(make: Callable[..., Journal]) -> None:
    journal = make(None, size=1024 * 1024)
    cursor = journal.cursor("a")
    for number in range(100):
        journal.append(frame(number, 700_000))
    assert journal.session is None
    dropped = cursor.ledger().dropped["journal_full"]
    assert dropped == 68
    assert drain(cursor) == list(range(68, 100))


def test_where_the_folder_cant_be_made_it_says_so_once_and_keeps_on_in_memory(
    make: Callable[..., Journal], faults: Faults, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    journal = make(tmp_path / "file" / "journal")
    cursor = journal.cursor("a")
    for number in range(100):
        journal.append(frame(number))
    journal.tend()
    assert drain(cursor) == list(range(100))
    assert faults == [("use its home folder; records wait in memory", "FileExistsError")]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", folder], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system needs more rights than we have here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_when_the_disk_is_full_it_goes_on_in_memory_and_comes_back(
    make: Callable[..., Journal], faults: Faults, mount: Path
) -> None:
    (mount / "filler").write_bytes(bytes(150 * 1024))
    journal = make(mount / "journal")
    cursor = journal.cursor("a")
    for number in range(300):
        journal.append(frame(number))
    journal.tend()
    assert set(faults) == {("use the disk for the journal", "OSError")}
    (mount / "filler").unlink()
    for number in range(300, 310):
        journal.append(frame(number))
    assert drain(cursor) == list(range(310))
    faults.clear()
    for number in range(310, 400):
        journal.append(frame(number))
        drain(cursor)
    assert faults == []
    assert journal._current.path is not None


def test_on_a_read_only_disk_it_keeps_on_in_memory(make: Callable[..., Journal], faults: Faults, mount: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    journal = make(mount / "journal")
    assert journal.session is None
    assert faults == [("use its home folder; records wait in memory", "OSError")]


def test_when_the_home_folder_is_removed_what_it_held_is_delivered_and_a_new_one_is_made(
    make: Callable[..., Journal], faults: Faults, tmp_path: Path
) -> None:
    journal = make()
    cursor = journal.cursor("a")
    for number in range(100):
        journal.append(frame(number))
    journal.tend()
    shutil.rmtree(tmp_path / "journal")
    journal.tend()
    for number in range(100, 110):
        journal.append(frame(number))
    assert numbers(list(peek(tmp_path / "journal", "a"))) == list(range(100, 110))
    assert drain(cursor) == list(range(110))
    assert list(peek(tmp_path / "journal", "a")) == []
    assert ("find its home folder, and begins a new one", "FileNotFoundError") in faults


def test_a_roll_that_finds_the_home_folder_removed_begins_a_new_one(
    make: Callable[..., Journal], faults: Faults, tmp_path: Path
) -> None:
    journal = make()
    cursor = journal.cursor("a")
    shutil.rmtree(tmp_path / "journal")
    for number in range(100):
        journal.append(frame(number))
    assert numbers(list(peek(tmp_path / "journal", "a")))[-1] == 99
    assert drain(cursor) == list(range(100))
    assert faults == [("find its home folder, and begins a new one", "FileNotFoundError")]


def test_removed_for_good_it_goes_on_in_memory(make: Callable[..., Journal], faults: Faults, tmp_path: Path) -> None:
    journal = make(tmp_path / "home" / "journal")
    cursor = journal.cursor("a")
    shutil.rmtree(tmp_path / "home")
    (tmp_path / "home").write_text("in the way")
    journal.tend()
    for number in range(100):
        journal.append(frame(number))
    assert journal.session is None
    assert drain(cursor) == list(range(100))


def test_what_can_no_longer_be_read_is_counted(make: Callable[..., Journal], faults: Faults, tmp_path: Path) -> None:
    journal = make()
    cursor = journal.cursor("a")
    for number in range(1000):
        journal.append(frame(number))
    journal.tend()
    cut = journal._segments[0]
    cut.unmap(keep_file_open=False)
    assert cut.path is not None
    os.truncate(cut.path, 100)
    read = drain(cursor)
    assert read == list(range(cut.frames, 1000))
    assert cursor.ledger().dropped == {"unreadable": cut.frames}
    assert faults == [("read the journal", "EOFError")]


def test_a_backlog_takes_neither_memory_nor_many_descriptors(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(2000):
        journal.append(frame(number))
        if number % 20 == 0:
            journal.tend()
    assert sum(segment.mapped for segment in journal._segments) <= 3
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 40
    assert len(journal._segments) > 80
    assert drain(cursor) == list(range(2000))


# -- the end


def test_a_clean_exit_removes_the_session(make: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make()
    cursor = journal.cursor("a")
    journal.append(frame(0))
    journal.tend()
    drain(cursor)
    journal.close()
    journal.close()
    assert list((tmp_path / "journal").iterdir()) == []


def test_what_was_not_delivered_stays_and_takes_no_more_room_than_it_needs(
    make: Callable[..., Journal], tmp_path: Path
) -> None:
    journal = make()
    journal.cursor("a")
    session = journal.session
    assert session is not None
    for number in range(30):
        journal.append(frame(number))
    journal.close()
    assert sorted(path.suffix for path in session.iterdir()) == ["", ".cursor", ".seg", ".seg"]
    assert sum(path.stat().st_size for path in session.glob("*.seg")) < 30 * 720
    assert numbers(list(peek(tmp_path / "journal", "a"))) == list(range(30))


def test_an_exporter_that_ends_with_the_process_leaves_nothing(make: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make()
    journal.cursor(None)
    journal.append(frame(0))
    journal.close()
    assert list((tmp_path / "journal").iterdir()) == []


def test_sealed_it_sends_on_what_comes_and_still_delivers_what_it_has(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    journal.append(frame(0))
    sent_on: list[bytes] = []
    journal.seal(sent_on.append)
    journal.append(frame(1))
    journal.tend()
    journal.append(frame(2))
    assert numbers(sent_on) == [1, 2]
    assert drain(cursor) == [0]
    assert journal.appended == 1


def test_closed_it_touches_no_file_any_more(make: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make()
    cursor = journal.cursor("a")
    for number in range(100):
        journal.append(frame(number))
    cursor.read(60, 1 << 20)
    journal.close()
    before = sorted((tmp_path / "journal").rglob("*"))
    cursor.commit()
    journal.tend()
    assert cursor.read(10, 1000) == []
    assert sorted((tmp_path / "journal").rglob("*")) == before
    assert len(list(peek(tmp_path / "journal", "a"))) == 100


def test_closed_while_a_reader_copies_the_reader_lets_go(make: Callable[..., Journal], tmp_path: Path) -> None:
    journal = make()
    cursor = journal.cursor("a")
    journal.append(frame(0))
    segment = journal._segments[0]
    original = segment.read

    def close_then_read(_: object, *args: int) -> tuple[list[bytes], int]:
        journal.close()
        assert segment.mapped
        return original(*args)

    journal._read_pinned = close_then_read  # type: ignore[assignment, method-assign]
    assert numbers(cursor.read(5, 1000)) == [0]
    assert not segment.mapped
    assert numbers(list(peek(tmp_path / "journal", "a"))) == [0]


# -- concurrency


def test_eight_threads_append_while_a_cursor_follows_and_nothing_is_lost(make: Callable[..., Journal]) -> None:
    journal = make(size=64 * 1024)
    cursor = journal.cursor("a")
    done = threading.Event()
    start = threading.Barrier(9)
    read: list[tuple[int, int]] = []

    def record(thread: int) -> None:
        start.wait()
        for number in range(3000):
            journal.append(b'{"t":%d,"n":%d,"x":"%b"}' % (thread, number, b"x" * (number % 500)))

    def follow() -> None:
        start.wait()
        while not done.is_set() or cursor.ledger().open:
            for found in cursor.read(500, 1 << 16):
                thread, number, _ = found.split(b",")
                read.append((int(thread[5:]), int(number[4:])))
            cursor.commit()
            cursor.save()
            journal.tend()

    threads = [threading.Thread(target=record, args=(thread,)) for thread in range(8)]
    reader = threading.Thread(target=follow)
    for thread in [*threads, reader]:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    reader.join()
    for thread in range(8):
        assert [number for owner, number in read if owner == thread] == list(range(3000))
    assert cursor.ledger() == (24000, 0, 0, {})


class Recorder:
    """Records when it is collected, and is part of a cycle, so that only the collector ends it."""

    def __init__(self, journal: Journal, number: int, ended: list[int]) -> None:
        self.me = self
        self.journal, self.number, self.ended = journal, number, ended

    def __del__(self) -> None:
        self.journal.append(frame(self.number, 200))
        self.ended.append(self.number)


@pytest.mark.usefixtures("untraced")
def test_a_finaliser_may_record_anywhere_in_the_journal(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    ended: list[int] = []
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        read: list[int] = []
        for number in range(300):
            Recorder(journal, 10_000 + number, ended)
            journal.append(frame(number))
            journal.tend()
            cursor.ledger()
            read += drain(cursor)
        gc.collect()
        read += drain(cursor)
    finally:
        gc.set_threshold(*threshold)
    assert sorted(read) == [*range(300), *range(10_000, 10_300)]
    assert [number for number in read if number < 10_000] == list(range(300))
    assert sorted(ended) == list(range(10_000, 10_300))


def test_a_frame_that_comes_in_the_middle_of_another_is_written_behind_it(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    original = journal._put

    def interrupted(data: bytes) -> bool:
        journal._put = original
        journal.append(frame(1))
        assert cursor.ledger().open == 1
        return original(data)

    journal._put = interrupted
    journal.append(frame(0))
    assert drain(cursor) == [0, 1]


def test_a_frame_that_comes_while_the_journal_is_read_is_written_after(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    journal.append(frame(0))
    with journal._alone():
        journal.append(frame(1))
        with journal._alone():
            journal.append(frame(2))
        assert journal.appended == 1
    assert journal.appended == 3
    assert drain(cursor) == [0, 1, 2]


@pytest.mark.usefixtures("untraced")
def test_a_signal_handler_may_record_and_may_raise_at_any_moment(make: Callable[..., Journal]) -> None:
    journal = make(size=1024 * 1024)
    cursor = journal.cursor("a")
    handled = [0]
    inside: set[int] = set()  # not empty while an interrupt is caught below

    def handler(*_: object) -> None:
        handled[0] += 1
        journal.append(b'{"n":-1,"x":""}')
        cursor.ledger()
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0003)  # not a repeating one, which may leave no time for the rest
        if handled[0] % 3 == 0 and inside:
            inside.clear()
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, handler)
    appended: list[int] = []
    read: list[int] = []
    number = interrupted = 0
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.0003)
        deadline = time.monotonic() + 5
        while interrupted < 50 and time.monotonic() < deadline:
            try:
                inside.add(1)
                for _ in range(1000):
                    number += 1
                    journal.append(frame(number, 100))
                    appended.append(number)
                inside.clear()
            except KeyboardInterrupt:
                interrupted += 1
            read += drain(cursor)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    read += drain(cursor)
    mine = [n for n in read if n > 0]
    assert interrupted > 2  # fifty where nobody else wants the machine
    assert read.count(-1) == handled[0]
    assert sum(a >= b for a, b in pairwise(mine)) == 0
    assert len(set(appended) - set(mine)) == 0
    assert balanced(cursor, len(read))


def test_a_fault_is_reported_without_the_lock(make: Callable[..., Journal], tmp_path: Path) -> None:
    heard: list[bool] = []

    def report(_: str, __: BaseException) -> None:
        other = threading.Thread(target=lambda: heard.append(journal.cursor(None) is not None))
        other.start()
        other.join(10)

    journal = Journal(None, max_bytes=PLENTY, report=report, segment_bytes=SMALL)
    journal.append(frame(0, PLENTY + 1))
    assert heard == [True]
    journal.close()


def test_sent_on_without_the_lock(make: Callable[..., Journal]) -> None:
    journal = make()
    free: list[bool] = []

    def then(_: bytes) -> None:
        other = threading.Thread(target=lambda: free.append(journal.cursor(None) is not None))
        other.start()
        other.join(10)

    journal.seal(then)
    journal.append(b"{}")
    assert free == [True]


def in_child(work: Callable[[], bool]) -> bool:
    """Say what `work` returned in a forked process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: forking with threads is what is tested
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_fork_in_the_middle_of_another_threads_append_leaves_the_child_free(make: Callable[..., Journal]) -> None:
    journal = make()
    cursor = journal.cursor("a")
    stop = threading.Event()
    count = [0]

    def record() -> None:
        while not stop.is_set():
            journal.append(frame(count[0]))
            count[0] += 1

    def child() -> bool:
        session = journal.session
        journal.abandon()
        journal.append(frame(10_000_000))
        journal.tend()
        return cursor.read(10, 1000) == [] and session is not None and session.exists()

    thread = threading.Thread(target=record)
    thread.start()
    try:
        assert [in_child(child) for _ in range(20)] == [True] * 20
        held = threading.Event()
        free = threading.Event()

        def hold() -> None:
            with journal._lock:
                held.set()
                free.wait(10)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        try:
            assert in_child(child)
        finally:
            free.set()
            holder.join()
    finally:
        stop.set()
        thread.join()
    read = drain(cursor)
    over_the_cap = sum(cursor.ledger().dropped.values())  # which the thread reaches on a slow machine
    assert read == list(range(over_the_cap, count[0]))


def test_a_child_that_lives_on_does_not_hold_its_parents_lock(make: Callable[..., Journal]) -> None:
    journal = make()
    assert journal._session is not None
    session = journal._session
    assert in_child(lambda: journal.abandon() is None and session.gone)
    assert not session.gone


def test_a_full_journal_costs_no_system_call_and_a_roll_under_a_millisecond(make: Callable[..., Journal]) -> None:
    journal = make(size=1024 * 1024)
    cursor = journal.cursor("a")
    stop = threading.Event()

    def keep() -> None:
        while not stop.is_set():
            journal.tend()
            journal.wait(0.05)

    keeper = threading.Thread(target=keep)
    keeper.start()
    costs: list[int] = []
    try:
        for number in range(20_000):
            began = time.perf_counter_ns()
            journal.append(frame(number))
            costs.append(time.perf_counter_ns() - began)
    finally:
        stop.set()
        journal.wake()
        keeper.join()
    assert sorted(costs)[len(costs) // 2] < 10_000
    assert cursor.ledger().open == 20_000


# -- against a model


class JournalModel(RuleBasedStateMachine):
    """Whatever happens in whatever order: what is read is what was appended, without what was dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal(None, max_bytes=64 * 1024, report=lambda *_: None, segment_bytes=SMALL)
        self.cursors = [self.journal.cursor("a"), self.journal.cursor(None)]
        self.appended: list[int] = []
        self.read: list[list[int]] = [[], []]
        self.in_flight = [0, 0]

    @rule(count=st.integers(1, 40), size=st.integers(30, 3000))
    def append(self, count: int, size: int) -> None:
        for _ in range(count):
            self.journal.append(frame(len(self.appended), size))
            self.appended.append(len(self.appended))

    @rule(size=st.integers(17_000, 40_000))
    def append_a_large_one(self, size: int) -> None:
        self.append(1, size)

    @rule(which=st.integers(0, 1), count=st.integers(1, 50), size=st.integers(1, 50_000))
    def read_some(self, which: int, count: int, size: int) -> None:
        frames = self.cursors[which].read(count, size)
        assert len(frames) <= count
        self.read[which] += numbers(frames)
        self.in_flight[which] += len(frames)

    @precondition(lambda self: any(self.in_flight))
    @rule(which=st.integers(0, 1))
    def commit(self, which: int) -> None:
        self.cursors[which].commit()
        self.cursors[which].save()
        self.in_flight[which] = 0

    @rule()
    def tend(self) -> None:
        self.journal.tend()

    @invariant()
    def nothing_is_lost_or_stale(self) -> None:
        for cursor, read, in_flight in zip(self.cursors, self.read, self.in_flight, strict=True):
            ledger = cursor.ledger()
            dropped = sum(ledger.dropped.values())
            assert read == sorted(set(read))
            assert ledger.appended == len(self.appended)
            assert ledger.in_flight == in_flight
            assert len(read) + ledger.unread + dropped == len(self.appended)
            gap = (read[-1] + 1 if read else 0) - len(read)
            assert gap <= dropped

    def teardown(self) -> None:
        for cursor, read in zip(self.cursors, self.read, strict=True):
            read += drain(cursor)
            assert len(read) + sum(cursor.ledger().dropped.values()) == len(self.appended)
            assert not read or read[-1] == self.appended[-1]
        self.journal.close()


class JournalOnDisk(JournalModel):
    def __init__(self) -> None:
        super().__init__()
        self.journal.close()
        base = Path(os.environ["STEPWELL_TEST_FOLDER"])
        self.journal = Journal(base / "journal", max_bytes=64 * 1024, report=lambda *_: None, segment_bytes=SMALL)
        self.cursors = [self.journal.cursor("a"), self.journal.cursor(None)]


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("model", [JournalModel, JournalOnDisk])
def test_any_order_of_events_agrees_with_a_model(
    model: type[RuleBasedStateMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("STEPWELL_TEST_FOLDER", str(tmp_path))
    run_state_machine_as_test(model, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


def test_a_bell_that_was_rung_ends_the_next_wait_once() -> None:
    bell = Bell()
    assert not bell.wait(-1)
    bell.ring()
    bell.ring()
    assert bell.wait(10)
    assert not bell.wait(0)
