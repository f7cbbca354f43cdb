"""Patching a method of a class, so that it can be taken back whoever else patches it too.

What must stay true:

1. Taking off restores the method only where ours is what stands there; under the wrapper of another it stays, and
   does nothing but call.
2. Putting on does not wrap twice: where ours is still below others, it works again.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, cast

from stepwell._frames import hide_own_frame

__all__ = ["Method", "Patch", "handing_over", "is_worker"]

Method = Callable[..., Any]

# The modules whose threads and processes serve whoever comes next.
_POOLS: Final = ("anyio.", "concurrent.futures.", "multiprocessing.", "opentelemetry.", "stepwell.", "trio.")


class Patch:
    """One method, and what wraps it while `on`; `make(original, patch)` makes the wrapper."""

    def __init__(self, owner: type, name: str, make: Callable[[Method, Patch], Method]) -> None:
        self.on = False
        self._owner = owner
        self._name = name
        self._make = make
        self._own: Method | None = None  # what the class itself had, None where it inherited the method
        self._wrapper: Method | None = None

    def put_on(self) -> None:
        """Wrap the method, unless it is wrapped."""
        if not self._is_in_place():
            original: Method = getattr(self._owner, self._name)
            self._own = vars(self._owner).get(self._name)
            self._wrapper = functools.update_wrapper(self._make(original, self), original)
            setattr(self._owner, self._name, self._wrapper)
        self.on = True

    def take_off(self) -> None:
        """Restore the method, or else leave a wrapper that only calls."""
        self.on = False
        if self._wrapper is not None and vars(self._owner).get(self._name) is self._wrapper:
            if self._own is None:
                delattr(self._owner, self._name)
            else:
                setattr(self._owner, self._name, self._own)
            self._wrapper = None

    def _is_in_place(self) -> bool:
        """Say whether the wrapper is called, be it by the wrappers of others."""
        found: Any = getattr(self._owner, self._name)
        while found is not None and self._wrapper is not None:
            if found is self._wrapper:
                return True
            found = getattr(found, "__wrapped__", None)
        return False


def handing_over(carry: Callable[[Any, Any], Any]) -> Callable[[Method, Patch], Method]:
    """Return what wraps a method whose first argument, or `func`, is a function; it gets `carry(pool, function)`."""

    def make(original: Method, patch: Patch) -> Method:
        def submit(self: Any, /, *args: Any, **kwargs: Any) -> Any:
            try:
                if patch.on and args:
                    args = (carry(self, args[0]), *args[1:])
                elif patch.on and "func" in kwargs:
                    kwargs["func"] = carry(self, kwargs["func"])
                return original(self, *args, **kwargs)
            except BaseException as error:
                hide_own_frame(error)
                raise

        return submit

    return make


def is_worker(started: Any, base: type[Any]) -> bool:
    """Say whether a thread or process is a pool's own, and works for others than for who happened to start it.

    Its work items have contexts of their own. `base` is the class whose `run` calls the target.
    """
    kind = cast("Any", type(started))
    code = getattr(started, "_target", None) if kind.run is base.run else kind.run
    module = getattr(code, "__module__", None)
    return isinstance(module, str) and module.startswith(_POOLS)
