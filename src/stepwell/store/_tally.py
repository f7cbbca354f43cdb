"""Counting steps: what one step adds to the sums of its hour.

What must stay true: what is added can be taken away again, so a step that changes or goes leaves no trace in the sums.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from stepwell.store._rows import fits
from stepwell.store._sketch import Counts, bucket_of, lanes_of, pack, unpack
from stepwell.store._summaries import HOUR_NS

__all__ = ["COUNTED_COLUMNS", "SUMS", "USER_OF", "Cell", "Key", "Sums", "Tally"]

SUMS: Final = (
    *("steps", "success", "failed", "cancelled", "pending", "interrupted"),
    *("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost"),
    *("timed", "duration_ns"),
    *("top", "failed_top"),
)
COUNTED_COLUMNS: Final = (
    *("start_ns", "end_ns", "type", "name", "model", "environment", "status", "is_top"),
    *("input_tokens", "output_tokens", "total_tokens", "cached_input_tokens", "cost"),
)
# The user that a step names, else its thread's: which is where the recorder writes it.
USER_OF: Final = "ifnull(s.user, (SELECT user_name FROM threads WHERE id = s.thread_id))"

_STATUS_AT: Final = {name: place for place, name in enumerate(SUMS) if 1 <= place <= 5}
_UNTIMED: Final = frozenset({"pending", "interrupted"})  # whatever end they have is not when they ended


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

    __slots__ = ("buckets", "cached", "cost", "duration", "input", "output", "steps", "timed", "top", "total")

    def __init__(self) -> None:
        self.steps = self.input = self.output = self.total = self.cached = self.timed = self.duration = self.top = 0
        self.cost = 0.0
        self.buckets: dict[int, int] = {}


class Sums:
    """Numbers in the order of `SUMS`, and durations."""

    __slots__ = ("_buckets", "_lanes", "numbers")

    def __init__(self) -> None:
        self.numbers: list[Any] = [0] * len(SUMS)
        self._buckets: dict[int, int] = {}  # of cells, which may be less than nothing
        self._lanes = 0  # of rows

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
        numbers[13] += cell.top
        if key.status == "failed":
            numbers[14] += cell.top
        if buckets:
            own = self._buckets
            for bucket, count in cell.buckets.items():
                own[bucket] = own.get(bucket, 0) + count

    def add_numbers(self, numbers: Iterable[Any]) -> None:
        """Add the sums of a row, or of several."""
        self.numbers = [mine + other for mine, other in zip(self.numbers, numbers, strict=True)]

    def add_durations(self, durations: bytes | None) -> None:
        """Add the durations of a row."""
        if durations is not None:
            self._lanes += lanes_of(durations)

    def counts(self) -> Counts:
        """Return the durations by bucket."""
        return unpack(self._lanes, self._buckets)

    def stored(self) -> list[Any]:
        """Return the numbers as a row has them."""
        # A column holds 64 bits; of a sum that is larger, a number near it.
        return [number if isinstance(number, float) or fits(number) else float(number) for number in self.numbers]

    def durations(self) -> bytes | None:
        """Return the durations as a row has them."""
        return pack(self.counts())


class Tally:
    """Steps by what they have in common; `signs` of +1 count and of -1 take away."""

    def __init__(self) -> None:
        self.cells: dict[Key, Cell] = {}

    def add(self, rows: Iterable[tuple[Any, ...]], sign: int = 1) -> None:
        """Count rows of the user followed by `COUNTED_COLUMNS`."""
        cells = self.cells
        for user, start_ns, end_ns, type_, name, model, environment, status, is_top, *numbers in rows:
            hour_ns = start_ns - start_ns % HOUR_NS if start_ns >= 0 else -1
            key = Key(hour_ns, type_, name, model, environment, user, status)
            cell = cells.get(key)
            if cell is None:
                cell = cells[key] = Cell()
            cell.steps += sign
            if is_top:
                cell.top += sign
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
                bucket = bucket_of(duration)
                cell.timed += sign
                cell.duration += sign * duration
                cell.buckets[bucket] = cell.buckets.get(bucket, 0) + sign
