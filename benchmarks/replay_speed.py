"""How fast is a what-if? Replays, fits, curves and a fleet-wide split, timed on a synthetic Zipf workload.

Run from the repository root: `python -m benchmarks.replay_speed [--requests N] [--keys N]`. Prints one line per
question; figures hold for the machine they were measured on, and compilation is not counted.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter

import numpy as np

from cachewarden.cachemodel.arbitration import Curve, allocate
from cachewarden.cachemodel.eviction import EvictionConfig, belady, exact_lru, index, replay_indexed
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.knobs import EVICTION_POLICIES

LOOKUPS_PER_S = 1000.0
MIB = 1 << 20


def timed(work: Callable[[], object]) -> float:
    """Return the seconds of the second run; the first one compiles."""
    work()
    start = perf_counter()
    work()
    return perf_counter() - start


def zipf(requests: int, keys: int, seed: int) -> AccessTrace:
    """Return Zipf(1.0) requests at a steady rate, all with a TTL of a day so that volatile policies have something to
    evict.
    """
    rng = np.random.default_rng(seed)
    popularity = 1.0 / np.arange(1, keys + 1)
    drawn = rng.choice(keys, requests, p=popularity / popularity.sum()).astype(np.uint64)
    time_ms = np.floor(np.arange(requests) * 1000.0 / LOOKUPS_PER_S)
    return AccessTrace.of(time_ms, mix(drawn), None, 1, 86_400_000)


def replays(trace: AccessTrace) -> None:
    """Print million requests per second of every eviction policy at 1 % and 20 % of the keys."""
    indexed = index(trace)
    for share in (0.01, 0.2):
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
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, default=100_000)
    given = parser.parse_args()
    trace = zipf(given.requests, given.keys, seed=1)
    replays(trace)
    models(trace)
    fleet(1000)


if __name__ == "__main__":
    main()
