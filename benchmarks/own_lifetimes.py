"""Two prefixes with different TTLs in one cache: how well are other sizes told from one capture?

`python -m benchmarks.own_lifetimes FOLDER`: FOLDER holds the traces. None of them has times or TTLs: each is spread
over an hour, two share a cache, and the keys of each are loaded with their own TTL. A replay with these TTLs is the
truth. The errors in points of hit ratio are printed for the prefixes added up, and in the same run for one TTL for the
whole cache.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np

from cachewarden.cachemodel.eviction import EvictionConfig, ReplayResult, replay
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, MissShares, PrefixEvidence, TtlStats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cachewarden.cachemodel.whatif import Answer, Inquiry
from cachewarden.knobs import EvictionPolicy

FILES = {
    "cache2k_orm-busy.trace.xz": 1_250_000,
    "scarab_scarab-recs.trace.xz": 1_245_184,
    "arc_OLTP.lis.zst": 914_145,
}
"""Rows that make an hour."""
PAIRS = ((0, 1), (1, 2), (2, 0))
TTLS_S = ((60, 0), (0, 60), (60, 900))
ENTRY_BYTES = 100
WINDOW_MS = (1_800_000, 3_000_000)
SHARE = 0.1
CAPTURES_S = (60, 120, 240)
FACTORS = (0.5, 1.5, 2.0)
LFU: EvictionPolicy = "allkeys-lfu"


def together(first: AccessTrace, second: AccessTrace, ttls_s: tuple[int, int]) -> AccessTrace:
    """Return both in one cache, told apart by the lowest bit of the key, each with its TTL."""
    parts = []
    for number, (trace, ttl_s) in enumerate(zip((first, second), ttls_s, strict=True)):
        key = (trace.key & ~np.uint64(1)) | np.uint64(number)
        parts.append(replace(trace.with_ttl(ttl_s * 1000), key=key))
    order = np.argsort(np.concatenate([p.time_ms for p in parts]), kind="stable")
    names = ("time_ms", "key", "op", "size_bytes", "ttl_ms")
    return AccessTrace(*(np.concatenate([getattr(p, name) for p in parts])[order] for name in names))


def replayed(trace: AccessTrace, memory: int, policy: EvictionPolicy = "allkeys-lru") -> ReplayResult:
    """Return the truth over the window."""
    return replay(trace, EvictionConfig(memory, policy, unknown_entry_bytes=ENTRY_BYTES), measure_from_ms=WINDOW_MS[0])


def evidence_of(trace: AccessTrace, seen: ReplayResult, memory: int, capture_s: int) -> Evidence:
    """Return what a capture and the counters at the end of the window would tell; no residents are sampled."""
    window_s = (WINDOW_MS[1] - WINDOW_MS[0]) / 1000
    capture = trace.slice_time(WINDOW_MS[1] - capture_s * 1000, WINDOW_MS[1])
    shares = [seen.cold / seen.misses, seen.expired_misses / seen.misses, seen.evicted_misses / seen.misses]
    prefixes = []
    for number, name in enumerate(("first:", "second:")):
        mine = capture.rows((capture.key & np.uint64(1)) == np.uint64(number))
        ttl_ms = int(np.median(mine.ttl_ms)) if len(mine) else 0
        prefixes.append(PrefixEvidence(name, mine, len(mine) / len(capture), ttl_ms=ttl_ms or None))
    # What most captured keys live by stands for the whole cache, as in `agents/evidence`.
    common = max(prefixes, key=lambda p: p.lookups_share or 0.0).ttl_ms
    return Evidence(
        lookups_per_s=seen.reads / window_s,
        hit_ratio=seen.hit_ratio,
        maxmemory_bytes=memory,
        used_memory_bytes=memory if seen.evicted else seen.resident_bytes,
        fixed_overhead_bytes=0,
        resident_keys=max(seen.resident_keys, 1),
        mean_entry_bytes=ENTRY_BYTES,
        current=CacheConfiguration(memory, ttl_ms=common),
        misses=MissShares(*shares, max(0.0, 1.0 - sum(shares))),
        trace=capture,
        all_accesses=len(capture),
        capture_end_ms=WINDOW_MS[1],
        ttl=TtlStats(0.5),
        evicted_per_s=seen.evicted / window_s,
        expired_per_s=seen.expired / window_s,
        refused_per_s=0.0,
        prefixes=tuple(prefixes),
    )


def main(folder: Path) -> None:
    """Print errors by way, question and length of capture."""
    traces = [load(folder / name, rows / 3600.0).slice_time(0, WINDOW_MS[1]) for name, rows in FILES.items()]
    rows: dict[tuple[str, str, int], list[tuple[float, bool, float]]] = defaultdict(list)
    for (first, second), ttls_s in ((pair, ttls) for pair in PAIRS for ttls in TTLS_S):
        trace = together(traces[first], traces[second], ttls_s)
        memory = int(SHARE * trace.distinct_keys() * ENTRY_BYTES)
        seen = replayed(trace, memory)
        wanted = [CacheConfiguration(int(f * memory)) for f in FACTORS] + [CacheConfiguration(memory, LFU)]
        truth = [replayed(trace, c.maxmemory_bytes, c.eviction_policy).hit_ratio for c in wanted]
        print(f"{first}+{second} {ttls_s} hit {seen.hit_ratio:.3f} truth", *(f"{t:.3f}" for t in truth), flush=True)
        for capture_s in CAPTURES_S:
            given = evidence_of(trace, seen, memory, capture_s)
            for way, told in (("by prefix", given), ("one TTL", replace(given, prefixes=()))):
                answers = Inquiry(told, 1).ask([replace(c, ttl_ms=told.current.ttl_ms) for c in wanted])
                line = []
                for c, answer, real in zip(wanted, answers, truth, strict=True):
                    if not isinstance(answer, Answer):
                        line.append(answer.reason[:60])
                        continue
                    kind = c.eviction_policy if c.eviction_policy == LFU else f"x{c.maxmemory_bytes / memory:.1f}"
                    width = answer.hit_ratio.high - answer.hit_ratio.low
                    rows[way, kind, capture_s].append(
                        (answer.hit_ratio.value - real, answer.hit_ratio.holds(real), width)
                    )
                    line.append(f"{answer.hit_ratio.value:.3f}+-{width / 2:.3f}")
                print(f"   {capture_s:4d} s {way:10s}", *line, flush=True)
    for way, kind, capture_s in sorted(rows):
        _show(f"{way:10s} {kind:12s} {capture_s:4d} s", rows[way, kind, capture_s])
    for way in ("by prefix", "one TTL"):
        _show(f"{way}, all sizes", [r for key, found in rows.items() if key[0] == way and key[1] != LFU for r in found])


def _show(name: str, found: list[tuple[float, bool, float]]) -> None:
    error = 100 * np.array([e for e, _, _ in found])
    print(
        f"{name:32s} mean |error| {np.abs(error).mean():5.2f}, worst {np.abs(error).max():5.2f},"
        f" bias {error.mean():+5.2f} points, {np.mean([i for _, i, _ in found]):.0%} inside, median width"
        f" {100 * np.median([w for _, _, w in found]):.1f}, n={len(found)}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
