"""What is said of a step after the fact: scores and feedback, by the step's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from stepwell._checks import checked_choice, checked_id, checked_tags
from stepwell._details import SCORE_TYPES, score_json
from stepwell._recorder import RECORDER
from stepwell.errors import UsageError

__all__ = ["feedback", "score"]


def score(
    step_id: str,
    name: str,
    value: float | None = None,
    *,
    label: str | None = None,
    comment: str | None = None,
    type: Literal["HUMAN", "CODE", "AI"] = "CODE",
    tags: Sequence[str] | None = None,
) -> None:
    """Judge a step after the fact, by its id. Raises `UsageError` for a wrong id, type or tag."""
    step_id = checked_id(step_id, "step_id")
    checked_choice(type, "type of a score", SCORE_TYPES)
    words = checked_tags(tags)
    recorder = RECORDER
    if not recorder.is_on():
        return
    try:
        encoded = score_json(recorder, name, value, label=label, comment=comment, type_=type, tags=words)
        recorder.append(b'{"kind":"score","step_id":%b,%b' % (recorder.id_json(step_id), encoded[1:]))
    except UsageError:
        raise
    except Exception as error:  # noqa: BLE001 - the containment door
        recorder.fault("record a score", error)


def feedback(step_id: str, label: Literal["positive", "negative"], *, comment: str | None = None) -> None:
    """Record a user's verdict on a step: the score named `feedback`. Raises `UsageError` for another label."""
    checked_choice(label, "feedback", ("positive", "negative"))
    score(step_id, "feedback", 1.0 if label == "positive" else 0.0, label=label, comment=comment, type="HUMAN")
