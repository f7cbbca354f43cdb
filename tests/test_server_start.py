"""A server starts soon: what only some requests need is imported and built with the first of them, and then once."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest
from fastapi import FastAPI
from jinja2 import Environment
from served import AppServer

from stepwell.server import app
from stepwell.server._routing import Application, Route, Router
from stepwell.server.pages._compiled import KeptTemplates, OneByOne, cache_folder

LATER = ["jinja2", "markdown_it", "google.protobuf", "pydantic.v1"]


def test_what_only_some_requests_need_is_not_imported_at_the_start() -> None:
    code = f"import sys, stepwell.server.app; print([name for name in {LATER} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60) == "[]\n"


def together(*calls: Callable[[], object]) -> None:
    """Have threads call these at the same time."""
    start = Barrier(len(calls))

    def call(each: Callable[[], object]) -> None:
        start.wait(30)
        each()

    threads = [Thread(target=call, args=(each,)) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)


def test_a_route_is_built_once_when_more_than_its_path_is_asked_for() -> None:
    built: list[str] = []

    class Told(Route):
        def get_route_handler(self) -> Any:
            built.append(self.path)
            return super().get_route_handler()

    router = Router(prefix="/below", route_class=Told)

    @router.get("/{id}")
    def read(id: int) -> int:
        return id

    (route,) = router.routes
    assert isinstance(route, Route)
    scope = {"type": "http", "method": "GET", "path": "/below/7"}
    assert route.matches(scope)[1]["path_params"] == {"id": "7"}
    assert (route.path, route.methods, built) == ("/below/{id}", {"GET"}, [])
    found: list[str] = []
    together(*[lambda: found.append(route.dependant.path_params[0].name)] * 8)
    assert (found, built) == (["id"] * 8, ["/below/{id}"])
    assert list(FastAPI(routes=[route]).openapi()["paths"]) == ["/below/{id}"]
    with pytest.raises(AttributeError, match="what_it_has_not"):
        _ = route.what_it_has_not


def test_a_route_that_could_not_be_built_is_built_the_next_time() -> None:
    class Failing(Route):
        failed = False

        def get_route_handler(self) -> Any:
            if not Failing.failed:
                Failing.failed = True
                raise MemoryError
            return super().get_route_handler()

    router = Router(route_class=Failing)
    router.get("/{key}")(lambda key: key)
    (route,) = router.routes
    assert isinstance(route, Route)
    with pytest.raises(MemoryError):
        route.build()
    assert "dependant" not in vars(route)
    assert [param.name for param in route.dependant.path_params] == ["key"]


def test_routes_may_be_built_while_they_are_described() -> None:
    routers = [Router() for _ in range(8)]
    for at, router in enumerate(routers):
        router.get(f"/{at}/{{key}}")(lambda key, limit=7: (key, limit))
    described = Application(routes=[route for router in routers for route in router.routes])
    routes = [route for route in described.routes if isinstance(route, Route)]
    together(lambda: [route.build() for route in routes], described.openapi, lambda: [route.app for route in routes])
    assert len(described.openapi()["paths"]) == len(routes) == 8


def test_a_moment_after_the_start_no_request_builds_anything(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        deadline = time.monotonic() + 30
        while not server.app.state.metrics.upkeep["ready", "done"]:
            assert time.monotonic() < deadline
            server.client.get("/healthz")
    assert [route for route in app._ROUTES if not isinstance(route, Route) or "dependant" not in vars(route)] == []
    assert len(app._ROUTES) > 70
    assert "markdown_it" in sys.modules


class Counting(Environment):
    """Says what it compiled."""

    def __init__(self, folder: Path | None) -> None:
        self.compiled: list[str] = []
        loader = OneByOne("stepwell.server.pages")
        super().__init__(loader=loader, bytecode_cache=KeptTemplates(folder), trim_blocks=True)

    def compile(self, source: Any, name: str | None = None, *rest: Any, **options: Any) -> Any:
        self.compiled.append(str(name))
        return super().compile(source, name, *rest, **options)


def compiled(folder: Path | None, **options: object) -> int:
    """Load a template in a new environment; say how often it was compiled."""
    environment = Counting(folder)
    for name, value in options.items():
        setattr(environment, name, value)
    assert environment.get_template("_empty.html").name == "_empty.html"
    return len(environment.compiled)


def test_a_template_is_compiled_once_and_kept_for_the_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "caches" / "templates"
    assert [compiled(folder), compiled(folder)] == [1, 0]
    (file,) = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert compiled(folder, trim_blocks=False) == 1  # what it was compiled with is another
    assert len(list(folder.iterdir())) == 1
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], b""):
        file.write_bytes(damaged)
        assert [compiled(folder, trim_blocks=False), file.read_bytes() == whole] == [1, True]


def test_code_is_not_loaded_from_where_others_can_write(tmp_path: Path) -> None:
    folder, link = tmp_path / "templates", tmp_path / "link"
    link.symlink_to(folder)
    assert [compiled(folder), compiled(folder), compiled(link)] == [1, 0, 1]
    folder.chmod(0o770)
    assert compiled(folder) == 1
    folder.chmod(0o700)
    (file,) = folder.iterdir()
    file.rename(tmp_path / "elsewhere")
    file.symlink_to(tmp_path / "elsewhere")
    assert [compiled(folder), compiled(folder), file.is_symlink()] == [1, 0, False]


def test_without_a_folder_each_process_compiles_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert [compiled(None), compiled(tmp_path / "file" / "templates")] == [1, 1]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "stepwell" / "templates"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cache_folder() == Path("/home/ada/.cache/stepwell/templates")


def test_a_template_that_threads_want_at_once_is_compiled_once() -> None:
    environment, before = Counting(None), sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # or one would be through before another one has its turn
    try:
        together(*[lambda: environment.get_template("_empty.html")] * 8)
    finally:
        sys.setswitchinterval(before)
    assert environment.compiled == ["_empty.html"]
