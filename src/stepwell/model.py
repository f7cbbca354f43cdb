"""The records on the wire: what a line of JSON holds, and the words it may use.

What must stay true:

1. One record is one JSON object, self-contained, told apart by `kind`: `step`, `thread` or `score`.
2. Absent means unknown. `null` is written only as a payload (a function that returned None).
3. Payloads (`input`, `output`, `generation`, `metadata` ...) stay JSON bytes (`msgspec.Raw`): decoding a record never
   builds Python objects of what the user recorded.
4. Times are integers of nanoseconds since the Unix epoch. Ids are strings: a UUID for what stepwell recorded, any
   non-empty string of at most 256 characters for what others sent.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, DecodeError, Raw, Struct, UnsetType, json

from stepwell._vocabulary import MAX_ID_CHARACTERS, MESSAGE_TYPES, STATUSES, STEP_TYPES, ScoreType, Status, StepType
from stepwell.errors import UsageError

__all__ = [
    "MESSAGE_TYPES",
    "STATUSES",
    "STEP_TYPES",
    "Attachment",
    "ErrorInfo",
    "Generation",
    "Record",
    "Score",
    "ScoreRecord",
    "Status",
    "StepRecord",
    "StepType",
    "ThreadRecord",
    "Usage",
    "User",
    "decode_generation",
    "decode_payload",
    "decode_record",
    "encode_record",
]


class ErrorInfo(Struct, omit_defaults=True):
    """What went wrong in a step: exception class, its text, and the user's frames."""

    type: str | None = None
    message: str | None = None
    traceback: str | None = None


class Attachment(Struct, omit_defaults=True):
    """A file that belongs to a step; `sha256` names its bytes in the blobs folder, `url` says where else they are."""

    id: str
    name: str | None = None
    mime: str | None = None
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    metadata: Raw | UnsetType = UNSET


class Score(Struct, omit_defaults=True):
    """A judgement of a step: a number, a label, or both."""

    id: str
    name: str | None = None
    step_id: str | None = None
    type: ScoreType | None = None
    value: float | None = None
    label: str | None = None
    comment: str | None = None
    tags: list[str] | None = None
    created_ns: int | None = None


class Usage(Struct, omit_defaults=True):
    """Tokens of one model call. `input_tokens` includes those read from and written to a cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class Generation(Struct, omit_defaults=True):
    """One call of a model. Messages, tools, settings and provider objects stay JSON bytes."""

    type: Literal["chat", "completion"] | None = None
    provider: str | None = None
    model: str | None = None
    response_model: str | None = None
    messages: Raw | UnsetType = UNSET
    message_completion: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    completion: Raw | UnsetType = UNSET
    settings: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    variables: Raw | UnsetType = UNSET
    prompt_id: str | None = None
    usage: Usage | None = None
    ttft_ns: int | None = None
    tokens_per_second: float | None = None
    duration_ns: int | None = None
    stop_reason: str | None = None
    response_id: str | None = None
    request_id: str | None = None
    model_endpoint: str | None = None
    context_window_limit: int | None = None
    cost: Raw | UnsetType = UNSET
    provider_request: Raw | UnsetType = UNSET
    provider_response: Raw | UnsetType = UNSET


class User(Struct, omit_defaults=True):
    """Who a thread belongs to: `identifier` is the application's own name for the user."""

    id: str | None = None
    identifier: str | None = None
    metadata: Raw | UnsetType = UNSET


class StepRecord(Struct, tag_field="kind", tag="step", omit_defaults=True):
    """One step, whole or in part; a later record with the same id updates the fields it carries."""

    id: str
    trace_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    root_run_id: str | None = None
    type: StepType | None = None
    name: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    status: Status | None = None
    error: ErrorInfo | None = None
    input: Raw | UnsetType = UNSET
    output: Raw | UnsetType = UNSET
    generation: Raw | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    tags: list[str] | None = None
    attachments: list[Attachment] | None = None
    scores: list[Score] | None = None
    downgraded_from: StepType | None = None
    child_count: int | None = None
    active_ns: int | None = None
    agent_id: str | None = None
    user: str | None = None
    environment: str | None = None
    release: str | None = None
    service: str | None = None
    sdk: str | None = None


class ThreadRecord(Struct, tag_field="kind", tag="thread", omit_defaults=True):
    """A conversation: the steps that carry its id as `thread_id`."""

    id: str
    name: str | None = None
    user: User | None = None
    tags: list[str] | None = None
    metadata: Raw | UnsetType = UNSET
    environment: str | None = None
    created_ns: int | None = None


class ScoreRecord(Score, tag_field="kind", tag="score", omit_defaults=True):
    """A score sent after its step: feedback is the one named `feedback` with label `positive` or `negative`."""


Record = StepRecord | ThreadRecord | ScoreRecord

_record_decoder = json.Decoder(Record)
_generation_decoder = json.Decoder(Generation)
_encoder = json.Encoder()


def decode_record(line: bytes | memoryview) -> Record:
    """Decode one JSON line, leaving its payloads as bytes.

    Raises `UsageError` that says what is wrong and where (a JSON path such as `$.start_ns`).
    """
    try:
        record: Record = _record_decoder.decode(line)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a record: {error}") from error
    if not 0 < len(record.id) <= MAX_ID_CHARACTERS:
        raise UsageError(
            f"not a record: id must have 1 to {MAX_ID_CHARACTERS} characters, got {len(record.id)} - at `$.id`"
        )
    return record


def decode_generation(payload: Raw | bytes | UnsetType) -> Generation:
    """Decode a step's generation, an empty one where it is absent; raises `UsageError` as `decode_record` does."""
    if payload is UNSET:
        return Generation()
    try:
        return _generation_decoder.decode(payload)
    except (DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"not a generation: {error}") from error


def decode_payload(payload: Raw | UnsetType) -> Any:
    """Turn a record's payload into Python objects; None where it is absent, as where it is `null`."""
    return None if payload is UNSET else json.decode(payload)


def encode_record(record: Record) -> bytes:
    """Encode a record as one JSON line, without the line end."""
    return _encoder.encode(record)
