"""Secrets do not reach the record, and a rule that fails costs the payload."""

from __future__ import annotations

import json
import os
import re
import string
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwell._capture import Capture
from stepwell._redaction import Rules, suspicious
from stepwell.errors import UsageError

CAPTURE = Capture()
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\nabc\n-----END RSA PRIVATE KEY-----"
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"  # not a real one


def encoded(value: object, capture: Capture = CAPTURE) -> Any:
    return orjson.loads(capture.encode(value))


@pytest.mark.parametrize(
    ("secret", "masked"),
    [
        ("sk-" + "a1B2" * 12, "[redacted:openai:51]"),
        ("sk-proj-" + "a1_-" * 12, "[redacted:openai:56]"),
        ("sk-ant-api03-" + "a1_-" * 12, "[redacted:anthropic:61]"),
        ("sk_live_" + "a1B2" * 6, "[redacted:stripe:32]"),
        ("AKIA" + "ABCD" * 4, "[redacted:aws:20]"),
        ("AIza" + "aB-_1" * 7, "[redacted:google:39]"),
        ("ghp_" + "a1B2" * 9, "[redacted:github:40]"),
        ("github_pat_" + "a1B2_" * 8, "[redacted:github:51]"),
        ("hf_" + "aB" * 17, "[redacted:huggingface:37]"),
        ("xoxb-123456789012-abcdef", "[redacted:slack:24]"),
        ("Bearer abcdefghijklmnop==", "[redacted:bearer:25]"),
        (JWT, "[redacted:jwt:71]"),
        (PEM, "[redacted:private_key:82]"),
        ("postgres://user:pa@ss@host/db", "postgres://[redacted:url_credentials:10]@host/db"),
    ],
)
def test_a_secret_is_known_by_its_shape(secret: str, masked: str) -> None:
    assert encoded(secret) == masked
    assert encoded({"text": f'a "{secret}"\n'}) == {"text": f'a "{masked}"\n'}
    assert encoded([{"n": [f"x={secret}"]}]) == [{"n": [f"x={masked}"]}]
    assert encoded({secret: 1}) == {masked: 1}
    assert json.loads(CAPTURE.text(f"failed: {secret}")) == f"failed: {masked}"


@pytest.mark.parametrize(
    "text",
    [
        "task-550e8400-e29b-41d4-a716-446655440000", "a task-based, risk-averse desk-top", "sk-short", "JSON eyJ",
        "xoxo-hugs", "Bearer of news", "ada@example.com", "https://example.com/@ada", "http://host:8080/path",
        "-----BEGIN CERTIFICATE-----", "max_tokens", "AKIA", "{api_key}",
    ],
)  # fmt: skip
def test_harmless_text_stays(text: str) -> None:
    assert encoded({"text": text}) == {"text": text}


@pytest.mark.parametrize(
    "name",
    [
        "api_key", "apikey", "API-KEY", "x-api-key", "OPENAI_API_KEY", "Authorization", "proxy-authorization",
        "password", "db_password", "passwd", "pwd", "secret", "client_secret", "access_token", "refreshToken",
        "id_token", "private_key", "Cookie", "Set-Cookie", "AWS_SECRET_ACCESS_KEY",
    ],
)  # fmt: skip
def test_a_value_under_a_secret_name_is_masked(name: str) -> None:
    data = CAPTURE.encode({"headers": {name: "hunter2"}})
    assert b"hunter2" not in data
    assert re.fullmatch(r"\[redacted:\w+:7\]", orjson.loads(data)["headers"][name])


@pytest.mark.parametrize(
    "name",
    [
        "tokens",
        "max_tokens",
        "token_count",
        "input_tokens",
        "total-tokens",
        "token",
        "key",
        "keys",
        "author",
        "cookie_policy",
    ],
)
def test_a_value_under_a_harmless_name_stays(name: str) -> None:
    assert CAPTURE.encode({name: "hunter2"}) == f'{{"{name}":"hunter2"}}'.encode()


@pytest.mark.parametrize("value", [None, True, False, ""])
def test_an_absent_secret_stays_absent(value: object) -> None:
    assert encoded({"password": value}) == {"password": value}


def test_a_secret_that_is_not_a_string_is_masked_by_the_length_of_its_json() -> None:
    assert encoded({"pwd": 1234, "cookies": {"a": "b"}}) == {
        "pwd": "[redacted:pwd:4]",
        "cookies": "[redacted:cookies:9]",
    }


def test_a_secret_name_may_be_bytes_or_a_subclass_of_str() -> None:
    class Name(str):
        __slots__ = ()

    assert b"hunter2" not in CAPTURE.encode({Name("password"): "hunter2"})
    assert b"hunter2" not in CAPTURE.encode({b"Authorization": "hunter2"})


def test_keys_masked_alike_keep_both_values() -> None:
    assert encoded({"sk-" + "a" * 20: 1, "sk-" + "b" * 20: 2}) == {
        "[redacted:openai:23]": 1,
        "[redacted:openai:23] (2)": 2,
    }


def test_bytes_that_hold_a_secret_are_masked() -> None:
    assert encoded(b"x sk-" + b"a" * 20) == {"$stepwell": "bytes", "size": 25, "base64": "[redacted:bytes:25]"}


def test_the_repr_of_an_object_is_masked_by_names_and_shapes() -> None:
    class Client:
        def __repr__(self) -> str:
            return f"Client(api_key='it\\'s me', k=5, password=hunter2, note=\"{JWT}\", {{'x-api-key': \"abc\"}})"

    assert encoded(Client())["repr"] == (
        "Client(api_key='[redacted:api_key:8]', k=5, password=[redacted:password:7], "
        'note="[redacted:jwt:71]", {\'x-api-key\': "[redacted:api_key:3]"})'
    )


def test_the_environment_is_a_dict_with_its_secrets_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_API_KEY", "hunter2")
    assert encoded(os.environ)["SERVICE_API_KEY"] == "[redacted:api_key:7]"


def test_a_secret_across_the_cut_of_a_long_string_does_not_survive() -> None:
    capture = Capture(max_field_bytes=1000)
    for start in range(900, 1000, 7):
        assert b"sk-" not in capture.encode(" " * start + "sk-" + "a" * 100 + " " * 20_000)
        assert b"sk-" not in capture.text(" " * start + "sk-" + "a" * 100 + " " * 20_000)


def test_without_default_rules_nothing_is_masked() -> None:
    value = {"password": "hunter2", "text": PEM}
    assert encoded(value, Capture(default_redaction=False)) == value


# ---- the user's rules


def test_a_pattern_masks_what_matches_in_any_string() -> None:
    capture = Capture(redact=[re.compile(r"\d{3}-\d{2}|$")])
    assert encoded({"123-45": ["id 123-45.", 12345]}, capture) == {
        "[redacted:pattern_1:6]": ["id [redacted:pattern_1:6].", 12345]
    }
    assert capture.text("123-45") == b'"[redacted:pattern_1:6]"'


def test_a_name_masks_the_value_under_it_however_it_is_written() -> None:
    capture = Capture(redact=["iban_no"], default_redaction=False)
    assert encoded({"IBAN-No": "DE1", "ibanno2": "x", "password": "y"}, capture) == {
        "IBAN-No": "[redacted:iban_no:3]", "ibanno2": "x", "password": "y",
    }  # fmt: skip


def test_a_callable_rewrites_the_finished_payload() -> None:
    seen: list[bytes] = []

    def drop_ada(data: bytes) -> bytes:
        seen.append(data)
        return data.replace(b"Ada", b"***") + b"\n"

    capture = Capture(redact=[drop_ada])
    assert (
        capture.encode({"name": "Ada", "password": "hunter2"}) == b'{"name":"***","password":"[redacted:password:7]"} '
    )
    assert capture.text("Ada") == b'"***"'
    assert seen == [b'{"name":"Ada","password":"[redacted:password:7]"}', b'"Ada"']


def failing(data: bytes) -> bytes:
    raise ZeroDivisionError(data)


@pytest.mark.parametrize(
    "rule", [failing, lambda data: b"{", lambda data: "{}", lambda data: None, lambda data: b"\xff"]
)
def test_a_callable_that_fails_costs_the_payload(rule: Any) -> None:
    capture = Capture(redact=[rule])
    name = rule.__name__
    assert encoded({"name": "Ada"}, capture) == {"$stepwell": "redaction_failed", "rule": name}
    assert capture.text("Ada") == f'"[redaction_failed:{name}]"'.encode()


def test_a_text_that_a_callable_makes_something_else_is_dropped() -> None:
    assert Capture(redact=[lambda data: b"{}"]).text("Ada") == b'"[redaction_failed:not a string]"'


def test_a_callable_without_a_name_is_told_by_its_place() -> None:
    class Rule:
        def __call__(self, data: bytes) -> bytes:
            raise ValueError

    assert encoded(1, Capture(redact=["a", Rule()])) == {"$stepwell": "redaction_failed", "rule": "callable_2"}


def test_a_payload_that_a_callable_made_too_long_is_cut() -> None:
    data = Capture(max_field_bytes=300, redact=[lambda data: b'"' + b"x" * 1000 + b'"']).encode(1)
    assert len(data) <= 300
    assert orjson.loads(data)["bytes"] == 1002


def test_a_pattern_that_fails_costs_the_payload(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = Capture(redact=[re.compile("a")])
    monkeypatch.setattr("stepwell._redaction._mask_match", lambda rule, match: 1 / 0)
    assert encoded({"x": "a"}, capture) == {"$stepwell": "redaction_failed", "rule": "pattern_1"}


@pytest.mark.parametrize(
    ("redact", "message"),
    [
        ("password", "redact must be a list of patterns, key names and callables, got 'password'"),
        (5, "redact must be a list of patterns, key names and callables, got 5"),
        ([5], "redact must hold patterns, key names and callables, got 5"),
        (["_-"], "redact: a key name must not be empty, got '_-'"),
        ([re.compile(b"x")], "redact: a pattern must be for str, not for bytes, got re.compile(b'x')"),
    ],
)
def test_a_wrong_rule_is_refused_by_name_and_value(redact: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        Capture(redact=redact)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("{'config': {'password': 'hunter2', 'a': 1}}", "{'config': {'password': '[redacted:password:7]', 'a': 1}}"),
        ('{"a": "{\\"password\\": \\"hunter2\\"}"}', '{"a": "{\\"password\\": \\"[redacted:password:7]\\"}"}'),
        ('note="password=hunter2"', 'note="password=[redacted:password:8]'),
        ("cookies={'a': 'b', 'c': ['d']}, x=1", "cookies=[redacted:cookies:22], x=1"),
        ("password=('a', b", "password=[redacted:password:7]"),
        ("Authorization: Basic YWRhOmE=\nHost: x", "Authorization: [redacted:authorization:14]\nHost: x"),
        ("Cookie: a=b; c=d", "Cookie: [redacted:cookie:8]"),
        ('\\"Cookie\\": \\"a=b\\"', '\\"Cookie\\": \\"[redacted:cookie:3]\\"'),
        ("pwd='''hunter2'''", "pwd='''[redacted:pwd:7]'''"),
        ("headers.cookie = x", "headers.cookie = [redacted:cookie:1]"),
        ("/a?api_key=hunter2&b=c", "/a?api_key=[redacted:api_key:11]"),
        ("password: 'never closed", "password: '[redacted:password:12]"),
        ("password=None, secret=true, pwd=, id_token=''", "password=None, secret=true, pwd=, id_token=''"),
        ("password = [redacted:openai:23]", "password = [redacted:password:20]"),
        ("a [redacted:password:7] b", "a [redacted:password:7] b"),
        ("a=1, tokens: 5, key='x'", "a=1, tokens: 5, key='x'"),
    ],
)
def test_in_prose_a_value_is_secret_by_the_name_before_it(text: str, masked: str) -> None:
    assert json.loads(CAPTURE.text(text, prose=True)) == masked


def test_the_last_part_of_a_dotted_name_counts() -> None:
    assert encoded({"http.request.header.cookie": "a=b", "cookie.policy": "x"}) == {
        "http.request.header.cookie": "[redacted:cookie:3]",
        "cookie.policy": "x",
    }


def test_the_end_of_a_text_is_masked_before_it_is_cut() -> None:
    secret = "sk-" + "a1" * 20
    for after in range(70, 130, 7):
        found = json.loads(CAPTURE.text("x" * 500 + " " + secret + " " + "y" * after, 100, tail=True))
        assert "a1a1" not in found
        assert found.endswith("y" * 70)
        assert found.startswith("[")
    assert json.loads(CAPTURE.text("short", 100, tail=True)) == "short"


def test_texts_seen_before_are_not_trusted_under_a_name_that_holds_a_secret() -> None:
    capture = Capture()
    rows: list[dict[str, Any]] = [{"role": "user", "content": f"{n} " + "water " * 50} for n in range(50)]
    key = "sk-" + "a1" * 20
    for _again in range(3):
        assert capture.encode(rows) == orjson.dumps(rows)
        assert key.encode() not in capture.encode([*rows, {key: "user"}])
        assert key.encode() not in capture.encode([*rows, {"x" * 200 + " " + key: "user"}])
        assert key.encode() not in capture.encode([*rows, {"role": f"the {key}"}])
        assert key.encode() not in capture.encode({"a": key, "rows": rows})
        assert key.encode() not in capture.encode({"rows": rows, "more": [rows, key]})


def test_texts_are_remembered_within_bounds() -> None:
    rules = Rules(None, True)
    for number in range(5000):
        rules.vouch_for([f"{number} " + "x" * 1000])
    assert 0 < len(rules.clean_texts) < 2200
    for number in range(5000):
        rules.vouch_for([f"{number}.{each}" for each in range(10)])
    assert 0 < len(rules.clean_texts) <= 16_384
    before = len(rules.clean_texts)
    rules.vouch_for(["x" * 3_000_000])
    assert len(rules.clean_texts) == before


def seconds(mask: Callable[[str], str], text: str) -> float:
    started = time.thread_time()
    mask(text)
    return time.thread_time() - started


SHAPE_PARTS = [
    "-eyJ", "eyJ", "eyJa.", "eyJ" + "a" * 20 + ".", "eyJ" + "a" * 20 + "." + "b" * 20 + ".", "://", "://a", "://a:",
    "://a:b", "@", "sk-", "-sk-", "sk_live_", "AKIA", "AIza", "ghp_", "github_pat_", "hf_", "xoxb-", "Bearer ",
    "Bearer", "-----BEGIN ", "-----BEGIN A", "-----BEGIN PRIVATE KEY-----", "-----END ", "-", "_", "A", " ",
    "data:a/b;base64,",
]  # fmt: skip
NAME_PARTS = [
    "a", "a.", "a:", "name=", "password=", "password: ", "password='", "password=\\'", "password={", "password=[{",
    "password = '''", "cookie: ", "cookie: \\", "\\", '"', "[redacted:", "[redacted:password:",
]  # fmt: skip


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("part", [*SHAPE_PARTS, *NAME_PARTS])
def test_hostile_text_takes_time_in_proportion_to_its_length(part: str) -> None:
    rules = Rules(None, True)
    mask = rules.prose if part in NAME_PARTS else rules.text
    text = part * (1_000_000 // len(part))
    for attempt in range(5):  # the machine may be busy
        once, twice = seconds(mask, text), seconds(mask, text + text)
        if twice <= 4 * once:
            break
        assert attempt < 4 or twice < 0.01, (once, twice)
    assert once < 10


def test_a_wrong_switch_is_refused() -> None:
    with pytest.raises(UsageError, match="default_redaction must be True or False, got 'no'"):
        Capture(default_redaction="no")  # type: ignore[arg-type]


def test_names_are_remembered_within_bounds() -> None:
    rules = Rules(None, True)
    assert rules.harmless([f"name{number}" for number in range(10_000)])
    assert rules.harmless(["x" * 1000])
    assert len(rules.known) == 4096
    assert not rules.harmless(["new", "password"])
    assert not rules.harmless([5])


# ---- properties

token = string.ascii_letters + string.digits
secrets = st.one_of(
    st.text(token + "_-", min_size=20, max_size=60).map(lambda body: "sk-" + body),
    st.text(token, min_size=20, max_size=60).map(lambda body: "sk-ant-" + body),
    st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16).map(lambda body: "AKIA" + body),
    st.text(token + "_-", min_size=35, max_size=35).map(lambda body: "AIza" + body),
    st.tuples(st.sampled_from("pousr"), st.text(token, min_size=36, max_size=36)).map(lambda it: f"gh{it[0]}_{it[1]}"),
    st.text(token + "_", min_size=30, max_size=80).map(lambda body: "github_pat_" + body),
    st.text(token + "-", min_size=20, max_size=60).map(lambda body: "xoxb-" + body),
    st.text(token, min_size=34, max_size=34).map(lambda body: "hf_" + body),
    st.text(token, min_size=24, max_size=24).map(lambda body: "sk_live_" + body),
    st.text(token + "._~+/=-", min_size=20, max_size=60).map(lambda body: "Bearer " + body),
    st.lists(st.text(token + "_-", min_size=12, max_size=40), min_size=3, max_size=3).map(".".join).map("eyJ{}".format),
    st.text(token + "\n+/=", min_size=20, max_size=60).map(
        lambda body: f"-----BEGIN EC PRIVATE KEY-----\n{body}\n-----END EC PRIVATE KEY-----"
    ),
)  # fmt: skip
# Anything that does not end in a letter or digit, which would make it another word.
before = st.text(st.characters(exclude_categories=())).map(lambda text: re.sub(r"[A-Za-z0-9]+$", "", text))
padding = st.sampled_from(["", " ", "word " * 2000, "\\n\n\t\"'{}[]:=,/\u0000", "J-_@KBz " * 2000])


@st.composite
def hidden(draw: st.DrawFn) -> tuple[str, Any]:
    secret = draw(secrets)
    value: Any = (
        draw(padding)
        + draw(before)
        + secret
        + draw(st.sampled_from(['"', "\n", " ", "", "\\", "é", ","]))
        + draw(padding)
    )
    for shape in draw(st.lists(st.integers(0, 7), max_size=5)):
        value = [
            [value], {"content": value}, {"n": 1, "m": [0.5, value]}, {"s": {1}, "v": value}, (value, None),
            [value] + [{"a": "b"}] * 40, {value: 1} if type(value) is str else [value], {"odd": object(), 5: value},
        ][shape]  # fmt: skip
    return secret, value


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(hidden(), st.sampled_from([300, 5000, 1_000_000]))
def test_a_secret_never_survives_whatever_surrounds_it(case: tuple[str, Any], limit: int) -> None:
    secret, value = case
    data = Capture(max_field_bytes=limit).encode(value)
    orjson.loads(data)
    assert orjson.dumps(secret)[1:-1] not in data
    assert secret[:19].encode() not in data


fragments = st.sampled_from([
    "sk-", "sk_live_", "AKIA", "AIza", "ghp_", "github_pat_", "hf_", "xoxb-", "Bearer ", "eyJ", "-----BEGIN ",
    "RSA PRIVATE KEY-----", "://", "u:p@", "@", ":", ".", "\n", '"', "\\", " ", "a" * 20, "A1" * 16,
    "a_-" * 12, "é", "\u2028",
])  # fmt: skip


@settings(max_examples=500)
@given(st.lists(fragments | st.text(max_size=5), max_size=12).map("".join), st.sampled_from(["", "x " * 3000]))
def test_the_quick_check_never_misses_what_would_be_masked(text: str, more: str) -> None:
    text = more + text
    if Rules(None, True).text(text) != text:
        assert suspicious(orjson.dumps({"content": text}))


@given(
    st.text(st.characters(codec="ascii")),
    st.sampled_from(["password", "Api-Key", "xAPIkey", "SET_COOKIE", "my_client_secret"]),
)
def test_a_value_under_a_secret_name_never_survives(text: str, name: str) -> None:
    secret = f"hunter2{text}"
    assert b"hunter2" not in CAPTURE.encode([{"n": {name: secret}}, {"n": {name: [secret]}}] * 20)
