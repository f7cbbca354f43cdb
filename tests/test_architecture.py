"""The code keeps to its own rules: imports point one way, modules and functions stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import stepwell as sw

ROOT = Path(sw.__file__).parent
# Who may import whom: a module imports only from lines above its own, or from the left of it.
ORDER = [
    "errors",
    "_vocabulary",
    "_collector",
    "_values",
    "_frames",
    "_bell",
    "_binding",
    "_files",
    "_segment",
    "_session",
    "_context",
    "responses",
    "_redaction",
    "_media",
    "_snapshot",
    "_capture",
    "_checks",
    "model",
    "blobs",
    "_recorder",
    "_place",
    "_stream",
    "_details",
    "_thread",
    "_span",
    "_step",
    "_generating",
    "_following",
    "_decorating",
    "_recording",
    "_propagation",
    "_scoring",
    "_pool",
    "_cursor",
    "_journal",
    "_recovery",
    "store._filters",
    "store._summaries",
    "store",
    "store._migrations",
    "store._schema",
    "store._connections",
    "store._merge",
    "store._spans",
    "store._loose",
    "store._packs",
    "store._texts",
    "store._replies",
    "store._outcomes",
    "store._messages",
    "store._checking",
    "store._literals",
    "store._language",
    "store._conditions",
    "store._previews",
    "store._rows",
    "store._questions",
    "store._query",
    "store._sketch",
    "store._tally",
    "store._users",
    "store._rollups",
    "store._histogram",
    "store._rare",
    "store._tree",
    "store._search",
    "store._shell",
    "store._snippets",
    "store._export",
    "store._soft_errors",
    "store._statements",
    "store._visits",
    "store._write",
    "store._judgements",
    "store._listing",
    "store._deleting",
    "store._retention",
    "store._vacuum",
    "store._run_sums",
    "store.sqlite",
    "store._writer_process",
    "_unused_blobs",
    "_answers",
    "_render",
    "otel._spans",
    "otel._tables",
    "otel._parts",
    "otel._happened",
    "otel._facts",
    "otel._own",
    "otel._genai",
    "otel._openinference",
    "otel._outgoing",
    "otel._reading",
    "otel._searches",
    "otel._generations",
    "otel._incoming",
    "otel._logs",
    "otel.semconv",
    "exporters",
    "exporters.memory",
    "exporters.jsonl",
    "exporters.console",
    "exporters.sqlite",
    "exporters._http_client",
    "exporters._http_blobs",
    "exporters._http_stub",
    "exporters.http",
    "exporters._otlp_spans",
    "exporters._otlp_encoding",
    "exporters._otlp_wire",
    "exporters.otlp",
    "_settings",
    "_shipper",
    "_announcing",
    "_pipeline",
    "_config",
    "instrument._patch",
    "instrument._registry",
    "instrument.threads",
    "instrument.processes",
    "instrument",
    "stepwell",
    "otel.middleware",
    "otel._scopes",
    "otel._taking",
    "otel.processor",
    "otel",
    "_demo",
    "_cli_output",
    "_cli_source",
    "client._filters",
    "client._models",
    "client._requests",
    "client._adding",
    "client._pages",
    "client._pieces",
    "client._http",
    "client._local",
    "client._sync",
    "client._async",
    "client",
    "_cli_journal",
    "_cli_list",
    "_cli_demo",
    "_cli_health",
    "_cli_move",
    "_cli_care",
    "_cli_tail",
    "server",
    "server.pages",
    "server.pages._compiled",
    "server.pages._page",
    "server._routing",
    "server._errors",
    "server._places",
    "server._limits",
    "server._keys",
    "server._access",
    "server._metrics",
    "server._body",
    "server._guard",
    "server._health",
    "server._writers",
    "server._ingest",
    "server._otlp_protobuf",
    "server._otlp_wire",
    "server._otlp",
    "server._blobs",
    "server._letta_parts",
    "server._letta_messages",
    "server._letta_steps",
    "server._letta_pages",
    "server._letta_models",
    "server.letta",
    "server._shapes",
    "server.records",
    "server.threads",
    "server._upkeep",
    "server.pages._static",
    "server.pages._content",
    "server.pages._entry",
    "server.pages._rows",
    "server.pages._outline",
    "server.pages._families",
    "server.pages._find",
    "server.pages._lane",
    "server.pages._overview",
    "server.pages._address",
    "server.pages._listing",
    "server.pages._plots",
    "server.pages._strip",
    "server.pages._kept",
    "server.pages._judging",
    "server.pages._queue",
    "server.pages._review",
    "server.pages._marks",
    "server.pages._neighbours",
    "server.pages._calls",
    "server.pages._json",
    "server.pages._markdown",
    "server.pages._show",
    "server.pages._caching",
    "server.pages._panel",
    "server.pages._request",
    "server.pages._runs",
    "server.pages._steps",
    "server.pages._sharing",
    "server.pages._numbered",
    "server.pages._saving",
    "server.pages._context",
    "server.pages._origins",
    "server.pages._findings",
    "server.pages._views",
    "server.pages._lists",
    "server.pages._live",
    "server.pages._thread",
    "server.pages._login",
    "server.pages._dashboard",
    "server.pages._aligning",
    "server.pages._compare",
    "server.pages._forks",
    "server.pages._fork",
    "server.app",
    "server._logs",
    "server._run",
    "_cli_serve",
    "_cli_save",
    "_cli_keys",
    "_cli_app",
    "cli",
    "__main__",
    "testing._fakes",
    "testing._captured",
    "testing._store_reading_contract",
    "testing._store_filter_contract",
    "testing._store_deletion_contract",
    "testing._store_rollup_contract",
    "testing._store_search_contract",
    "testing._store_outcome_contract",
    "testing._store_contract",
    "testing._exporter_contract",
    "testing",
    "testing.plugin",
]
SUITES = {
    "testing._store_reading_contract",
    "testing._store_filter_contract",
    "testing._store_deletion_contract",
    "testing._store_rollup_contract",
    "testing._store_search_contract",
    "testing._store_outcome_contract",
    "testing._store_contract",
    "testing._exporter_contract",
}  # tests, shipped to users


@cache
def sources() -> dict[str, ast.Module]:
    found: dict[str, ast.Module] = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found["stepwell" if name == "__init__" else name] = ast.parse(path.read_text(), str(path))
    return found


def text_of(name: str) -> str:
    return Path(ast_file(name)).read_text()


def ast_file(name: str) -> Path:
    folder = ROOT if name == "stepwell" else ROOT / name.replace(".", "/")
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Walk a tree without what is for type checkers only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        yield from run_time_nodes(node)


def imports_of(tree: ast.Module) -> set[str]:
    found: set[str] = set()
    for node in run_time_nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def imports_of_ours(name: str) -> set[str]:
    found = imports_of(sources()[name])
    ours = {module.removeprefix("stepwell.") for module in found if module.startswith("stepwell.")}
    if "stepwell" in found and not ours & sources().keys():
        ours.add("stepwell")
    return ours & sources().keys() - {name}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name, node


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == sorted(sources())


@pytest.mark.parametrize("name", sorted(sources()))
def test_imports_point_one_way(name: str) -> None:
    place = {module: at for at, module in enumerate(ORDER)}
    against = {module for module in imports_of_ours(name) if place.get(module, 0) >= place.get(name, len(ORDER))}
    if name == "testing":
        against -= {"testing.plugin"}
    assert against == set()


def test_recording_knows_nothing_of_where_records_go() -> None:
    recording = ORDER[: ORDER.index("_scoring") + 1]
    delivery = set(ORDER[ORDER.index("_scoring") + 1 :])
    assert {name: imports_of_ours(name) & delivery for name in recording if imports_of_ours(name) & delivery} == {}


def test_stores_and_exporters_know_nothing_of_steps_in_the_making() -> None:
    making = {"_recorder", "_place", "_details", "_thread", "_span", "_step", "_recording", "_config", "_context"}
    outside = [name for name in ORDER if name.startswith(("store", "exporters"))]
    assert {name: imports_of_ours(name) & making for name in outside if imports_of_ours(name) & making} == {}


def test_there_is_no_context_variable_of_our_own() -> None:
    words = {
        name: {getattr(node, field, None) for node in ast.walk(tree) for field in ("id", "attr", "name")}
        for name, tree in sources().items()
    }
    assert [name for name, found in words.items() if "ContextVar" in found] == []


def test_arguments_are_not_checked_by_assert() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert) and name not in SUITES
    ]
    assert found == []


def test_nothing_is_printed() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


def test_no_error_is_passed_over_in_silence() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert found == []


def test_no_module_is_over_500_lines() -> None:
    lengths = {name: len(text_of(name).splitlines()) for name in sources() if name not in SUITES}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_no_function_is_over_60_lines() -> None:
    lengths = {f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1 for name, node in functions()}
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_no_default_is_mutable() -> None:
    found = [
        f"{name}.{node.name}"
        for name, node in functions()
        for default in (*node.args.defaults, *node.args.kw_defaults)
        if isinstance(default, ast.List | ast.Dict | ast.Set)
    ]
    assert found == []


def test_nothing_sleeps() -> None:
    found = [name for name, tree in sources().items() if "time.sleep" in ast.unparse(tree)]
    assert found == []


def test_modules_export_what_they_say_in_order() -> None:
    for name, tree in sources().items():
        said = [
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        for names in said:
            assert names == sorted(names, key=lambda each: (not each.isupper(), each[0].islower(), each)), name
