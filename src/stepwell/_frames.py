"""Our own frames in other people's tracebacks: taken off, so that a reader need not skip them."""

from __future__ import annotations

import sys

__all__ = ["hide_own_frame"]


def hide_own_frame(error: BaseException) -> None:
    """Take the first frame, the caller's, off the traceback of the exception it is handling.

    The bare `raise` that follows does not add it again (CPython since 3.11). Done by the base class's method, since
    the exception may be one that refuses to be changed, a frozen dataclass for instance.
    """
    frames = sys.exc_info()[2]
    if frames is not None:
        BaseException.with_traceback(error, frames.tb_next)
