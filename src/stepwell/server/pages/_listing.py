"""What all lists share: the query of the address, pages both ways, facets, and links that change one term.

What must stay true: what is typed, what stands in the address and what is searched for is the same text; a query that
can't be understood is told as an error, never answered with an empty list.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Generic, Literal, TypeVar, cast

from fastapi import Query

from stepwell.model import MESSAGE_TYPES, StepType
from stepwell.store import Facets, Order, Page, StepFilter
from stepwell.store._language import MAX_QUERY_CHARACTERS, QueryError, parse_query, split_terms, value_text

__all__ = [
    "MESSAGES",
    "ROWS",
    "Back",
    "Cursor",
    "Found",
    "Listed",
    "QueryText",
    "Sorted",
    "facets_of",
    "list_page",
    "names_types",
    "read_query",
    "runs_filter",
    "top_filter",
    "with_term",
]

T = TypeVar("T")

ROWS: Final = 50
QueryText = Annotated[str, Query(max_length=MAX_QUERY_CHARACTERS)]
Cursor = Annotated[str | None, Query(max_length=200)]
Sorted = Annotated[Literal["desc", "asc"], Query()]
Back = Annotated[bool, Query()]

_SEVERAL: Final = frozenset(("tag", "metadata", "tokens", "cost", "duration", "score"))
MESSAGES: Final = StepFilter(type=cast("tuple[StepType, ...]", tuple(sorted(MESSAGE_TYPES))))
_FACET_KEYS: Final = {"environment": "env"}
_FACET_TITLES: Final = (
    *(("status", "Status"), ("type", "Type"), ("model", "Model"), ("user", "User"), ("tag", "Tag")),
    *(("environment", "Environment"), ("soft_error", "Success, but the result"), ("reaction", "Then")),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A query as it was understood: the filter, or what is wrong with it and where."""

    text: str
    filter: StepFilter
    error: str | None = None
    position: int = 0

    @property
    def terms(self) -> list[tuple[str, str]]:
        """Each term, and the query without it."""
        terms = split_terms(self.text)
        return [(term, " ".join([*terms[:at], *terms[at + 1 :]])) for at, term in enumerate(terms)]


def read_query(text: str) -> Found:
    """Read the query of an address."""
    text = text.strip()
    try:
        return Found(text, parse_query(text, now_ns=time.time_ns()))
    except QueryError as error:
        return Found(text, StepFilter(), str(error), error.position)


def with_term(text: str, key: str, value: str, *, without: bool = False) -> str:
    """Return a query with one more term, instead of another of the same field where it can have only one."""
    term = f"{key}:{value_text(value)}"
    opposite, term = (term, f"-{term}") if without else (f"-{term}", term)
    kept = [
        each
        for each in split_terms(text)
        if each not in {term, opposite} and (without or key in _SEVERAL or not each.startswith(f"{key}:"))
    ]
    return " ".join([*kept, term])


@dataclass(frozen=True, slots=True)
class Facet:
    """A value that occurs in the list, and the queries that keep only it and leave it out."""

    value: str
    count: int
    only: str
    without: str
    chosen: bool


def facets_of(facets: Facets, text: str) -> list[tuple[str, list[Facet]]]:
    """Return titles and values of the fields that part the list, or that the query names."""
    terms, groups = frozenset(split_terms(text)), list[tuple[str, list[Facet]]]()
    for name, title in _FACET_TITLES:
        key = _FACET_KEYS.get(name, name)
        values = facets.values.get(name, ())
        chosen = any(term.startswith((f"{key}:", f"-{key}:")) for term in terms)
        if len(values) > 1 or (values and (chosen or values[0][1] < facets.counted)):
            groups.append((title, [_facet(text, terms, key, *each) for each in values]))
    return groups


def _facet(text: str, terms: frozenset[str], key: str, value: str, count: int) -> Facet:
    only, without = with_term(text, key, value), with_term(text, key, value, without=True)
    return Facet(value, count, only, without, f"{key}:{value_text(value)}" in terms)


@dataclass(frozen=True, slots=True)
class Listed(Generic[T]):
    """A page of a list, in the order asked for, and the cursors of its neighbours, None where there are none."""

    items: Sequence[T]
    further: str | None
    nearer: str | None
    first: bool


def list_page(
    fetch: Callable[..., Page[T]], cursor: str | None, order: Order, *, back: bool, **given: Any
) -> Listed[T]:
    """Read a page: what follows the cursor, or, going `back`, what is before it. Raises `UsageError` for no cursor."""
    if not back or cursor is None:
        page = fetch(limit=ROWS, cursor=cursor, order=order, **given)
        return Listed(page.items, page.next_cursor, page.previous_cursor if cursor else None, cursor is None)
    page = fetch(limit=ROWS, cursor=cursor, order="asc" if order == "desc" else "desc", **given)
    if page.next_cursor is None:  # the beginning is a whole page, whatever came meanwhile
        return list_page(fetch, None, order, back=False, **given)
    return Listed(page.items[::-1], page.previous_cursor, page.next_cursor, first=False)


def names_types(found: Found) -> bool:
    """Tell whether a query says of itself which types of steps it wants."""
    return found.filter.type is not None or any(other.type for other in found.filter.none_of)


def runs_filter(found: Found, *, messages: bool = False) -> StepFilter:
    """Return the filter of the list of runs with a query. A message that is in no run is left out unless asked for."""
    return top_filter(found.filter, None if messages or names_types(found) else MESSAGES)


def top_filter(filter: StepFilter, hidden: StepFilter | None) -> StepFilter:
    """Return the filter of a list of runs, without what is hidden there."""
    unwanted = filter.none_of if hidden is None else (*filter.none_of, hidden)
    return replace(filter, root_only=True, none_of=unwanted)
