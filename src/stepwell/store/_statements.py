"""The statements that write a step, by its shape: which of the optional columns of `steps` and `payload` it has."""

# ruff: noqa: S608 (what is put into SQL are our own column names)

from __future__ import annotations

from functools import lru_cache

from stepwell.store._rows import OPTIONAL_STEP_COLUMNS, PAYLOAD_COLUMNS, REQUIRED_STEP_COLUMNS

__all__ = ["insert_payload", "insert_step", "places_of_sums", "present_columns", "says_nothing_new", "update_step"]


@lru_cache(maxsize=1024)
def present_columns(shape: int) -> tuple[list[str], list[str]]:
    steps = [name for bit, name in enumerate(OPTIONAL_STEP_COLUMNS) if shape >> bit & 1]
    return steps, [name for bit, name in enumerate(PAYLOAD_COLUMNS, len(OPTIONAL_STEP_COLUMNS)) if shape >> bit & 1]


@lru_cache(maxsize=1024)
def places_of_sums(shape: int) -> tuple[int | None, int | None]:
    """Return the places of the tokens and of the cost in a row, None where it has none."""
    names = [*REQUIRED_STEP_COLUMNS, *present_columns(shape)[0]]
    tokens, cost = (names.index(name) if name in names else None for name in ("total_tokens", "cost"))
    return tokens, cost


@lru_cache(maxsize=1024)
def insert_step(shape: int) -> str:
    names = [*REQUIRED_STEP_COLUMNS, *present_columns(shape)[0]]
    return f"INSERT INTO steps ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) ON CONFLICT DO NOTHING"


@lru_cache(maxsize=1024)
def says_nothing_new(shape: int) -> str:
    """Return a query that finds the step when it has all that the row has: no need to read, decode and merge it."""
    steps, payload = present_columns(shape)
    same = [f"p.{name} IS ?" for name in payload]
    if "refs" not in payload:  # or an empty array would look like one that was emptied
        same.append("p.refs IS NULL")
    return (
        "SELECT s.number, p.pack, p.metadata FROM steps s LEFT JOIN payload p USING (number) "
        "WHERE s.id = ? AND s.type IS ifnull(?, s.type) "
        "AND s.name IS ifnull(?, s.name) AND s.start_ns = ifnull(nullif(?, -1), s.start_ns) "
        f"AND s.status IS ifnull(?, s.status) {''.join(f'AND s.{name} IS ? ' for name in steps)}"
        f"AND (({' AND '.join(same)}) OR p.pack IS NOT NULL)"
    )


@lru_cache(maxsize=1024)
def update_step(shape: int) -> str:
    present = present_columns(shape)[0]
    absent = [f"{name} = NULL" for name in OPTIONAL_STEP_COLUMNS if name not in present]
    names = [f"{name} = ?" for name in (*REQUIRED_STEP_COLUMNS[2:], *present, "changed")]
    return f"UPDATE steps SET {', '.join([*names, *absent])} WHERE number = ?"


@lru_cache(maxsize=1024)
def insert_payload(shape: int, *, replace: bool = False) -> str:
    names = ["number", *present_columns(shape)[1]]
    verb = "REPLACE" if replace else "INSERT"
    return f"{verb} INTO payload ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
