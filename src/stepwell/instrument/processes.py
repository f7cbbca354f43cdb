"""Processes: what runs in a child belongs to the step and thread that were current where it was handed over.

A child that was not forked is instrumented as its parent, and takes its settings where it makes none of its own.

What must stay true: as for threads; and what can't be pickled fails as it does without us.
"""

from __future__ import annotations

import functools
from typing import Any, Final

from stepwell._context import Context, get_current
from stepwell._frames import hide_own_frame
from stepwell._propagation import bound_to, carry_settings
from stepwell._recorder import RECORDER
from stepwell.instrument._patch import Method, Patch, handing_over, is_worker
from stepwell.instrument._registry import instrument, instrumented
from stepwell.instrument.threads import POOL_METHODS, put_back

__all__ = ["patches"]


def patches() -> tuple[Patch, ...]:
    """Return what is to be patched."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing.pool import Pool
    from multiprocessing.process import BaseProcess

    carry_settings()
    return (
        Patch(BaseProcess, "start", _starting),
        Patch(ProcessPoolExecutor, "submit", _submitting),
        *(Patch(Pool, name, _submitting) for name in POOL_METHODS),
    )


def _starting(original: Method, patch: Patch) -> Method:
    from multiprocessing.process import BaseProcess

    def start(self: BaseProcess) -> None:
        fields = vars(self)
        before = fields.get("run")
        try:
            if patch.on:
                context = Context() if is_worker(self, BaseProcess) else get_current()
                fields["run"] = functools.partial(_run, bound_to(context, self.run), instrumented())
        except Exception as error:  # noqa: BLE001 - the containment door
            RECORDER.fault("carry a step to a process", error)
        try:
            original(self)
        except BaseException as error:
            hide_own_frame(error)
            raise
        finally:
            put_back(self, before)

    return start


def _run(run: Method, names: tuple[str, ...]) -> None:
    """Run in the child."""
    try:
        instrument(*names)
        run()
    except BaseException as error:
        hide_own_frame(error)
        raise


def _carried(pool: object, function: Any) -> Any:
    from multiprocessing.pool import ThreadPool

    return bound_to(get_current(), function) if callable(function) and not isinstance(pool, ThreadPool) else function


_submitting: Final = handing_over(_carried)
