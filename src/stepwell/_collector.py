"""Python's collector of circles, set for programs of ours; never for one that is watched."""

from __future__ import annotations

import gc
from typing import Final

__all__ = ["collect_seldom", "keep_what_is"]

_AFTER: Final = (
    20_000  # objects: imports make as many that stay, and each batch makes thousands that live for milliseconds
)


def collect_seldom() -> None:
    """Look for circles less often than Python does of itself."""
    gc.set_threshold(_AFTER, 20, 20)


def keep_what_is() -> None:
    """Look never again through what was imported, which would stop everything for tens of milliseconds.

    Nor is it looked through now, which would take as long: what little of it is garbage stays as well.
    """
    gc.freeze()
