"""console: finished runs as trees, bounded waiting, and streams that fail or go away."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import Raw

import stepwell as sw
from stepwell import _config
from stepwell.errors import UsageError
from stepwell.exporters import Batch, open_exporter
from stepwell.exporters.console import ConsoleExporter
from stepwell.model import ErrorInfo, Score, ScoreRecord, StepRecord, ThreadRecord, encode_record

MS = 1_000_000


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    yield
    _config.reset()


def batch(*records: StepRecord | ThreadRecord | ScoreRecord) -> Batch:
    return Batch([encode_record(record) for record in records])


def step(id: str, parent: str | None = None, **fields: object) -> StepRecord:
    defaults: dict[str, object] = {
        "trace_id": "t",
        "type": "tool",
        "name": id,
        "status": "success",
        "start_ns": 0,
        "end_ns": MS,
    }
    return StepRecord(id, parent_id=parent, **{**defaults, **fields})  # type: ignore[arg-type]


def output(*batches: Batch, **options: int) -> list[str]:
    stream = io.StringIO()
    exporter = ConsoleExporter(stream, **options)
    for each in batches:
        exporter.export(each)
    return stream.getvalue().splitlines()


def test_a_run_is_drawn_when_it_ends_with_what_was_seen_below_it_before() -> None:
    child = step("b", "a", status="failed", error=ErrorInfo("E", "boom"))
    run = step("a", type="run", root_run_id="a", child_count=1)
    assert output(batch(child)) == []
    assert output(batch(child), batch(run)) == [
        "run  a  1.0 ms  (2 steps, 1 failed)",
        "└─ tool  b  1.0 ms  ✗ failed E: boom",
    ]


def test_a_run_continued_from_another_process_is_a_root_here() -> None:
    assert output(batch(step("a", "elsewhere", type="run", root_run_id="a"))) == ["run  a  1.0 ms  (1 step)"]


def test_a_step_announced_as_pending_waits_for_its_end() -> None:
    begun = step("a", type="run", status="pending", end_ns=None)
    assert output(batch(begun)) == []
    assert output(batch(begun), batch(step("a", type="run"))) == ["run  a  1.0 ms"]


def test_threads_messages_and_late_scores_take_a_line_each() -> None:
    message = step("m", type="user_message", name="user_message")
    message.output = Raw(b'{"content":"Hello\\nyou"}')
    assert output(
        batch(
            ThreadRecord("t-1", name="Chat"),
            ThreadRecord("t-2"),
            message,
            ScoreRecord("s", name="feedback", step_id="m", label="positive"),
            ScoreRecord("s", name="good", value=0.5),
        )
    ) == [
        "thread  t-1  Chat",
        "thread  t-2",
        "user_message  Hello you",
        "score  feedback=positive  of step m",
        "score  good=0.5  of step s",
    ]


def test_an_addition_to_a_step_that_was_drawn_is_not_drawn_again() -> None:
    assert output(batch(step("a", type="run")), batch(StepRecord("a", scores=[Score("s")]))) == ["run  a  1.0 ms"]


def test_what_waits_is_bounded_and_the_oldest_trace_is_drawn_without_its_end() -> None:
    waiting = [step(f"{trace}{at}", f"{trace}-run", trace_id=trace) for trace in "xy" for at in range(2)]
    assert output(batch(*waiting), max_waiting=3) == [
        "trace x: steps left without the end of their run",
        "├─ tool  x0  1.0 ms",
        "└─ tool  x1  1.0 ms",
    ]


def test_closing_draws_what_still_waits() -> None:
    stream = io.StringIO()
    exporter = ConsoleExporter(stream)
    exporter.export(batch(step("b", "a")))
    exporter.close()
    exporter.close()
    assert stream.getvalue().splitlines() == [
        "trace t: steps left without the end of their run",
        "└─ tool  b  1.0 ms",
    ]


def test_recorded_escapes_do_not_reach_the_stream() -> None:
    lines = output(batch(ThreadRecord("\x1b[2Jt", name="\x1b]0;x\x07n"), step("a", type="run", name="\x1b[31mred")))
    assert lines == ["thread  t  n", "run  red  1.0 ms"]


@pytest.mark.parametrize(("url", "text"), [("console:", "err"), ("console:stdout", "out")])
def test_the_url_says_the_stream(url: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    sw.configure(export=url, home=None)
    with sw.run("agent"), sw.tool("search"):
        pass
    assert sw.flush(30)
    captured = capsys.readouterr()
    assert getattr(captured, text).splitlines()[1].startswith("└─ tool  search  ")
    assert captured.out == "" or text == "out"


def test_a_wrong_url_is_named() -> None:
    with pytest.raises(UsageError, match=r"export='console:file': expected console: or console:stdout"):
        open_exporter("console:file", None)


def test_it_ends_with_its_process() -> None:
    assert not hasattr(ConsoleExporter(), "key")


class Failing(io.StringIO):
    """A stream whose writes fail with an errno until told otherwise."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number: int | None = number
        self.attempts = 0

    def write(self, text: str) -> int:
        self.attempts += 1
        if self.number is not None:
            raise OSError(self.number, "failed")
        return super().write(text)


def test_a_stream_that_may_work_later_is_tried_again_and_nothing_is_drawn_twice() -> None:
    stream = Failing(errno.ENOSPC)
    exporter, work = ConsoleExporter(stream), batch(step("b", "a"), step("a", type="run"))
    for _ in range(2):
        with pytest.raises(OSError, match="failed"):
            exporter.export(Batch(work.frames))
    stream.number = None
    exporter.export(Batch(work.frames))
    assert stream.getvalue().splitlines() == ["run  a  1.0 ms  (2 steps)", "└─ tool  b  1.0 ms"]


def test_a_stream_that_is_gone_is_given_up() -> None:
    stream = Failing(errno.EPIPE)
    exporter = ConsoleExporter(stream)
    for _ in range(3):
        exporter.export(batch(step("a", type="run")))
    assert stream.attempts == 1


def test_a_stream_closed_in_this_process_is_given_up() -> None:
    stream = io.StringIO()
    stream.close()
    ConsoleExporter(stream).export(batch(step("a", type="run")))


def test_a_process_without_standard_streams_is_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    ConsoleExporter().export(batch(step("a", type="run")))


def test_a_closed_pipe_neither_hangs_nor_complains(tmp_path: Path) -> None:
    program = """
import sys
import stepwell as sw
sw.configure(export="console:stdout", home=None)
with sw.run("a"):
    pass
sys.stderr.write(str(sw.shutdown(5)))
"""
    outer, inner = os.pipe()
    os.close(outer)
    process = subprocess.run(
        [sys.executable, "-c", program],
        stdout=inner,
        stderr=subprocess.PIPE,
        timeout=20,
        cwd=tmp_path,
        check=False,
    )
    os.close(inner)
    assert process.stderr.startswith(b"True")
