"""The words of a step: which text of its record is searched, and what a query in words means to FTS5.

What must stay true:

1. No query is an error of SQL: words are quoted, and what is left of a query without any is a `UsageError`.
2. Text is bounded, and what is not text (base64, hashes) is left out.
3. Chinese, Japanese and Korean are written without spaces between words: each character is a word of its own, in texts
   and in queries, where those that stand together are a phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from msgspec import DecodeError, Raw, json

from stepwell.errors import UsageError

__all__ = ["decoded", "match_of", "terms_of", "text_of", "words_of"]

MAX_TEXT_CHARACTERS: Final = 262_144  # of a step
MAX_QUERY_CHARACTERS: Final = 1_000
MAX_TERMS: Final = 32
_CJK: Final = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_NOT_TEXT: Final = re.compile(r"(?:data:[\w./+-]*;base64,)?[A-Za-z0-9+/_=-]{64,}")
_TERM: Final = re.compile(r'(-?)(?:"([^"]*)"?|([^\s"]+))(\*?)')
_GENERATED: Final = ("prompt", "message_completion", "completion", "messages", "tools")


def text_of(fields: Iterable[str | None], payloads: dict[str, str | None], messages: Iterable[str]) -> str:
    """Return what is searched of a step: plain fields, then the strings of its payloads, by column, and of messages."""
    parts, left = list[str](), MAX_TEXT_CHARACTERS
    for text in _strings(fields, payloads, messages):
        parts.append(text[:left])
        left -= len(parts[-1]) + 1
        if left <= 0:
            break
    return _spaced("\n".join(parts))


def _strings(fields: Iterable[str | None], payloads: dict[str, str | None], messages: Iterable[str]) -> Iterator[str]:
    yield from (field for field in fields if field)
    for column, text in payloads.items():
        if text is None:
            continue
        value = decoded(text)
        if column == "generation" and isinstance(value, dict):
            generation = cast("dict[str, Any]", value)
            value = [generation[name] for name in _GENERATED if name in generation]
        yield from words_of(value, keys=column == "metadata")
    for text in messages:
        yield from words_of(decoded(text))


def decoded(text: str | Raw) -> object:
    """Decode a payload; what is no JSON is returned as it is."""
    try:
        return json.decode(text)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return text


def words_of(value: object, *, keys: bool = False) -> Iterator[str]:
    """Yield the strings in a decoded payload, and, with `keys`, its keys and numbers; not what is no text."""
    waiting: list[object] = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            if not _NOT_TEXT.fullmatch(item, 0, 4096):
                yield item
        elif isinstance(item, dict):
            members = cast("dict[str, object]", item)
            for key, member in reversed(members.items()):
                waiting.append(member)
                if keys:
                    waiting.append(key)
        elif isinstance(item, list):
            waiting.extend(reversed(cast("list[object]", item)))
        elif keys and item is not None:
            yield str(item)


def _spaced(text: str) -> str:
    return _CJK.sub(r" \g<0> ", text)


def terms_of(query: str) -> list[str]:
    """Return the words and phrases that a query looks for, as they are written."""
    found = ((phrase or word).rstrip("*").strip() for minus, phrase, word, _ in _TERM.findall(query) if not minus)
    return [term for term in found if term]


def match_of(query: str) -> str:
    """Return what FTS5 looks for: all words and "phrases", words that begin like prefix*, and not those with a minus.

    Raises `UsageError` for a query without a word to look for, or with too many.
    """
    if len(query) > MAX_QUERY_CHARACTERS:
        raise UsageError(f"text may have {MAX_QUERY_CHARACTERS} characters at most, got {len(query)}")
    wanted, unwanted = list[str](), list[str]()
    for minus, phrase, word, star in _TERM.findall(query):
        text = phrase or word
        prefix = bool(star) or text.endswith("*")
        clean = "".join(char if char.isalnum() or char.isspace() or ord(char) > 127 else " " for char in _spaced(text))
        clean = clean.encode("utf-8", "replace").decode().strip()
        if any(char.isalnum() for char in clean):
            (unwanted if minus else wanted).append(f'"{clean}"{" *" if prefix else ""}')
    if not wanted:
        raise UsageError(f"text {query!r} has no word to look for")
    if len(wanted) + len(unwanted) > MAX_TERMS:
        raise UsageError(f"text may have {MAX_TERMS} words and phrases at most, got {len(wanted) + len(unwanted)}")
    match = f"({' AND '.join(wanted)})"
    return f"{match} NOT ({' OR '.join(unwanted)})" if unwanted else match
