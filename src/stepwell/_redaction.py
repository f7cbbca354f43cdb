"""Take secrets out of what is recorded, and fail closed.

1. What a rule finds is replaced by `[redacted:RULE:LENGTH]` (length in characters); no part of the secret stays.
   Every expression of ours takes time linear in the text.
2. A rule that raises, or returns something that is not JSON, costs the payload: `{"$stepwell":"redaction_failed",...}`.
3. `suspicious` may be wrong about harmless bytes, never about a secret: all that `text` would change is suspicious.
   It looks for a rare byte that each shape must contain, with one memchr each, and runs a regular expression that
   starts at this byte only where it occurs. A needle search or one large alternation costs five times as much.
4. Names of keys are judged once and remembered, so a payload whose keys are all known costs one set lookup a key. So
   are the texts of larger payloads, within bounds: a chat is recorded anew with every turn.
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
_MAX_CLEAN_TEXTS: Final = 16_384
_MAX_CLEAN_CHARACTERS: Final = 2 * 1024 * 1024

# Compared after lower() and without - and _. "token" alone is not here: it is what a model streams.
_SECRET_NAMES: Final = frozenset({
    "auth_token", "bearer_token", "cookie", "cookies", "credential", "credentials", "csrf_token", "id_token",
    "passphrase", "pwd", "secret", "secrets", "session_token", "x_amz_security_token", "x_amz_signature",
    "x_goog_signature",
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
    |-----BEGIN[ ][A-Z0-9 ]{0,64}PRIVATE[ ]KEY[\s\S]*?(?:-----END[ ][A-Z0-9 ]{0,64}-----|\Z)
    |://[^\s/?\#:@]*:[^\s/?\#]+(?=@)""",
    re.VERBOSE,
)
# On its own, and matching too what only begins like one: else "-eyJ-eyJ-eyJ" costs the square of its length, because
# each of its parts is read to the end in vain. `_mask_token` lets that stand.
_JWT: Final = re.compile(
    r"eyJ(?<![A-Za-z0-9]eyJ)[A-Za-z0-9_-]*+(?:(?<=[A-Za-z0-9_-]{8})\.([A-Za-z0-9_-]{8,}+)(\.[A-Za-z0-9_-]*+)?)?"
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
    ("-", "private_key"),
    ("://", "url_credentials"),
)

# Written for JSON bytes as orjson writes them, where no shape's own characters are escaped; what stands before a
# shape may be (`\n`), so nothing is asked of it here.
_AT_HYPHEN: Final = re.compile(rb"-(?:(?<=sk-)[A-Za-z0-9_-]{16}|(?<=xox.-)[A-Za-z0-9-]{10})")
_AT_UNDERSCORE: Final = re.compile(
    rb"_(?:(?<=gh._)[A-Za-z0-9]{20}|(?<=hub_)pat_|(?<=hf_)[A-Za-z0-9]{30}|(?<=k_)(?:live|test)_)"
)
_AT_AT: Final = re.compile(rb"://[^/?#]*@")
_AT_B: Final = re.compile(rb"B(?:(?:earer|EARER) +[A-Za-z0-9._~+/=-]{16}|(?<=-B)EGIN [A-Z0-9 ]*PRIVATE)")
_AT_J: Final = re.compile(rb"J(?<=eyJ)[A-Za-z0-9_-]{8}")
_AT_K: Final = re.compile(rb"K(?<=AK)IA[A-Z0-9]{16}")
_AT_Z: Final = re.compile(rb"z(?<=AIz)a[A-Za-z0-9_-]{30}")

# For large payloads: a byte, what stands near it in a secret and where, and the expression.
_RARE: Final = (
    (74, -1, b"y", _AT_J),
    (75, -1, b"A", _AT_K),
    (66, 1, b"eE", _AT_B),
    (122, -1, b"I", _AT_Z),
    (45, -2, b"sx", _AT_HYPHEN),
    (95, -2, b"hurs", _AT_UNDERSCORE),
)
_LARGE: Final = 4096
_SAMPLE: Final = 1024
_RARE_EVERY: Final = 500  # bytes; where it is seen more often, the expression is faster

# In a text, a name before its value: name='value', "name": "value", \"name\": \"value\", name=value, Name: value.
_NAME: Final = re.compile(r"""(?<![A-Za-z0-9_.-])([A-Za-z0-9_.-]{1,128})(?:\\*['"])?\s{0,8}[=:]\s{0,8}""")
_VALUE: Final = re.compile(
    r"""(?P<open>[bruf]{0,2}(?P<quote>\\*(?:\'{3}|"{3}|['"])))"""
    r"""(?P<inner>(?:(?!(?P=quote))(?:\\.|[^\\]))*+)(?P<close>(?P=quote))?|(?P<bare>[^\s,)}\]]+)""",
    re.DOTALL,
)
_LINE: Final = re.compile(r"""[^\r\n'"\\][^\r\n'"]*""")
_TO_THE_END_OF_THE_LINE: Final = ("authorization", "cookie", "cookies")  # as in headers: several words, with no quotes
_ABSENT: Final = frozenset({"None", "null", "True", "False", "true", "false"})
_BRACKETS: Final = {"{": "}", "[": "]", "(": ")"}
_MARK: Final = re.compile(r"\[redacted:[A-Za-z0-9_.-]+:[0-9]+\]")
_BRACKET: Final = re.compile(r"[\[\](){}]")


def suspicious(data: bytes) -> bool:
    """Say whether JSON bytes might hold a secret by its shape."""
    if len(data) < _LARGE:
        return (
            (45 in data and _AT_HYPHEN.search(data) is not None)
            or (95 in data and _AT_UNDERSCORE.search(data) is not None)
            or (64 in data and _AT_AT.search(data) is not None)
            or (74 in data and _AT_J.search(data) is not None)
            or (75 in data and _AT_K.search(data) is not None)
            or (66 in data and _AT_B.search(data) is not None)
            or (122 in data and _AT_Z.search(data) is not None)
        )
    return (64 in data and _AT_AT.search(data) is not None) or any(
        byte in data and _occurs(data, byte, step, near, shape) for byte, step, near, shape in _RARE
    )


def _occurs(data: bytes, byte: int, step: int, near: bytes, shape: re.Pattern[bytes]) -> bool:
    """Do what `shape.search` does, which begins with the byte: memchr finds a rare one thirty times as fast."""
    if data.count(byte, 0, _SAMPLE) > _SAMPLE // _RARE_EVERY:
        return shape.search(data) is not None
    at, last = data.find(byte), len(data) - 1
    for _ in range(len(data) // _RARE_EVERY):
        if at < 0 or at == last:  # no shape ends with its byte
            return False
        if data[at + step] in near and shape.match(data, at) is not None:
            return True
        at = data.find(byte, at + 1)
    return at >= 0 and shape.search(data, at) is not None


class RedactionFailedError(Exception):
    """Says that a rule failed; the payload must not be recorded. `rule` names it."""

    def __init__(self, rule: str) -> None:
        super().__init__(rule)
        self.rule = rule


class Rules:
    """The redaction rules of one capture: the default ones and the user's."""

    __slots__ = (
        "_characters",
        "_endings",
        "_names",
        "_patterns",
        "_payload_rules",
        "clean_texts",
        "judges_names",
        "known",
        "shapes",
    )

    def __init__(self, redact: Sequence[Redactor] | None, default_redaction: bool) -> None:
        if default_redaction not in (True, False):
            raise UsageError(f"default_redaction must be True or False, got {default_redaction!r}")
        if isinstance(redact, str) or not isinstance(redact, Sequence | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"redact must be a list of patterns, key names and callables, got {redact!r}")
        self.shapes = default_redaction
        self.known: set[str] = set()  # names that are not secret, nor hold a secret by its shape
        self.clean_texts: set[str] = set()  # texts without secrets and media
        self._characters = 0
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
        known = self._names.get(folded) or self._names.get(
            folded[folded.rfind(".") + 1 :]
        )  # http.request.header.cookie
        if known is not None:
            return known
        if self._endings and folded.endswith(self._endings):
            return next(name for name in _SECRET_ENDINGS if folded.endswith(_fold(name)))
        if len(self.known) < _MAX_KNOWN_NAMES and len(name) <= _MAX_KNOWN_LENGTH and not self._is_shaped(name):
            self.known.add(name)
        return None

    def _is_shaped(self, text: str) -> bool:
        return self.shapes and suspicious(text.encode("utf-8", "surrogatepass"))

    def harmless(self, names: Iterable[object]) -> bool:
        """Say whether all names are plain strings under which nothing secret is expected, and hold no secret."""
        return all(
            type(name) is str and self.secret_name(name) is None and (name in self.known or not self._is_shaped(name))
            for name in names
        )

    def vouch_for(self, texts: Sequence[str]) -> None:
        """Remember texts in which nothing was found, from a payload whose names are harmless."""
        characters = sum(map(len, texts))
        if characters > _MAX_CLEAN_CHARACTERS or len(texts) > _MAX_CLEAN_TEXTS:
            return
        self._characters += characters
        if self._characters > _MAX_CLEAN_CHARACTERS or len(self.clean_texts) + len(texts) > _MAX_CLEAN_TEXTS:
            self.clean_texts.clear()
            self._characters = characters
        self.clean_texts.update(texts)

    def text(self, text: str) -> str:
        """Mask every secret in one string."""
        if self._is_shaped(text):
            text = _SHAPES.sub(_mask_shape, _JWT.sub(_mask_token, text))
        for rule, pattern in self._patterns:
            try:
                text = pattern.sub(functools.partial(_mask_match, rule), text)
            except Exception as error:
                raise RedactionFailedError(rule) from error
        return text

    def prose(self, text: str) -> str:
        """Mask every secret in a text where names may stand before their values: a repr, an error, a file."""
        return self.text(self._mask_values(text) if self.judges_names else text)

    def content(self, text: str) -> str:
        """Mask every secret in a text that is kept apart from the record, the user's callables included."""
        return self.rewritten(self.prose(text))

    def rewritten(self, text: str) -> str:
        """Give a text to the user's callables, as a payload of its own."""
        if not self._payload_rules:
            return text
        result = orjson.loads(self.payload(orjson.dumps(text)))
        if type(result) is not str:
            raise RedactionFailedError("not a string")
        return result

    def may_match(self, data: bytes) -> bool:
        """Say whether `text` might change these bytes, were they a text."""
        return bool(self._patterns) or (self.shapes and suspicious(data))

    def _mask_values(self, text: str) -> str:
        parts: list[str] = []
        done = 0
        for name in _NAME.finditer(text):
            if name.start() < done or (rule := self.secret_name(name[1])) is None:
                continue
            if _MARK.match(text, max(name.start() - len("[redacted:"), 0)):
                continue
            end, masked = _masked_value(text, name.end(), name[1], rule)
            parts += (text[done : name.end()], masked)
            done = end
        return "".join([*parts, text[done:]]) if parts else text

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


def _masked_value(text: str, at: int, name: str, rule: str) -> tuple[int, str]:
    """Return where the value of a secret name ends, and what stands in its place."""
    if text[at : at + 1] in _BRACKETS:
        end = _after_bracket(text, at)
        return end, mask(rule, end - at)
    if _fold(name).endswith(_TO_THE_END_OF_THE_LINE) and (line := _LINE.match(text, at)) is not None:
        return line.end(), mask(rule, len(line[0]))
    value = _VALUE.match(text, at)
    if value is None:
        return at, ""
    if value["open"] is None or not value["inner"]:
        return value.end(), value[0] if value["bare"] in _ABSENT or not value["bare"] else mask(rule, len(value[0]))
    return value.end(), value["open"] + mask(rule, len(value["inner"])) + (value["close"] or "")


def _after_bracket(text: str, at: int) -> int:
    """Return the end of what the bracket opens, that of the text where nothing closes it. Quotes are not looked at."""
    open_: list[str] = []
    for bracket in _BRACKET.finditer(text, at):
        if bracket[0] in _BRACKETS:
            open_.append(_BRACKETS[bracket[0]])
        elif open_ and open_[-1] == bracket[0]:
            open_.pop()
        if not open_:
            return bracket.end()
    return len(text)


def _mask_token(match: re.Match[str]) -> str:
    return match[0] if match[2] is None else mask("jwt", len(match[0]))


def _mask_match(rule: str, match: re.Match[str]) -> str:
    return mask(rule, len(match[0])) if match[0] else ""


def _mask_shape(match: re.Match[str]) -> str:
    secret = match[0]
    rule = next(rule for start, rule in _RULES_BY_START if secret.startswith(start))
    return f"://{mask(rule, len(secret) - 3)}" if rule == "url_credentials" else mask(rule, len(secret))


def _fold(name: str) -> str:
    return name.replace("-", "").replace("_", "").lower()
