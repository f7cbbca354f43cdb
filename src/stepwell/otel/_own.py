"""Our own attributes, `stepwell.*`: with them a step comes back from a span equal to the one that left.

What must stay true:

1. Every field of the record is one attribute `stepwell.FIELD`, payloads as JSON text, unless the span itself says it
   (id, name, times), or another attribute holds the very same: then `stepwell.carried` names that one, as in
   `input=input.value`. So a payload is on the span once for each convention, not once more for us.
2. What another attribute is said to hold was read back from it and compared before it was said.
3. What was changed on the way (an attribute cut or removed) is missing from the step; the rest of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, Literal, cast

from msgspec import UNSET, DecodeError, Raw, json

from stepwell.errors import UsageError
from stepwell.model import ErrorInfo, Record, ScoreRecord, StepRecord, ThreadRecord, decode_record
from stepwell.otel._parts import chat_messages, listing, loads
from stepwell.otel._spans import MAX_INT, LogEvent, Span, hex_of, step_id_of

__all__ = ["PREFIX", "VERSION", "error_of", "is_own", "own_attributes", "read_event", "read_own", "record_attributes"]

PREFIX: Final = "stepwell."
VERSION: Final = 1
_VERSION: Final = f"{PREFIX}version"
_CARRIED: Final = f"{PREFIX}carried"
_ABSENT: Final = f"{PREFIX}absent"
_OF_GENERATION: Final = "generation."
_PAYLOADS: Final = frozenset({"input", "output", "generation", "metadata"})
# Text attributes that are JSON: payloads, parts with fields of their own, and numbers too large for an attribute.
_IN_JSON: Final = _PAYLOADS | {
    *("error", "attachments", "scores"),
    *("start_ns", "end_ns", "child_count", "active_ns", "created_ns", "value"),
}
_encode: Final = json.Encoder().encode
_payload: Final = json.Decoder(Raw)
_members: Final = json.Decoder(dict[str, Raw])
_PLACE: Final = Raw(b"0")  # where a member of the generation stands that another attribute holds

Reader = Callable[[Span], Any]


def _text_at(name: str, mime: str) -> Reader:
    """Read an attribute that is JSON where `mime` says so, else plain text."""

    def read(span: Span) -> Any:
        value = span.attributes[name]
        return Raw(value.encode() if span.attributes.get(mime) == "application/json" else _encode(value))

    return read


def _json_at(name: str) -> Reader:
    return lambda span: Raw(span.attributes[name].encode())


def _string_at(name: str) -> Reader:
    return lambda span: Raw(_encode(span.attributes[name]))


def _listed(name: str) -> Reader:
    return lambda span: [*span.attributes[name]]


def _chat_at(name: str, *, alone: bool = False) -> Reader:
    def read(span: Span) -> Any:
        messages = chat_messages(loads(span.attributes[name]))
        return Raw(_encode(messages[0] if alone and len(messages) == 1 else messages))

    return read


def _tools(span: Span) -> Any:
    found: list[str] = []
    while isinstance(tool := span.attributes.get(f"llm.tools.{len(found)}.tool.json_schema"), str):
        found.append(tool)
    return Raw(f"[{','.join(found)}]".encode())


def error_of(span: Span) -> ErrorInfo | None:
    """Return the last exception among a span's events."""
    for event in reversed(span.events):
        if event.name == "exception":
            said = event.attributes
            fields = (said.get(f"exception.{key}") for key in ("type", "message", "stacktrace"))
            return ErrorInfo(*(value if isinstance(value, str) else None for value in fields))
    return None


# What other attributes may hold of a record: by field, the attribute (or event) that is tried, in this order.
_CARRIERS: Final[dict[str, dict[str, Reader]]] = {
    "input": {
        "input.value": _text_at("input.value", "input.mime_type"),
        "gen_ai.tool.call.arguments": _json_at("gen_ai.tool.call.arguments"),
    },
    "output": {
        "output.value": _text_at("output.value", "output.mime_type"),
        "gen_ai.tool.call.result": _json_at("gen_ai.tool.call.result"),
    },
    "metadata": {"metadata": _json_at("metadata")},
    "tags": {"tag.tags": _listed("tag.tags")},
    "error": {"exception": error_of},
}
_GENERATION_CARRIERS: Final[dict[str, dict[str, Reader]]] = {
    "messages": {"gen_ai.input.messages": _chat_at("gen_ai.input.messages")},
    "message_completion": {
        "output.value": _text_at("output.value", "output.mime_type"),
        "gen_ai.output.messages": _chat_at("gen_ai.output.messages", alone=True),
    },
    "prompt": {"llm.prompts.0.prompt.text": _string_at("llm.prompts.0.prompt.text")},
    "completion": {
        "output.value": _text_at("output.value", "output.mime_type"),
        "llm.choices.0.completion.text": _string_at("llm.choices.0.completion.text"),
    },
    "settings": {"llm.invocation_parameters": _json_at("llm.invocation_parameters")},
    "tools": {
        "llm.tools": _tools,
        "gen_ai.tool.definitions": _json_at("gen_ai.tool.definitions"),
    },
    "variables": {"llm.prompt_template.variables": _json_at("llm.prompt_template.variables")},
}
# What reading may raise of attributes that are not as we wrote them.
_BROKEN: Final = (DecodeError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def is_own(attributes: Mapping[str, Any]) -> bool:
    """Say whether a span or event is a record of ours, whole."""
    return attributes.get(_VERSION) == VERSION


# -- out


def own_attributes(step: StepRecord, span: Span) -> dict[str, Any]:
    """Return what the span needs besides what it has, so that the step can be read from it."""
    carried: list[str] = []
    found = record_attributes(step)
    for field, carriers in _CARRIERS.items():
        if (value := getattr(step, field)) is not None and value is not UNSET:
            carrier = _carrier_of(value, carriers, span)
            if carrier is not None:
                carried.append(f"{field}={carrier}")
                del found[PREFIX + field]
    if step.generation is not UNSET:
        rest = _without_carried(step.generation, span, carried)
        found[f"{PREFIX}generation"] = _text(rest)
    absent: list[str] = []
    for field, value in _said_by(span).items():
        actual = getattr(step, field)
        if actual == value:
            found.pop(PREFIX + field, None)
        elif actual is None:
            absent.append(field)
    found[_VERSION] = VERSION
    if carried:
        found[_CARRIED] = carried
    if absent:
        found[_ABSENT] = absent
    return found


def record_attributes(record: StepRecord | ThreadRecord | ScoreRecord) -> dict[str, Any]:
    """Return every field of a record as one attribute."""
    found: dict[str, Any] = {_VERSION: VERSION}
    for field in record.__struct_fields__:
        value = getattr(record, field)
        if value is not None and value is not UNSET:
            found[PREFIX + field] = _attribute(value)
    return found


def _attribute(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        return value if -MAX_INT <= value <= MAX_INT else str(value)
    if isinstance(value, Raw):
        return _text(value)
    if (items := listing(value)) is not None and all(isinstance(each, str) for each in items):
        return items
    return _text(_encode(value))


def _text(payload: Raw | bytes) -> str | bytes:
    """Return JSON as text; as bytes where it is no UTF-8, which its producer alone is to blame for."""
    try:
        return bytes(payload).decode()
    except UnicodeDecodeError:
        return bytes(payload)


def _carrier_of(value: object, carriers: Mapping[str, Reader], span: Span) -> str | None:
    for name, read in carriers.items():
        try:
            if read(span) == value:
                return name
        except _BROKEN:
            continue
    return None


def _without_carried(generation: Raw, span: Span, carried: list[str]) -> Raw | bytes:
    """Return a generation with a place holder for each member that something else on the span holds."""
    try:
        members = _members.decode(generation)
        if _encode(members) != bytes(generation):
            return generation
    except _BROKEN:
        return generation
    for field, carriers in _GENERATION_CARRIERS.items():
        if field in members and (carrier := _carrier_of(members[field], carriers, span)) is not None:
            carried.append(f"{_OF_GENERATION}{field}={carrier}")
            members[field] = _PLACE
    return _encode(members)


def _said_by(span: Span) -> dict[str, Any]:
    """Return the fields of a step that follow from the span itself."""
    return {
        "id": step_id_of(span.trace_id, span.span_id),
        "trace_id": hex_of(span.trace_id),
        "parent_id": None if span.parent_id is None else step_id_of(span.trace_id, span.parent_id),
        "name": span.name,
        "start_ns": span.start_ns,
        "end_ns": span.end_ns,
    }


# -- in


def read_own(span: Span) -> StepRecord:
    """Return the step that a span of ours is. Raises `ValueError` where it is none."""
    attributes = span.attributes
    fields = _said_by(span)
    for name in _names(attributes.get(_ABSENT)):
        fields.pop(name, None)
    fields.update(_fields(StepRecord, attributes))
    carried = [entry.partition("=") for entry in _names(attributes.get(_CARRIED))]
    for field, _, name in carried:
        with suppress(*_BROKEN):
            fields[field] = _CARRIERS[field][name](span)
    members = {
        field.removeprefix(_OF_GENERATION): name for field, _, name in carried if field.startswith(_OF_GENERATION)
    }
    if members and "generation" in fields:
        fields["generation"] = _with_carried(fields["generation"], members, span)
    return cast("StepRecord", _record("step", fields))


def _with_carried(rest: Raw, members: Mapping[str, str], span: Span) -> Raw:
    """Return a generation with its members that something else on the span holds, without those that it lost."""
    try:
        found = _members.decode(rest)
    except _BROKEN:
        return rest
    for field, name in members.items():
        try:
            found[field] = _GENERATION_CARRIERS[field][name](span)
        except _BROKEN:
            found.pop(field, None)
    return Raw(_encode(found))


def read_event(event: LogEvent, kind: Literal["thread", "score"]) -> ThreadRecord | ScoreRecord:
    """Return the thread or score that an event of ours is. Raises `ValueError` where it is none."""
    fields = _fields(ThreadRecord if kind == "thread" else ScoreRecord, event.attributes)
    return cast("ThreadRecord | ScoreRecord", _record(kind, fields))


def _names(value: object) -> Iterator[str]:
    return (each for each in listing(value) or () if isinstance(each, str))


def _fields(kind: type[Record], attributes: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in kind.__struct_fields__:
        value = attributes.get(PREFIX + field)
        if value is None:
            continue
        if isinstance(value, bytes) or (isinstance(value, str) and (field in _IN_JSON or _is_object(kind, field))):
            try:
                value = _raw(value)
            except _BROKEN:
                continue
        found[field] = value
    return found


def _is_object(kind: type[Record], field: str) -> bool:
    """Say whether a field is JSON in one kind of record, and text in another."""
    return field == "user" and kind is ThreadRecord


def _raw(value: str | bytes) -> Raw:
    """Return JSON as a payload. Raises `DecodeError` where it is none."""
    return _payload.decode(value)


def _record(kind: str, fields: dict[str, Any]) -> Record:
    try:
        return decode_record(_encode({"kind": kind, **fields}))
    except (UsageError, *_BROKEN) as error:
        raise ValueError(str(error)) from error
