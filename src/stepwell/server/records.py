"""`/v1/records`: steps and runs as they were recorded, for our own client and the viewer.

`/v1/steps` and `/v1/runs` are Letta's. What stands before an id is fixed (`tree/ID`, not `ID/tree`), because ids may
hold slashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from stepwell._answers import Place, page_of, remove_run
from stepwell.model import encode_record
from stepwell.server._access import InStore, require
from stepwell.server._errors import ANY_ERROR
from stepwell.server._routing import Model, Router
from stepwell.server._shapes import DeletedCounts, Id, RunPage, StepItem, StepListQuery, StepPage, StepQuery, answer
from stepwell.store import MAX_PAGE

__all__ = ["router"]

router = Router(prefix="/v1/records", tags=["records"], responses=ANY_ERROR)

NDJSON: Final = "application/x-ndjson"
_PIECE_BYTES: Final = 64 * 1024
_RECORD: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["kind", "id"],
    "properties": {"kind": {"const": "step"}, "id": {"type": "string"}},
    "description": "A record as it is sent to `/v1/ingest`; what is not known is absent.",
}


class Tree(Model):
    """A step and all steps below it, by start."""

    items: list[StepItem]  # type: ignore[valid-type]


class IdsQuery(BaseModel):
    """Which steps."""

    model_config = ConfigDict(extra="forbid")

    ids: list[str] = Field(max_length=MAX_PAGE, description="In this order.")


class ChangesQuery(BaseModel):
    """Which changes."""

    model_config = ConfigDict(extra="forbid")

    after: int | None = Field(default=None, ge=0, lt=1 << 63, description="A `position`; without it, that of now.")
    limit: int = Field(default=500, ge=1, le=MAX_PAGE)


class Changes(Model):
    """Steps in the order in which they were added or updated, and the position that they lead to."""

    items: list[StepItem]  # type: ignore[valid-type]
    position: int


class Found(Model):
    """What an id, or the beginning of one, names."""

    kind: Literal["thread", "step"]
    id: str


def _schema(schema: dict[str, Any], type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {type: {"schema": schema}}, "description": "Successful Response"}}


@router.get("", response_class=Response, responses=_schema({"type": "string"}, NDJSON))
def export(store: InStore, query: Annotated[StepQuery, Query()]) -> StreamingResponse:
    """Stream records as lines: threads, then steps by start, then scores whose step is unknown.

    With a condition: the steps that meet it and their threads. An answer cut short lacks its last chunk.
    """
    records = store.records(query.filter() if query.model_fields_set else None)
    pieces = _pieces(records)
    first = next(pieces)  # what is wrong with the query is found here, while it can still be answered
    return StreamingResponse(chain((first,), pieces), media_type=NDJSON)


def _pieces(records: Iterable[bytes]) -> Iterator[bytes]:
    piece = bytearray()
    for record in records:
        piece += record
        piece += b"\n"
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


@router.get("/steps", response_model=StepPage)
def list_steps(store: InStore, query: Annotated[StepListQuery, Query()]) -> Response:
    """List steps by their start."""
    return answer(page_of(store.steps(query.filter(), **query.page())))


@router.get("/runs", response_model=RunPage)
def list_runs(store: InStore, query: Annotated[StepListQuery, Query()]) -> Response:
    """List top-level runs and steps without a parent, by their start, with the sums of what is below them."""
    return answer(page_of(store.runs(query.filter(), **query.page())))


@router.get(
    "/full",
    response_class=Response,
    responses=_schema({"type": "object", "properties": {"items": {"type": "array", "items": _RECORD}}}),
)
def steps_in_full(store: InStore, query: Annotated[IdsQuery, Query()]) -> Response:
    """Return whole steps, payloads included; those that are not there are left out."""
    return answer({"items": store.steps_in_full(query.ids)})


@router.get("/changes", response_model=Changes)
def changes(store: InStore, query: Annotated[ChangesQuery, Query()]) -> Response:
    """Return steps added or updated since a position, oldest change first."""
    items, position = store.changes(query.after, query.limit)
    return answer({"items": items, "position": position})


@router.get("/steps/{step_id:path}", response_class=Response, responses=_schema(_RECORD))
def retrieve_step(store: InStore, step_id: Id) -> Response:
    """Return one whole step, payloads included."""
    return Response(encode_record(store.step(step_id)), media_type="application/json")


@router.delete("/runs/{step_id:path}", response_model=DeletedCounts)
def delete_run(place: Annotated[Place, Depends(require("admin"))], step_id: Id) -> Response:
    """Delete the run that a step is of: all steps of its trace, and those below its root."""
    return answer(remove_run(place, step_id))


@router.get("/tree/{step_id:path}", response_model=Tree)
def tree(store: InStore, step_id: Id) -> Response:
    """Return a step and all steps below it."""
    return answer({"items": store.tree(step_id)})


@router.get("/find/{id:path}", response_model=Found)
def find(store: InStore, id: Id) -> Response:
    """Say what an id names, also by 8 or more of a step's first characters if they are unique."""
    return answer(store.find(id))
