"""What is sent in place of a record that is larger than the server takes, so that the tree it belongs to stays whole.

What must stay true: a stub has the record's identity, times and outcome, and of its payloads the size.
"""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Raw, Struct, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import (
    Attachment,
    Generation,
    ScoreRecord,
    StepRecord,
    decode_generation,
    decode_record,
    encode_record,
)

__all__ = ["stub_of"]

SMALL_BYTES: Final = 1024  # a payload that is no larger stays
MAX_ITEMS: Final = 100  # tags, scores and attachments that stay

_encode = json.Encoder().encode


def stub_of(frame: bytes) -> bytes | None:
    """Return a record without its large payloads; None where that makes it no smaller."""
    try:
        record = decode_record(frame)
        if isinstance(record, StepRecord):
            _shrink_step(record)
        elif not isinstance(record, ScoreRecord):
            _shrink(record, "metadata")
            if record.user is not None:
                _shrink(record.user, "metadata")
        stub = encode_record(record)
    except UsageError:
        return None
    return stub if len(stub) < len(frame) else None


def _shrink_step(step: StepRecord) -> None:
    _shrink(step, "input", "output", "metadata")
    if not isinstance(step.generation, UnsetType) and len(bytes(step.generation)) > SMALL_BYTES:
        generation = decode_generation(step.generation)
        _shrink(generation, *(field for field in Generation.__struct_fields__ if _is_payload(generation, field)))
        step.generation = Raw(_encode(generation))
    if step.error is not None:
        step.error.message = _head(step.error.message)
        step.error.traceback = _head(step.error.traceback)
    step.tags = None if step.tags is None else step.tags[:MAX_ITEMS]
    step.scores = None if step.scores is None else step.scores[:MAX_ITEMS]
    step.attachments = None if step.attachments is None else step.attachments[:MAX_ITEMS]
    for attachment in step.attachments or ():
        _shrink_attachment(attachment)


def _shrink_attachment(attachment: Attachment) -> None:
    _shrink(attachment, "metadata")
    if attachment.url is not None and len(attachment.url) > SMALL_BYTES:  # a data: URL
        attachment.metadata = _marker(len(attachment.url))
        attachment.url = None


def _is_payload(record: Struct, field: str) -> bool:
    return isinstance(getattr(record, field), Raw)


def _shrink(record: Struct, *fields: str) -> None:
    for field in fields:
        value = getattr(record, field)
        if value is not UNSET and len(bytes(value)) > SMALL_BYTES:
            setattr(record, field, _marker(len(bytes(value))))


def _marker(size: int) -> Raw:
    return Raw(b'{"$stepwell":"too_large","size":%d}' % size)


def _head(text: str | None) -> str | None:
    return None if text is None else text[:SMALL_BYTES]
