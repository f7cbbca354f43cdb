"""A step by itself: its panel, the messages that a panel folds, its bytes, its media, and what people say of it."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse
from msgspec import UNSET, DecodeError, Raw, UnsetType, json
from starlette.concurrency import run_in_threadpool

from stepwell.errors import NotFoundError
from stepwell.model import StepRecord
from stepwell.server._access import InPlace, InStore
from stepwell.server._blobs import type_of
from stepwell.server._errors import Problem
from stepwell.server._routing import Router
from stepwell.server.pages._address import Address, Looked, RunLook
from stepwell.server.pages._content import mapping, media_in, messages_of, read
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._judging import VALUES, keep_judgement, read_form
from stepwell.server.pages._page import Links, page
from stepwell.server.pages._request import snippet_of
from stepwell.server.pages._review import bar_of
from stepwell.server.pages._runs import StepId, families_of, panel_context
from stepwell.server.pages._show import Show

__all__ = ["router"]

PAGE_MESSAGES: Final = 100

router = Router(include_in_schema=False)

_SANDBOX: Final = {
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
Field = Literal[
    "input", "output", "generation", "metadata", "messages", "message_completion", "prompt", "completion", "settings",
    "tools", "variables", "provider_request", "provider_response", "cost",
]  # fmt: skip
_NO_REVIEW: Final[dict[str, object]] = {"within": "", "review": "", "labels": "", "order": "desc", "cursor": None}
_OF_STEP: Final = frozenset(("input", "output", "generation", "metadata"))


@router.get("/steps/{id:path}")
def step_page(place: InPlace, request: Request, id: StepId, look: Looked, fragment: bool = False) -> Response:
    """Show a step alone; as a fragment it is what a run's page puts into its panel."""
    store = place.store
    review = None if fragment else bar_of(request, place, look, "steps", id)
    run_id = request.query_params.get("run", "")
    families = families_of(request)
    family = families.around(store, id)
    if run_id and run_id in family.by_id:
        family = families.of(store, run_id)
        if id not in family.by_id:
            family = families.around(store, id)
    address = Address(
        Links(request), family.root.step.id, look.model_copy(update={"step": id, **({} if fragment else _NO_REVIEW)})
    )
    context = panel_context(store, request, family, family.by_id[id], address, look)
    return page(
        request, "_panel.html" if fragment else "step.html", {**context, "alone": not fragment, "review": review}
    )


@router.get("/messages/{id:path}")
def messages_page(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore,
    request: Request,
    id: StepId,
    first: Annotated[int, Query(ge=0)] = 0,
    last: Annotated[int | None, Query(ge=0)] = None,
    plain: bool = False,
    fragment: bool = False,
) -> Response:
    """Show messages that a model call sent, from `first` up to `last` (excluded), a page at a time."""
    record = store.step(id)
    every = messages_of(generation_of(record).messages)
    end = len(every) if last is None else min(last, len(every))
    first = min(first, end)
    upto = min(end, first + PAGE_MESSAGES)
    context = {
        "record": record,
        "messages": every[first:upto],
        "first": first,
        "upto": upto,
        "end": end,
        "count_of_all": len(every),
        "page_messages": PAGE_MESSAGES,
        "show": Show(Links(request), id, plain=plain),
    }
    return page(request, "_messages.html" if fragment else "messages.html", context)


@router.get("/raw/{field}/{id:path}")
def raw(
    store: InStore, field: Field, id: StepId, at: Annotated[int | None, Query(ge=0)] = None, text: bool = False
) -> Response:
    """Return a payload's bytes as they were recorded, or of its messages the one `at` a place.

    With `text`, what it says: a string without quotes and escapes, of a message its content.
    """
    payload = _payload(store.step(id), field, at)
    body = _said(payload).encode("utf-8", "replace") if text else bytes(payload)
    return Response(body, media_type="text/plain; charset=utf-8", headers=_SANDBOX)


def _payload(record: StepRecord, field: Field, at: int | None) -> Raw:
    payload: Raw | UnsetType = getattr(record if field in _OF_STEP else generation_of(record), field)
    if payload is UNSET:
        raise NotFoundError(f"step {record.id!r} has no {field}")
    if at is None:
        return payload
    try:
        return json.decode(payload, type=list[Raw])[at]
    except (DecodeError, UnicodeDecodeError, IndexError):
        raise NotFoundError(f"the {field} of step {record.id!r} have no number {at}") from None


def _said(payload: Raw) -> str:
    value = read(payload)
    content = mapping(value).get("content")
    value = content if isinstance(content, str) else value
    return value if isinstance(value, str) else json.format(bytes(payload), indent=2).decode("utf-8", "replace")


@router.get("/media/{digest}/{id:path}")
def media(store: InStore, digest: str, id: StepId) -> Response:
    """Return an image or file that stands as base64 in a step's payloads; anything else than an image is a download."""
    record = store.step(id)
    for payload in (record.input, record.output, record.generation, record.metadata):
        data = media_in(read(payload), digest)
        if data is not None:
            kind = type_of(data[:16])
            headers = {**_SANDBOX, "Content-Disposition": "inline" if kind else "attachment"}
            headers["Cache-Control"] = "private, max-age=31536000, immutable"
            return Response(data, media_type=kind or "application/octet-stream", headers=headers)
    raise NotFoundError(f"step {id!r} holds no such file")


@router.get("/request/{language}/{id:path}")
def request_of(store: InStore, language: Literal["curl", "python"], id: StepId) -> Response:
    """Return a model call as something to run: the key is taken from the environment."""
    record = store.step(id)
    text = snippet_of(generation_of(record), language)
    if text is None:
        raise NotFoundError(f"step {id!r} has no messages or prompt to send again")
    return Response(text, media_type="text/plain; charset=utf-8", headers=_SANDBOX)


@router.post("/judge/{id:path}")
async def judge(store: InStore, request: Request, id: StepId) -> Response:
    """Take a form's judgement of a step, and go back to it; the guard has refused other origins."""
    form = await read_form(request)
    label = form.get("label", "")
    if label not in {*VALUES, ""}:
        raise Problem(422, "expected positive or negative")
    await run_in_threadpool(keep_judgement, store, id, "feedback", label, form.get("comment", "").strip())
    links, run_id = Links(request), form.get("run", "")
    back = Address(links, run_id, RunLook(step=id)).to() if run_id else links.to("steps", id)
    return RedirectResponse(f"{back}#scores", 303)
