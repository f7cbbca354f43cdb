"""A run as a file to read or to keep: Markdown, or its records as JSON lines.

What must stay true: nothing is left out of the JSON, and what the Markdown leaves out it counts; what was recorded
can't end the fences it stands in. A run is streamed: its size is bounded by nothing here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, Literal

from fastapi import Request
from fastapi.responses import StreamingResponse
from msgspec import UNSET, Raw, UnsetType, json

from stepwell._answers import in_full
from stepwell._render import duration
from stepwell.model import encode_record
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._content import read, without_base64
from stepwell.server.pages._entry import generation_of
from stepwell.server.pages._rows import Family
from stepwell.server.pages._runs import StepId, families_of
from stepwell.store import Store

__all__ = ["as_file", "lines_of_run", "markdown_of", "router"]

MAX_TEXT: Final = 20_000
_TICKS: Final = re.compile(r"`{3,}")

router = Router(include_in_schema=False)


@router.get("/export/{form}/{id:path}")
def export(store: InStore, request: Request, form: Literal["md", "jsonl"], id: StepId) -> StreamingResponse:
    """Send a run as a file."""
    family = families_of(request).of(store, id)
    if form == "jsonl":
        return StreamingResponse(
            lines_of_run(store, family), media_type="application/x-ndjson", headers=as_file("jsonl")
        )
    text = (part.encode("utf-8", "replace") for part in markdown_of(store, family))
    return StreamingResponse(text, media_type="text/markdown; charset=utf-8", headers=as_file("md"))


def as_file(ending: str) -> dict[str, str]:
    """Return the headers of a run that is sent as a file, which no browser opens as a page of ours."""
    return {
        "Content-Disposition": f'attachment; filename="run.{ending}"',
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
    }


def lines_of_run(store: Store, family: Family) -> Iterator[bytes]:
    """Yield a run's records as lines."""
    for record in in_full(store, [row.step.id for row in family.rows]):
        yield encode_record(record) + b"\n"


def markdown_of(store: Store, family: Family) -> Iterator[str]:
    """Yield a run as Markdown: a heading a step, and what went in and came out; of messages what came last."""
    sums = family.root.sums
    for record in in_full(store, [row.step.id for row in family.rows]):
        row = family.by_id[record.id]
        name = " ".join((record.name or record.id).split())
        took = "" if row.duration_ns is None else f", {duration(row.duration_ns)}"
        state = "" if record.status in {"success", None} else f", {record.status}"
        yield f"{'#' * min(row.depth + 1, 6)} {_escaped(name)} ({record.type or 'step'}{took}{state})\n\n"
        if row is family.root:
            yield f"{sums.steps:,} steps, {sums.calls:,} model calls, {sums.tools:,} tools, {sums.errors:,} failed\n\n"
        if record.error is not None:
            yield _block("Error", f"{record.error.type or ''}: {record.error.message or ''}")
        generation = generation_of(record)
        yield _payload("Messages", generation.messages, last=True)
        for label, payload in (
            ("Prompt", generation.prompt),
            ("Answer", generation.message_completion),
            ("Completion", generation.completion),
            ("Input", record.input),
            ("Output", record.output),
        ):
            yield _payload(label, payload)


def _payload(label: str, payload: Raw | UnsetType, *, last: bool = False) -> str:
    if payload is UNSET:
        return ""
    value = read(payload)
    if last and isinstance(value, list) and value:
        count = len(value)  # pyright: ignore[reportUnknownArgumentType]
        return _block(f"Last of {count:,} messages", json.format(json.encode(value[-1]), indent=2).decode())
    return _block(label, value if isinstance(value, str) else json.format(bytes(payload), indent=2).decode())


def _block(label: str, text: str) -> str:
    longest = max((len(run) for run in _TICKS.findall(text)), default=2)
    fence = "`" * max(longest + 1, 3)
    cut = f"\n({MAX_TEXT:,} of {len(text):,} characters)" if len(text) > MAX_TEXT else ""
    return f"{label}:\n\n{fence}\n{without_base64(text[:MAX_TEXT])}{cut}\n{fence}\n\n"


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", text)
