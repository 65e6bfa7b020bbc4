"""How true are the curves? Published traces, two minutes of accesses each, against replays at other sizes.

`python -m benchmarks.curve_accuracy FOLDER`: FOLDER holds the traces. None of them has times: each is spread over an
hour. Prints, over traces and sizes, the errors of hit ratio, eviction age, working set, the worth of one MiB and the
least memory for a goal, and how often the 90 % interval held the truth.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from cachewarden.cachemodel.curves import MIB, curve, memory_for
from cachewarden.cachemodel.eviction import EvictionConfig, IndexedTrace, ReplayResult, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, TtlStats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cachewarden.cachemodel.whatif import Inquiry, Insufficient
from cachewarden.estimate import Estimate

FILES = {
    "cache2k_orm-busy.trace.xz": 5_000_000,
    "cache2k_web07.trace.xz": 76_118,
    "scarab_scarab-recs.trace.xz": 1_245_184,
    "arc_OLTP.lis.zst": 914_145,
}
WINDOW_MS = (1_800_000, 3_000_000)
SHARES = (0.03, 0.1, 0.3)
MEMORY_BYTES = 32 * MIB
"""Entries are taken as large as makes the cache this large, so that one MiB is 3 % of it."""


def replayed(indexed: IndexedTrace, memory: float, entry: int) -> ReplayResult:
    """Return the truth over the window."""
    return replay_indexed(indexed, EvictionConfig(int(memory), "allkeys-lru", unknown_entry_bytes=entry), WINDOW_MS[0])


def true_age_ms(trace: AccessTrace, resident_keys: int) -> float:
    """Return the idle time of the oldest resident of an exact LRU, the mean over moments of the window."""
    found = []
    for end_ms in np.linspace(WINDOW_MS[0], WINDOW_MS[1], 5)[1:]:
        seen = trace.slice_time(0, int(end_ms))
        last = np.sort(seen.time_ms[len(seen) - 1 - np.unique(seen.key[::-1], return_index=True)[1]])
        if len(last) > resident_keys:
            found.append(float(end_ms - last[-resident_keys]))
    return float(np.mean(found)) if found else float("inf")


def true_working_set(trace: AccessTrace, window_ms: int) -> float:
    """Return the mean number of distinct keys in windows of that length."""
    starts = np.linspace(WINDOW_MS[0], WINDOW_MS[1] - window_ms, 20)
    return float(np.mean([trace.slice_time(int(s), int(s) + window_ms).distinct_keys() for s in starts]))


def main(folder: Path, capture_s: int, rate: float) -> None:
    """Print the table."""
    rows: dict[str, list[tuple[float, bool, float]]] = defaultdict(list)

    def note(kind: str, told: Estimate, true: float, *, relative: bool = False) -> None:
        error = told.value / true - 1.0 if relative else told.value - true
        width = (told.high - told.low) / (true if relative else 1.0)
        rows[kind].append((error, told.holds(true), width))

    for name, count in FILES.items():
        trace = load(folder / name, count / 3600.0).slice_time(0, WINDOW_MS[1])
        indexed, keys = index(trace), trace.distinct_keys()
        for share in SHARES:
            held = int(share * keys)
            entry = MEMORY_BYTES // held
            seen = replayed(indexed, MEMORY_BYTES, entry)
            capture = trace.slice_time(WINDOW_MS[1] - capture_s * 1000, WINDOW_MS[1])
            age_ms = true_age_ms(trace, held)
            inquiry = Inquiry(
                Evidence(
                    lookups_per_s=seen.reads / ((WINDOW_MS[1] - WINDOW_MS[0]) / 1000),
                    hit_ratio=seen.hit_ratio,
                    maxmemory_bytes=MEMORY_BYTES,
                    used_memory_bytes=MEMORY_BYTES,
                    fixed_overhead_bytes=0,
                    resident_keys=held,
                    mean_entry_bytes=entry,
                    current=CacheConfiguration(MEMORY_BYTES),
                    eviction_age_ms=int(age_ms),
                    trace=capture.thin(rate),
                    sampling_rate=rate,
                    all_accesses=len(capture),
                    capture_end_ms=WINDOW_MS[1],
                    ttl=TtlStats(0.0),
                ),
                1,
            )
            found = curve(inquiry)
            if isinstance(found, Insufficient):
                print(name, share, found.reason)
                continue
            for point in found.points:
                if point.maxmemory_bytes == MEMORY_BYTES:
                    continue
                true = replayed(indexed, point.maxmemory_bytes, entry)
                factor = point.maxmemory_bytes / MEMORY_BYTES
                side = "below 0.5" if factor < 0.5 else "0.5 to 1.5" if factor <= 1.5 else "above 1.5"
                note(f"hit ratio, {side}", point.hit_ratio, true.hit_ratio)
                real_age = true_age_ms(trace, point.maxmemory_bytes // entry)
                if point.eviction_age_ms is not None and np.isfinite(real_age):
                    note(f"eviction age (relative), {side}", point.eviction_age_ms, real_age, relative=True)
            more = replayed(indexed, MEMORY_BYTES + 3 * MIB, entry).hit_ratio - seen.hit_ratio
            fewer = seen.hit_ratio - replayed(indexed, MEMORY_BYTES - 3 * MIB, entry).hit_ratio
            note("one MiB more, points", found.marginal.hit_ratio, (more + fewer) / 6)
            told, real = found.marginal.hit_ratio, (more + fewer) / 6
            print(
                f"{name:28s} {share} hit {seen.hit_ratio:.3f}, eviction age {age_ms / 1000:.0f} s; one MiB, points: "
                f"{100 * told.value:.3f} [{100 * told.low:.3f}, {100 * told.high:.3f}], really {100 * real:.3f}"
            )
            for ws in found.working_set:
                note("working set keys (relative)", ws.keys, true_working_set(trace, ws.window_ms), relative=True)
            for factor in (0.5, 1.5, 2.5):
                goal = replayed(indexed, factor * MEMORY_BYTES, entry).hit_ratio
                least = memory_for(inquiry, goal)
                if isinstance(least, Insufficient) or least.maxmemory_bytes is None:
                    print("   no memory for", goal, least.reason)
                    continue
                inside = (least.low_bytes or 0) <= factor * MEMORY_BYTES <= (least.high_bytes or np.inf)
                width = ((least.high_bytes or np.inf) - (least.low_bytes or 0)) / (factor * MEMORY_BYTES)
                rows["least memory (relative)"].append(
                    (least.maxmemory_bytes / (factor * MEMORY_BYTES) - 1.0, inside, width)
                )
    for kind, found_rows in sorted(rows.items()):
        error = np.array([e for e, _, _ in found_rows])
        inside = np.mean([i for _, i, _ in found_rows])
        width = np.median([w for _, _, w in found_rows])
        print(
            f"{kind:38s} mean |error| {np.abs(error).mean():.4f}, P90 {np.quantile(np.abs(error), 0.9):.4f}, "
            f"bias {error.mean():+.4f}, {inside:.0%} inside, median width {width:.4f}, n={len(error)}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--capture-s", type=int, default=120)
    parser.add_argument("--rate", type=float, default=1.0)
    options = parser.parse_args()
    main(options.folder, options.capture_s, options.rate)
