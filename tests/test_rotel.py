"""A collector that is not ours, the Rust one of rotel: it takes our spans, and what it passes on are steps again."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.trace import SpanContext
from served import ServeProcess

import stepwell as sw
from stepwell.errors import NotFoundError
from stepwell.model import StepRecord
from stepwell.store import Store, open_store

FOUND = find_spec("rotel")
AGENT = Path(FOUND.origin).parent / "rotel-agent" if FOUND is not None and FOUND.origin else Path("rotel-agent")
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "airline_agent.jsonl"

pytestmark = pytest.mark.skipif(not AGENT.is_file(), reason="the package rotel is not installed")


class Collector(NamedTuple):
    http: int
    grpc: int
    log: Path

    def url(self, kind: str) -> str:
        return f"otlp+{kind}://127.0.0.1:{self.http if kind == 'http' else self.grpc}"


def wait_for(condition: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.02)


def unused() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def rotel(folder: Path, *options: str) -> Iterator[Collector]:
    made = Collector(unused(), unused(), folder / "rotel.log")
    command = [
        *(str(AGENT), "start"),
        *("--otlp-http-endpoint", f"127.0.0.1:{made.http}", "--otlp-grpc-endpoint", f"127.0.0.1:{made.grpc}"),
        *("--log-file", str(folder / "agent.log"), "--pid-file", str(folder / "agent.pid")),
        *("--batch-timeout", "100ms", "--otlp-grpc-max-recv-msg-size-mib", "4", *options),
    ]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROTEL_", "OTEL_"))}
    with made.log.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment)
    try:
        wait_for(lambda: process.poll() is not None or (answers(made.http) and answers(made.grpc)))
        assert process.poll() is None, made.log.read_text()
        yield made
    finally:
        process.terminate()
        try:
            process.wait(15)
        finally:
            process.kill()
            process.wait(15)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_a_collector_logs_the_spans_that_steps_are(kind: str, tmp_path: Path) -> None:
    options = ("--exporter", "blackhole", "--debug-log", "traces", "--debug-log-verbosity", "detailed")
    with rotel(tmp_path, *options) as collector:
        sw.configure(export=collector.url(kind), home=tmp_path / "home", service="teahouse")
        with sw.thread("t-42"), sw.run("agent") as run, sw.llm("answer", model="gpt-4o", prompt="Tea?") as call:
            call.output = "Yes"
        assert sw.shutdown(20)
        wait_for(lambda: "answer" in collector.log.read_text() and "teahouse" in collector.log.read_text())
        told = plain(collector.log.read_text())
    for word in (run.trace_id, run.id[19:].replace("-", ""), call.id[19:].replace("-", ""), "gpt-4o", "t-42"):
        assert word in told


def record_all(data: list[dict[str, Any]]) -> None:
    """Record what the server is to have in the end: types of steps, outcomes, and the longest chat there is."""
    with sw.thread("t-42", name="Tea", user="ada", tags=["demo"], metadata={"shop": 7}):
        sw.user_message("Tea?")
        with sw.run("agent", tags=["a", "b"], metadata={"deep": {"er": [1, 2.5, None]}}) as run:
            with pytest.raises(ValueError, match="no tea"), sw.tool("kettle", input={"cups": 2}):
                raise ValueError("no tea")
            with sw.retrieval("search", input={"query": "tea"}) as found:
                found.output = [{"id": 1, "score": 0.5, "text": "green"}]
            with sw.embedding("embed", model="e", input=["tea"]) as embedded:
                embedded.usage(input_tokens=1, output_tokens=0)
            with sw.rerank("order", model="r", input={"query": "tea"}) as ordered:
                ordered.output = [{"id": 1}]
            with sw.llm("answer", model="gpt-4o", provider="openai", messages=data, temperature=0) as call:
                call.output = {"role": "assistant", "content": "Yes \u00e9\U0001f600"}
                call.usage(input_tokens=30, output_tokens=5, cached_input_tokens=10)
                call.score("taste", 0.5, comment="bitter")
                call.add_event("first cup", {"cups": 1, "kinds": ["green", "black"]})
                call.add_link(SpanContext(5, 6, is_remote=True), {"why": "refill"})
                call.record_exception(ValueError("spilt"))
            run.output = None
        sw.assistant_message("Yes")
    run.score("later", 1, label="good")


def steps_of(store: Store) -> dict[str, StepRecord]:
    return {row.id: store.step(row.id) for row in store.steps(limit=1000).items}


def has_name(store: Store, thread: str) -> bool:
    with suppress(NotFoundError):
        return store.thread(thread).name is not None
    return False


@pytest.mark.parametrize("kind", ["http", "grpc"])
def test_what_a_collector_passes_on_are_the_same_steps(kind: str, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Tea?"}]
    if DATA.is_file():
        lines = DATA.read_text().splitlines()
        chat = max((next(v for v in json.loads(line).values() if isinstance(v, list)) for line in lines), key=len)
        assert len(chat) > 60
    with ServeProcess(tmp_path / "server") as server:
        forward = ("--exporter", "otlp", "--otlp-exporter-endpoint", server.url, "--otlp-exporter-protocol", "http")
        there = f"sqlite:{tmp_path / 'server' / 'steps.db'}"
        with rotel(tmp_path, *forward) as collector, closing(open_store(there, read_only=True)) as taken:
            home = tmp_path / "home"
            sw.configure(export=["sqlite:", collector.url(kind)], home=home, service="teahouse", environment="test")
            record_all(chat)
            assert sw.shutdown(20)
            with closing(open_store(f"sqlite:{home / 'steps.db'}", read_only=True)) as store:
                expected = steps_of(store)
                wait_for(lambda: steps_of(taken).keys() >= expected.keys())
                assert len(expected) == 8
                scored = next(step for step in expected.values() if step.name == "agent")
                wait_for(lambda: taken.step(scored.id).scores)
                wait_for(lambda: has_name(taken, "t-42"))
                assert steps_of(taken) == expected
                assert taken.thread("t-42") == store.thread("t-42")
