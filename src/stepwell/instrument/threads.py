"""Threads: what runs in another thread belongs to the step and thread that were current where it was handed over.

What must stay true:

1. Results, exceptions, tracebacks, names and flags are as without us.
2. The worker of a pool belongs to nobody: not to who submitted the first item, nor the next item to who submitted the
   one before.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, Final

from stepwell._context import Context, get_current
from stepwell._frames import hide_own_frame
from stepwell._propagation import run_in
from stepwell._recorder import RECORDER
from stepwell.instrument._patch import Method, Patch, handing_over, is_worker

__all__ = ["POOL_METHODS", "patches", "put_back"]

POOL_METHODS: Final = ("apply_async", "imap", "imap_unordered", "map", "map_async", "starmap", "starmap_async")


def patches() -> tuple[Patch, ...]:
    """Return what is to be patched."""
    from concurrent.futures import ThreadPoolExecutor
    from multiprocessing.pool import ThreadPool

    return (
        Patch(threading.Thread, "start", _starting),
        Patch(ThreadPoolExecutor, "submit", _submitting),
        *(Patch(ThreadPool, name, _submitting) for name in POOL_METHODS),
    )


def _starting(original: Method, patch: Patch) -> Method:
    def start(self: threading.Thread) -> None:
        context = get_current()
        fields = vars(self)
        before = fields.get("run")
        try:
            if patch.on and context and not is_worker(self, threading.Thread):
                fields["run"] = functools.partial(_run, self, before, context)
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("carry a step to a thread", error)
        try:
            original(self)
        except BaseException as error:  # it runs already, or there can be no more threads
            put_back(self, before)
            hide_own_frame(error)
            raise

    return start


def _run(thread: threading.Thread, before: Method | None, context: Context) -> None:
    put_back(thread, before)  # first of all: code that looks at the thread sees what it knows
    try:
        run_in(context, thread.run)
    except BaseException as error:
        hide_own_frame(error)
        raise


def put_back(started: object, before: Method | None) -> None:
    """Give a thread or process its own `run` back: that of its class, or what it had in place of it before."""
    if before is None:
        vars(started).pop("run", None)
    else:
        vars(started)["run"] = before


def _carried(_: object, function: Any) -> Any:
    return functools.partial(run_in, get_current(), function)


_submitting: Final = handing_over(_carried)
