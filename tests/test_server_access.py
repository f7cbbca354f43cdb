"""Who may do what: this machine without keys, others with them, each project apart; and nothing for strange pages."""

from __future__ import annotations

import http.client
import stat
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from served import NDJSON, AppServer, ids, lines, step

from stepwell.errors import StoreError, UsageError
from stepwell.server._keys import Failures, KeyRing
from stepwell.server._limits import Limits


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AppServer]:
    with AppServer(tmp_path / "home") as server:
        yield server


@pytest.fixture
def ring(server: AppServer) -> KeyRing:
    return KeyRing(server.home)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def raw(server: AppServer, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes]:
    """Send just these headers."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    told = answer.status, answer.read()
    connection.close()
    return told


# -- without keys


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:4777", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:4777"])
def test_without_keys_it_goes_by_names_of_this_machine(server: AppServer, host: str) -> None:
    assert raw(server, "GET", "/metrics", {"Host": host})[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:4777", "10.0.0.1", "[::2]", "127.0.0.1.nip.io", "", "localhost."]
)
def test_without_keys_a_name_that_was_made_to_point_here_gets_nothing(server: AppServer, host: str) -> None:
    for path in ("/metrics", "/healthz", "/openapi.json", "/nothing"):
        status, body = raw(server, "GET", path, {"Host": host})
        assert (status, b'"type":"forbidden"' in body) == (403, True)


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_strange_page_changes_nothing(server: AppServer, headers: dict[str, str]) -> None:
    answer = server.post(lines(step("a")), **headers)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "forbidden")
    assert ids(server.store) == []


def test_a_page_of_its_own_may(server: AppServer) -> None:
    assert server.post(lines(step("a")), Origin=server.url, Sec_Fetch_Site="same-origin").status_code == 200


def test_a_client_on_another_machine_needs_a_key_whatever_it_calls_the_host(tmp_path: Path) -> None:
    import asyncio

    from stepwell.server.app import create_app
    from stepwell.store import open_store

    store = open_store(f"sqlite:{tmp_path / 'steps.db'}")
    app = create_app(store, home=tmp_path)
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: object) -> None:
        assert isinstance(message, dict)
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/metrics", "raw_path": b"/metrics", "query_string": b""}
    address = {"headers": [(b"host", b"localhost")], "client": ("192.0.2.7", 5), "server": ("0.0.0.0", 1)}
    asyncio.run(app({**scope, **address, "scheme": "http", "root_path": "", "http_version": "1.1"}, receive, send))  # type: ignore[arg-type]
    app.state.ingest.close()
    store.close()
    assert sent[0]["status"] == 401


# -- with keys


def test_as_soon_as_there_is_a_key_every_request_needs_one(server: AppServer, ring: KeyRing) -> None:
    assert server.post(lines(step("a"))).status_code == 200
    key = ring.add("ci", ["ingest"])
    refused = server.post(lines(step("b")))
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert server.post(lines(step("b")), **bearer(key)).status_code == 200
    assert server.post(lines(step("c")), **bearer(key + "x")).status_code == 401
    assert server.post(lines(step("c")), Authorization=f"Basic {key}").status_code == 401
    ring.revoke("ci")
    ring.add("other", ["ingest"])
    assert server.post(lines(step("c")), **bearer(key)).status_code == 401
    assert ids(server.store) == ["a", "b"]


def test_health_needs_no_key_and_any_name(server: AppServer, ring: KeyRing) -> None:
    ring.add("ci", ["ingest"])
    for path in ("/healthz", "/readyz", "/v1/health/"):
        assert raw(server, "GET", path, {"Host": "stepwell.example"})[0] == 200
    for path in ("/metrics", "/openapi.json", "/nothing", "/v1/blobs/" + "0" * 64):
        assert raw(server, "GET", path, {"Host": "stepwell.example"})[0] == 401


BLOB = "/v1/blobs/" + sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/ingest", {"ingest", "admin"}),
        ("PUT", BLOB, {"ingest", "admin"}),
        ("POST", "/v1/blobs/missing", {"ingest", "admin"}),
        ("GET", BLOB, {"read", "admin"}),
        ("GET", "/metrics", {"admin"}),
    ],
)
def test_each_route_wants_its_scope(
    server: AppServer, ring: KeyRing, method: str, path: str, allowed: set[str]
) -> None:
    for scope in ("ingest", "read", "admin"):
        key = ring.add(f"k-{scope}", [scope])
        body = {"json": {"sha256": []}} if "missing" in path else {"content": b"x"} if method == "PUT" else {}
        headers = {**bearer(key), **(NDJSON if "ingest" in path else {})}
        answer = server.client.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
        assert (answer.status_code == 403) == (scope not in allowed), (scope, answer.text)


def test_every_route_is_behind_access(server: AppServer, ring: KeyRing) -> None:
    """Also those that are yet to be written: what the schema lists and is no health check answers 401 without a key."""
    paths = server.client.get("/openapi.json").json()["paths"]
    ring.add("ci", ["ingest"])
    open_ = {"/healthz", "/readyz", "/v1/health/"}
    asked = [(method, path) for path, methods in paths.items() if path not in open_ for method in methods]
    answers = {(method, path): server.client.request(method.upper(), path).status_code for method, path in asked}
    assert len(answers) >= 5
    assert set(answers.values()) == {401}


def test_a_project_never_sees_what_is_anothers(server: AppServer, ring: KeyRing) -> None:
    keys = {project: ring.add(f"k-{project}", ["admin"], project) for project in ("one", "two")}
    keys["own"] = ring.add("k-own", ["admin"])
    blob = sha256(b"secret").hexdigest()
    for name, key in keys.items():
        assert server.post(lines(step(f"of-{name}")), **bearer(key)).json()["accepted"] == 1
    assert server.client.put(f"/v1/blobs/{blob}", content=b"secret", headers=bearer(keys["one"])).status_code == 204
    seen = {name: server.client.get(f"/v1/blobs/{blob}", headers=bearer(key)).status_code for name, key in keys.items()}
    assert seen == {"one": 200, "two": 404, "own": 404}
    missing = server.client.post("/v1/blobs/missing", json={"sha256": [blob]}, headers=bearer(keys["two"]))
    assert missing.json() == {"missing": [blob]}
    places = server.app.state.places
    assert {name: ids(places.of(None if name == "own" else name).store) for name in keys} == {
        "one": ["of-one"],
        "two": ["of-two"],
        "own": ["of-own"],
    }
    assert (server.home / "projects" / "one" / "steps.db").is_file()


def test_wrong_keys_are_answered_less_after_ten_and_right_ones_pass(server: AppServer, ring: KeyRing) -> None:
    key = ring.add("ci", ["admin"])
    statuses = [server.client.get("/metrics", headers=bearer("wrong")).status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    assert 1 <= int(server.client.get("/metrics", headers=bearer("wrong")).headers["retry-after"]) <= 60
    assert server.client.get("/metrics", headers=bearer(key)).status_code == 200


def test_wrong_keys_are_forgotten_after_a_minute_and_counted_for_each_client() -> None:
    now = [100.0]
    failures = Failures(lambda: now[0])
    assert [failures.add("a") for _ in range(11)] == [0.0] * 10 + [60.0]
    assert failures.add("b") == 0.0
    now[0] += 59.0
    assert failures.add("a") == 1.0
    now[0] += 1.0
    assert failures.add("a") == 0.0


def test_a_body_for_any_other_route_is_small(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home", Limits(json_bytes=500)) as server:
        answer = server.client.post("/v1/blobs/missing", json={"sha256": ["0" * 64] * 20})
        assert (answer.status_code, answer.json()["error"]["type"]) == (413, "too_large")


# -- the file


def test_a_key_is_kept_as_its_hash_for_the_owner_alone(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    key = ring.add("ci", ["read"])
    assert len(key) == 46
    assert key.startswith("sw_")
    text = ring.path.read_text()
    assert key not in text
    assert sha256(key.encode()).hexdigest() in text
    assert stat.S_IMODE(ring.path.stat().st_mode) == 0o600
    found = ring.find(key)
    assert found is not None
    assert (found.name, found.scopes, found.project) == ("ci", ("read",), None)
    assert ring.find("") is None
    assert ring.find("\udcff") is None


def test_a_key_is_for_ingest_and_reading_unless_said_otherwise(tmp_path: Path) -> None:
    ring = KeyRing(tmp_path)
    ring.add("ci", [])
    assert ring.keys()[0].scopes == ("ingest", "read")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ci", ["read"]), "there is a key 'ci' already"),
        (("x", ["write"]), "there is no scope 'write'"),
        (("../x", ["read"]), "key name '../x'"),
        (("x", ["read"], ".."), "project '..'"),
        (("x", ["read"], "A"), "project 'A'"),
    ],
)
def test_what_is_no_key_is_refused(tmp_path: Path, arguments: tuple[str, list[str]], said: str) -> None:
    ring = KeyRing(tmp_path)
    ring.add("ci", ["read"])
    with pytest.raises(UsageError, match=said):
        ring.add(*arguments)
    assert [key.name for key in ring.keys()] == ["ci"]  # noqa: SIM118


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    threads = [threading.Thread(target=KeyRing(tmp_path).add, args=(f"k{n}", ["read"])) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(key.name for key in KeyRing(tmp_path).keys()) == [f"k{n}" for n in range(8)]  # noqa: SIM118
    assert sorted(path.name for path in tmp_path.iterdir()) == ["keys.json", "keys.lock"]


def test_a_file_of_keys_that_is_damaged_lets_nobody_in(server: AppServer, ring: KeyRing) -> None:
    key = ring.add("ci", ["admin"])
    assert server.client.get("/metrics", headers=bearer(key)).status_code == 200
    ring.path.write_text('{"version":1,"keys":[')
    answer = server.client.get("/metrics", headers=bearer(key))
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the store can't be used now")
    with pytest.raises(StoreError, match="holds no keys of stepwell"):
        KeyRing(server.home).keys()
