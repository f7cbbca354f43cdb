"""Many runs of one question as a tree of what they did: equal beginnings once, and where good runs and bad ones part.

What must stay true: the runs that end below a place, and at it, are those that came there, so the ends add up to the
runs; a place is known by the running hash of its actions, so its address stays good when runs are added. What no score
tells is unknown, never good or bad. Pure functions; the cost is linear in the actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, Literal

from msgspec import DecodeError, Raw, json

from stepwell.model import Score
from stepwell.server.pages._content import compact, json_in, mapping, read

__all__ = [
    "STATUS",
    "Action",
    "Case",
    "Choice",
    "Node",
    "Outcome",
    "Parting",
    "Row",
    "canonical",
    "choices_of",
    "grow",
    "judge",
    "parting_at",
    "partings",
    "rows_of",
]

Outcome = Literal["good", "bad", "unknown"]

STATUS: Final = "status"
FOLD: Final = 4  # so many actions in a row, of the same runs, become one line
MAX_LEVEL: Final = 12
_GOOD: Final = frozenset(("positive", "good", "pass", "passed", "correct", "true", "yes", "success", "accepted"))
_BAD: Final = frozenset(("negative", "bad", "fail", "failed", "incorrect", "false", "no", "failure", "rejected"))


@dataclass(frozen=True, slots=True)
class Action:
    """A call of a tool with its canonical arguments. `step_id` is its step, or the model call that asked for it.

    `place` is the place of the message with the call among that model call's, where there is no step of the tool.
    """

    step_id: str
    tool: str
    arguments: bytes
    place: int | None = None

    @property
    def line(self) -> str:
        """The arguments on one line: the value itself where it is only one."""
        value = read(Raw(self.arguments))
        members = mapping(value)
        return compact(next(iter(members.values())) if len(members) == 1 else value)


@dataclass(slots=True)
class Case:
    """A run or a thread that was asked the question; `number` is its place among those that are shown, from 1.

    `left_out` are actions beyond what is looked at; `cut` says that its first steps only were read.
    """

    id: str
    kind: Literal["thread", "step"]
    start_ns: int | None
    actions: Sequence[Action]
    left_out: int = 0
    cut: bool = False
    status: Outcome = "unknown"
    scores: dict[str, Score] = field(default_factory=dict[str, Score])
    outcome: Outcome = "unknown"
    why: str = ""
    number: int = 0


@dataclass(slots=True, eq=False)
class Node:
    """A place in the tree: what was done last, and the places of the cases that did it, in order."""

    key: str
    action: Action | None = None
    parent: Node | None = None
    cases: list[int] = field(default_factory=list[int])
    ends: list[int] = field(default_factory=list[int])
    children: dict[str, Node] = field(default_factory=dict[str, "Node"])

    @property
    def ways(self) -> int:
        """How many ways go on from here; to end is one."""
        return len(self.children) + bool(self.ends)

    def continuation(self, case: int) -> str:
        """Return the key of the way that a case goes on here, empty where it ends."""
        return next((key for key, child in self.children.items() if case in child.cases), "")


def canonical(arguments: Any) -> bytes:
    """Return arguments so that equal ones are equal bytes: decoded, their members in order, 2.0 as 2."""
    decoded = json_in(arguments) if isinstance(arguments, str) else None
    try:
        encoded = json.encode(arguments if decoded is None else decoded, order="deterministic")
        return json.encode(_decoder.decode(encoded), order="deterministic")
    except (TypeError, ValueError, DecodeError, RecursionError):
        return ascii(arguments).encode()


def _number(text: str) -> int | float:
    number = float(text)
    return int(number) if number.is_integer() else number


_decoder = json.Decoder[Any](float_hook=_number)


def grow(cases: Sequence[Case]) -> tuple[Node, dict[str, Node]]:
    """Return the root of the tree, and its places by key."""
    root = Node("0")
    nodes = {root.key: root}
    for at, case in enumerate(cases):
        node = root
        node.cases.append(at)
        for action in case.actions:
            told = f"{node.key}\0{action.tool}\0".encode("utf-8", "backslashreplace") + action.arguments
            key = blake2b(told, digest_size=8).hexdigest()
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = nodes[key] = Node(key, action, node)
            child.cases.append(at)
            node = child
        node.ends.append(at)
    return root, nodes


@dataclass(frozen=True, slots=True)
class Choice:
    """Something that may decide: a score's name or the status, of how many cases it is known."""

    name: str
    known: int


def choices_of(cases: Sequence[Case]) -> list[Choice]:
    """Return what may decide, first what does unless someone says otherwise: a score that most cases have."""
    counts = Counter(name for case in cases for name in case.scores)
    scores = [Choice(name, known) for name, known in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    status = Choice(STATUS, sum(case.status != "unknown" for case in cases))
    at = sum(choice.known * 2 >= len(cases) for choice in scores)
    return [*scores[:at], status, *scores[at:]]


def judge(cases: Iterable[Case], by: str, least: float | None) -> float | None:
    """Say of each case whether it went well; return the least value that is good, None where no score has a value.

    Unless it is given, that is 0.5 where all values are from 0 to 1, else what is midway between the ends.
    """
    cases = list(cases)
    if by == STATUS:
        for case in cases:
            case.outcome, case.why = case.status, {"unknown": "not ended"}.get(case.status, "")
        return None
    values = [score.value for case in cases if (score := case.scores.get(by)) is not None and score.value is not None]
    if least is None and values:
        low, high = min(values), max(values)
        least = 0.5 if low >= 0 and high <= 1 else (low + high) / 2
    for case in cases:
        case.outcome, case.why = _judged(case.scores.get(by), least)
    return least if values else None


def _judged(score: Score | None, least: float | None) -> tuple[Outcome, str]:
    if score is None:
        return "unknown", "no such score"
    if score.value is not None and least is not None:
        return "good" if score.value >= least else "bad", f"{score.value:g}"
    label = (score.label or "").strip().lower()
    return "good" if label in _GOOD else "bad" if label in _BAD else "unknown", score.label or "neither value nor label"


@dataclass(frozen=True, slots=True)
class Parting:
    """Where two cases part: the last place that both came to, and the places of the cases.

    Of a bad and a good one, the left is the bad one: what it alone has is struck out.
    """

    node: Node
    left: int
    right: int


def parting_at(node: Node, cases: Sequence[Case]) -> Parting | None:
    """Return the first good and the first bad case that go on differently here, else the first two that do."""
    ways: dict[str, list[int]] = {key: child.cases for key, child in node.children.items()}
    if node.ends:
        ways[""] = node.ends
    if len(ways) < 2:
        return None
    firsts: dict[Outcome, list[tuple[int, str]]] = {"good": [], "bad": [], "unknown": []}
    for key, several in ways.items():
        for outcome, found in firsts.items():
            first = next((at for at in several if cases[at].outcome == outcome), None)
            if first is not None:
                found.append((first, key))
    pairs = [(good, bad) for good in firsts["good"] for bad in firsts["bad"] if good[1] != bad[1]]
    if pairs:
        good, bad = min(pairs, key=lambda pair: (pair[0][0] + pair[1][0], pair[0][0]))
        return Parting(node, bad[0], good[0])
    one, other = sorted(several[0] for several in ways.values())[:2]
    return Parting(node, one, other)


def parts_outcomes(node: Node, cases: Sequence[Case]) -> bool:
    """Tell whether good and bad cases go on differently from here."""
    found = parting_at(node, cases) if node.ways > 1 else None
    return found is not None and {cases[found.left].outcome, cases[found.right].outcome} == {"good", "bad"}


def partings(root: Node, nodes: dict[str, Node], cases: Sequence[Case]) -> tuple[Parting | None, list[Node]]:
    """Return where the first good and the first bad case part, and all places where good and bad ones do."""
    every = [node for node in nodes.values() if parts_outcomes(node, cases)]
    good = next((at for at, case in enumerate(cases) if case.outcome == "good"), None)
    bad = next((at for at, case in enumerate(cases) if case.outcome == "bad"), None)
    if good is None or bad is None:
        first = next((node for node in nodes.values() if node.ways > 1), None)
        return (None if first is None else parting_at(first, cases)), every
    node = root
    while (key := node.continuation(good)) and key == node.continuation(bad):
        node = node.children[key]
    return Parting(node, bad, good), every


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the drawn tree: an action, a `fork` after it, an `end` of some cases, or a `fold` of several actions.

    `level` is how many forks are above it, `counts` how many of its cases went well, badly, or unknown. A fork `parts`
    good ones from bad ones; a line that `starts` is the first of a way on.
    """

    kind: Literal["action", "fork", "end", "fold"]
    node: Node
    level: int
    counts: dict[Outcome, int]
    parts: bool = False
    starts: bool = False
    folded: Sequence[Node] = ()


def rows_of(root: Node, cases: Sequence[Case], chosen: Node | None) -> Iterator[Row]:
    """Yield the tree, line by line; long stretches of the same cases are folded, but for the chosen place."""
    waiting: list[tuple[Node, int]] = [(root, 0)]
    while waiting:
        node, level = waiting.pop()
        stretch: list[Node] = []
        if node.action is not None:
            stretch.append(node)
        while node.ways == 1 and node.children:
            (node,) = node.children.values()
            stretch.append(node)
        yield from _stretch(stretch, level, cases)
        parts = parts_outcomes(node, cases)
        forks = node.ways > 1 or (node is chosen and len(node.ends) > 1)
        if forks:
            yield Row("fork", node, level, _counts(node.cases, cases), parts)
        below = min(level + 1, MAX_LEVEL) if node.ways > 1 else level
        if node.ends:
            yield Row("end", node, below, _counts(node.ends, cases), starts=node.ways > 1)
        widest_last = sorted(node.children.values(), key=lambda child: (len(child.cases), -child.cases[0]))
        waiting += [(child, below) for child in widest_last]


def _stretch(nodes: Sequence[Node], level: int, cases: Sequence[Case]) -> Iterator[Row]:
    """Yield a stretch, its first action and its last open, what is between folded where it is long."""
    fold = len(nodes) >= FOLD + 2
    for node in nodes[:1] if fold else nodes:
        yield Row("action", node, level, _counts(node.cases, cases), starts=node is nodes[0])
    if fold:
        yield Row("fold", nodes[1], level, _counts(nodes[1].cases, cases), folded=nodes[1:-1])
        yield Row("action", nodes[-1], level, _counts(nodes[-1].cases, cases))


def _counts(several: Iterable[int], cases: Sequence[Case]) -> dict[Outcome, int]:
    counts: dict[Outcome, int] = {"good": 0, "bad": 0, "unknown": 0}
    for at in several:
        counts[cases[at].outcome] += 1
    return counts
