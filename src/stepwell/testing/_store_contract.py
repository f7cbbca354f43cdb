"""What every store must do, one sentence a test. A subclass says how to make a store:

class TestMyStore(StoreContract):
    def make_store(self) -> Store: ...
"""

from __future__ import annotations

import pytest
from msgspec import Raw, json

from stepwell.model import Score, StepRecord, ThreadRecord, decode_record
from stepwell.store import AddResult, Found, StepFilter, Store, ThreadFilter
from stepwell.testing._store_deletion_contract import StoreDeletionContract
from stepwell.testing._store_outcome_contract import StoreOutcomeContract
from stepwell.testing._store_reading_contract import (
    FULL_STEP,
    GRANDCHILD,
    ROOT,
    family,
    finished,
    line,
    step,
)

__all__ = ["StoreContract"]


class StoreContract(StoreDeletionContract, StoreOutcomeContract):
    """The conformance suite of the store protocol."""

    # adding

    def test_a_step_comes_back_equal_payload_bytes_included(self, store: Store) -> None:
        assert store.add([FULL_STEP]) == AddResult(1, 0)
        expected = decode_record(FULL_STEP)
        assert store.step(GRANDCHILD) == expected
        found = store.step(GRANDCHILD)
        assert bytes(found.input) == b'{ "q" : 1.0 }'  # type: ignore[arg-type]
        assert bytes(found.generation) == b'{"model":"m-1","messages":[],"unknown":1e2}'  # type: ignore[arg-type]

    def test_what_is_absent_stays_absent_and_null_stays_null(self, store: Store) -> None:
        store.add([step("only-an-id"), step("null", input=None, output=None, metadata=None, generation=None)])
        assert store.step("only-an-id") == StepRecord("only-an-id")
        null = Raw(b"null")
        assert store.step("null") == StepRecord("null", input=null, output=null, metadata=null, generation=null)

    @pytest.mark.parametrize(
        "id",
        [
            ROOT,
            ROOT.upper(),
            ROOT.replace("-", ""),
            "12345678-1234-1234-1234-123456789012",
            "0197f0c2 a4b0 7abc-9000-0000-00000001",
            "zzzzzzzz-zzzz-zzzz-zzzz-zzzzzzzzzzzz",
            "0197f0c2-a4b0-7abc-9000-0000000 0 01",
            "step 1 \u00e9 \u0000 '\"",
            "x" * 256,
        ],
    )
    def test_an_id_reads_back_exactly_as_written(self, store: Store, id: str) -> None:
        store.add(
            [step(id, trace_id=id, parent_id=id + "p", root_run_id=id, thread_id=id), step(id + "x")][
                : 2 if len(id) < 256 else 1
            ]
        )
        assert store.step(id) == StepRecord(id, trace_id=id, parent_id=id + "p", root_run_id=id, thread_id=id)
        assert store.find(id) == Found("step", id)

    def test_delivering_a_batch_again_changes_nothing(self, store: Store) -> None:
        batch = [*family(), line("thread", "t-1", name="n"), line("score", "s-1", step_id=ROOT, value=1)]
        assert store.add(batch) == AddResult(5, 0)
        before, position = list(store.records()), store.changes()[1]
        assert store.add(batch) == AddResult(0, 5)
        assert list(store.records()) == before
        assert store.changes()[1] == position

    def test_a_bad_line_is_rejected_with_its_reason_and_its_neighbours_are_stored(self, store: Store) -> None:
        batch = [
            step("a"),
            b"not json",
            step("b", start_ns="soon"),
            step("c", generation=b"[1]"),
            step("d", start_ns=-5),
            step("e", end_ns=1 << 70),
            step("f", scores=[{"id": "s", "step_id": "another"}]),
            line("score", "g", value=1),
            line("thread", "h", created_ns=1 << 64),
            line("note", "i"),
            step("z"),
        ]
        result = store.add(batch)
        assert (result.accepted, result.duplicates) == (2, 0)
        assert [rejection.index for rejection in result.rejected] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        assert [rejection.id for rejection in result.rejected] == [None, None, "c", "d", "e", "f", "g", "h", None]
        assert "$.start_ns" in result.rejected[1].error
        assert "start_ns must be >= 0, got -5" in result.rejected[3].error
        assert [row.id for row in store.steps(order="asc").items] == ["a", "z"]

    def test_a_payload_that_is_not_utf_8_is_rejected(self, store: Store) -> None:
        result = store.add(
            [b'{"kind":"step","id":"a","input":"\xff"}', b'{"kind":"thread","id":"t","metadata":"\xff"}', step("b")]
        )
        assert [rejection.index for rejection in result.rejected] == [0, 1]
        assert store.find("b") == Found("step", "b")

    def test_an_empty_batch_is_taken(self, store: Store) -> None:
        assert store.add([]) == AddResult(0, 0)

    # merging

    def test_a_later_record_updates_the_fields_it_carries(self, store: Store) -> None:
        store.add([step("a", name="one", input=b"1", metadata=b'{"k": 1}', start_ns=5, status="pending")])
        assert store.add([step("a", output=b"2", metadata=b'{"l": 2}', end_ns=9, status="success")]) == AddResult(1, 0)
        assert store.step("a") == StepRecord(
            "a",
            name="one",
            start_ns=5,
            end_ns=9,
            status="success",
            input=Raw(b"1"),
            output=Raw(b"2"),
            metadata=Raw(b'{"l": 2}'),
        )

    def test_one_batch_may_hold_the_same_step_several_times(self, store: Store) -> None:
        result = store.add([step("a", name="one"), step("b"), step("a", name="two", tags=["x"]), step("a", name="two")])
        assert result == AddResult(3, 1)
        assert result.duplicate_places == (3,)
        assert store.step("a") == StepRecord("a", name="two", tags=["x"])

    def test_tags_unite_in_order_of_first_appearance(self, store: Store) -> None:
        store.add([step("a", tags=["c", "a"]), step("a", tags=["b", "a"])])
        assert store.step("a").tags == ["c", "a", "b"]
        assert [row.id for row in store.steps(StepFilter(tag=["b", "c"])).items] == ["a"]

    def test_attachments_and_scores_unite_by_id(self, store: Store) -> None:
        store.add([step("a", attachments=[{"id": "1", "name": "n"}], scores=[{"id": "s", "value": 1}])])
        store.add(
            [
                step(
                    "a",
                    attachments=[{"id": "2"}, {"id": "1", "size": 3}],
                    scores=[{"id": "t"}, {"id": "s", "label": "l"}],
                )
            ]
        )
        found = store.step("a")
        assert [(item.id, item.name, item.size) for item in found.attachments or ()] == [
            ("1", "n", 3),
            ("2", None, None),
        ]
        assert found.scores == [Score("s", value=1.0, label="l"), Score("t")]

    def test_generations_merge_field_by_field(self, store: Store) -> None:
        store.add([step("a", generation=b'{"model": "m", "messages": [1], "x": 0}')])
        store.add([step("a", generation=b'{"model": null, "completion": "c", "messages": [2]}')])
        merged = store.step("a").generation
        assert isinstance(merged, Raw)
        assert json.decode(merged) == {
            "model": "m",
            "messages": [2],
            "x": 0,
            "completion": "c",
        }
        assert store.steps().items[0].model == "m"

    def test_a_generation_of_null_does_not_undo_one(self, store: Store) -> None:
        store.add(
            [step("a", generation=b"null"), step("a", generation=b'{"model":"m"}'), step("a", generation=b"null")]
        )
        assert store.step("a").generation == Raw(b'{"model":"m"}')

    def test_a_pending_record_that_comes_late_only_fills_what_is_missing(self, store: Store) -> None:
        store.add([finished("a", 5, name="done", attachments=[{"id": "1", "name": "new"}])])
        late = step(
            "a",
            type="tool",
            start_ns=4,
            status="pending",
            name="open",
            input=b"1",
            attachments=[{"id": "1", "name": "old"}],
        )
        store.add([late])
        found = store.step("a")
        assert (found.status, found.end_ns, found.start_ns, found.name, found.type) == ("success", 6, 5, "done", "run")
        assert found.input == Raw(b"1")
        assert found.attachments is not None
        assert found.attachments[0].name == "new"
        assert store.add([late]) == AddResult(0, 1)

    def test_an_interrupted_step_is_one_whose_end_nobody_knows(self, store: Store) -> None:
        interrupted = step("a", status="interrupted")
        store.add([step("a", type="tool", start_ns=4, status="pending", input=b"1"), interrupted])
        found = store.step("a")
        assert (found.status, found.end_ns, found.input) == ("interrupted", None, Raw(b"1"))
        store.add([step("a", status="pending")])
        assert store.step("a").status == "interrupted"
        store.add([finished("a", 4), interrupted])
        assert (store.step("a").status, store.step("a").end_ns) == ("success", 5)

    def test_a_step_with_an_end_and_no_status_is_finished(self, store: Store) -> None:
        store.add([step("a", end_ns=5), step("a", status="pending")])
        assert store.step("a") == StepRecord("a", end_ns=5)

    def test_a_score_may_come_before_and_after_its_step(self, store: Store) -> None:
        store.add([line("score", "s-1", step_id=ROOT, name="early", value=1)])
        store.add(
            [
                finished(ROOT, scores=[{"id": "s-2", "label": "inside"}]),
                line("score", "s-3", step_id=ROOT, type="HUMAN"),
            ]
        )
        assert store.add([line("score", "s-1", step_id=ROOT, comment="later", tags=["x"], created_ns=3)]) == AddResult(
            1, 0
        )
        assert store.step(ROOT).scores == [
            Score("s-1", name="early", step_id=ROOT, value=1.0, comment="later", tags=["x"], created_ns=3),
            Score("s-2", label="inside"),
            Score("s-3", step_id=ROOT, type="HUMAN"),
        ]

    def test_a_step_delivered_again_with_a_new_score_is_news(self, store: Store) -> None:
        store.add([finished("a")])
        assert store.add([finished("a", scores=[{"id": "s"}])]) == AddResult(1, 0)
        assert store.add([finished("a", scores=[{"id": "s"}])]) == AddResult(0, 1)

    def test_a_merge_that_makes_no_generation_is_rejected(self, store: Store) -> None:
        store.add([step("a", start_ns=1, name="n")])
        assert store.add([step("a", generation=b'{"model": 1}'), step("a", start_ns=-1)]).accepted == 0
        assert store.step("a") == StepRecord("a", start_ns=1, name="n")

    def test_a_bad_update_in_the_batch_of_its_step_is_rejected_alone(self, store: Store) -> None:
        result = store.add([step("a", name="n"), step("a", start_ns=-1, scores=[{"id": "s"}]), step("a", tags=["x"])])
        assert (result.accepted, [rejection.index for rejection in result.rejected]) == (2, [1])
        assert store.step("a") == StepRecord("a", name="n", tags=["x"])

    # the llm rule

    def test_a_finished_llm_step_without_messages_and_prompt_is_a_run_that_says_so(self, store: Store) -> None:
        store.add(
            [finished("a", type="llm", generation=b'{"model": "m", "messages": null}'), finished("b", type="llm")]
        )
        found = store.step("a")
        assert (found.type, found.downgraded_from) == ("run", "llm")
        assert [(row.type, row.downgraded_from) for row in store.steps().items] == [("run", "llm"), ("run", "llm")]

    @pytest.mark.parametrize("generation", [b'{"messages": [{}]}', b'{"prompt": "p"}'])
    def test_an_llm_step_with_messages_or_a_prompt_stays_llm(self, store: Store, generation: bytes) -> None:
        store.add([finished("a", type="llm", generation=generation)])
        assert (store.step("a").type, store.step("a").downgraded_from) == ("llm", None)

    def test_the_rule_waits_for_the_end(self, store: Store) -> None:
        store.add([step("a", type="llm", status="pending")])
        assert store.step("a").type == "llm"
        store.add([step("a", status="failed")])
        assert store.step("a").type == "run"

    def test_an_end_without_messages_leaves_those_that_were_announced(self, store: Store) -> None:
        store.add([step("a", type="llm", status="pending", generation=b'{"messages": [1]}')])
        store.add([step("a", type="llm", status="success", end_ns=2)])
        assert store.step("a").type == "llm"

    def test_messages_that_come_later_make_it_llm_again(self, store: Store) -> None:
        store.add([finished("a", type="llm")])
        store.add([step("a", generation=b'{"messages": [1]}')])
        assert (store.step("a").type, store.step("a").downgraded_from) == ("llm", None)

    def test_what_the_recorder_downgraded_is_left_alone(self, store: Store) -> None:
        record = finished("a", type="run", downgraded_from="llm", generation=b'{"messages": [1]}')
        assert [store.add([record]), store.add([record])] == [AddResult(1, 0), AddResult(0, 1)]
        assert (store.step("a").type, store.step("a").downgraded_from) == ("run", "llm")

    # threads

    def test_a_thread_comes_back_equal_and_merges(self, store: Store) -> None:
        store.add(
            [
                line(
                    "thread",
                    "t",
                    name="n",
                    tags=["a"],
                    created_ns=5,
                    user={"id": "u", "identifier": "ada", "metadata": {"x": 1}},
                )
            ]
        )
        store.add([line("thread", "t", metadata=b'{ "k":1}', tags=["b"], environment="prod", created_ns=7)])
        found = store.thread("t")
        assert found.user is not None
        assert (found.user.id, found.user.identifier, found.user.metadata) == ("u", "ada", Raw(b'{"x":1}'))
        found.user = None
        assert found == ThreadRecord("t", "n", None, ["a", "b"], Raw(b'{ "k":1}'), "prod", 5)

    def test_threads_come_into_existence_by_their_steps(self, store: Store) -> None:
        store.add(
            [
                finished("a", 30, thread_id="t"),
                step("b", thread_id="t"),
                finished("c", 20, thread_id="t"),
                step("d", thread_id="u"),
            ]
        )
        assert store.thread("t") == ThreadRecord("t", created_ns=20)
        assert store.thread("u") == ThreadRecord("u")
        assert [row.id for row in store.threads().items] == ["t", "u"]
        store.add(
            [
                finished("e", 10, thread_id="t"),
                finished("f", 40, thread_id="u"),
                step("g", start_ns=3, thread_id="v"),
                step("h", thread_id="v"),
            ]
        )
        assert (store.thread("t").created_ns, store.thread("u").created_ns) == (10, 40)
        assert [row.id for row in store.threads().items] == ["u", "t", "v"]

    def test_a_thread_is_listed_with_the_sums_of_its_steps(self, store: Store) -> None:
        store.add([*family(), line("thread", "t-1", name="n", user={"id": "u-1"}, tags=["x"])])
        (row,) = store.threads().items
        assert (row.id, row.name, row.user, row.tags) == ("t-1", "n", "u-1", ("x",))
        assert (row.created_ns, row.first_step_ns, row.last_step_ns) == (10, 10, 30)
        assert (row.steps, row.errors, row.tokens) == (3, 1, 7)

    def test_the_sums_of_a_thread_follow_its_steps(self, store: Store) -> None:
        def sums() -> dict[str, tuple[object, ...]]:
            return {
                row.id: (row.steps, row.errors, row.tokens, row.spent, row.first_step_ns, row.last_step_ns)
                for row in store.threads().items
            }

        def used(tokens: int, cost: float) -> bytes:
            return json.encode({"model": "m", "usage": {"total_tokens": tokens}, "cost": cost, "messages": [1]})

        store.add([step("a", thread_id="t", status="pending", start_ns=4), step("b"), step("c", thread_id="t")])
        assert sums() == {"t": (2, 0, 0, None, 4, 4)}
        paid = step("a", type="llm", status="failed", generation=used(7, 0.5))
        store.add([paid, step("b", thread_id="t", start_ns=3)])
        assert sums() == {"t": (3, 1, 7, 0.5, 3, 4)}
        assert store.add([paid]).duplicates == 1
        assert sums() == {"t": (3, 1, 7, 0.5, 3, 4)}
        store.add([step("a", type="llm", generation=used(7, 0.25))])
        store.add([finished("e", 8, thread_id="t", type="tool", generation=used(0, 8.0))])  # reported, not spent
        assert sums() == {"t": (4, 1, 7, 0.25, 3, 8)}
        new = finished("d", 9, type="llm", thread_id="u", generation=used(2, 2.0))
        store.add([step("a", thread_id="u"), new])
        assert sums() == {"t": (3, 0, 0, None, 3, 8), "u": (2, 1, 9, 2.25, 4, 9)}
        store.delete_run("d")
        assert sums()["u"] == (1, 1, 7, 0.25, 4, 4)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_more_tokens_than_a_column_holds_are_summed(self, store: Store, batch: int) -> None:
        usage = {"usage": {"total_tokens": 1 << 62}}
        frames = [finished(f"s-{n}", thread_id="t", generation=json.encode(usage)) for n in range(3)]
        for at in range(0, 3, batch):
            assert store.add(frames[at : at + batch]).accepted == batch
        (thread,) = store.threads().items
        assert (thread.steps, thread.tokens) == (3, 3 << 62)
        assert [run.tokens for run in store.runs().items] == [1 << 62] * 3

    def test_threads_filter_by_name_user_tag_environment_and_activity(self, store: Store) -> None:
        store.add(
            [
                line(
                    "thread",
                    "a",
                    name="n",
                    user={"id": "1", "identifier": "ada"},
                    tags=["x", "y"],
                    environment="prod",
                    created_ns=5,
                )
            ]
        )
        store.add([line("thread", "b", user={"id": "2"}, created_ns=6), line("thread", "c")])
        keeps = {
            "a": ThreadFilter(id="a"),
            "n": ThreadFilter(name="n"),
            "ada": ThreadFilter(user="ada"),
            "1": ThreadFilter(user="1"),
            "y": ThreadFilter(tag="y"),
            "x, y": ThreadFilter(tag=["x", "y"]),
            "prod": ThreadFilter(environment="prod"),
            "5": ThreadFilter(since_ns=5, until_ns=6),
        }
        assert {name: [row.id for row in store.threads(kept).items] for name, kept in keeps.items()} == {
            name: ["a"] for name in keeps
        }
        assert [row.id for row in store.threads(ThreadFilter(user="2")).items] == ["b"]
        assert [row.id for row in store.threads(order="asc").items] == ["c", "a", "b"]
