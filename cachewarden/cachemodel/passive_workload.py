"""Whether a sample of residents and the counters of INFO can tell a workload, and which one; without any capture.

It refuses in words, with the way out, where they cannot: too few keys, a cache that is not full, a clock too coarse
for how soon keys leave, a workload that was not steady. It never answers for a configuration (`whatif` does).

INVARIANT: a refusal names what is missing; the same evidence and seed give the same workload.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.evidence import Evidence, ResidentSample
from cachewarden.cachemodel.passive_curve import PassiveCurve, contradiction, miss_logit_spread, passive_curve
from cachewarden.cachemodel.passive_fit import ResidentFacts
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import IdleTable

__all__ = ["IDLE_KEYS_MIN", "PassiveWorkload", "passive_workload"]

IDLE_KEYS_MIN = 200
"""Below that the bootstrap itself is not to be trusted."""
# The clock of idle times counts whole seconds.
_AGE_MIN_S = 10.0
_TTL_SHARE_MAX = 0.05
_MISS_RATIO_MIN = 0.002
# Logits of the miss ratio between parts of the window, and between idle times and counters. Beyond these the error
# grew past two points on the traces of `benchmarks/passive_accuracy.py`.
_SPREAD_MAX = 0.35
_CONTRADICTION_MAX = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class PassiveWorkload:
    """A fitted mixture, its bootstrap replicates, the curve of LRU where there is one, and the source in words."""

    mixture: PopularityMixture
    replicates: tuple[PopularityMixture, ...]
    curve: PassiveCurve | None
    source: str
    notes: tuple[str, ...] = ()


def passive_workload(evidence: Evidence, seed: int) -> PassiveWorkload | str:
    """Return the workload, or in words why it cannot be known."""
    residents = evidence.looked_at
    if residents is None:
        return "no residents were sampled, let the cache be probed"
    if evidence.current.family == "lfu":
        return (
            "under LFU the server keeps no idle times, and what its counters tell of other sizes was measured to be "
            "too little, capture accesses instead"
        )
    known = residents.rows(residents.idle_ms >= 0)
    if len(known) < IDLE_KEYS_MIN:
        return f"the idle times of {len(known)} residents are known, {IDLE_KEYS_MIN} are needed, sample more keys"
    if evidence.current.family != "lru" or evidence.refuses(evidence.current) is not False:
        return "idle times tell the workload only of a full cache under an LRU policy, capture accesses instead"
    if evidence.ttl is None or evidence.ttl.key_share > _TTL_SHARE_MAX:
        return "idle times of keys that expire do not tell the workload yet, capture accesses instead"
    return _under_eviction(evidence, known, seed)


def _under_eviction(evidence: Evidence, known: ResidentSample, seed: int) -> PassiveWorkload | str:
    """Return the workload of a cache whose keys leave by eviction only."""
    if not evidence.full:
        return "idle times tell the workload only of a full cache under an LRU policy, wait until it is full"
    facts = ResidentFacts(
        evidence.resident_keys,
        evidence.lookups_per_s,
        1.0 - evidence.hit_ratio,
        evidence.current.maxmemory_samples,
    )
    if facts.samples < 2:
        return "with maxmemory-samples 1 eviction is random and idle times say little of it, capture accesses instead"
    if facts.miss_ratio < _MISS_RATIO_MIN:
        return f"only {facts.miss_ratio:.2%} of the lookups miss, which is too little to tell what evicts"
    table = IdleTable.of(known.idle_ms, known.size_bytes)
    problem = _too_young(table) or _unsteady(evidence, table, facts)
    if problem is not None:
        return problem
    curve = passive_curve(table, facts, evidence.mean_entry_bytes, seed, evidence.window_parts)
    return PassiveWorkload(
        curve.mixture, curve.replicates, curve, f"idle times of {len(known)} random residents", _notes(known, evidence)
    )


def _too_young(table: IdleTable) -> str | None:
    oldest_s = table.quantile_s(0.98)
    if oldest_s >= _AGE_MIN_S:
        return None
    return (
        f"keys leave {oldest_s:.0f} s after their last use, {_AGE_MIN_S:.0f} s are the least that a clock of whole "
        "seconds can tell apart, capture accesses instead"
    )


def _unsteady(evidence: Evidence, table: IdleTable, facts: ResidentFacts) -> str | None:
    spread = miss_logit_spread(evidence.window_parts)
    if spread is not None and spread > _SPREAD_MAX:
        counts = np.array([part for part in evidence.window_parts if part[0] > 0], dtype=np.float64)
        ratios = counts[:, 1] / counts[:, 0]
        return (
            f"the workload comes in bursts: parts of the window missed between {ratios.min():.1%} and "
            f"{ratios.max():.1%} of the lookups, so one moment's idle times do not tell it; capture accesses, or wait"
        )
    against = contradiction(table, facts)
    if abs(against) > _CONTRADICTION_MAX:
        more = "more" if against > 0 else "fewer"
        return (
            f"the workload was not steady: idle times suggest clearly {more} misses than were counted; capture "
            "accesses, or wait for a window as long as keys live"
        )
    return None


def _notes(known: ResidentSample, evidence: Evidence) -> tuple[str, ...]:
    notes = []
    if known.cost_us is not None:
        notes.append(
            f"looking at the cache took {known.cost_us / 1000:.1f} ms of server time, no accesses were captured"
        )
    if miss_logit_spread(evidence.window_parts) is None:
        notes.append("only one window was seen, so whether the workload is steady is not known; more looks narrow this")
    return tuple(notes)
