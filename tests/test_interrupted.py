"""A step that was open for over a second when its process died shows as interrupted, with its input."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stepwell as sw
from stepwell import _announcing, _pipeline
from stepwell._announcing import Announcer
from stepwell._cli_app import app
from stepwell._recorder import RECORDER
from stepwell._recovery import peek
from stepwell._session import note_open, read_open
from stepwell.exporters.memory import MemoryExporter
from stepwell.model import StepRecord, decode_payload
from stepwell.store import StepFilter, open_store

SETUP = """
import os, pathlib, sys, time
import stepwell as sw

def written(what):
    "Wait until a heartbeat has written the list of open steps, and this is in it, or in the journal."
    deadline = time.monotonic() + 20
    journal = pathlib.Path(sys.argv[1], "journal")
    while time.monotonic() < deadline:
        if any(what in path.read_text() for path in journal.glob("*/open")):
            return
        time.sleep(0.01)
    sys.exit("nothing was written")

def ended(what):
    deadline = time.monotonic() + 20
    journal = pathlib.Path(sys.argv[1], "journal")
    while any(what in path.read_text() for path in journal.glob("*/open")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""
AN_AGENT = """
agent = sw.run("agent", input={"question": "why?"}).__enter__()
call = sw.llm("ask", model="gpt-4o", messages=[{"role": "user", "content": "why?"}]).__enter__()
with sw.tool("quick"):
    pass
written(call.id)
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(home: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SETUP + code, str(home)],
        env={**os.environ, "STEPWELL_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def ship(home: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "stepwell", "ship", "--home", str(home)], timeout=60)
    assert done.returncode == 0


def steps(home: Path) -> dict[str, StepRecord]:
    store = open_store(f"sqlite:{home / 'steps.db'}", read_only=True)
    found = {row.name: store.step(row.id) for row in store.steps(StepFilter(), limit=50).items}
    store.close()
    return found  # type: ignore[return-value]


def statuses(home: Path) -> dict[str, str | None]:
    return {name: step.status for name, step in steps(home).items()}


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("os.kill(os.getpid(), 9)", -signal.SIGKILL),
        ("os.kill(os.getpid(), 15)", -signal.SIGTERM),
        ("os._exit(0)", 0),
        ("sys.exit(0)", 0),
        ("raise ValueError", 1),
        ("os.execv(sys.executable, [sys.executable, '-c', 'pass'])", 0),
    ],
    ids=["SIGKILL", "SIGTERM", "os._exit", "sys.exit", "an exception", "os.execv"],
)
def test_a_long_step_is_interrupted_by_the_end_of_its_process(home: Path, end: str, code: int) -> None:
    done = run(home, AN_AGENT + end)
    assert done.returncode == code, done.stderr
    ship(home)
    found = steps(home)
    assert {name: step.status for name, step in found.items()} == {
        "agent": "interrupted",
        "ask": "interrupted",
        "quick": "success",
    }
    assert decode_payload(found["agent"].input) == {"question": "why?"}
    assert found["ask"].type == "llm"
    assert b'"content":"why?"' in bytes(found["ask"].generation)
    assert found["agent"].end_ns is None


def test_a_step_that_ended_in_time_is_not_interrupted(home: Path) -> None:
    code = AN_AGENT + "call.leave(None); ended(call.id); agent.leave(None); os.kill(os.getpid(), 9)"
    assert run(home, code).returncode == -signal.SIGKILL
    ship(home)
    assert statuses(home) == {"agent": "success", "ask": "success", "quick": "success"}


def test_a_step_open_for_a_moment_is_not_written_at_all(home: Path) -> None:
    code = "sw.run('short').__enter__()\nwith sw.tool('quick'): pass\nos.kill(os.getpid(), 9)"
    assert run(home, code).returncode == -signal.SIGKILL
    ship(home)
    assert statuses(home) == {"quick": "success"}


def test_reading_shows_what_a_dead_process_left_open_before_anything_is_shipped(home: Path) -> None:
    run(home, AN_AGENT + "os.kill(os.getpid(), 9)")
    told = CliRunner().invoke(app, ["ls", "runs", "--status", "interrupted", "--json", "--home", str(home)])
    assert told.exit_code == 0, told.output
    assert '"name":"agent"' in told.stdout
    shown = CliRunner().invoke(app, ["show", steps(home)["agent"].id, "--home", str(home)])
    assert shown.stdout.count("interrupted") == 2


def test_of_a_process_that_lives_nothing_is_interrupted(home: Path) -> None:
    read, write = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", SETUP + AN_AGENT + "print('open', flush=True); sys.stdin.read()", str(home)],
        env={**os.environ, "STEPWELL_HOME": str(home)},
        stdin=read,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        told = CliRunner().invoke(app, ["ls", "runs", "--json", "--home", str(home)])
        assert '"status":"pending"' in told.stdout
    finally:
        child.kill()
        child.wait()
        child.stdout.close()  # type: ignore[union-attr]
        os.close(read)
        os.close(write)
    ship(home)
    assert statuses(home)["agent"] == "interrupted"


def test_a_step_that_a_daemon_thread_ends_after_all_is_what_it_became(home: Path) -> None:
    code = """
import atexit, threading
go, gone = threading.Event(), threading.Event()
def work():
    with sw.run("daemon") as step:
        written(step.id)
        opened.set()
        go.wait()
    gone.set()
opened = threading.Event()
atexit.register(lambda: (go.set(), gone.wait(10)))  # before the first step, so that it runs after our own handler
threading.Thread(target=work, daemon=True).start()
opened.wait(20)
"""
    assert run(home, code).returncode == 0
    ship(home)
    assert statuses(home) == {"daemon": "success"}


def test_shutdown_says_what_it_interrupts(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_announcing, "ANNOUNCE_AFTER_NS", 0)
    exporter = MemoryExporter()
    sw.configure(export=exporter, home=home)
    step = sw.start("run", "open")
    with sw.tool("quick"):
        pass
    assert sw.shutdown()
    step.end()
    told = [(record.name, record.status) for record in exporter.records if isinstance(record, StepRecord)]
    assert sorted(told, key=str) == [("open", "pending"), ("quick", "success"), (None, "interrupted")]


def test_the_list_of_open_steps_follows_them_to_the_next_configuration(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_announcing, "ANNOUNCE_AFTER_NS", 0)
    monkeypatch.setattr(_pipeline, "HEARTBEAT_S", 0.01)
    sw.configure(export=MemoryExporter(), home=home)
    step = sw.start("run", "long")
    for _ in range(2):
        with sw.tool("quick"):
            pass
        wait_for_list(home, [step.id])
        sw.configure(export=MemoryExporter(), home=home)
    step.end()


def wait_for_list(home: Path, ids: list[str]) -> None:
    deadline = time.monotonic() + 20
    while [read_open(path.parent) for path in home.glob("journal/*/open")] != [ids]:
        assert time.monotonic() < deadline, list(home.glob("journal/*/*"))
        time.sleep(0.01)


def test_ids_that_are_none_are_not_read(tmp_path: Path) -> None:
    note_open(tmp_path, ["0198c0de-0000-7000-8000-000000000001", '","type":"run', "", "é"])
    assert read_open(tmp_path) == ["0198c0de-0000-7000-8000-000000000001"]
    assert read_open(tmp_path / "nowhere") == []


def test_an_end_that_is_already_in_the_journal_wins_over_a_list_that_is_older(home: Path) -> None:
    code = AN_AGENT + (
        "for path in pathlib.Path(sys.argv[1], 'journal').glob('*/open'): kept, ids = path, path.read_text()\n"
        "call.leave(None); ended(call.id)\n"
        "kept.write_text(ids); os.kill(os.getpid(), 9)"
    )
    assert run(home, code).returncode == -signal.SIGKILL
    frames = b"\n".join(peek(home / "journal", "another exporter"))
    assert frames.count(b'"status":"interrupted"') == 1
    ship(home)
    assert statuses(home) == {"agent": "interrupted", "ask": "success", "quick": "success"}


def test_more_leaked_steps_than_are_listed_cost_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_announcing, "ANNOUNCE_AFTER_NS", 0)
    monkeypatch.setattr(_announcing, "MAX_ANNOUNCED", 3)
    sw.configure(export=MemoryExporter(), home=None)
    for number in range(5):
        sw.start("run", f"leaked {number}")
    announcer = Announcer(RECORDER)
    announcer.announce(tmp_path)
    assert len(read_open(tmp_path)) == 3
    assert RECORDER.open_steps == {}
