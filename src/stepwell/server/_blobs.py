"""`/v1/blobs`: attachments by the SHA-256 of their bytes.

What must stay true: a blob is under its name only when it is whole and has that hash; no browser ever runs one: what is
sent back is a download in a sandbox, and of no other type than an image or sound that its first bytes say.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path as FilePath
from typing import Annotated, Final

from fastapi import Depends, Header, Path, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse

from stepwell.blobs import BlobStore, Incoming
from stepwell.errors import StoreError, UsageError
from stepwell.server._access import InPlace, require
from stepwell.server._body import pieces_of
from stepwell.server._errors import ANY_ERROR, Problem
from stepwell.server._limits import Limits
from stepwell.server._places import Place
from stepwell.server._routing import Model, Router

__all__ = ["router", "type_of"]

MAX_ASKED: Final = 1000
_BUFFER: Final = 1024 * 1024
_OTHER: Final = "application/octet-stream"
_RANGE: Final = re.compile(r"bytes=(?:([0-9]{1,18})-([0-9]{1,18})?|-([0-9]{1,18}))")
_MARKS: Final = (  # of what a browser shows without running anything in it; SVG is not among them
    (b"\x89PNG\r\n\x1a\n", 0, "image/png"),
    (b"\xff\xd8\xff", 0, "image/jpeg"),
    (b"GIF87a", 0, "image/gif"),
    (b"GIF89a", 0, "image/gif"),
    (b"WEBP", 8, "image/webp"),
    (b"WAVE", 8, "audio/wav"),
    (b"OggS", 0, "audio/ogg"),
    (b"fLaC", 0, "audio/flac"),
    (b"ID3", 0, "audio/mpeg"),
)

router = Router(tags=["blobs"], responses=ANY_ERROR)

_HEX: Final = "^[0-9a-f]{64}$"
Sha256 = Annotated[str, Path(pattern=_HEX, description="64 lower-case hex digits.")]


class Asked(BaseModel):
    """Blobs that a client has."""

    sha256: list[Annotated[str, Field(pattern=_HEX)]] = Field(max_length=MAX_ASKED)


class Missing(Model):
    """Those of them that the server lacks."""

    missing: list[str]


@router.post("/v1/blobs/missing")
def missing(asked: Asked, place: Annotated[Place, Depends(require("ingest"))]) -> Missing:
    """Say which of these blobs are not here, so that the others need not be sent."""
    return Missing(missing=[sha256 for sha256 in dict.fromkeys(asked.sha256) if not place.blobs.has(sha256)])


@router.put(
    "/v1/blobs/{sha256}",
    status_code=204,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_OTHER: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_blob(sha256: Sha256, request: Request, place: InPlace) -> Response:
    """Store a blob; it must have the hash that it is named by."""
    limits: Limits = request.app.state.limits
    with ExitStack() as stack:
        try:
            incoming = await run_in_threadpool(_begin, stack, place.blobs)
            buffer = bytearray()
            async for piece in pieces_of(request, limits.blob_bytes, limits.body_s):
                buffer += piece
                if len(buffer) >= _BUFFER:
                    await run_in_threadpool(incoming.write, bytes(buffer))
                    buffer.clear()
            await run_in_threadpool(incoming.write, bytes(buffer))
            await run_in_threadpool(incoming.keep, sha256)
        except OSError as error:  # the disk is full, or can't be written
            raise StoreError(f"{place.blobs.folder} can't be written") from error
        except UsageError:
            raise Problem(422, f"the body does not have the SHA-256 {sha256}") from None
    return Response(status_code=204)


def _begin(stack: ExitStack, blobs: BlobStore) -> Incoming:
    return stack.enter_context(blobs.receiving())


@router.get(
    "/v1/blobs/{sha256}",
    response_class=FileResponse,
    responses={
        200: {"content": {_OTHER: {}, **{type: {} for _, _, type in _MARKS}}, "description": "The blob."},
        206: {"content": {_OTHER: {}}, "description": "The part of it that Range asks for."},
    },
)
def get_blob(
    sha256: Sha256, request: Request, place: InPlace, range: Annotated[str, Header(include_in_schema=False)] = ""
) -> FileResponse:
    """Return a blob, or the part of it that `Range` asks for."""
    path = place.blobs.path(sha256)
    if range and not _is_range(range, path.stat().st_size):
        others = [(name, value) for name, value in request.scope["headers"] if name != b"range"]
        request.scope["headers"] = others  # what `FileResponse` looks at
    headers = {
        "ETag": f'"{sha256}"',
        "Cache-Control": "private, max-age=31536000, immutable",
        "Content-Disposition": f'attachment; filename="{sha256}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
    }
    return FileResponse(path, headers=headers, media_type=_type_of(path))


def _is_range(text: str, size: int) -> bool:
    """Say whether this is one range; others are passed over, as RFC 9110 has it. Raises `Problem` for one not there."""
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return False
    first, last, suffix = (None if each is None else int(each) for each in match.groups())
    if (first is not None and first >= size) or suffix == 0 or not size:
        raise Problem(416, f"it has {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    return first is None or last is None or first <= last


def _type_of(path: FilePath) -> str:
    with path.open("rb") as file:
        return type_of(file.read(16)) or _OTHER


def type_of(head: bytes) -> str | None:
    """Return the type that the first 16 bytes of an image or sound say, None for any other."""
    return next((type for mark, at, type in _MARKS if head.startswith(mark, at)), None)
