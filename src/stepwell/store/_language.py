"""The language of filters: what is typed into a search box, stands in an address, and is given to the API.

    type:llm,tool model:gpt-4o -tag:x tag:vip status:failed tokens:>1000 cost:>0.1 duration:>2s
    since:2h until:2026-05-01 user:ada score:relevance>=0.8 metadata.customer:acme error:any
    feedback:positive soft_error:true reaction:same_call is:top "free text" words

Terms are separated by spaces and must all hold. A value with spaces, commas or quotation marks stands in quotation
marks, in which a backslash goes before a quotation mark or backslash, and n, r or t after one is a line end or tab. A
comma means "any of" for type, tag, id and trace. A `-` before a term leaves out what it keeps. Times without a zone
are UTC.

What must stay true: every text is either a filter or a `QueryError` that names the character that is to blame; and
`parse_query(format_query(filter)) == filter` for every filter that the language can say.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell.model import STATUSES, STEP_TYPES
from stepwell.store import Scalar, ScoreFilter, StepFilter
from stepwell.store._filters import REACTIONS, SOFT_ERRORS
from stepwell.store._literals import COUNTED, UNITS, QueryError, Value, decimal_of, float_of, moment_of, scalar_of

__all__ = [
    "MAX_QUERY_CHARACTERS",
    "QueryError",
    "format_query",
    "parse_query",
    "split_terms",
    "time_text",
    "value_text",
]

MAX_QUERY_CHARACTERS: Final = 4_000
_LAST_ISO_NS: Final = 253_402_300_800_000_000_000  # the end of the year 9999
_TEXT: Final = "text"  # the member of a filter that free words become
_HAS_TEXT: Final = any(field.name == _TEXT for field in fields(StepFilter))
_EQUAL: Final = {
    "name": "name",
    "model": "model",
    "provider": "provider",
    "agent": "agent_id",
    "thread": "thread_id",
    "run": "root_run_id",
    "parent": "parent_id",
    "user": "user",
    "env": "environment",
    "service": "service",
    "release": "release",
}
_NUMBERS: Final = {"tokens": "tokens", "cost": "cost", "duration": "duration_ns"}
_BOOLEANS: Final = {"true": True, "false": False}
_JUDGED: Final = {  # the words that ask whether there is any
    **{key: {"any": True, "none": False} for key in ("error", "feedback")},
    "soft_error": _BOOLEANS,
}
_VERDICTS: Final[dict[str, Sequence[str]]] = {
    "feedback": ("positive", "negative"),
    "soft_error": SOFT_ERRORS,
    "reaction": REACTIONS,
}
_TOGETHER: Final = {"top": "root_only", "outline": "outline_only"}
_KEYS: Final = (
    *(
        "type",
        "status",
        *_EQUAL,
        "tag",
        "id",
        "trace",
        "error",
        "feedback",
        "soft_error",
        "reaction",
        "is",
        "since",
        "until",
    ),
    *(*_NUMBERS, "score", "metadata"),
)
_OPERATOR: Final = re.compile(r">=|<=|>|<|=")
_KEY: Final = re.compile(r"(-?)([A-Za-z_]+)([.:])")
_SCORE_NAME: Final = re.compile(r'[^\s",<>=]+')
_BARE: Final = re.compile(r'[^\s",]+')
_PATH: Final = re.compile(r'[^\s":]+')
_FREE: Final = re.compile(r'[^\s"]+')
_SPACE: Final = re.compile(r"\s*")
_ESCAPES: Final = {'"': '"', "\\": "\\", "n": "\n", "r": "\r", "t": "\t"}
_ESCAPED: Final = {value: "\\" + letter for letter, value in _ESCAPES.items()}
_UNSAFE_FIRST: Final = "-<>="


@dataclass(slots=True)
class _Reader:
    """Where in the text we are."""

    text: str
    at: int = 0

    def take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match[0]

    def ended(self) -> bool:
        return self.at >= len(self.text)

    def ahead(self) -> str:
        return self.text[self.at : self.at + 1]

    def value(self, pattern: re.Pattern[str] = _BARE, what: str = "a value") -> Value:
        start = self.at
        if self.ahead() == '"':
            return Value(self._quoted(), start, quoted=True)
        text = self.take(pattern)
        if not text:
            raise QueryError(f"expected {what}", start)
        return Value(text, start, quoted=False)

    def values(self) -> list[Value]:
        found = [self.value()]
        while self.ahead() == ",":
            self.at += 1
            found.append(self.value())
        return found

    def _quoted(self) -> str:
        start = self.at
        self.at += 1
        pieces: list[str] = []
        while not self.ended():
            letter = self.text[self.at]
            self.at += 1
            if letter == '"':
                return "".join(pieces)
            if letter == "\\":
                escaped = _ESCAPES.get(self.ahead())
                if escaped is None:
                    raise QueryError('expected \\", \\\\, \\n, \\r or \\t', self.at - 1)
                letter = escaped
                self.at += 1
            pieces.append(letter)
        raise QueryError("this quotation mark is not closed", start)


def parse_query(text: str, *, now_ns: int) -> StepFilter:
    """Turn a text into a filter; `now_ns` is what `since:2h` counts from. Raises `QueryError`."""
    if len(text) > MAX_QUERY_CHARACTERS:
        raise QueryError(f"a query has {MAX_QUERY_CHARACTERS:,} characters at most", MAX_QUERY_CHARACTERS)
    reader = _Reader(text)
    wanted, unwanted, words = _Terms(now_ns), list[StepFilter](), list[str]()
    reader.take(_SPACE)
    while not reader.ended():
        start, key = reader.at, _KEY.match(text, reader.at)
        if key is None or (key[3] == "." and key[2] != "metadata"):
            words.append(_free(reader))
        else:
            reader.at = key.end()
            if key[1]:
                other = _Terms(now_ns)
                other.read(reader, key[2], key[3], start + 1)
                unwanted.append(other.filter())
            else:
                wanted.read(reader, key[2], key[3], start)
        if not reader.ended() and not reader.take(_SPACE):
            raise QueryError("expected a space", reader.at)
    if words and not _HAS_TEXT:
        raise QueryError("free text can't be searched in this store", 0)
    return replace(wanted.filter(" ".join(words)), none_of=tuple(unwanted))


def split_terms(text: str) -> list[str]:
    """Return the terms of a query as they are written, also of one with errors: what spaces part outside of quotes."""
    return re.findall(r'(?:"(?:[^"\\]|\\.)*(?:"|$)|[^\s"])+', text)


def _free(reader: _Reader) -> str:
    """Return a word or phrase as the text search takes it."""
    start = reader.at
    sign = "-" if reader.text.startswith('-"', start) else ""
    reader.at += len(sign)
    if reader.ahead() == '"':
        words = " ".join(reader.value().text.replace('"', " ").split())
        if not words:
            raise QueryError("expected text in these quotation marks", start)
        return f'{sign}"{words}"'
    return reader.take(_FREE)


class _Terms:
    """The members of a filter, as they are read."""

    def __init__(self, now_ns: int) -> None:
        self._now_ns = now_ns
        self._members: dict[str, Any] = {}

    def filter(self, words: str = "") -> StepFilter:
        members: dict[str, Any] = {**self._members, _TEXT: words} if words else self._members
        return StepFilter(**members)

    def read(self, reader: _Reader, key: str, mark: str, start: int) -> None:
        if key not in _KEYS:
            raise QueryError(
                f"there is no field {key!r}, only {', '.join(_KEYS)}; put text in quotation marks",
                start,
            )
        if key == "metadata":
            self._read_metadata(reader, mark)
        elif key in _NUMBERS:
            self._read_bound(reader, key)
        elif key == "score":
            self._read_score(reader)
        else:
            self._read_values(reader, key, start)

    def _set(self, name: str, value: Any, at: int) -> None:
        if self._members.setdefault(name, value) != value:
            raise QueryError("this was given before, with another value", at)

    def _read_values(self, reader: _Reader, key: str, start: int) -> None:
        values = reader.values()
        texts = [value.text for value in values]
        if key in {"type", "tag", "id", "trace"}:
            self._set_several(key, values, texts)
            return
        if len(values) > 1:
            raise QueryError(f"{key} takes one value; put one with a comma in quotation marks", values[1].at - 1)
        (value,) = values
        if key in _EQUAL:
            self._set(_EQUAL[key], value.text, value.at)
        elif key == "status":
            self._set("status", _one_of(value, STATUSES), value.at)
        elif key in {"since", "until"}:
            self._set(f"{key}_ns", moment_of(value, self._now_ns), value.at)
        elif key == "is":
            self._set(_TOGETHER[_one_of(value, _TOGETHER)], True, start)
        else:
            self._read_judged(key, value)

    def _read_judged(self, key: str, value: Value) -> None:
        known = _JUDGED.get(key, {}).get(value.text)
        if known is not None and not (value.quoted and key == "error"):
            self._set(f"has_{key}", known, value.at)
        elif key == "error":
            self._set("error_type", value.text, value.at)
        else:
            self._set(key, _one_of(value, (*_JUDGED.get(key, ()), *_VERDICTS[key])), value.at)

    def _set_several(self, key: str, values: list[Value], texts: list[str]) -> None:
        if key == "type":
            for value in values:
                _one_of(value, STEP_TYPES)
            self._set("type", tuple(texts), values[0].at)
        elif key == "tag":
            if len(texts) == 1:
                self._members["tag"] = (*self._members.get("tag", ()), *texts)
            else:
                self._set("tag_any", tuple(texts), values[0].at)
        elif key == "id" or len(texts) > 1:
            self._set("ids" if key == "id" else "trace_ids", tuple(texts), values[0].at)
        else:
            self._set("trace_id", texts[0], values[0].at)

    def _read_bound(self, reader: _Reader, key: str) -> None:
        operator, value = reader.take(_OPERATOR) or "=", reader.value(what="a number")
        number = COUNTED[key](value)
        low, high = _bounds(operator, number)
        for name, bound, choose in ((f"min_{_NUMBERS[key]}", low, max), (f"max_{_NUMBERS[key]}", high, min)):
            self._members[name] = _tighter(self._members.get(name), bound, choose)

    def _read_score(self, reader: _Reader) -> None:
        name = reader.value(_SCORE_NAME, "the name of a score")
        score = self._members.get("score") or ScoreFilter(name.text)
        if score.name != name.text:
            raise QueryError("scores of one name can be asked for", name.at)
        if operator := reader.take(_OPERATOR):
            value = reader.value()
            if operator == "=" and (value.quoted or decimal_of(value.text) is None):
                score = replace(score, label=value.text)
            else:
                low, high = _bounds(operator, float_of(value))
                score = replace(score, min=_tighter(score.min, low, max), max=_tighter(score.max, high, min))
        self._members["score"] = score

    def _read_metadata(self, reader: _Reader, mark: str) -> None:
        if mark != ".":
            raise QueryError("expected a path: metadata.customer:acme", reader.at - 1)
        path = reader.value(_PATH, "a path")
        if '"' in path.text or "\\" in path.text or not all(path.text.split(".")):
            raise QueryError("expected keys joined by dots, without quotation marks and backslashes", path.at)
        if reader.ahead() != ":":
            raise QueryError("expected a colon and a value", reader.at)
        reader.at += 1
        wanted = dict(self._members.get("metadata", ()))
        value = reader.value()
        scalar = value.text if value.quoted else scalar_of(value.text)
        if path.text in wanted:
            raise QueryError("this was given before", path.at)
        self._members["metadata"] = {**wanted, path.text: scalar}


def _one_of(value: Value, known: Sequence[str] | Any) -> str:
    if value.text not in known:
        raise QueryError(f"{value.text!r} is not one of {', '.join(sorted(known))}", value.at)
    return value.text


def _bounds(operator: str, number: Any) -> tuple[Any, Any]:
    """Return the inclusive bounds that an operator and a number mean."""
    if operator == "=":
        return number, number
    if operator in {">=", "<="}:
        return (number, None) if operator == ">=" else (None, number)
    after = math.inf if operator == ">" else -math.inf
    bound = math.nextafter(number, after) if isinstance(number, float) else number + (1 if operator == ">" else -1)
    return (bound, None) if operator == ">" else (None, bound)


def _tighter(known: float | None, bound: float | None, choose: Callable[..., float]) -> float | None:
    """Return the bound that holds where both are to."""
    return known if bound is None else bound if known is None else choose(known, bound)


# -- back to text


def format_query(filter: StepFilter) -> str:
    """Return the text that means a filter. Raises `UsageError` for one that the language can't say."""
    terms = [*_terms(filter)]
    for other in filter.none_of:
        unwanted = [*_terms(other)]
        if len(unwanted) != 1 or other.none_of or getattr(other, _TEXT, None):
            raise UsageError("a query can leave out single conditions only")
        terms.append(f"-{unwanted[0]}")
    if text := getattr(filter, _TEXT, None):
        terms.append(text)
    return " ".join(terms)


def _terms(filter: StepFilter) -> Iterator[str]:  # noqa: C901 (one condition a member)
    types = (filter.type,) if isinstance(filter.type, str) else filter.type or ()
    if types:
        yield f"type:{_join(types)}"
    if filter.status is not None:
        yield f"status:{filter.status}"
    for key, name in _EQUAL.items():
        if (value := getattr(filter, name)) is not None:
            yield f"{key}:{value_text(value)}"
    yield from (f"tag:{value_text(tag)}" for tag in ((filter.tag,) if isinstance(filter.tag, str) else filter.tag))
    for key, several in (("tag", filter.tag_any), ("id", filter.ids), ("trace", filter.trace_ids)):
        if several is not None and (several or key != "tag"):
            if not several or (len(several) == 1 and key != "id"):
                raise UsageError(f"a query can't say any of {len(several)} values of {key}")
            yield f"{key}:{_join(several)}"
    if filter.trace_id is not None:
        yield f"trace:{value_text(filter.trace_id)}"
    yield from _judged(filter)
    yield from (f"is:{word}" for word, name in _TOGETHER.items() if getattr(filter, name))
    for key, ns in (("since", filter.since_ns), ("until", filter.until_ns)):
        if ns is not None:
            yield f"{key}:{time_text(ns)}"
    for key, name in _NUMBERS.items():
        yield from _bounds_text(f"{key}:", getattr(filter, f"min_{name}"), getattr(filter, f"max_{name}"), key)
    for path, scalar in (filter.metadata or {}).items():
        yield f"metadata.{value_text(path, ':')}:{_scalar_text(scalar)}"


def _judged(filter: StepFilter) -> Iterator[str]:
    for key, words in _JUDGED.items():
        if (known := getattr(filter, f"has_{key}")) is not None:
            yield f"{key}:{next(word for word, means in words.items() if means == known)}"
    if filter.error_type is not None:
        yield f"error:{value_text(filter.error_type, words=('any', 'none'))}"
    yield from (f"{key}:{value}" for key in _VERDICTS if (value := getattr(filter, key)) is not None)
    if (score := filter.score) is not None:
        name = f"score:{value_text(score.name, '<>=')}"
        said = [*_bounds_text(name, score.min, score.max, "score")]
        if score.label is not None:
            said.append(f"{name}={_quoted(score.label)}")
        yield from said or [name]


def _join(values: Sequence[str]) -> str:
    return ",".join(map(value_text, values))


def value_text(text: str, marks: str = "", words: Sequence[str] = ()) -> str:
    """Return a value as it is, in quotation marks where it needs them; those of `marks` also do, and the `words`."""
    plain = _BARE.fullmatch(text) and text[0] not in _UNSAFE_FIRST and text not in words
    return text if plain and not any(mark in text for mark in marks) else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + "".join(_ESCAPED.get(letter, letter) for letter in text) + '"'


def _bounds_text(lead: str, low: float | None, high: float | None, key: str) -> Iterator[str]:
    if low is not None and low == high:
        yield f"{lead}{'=' if key == 'score' else ''}{_number_text(low, key)}"
        return
    for bound, operator, towards in ((low, ">", -math.inf), (high, "<", math.inf)):
        if bound is None:
            continue
        text, near = _number_text(bound, key), math.nextafter(bound, towards) if isinstance(bound, float) else bound
        shorter = _number_text(near, key)
        yield f"{lead}{operator}{shorter}" if len(shorter) < len(text) else f"{lead}{operator}={text}"


def _number_text(number: float, key: str) -> str:
    if key == "duration":
        unit = next((unit for unit in ("h", "m", "s", "ms", "us") if number and number % UNITS[unit] == 0), "ns")
        return f"{int(number) // UNITS[unit]}{unit}"
    return repr(number)


def time_text(ns: int) -> str:
    """Return a time as `since:` and `until:` take it."""
    if not 0 <= ns < _LAST_ISO_NS:
        return f"{ns:010d}"
    at, fraction = datetime.fromtimestamp(ns // 1_000_000_000, UTC), f"{ns % 1_000_000_000:09d}".rstrip("0")
    return f"{at:%Y-%m-%dT%H:%M:%S}{'.' if fraction else ''}{fraction}Z".replace("T00:00:00Z", "")


def _scalar_text(scalar: Scalar) -> str:
    if isinstance(scalar, bool) or scalar is None:
        return {True: "true", False: "false", None: "null"}[scalar]
    if isinstance(scalar, str):
        return value_text(scalar) if scalar_of(scalar) == scalar else _quoted(scalar)
    return repr(scalar)
