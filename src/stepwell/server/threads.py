"""Threads, their steps, scores and counts: what our own client and the viewer read.

Lists are pages: `{"items": [...], "next_cursor": ...}`, where the cursor is the store's, opaque, and null at the end.
What is not known of an item is absent. Times are nanoseconds since the Unix epoch.
"""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Response
from msgspec import UNSET, Struct, json, structs
from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.model import Score, ScoreRecord, Status, StepType, encode_record
from stepwell.server._access import InStore
from stepwell.server._errors import Problem
from stepwell.server._letta_models import Text
from stepwell.store import MAX_PAGE, Order, StepFilter, StepRow, ThreadFilter, ThreadRow

__all__ = ["router"]

router = APIRouter(prefix="/v1")

Id = Annotated[str, Path(min_length=1, max_length=MAX_ID_CHARACTERS)]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Cursor = Annotated[str | None, Query(description="The `next_cursor` of the page before.")]
Since = Annotated[int | None, Query(ge=0, description="Nanoseconds since the Unix epoch, inclusive.")]
Until = Annotated[int | None, Query(ge=0, description="Nanoseconds since the Unix epoch, exclusive.")]
Tags = Annotated[list[str] | None, Query(description="All of them.")]


def _model_of(struct: type[Struct], name: str) -> type[BaseModel]:
    """Return the model, for the schema, of a struct of plain fields: what is null or empty there is absent."""
    fields: dict[str, Any] = {
        field.name: (field.type, ... if field.required else field.default) for field in structs.fields(struct)
    }
    return create_model(name, __config__=ConfigDict(extra="forbid"), __doc__=struct.__doc__, **fields)


_Step: Final = _model_of(StepRow, "Step")
_Thread: Final = _model_of(ThreadRow, "Thread")
_Score: Final = _model_of(Score, "Score")


class ThreadPage(BaseModel):
    """Threads in order of their latest activity."""

    items: list[_Thread]  # type: ignore[valid-type]
    next_cursor: str | None


class StepPage(BaseModel):
    """Steps in order of their start."""

    items: list[_Step]  # type: ignore[valid-type]
    next_cursor: str | None


class ScorePage(BaseModel):
    """Scores of a step, all of them."""

    items: list[_Score]  # type: ignore[valid-type]
    next_cursor: None


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


def _answer(body: object, status: int = 200) -> Response:
    return Response(json.encode(body), status, media_type="application/json")


@router.get("/threads", response_model=ThreadPage, tags=["threads"])
def list_threads(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    name: str | None = None,
    user: Annotated[str | None, Query(description="The user's identifier or id.")] = None,
    tag: Tags = None,
    environment: str | None = None,
    since_ns: Since = None,
    until_ns: Until = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    order: Order = "desc",
) -> Response:
    """List threads by their latest activity, with sums over their steps."""
    filter = ThreadFilter(
        name=name, user=user, tag=tag or (), environment=environment, since_ns=since_ns, until_ns=until_ns
    )
    page = store.threads(filter, limit=limit, cursor=cursor, order=order)
    return _answer({"items": page.items, "next_cursor": page.next_cursor})


# Ids may hold slashes: so a thread's steps are asked before the thread.
@router.get("/threads/{thread_id:path}/steps", response_model=StepPage, tags=["threads"])
def list_thread_steps(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    thread_id: Id,
    type: Annotated[list[StepType] | None, Query(description="Any of them.")] = None,
    status: Status | None = None,
    tag: Tags = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    order: Order = "asc",
) -> Response:
    """List the steps of a thread by their start, oldest first; an unknown thread has none."""
    filter = StepFilter(thread_id=thread_id, type=type or None, status=status, tag=tag or ())
    page = store.steps(filter, limit=limit, cursor=cursor, order=order)
    return _answer({"items": page.items, "next_cursor": page.next_cursor})


@router.get("/threads/{thread_id:path}", response_model=ThreadDetail, tags=["threads"])
def retrieve_thread(store: InStore, thread_id: Id) -> Response:
    """Return a thread, also one known only by its steps."""
    thread = store.thread(thread_id)
    sums = next(iter(store.threads(ThreadFilter(id=thread_id)).items), ThreadRow(thread_id))
    return _answer(
        {
            "id": thread.id,
            "name": thread.name,
            "user": thread.user,
            "tags": thread.tags or [],
            "metadata": None if thread.metadata is UNSET else thread.metadata,
            "environment": thread.environment,
            "created_ns": thread.created_ns,
            "first_step_ns": sums.first_step_ns,
            "last_step_ns": sums.last_step_ns,
            "steps": sums.steps,
            "errors": sums.errors,
            "tokens": sums.tokens,
        }
    )


@router.get("/scores", response_model=ScorePage, tags=["scores"])
def list_scores(store: InStore, step_id: Annotated[str, Query(min_length=1, max_length=MAX_ID_CHARACTERS)]) -> Response:
    """List the scores of a step, in order of arrival."""
    scores = [structs.replace(score, step_id=step_id) for score in store.step(step_id).scores or ()]
    return _answer({"items": scores, "next_cursor": None})


@router.post("/scores", response_model=_Score, status_code=201, tags=["scores"])
def add_score(store: InStore, score: NewScore) -> Response:
    """Judge a step; one that is not known yet has the score when it comes."""
    record = ScoreRecord(
        id=score.id or str(uuid.uuid4()),
        step_id=score.step_id,
        name=score.name,
        type=score.type,
        value=score.value,
        label=score.label,
        comment=score.comment,
        tags=score.tags,
        created_ns=time.time_ns(),
    )
    result = store.add([encode_record(record)])
    if result.rejected:
        raise Problem(422, result.rejected[0].error)
    return _answer(Score(**structs.asdict(record)), 201)


@router.get("/stats", response_model=Stats, tags=["stats"])
def stats(store: InStore) -> Response:
    """Count what the store holds; this reads all of it."""
    return _answer(store.stats())
