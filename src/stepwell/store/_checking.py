"""What may be missing in the embedded store though the file itself is whole: rows that others refer to."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Final

from stepwell.errors import CorruptStoreError
from stepwell.store._messages import Bodies
from stepwell.store._packs import contents_of, read_pack
from stepwell.store._spans import Spans, decode_spans, spans_of_refs, united, without

__all__ = ["find_lost"]

_LOST: Final = "SELECT count(*) FROM payload WHERE number NOT IN (SELECT number FROM steps)"
_DANGLING: Final = (
    ("{} tags belong to no step", "SELECT count(*) FROM step_tags WHERE step NOT IN (SELECT number FROM steps)"),
    (
        "{} soft errors belong to no step",
        "SELECT count(*) FROM soft_errors WHERE step NOT IN (SELECT number FROM steps)",
    ),
    ("{} blobs belong to no step", "SELECT count(*) FROM step_blobs WHERE step NOT IN (SELECT number FROM steps)"),
)
_REFERRING: Final = "SELECT number, pack, refs FROM payload WHERE pack IS NOT NULL OR refs IS NOT NULL"


def find_lost(db: sqlite3.Connection) -> list[str]:
    """Return what is missing; reads every payload's references and every pack."""
    (lost,) = db.execute(_LOST).fetchone()
    problems = [f"{lost} payloads belong to no step"] if lost else []
    for problem, query in _DANGLING:
        (count,) = db.execute(query).fetchone()
        problems += [problem.format(count)] if count else []
    used: Spans = []
    problems += _wrong_packs(db, used)
    bodies = Bodies(db)
    broken = sum(not _resolves(bodies, *row) for row in db.execute(_REFERRING))
    if broken:
        problems.append(f"{broken} payloads refer to what is not there")
    if unused := _unused_messages(db, used):
        problems.append(f"{unused} messages belong to no step")
    return problems


def _wrong_packs(db: sqlite3.Connection, used: Spans) -> Iterator[str]:
    """Name packs that can't be read or are listed wrongly; add what messages their payloads refer to."""
    listed = {pack: tuple(contents) for pack, *contents in db.execute("SELECT * FROM pack_contents")}
    (unlisted,) = db.execute("SELECT unlisted_pack FROM state").fetchone()
    for number, body in db.execute("SELECT number, body FROM packs"):
        try:
            contents = contents_of(read_pack(number, body))
        except CorruptStoreError as error:
            yield str(error)
            continue
        used += decode_spans(contents[2])
        if listed.get(number) != contents and number > unlisted:
            yield f"pack {number} is listed wrongly"


def _unused_messages(db: sqlite3.Connection, used: Spans) -> int:
    """Count messages that nothing refers to, but for those that wait to be deleted."""
    spans = [*used, *db.execute("SELECT first, last FROM loose_messages").fetchall()]
    for (refs,) in db.execute("SELECT refs FROM payload INDEXED BY payload_refs WHERE refs IS NOT NULL"):
        spans += spans_of_refs(refs)
    numbers = united((number, number) for (number,) in db.execute("SELECT number FROM messages"))
    return sum(last - first + 1 for first, last in without(numbers, united(spans)))


def _resolves(bodies: Bodies, number: int, pack: int | None, refs: str | None) -> bool:
    try:
        if pack is not None:
            refs = bodies.packs.step(pack, number)["refs"]
        return refs is None or bodies.are_there(refs)
    except CorruptStoreError:
        return False
