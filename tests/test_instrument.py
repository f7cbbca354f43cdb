"""`instrument` carries steps into threads, changes nothing else, and can be taken back whoever else patches."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio
import wrapt
from opentelemetry import context as otel
from opentelemetry import trace

import stepwell as sw
from stepwell.errors import UsageError
from stepwell.exporters import Batch
from stepwell.testing import Captured

pytestmark = pytest.mark.usefixtures("quiet")

PACKAGE = str(Path(sw.__file__).parent)
WAIT_S = 30
PLAIN = {
    (threading.Thread, "start"): threading.Thread.start,
    (ThreadPoolExecutor, "submit"): ThreadPoolExecutor.submit,
    (ThreadPool, "map"): ThreadPool.map,
}


@pytest.fixture(autouse=True)
def nothing_stays_patched() -> Iterator[None]:
    yield
    sw.uninstrument()
    assert {(owner, name): getattr(owner, name) for owner, name in PLAIN} == PLAIN
    assert "map" not in vars(ThreadPool)


@pytest.fixture
def threads() -> None:
    sw.instrument("threads")


needs_threads = pytest.mark.usefixtures("threads")


def ours(error: BaseException) -> list[str]:
    """The frames of stepwell in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{frame.filename}:{frame.lineno}" for frame in frames if frame.filename.startswith(PACKAGE)]


def join(thread: threading.Thread) -> None:
    thread.join(WAIT_S)
    assert not thread.is_alive()


@sw.tool
def work(n: int) -> int:
    return n


@sw.tool
def fails() -> None:
    raise ValueError("bad")


# -- threads


class Running(threading.Thread):
    def run(self) -> None:
        work(1)


def started_with_a_target() -> threading.Thread:
    return threading.Thread(target=work, args=(1,))


def started_as_a_subclass() -> threading.Thread:
    return Running()


def started_by_a_timer() -> threading.Thread:
    return threading.Timer(0, work, args=(1,))


def started_with_a_run_of_its_own() -> threading.Thread:
    thread = threading.Thread()
    thread.run = functools.partial(work, 1)  # type: ignore[method-assign]
    return thread


STARTED = [started_with_a_target, started_as_a_subclass, started_by_a_timer, started_with_a_run_of_its_own]


@needs_threads
@pytest.mark.parametrize("make", STARTED)
def test_a_thread_belongs_to_the_step_it_was_started_in(
    make: Callable[[], threading.Thread], captured: Captured
) -> None:
    with sw.thread("t", user="ada"):
        thread = make()  # made outside of the step: what counts is the start
        fields = set(vars(thread))
        with sw.run("agent") as agent:
            thread.start()
            join(thread)
            assert sw.current_step() is agent
    step = captured.step("work")
    assert (step.parent_id, step.thread_id, step.user, step.root_run_id) == (agent.id, "t", "ada", agent.id)
    assert vars(thread).keys() - {"_target", "_args", "_kwargs"} == fields - {"_target", "_args", "_kwargs"}


@needs_threads
def test_a_thread_started_in_a_thread_belongs_to_the_step_there(captured: Captured) -> None:
    def outer() -> None:
        with sw.tool("outer"):
            inner = started_with_a_target()
            inner.start()
            join(inner)

    with sw.run("agent"):
        thread = threading.Thread(target=outer)
        thread.start()
        join(thread)
    assert captured.step("work").parent_id == captured.step("outer").id
    assert captured.step("outer").parent_id == captured.step("agent").id


@needs_threads
def test_a_thread_started_outside_of_any_step_is_in_none(captured: Captured) -> None:
    thread = started_with_a_target()
    thread.start()
    join(thread)
    assert captured.step("work").parent_id is None


@needs_threads
def test_a_span_of_another_library_reaches_the_thread_too(captured: Captured) -> None:
    span = trace.NonRecordingSpan(trace.SpanContext(5, 6, is_remote=True, trace_flags=trace.TraceFlags(1)))
    with trace.use_span(span):
        thread = started_with_a_target()
        thread.start()
    join(thread)
    assert captured.step("work").trace_id == f"{5:032x}"


@needs_threads
def test_a_thread_keeps_its_name_and_flags_and_what_it_is(captured: Captured) -> None:
    seen: list[Any] = []

    class Curious(threading.Thread):
        def run(self) -> None:
            seen.extend([threading.current_thread() is self, self.run.__func__ is Curious.run])  # type: ignore[attr-defined]

    with sw.run("agent"):
        thread = Curious(name="curious", daemon=True)
        thread.start()
        join(thread)
    assert seen == [True, True]
    assert (thread.name, thread.daemon, "run" in vars(thread)) == ("curious", True, False)


@needs_threads
@pytest.mark.parametrize("own", [False, True])
def test_a_thread_can_only_be_started_once_as_ever(own: bool, captured: Captured) -> None:
    with sw.run("agent"):
        thread = started_with_a_run_of_its_own() if own else started_with_a_target()
        thread.start()
        join(thread)
        with pytest.raises(RuntimeError, match="threads can only be started once") as raised:
            thread.start()
    assert ours(raised.value) == []
    assert ("run" in vars(thread)) is own
    assert len(captured.steps) == 2


@needs_threads
def test_what_a_thread_raises_reaches_the_hook_without_a_frame_of_ours(
    captured: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooked: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", hooked.append)
    with sw.run("agent"):
        thread = threading.Thread(target=fails)
        thread.start()
        join(thread)
    error = hooked[0].exc_value
    assert isinstance(error, ValueError)
    assert [frame.name for frame in traceback.extract_tb(error.__traceback__)] == ["_bootstrap_inner", "run", "fails"]
    assert captured.step("fails").parent_id == captured.step("agent").id
    hooked.clear()


# -- pools


def by_submit(pool: ThreadPoolExecutor) -> list[int]:
    return [future.result(WAIT_S) for future in [pool.submit(work, n) for n in range(3)]]


def by_map(pool: ThreadPoolExecutor) -> list[int]:
    return list(pool.map(work, range(3)))


def by_run_in_executor(pool: ThreadPoolExecutor) -> list[int]:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, work, n) for n in range(3)))

    return asyncio.run(main())


def by_the_default_executor(pool: ThreadPoolExecutor) -> list[int]:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        futures = [loop.run_in_executor(None, work, 0), loop.run_in_executor(None, work, 1)]
        return [*await asyncio.gather(*futures), await asyncio.to_thread(work, 2)]

    return asyncio.run(main())


def by_a_subclass(_: ThreadPoolExecutor) -> list[int]:
    class Counting(ThreadPoolExecutor):
        count = 0

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.count += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(2) as pool:
        found = by_submit(pool)
        assert pool.count == 3
    return found


EXECUTED = [by_submit, by_map, by_run_in_executor, by_the_default_executor, by_a_subclass]


@needs_threads
@pytest.mark.parametrize("execute", EXECUTED)
def test_the_items_of_an_executor_belong_to_the_step_they_were_submitted_in(
    execute: Callable[[ThreadPoolExecutor], list[int]], captured: Captured
) -> None:
    with ThreadPoolExecutor(2) as pool:
        with sw.thread("t"), sw.run("agent") as agent:
            assert execute(pool) == [0, 1, 2]
            assert sw.current_step() is agent
        assert execute(pool) == [0, 1, 2]
    found = [(step.parent_id, step.thread_id) for step in captured.steps if step.name == "work"]
    assert sorted(found, key=str) == [(agent.id, "t")] * 3 + [(None, None)] * 3


WITH_THREAD_POOL: dict[str, Callable[[ThreadPool, Callable[..., int]], Any]] = {
    "apply": lambda pool, function: [pool.apply(function, (n,)) for n in range(3)],
    "apply_async": lambda pool, function: [pool.apply_async(function, (n,)).get(WAIT_S) for n in range(3)],
    "map": lambda pool, function: pool.map(function, range(3)),
    "map by keyword": lambda pool, function: pool.map(func=function, iterable=range(3)),
    "map_async": lambda pool, function: pool.map_async(function, range(3)).get(WAIT_S),
    "starmap": lambda pool, function: pool.starmap(function, [(n,) for n in range(3)]),
    "starmap_async": lambda pool, function: pool.starmap_async(function, [(n,) for n in range(3)]).get(WAIT_S),
    "imap": lambda pool, function: list(pool.imap(function, range(3), chunksize=2)),
    "imap_unordered": lambda pool, function: sorted(pool.imap_unordered(function, range(3))),
}


@needs_threads
@pytest.mark.parametrize("how", WITH_THREAD_POOL)
def test_the_items_of_a_thread_pool_belong_to_the_step_they_were_submitted_in(how: str, captured: Captured) -> None:
    with sw.run("starts"):
        pool = ThreadPool(2)
    with pool:
        with sw.run("agent") as agent:
            assert WITH_THREAD_POOL[how](pool, work) == [0, 1, 2]
        assert pool.apply(sw.current_step) is None
        pool.close()
        pool.join()
    assert [step.parent_id for step in captured.steps if step.name == "work"] == [agent.id] * 3


@needs_threads
def test_a_worker_belongs_to_nobody_between_its_items(captured: Captured) -> None:
    def note() -> None:
        seen.append(sw.current_step())

    seen: list[sw.Step | None] = []
    with sw.run("first request"):
        pool = ThreadPoolExecutor(1, initializer=note)
        pool.submit(sw.start, "tool", "left open").result(WAIT_S)  # and so is what an item leaves behind
    with pool:
        pool.submit(note).result(WAIT_S)
        gate = threading.Event()
        with sw.run("second request") as second:
            future = pool.submit(gate.wait, WAIT_S)
            future.add_done_callback(lambda _: note())
            done = pool.submit(note)
        gate.set()
        done.result(WAIT_S)
        pool.submit(note).result(WAIT_S)
    assert seen == [None, None, None, second, None]


@needs_threads
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_worker_threads_of_event_loops_keep_nothing_of_who_was_first(backend: str, captured: Captured) -> None:
    class Payload:
        pass

    async def request(function: Callable[[], object]) -> weakref.ref[Payload]:
        payload = Payload()
        otel.attach(otel.set_value("payload", payload))
        with sw.tool("request"):
            to_thread = trio.to_thread.run_sync if backend == "trio" else anyio.to_thread.run_sync
            await to_thread(function)
        return weakref.ref(payload)

    async def main() -> None:
        kept: list[weakref.ref[Payload]] = []

        async def first() -> None:
            kept.append(await request(functools.partial(work, 1)))

        async with anyio.create_task_group() as group:
            group.start_soon(first)
        gc.collect()
        assert kept[0]() is None

    anyio.run(main, backend=backend)
    assert captured.step("work").parent_id == captured.step("request").id


@needs_threads
def test_our_own_threads_belong_to_no_step(tmp_path: Path) -> None:
    class Exporter:
        seen: list[object]

        def export(self, batch: Batch) -> None:
            self.seen.append(sw.current_step())

    exporter = Exporter()
    exporter.seen = []
    sw.configure(export=exporter, home=tmp_path)
    with sw.run("agent"):
        work(1)  # the first record starts them
        assert sw.flush(WAIT_S)
    assert exporter.seen == [None]


@needs_threads
@pytest.mark.parametrize("method", ["submit", "map"])
def test_what_an_item_raises_has_no_frame_of_ours(method: str, captured: Captured) -> None:
    with sw.run("agent"), ThreadPoolExecutor(1) as pool:
        with pytest.raises(ValueError, match="bad") as raised:
            pool.submit(fails).result(WAIT_S) if method == "submit" else list(pool.map(lambda _: fails(), [1]))
        assert ours(raised.value) == []
        with pytest.raises(TypeError, match="'int' object is not callable") as wrong:
            pool.submit(5).result(WAIT_S)  # type: ignore[arg-type]
        assert ours(wrong.value) == []
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown") as late:
        pool.submit(work, 1)
    assert ours(late.value) == []
    with pytest.raises(TypeError, match=r"submit\(\) missing 1 required positional argument: 'fn'") as missing:
        pool.submit()  # type: ignore[call-arg]
    assert ours(missing.value) == []


@needs_threads
def test_what_an_item_of_a_thread_pool_raises_has_no_frame_of_ours(captured: Captured) -> None:
    with ThreadPool(1) as pool, sw.run("agent"):
        with pytest.raises(ValueError, match="bad") as raised:
            pool.map(lambda _: fails(), [1])
        pool.close()
        pool.join()
    assert ours(raised.value) == []


# -- putting on and taking off


def nests(captured: Captured) -> bool:
    """Say whether a thread belongs to the step it is started in."""
    captured.clear()
    with sw.run("agent"), ThreadPoolExecutor(1) as pool:
        thread = started_with_a_target()
        thread.start()
        join(thread)
        pool.submit(work, 2).result(WAIT_S)
    found = {step.parent_id == captured.step("agent").id for step in captured.steps if step.name == "work"}
    assert len(found) == 1
    return found.pop()


def test_instrumenting_again_changes_nothing_and_taking_it_back_restores(captured: Captured) -> None:
    assert not nests(captured)
    sw.instrument("threads")
    patched = threading.Thread.start, ThreadPoolExecutor.submit
    sw.instrument("threads", "threads")
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == patched
    assert nests(captured)
    assert patched[0].__qualname__ == "Thread.start"
    sw.uninstrument("threads")
    assert {(owner, name): getattr(owner, name) for owner, name in PLAIN} == PLAIN
    assert not nests(captured)
    sw.uninstrument("threads")
    sw.instrument("threads")
    assert nests(captured)
    sw.uninstrument()
    assert not nests(captured)


def test_a_wrapper_that_others_put_over_ours_stays_and_ours_does_nothing_below_it(captured: Captured) -> None:
    calls: list[str] = []

    def count(wrapped: Any, instance: Any, args: Any, kwargs: Any) -> Any:
        calls.append("start")
        return wrapped(*args, **kwargs)

    sw.instrument("threads")
    ours_below = threading.Thread.start
    wrapt.wrap_function_wrapper(threading.Thread, "start", count)
    theirs = vars(threading.Thread)["start"]
    try:
        assert nests(captured)
        sw.uninstrument("threads")
        assert vars(threading.Thread)["start"] is theirs
        assert not nests(captured)
        sw.instrument("threads")
        assert vars(threading.Thread)["start"] is theirs  # it works again, below
        assert nests(captured)
        assert calls
    finally:
        threading.Thread.start = ours_below  # type: ignore[method-assign]
    sw.uninstrument("threads")
    assert threading.Thread.start is PLAIN[threading.Thread, "start"]


def test_a_wrapper_that_others_took_off_with_theirs_is_put_on_anew(captured: Captured) -> None:
    sw.instrument("threads")
    threading.Thread.start = PLAIN[threading.Thread, "start"]  # type: ignore[method-assign]
    sw.uninstrument("threads")
    assert not nests(captured)
    sw.instrument("threads")
    assert nests(captured)


def test_a_wrapper_that_was_there_before_ours_is_what_comes_back(captured: Captured) -> None:
    plain: Any = PLAIN[threading.Thread, "start"]
    calls: list[str] = []

    @functools.wraps(plain)
    def theirs(thread: threading.Thread) -> None:
        calls.append(thread.name)
        plain(thread)

    threading.Thread.start = theirs  # type: ignore[method-assign]
    try:
        sw.instrument("threads")
        assert nests(captured)
        assert calls
        sw.uninstrument("threads")
        assert threading.Thread.start is theirs
    finally:
        threading.Thread.start = plain  # type: ignore[method-assign]


def test_threads_may_instrument_and_take_it_back_at_once(captured: Captured) -> None:
    stop = threading.Event()

    def toggle() -> None:
        while not stop.is_set():
            sw.instrument("threads")
            sw.uninstrument("threads")

    togglers = [threading.Thread(target=toggle) for _ in range(3)]
    for thread in togglers:
        thread.start()
    try:
        for _ in range(50):
            with sw.run("agent"), ThreadPoolExecutor(1) as pool:
                thread = started_with_a_target()
                thread.start()
                join(thread)
                assert pool.submit(work, 1).result(WAIT_S) == 1
    finally:
        stop.set()
        for thread in togglers:
            join(thread)


@pytest.mark.parametrize("call", [sw.instrument, sw.uninstrument])
@pytest.mark.parametrize(
    ("names", "shown"),
    [(("thread",), "'thread'"), (("threads", "openal"), "'openal'"), ((5,), "5"), ((["a"],), "['a']")],
)
def test_a_name_there_is_not_is_refused_with_those_there_are(
    call: Callable[..., None], names: tuple[Any, ...], shown: str
) -> None:
    with pytest.raises(UsageError) as raised:
        call(*names)
    assert str(raised.value) == f"there is nothing to instrument by the name {shown}, only 'processes', 'threads'"
    assert threading.Thread.start is PLAIN[threading.Thread, "start"]


def test_no_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"^instrument\(\) needs the name of a library: 'processes', 'threads'$"):
        sw.instrument()
