"""Spans and events as OTLP's requests, in protobuf's bytes (opentelemetry-proto v1.11.0).

What must stay true: a value that can't be told costs no more than itself.

The official exporters make a message of each attribute and value, and filling them in place still costs more than all
else that is done with a step; here what of an attribute comes again (its name, the heads of its lengths) is made once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, cast

from opentelemetry.sdk.resources import Resource

from stepwell.exporters._otlp_spans import SCOPE, Sent, resource_of
from stepwell.otel.semconv import STATUS_ERROR, LogEvent, Span, SpanEvent, SpanLink

__all__ = ["logs_request", "traces_request"]

# Heads of fields: number and wire type, as trace.proto, logs.proto and common.proto have them.
_OF_SPAN: Final = b"\x4a"  # attributes of a span
_OF_EVENT: Final = b"\x1a"
_OF_LINK: Final = b"\x22"
_OF_LOG: Final = b"\x32"
_FIRST: Final = b"\x0a"  # the first field, of bytes
_SECOND: Final = b"\x12"
_EVENT: Final = b"\x5a"
_LINK: Final = b"\x6a"
_NO_STATUS: Final = b"\x7a\x00"  # there, though it says nothing
_FLAGS: Final = b"\x85\x01\x00\x01\x00\x00"  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK: known not to be remote
_LINK_FLAGS: Final = b"\x35\x00\x01\x00\x00"
_times: Final = Struct("<cQcQ").pack  # start and end of a span
_time: Final = Struct("<cQ").pack
_double: Final = Struct("<cd").pack
# What a value raises that has no form, UnicodeError included.
_FORMLESS: Final = (ValueError, TypeError, AttributeError)


def traces_request(spans: Sequence[Sent]) -> bytes:
    """Return the request that sends spans, those of one resource together."""
    scopes: dict[int, tuple[Resource, list[bytes]]] = {}
    for span, resource in spans:
        found = scopes.get(id(resource))
        if found is None:
            found = scopes[id(resource)] = (resource, [])
        body = _span(span)
        found[1].append(_sized(_SECOND, len(body)))
        found[1].append(body)
    return b"".join(_of_resource(resource, parts) for resource, parts in scopes.values())


def logs_request(events: Sequence[LogEvent]) -> bytes:
    """Return the request that sends events as log records."""
    return _of_resource(resource_of(None, None, None), [_field(_SECOND, _log(event)) for event in events])


def _of_resource(resource: Resource, items: Sequence[bytes]) -> bytes:
    """Return the part of a request that is of one resource, and of our scope; traces and logs have the same fields."""
    scope = _field(_FIRST, SCOPE.name.encode()) + _field(_SECOND, (SCOPE.version or "").encode())
    told: list[bytes] = []
    _add_attributes(told, _FIRST, resource.attributes)
    body = _field(_FIRST, b"".join(told)) + _field(_SECOND, _field(_FIRST, scope) + b"".join(items))
    if resource.schema_url:
        body += _field(_OF_EVENT, resource.schema_url.encode())
    return _field(_FIRST, body)


def _span(span: Span) -> bytes:
    parts = [b"\x0a\x10", span.trace_id.to_bytes(16, "big"), b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if span.parent_id is not None:
        parts += (b"\x22\x08", span.parent_id.to_bytes(8, "big"))
    if name := _utf8(span.name):
        parts += (_sized(b"\x2a", len(name)), name)
    parts += (b"\x30", _varint(span.kind), _times(b"\x39", span.start_ns, b"\x41", span.end_ns))
    _add_attributes(parts, _OF_SPAN, span.attributes)
    parts.extend(_field(_EVENT, _event(event)) for event in span.events)
    parts.extend(_field(_LINK, _link(link)) for link in span.links)
    parts += (_status(span) if span.status else _NO_STATUS, _FLAGS)
    return b"".join(parts)


def _event(event: SpanEvent) -> bytes:
    parts = [_time(b"\x09", event.time_ns)] if event.time_ns else []
    if name := _utf8(event.name):
        parts.append(_field(_SECOND, name))
    _add_attributes(parts, _OF_EVENT, event.attributes)
    return b"".join(parts)


def _link(link: SpanLink) -> bytes:
    parts = [b"\x0a\x10", link.trace_id.to_bytes(16, "big"), b"\x12\x08", link.span_id.to_bytes(8, "big")]
    _add_attributes(parts, _OF_LINK, link.attributes)
    parts.append(_LINK_FLAGS)
    return b"".join(parts)


def _status(span: Span) -> bytes:
    said = _utf8(span.message) if span.status == STATUS_ERROR else b""
    return _field(b"\x7a", (_field(_SECOND, said) if said else b"") + b"\x18" + _varint(span.status))


def _log(event: LogEvent) -> bytes:
    parts = [_time(b"\x09", event.time_ns), _time(b"\x59", event.time_ns), _field(b"\x62", _utf8(event.name))]
    if event.trace_id:
        parts.append(_field(b"\x4a", event.trace_id.to_bytes(16, "big")))
    if event.span_id:
        parts.append(_field(b"\x52", event.span_id.to_bytes(8, "big")))
    _add_attributes(parts, _OF_LOG, event.attributes)
    return b"".join(parts)


def _add_attributes(parts: list[bytes], head: bytes, attributes: Mapping[str, Any]) -> None:
    for key, value in attributes.items():
        try:
            name = _name(key)
            if value.__class__ is str:
                said = value.encode()
                before = _before_text(len(said))
            else:
                said = _value(value)
                before = _sized(_SECOND, len(said))
        except _FORMLESS:
            name, said = _field(_FIRST, _utf8(key)), _utf8(value)
            before = _before_text(len(said))
        parts += (_sized(head, len(name) + len(before) + len(said)), name, before, said)


def _value(value: Any) -> bytes:  # noqa: PLR0911 (one return a kind)
    """Return a value. Raises one of `_FORMLESS` for what has no form."""
    kind: Any = value.__class__
    if kind is str:
        return _field(_FIRST, value.encode())
    if kind is bool:
        return b"\x10\x01" if value else b"\x10\x00"
    if kind is int:
        if not -(2**63) <= value < 2**63:
            raise ValueError("an integer has 64 bits")
        return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if kind is float:
        return _double(b"\x21", value)
    if kind is bytes:
        return _field(b"\x3a", value)
    if value is None:
        return b""
    if isinstance(value, Mapping):
        parts: list[bytes] = []
        _add_attributes(parts, _FIRST, cast("Mapping[str, Any]", value))
        return _field(b"\x32", b"".join(parts))
    return _field(b"\x2a", b"".join([_field(_FIRST, _value(each)) for each in value]))


def _field(head: bytes, body: bytes) -> bytes:
    return _sized(head, len(body)) + body


@lru_cache(maxsize=4096)  # those of attributes are few
def _name(key: str) -> bytes:
    return _field(_FIRST, key.encode())


@lru_cache(maxsize=4096)
def _before_text(size: int) -> bytes:
    """Return what stands before a text that is the value of an attribute."""
    head = _sized(_FIRST, size)
    return _sized(_SECOND, len(head) + size) + head


@lru_cache(maxsize=8192)
def _sized(head: bytes, size: int) -> bytes:
    return head + _varint(size)


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    found = bytearray()
    while number >= 0x80:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _utf8(value: object) -> bytes:
    return str(value).encode("utf-8", "replace")
