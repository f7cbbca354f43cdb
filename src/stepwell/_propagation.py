"""The way of the current step and thread across threads (`bind`) and processes (`bind`, `inject`, `extract`).

What must stay true: nothing here holds a context variable's token; leaving sets what was before. A bound function is
called as fast as one more function costs, and is pickled wherever what it is bound to can be.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator, Mapping, MutableMapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, Final, ParamSpec, Self, TypeGuard, TypeVar, cast

from stepwell._checks import shown
from stepwell._context import (
    RUN_KEY,
    SPAN_KEY,
    STEP_KEY,
    THREAD_KEY,
    Context,
    attach,
    create_key,
    get_current,
    step_of,
    thread_of,
)
from stepwell._frames import hide_own_frame, named_as, wrap_for
from stepwell._generating import Inside, drive, drive_async
from stepwell._recorder import RECORDER
from stepwell._thread import Thread
from stepwell._values import first_pairs, is_short, is_text
from stepwell._vocabulary import MAX_ID_CHARACTERS, is_uuid
from stepwell.errors import UsageError

__all__ = ["Block", "bind", "bound_to", "carry_settings", "continued", "extract", "inject", "run_in"]

P = ParamSpec("P")
R = TypeVar("R")

MAX_HEADER_CHARACTERS: Final = 8192  # what W3C baggage may be long
_THREAD_BAGGAGE: Final = "stepwell.thread_id"
_USER_BAGGAGE: Final = "stepwell.user"
_RUN_BAGGAGE: Final = "stepwell.root_run_id"
_OURS: Final = frozenset({_THREAD_BAGGAGE, _USER_BAGGAGE, _RUN_BAGGAGE})
_BLOCK_KEY: Final = create_key("stepwell-block")


def bind(function: Callable[P, R]) -> Callable[P, R]:
    """Return the function tied to the step and thread of now, to be called in another thread, task or process.

    Of a coroutine or generator function all of the body runs there. It can be pickled wherever the function can.

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
    carry_settings()
    return cast("Callable[P, R]", bound_to(get_current(), function))


def bound_to(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function tied to a context, in a form that can be pickled."""
    wrap = wrap_for(function, _KINDS, _calling)
    return _Bound(named_as(function, wrap(context, function)), function, context)


def run_in(context: Context, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call the function in a context, with no frame of ours in what it raises."""
    previous = get_current()
    attach(context)
    try:
        return function(*args, **kwargs)
    except BaseException as error:
        hide_own_frame(error)
        raise
    finally:
        attach(previous)


def _calling(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    def bound(*args: Any, **kwargs: Any) -> Any:  # what `run_in` does, without the cost of another call
        previous = get_current()
        attach(context)
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            attach(previous)

    return bound


def _awaiting(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    async def bound(*args: Any, **kwargs: Any) -> Any:
        block = Block(context)
        try:
            return await function(*args, **kwargs)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            block.leave()

    return bound


def _generating(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    return drive(function, lambda _, __: Inside(context))


def _async_generating(context: Context, function: Callable[..., Any]) -> Callable[..., Any]:
    return drive_async(function, lambda _, __: Inside(context))


_KINDS: Final = (
    (inspect.iscoroutinefunction, _awaiting),
    (inspect.isgeneratorfunction, _generating),
    (inspect.isasyncgenfunction, _async_generating),
)


class _Bound(functools.partial[Any]):
    """A function and the context it is tied to; pickled, the function and the headers that tell the context.

    A partial of the wrapper, with no arguments, is called as fast as the wrapper and is seen through by `inspect`.
    """

    __slots__ = ("_context", "_function")
    _context: Context
    _function: Callable[..., Any]

    def __new__(cls, wrapper: Callable[..., Any], function: Callable[..., Any], context: Context) -> Self:
        bound = super().__new__(cls, wrapper)
        bound._function = function
        bound._context = context
        bound.__dict__.update(wrapper.__dict__, __doc__=wrapper.__doc__, __module__=wrapper.__module__)
        return bound

    def __getattr__(self, name: str) -> Any:
        return getattr(self.func, name)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else MethodType(self, instance)

    def __repr__(self) -> str:
        return f"<bound {self._function!r}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        headers: dict[str, str] = {}
        _write(headers, self._context)
        return _rebound, (self._function, headers)


def _rebound(function: Callable[..., Any], headers: dict[str, str], settings: bytes = b"") -> Callable[..., Any]:
    """Tie an unpickled function to the context that the headers tell, and to no other: not to what is current here."""
    context = Context()
    try:
        context = _continued(headers, context)
        RECORDER.take_settings(settings)
    except Exception as error:  # noqa: BLE001 - the containment door
        RECORDER.fault("continue where a function was bound", error)
    return bound_to(context, function)


def carry_settings() -> None:
    """Have `multiprocessing` send the settings to its children with what is bound.

    They may hold credentials, so they go through the pipe to a child and into no other pickle, which may end anywhere.
    """
    module = sys.modules.get("multiprocessing.reduction")
    pickler = getattr(module, "ForkingPickler", None)
    if pickler is not None:
        pickler.register(_Bound, _reduced_for_child)


def _reduced_for_child(bound: _Bound) -> tuple[Any, ...]:
    make, arguments = bound.__reduce__()
    return make, (*arguments, RECORDER.give_settings())


def inject(headers: MutableMapping[str, str]) -> None:
    """Write the current step and thread into headers: W3C `traceparent` and `baggage`, which tells the user too.

    For requests to services that may know both: whoever gets the headers can read them.

    >>> import stepwell as sw
    >>> headers = {}
    >>> with sw.run("agent") as agent:
    ...     sw.inject(headers)
    >>> headers["traceparent"].split("-")[1] == agent.trace_id
    True
    """
    _write(headers, get_current())


def _write(headers: MutableMapping[str, str], context: Context) -> None:
    from opentelemetry.baggage.propagation import W3CBaggagePropagator  # loaded where used: few programs need it
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[str, str] = {}
    try:
        TraceContextTextMapPropagator().inject(headers, context)
        W3CBaggagePropagator().inject(found, _with_baggage(context))
        for name, value in found.items():
            headers[name] = value.replace("+", "%20")  # a space; others than Python's readers take a plus for one
    except Exception as error:  # noqa: BLE001 - the containment door
        RECORDER.fault("inject into headers", error)


def _with_baggage(context: Context) -> Context:
    """Put thread, user and run into the baggage: first, since what is beyond the limit of W3C is left out.

    What others sent under our names goes no further: services behind this one take it from here on trust.
    """
    from opentelemetry import baggage

    thread, step = thread_of(context), step_of(context)
    ours = {
        _THREAD_BAGGAGE: None if thread is None else thread.id,
        _USER_BAGGAGE: None if thread is None else thread.user,
        _RUN_BAGGAGE: context.get(RUN_KEY) if step is None else step.root_run_id,
    }
    told: dict[str, object] = {name: value for name, value in ours.items() if value is not None}
    told |= {name: value for name, value in baggage.get_all(context).items() if name not in _OURS}
    context = baggage.clear(context)
    for name, value in told.items():
        context = baggage.set_baggage(name, value, context)
    return context


@contextmanager
def extract(headers: Mapping[str, str]) -> Generator[None]:
    """Continue, for a block, the trace and thread that `inject` wrote into these headers in another process.

    For headers of services that are trusted: they say in whose thread the steps are, and whether any are recorded.
    """
    block = Block(continued(headers))
    try:
        yield
    finally:
        block.leave()


def continued(headers: Mapping[str, str]) -> Context:
    """Return the current context with what headers tell; as it is where they tell nothing. Never raises."""
    context = get_current()
    try:
        return _continued(headers, context)
    except Exception as error:  # noqa: BLE001 - the containment door
        RECORDER.fault("extract from headers", error)
        return context


class Block:
    """What has made a context current, until it is left, wherever that may be.

    A block in a generator or coroutine can be left by another task or by the garbage collector: where neither the block
    nor one inside of it is current, there is nothing to put back.
    """

    __slots__ = ("_previous",)

    def __init__(self, context: Context) -> None:
        self._previous = get_current()
        attach(Context({**context, _BLOCK_KEY: self}))

    def leave(self) -> None:
        current = get_current().get(_BLOCK_KEY)
        while current is not self:
            if not isinstance(current, Block):
                return
            current = current._previous.get(_BLOCK_KEY)
        attach(self._previous)


def _is_header(value: object) -> bool:
    """Say whether it is text, or a list of texts as some servers give; anything else may have no end."""
    return issubclass(type(value), str | list | tuple) and is_short(value, MAX_HEADER_CHARACTERS)


def _is_name(value: object) -> TypeGuard[str]:
    """Say whether a thread or user can be called so: it is shown on pages and in terminals."""
    return is_text(value) and 0 < len(value) <= MAX_ID_CHARACTERS and value.isprintable()


def _continued(headers: Mapping[str, str], previous: Context) -> Context:
    from opentelemetry import baggage
    from opentelemetry.baggage.propagation import W3CBaggagePropagator
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    lowered = {name.lower(): value for name, value in first_pairs(headers).items() if _is_header(value)}
    context = TraceContextTextMapPropagator().extract(lowered, previous)
    if context.get(SPAN_KEY) is not previous.get(SPAN_KEY):  # the steps around are of another trace
        context = Context({key: value for key, value in context.items() if key != STEP_KEY})
    context = W3CBaggagePropagator().extract(lowered, context)
    thread_id, user = baggage.get_baggage(_THREAD_BAGGAGE, context), baggage.get_baggage(_USER_BAGGAGE, context)
    if _is_name(thread_id):
        remote = Thread(RECORDER, thread_id, user=user if _is_name(user) else None)
        context = Context({**context, THREAD_KEY: remote})
    run_id = baggage.get_baggage(_RUN_BAGGAGE, context)
    if isinstance(run_id, str) and is_uuid(run_id):  # it goes into records as it is
        context = Context({**context, RUN_KEY: run_id})
    return context
