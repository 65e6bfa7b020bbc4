"""From idle times of random residents to the weights of a popularity mixture, for a full cache under LRU as the server
approximates it.

It decides how residents are counted, never what they mean for another size (`passive_curve` does). Where a lookup
comes again after more than `a` with probability P(a), residents idle for a number lookups per second * P(a) * S(a) per
second of age. S is 1 up to the age where eviction begins and then falls exponentially, see
`residence.sampled_lru_curve`: the oldest 1/samples of the residents carry the trace of eviction, the others none. Two
facts are known without a sample: how many residents there are, and how often a lookup misses.

INVARIANT: the same table and facts give the same weights, and these sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel import popularity_fit as fit
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable
from cachewarden.cachemodel.residence import sampled_lru_curve, survival_area

__all__ = ["ResidentFacts", "ages_rows", "class_bytes", "eviction_age_s", "fit_residents", "pins"]

_ROUNDS = 4
# Few steps on purpose: EM that runs on fits the chance of a thousand keys. On eight workloads 400 steps were as good as
# 2,400 for steady ones and a third better for bursty ones.
_ITERATIONS = 100
# What each known fact is worth, in sampled keys per sampled key.
_PIN = 4.0
_GRID_POINTS = 96
# A class's mean entry is worth this many sampled keys of the mean of all.
_SIZE_PRIOR_KEYS = 20.0


@dataclass(frozen=True, slots=True)
class ResidentFacts:
    """What counters say: residents, lookups per second, misses per lookup (0..1), and maxmemory-samples.

    `shared_risk_per_s`: of a part of a cache, the risk that the whole cache is at; None where it is its own.
    """

    resident_keys: int
    lookups_per_s: float
    miss_ratio: float
    samples: int
    shared_risk_per_s: float | None = None

    @property
    def risk_per_s(self) -> float:
        """Return how likely a resident beyond the age where eviction begins is evicted in a second."""
        if self.shared_risk_per_s is not None:
            return self.shared_risk_per_s
        return self.samples * self.lookups_per_s * self.miss_ratio / self.resident_keys


def ages_rows(table: IdleTable, rates: Floats, age_s: float, facts: ResidentFacts) -> fit.Rows:
    """Return the rows of an idle histogram where eviction begins at `age_s`."""
    edges = table.edges_s[:, None]
    young = np.where(rates > 0, rates, 1.0)
    young = np.where(rates > 0, -np.expm1(-young * np.minimum(edges, age_s)) / young, np.minimum(edges, age_s))
    leaving = rates + facts.risk_per_s
    beyond = np.maximum(edges - age_s, 0.0)
    old = np.exp(-rates * age_s) * -np.expm1(-leaving * beyond) / leaving
    scale = table.sampled_keys / facts.resident_keys * facts.lookups_per_s
    design = scale * np.diff(young + old, axis=0)
    return fit.Rows(design, table.counts, design.sum(axis=0))


def pins(rates: Floats, age_s: float, facts: ResidentFacts, weight: float) -> fit.Rows:
    """Return rows that hold the mixture to the miss ratio and to the number of residents younger than `age_s`."""
    risk = facts.risk_per_s
    missed = np.exp(-rates * age_s) * risk / (rates + risk)
    young = survival_area(rates, age_s) * (facts.lookups_per_s / facts.resident_keys) / (1.0 - 1.0 / facts.samples)
    design = np.vstack([missed, young]) * weight
    return fit.Rows(design, np.array([facts.miss_ratio, 1.0]) * weight, design.sum(axis=0))


def eviction_age_s(rates: Floats, weights: Floats, facts: ResidentFacts, near_s: float) -> float:
    """Return the age where eviction begins in a cache of these residents, looked for around `near_s`."""
    ages = np.geomspace(near_s / 30.0, near_s * 30.0, _GRID_POINTS)
    one = np.ones(len(rates))
    held, _ = sampled_lru_curve(rates, facts.lookups_per_s * weights, weights, one, facts.samples, ages)
    return float(np.interp(facts.resident_keys, held, ages))


def fit_residents(table: IdleTable, rates: Floats, facts: ResidentFacts) -> tuple[Floats, float]:
    """Return the weights of `rates`, and the age in seconds where eviction begins.

    Raises ValueError unless there are residents, lookups and misses, and at least two samples per eviction.
    """
    if min(facts.resident_keys, facts.lookups_per_s, facts.miss_ratio) <= 0 or facts.samples < 2:
        raise ValueError("idle times tell something only of a cache with residents, misses and a choice of victims")
    age_s = max(table.quantile_s(1.0 - 1.0 / facts.samples), 0.5)
    weight = _PIN * table.sampled_keys
    weights = np.full(len(rates), 1.0 / len(rates))
    for _ in range(_ROUNDS):
        rows = [ages_rows(table, rates, age_s, facts), pins(rates, age_s, facts, weight)]
        weights = fit.fit_weights(rows, weight, weights, _ITERATIONS)
        age_s = eviction_age_s(rates, weights, facts, age_s)
    return weights, age_s


def class_bytes(
    table: IdleTable, rates: Floats, weights: Floats, age_s: float, facts: ResidentFacts, mean_entry_bytes: float
) -> Floats:
    """Return the mean entry bytes of each class, from the sizes of the keys in each bin.

    They are scaled so that the residents take `mean_entry_bytes` on average, which holds what MEMORY USAGE leaves out.
    """
    if table.sized_keys < 1:
        return np.full(len(rates), mean_entry_bytes)
    share = ages_rows(table, rates, age_s, facts).design * weights
    share /= np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    mean = float(table.bytes_.sum() / table.sized.sum())
    found: Floats = (table.bytes_ @ share + _SIZE_PRIOR_KEYS * mean) / (table.sized @ share + _SIZE_PRIOR_KEYS)
    expected = ages_rows(table, rates, age_s, facts).exposure * weights
    scaled: Floats = found * (mean_entry_bytes / float(found @ expected / expected.sum()))
    return scaled
