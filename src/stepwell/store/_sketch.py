"""Durations as counts in buckets: from a duration to its bucket, to what a row holds, and to percentiles.

What must stay true:

1. Bucket n counts durations above 1.04^(n-1) ns up to 1.04^n ns, so its middle is less than 2 % from any of them (the
   idea of DDSketch, Masson, Rim and Lee, VLDB 2019). Bucket 0 holds 1 ns and less, also the negative durations of
   clocks that were set back, and stands for 0.
2. Rows are merged without a step of Python for each bucket, as a sum over a month has half a million of them: they are
   added as integers that have 64 bits for each bucket, more than any count needs.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Final, NamedTuple

__all__ = ["Counts", "bucket_of", "lanes_of", "middle_of", "pack", "percentiles", "unpack"]

_LOG_WIDTH: Final = math.log(1.04)
_HEAD: Final = struct.Struct("<HB")
_WIDTHS: Final = ((1, "B"), (2, "H"), (4, "I"), (8, "Q"))
_LANE: Final = 8


def bucket_of(duration_ns: int) -> int:
    """Return the bucket of a duration."""
    return math.ceil(math.log(duration_ns) / _LOG_WIDTH) if duration_ns > 1 else 0


class Counts(NamedTuple):
    """How many durations are in a bucket, `first`, and those that follow."""

    first: int
    counts: list[int]


def pack(durations: Counts) -> bytes | None:
    """Return counts as a row has them, None for none; the form is told in `stepwell.store._schema`."""
    counts = [max(count, 0) for count in durations.counts]
    while counts and not counts[-1]:
        del counts[-1]
    if not counts:
        return None
    empty = next(place for place, count in enumerate(counts) if count)
    del counts[:empty]
    width, code = next(each for each in _WIDTHS if max(counts) < 1 << 8 * each[0])
    return _HEAD.pack(durations.first + empty, width) + struct.pack(f"<{len(counts)}{code}", *counts)


def lanes_of(packed: bytes) -> int:
    """Return the counts of a row as an integer, 64 bits a bucket, bucket 0 lowest; such integers may be added."""
    first: int
    width: int
    first, width = _HEAD.unpack_from(packed)
    start = _HEAD.size
    wide = bytearray((len(packed) - start) // width * _LANE)
    for byte in range(width):
        wide[byte::_LANE] = packed[start + byte :: width]
    return int.from_bytes(wide, "little") << 8 * _LANE * first


def unpack(lanes: int, more: dict[int, int]) -> Counts:
    """Return the counts of an integer made of those of `lanes_of`, and of `more` by bucket."""
    first, counts = 0, list[int]()
    if lanes:
        first = ((lanes & -lanes).bit_length() - 1) // (8 * _LANE)
        lanes >>= 8 * _LANE * first
        size = -(-lanes.bit_length() // (8 * _LANE))
        counts = list(struct.unpack(f"<{size}Q", lanes.to_bytes(size * _LANE, "little")))
    if more:
        lowest = min(more)
        first = first if counts else lowest
        if lowest < first:
            counts[:0] = [0] * (first - lowest)
            first = lowest
        counts += [0] * (max(more) + 1 - first - len(counts))
        for bucket, count in more.items():
            counts[bucket - first] += count
    return Counts(first, counts)


def middle_of(bucket: int) -> int:
    """Return the duration that stands for a bucket's."""
    return round(2 * 1.04**bucket / 2.04) if bucket else 0


def percentiles(durations: Counts, shares: Iterable[float]) -> list[int | None]:
    """Return the durations of which such shares are not longer, by nearest rank."""
    seen = list(accumulate(durations.counts))
    if not seen or seen[-1] <= 0:
        return [None for _ in shares]
    ranks = (max(1, math.ceil(share * seen[-1])) for share in shares)
    return [middle_of(durations.first + bisect_left(seen, rank)) for rank in ranks]
