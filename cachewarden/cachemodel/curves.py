"""What memory gives one cache: hit ratio by bytes, eviction age, working set, the worth of one more MiB, and the least
memory that reaches a goal.

It asks an `Inquiry` and puts its answers side by side; it proposes no size and weighs no other service
(`arbitration` does). Every point is what the same inquiry answers alone, but for one thing: less memory never gives
more hits, so answers that would say so are cut at the operating point's side.

INVARIANT: along rising memory no hit ratio and no end of its interval falls, and at the present size stands what was
observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cachewarden.cachemodel.diagnosis import Diagnosis, diagnose
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats
from cachewarden.cachemodel.whatif import Answer, Inquiry, Insufficient, Workload
from cachewarden.estimate import Estimate

__all__ = [
    "MIB",
    "CurvePoint",
    "MarginalValue",
    "MemoryCurve",
    "MemoryForTarget",
    "WorkingSet",
    "curve",
    "memory_for",
]

MIB = 1 << 20
_FACTORS = (0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
"""Of the present size."""
_SEARCHED = (0.02, 16.0)
_SEARCH_STEPS = 49
"""Where the least memory for a goal is looked for, if asking costs no replay."""
_Z90 = 1.645
_SLOPE_ERROR = 0.5
"""Part of a predicted slope that may be wrong because real workloads are not steady, as `whatif` has it for
differences."""
_BORROWED_SLOPE_ERROR = 1.0
"""The same where the slope is LRU's and the eviction policy another."""
_AGE_ERROR = 0.15
"""Relative error of an eviction age, per doubling or halving of the memory."""
_WORKING_SET_ERROR = 0.08
"""Relative error of a working set: of four published traces nine in ten lay within it."""
_WINDOWS = 12


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One size. `change` against the observed hit ratio. `eviction_age_ms` None: nothing is evicted there, or the
    eviction policy does not go by idle time. `extrapolated`: keys would stay for longer than the evidence reaches back.
    """

    maxmemory_bytes: int
    hit_ratio: Estimate
    change: Estimate
    eviction_age_ms: Estimate | None
    extrapolated: bool


@dataclass(frozen=True, slots=True)
class WorkingSet:
    """Distinct keys asked for within a window, and their memory as entries."""

    window_ms: int
    keys: Estimate
    size_bytes: Estimate


@dataclass(frozen=True, slots=True)
class MarginalValue:
    """What one more MiB gives: hits per second, and the difference of hit ratios; never below 0."""

    hits_per_s: Estimate
    hit_ratio: Estimate
    method: str


@dataclass(frozen=True, slots=True)
class MemoryForTarget:
    """The least maxmemory whose predicted hit ratio reaches `target`, between the least that may and the least that
    surely (95 %) does; `reason` says why one of them is None.
    """

    target: float
    maxmemory_bytes: int | None
    low_bytes: int | None
    high_bytes: int | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """All of it for one cache. `points` by rising memory, `now` the index of the present size; `ceiling` what unlimited
    memory would give (None: not known).
    """

    configuration: CacheConfiguration
    observed: float
    points: tuple[CurvePoint, ...]
    now: int
    binding: Diagnosis
    working_set: tuple[WorkingSet, ...]
    marginal: MarginalValue
    ceiling: Estimate | None
    method: str
    notes: tuple[str, ...]


def curve(inquiry: Inquiry) -> MemoryCurve | Insufficient:
    """Return the curve around the present size, or what is missing for one."""
    basis = _basis(inquiry)
    if isinstance(basis, Insufficient):
        return basis
    fitted, shape, notes = basis
    evidence, now_bytes = inquiry.evidence, _present_bytes(inquiry.evidence)
    lowest = evidence.fixed_overhead_bytes + 2 * math.ceil(evidence.mean_entry_bytes)
    sizes = sorted({now_bytes, *(s for f in _FACTORS if (s := round(f * now_bytes)) > lowest)})
    found = _ladder(inquiry, shape, sizes)
    if isinstance(found, Insufficient):
        return found
    kept = [size for size, _, _ in found]
    ages = _eviction_ages(evidence, fitted, shape, kept, now_bytes)
    points = tuple(
        CurvePoint(size, ratio, _against(ratio, evidence.hit_ratio), age, stays_ms > fitted.mixture.horizon_ms)
        for (size, ratio, _), (age, stays_ms) in zip(found, ages, strict=True)
    )
    ceiling = inquiry.ask([replace(shape, maxmemory_bytes=0)])[0]
    return MemoryCurve(
        configuration=shape,
        observed=evidence.hit_ratio,
        points=points,
        now=kept.index(now_bytes),
        binding=diagnose(evidence),
        working_set=_working_sets(fitted),
        marginal=_marginal(evidence, fitted, shape, now_bytes),
        ceiling=_raised(ceiling.hit_ratio, points[-1].hit_ratio) if isinstance(ceiling, Answer) else None,
        method=found[kept.index(now_bytes)][2].method,
        notes=notes,
    )


def memory_for(inquiry: Inquiry, target: float) -> MemoryForTarget | Insufficient:
    """Return the least memory that reaches a hit ratio, looked for between 2 % and 16 times the present size.

    Raises ValueError for a target outside 0..1 (both excluded).
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"a target hit ratio of `{target}` is impossible, use more than 0 and less than 1")
    basis = _basis(inquiry)
    if isinstance(basis, Insufficient):
        return basis
    fitted, shape, _ = basis
    evidence, now_bytes = inquiry.evidence, _present_bytes(inquiry.evidence)
    factors = _FACTORS if _replayed(shape) else tuple(np.geomspace(*_SEARCHED, _SEARCH_STEPS))
    lowest = evidence.fixed_overhead_bytes + 2 * math.ceil(evidence.mean_entry_bytes)
    sizes = sorted({now_bytes, *(s for f in (*_FACTORS, *factors) if (s := round(f * now_bytes)) > lowest)})
    found = _ladder(inquiry, shape, sizes)
    if isinstance(found, Insufficient):
        return found
    searched = [size for size, _, _ in found]
    value, low, high = ([getattr(r, end) for _, r, _ in found] for end in ("value", "low", "high"))
    if value[0] >= target:
        reason = f"the least size that can be asked about, {searched[0]} bytes, is already enough"
        return MemoryForTarget(target, searched[0], searched[0], _crossing(searched, low, target), reason)
    least, may, surely = (_crossing(searched, level, target) for level in (value, high, low))
    if least is None:
        return MemoryForTarget(
            target, None, may, None, _unreachable(inquiry, fitted, shape, target, value[-1], searched[-1])
        )
    reason = "" if surely is not None else f"no size up to {searched[-1]} bytes is sure to reach it"
    return MemoryForTarget(target, least, may, surely, reason)


def _basis(inquiry: Inquiry) -> tuple[Workload, CacheConfiguration, tuple[str, ...]] | Insufficient:
    """Return the workload, and the configuration whose curve can be told: the present one or, where that refuses
    writes, allkeys-lru."""
    evidence, fitted = inquiry.evidence, inquiry.workload
    current = evidence.current
    if isinstance(fitted, str):
        return Insufficient(current, fitted)
    if evidence.refuses(current) is not False:
        shape = replace(current, eviction_policy="allkeys-lru")
        words = f"the curve is that of allkeys-lru: which keys `{current.eviction_policy}` would keep no model can tell"
        return fitted, shape, (words,)
    if evidence.full and _replayed(current):
        words = f"`{current.eviction_policy}` is replayed at every size; the slope of one MiB is LRU's"
        return fitted, current, (words,)
    return fitted, current, ()


def _replayed(configuration: CacheConfiguration) -> bool:
    return configuration.family not in ("lru", "noeviction")


def _present_bytes(evidence: Evidence) -> int:
    """Return the size that shares are of: maxmemory or, without a limit, what is used."""
    return evidence.maxmemory_bytes or max(evidence.used_memory_bytes, 1)


def _binds(evidence: Evidence) -> bool:
    return evidence.full or (bool(evidence.evicted_per_s) and evidence.maxmemory_bytes > 0)


def _ladder(
    inquiry: Inquiry, shape: CacheConfiguration, sizes: Sequence[int]
) -> list[tuple[int, Estimate, Answer]] | Insufficient:
    """Return (size, hit ratio, answer) of the sizes that can be answered, made monotone from the present size on.

    A size at which nothing is evicted is the present state, whatever the models say.
    """
    evidence, now_bytes = inquiry.evidence, _present_bytes(inquiry.evidence)
    observed = evidence.hit_ratio
    # Without eviction all memory beyond what is used is idle: the hit ratio there is the observed one.
    idle_from = math.inf if _binds(evidence) else max(min(evidence.used_memory_bytes / 0.97, now_bytes), 1)
    frozen = evidence.full and shape != evidence.current
    asked = inquiry.ask([replace(shape, maxmemory_bytes=size) for size in sizes])
    answers = [(size, answer) for size, answer in zip(sizes, asked, strict=True) if isinstance(answer, Answer)]
    if now_bytes not in [size for size, _ in answers]:
        reasons = [answer.reason for answer in asked if isinstance(answer, Insufficient)]
        return Insufficient(shape, reasons[0])
    now = [size for size, _ in answers].index(now_bytes)
    levels = [answer.hit_ratio for _, answer in answers]
    if not frozen:
        levels[now] = Estimate(observed, observed, observed)
    for i, (size, _) in enumerate(answers):
        if size >= idle_from:
            levels[i] = Estimate(observed, observed, observed)
    for i in range(now - 1, -1, -1):
        levels[i] = _capped(levels[i], levels[i + 1])
    for i in range(now + 1, len(levels)):
        levels[i] = _raised(levels[i], levels[i - 1])
    return [(size, level, answer) for (size, answer), level in zip(answers, levels, strict=True)]


def _capped(level: Estimate, above: Estimate) -> Estimate:
    return Estimate(min(level.value, above.value), min(level.low, above.low), min(level.high, above.high))


def _raised(level: Estimate, below: Estimate) -> Estimate:
    return Estimate(max(level.value, below.value), max(level.low, below.low), max(level.high, below.high))


def _against(ratio: Estimate, observed: float) -> Estimate:
    return Estimate(ratio.value - observed, ratio.low - observed, ratio.high - observed)


def _eviction_ages(
    evidence: Evidence, fitted: Workload, shape: CacheConfiguration, sizes: Sequence[int], now_bytes: int
) -> list[tuple[Estimate | None, float]]:
    """Return for each size the eviction age, and how long unread keys would stay (the TTL at most), milliseconds.

    Ages are the model's ratio to its age at the present size, times the measured age where there is one.
    """
    overhead = evidence.fixed_overhead_bytes
    capacities = np.array([*sizes, now_bytes], np.float64) - overhead
    ages = np.array([m.eviction_age_ms(capacities, shape.ttl_ms) for m in (fitted.mixture, *fitted.replicates)])
    stays = np.minimum(ages[0], math.inf if shape.ttl_ms is None else shape.ttl_ms)
    measured = evidence.eviction_age_ms if shape == evidence.current else None
    if measured is not None and np.all(np.isfinite(ages[:, -1])):
        ages = ages * (measured / ages[:, -1:])
    found: list[tuple[Estimate | None, float]] = []
    for i, size in enumerate(sizes):
        age = None
        if shape.family == "lru" and math.isfinite(ages[0, i]):
            logs = np.log(ages[np.isfinite(ages[:, i]), i])
            margin = math.hypot(_Z90 * float(logs.std()), _AGE_ERROR * abs(math.log2(size / now_bytes)))
            value = float(ages[0, i])
            age = Estimate(value, value * math.exp(-margin), value * math.exp(margin))
        found.append((age, float(stays[i])))
    return found


def _working_sets(fitted: Workload) -> tuple[WorkingSet, ...]:
    """Return working sets from a second to as far as the evidence reaches back."""
    longest = max(fitted.mixture.horizon_ms, 2000.0)
    windows = np.unique(np.rint(np.geomspace(1000.0, longest, _WINDOWS)))
    keys = _spread(fitted, lambda mixture: mixture.working_set_keys(windows))
    held = _spread(fitted, lambda mixture: mixture.working_set_bytes(windows))
    return tuple(WorkingSet(int(w), k, b) for w, k, b in zip(windows, keys, held, strict=True))


def _spread(fitted: Workload, of: Callable[[PopularityMixture], Floats]) -> list[Estimate]:
    values = of(fitted.mixture)
    margins = _Z90 * np.std([of(replicate) for replicate in fitted.replicates], axis=0)
    return [
        Estimate.around(float(v), math.hypot(float(m), _WORKING_SET_ERROR * float(v)), 0.0)
        for v, m in zip(values, margins, strict=True)
    ]


def _marginal(evidence: Evidence, fitted: Workload, shape: CacheConfiguration, now_bytes: int) -> MarginalValue:
    if not _binds(evidence):
        nothing = Estimate(0.0, 0.0, 0.0)
        return MarginalValue(nothing, nothing, "nothing is evicted, so more memory would hold nothing more")
    before = max(now_bytes - evidence.fixed_overhead_bytes, 0)
    sizes = np.array([before, before + MIB], np.float64)

    def gain(mixture: PopularityMixture) -> float:
        missed = mixture.miss_ratio_curve(sizes, shape.ttl_ms)
        return float(missed[0] - missed[1])

    value, error = gain(fitted.mixture), _SLOPE_ERROR
    method = "slope of the modelled curve at the present size, interval from replicates of both ends together"
    if _replayed(shape):
        # LRU's slope, for as much as there is left to win under the present policy.
        missed_by_lru = float(fitted.mixture.miss_ratio_curve(before, shape.ttl_ms)[0])
        value *= min(1.0, (1.0 - evidence.hit_ratio) / max(missed_by_lru, 1e-9))
        error, method = _BORROWED_SLOPE_ERROR, f"LRU's slope in place of `{shape.eviction_policy}`'s"
    # Both ends of one replicate come from the same resampled keys, so what they have in common cancels out.
    spread = float(np.std([gain(replicate) for replicate in fitted.replicates]))
    ratio = Estimate.around(value, math.hypot(_Z90 * spread, error * value), 0.0, 1.0)
    per_s = evidence.lookups_per_s
    return MarginalValue(Estimate(ratio.value * per_s, ratio.low * per_s, ratio.high * per_s), ratio, method)


def _crossing(sizes: Sequence[int], levels: Sequence[float], target: float) -> int | None:
    """Return the least size at which a rising curve reaches the target, None where it never does."""
    for i, level in enumerate(levels):
        if level >= target:
            if i == 0:
                return sizes[0]
            share = (target - levels[i - 1]) / (level - levels[i - 1])
            return math.ceil(sizes[i - 1] * math.pow(sizes[i] / sizes[i - 1], share))
    return None


def _unreachable(
    inquiry: Inquiry, fitted: Workload, shape: CacheConfiguration, target: float, best: float, searched_bytes: int
) -> str:
    """Say in words why no size reaches a target."""
    evidence, mixture = inquiry.evidence, fitted.mixture
    if not _binds(evidence) and evidence.hit_ratio < target:
        binding = diagnose(evidence).binding
        return f"nothing is evicted, so memory cannot help: most misses are {binding}"
    words = [f"up to {searched_bytes} bytes the hit ratio reaches {best:.3f}"]
    ceiling = inquiry.ask([replace(shape, maxmemory_bytes=0)])[0]
    if isinstance(ceiling, Answer) and ceiling.hit_ratio.value < target:
        words = [f"even unlimited memory is predicted to give {max(ceiling.hit_ratio.value, best):.3f} only"]
    # Compulsory misses bound every cache; what comes back after the evidence ends cannot be told from them.
    late = float(mixture.survival(mixture.horizon_ms)[0])
    words.append(
        f"{late:.3f} of the lookups are not asked again within the {mixture.horizon_ms / 1000:.0f} s of evidence"
    )
    if shape.ttl_ms is not None:
        expire = 1.0 - mixture.cold - float(mixture.ttl_hit_ratio(shape.ttl_ms)[0])
        words.append(f"{max(expire, 0.0):.3f} come back after the TTL of {shape.ttl_ms / 1000:g} s")
    return ", ".join(words)
