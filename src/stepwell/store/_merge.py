"""How a later record changes an earlier one with the same id, the same for every store.

What must stay true:

1. Present fields win, absent ones stay; tags unite in order of first appearance; attachments and scores unite by id.
2. A finished step never goes back to `pending`, nor does it become `interrupted`: a record that says so comes late and
   only fills what is missing.
3. Merging a record into itself changes nothing, so delivery may repeat.
4. An `llm` step that is finished without messages and prompt is a `run` that says so; messages that come later make
   it `llm` again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

from msgspec import UNSET, Raw, UnsetType, json, structs

from stepwell.model import Attachment, Generation, Score, ScoreRecord, StepRecord, ThreadRecord, decode_generation

__all__ = [
    "NULL",
    "apply_llm_rule",
    "is_finished",
    "is_prompted",
    "merge_score",
    "merge_step",
    "merge_thread",
    "parse_generation",
]

Item = TypeVar("Item", Attachment, Score)
Bare = TypeVar("Bare", StepRecord, ThreadRecord, ScoreRecord, Attachment, Score)

NULL: Final = Raw(b"null")
_STEP_LISTS: Final = frozenset({"tags", "attachments", "scores", "generation"})
_members = json.Decoder(dict[str, Raw])
_encode = json.Encoder().encode


def is_finished(step: StepRecord) -> bool:
    """Tell whether a step has ended, by its status or its end."""
    return step.end_ns is not None or step.status not in {None, "pending"}


def _is_late(old: StepRecord, new: StepRecord) -> bool:
    """Tell whether `new` says less of the step's end than is known."""
    return (new.status == "pending" and is_finished(old)) or (
        new.status == "interrupted" and is_finished(old) and old.status != "interrupted"
    )


def is_prompted(generation: Generation | None) -> bool:
    """Tell whether a generation holds what was asked: messages or a prompt."""
    return generation is not None and not (_is_empty(generation.messages) and _is_empty(generation.prompt))


def _is_empty(payload: Raw | UnsetType) -> bool:
    return payload is UNSET or payload == NULL


def apply_llm_rule(step: StepRecord, generation: Generation | None) -> None:
    """Record a finished llm step without messages and prompt as a run, in place."""
    if step.type == "llm" and is_finished(step) and not is_prompted(generation):
        step.type, step.downgraded_from = "run", "llm"


def merge_step(old: StepRecord, new: StepRecord) -> StepRecord:
    """Return `old` updated by `new`, the llm rule applied. Raises `UsageError` for a generation that is not one."""
    late = _is_late(old, new)
    base, top = (new, old) if late else (old, new)
    merged = _overlay(base, top, _STEP_LISTS)
    if late:
        merged.status = old.status
    merged.tags = _unite_tags(old.tags, new.tags)
    merged.attachments = _unite_items(old.attachments, new.attachments, keep_old=late)
    merged.scores = _unite_items(old.scores, new.scores)
    merged.generation = _merge_generations(base.generation, top.generation)
    generation = parse_generation(merged)
    downgraded = merged.type == "run" and merged.downgraded_from == "llm"
    if downgraded and is_prompted(generation) and not is_prompted(parse_generation(old)):
        merged.type, merged.downgraded_from = "llm", None
    apply_llm_rule(merged, generation)
    return merged


def parse_generation(step: StepRecord) -> Generation | None:
    """Return a step's generation as a typed value, None where it has none."""
    return None if step.generation is UNSET or step.generation == NULL else decode_generation(step.generation)


def merge_thread(old: ThreadRecord, new: ThreadRecord) -> ThreadRecord:
    """Return `old` updated by `new`; a thread was created when it was first known."""
    merged = _overlay(old, new, frozenset({"tags", "created_ns"}))
    merged.tags = _unite_tags(old.tags, new.tags)
    merged.created_ns = min((at for at in (old.created_ns, new.created_ns) if at is not None), default=None)
    return merged


def merge_score(old: Score, new: Score) -> Score:
    """Return `old` updated by `new`."""
    return _overlay(old, new)


def _unite_items(old: list[Item] | None, new: list[Item] | None, *, keep_old: bool = False) -> list[Item] | None:
    """Unite two lists by id, in order of first appearance; of what both have, the fields of `new` win."""
    if old is None or new is None:
        return new if old is None else old
    united = {item.id: item for item in old}
    for item in new:
        known = united.get(item.id)
        if known is None:
            united[item.id] = item
        else:
            united[item.id] = _overlay(item, known) if keep_old else _overlay(known, item)
    return list(united.values())


def _unite_tags(old: list[str] | None, new: list[str] | None) -> list[str] | None:
    if old is None or new is None:
        return new if old is None else old
    return list(dict.fromkeys((*old, *new)))


def _overlay(base: Bare, top: Bare, skip: Iterable[str] = ()) -> Bare:
    present = {
        name: value
        for name in top.__struct_fields__
        if (value := getattr(top, name)) is not None and value is not UNSET and name not in skip
    }
    return structs.replace(base, **present)


def _merge_generations(base: Raw | UnsetType, top: Raw | UnsetType) -> Raw | UnsetType:
    if base is UNSET or base == NULL:
        return base if top is UNSET else top
    if top is UNSET or top in (NULL, base):
        return base
    members = _members.decode(base)
    update = {key: value for key, value in _members.decode(top).items() if value != NULL or key not in members}
    merged = members | update
    return base if merged == members else Raw(_encode(merged))
