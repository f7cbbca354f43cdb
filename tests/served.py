"""Servers for tests: the application on a thread, and `stepwell serve` as a process; both on a real socket."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI

from stepwell.server._limits import Limits
from stepwell.server._run import listen, url_of
from stepwell.server.app import create_app
from stepwell.store import Store, open_store

NDJSON = {"Content-Type": "application/x-ndjson"}


def step(id: str, **fields: object) -> bytes:
    return json.dumps({"kind": "step", "id": id, "type": "tool", "name": id, **fields}).encode()


def lines(*frames: bytes) -> bytes:
    return b"".join(frame + b"\n" for frame in frames)


class AppServer:
    """The application over a new store in `home`, served from a thread; `below` a path of another application."""

    def __init__(
        self,
        home: Path,
        limits: Limits | None = None,
        host: str = "127.0.0.1",
        prefix: str = "",
        store: Store | None = None,
        below: str = "",
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.store: Store = store or open_store(f"sqlite:{home / 'steps.db'}")
        self.app = create_app(self.store, home=home, limits=limits, prefix=prefix)
        self._socket = listen(host, 0)
        self.url = url_of(self._socket)
        self.port = int(self.url.rpartition(":")[2])
        served = self.app
        if below:
            served = FastAPI()
            served.mount(below, self.app)
        config = uvicorn.Config(served, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=10)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, name="served")
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + 30
        while not self._server.started and self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.005)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.app.state.live.close()
        self._server.should_exit = True
        self._thread.join(30)
        self._socket.close()
        self.store.close()
        assert not self._thread.is_alive()

    def post(self, body: bytes, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.post("/v1/ingest", content=body, headers={**NDJSON, **named})


class ServeProcess:
    """`stepwell serve`, ready when this is made."""

    def __init__(self, home: Path, *arguments: str, port: int = 0) -> None:
        self.log_path = home.with_name(f"{home.name}-{id(self)}.log")
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "stepwell", "serve", "--home", str(home), "--port", str(port), *arguments],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self.said = self.process.stdout.readline()
        self.url = self.said.split()[-1] if self.said else ""
        self.client = httpx.Client(base_url=self.url, trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(30)
            assert self.process.stdout is not None
            self.process.stdout.close()

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_path.read_text().splitlines()]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stepwell", *arguments], capture_output=True, text=True, timeout=60, check=False
    )


def ids(store: Store) -> Sequence[str]:
    return sorted(row.id for row in store.steps(limit=1000).items)
