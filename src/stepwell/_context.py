"""Current step and thread, in OpenTelemetry's context and nowhere else.

A step that is open is the current span, under OpenTelemetry's own key. Under `STEP_KEY` it stands once more, so that a
span of another library opened inside it, which takes over the span's key, does not hide run and thread from the steps
below. `THREAD_KEY` holds the thread, `RUN_KEY` the id of a root run in another process.

What must stay true: a context may be set at any moment, also by a finaliser that the garbage collector runs.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Final, cast

import opentelemetry.context
from opentelemetry.context import Context, create_key
from opentelemetry.trace import INVALID_SPAN, set_span_in_context

if TYPE_CHECKING:  # the modules above this one
    from stepwell._step import Step
    from stepwell._thread import Thread

__all__ = [
    "RUN_KEY",
    "SPAN_KEY",
    "STEP_KEY",
    "SUPPRESS_KEY",
    "THREAD_KEY",
    "Context",
    "attach",
    "create_key",
    "current_run",
    "current_step",
    "current_thread",
    "get_current",
    "step_of",
    "step_types",
    "thread_of",
]

# The functions of the module call the methods of one object, which is private; where that is no more, the functions
# themselves will do. Without them a step costs a tenth of a microsecond less.
_runtime: Final[Any] = getattr(opentelemetry.context, "_RUNTIME_CONTEXT", opentelemetry.context)
get_current: Final[Callable[[], Context]] = _runtime.get_current
attach: Final[Callable[[Context], object]] = _runtime.attach

# OpenTelemetry keeps the key private; what it puts into an empty context tells it.
SPAN_KEY: Final[str] = next(iter(set_span_in_context(INVALID_SPAN, Context())))
STEP_KEY: Final[str] = create_key("stepwell-step")
THREAD_KEY: Final[str] = create_key("stepwell-thread")
RUN_KEY: Final[str] = create_key("stepwell-run")
step_types: Final[set[type]] = set()  # the class of steps, which is above this module, adds itself
SUPPRESS_KEY: Final = "suppress_instrumentation"  # OpenTelemetry's: what runs under it is not to be recorded


def current_step() -> Step | None:
    """Return the innermost open step around the caller, None outside of any."""
    return step_of(get_current())


def current_thread() -> Thread | None:
    """Return the thread the caller's steps belong to, None outside of any."""
    return thread_of(get_current())


def step_of(context: Context) -> Step | None:
    """Return the innermost step of a context; one that others made the current span comes first."""
    span = context.get(SPAN_KEY)
    return cast("Step | None", span if type(span) in step_types else context.get(STEP_KEY))


def thread_of(context: Context) -> Thread | None:
    """Return the thread that steps of a context belong to."""
    step = step_of(context)
    thread = step.thread if step is not None else None
    return thread if thread is not None else cast("Thread | None", context.get(THREAD_KEY))


def current_run() -> Step | None:
    """Return the outermost run around the caller, None outside of any."""
    step = current_step()
    while step is not None and step.id != step.root_run_id:
        step = step.enclosing
    return step


def _keeper() -> Callable[[str, object], None]:
    kept: object = None

    def keep(phase: str, _: object, copy: Callable[[], object] = copy_context) -> None:
        nonlocal kept
        if phase == "start":
            kept = copy()

    return keep


if sys.version_info < (3, 12):
    # Python runs the garbage collector inside of `ContextVar.set` there, and crashes where what is collected sets a
    # variable in its turn (github.com/python/cpython/issues/148891), as an abandoned generator does whose step ends.
    # A reference to the variables being changed prevents it, for a third of a microsecond a collection.
    gc.callbacks.append(_keeper())
