"""Where in a step a search found its words: a few words around the first of them, for lists of what was found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from msgspec import UNSET

from stepwell.model import StepRecord
from stepwell.store._texts import decoded, terms_of, words_of

__all__ = ["snippet_of"]

_BEFORE: Final = 60  # characters, likewise
_LONGEST: Final = 200
_SPACE: Final = re.compile(r"\s+")


def snippet_of(step: StepRecord, query: str) -> str | None:
    """Return the text around the first place where a word of the query stands, on one line, at most 200 characters.

    None where it stands nowhere as it is written: accents and endings are the index's business.
    """
    terms = [re.escape(term) for term in terms_of(query)]
    if not terms:
        return None
    place = re.compile("|".join(terms), re.IGNORECASE)
    for text in _texts(step):
        found = place.search(text)
        if found is not None:
            start = max(found.start() - _BEFORE, 0)
            cut = _SPACE.sub(" ", text[start : start + 2 * _LONGEST]).strip()
            return f"{'…' if start else ''}{cut[:_LONGEST]}{'…' if len(cut) > _LONGEST else ''}"
    return None


def _texts(step: StepRecord) -> Iterator[str]:
    if step.name is not None:
        yield step.name
    if step.error is not None:
        yield from filter(None, (step.error.type, step.error.message))
    for payload in (step.output, step.input, step.generation):
        if payload is not UNSET:
            yield from words_of(decoded(payload))
    if step.metadata is not UNSET:
        yield from words_of(decoded(step.metadata), keys=True)
