"""Ranges of numbers, such as those of messages that payloads refer to; both ends are inside.

What must stay true: what is united is ascending, and neither touches nor overlaps.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec import json

__all__ = ["Spans", "covers_any", "decode_spans", "encode_spans", "spans_of_refs", "united", "without"]

Spans = list[tuple[int, int]]

_refs: Final = json.Decoder(list[tuple[str, int, int, int]]).decode
_spans: Final = json.Decoder(list[tuple[int, int]]).decode
_encode: Final = json.Encoder().encode


def spans_of_refs(refs: str | bytes | memoryview) -> Spans:
    """Return which messages the column `refs` of a payload names, in its order."""
    return [(first, last) for _, _, first, last in _refs(refs)]


def decode_spans(text: str) -> Spans:
    """Read what `encode_spans` wrote."""
    return _spans(text)


def encode_spans(spans: Spans) -> str:
    """Write spans as JSON."""
    return _encode(spans).decode()


def united(spans: Iterable[tuple[int, int]]) -> Spans:
    """Return the numbers that are in any of the spans."""
    found: Spans = []
    for first, last in sorted(spans):
        if found and first <= found[-1][1] + 1:
            if last > found[-1][1]:
                found[-1] = found[-1][0], last
        else:
            found.append((first, last))
    return found


def without(spans: Spans, others: Spans) -> Spans:
    """Return the numbers of united spans that are in none of the others, which are united too."""
    left: Spans = []
    at = 0
    for first, last in spans:
        begin = first
        while at < len(others) and others[at][1] < begin:
            at += 1
        place = at
        while place < len(others) and others[place][0] <= last:
            if others[place][0] > begin:
                left.append((begin, others[place][0] - 1))
            begin = others[place][1] + 1
            place += 1
        if begin <= last:
            left.append((begin, last))
    return left


def covers_any(first: int, last: int, numbers: Sequence[int]) -> bool:
    """Tell whether one of the ascending numbers is within a span."""
    at = bisect_left(numbers, first)
    return at < len(numbers) and numbers[at] <= last
