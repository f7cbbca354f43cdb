"""`POST /v1/traces` and `POST /v1/logs`: OTLP over HTTP, answered when what came is committed.

Spans become steps, log records that are events of the GenAI conventions become parts of the steps they belong to
(`otel.semconv`); other log records are not kept, and the answer says how many. Langfuse's SDK is taken at its own path.
What must stay true: all that a client gets is in the encoding that it sent, errors included (`google.rpc.Status`).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Final

from fastapi import Header, Request, Response
from msgspec import UNSET, Raw, UnsetType

from stepwell.errors import NotFoundError
from stepwell.model import encode_record
from stepwell.otel.semconv import records_of_events, step_of
from stepwell.server import _otlp_wire as wire
from stepwell.server._access import InStore
from stepwell.server._body import too_large
from stepwell.server._errors import ANY_ERROR, Problem, RpcStatus
from stepwell.server._ingest import ERROR_CHARACTERS, Answer, Ingest, Lines, Reader
from stepwell.server._limits import Limits
from stepwell.server._routing import Router
from stepwell.store import AddResult, Store

__all__ = ["router"]

router = Router(tags=["otlp"], responses=ANY_ERROR)

_TYPES: Final = (wire.PROTOBUF, wire.JSON)
_BYTES: Final = {"schema": {"type": "string", "format": "binary"}}
_ERROR: Final[dict[int | str, dict[str, Any]]] = {
    "default": {"model": RpcStatus, "description": "An error", "content": {wire.PROTOBUF: _BYTES}}
}
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": dict.fromkeys(_TYPES, _BYTES),
    },
    "responses": {
        "200": {
            "description": "What was taken, and how much was not",
            "content": dict.fromkeys(_TYPES, _BYTES),
        }
    },
}
_ContentType = Annotated[str, Header(include_in_schema=False)]


@router.post("/v1/traces", responses=_ERROR, openapi_extra=_BODY)
@router.post("/api/public/otel/v1/traces", include_in_schema=False)  # where Langfuse's SDK sends to
async def traces(request: Request, store: InStore, content_type: _ContentType = "") -> Response:
    """Take spans: `ExportTraceServiceRequest`."""
    return await _take(request, store, "spans", content_type)


@router.post("/v1/logs", responses=_ERROR, openapi_extra=_BODY)
async def logs(request: Request, store: InStore, content_type: _ContentType = "") -> Response:
    """Take log records: `ExportLogsServiceRequest`."""
    return await _take(request, store, "logs", content_type)


async def _take(request: Request, store: Store, signal: wire.Signal, content_type: str) -> Response:
    type = content_type.partition(";")[0].strip().lower()
    if type not in _TYPES:
        raise Problem(415, f"OTLP is taken as {' or '.join(_TYPES)}")
    ingest: Ingest = request.app.state.ingest
    reader = Reader(partial(_read, signal, type), of_store=signal == "logs")
    return Response(await ingest.take(request, store, reader), media_type=type)


def _read(signal: wire.Signal, type: str, body: bytes, store: Store, limits: Limits) -> Lines:
    try:
        said = wire.read(signal, type, body, limits.lines)
    except wire.TooManyError as error:
        raise Problem(413, str(error)) from None
    except ValueError as error:
        raise Problem(400, str(error)) from None
    rejected, problem = said.rejected, said.error
    if signal == "spans":
        lines = [encode_record(step_of(span, origin)) for span, origin in said.items]
    else:
        events = records_of_events(said.items, partial(_generation_of, store))
        lines = [encode_record(record) for record in events.records]
        rejected += events.others
        if events.others:
            problem = problem or "log records are kept that are events of the GenAI conventions"
    large = too_large("a record", limits.line_bytes)
    fitting = [line for line in lines if len(line) <= limits.line_bytes]
    rejected += len(lines) - len(fitting)
    problem = problem or (str(large.detail) if len(fitting) < len(lines) else "")

    def answer(result: AddResult) -> Answer:
        refused = result.rejected
        count = rejected + len(refused)
        why = problem or (refused[0].error[:ERROR_CHARACTERS] if refused else "")
        counts = {"accepted": result.accepted, "duplicate": result.duplicates, "rejected": count}
        return Answer(counts, wire.answer(signal, type, count, why))

    return Lines(fitting, answer)


def _generation_of(store: Store, id: str) -> Raw | UnsetType:
    try:
        return store.step(id).generation
    except NotFoundError:
        return UNSET
