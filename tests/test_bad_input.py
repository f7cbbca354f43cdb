"""Whatever users hand over is recorded as valid JSON, their call goes on, and the steps beside it are whole."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from types import GeneratorType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepwell as sw
from stepwell import errors as sw_errors
from stepwell.model import encode_record
from stepwell.testing import Captured, capture


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __repr__


class Broken:
    """Raises whatever is asked of it."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError("broken")

    __repr__ = __str__ = __eq__ = __hash__ = __len__ = __iter__ = __bool__ = __getattr__ = _fail  # type: ignore[assignment]
    __float__ = __index__ = __int__ = __contains__ = __getitem__ = __call__ = _fail


class LyingDict(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("items")

    __iter__ = keys = values = __len__ = items


class LoudMapping(Mapping[str, Any]):
    def __getitem__(self, key: str) -> Any:
        raise RuntimeError

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError

    def __len__(self) -> int:
        raise RuntimeError


class LoudString(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __len__ = __getitem__ = encode = isascii = __str__  # type: ignore[assignment]


def cyclic() -> dict[str, Any]:
    cycle: dict[str, Any] = {"a": 1}
    cycle["self"] = [cycle]
    return cycle


def deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(10_000):
        value = [value]
    return value


BAD: dict[str, Callable[[], Any]] = {
    "object": object,
    "lock": threading.Lock,
    "cyclic": cyclic,
    "deep": deep,
    "nan": lambda: float("nan"),
    "infinities": lambda: [float("inf"), -float("inf")],
    "lone surrogate": lambda: "a\ud800b",
    "surrogate key": lambda: {"\udfff": 1},
    "null character": lambda: "a\0b",
    "huge integer": lambda: 10**5000,
    "negative integer": lambda: -(1 << 63) - 1,
    "bytes": lambda: b"\xff\x00",
    "odd keys": lambda: {1: "a", None: "b", (1, 2): "c", b"x": "d", 1.5: "e", frozenset({1}): "f", False: "g"},
    "repr raises": Loud,
    "broken": Broken,
    "lying dict": lambda: LyingDict(a=1),
    "loud mapping": LoudMapping,
    "loud string": lambda: LoudString("x"),
    "over the limit": lambda: "x" * 200_000,
    "many items": lambda: list(range(200_000)),
    "generator": lambda: (n for n in range(3)),
    "class": lambda: int,
    "exception": lambda: ValueError("bad"),
    "set": lambda: {1, "a", None},
    "empty": dict,
    "quotes": lambda: '"},{"kind":"step"',
    "newlines": lambda: "a\n\r\u2028b",
}
each_bad = pytest.mark.parametrize("make", BAD.values(), ids=BAD)


def same(result: object, value: object) -> bool:
    """Say whether a call returned the value; a generator it may follow to its end."""
    return list(result) == [0, 1, 2] if isinstance(result, GeneratorType) else result is value


@pytest.fixture
def captured() -> Iterator[Captured]:
    with capture(max_field_bytes=64 * 1024) as captured:
        yield captured


@pytest.fixture(autouse=True)
def neighbours_are_whole(captured: Captured) -> Iterator[None]:
    """Record a step before and after, and look at every record as a reader of the wire would."""
    with sw.run("before", input={"a": 1}):
        pass
    yield
    with sw.run("after", input={"a": 1}):
        pass
    for name in ("before", "after"):
        assert (captured.step(name).status, captured.fields(name)["input"]) == ("success", {"a": 1})
    assert sw.current_step() is None
    for record in captured.records:
        json.loads(encode_record(record), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (ledger,) = sw.stats().exporters.values()
    assert (ledger.rejected, ledger.dropped, ledger.waiting) == ({}, {}, 0)


@each_bad
def test_an_argument_and_a_result_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()

    @sw.tool
    def work(argument: Any, *rest: Any, **others: Any) -> Any:
        return argument

    result = work(value, value, other=value)
    assert same(result, value)
    assert {"input", "output"} <= captured.fields("work").keys()
    assert sw.stats().faults == {}


@each_bad
def test_an_argument_and_a_result_of_a_coroutine_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    found: list[Any] = []

    @sw.llm
    async def work(messages: Any, model: Any) -> Any:
        return messages

    async def main() -> None:
        found.append(await work(value, model=value))

    asyncio.run(main())
    assert same(found[0], value)
    assert {"input", "output"} <= captured.fields("work").keys()


@each_bad
def test_what_is_set_on_a_step_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.step("x", type="tool", input=value, metadata={"v": value}) as step:
        step.output = value
        step.metadata["w"] = value
        step.set_attribute("k", value)
        step.add_event("e", {"v": value})
    fields = captured.fields("x")
    assert {"input", "output", "metadata"} <= fields.keys()
    assert {"v", "w", "k", "events"} <= fields["metadata"].keys()


@each_bad
def test_a_name_may_be_anything_once_the_step_is_open(make: Callable[[], Any], captured: Captured) -> None:
    with sw.step("x", type="tool") as step:
        step.name = make()
    assert [found.status for found in captured.steps] == ["success"] * 2


@each_bad
def test_a_name_given_as_a_string_may_be_any(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    if not isinstance(value, str) or isinstance(value, LoudString):
        return
    with sw.tool(value):
        pass
    assert [found.status for found in captured.steps] == ["success"] * 2


@pytest.mark.parametrize("type_", ["tol", 'a"b', 'tool"', 5, None, []])
def test_a_type_there_is_not_does_not_lose_the_step(type_: Any, captured: Captured) -> None:
    with contextlib.suppress(sw_errors.UsageError), sw.tool("x") as step:
        step.type = type_
    assert captured.step("x").status in {"success", "failed"}


@each_bad
def test_tags_and_metadata_may_be_anything_once_the_step_is_open(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.tool("x") as step:
        step.tags.append(value)
        step.tags = value
    with sw.tool("y") as step:
        step.metadata = value
    with sw.tool("z") as step:
        step.tags.append(value)
    assert [captured.step(name).status for name in "xyz"] == ["success"] * 3
    assert captured.step("z").tags is not None


@each_bad
def test_a_generation_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.llm("x", model=value, provider=value, messages=value, tools=value, temperature=value) as step:
        step.generation = value
        step.generation = {"messages": value, "model": value, "ttft_ns": value, "type": value, "cost": value}
        step.usage(input_tokens=value, output_tokens=value)
        step.record(value)
        step.record({"choices": value, "usage": value, "model": value})
        step.record({"choices": [value], "usage": {"prompt_tokens": value}})
    assert captured.step("x").type == "llm"
    assert sw.stats().faults.keys() <= {"misuse", "read a generation", "read a response"}


@each_bad
def test_chunks_of_a_stream_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.llm("x", messages=[]) as step:
        (chunk,) = step.stream([value])
    assert chunk is value
    assert captured.step("x").status == "success"


@each_bad
def test_a_score_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.tool("x") as step:
        step.score(value, value, label=value, comment=value)
    sw.score(step.id, value, value, label=value, comment=value)
    step.score(value, value, label=value, comment=value)
    assert len(captured.fields("x")["scores"]) == 1
    assert len(captured.scores) == 2


@each_bad
def test_what_is_set_on_a_thread_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with sw.thread("t", metadata=value) as thread:
        thread.name = value
    with sw.thread("t", metadata={"v": value}) as thread:
        thread.metadata["w"] = value
        thread.tags.append(value)
    assert [found.id for found in captured.threads] == ["t"]


@each_bad
def test_the_content_of_a_message_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    with sw.thread("t"):
        sw.user_message(make(), metadata={"v": make()})
    assert "content" in captured.fields("user_message")["output"]


@each_bad
def test_the_reason_of_a_failure_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    with sw.tool("x") as step:
        step.fail(make())
    assert captured.step("x").status == "failed"


@each_bad
def test_an_exception_may_hold_anything(make: Callable[[], Any], captured: Captured) -> None:
    value = make()
    with pytest.raises(KeyError), sw.tool("x"):
        raise KeyError(value)
    assert captured.step("x").status == "failed"
    assert captured.fields("x")["error"]["type"] == "KeyError"


@each_bad
def test_an_attachment_may_be_anything(make: Callable[[], Any], captured: Captured) -> None:
    from stepwell.errors import UsageError

    value = make()
    with sw.tool("x") as step, contextlib.suppress(UsageError):
        step.attach(value)
    assert captured.step("x").status == "success"


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner),
        max_leaves=20,
    )
)
def test_any_value_comes_back_from_the_call_and_is_recorded(value: Any) -> None:
    with capture() as captured:
        assert sw.tool("x")(lambda v: v)(value) is value
    assert captured.fields("x").keys() >= {"input", "output"}


@given(st.text(), st.text(), st.lists(st.text(), max_size=3))
def test_any_text_can_be_a_name_a_thread_or_a_tag(name: str, thread: str, tags: list[str]) -> None:
    with capture() as captured, sw.thread(("t" + thread)[:200], name=name), sw.tool(name or None, tags=tags):
        pass
    (step,) = captured.steps
    assert step.thread_id == captured.threads[0].id
    assert len(step.tags or []) == len(tags)
