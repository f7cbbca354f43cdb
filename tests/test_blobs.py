"""Attachments: stored once under the hash of their bytes, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwell.blobs import BlobStore
from stepwell.errors import NotFoundError, UsageError

HELLO = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def files(store: BlobStore) -> list[str]:
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file())


def test_bytes_are_stored_under_their_hash(store: BlobStore) -> None:
    assert store.put(b"hello") == HELLO
    assert files(store) == [f"2c/{HELLO}"]
    assert store.path(HELLO).read_bytes() == b"hello"
    assert store.path(HELLO).stat().st_mode & 0o777 == 0o600
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_the_same_bytes_are_stored_once(store: BlobStore, tmp_path: Path) -> None:
    store.put(b"hello")
    before = store.path(HELLO).stat().st_ino
    (tmp_path / "hello.txt").write_bytes(b"hello")
    assert store.put(b"hello") == HELLO
    assert store.path(HELLO).stat().st_ino == before
    assert store.put_file(tmp_path / "hello.txt", max_bytes=5) == (HELLO, 5)
    assert files(store) == [f"2c/{HELLO}"]


@given(content=st.binary(max_size=5000))
def test_what_is_stored_is_found(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder = tmp_path_factory.mktemp("blobs")
    store = BlobStore(folder / "store")
    (folder / "file").write_bytes(content)
    digest, size = store.put_file(folder / "file", max_bytes=5000)
    assert (digest, size) == (hashlib.sha256(content).hexdigest(), len(content))
    assert store.put(content) == digest
    assert store.path(digest).read_bytes() == content


def test_a_file_changed_later_does_not_change_the_blob(store: BlobStore, tmp_path: Path) -> None:
    source = tmp_path / "photo"
    source.write_bytes(b"x" * 3_000_000)
    digest, size = store.put_file(source, max_bytes=1 << 30)
    source.write_bytes(b"changed")
    assert size == 3_000_000
    assert store.path(digest).read_bytes() == b"x" * 3_000_000


def test_a_file_that_is_too_large_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 11)
    with pytest.raises(UsageError, match=r"big' is larger than 10 bytes"):
        store.put_file(tmp_path / "big", max_bytes=10)
    assert files(store) == []


def test_what_is_no_regular_file_is_refused_at_once(store: BlobStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(UsageError, match="is not a file"):
            store.put_file(path, max_bytes=10)
    with pytest.raises(FileNotFoundError):
        store.put_file(tmp_path / "missing", max_bytes=10)


def test_a_blob_that_finds_no_room_is_an_error_and_leaves_nothing(store: BlobStore, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    (tmp_path / "big").write_bytes(b"x" * 100_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            store.put(b"x" * 100_000)
        with pytest.raises(OSError, match="File too large"):
            store.put_file(tmp_path / "big", max_bytes=1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert files(store) == []


def test_threads_that_store_the_same_bytes_all_succeed(store: BlobStore) -> None:
    start = threading.Barrier(8)
    got: list[str] = []

    def put() -> None:
        start.wait()
        got.append(store.put(b"hello"))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [HELLO] * 8
    assert files(store) == [f"2c/{HELLO}"]


def test_only_a_hash_is_a_name(store: BlobStore) -> None:
    for name in ("", "../../etc/passwd", HELLO.upper(), HELLO[:-1], HELLO + "0"):
        with pytest.raises(UsageError, match="is not a SHA-256 in 64 lower-case hex digits"):
            store.path(name)
    with pytest.raises(NotFoundError, match=f"no blob {HELLO}"):
        store.path(HELLO)
