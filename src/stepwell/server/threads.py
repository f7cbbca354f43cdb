"""Threads, their steps, scores and counts: what our own client and the viewer read.

Lists are pages: `{"items": [...], "next_cursor": ...}`, where the cursor is the store's, opaque, and null at the end.
What is not known of an item is absent. Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stepwell._answers import keep_score, page_of, thread_in_detail
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.model import Score
from stepwell.server._access import InStore
from stepwell.server._letta_models import Text
from stepwell.server._shapes import (
    Id,
    ScoreItem,
    ScoreListQuery,
    ScorePage,
    StepPage,
    ThreadListQuery,
    ThreadPage,
    ThreadStepsQuery,
    answer,
)

__all__ = ["router"]

router = APIRouter(prefix="/v1")


class ThreadUser(BaseModel):
    """Who a thread belongs to; `identifier` is the application's own name for the user."""

    id: str | None = None
    identifier: str | None = None
    metadata: Any = None


class ThreadDetail(BaseModel):
    """A thread, with sums over its steps."""

    id: str
    name: str | None
    user: ThreadUser | None
    tags: list[str]
    metadata: Any
    environment: str | None
    created_ns: int | None
    first_step_ns: int | None
    last_step_ns: int | None
    steps: int
    errors: int
    tokens: int


class NewScore(BaseModel):
    """A judgement of a step: a number, a label, or both. Sent again with the same `id`, it updates what is there."""

    model_config = ConfigDict(extra="forbid")

    step_id: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    name: str = Field(min_length=1, max_length=MAX_ID_CHARACTERS)
    id: str | None = Field(default=None, min_length=1, max_length=MAX_ID_CHARACTERS)
    type: Literal["HUMAN", "CODE", "AI"] = "HUMAN"
    value: float | None = Field(default=None, allow_inf_nan=False)
    label: Text | None = None
    comment: Text | None = None
    tags: list[Text] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> NewScore:
        if self.value is None and self.label is None:
            raise ValueError("a score has a value, a label, or both")
        return self


class Stats(BaseModel):
    """How much the store holds; times are of steps."""

    steps: int
    threads: int
    scores: int
    by_type: dict[str, int]
    by_status: dict[str, int]
    oldest_ns: int | None
    newest_ns: int | None
    bytes_on_disk: int
    schema_version: int


@router.get("/threads", response_model=ThreadPage, tags=["threads"])
def list_threads(store: InStore, query: Annotated[ThreadListQuery, Query()]) -> Response:
    """List threads by their latest activity, with sums over their steps."""
    return answer(page_of(store.threads(query.filter(), **query.page())))


# Ids may hold slashes: so a thread's steps are asked before the thread.
@router.get("/threads/{thread_id:path}/steps", response_model=StepPage, tags=["threads"])
def list_thread_steps(store: InStore, thread_id: Id, query: Annotated[ThreadStepsQuery, Query()]) -> Response:
    """List the steps of a thread by their start, oldest first; an unknown thread has none."""
    return answer(page_of(store.steps(query.filter(thread_id), **query.page())))


@router.get("/threads/{thread_id:path}", response_model=ThreadDetail, tags=["threads"])
def retrieve_thread(store: InStore, thread_id: Id) -> Response:
    """Return a thread, also one known only by its steps."""
    return answer(thread_in_detail(store, thread_id))


@router.get("/scores", response_model=ScorePage, tags=["scores"])
def list_scores(store: InStore, query: Annotated[ScoreListQuery, Query()]) -> Response:
    """List scores by their creation, of known and unknown steps."""
    return answer(page_of(store.scores(query.filter(), **query.page())))


@router.post("/scores", response_model=ScoreItem, status_code=201, tags=["scores"])
def add_score(store: InStore, score: NewScore) -> Response:
    """Judge a step; one that is not known yet has the score when it comes."""
    return answer(
        keep_score(
            store,
            Score(
                id=score.id or str(uuid.uuid4()),
                step_id=score.step_id,
                name=score.name,
                type=score.type,
                value=score.value,
                label=score.label,
                comment=score.comment,
                tags=score.tags,
            ),
        ),
        201,
    )


@router.get("/stats", response_model=Stats, tags=["stats"])
def stats(store: InStore) -> Response:
    """Count what the store holds; this reads all of it."""
    return answer(store.stats())
