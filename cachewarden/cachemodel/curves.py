"""What memory gives one cache: hit ratio by bytes, eviction age, working set, the worth of one more MiB, and the least
memory that reaches a goal.

It asks an `Inquiry` and puts its answers side by side; it proposes no size and weighs no other service
(`arbitration` does). Less memory never gives more hits, so answers that would say so are cut, from the operating point
on.

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
from cachewarden.cachemodel.prefix_curves import SharedCache
from cachewarden.cachemodel.whatif import Inquiry, Insufficient, Workload
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
_FLOOR = 0.015
_DIFFERENCE_ERROR = 0.5
"""As in `whatif`: model error that stays, and the part of a difference that may be wrong because real workloads are
not steady."""
_BORROWED_SLOPE_ERROR = 1.0
"""The same where the slope is LRU's and the eviction policy another."""
_AGE_ERROR = 0.15
"""Relative error of an eviction age, per doubling or halving of the memory."""
_WORKING_SET_ERROR = 0.08
"""Relative error of a working set: of four published traces nine in ten lay within it."""
_WINDOWS = 12
_LONGEST_MS = 1e11
"""Residence times beyond this mean that nothing is ever evicted."""


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
    evidence, now_bytes, fitted = basis.evidence, basis.now_bytes, basis.fitted
    found = _ladder(basis, _sizes(basis, _FACTORS))
    if isinstance(found, Insufficient):
        return found
    kept = [size for size, _, _ in found]
    now = kept.index(now_bytes)
    points = tuple(
        CurvePoint(size, ratio, _against(ratio, evidence.hit_ratio), age, stays_ms > fitted.mixture.horizon_ms)
        for (size, ratio, _), (age, stays_ms) in zip(found, _eviction_ages(basis, kept), strict=True)
    )
    ceiling = _level(basis, 0)
    return MemoryCurve(
        configuration=basis.shape,
        observed=evidence.hit_ratio,
        points=points,
        now=now,
        binding=diagnose(evidence),
        working_set=_working_sets(fitted),
        marginal=_marginal(basis),
        ceiling=None if isinstance(ceiling, str) else _raised(ceiling.hit_ratio, points[-1].hit_ratio),
        method=found[now][2].method,
        notes=(*basis.notes, *(note for note in found[now][2].notes if note not in basis.notes)),
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
    more = () if _replayed(basis.shape) else tuple(np.geomspace(*_SEARCHED, _SEARCH_STEPS))
    found = _ladder(basis, _sizes(basis, (*_FACTORS, *more)))
    if isinstance(found, Insufficient):
        return found
    searched = [size for size, _, _ in found]
    value, low, high = ([getattr(r, end) for _, r, _ in found] for end in ("value", "low", "high"))
    if value[0] >= target:
        reason = f"the least size that can be asked about, {searched[0]} bytes, is already enough"
        return MemoryForTarget(target, searched[0], searched[0], _crossing(searched, low, target), reason)
    least, may, surely = (_crossing(searched, level, target) for level in (value, high, low))
    if least is None:
        return MemoryForTarget(target, None, may, None, _unreachable(basis, target, value[-1], searched[-1]))
    reason = "" if surely is not None else f"no size up to {searched[-1]} bytes is sure to reach it"
    return MemoryForTarget(target, least, may, surely, reason)


@dataclass(frozen=True, slots=True, eq=False)
class _Basis:
    """What a curve is made from; `shared` only where prefixes live by different TTLs."""

    inquiry: Inquiry
    fitted: Workload
    shape: CacheConfiguration
    shared: SharedCache | None
    now_bytes: int
    notes: tuple[str, ...]

    @property
    def evidence(self) -> Evidence:
        return self.inquiry.evidence


@dataclass(frozen=True, slots=True)
class _Level:
    hit_ratio: Estimate
    method: str
    notes: tuple[str, ...]


def _basis(inquiry: Inquiry) -> _Basis | Insufficient:
    """Choose the configuration whose curve can be told: the present one or, where that refuses writes, allkeys-lru."""
    evidence, fitted = inquiry.evidence, inquiry.workload
    current = evidence.current
    if isinstance(fitted, str):
        return Insufficient(current, fitted)
    now_bytes = evidence.maxmemory_bytes or max(evidence.used_memory_bytes, 1)
    shared = inquiry.by_prefix
    if evidence.refuses(current) is not False:
        shape = replace(current, eviction_policy="allkeys-lru")
        words = f"the curve is that of allkeys-lru: which keys `{current.eviction_policy}` would keep no model can tell"
        return _Basis(inquiry, fitted, shape, shared, now_bytes, (words,))
    words = f"`{current.eviction_policy}` is replayed at every size; the slope of one MiB is LRU's"
    notes = (words,) if evidence.full and _replayed(current) else ()
    return _Basis(inquiry, fitted, current, shared, now_bytes, notes)


def _sizes(basis: _Basis, factors: Sequence[float]) -> list[int]:
    """Return sizes around the present one, with room for a few entries at least."""
    lowest = basis.evidence.fixed_overhead_bytes + 2 * math.ceil(basis.evidence.mean_entry_bytes)
    return sorted({basis.now_bytes, *(size for f in factors if (size := round(f * basis.now_bytes)) > lowest)})


def _level(basis: _Basis, maxmemory_bytes: int) -> _Level | str:
    """Return the hit ratio at a size (0 = unlimited), or in words why it is not known."""
    answer = basis.inquiry.ask([replace(basis.shape, maxmemory_bytes=maxmemory_bytes)])[0]
    if isinstance(answer, Insufficient):
        return answer.reason
    return _Level(answer.hit_ratio, answer.method, answer.notes)


def _replayed(configuration: CacheConfiguration) -> bool:
    return configuration.family not in ("lru", "noeviction")


def _binds(evidence: Evidence) -> bool:
    return evidence.full or (bool(evidence.evicted_per_s) and evidence.maxmemory_bytes > 0)


def _ladder(basis: _Basis, sizes: Sequence[int]) -> list[tuple[int, Estimate, _Level]] | Insufficient:
    """Return (size, hit ratio, level as told) of the sizes that can be answered, made monotone from the present one on.

    A size at which nothing is evicted is the present state, whatever the models say.
    """
    evidence, now_bytes = basis.evidence, basis.now_bytes
    observed = Estimate(evidence.hit_ratio, evidence.hit_ratio, evidence.hit_ratio)
    # Without eviction all memory beyond what is used is idle: the hit ratio there is the observed one.
    idle_from = math.inf if _binds(evidence) else max(min(evidence.used_memory_bytes / 0.97, now_bytes), 1)
    told = [(size, _level(basis, size)) for size in sizes]
    known = [(size, level) for size, level in told if not isinstance(level, str)]
    if now_bytes not in [size for size, _ in known]:
        return Insufficient(basis.shape, next(level for _, level in told if isinstance(level, str)))
    now = [size for size, _ in known].index(now_bytes)
    levels = [observed if size >= idle_from else level.hit_ratio for size, level in known]
    # A full cache that refuses writes is imagined under another eviction policy: then nothing was observed.
    if not (evidence.full and basis.shape != evidence.current):
        levels[now] = observed
    for i in range(now - 1, -1, -1):
        levels[i] = _capped(levels[i], levels[i + 1])
    for i in range(now + 1, len(levels)):
        levels[i] = _raised(levels[i], levels[i - 1])
    return [(size, level, as_told) for (size, as_told), level in zip(known, levels, strict=True)]


def _capped(level: Estimate, above: Estimate) -> Estimate:
    return Estimate(min(level.value, above.value), min(level.low, above.low), min(level.high, above.high))


def _raised(level: Estimate, below: Estimate) -> Estimate:
    return Estimate(max(level.value, below.value), max(level.low, below.low), max(level.high, below.high))


def _against(ratio: Estimate, observed: float) -> Estimate:
    return Estimate(ratio.value - observed, ratio.low - observed, ratio.high - observed)


def _eviction_ages(basis: _Basis, sizes: Sequence[int]) -> list[tuple[Estimate | None, float]]:
    """Return for each size the eviction age, and how long unread keys would stay (the TTL at most), milliseconds.

    Ages are the model's ratio to its age at the present size, times the measured age where there is one.
    """
    evidence, fitted, shape = basis.evidence, basis.fitted, basis.shape
    capacities = np.array([*sizes, basis.now_bytes], np.float64) - evidence.fixed_overhead_bytes
    if basis.shared is not None:
        ages = np.array([[basis.shared.whole(float(c)).residence_ms for c in capacities]])
        ages = np.where(ages >= _LONGEST_MS, math.inf, ages)
    else:
        ages = np.array([m.eviction_age_ms(capacities, shape.ttl_ms) for m in (fitted.mixture, *fitted.replicates)])
    stays = np.minimum(ages[0], math.inf if shape.ttl_ms is None or basis.shared is not None else shape.ttl_ms)
    measured = evidence.eviction_age_ms if shape == evidence.current else None
    if measured is not None and np.all(np.isfinite(ages[:, -1])):
        ages = ages * (measured / ages[:, -1:])
    found: list[tuple[Estimate | None, float]] = []
    for i, size in enumerate(sizes):
        age = None
        if shape.family == "lru" and _binds(evidence) and math.isfinite(ages[0, i]):
            logs = np.log(ages[np.isfinite(ages[:, i]), i])
            margin = math.hypot(_Z90 * float(logs.std()), _AGE_ERROR * abs(math.log2(size / basis.now_bytes)))
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


def _marginal(basis: _Basis) -> MarginalValue:
    evidence, fitted, shape = basis.evidence, basis.fitted, basis.shape
    if not _binds(evidence):
        nothing = Estimate(0.0, 0.0, 0.0)
        return MarginalValue(nothing, nothing, "nothing is evicted, so more memory would hold nothing more")
    before = max(basis.now_bytes - evidence.fixed_overhead_bytes, 0)
    sizes = np.array([before, before + MIB], np.float64)
    # Both ends of one replicate come from the same resampled keys, so what they have in common cancels out.
    if basis.shared is not None:
        gains = basis.shared.whole(float(sizes[1])).hits - basis.shared.whole(float(sizes[0])).hits
    else:
        missed = np.array([m.miss_ratio_curve(sizes, shape.ttl_ms) for m in (fitted.mixture, *fitted.replicates)])
        gains = missed[:, 0] - missed[:, 1]
    value, error = max(float(gains[0]), 0.0), _DIFFERENCE_ERROR
    method = "slope of the modelled curve at the present size, interval from replicates of both ends together"
    if _replayed(shape):
        # LRU's slope, for as much as there is left to win under the present policy.
        missed_by_lru = float(fitted.mixture.miss_ratio_curve(before, shape.ttl_ms)[0])
        value *= min(1.0, (1.0 - evidence.hit_ratio) / max(missed_by_lru, 1e-9))
        error, method = _BORROWED_SLOPE_ERROR, f"LRU's slope in place of `{shape.eviction_policy}`'s"
    ratio = Estimate.around(value, math.hypot(_Z90 * float(gains[1:].std()), error * value), 0.0, 1.0)
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


def _unreachable(basis: _Basis, target: float, best: float, searched_bytes: int) -> str:
    """Say in words why no size reaches a target."""
    evidence, mixture, shape = basis.evidence, basis.fitted.mixture, basis.shape
    if not _binds(evidence) and evidence.hit_ratio < target:
        return f"nothing is evicted, so memory cannot help: most misses are {diagnose(evidence).binding}"
    words = [f"up to {searched_bytes} bytes the hit ratio reaches {best:.3f}"]
    ceiling = _level(basis, 0)
    if not isinstance(ceiling, str) and ceiling.hit_ratio.value < target:
        words = [f"even unlimited memory is predicted to give {max(ceiling.hit_ratio.value, best):.3f} only"]
    # Compulsory misses bound every cache; what comes back after the evidence ends cannot be told from them.
    late = float(mixture.survival(mixture.horizon_ms)[0])
    words.append(
        f"{late:.3f} of the lookups are not asked again within the {mixture.horizon_ms / 1000:.0f} s of evidence"
    )
    if basis.shared is not None:
        words.append("prefixes with a TTL miss what comes back after it")
    elif shape.ttl_ms is not None:
        expire = 1.0 - mixture.cold - float(mixture.ttl_hit_ratio(shape.ttl_ms)[0])
        words.append(f"{max(expire, 0.0):.3f} come back after the TTL of {shape.ttl_ms / 1000:g} s")
    return ", ".join(words)
