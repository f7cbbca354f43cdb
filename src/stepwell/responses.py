"""What a provider's response says: its text, message, tokens and reasons, as fields of a generation.

Reads strings, and the shapes of OpenAI chat completions, completions and responses, and of Anthropic messages
(https://platform.openai.com/docs/api-reference, https://docs.anthropic.com/en/api/messages), whole or in stream chunks:
as dicts, or as the objects of the providers' own libraries, which give the dict by `model_dump()`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from stepwell._values import first_items, is_kind, is_text, mro_of, namespace_of

__all__ = ["Parsed", "is_response", "merge_chunks", "parse_response"]

_Body = Mapping[str, Any]
_EMPTY: Final[_Body] = {}
MAX_ITEMS: Final = 10_000  # choices, parts, tool calls looked at


class Parsed(NamedTuple):
    """`output` for the step, `generation` fields and `usage` tokens; what the response did not say is absent."""

    output: Any
    generation: dict[str, Any]
    usage: dict[str, int]


def parse_response(response: object) -> Parsed:
    """Read one response; anything but a string or a known shape is taken as the output, as it is."""
    if is_text(response):
        message = {"role": "assistant", "content": response}
        return Parsed(response, {"message_completion": message, "completion": response}, {})
    body = _body(response)
    if body is None:
        return Parsed(response, {}, {})
    generation: dict[str, Any] = {"provider_response": body}
    message, text, reason = _answer(body)
    facts = {"response_model": body.get("model"), "response_id": body.get("id"), "stop_reason": reason}
    generation.update({field: value for field, value in facts.items() if is_text(value)})
    if message is not None:
        generation["message_completion"] = message
    if text is not None:
        generation["completion"] = text
    output = message if message is not None else text if text is not None else body
    return Parsed(output, generation, _usage(body.get("usage")))


def is_response(value: object) -> bool:
    """Say whether `parse_response` knows the value as a model's answer: a string, or one of a known shape."""
    if is_text(value):
        return True
    body = _body(value)
    return body is not None and _answer(body) != (None, None, None)


def _body(value: object) -> _Body | None:
    """Return the value as a dict, if it is one or an object of a provider's library that can be made one."""
    if type(value) is dict:
        return cast("_Body", value)
    try:
        if is_kind(value, Mapping):
            return cast("_Body", value)
        # On the class: an instance might make the method up (a mock), or load it from somewhere.
        if not any("model_dump" in namespace_of(base) for base in mro_of(type(value))):
            return None
        dumped: object = cast("Any", value).model_dump(mode="json", exclude_none=True, warnings=False)
        return cast("_Body", dumped) if is_kind(dumped, Mapping) else None
    except Exception:  # noqa: BLE001 - another library's code: then it is the output as it is
        return None


def _answer(body: _Body) -> tuple[Any, str | None, Any]:
    """Return the answer's message, its text where there is no message, and why it stopped; None for what is absent."""
    choice = _first(body.get("choices"))
    if is_kind(choice.get("message"), Mapping):
        return choice["message"], None, choice.get("finish_reason")
    if is_text(choice.get("text")):
        return None, choice["text"], choice.get("finish_reason")
    if body.get("object") == "response":
        return _from_responses_api(body)
    if body.get("type") == "message":  # Anthropic's: the message and what is said of the call in one
        return {"role": body.get("role", "assistant"), "content": body.get("content")}, None, body.get("stop_reason")
    if "role" in body and "content" in body:  # a message alone
        return body, None, None
    return None, None, None


def _from_responses_api(body: _Body) -> tuple[Any, str | None, Any]:
    """Read an answer of OpenAI's responses API: items, of which messages hold parts."""
    items = [_mapping(item) for item in _items(body.get("output"))]
    parts = [_mapping(part) for item in items for part in _items(item.get("content"))]
    text = "".join(part["text"] for part in parts if is_text(part.get("text")))
    message: dict[str, Any] = {"role": "assistant", "content": text}
    calls = [_tool_call(item) for item in items if item.get("type") == "function_call"]
    if calls:
        message["tool_calls"] = calls
    reason = _mapping(body.get("incomplete_details")).get("reason") or body.get("status")
    return message, None, reason


def _tool_call(item: _Body) -> dict[str, Any]:
    function = {"name": item.get("name"), "arguments": item.get("arguments")}
    return {"id": item.get("call_id"), "type": "function", "function": function}


def _first(items: object) -> _Body:
    found = _items(items)
    return _mapping(found[0]) if found else _EMPTY


def _items(value: object) -> Sequence[Any]:
    if issubclass(type(value), str | bytes) or not is_kind(value, Sequence):
        return ()
    return first_items(value, MAX_ITEMS)


def _mapping(value: object) -> _Body:
    return cast("_Body", value) if is_kind(value, Mapping) else _EMPTY


def _usage(usage: object) -> dict[str, int]:
    """Normalise tokens: input includes what was read from and written to a cache (OpenAI's way of counting)."""
    body = _mapping(usage)
    found: dict[str, int] = {}

    def take(field: str, *values: object) -> None:
        for value in values:
            if issubclass(type(value), int) and type(value) is not bool and (count := cast("int", value)) >= 0:
                found[field] = count
                return

    details_in = _mapping(body.get("prompt_tokens_details") or body.get("input_tokens_details"))
    details_out = _mapping(body.get("completion_tokens_details") or body.get("output_tokens_details"))
    take("input_tokens", body.get("prompt_tokens"), body.get("input_tokens"))
    take("output_tokens", body.get("completion_tokens"), body.get("output_tokens"))
    take("cached_input_tokens", details_in.get("cached_tokens"), body.get("cache_read_input_tokens"))
    take("cache_write_tokens", body.get("cache_creation_input_tokens"))
    take("reasoning_tokens", details_out.get("reasoning_tokens"))
    take("total_tokens", body.get("total_tokens"))
    if "cache_read_input_tokens" in body or "cache_creation_input_tokens" in body:  # Anthropic counts them apart
        cached = found.get("cached_input_tokens", 0) + found.get("cache_write_tokens", 0)
        if "input_tokens" in found:
            found["input_tokens"] += cached
    return found


class _Merger:
    """What the chunks of a stream say together."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.calls: dict[object, dict[str, Any]] = {}
        self.generation: dict[str, Any] = {}
        self.usage: dict[str, int] = {}
        self.whole: Parsed | None = None  # the response that some streams end with

    def add(self, body: _Body) -> None:
        choice = _first(body.get("choices"))
        delta = _mapping(choice.get("delta")) or _mapping(body.get("delta"))
        response = _mapping(body.get("response"))
        if response.get("object") == "response" and response.get("output"):  # response.completed
            self.whole = parse_response(response)
        self._add_text(delta.get("content"), choice.get("text"), delta.get("text"))
        if body.get("type") == "response.output_text.delta":
            self._add_text(body.get("delta"))
        for part in _items(delta.get("tool_calls")):  # OpenAI's
            function = _mapping(_mapping(part).get("function"))
            self._add_call(
                _mapping(part).get("index"), _mapping(part).get("id"), function.get("name"), function.get("arguments")
            )
        block = _mapping(body.get("content_block"))  # Anthropic's
        if block.get("type") == "tool_use":
            self._add_call(body.get("index"), block.get("id"), block.get("name"), "")
        if delta.get("type") == "input_json_delta":
            self._add_call(body.get("index"), None, None, delta.get("partial_json"))
        source = _mapping(body.get("message")) or response or body
        self._add_facts(source, choice.get("finish_reason") or delta.get("stop_reason"))
        self._add_usage(_usage(body.get("usage") or source.get("usage")))

    def _add_text(self, *candidates: object) -> None:
        self.texts += [text for text in candidates if is_text(text)][:1]

    def _add_call(self, index: object, id_: object, name: object, arguments: object) -> None:
        key = index if type(index) is int else 0
        call = self.calls.setdefault(key, {"id": None, "type": "function", "function": {"name": None, "arguments": ""}})
        call["id"] = id_ or call["id"]
        call["function"]["name"] = name or call["function"]["name"]
        if is_text(arguments):
            call["function"]["arguments"] += arguments

    def _add_facts(self, source: _Body, reason: object) -> None:
        facts = {"response_model": source.get("model"), "response_id": source.get("id"), "stop_reason": reason}
        self.generation.update({field: value for field, value in facts.items() if is_text(value)})

    def _add_usage(self, usage: dict[str, int]) -> None:
        """Later chunks count what earlier ones did, and say 0 or nothing of what they do not count."""
        self.usage.update({field: count for field, count in usage.items() if count or field not in self.usage})

    def parsed(self, chunks: Sequence[object]) -> Parsed:
        if self.whole is not None:
            return self.whole
        text = "".join(self.texts)
        if not self.texts and not self.calls:
            kinds = set(map(type, chunks))  # bytes belong together: what is secret may be split between them
            output = b"".join(cast("Sequence[bytes]", chunks)) if kinds == {bytes} else list(chunks)
            return Parsed(output, self.generation, self.usage)
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if self.calls:
            message["tool_calls"] = list(self.calls.values())
            return Parsed(message, self.generation | {"message_completion": message}, self.usage)
        return Parsed(text, self.generation | {"message_completion": message, "completion": text}, self.usage)


def merge_chunks(chunks: Sequence[object]) -> Parsed:
    """Join the chunks of a stream: strings, bytes, or streaming events of OpenAI and Anthropic."""
    merger = _Merger()
    for chunk in chunks:
        if is_text(chunk):
            merger.texts.append(chunk)
        elif (body := _body(chunk)) is not None:
            merger.add(body)
    return merger.parsed(chunks)
