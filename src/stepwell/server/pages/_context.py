"""What fills the context of a run's model calls, and what carrying it along costs.

What must stay true: the shares of a call add up to the input tokens that it reported. Tokens are apportioned by
characters and are so marked; where no usage was reported there are characters only. Pure functions over decoded calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

__all__ = ["Carried", "Piece", "Sent", "ToolUse", "apportion", "carried", "kinds_of", "tool_uses"]

TOOLS: Final = "tool definitions"


@dataclass(frozen=True, slots=True)
class Piece:
    """A message, or all definitions of tools, in a call: `digest` tells equal ones, `kind` is what it is shown as."""

    digest: bytes
    kind: str
    characters: int
    preview: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """A model call: what it sent and reported, the tools it offered and asked for, and the tokens of its window."""

    id: str
    pieces: Sequence[Piece]
    input_tokens: int | None = None
    total_tokens: int | None = None
    cost: float | None = None
    offered: Sequence[str] = ()
    called: Sequence[str] = ()
    window: int | None = None

    @property
    def fill(self) -> float | None:
        """How much of the context window the input took, 1 for all of it; None where either is not known."""
        return min(self.input_tokens / self.window, 1.0) if self.window and self.input_tokens is not None else None


@dataclass(slots=True)
class Carried:
    """A piece, the call that sent it first, and how often and at what price it was sent again.

    `tokens` and `cost` are None where no call that sent it again reported any.
    """

    piece: Piece
    first_id: str
    again: int = 0
    characters: int = 0
    tokens: int | None = None
    cost: float | None = None


@dataclass(slots=True)
class ToolUse:
    """A tool: in how many calls it was offered, and how often it was called."""

    name: str
    offered: int = 0
    called: int = 0


def apportion(total: int, weights: Sequence[int]) -> list[int]:
    """Split a number in proportion to weights so that the parts add up to it; the largest remainders are rounded up."""
    whole = sum(weights)
    if not whole:
        return [total, *[0] * (len(weights) - 1)] if weights else []
    parts = [total * weight // whole for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda at: (-(total * weights[at] % whole), at))
    for at in by_remainder[: total - sum(parts)]:
        parts[at] += 1
    return parts


def kinds_of(call: Sent) -> dict[str, tuple[int, int | None]]:
    """Return what a call sent, by kind: characters, and tokens where it reported its input."""
    shares: Sequence[int | None] = [None] * len(call.pieces)
    if call.input_tokens is not None:
        shares = apportion(call.input_tokens, [piece.characters for piece in call.pieces])
    found: dict[str, tuple[int, int | None]] = {}
    for piece, tokens in zip(call.pieces, shares, strict=True):
        characters, before = found.get(piece.kind, (0, None))
        found[piece.kind] = characters + piece.characters, before if tokens is None else (before or 0) + tokens
    return found


def carried(calls: Sequence[Sent]) -> list[Carried]:
    """Return every piece with what sending it again came to, the dearest first."""
    found: dict[bytes, Carried] = {}
    for call in calls:
        shares = None
        if call.input_tokens is not None:
            shares = apportion(call.input_tokens, [piece.characters for piece in call.pieces])
        for at, piece in enumerate(call.pieces):
            known = found.get(piece.digest)
            if known is None:
                found[piece.digest] = Carried(piece, call.id)
                continue
            known.again += 1
            known.characters += piece.characters
            if shares is not None:
                known.tokens = (known.tokens or 0) + shares[at]
                if call.cost is not None and call.total_tokens:
                    known.cost = (known.cost or 0.0) + call.cost * shares[at] / call.total_tokens
    order = sorted(found.values(), key=lambda each: (each.cost or 0, each.tokens or 0, each.characters), reverse=True)
    return [each for each in order if each.again]


def tool_uses(calls: Sequence[Sent]) -> list[ToolUse]:
    """Return how often each tool was offered and called, those offered in vain first."""
    uses: dict[str, ToolUse] = {}
    for call in calls:
        for name in dict.fromkeys(call.offered):
            uses.setdefault(name, ToolUse(name)).offered += 1
        for name in call.called:
            uses.setdefault(name, ToolUse(name)).called += 1
    return sorted(uses.values(), key=lambda use: (use.called, -use.offered, use.name))
