"""Uses of the public API whose types mypy --strict and pyright strict check; `assert_type` says what they must be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, assert_type, overload

import stepwell as sw
from stepwell.client import (
    Added,
    AsyncPage,
    Changes,
    Deleted,
    FullStep,
    Generation,
    Hit,
    Page,
    Rollup,
    Run,
    Score,
    Stats,
    Step,
    Thread,
    User,
)
from stepwell.model import StepRecord
from stepwell.testing import Captured, FakeClock, FakeIds, Node, capture

T = TypeVar("T")
K = TypeVar("K")


@sw.tool
def bare(query: str, limit: int = 5) -> list[str]:
    return [query] * limit


@sw.tool("search", tags=["web"], metadata={"k": 1}, capture_input=["query"], capture_output=False)
def with_arguments(query: str, *, limit: int = 5) -> list[str]:
    return [query] * limit


@sw.run()
def empty_parentheses(n: int) -> int:
    return n


@sw.step(type="tool")
def by_step(n: int) -> int:
    return n


@sw.llm(model="gpt-4o", provider="openai", temperature=0)
async def coroutine(messages: list[dict[str, str]]) -> str:
    return messages[0]["content"]


@sw.retrieval
async def bare_coroutine(query: str) -> tuple[str, ...]:
    return (query,)


@sw.tool
def generic(value: T, others: list[T]) -> dict[str, T]:
    return {"a": value, "b": others[0]}


@sw.thread("t", user="ada")
def in_thread(n: int) -> str:
    return str(n)


@sw.thread()
async def in_new_thread(n: int) -> str:
    return str(n)


@overload
def double(value: int) -> int: ...
@overload
def double(value: str) -> str: ...
@sw.tool
def double(value: int | str) -> int | str:
    return value * 2


class Agent(Generic[K]):
    def __init__(self, key: K) -> None:
        self.key = key

    @sw.run
    def method(self, n: int) -> K:
        return self.key

    @sw.run("named")
    async def async_method(self, n: int) -> K:
        return self.key

    @classmethod
    @sw.tool
    def below_classmethod(cls, n: int) -> str:
        return cls.__name__ * n

    @staticmethod
    @sw.tool("x")
    def below_staticmethod(n: int) -> str:
        return "x" * n

    @sw.tool
    @classmethod
    def above_classmethod(cls, n: int) -> str:
        return cls.__name__ * n

    @sw.tool("x")
    @staticmethod
    def above_staticmethod(n: int) -> str:
        return "x" * n

    @property
    @sw.tool
    def value(self) -> int:
        return 1

    @sw.tool  # type: ignore[prop-decorator] # mypy allows no decorator above a property
    @property
    def value_above(self) -> int:
        return 1

    @sw.tool("x")  # type: ignore[prop-decorator]
    @cached_property
    def cached_above(self) -> int:
        return 1

    @cached_property
    @sw.tool
    def cached_below(self) -> int:
        return 1


def decorated_functions_keep_their_types() -> None:
    assert_type(bare("x"), list[str])
    assert_type(bare("x", limit=2), list[str])
    assert_type(with_arguments("x", limit=2), list[str])
    assert_type(empty_parentheses(1), int)
    assert_type(by_step(1), int)
    assert_type(in_thread(1), str)
    assert_type(generic(1, [2]), dict[str, int])
    assert_type(generic("a", ["b"]), dict[str, str])
    assert_type(double(1), int)
    assert_type(double("a"), str)
    plain: Callable[[str, int], list[str]] = bare
    assert_type(plain("x", 1), list[str])
    assert_type(sw.tool(len)("abc"), int)


def decorated_methods_keep_their_types() -> None:
    agent = Agent("key")
    assert_type(agent.method(1), str)
    assert_type(Agent.below_classmethod(1), str)
    assert_type(agent.below_classmethod(1), str)
    assert_type(Agent.below_staticmethod(1), str)
    assert_type(Agent.above_classmethod(1), str)
    assert_type(agent.above_classmethod(1), str)
    assert_type(Agent.above_staticmethod(1), str)
    assert_type(agent.value, int)
    assert_type(agent.value_above, int)
    assert_type(agent.cached_above, int)
    assert_type(agent.cached_below, int)


async def decorated_coroutines_keep_their_types() -> None:
    assert_type(await coroutine([{"content": "x"}]), str)
    assert_type(await bare_coroutine("x"), tuple[str, ...])
    assert_type(await in_new_thread(1), str)
    assert_type(await Agent(1).async_method(2), int)
    waiting: Coroutine[Any, Any, tuple[str, ...]] = bare_coroutine("x")
    assert_type(await waiting, tuple[str, ...])


def blocks_give_steps_and_threads() -> None:
    with sw.run("x") as run:
        assert_type(run, sw.Step)
    with sw.llm("x", model="m", messages=[{"role": "user", "content": "?"}], top_p=0.5) as llm:
        assert_type(llm, sw.Step)
    with sw.embedding("x", model="m", prompt="?") as embedding, sw.rerank("y", model="m") as rerank:
        assert_type(embedding, sw.Step)
        assert_type(rerank, sw.Step)
    with sw.step("x", type="undefined") as step:
        assert_type(step, sw.Step)
    with sw.thread("t", name="Tea", user="ada", tags=["a"], metadata={"k": 1}) as thread:
        assert_type(thread, sw.Thread)
    with sw.extract({"traceparent": ""}) as nothing:
        assert_type(nothing, None)
    started = sw.start("tool", "name", tags=["a"])
    assert_type(started, sw.Step)
    started.end()


async def async_blocks_give_steps_and_threads() -> None:
    async with sw.tool("x") as step, sw.thread() as thread:
        assert_type(step, sw.Step)
        assert_type(thread, sw.Thread)


def steps_have_types(step: sw.Step) -> None:
    assert_type(step.id, str)
    assert_type(step.trace_id, str)
    assert_type(step.parent_id, str | None)
    assert_type(step.thread_id, str | None)
    assert_type(step.root_run_id, str | None)
    assert_type(step.name, str)
    assert_type(step.tags, list[str])
    assert_type(step.metadata, dict[str, Any])
    step.input = {"any": object()}
    step.output = None
    step.usage(input_tokens=1, output_tokens=None)
    step.attach(Path("photo.png"), name="x", mime="image/png")
    step.attach(b"bytes")
    step.score("relevance", 0.9, comment="good", type="AI", tags=["a"])
    step.fail(ValueError("bad"))
    step.fail("bad")
    step.record({"choices": []})


def streams_keep_the_type_of_their_chunks(step: sw.Step, chunks: Iterator[bytes]) -> None:
    for chunk in step.stream(chunks):
        assert_type(chunk, bytes)
    with step.stream(["a", "b"]) as stream:
        for text in stream:
            assert_type(text, str)


async def async_streams_keep_the_type_of_their_chunks(step: sw.Step, chunks: AsyncIterator[bytes]) -> None:
    async for chunk in step.stream(chunks):
        assert_type(chunk, bytes)


def the_rest_has_types(function: Callable[[int], Awaitable[str]]) -> None:
    assert_type(sw.current_step(), sw.Step | None)
    assert_type(sw.current_run(), sw.Step | None)
    assert_type(sw.current_thread(), sw.Thread | None)
    assert_type(sw.user_message("Hi", attachments=[sw.attach("photo.png")]), sw.Step)
    assert_type(sw.assistant_message("Hi", tags=["a"]), sw.Step)
    assert_type(sw.system_message({"any": "thing"}), sw.Step)
    assert_type(sw.bind(bare)("x"), list[str])
    assert_type(sw.bind(function)(1), Awaitable[str])
    sw.instrument("threads", "processes")
    sw.uninstrument()
    assert_type(sw.flush(timeout=1), bool)
    assert_type(sw.shutdown(), bool)
    assert_type(sw.stats(), sw.Stats)
    sw.score("id", "name", 1, label="x", comment="y", type="HUMAN", tags=["z"])
    sw.feedback("id", "positive", comment="x")
    headers: dict[str, str] = {}
    sw.inject(headers)
    sw.configure(export=["memory:", "console:"], home=None, sample=0.5, redact=["pin"], enabled=True)


def tools_for_tests_have_types() -> None:
    with capture(strict=True) as captured, FakeClock(tick_ns=1) as clock, FakeIds() as ids:
        assert_type(captured, Captured)
        assert_type(clock, FakeClock)
        assert_type(ids, FakeIds)
        assert_type(captured.steps, list[StepRecord])
        assert_type(captured.tree(), list[Node])
        assert_type(captured.fields("x"), dict[str, Any])


def a_client_has_types(target: str) -> None:
    with sw.Client(target, key=None, timeout=1, deadline=2.5) as client:
        assert_type(client, sw.Client)
        page = client.steps(
            type="llm", tag=["a"], min_tokens=10, since=datetime(2026, 1, 1, tzinfo=UTC), limit=10, order="asc"
        )
        assert_type(page, Page[Step])
        assert_type(page.items, tuple[Step, ...])
        assert_type(page.next_cursor, str | None)
        assert_type(page.next_page(), Page[Step] | None)
        for step in page:
            assert_type(step, Step)
            assert_type(step.total_tokens, int | None)
            full = client.step(step.id)
            assert_type(full, FullStep)
            assert_type(full.input, Any)
            assert_type(full.generation, Generation | None)
            assert_type(full.scores, tuple[Score, ...])
            assert_type(client.tree(step.id), list[Step])
        assert_type(client.search("a word", status="failed"), Page[Hit])
        assert_type(client.runs(root_only=True), Page[Run])
        assert_type(client.threads(user="ada", tag="web"), Page[Thread])
        assert_type(client.thread_steps("t", limit=5), Page[Step])
        assert_type(client.scores(name="feedback", min=0.5), Page[Score])
        assert_type(client.users(), Page[User])
        assert_type(client.rollups(by=["model", "environment"], every="hour", percentiles=False), list[Rollup])
        assert_type(client.changes(after=0), Changes)
        assert_type(client.stats(), Stats)
        assert_type(client.add([{"kind": "step", "id": "a"}, b'{"kind":"step","id":"b"}']), Added)
        assert_type(client.steps_in_full(["a", "b"]), list[FullStep])
        assert_type(client.score("a", "relevance", 0.9, type="AI"), Score)
        assert_type(client.feedback("a", "positive"), Score)
        assert_type(client.export(type="llm"), Iterator[bytes])
        assert_type(client.delete_run("a"), Deleted)


async def an_async_client_has_types(target: str) -> None:
    async with sw.AsyncClient(target, key=None, timeout=1, deadline=2.5) as client:
        assert_type(client, sw.AsyncClient)
        page = await client.steps(type=["llm", "tool"], metadata={"k": 1}, has_error=False)
        assert_type(page, AsyncPage[Step])
        assert_type(page.items, tuple[Step, ...])
        assert_type(await page.next_page(), AsyncPage[Step] | None)
        async for step in client.steps(model="gpt-4o"):
            assert_type(step, Step)
        async for hit in client.search("a word"):
            assert_type(hit, Hit)
        async for user in await client.users():
            assert_type(user, User)
        assert_type(await client.add([{"kind": "step", "id": "a"}]), Added)
        assert_type(await client.step("a"), FullStep)
        assert_type(await client.tree("a"), list[Step])
        assert_type(await client.rollups(by=["type"], every=None), list[Rollup])
        assert_type(client.export(), AsyncIterator[bytes])
        assert_type(await client.delete_run("a"), Deleted)


def wrong_questions_are_errors(client: sw.Client, other: sw.AsyncClient) -> None:
    # Each is an error to both checkers; mypy fails where one of the comments ignores nothing. None of them is run.
    client.steps(typ="llm")  # type: ignore[call-arg]
    client.steps(type="chat")  # type: ignore[arg-type]
    client.steps(min_tokens="10")  # type: ignore[arg-type]
    client.steps(order="up")  # type: ignore[arg-type]
    client.threads(model="m")  # type: ignore[call-arg]
    client.rollups(by=["status"])  # type: ignore[list-item]
    client.feedback("a", "good")  # type: ignore[arg-type]
    other.steps(typ="llm")  # type: ignore[call-arg]
    other.scores(min="1")  # type: ignore[arg-type]
