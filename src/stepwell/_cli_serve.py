"""`stepwell serve`: the server over a store, until a signal ends it.

What must stay true: beyond this machine it serves with keys only.
"""

from __future__ import annotations

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from stepwell._cli_output import Output, ReaderGoneError
from stepwell._cli_source import find_source
from stepwell._pipeline import prepare_home
from stepwell.errors import UsageError
from stepwell.store import open_store

__all__ = ["MAX_PORT", "MAX_WRITERS", "find_home", "serve"]

MAX_PORT: Final = 65_535
MAX_WRITERS: Final = 16


def serve(
    home: Path | None,
    store: str | None,
    address: tuple[str, int, str],
    bounds: tuple[int | None, int | None],
    out: Output,
    *,
    writers: int | None = None,
) -> int:
    """Serve at an address (host, port, path of a proxy), keeping what is within bounds (ns, bytes).

    `writers` is how many processes share the writing; None leaves the number to the server.

    Returns the exit status. Raises `UsageError`, `StoreError` where that can't be.
    """
    try:
        from stepwell.server._keys import KeyRing
        from stepwell.server._logs import log_as_json
        from stepwell.server._run import is_private, listen, run, url_of
        from stepwell.server._upkeep import Retention
        from stepwell.server._writers import DEFAULT_WRITERS
        from stepwell.server.app import create_app
    except ModuleNotFoundError as error:
        raise UsageError(f"the server needs {error.name}: pip install 'stepwell[server]'") from error
    host, port, prefix = address
    if prefix and not re.fullmatch(r"(/[A-Za-z0-9._~-]+)+/?", prefix):
        raise UsageError(f"--prefix {prefix!r} is no path such as /traces")
    folder, url = find_home(home, store)
    keys = KeyRing(folder).keys()
    opened = open_store(url)
    try:
        listening = listen(host, port)
        with listening:
            if not is_private(listening) and not keys:
                raise UsageError(f"--host {host} is for other machines too, so it needs keys: stepwell keys add NAME")

            def tell() -> None:
                with suppress(ReaderGoneError, BrokenPipeError):
                    out.text(f"stepwell serves {url} at {url_of(listening)}{prefix.rstrip('/')}")
                    if sys.stdout is not None:
                        sys.stdout.flush()

            log_as_json()
            retention = Retention(keep_ns=bounds[0], max_bytes=bounds[1])
            most = DEFAULT_WRITERS if writers is None else writers
            app = create_app(opened, home=folder, retention=retention, prefix=prefix, writers=most)
            run(app, listening, tell, app.state.live.close)
    finally:
        opened.close()
    return 0


def find_home(home: Path | None, store: str | None) -> tuple[Path, str]:
    """Return the folder of keys, projects and blobs, made where it is not there, and the store's URL."""
    source = find_source(home, store)
    if store is None:
        folder, url = source.home.absolute(), f"sqlite:{source.home.absolute() / 'steps.db'}"
    else:
        path = store.removeprefix("sqlite:")
        if path in ("", ":memory:"):
            raise UsageError(f"--store {store!r} is no file to serve: expected sqlite:PATH")
        folder, url = Path(path).absolute().parent, f"sqlite:{Path(path).absolute()}"

    def refuse(_: str, error: BaseException) -> NoReturn:
        raise UsageError(f"home folder {str(folder)!r} can't be made: {error}") from error

    prepare_home(folder, refuse)
    return folder, url
