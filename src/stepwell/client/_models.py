"""What a client returns: frozen pydantic models, with times as nanoseconds and as datetimes.

What must stay true: a payload is decoded when it is first asked for, once, and never so that the rest of an answer is
lost with it, whatever was recorded: numbers of any size, JSON nested as deep as it is taken.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final, Literal

from msgspec import UNSET, Raw, UnsetType
from pydantic import BaseModel, ConfigDict, PrivateAttr, computed_field

from stepwell._vocabulary import ScoreType, Status, StepType
from stepwell.model import StepRecord
from stepwell.store import Reaction, SoftError

__all__ = [
    "Added",
    "Attachment",
    "Changes",
    "Deleted",
    "Found",
    "FullStep",
    "Generation",
    "Hit",
    "Refused",
    "Rollup",
    "Run",
    "Score",
    "Stats",
    "Step",
    "StepError",
    "Thread",
    "ThreadDetail",
    "ThreadUser",
    "Usage",
    "User",
    "datetime_of",
]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NS: Final = 253_402_300_799_999_999_999  # the end of the year 9999
_MAX_DIGITS: Final = 4000  # of a number; Python turns no more than 4,300 into an int


def datetime_of(ns: int | None) -> datetime | None:
    """Return a time as a datetime in UTC, to the microsecond; None where it is unknown or no date."""
    return None if ns is None or not 0 <= ns <= _MAX_NS else _EPOCH + timedelta(microseconds=ns // 1000)


def _decoded(payload: bytes | None) -> Any:
    if payload is None:
        return None
    try:
        return json.loads(payload)
    except ValueError:
        return json.loads(payload, parse_int=_number)


def _number(digits: str) -> float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


def _bytes(payload: Raw | UnsetType) -> bytes | None:
    return None if payload is UNSET else bytes(payload)


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class _Timed(_Model):
    start_ns: int | None = None
    end_ns: int | None = None

    @property
    def started_at(self) -> datetime | None:
        """When it started, in UTC."""
        return datetime_of(self.start_ns)

    @property
    def ended_at(self) -> datetime | None:
        """When it ended, in UTC."""
        return datetime_of(self.end_ns)

    @property
    def duration_ns(self) -> int | None:
        """How long it took, None where it has not ended."""
        return None if self.start_ns is None or self.end_ns is None else self.end_ns - self.start_ns


class Step(_Timed):
    """A step as lists show it: everything but its payloads.

    `error_message` is the first 200 characters. `cost` is in whatever currency it was recorded in. `feedback` is the
    label of the latest score named `feedback`. `soft_error` says that a tool's result tells of an error, or is empty,
    though the step is a success; `reaction` is what came next.
    """

    id: str
    trace_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    root_run_id: str | None = None
    type: StepType | None = None
    name: str | None = None
    status: Status | None = None
    error_type: str | None = None
    model: str | None = None
    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    tags: tuple[str, ...] = ()
    downgraded_from: StepType | None = None
    child_count: int | None = None
    user: str | None = None
    environment: str | None = None
    service: str | None = None
    release: str | None = None
    error_message: str | None = None
    agent_id: str | None = None
    cost: float | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    ttft_ns: int | None = None
    request_id: str | None = None
    feedback: Literal["positive", "negative"] | None = None
    soft_error: SoftError | None = None
    reaction: Reaction | None = None


class Hit(_Model):
    """A step that a search found. `snippet` is the text around the first place where its words stand, on one line;
    None where they stand in another form, or in a message that came with an earlier step.
    """

    step: Step
    snippet: str | None = None


class Run(Step):
    """A top-level run, or any step without a parent, with sums over the step itself and all steps below it."""

    steps: int
    errors: int
    tokens: int


class Score(_Model):
    """A judgement of a step: a number, a label, or both."""

    id: str
    name: str | None = None
    step_id: str | None = None
    type: ScoreType | None = None
    value: float | None = None
    label: str | None = None
    comment: str | None = None
    tags: tuple[str, ...] = ()
    created_ns: int | None = None

    @property
    def created_at(self) -> datetime | None:
        """When it was given, in UTC."""
        return datetime_of(self.created_ns)


class StepError(_Model):
    """What went wrong in a step: exception class, its text, and the user's frames."""

    type: str | None = None
    message: str | None = None
    traceback: str | None = None


class Usage(_Model):
    """Tokens of one model call. `input_tokens` includes those read from and written to a cache."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None


class Generation(_Model):
    """One call of a model. What has no type of its own is as it was recorded; further members are kept."""

    model_config = ConfigDict(extra="allow")

    type: Literal["chat", "completion"] | None = None
    provider: str | None = None
    model: str | None = None
    response_model: str | None = None
    messages: Any = None
    message_completion: Any = None
    prompt: Any = None
    completion: Any = None
    settings: Any = None
    tools: Any = None
    variables: Any = None
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
    cost: Any = None
    provider_request: Any = None
    provider_response: Any = None


class Attachment(_Model):
    """A file that belongs to a step; its bytes are `Client.attachment(sha256)`, or where `url` says."""

    id: str
    name: str | None = None
    mime: str | None = None
    size: int | None = None
    sha256: str | None = None
    url: str | None = None
    _metadata: bytes | None = PrivateAttr(default=None)

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @cached_property
    def metadata(self) -> Any:
        """What the caller said of it."""
        return _decoded(self._metadata)


class FullStep(_Timed):
    """A whole step. A payload that is not known is None, as is one that is null: `has` tells them apart."""

    id: str
    trace_id: str | None = None
    parent_id: str | None = None
    thread_id: str | None = None
    root_run_id: str | None = None
    type: StepType | None = None
    name: str | None = None
    status: Status | None = None
    error: StepError | None = None
    tags: tuple[str, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    scores: tuple[Score, ...] = ()
    downgraded_from: StepType | None = None
    child_count: int | None = None
    active_ns: int | None = None
    agent_id: str | None = None
    user: str | None = None
    environment: str | None = None
    release: str | None = None
    service: str | None = None
    sdk: str | None = None
    _payloads: dict[str, bytes] = PrivateAttr(default_factory=dict[str, bytes])

    @classmethod
    def of(cls, record: StepRecord) -> FullStep:
        """Make it of the record on the wire."""
        fields = {
            name: value
            for name in cls.model_fields
            if name not in _NESTED and (value := getattr(record, name)) is not None
        }
        step = cls(
            **fields,
            error=None if record.error is None else StepError.model_validate(record.error, from_attributes=True),
            attachments=tuple(_attachment(each) for each in record.attachments or ()),
            scores=tuple(_score(each) for each in record.scores or ()),
        )
        for name in _PAYLOADS:
            if (payload := _bytes(getattr(record, name))) is not None:
                step._payloads[name] = payload
        return step

    def has(self, payload: Literal["input", "output", "generation", "metadata"]) -> bool:
        """Say whether a payload was recorded; null was."""
        return payload in self._payloads

    def json_of(self, payload: Literal["input", "output", "generation", "metadata"]) -> bytes | None:
        """Return a payload as it was recorded, byte by byte; None where it was not."""
        return self._payloads.get(payload)

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @cached_property
    def input(self) -> Any:
        """What the step was given."""
        return _decoded(self._payloads.get("input"))

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @cached_property
    def output(self) -> Any:
        """What the step returned."""
        return _decoded(self._payloads.get("output"))

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @cached_property
    def metadata(self) -> Any:
        """What else was said of the step."""
        return _decoded(self._payloads.get("metadata"))

    @computed_field(repr=False)  # type: ignore[prop-decorator]
    @cached_property
    def generation(self) -> Generation | None:
        """The call of a model, of a step that was one."""
        decoded = _decoded(self._payloads.get("generation"))
        return None if decoded is None else Generation.model_validate(decoded)


_PAYLOADS: Final = ("input", "output", "generation", "metadata")
_NESTED: Final = frozenset(("error", "attachments", "scores"))


def _attachment(of: Any) -> Attachment:
    attachment = Attachment.model_validate(of, from_attributes=True)
    attachment._metadata = _bytes(of.metadata)
    return attachment


def _score(of: Any) -> Score:
    return Score(**{name: value for name in Score.model_fields if (value := getattr(of, name)) is not None})


class Thread(_Model):
    """A thread as lists show it, with sums over its steps. `user` is the user's identifier, else the user's id."""

    id: str
    name: str | None = None
    user: str | None = None
    tags: tuple[str, ...] = ()
    environment: str | None = None
    created_ns: int | None = None
    first_step_ns: int | None = None
    last_step_ns: int | None = None
    steps: int = 0
    errors: int = 0
    tokens: int = 0

    @property
    def created_at(self) -> datetime | None:
        """When it was made, in UTC."""
        return datetime_of(self.created_ns)


class ThreadUser(_Model):
    """Who a thread belongs to; `identifier` is the application's own name for the user."""

    id: str | None = None
    identifier: str | None = None
    metadata: Any = None


class ThreadDetail(_Model):
    """A thread, with sums over its steps."""

    id: str
    name: str | None
    user: ThreadUser | None
    tags: tuple[str, ...]
    metadata: Any
    environment: str | None
    created_ns: int | None
    first_step_ns: int | None
    last_step_ns: int | None
    steps: int
    errors: int
    tokens: int

    @property
    def created_at(self) -> datetime | None:
        """When it was made, in UTC."""
        return datetime_of(self.created_ns)


class User(_Model):
    """A user whom steps name, or whose threads have steps, with their sums. Times are of steps' starts."""

    user: str
    threads: int = 0
    steps: int = 0
    errors: int = 0
    tokens: int = 0
    cost: float = 0.0
    first_ns: int | None = None
    last_ns: int | None = None

    @property
    def first_at(self) -> datetime | None:
        """When the first step started, in UTC."""
        return datetime_of(self.first_ns)

    @property
    def last_at(self) -> datetime | None:
        """When the last step started, in UTC."""
        return datetime_of(self.last_ns)


class Rollup(_Model):
    """The sums of some steps: those that started in the hour or day from `start_ns`, with the fields asked for `by`.

    A field that is None was not asked for, or the steps do not have it. `timed` steps have a duration, of which
    `duration_ns` is the sum, and of which the percentiles are.
    """

    start_ns: int | None = None
    type: str | None = None
    name: str | None = None
    model: str | None = None
    user: str | None = None
    environment: str | None = None
    steps: int = 0
    errors: int = 0
    cancelled: int = 0
    pending: int = 0
    interrupted: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_input_tokens: int = 0
    cost: float = 0.0
    timed: int = 0
    duration_ns: int = 0
    p50_ns: int | None = None
    p90_ns: int | None = None
    p95_ns: int | None = None
    p99_ns: int | None = None

    @property
    def start(self) -> datetime | None:
        """When the hour or day begins, in UTC."""
        return datetime_of(self.start_ns)


class Deleted(_Model):
    """How much was deleted; `messages` are those that no other step has, `blobs` files that no other step names."""

    threads: int
    steps: int
    messages: int
    blobs: int


class Changes(_Model):
    """Steps in the order in which they were added or updated; `position` is where to go on."""

    items: tuple[Step, ...]
    position: int


class Found(_Model):
    """What an id, or the beginning of one, names."""

    kind: Literal["thread", "step"]
    id: str


class Refused(_Model):
    """A record that was not taken: its place among those given, its id where it could be read, and why."""

    index: int
    id: str | None
    error: str


class Added(_Model):
    """What became of records: `accepted` changed the store, `duplicates` said nothing new."""

    accepted: int
    duplicates: int
    rejected: tuple[Refused, ...] = ()


class Stats(_Model):
    """How much a store holds; times are of steps."""

    steps: int
    threads: int
    scores: int
    by_type: dict[str, int]
    by_status: dict[str, int]
    oldest_ns: int | None
    newest_ns: int | None
    bytes_on_disk: int
    schema_version: int
