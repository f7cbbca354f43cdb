"""What was asked: a hash by which the runs and threads of one question are found again.

A question is asked of a thread, or of a run that stands outside of threads. It is the dataset item that the metadata of
either names; else what a run was given, of a conversation its messages without the system prompt; of a thread, that of
its first run, message or model call.

What must stay true: a hash is kept once a thread, not once a step; it goes with the step that it was made from; and it
costs nothing but for the first steps of a batch's threads.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.model import Generation, StepRecord
from stepwell.store import Found
from stepwell.store._rows import UNKNOWN_NS, unpack_id

__all__ = ["FORGET_QUESTION", "SET_ITEM", "Questions", "item_of", "read_alike"]

# The names under which evaluations record which item of a dataset is tried: Langfuse, LangSmith, Inspect, tau-bench.
_ITEMS: Final = (
    *("dataset_item_id", "datasetItemId", "dataset_item", "reference_example_id", "example_id"),
    *("sample_id", "task_id"),
)
_DATASETS: Final = ("dataset", "dataset_id", "datasetId", "dataset_name")
_NAMES_ITEM: Final = re.compile(rb'"(?:' + "|".join(_ITEMS).encode() + rb')"\s*:')
_ASKING: Final = frozenset(("run", "llm", "user_message"))
_DECODED_BYTES: Final = 65_536  # of a payload; a longer one is hashed as it is
_DEPTH: Final = 4
_HASH_BYTES: Final = 6  # SQLite keeps that in 6: of a million questions two are taken for one with 0.2 %

FORGET_QUESTION: Final = "DELETE FROM questions WHERE step = ?"
SET_ITEM: Final = "UPDATE threads SET item = ? WHERE id = ?"
_ASK: Final = """
    UPDATE threads SET question = ?, asked_ns = ?, asked_step = ?
    WHERE id = ? AND (asked_ns IS NULL OR asked_ns > ? OR asked_step = ?)
"""
_ALIKE: Final = """
    SELECT * FROM (
        SELECT 'thread', id, ifnull(created_ns, -1) AS at FROM threads
        WHERE ifnull(item, question) = ?1 ORDER BY number DESC LIMIT ?2
    )
    UNION ALL SELECT * FROM (
        SELECT 'step', s.id, s.start_ns FROM questions q JOIN steps s ON s.number = q.step
        WHERE q.question = ?1 ORDER BY q.step DESC LIMIT ?2
    )
    ORDER BY at DESC LIMIT ?2
"""
_OF_THREAD: Final = "SELECT ifnull(item, question) FROM threads WHERE id = ?"
_OF_STEP: Final = (
    "SELECT q.question, s.thread_id FROM steps s LEFT JOIN questions q ON q.step = s.number WHERE s.id = ?"
)


class Questions:
    """What the new steps of a batch ask: of the first ones of its threads, and of runs by themselves."""

    __slots__ = ("_alone", "_first")

    def __init__(self) -> None:
        self._alone: list[tuple[list[Any], int]] = []  # with the row of `steps`
        self._first: dict[str, tuple[int, int, list[Any]]] = {}

    def take(self, step: StepRecord, generation: Generation | None, row: list[Any]) -> None:
        """Take a step and its row."""
        if step.type not in _ASKING:
            return
        thread_id, start_ns = step.thread_id, row[4]
        if step.parent_id is None or step.root_run_id == step.id:
            item = item_of(step.metadata)
            if thread_id is None or item is not None:
                question = _question_of(step, generation) if item is None else item
                if question is not None:
                    self._alone.append((row, question))
        if thread_id is None or start_ns == UNKNOWN_NS:
            return
        known = self._first.get(thread_id)
        if known is None or start_ns < known[0]:
            question = _question_of(step, generation)
            if question is not None:
                self._first[thread_id] = start_ns, question, row

    def write(self, db: sqlite3.Connection, without: set[int]) -> None:
        """Write what was taken, after the steps and their threads, but for steps of these numbers."""
        if self._alone:
            alone = [(row[0], question) for row, question in self._alone if row[0] not in without]
            db.executemany("REPLACE INTO questions (step, question) VALUES (?, ?)", alone)
        if self._first:
            asked = (
                (question, start_ns, row[0], thread_id, start_ns, row[0])
                for thread_id, (start_ns, question, row) in self._first.items()
                if row[0] not in without
            )
            db.executemany(_ASK, asked)


def item_of(metadata: Raw | UnsetType | None) -> int | None:
    """Return the hash of the dataset item that metadata names."""
    if metadata is None or metadata is UNSET or _NAMES_ITEM.search(data := bytes(metadata)) is None:
        return None
    try:
        named: Any = json.decode(data)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(named, dict):
        return None
    members = cast("dict[str, Any]", named)
    item = next((members[name] for name in _ITEMS if isinstance(members.get(name), str | int)), None)
    if item is None or item == "":
        return None
    dataset = next((members[name] for name in _DATASETS if isinstance(members.get(name), str | int)), None)
    return _hash(json.encode(["item", dataset, item]))


def _question_of(step: StepRecord, generation: Generation | None) -> int | None:
    """Return the hash of what a step was given."""
    payload = step.output if step.type == "user_message" else step.input
    if step.type == "llm" and generation is not None and generation.messages is not UNSET:
        payload = generation.messages
    if payload is UNSET:
        return None
    data = bytes(payload)
    if len(data) > _DECODED_BYTES:
        return _hash(data)
    try:
        asked = _asked(json.decode(data), 0)
        text = asked.strip().encode() if isinstance(asked, str) else json.encode(asked, order="deterministic")
    except (DecodeError, UnicodeDecodeError, UnicodeEncodeError, RecursionError):
        return None
    return None if text in {b"", b"null", b"{}", b"[]"} else _hash(text)


def _asked(value: Any, depth: int) -> Any:
    """Return what a value asks: the only member of an object, the content of a message; without system prompts."""
    if depth < _DEPTH and isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if "role" in members and "content" in members:
            return _asked(members["content"], depth + 1)
        if members.get("type") in {"text", "input_text"} and "text" in members:
            return members["text"]
        if len(members) == 1:
            (value,) = members.values()
            return _asked(value, depth + 1)
    elif depth < _DEPTH and isinstance(value, list):
        items: list[Any] = [item for item in cast("Sequence[Any]", value) if not _is_system(item)]
        return _asked(items[0], depth + 1) if len(items) == 1 else items
    return cast("Any", value)


def _is_system(item: Any) -> bool:
    return isinstance(item, dict) and cast("dict[str, Any]", item).get("role") in {"system", "developer"}


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=_HASH_BYTES).digest(), "big", signed=True)


def read_alike(db: sqlite3.Connection, kind: str, key: Any, limit: int) -> list[Found] | None:
    """Return the threads and runs that were asked the same, the latest, in order; None where there is no such step."""
    thread_id, question = key, None
    if kind == "step":
        row = db.execute(_OF_STEP, (key,)).fetchone()
        if row is None:
            return None
        question, thread_id = row
    if question is None and thread_id is not None:
        question = next((row[0] for row in db.execute(_OF_THREAD, (thread_id,))), None)
    if question is None:
        return []
    rows = db.execute(_ALIKE, (question, limit)).fetchall()
    return [Found(kind, str(id if kind == "thread" else unpack_id(id))) for kind, id, _ in reversed(rows)]
