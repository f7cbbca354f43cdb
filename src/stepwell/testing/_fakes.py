"""A clock and ids that are the same in every run, so that whole traces can be compared with literals."""

from __future__ import annotations

from typing import Any, Final, Self

from stepwell._recorder import RECORDER, Ids

__all__ = ["FakeClock", "FakeIds"]

_GROUP: Final = 64  # bits the recorder asks for at once for each span id


class FakeClock:
    """The recorder's two clocks, in nanoseconds; they stand still unless told otherwise. Installed by `with`.

    `tick_ns` is what both move on after each reading of the monotonic one.

    >>> import stepwell as sw
    >>> from stepwell.testing import capture
    >>> with capture() as captured, FakeClock(start_ns=1_000) as clock:
    ...     with sw.tool("search"):
    ...         clock.advance(50)
    >>> captured.step("search").start_ns, captured.step("search").end_ns
    (1000, 1050)
    """

    def __init__(self, start_ns: int = 1_750_000_000_000_000_000, *, tick_ns: int = 0) -> None:
        self.wall = start_ns
        self.monotonic = 0
        self.tick_ns = tick_ns
        self._before: list[Any] = []

    def wall_ns(self) -> int:
        """Read the wall clock."""
        return self.wall

    def monotonic_ns(self) -> int:
        """Read the monotonic clock."""
        now = self.monotonic
        self.advance(self.tick_ns)
        return now

    def advance(self, ns: int) -> None:
        """Let time pass, on both clocks."""
        self.wall += ns
        self.monotonic += ns

    def set_wall(self, ns: int) -> None:
        """Set the wall clock, as NTP does; the monotonic one knows nothing of it."""
        self.wall = ns

    def __enter__(self) -> Self:
        recorder = RECORDER
        self._before.append((recorder.wall_ns, recorder.monotonic_ns, recorder._offset))
        recorder.wall_ns, recorder.monotonic_ns = self.wall_ns, self.monotonic_ns
        recorder._offset = self.wall - self.monotonic
        return self

    def __exit__(self, *_: object) -> None:
        RECORDER.wall_ns, RECORDER.monotonic_ns, RECORDER._offset = self._before.pop()


class FakeIds:
    """Ids that count: every id ends in the next number. Installed by `with`.

    >>> import stepwell as sw
    >>> with FakeClock(start_ns=0), FakeIds():
    ...     with sw.run("agent") as agent, sw.tool("search") as search:
    ...         pass
    >>> agent.id
    '00000000-0000-7000-8000-000000000001'
    >>> search.id
    '00000000-0000-7000-8000-000000000002'
    """

    def __init__(self) -> None:
        self._count = 0
        self._before: list[Ids] = []

    def random_bits(self, bits: int) -> int:
        """Stand in for `random.Random().getrandbits`: the next numbers, 64 bits each, the next one lowest; else 0."""
        if bits < _GROUP:
            return 0
        first, self._count = self._count + 1, self._count + bits // _GROUP
        return sum((first + place) << _GROUP * place for place in range(bits // _GROUP))

    def __enter__(self) -> Self:
        self._before.append(RECORDER.ids)
        RECORDER.use_ids(Ids(self.random_bits))
        return self

    def __exit__(self, *_: object) -> None:
        RECORDER.use_ids(self._before.pop())
