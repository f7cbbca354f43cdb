"""What a step is in the GenAI conventions (v1.41.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import UNSET, json

from stepwell.model import Score
from stepwell.otel._facts import Facts, is_number, put, put_fields, query_of, value_of
from stepwell.otel._parts import listing, mapping
from stepwell.otel._tables import PROVIDERS, SETTINGS

__all__ = ["add_genai", "judgement_of"]

_encode: Final = json.Encoder().encode
# By a setting's name: its attribute, and its rank among the names that say the same.
_SETTINGS: Final = {name: (attribute, rank) for attribute, names in SETTINGS for rank, name in enumerate(names)}
_LISTS: Final = frozenset({"gen_ai.request.stop_sequences", "gen_ai.request.encoding_formats"})


def add_genai(found: dict[str, Any], facts: Facts) -> None:
    """Add the attributes of a step."""
    step = facts.step
    put(
        found,
        ("gen_ai.operation.name", facts.operation),
        ("gen_ai.conversation.id", step.thread_id),
        ("user.id", step.user),
        ("gen_ai.agent.id", step.agent_id),
    )
    if step.status == "failed":
        found["error.type"] = (step.error.type if step.error else None) or "_OTHER"
    if step.generation is not UNSET:
        _add_generation(found, facts)
    if step.type == "run":
        put(found, ("gen_ai.workflow.name" if step.agent_id is None else "gen_ai.agent.name", step.name))
    elif step.type == "tool":
        put(
            found,
            ("gen_ai.tool.name", step.name),
            ("gen_ai.tool.call.arguments", facts.input),
            ("gen_ai.tool.call.result", facts.output),
        )
    elif step.type in ("retrieval", "rerank"):
        _add_search(found, facts)


def _add_search(found: dict[str, Any], facts: Facts) -> None:
    put(found, ("gen_ai.retrieval.query.text", query_of(value_of(facts.step.input))))
    known = ({name: each[name] for name in ("id", "score") if name in each} for each in facts.documents)
    if scored := [each for each in known if each]:
        found["gen_ai.retrieval.documents"] = _encode(scored).decode()


def _add_generation(found: dict[str, Any], facts: Facts) -> None:
    generation = facts.generation
    put_fields(found, generation, "genai")
    if (provider := generation.provider) is not None:
        found["gen_ai.provider.name"] = PROVIDERS.get(provider.lower(), provider)
    if generation.stop_reason is not None:
        found["gen_ai.response.finish_reasons"] = [generation.stop_reason]
    if generation.ttft_ns is not None:
        found["gen_ai.response.time_to_first_chunk"] = generation.ttft_ns / 1e9
    if facts.settings:
        _add_settings(found, facts.settings)
    if generation.model_endpoint is not None:
        _add_server(found, generation.model_endpoint)
    _add_chat(found, facts)


def _add_chat(found: dict[str, Any], facts: Facts) -> None:
    generation = facts.generation
    if facts.asked:
        found["gen_ai.input.messages"] = _encode(facts.asked).decode()
    if facts.answered:
        reason = generation.stop_reason or "stop"  # required by the conventions
        answered = [each if "finish_reason" in each else {**each, "finish_reason": reason} for each in facts.answered]
        found["gen_ai.output.messages"] = _encode(answered).decode()
    if (tools := listing(value_of(generation.tools))) is not None:
        found["gen_ai.tool.definitions"] = _encode([_definition(tool) for tool in tools]).decode()


def _add_settings(found: dict[str, Any], settings: Mapping[str, Any]) -> None:
    ranks: dict[str, int] = {}
    values: dict[str, Any] = {}
    for name, value in settings.items():
        slot = None if value is None else _SETTINGS.get(name)
        if slot is not None and slot[1] <= ranks.get(slot[0], slot[1]):
            ranks[slot[0]] = slot[1]
            values[slot[0]] = value
    for attribute, value in values.items():
        if attribute in _LISTS:
            items = [value] if isinstance(value, str) else listing(value)
            if items and all(isinstance(each, str) for each in items):
                found[attribute] = [*items]
        elif isinstance(value, bool) or is_number(value):
            found[attribute] = value


def _add_server(found: dict[str, Any], endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return
    if parts.hostname:
        put(found, ("server.address", parts.hostname), ("server.port", port))


def _definition(tool: object) -> Any:
    """Return a tool's definition flat, as the GenAI conventions have it; OpenAI's is nested."""
    body = mapping(tool)
    function = mapping((body or {}).get("function"))
    if body is None or function is None:
        return tool
    return {"type": body.get("type", "function"), **function}


def judgement_of(score: Score) -> dict[str, Any]:
    """Return the attributes of a score as an event."""
    found = {
        "gen_ai.evaluation.name": score.name,
        "gen_ai.evaluation.score.value": score.value,
        "gen_ai.evaluation.score.label": score.label,
        "gen_ai.evaluation.explanation": score.comment,
    }
    return {name: value for name, value in found.items() if value is not None}
