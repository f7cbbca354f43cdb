"""The shapes of our own API, for the OpenAPI schema: rows, pages of them, and what lists may be asked for.

Answers are encoded from the store's own structs, not by these models; the suite checks that they agree.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from fastapi import Path, Query, Response
from msgspec import DecodeError, Struct, json, structs
from pydantic import BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from stepwell._vocabulary import MAX_ID_CHARACTERS, ScoreType
from stepwell.model import Score, Status, StepType
from stepwell.server._routing import Model
from stepwell.store import (
    MAX_PAGE,
    Dimension,
    Every,
    Feedback,
    Order,
    Reaction,
    Rollup,
    RollupQuery,
    RunRow,
    Scalar,
    ScoreFilter,
    ScoreQuery,
    SoftError,
    StepFilter,
    StepRow,
    ThreadFilter,
    ThreadRow,
    UserRow,
)
from stepwell.store._conditions import with_query, with_thread_query

__all__ = [
    "DeletedCounts",
    "HitPage",
    "Id",
    "Listed",
    "RollupListQuery",
    "Rollups",
    "RunPage",
    "ScoreItem",
    "ScoreListQuery",
    "ScorePage",
    "SearchQuery",
    "StepItem",
    "StepListQuery",
    "StepPage",
    "StepQuery",
    "ThreadListQuery",
    "ThreadPage",
    "ThreadStepsQuery",
    "UserListQuery",
    "UserPage",
    "answer",
]

Id = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARACTERS)]


def answer(body: object, status: int = 200) -> Response:
    """Return what a route answers with, in JSON."""
    return Response(json.encode(body), status, media_type="application/json")


class _Strict(Model):
    model_config = ConfigDict(extra="forbid")


def _model_of(struct: type[Struct], name: str) -> type[Model]:
    """Return the model, for the schema, of a struct of plain fields: what is null or empty there is absent."""
    fields: dict[str, Any] = {
        field.name: (field.type, ... if field.required else field.default) for field in structs.fields(struct)
    }
    return create_model(name, __base__=_Strict, __doc__=struct.__doc__, **fields)


StepItem: Final = _model_of(StepRow, "Step")
ScoreItem: Final = _model_of(Score, "Score")
_Run: Final = _model_of(RunRow, "Run")
_Thread: Final = _model_of(ThreadRow, "Thread")
_User: Final = _model_of(UserRow, "User")
_Rollup: Final = _model_of(Rollup, "Rollup")


class ThreadPage(Model):
    """Threads in order of their latest activity."""

    items: list[_Thread]  # type: ignore[valid-type]
    next_cursor: str | None


class StepPage(Model):
    """Steps in order of their start."""

    items: list[StepItem]  # type: ignore[valid-type]
    next_cursor: str | None


class HitItem(Model):
    """A step that was found, and the words around the first place where it was, on one line."""

    step: StepItem  # type: ignore[valid-type]
    snippet: str | None = Field(description="Null where the words stand in another form, or in an older message.")


class HitPage(Model):
    """Found steps in order of their start."""

    items: list[HitItem]
    next_cursor: str | None


class RunPage(Model):
    """Top-level runs and steps without a parent, in order of their start."""

    items: list[_Run]  # type: ignore[valid-type]
    next_cursor: str | None


class ScorePage(Model):
    """Scores in order of their creation."""

    items: list[ScoreItem]  # type: ignore[valid-type]
    next_cursor: str | None


class UserPage(Model):
    """Users in order of their latest step."""

    items: list[_User]  # type: ignore[valid-type]
    next_cursor: str | None


class Rollups(Model):
    """Sums of steps, oldest first; hours and days without any are left out."""

    items: list[_Rollup]  # type: ignore[valid-type]


class DeletedCounts(Model):
    """How much was deleted; `messages` are those that no other step has, `blobs` files that no other step names."""

    threads: int
    steps: int
    messages: int
    blobs: int


class Listed(BaseModel):
    """Which page of a list."""

    limit: int = Field(default=50, ge=1, le=MAX_PAGE)
    cursor: str | None = Field(default=None, description="The `next_cursor` of the page before.")
    order: Order = "desc"

    def page(self) -> dict[str, Any]:
        """Return the arguments of a store's list."""
        return {"limit": self.limit, "cursor": self.cursor, "order": self.order}


_Since = Annotated[int | None, Query(ge=0, description="Nanoseconds since the Unix epoch, inclusive.")]
_Until = Annotated[int | None, Query(ge=0, description="Nanoseconds since the Unix epoch, exclusive.")]
_Number = Annotated[float | None, Field(allow_inf_nan=False)]
_Ids = Annotated[list[str] | None, Field(max_length=MAX_PAGE)]
_metadata: Final = json.Decoder(dict[str, str | int | float | bool | None])


class StepQuery(BaseModel):
    """Which steps: all that `StepFilter` can say."""

    model_config = ConfigDict(extra="forbid")

    type: list[StepType] | None = Field(default=None, description="Any of them.")
    name: str | None = None
    tag: list[str] | None = Field(default=None, description="All of them.")
    tag_any: list[str] | None = Field(default=None, description="At least one of them.")
    status: Status | None = None
    model: str | None = None
    provider: str | None = None
    agent_id: str | None = None
    thread_id: str | None = None
    trace_id: str | None = None
    trace_ids: _Ids = None
    ids: _Ids = None
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
    has_soft_error: bool | None = Field(default=None, description="A success of which the result tells otherwise.")
    soft_error: SoftError | None = None
    reaction: Reaction | None = Field(default=None, description="What came after a soft error.")
    score: str | None = Field(default=None, description="A score of this name; the other `score_` conditions need it.")
    score_min: _Number = None
    score_max: _Number = None
    score_label: str | None = None
    metadata: str | None = Field(default=None, description='A JSON object of dotted paths: `{"request.attempt": 1}`.')
    since_ns: _Since = None
    until_ns: _Until = None
    min_duration_ns: int | None = None
    max_duration_ns: int | None = None
    min_tokens: int | None = None
    max_tokens: int | None = None
    min_cost: _Number = None
    max_cost: _Number = None
    root_only: bool = False
    text: str | None = Field(default=None, description='Words (all of them), "a phrase", begin*, and -not.')
    q: str | None = Field(
        default=None, description='What also must hold, as in the viewer: `type:llm cost:>0.1 "a b"`.'
    )

    @field_validator("metadata")
    @classmethod
    def _is_an_object(cls, text: str | None) -> str | None:
        if text is not None:
            try:
                _metadata.decode(text)
            except (DecodeError, UnicodeEncodeError, RecursionError):
                raise ValueError("expected a JSON object of paths to strings, numbers, booleans and null") from None
        return text

    def filter(self) -> StepFilter:
        """Return the store's filter."""
        said: dict[str, Any] = {name: value for name, value in self if name in _STEP_FILTER and value is not None}
        said.pop("score", None)
        if self.score is not None:
            said["score"] = ScoreFilter(self.score, self.score_min, self.score_max, self.score_label)
        if self.metadata is not None:
            metadata: dict[str, Scalar] = _metadata.decode(self.metadata)
            said["metadata"] = metadata
        return with_query(StepFilter(**said), self.q)


_STEP_FILTER: Final = frozenset(StepFilter.__dataclass_fields__)


class StepListQuery(StepQuery, Listed):
    """Which page of which steps."""


class SearchQuery(StepListQuery):
    """Which page of the steps that hold these words."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> SearchQuery:
        if self.text is None and self.q is None:
            raise ValueError("a search needs text, or q")
        return self


class ThreadListQuery(Listed):
    """Which page of which threads."""

    model_config = ConfigDict(extra="forbid")

    id: str | None = None
    name: str | None = None
    user: str | None = Field(default=None, description="The user's identifier or id.")
    tag: list[str] | None = Field(default=None, description="All of them.")
    environment: str | None = None
    since_ns: _Since = None
    until_ns: _Until = None
    q: str | None = Field(default=None, description="What also must hold, as in the viewer: `user:ada since:7d`.")

    def filter(self) -> ThreadFilter:
        """Return the store's filter."""
        said: dict[str, Any] = {name: getattr(self, name) for name in ThreadFilter.__dataclass_fields__}
        said["tag"] = self.tag or ()
        return with_thread_query(ThreadFilter(**said), self.q)


class ThreadStepsQuery(Listed):
    """Which page of which steps of a thread."""

    model_config = ConfigDict(extra="forbid")

    type: list[StepType] | None = Field(default=None, description="Any of them.")
    status: Status | None = None
    tag: list[str] | None = Field(default=None, description="All of them.")
    order: Order = "asc"

    def filter(self, thread_id: str) -> StepFilter:
        """Return the store's filter."""
        return StepFilter(thread_id=thread_id, type=self.type or None, status=self.status, tag=self.tag or ())


class UserListQuery(Listed):
    """Which page of users."""

    model_config = ConfigDict(extra="forbid")


class RollupListQuery(BaseModel):
    """Which steps are summed, and by what."""

    model_config = ConfigDict(extra="forbid")

    by: list[Dimension] | None = Field(default=None, description="Fields that the steps of a sum have in common.")
    every: Every | Literal["all"] = Field(default="day", description="Hour or day (UTC), or all time together.")
    since_ns: _Since = None
    until_ns: _Until = None
    type: str | None = None
    name: str | None = None
    model: str | None = None
    user: str | None = None
    environment: str | None = None
    percentiles: bool = Field(default=True, description="Of durations; without them the answer takes less time.")

    def filter(self) -> RollupQuery:
        """Return the store's query."""
        said: dict[str, Any] = {name: getattr(self, name) for name in RollupQuery.__dataclass_fields__}
        said["by"] = self.by or ()
        said["every"] = None if self.every == "all" else self.every
        return RollupQuery(**said)


class ScoreListQuery(Listed):
    """Which page of which scores."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = None
    type: ScoreType | None = None
    label: str | None = None
    min: _Number = Field(default=None, description="Of the value, inclusive.")
    max: _Number = Field(default=None, description="Of the value, inclusive.")
    step_id: str | None = None
    step_ids: _Ids = None
    since_ns: _Since = None
    until_ns: _Until = None

    def filter(self) -> ScoreQuery:
        """Return the store's filter."""
        return ScoreQuery(**{name: getattr(self, name) for name in ScoreQuery.__dataclass_fields__})
