"""Runs to look at: what the viewer must show, each made of records as an exporter would send them."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

from stepwell.store import Store

SECOND = 1_000_000_000
MS = 1_000_000
BEGAN = 1_760_000_000 * SECOND  # 2025-10-09 08:53:20 UTC

Record = dict[str, Any]


def a_step(id: str, type: str, start: float, end: float | None, parent: str | None = "run", **fields: Any) -> Record:
    """Return a step of the run `run`; times are seconds after its start."""
    record: Record = {
        "kind": "step",
        "id": id,
        "trace_id": fields.pop("trace", "trace"),
        "type": type,
        "name": fields.pop("name", id),
        "start_ns": BEGAN + round(start * SECOND),
        "status": fields.pop("status", "success" if end is not None else "pending"),
        "root_run_id": fields.pop("root", "run"),
        **fields,
    }
    if end is not None:
        record["end_ns"] = BEGAN + round(end * SECOND)
    if parent is not None:
        record["parent_id"] = parent
    return record


def a_run(id: str = "run", end: float | None = 10.0, **fields: Any) -> Record:
    return a_step(id, "run", 0, end, None, root=id, **{"name": "agent", **fields})


def add(store: Store, *records: Record) -> None:
    """Put records into a store, as they are."""
    result = store.add([json.dumps(record, ensure_ascii=False).encode() for record in records])
    assert result.rejected == ()


def ten_thousand(prefix: str = "b") -> Iterator[Record]:
    """Return a run of 10,000 steps: 400 model calls in 20 nested runs, bodies of 1 kB; one tool of 9,579 fails."""
    yield a_run(f"{prefix}-run", 1000.0, trace=prefix, input="count to ten thousand", output="done", child_count=20)
    body = "lorem ipsum " * 80
    number = 0
    for part in range(20):
        parent = f"{prefix}-part-{part:02d}"
        begin = part * 50.0
        yield a_step(parent, "run", begin, begin + 50, f"{prefix}-run", root=f"{prefix}-run", trace=prefix, name="part")
        for call in range(20):
            at = begin + call * 2.5
            yield a_step(
                f"{prefix}-llm-{part:02d}-{call:02d}", "llm", at, at + 0.5, parent, root=f"{prefix}-run", trace=prefix,
                name="plan",
                generation={
                    "type": "chat", "model": "m", "messages": [{"role": "user", "content": f"{body}{part} {call}"}],
                    "message_completion": {"role": "assistant", "content": f"call {part} {call}"},
                    "usage": {"input_tokens": 100, "output_tokens": 10, "total_tokens": 110},
                },
            )  # fmt: skip
        for _ in range(479 if part == 19 else 478):
            yield a_step(
                f"{prefix}-tool-{number:05d}", "tool", begin + 0.6, begin + 0.7, parent, root=f"{prefix}-run",
                trace=prefix, name=f"look{number % 7 if part == 7 else ''}", input={"n": number},
                output=f"{body}needle-{number}", status="failed" if number == 4321 else "success",
            )  # fmt: skip
            number += 1
    while number < 9_579:
        yield a_step(
            f"{prefix}-tool-{number:05d}", "tool", 999, 999.5, f"{prefix}-run", root=f"{prefix}-run", trace=prefix,
            name="last", input={"n": number}, output=body,
        )  # fmt: skip
        number += 1


def deep(depth: int = 150) -> Iterator[Record]:
    """Return a run in which every step is below the one before."""
    yield a_run("deep", 150.0, trace="deep")
    for level in range(1, depth + 1):
        above = "deep" if level == 1 else f"deep-{level - 1:03d}"
        name = f"a step with quite a long name at level {level}"
        end = 150.0 - level / 10
        yield a_step(f"deep-{level:03d}", "tool", level / 10, end, above, root="deep", trace="deep", name=name)


def png(width: int = 64, height: int = 48) -> bytes:
    """Return an image of noise, of more than 200 characters of base64 and less than what is moved out of payloads."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    noise = sha256(b"noise").digest() * width
    rows = b"".join(b"\0" + noise[at : at + width] for at in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 0)) + chunk(b"IEND", b"")


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def a_call(messages: list[Record], answer: Record, **fields: Any) -> Record:
    """Return a generation."""
    said = {"messages": messages, "message_completion": answer}
    return {"type": "chat", "model": "m", "provider": "openai", **said, **fields}


def text_set() -> Iterator[Record]:
    """Return a run of texts that are easily shown wrong."""
    mixed = "<rules>keep</rules> 你好 \U0001f6eb مرحبا <script>document.title = 'ran'</script>\nsecond line"
    yield a_run(
        "text", trace="text", name=f"run {mixed[:24]}", input=mixed, output={"nested": '{"lines": "one\\ntwo 机票"}'}
    )
    yield a_step("text-said", "user_message", 1, 1, "text", root="text", trace="text", output=mixed)
    yield a_step(
        "text-llm", "llm", 2, 3, "text", root="text", trace="text",
        generation=a_call(
            [{"role": "system", "content": "<rules>\n# Title\nbe <b>kind</b>\n</rules>"}],
            {"role": "assistant", "content": "**bold**\nnext 你好\n<think>hidden?</think>"},
            tools=[{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}],
        ),
    )  # fmt: skip


def images() -> Iterator[Record]:
    """Return a run with one image in five shapes, and two files that no page may show."""
    data = base64_of(png())
    url = f"data:image/png;base64,{data}"
    svg = f"data:image/svg+xml;base64,{base64_of(b'<svg xmlns=...><script>alert(1)</script></svg>' * 9)}"
    yield a_run("images", trace="images")
    content = [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        {"type": "image", "image": data, "mimeType": "image/png"},
    ]
    generation = a_call([{"role": "user", "content": content}], {"role": "assistant", "content": "seen"})
    yield a_step("images-llm", "llm", 1, 2, "images", root="images", trace="images", generation=generation)
    yield a_step(
        "images-tool", "tool", 3, 4, "images", root="images", trace="images", output={"shot": data, "drawing": svg},
    )  # fmt: skip


def talk(calls: int = 12) -> Iterator[Record]:
    """Return a run in which a model is called again and again, each time with all before, and uses two tools."""
    yield a_run("talk", 100.0, trace="talk", input="what is the weather?", output="it is fine")
    tools = [
        {"type": "function", "function": {"name": name, "description": f"{name} it", "parameters": {"type": "object"}}}
        for name in ("look", "buy")
    ]
    messages: list[Record] = [{"role": "system", "content": "be kind " * 50}, {"role": "user", "content": "what?"}]
    for number in range(1, calls + 1):
        id = f"c{number if number != 3 else 2}"  # an id that comes again
        made = {"id": id, "type": "function", "function": {"name": "look", "arguments": json.dumps({"n": number})}}
        answer: Record = {"role": "assistant", "content": None, "tool_calls": [made]}
        at = number * 5.0
        usage = {"input_tokens": 100, "cached_input_tokens": 60, "output_tokens": 5, "total_tokens": 105}
        yield a_step(
            f"talk-llm-{number:02d}", "llm", at, at + 2, "talk", root="talk", trace="talk", name="think",
            generation=a_call([*messages], answer, tools=tools, usage=usage, ttft_ns=500 * MS),
        )  # fmt: skip
        result = f"result {number} " + "x" * 300
        yield a_step(
            f"talk-tool-{number:02d}", "tool", at + 2, at + 2.000038, "talk", root="talk", trace="talk", name="look",
            input={"n": number}, output=result, metadata={"tool_call_id": id},
        )  # fmt: skip
        messages += [answer, {"role": "tool", "tool_call_id": id, "name": "look", "content": result}]
    edited = [{"role": "system", "content": "be brief"}, *messages[1:3], *messages[4:]]
    yield a_step(
        "talk-llm-last", "llm", 99, 99.5, "talk", root="talk", trace="talk", name="think",
        generation=a_call(edited, {"role": "assistant", "content": "it is fine"}),
    )  # fmt: skip


FORKED: dict[str, tuple[list[tuple[str, Any]], float | None]] = {
    "a": ([("look", {"at": "SFO", "n": 2}), ("think", "which?"), ("buy", {"seat": "1A"})], 1.0),
    "b": ([("look", {"n": 2.0, "at": "SFO"}), ("think", "which?"), ("buy", {"seat": "9F"})], 0.0),
    "c": ([("look", {"at": "LAX"})], 0.0),
    "d": ([("look", {"at": "SFO", "n": 2}), ("think", "which?"), ("buy", {"seat": "1A"})], None),
    "e": ([], 1.0),
}


def forked() -> Iterator[Record]:
    """Return five runs of one question, with the tools that they called and a reward for four of them."""
    asked = {"role": "user", "content": "a seat, please"}
    for number, (name, (calls, reward)) in enumerate(FORKED.items()):
        id, at = f"forked-{name}", number * 100.0
        scores = [] if reward is None else [{"id": f"{id}-s", "name": "reward", "value": reward}]
        place: Record = {"root": id, "trace": id}
        yield a_step(id, "run", at, at + 9, None, **place, name="agent", input="a seat, please", scores=scores)
        messages = [{"role": "system", "content": "be kind"}, asked]
        for call, (tool, arguments) in enumerate(calls):
            said: Record = {"role": "assistant", "content": None}
            begin = at + call * 2 + 1
            generation = a_call([*messages], said)
            yield a_step(f"{id}-l{call}", "llm", begin, begin + 1, id, **place, name="think", generation=generation)
            yield a_step(f"{id}-t{call}", "tool", begin + 1, begin + 1.5, id, **place, name=tool, input=arguments)
            messages += [said, {"role": "tool", "content": f"{tool} {call} of {name}"}]
        generation = a_call([*messages], {"role": "assistant", "content": f"done, says {name}"})
        yield a_step(f"{id}-last", "llm", at + 8, at + 9, id, **place, name="think", generation=generation)
