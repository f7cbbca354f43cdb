"""What the pages make of payloads of any shape: messages of all providers, media, broken JSON; and what can be run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import viewing
from msgspec import UNSET, Raw
from served import AppServer

from stepwell.model import Generation
from stepwell.server.pages._content import media_in, media_of, messages_of, part_of, read, without_base64
from stepwell.server.pages._entry import lines_of
from stepwell.server.pages._find import found_in
from stepwell.server.pages._request import snippet_of
from stepwell.server.pages._rows import family_of
from stepwell.store import open_store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AppServer]:
    with AppServer(tmp_path_factory.mktemp("content") / "home") as server:
        viewing.add(server.store, *viewing.talk(), *viewing.images(), viewing.a_run())
        yield server


def raw(value: Any) -> Raw:
    return Raw(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("message", "role", "text", "calls"),
    [
        ({"role": "user", "content": "hi"}, "user", ["hi"], []),
        ({"role": "user", "content": [{"type": "input_text", "text": "hi"}]}, "user", ["hi"], []),
        ({"role": "model", "parts": [{"text": "hi"}]}, "model", ["hi"], []),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}]}, "assistant", ["hm"], []),
        (
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {"n": 1}}]},
            "assistant",
            [],
            [("t", "look", {"n": 1})],
        ),
        (
            {"role": "model", "parts": [{"functionCall": {"name": "look", "args": {"n": 1}}}]},
            "model",
            [],
            [(None, "look", {"n": 1})],
        ),
        (
            {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
            "function_call",
            [],
            [("c", "look", {})],
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": "not json"}},
            "assistant",
            [],
            [(None, "f", "not json")],
        ),
        ("only text", "message", ["only text"], []),
    ],
)
def test_messages_of_every_provider_are_read(message: Any, role: str, text: list[str], calls: list[Any]) -> None:
    (found,) = messages_of(raw([message]))
    assert (found.role, [part.text for part in found.parts]) == (role, text)
    assert [(call.id, call.name, call.arguments) for call in found.calls] == calls


def test_a_result_names_the_call_that_it_answers() -> None:
    block = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "seen"}]}
    output = {"type": "function_call_output", "call_id": "c", "output": "seen"}
    assert [each.answers for each in messages_of(raw([block, output]))] == ["t", "c"]


def test_messages_that_are_none_are_one_part() -> None:
    assert [each.role for each in messages_of(Raw(b'{"a": 1}'))] == ["message"]
    assert messages_of(UNSET) == []
    assert read(Raw(b"{broken")) == "{broken"


def test_media_are_told_by_their_first_bytes() -> None:
    data = viewing.base64_of(viewing.png())
    for text in (data, f"data:image/png;base64,{data}", f"data:text/html;base64,{data}"):
        found = media_of(text)
        assert found is not None
        assert (found.kind, found.mime) == ("image", "image/png")
        assert media_in({"deep": [json.dumps({"in": text})]}, found.digest or "") == viewing.png()
    page = media_of(f"data:text/html;base64,{viewing.base64_of(b'<script>' * 20)}")
    assert page is not None
    assert (page.kind, page.mime) == ("file", "text/html")
    assert [media_of(each) for each in ("short", "A" * 100, "data:image/png;base64,???" + "x" * 90, "word " * 30)] == [
        None
    ] * 4
    assert media_in({"a": 1}, "0" * 32) is None


def test_a_blob_leads_to_its_bytes() -> None:
    digest = sha256(b"x").hexdigest()
    found = part_of({"$stepwell": "blob", "mime": "image/png", "size": 9, "sha256": digest})
    assert (found.kind, found.sha256, found.size) == ("image", digest, 9)
    assert part_of({"$stepwell": "blob", "mime": "image/svg+xml", "sha256": "../../x"}).sha256 is None


def test_base64_in_a_text_is_named_and_long_words_stay() -> None:
    run = viewing.base64_of(viewing.png())[:400]
    assert without_base64(f"see {run} here") == "see ⟨400 characters of base64⟩ here"
    assert without_base64("x" * 400) == "x" * 400


def test_values_nested_too_deep_are_said_to_be(server: AppServer) -> None:
    deep = "[" * 5000 + "]" * 5000
    frame = (
        f'{{"kind":"step","id":"abyss","type":"tool","name":"abyss","start_ns":5,"status":"success","output":{deep}}}'
    )
    server.store.add([frame.encode()])
    answer = server.client.get("/steps/abyss")
    assert answer.status_code in {200, 404}  # a store may refuse what nobody can read


def test_previews_are_one_line_of_what_is_read() -> None:
    store = open_store("sqlite::memory:")
    viewing.add(
        store,
        viewing.a_run(input={"question": "why\nnow?"}, output={"content": "because"}),
        viewing.a_step("said", "user_message", 1, 1, output={"content": "one\ntwo " + "x" * 900}),
        viewing.a_step("seen", "tool", 1, 2, input=[1, 2], output=viewing.base64_of(viewing.png())),
    )
    run, said, seen = (lines_of(store.step(id)) for id in ("run", "said", "seen"))
    assert (run.asked, run.said) == ("why now?", "because")
    assert (said.said[:7], said.cut) == ("one\ntwo", True)
    assert (seen.asked, seen.said) == ("[1,2]", "image/png")
    store.close()


def test_texts_are_found_in_keys_numbers_and_escaped_values_of_any_case() -> None:
    store = open_store("sqlite::memory:")
    output = {"Wörter": [1234, 'say "Größe"', None], "line\nbreak": True}
    frame = json.dumps(viewing.a_step("odd", "tool", 1, 2, output=output))
    viewing.add(store, viewing.a_run(), viewing.a_step("plain", "tool", 3, 4, output="GRÖSSE"))
    store.add([frame.encode()])
    run = family_of("run", store.tree("run"))
    found = {
        text: [row.step.id for row in found_in(store, run, text)] for text in ("größe", "1234", '"gr', "wörter", "e\nb")
    }
    assert found == {"größe": ["odd", "plain"], "1234": ["odd"], '"gr': ["odd"], "wörter": ["odd"], "e\nb": ["odd"]}
    store.close()


@pytest.mark.parametrize(
    ("generation", "curl", "python"),
    [
        (Generation(provider="anthropic", model="c", messages=raw([])), "anthropic.com/v1/messages", "'/v1/messages'"),
        (Generation(model="m", prompt=raw("once")), "openai.com/v1/completions", "'/completions'"),
        (Generation(provider_request=raw({"model": "m", "input": "x"})), "openai.com/v1/responses", "'/responses'"),
        (Generation(provider_request=Raw(b'{"input": 1,\n\r "b": 1.0}')), """-d '{"input":1,"b":1.0}'""", "'b': 1.0"),
        (
            Generation(model="m", messages=raw([]), settings=raw({"top_p": 1}), tools=raw([{"a": 1}])),
            '{"model":"m","messages":[],"top_p":1,"tools":[{"a":1}]}',
            "'tools': [{'a': 1}]",
        ),
    ],
)
def test_a_call_can_be_run_again(generation: Generation, curl: str, python: str) -> None:
    assert curl in (snippet_of(generation, "curl") or "")
    assert python in (snippet_of(generation, "python") or "")


def test_what_is_cut_says_so_and_a_tree_tells_messages_apart(server: AppServer) -> None:
    inside = {"root": "long", "trace": "long"}
    viewing.add(server.store, viewing.a_run("long", trace="long", input={"n": "x" * 300}, output="y" * 300))
    said = viewing.a_step("long-q", "user_message", 1, 1, "long", name="user_message", output="what <now>?", **inside)
    viewing.add(server.store, said)
    text = server.client.get("/runs/long?view=tree").text
    assert [len(cut) for cut in re.findall(r'<dd dir="auto">([xy]+…)</dd>', text)] == [240, 240]
    assert '<span class="line" dir="auto">what &lt;now&gt;?</span>' in text


def test_what_is_not_there_is_said_not_to_be(server: AppServer) -> None:
    missing = (
        "/steps/none",
        "/runs/none",
        "/media/00/talk",
        "/raw/messages/talk-llm-02?at=99",
        "/request/curl/talk",
        "/progress/x?after=0",
    )
    assert [server.client.get(address).status_code for address in missing] == [404] * 6
    assert server.client.get("/request/python/talk-llm-02").text.startswith("import httpx\nfrom openai import OpenAI")
    assert server.client.get("/static/0/none.js").status_code == 404
    assert server.client.get("/messages/talk-llm-12?first=3&last=999&fragment=true").text.count("<article") == 21
    assert server.client.post("/judge/talk", content=b"\xff\xfe").status_code == 422
    assert server.client.get("/runs/talk?view=graph").status_code == 422


def test_what_a_call_sent_is_drawn_against_its_context_window(server: AppServer) -> None:
    messages = [{"role": "system", "content": "x" * 30}, {"role": "user", "content": "y" * 10}]
    generation = viewing.a_call(
        messages, {"role": "assistant", "content": "z"}, usage={"input_tokens": 200}, context_window_limit=800
    )
    inside = {"root": "windowed", "trace": "windowed", "generation": generation}
    viewing.add(server.store, viewing.a_run("windowed", trace="windowed"))
    viewing.add(server.store, viewing.a_step("windowed-llm", "llm", 1, 2, "windowed", **inside))
    text = server.client.get("/findings/windowed").text
    assert 'x="0" y="0" width="187.5"' in text
    assert 'x="187.5" y="0" width="62.5"' in text
    assert "of 800" in text


def test_what_is_deleted_is_shown_no_more(server: AppServer) -> None:
    inside = {"root": "gone", "trace": "gone"}
    viewing.add(server.store, viewing.a_run("gone", trace="gone", thread_id="gone-1"))
    for number in range(2):
        viewing.add(
            server.store,
            viewing.a_step(f"gone-{number}", "tool", 1, 2, "gone", thread_id=f"gone-{number}", **inside),
        )
    for path in ("/runs/gone", "/runs/gone?view=tree"):  # the second is of the run that is kept
        assert "gone-0" in server.client.get(path).text
    server.store.delete_thread("gone-0")
    text = server.client.get("/runs/gone").text
    assert 'id="s-gone-1"' in text
    assert 'id="s-gone-0"' not in text
    server.store.delete_run("gone")
    assert server.client.get("/runs/gone").status_code == 404


def test_a_step_without_its_run_has_a_page(server: AppServer) -> None:
    viewing.add(server.store, viewing.a_step("lost", "tool", 1, 2, "nowhere", root="gone", trace="lost"))
    assert "lost" in server.client.get("/steps/lost").text
    assert server.client.get("/steps/talk-tool-01?fragment=true&run=lost").status_code == 200


class Provider(HTTPServer):
    """An endpoint that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.taken: list[tuple[str, str | None, bytes]] = []


class Taking(BaseHTTPRequestHandler):
    server: Provider

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        key = self.headers.get("Authorization") or self.headers.get("x-api-key")
        self.server.taken.append((self.path, key, body))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        pass


TEXT = "it's \"so\" $HOME `id` $(id) \\n \\ 100% !! 你好 \U0001f6eb\n\tsecond line'; echo\nREQUEST\n{!r}"
SENT = {
    "messages": [{"role": "user", "content": [{"type": "text", "text": TEXT}]}],
    "model": "m",
    "temperature": 0.1,
    "max_tokens": 7,
    "tools": [{"name": "look", "input_schema": {"type": "object", "properties": {"n": {"type": ["integer"]}}}}],
    "stream": True,
    "stop": None,
    "seed": 12345678901234567890,
    "top_k": 1e-7,  # which no client of OpenAI's takes as an argument
}


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize(
    ("provider", "path", "key", "more"),
    [
        ("openai", "/v1/chat/completions", "Bearer the key", 0),
        ("openai", "/v1/chat/completions", "Bearer the key", 200_000),  # more than an argument holds
        ("anthropic", "/v1/messages", "the key", 0),
    ],
)
def test_what_the_panel_gives_to_run_sends_the_recorded_bytes_again(
    server: AppServer, provider: str, path: str, key: str, more: int
) -> None:
    sent = json.dumps({**SENT, "user": "u" * more}, ensure_ascii=False, separators=(",", ":")).encode()
    id = f"again-{provider}-{more}"
    generation = {"type": "chat", "model": "m", "provider": provider, "messages": SENT["messages"]}
    frame = json.dumps({"kind": "step", "id": id, "type": "llm", "name": id, "generation": generation}).encode()
    server.store.add([frame[:-2] + b',"provider_request":' + sent + b"}}"])
    panel = server.client.get(f"/steps/{id}").text
    links = dict(re.findall(rf'href="(/request/(\w+)/{id})"', panel))
    assert sorted(links.values()) == ["curl", "python"]
    with Provider() as fake:
        base = f"http://127.0.0.1:{fake.server_port}"
        keys = {"OPENAI_API_KEY": "the key", "ANTHROPIC_API_KEY": "the key", "OPENAI_BASE_URL": f"{base}/v1"}
        for address, language in links.items():
            if (provider, language) == ("anthropic", "python"):
                continue  # its client is not there to run it with
            threading.Thread(target=fake.handle_request, name="provider").start()
            text = server.client.get(address).text
            for host in ("https://api.openai.com", "https://api.anthropic.com"):
                text = text.replace(host, base)
            command = ["sh", "-s"] if language == "curl" else [sys.executable, "-"]
            told = {"env": {**keys, "PATH": os.environ["PATH"]}, "input": text.encode(), "timeout": 60}
            ran = subprocess.run(command, capture_output=True, check=False, **told)  # type: ignore[call-overload]
            assert (ran.returncode, ran.stdout.strip()) == (0, b"{}"), ran.stderr
            assert fake.taken.pop() == (path, key, sent), language
