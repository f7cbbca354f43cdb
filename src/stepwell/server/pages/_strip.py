"""The strip over a list: when what it shows happened, and the same list of a part of that time.

What must stay true: it costs no more than the list's facets and the store's sums. It counts all that the search shows,
or says what it counts. Each bar, and each stretch of bars, is an address of the list.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from markupsafe import Markup, escape

from stepwell.server.pages._listing import Found
from stepwell.server.pages._page import Links, count
from stepwell.server.pages._plots import Scale, draw_bar, instant, scale_of, stacked
from stepwell.store import Facets, HistogramBin, StepFilter, Store
from stepwell.store._language import split_terms, time_text

__all__ = ["Strip", "strip_of"]

_LEAST: Final = 6.0  # percent; a failure among thousands is seen
_FEW: Final = 6  # bars that the sums have for the time; the latest rows tell more about less
_FAILED: Final = {"threads": "with failures"}


@dataclass(frozen=True, slots=True)
class Strip:
    """A list over time: bars, what stands below them, where the rows of this page are, and links to more time."""

    bars: Markup
    ticks: Sequence[tuple[float, str]]
    here: tuple[float, float] | None
    counted: str
    failed: str
    about: str
    wider: str | None
    whole: str | None


@dataclass(frozen=True, slots=True)
class _Times:
    """What there is to draw, and what has to be said of it."""

    scale: Scale
    bins: Iterable[tuple[int, int, int]]  # a time, how many, and how many of them failed
    latest: bool = False
    since_ns: int | None = None
    undated: int = 0


def strip_of(  # noqa: PLR0917 (what a list is)
    links: Links,
    store: Store,
    section: str,
    found: Found,
    filter: StepFilter | None,
    facets: Facets,
    rows: Sequence[int],
) -> Strip | None:
    """Return the strip of a list, None where it would tell nothing; `rows` are the times of the page's rows.

    `filter` is that of its steps, None for a list of threads.
    """
    times = _times(store, found, filter, facets)
    narrowed = found.filter.since_ns is not None or found.filter.until_ns is not None
    if times is None or (times.scale.bars == 1 and not narrowed):
        return None
    scale, sums = times.scale, [[0, 0] for _ in range(times.scale.bars)]
    for ns, n, failed in times.bins:
        bin = sums[scale.at(ns)]
        bin[0] += n - failed
        bin[1] += failed
    _, places = stacked([(fine, failed) for fine, failed in sums], _LEAST)
    narrow = _Narrowing(links, found, section)
    bars = [
        draw_bar(place, escape(narrow.says(scale, at, *sums[at])), escape(href), sum(sums[at]), hatched=True)
        for at, (place, href) in enumerate(zip(places, narrow.hrefs(scale), strict=True))
        if any(sums[at])
    ]
    errors, all_of = sum(failed for _, failed in sums), sum(map(sum, sums))
    return Strip(
        Markup("".join(bars)),  # noqa: S704 (of what was escaped)
        scale.ticks(),
        _here(scale, rows),
        f"{'latest ' if times.latest else ''}{_several(all_of, section)}",
        f"{count(errors)} {_FAILED.get(section, 'failed')}" if errors else "",
        _about(times),
        narrow.wider(),
        narrow.whole() if narrowed else None,
    )


def _times(store: Store, found: Found, filter: StepFilter | None, facets: Facets) -> _Times | None:
    """Return all that the list has, by single rows or else by the store's sums; else the latest of it."""
    starts = [ns for ns, _ in facets.times]
    if not starts:
        return None
    rows = ((ns, 1, int(failed)) for ns, failed in facets.times)
    undated = facets.counted - len(starts)
    if not facets.more:
        return _Times(_scale(found, min(starts), max(starts)), rows, undated=undated)
    summed = None if filter is None else store.histogram(filter)
    if summed is not None and summed.bins:
        first, last = summed.bins[0].start_ns, summed.bins[-1].end_ns - 1
        scale = _scale(found, first, last, summed.since_ns, max(_length(bin) for bin in summed.bins))
        if scale.bars >= _FEW:
            bins = ((bin.start_ns, bin.steps, bin.errors) for bin in summed.bins)
            return _Times(scale, bins, since_ns=summed.since_ns, undated=summed.undated)
    return _Times(scale_of(min(starts), max(starts)), rows, latest=True, undated=undated)


def _scale(found: Found, first_ns: int, last_ns: int, since_ns: int | None = None, least_ns: int = 1) -> Scale:
    """Return the scale of the time that the query names, else of what there is; `since_ns` is where the sums begin."""
    since_ns, until_ns = found.filter.since_ns if since_ns is None else since_ns, found.filter.until_ns
    return scale_of(
        first_ns if since_ns is None else min(since_ns, first_ns),
        last_ns if until_ns is None else max(until_ns - 1, last_ns),
        least_ns,
    )


def _length(bin: HistogramBin) -> int:
    return bin.end_ns - bin.start_ns


def _several(n: int, section: str) -> str:
    return f"{count(n)} {section if n != 1 else section[:-1]}"


def _here(scale: Scale, rows: Sequence[int]) -> tuple[float, float] | None:
    """Return where the rows of the page are, None where they are all over the strip or not in it."""
    if not rows:
        return None
    low, high = scale.share(min(rows)), scale.share(max(rows))
    outside = max(rows) < scale.start_ns or min(rows) >= scale.start_ns + scale.step_ns * scale.bars
    return None if outside or high - low > 90 else (round(min(low, 99.5), 2), round(max(high - low, 0.5), 2))


def _about(times: _Times) -> str:
    said = [f"a bar is {times.scale.step()}, UTC"]
    if times.since_ns is not None:
        said.append(f"from {instant(times.since_ns, 60_000_000_000)}")
    if times.undated:
        said.append(f"{count(times.undated)} without a time")
    return "; ".join(said)


class _Narrowing:
    """The addresses of a list with other bounds of time."""

    def __init__(self, links: Links, found: Found, section: str) -> None:
        terms = (term for term in split_terms(found.text) if not term.startswith(("since:", "until:")))
        self._rest = " ".join(terms)
        self._links, self._section = links, section
        self._since_ns, self._until_ns = found.filter.since_ns, found.filter.until_ns

    def says(self, scale: Scale, at: int, fine: int, failed: int) -> str:
        """Say what a bar is."""
        what = _several(fine + failed, self._section)
        more = f", {count(failed)} {_FAILED.get(self._section, 'failed')}" if failed else ""
        return f"{instant(scale.start_ns + at * scale.step_ns, scale.step_ns)}: {what}{more}"

    def hrefs(self, scale: Scale) -> list[str]:
        """Return the list of each bar, within the bounds that it has already."""
        low, high = self._since_ns or 0, self._until_ns
        edges = [scale.start_ns + at * scale.step_ns for at in range(scale.bars + 1)]
        texts = [time_text(max(ns, low) if high is None else min(max(ns, low), high)) for ns in edges]
        to = self._links.each_here("q", cursor=None, back=None)
        return [to(f"{self._rest} since:{first} until:{end}".strip()) for first, end in pairwise(texts)]

    def wider(self) -> str | None:
        """Return the list with as much time again on each side that has a bound."""
        if self._since_ns is None:
            return None
        length_ns = (time.time_ns() if self._until_ns is None else self._until_ns) - self._since_ns
        if length_ns <= 0:
            return None
        until_ns = None if self._until_ns is None else self._until_ns + length_ns
        return self._to(max(self._since_ns - length_ns, 0), until_ns)

    def whole(self) -> str:
        """Return the list of all times."""
        return self._to(None, None)

    def _to(self, since_ns: int | None, until_ns: int | None) -> str:
        bounds = [f"{key}:{time_text(ns)}" for key, ns in (("since", since_ns), ("until", until_ns)) if ns is not None]
        return self._links.here(q=" ".join([self._rest, *bounds]).strip() or None, cursor=None, back=None)
