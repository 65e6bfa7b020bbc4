"""How long a key stays unused before the server throws it out: the eviction age, from sampled idle times.

Estimator. Under exact LRU in a steady state every resident key has been idle for at most the eviction age t, and the
density of residents at any idle time up to t is at least evictions/s (it falls towards exactly that, since whoever
reaches t is evicted). Hence, for the p-quantile q of the idle times of N evictable keys and E evictions per second: q
<= t <= q + (1 - p) N / E, and t <= N / E. We give the upper one, bounded by the largest idle time seen; it equals t
where the density is flat.

Limits. Idle times have a resolution of one second, so ages below a few seconds are coarse. Redis samples five keys
and evicts the most idle of them, so single keys live longer than t; the quantile leaves them out. Idle times are
meaningless under LFU, and for keys that were not touched since a switch from LFU; a sample that contradicts the flow
N / E by more than a factor of three gives None and the reason. Under random and TTL-ordered eviction there is no age
of this kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.observation import KeyspaceSample

__all__ = ["EvictionAge", "eviction_age"]

_QUANTILE = 0.98
_SAMPLE_KEYS_MIN = 30
_CONTRADICTION_FACTOR = 3.0
_LRU_LIKE = ("allkeys-lru", "volatile-lru", "allkeys-lrm", "volatile-lrm")


@dataclass(frozen=True, slots=True)
class EvictionAge:
    """`age_ms` or, where it is None, the reason why it is not known."""

    age_ms: int | None
    reason: str = ""


def eviction_age(
    sample: KeyspaceSample | None,
    eviction_policy: str | None,
    evicted_per_s: float,
    resident_keys: int | None,
    keys_with_ttl: int | None,
) -> EvictionAge:
    """Estimate the eviction age in milliseconds; `evicted_per_s` and the key counts are those of the same window."""
    if evicted_per_s <= 0.0:
        return EvictionAge(None, "nothing was evicted in the window")
    if eviction_policy not in _LRU_LIKE:
        return EvictionAge(None, f"eviction policy `{eviction_policy}` does not evict by idle time")
    if sample is None:
        return EvictionAge(None, "no keyspace sample")
    volatile = eviction_policy.startswith("volatile-")
    evictable = keys_with_ttl if volatile else resident_keys
    idle = sample.idle_ms[(sample.idle_ms >= 0) & ((sample.ttl_ms >= 0) | (not volatile))]
    if len(idle) < _SAMPLE_KEYS_MIN:
        return EvictionAge(None, f"only {len(idle)} sampled keys have an idle time, {_SAMPLE_KEYS_MIN} are needed")
    quantile_ms = float(np.quantile(idle, _QUANTILE))
    if not evictable:
        return EvictionAge(int(quantile_ms))
    turnover_ms = 1000.0 * evictable / evicted_per_s
    if quantile_ms > _CONTRADICTION_FACTOR * turnover_ms:
        idle_s, turnover_s = quantile_ms / 1000, turnover_ms / 1000
        return EvictionAge(
            None, f"idle times of {idle_s:.0f} s contradict a turnover of all keys in {turnover_s:.0f} s"
        )
    upper_ms = min(quantile_ms + (1.0 - _QUANTILE) * turnover_ms, float(idle.max()), turnover_ms)
    return EvictionAge(int(max(upper_ms, min(quantile_ms, turnover_ms))))
