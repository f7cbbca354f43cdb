"""`stepwell demo`: record the demo, draw it, and say what to try next."""

from __future__ import annotations

import os
from pathlib import Path

from stepwell import _demo
from stepwell._cli_list import show
from stepwell._cli_output import Output
from stepwell._cli_source import Source
from stepwell._settings import DEFAULT_HOME
from stepwell.errors import UsageError
from stepwell.store import StepFilter, Store

__all__ = ["show_demo"]


def show_demo(source: Source, out: Output) -> int:
    """Record to the home folder's store, or the one named; return the exit status, 1 where not all arrived there."""
    home = source.home
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"home folder {str(home)!r} can't be made: {error.strerror}") from error
    if not os.access(home, os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"home folder {str(home)!r} can't be written: choose another with --home")
    arrived = _demo.record(home, source.url or "sqlite:")
    with source.reading() as store:
        for thread in _demo.THREADS:
            show(store, thread, out, full=None, max_lines=1000)
            out.text("")
        _next_steps(store, source, out)
    if not arrived:
        out.note("not all of it is in the store yet: stepwell doctor says why")
    return 0 if arrived else 1


def _next_steps(store: Store, source: Source, out: Output) -> None:
    suffix = "" if source.home == Path(DEFAULT_HOME) else f" --home {source.home}"
    suffix = suffix if source.url is None else f" --store {source.url}"
    run = store.runs(StepFilter(type="run", thread_id=_demo.THREADS[0]), limit=1).items
    failed = store.steps(StepFilter(status="failed", thread_id=_demo.THREADS[1]), limit=1).items
    out.text(f"Recorded to {source.url or source.home}. Look around:")
    out.text(f"  stepwell ls runs{suffix}")
    out.text(f"  stepwell show {run[0].id}{suffix}")
    out.text(f"  stepwell show {failed[0].id}{suffix}")
    out.text(f"  stepwell export{suffix} > records.jsonl")
    out.text(f"  stepwell serve{suffix}  # the same in a browser, with: pip install 'stepwell[server]'")
