"""What dead processes left: adopted by one, delivered whole, counted where it is torn, kept until nobody needs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stepwell._journal import Journal
from stepwell._recovery import Orphan, OrphanSource, adopt, peek, trim
from stepwell._segment import FIRST
from stepwell._session import DONE, CursorFile, Session, remove_session, try_lock

SMALL = 16 * 1024


def dead(folder: Path, frames: list[bytes], keys: tuple[str, ...] = ("a",), read: int = 0) -> Path:
    """Leave the session of a process that was killed after it delivered `read` frames to each exporter."""

    def work() -> None:
        journal = Journal(folder, max_bytes=1 << 30, report=lambda *_: None, segment_bytes=SMALL)
        cursors = [journal.cursor(key) for key in keys]
        for frame in frames:
            journal.append(frame)
        for cursor in cursors:
            if read:
                cursor.read(read, 1 << 20)
                cursor.commit()
                cursor.save()

    before = set(folder.iterdir()) if folder.exists() else set[Path]()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return next(path for path in folder.iterdir() if path not in before)


def frames(count: int, start: int = 0) -> list[bytes]:
    return [b'{"n":%d,"x":"%b"}' % (number, b"x" * 500) for number in range(start, start + count)]


def take(source: OrphanSource, batch: int = 10) -> list[bytes]:
    taken: list[bytes] = []
    while found := source.read(batch, 1 << 20):
        taken += found
        source.commit()
        source.save()
    return taken


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "journal"


@pytest.fixture
def adopted(folder: Path) -> Iterator[Callable[..., list[Orphan]]]:
    all_of_them: list[Orphan] = []

    def adopted(*keys: str) -> list[Orphan]:
        found = list(adopt(folder, keys))
        all_of_them.extend(found)
        return found

    yield adopted
    for orphan in all_of_them:
        orphan.close()


def test_what_a_dead_process_left_is_delivered_and_its_session_removed(
    folder: Path, adopted: Callable[..., list[Orphan]]
) -> None:
    session = dead(folder, frames(100))
    assert list(peek(folder, "a")) == frames(100)
    [orphan] = adopted("a")
    source = orphan.sources["a"]
    assert take(source) == frames(100)
    assert session.exists()
    source.finish()
    assert orphan.closed
    assert not session.exists()
    assert orphan.torn == 0


def test_delivery_goes_on_where_the_dead_process_was(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    dead(folder, frames(20), read=7)
    assert list(peek(folder, "a")) == frames(13, 7)
    [orphan] = adopted("a")
    source = orphan.sources["a"]
    assert source.read(3, 1 << 20) == frames(3, 7)
    source.commit()
    source.save()
    assert source.read(3, 1 << 20) == frames(3, 10)
    orphan.close()
    [again] = adopted("a")
    assert take(again.sources["a"]) == frames(10, 10)


def test_a_living_process_keeps_its_session(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    journal = Journal(folder, max_bytes=1 << 30, report=lambda *_: None)
    journal.cursor("a")
    journal.append(b'{"n":1}')
    assert adopted("a") == []
    assert list(peek(folder, "a")) == [b'{"n":1}']
    journal.close()
    assert len(adopted("a")) == 1


def test_of_many_who_adopt_one_gets_it(folder: Path) -> None:
    for _ in range(5):
        dead(folder, frames(3))
    won: list[Path] = []
    start = threading.Barrier(8)
    orphans: list[Orphan] = []

    def try_it() -> None:
        start.wait()
        for orphan in adopt(folder, ["a"]):
            won.append(orphan.session)
            orphans.append(orphan)

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == len(set(won)) == 5
    for orphan in orphans:
        orphan.close()


def test_two_processes_that_adopt_deliver_each_frame_once(folder: Path) -> None:
    for number in range(20):
        dead(folder, frames(5, number * 5))
    read, write = os.pipe()
    gate_read, gate_write = os.pipe()
    children: list[int] = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            os.read(gate_read, 1)
            for orphan in adopt(folder, ["a"]):
                for frame in take(orphan.sources["a"]):
                    os.write(write, frame.split(b",")[0] + b"\n")
                orphan.sources["a"].finish()
            os._exit(0)
        children.append(pid)
    os.write(gate_write, b"xx")
    for pid in children:
        assert os.waitpid(pid, 0)[1] == 0
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        got = sorted(int(line[5:]) for line in pipe)
    os.close(gate_read)
    os.close(gate_write)
    assert got == list(range(100))
    assert list(folder.iterdir()) == []


def test_a_session_waits_for_the_exporter_it_is_for(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    session = dead(folder, frames(3), keys=("a", "b"))
    assert adopted("c") == []
    assert adopted() == []
    [orphan] = adopted("a")
    take(orphan.sources["a"])
    orphan.sources["a"].finish()
    assert orphan.closed, "another process, that has exporter b, may have it now"
    assert session.exists()
    assert adopted("a") == []
    assert list(peek(folder, "a")) == []
    [orphan] = adopted("a", "b")
    assert list(orphan.sources) == ["b"]
    assert take(orphan.sources["b"]) == frames(3)
    orphan.sources["b"].finish()
    assert not session.exists()


def test_a_session_for_nobody_is_removed(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    session = dead(folder, frames(3), keys=())
    assert adopted("a") == []
    assert not session.exists()


@pytest.mark.parametrize("content", [b"", b"x", b"\xff\xfe\n", b"1\n", b"a b\na\n"])
def test_a_damaged_place_is_the_beginning(folder: Path, adopted: Callable[..., list[Orphan]], content: bytes) -> None:
    session = dead(folder, frames(5), read=2)
    (session / CursorFile.name_for("a")).write_bytes(content)
    assert list(peek(folder, "a")) == frames(5)
    [orphan] = adopted("a")
    assert take(orphan.sources["a"]) == frames(5)
    orphan.sources["a"].finish()
    assert not session.exists()


def damage(session: Path, at: int, data: bytes) -> None:
    path = min(session.glob("*.seg"))
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, data, at)
    os.close(fd)


def test_torn_frames_are_skipped_and_counted_once(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    session = dead(folder, frames(5), keys=("a", "b"))
    damage(session, FIRST + 700, bytes(8))
    [orphan] = adopted("a", "b")
    assert take(orphan.sources["a"]) == take(orphan.sources["b"]) == [frames(5)[0], *frames(3, 2)]
    assert orphan.torn == 1


def test_a_file_that_is_no_segment_any_more_holds_up_nothing(
    folder: Path, adopted: Callable[..., list[Orphan]]
) -> None:
    session = dead(folder, frames(60))
    damage(session, 0, b"x" * 16)
    (session / "short.seg").write_bytes(b"x")
    [orphan] = adopted("a")
    taken = take(orphan.sources["a"])
    assert taken == frames(60)[60 - len(taken) :]
    assert 10 < len(taken) < 60
    orphan.sources["a"].finish()
    assert not session.exists()


def test_a_segment_that_is_damaged_while_another_is_read_is_passed_over(
    folder: Path, adopted: Callable[..., list[Orphan]]
) -> None:
    session = dead(folder, frames(60))
    [orphan] = adopted("a")
    source = orphan.sources["a"]
    got = source.read(1, 1 << 20)
    sorted(session.glob("*.seg"))[1].write_bytes(b"gone")
    got += take(source)
    assert got == frames(len(got))
    assert 10 < len(got) < 60


def test_a_segment_that_cant_be_read_now_stays(folder: Path, adopted: Callable[..., list[Orphan]]) -> None:
    session = dead(folder, frames(60))
    [orphan] = adopted("a")
    source = orphan.sources["a"]
    got = source.read(1, 1 << 20)
    second = sorted(session.glob("*.seg"))[1]
    content = second.read_bytes()
    second.unlink()
    second.mkdir()
    got += take(source)
    assert 0 < len(got) < 60
    source.finish()
    assert orphan.closed
    assert session.exists()
    second.rmdir()
    second.write_bytes(content)
    assert list(peek(folder, "a"))


def test_looking_leaves_no_trace(folder: Path) -> None:
    dead(folder, frames(3))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert list(peek(folder, "a")) == frames(3)
    assert list(peek(folder, "never seen")) == frames(3)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_where_there_is_no_journal_there_is_nothing(tmp_path: Path) -> None:
    assert list(adopt(tmp_path / "none", ["a"])) == []
    assert list(peek(tmp_path / "none", "a")) == []
    assert trim(tmp_path / "none", 0, ["a"]) == {}


def test_over_the_cap_the_oldest_segments_of_the_dead_go_and_are_counted(folder: Path) -> None:
    dead(folder, frames(60), read=10)
    dead(folder, frames(60, 60))
    assert trim(folder, 1 << 30, ["a"]) == {}
    lost = trim(folder, 3 * SMALL, ["a", "b"])
    left = list(peek(folder, "a"))
    assert left == frames(120)[120 - len(left) :]
    assert lost == {"a": 110 - len(left)}
    assert 0 < len(left) < 100


def test_the_cap_spares_the_living(folder: Path) -> None:
    journal = Journal(folder, max_bytes=1 << 30, report=lambda *_: None)
    journal.cursor("a")
    for frame in frames(10):
        journal.append(frame)
    assert trim(folder, 0, ["a"]) == {}
    assert list(peek(folder, "a")) == frames(10)
    journal.close()


def test_a_segment_that_cant_be_removed_is_passed_over(folder: Path) -> None:
    session = dead(folder, frames(60))
    first = min(session.glob("*.seg"))
    lock = try_lock(session)
    assert lock is not None
    assert trim(folder, 0, ["a"]) == {}
    os.close(lock)
    first.write_bytes(first.read_bytes())
    assert trim(folder, 0, ["a"]) == {"a": 60}


def test_folders_of_processes_that_died_young_are_removed_after_a_day(folder: Path) -> None:
    old, young, other = folder / ".0000000000001-1-a", folder / ".9999999999999-1-a", folder / ".git-x-y"
    for path in (old, young, other):
        path.mkdir(parents=True)
        (path / "lock").touch()
    assert list(adopt(folder, ["a"])) == []
    assert sorted(folder.iterdir()) == [young, other]


def test_the_lock_of_a_folder_that_goes_is_nobodys(tmp_path: Path) -> None:
    session = Session(tmp_path)
    assert try_lock(session.folder) is None
    session.remove()
    session.release()
    assert session.gone
    assert try_lock(session.folder) is None
    assert list(tmp_path.iterdir()) == []


def test_a_lock_taken_on_a_file_that_was_just_removed_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    real = fcntl.flock

    def removed_first(fd: int, how: int) -> None:
        (tmp_path / "lock").unlink()
        real(fd, how)

    monkeypatch.setattr("stepwell._session.fcntl.flock", removed_first)
    assert try_lock(tmp_path) is None


def test_a_session_that_cant_be_made_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no locks here")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("stepwell._session.fcntl.flock", refuse)
    with pytest.raises(OSError, match="no locks here"):
        Session(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_cant_be_removed_is_left(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    remove_session(tmp_path)
    assert (tmp_path / "folder").exists()


def test_a_place_is_written_in_place(tmp_path: Path) -> None:
    file = CursorFile.create(tmp_path, "sqlite:/x.db")
    assert file.read() == (0, 0)
    file.write(12, 345)
    assert file.read() == (12, 345)
    assert file.path.read_text() == "00000000000000000012 00000000000000000345\nsqlite:/x.db\n"
    file.write(DONE, 0)
    assert file.read() == (DONE, 0)
    file.path.unlink()
    with pytest.raises(FileNotFoundError):
        file.write(1, 1)
