"""Large media leave payloads for the blobs folder, and a reference stays; where there is no folder nothing changes."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stepwell as sw
from stepwell import _capture, cli
from stepwell._capture import Capture
from stepwell._media import MAX_MEDIA_BYTES, may_hold_media
from stepwell._recorder import RECORDER
from stepwell.blobs import BlobStore
from stepwell.testing import Captured, capture

PHOTO = b"\x89PNG\r\n\x1a\n" + random.Random(1).randbytes(20_000)
SHA256 = hashlib.sha256(PHOTO).hexdigest()
BASE64 = base64.b64encode(PHOTO).decode()
URL = f"data:image/png;base64,{BASE64}"
BLOB = {"$stepwell": "blob", "sha256": SHA256, "size": 20_008, "mime": "image/png"}
UNTYPED = {"$stepwell": "blob", "sha256": SHA256, "size": 20_008}


class Faults(list[str]):
    def __call__(self, where: str, error: BaseException) -> None:
        self.append(where)


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def media(blobs: BlobStore, faults: Faults) -> Iterator[Capture]:
    yield Capture(blobs=blobs, fault=faults)
    assert faults == []


@pytest.fixture
def at_home(tmp_path: Path) -> Iterator[Captured]:
    with capture(home=tmp_path / "home") as captured:
        yield captured


def encoded(value: object, capture: Capture) -> Any:
    return orjson.loads(capture.encode(value))


def stored(blobs: BlobStore) -> list[bytes]:
    return [path.read_bytes() for path in blobs.folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_large_bytes_become_a_blob(kind: Callable[[bytes], Any], media: Capture, blobs: BlobStore) -> None:
    assert encoded({"at": [kind(PHOTO)]}, media) == {"at": [UNTYPED]}
    assert blobs.path(SHA256).read_bytes() == PHOTO


def test_a_data_url_becomes_a_blob(media: Capture, blobs: BlobStore) -> None:
    assert encoded(URL, media) == BLOB
    assert encoded({"type": "image_url", "image_url": {"url": URL}}, media)["image_url"] == {"url": BLOB}
    assert stored(blobs) == [PHOTO]


def test_the_reference_names_the_hash_as_the_exporters_look_for_it(media: Capture) -> None:
    assert media.encode([URL]) == (
        b'[{"$stepwell":"blob","sha256":"%b","size":20008,"mime":"image/png"}]' % SHA256.encode()
    )


@pytest.mark.parametrize(
    ("url", "mime"),
    [
        (f"data:;base64,{BASE64}", None),
        (f"data:audio/wav;rate=16000;base64,{BASE64}", "audio/wav"),
        (f"data:IMAGE/Jpeg;base64,{BASE64}", "image/jpeg"),
        (f"data:nonsense;base64,{BASE64}", None),
        (f"data:x/{'y' * 120};base64,{BASE64}", None),
        (f"data:a/sk-{'k' * 20};base64,{BASE64}", None),
        (f"data:image/png;base64,{base64.urlsafe_b64encode(PHOTO).decode()}", "image/png"),
        (f"data:image/png;base64,{BASE64.rstrip('=')}", "image/png"),
    ],
)
def test_the_type_is_told_where_it_is_known(url: str, mime: str | None, media: Capture) -> None:
    assert encoded(url, media) == (UNTYPED if mime is None else {**UNTYPED, "mime": mime})


PROVIDERS = [
    ({"type": "base64", "media_type": "image/png", "data": BASE64}, "data", BLOB),
    ({"mime_type": "image/png", "data": BASE64}, "data", BLOB),
    ({"mime_type": "image/png", "data": PHOTO}, "data", BLOB),
    ({"mimeType": "image/png", "data": base64.urlsafe_b64encode(PHOTO).decode()}, "data", BLOB),
    ({"data": BASE64, "format": "wav"}, "data", {**UNTYPED, "mime": "audio/wav"}),
    ({"id": "audio_1", "data": BASE64, "transcript": "Hi"}, "data", UNTYPED),
    ({"b64_json": BASE64}, "b64_json", UNTYPED),
    ({"b64_json": BASE64, "output_format": "webp"}, "b64_json", {**UNTYPED, "mime": "image/webp"}),
    ({"type": "image_generation_call", "result": BASE64}, "result", UNTYPED),
]


@pytest.mark.parametrize(("part", "field", "blob"), PROVIDERS)
def test_the_base64_of_providers_becomes_a_blob(part: Any, field: str, blob: Any, media: Capture) -> None:
    assert encoded({"content": [{"source": part}]}, media) == {"content": [{"source": {**part, field: blob}}]}


@pytest.mark.parametrize(
    "value",
    [
        {"data": BASE64},
        {"data": BASE64, "format": "hex"},
        {"type": "other", "result": BASE64},
        {"media_type": "text/plain", "data": "plain words " * 1000},
        {"media_type": "image/png", "data": BASE64[:-1]},
        {"media_type": "image/png", "data": "é" + BASE64},
        {"media_type": "image/png", "data": ["x"]},
        URL[:-1],
        URL.replace("A", "\n", 1),
        "data:image/png;base64," + "=" * 6000,
        "data:image/png," + BASE64,
        BASE64,
        {"embedding": BASE64},
    ],
)
def test_what_is_no_media_stays_as_it_is(value: Any, media: Capture, blobs: BlobStore) -> None:
    assert encoded(value, media) == encoded(value, Capture())
    assert not blobs.folder.exists()


def test_what_is_small_stays_where_it_is(media: Capture, blobs: BlobStore) -> None:
    url = "data:image/png;base64,"
    assert encoded(url + base64.b64encode(bytes(4096)).decode(), media).startswith(url)
    assert encoded(bytes(4096), media)["$stepwell"] == "bytes"
    assert not blobs.folder.exists()
    assert encoded(url + base64.b64encode(bytes(4097)).decode(), media)["size"] == 4097
    assert encoded(bytes(4097), media)["size"] == 4097
    assert len(stored(blobs)) == 1


def test_a_text_with_images_stays_readable(media: Capture, blobs: BlobStore) -> None:
    other = random.Random(2).randbytes(5000)
    text = f"See ![a]({URL}) and ![b](data:;base64,{base64.b64encode(other).decode()}), a sk-{'x' * 20}"
    sha256 = hashlib.sha256(other).hexdigest()
    assert encoded({"content": text}, media)["content"] == {
        "$stepwell": "text",
        "text": "See ![a]([blob 1: image/png, 20008 bytes]) and ![b]([blob 2: 5000 bytes]), a [redacted:openai:23]",
        "blobs": [BLOB, {"$stepwell": "blob", "sha256": sha256, "size": 5000}],
    }
    assert blobs.path(sha256).read_bytes() == other


def test_what_follows_a_data_url_stays(media: Capture) -> None:
    small = "data:image/gif;base64,R0lGODlhAQ==, then "
    assert encoded(f"{URL}\n", media) == {
        "$stepwell": "text",
        "text": "[blob 1: image/png, 20008 bytes]\n",
        "blobs": [BLOB],
    }
    assert encoded(f"{small}{URL} é", media)["text"] == f"{small}[blob 1: image/png, 20008 bytes] é"


def test_media_in_fields_of_objects_are_found(media: Capture) -> None:
    import pydantic

    class Part(pydantic.BaseModel):
        mime_type: str
        data: bytes

    assert encoded(Part(mime_type="image/png", data=PHOTO), media) == {"mime_type": "image/png", "data": BLOB}


def test_a_photo_larger_than_a_field_may_be_survives(blobs: BlobStore) -> None:
    photo = random.Random(3).randbytes(6_000_000)
    url = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
    for limit in (256, 4 * 1024 * 1024):
        found = encoded({"content": [{"text": "look"}, {"url": url}]}, Capture(max_field_bytes=limit, blobs=blobs))
        assert found["content"][1]["url"]["size"] == 6_000_000
    assert stored(blobs) == [photo]


def test_a_reference_is_whole_or_counted_as_left_out(blobs: BlobStore) -> None:
    data = Capture(max_field_bytes=600, blobs=blobs).encode([URL] * 10)
    assert len(data) <= 600
    found = orjson.loads(data)
    assert found == [BLOB] * (len(found) - 1) + [{"$stepwell": "truncated", "items": 11 - len(found)}]
    assert len(found) > 1


def test_more_media_than_a_payload_may_hold_are_cut_as_ever(media: Capture) -> None:
    half = base64.b64encode(bytes(MAX_MEDIA_BYTES // 2 + 3)).decode()
    first, second = encoded([f"data:a/b;base64,{half}", f"data:a/b;base64,{half}"], media)
    assert first["$stepwell"] == "blob"
    assert (second["$stepwell"], second["characters"]) == ("truncated", len(half) + 16)
    assert encoded(bytes(MAX_MEDIA_BYTES + 1), media)["$stepwell"] == "bytes"


def test_the_work_is_bounded_however_large_the_media_are(media: Capture) -> None:
    huge = "data:image/png;base64," + "A" * 100_000_000
    for value in (huge, {"media_type": "image/png", "data": huge[22:]}, f"![x]({huge})", huge.encode()):
        started = time.thread_time()
        assert b'"$stepwell":' in media.encode(value)
        assert time.thread_time() - started < 1.0


def test_the_same_media_are_stored_once_and_again_where_they_are_gone(media: Capture, blobs: BlobStore) -> None:
    assert encoded(URL, media) == BLOB
    before = blobs.path(SHA256).stat().st_ino
    assert encoded([URL, PHOTO], media) == [BLOB, UNTYPED]
    assert blobs.path(SHA256).stat().st_ino == before
    shutil.rmtree(blobs.folder)
    assert encoded(URL, media) == BLOB
    assert blobs.path(SHA256).read_bytes() == PHOTO


def test_bytes_that_are_base64_are_not_taken_for_what_they_encode(media: Capture) -> None:
    assert encoded(URL, media)["sha256"] == SHA256
    assert encoded(BASE64.encode(), media)["sha256"] == hashlib.sha256(BASE64.encode()).hexdigest()


# -- where they can't be stored


def test_without_a_home_nothing_changes(captured: Captured) -> None:
    with sw.tool("x", input={"url": URL}) as step:
        step.output = PHOTO
    fields = captured.fields("x")
    assert fields["input"] == {"url": URL}
    assert base64.b64decode(fields["output"]["base64"]) == PHOTO


def test_a_folder_that_can_not_be_written_costs_no_payload_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("in the way")
    faults = Faults()
    media = Capture(blobs=BlobStore(tmp_path / "blobs"), fault=faults)
    assert encoded({"url": URL, "bytes": PHOTO}, media) == encoded({"url": URL, "bytes": PHOTO}, Capture())
    assert faults == ["keep media", "keep media"]
    rewritten = Capture(blobs=BlobStore(tmp_path / "blobs"), fault=faults, redact=[bytes])
    assert encoded({"url": URL}, rewritten) == {"url": URL}


def test_a_full_disk_costs_no_payload_and_is_counted(tmp_path: Path) -> None:
    with capture(home=tmp_path / "home") as captured:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            data = RECORDER.encode({"url": URL})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert orjson.loads(data) == {"url": URL}
        assert sw.stats().faults == {"keep media": 1}
        assert captured.records == []


# -- secrets


KEY = "sk-" + "Zq8" * 10
NOTE = ("a line of text\n" * 400 + f"key={KEY}\n").encode()
MASKED = NOTE.replace(KEY.encode(), b"[redacted:openai:33]")


def test_text_is_masked_before_it_is_stored(media: Capture, blobs: BlobStore) -> None:
    url = f"data:text/plain;base64,{base64.b64encode(NOTE).decode()}"
    digest = hashlib.sha256(MASKED).hexdigest()
    for _again in range(2):
        assert encoded([url, NOTE], media) == [
            {"$stepwell": "blob", "sha256": digest, "size": len(MASKED), "mime": "text/plain"},
            {"$stepwell": "blob", "sha256": digest, "size": len(MASKED)},
        ]
    assert stored(blobs) == [MASKED]


def test_what_is_no_text_and_holds_a_secret_is_not_stored(media: Capture, blobs: BlobStore) -> None:
    data = PHOTO + KEY.encode()
    marker = {"$stepwell": "bytes", "size": len(data), "base64": f"[redacted:bytes:{len(data)}]"}
    assert encoded([data, f"data:image/png;base64,{base64.b64encode(data).decode()}"], media) == [marker, marker]
    assert not blobs.folder.exists()


def test_text_with_a_secret_that_can_not_be_stored_is_not_left_in_base64(tmp_path: Path, faults: Faults) -> None:
    (tmp_path / "blobs").write_text("in the way")
    media = Capture(blobs=BlobStore(tmp_path / "blobs"), fault=faults)
    url = f"data:text/plain;base64,{base64.b64encode(NOTE).decode()}"
    assert encoded(url, media)["base64"] == f"[redacted:bytes:{len(NOTE)}]"


def fails(data: bytes) -> bytes:
    raise ZeroDivisionError(data)


def drops_photos(data: bytes) -> bytes:
    payload = json.loads(data)
    if type(payload) is dict:
        payload.pop("photo", None)
    return orjson.dumps(payload)


def test_media_of_a_payload_that_is_dropped_are_not_stored(blobs: BlobStore) -> None:
    assert encoded({"photo": URL}, Capture(blobs=blobs, redact=[fails]))["$stepwell"] == "redaction_failed"
    assert encoded({"photo": URL, "n": 1}, Capture(blobs=blobs, redact=[drops_photos])) == {"n": 1}
    assert not blobs.folder.exists()
    assert encoded({"picture": URL}, Capture(blobs=blobs, redact=[drops_photos])) == {"picture": BLOB}
    assert stored(blobs) == [PHOTO]


def test_a_function_sees_text_media_as_a_text(blobs: BlobStore) -> None:
    hide = Capture(blobs=blobs, redact=[lambda data: data.replace(b"a line", b"a LINE")])
    encoded(b"a line of text\n" * 400, hide)
    assert stored(blobs) == [b"a LINE of text\n" * 400]


def test_media_under_a_secret_name_leave_no_blob(media: Capture, blobs: BlobStore) -> None:
    assert re.fullmatch(r"\[redacted:secret:\d+\]", encoded({"secret": PHOTO}, media)["secret"])
    assert re.fullmatch(r"\[redacted:cookies:\d+\]", encoded({"cookies": [URL, {1}]}, media)["cookies"])
    assert not blobs.folder.exists()


def test_media_used_as_a_key_leave_no_blob(media: Capture, blobs: BlobStore) -> None:
    assert encoded({URL: 1, PHOTO: 2}, media).keys() == encoded({URL: 1, PHOTO: 2}, Capture()).keys()
    assert not blobs.folder.exists()


# -- from end to end


def test_a_chat_that_sends_its_image_with_every_turn_stores_it_once(tmp_path: Path, at_home: Captured) -> None:
    image = {"type": "image_url", "image_url": {"url": URL}}
    messages: list[Any] = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    for _turn in range(3):
        with sw.llm("answer", model="gpt-4o", messages=messages) as step:
            step.record({"choices": [{"message": {"role": "assistant", "content": "A well."}}]})
        messages.append({"role": "user", "content": "Sure?"})
    for step_record in at_home.steps:
        fields = json.loads(bytes(step_record.generation))  # type: ignore[arg-type]
        assert fields["messages"][0]["content"][1]["image_url"]["url"] == BLOB
    files = [path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in files] == [PHOTO]


def test_every_payload_of_a_step_is_looked_through(tmp_path: Path, at_home: Captured) -> None:
    @sw.tool
    def look(picture: bytes) -> Any:
        return {"thumbnail": picture}

    with sw.thread("t", metadata={"photo": URL}):
        look(PHOTO)
        sw.user_message(["see", URL], name="message", metadata={"photo": PHOTO})
    assert at_home.fields("look")["input"] == {"picture": UNTYPED}
    assert at_home.fields("look")["output"] == {"thumbnail": UNTYPED}
    assert at_home.fields("message")["output"] == {"content": ["see", BLOB]}
    assert at_home.fields("message")["metadata"] == {"photo": UNTYPED}
    assert json.loads(bytes(at_home.threads[0].metadata)) == {"photo": BLOB}  # type: ignore[arg-type]


def test_show_export_and_import_keep_the_reference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, other = str(tmp_path / "home"), str(tmp_path / "other")
    sw.configure(export="sqlite:", home=home)
    with sw.thread("t"):
        step = sw.user_message([{"type": "text", "text": "Look"}, {"image": URL}], metadata={"raw": PHOTO})
    assert sw.flush(10)
    sw.shutdown()
    file = str(tmp_path / "records.jsonl")
    assert cli.run(["export", "--home", home, "--output", file]) == 0
    assert cli.run(["import", file, "--home", other]) == 0
    for folder in (home, other):
        capsys.readouterr()
        assert cli.run(["show", step.id, "--home", folder]) == 0
        shown = capsys.readouterr().out
        assert '"image": "image/png, 20.0 kB"' in shown
        assert '"raw": "unknown type, 20.0 kB"' in shown
        assert cli.run(["show", step.id, "--home", folder, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["output"]["content"][1] == {"image": BLOB}


# -- the quick look


@given(
    st.binary(max_size=1000).map(base64.b64encode),
    st.text(max_size=2000),
    st.text(max_size=2000),
    st.integers(0, 400),
    st.integers(5463, 9000),
)
def test_the_quick_look_never_misses_media(noise: bytes, before: str, after: str, shift: int, length: int) -> None:
    text = noise.decode() + " " * shift + before + "," + "Ab3+" * (length // 4) + "A" * (length % 4) + "," + after
    try:
        data = orjson.dumps({"content": text})
    except orjson.JSONEncodeError:
        return  # lone surrogates: the slow path looks anyway
    assert may_hold_media(data)


@pytest.mark.parametrize(
    "value",
    [
        "It is fed by the spring above the northern gate. " * 2000,
        [0.123456789] * 5000,
        ["a" * 5000] * 20,
        "{};\n" * 5000,
    ],
)
def test_a_payload_without_media_takes_the_quick_way(
    value: Any, media: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object) -> bytes:
        raise AssertionError

    monkeypatch.setattr(_capture, "_encode_slowly", slow)
    assert media.encode({"content": value}) == orjson.dumps({"content": value})


def test_blobs_are_readable_by_their_owner_alone(media: Capture, blobs: BlobStore) -> None:
    media.encode(PHOTO)
    assert blobs.path(SHA256).stat().st_mode & 0o777 == 0o600
