"""The threads API of the server, over a socket: pages, sums, scores, counts, and the schema that tells of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from served import AppServer

from stepwell.client import Client
from stepwell.model import Score
from stepwell.server import threads
from stepwell.store import StepRow, ThreadRow

DAY_NS = 1_735_689_600_000_000_000


class Served:
    def __init__(self, server: AppServer) -> None:
        self.store = server.store
        self.http = server.client

    def add(self, *records: dict[str, Any]) -> None:
        assert self.store.add([json.dumps(record).encode() for record in records]).rejected == ()

    def get(self, path: str, expected: int = 200, **query: Any) -> Any:
        answer = self.http.get(path, params=query)
        assert answer.status_code == expected, answer.text
        return answer.json()

    def walk(self, path: str, **query: Any) -> list[Any]:
        found: list[Any] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.get(path, **query, **cursor)
            found += page["items"]
            if page["next_cursor"] is None:
                return found
            cursor = {"cursor": page["next_cursor"]}


@contextmanager
def serving(folder: Path) -> Iterator[Served]:
    with AppServer(folder) as server:
        yield Served(server)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Serve three threads: t-1 of ada with 30 steps at the same time, t/2 of grace, and one known only by its step."""
    with serving(tmp_path_factory.mktemp("threads")) as served:
        served.add(
            {
                "kind": "thread",
                "id": "t-1",
                "name": "Readings",
                "tags": ["demo"],
                "metadata": {"a": [1.0]},
                "user": {"id": "u1", "identifier": "ada"},
                "created_ns": DAY_NS,
                "environment": "prod",
            },
            {"kind": "thread", "id": "t/2", "name": "Words", "user": {"identifier": "grace"}, "created_ns": DAY_NS + 5},
            *(step(number, thread_id="t-1") for number in range(30)),
            step(30, thread_id="t/2", start_ns=DAY_NS + 50, status="failed", error={"type": "KeyError"}),
            step(31, thread_id="only a step", start_ns=DAY_NS + 60, type="llm", generation=GENERATION, tags=["x"]),
        )
        yield served


GENERATION = {"model": "gpt-4o", "prompt": "Hi", "usage": {"input_tokens": 7, "output_tokens": 3}}


def step(number: int, **fields: Any) -> dict[str, Any]:
    base = {"kind": "step", "id": f"s{number}", "type": "tool", "name": "n", "start_ns": DAY_NS + 10}
    return {**base, "end_ns": DAY_NS + 100, "status": "success", **fields}


def ids(items: list[Any]) -> list[str]:
    return [item["id"] for item in items]


def test_threads_are_listed_by_their_latest_activity(served: Served) -> None:
    assert ids(served.walk("/v1/threads", limit=1)) == ["only a step", "t/2", "t-1"]
    assert ids(served.walk("/v1/threads", limit=2, order="asc")) == ["t-1", "t/2", "only a step"]
    assert served.get("/v1/threads", limit=1, order="asc")["items"] == [
        {
            "id": "t-1",
            "name": "Readings",
            "user": "ada",
            "tags": ["demo"],
            "environment": "prod",
            "created_ns": DAY_NS,
            "first_step_ns": DAY_NS + 10,
            "last_step_ns": DAY_NS + 10,
            "steps": 30,
        }
    ]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"user": "ada"}, ["t-1"]),
        ({"user": "u1"}, ["t-1"]),
        ({"name": "Words"}, ["t/2"]),
        ({"tag": ["demo"]}, ["t-1"]),
        ({"tag": ["demo", "other"]}, []),
        ({"environment": "prod"}, ["t-1"]),
        ({"since_ns": DAY_NS + 50}, ["only a step", "t/2"]),
        ({"until_ns": DAY_NS + 50}, ["t-1"]),
    ],
)
def test_threads_are_filtered(served: Served, query: dict[str, Any], expected: list[str]) -> None:
    assert ids(served.walk("/v1/threads", **query)) == expected


def test_a_thread_is_told_with_the_sums_of_its_steps(served: Served) -> None:
    assert served.get("/v1/threads/t-1") == {
        "id": "t-1",
        "name": "Readings",
        "user": {"id": "u1", "identifier": "ada"},
        "tags": ["demo"],
        "metadata": {"a": [1.0]},
        "environment": "prod",
        "created_ns": DAY_NS,
        "first_step_ns": DAY_NS + 10,
        "last_step_ns": DAY_NS + 10,
        "steps": 30,
        "errors": 0,
        "tokens": 0,
    }
    assert served.get("/v1/threads/t%2F2")["errors"] == 1
    assert served.get("/v1/threads/only%20a%20step")["tokens"] == 10


def test_the_steps_of_a_thread_are_paged_also_among_equal_times(served: Served) -> None:
    assert ids(served.walk("/v1/threads/t-1/steps", limit=7)) == [f"s{number}" for number in range(30)]
    assert ids(served.walk("/v1/threads/t-1/steps", limit=7, order="desc"))[:2] == ["s29", "s28"]
    assert ids(served.walk("/v1/threads/t%2F2/steps")) == ["s30"]
    assert served.walk("/v1/threads/none/steps") == []


def test_an_id_that_ends_like_a_route_is_told_from_it_by_its_encoded_slash(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.add(step(1, thread_id="t-1/steps"), step(2, thread_id="t-1"))
        assert served.get("/v1/threads/t-1%2Fsteps")["id"] == "t-1/steps"
        assert ids(served.walk("/v1/threads/t-1%2Fsteps/steps")) == ["s1"]
        assert ids(served.walk("/v1/threads/t-1/steps/steps")) == ["s1"]
        assert ids(served.walk("/v1/threads/t-1/steps")) == ["s2"]
        with Client(str(served.http.base_url)) as client:
            assert client.thread("t-1/steps").id == "t-1/steps"
            assert [row.id for row in client.thread_steps("t-1/steps")] == ["s1"]


def test_the_steps_of_a_thread_are_filtered(served: Served) -> None:
    path = "/v1/threads/only a step/steps"
    assert ids(served.walk(path, type=["llm", "run"], status="success", tag=["x"])) == ["s31"]
    assert served.walk(path, type="tool") == served.walk(path, status="failed") == served.walk(path, tag="y") == []


@pytest.mark.parametrize(
    ("path", "query", "status", "words"),
    [
        ("/v1/threads/none", {}, 404, "there is no thread 'none'"),
        ("/v1/threads", {"limit": 0}, 422, "see fields"),
        ("/v1/threads", {"limit": 1001}, 422, "see fields"),
        ("/v1/threads", {"cursor": "mine"}, 422, "is not one that a page gave"),
        ("/v1/threads", {"order": "up"}, 422, "see fields"),
        ("/v1/scores", {"limit": 0}, 422, "see fields"),
        ("/v1/scores", {"cursor": "mine"}, 422, "is not one that a page gave"),
        ("/v1/scores", {"type": "DOG"}, 422, "see fields"),
        ("/v1/scores", {"odd": 1}, 422, "see fields"),
    ],
)
def test_errors_have_the_servers_one_shape(
    served: Served, path: str, query: dict[str, Any], status: int, words: str
) -> None:
    body = served.get(path, status, **query)
    assert list(body) == ["error"]
    assert words in body["error"]["message"]


def test_a_score_is_added_and_listed_and_sent_again_is_one(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.add(step(1))
        score = {"id": "x", "step_id": "s1", "name": "quality", "value": 0.5, "label": "fair", "tags": ["t"]}
        for _ in range(2):
            answer = served.http.post("/v1/scores", json=score)
            assert answer.status_code == 201
            assert {**answer.json(), "created_ns": 0} == {**score, "type": "HUMAN", "created_ns": 0}
        page = served.get("/v1/scores", step_id="s1")
        assert [{**item, "created_ns": 0} for item in page["items"]] == [{**score, "type": "HUMAN", "created_ns": 0}]
        assert page["next_cursor"] is None
        assert (
            len(served.http.post("/v1/scores", json={"step_id": "later", "name": "q", "label": "l"}).json()["id"]) == 36
        )
        assert served.get("/v1/stats") == {
            "steps": 1,
            "threads": 0,
            "scores": 2,
            "by_type": {"tool": 1},
            "by_status": {"success": 1},
            "oldest_ns": DAY_NS + 10,
            "newest_ns": DAY_NS + 10,
            "schema_version": served.store.stats().schema_version,
            "bytes_on_disk": served.store.stats().bytes_on_disk,
        }


@pytest.mark.parametrize(
    "score",
    [
        b'{"step_id": "s", "name": "q"}',
        b'{"step_id": "s", "name": "", "value": 1}',
        b'{"step_id": "s", "name": "q", "value": 1, "odd": 1}',
        b'{"step_id": "s", "name": "q", "value": NaN}',
        b'{"step_id": "s", "name": "q", "value": 1, "type": "DOG"}',
        b'{"step_id": "s", "name": "q", "label": "\\ud800"}',
        b'{"step_id": "\\ud800", "name": "q", "label": "l"}',
        b'{"step_id": "s", "name": "q", "label": "l", "tags": ["\\udfff"]}',
        b"[]",
        b"{",
    ],
)
def test_a_score_that_says_nothing_or_what_it_may_not_is_refused(served: Served, score: bytes) -> None:
    answer = served.http.post("/v1/scores", content=score, headers={"Content-Type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (422, ["error"])


def test_the_schema_names_every_field_of_the_rows(served: Served) -> None:
    schemas = served.get("/openapi.json")["components"]["schemas"]
    for name, struct in (("Step", StepRow), ("Thread", ThreadRow), ("Score", Score)):
        assert list(schemas[name]["properties"]) == [field.name for field in structs.fields(struct)]
        assert schemas[name]["required"] == ["id"]
    assert schemas["Step"]["properties"]["type"]["anyOf"][0]["enum"][:3] == ["run", "tool", "llm"]


def test_answers_are_what_the_schema_says(served: Served) -> None:
    for path, model in [
        ("/v1/threads", threads.ThreadPage),
        ("/v1/threads/t-1", threads.ThreadDetail),
        ("/v1/threads/t-1/steps", threads.StepPage),
        ("/v1/stats", threads.Stats),
    ]:
        answer = served.http.get(path)
        found = model.model_validate_json(answer.content)
        assert found.model_dump(mode="json", exclude_unset=True) == answer.json(), path


def test_a_query_is_the_one_of_the_viewer_and_names_the_character_that_is_wrong(served: Served) -> None:
    assert ids(served.get("/v1/records/steps", q="type:llm,tool -thread:t-1", type="tool")["items"]) == ["s30"]
    assert ids(served.get("/v1/records/runs", q="is:top -thread:t-1", tag="x")["items"]) == ["s31"]
    assert [hit["step"]["id"] for hit in served.get("/v1/search", q="Hi model:gpt-4o")["items"]] == ["s31"]
    assert [hit["step"]["id"] for hit in served.get("/v1/search", q="model:gpt-4o", text="Hi")["items"]] == ["s31"]
    for path in ("/v1/records/steps", "/v1/records/runs", "/v1/search"):
        error = served.get(path, 422, q="type:llm cost:>x")["error"]
        assert error == {"type": "invalid", "message": "expected a number, such as 0.8 (at character 16)"}
    assert ids(served.get("/v1/threads", q="user:ada")["items"]) == ids(served.get("/v1/threads", user="ada")["items"])
    assert ids(served.get("/v1/threads", q="thread:t-1", user="nobody")["items"]) == []
    for wrong, begins, character in (
        ("user:ada type:llm", "threads are found by name, user, tag, env, thread, since and until; ", 10),
        ("since:soon", "expected a time ago, such as 30m, 2h or 7d, ", 7),
    ):
        error = served.get("/v1/threads", 422, q=wrong)["error"]
        assert error["message"].startswith(begins)
        assert error["message"].endswith(f"(at character {character})")
    assert served.get("/v1/search", 422)["error"]["fields"][0]["message"] == "Value error, a search needs text, or q"
    assert served.get("/v1/records/steps", 422, q="model:a", model="b")["error"]["message"] == (
        "model is one thing in the query and another beside it"
    )
