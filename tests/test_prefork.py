"""Servers and pools that load the program once and fork workers: each step arrives once, however the workers end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import stepwell as sw
from stepwell import cli
from stepwell._cli_journal import survey
from stepwell.store import open_store

SOURCE = str(Path(sw.__file__).parents[1])
WARNINGS = ["-W", "error", "-W", "ignore::DeprecationWarning"]

APP = """
import os, signal
import stepwell as sw

with sw.run("preload") as step:
    step.output = os.getpid()

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    with sw.run(name) as step:
        step.output = os.getpid()
    if name.startswith("flush"):
        body = str(sw.flush(timeout=20))
    else:
        body = str(os.getpid())
    if name.startswith("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ship(home: Path) -> dict[str, dict[str, Any]]:
    """Deliver what dead processes left; return the steps in the store by name, of which none is there twice."""
    wait_until(lambda: not any(session.alive for session in survey(home / "journal")))
    assert cli.run(["ship", "--home", str(home)]) == 0
    assert not any(any(session.waiting.values()) for session in survey(home / "journal"))
    store = open_store(str(home / "steps.db"), read_only=True)
    try:
        steps = [json.loads(line) for line in store.records()]
    finally:
        store.close()
    named = {step["name"]: step for step in steps}
    assert len(named) == len(steps)
    return named


# -- gunicorn


class Server:
    """gunicorn with `--preload`, two workers and a Unix socket in a folder."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.home = folder / "home"
        self.process = process
        self._socket = folder / "socket"

    def get(self, name: str) -> str:
        """Ask until a worker answers: one that is being replaced takes a connection and closes it."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.ask(name)
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.01)

    def ask(self, name: str) -> str:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        try:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(30)
            connection.sock.connect(str(self._socket))
            connection.request("GET", f"/{name}")
            answer = connection.getresponse()
            assert answer.status == 200
            return answer.read().decode()
        finally:
            connection.close()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def gunicorn(folder: Path, *options: str) -> Iterator[Server]:
    (folder / "app.py").write_text(APP)
    command = [sys.executable, *WARNINGS, "-m", "gunicorn", "app:app", "--preload", "--workers", "2", *options]
    command += ["--bind", f"unix:{folder / 'socket'}", "--graceful-timeout", "20", "--no-control-socket"]
    environment = {**os.environ, "PYTHONPATH": SOURCE, "STEPWELL_HOME": str(folder / "home")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
    try:
        yield Server(folder, process)
    finally:
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        process.kill()
        process.wait()


def test_each_request_of_a_preloaded_server_is_recorded_once_by_its_worker(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        pids = {f"request {number}": server.get(f"request%20{number}") for number in range(20)}
        assert server.stop() == 0
    store = open_store(str(server.home / "steps.db"), read_only=True)
    try:
        delivered = sorted(json.loads(line)["name"] for line in store.records())
    finally:
        store.close()
    assert delivered == sorted([*pids, "preload"])  # by the processes themselves, as they ended
    steps = ship(server.home)
    assert {name: str(step["output"]) for name, step in steps.items() if name != "preload"} == pids
    assert steps["preload"]["output"] == server.process.pid
    assert {step["status"] for step in steps.values()} == {"success"}
    assert len({step["trace_id"] for step in steps.values()}) == 21


def test_what_a_worker_recorded_that_is_killed_is_not_lost(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        assert server.get("before") != server.process.pid
        for number in range(3):
            with suppress(OSError, http.client.HTTPException):
                server.ask(f"kill%20{number}")
        server.get("after")
        assert server.stop() == 0
    steps = ship(server.home)
    asked = {"before", "kill 0", "kill 1", "kill 2", "after"}
    assert {*steps} == {*asked, "preload"}


def test_workers_that_are_replaced_after_each_request_deliver_all(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--max-requests", "1") as server:
        answers = {f"request {number}": server.get(f"request%20{number}") for number in range(6)}
        assert server.stop() == 0
    assert len({*answers.values()}) > 2
    assert {*ship(server.home)} == {*answers, "preload"}


def test_a_master_that_is_killed_leaves_its_steps_to_the_next(tmp_path: Path) -> None:
    with gunicorn(tmp_path, "--timeout", "2") as server:
        workers = {int(server.get(f"request%20{number}")) for number in range(4)}
        server.process.kill()
        assert server.process.wait(30) == -signal.SIGKILL
    for worker in workers:  # they notice within a second that their master has gone
        wait_until(lambda pid=worker: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]
    assert {*ship(server.home)} == {"preload", *(f"request {number}" for number in range(4))}


def test_a_worker_delivers_while_it_serves(tmp_path: Path) -> None:
    with gunicorn(tmp_path) as server:
        assert [server.get(f"flush%20{number}") for number in range(4)] == ["True"] * 4
        store = open_store(str(server.home / "steps.db"), read_only=True)
        try:
            assert {json.loads(line)["name"] for line in store.records()} >= {f"flush {number}" for number in range(4)}
        finally:
            store.close()


# -- a pool of processes, as celery's

POOL = """
import os, signal, sys, threading, time
import stepwell as sw

end = sys.argv[1]
with sw.run("import"):
    pass

def work(jobs, results):
    def stop(number, frame):  # billiard ends its processes so
        os._exit(0)
    if end == "os._exit":
        signal.signal(signal.SIGTERM, stop)
    os.write(results, b"here")  # a worker that comes when all is done could not be told how to end
    while job := os.read(jobs, 4):
        with sw.tool(f"job {int(job)}") as step:
            step.output = int(job)
        os.write(results, job)
    os._exit(0)

stop = threading.Event()
count = 0
def busy():
    global count
    while not stop.is_set():
        with sw.tool(f"master {count}"):
            pass
        count += 1
        time.sleep(0.001)
thread = threading.Thread(target=busy)
thread.start()
jobs, feed = os.pipe()
done, results = os.pipe()
workers = []
sent = 0
for round_ in range(4):
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os.close(feed)
            work(jobs, results)
        workers.append(pid)
    for _ in workers:
        os.read(done, 4)
    for _ in range(30):
        os.write(feed, b"%4d" % sent)
        sent += 1
    for _ in range(30):
        os.read(done, 4)
    for pid in workers:
        os.kill(pid, signal.SIGKILL if end == "SIGKILL" else signal.SIGTERM)
    for pid in workers:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code == {"SIGTERM": -15, "SIGKILL": -9, "os._exit": 0}[end], code
    workers.clear()
stop.set()
thread.join()
print(sent, count)
"""


@pytest.mark.parametrize("end", ["SIGTERM", "os._exit", "SIGKILL"])
def test_each_job_of_a_pool_is_recorded_once_however_its_workers_end(tmp_path: Path, end: str) -> None:
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": SOURCE, "STEPWELL_HOME": str(tmp_path / "home")}
    command = [sys.executable, *WARNINGS, str(script), end]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    sent, count = map(int, done.stdout.split())
    steps = ship(tmp_path / "home")
    assert {name for name in steps if name.startswith("job")} == {f"job {number}" for number in range(sent)}
    assert {name for name in steps if not name.startswith("job")} == {
        "import",
        *(f"master {number}" for number in range(count)),
    }
    assert {step["status"] for step in steps.values()} == {"success"}


def test_flush_in_a_child_of_a_busy_parent_returns_at_once(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, threading, time
            import stepwell as sw
            class Dead:
                key = "dead"
                def export(self, batch):
                    raise ConnectionRefusedError
            home = os.environ["STEPWELL_HOME"]
            sw.configure(export=["sqlite:", Dead()], exit_timeout=0.2)
            stop = threading.Event()
            def busy():
                while not stop.is_set():
                    with sw.tool("parent"):
                        pass
                    time.sleep(0.0005)
            threads = [threading.Thread(target=busy) for _ in range(2)]
            for thread in threads:
                thread.start()
            for number in range(10):
                pid = os.fork()
                if pid == 0:
                    signal.alarm(30)
                    began = time.monotonic()
                    told = [sw.flush(timeout=20)]  # nothing of the parent's is waited for
                    sw.configure(export="sqlite:")
                    with sw.tool(f"child {number}"):
                        pass
                    told.append(sw.flush(timeout=20))
                    os._exit(told != [True, True] or time.monotonic() - began > 15)
                print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            stop.set()
            for thread in threads:
                thread.join()
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE, "STEPWELL_HOME": str(tmp_path / "home")}
    command = [sys.executable, *WARNINGS, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0"] * 10


# -- one process

ASGI = """
import os, socket, sys
import fastapi, uvicorn
import stepwell as sw

app = fastapi.FastAPI()

@app.get("/{name}")
async def handle(name: str) -> str:
    with sw.run(name) as step:
        step.output = name
    return name

class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        print(self.servers[0].sockets[0].getsockname()[1], flush=True)

Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical")).run()
"""


def test_what_requests_recorded_outlives_uvicorn_which_ends_by_the_signal_it_got(tmp_path: Path) -> None:
    """Having ended gracefully it sends itself the signal again, so that no exit handler runs."""
    script = tmp_path / "server.py"
    script.write_text(ASGI)
    environment = {**os.environ, "PYTHONPATH": SOURCE, "STEPWELL_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-W", "error", str(script)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=30)
        for name in ("first", "second"):
            connection.request("GET", f"/{name}")
            assert connection.getresponse().read() == f'"{name}"'.encode()
        connection.close()
        process.terminate()
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, out, err) == (-signal.SIGTERM, b"", b"")
    steps = ship(tmp_path / "home")
    assert {name: (step["output"], step["status"]) for name, step in steps.items()} == {
        "first": ("first", "success"),
        "second": ("second", "success"),
    }
