"""stepwell: a flight recorder for LLM applications."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stepwell._config import Stats, configure, flush, shutdown, stats
from stepwell._context import current_run, current_step, current_thread
from stepwell._details import attach
from stepwell._propagation import bind, extract, inject
from stepwell._recording import (
    assistant_message,
    embedding,
    llm,
    rerank,
    retrieval,
    run,
    start,
    step,
    system_message,
    tool,
    user_message,
)
from stepwell._scoring import feedback, score
from stepwell._step import Step
from stepwell._thread import Thread, thread
from stepwell.instrument import instrument, uninstrument

if TYPE_CHECKING:
    from stepwell.client import AsyncClient, Client

__all__ = [
    "AsyncClient",
    "Client",
    "Stats",
    "Step",
    "Thread",
    "assistant_message",
    "attach",
    "bind",
    "configure",
    "current_run",
    "current_step",
    "current_thread",
    "embedding",
    "extract",
    "feedback",
    "flush",
    "inject",
    "instrument",
    "llm",
    "rerank",
    "retrieval",
    "run",
    "score",
    "shutdown",
    "start",
    "stats",
    "step",
    "system_message",
    "thread",
    "tool",
    "uninstrument",
    "user_message",
]


def __getattr__(name: str) -> Any:
    # They need pydantic and httpx, which programs that only record should not wait for.
    if name in ("AsyncClient", "Client"):
        return getattr(import_module("stepwell.client"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
