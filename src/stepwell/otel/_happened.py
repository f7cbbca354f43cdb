"""Events and links, which a step has in its metadata and a span as its own.

What must stay true: they are taken out of the metadata only where the same bytes follow from the span again; else they
are told twice, as the span's and within the metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.otel._parts import listing, mapping
from stepwell.otel._spans import MAX_INT, Span, SpanEvent, SpanLink, hex_of

__all__ = ["EVENTS", "LINKS", "Happened", "happened_of", "put_back", "told_events", "told_links"]

EVENTS: Final = "events"
LINKS: Final = "links"
_ID: Final = frozenset("0123456789abcdef")
_encode: Final = json.Encoder().encode
_members: Final = json.Decoder(dict[str, Raw])


class Happened(NamedTuple):
    """What metadata says of events and links, the rest of it, and where in it the members were that were taken out.

    An entry of `places` is `events=PLACE:COUNT`; a span has other events after these.
    """

    events: list[SpanEvent]
    links: list[SpanLink]
    rest: Raw | UnsetType
    places: list[str]


def happened_of(metadata: Raw) -> Happened | None:
    """Return the events and links of metadata, None where there are none."""
    text = bytes(metadata)
    if b'"events"' not in text and b'"links"' not in text:
        return None
    try:
        members = _members.decode(text)
        is_exact = _encode(members) == text
        events = [*_events(json.decode(members.get(EVENTS, b"null")))]
        links = [*_links(json.decode(members.get(LINKS, b"null")))]
    except (DecodeError, ValueError, RecursionError):
        return None
    if not events and not links:
        return None
    places: list[str] = []
    if is_exact:
        for place, name in enumerate([*members]):
            told = told_events(events) if name == EVENTS else told_links(links) if name == LINKS else None
            if told and _encode(told) == bytes(members[name]) and all(_is_flat(each["attributes"]) for each in told):
                places.append(f"{name}={place}:{len(told)}")
                del members[name]
    return Happened(events, links, (Raw(_encode(members)) if members else UNSET) if places else metadata, places)


def put_back(rest: Raw | UnsetType, places: Sequence[str], span: Span) -> Raw:
    """Return metadata with the events and links of a span at their places.

    Raises `ValueError` where a place is none, or the metadata no object.
    """
    members = {} if rest is UNSET else _members.decode(rest)
    for entry in places:
        name, _, numbers = entry.partition("=")
        place, count = (int(number) for number in numbers.split(":"))
        told = told_events(span.events[:count]) if name == EVENTS else told_links(span.links[:count])
        pairs = [*members.items()]
        pairs.insert(place, (name, Raw(_encode(told))))
        members = dict(pairs)
    return Raw(_encode(members))


def told_events(events: Sequence[SpanEvent]) -> list[dict[str, Any]]:
    """Return events as metadata has them."""
    return [{"name": each.name, "time_ns": each.time_ns, "attributes": dict(each.attributes)} for each in events]


def told_links(links: Sequence[SpanLink]) -> list[dict[str, Any]]:
    """Return links as metadata has them."""
    return [
        {"trace_id": hex_of(each.trace_id), "span_id": f"{each.span_id:016x}", "attributes": dict(each.attributes)}
        for each in links
    ]


def _events(value: object) -> Iterator[SpanEvent]:
    for each in listing(value) or ():
        entry = mapping(each) or {}
        name, time_ns = entry.get("name"), entry.get("time_ns")
        if isinstance(name, str) and type(time_ns) is int and 0 <= time_ns <= MAX_INT:
            yield SpanEvent(name, time_ns, _attributes(entry))


def _links(value: object) -> Iterator[SpanLink]:
    for each in listing(value) or ():
        entry = mapping(each) or {}
        trace_id, span_id = _number(entry.get("trace_id"), 32), _number(entry.get("span_id"), 16)
        if trace_id and span_id:  # receivers refuse spans with others
            yield SpanLink(trace_id, span_id, _attributes(entry))


def _number(id: object, digits: int) -> int:
    return int(id, 16) if isinstance(id, str) and len(id) == digits and _ID.issuperset(id) else 0


def _attributes(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(entry.get("attributes")) or {}


def _is_flat(attributes: Mapping[str, Any]) -> bool:
    """Say whether all attributes have the forms that every receiver keeps."""
    for name, value in attributes.items():
        items = cast("list[object]", value) if type(value) is list else [value]
        if not name or not all(_is_simple(each) for each in items):
            return False
    return True


def _is_simple(value: object) -> bool:
    return isinstance(value, str | bool | float) or (isinstance(value, int) and -MAX_INT <= value <= MAX_INT)
