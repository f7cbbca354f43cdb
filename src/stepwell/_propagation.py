"""The way of the current step and thread across threads (`bind`) and processes (`inject`, `extract`).

What must stay true: nothing here holds a context variable's token; leaving sets what was before.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar, cast

from stepwell._checks import shown
from stepwell._context import (
    RUN_KEY,
    SPAN_KEY,
    STEP_KEY,
    THREAD_KEY,
    Context,
    attach,
    current_step,
    current_thread,
    get_current,
)
from stepwell._frames import hide_own_frame
from stepwell._recorder import RECORDER
from stepwell._thread import Thread
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.errors import UsageError

__all__ = ["bind", "extract", "inject"]

P = ParamSpec("P")
R = TypeVar("R")

_THREAD_BAGGAGE: Final = "stepwell.thread_id"
_USER_BAGGAGE: Final = "stepwell.user"
_RUN_BAGGAGE: Final = "stepwell.root_run_id"
_UUID: Final = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function tied to the step and thread of now, to be called in another thread or task.

    >>> import stepwell as sw
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> from stepwell.testing import capture
    >>> with capture() as captured, sw.run("agent") as agent, ThreadPoolExecutor() as pool:
    ...     search = pool.submit(sw.bind(sw.tool("search")(len)), "tea")
    >>> captured.step("search").parent_id == agent.id
    True
    """
    given: object = function
    if not callable(given):
        raise UsageError(f"only a function can be bound, got {shown(given)}")
    context = get_current()

    @functools.wraps(function)
    def bound(*args: P.args, **kwargs: P.kwargs) -> R:
        previous = get_current()
        attach(context)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            attach(previous)

    @functools.wraps(function)
    async def bound_async(*args: P.args, **kwargs: P.kwargs) -> Any:
        previous = get_current()
        attach(context)
        try:
            return await cast("Callable[P, Awaitable[Any]]", function)(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            attach(previous)

    return cast("Callable[P, R]", bound_async) if inspect.iscoroutinefunction(function) else bound


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the current step and thread into headers: W3C `traceparent` and `baggage`.

    >>> import stepwell as sw
    >>> headers = {}
    >>> with sw.run("agent") as agent:
    ...     sw.inject(headers)
    >>> headers["traceparent"].split("-")[1] == agent.trace_id
    True
    """
    from opentelemetry import baggage  # loaded where used: only programs that cross processes need it
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = get_current()
    thread, step = current_thread(), current_step()
    try:
        TraceContextTextMapPropagator().inject(headers, context)
        if thread is not None:
            context = baggage.set_baggage(_THREAD_BAGGAGE, thread.id, context)
            if thread.user is not None:
                context = baggage.set_baggage(_USER_BAGGAGE, thread.user, context)
        if step is not None and step.root_run_id is not None:
            context = baggage.set_baggage(_RUN_BAGGAGE, step.root_run_id, context)
        W3CBaggagePropagator().inject(headers, context)
    except Exception as error:  # noqa: BLE001 - the containment door
        RECORDER.fault("inject into headers", error)


@contextmanager
def extract(headers: Mapping[str, str]) -> Generator[None]:
    """Continue, for a block, the trace and thread that `inject` wrote into these headers in another process."""
    previous = get_current()
    try:
        context = _continued(headers, previous)
    except Exception as error:  # noqa: BLE001 - the containment door
        RECORDER.fault("extract from headers", error)
        context = previous
    attach(context)
    try:
        yield
    finally:
        attach(previous)


def _continued(headers: Mapping[str, str], previous: Context) -> Context:
    from opentelemetry import baggage
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    lowered = {name.lower(): value for name, value in headers.items()}
    context = TraceContextTextMapPropagator().extract(lowered, previous)
    if context.get(SPAN_KEY) is not previous.get(SPAN_KEY):  # the steps around are of another trace
        context = Context({key: value for key, value in context.items() if key != STEP_KEY})
    context = W3CBaggagePropagator().extract(lowered, context)
    thread_id, user = baggage.get_baggage(_THREAD_BAGGAGE, context), baggage.get_baggage(_USER_BAGGAGE, context)
    if isinstance(thread_id, str) and 0 < len(thread_id) <= MAX_ID_CHARACTERS:
        remote = Thread(RECORDER, thread_id, user=user if isinstance(user, str) else None)
        context = Context({**context, THREAD_KEY: remote})
    run_id = baggage.get_baggage(_RUN_BAGGAGE, context)
    if isinstance(run_id, str) and _UUID.fullmatch(run_id):  # it goes into records as it is
        context = Context({**context, RUN_KEY: run_id})
    return context
