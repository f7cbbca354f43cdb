"""What is asked of a store's sums, and what it answers; `stepwell.store` names them all.

What must stay true: sums are exact, whether they were counted before or are counted now. Percentiles are of the
nearest rank, and less than 2 % away from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from msgspec import Struct

__all__ = [
    "DAY_NS",
    "HOUR_NS",
    "MAX_ROLLUPS",
    "Dimension",
    "Every",
    "Facets",
    "Histogram",
    "HistogramBin",
    "Rollup",
    "RollupQuery",
    "UserRow",
]

Dimension = Literal["type", "name", "model", "user", "environment"]
Every = Literal["hour", "day"]

HOUR_NS: Final = 3_600_000_000_000
DAY_NS: Final = 24 * HOUR_NS
MAX_ROLLUPS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RollupQuery:
    """Which steps are summed, and by what: `by` some fields, and `every` hour or day (UTC), or over all time (None).

    `since_ns` is inclusive, `until_ns` exclusive, both about the step's start; a step of which the start is not known
    is in no range, and counts where neither is given. The other fields must be equal, where given. `user` is the one
    that the step names, else its thread's.

    There are percentiles only where `user` is neither in `by` nor given, and where `percentiles` says so; without them
    an answer takes less time.

    What combines `user` with `type`, `name` or `model` reads all steps of the range; anything else costs the hours and
    days of the range, and the steps that were added since `Store.catch_up`.
    """

    since_ns: int | None = None
    until_ns: int | None = None
    by: Sequence[Dimension] = ()
    every: Every | None = "day"
    type: str | None = None
    name: str | None = None
    model: str | None = None
    user: str | None = None
    environment: str | None = None
    percentiles: bool = True


class Rollup(Struct, frozen=True, omit_defaults=True):
    """The sums of some steps: those that started in the hour or day from `start_ns`, with the fields asked for `by`.

    A field that is None was not asked for, or the steps do not have it; likewise `start_ns`. `errors` are failed
    steps. A step that is pending or whose end is not known is counted, but has no duration: `timed` steps have one, of
    which `duration_ns` is the sum (the mean is the one by the other). Sums of hostile numbers, beyond 64 bits, are cut.
    """

    start_ns: int | None = None
    type: str | None = None
    name: str | None = None
    model: str | None = None
    user: str | None = None
    environment: str | None = None
    steps: int = 0
    errors: int = 0
    cancelled: int = 0
    pending: int = 0
    interrupted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int = 0
    cost: float = 0.0
    timed: int = 0
    duration_ns: int = 0
    p50_ns: int | None = None
    p90_ns: int | None = None
    p95_ns: int | None = None
    p99_ns: int | None = None


class UserRow(Struct, frozen=True, omit_defaults=True):
    """A user whom steps name, or whose threads have steps, with their sums. Times are of steps' starts.

    `threads` are those that name the user (by identifier, else id); `errors` are failed steps; `tokens` the total's.
    """

    user: str
    threads: int = 0
    steps: int = 0
    errors: int = 0
    tokens: int = 0
    cost: float = 0.0
    first_ns: int | None = None
    last_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Facets:
    """The values that occur most among the latest rows of a list: those of `counted` steps or threads, by field.

    `values` maps `type` `status` `model` `user` `tag` `environment` `soft_error` `reaction`, of threads `user` `tag`
    `environment`, to (value, rows), the most frequent first, 8 at most. `more` says that the list goes on. `times` are
    those by which the list is ordered, the latest first, each with whether the step failed, or a step of the thread; a
    row of which the time is not known is not among them.
    """

    counted: int
    more: bool
    values: Mapping[str, Sequence[tuple[str, int]]]
    times: Sequence[tuple[int, bool]] = ()


class HistogramBin(NamedTuple):
    """How many steps start in an hour or a day (UTC), and how many of them failed."""

    start_ns: int
    end_ns: int
    steps: int
    errors: int


@dataclass(frozen=True, slots=True)
class Histogram:
    """When the steps of a filter start: hours or days, the earliest first, without those that have none.

    They are the whole hours of the filter's range. Where these, or the sums that may be read, do not reach back to its
    beginning, `since_ns` is where they do begin. `undated` steps have no known start.
    """

    bins: Sequence[HistogramBin]
    since_ns: int | None = None
    undated: int = 0
