"""What a step is in OpenInference (0.1.42)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.model import Generation, Score
from stepwell.otel._facts import Facts, is_number, put, put_fields, query_of, text_of, value_of
from stepwell.otel._parts import flat_message, listing, mapping
from stepwell.otel._tables import KINDS

__all__ = ["add_openinference"]

_KINDS_OF_ANNOTATORS: Final = {"HUMAN": "HUMAN", "CODE": "CODE", "AI": "LLM"}
_COSTS: Final = {"total": ("total",), "prompt": ("prompt", "input"), "completion": ("completion", "output")}
_encode: Final = json.Encoder().encode


def add_openinference(found: dict[str, Any], facts: Facts) -> None:
    """Add the attributes of a step."""
    step = facts.step
    type = step.type
    kind = "UNKNOWN" if type is None else KINDS.get(type, "UNKNOWN")
    if type == "run" and step.agent_id is not None:
        kind = "AGENT"
    found["openinference.span.kind"] = kind
    if facts.input is not None:
        _add_shown(found, "input.value", "input.mime_type", step.input, facts.input)
    if facts.output is not None:
        _add_shown(found, "output.value", "output.mime_type", step.output, facts.output)
    if step.generation is not UNSET:
        _add_generation(found, facts)
    put(
        found,
        ("session.id", step.thread_id),
        ("user.id", step.user),
        ("metadata", facts.metadata),
        ("tag.tags", step.tags or None),
    )
    for number, score in enumerate(step.scores or ()):
        put(found, *((f"annotations.{number}.annotation.{name}", value) for name, value in _annotation(score)))
    _add_of_type(found, facts)


def _add_shown(found: dict[str, Any], name: str, mime: str, payload: Raw | UnsetType, text: str) -> None:
    """Add `input.value` or `output.value` and its type: a string as it is, all else as JSON."""
    if text[:1] == '"' and isinstance(value := value_of(payload), str) and Raw(_encode(value)) == payload:
        found[name] = value
        found[mime] = "text/plain"
    else:
        found[name] = text
        found[mime] = "application/json"


def _add_generation(found: dict[str, Any], facts: Facts) -> None:
    generation = facts.generation
    put_fields(found, generation, "openinference")
    put(
        found,
        ("llm.finish_reason", generation.stop_reason),
        ("llm.invocation_parameters", text_of(generation.settings)),
        ("llm.prompt_template.variables", text_of(generation.variables)),
    )
    if facts.step.type == "llm":
        put(found, ("llm.model_name", generation.response_model or generation.model))
    if generation.cost is not UNSET:
        _add_costs(found, value_of(generation.cost))
    _add_flat(found, "llm.input_messages", facts.asked)
    _add_flat(found, "llm.output_messages", facts.answered)
    for number, tool in enumerate(facts.tools):
        found[f"llm.tools.{number}.tool.json_schema"] = tool
    _add_completion(found, generation)


def _add_completion(found: dict[str, Any], generation: Generation) -> None:
    if isinstance(text := value_of(generation.prompt), str):
        found["llm.prompts.0.prompt.text"] = text
    if isinstance(text := value_of(generation.completion), str):
        found["llm.choices.0.completion.text"] = text


def _add_costs(found: dict[str, Any], cost: object) -> None:
    if is_number(cost):
        found["llm.cost.total"] = cost
        return
    parts = mapping(cost) or {}
    for part, names in _COSTS.items():
        for name in names:
            if is_number(amount := parts.get(name)):
                found[f"llm.cost.{part}"] = amount
                break


def _add_flat(found: dict[str, Any], prefix: str, messages: Sequence[Mapping[str, Any]]) -> None:
    number = 0
    for message in messages:
        for each in _split(message):
            flat_message(found, f"{prefix}.{number}.message.", each)
            number += 1


def _split(message: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return one message for each tool's answer: OpenInference's have one each."""
    given = listing(message.get("parts")) or ()
    if len(given) <= 1:
        return (message,)
    parts = [mapping(part) or {} for part in given]
    answers = [part for part in parts if part.get("type") == "tool_call_response"]
    if not answers:
        return (message,)
    found = [{**message, "role": "tool", "parts": [part]} for part in answers]
    if rest := [part for part in parts if part.get("type") != "tool_call_response"]:
        found.append({**message, "parts": rest})
    return found


def _annotation(score: Score) -> Iterator[tuple[str, Any]]:
    yield "name", score.name
    yield "score", score.value
    yield "label", score.label
    yield "explanation", score.comment
    yield "annotator_kind", None if score.type is None else _KINDS_OF_ANNOTATORS[score.type]
    yield "identifier", score.id


def _add_of_type(found: dict[str, Any], facts: Facts) -> None:
    step = facts.step
    if step.type == "tool":
        put(found, ("tool.name", step.name))
    elif step.type == "run":
        if step.agent_id is not None:
            put(found, ("agent.name", step.name))
    elif step.type == "embedding":
        put(found, ("embedding.model_name", facts.generation.response_model or facts.generation.model))
        for number, text in enumerate(_texts(value_of(step.input))):
            found[f"embedding.embeddings.{number}.embedding.text"] = text
    elif step.type == "retrieval":
        _add_documents(found, "retrieval.documents", facts)
    elif step.type == "rerank":
        query = query_of(value_of(step.input))
        put(found, ("reranker.query", query), ("reranker.model_name", facts.generation.model))
        _add_documents(found, "reranker.output_documents", facts)


def _texts(value: object) -> list[str]:
    """Return the texts that were asked to be embedded, where they are to be found: a string, a list, an argument."""
    if (fields := mapping(value)) is not None:
        named = next((fields[name] for name in ("input", "texts", "text", "inputs") if name in fields), None)
        value = named if named is not None else next(iter(fields.values()), None)
    if isinstance(value, str):
        return [value]
    return [each for each in listing(value) or () if isinstance(each, str)]


def _add_documents(found: dict[str, Any], prefix: str, facts: Facts) -> None:
    for number, document in enumerate(facts.documents):
        for name, part in document.items():
            found[f"{prefix}.{number}.document.{name}"] = part
