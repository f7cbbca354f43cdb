"""An agent that answers from documents: embedding, retrieval, rerank and llm steps below one run.

The documents are docstrings of Python's standard library, scored by TF-IDF. `complete` stands in for a provider's
client: it needs no network and answers in the shape of OpenAI's chat completions, which `step.record` understands.

Run it with `python examples/rag_agent.py ["your question"]`, then look at the steps with `stepwell ls`.
"""

import heapq
import inspect
import math
import re
import shutil
import statistics
import sys
import textwrap
from collections import Counter
from typing import Any

import stepwell as sw

MODULES = [heapq, inspect, math, re, shutil, statistics, textwrap]
MODEL = "extractive-1"


def words(text: str) -> list[str]:
    return [word.removesuffix("s") for word in re.findall(r"[a-z]{3,}", text.lower())]


DOCUMENTS = {
    f"{module.__name__}.{name}": inspect.getdoc(value) or ""
    for module in MODULES
    for name, value in vars(module).items()
    if callable(value) and not name.startswith("_")
}
COUNTS = {name: Counter(words(text)) for name, text in DOCUMENTS.items()}
RARITY = {
    word: math.log(len(COUNTS) / count) for word, count in Counter(w for doc in COUNTS.values() for w in doc).items()
}


def embed(text: str) -> dict[str, float]:
    with sw.embedding("embed", model="tf-idf", input=text) as step:
        tokens = words(text)
        step.usage(input_tokens=len(tokens))
        step.output = vector = {word: count * RARITY.get(word, 0.0) for word, count in Counter(tokens).items()}
    return vector


@sw.retrieval
def retrieve(query: dict[str, float], limit: int = 8) -> list[str]:
    def score(name: str) -> float:
        counts = COUNTS[name]
        length = math.sqrt(sum((count * RARITY[word]) ** 2 for word, count in counts.items())) or 1.0
        return sum(weight * counts[word] * RARITY[word] for word, weight in query.items() if word in counts) / length

    return heapq.nlargest(limit, DOCUMENTS, key=score)


@sw.rerank(model="coverage")
def rerank(question: str, names: list[str], limit: int = 3) -> list[tuple[str, float]]:
    """Prefer documents whose name and first line have many of the question's words."""
    asked = {word: RARITY.get(word, 0.0) for word in words(question)}
    heads = {name: set(words(f"{name} {DOCUMENTS[name].partition(chr(10) * 2)[0]}")) for name in names}
    scores = {name: sum(asked[word] for word in asked if word in heads[name]) / sum(asked.values()) for name in names}
    return [(name, round(scores[name], 3)) for name in heapq.nlargest(limit, names, key=scores.__getitem__)]


def complete(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Answer with the first sentence of the first document in the prompt."""
    text = messages[0]["content"].split("\n---\n")[1]
    answer = " ".join(re.split(r"(?<=\.)\s|\n\n", text, maxsplit=1)[0].split())
    prompt_tokens = sum(len(message["content"].split()) for message in messages)
    return {
        "id": "chatcmpl-local",
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": len(answer.split())},
    }


@sw.run
def agent(question: str) -> str:
    ranked = rerank(question, retrieve(embed(question)))
    context = "\n---\n".join(f"{name}: {DOCUMENTS[name]}" for name, _ in ranked)
    messages = [
        {"role": "system", "content": f"Answer from these documents.\n---\n{context}"},
        {"role": "user", "content": question},
    ]
    with sw.llm("answer", model=MODEL, provider="local", messages=messages, temperature=0) as step:
        response = complete(messages)
        step.record(response)
        step.score("grounding", ranked[0][1], comment="how much of the question the best document covers")
    answer: str = response["choices"][0]["message"]["content"]
    return answer


if __name__ == "__main__":
    question = " ".join(sys.argv[1:]) or "How do I recursively copy a directory tree?"
    with sw.thread(name=question):
        sw.user_message(question)
        answer = agent(question)
        sw.assistant_message(answer)
    print(answer)
    print("delivered:", sw.flush())
