"""OTLP requests, and what they are answered, for tests; protobuf by the official classes, JSON by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from stepwell.otel.semconv import Span

PROTOBUF = "application/x-protobuf"


def any_value(value: Any) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    found = AnyValue()
    if isinstance(value, Mapping):
        found.kvlist_value.values.extend(key_values(value))
        found.kvlist_value.SetInParent()
    elif isinstance(value, Sequence):
        found.array_value.values.extend([any_value(each) for each in value])
        found.array_value.SetInParent()
    return found


def key_values(attributes: Mapping[str, Any]) -> list[KeyValue]:
    return [KeyValue(key=name, value=any_value(value)) for name, value in attributes.items()]


def request_of(
    *spans: Span, resource: Mapping[str, Any] | None = None, scope: str = "", version: str = ""
) -> ExportTraceServiceRequest:
    request = ExportTraceServiceRequest()
    of_resource = request.resource_spans.add()
    of_resource.resource.attributes.extend(key_values(resource or {}))
    of_scope = of_resource.scope_spans.add()
    of_scope.scope.name, of_scope.scope.version = scope, version
    for span in spans:
        sent = of_scope.spans.add(
            trace_id=span.trace_id.to_bytes(16, "big"),
            span_id=span.span_id.to_bytes(8, "big"),
            parent_span_id=b"" if span.parent_id is None else span.parent_id.to_bytes(8, "big"),
            name=span.name,
            kind=span.kind,  # type: ignore[arg-type]
            start_time_unix_nano=span.start_ns,
            end_time_unix_nano=span.end_ns,
        )
        sent.status.code, sent.status.message = span.status, span.message  # type: ignore[assignment]
        sent.attributes.extend(key_values(span.attributes))
        for event in span.events:
            sent.events.add(name=event.name, time_unix_nano=event.time_ns, attributes=key_values(event.attributes))
        for link in span.links:
            sent.links.add(
                trace_id=link.trace_id.to_bytes(16, "big"),
                span_id=link.span_id.to_bytes(8, "big"),
                attributes=key_values(link.attributes),
            )
    return request
