"""What a step is: its ids, place, times, outcome, and what can be said of it."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from opentelemetry import trace

import stepwell as sw
from stepwell._context import current_run
from stepwell._recorder import RECORDER
from stepwell.errors import UsageError
from stepwell.testing import Captured, FakeClock, FakeIds, capture

MS = 1_000_000
SECOND = 1_000_000_000


@pytest.fixture
def strict() -> Iterator[Captured]:
    with capture(strict=True) as captured:
        yield captured


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "stepwell"]


# -- ids


def test_a_root_step_has_the_id_of_its_trace(captured: Captured) -> None:
    with sw.run("root") as root:
        pass
    assert root.id.replace("-", "") == root.trace_id
    assert root.parent_id is None


def test_a_trace_id_is_a_uuid_of_version_7_with_the_time(captured: Captured) -> None:
    with FakeClock(start_ns=1_750_000_000_123 * MS), sw.run("root") as root:
        pass
    uuid = UUID(root.id)
    assert (uuid.version, uuid.variant) == (7, "specified in RFC 4122")
    assert uuid.int >> 80 == 1_750_000_000_123


def test_a_child_shares_the_high_half_and_has_its_span_id_as_the_low_one(captured: Captured) -> None:
    with sw.run("root") as root, sw.tool("child") as child:
        context = child.get_span_context()
    assert child.id[:19] == root.id[:19]
    assert UUID(child.id).int & (1 << 64) - 1 == context.span_id
    assert context.span_id >> 62 == 0b10
    assert f"{context.trace_id:032x}" == root.trace_id == child.trace_id
    assert child.parent_id == root.id


def test_the_span_id_of_a_root_is_the_low_half_of_its_trace_id(captured: Captured) -> None:
    with sw.run("root") as root:
        assert root.get_span_context().span_id == int(root.trace_id[16:], 16)


def test_ten_thousand_steps_have_ids_of_their_own(captured: Captured) -> None:
    ids: set[str] = set()
    with sw.run("root"):
        for _ in range(10_000):
            step = sw.start("tool")
            step.end()
            ids.add(step.id)
    assert len(ids) == 10_000


def test_ids_do_not_follow_the_seed_of_the_program(captured: Captured) -> None:
    import random

    ids = []
    for _ in range(2):
        random.seed(1)
        with sw.run("x") as step:
            ids.append(step.id[19:])
    assert ids[0] != ids[1]


def test_a_whole_trace_is_the_literal_it_should_be() -> None:
    with capture(environment="test") as captured, FakeClock(start_ns=1_000 * MS), FakeIds():
        clock = FakeClock(start_ns=2_000 * MS)
        with clock, sw.thread("t", user="ada"), sw.run("agent", tags=["a"]) as run:
            clock.advance(5)
            with sw.llm("answer", model="m", provider="p", messages=[{"role": "user", "content": "?"}], top_p=1) as llm:
                clock.advance(10)
                llm.record("!")
                llm.usage(input_tokens=1, output_tokens=2)
            run.output = "!"
    root = "00000000-07d0-7000-8000-000000000001"
    common = {
        "kind": "step",
        "trace_id": "0000000007d070008000000000000001",
        "thread_id": "t",
        "user": "ada",
        "root_run_id": root,
        "status": "success",
        "environment": "test",
        "sdk": "stepwell-python/0.1.0",
    }
    assert captured.fields("answer") == {
        **common,
        "id": "00000000-07d0-7000-8000-000000000002",
        "parent_id": root,
        "type": "llm",
        "name": "answer",
        "start_ns": 2_000 * MS + 5,
        "end_ns": 2_000 * MS + 15,
        "output": "!",
        "generation": {
            "type": "chat",
            "model": "m",
            "provider": "p",
            "messages": [{"role": "user", "content": "?"}],
            "settings": {"top_p": 1},
            "message_completion": {"role": "assistant", "content": "!"},
            "completion": "!",
            "usage": {"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        },
    }
    assert captured.fields("agent") == {
        **common,
        "id": root,
        "type": "run",
        "name": "agent",
        "start_ns": 2_000 * MS,
        "end_ns": 2_000 * MS + 15,
        "output": "!",
        "tags": ["a"],
        "child_count": 1,
    }


# -- place


def test_the_root_run_is_the_outermost_run_above(captured: Captured) -> None:
    with (
        sw.tool("above") as above,
        sw.run("outer") as outer,
        sw.tool("middle"),
        sw.run("inner") as inner,
        sw.tool("below") as below,
    ):
        assert current_run() is outer
    assert above.root_run_id is None
    assert outer.root_run_id == inner.root_run_id == below.root_run_id == outer.id


def test_the_second_child_of_a_run_has_the_root_run_too(captured: Captured) -> None:
    with sw.run("outer") as outer:
        with sw.run("first"):
            pass
        with sw.tool("second") as second:
            pass
    assert second.root_run_id == outer.id


def test_a_step_without_a_run_has_no_root_run(captured: Captured) -> None:
    with sw.tool("x"):
        assert sw.current_run() is None
    assert "root_run_id" not in captured.fields("x")


def test_a_step_belongs_to_the_thread_around_it(captured: Captured) -> None:
    with sw.thread("t") as thread, sw.run("r") as run, sw.tool("x") as step:
        assert sw.current_thread() is thread
    assert (run.thread_id, step.thread_id) == ("t", "t")
    assert captured.fields("x")["thread_id"] == "t"


def test_a_thread_opened_in_a_run_holds_what_is_below_it(captured: Captured) -> None:
    with sw.run("r") as run:
        with sw.thread("t"), sw.tool("in") as inside, sw.tool("deeper") as deeper:
            assert inside.root_run_id == run.id
        with sw.tool("after") as after:
            pass
    assert (run.thread_id, inside.thread_id, deeper.thread_id, after.thread_id) == (None, "t", "t", None)
    assert inside.trace_id == run.trace_id


def test_a_step_keeps_the_thread_of_its_parent_when_another_is_opened(captured: Captured) -> None:
    with sw.thread("outer"), sw.run("r"), sw.thread("inner"), sw.tool("x") as step:
        assert step.thread_id == "outer"
    with sw.thread("outer"), sw.thread("inner"), sw.run("y") as root:
        assert root.thread_id == "inner"


def test_child_count_is_how_many_children_were_started(captured: Captured) -> None:
    with sw.run("r"):
        for _ in range(3):
            with sw.tool("x"), sw.tool("deeper"):
                pass
        sw.start("tool", "left open")
    assert captured.fields("r")["child_count"] == 3 + 1


def test_child_count_is_exact_when_threads_start_the_children(captured: Captured) -> None:
    with sw.run("r"):

        def work() -> None:
            for _ in range(500):
                sw.start("tool").end()

        threads = [threading.Thread(target=sw.bind(work)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert captured.fields("r")["child_count"] == 4000


def test_a_step_left_open_does_not_stay_current_when_its_parent_ends(captured: Captured) -> None:
    with sw.run("r"):
        sw.start("tool", "left open")
        sw.start("tool", "below that")
    assert sw.current_step() is None


# -- times


def test_times_follow_the_monotonic_clock_when_the_wall_clock_is_set_back(captured: Captured) -> None:
    with FakeClock(start_ns=100 * SECOND) as clock:
        with sw.run("r"):
            clock.advance(1 * SECOND)
            clock.set_wall(5 * SECOND)
            with sw.tool("x"):
                clock.advance(2 * SECOND)
        with sw.run("next"):
            pass
    x, r = captured.step("x"), captured.step("r")
    assert (r.start_ns, x.start_ns, x.end_ns, r.end_ns) == (
        100 * SECOND,
        101 * SECOND,
        103 * SECOND,
        103 * SECOND,
    )
    assert captured.step("next").start_ns == 7 * SECOND


def test_end_takes_a_time_of_its_own(captured: Captured) -> None:
    with FakeClock(start_ns=0):
        sw.start("tool", "x").end(end_time=77)
    assert captured.step("x").end_ns == 77


@pytest.mark.parametrize("wrong", [1.5, "soon", True, 10**30, -5])
def test_a_wrong_end_time_does_not_lose_the_step(wrong: Any, captured: Captured) -> None:
    with FakeClock(start_ns=0):
        sw.start("tool", "x").end(end_time=wrong)
    assert captured.tree() == [("tool", "x", "success", [])]


# -- the llm rule


def test_an_llm_step_with_messages_or_prompt_stays_one(captured: Captured) -> None:
    with sw.llm("chat", messages=[]):
        pass
    with sw.llm("text", prompt="Say hi"):
        pass
    assert [(step.type, step.downgraded_from) for step in captured.steps] == [("llm", None), ("llm", None)]
    assert [captured.fields(name)["generation"]["type"] for name in ("chat", "text")] == ["chat", "completion"]


def test_an_llm_step_that_asked_nothing_is_a_run_that_says_so(captured: Captured) -> None:
    with sw.llm("x", model="m") as step:
        pass
    assert (captured.step("x").type, captured.step("x").downgraded_from) == ("run", "llm")
    assert step.type == "run"
    assert captured.fields("x")["generation"] == {"model": "m"}


def test_one_warning_is_logged_for_each_call_site(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(5):
        with sw.llm("x"):
            pass
    with sw.llm("x"):
        pass
    assert len(warnings_of(caplog)) == 2
    assert "neither messages nor a prompt" in warnings_of(caplog)[0]
    assert "test_step.py" in warnings_of(caplog)[0]


def test_an_llm_function_is_asked_by_its_parameters(captured: Captured) -> None:
    @sw.llm(model="m")
    def answer(messages: list[Any], temperature: float = 0) -> str:
        return "42"

    answer([{"role": "user", "content": "6*7?"}])
    generation = captured.fields("answer")["generation"]
    assert generation == {
        "type": "chat",
        "model": "m",
        "messages": [{"role": "user", "content": "6*7?"}],
        "message_completion": {"role": "assistant", "content": "42"},
        "completion": "42",
    }


# -- outcomes


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad"), "failed"),
        (asyncio.CancelledError(), "cancelled"),
        (KeyboardInterrupt(), "cancelled"),
        (GeneratorExit(), "cancelled"),
        (SystemExit(), "success"),
        (SystemExit(0), "success"),
        (SystemExit(1), "failed"),
        (SystemExit("usage: ..."), "failed"),
        (SystemExit(["odd"]), "failed"),
    ],
)
def test_what_a_block_is_left_with_is_its_outcome(error: BaseException, status: str, captured: Captured) -> None:
    with pytest.raises(type(error)), sw.tool("x"):
        raise error
    assert captured.step("x").status == status
    assert (captured.step("x").error is not None) is (status == "failed")
    assert sw.stats().faults == {}


def test_a_failure_tells_type_text_and_the_users_frames(captured: Captured) -> None:
    with pytest.raises(UsageError), sw.tool("x"):
        raise UsageError("bad tea")
    error = captured.fields("x")["error"]
    assert (error["type"], error["message"]) == ("stepwell.errors.UsageError", "bad tea")
    assert 'raise UsageError("bad tea")' in error["traceback"]


def test_causes_are_in_the_traceback(captured: Captured) -> None:
    with pytest.raises(KeyError), sw.tool("x"):
        try:
            raise ValueError("first")
        except ValueError as error:
            raise KeyError("second") from error
    text = captured.fields("x")["error"]["traceback"]
    assert "ValueError: first" in text
    assert "direct cause" in text


def test_the_error_of_a_deep_recursion_is_bounded(captured: Captured) -> None:
    def fall() -> None:
        fall()

    with pytest.raises(RecursionError), sw.tool("x"):
        fall()
    assert len(captured.fields("x")["error"]["traceback"]) <= 33_000


def test_an_error_whose_text_raises_is_recorded_by_type(captured: Captured) -> None:
    class SilentError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(SilentError), sw.tool("x"):
        raise SilentError
    assert captured.fields("x")["error"]["message"] == "<str() raised RuntimeError>"


def test_an_error_whose_cause_can_not_be_told_has_the_traceback_of_its_own(captured: Captured) -> None:
    class HiddenError(Exception):
        def __getattribute__(self, name: str) -> Any:
            if name == "__cause__":
                raise RuntimeError
            return super().__getattribute__(name)

    with pytest.raises(HiddenError), sw.tool("x"):
        raise HiddenError("hidden")
    assert captured.fields("x")["error"]["message"] == "hidden"
    frames = captured.fields("x")["error"]["traceback"]
    assert frames.startswith("Traceback (most recent call last):")
    assert frames.endswith("HiddenError: hidden\n")


def test_a_cancelled_task_is_a_cancelled_step(captured: Captured) -> None:
    async def main() -> None:
        entered = asyncio.Event()

        @sw.run
        async def work() -> None:
            entered.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert captured.tree() == [("run", "work", "cancelled", [])]


def test_fail_marks_a_step_that_goes_on(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.fail("no tea")
        assert step.status == "pending"
        step.output = "water"
    assert captured.step("x").status == "failed"
    assert captured.fields("x")["error"] == {"message": "no tea"}
    assert captured.fields("x")["output"] == "water"


def test_fail_takes_an_exception_that_was_handled(captured: Captured) -> None:
    with sw.tool("x") as step:
        try:
            raise ValueError("handled")
        except ValueError as error:
            step.fail(error)
    assert (captured.fields("x")["error"]["type"], captured.fields("x")["error"]["message"]) == (
        "ValueError",
        "handled",
    )


@pytest.mark.parametrize("reason", [5, None, b"x", object(), "\ud800"])
def test_fail_takes_anything_as_the_reason(reason: Any, captured: Captured) -> None:
    with sw.tool("x") as step:
        step.fail(reason)
    assert captured.step("x").status == "failed"


def test_what_is_set_last_counts(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.input, step.output, step.metadata, step.tags = 1, 1, {"a": 1}, ["a"]
        step.input, step.output, step.metadata, step.tags = 2, 2, {"b": 2}, ["b"]
        assert (step.input, step.output) == (2, 2)
    fields = captured.fields("x")
    assert [fields[name] for name in ("input", "output", "metadata", "tags")] == [2, 2, {"b": 2}, ["b"]]


def test_only_the_first_end_counts(captured: Captured) -> None:
    with FakeClock(start_ns=0):
        step = sw.start("tool", "x")
        step.end(end_time=5)
        step.end(end_time=9)
    assert [(record.name, record.end_ns) for record in captured.records] == [("x", 5)]  # type: ignore[union-attr]


def test_a_block_whose_step_was_ended_inside_is_recorded_once(captured: Captured) -> None:
    with pytest.raises(ValueError, match="late"), sw.tool("x") as step:
        step.end()
        raise ValueError("late")
    assert [record.status for record in captured.records] == ["success"]  # type: ignore[union-attr]
    assert sw.current_step() is None


SETTERS: list[Callable[[Any], object]] = [
    lambda step: setattr(step, "input", 1),
    lambda step: setattr(step, "output", 1),
    lambda step: setattr(step, "metadata", {"a": 1}),
    lambda step: setattr(step, "tags", ["a"]),
    lambda step: setattr(step, "generation", {"model": "m"}),
    lambda step: step.usage(input_tokens=1),
    lambda step: step.record("x"),
    lambda step: step.fail("x"),
]


@pytest.mark.parametrize("setter", SETTERS)
def test_what_is_set_after_the_end_is_refused_with_a_hint(
    setter: Callable[[Any], object], captured: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    with sw.tool("x") as step:
        pass
    setter(step)
    assert len(captured.records) == 1
    assert "was set on step 'x' after its end" in warnings_of(caplog)[0]


@pytest.mark.parametrize("setter", SETTERS)
def test_what_is_set_after_the_end_raises_when_strict(setter: Callable[[Any], object], strict: Captured) -> None:
    with sw.tool("x") as step:
        pass
    with pytest.raises(UsageError, match="was set on step 'x' after its end"):
        setter(step)


def test_attributes_set_after_the_end_are_ignored(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    with sw.tool("x") as step:
        pass
    step.set_attribute("k", 1)
    step.add_event("e")
    step.update_name("y")
    assert "metadata" not in captured.fields("x")
    assert warnings_of(caplog) == []


def test_started_steps_may_end_out_of_order(captured: Captured) -> None:
    a = sw.start("tool", "a")
    b = sw.start("tool", "b")
    c = sw.start("tool", "c")
    a.end()
    assert sw.current_step() is None
    c.end()
    b.end()
    assert sw.current_step() is None
    assert captured.tree() == [("tool", "a", "success", [("tool", "b", "success", [("tool", "c", "success", [])])])]


def test_a_call_that_ends_the_step_around_it_does_not_bring_it_back(captured: Captured) -> None:
    outer = sw.start("run", "outer")

    @sw.tool
    def plain() -> None:
        outer.end()

    @sw.tool
    def streaming() -> Iterator[int]:
        outer.end()
        return (number for number in [1])

    plain()
    assert sw.current_step() is None
    outer = sw.start("run", "outer")
    stream = streaming()
    assert sw.current_step() is None
    assert list(stream) == [1]
    assert sw.current_step() is None


def test_a_step_may_end_in_another_thread(captured: Captured) -> None:
    step = sw.start("tool", "x")
    thread = threading.Thread(target=step.end)
    thread.start()
    thread.join()
    assert captured.tree() == [("tool", "x", "success", [])]


def test_a_step_may_end_in_another_task(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        step = sw.start("tool", "x")

        async def ends() -> None:
            step.end()
            assert sw.current_step() is None

        await asyncio.create_task(ends())

    asyncio.run(main())
    assert captured.tree() == [("tool", "x", "success", [])]
    assert [record.getMessage() for record in caplog.records] == []


def test_a_block_in_an_async_generator_closed_by_another_task_logs_nothing(
    captured: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    async def numbers() -> Any:
        with sw.run("r"), sw.thread("t"):
            yield 1

    async def main() -> None:
        generator = numbers()
        await asyncio.create_task(generator.__anext__())
        assert sw.current_step() is None
        await asyncio.create_task(generator.aclose())
        assert sw.current_step() is None

    asyncio.run(main())
    assert captured.tree() == [("run", "r", "cancelled", [])]
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


# -- what can be said of a step


def test_other_libraries_reach_the_step_as_the_current_span(captured: Captured) -> None:
    with sw.tool("x") as step:
        assert trace.get_current_span() is step
        trace.get_current_span().set_attribute("http.method", "GET")
    assert captured.fields("x")["metadata"] == {"http.method": "GET"}


def test_scores_of_an_open_step_are_in_its_record(captured: Captured) -> None:
    with FakeClock(start_ns=8), FakeIds(), sw.tool("x") as step:
        step.score("relevance", 0.5, label="fair", comment="so so", type="AI", tags=["t"])
    assert captured.fields("x")["scores"] == [
        {
            "id": "00000000-0000-7000-8000-000000000002",
            "name": "relevance",
            "type": "AI",
            "value": 0.5,
            "label": "fair",
            "comment": "so so",
            "tags": ["t"],
            "created_ns": 8,
        }
    ]


def test_scores_of_an_ended_step_are_records_of_their_own(captured: Captured) -> None:
    with sw.tool("x") as step:
        pass
    step.score("relevance", 1)
    sw.score(step.id, "style", label="plain")
    sw.feedback(step.id, "negative", comment="no")
    found = [
        (score.step_id, score.name, score.type, score.value, score.label, score.comment) for score in captured.scores
    ]
    assert found == [
        (step.id, "relevance", "CODE", 1.0, None, None),
        (step.id, "style", "CODE", None, "plain", None),
        (step.id, "feedback", "HUMAN", 0.0, "negative", "no"),
    ]


@pytest.mark.parametrize("value", [True, 1, 2.5, 10**20])
def test_any_finite_number_is_a_score(value: Any, captured: Captured) -> None:
    with sw.tool("x") as step:
        step.score("s", value)
    assert captured.fields("x")["scores"][0]["value"] == float(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "high", 10**400, object(), [1]])
def test_a_score_that_is_no_number_keeps_what_it_was(value: Any, captured: Captured) -> None:
    with sw.tool("x") as step:
        step.score("s", value)
    sw.score(step.id, "s", value)
    score = captured.fields("x")["scores"][0]
    assert "value" not in score
    assert score["comment"].startswith("value was ")
    assert len(captured.scores) == 1


def test_a_wrong_score_raises_when_strict(strict: Captured) -> None:
    with sw.tool("x") as step, pytest.raises(UsageError, match="score 's': value must be a finite number, got 'high'"):
        step.score("s", "high")  # type: ignore[arg-type]


def test_a_wrong_score_after_the_fact_raises_when_strict(strict: Captured) -> None:
    with pytest.raises(UsageError, match="score 's': value must be a finite number, got nan"):
        sw.score("id", "s", float("nan"))


def test_a_journal_that_fails_does_not_disturb_the_program(captured: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: bytes) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(RECORDER, "append", fails)
        with sw.thread("t"), sw.tool("x") as step:
            pass
        step.score("s", 1)
        step.attach(b"late")
        sw.score("id", "s", 1)
    assert sw.current_step() is None
    assert sw.stats().faults == {"record a thread": 1, "finish a step": 1, "record a score": 2, "attach": 1}


WRONG_SCORES: list[tuple[Callable[[], object], str]] = [
    (lambda: sw.score("", "s", 1), "step_id must be a string of 1 to 256 characters, got ''"),
    (lambda: sw.score(5, "s", 1), "step_id must be a string of 1 to 256 characters, got 5"),  # type: ignore[arg-type]
    (lambda: sw.score("i", "s", 1, type="human"), "type of a score must be one of HUMAN, CODE, AI, got 'human'"),  # type: ignore[arg-type]
    (lambda: sw.score("i", "s", 1, tags="web"), "tags must be a list of strings, got 'web'"),
    (lambda: sw.feedback("i", "good"), "feedback must be one of positive, negative, got 'good'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("wrong", "message"), WRONG_SCORES)
def test_a_wrong_id_type_tag_or_label_of_a_score_raises(
    wrong: Callable[[], object], message: str, captured: Captured
) -> None:
    with pytest.raises(UsageError, match=message):
        wrong()


def test_a_wrong_type_of_score_raises_on_a_step_too(captured: Captured) -> None:
    with sw.tool("x") as step, pytest.raises(UsageError, match="type of a score"):
        step.score("s", 1, type="human")  # type: ignore[arg-type]


def test_usage_adds_up(captured: Captured) -> None:
    with sw.embedding("x") as step:
        step.usage(input_tokens=3)
        step.usage(output_tokens=4, cached_input_tokens=1, cache_write_tokens=0, reasoning_tokens=2)
    usage = captured.fields("x")["generation"]["usage"]
    assert usage == {
        "input_tokens": 3,
        "output_tokens": 4,
        "total_tokens": 7,
        "cached_input_tokens": 1,
        "cache_write_tokens": 0,
        "reasoning_tokens": 2,
    }


@pytest.mark.parametrize("value", [-1, 1.5, "3", True, 1 << 63, [], float("nan")])
def test_wrong_tokens_are_left_out_and_named(value: Any, captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    with sw.tool("x") as step:
        step.usage(input_tokens=value, output_tokens=4)
    assert captured.fields("x")["generation"]["usage"] == {"output_tokens": 4}
    assert "input_tokens must be a whole number" in warnings_of(caplog)[0]


def test_tokens_there_are_not_are_named(strict: Captured) -> None:
    with sw.tool("x") as step, pytest.raises(UsageError, match="usage has no 'tokens', only cache"):
        step.usage(tokens=5)


def test_the_fields_of_a_generation_can_be_set(captured: Captured) -> None:
    fields = {
        "type": "completion",
        "provider": "p",
        "model": "m",
        "prompt": "?",
        "completion": "!",
        "variables": {"a": 1},
        "ttft_ns": 5,
        "duration_ns": 7.0,
        "tokens_per_second": 2,
        "context_window_limit": 8192,
        "cost": {"total": 0.1},
        "stop_reason": None,
    }
    with sw.llm("x") as step:
        step.generation = fields
        assert step.generation["model"] == "m"
    assert captured.fields("x")["generation"] == {
        **{name: value for name, value in fields.items() if value is not None},
        "duration_ns": 7,
        "tokens_per_second": 2.0,
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"colour": "red"},
        {"type": "tool"},
        {"type": []},
        {"ttft_ns": -1},
        {"ttft_ns": "soon"},
        {"ttft_ns": float("nan")},
        {"context_window_limit": 10**30},
        {"tokens_per_second": float("inf")},
        {"tokens_per_second": 10**400},
        {5: 6},
        5,
        [],
    ],
)
def test_wrong_fields_of_a_generation_are_left_out_and_named(
    wrong: Any, captured: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    with sw.llm("x", prompt="?") as step:
        step.generation = wrong
    assert captured.fields("x")["generation"] == {"type": "completion", "prompt": "?"}
    assert "generation" in warnings_of(caplog)[0]


def test_record_takes_a_text(captured: Captured) -> None:
    with sw.llm("x", prompt="?") as step:
        step.record("hello")
    fields = captured.fields("x")
    assert fields["output"] == "hello"
    assert fields["generation"]["completion"] == "hello"


def test_record_does_not_replace_an_output_that_is_set(captured: Captured) -> None:
    with sw.llm("x", prompt="?") as step:
        step.output = "mine"
        step.record("hello")
    assert captured.fields("x")["output"] == "mine"


def test_metadata_and_tags_may_change_until_the_end(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.metadata["k"] = items = [1]
        items.append(2)
        step.tags.append("a")
        step.tags.append("b")
    assert (captured.fields("x")["metadata"], captured.fields("x")["tags"]) == ({"k": [1, 2]}, ["a", "b"])


def test_steps_do_not_share_what_is_put_on_them(captured: Captured) -> None:
    with sw.tool("a") as a, sw.tool("b") as b:
        a.tags.append("t")
        a.metadata["k"] = 1
        a.score("s", 1)
        assert (b.tags, b.metadata) == ([], {})
    assert captured.fields("b").keys().isdisjoint({"tags", "metadata", "scores"})


def test_a_name_can_be_changed_while_the_step_is_open(captured: Captured) -> None:
    with sw.tool("before") as step:
        step.name = "after"
    assert captured.tree() == [("tool", "after", "success", [])]


def test_a_step_longer_than_a_second_is_announced_once(captured: Captured) -> None:
    with FakeClock(start_ns=0) as clock, sw.run("long", input=1) as step:
        assert step.announce(SECOND) is False
        clock.advance(SECOND)
        assert step.announce(SECOND) is True
        assert captured.tree() == [("run", "long", "pending", [])]
        clock.advance(SECOND)
    statuses = [record.status for record in captured.records]  # type: ignore[union-attr]
    assert statuses[0] == "pending"
    assert statuses[-1] == "success"
    assert captured.step("long").end_ns == 2 * SECOND
    assert step.announce(0) is False


def test_a_finished_run_is_freed_without_the_collector(captured: Captured) -> None:
    gc.disable()
    try:
        with sw.run("x") as step:
            with sw.tool("y"):
                pass
            freed = weakref.ref(step)
        del step
        assert freed() is None
    finally:
        gc.enable()


def test_a_call_with_a_long_history_is_recorded_whole(captured: Captured) -> None:
    messages = [{"role": "user", "content": f"{number} " + "x" * 1000} for number in range(100)]
    with sw.llm("x", messages=messages, model="m") as step:
        step.output = "y"
    assert captured.fields("x")["generation"]["messages"] == messages
    assert captured.fields("x")["output"] == "y"
