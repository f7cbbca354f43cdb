"""Any program, however it jumps between threads, tasks and generators, is recorded as a model of the rules says.

A program is a handful of lanes: threads, and tasks of one event loop. Each does what it is told and waits for more, so
their order is the one that hypothesis chose, prints when it fails, and repeats. A lane is always inside of a stack of
frames: functions and generators of the program's own, most of them decorated, in which blocks are open. What the
recorder must make of it is told by the model, in the first part of this file, which knows nothing of stepwell.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import queue
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from opentelemetry.trace import StatusCode

import stepwell as sw
from stepwell.model import StepRecord
from stepwell.testing import capture

WAIT_S = 30.0

# -- the model: what must be recorded


@dataclass(eq=False)
class Conversation:
    id: str
    before: Around
    is_open: bool = True
    skip_to: Around | None = None  # where a block that was left inside of this one, before it, leads


@dataclass(frozen=True)
class Around:
    """What surrounds the code that runs: the innermost step and the thread."""

    step: Piece | None = None
    thread: Conversation | None = None


@dataclass(eq=False)
class Piece:
    """One step."""

    name: str
    type: str
    before: Around
    status: str = "pending"
    said: str | None = None  # the outcome the program told
    asked: bool = False
    children: int = 0
    recorded_children: int = 0
    tags: list[str] = field(default_factory=list)
    scores: int = 0
    late_scores: int = 0
    attachments: int = 0
    handle: Any = None

    def __post_init__(self) -> None:
        self.parent = parent = self.before.step
        self.thread = self.before.thread if parent is None or parent.thread is None else parent.thread
        self.run = self if self.type == "run" else None
        if parent is not None:
            parent.children += 1
            self.run = parent.run or self.run

    @property
    def is_open(self) -> bool:
        return self.status == "pending"

    def end(self, outcome: str) -> None:
        if self.is_open:
            self.status = self.said or outcome
            self.recorded_children = self.children

    def expected(self) -> dict[str, Any]:
        is_run = self.type == "llm" and not self.asked
        return {
            "type": "run" if is_run else self.type,
            "status": self.status,
            "parent": self.parent and self.parent.name,
            "run": self.run and self.run.name,
            "thread": self.thread and self.thread.id,
            "children": self.recorded_children,
            "tags": self.tags,
            "scores": self.scores,
            "attachments": self.attachments,
            "downgraded": "llm" if is_run else None,
        }


class Place:
    """Where something runs: the model of a context, which steps and threads change by being entered and left."""

    def __init__(self, around: Around) -> None:
        self.around = around

    def open(self, name: str, type_: str) -> Piece:
        piece = Piece(name, type_, self.around)
        self.around = Around(piece, self.around.thread)
        return piece

    def leave(self, left: Piece | Conversation, outcome: str = "success") -> None:
        if isinstance(left, Conversation):
            self._leave_thread(left)
            return
        left.end(outcome)
        step = self.around.step
        while step is not None and step is not left:
            step = step.before.step
        if step is left:  # it, or one that was left open below it
            self.around = left.before

    def enter_thread(self, id_: str) -> Conversation:
        thread = Conversation(id_, self.around)
        self.around = Around(self.around.step, thread)
        return thread

    def _leave_thread(self, left: Conversation) -> None:
        """Go back; left before one that was entered inside, that one goes back further in its turn."""
        if not left.is_open:
            return
        left.is_open = False
        inner = self.around.thread
        if inner is left:
            self.around = left.before
            return
        while inner is not None and inner.before.thread is not left:
            inner = inner.before.thread
        if inner is not None:
            inner.before = left.before

    def message(self, name: str, type_: str) -> Piece:
        implicit = Conversation("new", self.around) if self.around == Around() else None
        piece = Piece(name, type_, Around(self.around.step, implicit or self.around.thread))
        piece.end("success")
        return piece


class ProgramError(Exception):
    pass


class UntellableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


OUTCOMES: dict[str, tuple[Callable[[], BaseException] | None, str]] = {
    "return": (None, "success"),
    "error": (lambda: ProgramError("broken"), "failed"),
    "untellable": (UntellableError, "failed"),
    "group": (lambda: ExceptionGroup("some", [ProgramError(), UntellableError()]), "failed"),
    "cancel": (asyncio.CancelledError, "cancelled"),
    "interrupt": (KeyboardInterrupt, "cancelled"),
    "exit": (lambda: SystemExit(0), "success"),
    "exit 3": (lambda: SystemExit(3), "failed"),
}


class Hostile:
    """Raises whatever is done with it."""

    def __refuse(self, *_: object) -> Any:
        raise RuntimeError("leave me alone")

    __repr__ = __str__ = __iter__ = __len__ = __bool__ = __eq__ = __hash__ = __getattr__ = __format__ = __refuse
    __int__ = __float__ = __index__ = __lt__ = __contains__ = __getitem__ = __call__ = __reduce_ex__ = __dir__ = (
        __refuse
    )


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        raise RuntimeError("no text")


CYCLE: list[Any] = []
CYCLE.append(CYCLE)
VALUES: dict[str, Any] = {
    "None": None,
    "1": 1,
    "a word": "word",
    "a large number": 1 << 70,
    "not a number": float("nan"),
    "bytes": b"\xff\x00",
    "half a character": "\ud800",
    "a long text": "x" * 10_000,
    "nested": {"k": [1, {"n": None}]},
    "a cycle": CYCLE,
    "hostile": Hostile(),
    "hostile inside": {Hostile: 1, 2: 3, None: [Hostile()] * 3},
    "a hostile text": Text("t"),
    "a set": {1, 2},
    "a class": int,
}

# -- lanes


async def serve(lane: Lane) -> str:
    """Do what the lane is told, until something ends the frame it is in."""
    while True:
        ends = await (await lane.next())()
        if ends is not None:
            return str(ends)


def drive(waiting: Coroutine[Any, Any, str]) -> str:
    """Run a coroutine in sync code: on a thread's lane nothing in it suspends, it blocks."""
    try:
        waiting.send(None)
    except StopIteration as stop:
        return str(stop.value)
    raise AssertionError("it was suspended")


Command = Callable[[], Awaitable[str | None]]


class Lane(Place):
    """A thread: takes one command at a time, and says when it waits for the next."""

    blocks = True  # whether sync code can take commands here

    def __init__(self, around: Around) -> None:
        super().__init__(around)
        self.frames = [Frame()]
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    async def next(self) -> Command:
        self._ready.put(None)
        return self._commands.get()

    def start(self) -> None:
        threading.Thread(target=self.run, daemon=True).start()

    def run(self) -> None:
        drive(self.main())

    async def main(self) -> str:
        failure: BaseException | None = None
        try:
            await body(self, self.frames[0])
        except BaseException as error:  # the harness itself
            failure = error
        self._ready.put(failure)
        return ""

    def do(self, command: Command) -> None:
        self._commands.put(command)
        self.wait()

    def wait(self) -> None:
        failure = self._ready.get(timeout=WAIT_S)
        if failure is not None:
            raise failure

    @property
    def top(self) -> Frame:
        return self.frames[-1]


class TaskLane(Lane):
    blocks = False

    def __init__(self, around: Around, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(around)
        self._loop = loop
        self._told: asyncio.Queue[Command] = asyncio.Queue()

    async def next(self) -> Command:
        self._ready.put(None)
        return await self._told.get()

    def start(self) -> None:
        self.task = self._loop.create_task(self.main())

    def do(self, command: Command) -> None:
        self._told.put_nowait(command)
        self.wait()

    def wait(self) -> None:
        turn(self._loop, lambda: not self._ready.empty())
        super().wait()


def turn(loop: asyncio.AbstractEventLoop, until: Callable[[], bool]) -> None:
    """Let the loop's tasks run until something holds."""
    deadline = time.monotonic() + WAIT_S
    while not until():
        assert time.monotonic() < deadline
        loop.run_until_complete(asyncio.sleep(0))


# -- frames: the program's own functions and generators


@dataclass(eq=False)
class Block:
    exit: Callable[[BaseException | None], object]
    model: Piece | Conversation


@dataclass(eq=False)
class Frame:
    """A function or generator that runs: what is open in it, and the model of it."""

    piece: Piece | None = None  # its own step
    thread: Conversation | None = None
    outside: Around | None = None  # where what is bound, or a generator, gives way to what was before
    blocks: list[Block] = field(default_factory=list)
    raised: BaseException | None = None
    generator: Gen | None = None

    def end(self, ends: str) -> None:
        """Do in the program what ends the frame."""
        make = OUTCOMES[ends][0]
        if make is not None:
            self.raised = make()
            raise self.raised

    def unwind(self, error: BaseException | None) -> None:
        for block in list(reversed(self.blocks)):
            block.exit(error)


async def body(lane: Lane, frame: Frame) -> None:
    try:
        frame.end(await serve(lane))
    except BaseException as error:
        frame.unwind(error)
        raise
    frame.unwind(None)


def sync_body(lane: Lane, frame: Frame) -> None:
    try:
        if lane.blocks:
            frame.end(drive(serve(lane)))
    except BaseException as error:
        frame.unwind(error)
        raise
    frame.unwind(None)


@dataclass(eq=False)
class Gen:
    """A generator of the program, resumed by `lane`."""

    piece: Piece | None = None
    frame: Frame = field(default_factory=Frame)
    object: Any = None
    lane: Lane | None = None
    inside: Around | None = None  # what is around its code while it is suspended
    is_async: bool = False
    catches: bool = False
    begun: bool = False


def generate(gen: Gen) -> Iterator[int]:
    try:
        while True:
            assert gen.lane is not None
            ends = drive(serve(gen.lane)) if gen.lane.blocks else "yield"
            if ends != "yield":
                break
            try:
                yield 7
            except ProgramError:
                if not gen.catches:
                    raise
        gen.frame.end(ends)
    except BaseException as error:
        gen.frame.unwind(error)
        raise
    gen.frame.unwind(None)


async def generate_async(gen: Gen) -> AsyncIterator[int]:
    try:
        while True:
            assert gen.lane is not None
            ends = await serve(gen.lane)
            if ends != "yield":
                break
            try:
                yield 7
            except ProgramError:
                if not gen.catches:
                    raise
        gen.frame.end(ends)
    except BaseException as error:
        gen.frame.unwind(error)
        raise
    gen.frame.unwind(None)


# -- programs

STEP_KINDS: dict[str, Any] = {
    "run": sw.run,
    "tool": sw.tool,
    "llm": sw.llm,
    "embedding": sw.embedding,
    "retrieval": sw.retrieval,
    "rerank": sw.rerank,
    "undefined": sw.step,
}
THREADS = ["t1", "t2", "t3"]
MAX_LANES = 5

lanes = st.integers(0, MAX_LANES - 1)
picks = st.integers(0, 9)
kinds = st.sampled_from(list(STEP_KINDS))
outcomes = st.sampled_from(list(OUTCOMES))
values = st.sampled_from(list(VALUES))


class Programs(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.recording = capture()
        self.captured = self.recording.__enter__()
        self.lanes: list[Lane] = []
        self.pieces: list[Piece] = []
        self.threads: set[str] = set()
        self.generators: list[Gen] = []
        self.bound: list[tuple[Around, Any, Any]] = []
        self.misused = False
        self.started_ns = time.time_ns()

    @initialize()
    def begin(self) -> None:
        self._begin_lane(Lane(Around()))
        self._begin_lane(TaskLane(Around(), self.loop))

    def _begin_lane(self, lane: Lane) -> None:
        self.lanes.append(lane)
        lane.start()
        lane.wait()

    def _lane(self, at: int) -> Lane:
        return self.lanes[at % len(self.lanes)]

    def _open(self, place: Place, kind: str) -> Piece:
        piece = place.open(f"s{len(self.pieces)}", kind)
        self.pieces.append(piece)
        return piece

    # -- blocks

    @rule(
        at=lanes, kind=kinds, form=st.sampled_from(["with", "async with", "start"]), value=values, asked=st.booleans()
    )
    def enter(self, at: int, kind: str, form: str, value: str, asked: bool) -> None:
        lane, hostile = self._lane(at), VALUES[value]
        piece = self._open(lane, kind)
        options: dict[str, Any] = {"input": hostile, "metadata": {"k": hostile}, "tags": ["first"]}
        if asked and kind == "llm":
            options["messages"] = [hostile]
            piece.asked = True
        piece.tags.append("first")

        async def command() -> None:
            if form == "start":
                piece.handle = sw.start(kind, piece.name, **options)  # type: ignore[arg-type]
                return
            block = STEP_KINDS[kind](piece.name, **options)
            piece.handle = await block.__aenter__() if form == "async with" else block.__enter__()
            lane.top.blocks.append(Block(lambda error: block.__exit__(type(error), error, None), piece))

        lane.do(command)

    @rule(at=lanes, id_=st.sampled_from(THREADS))
    def enter_thread(self, at: int, id_: str) -> None:
        lane = self._lane(at)
        thread = lane.enter_thread(id_)
        self.threads.add(id_)

        async def command() -> None:
            block = sw.thread(id_)
            block.__enter__()
            lane.top.blocks.append(Block(lambda _: block.__exit__(), thread))

        lane.do(command)

    @precondition(lambda self: any(lane.top.blocks for lane in self.lanes))
    @rule(at=lanes, there=lanes, pick=picks, outcome=outcomes)
    def leave(self, at: int, there: int, pick: int, outcome: str) -> None:
        """Leave a block: mostly the innermost, else one further out, or one of another lane."""
        lane, owner = self._lane(at), self._lane(there)
        owner = owner if pick > 7 else lane
        blocks = owner.top.blocks
        if not blocks:
            return
        block = blocks.pop(-1 - (max(0, pick - 4) % len(blocks)))
        make, status = OUTCOMES[outcome]
        lane.leave(block.model, status)

        async def command() -> None:
            if make is None:
                block.exit(None)
                return
            try:
                raise make()
            except BaseException as error:
                block.exit(error)

        lane.do(command)

    @precondition(lambda self: self.pieces)
    @rule(at=lanes, pick=picks)
    def end_by_hand(self, at: int, pick: int) -> None:
        lane, piece = self._lane(at), self.pieces[-1 - pick % len(self.pieces)]
        if piece.handle is None:
            return
        if piece.is_open:
            lane.leave(piece)

        async def command() -> None:
            piece.handle.end()

        lane.do(command)

    # -- functions

    @rule(at=lanes, kind=kinds, form=st.sampled_from(["sync", "async"]))
    def call(self, at: int, kind: str, form: str) -> None:
        lane = self._lane(at)
        piece = self._open(lane, kind)
        self._call(lane, Frame(piece=piece), form, STEP_KINDS[kind](piece.name))

    @rule(at=lanes, form=st.sampled_from(["sync", "async"]), id_=st.sampled_from(THREADS))
    def call_in_thread(self, at: int, form: str, id_: str) -> None:
        lane = self._lane(at)
        self.threads.add(id_)
        self._call(lane, Frame(thread=lane.enter_thread(id_)), form, sw.thread(id_))

    @rule(at=lanes)
    def bind(self, at: int) -> None:
        lane = self._lane(at)

        async def command() -> None:
            self.bound.append((lane.around, sw.bind(sync_body), sw.bind(body)))

        lane.do(command)

    @precondition(lambda self: self.bound)
    @rule(at=lanes, form=st.sampled_from(["sync", "async"]), pick=picks)
    def call_bound(self, at: int, form: str, pick: int) -> None:
        lane = self._lane(at)
        around, sync, is_async = self.bound[pick % len(self.bound)]
        frame = Frame(outside=lane.around)
        lane.around = around
        self._call(lane, frame, form, lambda function: sync if function is sync_body else is_async)

    def _call(self, lane: Lane, frame: Frame, form: str, decorate: Callable[[Any], Any]) -> None:
        function = decorate(sync_body if form == "sync" else body)
        piece = frame.piece

        async def command() -> None:
            with raising_what_is_raised(frame):
                result = function(lane, frame)
                if form == "async":
                    await result

        lane.frames.append(frame)
        if form == "sync" and not lane.blocks:  # it would hold up the loop: it does nothing
            lane.do(command)
            self._leave_frame(lane, "return")
            return
        lane.do(command)
        if piece is not None:

            async def look() -> None:
                piece.handle = sw.current_step()

            lane.do(look)

    @precondition(lambda self: any(len(lane.frames) > 1 for lane in self.lanes))
    @rule(at=lanes, outcome=outcomes)
    def return_(self, at: int, outcome: str) -> None:
        lane = self._lane(at)
        if len(lane.frames) > 1:
            frame = lane.top

            async def command() -> str:
                return outcome

            lane.do(command)
            assert frame.raised is None or OUTCOMES[outcome][0] is not None
            self._leave_frame(lane, outcome)

    def _leave_frame(self, lane: Lane, outcome: str) -> None:
        """Have the model leave the frame that the program has left."""
        frame = lane.frames.pop()
        status = OUTCOMES[outcome][1]
        for block in reversed(frame.blocks):
            lane.leave(block.model, status)
        frame.blocks.clear()
        if frame.generator is not None:
            self._end_generator(lane, frame.generator, status)
            return
        if frame.piece is not None:
            lane.leave(frame.piece, status)
        if frame.thread is not None:
            lane.leave(frame.thread)
        if frame.outside is not None:
            lane.around = frame.outside

    # -- generators

    @rule(
        at=lanes,
        kind=kinds,
        form=st.sampled_from(["generator", "async generator", "returned generator", "returned async generator"]),
        catches=st.booleans(),
    )
    def make_generator(self, at: int, kind: str, form: str, catches: bool) -> None:
        lane = self._lane(at)
        gen = Gen(is_async="async" in form, catches=catches)
        gen.frame.generator = gen
        name = f"s{len(self.pieces)}"
        function: Any = generate_async if gen.is_async else generate
        if form.startswith("returned"):
            gen.piece = self._open(lane, kind)
            gen.inside, lane.around = lane.around, gen.piece.before
        else:
            gen.piece = Piece(name, kind, Around())  # its place is what is around when it is first resumed
            self.pieces.append(gen.piece)
        inner = (lambda gen: function(gen)) if gen.inside is not None else function

        async def command() -> None:
            gen.object = STEP_KINDS[kind](name)(inner)(gen)

        lane.do(command)
        self.generators.append(gen)

    def _suspended(self, lane: Lane, pick: int) -> Gen | None:
        found = [gen for gen in self.generators if gen.lane is None and (not gen.is_async or not lane.blocks)]
        return found[pick % len(found)] if found else None

    @precondition(lambda self: self.generators)
    @rule(at=lanes, pick=picks, thrown=st.sampled_from(["next", "next", "next", "throw"]))
    def resume(self, at: int, pick: int, thrown: str) -> None:
        lane = self._lane(at)
        gen = self._suspended(lane, pick)
        if gen is None or gen.piece is None or (thrown == "throw" and not gen.begun):
            return
        error = ProgramError("thrown")
        if thrown == "throw":
            gen.frame.raised = error

        async def command() -> None:
            with raising_what_is_raised(gen.frame):
                if gen.is_async:
                    item = await (gen.object.athrow(error) if thrown == "throw" else anext(gen.object))
                else:
                    item = gen.object.throw(error) if thrown == "throw" else next(gen.object)
                assert item == 7

        gen.lane = lane
        outside = lane.around
        if gen.inside is None:  # the step begins now
            at_ = self.pieces.index(gen.piece)
            self.pieces[at_] = gen.piece = Piece(gen.piece.name, gen.piece.type, lane.around)
            gen.inside = Around(gen.piece, lane.around.thread)
        gen.frame.outside, lane.around = outside, gen.inside
        lane.frames.append(gen.frame)
        gen.begun = True
        lane.do(command)
        if thrown == "throw" and not gen.catches:
            self._leave_frame(lane, "error")
        elif lane.blocks or gen.is_async:
            if gen.piece.handle is None:
                piece = gen.piece

                async def look() -> None:
                    piece.handle = sw.current_step() if sw.current_step().name == piece.name else None

                lane.do(look)
        else:
            self._suspend(lane)

    def _suspend(self, lane: Lane) -> None:
        frame = lane.frames.pop()
        assert frame.generator is not None
        assert frame.outside is not None
        frame.generator.inside, lane.around = lane.around, frame.outside
        frame.generator.lane = None

    @precondition(lambda self: any(lane.top.generator for lane in self.lanes))
    @rule(at=lanes)
    def yield_(self, at: int) -> None:
        lane = self._lane(at)
        if lane.top.generator is not None:

            async def command() -> str:
                return "yield"

            lane.do(command)
            self._suspend(lane)

    @precondition(lambda self: self.generators)
    @rule(at=lanes, pick=picks, collected=st.booleans())
    def close(self, at: int, pick: int, collected: bool) -> None:
        lane = self._lane(at)
        gen = self._suspended(lane, pick)
        if gen is not None:
            self._close(lane, gen, collected)

    def _close(self, lane: Lane, gen: Gen, collected: bool) -> None:
        async def command() -> None:
            if not collected:
                await gen.object.aclose() if gen.is_async else gen.object.close()
            gen.object = None

        lane.do(command)
        if collected and gen.is_async and gen.begun:  # the loop closes it, in a task of its own
            handle = gen.piece and gen.piece.handle
            assert handle is not None
            turn(self.loop, lambda: handle.status != "pending")
        if gen.inside is None:
            assert gen.piece is not None
            self.pieces[self.pieces.index(gen.piece)] = Piece("never", "run", Around())
            self.generators.remove(gen)
            return
        lane.frames.append(gen.frame)
        gen.frame.outside = lane.around
        lane.around = gen.inside
        self._leave_frame(lane, "cancel")

    def _end_generator(self, lane: Lane, gen: Gen, status: str) -> None:
        assert gen.piece is not None
        assert gen.frame.outside is not None
        gen.piece.end(status)
        lane.around = gen.frame.outside
        gen.object = None
        self.generators.remove(gen)

    # -- lanes

    @rule(at=lanes, form=st.sampled_from(["thread", "bound thread", "task"]))
    def spawn(self, at: int, form: str) -> None:
        parent = self._lane(at)
        if len(self.lanes) == MAX_LANES or (form == "task" and parent.blocks):
            return
        new = TaskLane(parent.around, self.loop) if form == "task" else Lane(parent.around)
        if form == "thread":
            new.around = Around()

        async def command() -> None:
            if form == "bound thread":
                new.run = sw.bind(new.run)  # type: ignore[method-assign]
            new.start()

        parent.do(command)
        new.wait()
        self.lanes.append(new)

    # -- what is said of a step, or between steps

    @rule(at=lanes, kind=st.sampled_from(["user_message", "assistant_message", "system_message"]), content=values)
    def message(self, at: int, kind: str, content: str) -> None:
        lane = self._lane(at)
        piece = lane.message(f"s{len(self.pieces)}", kind)
        self.pieces.append(piece)

        async def command() -> None:
            piece.handle = getattr(sw, kind)(VALUES[content], name=piece.name)

        lane.do(command)

    @precondition(lambda self: self.pieces)
    @rule(
        at=lanes,
        pick=picks,
        what=st.sampled_from(["tag", "metadata", "score", "attach", "fail", "ok", "ask", "set"]),
        named=values,
    )
    def say(self, at: int, pick: int, what: str, named: str) -> None:
        lane, piece = self._lane(at), self.pieces[-1 - pick % len(self.pieces)]
        step, value = piece.handle, VALUES[named]
        if step is None:
            return
        if what == "score":
            piece.scores, piece.late_scores = piece.scores + piece.is_open, piece.late_scores + (not piece.is_open)
        if what == "attach":
            piece.attachments += 1
        if piece.is_open:
            if what == "tag":
                piece.tags.append(str(len(piece.tags)))
            if what == "ok" or (what == "fail" and piece.said is None):
                piece.said = "success" if what == "ok" else "failed"
            piece.asked = piece.asked or what == "ask"

        async def command() -> None:
            if what == "tag":
                step.tags.append(str(len(step.tags)))
            elif what == "metadata":
                step.metadata[str(len(step.metadata))] = value
            elif what == "score":
                step.score("good", 0.5, comment="by rule")
            elif what == "attach":
                step.attach(b"a,b")
            elif what == "fail":
                step.fail(value)
            elif what == "ok":
                step.set_status(StatusCode.OK)
            elif what == "ask":
                step.generation = {"prompt": [value]}
            else:
                step.input = step.output = value
                step.usage(input_tokens=value)
                step.record(value)
                step.set_attribute("k", value)
                step.add_event("e", {"k": value})

        lane.do(command)

    # -- what must be so

    @invariant()
    def what_is_current_is_what_surrounds(self) -> None:
        for lane in self.lanes:
            found: list[Any] = []

            async def look(found: list[Any] = found) -> None:
                thread, run = sw.current_thread(), sw.current_run()
                found += [sw.current_step(), thread and thread.id, run and run.name]

            lane.do(look)
            step = lane.around.step
            thread = step.thread if step is not None and step.thread is not None else lane.around.thread
            expected = [step and step.name, thread and thread.id, step and step.run and step.run.name]
            assert [found[0] and found[0].name, *found[1:]] == expected

    def teardown(self) -> None:
        try:
            if self.lanes:
                self._finish()
        finally:
            self.loop.run_until_complete(self.loop.shutdown_asyncgens())
            self.loop.close()
            self.recording.__exit__(None, None, None)

    def _finish(self) -> None:
        for lane in self.lanes:
            while len(lane.frames) > 1:
                self.return_(self.lanes.index(lane), "return")
        for gen in list(self.generators):
            self._close(self.lanes[1] if gen.is_async else self.lanes[0], gen, collected=True)
        for lane in self.lanes:

            async def command() -> str:
                return "return"

            lane.do(command)
            self._leave_frame(lane, "return")
        self.compare()

    def compare(self) -> None:
        recorded = self.captured.steps
        by_name = {step.name: step for step in recorded}
        assert len(by_name) == len({step.id for step in recorded}) == len(recorded)
        names: dict[Any, Any] = {None: None, **{step.id: step.name for step in recorded}}
        names |= {piece.handle.id: piece.name for piece in self.pieces if piece.handle is not None}
        expected = {piece.name: piece.expected() for piece in self.pieces if not piece.is_open}
        assert {name for name, step in by_name.items() if step.status != "pending"} == expected.keys()
        for name, fields in expected.items():
            assert (name, told(by_name[name], names)) == (name, fields)
        assert {thread.id for thread in self.captured.threads} - {"new"} >= self.threads
        for step in recorded:
            check_times_and_ids(step, {other.id: other for other in recorded}, self.started_ns)
        late = sum(piece.late_scores for piece in self.pieces)
        assert len(self.captured.scores) == late
        assert set(sw.stats().faults) <= {"misuse"}


def told(step: StepRecord, names: dict[Any, Any]) -> dict[str, Any]:
    return {
        "type": step.type,
        "status": step.status,
        "parent": names[step.parent_id],
        "run": names[step.root_run_id],
        "thread": step.thread_id if step.thread_id is None or step.thread_id in THREADS else "new",
        "children": step.child_count or 0,
        "tags": step.tags or [],
        "scores": len(step.scores or ()),
        "attachments": len(step.attachments or ()),
        "downgraded": step.downgraded_from,
    }


def check_times_and_ids(step: StepRecord, steps: dict[str, StepRecord], started_ns: int) -> None:
    assert step.start_ns is not None
    assert step.trace_id is not None
    assert step.start_ns >= started_ns - 1_000_000_000
    if step.status != "pending":
        assert step.end_ns is not None
        assert step.start_ns <= step.end_ns
    parent = steps.get(step.parent_id or "")
    if parent is not None:
        assert parent.start_ns is not None
        assert parent.start_ns <= step.start_ns
        assert parent.trace_id == step.trace_id
    if step.parent_id is None:
        assert step.id.replace("-", "") == step.trace_id


@contextlib.contextmanager
def raising_what_is_raised(frame: Frame) -> Iterator[None]:
    """Take what the frame raised, and nothing but that very object."""
    try:
        yield
    except BaseException as error:
        if error is not frame.raised and not isinstance(error, StopIteration | StopAsyncIteration):
            raise
        frame.raised = None


@pytest.mark.usefixtures("untraced")
def test_any_program_is_recorded_as_the_model_says() -> None:
    gc.collect()
    gc.freeze()
    try:
        run_state_machine_as_test(Programs, settings=settings(max_examples=80, stateful_step_count=40, deadline=None))
    finally:
        gc.unfreeze()
