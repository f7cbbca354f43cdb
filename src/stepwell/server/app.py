"""The FastAPI application over a store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from stepwell._vocabulary import SDK
from stepwell.server import _health
from stepwell.server._errors import ANY_ERROR, handle_errors
from stepwell.server._guard import Guard
from stepwell.server._limits import Limits
from stepwell.server._places import Places
from stepwell.store import Store

__all__ = ["create_app"]

_ROUTERS = (_health.router,)


def create_app(store: Store, *, home: Path, limits: Limits | None = None) -> FastAPI:
    """Make the application; `home` is the folder of keys, blobs and projects beside the store.

    It needs no key as long as the home has none; that it is then reached from this machine alone is for the caller to
    see to, as `stepwell serve` does. The store is the caller's to close.
    """
    places = Places(store, home)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        yield
        places.close()

    app = FastAPI(
        title="stepwell",
        version=SDK.partition("/")[2],
        lifespan=lifespan,
        responses=ANY_ERROR,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
    )
    app.state.places = places
    app.state.limits = limits or Limits()
    handle_errors(app)
    for router in _ROUTERS:
        app.include_router(router)
    app.add_middleware(Guard)
    return app
