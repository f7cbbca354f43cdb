"""OTLP requests in their two encodings, protobuf and JSON, as plain spans and events (opentelemetry-proto v1.11.0).

What must stay true: a request that is not of its encoding is refused as a whole; a span that is none (its ids are not)
is refused alone.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from msgspec import Struct, json

from stepwell.otel.semconv import LogEvent, Origin, Span, SpanEvent, SpanLink, origin_of

__all__ = ["JSON", "PROTOBUF", "Read", "Signal", "TooManyError", "answer", "read"]

PROTOBUF: Final = "application/x-protobuf"
JSON: Final = "application/json"
Signal = Literal["spans", "logs"]
_HEX: Final = frozenset("0123456789abcdefABCDEF")
_KINDS: Final = {
    f"SPAN_KIND_{name}": number
    for number, name in enumerate(("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER"))
}
_STATUSES: Final = {"STATUS_CODE_UNSET": 0, "STATUS_CODE_OK": 1, "STATUS_CODE_ERROR": 2}


class _InvalidError(Exception):
    """Says what is wrong with one span or log record."""


class TooManyError(ValueError):
    """Says that a request has more items than are taken at once."""


# -- JSON: lowerCamelCase names, ids in hex, 64-bit integers as text, enums as numbers (names are taken, too)


class _Value(Struct, rename="camel"):
    string_value: str | None = None
    bool_value: bool | None = None
    int_value: int | str | None = None
    double_value: float | str | None = None
    array_value: _Array | None = None
    kvlist_value: _Fields | None = None
    bytes_value: str | None = None


class _Array(Struct):
    values: list[_Value | None] | None = None


class _Field(Struct):
    key: str | None = None
    value: _Value | None = None


class _Fields(Struct):
    values: list[_Field] | None = None


_Number = int | str | None


class _Event(Struct, rename="camel"):
    name: str | None = None
    time_unix_nano: _Number = None
    attributes: list[_Field] | None = None


class _Link(Struct, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    attributes: list[_Field] | None = None


class _Status(Struct):
    code: _Number = None
    message: str | None = None


class _Span(Struct, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    parent_span_id: str | None = None
    name: str | None = None
    kind: _Number = None
    start_time_unix_nano: _Number = None
    end_time_unix_nano: _Number = None
    attributes: list[_Field] | None = None
    events: list[_Event] | None = None
    links: list[_Link] | None = None
    status: _Status | None = None


class _Log(Struct, rename="camel"):
    trace_id: str | None = None
    span_id: str | None = None
    event_name: str | None = None
    time_unix_nano: _Number = None
    observed_time_unix_nano: _Number = None
    body: _Value | None = None
    attributes: list[_Field] | None = None


class _Resource(Struct):
    attributes: list[_Field] | None = None


class _Scope(Struct):
    name: str | None = None
    version: str | None = None


class _ScopeSpans(Struct):
    scope: _Scope | None = None
    spans: list[_Span] | None = None


class _ScopeLogs(Struct, rename="camel"):
    scope: _Scope | None = None
    log_records: list[_Log] | None = None


class _ResourceSpans(Struct, rename="camel"):
    resource: _Resource | None = None
    scope_spans: list[_ScopeSpans] | None = None


class _ResourceLogs(Struct, rename="camel"):
    resource: _Resource | None = None
    scope_logs: list[_ScopeLogs] | None = None


class _Traces(Struct, rename="camel"):
    resource_spans: list[_ResourceSpans] | None = None


class _Logs(Struct, rename="camel"):
    resource_logs: list[_ResourceLogs] | None = None


def _json_value(value: _Value | None) -> Any:  # noqa: PLR0911 (one return a kind of value)
    if value is None:
        return None
    if value.string_value is not None:
        return value.string_value
    if value.bool_value is not None:
        return value.bool_value
    if value.int_value is not None:
        return _int(value.int_value)
    if value.double_value is not None:
        return _float(value.double_value)
    if value.array_value is not None:
        return [_json_value(each) for each in value.array_value.values or ()]
    if value.kvlist_value is not None:
        return _json_fields(value.kvlist_value.values)
    if value.bytes_value is not None:
        try:
            return b64decode(value.bytes_value, validate=True)
        except binascii.Error:
            raise _InvalidError("bytesValue is not base64") from None
    return None


def _json_fields(fields: list[_Field] | None) -> dict[str, Any]:
    return {field.key: _json_value(field.value) for field in fields or () if field.key}


def _int(value: _Number) -> int:
    try:
        return int(value or 0)
    except ValueError:
        raise _InvalidError("an integer is none") from None


def _float(value: float | str) -> float:
    try:
        return float(value)
    except ValueError:
        raise _InvalidError("a number is none") from None


def _unsigned(value: _Number) -> int:
    number = _int(value)
    if not 0 <= number < 2**64:
        raise _InvalidError("a time is not within 64 bits")
    return number


def _enum(value: _Number, names: Mapping[str, int]) -> int:
    return names.get(value, 0) if isinstance(value, str) and not value.isdecimal() else _int(value)


def _hex_id(id: str | None, what: str, digits: int) -> int:
    """Return an id in hex as a number, 0 where there is none."""
    if not id:
        return 0
    if len(id) != digits or not _HEX.issuperset(id):
        raise _InvalidError(f"{what} is not {digits} hex digits")
    return int(id, 16)


def _json_span(span: _Span) -> Span:
    status = span.status or _Status()
    return _checked(
        Span(
            trace_id=_hex_id(span.trace_id, "traceId", 32),
            span_id=_hex_id(span.span_id, "spanId", 16),
            parent_id=_hex_id(span.parent_span_id, "parentSpanId", 16) or None,
            name=span.name or "",
            kind=_enum(span.kind, _KINDS),
            start_ns=_unsigned(span.start_time_unix_nano),
            end_ns=_unsigned(span.end_time_unix_nano),
            status=_enum(status.code, _STATUSES),
            message=status.message or "",
            attributes=_json_fields(span.attributes),
            events=[
                SpanEvent(event.name or "", _unsigned(event.time_unix_nano), _json_fields(event.attributes))
                for event in span.events or ()
            ],
            links=[
                SpanLink(
                    _hex_id(link.trace_id, "traceId", 32),
                    _hex_id(link.span_id, "spanId", 16),
                    _json_fields(link.attributes),
                )
                for link in span.links or ()
            ],
        )
    )


def _json_log(log: _Log) -> LogEvent:
    attributes = _json_fields(log.attributes)
    return LogEvent(
        name=log.event_name or _event_name(attributes),
        trace_id=_hex_id(log.trace_id, "traceId", 32),
        span_id=_hex_id(log.span_id, "spanId", 16),
        time_ns=_unsigned(log.time_unix_nano) or _unsigned(log.observed_time_unix_nano),
        body=_json_value(log.body),
        attributes=attributes,
    )


def _event_name(attributes: Mapping[str, Any]) -> str:
    """Return an event's name from where it was before log records had a field for it (v1.5.0)."""
    name = attributes.get("event.name")
    return name if isinstance(name, str) else ""


# -- protobuf


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    said = getattr(value, kind)
    if kind == "array_value":
        return [_value(each) for each in said.values]
    if kind == "kvlist_value":
        return _fields(said.values)
    return said


def _fields(fields: Iterable[Any]) -> dict[str, Any]:
    # Most are texts, and asking a message which of its fields is set costs more than reading it.
    return {field.key: field.value.string_value or _value(field.value) for field in fields}


def _id(id: bytes, what: str, size: int) -> int:
    """Return an id as a number, 0 where there is none."""
    if id and len(id) != size:
        raise _InvalidError(f"{what} has not {size} bytes")
    return int.from_bytes(id, "big")


def _span(span: Any) -> Span:
    return _checked(
        Span(
            trace_id=_id(span.trace_id, "trace_id", 16),
            span_id=_id(span.span_id, "span_id", 8),
            parent_id=_id(span.parent_span_id, "parent_span_id", 8) or None,
            name=span.name,
            kind=span.kind,
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            status=span.status.code,
            message=span.status.message,
            attributes=_fields(span.attributes),
            events=[SpanEvent(event.name, event.time_unix_nano, _fields(event.attributes)) for event in span.events],
            links=[
                SpanLink(_id(link.trace_id, "trace_id", 16), _id(link.span_id, "span_id", 8), _fields(link.attributes))
                for link in span.links
            ],
        )
    )


def _log(log: Any) -> LogEvent:
    attributes = _fields(log.attributes)
    return LogEvent(
        name=log.event_name or _event_name(attributes),
        trace_id=_id(log.trace_id, "trace_id", 16),
        span_id=_id(log.span_id, "span_id", 8),
        time_ns=log.time_unix_nano or log.observed_time_unix_nano,
        body=_value(log.body),
        attributes=attributes,
    )


def _checked(span: Span) -> Span:
    if not span.trace_id or not span.span_id:
        raise _InvalidError("a span has no trace id or no span id")
    return span


# -- both


class Read(NamedTuple):
    """Spans or events with where they are from; how many more were none, and what was wrong with the first of these."""

    items: list[tuple[Any, Origin]]
    rejected: int = 0
    error: str = ""


class _Form(NamedTuple):
    """How one signal is read from one encoding."""

    decode: Callable[[bytes], Any]
    item: Callable[[Any], Any]
    fields: Callable[[Any], dict[str, Any]]


_JSON: Final[dict[Signal, _Form]] = {
    "spans": _Form(json.Decoder(_Traces).decode, _json_span, _json_fields),
    "logs": _Form(json.Decoder(_Logs).decode, _json_log, _json_fields),
}
_NAMES: Final[dict[Signal, tuple[str, str, str]]] = {
    "spans": ("resource_spans", "scope_spans", "spans"),
    "logs": ("resource_logs", "scope_logs", "log_records"),
}


def read(signal: Signal, type: str, body: bytes, limit: int) -> Read:
    """Read a request of media type `type`. Raises `ValueError` for what is none, or has more than `limit` items."""
    form = _JSON[signal] if type == JSON else _from_protobuf(signal)
    try:
        request = form.decode(body) if body or type == PROTOBUF else None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the body is no request of OTLP in {type}") from error
    items: list[tuple[Any, Origin]] = []
    rejected, problem = 0, ""
    for item, origin in _items(request, signal, form):
        if len(items) + rejected >= limit:
            raise TooManyError(f"there are more than {limit} {signal}")
        try:
            items.append((form.item(item), origin))
        except (_InvalidError, RecursionError) as error:
            rejected, problem = rejected + 1, problem or str(error)
    return Read(items, rejected, problem)


def _from_protobuf(signal: Signal) -> _Form:
    from stepwell.server import _otlp_protobuf  # a server that is sent none need not load it

    return _Form(partial(_otlp_protobuf.decode, signal), _span if signal == "spans" else _log, _fields)


def _items(request: Any, signal: Signal, form: _Form) -> Iterator[tuple[Any, Origin]]:
    resources, scopes, items = _NAMES[signal]
    for each in getattr(request, resources, None) or ():
        try:
            resource = {} if each.resource is None else form.fields(each.resource.attributes)
        except (_InvalidError, RecursionError):
            resource = {}
        for scoped in getattr(each, scopes) or ():
            scope = scoped.scope
            name, version = ("", "") if scope is None else (scope.name or "", scope.version or "")
            origin = origin_of(resource, name, version)
            for item in getattr(scoped, items) or ():
                yield item, origin


def answer(signal: Signal, type: str, rejected: int, error: str) -> bytes:
    """Return the answer to a request that was taken, all of it or in part; protobuf's of all is no byte."""
    if type == JSON:
        name = "rejectedSpans" if signal == "spans" else "rejectedLogRecords"
        told = {name: str(rejected), "errorMessage": error}
        return json.encode({"partialSuccess": told} if rejected or error else {})
    from stepwell.server import _otlp_protobuf  # as above

    return _otlp_protobuf.encode_answer(signal, rejected, error)
