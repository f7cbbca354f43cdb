"""Who may do what: every request has an `Access`, found before anything else is done for it.

What must stay true: a route gets a store only through `store_of` or `place_of`, which look at the scopes first; where
no access was found there is no store. So a route that forgets about access fails, and does not leak.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, NamedTuple, cast

from fastapi import Depends, Request, Security
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import cookie_parser

from stepwell.server._errors import Problem
from stepwell.server._keys import Scope
from stepwell.server._places import Place, Places
from stepwell.store import Store

__all__ = [
    "KEY_COOKIE",
    "READING",
    "Access",
    "InPlace",
    "InStore",
    "key_in_cookie",
    "place_of",
    "require",
    "store_of",
    "unauthorized",
]

KEY_COOKIE: Final = "stepwell_key"
READING: Final = frozenset(("GET", "HEAD", "OPTIONS"))
# For the schema alone: the key was looked at before the request came here.
_bearer: Final = HTTPBearer(auto_error=False, description="A key made by: stepwell keys add NAME")


class Access(NamedTuple):
    """What a request may do, and in which project; `key` is the name of its key, None where none is needed.

    `browser` says that the key came in the cookie that signing in sets.
    """

    key: str | None
    scopes: frozenset[Scope]
    project: str | None
    browser: bool = False

    def may(self, scope: Scope) -> bool:
        """Say whether this scope is among those held; `admin` has all of them."""
        return scope in self.scopes or "admin" in self.scopes


def key_in_cookie(headers: Headers) -> str:
    """Return the key that signing in put into a cookie, nothing where there is none."""
    return cookie_parser(headers.get("cookie", "")).get(KEY_COOKIE, "")


def unauthorized(message: str) -> Problem:
    """Return what says that a request has not shown who it is from."""
    return Problem(401, message, headers={"WWW-Authenticate": "Bearer"})


def access_of(request: Request) -> Access:
    """Return what was found out about a request. Raises `Problem`."""
    access = cast("Any", request.scope.get("state") or {}).get("access")
    if not isinstance(access, Access):
        raise unauthorized("a key is needed: Authorization: Bearer KEY")
    return access


def check(request: Request, scope: Scope | None = None) -> Access:
    """Return a request's access; without a `scope` it needs `read` to read, else `ingest`. Raises `Problem`."""
    access = access_of(request)
    needed: Scope = scope or ("read" if request.method in READING else "ingest")
    if not access.may(needed):
        raise Problem(403, f"the key {access.key!r} has no scope {needed!r}")
    return access


async def place_of(request: Request, _: Annotated[Any, Security(_bearer)] = None) -> Place:
    """Return the store and blobs of the request's project; needs `read` for GET and HEAD, `ingest` for the others."""
    return await _place(request, check(request))


async def store_of(request: Request, _: Annotated[Any, Security(_bearer)] = None) -> Store:
    """Return the store of the request's project; needs `read` for GET and HEAD, `ingest` for the others."""
    return (await _place(request, check(request))).store


def require(scope: Scope) -> Callable[..., Awaitable[Place]]:
    """Return a dependency like `place_of` for a route that needs a scope of its own, whatever its method."""

    async def place(request: Request, _: Annotated[Any, Security(_bearer)] = None) -> Place:
        return await _place(request, check(request, scope))

    return place


async def _place(request: Request, access: Access) -> Place:
    places: Places = request.app.state.places
    if access.project is None:
        return places.of(None)
    return await run_in_threadpool(places.of, access.project)  # the first to ask opens it


InStore = Annotated[Store, Depends(store_of)]
InPlace = Annotated[Place, Depends(place_of)]
