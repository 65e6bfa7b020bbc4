"""Modelled hit ratios at any size and TTL: of a cache whose keys all live by one TTL, or of one whose prefixes live by
different ones.

It knows LRU only and no measurement of the cache itself: `whatif` adds what other eviction policies give, and takes
differences to what was observed. No single TTL stands for prefixes of which one expires within a minute and another
never: there the prefixes are added up (`prefix_curves`), else one mixture of all accesses tells it.

INVARIANT: less memory never gives more hits, and the same question gets the same answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, PrefixEvidence
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats
from cachewarden.cachemodel.prefix_curves import SharedCache
from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["Levels", "OneLifetime", "OwnLifetimes", "changed_ttls", "own_lifetimes", "with_lifetimes"]

_NEVER_MS = 1e11
"""Keys that would stay for longer are never evicted."""
_UNLIMITED_BYTES = 1e18


class Levels(Protocol):
    """A model of one cache under LRU. Capacities in bytes for entries, infinity without a limit."""

    @property
    def source(self) -> str:
        """Return in words what the model was fitted to."""

    @property
    def horizon_ms(self) -> float:
        """Return how far back the evidence reaches."""

    def hit_ratios(self, capacity_bytes: float, wanted: CacheConfiguration) -> Floats:
        """Return hit ratios [1 + replicates]: of the fit, and of each replicate of it."""

    def decisive_ages_ms(self, capacity_bytes: float, wanted: CacheConfiguration) -> tuple[tuple[float, float], ...]:
        """Return (age, share of the lookups) up to which reuses decide the answer: the eviction age or the TTL,
        whichever is shorter.
        """

    def fits(self, capacity_bytes: float, wanted: CacheConfiguration) -> bool:
        """Say whether everything that is alive at once fits with a tenth to spare, so that eviction never happens."""

    def refuses(self, wanted: CacheConfiguration) -> bool | None:
        """Say whether a full cache would refuse writes, as `Evidence.refuses`."""


@dataclass(frozen=True, slots=True, eq=False)
class OneLifetime:
    """One mixture of all accesses, under the one TTL of the configuration."""

    evidence: Evidence
    mixture: PopularityMixture
    replicates: tuple[PopularityMixture, ...]
    source: str

    @property
    def horizon_ms(self) -> float:
        """Return how far back the evidence reaches."""
        return self.mixture.horizon_ms

    def hit_ratios(self, capacity_bytes: float, wanted: CacheConfiguration) -> Floats:
        """Return hit ratios [1 + replicates]."""
        return np.array([_lru(m, capacity_bytes, wanted.ttl_ms) for m in (self.mixture, *self.replicates)])

    def decisive_ages_ms(self, capacity_bytes: float, wanted: CacheConfiguration) -> tuple[tuple[float, float], ...]:
        """Return the eviction age or the TTL, whichever is shorter, for all lookups."""
        unlimited = math.isinf(capacity_bytes)
        age_ms = math.inf if unlimited else float(self.mixture.characteristic_time_ms(capacity_bytes)[0])
        return ((min(age_ms, math.inf if wanted.ttl_ms is None else float(wanted.ttl_ms)), 1.0),)

    def fits(self, capacity_bytes: float, wanted: CacheConfiguration) -> bool:
        """Say whether eviction never happens."""
        if math.isinf(capacity_bytes):
            return True
        lifetime_ms = math.inf if wanted.ttl_ms is None else float(wanted.ttl_ms)
        return float(self.mixture.characteristic_time_ms(0.9 * capacity_bytes)[0]) >= min(lifetime_ms, _NEVER_MS)

    def refuses(self, wanted: CacheConfiguration) -> bool | None:
        """Say whether a full cache would refuse writes."""
        return self.evidence.refuses(wanted)


@dataclass(frozen=True, slots=True, eq=False)
class OwnLifetimes:
    """The prefixes of the cache, each under its own TTL unless the configuration gives it another."""

    shared: SharedCache
    evidence: Evidence

    @property
    def source(self) -> str:
        """Return in words what the model was fitted to."""
        trace = self.evidence.trace
        seconds = 0.0 if trace is None else trace.duration_ms / 1000.0
        return f"the prefixes, each under its own TTL, in a capture of {seconds:.0f} s"

    @property
    def horizon_ms(self) -> float:
        """Return how far back the evidence reaches."""
        return self.shared.horizon_ms

    def hit_ratios(self, capacity_bytes: float, wanted: CacheConfiguration) -> Floats:
        """Return hit ratios [1 + replicates]."""
        ttls = changed_ttls(self.evidence, wanted)
        return self.shared.whole(self._room(capacity_bytes, ttls), ttls).hits

    def decisive_ages_ms(self, capacity_bytes: float, wanted: CacheConfiguration) -> tuple[tuple[float, float], ...]:
        """Return the residence time of keys without a TTL, or the TTL if that is shorter, for each prefix."""
        ttls = changed_ttls(self.evidence, wanted)
        residence_ms = self.shared.whole(self._room(capacity_bytes, ttls), ttls).residence_ms
        lives = [(ttls.get(p.pattern, p.ttl_ms), p.lookups_share or 0.0) for p in self.evidence.prefixes]
        return tuple((residence_ms if ttl is None else min(residence_ms, float(ttl)), share) for ttl, share in lives)

    def fits(self, capacity_bytes: float, wanted: CacheConfiguration) -> bool:
        """Say whether eviction never happens."""
        room = 0.9 * capacity_bytes if math.isfinite(capacity_bytes) else _UNLIMITED_BYTES
        return self.shared.whole(room, changed_ttls(self.evidence, wanted)).residence_ms >= _NEVER_MS

    def refuses(self, wanted: CacheConfiguration) -> bool | None:
        """Say whether a full cache would refuse writes: what most keys live by does not make all of them volatile."""
        same = wanted.ttl_ms == self.evidence.current.ttl_ms
        return self.evidence.refuses(replace(wanted, ttl_ms=None) if same else wanted)

    def _room(self, capacity_bytes: float, ttls: Mapping[str, int | None]) -> float:
        """Return the memory that entries may grow to. Where nothing is evicted, keys that live as long as before need
        no more than there is, whatever the limit.
        """
        evidence = self.evidence
        binds = evidence.full or bool(evidence.evicted_per_s)
        if not (binds or ttls) and capacity_bytes >= self.shared.capacity_bytes:
            capacity_bytes = evidence.capacity_bytes(evidence.current)
        return min(capacity_bytes, _UNLIMITED_BYTES)


def own_lifetimes(evidence: Evidence) -> Evidence | None:
    """Return the evidence with the own TTL of each captured row, and none for the whole cache; None where all prefixes
    live by one.
    """
    if evidence.trace is None or len({p.ttl_ms for p in evidence.prefixes if p.trace is not None}) < 2:
        return None
    current = replace(evidence.current, ttl_ms=None)
    return replace(evidence, trace=with_lifetimes(evidence.prefixes, {}), current=current)


def changed_ttls(evidence: Evidence, wanted: CacheConfiguration) -> dict[str, int | None]:
    """Return the prefixes that a configuration gives another TTL, None = no TTL any more."""
    whole: dict[str, int | None] = {}
    if wanted.ttl_ms != evidence.current.ttl_ms:
        whole = {p.pattern: wanted.ttl_ms for p in evidence.prefixes}
    return {**whole, **dict(wanted.prefix_ttls_ms)}


def with_lifetimes(prefixes: Sequence[PrefixEvidence], ttls: Mapping[str, int | None]) -> AccessTrace:
    """Return the captured accesses of all prefixes in time order; rows carry the TTL that they were written with, else
    the usual one of their prefix, else the one that `ttls` gives to all rows of it.
    """
    parts = []
    for known in prefixes:
        trace = known.trace
        if trace is None or len(trace) == 0:
            continue
        if known.pattern in ttls:
            trace = trace.with_ttl(ttls[known.pattern] or 0)
        elif known.ttl_ms is not None:
            lives = np.where(trace.ttl_ms > 0, trace.ttl_ms, known.ttl_ms)
            trace = AccessTrace(trace.time_ms, trace.key, trace.op, trace.size_bytes, lives)
        parts.append(trace)
    if not parts:
        return AccessTrace.of([], [])
    order = np.argsort(np.concatenate([p.time_ms for p in parts]), kind="stable")
    names = ("time_ms", "key", "op", "size_bytes", "ttl_ms")
    return AccessTrace(*(np.concatenate([getattr(p, name) for p in parts])[order] for name in names))


def _lru(mixture: PopularityMixture, capacity: float, ttl_ms: int | None) -> float:
    if math.isinf(capacity):
        return 1.0 - mixture.cold if ttl_ms is None else float(mixture.ttl_hit_ratio(ttl_ms)[0])
    return float(1.0 - mixture.miss_ratio_curve(capacity, ttl_ms)[0])
