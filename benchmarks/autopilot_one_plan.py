"""How much of the gap does a single plan close? The planner's answers without the dynamics of rounds and rollbacks.

Each stream runs half of the time under the default; then the planner's own appraisals and arbitration, from a client
feed of that half, choose eviction policy and memory once, without a limit on the step. They are judged on the rest of
the time against the default and the best static configuration for that rest.

Run: `python -m benchmarks.autopilot_one_plan held-a --traces DIR --scale 0.8`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from agents.appraisal import Appraisal, appraise
from agents.planner import MEMORY_STEP_BYTES, curve_of
from agents.snapshots import LookRing, make_snapshot
from benchmarks.autopilot_simulated import OVERHEAD_BYTES, SimulatedCache
from benchmarks.autopilot_static import best_static, hits_of
from benchmarks.autopilot_streams import ENTRY_BYTES, Stream, streams_of
from cachewarden.cachemodel.arbitration import Infeasible, allocate
from cachewarden.cachemodel.eviction import EvictionConfig, index
from cachewarden.fleet import Service
from cachewarden.settings import load_settings

LEAST_BYTES = 2 << 20
WINDOW_MS = 60_000


def appraisal_of(stream: Stream, service: Service, maxmemory_bytes: int, at_ms: int) -> Appraisal | str:
    """Return the appraisal of a cache that has run until `at_ms` and was fed from the beginning."""
    cache = SimulatedCache(stream, maxmemory_bytes, seed=1)
    ring = LookRing(window_ms=WINDOW_MS, base_age_ms=WINDOW_MS // 2)
    cache.advance(at_ms - WINDOW_MS)
    ring.add(cache.observe(0))
    cache.advance(at_ms)
    seen = cache.observe(1_000)
    window = ring.add(seen)
    snapshot = make_snapshot(seen, window, sample=seen.sample, access=cache.fed(at_ms), reads=None, remarks={})
    return appraise(snapshot, service, load_settings())


def measure(name: str, given: argparse.Namespace) -> None:
    """Plan once at half-time, and print what came of it."""
    duration_ms = int(given.minutes * 60_000)
    half_ms, from_ms = duration_ms // 2, int(0.6 * duration_ms)
    streams = streams_of(name, given.traces, duration_ms, 1, given.scale)
    footprint = sum(s.distinct_keys * ENTRY_BYTES for s in streams)
    each = max(int(given.memory * footprint) // len(streams), LEAST_BYTES)
    indexed = {s.name: index(s.trace) for s in streams}
    reads = {s.name: int((s.trace.time_ms >= from_ms).sum()) for s in streams}
    default = {s.name: hits_of(indexed[s.name], EvictionConfig(each), from_ms) for s in streams}
    best = best_static(streams, each * len(streams), LEAST_BYTES - OVERHEAD_BYTES, from_ms, [0.0] * len(streams), 7)
    appraisals = []
    for stream in streams:
        service = Service(name=stream.name, url="redis://127.0.0.1:1", capture=True, minimum_memory_bytes=LEAST_BYTES)
        found = appraisal_of(stream, service, each + OVERHEAD_BYTES, half_ms)
        if isinstance(found, str) or isinstance(found.chosen, str):
            print(f"  {stream.name} keeps what it has: {found if isinstance(found, str) else found.chosen}")
        else:
            appraisals.append(found)
    total = (each + OVERHEAD_BYTES) * len(appraisals)
    split = allocate([curve_of(a, a.service) for a in appraisals], total, MEMORY_STEP_BYTES)
    if isinstance(split, Infeasible):
        print(f"  no split: {split.reason}")
        return
    ours = dict(default)
    for appraisal in appraisals:
        service_name, chosen = appraisal.service.name, appraisal.chosen
        assert not isinstance(chosen, str)
        config = EvictionConfig(
            split.of(service_name).bytes - OVERHEAD_BYTES,
            chosen.eviction_policy,
            lfu_log_factor=chosen.lfu_log_factor,
            lfu_decay_time_min=chosen.lfu_decay_time_min,
        )
        ours[service_name] = hits_of(indexed[service_name], config, from_ms)
        n, ideal = reads[service_name], next(b for b in best if b.name == service_name)
        print(
            f"  {service_name:18} default {default[service_name] / n:.2%}  best static {ideal.hits / n:.2%} "
            f"({(ideal.config.capacity_bytes or 0) / 2**20:.1f} MiB, {ideal.config.eviction_policy})  planned "
            f"{ours[service_name] / n:.2%} ({(config.capacity_bytes or 0) / 2**20:.1f} MiB, {config.eviction_policy})"
        )
    lookups, low, high = sum(reads.values()), sum(default.values()), sum(b.hits for b in best)
    gained = sum(ours.values())
    print(
        f"{name}: default {low / lookups:.2%}, best static {high / lookups:.2%} (its split alone "
        f"{sum(b.lru_hits for b in best) / lookups:.2%}), one plan {gained / lookups:.2%}: "
        f"{(gained - low) / max(high - low, 1):.1%} of the gap closed"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("mixes", nargs="*", default=["held-a"])
    parser.add_argument("--traces", type=Path, default=Path("traces"), help="directory of the published traces")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--memory", type=float, default=0.15, help="of what all keys take")
    parser.add_argument("--scale", type=float, default=1.0, help="share of every stream's keys")
    given = parser.parse_args()
    for name in given.mixes:
        measure(name, given)


if __name__ == "__main__":
    main()
