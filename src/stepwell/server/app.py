"""The FastAPI application over a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from stepwell._vocabulary import SDK
from stepwell.server import _blobs, _health, _ingest, _otlp, letta, threads
from stepwell.server._errors import ANY_ERROR, handle_errors
from stepwell.server._guard import Guard
from stepwell.server._ingest import Ingest
from stepwell.server._keys import KeyRing
from stepwell.server._limits import Limits
from stepwell.server._metrics import Metrics
from stepwell.server._places import Places
from stepwell.store import Store

__all__ = ["create_app"]

_ROUTERS = (_health.router, _ingest.router, _otlp.router, _blobs.router, letta.router, threads.router)


def create_app(store: Store, *, home: Path, limits: Limits | None = None) -> FastAPI:
    """Make the application; `home` is the folder of keys, blobs and projects beside the store.

    As long as the home has no keys it needs none, and answers this machine alone. The store is the caller's to close.
    """
    places, metrics, limits = Places(store, home), Metrics(), limits or Limits()
    ingest = Ingest(limits, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        ingest.close()
        places.close()

    app = FastAPI(
        title="stepwell",
        version=SDK.partition("/")[2],
        lifespan=lifespan,
        responses=ANY_ERROR,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
    )
    app.state.places, app.state.limits, app.state.metrics, app.state.ingest = places, limits, metrics, ingest
    handle_errors(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(Guard, keys=KeyRing(home), limits=limits, metrics=metrics)
    return app
