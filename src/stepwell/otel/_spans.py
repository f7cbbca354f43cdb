"""A span as plain values, what exporters send and what ingest reads; and how the ids of steps and spans follow from
each other.

What must stay true: a step's ids give the same span ids everywhere, in whatever order and process they are asked for,
so a child finds its parent although the two never met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any, Final, NamedTuple

from msgspec import Struct

from stepwell._vocabulary import is_uuid
from stepwell.model import StepRecord

__all__ = [
    "CLIENT",
    "INTERNAL",
    "MAX_INT",
    "STATUS_ERROR",
    "STATUS_OK",
    "STATUS_UNSET",
    "LogEvent",
    "Span",
    "SpanEvent",
    "SpanLink",
    "hex_of",
    "span_id_of",
    "step_id_of",
    "trace_id_of",
]

# Numbers of OTLP's enums (opentelemetry-proto v1.11.0, trace.proto); the SDK's own SpanKind counts from 0 instead.
INTERNAL: Final = 1
CLIENT: Final = 3
STATUS_UNSET: Final = 0
STATUS_OK: Final = 1
STATUS_ERROR: Final = 2
MAX_INT: Final = 2**63 - 1  # of an attribute's integer
_HEX: Final = frozenset("0123456789abcdef")


class SpanEvent(NamedTuple):
    """Something that happened within a span."""

    name: str
    time_ns: int
    attributes: Mapping[str, Any]


class SpanLink(NamedTuple):
    """Another span that this one has to do with."""

    trace_id: int
    span_id: int
    attributes: Mapping[str, Any]


class Span(Struct):
    """One span. Ids are integers of 128 and 64 bits, times nanoseconds since the epoch, kind and status OTLP's numbers.

    Attribute values are str, bool, int (64 bits), float, bytes, sequences and mappings of such, or None.
    """

    trace_id: int
    span_id: int
    name: str = ""
    parent_id: int | None = None
    kind: int = INTERNAL
    start_ns: int = 0
    end_ns: int = 0
    status: int = STATUS_UNSET
    message: str = ""
    attributes: Mapping[str, Any] = {}
    events: Sequence[SpanEvent] = ()
    links: Sequence[SpanLink] = ()


class LogEvent(Struct):
    """One log record that is an event; `trace_id` and `span_id` are 0 where it belongs to no span."""

    name: str = ""
    trace_id: int = 0
    span_id: int = 0
    time_ns: int = 0
    body: Any = None
    attributes: Mapping[str, Any] = {}


def hex_of(trace_id: int) -> str:
    """Return a trace id as records spell it: 32 hex digits."""
    return f"{trace_id:032x}"


def step_id_of(trace_id: int, span_id: int) -> str:
    """Return the id of the step that a span is: the UUID of its trace's high half and the span id."""
    digits = f"{span_id:016x}"
    return f"{_beginning(trace_id)}{digits[:4]}-{digits[4:]}"


@lru_cache(maxsize=1024)
def _beginning(trace_id: int) -> str:
    digits = f"{trace_id >> 64:016x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:]}-"


@lru_cache(maxsize=2048)  # one is asked for with each of its children
def span_id_of(id: str) -> int:
    """Return the id of the span that a step is: the low half of its UUID, else a digest."""
    number = int(id[19:].replace("-", ""), 16) if is_uuid(id) else _number(id, 16)
    return number or _digest(id, 8)


def trace_id_of(step: StepRecord) -> int:
    """Return the trace that a step is in; without one it is that of its run, else its own."""
    return _trace_number(step.trace_id or step.root_run_id or step.id)


@lru_cache(maxsize=1024)
def _trace_number(id: str) -> int:
    number = int(id.replace("-", ""), 16) if is_uuid(id) else _number(id, 32)
    return number or _digest(id, 16)


def _number(id: str, digits: int) -> int:
    return int(id, 16) if len(id) == digits and _HEX.issuperset(id) else 0


def _digest(id: str, size: int) -> int:
    return int.from_bytes(sha256(id.encode("utf-8", "surrogatepass")).digest()[:size], "big") or 1
