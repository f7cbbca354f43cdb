"""Decorated generators: transparent to whoever drives them, current only while their own code runs, ended once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import json
import logging
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import UNSET

import stepwell as sw
from stepwell._segment import scan
from stepwell.testing import capture


@pytest.fixture
def captured() -> Iterator[Any]:
    with capture() as recorded:
        yield recorded


@sw.run
def counting(until: int) -> Iterator[int]:
    for number in range(until):
        with sw.tool("inside"):
            yield number


@sw.run
async def counting_async(until: int) -> AsyncIterator[int]:
    for number in range(until):
        await asyncio.sleep(0)
        with sw.tool("inside"):
            yield number


@sw.run
def talking() -> Iterator[Any]:
    received = yield "ready"
    try:
        received = yield received
    except KeyError as error:
        received = yield f"caught {error}"
    return received


def outcome(captured: Any, name: str) -> tuple[str, bytes | None]:
    step = captured.step(name)
    return step.status, None if step.output is UNSET else bytes(step.output)


def test_a_decorated_generator_function_stays_one() -> None:
    assert inspect.isgeneratorfunction(counting)
    assert inspect.isasyncgenfunction(counting_async)
    assert not inspect.isgeneratorfunction(counting_async)
    assert inspect.isgenerator(counting(1))
    assert list(inspect.signature(counting).parameters) == ["until"]


def test_items_are_the_output_and_children_nest_in_the_body(captured: Any) -> None:
    assert list(counting(2)) == [0, 1]
    assert captured.tree() == [("run", "counting", "success", [("tool", "inside", "success", [])] * 2)]
    assert outcome(captured, "counting") == ("success", b"[0,1]")
    assert bytes(captured.step("counting").input) == b'{"until":2}'


def test_strings_are_joined(captured: Any) -> None:
    @sw.llm
    def answer(prompt: str) -> Iterator[str]:
        yield from ("Hel", "lo")

    assert list(answer("Say hello")) == ["Hel", "lo"]
    step = captured.step("answer")
    assert bytes(step.output) == b'"Hello"'
    assert b'"completion":"Hello"' in bytes(step.generation)
    assert b'"ttft_ns":' in bytes(step.generation)


def test_the_consumer_sees_no_step_between_items(captured: Any) -> None:
    for number in counting(2):
        assert sw.current_step() is None
        with sw.tool("unrelated", input=number):
            pass
    assert [step.parent_id for step in captured.steps if step.name == "unrelated"] == [None, None]


def test_a_step_of_the_consumer_stays_its_own(captured: Any) -> None:
    with sw.run("consumer") as consumer:
        for _ in counting(2):
            assert sw.current_step() is consumer
    assert captured.step("counting").parent_id == consumer.id


def test_send_throw_and_return_pass_through(captured: Any) -> None:
    def delegate() -> Iterator[Any]:
        returned.append((yield from talking()))

    returned: list[object] = []
    generator: Any = delegate()
    assert next(generator) == "ready"
    assert generator.send("hello") == "hello"
    assert generator.throw(KeyError("k")) == "caught 'k'"
    with pytest.raises(StopIteration):
        generator.send("bye")
    assert returned == ["bye"]
    assert outcome(captured, "talking") == ("success", b""""readyhellocaught 'k'\"""")


@pytest.mark.parametrize("stop", [lambda g: g.close(), lambda g: list(itertools.islice(g, 0))], ids=["close", "islice"])
def test_one_that_is_not_exhausted_is_cancelled(stop: Callable[[Any], object], captured: Any) -> None:
    generator = counting(5)
    next(generator)
    stop(generator)
    del generator
    gc.collect()
    assert captured.tree() == [("run", "counting", "cancelled", [("tool", "inside", "cancelled", [])])]
    assert outcome(captured, "counting")[1] == b"[0]"


def test_break_ends_it_and_the_next_call_is_not_its_child(captured: Any) -> None:
    for _ in counting(5):
        break
    gc.collect()
    with sw.tool("unrelated"):
        pass
    assert captured.step("unrelated").parent_id is None
    assert outcome(captured, "counting")[0] == "cancelled"


ABANDONED = """
import stepwell as sw
from stepwell.testing import capture

@sw.run
def counting():
    yield 1
    yield 2

with capture():
    for _ in range(20_000):
        left = counting()
        next(left)
        cycle = [left]
        cycle.append(cycle)  # for the garbage collector
    print(len(sw.stats().exporters))
"""


def run_alone(program: str, folder: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_thousands_that_the_garbage_collector_ends_do_not_crash_python(tmp_path: Path) -> None:
    assert run_alone(ABANDONED, tmp_path) == (0, "1\n", "")


LEFT_AT_EXIT = """
import stepwell as sw
from stepwell.testing import capture

@sw.run
def counting():
    yield 1
    yield 2

if {before}:
    with capture(), sw.tool("before"):
        pass
left = counting()
next(left)
cycle = [left]
cycle.append(cycle)
del left
"""


@pytest.mark.parametrize("before", [False, True])
def test_one_that_ends_with_the_interpreter_is_journaled_and_does_not_hold_it_up(before: bool, tmp_path: Path) -> None:
    assert run_alone(LEFT_AT_EXIT.format(before=before), tmp_path) == (0, "", "")
    [session] = (tmp_path / ".stepwell" / "journal").iterdir()
    found = scan((session / "000001.seg").read_bytes())
    assert found is not None
    assert [(step["name"], step["status"]) for _, _, frame in found.frames if (step := json.loads(frame))] == [
        ("counting", "cancelled")
    ]


def test_collected_in_another_thread_it_ends_and_logs_nothing(captured: Any, caplog: pytest.LogCaptureFixture) -> None:
    held = [counting(5)]
    next(held[0])
    thread = threading.Thread(target=held.clear)
    with caplog.at_level(logging.DEBUG):
        thread.start()
        thread.join()
        gc.collect()
    assert outcome(captured, "counting")[0] == "cancelled"
    assert caplog.records == []
    assert sw.current_step() is None


def test_an_error_of_the_body_fails_the_step_and_shows_no_frame_of_ours(captured: Any) -> None:
    @sw.run
    def breaking() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken") as raised:
        list(breaking())
    files = [str(entry.path) for entry in raised.traceback]
    assert all("stepwell/_" not in file for file in files)
    step = captured.step("breaking")
    assert (step.status, step.error.type, step.error.message) == ("failed", "ValueError", "broken")
    assert bytes(step.output) == b"[1]"


def test_a_generator_that_refuses_to_close_fails_as_without_us(captured: Any) -> None:
    @sw.run
    def stubborn() -> Iterator[int]:
        for _ in range(2):
            with contextlib.suppress(GeneratorExit):
                yield 1

    generator: Any = stubborn()
    next(generator)
    with pytest.raises(RuntimeError, match="ignored GeneratorExit"):
        generator.close()
    assert captured.step("stubborn").status == "failed"


def test_two_at_once_do_not_mix(captured: Any) -> None:
    pairs = list(zip(counting(2), counting(2), strict=True))
    assert pairs == [(0, 0), (1, 1)]
    assert captured.tree() == [("run", "counting", "success", [("tool", "inside", "success", [])] * 2)] * 2


def test_only_time_in_the_body_is_active(captured: Any) -> None:
    from stepwell.testing import FakeClock

    with FakeClock(start_ns=1_000) as clock:

        @sw.run
        def slow() -> Iterator[int]:
            clock.advance(5)
            yield 1
            clock.advance(5)

        for _ in slow():
            clock.advance(100)
    step = captured.step("slow")
    assert (step.active_ns, step.end_ns - step.start_ns) == (10, 110)


def test_async_items_nest_and_end(captured: Any) -> None:
    async def main() -> list[int]:
        return [number async for number in counting_async(2)]

    assert asyncio.run(main()) == [0, 1]
    assert captured.tree() == [("run", "counting_async", "success", [("tool", "inside", "success", [])] * 2)]


def test_async_break_then_an_unrelated_call(captured: Any) -> None:
    async def main() -> None:
        async for _ in counting_async(5):
            assert sw.current_step() is None
            break
        with sw.tool("unrelated"):
            pass

    asyncio.run(main())
    assert captured.step("unrelated").parent_id is None
    assert outcome(captured, "counting_async") == ("cancelled", b"[0]")


def test_asend_and_athrow_pass_through(captured: Any) -> None:
    @sw.run
    async def echo() -> AsyncIterator[Any]:
        received = yield "ready"
        try:
            yield received
        except KeyError:
            yield "caught"

    async def main() -> list[Any]:
        generator: Any = echo()
        return [
            await generator.asend(None),
            await generator.asend(5),
            await generator.athrow(KeyError()),
            await anext(generator, "end"),
        ]

    assert asyncio.run(main()) == ["ready", 5, "caught", "end"]
    assert outcome(captured, "echo") == ("success", b'["ready",5,"caught"]')


def test_closing_in_another_task_is_silent(captured: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        generator: Any = counting_async(5)
        await asyncio.create_task(anext(generator))
        await asyncio.create_task(generator.aclose())

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())
    assert outcome(captured, "counting_async")[0] == "cancelled"
    assert [record for record in caplog.records if record.name != "asyncio"] == []


def test_cancelling_the_task_that_waits_cancels_the_step(captured: Any) -> None:
    @sw.run
    async def forever() -> AsyncIterator[int]:
        yield 1
        await asyncio.Event().wait()

    async def consume(started: asyncio.Event) -> None:
        async for _ in forever():
            started.set()

    async def main() -> None:
        started = asyncio.Event()
        task = asyncio.create_task(consume(started))
        await started.wait()
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert outcome(captured, "forever") == ("cancelled", b"[1]")


def test_a_returned_generator_keeps_the_step_open_until_it_ends(captured: Any) -> None:
    @sw.run
    def lines(count: int) -> Iterator[str]:
        return (f"line {number}" for number in range(count))

    generator = lines(2)
    assert sw.current_step() is None
    with sw.tool("between"):
        pass
    assert list(generator) == ["line 0", "line 1"]
    assert outcome(captured, "lines") == ("success", b'"line 0line 1"')
    assert captured.step("between").parent_id is None


def test_a_returned_generator_that_nobody_reads_is_cancelled(captured: Any) -> None:
    @sw.run
    def lines() -> Iterator[str]:
        return (line for line in ["a"])

    lines()
    gc.collect()
    assert outcome(captured, "lines") == ("cancelled", b"[]")


def test_a_coroutine_that_returns_an_async_generator_is_followed_too(captured: Any) -> None:
    @sw.run
    async def opened() -> AsyncIterator[int]:
        async def numbers() -> AsyncIterator[int]:
            yield 1
            yield 2

        return numbers()

    async def main() -> list[int]:
        stream = await opened()
        assert sw.current_step() is None
        return [number async for number in stream]

    assert asyncio.run(main()) == [1, 2]
    assert outcome(captured, "opened") == ("success", b"[1,2]")


def test_a_streaming_response_keeps_the_step_open_until_its_body_ends(captured: Any) -> None:
    class Response:  # as Starlette's: what matters is the attribute
        def __init__(self, body: AsyncIterator[str]) -> None:
            self.body_iterator = body

    @sw.run
    async def endpoint() -> Response:
        async def body() -> AsyncIterator[str]:
            with sw.tool("produce"):
                yield "chunk"

        return Response(body())

    async def main() -> tuple[object, list[str]]:
        response = await endpoint()
        return response, [chunk async for chunk in response.body_iterator]

    response, chunks = asyncio.run(main())
    assert (type(response), chunks) == (Response, ["chunk"])
    assert captured.tree() == [("run", "endpoint", "success", [("tool", "produce", "success", [])])]


def test_what_is_kept_of_a_long_one_is_bounded(captured: Any) -> None:
    @sw.run
    def numbers() -> Iterator[int]:
        yield from range(10_003)

    assert sum(1 for _ in numbers()) == 10_003
    assert bytes(captured.step("numbers").output).endswith(b',9999,{"$stepwell":"truncated","items":3}]')


KEY = "sk-" + "Zq8" * 10


@pytest.mark.parametrize("more", [[5], [" z"] * 10_001])
def test_a_secret_split_between_items_is_masked_as_one(more: list[Any], captured: Any) -> None:
    @sw.run
    def speak(items: int) -> Iterator[Any]:
        yield from ["my ", KEY[:12], KEY[12:], *more]

    assert sum(1 for _ in speak(1)) == 3 + len(more)
    output = json.loads(bytes(captured.step("speak").output))
    assert output[0] == "my [redacted:openai:33]" + " z" * (9997 if len(more) > 1 else 0)
    assert output[1:] == ([5] if len(more) == 1 else [{"$stepwell": "truncated", "items": 4}])


def test_a_secret_split_between_bytes_is_masked_as_one(captured: Any) -> None:
    @sw.run
    def speak() -> Iterator[bytes]:
        yield from [b"my ", KEY[:12].encode(), KEY[12:].encode()]

    assert sum(1 for _ in speak()) == 3
    assert json.loads(bytes(captured.step("speak").output)) == [
        {"$stepwell": "bytes", "size": 36, "base64": "[redacted:bytes:36]"}
    ]


def test_bytes_without_a_secret_stay_items(captured: Any) -> None:
    @sw.run
    def speak() -> Iterator[Any]:
        yield from [b"a", b"b", "c"]

    assert sum(1 for _ in speak()) == 3
    assert json.loads(bytes(captured.step("speak").output)) == [
        {"$stepwell": "bytes", "size": 1, "base64": "YQ=="},
        {"$stepwell": "bytes", "size": 1, "base64": "Yg=="},
        "c",
    ]


def test_capture_output_off_keeps_nothing(captured: Any) -> None:
    @sw.run(capture_output=False)
    def numbers() -> Iterator[int]:
        yield 1

    assert list(numbers()) == [1]
    assert outcome(captured, "numbers") == ("success", None)


def test_switched_off_it_only_passes_through() -> None:
    sw.configure(export="memory:", home=None, enabled=False)
    assert list(counting(2)) == [0, 1]
    assert sw.current_step() is None
    generator: Any = talking()
    assert [next(generator), generator.send(1), generator.throw(KeyError(2))] == ["ready", 1, "caught 2"]


def test_a_decorated_contextmanager_works(captured: Any) -> None:
    @contextlib.contextmanager
    @sw.run
    def opened() -> Iterator[str]:
        yield "open"

    with opened() as value:
        assert value == "open"
    assert outcome(captured, "opened") == ("success", b'"open"')
