"""An interrupt, or the end of the stack, amid recording: both are the program's, and the trace holds."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import stepwell as sw
from stepwell.testing import capture

# ---- a Ctrl-C, or the like, in the program's own code while a value is recorded


class Interrupting:
    """Raises, where its text is asked for, what is no `Exception`: to be passed on, see `stepwell._capture`, rule 4."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __repr__(self) -> str:
        raise self._error

    __str__ = __repr__


def argument(value: Any) -> None:
    sw.tool("here")(lambda argument: None)(value)


def result(value: Any) -> None:
    sw.tool("here")(lambda: value)()


def awaited_argument(value: Any) -> None:
    @sw.tool("here")
    async def work(argument: Any) -> None:
        pass

    with contextlib.closing(work(value)) as coroutine:
        coroutine.send(None)


def awaited_result(value: Any) -> None:
    @sw.tool("here")
    async def work() -> Any:
        return value

    with contextlib.closing(work()) as coroutine:
        coroutine.send(None)


def item(value: Any) -> None:
    @sw.tool("here")
    def work() -> Iterator[Any]:
        yield value

    list(work())


def text_of_an_error(value: Any) -> None:
    class HostileError(Exception):
        def __str__(self) -> str:
            return str(value)

    with sw.tool("here"):
        raise HostileError


def field(value: Any) -> None:
    with sw.tool("here") as step:
        step.output = value


def metadata(value: Any) -> None:
    with sw.tool("here") as step:
        step.metadata["value"] = value


def tags(value: Any) -> None:
    with sw.tool("here") as step:
        step.tags.append(value)


def option(value: Any) -> None:
    with sw.tool("here", input=value):
        pytest.fail("the block was entered")


def by_hand(value: Any) -> None:
    step = sw.start("tool", "here")
    step.metadata["value"] = value
    step.end()


def content(value: Any) -> None:
    sw.user_message(value, name="here")


def of_thread(value: Any) -> None:
    with sw.tool("here"), sw.thread("t", metadata={"value": value}):
        pytest.fail("the block was entered")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
@pytest.mark.parametrize(
    "place",
    [
        argument,
        result,
        awaited_argument,
        awaited_result,
        item,
        text_of_an_error,
        field,
        metadata,
        tags,
        option,
        by_hand,
        content,
        of_thread,
    ],
)
@pytest.mark.usefixtures("silence")
def test_an_interrupt_while_a_value_is_recorded_reaches_the_program_and_ends_the_step(
    place: Callable[[Any], None], error: type[BaseException]
) -> None:
    with capture() as captured:
        with sw.run("root") as root:
            with pytest.raises(error) as caught:
                place(Interrupting(error))
            assert type(caught.value) is error
            assert sw.current_step() is root
            with sw.tool("after", input={"a": 1}):
                pass
        steps = {step.name: step for step in captured.steps}
        assert sw.current_thread() is None
    assert (steps["after"].status, steps["after"].parent_id) == ("success", root.id)
    assert steps["here"].status in {"cancelled", "failed", "success"}
    assert (steps["here"].parent_id, steps["root"].status) == (root.id, "success")


def test_an_interrupt_while_metadata_is_recorded_costs_metadata_and_tags_only() -> None:
    with capture() as captured, contextlib.suppress(KeyboardInterrupt), sw.tool("here", input=1, tags=["a"]) as step:
        step.metadata["value"] = Interrupting(KeyboardInterrupt)
    fields = captured.fields("here")
    assert (fields["input"], fields["status"]) == (1, "success")
    assert fields.keys().isdisjoint({"metadata", "tags"})


@pytest.mark.usefixtures("silence")
def test_an_interrupt_where_nobody_can_catch_it_is_counted() -> None:
    with capture() as captured:

        @sw.tool
        def numbers() -> Any:
            return (number for number in range(3))

        with sw.llm("stream", messages=[1]) as step:
            chunks = step.stream([Interrupting(KeyboardInterrupt), 1])
            next(chunks)
            del chunks
        numbers()
        assert sw.stats().faults == {"read a stream": 1}
        assert captured.step("stream").status == "success"


# ---- the stack is full


def test_a_traced_function_that_runs_out_of_stack_raises_its_own_error_and_is_recorded() -> None:
    levels = 0
    seen: set[int] = set()

    @sw.tool("fallen once and for all")  # no name that has been encoded before: the innermost call is the first to
    def fall() -> None:
        nonlocal levels
        levels += 1
        try:
            fall()
        except RecursionError as error:
            seen.add(id(error))
            raise

    with capture() as captured:
        with sw.run("root") as root:
            with pytest.raises(RecursionError) as caught:
                fall()
            assert sw.current_step() is root
        ended = [
            step.status
            for step in captured.steps
            if step.name == "fallen once and for all" and step.status != "pending"
        ]
        assert captured.step("root").status == "success"
    assert seen == {id(caught.value)}
    assert caught.value.__context__ is None
    assert set(ended) == {"failed"}
    assert levels - 20 <= len(ended) <= levels  # the innermost had no room to begin


def test_a_call_near_the_end_of_the_stack_does_what_it_does_untraced() -> None:
    raised: list[ValueError] = []

    def fail() -> None:
        raised.append(ValueError("own"))
        raise raised[-1]

    def down(levels: int, function: Callable[[], Any]) -> Any:
        return down(levels - 1, function) if levels else function()

    fits = max(levels for levels in range(sys.getrecursionlimit()) if succeeds(lambda at=levels: down(at, str)))
    with capture() as captured, sw.run("root") as root:
        for levels in range(fits - 60, fits - 5):
            assert down(levels, sw.tool("leaf")(str)) == ""
            with pytest.raises(ValueError, match="own") as caught:
                down(levels, sw.tool("leaf")(fail))
            assert caught.value is raised[-1]
            assert (caught.value.__context__, caught.value.__cause__) == (None, None)
            assert sw.current_step() is root
        root.end()
        assert captured.step("root").status == "success"


def succeeds(function: Callable[[], object]) -> bool:
    try:
        function()
    except RecursionError:
        return False
    return True
