"""Nesting is right in every kind of task, thread and callback that Python's own context reaches, without any help."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

import stepwell as sw
from stepwell.testing import Captured

pytestmark = pytest.mark.usefixtures("quiet")

Branch = Callable[[int], Awaitable[None]]
Spawn = Callable[[Branch, int], Awaitable[object]]
ORDERS = list(itertools.permutations(range(3)))
WAIT_S = 30


# -- tasks


async def with_gather(branch: Branch, count: int) -> None:
    await asyncio.gather(*(branch(n) for n in range(count)))


async def with_task_group(branch: Branch, count: int) -> None:
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(branch(n))


async def with_create_task(branch: Branch, count: int) -> None:
    tasks = [asyncio.create_task(branch(n)) for n in range(count)]
    for task in tasks:
        await task


async def with_anyio(branch: Branch, count: int) -> None:
    async with anyio.create_task_group() as group:
        for n in range(count):
            group.start_soon(branch, n)


async def with_nursery(branch: Branch, count: int) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(count):
            nursery.start_soon(branch, n)


def in_asyncio(main: Callable[[], Awaitable[Any]]) -> None:
    anyio.run(in_time, main, backend="asyncio")


def in_trio(main: Callable[[], Awaitable[Any]]) -> None:
    anyio.run(in_time, main, backend="trio")


async def in_time(main: Callable[[], Awaitable[Any]]) -> None:
    with anyio.fail_after(WAIT_S):
        await main()


Run = Callable[[Callable[[], Awaitable[Any]]], None]
TASKS = [
    pytest.param(in_asyncio, with_gather, id="gather"),
    pytest.param(in_asyncio, with_task_group, id="TaskGroup"),
    pytest.param(in_asyncio, with_create_task, id="create_task"),
    pytest.param(in_asyncio, with_anyio, id="anyio-asyncio"),
    pytest.param(in_trio, with_anyio, id="anyio-trio"),
    pytest.param(in_trio, with_nursery, id="nursery"),
]
LOOPS = [pytest.param(in_asyncio, id="asyncio"), pytest.param(in_trio, id="trio")]


def parents(captured: Captured) -> dict[str | None, str | None]:
    """The name of each step, and the name of the step it stands under."""
    names = {step.id: step.name for step in captured.steps}
    assert len(names) == len(captured.steps), "a step was recorded twice"
    return {step.name: names[step.parent_id] if step.parent_id else None for step in captured.steps}


BRANCHES = {
    "agent": None,
    **{f"branch {n}": "agent" for n in range(3)},
    **{f"first {n}": f"branch {n}" for n in range(3)},
    **{f"last {n}": f"branch {n}" for n in range(3)},
}


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("run", "spawn"), TASKS)
def test_tasks_nest_under_the_step_that_started_them_in_whatever_order_they_end(
    run: Run, spawn: Spawn, order: Sequence[int], captured: Captured
) -> None:
    async def main() -> None:
        opened = [anyio.Event() for _ in order]
        turns = [anyio.Event() for _ in order]

        async def branch(n: int) -> None:
            assert sw.current_step() is agent
            async with sw.tool(f"branch {n}") as step:
                opened[n].set()
                for event in opened:  # all are open at once
                    await event.wait()
                with sw.retrieval(f"first {n}"):
                    await anyio.lowlevel.checkpoint()
                if order.index(n):
                    await turns[n].wait()
                with sw.embedding(f"last {n}"):
                    await anyio.lowlevel.checkpoint()
                assert sw.current_step() is step
            assert sw.current_step() is agent
            if order.index(n) < len(order) - 1:
                turns[order[order.index(n) + 1]].set()

        async with sw.run("agent") as agent:
            await spawn(branch, len(order))
            assert sw.current_step() is agent
        assert sw.current_step() is None

    run(main)
    assert parents(captured) == BRANCHES
    ended = sorted((step.end_ns or 0, step.name) for step in captured.steps if (step.name or "").startswith("branch"))
    assert [name for _, name in ended] == [f"branch {n}" for n in order]


@pytest.mark.parametrize(("run", "spawn"), TASKS)
def test_decorated_coroutines_nest_each_under_its_own_task(run: Run, spawn: Spawn, captured: Captured) -> None:
    @sw.embedding
    async def leaf(n: int) -> int:
        await anyio.lowlevel.checkpoint()
        return n

    @sw.tool
    async def branch(n: int) -> None:
        for i in range(3):
            assert await leaf(10 * n + i) == 10 * n + i

    @sw.run
    async def agent() -> None:
        await spawn(branch, 5)

    run(agent)
    under = {step.id: step.fields["n"] for step in map(Inputs, captured.steps) if step.name == "branch"}
    leaves = [(under[step.parent_id], step.fields["n"]) for step in map(Inputs, captured.steps) if step.name == "leaf"]
    assert sorted(leaves) == [(n, 10 * n + i) for n in range(5) for i in range(3)]


class Inputs:
    """A recorded step with its input decoded."""

    def __init__(self, step: Any) -> None:
        from stepwell.model import decode_payload

        self.id, self.parent_id, self.name = step.id, step.parent_id, step.name
        self.fields: Any = decode_payload(step.input) if step.input else {}


@pytest.mark.parametrize(("run", "spawn"), TASKS)
def test_threads_of_the_application_stay_with_their_tasks(run: Run, spawn: Spawn, captured: Captured) -> None:
    async def branch(n: int) -> None:
        async with sw.thread(f"t{n}", user=f"u{n}"):
            await anyio.lowlevel.checkpoint()
            async with sw.run(f"run {n}"):
                await anyio.lowlevel.checkpoint()
                with sw.tool(f"tool {n}"):
                    pass
        assert sw.current_thread() is None

    async def main() -> None:
        await spawn(branch, 3)

    run(main)
    found = {(step.name, step.thread_id, step.user) for step in captured.steps}
    assert found == {(f"{kind} {n}", f"t{n}", f"u{n}") for kind in ("run", "tool") for n in range(3)}


@pytest.mark.parametrize(("run", "spawn"), TASKS)
def test_a_task_that_outlives_its_step_is_recorded_under_it(run: Run, spawn: Spawn, captured: Captured) -> None:
    async def main() -> None:
        left = anyio.Event()

        async def late(n: int) -> None:
            await left.wait()
            with sw.tool("late"):
                pass

        async def start_and_leave(_: int) -> None:
            async with sw.run("agent"):
                background.start_soon(late, 0)
            assert sw.current_step() is None
            left.set()

        async with anyio.create_task_group() as background:
            await spawn(start_and_leave, 1)
            with sw.run("other"):
                await left.wait()

    run(main)
    # A task group's task starts in the context of who calls `start_soon`, wherever the group was opened.
    assert parents(captured) == {"agent": None, "late": "agent", "other": None}


@pytest.mark.parametrize(("run", "spawn"), TASKS)
def test_a_failing_task_takes_its_siblings_down_each_with_its_own_outcome(
    run: Run, spawn: Spawn, captured: Captured
) -> None:
    async def main() -> None:
        opened = anyio.Event()

        async def branch(n: int) -> None:
            with sw.tool(f"branch {n}"):
                if n == 0:
                    await opened.wait()
                    raise ValueError("bad")
                opened.set()
                if spawn in (with_gather, with_create_task):
                    return  # these leave the siblings running
                await anyio.sleep_forever()

        with sw.run("agent"):
            await spawn(branch, 2)

    with pytest.raises((ValueError, ExceptionGroup)):
        run(main)
    sibling = "success" if spawn in (with_gather, with_create_task) else "cancelled"
    found = {step.name: step.status for step in captured.steps}
    assert found == {"agent": "failed", "branch 0": "failed", "branch 1": sibling}
    assert parents(captured) == {"agent": None, "branch 0": "agent", "branch 1": "agent"}


# -- worker threads of event loops


async def asyncio_to_thread(function: Callable[[], object]) -> None:
    await asyncio.to_thread(function)


async def anyio_to_thread(function: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(function)


async def trio_to_thread(function: Callable[[], object]) -> None:
    await trio.to_thread.run_sync(function)


TO_THREAD = [
    pytest.param(in_asyncio, asyncio_to_thread, id="asyncio"),
    pytest.param(in_asyncio, anyio_to_thread, id="anyio-asyncio"),
    pytest.param(in_trio, anyio_to_thread, id="anyio-trio"),
    pytest.param(in_trio, trio_to_thread, id="trio"),
]
ToThread = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(("run", "to_thread"), TO_THREAD)
def test_functions_in_worker_threads_nest_in_whatever_order_they_end(
    run: Run, to_thread: ToThread, order: Sequence[int], captured: Captured
) -> None:
    opened = threading.Barrier(len(order))
    turns = [threading.Event() for _ in order]

    def branch(n: int) -> None:
        assert sw.current_step() is agent
        with sw.tool(f"branch {n}") as step:
            opened.wait(WAIT_S)
            with sw.retrieval(f"first {n}"):
                pass
            assert order.index(n) == 0 or turns[n].wait(WAIT_S)
            with sw.embedding(f"last {n}"):
                pass
            assert sw.current_step() is step
        if order.index(n) < len(order) - 1:
            turns[order[order.index(n) + 1]].set()

    async def main() -> None:
        nonlocal agent
        async with sw.run("agent") as agent, anyio.create_task_group() as group:
            for n in range(len(order)):
                group.start_soon(to_thread, functools.partial(branch, n))
        # The same worker threads serve who is in no step.
        await to_thread(outside)

    def outside() -> None:
        assert sw.current_step() is None
        with sw.run("outside"):
            pass

    agent: sw.Step | None = None
    run(main)
    assert parents(captured) == {**BRANCHES, "outside": None}


@pytest.mark.parametrize("run", LOOPS)
def test_a_worker_thread_that_calls_back_into_the_loop_takes_its_step_along(run: Run, captured: Captured) -> None:
    async def in_the_loop() -> None:
        with sw.embedding("in the loop"):
            await anyio.lowlevel.checkpoint()

    def in_a_thread() -> None:
        with sw.tool("in a thread"):
            anyio.from_thread.run(in_the_loop)

    async def main() -> None:
        with sw.run("agent"):
            await anyio.to_thread.run_sync(in_a_thread)

    run(main)
    assert parents(captured) == {"agent": None, "in a thread": "agent", "in the loop": "in a thread"}


# -- steps that end elsewhere than they began


@pytest.mark.parametrize("run", LOOPS)
def test_a_step_begun_in_one_task_and_ended_in_another_disturbs_neither(run: Run, captured: Captured) -> None:
    async def main() -> None:
        begun, ended = anyio.Event(), anyio.Event()
        handed: list[sw.Step] = []

        async def begins() -> None:
            with sw.tool("begins"):
                handed.append(sw.start("tool", "handed"))
                begun.set()
                await ended.wait()
            assert sw.current_step() is agent

        async def ends() -> None:
            with sw.tool("ends") as step:
                await begun.wait()
                handed[0].end()
                assert sw.current_step() is step
                with sw.retrieval("after"):
                    pass
                ended.set()
            assert sw.current_step() is agent

        with sw.run("agent") as agent:
            async with anyio.create_task_group() as group:
                group.start_soon(begins)
                group.start_soon(ends)
            assert sw.current_step() is agent

    run(main)
    assert parents(captured) == {
        "agent": None,
        "begins": "agent",
        "handed": "begins",
        "ends": "agent",
        "after": "ends",
    }


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_steps_that_end_in_any_order_leave_nothing_current(order: Sequence[int], captured: Captured) -> None:
    with sw.run("agent") as agent:
        steps = [sw.start("tool", f"step {n}") for n in range(3)]
        for n in order:
            steps[n].end()
            with sw.retrieval(f"after {n}"):
                pass
        assert sw.current_step() is agent
    # What is opened stands under the step below the outermost that has ended: those above that one were inside of it.
    under = {n: min(order[: i + 1]) - 1 for i, n in enumerate(order)}
    name = {-1: "agent", 0: "step 0", 1: "step 1"}
    assert parents(captured) == {
        "agent": None,
        "step 0": "agent",
        "step 1": "step 0",
        "step 2": "step 1",
        **{f"after {n}": name[under[n]] for n in order},
    }


@pytest.mark.parametrize("run", LOOPS)
def test_a_decorated_async_generator_closed_in_another_task_leaves_both_where_they_were(
    run: Run, captured: Captured
) -> None:
    @sw.tool
    async def source() -> AsyncIterator[int]:
        for n in itertools.count():
            with sw.embedding(f"item {n}"):
                await anyio.lowlevel.checkpoint()
            yield n

    async def main() -> None:
        started, closed = anyio.Event(), anyio.Event()
        handed: list[Any] = []

        async def reads() -> None:
            with sw.run("reads") as step:
                items = source()
                handed.append(items)
                assert [await anext(items), await anext(items)] == [0, 1]
                assert sw.current_step() is step
                started.set()
                await closed.wait()
                with sw.retrieval("goes on"):
                    pass

        async def closes() -> None:
            with sw.run("closes") as step:
                await started.wait()
                async with aclosing(handed[0]):
                    pass
                assert sw.current_step() is step
                closed.set()

        async with anyio.create_task_group() as group:
            group.start_soon(reads)
            group.start_soon(closes)

    run(main)
    assert parents(captured) == {
        "reads": None,
        "source": "reads",
        "item 0": "source",
        "item 1": "source",
        "goes on": "reads",
        "closes": None,
    }
    assert captured.step("source").status == "cancelled"


@pytest.mark.parametrize("run", LOOPS)
def test_a_cancel_scope_around_an_async_generator_ends_its_steps_as_cancelled(run: Run, captured: Captured) -> None:
    @sw.tool
    async def source() -> AsyncIterator[int]:
        yield 1
        with sw.embedding("waits"):
            await anyio.sleep_forever()
        yield 2

    async def main() -> None:
        with sw.run("agent") as agent:
            with anyio.CancelScope() as scope:
                async with aclosing(source()) as items:
                    async for _ in items:
                        assert sw.current_step() is agent
                        scope.cancel()
            assert scope.cancelled_caught
            assert sw.current_step() is agent
            with sw.retrieval("goes on"):
                pass

    run(main)
    assert parents(captured) == {"agent": None, "source": "agent", "waits": "source", "goes on": "agent"}
    statuses = {step.name: step.status for step in captured.steps}
    assert statuses == {"agent": "success", "source": "cancelled", "waits": "cancelled", "goes on": "success"}


@pytest.mark.parametrize("run", LOOPS)
def test_a_block_in_an_async_generator_that_another_task_closes_does_not_disturb_that_task(
    run: Run, captured: Captured
) -> None:
    async def source() -> AsyncIterator[int]:
        with sw.extract({"traceparent": f"00-{5:032x}-{6:016x}-01"}), sw.thread("inside"), sw.tool("source"):
            yield 1
            yield 2

    async def main() -> None:
        started, closed = anyio.Event(), anyio.Event()
        handed: list[Any] = []

        async def reads() -> None:
            items = source()
            handed.append(items)
            await anext(items)
            started.set()
            await closed.wait()

        async def closes() -> None:
            with sw.thread("closing"), sw.run("closes") as step:
                await started.wait()
                await handed[0].aclose()
                assert sw.current_step() is step
                with sw.retrieval("goes on"):
                    pass
            closed.set()

        async with anyio.create_task_group() as group:
            group.start_soon(reads)
            group.start_soon(closes)

    run(main)
    goes_on, closes = captured.step("goes on"), captured.step("closes")
    assert (goes_on.parent_id, goes_on.thread_id, goes_on.trace_id) == (closes.id, "closing", closes.trace_id)
    source_step = captured.step("source")
    assert (source_step.trace_id, source_step.thread_id, source_step.status) == (f"{5:032x}", "inside", "cancelled")


def test_an_async_generator_that_the_collector_closes_disturbs_nobody(captured: Captured) -> None:
    @sw.tool
    async def source() -> AsyncIterator[int]:
        with sw.embedding("inside"):
            yield 1

    async def main() -> None:
        with sw.run("agent"):
            async for _ in source():
                break  # asyncio closes it in a task of its own
            with sw.retrieval("goes on"):
                await asyncio.sleep(0)
        await asyncio.get_running_loop().shutdown_asyncgens()

    asyncio.run(main())
    assert parents(captured) == {"agent": None, "source": "agent", "inside": "source", "goes on": "agent"}
    assert captured.step("source").status == "cancelled"


def test_blocks_of_extract_left_in_another_order_than_entered_leave_nothing_behind(captured: Captured) -> None:
    first = sw.extract({"traceparent": f"00-{1:032x}-{1:016x}-01"})
    second = sw.extract({"traceparent": f"00-{2:032x}-{2:016x}-01"})
    with sw.run("agent") as agent:
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert sw.current_step() is agent
        second.__exit__(None, None, None)
        assert sw.current_step() is agent


def test_a_bound_coroutine_that_is_closed_elsewhere_disturbs_nobody(captured: Captured) -> None:
    async def waits() -> None:
        with sw.tool("waits"):
            await asyncio.get_running_loop().create_future()

    async def main() -> None:
        with sw.run("bound"):
            bound = sw.bind(waits)
        coroutine: Any = bound()
        contextvars.copy_context().run(coroutine.send, None)
        with sw.run("closes") as step:
            coroutine.close()
            assert sw.current_step() is step

    asyncio.run(main())
    assert parents(captured) == {"bound": None, "waits": "bound", "closes": None}


@pytest.mark.parametrize("is_async", [False, True])
def test_all_of_a_bound_generator_runs_where_it_was_bound(is_async: bool, captured: Captured) -> None:
    def items() -> Any:
        got = []
        for n in range(2):
            with sw.tool(f"item {n}"):
                pass
            got.append((yield n))
        return got

    async def items_async() -> AsyncIterator[int]:
        for n in range(2):
            async with sw.tool(f"item {n}"):
                await asyncio.sleep(0)
            yield n

    with sw.run("bound"):
        bound, bound_async = sw.bind(items), sw.bind(items_async)

    async def read_async() -> None:
        async for n in bound_async():
            with sw.embedding(f"read {n}"):
                await asyncio.sleep(0)

    def read() -> None:
        generator = bound()
        n = next(generator)
        with sw.embedding(f"read {n}"):
            pass
        n = generator.send("sent")
        with sw.embedding(f"read {n}"):
            pass
        with pytest.raises(StopIteration) as stopped:
            generator.send("last")
        assert stopped.value.value == ["sent", "last"]

    with sw.run("reads"):
        asyncio.run(read_async()) if is_async else read()
    items_under = {f"item {n}": "bound" for n in range(2)}
    assert parents(captured) == {"bound": None, "reads": None, **items_under, "read 0": "reads", "read 1": "reads"}


# -- callbacks, loops and contexts


def test_callbacks_of_the_loop_run_in_the_step_that_scheduled_them(captured: Captured) -> None:
    def callback(name: str, done: asyncio.Event) -> None:
        with sw.tool(name):
            done.set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        soon, later, at, threadsafe = (asyncio.Event() for _ in range(4))
        with sw.run("agent"):
            loop.call_soon(callback, "soon", soon)
            loop.call_later(0.001, callback, "later", later)
            loop.call_at(loop.time(), callback, "at", at)
            await asyncio.to_thread(loop.call_soon_threadsafe, callback, "threadsafe", threadsafe)
        with sw.run("other"):
            for event in (soon, later, at, threadsafe):
                await event.wait()

    asyncio.run(main())
    called = dict.fromkeys(["soon", "later", "at", "threadsafe"], "agent")
    assert parents(captured) == {"agent": None, "other": None, **called}


def test_a_copied_context_keeps_the_step_it_was_copied_in(captured: Captured) -> None:
    def work(name: str) -> None:
        sw.start("tool", name)  # left open: the copy it is current in is all that it changes

    with sw.run("agent") as agent:
        context = contextvars.copy_context()
        context.run(work, "first")
        assert sw.current_step() is agent
    with sw.run("other") as other:
        thread = threading.Thread(target=context.run, args=(work, "second"))
        thread.start()
        thread.join(WAIT_S)
        assert sw.current_step() is other
    steps: list[Any] = [sw.current_step(), context.run(sw.current_step)]
    assert (steps[0], steps[1].name, steps[1].enclosing.name) == (None, "second", "first")
    steps[1].end()
    steps[1].enclosing.end()
    assert parents(captured) == {"agent": None, "first": "agent", "second": "first", "other": None}


def test_a_runner_keeps_its_steps_between_runs_to_itself(captured: Captured) -> None:
    async def work(name: str) -> None:
        with sw.tool(name):
            await asyncio.sleep(0)

    with sw.run("agent"):
        runner = asyncio.Runner()
        with runner:
            runner.run(work("first"))
            with sw.run("inner"):
                runner.run(work("second"))  # in the context that the runner took when it began
                runner.run(work("third"), context=contextvars.copy_context())
    assert parents(captured) == {"agent": None, "first": "agent", "second": "agent", "inner": "agent", "third": "inner"}


def test_event_loops_in_threads_nest_under_what_their_thread_was_bound_to(captured: Captured) -> None:
    async def leaf(name: str) -> None:
        with sw.embedding(name):
            await asyncio.sleep(0)

    async def main(n: int) -> None:
        with sw.tool(f"loop {n}"):
            await asyncio.gather(leaf(f"{n} a"), leaf(f"{n} b"))

    async def outer() -> None:
        with sw.run("agent"):
            threads = [threading.Thread(target=sw.bind(lambda n=n: asyncio.run(main(n)))) for n in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                await asyncio.to_thread(thread.join, WAIT_S)
        alone = threading.Thread(target=lambda: asyncio.run(main(9)))  # Python gives a thread no context
        alone.start()
        await asyncio.to_thread(alone.join, WAIT_S)

    asyncio.run(outer())
    loops = {"loop 0": "agent", "loop 1": "agent", "loop 9": None}
    leaves = {f"{n} {leaf}": f"loop {n}" for n in (0, 1, 9) for leaf in "ab"}
    assert parents(captured) == {"agent": None, **loops, **leaves}


def test_an_executor_of_the_loop_carries_only_what_is_bound(captured: Captured) -> None:
    def work(name: str) -> None:
        with sw.tool(name):
            pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with sw.run("agent") as agent:
            await loop.run_in_executor(None, work, "plain")  # Python copies no context here
            await loop.run_in_executor(None, sw.bind(work), "bound")
            await loop.run_in_executor(None, functools.partial(sw.bind(work), "partial"))
            assert sw.current_step() is agent
        await loop.run_in_executor(None, work, "after")

    asyncio.run(main())
    assert parents(captured) == {"agent": None, "plain": None, "bound": "agent", "partial": "agent", "after": None}


def test_callbacks_of_futures_run_where_they_were_bound(captured: Captured) -> None:
    gate, done = threading.Event(), threading.Semaphore(0)

    def told(name: str, _: Future[bool]) -> None:
        with sw.tool(name):
            done.release()

    with ThreadPoolExecutor(1) as pool:
        with sw.run("agent"):
            future = pool.submit(gate.wait, WAIT_S)
            future.add_done_callback(sw.bind(functools.partial(told, "bound")))
            future.add_done_callback(functools.partial(told, "plain"))  # called by the worker, which is in no step
        with sw.run("other"):
            gate.set()
            assert all(done.acquire(timeout=WAIT_S) for _ in range(2))
    assert parents(captured) == {"agent": None, "bound": "agent", "plain": None, "other": None}


def test_work_handed_over_by_a_queue_runs_where_it_was_bound(captured: Captured) -> None:
    work: queue.Queue[Callable[[], object] | None] = queue.Queue()

    def worker() -> None:
        for job in iter(work.get, None):
            job()
            assert sw.current_step() is None

    def job(name: str) -> None:
        with sw.tool(name):
            pass

    thread = threading.Thread(target=worker)
    thread.start()
    for n in range(3):
        with sw.thread(f"t{n}"), sw.run(f"request {n}"):
            work.put(functools.partial(sw.bind(job), f"job {n}"))
    work.put(functools.partial(job, "plain"))
    work.put(None)
    thread.join(WAIT_S)
    requests = {f"request {n}": None for n in range(3)}
    jobs = {f"job {n}": f"request {n}" for n in range(3)}
    assert parents(captured) == {**requests, **jobs, "plain": None}
    assert [captured.step(f"job {n}").thread_id for n in range(3)] == ["t0", "t1", "t2"]


# -- the program's own context variables


MINE: contextvars.ContextVar[str] = contextvars.ContextVar("MINE", default="unset")


def test_a_context_variable_set_in_a_traced_or_bound_sync_function_is_set_for_its_caller(captured: Captured) -> None:
    @sw.tool
    def sets(value: str) -> None:
        MINE.set(value)

    def program() -> list[str]:
        seen = [MINE.get()]
        sets("traced")
        seen.append(MINE.get())
        sw.bind(sets)("bound")
        seen.append(MINE.get())
        with sw.tool("block"):
            MINE.set("block")
        return [*seen, MINE.get()]

    assert contextvars.copy_context().run(program) == ["unset", "traced", "bound", "block"]


def test_a_context_variable_set_in_a_traced_coroutine_is_set_for_who_awaits_it_and_no_other_task(
    captured: Captured,
) -> None:
    @sw.tool
    async def sets(value: str) -> None:
        await asyncio.sleep(0)
        MINE.set(value)

    async def main() -> list[str]:
        await asyncio.create_task(sets("task"))  # type: ignore[arg-type]
        seen = [MINE.get()]
        await sets("awaited")
        return [*seen, MINE.get()]

    assert asyncio.run(main()) == ["unset", "awaited"]
