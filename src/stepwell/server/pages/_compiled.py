"""Templates, compiled and filled in.

To compile all of them takes half a second, to load what was compiled some milliseconds: so it is kept.

What must stay true: code is loaded only from a folder that is this user's alone (0700), and only where it was made by
this Python, this Jinja and this version of ours of the very source. Where there is no such folder, and none can be
made, each process compiles for itself.
"""

from __future__ import annotations

import marshal
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from types import CodeType
from typing import Any, Final

from jinja2 import BytecodeCache, Environment, PackageLoader, Template
from jinja2.bccache import Bucket
from jinja2.runtime import Context

from stepwell._vocabulary import SDK

__all__ = ["Filling", "KeptTemplates", "OneByOne", "cache_folder", "filled"]

_MARK_BYTES: Final = 32
_MADE: Final = "_made"


class Filling(Context):
    """What a template is filled in with, which says that it was made to whoever fills it in.

    A macro holds its context and the context its macros: such a circle, with all that a page shows, would stay until
    the garbage collector finds it, which then stops all requests for as long as it takes to free thousands of objects.
    """

    def __init__(self, environment: Environment, parent: dict[str, Any], *others: Any, **more: Any) -> None:
        super().__init__(environment, parent, *others, **more)
        made: list[Filling] | None = parent.get(_MADE)  # those of included templates have it of the one around
        if made is not None:
            made.append(self)

    def forget(self) -> None:
        """Let go of everything: nothing is rendered with it any more."""
        for held in (self.vars, self.parent, self.blocks):
            held.clear()


def filled(template: Template, context: Mapping[str, Any]) -> str:
    """Return a template, filled in."""
    made: list[Filling] = []
    try:
        return template.render({**context, _MADE: made})
    finally:
        for each in made:
            each.forget()


def cache_folder() -> Path | None:
    """Return where compiled templates are kept, `$XDG_CACHE_HOME/stepwell/templates`; None where there is no home."""
    named = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):
        caches = Path(named) if named.startswith("/") else Path("~/.cache").expanduser()
        return caches / "stepwell" / "templates"
    return None


class OneByOne(PackageLoader):
    """Loads templates of ours; one that two threads want at once is compiled by one of them."""

    def __init__(self, package: str) -> None:
        super().__init__(package)
        self._loading = Lock()

    def load(self, environment: Environment, name: str, globals: Any = None) -> Template:
        """Return a template. Raises `TemplateNotFound`."""
        with self._loading:
            return super().load(environment, name, globals)


class KeptTemplates(BytecodeCache):
    """Keeps what was compiled: in memory, and in `folder` if that can be had."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._codes: dict[str, tuple[str, CodeType]] = {}
        self._makers = f"{SDK} {version('jinja2')} {sys.version}"

    def load_bytecode(self, bucket: Bucket) -> None:
        """Give the bucket its code, where it is known."""
        checksum, code = self._codes.get(bucket.key, ("", None))
        if checksum == bucket.checksum:
            bucket.code = code
            return
        with suppress(OSError), self._opened() as folder:
            kept = _read(folder, bucket.key)
            mark, marshalled = kept[:_MARK_BYTES], kept[_MARK_BYTES:]
            if mark == self._mark(bucket, marshalled):
                bucket.code = marshal.loads(marshalled)  # noqa: S302 (written by this user, with a mark)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the bucket's code."""
        if bucket.code is None:
            return
        self._codes[bucket.key] = bucket.checksum, bucket.code
        marshalled = marshal.dumps(bucket.code)
        with suppress(OSError), self._opened() as folder:
            _write(folder, bucket.key, self._mark(bucket, marshalled) + marshalled)

    def get_cache_key(self, name: str, filename: str | None = None) -> str:  # noqa: ARG002 (wherever it lies)
        """Return the name of a template's file: it has one for each version of Python."""
        return f"{name}.{sys.implementation.cache_tag}"

    def _mark(self, bucket: Bucket, marshalled: bytes) -> bytes:
        syntax = bucket.environment
        options = (syntax.autoescape, syntax.trim_blocks, syntax.lstrip_blocks, syntax.keep_trailing_newline)
        made_by = f"{self._makers} {options} {bucket.checksum} ".encode()
        return blake2b(made_by + marshalled, digest_size=_MARK_BYTES).digest()

    @contextmanager
    def _opened(self) -> Generator[int]:
        """Open the folder, made where it is not there. Raises `OSError`, also where it is not this user's alone."""
        if self._folder is None:
            raise FileNotFoundError
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            state = os.fstat(fd)
            if state.st_uid != os.geteuid() or state.st_mode & 0o077:
                raise PermissionError
            yield fd  # files are opened below it: whatever its path leads to by then
        finally:
            os.close(fd)


def _read(folder: int, name: str) -> bytes:
    with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder), "rb") as file:  # noqa: PTH123 (Path.open takes no descriptor)
        return file.read()


def _write(folder: int, name: str, content: bytes) -> None:
    """Replace a file as a whole. Raises `OSError`."""
    new = f"{name}.{os.urandom(8).hex()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(new, flags, 0o600, dir_fd=folder), "wb") as file:  # noqa: PTH123 (as above)
            file.write(content)
        os.replace(new, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with suppress(OSError):
            os.unlink(new, dir_fd=folder)
        raise
