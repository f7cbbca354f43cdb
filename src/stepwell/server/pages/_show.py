"""Parts of content as HTML: text, Markdown, JSON, images and files, each of a step whose payload they stand in."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup, escape

from stepwell._render import size
from stepwell.server.pages._content import Part
from stepwell.server.pages._json import Budget, json_html
from stepwell.server.pages._markdown import is_markdown, markdown_html
from stepwell.server.pages._page import Links

__all__ = ["Show"]


class Show:
    """Shows what a step holds. `plain` leaves Markdown as the text it is."""

    def __init__(self, links: Links, step_id: str, *, plain: bool = False, budget: Budget | None = None) -> None:
        self.plain = plain
        self.has_markdown = False
        self._links = links
        self._step_id = step_id
        self._budget = budget or Budget()

    def json(self, value: Any) -> Markup:
        """Show a decoded value."""
        return json_html(value, self._budget, self._media)

    def part(self, part: Part, raw: str | None = None) -> Markup:
        """Show a part; `raw` is where all of it is, where it is cut."""
        if part.kind == "json":
            return self.json(part.value)
        if part.kind in {"image", "file"}:
            return self._media(part)
        return self._text(part, raw)

    def _text(self, part: Part, raw: str | None) -> Markup:
        if part.left_out:
            note = Markup('<p class="cut">{:,} of {:,} characters are left out here{}</p>').format(
                part.left_out,
                part.characters,
                Markup(': <a href="{}" rel="nofollow">all of it</a>').format(raw) if raw else "",
            )
            return Markup('<div class="text" dir="auto">{}</div>{}<div class="text" dir="auto">{}</div>').format(
                part.text, note, part.tail
            )
        if part.kind == "text" and is_markdown(part.text):
            self.has_markdown = True
            if not self.plain:
                return Markup('<div class="md" dir="auto">{}</div>').format(markdown_html(part.text))
        kind = " thinking" if part.kind == "thinking" else ""
        return Markup(f'<div class="text{kind}" dir="auto">{escape(part.text)}</div>')  # noqa: S704 (a constant, and escaped)

    def _media(self, part: Part) -> Markup:
        note = ", ".join([part.mime or "file", *([] if part.size is None else [size(part.size)])])
        if part.sha256:
            address = self._links.to("v1", "blobs", part.sha256)
        elif part.digest:
            address = self._links.to("media", part.digest, self._step_id)
        else:
            return Markup('<span class="note">{} (its bytes were not kept)</span>').format(note)
        if part.kind == "image":
            return Markup(
                '<a class="shot" href="{0}"><img class="thumb" src="{0}" alt="{1}" loading="lazy" width="240" '
                'height="160"></a> <span class="note">{1}</span>'
            ).format(address, note)
        return Markup('<a class="file" href="{}" download>{}</a>').format(address, note)
