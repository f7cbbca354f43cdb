"""`POST /v1/ingest`: what is taken, what is refused and how, and that what was acknowledged is there."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import NDJSON, AppServer, ids, lines, step

import stepwell as sw
from stepwell.exporters import Batch
from stepwell.exporters.http import HttpExporter
from stepwell.server._body import is_deeper_than
from stepwell.server._limits import Limits
from stepwell.store import open_store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[AppServer]:
    with AppServer(tmp_path / "home") as server:
        yield server


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[AppServer]:
    """A server with little room."""
    limits = Limits(
        body_bytes=4000, lines=10, line_bytes=2000, depth=20, json_bytes=500, waiting_bytes=10_000, body_s=0.5
    )
    with AppServer(tmp_path / "home", limits) as server:
        yield server


# -- records


def test_every_line_is_accounted_for_and_taken_on_its_own(server: AppServer) -> None:
    body = lines(step("a"), b"{", b'{"kind":"step"}', step("b"), b'{"kind":"step","id":"c","name":7}')
    answer = server.post(body)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["accepted"], told["duplicates"]) == (2, 0)
    assert [refused["line"] for refused in told["rejected"]] == [1, 2, 4]
    assert [refused["id"] for refused in told["rejected"]] == [None, None, None]
    assert told["rejected"][2]["error"] == "not a record: Expected `str | null`, got `int` - at `$.name`"
    assert ids(server.store) == ["a", "b"]


def test_the_same_lines_again_are_duplicates(server: AppServer) -> None:
    body = lines(step("a"), step("b"))
    assert server.post(body).json() == {"accepted": 2, "duplicates": 0, "rejected": []}
    assert server.post(body).json() == {"accepted": 0, "duplicates": 2, "rejected": []}
    assert ids(server.store) == ["a", "b"]


def test_payloads_come_back_byte_by_byte(server: AppServer) -> None:
    server.post(b'{"kind":"step","id":"a","input":{"b" : 1.50, "a":"\\u00e9"}}')
    assert bytes(server.store.step("a").input) == b'{"b" : 1.50, "a":"\\u00e9"}'


def test_an_llm_step_without_messages_becomes_a_run(server: AppServer) -> None:
    server.post(b'{"kind":"step","id":"a","type":"llm","name":"x","status":"success"}')
    assert (server.store.step("a").type, server.store.step("a").downgraded_from) == ("run", "llm")


@pytest.mark.parametrize(
    ("encoding", "encode"),
    [
        ("gzip", gzip.compress),
        ("GZIP", lambda body: gzip.compress(body[:30]) + gzip.compress(body[30:])),
        ("zstd", zstandard.compress),
        ("zstd", lambda body: zstandard.compress(body[:30]) + zstandard.compress(body[30:])),
        ("zstd", lambda body: zstandard.ZstdCompressor(write_content_size=False).compress(body)),
        ("identity", bytes),
    ],
)
def test_bodies_may_be_compressed(server: AppServer, encoding: str, encode: object) -> None:
    body = lines(step("a", input="x" * 5000), step("b"))
    answer = server.post(encode(body), content_encoding=encoding)  # type: ignore[operator]
    assert answer.json() == {"accepted": 2, "duplicates": 0, "rejected": []}


def test_an_encoding_that_is_not_taken_is_answered_with_those_that_are(server: AppServer) -> None:
    answer = server.post(b"x", content_encoding="br")
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "zstd, gzip, deflate")
    assert answer.json()["error"]["type"] == "unsupported_media_type"


def test_only_lines_of_json_are_taken(server: AppServer) -> None:
    assert server.client.post("/v1/ingest", data={"a": "1"}).status_code == 415
    assert server.post(lines(step("a")), content_type="application/x-ndjson; charset=utf-8").status_code == 200


def test_an_empty_body_has_no_lines(server: AppServer) -> None:
    assert server.post(b"").json() == {"accepted": 0, "duplicates": 0, "rejected": []}


# -- what is broken or too much


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize("damage", [lambda body: body[:-9], lambda body: b"not it" + body, lambda body: body[:3]])
def test_a_damaged_body_stores_nothing(server: AppServer, encoding: str, damage: object) -> None:
    compress = {"gzip": gzip.compress, "zstd": zstandard.compress}[encoding]
    body = damage(compress(lines(step("a"), step("b", input="y" * 300))))  # type: ignore[operator]
    answer = server.post(body, content_encoding=encoding)
    assert answer.status_code == 400
    assert answer.json() == {"error": {"type": "bad_request", "message": f"the body is not whole or not {encoding}"}}
    assert ids(server.store) == []


BOMBS = {
    "gzip": gzip.compress(bytes(3_000_000), 9),
    "zstd": zstandard.compress(bytes(100_000_000))[:4000],
    "zstd of a size not told": zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000))[:4000],
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_stopped_at_the_limit(strict: AppServer, kind: str) -> None:
    answer = strict.post(BOMBS[kind], content_encoding=kind[:4])
    assert answer.status_code == 413
    assert answer.json()["error"]["message"] == "the body, decompressed, is longer than 4000 bytes"


def test_a_body_that_is_too_long_is_refused_with_and_without_its_length(strict: AppServer) -> None:
    body = lines(step("a", input="x" * 5000))
    announced, streamed = strict.post(body), strict.client.post("/v1/ingest", content=iter([body]), headers=NDJSON)
    for answer in (announced, streamed):
        assert answer.status_code == 413
        assert answer.json() == {"error": {"type": "too_large", "message": "the body is longer than 4000 bytes"}}


def test_the_answer_to_a_body_that_is_too_long_reaches_a_client_that_sends_all_of_it(server: AppServer) -> None:
    assert server.post(b"x" * 48_000_000).status_code == 413


def test_too_many_lines_and_a_line_that_is_too_long_are_refused_whole(strict: AppServer) -> None:
    assert strict.post(lines(*[step(str(n)) for n in range(11)])).json()["error"] == {
        "type": "too_large",
        "message": "there are more than 10 lines",
    }
    assert strict.post(lines(step("a"), step("b", input="x" * 2000))).json()["error"] == {
        "type": "too_large",
        "message": "a line is longer than 2000 bytes",
        "line": 1,
    }
    assert ids(strict.store) == []


def test_a_line_that_is_nested_too_deep_is_refused_alone(strict: AppServer) -> None:
    deep = b'{"kind":"step","id":"b","input":' + b"[" * 20 + b"]" * 20 + b"}"
    told = strict.post(lines(b"nonsense", deep, step("a"), step("c", input="[" * 100))).json()
    assert told["accepted"] == 2
    assert [(refused["line"], refused["error"]) for refused in told["rejected"]] == [
        (0, "not a record: JSON is malformed: invalid character (byte 4)"),
        (1, "not a record: it is nested deeper than 20"),
    ]


@given(
    value=st.recursive(
        st.text(alphabet='[]{}"\\a', max_size=6) | st.integers(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[}"\\', max_size=3), inner, max_size=3)
        ),
    ),
    limit=st.integers(0, 6),
)
def test_depth_is_counted_as_a_parser_would(value: object, limit: int) -> None:
    def depth(value: object) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    assert is_deeper_than(limit, json.dumps(value).encode()) == (depth(value) > limit)


def test_a_body_that_does_not_come_to_its_end_in_time_is_given_up(strict: AppServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", strict.port, timeout=30)
    connection.putrequest("POST", "/v1/ingest")
    for name, value in {**NDJSON, "Content-Length": "100"}.items():
        connection.putheader(name, value)
    connection.endheaders(b"x")
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["type"]) == (408, "timeout")
    connection.close()


def test_a_client_that_goes_away_leaves_nothing_behind(server: AppServer) -> None:
    body = lines(step("a"))
    with socket.create_connection(("127.0.0.1", server.port)) as gone:
        head = f"POST /v1/ingest HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 9}\r\n\r\n"
        gone.sendall(head.encode() + body)
    assert server.post(lines(step("b"))).json()["accepted"] == 1
    assert ids(server.store) == ["b"]
    until = time.monotonic() + 30
    while server.app.state.ingest._waiting_bytes:  # until the server has seen that the connection is gone
        assert time.monotonic() < until
        threading.Event().wait(0.01)


def test_more_than_there_is_room_for_is_to_be_sent_again(tmp_path: Path) -> None:
    limits = Limits(waiting_bytes=1000)
    with AppServer(tmp_path / "home", limits) as server:
        answer = server.post(lines(step("a", input="x" * 2000)))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["type"] == "unavailable"
        assert server.post(lines(step("a"))).status_code == 200


@given(
    body=st.one_of(
        st.binary(max_size=300),
        st.lists(st.sampled_from([step("a"), b"{}", b"\xff", b"[", b'{"kind":"step","id":"\xff"}', b"\r"])).map(
            b"\n".join
        ),
    ),
    encoding=st.sampled_from(["", "gzip", "zstd"]),
    cut=st.integers(0, 12),
)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_is_answered_in_one_of_two_shapes(
    server: AppServer, body: bytes, encoding: str, cut: int
) -> None:
    encode = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[encoding]
    sent = encode(body)
    answer = server.post(sent[: len(sent) - cut], content_encoding=encoding)
    told = answer.json()
    if answer.status_code == 200:
        count = len([*body[: len(body) - (0 if encoding else cut)].removesuffix(b"\n").split(b"\n")])
        assert told["accepted"] + told["duplicates"] + len(told["rejected"]) in (count, 0)
    else:
        assert (answer.status_code, set(told["error"])) == (400, {"type", "message"})


# -- the recorder's exporter


def test_a_program_records_and_the_server_holds_equal_records(server: AppServer, tmp_path: Path) -> None:
    photo = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 100
    sw.configure(home=tmp_path / "recorder", export=[server.url, f"sqlite:{tmp_path / 'local.db'}"])

    @sw.tool
    def search(query: str) -> list[str]:
        return [query.upper()]

    with sw.thread("t-1", name="Talk", user="ada"):
        sw.user_message("Hi", attachments=[sw.attach(photo, name="photo.png")])
        with sw.llm("answer", model="gpt-4o", messages=[{"role": "user", "content": "Hi"}]) as llm:
            search("wells")
            llm.output = "deep"
            llm.score("relevance", 0.9)
    assert sw.flush(30)
    sw.shutdown(30)
    local = open_store(f"sqlite:{tmp_path / 'local.db'}", read_only=True)
    try:
        expected = [*local.records()]
        assert [*server.store.records()] == expected
        assert len(expected) == 4
    finally:
        local.close()
    [attachment] = next(
        step.attachments
        for step in (server.store.step(row.id) for row in server.store.thread_steps("t-1"))
        if step.attachments
    )
    assert server.client.get(f"/v1/blobs/{attachment.sha256}").content == photo


@pytest.mark.parametrize("compression", ["zstd", "gzip", "none"])
def test_the_exporter_delivers_in_every_encoding(server: AppServer, compression: str) -> None:
    exporter = HttpExporter(server.url, compression=compression)  # type: ignore[arg-type]
    exporter.export(Batch([step(str(n), input="x" * 2000) for n in range(5)]))
    exporter.close()
    assert ids(server.store) == ["0", "1", "2", "3", "4"]


def test_a_record_that_is_too_large_arrives_as_a_stub(tmp_path: Path) -> None:
    with AppServer(tmp_path / "server", Limits(body_bytes=100_000)) as server:
        sw.configure(home=tmp_path / "recorder", export=server.url)
        with sw.step("large") as large:
            large.output = "x" * 200_000
        with sw.step("small") as small:
            small.output = "y"
        sw.flush(30)
        sw.shutdown(30)
        assert bytes(server.store.step(small.id).output) == b'"y"'
        assert bytes(server.store.step(large.id).output) == b'{"$stepwell":"too_large","size":200002}'


def test_many_clients_at_once_are_all_taken(server: AppServer) -> None:
    accepted: list[int] = []

    def send(name: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        with contextlib.closing(connection):
            for batch in range(5):
                body = lines(*[step(f"{name}-{batch}-{n}") for n in range(20)])
                connection.request("POST", "/v1/ingest", body, NDJSON)
                accepted.append(json.loads(connection.getresponse().read())["accepted"])

    threads = [threading.Thread(target=send, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert accepted == [20] * 40
    assert server.store.stats().steps == 800
