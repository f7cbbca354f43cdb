"""The demo: an assistant for Python's standard library that really searches, computes and fails, without a network.

What must stay true: nothing is made up. The corpus is the docstrings of this machine's standard library, ranking is
BM25 and hashed character trigrams, the "model" is a few lines that quote what was found, tokens are counted words, and
the tool that fails does so by itself. Run again, it does the same.
"""

from __future__ import annotations

import ast
import asyncio
import difflib
import importlib
import inspect
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

import stepwell as sw

__all__ = ["THREADS", "play", "record"]

THREADS: Final = ("demo-statistics", "demo-spelling")

_MODULES: Final = (
    *("bisect", "collections", "contextlib", "csv", "datetime", "difflib", "fractions", "functools", "heapq"),
    *("itertools", "json", "math", "operator", "pathlib", "random", "re", "shutil", "statistics", "string", "textwrap"),
)
_READINGS: Final = b"hour,celsius\n0,11.5\n6,9.0\n12,17.5\n18,14.0\n"
_EMBEDDER: Final = "hashed-trigrams-256"
_WRITER: Final = "quoting-writer-1"
_DIMENSIONS: Final = 256


class Document(NamedTuple):
    """One function or class of the standard library, and what its docstring says."""

    name: str
    text: str


class Index:
    """The corpus, ranked by BM25 (k1 = 1.5, b = 0.75)."""

    def __init__(self, documents: Sequence[Document]) -> None:
        self.documents = documents
        self._words = [Counter(words(f"{document.name} {document.text}")) for document in documents]
        self._lengths = [counts.total() for counts in self._words]
        self._mean = sum(self._lengths) / max(1, len(documents)) or 1.0
        self._containing = Counter(word for counts in self._words for word in counts)

    def search(self, query: str, limit: int) -> list[tuple[Document, float]]:
        scores = [self._score(at, words(query)) for at in range(len(self.documents))]
        best = sorted(range(len(scores)), key=lambda at: (-scores[at], self.documents[at].name))[:limit]
        return [(self.documents[at], scores[at]) for at in best if scores[at] > 0]

    def _score(self, at: int, query: Sequence[str]) -> float:
        total, counts = 0.0, self._words[at]
        weight = 1.5 * (0.25 + 0.75 * self._lengths[at] / self._mean)
        for word in query:
            if (count := counts[word]) > 0:
                n = self._containing[word]
                rarity = math.log(1 + (len(self.documents) - n + 0.5) / (n + 0.5))
                total += rarity * count * 2.5 / (count + weight)
        return total


def read_corpus() -> Index:
    """Read the docstrings of some modules (none where Python runs with -OO: then nothing is found, and said so)."""
    documents: list[Document] = []
    for module_name in _MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            is_own = getattr(value, "__module__", None) in {module_name, f"_{module_name}"}
            text = value.__doc__ if callable(value) and is_own and not name.startswith("_") else None
            if isinstance(text, str):
                documents.append(Document(f"{module_name}.{name}", inspect.cleandoc(text)))
    return Index(documents)


def words(text: str) -> list[str]:
    """Split a text into lower-case words, plural s removed."""
    return [word.removesuffix("s") for word in re.findall(r"[a-z]+|\d+", text.lower())]


def vector(text: str) -> list[float]:
    """Embed a text: its trigrams counted by hash, the length made 1."""
    sums = [0.0] * _DIMENSIONS
    padded = f"  {text.lower()} "
    for at in range(len(padded) - 2):
        sums[crc32(padded[at : at + 3].encode()) % _DIMENSIONS] += 1.0
    length = math.sqrt(sum(value * value for value in sums))
    return [value / length for value in sums]


# -- the agent's parts, each recorded as what it is


@sw.embedding("embed", model=_EMBEDDER, provider="local", capture_output=False)
async def embed(texts: list[str]) -> list[list[float]]:
    step = sw.current_step()
    if step is not None:
        count = sum(len(words(text)) for text in texts)
        step.usage(input_tokens=count, total_tokens=count)
        step.output = {"vectors": len(texts), "dimensions": _DIMENSIONS}
    return [vector(text) for text in texts]


@sw.retrieval("search-docs", tags=["bm25"], capture_input=["query", "limit"])
async def search_docs(index: Index, query: str, limit: int = 8) -> list[dict[str, Any]]:
    found = index.search(query, limit)
    return [{"id": document.name, "score": round(score, 3), "text": document.text[:800]} for document, score in found]


@sw.rerank("rerank", model=_EMBEDDER, provider="local")
async def rerank(query: str, documents: list[dict[str, Any]], keep: int = 3) -> list[dict[str, Any]]:
    """Order by likeness of the embeddings, and by the search's own score where that says little."""
    asked, *given = await embed([query, *(f"{document['id']} {document['text']}" for document in documents)])
    likeness = [sum(map(operator.mul, asked, other)) for other in given]
    top = max((document["score"] for document in documents), default=1.0)
    ranked = [
        {**document, "score": round(0.5 * like + 0.5 * document["score"] / top, 3)}
        for document, like in zip(documents, likeness, strict=True)
    ]
    return sorted(ranked, key=lambda document: -document["score"])[:keep]


def _divide(left: float, right: float) -> float:
    return left / right


_OPERATIONS: Final[dict[type[ast.AST], Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divide,
    ast.USub: operator.neg,
}


@sw.tool("calculator")
async def calculate(expression: str) -> float:
    """Compute with numbers, `+ - * /` and brackets. Raises `ValueError` for anything else."""
    return float(_compute(ast.parse(expression, mode="eval").body))


def _compute(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_compute(node.left), _compute(node.right))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_compute(node.operand))
    raise ValueError(f"the calculator can't do {ast.unparse(node)!r}")


@sw.tool("look-up-signature", tags=["introspection"])
async def look_up_signature(name: str) -> str:
    """Return how a function is called. Raises `AttributeError` for one that is not there."""
    module, _, attribute = name.rpartition(".")
    function = getattr(importlib.import_module(module), attribute)
    try:
        return f"{name}{inspect.signature(function)}"
    except ValueError:  # written in C, and not told
        return f"{name}(...)"


async def plan(question: str, calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Have the model choose its tools: the names and numbers in the question decide."""
    messages = [
        {"role": "system", "content": "Choose the tools that the question needs."},
        {"role": "user", "content": question},
    ]
    async with sw.llm("plan", model=_WRITER, provider="local", messages=messages, temperature=0) as step:
        shaped = [
            {"id": f"call_{at}", "type": "function", "function": {"name": call["tool"], "arguments": call["input"]}}
            for at, call in enumerate(calls)
        ]
        step.generation = {"message_completion": {"role": "assistant", "content": None, "tool_calls": shaped}}
        step.output = calls
        step.usage(input_tokens=_tokens(messages), output_tokens=len(words(str(calls))))
    return calls


async def write_answer(question: str, documents: Sequence[dict[str, Any]], facts: Sequence[str]) -> str:
    """Have the model answer: it quotes the first sentence of what fits best, and states what the tools found."""
    messages = [
        {"role": "system", "content": "Answer from the documents and tool results only."},
        *({"role": "system", "content": f"{document['id']}: {document['text']}"} for document in documents),
        *({"role": "tool", "content": fact} for fact in facts),
        {"role": "user", "content": question},
    ]
    async with sw.llm("answer", model=_WRITER, provider="local", messages=messages, temperature=0) as step:
        text = "".join(step.stream(_quote(documents, facts)))
        step.usage(input_tokens=_tokens(messages), output_tokens=len(words(text)))
        step.generation = {"stop_reason": "stop"}
        known = set(words(" ".join(message["content"] for message in messages)))
        said = words(text)
        step.score("grounded", round(sum(word in known for word in said) / max(1, len(said)), 3), type="CODE")
    return text


def _quote(documents: Sequence[dict[str, Any]], facts: Sequence[str]) -> Iterator[str]:
    if not documents:
        yield "The documentation at hand says nothing about that. "
    for document in documents[:1]:
        sentence = re.split(r"(?<=[.:])\s|\n\n", document["text"], maxsplit=1)[0]
        for word in f"{document['id']}: {' '.join(sentence.split())} ".split(" "):
            yield f"{word} " if word else ""
    for fact in facts:
        yield f"{fact}. "


def _tokens(messages: Sequence[dict[str, Any]]) -> int:
    return sum(len(words(message["content"])) for message in messages)


# -- the agents


@sw.run("answer-question", tags=["demo"], capture_input=["question", "expression"])
async def answer_question(index: Index, question: str, expression: str | None = None) -> str:
    """Search and compute at the same time, then answer."""
    query = question.partition("?")[0]
    calls = [{"tool": "search-docs", "input": query}]
    if expression is not None:
        calls.append({"tool": "calculator", "input": expression})
    await plan(question, calls)
    found, computed = await asyncio.gather(
        search_docs(index, query), calculate(expression) if expression is not None else _nothing()
    )
    best = await rerank(query, found) if found else []
    facts = [] if computed is None else [f"calculator: {expression} = {computed:g}"]
    return await write_answer(question, best, facts)


async def _nothing() -> None:
    return None


@sw.run("explain-function", tags=["demo", "recovers"], capture_input=["name"])
async def explain_function(index: Index, name: str) -> str:
    """Explain a function by name; a name that is misspelt fails in the tool, and the nearest one is taken."""
    await plan(f"How is {name} called?", [{"tool": "look-up-signature", "input": name}])
    facts: list[str] = []
    try:
        signature = await look_up_signature(name)
    except AttributeError:
        known = [document.name for document in index.documents]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0) or ["statistics.median"]
        facts.append(f"there is no {name}, the nearest is {near[0]}")
        name, signature = near[0], await look_up_signature(near[0])
    facts.append(f"it is called as {signature}")
    found = await search_docs(index, name.replace(".", " "), limit=4)
    return await write_answer(f"How is {name} called?", [doc for doc in found if doc["id"] == name], facts)


async def _about_statistics(index: Index) -> None:
    with sw.thread(THREADS[0], name="Readings of a day", user="ada", tags=["demo"]):
        sw.system_message("You help with Python's standard library.")
        question = (
            "Which function returns the sample arithmetic mean of data? And what is it for the attached readings?"
        )
        sw.user_message(question, attachments=[sw.attach(_READINGS, name="readings.csv", mime="text/csv")])
        values = [line.split(",")[1] for line in _READINGS.decode().split()[1:]]
        answer = await answer_question(index, question, f"({' + '.join(values)}) / {len(values)}")
        said = sw.assistant_message(answer)
        sw.feedback(said.id, "positive", comment="right, and it says where from")
        question = "How do I merge several sorted inputs into one sorted output?"
        sw.user_message(question)
        sw.assistant_message(await answer_question(index, question))


async def _about_spelling(index: Index) -> None:
    with sw.thread(THREADS[1], name="A name misspelt", user="grace", tags=["demo"]):
        sw.user_message("How is statistics.medain called?")
        said = sw.assistant_message(await explain_function(index, "statistics.medain"))
        sw.score(said.id, "helpful", 4, comment="found what was meant", type="HUMAN")


async def play() -> None:
    """Hold both conversations, at the same time."""
    index = read_corpus()
    await asyncio.gather(_about_statistics(index), _about_spelling(index))


def record(home: Path, export: str = "sqlite:", *, timeout_s: float = 10.0) -> bool:
    """Run the demo and record it to a home folder; say whether everything arrived in its store, or the one named."""
    sw.configure(
        export=export,
        home=home,
        service="stepwell-demo",
        environment="demo",
        sample=1.0,
        enabled=True,
        capture_input=True,
        capture_output=True,
    )
    asyncio.run(play())
    return sw.shutdown(timeout_s)
