"""Steps of child processes: nested where the work was handed over, delivered when the child ends, exactly once."""

from __future__ import annotations

import copy
import functools
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.pool import Pool
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest

import stepwell as sw
from stepwell import _config
from stepwell._settings import Settings, packed, unpacked
from stepwell.exporters.memory import MemoryExporter
from stepwell.model import StepRecord
from stepwell.store import open_store
from stepwell.testing import Captured, capture

pytestmark = pytest.mark.usefixtures("quiet")

METHODS = ["fork", "forkserver", "spawn"]
CHILD_S = 60

# What the programs below have in common. A child that is spawned imports it too, but not what comes after `main`.
HEAD = """
import json, multiprocessing, os, signal, sqlite3, sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import stepwell as sw

method, way, home = sys.argv[1:4]
context = multiprocessing.get_context(method)
carried = sw.bind if way == "bind" else lambda function: function

@sw.tool
def leaf(n):
    return 10 * n

@sw.tool
def work(n=1):
    return leaf(n)

@sw.tool
def nest():
    process = context.Process(target=carried(work))
    process.start()
    process.join()

class Worker(context.Process):
    def run(self):
        work()

def ended(process):
    process.start()
    process.join()
    assert process.exitcode == 0

def stored(name):
    "Say how many `work` steps are in the store below the step of this name, once it has ended and been delivered."
    assert sw.flush(30)
    rows = sqlite3.connect(home + "/steps.db").execute(
        "SELECT count(*) FROM steps work JOIN steps above ON above.id = work.parent_id"
        " WHERE work.name = 'work' AND above.name = ?", (name,))
    return rows.fetchone()[0]
"""

EVERYWHERE = (
    HEAD
    + """
if __name__ == "__main__":
    if way == "instrument":
        sw.instrument("processes")
    sw.configure(home=home, service="the parent's")
    found = {}
    with sw.thread("t & ü", user="ada"), sw.run("agent"):
        with sw.step("executor"):
            early = ProcessPoolExecutor(2, mp_context=context)
            with early as pool:
                assert list(pool.map(carried(work), range(6), chunksize=2)) == [0, 10, 20, 30, 40, 50]
                assert pool.submit(carried(work), 7).result() == 70
        found["executor"] = stored("executor")
        if method != "fork":
            with sw.step("one task a child"), ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
                assert list(pool.map(carried(work), range(2))) == [0, 10]
            found["one task a child"] = stored("one task a child")
        with sw.step("pool"):
            pool = context.Pool(2)
            assert pool.map(carried(work), range(3)) == [0, 10, 20]
            assert pool.apply_async(carried(work), (4,)).get(30) == 40
            assert sorted(pool.imap_unordered(carried(work), range(2))) == [0, 10]
            pool.close()
            pool.join()
        found["pool"] = stored("pool")
        with sw.step("process"):
            ended(context.Process(target=carried(work)))
        found["process"] = stored("process")
        with sw.step("grandchild"):
            ended(context.Process(target=carried(nest)))
        if way == "instrument":
            with sw.step("subclass"):
                ended(Worker())
            found["subclass"] = stored("subclass")
        with sw.step("first"):
            pool = ProcessPoolExecutor(1, mp_context=context)
            assert pool.submit(carried(work), 1).result() == 10
    with sw.run("second"):
        assert pool.submit(carried(work), 2).result() == 20
    with pool:
        assert pool.submit(carried(work), 3).result() == 30
    for name in ("first", "second"):
        found[name] = stored(name)
    print(json.dumps(found))
"""
)


def run(program: str, folder: Path, method: str, way: str = "bind", *more: str) -> str:
    """Run a program and return what it printed; it prints nothing to stderr."""
    path = folder / "program.py"
    path.write_text(program)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STEPWELL_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path), method, way, str(folder / "home"), *more],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=CHILD_S,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def steps_in(folder: Path) -> list[StepRecord]:
    store = open_store(f"sqlite:{folder / 'home' / 'steps.db'}", read_only=True)
    try:
        page = store.steps(limit=500)
        assert page.next_cursor is None
        found = [store.step(row.id) for row in page.items]
    finally:
        store.close()
    return [step for step in found if step is not None]


def sessions_left(folder: Path) -> list[str]:
    return [path.name for path in (folder / "home" / "journal").iterdir()]


def ship(folder: Path) -> None:
    """Deliver what dead processes left, as a user would."""
    command = [sys.executable, "-m", "stepwell", "ship", "--home", str(folder / "home")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=CHILD_S)
    assert (done.returncode, done.stderr) == (0, "")


# -- every way into a child process


Ran = tuple[str, str, dict[str, int], list[StepRecord], Path]


@pytest.fixture(scope="module", params=[(method, way) for way in ("bind", "instrument") for method in METHODS], ids=str)
def ran(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    method, way = request.param
    folder = tmp_path_factory.mktemp(f"{way}-{method}")
    counts = json.loads(run(EVERYWHERE, folder, method, way))
    return method, way, counts, steps_in(folder), folder


def test_what_a_child_recorded_is_stored_when_it_has_ended(ran: Ran) -> None:
    method, way, counts, _, folder = ran
    expected = {"executor": 7, "one task a child": 2, "pool": 6, "process": 1, "first": 1, "second": 1}
    if method == "fork":
        del expected["one task a child"]
    if way == "instrument":
        expected["subclass"] = 1
    assert counts == expected
    assert sessions_left(folder) == []


def test_the_steps_of_children_stand_below_the_step_that_handed_them_over(ran: Ran) -> None:
    *_, counts, steps, _ = ran
    by_id = {step.id: step for step in steps}
    assert len(by_id) == len(steps)
    above = {step.id: by_id[step.parent_id].name if step.parent_id else None for step in steps}
    works = sorted(str(above[step.id]) for step in steps if step.name == "work")
    expected = [name for name, count in counts.items() for _ in range(count)]
    assert works == sorted([*expected, "nest", "None"])  # in a child of a child, and submitted outside of any step
    leaves = [by_id[step.parent_id or ""] for step in steps if step.name == "leaf"]
    assert sorted(step.id for step in leaves) == sorted(step.id for step in steps if step.name == "work")


def test_the_steps_of_children_keep_thread_user_run_and_trace(ran: Ran) -> None:
    *_, steps, _ = ran
    agent = next(step for step in steps if step.name == "agent")
    inside = [step for step in steps if step.trace_id == agent.trace_id]
    assert {(step.thread_id, step.user, step.root_run_id) for step in inside} == {("t & ü", "ada", agent.id)}
    outside = {(step.name, step.thread_id) for step in steps if step not in inside}
    assert outside == {("second", None), ("work", None), ("leaf", None)}
    assert {step.status for step in steps} == {"success"}


def test_children_record_with_the_settings_of_their_parent(ran: Ran) -> None:
    *_, steps, folder = ran
    assert {step.service for step in steps} == {"the parent's"}
    assert not (folder / ".stepwell").exists()


# -- children that die, and settings


@pytest.mark.parametrize("method", METHODS)
def test_what_a_killed_worker_has_finished_is_delivered_by_the_next_process(method: str, tmp_path: Path) -> None:
    program = (
        HEAD
        + """
def dies(n):
    work(n)
    sw.start("tool", "never ends")
    os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    sw.configure(home=home)
    with sw.run("agent"), ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(carried(dies), 1).result()
        except BrokenProcessPool:
            print("broken")
"""
    )
    assert run(program, tmp_path, method) == "broken\n"
    ship(tmp_path)
    steps = {step.name: step for step in steps_in(tmp_path)}
    assert steps.keys() == {"agent", "work", "leaf"}
    assert (steps["work"].parent_id, steps["leaf"].parent_id) == (steps["agent"].id, steps["work"].id)
    assert sessions_left(tmp_path) == []


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_ends_its_workers_with_a_signal_loses_nothing(method: str, tmp_path: Path) -> None:
    program = (
        HEAD
        + """
if __name__ == "__main__":
    sw.configure(home=home)
    with sw.run("agent"), context.Pool(2) as pool:  # whose end terminates the workers
        pool.map(carried(work), range(20))
"""
    )
    run(program, tmp_path, method)
    ship(tmp_path)
    steps = steps_in(tmp_path)
    agent = next(step for step in steps if step.name == "agent")
    assert len(steps) == len({step.id for step in steps}) == 41
    assert [step.name for step in steps if step.parent_id == agent.id] == ["work"] * 20


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_child_that_configures_itself_keeps_to_that(method: str, tmp_path: Path) -> None:
    program = (
        HEAD
        + """
sw.configure(home=home, service="parent" if __name__ == "__main__" else "child")
if __name__ == "__main__":
    with sw.run("agent"):
        ended(context.Process(target=carried(work)))
"""
    )
    run(program, tmp_path, method)
    found = {step.name: step.service for step in steps_in(tmp_path)}
    assert found == {"agent": "parent", "work": "child", "leaf": "child"}


def test_a_child_without_settings_takes_the_redaction_rules_of_its_parent(tmp_path: Path) -> None:
    program = (
        HEAD
        + """
import re

def hide(payload):
    return payload.replace(b"plain", b"hidden")

@sw.tool
def answer(text):
    return text

if __name__ == "__main__":
    sw.configure(home=home, redact=["pin", re.compile("CUST-[0-9]+"), hide])
    ended(context.Process(target=carried(answer), args=({"pin": "1234", "note": "CUST-77", "text": "plain"},)))
    assert sw.flush(30)
"""
    )
    run(program, tmp_path, "spawn")
    [step] = steps_in(tmp_path)
    output = json.loads(bytes(step.output or b""))
    assert output == {"pin": "[redacted:pin:4]", "note": output["note"], "text": "hidden"}
    assert "CUST-77" not in output["note"]


def test_a_redaction_function_that_can_not_go_along_lets_nothing_through(tmp_path: Path) -> None:
    program = (
        HEAD
        + """
if __name__ == "__main__":
    import logging
    logging.getLogger("stepwell").setLevel(logging.CRITICAL)
    sw.configure(home=home, redact=[lambda payload: payload])
    ended(context.Process(target=carried(work), args=(4321,)))
    with sw.tool("here", input="4321"):
        pass
"""
    )
    run(program, tmp_path, "spawn")
    recorded = [(step.name, step.input and bytes(step.input)) for step in steps_in(tmp_path)]
    withheld = b'{"$stepwell":"redaction_failed","rule":"_withhold"}'
    assert sorted(recorded, key=str) == [("[redaction_failed:_withhold]", withheld)] * 2 + [("here", b'"4321"')]


def test_settings_go_along_but_for_exporters_that_are_objects(tmp_path: Path) -> None:
    given = Settings(export=("jsonl:a.jsonl", MemoryExporter()), home=tmp_path, service="s", exit_timeout=2.0)
    assert unpacked(packed(given)) == Settings(export=("jsonl:a.jsonl",), home=tmp_path, service="s", exit_timeout=2.0)
    alone = Settings(export=(MemoryExporter(),), home=Path("here"))
    assert unpacked(packed(alone)) == Settings(export=("sqlite:",), home=Path.cwd() / "here")
    in_memory = Settings(export=(MemoryExporter(),), home=None)
    assert unpacked(packed(in_memory)) == Settings(export=(), home=None)


def test_credentials_go_to_children_and_into_no_other_pickle(tmp_path: Path) -> None:
    sw.configure(export=f"jsonl:{tmp_path}/token-5678.jsonl", home=tmp_path)
    bound = sw.bind(work)
    assert b"token-5678" not in pickle.dumps(bound)
    assert b"token-5678" in bytes(ForkingPickler.dumps(bound))


def test_settings_are_taken_where_there_are_none(tmp_path: Path) -> None:
    sw.configure(export="memory:", home=tmp_path, service="given")
    data = bytes(ForkingPickler.dumps(sw.bind(work)))
    _config.reset()
    pickle.loads(data)
    assert _config._state.settings == Settings(export=("memory:",), home=tmp_path, service="given")
    sw.configure(export="memory:", home=tmp_path, service="own")
    pickle.loads(data)
    assert _config._state.settings == Settings(export=("memory:",), home=tmp_path, service="own")


def test_before_there_are_settings_none_go_along() -> None:
    assert ForkingPickler.loads(ForkingPickler.dumps(sw.bind(work)))(1) == 1
    assert _config._give_settings() != b""  # the step has settled them
    _config.reset()
    assert _config._give_settings() == b""


# -- bound functions, pickled


@sw.tool("worked", tags=["a"])
def work(n: int) -> int:
    """Work."""
    return n


@sw.tool
async def work_later(n: int) -> int:
    return n


class Owner:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @sw.tool
    def method(self, n: int) -> int:
        return self.factor * n

    @classmethod
    @sw.tool
    def of_class(cls, n: int) -> int:
        return n

    def __call__(self, n: int) -> int:
        with sw.tool("call"):
            return self.factor * n


def again(function: Any) -> Any:
    return pickle.loads(pickle.dumps(function))


@pytest.mark.parametrize(
    ("function", "name", "expected"),
    [
        (work, "worked", 3),
        (Owner(2).method, "method", 6),
        (Owner.of_class, "of_class", 3),
        (functools.partial(work), "worked", 3),
        (Owner(3), "call", 9),
    ],
    ids=["function", "method", "classmethod", "partial", "object"],
)
def test_a_bound_function_is_bound_when_unpickled(
    function: Callable[[int], int], name: str, expected: int, captured: Captured
) -> None:
    with sw.thread("t", user="ada"), sw.run("agent") as agent:
        bound = sw.bind(function)
    twice = again(again(bound))
    with sw.run("elsewhere") as elsewhere:
        assert (
            bound(3)
            == again(bound)(3)
            == twice(3)
            == functools.partial(again(functools.partial(bound, 3)))()
            == expected
        )
        assert sw.current_step() is elsewhere
    found = [(s.parent_id, s.trace_id, s.thread_id, s.user, s.root_run_id) for s in captured.steps if s.name == name]
    assert found == [(agent.id, agent.trace_id, "t", "ada", agent.id)] * 4


def test_a_function_bound_outside_of_any_step_is_in_none_when_unpickled(captured: Captured) -> None:
    data = pickle.dumps(sw.bind(work))
    with sw.run("elsewhere"):
        assert pickle.loads(data)(1) == 1
    assert captured.step("worked").parent_id is None


def test_a_thread_without_a_step_goes_along(captured: Captured) -> None:
    with sw.thread("t", user="ada"):
        data = pickle.dumps(sw.bind(work))
    pickle.loads(data)(1)
    step = captured.step("worked")
    assert (step.parent_id, step.thread_id, step.user) == (None, "t", "ada")


def test_what_is_not_sampled_is_not_recorded_elsewhere(captured: Captured) -> None:
    with capture(sample=0), sw.run("agent"):
        data = pickle.dumps(sw.bind(work))
    assert pickle.loads(data)(1) == 1
    assert captured.steps == []


def test_a_bound_coroutine_function_is_one_when_unpickled(captured: Captured) -> None:
    import asyncio

    with sw.run("agent") as agent:
        bound = sw.bind(work_later)
    for each in (bound, again(bound)):
        assert inspect.iscoroutinefunction(each)
        assert asyncio.iscoroutinefunction(each)
        assert asyncio.run(each(2)) == 2
    assert [step.parent_id for step in captured.steps if step.name == "work_later"] == [agent.id] * 2


def test_a_bound_function_looks_like_the_function() -> None:
    for bound in (sw.bind(work), again(sw.bind(work))):
        assert (bound.__name__, bound.__qualname__, bound.__doc__) == ("work", "work", "Work.")
        assert (bound.__module__, bound.__wrapped__) == (__name__, work)
        assert inspect.signature(bound) == inspect.signature(work)
        assert inspect.getdoc(bound) == "Work."
        assert repr(bound) == f"<bound {work!r}>"
        assert not inspect.iscoroutinefunction(bound)
    bound = sw.bind(work)
    assert copy.copy(bound) is copy.deepcopy(bound) is bound
    with pytest.raises(AttributeError, match="missing"):
        bound.missing  # type: ignore[attr-defined] # noqa: B018


def test_a_bound_function_in_a_class_is_a_method(captured: Captured) -> None:
    with sw.run("agent") as agent:

        class Kind:
            factor = 5
            method = sw.bind(Owner.method)

    assert Kind().method(3) == 15  # type: ignore[arg-type]
    assert captured.step("method").parent_id == agent.id


def test_a_class_can_be_bound_and_a_bound_function_decorated(captured: Captured) -> None:
    assert again(sw.bind(Owner))(4).factor == 4
    with sw.run("agent"):
        bound = sw.bind(Owner(2).method)
    assert sw.tool(bound)(3) == 6
    inner, outer = captured.steps[1:] if captured.steps[1].start_ns else (None, None)
    assert {inner and inner.name, outer and outer.name} == {"method"}


def refusal(call: Callable[[], object]) -> tuple[type[BaseException], str]:
    with pytest.raises((pickle.PicklingError, AttributeError)) as raised:
        call()
    return type(raised.value), re.sub("0x[0-9a-f]+", "ADDRESS", str(raised.value))


def test_what_pickle_can_not_take_is_refused_by_pickle_itself() -> None:
    def local(n: int) -> int:
        return n

    plain = lambda n: n  # noqa: E731
    for function in (local, plain):
        assert refusal(lambda f=function: pickle.dumps(sw.bind(f))) == refusal(lambda f=function: pickle.dumps(f))  # type: ignore[misc]
        decorated = sw.tool(function)
        assert refusal(lambda f=decorated: pickle.dumps(f)) == refusal(lambda f=function: pickle.dumps(f))  # type: ignore[misc]


def test_decorated_functions_pickle_by_name() -> None:
    assert again(work) is work
    assert again(work_later) is work_later
    assert again(Owner(2).method)(3) == 6
    assert again(Owner.of_class)(3) == 3


def test_headers_that_make_no_sense_bind_to_nothing(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    from stepwell._propagation import _rebound

    wrong: Any = 5
    with sw.run("agent"):
        assert _rebound(work, wrong, b"no settings")(1) == 1
    assert captured.step("worked").parent_id is None
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "stepwell could not continue where a function was bound"
    ]
    caplog.clear()


# -- instrumenting


def test_what_is_patched_comes_back() -> None:
    before = BaseProcess.start, ProcessPoolExecutor.submit, Pool.map
    sw.instrument("processes")
    try:
        after = BaseProcess.start, ProcessPoolExecutor.submit, Pool.map
        assert [after[n] is before[n] for n in range(3)] == [False, False, False]
    finally:
        sw.uninstrument("processes")
    assert (BaseProcess.start, ProcessPoolExecutor.submit, Pool.map) == before


def test_failures_of_children_and_refusals_are_as_without_us(tmp_path: Path) -> None:
    program = (
        HEAD
        + """
import re, traceback

def fails():
    raise ValueError("bad")

def outcome(call):
    try:
        call()
    except BaseException as error:
        text = "".join(traceback.format_exception(error))
        assert "_propagation" not in text and "instrument" not in text, text
        return [type(error).__name__, re.sub("0x[0-9a-f]+", "ADDRESS", str(error))]

def outcomes():
    with ProcessPoolExecutor(1, mp_context=context) as pool, context.Pool(1) as other:
        yield outcome(lambda: pool.submit(fails).result())
        yield outcome(lambda: pool.submit(lambda: 1).result())
        yield outcome(lambda: pool.submit(5).result())
        yield outcome(lambda: other.map(5, [1]))
        yield outcome(lambda: other.apply(fails))
    yield outcome(lambda: pool.submit(work))
    yield outcome(lambda: context.Process(target=lambda: 1).start())
    process = context.Process(target=work)
    process.start()
    yield outcome(process.start)
    process.join()
    assert "run" not in vars(process)
    yield [process.exitcode, process.daemon]

if __name__ == "__main__":
    sw.configure(home=home)
    plain = list(outcomes())
    sw.instrument("processes")
    with sw.run("agent"):
        carried = list(outcomes())
    assert carried == plain, (carried, plain)
    print(len(plain))
"""
    )
    assert run(program, tmp_path, "spawn") == "9\n"
