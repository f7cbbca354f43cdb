"""The values of the language of filters: numbers, times and scalars, as they are typed.

What must stay true: every text is a value or a `QueryError` that names the character that is to blame.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

from stepwell.errors import UsageError
from stepwell.store import Scalar

__all__ = ["COUNTED", "UNITS", "QueryError", "Value", "decimal_of", "float_of", "moment_of", "scalar_of"]

UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
    "w": 604_800_000_000_000,
}
_MAX: Final = (1 << 63) - 1
_ISO: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:\d\d)?")


class QueryError(UsageError):
    """Says that a query can't be understood; `position` is the character to blame, from 0."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(f"{message} (at character {position + 1})")
        self.position = position


class Value(NamedTuple):
    """What stands after a key: decoded, where it begins, and whether it stood in quotation marks."""

    text: str
    at: int
    quoted: bool


def decimal_of(text: str) -> Decimal | None:
    """Read a number, None for what is none, or none of a size that is ever meant."""
    try:
        number = Decimal(text) if len(text) <= 40 and text.isascii() and "_" not in text else None
    except InvalidOperation:
        return None
    return number if number is not None and number.is_finite() and abs(number.adjusted()) < 400 else None


def _whole(value: Value, number: Decimal | None, expected: str) -> int:
    if number is None or number != number.to_integral_value() or abs(number) > _MAX:
        raise QueryError(f"expected {expected}", value.at)
    return int(number)


def _count(value: Value) -> int:
    scale = {"k": 1_000, "M": 1_000_000}.get(value.text[-1:], 1)
    number = decimal_of(value.text if scale == 1 else value.text[:-1])
    return _whole(value, None if number is None else number * scale, "a whole number, such as 1000 or 10k")


def _span(value: Value) -> int:
    match = re.fullmatch(r"(.*?[0-9.])(ns|us|ms|s|m|h|d|w)", value.text, re.DOTALL)
    number = None if match is None else decimal_of(match[1])
    scaled = None if number is None or match is None else number * UNITS[match[2]]
    return _whole(value, scaled, "a time with its unit, such as 200ms, 1.5s, 2h or 7d")


def float_of(value: Value) -> float:
    """Read a number."""
    number = decimal_of(value.text)
    if number is None or not math.isfinite(float(number)):
        raise QueryError("expected a number, such as 0.8", value.at)
    return float(number)


COUNTED: Final[dict[str, Callable[[Value], float]]] = {"tokens": _count, "cost": float_of, "duration": _span}


def moment_of(value: Value, now_ns: int) -> int:
    """Read `2h` (ago), nanoseconds since the Unix epoch, or an ISO date or time, UTC where it says no zone."""
    text = value.text
    if re.fullmatch(r"[0-9]{10,30}", text):
        return int(text)
    if re.fullmatch(r"[0-9.]+(s|m|h|d|w)", text):
        return max(now_ns - _span(value), 0)
    match = _ISO.fullmatch(text)
    day, clock, fraction, zone = ("", "", "", "") if match is None else match.groups()
    try:
        at = datetime.fromisoformat(f"{day}T{clock or '00:00'}{zone or 'Z'}")
        return max(round(at.timestamp()) * 1_000_000_000 + int((fraction or "").ljust(9, "0")), 0)
    except (ValueError, OverflowError):
        expected = "a time ago, such as 30m, 2h or 7d, or a date or time, such as 2026-05-01 or 2026-05-01T14:30"
        raise QueryError(f"expected {expected}", value.at) from None


def scalar_of(text: str) -> Scalar:
    """Read what metadata may be equal to: true, false, null, a number, or else text."""
    if text in {"true", "false", "null"}:
        return {"true": True, "false": False}.get(text)
    if re.fullmatch(r"-?(0|[1-9][0-9]{0,30})", text):
        return int(text)
    number = decimal_of(text)
    return (
        text if number is None or not re.match(r"-?[0-9]", text) or not math.isfinite(float(number)) else float(number)
    )
