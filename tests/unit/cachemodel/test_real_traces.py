"""Predictions against replays of published traces, from two minutes of accesses each.

The traces lie outside the project; without them the test is skipped. None of them has times, so each is given the
arrival rate that spreads it over an hour. Prints predicted and replayed changes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cachewarden.cachemodel.eviction import EvictionConfig, IndexedTrace, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, TtlStats
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.trace_files import load
from cachewarden.cachemodel.whatif import Answer, evaluate
from cachewarden.knobs import EvictionPolicy

ROOT = Path(__file__).resolve().parents[3]
TRACES = Path(os.environ.get("CACHEWARDEN_TRACES", ROOT.parent / "shared" / "traces"))
FILES = {
    "cache2k_orm-busy.trace.xz": 5_000_000,
    "cache2k_web07.trace.xz": 76_118,
    "scarab_scarab-recs.trace.xz": 1_245_184,
    "arc_OLTP.lis.zst": 914_145,
}
ENTRY_BYTES = 100
CAPTURE_MS = 120_000
# The capture ends the window over which hit ratios are compared.
WINDOW_MS = (1_800_000, 3_000_000)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not TRACES.is_dir(), reason="no traces, name their folder in CACHEWARDEN_TRACES"),
]


def replayed(indexed: IndexedTrace, wanted: CacheConfiguration) -> float:
    config = EvictionConfig(
        wanted.maxmemory_bytes,
        wanted.eviction_policy,
        lfu_log_factor=wanted.lfu_log_factor,
        lfu_decay_time_min=wanted.lfu_decay_time_min,
        unknown_entry_bytes=ENTRY_BYTES,
    )
    return replay_indexed(indexed, config, WINDOW_MS[0]).hit_ratio


def candidates(now: CacheConfiguration) -> dict[str, CacheConfiguration]:
    def at(
        factor: float, eviction_policy: EvictionPolicy = "allkeys-lru", log: int = 10, decay: int = 1
    ) -> CacheConfiguration:
        return CacheConfiguration(int(now.maxmemory_bytes * factor), eviction_policy, 5, log, decay)

    return {
        "half": at(0.5),
        "x1.5": at(1.5),
        "double": at(2.0),
        "random": at(1.0, "allkeys-random"),
        "lfu": at(1.0, "allkeys-lfu"),
        "lfu(1,10)": at(1.0, "allkeys-lfu", 1, 10),
    }


def idle_times(trace: AccessTrace, resident_keys: int) -> npt.NDArray[np.int64]:
    """Idle times of a thousand residents of an exact LRU at the end of the window, by a clock of whole seconds."""
    seen = trace.slice_time(0, WINDOW_MS[1])
    last = np.sort(seen.time_ms[len(seen) - 1 - np.unique(seen.key[::-1], return_index=True)[1]])[-resident_keys:]
    sampled = np.random.default_rng(9).choice(last, min(1000, len(last)), replace=False)
    phase_ms = 370
    idle_ms: npt.NDArray[np.int64] = ((WINDOW_MS[1] + phase_ms) // 1000 - (sampled + phase_ms) // 1000) * 1000
    return idle_ms


@pytest.mark.parametrize("share", [0.05, 0.2])
@pytest.mark.parametrize("name", FILES)
def test_memory_changes_of_real_workloads_are_predicted_better_than_by_no_change(name: str, share: float) -> None:
    if not (TRACES / name).is_file():
        pytest.skip(f"trace {name} is not there")
    trace = load(TRACES / name, FILES[name] / 3600.0)
    now = CacheConfiguration(int(share * trace.distinct_keys()) * ENTRY_BYTES)
    indexed = index(trace.slice_time(0, WINDOW_MS[1]))
    observed = replayed(indexed, now)
    capture = trace.slice_time(WINDOW_MS[1] - CAPTURE_MS, WINDOW_MS[1])
    given = Evidence(
        lookups_per_s=FILES[name] / 3600.0,
        hit_ratio=observed,
        maxmemory_bytes=now.maxmemory_bytes,
        used_memory_bytes=now.maxmemory_bytes,
        fixed_overhead_bytes=0,
        resident_keys=now.maxmemory_bytes // ENTRY_BYTES,
        mean_entry_bytes=ENTRY_BYTES,
        current=now,
        idle_ms=idle_times(trace, resident_keys=now.maxmemory_bytes // ENTRY_BYTES),
        trace=capture,
        all_accesses=len(capture),
        capture_end_ms=WINDOW_MS[1],
        ttl=TtlStats(0.0),
    )
    errors, changes, held = {}, {}, []
    wanted = candidates(now)
    for label, found in zip(wanted, evaluate(given, list(wanted.values()), seed=1), strict=True):
        if not isinstance(found, Answer):
            continue
        truth = replayed(indexed, wanted[label])
        errors[label] = found.hit_ratio.value - truth
        changes[label] = truth - observed
        held.append(found.hit_ratio.holds(truth))
        print(  # noqa: T201 - the figures are the point of this test
            f"{name[:20]:20} {share:4} {label:10} now {observed:.3f} predicted {found.change.value:+.3f} "
            f"[{found.change.low:+.3f} {found.change.high:+.3f}] replayed {truth - observed:+.3f} "
            f"{'' if held[-1] else 'outside'}"
        )
    assert errors, "every candidate was refused"
    assert np.mean(held) >= 0.5
    memory = [label for label in ("half", "x1.5", "double") if label in errors]
    assert np.mean([abs(errors[label]) for label in memory]) < np.mean([abs(changes[label]) for label in memory])
