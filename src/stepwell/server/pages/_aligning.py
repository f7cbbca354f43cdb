"""Two runs side by side: which actions of one are which of the other, and which words of two texts differ.

What must stay true: it costs the product of two bounded lengths, whatever is compared; what is beyond the bounds is
counted, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Final, Literal, NamedTuple

__all__ = ["MAX_ACTIONS", "Action", "Pair", "Words", "align", "diff_words"]

MAX_ACTIONS: Final = 1_000  # of each run
MAX_WORDS: Final = 1_500  # of each text
_SAME, _ALIKE = (
    3,
    2,
)  # so that one equal pair is worth more than one that is alike, and two alike are worth more than it

Piece = tuple[Literal["same", "gone", "come"], str]
Kind = Literal["same", "changed", "left", "right"]


class Action(NamedTuple):
    """A step as it is compared: `what` it is (type and name), and a digest of what went in and came out."""

    what: tuple[str | None, str | None]
    content: bytes


class Pair(NamedTuple):
    """Places in both sequences: of one action in both, or of one that only one of them has."""

    kind: Kind
    left: int | None
    right: int | None


def align(left: Sequence[Action], right: Sequence[Action]) -> list[Pair]:
    """Align two sequences of at most `MAX_ACTIONS`, so that most of what is equal, and then of what is alike, meets."""
    begin = 0
    while begin < min(len(left), len(right)) and left[begin] == right[begin]:
        begin += 1
    pairs = [Pair("same", at, at) for at in range(begin)]
    one, other = begin, begin
    best = _table(left[begin:], right[begin:])
    while one < len(left) or other < len(right):
        row, column = one - begin, other - begin
        if one < len(left) and other < len(right):
            worth = _worth(left[one], right[other])
            if worth and best[row][column] == best[row + 1][column + 1] + worth:
                pairs.append(Pair("same" if worth == _SAME else "changed", one, other))
                one, other = one + 1, other + 1
                continue
        if other >= len(right) or (one < len(left) and best[row + 1][column] >= best[row][column + 1]):
            pairs.append(Pair("left", one, None))
            one += 1
        else:
            pairs.append(Pair("right", None, other))
            other += 1
    return pairs


def _worth(one: Action, other: Action) -> int:
    return 0 if one.what != other.what else _SAME if one.content == other.content else _ALIKE


def _table(left: Sequence[Action], right: Sequence[Action]) -> list[list[int]]:
    """Return what the best alignment of the rests from each pair of places on is worth."""
    below = [0] * (len(right) + 1)
    table = [below]
    for one in reversed(left):
        row = below.copy()
        after = 0
        for at in range(len(right) - 1, -1, -1):
            other = right[at]
            best = max(after, below[at])
            if one.what == other.what:
                met = below[at + 1] + (_SAME if one.content == other.content else _ALIKE)
                best = max(best, met)
            row[at] = after = best
        table.append(row)
        below = row
    table.reverse()
    return table


@dataclass(frozen=True, slots=True)
class Words:
    """Pieces of two texts in order: `same`, `gone` from the left, or `come` in the right."""

    pieces: list[Piece]
    left_out: int = 0

    @property
    def equal(self) -> bool:
        """Whether the texts are equal."""
        return not self.left_out and all(kind == "same" for kind, _ in self.pieces)


def diff_words(left: str, right: str) -> Words:
    """Compare two texts word by word; what is beyond `MAX_WORDS` of them is left out, unless they are equal."""
    if left == right:
        return Words([("same", left)] if left else [])
    ones, others = re.findall(r"\s+|\w+|[^\w\s]", left), re.findall(r"\s+|\w+|[^\w\s]", right)
    left_out = max(len(ones) - MAX_WORDS, 0) + max(len(others) - MAX_WORDS, 0)
    ones, others = ones[:MAX_WORDS], others[:MAX_WORDS]
    pieces: list[Piece] = []
    gone = come = ""
    codes = SequenceMatcher(None, ones, others, autojunk=True).get_opcodes()
    for at, (tag, low, high, from_, to) in enumerate(codes):
        old, new = "".join(ones[low:high]), "".join(others[from_:to])
        inside = 0 < at < len(codes) - 1
        if tag != "equal" or (inside and not old.strip()):  # a space alone between changes is read as a part of them
            gone, come = gone + old, come + new
            continue
        pieces += _changed(gone, come)
        pieces.append(("same", old))
        gone = come = ""
    return Words([*pieces, *_changed(gone, come)], left_out)


def _changed(gone: str, come: str) -> list[Piece]:
    both: list[Piece] = [("gone", gone), ("come", come)]
    return [piece for piece in both if piece[1]]
