"""The Letta API of the server, driven by Letta's own client over a socket; its mapping, by literals."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import letta_client
import pytest
import uvicorn
from letta_client import Letta

from stepwell.model import Score, StepRecord, decode_record
from stepwell.server._letta_messages import date_of, letta_messages
from stepwell.server._letta_parts import of_message
from stepwell.server._letta_steps import feedback_of, feedback_records, letta_metrics, letta_step, letta_trace
from stepwell.server.app import create_app
from stepwell.store import Store, StepRow, open_store

HOUR_NS = 3_600_000_000_000
DAY_NS = 1_735_689_600_000_000_000  # 2025-01-01T00:00:00Z


class Served:
    """A store, and clients of the server over it."""

    def __init__(self, store: Store, url: str) -> None:
        self.store = store
        self.url = url
        self.letta = Letta(base_url=url, api_key="none", _strict_response_validation=True, max_retries=0)
        self.http = httpx.Client(base_url=url, timeout=30)

    def add(self, *records: dict[str, Any]) -> None:
        result = self.store.add([json.dumps({"kind": "step", **record}).encode() for record in records])
        assert result.rejected == ()


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    store = open_store(f"sqlite:{folder / 'steps.db'}")
    server = uvicorn.Server(
        uvicorn.Config(create_app(store, home=folder), host="127.0.0.1", port=0, log_level="warning", ws="none")
    )
    sockets = [server.config.bind_socket()]
    thread = threading.Thread(target=server.run, args=(sockets,), name="server of a test")
    thread.start()
    served = Served(store, "http://{}:{}".format(*sockets[0].getsockname()))
    try:
        yield served
    finally:
        served.letta.close()
        served.http.close()
        server.should_exit = True
        thread.join(30)
        store.close()
        assert not thread.is_alive()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(tmp_path) as served:
        yield served


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve 2,400 steps of 3 starts, 800 each, in one run: ids do not follow the order in which they came."""
    with serving(tmp_path_factory.mktemp("crowd")) as served:
        served.add(*(step(number, start_ns=DAY_NS + number // 800, root_run_id=uid(0)) for number in range(2400)))
        yield served


def uid(number: int) -> str:
    return f"01930000-{(number * 7919) % 9973:04x}-7000-8000-{number:012x}"


def step(number: int, **fields: Any) -> dict[str, Any]:
    start = fields.get("start_ns", DAY_NS + number * HOUR_NS)
    return {"id": uid(number), "type": "tool", "name": f"n{number}", "start_ns": start, "status": "success"} | fields


def numbers(steps: Sequence[Any]) -> list[int]:
    return [int(each.id[-12:], 16) for each in steps]


def listed(served: Served, **query: Any) -> list[int]:
    return numbers(served.letta.steps.list(**query).items)
