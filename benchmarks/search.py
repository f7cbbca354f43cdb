"""What finding steps by their words costs: indexing off the ingest path, the index's size, and queries.

    python benchmarks/search.py [--steps 100000] [--store FILE] [--smoke]

Steps are those of `benchmarks/store.py` with text of a made-up language: 50,000 words, the n-th of them as frequent as
1/n. `--store` names a store to take the steps of instead, such as one of conversations with an airline that
`benchmarks/replay_airline.py` wrote.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import tempfile
import time
from itertools import accumulate
from pathlib import Path

from msgspec import json

from stepwell.store import StepFilter, Store, open_store
from stepwell.store._texts import match_of

START_NS = 1_790_000_000_000_000_000
WORDS = [f"{a}{b}{c}" for a in "klmnprstvb" for b in ("a", "ei", "o", "ur", "in") for c in map(str, range(1000))]


def add(store: Store, count: int) -> None:
    """Add steps of sixty words each, every hundredth with a word that is rare."""
    rng = random.Random(5)
    weights = list(accumulate(1 / (n + 1) for n in range(len(WORDS))))
    for first in range(0, count, 2000):
        frames: list[bytes] = []
        for n in range(first, min(count, first + 2000)):
            words = rng.choices(WORDS, cum_weights=weights, k=60)
            if n % 1000 == 0:
                words.append("rareword")
            fields = {"name": "answer", "start_ns": START_NS + n, "end_ns": START_NS + n + 5, "status": "success"}
            output = {"answer": " ".join(words[20:])}
            frames.append(
                json.encode(
                    {
                        "kind": "step",
                        "id": f"s-{n}",
                        "type": "tool",
                        **fields,
                        "input": " ".join(words[:20]),
                        "output": output,
                    }
                )
            )
        store.add(frames)


def measure(path: Path, rounds: int, texts: list[str]) -> None:
    store = open_store(f"sqlite:{path}")
    db = sqlite3.connect(path)
    (steps,) = db.execute("SELECT count(*) FROM steps").fetchone()
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = path.stat().st_size
    before = time.perf_counter()
    store.steps(StepFilter(text=texts[0]))
    print(f"{'query before anything is indexed':<34} {(time.perf_counter() - before) * 1e3:>10.2f} ms")
    before = time.perf_counter()
    store.catch_up(3600)
    print(f"{'catch_up (sums and words)':<34} {steps / (time.perf_counter() - before):>10,.0f} steps/s of {steps:,}")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    (indexed,) = db.execute("SELECT sum(length(block)) FROM step_texts_data").fetchone()
    print(f"{'store before, index':<34} {size / 1e6:>10.1f} MB, {indexed / 1e6:.1f} MB ({100 * indexed / size:.0f} %)")
    for text in texts:
        for kind, read in (("steps", store.steps), ("runs", store.runs)):
            times: list[float] = []
            for _ in range(rounds):
                before = time.perf_counter()
                page = read(StepFilter(text=text))
                times.append((time.perf_counter() - before) * 1e3)
            (matching,) = db.execute(
                "SELECT count(*) FROM step_texts WHERE step_texts MATCH ?", (match_of(text),)
            ).fetchone()
            shown = f"{kind} {text!r} ({matching:,} match)"
            print(f"{shown:<44} {sorted(times)[rounds // 2]:>10.2f} ms, {len(page.items)} rows")
    db.close()
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--store", type=Path, help="a store that is there, which is copied, instead of steps made here")
    parser.add_argument("--smoke", action="store_true", help="2,000 steps, only to see that it runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.db"
        store = open_store(f"sqlite:{path}")
        if arguments.store is None:
            add(store, 2_000 if arguments.smoke else arguments.steps)
            texts = [
                "rareword",
                WORDS[0],
                f"{WORDS[1]} {WORDS[2]}",
                f'"{WORDS[0]} {WORDS[1]}"',
                f"{WORDS[3000]} -{WORDS[0]}",
            ]
        else:
            source = open_store(f"sqlite:{arguments.store}", read_only=True)
            batch: list[bytes] = []
            for record in source.records():
                batch.append(record)
                if len(batch) == 500:
                    store.add(batch)
                    batch = []
            store.add(batch)
            source.close()
            texts = ["reservation", "refund", "flight passenger", '"cancel my reservation"', "zanzibar"]
        store.close()
        measure(path, 2 if arguments.smoke else 9, texts)


if __name__ == "__main__":
    main()
