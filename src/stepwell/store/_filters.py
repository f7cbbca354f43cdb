"""Which steps, threads and scores are asked for; `stepwell.store` names them all.

What must stay true: every condition given must hold, and none given keeps everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, get_args

from stepwell._vocabulary import ScoreType
from stepwell.model import Status, StepType

__all__ = [
    "REACTIONS",
    "SOFT_ERRORS",
    "Feedback",
    "Reaction",
    "Scalar",
    "ScoreFilter",
    "ScoreQuery",
    "SoftError",
    "StepFilter",
    "ThreadFilter",
    "several",
]

Feedback = Literal["positive", "negative"]
SoftError = Literal["error", "empty"]
Reaction = Literal["same_call", "other_arguments", "other_tool", "answered", "none"]
SOFT_ERRORS: Final[tuple[SoftError, ...]] = get_args(SoftError)
REACTIONS: Final[tuple[Reaction, ...]] = get_args(Reaction)
Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class ScoreFilter:
    """A score of this name, with a value from `min` to `max` (both inclusive), and with this label, where given."""

    name: str
    min: float | None = None
    max: float | None = None
    label: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFilter:
    """Which steps; every condition given must hold. `tag` may be several, and a step must have all of them; of several
    types, statuses or agents it must have one.

    `since_ns` is inclusive, `until_ns` exclusive, both about the step's start; other bounds are inclusive, and a step
    of which the number is not known is outside of them. `root_only` keeps what `Store.runs` lists: top-level runs and
    steps without a parent.

    `tag_any`: a step must have one of them. `ids` and `trace_ids`: at most 1000, and none at all keep no step.
    Tokens are the total's. A step has an error when it failed, or its record has an error's type or message.
    `metadata` maps dotted paths to values: `{"request.attempt": 1}`; strings, numbers, booleans and None (JSON `null`)
    are told apart. `outline_only` keeps what a conversation shows: what `root_only` keeps, and messages. `none_of`
    leaves out the steps that any of those filters keeps.

    `has_soft_error`: a tool that was recorded as a success, though its result tells of an `error` (it begins with
    "Error", or is an object with an error, an HTTP status of 400 or more, or an exit code other than 0) or is `empty`:
    `soft_error` is which. `reaction` is what the agent did next: the `same_call` again, the same tool with
    `other_arguments`, an `other_tool`, it `answered` in text, or `none`, nothing more. These are known of what
    `Store.catch_up` has looked at, the reaction in runs of up to 10,000 steps. With `root_only` the step that is asked
    for may be anywhere in the run.

    `text` finds words in names, inputs, outputs, messages, errors and metadata (there also keys): all `words`, an
    `"exact phrase"`, the beginning of a word `prefix*`, and none of `-word`; case and accents don't matter. A message
    that several steps have is found at one of them, the first that was indexed; a run, at any step that names it as
    its root. Of what was added since `Store.catch_up` the newest 2,000 steps are searched.
    """

    type: StepType | Sequence[StepType] | None = None
    name: str | None = None
    tag: str | Sequence[str] = ()
    tag_any: Sequence[str] = ()
    status: Status | Sequence[Status] | None = None
    model: str | None = None
    provider: str | None = None
    agent_id: str | Sequence[str] | None = None
    thread_id: str | None = None
    trace_id: str | None = None
    trace_ids: Sequence[str] | None = None
    ids: Sequence[str] | None = None
    root_run_id: str | None = None
    parent_id: str | None = None
    user: str | None = None
    environment: str | None = None
    service: str | None = None
    release: str | None = None
    error_type: str | None = None
    has_error: bool | None = None
    feedback: Feedback | None = None
    has_feedback: bool | None = None
    has_soft_error: bool | None = None
    soft_error: SoftError | None = None
    reaction: Reaction | None = None
    score: ScoreFilter | None = None
    metadata: Mapping[str, Scalar] | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_cost: float | None = None
    max_cost: float | None = None
    root_only: bool = False
    text: str | None = None
    outline_only: bool = False
    none_of: Sequence[StepFilter] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadFilter:
    """Which threads; every condition given must hold.

    `user` is the user's identifier or id. `since_ns` (inclusive) and `until_ns` (exclusive) are about the thread's
    latest activity, by which `Store.threads` orders: the start of its last step, else its creation.
    """

    id: str | None = None
    name: str | None = None
    user: str | None = None
    tag: str | Sequence[str] = ()
    environment: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreQuery:
    """Which scores; every condition given must hold.

    `min` and `max` are inclusive, and a score without a value is outside of them. `since_ns` (inclusive) and `until_ns`
    (exclusive) are about the score's creation, by which `Store.scores` orders; one that is not known is before all.
    `step_ids`: of one of them, at most 1000.
    """

    name: str | None = None
    type: ScoreType | None = None
    label: str | None = None
    min: float | None = None
    max: float | None = None
    step_id: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    step_ids: Sequence[str] | None = None


def several(value: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the values of a condition that may have several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)
