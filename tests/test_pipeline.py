"""The pipeline as a program meets it: home folder, keeper, exit, forks, and changing the configuration under load."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import stepwell as sw
from stepwell import _announcing, _config, _pipeline
from stepwell._announcing import Announcer
from stepwell._pipeline import Pipeline, exporter_key, prepare_home
from stepwell._recorder import RECORDER
from stepwell._recovery import peek
from stepwell.exporters import Batch
from stepwell.exporters.memory import MemoryExporter


class Keyed(MemoryExporter):
    """Keeps in memory, under a name that another process may know."""

    key = "keyed"

    def __init__(self) -> None:
        super().__init__()
        self.arrived = threading.Event()
        self.closed = 0

    def export(self, batch: Batch) -> None:
        super().export(batch)
        self.arrived.set()

    def close(self) -> None:
        self.closed += 1


class Dead(Keyed):
    def export(self, batch: Batch) -> None:
        raise ConnectionRefusedError("nobody listens")


class Hanging(Keyed):
    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def export(self, batch: Batch) -> None:
        self.arrived.set()
        self.gate.wait(30)
        super().export(batch)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    exporter = Hanging()
    yield exporter
    exporter.gate.set()
    sw.shutdown()
    for thread in threading.enumerate():
        if thread.name.startswith("stepwell-keyed"):
            thread.join(10)


def names(exporter: MemoryExporter) -> list[str | None]:
    return [step.name for step in exporter.steps]


def pipeline() -> Pipeline:
    assert _config._state.pipeline is not None
    return _config._state.pipeline


def threads() -> list[str]:
    return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("stepwell"))


def left(home: Path, key: str = "keyed") -> list[str]:
    return [json.loads(frame)["name"] for frame in peek(home / "journal", key)]


# -- the home folder


def test_the_home_folder_is_private_and_ignored_by_git(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    sw.configure(export=Keyed(), home=home)
    assert not home.exists()
    with sw.run("a"):
        pass
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / ".gitignore").read_text() == "*\n"
    assert (home / "journal").stat().st_mode & 0o777 == 0o700


def test_no_gitignore_is_put_into_a_folder_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "main.py").touch()
    assert prepare_home(tmp_path, lambda *_: None) == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["main.py"]


def test_an_empty_home_folder_is_ignored_by_git_too(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    prepare_home(tmp_path / "home", lambda *_: None)
    assert (tmp_path / "home" / ".gitignore").exists()


def test_without_a_home_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = MemoryExporter()
    sw.configure(export=memory, home=None)
    with sw.run("a"):
        pass
    assert pipeline().adopt_orphans() == 0
    assert sw.flush(30)
    assert names(memory) == ["a"]
    assert sw.stats().journal is None
    assert list(tmp_path.iterdir()) == []


def test_where_the_home_folder_cant_be_made_it_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    memory = MemoryExporter()
    sw.configure(export=memory, home=tmp_path / "file" / "home")
    for _ in range(10):
        with sw.run("a"):
            pass
    assert sw.flush(30)
    assert names(memory) == ["a"] * 10
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert lines[0].startswith("stepwell could not use its home folder; records wait in memory: NotADirectoryError")


# -- threads


def test_nothing_starts_before_the_first_step(tmp_path: Path) -> None:
    sw.configure(export=Keyed(), home=tmp_path / "home")
    assert threads() == []
    with sw.run("a"):
        assert threads() == ["stepwell-keeper", "stepwell-keyed"]
    assert threads() == ["stepwell-keeper", "stepwell-keyed"]
    assert sw.shutdown()
    assert threads() == []


def test_where_no_step_is_sampled_nothing_starts(tmp_path: Path) -> None:
    sw.configure(export=Keyed(), home=tmp_path / "home", sample=0)
    with sw.run("a"):
        pass
    assert threads() == []
    assert not (tmp_path / "home").exists()


def test_where_no_thread_can_be_had_the_journal_keeps_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with sw.run("a"):
        pass
    assert not sw.flush(0.1)
    assert not sw.shutdown(0.1)
    assert exporter.closed == 1
    assert left(tmp_path / "home") == ["a"]


def test_exporters_of_one_kind_get_names_of_their_own(tmp_path: Path) -> None:
    sw.configure(export=[MemoryExporter(), MemoryExporter(), Keyed()], home=tmp_path / "home")
    with sw.run("a"):
        pass
    assert sw.flush(30)
    stats = sw.stats()
    assert list(stats.exporters) == ["MemoryExporter", "MemoryExporter#2", "keyed"]
    assert [ledger.delivered for ledger in stats.exporters.values()] == [1, 1, 1]


@pytest.mark.parametrize("key", [None, "", 5])
def test_what_is_no_text_is_no_key(key: object) -> None:
    exporter = MemoryExporter()
    exporter.key = key  # type: ignore[attr-defined]
    assert exporter_key(exporter) is None


# -- the keeper


def test_a_step_that_is_open_for_long_is_announced_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_announcing, "ANNOUNCE_AFTER_NS", 1000)
    monkeypatch.setattr(_pipeline, "HEARTBEAT_S", 0.01)
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("long"):
        with sw.tool("first"):
            pass
        exporter.arrived.wait(10)
        deadline = time.monotonic() + 10
        while ("long", "pending") not in (found := [(s.name, s.status) for s in exporter.steps]):
            assert time.monotonic() < deadline, found
            exporter.arrived.clear()
            exporter.arrived.wait(0.5)
    assert sw.flush(30)
    assert [step.status for step in exporter.steps if step.name == "long"] == ["pending", "success"]
    assert RECORDER.open_steps == {}


def test_a_failure_in_the_keeper_is_counted_and_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pipeline, "HEARTBEAT_S", 0.001)
    sw.configure(export=Keyed(), home=tmp_path / "home")
    failed = threading.Event()
    calls = [0]

    def fail(*_: object) -> None:
        calls[0] += 1
        if calls[0] > 2:
            failed.set()
        raise ValueError("broken")

    monkeypatch.setattr(Announcer, "announce", fail)
    with sw.run("a"):
        pass
    assert failed.wait(10)
    assert sw.flush(30)
    assert sw.stats().faults["keep the journal"] >= 2


# -- adoption


def leave(home: Path, *steps: str) -> None:
    """Record in a process that is killed before it has delivered."""
    pid = os.fork()
    if pid == 0:
        try:
            sw.configure(export=Dead(), home=home)
            for name in steps:
                with sw.run(name):
                    pass
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)


def test_what_a_killed_process_left_is_delivered_by_the_next(tmp_path: Path) -> None:
    leave(tmp_path / "home", "a", "b")
    leave(tmp_path / "home", "c")
    assert left(tmp_path / "home") == ["a", "b", "c"]
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("mine"):
        pass
    assert sw.shutdown()
    assert sorted(names(exporter), key=str) == ["a", "b", "c", "mine"]
    assert list((tmp_path / "home" / "journal").iterdir()) == []


def test_what_is_adopted_is_in_the_ledger(tmp_path: Path) -> None:
    leave(tmp_path / "home", "a", "b")
    sw.configure(export=Keyed(), home=tmp_path / "home")
    with sw.run("mine"):
        pass
    pipeline()._keeper.join(0)
    pipeline().adopt_orphans()
    assert pipeline().flush(time.monotonic() + 10, adopted=True)
    ledger = sw.stats().exporters["keyed"]
    assert ledger.balanced
    assert (ledger.recorded, ledger.delivered) == (1, 1 + ledger.adopted)


def test_torn_frames_and_those_over_the_cap_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    leave(home, "a", "b", "c")
    segment = min((home / "journal").glob("*/*.seg"))
    content = bytearray(segment.read_bytes())
    content[20:24] = b"xxxx"
    segment.write_bytes(content)
    exporter = Keyed()
    sw.configure(export=exporter, home=home)
    monkeypatch.setattr(_pipeline, "HEARTBEAT_S", 0.001)
    monkeypatch.setattr(_pipeline, "ADOPT_EVERY_S", 0.001)
    with sw.run("mine"):
        pass
    deadline = time.monotonic() + 10
    while not sw.stats().torn or pipeline()._orphans:
        assert time.monotonic() < deadline
        exporter.arrived.clear()
        exporter.arrived.wait(0.05)
    assert sw.flush(30)
    assert sorted(names(exporter), key=str) == ["b", "c", "mine"]
    assert sw.stats().torn == 1
    assert sw.shutdown()
    leave(home, "d")
    sw.configure(export=Keyed(), home=home, max_journal_bytes=64 * 1024)
    with sw.run("mine"):
        pass
    deadline = time.monotonic() + 10
    while not (ledger := sw.stats().exporters["keyed"]).dropped:  # the keeper's work
        assert time.monotonic() < deadline
        exporter.arrived.wait(0.01)
    assert (ledger.adopted, ledger.dropped, ledger.balanced) == (1, {"journal_full": 1}, True)


def test_what_cant_be_delivered_stays_for_the_next_process(tmp_path: Path) -> None:
    leave(tmp_path / "home", "a")
    sw.configure(export=Dead(), home=tmp_path / "home")
    with sw.run("b"):
        pass
    pipeline().adopt_orphans()
    assert not sw.shutdown(0.2)
    assert left(tmp_path / "home") == ["a", "b"]


# -- the end


def run(code: str, home: Path, timeout: float = 30, **environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(sw.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), str(home)],
        env={**os.environ, "PYTHONPATH": source, **environment},
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_a_program_that_ends_has_delivered_and_leaves_no_session(tmp_path: Path) -> None:
    done = run(
        """
        import sys, stepwell as sw
        sw.configure(export=f"jsonl:{sys.argv[1]}/steps.jsonl", home=sys.argv[1] + "/home")
        for number in range(1000):
            with sw.run(f"step {number}"):
                pass
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = (tmp_path / "steps.jsonl").read_bytes().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [f"step {number}" for number in range(1000)]
    assert list((tmp_path / "home" / "journal").iterdir()) == []


HANG = """
    import sys, threading, stepwell as sw
    class Hanging:
        key = "keyed"
        def export(self, batch):
            threading.Event().wait()
    sw.configure(export=Hanging(), home=sys.argv[1], exit_timeout=0.3)
    with sw.run("a"):
        pass
"""


def test_an_exporter_that_hangs_does_not_keep_the_program_from_ending(tmp_path: Path) -> None:
    began = time.monotonic()
    done = run(HANG, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 5
    assert left(tmp_path) == ["a"]


def test_what_is_recorded_while_the_interpreter_goes_down_is_journaled(tmp_path: Path) -> None:
    done = run(
        """
        import sys, threading, stepwell as sw
        class Late:
            def __del__(self):
                with sw.run("late"):
                    pass
        late = Late()
        def busy():
            while True:
                with sw.run("busy"):
                    pass
        import atexit
        sw.configure(export=f"jsonl:{sys.argv[1]}/steps.jsonl", home=sys.argv[1] + "/home", exit_timeout=0.5)
        with sw.run("first"):
            pass
        threading.Thread(target=busy, daemon=True).start()
        """,
        tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    journaled = left(tmp_path / "home", f"jsonl:{tmp_path / 'steps.jsonl'}")
    assert set(journaled) <= {"late", "busy"}


def test_flush_and_shutdown_say_whether_all_was_delivered(tmp_path: Path) -> None:
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    assert sw.flush(0)
    with sw.run("a"):
        pass
    assert sw.flush(30)
    assert sw.shutdown()
    assert sw.shutdown()
    assert exporter.closed == 1
    sw.configure(export=Dead(), home=tmp_path / "home")
    with sw.run("b"):
        pass
    assert not sw.flush(0.05)
    assert not sw.shutdown(0.05)
    assert left(tmp_path / "home") == ["b"]


def test_nothing_is_recorded_after_shutdown_until_it_is_configured_again(tmp_path: Path) -> None:
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("a"):
        pass
    open_step = sw.start("run", "open")
    assert sw.shutdown()
    with sw.run("b"):
        pass
    open_step.end()
    assert sw.stats().dropped == {"after_shutdown": 1}
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("c"):
        pass
    assert sw.flush(30)
    assert names(exporter) == ["a", "c"]


def test_an_exporter_that_hangs_holds_up_shutdown_no_longer_than_asked(tmp_path: Path, hanging: Hanging) -> None:
    sw.configure(export=hanging, home=tmp_path / "home")
    with sw.run("a"):
        pass
    assert hanging.arrived.wait(10)
    began = time.monotonic()
    assert not sw.flush(0.1)
    assert not sw.shutdown(0.1)
    assert time.monotonic() - began < 5
    assert left(tmp_path / "home") == ["a"]
    hanging.gate.set()
    hanging.arrived.clear()


# -- changing the configuration


def test_configuring_again_under_load_loses_nothing(tmp_path: Path) -> None:
    exporters = [MemoryExporter(max_records=1_000_000) for _ in range(15)]
    stop = threading.Event()
    counts = [0] * 4
    sw.configure(export=exporters[0], home=tmp_path / "home")

    def record(thread: int) -> None:
        while not stop.is_set():
            with sw.run(f"{thread}.{counts[thread]}"):
                counts[thread] += 1

    recording = [threading.Thread(target=record, args=(thread,)) for thread in range(4)]
    for thread in recording:
        thread.start()
    for exporter in exporters[1:]:
        sw.configure(export=exporter, home=tmp_path / "home")
    stop.set()
    for thread in recording:
        thread.join()
    assert sw.flush(20)
    delivered = [name for exporter in exporters for name in names(exporter)]
    recorded = [f"{thread}.{number}" for thread in range(4) for number in range(counts[thread])]
    assert sorted(delivered, key=str) == sorted(recorded)
    assert sum(bool(exporter.records) for exporter in exporters) > 2


def test_who_records_does_not_wait_while_the_old_exporter_is_closed(tmp_path: Path, hanging: Hanging) -> None:
    sw.configure(export=hanging, home=tmp_path / "home", exit_timeout=10)
    with sw.run("old"):
        pass
    assert hanging.arrived.wait(10)
    new = Keyed()
    changing = threading.Thread(target=lambda: sw.configure(export=new, home=tmp_path / "home", exit_timeout=10))
    changing.start()
    while _config._state.closing == 0:
        hanging.arrived.wait(0.01)
    began = time.monotonic()
    with sw.run("new"):
        pass
    assert time.monotonic() - began < 5
    assert names(new) == []
    hanging.gate.set()
    changing.join()
    assert new.arrived.wait(10)
    assert sw.flush(30)
    assert names(hanging) == ["old"]
    assert names(new) == ["new"]


def test_an_exporter_that_records_while_it_is_closed_holds_up_nothing(tmp_path: Path) -> None:
    class Recording(Keyed):
        def export(self, batch: Batch) -> None:
            super().export(batch)
            if len(self.records) < 5:
                with sw.run("inside"):
                    pass

    old, new = Recording(), Keyed()
    sw.configure(export=old, home=tmp_path / "home", exit_timeout=30)
    with sw.run("a"):
        pass
    began = time.monotonic()
    sw.configure(export=new, home=tmp_path / "home")
    assert time.monotonic() - began < 10
    assert sw.shutdown()
    assert names(old)[0] == "a"


def test_a_finaliser_that_records_while_the_pipeline_is_made_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    real = _pipeline.prepare_home

    def interrupted(home: Path | None, report: Callable[[str, BaseException], None]) -> Path | None:
        with sw.run("inner"):
            pass
        return real(home, report)

    monkeypatch.setattr(_pipeline, "prepare_home", interrupted)
    with sw.run("outer"):
        pass
    assert sw.flush(30)
    assert names(exporter) == ["inner", "outer"]
    assert len(list((tmp_path / "home" / "journal").iterdir())) == 1


# -- forks


def in_child(work: Callable[[], object]) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # from 3.12 on: forking with threads is what is tested
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if work() in (None, True) else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_child_has_a_journal_of_its_own_and_delivers(tmp_path: Path) -> None:
    url = f"jsonl:{tmp_path / 'steps.jsonl'}"
    sw.configure(export=url, home=tmp_path / "home")
    with sw.run("parent"):
        pass
    session = sw.stats().journal

    def child() -> bool:
        with sw.run("child"):
            pass
        different = sw.stats().journal not in (None, session)
        return sw.shutdown(10) and different and sw.stats().recorded == 0

    assert in_child(child) == 0
    with sw.run("parent"):
        pass
    assert sw.flush(30)
    lines = (tmp_path / "steps.jsonl").read_bytes().splitlines()
    assert sorted(json.loads(line)["name"] for line in lines) == ["child", "parent", "parent"]
    assert sw.stats().exporters[url].recorded == 2


def test_forking_while_other_threads_record_and_ship_leaves_both_sides_working(tmp_path: Path) -> None:
    url = f"jsonl:{tmp_path / 'steps.jsonl'}"
    sw.configure(export=url, home=tmp_path / "home")
    stop = threading.Event()
    counts = [0, 0]

    def record(thread: int) -> None:
        while not stop.is_set():
            with sw.run("parent"):
                counts[thread] += 1

    recording = [threading.Thread(target=record, args=(thread,)) for thread in range(2)]
    for thread in recording:
        thread.start()

    def child() -> bool:
        signal.alarm(20)
        with sw.run("child"):
            pass
        return sw.shutdown(15)

    try:
        codes = [in_child(child) for _ in range(10)]
    finally:
        stop.set()
        for thread in recording:
            thread.join()
    assert codes == [0] * 10
    assert sw.shutdown(20)
    found = [json.loads(line)["name"] for line in (tmp_path / "steps.jsonl").read_bytes().splitlines()]
    assert (found.count("child"), found.count("parent")) == (10, sum(counts))
    assert list((tmp_path / "home" / "journal").iterdir()) == []


def test_a_child_that_lives_on_holds_no_lock_of_its_parents(tmp_path: Path) -> None:
    leave(tmp_path / "home", "a")
    sw.configure(export=Dead(), home=tmp_path / "home")
    with sw.run("b"):
        pass
    pipeline().adopt_orphans()
    read, write = os.pipe()
    ready_read, ready_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(write)
        os.write(ready_write, b"x")
        os.read(read, 1)
        os._exit(0)
    os.read(ready_read, 1)
    assert not sw.shutdown(0.2)
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    with sw.run("c"):
        pass
    assert sw.shutdown()
    assert sorted(names(exporter), key=str) == ["a", "b", "c"]
    for fd in (write, read, ready_read, ready_write):
        os.close(fd)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_fork_while_the_first_record_is_made_elsewhere_leaves_the_child_free(tmp_path: Path) -> None:
    sw.configure(export=f"jsonl:{tmp_path / 'steps.jsonl'}", home=tmp_path / "home")
    held, free = threading.Event(), threading.Event()

    def hold() -> None:
        with _config._state.lock:
            held.set()
            free.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()

    def child() -> bool:
        signal.alarm(10)
        with sw.run("child"):
            pass
        return sw.shutdown(5)

    try:
        assert in_child(child) == 0
    finally:
        free.set()
        holder.join()


# -- from inside


@pytest.mark.usefixtures("untraced")
def test_a_finaliser_may_record_and_flush_and_ask_for_the_ledger_on_any_thread(tmp_path: Path) -> None:
    exporter = Keyed()
    sw.configure(export=exporter, home=tmp_path / "home")
    ended = [0]

    class Ending:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            with sw.run("ending"):
                pass
            sw.stats()
            sw.flush(0)
            ended[0] += 1

    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(300):
            Ending()
            with sw.run("step"):
                pass
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert sw.flush(20)
    assert ended[0] == 300
    assert names(exporter).count("ending") == names(exporter).count("step") == 300
    assert sw.stats().exporters["keyed"].balanced


def test_many_steps_that_nobody_takes_grow_the_process_by_less_than_promised() -> None:
    benchmark = Path(__file__).parents[1] / "benchmarks" / "memory.py"
    source = str(Path(sw.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(benchmark), "--smoke"],
        env={**os.environ, "PYTHONPATH": source},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "the promise is 50 MB, and a ledger that balances" in done.stdout


def test_an_exporter_that_the_environment_names_wrong_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPWELL_EXPORT", f"nowhere:,jsonl:{tmp_path / 'steps.jsonl'}")
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    with sw.run("kept"):
        pass
    assert not sw.flush(0.5)
    ledgers = sw.stats().exporters
    assert (ledgers["nowhere:"].waiting, ledgers[f"jsonl:{tmp_path / 'steps.jsonl'}"].delivered) == (1, 1)
    assert not sw.shutdown(0.2)
    assert [json.loads(frame)["name"] for frame in peek(tmp_path / "home" / "journal", "nowhere:")] == ["kept"]
