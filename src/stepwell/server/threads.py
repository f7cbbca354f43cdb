"""Threads, users, scores and counts: what our own client and the viewer read, and what an admin deletes.

Lists are pages: `{"items": [...], "next_cursor": ...}`, where the cursor is the store's, opaque, and null at the end.
What is not known of an item is absent. Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal
from urllib.parse import unquote_to_bytes

from fastapi import Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.routing import Match
from starlette.types import Scope

from stepwell._answers import Place, keep_score, page_of, remove_thread, remove_user, search, thread_in_detail
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.model import Score
from stepwell.server._access import InStore, require
from stepwell.server._errors import ANY_ERROR
from stepwell.server._letta_models import Text
from stepwell.server._routing import Model, Route, Router
from stepwell.server._shapes import (
    DeletedCounts,
    HitPage,
    Id,
    RollupListQuery,
    Rollups,
    ScoreItem,
    ScoreListQuery,
    ScorePage,
    SearchQuery,
    StepPage,
    ThreadListQuery,
    ThreadPage,
    ThreadStepsQuery,
    UserListQuery,
    UserPage,
    answer,
)

__all__ = ["router"]


class _Route(Route):
    """A route whose last part, where it is a word, is not taken from an id: `a%2Fsteps` is the thread `a/steps`."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        own = self.path.rpartition("/")[2]
        asked = unquote_to_bytes(scope.get("raw_path", b"").rpartition(b"/")[2])
        if match is not Match.NONE and "{" not in own and asked and asked != own.encode():
            return Match.NONE, {}
        return match, child


router = Router(prefix="/v1", route_class=_Route, responses=ANY_ERROR)

InAdmin = Annotated[Place, Depends(require("admin"))]


class ThreadUser(Model):
    """Who a thread belongs to; `identifier` is the application's own name for the user."""

    id: str | None = None
    identifier: str | None = None
    metadata: Any = None


class ThreadDetail(Model):
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


class Stats(Model):
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


# Ids may hold slashes, as they are or encoded: so a thread's steps are asked before the thread, and the id of one that
# ends in "/steps" has this slash encoded.
@router.get("/threads/{thread_id:path}/steps", response_model=StepPage, tags=["threads"])
def list_thread_steps(store: InStore, thread_id: Id, query: Annotated[ThreadStepsQuery, Query()]) -> Response:
    """List the steps of a thread by their start, oldest first; an unknown thread has none."""
    return answer(page_of(store.steps(query.filter(thread_id), **query.page())))


@router.get("/threads/{thread_id:path}", response_model=ThreadDetail, tags=["threads"])
def retrieve_thread(store: InStore, thread_id: Id) -> Response:
    """Return a thread, also one known only by its steps."""
    return answer(thread_in_detail(store, thread_id))


@router.delete("/threads/{thread_id:path}", response_model=DeletedCounts, tags=["threads"])
def delete_thread(place: InAdmin, thread_id: Id) -> Response:
    """Delete a thread and its steps."""
    return answer(remove_thread(place, thread_id))


@router.get("/users", response_model=UserPage, tags=["users"])
def list_users(store: InStore, query: Annotated[UserListQuery, Query()]) -> Response:
    """List users by their latest step, with the sums of all their steps."""
    return answer(page_of(store.users(**query.page())))


@router.delete("/users/{user:path}", response_model=DeletedCounts, tags=["users"])
def delete_user(place: InAdmin, user: Id) -> Response:
    """Delete the threads of a user, named by identifier or id, and all runs with a step of the user."""
    return answer(remove_user(place, user))


@router.get("/rollups", response_model=Rollups, tags=["stats"])
def rollups(store: InStore, query: Annotated[RollupListQuery, Query()]) -> Response:
    """Sum steps by time and by fields, up to 100,000 sums."""
    return answer({"items": store.rollups(query.filter())})


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


@router.get("/search", response_model=HitPage, tags=["search"])
def find_steps(store: InStore, query: Annotated[SearchQuery, Query()]) -> Response:
    """List the steps that hold these words, and meet the other conditions, by their start."""
    return answer(page_of(search(store, query.filter(), query.page())))


@router.get("/stats", response_model=Stats, tags=["stats"])
def stats(store: InStore) -> Response:
    """Count what the store holds; this reads all of it."""
    return answer(store.stats())
