"""Our own files: named by what is in them, so a browser may keep them for ever."""

from __future__ import annotations

from fastapi import Response

from stepwell.errors import NotFoundError
from stepwell.server._routing import Router
from stepwell.server.pages._page import static_file

__all__ = ["router"]

router = Router(include_in_schema=False)


@router.get("/static/{mark}/{name}")
def static(mark: str, name: str) -> Response:
    """Return a file of ours."""
    try:
        body, current, kind = static_file(name)
    except KeyError:
        raise NotFoundError("there is no such file") from None
    kept = "public, max-age=31536000, immutable" if mark == current else "no-store"
    return Response(body, media_type=kind, headers={"Cache-Control": kept, "X-Content-Type-Options": "nosniff"})
