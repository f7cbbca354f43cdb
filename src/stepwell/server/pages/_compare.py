"""Two runs beside each other: what they did alike, where they part, and what one took more than the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Annotated, Any, Final

from fastapi import Query, Request, Response
from msgspec import UNSET, json

from stepwell._render import duration
from stepwell._vocabulary import MAX_ID_CHARACTERS
from stepwell.model import StepRecord
from stepwell.server._access import InStore
from stepwell.server._routing import Router
from stepwell.server.pages._aligning import MAX_ACTIONS, Action, Pair, Words, align, diff_words
from stepwell.server.pages._content import mapping, messages_of, read, tools_of
from stepwell.server.pages._entry import Lines, generation_of, lines_of
from stepwell.server.pages._page import cost, count, page
from stepwell.server.pages._rows import Family, Row
from stepwell.server.pages._runs import families_of
from stepwell.store import Store

__all__ = ["router"]

router = Router(include_in_schema=False)

RunId = Annotated[str, Query(max_length=MAX_ID_CHARACTERS)]
RunIds = Annotated[list[str] | None, Query(max_length=10)]
FOLD: Final = 4  # so many equal pairs in a row become one line


@dataclass(frozen=True, slots=True)
class _Side:
    """A run, the steps of it that are compared, and their records."""

    family: Family
    rows: Sequence[Row]
    records: dict[str, StepRecord]
    actions: Sequence[Action]
    lines: dict[str, Lines]

    @property
    def left_out(self) -> int:
        """How many of its steps are beyond what is compared."""
        return len(self.family.rows) - 1 - len(self.rows)

    def record(self, place: int | None) -> StepRecord | None:
        """Return the record of an action."""
        return None if place is None else self.records.get(self.rows[place].step.id)


def _side(store: Store, family: Family) -> _Side:
    rows = [row for row in family.rows if row is not family.root][:MAX_ACTIONS]
    records = {record.id: record for record in store.steps_in_full([row.step.id for row in rows])}
    actions = [Action((row.step.type, row.step.name), _content_of(records.get(row.step.id))) for row in rows]
    return _Side(family, rows, records, actions, {id: lines_of(record) for id, record in records.items()})


def _content_of(record: StepRecord | None) -> bytes:
    """Return a digest of what went in and came out; of a model call, of its answer and settings."""
    digest = blake2b(digest_size=16)
    if record is not None:
        generation = generation_of(record)
        parts: list[Any] = [record.input, record.output, generation.message_completion, generation.completion]
        for part in [*parts, generation.settings]:
            digest.update(b"-" if part is UNSET else bytes(part))
            digest.update(b"\0")
        digest.update(f"{generation.model} {record.status} {record.error and record.error.type}".encode())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pairs after one another, with their numbers; `folded` where all are equal and too many to read."""

    pairs: list[tuple[int, Pair]]
    folded: bool


def stretches_of(pairs: Sequence[Pair], selected: int) -> list[Stretch]:
    """Part the pairs into equal stretches and what is between them; the selected pair is in no fold."""
    stretches: list[Stretch] = []
    equal: list[tuple[int, Pair]] = []

    def end() -> None:
        if equal:
            folds = len(equal) >= FOLD and all(at != selected for at, _ in equal)
            stretches.append(Stretch(list(equal), folds))
            equal.clear()

    for at, pair in enumerate(pairs):
        if pair.kind == "same":
            equal.append((at, pair))
        else:
            end()
            stretches.append(Stretch([(at, pair)], folded=False))
    end()
    return stretches


@router.get("/compare")
def compare(  # noqa: PLR0917 (FastAPI passes them by name)
    store: InStore, request: Request, a: RunId = "", b: RunId = "", run: RunIds = None, at: int | None = None
) -> Response:
    """Compare two runs; without two, ask for them."""
    picked = [*(run or ()), "", ""]
    a, b = a or picked[0], b or picked[1]
    if not a or not b:
        return page(request, "compare.html", {"a": a, "b": b, "sides": None, "picked": len(run or ())})
    families = families_of(request)
    left, right = _side(store, families.of(store, a)), _side(store, families.of(store, b))
    pairs = align(left.actions, right.actions)
    first = next((number for number, pair in enumerate(pairs) if pair.kind != "same"), 0)
    selected = at if at is not None and 0 <= at < len(pairs) else first
    counts = {kind: sum(pair.kind == kind for pair in pairs) for kind in ("same", "changed", "left", "right")}
    context = {
        "a": a,
        "b": b,
        "sides": (left, right),
        "left": left,
        "right": right,
        "stretches": stretches_of(pairs, selected),
        "selected": selected,
        "counts": counts,
        "diffs": _diffs(left, right, pairs[selected]) if pairs else [],
        "figures": _figures(left.family, right.family),
        "setups": _setups(left, right),
    }
    return page(request, "compare.html", context)


def _diffs(left: _Side, right: _Side, pair: Pair) -> list[tuple[str, Words]]:
    """Compare the texts of a pair, of each kind that one of them has."""
    ones, others = _texts(left.record(pair.left)), _texts(right.record(pair.right))
    names = dict.fromkeys([*ones, *others])
    return [(name, diff_words(ones.get(name, ""), others.get(name, ""))) for name in names]


def _texts(record: StepRecord | None) -> dict[str, str]:
    if record is None:
        return {}
    generation = generation_of(record)
    payloads = {
        "Input": record.input,
        "Output": record.output,
        "Answer": generation.message_completion,
        "Completion": generation.completion,
        "Settings": generation.settings,
    }
    texts = {name: _pretty(read(payload)) for name, payload in payloads.items() if payload is not UNSET}
    if record.error is not None:
        texts["Error"] = f"{record.error.type or ''}: {record.error.message or ''}"
    return texts


def _pretty(value: Any) -> str:
    if isinstance(value, str):
        return value
    fields = mapping(value)
    content = fields.get("content") if len(fields) <= 2 else None
    return content if isinstance(content, str) else json.format(json.encode(value), indent=2).decode()


def _figures(left: Family, right: Family) -> list[tuple[str, str, str, str]]:
    """Return what both runs come to, and the difference: name, left, right, difference."""
    one, other = left.root.sums, right.root.sums
    figures: list[tuple[str, float | None, float | None, Callable[[float], str]]] = [
        ("Time", left.root.duration_ns, right.root.duration_ns, lambda ns: duration(round(ns))),
        ("Steps", one.steps, other.steps, count),
        ("Model calls", one.calls, other.calls, count),
        ("Tool calls", one.tools, other.tools, count),
        ("Errors", one.errors, other.errors, count),
        ("Tokens", one.tokens, other.tokens, count),
        ("Cost", one.cost, other.cost, cost),
    ]
    return [
        (name, _known(first, text), _known(second, text), _delta(first, second, text))
        for name, first, second, text in figures
    ]


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "not known" if value is None else text(value)


def _delta(one: float | None, other: float | None, text: Callable[[float], str]) -> str:
    if one is None or other is None:
        return ""
    if one == other:
        return "equal"
    share = f" ({(other - one) / one:+.0%})" if one else ""
    return f"{'+' if other > one else '-'}{text(abs(other - one))}{share}"


def _setups(left: _Side, right: _Side) -> list[tuple[str, Words]]:
    """Compare what the first model call of each run was set up with."""
    ones, others = _setup(left), _setup(right)
    return [(name, diff_words(ones[name], others[name])) for name in ones if ones[name] or others[name]]


def _setup(side: _Side) -> dict[str, str]:
    calls = [row.step.id for row in side.rows if row.step.type == "llm" and row.step.id in side.records]
    setup: dict[str, str] = dict.fromkeys(("Model", "Settings", "Tools", "System prompt"), "")
    if calls:
        generation = generation_of(side.records[calls[0]])
        system = [each for each in messages_of(generation.messages) if each.role in {"system", "developer"}]
        setup["Model"] = generation.model or ""
        settings = read(generation.settings)
        setup["Settings"] = "" if settings is None else _pretty(settings)
        setup["Tools"] = "\n".join(sorted(tool.name for tool in tools_of(generation.tools)))
        setup["System prompt"] = "\n\n".join(part.text + part.tail for each in system for part in each.parts)
    return setup
