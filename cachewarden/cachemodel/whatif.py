"""What hit ratio would another memory size, eviction policy, LFU parameter or TTL give: answered from evidence, with an
interval.

It never applies anything and never answers beyond its evidence: `Insufficient` says what is missing. The answer is the
*observed* hit ratio plus the difference that the models see between two configurations, since errors of differences are
several times smaller than errors of levels; only a cache that has stopped accepting writes is judged by the model
alone.

INVARIANT: one result per candidate, in order, and the same evidence and seed give the same results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from cachewarden.cachemodel.answer_margins import beyond, change_margins, level_margin, residual_share
from cachewarden.cachemodel.capture_replay import CaptureReplay
from cachewarden.cachemodel.diagnosis import Binding, Diagnosis, diagnose
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, MissShares, TtlStats
from cachewarden.cachemodel.levels import (
    Levels,
    OneLifetime,
    OwnLifetimes,
    changed_ttls,
    own_lifetimes,
    with_lifetimes,
)
from cachewarden.cachemodel.passive_curve import PASSIVE_METHOD, PassiveCurve
from cachewarden.cachemodel.passive_workload import IDLE_KEYS_MIN, passive_workload
from cachewarden.cachemodel.policy_difference import PolicyDifference, policy_difference
from cachewarden.cachemodel.popularity import Anchor, PopularityMixture
from cachewarden.cachemodel.popularity_fit import IdleTable, ReuseTable
from cachewarden.cachemodel.prefix_curves import SharedCache
from cachewarden.estimate import Estimate

__all__ = [
    "Answer",
    "Binding",
    "CacheConfiguration",
    "Diagnosis",
    "Evidence",
    "Inquiry",
    "Insufficient",
    "MissShares",
    "TtlStats",
    "Workload",
    "diagnose",
    "evaluate",
    "workload",
]

# What a capture or an idle sample must hold at least; below that the bootstrap itself is not to be trusted.
_ACCESSES_MIN = 2000
_REPLICATES = 16
# 5 % and 95 % of a normal distribution.
_Z90 = 1.645
# Of that the answer says so in words.
_LEVEL_OFF = 0.08
# Keys that would leave sooner than this are not told apart by idle times of whole seconds.
_PASSIVE_AGE_MIN_S = 3.0


@dataclass(frozen=True, slots=True)
class Insufficient:
    """No answer, and what is missing for one."""

    candidate: CacheConfiguration
    reason: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The predicted hit ratio of a candidate, `baseline` as observed, the method in words, and what to know about
    it.
    """

    candidate: CacheConfiguration
    hit_ratio: Estimate
    baseline: float
    method: str
    notes: tuple[str, ...] = ()

    @property
    def change(self) -> Estimate:
        """Return the predicted change of the observed hit ratio."""
        return Estimate(
            self.hit_ratio.value - self.baseline,
            self.hit_ratio.low - self.baseline,
            self.hit_ratio.high - self.baseline,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """The fitted mixture, its bootstrap replicates, and where it comes from; `passive` the curve over memory where it
    comes from idle times of a full cache; `captured` whether it comes from accesses and not from residents.
    """

    mixture: PopularityMixture
    replicates: tuple[PopularityMixture, ...]
    source: str
    passive: PassiveCurve | None = None
    notes: tuple[str, ...] = ()
    captured: bool = True


def evaluate(evidence: Evidence, candidates: Sequence[CacheConfiguration], seed: int) -> list[Answer | Insufficient]:
    """Answer for each candidate configuration; see the module for what is promised."""
    return Inquiry(evidence, seed).ask(candidates)


class Inquiry:
    """Evidence whose workload is fitted once, to be asked as often as one likes; the same question gets the same
    answer.
    """

    def __init__(self, evidence: Evidence, seed: int) -> None:
        self._evidence = evidence
        self._seed = seed
        self._answers: dict[CacheConfiguration, Answer | Insufficient] = {}
        # Where prefixes live by different TTLs each row has its own, and the cache as a whole none.
        self._lived = own_lifetimes(evidence)
        self._capture = CaptureReplay(self._lived or evidence, seed)

    @cached_property
    def _fitted(self) -> Workload | str:
        """The workload, fitted when the first question needs it."""
        return workload(self._evidence, self._seed)

    @cached_property
    def shared(self) -> SharedCache:
        """The prefixes, fitted."""
        return SharedCache(self._lived or self._evidence, self._seed)

    @cached_property
    def by_prefix(self) -> SharedCache | None:
        """The prefixes where they live by different TTLs, so that answers rest on them; None where one TTL will do."""
        if self._lived is None:
            return None
        shared = SharedCache(self._lived, self._seed, as_lru=True) if self.shared.reason else self.shared
        return shared if shared.lifetimes_differ else None

    @cached_property
    def _subject(self) -> _Subject | str:
        if self.by_prefix is not None and self._lived is not None:
            if self.by_prefix.unknown:
                return f"the prefixes live by different TTLs, and {self.by_prefix.unknown}"
            levels_by_prefix = OwnLifetimes(self.by_prefix, self._evidence)
            return _Subject(self._evidence, levels_by_prefix, self._policy_difference)
        fitted = self._fitted
        if isinstance(fitted, str):
            return fitted
        levels = OneLifetime(self._evidence, fitted.mixture, fitted.replicates, fitted.source)
        return _Subject(self._evidence, levels, self._policy_difference, fitted.captured, fitted.notes)

    def _policy_difference(self, wanted: CacheConfiguration) -> PolicyDifference | str:
        if isinstance(self._fitted, str):
            return self._fitted
        evidence = self._evidence
        if self.by_prefix is not None and self._lived is not None:
            own = with_lifetimes(evidence.prefixes, changed_ttls(evidence, wanted))
            evidence, wanted = replace(self._lived, trace=own), replace(wanted, ttl_ms=None, prefix_ttls_ms=())
        return policy_difference(evidence, self._fitted.mixture, wanted, self._seed)

    @cached_property
    def _base(self) -> _Modelled | str | None:
        evidence = self._evidence
        if isinstance(self._subject, str):
            return None
        if evidence.full and self._subject.levels.refuses(evidence.current) is True:
            return None
        return _modelled(self._subject, evidence.current)

    @property
    def evidence(self) -> Evidence:
        """Return what the answers rest on."""
        return self._evidence

    @property
    def workload(self) -> Workload | str:
        """Return the fitted workload, or in words why there is none."""
        return self._fitted

    def ask(self, candidates: Sequence[CacheConfiguration]) -> list[Answer | Insufficient]:
        """Answer for each candidate, in order."""
        for candidate in candidates:
            if candidate not in self._answers:
                self._answers[candidate] = self._answer(candidate)
        return [self._answers[candidate] for candidate in candidates]

    def _answer(self, candidate: CacheConfiguration) -> Answer | Insufficient:
        if (evidence := self._evidence).trace is None and _has_room(evidence, candidate):
            certain = Estimate(evidence.hit_ratio, evidence.hit_ratio, evidence.hit_ratio)
            return Answer(candidate, certain, evidence.hit_ratio, "nothing is evicted, so memory does not bind")
        replayed = self.replayed(candidate, evidence.current)
        if replayed is not None:
            # A capture that warms its own caches needs no model.
            now = evidence.hit_ratio
            return Answer(candidate, _shifted(now, replayed), now, self._capture.method)
        subject = self._subject
        if isinstance(subject, str):
            return Insufficient(candidate, subject)
        if isinstance(subject.levels, OneLifetime):
            if candidate.prefix_ttls_ms:
                return Insufficient(candidate, "all prefixes live by one TTL, ask about that one")
            fitted = self._fitted
            passive = None if isinstance(fitted, str) else fitted.passive
            if passive is not None and candidate.family == "lru" and candidate.ttl_ms is None:
                return _passive_answer(evidence, subject.notes, subject.levels.source, passive, candidate)
        return _answer(subject, self._base, candidate)

    def replayed(self, candidate: CacheConfiguration, base: CacheConfiguration) -> Estimate | None:
        """Return the hit ratio of `candidate` less that of `base` as the capture itself shows it, without a model; None
        where it does not. TTLs other than the present ones it never shows.
        """
        if self._lived is None:
            asked = candidate.prefix_ttls_ms or base.prefix_ttls_ms
            return None if asked else self._capture.difference(candidate, base)
        if changed_ttls(self._evidence, candidate) or changed_ttls(self._evidence, base):
            return None
        return self._capture.difference(replace(candidate, ttl_ms=None), replace(base, ttl_ms=None))

    @property
    def usual_hit_ratio(self) -> float | None:
        """Return what the present configuration would have hit over the captured past, which is longer than the window
        of the observed hit ratio; None where the capture does not tell.
        """
        return self._capture.hit_ratio((self._lived or self._evidence).current)


def _has_room(evidence: Evidence, candidate: CacheConfiguration) -> bool:
    """Say whether the candidate only gives more room to a cache that has evicted nothing and stays below its limit."""
    now = evidence.current
    larger = candidate.maxmemory_bytes == 0 or 0 < now.maxmemory_bytes <= candidate.maxmemory_bytes
    idle = evidence.evicted_per_s == 0.0 and not evidence.full
    return idle and larger and replace(candidate, maxmemory_bytes=now.maxmemory_bytes) == now


def _shifted(level: float, difference: Estimate) -> Estimate:
    """Return a level plus a difference, within 0..1."""
    value, low, high = (
        min(max(level + part, 0.0), 1.0) for part in (difference.value, difference.low, difference.high)
    )
    return Estimate(value, low, high)


def workload(evidence: Evidence, seed: int) -> Workload | str:
    """Fit the workload to the best sample there is, or say in words why there is none."""
    if evidence.lookups_per_s <= 0:
        return "the cache has no lookups in the window, observe for longer"
    if evidence.mean_entry_bytes <= 0 or evidence.resident_keys <= 0:
        return "the cache is empty, there is nothing to learn from"
    if evidence.trace is not None and len(evidence.trace) >= _ACCESSES_MIN and evidence.trace.duration_ms > 0:
        return _from_capture(evidence, seed)
    if evidence.looked_at is not None:
        return _from_idle(evidence, seed)
    return f"neither {_ACCESSES_MIN} captured accesses nor {IDLE_KEYS_MIN} idle times are known, take an access sample"


def _from_capture(evidence: Evidence, seed: int) -> Workload:
    assert evidence.trace is not None
    rng = np.random.default_rng(seed)
    table = ReuseTable.of(evidence.trace, evidence.capture_end_ms)
    expected = None if evidence.all_accesses is None else evidence.all_accesses * evidence.sampling_rate
    anchor, idle = None, None
    eviction_binds = evidence.misses is None or evidence.misses.expired + evidence.misses.refused < 0.1
    lru_like = evidence.current.family == "lru" and evidence.refuses(evidence.current) is False
    if evidence.full and lru_like and evidence.current.ttl_ms is None and eviction_binds:
        # A full LRU cache shows what lies beyond the capture: how many keys it holds, and how often even that is not
        # enough.
        anchor = Anchor(evidence.resident_keys, 1.0 - evidence.hit_ratio)
        if evidence.idle_ms is not None and len(evidence.idle_ms) >= IDLE_KEYS_MIN:
            idle = IdleTable.of(evidence.idle_ms)

    def fit(counted: ReuseTable, start: PopularityMixture | None) -> PopularityMixture:
        return PopularityMixture.from_reuse_table(
            counted,
            evidence.lookups_per_s,
            expected_accesses=expected,
            mean_entry_bytes=evidence.mean_entry_bytes,
            anchor=anchor,
            idle=idle,
            start=start,
        )

    mixture = fit(table, None)
    replicates = tuple(fit(table.resampled(rng), mixture) for _ in range(_REPLICATES))
    return Workload(mixture, replicates, f"reuse times of a capture of {table.duration_s:.0f} s")


def _from_idle(evidence: Evidence, seed: int) -> Workload | str:
    found = passive_workload(evidence, seed)
    if isinstance(found, str):
        return found
    return Workload(found.mixture, found.replicates, found.source, found.curve, found.notes, captured=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Subject:
    """What is asked: the model of the cache under LRU, and what tells other eviction policies from it."""

    evidence: Evidence
    levels: Levels
    policy_difference: Callable[[CacheConfiguration], PolicyDifference | str]
    captured: bool = True
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class _Modelled:
    """The modelled hit ratio of a configuration, one value per replicate beside it, and what qualifies it."""

    value: float
    replicates: tuple[float, ...]
    policy: PolicyDifference | None
    ages_ms: tuple[tuple[float, float], ...]
    notes: tuple[str, ...]


def _modelled(subject: _Subject, wanted: CacheConfiguration) -> _Modelled | str:
    """Return the modelled hit ratio of a configuration, or in words why the evidence cannot carry one."""
    evidence, levels = subject.evidence, subject.levels
    refuses = levels.refuses(wanted)
    capacity = evidence.capacity_bytes(wanted)
    notes: list[str] = []
    if refuses is None:
        return f"some keys may have a TTL and others not, `{wanted.eviction_policy}` then depends on which; sample TTLs"
    if refuses and not levels.fits(capacity, wanted):
        return f"a full cache under `{wanted.eviction_policy}` keeps what it happened to hold, which no model can tell"
    if capacity <= 0:
        return f"maxmemory of `{wanted.maxmemory_bytes}` leaves no room for entries"
    value, *replicates = levels.hit_ratios(capacity, wanted).tolist()
    difference = None
    if wanted.family not in ("lru", "noeviction") and math.isfinite(capacity):
        found = subject.policy_difference(wanted)
        if isinstance(found, str):
            return found
        difference = found
        notes.extend(found.notes)
        value += found.value
        replicates = [replicate + found.value for replicate in replicates]
    if wanted.maxmemory_samples < 3 and wanted.family in ("lru", "lfu"):
        notes.append("below 3 samples eviction comes close to random, which is not counted here")
    ages_ms = levels.decisive_ages_ms(capacity, wanted)
    return _Modelled(value, tuple(replicates), difference, ages_ms, tuple(notes))


def _answer(subject: _Subject, base: _Modelled | str | None, candidate: CacheConfiguration) -> Answer | Insufficient:
    evidence, levels = subject.evidence, subject.levels
    wanted = _modelled(subject, candidate)
    if isinstance(wanted, str):
        return Insufficient(candidate, wanted)
    observed = evidence.hit_ratio
    notes = [*subject.notes, *wanted.notes]
    if isinstance(base, _Modelled):
        # However far the model's level is off: a difference of levels is less wrong than the level itself, and the
        # interval holds by how much it is off.
        residual = (observed - base.value) * residual_share(evidence, candidate)
        value = wanted.value + residual
        spread = np.std([ours - theirs for ours, theirs in zip(wanted.replicates, base.replicates, strict=True)])
        missed = abs(observed - base.value)
        of_change = change_margins(evidence, candidate, value - observed, missed, captured=subject.captured)
        margin_parts = [_Z90 * float(spread), *of_change]
        method = f"observed hit ratio plus modelled difference, from {levels.source}"
        if missed > _LEVEL_OFF:
            notes.append(f"the model gives {base.value:.3f} for the current configuration, which has {observed:.3f}")
    else:
        value = wanted.value
        margin_parts = [_Z90 * float(np.std(wanted.replicates)), level_margin(captured=subject.captured)]
        method = f"modelled hit ratio as such, from {levels.source}"
        if base is None:
            notes.append("the cache refuses writes now, so what it holds says nothing about its workload")
        else:
            notes.append(f"the current configuration is not modelled: {base}")
    if wanted.policy is not None:
        method += f"; eviction policy by {wanted.policy.method}"
        margin_parts.append(wanted.policy.margin)
    margin_parts.append(beyond(levels.horizon_ms, wanted.ages_ms))
    longest_ms = max((age_ms for age_ms, _ in wanted.ages_ms), default=0.0)
    if longest_ms > levels.horizon_ms:
        told_s = min(longest_ms, 1e12) / 1000
        notes.append(f"residence of {told_s:.0f} s is beyond the {levels.horizon_ms / 1000:.0f} s of the evidence")
    return Answer(
        candidate,
        Estimate.around(min(max(value, 0.0), 1.0), math.hypot(*margin_parts), 0.0, 1.0),
        observed,
        method,
        tuple(notes),
    )


def _passive_answer(
    evidence: Evidence, fit_notes: tuple[str, ...], source: str, curve: PassiveCurve, candidate: CacheConfiguration
) -> Answer | Insufficient:
    if (refuses := evidence.refuses(candidate)) is not False:
        why = "takes no key without a TTL" if refuses else "may take some keys only"
        return Insufficient(candidate, f"`{candidate.eviction_policy}` {why}, idle times do not tell what that gives")
    capacity = evidence.capacity_bytes(candidate)
    if math.isinf(capacity):
        return Insufficient(
            candidate, "what a cache without limit hits lies beyond what its residents show, name a size"
        )
    if capacity <= 0:
        return Insufficient(candidate, f"maxmemory of `{candidate.maxmemory_bytes}` leaves no room for entries")
    age_s = curve.age_ms(capacity) / 1000.0
    if age_s < _PASSIVE_AGE_MIN_S:
        reason = f"keys would leave {age_s:.1f} s after their last use, which a clock of whole seconds cannot tell"
        return Insufficient(candidate, f"{reason}, capture accesses instead")
    # The cache may stand a little below its limit: what a candidate adds to the limit, it adds to what is held.
    now = evidence.capacity_bytes(evidence.current)
    found = curve.at(curve.memory_bytes * capacity / now, candidate.maxmemory_samples)
    notes = [*fit_notes]
    if capacity > 2.0 * now:
        notes.append("residents show nothing of keys that were evicted, so growth beyond double is mostly experience")
    method = f"{PASSIVE_METHOD}, from {source}"
    return Answer(candidate, found, evidence.hit_ratio, method, tuple(notes))
