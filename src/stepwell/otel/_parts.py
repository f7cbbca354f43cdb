"""Messages of a chat in the three forms that spans have them in: as providers do, as GenAI parts, as flat attributes.

What must stay true: nothing that a message says is lost for being of an unknown shape; it becomes a part of its own
type with its own fields.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, cast

from msgspec import DecodeError, Raw, json

__all__ = ["chat_message", "chat_messages", "flat_message", "genai_message", "listing", "loads", "mapping"]

Body = Mapping[str, Any]
_ROLES: Final = {"developer": "system", "human": "user", "ai": "assistant", "model": "assistant", "function": "tool"}
_TEXTS: Final = frozenset({"text", "input_text", "output_text", "summary_text"})
_CALLS: Final = frozenset({"tool_use", "function_call"})
_RETURNS: Final = frozenset({"tool_result", "function_call_output"})
_IMAGES: Final = frozenset({"image_url", "input_image"})


def loads(text: str | bytes | Raw) -> Any:
    """Return what JSON says; raises `ValueError` (also for nesting too deep to read)."""
    try:
        return json.decode(text)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from error


def mapping(value: object) -> Body | None:
    """Return the value if it is a mapping."""
    return cast("Body", value) if type(value) is dict or isinstance(value, Mapping) else None  # the first is fast


def listing(value: object) -> Sequence[Any] | None:
    """Return the value if it is a list."""
    return cast("Sequence[Any]", value) if isinstance(value, list | tuple) else None


# -- to GenAI


def genai_message(message: object) -> dict[str, Any]:
    """Return a recorded message in the form of `gen_ai.input.messages` (GenAI conventions v1.41.1)."""
    body = mapping(message)
    if body is None:
        text = message if isinstance(message, str) else json.encode(message).decode()
        return {"role": "user", "parts": [{"type": "text", "content": text}]}
    role = body.get("role")
    role = role if isinstance(role, str) else _role_of_item(body)
    if listing(body.get("parts")) is not None:
        return {**body, "role": role}
    found: dict[str, Any] = {"role": role, "parts": [*_parts_of(body, role)]}
    if isinstance(name := body.get("name"), str):
        found["name"] = name
    return found


def _role_of_item(body: Body) -> str:
    """Return who says an item of OpenAI's responses, which has a type in place of a role."""
    kind = body.get("type")
    return "tool" if kind in _RETURNS else "assistant" if kind in _CALLS or kind == "reasoning" else "user"


def _parts_of(body: Body, role: str) -> Iterator[dict[str, Any]]:
    content = body.get("content")
    for field in ("reasoning_content", "reasoning"):
        if isinstance(thought := body.get(field), str) and thought:
            yield {"type": "reasoning", "content": thought}
            break
    if _ROLES.get(role, role) == "tool" and "content" in body:
        yield _response(body.get("tool_call_id"), content)
    elif isinstance(content, str):
        yield {"type": "text", "content": content}
    elif (parts := listing(content)) is not None:
        yield from (_part(part) for part in parts)
    elif content is not None:
        yield _part(content)
    elif body.get("type") in _CALLS | _RETURNS:
        yield _part(body)
    for call in listing(body.get("tool_calls")) or ():
        yield _call_of(call)
    if (function := mapping(body.get("function_call"))) is not None:
        yield _call(None, function.get("name"), function.get("arguments"))


def _part(part: object) -> dict[str, Any]:  # noqa: PLR0911 (one return a kind)
    if isinstance(part, str):
        return {"type": "text", "content": part}
    body = mapping(part)
    if body is None:
        return {"type": "text", "content": json.encode(part).decode()}
    kind = body.get("type")
    if kind in _TEXTS and isinstance(body.get("text"), str):
        return {"type": "text", "content": body["text"]}
    if kind in _CALLS:
        arguments = body["input"] if "input" in body else body.get("arguments")
        return _call(body.get("call_id") or body.get("id"), body.get("name"), arguments)
    if kind in _RETURNS:
        content = body["content"] if "content" in body else body.get("output")
        return _response(body.get("tool_use_id") or body.get("call_id"), content)
    if kind == "thinking":
        return {"type": "reasoning", "content": body.get("thinking") or ""}
    if kind in _IMAGES or kind == "image":
        return _image(body)
    return {"type": kind if isinstance(kind, str) else "unknown", **body}


def _call_of(call: object) -> dict[str, Any]:
    body = mapping(call) or {}
    function = mapping(body.get("function")) or body
    return _call(body.get("id"), function.get("name"), function.get("arguments"))


def _call(id: object, name: object, arguments: object) -> dict[str, Any]:
    """Return the part of a tool's call; arguments in JSON text are an object where the text follows from it again."""
    if isinstance(arguments, str):
        try:
            value = loads(arguments)
        except ValueError:
            value = None
        if mapping(value) is not None and json.encode(value) == arguments.encode("utf-8", "replace"):
            arguments = value
    return {"type": "tool_call", "name": str(name), "id": id, "arguments": arguments}


def _response(id: object, response: object) -> dict[str, Any]:
    return {"type": "tool_call_response", "id": id, "response": response}


def _image(body: Body) -> dict[str, Any]:
    """Return the part of an image, given as a URL, or as data in base64 (also within a `data:` URL)."""
    source = mapping(body.get("source")) or {}
    image = body.get("image_url")
    url = (mapping(image) or {}).get("url") if mapping(image) else image
    url = url if isinstance(url, str) else source.get("url")
    if isinstance(data := source.get("data"), str):
        return {"type": "blob", "modality": "image", "mime_type": source.get("media_type"), "content": data}
    if isinstance(url, str) and url.startswith("data:") and ";base64," in url:
        mime, _, data = url[5:].partition(";base64,")
        return {"type": "blob", "modality": "image", "mime_type": mime, "content": data}
    if isinstance(url, str):
        return {"type": "uri", "modality": "image", "uri": url}
    return dict(body)


# -- to the form of chats


def chat_messages(messages: object) -> list[dict[str, Any]]:
    """Return GenAI messages as a chat's: a message that answers several tool calls becomes as many."""
    return [each for message in listing(messages) or () for each in chat_message(message)]


def chat_message(message: object) -> list[dict[str, Any]]:
    """Return one GenAI message as a chat's (OpenAI's form); a message of another form as it is."""
    body = mapping(message)
    if body is None:
        return [{"role": "user", "content": message}]
    parts = listing(body.get("parts"))
    if parts is None:
        return [dict(body)]
    role = body.get("role")
    role = role if isinstance(role, str) else "user"
    if len(parts) == 1 and "name" not in body and (text := _plain_text(parts[0])) is not None:
        return [{"role": role, "content": text}]  # as most messages
    found: list[dict[str, Any]] = []
    contents: list[Any] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for part in parts:
        fields = mapping(part) or {"type": "text", "content": part}
        kind = fields.get("type")
        if kind == "tool_call_response":
            found.append({"role": "tool", "tool_call_id": fields.get("id"), "content": _returned(fields)})
        elif kind == "tool_call":
            calls.append(_chat_call(fields))
        elif kind == "reasoning" and isinstance(thought := fields.get("content"), str):
            thoughts.append(thought)
        else:
            contents.append(_chat_part(fields))
    if contents or calls or thoughts or not found:
        found.append(_joined(role, body.get("name"), contents, calls, thoughts))
    return found


def _plain_text(part: object) -> str | None:
    fields = mapping(part)
    text = fields.get("content") if fields is not None and fields.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _returned(part: Body) -> object:
    response = part["response"] if "response" in part else part.get("result")
    return response if isinstance(response, str) or listing(response) is not None else json.encode(response).decode()


def _chat_call(part: Body) -> dict[str, Any]:
    arguments = part.get("arguments")
    text = arguments if isinstance(arguments, str) else json.encode(arguments).decode()
    return {"id": part.get("id"), "type": "function", "function": {"name": part.get("name"), "arguments": text}}


def _chat_part(part: Body) -> object:
    kind, content = part.get("type"), part.get("content")
    if kind == "text":
        return content
    if kind == "uri" and part.get("modality") == "image":
        return {"type": "image_url", "image_url": {"url": part.get("uri")}}
    if kind == "blob" and part.get("modality") == "image":
        mime = part.get("mime_type") or "application/octet-stream"
        return {"type": "image_url", "image_url": {"url": f"data:{mime};base64,{content}"}}
    return dict(part)


def _joined(
    role: str, name: object, contents: list[Any], calls: list[dict[str, Any]], thoughts: list[str]
) -> dict[str, Any]:
    """Return one message; its content is text where there is one text, None where there are calls alone."""
    message: dict[str, Any] = {"role": role}
    if isinstance(name, str):
        message["name"] = name
    if not contents:
        message["content"] = None if calls or thoughts else ""
    elif len(contents) == 1 and isinstance(contents[0], str):
        message["content"] = contents[0]
    else:
        message["content"] = [{"type": "text", "text": each} if isinstance(each, str) else each for each in contents]
    if calls:
        message["tool_calls"] = calls
    if thoughts:
        message["reasoning_content"] = "\n".join(thoughts)
    return message


# -- to OpenInference


def flat_message(found: dict[str, Any], prefix: str, message: Body) -> None:
    """Add the attributes of one GenAI message below `prefix`, such as `llm.input_messages.0.message.`."""
    if isinstance(role := message.get("role"), str):
        found[f"{prefix}role"] = role
    if isinstance(name := message.get("name"), str):
        found[f"{prefix}name"] = name
    parts = [mapping(part) or {} for part in listing(message.get("parts")) or ()]
    texts = [part for part in parts if part.get("type") not in ("tool_call", "tool_call_response")]
    if len(texts) == 1 and texts[0].get("type") == "text":
        if isinstance(content := texts[0].get("content"), str):
            found[f"{prefix}content"] = content
    else:
        for number, part in enumerate(texts):
            for key, value in _flat_part(part).items():
                if isinstance(value, str):
                    found[f"{prefix}contents.{number}.message_content.{key}"] = value
    if len(parts) > len(texts):
        _add_flat_calls(found, prefix, parts)


def _add_flat_calls(found: dict[str, Any], prefix: str, parts: Sequence[Body]) -> None:
    calls = 0
    for part in parts:
        if part.get("type") == "tool_call":
            call = _chat_call(part)
            where = f"{prefix}tool_calls.{calls}.tool_call."
            calls += 1
            if isinstance(call["id"], str):
                found[f"{where}id"] = call["id"]
            found[f"{where}function.name"] = str(part.get("name"))
            found[f"{where}function.arguments"] = call["function"]["arguments"]
        elif part.get("type") == "tool_call_response":
            response = _returned(part)
            found[f"{prefix}content"] = response if isinstance(response, str) else json.encode(response).decode()
            if isinstance(part.get("id"), str):
                found[f"{prefix}tool_call_id"] = part["id"]


def _flat_part(part: Body) -> dict[str, Any]:
    kind, content = part.get("type"), part.get("content")
    if kind in ("text", "reasoning"):
        return {"type": kind, "text": content}
    shown = mapping(_chat_part(part)) or {}
    if shown.get("type") == "image_url":
        return {"type": "image", "image.image.url": shown["image_url"]["url"]}
    return {"type": kind, "text": json.encode(part).decode()}
