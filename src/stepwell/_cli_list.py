"""`stepwell ls` and `stepwell show`: lists, trees, and a step in full."""

from __future__ import annotations

import json as standard_json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

from msgspec import UNSET, Raw, json, structs, to_builtins

from stepwell._answers import caught_up_for, in_full
from stepwell._cli_output import Output, moment
from stepwell._render import Line, Node, clean, duration, node_of_record, node_of_row, readable, table, tree
from stepwell._vocabulary import StepType
from stepwell.errors import UsageError
from stepwell.model import (
    MESSAGE_TYPES,
    STATUSES,
    STEP_TYPES,
    Attachment,
    Score,
    StepRecord,
    ThreadRecord,
    encode_record,
)
from stepwell.store import Page, RunRow, StepFilter, StepRow, Store, ThreadRow
from stepwell.store._conditions import thread_filter, with_query, with_thread_query

__all__ = ["LISTS", "filter_of", "list_rows", "show", "since_ns"]

Row = TypeVar("Row", StepRow, RunRow, ThreadRow)

LISTS: Final = ("runs", "steps", "threads")
DETAILED_STEPS: Final = 2000  # of a tree; beyond that, messages and errors of the rest are not read
_LATEST_NS: Final = (1 << 63) - 1  # what a store can hold; the year 2262
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def since_ns(text: str | None) -> int | None:
    """Read `2h`, `30m`, `7d` or an ISO date or time (local, unless it says its zone). Raises `UsageError`."""
    if text is None:
        return None
    try:
        if ago := re.fullmatch(r"(\d{1,6})([smhdw])", text):
            moment_then = datetime.now().astimezone() - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            moment_then = datetime.fromisoformat(text).astimezone()
        return min(int(moment_then.timestamp()) * 1_000_000_000 + moment_then.microsecond * 1000, _LATEST_NS)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"--since {text!r} is neither like 30m, 2h or 7d nor an ISO date or time") from error


def filter_of(options: Mapping[str, Any]) -> StepFilter:
    """Make a filter of the command's options. Raises `UsageError` for a type or status there is not."""
    for type_ in options.get("type") or ():
        if type_ not in STEP_TYPES:
            raise UsageError(f"--type {type_!r} is not one of {', '.join(sorted(STEP_TYPES))}")
    status = options.get("status")
    if status is not None and status not in STATUSES:
        raise UsageError(f"--status {status!r} is not one of {', '.join(sorted(STATUSES))}")
    filter = StepFilter(
        type=options.get("type") or None,
        name=options.get("name"),
        tag=tuple(options.get("tag") or ()),
        status=status,
        model=options.get("model"),
        thread_id=options.get("thread"),
        since_ns=since_ns(options.get("since")),
        text=options.get("search"),
    )
    return with_query(filter, options.get("query"))


def list_rows(store: Store, what: str, options: Mapping[str, Any], page: Mapping[str, Any], out: Output) -> None:
    """Print one page of runs, steps or threads."""
    if what == "threads":
        for name in ("type", "status", "model", "thread", "search"):
            if options.get(name):
                raise UsageError(f"--{name} {options[name]!r} is of steps; threads have --name, --tag and --since")
        kept = thread_filter(filter_of({name: value for name, value in options.items() if name != "query"}))
        threads = store.threads(with_thread_query(kept, options.get("query")), **page)
        _print_page(threads, _THREAD_COLUMNS, 1, out)
        return
    filter = filter_of(options)
    caught_up_for(store, filter)
    if what == "runs":
        if filter.type is None:  # a message of a thread has no parent either
            filter = replace(filter, type=cast("Sequence[StepType]", sorted(STEP_TYPES - MESSAGE_TYPES)))
        _print_page(store.runs(filter, **page), _RUN_COLUMNS, 2, out)
    else:
        _print_page(store.steps(filter, **page), _STEP_COLUMNS, 3, out)


def _print_page(page: Page[Row], columns: Mapping[str, Callable[[Row], str]], flexible: int, out: Output) -> None:
    if out.as_json:
        out.json_lines(json.encode(row) for row in page.items)
    elif page.items:
        rows = ([cell(row) for cell in columns.values()] for row in page.items)
        out.lines(table(list(columns), rows, flexible=flexible, width=out.screen.width))
    else:
        out.text("nothing found")
    if page.next_cursor is not None:
        out.note(f"more follow: --cursor {page.next_cursor}")


def _took(row: StepRow) -> str:
    return "" if row.start_ns is None or row.end_ns is None else duration(max(0, row.end_ns - row.start_ns))


def _status(row: StepRow) -> str:
    if row.soft_error is not None:
        return f"{row.status or ''} ({row.soft_error} result)".lstrip()
    return f"{row.status} {row.error_type}" if row.status == "failed" and row.error_type else row.status or ""


def _count(number: int | None) -> str:
    return f"{number:,}" if number else ""


_THREAD_COLUMNS: Final[dict[str, Callable[[ThreadRow], str]]] = {
    "THREAD": lambda row: row.id,
    "NAME": lambda row: row.name or "",
    "USER": lambda row: row.user or "",
    "LAST STEP": lambda row: moment(row.last_step_ns or row.created_ns),
    "STEPS": lambda row: _count(row.steps),
    "TOKENS": lambda row: _count(row.tokens),
    "FAILED": lambda row: _count(row.errors),
    "TAGS": lambda row: " ".join(row.tags),
}
_STEP_COLUMNS: Final[dict[str, Callable[[StepRow], str]]] = {
    "STEP": lambda row: row.id,
    "START": lambda row: moment(row.start_ns),
    "TYPE": lambda row: row.type or "",
    "NAME": lambda row: row.name or "",
    "STATUS": _status,
    "TOOK": _took,
    "TOKENS": lambda row: _count(row.total_tokens),
    "MODEL": lambda row: row.model or "",
}
_RUN_COLUMNS: Final[dict[str, Callable[[RunRow], str]]] = {
    "RUN": lambda row: row.id,
    "START": lambda row: moment(row.start_ns),
    "NAME": lambda row: row.name or row.type or "",
    "STATUS": _status,
    "TOOK": _took,
    "STEPS": lambda row: _count(row.steps),
    "TOKENS": lambda row: _count(row.tokens),
    "FAILED": lambda row: _count(row.errors),
    "THREAD": lambda row: row.thread_id or "",
}


def show(store: Store, id: str, out: Output, *, full: bool | None, max_lines: int) -> None:
    """Print what an id names: a thread or run as a tree, any other step in full, unless `full` says otherwise."""
    found = store.find(id)
    if found.kind == "thread":
        _show_thread(store, found.id, out, max_lines)
        return
    step = store.step(found.id)
    if full is None:
        full = not (step.type == "run" or (step.parent_id is None and step.child_count))
    if full:
        _show_step(step, out)
    else:
        _show_tree(store, store.tree(found.id), out, max_lines)


def _show_thread(store: Store, id: str, out: Output, max_lines: int) -> None:
    thread, rows = store.thread(id), store.thread_steps(id)
    if out.as_json:
        out.json_lines([encode_record(thread)])
        out.json_lines(map(encode_record, in_full(store, [row.id for row in rows])))
        return
    out.lines([_thread_line(thread, rows)])
    out.lines(tree(_nodes(store, rows), below=True, max_lines=max_lines))


def _thread_line(thread: ThreadRecord, rows: Sequence[StepRow]) -> Line:
    line: Line = [("thread", "bold green"), (f"  {clean(thread.id, 256)}", "bold")]
    user = thread.user and (thread.user.identifier or thread.user.id)
    line += [(f"  {clean(text, 200)}", "") for text in (thread.name, user and f"user {user}") if text]
    line += [(f"  #{clean(tag, 40)}", "green") for tag in thread.tags or ()]
    failed = sum(row.status == "failed" for row in rows)
    tokens = sum(row.total_tokens or 0 for row in rows)
    sums = f"{len(rows):,} steps, {tokens:,} tokens, {failed:,} failed"
    return [*line, (f"  ({sums})", "dim")]


def _show_tree(store: Store, rows: Sequence[StepRow], out: Output, max_lines: int) -> None:
    if out.as_json:
        out.json_lines(map(encode_record, in_full(store, [row.id for row in rows])))
    else:
        out.lines(tree(_nodes(store, rows), max_lines=max_lines))


def _nodes(store: Store, rows: Sequence[StepRow]) -> list[Node]:
    detailed = map(node_of_record, in_full(store, [row.id for row in rows[:DETAILED_STEPS]]))
    return [*detailed, *map(node_of_row, rows[DETAILED_STEPS:])]


# -- a step in full


def _show_step(step: StepRecord, out: Output) -> None:
    if out.as_json:
        out.json_lines([encode_record(step)])
        return
    out.lines(tree([node_of_record(step)]))
    out.lines(_facts(step), clipped=False)
    if step.error is not None:
        out.lines(_section("error", f"{step.error.type or ''}: {step.error.message or ''}".strip(": ")), clipped=False)
        if step.error.traceback:
            out.lines(_section("traceback", step.error.traceback), clipped=False)
    for name in ("input", "output"):
        out.lines(_payload(name, getattr(step, name)), clipped=False)
    if step.generation is not UNSET:
        out.lines(_generation(readable(json.decode(step.generation))), clipped=False)
    out.lines(_payload("metadata", step.metadata), clipped=False)
    for what, items in (("score", step.scores), ("attachment", step.attachments)):
        for item in items or ():
            out.lines(_section(what, _pretty(_present(item))), clipped=False)


_SECTIONS: Final = frozenset({"error", "input", "output", "generation", "metadata", "scores", "attachments"})


def _facts(step: StepRecord) -> Iterable[Line]:
    for name, value in structs.asdict(step).items():
        if value is None or name in _SECTIONS:
            continue
        if name in {"start_ns", "end_ns"}:
            text = f"{value}  {moment(value, '%Y-%m-%d %H:%M:%S.%f %z')}"
        else:
            text = " ".join(cast("list[str]", value)) if isinstance(value, list) else str(value)
        yield [(f"{name:16}", "dim"), (_harmless(text), "")]


def _present(item: Score | Attachment) -> dict[str, Any]:
    given = structs.asdict(item).items()
    return {
        name: json.decode(value) if isinstance(value, Raw) else to_builtins(value)
        for name, value in given
        if value is not None and value is not UNSET
    }


def _payload(name: str, payload: Any) -> list[Line]:
    return [] if payload is UNSET else _section(name, _value_text(readable(json.decode(payload))))


def _value_text(value: Any) -> str:
    return value if isinstance(value, str) else _pretty(value)


def _generation(fields: dict[str, Any]) -> list[Line]:
    lines: list[Line] = [[("generation", "bold")]]
    messages: Any = fields.pop("messages", None) or []
    answer = fields.pop("message_completion", None)
    if isinstance(answer, dict) and cast("dict[str, Any]", answer).get("content") == fields.get("completion"):
        fields.pop("completion", None)  # the same text again
    for name, value in fields.items():
        text = _value_text(value)
        if "\n" in text:
            lines += [[(f"  {_harmless(name)}", "dim")], *_block(text, "    ")]
        else:
            lines += [[(f"  {_harmless(name):18}", "dim"), (_harmless(text), "")]]
    for message in _as_several(messages):
        lines += _message(message, "")
    return lines + _message(answer, " (answer)") if answer is not None else lines


def _message(message: Any, remark: str) -> list[Line]:
    if not isinstance(message, dict):
        return [[(f"  message{remark}", "bold green")], *_block(_value_text(message), "    ")]
    rest = cast("dict[str, Any]", message).copy()
    role, content = rest.pop("role", "message"), rest.pop("content", None)
    lines: list[Line] = [[(f"  {clean(str(role))}{remark}", "bold green")]]
    for part in _as_several(content):
        text = cast("dict[str, Any]", part).get("text") if isinstance(part, dict) else part
        if part is not None:
            lines += _block(text if isinstance(text, str) else _pretty(part), "    ")
    return lines + _block(_pretty(rest), "    ") if rest else lines


def _as_several(value: Any) -> Sequence[Any]:
    return cast("Sequence[Any]", value) if isinstance(value, list) else [value]


def _section(name: str, text: str) -> list[Line]:
    return [[(name, "bold")], *_block(text, "  ")]


def _block(text: str, indent: str) -> list[Line]:
    return [[(indent + _harmless(line), "")] for line in text.expandtabs(4).splitlines() or [""]]


def _harmless(line: str) -> str:
    """Show what a terminal would act upon as an escape; unlike `clean` this keeps every character visible."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" if ord(c) < 65536 else f"\\U{ord(c):08x}" for c in line)


def _pretty(value: Any) -> str:
    return standard_json.dumps(value, indent=2, ensure_ascii=False)
