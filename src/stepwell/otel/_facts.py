"""A step with its payloads read, as far as what tells it in a convention needs them, each once.

What must stay true: nothing here raises for what a payload holds; what can't be read is as if it were absent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from msgspec import UNSET, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import Generation, StepRecord, decode_generation
from stepwell.otel._happened import Happened, happened_of
from stepwell.otel._parts import genai_message, listing, loads, mapping
from stepwell.otel._tables import GENERATION, OPERATIONS, TOKENS, Convention

__all__ = ["Document", "Facts", "is_number", "put", "put_fields", "query_of", "text_of", "value_of"]

Document = dict[str, Any]
_Columns = tuple[tuple[str, tuple[str, ...]], ...]
_SEARCHES: Final = frozenset({"retrieval", "rerank"})
_FIELDS: Final[dict[Convention, tuple[_Columns, _Columns]]] = {
    "genai": (
        tuple((row.field, row.genai) for row in GENERATION),
        tuple((row.field, row.genai) for row in TOKENS),
    ),
    "openinference": (
        tuple((row.field, row.openinference) for row in GENERATION),
        tuple((row.field, row.openinference) for row in TOKENS),
    ),
}
_NO_GENERATION: Final = Generation()
_encode: Final = json.Encoder().encode
_array: Final = json.Decoder(list[Raw])


class Facts:
    """What a step holds. Texts are JSON; messages are of the GenAI conventions."""

    __slots__ = (
        *("answered", "asked", "documents", "generation", "happened", "input", "is_plain", "messages", "metadata"),
        *("name", "operation", "output", "settings", "step", "tools"),
    )

    def __init__(self, step: StepRecord) -> None:
        self.step = step
        self.input = text_of(step.input)
        self.output = text_of(step.output)
        self.metadata, self.happened = _metadata_of(step.metadata)
        self.documents: Sequence[Document] = ()
        if step.type in _SEARCHES:
            self.documents = [*_documents(value_of(step.output))]
        self.generation = _NO_GENERATION
        self.settings: dict[str, Any] = {}
        self.messages: Any = None  # as the generation has them
        self.asked: list[dict[str, Any]] = []
        self.answered: list[dict[str, Any]] = []
        self.tools: list[str] = []  # each in JSON
        self.is_plain = False  # whether all messages are of a role and a text, which follows from `asked` again
        if step.generation is not UNSET:
            self._read(step.generation)
        self.operation = _operation_of(step, self.generation)
        self.name = self._named() if step.name is None else step.name

    def _read(self, payload: Raw) -> None:
        try:
            self.generation = generation = decode_generation(payload)
        except UsageError:
            return
        self.settings = dict(mapping(value_of(generation.settings)) or {})
        self.messages = value_of(generation.messages)
        if self.messages is not None:
            self.asked, self.is_plain = _messages(self.messages)
        if (completion := value_of(generation.message_completion)) is not None:
            self.answered, _ = _messages(completion)
        self.tools = _elements(generation.tools)

    def _named(self) -> str:
        model = self.generation.model or self.generation.response_model
        return " ".join(filter(None, (self.operation, model)))


def text_of(payload: Raw | UnsetType) -> str | None:
    """Return a payload as text, None where there is none or it is no UTF-8."""
    try:
        return None if payload is UNSET else str(payload, "utf-8")
    except UnicodeDecodeError:
        return None


def value_of(payload: Raw | UnsetType) -> Any:
    """Return what a payload says, None where there is none or it is no JSON."""
    try:
        return None if payload is UNSET else loads(payload)
    except ValueError:
        return None


def put(found: dict[str, Any], *said: tuple[str, Any]) -> None:
    """Add attributes, without those that are None."""
    found.update({name: value for name, value in said if value is not None})


def put_fields(found: dict[str, Any], generation: Generation, convention: Convention) -> None:
    """Add what the tables say of a generation and its usage."""
    fields, tokens = _FIELDS[convention]
    for field, names in fields:
        if (value := getattr(generation, field)) is not None:
            for name in names:
                found[name] = value
    if (usage := generation.usage) is not None:
        for field, names in tokens:
            if is_number(count := getattr(usage, field)):
                for name in names:
                    found[name] = count


def is_number(value: object) -> bool:
    """Say whether a value is a number that an attribute can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def query_of(value: object) -> str | None:
    """Return what was searched for: a string, or the argument of that name, or the first."""
    if (fields := mapping(value)) is not None:
        value = fields.get("query", next(iter(fields.values()), None))
    return value if isinstance(value, str) else None


def _metadata_of(payload: Raw | UnsetType) -> tuple[str | None, Happened | None]:
    """Return metadata, without the events and links that the span has as its own."""
    if payload is UNSET:
        return None, None
    happened = happened_of(payload)
    return text_of(payload if happened is None else happened.rest), happened


def _messages(value: object) -> tuple[list[dict[str, Any]], bool]:
    messages = listing(value)
    if messages is None:
        return [genai_message(value)], False
    found: list[dict[str, Any]] = []
    is_plain = True
    for each in messages:
        body = mapping(each)
        if body is not None and [*body] == ["role", "content"]:
            role, content = body["role"], body["content"]
            if type(content) is str and type(role) is str and role not in ("tool", "function"):
                found.append({"role": role, "parts": [{"type": "text", "content": content}]})
                continue
        is_plain = False
        found.append(genai_message(each))
    return found, is_plain


def _operation_of(step: StepRecord, generation: Generation) -> str | None:
    type = step.type
    if type is None:
        return None
    if type == "run" and step.agent_id is not None:
        return "invoke_agent"
    if type == "llm" and (
        generation.type == "completion" or (generation.type is None and generation.messages is UNSET)
    ):
        return "text_completion"
    return OPERATIONS.get(type)


def _elements(payload: Raw | UnsetType) -> list[str]:
    """Return the elements of a JSON array as JSON text."""
    try:
        return [] if payload is UNSET else [bytes(each).decode() for each in _array.decode(payload)]
    except (ValueError, RecursionError):
        return []


def _documents(value: object) -> Iterator[Document]:
    """Yield what was found: `id`, `score`, `content` and `metadata`, without those that are not to be told."""
    if (fields := mapping(value)) is not None:
        value = next((items for each in fields.values() if (items := listing(each)) is not None), None)
    for item in listing(value) or ():
        body = mapping(item)
        if body is None:
            yield {"content": item} if isinstance(item, str) else {}
            continue
        found: Document = {}
        if isinstance(id := body.get("id"), str | int):
            found["id"] = str(id)
        for name in ("score", "relevance_score"):
            if is_number(score := body.get(name)):
                found["score"] = score
                break
        for name in ("content", "page_content", "text", "document"):
            if isinstance(content := body.get(name), str):
                found["content"] = content
                break
        if (metadata := mapping(body.get("metadata"))) is not None:
            found["metadata"] = _encode(metadata).decode()
        yield found
