"""Whether decisions are as fast as promised, on this machine, now; the exit code says it.

    python tests/performance/validate_latency_targets.py --target-p99 2.0

The figure that counts is what a caller waits for: decision and durable audit record. It is a measurement of a machine
as much as of the code, so it is a command and no test. Exit code 0: kept, 1: missed, 2: could not be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python looks for modules beside the script and not at the root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console

from cachewarden.errors import CachewardenError
from cachewarden.messages import AGENT_ID
from tests.performance.decision_path import measure, told

__all__ = ["main"]


def main() -> int:
    parser = argparse.ArgumentParser(description="measure the decision path in process and compare it with targets")
    parser.add_argument("--service", choices=[AGENT_ID], default=AGENT_ID)
    parser.add_argument("--target-p99", type=float, default=2.0, help="milliseconds that 99 % of the calls may take")
    parser.add_argument("--target-rps", type=float, default=200.0, help="calls per second, one after the other")
    parser.add_argument("--calls", type=int, default=2_000)
    arguments = parser.parse_args()
    if arguments.calls < 100 or arguments.target_p99 <= 0 or arguments.target_rps <= 0:
        parser.error("a P99 needs at least 100 calls, and targets are above 0")
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=110)
    try:
        measured = asyncio.run(measure(arguments.calls))
    except (CachewardenError, TimeoutError) as error:
        console.print(f"nothing could be measured: {error or 'the servers or their load did not start in time'}")
        return 2
    told(measured, console)
    p99_ms, per_s = measured.call.quantile(0.99), measured.call.per_s
    kept = (p99_ms <= arguments.target_p99, per_s >= arguments.target_rps)
    console.print(f"P99 {p99_ms:.2f} ms, target {arguments.target_p99:g} ms: {'kept' if kept[0] else 'MISSED'}")
    console.print(f"{per_s:.0f} calls/s, target {arguments.target_rps:g} calls/s: {'kept' if kept[1] else 'MISSED'}")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
