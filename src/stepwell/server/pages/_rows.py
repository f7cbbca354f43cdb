"""The rows of a run, the same for transcript, tree and timeline: one order, one depth, one set of marks.

What must stay true:

1. All views list the same steps in the same order: parents before children, siblings by start and then by arrival.
2. What stands behind a row is counted on it: the steps shown and those announced are together the steps of the run.
3. Links of foreign records may go in a circle, or nowhere: every step of the tree has one place all the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from stepwell.model import MESSAGE_TYPES
from stepwell.store import StepRow

__all__ = ["Family", "Gap", "Row", "Sums", "family_of"]

GAP_SHARE: Final = 0.05
MAX_GAPS: Final = 20
_WORST: Final = ("success", "cancelled", "interrupted", "pending", "failed")
_COUNTED: Final = (
    "steps",
    "tools",
    "calls",
    "errors",
    "tokens",
    "input_tokens",
    "output_tokens",
    "unpriced",
    "pending",
)


@dataclass(slots=True)
class Sums:
    """What a step and all below it come to; tokens and cost are those of model calls, so none is counted twice.

    `unpriced` are model calls whose cost is not known.
    """

    steps: int = 0
    tools: int = 0
    calls: int = 0
    errors: int = 0
    tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unpriced: int = 0
    pending: int = 0
    cost: float | None = None
    worst: str = "success"

    def add(self, row: StepRow) -> None:
        """Count a step."""
        self.steps += 1
        self.tools += row.type == "tool"
        self.errors += row.status == "failed"
        self.pending += row.status == "pending"
        self.worse(row.status or "success")
        if row.type == "llm":
            self.calls += 1
            inward, outward = row.input_tokens or 0, row.output_tokens or 0
            self.tokens += inward + outward if row.total_tokens is None else row.total_tokens
            self.input_tokens += inward
            self.output_tokens += outward
            if row.cost is None:
                self.unpriced += 1
            else:
                self.cost = (self.cost or 0.0) + row.cost

    def include(self, other: Sums) -> None:
        """Count what another has counted."""
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        if other.cost is not None:
            self.cost = (self.cost or 0.0) + other.cost
        self.worse(other.worst)

    def worse(self, status: str) -> None:
        """Keep the worse of two states."""
        if status in _WORST and _WORST.index(status) > _WORST.index(self.worst):
            self.worst = status


@dataclass(slots=True, eq=False)
class Row:
    """A step in its place. `sums` are of it and all below it; `missing` children were started and are not here.

    `place` is its number in the run's order, `on_clock` says that the run would have been shorter without its time.
    """

    step: StepRow
    depth: int = 0
    place: int = 0
    parent: Row | None = None
    sums: Sums = field(default_factory=Sums)
    children: list[Row] = field(default_factory=list["Row"])
    missing: int = 0
    on_clock: bool = False
    _alike: Sequence[tuple[int, int]] | None = None

    @property
    def alike(self) -> Sequence[tuple[int, int]]:
        """The first and last (excluded) of stretches of two or more children of one type and name, but for messages."""
        if self._alike is None:
            self._alike = list(_stretches(self.children))
        return self._alike

    @property
    def duration_ns(self) -> int | None:
        """How long it took, None where it has not ended, and for messages, which take no time."""
        step = self.step
        if step.end_ns is None or step.start_ns is None or step.type in MESSAGE_TYPES:
            return None
        return max(step.end_ns - step.start_ns, 0)

    @property
    def own_ns(self) -> int | None:
        """How long it took while none of its children ran."""
        whole = self.duration_ns
        if whole is None or not self.children:
            return whole
        return whole - _covered(self.children, self.step.start_ns or 0, self.step.end_ns or 0)

    def path(self) -> Iterator[Row]:
        """Yield the rows above it, nearest first."""
        above = self.parent
        while above is not None:
            yield above
            above = above.parent


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch in which no step without children ran, from the end of one to the start of another."""

    start_ns: int
    end_ns: int
    before: Row | None
    after: Row | None


@dataclass(slots=True)
class Family:
    """A run: its first row and all rows in order, and the time it spans. `derived` is what pages make of it once."""

    root: Row
    rows: list[Row]
    by_id: dict[str, Row]
    start_ns: int
    end_ns: int
    _calls: list[Row] | None = None
    derived: dict[str, Any] = field(default_factory=dict[str, Any])
    _by_name: dict[tuple[str | None, str | None], list[Row]] | None = None

    @property
    def span_ns(self) -> int:
        """How long it is from the first start to the last end."""
        return max(self.end_ns - self.start_ns, 1)

    def share(self, ns: int) -> float:
        """Return where a time is between first start and last end, from 0 to 1."""
        return min(max((ns - self.start_ns) / self.span_ns, 0.0), 1.0)

    def calls(self) -> Sequence[Row]:
        """Return the model calls, in order."""
        if self._calls is None:
            self._calls = [row for row in self.rows if row.step.type == "llm"]
        return self._calls

    def like(self, row: Row) -> Sequence[Row]:
        """Return the rows of a row's type and name, in order."""
        if self._by_name is None:
            found: dict[tuple[str | None, str | None], list[Row]] = {}
            for each in self.rows:
                found.setdefault((each.step.type, each.step.name), []).append(each)
            self._by_name = found
        return self._by_name[row.step.type, row.step.name]

    def gaps(self) -> list[Gap]:
        """Return the stretches of more than 5 % of the run in which nothing ran that has no children."""
        leaves = [
            row for row in self.rows if not row.children and row is not self.root and row.step.start_ns is not None
        ]
        leaves.sort(key=lambda row: row.step.start_ns or 0)
        if not leaves or self.root.step.end_ns is None:
            return []
        found, reached, last = list[Gap](), self.start_ns, None
        for row in leaves:
            start, end = row.step.start_ns or 0, row.step.end_ns
            if start - reached > GAP_SHARE * self.span_ns:
                found.append(Gap(reached, start, last, row))
            if end is None:
                return found[:MAX_GAPS]  # it is running still
            if end >= reached:
                reached, last = end, row
        if self.root.step.end_ns - reached > GAP_SHARE * self.span_ns:
            found.append(Gap(reached, self.root.step.end_ns, last, None))
        return found[:MAX_GAPS]

    def during(self, first_ns: int, last_ns: int) -> list[Row]:
        """Return the steps that ran at some time in a range; one that ended when it begins did not."""
        return [
            row
            for row in self.rows
            if (start := row.step.start_ns) is not None
            and start <= last_ns
            and (start >= first_ns or row.step.end_ns is None or row.step.end_ns > first_ns)
        ]

    def part(self, first_ns: int, last_ns: int) -> Family:
        """Return the steps that ran in a range, and those above them, as a run of their own, in the order of this one.

        What is missing, and what is on the clock, is so of the whole run.
        """
        listed = {self.root.step.id}
        for row in self.during(first_ns, last_ns):
            listed.add(row.step.id)
            listed.update(above.step.id for above in row.path())
        made = family_of(self.root.step.id, [row.step for row in self.rows if row.step.id in listed])
        for row in made.rows:
            whole = self.by_id[row.step.id]
            row.missing, row.on_clock = whole.missing, whole.on_clock
        return made

    def between(self, first_ns: int, last_ns: int) -> Sums:
        """Count the steps that ran at some time in a range; a model call's tokens and cost are where it began."""
        sums = Sums()
        for row in self.during(first_ns, last_ns):
            if row.step.type == "llm" and (row.step.start_ns or 0) < first_ns:
                sums.steps += 1
                sums.errors += row.step.status == "failed"
            else:
                sums.add(row.step)
        return sums


def family_of(root_id: str, steps: Sequence[StepRow]) -> Family:
    """Put the steps of a tree, ordered by start, in their places below the root."""
    by_id = {step.id: Row(step) for step in steps}
    root, known = by_id[root_id], set[str]()
    for row in by_id.values():
        if row is not root:
            parent = by_id.get(row.step.parent_id or "")
            whole = parent is not None and _leads_to_root(row, root, by_id, known)
            row.parent = parent if parent is not None and whole else root
            row.parent.children.append(row)
    ordered = list(_walk(root))
    for place, row in enumerate(ordered):
        row.place = place
    for row in reversed(ordered):
        row.sums.add(row.step)
        for child in row.children:
            row.sums.include(child.sums)
        present = sum(child.step.parent_id == row.step.id for child in row.children)
        row.missing = max((row.step.child_count or 0) - present, 0) if row.step.status != "pending" else 0
    starts = [step.start_ns for step in steps if step.start_ns is not None]
    ends = [step.end_ns for step in steps if step.end_ns is not None]
    start_ns = min(starts, default=0)
    _put_on_clock(root)
    return Family(root, ordered, by_id, start_ns, max([start_ns, *ends, *starts]))


def _leads_to_root(row: Row, root: Row, rows: dict[str, Row], known: set[str]) -> bool:
    """Tell whether a step's ancestors end at the root.

    `known` are steps of which that was found out, so that a deep tree costs each of them once.
    """
    path: list[str] = []
    seen: set[str] = set()
    while row is not root and row.step.id not in known:
        if row.step.id in seen:
            return False
        seen.add(row.step.id)
        path.append(row.step.id)
        above = rows.get(row.step.parent_id or "")
        if above is None:
            break  # it hangs at the root itself
        row = above
    known.update(path)
    return True


def _walk(root: Row) -> Iterator[Row]:
    waiting = [root]
    while waiting:
        row = waiting.pop()
        yield row
        for child in reversed(row.children):
            child.depth = row.depth + 1
            waiting.append(child)


def _put_on_clock(root: Row) -> None:
    """Mark the steps that a run waited for: backwards from each end, the child that ended last before what follows."""
    root.on_clock = True
    waiting = [root]
    while waiting:
        row = waiting.pop()
        reached = row.step.end_ns
        ended = [child for child in row.children if child.duration_ns is not None]
        for child in sorted(ended, key=lambda child: child.step.end_ns or 0, reverse=True):
            start, end = child.step.start_ns or 0, child.step.end_ns or 0
            if reached is None or end <= reached:
                child.on_clock, reached = True, start
                waiting.append(child)


def _covered(rows: Sequence[Row], start: int, end: int) -> int:
    """Return for how much of a stretch any of the rows ran, which are in the order of their start."""
    total, reached = 0, start
    for row in rows:
        first, last = row.step.start_ns, row.step.end_ns
        if first is None or last is None or last <= reached or reached >= end:
            continue
        last = min(last, end)
        total += max(last - max(first, reached), 0)
        reached = last
    return total


def _stretches(rows: Sequence[Row]) -> Iterator[tuple[int, int]]:
    first, of = 0, None
    for at, row in enumerate(rows):
        step = row.step
        kind = (step.type, step.name)
        if kind != of or step.type in MESSAGE_TYPES:
            if at - first > 1:
                yield first, at
            first, of = at, kind
    if len(rows) - first > 1:
        yield first, len(rows)
