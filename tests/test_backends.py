"""The matrix: no backend, however bad, harms a program or loses a step.

Each row is a real program, in a process of its own, that records thirty steps with one more in flight, and ends: by its
deadline, with a ledger that balances. Once the backend is well again a process delivers every step exactly once.
"""

from __future__ import annotations

import json
import os
import ssl
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import trustme
import unruly
from unruly import UnrulyServer, status

import stepwell as sw
from stepwell import _config
from stepwell.exporters.memory import MemoryExporter
from stepwell.store import open_store

STEPS = [f"step {number}" for number in range(30)]
PROGRAM = """
import json, sys, time
import stepwell as sw

sw.configure(export=sys.argv[1], home=sys.argv[2], exit_timeout=0.4)
with sw.run("step 0"):
    for number in range(1, 30):
        with sw.tool(f"step {number}", input={"number": number}) as step:
            step.output = "x" * 100
in_flight = sw.start("run", "in flight")

def tell(**more):
    ledgers = sw.stats().exporters
    told = {"recorded": sw.stats().recorded, "balanced": all(each.balanced for each in ledgers.values()),
            "waiting": sum(each.waiting for each in ledgers.values()), "faults": sw.stats().faults, **more}
    print(json.dumps({**told, "at": time.monotonic()}), flush=True)

def when_told():
    sys.stdin.readline()

sw.flush(0.1)
"""
END = "tell()\n"


class Ended(NamedTuple):
    """What a program told, how long its exit took, and its standard error."""

    told: list[dict[str, object]]
    exit_s: float
    err: str


class Program:
    """A program under way."""

    def __init__(self, code: str, url: str, home: Path, **environment: str) -> None:
        source = str(Path(sw.__file__).parents[1])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM + code, url, str(home)],
            env={**_environment(), "PYTHONPATH": source, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.told: list[dict[str, object]] = []

    def next(self) -> dict[str, object]:
        """Return what it tells next."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told.append(json.loads(line))
        return self.told[-1]

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> Ended:
        out, err = self.process.communicate(timeout=60)
        ended_at = time.monotonic()
        assert self.process.returncode == 0, err
        self.told += [json.loads(line) for line in out.splitlines()]
        said = self.told[-1]["at"]
        assert isinstance(said, float)
        return Ended(self.told, ended_at - said, err)


def _environment() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("STEPWELL_", "OTEL_", "SSL_CERT")) and not name.lower().endswith("_proxy")
    }


@pytest.fixture(autouse=True)
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in os.environ.keys() - _environment().keys():
        monkeypatch.delenv(name)
    yield
    sw.shutdown(0.2)
    for thread in threading.enumerate():
        if thread.name.startswith("stepwell"):
            thread.join(30)


@pytest.fixture
def server() -> Iterator[UnrulyServer]:
    with UnrulyServer() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def run(url: str, home: Path, code: str = END, **environment: str) -> Ended:
    """Run a program that a bad backend must not harm: it says nothing, its ledger balances, and it ends in time."""
    return checked(Program(code, url, home, **environment).end())


def checked(ended: Ended) -> Ended:
    """Return what a program left that no backend has harmed."""
    assert ended.err == ""
    assert [told["balanced"] for told in ended.told] == [True] * len(ended.told)
    assert ended.exit_s < 0.4 + 4, "the deadline, and what an interpreter on a busy machine may take to end"
    return ended


def deliver(url: str, home: Path) -> None:
    """Do what the next process does with what the program left."""
    sw.configure(export=url, home=home)
    with sw.run("the next process"):
        pass
    pipeline = _config._state.pipeline
    assert pipeline is not None
    pipeline.adopt_orphans()
    assert pipeline.flush(time.monotonic() + 30, adopted=True)
    assert all(ledger.balanced and not ledger.waiting for ledger in sw.stats().exporters.values())
    assert sw.shutdown(20)
    assert list((home / "journal").iterdir()) == []


def ship(home: Path, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stepwell", "ship", "--home", str(home), *options],
        env={**_environment(), "PYTHONPATH": str(Path(sw.__file__).parents[1])},
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def arrived_once(server: UnrulyServer) -> list[str]:
    """Return the names of the program's steps, having seen that none arrived in two versions."""
    assert [
        name for name, versions in server.records.items() if len({v for v in versions if b"pending" not in v}) > 1
    ] == []
    return [name for name in server.names if name not in ("the next process", "in flight")]


# -- servers


@contextmanager
def closed_port() -> Iterator[UnrulyServer]:
    server = UnrulyServer()
    server.close()
    yield server
    server.close()


BAD: dict[str, unruly.Behaviour] = {
    "never answers": unruly.never,
    "takes no bytes": unruly.deaf,
    "drips a header": unruly.drip,
    "drips a body": unruly.drip_body,
    "sends without end": unruly.endless,
    "503": status(503),
    "429 with a long pause": status(429, Retry_After="3600"),
    "401": status(401),
    "404": status(404),
    "redirects": status(307, Location="http://example.com/v1/ingest"),
    "garbage": unruly.answer(b"\x00garbage"),
    "captive portal": unruly.captive_portal,
    "hangs up": unruly.hang_up,
    "hangs up in the middle": unruly.hang_up_in_the_middle,
    "resets in the middle": unruly.reset_in_the_middle,
    "takes and hangs up": unruly.take_and_hang_up,
}


@pytest.mark.parametrize("bad", BAD)
def test_a_server_that_misbehaves_harms_no_program_and_gets_every_step_once_it_is_well(
    server: UnrulyServer, home: Path, bad: str
) -> None:
    server.behaviour = BAD[bad]
    program = Program("tell()\nwhen_told()\ntell()\n", server.url, home)
    assert program.next()["recorded"] == 30
    server.wait_for(server.posts)
    program.go_on()
    checked(program.end())
    server.behaviour = unruly.accept
    deliver(server.url, home)
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_a_server_that_is_not_there_gets_every_step_when_it_is(home: Path) -> None:
    with closed_port() as server:
        ended = run(server.url, home)
        assert ended.told[-1]["waiting"] == 30
        server.open()
        assert ship(home) == f"{server.url}: 30 delivered, 0 left\n"
        assert sorted(arrived_once(server)) == sorted(STEPS)


def test_a_server_that_says_503_for_a_while_gets_every_step_while_the_program_runs(
    server: UnrulyServer, home: Path
) -> None:
    server.behaviour = status(503)
    program = Program("tell()\nwhen_told()\nassert sw.flush(30)\ntell()\n", server.url, home)
    assert program.next()["waiting"] == 30
    server.wait_for(lambda: len(server.posts()) >= 3)
    server.behaviour = unruly.accept
    program.go_on()
    ended = program.end()
    assert (ended.told[-1]["waiting"], ended.told[-1]["balanced"]) == (0, True)
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_a_server_that_asks_for_a_pause_gets_it(server: UnrulyServer, home: Path) -> None:
    server.script = [status(429, Retry_After="1.5")]
    program = Program("assert sw.flush(30)\ntell()\n", server.url, home)
    program.end()
    first, second, *_ = server.posts()
    assert second.at - first.at >= 1.5
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_a_step_too_large_for_a_server_costs_its_neighbours_nothing(server: UnrulyServer, home: Path) -> None:
    server.behaviour = unruly.at_most(1024 * 1024)
    code = """
for number in range(5):
    with sw.tool(f"small {number}"):
        pass
with sw.tool("large") as step:
    step.output = "x" * 3_000_000
for number in range(5, 10):
    with sw.tool(f"small {number}"):
        pass
assert sw.flush(30)
[ledger] = sw.stats().exporters.values()
tell(rejected=ledger.rejected)
"""
    ended = run(server.url, home, code)
    [(reason, count)] = dict(ended.told[-1]["rejected"]).items()  # type: ignore[call-overload]
    assert (reason[:4], reason[-28:], count) == ("413 ", "; a stub of it was delivered", 1)
    assert sorted(arrived_once(server)) == sorted([*STEPS, "large", *(f"small {number}" for number in range(10))])
    [stub] = [json.loads(line) for line in server.arrived if b'"large"' in line]
    assert stub["output"] == {"$stepwell": "too_large", "size": 3_000_002}
    assert stub["status"] == "success"
    [letter] = [json.loads(line) for path in (home / "rejected").iterdir() for line in path.read_bytes().splitlines()]
    assert letter["record"]["output"] == "x" * 3_000_000


@pytest.mark.parametrize("by_name", [True, False])
def test_a_step_that_a_server_refuses_costs_its_neighbours_nothing(
    server: UnrulyServer, home: Path, by_name: bool
) -> None:
    if by_name:
        server.refuse = b'"step 17"'
    else:
        server.behaviour = unruly.whole_batch_refused_for(b'"step 17"')
    ended = run(server.url, home, "assert sw.flush(30)\ntell()\n")
    assert ended.told[-1]["waiting"] == 0
    assert sorted(arrived_once(server)) == sorted(name for name in STEPS if name != "step 17")
    [letter] = [json.loads(line) for path in (home / "rejected").iterdir() for line in path.read_bytes().splitlines()]
    assert letter["record"]["name"] == "step 17"
    assert letter["reason"] == ("refused by name" if by_name else "400 Bad Request: bad request")


def test_a_server_that_nobody_vouches_for_gets_nothing_until_somebody_does(home: Path, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with UnrulyServer(tls=context) as server:
        assert run(server.url, home).told[-1]["waiting"] == 30
        assert server.requests == []
        authority.cert_pem.write_to_path(tmp_path / "authority.pem")
        run(server.url, home, SSL_CERT_FILE=str(tmp_path / "authority.pem"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
            deliver(server.url, home)
        assert sorted(arrived_once(server)) == sorted(STEPS * 2)


def test_a_name_that_does_not_resolve_harms_no_program(home: Path, server: UnrulyServer) -> None:
    url = "http://nowhere.invalid"
    assert run(url, home).told[-1]["waiting"] == 30
    with unruly.UnrulyProxy(server) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", proxy.url)
        deliver(url, home)
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_ship_takes_the_server_and_its_key_from_the_command_line(home: Path, server: UnrulyServer) -> None:
    server.key = "secret"
    run(server.url, home)
    assert server.records == {}
    url = server.url.replace("//", "//secret@")
    assert ship(home, "--export", url) == f"{server.url}: 30 delivered, 0 left\n"
    assert sorted(arrived_once(server)) == sorted(STEPS)


# -- disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than we have here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def names_in(url: str) -> list[str]:
    scheme, _, path = url.partition(":")
    if scheme == "jsonl":
        lines = Path(path).read_bytes().splitlines() if Path(path).exists() else []
        found = list({record["id"]: record for record in map(json.loads, lines)}.values())
    else:
        store = open_store(url, read_only=True)
        found = [json.loads(line) for line in store.records()]
        store.close()
    names = [record["name"] for record in found]
    return sorted(name for name in names if name not in ("the next process", "in flight"))


@pytest.mark.parametrize("scheme", ["sqlite", "jsonl"])
def test_a_full_disk_below_the_destination_keeps_the_steps_in_the_journal(
    small_disk: Path, home: Path, scheme: str
) -> None:
    url = f"{scheme}:{small_disk / 'steps'}"
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    assert run(url, home).told[-1]["waiting"] == 30
    filler.unlink()
    deliver(url, home)
    assert names_in(url) == sorted(STEPS)


def test_a_full_disk_below_the_journal_harms_no_program_and_loses_no_step(
    small_disk: Path, server: UnrulyServer
) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(4096))
    ended = run(server.url, small_disk / "home", "assert sw.flush(30)\ntell()\n")
    assert ended.told[-1]["waiting"] == 0
    assert ended.told[-1]["faults"]
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_files_that_may_not_grow_harm_no_program_and_lose_no_step(home: Path, server: UnrulyServer) -> None:
    """As a full disk, where none can be mounted: the limit counts for the journal and for the destination."""
    limit = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    program = limit + PROGRAM + "assert sw.flush(30)\ntell()\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, server.url, str(home)],
        # Without what measures coverage, whose file may not grow either.
        env={
            **{name: value for name, value in _environment().items() if not name.startswith("COVERAGE")},
            "PYTHONPATH": str(Path(sw.__file__).parents[1]),
        },
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["balanced"]
    assert sorted(arrived_once(server)) == sorted(STEPS)


@pytest.mark.parametrize("kind", ["a file in its place", "read-only"])
def test_a_home_that_cant_be_written_harms_no_program_and_loses_no_step(
    server: UnrulyServer, tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "read-only":
        place = request.getfixturevalue("small_disk")
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    else:
        place = tmp_path / "file"
        place.touch()
    ended = run(server.url, place / "home", "assert sw.flush(30)\ntell()\n")
    assert ended.told[-1]["waiting"] == 0
    assert sorted(arrived_once(server)) == sorted(STEPS)


def test_a_home_that_is_deleted_while_a_program_runs_loses_no_step(server: UnrulyServer, home: Path) -> None:
    server.behaviour = status(503)
    code = """
tell()
when_told()
with sw.run("after"):
    pass
assert sw.flush(30)
tell()
"""
    program = Program(code, server.url, home)
    assert program.next()["waiting"] == 30
    subprocess.run(["rm", "-r", str(home)], check=True)
    server.behaviour = unruly.accept
    program.go_on()
    ended = program.end()
    assert ended.told[-1]["balanced"]
    assert sorted(arrived_once(server)) == sorted([*STEPS, "after"])


# -- SQLite


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_store_that_another_process_has_locked_holds_up_no_program(home: Path, tmp_path: Path) -> None:
    """Whoever holds the lock for longer than SQLite waits (`busy_timeout`), and than exit does, holds it for ever."""
    path = tmp_path / "steps.db"
    url = f"sqlite:{path}"
    open_store(url).close()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            LOCK,
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        assert run(url, home).told[-1]["waiting"] == 30
    deliver(url, home)
    assert names_in(url) == sorted(STEPS)


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\x00" + bytes(5000)])
def test_a_file_that_is_no_store_harms_no_program_and_when_it_is_gone_the_steps_are_delivered(
    home: Path, content: bytes
) -> None:
    home.mkdir()
    store = home / "steps.db"
    store.write_bytes(content)
    assert run("sqlite:", home).told[-1]["waiting"] == 30
    assert store.read_bytes() == content
    store.rename(home / "broken.db")
    assert ship(home) == f"sqlite:{store}: 30 delivered, 0 left\n"
    assert names_in(f"sqlite:{store}") == sorted(STEPS)


# -- what the caller feels


def test_what_a_call_takes_does_not_depend_on_the_backend(server: UnrulyServer, home: Path) -> None:
    @sw.tool
    def work(number: int) -> str:
        return "x" * 100

    def median_of(calls: int) -> float:
        work(0)
        times: list[int] = []
        for number in range(calls):
            began = time.perf_counter_ns()
            work(number)
            times.append(time.perf_counter_ns() - began)
        return statistics.median(times)

    sw.configure(export=MemoryExporter(), home=home)
    well = median_of(2000)
    server.behaviour = unruly.never
    sw.configure(export=server.url, home=home, exit_timeout=0.2)
    work(0)
    server.wait_for(server.posts)
    bad = median_of(2000)
    assert bad < well * 5
    assert not sw.flush(0)
    server.close()
