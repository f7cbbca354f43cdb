"""Our own attributes, `stepwell.*`: with them a step comes back from a span equal to the one that left.

What must stay true:

1. Every field of the record is one attribute `stepwell.FIELD`, payloads as JSON text, unless the span itself says it
   (id, name, times), or another attribute holds the very same: then `stepwell.carried` names that one, as in
   `input=input.value`. So a payload is on the span once for each convention, not once more for us.
2. What another attribute is said to hold is the very text that was put there, or was compared before it was said.
3. What was changed on the way (an attribute cut or removed) is missing from the step; the rest of it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final, Literal, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import ErrorInfo, Record, ScoreRecord, StepRecord, ThreadRecord, decode_record
from stepwell.otel._facts import Facts, put
from stepwell.otel._happened import put_back
from stepwell.otel._parts import chat_messages, listing, loads
from stepwell.otel._spans import MAX_INT, LogEvent, Span, hex_of, step_id_of

__all__ = ["PREFIX", "VERSION", "add_own", "error_of", "is_own", "read_event", "read_own", "record_attributes"]

PREFIX: Final = "stepwell."
VERSION: Final = 1
_VERSION: Final = f"{PREFIX}version"
_CARRIED: Final = f"{PREFIX}carried"
_ABSENT: Final = f"{PREFIX}absent"
_OF_GENERATION: Final = "generation."
_OF_METADATA: Final = "metadata."
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
        return Raw(value.encode() if span.attributes[mime] == "application/json" else _encode(value))

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
        return Raw(_encode(_alone(messages) if alone else messages))

    return read


def _alone(messages: list[dict[str, Any]]) -> Any:
    return messages[0] if len(messages) == 1 else messages


def _tools(span: Span) -> Any:
    found: list[str] = []
    with suppress(KeyError):
        while isinstance(tool := span.attributes[f"llm.tools.{len(found)}.tool.json_schema"], str):
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


# What other attributes may hold of a record: by field, how each is read.
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
# Attributes that hold the very text of a payload of the step, wherever they are; and of a member of its generation.
_SAME: Final = {field: tuple(_CARRIERS[field]) for field in ("input", "output", "metadata")}
_SAME_MEMBERS: Final = (
    ("settings", "llm.invocation_parameters"),
    ("variables", "llm.prompt_template.variables"),
)
_STRINGS: Final = {"prompt": "llm.prompts.0.prompt.text", "completion": "llm.choices.0.completion.text"}
# Fields of a step that are an attribute each: texts, and others.
_TEXTS: Final = (
    *("thread_id", "root_run_id", "type", "status", "downgraded_from", "agent_id", "user"),
    *("environment", "release", "service", "sdk"),
)
_OTHERS: Final = ("attachments", "scores", "child_count", "active_ns")
_TEXT_NAMES: Final = tuple(PREFIX + field for field in _TEXTS)
_OTHER_NAMES: Final = tuple(PREFIX + field for field in _OTHERS)
_texts_of: Final = attrgetter(*_TEXTS)
_others_of: Final = attrgetter(*_OTHERS)
# What reading may raise of attributes that are not as we wrote them.
_BROKEN: Final = (DecodeError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


def is_own(attributes: Mapping[str, Any]) -> bool:
    """Say whether a span or event is a record of ours, whole."""
    return attributes.get(_VERSION) == VERSION


# -- out


def add_own(found: dict[str, Any], facts: Facts, span: Span) -> None:
    """Add to a span's attributes what it needs besides what it has, so that the step can be read from it."""
    step = facts.step
    carried: list[str] = []
    found[_VERSION] = VERSION
    put(found, *zip(_TEXT_NAMES, _texts_of(step), strict=True))
    for name, value in zip(_OTHER_NAMES, _others_of(step), strict=True):
        if value is not None:
            found[name] = _attribute(value)
    _add_payload(found, carried, "input", facts.input, step.input)
    _add_payload(found, carried, "output", facts.output, step.output)
    if step.metadata is not UNSET:
        _add_metadata(found, carried, facts, step.metadata)
    if step.tags is not None:
        if "tag.tags" in found:
            carried.append("tags=tag.tags")
        else:
            found["stepwell.tags"] = step.tags
    if step.error is not None:
        carried.append("error=exception")
    if step.generation is not UNSET:
        found["stepwell.generation"] = _text(_without_carried(step.generation, facts, found, carried))
    _add_unsaid(found, step, span)
    if carried:
        found[_CARRIED] = carried


def _add_payload(
    found: dict[str, Any], carried: list[str], field: str, text: str | None, payload: Raw | UnsetType
) -> None:
    """Name the attribute that holds input, output or metadata; where none does, add one."""
    if payload is UNSET:
        return
    for name in _SAME[field]:
        if name in found:
            carried.append(f"{field}={name}")
            return
    found[PREFIX + field] = _text(payload) if text is None else text


def _add_metadata(found: dict[str, Any], carried: list[str], facts: Facts, payload: Raw) -> None:
    happened = facts.happened
    _add_payload(found, carried, "metadata", facts.metadata, payload if happened is None else happened.rest)
    if happened is not None:
        carried.extend(f"{_OF_METADATA}{place}" for place in happened.places)


def _add_unsaid(found: dict[str, Any], step: StepRecord, span: Span) -> None:
    """Add those of the fields that follow from the span itself which don't."""
    absent: list[str] = []
    for field, said in _said_by(span).items():
        actual = getattr(step, field)
        if actual is None:
            if said is not None:
                absent.append(field)
        elif actual != said:
            found[PREFIX + field] = _attribute(actual)
    if absent:
        found[_ABSENT] = absent


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
        return str(payload, "utf-8")
    except UnicodeDecodeError:
        return bytes(payload)


def _without_carried(generation: Raw, facts: Facts, found: Mapping[str, Any], carried: list[str]) -> Raw | bytes:
    """Return a generation with a place holder for each member that something else on the span holds."""
    try:
        members = _members.decode(generation)
        if Raw(_encode(members)) != generation:
            return generation
        held = dict(_held(members, facts, found))
        for field, name in held.items():
            carried.append(f"{_OF_GENERATION}{field}={name}")
            members[field] = _PLACE
        return _encode(members) if held else generation
    except _BROKEN:
        return generation


def _held(members: Mapping[str, Raw], facts: Facts, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the members of a generation that another attribute holds, and that attribute."""
    for field, name in _SAME_MEMBERS:
        if field in members and name in found:
            yield field, name
    for field, name in _STRINGS.items():
        if field in members and name in found and Raw(_encode(found[name])) == members[field]:
            yield field, name
    yield from _held_chat(members, facts, found)
    for field in ("message_completion", "completion"):
        if members.get(field) == facts.step.output and "output.value" in found:
            yield field, "output.value"
    if "tools" in members:
        tools = str(members["tools"], "utf-8")
        if "llm.tools.0.tool.json_schema" in found and f"[{','.join(facts.tools)}]" == tools:
            yield "tools", "llm.tools"
        elif found.get("gen_ai.tool.definitions") == tools:
            yield "tools", "gen_ai.tool.definitions"


def _held_chat(members: Mapping[str, Raw], facts: Facts, found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "messages" in members and "gen_ai.input.messages" in found:
        messages = facts.messages if facts.is_plain else chat_messages(facts.asked)
        if Raw(_encode(messages)) == members["messages"]:
            yield "messages", "gen_ai.input.messages"
    answer = members.get("message_completion")
    if answer is not None and "gen_ai.output.messages" in found:
        # Most answers are the step's output as well, which is read more cheaply.
        is_shown = answer == facts.step.output and "output.value" in found
        if not is_shown and Raw(_encode(_alone(chat_messages(facts.answered)))) == answer:
            yield "message_completion", "gen_ai.output.messages"


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
    _read_fields(fields, _STEP, attributes)
    members: dict[str, str] = {}
    places: list[str] = []
    for entry in _names(attributes.get(_CARRIED)):
        field, _, name = entry.partition("=")
        if field.startswith(_OF_GENERATION):
            members[field.removeprefix(_OF_GENERATION)] = name
        elif field.startswith(_OF_METADATA):
            places.append(entry.removeprefix(_OF_METADATA))
        else:
            with suppress(*_BROKEN):
                fields[field] = _CARRIERS[field][name](span)
    if members and "generation" in fields:
        fields["generation"] = _with_carried(fields["generation"], members, span)
    if places:
        with suppress(*_BROKEN):
            fields["metadata"] = put_back(fields.get("metadata", UNSET), places, span)
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
    fields: dict[str, Any] = {}
    _read_fields(fields, _THREAD if kind == "thread" else _SCORE, event.attributes)
    return cast("ThreadRecord | ScoreRecord", _record(kind, fields))


def _names(value: object) -> list[str]:
    return [each for each in listing(value) or () if isinstance(each, str)]


def _columns(kind: type[Record]) -> tuple[tuple[str, str, bool], ...]:
    """Return the fields of a kind of record, each with its attribute, and whether text in it is JSON."""
    in_json = _IN_JSON | ({"user"} if kind is ThreadRecord else set[str]())
    return tuple((PREFIX + field, field, field in in_json) for field in kind.__struct_fields__)


_STEP: Final = _columns(StepRecord)
_THREAD: Final = _columns(ThreadRecord)
_SCORE: Final = _columns(ScoreRecord)


def _read_fields(
    found: dict[str, Any], columns: Sequence[tuple[str, str, bool]], attributes: Mapping[str, Any]
) -> None:
    """Add what our attributes say of a record's fields."""
    for name, field, in_json in columns:
        value = attributes.get(name)
        if value is None:
            continue
        if (in_json and isinstance(value, str)) or isinstance(value, bytes):
            try:
                value = _raw(value)
            except _BROKEN:
                continue
        found[field] = value


def _raw(value: str | bytes) -> Raw:
    """Return JSON as a payload. Raises `DecodeError` where it is none."""
    return _payload.decode(value)


def _record(kind: str, fields: dict[str, Any]) -> Record:
    try:
        return decode_record(_encode({"kind": kind, **fields}))
    except (UsageError, *_BROKEN) as error:
        raise ValueError(str(error)) from error
