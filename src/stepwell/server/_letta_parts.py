"""One recorded message as Letta's: flat messages told apart by `message_type`.

Reads messages of OpenAI (chat completions and responses), of Anthropic, of OpenTelemetry's GenAI conventions and of
Letta itself. What must stay true: nothing recorded is lost for being of an unknown shape, it is shown as text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Literal, cast

from msgspec import json

__all__ = ["Message", "listing", "mapping", "of_message", "text_of", "tool_call", "tool_return"]

Message = dict[str, Any]
_Body = Mapping[str, Any]
_Role = Literal["user", "assistant"]

# What Letta's models require of a message besides id and date (letta-client 1.12.1, `types/agents/*_message.py`).
_REQUIRED: Final[dict[str, dict[str, type | tuple[type, ...]]]] = {
    "system_message": {"content": str},
    "user_message": {"content": (str, list)},
    "assistant_message": {"content": (str, list)},
    "reasoning_message": {"reasoning": str},
    "hidden_reasoning_message": {"state": str},
    "tool_call_message": {"tool_call": dict},
    "tool_return_message": {"status": str, "tool_call_id": str, "tool_return": str},
    "approval_request_message": {"tool_call": dict},
    "approval_response_message": {},
    "summary_message": {"summary": str},
    "event_message": {"event_data": dict, "event_type": str},
}
_ALLOWED: Final = {
    "status": {"success", "error"},
    "state": {"redacted", "omitted"},
    "event_type": {"compaction"},
}
_ROLES: Final = {"developer": "system", "human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}
_TEXT_PARTS: Final = frozenset({"text", "input_text", "output_text", "summary_text", "refusal"})
_CALLS: Final = frozenset({"tool_use", "tool_call", "function_call", "server_tool_use", "server_tool_call"})
_RETURNS: Final = frozenset(
    {"tool_result", "tool_return", "tool_call_response", "function_call_output", "server_tool_call_response"}
)
_THOUGHTS: Final = frozenset({"thinking", "reasoning"})


def of_message(message: object) -> Iterator[Message]:
    """Yield one recorded message as Letta's, in the order in which its parts stand."""
    if (body := mapping(message)) is None:
        yield {"message_type": "user_message", "content": text_of(message)}
        return
    role, kind = body.get("role"), _kind(body)
    role = _ROLES.get(role, role) if isinstance(role, str) else None
    if _is_letta(body):
        yield _of_letta(body)
    elif kind in _CALLS | _RETURNS | _THOUGHTS:  # items of OpenAI's responses
        yield from _of_parts([body], "assistant")
    elif role == "system":
        yield {"message_type": "system_message", "content": text_of(_content(body)), **_name(body)}
    elif role == "summary":
        yield {"message_type": "summary_message", "summary": text_of(_content(body))}
    elif role == "approval":
        yield _approval(body)
    elif role == "tool":
        yield from _of_tool_message(body)
    elif role == "assistant":
        yield from _of_assistant(body)
    else:
        content = _content(body) if role == "user" or "content" in body or "parts" in body else body
        yield from (each | _name(body) for each in _of_parts(content, "user"))


def _is_letta(body: dict[str, Any]) -> bool:
    required = _REQUIRED.get(str(body.get("message_type")))
    return required is not None and all(
        isinstance(body.get(name), kind) and body[name] in _ALLOWED.get(name, (body[name],))
        for name, kind in required.items()
    )


def _of_letta(body: dict[str, Any]) -> Message:
    """Return a message of Letta's own, with the parts of it that other code may have shaped otherwise put right."""
    message = dict(body)
    if (call := mapping(body.get("tool_call"))) is not None:
        calls = _mappings(body.get("tool_calls")) or [call]
        shaped = [_call_of(call)["tool_call"] for call in calls]
        message |= {"tool_call": shaped[0], "tool_calls": shaped}
    if (content := listing(body.get("content"))) is not None:
        role: _Role = "user" if body["message_type"] == "user_message" else "assistant"
        message["content"] = [_shown(part, role) for part in content]
    return message


def _content(body: _Body) -> object:
    parts = listing(body.get("parts"))
    return body.get("content") if parts is None else parts


def _name(body: _Body) -> Message:
    return {"name": body["name"]} if isinstance(body.get("name"), str) else {}


def _of_assistant(body: dict[str, Any]) -> Iterator[Message]:
    for field in ("reasoning_content", "reasoning"):
        if isinstance(thought := body.get(field), str) and thought:
            yield _reasoning(thought)
            break
    content = _content(body)
    if content in (None, "") and isinstance(body.get("refusal"), str):
        content = body["refusal"]
    calls = _mappings(body.get("tool_calls"))
    if (function := mapping(body.get("function_call"))) is not None:
        calls = [*calls, {"function": function}]
    if content not in (None, "") or not calls:
        yield from (each | _name(body) for each in _of_parts("" if content is None else content, "assistant"))
    for call in calls:
        yield _call_of(call)


def _of_tool_message(body: dict[str, Any]) -> Iterator[Message]:
    content = _content(body)
    if any(_kind(part) in _RETURNS for part in _mappings(content)):
        yield from _of_parts(content, "user")
        return
    call_id = body.get("tool_call_id") or body.get("name") or ""
    yield tool_return(str(call_id), content, failed=body.get("is_error") is True, name=body.get("name"))


def _of_parts(content: object, role: _Role) -> Iterator[Message]:
    """Yield a message's parts: text and images that stand together as one message, all else each as its own."""
    parts = [content] if (listed := listing(content)) is None else listed
    together: list[Message] = []
    for part in parts:
        special = _special(part)
        if special is None:
            together.append(_shown(part, role))
        else:
            yield from _joined(together, role)
            together = []
            yield special
    yield from _joined(together, role)


def _joined(parts: list[Message], role: _Role) -> Iterator[Message]:
    if len(parts) == 1 and parts[0]["type"] == "text":
        yield {"message_type": f"{role}_message", "content": parts[0]["text"]}
    elif parts:
        yield {"message_type": f"{role}_message", "content": parts}


def _special(part: object) -> Message | None:
    """Return the message that a part is by itself, None for text, images and what is unknown."""
    body = mapping(part) or {}
    kind = _kind(body)
    if kind in _CALLS:
        return _call_of(body)
    if kind in _RETURNS:
        call_id = body.get("tool_use_id") or body.get("tool_call_id") or body.get("call_id") or body.get("id") or ""
        fields = ("content", "output", "response", "result")
        content = next((body[name] for name in fields if name in body), None)
        return tool_return(str(call_id), content, failed=body.get("is_error") is True)
    if kind == "redacted_thinking":
        return {"message_type": "hidden_reasoning_message", "state": "redacted", "hidden_reasoning": body.get("data")}
    if kind in _THOUGHTS:
        thought = body.get("thinking") or body.get("reasoning") or body.get("content") or body.get("summary")
        if thought is None:  # encrypted, or kept back
            return {"message_type": "hidden_reasoning_message", "state": "omitted"}
        return _reasoning(text_of(thought), body.get("signature"))
    return None


def _reasoning(text: str, signature: object = None) -> Message:
    message = {"message_type": "reasoning_message", "reasoning": text, "source": "reasoner_model"}
    return message | ({"signature": signature} if isinstance(signature, str) else {})


def _shown(part: object, role: _Role) -> Message:
    if role == "user" and (source := _image(mapping(part) or {})) is not None:
        return {"type": "image", "source": source}
    return {"type": "text", "text": text_of(part)}


def _image(part: dict[str, Any]) -> Message | None:
    """Return the source of an image, of OpenAI's, Anthropic's or OpenTelemetry's making."""
    kind = _kind(part)
    if kind in {"image_url", "input_image"}:
        where = part.get("image_url")
        return _image_at(where if (body := mapping(where)) is None else body.get("url"))
    if kind == "image" and (given := mapping(part.get("source"))) is not None:
        if given.get("type") == "base64" and isinstance(given.get("data"), str):
            return _image_data(given["data"], given.get("media_type"))
        return _image_at(given.get("url"))
    if part.get("modality") == "image":
        if kind == "blob" and isinstance(part.get("content"), str):
            return _image_data(part["content"], part.get("mime_type"))
        return _image_at(part.get("uri"))
    return None


def _image_at(url: object) -> Message | None:
    if not isinstance(url, str):
        return None
    head, comma, data = url.partition(";base64,")
    if head.startswith("data:") and comma:
        return _image_data(data, head.removeprefix("data:"))
    return {"type": "url", "url": url}


def _image_data(data: str, mime: object) -> Message:
    return {"type": "base64", "data": data, "media_type": mime if isinstance(mime, str) and mime else "image/png"}


def _call_of(body: _Body) -> Message:
    function = mapping(body.get("function")) or body
    arguments = function.get("arguments", function.get("input"))
    call_id = body.get("call_id") or body.get("tool_call_id") or body.get("id") or ""
    return tool_call(str(call_id), function.get("name"), arguments)


def tool_call(call_id: str, name: object, arguments: object) -> Message:
    text = arguments if isinstance(arguments, str) else json.encode({} if arguments is None else arguments).decode()
    call = {"name": name if isinstance(name, str) else "", "arguments": text, "tool_call_id": call_id}
    return {"message_type": "tool_call_message", "tool_call": call, "tool_calls": [call]}


def tool_return(call_id: str, content: object, *, failed: bool = False, name: object = None) -> Message:
    text, unwrapped_failed = _unwrapped(text_of(content))
    status = "error" if failed or unwrapped_failed else "success"
    message: Message = {
        "message_type": "tool_return_message",
        "status": status,
        "tool_call_id": call_id,
        "tool_return": text,
        "tool_returns": [{"type": "tool", "status": status, "tool_call_id": call_id, "tool_return": text}],
    }
    if status == "error":
        message["is_err"] = True
    return message | ({"name": name} if isinstance(name, str) else {})


def _unwrapped(text: str) -> tuple[str, bool]:
    """Take a result out of the envelope that Letta puts it in: `{"status": "OK" | "Failed", "message", "time"}`."""
    if text.startswith("{") and '"status"' in text:
        try:
            body = json.decode(text)
        except ValueError:
            return text, False
        if body.keys() in ({"status", "message"}, {"status", "message", "time"}) and isinstance(body["message"], str):
            if body["status"] == "OK":
                return body["message"], False
            if body["status"] == "Failed":
                return body["message"], True
    return text, False


def _approval(body: dict[str, Any]) -> Message:
    """Return what asks for an approval, with the calls to be approved, or what grants or denies it."""
    calls = _mappings(body.get("tool_calls"))
    if calls:
        asked = [_call_of(call)["tool_call"] for call in calls]
        return {"message_type": "approval_request_message", "tool_call": asked[0], "tool_calls": asked}
    approval: Message = {"message_type": "approval_response_message"}
    if isinstance(body.get("approve"), bool):
        approval["approve"] = body["approve"]
    if isinstance(request := body.get("approval_request_id"), str):
        approval["approval_request_id"] = request
    reason = body.get("denial_reason") or body.get("reason") or text_of(_content(body))
    if isinstance(reason, str) and reason:
        approval["reason"] = reason
    return approval


def mapping(value: object) -> dict[str, Any] | None:
    """Return decoded JSON that is an object, None for anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def listing(value: object) -> Sequence[Any] | None:
    """Return decoded JSON that is an array, None for anything else."""
    return cast("Sequence[Any]", value) if isinstance(value, list) else None


def _kind(body: _Body) -> str | None:
    kind = body.get("type")
    return kind if isinstance(kind, str) else None


def _mappings(value: object) -> list[dict[str, Any]]:
    return [item for each in listing(value) or () if (item := mapping(each)) is not None]


def text_of(content: object) -> str:
    """Return content as text: its parts' texts line by line, and JSON for what has none."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if (parts := listing(content)) is not None:
        return "\n".join(map(text_of, parts))
    if (body := mapping(content)) is not None and _kind(body) in _TEXT_PARTS:
        for name in ("text", "content", "refusal"):
            if isinstance(text := body.get(name), str):
                return text
    return json.encode(content).decode()
