"""`stepwell serve` as a process: how it begins, how it ends, and what is there after `kill -9`."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from served import NDJSON, AppServer, ServeProcess, lines, run, step

from stepwell._vocabulary import SDK
from stepwell.store import open_store


def test_it_says_where_it_is_and_answers_from_then_on(tmp_path: Path) -> None:
    with ServeProcess(tmp_path / "home") as server:
        assert server.said == f"stepwell serves sqlite:{tmp_path}/home/steps.db at {server.url}\n"
        assert server.client.get("/v1/health/").json() == {"status": "ok", "version": SDK.partition("/")[2]}
        assert server.client.get("/readyz").status_code == 200


def test_a_store_by_its_url_has_keys_and_blobs_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere" / "my.db"
    added = run("keys", "add", "ci", "--store", f"sqlite:{path}", "--scope", "ingest", "--project", "p")
    assert (path.parent / "keys.json").is_file()
    listed = run("keys", "ls", "--store", str(path), "--json").stdout
    assert {**json.loads(listed), "created_ns": 0} == {
        "name": "ci",
        "scopes": ["ingest"],
        "project": "p",
        "created_ns": 0,
    }
    assert added.stderr == "It is not shown again. Recorders take it as STEPWELL_API_KEY.\n"
    revoked = run("keys", "revoke", "ci", "--store", str(path))
    assert revoked.stderr.splitlines()[0] == "The key ci is revoked."
    assert run("keys", "revoke", "ci", "--store", str(path)).stderr == "stepwell: there is no key 'ci'\n"


def test_beyond_this_machine_it_needs_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    refused = run("serve", "--home", str(home), "--host", "0.0.0.0", "--port", "0")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == (
        "stepwell: --host 0.0.0.0 is for other machines too, so it needs keys: stepwell keys add NAME\n"
    )
    key = run("keys", "add", "ci", "--home", str(home)).stdout.strip()
    process = subprocess.Popen(
        [sys.executable, "-m", "stepwell", "serve", "--home", str(home), "--host", "0.0.0.0", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().strip().rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", "/v1/ingest", lines(step("a")), {**NDJSON, "Authorization": f"Bearer {key}"})
        assert json.loads(connection.getresponse().read())["accepted"] == 1
        connection.close()
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close() if process.stdout else None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "70000"], "--port '70000' is not a whole number of 0 to 65535"),
        (["--writers", "17"], "--writers '17' is not a whole number of 0 to 16"),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is no address of this machine"),
        (["--store", "sqlite::memory:"], "--store 'sqlite::memory:' is no file to serve: expected sqlite:PATH"),
        (["--store", "/proc/nowhere/steps.db"], "home folder '/proc/nowhere' can't be made"),
        (["--store", __file__], "file is not a database"),
    ],
)
def test_what_can_not_be_served_is_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    home = [] if "--store" in arguments else ["--home", str(tmp_path / "home")]
    done = run("serve", *home, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert said in line


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("serve", "--home", str(tmp_path / "home"), "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"stepwell: can't listen on 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_the_request_under_way_be_answered(how: signal.Signals, tmp_path: Path) -> None:
    body = lines(step("a"))
    with ServeProcess(tmp_path / "home") as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=30)
        connection.putrequest("POST", "/v1/ingest")
        for name, value in {**NDJSON, "Content-Length": str(len(body)), "Expect": "100-continue"}.items():
            connection.putheader(name, value)
        connection.endheaders()
        sock = connection.sock
        sock.settimeout(30)
        assert sock.recv(100).startswith(b"HTTP/1.1 100")  # it is in the route and waits for the body
        server.process.send_signal(how)
        _wait_until(lambda: _refuses(server.url))
        sock.sendall(body)
        told = b""
        while piece := sock.recv(65536):
            told += piece
        connection.close()
        assert server.process.wait(30) == 0
    assert told.endswith(b'{"accepted":1,"duplicates":0,"rejected":[]}')
    assert _held(tmp_path / "home") == {"a"}


def _refuses(url: str) -> bool:
    try:
        socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5).close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        pass  # it came while the socket was being closed
    return False


def _wait_until(met: object, deadline_s: float = 30.0) -> None:
    assert callable(met)
    until = time.monotonic() + deadline_s
    while not met():
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def _held(home: Path) -> set[str]:
    store = open_store(f"sqlite:{home / 'steps.db'}")
    try:
        return {json.loads(record)["id"] for record in store.records()}
    finally:
        store.close()


class Sender(threading.Thread):
    """Sends batches until the server is gone, and remembers which were acknowledged."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(name=f"sender-{name}")
        self.port, self.prefix = port, name
        self.acknowledged: set[str] = set()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            for batch in range(100_000):
                ids = [f"{self.prefix}-{batch}-{n}" for n in range(50)]
                connection.request("POST", "/v1/ingest", lines(*map(step, ids)), NDJSON)
                answer = json.loads(connection.getresponse().read())
                assert answer["accepted"] == 50
                self.acknowledged |= {*ids}


def test_after_kill_9_under_load_everything_acknowledged_is_there(tmp_path: Path) -> None:
    home = tmp_path / "home"
    acknowledged: set[str] = set()
    for life in range(2):
        with ServeProcess(home) as server:
            port = int(server.url.rpartition(":")[2])
            senders = [Sender(port, f"{life}-{n}") for n in range(3)]
            for sender in senders:
                sender.start()
            _wait_until(lambda senders=senders: all(len(sender.acknowledged) >= 500 for sender in senders))
            server.process.kill()
            for sender in senders:
                sender.join(30)
                acknowledged |= sender.acknowledged
    with ServeProcess(home) as server:  # and it starts again
        assert server.client.get("/readyz").status_code == 200
        again = server.client.post("/v1/ingest", content=lines(*map(step, sorted(acknowledged)[:100])), headers=NDJSON)
        assert again.json() == {"accepted": 0, "duplicates": 100, "rejected": []}
    assert len(acknowledged) >= 3000
    assert acknowledged <= _held(home)


def test_a_blob_that_was_cut_short_by_kill_9_is_not_there(tmp_path: Path) -> None:
    sha256 = "0" * 64
    with ServeProcess(tmp_path / "home") as server:
        connection = http.client.HTTPConnection("127.0.0.1", int(server.url.rpartition(":")[2]), timeout=30)
        connection.putrequest("PUT", f"/v1/blobs/{sha256}")
        connection.putheader("Content-Length", "10000000")
        connection.endheaders(b"x" * 4_000_000)
        _wait_until(lambda: any((tmp_path / "home").glob("blobs/.incoming-*")))
        server.process.kill()
        connection.close()
    with ServeProcess(tmp_path / "home") as server:
        assert server.client.get(f"/v1/blobs/{sha256}").status_code == 404


def test_two_servers_share_one_store(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with ServeProcess(home) as one, ServeProcess(home) as two:
        assert one.url != two.url
        told: dict[str, list[int]] = {"one": [], "two": []}

        def send(name: str, server: ServeProcess) -> None:
            for batch in range(20):
                body = lines(*[step(f"{name}-{batch}-{n}") for n in range(50)], step(f"shared-{batch}"))
                told[name].append(server.client.post("/v1/ingest", content=body, headers=NDJSON).json()["accepted"])

        threads = [threading.Thread(target=send, args=each) for each in (("one", one), ("two", two))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sum(told["one"]) + sum(told["two"]) == 2 * 20 * 50 + 20
        key = run("keys", "add", "ci", "--home", str(home), "--scope", "admin").stdout.strip()
        for server in (one, two):  # both see it with their next request
            assert server.client.get("/metrics").status_code == 401
            assert server.client.get("/metrics", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    assert len(_held(home)) == 2 * 20 * 50 + 20


def test_the_log_is_json_and_holds_nothing_of_a_request_but_its_route_and_sizes(tmp_path: Path) -> None:
    secret = "sk-very-secret-0123456789"
    with ServeProcess(tmp_path / "home") as server:
        headers = {**NDJSON, "X-Secret": secret, "Authorization": f"Bearer {secret}"}
        server.client.post(
            f"/v1/ingest?token={secret}", content=lines(step(secret), b"{" + secret.encode()), headers=headers
        )
        server.client.get("/v1/blobs/" + "a" * 64)
        server.client.get(f"/{secret}")
        server.client.post("/v1/blobs/missing", json={"sha256": [secret]})
    log = server.log()
    keys = {"time", "level", "logger", "method", "route", "status", "ms", "bytes_in", "bytes_out"}
    assert [{*line} for line in log] == [keys] * 4
    assert [(line["method"], line["route"], line["status"]) for line in log] == [
        ("POST", "/v1/ingest", 200),
        ("GET", "/v1/blobs/{sha256}", 404),
        ("GET", "(none)", 404),
        ("POST", "/v1/blobs/missing", 422),
    ]
    assert secret not in server.log_path.read_text()
    assert "a" * 64 not in server.log_path.read_text()


def test_without_its_packages_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        f"from stepwell.cli import run; sys.exit(run(['serve', '--home', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "stepwell: the server needs fastapi: pip install 'stepwell[server]'\n")


def test_a_store_that_can_not_be_written_is_not_ready(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        server.store.close()
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "unavailable")
        assert server.client.get("/healthz").status_code == 200
        refused = server.post(lines(step("a")))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
