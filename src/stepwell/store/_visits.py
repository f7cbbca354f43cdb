"""What new steps do to their threads: make them known, say when they were in use, and add to their sums.

What must stay true: a batch costs its threads one statement each, however many steps they have. What later changes a
step, or deletes it, changes the sums by triggers; see `stepwell.store._schema`.
"""

from __future__ import annotations

from typing import Any, Final

from stepwell.store._rows import UNKNOWN_NS, fits

__all__ = ["TOUCH_THREAD", "Visit"]

# A step makes its thread known, and says since when and until when it was in use.
TOUCH_THREAD: Final = """
    INSERT INTO threads (id, created_ns, active_ns, steps, errors, tokens, priced, cost)
    VALUES (?, nullif(?, -1), ?, ?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET
        created_ns = ifnull(min(created_ns, excluded.created_ns), ifnull(created_ns, excluded.created_ns)),
        active_ns = max(active_ns, excluded.active_ns),
        steps = steps + excluded.steps, errors = errors + excluded.errors, tokens = tokens + excluded.tokens,
        priced = priced + excluded.priced, cost = cost + excluded.cost
"""


class Visit:
    """What the new steps of a batch do to their thread."""

    __slots__ = ("cost", "errors", "first_ns", "last_ns", "priced", "steps", "tokens")

    def __init__(self) -> None:
        self.first_ns = self.last_ns = UNKNOWN_NS
        self.steps = self.errors = self.tokens = self.priced = 0
        self.cost = 0.0

    def add(self, row: list[Any], place_of_tokens: int | None, place_of_cost: int | None) -> None:
        """Take a row of `steps`."""
        start_ns = row[4]
        self.last_ns = max(self.last_ns, start_ns)
        if start_ns != UNKNOWN_NS and (start_ns < self.first_ns or self.first_ns == UNKNOWN_NS):
            self.first_ns = start_ns
        self.steps += 1
        if row[5] == "failed":
            self.errors += 1
        if place_of_tokens is not None:
            self.tokens += row[place_of_tokens] or 0
        if place_of_cost is not None and row[2] == "llm":
            self.priced += 1
            self.cost += row[place_of_cost]

    def values(self, thread_id: str) -> tuple[str | float, ...]:
        """Return the values of `TOUCH_THREAD`."""
        tokens = self.tokens if fits(self.tokens) else float(self.tokens)
        return thread_id, self.first_ns, self.last_ns, self.steps, self.errors, tokens, self.priced, self.cost
