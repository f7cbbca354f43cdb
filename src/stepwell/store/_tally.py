"""Counting steps: what one step adds to the sums of its hour, and durations as numbers in buckets.

What must stay true:

1. What is added can be taken away again, so a step that changes or goes leaves no trace in the sums.
2. Bucket n counts durations above 1.04^(n-1) ns up to 1.04^n ns, so its middle is less than 2 % from any of them (the
   idea of DDSketch, Masson, Rim and Lee, VLDB 2019). Bucket 0 holds 1 ns and less, also the negative durations of
   clocks that were set back, and stands for 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from msgspec import json

from stepwell.store._rows import fits
from stepwell.store._summaries import HOUR_NS

__all__ = ["COUNTED_COLUMNS", "SUMS", "USER_OF", "Cell", "Key", "Sums", "Tally", "middle_of", "percentiles"]

SUMS: Final = (
    *("steps", "success", "failed", "cancelled", "pending", "interrupted"),
    *("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost"),
    *("timed", "duration_ns"),
)
COUNTED_COLUMNS: Final = (
    *("start_ns", "end_ns", "type", "name", "model", "environment", "status"),
    *("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost"),
)
# The user that a step names, else its thread's: which is where the recorder writes it.
USER_OF: Final = "ifnull(s.user, (SELECT user_name FROM threads WHERE id = s.thread_id))"

_STATUS_AT: Final = {name: place for place, name in enumerate(SUMS) if 1 <= place <= 5}
_UNTIMED: Final = frozenset({"pending", "interrupted"})  # whatever end they have is not when they ended
_LOG_WIDTH: Final = math.log(1.04)
_buckets = json.Decoder(dict[int, int]).decode
_encode = json.Encoder().encode


class Key(NamedTuple):
    """What the steps of a cell have in common; `hour_ns` is the start of their hour, -1 where it is not known."""

    hour_ns: int
    type: str | None
    name: str | None
    model: str | None
    environment: str | None
    user: str | None
    status: str | None


class Cell:
    """The sums of steps with one key."""

    __slots__ = ("buckets", "cached", "cost", "duration", "input", "output", "steps", "timed", "total")

    def __init__(self) -> None:
        self.steps = self.input = self.output = self.total = self.cached = self.timed = self.duration = 0
        self.cost = 0.0
        self.buckets: dict[int, int] = {}


class Sums:
    """Numbers in the order of `SUMS`, and durations."""

    __slots__ = ("buckets", "numbers")

    def __init__(self) -> None:
        self.numbers: list[Any] = [0] * len(SUMS)
        self.buckets: dict[int, int] = {}

    def add_cell(self, key: Key, cell: Cell, *, buckets: bool = True) -> None:
        numbers = self.numbers
        numbers[0] += cell.steps
        if key.status is not None:
            numbers[_STATUS_AT[key.status]] += cell.steps
        numbers[6] += cell.input
        numbers[7] += cell.output
        numbers[8] += cell.total
        numbers[9] += cell.cached
        numbers[10] += cell.cost
        numbers[11] += cell.timed
        numbers[12] += cell.duration
        if buckets:
            self._add_buckets(cell.buckets)

    def add_stored(self, numbers: Iterable[Any], durations: str | None) -> None:
        """Add a row of a table of sums."""
        self.numbers = [mine + other for mine, other in zip(self.numbers, numbers, strict=True)]
        if durations is not None:
            self._add_buckets(_buckets(durations))

    def _add_buckets(self, added: dict[int, int]) -> None:
        buckets = self.buckets
        get = buckets.get
        for bucket, count in added.items():
            buckets[bucket] = get(bucket, 0) + count

    def durations(self) -> str | None:
        """Return the durations as a row has them."""
        kept = {bucket: count for bucket, count in sorted(self.buckets.items()) if count}
        return _encode(kept).decode() if kept else None

    def stored(self) -> list[Any]:
        """Return the numbers as a row has them."""
        # A column holds 64 bits; of a sum that is larger, a number near it.
        return [number if isinstance(number, float) or fits(number) else float(number) for number in self.numbers]


class Tally:
    """Steps by what they have in common; `signs` of +1 count and of -1 take away."""

    def __init__(self) -> None:
        self.cells: dict[Key, Cell] = {}

    def add(self, rows: Iterable[tuple[Any, ...]], sign: int = 1) -> None:
        """Count rows of the user followed by `COUNTED_COLUMNS`."""
        cells, log, ceil = self.cells, math.log, math.ceil
        for user, start_ns, end_ns, type_, name, model, environment, status, *numbers in rows:
            hour_ns = start_ns - start_ns % HOUR_NS if start_ns >= 0 else -1
            key = Key(hour_ns, type_, name, model, environment, user, status)
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = Cell()
            cell.steps += sign
            input_, output, total, cached, cost = numbers
            if total is not None:
                cell.total += sign * total
            if input_ is not None:
                cell.input += sign * input_
            if output is not None:
                cell.output += sign * output
            if cached is not None:
                cell.cached += sign * cached
            if cost is not None:
                cell.cost += sign * cost
            if end_ns is not None and start_ns >= 0 and status not in _UNTIMED:
                duration = max(end_ns - start_ns, 0)
                bucket = ceil(log(duration) / _LOG_WIDTH) if duration > 1 else 0
                cell.timed += sign
                cell.duration += sign * duration
                cell.buckets[bucket] = cell.buckets.get(bucket, 0) + sign


def middle_of(bucket: int) -> int:
    """Return the duration that stands for a bucket's."""
    return round(2 * 1.04**bucket / 2.04) if bucket else 0


def percentiles(buckets: dict[int, int], shares: Iterable[float]) -> list[int | None]:
    """Return the durations of which such shares are not longer, by nearest rank; `shares` ascend."""
    total = sum(buckets.values())
    if total <= 0:
        return [None for _ in shares]
    found: list[int | None] = []
    ascending = iter(sorted(buckets.items()))
    bucket, seen = 0, 0
    for share in shares:
        rank = max(1, math.ceil(share * total))
        while seen < rank:
            bucket, count = next(ascending)
            seen += count
        found.append(middle_of(bucket))
    return found
