"""The tree of steps as text: what a line says, what it never lets through, and how wide it is."""

from __future__ import annotations

import io
import os
import sys

import pytest
from msgspec import Raw

from stepwell._render import (
    Node,
    Screen,
    clean,
    clip,
    clip_line,
    duration,
    node_of_record,
    node_of_row,
    plain,
    readable,
    said,
    size,
    step_pieces,
    table,
    tree,
)
from stepwell.model import ErrorInfo, Score, StepRecord
from stepwell.store import StepRow

MS = 1_000_000


def drawn(*nodes: Node, **options: object) -> list[str]:
    return [plain(line) for line in tree(nodes, **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12_345, "12.3 kB"), (4_200_000, "4.2 MB"), (3 * 10**9, "3.0 GB")],
)
def test_sizes_are_told_in_units_people_read(count: int, text: str) -> None:
    assert size(count) == text


def test_what_is_nested_too_deep_to_be_made_readable_stays() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert readable(deep) is deep


class TestClean:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("plain", "plain"),
            ("a\nb\tc\r\nd", "a b c d"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("up\x1b[2Aup", "upup"),
            ("\x1b]0;title\x07rest", "rest"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]never ended", ""),
            ("\x9b31mC1", "C1"),
            ("\x1bPq\x1b\\dcs", "dcs"),
            ("\x1bcreset", "reset"),
            ("\x1b", ""),
            ("bell\x07\x08\x7f", "bell"),
            ("left\u202eright", "leftright"),
            ("one\u2028two", "one two"),
            ("lone \ud800", "lone \ufffd"),
            ("[bold]markup[/bold]", "[bold]markup[/bold]"),
            ("👩\u200d💻", "👩\u200d💻"),
        ],
    )
    def test_nothing_that_acts_on_a_terminal_gets_through(self, text: str, expected: str) -> None:
        assert clean(text) == expected

    def test_a_long_text_is_cut_and_says_so(self) -> None:
        assert clean("abcdef", 4) == "abc…"
        assert clean("abcd", 4) == "abcd"
        assert clean(" " * 10_000 + "x", 4) == "…"


class TestWidth:
    @pytest.mark.parametrize(
        ("text", "width", "expected"),
        [("abc", 3, "abc"), ("abcd", 3, "ab…"), ("日本語", 5, "日本…"), ("日本語", 6, "日本語"), ("abc", 0, "")],
    )
    def test_text_is_cut_by_columns_not_characters(self, text: str, width: int, expected: str) -> None:
        assert clip(text, width) == expected

    def test_accents_and_joined_emoji_take_no_columns_of_their_own(self) -> None:
        assert clip("e\u0301e\u0301", 2) == "e\u0301e\u0301"
        assert clip("👩\u200d💻", 4) == "👩\u200d💻"

    def test_a_line_of_pieces_is_cut_as_one(self) -> None:
        assert plain(clip_line([("abc", "bold"), ("def", ""), ("ghi", "")], 5)) == "abcd…"
        assert plain(clip_line([("abc", "bold"), ("def", "")], 3)) == "abc"

    @pytest.mark.parametrize(
        ("ns", "expected"),
        [
            (0, "0 ns"),
            (410, "410 ns"),
            (999, "999 ns"),
            (1_400, "1.4 µs"),
            (38_000, "38 µs"),
            (350_000, "350 µs"),
            (999_400, "999 µs"),
            (999_600, "1.0 ms"),
            (1_240_000, "1.2 ms"),
            (12_300_000, "12 ms"),
            (999_400_000, "999 ms"),
            (999_600_000, "1.00 s"),
            (59_400_000_000, "59.40 s"),
            (59_600_000_000, "1 m 00 s"),
            (125_000_000_000, "2 m 05 s"),
            (3_720_000_000_000, "1 h 02 m"),
            (172_799_000_000_000, "47 h 59 m"),
            (400_000_000_000_000, "4 d 15 h"),
        ],
    )
    def test_durations_read_well_at_every_size(self, ns: int, expected: str) -> None:
        assert duration(ns) == expected


class TestStepLine:
    def test_an_llm_step_tells_duration_tokens_and_model(self) -> None:
        node = Node("1", type="llm", name="answer", start_ns=0, end_ns=12 * MS, input_tokens=1204, output_tokens=88)
        node.model = "gpt-4o"
        assert plain(step_pieces(node)) == "llm  answer  12 ms  1,204 in, 88 out  gpt-4o"

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            (
                {"status": "failed", "error_type": "ValueError", "error_message": "no\nway"},
                "✗ failed ValueError: no way",
            ),
            ({"status": "failed"}, "✗ failed"),
            ({"status": "cancelled"}, "⊘ cancelled"),
            ({"status": "pending"}, "◌ pending"),
            ({"status": "success"}, ""),
            ({"downgraded_from": "llm"}, "↓ was llm, without messages or prompt"),
            ({"tags": ["a", "b"]}, "#a #b"),
            ({"tags": list("abcdefg")}, "#a #b #c #d #e …"),
            (
                {"scores": [Score("1", "good", value=0.9), Score("2", "feedback", label="positive")]},
                "good=0.9 feedback=positive",
            ),
            ({"scores": [Score("1")]}, "score=?"),
        ],
    )
    def test_states_are_told_in_words_and_signs(self, fields: dict[str, object], expected: str) -> None:
        assert plain(step_pieces(Node("1", type="tool", name="t", **fields))) == f"tool  t  {expected}".rstrip()  # type: ignore[arg-type]

    def test_a_step_of_which_little_is_known_still_has_a_line(self) -> None:
        assert plain(step_pieces(Node("1"))) == "step"

    def test_a_step_that_ends_before_it_starts_took_nothing(self) -> None:
        assert plain(step_pieces(Node("1", type="tool", name="t", start_ns=5, end_ns=1))) == "tool  t  0 ns"

    def test_a_recorded_name_is_harmless(self) -> None:
        node = Node("1", type="run", name="\x1b[2J[red]x", model="\x1b[H", status="failed", error_message="\x1b[Aup")
        assert plain(step_pieces(node)) == "run  [red]x    ✗ failed up"


class TestNodes:
    def test_a_record_gives_all_that_a_tree_shows(self) -> None:
        record = StepRecord(
            "1",
            type="llm",
            name="answer",
            status="failed",
            error=ErrorInfo("E", "m"),
            generation=Raw(b'{"model":"asked","response_model":"given","usage":{"input_tokens":1,"total_tokens":3}}'),
            tags=["x"],
        )
        node = node_of_record(record)
        assert (node.model, node.input_tokens, node.output_tokens, node.total_tokens) == ("given", 1, None, 3)
        assert (node.error_type, node.error_message, node.tags) == ("E", "m", ["x"])

    def test_a_generation_that_is_none_does_not_hide_the_step(self) -> None:
        assert node_of_record(StepRecord("1", name="n", generation=Raw(b"[1]"))).name == "n"
        assert node_of_record(StepRecord("1", generation=Raw(b'{"model":"m"}'))).model == "m"

    def test_a_row_gives_what_it_has(self) -> None:
        node = node_of_row(StepRow("1", type="tool", name="t", status="failed", error_type="E", tags=("x",)))
        assert plain(step_pieces(node)) == "tool  t  ✗ failed E  #x"

    @pytest.mark.parametrize(
        ("output", "expected"),
        [
            (b'{"content":"hi"}', "hi"),
            (b'{"content":[1,2]}', "[1,2]"),
            (b'{"text":"x"}', '{"text":"x"}'),
            (b'"bare"', "bare"),
            (b"not json", None),
            (b'{"content":{"$stepwell":"blob","sha256":"ab","size":12345,"mime":"image/png"}}', "image/png, 12.3 kB"),
            (b'{"content":["see",{"$stepwell":"blob","sha256":"ab","size":5}]}', '["see","unknown type, 5 B"]'),
            (b'{"content":{"$stepwell":"text","text":"see [blob 1: 5 bytes]","blobs":[{}]}}', "see [blob 1: 5 bytes]"),
            (b'{"content":{"$stepwell":"blob","size":1e300}}', '{"$stepwell":"blob","size":1e300}'),
        ],
    )
    def test_a_message_says_its_content(self, output: bytes, expected: str | None) -> None:
        assert said(Raw(output)) == expected

    def test_a_message_is_one_line_without_a_duration(self) -> None:
        record = StepRecord("1", type="user_message", name="user_message", start_ns=1, end_ns=9)
        record.output = Raw(b'{"content":"Hello\\nthere"}')
        assert plain(step_pieces(node_of_record(record))) == "user_message  Hello there"

    def test_a_message_without_output_is_a_step_like_any(self) -> None:
        assert plain(step_pieces(node_of_record(StepRecord("1", type="user_message", name="n")))) == "user_message  n"


class TestTree:
    def test_children_stand_below_their_parents_by_start(self) -> None:
        assert drawn(
            Node("c", "a", type="tool", name="second", start_ns=20),
            Node("a", type="run", name="agent", start_ns=0, end_ns=2 * MS, root_run_id="a", total_tokens=1000),
            Node("d", "b", type="llm", name="inner", start_ns=11, status="failed", total_tokens=500),
            Node("b", "a", type="run", name="first", start_ns=10, root_run_id="a"),
        ) == [
            "run  agent  2.0 ms  (4 steps, 1,500 tokens, 1 failed)",
            "├─ run  first",
            "│  └─ llm  inner  ✗ failed",
            "└─ tool  second",
        ]

    def test_roots_hang_below_a_line_of_the_caller(self) -> None:
        assert drawn(Node("a", type="run", name="x"), Node("b", type="run", name="y"), below=True) == [
            "├─ run  x",
            "└─ run  y",
        ]

    def test_children_that_never_arrived_are_told(self) -> None:
        parent = Node("a", type="run", name="x", child_count=3, status="success")
        assert drawn(parent, Node("b", "a", type="tool", name="t")) == [
            "run  x  ⚠ 2 of 3 children missing  (2 steps)",
            "└─ tool  t",
        ]

    def test_an_open_step_misses_no_children_yet(self) -> None:
        assert drawn(Node("a", type="run", name="x", child_count=3, status="pending")) == ["run  x  ◌ pending"]

    def test_a_step_whose_parent_never_arrived_hangs_below_its_run(self) -> None:
        run = Node("a", type="run", name="x", root_run_id="a")
        assert drawn(run, Node("c", "lost", root_run_id="a", type="tool", name="t")) == [
            "run  x  (2 steps)",
            "└─ tool  t",
        ]

    def test_steps_whose_links_go_round_are_drawn_once_each(self) -> None:
        assert drawn(
            Node("a", "b", type="run", name="x", start_ns=1),
            Node("b", "a", type="run", name="y", start_ns=2),
            Node("s", "s", type="run", name="self", start_ns=3),
        ) == ["run  self", "run  x  (2 steps)", "└─ run  y"]

    def test_what_is_not_drawn_is_counted(self) -> None:
        nodes = [Node(str(at), type="tool", name=f"t{at}", start_ns=at) for at in range(1005)]
        lines = drawn(*nodes, max_lines=3)
        assert lines == ["tool  t0", "tool  t1", "tool  t2", "… 1,002 more steps are not drawn"]

    def test_a_very_deep_tree_keeps_a_bounded_indent_and_says_its_depth(self) -> None:
        nodes = [Node(str(at), str(at - 1), type="tool", name="t", start_ns=at) for at in range(3000)]
        lines = drawn(*nodes)
        assert len(lines) == 3000
        assert max(map(len, lines)) < 140
        assert lines[2999].endswith("└─ (depth 2999) tool  t")

    def test_many_siblings_are_drawn_in_time(self) -> None:
        nodes = [Node("r", type="run", name="r", child_count=20_000)]
        nodes += [Node(f"{at}", "r", type="tool", name="t", start_ns=at) for at in range(20_000)]
        assert drawn(*nodes)[0] == "run  r  (20,001 steps)"


class TestTable:
    def test_columns_line_up_and_the_flexible_one_gives_way(self) -> None:
        rows = [("1", "a long name that gives way", "ok"), ("22", "short", "failed")]
        assert [plain(line) for line in table(("ID", "NAME", "STATUS"), rows, flexible=1, width=28)] == [
            "ID  NAME              STATUS",
            "1   a long name tha…  ok",
            "22  short             failed",
        ]

    def test_cells_are_made_harmless(self) -> None:
        assert plain(table(("A",), [("\x1b[2Jx",)], flexible=0, width=80)[1]) == "x"


class TestScreen:
    def test_lines_are_cut_to_the_width_given(self) -> None:
        stream = io.StringIO()
        Screen(stream, width=6).write([[("abcdefgh", "bold")], [("x", "")]])
        assert stream.getvalue() == "abcde…\nx\n"

    def test_lines_may_be_left_whole(self) -> None:
        stream = io.StringIO()
        Screen(stream, width=6).write([[("abcdefgh", "bold")]], clipped=False)
        assert stream.getvalue() == "abcdefgh\n"

    def test_a_stream_that_is_no_terminal_is_as_wide_as_columns_says(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "44")
        assert Screen(io.StringIO()).width == 44
        monkeypatch.setenv("COLUMNS", "wide")
        assert Screen(io.StringIO()).width == 160

    def test_an_ascii_stream_gets_ascii(self) -> None:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        Screen(stream, width=60).write(
            tree([Node("a", type="run", name="é", child_count=1), Node("b", "a", status="failed")])
        )
        stream.seek(0)
        assert stream.read() == "run  ?  (2 steps, 1 failed)\n`- step  x failed\n"

    @pytest.mark.parametrize(
        ("environment", "coloured"),
        [({"TERM": "xterm-256color"}, True), ({"TERM": "dumb"}, False), ({"TERM": "xterm", "NO_COLOR": "1"}, False)],
    )
    def test_colour_is_for_terminals_that_want_it(
        self, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
    ) -> None:
        monkeypatch.delenv("NO_COLOR", raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        text = _on_a_terminal([[("[red]name[/red] :smile: 10", "bold red")]])
        assert "[red]name[/red] :smile: 10" in text
        assert ("\x1b[" in text) is coloured

    def test_without_rich_a_terminal_gets_plain_text(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setitem(sys.modules, "rich.console", None)  # what the import system does for a missing module
        assert _on_a_terminal([[("name", "bold red")]]) == "name\r\n"


def _on_a_terminal(lines: list[list[tuple[str, str]]]) -> str:
    """Write to a real pseudo-terminal and return what it got."""
    outer, inner = os.openpty()
    with open(inner, "w", encoding="utf-8") as stream:  # noqa: PTH123 - a descriptor has no path
        Screen(stream, width=60).write(lines)
        text = os.read(outer, 10_000).decode()
    os.close(outer)
    return text
