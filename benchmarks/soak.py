"""Whether the decision plane stays as it is under a steady load: memory, errors, availability, audit.

Run from the repository root: `python -m benchmarks.soak [--minutes N] [--per-s RATE] [--faults]`, 3 minutes at 200
requests a second unless told otherwise; 30 minutes tell more about memory. With `--faults` there are two replicas, one
of which is killed after a third of the time, and a rolling update comes after two thirds; clients then ask once more
where a connection breaks or the ingress has nobody to ask, and how often they had to is told. The load comes in slices
of a minute from processes of their own, with about a second between them. Memory is the resident set of every process
that was started, but the managed caches and the load. The journal is left out of the slope: it is append-only and grows
with what is decided.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.decision_latency import MARK, Api, api_up, machine, name_of, put_load, quantile, unaudited, until_judged
from benchmarks.http_load import Outcome

SAMPLE_EVERY_S = 5.0
WARM_UP_SHARE = 0.34
"""Of the run, in which buffers and caches fill; the slope is that of the rest."""
JOURNAL = "blackboard and journal"
_MIB = 1 << 20


def resident_bytes(mark: str) -> dict[str, int]:
    """Return the resident set of every process that carries the mark, by what it is for."""
    found: dict[str, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if f"{MARK}={mark}".encode() not in (entry / "environ").read_bytes():
                continue
            name = name_of((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            pages = int((entry / "statm").read_text().split()[1])
        except OSError:
            continue
        if name:
            found[name] = found.get(name, 0) + pages * os.sysconf("SC_PAGE_SIZE")
    return found


def slope_per_hour(samples: Sequence[tuple[float, float]]) -> float:
    """Return the least-squares slope of (seconds, value) in value per hour; not a number with fewer than three."""
    if len(samples) < 3:
        return float("nan")
    at_s, values = np.array(samples).T
    return float(np.polyfit(at_s, values, 1)[0] * 3600)


async def _sample(mark: str, samples: list[tuple[float, Mapping[str, int]]]) -> None:
    while True:
        samples.append((time.monotonic(), resident_bytes(mark)))
        await asyncio.sleep(SAMPLE_EVERY_S)


async def _load(api: Api, minutes: float, per_s: float, retries: int) -> list[Outcome]:
    slices: list[Outcome] = []
    left_s = minutes * 60
    while left_s > 0:
        one = await put_load(api.url, api.token, min(60.0, left_s), per_s=per_s, retries=retries)
        left_s -= 60.0
        slices.append(one)
        print(
            f"minute {len(slices)}: {dict(sorted(one.statuses.items()))} P50 {quantile(one.latencies_ms, 0.5):.2f} ms, "
            f"P99 {quantile(one.latencies_ms, 0.99):.2f} ms",
            flush=True,
        )
    return slices


def kill_one_replica(mark: str) -> int:
    """End one replica of the API without warning; returns its process id. Raises RuntimeError where there is none."""
    for entry in sorted(Path("/proc").iterdir()):
        try:
            ours = entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes()
            if ours and (entry / "cmdline").read_bytes().startswith(b"ray::ServeReplica:cachewarden"):
                os.kill(int(entry.name), signal.SIGKILL)
                return int(entry.name)
        except (OSError, ValueError):
            continue
    raise RuntimeError("no replica of the API is running")


async def _faults(api: Api, mark: str, minutes: float) -> None:
    await asyncio.sleep(minutes * 60 / 3)
    print(f"replica {kill_one_replica(mark)} was killed", flush=True)
    await asyncio.sleep(minutes * 60 / 3)
    begun_s = time.monotonic()
    await asyncio.to_thread(api.deploy, "next")
    print(f"a rolling update took {time.monotonic() - begun_s:.0f} s", flush=True)


def _told_memory(samples: Sequence[tuple[float, Mapping[str, int]]]) -> None:
    begun_s, span_s = samples[0][0], samples[-1][0] - samples[0][0]
    steady = [(at_s, of) for at_s, of in samples if at_s - begun_s >= WARM_UP_SHARE * span_s]
    print(f"resident memory, MiB at first, at last, slope per hour over the last {steady[-1][0] - steady[0][0]:.0f} s:")
    for name in sorted({name for _, of in samples for name in of}):
        slope = slope_per_hour([(at_s, of[name] / _MIB) for at_s, of in steady if name in of])
        first, last = samples[0][1].get(name, 0) / _MIB, samples[-1][1].get(name, 0) / _MIB
        print(f"  {name:<40} {first:8.1f} {last:8.1f} {slope:+10.1f}")
    total = [(at_s, sum(v for name, v in of.items() if name != JOURNAL) / _MIB) for at_s, of in steady]
    print(f"  {'all but the journal':<40} {'':8} {total[-1][1]:8.1f} {slope_per_hour(total):+10.1f}")


async def soak(minutes: float, per_s: float, replicas: int, *, faults: bool) -> bool:
    """Put the load on and print what came of it; return whether every request was answered with 200 and audited."""
    print(machine(), flush=True)
    mark = os.environ[MARK] = secrets.token_hex(8)
    samples: list[tuple[float, Mapping[str, int]]] = []
    async with api_up(replicas) as api:
        await until_judged(api)
        beside = [asyncio.create_task(_sample(mark, samples))]
        if faults:
            beside.append(asyncio.create_task(_faults(api, mark, minutes)))
        try:
            slices = await _load(api, minutes, per_s, retries=2 if faults else 0)
            if faults:
                await beside[1]
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
        missing, _ = await unaudited(api, [i for one in slices for i in one.decision_ids])
    statuses = sum((Counter(one.statuses) for one in slices), Counter[str]())
    again = statuses.pop("asked again", 0)
    asked = sum(statuses.values())
    print(f"availability {statuses['200'] / asked:.6f} of {asked} requests; answers without a record: {missing}")
    refusals = sum((Counter(one.refusals) for one in slices), Counter[str]())
    for words, number in refusals.most_common(8):
        print(f"{number} times: {words}")
    if faults:
        print(f"{again} requests were sent again, since their connection broke or nobody was there to answer")
    _told_memory(samples)
    return statuses["200"] == asked and missing == 0


def main() -> int:
    parser = argparse.ArgumentParser(description="a steady load for a while: memory, errors, availability")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--per-s", type=float, default=200.0)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--faults", action="store_true", help="kill a replica and roll out a release meanwhile")
    arguments = parser.parse_args()
    if arguments.minutes <= 0 or arguments.per_s <= 0:
        parser.error("`--minutes` and `--per-s` have to be more than 0")
    return (
        0
        if asyncio.run(
            soak(
                arguments.minutes,
                arguments.per_s,
                max(arguments.replicas, 1 + arguments.faults),
                faults=arguments.faults,
            )
        )
        else 1
    )


if __name__ == "__main__":
    sys.exit(main())
