"""Take secrets out of what is recorded, and fail closed.

1. What a rule finds is replaced by `[redacted:RULE:LENGTH]` (length in characters); no part of the secret stays.
2. A rule that raises, or returns something that is not JSON, costs the payload: `{"$stepwell":"redaction_failed",...}`.
3. `suspicious` may be wrong about harmless bytes, never about a secret: all that `text` would change is suspicious.
   It looks for a rare byte that each shape must contain, with one memchr each, and runs a regular expression that
   starts at this byte only where it occurs. A needle search or one large alternation costs five times as much.
4. Names of keys are judged once and remembered, so a payload whose keys are all known costs one set lookup a key.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import orjson

from stepwell.errors import UsageError

__all__ = ["RedactionFailedError", "Redactor", "Rules", "suspicious"]

Redactor = re.Pattern[str] | str | Callable[[bytes], bytes]

_MAX_KNOWN_NAMES: Final = 4096
_MAX_KNOWN_LENGTH: Final = 128

# Compared after lower() and without - and _. "token" alone is not here: it is what a model streams.
_SECRET_NAMES: Final = frozenset({
    "auth_token", "bearer_token", "cookie", "cookies", "credential", "credentials", "csrf_token", "id_token",
    "passphrase", "pwd", "secret", "secrets", "session_token", "x_amz_security_token",
})  # fmt: skip
# A name that ends with one of these is secret too: OPENAI_API_KEY, db_password, aws_secret_access_key, Set-Cookie.
_SECRET_ENDINGS: Final = (
    "api_key", "access_key", "access_token", "authorization", "client_secret", "passwd", "password", "private_key",
    "refresh_token", "secret_key", "set_cookie", "session_token", "auth_token", "app_secret", "webhook_secret",
)  # fmt: skip

# `sk-` must not follow a letter: "task-" and "disk-" start identifiers. Every branch starts with a literal, not with a
# group or a lookbehind, so that the engine can skip what starts none: ten times as fast.
_SHAPES: Final = re.compile(
    r"""sk-(?<![A-Za-z]sk-)[A-Za-z0-9_-]{16,}
    |sk_(?:live|test)_[A-Za-z0-9]{16,}
    |rk_(?:live|test)_[A-Za-z0-9]{16,}
    |AKIA[A-Z0-9]{16}
    |AIza[A-Za-z0-9_-]{30,}
    |gh[pousr]_[A-Za-z0-9]{20,}
    |github_pat_[A-Za-z0-9_]{20,}
    |hf_[A-Za-z0-9]{30,}
    |xox[abeoprs]-[A-Za-z0-9-]{10,}
    |Bearer[ ]+[A-Za-z0-9._~+/=-]{16,}
    |BEARER[ ]+[A-Za-z0-9._~+/=-]{16,}
    |eyJ(?<![A-Za-z0-9]eyJ)[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*
    |-----BEGIN[ ][A-Z0-9 ]{0,64}PRIVATE[ ]KEY[\s\S]*?(?:-----END[ ][A-Z0-9 ]{0,64}-----|\Z)
    |://[^\s/?\#:@]*:[^\s/?\#]+(?=@)""",
    re.VERBOSE,
)
_RULES_BY_START: Final = (
    ("sk-ant-", "anthropic"),
    ("sk-", "openai"),
    ("sk_", "stripe"),
    ("rk_", "stripe"),
    ("AKIA", "aws"),
    ("AIza", "google"),
    ("gh", "github"),
    ("git", "github"),
    ("hf_", "huggingface"),
    ("xox", "slack"),
    ("Bearer", "bearer"),
    ("BEARER", "bearer"),
    ("eyJ", "jwt"),
    ("-", "private_key"),
    ("://", "url_credentials"),
)

# Written for JSON bytes as orjson writes them, where no shape's own characters are escaped; what stands before a
# shape may be (`\n`), so nothing is asked of it here.
_AT_HYPHEN: Final = re.compile(rb"-(?:(?<=sk-)[A-Za-z0-9_-]{16}|(?<=xox.-)[A-Za-z0-9-]{10})").search
_AT_UNDERSCORE: Final = re.compile(
    rb"_(?:(?<=gh._)[A-Za-z0-9]{20}|(?<=hub_)pat_|(?<=hf_)[A-Za-z0-9]{30}|(?<=k_)(?:live|test)_)"
).search
_AT_AT: Final = re.compile(rb"://[^/?#]*@").search
_AT_B: Final = re.compile(rb"B(?:(?:earer|EARER) +[A-Za-z0-9._~+/=-]{16}|(?<=-B)EGIN [A-Z0-9 ]*PRIVATE)").search
_AT_J: Final = re.compile(rb"J(?<=eyJ)[A-Za-z0-9_-]{8}").search
_AT_K: Final = re.compile(rb"K(?<=AK)IA[A-Z0-9]{16}").search
_AT_Z: Final = re.compile(rb"z(?<=AIz)a[A-Za-z0-9_-]{30}").search

# For large payloads: a byte that is rare in prose, what stands near it in a secret, the expression.
_RARE: Final = (
    (74, -1, b"y", _AT_J),
    (75, -1, b"A", _AT_K),
    (66, 1, b"eE", _AT_B),
    (122, -1, b"I", _AT_Z),
)
_LARGE: Final = 4096
_RARE_EVERY: Final = 500  # bytes; where it is seen more often, the expression is as fast

# In the text of a repr: name='value', "name": "value", name=value.
_ASSIGNMENT: Final = re.compile(
    r"""(?<![A-Za-z0-9_-])([A-Za-z0-9_-]{1,128})(['"]?\s{0,8}[=:]\s{0,8})([bru]?(?:'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?)|[^\s,)}\]]+)"""
)


def suspicious(data: bytes) -> bool:
    """Say whether JSON bytes might hold a secret by its shape."""
    return (
        (45 in data and _AT_HYPHEN(data) is not None)
        or (95 in data and _AT_UNDERSCORE(data) is not None)
        or (64 in data and _AT_AT(data) is not None)
        or (
            (74 in data and _AT_J(data) is not None)
            or (75 in data and _AT_K(data) is not None)
            or (66 in data and _AT_B(data) is not None)
            or (122 in data and _AT_Z(data) is not None)
            if len(data) < _LARGE
            else any(
                byte in data and _occurs(data, byte, step, near) and search(data) for byte, step, near, search in _RARE
            )
        )
    )


def _occurs(data: bytes, byte: int, step: int, near: bytes) -> bool:
    """Say whether the byte may stand near one of these; memchr finds a rare byte thirty times as fast."""
    at = data.find(byte)
    for _ in range(len(data) // _RARE_EVERY):
        if at < 0 or at + 1 == len(data) or data[at + step] in near:
            break
        at = data.find(byte, at + 1)
    return at >= 0


class RedactionFailedError(Exception):
    """Says that a rule failed; the payload must not be recorded. `rule` names it."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Rules:
    """The redaction rules of one capture: the default ones and the user's."""

    __slots__ = ("_endings", "_names", "_patterns", "_payload_rules", "judges_names", "known", "shapes")

    def __init__(self, redact: Sequence[Redactor] | None, default_redaction: bool) -> None:
        if default_redaction not in (True, False):
            raise UsageError(f"default_redaction must be True or False, got {default_redaction!r}")
        if isinstance(redact, str) or not isinstance(redact, Sequence | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"redact must be a list of patterns, key names and callables, got {redact!r}")
        self.shapes = default_redaction
        self.known: set[str] = set()
        self._endings = tuple(map(_fold, _SECRET_ENDINGS)) if default_redaction else ()
        self._names = {_fold(name): name for name in _SECRET_NAMES} if default_redaction else {}
        self._patterns: list[tuple[str, re.Pattern[str]]] = []
        self._payload_rules: list[tuple[str, Callable[[bytes], bytes]]] = []
        for number, rule in enumerate(redact or (), 1):
            self._add(rule, number)
        self.judges_names = bool(self._names)  # an attribute: the hot path reads it

    def _add(self, rule: Redactor, number: int) -> None:
        if isinstance(rule, str):
            if not _fold(rule):
                raise UsageError(f"redact: a key name must not be empty, got {rule!r}")
            self._names[_fold(rule)] = rule
        elif isinstance(rule, re.Pattern):
            if not isinstance(rule.pattern, str):  # pyright: ignore[reportUnnecessaryIsInstance] - users have no checker
                raise UsageError(f"redact: a pattern must be for str, not for bytes, got {rule!r}")
            self._patterns.append((f"pattern_{number}", rule))
        elif callable(rule):
            name = getattr(rule, "__name__", None)
            self._payload_rules.append((name if isinstance(name, str) else f"callable_{number}", rule))
        else:
            raise UsageError(f"redact must hold patterns, key names and callables, got {rule!r}")

    @property
    def judges_text(self) -> bool:
        """Whether the user gave patterns: no cheap check stands for them, so every string must be seen."""
        return bool(self._patterns)

    @property
    def judges_payloads(self) -> bool:
        """Whether the user gave callables."""
        return bool(self._payload_rules)

    def secret_name(self, name: str) -> str | None:
        """Return the rule by which the value under this name is secret, None if it is not."""
        if name in self.known:
            return None
        folded = _fold(name)
        if folded in self._names:
            return self._names[folded]
        if self._endings and folded.endswith(self._endings):
            return next(name for name in _SECRET_ENDINGS if folded.endswith(_fold(name)))
        if len(self.known) < _MAX_KNOWN_NAMES and len(name) <= _MAX_KNOWN_LENGTH:
            self.known.add(name)
        return None

    def harmless(self, names: Iterable[object]) -> bool:
        """Say whether all names are plain strings under which nothing secret is expected."""
        return all(type(name) is str and self.secret_name(name) is None for name in names)

    def text(self, text: str) -> str:
        """Mask every secret in one string."""
        if self.shapes and suspicious(text.encode("utf-8", "surrogatepass")):
            text = _SHAPES.sub(_mask_shape, text)
        for rule, pattern in self._patterns:
            try:
                text = pattern.sub(functools.partial(_mask_match, rule), text)
            except Exception as error:
                raise RedactionFailedError(rule) from error
        return text

    def repr(self, text: str) -> str:
        """Mask every secret in the text of a repr, where names stand before their values."""
        if self.judges_names:
            text = _ASSIGNMENT.sub(self._mask_assignment, text)
        return self.text(text)

    def _mask_assignment(self, match: re.Match[str]) -> str:
        rule = self.secret_name(match[1])
        return match[0] if rule is None else match[1] + match[2] + mask(rule, len(match[3]))

    def payload(self, data: bytes) -> bytes:
        """Give a finished payload to the user's callables, one after the other."""
        for rule, call in self._payload_rules:
            try:
                data = call(data)
                orjson.loads(data)
            except Exception as error:
                raise RedactionFailedError(rule) from error
            if type(data) is not bytes:
                raise RedactionFailedError(rule)
        return data


def mask(rule: str, length: int) -> str:
    """Return what stands in place of a secret."""
    return f"[redacted:{rule}:{length}]"


def _mask_match(rule: str, match: re.Match[str]) -> str:
    return mask(rule, len(match[0])) if match[0] else ""


def _mask_shape(match: re.Match[str]) -> str:
    secret = match[0]
    rule = next(rule for start, rule in _RULES_BY_START if secret.startswith(start))
    return f"://{mask(rule, len(secret) - 3)}" if rule == "url_credentials" else mask(rule, len(secret))


def _fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
