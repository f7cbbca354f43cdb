"""Every setting can be given as an argument and as an environment variable, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import stepwell as sw
from stepwell import _config
from stepwell._recorder import RECORDER
from stepwell._settings import Settings, resolve
from stepwell.errors import UsageError
from stepwell.exporters.memory import MemoryExporter

MEMORY = MemoryExporter()
PATTERN = re.compile("tea")


def hide(data: bytes) -> bytes:
    return data


BY_ARGUMENT: list[tuple[str, Any, Any]] = [
    ("export", "memory:", ("memory:",)),
    ("export", ["memory:", MEMORY], ("memory:", MEMORY)),
    ("export", (), ()),
    ("home", None, None),
    ("home", "there", Path("there")),
    ("home", Path("there"), Path("there")),
    ("service", "bot", "bot"),
    ("service", None, None),
    ("environment", "prod", "prod"),
    ("release", "1.4.2", "1.4.2"),
    ("sample", 0, 0.0),
    ("sample", 0.25, 0.25),
    ("strict", True, True),
    ("capture_input", False, False),
    ("capture_output", False, False),
    ("redact", ["pin", PATTERN, hide], ("pin", PATTERN, hide)),
    ("max_field_bytes", 1024, 1024),
    ("max_journal_bytes", 65536, 65536),
    ("exit_timeout", 0, 0.0),
    ("exit_timeout", 2.5, 2.5),
    ("flush_on_root_end", True, True),
    ("enabled", False, False),
]
BY_ENVIRONMENT: list[tuple[str, str, Any]] = [
    ("export", "memory:", ("memory:",)),
    ("export", "memory:, jsonl:a.jsonl,", ("memory:", "jsonl:a.jsonl")),
    ("home", "there", Path("there")),
    ("home", "none", None),
    ("home", "None", None),
    ("service", "bot", "bot"),
    ("environment", "prod", "prod"),
    ("release", "1.4.2", "1.4.2"),
    ("sample", "0.25", 0.25),
    ("strict", "1", True),
    ("strict", "TRUE", True),
    ("capture_input", "false", False),
    ("capture_output", "no", False),
    ("redact", "pin, ssn", ("pin", "ssn")),
    ("max_field_bytes", "2048", 2048),
    ("max_journal_bytes", "65536", 65536),
    ("exit_timeout", "2.5", 2.5),
    ("flush_on_root_end", "yes", True),
    ("enabled", "0", False),
    ("enabled", "yes", True),
]
WRONG_ARGUMENTS: list[tuple[str, Any, str]] = [
    ("export", "steps.db", r"export=\['steps.db'\]: 'steps.db' is not a URL, as sqlite: or jsonl:PATH are"),
    ("export", 5, r"export=\[5\]: 5 is neither a URL nor an exporter"),
    ("export", ["memory:", None], r"None is neither a URL nor an exporter"),
    ("export", MemoryExporter, "<class .*> is neither a URL nor an exporter"),
    ("export", "ftp://x", "export='ftp://x': no exporter for 'ftp', there are console, "),
    ("home", "", "home='': must be a folder, or None to keep nothing on disk"),
    ("home", 5, "home=5: must be a folder"),
    ("service", 5, "service=5: must be"),
    ("environment", [], r"environment=\[\]: must be"),
    ("release", 1.4, "release=1.4: must be"),
    ("sample", 1.5, "sample=1.5: must be a number from 0 to 1"),
    ("sample", -0.1, "sample=-0.1: must be a number from 0 to 1"),
    ("sample", True, "sample=True: must be a number from 0 to 1"),
    ("sample", float("nan"), "sample=nan: must be a number from 0 to 1"),
    ("sample", "half", "sample='half': must be a number from 0 to 1"),
    ("strict", 1, "strict=1: must be true or false"),
    ("capture_input", ["a"], r"capture_input=\['a'\]: must be true or false"),
    ("capture_output", None, "capture_output=None: must be true or false"),
    ("redact", "pin", "redact='pin': must be a list of key names, compiled patterns and functions"),
    ("redact", [5], r"redact=\[5\]: 5 is neither a key name, a pattern nor a function"),
    ("max_field_bytes", 1023, "max_field_bytes=1023: must be a whole number of bytes, at least 1024"),
    ("max_field_bytes", 1e6, "max_field_bytes=1000000.0: must be a whole number of bytes"),
    ("max_journal_bytes", True, "max_journal_bytes=True: must be a whole number of bytes"),
    ("exit_timeout", -1, "exit_timeout=-1: must be a number of seconds from 0 to 3600"),
    ("exit_timeout", 3601, "exit_timeout=3601: must be a number of seconds from 0 to 3600"),
    ("enabled", "yes", "enabled='yes': must be true or false"),
]
WRONG_ENVIRONMENT: list[tuple[str, str, str]] = [
    ("export", "steps.db", "STEPWELL_EXPORT=.*'steps.db' is not a URL"),
    ("sample", "half", "STEPWELL_SAMPLE='half': must be a number from 0 to 1"),
    ("strict", "maybe", "STEPWELL_STRICT='maybe': must be true or false"),
    ("max_field_bytes", "1MB", "STEPWELL_MAX_FIELD_BYTES='1MB': must be a whole number of bytes"),
    ("exit_timeout", "soon", "STEPWELL_EXIT_TIMEOUT='soon': must be a number of seconds"),
    ("enabled", "off?", r"STEPWELL_ENABLED='off\?': must be true or false"),
]
FIELDS = {field.name for field in dataclasses.fields(Settings)}


class Loud:
    def __repr__(self) -> str:
        raise RuntimeError("do not look")


def variable(name: str) -> str:
    return f"STEPWELL_{name.upper()}"


@pytest.mark.parametrize(("name", "value", "expected"), BY_ARGUMENT)
def test_a_setting_is_taken_from_its_argument(name: str, value: Any, expected: Any) -> None:
    assert resolve({name: value}, {}) == dataclasses.replace(Settings(), **{name: expected})


@pytest.mark.parametrize(("name", "text", "expected"), BY_ENVIRONMENT)
def test_a_setting_is_taken_from_its_variable(name: str, text: str, expected: Any) -> None:
    assert resolve({}, {variable(name): text}) == dataclasses.replace(Settings(), **{name: expected})


def test_every_setting_is_tested_both_ways_and_is_an_argument_of_configure() -> None:
    assert {name for name, _, _ in BY_ARGUMENT} == {name for name, _, _ in BY_ENVIRONMENT} == FIELDS
    assert set(inspect.signature(sw.configure).parameters) == FIELDS


def test_the_defaults_are_these() -> None:
    assert resolve({}, {}) == Settings(
        export=("sqlite:",),
        home=Path(".stepwell"),
        service=None,
        environment=None,
        release=None,
        sample=1.0,
        strict=False,
        capture_input=True,
        capture_output=True,
        redact=(),
        max_field_bytes=4 * 1024 * 1024,
        max_journal_bytes=1024 * 1024 * 1024,
        exit_timeout=5.0,
        flush_on_root_end=False,
        enabled=True,
    )


def test_an_argument_wins_over_the_environment_and_that_over_the_default() -> None:
    environ = {"STEPWELL_SERVICE": "environment", "STEPWELL_RELEASE": "environment"}
    settings = resolve({"service": "argument"}, environ)
    assert (settings.service, settings.release, settings.environment) == ("argument", "environment", None)


def test_on_lambda_a_root_is_flushed_unless_said_otherwise() -> None:
    lambda_ = {"AWS_LAMBDA_FUNCTION_NAME": "agent"}
    assert resolve({}, lambda_).flush_on_root_end is True
    assert resolve({"flush_on_root_end": False}, lambda_).flush_on_root_end is False
    assert resolve({}, {**lambda_, "STEPWELL_FLUSH_ON_ROOT_END": "0"}).flush_on_root_end is False


def test_an_argument_wins_over_a_wrong_variable() -> None:
    assert resolve({"sample": 0.5}, {"STEPWELL_SAMPLE": "half"}).sample == 0.5


def test_an_empty_variable_is_as_none() -> None:
    assert resolve({}, {variable(name): "" for name in FIELDS}) == Settings()


@pytest.mark.parametrize(
    ("environ", "arguments", "enabled"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, {}, False),
        ({"OTEL_SDK_DISABLED": "True"}, {}, False),
        ({"OTEL_SDK_DISABLED": "false"}, {}, True),
        ({"OTEL_SDK_DISABLED": "1"}, {}, True),
        ({"OTEL_SDK_DISABLED": "true", "STEPWELL_ENABLED": "1"}, {}, True),
        ({"OTEL_SDK_DISABLED": "true"}, {"enabled": True}, True),
    ],
)
def test_the_variable_of_opentelemetry_switches_off_what_nothing_else_decides(
    environ: Mapping[str, str], arguments: Mapping[str, Any], enabled: bool
) -> None:
    assert resolve(arguments, environ).enabled is enabled


@pytest.mark.parametrize(("name", "value", "message"), WRONG_ARGUMENTS)
def test_a_wrong_argument_is_named(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sw.configure(**{name: value})


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_wrong_argument_whose_repr_raises_is_named_by_type(name: str) -> None:
    with pytest.raises(UsageError, match=rf"{name}=.*<Loud>"):
        resolve({name: Loud()}, {})


@pytest.mark.parametrize(("name", "text", "message"), WRONG_ENVIRONMENT)
def test_a_wrong_variable_is_named(name: str, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(name), text)
    with pytest.raises(UsageError, match=message):
        sw.configure()


def test_wrong_variables_are_forgiven_where_nobody_called() -> None:
    named: list[str] = []
    environ = {"STEPWELL_SAMPLE": "half", "STEPWELL_SERVICE": "bot"}
    settings = resolve({}, environ, forgive=lambda error: named.append(str(error)))
    assert (settings.sample, settings.service) == (1.0, "bot")
    assert named == ["STEPWELL_SAMPLE='half': must be a number from 0 to 1"]


def test_a_wrong_variable_does_not_stop_a_program_that_never_configures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STEPWELL_SAMPLE", "half")
    monkeypatch.setenv("STEPWELL_EXPORT", "memory:")
    with sw.run("r"):
        pass
    assert sw.flush(30)
    assert "STEPWELL_SAMPLE='half'" in caplog.records[0].getMessage()
    assert sw.stats().recorded == 1


def test_the_old_configuration_stays_when_the_new_one_is_wrong() -> None:
    memory = MemoryExporter()
    sw.configure(export=memory, home=None, service="old")
    with sw.run("before"):
        pass
    for wrong in ({"sample": 5}, {"export": "ftp://x"}, {"service": 5}):
        with pytest.raises(UsageError):
            sw.configure(**wrong)  # type: ignore[arg-type]
    with sw.run("after"):
        pass
    assert sw.flush(30)
    assert [(step.name, step.service) for step in memory.steps] == [("before", "old"), ("after", "old")]


def test_configuring_again_moves_what_comes_later() -> None:
    first, second = MemoryExporter(), MemoryExporter()
    sw.configure(export=first, home=None, service="one")
    with sw.run("a"), sw.thread("t"):
        pass
    sw.configure(export=second, home=None)
    with sw.run("b"):
        pass
    assert sw.flush(30)
    assert [(step.name, step.service) for step in first.steps] == [("a", "one")]
    assert [(step.name, step.service) for step in second.steps] == [("b", None)]


def test_every_exporter_gets_everything() -> None:
    first, second = MemoryExporter(), MemoryExporter()
    sw.configure(export=[first, second], home=None)
    with sw.run("a"):
        pass
    assert sw.flush(30)
    assert first.records == second.records
    assert len(first.records) == 1


def test_what_a_step_says_of_its_origin_is_configured() -> None:
    memory = MemoryExporter()
    sw.configure(export=memory, home=None, service='b"ot', environment="prod\n", release="\ud800")
    with sw.run("a"):
        pass
    assert sw.flush(30)
    (step,) = memory.steps
    assert (step.service, step.environment, step.release) == ('b"ot', "prod\n", "\\ud800")


def test_a_reset_forgets_every_setting() -> None:
    sw.configure(export="memory:", home=None, strict=True, enabled=False, sample=0, environment="x")
    _config.reset()
    assert (RECORDER.strict, RECORDER.enabled, RECORDER.sample_bound) == (False, True, 1 << 56)
