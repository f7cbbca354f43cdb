"""Where a provider's prompt cache broke: the first part of a call that differs from the call it goes on from, and what
was not read again because of it.

What must stay true: content is compared first, usage after that; a break is told only where the records show both that
something before the end of the earlier prompt differs, and that less was read from the cache than it held. What idled
past the cache's lifetime, what is too short for a cache, what ran beside, and what another model or branch sent is no
break. Prices are those that the calls themselves recorded. Pure functions over decoded calls.

What is known of the providers: tools come before the system prompt, and that before the messages; a cached prefix lives
5 minutes after its last use, or the hour that was asked for; what a change of `tool_choice`, thinking or output format
does (platform.claude.com/docs/en/build-with-claude/prompt-caching). From 1,024 tokens on, in blocks of 128, for 5 to 10
minutes, or the 24 hours that were asked for; the schema of structured output stands before the system prompt
(developers.openai.com/api/docs/guides/prompt-caching; models before gpt-4o have none).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Literal, cast

from msgspec import Raw, json

from stepwell.model import StepRecord
from stepwell.server.pages._content import first_line, mapping, read
from stepwell.server.pages._entry import generation_of
from stepwell.store import StepRow

__all__ = [
    "AHEAD",
    "BEHIND",
    "Branch",
    "Break",
    "Prompt",
    "branch_of",
    "breaks",
    "differences",
    "held",
    "may_have_broken",
    "prompt_of",
]

BEHIND: Final = 6  # earlier calls of a branch among which the one that a call goes on from is looked for
AHEAD: Final = 4  # later calls that may show that the earlier one went on without this one
BLOCK: Final = 128
LEAST: Final = 1_024
_MINUTE_NS: Final = 60_000_000_000
_AROUND: Final = 30
_MAX_DEPTH: Final = 40
_WITHOUT_CACHE: Final = ("gpt-3.5", "gpt-4-", "gpt-4 ")
_SETTINGS: Final = (  # those that are part of a cached prompt, or choose the cache; a temperature is neither
    *("tool_choice", "response_format", "text", "output_config", "output_format"),
    *("thinking", "reasoning", "reasoning_effort", "speed", "prompt_cache_key"),
)
_CACHED_PARTS: Final = ("cached_input", "input_cached_tokens", "cache_read_input_tokens", "input_cache_read", "cached")

Branch = tuple[str | None, str | None, str | None]
Kind = Literal["broken", "expired", "missed", "changed"]


@dataclass(frozen=True, slots=True)
class Told:
    """A message as it is compared: `digest` tells equal ones, whatever the order of members and cache marks."""

    digest: bytes
    role: str
    line: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A model call as a cache sees it. `tools` are names and definitions, `first` is the place of `messages` among all.

    `branch` tells calls that may go on from each other, see `branch_of`. `costs` are the recorded
    parts of the price.
    """

    id: str
    branch: Branch
    start_ns: int | None
    end_ns: int | None
    tools: Sequence[tuple[str, str]]
    settings: Mapping[str, Any]
    system: str
    messages: Sequence[Told]
    first: int
    input_tokens: int | None = None
    cached: int | None = None
    written: int | None = None
    lifetime_ns: int = 60 * _MINUTE_NS
    costs: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True)
class Break:
    """A call that read less from the cache than the one before it had left there, or that sent something else.

    `part` is the first part that differs, empty where none does, `how` says in which way; `also` are other parts that
    do. `place` and `old_place` are of the messages, where it is one. Tokens are `expected` and `read`.

    `broken`: it differs, and less was read. `expired`: the earlier call was too long ago. `missed`: nothing that was
    recorded differs, and less was read. `changed`: it differs, and what was read is not recorded.
    """

    id: str
    before_id: str
    kind: Kind
    part: str
    how: str
    also: Sequence[str] = ()
    place: int | None = None
    old_place: int | None = None
    expected: int | None = None
    read: int | None = None
    idle_ns: int | None = None
    cost: float | None = None

    @property
    def lost(self) -> int | None:
        """How many tokens were paid in full that the cache had held; None where it is not known."""
        return None if self.expected is None or self.read is None else self.expected - self.read


def branch_of(step: StepRecord | StepRow, model: str | None, provider: str | None) -> Branch:
    """Return what calls have in common that may go on from each other: what they are below, model and provider.

    The calls of a thread's runs are below the thread, and those below a part of a run are below that.
    """
    inside = step.thread_id is not None and step.parent_id == step.root_run_id
    return step.thread_id if inside else step.parent_id, model, provider


def prompt_of(record: StepRecord) -> Prompt:
    """Return a recorded model call as a cache sees it."""
    generation = generation_of(record)
    sent = cast("Sequence[Any]", found) if isinstance(found := read(generation.messages), list) else ()
    system, rest = _parted(sent)
    usage = generation.usage
    settings = mapping(read(generation.settings))
    provider = (generation.provider or "").lower()
    offered = read(generation.tools)
    tools = [_tool(item) for item in cast("Sequence[Any]", offered if isinstance(offered, list) else ())]
    return Prompt(
        record.id,
        branch_of(record, generation.model, generation.provider),
        record.start_ns,
        record.end_ns,
        tools,
        {name: _plain(settings[name]) for name in _SETTINGS if settings.get(name) is not None},
        system,
        [_told(message) for message in rest],
        len(sent) - len(rest),
        None if usage is None else usage.input_tokens,
        None if usage is None else usage.cached_input_tokens,
        None if usage is None else usage.cache_write_tokens,
        _lifetime(provider, settings, (sent, offered)),
        _costs(read(generation.cost)),
    )


def _parted(sent: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """Return the system prompt, which is the messages of that role at the beginning, and the messages after it."""
    texts: list[str] = []
    for message in sent:
        fields = mapping(message)
        if fields.get("role") not in {"system", "developer"}:
            break
        content = _plain(fields.get("content"))
        texts.append(content if isinstance(content, str) else _encoded(content).decode())
    return "\n\n".join(texts), sent[len(texts) :]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return a value without marks of caches and what says nothing; a text that stands alone in a list as it is."""
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        members = cast("dict[str, Any]", value)
        return {
            name: _plain(member, depth + 1)
            for name, member in members.items()
            if name != "cache_control" and member is not None and member != []
        }
    if isinstance(value, list) and depth < _MAX_DEPTH:
        items: list[Any] = [_plain(item, depth + 1) for item in cast("Sequence[Any]", value)]
        only = mapping(items[0]) if len(items) == 1 else {}
        return only["text"] if only.keys() == {"type", "text"} else items
    return cast("Any", value)


def _encoded(value: Any, order: Literal["deterministic"] | None = None) -> bytes:
    try:
        return json.encode(value, order=order)
    except (TypeError, ValueError, RecursionError):  # such as half a character, which JSON can write and UTF-8 can't
        return ascii(value).encode()


def _tool(item: Any) -> tuple[str, str]:
    plain = _plain(item)  # the order of members stays: it is a part of what the model is given
    inner = mapping(mapping(plain).get("function")) or mapping(plain)
    return str(inner.get("name", "(unnamed)")), _encoded(plain).decode()


def _told(message: Any) -> Told:
    fields = mapping(message)
    plain = _plain(message)
    body = _encoded(plain, order="deterministic")
    content = mapping(plain).get("content")
    line = first_line(content if isinstance(content, str) else body.decode(), 80)
    role = fields.get("role") or fields.get("type")
    return Told(blake2b(body, digest_size=16).digest(), role if isinstance(role, str) else "message", line)


def _lifetime(provider: str, settings: Mapping[str, Any], marked: Any) -> int:
    if provider.startswith(("openai", "azure")):
        return (24 * 60 if settings.get("prompt_cache_retention") == "24h" else 10) * _MINUTE_NS
    if _asks_for_an_hour(settings) or _asks_for_an_hour(marked):
        return 60 * _MINUTE_NS
    return (5 if "anthropic" in provider or "bedrock" in provider else 60) * _MINUTE_NS


def _asks_for_an_hour(value: Any, depth: int = 0) -> bool:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        if mapping(members.get("cache_control")).get("ttl") == "1h":
            return True
        inside: Sequence[Any] = list(members.values())
    else:
        inside = cast("Sequence[Any]", value) if isinstance(value, list | tuple) else ()
    return depth < _MAX_DEPTH and any(_asks_for_an_hour(item, depth + 1) for item in inside)


def _costs(value: Any) -> dict[str, float] | None:
    members = mapping(value).items()
    known = {
        name: float(part) for name, part in members if isinstance(part, int | float) and not isinstance(part, bool)
    }
    return known or None


def held(
    provider: str | None, model: str | None, input_tokens: int | None, cached: int | None, written: int | None
) -> int | None:
    """Return how many tokens of a call's prompt are in the cache after it; None where nothing shows that any are."""
    if written is not None and written + (cached or 0) > 0:
        return written + (cached or 0)
    automatic = (provider or "").lower().startswith(("openai", "azure"))
    if automatic and not f"{model} ".startswith(_WITHOUT_CACHE) and input_tokens is not None and input_tokens >= LEAST:
        return input_tokens // BLOCK * BLOCK
    return cached or None  # what was read once is there to be read again


def may_have_broken(expected: int | None, input_tokens: int | None, read_tokens: int | None) -> bool:
    """Tell whether a call read less than was there, by at least a block, as far as it was so long itself."""
    if expected is None or read_tokens is None:
        return False
    return min(expected, expected if input_tokens is None else input_tokens) - read_tokens >= BLOCK


def breaks(prompts: Sequence[Prompt]) -> Iterator[Break]:
    """Yield what broke, expired or was missed among the calls of a run or a thread, which are in order."""
    branches: dict[Branch, list[Prompt]] = {}
    for prompt in prompts:
        branches.setdefault(prompt.branch, []).append(prompt)
    found: dict[str, Break] = {}
    for calls in branches.values():
        prices = _prices(calls)
        for at, call in enumerate(calls):
            before = _before(call, calls[max(at - BEHIND, 0) : at], calls[at + 1 : at + 1 + AHEAD])
            broke = None if before is None else _judged(before, call, prices)
            if broke is not None:
                found[call.id] = broke
    for prompt in prompts:
        if prompt.id in found:
            yield found[prompt.id]


def _before(call: Prompt, earlier: Sequence[Prompt], later: Sequence[Prompt]) -> Prompt | None:
    """Return the call that one goes on from: the latest of those whose prompts are equal the furthest.

    One that a later call goes on from word by word, and this one does not, is another branch.
    """
    best: Prompt | None = None
    most = -1
    for each in earlier:
        if each.end_ns is not None and call.start_ns is not None and each.end_ns > call.start_ns:
            continue  # they ran side by side: neither could read what the other wrote
        alike = _alike(each, call)
        whole = alike == 2 + min(len(each.messages), len(call.messages))
        if not whole and (not _related(each, call) or any(_goes_on(each, other) for other in later)):
            continue
        if alike >= most:
            best, most = each, alike
    return best


def _alike(one: Prompt, other: Prompt) -> int:
    """Return how far two prompts are equal: 0 for none of it, 1 for the tools, and so on."""
    if one.tools != other.tools:
        return 0
    return 1 if one.system != other.system else 2 + _equal(one.messages, other.messages)


def _equal(one: Sequence[Told], other: Sequence[Told]) -> int:
    at = 0
    while at < min(len(one), len(other)) and one[at].digest == other[at].digest:
        at += 1
    return at


def _goes_on(one: Prompt, other: Prompt) -> bool:
    """Tell whether all of a prompt is the beginning of another."""
    return _alike(one, other) == 2 + len(one.messages)


def _related(one: Prompt, other: Prompt) -> bool:
    """Tell whether two prompts are of one conversation: a message of one is sent again in the other."""
    known = {message.digest for message in one.messages}
    return any(message.digest in known for message in other.messages)


def _judged(before: Prompt, call: Prompt, prices: tuple[float, float] | None) -> Break | None:
    parts = list(differences(before, call))
    _, model, provider = before.branch
    expected = held(provider, model, before.input_tokens, before.cached, before.written)
    if expected is not None and call.input_tokens is not None:
        expected = min(expected, call.input_tokens)
    idle = _idle(before, call)
    expired = idle is not None and idle > before.lifetime_ns
    kind: Kind
    if call.cached is None:
        if not parts:
            return None
        kind, expected = "changed", None
    elif not may_have_broken(expected, call.input_tokens, call.cached):
        return None
    elif not parts and call.cached * 2 >= (expected or 0):
        return None  # some blocks fewer of an equal prompt are the provider's business
    else:
        kind = "expired" if expired else "broken" if parts else "missed"
    part, how, place, old_place = parts[0] if parts else ("", "", None, None)
    lost = None if expected is None or call.cached is None else expected - call.cached
    cost = None if lost is None or prices is None else lost * (prices[0] - prices[1])
    also = [name for name, _, _, _ in parts[1:]]
    return Break(call.id, before.id, kind, part, how, also, place, old_place, expected, call.cached, idle, cost)


def _idle(before: Prompt, call: Prompt) -> int | None:
    ended = before.start_ns if before.end_ns is None else before.end_ns
    return None if ended is None or call.start_ns is None else max(call.start_ns - ended, 0)


def differences(before: Prompt, call: Prompt) -> Iterator[tuple[str, str, int | None, int | None]]:
    """Yield the parts that differ, in the order in which a provider puts them together: name, how, and places."""
    if before.tools != call.tools:
        yield "tools", _tools_differ(before.tools, call.tools), None, None
    for name in _SETTINGS:
        old, new = before.settings.get(name), call.settings.get(name)
        if old != new:
            yield f"setting {name}", f"{_short(old)} became {_short(new)}", None, None
    if before.system != call.system:
        at = _first_difference(before.system, call.system)
        how = f"{_piece(before.system, at)} became {_piece(call.system, at)}"
        yield f"system prompt at character {at + 1:,}", how, None, None
    at = _equal(before.messages, call.messages)
    if at < min(len(before.messages), len(call.messages)):
        place = call.first + at
        yield f"message {place + 1:,}", _message_differs(before, call, at), place, before.first + at


def _tools_differ(before: Sequence[tuple[str, str]], after: Sequence[tuple[str, str]]) -> str:
    old, new = [name for name, _ in before], [name for name, _ in after]
    gone, come = [name for name in old if name not in new], [name for name in new if name not in old]
    if gone or come:
        return ", ".join([*(f"{name} is gone" for name in gone[:5]), *(f"{name} is new" for name in come[:5])])
    if sorted(before) == sorted(after):
        return "the same ones in another order"
    definitions = dict(before)
    for name, text in after:
        known = definitions.get(name, "")
        if known != text:
            if read(Raw(known.encode())) == read(Raw(text.encode())):
                return f"{name} has its members in another order"
            at = _first_difference(known, text)
            return f"{name} at character {at + 1:,}: {_piece(known, at)} became {_piece(text, at)}"
    return f"{len(before)} became {len(after)}"


def _message_differs(before: Prompt, call: Prompt, at: int) -> str:
    old, new = before.messages[at:], call.messages[at:]
    places = {message.digest: place for place, message in reversed(list(enumerate(old)))}
    if (dropped := places.get(new[0].digest)) is not None:
        return f"{dropped} {'message' if dropped == 1 else 'messages'} before it {_are(dropped)} not sent again"
    places = {message.digest: place for place, message in reversed(list(enumerate(new)))}
    if (put_in := places.get(old[0].digest)) is not None:
        return f"{put_in} {'message' if put_in == 1 else 'messages'} put in before what stood there"
    if old[0].role != new[0].role:
        return f"{old[0].role} became {new[0].role}"
    at = _first_difference(old[0].line, new[0].line)
    if at == len(old[0].line) == len(new[0].line):
        return f"the {new[0].role} message reads otherwise"
    return f"the {new[0].role} message reads otherwise: {_piece(old[0].line, at)} became {_piece(new[0].line, at)}"


def _are(number: int) -> str:
    return "is" if number == 1 else "are"


def _first_difference(one: str, other: str) -> int:
    at = 0
    least = min(len(one), len(other))
    step = 1 << max(least.bit_length() - 1, 0)
    while step:  # the longest equal beginning, by halves: a system prompt may be long
        if at + step <= least and one[at : at + step] == other[at : at + step]:
            at += step
        step >>= 1
    return at


def _piece(text: str, at: int) -> str:
    if at >= len(text):
        return "nothing"
    piece = " ".join(text[max(at - _AROUND // 2, 0) : at + _AROUND].split())
    return f"“{'…' if at > _AROUND // 2 else ''}{piece}{'…' if at + _AROUND < len(text) else ''}”"


def _short(value: Any) -> str:
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else _encoded(value).decode()
    return first_line(text, 60) + ("…" if len(text) > 60 else "")


def _prices(calls: Sequence[Prompt]) -> tuple[float, float] | None:
    """Return what a token of fresh and of cached input cost in these calls of one model, where they say so."""
    fresh = cached = None
    for call in calls:
        if call.costs is None or call.input_tokens is None or "input" not in call.costs or call.written:
            continue
        read_tokens, amount = call.cached or 0, call.costs["input"]
        rest = call.input_tokens - read_tokens
        apart = next((call.costs[name] for name in _CACHED_PARTS if name in call.costs), None)
        if apart is not None and read_tokens:
            cached = apart / read_tokens
        if rest > 0 and (apart is not None or not read_tokens):
            fresh = amount / rest
    for call in calls if cached is None and fresh is not None else ():
        if call.costs is not None and call.input_tokens is not None and call.cached and "input" in call.costs:
            cached = (call.costs["input"] - (call.input_tokens - call.cached) * (fresh or 0.0)) / call.cached
    return (fresh, cached) if fresh is not None and cached is not None and 0 <= cached <= fresh else None
