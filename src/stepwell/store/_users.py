"""Users by their latest step: the sums of all their steps, kept as steps are counted.

What must stay true: a user whose steps have all gone is gone, and first and last are of steps that are there. They are
looked up anew only where the first or last step of a user went or changed.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from stepwell.store import Page, UserRow
from stepwell.store._query import MAX_INTEGER, Keyset
from stepwell.store._rows import fits, known_ns
from stepwell.store._tally import COUNTED_COLUMNS, USER_OF

__all__ = ["UserTally", "count_users", "read_users"]

_COLUMNS: Final = ("steps", "errors", "tokens", "cost", "first_ns", "last_ns", "last_step")
_START, _STATUS, _TOTAL, _COST = (
    1 + COUNTED_COLUMNS.index(name) for name in ("start_ns", "status", "total_tokens", "cost")
)
_SELECT: Final = f"SELECT {', '.join(_COLUMNS)} FROM users WHERE user = ?"
_REPLACE: Final = f"""
    INSERT INTO users (user, {", ".join(_COLUMNS)}) VALUES (?, {", ".join("?" * len(_COLUMNS))})
    ON CONFLICT (user) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)}
"""
_THEIR_STEPS: Final = """
    SELECT start_ns, number FROM (
        SELECT s.start_ns, s.number FROM steps s WHERE s.user = ?1 AND s.number <= ?2 {bound}
        UNION ALL
        SELECT s.start_ns, s.number FROM threads t CROSS JOIN steps s ON s.thread_id = t.id
            WHERE t.user_name = ?1 AND s.user IS NULL AND s.number <= ?2 {bound}
    ) ORDER BY {order} LIMIT 1
"""
_FIRST: Final = _THEIR_STEPS.format(bound="AND s.start_ns >= 0", order="start_ns")
_LAST: Final = _THEIR_STEPS.format(bound="", order="start_ns DESC, number DESC")
_TAIL: Final = f"""
    SELECT s.number, {USER_OF}, {", ".join(f"s.{name}" for name in COUNTED_COLUMNS)}
    FROM steps s WHERE s.number > (SELECT number FROM counted)
"""
_RECOUNTS: Final = f"SELECT sign, step, user, {', '.join(COUNTED_COLUMNS)} FROM recounts"


class _User:
    """What some steps add to a user, and take away. A step is told by its start and number."""

    __slots__ = ("cost", "errors", "first_ns", "last", "noted", "steps", "tokens")

    def __init__(self) -> None:
        self.steps = self.errors = self.tokens = 0
        self.cost = 0.0
        self.first_ns, self.last = MAX_INTEGER, (-1, 0)
        self.noted: dict[tuple[int, int], int] = {}  # steps that were counted: 1 where one came, -1 where one went

    def add(self, row: Sequence[Any], sign: int = 1) -> None:
        self.steps += sign
        if row[_STATUS] == "failed":
            self.errors += sign
        if (tokens := row[_TOTAL]) is not None:
            self.tokens += sign * tokens
        if (cost := row[_COST]) is not None:
            self.cost += sign * cost

    def come(self, start_ns: int, step: int) -> None:
        if 0 <= start_ns < self.first_ns:
            self.first_ns = start_ns
        self.last = max(self.last, (start_ns, step))

    def merged(self, db: sqlite3.Connection, user: str, counted: int) -> list[Any] | None:
        """Return the user's row of `_COLUMNS` with these steps, None where none are left."""
        row = db.execute(_SELECT, (user,)).fetchone() or (0, 0, 0, 0.0, -1, -1, 0)
        steps = row[0] + self.steps
        if steps <= 0:
            return None
        first_ns, last = row[4], (row[5], row[6])
        for key, sign in self.noted.items():
            if sign > 0:
                self.come(*key)
        if any(sign < 0 and (key[0] <= first_ns or key >= last) for key, sign in self.noted.items()):
            found = db.execute(_FIRST, (user, counted)).fetchone()
            first_ns = -1 if found is None else found[0]
            last = db.execute(_LAST, (user, counted)).fetchone() or (-1, 0)
        self.come(first_ns, 0)
        first_ns = -1 if self.first_ns == MAX_INTEGER else self.first_ns
        return [steps, row[1] + self.errors, row[2] + self.tokens, row[3] + self.cost, first_ns, *max(last, self.last)]


class UserTally:
    """Steps by their users."""

    def __init__(self) -> None:
        self.users: dict[str, _User] = {}

    def _user(self, name: str) -> _User:
        if name not in self.users:
            self.users[name] = _User()
        return self.users[name]

    def add(self, rows: Iterable[tuple[int, Sequence[Any]]]) -> None:
        """Count steps that were not counted yet: their numbers, and their users followed by `COUNTED_COLUMNS`."""
        for step, row in rows:
            if row[0] is not None:
                user = self._user(row[0])
                user.add(row)
                user.come(row[_START], step)

    def note(self, rows: Iterable[Sequence[Any]]) -> None:
        """Count what was noted of counted steps: sign, number, user, `COUNTED_COLUMNS`."""
        for sign, step, *row in rows:
            if row[0] is not None:
                user = self._user(row[0])
                user.add(row, sign)
                key = (row[_START], step)
                user.noted[key] = user.noted.get(key, 0) + sign


def count_users(db: sqlite3.Connection, tally: UserTally, counted: int) -> None:
    """Write what steps change in `users`; steps up to the number `counted` are in the tally or were before."""
    for name, user in tally.users.items():
        row = user.merged(db, name, counted)
        if row is None:
            db.execute("DELETE FROM users WHERE user = ?", (name,))
        else:
            row[2] = row[2] if fits(row[2]) else float(row[2])
            db.execute(_REPLACE, (name, *row))


def read_users(db: sqlite3.Connection, page: Keyset) -> Page[UserRow]:
    """Return a page of users by their latest step, those of steps that were not counted yet included."""
    tally = UserTally()
    tally.note(db.execute(_RECOUNTS))
    tally.add((row[0], row[1:]) for row in db.execute(_TAIL))
    changed = tally.users
    found: list[tuple[Any, ...]] = [
        (name, *row) for name, user in changed.items() if (row := user.merged(db, name, MAX_INTEGER)) is not None
    ]
    sign, ascending = ("<", False) if page.direction == "DESC" else (">", True)
    after = f"WHERE (last_ns, last_step) {sign} (?, ?)" if page.after else ""
    order = f"ORDER BY last_ns {page.direction}, last_step {page.direction}"
    query = f"SELECT user, {', '.join(_COLUMNS)} FROM users {after} {order}"
    if page.after is not None:
        found = [row for row in found if (row[-2:] > page.after if ascending else row[-2:] < page.after)]
    wanted = page.limit + 1
    for row in db.execute(query, page.after or ()):
        if row[0] not in changed:
            found.append(row)
            wanted -= 1
            if wanted == 0:
                break
    found.sort(key=lambda row: row[-2:], reverse=not ascending)
    listed = found[: page.limit]
    threads = _count_threads(db, [row[0] for row in listed])
    items = [_user_row(row, threads.get(row[0], 0)) for row in listed]
    return Page(items, page.next(*listed[-1][-2:]) if len(found) > len(listed) else None)


def _count_threads(db: sqlite3.Connection, users: list[str]) -> dict[str, int]:
    places = ", ".join("?" * len(users))
    query = f"SELECT user_name, count(*) FROM threads WHERE user_name IN ({places}) GROUP BY user_name"
    return dict(db.execute(query, users).fetchall())


def _user_row(row: tuple[Any, ...], threads: int) -> UserRow:
    user, steps, errors, tokens, cost, first_ns, last_ns, _ = row
    tokens = max(min(int(tokens), MAX_INTEGER), -MAX_INTEGER)
    return UserRow(user, threads, steps, errors, tokens, cost, known_ns(first_ns), known_ns(last_ns))
