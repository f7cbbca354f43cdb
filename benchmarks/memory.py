"""How much a process grows that records many steps while nobody takes them, and what an append costs meanwhile.

    python benchmarks/memory.py --steps 1000000

Each row runs in a process of its own: resident memory before the first and after the last step, what lies on disk, the
time of a step, the slowest roll to a new segment, and the ledger. The promise: less than 50 MB for a million steps,
whatever the exporter does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_MB = 50.0
ROWS = {
    "dead exporter": "dead",
    "dead exporter, nothing on disk": "dead-memory",
    "hanging exporter": "hanging",
    "exporter that keeps up": "alive",
}


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(mode: str, steps: int) -> dict[str, float | bool | str]:
    import threading

    import stepwell as sw
    from stepwell.exporters import Batch

    class Exporter:
        key = "benchmark:"

        def export(self, batch: Batch) -> None:
            if mode.startswith("dead"):
                raise ConnectionRefusedError("nobody listens")
            if mode == "hanging":
                threading.Event().wait()

    with tempfile.TemporaryDirectory() as folder:
        home = None if mode == "dead-memory" else Path(folder) / "home"
        sw.configure(export=Exporter(), home=home, exit_timeout=0, max_journal_bytes=4 << 30)
        for _ in range(1000):
            with sw.tool("warm up", input={"query": "x" * 100}) as step:
                step.output = "y" * 100
        before = resident_mb()
        slowest, began = 0, time.perf_counter_ns()
        last = began
        for _ in range(steps):
            with sw.tool("search", input={"query": "x" * 100}) as step:
                step.output = "y" * 100
            now = time.perf_counter_ns()
            slowest, last = max(slowest, now - last), now
        microseconds = (last - began) / 1000 / steps
        grown = resident_mb() - before
        ledger = next(iter(sw.stats().exporters.values()))
        dropped = sum(ledger.dropped.values())
        on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*.seg")) / 1e6
        sw.shutdown(0)
    return {
        "grown": grown,
        "on_disk": on_disk,
        "step": microseconds,
        "slowest": slowest / 1e6,
        "balanced": ledger.balanced,
        "ledger": f"{ledger.waiting:,} waiting, {ledger.delivered:,} delivered, {dropped:,} dropped",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--smoke", action="store_true", help="few steps: does it run, does it hold")
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        print(json.dumps(measure(arguments.mode, arguments.steps)))
        return 0
    steps = 20_000 if arguments.smoke else arguments.steps
    print(f"{steps:,} steps\n")
    print(f"{'':32} {'grown':>9} {'on disk':>9} {'a step':>9} {'slowest':>9}")
    failed = False
    for title, mode in ROWS.items():
        command = [sys.executable, __file__, "--mode", mode, "--steps", str(steps)]
        row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"{title:32} {row['grown']:6.1f} MB {row['on_disk']:6.0f} MB {row['step']:6.2f} µs {row['slowest']:6.2f} ms"
            f"  {row['ledger']}"
        )
        failed = failed or row["grown"] > LIMIT_MB or not row["balanced"]
    print(f"\n{'FAILED: ' if failed else ''}the promise is {LIMIT_MB:.0f} MB, and a ledger that balances")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
