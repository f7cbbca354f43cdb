"""How the server is: for load balancers, for Prometheus, and for Letta's client."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request, Response
from starlette.concurrency import run_in_threadpool

from stepwell._vocabulary import SDK
from stepwell.errors import ClosedError, StoreError
from stepwell.server._access import require
from stepwell.server._errors import ANY_ERROR, Problem
from stepwell.server._metrics import Metrics
from stepwell.server._places import Place, Places
from stepwell.server._routing import Model, Router

__all__ = ["router"]

router = Router(tags=["health"], responses=ANY_ERROR)


class Health(Model):
    """What Letta's client asks for, both fields of it."""

    status: str
    version: str


@router.get("/healthz")
@router.get("/v1/health/")
async def health() -> Health:
    """Say that the server is there, and its version."""
    return Health(status="ok", version=SDK.partition("/")[2])


@router.get("/readyz")
async def ready(request: Request) -> Health:
    """Say that the store can be written, or answer 503."""
    places: Places = request.app.state.places
    try:
        await run_in_threadpool(places.of(None).store.add, ())  # a transaction, if of nothing
    except (StoreError, ClosedError):
        raise Problem(503, "the store can't be written now", headers={"Retry-After": "1"}) from None
    return Health(status="ok", version=SDK.partition("/")[2])


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(request: Request, _: Annotated[Place, Depends(require("admin"))]) -> Response:
    """Return the counters of this process, over all projects, for Prometheus."""
    counted: Metrics = request.app.state.metrics
    return Response(counted.text(), media_type="text/plain; version=0.0.4")
