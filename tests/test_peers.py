"""Arize Phoenix and MLflow read our spans as they are meant: kinds, messages, tokens, session, nesting.

They are too large for every run. Where one is running, name it: `PEER_PHOENIX=http://127.0.0.1:6006`, and
`PEER_MLFLOW=http://127.0.0.1:5000` with `PEER_MLFLOW_EXPERIMENT=1`, an experiment's id.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import stepwell as sw

PHOENIX = os.environ.get("PEER_PHOENIX", "")
MLFLOW = os.environ.get("PEER_MLFLOW", "")
EXPERIMENT = os.environ.get("PEER_MLFLOW_EXPERIMENT", "1")
MESSAGES = [{"role": "user" if n % 2 else "assistant", "content": f"message {n}"} for n in range(200)]


def record(url: str, home: Path) -> str:
    """Record a run with a step of each kind, and return its trace's id."""
    sw.configure(export=url, home=home, service="teahouse")
    with sw.thread("t-42", user="ada"), sw.run("agent") as run:
        with sw.retrieval("search", input={"query": "tea"}) as found:
            found.output = [{"id": 1, "score": 0.5, "text": "green"}]
        with pytest.raises(ValueError, match="no tea"), sw.tool("kettle", input={"cups": 2}):
            raise ValueError("no tea")
        with sw.llm("answer", model="gpt-4o", provider="openai", messages=MESSAGES) as call:
            call.output = {"role": "assistant", "content": "Yes"}
            call.usage(input_tokens=30, output_tokens=5)
    assert sw.shutdown(60)
    return run.trace_id


def eventually(read: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 60
    while not (found := read()):
        assert time.monotonic() < deadline, "nothing has come"
        time.sleep(0.2)
    return found


@pytest.mark.skipif(not PHOENIX, reason="PEER_PHOENIX names no Phoenix")
def test_phoenix_reads_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = f"stepwell-{time.time_ns()}"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"openinference.project.name={project}")
    from stepwell.exporters import _otlp_spans

    _otlp_spans.resource_of.cache_clear()
    trace_id = record(f"otlp+{PHOENIX}", tmp_path)
    _otlp_spans.resource_of.cache_clear()
    with httpx.Client(base_url=PHOENIX, trust_env=False, timeout=30) as client:

        def spans() -> Any:
            answer = client.get(f"/v1/projects/{project}/spans", params={"limit": 100})
            found = answer.json()["data"] if answer.status_code == 200 else []
            return found if len(found) == 4 else None

        named = {span["name"]: span for span in eventually(spans)}
        sessions = client.get(f"/v1/projects/{project}/sessions").json()["data"]
    kinds = {name: (span["span_kind"], span["status_code"]) for name, span in named.items()}
    assert kinds == {
        "agent": ("CHAIN", "OK"),
        "search": ("RETRIEVER", "OK"),
        "kettle": ("TOOL", "ERROR"),
        "answer": ("LLM", "OK"),
    }
    assert {span["context"]["trace_id"] for span in named.values()} == {trace_id}
    root = named["agent"]["context"]["span_id"]
    assert {name: span["parent_id"] for name, span in named.items()} == {
        "agent": None,
        "search": root,
        "kettle": root,
        "answer": root,
    }
    said = named["answer"]["attributes"]
    assert [said[f"llm.input_messages.{n}.message.content"] for n in range(200)] == [f"message {n}" for n in range(200)]
    assert (said["llm.token_count.prompt"], said["llm.token_count.completion"]) == (30, 5)
    assert (said["session.id"], said["user.id"], said["llm.model_name"]) == ("t-42", "ada", "gpt-4o")
    (session,) = sessions
    assert (session["session_id"], session["token_count_total"]) == ("t-42", 35)


@pytest.mark.skipif(not MLFLOW, reason="PEER_MLFLOW names no MLflow")
def test_mlflow_reads_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"x-mlflow-experiment-id={EXPERIMENT}")
    trace_id = record(f"otlp+{MLFLOW}", tmp_path)
    where = {"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": EXPERIMENT}}
    with httpx.Client(base_url=MLFLOW, trust_env=False, timeout=30) as client:

        def trace() -> Any:
            body = {"locations": [where], "max_results": 100}
            found = client.post("/api/3.0/mlflow/traces/search", json=body).json().get("traces", [])
            return next((each for each in found if each["trace_id"] == f"tr-{trace_id}"), None)

        told = eventually(trace)["trace_metadata"]
    assert (told["mlflow.trace.session"], told["mlflow.trace.user"]) == ("t-42", "ada")
    assert json.loads(told["mlflow.trace.tokenUsage"]) == {"input_tokens": 30, "output_tokens": 5, "total_tokens": 35}
