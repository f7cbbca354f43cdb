"""A run at a glance, above its rows: when its steps ran, which of them failed, and the step of any moment.

What must stay true: it has so many marks at most, however many steps the run has, and putting it together takes a look
at each step and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

from stepwell._render import duration
from stepwell.server.pages._page import count
from stepwell.server.pages._rows import Family, Row

__all__ = ["Mark", "Overview", "Slot", "overview_of"]

_CELLS: Final = 240  # the least that a lane tells apart
_NAME: Final = 60  # characters
_SLOTS: Final = 60  # of which each leads to a step
_LANES: Final = {"llm": "llm", "tool": "tool", "retrieval": "tool", "embedding": "tool", "rerank": "tool"}
_PLACES: Final = {"llm": (2, 7), "tool": (10, 7), "other": (18, 3), "failed": (23, 5)}  # pixels from above, and high


@dataclass(frozen=True, slots=True)
class Mark:
    """A stretch in which steps of a lane ran: in percent of the run, and where its lane is."""

    lane: str
    x: float
    width: float
    y: int
    height: int


@dataclass(frozen=True, slots=True)
class Slot:
    """A part of the run's time in which a step without children ran: its id, and from when to when, in ms."""

    x: float
    width: float
    step: str
    says: str
    since: float
    until: float


@dataclass(frozen=True, slots=True)
class Overview:
    """The lanes of a run, its slots, and what stands below them."""

    marks: Sequence[Mark]
    slots: Sequence[Slot]
    ticks: Sequence[tuple[int, str]]
    says: str


def overview_of(family: Family) -> Overview | None:
    """Return the overview of a run, None where there is nothing to tell apart; it is kept with the run."""
    if "overview" not in family.derived:
        family.derived["overview"] = _make(family)
    made: Overview | None = family.derived["overview"]
    return made


def _make(family: Family) -> Overview | None:
    ran = [*_leaves(family)]
    if len(ran) < 2 or family.span_ns < _SLOTS:
        return None
    sums = family.root.sums
    failed = f", {count(sums.errors)} failed" if sums.errors else ""
    return Overview(
        [*_marks(ran)],
        [*_slots(family, ran)],
        [(share, duration(family.span_ns * share // 100)) for share in (25, 50, 75, 100)],
        f"{count(sums.steps)} steps in {duration(family.span_ns)}{failed}",
    )


def _leaves(family: Family) -> Iterator[tuple[Row, float, float]]:
    """Yield the steps without children, and when they began and ended, from 0 to 1."""
    begin, span_ns = family.start_ns, family.span_ns
    for row in family.rows:
        step = row.step
        start, end = step.start_ns, step.end_ns
        if row.children or start is None:
            continue
        if end is None:
            end = family.end_ns if step.status == "pending" else start
        yield row, (start - begin) / span_ns, (max(end, start) - begin) / span_ns


def _marks(ran: Sequence[tuple[Row, float, float]]) -> Iterator[Mark]:
    changes = {lane: [0] * (_CELLS + 1) for lane in _PLACES}
    for row, start, end in ran:
        change = changes[_LANES.get(row.step.type or "", "other")]
        first, last = min(int(start * _CELLS), _CELLS - 1), min(int(end * _CELLS), _CELLS - 1)
        change[first] += 1
        change[last + 1] -= 1
        if row.step.status == "failed":
            changes["failed"][last] += 1
            changes["failed"][last + 1] -= 1
    for lane, steps in changes.items():
        first, running = 0, 0
        for cell, now in enumerate(accumulate(steps)):
            if bool(now) != bool(running):
                if running:
                    yield Mark(lane, _percent(first), _percent(cell - first), *_PLACES[lane])
                first = cell
            running = now


def _percent(cells: float) -> float:
    return round(cells * 100 / _CELLS, 2)


def _slots(family: Family, ran: Sequence[tuple[Row, float, float]]) -> Iterator[Slot]:
    """Yield the slots in which anything ran, each with the step that ran longest in it, or the first that failed."""
    longest: dict[int, tuple[float, Row]] = {}
    free = list(range(_SLOTS + 1))  # of each slot, the next one that no step fills; a filled one is not looked at again
    for row, start, end in ran:
        begin, finish = start * _SLOTS, end * _SLOTS
        first, last = min(int(begin), _SLOTS - 1), min(int(finish), _SLOTS - 1)
        for slot in (first, last) if first != last else (first,):
            took = min(finish, slot + 1) - max(begin, slot)
            if slot == last and row.step.status == "failed":
                took = math.inf
            if slot not in longest or took > longest[slot][0]:
                longest[slot] = took, row
        slot = _next(free, first + 1) if last > first + 1 else last
        while slot < last:
            if slot not in longest or longest[slot][0] < 1:
                longest[slot] = 1, row
            free[slot] = slot + 1
            slot = _next(free, slot)
    width, length_ms = 100 / _SLOTS, family.span_ns / 1e6 / _SLOTS
    for slot, (_, row) in sorted(longest.items(), key=lambda each: each[0]):
        named = " ".join(dict.fromkeys((row.step.type or "unknown", (row.step.name or row.step.id)[:_NAME])))
        says = f"{duration(family.span_ns * slot // _SLOTS)}: {named}{' failed' if row.step.status == 'failed' else ''}"
        edges = (round(slot * length_ms, 6), round((slot + 1) * length_ms, 6))
        yield Slot(round(slot * width, 2), round(width, 2), row.step.id, says, *edges)


def _next(free: list[int], slot: int) -> int:
    while free[slot] != slot:
        free[slot] = free[free[slot]]
        slot = free[slot]
    return slot
