"""What a run's page makes of its steps: their order, what is folded, counted, on the clock and found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import viewing
from msgspec import UNSET, Raw

from stepwell.model import Generation
from stepwell.server.pages._calls import Answer, compare, pair
from stepwell.server.pages._content import Call
from stepwell.server.pages._context import Piece, Sent, apportion, carried, kinds_of, tool_uses
from stepwell.server.pages._find import found_in
from stepwell.server.pages._json import Budget, json_html
from stepwell.server.pages._markdown import is_markdown, markdown_html
from stepwell.server.pages._origins import Text, origins
from stepwell.server.pages._outline import Item, Look, outline
from stepwell.server.pages._page import cost
from stepwell.server.pages._panel import panel_of
from stepwell.server.pages._request import snippet_of
from stepwell.server.pages._rows import Family, family_of
from stepwell.store import Store, open_store
from stepwell.store._outcomes import Act, findings, repeats, soft_failure

AIRLINE = Path(__file__).resolve().parents[2] / "shared" / "data" / "airline_agent.jsonl"
needs_airline = pytest.mark.skipif(not AIRLINE.is_file(), reason=f"the conversations are not here: {AIRLINE}")


@pytest.fixture
def store() -> Iterator[Store]:
    store = open_store("sqlite::memory:")
    yield store
    store.close()


def family(store: Store, id: str = "run") -> Family:
    return family_of(id, store.tree(id))


def names(items: list[Item]) -> list[str]:
    return [f"{item.kind} {item.row.step.id} {item.hidden}" for item in items]


def counted(items: list[Item]) -> int:
    return sum(item.hidden + (item.kind == "step") for item in items)


class TestRows:
    def test_steps_of_one_rounded_start_stand_in_the_order_of_their_nanoseconds_and_arrival(self, store: Store) -> None:
        late = viewing.a_step("late", "tool", 1, 2) | {"start_ns": viewing.BEGAN + 5_000_400}
        first = viewing.a_step("first", "tool", 1, 2) | {"start_ns": viewing.BEGAN + 5_000_100}
        second = viewing.a_step("second", "tool", 1, 2) | {"start_ns": viewing.BEGAN + 5_000_100}
        viewing.add(store, viewing.a_run(), late, first, second)
        assert [row.step.id for row in family(store).rows] == ["run", "first", "second", "late"]

    def test_tokens_and_cost_are_those_of_model_calls_whatever_a_parent_reports(self, store: Store) -> None:
        def llm(id: str, at: float, **usage: int) -> dict[str, Any]:
            generation = {"type": "chat", "model": "m", "messages": [], "usage": usage, "cost": {"total": 0.25}}
            return viewing.a_step(id, "llm", at, at + 1, "agent", generation=generation)

        reported = {"type": "chat", "model": "m", "usage": {"input_tokens": 999, "output_tokens": 99}}
        viewing.add(
            store,
            viewing.a_run(),
            viewing.a_step("agent", "run", 0, 9, generation=reported),
            llm("one", 1, input_tokens=100, output_tokens=10, cached_input_tokens=60),
            llm("two", 2, input_tokens=200, output_tokens=20),
            viewing.a_step("lost", "llm", 3, 4, "agent", status="failed", generation={"type": "chat", "messages": []}),
        )
        sums = family(store).root.sums
        assert (sums.input_tokens, sums.output_tokens, sums.tokens, sums.cost) == (300, 30, 330, 0.5)
        assert (sums.calls, sums.unpriced, sums.errors, sums.worst) == (3, 1, 1, "failed")

    def test_the_peers_of_a_step_are_the_nearest_of_its_type_and_name(self, store: Store) -> None:
        named = (("a", "tool"), ("b", "tool"), ("a", "llm"), ("a", "tool"), ("a", "tool"))
        steps = [viewing.a_step(f"s{at}", kind, at, at + 1, name=name) for at, (name, kind) in enumerate(named)]
        viewing.add(store, viewing.a_run(), *steps)
        run = family(store)
        peers = [panel_of(store, run, run.by_id[id]).peers for id in ("run", "s0", "s3", "s4")]
        told = [tuple(None if row is None else row.step.id for row in pair) for pair in peers]
        assert told == [(None, None), (None, "s3"), ("s0", "s4"), ("s3", None)]

    def test_a_step_has_the_time_of_its_own_in_which_no_child_ran(self, store: Store) -> None:
        times = ((1, 3), (2, 4), (2, 2.5), (6, 7), (9, 12), (11, 14), (5, None))
        children = [viewing.a_step(f"t{at}", "tool", *both) for at, both in enumerate(times)]
        viewing.add(store, viewing.a_run(), *children, viewing.a_step("back", "tool", 8, 4))
        assert family(store).root.own_ns == 5 * viewing.SECOND

    def test_the_run_waited_for_what_ended_last_before_what_followed(self, store: Store) -> None:
        viewing.add(
            store,
            viewing.a_run(end=10),
            viewing.a_step("short", "tool", 0, 3),
            viewing.a_step("long", "tool", 0, 6),
            viewing.a_step("inner", "tool", 1, 5, "long"),
            viewing.a_step("last", "tool", 6, 10),
            viewing.a_step("past", "tool", 8, 12),
        )
        on_clock = [row.step.id for row in family(store).rows if row.on_clock]
        assert on_clock == ["run", "long", "inner", "last"]

    def test_children_that_never_arrived_are_counted(self, store: Store) -> None:
        viewing.add(store, viewing.a_run(child_count=3), viewing.a_step("one", "tool", 1, 2))
        assert family(store).root.missing == 2

    def test_steps_whose_parents_go_in_a_circle_have_one_place_each(self, store: Store) -> None:
        one = viewing.a_step("one", "tool", 1, 2, "two")
        two = viewing.a_step("two", "tool", 2, 3, "one")
        viewing.add(store, viewing.a_run(), one, two, viewing.a_step("lost", "tool", 3, 4, "nowhere"))
        steps = store.steps(order="asc").items
        assert [row.step.id for row in family_of("run", steps).rows] == ["run", "one", "two", "lost"]

    def test_a_message_has_no_duration(self, store: Store) -> None:
        viewing.add(store, viewing.a_run(), viewing.a_step("said", "user_message", 1, 1))
        assert family(store).by_id["said"].duration_ns is None

    def test_time_in_which_nothing_was_recorded_is_a_gap_from_five_percent_on(self, store: Store) -> None:
        viewing.add(
            store,
            viewing.a_run(end=100),
            viewing.a_step("one", "tool", 0, 40),
            viewing.a_step("two", "tool", 44.9, 90),
            viewing.a_step("three", "tool", 96, 100),
        )
        gaps = family(store).gaps()
        assert [(gap.before and gap.before.step.id, gap.after and gap.after.step.id) for gap in gaps] == [
            ("two", "three")
        ]

    def test_a_range_counts_steps_that_ran_in_it_and_tokens_of_calls_that_began_in_it(self, store: Store) -> None:
        usage = {"input_tokens": 7, "output_tokens": 1, "total_tokens": 8}
        generation = {"type": "chat", "model": "m", "messages": [], "usage": usage}
        viewing.add(
            store,
            viewing.a_run(end=10),
            viewing.a_step("before", "llm", 0.5, 3, generation=generation),
            viewing.a_step("within", "llm", 2, 3, generation=generation),
            viewing.a_step("after", "tool", 5, 6),
        )
        sums = family(store).between(viewing.BEGAN + viewing.SECOND, viewing.BEGAN + 4 * viewing.SECOND)
        assert (sums.steps, sums.calls, sums.tokens) == (3, 1, 8)


class TestOutline:
    def test_five_like_siblings_are_one_row_and_the_failed_one_is_seen(self, store: Store) -> None:
        steps = [
            viewing.a_step(
                f"t{at}", "tool", at, at + (at + 1) / 10, name="look", status="failed" if at == 2 else "success"
            )
            for at in range(5)
        ]
        viewing.add(store, viewing.a_run(), *steps, viewing.a_step("other", "tool", 8, 9))
        items = outline(family(store), Look())
        assert names(items) == ["step run 0", "group t0 4", "step t2 0", "step other 0"]
        group = items[1].group
        assert group is not None
        assert (group.members, group.errors) == (5, 1)
        assert [group.least_ns, group.median_ns, group.most_ns, group.total_ns] == [
            100_000_000, 300_000_000, 500_000_000, 1_500_000_000,
        ]  # fmt: skip

    def test_four_like_siblings_stay_as_they_are(self, store: Store) -> None:
        viewing.add(
            store, viewing.a_run(), *(viewing.a_step(f"t{at}", "tool", at, at + 1, name="look") for at in range(4))
        )
        assert names(outline(family(store), Look())) == ["step run 0", *(f"step t{at} 0" for at in range(4))]

    def test_a_hundred_children_are_shown_at_a_time_with_the_others_counted(self, store: Store) -> None:
        viewing.add(store, viewing.a_run(), *(viewing.a_step(f"t{at:03d}", "tool", at / 100, 9) for at in range(250)))
        run = family(store)
        first = outline(run, Look())
        assert (len(first), first[-1].kind, first[-1].first, first[-1].last, first[-1].of) == (
            102,
            "more",
            100,
            250,
            250,
        )
        later = outline(run, Look(children_of="run", first=100))
        assert (later[1].kind, later[1].hidden, later[2].row.step.id, later[-1].hidden) == ("more", 100, "t100", 50)
        chosen = outline(run, Look(selected=run.by_id["t240"]))
        assert [item.row.step.id for item in chosen if item.row.step.id == "t240"] == ["t240"]

    def test_a_page_of_children_may_begin_and_end_inside_of_a_group(self, store: Store) -> None:
        def tool(at: int) -> dict[str, Any]:
            fails, name = 5 <= at < 125, "look" if at < 130 else f"t{at}"
            return viewing.a_step(f"t{at:03d}", "tool", at, 999, name=name, status="failed" if fails else "success")

        viewing.add(store, viewing.a_run(), *(tool(at) for at in range(230)))
        run = family(store)  # a group of 130 with 120 of them apart, and 100 by themselves: 221 rows
        first = outline(run, Look())
        assert names(first[1:3] + first[-2:]) == ["group t000 10", "step t005 0", "step t103 0", "more run 121"]
        middle = outline(run, Look(children_of="run", first=100))
        assert names(middle[1:3] + middle[-2:]) == ["more run 109", "step t104 0", "step t208 0", "more run 21"]
        assert [middle[22].row.step.id, middle[23].row.step.id] == ["t124", "t130"]
        for chosen, at in (("t110", 8), ("t003", 2), ("t229", 22)):
            rows = names(outline(run, Look(selected=run.by_id[chosen])))
            assert rows.index(f"step {chosen} 0") == at
            assert counted(outline(run, Look(selected=run.by_id[chosen]))) == 231

    @pytest.mark.parametrize("look", [Look(), Look(level=0), Look(level=1), Look(level=1000), Look(fold_runs=True)])
    def test_shown_and_announced_steps_are_together_all_of_the_run(self, store: Store, look: Look) -> None:
        viewing.add(store, *viewing.ten_thousand())
        assert counted(outline(family(store, "b-run"), look)) == 10_000

    def test_what_was_found_is_listed_with_what_is_above_it(self, store: Store) -> None:
        viewing.add(
            store, viewing.a_run(), viewing.a_step("a", "run", 0, 5), viewing.a_step("b", "tool", 1, 2, "a"),
            viewing.a_step("c", "tool", 2, 3, "a"),
        )  # fmt: skip
        look = Look(only=frozenset(("run", "a", "c")), level=0)
        assert names(outline(family(store), look)) == ["step run 0", "step a 0", "step c 0"]

    @pytest.mark.parametrize("look", [Look(), Look(level=0), Look(level=1), Look(fold_runs=True)])
    def test_what_ran_in_a_range_is_shown_or_announced_and_nothing_else(self, store: Store, look: Look) -> None:
        viewing.add(store, *viewing.ten_thousand())
        run = family(store, "b-run")
        part = run.part(run.start_ns + 100 * viewing.SECOND, run.start_ns + 210 * viewing.SECOND)
        assert [row.step.id for row in part.root.children] == [f"b-part-{n:02d}" for n in (2, 3, 4)]
        assert counted(outline(part, look)) == part.root.sums.steps == 1 + 498 + 498 + 483 + 3
        assert part.root.missing == 0
        assert part.root.on_clock is True


class TestFind:
    def test_texts_are_found_as_they_are_read_wherever_they_stand(self, store: Store) -> None:
        told = {"kind": "step", "id": "cn", "type": "tool", "parent_id": "run", "root_run_id": "run", "start_ns": 5}
        escaped = json.dumps(told | {"output": "飞机"})  # as escapes
        assert "\\u98de" in escaped
        viewing.add(
            store,
            viewing.a_run(),
            viewing.a_step("named", "tool", 1, 2, name="Fetch Weather"),
            viewing.a_step("given", "tool", 2, 3, input={"city": "NEEDLE town"}),
            viewing.a_step("lines", "tool", 3, 4, output="one\nneedle two"),
            viewing.a_step("broken", "tool", 4, 5, status="failed", error={"message": "a needle in it"}),
        )
        assert store.add([escaped.encode()]).rejected == ()
        run = family(store)
        assert [row.step.id for row in found_in(store, run, "needle")] == ["given", "lines", "broken"]
        assert [row.step.id for row in found_in(store, run, "fetch w")] == ["named"]
        assert [row.step.id for row in found_in(store, run, "飞机")] == ["cn"]
        assert found_in(store, run, "one\\nneedle") == []

    def test_a_message_is_found_in_the_call_that_sent_it_first(self, store: Store) -> None:
        def llm(id: str, at: float, *texts: str) -> dict[str, Any]:
            messages = [{"role": "user", "content": text} for text in texts]
            return viewing.a_step(id, "llm", at, at + 1, generation={"type": "chat", "messages": messages})

        viewing.add(store, viewing.a_run(), llm("one", 1, "hello"), llm("two", 2, "hello", "again"))
        assert [row.step.id for row in found_in(store, family(store), "hello")] == ["one"]


class TestMessages:
    @pytest.mark.parametrize(
        ("old", "new", "expected"),
        [
            ("abc", "abcd", [("same", 0, 3, 0, 3), ("new", 3, 4, 3, 3)]),
            ("abc", "axc", [("same", 0, 1, 0, 1), ("edited", 1, 2, 1, 2), ("same", 2, 3, 2, 3)]),
            ("abc", "ac", [("same", 0, 1, 0, 1), ("dropped", 1, 1, 1, 2), ("same", 1, 2, 2, 3)]),
            ("", "ab", [("new", 0, 2, 0, 0)]),
            ("aa", "a", [("same", 0, 1, 0, 1), ("dropped", 1, 1, 1, 2)]),
        ],
    )
    def test_messages_are_told_from_those_of_the_call_before(self, old: str, new: str, expected: list[Any]) -> None:
        found = compare([each.encode() for each in old], [each.encode() for each in new])
        assert [(each.kind, each.first, each.last, each.old_first, each.old_last) for each in found] == expected


def call(id: str | None, name: str, **arguments: Any) -> Call:
    return Call(id, name, arguments, "")


class TestPairs:
    def test_a_call_has_the_answer_with_its_id(self) -> None:
        assert pair([call("1", "a"), call("2", "a")], [Answer("2", "a"), Answer("1", "a")]) == [1, 0]

    def test_an_id_that_comes_again_pairs_by_arguments_or_not_at_all(self) -> None:
        calls = [call("1", "a", n=1), call("1", "a", n=2)]
        assert pair(calls, [Answer("1", "a", {"n": 2}), Answer("1", "a", {"n": 1})]) == [1, 0]
        assert pair(calls, [Answer("1", "a"), Answer("1", "a")]) == [None, None]
        assert pair(calls, [Answer("1", "a", {"n": 2})]) == [None, 0]

    def test_without_ids_only_what_can_be_told_is_paired(self) -> None:
        assert pair([call(None, "a", n=1)], [Answer(None, "a")]) == [0]
        assert pair([call(None, "a", n=1)], [Answer(None, "a", {"n": 2})]) == [None]
        assert pair([call(None, "a", n=1), call(None, "a", n=2)], [Answer(None, "a")]) == [None, None]
        assert pair([call(None, "a", n=1), call(None, "b")], [Answer(None, "b"), Answer(None, "a", {"n": 1})]) == [1, 0]

    def test_another_id_is_no_answer(self) -> None:
        assert pair([call("1", "a", n=1)], [Answer("9", "a", {"n": 1})]) == [None]


class TestShowing:
    def test_tags_and_scripts_in_markdown_are_text_and_single_line_breaks_stay(self) -> None:
        shown = markdown_html(
            "<rules>\n**one**\ntwo <script>alert(1)</script>\n\n[x](javascript:alert(1)) ![p](http://e/x.png)"
        )
        assert "&lt;rules&gt;<br" in shown
        assert "<strong>one</strong><br" in shown
        assert [each for each in ("<script", "<img", 'href="javascript') if each in shown] == []
        assert "[x](javascript:alert(1))" in shown

    def test_plain_prose_is_no_markdown(self) -> None:
        assert [is_markdown(text) for text in ("a - b, 2 * 3", "# Title", "- item", "see `x`", "1. one")] == [
            False, True, True, True, True,
        ]  # fmt: skip

    def test_json_is_escaped_and_what_is_left_out_is_counted(self) -> None:
        shown = json_html({"<b>": ["x" * 3000, {str(n): {} for n in range(100)}]}, Budget(), lambda part: "")
        assert ("&lt;b&gt;" in shown, "<b>" in shown) == (True, False)
        assert "2,000 of 3,000 characters shown" in shown
        assert "60 of 100 members shown" in shown

    def test_a_budget_bounds_any_value(self) -> None:
        wide: Any = [[[[[str(n)] * 50 for n in range(50)] for _ in range(50)]]]
        assert json_html(wide, Budget(100), lambda part: "").count("<") < 1_500

    @pytest.mark.parametrize(
        ("amount", "expected"), [(None, ""), (0, "$0.00"), (0.00001, "<$0.0001"), (0.0312, "$0.031"), (12.5, "$12.50")]
    )
    def test_an_unknown_cost_is_not_zero(self, amount: float | None, expected: str) -> None:
        assert cost(amount) == expected

    def test_a_request_to_run_again_holds_no_way_out_of_its_quotes(self) -> None:
        messages = Raw(json.dumps([{"role": "user", "content": "it's $(rm) `x`"}]).encode())
        generation = Generation(model="m", provider="openai", messages=messages)
        curl, python = snippet_of(generation, "curl") or "", snippet_of(generation, "python") or ""
        assert "it'\\''s $(rm) `x`" in curl
        assert "$OPENAI_API_KEY" in curl
        compile(python, "snippet", "exec")
        assert snippet_of(Generation(model="m"), "curl") is None


class TestFindings:
    @pytest.mark.parametrize(
        ("result", "expected"),
        [
            ("Error: no", ("error", "Error: no")),
            ("", ("empty", "(empty text)")),
            ("[]", ("empty", "[]")),
            ([], ("empty", "[]")),
            (None, ("empty", "null")),
            ({"error": "no seat"}, ("error", "error: no seat")),
            ('{"status_code": 404}', ("error", "status_code: 404")),
            ({"exit_code": -9}, ("error", "exit_code: -9")),
            ({"error": None, "status": 200}, None),
            ("fine", None),
            (0, None),
            (False, None),
            (UNSET, None),
            ({"error": [10**30]}, ("error", "error: [1000000000000000000000000000000]")),
            ({"errors": {"a": 1}, "status": 404}, ("error", 'errors: {"a":1}')),
        ],
    )
    def test_a_result_tells_of_an_error_or_of_nothing(self, result: Any, expected: Any) -> None:
        assert soft_failure(result) == expected

    def test_what_was_called_meanwhile_is_no_reaction(self) -> None:
        acts = [
            Act("a", "look", {"n": 1}, "Error: no", start_ns=0, end_ns=10),
            Act("b", "look", {"n": 1}, [], start_ns=1, end_ns=5),
            Act("c", "find", {}, "", start_ns=2, end_ns=9),
            Act("d", "look", {"n": 1}, "seen", start_ns=10, end_ns=12),
            Act("e", "look", {"n": 2}, "Error: not any more", start_ns=13, end_ns=14),
        ]
        assert [(each.act.id, each.kind, each.reaction, each.next_id) for each in findings(acts)] == [
            ("a", "error", "same_call", "d"),
            ("b", "empty", "same_call", "d"),
            ("c", "empty", "other_tool", "d"),
            ("e", "error", "none", None),
        ]
        many = [Act(str(n), "look", {}, "Error", start_ns=n, end_ns=1000 + n) for n in range(400)]
        last = Act("last", None, start_ns=2000)
        told = [each.reaction for each in findings([*many, last])]
        assert told == ["none"] * 200 + ["answered"] * 200  # of more than 200 calls at once nothing is looked past

    @needs_airline
    def test_the_airline_conversations_have_54_errors_91_empty_results_and_25_repeats(self) -> None:
        kinds, reactions, again = Counter[str](), Counter[str](), 0
        for acts in map(acts_of_conversation, AIRLINE.read_text(encoding="utf-8").splitlines()):
            found = list(findings(acts))
            kinds.update(each.kind for each in found)
            reactions.update(each.reaction for each in found if each.kind == "error")
            again += len(list(repeats(acts)))
        assert kinds == {"error": 54, "empty": 91}
        assert reactions == {
            "other_tool": 24, "answered": 23, "other_arguments": 6, "none": 1,
        }  # fmt: skip
        assert again == 25

    @needs_airline
    def test_21_of_the_repeats_are_equal_to_the_letter(self) -> None:
        conversations = AIRLINE.read_text(encoding="utf-8").splitlines()
        assert sum(len(list(repeats(acts_of_conversation(line, as_written=True)))) for line in conversations) == 21

    def test_the_shares_of_a_call_are_together_what_it_reported(self) -> None:
        assert apportion(10, [1, 1, 1]) == [4, 3, 3]
        assert apportion(7, [0, 0]) == [7, 0]
        pieces = [Piece(b"s", "system", 700), Piece(b"u", "user", 301), Piece(b"t", "user", 2)]
        kinds = kinds_of(Sent("1", pieces, input_tokens=1001))
        assert kinds == {"system": (700, 699), "user": (303, 302)}

    def test_what_is_sent_again_is_told_with_its_price(self) -> None:
        system, user = Piece(b"s", "system", 300), Piece(b"u", "user", 100)
        calls = [
            Sent("1", [system], 30, 40, 0.4, ["look", "buy"], ["look"]),
            Sent("2", [system, user], 40, 50, 0.5, ["look", "buy"]),
            Sent("3", [system, user], 40, 50, 0.5, ["look", "buy"]),
        ]
        first, second = carried(calls)
        assert (first.piece, first.first_id, first.again, first.characters, first.tokens) == (system, "1", 2, 600, 60)
        assert first.cost == pytest.approx(0.6)
        assert (second.again, second.tokens) == (1, 10)
        assert [(use.name, use.offered, use.called) for use in tool_uses(calls)] == [("buy", 3, 0), ("look", 3, 1)]

    def test_a_value_leads_to_the_first_text_that_holds_it(self) -> None:
        before = [
            Text(0, "system", "be kind"),
            Text(1, "user", "i am mia_li_3668, on may 20"),
            Text(2, "tool", "mia_li_3668"),
        ]
        found = origins(
            {"user": "mia_li_3668", "when": "2024-05-20", "card": "credit_card_7334", "summary": "x"}, before
        )
        assert [(each.path, each.source and each.source.place, each.rewritten) for each in found] == [
            ("user", 1, False), ("when", 1, True), ("card", None, False),
        ]  # fmt: skip

    @needs_airline
    def test_of_2202_airline_arguments_most_are_found_verbatim(self) -> None:
        values = found = 0
        for line in AIRLINE.read_text(encoding="utf-8").splitlines():
            before: list[Text] = []
            for place, message in enumerate(json.loads(line)["messages"]):
                if message["role"] != "assistant":
                    before.append(Text(place, message["role"], (message["content"] or "").lower()))
                for made in message.get("tool_calls") or ():
                    each = origins(json.loads(made["function"]["arguments"]), before)
                    values += len(each)
                    found += sum(value.source is not None and not value.rewritten for value in each)
        assert (values, found) == (2202, 2098)


def acts_of_conversation(line: str, *, as_written: bool = False) -> list[Act]:
    messages = json.loads(line)["messages"]
    calls: dict[str, dict[str, Any]] = {}
    acts: list[Act] = []
    for place, message in enumerate(messages):
        if message["role"] == "assistant":
            calls |= {each["id"]: each["function"] for each in message.get("tool_calls") or ()}
            if not message.get("tool_calls"):
                acts.append(Act(str(place)))
        elif message["role"] == "tool":
            made = calls[message["tool_call_id"]]
            arguments = made["arguments"] if as_written else json.loads(made["arguments"])
            acts.append(Act(str(place), made["name"], arguments, message["content"]))
    return acts
