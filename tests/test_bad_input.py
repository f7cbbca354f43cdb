"""Whatever users hand over is recorded as valid JSON, their call goes on, and the steps beside it are whole."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

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


@pytest.mark.parametrize("type_", ["tol", 'a"b', 'tool"', 5, None, []])
def test_a_type_there_is_not_does_not_lose_the_step(type_: Any, captured: Captured) -> None:
    with contextlib.suppress(sw_errors.UsageError), sw.tool("x") as step:
        step.type = type_
    assert captured.step("x").status in {"success", "failed"}


@pytest.mark.usefixtures("untraced")
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


# ---- what is common in programs and bad for recorders


class Client:
    """As the client of a provider's library: it holds secrets, locks and connections, and its properties do work."""

    asked: int = 0

    def __init__(self) -> None:
        self.api_key = "a secret"
        self.lock = threading.Lock()
        self.me = self

    @property
    def models(self) -> Any:
        Client.asked += 1
        breakpoint()
        return None

    def __repr__(self) -> str:
        return "Client()"


def test_a_client_as_an_argument_is_told_by_type_and_repr_alone(captured: Captured) -> None:
    client = Client()
    sw.tool("ask")(lambda client: client)(client)
    told = {"$stepwell": "object", "type": f"{__name__}.Client", "repr": "Client()"}
    assert captured.fields("ask")["input"] == {"client": told}
    assert captured.fields("ask")["output"] == told
    assert Client.asked == 0


def test_input_changed_after_the_call_is_recorded_as_it_was(captured: Captured) -> None:
    messages = [{"role": "user", "content": "hi"}]

    @sw.llm
    def ask(messages: list[dict[str, str]]) -> list[dict[str, str]]:
        answer = list(messages)
        messages.append({"role": "assistant", "content": "hello"})
        messages[0]["content"] = "changed"
        return answer

    ask(messages).clear()
    asked = [{"role": "user", "content": "hi"}]
    assert captured.fields("ask")["input"] == {"messages": asked}
    assert captured.fields("ask")["generation"]["messages"] == asked
    assert captured.fields("ask")["output"] == [{"role": "user", "content": "changed"}]


def test_a_mock_is_recorded_and_does_not_notice(captured: Captured) -> None:
    mocks = [mock.MagicMock(name="m"), mock.Mock(spec=dict), mock.MagicMock(spec=str), mock.AsyncMock()]
    for fake in mocks:

        @sw.llm("ask", messages=["hi"])
        def ask(client: Any) -> Any:
            return client

        assert ask(fake) is fake
        with sw.llm("answer", messages=["hi"], metadata={"m": fake}) as step:
            step.record(fake)
            assert list(step.stream([fake])) == [fake]
            step.usage(input_tokens=fake)
            step.score("s", 1, comment=fake)
        assert fake.mock_calls == []
        assert fake._mock_children == {}
    assert [step.status for step in captured.steps] == ["success"] * 9
    outputs = [json.loads(bytes(step.output))["$stepwell"] for step in captured.steps if step.name == "ask"]  # type: ignore[arg-type]
    assert outputs == ["object"] * 4


def test_what_is_given_as_options_is_neither_changed_nor_shared(captured: Captured) -> None:
    metadata: dict[str, Any] = {"a": 1}
    tags = ["a"]
    for number in range(2):
        with sw.tool("x", metadata=metadata, tags=tags) as step, sw.thread("t", metadata=metadata, tags=tags) as thread:
            assert (step.metadata, step.tags) == ({"a": 1}, ["a"])
            assert (thread.metadata, thread.tags) == ({"a": 1}, ["a"])
            for owner in (step, thread):
                owner.metadata["b"] = number
                owner.tags.append("b")
        sw.user_message("hi", metadata=metadata, tags=tags).metadata["c"] = 1
    assert (metadata, tags) == ({"a": 1}, ["a"])


def test_what_one_step_has_does_not_leak_into_the_next(captured: Captured) -> None:
    with sw.tool("first") as step:
        step.tags.append("t")
        step.metadata["m"] = 1
        step.attach(b"a")
        step.score("s", 1)
        step.usage(input_tokens=1)
    with sw.tool("second") as step:
        step.tags, step.metadata = step.tags, step.metadata
    kinds = {"tags", "metadata", "attachments", "scores", "generation"}
    assert kinds <= captured.fields("first").keys()
    assert kinds.isdisjoint(captured.fields("second"))


def test_base64_where_a_path_belongs_is_told_and_not_kept(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    with sw.tool("x") as step:
        step.attach("iVBORw0KGgo" * 100_000)
    (attachment,) = captured.fields("x")["attachments"]
    reason = "no path is as long as that; base64 is attached decoded, or as a data: URL"
    assert attachment.keys() == {"id", "metadata"}
    assert attachment["metadata"] == {"$stepwell": "not_stored", "reason": reason}
    assert max(len(record.getMessage()) for record in caplog.records) < 1000


def test_a_defaultdict_does_not_grow(captured: Captured) -> None:
    found: collections.defaultdict[str, list[int]] = collections.defaultdict(list, a=[1])
    with sw.llm("x", messages=found, metadata=found) as step:
        step.generation = found
        step.record(found)
        step.usage(**found)  # type: ignore[arg-type]
    assert dict(found) == {"a": [1]}
    assert captured.fields("x")["generation"]["messages"] == {"a": [1]}


def test_generators_and_coroutines_are_neither_consumed_nor_awaited(captured: Captured) -> None:
    async def work() -> int:
        return 5

    numbers, coroutine = (number for number in range(3)), work()
    with sw.llm("x", messages=numbers, prompt=coroutine, metadata={"n": numbers, "c": coroutine}) as step:
        step.record(coroutine)
        step.tags.append(coroutine)  # type: ignore[arg-type]
        step.score("s", numbers, comment=coroutine)  # type: ignore[arg-type]
    assert list(numbers) == [0, 1, 2]
    assert asyncio.run(coroutine) == 5
    assert captured.fields("x")["generation"]["prompt"]["type"] == "coroutine"


def test_a_class_that_can_not_be_hashed_is_returned_as_any_other(captured: Captured) -> None:
    class Compared(type):
        def __eq__(cls, other: object) -> bool:
            raise RuntimeError

    value = Compared("Odd", (), {})()
    assert sw.tool("x")(lambda: value)() is value
    assert captured.step("x").status == "success"


def test_token_counts_too_large_to_be_added_up_do_not_lose_the_step(tmp_path: Path) -> None:
    with capture(export=f"sqlite:{tmp_path / 'a.db'}"):
        with sw.llm("x", messages=[1]) as step:
            step.usage(input_tokens=2**63 - 1, output_tokens=2**63 - 1, cached_input_tokens=2**63)
            step.usage(reasoning_tokens=2**53)
        assert sw.flush(30)
        (ledger,) = sw.stats().exporters.values()
        assert (ledger.delivered, ledger.rejected) == (1, {})


def test_a_long_name_is_cut_and_not_remembered(captured: Captured) -> None:
    names = [f"{number}{'x' * 1_000_000}" for number in range(3)]
    held = [sys.getrefcount(name) for name in names]
    for name in names:
        with sw.llm(name, model=name, messages=[]):
            pass
        with sw.tool("renamed") as step:
            step.update_name(name)
    found = [step.name or "" for step in captured.steps[1:]]
    assert {(name[1:3], name[-25:]) for name in found} == {("xx", "x... [1000001 characters]")}
    assert max(map(len, found)) < 1100
    del step, name
    assert [sys.getrefcount(name) for name in names] == held


def test_an_error_of_a_handler_of_the_program_s_logs_stays_inside(captured: Captured) -> None:
    class Loud(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("filter")

    filter_, log = Loud(), logging.getLogger("stepwell")
    log.addFilter(filter_)
    try:
        with sw.llm("x", messages=[]) as step:
            step.usage(input_tokens=-1)
            step.set_attributes(5)  # type: ignore[arg-type]
    finally:
        log.removeFilter(filter_)
    assert captured.step("x").status == "success"


def test_steps_that_can_not_be_announced_do_not_keep_others_from_it(captured: Captured) -> None:
    class Quitting:
        def __repr__(self) -> str:
            if threading.current_thread().name == "stepwell-keeper":
                raise SystemExit
            return "fine"

    with sw.tool("mistyped") as mistyped, sw.tool("quitting") as quitting, sw.tool("good"):
        mistyped.type = "none such"
        quitting.metadata["value"] = Quitting()
        deadline = time.monotonic() + 20
        while "good" not in (names := [step.name for step in captured.steps][1:]) and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert names == ["good"]
    assert captured.step("mistyped").type == "undefined"
    assert captured.fields("quitting")["metadata"]["value"]["repr"] == "fine"
    assert sw.stats().faults == {"announce a step": 2, "misuse": 1}


# ---- errors

Depth = Callable[[int], BaseException]


def group(depth: int) -> BaseException:
    found: Exception = ValueError("innermost")
    for _ in range(depth):
        found = ExceptionGroup("group", [found])
    return found


def chain(depth: int) -> BaseException:
    found = ValueError("innermost")
    for _ in range(depth):
        outer = ValueError("outer")
        outer.__context__ = found
        found = outer
    return found


def wide(width: int) -> BaseException:
    return ExceptionGroup("group", [ValueError("member") for _ in range(width)])


@pytest.mark.parametrize("make", [group, chain, wide])
def test_a_large_family_of_errors_is_told_by_the_frames_of_its_head(make: Depth, captured: Captured) -> None:
    error = make(1000)
    context = error.__context__
    with pytest.raises(type(error)) as caught, sw.tool("x"):
        raise error
    assert caught.value is error
    assert error.__context__ is context
    frames = captured.fields("x")["error"]["traceback"]
    assert "in test_a_large_family_of_errors_is_told_by_the_frames_of_its_head" in frames
    assert len(frames) < 2000
    small = make(3)
    with pytest.raises(type(error)), sw.tool("y"):
        raise small
    assert "innermost" in (told := captured.fields("y")["error"]["traceback"]) or "member" in told


def test_an_error_of_ten_megabytes_keeps_its_frames_and_the_head_of_its_text(captured: Captured) -> None:
    with pytest.raises(ValueError), sw.tool("x"):
        raise ValueError("x" * 10_000_000)
    error = captured.fields("x")["error"]
    assert error["message"].startswith("xxx")
    assert error["message"].endswith("... [10000000 characters]")
    assert "in test_an_error_of_ten_megabytes_keeps_its_frames_and_the_head_of_its_text" in error["traceback"]
    assert len(error["traceback"]) < 2000


@pytest.mark.parametrize(
    "error", [StopIteration(1), StopAsyncIteration(), MemoryError(), RecursionError("own"), KeyError(Loud())]
)
def test_errors_of_the_language_pass_a_decorated_call_as_they_are(error: Exception, captured: Captured) -> None:
    @sw.tool
    def work() -> None:
        raise error

    found: list[BaseException] = []
    try:
        work()
    except BaseException as raised:
        found.append(raised)
    assert found[0] is error
    assert (error.__context__, error.__cause__) == (None, None)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)][1:] == ["work"]
    assert captured.step("work").status == "failed"
    assert captured.fields("work")["error"]["type"] == type(error).__name__


# ---- the cost is that of what is kept


def cost(work: Callable[[Any], object], value: Any) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.thread_time()
        work(value)
        best = min(best, time.thread_time() - began)
    return best


def record_argument(value: Any) -> None:
    sw.tool("x")(lambda value: None)(value)


def record_metadata(value: Any) -> None:
    with sw.tool("x") as step:
        step.metadata["value"] = value


def record_wrong_values(value: Any) -> None:
    with sw.llm("x", messages=[]) as step:
        step.usage(input_tokens=value)
        step.score("s", value)
        step.generation = {"ttft_ns": value}
        step.end(value)


# Both sizes are beyond the limit of a field, so that both are cut.
SIZES: dict[str, tuple[Callable[[int], Any], int, int]] = {
    "str": (lambda count: "x" * count, 5_000_000, 200_000_000),
    "bytes": (lambda count: b"x" * count, 5_000_000, 200_000_000),
    "list of int": (lambda count: [7] * count, 2_500_000, 25_000_000),
    "list of dict": (lambda count: [{"a": 1}] * count, 1_000_000, 10_000_000),
    "dict": (lambda count: dict.fromkeys(range(count)), 400_000, 4_000_000),
    "set": (lambda count: set(range(count)), 400_000, 4_000_000),
    "proxy of a dict": (lambda count: MappingProxyType(dict.fromkeys(range(count))), 400_000, 4_000_000),
}


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("record", [record_argument, record_metadata, record_wrong_values])
@pytest.mark.parametrize(("make", "small", "large"), SIZES.values(), ids=SIZES)
def test_a_value_many_times_as_large_costs_no_more_than_a_few_times(
    make: Callable[[int], Any], small: int, large: int, record: Callable[[Any], None]
) -> None:
    with capture():
        cost_of_small = cost(record, make(small))
        assert cost(record, make(large)) < 4 * cost_of_small + 0.1
