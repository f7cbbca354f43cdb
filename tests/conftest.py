"""What holds for every test: a recorder as in a new process, an empty environment, and no thread of ours left over."""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from opentelemetry.context import Context, attach
from xdist.workermanage import NodeManager

NodeManager.EXIT_TIMEOUT = 120  # or a worker that still saves its coverage is killed after ten seconds

for _signal in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
    # Where the suite runs in the background, or under nohup, its children would inherit that these are ignored.
    if signal.getsignal(_signal) is signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)

if "PYTEST_XDIST_WORKER" in os.environ:  # coverage is that of this process: measuring what it starts doubles the time
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"  # logfire's is loaded with the first model, and patches traceback

from stepwell import _config
from stepwell._recorder import RECORDER
from stepwell.testing import Captured
from stepwell.testing.plugin import stepwell_capture as _stepwell_capture

settings.register_profile("stepwell", deadline=None, print_blob=True)
settings.load_profile("stepwell")

stepwell_capture = _stepwell_capture  # pytest finds it here where the plug-in is not installed


@pytest.fixture(autouse=True)
def as_in_a_new_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.startswith(("STEPWELL_", "OTEL_")):
            monkeypatch.delenv(name)
    _forget()
    before = {thread.ident for thread in threading.enumerate()}
    yield
    _forget()
    left = [thread for thread in threading.enumerate() if thread.ident not in before]
    ours = [thread for thread in left if thread.name.startswith("stepwell")]
    for thread in ours:
        thread.join(10)  # one that was told to end may be on its way
    assert not [thread.name for thread in ours if thread.is_alive()], left


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start chromium for the tests of a module."""
    from browsing import a_browser

    with a_browser() as browser:
        yield browser


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Nobody logs a warning or worse, OpenTelemetry and asyncio included, and nothing is written to stderr."""
    caplog.set_level(logging.WARNING)
    yield
    gc.collect()  # what is found only then to be unfinished is told by asyncio, trio and Python
    assert [record.getMessage() for record in caplog.get_records("call")] == []
    assert capfd.readouterr().err == ""


@pytest.fixture
def untraced() -> Iterator[None]:
    """Switch off what measures coverage: its lock can't bear a signal handler that runs while it is held, and a
    test that runs thousands of times what others run as well takes half as long.
    """
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


def _forget() -> None:
    _config.reset()
    RECORDER._warned.clear()
    RECORDER._logged.clear()
    attach(Context())


@pytest.fixture
def silence(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Fail on what is written to stderr, and on what is raised where nobody can catch it."""
    lost: list[str] = []
    before, sys.unraisablehook = sys.unraisablehook, lambda it: lost.append(f"{it.exc_type}: {it.exc_value}")
    gc.freeze()  # so that collecting looks at what the test has made alone
    yield
    gc.collect()
    gc.unfreeze()
    sys.unraisablehook = before
    assert (lost, capfd.readouterr().err) == ([], "")


@pytest.fixture
def captured(stepwell_capture: Captured) -> Captured:
    return stepwell_capture
