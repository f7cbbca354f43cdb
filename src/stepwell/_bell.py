"""A bell: one thread waits for it, any code may ring it.

What must stay true: ringing takes no lock of Python code. A finaliser or a signal handler that runs inside `ring` or
`wait` may ring too, where `threading.Event` and `Condition` would wait for themselves for ever.
"""

from __future__ import annotations

import contextlib
import threading

__all__ = ["Bell"]


class Bell:
    """A ring that comes while nobody waits ends the next `wait` at once; several rings count as one."""

    def __init__(self) -> None:
        self._silence = threading.Lock()
        self._silence.acquire()

    def ring(self) -> None:
        """End the wait of this moment, else the next one."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silence.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a ring, at most `timeout_s` seconds; say whether it came."""
        return self._silence.acquire(timeout=max(0.0, timeout_s))
