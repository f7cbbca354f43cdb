"""The exporter to a server: what goes over the wire, and what it makes of every answer."""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from hashlib import sha256
from pathlib import Path

import pytest
import trustme
import unruly
from unruly import Exchange, UnrulyProxy, UnrulyServer, status

import stepwell as sw
from stepwell import _config
from stepwell.blobs import BlobStore
from stepwell.errors import ExportError, RejectedError, UsageError
from stepwell.exporters import Batch, Exporter, UnopenedExporter, _http_client, open_exporter
from stepwell.exporters.http import Compression, HttpExporter
from stepwell.testing import ExporterContract

SECRET = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("SSL_CERT_"):
            monkeypatch.delenv(name)
    yield
    sw.shutdown(1)
    for thread in threading.enumerate():  # one that shutdown gave up on at its deadline is about to end
        if thread.name.startswith("stepwell"):
            thread.join(30)


@pytest.fixture
def server() -> Iterator[UnrulyServer]:
    with UnrulyServer() as server:
        yield server


@pytest.fixture
def exporter(server: UnrulyServer, tmp_path: Path) -> Iterator[HttpExporter]:
    exporter = HttpExporter.from_url(server.url, tmp_path / "home")
    yield exporter
    exporter.close()


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have less patience, for tests of the deadlines."""
    monkeypatch.setattr(_http_client, "WAIT_S", 0.2)
    monkeypatch.setattr(_http_client, "REQUEST_S", 0.4)


def step(name: str, **fields: object) -> bytes:
    return json.dumps({"kind": "step", "id": name, "type": "tool", "name": name, **fields}).encode()


class TestContract(ExporterContract):
    """The conformance suite, over the wire."""

    idempotent = True

    @pytest.fixture(autouse=True)
    def _servers(self) -> Iterator[None]:
        with UnrulyServer() as self.server:
            yield

    def make_exporter(self) -> Exporter:
        return HttpExporter(self.server.url)

    def make_broken_exporter(self) -> Exporter:
        self.server.close()
        return HttpExporter(self.server.url)

    def delivered(self, exporter: Exporter) -> Sequence[bytes]:
        return [json.loads(line)["id"].encode() for line in self.server.arrived]


# -- the request


def test_frames_are_sent_as_lines_as_they_were_recorded(server: UnrulyServer, exporter: HttpExporter) -> None:
    frames = [b'{"kind":"step","id":"a",  "input":1.0}', '{"id":"b","name":"\u2028é"}'.encode()]
    exporter.export(Batch(frames))
    [request] = server.requests
    assert (request.method, request.path) == ("POST", "/v1/ingest")
    assert request.body == frames[0] + b"\n" + frames[1] + b"\n"
    assert request.headers["content-type"] == "application/x-ndjson"
    assert request.headers["user-agent"] == "stepwell-python/0.1.0"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"
    assert "authorization" not in request.headers
    assert "content-encoding" not in request.headers


def test_a_record_that_is_laid_out_over_lines_is_one_line(server: UnrulyServer, exporter: HttpExporter) -> None:
    exporter.export(Batch([b'{"id":"a",\n "output": {\n}}', b'{"id":"b"}']))
    assert server.arrived == [b'{"id":"a",  "output": { }}', b'{"id":"b"}']


def test_one_connection_takes_all_batches(server: UnrulyServer, exporter: HttpExporter) -> None:
    for number in range(5):
        exporter.export(Batch([step(f"{number}")]))
    assert [request.connection for request in server.requests] == [1] * 5
    exporter.close()
    exporter.export(Batch([step("again")]))
    assert server.requests[-1].connection == 2


def test_a_connection_that_the_server_has_closed_is_made_anew(server: UnrulyServer, exporter: HttpExporter) -> None:
    def accept_and_close(exchange: Exchange) -> None:
        unruly.accept(exchange)
        exchange.hang_up()

    server.behaviour = accept_and_close
    exporter.export(Batch([step("a")]))
    server.close()
    server.behaviour = unruly.accept
    server.open()
    exporter.export(Batch([step("b")]))
    assert list(server.records) == ["a", "b"]


def test_the_path_of_the_url_is_where_the_server_is(server: UnrulyServer, tmp_path: Path) -> None:
    server.base = "/team/a"
    exporter = HttpExporter(server.url + "/")
    exporter.export(Batch([step("a")]))
    assert server.requests[0].path == "/team/a/v1/ingest"
    assert exporter.key == f"http://127.0.0.1:{server.port}/team/a"
    exporter.close()


@pytest.mark.parametrize("place", ["KEY@", ":KEY@", "user:KEY@", "variable", "argument"])
def test_the_key_is_sent_as_a_bearer_token(
    server: UnrulyServer, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.key = "k%y/1"
    url = server.url
    if place.endswith("@"):
        monkeypatch.setenv("STEPWELL_API_KEY", "another")
        url = url.replace("//", f"//{place.replace('KEY', 'k%25y%2F1')}")
    elif place == "variable":
        monkeypatch.setenv("STEPWELL_API_KEY", "k%y/1\n")
    exporter = HttpExporter(url, api_key="k%y/1") if place == "argument" else HttpExporter.from_url(url, tmp_path)
    monkeypatch.delenv("STEPWELL_API_KEY", raising=False)
    exporter.export(Batch([step("a")]))
    assert server.requests[0].headers["authorization"] == "Bearer k%y/1"
    assert exporter.key == server.url
    exporter.close()


# -- the key stays where it belongs


def echo(exchange: Exchange) -> None:
    key = exchange.take().headers["authorization"]
    exchange.send(418, f"you sent {key}".encode(), Location=f"http://{SECRET}@elsewhere/?{key}")


def echo_in_a_redirect(exchange: Exchange) -> None:
    key = exchange.take().headers["authorization"]
    exchange.send(302, Location=f"http://{SECRET}@elsewhere/?{key}")


def echo_in_a_refusal(exchange: Exchange) -> None:
    exchange.send(400, f"bad {exchange.take().headers['authorization']}".encode())


def echo_by_line(exchange: Exchange) -> None:
    key = exchange.take().headers["authorization"]
    told = {"accepted": 0, "duplicates": 0, "rejected": [{"line": 0, "id": "", "error": f"bad {key}"}]}
    exchange.send(200, json.dumps(told).encode())


@pytest.mark.parametrize(
    "behaviour", [echo, echo_in_a_redirect, echo_in_a_refusal, echo_by_line, status(401), unruly.hang_up]
)
def test_no_name_log_line_statistic_or_dead_letter_tells_the_key(
    server: UnrulyServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, behaviour: unruly.Behaviour
) -> None:
    caplog.set_level(logging.DEBUG)
    server.behaviour = behaviour
    url = server.url.replace("//", f"//{SECRET}@")
    sw.configure(export=url, home=tmp_path / "home")
    with sw.run("a"):
        pass
    server.wait_for(server.posts)
    sw.flush(0.2)
    ours = [record.getMessage() for record in caplog.records if "receive_response" not in record.getMessage()]
    told = [
        str(sw.stats()),
        repr(_config._state.exporters),
        *ours,
    ]  # what the server says is logged, at DEBUG, by httpcore
    assert not sw.shutdown(0.2) or behaviour in (echo_in_a_refusal, echo_by_line)
    told += [path.read_text(errors="replace") for path in (tmp_path / "home").rglob("*") if path.is_file()]
    told += [path.name for path in (tmp_path / "home").rglob("*")]
    assert server.url in told[0]
    assert "stepwell" in {record.name for record in caplog.records}
    assert [text for text in told if SECRET in text] == []
    assert server.posts()[0].headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "url",
    [
        f"http://{SECRET}@host:port",
        f"https://{SECRET}@",
        f"https://{SECRET}@host?x",
        f"https://{SECRET}/x@host",
        f"https://{SECRET}?x@host",
        f"https://{SECRET} x@host",
        f"https://[{SECRET}@host",
        f"https://{SECRET}%0A@host",
        f"nothing://{SECRET}@host",
    ],
)
def test_no_error_about_a_url_tells_the_key_in_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UsageError) as caught:
        open_exporter(url, tmp_path)
    assert SECRET not in str(caught.value)
    with pytest.raises(UsageError) as caught:
        sw.configure(export=[url, 5], home=tmp_path)  # type: ignore[list-item]
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("STEPWELL_EXPORT", url)
    monkeypatch.setenv("STEPWELL_HOME", str(tmp_path / "home"))
    with sw.run("a"):
        pass
    assert not sw.flush(0.3)
    assert [type(each) for each in _config._state.exporters or []] == [UnopenedExporter]
    assert SECRET not in str(sw.stats()) + caplog.text
    assert not sw.shutdown(0.1)
    assert [path for path in tmp_path.rglob("*") if SECRET in path.name] == []


# -- URLs


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://host", "http://host"),
        ("https://HOST:443/", "https://host"),
        ("http://host:80", "http://host"),
        ("https://host:80/a/b/", "https://host:80/a/b"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("https://bücher.example", "https://xn--bcher-kva.example"),
    ],
)
def test_the_name_of_a_destination_is_its_url_and_opens_it_again(url: str, key: str) -> None:
    assert HttpExporter(url).key == key
    assert HttpExporter(key).key == key
    assert repr(HttpExporter(url)) == f"HttpExporter('{key}')"


@pytest.mark.parametrize(
    ("url", "wrong"),
    [
        ("http:", "expected http://HOST or https://HOST"),
        ("http://", "expected http://HOST or https://HOST"),
        ("https:///path", "expected http://HOST or https://HOST"),
        ("http:host", "expected http://HOST or https://HOST"),
        ("http://host:port", "is not a URL: Port could not be cast"),
        ("http://host:70000", "is not a URL: Port out of range"),
        ("http://[::1", "is not a URL: Invalid IPv6 URL"),
        ("http://host/?a=1", "it may have no query, no fragment"),
        ("http://host#a", "it may have no query, no fragment"),
        ("http://host/a b", "it has characters that no URL has"),
        ("http://host/é", "it has characters that no URL has"),
        ("http://" + "x" * 64, "a host's name that is too long"),
        ("http://k%20y@host", "the API key for http://host has a space or a character that no header can carry"),
    ],
)
def test_what_is_no_url_of_a_server_is_a_usage_error_that_says_why(url: str, wrong: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_exporter(url, None)
    assert wrong in str(caught.value)


def test_without_what_it_stands_on_it_says_what_is_missing(
    server: UnrulyServer, exporter: HttpExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpcore", None)
    with pytest.raises(UsageError, match="export='https://host' needs the package httpcore: pip install httpcore"):
        HttpExporter("https://host")
    monkeypatch.setitem(sys.modules, "stepwell.exporters._http_client", None)
    with pytest.raises(ExportError, match=r"import of stepwell.exporters._http_client halted"):
        exporter.export(Batch([step("a")]))


def test_nothing_of_it_is_imported_before_there_is_something_to_send(tmp_path: Path) -> None:
    program = """if True:
        import sys
        import stepwell as sw
        with sw.run("a"):
            pass
        assert sw.flush(30)
        sw.configure(export=f"https://host.invalid", home=None)
        assert not {"httpcore", "httpx", "ssl", "h11", "certifi", "zstandard"} & sys.modules.keys()
        sw.shutdown()
    """
    subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=tmp_path, check=True, timeout=60)


# -- answers


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        (status(401), "wants a key (401 Unauthorized): set STEPWELL_API_KEY, or put it in the URL"),
        (status(403), "wants a key (403 Forbidden)"),
        (status(404), "answered 404 Not Found: no stepwell server there?"),
        (status(405), "answered 405 Method Not Allowed: no stepwell server there?"),
        (status(301, Location="https://example.com/"), "points to https://example.com/: it is not followed"),
        (status(304), "answered 304 Not Modified and points to nowhere: it is not followed"),
        (status(408), "answered 408 Request Timeout"),
        (status(415), "answered 415 Unsupported Media Type"),
        (status(418), "answered 418"),
        (status(500), "answered 500 Internal Server Error"),
        (status(503, b"{}"), "answered 503 Service Unavailable"),
        (status(599), "answered 599"),
        (status(204), "answered 204 No Content, but not as a stepwell server does"),
        (unruly.captive_portal, "answered 200 OK, but not as a stepwell server does"),
        (unruly.answer(b""), "answered 200 OK, but not"),
        (unruly.answer(b"\xff\xfe"), "answered 200 OK, but not"),
        (unruly.answer(b"null"), "answered 200 OK, but not"),
        (unruly.answer(b"[" * 100_000), "answered 200 OK, but not"),
        (unruly.answer(b'{"accepted":1}'), "answered 200 OK, but not"),
        (unruly.answer(b'{"accepted":1,"duplicates":0,"rejected":[]}'), "answered 200 OK, but not"),
        (unruly.answer(b'{"accepted":3,"duplicates":0,"rejected":[]}'), "answered 200 OK, but not"),
        (
            unruly.answer(b'{"accepted":1,"duplicates":0,"rejected":[{"line":2,"id":"","error":""}]}'),
            "answered 200 OK, but not",
        ),
        (
            unruly.answer(b'{"accepted":1,"duplicates":0,"rejected":[{"line":-1,"id":"","error":""}]}'),
            "answered 200 OK, but not",
        ),
        (unruly.endless, "its answer is longer than 4194304 bytes"),
        (unruly.hang_up, "can't be reached: RemoteProtocolError: Server disconnected without sending a response"),
        (unruly.hang_up_in_the_middle, "can't be reached: RemoteProtocolError: peer closed connection"),
        (unruly.reset_in_the_middle, "can't be reached: ReadError: [Errno 104] Connection reset by peer"),
        (unruly.take_and_hang_up, "can't be reached"),
    ],
)
def test_no_answer_but_the_right_one_means_delivered(
    server: UnrulyServer, exporter: HttpExporter, behaviour: unruly.Behaviour, said: str
) -> None:
    server.script = [behaviour]
    with pytest.raises(ExportError) as caught:
        exporter.export(Batch([step("a"), step("b")]))
    assert not isinstance(caught.value, RejectedError)
    assert str(caught.value).startswith(exporter.key)
    assert said in str(caught.value)
    exporter.export(Batch([step("a"), step("b")]))
    assert sorted(server.records) == ["a", "b"]


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("behaviour", [unruly.never, unruly.deaf, unruly.drip, unruly.drip_body])
def test_a_request_ends_by_its_deadline_whatever_the_server_drips(
    server: UnrulyServer, exporter: HttpExporter, behaviour: unruly.Behaviour
) -> None:
    server.script = [behaviour]
    batch = Batch([step("a", output="x" * (8_000_000 if behaviour is unruly.deaf else 10))])
    # A body of 8 MB may take two minutes as a whole, but a server that takes nothing at all is given up on before.
    began = time.monotonic()
    with pytest.raises(ExportError, match=r"can't be reached: (Read|Write)(Timeout|Error)"):
        exporter.export(batch)
    assert time.monotonic() - began < 15
    exporter.export(batch)
    assert list(server.records) == ["a"]


@pytest.mark.parametrize("key", ["", SECRET])
def test_a_key_that_is_refused_is_told_from_one_that_is_missing(server: UnrulyServer, key: str) -> None:
    server.key = "right"
    exporter = HttpExporter(server.url, api_key=key)
    expected = f"{server.url} {'refused the' if key else 'wants a'} key (401 Unauthorized): "
    with pytest.raises(ExportError) as caught:
        exporter.export(Batch([step("a")]))
    assert str(caught.value) == expected + "set STEPWELL_API_KEY, or put it in the URL"
    exporter.close()


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("2", 2),
        ("0.5", 0.5),
        ("86400", 300),
        ("inf", 300),
        ("0", None),
        ("-1", None),
        ("nan", None),
        ("soon", None),
        ("", None),
        ("Tue, 99 Foo 2024 99:99:99 GMT", None),
        (formatdate(0, usegmt=True), None),
        (formatdate(4_000_000_000, usegmt=True), 300),
    ],
)
def test_the_pause_a_server_asks_for_is_passed_on(
    server: UnrulyServer, exporter: HttpExporter, header: str, seconds: float | None
) -> None:
    server.behaviour = status(429, Retry_After=header)
    with pytest.raises(ExportError) as caught:
        exporter.export(Batch([step("a")]))
    assert caught.value.retry_after_s == seconds


def test_a_pause_until_a_date_is_so_many_seconds(server: UnrulyServer, exporter: HttpExporter) -> None:
    server.behaviour = status(503, Retry_After=formatdate(time.time() + 100, usegmt=True))
    with pytest.raises(ExportError) as caught:
        exporter.export(Batch([step("a")]))
    assert caught.value.retry_after_s is not None
    assert 60 < caught.value.retry_after_s <= 100


def test_records_refused_by_name_are_named_with_the_servers_reason(
    server: UnrulyServer, exporter: HttpExporter
) -> None:
    server.refuse = b"bad"
    with pytest.raises(RejectedError, match="refused 2 of 4 records") as caught:
        exporter.export(Batch([step("a"), step("bad1"), b"{}", step("b")]))
    assert caught.value.rejected == {1: "refused by name", 2: "not a record: 'id'"}
    assert list(server.records) == ["a", "b"]


@pytest.mark.parametrize("code", [400, 422])
def test_a_batch_refused_line_by_line_with_an_error_status_is_believed_too(
    server: UnrulyServer, exporter: HttpExporter, code: int
) -> None:
    told = {"accepted": 0, "duplicates": 1, "rejected": [{"line": 0, "id": "a", "error": "too old"}]}
    server.behaviour = status(code, json.dumps(told).encode())
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([step("a"), step("b")]))
    assert caught.value.rejected == {0: "too old"}


@pytest.mark.parametrize("code", [400, 422])
def test_a_batch_refused_without_a_word_on_which_is_to_be_split(
    server: UnrulyServer, exporter: HttpExporter, code: int
) -> None:
    server.behaviour = status(code, b"<p>  broken\n record \x1b[31m</p>" + b"x" * 1000)
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([step("a"), step("b")]))
    assert caught.value.rejected == {}
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([step("a")]))
    assert caught.value.rejected[0].startswith(f"{code} ")
    assert "<p> broken record [31m</p>xxx" in caught.value.rejected[0]
    assert len(caught.value.rejected[0]) < 200


# -- too large


@pytest.mark.parametrize("limit", [unruly.at_most, unruly.at_most_and_unread])
def test_a_batch_that_is_too_large_is_to_be_split_and_teaches_the_limit(
    server: UnrulyServer, exporter: HttpExporter, limit: type[unruly.at_most]
) -> None:
    server.behaviour = limit(100_000)
    batch = Batch([step(f"{number}", output="x" * 10_000) for number in range(12)])
    with pytest.raises(RejectedError, match="refused 12 records as too large") as caught:
        exporter.export(batch)
    assert caught.value.rejected == {}
    assert len(server.posts()) == 1
    with pytest.raises(RejectedError, match=r"takes less than \d+ bytes at once"):
        exporter.export(batch)
    assert len(server.posts()) == 1
    exporter.export(Batch(batch.frames[:6]))
    exporter.export(Batch(batch.frames[6:]))
    assert len(server.records) == 12


def test_a_server_that_finds_a_small_body_too_large_does_not_make_all_batches_small(
    server: UnrulyServer, exporter: HttpExporter
) -> None:
    server.script = [status(413), status(413)]
    with pytest.raises(RejectedError):
        exporter.export(Batch([step("a")]))
    exporter.export(Batch([step("b"), step("c")]))
    assert list(server.records) == ["b", "c"]


BIG = "x" * 200_000
LARGE_STEP = {
    "kind": "step",
    "id": "large",
    "trace_id": "0" * 32,
    "parent_id": "above",
    "thread_id": "t",
    "type": "llm",
    "name": "answer",
    "start_ns": 1,
    "end_ns": 2,
    "status": "failed",
    "error": {"type": "ValueError", "message": BIG, "traceback": BIG},
    "input": {"question": BIG},
    "output": "short",
    "generation": {"model": "m", "messages": [BIG], "settings": {"temperature": 0}, "usage": {"input_tokens": 5}},
    "metadata": {"page": BIG},
    "tags": ["a"] * 200,
    "attachments": [{"id": "1", "url": "data:" + BIG}, {"id": "2", "url": "https://example.com/x.png"}],
    "child_count": 3,
}


def test_a_single_record_that_is_too_large_is_replaced_by_a_stub(server: UnrulyServer, exporter: HttpExporter) -> None:
    server.behaviour = unruly.at_most(100_000)
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([json.dumps(LARGE_STEP, separators=(",", ":")).encode()]))
    [reason] = caught.value.rejected.values()
    assert reason.startswith("413 ")
    assert reason.endswith("; a stub of it was delivered")
    assert json.loads(server.arrived[0]) == {
        **LARGE_STEP,
        "error": {"type": "ValueError", "message": "x" * 1024, "traceback": "x" * 1024},
        "input": {"$stepwell": "too_large", "size": 200_015},
        "generation": {
            "model": "m",
            "messages": {"$stepwell": "too_large", "size": 200_004},
            "settings": {"temperature": 0},
            "usage": {"input_tokens": 5},
        },
        "metadata": {"$stepwell": "too_large", "size": 200_011},
        "tags": ["a"] * 100,
        "attachments": [
            {"id": "1", "metadata": {"$stepwell": "too_large", "size": 200_005}},
            {"id": "2", "url": "https://example.com/x.png"},
        ],
    }


def test_a_thread_that_is_too_large_is_replaced_by_a_stub(server: UnrulyServer, exporter: HttpExporter) -> None:
    server.behaviour = unruly.at_most(100_000)
    thread = {"kind": "thread", "id": "t", "user": {"id": "u", "metadata": {"a": BIG}}, "metadata": {"b": BIG}}
    with pytest.raises(RejectedError, match="a stub of it was delivered"):
        exporter.export(Batch([json.dumps(thread).encode()]))
    stub = json.loads(server.arrived[0])
    assert (stub["id"], stub["user"]["id"], stub["metadata"]["$stepwell"]) == ("t", "u", "too_large")


@pytest.mark.parametrize(
    "record",
    [
        step("large", tags=["x" * 200_000]),
        b'{"kind":"nonsense","id":"large","x":"%b"}' % BIG.encode(),
        json.dumps({"kind": "score", "id": "s", "comment": BIG}).encode(),
    ],
)
def test_a_record_too_large_even_as_a_stub_is_refused(
    server: UnrulyServer, exporter: HttpExporter, record: bytes
) -> None:
    server.behaviour = unruly.at_most(100_000)
    with pytest.raises(RejectedError) as caught:
        exporter.export(Batch([record]))
    [reason] = caught.value.rejected.values()
    assert reason.startswith("413 ")
    assert "stub" not in reason
    assert server.records == {}


def test_a_stub_that_is_refused_is_not_said_to_be_delivered(server: UnrulyServer, exporter: HttpExporter) -> None:
    for stub_answer in (status(400), status(413)):
        server.script = [status(413), stub_answer]
        with pytest.raises(RejectedError) as caught:
            exporter.export(Batch([json.dumps(LARGE_STEP).encode()]))
        assert "stub" not in caught.value.rejected[0]


def test_a_stub_that_could_not_be_sent_is_sent_again_with_the_record(
    server: UnrulyServer, exporter: HttpExporter
) -> None:
    server.script = [status(413), status(503), status(413)]
    batch = Batch([json.dumps(LARGE_STEP).encode()])
    with pytest.raises(ExportError) as caught:
        exporter.export(batch)
    assert not isinstance(caught.value, RejectedError)
    with pytest.raises(RejectedError, match="a stub of it was delivered"):
        exporter.export(batch)


# -- compression


def test_nothing_is_compressed_on_the_way_to_this_machine(server: UnrulyServer) -> None:
    for host in ("127.0.0.1", "localhost"):
        exporter = HttpExporter(server.url.replace("127.0.0.1", host))
        exporter.export(Batch([step("a", output="x" * 10_000)]))
        assert "content-encoding" not in server.requests[-1].headers
        exporter.close()
    assert HttpExporter("http://[::1]")._encodings == [""]
    assert HttpExporter("https://example.com")._encodings == ["zstd", "gzip", ""]


@pytest.mark.parametrize(
    ("refused", "compression", "used"),
    [
        ((), "zstd", "zstd"),
        (("zstd",), "zstd", "gzip"),
        (("zstd", "gzip"), "zstd", None),
        ((), "gzip", "gzip"),
        (("gzip",), "gzip", None),
        ((), "none", None),
    ],
)
def test_a_body_is_sent_in_the_best_encoding_that_the_server_takes(
    server: UnrulyServer, refused: tuple[str, ...], compression: Compression, used: str | None
) -> None:
    server.behaviour = unruly.not_encoded(*refused)
    exporter = HttpExporter(server.url, compression=compression)
    batch = [step("a", output="x" * 10_000)]
    exporter.export(Batch(batch))
    assert len(server.requests) == len(refused) + 1
    exporter.export(Batch(batch))
    assert len(server.requests) == len(refused) + 2
    assert server.requests[-1].headers.get("content-encoding") == used
    assert server.arrived == batch
    assert used is None or len(server.requests[-1].body) < 300
    exporter.close()


def test_a_small_body_is_not_compressed(server: UnrulyServer) -> None:
    exporter = HttpExporter(server.url, compression="zstd")
    exporter.export(Batch([step("a")]))
    assert "content-encoding" not in server.requests[0].headers
    exporter.close()


def test_without_zstandard_it_is_gzip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    assert HttpExporter("https://example.com")._encodings == ["gzip", ""]


def test_histories_that_are_sent_again_with_each_turn_shrink_to_a_twentieth() -> None:
    history: list[str] = []
    frames: list[bytes] = []
    for turn in range(60):
        history.append(" ".join(sha256(f"{turn} {word}".encode()).hexdigest()[:6] for word in range(100)))
        frames.append(step(f"{turn}", generation={"messages": history}))
    whole = b"\n".join(frames)
    with UnrulyServer() as server:
        exporter = HttpExporter(server.url, compression="zstd")
        exporter.export(Batch(frames))
        exporter.close()
        assert server.arrived == frames
        assert len(server.requests[0].body) < len(whole) / 20
    assert len(zlib.compress(whole, 1)) > len(whole) / 5


# -- attachments


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "home" / "blobs")


def with_blob(name: str, *hashes: str) -> bytes:
    attachments = [{"id": f"{name}{at}", "sha256": sha256} for at, sha256 in enumerate(hashes)]
    return json.dumps({"kind": "step", "id": name, "attachments": attachments}, separators=(",", ":")).encode()


def paths(server: UnrulyServer) -> list[str]:
    return [f"{request.method} {request.path}".replace("/v1/blobs/", "") for request in server.requests]


def test_a_file_arrives_before_the_record_that_names_it_and_once(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore
) -> None:
    content = os.urandom(1_500_000)
    name, known = blobs.put(content), blobs.put(b"known")
    server.blobs[known] = b"known"
    exporter.export(Batch([with_blob("a", name, known), with_blob("b", name)]))
    exporter.export(Batch([with_blob("c", name, known)]))
    assert server.blobs == {name: content, known: b"known"}
    assert paths(server) == ["POST missing", f"PUT {name}", "POST /v1/ingest", "POST /v1/ingest"]
    assert json.loads(server.requests[0].body) == {"sha256": [name, known]}
    assert server.requests[1].headers["content-type"] == "application/octet-stream"


def test_a_thousand_hashes_are_asked_for_at_once_at_most(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore
) -> None:
    names = [blobs.put(b"%d" % number) for number in range(1001)]
    server.blobs = dict.fromkeys(names, b"")
    exporter.export(Batch([with_blob("a", *names)]))
    assert [len(json.loads(request.body)["sha256"]) for request in server.requests[:2]] == [1000, 1]
    assert paths(server)[2:] == ["POST /v1/ingest"]


def test_a_hash_that_names_nothing_here_is_not_asked_for(server: UnrulyServer, exporter: HttpExporter) -> None:
    name = "a" * 64
    exporter.export(Batch([with_blob("a", name), step("b", output=f'"sha256":"{name}"')]))
    assert paths(server) == ["POST /v1/ingest"]


def test_an_exporter_without_a_home_sends_no_files(server: UnrulyServer, blobs: BlobStore) -> None:
    exporter = HttpExporter.from_url(server.url, None)
    exporter.export(Batch([with_blob("a", blobs.put(b"x"))]))
    assert paths(server) == ["POST /v1/ingest"]
    exporter.close()


@pytest.mark.parametrize("code", [400, 404, 413, 415, 501])
def test_a_file_that_is_refused_for_good_holds_up_no_record_and_is_logged_once(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [unruly.accept, status(code), status(code)]
    first, second = blobs.put(b"first"), blobs.put(b"second")
    exporter.export(Batch([with_blob("a", first, second)]))
    exporter.export(Batch([with_blob("b", first, second)]))
    assert list(server.records) == ["a", "b"]
    assert paths(server) == ["POST missing", f"PUT {first}", f"PUT {second}", "POST /v1/ingest", "POST /v1/ingest"]
    told = [record.getMessage() for record in caplog.records if record.name == "stepwell"]
    assert told == [f"stepwell's server refused an attachment of 5 bytes with {code}; the record is sent without it"]


@pytest.mark.parametrize("code", [404, 501])
def test_a_server_that_takes_no_files_gets_the_records(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, code: int, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [status(code)]
    exporter.export(Batch([with_blob("a", blobs.put(b"x"))]))
    assert list(server.records) == ["a"]
    assert "takes no attachments" in caplog.text


@pytest.mark.parametrize("behaviour", [status(503, Retry_After="7"), status(401), unruly.hang_up, status(302)])
@pytest.mark.parametrize("place", [0, 1])
def test_a_file_that_can_arrive_later_holds_the_record_back(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, behaviour: unruly.Behaviour, place: int
) -> None:
    server.script = [*[unruly.accept] * place, behaviour]
    name = blobs.put(b"x")
    with pytest.raises(ExportError):
        exporter.export(Batch([with_blob("a", name)]))
    assert server.records == {}
    exporter.export(Batch([with_blob("a", name)]))
    assert (list(server.records), list(server.blobs)) == (["a"], [name])


def test_an_answer_about_files_that_makes_no_sense_is_no_answer(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore
) -> None:
    for nonsense in (b"", b"[]", b'{"missing":5}'):
        server.script = [unruly.answer(nonsense)]
        with pytest.raises(ExportError, match="does not say which attachments it lacks"):
            exporter.export(Batch([with_blob("a", blobs.put(b"x"))]))
    assert server.records == {}


def test_a_file_that_goes_or_is_cut_while_it_is_sent_holds_up_no_record(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, caplog: pytest.LogCaptureFixture
) -> None:
    gone, cut = blobs.put(b"gone"), blobs.put(b"x" * 2_000_000)

    def spoil(exchange: Exchange) -> None:
        blobs.path(gone).unlink()
        os.truncate(blobs.path(cut), 1_000_000)
        unruly.accept(exchange)

    server.script = [spoil]
    exporter.export(Batch([with_blob("a", gone)]))
    assert list(server.records) == ["a"]
    assert "does not get an attachment, which can't be read" in caplog.text
    size = 64_000_000  # sparse, and more than the sockets hold: else all of it may be on its way before it is cut

    def cut_it(exchange: Exchange) -> None:
        os.truncate(blobs.path(cut), 10)
        exchange.take()

    os.truncate(blobs.path(cut), size)
    server.script = [unruly.accept, cut_it]
    exporter.export(Batch([with_blob("b", cut)]))
    assert list(server.records) == ["a", "b"]


def test_what_was_attached_in_a_program_is_on_the_server_with_its_record(server: UnrulyServer, tmp_path: Path) -> None:
    sw.configure(export=server.url, home=tmp_path / "home")
    with sw.tool("paint") as painting:
        painting.attach(b"\x89PNG", name="a.png", mime="image/png")
    assert sw.flush(20)
    [record] = [json.loads(line) for line in server.arrived if b"attachments" in line]
    assert server.blobs[record["attachments"][0]["sha256"]] == b"\x89PNG"


def test_the_hashes_that_are_remembered_are_bounded(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepwell.exporters._http_blobs.MAX_REMEMBERED", 2)
    first, *others = [blobs.put(b"%d" % number) for number in range(3)]
    exporter.export(Batch([with_blob("a", first, *others)]))
    exporter.export(Batch([with_blob("b", first)]))
    assert paths(server)[-2:] == ["POST missing", "POST /v1/ingest"]
    assert paths(server).count(f"PUT {first}") == 1


def test_an_answer_about_a_file_is_relied_on_for_minutes_only(
    server: UnrulyServer, exporter: HttpExporter, blobs: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    sha256 = blobs.put(b"old")
    exporter.export(Batch([with_blob("a", sha256)]))
    monkeypatch.setattr("stepwell.exporters._http_blobs.SETTLED_S", 0.0)
    server.blobs.clear()  # a server removes what no record of its names any more
    exporter.export(Batch([with_blob("b", sha256)]))
    assert server.blobs == {sha256: b"old"}


# -- proxies and authorities


def test_a_request_goes_through_the_proxy_of_the_environment(
    server: UnrulyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.base = "/base"
    with UnrulyProxy(server) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//me:p%40ss@"))
        monkeypatch.setenv("NO_PROXY", "direct.invalid")
        exporter = HttpExporter("http://collector.invalid/base", api_key=SECRET)
        exporter.export(Batch([step("a")]))
        exporter.export(Batch([step("b")]))
        direct = HttpExporter("http://direct.invalid")
        with pytest.raises(ExportError, match=r"http://direct.invalid can't be reached: ConnectError"):
            direct.export(Batch([step("c")]))
        exporter.close()
        direct.close()
        assert [request.path for request in proxy.requests] == ["http://collector.invalid/base/v1/ingest"] * 2
        assert proxy.requests[0].headers["proxy-authorization"] == "Basic bWU6cEBzcw=="
    assert list(server.records) == ["a", "b"]
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"


def test_this_machine_is_not_reached_through_a_proxy(server: UnrulyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid")
    exporter = HttpExporter(server.url)
    exporter.export(Batch([step("a")]))
    assert list(server.records) == ["a"]
    exporter.close()


@pytest.mark.parametrize("proxy", ["http://h:port", "ftp://h", "socks5://127.0.0.1:1", "http://"])
def test_a_proxy_that_is_none_holds_the_records_back(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    exporter = HttpExporter("http://collector.invalid")
    with pytest.raises(ExportError, match=r"http://collector.invalid can't be reached"):
        exporter.export(Batch([step("a")]))
    exporter.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def secure(authority: trustme.CA) -> Iterator[UnrulyServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "collector.invalid").configure_cert(context)
    with UnrulyServer(tls=context) as server:
        yield server


def test_an_authority_of_ones_own_is_trusted_where_the_environment_names_it(
    secure: UnrulyServer, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = HttpExporter(secure.url)
    with pytest.raises(ExportError, match=r"CERTIFICATE_VERIFY_FAILED.*\(an authority of your own: SSL_CERT_FILE\)"):
        exporter.export(Batch([step("a")]))
    exporter.close()
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    exporter.export(Batch([step("a")]))
    exporter.export(Batch([step("b")]))
    assert list(secure.records) == ["a", "b"]
    exporter.close()


def test_a_secure_server_is_reached_through_a_tunnel_and_the_key_stays_in_it(
    secure: UnrulyServer, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority.cert_pem.write_to_path(tmp_path / "authority.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    with UnrulyProxy(secure) as proxy:
        monkeypatch.setenv("https_proxy", proxy.url)
        exporter = HttpExporter("https://collector.invalid", api_key=SECRET)
        exporter.export(Batch([step("a", output="x" * 3_000_000)]))
        exporter.close()
        assert [(request.method, request.path) for request in proxy.requests] == [("CONNECT", "collector.invalid:443")]
        assert SECRET not in str(proxy.requests)
    assert secure.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert list(secure.records) == ["a"]


def test_a_proxy_that_refuses_to_connect_holds_the_records_back(
    server: UnrulyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.behaviour = status(407)
    monkeypatch.setenv("HTTPS_PROXY", server.url)
    exporter = HttpExporter("https://collector.invalid")
    with pytest.raises(ExportError, match="can't be reached: ProxyError: 407"):
        exporter.export(Batch([step("a")]))
    exporter.close()


# -- processes and threads


def test_a_forked_child_makes_a_connection_of_its_own(server: UnrulyServer, exporter: HttpExporter) -> None:
    exporter.export(Batch([step("parent1")]))
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            exporter.export(Batch([step("child")]))
            exporter.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    exporter.export(Batch([step("parent2")]))
    assert [json.loads(request.body)["id"] for request in server.requests] == ["parent1", "child", "parent2"]
    assert [request.connection for request in server.requests] == [1, 2, 1]


def test_a_forked_program_ships_over_a_connection_for_each_process(server: UnrulyServer, tmp_path: Path) -> None:
    sw.configure(export=server.url, home=tmp_path / "home")
    with sw.run("parent"):
        pass
    assert sw.flush(20)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with sw.run("child"):
                pass
            code = 0 if sw.shutdown(20) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with sw.run("parent"):
        pass
    assert sw.flush(20)
    assert sorted(server.names) == ["child", "parent", "parent"]
    by_connection: dict[int, set[str]] = {}
    for request in server.requests:
        names = {json.loads(line)["name"] for line in request.lines}
        by_connection.setdefault(request.connection, set()).update(names)
    assert all(len(names) == 1 for names in by_connection.values())


def test_a_second_thread_waits_until_the_first_is_done(server: UnrulyServer, exporter: HttpExporter) -> None:
    """A pipeline may give up on its thread while that is in a request, and the next one have the same exporter."""
    gate = threading.Event()

    def wait(exchange: Exchange) -> None:
        exchange.wait(gate)
        unruly.accept(exchange)

    server.script = [wait]
    first = threading.Thread(target=exporter.export, args=(Batch([step("a")]),))
    first.start()
    server.wait_for(lambda: server.requests)
    second = threading.Thread(target=exporter.export, args=(Batch([step("b")]),))
    second.start()
    gate.set()
    first.join(30)
    second.join(30)
    assert list(server.records) == ["a", "b"]
