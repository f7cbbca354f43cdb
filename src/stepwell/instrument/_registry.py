"""What can be instrumented, and what is.

What must stay true: importing this patches nothing and imports no library; `instrument` and `uninstrument` can be
called again, from any thread.
"""

from __future__ import annotations

import os
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Final

from stepwell._checks import shown
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.instrument._patch import Patch

__all__ = ["instrument", "instrumented", "uninstrument"]

LIBRARIES: Final = {
    "processes": "stepwell.instrument.processes",
    "threads": "stepwell.instrument.threads",
}


class _State:
    """All that is global, in one place."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.patches: dict[str, tuple[Patch, ...]] = {}  # of what was ever instrumented
        self.on: dict[str, None] = {}  # names, in order


_state: Final = _State()


def instrument(*names: str) -> None:
    """Instrument libraries by name, in this process; those that are already stay so.

    `"threads"`: what runs in a `threading.Thread`, `ThreadPoolExecutor` (and so `loop.run_in_executor`) or `ThreadPool`
    belongs to the step and thread that were current where it was started or submitted. `"processes"`: the same for
    `multiprocessing.Process`, `Pool` and `ProcessPoolExecutor`, whose children are instrumented as their parent. Raises
    `UsageError` for an unknown name, or none.

    >>> import stepwell as sw
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> sw.instrument("threads")
    >>> with sw.run("agent") as agent, ThreadPoolExecutor() as pool:
    ...     pool.submit(sw.current_step).result() is agent
    True
    >>> sw.uninstrument("threads")
    """
    if not names:
        raise UsageError(f"instrument() needs the name of a library: {_listed()}")
    _check(names)
    with _state.lock:
        for name in names:
            if name not in _state.patches:
                _state.patches[name] = import_module(LIBRARIES[name]).patches()
            for patch in _state.patches[name]:
                patch.put_on()
            _state.on[name] = None


def uninstrument(*names: str) -> None:
    """Take back what `instrument` did, for these libraries or for all; those that are not instrumented stay so.

    Where somebody else has patched the same method since, ours stays below theirs and does nothing. Raises `UsageError`
    for an unknown name.
    """
    _check(names)
    with _state.lock:
        for name in names or LIBRARIES:
            for patch in reversed(_state.patches.get(name, ())):
                patch.take_off()
            _state.on.pop(name, None)


def instrumented() -> tuple[str, ...]:
    """Return the names of what is instrumented now."""
    return tuple(_state.on)


def _check(names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in LIBRARIES:
            raise UsageError(f"there is nothing to instrument by the name {shown(name)}, only {_listed()}")


def _listed() -> str:
    return ", ".join(map(repr, LIBRARIES))


def _in_child() -> None:
    _state.lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_in_child)
