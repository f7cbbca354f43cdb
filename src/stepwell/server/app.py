"""The FastAPI application over a store."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import chain
from pathlib import Path
from typing import Final

from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from stepwell._vocabulary import SDK
from stepwell.server import _blobs, _health, _ingest, _otlp, letta, records, threads
from stepwell.server._errors import handle_errors
from stepwell.server._guard import Guard
from stepwell.server._ingest import Ingest
from stepwell.server._keys import Failures, KeyRing
from stepwell.server._limits import Limits
from stepwell.server._metrics import Metrics
from stepwell.server._places import Place, Places
from stepwell.server._routing import Application, Route
from stepwell.server._upkeep import Job, Retention, Upkeep, jobs_of
from stepwell.server._writers import DEFAULT_WRITERS, Writers
from stepwell.server.pages import (
    _compare,
    _dashboard,
    _findings,
    _fork,
    _lists,
    _live,
    _login,
    _numbered,
    _review,
    _runs,
    _saving,
    _sharing,
    _static,
    _steps,
    _thread,
    _views,
)
from stepwell.server.pages._families import Families
from stepwell.server.pages._live import Live
from stepwell.server.pages._markdown import markdown_html
from stepwell.server.pages._page import compile_templates
from stepwell.store import Store

__all__ = ["create_app"]

_READERS: Final = 12  # requests answered at once: each may hold a page of 1000 whole steps, more threads none sooner
_UPKEEP_AFTER_S: Final = 0.1  # it would compete with what is left of the start, and with the first request
_ROUTERS = (
    _health.router,
    _ingest.router,
    _otlp.router,
    _blobs.router,
    letta.router,
    records.router,
    threads.router,
    _lists.router,
    _views.router,
    _review.router,
    _live.router,
    _runs.router,
    _thread.router,
    _login.router,
    _dashboard.router,
    _compare.router,
    _fork.router,
    _steps.router,
    _findings.router,
    _sharing.router,
    _numbered.router,
    _saving.router,
    _static.router,
)
_ROUTES: Final = [route for router in _ROUTERS for route in router.routes]


def create_app(
    store: Store,
    *,
    home: Path,
    limits: Limits | None = None,
    retention: Retention | None = None,
    prefix: str = "",
    writers: int = DEFAULT_WRITERS,
) -> FastAPI:
    """Make the application; `home` is the folder of keys, blobs and projects beside the store.

    `prefix` is the path under which a proxy shows it, such as `/traces`, whether the proxy takes it away or not.
    `writers` is how many processes share the work where much comes; 0 leaves all of it to this one.

    As long as the home has no keys it needs none, and answers this machine alone. The store is the caller's to close.
    """
    places, metrics, limits = Places(store, home), Metrics(), limits or Limits()
    pool = Writers(writers)
    metrics.writers = lambda: len(pool.pids)
    ingest = Ingest(limits, metrics, pool)

    def get_ready(_: Place) -> None:  # for all places, which share it: another one finds it done
        routes = (route for route in _ROUTES if isinstance(route, Route))
        for _part in chain(compile_templates(), map(Route.build, routes), map(markdown_html, ("",))):
            if upkeep.is_closing:
                return

    upkeep = Upkeep(
        places,
        [Job("ready", math.inf, get_ready), *jobs_of(retention or Retention(), records=metrics.records.total)],
        after_s=_UPKEEP_AFTER_S,
    )
    metrics.upkeep = upkeep.counts

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        current_default_thread_limiter().total_tokens = _READERS
        upkeep.start()
        yield
        upkeep.close()
        ingest.close()
        places.close()

    app = Application(
        title="stepwell",
        version=SDK.partition("/")[2],
        lifespan=lifespan,
        routes=_ROUTES,
        docs_url=None,  # these pages load scripts from another host
        redoc_url=None,
    )
    app.state.places, app.state.limits, app.state.metrics, app.state.ingest = places, limits, metrics, ingest
    app.state.live = Live()
    app.state.families = Families()
    handle_errors(app)
    keys, failures = KeyRing(home), Failures()
    app.state.keys, app.state.failures = keys, failures
    app.add_middleware(Guard, prefix=prefix.rstrip("/"), keys=keys, failures=failures, limits=limits, metrics=metrics)
    return app
