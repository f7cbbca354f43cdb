"""What a call was given, checked where it is written.

What must stay true: wrong values are named in the message, with no secret in them, and naming one never raises anything
but `UsageError`, whatever its `__repr__` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, cast

from stepwell._redaction import Rules
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.errors import UsageError

__all__ = [
    "MAX_TAGS",
    "checked_choice",
    "checked_id",
    "checked_name",
    "checked_parameters",
    "checked_tags",
    "shown",
    "without_credentials",
]

MAX_TAGS: Final = 1000
_SHOWN_CHARACTERS: Final = 100
_CREDENTIALS: Final = re.compile("(?<=://).*@", re.DOTALL)  # too much rather than too little: a key may hold anything
_READ_BEYOND: Final = 8192
_CUT_WORD: Final = re.compile(r"([^\s'\"=:,()\[\]{}]{,4})[^\s'\"=:,()\[\]{}]*\Z")
_RULES: Final = Rules(None, True)


def shown(value: object) -> str:
    """Return the head of the value's repr, its type where that raises; secrets that the default rules know are masked.

    Of a word at the cut four characters stay: in half a secret the user's own rules, applied later, find nothing.
    """
    try:
        text = _RULES.prose(without_credentials(repr(value))[: _SHOWN_CHARACTERS + _READ_BEYOND])
        return text if len(text) <= _SHOWN_CHARACTERS else _CUT_WORD.sub(r"\1...", text[:_SHOWN_CHARACTERS], count=1)
    except Exception:  # noqa: BLE001 - the user's __repr__ may raise anything
        return f"<{type(value).__name__}>"


def without_credentials(text: str) -> str:
    """Return a text without what stands between the `://` and the last `@` of URLs in it: keys are not told."""
    return _CREDENTIALS.sub("", text)


def checked_id(value: object, what: str) -> str:
    """Return an id as it is, or raise `UsageError` that names it."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise UsageError(f"{what} must be a string of 1 to {MAX_ID_CHARACTERS} characters, got {shown(value)}")
    return value


def checked_name(value: object, what: str) -> str:
    """Return a name as it is, or raise `UsageError` that names what it is for."""
    if not isinstance(value, str):
        raise UsageError(f"the name of a {what} must be a string, got {shown(value)}")
    return value


def checked_choice(value: object, what: str, choices: Sequence[str]) -> str:
    """Return a value that is one of the choices, or raise `UsageError` that names both."""
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{what} must be one of {', '.join(choices)}, got {shown(value)}")
    return value


def checked_parameters(value: object) -> None:
    """Raise `UsageError` unless the value says which parameters to capture: None, a bool or names."""
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"capture_input must be True, False or a list of parameters, got {shown(value)}")
    names = list(cast("Sequence[object]", value))
    for name in names:
        if not isinstance(name, str):
            raise UsageError(f"capture_input must name parameters, got {shown(name)} in {shown(names)}")


def checked_tags(value: object) -> list[str]:
    """Return tags as a list, or raise `UsageError` that names what is wrong."""
    if value is None:
        return []
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise UsageError(f"tags must be a list of strings, got {shown(value)}")
    tags = list(cast("Sequence[object]", value))
    for tag in tags:
        if not isinstance(tag, str):
            raise UsageError(f"tags must be strings, got {shown(tag)} in {shown(tags)}")
    return cast("list[str]", tags)
