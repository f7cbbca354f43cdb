"""Iterators and streaming responses that a decorated function returns keep its step open until they end."""

from __future__ import annotations

import asyncio
import copy
import csv
import gc
import io
import itertools
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self
from unittest.mock import MagicMock

import pytest

import stepwell as sw
from stepwell.model import decode_generation
from stepwell.testing import Captured


class Stream:
    """A provider's stream: an iterator that can be closed and entered, with fields of its own."""

    def __init__(self, *chunks: Any, error: Exception | None = None) -> None:
        self.response = "headers"
        self.closed = 0
        self._error = error
        self._chunks = iter(chunks)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        with sw.tool("fetch"):
            try:
                return next(self._chunks)
            except StopIteration:
                if self._error is not None:
                    raise self._error from None
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed += 1


class AsyncStream:
    def __init__(self, *chunks: Any) -> None:
        self._chunks = iter(chunks)
        self.closed = 0

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        await asyncio.sleep(0)
        with sw.tool("fetch"):
            for chunk in self._chunks:
                return chunk
            raise StopAsyncIteration

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        self.closed += 1


@sw.run
def opened(*chunks: Any, error: Exception | None = None) -> Stream:
    return Stream(*chunks, error=error)


@sw.run
async def opened_async(*chunks: Any) -> AsyncStream:
    return AsyncStream(*chunks)


def outcome(captured: Captured, name: str) -> tuple[str | None, bytes | None]:
    step = captured.step(name)
    return step.status, bytes(step.output) if step.output else None  # type: ignore[arg-type]


# -- iterators


def test_an_iterator_keeps_the_step_open_until_it_ends(captured: Captured) -> None:
    stream = opened("a", "b")
    assert sw.current_step() is None
    with sw.tool("unrelated"):
        pass
    assert [step.name for step in captured.steps] == ["unrelated"]
    assert list(stream) == ["a", "b"]
    assert outcome(captured, "opened") == ("success", b'"ab"')
    assert captured.step("unrelated").parent_id is None
    fetched = [step.parent_id for step in captured.steps if step.name == "fetch"]
    assert fetched == [captured.step("opened").id] * 3
    assert captured.step("opened").active_ns is not None


def test_an_async_iterator_keeps_the_step_open_until_it_ends(captured: Captured) -> None:
    async def main() -> list[Any]:
        stream = await opened_async(1, 2)
        assert sw.current_step() is None
        return [item async for item in stream]

    assert asyncio.run(main()) == [1, 2]
    assert outcome(captured, "opened_async") == ("success", b"[1,2]")
    fetched = [step.parent_id for step in captured.steps if step.name == "fetch"]
    assert fetched == [captured.step("opened_async").id] * 3


@pytest.mark.parametrize(
    "make",
    [
        lambda: map(str, [1, 2]),
        lambda: iter(["1", "2"]),
        lambda: itertools.chain(["1"], ["2"]),
        lambda: (row[0] for row in csv.reader(["1", "2"])),
        lambda: filter(None, ["1", "2"]),
        lambda: reversed(["2", "1"]),
    ],
    ids=["map", "list iterator", "chain", "generator expression", "filter", "reversed"],
)
def test_iterators_of_python_are_followed(make: Any, captured: Captured) -> None:
    decorated = sw.tool("made")(make)
    assert "".join(decorated()) == "12"
    assert outcome(captured, "made") == ("success", b'"12"')


def test_what_stands_for_an_iterator_passes_for_it(captured: Captured) -> None:
    stream = opened("a")
    assert isinstance(stream, Stream)
    assert isinstance(stream, Iterator)
    assert not isinstance(stream, AsyncIterator)
    assert stream.response == "headers"
    stream.response = "changed"
    assert stream.response == "changed"
    del stream.response
    with pytest.raises(AttributeError, match="response"):
        _ = stream.response
    assert "closed" in dir(stream)
    assert repr(stream).startswith("<test_followed_streams.Stream object")
    assert list(stream) == ["a"]


def test_copies_are_those_of_the_original(captured: Captured) -> None:
    numbers = sw.tool("numbers")(lambda: iter([1, 2, 3]))()
    next(numbers)
    assert list(copy.copy(numbers)) == [2, 3]
    assert list(pickle.loads(pickle.dumps(numbers))) == [2, 3]


def test_an_error_of_an_iterator_fails_the_step_and_shows_no_frame_of_ours(captured: Captured) -> None:
    raised = ConnectionError("cut off")
    stream = opened("a", error=raised)
    assert next(stream) == "a"
    with pytest.raises(ConnectionError) as caught:
        next(stream)
    assert caught.value is raised
    assert [frame.name for frame in caught.traceback] == [
        "test_an_error_of_an_iterator_fails_the_step_and_shows_no_frame_of_ours",
        "__next__",
    ]
    assert outcome(captured, "opened") == ("failed", b'"a"')


def test_closing_an_iterator_ends_the_step_as_cancelled(captured: Captured) -> None:
    stream = opened("a", "b")
    assert next(stream) == "a"
    stream.close()
    assert stream.closed == 1
    assert outcome(captured, "opened") == ("cancelled", b'"a"')


def test_breaking_off_an_iterator_ends_the_step_as_cancelled(captured: Captured) -> None:
    for _ in opened("a", "b"):
        break
    gc.collect()
    assert outcome(captured, "opened") == ("cancelled", b'"a"')


def test_leaving_the_block_of_an_iterator_ends_the_step(captured: Captured) -> None:
    with opened("a", "b") as stream:
        assert isinstance(stream, Stream)
        assert next(stream) == "a"
    assert outcome(captured, "opened") == ("cancelled", b'"a"')


def test_an_exception_in_the_block_of_an_iterator_fails_the_step(captured: Captured) -> None:
    with pytest.raises(KeyError), opened("a", "b") as stream:
        next(stream)
        raise KeyError
    assert outcome(captured, "opened") == ("failed", b'"a"')


def test_leaving_the_block_of_an_async_iterator_ends_the_step(captured: Captured) -> None:
    async def main() -> int:
        async with await opened_async(1, 2) as stream:
            assert await anext(stream) == 1
        return stream.closed

    assert asyncio.run(main()) == 1
    assert outcome(captured, "opened_async") == ("cancelled", b"[1]")


def test_closing_an_async_iterator_in_another_task_ends_the_step(captured: Captured) -> None:
    async def main() -> None:
        stream = await opened_async(1, 2)
        await asyncio.create_task(anext(stream))
        await asyncio.create_task(stream.aclose())

    asyncio.run(main())
    assert outcome(captured, "opened_async") == ("cancelled", b"[1]")


def test_an_iterator_that_nobody_reads_is_a_call_that_went_well(captured: Captured) -> None:
    opened("a")
    gc.collect()
    assert outcome(captured, "opened")[0] == "success"


def test_a_models_stream_says_when_its_first_token_came_and_what_it_said(captured: Captured) -> None:
    @sw.llm(model="gpt-4o")
    def ask(prompt: str) -> Stream:
        delta = {"choices": [{"delta": {"content": "Hel"}}], "model": "gpt-4o-2024"}
        last = {"choices": [{"delta": {"content": "lo"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 2}}
        return Stream(delta, last)

    assert len(list(ask("Say hello"))) == 2
    step = captured.step("ask")
    assert (step.type, step.status, bytes(step.output)) == ("llm", "success", b'"Hello"')  # type: ignore[arg-type]
    generation = decode_generation(step.generation)  # type: ignore[arg-type]
    assert generation.ttft_ns is not None
    assert generation.stop_reason == "stop"
    assert generation.usage is not None
    assert generation.usage.output_tokens == 2


@pytest.mark.parametrize(
    "value",
    [
        io.StringIO("a file"),
        sqlite3.connect(":memory:").execute("SELECT 1"),
        MagicMock(),
        [1],
        range(3),
        asyncio.StreamReader,
    ],
    ids=["file", "cursor", "mock", "list", "range", "class"],
)
def test_what_can_be_read_in_other_ways_is_returned_as_it_is(value: object, captured: Captured) -> None:
    assert sw.tool("give")(lambda: value)() is value
    assert captured.step("give").status == "success"


# -- responses, of real frameworks


def serve(app: Any, path: str, *, disconnect_after: int | None = None) -> list[bytes]:
    """Drive an ASGI application as a server does; return the pieces of the body that it sent."""
    sent: list[bytes] = []
    gone = asyncio.Event()

    async def main() -> None:
        requested = False

        async def receive() -> dict[str, Any]:
            nonlocal requested
            if not requested:
                requested = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                sent.append(message.get("body", b""))
                if disconnect_after is not None and len(sent) >= disconnect_after:
                    gone.set()
                    await asyncio.sleep(0)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
            "scheme": "http",
            "root_path": "",
        }
        await app(scope, receive, send)

    asyncio.run(main())
    return sent


class Rows:
    """Async iterable, and no iterator."""

    def __aiter__(self) -> AsyncIterator[str]:
        async def rows() -> AsyncIterator[str]:
            with sw.tool("produce"):
                yield "one"
            yield "two"

        return rows()


async def numbers() -> AsyncIterator[str]:
    for word in ("one", "two"):
        with sw.tool("produce"):
            await asyncio.sleep(0)
        yield word


def words() -> Iterator[str]:
    with sw.tool("produce"):
        yield "one"
    yield "two"


@pytest.mark.parametrize("content", [numbers, words, Rows], ids=["async generator", "generator", "async iterable"])
@pytest.mark.parametrize("framework", ["starlette", "fastapi"])
def test_a_streaming_response_keeps_the_step_open_until_it_is_sent(
    framework: str, content: Any, captured: Captured
) -> None:
    from fastapi import FastAPI
    from starlette.applications import Starlette
    from starlette.responses import StreamingResponse
    from starlette.routing import Route

    if framework == "fastapi":

        @sw.run("endpoint")
        async def endpoint() -> StreamingResponse:
            return StreamingResponse(content())

        app: Any = FastAPI()
        app.get("/", response_model=None)(endpoint)
    else:

        @sw.run("endpoint")
        async def endpoint_of_starlette(request: Any) -> StreamingResponse:
            return StreamingResponse(content())

        app = Starlette(routes=[Route("/", endpoint_of_starlette)])
    assert b"".join(serve(app, "/")) == b"onetwo"
    step = captured.step("endpoint")
    assert (step.status, bytes(step.output)) == ("success", b'"onetwo"')  # type: ignore[arg-type]
    assert {child.parent_id for child in captured.steps if child.name == "produce"} == {step.id}


def test_a_client_that_goes_away_cancels_the_step_of_the_response(captured: Captured) -> None:
    from fastapi import FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()

    @app.get("/", response_model=None)
    @sw.run
    async def endpoint() -> StreamingResponse:
        async def forever() -> AsyncIterator[str]:
            yield "one"
            await asyncio.Event().wait()

        return StreamingResponse(forever())

    assert serve(app, "/", disconnect_after=1) == [b"one"]
    gc.collect()
    assert outcome(captured, "endpoint") == ("cancelled", b'"one"')


@pytest.mark.parametrize("is_async", [True, False])
def test_a_yield_dependency_of_fastapi_is_open_while_the_endpoint_runs(is_async: bool, captured: Captured) -> None:
    from fastapi import Depends, FastAPI

    closed = []

    @sw.run("session")
    async def session_async() -> AsyncIterator[str]:
        with sw.tool("open"):
            pass
        yield "session"
        closed.append(True)

    @sw.run("session")
    def session() -> Iterator[str]:
        with sw.tool("open"):
            pass
        yield "session"
        closed.append(True)

    app = FastAPI()

    @app.get("/")
    async def endpoint(given: str = Depends(session_async if is_async else session)) -> str:
        with sw.tool("used"):
            return given

    assert serve(app, "/") == [b'"session"']
    assert closed == [True]
    assert outcome(captured, "session") == ("success", b'"session"')
    assert captured.step("open").parent_id == captured.step("session").id
    assert captured.step("used").parent_id is None


def test_a_yield_fixture_of_pytest_is_torn_down(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        """
import pytest
import stepwell as sw
from stepwell.testing import capture

done = []

@pytest.fixture(scope="module")
@sw.tool
def resource():
    yield 5
    done.append("torn down")

def test_uses(resource):
    assert resource == 5
    with sw.run("test"):
        assert sw.current_run().parent_id is None

@pytest.fixture(scope="session", autouse=True)
def recorded():
    with capture() as captured:
        yield
        assert done == ["torn down"]
        assert captured.step("resource").status == "success"
        assert captured.fields("resource")["output"] == [5]
"""
    )
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "1 passed" in ran.stdout, ran.stdout
    assert ran.returncode == 0, ran.stdout
