"""A look at a cache of three prefixes, as the collector would make it from a simulated LRU: one with a TTL far below
its staleness, one with a TTL as long as permitted, and keys that match none and are never read again."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np

from agents.captured_reads import read_capture
from agents.miss_split import Flows, split_misses
from agents.pattern_stats import pattern_stats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.observation import AccessSample, KeyspaceSample, Snapshot
from tests.unit.cachemodel.shared_lru import Lived, Prefix, live, requests
from tests.unit.serve.serve_world import MIB, NOW_MS, snapshot

SECONDS, CAPTURE_FROM_MS, MEASURE_FROM_MS = 240, 120_000, 90_000
CAPACITY = 8 * MIB
OVERHEAD = MIB
PATTERNS = ("policy:", "policy:short:")
PREFIXES = [
    Prefix("policy:", 12_000, 0.8, 250, 800, ttl_ms=30_000),
    Prefix("policy:short:", 1000, 0.6, 100, 800, ttl_ms=5_000),
    Prefix("", 0, None, 60, 1200),
]
SAMPLED = 1000


@cache
def lived(capacity_bytes: int = CAPACITY, ttl_ms: int = 30_000) -> Lived:
    """The same requests through a cache of another size or TTL of `policy:`."""
    prefixes = [dataclasses.replace(PREFIXES[0], ttl_ms=ttl_ms), *PREFIXES[1:]]
    return live(requests(prefixes, SECONDS, seed=6), capacity_bytes, MEASURE_FROM_MS, CAPTURE_FROM_MS)


def _pattern(name: str) -> int:
    return PATTERNS.index(name) if name in PATTERNS else -1


@cache
def prefixed_look(aligned: bool = False) -> Snapshot:
    """The look at the end; `aligned`: the sampled keys of `policy:` expire within the same second."""
    seen = lived()
    start_ms = NOW_MS - 2_000 - SECONDS * 1000
    rows = np.array([(t, k, op, size, ttl) for t, _, k, op, size, ttl in seen.commands], dtype=object)
    access = AccessSample(
        trace=AccessTrace.of(
            rows[:, 0].astype(np.int64) + start_ms,
            rows[:, 1].astype(np.uint64),
            rows[:, 2].astype(np.uint8),
            rows[:, 3].astype(np.int32),
            rows[:, 4].astype(np.int64),
        ),
        pattern=np.array([_pattern(row[1]) for row in seen.commands], np.int32),
        patterns=PATTERNS,
        spatial_rate=1.0,
        lines_seen=len(rows),
    )
    drawn = np.random.default_rng(1).choice(len(seen.residents), SAMPLED, replace=False)
    residents = [seen.residents[i] for i in drawn]
    pattern = np.array([_pattern(r[0]) for r in residents], np.int32)
    ttl = np.array([r[4] for r in residents], np.int64)
    if aligned:
        ttl = np.where(pattern == 0, 10_000 + ttl % 500, ttl)
    sample = KeyspaceSample(
        key=np.array([r[1] for r in residents], np.uint64),
        idle_ms=np.array([r[3] // 1000 * 1000 for r in residents], np.int64),
        frequency=np.full(SAMPLED, -1, np.int32),
        size_bytes=np.array([r[2] for r in residents], np.int64),
        ttl_ms=ttl,
        pattern=pattern,
        encoding=np.full(SAMPLED, -1, np.int32),
        patterns=PATTERNS,
        encodings=(),
    )
    reads, seconds = read_capture(access), SECONDS - MEASURE_FROM_MS / 1000
    lookups = sum(seen.reads.values())
    misses = lookups - sum(seen.hits.values())
    flows = Flows(missed=misses / lookups, evicted=seen.evicted / lookups, expired=seen.expired / lookups)
    age_ms = None if seen.eviction_age_ms is None else int(seen.eviction_age_ms)
    return snapshot(
        access=access,
        sample=sample,
        knobs={"maxmemory": str(CAPACITY + OVERHEAD), "maxmemory-policy": "allkeys-lru", "maxmemory-samples": "5"},
        maxmemory_bytes=CAPACITY + OVERHEAD,
        used_memory_bytes=CAPACITY + OVERHEAD,
        fixed_overhead_bytes=OVERHEAD,
        hits=lookups - misses,
        misses=misses,
        hit_ratio=1.0 - misses / lookups,
        lookups_per_s=lookups / seconds,
        evicted_per_s=seen.evicted / seconds,
        expired_per_s=seen.expired / seconds,
        eviction_age_ms=age_ms,
        resident_keys=len(seen.residents),
        keys_with_ttl=sum(r[4] >= 0 for r in seen.residents),
        miss_split=split_misses(flows, reads, age_ms),
        patterns=pattern_stats(sample, reads, misses / lookups),
        expired_stale_share=0.02,
    )
