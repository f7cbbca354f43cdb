"""The dashboard: how much, how fast, how dear and how wrong, over time and by what; each number leads to its steps.

What must stay true: what is over time comes from the store's sums; what is of single steps looks at so many of the
latest, and says of how many.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

from fastapi import Query, Request, Response
from markupsafe import Markup, escape

from stepwell._render import duration
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._listing import MESSAGES, top_filter
from stepwell.server.pages._page import Links, cost, count, moment, page
from stepwell.server.pages._plots import draw_bar, instant, stacked
from stepwell.store import Every, Rollup, RollupQuery, RunRow, StepFilter, StepRow, Store
from stepwell.store._language import format_query
from stepwell.store._summaries import DAY_NS, HOUR_NS

__all__ = ["router"]

router = Router(include_in_schema=False)

_RANGES: Final[dict[str, tuple[int, Every]]] = {
    "24h": (24 * HOUR_NS, "hour"),
    "7d": (7 * DAY_NS, "day"),
    "30d": (30 * DAY_NS, "day"),
    "90d": (90 * DAY_NS, "day"),
}
_LABELS: Final = {24: 4, 7: 1, 30: 6, 90: 15}  # so many hours or days have one label below them
_TYPES: Final = ("run", "llm", "tool", "retrieval", "embedding", "rerank")
_LOOKED_AT: Final = 500  # steps, and failed steps
_RUNS_LOOKED_AT: Final = 200  # whose sums are those of all steps below them
_SHOWN: Final = 8
_GROUPS: Final = 12
_NOTHING: Final = Rollup()

Span = Annotated[Literal["24h", "7d", "30d", "90d"] | None, Query()]
Kind = Annotated[Literal["", "run", "llm", "tool", "retrieval", "embedding", "rerank"], Query()]
Group = Annotated[Literal["name", "model", "user", "type", "environment"], Query()]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of bars; `legend` names its parts, `top` is the value at its upper edge. `drawn` are the bars and `told`
    the rows of a table that says the same, made here and not in a template because a page has hundreds of them.

    It has no bars where there is nothing to draw, so that nothing reported does not look like nothing spent.
    """

    title: str
    total: str
    top: str
    legend: tuple[str, str]
    kind: str
    drawn: str = ""
    told: str = ""


@dataclass(frozen=True, slots=True)
class _Axis:
    """The hours or days of a range; each one's name, and the address of its steps for an attribute."""

    starts: Sequence[int]
    names: Sequence[str]
    hrefs: Sequence[str]

    def chart(self, title: str, kind: str, rows: dict[int, Rollup], of: _Measure) -> Chart:
        """Draw what a measure says of each hour or day."""
        values = [of.values(rows.get(start, _NOTHING)) for start in self.starts]
        top, places = stacked(values)
        if not top:
            return Chart(title, "not reported", "", of.legend, kind)
        drawn, told = list[str](), list[str]()
        for place, name, href, pair in zip(places, self.names, self.hrefs, values, strict=True):
            says = escape(f"{name}: {of.says(*pair)}")
            drawn.append(draw_bar(place, says, href, hatched=kind == "volume"))
            told.append(f'<tr><td><a href="{href}">{says}</a></td></tr>')
        markup = Markup("".join(drawn)), Markup("".join(told))  # noqa: S704 (of what was escaped)
        return Chart(title, of.total(values), of.text(top), of.legend, kind, *markup)


def _axis(links: Links, starts: Sequence[int], span_ns: int, type: str) -> _Axis:
    hrefs = (links.to("steps", q=_of_time(type, start, start + span_ns)) for start in starts)
    return _Axis(starts, [instant(start, span_ns) for start in starts], [*map(escape, hrefs)])


@lru_cache(maxsize=1024)  # the same hours and days in every chart, and in the next one
def _of_time(type: str, since_ns: int, until_ns: int) -> str:
    return _query(type, since_ns, until_ns)


def _labels(starts: Sequence[int], every: Every) -> list[str]:
    """Return what stands below the bars, each below the first of as many bars."""
    read = ((moment(start) or {"day": ", "})["day"] for start in starts[:: _LABELS[len(starts)]])
    return [each.split(", ")[0 if every == "day" else 1] for each in read]


@dataclass(frozen=True, slots=True)
class _Measure:
    """What a chart shows of sums: two values, which add up where `adds`, and how they are written."""

    values: Callable[[Rollup], tuple[float, float]]
    text: Callable[[float], str]
    legend: tuple[str, str]
    adds: bool = True

    def says(self, low: float, high: float) -> str:
        """Write the values of one hour or day."""
        if not self.legend[1]:
            return f"{self.text(low)} {self.legend[0]}".strip()
        upper = high if self.adds else low + high
        return f"{self.text(low)} {self.legend[0]}, {self.text(upper)} {self.legend[1]}"

    def total(self, values: Sequence[tuple[float, float]]) -> str:
        """Write the sum of all, nothing where there is no sum."""
        return self.text(sum(low + high for low, high in values)) if self.adds else ""


def _money(amount: float) -> str:
    return cost(amount) or "$0"


def _time(ns: float) -> str:
    return duration(round(ns))


_CHARTS: Final = (
    (
        "Steps",
        "volume",
        _Measure(lambda row: (row.steps - row.errors, row.errors), count, ("without an error", "failed")),
    ),
    (
        "Duration",
        "speed",
        _Measure(
            lambda row: (row.p50_ns or 0, max((row.p95_ns or 0) - (row.p50_ns or 0), 0)),
            _time,
            ("median", "95th percentile"),
            adds=False,
        ),
    ),
    ("Tokens", "tokens", _Measure(lambda row: (row.input_tokens, row.output_tokens), count, ("input", "output"))),
    ("Cost", "cost", _Measure(lambda row: (row.cost, 0.0), _money, ("", ""))),
)


def _query(type: str, since_ns: int | None, until_ns: int | None = None, **more: Any) -> str:
    wanted: Any = (type,) if type else None
    return format_query(StepFilter(type=wanted, since_ns=since_ns, until_ns=until_ns, **more))


def _fitting(store: Store) -> str:
    """Return the range that shows most of what there is: 7 days, unless all is of one day or nothing is as young."""
    now = time.time_ns()
    since_ns = now // DAY_NS * DAY_NS - 89 * DAY_NS
    days = [row.start_ns or 0 for row in store.rollups(RollupQuery(every="day", since_ns=since_ns)) if row.steps]
    ages = [now - start for start in days if start <= now]
    if not ages:
        return "7d"
    if max(ages) < DAY_NS:
        return "24h"
    return next(name for name in ("7d", "30d", "90d") if min(ages) < _RANGES[name][0])


@router.get("/dashboard")
def dashboard(store: InStore, request: Request, span: Span = None, type: Kind = "", by: Group = "name") -> Response:
    """Show a range of time, of all steps or those of a type; without a range, the one that fits what there is."""
    shown = span or _fitting(store)
    length_ns, every = _RANGES[shown]
    step_ns = HOUR_NS if every == "hour" else DAY_NS
    until_ns = time.time_ns() // step_ns * step_ns + step_ns
    since_ns = until_ns - length_ns
    asked: dict[str, Any] = {"since_ns": since_ns, "until_ns": until_ns, "type": type or None}
    rows = {row.start_ns or 0: row for row in store.rollups(RollupQuery(every=every, **asked))}
    links = Links(request)
    starts = range(since_ns, until_ns, step_ns)
    axis = _axis(links, starts, step_ns, type)
    groups = sorted(store.rollups(RollupQuery(every=None, by=(by,), **asked)), key=_worth, reverse=True)
    recent = StepFilter(since_ns=since_ns, until_ns=until_ns)
    context = {
        "section": "dashboard",
        "spans": list(_RANGES),
        "span": shown,
        "types": _TYPES,
        "type": type,
        "by": by,
        "dimensions": ("name", "model", "user", "type", "environment"),
        "charts": [
            _runs_chart(store, axis, _axis(links, starts, step_ns, "run"), rows, of, asked | {"every": every})
            if kind == "speed" and not type
            else axis.chart(title, kind, rows, of)
            for title, kind, of in _CHARTS
        ],
        "labels": _labels(starts, every),
        "groups": [(row, getattr(row, by), _group_link(links, type, by, row, since_ns)) for row in groups[:_GROUPS]],
        "all_groups": len(groups),
        "looked_at": _LOOKED_AT,
        "runs_looked_at": _RUNS_LOOKED_AT,
        "empty": not any(row.steps for row in rows.values()),
        **_singles(store, links, recent, type),
    }
    return page(request, "dashboard.html", context)


def _runs_chart(  # noqa: PLR0917 (what the chart of durations is made of)
    store: Store, axis: _Axis, of_runs: _Axis, rows: dict[int, Rollup], of: _Measure, asked: dict[str, Any]
) -> Chart:
    """Draw the durations of runs: those of messages and tools beside them would say nothing. Without runs, of all."""
    of_type: dict[str, Any] = {**asked, "type": "run"}
    runs = {row.start_ns or 0: row for row in store.rollups(RollupQuery(**of_type))}
    if not any(row.duration_ns for row in runs.values()):
        return axis.chart("Duration", "speed", rows, of)
    return of_runs.chart("Duration of runs", "speed", runs, of)


def _worth(row: Rollup) -> tuple[float, int]:
    return row.cost, row.steps


def _group_link(links: Links, type: str, by: str, row: Rollup, since_ns: int) -> str | None:
    value = getattr(row, by)
    if value is None or (by == "type" and type):
        return None
    wanted: dict[str, Any] = {by: (value,)} if by == "type" else {by: value}
    return links.to("steps", q=_query("" if by == "type" else type, since_ns, None, **wanted))


def _singles(store: Store, links: Links, recent: StepFilter, type: str) -> dict[str, Any]:
    """Look at the latest runs, steps and errors of the range."""
    runs = store.runs(top_filter(recent, MESSAGES), limit=_RUNS_LOOKED_AT).items
    wanted: Any = (type,) if type else None
    steps = store.steps(StepFilter(type=wanted, since_ns=recent.since_ns), limit=_LOOKED_AT).items
    failed = store.steps(StepFilter(status="failed", type=wanted, since_ns=recent.since_ns), limit=_LOOKED_AT).items
    kinds = Counter((row.error_type, row.error_message) for row in failed)
    return {
        "dear": sorted((run for run in runs if run.spent), key=_spent, reverse=True)[:_SHOWN],
        "slow": sorted((row for row in steps if _took(row)), key=_took, reverse=True)[:_SHOWN],
        "failed": len(failed),
        "wrong": [
            (name, message, n, links.to("steps", q=_error_query(type, name, recent.since_ns)))
            for (name, message), n in kinds.most_common(_SHOWN)
        ],
    }


def _error_query(type: str, name: str | None, since_ns: int | None) -> str:
    return _query(type, since_ns, status="failed", error_type=name)


def _spent(run: RunRow) -> float:
    return run.spent or 0.0


def _took(row: StepRow) -> int:
    return 0 if row.end_ns is None or row.start_ns is None else max(row.end_ns - row.start_ns, 0)
