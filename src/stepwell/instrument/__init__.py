"""Instrumenting what is not ours, on request and until it is taken back: one module a library.

Such a module has `patches()`, called once, which imports the library and returns a `Patch` for each method to be
replaced. It gets its line in `_registry.LIBRARIES`, and nothing else knows of it.
"""

from stepwell.instrument._registry import instrument, uninstrument

__all__ = ["instrument", "uninstrument"]
