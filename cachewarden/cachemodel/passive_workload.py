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
from cachewarden.cachemodel.passive_ttl import ExpiryFacts, ttl_mixture, ttl_problem
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import IdleTable

__all__ = ["IDLE_KEYS_MIN", "PassiveWorkload", "passive_workload"]

IDLE_KEYS_MIN = 200
"""Below that the bootstrap itself is not to be trusted."""
# The clock of idle times counts whole seconds.
_AGE_MIN_S = 10.0
_TTL_SHARE_MAX = 0.05
_MISS_RATIO_MIN = 0.002
_TTL_REPLICATES = 8
# Logits of the miss ratio between parts of the window, and between idle times and counters. Beyond these the error
# grew past two points on the traces of `benchmarks/passive_accuracy.py`.
_SPREAD_MAX = 0.35
_CONTRADICTION_MAX = 0.45


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
        # Nine of ten counters stand at their start, docs/adr/0010.
        return (
            "under LFU the server keeps frequency counters instead of idle times, and most residents are used too "
            "seldom to be told apart by them; capture accesses or attach the client feed"
        )
    known = residents.rows(residents.idle_ms >= 0)
    if len(known) < IDLE_KEYS_MIN:
        return f"the idle times of {len(known)} residents are known, {IDLE_KEYS_MIN} are needed, sample more keys"
    if evidence.current.family != "lru" or evidence.refuses(evidence.current) is not False:
        return "idle times tell the workload only of a full cache under an LRU policy, capture accesses instead"
    if evidence.ttl is None:
        return "whether keys expire is not known, without which idle times do not tell the workload, look once more"
    if evidence.ttl.key_share > _TTL_SHARE_MAX:
        return _under_expiry(evidence, known, seed)
    return _under_eviction(evidence, known, seed)


def _under_expiry(evidence: Evidence, known: ResidentSample, seed: int) -> PassiveWorkload | str:
    """Return the workload of a cache whose keys all expire, and are evicted or not."""
    share = 1.0 if evidence.ttl is None else evidence.ttl.key_share
    if share < 1.0 - _TTL_SHARE_MAX:
        return (
            f"{share:.0%} of the keys expire and the others do not, idle times cannot tell them apart by rate; capture"
        )
    ttl_ms = evidence.current.ttl_ms
    problem = ttl_problem(known, ttl_ms, evidence.hit_ratio)
    if problem is not None or ttl_ms is None:
        return problem or "with which TTL keys are written is not known"
    evicted, expired = evidence.evicted_per_s, evidence.expired_per_s
    if evicted is None or expired is None or evicted + expired <= 0:
        return "how many keys expire and how many are evicted was not counted, look once more"
    counters = ResidentFacts(
        evidence.resident_keys, evidence.lookups_per_s, 1.0 - evidence.hit_ratio, evidence.current.maxmemory_samples
    )
    if counters.miss_ratio < _MISS_RATIO_MIN:
        return f"only {counters.miss_ratio:.2%} of the lookups miss, which is too little to tell what expires"
    table = IdleTable.of(known.idle_ms, known.size_bytes)
    problem = _too_young(table) or _bursty(evidence)
    if problem is not None:
        return problem
    rng = np.random.default_rng(seed)
    facts = ExpiryFacts(counters, ttl_ms, evicted / (evicted + expired))
    mixture = ttl_mixture(table, facts, evidence.mean_entry_bytes)
    replicates = tuple(
        ttl_mixture(table.resampled(rng), facts, evidence.mean_entry_bytes) for _ in range(_TTL_REPLICATES)
    )
    source = f"idle times of {len(known)} random residents that expire after {ttl_ms / 1000:.0f} s"
    told = f"of the keys that leave, {1.0 - facts.evicted_share:.0%} expire and {facts.evicted_share:.0%} are evicted"
    return PassiveWorkload(mixture, replicates, None, source, (told, *_notes(known, evidence)))


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
    problem = _too_young(table) or _bursty(evidence) or _contradicted(table, facts)
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


def _bursty(evidence: Evidence) -> str | None:
    spread = miss_logit_spread(evidence.window_parts)
    if spread is not None and spread > _SPREAD_MAX:
        counts = np.array([part for part in evidence.window_parts if part[0] > 0], dtype=np.float64)
        ratios = counts[:, 1] / counts[:, 0]
        return (
            f"the workload comes in bursts: parts of the window missed between {ratios.min():.1%} and "
            f"{ratios.max():.1%} of the lookups, so one moment's idle times do not tell it; capture accesses, or wait"
        )
    return None


def _contradicted(table: IdleTable, facts: ResidentFacts) -> str | None:
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
