"""Real instrumentations of the `openai` client, sending by the official exporters: what arrives are proper steps.

Each runs in a process of its own, as they patch the client for good; the endpoint they call is a server of the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET
from served import AppServer

from stepwell.model import StepRecord
from stepwell.server._keys import KeyRing

PROGRAM = Path(__file__).with_name("instrumented.py")
SYSTEM = {"role": "system", "content": "Be terse."}
USER = {"role": "user", "content": "Weather in Paris?"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"location":"Paris"}'}}
FUNCTION = {"name": "get_weather", "description": "w", "parameters": {"type": "object"}}
USAGE = {
    "prompt_tokens": 20,
    "completion_tokens": 7,
    "total_tokens": 27,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


def completion(message: dict[str, Any], reason: str) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": reason, "logprobs": None, "message": {"role": "assistant", **message}}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
        "choices": [choice],
        "usage": USAGE,
    }


def chunks() -> Iterator[dict[str, Any]]:
    common = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "gpt-4o-mini-2024-07-18",
    }
    for delta, reason in (({"role": "assistant", "content": "Rai"}, None), ({"content": "ny"}, None), ({}, "stop")):
        yield {**common, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
    yield {**common, "choices": [], "usage": USAGE}


class OpenAI(BaseHTTPRequestHandler):
    """As much of OpenAI's API as the program calls."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if asked["model"] == "missing":
            self.answer(404, {"error": {"message": "no such model", "type": "invalid_request_error", "code": None}})
        elif self.path.endswith("/embeddings"):
            item = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
            usage = {"prompt_tokens": 4, "total_tokens": 4}
            self.answer(200, {"object": "list", "model": asked["model"], "data": [item], "usage": usage})
        elif asked.get("stream"):
            lines = [f"data: {json.dumps(each)}\n\n" for each in chunks()] + ["data: [DONE]\n\n"]
            self.send(200, "text/event-stream", "".join(lines).encode())
        elif asked["messages"][-1]["role"] == "tool":
            self.answer(200, completion({"content": "Rainy"}, "stop"))
        else:
            self.answer(200, completion({"content": None, "tool_calls": [CALL]}, "tool_calls"))

    def answer(self, status: int, body: dict[str, Any]) -> None:
        self.send(status, "application/json", json.dumps(body).encode())

    def send(self, status: int, type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def openai_url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OpenAI) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join(30)


def recorded(name: str, openai_url: str, home: Path) -> list[StepRecord]:
    """Run the program under an instrumentation; return the steps that arrived, by start."""
    with AppServer(home) as server:
        key = KeyRing(server.home).add("app", ["ingest"]) if name == "langfuse" else "none"
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(PROGRAM), name, server.url, openai_url, key],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )
        if done.stderr.startswith("skip: "):
            pytest.skip(done.stderr.strip())
        assert (done.returncode, "export" in done.stderr) == (0, False), done.stderr
        return [server.store.step(row.id) for row in server.store.steps(limit=100, order="asc").items]


def value(payload: Any) -> Any:
    return json.loads(bytes(payload))


@pytest.mark.parametrize("name", ["openinference", "openllmetry", "openai_v2", "logfire", "langfuse"])
def test_calls_under_an_instrumentation_are_proper_steps(name: str, openai_url: str, tmp_path: Path) -> None:
    steps = recorded(name, openai_url, tmp_path / "home")
    outer = steps[0]
    assert (outer.type, outer.name, outer.parent_id, outer.status) == ("run", "outer", None, "success")
    assert {(step.parent_id, step.trace_id) for step in steps[1:]} == {(outer.id, outer.trace_id)}
    calls = [step for step in steps if step.type == "llm"]
    first, second, failed = calls[0], calls[1], next(step for step in calls if step.status == "failed")
    streamed = next(step for step in calls[2:] if step.status == "success" and step.output is not UNSET)

    asked = value(first.generation)
    assert asked["messages"] == [SYSTEM, USER]
    assert (
        value(first.output)
        == asked["message_completion"]
        == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    )
    assert asked["response_model"] == "gpt-4o-mini-2024-07-18"
    assert asked["settings"]["temperature"] == 0.5
    assert asked["tools"] == [{"type": "function", "function": FUNCTION}]
    usage = asked["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 7, 27)
    if name != "langfuse":  # it tells neither
        assert (asked["model"], asked["provider"], asked["stop_reason"]) == ("gpt-4o-mini", "openai", "tool_calls")
        assert (usage["cached_input_tokens"], first.service) == (5, "shop")

    answered = value(second.generation)
    assert answered["messages"][2:] == [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "rainy"},
    ]
    assert answered["message_completion"] == {"role": "assistant", "content": "Rainy"}

    told = value(streamed.generation)
    assert (told["messages"], told["message_completion"]["content"]) == ([SYSTEM, USER], "Rainy")
    assert told["usage"]["output_tokens"] == 7

    assert failed.error is not None
    assert "404" in (failed.error.message or "")
    assert value(failed.generation)["model"] == "missing"

    [embedding] = [step for step in steps if step.type == "embedding"]
    assert value(embedding.generation)["model"] == "text-embedding-3-small"
    assert value(embedding.generation)["usage"]["input_tokens"] == 4
    assert {step.type for step in steps} == {"run", "llm", "embedding"}
