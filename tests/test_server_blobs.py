"""`/v1/blobs`: whole or not at all, and never anything that a browser would run."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from served import AppServer

from stepwell.server._limits import Limits


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("server") / "home", Limits(blob_bytes=5_000_000)) as server:
        yield server


def put(server: AppServer, data: bytes) -> str:
    name = sha256(data).hexdigest()
    assert server.client.put(f"/v1/blobs/{name}", content=data).status_code == 204
    return f"/v1/blobs/{name}"


def test_a_blob_is_asked_for_sent_and_had_again(server: AppServer) -> None:
    data = bytes(range(256)) * 10_000
    name = sha256(data).hexdigest()
    ask = {"sha256": [name, name, "0" * 64]}
    assert server.client.post("/v1/blobs/missing", json=ask).json() == {"missing": [name, "0" * 64]}
    assert server.client.put(f"/v1/blobs/{name}", content=iter([data[:700_000], data[700_000:]])).status_code == 204
    assert server.client.put(f"/v1/blobs/{name}", content=data).status_code == 204
    assert server.client.post("/v1/blobs/missing", json=ask).json() == {"missing": ["0" * 64]}
    answer = server.client.get(f"/v1/blobs/{name}")
    assert answer.content == data
    assert answer.headers["etag"] == f'"{name}"'
    assert (server.home / "blobs" / name[:2] / name).read_bytes() == data


def test_a_blob_that_is_not_what_its_name_says_is_not_kept(server: AppServer) -> None:
    name = sha256(b"one thing").hexdigest()
    answer = server.client.put(f"/v1/blobs/{name}", content=b"another")
    assert (answer.status_code, answer.json()["error"]["type"]) == (422, "invalid")
    assert server.client.get(f"/v1/blobs/{name}").status_code == 404
    assert not list(server.home.glob("blobs/.incoming-*"))


def test_a_blob_that_is_too_large_is_refused(server: AppServer) -> None:
    for content in (bytes(5_000_001), iter([bytes(5_000_001)])):
        answer = server.client.put("/v1/blobs/" + "0" * 64, content=content)
        assert answer.status_code == 413
        assert answer.json()["error"]["message"] == "the body is longer than 5000000 bytes"
    assert not list(server.home.glob("blobs/.incoming-*"))


@pytest.mark.parametrize("name", ["0" * 63, "0" * 65, "A" * 64, "..%2f..%2fkeys.json", "0" * 64 + "%0a"])
def test_what_is_no_hash_names_no_file(server: AppServer, name: str) -> None:
    for answer in (server.client.get(f"/v1/blobs/{name}"), server.client.put(f"/v1/blobs/{name}", content=b"x")):
        assert answer.status_code in (404, 405, 422)


@pytest.mark.parametrize(
    ("range", "status", "expected"),
    [
        ("bytes=0-3", 206, b"0123"),
        ("bytes=7-", 206, b"789"),
        ("bytes=-2", 206, b"89"),
        ("bytes=5-100", 206, b"56789"),
        ("bytes=-100", 206, b"0123456789"),
        ("bytes=3-1", 200, b"0123456789"),
        ("bytes=0-1,4-5", 200, b"0123456789"),
        ("lines=1-2", 200, b"0123456789"),
        ("nonsense", 200, b"0123456789"),
    ],
)
def test_one_range_is_answered_alone(server: AppServer, range: str, status: int, expected: bytes) -> None:
    answer = server.client.get(put(server, b"0123456789"), headers={"Range": range})
    assert (answer.status_code, answer.content) == (status, expected)


@pytest.mark.parametrize("range", ["bytes=10-", "bytes=99-100", "bytes=-0"])
def test_a_range_that_is_not_there_is_refused(server: AppServer, range: str) -> None:
    answer = server.client.get(put(server, b"0123456789"), headers={"Range": range})
    assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */10")
    assert answer.json()["error"]["type"] == "range_not_satisfiable"


@pytest.mark.parametrize(
    ("data", "type"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "image/png"),
        (b"\xff\xd8\xff\xe0rest", "image/jpeg"),
        (b"GIF89arest", "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "audio/wav"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "application/octet-stream"),
        (b"<!doctype html><script>alert(1)</script>", "application/octet-stream"),
        (b"%PDF-1.7", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_nothing_that_comes_back_is_active(server: AppServer, data: bytes, type: str) -> None:
    answer: httpx.Response = server.client.get(put(server, data))
    assert answer.headers["content-type"] == type
    assert answer.headers["content-disposition"].startswith("attachment; ")
    assert answer.headers["content-security-policy"] == "sandbox; default-src 'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.content == data


def test_a_disk_that_can_not_be_written_is_said_to_be_busy(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        (server.home / "blobs").write_text("in the way")
        answer = server.client.put("/v1/blobs/" + sha256(b"x").hexdigest(), content=b"x")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
