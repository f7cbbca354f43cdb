"""Which rows of a run a page shows: folds, groups of like siblings, long families a part at a time, what was found.

What must stay true: every item says how many steps stand behind it that are not shown (`hidden`), so that on the whole
outline shown and hidden steps are together those of the run; and what is selected or has failed is never inside of a
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Final, Literal

from stepwell.server.pages._rows import Family, Row

__all__ = ["GROUP", "PAGE_CHILDREN", "PAGE_ROWS", "Group", "Item", "Look", "outline"]

PAGE_ROWS: Final = 200
PAGE_CHILDREN: Final = 100
GROUP: Final = 5  # so many siblings of one name after one another become one row
_TROUBLE: Final = frozenset(("failed", "interrupted", "pending"))


@dataclass(frozen=True, slots=True)
class Group:
    """Siblings of one type and name that follow one another, as one row: how many, and what their durations are."""

    members: int
    errors: int
    least_ns: int | None
    median_ns: int | None
    most_ns: int | None
    total_ns: int | None


@dataclass(slots=True)
class Item:
    """A row of the outline.

    A `step` stands for itself; a `group` for members of which `row` is the first; `more` for the children of `row` from
    `first` on, up to `last`, of so many. `hidden` steps are behind it.
    """

    kind: Literal["step", "group", "more"]
    row: Row
    depth: int
    hidden: int = 0
    is_open: bool = False
    group: Group | None = None
    first: int = 0
    last: int = 0
    of: int = 0


@dataclass(frozen=True, slots=True)
class Look:
    """How a run is looked at: all of it is in the address of the page.

    `level` folds what is deeper, `opened` and `closed` are steps that differ from that. `children_of` is the parent
    whose children are shown from `first` on. `only` are the steps that are shown, and `marked` those that are not to be
    in a group. `fold_runs` folds nested runs.
    """

    level: int | None = None
    opened: frozenset[str] = frozenset()
    closed: frozenset[str] = frozenset()
    fold_runs: bool = False
    selected: Row | None = None
    children_of: str | None = None
    first: int = 0
    only: frozenset[str] | None = None
    marked: frozenset[str] = frozenset()
    needed: frozenset[str] = field(default=frozenset(), kw_only=True)

    def opens(self, row: Row) -> bool:
        """Say whether a row's children are shown."""
        id = row.step.id
        if id in self.closed:
            return False
        if id in self.opened or id in self.needed or self.only is not None:
            return True
        if self.fold_runs and row.depth and row.step.type == "run":
            return False
        return self.level is None or row.depth < self.level

    def keeps_apart(self, row: Row) -> bool:
        """Say whether a row is to be seen although its neighbours are like it."""
        id = row.step.id
        return (
            row.sums.worst in _TROUBLE
            or row.missing > 0
            or id in self.needed
            or id in self.marked
            or row is self.selected
        )


def outline(family: Family, look: Look) -> list[Item]:
    """Return the rows to show, in the order of the run."""
    items: list[Item] = []
    waiting = [Item("step", family.root, 0)]
    while waiting:
        item = waiting.pop()
        items.append(item)
        if item.kind == "step" and item.row.children:
            item.is_open = look.opens(item.row)
            if item.is_open:
                waiting.extend(reversed(_below(item.row, look)))
            else:
                item.hidden = item.row.sums.steps - 1
    return items


def _below(row: Row, look: Look) -> Sequence[Item]:
    if look.only is not None:
        return [Item("step", child, child.depth) for child in row.children if child.step.id in look.only]
    folds = list(_folds(row, look))
    count = len(row.children) - sum(fold.saved for fold in folds)
    if count <= PAGE_CHILDREN:
        return list(_items(row, folds, 0, count))
    first = _first_of(row, folds, count, look)
    last = min(first + PAGE_CHILDREN, count)
    shown = list(_items(row, folds, first, last))
    before = sum(map(_steps_of, _items(row, folds, 0, first)))
    after = row.sums.steps - 1 - before - sum(map(_steps_of, shown))
    if first:
        shown.insert(0, _more(row, before, 0, first, count))
    if last < count:
        shown.append(_more(row, after, last, count, count))
    return shown


@dataclass(slots=True)
class _Fold:
    """Children `first` to `last` (excluded) as one item, followed by those that are kept apart."""

    first: int
    last: int
    apart: Sequence[Row]

    @property
    def saved(self) -> int:
        """How many items fewer than children there are."""
        return self.last - self.first - 1 - len(self.apart)


def _folds(row: Row, look: Look) -> Iterator[_Fold]:
    """Yield what becomes a group among a row's children, in order: the others are an item each."""
    for first, last in row.alike:
        if last - first >= GROUP and row.children[first].step.id not in look.opened:
            yield _Fold(first, last, [child for child in row.children[first:last] if look.keeps_apart(child)])


def _items(row: Row, folds: Sequence[_Fold], first: int, last: int) -> Iterator[Item]:
    """Yield the items of a row's children from one place to another, making only those."""
    place = child = 0  # where the next item stands, and which child it begins with
    for fold in (*folds, None):
        alone = (len(row.children) if fold is None else fold.first) - child
        skipped = min(max(first - place, 0), alone)
        wanted = min(max(last - place, 0), alone)
        yield from (Item("step", each, each.depth) for each in row.children[child + skipped : child + wanted])
        place += alone
        if fold is None or place >= last:
            return
        if place + 1 + len(fold.apart) > first:
            items = _group(row.children[fold.first : fold.last], fold.apart)
            yield from islice(items, max(first - place, 0), last - place)
        place += 1 + len(fold.apart)
        child = fold.last


def _first_of(row: Row, folds: Sequence[_Fold], count: int, look: Look) -> int:
    """Return where the children shown begin: as the address says, else where the selected one is."""
    if row.step.id == look.children_of:
        return min(look.first, count - 1)
    if look.selected is None and not look.needed:
        return 0
    at = next((at for at, child in enumerate(row.children) if _is_needed(child, look)), 0)
    before = sum(fold.saved for fold in folds if fold.last <= at)
    inside = next((fold for fold in folds if fold.first <= at < fold.last), None)
    if inside is not None and _is_needed(row.children[at], look):
        before = before + at - inside.first - 1 - inside.apart.index(row.children[at])
    return (at - before) // PAGE_CHILDREN * PAGE_CHILDREN


def _is_needed(row: Row, look: Look) -> bool:
    return row is look.selected or row.step.id in look.needed


def _steps_of(item: Item) -> int:
    return item.hidden if item.kind == "group" else item.row.sums.steps


def _more(row: Row, hidden: int, first: int, last: int, of: int) -> Item:
    return Item("more", row, row.depth + 1, hidden, first=first, last=last, of=of)


def _group(members: Sequence[Row], apart: Sequence[Row]) -> Iterator[Item]:
    """Yield siblings that are like one another as one item, followed by those that are kept apart."""
    hidden = sum(row.sums.steps for row in members) - sum(row.sums.steps for row in apart)
    took = [ns for row in members if (ns := row.duration_ns) is not None]
    whole = Group(
        len(members),
        sum(row.sums.worst == "failed" for row in members),
        min(took, default=None),
        int(median(took)) if took else None,
        max(took, default=None),
        sum(took) if took else None,
    )
    yield Item("group", members[0], members[0].depth, hidden, group=whole)
    yield from (Item("step", row, row.depth) for row in apart)
