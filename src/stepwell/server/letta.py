"""Letta's steps and runs over our store: what `letta-client` calls, with its shapes, words and statuses.

A step of any type is a step here, a top-level run (or step without a parent) a run. Ids are spelt `step-...` and
`run-...` and taken with or without. Errors are the server's, and say `detail` besides, where Letta's clients look.

Where Letta 0.16 is known to be wrong this is not: `steps.list` works, `before` gives the page next to its item, items
of equal times are neither lost nor repeated, `tags` filters (a step must have all of them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Annotated, Any, Final, Literal

from fastapi import Depends, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from msgspec import json
from starlette.exceptions import HTTPException

from stepwell._answers import in_full
from stepwell._vocabulary import MAX_ID_CHARACTERS, MESSAGE_TYPES
from stepwell.errors import ClosedError, NotFoundError, StoreError, UsageError
from stepwell.model import Status, StepRecord
from stepwell.server._access import InStore
from stepwell.server._errors import Problem, explain
from stepwell.server._letta_messages import generation_of, letta_messages
from stepwell.server._letta_models import (
    FeedbackBody,
    LettaError,
    LettaMessage,
    LettaMetrics,
    LettaRun,
    LettaStep,
    LettaTrace,
    LettaUsage,
    RunStatus,
    StopReason,
    Verdict,
)
from stepwell.server._letta_pages import Window, find_step, page_of_items, page_of_steps
from stepwell.server._letta_steps import (
    feedback_records,
    letta_metrics,
    letta_run,
    letta_spans,
    letta_step,
    letta_trace,
    letta_usage,
)
from stepwell.server._routing import Route, Router
from stepwell.store import MAX_PAGE, Order, StepFilter, StepRow, Store

__all__ = ["router"]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_ID: Final = MAX_ID_CHARACTERS + len("step-")
_TOLD: Final = MESSAGE_TYPES | {"llm", "tool"}  # the types of step that have messages
_FIND_RUN: Final = partial(find_step, prefix="run-")


class _LettaRoute(Route):
    """Answers errors in the server's shape, with the message as `detail` too."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_letta(request: Request) -> Response:
            try:
                return await handle(request)
            except (HTTPException, RequestValidationError, NotFoundError, UsageError, StoreError, ClosedError) as error:
                answer = explain(error, request.scope)
                body = json.decode(answer.body)
                headers = {name: value for name, value in answer.headers.items() if name != "content-length"}
                body = json.encode({"detail": body["error"]["message"], **body})
                return Response(body, answer.status_code, headers)

        return handle_letta


router = Router(
    prefix="/v1",
    tags=["letta"],
    route_class=_LettaRoute,
    responses={"default": {"model": LettaError, "description": "An error"}},
)

StepId = Annotated[str, Path(min_length=1, max_length=_MAX_ID, description="With `step-` before it or without.")]
RunId = Annotated[str, Path(min_length=1, max_length=_MAX_ID, description="With `run-` before it or without.")]
Limit = Annotated[int, Query(ge=0, description="Most items to return; of steps and runs at most 1000 at once.")]


def _window(limit: int, default_order: Order) -> Callable[..., Window]:
    """Return the dependency that reads the part of a list asked for."""

    def window(
        after: str | None = None,
        before: str | None = None,
        limit: Limit = limit,
        order: Order = default_order,
        order_by: Literal["created_at"] = "created_at",  # noqa: ARG001 (there is no other)
    ) -> Window:
        return Window(limit, order, after, before)

    return window


StepWindow = Annotated[Window, Depends(_window(50, "desc"))]
RunStepWindow = Annotated[Window, Depends(_window(100, "desc"))]
MessageWindow = Annotated[Window, Depends(_window(100, "asc"))]


def _answer(body: object) -> Response:
    return Response(json.encode(body), media_type="application/json")


def _ns_of(date: str) -> int:
    """Return an ISO date as nanoseconds; without an offset it is UTC. Raises `Problem` 400."""
    try:
        parsed = datetime.fromisoformat(date)
    except ValueError:
        raise Problem(400, f"Invalid isoformat string: {date[:100]!r}") from None
    if parsed.tzinfo is None:
        parsed = parsed.replace(tzinfo=UTC)
    return (parsed - _EPOCH) // timedelta(microseconds=1) * 1000


# -- steps


@router.get("/steps", include_in_schema=False)
@router.get("/steps/", response_model=list[LettaStep])
def list_steps(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    window: StepWindow,
    agent_id: str | None = None,
    model: str | None = None,
    project_id: Annotated[str | None, Query(description="The `service` that recorded the step.")] = None,
    trace_ids: Annotated[list[str] | None, Query(max_length=MAX_PAGE)] = None,
    tags: Annotated[list[str] | None, Query(description="A step must have all of them.")] = None,
    feedback: Verdict | None = None,
    has_feedback: bool | None = None,
    start_date: Annotated[str | None, Query(description="Steps that started later than this.")] = None,
    end_date: Annotated[str | None, Query(description="Steps that started earlier than this.")] = None,
) -> Response:
    """List steps by their start, newest first."""
    start_ns = None if start_date is None else _ns_of(start_date)
    end_ns = None if end_date is None else _ns_of(end_date)
    if start_ns is not None and end_ns is not None and start_ns > end_ns:
        raise Problem(400, "start_date must be before end_date")
    filter = StepFilter(
        agent_id=agent_id,
        model=model,
        service=project_id,
        trace_ids=trace_ids or None,
        tag=tags or (),
        feedback=feedback,
        has_feedback=has_feedback,
        since_ns=None if start_ns is None else max(0, start_ns + 1),
        until_ns=end_ns,
    )
    return _answer([letta_step(step) for step in page_of_steps(store, filter, window)])


# Ids may hold slashes: so a step is asked for after what is below it.
@router.get("/steps/{step_id:path}/metrics", response_model=LettaMetrics)
def retrieve_metrics(store: InStore, step_id: StepId) -> Response:
    """Return how long a step, and the calls of models and tools below it, took."""
    step = find_step(store, step_id)
    return _answer(letta_metrics(step, store.tree(step.id)))


@router.get("/steps/{step_id:path}/trace", response_model=LettaTrace | None)
def retrieve_trace(store: InStore, step_id: StepId) -> Response:
    """Return a step's request to its provider and the response; null for a step without one, or unknown (as Letta)."""
    try:
        step = find_step(store, step_id)
    except NotFoundError:
        return _answer(None)
    return _answer(letta_trace(step))


@router.patch("/steps/{step_id:path}/feedback", response_model=LettaStep)
def give_feedback(store: InStore, step_id: StepId, body: FeedbackBody) -> Response:
    """Say whether a step was good or bad; null, or nothing, withdraws what was said. Tags are added to the step's."""
    step = find_step(store, step_id)
    records = feedback_records(step, body.feedback, body.tags or (), time.time_ns())
    if records:
        result = store.add(records)
        if result.rejected:
            raise Problem(422, result.rejected[0].error)
    return _answer(letta_step(store.step(step.id)))


@router.get("/steps/{step_id:path}/messages", response_model=list[LettaMessage])
def list_step_messages(store: InStore, step_id: StepId, window: MessageWindow) -> Response:
    """List the messages of a step and of those below it, oldest first; of an unknown step there are none (as Letta)."""
    try:
        step = find_step(store, step_id)
    except NotFoundError:
        return _answer([])
    return _answer(page_of_items(_messages(store, step.id), window, "Message"))


@router.get("/steps/{step_id:path}", response_model=LettaStep)
def retrieve_step(store: InStore, step_id: StepId) -> Response:
    """Return one step."""
    return _answer(letta_step(find_step(store, step_id)))


def _messages(store: Store, id: str) -> list[dict[str, Any]]:
    return letta_messages(in_full(store, [row.id for row in store.tree(id) if row.type in _TOLD]))


# -- runs


_STATUSES: Final[dict[str, frozenset[Status]]] = {
    "created": frozenset(),
    "running": frozenset({"pending"}),
    "completed": frozenset({"success"}),
    "failed": frozenset({"failed", "interrupted"}),
    "cancelled": frozenset({"cancelled"}),
}


@router.get("/runs", include_in_schema=False)
@router.get("/runs/", response_model=list[LettaRun])
def list_runs(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    window: RunStepWindow,
    agent_id: str | None = None,
    agent_ids: Annotated[list[str] | None, Query(deprecated=True)] = None,
    statuses: Annotated[list[RunStatus] | None, Query()] = None,
    stop_reason: StopReason | None = None,
    conversation_id: Annotated[str | None, Query(description="A thread's id.")] = None,
    active: Annotated[bool, Query(description="Those that have not ended.")] = False,
    background: Annotated[bool | None, Query(description="Recorded runs are never in the background.")] = None,
    ascending: Annotated[bool | None, Query(deprecated=True)] = None,
) -> Response:
    """List top-level runs and steps without a parent, newest first."""
    if ascending is not None:
        window = Window(window.limit, "asc" if ascending else "desc", window.after, window.before)
    if background:
        return _answer([])
    agents = {*(agent_ids or ()), *([agent_id] if agent_id is not None else [])}
    kept: set[Status] = {status for name in statuses or _STATUSES for status in _STATUSES[name]}
    if active:
        kept &= _STATUSES["running"]
    if not kept:
        return _answer([])

    def keep(step: StepRecord) -> bool:
        return stop_reason is None or letta_run(step)["stop_reason"] == stop_reason

    filter = StepFilter(
        root_only=True,
        thread_id=conversation_id,
        agent_id=sorted(agents),
        status=tuple(kept) if statuses or active else None,
    )
    return _answer([letta_run(run) for run in page_of_steps(store, filter, window, keep, prefix="run-")])


@router.get("/runs/{run_id:path}/steps", response_model=list[LettaStep])
def list_run_steps(store: InStore, run_id: RunId, window: RunStepWindow) -> Response:
    """List the steps of a run, itself included, newest first."""
    id = _run_id(store, run_id)
    steps = page_of_steps(store, StepFilter(root_run_id=id), window)
    return _answer([letta_step(step) for step in steps])


def _run_id(store: Store, run_id: str) -> str:
    """Return a run's id as its steps name it. Raises `NotFoundError` where neither it nor a step of it is known."""
    try:
        return _FIND_RUN(store, run_id).id
    except NotFoundError:
        id = run_id.removeprefix("run-")
        if store.steps(StepFilter(root_run_id=id), limit=1).items:
            return id
        raise


@router.get("/runs/{run_id:path}/messages", response_model=list[LettaMessage])
def list_run_messages(store: InStore, run_id: RunId, window: MessageWindow) -> Response:
    """List the messages of a run, each once, oldest first."""
    return _answer(page_of_items(_messages(store, _FIND_RUN(store, run_id).id), window, "Message"))


@router.get("/runs/{run_id:path}/usage", response_model=LettaUsage)
def retrieve_usage(store: InStore, run_id: RunId) -> Response:
    """Return the tokens of all steps of a run together."""
    tree = store.tree(_FIND_RUN(store, run_id).id)
    return _answer(letta_usage(in_full(store, [row.id for row in tree if _counts(row)])))


def _counts(row: StepRow) -> bool:
    return row.input_tokens is not None or row.output_tokens is not None or row.total_tokens is not None


@router.get("/runs/{run_id:path}/trace", response_model=list[dict[str, Any]])
def retrieve_run_trace(
    store: InStore, run_id: RunId, limit: Annotated[int, Query(ge=0, description="Most spans to return.")] = 1000
) -> Response:
    """Return a run and the steps below it as spans, by start."""
    return _answer(letta_spans(store.tree(_FIND_RUN(store, run_id).id)[:limit]))


@router.get("/runs/{run_id:path}", response_model=LettaRun)
def retrieve_run(store: InStore, run_id: RunId) -> Response:
    """Return one run."""
    run = _FIND_RUN(store, run_id)
    return _answer(letta_run(run, _time_to_first_token(store, run)))


def _time_to_first_token(store: Store, run: StepRecord) -> int | None:
    """Return the nanoseconds from the start of a run to the first token of the first model called in it."""
    first = next((row for row in store.tree(run.id) if row.type == "llm"), None)
    ttft_ns = None if first is None else generation_of(store.step(first.id)).ttft_ns
    if first is None or ttft_ns is None or first.start_ns is None or run.start_ns is None:
        return None
    return first.start_ns - run.start_ns + ttft_ns
