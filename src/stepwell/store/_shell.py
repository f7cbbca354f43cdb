"""A list as a command line of the `sqlite3` shell: the statement that a store itself runs, with its values in it.

What must stay true: the shell prints the ids that the list has, in its order; and no value, whatever is in it, ends a
literal, a word of the command line, or the line.
"""

# ruff: noqa: S608 (it is made of our own statements, and of values as literals)

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from stepwell.store import Order, StepFilter, ThreadFilter
from stepwell.store._query import Keyset, select_steps, select_threads
from stepwell.store._texts import match_of

__all__ = ["shell_line", "steps_as_sql", "threads_as_sql"]

_UUID: Final = ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))
_ID: Final = "CASE typeof(s.id) WHEN 'blob' THEN lower({}) ELSE s.id END AS id".format(
    " || '-' || ".join(f"substr(hex(s.id), {first}, {length})" for first, length in _UUID)
)
_STEP: Final = (
    f"{_ID}, s.type, s.name, s.status, s.model, s.total_tokens AS tokens, s.cost, "
    "datetime(s.start_ns / 1000000000, 'unixepoch') AS started"
)
_THREAD: Final = (
    "t.id, t.name, t.user_name AS user, t.steps, t.errors, t.tokens, "
    "datetime(t.active_ns / 1000000000, 'unixepoch') AS active"
)
_FOUND: Final = (
    "SELECT number FROM steps WHERE ifnull(changed, number) IN (SELECT rowid FROM step_texts WHERE step_texts MATCH {})"
)
_ROOTS: Final = "SELECT r.number FROM steps x JOIN steps r ON r.id = ifnull(x.root_run_id, x.id) WHERE x.number IN ({})"


class _Sql(str):
    """An expression that stands for a value."""

    __slots__ = ()


def steps_as_sql(filter: StepFilter, *, limit: int, order: Order) -> str:
    """Return the statement of the first page of `Store.steps`, or of `Store.runs` for a filter with `root_only`.

    Words are looked for in the index alone, without what was added since the store caught up.
    """
    among = None
    if filter.text is not None:
        found = _FOUND.format(_literal(match_of(filter.text)))
        found = _ROOTS.format(found) if filter.root_only else found
        among = _Sql(f"(SELECT json_group_array(number) FROM ({found}))")
    statement, values = select_steps(_STEP, filter, Keyset("x", limit, None, order), among=among)
    return _filled(statement, "s.number, s.start_ns, ", values)


def threads_as_sql(filter: ThreadFilter, *, limit: int, order: Order) -> str:
    """Return the statement of the first page of `Store.threads`."""
    statement, values = select_threads(_THREAD, filter, Keyset("x", limit, None, order))
    return _filled(statement, "t.number, t.active_ns, ", values)


def _filled(statement: str, keys: str, values: Sequence[Any]) -> str:
    """Return a statement without its keys, and with literals in the places of its values, the last of which is a limit
    that is one row above the page.
    """
    pieces = " ".join(statement.split()).replace(keys, "", 1).split("?")
    literals = map(_literal, [*values[:-1], values[-1] - 1])
    return pieces[0] + "".join(literal + piece for literal, piece in zip(literals, pieces[1:], strict=True))


def _literal(value: Any) -> str:
    if isinstance(value, _Sql):
        return value
    if isinstance(value, str):
        if value.isprintable():
            return "'" + value.replace("'", "''") + "'"
        return f"CAST(x'{value.encode('utf-8', 'replace').hex()}' AS TEXT)"  # line ends, NUL, what turns text around
    if isinstance(value, bytes | bytearray):
        return f"x'{value.hex()}'"
    if isinstance(value, float):
        return "9e999" if value == float("inf") else "-9e999" if value == float("-inf") else repr(value)
    return str(int(value))


def shell_line(path: str, statement: str) -> str:
    """Return the command line that runs a statement on the store of a path, which it does not change."""
    return shlex.join(["sqlite3", "-readonly", "-box", path, statement])
