"""Thread: a conversation, the steps recorded inside its block.

What must stay true: a thread's record is written when its block is entered, so that its steps have somewhere to belong,
and once more when the block is left if what it says has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from stepwell._checks import MAX_TAGS, checked_id, checked_name, checked_tags, shown
from stepwell._context import THREAD_KEY, Context, attach, get_current
from stepwell._frames import hide_own_frame, is_coroutine_function, named_as
from stepwell._recorder import RECORDER, Recorder
from stepwell._values import first_items, first_pairs, is_text
from stepwell.errors import UsageError

__all__ = ["MAX_TAGS", "Thread", "ThreadBlock", "checked_tags", "in_thread", "thread"]

F = TypeVar("F", bound=Callable[..., Any])


class Thread:
    """An open conversation. `tags` and `metadata` may be changed while the block is open."""

    def __init__(
        self,
        recorder: Recorder,
        id: str | None = None,
        *,
        name: str | None = None,
        user: str | None = None,
        tags: Sequence[str] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._recorder = recorder
        self.id = recorder.new_id() if id is None else id
        self.name = name
        self.user = user
        self.tags = list(tags)
        self.metadata = _dict_of(recorder, metadata)
        self.created_ns = recorder.wall_ns()
        self._written = b""
        self._previous: Context | None = None  # from before its block
        self._open = False
        self.scope = f',"thread_id":{recorder.id_json(self.id).decode()}'
        if user is not None:
            self.scope += f',"user":{recorder.text(user).decode()}'

    def write(self) -> None:
        """Append the thread's record to the journal, unless it says what it said before."""
        recorder = self._recorder
        try:
            record = self._record()
            if record != self._written:
                self._written = record
                recorder.append(record)
        except Exception as error:  # noqa: BLE001 - the containment door
            recorder.fault("record a thread", error)

    def enter(self) -> None:
        """Make the thread current and write its record. Internal."""
        if self._recorder.is_on():
            self._previous, self._open = get_current(), True
            attach(Context({**self._previous, THREAD_KEY: self}))
            try:
                self.write()
            except BaseException:  # a Ctrl-C while it runs the program's code: the block is not entered
                attach(self._previous)
                raise

    def leave(self) -> None:
        """Put back the context from before, where the thread is still current, and write what has changed. Internal."""
        if self._open and self._previous is not None:
            self._open = False
            inner: object = get_current().get(THREAD_KEY)
            if inner is self:
                attach(self._previous)
            else:
                self._give_way(inner)
            self.write()

    def _give_way(self, inner: object) -> None:
        """Have the block inside of this one, which is left after it, lead to where this one would have led.

        Only where both are left by the same task: one that goes on in a thread which others have left stays in it.
        """
        while isinstance(inner, Thread) and inner._previous is not None:
            before = inner._previous.get(THREAD_KEY)
            if before is self:
                inner._previous = self._previous
                return
            inner = before

    def _record(self) -> bytes:
        text, encode = self._recorder.text, self._recorder.encode
        parts = [b'{"kind":"thread","id":', self._recorder.id_json(self.id)]
        if self.name is not None:
            parts += (b',"name":', text(self.name))
        if self.user is not None:
            parts += (b',"user":{"identifier":', text(self.user), b"}")
        if tags := self._words():
            parts += (b',"tags":[', b",".join(map(text, tags)), b"]")
        if (metadata := encode(self.metadata)) not in (b"{}", b"null"):
            parts += (b',"metadata":', metadata)
        parts += (b',"created_ns":%d' % self.created_ns, self._recorder.thread_tail)
        return b"".join(parts)

    def _words(self) -> list[Any]:
        """Return the tags, whatever the program has put in their place."""
        given: Any = self.tags
        try:
            return [] if given is None else [given] if is_text(given) else first_items(given, MAX_TAGS)
        except Exception:  # noqa: BLE001 - it can't be iterated, or raises
            self._recorder.misuse(f"tags must be a list of strings, got {shown(given)}")
            return []


def _dict_of(recorder: Recorder, metadata: object) -> dict[str, Any]:
    try:
        return {} if metadata is None else first_pairs(metadata)
    except Exception:  # noqa: BLE001 - it is no mapping, or one that raises
        recorder.misuse(f"the metadata of a thread must be a dict, got {shown(metadata)}")
        return {}


class ThreadBlock:
    """A thread to enter: a decorator, and a context manager, sync and async, that gives the `Thread`."""

    def __init__(self, id: str | None, options: Mapping[str, Any]) -> None:
        self._id = id
        self._options = options
        self._entered: list[Thread] = []  # more than one when the same object is entered again before it is left

    def _open(self) -> Thread:
        thread = Thread(RECORDER, self._id, **self._options)
        thread.enter()
        return thread

    def __enter__(self) -> Thread:
        thread = self._open()
        self._entered.append(thread)
        return thread

    def __exit__(self, *_: object) -> None:
        # Other tasks may be in the block too: the one to leave is the caller's own.
        current = get_current().get(THREAD_KEY)
        mine = [thread for thread in self._entered if thread is current] or self._entered[-1:]
        self._entered.remove(mine[0])
        mine[0].leave()

    async def __aenter__(self) -> Thread:
        return self.__enter__()

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def __call__(self, function: F) -> F:
        """Decorate a function: every call runs in the thread, or in a new one where no id was given."""
        target: Any = function
        if issubclass(type(target), classmethod):
            return cast("F", classmethod(self(target.__func__)))
        if issubclass(type(target), staticmethod):
            return cast("F", staticmethod(self(target.__func__)))
        if not callable(target):
            raise UsageError(f"only a function can be decorated, got {shown(target)}")
        wrapper = self._awaiting(target) if is_coroutine_function(target) else self._calling(target)
        return cast("F", named_as(target, wrapper))

    def _calling(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            thread = self._open()
            try:
                return function(*args, **kwargs)
            except BaseException as error:
                hide_own_frame(error)
                raise
            finally:
                thread.leave()

        return wrapper

    def _awaiting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            thread = self._open()
            try:
                return await function(*args, **kwargs)
            except BaseException as error:
                hide_own_frame(error)
                raise
            finally:
                thread.leave()

        return wrapper


@contextmanager
def in_thread(thread: Thread) -> Generator[Thread]:
    """Make a thread current for a block."""
    thread.enter()
    try:
        yield thread
    finally:
        thread.leave()


def thread(
    id: str | None = None,
    *,
    name: str | None = None,
    user: str | None = None,
    tags: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> ThreadBlock:
    """Enter a conversation: the steps inside belong to it. Without `id` a new UUID is made.

    `user` is the application's own name for the user. Raises `UsageError` for a wrong id, user or tag.
    """
    options = {
        "name": None if name is None else checked_name(name, "thread"),
        "user": None if user is None else checked_id(user, "user"),
        "tags": checked_tags(tags),
        "metadata": metadata,
    }
    return ThreadBlock(None if id is None else checked_id(id, "thread id"), options)
