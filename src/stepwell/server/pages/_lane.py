"""A timeline's bars: where they begin and end, in thousandths of the run, as SVG draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stepwell.server.pages._rows import Family, Row

__all__ = ["Bar", "Lane", "lane_of"]

_LEAST: Final = 2.0  # of 1000: what a bar is wide at least, so that it is seen
MAX_PIECES: Final = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """A piece of a lane, in thousandths; `kind` is what it is drawn as."""

    x: float
    width: float
    kind: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A step's bar: whole, its own time in it, what of its children is past its end, and its first token."""

    bars: Sequence[Bar]
    first_token: float | None


def lane_of(family: Family, row: Row, now_ns: int | None = None) -> Lane:
    """Return the lane of a row."""
    start, end = row.step.start_ns, row.step.end_ns
    if start is None:
        return Lane((), None)
    last = (
        (family.end_ns if now_ns is None else now_ns) if end is None and row.step.status == "pending" else end or start
    )
    kind = row.step.type or "unknown"
    first_token = None
    if row.step.ttft_ns is not None:
        first_token = round(family.share(start + row.step.ttft_ns) * 1000, 2)
    if not row.children:
        return Lane((_bar(family, start, last, "pending" if end is None else kind),), first_token)
    bars = [_bar(family, start, last, "whole pending" if end is None else "whole")]
    bars += (_bar(family, a, b, "own") for a, b in _uncovered(row, start, last)[:MAX_PIECES])
    past = max((child.step.end_ns or 0 for child in row.children), default=0)
    if end is not None and past > end:
        bars.append(_bar(family, end, past, "tail"))
    return Lane(bars, first_token)


def _bar(family: Family, start: int, end: int, kind: str) -> Bar:
    x = min(family.share(start) * 1000, 1000 - _LEAST)
    width = max((family.share(end) - family.share(start)) * 1000, _LEAST)
    return Bar(round(x, 2), round(min(width, 1000 - x), 2), kind)


def _uncovered(row: Row, start: int, end: int) -> list[tuple[int, int]]:
    """Return the stretches of a step in which none of its children ran."""
    found: list[tuple[int, int]] = []
    reached = start
    spans = sorted((child.step.start_ns or start, child.step.end_ns or end) for child in row.children)
    for first, last in spans:
        if first > reached:
            found.append((reached, min(first, end)))
        reached = max(reached, last)
    if reached < end:
        found.append((reached, end))
    return found
