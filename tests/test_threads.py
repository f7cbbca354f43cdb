"""A thread is a conversation: the steps recorded inside its block belong to it."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from msgspec import UNSET

import stepwell as sw
from stepwell.errors import UsageError
from stepwell.model import ThreadRecord
from stepwell.testing import Captured, FakeClock, capture

PACKAGE = str(Path(sw.__file__).parent)


@pytest.fixture
def strict() -> Iterator[Captured]:
    with capture(strict=True) as captured:
        yield captured


def written(captured: Captured) -> list[ThreadRecord]:
    return [record for record in captured.records if isinstance(record, ThreadRecord)]


class Bot:
    @sw.thread("t")
    def method(self) -> str | None:
        return thread_id()

    @sw.thread("t")
    @classmethod
    def above_class(cls) -> str | None:
        return thread_id()

    @sw.thread("t")
    @staticmethod
    def above_static() -> str | None:
        return thread_id()


@sw.thread("t")
def chat(n: int) -> int:
    """Chat."""
    return n


def thread_id() -> str | None:
    thread = sw.current_thread()
    return thread and thread.id


def test_steps_in_the_block_belong_to_the_thread(captured: Captured) -> None:
    with sw.thread("t") as thread, sw.run("in"):
        assert sw.current_thread() is thread
    with sw.run("out"):
        assert sw.current_thread() is None
    assert [(step.name, step.thread_id) for step in captured.steps] == [("in", "t"), ("out", None)]


def test_a_thread_says_all_it_was_given() -> None:
    block = sw.thread("t", name="Tea", user="ada", tags=["a", "b"], metadata={"k": 1})
    with capture(environment="test") as captured, FakeClock(start_ns=7), block:
        pass
    (thread,) = captured.threads
    assert (thread.id, thread.name, thread.tags, thread.created_ns) == ("t", "Tea", ["a", "b"], 7)
    assert thread.user is not None
    assert (thread.user.identifier, thread.environment, bytes(thread.metadata)) == ("ada", "test", b'{"k":1}')  # type: ignore[arg-type]


def test_the_user_of_a_thread_is_on_its_steps(captured: Captured) -> None:
    with sw.thread("t", user="ada"), sw.run("x"):
        pass
    assert captured.step("x").user == "ada"


def test_an_async_block_is_a_thread_too(captured: Captured) -> None:
    async def main() -> None:
        async with sw.thread("t"):
            await asyncio.sleep(0)
            async with sw.run("x"):
                pass

    asyncio.run(main())
    assert captured.step("x").thread_id == "t"


def test_a_thread_without_an_id_gets_a_uuid_for_every_entry(captured: Captured) -> None:
    block = sw.thread()
    with block as first:
        pass
    with block as second:
        pass
    assert UUID(first.id).version == 7
    assert first.id != second.id


def test_a_decorated_function_runs_in_the_thread(captured: Captured) -> None:
    assert chat(3) == 3
    assert (chat.__name__, chat.__doc__, str(inspect.signature(chat))) == ("chat", "Chat.", "(n: 'int') -> 'int'")
    assert pickle.loads(pickle.dumps(chat)) is chat
    assert [thread.id for thread in captured.threads] == ["t"]


def test_a_decorated_coroutine_runs_in_the_thread(captured: Captured) -> None:
    @sw.thread("t")
    async def talk() -> str | None:
        await asyncio.sleep(0)
        return thread_id()

    assert inspect.iscoroutinefunction(talk)
    assert asyncio.run(talk()) == "t"


def test_a_decorated_async_callable_runs_in_the_thread(captured: Captured) -> None:
    class Talk:
        async def __call__(self) -> str | None:
            await asyncio.sleep(0)
            return thread_id()

    assert asyncio.run(sw.thread("t")(Talk())()) == "t"


@pytest.mark.parametrize("name", ["method", "above_class", "above_static"])
def test_methods_of_every_kind_run_in_the_thread(name: str, captured: Captured) -> None:
    assert getattr(Bot(), name)() == "t"


def test_a_decorator_without_an_id_opens_a_thread_for_every_call(captured: Captured) -> None:
    talk = sw.thread()(thread_id)
    assert talk() != talk()


def test_the_traceback_of_an_exception_has_no_frame_of_ours(captured: Captured) -> None:
    @sw.thread("t")
    def fails() -> None:
        raise ValueError("bad")

    @sw.thread("u")
    async def fails_later() -> None:
        fails()

    with pytest.raises(ValueError, match="bad") as raised:
        asyncio.run(fails_later())
    assert [
        f.filename for f in traceback.extract_tb(raised.value.__traceback__) if f.filename.startswith(PACKAGE)
    ] == []
    assert sw.current_thread() is None


def test_what_changed_in_the_block_is_written_when_it_is_left(captured: Captured) -> None:
    with sw.thread("t", tags=["a"], metadata={"k": 1}) as thread:
        thread.tags.append("b")
        thread.metadata["n"] = 2
        thread.name = "Tea"
    assert [(record.tags, record.name) for record in written(captured)] == [(["a"], None), (["a", "b"], "Tea")]
    (merged,) = captured.threads
    assert bytes(merged.metadata) == b'{"k":1,"n":2}'  # type: ignore[arg-type]


def test_what_did_not_change_is_written_once(captured: Captured) -> None:
    with sw.thread("t", tags=["a"]):
        pass
    assert len(written(captured)) == 1


def test_threads_do_not_share_tags_and_metadata(captured: Captured) -> None:
    tags, metadata = ["a"], {"k": 1}
    block = sw.thread("t", tags=tags, metadata=metadata)
    with block as thread:
        thread.tags.append("b")
        thread.metadata["n"] = 2
    with block as again:
        assert (again.tags, again.metadata) == (["a"], {"k": 1})
    assert (tags, metadata) == (["a"], {"k": 1})


def test_threads_nest_and_come_back(captured: Captured) -> None:
    with sw.thread("outer"):
        with sw.thread("inner"):
            assert thread_id() == "inner"
        assert thread_id() == "outer"
    assert thread_id() is None


def test_threads_may_be_left_out_of_order(captured: Captured) -> None:
    outer, inner = sw.thread("outer"), sw.thread("inner")
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert thread_id() == "inner"
    inner.__exit__(None, None, None)
    assert thread_id() is None


def test_a_task_that_outlives_the_block_it_began_in_stays_in_that_thread_and_step(captured: Captured) -> None:
    async def background(left: asyncio.Event) -> None:
        await left.wait()
        with sw.thread("another"):
            pass
        with sw.tool("after"):
            pass

    async def main() -> None:
        left = asyncio.Event()
        with sw.thread("t"), sw.run("r"):
            task = asyncio.create_task(background(left))
        left.set()
        await task

    asyncio.run(main())
    assert captured.step("after").thread_id == "t"
    assert captured.step("after").parent_id == captured.step("r").id


def test_tasks_in_the_same_block_at_once_leave_their_own_threads(captured: Captured) -> None:
    block = sw.thread()

    async def main() -> None:
        first_in, second_in, first_out = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with block as thread:
                first_in.set()
                await second_in.wait()
                thread.name = "first"
            assert thread_id() is None
            first_out.set()

        async def second() -> None:
            await first_in.wait()
            async with block as thread:
                second_in.set()
                await first_out.wait()
                assert thread_id() == thread.id
                thread.name = "second"

        await asyncio.gather(first(), second())

    asyncio.run(main())
    assert sorted(str(thread.name) for thread in captured.threads) == ["first", "second"]


# -- messages


def test_a_message_has_no_input_and_no_duration(captured: Captured) -> None:
    with FakeClock(start_ns=5, tick_ns=1), sw.thread("t"):
        step = sw.user_message("Hi", name="ada", tags=["a"], metadata={"k": 1})
    assert step.status == "success"
    fields = captured.fields("ada")
    assert (fields["type"], fields["output"], fields["thread_id"]) == ("user_message", {"content": "Hi"}, "t")
    assert (fields["tags"], fields["metadata"]) == (["a"], {"k": 1})
    assert fields["start_ns"] == fields["end_ns"]
    assert "input" not in fields


def test_every_kind_of_message_is_recorded_below_the_current_step(captured: Captured) -> None:
    with sw.thread("t"), sw.run("r"):
        sw.system_message("Be kind")
        sw.user_message("Hi")
        sw.assistant_message({"text": "Hello"})
        assert sw.current_step() is not None
    assert captured.tree() == [
        (
            "run",
            "r",
            "success",
            [
                ("system_message", "system_message", "success", []),
                ("user_message", "user_message", "success", []),
                ("assistant_message", "assistant_message", "success", []),
            ],
        )
    ]
    assert captured.fields("assistant_message")["output"] == {"content": {"text": "Hello"}}


def test_a_message_in_a_run_without_a_thread_is_no_mistake(captured: Captured, caplog: Any) -> None:
    with sw.run("r"):
        sw.user_message("Hi")
    assert captured.threads == []
    assert caplog.records == []


def test_a_message_outside_of_everything_gets_a_thread_and_a_warning(captured: Captured, caplog: Any) -> None:
    step = sw.user_message("Hi")
    (thread,) = captured.threads
    assert step.thread_id == thread.id
    assert captured.step("user_message").thread_id == thread.id
    (warning,) = caplog.records
    assert "a user_message was recorded outside of any thread or step" in warning.getMessage()
    assert "test_threads.py" in warning.getMessage()
    assert (sw.current_thread(), sw.current_step()) == (None, None)


def test_a_message_outside_of_everything_raises_when_strict(strict: Captured) -> None:
    with pytest.raises(UsageError, match="a user_message was recorded outside of any thread or step"):
        sw.user_message("Hi")
    assert strict.records == []


# -- wrong use


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: sw.thread(""), "thread id must be a string of 1 to 256 characters, got ''"),
    (lambda: sw.thread("x" * 257), "thread id must be a string of 1 to 256 characters, got 'xxx"),
    (lambda: sw.thread(5), "thread id must be a string of 1 to 256 characters, got 5"),  # type: ignore[arg-type]
    (lambda: sw.thread(user=""), "user must be a string of 1 to 256 characters, got ''"),
    (lambda: sw.thread(name=5), "the name of a thread must be a string, got 5"),  # type: ignore[arg-type]
    (lambda: sw.thread(tags="web"), "tags must be a list of strings, got 'web'"),
    (lambda: sw.thread(tags=[None]), "tags must be strings, got None in"),  # type: ignore[list-item]
    (lambda: sw.thread("t")(5), "only a function can be decorated, got 5"),  # type: ignore[type-var]
]


@pytest.mark.parametrize(("wrong", "message"), WRONG)
def test_what_is_wrong_raises_where_it_is_written(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        wrong()


def test_metadata_that_is_no_dict_is_left_out_and_named(captured: Captured, caplog: Any) -> None:
    with sw.thread("t", metadata=5):  # type: ignore[arg-type]
        pass
    assert captured.threads[0].metadata is UNSET
    assert "the metadata of a thread must be a dict, got 5" in caplog.records[0].getMessage()


def test_a_thread_given_wrong_tags_is_recorded_without_them(captured: Captured) -> None:
    with sw.thread("t") as thread:
        thread.tags = 5  # type: ignore[assignment]
    assert sw.stats().faults == {"misuse": 1}
    assert [(thread.id, thread.tags) for thread in captured.threads] == [("t", None)]
