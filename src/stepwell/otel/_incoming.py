"""From spans of anybody's to steps: GenAI conventions, OpenInference, OpenLLMetry, Langfuse, Logfire, and any others.

What must stay true:

1. A span gives one step, with an id that follows from the span's, so that it comes twice without harm and finds its
   parent and children, also those that came another way.
2. No attribute, event or link is lost: what says nothing that a step has a field for is in its metadata.
3. Nothing here raises for what an attribute holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from msgspec import UNSET, Raw, UnsetType, json

from stepwell._vocabulary import Status, StepType
from stepwell.model import ErrorInfo, Score, StepRecord
from stepwell.otel._generations import generation_of
from stepwell.otel._happened import EVENTS, LINKS, told_events, told_links
from stepwell.otel._own import error_of, is_own, read_own
from stepwell.otel._parts import chat_messages
from stepwell.otel._reading import Attributes, Said, json_payload, payload_of, read_json, text_payload
from stepwell.otel._spans import CLIENT, INTERNAL, STATUS_ERROR, Span, hex_of, step_id_of
from stepwell.otel._tables import TYPES

__all__ = ["Origin", "origin_of", "step_of"]

_CANCELLED: Final = frozenset({"CancelledError", "KeyboardInterrupt", "GeneratorExit"})
_GENERATING: Final = frozenset({"llm", "embedding", "retrieval", "rerank"})
_ANNOTATORS: Final = {"HUMAN": "HUMAN", "CODE": "CODE", "LLM": "AI"}
_METADATA: Final = ("langfuse.observation.metadata.", "langfuse.trace.metadata.", "traceloop.association.properties.")
_NO_HINT: Final = (None, "span", "event", "UNKNOWN", "unknown")
_MODEL_FAMILIES: Final = ("llm.input_messages", "llm.output_messages", "gen_ai.prompt", "gen_ai.completion")
_encode: Final = json.Encoder().encode


class Origin(NamedTuple):
    """What is said once for many spans: by whom they were recorded, and where."""

    service: str | None = None
    environment: str | None = None
    release: str | None = None
    sdk: str | None = None
    resource: Mapping[str, Any] = {}


def origin_of(resource: Mapping[str, Any], scope: str = "", version: str = "") -> Origin:
    """Read the attributes of a resource, and the name and version of an instrumentation scope."""
    rest = {name: value for name, value in resource.items() if not name.startswith("telemetry.")}
    service = rest.pop("service.name", None)
    release = rest.pop("service.version", None)
    environment = rest.pop("deployment.environment.name", None) or rest.pop("deployment.environment", None)
    return Origin(
        service if isinstance(service, str) and not service.startswith("unknown_service") else None,
        environment if isinstance(environment, str) else None,
        release if isinstance(release, str) else None,
        f"{scope}/{version}".strip("/") or None,
        rest,
    )


def step_of(span: Span, origin: Origin = Origin()) -> StepRecord:  # noqa: B008 (it can't be changed)
    """Return the step that a span is: equal to the one that `span_of` was given, or made of what its attributes say."""
    if is_own(span.attributes):
        with suppress(ValueError):
            return read_own(span)
    said = Attributes(span.attributes)
    type = _type_of(said, span)
    step = StepRecord(
        id=step_id_of(span.trace_id, span.span_id),
        trace_id=hex_of(span.trace_id),
        parent_id=None if span.parent_id is None else step_id_of(span.trace_id, span.parent_id),
        thread_id=said.take_text("thread_id"),
        type=type,
        start_ns=span.start_ns or None,
        end_ns=span.end_ns or None,
        user=said.take_text("user"),
        environment=said.take_text("environment") or origin.environment,
        release=said.take_text("release") or origin.release,
        service=origin.service,
        sdk=origin.sdk,
    )
    if type == "run" and span.parent_id is None:
        step.root_run_id = step.id
    step.name = _name_of(said, span, type)
    step.agent_id = said.take_text("agent_id") or said.take_text("agent_name")
    step.status, step.error = _outcome_of(said, span)
    _fill(step, said, span)
    step.tags = _tags_of(said)
    step.scores = [*_scores_of(said, step.id)] or None
    metadata = _metadata_of(said, span, origin)
    happened = span.events if step.error is None else [each for each in span.events if each.name != "exception"]
    _put(metadata, EVENTS, told_events(happened))
    _put(metadata, LINKS, told_links(span.links))
    if metadata:
        step.metadata = Raw(_encode(metadata))
    return step


# -- what kind of step


def _type_of(said: Attributes, span: Span) -> StepType:
    found: StepType | None = None
    strange = False
    for slot, types in TYPES.items():
        value = said.peek(slot)
        type = types.get(value) if isinstance(value, str) else None
        if type is not None:
            said.take(slot)
            found = found or type
        elif value not in _NO_HINT:
            strange = True
    if found is not None:
        return found
    if "tool_name" in said and not strange:
        return "tool"
    if not strange and ("model" in said or "asked" in said or any(said.has_family(name) for name in _MODEL_FAMILIES)):
        return "llm"
    if "db.vector.query.top_k" in said.rest:
        return "retrieval"
    return "run" if span.parent_id is None and not strange else "undefined"


def _name_of(said: Attributes, span: Span, type: StepType) -> str:
    entity, title = said.take_text("entity_name"), said.take_text("title")
    if type == "tool" and (name := said.take_text("tool_name")) is not None:
        return name
    if type == "run" and (name := said.take_text("workflow_name")) is not None:
        return name
    if type == "run" and entity is None and isinstance(name := said.peek("agent_name"), str) and "invoke" in span.name:
        return name
    return entity or title or span.name


# -- how it went


def _outcome_of(said: Attributes, span: Span) -> tuple[Status, ErrorInfo | None]:
    if not span.end_ns:
        return "pending", None
    type, message = said.peek("error_type"), said.peek("status_message")
    failed = span.status == STATUS_ERROR or isinstance(type, str) or said.peek("level") == "ERROR"
    if not failed:
        return "success", None
    for slot in ("error_type", "level"):
        said.take(slot)
    error = error_of(span) or ErrorInfo()
    error.type = error.type or (type if isinstance(type, str) else None)
    error.message = error.message or span.message or (message if isinstance(message, str) else None)
    if error.message == message:
        said.take("status_message")
    cancelled = (error.type or "").rpartition(".")[2] in _CANCELLED
    return "cancelled" if cancelled else "failed", None if error == ErrorInfo() else error


# -- what went in and came out


def _fill(step: StepRecord, said: Attributes, span: Span) -> None:
    """Set the payloads of a step: input, output and generation."""
    given, returned = _payload(said, "input"), _payload(said, "output")
    if step.type in _GENERATING:
        told = generation_of(said, span, step, Said(given, returned))
        step.generation, step.input, step.output = told.generation, told.input, told.output
        return
    if given is UNSET and (messages := said.take("asked")) is not None:
        given = Raw(_encode(chat_messages(read_json(messages))))
    if returned is UNSET and (messages := said.take("answered")) is not None:
        answered = chat_messages(read_json(messages))
        returned = Raw(_encode(answered[0] if len(answered) == 1 else answered))
    step.input, step.output = given, returned


def _payload(said: Attributes, which: str) -> Raw | UnsetType:
    """Return input or output, as JSON where it is said to be, or always is by the attribute that has it."""
    source, value = said.source(which), said.take(which)
    mime = said.take(f"{which}_mime")
    if value is None:
        return UNSET
    if source.endswith(".value") and mime == "text/plain":
        return text_payload(value)
    if mime == "application/json" or source.startswith(("traceloop.", "gen_ai.tool.")):
        return json_payload(value)
    return payload_of(value)


# -- the rest


def _tags_of(said: Attributes) -> list[str] | None:
    tags = [tag for slot in ("tags", "trace_tags", "logfire_tags") for tag in said.take_list(slot)]
    return [*dict.fromkeys(tag for tag in tags if isinstance(tag, str))] or None


def _scores_of(said: Attributes, step_id: str) -> Iterator[Score]:
    for family in ("annotations", "evaluations"):
        for number, flat in enumerate(said.take_family(family)):
            fields = {name.rpartition(".")[2]: value for name, value in flat.items()}
            id, value = fields.get("identifier"), fields.get("score")
            texts = {name: each for name, each in fields.items() if isinstance(each, str)}
            yield Score(
                id=id if isinstance(id, str) and 0 < len(id) <= 256 else f"{step_id}/{family}/{number}",
                name=texts.get("name"),
                type=_ANNOTATORS.get(texts.get("annotator_kind", "")),  # type: ignore[arg-type]
                value=float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None,
                label=texts.get("label"),
                comment=texts.get("explanation"),
            )


def _metadata_of(said: Attributes, span: Span, origin: Origin) -> dict[str, Any]:
    metadata = {**said.take_mapping("trace_metadata"), **said.take_mapping("metadata")}
    for name, value in said.left_over().items():
        prefix = next((each for each in _METADATA if name.startswith(each)), "")
        metadata[name.removeprefix(prefix) or name] = json_payload(value) if prefix.startswith("langfuse.") else value
    if span.kind not in (INTERNAL, CLIENT, 0):
        metadata["otel.kind"] = span.kind
    if span.parent_id is None and origin.resource:
        metadata["resource"] = dict(origin.resource)
    return metadata


def _put(metadata: dict[str, Any], name: str, entries: list[dict[str, Any]]) -> None:
    """Add events or links where those of steps are; an attribute of that name keeps its place."""
    if entries:
        metadata[f"otel.{name}" if name in metadata else name] = entries
