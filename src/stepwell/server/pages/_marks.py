"""How the rows of a list were judged: name and value of their latest scores, the same few names in every row.

What must stay true: a row shows no more than `MAX_SHOWN` and says how many others there are. It is made here and not in
a template because a page may have hundreds of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Final

from fastapi import Request
from markupsafe import Markup, escape

from stepwell.server.pages._listing import Listed
from stepwell.server.pages._page import Links, count
from stepwell.store import Judgements, StepRow, Store

__all__ = ["judged_html"]

MAX_SHOWN: Final = 3


def judged_html(request: Request, store: Store, page: str, listed: Listed[Any] | None) -> dict[str, Markup]:
    """Return the marks of those rows that have scores, by id; `page` is where a row leads to: `runs` or `steps`.

    Feedback stands with the title of its row.
    """
    rows = {} if listed is None else {row.id: row for row in listed.items}
    links, mark = Links(request), cache(_mark)
    found = store.judgements(list(rows))
    return {id: _row_html(each, links, page, rows[id], mark) for id, each in found.items()}


def _row_html(found: Judgements, links: Links, page: str, row: StepRow, mark: Callable[..., str]) -> Markup:
    scores = [score for score in found.latest if score.name != "feedback" or row.feedback is None]
    marks = [mark(score.name, score.label, score.value) for score in scores[:MAX_SHOWN]]
    if len(scores) > MAX_SHOWN or found.more:
        address, of = escape(links.to(page, row.id)), " of the last 100 scores" if found.more else ""
        marks.append(f'<a class="quiet" href="{address}#scores">+{max(len(scores) - MAX_SHOWN, 0)} more{of}</a> ')
    return Markup("".join(marks))  # noqa: S704 (of what was escaped)


def _mark(name: str | None, label: str | None, value: float | None) -> str:
    shown, said = escape(name or "score"), escape(label or count(value))
    return f'<span class="score" title="{shown}">{shown}{f" <b>{said}</b>" if said else ""}</span> '
