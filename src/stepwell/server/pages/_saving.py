"""A run as one HTML file: to send to somebody, to keep, to open without a server.

What must stay true: the file loads nothing and runs nothing (its policy allows its own style and the images in it);
what was recorded reaches it only through Jinja's escaping, as on the pages; and what is not in it, it says.
"""

from __future__ import annotations

import time
from base64 import b64encode
from hashlib import sha256
from typing import Final

from fastapi import Request, Response
from markupsafe import Markup

from stepwell._answers import Place
from stepwell._render import size
from stepwell.errors import NotFoundError, UsageError
from stepwell.model import Attachment, StepRecord
from stepwell.server._access import InPlace
from stepwell.server._blobs import type_of
from stepwell.server._routing import Router
from stepwell.server.pages._content import Part, media_in, read
from stepwell.server.pages._entry import lines_of
from stepwell.server.pages._json import Budget
from stepwell.server.pages._page import render, static_file
from stepwell.server.pages._panel import panel_of
from stepwell.server.pages._rows import Family
from stepwell.server.pages._runs import StepId, families_of
from stepwell.server.pages._sharing import as_file
from stepwell.server.pages._show import Show

__all__ = ["router", "saved_page"]

MAX_STEPS: Final = 2_000  # in full; of the others one line
MAX_CHARACTERS: Final = 20_000_000  # then no more steps in full
MAX_IMAGE: Final = 1 << 20
MAX_IMAGES: Final = 10 << 20
_STYLES: Final = ("app.css", "run.css", "saved.css")

router = Router(include_in_schema=False)


@router.get("/save/{id:path}")
def save(place: InPlace, request: Request, id: StepId) -> Response:
    """Send a run as one HTML file."""
    family = families_of(request).of(place.store, id)
    return Response(saved_page(place, family), media_type="text/html; charset=utf-8", headers=as_file("html"))


def saved_page(place: Place, family: Family, *, max_steps: int = MAX_STEPS) -> bytes:
    """Return a run as the bytes of an HTML file, the first `max_steps` steps in full."""
    images = Images(place)
    steps, brief, characters = list[Markup](), 0, 0
    for row in family.rows:
        full = len(steps) < max_steps and characters < MAX_CHARACTERS
        panel = panel_of(place.store, family, row) if full else None
        record = place.store.step(row.step.id) if panel is None else panel.record
        brief += not full
        text = render(
            "_saved_step.html", {"row": row, "lines": lines_of(record), "panel": panel, "show": Saved(images, record)}
        )
        characters += len(text)
        steps.append(Markup(text))  # noqa: S704 (a template of ours made it)
    style = "".join(static_file(name)[0].decode() for name in _STYLES)
    mark = b64encode(sha256(style.encode()).digest()).decode()
    context = {
        "family": family,
        "lines": lines_of(place.store.step(family.root.step.id)),
        "policy": f"default-src 'none'; style-src 'sha256-{mark}'; img-src data:; base-uri 'none'; form-action 'none'",
        "style": Markup(style),  # noqa: S704 (a file of ours)
        "saved_ns": time.time_ns(),
        "steps": steps,
        "brief": brief,
        "left_out": images.left_out,
    }
    return render("saved.html", context).encode("utf-8", "replace")


class Images:
    """The images that go into a file, up to a bound; those that don't are counted."""

    def __init__(self, place: Place) -> None:
        self.left_out = 0
        self._place = place
        self._left = MAX_IMAGES

    def blob(self, sha256: str) -> str | None:
        """Return a blob's image as an address, None where it is none, too large, or not here."""
        try:
            path = self._place.blobs.path(sha256)
            data = path.read_bytes() if path.stat().st_size <= MAX_IMAGE else None
        except (NotFoundError, UsageError, OSError):
            data = None
        return self.address(data)

    def address(self, data: bytes | None) -> str | None:
        """Return an image's bytes as an address, None where they are none, or too many."""
        kind = None if data is None else type_of(data[:16])
        if data is None or kind is None or not kind.startswith("image/") or len(data) > min(MAX_IMAGE, self._left):
            self.left_out += 1
            return None
        self._left -= len(data)
        return f"data:{kind};base64,{b64encode(data).decode()}"


class Saved(Show):
    """Shows what a step holds without a link to anywhere: images are in the file."""

    def __init__(self, images: Images, record: StepRecord) -> None:
        self.plain = False
        self.has_markdown = False
        self._budget = Budget()
        self._images = images
        self._record = record

    def attachment(self, file: Attachment) -> Markup:
        """Show a file that was attached."""
        return self._media(Part("image", sha256=file.sha256, mime=file.mime, size=file.size))

    def _media(self, part: Part) -> Markup:
        note = ", ".join([part.mime or "file", *([] if part.size is None else [size(part.size)])])
        address = self._images.blob(part.sha256) if part.sha256 else self._images.address(self._inline(part.digest))
        if address is None:
            return Markup('<span class="note">{} (not in this file)</span>').format(note)
        return Markup('<img class="thumb" src="{}" alt="{}"> <span class="note">{}</span>').format(address, note, note)

    def _inline(self, digest: str | None) -> bytes | None:
        if digest is None:
            return None
        record = self._record
        payloads = (record.input, record.output, record.generation, record.metadata)
        return next((data for payload in payloads if (data := media_in(read(payload), digest)) is not None), None)
