"""ASGI and WSGI middleware: what a request's sender recorded goes on here, in every part of the answer."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage
from opentelemetry.context import attach, get_current
from opentelemetry.trace import SpanContext, TraceFlags

import stepwell as sw
from stepwell.otel import AsgiMiddleware, WsgiMiddleware
from stepwell.testing import Captured

PARENT = f"00-{5:032x}-{6:016x}-01"
HEADERS = {"traceparent": PARENT, "baggage": "stepwell.thread_id=t,stepwell.user=ada"}
PARENT_ID = "00000000-0000-0000-0000-000000000006"


def scope(kind: str = "http", headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    raw = [(name.encode(), value.encode()) for name, value in (HEADERS if headers is None else headers).items()]
    return {"type": kind, "headers": raw, **more}


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


def serve(app: Any, request: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(AsgiMiddleware(app, **options)(request, receive, send))
    return sent


def environ(headers: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    given = HEADERS if headers is None else headers
    return {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in given.items()} | more


def start_response(status: str, headers: list[tuple[str, str]], error: Any = None) -> None:
    pass


async def asgi(scope: Any, receive: Any, send: Any) -> None:
    with sw.run("handle"):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part in (b"a", b"b"):
            await asyncio.sleep(0)
            with sw.tool("stream"):
                await send({"type": "http.response.body", "body": part, "more_body": part == b"a"})


# -- ASGI


def test_a_request_goes_on_where_its_sender_is(captured: Captured) -> None:
    sent = serve(asgi, scope(), trust=True)
    assert [message.get("body") for message in sent] == [None, b"a", b"b"]
    fields = captured.fields("handle")
    assert (fields["trace_id"], fields["parent_id"]) == (f"{5:032x}", PARENT_ID)
    assert (fields["thread_id"], fields["user"]) == ("t", "ada")
    assert [step.parent_id for step in captured.steps[1:]] == [fields["id"], fields["id"]]


def test_nobody_is_believed_unless_the_application_says_so(captured: Captured) -> None:
    serve(asgi, scope())
    fields = captured.fields("handle")
    assert fields["trace_id"] != f"{5:032x}"
    assert {"parent_id", "thread_id", "user"} & fields.keys() == set()


def test_a_stranger_can_not_switch_recording_off(captured: Captured) -> None:
    serve(asgi, scope(headers={"traceparent": f"00-{5:032x}-{6:016x}-00"}))
    assert [step.name for step in captured.steps] == ["handle", "stream", "stream"]


def test_whom_to_trust_may_be_asked_for_each_request(captured: Captured) -> None:
    def from_inside(request: Any) -> bool:
        return bool(request["client"][0].startswith("10."))

    serve(asgi, scope(client=("10.0.0.7", 5)), trust=from_inside)
    serve(asgi, scope(client=("192.0.2.7", 5)), trust=from_inside)
    inside, outside = (step for step in captured.steps if step.name == "handle")
    assert (inside.thread_id, outside.thread_id) == ("t", None)


def test_a_question_that_raises_means_no(captured: Captured) -> None:
    serve(asgi, scope(), trust=lambda request: request["no such key"])
    assert captured.step("handle").thread_id is None
    assert sw.stats().faults == {"ask whom to trust": 1}


def test_what_an_application_raises_passes_with_no_frame_of_ours(captured: Captured) -> None:
    import traceback

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad") as raised:
        serve(fails, scope(), trust=True)
    names = [frame.filename for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert [name for name in names if "stepwell/otel" in name] == []


@pytest.mark.parametrize(("kind", "thread"), [("websocket", "t"), ("lifespan", None), ("unheard.of", None)])
def test_websockets_go_on_too_and_what_is_no_request_passes(kind: str, thread: str | None, captured: Captured) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"got": await receive()})
        with sw.tool("x"):
            pass

    assert serve(app, scope(kind), trust=True) == [{"got": {"type": "http.request", "body": b"", "more_body": False}}]
    assert captured.step("x").thread_id == thread


def test_nothing_is_left_behind_on_the_servers_task(captured: Captured) -> None:
    async def main() -> None:
        before = get_current()
        await AsgiMiddleware(asgi, trust=True)(scope(), receive, nothing)
        assert get_current() == before

    async def nothing(message: Any) -> None:
        pass

    asyncio.run(main())
    assert captured.step("handle").thread_id == "t"


def test_requests_at_the_same_time_stay_apart(captured: Captured) -> None:
    async def main() -> None:
        app = AsgiMiddleware(asgi, trust=True)
        requests = [scope(headers={**HEADERS, "baggage": f"stepwell.thread_id=t{n}"}) for n in range(5)]
        await asyncio.gather(*(app(request, receive, nothing) for request in requests))

    async def nothing(message: Any) -> None:
        await asyncio.sleep(0)

    asyncio.run(main())
    assert sorted(step.thread_id or "" for step in captured.steps) == sorted(f"t{n}" for n in range(5) for _ in "abc")


# -- hostile headers

ODD: list[dict[str, str]] = [
    {"traceparent": f"{PARENT},{PARENT}"},
    {"traceparent": PARENT + "\u00e9"},
    {"traceparent": "ff" + PARENT[2:]},
    {"baggage": "stepwell.thread_id=" + "%41" * 2000},
    {"baggage": "stepwell.thread_id=a%0Ab"},
    {"baggage": "stepwell.thread_id=a%1B%5B2J"},
    {"baggage": "stepwell.thread_id=%E2%80%AEabc"},
    {"baggage": "stepwell.root_run_id=x%22%2C%22status%22%3A%22failed"},
    {"baggage": "," * 9000},
    {"baggage": "=" * 9000},
]


@pytest.mark.parametrize("headers", ODD, ids=range(len(ODD)))
def test_headers_that_no_service_of_ours_writes_say_nothing(headers: dict[str, str], captured: Captured) -> None:
    serve(
        asgi, {"type": "http", "headers": [(k.encode(), v.encode("latin-1")) for k, v in headers.items()]}, trust=True
    )
    fields = captured.fields("handle")
    assert {"parent_id", "thread_id"} & fields.keys() == set()
    assert fields["root_run_id"] == fields["id"]


def test_a_header_sent_twice_is_one_list(captured: Captured) -> None:
    raw = [(b"Baggage", b"stepwell.thread_id=t"), (b"baggage", b"stepwell.user=ada")]
    serve(asgi, {"type": "http", "headers": raw}, trust=True)
    assert captured.fields("handle")["user"] == "ada"


def test_a_header_sent_a_hundred_times_is_nobodys(captured: Captured) -> None:
    serve(asgi, {"type": "http", "headers": [(b"baggage", b"stepwell.thread_id=t")] * 100}, trust=True)
    assert captured.step("handle").thread_id is None


def test_a_user_that_can_not_be_shown_is_left_out(captured: Captured) -> None:
    serve(asgi, scope(headers={"baggage": "stepwell.thread_id=t,stepwell.user=a%00b"}), trust=True)
    fields = captured.fields("handle")
    assert (fields["thread_id"], "user" in fields) == ("t", False)


def test_odd_threads_and_users_arrive_as_they_are(captured: Captured) -> None:
    thread, user = 'a, b;c="d"\\%41+é\U0001f600', "ada+lovelace@example.org"
    headers: dict[str, str] = {}
    with sw.thread(thread, user=user), sw.run("r"):
        sw.inject(headers)
    assert headers["baggage"].isascii()
    assert set(" +") & set(headers["baggage"]) == set()
    serve(asgi, scope(headers=headers), trust=True)
    fields = captured.fields("handle")
    assert (fields["thread_id"], fields["user"]) == (thread, user)


def test_the_longest_thread_and_user_fit_whatever_else_is_in_the_baggage(captured: Captured) -> None:
    headers: dict[str, str] = {}
    context = get_current()
    for n in range(20):
        context = baggage.set_baggage(f"other{n}", "x" * 1000, context)
    attach(context)
    with sw.thread("\U0001f600" * 256, user="\U0001f600" * 256), sw.run("r"):
        sw.inject(headers)
    assert len(headers["baggage"]) <= 8192
    serve(asgi, scope(headers=headers), trust=True)
    assert captured.step("handle").thread_id == "\U0001f600" * 256


def test_what_a_stranger_sent_under_our_names_goes_no_further(captured: Captured) -> None:
    headers: dict[str, str] = {}
    attach(baggage.set_baggage("stepwell.thread_id", "somebody's", baggage.set_baggage("shop", "7")))
    with sw.run("r"):
        sw.inject(headers)
    assert "somebody" not in headers["baggage"]
    assert "shop=7" in headers["baggage"]


# -- WSGI


def test_a_wsgi_request_goes_on_in_its_streamed_body(captured: Captured) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        with sw.run("handle"):
            for part in (b"a", b"b"):
                with sw.tool("stream"):
                    yield part

    before = get_current()
    body = iter(WsgiMiddleware(app, trust=True)(environ(), start_response))
    assert next(body) == b"a"
    assert get_current() == before
    assert list(body) == [b"b"]
    assert get_current() == before
    handle = captured.fields("handle")
    assert (handle["parent_id"], handle["thread_id"]) == (PARENT_ID, "t")
    assert [(step.parent_id, step.status) for step in captured.steps[1:]] == [(handle["id"], "success")] * 2


def test_a_wsgi_body_that_is_closed_early_is_closed_in_its_context(captured: Captured) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            with sw.tool("tidy"):
                pass

    body: Any = WsgiMiddleware(app, trust=True)(environ(), start_response)
    assert next(body) == b"a"
    body.close()
    assert captured.step("tidy").thread_id == "t"


def test_wsgi_bodies_stay_what_servers_know_them_by(captured: Captured) -> None:
    class File:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"f"])

    class Sized(File):
        def __len__(self) -> int:
            return 1

    file, sized, parts = File(), Sized(), [b"a"]
    answer: Any
    for given, same in ((parts, True), (file, True), (sized, False)):
        answer = WsgiMiddleware(lambda *_, body=given: body, trust=True)(
            environ(**{"wsgi.file_wrapper": File if given is file else None}), start_response
        )
        assert (answer is given) is same
    assert len(answer) == 1
    assert list(answer) == [b"f"]
    answer.close()  # it has nothing to close


def test_a_wsgi_application_that_raises_is_heard(captured: Captured) -> None:
    def fails(environ: Any, start_response: Any) -> Any:
        raise ValueError("bad")

    def fails_later(environ: Any, start_response: Any) -> Iterator[bytes]:
        yield b"a"
        raise ValueError("worse")

    with pytest.raises(ValueError, match="bad"):
        WsgiMiddleware(fails, trust=True)(environ(), start_response)
    body = iter(WsgiMiddleware(fails_later, trust=True)(environ(), start_response))
    assert next(body) == b"a"
    with pytest.raises(ValueError, match="worse"):
        next(body)


def test_a_wsgi_request_of_a_stranger_is_not_believed(captured: Captured) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        with sw.run("handle"):
            return [b"a"]

    assert WsgiMiddleware(app)(environ(), start_response) == [b"a"]
    assert WsgiMiddleware(app, trust=True)({"HTTP_TRACEPARENT": 5}, start_response) == [b"a"]
    assert [step.parent_id for step in captured.steps] == [None, None]


# -- three processes

LAST = """
import sys
from wsgiref.simple_server import WSGIRequestHandler, make_server
import stepwell as sw
from stepwell.otel import WsgiMiddleware

class Quiet(WSGIRequestHandler):
    def log_message(self, *_): pass

@sw.retrieval
def look_up(query): return [{"id": 1, "text": query}]

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    for word in ("deep", "cool"):
        look_up(word)
        yield word.encode()

sw.configure(export="jsonl:" + sys.argv[1])
with make_server("127.0.0.1", 0, WsgiMiddleware(app, trust=True), handler_class=Quiet) as server:
    print(server.server_port, flush=True)
    server.handle_request()
assert sw.shutdown(20)
"""

MIDDLE = """
import asyncio, sys, threading
import uvicorn, httpx
import stepwell as sw
from stepwell.otel import AsgiMiddleware
from stepwell.server._run import listen

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    async with sw.tool("forward"), httpx.AsyncClient(trust_env=False) as client:
        headers = {}
        sw.inject(headers)
        answer = await client.get(sys.argv[2], headers=headers)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer.content})
    server.should_exit = True

sw.configure(export="jsonl:" + sys.argv[1])
socket = listen("127.0.0.1", 0)
config = uvicorn.Config(AsgiMiddleware(app, trust=True), log_config=None, lifespan="off", ws="none")
server = uvicorn.Server(config)
print(socket.getsockname()[1], flush=True)
server.run(sockets=[socket])
socket.close()
assert sw.shutdown(20)
"""

FIRST = """
import sys, urllib.request
import stepwell as sw

sw.configure(export="jsonl:" + sys.argv[1])
with sw.thread("t & \\u00fc", user="ada"), sw.run("agent"), sw.tool("call"):
    headers = {}
    sw.inject(headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    print(opener.open(urllib.request.Request(sys.argv[2], headers=headers), timeout=20).read().decode())
assert sw.shutdown(20)
"""


def start(stack: ExitStack, code: str, folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    folder = folder / name
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "steps.jsonl"), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )

    def stop() -> None:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=20)

    stack.callback(stop)
    return process


def test_three_processes_record_one_tree_under_one_thread(tmp_path: Path) -> None:
    with ExitStack() as stack:
        last = start(stack, LAST, tmp_path, "last")
        assert last.stdout is not None
        middle = start(stack, MIDDLE, tmp_path, "middle", f"http://127.0.0.1:{last.stdout.readline().strip()}/")
        assert middle.stdout is not None
        first = start(stack, FIRST, tmp_path, "first", f"http://127.0.0.1:{middle.stdout.readline().strip()}/")
        assert first.communicate(timeout=40)[0].strip() == "deepcool"
        assert [process.wait(30) for process in (first, middle, last)] == [0, 0, 0]
    lines = [line for path in sorted(tmp_path.glob("*/*.jsonl")) for line in path.read_text().splitlines()]
    last_told = {each["id"]: each for each in map(json.loads, lines) if each["kind"] == "step"}  # after it was pending
    steps = sorted(last_told.values(), key=lambda step: step["start_ns"])
    names = {step["id"]: step["name"] for step in steps}
    assert [(step["name"], names.get(step.get("parent_id"))) for step in steps] == [
        ("agent", None),
        ("call", "agent"),
        ("forward", "call"),
        ("look_up", "forward"),
        ("look_up", "forward"),
    ]
    assert {(step["thread_id"], step["user"], step["root_run_id"]) for step in steps} == {
        ("t & ü", "ada", steps[0]["id"])
    }
    assert len({step["trace_id"] for step in steps}) == 1


def test_a_remote_parent_is_marked_as_one(captured: Captured) -> None:
    seen: list[SpanContext] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        from opentelemetry import trace

        seen.append(trace.get_current_span().get_span_context())

    serve(app, scope(), trust=True)
    assert (seen[0].is_remote, seen[0].trace_flags) == (True, TraceFlags(1))
