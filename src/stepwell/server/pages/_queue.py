"""Review queues: the runs or steps of a list, given out one at a time to whoever is there to judge them.

What must stay true:

1. A queue is an address: a list with its query and order, the name of the score, and its labels. Nothing is kept of it
   but who has which item now, in `reviews.json` beside the store, so that processes agree; an item with a score of the
   name is done.
2. Who has an item has it for `CLAIM_S`; nobody else is given it meanwhile. Two never have one item, since giving out
   begins with looking, under the lock, at what is done.
3. What is read and kept is bounded: `MAX_PAGE` items of the list, `MAX_CLAIMS` that are given out.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from msgspec import Struct

from stepwell.errors import UsageError
from stepwell.server._places import Place
from stepwell.server.pages._kept import changing, read_kept, write_kept
from stepwell.server.pages._listing import read_query, runs_filter
from stepwell.server.pages._page import Links, count
from stepwell.store import MAX_PAGE, Judgements, Order, ScoreFilter, StepFilter, StepRow, Store

__all__ = [
    "CLAIM_S",
    "MAX_LABELS_TEXT",
    "MAX_NAME",
    "Items",
    "Queue",
    "give_out",
    "items_of",
    "taken_by_others",
    "tally",
    "verdict_of",
]

CLAIM_S: Final = 900
MAX_CLAIMS: Final = 1_000
MAX_NAME: Final = 80
MAX_LABELS: Final = 9  # each has a digit's key
MAX_LABELS_TEXT: Final = 400
MAX_VERDICTS: Final = 12  # counted each by itself

List = Literal["runs", "steps"]


@dataclass(frozen=True, slots=True)
class Queue:
    """What is reviewed, in which order, and what is said of it: `name` is the score's, `labels` are joined by commas.

    Beside these every item may be judged `positive` or `negative`. `cursor` is where in its list the queue begins.
    """

    list: List
    query: str = ""
    name: str = "feedback"
    labels: str = ""
    order: Order = "desc"
    cursor: str | None = None

    @property
    def several(self) -> Sequence[str]:
        """The labels, one by one."""
        return list(dict.fromkeys(label for each in self.labels.split(",") if (label := each.strip())))

    def check(self) -> None:
        """Raise `UsageError` for a name or labels that are not fit for their keys and addresses."""
        if not 0 < len(self.name) <= MAX_NAME or self.name == "comment":
            raise UsageError(f"a score has a name of 1 to {MAX_NAME} characters, which is not comment")
        if len(self.several) > MAX_LABELS or len(self.labels) > MAX_LABELS_TEXT:
            raise UsageError(f"labels are {MAX_LABELS} at most, of {MAX_LABELS_TEXT} characters together")

    def fields(self) -> dict[str, str | None]:
        """Return what the address of the queue says."""
        order = None if self.order == "desc" else self.order
        return {"q": self.query, "name": self.name, "labels": self.labels, "order": order, "cursor": self.cursor}

    def address(self, links: Links, **more: str | None) -> str:
        """Return the address of the queue itself."""
        return links.to("review", self.list, **{**self.fields(), **more})

    def item_address(self, links: Links, id: str) -> str:
        """Return the address of one of its items, as a run's or a step's page takes it."""
        fields = self.fields()
        query = {"in": fields.pop("q"), "review": fields.pop("name"), **fields}
        return links.to(self.list, id, **query)


@dataclass(frozen=True, slots=True)
class Items:
    """The items of a queue in its order, those that are done, and the cursor of the rest of the list, None for none."""

    rows: Sequence[StepRow]
    done: frozenset[str]
    further: str | None

    @property
    def left(self) -> int:
        """How many are not done."""
        return len(self.rows) - len(self.done)

    def after(self, current: StepRow | None, order: Order) -> Sequence[str]:
        """Return the items that are not done, from the one after the current on, and round to it again."""
        at = 0 if current is None else _place_after(self.rows, current, order)
        return [row.id for row in (*self.rows[at:], *self.rows[:at]) if row.id not in self.done]


def _place_after(rows: Sequence[StepRow], current: StepRow, order: Order) -> int:
    """Return the place of what follows an item, which may have left the list by what was said of it."""
    for at, row in enumerate(rows):
        if row.id == current.id:
            return at + 1
    start, sign = current.start_ns or 0, 1 if order == "asc" else -1
    return next((at for at, row in enumerate(rows) if sign * ((row.start_ns or 0) - start) > 0), len(rows))


def items_of(store: Store, queue: Queue) -> Items:
    """Read a queue. Raises `UsageError` for a query or cursor that can't be read."""
    found = read_query(queue.query)
    if found.error:
        raise UsageError(found.error)
    filter = runs_filter(found) if queue.list == "runs" else found.filter
    page = store.steps(filter, limit=MAX_PAGE, cursor=queue.cursor, order=queue.order)
    judged = StepFilter(ids=[row.id for row in page.items], score=ScoreFilter(queue.name))
    done = frozenset(row.id for row in store.steps(judged, limit=MAX_PAGE).items)
    return Items(page.items, done, page.next_cursor)


class Claim(Struct, frozen=True):
    """Who has an item of the queues that ask for a score of this name, and until when, in seconds since 1970."""

    list: List
    name: str
    item: str
    reviewer: str
    until_s: int


class _File(Struct):
    version: Literal[1]
    claims: list[Claim]


def _claims(place: Place) -> list[Claim]:
    """Return what is given out now, the latest last. Raises `StoreError` where that can't be read."""
    kept, now = read_kept(place, "reviews", _File, "reviews"), time.time()
    return [] if kept is None else [claim for claim in kept.claims if claim.until_s > now]


def taken_by_others(place: Place, queue: Queue, reviewer: str | None) -> dict[str, int]:
    """Return what other reviewers of a queue have now, and until when, in seconds since 1970. Raises `StoreError`."""
    return _of_others(_claims(place), queue, reviewer)


def _of_others(claims: Sequence[Claim], queue: Queue, reviewer: str | None) -> dict[str, int]:
    return {claim.item: claim.until_s for claim in claims if claim.name == queue.name and claim.reviewer != reviewer}


def give_out(place: Place, queue: Queue, reviewer: str, current: StepRow | None) -> str | None:
    """Give the next item to a reviewer, in the place of what they had; None where nothing is left for them."""
    with changing(place, "reviews"):
        items, claims = items_of(place.store, queue), _claims(place)
        held = _of_others(claims, queue, reviewer)
        item = next((id for id in items.after(current, queue.order) if id not in held), None)
        mine = (queue.list, queue.name, reviewer)
        kept = [claim for claim in claims if (claim.list, claim.name, claim.reviewer) != mine]
        if item is not None:
            kept.append(Claim(queue.list, queue.name, item, reviewer, int(time.time()) + CLAIM_S))
        write_kept(place, "reviews", _File(1, kept[-MAX_CLAIMS:]))
    return item


def verdict_of(found: Judgements | None, name: str) -> str | None:
    """Return what a step was judged to be under a name: the label, else the value; None where it was not."""
    scores = () if found is None else (score for score in found.latest if score.name == name)
    return next((score.label or count(score.value) or "no label" for score in scores), None)


def tally(store: Store, items: Items, name: str) -> list[tuple[str, int]]:
    """Count what the items that are done were judged to be, the most frequent first, and the rest as one."""
    verdicts = (verdict_of(found, name) for found in store.judgements(list(items.done)).values())
    counted = Counter(verdict for verdict in verdicts if verdict is not None)
    most = sorted(counted.items(), key=lambda each: (-each[1], each[0]))
    rest = most[MAX_VERDICTS:]
    return [*most[:MAX_VERDICTS], *([(f"{len(rest)} others", sum(number for _, number in rest))] if rest else [])]
