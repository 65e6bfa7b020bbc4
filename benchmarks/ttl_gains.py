"""How well is it told what a longer TTL gives? Published traces, replayed under TTLs of 60 to 900 s, are the truth.

`python -m benchmarks.ttl_gains FOLDER`: FOLDER holds the traces. None of them has times or TTLs: each is spread over an
hour, and every load is given the TTL. Prints errors of the predicted gain in points of hit ratio, by length of capture.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from cachewarden.cachemodel.eviction import EvictionConfig, ReplayResult, replay
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, MissShares, TtlStats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cachewarden.cachemodel.whatif import Answer, Inquiry

FILES = {
    "cache2k_orm-busy.trace.xz": 5_000_000,
    "cache2k_web07.trace.xz": 76_118,
    "scarab_scarab-recs.trace.xz": 1_245_184,
    "arc_OLTP.lis.zst": 914_145,
}
ENTRY_BYTES = 100
WINDOW_MS = (1_800_000, 3_000_000)
PRESENT_S = (60, 120, 300)
WANTED_S = (120, 300, 600, 900)
CAPTURES_S = (20, 60, 120, 240, 600)
SHARES = (None, 0.2)


def replayed(trace: AccessTrace, ttl_s: int, memory: int) -> ReplayResult:
    """Return the truth over the window."""
    config = EvictionConfig(memory or None, "allkeys-lru", unknown_entry_bytes=ENTRY_BYTES)
    return replay(trace.with_ttl(ttl_s * 1000), config, measure_from_ms=WINDOW_MS[0])


def evidence_of(trace: AccessTrace, seen: ReplayResult, ttl_s: int, memory: int, capture_s: int) -> Evidence:
    """Return what a look at the end of the window would know."""
    misses = seen.misses
    shares = [seen.cold / misses, seen.expired_misses / misses, seen.evicted_misses / misses]
    window_s = (WINDOW_MS[1] - WINDOW_MS[0]) / 1000
    used = memory if memory and seen.evicted else seen.resident_bytes
    return Evidence(
        lookups_per_s=seen.reads / window_s,
        hit_ratio=seen.hit_ratio,
        maxmemory_bytes=memory,
        used_memory_bytes=used,
        fixed_overhead_bytes=0,
        resident_keys=max(seen.resident_keys, 1),
        mean_entry_bytes=ENTRY_BYTES,
        current=CacheConfiguration(memory, ttl_ms=ttl_s * 1000),
        misses=MissShares(shares[0], shares[1], shares[2], max(0.0, 1.0 - sum(shares))),
        trace=trace.slice_time(WINDOW_MS[1] - capture_s * 1000, WINDOW_MS[1]).with_ttl(ttl_s * 1000),
        capture_end_ms=WINDOW_MS[1],
        ttl=TtlStats(1.0),
        evicted_per_s=seen.evicted / window_s,
        expired_per_s=seen.expired / window_s,
        refused_per_s=0.0,
    )


def main(folder: Path) -> None:
    """Print the table."""
    errors: dict[int, list[tuple[float, bool]]] = {}
    for name, rows in FILES.items():
        trace = load(folder / name, rows / 3600.0).slice_time(0, WINDOW_MS[1])
        keys = trace.distinct_keys()
        for share in SHARES:
            memory = 0 if share is None else int(share * keys * ENTRY_BYTES)
            truth = {ttl: replayed(trace, ttl, memory) for ttl in sorted({*PRESENT_S, *WANTED_S})}
            for present in PRESENT_S:
                for capture_s in CAPTURES_S:
                    given = evidence_of(trace, truth[present], present, memory, capture_s)
                    inquiry = Inquiry(given, 1)
                    wanted = [t for t in WANTED_S if t > present]
                    answers = inquiry.ask([replace(given.current, ttl_ms=t * 1000) for t in wanted])
                    line = []
                    for t, answer in zip(wanted, answers, strict=True):
                        real = truth[t].hit_ratio - truth[present].hit_ratio
                        if isinstance(answer, Answer):
                            errors.setdefault(capture_s, []).append(
                                (answer.change.value - real, answer.change.holds(real))
                            )
                            line.append(f"{t}s {100 * answer.change.value:+.1f}/{100 * real:+.1f}")
                        else:
                            line.append(answer.reason[:40])
                    print(
                        name[:16], share, f"{present}s capture {capture_s}s hit {truth[present].hit_ratio:.3f}", *line
                    )
    for capture_s, found in sorted(errors.items()):
        e = np.array([x for x, _ in found]) * 100
        inside = np.mean([x for _, x in found])
        print(
            f"capture {capture_s:4d} s: mean |error| {np.abs(e).mean():5.2f}, P90 {np.quantile(np.abs(e), 0.9):5.2f}, "
            f"bias {e.mean():+5.2f} points, {inside:.0%} inside, n={len(e)}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
