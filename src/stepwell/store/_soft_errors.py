"""Finding failures that called themselves success, off the ingest path, and what was done after them.

What must stay true:

1. `soft_errors` is derived, by the rule of `stepwell.store._outcomes` alone, and does not move `changed`: who follows
   the changes of a store is told of records.
2. Steps up to the position `state.judged` (as of `Store.changes`) have their verdict. A run that has one, and of which
   a model's call or a tool's call has come or changed since, is in `unsettled` until what was done next is found anew:
   so the order in which steps arrive makes no difference.
3. A transaction takes some milliseconds: of a run, with its budget of steps, at a time. Payloads are read of tools, and
   of what follows a soft error, no others.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from functools import cached_property
from typing import Any, Final

from msgspec import UNSET

from stepwell.errors import CorruptStoreError
from stepwell.store._messages import Bodies
from stepwell.store._outcomes import answers, can_be_soft, key_of, reaction_to, soft_failure
from stepwell.store._query import id_range
from stepwell.store._rows import RECORD_SQL, known_ns, raw, step_of_row
from stepwell.store._schema import LAST_POSITION
from stepwell.store._texts import decoded
from stepwell.store._tree import in_order

__all__ = ["judge_more"]

MAX_STEPS: Final = 10_000  # of a run; of a longer one it is not said what was done next
_WINDOW: Final = 500  # positions
_RUN: Final = "coalesce(s.root_run_id, s.trace_id, s.id)"  # whose acts have an order
_TOOLS: Final = f"""
    SELECT s.number, s.start_ns, {_RUN}, s.type, s.status, e.step, p.output, p.pack
    FROM steps s LEFT JOIN payload p USING (number) LEFT JOIN soft_errors e ON e.step = s.number
    WHERE {{}} AND (s.type = 'tool' OR e.step IS NOT NULL)
"""
_ACTS: Final = f"""
    INSERT INTO unsettled SELECT DISTINCT {_RUN} FROM steps s
    WHERE {{}} AND s.type IN ('llm', 'tool') AND EXISTS (SELECT 1 FROM soft_errors WHERE run = {_RUN})
    ON CONFLICT DO NOTHING
"""
_WHERE: Final = (  # as `Store.changes` has them
    "s.number > ?1 AND s.number <= ?2 AND s.changed IS NULL",
    "s.changed > ?1 AND s.changed <= ?2",
)
_OF_RUN: Final = f"""
    SELECT s.id, s.parent_id, s.root_run_id, s.number, s.start_ns, s.end_ns, s.type, s.name, e.step, e.reaction
    FROM steps s LEFT JOIN soft_errors e ON e.step = s.number WHERE s.number IN (
        SELECT number FROM steps WHERE id = ?1 UNION SELECT number FROM steps WHERE id BETWEEN ?2 AND ?3
        UNION SELECT number FROM steps WHERE stray AND root_run_id = ?1
        UNION SELECT number FROM steps WHERE stray AND trace_id = ?1
    ) AND {_RUN} = ?1 ORDER BY s.start_ns, s.number LIMIT {MAX_STEPS + 1}
"""
_INSERT: Final = "REPLACE INTO soft_errors (step, start_ns, run, kind) VALUES (?, ?, ?, ?)"
_DELETE: Final = "DELETE FROM soft_errors WHERE step = ?"
_SET: Final = "UPDATE soft_errors SET reaction = ? WHERE step = ?"
_FORGET: Final = "UPDATE soft_errors SET reaction = NULL WHERE run = ? AND reaction IS NOT NULL"
_GENERATION: Final = "SELECT generation, pack FROM payload WHERE number = ?"
_RECORD: Final = f"SELECT {RECORD_SQL} FROM steps s LEFT JOIN payload p USING (number) WHERE s.number = ?"


def judge_more(db: sqlite3.Connection, turn_s: float) -> bool:
    """Judge steps for about so long, inside the caller's transaction; tell whether nothing is left to judge."""
    ends = time.perf_counter() + turn_s
    judged, last = db.execute(f"SELECT judged, ({LAST_POSITION}) FROM state").fetchone()
    bodies, upto = Bodies(db), judged
    while upto < last:
        after, upto = upto, min(upto + _WINDOW, last)
        for where in _WHERE:
            _judge(db, bodies, db.execute(_TOOLS.format(where), (after, upto)).fetchall())
        for where in _WHERE:
            db.execute(_ACTS.format(where), (after, upto))
        if time.perf_counter() > ends:
            break
    if upto > judged:
        db.execute("UPDATE state SET judged = ?", (upto,))
    while upto == last and time.perf_counter() < ends:
        run = db.execute("SELECT run FROM unsettled LIMIT 1").fetchone()
        if run is None:
            return True
        _settle(db, bodies, run[0])
        db.execute("DELETE FROM unsettled WHERE run = ?", run)
    return False


def _judge(db: sqlite3.Connection, bodies: Bodies, rows: Iterable[tuple[Any, ...]]) -> None:
    """Write the verdicts of rows of `_TOOLS`."""
    found: list[tuple[Any, ...]] = []
    gone: list[tuple[int]] = []
    for number, start_ns, run, type, status, known, output, pack in rows:
        kind = None
        if can_be_soft(type, status):
            with suppress(CorruptStoreError):  # `check` tells of it
                kind = _kind(output if pack is None else bodies.packs.step(pack, number)["output"])
        if kind is not None:
            found.append((number, start_ns, run, kind))
        elif known is not None:
            gone.append((number,))
    db.executemany(_INSERT, found)
    db.executemany(_DELETE, gone)


def _kind(output: str | None) -> str | None:
    found = None if output is None else soft_failure(decoded(output))
    return None if found is None else found[0]


class _Step:
    """A step of a run, whose payloads are read when they are asked for."""

    def __init__(self, db: sqlite3.Connection, bodies: Bodies, row: tuple[Any, ...]) -> None:
        self._db, self._bodies = db, bodies
        self.number, start_ns, self.end_ns, type, name, soft, self.reaction = row[3:]
        self.tool: str | None = (name or "") if type == "tool" else None
        self.start_ns = known_ns(start_ns)
        self.is_soft = soft is not None

    def counts(self) -> bool:
        """Tell whether it is a tool's call, or an answer."""
        return self.tool is not None or self._answers

    @cached_property
    def _answers(self) -> bool:
        generation, pack = self._db.execute(_GENERATION, (self.number,)).fetchone() or (None, None)
        with suppress(CorruptStoreError):
            if pack is not None:
                generation = self._bodies.packs.step(pack, self.number)["generation"]
            return answers(raw(generation))
        return False

    def key(self) -> bytes:
        """Return the tool and its arguments; of what can't be read, what equals nothing else."""
        try:
            given = step_of_row(self._db.execute(_RECORD, (self.number,)).fetchone(), self._bodies).input
        except CorruptStoreError:
            return str(self.number).encode()
        return key_of(self.tool, None if given is UNSET else decoded(given))


def _settle(db: sqlite3.Connection, bodies: Bodies, run: bytes | str) -> None:
    """Find what was done after each soft error of a run."""
    first, last = (run, run) if isinstance(run, str) else id_range(run)
    rows = db.execute(_OF_RUN, (run, first, last)).fetchall()
    if len(rows) > MAX_STEPS:
        db.execute(_FORGET, (run,))
        return
    steps = [_Step(db, bodies, row) for row in in_order(rows) if row[6] in {"llm", "tool"}]
    found: list[tuple[str, int]] = []
    for at, step in enumerate(steps):
        if step.is_soft and (reaction := reaction_to(steps, at)[0]) != step.reaction:
            found.append((reaction, step.number))
    db.executemany(_SET, found)
