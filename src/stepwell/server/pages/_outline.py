"""Which rows of a run a page shows: folds, groups of like siblings, long families a part at a time, what was found.

What must stay true: every item says how many steps stand behind it that are not shown (`hidden`), so that on the whole
outline shown and hidden steps are together those of the run; and what is selected or has failed is never inside of a
group.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final, Literal

from stepwell.model import MESSAGE_TYPES
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
    in a group. `fold_runs` folds nested runs. `within` are the steps that there are, if not all, each with how many of
    them are at and below it.
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
    within: Mapping[str, int] | None = field(default=None, kw_only=True)

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

    def steps(self, row: Row) -> int:
        """Return how many steps there are at and below a row."""
        return row.sums.steps if self.within is None else self.within.get(row.step.id, 0)

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
                item.hidden = look.steps(item.row) - 1
    return items


def _below(row: Row, look: Look) -> Sequence[Item]:
    if look.only is not None:
        return [Item("step", child, child.depth) for child in row.children if child.step.id in look.only]
    children = row.children if look.within is None else [child for child in row.children if look.steps(child)]
    items = list(_grouped(children, look))
    if len(items) <= PAGE_CHILDREN:
        return items
    first = _first_of(row, items, look)
    last = min(first + PAGE_CHILDREN, len(items))
    shown = items[first:last]
    if first:
        shown.insert(0, _more(look, row, items, 0, first))
    if last < len(items):
        shown.append(_more(look, row, items, last, len(items)))
    return shown


def _first_of(row: Row, items: Sequence[Item], look: Look) -> int:
    """Return where the children shown begin: as the address says, else where the selected one is."""
    if row.step.id == look.children_of:
        return min(look.first, len(items) - 1)
    at = next((at for at, item in enumerate(items) if item.kind == "step" and _is_needed(item.row, look)), 0)
    return at // PAGE_CHILDREN * PAGE_CHILDREN


def _is_needed(row: Row, look: Look) -> bool:
    return row is look.selected or row.step.id in look.needed


def _more(look: Look, row: Row, items: Sequence[Item], first: int, last: int) -> Item:
    hidden = sum(item.hidden if item.kind == "group" else look.steps(item.row) for item in items[first:last])
    return Item("more", row, row.depth + 1, hidden, first=first, last=last, of=len(items))


def _grouped(rows: Sequence[Row], look: Look) -> Iterator[Item]:
    """Yield siblings, those that are like their neighbours as one item, followed by its members that are kept apart."""
    at = 0
    while at < len(rows):
        end = at + 1
        while end < len(rows) and _alike(rows[at], rows[end]):
            end += 1
        members = rows[at:end]
        if len(members) < GROUP or members[0].step.id in look.opened:
            yield from (Item("step", row, row.depth) for row in members)
        else:
            yield from _group(members, look)
        at = end


def _group(members: Sequence[Row], look: Look) -> Iterator[Item]:
    apart = [row for row in members if look.keeps_apart(row)]
    hidden = sum(map(look.steps, members)) - sum(map(look.steps, apart))
    took = [row.duration_ns for row in members if row.duration_ns is not None]
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


def _alike(one: Row, other: Row) -> bool:
    kind = one.step.type
    return kind == other.step.type and one.step.name == other.step.name and kind not in MESSAGE_TYPES
