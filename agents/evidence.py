"""From a snapshot to the evidence that the cache models read.

It translates and leaves out what was not measured; it estimates nothing. INVARIANT: a field that the snapshot lacks
is None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from agents.prefix_evidence import prefixes_of
from cachewarden.cachemodel.evidence import ResidentSample
from cachewarden.cachemodel.fills import fold_fills
from cachewarden.cachemodel.whatif import CacheConfiguration, Evidence, MissShares, TtlStats
from cachewarden.knobs import EVICTION_POLICIES
from cachewarden.messages import TtlRule
from cachewarden.observation import KeyspaceSample, Snapshot

__all__ = ["configuration_of", "evidence_of"]

_LOOKUPS_MIN = 500
"""Below that the hit ratio itself is uncertain by more than 2 points."""


def evidence_of(snapshot: Snapshot, in_force: tuple[TtlRule, ...] = ()) -> Evidence | str:
    """Return the evidence, or in words what is missing for any."""
    lookups = snapshot.hits + snapshot.misses
    if snapshot.hit_ratio is None or lookups < _LOOKUPS_MIN:
        return f"not enough evidence: {lookups} lookups in {snapshot.window_ms / 1000:.0f} s, {_LOOKUPS_MIN} are needed"
    if snapshot.resident_keys == 0:
        return "the cache is empty, there is nothing to learn from"
    entry_bytes = max(snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes, 1) / snapshot.resident_keys
    current = configuration_of({**snapshot.knobs, "maxmemory": str(snapshot.maxmemory_bytes)})
    if current is None:
        return f"the eviction policy `{snapshot.knobs.get('maxmemory-policy')}` is not known to the models"
    current = replace(current, ttl_ms=_common_ttl_ms(snapshot, in_force))
    sample, access = snapshot.sample, snapshot.access
    idle = None if sample is None else sample.idle_ms[sample.idle_ms >= 0]
    trace = None if access is None else fold_fills(access.trace, int(entry_bytes)).trace
    remaining = None if sample is None else sample.ttl_ms[sample.ttl_ms >= 0]
    return Evidence(
        lookups_per_s=snapshot.lookups_per_s,
        hit_ratio=snapshot.hit_ratio,
        maxmemory_bytes=snapshot.maxmemory_bytes,
        used_memory_bytes=snapshot.used_memory_bytes,
        fixed_overhead_bytes=snapshot.fixed_overhead_bytes,
        resident_keys=snapshot.resident_keys,
        mean_entry_bytes=entry_bytes,
        current=current,
        misses=_miss_shares(snapshot),
        idle_ms=None if idle is None or len(idle) == 0 else idle.astype(np.int64),
        eviction_age_ms=snapshot.eviction_age_ms,
        trace=trace,
        sampling_rate=1.0 if access is None else access.spatial_rate,
        ttl=TtlStats(
            key_share=snapshot.keys_with_ttl / snapshot.resident_keys,
            mean_remaining_ms=None if remaining is None or len(remaining) == 0 else float(remaining.mean()),
        ),
        evicted_per_s=snapshot.evicted_per_s,
        expired_per_s=snapshot.expired_per_s,
        refused_per_s=snapshot.refused_per_s,
        sampled=None if sample is None else _residents(sample, snapshot.cost.server_us),
        window_parts=snapshot.window_parts,
        prefixes=prefixes_of(snapshot, in_force),
    )


def _residents(sample: KeyspaceSample, cost_us: float) -> ResidentSample:
    """Return the sampled residents; the cost is that of the whole look, since the server cannot tell its parts."""
    return ResidentSample(
        idle_ms=sample.idle_ms.astype(np.int64),
        size_bytes=sample.size_bytes.astype(np.int64),
        ttl_ms=sample.ttl_ms.astype(np.int64),
        frequency=sample.frequency.astype(np.int32),
        cost_us=cost_us if cost_us > 0 else None,
    )


def configuration_of(knobs: Mapping[str, str]) -> CacheConfiguration | None:
    """Return the configuration that these knobs are, without a TTL; None for an eviction policy that no model knows.
    What the server does not tell is its default."""
    policy = knobs.get("maxmemory-policy")
    if policy not in EVICTION_POLICIES:
        return None
    return CacheConfiguration(
        maxmemory_bytes=_number(knobs, "maxmemory", 0),
        eviction_policy=policy,
        maxmemory_samples=_number(knobs, "maxmemory-samples", 5),
        lfu_log_factor=_number(knobs, "lfu-log-factor", 10),
        lfu_decay_time_min=_number(knobs, "lfu-decay-time", 1),
    )


def _number(knobs: Mapping[str, str], knob: str, default: int) -> int:
    text = knobs.get(knob, "")
    return int(text) if text.isdigit() else default


def _common_ttl_ms(snapshot: Snapshot, in_force: tuple[TtlRule, ...]) -> int | None:
    """Return the TTL that most keys live by, rules in force included; None where most have none or it was not seen."""
    in_force = tuple(rule for rule in in_force if not rule.unread_ms)
    if snapshot.keys_with_ttl < 0.5 * snapshot.resident_keys:
        return None
    extended = {rule.pattern: rule.extended_ttl_ms for rule in in_force}
    lives = [(p.resident_share, extended.get(p.pattern, p.written_ttl_ms)) for p in snapshot.patterns]
    seen = [(share, ttl_ms) for share, ttl_ms in lives if ttl_ms]
    if seen:
        return max(seen)[1]
    # Without declared patterns the longest remaining TTL of the sample is all that is known: a little below what is
    # written, by the chance of when the youngest sampled key was loaded.
    longest = -1 if snapshot.sample is None else int(snapshot.sample.ttl_ms.max(initial=-1))
    return longest if longest > 0 else None


def _miss_shares(snapshot: Snapshot) -> MissShares | None:
    split = snapshot.miss_split
    if split is None:
        return None
    total = split.cold + split.expired + split.evicted + split.refused
    if total <= 0:
        return None
    cold, expired, evicted = split.cold / total, split.expired / total, split.evicted / total
    return MissShares(cold, expired, evicted, max(0.0, 1.0 - cold - expired - evicted))
