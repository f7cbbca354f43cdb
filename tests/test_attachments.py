"""What is attached to a step is kept by the hash of its bytes, or travels in the record where there is no folder."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import stepwell as sw
from stepwell import _details
from stepwell.errors import UsageError
from stepwell.testing import Captured, capture

DATA = b"\x89PNG tea"
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Captured]:
    with capture(home=tmp_path / "home") as captured:
        yield captured


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(DATA)
    return path


def attachments_of(captured: Captured, name: str = "x") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = captured.fields(name)["attachments"]
    for attachment in found:
        assert len(attachment.pop("id")) == 36
    return found


def blob(tmp_path: Path) -> bytes:
    return (tmp_path / "home" / "blobs" / SHA256[:2] / SHA256).read_bytes()


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_copied(kind: Any, photo: Path, tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(kind(photo))
    photo.write_bytes(b"changed later")
    assert attachments_of(at_home) == [{"name": "photo.png", "mime": "image/png", "size": len(DATA), "sha256": SHA256}]
    assert blob(tmp_path) == DATA


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_are_kept(kind: Any, tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(kind(DATA), name="tea.jpg", mime="image/webp")
    assert attachments_of(at_home) == [{"name": "tea.jpg", "mime": "image/webp", "size": len(DATA), "sha256": SHA256}]
    assert blob(tmp_path) == DATA


def test_the_same_bytes_are_kept_once(tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        for _ in range(3):
            step.attach(DATA)
    assert len(attachments_of(at_home)) == 3
    assert len([path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file()]) == 1


def test_a_url_is_noted_and_not_fetched(at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach("https://tea.example/a/photo.png?size=1")
        step.attach("HTTP://tea.example", name="home")
    assert attachments_of(at_home) == [
        {"name": "photo.png", "mime": "image/png", "url": "https://tea.example/a/photo.png?size=1"},
        {"name": "home", "url": "HTTP://tea.example"},
    ]


def test_the_bytes_of_a_data_url_are_kept(tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(f"data:image/png;base64,{base64.b64encode(DATA).decode()}")
        step.attach("data:,hi%21", name="note")
    first, second = attachments_of(at_home)
    assert first == {"mime": "image/png", "size": len(DATA), "sha256": SHA256}
    assert second == {
        "name": "note",
        "mime": "text/plain",
        "size": 3,
        "sha256": hashlib.sha256(b"hi!").hexdigest(),
    }
    assert blob(tmp_path) == DATA


def test_a_large_data_url_does_not_lose_the_step(tmp_path: Path) -> None:
    with capture(home=tmp_path / "home", max_field_bytes=1024) as captured, sw.tool("x") as step:
        step.attach("data:;base64," + base64.b64encode(bytes(5000)).decode())
    assert attachments_of(captured)[0]["size"] == 5000


def test_small_files_travel_in_the_record_where_there_is_no_folder(photo: Path, captured: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(photo)
        step.attach(b"hi", mime="text/plain")
    assert attachments_of(captured) == [
        {
            "name": "photo.png",
            "mime": "image/png",
            "size": len(DATA),
            "url": f"data:image/png;base64,{base64.b64encode(DATA).decode()}",
        },
        {"mime": "text/plain", "size": 2, "url": "data:text/plain;base64,aGk="},
    ]


def test_large_files_are_left_out_where_there_is_no_folder(tmp_path: Path, captured: Captured) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(65537))
    with sw.tool("x") as step:
        step.attach(big)
        step.attach(bytes(65537), name="more.bin")
    reason = {"$stepwell": "not_stored", "reason": "no folder to keep it in, and over 65536 bytes"}
    assert attachments_of(captured) == [
        {"name": "big.bin", "metadata": reason},
        {"name": "more.bin", "metadata": reason},
    ]


def test_what_is_too_large_is_left_out(photo: Path, at_home: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_details, "MAX_ATTACHMENT_BYTES", 4)
    with sw.tool("x") as step:
        step.attach(photo)
        step.attach(DATA)
    reasons = [attachment["metadata"]["reason"] for attachment in attachments_of(at_home)]
    assert [reason.endswith("larger than 4 bytes") for reason in reasons] == [True, True]


def test_a_file_that_is_not_there_is_named_and_the_step_recorded(
    tmp_path: Path, at_home: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    with sw.tool("x") as step:
        step.attach(tmp_path / "missing.png")
        step.output = 1
    (found,) = attachments_of(at_home)
    assert (found["name"], found["metadata"]["$stepwell"]) == ("missing.png", "not_stored")
    assert at_home.fields("x")["output"] == 1
    assert "missing.png" in caplog.records[0].getMessage()


def test_a_pipe_is_not_waited_for(tmp_path: Path, at_home: Captured) -> None:
    os.mkfifo(tmp_path / "pipe")
    with sw.tool("x") as step:
        step.attach(tmp_path / "pipe")
        step.attach(tmp_path)
    assert [found["metadata"]["reason"] for found in attachments_of(at_home)] == ["it is not a file"] * 2


ODD = ["\0", "x" * 5000, "data:nothing", "data:;base64,a", "http://[", "\ud800", ""]


@pytest.mark.parametrize("content", ODD)
@pytest.mark.parametrize("home", [True, False])
def test_odd_contents_do_not_disturb_the_step(content: str, home: bool, tmp_path: Path) -> None:
    with capture(home=tmp_path / "home" if home else None) as captured, sw.tool("x") as step:
        step.attach(content)
        step.attach(b"", name=content or None, mime="\ud800")
    assert captured.step("x").status == "success"
    assert len(attachments_of(captured)) == 2


def test_a_missing_file_raises_when_strict(tmp_path: Path) -> None:
    with (
        capture(strict=True),
        sw.tool("x") as step,
        pytest.raises(UsageError, match=r"attachment .*missing.* was not stored"),
    ):
        step.attach(tmp_path / "missing.png")


@pytest.mark.parametrize("wrong", [5, None, ["a.png"], {"path": "a"}])
def test_what_can_not_be_attached_raises_where_it_is_written(wrong: Any, captured: Captured) -> None:
    with pytest.raises(UsageError, match="an attachment must be a path, bytes or a URL, got "):
        sw.attach(wrong)


def test_the_name_and_type_of_an_attachment_must_be_strings() -> None:
    wrong: Any = 5
    with pytest.raises(UsageError, match="must be a string, got 5"):
        sw.attach(b"", name=wrong)
    with pytest.raises(UsageError, match="must be a string, got 5"):
        sw.attach(b"", mime=wrong)


def test_messages_have_attachments(captured: Captured) -> None:
    with sw.thread("t"):
        sw.user_message("Look", name="x", attachments=[sw.attach(b"hi", name="a.txt")])
    assert [found["name"] for found in attachments_of(captured)] == ["a.txt"]


def test_messages_take_paths_as_they_are(photo: Path, captured: Captured) -> None:
    with sw.thread("t"):
        sw.user_message("Look", name="x", attachments=[photo])
    assert [found["name"] for found in attachments_of(captured)] == ["photo.png"]


def test_a_wrong_attachment_of_a_message_does_not_leave_it_open(captured: Captured) -> None:
    with sw.thread("t"):
        sw.user_message("Look", name="x", attachments=[5])
        assert sw.current_step() is None
    assert captured.step("x").status == "success"


def test_a_wrong_attachment_of_a_message_does_not_leave_it_open_when_strict() -> None:
    with capture(strict=True), sw.thread("t"):
        with pytest.raises(UsageError, match="an attachment must be"):
            sw.user_message("Look", attachments=[5])
        assert sw.current_step() is None


@pytest.mark.parametrize("wrong", [None, 5])
def test_attachments_that_are_no_list_do_not_disturb_the_message(wrong: Any, captured: Captured) -> None:
    with sw.thread("t"):
        sw.user_message("Look", name="x", attachments=wrong)
    assert captured.fields("x")["output"] == {"content": "Look"}


def test_what_is_attached_after_the_end_is_an_update(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(b"1", name="a.txt")
    step.attach(b"2", name="b.txt")
    assert len(captured.records) == 2
    assert [found["name"] for found in attachments_of(captured)] == ["a.txt", "b.txt"]


def test_a_step_that_is_not_recorded_stores_nothing(tmp_path: Path) -> None:
    with capture(home=tmp_path / "home", sample=0), sw.tool("x") as step:
        step.attach(DATA)
    assert not (tmp_path / "home").exists()


KEY = "sk-" + "Zq8" * 10


def test_text_is_masked_before_it_is_stored(tmp_path: Path, at_home: Captured) -> None:
    masked = b"# config\nOPENAI=[redacted:openai:33]\npassword='[redacted:password:7]'\n"
    with sw.tool("x") as step:
        step.attach(f"# config\nOPENAI={KEY}\npassword='hunter2'\n".encode(), name=".env")
    (found,) = attachments_of(at_home)
    assert (found["size"], found["sha256"]) == (len(masked), hashlib.sha256(masked).hexdigest())
    digest = found["sha256"]
    assert (tmp_path / "home" / "blobs" / digest[:2] / digest).read_bytes() == masked


def test_text_in_another_encoding_stays_in_it(tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(f"schlüssel {KEY}".encode("utf-16"))
    digest = attachments_of(at_home)[0]["sha256"]
    content = (tmp_path / "home" / "blobs" / digest[:2] / digest).read_bytes()
    assert content.decode("utf-16") == "schlüssel [redacted:openai:33]"


def test_what_travels_in_the_record_is_masked_too(captured: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(f"a {KEY}".encode(), mime="text/plain")
    (found,) = attachments_of(captured)
    assert base64.b64decode(found["url"].partition(",")[2]) == b"a [redacted:openai:33]"
    assert found["size"] == 22


def test_what_is_no_text_and_holds_a_secret_is_not_stored(tmp_path: Path, at_home: Captured) -> None:
    with sw.tool("x") as step:
        step.attach(b"\x89PNG\xff" + KEY.encode(), name="a.png")
    (found,) = attachments_of(at_home)
    assert found == {"name": "a.png", "metadata": {"$stepwell": "not_stored", "reason": "it holds a secret"}}
    assert not (tmp_path / "home" / "blobs").exists()


@pytest.mark.parametrize("before", [0, 1024 * 1024 - 15, 5_000_000])
def test_a_text_too_long_to_be_masked_is_stored_if_it_holds_no_secret(
    before: int, tmp_path: Path, at_home: Captured
) -> None:
    file = tmp_path / "log.txt"
    line = b"the well gives water\n"
    with sw.tool("x") as step:
        file.write_bytes(line * 300_000)
        step.attach(file)
        file.write_bytes(line * (before // 21) + b" " * (before % 21) + KEY.encode() + b"\n" + line * 250_000)
        step.attach(file)
        step.attach(file.read_bytes())
    kept, *refused = attachments_of(at_home)
    assert kept["size"] == 6_300_000
    assert [each["metadata"]["reason"] for each in refused] == ["it holds a secret"] * 2


def test_a_text_too_long_for_a_function_is_not_stored(tmp_path: Path) -> None:
    file = tmp_path / "log.txt"
    file.write_bytes("the well gives wäter\n".encode() * 300_000)
    photo = tmp_path / "photo.raw"
    photo.write_bytes(b"\0\xff" * 3_000_000)
    with capture(home=tmp_path / "home", redact=[bytes]) as captured, sw.tool("x") as step:
        step.attach(file)
        step.attach(file.read_bytes())
        step.attach(photo)
    first, second, third = attachments_of(captured)
    reason = {"$stepwell": "redaction_failed", "rule": "too long a text for a callable"}
    assert (first["metadata"], second["metadata"]) == (reason, reason)
    assert third["size"] == 6_000_000


def test_a_rule_leaves_ids_and_hashes_alone(tmp_path: Path) -> None:
    with capture(home=tmp_path / "home", redact=[re.compile("[0-9]")]) as captured:
        with sw.thread("0192f0c1-aaaa-7bbb-8ccc-dddddddddddd"), sw.tool("x") as step:
            step.attach(DATA)
            step.score("s", 1)
        sw.score(step.id, "late", 1)
    (found,) = captured.fields("x")["attachments"]
    assert found["sha256"] == SHA256
    assert re.fullmatch("[0-9a-f-]{36}", found["id"])
    assert captured.step("x").thread_id == "0192f0c1-aaaa-7bbb-8ccc-dddddddddddd"
    assert captured.threads[0].id == "0192f0c1-aaaa-7bbb-8ccc-dddddddddddd"
    assert [score.step_id for score in captured.scores] == [step.id]


def test_a_url_of_another_kind_is_not_taken_for_a_path(captured: Captured, caplog: pytest.LogCaptureFixture) -> None:
    with sw.tool("x") as step:
        step.attach("postgres://ada:hunter2hunter2@db/tea")
    (found,) = attachments_of(captured)
    assert found["metadata"]["reason"] == "of URLs only http:, https: and data: can be attached"
    assert "hunter2" not in caplog.text
