"""Long steps: writing them as pending while they are open, and as interrupted where nobody will see their end.

What must stay true:

1. A step that is open for a second has been written as `pending`; a shorter one costs nothing.
2. The ids of announced steps that are open lie beside the journal (`note_open`), so whoever adopts it after a crash can
   say which steps were interrupted; at an orderly end the process says so itself. An end that comes later wins.
3. Only the keeper's thread, and who ends the pipeline after it, come here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from stepwell._recorder import MAX_ANNOUNCED, Recorder
from stepwell._session import interruption, note_open

__all__ = ["Announcer"]

ANNOUNCE_AFTER_NS: Final = 750_000_000  # with the keeper's heartbeat: before a step is a second old


class Announcer:
    """Announces the open steps of one recorder in the journal of one pipeline."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._noted_in: Path | None = None

    def announce(self, session: Path | None) -> None:
        """Write down what is open for long, and which of that has not ended. Raises `OSError`."""
        changed = self._announce() | self._forget_ended()
        announced = self._recorder.announced
        if session is not None and (changed or (announced and session != self._noted_in)):
            note_open(session, announced)
            self._noted_in = session

    def interrupt(self, session: Path | None, append: Callable[[bytes], None]) -> None:
        """Write what is open for long as interrupted: nobody will hear of its end. Raises `OSError`."""
        self._announce()
        self._forget_ended()
        for id in self._recorder.announced:
            append(interruption(id))
        if session is not None and session == self._noted_in:
            note_open(session, ())

    def _announce(self) -> bool:
        recorder, changed = self._recorder, False
        for id, step in recorder.open_steps.copy().items():  # a copy is one operation: steps begin and end meanwhile
            if step.announce(ANNOUNCE_AFTER_NS):
                # Once is enough, and a step that never ends can be collected.
                if recorder.open_steps.pop(id, None) is not None and len(recorder.announced) < MAX_ANNOUNCED:
                    recorder.announced[id] = None
                changed = True
        return changed

    def _forget_ended(self) -> bool:
        recorder = self._recorder
        before = len(recorder.announced)
        while recorder.ended:
            recorder.announced.pop(recorder.ended.popleft(), None)
        return len(recorder.announced) != before
