"""What spans of anybody's say of a call of a model: messages, tools, settings, tokens, cost.

What must stay true: messages are kept in the form of chats (OpenAI's), whatever form they came in, so that equal
messages of different instrumentations are equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, json

from stepwell.model import Generation, StepRecord, Usage
from stepwell.otel._parts import chat_message, chat_messages, listing, loads, mapping
from stepwell.otel._reading import Attributes, Said, json_payload, nested, read_json
from stepwell.otel._searches import embedded, found
from stepwell.otel._spans import Span
from stepwell.otel._tables import GENERATION, SETTINGS, TOKENS
from stepwell.responses import parse_response

__all__ = ["EVENTS", "Told", "generation_of", "told_by_events"]

Message = dict[str, Any]
EVENTS: Final = {
    "gen_ai.system.message": "system",
    "gen_ai.user.message": "user",
    "gen_ai.assistant.message": "assistant",
    "gen_ai.tool.message": "tool",
    "gen_ai.choice": "assistant",
}
_TOKENS_OF_LANGFUSE: Final = {
    "input_tokens": ("input", "prompt_tokens", "input_tokens"),
    "output_tokens": ("output", "completion_tokens", "output_tokens"),
    "total_tokens": ("total", "total_tokens"),
    "cached_input_tokens": ("input_cached_tokens", "cache_read_input_tokens"),
    "cache_write_tokens": ("cache_creation_input_tokens",),
    "reasoning_tokens": ("output_reasoning_tokens",),
}
_encode: Final = json.Encoder().encode


class Told(NamedTuple):
    """Input, output and generation as the step has them."""

    input: Raw | UnsetType
    output: Raw | UnsetType
    generation: Raw | UnsetType


class _Request(Struct):
    """The parts that tell a provider's request from other JSON."""

    model: str
    messages: Raw | UnsetType = UNSET
    input: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    contents: Raw | UnsetType = UNSET


class _Response(Struct):
    """The parts that tell a provider's response from other JSON."""

    choices: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    content: Raw | UnsetType = UNSET
    candidates: Raw | UnsetType = UNSET
    usage: Raw | UnsetType = UNSET
    model: str | None = None


_requests: Final = json.Decoder(_Request)
_responses: Final = json.Decoder(_Response)


def generation_of(said: Attributes, span: Span, step: StepRecord, given: Said) -> Told:
    """Return what a span says of a call of a model; for a search or a ranking also what was found."""
    generation = Generation()
    for row in GENERATION:
        setattr(generation, row.field, said.take_text(row.field))
    generation.usage = _usage_of(said)
    generation.cost = _cost_of(said)
    generation.ttft_ns = _ttft_of(said, span)
    generation.stop_reason = _stop_reason(said.take_list("finish"))
    generation.model_endpoint = said.take_text("endpoint")
    generation.settings = _settings_of(said, generation)
    generation.tools = _tools_of(said)
    if (variables := said.take("variables")) is not None:
        generation.variables = json_payload(variables)
    if step.type == "llm":
        given = _chat(generation, said, span, given)
    elif step.type == "embedding":
        given = embedded(said, given)
    else:
        given = found(said, span, given)
    generation.model = generation.model or generation.response_model
    encoded = _encode(generation)
    return Told(given.input, given.output, UNSET if encoded == b"{}" else Raw(encoded))


# -- numbers, settings, tools


def _usage_of(said: Attributes) -> Usage | None:
    usage = Usage(**{row.field: said.take_count(row.field) for row in TOKENS})
    if details := said.take_mapping("usage"):
        for field, names in _TOKENS_OF_LANGFUSE.items():
            counts = (details.get(name) for name in names)
            count = next((each for each in counts if isinstance(each, int) and not isinstance(each, bool)), None)
            if getattr(usage, field) is None:
                setattr(usage, field, count)
    if raw := said.take_mapping("provider_usage"):
        _fill_usage(usage, parse_response({"usage": raw}).usage)
    return _with_total(usage)


def _fill_usage(usage: Usage, counts: Mapping[str, int]) -> None:
    for field, count in counts.items():
        if getattr(usage, field) is None:
            setattr(usage, field, count)


def _with_total(usage: Usage) -> Usage | None:
    if usage.total_tokens is None and (usage.input_tokens is not None or usage.output_tokens is not None):
        usage.total_tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    return None if usage == Usage() else usage


def _cost_of(said: Attributes) -> Raw | UnsetType:
    parts = {name: said.take_number(f"cost_{name}") for name in ("total", "input", "output")}
    cost: Mapping[str, Any] = {name: value for name, value in parts.items() if value is not None}
    cost = cost or said.take_mapping("costs")
    return Raw(_encode(cost)) if cost else UNSET


def _ttft_of(said: Attributes, span: Span) -> int | None:
    seconds = said.take_number("ttft_s")
    if seconds is not None and 0 <= seconds < 1e9:
        return round(seconds * 1e9)
    first_at = said.take_text("first_at")
    if first_at is None:
        return None
    try:
        moment = datetime.fromisoformat(first_at.strip('"'))
        ttft_ns = round(moment.timestamp() * 1e6) * 1000 - span.start_ns
    except (ValueError, OverflowError):
        return None
    return ttft_ns if ttft_ns >= 0 else None


def _stop_reason(reasons: Sequence[Any]) -> str | None:
    found = next((each for each in reasons if isinstance(each, str) and each), None)
    return (
        "tool_calls" if found == "tool_call" else found
    )  # the conventions' word; providers and records have the other


def _settings_of(said: Attributes, generation: Generation) -> Raw | UnsetType:
    settings = dict(said.take_mapping("parameters"))
    model = settings.pop("model", None)
    if generation.model is None and isinstance(model, str):
        generation.model = model
    for _, names in SETTINGS:
        value = said.take(f"setting {names[0]}")
        if value is not None and not any(name in settings for name in names):
            settings[names[0]] = value
    settings = {name: value for name, value in settings.items() if value not in ("Infinity", None)}  # Langfuse's
    return Raw(_encode(settings)) if settings else UNSET


def _tools_of(said: Attributes) -> Raw | UnsetType:
    schemas = (fields.get("tool.json_schema") for fields in said.take_family("llm.tools"))
    tools = [_nested_tool(read_json(schema)) for schema in schemas]
    tools = tools or [_nested_tool(tool) for tool in said.take_list("tools")]
    for function in said.take_family("llm.request.functions"):
        fields = {name: read_json(value) if name == "parameters" else value for name, value in function.items()}
        tools.append({"type": "function", "function": fields})
    return Raw(_encode(tools)) if tools else UNSET


def _nested_tool(tool: object) -> object:
    """Return a tool's definition as OpenAI's chats have it, with what is said of a function in an object of its own."""
    body = mapping(tool)
    if body is None or "function" in body or "name" not in body or "input_schema" in body:
        return tool
    return {
        "type": body.get("type", "function"),
        "function": {name: each for name, each in body.items() if name != "type"},
    }


# -- chats


def _chat(generation: Generation, said: Attributes, span: Span, given: Said) -> Said:
    """Fill in what was asked and answered; return input and output as far as they are not the same."""
    asked, answered = _messages_of(said, span, generation)
    told = _take_exchange(generation, said, given)
    told = told._replace(input=_take_asked(generation, asked, _texts_of(said, "llm.prompts"), told.input))
    completions = _texts_of(said, "llm.choices")
    if completions:
        generation.completion = _one_or_all(completions)
    if answered:
        generation.stop_reason = generation.stop_reason or _stop_reason(
            [each.get("finish_reason") for each in answered]
        )
        for each in answered:
            each.pop("finish_reason", None)
        generation.message_completion = _one_or_all(answered)
    elif generation.message_completion is UNSET and told.output is not UNSET:
        _take_output(generation, told.output)
    if told.output is UNSET:
        answer = generation.message_completion
        told = told._replace(output=generation.completion if answer is UNSET else answer)
    return told


def _one_or_all(values: Sequence[Any]) -> Raw:
    return Raw(_encode(values[0] if len(values) == 1 else values))


def _take_exchange(generation: Generation, said: Attributes, given: Said) -> Said:
    """Fill in the provider's request and response, where input and output are these; return what else they are."""
    request, response = _request_of(generation, given.input, said), _response_of(given.output)
    if request is not UNSET:
        generation.provider_request = request
        given = given._replace(input=UNSET)
    if response is not None:
        generation.provider_response = given.output
        given = given._replace(output=_take_response(generation, response))
    return given


def _take_asked(
    generation: Generation, asked: list[Message], prompts: list[Any], given: Raw | UnsetType
) -> Raw | UnsetType:
    """Fill in messages or prompt; where the span names neither, they are in the request, or are the input.

    Returns the input, unless it says nothing but messages and tools.
    """
    if not asked and not prompts:
        request = generation.provider_request
        asked = _asked_in(given if request is UNSET else request)
        if not asked:
            generation.prompt = given
        elif request is UNSET:
            given = _take_tools(generation, given)
    if asked:
        generation.type, generation.messages = "chat", Raw(_encode(asked))
    elif prompts:
        generation.type, generation.prompt = "completion", _one_or_all(prompts)
    return given


def _take_tools(generation: Generation, given: Raw | UnsetType) -> Raw | UnsetType:
    """Fill in the tools that stand beside messages; return the input, unless there is nothing else in it."""
    body = None if given is UNSET else mapping(loads(given))
    if body is None:
        return UNSET
    tools = listing(body.get("tools"))
    if tools is not None and generation.tools is UNSET:
        generation.tools = Raw(_encode([_nested_tool(tool) for tool in tools]))
    return UNSET if body.keys() <= {"messages", "tools"} else given


def _messages_of(said: Attributes, span: Span, generation: Generation) -> tuple[list[Message], list[Message]]:
    """Return what was asked and answered, from the first place that has any."""
    asked = chat_messages(read_json(said.take("asked")))
    if (instructions := said.take("instructions")) is not None:
        asked = [*chat_message({"role": "system", "parts": _parts(read_json(instructions))}), *asked]
    answered = [
        {**each, "finish_reason": (mapping(message) or {}).get("finish_reason")}
        for message in listing(read_json(said.take("answered"))) or ()
        for each in chat_message(message)
    ]
    asked = asked or [_unflat(nested(fields, "message.")) for fields in said.take_family("llm.input_messages")]
    answered = answered or [_unflat(nested(fields, "message.")) for fields in said.take_family("llm.output_messages")]
    asked = asked or [_legacy(nested(fields)) for fields in said.take_family("gen_ai.prompt")]
    answered = answered or [_legacy(nested(fields)) for fields in said.take_family("gen_ai.completion")]
    if not asked and (prompt := said.take("prompt")) is not None:
        asked = _asked_in(json_payload(prompt)) or [{"role": "user", "content": prompt}]
    if not answered and (completion := said.take("completion")) is not None:
        answered = _asked_in(json_payload(completion)) or [{"role": "assistant", "content": completion}]
    if not asked and not answered:
        asked, answered, reason = told_by_events((each.name, each.attributes) for each in span.events)
        generation.stop_reason = generation.stop_reason or reason
    return asked, answered


def _parts(instructions: object) -> Sequence[Any]:
    parts = listing(instructions)
    return [{"type": "text", "content": instructions}] if parts is None else parts


def _unflat(fields: Mapping[str, Any]) -> Message:
    """Return a message of OpenInference's flat attributes."""
    message: Message = {"role": fields.get("role", "user")}
    if "name" in fields:
        message["name"] = fields["name"]
    if "tool_call_id" in fields:
        message["tool_call_id"] = fields["tool_call_id"]
    contents = listing(fields.get("contents"))
    if "content" in fields or contents is None:
        message["content"] = fields.get("content")
    else:
        message["content"] = [_content((mapping(part) or {}).get("message_content")) for part in contents]
    calls = [(mapping(call) or {}).get("tool_call") for call in listing(fields.get("tool_calls")) or ()]
    if calls:
        message["tool_calls"] = [_tool_call(mapping(call) or {}) for call in calls]
    elif "function_call_name" in fields:
        function = {"name": fields["function_call_name"], "arguments": fields.get("function_call_arguments_json")}
        message["function_call"] = function
    rest = {"role", "name", "content", "contents", "tool_calls", "tool_call_id"}
    message |= {
        name: each for name, each in fields.items() if name not in rest and not name.startswith("function_call_")
    }
    return message


def _content(part: object) -> object:
    fields = mapping(part)
    if fields is None:
        return part
    image = mapping((mapping(fields.get("image")) or {}).get("image"))
    if image is not None and "url" in image:
        return {"type": "image_url", "image_url": {"url": image["url"]}}
    return dict(fields)


def _tool_call(call: Mapping[str, Any]) -> Message:
    function = mapping(call.get("function")) or call
    arguments = function.get("arguments")
    text = arguments if isinstance(arguments, str) or arguments is None else _encode(arguments).decode()
    return {
        "id": call.get("id"),
        "type": "function",
        "function": {"name": function.get("name"), "arguments": text},
    }


def _legacy(fields: Mapping[str, Any]) -> Message:
    """Return a message of OpenLLMetry's attributes before it took up the GenAI conventions."""
    content = fields.get("content")
    parts = listing(read_json(content))
    if parts and all("type" in (mapping(part) or ()) for part in parts):  # else it is a text that looks like a list
        content = parts
    message: Message = {"role": fields.get("role", "user"), "content": content}
    message |= {name: each for name, each in fields.items() if name not in ("role", "content", "tool_calls")}
    if (calls := listing(fields.get("tool_calls"))) is not None:
        message["tool_calls"] = [_tool_call(mapping(call) or {}) for call in calls]
    return message


def _texts_of(said: Attributes, family: str) -> list[Any]:
    return [next(iter(fields.values())) for fields in said.take_family(family)]


def _asked_in(payload: Raw | UnsetType) -> list[Message]:
    """Return the messages that JSON holds: a list of them, one alone, or in a field `messages`."""
    try:
        value = None if payload is UNSET else loads(payload)
    except ValueError:
        return []
    body = mapping(value)
    if body is not None:
        value = body.get("messages", [body])
    items = [mapping(each) for each in listing(value) or ()]
    if not items or any(each is None or not ("role" in each or "parts" in each) for each in items):
        return []
    return [message for each in items for message in chat_message(each)]


def _request_of(generation: Generation, payload: Raw | UnsetType, said: Attributes) -> Raw | UnsetType:
    """Return what was sent to a provider, where the span has it."""
    if (request := said.take("request")) is not None and (mapping(read_json(request)) or {}).keys() != {"model"}:
        return json_payload(request)
    try:
        request = None if payload is UNSET else _requests.decode(payload)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return UNSET
    if request is None or all(
        each is UNSET for each in (request.messages, request.input, request.prompt, request.contents)
    ):
        return UNSET
    generation.model = generation.model or request.model
    return payload


def _response_of(payload: Raw | UnsetType) -> Mapping[str, Any] | None:
    """Return what a provider answered, where the output is that."""
    try:
        response = None if payload is UNSET else _responses.decode(payload)
        if response is None or response.model is None:
            return None
        answers = (response.choices, response.output, response.content, response.candidates)
        return None if all(each is UNSET for each in answers) else mapping(loads(payload))  # type: ignore[arg-type]
    except (DecodeError, ValueError, RecursionError):
        return None


def _take_response(generation: Generation, response: Mapping[str, Any]) -> Raw | UnsetType:
    """Fill in what only the response says; return the output, where it is more than the response itself."""
    parsed = parse_response(dict(response))
    for field in ("response_model", "response_id", "stop_reason"):
        if getattr(generation, field) is None:
            setattr(generation, field, parsed.generation.get(field))
    for field in ("message_completion", "completion"):
        if field in parsed.generation:
            setattr(generation, field, Raw(_encode(parsed.generation[field])))
    usage = generation.usage or Usage()
    _fill_usage(usage, parsed.usage)
    generation.usage = _with_total(usage)
    return UNSET if "message_completion" in parsed.generation else Raw(_encode(parsed.output))


def _take_output(generation: Generation, output: Raw) -> None:
    answered = _asked_in(output)
    if answered:
        generation.message_completion = Raw(_encode(answered[0] if len(answered) == 1 else answered))
    elif bytes(output).startswith(b'"'):
        generation.completion = output
        if generation.type == "chat":
            generation.message_completion = Raw(b'{"role":"assistant","content":%s}' % bytes(output))


# -- events, on spans (conventions v1.27 and v1.28, and some libraries since) and as log records


def told_by_events(
    events: Iterable[tuple[str, Mapping[str, Any]]],
) -> tuple[list[Message], list[Message], str | None]:
    """Return what was asked, what was answered, and why it stopped, of events with their bodies."""
    asked: list[Message] = []
    answered: list[Message] = []
    reason: str | None = None
    for name, said in events:
        body = mapping(read_json(said.get("gen_ai.event.content"))) or said
        if name == "gen_ai.content.prompt":
            asked += _asked_in(json_payload(said.get("gen_ai.prompt")))
        elif name == "gen_ai.content.completion":
            answered += _asked_in(json_payload(said.get("gen_ai.completion")))
        elif name == "gen_ai.choice":
            reason = reason or _stop_reason([body.get("finish_reason")])
            answered.append(_event_message("assistant", mapping(read_json(body.get("message"))) or body))
        elif name in EVENTS:
            asked.append(_event_message(EVENTS[name], body))
    return asked, answered, reason


def _event_message(role: str, body: Mapping[str, Any]) -> Message:
    message: Message = {"role": body.get("role", role)}
    if role == "tool" and "id" in body:
        message["tool_call_id"] = body["id"]
    message["content"] = body.get("content")
    if (calls := listing(read_json(body.get("tool_calls")))) is not None:
        message["tool_calls"] = [_tool_call(mapping(call) or {}) for call in calls]
    return message
