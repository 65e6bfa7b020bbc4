"""Miss ratio curves by key pattern, from sampled residents whose pattern is known and the share of the lookups that
goes to each.

All keys of an LRU cache live by the same eviction age, so what was found of the whole cache (the age where eviction
begins, the risk beyond it) holds for each pattern, and its residents by idle time tell how its keys come again. How
often its keys are looked up at all no sample of residents shows; that takes a capture. It decides nothing.

INVARIANT: one curve or one reason per pattern, in the order given; no plain key name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cachewarden.cachemodel import popularity_fit as fit
from cachewarden.cachemodel.evidence import Evidence
from cachewarden.cachemodel.passive_curve import PassiveCurve
from cachewarden.cachemodel.passive_fit import ResidentFacts, ages_rows, class_bytes, pins
from cachewarden.cachemodel.passive_workload import passive_workload
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable
from cachewarden.cachemodel.residence import survival_area
from cachewarden.observation import KeyspaceSample, PatternStats

__all__ = ["PatternCurve", "passive_curves_by_pattern"]

_KEYS_MIN = 100
_REPLICATES = 8
_ITERATIONS = 400
_PIN = 4.0
# A pattern's share of the lookups comes from a short capture; more residents than its lookups allow by this factor
# contradict it.
_SURPLUS_MAX = 1.25


@dataclass(frozen=True, slots=True, eq=False)
class PatternCurve:
    """A pattern as if it had a cache of its own: `curve` over its bytes, which are now `curve.memory_bytes`.

    `hit_ratio_seen`: the curve's present hit ratio was captured; else it follows from idle times alone, which was six
    points off for a pattern of a flat popularity.
    """

    pattern: str
    curve: PassiveCurve
    lookups_per_s: float
    resident_keys: int
    hit_ratio_seen: bool


def passive_curves_by_pattern(
    evidence: Evidence, sample: KeyspaceSample, patterns: Sequence[PatternStats], seed: int
) -> dict[str, PatternCurve | str]:
    """Return a curve or the reason why there is none, for each declared pattern.

    `evidence` of the whole cache, whose trace is not used; `sample` the residents that it was made of; `patterns` with
    their `lookups_share` where a capture has shown it.
    """
    whole = passive_workload(replace(evidence, trace=None), seed)
    if isinstance(whole, str):
        return {one.pattern: whole for one in patterns}
    if whole.curve is None:
        return {one.pattern: "curves by pattern are not known where keys expire" for one in patterns}
    facts = ResidentFacts(
        evidence.resident_keys, evidence.lookups_per_s, 1.0 - evidence.hit_ratio, evidence.current.maxmemory_samples
    )
    known = sample.idle_ms >= 0
    age_s = max(IdleTable.of(sample.idle_ms[known]).quantile_s(1.0 - 1.0 / facts.samples), 0.5)
    found: dict[str, PatternCurve | str] = {}
    for number, one in enumerate(patterns):
        mine = known & (
            sample.pattern == (sample.patterns.index(one.pattern) if one.pattern in sample.patterns else -2)
        )
        found[one.pattern] = _of_pattern(one, evidence, sample, mine, facts, age_s, whole.curve.error, seed + number)
    return found


def _of_pattern(
    stats: PatternStats,
    evidence: Evidence,
    sample: KeyspaceSample,
    mine: np.ndarray[tuple[int], np.dtype[np.bool_]],
    whole: ResidentFacts,
    age_s: float,
    error: float,
    seed: int,
) -> PatternCurve | str:
    keys = int(mine.sum())
    if stats.lookups_share is None:
        return "how often its keys are looked up shows in no sample of residents, capture accesses once"
    if keys < _KEYS_MIN:
        return f"{keys} of its residents were sampled, {_KEYS_MIN} are needed, sample more keys"
    if stats.lookups_share <= 0:
        return "no lookups of it were captured, capture for longer"
    lookups_per_s = whole.lookups_per_s * stats.lookups_share
    residents = whole.resident_keys * keys / len(sample)
    facts = ResidentFacts(
        max(1, round(residents)),
        lookups_per_s,
        whole.miss_ratio if stats.hit_ratio is None else 1.0 - stats.hit_ratio,
        whole.samples,
        whole.risk_per_s,
    )
    table = IdleTable.of(sample.idle_ms[mine], sample.size_bytes[mine])
    young = float(table.counts[table.edges_s[1:] <= age_s].sum()) / keys * residents
    if young > _SURPLUS_MAX * lookups_per_s * age_s:
        return (
            f"it has more young residents ({young:.0f}) than its captured lookups can have touched "
            f"({lookups_per_s * age_s:.0f}), capture again"
        )
    mean_bytes = _mean_bytes(evidence, sample, mine)
    rng = np.random.default_rng(seed)
    seen = stats.hit_ratio is not None
    mixture, missed = _fitted(table, facts, age_s, mean_bytes, pinned=seen)
    replicates = tuple(
        _fitted(table.resampled(rng), facts, age_s, mean_bytes, pinned=seen)[0] for _ in range(_REPLICATES)
    )
    hit_ratio = 1.0 - (facts.miss_ratio if seen else missed)
    curve = PassiveCurve(
        mixture,
        replicates,
        tuple(drawn.sampled_lru_curve(facts.samples) for drawn in (mixture, *replicates)),
        mean_bytes * residents,
        hit_ratio,
        facts.samples,
        0.0,
        error if seen else math.hypot(error, error),
        min(1.0, keys / residents),
    )
    return PatternCurve(stats.pattern, curve, lookups_per_s, facts.resident_keys, seen)


def _mean_bytes(evidence: Evidence, sample: KeyspaceSample, mine: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float:
    """Return the mean entry of the pattern: its sampled sizes, scaled as those of all keys have to be."""
    sized = sample.size_bytes > 0
    if not np.any(sized & mine):
        return evidence.mean_entry_bytes
    scale = evidence.mean_entry_bytes / float(sample.size_bytes[sized].mean())
    return scale * float(sample.size_bytes[sized & mine].mean())


def _fitted(
    table: IdleTable, facts: ResidentFacts, age_s: float, mean_entry_bytes: float, *, pinned: bool
) -> tuple[PopularityMixture, float]:
    """Return the mixture of a pattern and the miss ratio that it has by it."""
    oldest_s = max(table.quantile_s(0.98), 1.0)
    rates = fit.log_rates(oldest_s * 100.0, 0.02)
    weight = _PIN * table.sampled_keys
    held = _total_pin(rates, age_s, facts, weight)
    rows = [ages_rows(table, rates, age_s, facts), held]
    if pinned:
        both = pins(rates, age_s, facts, weight)
        rows.append(fit.Rows(both.design[:1], both.counts[:1], both.design[0]))
    weights = fit.fit_weights(rows, weight, None, _ITERATIONS)
    entry_bytes = class_bytes(table, rates, weights, age_s, facts, mean_entry_bytes)
    mixture = PopularityMixture(rates, weights, entry_bytes, facts.lookups_per_s, oldest_s * 1000.0)
    risk = facts.risk_per_s
    return mixture, float((np.exp(-rates * age_s) * risk / (rates + risk)) @ weights)


def _total_pin(rates: Floats, age_s: float, facts: ResidentFacts, weight: float) -> fit.Rows:
    """Return the row that holds the mixture to the number of residents of the pattern, young and old."""
    old = np.exp(-rates * age_s) / (rates + facts.risk_per_s)
    design = ((survival_area(rates, age_s) + old) * (facts.lookups_per_s / facts.resident_keys) * weight)[None, :]
    return fit.Rows(design, np.array([weight]), design[0])
