"""Where the prompt cache broke: what is told of known causes, and that nothing is told of what is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import viewing
from served import AppServer

from stepwell.model import StepRecord, decode_record
from stepwell.server.pages._caching import Break, breaks, prompt_of

Record = dict[str, Any]

STAMPED = "You are a guide to stepwells. It is 10:00. " + "Be kind. " * 40
TOOLS = [
    {"type": "function", "function": {"name": name, "description": f"{name} it up", "parameters": {"type": "object"}}}
    for name in ("look", "buy", "sell")
]
TALK: list[Record] = [
    {"role": "system", "content": STAMPED},
    {"role": "user", "content": "How deep is Chand Baori?"},
    {"role": "assistant", "content": "Let me look."},
    {"role": "tool", "tool_call_id": "c1", "content": "30 m, and a long report"},
    {"role": "assistant", "content": "30 m."},
    {"role": "user", "content": "And who built it?"},
]
NEXT: list[Record] = [
    *TALK,
    {"role": "assistant", "content": "King Chanda."},
    {"role": "user", "content": "When?"},
]


def call(id: str, at: float, messages: list[Record], **fields: Any) -> Record:
    """Return a model call of 3,000 tokens; what it read from the cache is `cached`."""
    cached = fields.pop("cached", 0)
    usage = {"input_tokens": fields.pop("tokens", 3_000), "output_tokens": 10, "cached_input_tokens": cached}
    usage |= {"cache_write_tokens": fields.pop("written")} if "written" in fields else {}
    parent = fields.pop("parent", "run")
    generation = viewing.a_call(
        messages, {"role": "assistant", "content": "ok"}, **{"tools": TOOLS, "usage": usage, **fields}
    )
    return viewing.a_step(id, "llm", at, at + 1, parent, generation=generation)


def told(*calls: Record) -> list[Break]:
    records = [decode_record(json.dumps(each).encode()) for each in calls]
    return list(breaks([prompt_of(record) for record in records if isinstance(record, StepRecord)]))


def with_message(at: int, message: Record) -> list[Record]:
    return [*NEXT[:at], message, *NEXT[at + 1 :]]


CAUSES: dict[str, tuple[list[Record], dict[str, Any], str, str]] = {
    "a tool taken away": (NEXT, {"tools": TOOLS[:2]}, "tools", "sell is gone"),
    "tools in another order": (NEXT, {"tools": TOOLS[::-1]}, "tools", "the same ones in another order"),
    "a tool described otherwise": (
        NEXT,
        {"tools": [*TOOLS[:2], {"type": "function", "function": {**TOOLS[2]["function"], "description": "sell now"}}]},
        "tools",
        (
            'sell at character 66: “…ription":"sell it up","parameters":{"type":"o…” became '
            '“…ription":"sell now","parameters":{"type":"obj…”'
        ),
    ),
    "a setting": (NEXT, {"settings": {"tool_choice": "none"}}, "setting tool_choice", "nothing became none"),
    "the time in the system prompt": (
        with_message(0, {"role": "system", "content": STAMPED.replace("10:00", "10:01")}),
        {},
        "system prompt at character 41",
        "“…lls. It is 10:00. Be kind. Be kind. Be kind.…” became “…lls. It is 10:01. Be kind. Be kind. Be kind.…”",
    ),
    "an earlier message edited": (
        with_message(1, {"role": "user", "content": "How deep is Chand Bawdi?"}),
        {},
        "message 2",
        "the user message reads otherwise: “…eep is Chand Baori?” became “…eep is Chand Bawdi?”",
    ),
    "a result of a tool cleared": (
        with_message(3, {"role": "tool", "tool_call_id": "c1", "content": "(cleared)"}),
        {},
        "message 4",
        "the tool message reads otherwise: “30 m, and a long report” became “(cleared)”",
    ),
    "the beginning dropped": (
        [NEXT[0], *NEXT[4:]],
        {"tokens": 2_500},
        "message 2",
        "3 messages before it are not sent again",
    ),
    "a reminder put in": (
        [*NEXT[:2], {"role": "user", "content": "Remember to be kind."}, *NEXT[2:]],
        {},
        "message 3",
        "1 message put in before what stood there",
    ),
}


@pytest.mark.parametrize("cause", CAUSES)
def test_a_broken_cache_is_told_with_the_first_part_that_differs(cause: str) -> None:
    messages, fields, part, how = CAUSES[cause]
    (found,) = told(call("c1", 1, TALK), call("c2", 3, messages, **fields))
    assert (found.id, found.before_id, found.kind, found.part, found.how) == ("c2", "c1", "broken", part, how)
    assert (found.expected, found.read, found.lost) == (min(2_944, fields.get("tokens", 3_000)), 0, found.expected)
    assert found.cost is None


def marked(messages: list[Record], at: int) -> list[Record]:
    """Return messages in blocks, with the mark of the cache at one of them and the members in another order."""
    marks = [{"cache_control": {"type": "ephemeral"}} if place == at else {} for place in range(len(messages))]
    return [
        {
            **({"name": None} if mark else {}),
            "content": [{"type": "text", "text": each["content"], **mark}],
            **each_role,
        }
        for each, mark in zip(messages, marks, strict=True)
        for each_role in [{key: value for key, value in each.items() if key != "content"}]
    ]


OTHER = [{"role": "system", "content": "Make a title."}, {"role": "user", "content": "How deep is Chand Baori?"}]
NO_CAUSES: dict[str, Callable[[], list[Record]]] = {
    "an appended prompt, some blocks fewer": lambda: [call("c1", 1, TALK), call("c2", 3, NEXT, cached=2_688)],
    "a mark of the cache that moves on": lambda: [
        call("c1", 1, marked(TALK, 5), provider="anthropic", written=2_900),
        call("c2", 3, marked(NEXT, 7), provider="anthropic", cached=2_900, written=80),
    ],
    "what is too short for a cache": lambda: [
        call("c1", 1, TALK, tokens=1_000), call("c2", 3, with_message(1, NEXT[2]), tokens=1_000),
    ],
    "another model": lambda: [call("c1", 1, TALK), call("c2", 3, with_message(1, NEXT[2]), model="other")],
    "another branch": lambda: [call("c1", 1, TALK), call("c2", 3, with_message(1, NEXT[2]), parent="part")],
    "a call between, of another prompt": lambda: [
        call("c1", 1, TALK), call("t", 3, OTHER, tools=[]), call("c2", 5, NEXT, cached=2_944),
    ],
    "calls side by side": lambda: [
        call("c1", 1, TALK), call("c2", 1.5, TALK), call("c3", 1.6, with_message(1, NEXT[2])),
    ],
    "a temperature": lambda: [
        call("c1", 1, TALK), call("c2", 3, NEXT, cached=2_944, settings={"temperature": 1, "max_tokens": 5}),
    ],
    "a difference after what was cached": lambda: [
        call("c1", 1, TALK, provider="anthropic", written=2_000, cached=0),
        call("c2", 3, with_message(5, NEXT[2]), provider="anthropic", cached=2_000, written=0),
    ],
    "an earlier turn taken again": lambda: [call("c1", 1, NEXT), call("c2", 3, TALK, cached=2_816)],
    "another question with the same system prompt": lambda: [
        call("c1", 1, TALK[:2]), call("c2", 3, [TALK[0], {"role": "user", "content": "How wide?"}]),
    ],
    "a model without a cache": lambda: [
        call("c1", 1, TALK, model="gpt-3.5-turbo"), call("c2", 3, with_message(1, NEXT[2]), model="gpt-3.5-turbo"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("cause", NO_CAUSES)
def test_what_broke_no_cache_is_not_told(cause: str) -> None:
    assert told(*NO_CAUSES[cause]()) == []


def test_the_calls_of_a_threads_runs_go_on_from_each_other() -> None:
    runs = [call("c1", 1, TALK, parent="r1"), call("c2", 3, with_message(1, NEXT[2]), parent="r2")]
    for each in runs:
        each |= {"root_run_id": each["parent_id"], "thread_id": "talk"}
    assert [(found.id, found.before_id, found.part) for found in told(*runs)] == [("c2", "c1", "message 2")]


def test_a_call_after_the_lifetime_found_the_cache_expired_whatever_it_changed() -> None:
    first = call("c1", 1, TALK)
    (same,) = told(first, call("c2", 700, NEXT))
    assert (same.kind, same.part, same.idle_ns) == ("expired", "", 698 * viewing.SECOND)
    (other,) = told(first, call("c2", 700, NEXT, tools=[]))
    assert (other.kind, other.part) == ("expired", "tools")
    (kept,) = told(call("c1", 1, TALK, settings={"prompt_cache_retention": "24h"}), call("c2", 700, NEXT, tools=[]))
    assert kept.kind == "broken"


def test_what_no_record_explains_is_told_as_missed_and_what_reports_no_reading_as_changed() -> None:
    (missed,) = told(call("c1", 1, TALK), call("c2", 3, NEXT))
    assert (missed.kind, missed.part, missed.lost) == ("missed", "", 2_944)
    (changed,) = told(call("c1", 1, TALK), call("c2", 3, with_message(1, NEXT[2]), cached=None, tools=[]))
    assert (changed.kind, changed.part, changed.also, changed.lost) == ("changed", "tools", ["message 2"], None)
    assert (changed.place, changed.cost) == (None, None)


@pytest.mark.parametrize("parts", [({"input": 3.0}, {"input": 0.25, "cached_input": 0.275}), ({"input": 3.0}, None)])
def test_what_a_break_cost_is_told_at_recorded_prices_only(parts: tuple[Record, Record | None]) -> None:
    whole, cached = parts
    calls = [
        call("c1", 1, TALK, cost=whole),
        call("c2", 3, NEXT, cached=2_750, **({} if cached is None else {"cost": cached})),
        call("c3", 5, [*NEXT, *TALK[2:]], tools=[]),
    ]
    (found,) = told(*calls)
    assert (found.id, found.lost) == ("c3", 2_944)
    assert found.cost == (None if cached is None else pytest.approx(2_944 * (0.001 - 0.0001)))


def test_a_break_is_a_row_of_the_findings_and_a_line_of_the_call(tmp_path: Path) -> None:
    with AppServer(tmp_path / "home") as server:
        broken = with_message(3, {"role": "tool", "tool_call_id": "c1", "content": "<b>cleared</b>"})
        viewing.add(server.store, viewing.a_run(), call("c1", 1, TALK), call("c2", 3, broken))
        text = server.client.get("/findings/run").text
        assert "1 call broke the prompt cache" in text
        assert (
            '<a href="/runs/run?step=c2">call 2</a></td><td data-label="goes on from">'
            '<a href="/runs/run?step=c1">call 1</a>' in text
        )
        assert '<a href="/messages/c2?first=3&amp;last=4"><b>message 4</b></a>' in text
        assert '<a class="note" href="/messages/c1?first=3&amp;last=4">as it was</a>' in text
        assert "“&lt;b&gt;cleared&lt;/b&gt;”" in text
        assert (
            '2,944 <span class="note">of 2,944</span></td><td class="n" data-label="cost:"><span class="note">unknown'
            in text
        )
        line = server.client.get("/runs/run?step=c2").text
        assert "what differs first is message 4, and 2,944 of 2,944 tokens were not read from it." in line
        assert "prompt cache" not in server.client.get("/runs/run?step=c1").text
        whole = [call("d1", 21, TALK, parent="on"), call("d2", 23, NEXT, parent="on", cached=2_944)]
        viewing.add(server.store, viewing.a_run("on"), *({**each, "root_run_id": "on"} for each in whole))
        assert "No such call was found among the 2 that report" in server.client.get("/findings/on").text
