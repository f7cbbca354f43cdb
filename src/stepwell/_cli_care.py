"""`stepwell vacuum`, `backup` and `rm`: what takes away, and what copies before it is needed.

What must stay true: what the journal still holds is in the store before something is deleted or copied; nothing is
deleted that was not asked for by name, or by age or size.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from stepwell._cli_output import Output
from stepwell._cli_source import Source, add_all
from stepwell._unused_blobs import remove_unused
from stepwell.blobs import BlobStore
from stepwell.errors import NotFoundError, StoreError, UsageError
from stepwell.store import Deleted, Store, ThreadFilter, open_store
from stepwell.store._loose import hashes_in

__all__ = ["age_ns", "backup", "remove", "size_bytes", "vacuum"]

_REBUILD_S: Final = 60.0  # for the index of words, which a vacuum throws away; the rest is for whoever searches
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_BYTES: Final = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}


def age_ns(option: str, text: str | None) -> int | None:
    """Read `30d`, `12h` or the like, in nanoseconds. Raises `UsageError`."""
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return int(found[1]) * _SECONDS[found[2]] * 1_000_000_000
    raise UsageError(f"{option} {text!r} is not an age like 12h, 30d or 8w")


def size_bytes(option: str, text: str | None) -> int | None:
    """Read `500MB`, `2GB` or a number of bytes; `2GiB` is 1024 to the third. Raises `UsageError`."""
    if text is None:
        return None
    if found := re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?) ?([KMGT]?)(i?)B?", text, re.IGNORECASE):
        unit = _BYTES[found[2].upper()]
        if found[3]:
            unit = 1024 ** "_KMGT".index(found[2].upper() or "_")
        return int(float(found[1]) * unit)
    raise UsageError(f"{option} {text!r} is not a size like 500MB or 2GB")


@contextmanager
def _opened(source: Source) -> Generator[tuple[Store, BlobStore], None, None]:
    """Open a store that is there, for writing, with what the journal holds; and the blobs beside it."""
    if source.url is None:
        path, url = source.store_path, source.store_url
    else:
        path = Path(source.url.removeprefix("sqlite:")).absolute()
        url = f"sqlite:{path}"
    if not path.is_file():
        raise StoreError(f"there is no store at {path}")
    store = open_store(url)
    try:
        if source.url is None:
            add_all(store, source.waiting())
        yield store, BlobStore(path.parent / "blobs")
    finally:
        store.close()


class Freed(Struct):
    """What went."""

    steps: int
    threads: int
    messages: int
    blobs: int
    blob_bytes: int
    blobs_left: int
    bytes_before: int
    bytes_after: int


def vacuum(source: Source, keep_ns: int | None, max_bytes: int | None, out: Output) -> None:
    """Delete what is older or too much, where that is asked for, and give the space back."""
    with _opened(source) as (store, blobs):
        before = store.stats().bytes_on_disk
        before_ns = None if keep_ns is None else max(time.time_ns() - keep_ns, 0)
        expired = store.expire(before_ns=before_ns, max_bytes=max_bytes)
        store.vacuum()
        store.catch_up(_REBUILD_S)
        _tell(expired, store, blobs, before, out)


def remove(source: Source, ids: Sequence[str], user: str | None, out: Output, *, yes: bool) -> int:
    """Delete threads, runs and a user's data, after asking; return the exit status, 1 where the answer was no."""
    if not ids and user is None:
        raise UsageError("name what to delete: ids of threads or runs, or --user NAME")
    with _opened(source) as (store, blobs):
        planned = [_plan(store, id) for id in ids]
        if user is not None:
            planned.append((_user(store, user), lambda: store.delete_user(user)))
        for what, _ in planned:
            out.note(f"delete {what}")
        if not yes and not _confirmed():
            out.note("nothing was deleted")
            return 1
        before = store.stats().bytes_on_disk
        total = Deleted()
        for _, delete in planned:
            try:
                total = _sum(total, delete())
            except NotFoundError:
                if total == Deleted():  # or it went with one named before
                    raise
        _tell(total, store, blobs, before, out)
    return 0


def _plan(store: Store, id: str) -> tuple[str, Callable[[], Deleted]]:
    found = store.find(id)
    if found.kind == "thread":
        steps = len(store.thread_steps(found.id))
        return f"thread {found.id} with {steps:,} steps", lambda: store.delete_thread(found.id)
    step = store.step(found.id)
    root = store.tree(step.root_run_id if step.root_run_id and _is_there(store, step.root_run_id) else found.id)
    return f"run {root[0].name or root[0].id} of {len(root):,} steps", lambda: store.delete_run(found.id)


def _is_there(store: Store, id: str) -> bool:
    try:
        return store.find(id).id == id
    except NotFoundError:
        return False


def _user(store: Store, user: str) -> str:
    threads = store.threads(ThreadFilter(user=user), limit=1000)
    count = f"{len(threads.items):,}{' or more' if threads.next_cursor else ''}"
    return f"user {user}: {count} threads and all runs with a step of theirs"


def _sum(one: Deleted, other: Deleted) -> Deleted:
    return Deleted(
        one.steps + other.steps, one.threads + other.threads, one.messages + other.messages, one.blobs + other.blobs
    )


def _confirmed() -> bool:
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("nobody is there to ask: pass --yes to delete this")
    sys.stderr.write("Delete this for good? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _tell(deleted: Deleted, store: Store, blobs: BlobStore, before: int, out: Output) -> None:
    removed = remove_unused(store, blobs)
    after = store.stats().bytes_on_disk
    counts = (deleted.steps, deleted.threads, deleted.messages)
    freed = Freed(*counts, removed.blobs, removed.bytes, removed.left, before, after)
    if out.as_json:
        out.json(freed)
        return
    out.text(f"{freed.steps:,} steps, {freed.threads:,} threads and {freed.messages:,} messages deleted")
    left = f", {freed.blobs_left:,} left for a later time" if freed.blobs_left else ""
    out.text(f"{freed.blobs:,} blobs of {freed.blob_bytes:,} bytes removed{left}")
    out.text(f"the store has {freed.bytes_after:,} bytes, it had {freed.bytes_before:,}")


def backup(source: Source, target: Path, out: Output) -> None:
    """Copy the store to a file `*.db`, or store and blobs to a new folder, which is then a home."""
    with _opened(source) as (store, blobs):
        if target.suffix == ".db":
            store.backup(target.absolute())
            out.text(f"{target}: the store, without blobs")
            return
        with _new_folder(target) as folder:
            store.backup(folder / "steps.db")
            count, missing = _copy_blobs(folder, blobs)
        out.text(f"{target}: the store and {count:,} blobs; read it with --home {target}")
        if missing:
            out.note(f"{missing:,} blobs that records name are not here, and not in the copy")


@contextmanager
def _new_folder(target: Path) -> Generator[Path, None, None]:
    """Give a folder that gets its name when all is in it."""
    if target.exists():
        raise UsageError(f"{str(target)!r} is there already: name a new folder, or a file that ends with .db")
    folder = target.absolute().with_name(f".{target.name}-{os.urandom(8).hex()}")
    folder.mkdir(mode=0o700)
    try:
        yield folder
        folder.rename(target.absolute())
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _copy_blobs(folder: Path, blobs: BlobStore) -> tuple[int, int]:
    """Copy the blobs that the copied store names; return how many there were and how many not."""
    kept = BlobStore(folder / "blobs")
    seen: set[str] = set()
    missing = 0
    for sha256 in _named_by(folder / "steps.db"):
        if sha256 in seen:
            continue
        seen.add(sha256)
        try:
            kept.put_file(blobs.path(sha256), max_bytes=sys.maxsize)
        except NotFoundError:
            missing += 1
    return len(seen) - missing, missing


def _named_by(path: Path) -> Iterator[str]:
    store = open_store(f"sqlite:{path}", read_only=True)
    try:
        for record in store.records():
            yield from sorted(hash.hex() for hash in hashes_in(record))
    finally:
        store.close()
