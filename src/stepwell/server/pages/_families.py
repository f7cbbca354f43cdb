"""The runs looked at last, put together once for as long as their store stays as it is.

What must stay true: what is shown is never older than the store's last change or deletion; memory is bounded by
`MAX_ROWS`. Deletions have no position, but go by whole runs and whole threads: a kept run is there as long as its first
step and one step of each of its threads are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import Final

from stepwell.errors import NotFoundError
from stepwell.server.pages._rows import Family, family_of
from stepwell.store import MAX_PAGE, StepFilter, Store

__all__ = ["Families"]

MAX_RUNS: Final = 8
MAX_ROWS: Final = 30_000
_MAX_AGE_S: Final = 30.0


class Families:
    """Puts runs together, and keeps some; safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], tuple[int, float, Family]] = OrderedDict()

    def of(self, store: Store, id: str) -> Family:
        """Return the run that begins with a step. Raises `NotFoundError`."""
        _, position = store.changes(None)  # before reading: what comes meanwhile is read again the next time
        key, now = (_mark_of(store), id), time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and kept[0] == position and now - kept[1] < _MAX_AGE_S and _is_there(store, kept[2]):
            return kept[2]
        family = family_of(id, store.tree(id))
        self._keep(key, (position, now, family))
        return family

    def around(self, store: Store, id: str) -> Family:
        """Return the run that a step is in, as far up as it is known. Raises `NotFoundError`."""
        row = store.step(id)
        if row.root_run_id is not None and row.root_run_id != id:
            try:
                family = self.of(store, row.root_run_id)
            except NotFoundError:
                return self.of(store, id)
            if id in family.by_id:
                return family
        return self.of(store, id)

    def _keep(self, key: tuple[int, str], made: tuple[int, float, Family]) -> None:
        kept = OrderedDict(self._kept)  # replaced as a whole: others read it meanwhile
        kept[key] = made
        kept.move_to_end(key)
        while len(kept) > MAX_RUNS or (
            len(kept) > 1 and sum(len(each.rows) for _, _, each in kept.values()) > MAX_ROWS
        ):
            kept.popitem(last=False)
        self._kept = kept


def _is_there(store: Store, family: Family) -> bool:
    """Tell whether nothing of a run was deleted since it was put together."""
    of_threads = {row.step.thread_id: row.step.id for row in reversed(family.rows)}
    wanted = list({family.root.step.id, *of_threads.values()})
    if len(wanted) > MAX_PAGE:
        return False
    return len(store.steps(StepFilter(ids=wanted), limit=len(wanted)).items) == len(wanted)


def _mark_of(store: Store) -> int:
    """Return what tells a store from others while it lives."""
    return id(store)
