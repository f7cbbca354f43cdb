"""Instrumenting what is not ours, on request and until it is taken back: one module a library.

Such a module has `patches()`, called once, which imports the library and returns a `Patch` for each method to be
replaced. It gets its line in `LIBRARIES`, and nothing else knows of it.

What must stay true: importing this patches nothing and imports no library; both functions can be called again.
"""

from __future__ import annotations

import threading
from importlib import import_module
from typing import TYPE_CHECKING, Final

from stepwell._checks import shown
from stepwell.errors import UsageError

if TYPE_CHECKING:
    from stepwell.instrument._patch import Patch

__all__ = ["LIBRARIES", "instrument", "uninstrument"]

LIBRARIES: Final = {
    "processes": "stepwell.instrument.processes",
    "threads": "stepwell.instrument.threads",
}

_lock: Final = threading.Lock()
_patches: Final[dict[str, tuple[Patch, ...]]] = {}


def instrument(*names: str) -> None:
    """Instrument libraries by name, in this process; those that are already stay so.

    `"threads"`: what runs in a `threading.Thread`, `ThreadPoolExecutor` (and so `loop.run_in_executor`) or `ThreadPool`
    belongs to the step and thread that were current where it was started or submitted. `"processes"`: the same for
    `multiprocessing.Process`, `Pool` and `ProcessPoolExecutor`. Raises `UsageError` for an unknown name, or none.

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
    with _lock:
        for name in names:
            if name not in _patches:
                _patches[name] = import_module(LIBRARIES[name]).patches()
            for patch in _patches[name]:
                patch.put_on()


def uninstrument(*names: str) -> None:
    """Take back what `instrument` did, for these libraries or for all; those that are not instrumented stay so.

    Where somebody else has patched the same method since, ours stays below theirs and does nothing. Raises `UsageError`
    for an unknown name.
    """
    _check(names)
    with _lock:
        for name in names or LIBRARIES:
            for patch in reversed(_patches.get(name, ())):
                patch.take_off()


def _check(names: tuple[str, ...]) -> None:
    for name in names:
        if not isinstance(name, str) or name not in LIBRARIES:
            raise UsageError(f"there is nothing to instrument by the name {shown(name)}, only {_listed()}")


def _listed() -> str:
    return ", ".join(map(repr, LIBRARIES))
