"""What the requests of one simulated service are like, and which hit ratio they give at any size and eviction policy.

Popularity is Zipf over a universe of keys, cut into classes of rates; hit ratios are the closed forms of
`cachewarden.cachemodel` (Che's approximation for LRU, Fricker et al. 2012 for random, the hottest keys for LFU), worked
out once per load over a grid of sizes. It decides nothing and draws nothing.

INVARIANT: more memory never gives a lower hit ratio.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise

import numpy as np

from cachewarden.cachemodel.popularity import PopularityMixture

__all__ = ["LoadModel", "hit_ratio", "universe_bytes"]

_CLASSES = 48
_SIZES = 40
_STALE_SHARE = 0.6
"""Hit ratio of a full cache that may evict nothing, relative to LRU: it keeps what came first."""
_VOLATILE_SHARE = 0.9
"""Hit ratio of a policy that may evict only keys with a TTL, relative to the same over all keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadModel:
    """`keys` > 0 in the universe, `skew` of Zipf, `entry_bytes` of memory each, `once_share` (0..1) of the lookups for
    keys that never come again, `ttl_share` (0..1) of the keys written with a TTL, `ttl_gain` (0..1) the share of the
    misses that longer TTLs avoid, `lfu_bonus` (-1..1) the share of LRU's misses that LFU avoids beyond the model."""

    keys: int
    skew: float
    entry_bytes: int = 1_000
    once_share: float = 0.02
    ttl_share: float = 0.0
    ttl_gain: float = 0.0
    lfu_bonus: float = 0.0


def universe_bytes(load: LoadModel) -> int:
    """Return the memory that all keys of the universe take together."""
    return load.keys * load.entry_bytes


@lru_cache(maxsize=65_536)
def hit_ratio(load: LoadModel, eviction_policy: str, maxmemory_bytes: int, *, extended: bool = False) -> float:
    """Return the hit ratio (0..1) once the cache has settled; `maxmemory_bytes` 0 is no limit.

    `extended`: whether a TTL rule is in force.
    """
    everything = universe_bytes(load)
    size = everything if maxmemory_bytes <= 0 else min(maxmemory_bytes, everything)
    family = eviction_policy.rpartition("-")[2]
    full = 0 < maxmemory_bytes < everything
    lru = _at(_curves(load)["lru"], size)
    ratio = lru
    if full and (family == "noeviction" or (eviction_policy.startswith("volatile") and load.ttl_share <= 0.0)):
        ratio = _STALE_SHARE * lru
    elif full:
        ratio = _at(_curves(load)[family if family in ("lru", "lfu") else "random"], size)
        if family == "lfu":
            ratio = lru + (1.0 - lru) * load.lfu_bonus if load.lfu_bonus else ratio
        if eviction_policy.startswith("volatile"):
            ratio *= _VOLATILE_SHARE
    expired = load.ttl_gain if not extended else 0.0
    return min(max(ratio - (1.0 - load.once_share) * ratio * expired, 0.0), 1.0)


Curve = tuple[tuple[float, ...], tuple[float, ...]]
"""Logarithms of sizes, and hit ratios."""


def _at(curve: Curve, size_bytes: int) -> float:
    logs, ratios = curve
    place = math.log(max(size_bytes, 1))
    index = bisect_right(logs, place)
    if index == 0:
        return ratios[0]
    if index == len(logs):
        return ratios[-1]
    share = (place - logs[index - 1]) / (logs[index] - logs[index - 1])
    return ratios[index - 1] + share * (ratios[index] - ratios[index - 1])


@cache
def _curves(load: LoadModel) -> Mapping[str, Curve]:
    mixture = _mixture(load)
    everything = universe_bytes(load)
    sizes = np.geomspace(max(everything / 1_000.0, load.entry_bytes), everything, _SIZES)
    logs = tuple(float(x) for x in np.log(sizes))
    found = {
        "lru": mixture.lru_hit_ratio(sizes),
        "lfu": mixture.lfu_hit_ratio(sizes),
        "random": mixture.random_hit_ratio(sizes),
    }
    return {name: (logs, tuple(float(r) for r in np.maximum.accumulate(ratio))) for name, ratio in found.items()}


def _mixture(load: LoadModel) -> PopularityMixture:
    """Return the load at 1,000 lookups per second; hit ratios do not depend on how many there are."""
    edges = np.unique(np.geomspace(1, load.keys + 1, _CLASSES).astype(np.int64))
    weights, rates = [load.once_share], [0.0]
    ranks = np.arange(1, load.keys + 1, dtype=np.float64) ** -load.skew
    popularity = (1.0 - load.once_share) * ranks / ranks.sum()
    for low, high in reversed(list(pairwise(edges))):
        share = float(popularity[low - 1 : high - 1].sum())
        weights.append(share)
        rates.append(1_000.0 * share / float(high - low))
    total = sum(weights)
    return PopularityMixture(
        rates_per_s=np.array(rates),
        weights=np.array([w / total for w in weights]),
        entry_bytes=np.full(len(rates), float(load.entry_bytes)),
        lookups_per_s=1_000.0,
        horizon_ms=3_600_000.0,
    )
