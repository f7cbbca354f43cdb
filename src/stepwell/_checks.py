"""What a call was given, checked where it is written.

What must stay true:

1. Wrong values are named in the message, with no secret in them. Neither checking nor naming one raises anything but
   `UsageError`, whatever its methods do, and neither costs more because the value is large or has no end.
2. What is returned is plain: a subclass of str with methods of its own becomes a str.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast

from stepwell._redaction import Rules
from stepwell._values import class_name, first_items, is_kind, is_short, is_text
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.errors import UsageError

__all__ = [
    "MAX_TAGS",
    "checked_choice",
    "checked_flag",
    "checked_id",
    "checked_name",
    "checked_parameters",
    "checked_tags",
    "is_loopback",
    "shown",
    "without_credentials",
]

MAX_TAGS: Final = 1000
_SHOWN_CHARACTERS: Final = 100
_CREDENTIALS: Final = re.compile("(?<=://).*@", re.DOTALL)  # too much rather than too little: a key may hold anything
_READ_BEYOND: Final = 8192
_CUT_WORD: Final = re.compile(r"([^\s'\"=:,()\[\]{}]{,4})[^\s'\"=:,()\[\]{}]*\Z")
_RULES: Final = Rules(None, True)
_SHOWN_ITEMS: Final = 200


def shown(value: object) -> str:
    """Return the head of the value's repr, its type where that raises or would be long.

    Secrets that the default rules know are masked. Of a word at the cut four characters stay: in half a secret the
    user's own rules, applied later, find nothing.
    """
    read = _SHOWN_CHARACTERS + _READ_BEYOND
    try:
        if is_text(value):
            return _masked(repr(str.__getitem__(value, slice(read))))
        if issubclass(type(value), bytes | bytearray):
            return _masked(repr(bytes(memoryview(cast("bytes", value))[:read])))
        if is_short(value, _SHOWN_ITEMS):
            return _masked(str.__str__(repr(value)))
    except Exception:  # noqa: BLE001, S110 - the user's __repr__ may raise anything
        pass
    return f"<{class_name(type(value))}>"


def _masked(text: str) -> str:
    text = _RULES.prose(without_credentials(text)[: _SHOWN_CHARACTERS + _READ_BEYOND])
    return text if len(text) <= _SHOWN_CHARACTERS else _CUT_WORD.sub(r"\1...", text[:_SHOWN_CHARACTERS], count=1)


def without_credentials(text: str) -> str:
    """Return a text without what stands between the `://` and the last `@` of URLs in it: keys are not told."""
    return _CREDENTIALS.sub("", text)


def is_loopback(address: str) -> bool:
    """Say whether it is an IP address of this machine alone; a name is none."""
    import ipaddress  # only what talks to a server, or is one, needs it

    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def checked_id(value: object, what: str) -> str:
    """Return an id as a plain string, or raise `UsageError` that names it."""
    if not is_text(value) or not 0 < str.__len__(value) <= MAX_ID_CHARACTERS:
        raise UsageError(f"{what} must be a string of 1 to {MAX_ID_CHARACTERS} characters, got {shown(value)}")
    return str.__str__(value)


def checked_name(value: object, what: str) -> str:
    """Return a name as a plain string, or raise `UsageError` that names what it is for."""
    if not is_text(value):
        raise UsageError(f"the name of a {what} must be a string, got {shown(value)}")
    return str.__str__(value)


def checked_choice(value: object, what: str, choices: Sequence[str]) -> str:
    """Return a value that is one of the choices, or raise `UsageError` that names both."""
    plain = str.__str__(value) if is_text(value) else None
    if plain is None or plain not in choices:
        raise UsageError(f"{what} must be one of {', '.join(choices)}, got {shown(value)}")
    return plain


def checked_flag(value: object, what: str) -> None:
    """Raise `UsageError` unless the value is None, True or False."""
    if value is not None and type(value) is not bool:
        raise UsageError(f"{what} must be True or False, got {shown(value)}")


def checked_parameters(value: object) -> bool | list[str] | None:
    """Return which parameters to capture: None, a bool or names. Raises `UsageError` for anything else."""
    if value is None or type(value) is bool:
        return value
    names = _listed(value)
    if names is None:
        raise UsageError(f"capture_input must be True, False or a list of parameters, got {shown(value)}")
    for name in names:
        if not is_text(name):
            raise UsageError(f"capture_input must name parameters, got {shown(name)} in {shown(names)}")
    return [str.__str__(name) for name in names]


def checked_tags(value: object) -> list[str]:
    """Return tags as a list of plain strings, or raise `UsageError` that names what is wrong."""
    if value is None:
        return []
    tags = _listed(value)
    if tags is None:
        raise UsageError(f"tags must be a list of strings, got {shown(value)}")
    for tag in tags:
        if not is_text(tag):
            raise UsageError(f"tags must be strings, got {shown(tag)} in {shown(tags)}")
    return [str.__str__(tag) for tag in tags]


def _listed(value: object) -> list[Any] | None:
    """Return the items of a sequence, None if it is none or raises."""
    if is_text(value) or not is_kind(value, Sequence):
        return None
    try:
        return first_items(value, MAX_TAGS)
    except Exception:  # noqa: BLE001 - a sequence of the user's own
        return None
