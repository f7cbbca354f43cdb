"""Records as what OpenTelemetry's exporters take: spans of the SDK, and logs for what is no span.

What must stay true:

1. A step is sent once it has ended. One that was announced as pending is held until then; where nobody will see its
   end, it is sent as it was announced, with the status `interrupted`.
2. No attribute is cut or left out: the SDK's limit of 128 a span would drop the beginning of a long chat.
3. What is held is bounded, and let go only when what depends on it has been delivered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

from msgspec import structs
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from stepwell._vocabulary import SDK
from stepwell.model import Record, StepRecord, decode_record
from stepwell.otel.semconv import CLIENT, STATUS_ERROR, STATUS_OK, Convention, LogEvent, Span, event_of, span_of

__all__ = ["Held", "Sendable", "logs_request", "stub_of"]

MAX_HELD: Final = 10_000
MAX_HELD_BYTES: Final = 16 * 1024 * 1024
STUB_CHARACTERS: Final = 1024  # of a text attribute that a stub keeps
CUT: Final = "stepwell.cut"
_FLAGS: Final = TraceFlags(TraceFlags.SAMPLED)
_SCOPE: Final = InstrumentationScope("stepwell", SDK.rpartition("/")[2])
_UNSET: Final = Status(StatusCode.UNSET)
_OK: Final = Status(StatusCode.OK)


class Sendable(NamedTuple):
    """What a batch comes to: spans with the places of their records in it, and events that are no spans."""

    spans: list[tuple[int, ReadableSpan]]
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
                    found.spans.append((at, _readable(span, _resource(step.service, step.environment, step.release))))
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
def _resource(service: str | None, environment: str | None, release: str | None) -> Resource:
    """Return what the program says of itself, else what `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES` say."""
    said = {"service.name": service, "deployment.environment.name": environment, "service.version": release}
    return Resource.create({name: value for name, value in said.items() if value is not None})


def _readable(span: Span, resource: Resource) -> ReadableSpan:
    parent = None if span.parent_id is None else SpanContext(span.trace_id, span.parent_id, False, _FLAGS)
    status = _OK if span.status == STATUS_OK else _UNSET
    if span.status == STATUS_ERROR:
        status = Status(StatusCode.ERROR, span.message or None)
    return ReadableSpan(
        span.name,
        SpanContext(span.trace_id, span.span_id, False, _FLAGS),
        parent,
        resource,
        span.attributes,
        [Event(event.name, event.attributes, event.time_ns) for event in span.events] if span.events else (),
        (),
        SpanKind.CLIENT if span.kind == CLIENT else SpanKind.INTERNAL,
        None,
        status,
        span.start_ns,
        span.end_ns,
        _SCOPE,
    )


def stub_of(span: ReadableSpan) -> ReadableSpan:
    """Return a span without its long texts, which `stepwell.cut` names."""
    given: Mapping[str, Any] = span.attributes or {}
    kept = {name: value for name, value in given.items() if not _is_long(value)}
    events = [Event(each.name, {}, each.timestamp) for each in span.events[:100]]
    return ReadableSpan(
        span.name[:STUB_CHARACTERS],
        span.context,
        span.parent,
        span.resource,
        {**dict(list(kept.items())[:1000]), CUT: [name for name in given if name not in kept][:1000]},
        events,
        (),
        span.kind,
        None,
        Status(span.status.status_code, (span.status.description or "")[:STUB_CHARACTERS] or None),
        span.start_time,
        span.end_time,
        span.instrumentation_scope,
    )


def _is_long(value: object) -> bool:
    if isinstance(value, str | bytes):
        return len(value) > STUB_CHARACTERS
    return not isinstance(value, bool | int | float | None)  # what is nested, too


def logs_request(events: Sequence[LogEvent]) -> Any:
    """Return the request that sends events as log records."""
    from opentelemetry.exporter.otlp.proto.common import _internal as encoding
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope as Scope
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource as ResourceMessage

    records = [
        LogRecord(
            time_unix_nano=event.time_ns,
            observed_time_unix_nano=event.time_ns,
            event_name=event.name,
            trace_id=event.trace_id.to_bytes(16, "big") if event.trace_id else b"",
            span_id=event.span_id.to_bytes(8, "big") if event.span_id else b"",
            attributes=encoding._encode_attributes(event.attributes),
        )
        for event in events
    ]
    scope = Scope(name=_SCOPE.name, version=_SCOPE.version or "")
    resource = ResourceMessage(attributes=encoding._encode_attributes(_resource(None, None, None).attributes))
    scoped = ScopeLogs(scope=scope, log_records=records)
    return ExportLogsServiceRequest(resource_logs=[ResourceLogs(resource=resource, scope_logs=[scoped])])
