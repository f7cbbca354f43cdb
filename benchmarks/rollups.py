"""What a dashboard costs: counting steps off the ingest path, and sums over thirty days of them.

    python benchmarks/rollups.py [--steps 1000000] [--smoke]

Rows are made by SQL, so that a million of them takes seconds: 50 names, 8 models, 3 environments and 2,000 users, even
over thirty days. What a query costs grows with the rows of `rollups` in its range, not with the steps; the number of
rows is printed, and ten times the steps of the same kinds have the same rows with larger numbers in them (but for
rare kinds, which are then seen in more hours).
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from stepwell.store import RollupQuery, StepFilter, open_store

DAY_NS = 86_400_000_000_000
START_NS = 20_000 * DAY_NS
INSERT = """
    INSERT INTO steps (
        number, id, type, name, start_ns, end_ns, status, model, environment, user,
        input_tokens, output_tokens, total_tokens, cost
    )
    WITH RECURSIVE counter (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM counter WHERE n < ?1)
    SELECT n, n, CASE WHEN n % 5 THEN 'tool' ELSE 'llm' END, 'name-' || (n % 50), ?2 + (n * 30.0 / ?1) * ?3,
        ?2 + (n * 30.0 / ?1) * ?3 + 1000000 + abs(random()) % 5000000000 / (1 + abs(random()) % 100),
        CASE WHEN n % 50 THEN 'success' ELSE 'failed' END,
        CASE WHEN n % 5 THEN NULL ELSE 'model-' || (n / 5 % 8) END,
        CASE n % 20 WHEN 0 THEN 'test' WHEN 1 THEN 'staging' ELSE 'prod' END, 'user-' || (n / 8 % 2000),
        100, 20, 120, 0.001
    FROM counter
"""


def timed(call: Callable[[], object], rounds: int) -> float:
    """Return the median of the milliseconds of a call."""
    times: list[float] = []
    for _ in range(rounds):
        before = time.perf_counter()
        call()
        times.append((time.perf_counter() - before) * 1e3)
    return sorted(times)[rounds // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--smoke", action="store_true", help="2,000 steps, only to see that it runs")
    arguments = parser.parse_args()
    steps, rounds = (2_000, 2) if arguments.smoke else (arguments.steps, 9)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "steps.db"
        store = open_store(f"sqlite:{path}")
        db = sqlite3.connect(path)
        db.execute(INSERT, (steps, START_NS, DAY_NS))
        db.commit()
        size = path.stat().st_size
        print(f"{'not counted yet, 30 days':<34} {timed(store.rollups, 1):>10.2f} ms, all {steps:,} steps read")
        before = time.perf_counter()
        store.catch_up(3600)
        print(f"{'catch_up':<34} {steps / (time.perf_counter() - before):>10,.0f} steps/s")
        rows = dict(db.execute("SELECT span_s, count(*) FROM rollups GROUP BY span_s").fetchall())
        users = dict(db.execute("SELECT span_s, count(*) FROM user_rollups GROUP BY span_s").fetchall())
        print(f"rows of rollups: {rows}, of user_rollups: {users}; database {size >> 20} MB before, ", end="")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        print(f"{path.stat().st_size >> 20} MB after")
        week, odd = START_NS + 7 * DAY_NS, START_NS + 12_345_678_901_234
        queries = {
            "30 days, by day": RollupQuery(),
            "30 days, by day, no percentiles": RollupQuery(percentiles=False),
            "30 days, by day and model": RollupQuery(by=["model"]),
            "30 days, by name": RollupQuery(by=["name"], every=None),
            "30 days, by day and name": RollupQuery(by=["name"]),
            "30 days, by type, in production": RollupQuery(by=["type"], every=None, environment="prod"),
            "30 days, by user": RollupQuery(by=["user"], every=None),
            "a day, by hour": RollupQuery(since_ns=week, until_ns=week + DAY_NS, every="hour"),
            "30 days from an odd nanosecond": RollupQuery(since_ns=odd, by=["model"]),
            "one user and model (reads steps)": RollupQuery(user="user-7", by=["model"], every=None),
        }
        for name, query in queries.items():
            print(f"{name:<34} {timed(lambda query=query: store.rollups(query), rounds):>10.2f} ms")  # type: ignore[misc]
        lists = {"all steps": StepFilter(), "runs": StepFilter(root_only=True), "a week": StepFilter(since_ns=week)}
        for name, kept in lists.items():
            took = timed(lambda kept=kept: store.histogram(kept), rounds)  # type: ignore[misc]
            print(f"{f'strip over a list, {name}':<34} {took:>10.2f} ms")
        print(f"{'50 latest users':<34} {timed(store.users, rounds):>10.2f} ms")
        print(f"{'stats':<34} {timed(store.stats, rounds):>10.2f} ms")
        db.close()
        store.close()


if __name__ == "__main__":
    main()
