"""Signing in: a browser shows its key once, and from then on in a cookie.

What must stay true: the cookie is not for scripts (`HttpOnly`), not for other sites (`SameSite=Strict`), not for other
paths, and over https for https alone; a key is never in an address, a log or a page; guessing is slowed down as with
any other request.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from stepwell.server._access import KEY_COOKIE
from stepwell.server._keys import Failures, KeyRing
from stepwell.server._routing import Router
from stepwell.server.pages._page import Links, page

__all__ = ["router"]

MAX_AGE_S: Final = 30 * 86_400
MAX_NEXT: Final = 8_000

router = Router(include_in_schema=False)

Next = Annotated[str, Query(max_length=MAX_NEXT)]


@router.get("/login")
def login_page(request: Request, next: Next = "") -> Response:
    """Ask for a key; without keys there is nothing to ask for."""
    keys: KeyRing = request.app.state.keys
    if not keys.keys():
        return RedirectResponse(Links(request).to(""), 303)
    return _ask(request, next)


@router.post("/login")
async def login(request: Request) -> Response:
    """Take a key, and go on to where it was asked for."""
    form = {name: values[0] for name, values in parse_qs((await request.body()).decode("utf-8", "replace")).items()}
    keys: KeyRing = request.app.state.keys
    failures: Failures = request.app.state.failures
    next = form.get("next", "")[:MAX_NEXT]
    key = keys.find(form.get("key", "").strip())
    if key is None:
        wait_s = failures.add(request.client.host if request.client else "")
        if wait_s:
            wait = f"Too many wrong keys came from here: try again in {int(wait_s) + 1} seconds."
            return _ask(request, next, wait, 429, {"Retry-After": str(int(wait_s) + 1)})
        return _ask(request, next, "This key is not known here. Was it revoked, or copied in part?", 401)
    if not {"read", "admin"} & {*key.scopes}:
        return _ask(request, next, f"The key {key.name!r} may send steps, but not read them.", 403)
    answer = RedirectResponse(_own(request, next), 303)
    _set(request, answer, form["key"].strip(), MAX_AGE_S)
    return answer


@router.post("/logout")
def logout(request: Request) -> Response:
    """Forget the key."""
    answer = RedirectResponse(Links(request).to("login"), 303)
    _set(request, answer, "", 0)
    return answer


def _set(request: Request, answer: Response, value: str, age_s: int) -> None:
    # The browser knows whether it came by https, also where a proxy ends that.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https:")
    path = str(request.scope.get("root_path", "")) or "/"
    answer.set_cookie(KEY_COOKIE, value, max_age=age_s, path=path, secure=secure, httponly=True, samesite="strict")


def _own(request: Request, next: str) -> str:
    """Return the address to go on to: only one of ours, or a link could send a browser anywhere after signing in."""
    links = Links(request)
    start = links.to("")
    if not next.startswith(start) or next.startswith("//") or any(mark < "!" or mark == "\\" for mark in next):
        return start
    return next


def _ask(
    request: Request, next: str, wrong: str = "", status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    context = {"next": next, "own": _own(request, next), "wrong": wrong}
    return page(request, "login.html", context, status, headers or {})
