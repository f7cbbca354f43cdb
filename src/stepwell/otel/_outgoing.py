"""From steps to spans: GenAI conventions and OpenInference, either or both, and our own attributes for the rest.

What must stay true: nothing here raises for what a payload holds; what is not of a known shape has no attribute of its
own in a convention, and is on the span all the same, in ours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import Generation, Score, ScoreRecord, StepRecord, ThreadRecord, decode_generation
from stepwell.otel._own import own_attributes, record_attributes
from stepwell.otel._parts import flat_message, genai_message, listing, loads, mapping
from stepwell.otel._spans import (
    CLIENT,
    INTERNAL,
    STATUS_ERROR,
    STATUS_OK,
    STATUS_UNSET,
    LogEvent,
    Span,
    SpanEvent,
    span_id_of,
    trace_id_of,
)
from stepwell.otel._tables import GENERATION, KINDS, OPERATIONS, PROVIDERS, SETTINGS, TOKENS, Convention

__all__ = ["CONVENTIONS", "event_of", "span_of"]

CONVENTIONS: Final[tuple[Convention, ...]] = ("genai", "openinference")
_CALLS: Final = frozenset({"llm", "embedding", "retrieval", "rerank"})
_KINDS_OF_ANNOTATORS: Final = {"HUMAN": "HUMAN", "CODE": "CODE", "AI": "LLM"}
_MAX_TIME: Final = 2**64 - 1  # OTLP's times are fixed64
_encode: Final = json.Encoder().encode


def span_of(step: StepRecord, *, conventions: Collection[Convention] = CONVENTIONS) -> Span:
    """Return the span that a step is; read by `step_of` it gives an equal step.

    A message of a chat is some five attributes in OpenInference's form, so their number has no bound: what sends spans
    must not cut them at OpenTelemetry's default of 128. Of payloads there is one copy for each convention, and one more
    of messages that don't follow from their GenAI form byte by byte (extra fields, other order): a call of a model is
    some 2.5 times its record, some 3.5 times at worst.
    """
    facts = _Facts(step)
    span = Span(
        trace_id=trace_id_of(step),
        span_id=span_id_of(step.id),
        parent_id=None if step.parent_id is None else span_id_of(step.parent_id),
        name=facts.name,
        kind=CLIENT if step.type in _CALLS else INTERNAL,
        start_ns=_time(step.start_ns, step.end_ns),
        end_ns=_time(step.end_ns, step.start_ns),
        events=[*_events_of(step)],
    )
    span.status, span.message = _status_of(step)
    attributes: dict[str, Any] = {}
    if "genai" in conventions:
        attributes.update(_genai(facts))
    if "openinference" in conventions:
        attributes.update(_openinference(facts))
    span.attributes = attributes
    attributes.update(own_attributes(step, span))
    return span


def event_of(record: ThreadRecord | ScoreRecord) -> LogEvent:
    """Return the event that tells a thread or a score on its own, as neither is a span: to be sent as a log record.

    A score is `gen_ai.evaluation.result` of the GenAI conventions, with the id of the span judged; its trace is not
    known from the score. A thread is `stepwell.thread`.
    """
    if isinstance(record, ScoreRecord):
        span_id = 0 if record.step_id is None else span_id_of(record.step_id)
        attributes = {**_judgement(record), **record_attributes(record)}
        return LogEvent("gen_ai.evaluation.result", 0, span_id, _time(record.created_ns), None, attributes)
    attributes = record_attributes(record)
    attributes["session.id"] = attributes["gen_ai.conversation.id"] = record.id
    if record.user is not None and (user := record.user.identifier or record.user.id):
        attributes["user.id"] = user
    return LogEvent("stepwell.thread", 0, 0, _time(record.created_ns), None, attributes)


class _Facts:
    """A step with its payloads read, as far as they can be."""

    def __init__(self, step: StepRecord) -> None:
        self.step = step
        self.generation = _generation_of(step)
        self.input = _value(step.input)
        self.output = _value(step.output)
        self.cost = _value(self.generation.cost)
        self.settings = mapping(_value(self.generation.settings)) or {}
        self.asked = _messages(_value(self.generation.messages))
        self.answered = _messages(_value(self.generation.message_completion))
        self.operation = _operation_of(step, self.generation)
        model = self.generation.model or self.generation.response_model
        self.name = step.name if step.name is not None else " ".join(filter(None, (self.operation, model)))


def _generation_of(step: StepRecord) -> Generation:
    try:
        return decode_generation(step.generation)
    except UsageError:
        return Generation()


def _value(payload: Raw | UnsetType) -> Any:
    try:
        return None if payload is UNSET else loads(payload)
    except ValueError:
        return None


def _messages(value: object) -> list[dict[str, Any]]:
    if value is None:
        return []
    messages = listing(value)
    return [genai_message(each) for each in ([value] if messages is None else messages)]


def _operation_of(step: StepRecord, generation: Generation) -> str | None:
    if step.type == "run" and step.agent_id is not None:
        return "invoke_agent"
    if step.type == "llm" and (
        generation.type == "completion" or (generation.type is None and generation.messages is UNSET)
    ):
        return "text_completion"
    return None if step.type is None else OPERATIONS.get(step.type)


def _time(*candidates: int | None) -> int:
    found = next((each for each in candidates if each is not None), 0)
    return min(max(found, 0), _MAX_TIME)


def _status_of(step: StepRecord) -> tuple[int, str]:
    if step.status in ("failed", "interrupted"):
        return STATUS_ERROR, (step.error.message if step.error else None) or ("" if step.error else step.status)
    return (STATUS_OK if step.status == "success" else STATUS_UNSET), ""


def _events_of(step: StepRecord) -> Iterator[SpanEvent]:
    at = _time(step.end_ns, step.start_ns)
    if (error := step.error) is not None:
        said = {"type": error.type, "message": error.message, "stacktrace": error.traceback}
        yield SpanEvent(
            "exception", at, {f"exception.{key}": value for key, value in said.items() if value is not None}
        )
    for score in step.scores or ():
        yield SpanEvent("gen_ai.evaluation.result", _time(score.created_ns, at), _judgement(score))


def _judgement(score: Score) -> dict[str, Any]:
    found = {
        "gen_ai.evaluation.name": score.name,
        "gen_ai.evaluation.score.value": score.value,
        "gen_ai.evaluation.score.label": score.label,
        "gen_ai.evaluation.explanation": score.comment,
    }
    return {name: value for name, value in found.items() if value is not None}


# -- both


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def _fields(facts: _Facts, convention: Convention) -> Iterator[tuple[str, Any]]:
    """Yield what the tables say of a generation and its usage."""
    for source, rows in ((facts.generation, GENERATION), (facts.generation.usage, TOKENS)):
        for row in rows:
            value = None if source is None else getattr(source, row.field)
            if value is not None and not (isinstance(value, int) and not _number(value)):
                for name in row.genai if convention == "genai" else row.openinference:
                    yield name, value


def _drop_absent(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


# -- GenAI


def _genai(facts: _Facts) -> dict[str, Any]:
    step, generation = facts.step, facts.generation
    found: dict[str, Any] = {"gen_ai.operation.name": facts.operation, **dict(_fields(facts, "genai"))}
    if (provider := generation.provider) is not None:
        found["gen_ai.provider.name"] = PROVIDERS.get(provider.lower(), provider)
    if generation.stop_reason is not None:
        found["gen_ai.response.finish_reasons"] = [generation.stop_reason]
    if generation.ttft_ns is not None:
        found["gen_ai.response.time_to_first_chunk"] = generation.ttft_ns / 1e9
    found |= dict(_settings(facts.settings))
    found |= _server(generation.model_endpoint)
    if facts.asked:
        found["gen_ai.input.messages"] = _encode(facts.asked).decode()
    if facts.answered:
        reason = generation.stop_reason or "stop"  # required by the conventions
        answered = [each if "finish_reason" in each else {**each, "finish_reason": reason} for each in facts.answered]
        found["gen_ai.output.messages"] = _encode(answered).decode()
    if (tools := listing(_value(generation.tools))) is not None:
        found["gen_ai.tool.definitions"] = _encode([_definition(tool) for tool in tools]).decode()
    found |= {"gen_ai.conversation.id": step.thread_id, "user.id": step.user, "gen_ai.agent.id": step.agent_id}
    if step.status == "failed":
        found["error.type"] = (step.error.type if step.error else None) or "_OTHER"
    found |= _genai_of_type(facts)
    return _drop_absent(found)


def _genai_of_type(facts: _Facts) -> dict[str, Any]:
    step = facts.step
    if step.type == "run":
        return {("gen_ai.workflow.name" if step.agent_id is None else "gen_ai.agent.name"): step.name}
    if step.type == "tool":
        return {
            "gen_ai.tool.name": step.name,
            "gen_ai.tool.call.arguments": _text(step.input),
            "gen_ai.tool.call.result": _text(step.output),
        }
    if step.type in ("retrieval", "rerank"):
        known = [_drop_absent({"id": doc["id"], "score": doc["score"]}) for doc in _documents(facts.output)]
        scored = [each for each in known if each]
        return {
            "gen_ai.retrieval.query.text": _query(facts.input),
            "gen_ai.retrieval.documents": _encode(scored).decode() if scored else None,
        }
    return {}


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    if not settings:  # as of most steps
        return
    for attribute, names in SETTINGS:
        value = next((settings[name] for name in names if settings.get(name) is not None), None)
        if attribute.endswith(("stop_sequences", "encoding_formats")):
            values = [value] if isinstance(value, str) else listing(value)
            if values and all(isinstance(each, str) for each in values):
                yield attribute, [*values]
        elif isinstance(value, bool) or _number(value):
            yield attribute, value


def _server(endpoint: str | None) -> dict[str, Any]:
    try:
        parts = urlsplit(endpoint or "")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return {}
    return {"server.address": parts.hostname, "server.port": port} if parts.hostname else {}


def _definition(tool: object) -> Any:
    """Return a tool's definition flat, as the GenAI conventions have it; OpenAI's is nested."""
    body = mapping(tool)
    function = mapping((body or {}).get("function"))
    if body is None or function is None:
        return tool
    return {"type": body.get("type", "function"), **function}


def _text(payload: Raw | UnsetType) -> str | None:
    try:
        return None if payload is UNSET else bytes(payload).decode()
    except UnicodeDecodeError:
        return None


# -- OpenInference


def _openinference(facts: _Facts) -> dict[str, Any]:
    step, generation = facts.step, facts.generation
    kind = "UNKNOWN" if step.type is None else KINDS.get(step.type, "UNKNOWN")
    if step.type == "run" and step.agent_id is not None:
        kind = "AGENT"
    found: dict[str, Any] = {"openinference.span.kind": kind, **dict(_fields(facts, "openinference"))}
    found |= _shown("input", step.input, facts.input)
    found |= _shown("output", step.output, facts.output)
    found |= {
        "llm.model_name": generation.response_model or generation.model if step.type == "llm" else None,
        "llm.finish_reason": generation.stop_reason,
        "llm.invocation_parameters": _text(generation.settings),
        "llm.prompt_template.variables": _text(generation.variables),
        "session.id": step.thread_id,
        "user.id": step.user,
        "metadata": _text(step.metadata),
        "tag.tags": step.tags or None,
        **_costs(facts.cost),
    }
    found |= _flat("llm.input_messages", facts.asked)
    found |= _flat("llm.output_messages", facts.answered)
    for number, tool in enumerate(_elements(generation.tools)):
        found[f"llm.tools.{number}.tool.json_schema"] = tool
    for name, payload in (
        ("llm.prompts.0.prompt.text", generation.prompt),
        ("llm.choices.0.completion.text", generation.completion),
    ):
        if isinstance(text := _value(payload), str):
            found[name] = text
    for number, score in enumerate(step.scores or ()):
        for name, value in _annotation(score):
            found[f"annotations.{number}.annotation.{name}"] = value
    found |= _openinference_of_type(facts)
    return _drop_absent(found)


def _shown(which: str, payload: Raw | UnsetType, value: object) -> dict[str, Any]:
    """Return `input.value` or `output.value` and its type: a string as it is, all else as JSON."""
    if isinstance(value, str) and payload is not UNSET and _encode(value) == bytes(payload):
        return {f"{which}.value": value, f"{which}.mime_type": "text/plain"}
    text = _text(payload)
    return {} if text is None else {f"{which}.value": text, f"{which}.mime_type": "application/json"}


def _costs(cost: object) -> dict[str, Any]:
    if cost is None:
        return {}
    if _number(cost):
        return {"llm.cost.total": cost}
    parts = mapping(cost) or {}
    names = {"total": ("total",), "prompt": ("prompt", "input"), "completion": ("completion", "output")}
    found = {part: next((parts[key] for key in keys if _number(parts.get(key))), None) for part, keys in names.items()}
    return {f"llm.cost.{part}": value for part, value in found.items()}


def _flat(prefix: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for number, each in enumerate(each for message in messages for each in _split(message)):
        found |= flat_message(f"{prefix}.{number}.message.", each)
    return found


def _split(message: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield one message for each tool's answer: OpenInference's have one each."""
    parts = [mapping(part) or {} for part in listing(message.get("parts")) or ()]
    answers = [part for part in parts if part.get("type") == "tool_call_response"]
    if not answers or len(parts) == 1:
        yield message
        return
    yield from ({**message, "role": "tool", "parts": [part]} for part in answers)
    if rest := [part for part in parts if part.get("type") != "tool_call_response"]:
        yield {**message, "parts": rest}


def _elements(payload: Raw | UnsetType) -> list[str]:
    """Return the elements of a JSON array as JSON text."""
    try:
        return [] if payload is UNSET else [bytes(each).decode() for each in _array.decode(payload)]
    except (ValueError, RecursionError):
        return []


_array: Final = json.Decoder(list[Raw])


def _annotation(score: Score) -> Iterator[tuple[str, Any]]:
    yield "name", score.name
    yield "score", score.value
    yield "label", score.label
    yield "explanation", score.comment
    yield "annotator_kind", None if score.type is None else _KINDS_OF_ANNOTATORS[score.type]
    yield "identifier", score.id


def _openinference_of_type(facts: _Facts) -> dict[str, Any]:
    step, found = facts.step, dict[str, Any]()
    if step.type == "tool":
        found["tool.name"] = step.name
    elif step.type == "run" and step.agent_id is not None:
        found["agent.name"] = step.name
    elif step.type == "embedding":
        found |= {"embedding.model_name": facts.generation.response_model or facts.generation.model}
        for number, text in enumerate(_texts(facts.input)):
            found[f"embedding.embeddings.{number}.embedding.text"] = text
    elif step.type == "retrieval":
        found |= _flat_documents("retrieval.documents", facts.output)
    elif step.type == "rerank":
        found |= {"reranker.query": _query(facts.input), "reranker.model_name": facts.generation.model}
        found |= _flat_documents("reranker.output_documents", facts.output)
    return found


def _texts(value: object) -> list[str]:
    """Return the texts that were asked to be embedded, where they are to be found: a string, a list, an argument."""
    if (fields := mapping(value)) is not None:
        named = next((fields[name] for name in ("input", "texts", "text", "inputs") if name in fields), None)
        value = named if named is not None else next(iter(fields.values()), None)
    if isinstance(value, str):
        return [value]
    return [each for each in listing(value) or () if isinstance(each, str)]


def _query(value: object) -> str | None:
    if (fields := mapping(value)) is not None:
        value = fields.get("query", next(iter(fields.values()), None))
    return value if isinstance(value, str) else None


def _documents(value: object) -> Iterator[dict[str, Any]]:
    """Yield what was found: `id`, `score`, `content` and `metadata`, each None where it is not to be told."""
    if (fields := mapping(value)) is not None:
        value = next((found for each in fields.values() if (found := listing(each)) is not None), None)
    for item in listing(value) or ():
        body = mapping(item)
        if body is None:
            yield {"id": None, "score": None, "content": item if isinstance(item, str) else None, "metadata": None}
            continue
        names = ("content", "page_content", "text", "document")
        content = next((body[name] for name in names if isinstance(body.get(name), str)), None)
        score = next((body[name] for name in ("score", "relevance_score") if _number(body.get(name))), None)
        metadata = mapping(body.get("metadata"))
        yield {
            "id": str(body["id"]) if isinstance(body.get("id"), str | int) else None,
            "score": score,
            "content": content,
            "metadata": None if metadata is None else _encode(metadata).decode(),
        }


def _flat_documents(prefix: str, value: object) -> dict[str, Any]:
    return {
        f"{prefix}.{number}.document.{name}": part
        for number, document in enumerate(_documents(value))
        for name, part in document.items()
    }
