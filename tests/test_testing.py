"""What users test with: capture() leaves no trace of itself, and the fakes are the same in every run."""

from __future__ import annotations

import doctest
import importlib
import threading
import time
from pathlib import Path

import pytest

import stepwell as sw
from stepwell._recorder import RECORDER
from stepwell.errors import NotFoundError, UsageError
from stepwell.exporters.memory import MemoryExporter
from stepwell.testing import Captured, FakeClock, FakeIds, capture

pytest_plugins = ["pytester"]


EXAMPLES = ["testing._captured", "testing._fakes", "_propagation", "exporters.memory", "_capture"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_in_the_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(importlib.import_module(f"stepwell.{name}"))
    assert (failed, tried > 0) == (0, True)


def test_answers_hold_what_was_recorded_before_the_question() -> None:
    with capture() as captured:
        for count in range(1, 50):
            with sw.tool("x"):
                pass
            assert len(captured.steps) == count


def test_answers_can_be_asked_for_after_the_block() -> None:
    with capture() as captured, sw.thread("t"), sw.run("r") as step:
        pass
    step.score("late", 1)
    assert [thread.id for thread in captured.threads] == ["t"]
    assert captured.tree() == [("run", "r", "success", [])]
    assert captured.scores == []


def test_steps_come_parents_first_and_in_the_order_they_started() -> None:
    with capture() as captured, FakeClock(tick_ns=1), sw.run("a"):
        with sw.tool("b"), sw.tool("c"):
            pass
        with sw.tool("d"):
            pass
    assert [step.name for step in captured.steps] == ["a", "b", "c", "d"]


def test_updates_are_merged_into_their_steps_and_threads() -> None:
    with capture() as captured:
        with sw.thread("t", tags=["a"]) as thread, sw.run("r") as step:
            thread.tags.append("b")
        step.attach(b"late", name="late.txt")
    assert len(captured.records) == 4
    assert [attachment.name for attachment in captured.step("r").attachments or []] == ["late.txt"]
    assert captured.threads[0].tags == ["a", "b"]


def test_a_step_that_is_not_there_or_not_alone_is_named(captured: Captured) -> None:
    with pytest.raises(NotFoundError, match="0 steps are called 'x'; recorded: none"):
        captured.step("x")
    for _ in range(2):
        with sw.run("r"):
            pass
    with pytest.raises(NotFoundError, match="2 steps are called 'r'; recorded: 'r', 'r'"):
        captured.step("r")


def test_clear_forgets_what_was_recorded(captured: Captured) -> None:
    with sw.run("r"):
        pass
    captured.clear()
    assert captured.records == []


def test_the_configuration_from_before_stands_again() -> None:
    memory = MemoryExporter()
    sw.configure(export=memory, home=None, service="mine", strict=True, sample=0.5, capture_input=False)
    RECORDER.sample_bound = 1 << 56
    with sw.run("before"):
        pass
    with capture(service="other", strict=False) as captured, sw.run("inside"):
        pass
    assert (RECORDER.strict, RECORDER.capture_input) == (True, False)
    RECORDER.sample_bound = 1 << 56
    with sw.run("after"):
        pass
    assert sw.flush(30)
    assert [(step.name, step.service) for step in memory.steps] == [("before", "mine"), ("after", "mine")]
    assert [(step.name, step.service) for step in captured.steps] == [("inside", "other")]
    assert sw.stats().recorded == 2


def test_no_configuration_from_before_stands_again_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with capture():
        pass
    assert (RECORDER.enabled, list(tmp_path.iterdir())) == (True, [])
    sw.shutdown()
    with capture():
        assert RECORDER.enabled
    assert not RECORDER.enabled


def test_faults_and_warnings_of_the_block_are_its_own(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        with capture():
            with sw.llm("x", messages=[]) as step:
                step.usage(input_tokens=-1)
            assert sw.stats().faults == {"misuse": 1}
    assert len(caplog.records) == 2
    assert sw.stats().faults == {}


def test_captures_nest() -> None:
    with capture() as outer:
        with sw.run("a"), capture() as inner, sw.tool("b"):
            pass
        with sw.run("c"):
            pass
    assert [step.name for step in outer.steps] == ["a", "c"]
    assert [step.name for step in inner.steps] == ["b"]


def test_a_step_left_open_in_the_block_does_not_stay_current() -> None:
    with capture():
        sw.start("run", "left open")
    assert sw.current_step() is None


def test_a_wrong_setting_raises_and_changes_nothing() -> None:
    memory = MemoryExporter()
    sw.configure(export=memory, home=None)
    with sw.run("a"):
        pass
    with pytest.raises(UsageError, match="sample=5"), capture(sample=5):
        pass
    with sw.run("b"):
        pass
    assert sw.flush(30)
    assert [step.name for step in memory.steps] == ["a", "b"]


def test_the_environment_does_not_switch_a_capture_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPWELL_ENABLED", "0")
    monkeypatch.setenv("STEPWELL_SAMPLE", "0")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    with capture() as captured, sw.run("r"):
        pass
    assert captured.tree() == [("run", "r", "success", [])]


def test_what_does_not_arrive_is_said() -> None:
    release = threading.Event()

    class Stuck:
        def export(self, batch: object) -> None:
            release.wait(30)

    with capture(export=[MemoryExporter(), Stuck()]) as captured:
        with sw.run("r"):
            pass
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("stepwell._config.flush", lambda: False)
            with pytest.raises(TimeoutError, match="did not arrive"):
                _ = captured.steps
        release.set()


def test_a_fake_clock_ticks_and_is_taken_away_again() -> None:
    before = (RECORDER.wall_ns, RECORDER.monotonic_ns)
    with FakeClock(start_ns=100, tick_ns=10) as clock:
        assert [RECORDER.monotonic_ns(), RECORDER.monotonic_ns(), clock.wall_ns()] == [0, 10, 120]
    assert (RECORDER.wall_ns, RECORDER.monotonic_ns) == before


def test_a_step_that_was_open_before_is_not_announced_inside() -> None:
    with FakeClock() as clock, capture() as outer:
        before, ended = sw.start("run", "before"), sw.start("run", "ended inside")
        with capture() as inner:
            long = sw.start("run", "long")
            clock.advance(2_000_000_000)
            ended.end()
            deadline = time.monotonic() + 30
            while "long" not in (names := {step.name for step in inner.steps}):
                assert time.monotonic() < deadline
            assert names == {"ended inside", "long"}
            long.end()
        assert ended.id not in RECORDER.open_steps
        before.end()
        assert outer.step("before").status == "success"


def test_two_runs_with_fakes_record_the_same() -> None:
    runs = []
    for _ in range(2):
        with capture() as captured, FakeClock(tick_ns=3), FakeIds(), sw.thread(), sw.run("r"):
            sw.user_message("Hi", attachments=[sw.attach(b"x")])
            with sw.tool("x") as step:
                step.score("s", 1)
        runs.append(captured.records)
    assert runs[0] == runs[1]
    assert len(runs[0]) == 4


def test_fake_ids_count_on_and_are_taken_away_again() -> None:
    before = RECORDER.ids
    with FakeIds():
        ends = [int(RECORDER.span_id().replace("-", ""), 16) & 0xFFFF for _ in range(600)]
    assert ends == list(range(1, 601))
    assert RECORDER.ids is before


def test_the_plug_in_gives_a_fixture(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import stepwell as sw

        def test_one(stepwell_capture):
            with sw.run("r"):
                pass
            assert stepwell_capture.tree() == [("run", "r", "success", [])]

        def test_two(stepwell_capture):
            assert stepwell_capture.steps == []
        """
    )
    pytester.runpytest_inprocess(
        "-p", "no:stepwell", "-p", "stepwell.testing.plugin", "-p", "no:cacheprovider"
    ).assert_outcomes(passed=2)
