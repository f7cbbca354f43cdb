"""The keys of a home: who may use its server, for what, and in which project.

What must stay true:

1. A key is shown once, when it is made; what is kept is its SHA-256. Nobody guesses 256 random bits, so a slow hash
   would only make each request slow.
2. A key is compared with all that there are, each in constant time.
3. The file is replaced as a whole, one writer at a time; a server sees the change with its next request. One that can't
   be read lets nobody in.
"""

from __future__ import annotations

import fcntl
import hmac
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import Final, Literal

from msgspec import DecodeError, Struct, json

from stepwell._files import open_private
from stepwell.errors import StoreError, UsageError
from stepwell.server._places import check_name

__all__ = ["ALL_SCOPES", "Failures", "Key", "KeyRing", "Scope"]

Scope = Literal["ingest", "read", "admin"]
ALL_SCOPES: Final[frozenset[Scope]] = frozenset(("ingest", "read", "admin"))

_PREFIX: Final = "sw_"


class Key(Struct, frozen=True, omit_defaults=True):
    """A key as it is kept; `project` is None for the home's own data."""

    name: str
    sha256: str
    scopes: tuple[Scope, ...]
    project: str | None = None
    created_ns: int = 0


class _File(Struct):
    version: Literal[1]
    keys: list[Key]


_decode: Final = json.Decoder(_File).decode


class KeyRing:
    """The keys in a home's `keys.json`; no such file means that there are none."""

    def __init__(self, home: Path) -> None:
        self.path = home / "keys.json"
        self._seen: tuple[int, int, int] | None = None  # the file that `_keys` is from
        self._keys: tuple[Key, ...] = ()

    def keys(self) -> tuple[Key, ...]:
        """Return all keys, as the file has them now. Raises `StoreError` where it can't be read."""
        try:
            found = os.stat(self.path)  # noqa: PTH116 (each request: a Path costs more than the call)
        except FileNotFoundError:
            self._seen, self._keys = None, ()
            return self._keys
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror}") from error
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._keys = self._read()
            self._seen = seen
        return self._keys

    def find(self, secret: str) -> Key | None:
        """Return the key that a client showed, None where there is no such."""
        digest = sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        found: Key | None = None
        for key in self.keys():
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def add(self, name: str, scopes: Iterable[str], project: str | None = None) -> str:
        """Make a key and return it; it is not to be had again. Raises `UsageError`, `StoreError`."""
        check_name(name, "key name")
        if project is not None:
            check_name(project, "project")
        held: tuple[Scope, ...] = tuple(sorted({_scope(each) for each in scopes})) or ("ingest", "read")
        secret = _PREFIX + secrets.token_urlsafe(32)
        with self._changing() as keys:
            if any(key.name == name for key in keys):
                raise UsageError(f"there is a key {name!r} already: revoke it first, or take another name")
            digest = sha256(secret.encode()).hexdigest()
            keys.append(Key(name, digest, held, project, time.time_ns()))
        return secret

    def revoke(self, name: str) -> None:
        """Take a key away. Raises `UsageError` where there is no such, `StoreError`."""
        with self._changing() as keys:
            kept = [key for key in keys if key.name != name]
            if len(kept) == len(keys):
                raise UsageError(f"there is no key {name!r}")
            keys[:] = kept

    @contextmanager
    def _changing(self) -> Generator[list[Key]]:
        try:
            lock = open_private(self.path.with_name("keys.lock"), os.O_CREAT | os.O_RDWR)
        except OSError as error:
            raise StoreError(f"{self.path} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            keys = list(self.keys())
            yield keys
            self._write(keys)
        finally:
            os.close(lock)

    def _read(self) -> tuple[Key, ...]:
        try:
            return tuple(_decode(self.path.read_bytes()).keys)
        except OSError as error:
            raise StoreError(f"{self.path} can't be read: {error.strerror}") from error
        except (DecodeError, UnicodeDecodeError) as error:
            raise StoreError(f"{self.path} holds no keys of stepwell: {error}") from error

    def _write(self, keys: list[Key]) -> None:
        new = self.path.with_name(f".keys-{os.urandom(8).hex()}")
        try:
            descriptor = open_private(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            with open(descriptor, "wb") as file:  # noqa: PTH123 (Path.open takes no descriptor)
                file.write(json.format(json.encode(_File(1, keys)), indent=2) + b"\n")
                file.flush()
                os.fsync(descriptor)
            new.replace(self.path)
        except OSError as error:
            raise StoreError(f"{self.path} can't be written: {error.strerror}") from error
        finally:
            with suppress(OSError):
                new.unlink(missing_ok=True)


def _scope(text: str) -> Scope:
    if text not in ALL_SCOPES:
        raise UsageError(f"there is no scope {text!r}, only ingest, read and admin")
    return text


class Failures:
    """Counts wrong keys by client, to answer those that go on with less.

    Right keys always pass, or one client with a revoked key would lock out all others behind the same proxy.
    """

    MOST: Final = 10
    WINDOW_S: Final = 60.0
    _CLIENTS: Final = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._of: dict[str, tuple[float, int]] = {}  # when the window began, and how many since

    def add(self, client: str) -> float:
        """Count one; return the seconds for which this client is to stay away, 0 for none."""
        now = self._clock()
        began, count = self._of.pop(client, (now, 0))
        if now - began >= self.WINDOW_S:
            began, count = now, 0
        self._of[client] = (began, count + 1)
        if len(self._of) > self._CLIENTS:
            del self._of[next(iter(self._of))]
        return began + self.WINDOW_S - now if count >= self.MOST else 0.0
