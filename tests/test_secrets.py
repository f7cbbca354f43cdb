"""Whatever way a secret takes into the recorder, no part of it reaches the disk, an exporter or the log."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanContext, Status, StatusCode

import stepwell as sw
from stepwell._recorder import RECORDER
from stepwell.exporters.memory import MemoryExporter
from stepwell.model import encode_record
from stepwell.testing import capture


class Secret(NamedTuple):
    text: str
    part: str  # what is secret of it
    rule: str


def secret(rule: str, before: str, part: str, after: str = "") -> Secret:
    return Secret(before + part + after, part, rule)


SHAPES = [
    secret("openai", "sk-proj-", "Qw8xT3pLz0Vb5nKd7RmY2cJf"),
    secret("anthropic", "sk-ant-api03-", "Hs4kW9dXq1Zt6bGv3NcM8pRy"),
    secret("aws", "AKIA", "J7QX2MZ9T4KD5WB1"),
    secret(
        "private_key", "-----BEGIN RSA PRIVATE KEY-----\n", "MIIEowIBAAKCAQEAx7Ft", "\n-----END RSA PRIVATE KEY-----"
    ),
    secret("jwt", "eyJhbGciOiJIUzI1NiJ9.", "eyJzdWIiOiI5NzMxIn0.Vd7sK2xLq9Bf4TzR"),
    secret("bearer", "Bearer ", "uK5vJ8wN2bX7cM4zL1qP"),
    secret("github", "ghp_", "Rt6yU3iO9pA2sD5fG8hJ1kL4zX7cV0bN3mQw"),
    secret("slack", "xoxb-", "730194826351-Gh5jK8lP2oI"),
    secret("google", "AIza", "SyD4fG7hJ0kL3zX6cV9bN2mQ5wE8rT1yU4i"),
    secret("stripe", "sk_live_", "51Hx8KqL2vN9bM4cZ7wT"),
    secret("huggingface", "hf_", "oPqRsTuVwXyZaBcDeFgHiJkLmNoPqRsTuV"),
    secret("url_credentials", "postgres://", "ada:Wm3vXk8qLz5T", "@db.example/tea"),
]
OWN = "CARD-4929-1837-5561"
CARD = secret("pattern_1", "CARD-", "4929-1837-5561")
NAMED = "Vq7-trumpet-Lx2"


def hide_card(data: bytes) -> bytes:
    return data.replace(OWN.encode(), b"[redacted:hide_card:19]")


RULES: dict[str, tuple[list[Any], list[Secret]]] = {
    "shapes": ([], SHAPES),
    "pattern": ([re.compile(r"CARD-[\d-]{14}")], [CARD]),
    "callable": ([hide_card], [CARD._replace(rule="hide_card")]),
}

ENTRIES: list[Callable[[str, Path], object]] = []


def entry(plant: Callable[[str, Path], object]) -> Callable[[str, Path], object]:
    ENTRIES.append(plant)
    return plant


@dataclass
class Note:
    text: str


class Odd:
    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return f"Odd({self.text})"

    def __iter__(self) -> Iterator[str]:
        raise ValueError(self.text)

    keys = values = items = __iter__


@entry
def arguments_and_results(text: str, _: Path) -> None:
    @sw.tool
    def ask(question: str, options: Any) -> Any:
        return {"answer": [question]}

    ask(text, options=[{"deep": (text, 1)}])


@entry
def large_payloads(text: str, _: Path) -> None:
    history = [{"role": "user", "content": f"{number} " + "tea and well - " * 20} for number in range(80)]
    for _again in range(2):  # texts known from before are not looked at again
        with sw.llm("answer", model="m", messages=[*history, {"role": "user", "content": text}]) as step:
            step.output = {"text": "word " * 1000 + text}


@entry
def fields_set_by_hand(text: str, _: Path) -> None:
    with sw.tool("x", input=text, metadata={"a": text}, tags=[text]) as step:
        step.output = [text]
        step.metadata["b"] = {text: 1, "c": {text}}
        step.tags.append(text)


@entry
def names(text: str, _: Path) -> None:
    with sw.tool(text) as step:
        step.update_name(f"renamed {text}")
    with sw.run("x") as other:
        other.name = text
    with sw.run("x") as wrong:
        wrong.name = {text: 1}  # type: ignore[assignment]


@entry
def a_type_that_is_none(text: str, _: Path) -> None:
    with sw.run(text) as step:
        step.type = text


@entry
def objects(text: str, _: Path) -> None:
    with sw.tool("x") as step:
        step.input = [Odd(text), Note(text), ValueError(text), {Odd(text): 1}, frozenset([text]), "a key: " + text]
        step.output = [text.encode(), bytearray(text.encode()), memoryview(text.encode()), {text.encode(): 1}]
    sw.tool("y", metadata={"masked": text}).open("y").end()


@entry
def errors(text: str, _: Path) -> None:
    @sw.tool
    def fail() -> None:
        try:
            raise KeyError(text)
        except KeyError as error:
            failure = ValueError(text, [text])
            failure.add_note(f"note: {text}")
            raise ExceptionGroup(text, [failure]) from error

    with pytest.raises(ExceptionGroup):
        fail()


@entry
def an_error_cut_in_the_middle(text: str, _: Path) -> None:
    for filler in (32 * 1024 - 20, 32 * 1024 + 10):
        with pytest.raises(ValueError, match="x"), sw.tool("x"):
            raise ValueError("x" * filler + " " + text)
        with pytest.raises(ValueError, match="x"), sw.tool("x"):
            raise ValueError(f"x {text} " + "y" * filler)


@entry
def failures_told(text: str, _: Path) -> None:
    with sw.tool("x") as step:
        step.fail(text)
    with sw.tool("x") as step:
        step.fail(ValueError(text))
    with sw.tool("x") as step:
        step.fail({text: Odd(text)})  # type: ignore[arg-type]


@entry
def opentelemetry(text: str, _: Path) -> None:
    with sw.run("x"):
        span = trace.get_current_span()
        span.set_attribute("a", text)
        span.set_attribute(text, [text])
        span.set_attributes({"b": text, text: 1})
        span.add_event(text, {"c": text, text: 1})
        span.add_link(SpanContext(1, 2, is_remote=True), {"d": text})
        span.record_exception(ValueError(text), {"e": text})
        span.set_status(Status(StatusCode.ERROR, text))
        span.set_attributes(Odd(text))  # type: ignore[arg-type]
    with sw.run("x"):
        trace.get_current_span().set_status(StatusCode.ERROR, text)


@entry
def threads(text: str, _: Path) -> None:
    with sw.thread(f"t {text}", name=text, user=text, tags=[text], metadata={"a": text, text: 1}) as thread:
        sw.user_message(text, name=text, tags=[text], metadata={"a": text})
        sw.assistant_message({"content": [{"type": "text", "text": text}]})
        sw.system_message(text)
        thread.tags.append(text)
        thread.name = f"now {text}"


@entry
def baggage(text: str, _: Path) -> None:
    headers = {"baggage": f"stepwell.thread_id={quote(text)},stepwell.user={quote(text)}"}
    with sw.extract(headers), sw.run("x"):
        sw.user_message("hi")


@entry
def model_calls(text: str, _: Path) -> None:
    with sw.llm(text, model=text, provider=text, messages=[{"role": text, "content": text}], stop=[text]) as step:
        step.record({"id": text, "model": text, "choices": [{"message": {"content": text}, "finish_reason": text}]})
    with sw.llm("x", prompt=text, tools=[{"name": text}]) as step:
        step.record(text)
        fields = ("prompt_id", "stop_reason", "response_id", "request_id", "model_endpoint")
        step.generation = dict.fromkeys(fields, text)
        step.generation = {"variables": {"a": text}, "cost": {text: 1}, "provider_request": {"headers": [text]}}


@entry
def streams_that_split_it(text: str, _: Path) -> None:
    pieces = ["x ", text[:9], text[9:19], text[19:], " y"]
    with sw.llm("x", prompt="?") as step:
        for _chunk in step.stream(pieces):
            pass
    with sw.llm("x", prompt="?") as step:
        for _chunk in step.stream([{"choices": [{"delta": {"content": piece}}]} for piece in pieces]):
            pass
    with sw.llm("x", prompt="?") as step:
        for _chunk in step.stream([piece.encode() for piece in pieces]):
            pass


@entry
def generators_that_split_it(text: str, _: Path) -> None:
    pieces = ["x ", text[:9], text[9:19], text[19:], " y"]

    @sw.tool
    def speak(items: int, more: Any) -> Iterator[Any]:
        yield from more

    for items in (
        pieces,
        [piece.encode() for piece in pieces],
        [*pieces, 5],
        [*pieces, *["z"] * 10_001],
        [{"a": text}],
    ):
        assert list(speak(1, iter(items))) == items


@entry
def scores(text: str, _: Path) -> None:
    with sw.run("x") as step:
        step.score(text, 1, label=text, comment=text, tags=[text])
        step.score("a", text)  # type: ignore[arg-type]
    step.score(text, 1, label=text, comment=text, tags=[text])
    sw.score(text, "a", 1, label=text, comment=text, tags=[text])
    sw.feedback(step.id, "positive", comment=text)


@entry
def attachments(text: str, folder: Path) -> None:
    file = folder / "note.txt"
    file.write_text(f"a file\n{text}\n")
    odd = folder / (f"{text}.txt" if "/" not in text else "odd.txt")
    odd.write_bytes(b"harmless")
    with sw.tool("x") as step:
        step.attach(file)
        step.attach(odd)
        step.attach(f"bytes {text}".encode(), name=text, mime=text)
        step.attach(f"\ufeff {text}".encode("utf-16"))
        step.attach("https://tea.example/a.png?key=" + text)
        step.attach("data:text/plain;base64," + base64.b64encode(text.encode()).decode())
        step.attach(f"data:text/{text},{quote(text)}")
        step.attach(text)  # no such file
        step.attach(folder / "no" / odd.name)
    with sw.thread("t"):
        sw.user_message("hi", attachments=[sw.attach(text.encode()), text])  # type: ignore[list-item]
    step.attach(text.encode())


@entry
def a_large_file(text: str, folder: Path) -> None:
    file = folder / "log"
    for before in (5_000_000, 1024 * 1024 - 10):
        file.write_bytes(b"line of a log\n" * (before // 14) + text.encode() + b"\n" * 4_500_000)
        with sw.tool("x", metadata={"why": text}) as step:
            step.attach(file)


@entry
def media(text: str, _: Path) -> None:
    note = ("a line of text\n" * 500 + text).encode()
    url = "data:text/plain;base64," + base64.b64encode(note).decode()
    with sw.tool("x") as step:
        step.input = {"url": url, "bytes": note, "markdown": f"see ![x]({url}) and {text}"}
        step.output = {"type": "base64", "media_type": "text/plain", "data": base64.b64encode(note).decode()}


@entry
def no_text(text: str, _: Path) -> None:
    data = b"\xff\0" * 3000 + text.encode()
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    with sw.tool("x", metadata={"why": text}) as step:
        if OWN not in text or RECORDER.capture.rules.judges_text:  # functions see text only
            step.output = [data, url]
            step.attach(data)


@entry
def misuse(text: str, _: Path) -> None:
    with sw.tool(text) as step:
        step.usage(**{text: 1})
        step.usage(input_tokens=text)  # type: ignore[arg-type]
        step.generation = {text: 1, "ttft_ns": text}
        step.generation = text  # type: ignore[assignment]
        step.tags = Odd(text)  # type: ignore[assignment]
        step.metadata = text  # type: ignore[assignment]
        step.end(text)  # type: ignore[arg-type]
        step.output = 1
    for much in (80, 95, 99, 150):  # a message shows so much of a value
        step.metadata = "x" * (much - 10) + " " + text  # type: ignore[assignment]
        step.tags = 5  # type: ignore[assignment]
    with sw.thread("t", metadata=text), sw.run("x"):  # type: ignore[arg-type]
        sw.user_message("hi", attachments=text)
    RECORDER.fault("finish a step", ValueError(text))


def everything(home: Path, memory: MemoryExporter, log: str) -> bytes:
    """Return all there is of what was recorded: files with their names, frames at the exporter, lines of the log."""
    found = [log.encode(), *map(encode_record, memory.records)]
    for path in home.rglob("*"):
        found.append(str(path.relative_to(home)).encode())
        if path.is_file():
            found.append(path.read_bytes().rstrip(b"\0"))
    return b"\n".join(found)


def pieces(part: str) -> list[str]:
    return [part[at : at + 8] for at in range(len(part) - 7) if "\n" not in part[at : at + 8]]


def left_over(data: bytes, part: str) -> list[str]:
    return [piece for piece in pieces(part) if piece.encode() in data]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("plant", ENTRIES, ids=lambda plant: plant.__name__)
def test_a_secret_leaves_nothing_behind(
    plant: Callable[[str, Path], object], rules: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redact, secrets = RULES[rules]
    (tmp_path / "outside").mkdir()
    memory, told = MemoryExporter(), " ".join(each.text for each in secrets)
    sw.configure(export=["sqlite:", memory], home=tmp_path / "home", redact=redact, service=told, release=told)
    with caplog.at_level(logging.DEBUG, "stepwell"):
        for each in secrets:
            plant(each.text, tmp_path / "outside")
    assert sw.flush(20)
    sw.shutdown()
    data = everything(tmp_path / "home", memory, caplog.text)
    for each in secrets:
        assert (each.rule, left_over(data, each.part)) == (each.rule, [])
        assert f"[redacted:{each.rule}:".encode() in data


@pytest.mark.parametrize("each", [*SHAPES, CARD], ids=lambda each: each.rule)
def test_the_mark_says_rule_and_length(each: Secret) -> None:
    with capture(redact=RULES["pattern"][0]) as captured, sw.tool("x", tags=[each.text]):
        pass
    length = len("ada:Wm3vXk8qLz5T") if each.rule == "url_credentials" else len(each.text)
    assert f"[redacted:{each.rule}:{length}]" in str(captured.step("x").tags)


def test_what_looks_for_left_overs_finds_them(tmp_path: Path) -> None:
    memory = MemoryExporter()
    sw.configure(export=memory, home=tmp_path / "home")
    with sw.tool("x") as step:
        step.output = "not a secret: trumpets"
    assert sw.flush(10)
    assert left_over(everything(tmp_path / "home", memory, ""), "secret: trumpets") == pieces("secret: trumpets")


# -- by name


def plant_named(values: Mapping[str, Any], text: str) -> None:
    @sw.tool
    def ask(config: Any) -> Any:
        raise ValueError(text)

    with pytest.raises(ValueError, match=re.escape(text)):
        ask(dict(values))
    with sw.thread("t", metadata=dict(values)), sw.llm("x", prompt="?", **values) as step:
        step.input = [{"headers": values}]
        step.metadata.update(values)
        span = trace.get_current_span()
        span.set_attributes({f"http.request.header.{name}": value for name, value in values.items()})
        span.add_event("e", dict(values))
        step.generation = {"provider_request": dict(values), "variables": dict(values)}
        step.record({"choices": [{"message": {"content": "hi"}}], **values})
        step.attach(text.encode(), name="settings.env")
        step.attach(json.dumps(values).encode(), name="settings.json")
        step.attach(f"https://tea.example/a?{text}")
        step.fail(text)
        step.metadata["client"] = Odd(text)
        step.generation = {"nothing": Odd(text)}
        step.metadata["file"] = ("a line of text\n" * 500 + text).encode()


@pytest.mark.parametrize(("name", "redact"), [("db_password", []), ("Cookie", []), ("iban-no", ["iban_no"])])
@pytest.mark.parametrize(
    "form", ["{}={}", "{}: '{}'", '{{"{}": "{}", "n": 1}}', '{{\\"{}\\": \\"{}\\"}}', "a(b={{'{}': ['{}', 5]}})"]
)
def test_a_value_under_a_secret_name_leaves_nothing_behind(
    name: str, redact: list[Any], form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = MemoryExporter()
    sw.configure(export=["sqlite:", memory], home=tmp_path / "home", redact=redact)
    plant_named({name: NAMED}, form.format(name, NAMED))
    assert sw.flush(10)
    sw.shutdown()
    data = everything(tmp_path / "home", memory, caplog.text)
    rule = {"db_password": "password", "Cookie": "cookie", "iban-no": "iban_no"}[name]
    assert left_over(data, NAMED) == []
    assert f"[redacted:{rule}:15]".encode() in data


# -- a rule that fails


def fails(data: bytes) -> bytes:
    raise ZeroDivisionError(data)


@pytest.mark.parametrize("plant", ENTRIES, ids=lambda plant: plant.__name__)
def test_a_rule_that_fails_lets_nothing_through(
    plant: Callable[[str, Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    memory = MemoryExporter()
    sw.configure(export=["sqlite:", memory], home=tmp_path / "home", redact=[fails])
    (tmp_path / "outside").mkdir()
    with caplog.at_level(logging.DEBUG, "stepwell"):
        plant(OWN, tmp_path / "outside")
    assert sw.flush(10)
    sw.shutdown()
    data = everything(tmp_path / "home", memory, caplog.text)
    assert left_over(data, CARD.part) == []
    assert b"redaction_failed" in data


def test_an_attachment_whose_rule_fails_is_not_stored(tmp_path: Path) -> None:
    with capture(home=tmp_path / "home", redact=[fails]) as captured, sw.tool("x") as step:
        step.attach(b"a text")
        step.output = {"photo": b"\xff\0" * 3000}
    (found,) = captured.steps[0].attachments or ()
    assert (found.sha256, found.size) == (None, None)
    assert json.loads(bytes(found.metadata)) == {"$stepwell": "redaction_failed", "rule": "fails"}  # type: ignore[arg-type]
    assert not (tmp_path / "home" / "blobs").exists()


# -- the log


def test_a_logged_traceback_is_masked_and_kept(caplog: pytest.LogCaptureFixture) -> None:
    key = SHAPES[0].text
    try:
        raise ValueError(f"no {key}")
    except ValueError as error:
        RECORDER.fault("finish a step", error)
    (record,) = caplog.records
    layout = logging.Formatter().format(record)
    assert record.getMessage() == "stepwell could not finish a step: ValueError: no [redacted:openai:32]"
    assert "Traceback (most recent call last)" in layout
    assert "ValueError: no [redacted:openai:32]" in layout
    assert key not in layout
