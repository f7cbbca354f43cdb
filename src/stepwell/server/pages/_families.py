"""The runs looked at last, put together once for as long as nothing of them changes.

What must stay true: what is shown is never older than the store's last change or deletion; memory is bounded by
`MAX_ROWS`. What came since is looked through for steps of the run, where that is less work than to read it again.
Deletions have no position, but go by whole runs and whole threads: a kept run is there as long as its first step and
one step of each of its threads are.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stepwell.errors import NotFoundError
from stepwell.server.pages._rows import Family, family_of
from stepwell.store import MAX_PAGE, StepFilter, StepRow, Store

__all__ = ["Families"]

MAX_RUNS: Final = 256
MAX_ROWS: Final = 30_000
_MAX_AGE_S: Final = 30.0


@dataclass(slots=True)
class _Kept:
    """A run as it was at a position of the store.

    `absent` are parents that steps of it name and that are not in it; `witnesses` are steps of it of which one at least
    is gone where something of it was deleted.
    """

    family: Family
    position: int
    made_s: float
    absent: set[str | None]
    witnesses: Sequence[str]


class Families:
    """Puts runs together, and keeps some; safe to use from several threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[int, str], _Kept] = OrderedDict()

    def of(self, store: Store, id: str) -> Family:
        """Return the run that begins with a step. Raises `NotFoundError`."""
        _, position = store.changes(None)  # before reading: what comes meanwhile is read again the next time
        key, now = (_mark_of(store), id), time.monotonic()
        kept = self._kept.get(key)
        if kept is not None and now - kept.made_s < _MAX_AGE_S and _is_current(store, kept, position):
            return kept.family
        family = family_of(id, store.tree(id))
        absent = {row.step.parent_id for row in family.rows} - family.by_id.keys()
        self._keep(key, _Kept(family, position, now, absent, _witnesses(family)))
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

    def _keep(self, key: tuple[int, str], made: _Kept) -> None:
        kept = OrderedDict(self._kept)  # replaced as a whole: others read it meanwhile
        kept[key] = made
        kept.move_to_end(key)
        while len(kept) > MAX_RUNS or (
            len(kept) > 1 and sum(len(each.family.rows) for each in kept.values()) > MAX_ROWS
        ):
            kept.popitem(last=False)
        self._kept = kept


def _is_current(store: Store, kept: _Kept, position: int) -> bool:
    """Tell whether nothing of a run changed or went up to a position; remember that position where it is so."""
    reached, left = kept.position, len(kept.family.rows) // 2  # changes: reading one takes what reading a row takes
    while reached < position:
        if left <= 0:
            return False
        limit = min(left, MAX_PAGE)
        rows, reached = store.changes(reached, limit)
        if any(_touches(row, kept) for row in rows):
            return False
        left -= limit
        reached = position if len(rows) < limit else reached
    kept.position = max(reached, kept.position)
    wanted = kept.witnesses
    return 0 < len(wanted) <= MAX_PAGE and len(store.steps(StepFilter(ids=wanted), limit=len(wanted)).items) == len(
        wanted
    )


def _touches(row: StepRow, kept: _Kept) -> bool:
    """Tell whether a step that came or changed is of a run, or changes where a step of the run belongs."""
    known = kept.family.by_id
    return row.id in known or row.id in kept.absent or row.parent_id in known or row.root_run_id in known


def _witnesses(family: Family) -> Sequence[str]:
    """Return the steps that are there as long as nothing of a run was deleted."""
    of_threads = {row.step.thread_id: row.step.id for row in reversed(family.rows)}
    return list({family.root.step.id, *of_threads.values()})


def _mark_of(store: Store) -> int:
    """Return what tells a store from others while it lives."""
    return id(store)
