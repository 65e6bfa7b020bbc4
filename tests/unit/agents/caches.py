"""Snapshots of simulated caches, with a capture of the traffic that made them: what a planner is asked about in tests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cachewarden.cachemodel.eviction import EvictionConfig, replay
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.messages import Mode
from cachewarden.observation import AccessSample, Capabilities, MissSplit, PatternStats, ProbeCost, Snapshot

MIB = 1024 * 1024
ENTRY_BYTES = 1_000
OVERHEAD_BYTES = MIB
NOW = 10_000_000
PATTERN = "item:"


def traffic(
    keys: int,
    rate_per_s: float = 500.0,
    seconds: float = 120.0,
    skew: float = 0.9,
    ttl_ms: int = 0,
    turnover: float = 0.0,
    seed: int = 1,
) -> AccessTrace:
    """Return Poisson arrivals over Zipf popularity, all entries of one size.

    A share of `turnover` of the keys goes out of use after a third of the time, and others take their places.
    """
    rng = np.random.default_rng(seed)
    n = int(rate_per_s * seconds)
    weights = 1.0 / np.arange(1, keys + 1) ** skew
    names = rng.permutation(np.arange(1, keys + 1, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    rank = rng.choice(keys, size=n, p=weights / weights.sum())
    time_ms = np.sort(rng.uniform(0, seconds * 1000, n)).astype(np.int64)
    replaced = (rng.uniform(size=keys) < turnover)[rank] & (time_ms > seconds * 1000 / 3)
    key = np.where(replaced, names[rank] + np.uint64(1), names[rank])
    return AccessTrace.of(time_ms, key, op=Op.READ, size_bytes=ENTRY_BYTES, ttl_ms=ttl_ms)


def snapshot_of(
    service: str,
    trace: AccessTrace,
    maxmemory_bytes: int,
    eviction_policy: str = "allkeys-lru",
    *,
    ttl_ms: int | None = None,
) -> Snapshot:
    """Return what a collector would say of a cache of that size under that traffic; the last half is its window."""
    capacity = maxmemory_bytes - OVERHEAD_BYTES
    half = int(trace.time_ms[-1]) // 2
    policy = "noeviction" if eviction_policy.startswith("volatile") and not ttl_ms else eviction_policy
    result = replay(trace, EvictionConfig(capacity_bytes=capacity, eviction_policy=policy), measure_from_ms=half)  # type: ignore[arg-type]
    lookups = result.hits + result.misses
    ratio = result.hits / lookups
    seconds = (int(trace.time_ms[-1]) - half) / 1000
    miss = result.misses / lookups
    parts = np.array([result.cold, result.expired_misses, result.evicted_misses, result.refused_misses], dtype=float)
    parts = parts / max(parts.sum(), 1.0) * miss
    distinct = trace.distinct_keys()
    resident = min(distinct, capacity // ENTRY_BYTES)
    full = result.evicted + result.refused > 0
    used = OVERHEAD_BYTES + resident * ENTRY_BYTES if not full else maxmemory_bytes
    return Snapshot(
        service=service,
        taken_at_ms=NOW,
        window_ms=int(seconds * 1000),
        run_id="r1",
        role="master",
        capabilities=Capabilities(server="valkey", version="9.1.2", config_get=True, config_set=True, monitor=True),
        knobs={
            "maxmemory": str(maxmemory_bytes),
            "maxmemory-policy": eviction_policy,
            "maxmemory-samples": "5",
            "lfu-log-factor": "10",
            "lfu-decay-time": "1",
        },
        hits=result.hits,
        misses=result.misses,
        hit_ratio=ratio,
        lookups_per_s=lookups / seconds,
        evicted_per_s=result.evicted / seconds,
        expired_per_s=result.expired / seconds,
        refused_per_s=result.refused / seconds,
        miss_split=MissSplit(
            cold=float(parts[0]),
            expired=float(parts[1]),
            evicted=float(parts[2]),
            refused=float(parts[3]),
            source="replay",
        ),
        used_memory_bytes=used,
        maxmemory_bytes=maxmemory_bytes,
        memory_usage=used / maxmemory_bytes,
        memory_efficiency=0.9,
        fixed_overhead_bytes=OVERHEAD_BYTES,
        host_memory_bytes=None,
        resident_keys=resident,
        keys_with_ttl=resident if ttl_ms else 0,
        eviction_age_ms=None,
        latency_us_p99=5.0,
        round_trip_us=100.0,
        hotspot_count=0,
        cost=ProbeCost(),
        patterns=(
            PatternStats(
                pattern=PATTERN,
                resident_share=1.0,
                bytes_share=1.0,
                lookups_share=1.0,
                hit_ratio=ratio,
                written_ttl_ms=ttl_ms,
                keys_with_ttl_share=1.0 if ttl_ms else 0.0,
            ),
        ),
        access=AccessSample(
            trace=trace.slice_time(half, int(trace.time_ms[-1]) + 1),
            pattern=np.zeros(len(trace.slice_time(half, int(trace.time_ms[-1]) + 1)), dtype=np.int32),
            patterns=(PATTERN,),
            spatial_rate=1.0,
            lines_seen=len(trace),
        ),
    )


def fleet_of(
    *names: str, total_bytes: int | None = None, staleness_s: float | None = None, floor: float = 0.0
) -> Fleet:
    """Return services in mode auto with one declared pattern each."""
    one = Service(
        name="x",
        url="redis://127.0.0.1:1",
        mode=Mode.AUTO,
        hit_ratio_floor=floor,
        patterns=(KeyPattern(prefix=PATTERN, max_staleness_s=staleness_s),),
    )
    services = tuple(one.model_copy(update={"name": name}) for name in names)
    return Fleet(services=services, total_memory_bytes=total_bytes)


def without_capture(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, access=None)
