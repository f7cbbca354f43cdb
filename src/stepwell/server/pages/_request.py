"""A recorded model call as something to run again: with curl, or with the provider's Python client.

What must stay true: no key is in it, and no word of what was recorded can leave its quotes. What the provider was sent
is sent again byte for byte where it was recorded; else the request is made of messages, model, settings and tools.
"""

from __future__ import annotations

from pprint import pformat
from typing import Any, Final, Literal, cast

from msgspec import Raw, json

from stepwell.model import Generation
from stepwell.server.pages._content import read

__all__ = ["body_of", "snippet_of"]

_ANTHROPIC: Final = "anthropic"
_OPENAI_URL: Final = "https://api.openai.com/v1"
_MAX_TOKENS: Final = 1024  # Anthropic's API refuses a request that does not say
_MAX_ARGUMENT: Final = 100_000  # bytes; Linux takes 128 KiB in one argument (MAX_ARG_STRLEN, execve(2))


def body_of(generation: Generation) -> bytes | None:
    """Return the body of a request like the one recorded, one line of JSON; None where nothing was recorded to send."""
    sent = read(generation.provider_request)
    if isinstance(sent, dict) and ({"messages", "input", "prompt", "contents"} & cast("dict[str, Any]", sent).keys()):
        return _one_line(cast("Raw", generation.provider_request))
    messages, prompt = read(generation.messages), read(generation.prompt)
    if messages is None and prompt is None:
        return None
    settings = read(generation.settings)
    body: dict[str, Any] = {"model": generation.model or "MODEL"}
    body |= {"messages": messages} if messages is not None else {"prompt": prompt}
    if isinstance(settings, dict):
        body |= {name: value for name, value in cast("dict[str, Any]", settings).items() if name not in body}
    tools = read(generation.tools)
    if tools:
        body["tools"] = tools
    if generation.provider == _ANTHROPIC:
        body.setdefault("max_tokens", _MAX_TOKENS)
    return json.encode(body)


def _one_line(payload: Raw) -> bytes:
    """Return JSON as it is, unless it has line ends, which only stand between its parts."""
    body = bytes(payload)
    return json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def snippet_of(generation: Generation, language: Literal["curl", "python"]) -> str | None:
    """Return the request in a language, None where nothing was recorded to send."""
    body = body_of(generation)
    if body is None:
        return None
    return _curl(generation, body) if language == "curl" else _python(generation, body)


def _path(generation: Generation, body: bytes) -> str:
    """Return the path below the provider's address."""
    if generation.provider == _ANTHROPIC:
        return "/v1/messages"
    fields: dict[str, Any] = json.decode(body)
    return "/chat/completions" if "messages" in fields else "/responses" if "input" in fields else "/completions"


def _curl(generation: Generation, body: bytes) -> str:
    if generation.provider == _ANTHROPIC:
        address = "https://api.anthropic.com"
        key = ['-H "x-api-key: $ANTHROPIC_API_KEY"', "-H 'anthropic-version: 2023-06-01'"]
    else:
        address, key = _OPENAI_URL, ['-H "Authorization: Bearer $OPENAI_API_KEY"']
    head = [f"curl {address}{_path(generation, body)}", *key, "-H 'Content-Type: application/json'"]
    text = body.decode()
    if len(body) > _MAX_ARGUMENT:  # curl leaves out the line end that such an input has
        return " \\\n  ".join([*head, f"-d @- <<'REQUEST'\n{text}\nREQUEST\n"])
    return " \\\n  ".join([*head, "-d '{}'\n".format(text.replace("'", "'\\''"))])


def _python(generation: Generation, body: bytes) -> str:
    """Return a program that sends the request as it is.

    The client's own methods would put its parts in another order, and refuse those that other servers take.
    """
    name, key = ("anthropic", "Anthropic") if generation.provider == _ANTHROPIC else ("openai", "OpenAI")
    literal = pformat(json.decode(body), width=100, sort_dicts=False)
    return f"""import httpx
from {name} import {key}

client = {key}()  # the key is {key.upper()}_API_KEY
request = {literal}
response = client.post({_path(generation, body)!r}, body=request, cast_to=httpx.Response)
print(response.text)
"""
