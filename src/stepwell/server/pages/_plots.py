"""Bars over time: their places in a plot, how times stand below and in them, and how wide they are.

What must stay true: a plot has so many bars at most, whatever time it spans; all of them are UTC.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from stepwell.server.pages._page import moment
from stepwell.store._summaries import DAY_NS, HOUR_NS

__all__ = ["MAX_BARS", "Scale", "draw_bar", "instant", "scale_of", "stacked"]

MAX_BARS: Final = 60
_MAX_DAYS: Final = 9  # ticks that say a day
_MAX_CLOCKS: Final = 6  # and that say a time, which is longer
_LAST_TICK: Final = 93.0  # percent; a label further right would have no room
_LAST_LONG_TICK: Final = 80.0  # the same of one with milliseconds, also on a phone
_SECOND_NS: Final = 1_000_000_000
_MINUTE_NS: Final = 60 * _SECOND_NS
_STEPS: Final = (
    *(n * 1_000_000 for n in (1, 2, 5, 10, 20, 50, 100, 200, 500)),
    *(n * _SECOND_NS for n in (1, 2, 5, 10, 15, 30)),
    *(n * _MINUTE_NS for n in (1, 2, 5, 10, 15, 30)),
    *(n * HOUR_NS for n in (1, 2, 3, 6, 12)),
    *(n * DAY_NS for n in (1, 2, 7, 14, 28, 91, 364, 3640)),
)
_MONDAY_NS: Final = 4 * DAY_NS  # the first one after the epoch
_UNITS: Final = (
    *((7 * DAY_NS, "week"), (DAY_NS, "day"), (HOUR_NS, "hour"), (_MINUTE_NS, "minute"), (_SECOND_NS, "second")),
    (1_000_000, "millisecond"),
)


Place = tuple[float, float, float, float]


def stacked(values: Sequence[tuple[float, float]], least: float = 0.0) -> tuple[float, list[Place]]:
    """Return the value at a plot's upper edge, 0 where there is nothing, and where its bars are: x, width, and how high
    their lower and upper parts are, in percent of the plot. What is not nothing is `least` percent high.
    """
    top = max((low + high for low, high in values), default=0)
    if not top:
        return 0, []
    width, scale = 100 / len(values), (100 - 2 * least) / top

    def height(value: float) -> float:
        return round(value * scale + least, 2) if value else 0

    return top, [
        (round(at * width, 2), round(width * 0.86, 2), height(low), height(high))
        for at, (low, high) in enumerate(values)
    ]


def draw_bar(place: Place, says: str, href: str, n: int | None = None, *, hatched: bool = False) -> str:
    """Return the HTML of a bar of words and a link that are escaped already; `n` is how many it stands for.

    The upper part is hatched where it tells of failures, which are not to be told by a colour alone.
    """
    x, width, low, high = place
    at = f'x="{x}%" width="{width}%"'
    many = "" if n is None else f' data-n="{n}"'
    parts = [f'<rect class="hit" {at} y="0" height="100%"/>']
    if low:
        parts.append(f'<rect class="low" {at} y="{round(100 - low, 2)}%" height="{low}%"/>')
    if high:
        look = 'fill="url(#hatch)"' if hatched else 'class="high"'
        parts.append(f'<rect {look} {at} y="{round(100 - low - high, 2)}%" height="{high}%"/>')
    return f'<a href="{href}" aria-label="{says}"{many}><title>{says}</title>{"".join(parts)}</a>'


@dataclass(frozen=True, slots=True)
class Scale:
    """The bars of a stretch of time: where the first begins, how long each is, and how many there are."""

    start_ns: int
    step_ns: int
    bars: int

    def at(self, ns: int) -> int:
        """Return the bar of a time."""
        return (ns - self.start_ns) // self.step_ns

    def share(self, ns: int) -> float:
        """Return where a time is, in percent."""
        return min(max((ns - self.start_ns) / (self.step_ns * self.bars) * 100, 0.0), 100.0)

    def step(self) -> str:
        """Say how long a bar is: `6 hours`."""
        unit_ns, unit = next((ns, name) for ns, name in _UNITS if self.step_ns % ns == 0)
        n = self.step_ns // unit_ns
        return f"{n:,} {unit}s" if n > 1 else f"1 {unit}"

    def ticks(self) -> list[tuple[float, str]]:
        """Return what stands below the bars, and where; the first says the day as well."""
        step_ns = next(
            ns
            for ns in (*_STEPS, 10 * _STEPS[-1])
            if ns >= self.step_ns and self._ticks(ns) <= (_MAX_DAYS if ns >= DAY_NS else _MAX_CLOCKS)
        )
        first = _floor(self.start_ns + step_ns - 1, step_ns)
        starts = [first + n * step_ns for n in range(self._ticks(step_ns) + 1)]
        last = _LAST_LONG_TICK if step_ns % _SECOND_NS else _LAST_TICK
        shown = [start for start in starts if self.share(start) < last]
        return [(round(self.share(start), 2), _label(start, step_ns, first=not at)) for at, start in enumerate(shown)]

    def _ticks(self, step_ns: int) -> int:
        return self.step_ns * self.bars // step_ns


def scale_of(first_ns: int, last_ns: int, least_ns: int = 1) -> Scale:
    """Return the scale on which both times are, the finest that has not too many bars, each of `least_ns` or more."""
    step_ns = next(ns for ns in _STEPS if ns >= least_ns and (last_ns - _floor(first_ns, ns)) // ns < MAX_BARS)
    start_ns = _floor(first_ns, step_ns)
    return Scale(start_ns, step_ns, (last_ns - start_ns) // step_ns + 1)


def _floor(ns: int, step_ns: int) -> int:
    """Return the beginning of a bar; weeks begin on Mondays."""
    offset = _MONDAY_NS if step_ns % (7 * DAY_NS) == 0 else 0
    return (ns - offset) // step_ns * step_ns + offset


def instant(ns: int, step_ns: int) -> str:
    """Write when a bar of this length begins, as exactly as it needs."""
    at = moment(max(ns, 0))  # the first Monday is after the epoch
    if at is None:
        return ""
    if step_ns % _SECOND_NS:
        return f"{at['read']}.{ns % _SECOND_NS // 1_000_000:03d}"
    return at["read"][: 10 if step_ns % DAY_NS == 0 else 16 if step_ns % _MINUTE_NS == 0 else 19]


def _label(ns: int, step_ns: int, *, first: bool) -> str:
    at = moment(max(ns, 0)) or {"read": "", "day": ", "}
    day, _, minute = at["day"].partition(", ")
    if step_ns >= 28 * DAY_NS:
        return at["read"][:10]
    if step_ns >= DAY_NS or ns % DAY_NS == 0:
        return day
    clock = minute if step_ns % _MINUTE_NS == 0 else instant(ns, step_ns)[11:]
    return f"{day}, {clock}" if first else clock
