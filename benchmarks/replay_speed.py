"""How fast is a what-if? Replays beside libCacheSim's LRU, fits, curves and a fleet-wide split, each timed in one run.

Run from the repository root: `python -m benchmarks.replay_speed [--trace FILE] [--requests N] [--keys N]`; without a
trace file the requests are Zipf(1.0). The comparison needs the extra `bench`. All times are processor time of one
core, medians of several runs that take turns; figures hold for the machine they were measured on, and compilation is
not counted.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from time import thread_time

import numpy as np

from cachewarden.cachemodel.arbitration import Curve, allocate
from cachewarden.cachemodel.eviction import (
    EvictionConfig,
    belady,
    exact_lru,
    index,
    replay_indexed,
)
from cachewarden.cachemodel.eviction_state import BYTES_PER_KEY
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cachewarden.knobs import EVICTION_POLICIES

LOOKUPS_PER_S = 1000.0
MIB = 1 << 20
SHARES = (0.01, 0.1, 0.2)
# time, object, size, next access: a row of libCacheSim's oracleGeneral.
ORACLE_ROW = np.dtype([("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])


def timed(work: Callable[[], object]) -> float:
    """Return the processor seconds of the second run; the first one compiles."""
    work()
    start = thread_time()
    work()
    return thread_time() - start


def raced(works: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Return the processor seconds of each of them in every round, after a first one that is not counted.

    They take turns, so that a busy machine is unfair to none of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            start = thread_time()
            work()
            seconds[name].append(thread_time() - start)
    return {name: np.array(found[1:]) for name, found in seconds.items()}


def machine() -> str:
    """Return what this runs on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def zipf(requests: int, keys: int, seed: int) -> AccessTrace:
    """Return Zipf(1.0) requests at a steady rate, all with a TTL of a day so that volatile policies have something to
    evict.
    """
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, keys + 1)
    drawn = rng.choice(keys, requests, p=popularity / popularity.sum()).astype(np.uint64)
    time_ms = np.floor(np.arange(requests) * 1000.0 / LOOKUPS_PER_S)
    return AccessTrace.of(time_ms, mix(drawn), None, 1, 86_400_000)


def lru_beside_libcachesim(trace: AccessTrace, rounds: int) -> None:
    """Print the speed of our sampled LRU and of libCacheSim's exact LRU on the same requests, all of size 1."""
    try:
        import libcachesim
    except ImportError:
        print("libcachesim is not installed, install the extra `bench` to compare with its LRU")
        return
    logging.getLogger("libcachesim").setLevel(logging.ERROR)
    plain = AccessTrace.of(trace.time_ms, trace.key, None, 1)
    indexed = index(plain)
    rows = np.zeros(len(plain), ORACLE_ROW)
    rows["time"], rows["id"], rows["size"], rows["next"] = plain.time_ms // 1000, indexed.key, 1, -2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.oracleGeneral.bin"
        rows.tofile(path)
        reader = libcachesim.TraceReader(str(path), libcachesim.TraceType.ORACLE_GENERAL_TRACE)
        for share in SHARES:
            capacity = max(1, int(share * indexed.distinct_keys))
            hashpower = max(10, capacity.bit_length())

            def theirs(capacity: int = capacity, hashpower: int = hashpower) -> float:
                reader.reset()
                miss_ratio, _ = libcachesim.LRU(capacity, hashpower=hashpower).process_trace(reader)
                return 1.0 - float(miss_ratio)

            def ours(capacity: int = capacity) -> float:
                return replay_indexed(indexed, EvictionConfig(capacity)).hit_ratio

            found = raced({"ours": ours, "theirs": theirs}, rounds)
            speeds = {name: len(plain) / seconds / 1e6 for name, seconds in found.items()}
            ratio = float(np.median(found["theirs"]) / np.median(found["ours"]))
            print(
                f"lru     memory {share:4.0%} of {indexed.distinct_keys} keys  "
                f"replay {spread(speeds['ours'])} hit ratio {ours():.3f}  "
                f"libCacheSim {spread(speeds['theirs'])} hit ratio {theirs():.3f}  ratio {ratio:.2f}"
            )
    print(f"memory  {BYTES_PER_KEY} bytes for each distinct key in a replay, beside the trace itself")


def spread(speeds: np.ndarray) -> str:
    """Return median, lowest and highest of million requests per second."""
    return f"{np.median(speeds):5.1f} ({speeds.min():.1f}-{speeds.max():.1f}) M requests/s"


def replays(trace: AccessTrace) -> None:
    """Print million requests per second of every eviction policy at 1 %, 10 % and 20 % of the keys."""
    indexed = index(trace)
    for share in SHARES:
        capacity = int(share * indexed.distinct_keys)
        for eviction_policy in EVICTION_POLICIES:
            config = EvictionConfig(capacity, eviction_policy)
            seconds = timed(lambda config=config: replay_indexed(indexed, config))
            hit_ratio = replay_indexed(indexed, config).hit_ratio
            speed = len(trace) / seconds / 1e6
            print(
                f"replay  {eviction_policy:16} memory {share:4}  hit ratio {hit_ratio:.3f}  {speed:6.1f} M requests/s"
            )
    print(f"index   {len(trace)} requests  {timed(lambda: index(trace)):.3f} s")
    print(
        f"exact LRU, all sizes at once  {len(trace) / timed(lambda: exact_lru(trace, [1000])) / 1e6:.1f} M requests/s"
    )
    print(f"Belady  {len(trace) / timed(lambda: belady(trace, 10_000)) / 1e6:.1f} M requests/s")


def models(trace: AccessTrace) -> None:
    """Print the time of a fit to a capture of two minutes and of the curves that it answers with."""
    capture = trace.slice_time(0, 120_000)
    fitted = PopularityMixture.from_accesses(capture, LOOKUPS_PER_S)
    sizes = np.geomspace(100, 100_000, 64)
    fit_ms = timed(lambda: PopularityMixture.from_accesses(capture, LOOKUPS_PER_S)) * 1000
    print(f"fit     mixture to {len(capture)} accesses  {fit_ms:.0f} ms")
    print(f"curve   64 sizes  {timed(lambda: fitted.miss_ratio_curve(sizes)) * 1000:.1f} ms")
    print(f"curve   64 sizes under a TTL  {timed(lambda: fitted.miss_ratio_curve(sizes, 60_000)) * 1000:.1f} ms")


def fleet(services: int) -> None:
    """Print the time to split memory between many services."""
    rng = np.random.default_rng(3)
    sizes = np.arange(0, 65, dtype=np.int64) * (16 * MIB)
    curves = [
        Curve(f"s{i:05d}", sizes, np.sort(rng.random(65)), rng.random() * 1000, 1.0, 16 * MIB, 0.2, 256 * MIB)
        for i in range(services)
    ]
    seconds = timed(lambda: allocate(curves, services * 256 * MIB, MIB))
    print(f"split   {services} services  {seconds * 1000:.0f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trace", type=Path, help="a trace file; without it Zipf 1.0")
    parser.add_argument("--requests", type=int, default=2_000_000, help="how many of them")
    parser.add_argument("--keys", type=int, default=100_000, help="distinct keys of the Zipf requests")
    parser.add_argument("--rounds", type=int, default=9, help="runs of each replay beside libCacheSim")
    parser.add_argument("--only-lru", action="store_true", help="nothing but the comparison")
    given = parser.parse_args()
    if given.trace is None:
        trace = zipf(given.requests, given.keys, seed=1)
    else:
        trace = load(given.trace, LOOKUPS_PER_S).rows(slice(given.requests))
    print(f"{given.trace.name if given.trace else 'zipf 1.0'}, {len(trace)} requests; {machine()}")
    lru_beside_libcachesim(trace, given.rounds)
    if given.only_lru:
        return
    replays(trace)
    models(trace)
    fleet(1000)


if __name__ == "__main__":
    main()
