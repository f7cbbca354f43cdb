"""JSON as people read it: nested blocks that fold, with strings as text and the lines in them as lines.

What must stay true: all that was recorded is escaped here; what is left out is counted where it is left out; and the
work and the page are bounded by a budget of nodes, whatever the value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from markupsafe import Markup
from msgspec import json

from stepwell.server.pages._content import Part, json_in, media_of, without_base64

__all__ = ["Budget", "json_html"]

MAX_DEPTH: Final = 12
MAX_MEMBERS: Final = 60
MAX_STRING: Final = 2_000
_OPEN_DEPTH: Final = 3
_ON_ONE_LINE: Final = 72
_NO_KEY: Final = Markup("")

Media = Callable[[Part], Markup]


class Budget:
    """How many more nodes a page may have for JSON."""

    def __init__(self, nodes: int = 400) -> None:
        self.left = nodes


def json_html(value: Any, budget: Budget, media: Media) -> Markup:
    """Return a value as HTML; `media` shows an image or file that a string is found to be."""
    return Markup('<div class="j">') + Markup("").join(_node(value, 0, budget, media)) + Markup("</div>")


def _node(value: Any, depth: int, budget: Budget, media: Media, key: Markup = _NO_KEY) -> Iterator[Markup]:
    """Yield a value, after its key; that of an object or array is what folds it."""
    budget.left -= 1
    if isinstance(value, str):
        yield from _string(value, depth, budget, media, key)
    elif isinstance(value, dict):
        fields = cast("Mapping[str, Any]", value)
        found = media_of(fields)
        if found is not None:
            yield key + media(found)
        else:
            members = [(str(name), inner) for name, inner in fields.items()]
            yield from _members(members, "{}", depth, budget, media, key)
    elif isinstance(value, list):
        elements = cast("Sequence[Any]", value)
        members = [(str(at), inner) for at, inner in enumerate(elements)]
        yield from _members(members, "[]", depth, budget, media, key)
    else:
        kind = "jn" if isinstance(value, int | float) and not isinstance(value, bool) else "jk"
        yield Markup('{}<span class="{}">{}</span>').format(key, kind, _plain(value))


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else json.encode(value).decode()


def _string(text: str, depth: int, budget: Budget, media: Media, key: Markup) -> Iterator[Markup]:
    found = media_of(text)
    if found is not None:
        yield key + media(found)
        return
    inner = json_in(text) if depth < MAX_DEPTH else None
    if inner is not None:
        label = key + Markup('<span class="note">JSON in a string</span> ')
        yield from _node(inner, depth + 1, budget, media, label)
        return
    shown = without_base64(text[:MAX_STRING])
    note = _left_out(MAX_STRING, len(text), "characters") if len(text) > MAX_STRING else _NO_KEY
    kind = "js block" if "\n" in shown else "js"
    yield Markup('{}<span class="{}" dir="auto">{}</span>{}').format(key, kind, shown, note)


def _left_out(shown: int, of: int, what: str) -> Markup:
    return Markup(' <span class="cut">{:,} of {:,} {} shown: the rest is in raw</span>').format(shown, of, what)


def _members(  # noqa: PLR0917 (what every node is given)
    members: Sequence[tuple[str, Any]], signs: str, depth: int, budget: Budget, media: Media, key: Markup
) -> Iterator[Markup]:
    is_list = signs == "[]"
    line = _one_line([inner for _, inner in members]) if is_list else None
    if not members or line is not None:
        yield Markup('{}<span class="{}">{}</span>').format(key, "jn" if members else "jp", line or signs)
        return
    if depth >= MAX_DEPTH or budget.left <= 0:
        yield Markup('{}<span class="cut">{}…{} {:,} inside: see raw</span>').format(key, *signs, len(members))
        return
    if depth:
        yield Markup("<details{}><summary>").format(Markup(" open") if depth < _OPEN_DEPTH else "")
        yield Markup('{}<span class="jp">{}{}{}</span></summary>').format(key, signs[0], len(members), signs[1])
    shown = 0
    for name, inner in members[:MAX_MEMBERS]:
        if budget.left <= 0:
            break
        shown += 1
        yield Markup('<div class="jm">')
        yield from _node(inner, depth + 1, budget, media, _label(name, is_list=is_list))
        yield Markup("</div>")
    if shown < len(members):
        yield Markup("<p>") + _left_out(shown, len(members), "elements" if is_list else "members") + Markup("</p>")
    if depth:
        yield Markup("</details>")


def _label(name: str, *, is_list: bool) -> Markup:
    kind = "jk at" if is_list else "jk"
    return Markup('<span class="{}" dir="auto">{}:</span> ').format(kind, without_base64(name[:MAX_STRING]))


def _one_line(elements: Sequence[Any]) -> str | None:
    """Return a short list of numbers and words as it is written, so that it takes one line."""
    if len(elements) > _ON_ONE_LINE or not all(isinstance(each, int | float | str | None) for each in elements):
        return None
    if sum(len(each) if isinstance(each, str) else 8 for each in elements) > _ON_ONE_LINE:
        return None
    return json.encode(elements).decode()
