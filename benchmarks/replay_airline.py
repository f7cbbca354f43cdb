"""Real input, there and back: replay recorded airline-agent conversations, then compare the store with the input.

    python benchmarks/replay_airline.py [--data FILE] [--home DIR] [--limit N] [--check-only]

A conversation becomes a thread: the system prompt a system_message step, every turn (a user message and all up to the
next) a run with a user_message step, an llm step for every assistant message, a tool step for every tool answer, and an
assistant_message step for the text that ends it. Everything goes through the public API, the journal and the SQLite
store, and is read back from there step by step. Exit status 1, and a line for each difference, when anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from msgspec import Raw, UnsetType
from msgspec.json import decode as decode_json

import stepwell as sw
from stepwell.model import StepRecord, decode_generation, encode_record
from stepwell.store import Store, open_store

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "airline_agent.jsonl"
MODEL = "gpt-4o"
MAX_SHOWN = 20
DELIVERY_TIMEOUT_S = 120.0

Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """One line of the file. Task and trial make the thread's id, so that a store can be checked in a later process."""

    thread_id: str
    user: str
    metadata: dict[str, Any]
    reward: float
    messages: list[Message]

    @property
    def turns(self) -> list[range]:
        """The places of each turn's messages: a user message and all up to the next."""
        starts = [at for at, message in enumerate(self.messages) if message["role"] == "user"]
        return [range(*pair) for pair in zip(starts, [*starts[1:], len(self.messages)], strict=True)]

    def call(self, at: int) -> dict[str, Any]:
        """Return the call that the tool message at a place answers: the latest with its id, for ids are used again."""
        wanted = self.messages[at]["tool_call_id"]
        earlier = [call for message in self.messages[:at] for call in message.get("tool_calls") or ()]
        return next(call for call in reversed(earlier) if call["id"] == wanted)

    def final_text(self, at: int) -> str | None:
        """Return the text at a place if it ends a turn, None for what the user, a tool or a call ends."""
        message, after = self.messages[at], self.messages[at + 1 : at + 2]
        ends = not after or after[0]["role"] == "user"
        return message["content"] if ends and message["role"] == "assistant" and not message.get("tool_calls") else None


def load(path: Path, limit: int | None) -> list[Conversation]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, limit)]
    return [
        Conversation(
            thread_id=f"airline-{row['task_id']}-{row['trial']}",
            user=row["user_id"],
            metadata={"task_id": row["task_id"], "trial": row["trial"]},
            reward=row["reward"],
            messages=row["messages"],
        )
        for row in rows
    ]


def stop_reason(message: Message) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


# -- there


def replay(conversation: Conversation) -> None:
    """Record a conversation as the agent would have recorded it."""
    messages, turns = conversation.messages, conversation.turns
    with sw.thread(conversation.thread_id, user=conversation.user, metadata=conversation.metadata):
        for message in messages[: turns[0].start]:
            sw.system_message(message["content"])
        for turn in turns:
            question = messages[turn.start]["content"]
            with sw.run("turn", input=question) as run:
                sw.user_message(question)
                for at in turn[1:]:
                    replay_message(conversation, at)
                text = conversation.final_text(turn[-1])
                if text is not None:
                    sw.assistant_message(text)
                    run.output = text
    sw.score(run.id, "reward", conversation.reward)


def replay_message(conversation: Conversation, at: int) -> None:
    message = conversation.messages[at]
    if message["role"] == "assistant":
        choice = {"index": 0, "message": message, "finish_reason": stop_reason(message)}
        with sw.llm("agent", model=MODEL, provider="openai", messages=conversation.messages[:at]) as step:
            step.record({"object": "chat.completion", "choices": [choice]})
    else:
        function = conversation.call(at)["function"]
        metadata = {"tool_call_id": message["tool_call_id"]}
        with sw.tool(function["name"], input=json.loads(function["arguments"]), metadata=metadata) as step:
            step.output = message["content"]


# -- and back


@dataclass
class Expected:
    """A step that the message at a place must have left behind. `run` is the place of its run among the steps."""

    at: int
    facts: dict[str, Any]
    run: int | None


def expected_steps(conversation: Conversation) -> list[Expected]:
    """Say what must stand in the store, in order, from the messages alone."""
    messages = conversation.messages
    steps: list[Expected] = []
    run: int | None = None

    def add(at: int, type: str, name: str, **payloads: Any) -> None:
        steps.append(Expected(at, {"type": type, "name": name, **payloads}, run))

    for at, message in enumerate(messages):
        content = message["content"]
        match message["role"]:
            case "system":
                add(at, "system_message", "system_message", output={"content": content})
            case "user":
                run = len(steps)
                add(at, "run", "turn", input=content)
                add(at, "user_message", "user_message", output={"content": content})
            case "assistant":
                asked = {"messages": messages[:at], "message_completion": message, "stop_reason": stop_reason(message)}
                add(at, "llm", "agent", output=message, model=MODEL, **asked)
                if conversation.final_text(at) is not None:
                    add(at, "assistant_message", "assistant_message", output={"content": content})
                    steps[run or 0].facts["output"] = content
            case "tool":
                arguments = json.loads(conversation.call(at)["function"]["arguments"])
                metadata = {"tool_call_id": message["tool_call_id"]}
                add(at, "tool", message["name"], input=arguments, output=content, metadata=metadata)
            case role:
                raise ValueError(f"{conversation.thread_id}, message {at}: a role nothing is known of: {role!r}")
    return steps


def wanted_of(conversation: Conversation, place: int, wanted: Sequence[Expected], ids: Sequence[str]) -> dict[str, Any]:
    """Fill in what all steps have. The recorder chose the ids, so only how they hang together can be told."""
    want = wanted[place]
    in_thread = {"status": "success", "thread_id": conversation.thread_id, "user": conversation.user}
    if want.run is None:
        return {**want.facts, **in_thread}
    run = ids[want.run]
    if want.run == place:
        children = sum(other.run == place for other in wanted) - 1
        return {**want.facts, **in_thread, "root_run_id": run, "child_count": children}
    return {**want.facts, **in_thread, "root_run_id": run, "parent_id": run}


def seen_of(step: StepRecord) -> dict[str, Any]:
    """Return what is compared of a step that was read, payloads as Python values, without what is absent."""
    names = (
        "type",
        "name",
        "status",
        "thread_id",
        "user",
        "parent_id",
        "root_run_id",
        "child_count",
        "downgraded_from",
    )
    seen = {name: getattr(step, name) for name in names}
    seen |= {name: parsed(getattr(step, name)) for name in ("input", "output", "metadata")}
    if step.generation:
        generation = decode_generation(step.generation)
        seen |= {"model": generation.model, "stop_reason": generation.stop_reason}
        seen |= {name: parsed(getattr(generation, name)) for name in ("messages", "message_completion")}
    return {name: value for name, value in seen.items() if value is not None}


def parsed(payload: Raw | UnsetType) -> Any:
    return None if isinstance(payload, UnsetType) else decode_json(payload)


def read_thread(store: Store, thread_id: str) -> list[StepRecord]:
    return [store.step(row.id) for row in store.thread_steps(thread_id)]


def differences(conversation: Conversation, store: Store, steps: Sequence[StepRecord]) -> Iterator[str]:
    """Tell what of a conversation is not in the store as it went in."""
    name, wanted = conversation.thread_id, expected_steps(conversation)
    kinds, wanted_kinds = Counter(step.type for step in steps), Counter(want.facts["type"] for want in wanted)
    if kinds != wanted_kinds:
        yield f"{name}: steps of the thread: {first_difference(dict(kinds), dict(wanted_kinds))}"
        return
    ids = [step.id for step in steps]
    for place, (step, want) in enumerate(zip(steps, wanted, strict=True)):
        if found := first_difference(seen_of(step), wanted_of(conversation, place, wanted, ids)):
            yield f"{name}, message {want.at} ({conversation.messages[want.at]['role']}), step {step.id}: {found}"
    thread = store.thread(name)
    seen = {"user": thread.user and thread.user.identifier, "metadata": parsed(thread.metadata)}
    if found := first_difference(seen, {"user": conversation.user, "metadata": conversation.metadata}):
        yield f"{name}: thread: {found}"
    last = next(step for step in reversed(steps) if step.type == "run")
    scores = [{"name": score.name, "value": score.value} for score in last.scores or ()]
    if found := first_difference(scores, [{"name": "reward", "value": conversation.reward}]):
        yield f"{name}: scores of step {last.id}: {found}"


def first_difference(seen: Any, wanted: Any, path: str = "") -> str | None:
    """Return where two JSON values first differ, with both sides of that place; None when they are equal."""
    if seen == wanted:
        return None
    if isinstance(seen, dict) and isinstance(wanted, dict):
        key = next(key for key in [*wanted, *seen] if seen.get(key, ...) != wanted.get(key, ...))
        return first_difference(seen.get(key, ...), wanted.get(key, ...), f"{path}.{key}" if path else str(key))
    if isinstance(seen, list) and isinstance(wanted, list) and len(seen) == len(wanted):
        at = next(at for at, pair in enumerate(zip(seen, wanted, strict=True)) if pair[0] != pair[1])
        return first_difference(seen[at], wanted[at], f"{path}[{at}]")
    if isinstance(seen, str) and isinstance(wanted, str) and max(len(seen), len(wanted)) > 60:
        at = next((at for at, pair in enumerate(zip(seen, wanted, strict=False)) if pair[0] != pair[1]), len(wanted))
        start = max(0, at - 20)
        return f"{path} from character {at}: {seen[start : at + 40]!r} is not {wanted[start : at + 40]!r}"
    if isinstance(seen, list) and isinstance(wanted, list):
        return f"{path}: {len(seen)} items are not {len(wanted)}"
    sides = ["nothing" if side is ... else f"{side!r:.80}" for side in (seen, wanted)]
    return f"{path}: {sides[0]} is not {sides[1]}"


# -- the program


@dataclass
class Outcome:
    """What a check found: steps by type, messages that the llm steps carried, seconds spent reading, differences.

    `line_bytes` is what the steps take as plain JSON lines.
    """

    threads: int
    types: Counter[str]
    prompted: int
    seconds: float
    found: list[str]
    line_bytes: int = 0


def check(conversations: Sequence[Conversation], path: Path) -> Outcome:
    """Compare a store with the conversations, whole: nothing may be missing, other, or too much."""
    outcome = Outcome(0, Counter(), 0, 0.0, [])
    store = open_store(f"sqlite:{path}", read_only=True)
    with closing(store):
        outcome.found += [f"store: {problem}" for problem in store.check()]
        for conversation in tracked(conversations, "reading back"):
            started = time.perf_counter()
            steps = read_thread(store, conversation.thread_id)
            outcome.seconds += time.perf_counter() - started
            outcome.types.update(step.type or "unknown" for step in steps)
            outcome.prompted += sum(len(seen_of(step).get("messages", ())) for step in steps)
            outcome.line_bytes += sum(len(encode_record(step)) + 1 for step in steps)
            outcome.found += differences(conversation, store, steps)
        stats = store.stats()
    outcome.threads = stats.threads
    if stats.threads != len(conversations):
        outcome.found.append(f"store: {stats.threads} threads are not {len(conversations)}")
    if stats.steps != outcome.types.total():
        outcome.found.append(f"store: {stats.steps} steps, but the threads have {outcome.types.total()}")
    return outcome


def tracked(items: Sequence[Conversation], what: str) -> Iterable[Conversation]:
    """Show how far a loop is: a progress bar on a terminal that has rich, a line of text elsewhere."""
    if sys.stderr.isatty() and find_spec("rich"):
        from rich.console import Console
        from rich.progress import track

        return track(items, description=what, console=Console(stderr=True), transient=True)
    print(f"{what}: {len(items)} conversations", file=sys.stderr)
    return items


def record(conversations: Sequence[Conversation], home: Path) -> tuple[dict[str, str], list[str]]:
    """Replay into `home`; return rows for the table, and what the ledger says went wrong."""
    sw.configure(enabled=False, home=home)
    started = time.perf_counter()
    for conversation in conversations:
        replay(conversation)
    off_s = time.perf_counter() - started

    sw.configure(export="sqlite:", home=home, strict=True)
    started, cpu = time.perf_counter(), time.thread_time()
    for conversation in tracked(conversations, "recording"):
        replay(conversation)
    recorded, cpu_s = time.perf_counter(), time.thread_time() - cpu
    seconds = recorded - started
    waiting = bytes_in(home / "journal")
    delivered = sw.flush(DELIVERY_TIMEOUT_S)
    delivery_s = time.perf_counter() - recorded
    kept = bytes_in(home / "journal")
    stats = sw.stats()
    sw.shutdown(DELIVERY_TIMEOUT_S)

    found = [] if delivered else [f"delivery: not done after {DELIVERY_TIMEOUT_S:.0f} s"]
    found += [f"ledger: {count} internal failures: {fault}" for fault, count in stats.faults.items()]
    for name, ledger in stats.exporters.items():
        if ledger.delivered != stats.recorded or not ledger.balanced:
            found.append(f"ledger of {name}: {stats.recorded} recorded, but {ledger}")
    count = stats.recorded
    rows = {
        "records (steps, threads, scores)": f"{count:,}",
        "recording, on the caller's thread": f"{seconds:.3f} s, CPU {cpu_s:.3f} s; switched off {off_s:.3f} s",
        "recording, a record": f"{seconds / count * 1e6:.1f} us, CPU {cpu_s / count * 1e6:.1f} us",
        "until delivered, after that": f"{delivery_s:.3f} s",
        "records/s, recorded / and delivered": f"{count / seconds:,.0f} / {count / (seconds + delivery_s):,.0f}",
        "journal, at the end of recording": f"{waiting:,} bytes",
        "journal, when delivered": f"{kept:,} bytes",
    }
    return rows, found


def bytes_in(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def counts(outcome: Outcome) -> dict[str, str]:
    types = outcome.types
    return {
        "threads": f"{outcome.threads:,}",
        "steps": f"{types.total():,}",
        **{f"{kind} steps": f"{types[kind]:,}" for kind in sorted(types)},
        "messages the llm steps carried": f"{outcome.prompted:,}",
    }


def show(rows: Mapping[str, str]) -> None:
    width = max(map(len, rows))
    for name, value in rows.items():
        print(f"{name:<{width}}  {value}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, metavar="FILE", help="default: %(default)s")
    parser.add_argument("--home", type=Path, metavar="DIR", help="where to record; default: a temporary folder")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N conversations")
    parser.add_argument("--check-only", action="store_true", help="check what an earlier replay left in --home")
    given = parser.parse_args()
    if not given.data.is_file():
        parser.error(f"there is no file {given.data}")
    if given.check_only and given.home is None:
        parser.error("--check-only needs the --home of an earlier replay")
    if given.home is not None and (given.home / "steps.db").exists() is not given.check_only:
        parser.error(f"{given.home} holds {'no' if given.check_only else 'a'} store")
    return given


def main() -> int:
    given = arguments()
    conversations = load(given.data, given.limit)
    rows: dict[str, str] = {}
    found: list[str] = []
    with ExitStack() as stack:
        home = given.home or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not given.check_only:
            rows, found = record(conversations, home)
        outcome = check(conversations, home / "steps.db")
        rows["steps as JSON lines"] = f"{outcome.line_bytes:,} bytes"
        rows["store"] = f"{bytes_in_store(home):,} bytes"
        rows["store, to the lines"] = f"1/{outcome.line_bytes / bytes_in_store(home):.1f}"
        rows["reading back"] = f"{outcome.seconds:.3f} s, {outcome.types.total() / outcome.seconds:,.0f} steps/s"
    show({**counts(outcome), **rows})
    found += outcome.found
    for line in found[:MAX_SHOWN]:
        print(f"DIFFERENT: {line}")
    if len(found) > MAX_SHOWN:
        print(f"... and {len(found) - MAX_SHOWN} more")
    print("different from the input" if found else "equal to the input")
    return 1 if found else 0


def bytes_in_store(home: Path) -> int:
    return sum(file.stat().st_size for file in home.glob("steps.db*"))


if __name__ == "__main__":
    sys.exit(main())
