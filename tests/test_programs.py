"""Whole random programs are recorded as a model of the rules says they must be."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import stepwell as sw
from stepwell._recording import StepKind
from stepwell.testing import capture

VERBS: dict[str, StepKind] = {
    "run": sw.run,
    "tool": sw.tool,
    "llm": sw.llm,
    "embedding": sw.embedding,
    "retrieval": sw.retrieval,
    "rerank": sw.rerank,
}
FORMS = ["with", "decorator", "start", "async with", "async decorator"]
OUTCOMES = ["return", "raise", "cancel", "fail"]


@dataclass
class Work:
    """One step of a program: how it is written, what is in it, how it ends."""

    type: str
    form: str
    outcome: str
    below: list[Any] = field(default_factory=list)
    name: str = ""


@dataclass
class Conversation:
    id: str
    below: list[Any] = field(default_factory=list)


@dataclass
class Message:
    type: str
    name: str = ""


works = st.builds(Work, st.sampled_from(sorted(VERBS)), st.sampled_from(FORMS), st.sampled_from(OUTCOMES))
messages = st.builds(Message, st.sampled_from(["user_message", "assistant_message", "system_message"]))


def with_below(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    below = st.lists(inner, max_size=4)
    return st.builds(
        Work, st.sampled_from(sorted(VERBS)), st.sampled_from(FORMS), st.sampled_from(OUTCOMES), below
    ) | st.builds(Conversation, st.sampled_from(["t1", "t2", "t3"]), below)


programs = st.lists(st.recursive(works | messages, with_below, max_leaves=15), max_size=4)


class ProgramError(Exception):
    pass


# -- running a program


class Runner:
    """Runs a program in async code; sync forms are written in it as they are in sync code."""

    async def all(self, nodes: list[Any]) -> None:
        for node in nodes:
            if isinstance(node, Message):
                getattr(sw, node.type)("text", name=node.name)
            elif isinstance(node, Conversation):
                with sw.thread(node.id):
                    await self.all(node.below)
            else:
                with contextlib.suppress(ProgramError, asyncio.CancelledError):
                    await getattr(self, f"run_{node.form.replace(' ', '_')}")(node, VERBS[node.type])

    async def inside(self, node: Work) -> None:
        await self.all(node.below)
        if node.outcome == "raise":
            raise ProgramError
        if node.outcome == "cancel":
            raise asyncio.CancelledError
        if node.outcome == "fail":
            step = sw.current_step()
            assert step is not None
            step.fail("said so")

    async def run_with(self, node: Work, kind: StepKind) -> None:
        with kind(node.name):
            await self.inside(node)

    async def run_async_with(self, node: Work, kind: StepKind) -> None:
        async with kind(node.name):
            await self.inside(node)

    async def run_async_decorator(self, node: Work, kind: StepKind) -> None:
        await kind(node.name)(self.inside)(node)

    async def run_decorator(self, node: Work, kind: StepKind) -> None:
        """A sync function can't wait: it drives what is inside to its end, which never really waits."""

        def drive(node: Work) -> None:
            with contextlib.suppress(StopIteration):
                self.inside(node).send(None)

        kind(node.name)(drive)(node)

    async def run_start(self, node: Work, kind: StepKind) -> None:
        step = sw.start(node.type, node.name)  # type: ignore[arg-type]
        try:
            await self.inside(node)
        except ProgramError:
            step.fail("raised")
        except asyncio.CancelledError:
            pass
        step.end()


# -- what must be recorded


@dataclass
class Expected:
    type: str
    status: str
    parent: str | None
    root_run: str | None
    thread: str | None
    children: int


def status_of(node: Work) -> str:
    if node.form == "start":  # there is nothing that sees the exception
        return {"return": "success", "raise": "failed", "cancel": "success", "fail": "failed"}[node.outcome]
    return {"return": "success", "raise": "failed", "cancel": "cancelled", "fail": "failed"}[node.outcome]


def expect(
    nodes: list[Any],
    found: dict[str, Expected],
    parent: str | None,
    run: str | None,
    inherited: str | None,
    around: str | None,
) -> int:
    """Fill in what must be recorded of these nodes; return how many steps stand directly below the parent."""
    count = 0
    for node in nodes:
        if isinstance(node, Conversation):
            count += expect(node.below, found, parent, run, inherited, node.id)
            continue
        count += 1
        thread = inherited if inherited is not None else around
        if isinstance(node, Message):
            implicit = parent is None and thread is None
            found[node.name] = Expected(node.type, "success", parent, run, "new" if implicit else thread, 0)
            continue
        own_run = run if run is not None else node.name if node.type == "run" else None
        below = expect(node.below, found, node.name, own_run, thread, around)
        type_ = "run" if node.type == "llm" else node.type
        found[node.name] = Expected(type_, status_of(node), parent, own_run, thread, below)
    return count


def named(nodes: list[Any], prefix: str = "s") -> None:
    for at, node in enumerate(nodes):
        if not isinstance(node, Conversation):
            node.name = f"{prefix}.{at}"
        if not isinstance(node, Message):
            named(node.below, f"{prefix}.{at}")


@pytest.mark.filterwarnings("ignore:coroutine")
@settings(max_examples=200)
@given(programs)
def test_any_program_is_recorded_as_the_rules_say(program: list[Any]) -> None:
    named(program)
    with capture() as captured:
        asyncio.run(Runner().all(program))
        assert sw.current_step() is None
        assert sw.current_thread() is None
        recorded = captured.steps
    expected: dict[str, Expected] = {}
    expect(program, expected, None, None, None, None)
    names = {step.id: step.name for step in recorded}
    threads = {"t1", "t2", "t3"}
    found = {
        step.name: Expected(
            str(step.type),
            str(step.status),
            names[step.parent_id] if step.parent_id is not None else None,
            names[step.root_run_id] if step.root_run_id is not None else None,
            step.thread_id if step.thread_id is None or step.thread_id in threads else "new",
            step.child_count or 0,
        )
        for step in recorded
    }
    assert found == expected
    assert len(recorded) == len(expected)
    for step in recorded:
        assert step.start_ns is not None
        assert step.end_ns is not None
        assert step.start_ns <= step.end_ns
    assert [fault for fault in sw.stats().faults if fault != "misuse"] == []
