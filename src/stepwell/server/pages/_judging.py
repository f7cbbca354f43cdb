"""What people say of a step, by a form: a score with their verdict, a comment, or both.

What must stay true: it is the one way by which pages write scores; the guard has refused forms of other origins.
"""

from __future__ import annotations

import time
import uuid
from typing import Final
from urllib.parse import parse_qs

from fastapi import Request

from stepwell.errors import UsageError
from stepwell.model import ScoreRecord, encode_record
from stepwell.server._errors import Problem
from stepwell.store import Store

__all__ = ["MAX_COMMENT", "VALUES", "keep_judgement", "read_form"]

MAX_COMMENT: Final = 10_000
MAX_FIELDS: Final = 20
VALUES: Final = {"positive": 1.0, "negative": 0.0}


async def read_form(request: Request) -> dict[str, str]:
    """Return a form's fields. Raises `UsageError` for what is none."""
    try:
        fields = parse_qs((await request.body()).decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except (UnicodeDecodeError, ValueError):
        raise UsageError("expected a form") from None
    return {name: values[0] for name, values in fields.items()}


def keep_judgement(store: Store, id: str, name: str, label: str, comment: str) -> None:
    """Add a score of a step: `name` is that of the verdict. Raises `NotFoundError`, and `Problem` for what is too much.

    A comment without a verdict is a score named `comment`.
    """
    if len(comment) > MAX_COMMENT or not (label or comment):
        raise Problem(422, f"expected a verdict, a comment of at most {MAX_COMMENT:,} characters, or both")
    store.step(id)
    record = ScoreRecord(
        id=str(uuid.uuid4()),
        step_id=id,
        name=name if label else "comment",
        type="HUMAN",
        value=VALUES.get(label),
        label=label or None,
        comment=comment or None,
        created_ns=time.time_ns(),
    )
    result = store.add([encode_record(record)])
    if result.rejected:
        raise Problem(422, result.rejected[0].error)
