"""Between records and rows of the embedded store: how ids, payloads and lists are written and read back.

What must stay true: what is read equals what was written, payload bytes included.

The shape of this code is its speed: `sqlite3` binds an int, a str and a bytearray directly, but looks for an adapter
for None, bytes and any other type, which takes three to five times as long. So ids are bytearrays, payloads are str,
and absent columns are left out of the statement (see `_write`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import (
    Attachment,
    ErrorInfo,
    Generation,
    Score,
    StepRecord,
    ThreadRecord,
    Usage,
    User,
)
from stepwell.store import Facets, RunRow, StepRow, ThreadRow
from stepwell.store._messages import Bodies
from stepwell.store._previews import Previews

Packed = Any  # bytearray | str | None: a union here costs the packing code a check a column
Stored = bytes | str | None

REQUIRED_STEP_COLUMNS: Final = ("number", "id", "type", "name", "start_ns", "status")
OPTIONAL_STEP_COLUMNS: Final = (
    *("trace_id", "parent_id", "root_run_id", "stray"),
    *("thread_id", "end_ns", "child_count", "tags", "error_type", "downgraded_from"),
    *("environment", "service", "release", "user"),
    *("model", "provider", "input_tokens", "output_tokens", "total_tokens"),
    *("cached_input_tokens", "cache_write_tokens", "reasoning_tokens", "cost", "ttft_ns", "request_id"),
    *("error_message", "agent_id", "input_preview", "output_preview"),
)
PAYLOAD_COLUMNS: Final = (
    *("input", "output", "generation", "metadata", "error", "attachments", "active_ns", "sdk", "refs", "pack"),
)
RECORD_COLUMNS: Final = (*(name for name in StepRecord.__struct_fields__ if name != "scores"), "refs", "pack", "number")
_SOFT: Final = "CASE s.type WHEN 'tool' THEN (SELECT {} FROM soft_errors WHERE step = s.number) END"
LIST_SQL: Final = ", ".join(
    (*(f"s.{name}" for name in StepRow.__struct_fields__[:-2]), _SOFT.format("kind || ' ' || ifnull(reaction, '')"))
)
_FACET_COLUMNS: Final = ("type", "status", "model", "user", "environment")
FACETS: Final[Sequence[str]] = (*_FACET_COLUMNS, "soft_error", "reaction", "tag")
FACET_SQL: Final = ", ".join(
    (
        "s.status IS 'failed'",
        *(f"s.{name}" for name in _FACET_COLUMNS),
        *(_SOFT.format("kind"), _SOFT.format("reaction"), "s.tags"),
    )
)
THREAD_FACETS: Final[Sequence[str]] = ("user", "environment", "tag")
THREAD_FACET_SQL: Final = "t.errors > 0, t.user_name, t.environment, t.tags"
RECORD_SQL: Final = ", ".join(
    "ifnull(s.agent_id, p.agent_id)"  # where version 1 kept it
    if name == "agent_id"
    else f"{'p' if name in PAYLOAD_COLUMNS else 's'}.{name}"
    for name in RECORD_COLUMNS
)
THREAD_COLUMNS: Final = ("id", "name", "user", "user_name", "tags", "metadata", "environment", "created_ns")
SCORE_COLUMNS: Final = (
    *("step_id", "id", "name", "type", "value", "label", "comment", "tags", "created_ns", "named_step"),
)
UNKNOWN_NS: Final = -1
REFS_BIT: Final = 0x2000000000
PACK_BIT: Final = 0x4000000000
METADATA_BIT: Final = 0x100000000

_HEAD: Final = 18  # characters of a UUID that spell its first 8 bytes

_GENERATION_BITS: Final = 0x7C000
MAX_ERROR_CHARACTERS: Final = 200  # of the message that lists show
_MAX_COST: Final = 1e15
_FACETS: Final = 8
_NO_USAGE: Final = Usage()
_encode = json.Encoder().encode
_tags = json.Decoder(list[str])
_tag_tuple = json.Decoder(tuple[str, ...])
_attachments = json.Decoder(list[Attachment])
_error = json.Decoder(ErrorInfo)
_user = json.Decoder(User)


def pack_id(id: str) -> bytearray | str:
    """Return a canonical lower-case UUID as its 16 bytes, any other id as it is."""
    if len(id) != 36 or not (id[8] == id[13] == id[18] == id[23] == "-"):
        return id
    digits = id.replace("-", "")
    try:
        packed = bytearray.fromhex(digits)
    except ValueError:
        return id
    return packed if packed.hex() == digits else id  # fromhex also takes capitals and spaces, which would be lost


def pack_trace_id(id: str) -> bytearray | str:
    """Return 32 lower-case hex digits as their 16 bytes, any other trace id as it is."""
    packed = pack_id(f"{id[:8]}-{id[8:12]}-{id[12:16]}-{id[16:20]}-{id[20:]}")
    return id if isinstance(packed, str) else packed


def unpack_id(stored: Stored) -> str | None:
    """Return an id as it was given."""
    if not isinstance(stored, bytes):
        return stored
    digits = stored.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def unpack_trace_id(stored: Stored) -> str | None:
    """Return a trace id as it was given."""
    return stored.hex() if isinstance(stored, bytes) else stored


class _Packed(dict["str", tuple[Packed, "str | None"]]):
    """Packs the ids that links name, each once a batch, with the characters that ids of the same trace begin with."""

    def __init__(self, pack: Callable[[str], Packed]) -> None:
        self._pack = pack

    def __missing__(self, id: str) -> tuple[Packed, str | None]:
        packed = self._pack(id)
        head = None if isinstance(packed, str) else str(unpack_id(bytes(packed)))[:_HEAD]
        found = self[id] = packed, head
        return found


class StepPacker:
    """Turns the steps of a batch into rows without their absent columns."""

    def __init__(self) -> None:
        self._ids = _Packed(pack_id)
        self._trace_ids = _Packed(pack_trace_id)

    def pack(
        self, step: StepRecord, generation: Generation | None, previews: Previews, *, has_refs: bool
    ) -> tuple[int, list[Any], list[Any]]:
        """Return the row's shape, its values for `steps` and its values for `payload`, each after a place for `number`.

        Bit n of the shape says that column n of `OPTIONAL_STEP_COLUMNS + PAYLOAD_COLUMNS` is present. `has_refs` leaves
        a place for `refs` at the end. Raises `UsageError` for a time before 1970, and `UnicodeDecodeError` for a
        payload that is not UTF-8.
        """
        start_ns = step.start_ns
        if start_ns is None:
            start_ns = UNKNOWN_NS
        elif start_ns < 0:
            raise UsageError(f"not a record: start_ns must be >= 0, got {start_ns} - at `$.start_ns`")
        row = [0, pack_id(step.id), step.type, step.name, start_ns, step.status]
        shape = self._pack_links(step, row) | _pack_details(step, row) | _pack_origin(step, row)
        if generation is not None:
            shape |= _pack_generation(generation, row)
        shape |= _pack_late_columns(step, previews, row)
        payload: list[Any] = [0]
        shape |= _pack_payload(step, payload)
        if has_refs:
            payload.append("")
            shape |= REFS_BIT
        return shape, row, payload

    def _pack_links(self, step: StepRecord, row: list[Any]) -> int:
        shape, stray = 0, type(row[1]) is str
        head = step.id[:_HEAD]
        if (trace_id := step.trace_id) is not None:
            packed, begin = self._trace_ids[trace_id]
            row.append(packed)
            shape = 1
            if begin != head:
                stray = True
        if (parent_id := step.parent_id) is not None:
            packed, begin = self._ids[parent_id]
            row.append(packed)
            shape |= 2
            if begin != head:
                stray = True
        if (root_run_id := step.root_run_id) is not None:
            packed, begin = self._ids[root_run_id]
            row.append(packed)
            shape |= 4
            if begin != head:
                stray = True
        if stray and shape:
            row.append(1)
            shape |= 8
        return shape


def _pack_details(step: StepRecord, row: list[Any]) -> int:
    shape = 0
    if (thread_id := step.thread_id) is not None:
        row.append(thread_id)
        shape = 0x10
    if (end_ns := step.end_ns) is not None:
        row.append(end_ns)
        shape |= 0x20
    if (child_count := step.child_count) is not None:
        row.append(child_count)
        shape |= 0x40
    if (tags := step.tags) is not None:
        row.append(_encode(tags).decode())
        shape |= 0x80
    if (error := step.error) is not None and error.type is not None:
        row.append(error.type)
        shape |= 0x100
    if (downgraded_from := step.downgraded_from) is not None:
        row.append(downgraded_from)
        shape |= 0x200
    return shape


def _pack_origin(step: StepRecord, row: list[Any]) -> int:
    shape = 0
    if (environment := step.environment) is not None:
        row.append(environment)
        shape = 0x400
    if (service := step.service) is not None:
        row.append(service)
        shape |= 0x800
    if (release := step.release) is not None:
        row.append(release)
        shape |= 0x1000
    if (user := step.user) is not None:
        row.append(user)
        shape |= 0x2000
    return shape


def _pack_generation(generation: Generation, row: list[Any]) -> int:
    usage = generation.usage or _NO_USAGE
    total = usage.total_tokens
    if total is None and usage.input_tokens is not None and usage.output_tokens is not None:
        total = usage.input_tokens + usage.output_tokens
    row += (generation.model, generation.provider, usage.input_tokens, usage.output_tokens, total)
    shape = _GENERATION_BITS
    if (cached := usage.cached_input_tokens) is not None:
        row.append(cached)
        shape |= 0x80000
    if (written := usage.cache_write_tokens) is not None:
        row.append(written)
        shape |= 0x100000
    if (reasoning := usage.reasoning_tokens) is not None:
        row.append(reasoning)
        shape |= 0x200000
    if generation.cost is not UNSET and (cost := total_cost(generation.cost)) is not None:
        row.append(cost)
        shape |= 0x400000
    if (ttft_ns := generation.ttft_ns) is not None:
        row.append(ttft_ns)
        shape |= 0x800000
    if (request_id := generation.request_id) is not None:
        row.append(request_id)
        shape |= 0x1000000
    return shape


def total_cost(payload: Raw) -> float | None:
    """Return the cost that a generation names: a number, `total` of an object, else the sum of its numbers."""
    try:
        cost: object = json.decode(payload)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if isinstance(cost, dict):
        members = cast("dict[str, object]", cost)
        known = [members["total"]] if "total" in members else list(members.values())
    else:
        known = [cost]
    numbers = [value for value in known if isinstance(value, int | float) and not isinstance(value, bool)]
    total = sum(number if abs(number) < _MAX_COST else 0 for number in numbers)
    return float(total) if numbers else None


def _pack_late_columns(step: StepRecord, previews: Previews, row: list[Any]) -> int:
    shape = 0
    if (error := step.error) is not None and error.message is not None:
        row.append(error.message[:MAX_ERROR_CHARACTERS])
        shape = 0x2000000
    if (agent_id := step.agent_id) is not None:
        row.append(agent_id)
        shape |= 0x4000000
    asked, said = previews
    if asked is not None:
        row.append(asked)
        shape |= 0x8000000
    if said is not None:
        row.append(said)
        shape |= 0x10000000
    return shape


def _pack_payload(step: StepRecord, row: list[Any]) -> int:
    shape = 0
    if (value := step.input) is not UNSET:
        row.append(str(value, "utf-8"))
        shape = 0x20000000
    if (value := step.output) is not UNSET:
        row.append(str(value, "utf-8"))
        shape |= 0x40000000
    if (value := step.generation) is not UNSET:
        row.append(str(value, "utf-8"))
        shape |= 0x80000000
    if (value := step.metadata) is not UNSET:
        row.append(str(value, "utf-8"))
        shape |= 0x100000000
    if (error := step.error) is not None:
        row.append(_encode(error).decode())
        shape |= 0x200000000
    if (attachments := step.attachments) is not None:
        row.append(_encode(attachments).decode())
        shape |= 0x400000000
    if (active_ns := step.active_ns) is not None:
        row.append(active_ns)
        shape |= 0x800000000
    if (sdk := step.sdk) is not None:
        row.append(sdk)
        shape |= 0x1000000000
    return shape


def fits(*numbers: int | None) -> bool:
    """Tell whether the numbers fit a column: SQLite's integers have 64 bits, JSON's any number of them."""
    return all(number is None or -(1 << 63) <= number < 1 << 63 for number in numbers)


def check_numbers(step: StepRecord, generation: Generation | None) -> None:
    """Raise `UsageError` for a number that no column holds; called when one of a batch did not fit."""
    usage = (generation and generation.usage) or _NO_USAGE
    ttft_ns = None if generation is None else generation.ttft_ns
    numbers = (step.start_ns, step.end_ns, step.child_count, step.active_ns, ttft_ns)
    total = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    if not fits(*numbers, total, *(getattr(usage, name) for name in usage.__struct_fields__)):
        raise UsageError("not a record: a number has more than 64 bits")


def step_of_row(row: Sequence[Any], bodies: Bodies) -> StepRecord:
    """Return the record of a row of `RECORD_COLUMNS`, its messages put back, without its scores."""
    fields: dict[str, Any] = dict(zip(RECORD_COLUMNS, row, strict=True))
    pack, number = fields.pop("pack"), fields.pop("number")
    if pack is not None:
        fields |= bodies.packs.step(pack, number)
    if (refs := fields.pop("refs")) is not None:
        bodies.put_back(fields, refs)
    for name in ("id", "parent_id", "root_run_id"):
        fields[name] = unpack_id(fields[name])
    fields["trace_id"] = unpack_trace_id(fields["trace_id"])
    fields["start_ns"] = known_ns(fields["start_ns"])
    for name in ("input", "output", "generation", "metadata"):
        fields[name] = raw(fields[name])
    for name, decoder in (("error", _error), ("tags", _tags), ("attachments", _attachments)):
        if (text := fields[name]) is not None:
            fields[name] = decoder.decode(text)
    return StepRecord(**fields)


def raw(text: str | None) -> Raw | UnsetType:
    """Return a payload column as the bytes it came as."""
    return UNSET if text is None else Raw(text.encode())


def known_ns(stored: int) -> int | None:
    """Return a time, None where it is not known."""
    return None if stored == UNKNOWN_NS else stored


def listed_values(row: Sequence[Any]) -> list[Any]:
    """Return the fields of a `StepRow`, in order, of a row of `LIST_SQL`."""
    values = list(row)
    soft = values.pop()
    kind, _, reaction = ("", "", "") if soft is None else soft.partition(" ")
    values += (kind or None, reaction or None)
    values[0], values[2], values[4] = unpack_id(row[0]), unpack_id(row[2]), unpack_id(row[4])
    values[1] = unpack_trace_id(row[1])
    values[7] = known_ns(row[7])
    values[16] = () if row[16] is None else _tag_tuple.decode(row[16])
    return values


def step_row(row: Sequence[Any]) -> StepRow:
    """Return a row of `LIST_SQL` as a typed value."""
    return StepRow(*listed_values(row))


def run_row(row: Sequence[Any], sums: Sequence[Any]) -> RunRow:
    """Return a row of `LIST_SQL` with the sums of what is below it, in the order of `RunRow`."""
    values: list[Any] = [*listed_values(row), *sums]
    return RunRow(*values)


def facets_of(rows: Sequence[Sequence[Any]], more: bool, names: Sequence[str]) -> Facets:
    """Count the values of rows: number, time, and the columns of `FACET_SQL` or `THREAD_FACET_SQL`."""
    columns = list(zip(*rows, strict=True))[3:] or [()] * len(names)
    counted: dict[str, Counter[Any]] = dict(zip(names, map(Counter, columns), strict=True))
    counted["tag"] = Counter(tag for text in columns[-1] if text is not None for tag in _tag_tuple.decode(text))
    values = {
        name: [(value, count) for value, count in found.most_common(_FACETS + 1) if value is not None][:_FACETS]
        for name, found in counted.items()
    }
    return Facets(len(rows), more, values, [(row[1], bool(row[2])) for row in rows if row[1] >= 0])


def thread_of_row(row: Sequence[Any]) -> ThreadRecord:
    """Return the record of a row of `THREAD_COLUMNS`."""
    id, name, user, _, tags, metadata, environment, created_ns = row
    return ThreadRecord(
        id=id,
        name=name,
        user=None if user is None else _user.decode(user),
        tags=None if tags is None else _tags.decode(tags),
        metadata=raw(metadata),
        environment=environment,
        created_ns=created_ns,
    )


def row_of_thread(thread: ThreadRecord) -> tuple[Any, ...]:
    """Return the values of `THREAD_COLUMNS`."""
    user = thread.user
    return (
        thread.id,
        thread.name,
        None if user is None else _encode(user).decode(),
        None if user is None else user.identifier or user.id,
        None if thread.tags is None else _encode(thread.tags).decode(),
        None if thread.metadata is UNSET else str(thread.metadata, "utf-8"),
        thread.environment,
        thread.created_ns,
    )


def thread_row(row: Sequence[Any], sums: Sequence[Any]) -> ThreadRow:
    """Return a row of `THREAD_COLUMNS` with what its steps say, in the order of `ThreadRow`."""
    id, name, _, user, tags, _, environment, created_ns = row
    first_ns, last_ns, steps, errors, tokens, priced, cost, asked, answered = sums
    listed = () if tags is None else _tag_tuple.decode(tags)
    known = (first_ns, last_ns, steps, errors, int(tokens), cost if priced else None, asked, answered)
    return ThreadRow(id, name, user, listed, environment, created_ns, *known)


def score_of_row(row: Sequence[Any]) -> Score:
    """Return the score of a row of `SCORE_COLUMNS`."""
    step_id, id, name, type, value, label, comment, tags, created_ns, named_step = row
    return Score(
        id=id,
        name=name,
        step_id=unpack_id(step_id) if named_step else None,
        type=type,
        value=value,
        label=label,
        comment=comment,
        tags=None if tags is None else _tags.decode(tags),
        created_ns=created_ns,
    )


def row_of_score(step_id: str, score: Score) -> tuple[Any, ...]:
    """Return the values of `SCORE_COLUMNS`."""
    tags = None if score.tags is None else _encode(score.tags).decode()
    return (
        *(pack_id(step_id), score.id, score.name, score.type, score.value, score.label, score.comment, tags),
        *(score.created_ns, int(score.step_id is not None)),
    )
