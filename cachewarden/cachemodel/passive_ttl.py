"""From idle times and remaining TTLs of random residents to the workload of a cache whose keys expire.

Every load gives the same TTL, and reads do not renew it. A key of rate r that was loaded and may stay idle for up to c
is resident and idle for a with density  exp(-r a) (1 + M(T - a)) / (1 + M(T))  per lookup of its class, where M(x) are
the hits between a load and age x (`residence.hits_per_load`; r x where nothing is evicted). That is linear in the
weights, as is the miss ratio, the sum of w / (1 + M(T)). It decides nothing about a configuration.

INVARIANT: a refusal says what is missing; the same table and facts give the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel import popularity_fit as fit
from cachewarden.cachemodel.evidence import ResidentSample
from cachewarden.cachemodel.passive_fit import ResidentFacts
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable
from cachewarden.cachemodel.residence import hits_per_load

__all__ = ["ExpiryFacts", "ttl_mixture", "ttl_problem"]

_ROUNDS = 3
_ITERATIONS = 120
_PIN = 4.0
_LIMITS = 24
_FASTEST_S = 0.02
# Of the keys that leave, evictions below this share leave no trace in idle times.
_EVICTED_SHARE_MIN = 0.02
# How much more often than even a short remaining TTL may be met; several TTLs at once exceed it.
_SHORT_SURPLUS = 0.1
_RENEWED_SHARE = 0.97
_CLOCK_MS = 2000
_TTL_MIN_MS = 10_000


@dataclass(frozen=True, slots=True)
class ExpiryFacts:
    """Counters, the TTL given at each load, and how much of what leaves the cache was evicted, 0..1."""

    counters: ResidentFacts
    ttl_ms: int
    evicted_share: float

    @property
    def evicts(self) -> bool:
        """Say whether eviction shapes what is resident."""
        return self.evicted_share >= _EVICTED_SHARE_MIN


def ttl_problem(sample: ResidentSample, ttl_ms: int | None, hit_ratio: float) -> str | None:
    """Return in words why the sample does not tell the workload of an expiring cache, None where it may."""
    has = sample.ttl_ms >= 0
    if not np.any(has):
        return "keys expire, and no remaining TTL was sampled, permit PTTL to the probe"
    remaining, idle = sample.ttl_ms[has], sample.idle_ms[has]
    longest = int(remaining.max())
    if ttl_ms is None:
        return "keys expire, and with which TTL they are written is not known, capture accesses or declare patterns"
    if ttl_ms < _TTL_MIN_MS:
        return f"a TTL of {ttl_ms} ms is too short for a clock of whole seconds, capture accesses instead"
    if longest > 1.1 * ttl_ms + _CLOCK_MS:
        return f"keys live by several TTLs, of {ttl_ms / 1000:.0f} s and of {longest / 1000:.0f} s, capture accesses"
    alike = np.abs(ttl_ms - remaining - idle) <= _CLOCK_MS
    if hit_ratio > 0.2 and float(alike.mean()) >= _RENEWED_SHARE:
        return "the TTL seems to be renewed by every access, which this model does not hold for, capture accesses"
    share = np.sort(np.minimum(remaining / ttl_ms, 1.0))
    surplus = np.arange(1, len(share) + 1) / len(share) - share
    if float(surplus.max()) > _SHORT_SURPLUS + 1.2 / np.sqrt(len(share)):
        return "more keys are about to expire than one TTL for all explains, they live by several; capture accesses"
    return None


def ttl_mixture(table: IdleTable, facts: ExpiryFacts, mean_entry_bytes: float) -> PopularityMixture:
    """Fit the workload; raises ValueError unless there are residents, lookups and misses."""
    known = facts.counters
    if min(known.resident_keys, known.lookups_per_s, known.miss_ratio) <= 0:
        raise ValueError("idle times tell something only of a cache with residents, lookups and misses")
    ttl_s = facts.ttl_ms / 1000.0
    rates = fit.log_rates(ttl_s * 100.0, _FASTEST_S)
    limit_s = min(table.quantile_s(0.98), ttl_s) if facts.evicts else ttl_s
    # Where keys are evicted the oldest 1/samples carry the trace of it, see `residence.sampled_lru_curve`.
    clean_s = table.quantile_s(1.0 - 1.0 / max(known.samples, 2)) if facts.evicts else ttl_s
    weights = np.full(len(rates), 1.0 / len(rates))
    weight = _PIN * table.sampled_keys
    for _ in range(_ROUNDS if facts.evicts else 1):
        rows = [_rows(table, rates, facts, limit_s, clean_s), _miss_pin(rates, facts, limit_s, weight)]
        weights = fit.fit_weights(rows, weight, weights, _ITERATIONS * (1 if facts.evicts else _ROUNDS))
        if facts.evicts:
            limit_s = _limit_s(rates, weights, facts)
    entry_bytes = np.full(len(rates), mean_entry_bytes)
    return PopularityMixture(rates, weights, entry_bytes, known.lookups_per_s, ttl_s * 1000.0)


def _hits(rates: Floats, limit_s: float, age_s: float) -> Floats:
    """Return the hits between a load and `age_s`, for each rate, at this idle limit."""
    if age_s <= 0:
        return np.zeros(len(rates))
    return rates * age_s if limit_s >= age_s else hits_per_load(np.array([limit_s]), rates, age_s)[0]


def _rows(table: IdleTable, rates: Floats, facts: ExpiryFacts, limit_s: float, clean_s: float) -> fit.Rows:
    ttl_s, known = facts.ttl_ms / 1000.0, facts.counters
    edges = np.minimum(table.edges_s, min(ttl_s, limit_s))
    bins = max(1, int(np.searchsorted(table.edges_s, clean_s, side="right")) - 1)
    whole = 1.0 + _hits(rates, limit_s, ttl_s)
    design = np.empty((bins, len(rates)))
    for i in range(bins):
        low, high = edges[i], edges[i + 1]
        young = np.where(rates > 0, rates, 1.0)
        area = np.where(rates > 0, np.exp(-rates * low) * -np.expm1(-young * (high - low)) / young, high - low)
        design[i] = area * (1.0 + _hits(rates, limit_s, ttl_s - 0.5 * (low + high))) / whole
    # Without eviction the number of residents is lookups * misses * TTL whatever the rates are; taking it from there
    # leaves out those that have expired and still wait to be reclaimed, which the sample does not show either.
    held = known.resident_keys if facts.evicts else known.lookups_per_s * known.miss_ratio * ttl_s
    design *= known.lookups_per_s * table.sampled_keys / held
    return fit.Rows(design, table.counts[:bins], design.sum(axis=0))


def _miss_pin(rates: Floats, facts: ExpiryFacts, limit_s: float, weight: float) -> fit.Rows:
    missed = 1.0 / (1.0 + _hits(rates, limit_s, facts.ttl_ms / 1000.0))
    design = missed[None, :] * weight
    return fit.Rows(design, np.array([facts.counters.miss_ratio * weight]), design.sum(axis=0))


def _limit_s(rates: Floats, weights: Floats, facts: ExpiryFacts) -> float:
    """Return the idle limit at which the mixture has as many residents as the cache."""
    ttl_s = facts.ttl_ms / 1000.0
    limits = np.geomspace(ttl_s / 200.0, ttl_s, _LIMITS)
    hits = hits_per_load(limits, rates, ttl_s)
    ratio = hits / (1.0 + hits)
    held = np.where(rates > 0, ratio / np.where(rates > 0, rates, 1.0), limits[:, None])
    keys = np.maximum.accumulate(held @ (facts.counters.lookups_per_s * weights))
    return float(np.interp(facts.counters.resident_keys, keys, limits))
