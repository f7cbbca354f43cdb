"""A plug-in of coverage.py, in the suite's processes and in those they start: forking under measurement hangs no child.

coverage.py locks its data with every call that it traces, and no handler of its own makes the lock anew in a forked
child: where another thread holds it in that moment, the child waits for it for ever with its first call.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from coverage.collector import Collector


def coverage_init(registry: object, options: dict[str, Any]) -> None:
    """Let the thread that forks hold the lock of what is measured meanwhile, by every collector of this process.

    coverage.py calls it before it makes its first collector, so these handlers are the first that a process registers:
    all others run while the lock is held, and call what is traced. So does the garbage collector. Hence the `RLock`.
    """
    make = Collector.reset

    def reset(self: Any) -> None:
        make(self)
        if self.data_lock is not None:
            lock = self.data_lock = threading.RLock()
            self.lock_data, self.unlock_data = lock.acquire, lock.release  # what the tracers call: no Python code

    Collector.reset = reset  # type: ignore[method-assign]
    held: dict[int, list[Any]] = {}  # by thread: several may fork at once

    def hold() -> None:
        locks = held[threading.get_ident()] = [it.data_lock for it in Collector._collectors if it.data_lock is not None]
        for lock in locks:
            lock.acquire()

    def release() -> None:
        for lock in reversed(held.pop(threading.get_ident(), [])):
            lock.release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=release)
