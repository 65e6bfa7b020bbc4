"""How much dearer a decision is than the least it needs, one durable record: a ratio that machines have in common.

    python tests/performance/test_performance_regression.py --service cache_performance_optimizer

Both are measured in the same run, since milliseconds of another machine, or of another hour on this one, compare with
nothing. `--write FILE` keeps the ratios, `--against FILE` fails when one has grown by more than `--tolerance`. pytest
runs a short version, which prints and never fails on a noisy clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

if __name__ == "__main__":
    # Started by its path, Python looks for modules beside the script and not at the root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
from rich.console import Console

from cachewarden.errors import CachewardenError
from cachewarden.messages import AGENT_ID
from tests.performance.decision_path import Figures, Measured, measure, told

QUANTILES = {"P50": 0.5, "P99": 0.99}


def ratios(measured: Measured) -> dict[str, float]:
    """Return call over durable record, at each quantile."""
    return {name: measured.call.quantile(share) / measured.journal.quantile(share) for name, share in QUANTILES.items()}


def grown(before: Mapping[str, float], now: Mapping[str, float], tolerance: float) -> list[str]:
    """Return in words each ratio that is more than `tolerance` (0.5 = by half) above what it was."""
    return [
        f"{name}: {now[name]:.2f} times a durable record, it was {before[name]:.2f}"
        for name in sorted(before.keys() & now.keys())
        if now[name] > before[name] * (1.0 + tolerance)
    ]


def kept_ratios(path: Path) -> dict[str, float]:
    """Read ratios that `--write` has kept; raises ValueError for a file that holds none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or not found.keys() & QUANTILES.keys():
        raise ValueError(f"`{path}` holds no ratios, make it with --write")
    return {name: float(found[name]) for name in QUANTILES if name in found}


@pytest.mark.performance
def test_a_ratio_has_grown_only_beyond_the_tolerance():
    assert grown({"P50": 2.0, "P99": 2.0}, {"P50": 2.9, "P99": 3.1}, 0.5) == [
        "P99: 3.10 times a durable record, it was 2.00"
    ]


@pytest.mark.performance
def test_a_quantile_is_one_of_the_measured_values():
    figures = Figures("a", [float(n) for n in range(1, 101)])
    assert [figures.quantile(share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 51.0, 100.0, 100.0]


@pytest.mark.performance
@pytest.mark.integration
async def test_what_a_decision_costs_beside_its_durable_record(capsys):
    measured = await measure(200, traffic=False)
    with capsys.disabled():
        sys.stdout.write("\n")
        told(measured, Console(file=sys.stdout, width=110))
        sys.stdout.write(f"ratios to a durable record: {ratios(measured)}\n")
    # The clock may be noisy, but a call contains its own decision.
    assert measured.decision.quantile(0.5) < measured.call.quantile(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(description="print what a decision costs, as a multiple of a durable record")
    parser.add_argument("--service", choices=[AGENT_ID], default=AGENT_ID)
    parser.add_argument("--calls", type=int, default=2_000)
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the ratios")
    parser.add_argument("--against", type=Path, metavar="FILE", help="fail where a ratio has grown")
    parser.add_argument("--tolerance", type=float, default=0.5, help="growth that is noise, 0.5 = by half")
    arguments = parser.parse_args()
    if arguments.calls < 100 or arguments.tolerance < 0:
        parser.error("a P99 needs at least 100 calls, and a tolerance is not negative")
    logging.basicConfig(level=logging.ERROR)
    console = Console(width=110)
    try:
        before = kept_ratios(arguments.against) if arguments.against is not None else {}
        measured = asyncio.run(measure(arguments.calls))
    except (CachewardenError, OSError, TimeoutError, ValueError) as error:
        console.print(f"nothing could be compared: {error or 'the servers or their load did not start in time'}")
        return 2
    told(measured, console)
    now = ratios(measured)
    for name, ratio in now.items():
        console.print(f"{name}: a decision takes {ratio:.2f} times as long as one durable record")
    if arguments.write is not None:
        arguments.write.write_text(json.dumps(now), encoding="utf-8")
    worse = grown(before, now, arguments.tolerance)
    for line in worse:
        console.print(f"GROWN {line}")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
