"""A trace is kept or not as a whole, and what is not kept costs no capture."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.context import get_current

import stepwell as sw
from stepwell._recorder import RECORDER
from stepwell.testing import capture


class Untouchable:
    """Fails the test when anything of it is looked at."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__class__":
            return Untouchable
        pytest.fail(f"{name} was looked at")

    def __repr__(self) -> str:
        pytest.fail("repr was called")


def everything(value: Any) -> None:
    """Record in every way there is."""

    @sw.tool("call", tags=["t"], metadata={"v": value})
    def call(argument: Any) -> Any:
        return argument

    @sw.llm
    async def answer(messages: Any) -> None: ...

    assert call(value) is value
    asyncio.run(answer(value))
    with sw.thread("t", metadata={"v": value}) as thread, sw.run("block", input=value) as step:
        thread.metadata["w"] = value
        step.input, step.output, step.generation = value, value, {"messages": value}
        step.metadata["v"] = value
        step.tags.append("x")
        step.usage(input_tokens=1)
        step.record({"choices": [value]})
        assert list(step.stream([value])) == [value]
        step.score("s", 1)
        step.attach(b"bytes")
        step.set_attribute("v", value)
        step.add_event("e", {"v": value})
        step.update_name("n")
        sw.user_message(value)
        sw.score(step.id, "s", 1)
        sw.feedback(step.id, "positive")
        sw.inject({})
        started = sw.start("tool", "x", input=value)
        started.end()
    assert step.status == started.status == "success"
    assert sw.current_step() is None


def test_a_sample_of_0_keeps_no_step() -> None:
    with capture(sample=0) as captured:
        with sw.run("r") as run, sw.tool("x") as step:
            assert (run.is_recording(), step.is_recording()) == (False, False)
            assert step.parent_id == run.id
        assert captured.steps == []


def test_a_sample_of_1_keeps_every_step() -> None:
    with capture(sample=1) as captured:
        for _ in range(500):
            with sw.run("r"):
                pass
    assert len(captured.steps) == 500


def test_a_sample_of_a_half_keeps_about_half_of_the_traces_and_each_whole() -> None:
    with capture(sample=0.5) as captured:
        for _ in range(2000):
            with sw.run("r"), sw.tool("a"), sw.tool("b"):
                pass
    traces = [step.trace_id for step in captured.steps]
    assert 800 < len(set(traces)) < 1200
    assert all(traces.count(trace) == 3 for trace in traces[:300])


def test_the_decision_on_a_trace_is_the_same_in_every_process() -> None:
    ids = [f"0197f0c2a4b07abc9{number:015x}" for number in range(0, 1 << 60, (1 << 60) // 50)]
    with capture(sample=0.3):
        once = [RECORDER.sampled(trace) for trace in ids]
    with capture(sample=0.3):
        assert [RECORDER.sampled(trace) for trace in ids] == once
    with capture(sample=0.6):
        more = [RECORDER.sampled(trace) for trace in ids]
    assert all(after for before, after in zip(once, more, strict=True) if before)
    assert 10 < sum(once) < sum(more) < 50


def test_a_change_of_the_sample_does_not_split_a_trace() -> None:
    with capture(sample=1) as captured, sw.run("r"):
        RECORDER.sample_bound = 0
        with sw.tool("x"):
            pass
    assert captured.tree() == [("run", "r", "success", [("tool", "x", "success", [])])]


def test_a_trace_that_is_not_kept_captures_nothing() -> None:
    with capture(sample=0) as captured:

        @sw.tool("call")
        def call(argument: Any) -> Any:
            return argument

        value = Untouchable()
        with sw.run("block", input=value, metadata={"v": value}) as step:
            assert call(value) is value
            step.input, step.output = value, value
            step.metadata["v"] = value
            step.record({"choices": [value]})
        assert captured.steps == []


def test_a_recorder_that_is_off_touches_no_value() -> None:
    with capture(enabled=False) as captured:
        everything(Untouchable())
        assert captured.records == []


def test_a_recorder_that_is_off_changes_no_context() -> None:
    with capture(enabled=False):
        before = get_current()
        with sw.thread("t"), sw.run("r"):
            assert get_current() is before
        assert sw.current_step() is None
        assert sw.current_thread() is None


def test_a_recorder_that_is_off_still_raises_what_users_raise() -> None:
    with capture(enabled=False), pytest.raises(KeyError), sw.thread("t"), sw.run("r"):
        raise KeyError


def test_a_recorder_that_is_off_still_names_what_is_wrong() -> None:
    from stepwell.errors import UsageError

    with capture(enabled=False):
        with pytest.raises(UsageError):
            sw.score("", "s", 1)
        with pytest.raises(UsageError):
            sw.step("x", type="tol")  # type: ignore[arg-type]


def test_a_recorder_that_is_off_writes_no_file(tmp_path: Path) -> None:
    with capture(enabled=False, home=tmp_path / "home"):
        everything(object())
    assert list(tmp_path.iterdir()) == []


def test_a_step_that_was_open_when_the_recorder_went_off_is_recorded() -> None:
    with capture() as captured, sw.run("r"):
        RECORDER.enabled = False
    assert captured.tree() == [("run", "r", "success", [])]


def test_nothing_is_recorded_after_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sw.configure(export="memory:", home=None)
    with sw.run("r"):
        pass
    assert sw.shutdown() is True
    everything(Untouchable())
    assert sw.stats().dropped == {}
    assert sw.shutdown() is True
    assert sw.flush(30) is True


def test_a_step_that_ends_after_shutdown_is_counted_as_dropped() -> None:
    sw.configure(export="memory:", home=None)
    step = sw.start("run", "r")
    sw.shutdown()
    step.end()
    assert sw.stats().dropped == {"after_shutdown": 1}


def test_configuring_after_shutdown_records_again() -> None:
    sw.shutdown()
    with capture() as captured, sw.run("r"):
        pass
    assert captured.tree() == [("run", "r", "success", [])]


# -- before configure, in an interpreter of its own


def ran(code: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path), **environment},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


SECRET = """
import stepwell as sw
@sw.tool
def work(a): return a
for n in range(3): work("value-%d" % n)
sw.shutdown()
"""


def lines(folder: Path) -> list[str]:
    path = folder / "steps.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_steps_recorded_before_configure_go_to_the_default_store(tmp_path: Path) -> None:
    ran(SECRET, tmp_path)
    assert (tmp_path / ".stepwell" / "steps.db").is_file()


def test_the_environment_counts_without_configure_from_the_first_step_on(tmp_path: Path) -> None:
    ran(SECRET, tmp_path, STEPWELL_EXPORT="jsonl:steps.jsonl", STEPWELL_HOME="none", STEPWELL_ENVIRONMENT="test")
    assert ['"environment":"test"' in line for line in lines(tmp_path)] == [True] * 3


@pytest.mark.parametrize(
    "setting",
    [
        {"STEPWELL_CAPTURE_INPUT": "0", "STEPWELL_CAPTURE_OUTPUT": "0"},
        {"STEPWELL_ENABLED": "0"},
        {"OTEL_SDK_DISABLED": "true"},
        {"STEPWELL_SAMPLE": "0"},
        {"STEPWELL_REDACT": "a", "STEPWELL_CAPTURE_OUTPUT": "0"},
    ],
)
def test_what_the_environment_keeps_out_is_kept_out_from_the_first_step_on(
    setting: dict[str, str], tmp_path: Path
) -> None:
    ran(SECRET, tmp_path, STEPWELL_EXPORT="jsonl:steps.jsonl", STEPWELL_HOME="none", **setting)
    assert [line for line in lines(tmp_path) if "value-" in line] == []


@pytest.mark.parametrize(
    "setting", [{"STEPWELL_ENABLED": "0"}, {"OTEL_SDK_DISABLED": "TRUE"}, {"STEPWELL_ENABLED": "no"}]
)
def test_a_program_switched_off_by_its_environment_writes_nothing(setting: dict[str, str], tmp_path: Path) -> None:
    ran(SECRET, tmp_path, **setting)
    assert list(tmp_path.iterdir()) == []


def test_steps_recorded_while_modules_load_are_there(tmp_path: Path) -> None:
    code = (
        "import stepwell as sw\nwith sw.run('early'): pass\n"
        "sw.configure(export='jsonl:steps.jsonl', home=None)\nwith sw.run('late'): pass\nsw.shutdown()"
    )
    ran(code, tmp_path)
    assert len(lines(tmp_path)) == 1
    assert (tmp_path / ".stepwell" / "steps.db").is_file()


CALLS: list[Callable[[], object]] = [sw.flush, sw.shutdown, sw.stats]


@pytest.mark.parametrize("call", CALLS)
def test_flush_shutdown_and_stats_are_harmless_before_anything(call: Callable[[], object]) -> None:
    call()
    assert sw.stats().recorded == 0
