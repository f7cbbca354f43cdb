"""What a row of a transcript says: one line of what came in and what came out, from the step's own payloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from stepwell.errors import UsageError
from stepwell.model import MESSAGE_TYPES, Generation, StepRecord, decode_generation
from stepwell.server.pages._content import compact, first_line, mapping, media_of, message_of, read, without_base64

__all__ = ["Lines", "generation_of", "lines_of"]

_NOTHING: Final = Generation()
_MESSAGE_CHARACTERS: Final = 700


@dataclass(frozen=True, slots=True)
class Lines:
    """A step's previews: `asked` is what came in, `said` what came out; each one line, empty where there is none.

    `cut` says that a message goes on.
    """

    asked: str = ""
    said: str = ""
    cut: bool = False


def generation_of(step: StepRecord) -> Generation:
    """Return a step's generation, an empty one where it is none."""
    try:
        return decode_generation(step.generation)
    except UsageError:
        return _NOTHING


def lines_of(step: StepRecord) -> Lines:
    """Return the previews of a step."""
    if step.type in MESSAGE_TYPES:
        value = _content(read(step.output))
        text = value if isinstance(value, str) and media_of(value) is None else _line(value)
        return Lines(said=without_base64(text[:_MESSAGE_CHARACTERS]).strip(), cut=len(text) > _MESSAGE_CHARACTERS)
    if step.type == "llm" or step.downgraded_from == "llm":
        answer = message_of(generation_of(step).message_completion)
        if answer is not None:
            return Lines(said=answer.preview)
    return Lines(_arguments(read(step.input)), _line(_content(read(step.output))))


def _arguments(value: Any) -> str:
    """Return what a call was given: the value itself where it is only one."""
    fields = mapping(value)
    return _line(next(iter(fields.values())) if len(fields) == 1 else value)


def _content(value: Any) -> Any:
    return mapping(value).get("content", value)


def _line(value: Any) -> str:
    if value is None:
        return ""
    found = media_of(value)
    if found is not None:
        return found.mime or found.kind
    return without_base64(first_line(value) if isinstance(value, str) else compact(value))
