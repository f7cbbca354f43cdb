"""The messages of steps, as Letta's API lists them: what models were told and answered, what tools returned.

What must stay true:

1. A message's id follows from its step and its place in it, so it is the same whenever it is asked for.
2. Of the messages below a run each is told once, although every call of a model repeats those before it.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from msgspec import UNSET, Raw, json

from stepwell.model import MESSAGE_TYPES, Generation, StepRecord, decode_generation, decode_payload
from stepwell.server._letta_parts import Message, listing, mapping, of_message, text_of, tool_call, tool_return

__all__ = ["date_of", "derived_id", "generation_of", "letta_messages", "run_id_of", "step_id_of"]

_Key = tuple[str, object, int]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NULL: Final = Raw(b"null")
_MAX_NS: Final = 253_402_300_799_999_999_999  # the end of the year 9999, beyond which there is no datetime
_SAID: Final = frozenset({"role", "content", "parts", "tool_calls", "function_call", "message_type"})  # of a message
_NAMESPACE: Final = uuid.UUID("3c1f6f5e-8a0b-5d0e-9d52-6f1d9b6c7a31")  # of ids that follow from a step's


def step_id_of(id: str) -> str:
    """Return a step's id as Letta spells it; one that came from Letta is spelt so already."""
    return id if id.startswith("step-") else f"step-{id}"


def run_id_of(id: str | None) -> str | None:
    """Return a run's id as Letta spells it."""
    return id if id is None or id.startswith("run-") else f"run-{id}"


def derived_id(step_id: str, what: str) -> str:
    """Return a UUID that follows from a step's id, the same each time."""
    return str(uuid.uuid5(_NAMESPACE, f"{step_id}/{what}"))


def date_of(ns: int | None) -> str | None:
    """Return a time in ISO 8601, UTC, to the microsecond; None where it is unknown or no date."""
    if ns is None or not 0 <= ns <= _MAX_NS:
        return None
    return (_EPOCH + timedelta(microseconds=ns // 1000)).isoformat().replace("+00:00", "Z")


def generation_of(step: StepRecord) -> Generation:
    """Return a step's generation, an empty one where it has none."""
    if step.generation is UNSET or step.generation == _NULL:
        return Generation()
    return decode_generation(step.generation)


def letta_messages(steps: Iterable[StepRecord]) -> list[Message]:
    """Return the messages of steps in order of their start: what models were told and answered, what tools returned."""
    telling = _Telling()
    for step in steps:
        telling.tell(step)
    return telling.told


class _Telling:
    """Tells the messages of one step after the other, and knows which of them were told before.

    A message that a model was told is the same as one told before if it says the same, or is of the same tool call, as
    often within the call of the model. What a model answers is always new, as is a message step. A tool's step takes
    the id of the first call of its name that has no such step yet, so that the return recorded by the tool and the one
    that the next model is told are one message.
    """

    def __init__(self) -> None:
        self.told: list[Message] = []
        self._seen: set[_Key] = set()
        self._waiting: dict[str, list[str]] = {}  # ids of calls without a step of the tool's own, by tool

    def tell(self, step: StepRecord) -> None:
        started = date_of(step.start_ns) or _EPOCH.isoformat()
        ended = date_of(step.end_ns) or started
        self._step, self._number = step, 0
        self._here: Counter[tuple[str, object]] = Counter()
        if step.type in MESSAGE_TYPES:
            self._add(started, _of_message_step(step), new=True)
        elif step.type == "tool":
            waiting = self._waiting.get(step.name or "")
            call_id = waiting.pop(0) if waiting else step.id
            if call_id == step.id:
                call = tool_call(call_id, step.name, decode_payload(step.input))
                self._add(started, [call], new=True)
                self._waiting[step.name or ""].remove(call_id)
            self._add(ended, _returned(step, call_id), new=True)
        elif step.type == "llm":
            generation = generation_of(step)
            self._add(started, _asked(generation), new=False)
            self._add(ended, _answered(generation), new=True)

    def _add(self, date: str, messages: Iterable[Message], *, new: bool) -> None:
        for message in messages:
            otid = derived_id(self._step.id, f"message/{self._number}")
            self._number += 1
            if self._is_known(message, new=new):
                continue
            common = {"id": f"message-{otid}", "date": date, "otid": otid}
            origin = {"step_id": step_id_of(self._step.id), "run_id": run_id_of(self._step.root_run_id)}
            self.told.append({**message, **common, **origin})
            if message["message_type"] == "tool_call_message":
                call = message["tool_call"]
                self._waiting.setdefault(call["name"], []).append(call["tool_call_id"])

    def _is_known(self, message: Message, *, new: bool) -> bool:
        kind = message["message_type"]
        call = message.get("tool_call") or message
        what: object = call.get("tool_call_id") if kind in {"tool_call_message", "tool_return_message"} else None
        what = what or json.encode(message, order="sorted")
        self._here[kind, what] += 1
        key = kind, what, self._here[kind, what]
        while new and key in self._seen:
            key = kind, what, key[2] + 1
        known = key in self._seen
        self._seen.add(key)
        return known


def _of_message_step(step: StepRecord) -> Iterator[Message]:
    output: object = decode_payload(step.output)
    body = mapping(output)
    content = body["content"] if body is not None and "content" in body else output
    images: list[Any] = [
        {"type": "image_url", "image_url": {"url": file.url}}
        for file in step.attachments or ()
        if file.url and (file.mime or "").startswith("image/")
    ]
    if images and step.type == "user_message":
        content = [*_each(content), *images]
    yield from of_message({"role": (step.type or "").removesuffix("_message"), "content": content})


def _returned(step: StepRecord, call_id: str) -> Iterator[Message]:
    if step.status in {"failed", "cancelled", "interrupted"}:
        reason = (step.error.message or step.error.type) if step.error else None
        text = reason or text_of(decode_payload(step.output)) or step.status
        yield tool_return(call_id, text, failed=True, name=step.name)
    elif step.output is not UNSET or step.end_ns is not None:
        yield tool_return(call_id, decode_payload(step.output), name=step.name)


def _asked(generation: Generation) -> Iterator[Message]:
    messages: object = decode_payload(generation.messages)
    if messages is None:
        messages = decode_payload(generation.prompt)
    for message in _each(messages):
        yield from of_message(message)


def _answered(generation: Generation) -> Iterator[Message]:
    completion: object = decode_payload(generation.message_completion)
    if completion is None:
        completion = decode_payload(generation.completion)
    for message in _each(completion):
        body = mapping(message)
        if body is None or not body.keys() & _SAID:
            body = {"content": [message]}
        yield from of_message({"role": "assistant", **body})


def _each(value: object) -> Sequence[Any]:
    """Return the items of an array, and what is none as the only one; nothing for null."""
    if value is None:
        return []
    return [value] if (items := listing(value)) is None else items
