"""What lists show of the scores of their steps: of each name the latest.

What must stay true: it costs the rows of a page, not the scores that a step was given: of each step no more than
`MAX_SCORES` are looked at, those that came last, and no comment is read.
"""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, Final

from stepwell.model import Score
from stepwell.store import Judgements
from stepwell.store._rows import pack_id

__all__ = ["read_judgements"]

MAX_SCORES: Final = 100
_LATEST: Final = f"SELECT number FROM scores WHERE step_id = v.column1 ORDER BY number DESC LIMIT {MAX_SCORES + 1}"
_SELECT: Final = f"""
    SELECT c.step_id, c.number, c.id, c.name, c.type, c.value, c.label, c.created_ns
    FROM (VALUES {{places}}) v CROSS JOIN scores c ON c.number IN ({_LATEST})
"""


def read_judgements(db: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Judgements]:
    """Return the judgements of those steps that have any."""
    if not ids:
        return {}
    packed = {_key(id): id for id in ids}
    select = _SELECT.format(places=", ".join(["(?)"] * len(packed)))
    by_step: dict[str, list[tuple[Any, ...]]] = {}
    for step_id, *row in db.execute(select, [pack_id(id) for id in packed.values()]):
        by_step.setdefault(packed[step_id], []).append(tuple(row))
    return {id: _judgements(rows) for id, rows in by_step.items()}


def _key(id: str) -> bytes | str:
    packed = pack_id(id)
    return packed if isinstance(packed, str) else bytes(packed)


def _judgements(rows: list[tuple[Any, ...]]) -> Judgements:
    latest: dict[str | None, Score] = {}
    for _, id, name, type, value, label, created_ns in sorted(sorted(rows, key=itemgetter(0))[-MAX_SCORES:], key=_age):
        latest[name] = Score(id=id, name=name, type=type, value=value, label=label, created_ns=created_ns)
    scores = sorted(latest.values(), key=lambda score: (score.name is None, score.name or ""))
    return Judgements(tuple(scores), more=len(rows) > MAX_SCORES)


def _age(row: tuple[Any, ...]) -> tuple[int, int]:
    """Order scores as the feedback of a step does: by creation, then by arrival."""
    return row[6] or 0, row[0]
