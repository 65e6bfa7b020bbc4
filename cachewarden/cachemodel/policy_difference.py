"""How much another eviction policy would hit above or below LRU at the same memory, by replaying a small copy of the
cache.

A spatial sample of the keys is replayed through Redis's own eviction with memory scaled alike (miniature simulation,
Waldspurger et al., ATC'17), once under LRU and once under the wanted policy. Where the replay begins matters more than
anything else: from the sampled residents if there are any, from the capture's own first half if it is long enough, else
from a drawn past (`prehistory`).

INVARIANT: the difference of a configuration to itself is exactly 0 within a group, so only real differences are
reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.eviction import EvictionConfig, ResidentSet, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.prehistory import with_past
from cachewarden.cachemodel.shards import MODULUS
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.knobs import EvictionPolicy

__all__ = ["PolicyDifference", "policy_difference"]

_REFERENCE: EvictionPolicy = "allkeys-lru"
_GROUPS = 4
_TOO_FEW = "the access sample holds too few keys to compare eviction policies, sample at a higher rate"
# Accesses of a thinned capture below which the groups compare nothing but a few keys.
_THINNED_MIN = 200
_ACCESSES_MIN = 2000
# Drawing and replaying this many accesses takes about half a second.
_ACCESSES_MAX = 400_000
_PAST_LIFETIMES = 4.0
# New keys start with a counter of 5, so LFU tells keys apart only after that many decay times.
_LFU_DECAY_TIMES = 6
_PAST_MS_MIN = 300_000
_PAST_MS_MAX = 6 * 3_600_000
# A capture this many eviction ages long warms its own cache in its first half.
_SELF_WARMING_LIFETIMES = 4.0
_Z90 = 1.645
# A drawn past is steady and real popularity is not: over four published traces, what remained of a lead that LFU had
# after a drawn past lay between -0.4 and +0.7 of it. So only a quarter is believed, and the interval reaches from a
# loss to the whole.
_STEADY_BELIEF = 0.25
_STEADY_MARGIN = 0.75
_STEADY_LEVEL = 0.015


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """Hit ratio of the policy less that of LRU at the same memory, its 90 % margin, and how it was found."""

    value: float
    margin: float
    method: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What is replayed: a trace, what is resident before it, the share of the keys in it, and from when to count."""

    trace: AccessTrace
    initial: ResidentSet | None
    rate: float
    measure_from_ms: int
    method: str
    drawn_past: bool = False


def policy_difference(
    evidence: Evidence, mixture: PopularityMixture, wanted: CacheConfiguration, seed: int
) -> PolicyDifference | str:
    """Return the difference of `wanted` to allkeys-lru at the same maxmemory and TTL, or in words what is missing."""
    capacity = evidence.capacity_bytes(wanted)
    if evidence.trace is None or len(evidence.trace) < _ACCESSES_MIN:
        if wanted.family == "random" and wanted.ttl_ms is None:
            value = float(mixture.random_hit_ratio(capacity)[0] - mixture.lru_hit_ratio(capacity)[0])
            return PolicyDifference(value, 0.5 * abs(value), "closed form of random eviction", ())
        return f"`{wanted.eviction_policy}` cannot be told from LRU without an access sample, capture accesses"
    scene = _scene(evidence, mixture, wanted, capacity, seed)
    if scene is None:
        return _TOO_FEW
    differences = []
    for group in range(_GROUPS):
        part, residents = _group(scene, group)
        if len(part) == 0 or int(part.time_ms[-1]) < scene.measure_from_ms:
            continue
        indexed = index(part, residents)
        share = capacity * scene.rate / _GROUPS
        results = [
            replay_indexed(indexed, _eviction(evidence, wanted, policy, share), scene.measure_from_ms, seed + group)
            for policy in (_effective(wanted), _REFERENCE)
        ]
        if results[0].reads > 0:
            differences.append((results[0].hit_ratio - results[1].hit_ratio, results[0].reads))
    if len(differences) < 2:
        return _TOO_FEW
    return _summary(scene, wanted, differences)


def _summary(scene: _Scene, wanted: CacheConfiguration, differences: list[tuple[float, int]]) -> PolicyDifference:
    values = np.array([value for value, _ in differences])
    reads = np.array([count for _, count in differences], dtype=np.float64)
    value = float(np.average(values, weights=reads))
    margin = _Z90 * float(values.std(ddof=1)) / math.sqrt(len(values))
    notes: tuple[str, ...] = ()
    if scene.drawn_past:
        notes = ("the capture is shorter than the eviction age, so the replay began with a drawn, steady past",)
        if wanted.family == "lfu":
            margin = math.hypot(margin, _STEADY_MARGIN * abs(value) + _STEADY_LEVEL)
            if value > 0:
                value *= _STEADY_BELIEF
                notes += ("LFU's lead over a steady past is mostly not believed; capture for longer to know",)
    return PolicyDifference(value, margin, scene.method, notes)


def _effective(wanted: CacheConfiguration) -> EvictionPolicy:
    """Return the policy to replay; a volatile one is only asked for where every key has a TTL, so the rows may lack
    it.
    """
    names: dict[str, EvictionPolicy] = {"lfu": "allkeys-lfu", "random": "allkeys-random", "ttl": "volatile-ttl"}
    return names[wanted.family]


def _eviction(
    evidence: Evidence, wanted: CacheConfiguration, policy: EvictionPolicy, capacity: float
) -> EvictionConfig:
    return EvictionConfig(
        capacity_bytes=int(capacity),
        eviction_policy=policy,
        maxmemory_samples=min(64, wanted.maxmemory_samples),
        lfu_log_factor=wanted.lfu_log_factor,
        lfu_decay_time_min=wanted.lfu_decay_time_min,
        unknown_entry_bytes=max(1, round(evidence.mean_entry_bytes)),
    )


def _scene(
    evidence: Evidence, mixture: PopularityMixture, wanted: CacheConfiguration, capacity: float, seed: int
) -> _Scene | None:
    """Choose where the replay begins; None if hardly anything is left of a capture thinned to a replay of bounded
    size.
    """
    trace = evidence.trace
    assert trace is not None
    if wanted.ttl_ms is not None:
        trace = trace.with_ttl(wanted.ttl_ms)
    elif wanted.family == "ttl" and not np.any(trace.ttl_ms):
        # Keys are known to have TTLs but the capture does not say which; with equal TTLs the oldest load goes first.
        trace = trace.with_ttl(30 * 86_400_000)
    start_ms = int(trace.time_ms[0])
    if evidence.residents is not None and len(evidence.residents.key):
        return _Scene(trace, evidence.residents, evidence.sampling_rate, start_ms, "replay from sampled residents")
    lifetime_ms = float(mixture.characteristic_time_ms(capacity)[0])
    settling_ms = 60_000 * _LFU_DECAY_TIMES * wanted.lfu_decay_time_min if wanted.family == "lfu" else 0
    if trace.duration_ms >= max(_SELF_WARMING_LIFETIMES * lifetime_ms, 2 * settling_ms):
        half = start_ms + trace.duration_ms // 2
        return _Scene(trace, None, evidence.sampling_rate, half, "replay of the capture, first half to warm up")
    past_ms = int(min(max(_PAST_LIFETIMES * lifetime_ms, settling_ms, _PAST_MS_MIN), _PAST_MS_MAX))
    rate = evidence.sampling_rate
    # The capture may have been busier than the window that the lookups were counted in; its keys keep their pace.
    per_s = max(mixture.lookups_per_s * rate, 1000.0 * len(trace) / max(trace.duration_ms, 1))
    expected = per_s * past_ms / 1000.0 + len(trace)
    if expected > _ACCESSES_MAX:
        rate = max(rate * _ACCESSES_MAX / expected, 1.0 / MODULUS)
        trace = trace.thin(rate)
        if len(trace) < _THINNED_MIN:
            return None
    whole = with_past(trace, mixture, rate, past_ms, seed)
    return _Scene(whole, None, rate, start_ms, "replay of the capture after a drawn past", drawn_past=True)


def _group(scene: _Scene, group: int) -> tuple[AccessTrace, ResidentSet | None]:
    """Return one of the disjoint groups of keys, told apart by hash bits that the spatial filter does not use."""
    chosen = (scene.trace.key >> np.uint64(30)) % np.uint64(_GROUPS) == np.uint64(group)
    part = scene.trace.rows(chosen)
    initial = scene.initial
    if initial is None:
        return part, None
    kept = (initial.key >> np.uint64(30)) % np.uint64(_GROUPS) == np.uint64(group)
    frequency = None if initial.frequency is None else initial.frequency[kept]
    return part, ResidentSet(
        initial.key[kept], initial.size_bytes[kept], initial.idle_ms[kept], initial.remaining_ttl_ms[kept], frequency
    )
