"""However a process ends, a step that has ended is delivered, or on disk and delivered once by whoever comes next."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from unruly import UnrulyServer

import stepwell as sw
from stepwell import cli
from stepwell._cli_journal import survey
from stepwell.store import open_store

PRELUDE = """
import atexit, os, resource, signal, sys, threading, time
import stepwell as sw

resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
home = sys.argv[1]

def record(name):
    with sw.tool(name, input={"name": name}) as step:
        step.output = [name, name]

def tell(line):
    os.write(1, f"{line}\\n".encode())

def fork(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        work()
        os._exit(0)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

"""
ROUNDS = 3
SOURCE = str(Path(sw.__file__).parents[1])


class Ended(NamedTuple):
    status: int
    told: list[str]
    err: str


class Program:
    """A Python program of a test's own, with the functions above."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self._script = folder / "program.py"

    def start(self, code: str, **options: Any) -> subprocess.Popen[bytes]:
        self._script.write_text(PRELUDE + textwrap.dedent(code))
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(self._script), str(self.home)],
            env={**os.environ, "PYTHONPATH": SOURCE, "STEPWELL_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    def run(self, code: str, **options: Any) -> Ended:
        return finish(self.start(code, **options))


def finish(process: subprocess.Popen[bytes]) -> Ended:
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return Ended(process.returncode, out.decode().split(), err.decode())


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def left(home: Path) -> list[Path]:
    journal = home / "journal"
    return sorted(journal.iterdir()) if journal.exists() else []


def stored(home: Path) -> list[dict[str, Any]]:
    """Return the steps in the store, none of them twice."""
    store = open_store(str(home / "steps.db"), read_only=True)
    try:
        steps = [step for step in map(json.loads, store.records()) if step["kind"] == "step"]
    finally:
        store.close()
    assert len({step["id"] for step in steps}) == len(steps)
    return steps


def ship(home: Path) -> list[dict[str, Any]]:
    """Do what `stepwell ship` does; return the steps that are in the store then."""
    assert cli.run(["ship", "--home", str(home)]) == 0
    assert [session for session in survey(home / "journal") if session.alive or any(session.waiting.values())] == []
    return stored(home)


def whole(steps: Sequence[dict[str, Any]]) -> list[str]:
    """Return the names of steps that `record` made, sorted, having looked that all of each is there."""
    for step in steps:
        name = step["name"]
        assert (step["type"], step["status"]) == ("tool", "success")
        assert (step["input"], step["output"]) == ({"name": name}, [name, name])
        assert step["start_ns"] <= step["end_ns"]
    return sorted(step["name"] for step in steps)


# -- ends the program chooses


@pytest.mark.parametrize(("end", "status"), [("", 0), ("sys.exit(3)", 3), ("raise SystemExit(4)", 4)])
def test_a_program_that_ends_by_itself_has_delivered(program: Program, end: str, status: int) -> None:
    assert program.run(f"record('a'); record('b'); {end}") == (status, [], "")
    assert left(program.home) == []
    assert whole(stored(program.home)) == ["a", "b"]


def test_an_exception_that_ends_the_program_is_the_users_alone(program: Program) -> None:
    ended = program.run(
        """
        @sw.run
        def work():
            record("inner")
            raise ValueError("mine")
        work()
        """
    )
    assert (ended.status, ended.told) == (1, [])
    lines = ended.err.splitlines()
    assert (lines[0], lines[-1]) == ("Traceback (most recent call last):", "ValueError: mine")
    assert [line for line in lines if "stepwell" in line] == []
    steps = {step["name"]: step for step in stored(program.home)}
    assert sorted(steps) == ["inner", "work"]
    assert (steps["work"]["status"], steps["work"]["error"]["message"]) == ("failed", "mine")
    assert left(program.home) == []


ABRUPT = {
    "os._exit": ("os._exit(7)", 7),
    "os.abort": ("os.abort()", -signal.SIGABRT),
    "a segmentation fault": ("import faulthandler; faulthandler._sigsegv()", -signal.SIGSEGV),
    "a kill of its own": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
}


@pytest.mark.parametrize(("end", "status"), ABRUPT.values(), ids=list(ABRUPT))
def test_a_step_that_ended_just_before_an_abrupt_end_is_delivered_by_ship(
    program: Program, end: str, status: int
) -> None:
    assert program.run(f"record('a'); record('b'); {end}") == (status, [], "")
    assert whole(ship(program.home)) == ["a", "b"]


def test_the_command_and_the_next_program_deliver_alike(program: Program) -> None:
    for name in ("a", "b"):
        assert program.run(f"record({name!r}); os._exit(7)").status == 7
    command = [sys.executable, "-m", "stepwell", "ship", "--home", str(program.home)]
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    shipped = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (shipped.returncode, shipped.stderr) == (0, "")
    assert whole(stored(program.home)) == ["a", "b"]
    assert program.run("record('c'); os._exit(7)").status == 7
    adopting = """
    record("d")
    deadline = time.monotonic() + 30
    while len(os.listdir(home + "/journal")) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    """
    assert program.run(adopting) == (0, [], "")
    assert left(program.home) == []
    assert whole(stored(program.home)) == ["a", "b", "c", "d"]


# -- ends that others choose

SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_that_comes_just_after_a_step_ended_loses_nothing(program: Program, number: signal.Signals) -> None:
    process = program.start("record('a'); record('b'); tell('ready'); threading.Event().wait()")
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    assert finish(process) == (-number, [], "")
    assert whole(ship(program.home)) == ["a", "b"]


def test_a_handler_that_exits_ends_the_open_steps_and_delivers(program: Program) -> None:
    process = program.start(
        """
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(5))
        with sw.run("outer"), sw.tool("inner", input={"a": 1}):
            record("a")
            tell("ready")
            threading.Event().wait()
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.terminate()
    assert finish(process) == (5, [], "")
    steps = {step["name"]: step for step in stored(program.home)}
    assert {name: step["status"] for name, step in steps.items()} == {
        "outer": "failed",
        "inner": "failed",
        "a": "success",
    }
    assert steps["inner"]["error"]["type"] == "SystemExit"
    assert steps["inner"]["input"] == {"a": 1}
    assert left(program.home) == []


def test_an_interrupt_inside_a_step_cancels_it(program: Program) -> None:
    process = program.start(
        """
        with sw.run("outer"):
            record("a")
            tell("ready")
            threading.Event().wait()
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert (ended.status, ended.err.splitlines()[-1]) == (-signal.SIGINT, "KeyboardInterrupt")
    assert "stepwell" not in ended.err
    assert {step["name"]: step["status"] for step in stored(program.home)} == {"outer": "cancelled", "a": "success"}
    assert left(program.home) == []


# -- the interpreter goes down


def test_daemon_threads_that_record_until_the_end_lose_nothing_and_hold_up_nothing(program: Program) -> None:
    code = """
    many = threading.Semaphore(0)
    def busy(thread):
        number = 0
        while True:
            name = f"{thread}.{number}"
            record(name)
            tell(name)
            number += 1
            many.release()
            time.sleep(0.0005)
    for thread in range(4):
        threading.Thread(target=busy, args=(thread,), daemon=True).start()
    for _ in range(200):
        many.acquire()
    """
    told: list[str] = []
    for _ in range(ROUNDS):
        ended = program.run(code)
        assert (ended.status, ended.err) == (0, "")
        assert len(ended.told) >= 200
        told += ended.told
    assert Counter(told) <= Counter(whole(ship(program.home)))


def test_threads_that_outlive_the_main_one_are_waited_for(program: Program) -> None:
    ended = program.run(
        """
        from concurrent.futures import ThreadPoolExecutor
        main_ended = threading.Event()
        def late(name):
            main_ended.wait()
            record(name)
        for number in range(3):
            threading.Thread(target=late, args=(f"thread {number}",)).start()
        pool = ThreadPoolExecutor(2)
        pool.submit(late, "pool")
        threading._register_atexit(main_ended.set)
        """
    )
    assert ended == (0, [], "")
    assert left(program.home) == []
    assert whole(stored(program.home)) == ["pool", "thread 0", "thread 1", "thread 2"]


def test_steps_of_exit_handlers_are_kept_whenever_they_run(program: Program) -> None:
    ended = program.run(
        """
        atexit.register(record, "registered before the first step, so run last")
        record("first")
        atexit.register(record, "registered after it, so run before ours")
        threading._register_atexit(record, "as the threads are joined")
        """
    )
    assert ended == (0, [], "")
    assert whole(stored(program.home)) == [
        "as the threads are joined",
        "first",
        "registered after it, so run before ours",
    ]
    assert whole(ship(program.home)) == [
        "as the threads are joined",
        "first",
        "registered after it, so run before ours",
        "registered before the first step, so run last",
    ]


def test_the_first_step_of_a_program_may_come_in_an_exit_handler(program: Program) -> None:
    assert program.run("atexit.register(record, 'only')") == (0, [], "")
    assert whole(ship(program.home)) == ["only"]


@pytest.mark.parametrize("before", ["record('first')", "record('first'); atexit.register(record, 'last')"])
def test_steps_of_finalisers_are_kept_while_the_interpreter_goes_down(program: Program, before: str) -> None:
    ended = program.run(
        f"""
        class Late:
            def __init__(self, name):
                self.name = name
            def __del__(self, tool=sw.tool):  # by then the program's own globals may be gone
                with tool(self.name, input={{"name": self.name}}) as step:
                    step.output = [self.name, self.name]
        {before}
        late = Late("a global")
        cycle = Late("a cycle")
        cycle.itself = cycle
        """
    )
    assert ended == (0, [], "")
    expected = ["a cycle", "a global", "first"] + (["last"] if "last" in before else [])
    assert whole(ship(program.home)) == expected


@pytest.mark.parametrize("lock", ["_config._state.lock", "_config._state.late.journal._lock"])
def test_a_lock_that_a_thread_took_to_its_grave_holds_up_no_finaliser(program: Program, lock: str) -> None:
    ended = program.run(
        f"""
        import types
        from stepwell import _config
        closed, held = threading.Event(), threading.Event()
        def hold():
            closed.wait()
            if {"late" in lock}:
                with tool("late", input={{"name": "late"}}) as step:
                    step.output = ["late", "late"]
            with {lock}:
                held.set()
                threading.Event().wait()
        # With globals of its own: the program's, and their finalisers, would stay alive with a thread that never ends.
        own = dict(closed=closed, held=held, threading=threading, tool=sw.tool, _config=_config)
        hold = types.FunctionType(hold.__code__, own)
        class Late:
            def __del__(self, tool=sw.tool, write=os.write):
                with tool("lost"):
                    pass
                write(1, b"went_on")
        def last():
            closed.set()
            held.wait()
        atexit.register(last)
        record("first")
        threading.Thread(target=hold, daemon=True).start()
        late = Late()
        """
    )
    assert ended == (0, ["went_on"], "")
    assert whole(ship(program.home)) == (["first", "late"] if "late" in lock else ["first"])


def test_an_exporter_that_hangs_while_it_is_opened_does_not_keep_the_program_from_ending(program: Program) -> None:
    ended = program.run(
        """
        from stepwell import _config
        sw.configure(exit_timeout=0.2)
        record("a")
        held = threading.Event()
        def hold():
            with _config._state.lock:  # as `configure` does while it opens exporters
                held.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        held.wait()
        """
    )
    assert ended == (0, [], "")
    assert whole(ship(program.home)) == ["a"]


# -- the process becomes another, or two


def test_a_program_that_another_takes_the_place_of_leaves_its_steps_to_it(program: Program, tmp_path: Path) -> None:
    second = tmp_path / "second.py"
    second.write_text(
        PRELUDE
        + textwrap.dedent(
            """
            record("second")
            deadline = time.monotonic() + 30
            while len(os.listdir(home + "/journal")) > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
            """
        )
    )
    ended = program.run(
        """
        record("first")
        os.execv(sys.executable, [sys.executable, "-W", "error", os.path.dirname(home) + "/second.py", home])
        """
    )
    assert ended == (0, [], "")
    assert left(program.home) == []
    assert whole(stored(program.home)) == ["first", "second"]


ORDERS = {"the parent ends first": ("", "wait_for_parent()"), "the child ends first": ("wait(pid)", "")}


@pytest.mark.parametrize("child_end", ["os._exit(0)", "sys.exit(0)", "os.kill(os.getpid(), signal.SIGKILL)"])
@pytest.mark.parametrize(("parent_waits", "child_waits"), ORDERS.values(), ids=list(ORDERS))
def test_parent_and_child_record_each_their_own(
    program: Program, parent_waits: str, child_waits: str, child_end: str
) -> None:
    ended = program.run(
        f"""
        read, write = os.pipe()
        def wait_for_parent():
            os.close(write)
            os.read(read, 1)
        record("before")
        def work():
            record("child 1")
            {child_waits}
            record("child 2")
            {child_end}
        pid = fork(work)
        record("parent")
        {parent_waits}
        """
    )
    assert ended == (0, [], "")
    assert whole(ship(program.home)) == ["before", "child 1", "child 2", "parent"]


def test_a_child_that_records_nothing_takes_nothing_away(program: Program) -> None:
    ended = program.run(
        """
        record("a")
        for end in (lambda: None, sys.exit, os.abort):
            wait(fork(end))
        record("b")
        """
    )
    assert ended == (0, [], "")
    assert left(program.home) == []
    assert whole(stored(program.home)) == ["a", "b"]


def test_grandchildren_record_too(program: Program) -> None:
    ended = program.run(
        """
        def child():
            record("child")
            tell(wait(fork(lambda: record("grandchild"))))
            record("child again")
        record("parent")
        tell(wait(fork(child)))
        """
    )
    assert ended == (0, ["0", "0"], "")
    assert whole(ship(program.home)) == ["child", "child again", "grandchild", "parent"]


@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)", "raise ValueError", "os.abort()"])
@pytest.mark.parametrize("age", ["young", "old"])
def test_a_step_that_is_open_at_a_fork_is_the_parents_to_end(program: Program, end: str, age: str) -> None:
    ended = program.run(
        f"""
        from stepwell._recorder import RECORDER
        manual = sw.start("tool", "manual")
        with sw.run("outer", input=1) as outer, sw.tool("around") as around:
            while {age == "old"} and RECORDER.open_steps:  # until they were announced
                time.sleep(0.01)
            pid = os.fork()
            if pid == 0:
                signal.alarm(30)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                outer.output = "the child's"
                record("child")
                if {end == "sys.exit(0)"}:
                    manual.end()
                {end}
            tell(os.waitpid(pid, 0)[0] == pid)
            record("parent")
            outer.output = "the parent's"
        manual.end()
        """
    )
    assert ended == (0, ["True"], "")
    steps = {step["name"]: step for step in ship(program.home)}
    assert sorted(steps) == ["around", "child", "manual", "outer", "parent"]
    assert {(step["status"], step.get("error")) for step in steps.values()} == {("success", None)}
    assert steps["outer"]["output"] == "the parent's"
    for inner in ("child", "parent"):
        assert steps[inner]["parent_id"] == steps["around"]["id"]
        assert steps[inner]["root_run_id"] == steps["outer"]["id"]


EARLY_FORKS = """
    sw.configure(export=EXPORT)
    stop = threading.Event()
    def burn():
        while not stop.is_set():
            pass
    threading.Thread(target=burn).start()
    record("parent")
    def child(number):
        record(f"child {number}")
        tell(sw.flush(20))
    pids = []
    for number in range(12):
        pids.append(fork(lambda: child(number)))
        time.sleep(0.002)
    stop.set()
    for pid in pids:
        wait(pid)
"""
FORKED = sorted(["parent", *(f"child {number}" for number in range(12))])


def test_forks_just_after_the_first_step_leave_every_child_a_store_to_deliver_to(program: Program) -> None:
    """As a server's that loads the application before it forks: the store may be just being opened."""
    assert program.run(EARLY_FORKS.replace("EXPORT", "'sqlite:'")) == (0, ["True"] * 12, "")
    assert whole(ship(program.home)) == FORKED


def test_forks_just_after_the_first_step_leave_every_child_a_server_to_deliver_to(program: Program) -> None:
    """What the exporter imports may be under way."""
    with UnrulyServer() as server:
        assert program.run(EARLY_FORKS.replace("EXPORT", repr(server.url))) == (0, ["True"] * 12, "")
        assert whole([json.loads(line) for line in server.arrived]) == FORKED


def test_forks_in_one_thread_while_others_record_and_ship_lose_nothing(program: Program) -> None:
    ended = program.run(
        """
        stop = threading.Event()
        counts = [0, 0, 0]
        def busy(thread):
            while not stop.is_set():
                record(f"parent {thread}.{counts[thread]}")
                counts[thread] += 1
                time.sleep(0.0005)  # so that the parent's records don't take all the time of the test
        threads = [threading.Thread(target=busy, args=(number,)) for number in range(3)]
        def forks():
            for number in range(50):
                end = (lambda: None, os.abort, lambda: sw.flush(20) or tell("late"))[number % 3]
                tell(wait(fork(lambda: (record(f"child {number}"), end()))))
        for thread in threads:
            thread.start()
        forking = threading.Thread(target=forks)
        forking.start()
        forking.join()
        stop.set()
        for thread in threads:
            thread.join()
        tell(" ".join(map(str, counts)))
        """
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.told[:50] == (["0", "-6", "0"] * 17)[:50]
    expected = [f"parent {thread}.{n}" for thread, count in enumerate(ended.told[50:]) for n in range(int(count))]
    expected += [f"child {number}" for number in range(50)]
    assert whole(ship(program.home)) == sorted(expected)


def test_a_child_whose_only_thread_of_the_program_ends_does_not_live_on_for_ours(program: Program) -> None:
    ended = program.run(
        """
        def forks():
            pid = os.fork()
            if pid == 0:
                record("child")
                return
            tell(wait(pid))
        record("parent")
        forking = threading.Thread(target=forks)
        forking.start()
        forking.join(30)
        """
    )
    assert ended == (0, ["0"], "")
    assert whole(stored(program.home)) == ["child", "parent"]
    assert left(program.home) == []


def test_threads_that_fork_at_once_leave_the_exporter_working(program: Program) -> None:
    ended = program.run(
        """
        record("first")
        sw.flush()
        def forks(thread):
            for number in range(20):
                name = f"{thread}.{number}"
                record(f"before {name}")
                tell(wait(fork(lambda: record(f"child {name}"))))
        threads = [threading.Thread(target=forks, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        record("last")
        tell(sw.flush(20))
        """
    )
    assert ended == (0, ["0"] * 80 + ["True"], "")
    names = [f"{thread}.{number}" for thread in range(4) for number in range(20)]
    expected = ["first", "last", *(f"{kind} {name}" for name in names for kind in ("before", "child"))]
    assert whole(ship(program.home)) == sorted(expected)


def test_a_fork_in_the_middle_of_an_export_leaves_the_batch_to_the_parent(program: Program) -> None:
    ended = program.run(
        """
        from pathlib import Path
        from stepwell.exporters.jsonl import JsonLinesExporter
        inside, forked = threading.Event(), threading.Event()
        class Slow(JsonLinesExporter):
            def export(self, batch):
                if os.getpid() == parent:
                    inside.set()
                    forked.wait()
                super().export(batch)
        parent = os.getpid()
        sw.configure(export=Slow(Path(home, "steps.jsonl")))
        record("parent")
        inside.wait()
        def child():
            record("child")
            tell(sw.flush(20))
        pid = fork(child)
        tell(wait(pid))
        forked.set()
        """
    )
    assert ended == (0, ["True", "0"], "")
    lines = (program.home / "steps.jsonl").read_text().splitlines()
    assert whole([json.loads(line) for line in lines]) == ["child", "parent"]


def test_subprocesses_started_under_load_disturb_nothing(program: Program) -> None:
    ended = program.run(
        """
        import subprocess
        stop = threading.Event()
        counts = [0, 0]
        def busy(thread):
            while not stop.is_set():
                record(f"{thread}.{counts[thread]}")
                counts[thread] += 1
                time.sleep(0.0005)  # so that the parent's records don't take all the time of the test
        threads = [threading.Thread(target=busy, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for number in range(20):
            before = None if number % 2 else lambda: record("in between")
            tell(subprocess.run(["true"], preexec_fn=before, timeout=30).returncode)
            tell(wait(os.posix_spawn("/bin/true", ["true"], {})))
        stop.set()
        for thread in threads:
            thread.join()
        tell(" ".join(map(str, counts)))
        """
    )
    assert (ended.status, ended.err) == (0, "")
    assert ended.told[:40] == ["0"] * 40
    expected = [f"{thread}.{n}" for thread, count in enumerate(ended.told[40:]) for n in range(int(count))]
    assert whole(ship(program.home)) == sorted(expected + ["in between"] * 10)


def test_a_child_forked_by_an_exit_handler_has_a_journal_of_its_own(program: Program) -> None:
    ended = program.run(
        """
        def last():
            record("late 1")
            pid = fork(lambda: [record(f"child {number}") for number in range(3)])
            record("late 2")
            tell(wait(pid))
            record("late 3")
        atexit.register(last)
        record("first")
        """
    )
    assert ended == (0, ["0"], "")
    assert whole(ship(program.home)) == ["child 0", "child 1", "child 2", "first", "late 1", "late 2", "late 3"]


# -- what the process may lack


@pytest.mark.parametrize("when", ["before the first step", "after it"])
def test_a_daemon_without_standard_streams_keeps_them_out_of_the_journal(program: Program, when: str) -> None:
    """What is printed by C code or through a stale stream goes to descriptors 0 to 2, whatever they are by then."""
    lives, daemon = os.pipe()
    ended = program.run(
        f"""
        {"" if when == "before the first step" else "record('early')"}
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(0, 3)
        for number in range(3):
            record(f"daemon {{number}}")
            for fd in range(3):
                try:
                    os.write(fd, b"Fatal Python error: written by whoever still thinks this is stderr" * 10)
                except OSError:
                    pass
        sw.flush(20)
        record("last")
        for fd in range(3):
            try:
                os.write(fd, b"x" * 100)
            except OSError:
                pass
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        pass_fds=[daemon],
    )
    assert ended == (0, [], "")
    os.close(daemon)
    assert os.read(lives, 1) == b""  # its copy was the last
    os.close(lives)
    expected = ["daemon 0", "daemon 1", "daemon 2", *(["early"] if when == "after it" else []), "last"]
    assert whole(ship(program.home)) == expected


def test_without_a_descriptor_to_be_had_steps_are_kept_in_memory(program: Program) -> None:
    ended = program.run(
        """
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            while True:
                held.append(os.dup(1))
        except OSError:
            pass
        for number in range(100):
            record(f"starved {number}")
        tell(sw.flush(0.2))
        for fd in held:
            os.close(fd)
        record("fed")
        tell(sw.flush(20))
        """
    )
    assert ended == (0, ["False", "True"], "")
    assert whole(stored(program.home)) == sorted(["fed", *(f"starved {number}" for number in range(100))])
    assert left(program.home) == []


def test_a_journal_that_rolls_without_a_descriptor_to_be_had_goes_on_in_memory(program: Program) -> None:
    ended = program.run(
        """
        sw.configure(max_journal_bytes=1 << 26)
        record("first")
        tell(sw.flush(20))
        held = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        try:
            while True:
                held.append(os.dup(1))
        except OSError:
            pass
        for number in range(200):
            with sw.tool(f"large {number}") as step:
                step.output = "x" * 100_000
        for fd in held:
            os.close(fd)
        tell(sw.flush(20))
        """
    )
    assert ended == (0, ["True", "True"], "")
    steps = stored(program.home)
    assert sorted(step["name"] for step in steps) == sorted(["first", *(f"large {number}" for number in range(200))])
    assert left(program.home) == []


def test_where_no_memory_is_to_be_had_nothing_of_ours_is_raised_and_all_is_delivered_later(program: Program) -> None:
    """No room for anything large, that is: with nothing at all, the JSON encoder itself ends the process."""
    ended = program.run(
        """
        record("first")
        tell(sw.flush(20))
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20), resource.RLIM_INFINITY))
        held = []
        try:
            while True:
                held.append(bytearray(1 << 20))
        except MemoryError:
            del held[-4:]  # less, and the JSON encoder may end the process
        for number in range(300):
            record(f"starved {number}")
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        tell(sw.flush(20))
        """
    )
    assert ended == (0, ["True", "True"], "")
    assert whole(stored(program.home)) == sorted(["first", *(f"starved {number}" for number in range(300))])
    assert left(program.home) == []
