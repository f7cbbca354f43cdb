"""The file that type checkers read runs as well; mypy and pyright themselves are run on it with the sources."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

import stepwell as sw
from stepwell.store import open_store
from stepwell.testing import Captured


@pytest.fixture(scope="module")
def usage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("typed_usage", Path(__file__).with_name("typed_usage.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_decorated_functions_work_as_their_types_say(usage: ModuleType, captured: Captured) -> None:
    usage.decorated_functions_keep_their_types()
    usage.decorated_methods_keep_their_types()
    asyncio.run(usage.decorated_coroutines_keep_their_types())
    assert {step.status for step in captured.steps} == {"success"}


def test_blocks_work_as_their_types_say(usage: ModuleType, captured: Captured) -> None:
    usage.blocks_give_steps_and_threads()
    asyncio.run(usage.async_blocks_give_steps_and_threads())
    assert sw.current_step() is None


def test_streams_work_as_their_types_say(usage: ModuleType, captured: Captured) -> None:
    with sw.llm("x", messages=[]) as step:
        usage.streams_keep_the_type_of_their_chunks(step, iter([b"a"]))
        usage.steps_have_types(step)


def test_clients_work_as_their_types_say(usage: ModuleType, tmp_path: Path) -> None:
    for name in ("sync", "async"):
        with closing(open_store(f"sqlite:{tmp_path / name}")) as store:
            store.add([b'{"kind":"step","id":"c","type":"llm","tags":["a"],"generation":{"type":"chat","model":"m"}}'])
    usage.a_client_has_types(str(tmp_path / "sync"))
    asyncio.run(usage.an_async_client_has_types(str(tmp_path / "async")))


def test_every_part_of_the_file_is_run_or_read(usage: ModuleType) -> None:
    parts = [name for name, value in vars(usage).items() if inspect.isfunction(value)]
    assert len(parts) > 15
