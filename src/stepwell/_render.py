"""Step trees, tables and values as lines of text, for the console exporter, the command line and the demo.

What must stay true:

1. Everything recorded is hostile. A text reaches a line only through `clean`: no control character, escape sequence or
   change of writing direction gets out, and no markup is interpreted.
2. A line fits the width it was made for; what is left out is said (`…`, or a line of its own), never hidden.
3. Every state can be told without colour, and every line can be drawn in ASCII.

A line is a list of (text, style) pieces. `Screen` writes lines, in colour where rich and a terminal are there.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any, Final, TextIO, cast

from msgspec import UNSET, DecodeError, Raw, UnsetType, json

from stepwell.errors import UsageError
from stepwell.model import MESSAGE_TYPES, Score, StepRecord, decode_generation
from stepwell.store import StepRow

if TYPE_CHECKING:
    from rich.console import Console

__all__ = [
    "Line",
    "Node",
    "Screen",
    "clean",
    "clip",
    "clip_line",
    "duration",
    "node_of_record",
    "node_of_row",
    "plain",
    "readable",
    "size",
    "step_pieces",
    "table",
    "tree",
]

Line = list[tuple[str, str]]

NO_TERMINAL_COLUMNS: Final = 160
LONGEST_TEXT: Final = 2000
_KEPT_TEXT: Final = 4 * LONGEST_TEXT + 1  # of each text a node holds: more than any line shows
_DEEPEST_GUIDES: Final = 60  # columns of tree glyphs; deeper steps say their depth

# CSI, OSC and its like up to their end, then any other escape.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_BREAKS: Final = re.compile(r"[\s\x00-\x1f\x7f-\x9f]+")
_JOINER: Final = "\u200d"  # holds emoji together, and is harmless
_ASCII: Final = str.maketrans(
    {
        "├": "|",
        "└": "`",
        "│": "|",
        "─": "-",
        "✗": "x",
        "⊘": "/",
        "◌": "o",
        "↓": "v",
        "⚠": "!",
        "…": "~",
        "·": "-",
        "µ": "u",
    }
)
_STYLES: Final = {
    "run": "bold cyan",
    "llm": "magenta",
    "tool": "yellow",
    "retrieval": "blue",
    "rerank": "blue",
    "embedding": "blue",
    "user_message": "green",
    "assistant_message": "green",
    "system_message": "green",
}


def clean(text: str, limit: int = LONGEST_TEXT) -> str:
    """Return a text as one line that can't do anything to a terminal, cut to `limit` characters."""
    cut = text[: limit * 4]
    kept = "".join(map(_visible, _BREAKS.sub(" ", _ESCAPES.sub("", cut)))).strip()
    return kept if len(kept) <= limit and len(cut) == len(text) else f"{kept[: limit - 1]}…"


def _visible(character: str) -> str:
    if character.isprintable() or character == _JOINER:
        return character
    return "" if unicodedata.category(character) == "Cf" else "\ufffd"


def _cells(text: str) -> int:
    """Count the columns a clean text takes in a terminal."""
    return len(text) if text.isascii() else sum(map(_cell, text))


def _cell(character: str) -> int:
    if character == _JOINER or unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def clip(text: str, width: int) -> str:
    """Cut a clean text to `width` columns, with an ellipsis where something is missing."""
    if _cells(text) <= width:
        return text
    used, kept = 0, 0
    for character in text:
        used += _cell(character)
        if used > width - 1:
            break
        kept += 1
    return f"{text[:kept]}…" if width > 0 else ""


def clip_line(line: Line, width: int) -> Line:
    """Cut a line to `width` columns."""
    clipped: Line = []
    for text, style in line:
        if width <= 0:
            break
        clipped.append((clip(text, width), style))
        width -= _cells(text)
    return clipped


def plain(line: Line) -> str:
    """Return a line's text."""
    return "".join(text for text, _ in line).rstrip()


def duration(ns: int) -> str:
    """Return a duration as people read it: `410 ns`, `38 µs`, `12 ms`, `1.24 s`, `2 m 05 s`, `1 h 02 m`, `4 d 15 h`."""
    if ns < 1000:
        return f"{ns} ns"
    for unit, name in ((1e3, "µs"), (1e6, "ms")):
        if ns < 999.5 * unit:
            return f"{ns / unit:.{1 if ns < 9.95 * unit else 0}f} {name}"
    seconds = round(ns / 1e9)
    if seconds < 60:
        return f"{ns / 1e9:.2f} s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} m {seconds:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} m" if hours < 48 else f"{hours // 24} d {hours % 24} h"


@dataclass(slots=True)
class Node:
    """What a tree shows of a step. The texts are as recorded, not yet clean."""

    id: str
    parent_id: str | None = None
    root_run_id: str | None = None
    type: str | None = None
    name: str | None = None
    start_ns: int | None = None
    end_ns: int | None = None
    status: str | None = None
    error_type: str | None = None
    error_message: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    total_tokens: int | None = None
    tags: Sequence[str] = ()
    scores: Sequence[Score] = ()
    downgraded_from: str | None = None
    child_count: int | None = None
    said: str | None = None


_ROW_FIELDS: Final = tuple(name for name in Node.__slots__ if name in StepRow.__struct_fields__)
_RECORD_FIELDS: Final = tuple(
    name for name in _ROW_FIELDS if name in StepRecord.__struct_fields__ and name not in {"tags", "scores"}
)


def node_of_row(row: StepRow) -> Node:
    """Take from a list's row what it has: no error message, scores or content of messages."""
    return Node(**{name: getattr(row, name) for name in _ROW_FIELDS})


def node_of_record(record: StepRecord) -> Node:
    """Take from a whole step all that a tree shows."""
    node = Node(**{name: getattr(record, name) for name in _RECORD_FIELDS})
    node.tags, node.scores = record.tags or (), record.scores or ()
    if record.error is not None:
        node.error_type, node.error_message = record.error.type, (record.error.message or "")[:_KEPT_TEXT]
    if record.generation is not UNSET:
        with suppress(UsageError):  # a foreign generation that is none: the rest of the step is worth showing
            generation = decode_generation(record.generation)
            node.model = generation.response_model or generation.model
            if generation.usage is not None:
                node.input_tokens, node.output_tokens = generation.usage.input_tokens, generation.usage.output_tokens
                node.total_tokens = generation.usage.total_tokens
    if record.type in MESSAGE_TYPES:
        text = said(record.output)
        node.said = None if text is None else text[:_KEPT_TEXT]
    return node


def readable(value: Any) -> Any:
    """Return a decoded payload with its media as people read of them: `image/png, 12.3 kB`."""
    try:
        return _readable(value)
    except RecursionError:
        return value


def _readable(value: Any) -> Any:
    if isinstance(value, list):
        return [_readable(item) for item in cast("Sequence[object]", value)]
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, Any]", value)
    kind, count = fields.get("$stepwell"), fields.get("size")
    if kind == "blob" and isinstance(count, int) and 0 <= count < 1 << 63:
        return f"{fields.get('mime', 'unknown type')}, {size(count)}"
    if kind == "text" and "text" in fields:
        return _readable(fields["text"])
    return {name: _readable(item) for name, item in fields.items()}


def size(count: int) -> str:
    """Return a number of bytes as people read it: `5 B`, `12.3 kB`, `4.2 MB`."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def said(output: Raw | UnsetType) -> str | None:
    """Return the text of a message's output: its `content`, or whatever else it holds, as JSON."""
    if output is UNSET:
        return None
    with suppress(DecodeError, UnicodeDecodeError, RecursionError):
        value: Any = readable(json.decode(output))
        content = cast("dict[str, Any]", value).get("content", value) if isinstance(value, dict) else value
        return content if isinstance(content, str) else json.encode(content).decode()
    return None


def tree(nodes: Iterable[Node], *, below: bool = False, max_lines: int | None = None) -> list[Line]:
    """Draw steps as trees, siblings by start; `below` hangs the roots under a line the caller writes.

    A step whose parent is not among the nodes hangs below its root run, where that is, else it is a root. After
    `max_lines` steps one line says how many were not drawn.
    """
    known = {node.id: node for node in nodes}
    children = _children(known)
    drawn: set[str] = set()
    lines: list[Line] = []
    roots = children.pop(None, [])
    # What hangs in a circle is reached from no root: the first of it, by start, stands in for one.
    for start in [*_last_marked(roots), *((node, True) for node in sorted(known.values(), key=_by_start))]:
        waiting: list[tuple[Node, bool, str, int]] = [(*start, "", 0 if not below else 1)]
        while waiting and (max_lines is None or len(drawn) < max_lines):
            node, last, guides, depth = waiting.pop()
            if node.id in drawn:
                continue
            drawn.add(node.id)
            lines.append(_tree_line(node, children, last=last, guides=guides, depth=depth))
            if depth:
                guides = (guides + ("   " if last else "│  "))[-_DEEPEST_GUIDES:]
            below_it = _last_marked(children.get(node.id, []))
            waiting += [(child, is_last, guides, depth + 1) for child, is_last in reversed(below_it)]
    if len(drawn) < len(known):
        lines.append([(f"… {len(known) - len(drawn):,} more steps are not drawn", "bold")])
    return lines


def _children(known: dict[str, Node]) -> dict[str | None, list[Node]]:
    children: dict[str | None, list[Node]] = {}
    for node in sorted(known.values(), key=_by_start):
        parent = node.parent_id
        if parent not in known or parent == node.id:
            parent = node.root_run_id if node.root_run_id in known and node.root_run_id != node.id else None
        children.setdefault(parent, []).append(node)
    return children


def _by_start(node: Node) -> int:
    return node.start_ns or 0


def _last_marked(nodes: Sequence[Node]) -> list[tuple[Node, bool]]:
    return [(node, at == len(nodes)) for at, node in enumerate(nodes, start=1)]


def _tree_line(node: Node, children: dict[str | None, list[Node]], *, last: bool, guides: str, depth: int) -> Line:
    line: Line = [(guides + ("└─ " if last else "├─ "), "dim")] if depth else []
    if len(guides) >= _DEEPEST_GUIDES:
        line.append((f"(depth {depth}) ", "dim"))
    line += step_pieces(node)
    own = children.get(node.id, [])
    missing = (node.child_count or 0) - sum(child.parent_id == node.id for child in own)
    if missing > 0 and node.status != "pending":
        line.append((f"  ⚠ {missing} of {node.child_count} children missing", "yellow"))
    if (own and depth == 0) or node.root_run_id == node.id:
        line.append((f"  ({_totals(node, children)})", "dim"))
    return line


def _totals(root: Node, children: dict[str | None, list[Node]]) -> str:
    found, seen = [root], {root.id}
    for parent in found:
        for child in children.get(parent.id, ()):
            if child.id not in seen:
                seen.add(child.id)
                found.append(child)
    tokens = sum(node.total_tokens or 0 for node in found)
    failed = sum(node.status == "failed" for node in found)
    parts = [f"{len(found):,} step{'s' * (len(found) != 1)}"]
    if tokens:
        parts.append(f"{tokens:,} tokens")
    return ", ".join([*parts, f"{failed:,} failed"] if failed else parts)


def step_pieces(node: Node) -> Line:
    """Return what a line says of a step: type, name, duration, tokens, model, states, scores, tags."""
    kind = node.type or "step"
    line: Line = [(kind, _STYLES.get(kind, "bold"))]
    if node.name and (node.name != kind or node.said is None):
        line.append((f"  {clean(node.name, 200)}", "bold"))
    if node.said is not None:
        line.append((f"  {clean(node.said, 500)}", ""))
    if node.start_ns is not None and node.end_ns is not None and node.said is None:
        line.append((f"  {duration(max(0, node.end_ns - node.start_ns))}", "cyan"))
    tokens = [f"{n:,} {way}" for n, way in ((node.input_tokens, "in"), (node.output_tokens, "out")) if n is not None]
    if tokens:
        line.append((f"  {', '.join(tokens)}", ""))
    if node.model:
        line.append((f"  {clean(node.model, 100)}", "dim"))
    return line + _states(node) + _remarks(node)


def _states(node: Node) -> Line:
    line: Line = []
    if node.status == "failed":
        error = ": ".join(clean(text, 300) for text in (node.error_type, node.error_message) if text)
        line.append((f"  ✗ failed {error}".rstrip(), "bold red"))
    elif node.status == "cancelled":
        line.append(("  ⊘ cancelled", "yellow"))
    elif node.status == "pending":
        line.append(("  ◌ pending", "yellow"))
    elif node.status == "interrupted":
        line.append(("  ⌁ interrupted", "bold yellow"))
    if node.downgraded_from:
        line.append((f"  ↓ was {clean(node.downgraded_from, 30)}, without messages or prompt", "yellow"))
    return line


def _remarks(node: Node) -> Line:
    scores = [f"{clean(score.name or 'score', 60)}={_verdict(score)}" for score in node.scores[:5]]
    tags = [f"#{clean(tag, 40)}" for tag in node.tags[:5]]
    more = ["…"] if len(node.scores) > 5 or len(node.tags) > 5 else []
    return [(f"  {' '.join([*scores, *tags, *more])}", "green")] if scores or tags else []


def _verdict(score: Score) -> str:
    return clean(score.label, 60) if score.label else "?" if score.value is None else f"{score.value:g}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int, width: int) -> list[Line]:
    """Lay texts out in columns. The column `flexible` gives way where they are wider than `width` together."""
    texts = [list(headings), *([clean(cell, 300) for cell in row] for row in rows)]
    widths = [max(map(_cells, column)) for column in zip(*texts, strict=True)]
    over = sum(widths) + 2 * (len(widths) - 1) - width
    widths[flexible] = max(8, widths[flexible] - max(0, over))
    lines: list[Line] = []
    for at, row in enumerate(texts):
        cells = [clip(cell, room) for cell, room in zip(row, widths, strict=True)]
        padded = "  ".join(cell + " " * (room - _cells(cell)) for cell, room in zip(cells, widths, strict=True))
        lines.append([(padded.rstrip(), "" if at else "bold")])
    return lines


class Screen:
    """Writes lines to a stream, no wider than it is; in colour on a terminal, with rich and without NO_COLOR."""

    def __init__(self, stream: TextIO, *, width: int | None = None) -> None:
        self._stream = stream
        terminal = stream.isatty()
        fallback = (NO_TERMINAL_COLUMNS, 24)
        self.width = width or (get_terminal_size(fallback).columns if terminal else _columns(fallback[0]))
        wanted = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self._console = _console(stream) if wanted else None
        try:
            "├✗⊘◌↓⚠…·".encode(stream.encoding or "utf-8")
            self._ascii = False
        except (UnicodeEncodeError, LookupError):
            self._ascii = True

    def write(self, lines: Iterable[Line], *, clipped: bool = True) -> None:
        """Write lines, each cut to the width unless `clipped` is False, and flush. Raises `OSError`."""
        for line in lines:
            pieces = clip_line(line, self.width) if clipped else line
            if self._console is not None:
                from rich.text import Text  # loaded by _console, and by nobody without a terminal

                self._console.print(Text.assemble(*pieces), soft_wrap=True, highlight=False)
            else:
                self._stream.write(f"{self._encodable(plain(pieces))}\n")
        self._stream.flush()

    def _encodable(self, text: str) -> str:
        if not self._ascii:
            return text
        encoding = self._stream.encoding
        return text.translate(_ASCII).encode(encoding, "replace").decode(encoding)


def _columns(default: int) -> int:
    given = os.environ.get("COLUMNS", "")
    return int(given) if given.isdecimal() and int(given) > 0 else default


def _console(stream: TextIO) -> Console | None:
    try:
        from rich.console import Console  # optional, and slow to import
    except ImportError:
        return None
    return Console(file=stream, markup=False, emoji=False, highlight=False)
