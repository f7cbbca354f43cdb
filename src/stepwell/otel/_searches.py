"""What went into and came out of embeddings, searches and rankings, where it is not plainly input and output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from msgspec import UNSET, Raw, json

from stepwell.otel._parts import chat_messages
from stepwell.otel._reading import Attributes, Said, read_json
from stepwell.otel._spans import Span

__all__ = ["embedded", "found"]

Message = dict[str, Any]
_encode: Final = json.Encoder().encode


def embedded(said: Attributes, given: Said) -> Said:
    """Return the texts that were embedded and their vectors."""
    members = said.take_family("embedding.embeddings")
    if given.input is UNSET:
        texts = [fields["embedding.text"] for fields in members if "embedding.text" in fields]
        prompts = said.take_family("gen_ai.prompt")
        messages = chat_messages(read_json(said.take("asked"))) or [
            {"content": each.get("content")} for each in prompts
        ]
        texts = texts or [message.get("content") for message in messages]
        if texts:
            given = given._replace(input=Raw(_encode(texts[0] if len(texts) == 1 else texts)))
    if given.output is UNSET:
        vectors = [fields["embedding.vector"] for fields in members if "embedding.vector" in fields]
        if vectors:
            given = given._replace(output=Raw(_encode(vectors)))
    return given


def found(said: Attributes, span: Span, given: Said) -> Said:
    """Return the query and the documents of a search or a ranking."""
    documents = [
        *(_document(fields) for fields in said.take_family("retrieval.documents")),
        *(_document(fields) for fields in said.take_family("reranker.output_documents")),
        *(_hit(event.attributes) for event in span.events if event.name == "db.query.result"),
    ]
    ranked = [_document(fields) for fields in said.take_family("reranker.input_documents")]
    if ranked:
        query = UNSET if given.input is UNSET else given.input
        given = given._replace(input=Raw(_encode({"query": None if query is UNSET else query, "documents": ranked})))
    if documents:
        if given.output is not UNSET:
            said.rest["output.value"] = given.output
        given = given._replace(output=Raw(_encode(documents)))
    return given


def _document(flat: Mapping[str, Any]) -> Message:
    fields = {name.removeprefix("document."): value for name, value in flat.items()}
    return {name: read_json(value) if name == "metadata" else value for name, value in fields.items()}


def _hit(attributes: Mapping[str, Any]) -> Message:
    fields = {name.removeprefix("db.query.result."): value for name, value in attributes.items()}
    return {name: read_json(value) if name == "metadata" else value for name, value in fields.items()}
