"""Records as spans, and as log events where they are none; spans as the SDK has them.

What must stay true:

1. A step is sent once it has ended. One that was announced as pending is held until then; where nobody will see its
   end, it is sent as it was announced, with the status `interrupted`.
2. No attribute is cut or left out: the SDK's limit of 128 a span would drop the beginning of a long chat.
3. What is held is bounded, and let go only when what depends on it has been delivered.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from msgspec import structs
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from stepwell._vocabulary import SDK
from stepwell.model import Record, StepRecord, decode_record
from stepwell.otel.semconv import CLIENT, STATUS_ERROR, STATUS_OK, Convention, LogEvent, Span, event_of, span_of

__all__ = ["SCOPE", "Held", "Sendable", "Sent", "readable_of", "resource_of", "stub_of"]

MAX_HELD: Final = 10_000
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
MAX_STUB_ATTRIBUTES: Final = 1000
STUB_CHARACTERS: Final = 1024  # of a text attribute that a stub keeps
CUT: Final = "stepwell.cut"
_FLAGS: Final = TraceFlags(TraceFlags.SAMPLED)
SCOPE: Final = InstrumentationScope("stepwell", SDK.rpartition("/")[2])
_UNSET: Final = Status(StatusCode.UNSET)
_OK: Final = Status(StatusCode.OK)


class Sent(NamedTuple):
    """A span, and of whom it tells."""

    span: Span
    resource: Resource


class Sendable(NamedTuple):
    """What a batch comes to: spans with the places of their records in it, and events that are no spans."""

    spans: list[tuple[int, Sent]]
    events: list[LogEvent]
    settled: list[str]  # ids of held steps that need not be held once this is delivered


class Held:
    """The steps that were announced and have not ended."""

    def __init__(self, conventions: Collection[Convention]) -> None:
        self._conventions = conventions
        self._frames: dict[str, bytes] = {}
        self._size = 0

    def sort(self, frames: Sequence[bytes], records: Sequence[Record]) -> Sendable:
        """Turn the records of a batch into what can be sent; what has no form in OTLP is passed over."""
        found = Sendable([], [], [])
        for at, record in enumerate(records):
            if not isinstance(record, StepRecord):
                found.events.append(event_of(record))
            elif record.status == "pending":
                self._hold(record.id, frames[at])
            else:
                step = record
                if record.id in self._frames:
                    found.settled.append(record.id)
                    step = self._interrupted(record) if record.status == "interrupted" else record
                if step.start_ns is not None:  # else an update of a step that was sent
                    span = span_of(step, conventions=self._conventions)
                    found.spans.append((at, Sent(span, resource_of(step.service, step.environment, step.release))))
        return found

    def forget(self, ids: Sequence[str]) -> None:
        """Let go of steps that have been delivered."""
        for id in ids:
            frame = self._frames.pop(id, None)
            self._size -= 0 if frame is None else len(frame)

    def _hold(self, id: str, frame: bytes) -> None:
        self.forget([id])
        self._frames[id] = frame
        self._size += len(frame)
        while len(self._frames) > MAX_HELD or self._size > MAX_HELD_BYTES:
            self.forget([next(iter(self._frames))])

    def _interrupted(self, update: StepRecord) -> StepRecord:
        record = decode_record(self._frames[update.id])
        return structs.replace(record, status="interrupted") if isinstance(record, StepRecord) else update


@lru_cache(maxsize=64)
def resource_of(service: str | None, environment: str | None, release: str | None) -> Resource:
    """Return what the program says of itself, else what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say."""
    said = {"service.name": service, "deployment.environment.name": environment, "service.version": release}
    return Resource.create({name: value for name, value in said.items() if value is not None})


def readable_of(sent: Sent) -> ReadableSpan:
    """Return a span of the SDK."""
    span = sent.span
    parent = None if span.parent_id is None else SpanContext(span.trace_id, span.parent_id, False, _FLAGS)
    status = _OK if span.status == STATUS_OK else _UNSET
    if span.status == STATUS_ERROR:
        status = Status(StatusCode.ERROR, span.message or None)
    return ReadableSpan(
        span.name,
        SpanContext(span.trace_id, span.span_id, False, _FLAGS),
        parent,
        sent.resource,
        span.attributes,
        [Event(event.name, event.attributes, event.time_ns) for event in span.events],
        [Link(SpanContext(link.trace_id, link.span_id, False, _FLAGS), link.attributes) for link in span.links],
        SpanKind.CLIENT if span.kind == CLIENT else SpanKind.INTERNAL,
        None,
        status,
        span.start_ns,
        span.end_ns,
        SCOPE,
    )


def stub_of(sent: Sent) -> Sent:
    """Return a span without its long texts, which `stepwell.cut` names."""
    given = sent.span.attributes
    short = [(name, value) for name, value in given.items() if not _is_long(value)][:MAX_STUB_ATTRIBUTES]
    kept = dict(short)
    kept[CUT] = [name for name in given if name not in kept][:MAX_STUB_ATTRIBUTES]
    stub = structs.replace(
        sent.span,
        name=sent.span.name[:STUB_CHARACTERS],
        message=sent.span.message[:STUB_CHARACTERS],
        attributes=kept,
        events=(),
        links=(),
    )
    return Sent(stub, sent.resource)


def _is_long(value: object) -> bool:
    if isinstance(value, str | bytes):
        return len(value) > STUB_CHARACTERS
    return not isinstance(value, bool | int | float | None)  # what is nested, too
