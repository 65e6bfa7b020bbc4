"""What other memory sizes would give a full LRU cache, from idle times of random residents and counters alone.

Two things are weighed against each other in logits of the hit ratio, along the logarithm of the memory. The mixture
fitted to the idle times (`passive_fit`) says how the hit ratio of this cache changes; experience says how that of
caches does (`_USUAL_SLOPE`). The less steady the workload was, the less one moment's idle times say of other moments,
and the more experience counts; the interval is what the weighing leaves open. It decides nothing and draws only from
the seed that it is given.

INVARIANT: at the present memory the answer is the observed hit ratio, without doubt; with more memory it never falls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from cachewarden.cachemodel import popularity_fit as fit
from cachewarden.cachemodel.passive_fit import ResidentFacts, ages_rows, pins
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable
from cachewarden.estimate import Estimate

__all__ = ["PASSIVE_METHOD", "PassiveCurve", "contradiction", "miss_logit_spread", "passive_curve"]

PASSIVE_METHOD: Final = "observed hit ratio plus the passive curve"
"""How an answer of this curve says what it is. Its interval allows for an unsteady workload, so who scores it must not
allow for that once more."""
_REPLICATES = 12
_ITERATIONS = 300
# The miss ratio that idle times suggest is found by so many steps of its own fixed point.
_STEPS = 60
_Z90 = 1.645
# How the logit of the hit ratio usually grows with the logarithm of the memory: mean and standard deviation over real
# and synthetic workloads (`benchmarks/passive_accuracy.py`), a little steeper towards larger memories.
_USUAL_SLOPE = 0.56
_USUAL_BEND = 0.075
_USUAL_SPREAD = 0.28
_USUAL_SPREAD_OF_GROWTH = 0.40
# Standard deviation of the fitted slope beside the sampling error, of a workload that was seen to be steady, and of one
# of which only one window was seen.
_STEADY_ERROR = 0.10
_UNSEEN_ERROR = 0.14
# What each logit of unsteadiness adds to it.
_UNSTEADY_ERROR = 1.6
# Idle times do not show keys that were evicted, so the error of the slope grows with the logarithm of the growth.
_GROWTH_ERROR = 0.9
# Contradiction that a steady workload shows by chance.
_CONTRADICTION_BY_CHANCE = 0.2
# Hit ratios are kept this far from 0 and 1, where logits end.
_EDGE = 0.002


@dataclass(frozen=True, slots=True, eq=False)
class PassiveCurve:
    """Hit ratio over memory.

    `memory_bytes` and `hit_ratio` as they are now; `samples` the server's maxmemory-samples; `unsteadiness` in logits
    of the miss ratio; `error` standard deviation of the fitted slope without sampling, `sampled` share (0..1] of the
    residents that were looked at. `fitted`: (bytes, hit ratio) of the mixture and then of each replicate.
    """

    mixture: PopularityMixture
    replicates: tuple[PopularityMixture, ...]
    fitted: tuple[tuple[Floats, Floats], ...]
    memory_bytes: float
    hit_ratio: float
    samples: int
    unsteadiness: float
    error: float
    sampled: float

    def at(self, capacity_bytes: float, samples: int | None = None) -> Estimate:
        """Return the hit ratio at a capacity for entries (> 0), and with other maxmemory-samples (at least 2) if given.

        Raises ValueError for a capacity of 0 or less.
        """
        if capacity_bytes <= 0:
            raise ValueError(f"a capacity of `{capacity_bytes}` bytes holds nothing, ask for more than 0")
        distance = math.log(capacity_bytes / self.memory_bytes)
        fitted, *others = (self._step(one, capacity_bytes) for one in self.fitted)
        drawn = np.array(others)
        chance = float(drawn.std(ddof=1)) * math.sqrt(max(0.0, 1.0 - self.sampled))
        unit = max(abs(distance), 0.01)
        doubt = math.hypot(chance / unit, self.error, _GROWTH_ERROR * max(distance, 0.0))
        spread = _USUAL_SPREAD_OF_GROWTH if distance > 0 else _USUAL_SPREAD
        trust = spread**2 / (spread**2 + doubt**2)
        step = trust * fitted + (1.0 - trust) * (_USUAL_SLOPE + _USUAL_BEND * distance) * distance
        # More memory never hurts LRU beyond what its sampling does.
        step = max(step, 0.0) if distance > 0 else min(step, 0.0)
        margin = _Z90 * math.sqrt(trust) * doubt * abs(distance)
        if samples is not None and samples != self.samples:
            then = self.mixture.sampled_lru_curve(max(samples, 2))
            other = _at(then, capacity_bytes) - _at(self.fitted[0], capacity_bytes)
            step, margin = step + other, math.hypot(margin, 0.5 * other)
        level = _logit(self.hit_ratio)
        low, value, high = (_ratio(level + step + sign * margin) for sign in (-1.0, 0.0, 1.0))
        if step == 0.0 and margin == 0.0:
            return Estimate(self.hit_ratio, self.hit_ratio, self.hit_ratio)
        return Estimate(value, min(low, value), max(high, value))

    def age_ms(self, capacity_bytes: float) -> float:
        """Return how long an unused key would stay at a capacity for entries."""
        return float(self.mixture.characteristic_time_ms(capacity_bytes)[0])

    def _step(self, fitted: tuple[Floats, Floats], capacity_bytes: float) -> float:
        return _at(fitted, capacity_bytes) - _at(fitted, self.memory_bytes)


def passive_curve(
    table: IdleTable,
    facts: ResidentFacts,
    mean_entry_bytes: float,
    seed: int,
    looks: tuple[tuple[int, int], ...] = (),
) -> PassiveCurve:
    """Fit the curve of a full cache under LRU.

    `looks`: (lookups, misses) of consecutive parts of the window that `facts` are counted in, by which the workload is
    seen to be steady or not; fewer than three say nothing. Raises ValueError where `passive_fit.fit_residents` does.
    """
    rng = np.random.default_rng(seed)

    def fitted(counted: IdleTable) -> PopularityMixture:
        return PopularityMixture.from_idle_times(
            counted,
            facts.resident_keys,
            facts.lookups_per_s,
            facts.miss_ratio,
            samples=facts.samples,
            mean_entry_bytes=mean_entry_bytes,
        )

    mixture = fitted(table)
    replicates = tuple(fitted(table.resampled(rng)) for _ in range(_REPLICATES))
    spread = miss_logit_spread(looks)
    against = max(0.0, abs(contradiction(table, facts)) - _CONTRADICTION_BY_CHANCE)
    unsteadiness = max(against, 0.0 if spread is None else spread)
    return PassiveCurve(
        mixture,
        replicates,
        tuple(one.sampled_lru_curve(facts.samples) for one in (mixture, *replicates)),
        mean_entry_bytes * facts.resident_keys,
        1.0 - facts.miss_ratio,
        facts.samples,
        unsteadiness,
        math.hypot(_UNSEEN_ERROR if spread is None else _STEADY_ERROR, _UNSTEADY_ERROR * unsteadiness),
        min(1.0, table.sampled_keys / facts.resident_keys),
    )


def miss_logit_spread(looks: tuple[tuple[int, int], ...]) -> float | None:
    """Return the standard deviation of the logit of the miss ratio between parts of a window, less what chance makes of
    it; None below three parts with lookups.
    """
    counts = np.array([look for look in looks if look[0] > 0], dtype=np.float64).reshape(-1, 2)
    if len(counts) < 3:
        return None
    ratio = np.clip(counts[:, 1] / counts[:, 0], _EDGE, 1.0 - _EDGE)
    chance = float(np.mean(1.0 / (counts[:, 0] * ratio * (1.0 - ratio))))
    seen = float(np.var(np.log(ratio / (1.0 - ratio)), ddof=1))
    return math.sqrt(max(0.0, seen - chance))


def contradiction(table: IdleTable, facts: ResidentFacts) -> float:
    """Return by how many logits the miss ratio that the idle times alone suggest lies above the counted one.

    Idle times tell of the last eviction age, counters of the window: where the two differ, the workload was not steady.
    """
    age_s = max(table.quantile_s(1.0 - 1.0 / facts.samples), 0.5)
    rates = fit.log_rates(max(table.quantile_s(0.98), 1.0) * 100.0, 0.02)
    weight = 4.0 * table.sampled_keys
    both, seen = pins(rates, age_s, facts, weight), ages_rows(table, rates, age_s, facts)
    # Only the young: how many are old depends on the misses that were counted.
    clean = max(1, int(np.searchsorted(table.edges_s, age_s, side="right")) - 1)
    rows = [
        fit.Rows(seen.design[:clean], seen.counts[:clean], seen.design[:clean].sum(axis=0)),
        fit.Rows(both.design[1:], both.counts[1:], both.design[1]),
    ]
    weights = fit.fit_weights(rows, weight, None, _ITERATIONS)
    beyond, missed = np.exp(-rates * age_s) * weights, 0.5
    for _ in range(_STEPS):
        risk = facts.samples * facts.lookups_per_s * missed / facts.resident_keys
        missed = float((beyond * risk / (rates + risk)).sum())
    return _logit(missed) - _logit(facts.miss_ratio)


def _at(curve: tuple[Floats, Floats], capacity_bytes: float) -> float:
    return _logit(float(np.interp(capacity_bytes, *curve)))


def _logit(ratio: float) -> float:
    clipped = min(max(ratio, _EDGE), 1.0 - _EDGE)
    return math.log(clipped / (1.0 - clipped))


def _ratio(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
