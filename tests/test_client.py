"""`Client` and `AsyncClient` say the same of a server, a file and an open store, and fail in the same way."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from served import AppServer

import stepwell as sw
from stepwell import client as cl
from stepwell.client import AsyncClient, Client, ScoreFilter
from stepwell.errors import ClientError, ClosedError, NotFoundError, StepwellError, StoreError, UsageError
from stepwell.model import StepRecord
from stepwell.server._keys import KeyRing
from stepwell.store import open_store

DAY_NS = 1_735_689_600_000_000_000
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 1000
PICTURE_SHA256 = hashlib.sha256(PICTURE).hexdigest()
ODD_IDS = ["..", ".", "a/b", "a/../b", "x y", "é?#%2F", "a/steps", "tree/", "+", "\x00"]

Ask = Callable[..., Any]


class Sync:
    """Asks a `Client`."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def __call__(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Return the answer; of a page all items, of what comes in pieces all of them."""
        found = getattr(self.client, name)(*args, **kwargs)
        return list(found) if isinstance(found, cl.Page | Iterator) else found

    def page(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.client, name)(*args, **kwargs)

    def close(self) -> None:
        self.client.close()


class Async:
    """Asks an `AsyncClient`, on an event loop in another thread."""

    def __init__(self, client: AsyncClient, portal: BlockingPortal) -> None:
        self.client = client
        self.portal = portal

    def __call__(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        return self.portal.call(partial(self._ask, name, *args, **kwargs))

    async def _ask(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        found = getattr(self.client, name)(*args, **kwargs)
        return [item async for item in found] if hasattr(found, "__aiter__") else await found

    def page(self, name: str, *args: Any, **kwargs: Any) -> Any:
        async def first() -> Any:
            return await getattr(self.client, name)(*args, **kwargs)

        return self.portal.call(first)

    def close(self) -> None:
        self.portal.call(self.client.close)


def fill(home: Path) -> None:
    """Fill a home with two runs in a thread, steps of the same time, odd ids, scores and an attachment."""
    store = open_store(f"sqlite:{home / 'steps.db'}")
    records: list[dict[str, Any]] = [
        {
            "kind": "thread",
            "id": "t-1",
            "name": "Readings",
            "tags": ["demo"],
            "metadata": {"a": [1.0]},
            "user": {"id": "u1", "identifier": "ada", "metadata": {"plan": "pro"}},
            "created_ns": DAY_NS,
        },
        step("run-1", type="run", thread_id="t-1", root_run_id="run-1", user="ada", end_ns=DAY_NS + 2_000_000_000),
        step(
            "llm-1",
            type="llm",
            parent_id="run-1",
            root_run_id="run-1",
            thread_id="t-1",
            start_ns=DAY_NS + 1000,
            generation=GENERATION,
            input={"question": "é", "deep": [None, 1.0]},
            output=None,
            metadata={"request": {"attempt": 2, "cached": False}},
            tags=["web", "slow"],
            attachments=[{"id": "p", "sha256": PICTURE_SHA256, "mime": "image/png", "metadata": {"width": 3}}],
            scores=[{"id": "s-1", "name": "quality", "value": 0.75, "type": "AI", "tags": ["x"]}],
        ),
        step("failed", status="failed", error={"type": "KeyError", "message": "'k'", "traceback": "..."}),
        *(step(id, type="retrieval", start_ns=DAY_NS + 50) for id in ODD_IDS),
        {"kind": "score", "id": "s-2", "step_id": "later", "name": "quality", "value": 0.25, "created_ns": DAY_NS},
    ]
    assert store.add([json.dumps(record).encode() for record in records]).rejected == ()
    store.close()
    folder = home / "blobs" / PICTURE_SHA256[:2]
    folder.mkdir(parents=True)
    (folder / PICTURE_SHA256).write_bytes(PICTURE)
    os.utime(folder / PICTURE_SHA256, (1, 1))  # long ago: one just put is left for a while


GENERATION = {
    "type": "chat",
    "model": "gpt-4o",
    "provider": "openai",
    "messages": [{"role": "user", "content": "Hi"}],
    "message_completion": {"role": "assistant", "content": "Hello"},
    "usage": {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10},
    "settings": {"temperature": 0},
    "ttft_ns": 5,
    "of_its_own": [1],
}


def step(id: str, **fields: Any) -> dict[str, Any]:
    base = {"kind": "step", "id": id, "type": "tool", "name": "n", "start_ns": DAY_NS, "end_ns": DAY_NS + 100}
    return {**base, "status": "success", **fields}


KINDS = [f"{kind} {target}" for kind in ("sync", "async") for target in ("url", "file", "store")]


def open_client(stack: ExitStack, kind: str, server: AppServer, portal: BlockingPortal) -> Sync | Async:
    how, _, target = kind.partition(" ")
    place = {"url": server.url, "file": f"sqlite:{server.home / 'steps.db'}", "store": server.store}[target]
    asked = Sync(Client(place)) if how == "sync" else Async(AsyncClient(place), portal)
    stack.callback(asked.close)
    return asked


@pytest.fixture(scope="module")
def portal() -> Iterator[BlockingPortal]:
    with start_blocking_portal() as portal:
        yield portal


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    """A server that nobody writes to."""
    home = tmp_path_factory.mktemp("client") / "home"
    home.mkdir()
    fill(home)
    with AppServer(home) as server:
        yield server


@pytest.fixture(scope="module")
def clients(server: AppServer, portal: BlockingPortal) -> Iterator[list[Sync | Async]]:
    with ExitStack() as stack:
        yield [open_client(stack, kind, server, portal) for kind in KINDS]


@pytest.fixture(params=KINDS)
def ask(request: pytest.FixtureRequest, tmp_path: Path, portal: BlockingPortal) -> Iterator[Sync | Async]:
    """One client of each kind, over data of its own."""
    home = tmp_path / "home"
    home.mkdir()
    fill(home)
    with ExitStack() as stack:
        server = stack.enter_context(AppServer(home))
        yield open_client(stack, request.param, server, portal)


def same(clients: list[Sync | Async], name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Return what all clients say, which is the same."""
    said = [outcome(ask, name, *args, **kwargs) for ask in clients]
    assert all(each == said[0] for each in said[1:]), said
    return said[0]


def outcome(ask: Sync | Async, name: str, /, *args: Any, **kwargs: Any) -> Any:
    try:
        return ask(name, *args, **kwargs)
    except StepwellError as error:
        return type(error).__name__, str(error)


def ids(items: list[Any]) -> list[str]:
    return [item.id for item in items]


# -- reading


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"type": "llm"}, ["llm-1"]),
        ({"type": ["llm", "run"]}, ["llm-1", "run-1"]),
        ({"name": "n", "status": "failed"}, ["failed"]),
        ({"tag": "web"}, ["llm-1"]),
        ({"tag": ["web", "slow"]}, ["llm-1"]),
        ({"tag": ["web", "other"]}, []),
        ({"tag_any": ["other", "slow"]}, ["llm-1"]),
        ({"model": "gpt-4o", "provider": "openai"}, ["llm-1"]),
        ({"thread_id": "t-1"}, ["llm-1", "run-1"]),
        ({"ids": ["failed", "run-1", "none"]}, ["failed", "run-1"]),
        ({"ids": []}, []),
        ({"trace_ids": []}, []),
        ({"ids": ["é?#%2F"]}, ["é?#%2F"]),
        ({"root_run_id": "run-1", "parent_id": "run-1"}, ["llm-1"]),
        ({"user": "ada"}, ["run-1"]),
        ({"error_type": "KeyError", "has_error": True}, ["failed"]),
        ({"has_error": False, "type": "tool"}, []),
        ({"has_feedback": True}, []),
        ({"feedback": "positive"}, []),
        ({"score": ScoreFilter("quality", min=0.5, max=0.75)}, ["llm-1"]),
        ({"score": ScoreFilter("quality", label="good")}, []),
        ({"metadata": {"request.attempt": 2, "request.cached": False}}, ["llm-1"]),
        ({"metadata": {"request.attempt": "2"}}, []),
        ({"metadata": {"request.none": None}}, []),
        ({"since": DAY_NS + 51}, ["llm-1"]),
        ({"until": datetime(2025, 1, 1, 0, 0, 0, 1, UTC), "root_only": True}, [*reversed(ODD_IDS), "failed", "run-1"]),
        ({"min_duration_ns": 1_000_000_000}, ["run-1"]),
        ({"max_duration_ns": -1, "type": "llm"}, ["llm-1"]),
        ({"min_tokens": 10, "max_tokens": 10}, ["llm-1"]),
        ({"min_cost": 0.0}, []),
        ({"text": "hello"}, ["llm-1"]),
        ({"text": "hel* -absent", "type": "llm"}, ["llm-1"]),
        ({"text": "absent"}, []),
        ({"query": "type:llm,run -status:failed"}, ["llm-1", "run-1"]),
        ({"query": "tag:web hel* -absent", "type": ["llm", "tool"], "tag": "slow"}, ["llm-1"]),
        ({"query": "tokens:>=10 metadata.request.attempt:2", "max_tokens": 10}, ["llm-1"]),
        ({"query": "tokens:<10", "max_tokens": 100}, []),
        ({"query": "id:failed,run-1", "ids": ["run-1"]}, ["run-1"]),
        ({"query": "id:failed", "ids": []}, []),
        ({"query": 'is:top -type:tool -id:"none"', "since": 1, "user": "ada"}, ["run-1"]),
        ({"query": " ", "ids": ["failed"]}, ["failed"]),
        ({"type": None, "name": None, "tag": (), "since": None, "has_error": None, "ids": ["failed"]}, ["failed"]),
    ],
)
def test_steps_are_found_by_every_condition(
    clients: list[Sync | Async], filters: dict[str, Any], expected: list[str]
) -> None:
    assert ids(same(clients, "steps", **filters)) == expected
    assert ids(same(clients, "steps", order="asc", limit=1, **filters)) == expected[::-1]


def test_a_listed_step_has_types_and_times(clients: list[Sync | Async]) -> None:
    (step,) = same(clients, "steps", type="llm")
    assert step == cl.Step(
        id="llm-1",
        type="llm",
        name="n",
        status="success",
        parent_id="run-1",
        root_run_id="run-1",
        thread_id="t-1",
        start_ns=DAY_NS + 1000,
        end_ns=DAY_NS + 100,
        model="gpt-4o",
        provider="openai",
        input_tokens=7,
        output_tokens=3,
        total_tokens=10,
        tags=("web", "slow"),
        ttft_ns=5,
    )
    assert step.started_at == datetime(2025, 1, 1, 0, 0, 0, 1, UTC)
    assert (step.ended_at, step.duration_ns) == (datetime(2025, 1, 1, tzinfo=UTC), -900)
    assert (cl.Step(id="x").started_at, cl.Step(id="x").duration_ns) == (None, None)
    assert cl.Step(id="x", start_ns=1 << 62).started_at == datetime(2116, 2, 20, 23, 53, 38, 427387, UTC)
    assert cl.Step(id="x", start_ns=1 << 70).started_at is None


def test_a_whole_step_has_its_payloads(clients: list[Sync | Async]) -> None:
    step = same(clients, "step", "llm-1")
    assert step.input == {"question": "é", "deep": [None, 1.0]}
    assert step.json_of("input") == json.dumps({"question": "é", "deep": [None, 1.0]}).encode()
    assert (step.output, step.has("output"), step.metadata) == (
        None,
        True,
        {"request": {"attempt": 2, "cached": False}},
    )
    assert step.generation is step.generation
    assert step.generation.model_dump(exclude_unset=True) == GENERATION
    assert step.generation.usage == cl.Usage(input_tokens=7, output_tokens=3, total_tokens=10)
    assert [(each.sha256, each.metadata) for each in step.attachments] == [(PICTURE_SHA256, {"width": 3})]
    assert step.scores == (cl.Score(id="s-1", name="quality", value=0.75, type="AI", tags=("x",)),)
    dumped = step.model_dump(mode="json")
    assert (dumped["input"], dumped["generation"]["model"]) == (step.input, "gpt-4o")
    with pytest.raises(ValueError, match="frozen"):
        step.id = "other"


def test_a_step_without_payloads_says_so(clients: list[Sync | Async]) -> None:
    step = same(clients, "step", "failed")
    assert step.error == cl.StepError(type="KeyError", message="'k'", traceback="...")
    assert (step.input, step.has("input"), step.json_of("input"), step.generation) == (None, False, None, None)
    assert (step.attachments, step.scores) == ((), ())


@pytest.mark.parametrize("id", ODD_IDS)
def test_any_id_can_be_asked_for(clients: list[Sync | Async], id: str) -> None:
    assert same(clients, "step", id).id == id
    assert ids(same(clients, "tree", id)) == [id]
    assert same(clients, "find", id) == cl.Found(kind="step", id=id)
    assert ids(same(clients, "steps_in_full", [id, "none", "failed"])) == [id, "failed"]


def test_runs_trees_and_threads_are_read(clients: list[Sync | Async]) -> None:
    (run,) = same(clients, "runs", type="run")
    assert (run.id, run.steps, run.errors, run.tokens) == ("run-1", 2, 0, 10)
    assert ids(same(clients, "tree", "run-1")) == ["run-1", "llm-1"]
    (thread,) = same(clients, "threads", user="u1", tag=["demo"], since=DAY_NS + 1000, until=DAY_NS + 1001)
    assert (thread.id, thread.user, thread.steps, thread.created_at) == (
        "t-1",
        "ada",
        2,
        datetime(2025, 1, 1, tzinfo=UTC),
    )
    assert ids(same(clients, "threads", query="user:ada tag:demo", id="t-1")) == ["t-1"]
    detail = same(clients, "thread", "t-1")
    assert (detail.metadata, detail.user.identifier, detail.user.metadata) == ({"a": [1.0]}, "ada", {"plan": "pro"})
    assert (detail.steps, detail.tokens, detail.created_at) == (2, 10, datetime(2025, 1, 1, tzinfo=UTC))
    assert ids(same(clients, "thread_steps", "t-1", limit=1)) == ["run-1", "llm-1"]
    assert same(clients, "thread_steps", "none") == same(clients, "steps_in_full", []) == []


def test_scores_are_listed(clients: list[Sync | Async]) -> None:
    assert [(each.id, each.step_id) for each in same(clients, "scores")] == [("s-2", "later"), ("s-1", "llm-1")]
    assert ids(same(clients, "scores", name="quality", min=0.5)) == ["s-1"]
    assert ids(same(clients, "scores", step_id="later", since=DAY_NS, until=DAY_NS + 1)) == ["s-2"]
    assert ids(same(clients, "scores", type="AI", order="asc")) == ["s-1"]
    assert ids(same(clients, "scores", step_ids=["llm-1", "none"])) == ["s-1"]
    assert ids(same(clients, "scores", step_ids=[])) == []
    assert same(clients, "scores", label="good") == []


def test_changes_lead_on_from_a_position(clients: list[Sync | Async]) -> None:
    now = same(clients, "changes")
    assert now.items == ()
    first = same(clients, "changes", 0, limit=2)
    assert ids(first.items) == ["run-1", "failed"]
    assert ids(same(clients, "changes", first.position, limit=1).items) == [".."]
    assert same(clients, "changes", now.position) == now


def test_stats_and_an_export_are_read(clients: list[Sync | Async], tmp_path: Path) -> None:
    stats = same(clients, "stats")
    assert (stats.steps, stats.threads, stats.scores, stats.by_type["llm"]) == (13, 1, 2, 1)
    lines = same(clients, "export")
    assert len(lines) == 15
    copy = Client(open_store("sqlite::memory:"))
    assert copy.add(lines) == cl.Added(accepted=15, duplicates=0)
    assert list(copy.export()) == lines
    some = [json.loads(line)["id"] for line in same(clients, "export", type="llm")]
    assert some == ["t-1", "llm-1"]


def test_attachments_are_read_and_written_to_files(clients: list[Sync | Async], tmp_path: Path) -> None:
    assert same(clients, "attachment", PICTURE_SHA256) == PICTURE
    for number, ask in enumerate(clients):
        path = tmp_path / f"{number}.png"
        assert ask("download", PICTURE_SHA256, path) == path
        assert path.read_bytes() == PICTURE
    assert same(clients, "download", "0" * 64, tmp_path / "none")[0] == "NotFoundError"
    assert len(list(tmp_path.iterdir())) == len(clients)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "expected"),
    [
        ("step", ["none"], {}, ("NotFoundError", "there is no step 'none'")),
        ("tree", ["none"], {}, ("NotFoundError", "there is no step 'none'")),
        ("thread", ["none"], {}, ("NotFoundError", "there is no thread 'none'")),
        ("find", ["none"], {}, ("NotFoundError", "there is no step or thread 'none'")),
        ("attachment", ["0" * 64], {}, ("NotFoundError", "no blob " + "0" * 64)),
        ("attachment", ["x"], {}, ("UsageError", "'x' is not a SHA-256 in 64 lower-case hex digits")),
        ("step", [""], {}, ("UsageError", "step id must be a string of 1 to 256 characters, got ''")),
        ("steps", [], {"limit": 0}, ("UsageError", "limit must be 1 to 1000, got 0")),
        ("steps", [], {"limit": True}, ("UsageError", "limit must be 1 to 1000, got True")),
        ("steps", [], {"order": "up"}, ("UsageError", "order must be 'asc' or 'desc', got 'up'")),
        ("steps", [], {"cursor": "mine"}, ("UsageError", "cursor 'mine' is not one that a page gave")),
        ("steps", [], {"min_tokens": "1"}, ("UsageError", "min_tokens='1': Input should be a valid integer")),
        ("runs", [], {"odd": 1}, ("UsageError", "odd=1: Extra inputs are not permitted")),
        ("steps", [], {"since": -1}, ("UsageError", "since is before 1970")),
        ("steps", [], {"ids": ["x"] * 1001}, ("UsageError", "ids may be 1000 at most, got 1001")),
        (
            "threads",
            [],
            {"until": datetime(2025, 1, 1)},  # noqa: DTZ001 (that is the point)
            (
                "UsageError",
                "until=datetime.datetime(2025, 1, 1, 0, 0) has no offset from UTC, as datetime.now(UTC) has",
            ),
        ),
        (
            "steps",
            [],
            {"metadata": {"a..b": 1}},
            ("UsageError", "metadata path 'a..b': expected keys joined by dots, without quotation marks"),
        ),
        (
            "steps",
            [],
            {"query": "type:llm cost:>x"},
            ("QueryError", "expected a number, such as 0.8 (at character 16)"),
        ),
        ("runs", [], {"query": '"'}, ("QueryError", "this quotation mark is not closed (at character 1)")),
        ("search", ["a"], {"query": "id:"}, ("QueryError", "expected a value (at character 4)")),
        (
            "steps",
            [],
            {"query": "user:ada", "user": "eve"},
            ("UsageError", "user is one thing in the query and another beside it"),
        ),
        (
            "export",
            [],
            {"metadata": {"a..b": 1}},
            ("UsageError", "metadata path 'a..b': expected keys joined by dots, without quotation marks"),
        ),
        ("changes", [-1], {}, ("UsageError", "after must be a position that changes gave, got -1")),
        ("score", ["a", "q"], {}, ("UsageError", "a score has a value, a label, or both")),
        ("score", ["a", "q", float("nan")], {}, ("UsageError", "value of a score must be a finite number, got nan")),
        ("score", ["", "q", 1], {}, ("UsageError", "step_id must be a string of 1 to 256 characters, got ''")),
        (
            "score",
            ["a", "q", 1],
            {"type": "DOG"},
            ("UsageError", "type of a score must be one of HUMAN, CODE, AI, got 'DOG'"),
        ),
        ("feedback", ["a", "good"], {}, ("UsageError", "feedback must be one of positive, negative, got 'good'")),
        ("add", [[b" "]], {}, ("UsageError", "record 0 is empty")),
    ],
)
def test_what_is_wrong_or_missing_raises_the_same_everywhere(
    clients: list[Sync | Async], name: str, args: list[Any], kwargs: dict[str, Any], expected: tuple[str, str]
) -> None:
    assert same(clients, name, *args, **kwargs) == expected


def test_a_payload_of_any_kind_costs_nothing_else(tmp_path: Path) -> None:
    deep = b"[" * 280 + b"]" * 280
    odd = b"[1e999, " + b"9" * 5000 + b"]"
    client = Client(open_store("sqlite::memory:"))
    client.add([b'{"kind":"step","id":"a","input":%b,"output":%b}' % (deep, odd)])
    step = client.step("a")
    assert json.dumps(step.input) == deep.decode()
    assert step.output == [float("inf"), float("inf")]


# -- pages


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_iterating_goes_through_thousands_of_steps_of_the_same_time(
    tmp_path: Path, portal: BlockingPortal, order: str
) -> None:
    expected = [f"s{number}" for number in range(2500)]
    with AppServer(tmp_path / "home") as server, ExitStack() as stack:
        server.store.add([json.dumps(step(id)).encode() for id in expected])
        clients = [open_client(stack, kind, server, portal) for kind in KINDS]
        found = same(clients, "steps", order=order, limit=700)
        assert ids(found) == (expected if order == "asc" else expected[::-1])


def test_a_page_says_where_the_next_begins(clients: list[Sync | Async]) -> None:
    for ask in clients:
        page = ask.page("steps", limit=12)
        assert (len(page.items), page.next_cursor is None) == (12, False)
        assert repr(page).endswith("Page of 12, and more>")
        rest = ask.page("steps", limit=12, cursor=page.next_cursor)
        assert (len(rest.items), rest.next_cursor) == (1, None)
        assert repr(rest).endswith("Page of 1>")
        following = page.next_page()
        last = rest.next_page()
        if isinstance(ask, Async):
            following, last = ask.portal.call(awaited, following), ask.portal.call(awaited, last)
        assert (following.items, last) == (rest.items, None)


async def awaited(value: Awaitable[Any]) -> Any:
    return await value


# -- writing


def test_records_are_added_and_those_refused_are_named(ask: Sync | Async) -> None:
    records = [b'{"kind":"step",\n"id":"new"}', {"kind": "step", "id": "m"}, StepRecord("r", name="x"), b"{", b"[]"]
    added = ask("add", records)
    assert (added.accepted, added.duplicates) == (3, 0)
    assert [(each.index, each.id) for each in added.rejected] == [(3, None), (4, None)]
    assert added.rejected[0].error.startswith("not a record: ")
    assert ask("add", records[:3]) == cl.Added(accepted=0, duplicates=3)
    assert ask("step", "r").name == "x"


def test_many_records_go_in_batches_whose_places_are_among_all(ask: Sync | Async) -> None:
    records = (b'{"kind":"step","id":"n%d"}' % number if number != 4321 else b"{" for number in range(4500))
    added = ask("add", records)
    assert (added.accepted, [each.index for each in added.rejected]) == (4499, [4321])


def test_scores_and_feedback_are_kept(ask: Sync | Async) -> None:
    score = ask("score", "run-1", "quality", 1, label="good", comment="yes", type="AI", tags=["a"])
    assert score.model_dump(exclude={"id", "created_ns"}) == {
        "name": "quality",
        "step_id": "run-1",
        "type": "AI",
        "value": 1.0,
        "label": "good",
        "comment": "yes",
        "tags": ("a",),
    }
    assert abs((datetime.now(UTC) - score.created_at).total_seconds()) < 600
    verdict = ask("feedback", "run-1", "negative", comment="no")
    assert (verdict.name, verdict.value, verdict.label, verdict.type) == ("feedback", 0.0, "negative", "HUMAN")
    assert ask("scores", step_id="run-1") == [verdict, score]
    assert ids(ask("steps", feedback="negative")) == ["run-1"]


def test_a_closed_client_says_so_and_may_be_closed_again(ask: Sync | Async) -> None:
    ask("stats")
    ask.close()
    ask.close()
    for name in ("stats", "export"):
        with pytest.raises(ClosedError, match="this client is closed"):
            ask(name)


# -- files and homes


def test_a_store_that_was_given_stays_open(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "steps.db"))
    with Client(store) as client:
        assert client.stats().steps == 0
        assert repr(client) == f"Client(SqliteStore('{tmp_path}/steps.db'))"
    assert store.stats().steps == 0
    store.close()


def test_no_file_is_made_where_there_is_none(tmp_path: Path) -> None:
    client = Client(tmp_path / "typo.db")
    with pytest.raises(StoreError, match=r"there is no store '.*typo\.db'"):
        client.stats()
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_read_with_what_its_journal_still_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    sw.configure(export=[], home=home)
    with sw.run("waits"):
        pass
    monkeypatch.setenv("STEPWELL_HOME", str(home))
    with Client(home) as by_folder, Client() as by_environment:
        assert [step.name for step in by_folder.steps()] == ["waits"]
        assert list(by_environment.runs()) == list(by_folder.runs())


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("sqlite:", "names no file"),
        ("http://", "expected http://HOST"),
        ("https://key@host/a@b", "no @ behind the host"),
    ],
)
def test_a_target_that_is_none_is_named_without_its_key(target: str, words: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match=words) as caught:
            kind(target)
        assert "key@" not in str(caught.value)


def test_a_key_is_for_a_server() -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(UsageError, match="a key is for a server"):
            kind("steps.db", key="k")


def test_the_loop_goes_on_while_a_file_is_read(server: AppServer) -> None:
    """Each question of the file is asked on another thread than the loop's."""

    async def main() -> None:
        held = anyio.Event()
        async with AsyncClient(Held(server.store, held)) as client, anyio.create_task_group() as group:  # type: ignore[arg-type]
            group.start_soon(client.stats)
            with anyio.fail_after(30):
                await held.wait()

    anyio.run(main)


class Held:
    """A store whose answer waits until the loop has run something."""

    def __init__(self, store: Any, held: anyio.Event) -> None:
        self._store = store
        self._held = held

    def stats(self) -> Any:
        anyio.from_thread.run_sync(self._held.set)
        return self._store.stats()


# -- users, sums and deletion


def test_users_are_listed_with_their_sums(clients: list[Sync | Async]) -> None:
    (user,) = same(clients, "users", limit=1)
    assert (user.user, user.threads, user.steps, user.tokens) == ("ada", 1, 2, 10)
    assert (user.first_at, user.last_at) == (
        datetime(2025, 1, 1, tzinfo=UTC),
        datetime(2025, 1, 1, 0, 0, 0, 1, UTC),
    )


def test_steps_are_summed(clients: list[Sync | Async]) -> None:
    days = same(clients, "rollups", by=["type"], since=DAY_NS, model="gpt-4o")
    assert [(each.start, each.type, each.steps, each.total_tokens) for each in days] == [
        (datetime(2025, 1, 1, tzinfo=UTC), "llm", 1, 10)
    ]
    (all_time,) = same(clients, "rollups", every=None)
    assert (all_time.start, all_time.steps, all_time.errors) == (None, 13, 1)
    assert len(same(clients, "rollups", every="hour", by=["environment", "name"])) == 1
    (bare,) = same(clients, "rollups", every=None, percentiles=False)
    assert (bare.steps, bare.p50_ns) == (all_time.steps, None)
    assert same(clients, "rollups", by=["odd"])[0] == "UsageError"


def test_steps_are_searched_and_the_place_is_told(clients: list[Sync | Async]) -> None:
    (hit,) = same(clients, "search", "hello", type="llm")
    assert (hit.step.id, hit.snippet) == ("llm-1", "Hello")
    assert same(clients, "search", "absent") == []
    assert [hit.step.id for hit in same(clients, "search", "hello", query="type:llm -tag:absent")] == ["llm-1"]
    assert same(clients, "search", "hello", query="-type:llm") == []
    assert [run.id for run in same(clients, "runs", query="type:run user:ada")] == ["run-1"]
    assert same(clients, "search", "")[0] == "UsageError"


def test_a_thread_is_deleted_with_its_attachment(ask: Sync | Async, tmp_path: Path) -> None:
    assert ask("delete_thread", "t-1") == cl.Deleted(threads=1, steps=2, messages=0, blobs=1)
    for name, id in (("thread", "t-1"), ("step", "llm-1"), ("attachment", PICTURE_SHA256), ("delete_thread", "t-1")):
        with pytest.raises(NotFoundError):
            ask(name, id)
    assert not list((tmp_path / "home" / "blobs").glob("*/*"))
    assert ask("step", "failed").id == "failed"


def test_a_run_is_deleted(ask: Sync | Async) -> None:
    assert ask("delete_run", "a/b").steps == 1
    assert "a/b" not in ids(ask("steps"))
    with pytest.raises(NotFoundError, match="there is no step 'a/b'"):
        ask("delete_run", "a/b")


def test_an_attachment_that_another_step_names_stays(ask: Sync | Async) -> None:
    ask("add", [step("other", attachments=[{"id": "p", "sha256": PICTURE_SHA256}])])
    assert ask("delete_user", "ada").blobs == 0
    assert ask("attachment", PICTURE_SHA256) == PICTURE
    assert ask("users") == []
    with pytest.raises(NotFoundError):
        ask("delete_user", "ada")


# -- servers that refuse, fail, or are none


def keys_of(home: Path) -> dict[str, str]:
    ring = KeyRing(home)
    return {scope: ring.add(scope, [scope]) for scope in ("read", "ingest", "admin")}


def test_a_key_is_needed_and_never_told(
    tmp_path: Path, portal: BlockingPortal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    with AppServer(tmp_path / "home") as server:
        keys = keys_of(server.home)
        server.store.add([json.dumps(step("a", thread_id="t")).encode()])
        for kind in (Client, AsyncClient):
            for key, status in ((None, 401), ("sw_secret", 401), (keys["ingest"], 403)):
                with pytest.raises(ClientError) as caught:
                    once(kind(server.url, key=key), portal, "stats")
                assert caught.value.status == status
                assert str(caught.value).startswith(f"{server.url} answered {status}: ")
                assert (key or "sw_") not in str(caught.value)
            with pytest.raises(ClientError, match="403: the key 'read' has no scope 'admin'"):
                once(kind(server.url, key=keys["read"]), portal, "delete_thread", "t")
            with_key = server.url.replace("://", f"://{keys['read']}@")
            assert once(kind(with_key, key="sw_other"), portal, "stats").steps == 1
            assert keys["read"] not in repr(kind(with_key)) + repr(vars(kind(with_key)))
            with pytest.raises(UsageError, match="has a space or a character that no header can carry") as wrong:
                kind(server.url, key="se cret")
            assert "se cret" not in str(wrong.value)
        monkeypatch.setenv("STEPWELL_API_KEY", keys["admin"])
        assert once(Client(server.url), portal, "delete_thread", "t").steps == 1
    assert not [key for key in keys.values() if key in caplog.text]


def once(client: Client | AsyncClient, portal: BlockingPortal, name: str, *args: Any) -> Any:
    ask = asking(client, portal)
    try:
        return ask(name, *args)
    finally:
        ask.close()


def asking(client: Client | AsyncClient, portal: BlockingPortal) -> Sync | Async:
    return Sync(client) if isinstance(client, Client) else Async(client, portal)


DRIP = b"a byte now and then"


class Peer:
    """A server that says what it is told to, one answer a connection, and then hangs up."""

    def __init__(self, *answers: bytes | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(30)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.asked: list[bytes] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(answers,), name="peer")
        self._thread.start()

    def _serve(self, answers: tuple[bytes | None, ...]) -> None:
        for answer in answers:
            with suppress(OSError), self._socket.accept()[0] as connection:
                asked = b""
                while b"\r\n\r\n" not in asked and (piece := connection.recv(65536)):
                    asked += piece
                self.asked.append(asked)
                if answer is None:
                    self._done.wait(30)
                elif answer == DRIP:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                    while not self._done.wait(0.02):
                        connection.sendall(b" ")
                else:
                    connection.sendall(answer)

    def close(self) -> None:
        self._done.set()
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes who accepts
        self._thread.join(30)
        self._socket.close()


@contextmanager
def peer(*answers: bytes | None) -> Iterator[Peer]:
    peer = Peer(*answers)
    try:
        yield peer
    finally:
        peer.close()


def http_answer(status: str, body: bytes = b"", *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


STATS = json.dumps(
    dict.fromkeys(("steps", "threads", "scores", "bytes_on_disk", "schema_version"), 0)
    | {"by_type": {}, "by_status": {}, "oldest_ns": None, "newest_ns": None}
).encode()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (http_answer("200 OK", b"<html>"), None, "the answer to /v1/stats is not what a stepwell server says"),
        (
            http_answer("200 OK", b'{"steps": "many"}'),
            None,
            "the answer to /v1/stats is not what a stepwell server says",
        ),
        (http_answer("200 OK", b"[" * 100_000), None, "the answer to /v1/stats is not what a stepwell server says"),
        (
            http_answer("302 Found", b"", "Location: http://127.0.0.1:1/"),
            302,
            "answered 302: redirects are not followed",
        ),
        (http_answer("404 Not Found", b"<h1>nginx"), 404, "answered 404: Not Found"),
        (http_answer("799 Odd", b"{}"), 799, "answered 799: what no stepwell server does"),
        (http_answer("500 Oh", b'{"error":{"type":"x","message":"a\\u001b[31m\\nb"}}'), 500, "answered 500: a [31m b"),
        (http_answer("418 T", b"", "X-Request-Id: r-7"), 418, "answered 418"),
        (b"SSH-2.0-OpenSSH\r\n", None, "gave no answer: RemoteProtocolError"),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    portal: BlockingPortal, kind: Any, answer: bytes, status: int | None, words: str
) -> None:
    with peer(*[answer] * 4) as server:
        ask = asking(kind(server.url), portal)
        with pytest.raises(ClientError, match=re.escape(words)) as caught:
            ask("stats")
        ask.close()
    assert caught.value.status == status
    assert caught.value.request_id == ("r-7" if b"r-7" in answer else None)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_what_changes_nothing_is_asked_again_and_nothing_else(portal: BlockingPortal, kind: Any) -> None:
    busy = http_answer("503 Busy", b'{"error":{"type":"unavailable","message":"the store can\'t be used now"}}')
    with peer(busy, b"", http_answer("200 OK", STATS)) as server:
        ask = asking(kind(server.url), portal)
        assert ask("stats").steps == 0
        ask.close()
    assert [each.split(b" ")[:2] for each in server.asked] == [[b"GET", b"/v1/stats"]] * 3
    with peer(*[busy] * 5) as server:
        ask = asking(kind(server.url), portal)
        with pytest.raises(ClientError, match="answered 503: the store can't be used now"):
            ask("stats")
        with pytest.raises(ClientError, match="answered 503"):
            ask("feedback", "a", "positive")
        ask.close()
    assert [each.split(b" ")[0] for each in server.asked] == [b"GET"] * 4 + [b"POST"]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_slow_server_and_one_that_is_gone_are_errors(portal: BlockingPortal, kind: Any) -> None:
    with peer(None) as server:
        ask = asking(kind(server.url, timeout=0.2), portal)
        with pytest.raises(ClientError, match=r"did not answer within 0\.2 s"):
            ask("stats")
        ask.close()
    ask = asking(kind(server.url), portal)
    with pytest.raises(ClientError, match="gave no answer: ConnectError") as caught:
        ask("stats")
    assert caught.value.status is None
    ask.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_server_that_goes_on_sending_a_little_is_given_up(portal: BlockingPortal, kind: Any) -> None:
    busy = http_answer("503 Busy", b"{}", "Retry-After: 60")
    with peer(DRIP, busy, None) as server:
        ask = asking(kind(server.url, timeout=20, deadline=0.4), portal)
        began = time.monotonic()
        for _ in range(2):  # the second waits for longer than there is time, and then for an answer
            with pytest.raises(ClientError, match=r"did not answer in full within 0\.4 s"):
                ask("stats")
        assert time.monotonic() - began < 10
        ask.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_attachment_in_memory_is_checked_and_not_larger_than_it_may_be(portal: BlockingPortal, kind: Any) -> None:
    large = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1000000\r\n" + bytes(1 << 24) + b"\r\n"
    with peer(http_answer("200 OK", b"other"), large + (b"1000000\r\n" + bytes(1 << 24) + b"\r\n") * 17) as server:
        ask = asking(kind(server.url), portal)
        with pytest.raises(ClientError, match="what arrived is not the attachment"):
            ask("attachment", PICTURE_SHA256)
        with pytest.raises(ClientError, match="is longer than 268435456 bytes: download it"):
            ask("attachment", PICTURE_SHA256)
        ask.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_export_or_attachment_that_is_cut_short_is_an_error(
    portal: BlockingPortal, kind: Any, tmp_path: Path
) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"
    cut = http_answer("200 OK", b'{"kind":')
    with peer(head + b"{}\n", cut, http_answer("200 OK", b"other")) as server:
        ask = asking(kind(server.url), portal)
        with pytest.raises(ClientError, match="gave no answer: RemoteProtocolError"):
            ask("export")
        with pytest.raises(ClientError, match="the export ended within a line"):
            ask("export")
        with pytest.raises(ClientError, match="what arrived is not the attachment"):
            ask("download", PICTURE_SHA256, tmp_path / "file")
        ask.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("timeout", [0, -1, True, "1", 3601])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(UsageError, match="timeout must be a number of seconds up to 3600"):
        Client("http://127.0.0.1:1", timeout=timeout)
    with pytest.raises(UsageError, match="deadline must be a number of seconds up to 3600"):
        Client("http://127.0.0.1:1", deadline=timeout)
