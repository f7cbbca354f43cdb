"""A process that adds batches to SQLite stores for another one: `python -m stepwell.store._writer_process FD`.

FD is one end of a pipe, on which the two speak in turn (messages of `multiprocessing.connection`): it says `READY`; to
each `Batch` it says `TURN` when all is ready but the writing, waits for any word, and says the `Outcome`.

What must stay true: it ends when its pipe does, so it outlives nobody; a batch whose outcome was said is committed.
"""

from __future__ import annotations

import signal
import sys
from multiprocessing.connection import Connection
from typing import Final

from msgspec import Struct, msgpack

from stepwell._collector import collect_seldom, keep_what_is
from stepwell.errors import StoreError
from stepwell.store import AddResult
from stepwell.store.sqlite import SqliteStore

__all__ = ["READY", "TURN", "Batch", "Outcome", "serve"]

READY: Final = b"ready"
TURN: Final = b"turn"
_MAX_STORES: Final = 8  # open at once: each holds up to 16 MB of its file


class Batch(Struct, array_like=True):
    """Records for the store in a file."""

    path: str
    frames: list[bytes]


class Outcome(Struct, array_like=True):
    """What became of a batch; `problem` says why the store could not take it, None for both asks to be rid of it."""

    result: AddResult | None = None
    problem: str | None = None


class _Stores(dict[str, SqliteStore]):
    def __missing__(self, path: str) -> SqliteStore:
        while len(self) >= _MAX_STORES:
            self.pop(next(iter(self))).close()
        store = self[path] = SqliteStore.from_url(f"sqlite:{path}")
        return store


def serve(pipe: Connection) -> None:
    """Add what comes through the pipe until it ends."""
    stores = _Stores()
    decode = msgpack.Decoder(Batch).decode

    def turn() -> None:
        pipe.send_bytes(TURN)
        pipe.recv_bytes()

    try:
        pipe.send_bytes(READY)
        while True:
            batch = decode(pipe.recv_bytes())
            try:
                outcome = Outcome(stores[batch.path].add_in_turn(batch.frames, turn))
            except StoreError as error:
                outcome = Outcome(problem=str(error))
            except MemoryError:
                outcome = Outcome()
            del batch
            pipe.send_bytes(msgpack.encode(outcome))
    except (EOFError, ConnectionError):
        for store in stores.values():
            store.close()


if __name__ == "__main__":
    for _signal in (signal.SIGINT, signal.SIGTERM):  # they go to the whole group; it is for its server to end it
        signal.signal(_signal, signal.SIG_IGN)
    collect_seldom()
    keep_what_is()
    serve(Connection(int(sys.argv[1])))
