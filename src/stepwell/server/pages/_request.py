"""A recorded model call as something to run again: with curl, or with the provider's Python client.

What must stay true: no key is in it, and no word of what was recorded can leave its quotes. What the provider was sent
is taken where it was recorded; else the request is made of messages, model, settings and tools.
"""

from __future__ import annotations

from pprint import pformat
from typing import Any, Final, Literal, cast

from msgspec import json

from stepwell.model import Generation
from stepwell.server.pages._content import read

__all__ = ["body_of", "snippet_of"]

_ANTHROPIC: Final = "anthropic"
_OPENAI_URL: Final = "https://api.openai.com/v1"
_MAX_TOKENS: Final = 1024  # Anthropic's API refuses a request that does not say


def body_of(generation: Generation) -> dict[str, Any] | None:
    """Return the body of a request like the one recorded, None where nothing was recorded to send."""
    sent = read(generation.provider_request)
    if isinstance(sent, dict) and ({"messages", "input", "prompt", "contents"} & cast("dict[str, Any]", sent).keys()):
        return cast("dict[str, Any]", sent)
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
    return body


def snippet_of(generation: Generation, language: Literal["curl", "python"]) -> str | None:
    """Return the request in a language, None where nothing was recorded to send."""
    body = body_of(generation)
    if body is None:
        return None
    return _curl(generation, body) if language == "curl" else _python(generation, body)


def _path(body: dict[str, Any]) -> str:
    return "/chat/completions" if "messages" in body else "/responses" if "input" in body else "/completions"


def _curl(generation: Generation, body: dict[str, Any]) -> str:
    text = json.format(json.encode(body), indent=2).decode().replace("'", "'\\''")
    if generation.provider == _ANTHROPIC:
        head = [
            "curl https://api.anthropic.com/v1/messages",
            '-H "x-api-key: $ANTHROPIC_API_KEY"',
            "-H 'anthropic-version: 2023-06-01'",
        ]
    else:
        head = [f"curl {_OPENAI_URL}{_path(body)}", '-H "Authorization: Bearer $OPENAI_API_KEY"']
    return " \\\n  ".join([*head, "-H 'Content-Type: application/json'", f"-d '{text}'"]) + "\n"


def _python(generation: Generation, body: dict[str, Any]) -> str:
    literal = pformat(body, width=100, sort_dicts=False)
    if generation.provider == _ANTHROPIC:
        lines = ["from anthropic import Anthropic", "", "client = Anthropic()  # the key is ANTHROPIC_API_KEY"]
        call = "client.messages.create"
    else:
        lines = ["from openai import OpenAI", "", "client = OpenAI()  # the key is OPENAI_API_KEY"]
        call = {"/chat/completions": "client.chat.completions.create", "/responses": "client.responses.create"}.get(
            _path(body), "client.completions.create"
        )
    return "\n".join([*lines, f"request = {literal}", f"response = {call}(**request)", "print(response)", ""])
