"""Spans and events as OTLP's messages.

What must stay true: a value that can't be told costs no more than itself.

The official exporters make a message of each attribute and value before they put it into the span, at three times the
cost, which would be most of what sending a step costs; here they are filled in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource

from stepwell.exporters._otlp_spans import SCOPE, Sent, resource_of
from stepwell.otel.semconv import STATUS_ERROR, LogEvent, Span

__all__ = ["logs_request", "traces_request"]

_NO_PARENT_FLAGS: Final = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK: known not to be remote


def traces_request(spans: Sequence[Sent]) -> ExportTraceServiceRequest:
    """Return the request that sends spans, those of one resource together."""
    request = ExportTraceServiceRequest()
    scopes: dict[int, Any] = {}
    for span, resource in spans:
        scope = scopes.get(id(resource))
        if scope is None:
            resource_spans = request.resource_spans.add()
            _fill_resource(resource_spans, resource)
            scope = scopes[id(resource)] = resource_spans.scope_spans.add()
            scope.scope.name, scope.scope.version = SCOPE.name, SCOPE.version or ""
        _fill_span(scope.spans.add(), span)
    return request


def logs_request(events: Sequence[LogEvent]) -> ExportLogsServiceRequest:
    """Return the request that sends events as log records."""
    request = ExportLogsServiceRequest()
    resource_logs = request.resource_logs.add()
    _fill_resource(resource_logs, resource_of(None, None, None))
    scope = resource_logs.scope_logs.add()
    scope.scope.name, scope.scope.version = SCOPE.name, SCOPE.version or ""
    for event in events:
        record = scope.log_records.add()
        record.time_unix_nano = record.observed_time_unix_nano = event.time_ns
        record.event_name = event.name
        if event.trace_id:
            record.trace_id = event.trace_id.to_bytes(16, "big")
        if event.span_id:
            record.span_id = event.span_id.to_bytes(8, "big")
        _fill_attributes(record.attributes, event.attributes)
    return request


def _fill_resource(message: Any, resource: Resource) -> None:
    _fill_attributes(message.resource.attributes, resource.attributes)
    message.schema_url = resource.schema_url


def _fill_span(message: Any, span: Span) -> None:
    message.trace_id = span.trace_id.to_bytes(16, "big")
    message.span_id = span.span_id.to_bytes(8, "big")
    if span.parent_id is not None:
        message.parent_span_id = span.parent_id.to_bytes(8, "big")
    message.flags = _NO_PARENT_FLAGS
    message.name = _told(span.name)
    message.kind = span.kind
    message.start_time_unix_nano, message.end_time_unix_nano = span.start_ns, span.end_ns
    status = message.status
    status.SetInParent()  # there, though it may say nothing; so below
    if span.status:
        status.code = span.status
        if span.message and span.status == STATUS_ERROR:
            status.message = _told(span.message)
    _fill_attributes(message.attributes, span.attributes)
    for event in span.events:
        told = message.events.add()
        told.name, told.time_unix_nano = _told(event.name), event.time_ns
        _fill_attributes(told.attributes, event.attributes)


def _fill_attributes(pairs: Any, attributes: Mapping[str, Any]) -> None:
    add = pairs.add
    for key, value in attributes.items():
        pair = add()
        try:
            pair.key = key
            _fill(pair.value, value)
        except (ValueError, TypeError):  # UnicodeError too
            pair.key = _told(key)
            pair.value.string_value = _told(value)


def _fill(message: Any, value: Any) -> None:
    """Fill in a value. Raises what protobuf raises for one that it has no form for."""
    kind: Any = value.__class__
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif kind is int:
        message.int_value = value
    elif kind is float:
        message.double_value = value
    elif kind is bytes:
        message.bytes_value = value
    elif isinstance(value, Mapping):
        message.kvlist_value.SetInParent()
        _fill_attributes(message.kvlist_value.values, cast("Mapping[str, Any]", value))
    elif value is None:
        message.SetInParent()
    else:
        message.array_value.SetInParent()
        values = message.array_value.values
        for each in value:
            _fill(values.add(), each)


def _told(value: object) -> str:
    return str(value).encode("utf-8", "replace").decode()
