"""The words a record may use, apart from the records: recording needs them, and not the codec, when it is imported."""

from __future__ import annotations

import re
from typing import Final, Literal, get_args

__all__ = [
    "MAX_ID_CHARACTERS",
    "MESSAGE_TYPES",
    "SDK",
    "STATUSES",
    "STEP_TYPES",
    "ScoreType",
    "Status",
    "StepType",
    "is_uuid",
]

StepType = Literal[
    "run",
    "tool",
    "llm",
    "embedding",
    "retrieval",
    "rerank",
    "undefined",
    "user_message",
    "assistant_message",
    "system_message",
]
Status = Literal["pending", "success", "failed", "cancelled", "interrupted"]
ScoreType = Literal["HUMAN", "CODE", "AI"]

STEP_TYPES: Final[frozenset[str]] = frozenset(get_args(StepType))
MESSAGE_TYPES: Final[frozenset[str]] = frozenset({"user_message", "assistant_message", "system_message"})
STATUSES: Final[frozenset[str]] = frozenset(get_args(Status))

MAX_ID_CHARACTERS: Final = 256
_UUID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
SDK: Final = "stepwell-python/0.1.0"  # what says, on records and requests, who wrote them


def is_uuid(id: str) -> bool:
    """Say whether an id is a UUID as we write them: it may go into JSON as it is, and is no secret."""
    return _UUID.fullmatch(id) is not None
