"""Markdown as people read it, made of text that nobody trusts.

What must stay true: nothing that was written is lost: tags are text, single line breaks are breaks, images are the text
that they were written as (a page loads nothing from elsewhere); and links lead only to http, https and mail.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

__all__ = ["is_markdown", "markdown_html"]

# What only Markdown has: headings, fences, lists, quotes, tables, bold and code.
_SIGNS: Final = re.compile(
    r"^ {0,3}(?:#{1,6} \S|```|~~~|[-*+] +\S|\d{1,3}[.)] +\S|> |\|.*\|\s*$)|\*\*[^*\s][^*\n]*\*\*|`[^`\n]+`|\]\(https?://",
    re.MULTILINE,
)
_LINK: Final = re.compile(r"(?:https?|mailto):", re.IGNORECASE)


def is_markdown(text: str) -> bool:
    """Say whether a text has anything that reads better as Markdown."""
    return _SIGNS.search(text) is not None


@lru_cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # of all that pages need what takes longest to import: no start waits for it

    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 20})
    parser.enable(["table", "strikethrough"]).disable(["image", "html_block", "html_inline", "entity", "reference"])
    parser.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    return parser


def markdown_html(text: str) -> Markup:
    """Return a text's Markdown as HTML. Headings begin below those of the page."""
    parser = _parser()
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in {"heading_open", "heading_close"}:
            token.tag = f"h{min(int(token.tag[1]) + 3, 6)}"
        for inner in token.children or ():
            if inner.type == "link_open":
                inner.attrSet("rel", "noreferrer noopener nofollow")
    return Markup(parser.renderer.render(tokens, parser.options, {}))  # noqa: S704 (its tokens are escaped: html is off)
