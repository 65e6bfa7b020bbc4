"""What each key prefix makes of the memory of one cache that all prefixes share.

Under LRU one residence time rules all keys: whoever is not asked for that long goes, whatever its prefix. So a prefix
holds b(T) bytes and hits h(T) of its lookups at residence time T, and T is the one at which the prefixes together fill
the cache (composition of AET curves, Hu et al., ATC'16). That says what each prefix has now, what it would have in a
smaller or larger cache, who would gain from more memory, and who fills it with what nobody reads. It proposes nothing.

What was measured of a prefix (hit ratio, share of the bytes) stands as it is; models only say how it changes. A prefix
whose accesses are too few gets no curve but the reason, and its measured bytes count as a fixed share.

INVARIANT: at every size the bytes of all prefixes add up to the memory for entries, and no hit ratio falls as the
cache grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel import residence
from cachewarden.cachemodel.evidence import Evidence, PrefixEvidence
from cachewarden.cachemodel.popularity import Anchor, PopularityMixture
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable, ReuseTable
from cachewarden.estimate import Estimate

__all__ = ["PrefixCurve", "PrefixPoint", "SharedCache", "WholeCache"]

_ACCESSES_MIN = 500
_IDLE_KEYS_MIN = 200
_REPLICATES = 8
_FACTORS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0)
_MIB = 1 << 20
_Z90 = 1.645
_FLOOR = 0.015
_DIFFERENCE_ERROR = 0.5
"""As in `whatif`: model error that stays, and the part of a difference that may be wrong."""
_STEP = 1.02
"""Growth of the cache over which the slopes of the prefixes are taken."""
_SCALE_MAX = 4.0
"""A prefix whose modelled bytes differ from the sampled ones by more than this is not understood."""
_ROOMY = 1e18
_MODELLED_MIN = 0.5
"""Share of the lookups whose prefixes must have a curve before the whole cache has one."""
_MATTERS = 0.03
"""Share of the lookups from which on a prefix with another TTL makes a difference."""
_POLLUTES_BYTES = 0.05
_POLLUTES_DENSITY = 0.25
"""A prefix pollutes if it surely holds so much of the memory and gives less than so much of the mean hits per byte."""


@dataclass(frozen=True, slots=True)
class PrefixPoint:
    """A prefix in a cache of `maxmemory_bytes`: the bytes that it holds there, and its hit ratio."""

    maxmemory_bytes: int
    held_bytes: int
    hit_ratio: Estimate


@dataclass(frozen=True, slots=True)
class PrefixCurve:
    """One prefix. `held_bytes` now; `hits_per_s_per_mib` hits per second over MiB held; `marginal_hits_per_s` what one
    more MiB given to this prefix alone would bring; `residence_ms` how long an unread key stays (None: not told);
    `reason` why there is no curve; `note` in words what stands out.
    """

    pattern: str
    lookups_share: float | None
    hit_ratio: Estimate | None
    bytes_share: Estimate | None
    held_bytes: int | None
    hits_per_s_per_mib: float | None
    marginal_hits_per_s: Estimate | None
    residence_ms: float | None
    points: tuple[PrefixPoint, ...]
    reason: str
    note: str


@dataclass(frozen=True, slots=True, eq=False)
class WholeCache:
    """All prefixes together: residence time of keys without a TTL, and hits per lookup [1 + replicates]. Prefixes
    without a curve contribute what was measured of them, or as much as the whole cache, the same at every size.
    """

    residence_ms: float
    hits: Floats


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A prefix with its fitted mixture first and the replicates after it; modelled bytes are multiplied by `scale`."""

    known: PrefixEvidence
    mixtures: tuple[PopularityMixture, ...]
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class _Division:
    """One size: residence time, and bytes and hit ratio [1 + replicates, parts]."""

    residence_ms: float
    held_bytes: Floats
    hits: Floats


class SharedCache:
    """The prefixes of one cache, fitted once; `reason` says why no curves can be told at all, empty where they can.

    `as_lru` imagines a cache that evicts by another rule as LRU: what was measured then says nothing about shares.
    """

    def __init__(self, evidence: Evidence, seed: int, *, as_lru: bool = False) -> None:
        self._evidence = evidence
        self._prefixes = evidence.prefixes
        self._capacity = _capacity(evidence)
        self._refused: dict[str, str] = {}
        self._parts: list[_Part] = []
        self.reason = _cannot(evidence, as_lru=as_lru)
        if not self.reason:
            rng = np.random.default_rng(seed)
            for known in self._prefixes:
                fitted = _fitted(evidence, known, rng, anchored=not as_lru)
                if isinstance(fitted, str):
                    self._refused[known.pattern] = fitted
                else:
                    self._parts.append(_Part(known, fitted, 1.0))
            if not as_lru:
                self._scale()

    @property
    def _fixed_hits(self) -> float:
        """Return the hits per lookup of prefixes that have no curve."""
        modelled = {part.known.pattern for part in self._parts}
        fixed = [known for known in self._prefixes if known.pattern not in modelled]
        ratios = [self._evidence.hit_ratio if known.hit_ratio is None else known.hit_ratio.value for known in fixed]
        return sum((known.lookups_share or 0.0) * ratio for known, ratio in zip(fixed, ratios, strict=True))

    @property
    def fixed_share(self) -> float:
        """Return the share of the memory held by prefixes that have no curve."""
        modelled = {part.known.pattern for part in self._parts}
        held = [k.bytes_share.value for k in self._prefixes if k.bytes_share and k.pattern not in modelled]
        return min(sum(held), 1.0)

    def curves(self) -> tuple[PrefixCurve, ...]:
        """Return one entry per prefix, those with the most hits per MiB first, then those that cannot be told."""
        now = self._divide(self._capacity) if self._parts else None
        grown = self._divide(self._capacity * _STEP) if self._parts else None
        sizes = self._sizes()
        divisions = [self._divide(capacity) for _, capacity in sizes] if self._parts else []
        order = {part.known.pattern: i for i, part in enumerate(self._parts)}
        found = []
        for known in self._prefixes:
            i = order.get(known.pattern)
            if i is None or now is None or grown is None:
                found.append(self._without_model(known))
                continue
            points = tuple(
                PrefixPoint(size, round(float(d.held_bytes[0, i])), self._level(known, now, d, i))
                for (size, _), d in zip(sizes, divisions, strict=True)
            )
            marginal = self._marginal(known, now, grown, i)
            held = round(float(now.held_bytes[0, i]))
            found.append(self._shown(known, held, marginal, now.residence_ms, points, ""))
        return tuple(sorted(found, key=lambda c: (c.hits_per_s_per_mib is None, -(c.hits_per_s_per_mib or 0.0))))

    def ttl_gain(self, pattern: str, ttl_ms: int) -> Estimate | str:
        """Return the change of a prefix's hit ratio if its keys were given another TTL (the other prefixes keep
        theirs, and may lose memory to it), or in words why it is not known.
        """
        i = next((n for n, part in enumerate(self._parts) if part.known.pattern == pattern), None)
        if i is None:
            return self.reason or self._refused.get(pattern, f"`{pattern}` is not known here")
        now, then = self._divide(self._room), self._divide(self._room, {pattern: ttl_ms})
        differences = then.hits[:, i] - now.hits[:, i]
        value = float(differences[0])
        margin = math.hypot(_Z90 * float(np.std(differences[1:])), _FLOOR, _DIFFERENCE_ERROR * abs(value))
        return Estimate.around(value, margin, -1.0, 1.0)

    @property
    def _room(self) -> float:
        """Return the memory that entries may grow to: where nothing is evicted yet, keys that live longer find room."""
        evidence = self._evidence
        if evidence.full or evidence.evicted_per_s:
            return self._capacity
        return (
            max(float(evidence.capacity_bytes(evidence.current)), self._capacity)
            if evidence.maxmemory_bytes
            else _ROOMY
        )

    @property
    def ttls(self) -> dict[str, int]:
        """Return the usual TTL in milliseconds of each prefix that has a curve and a TTL."""
        return {part.known.pattern: part.known.ttl_ms for part in self._parts if part.known.ttl_ms is not None}

    @property
    def lifetimes_differ(self) -> bool:
        """Say whether prefixes with different TTLs take part, which no single TTL of the whole cache can stand for."""
        asked = [known for known in self._prefixes if (known.lookups_share or 0.0) >= _MATTERS]
        return len({known.ttl_ms for known in asked}) > 1

    @property
    def unknown(self) -> str:
        """Say why the whole cache is not known: no model at all, or none for most lookups; empty where it is."""
        if self.reason or sum(part.known.lookups_share or 0.0 for part in self._parts) >= _MODELLED_MIN:
            return self.reason
        return "; ".join(f"`{pattern}`: {why}" for pattern, why in sorted(self._refused.items()))

    @property
    def horizon_ms(self) -> float:
        """Return how far back the captured accesses reach."""
        return max((part.mixtures[0].horizon_ms for part in self._parts), default=0.0)

    def whole(self, capacity_bytes: float, ttls: Mapping[str, int | None] | None = None) -> WholeCache:
        """Return the cache of all prefixes with so many bytes for entries; `ttls` of prefixes in place of theirs, None
        = no TTL any more.
        """
        division = self._divide(capacity_bytes, ttls)
        shares = np.array([part.known.lookups_share or 0.0 for part in self._parts])
        return WholeCache(division.residence_ms, division.hits @ shares + self._fixed_hits)

    @property
    def capacity_bytes(self) -> float:
        """Return the memory that entries take now."""
        return self._capacity

    def _scale(self) -> None:
        """Scale modelled bytes so that each prefix holds now what the keyspace sample has seen of it."""
        if not self._parts:
            return
        now = self._divide(self._capacity)
        for i, part in enumerate(self._parts):
            share, modelled = part.known.bytes_share, float(now.held_bytes[0, i])
            if share is not None and modelled > 0:
                scale = share.value * self._capacity / modelled
                if not 1.0 / _SCALE_MAX <= scale <= _SCALE_MAX:
                    self._refused[part.known.pattern] = (
                        f"its sampled residents take {scale:.2f} times the memory that its accesses explain, "
                        "capture for longer"
                    )
                self._parts[i] = _Part(part.known, part.mixtures, scale)
        self._parts = [part for part in self._parts if part.known.pattern not in self._refused]

    def _divide(self, capacity_bytes: float, ttls: Mapping[str, int | None] | None = None) -> _Division:
        """Return how the prefixes divide a cache among them, for the fit and for each replicate."""
        grid = residence.residence_grid_s()
        steps = np.arange(len(grid), dtype=np.float64)
        ours = capacity_bytes * (1.0 - self.fixed_share)
        shape = (1 + _REPLICATES, len(self._parts))
        held_bytes, hits = np.zeros(shape), np.zeros(shape)
        residence_ms = 0.0
        for replicate in range(shape[0]):
            curves = [
                _on_grid(part.mixtures[replicate], (ttls or {}).get(part.known.pattern, part.known.ttl_ms), grid)
                for part in self._parts
            ]
            held = np.array([part.scale * curve[0] for part, curve in zip(self._parts, curves, strict=True)])
            at = float(np.interp(ours, held.sum(axis=0), steps))
            held_bytes[replicate] = [np.interp(at, steps, h) for h in held]
            hits[replicate] = [np.interp(at, steps, curve[1]) for curve in curves]
            if replicate == 0:
                residence_ms = float(np.interp(at, steps, grid)) * 1000.0
        return _Division(residence_ms, held_bytes, hits)

    def _sizes(self) -> list[tuple[int, float]]:
        """Return (maxmemory, memory for entries) of the points: around the present size, and no more than is used
        where nothing is evicted."""
        overhead = self._evidence.fixed_overhead_bytes
        whole = self._capacity + overhead
        binds = self._evidence.full or bool(self._evidence.evicted_per_s)
        sizes = sorted({round(f * whole) for f in _FACTORS if binds or f <= 1.0} | {round(whole)})
        return [(size, float(size - overhead)) for size in sizes if size - overhead > 0]

    def _level(self, known: PrefixEvidence, now: _Division, then: _Division, i: int) -> Estimate:
        """Return a hit ratio: the measured one plus the modelled difference, or the modelled one as such."""
        differences = then.hits[:, i] - now.hits[:, i]
        value = float(differences[0])
        spread = _Z90 * float(np.std(differences[1:]))
        measured = known.hit_ratio
        if measured is None:
            level, own = float(now.hits[0, i]), _Z90 * float(np.std(now.hits[1:, i])) + 2.0 * _FLOOR
        else:
            level, own = measured.value, 0.5 * (measured.high - measured.low)
        floor = _FLOOR if value else 0.0
        return Estimate.around(level + value, math.hypot(spread, own, floor, _DIFFERENCE_ERROR * value), 0.0, 1.0)

    def _marginal(self, known: PrefixEvidence, now: _Division, grown: _Division, i: int) -> Estimate:
        if not (self._evidence.full or self._evidence.evicted_per_s):
            return Estimate(0.0, 0.0, 0.0)
        per_s = self._evidence.lookups_per_s * (known.lookups_share or 0.0)
        more = np.maximum(grown.held_bytes[:, i] - now.held_bytes[:, i], 1e-9)
        slopes = (grown.hits[:, i] - now.hits[:, i]) * per_s / more * _MIB
        # A prefix whose keys all live to their TTL takes no more memory and gains nothing by it.
        slopes = np.where(grown.held_bytes[:, i] - now.held_bytes[:, i] > 1.0, slopes, 0.0)
        value = float(slopes[0])
        margin = math.hypot(_Z90 * float(np.std(slopes[1:])), _DIFFERENCE_ERROR * value)
        return Estimate.around(value, margin, 0.0, max(per_s, value))

    def _without_model(self, known: PrefixEvidence) -> PrefixCurve:
        held = None if known.bytes_share is None else round(known.bytes_share.value * self._capacity)
        return self._shown(known, held, None, None, (), self.reason or self._refused.get(known.pattern, ""))

    def _shown(
        self,
        known: PrefixEvidence,
        held: int | None,
        marginal: Estimate | None,
        residence_ms: float | None,
        points: tuple[PrefixPoint, ...],
        reason: str,
    ) -> PrefixCurve:
        ratio = known.hit_ratio
        now = next((p for p in points if p.maxmemory_bytes == round(self._capacity) + self._overhead), None)
        if ratio is None and now is not None:
            ratio = now.hit_ratio
        per_mib = None
        if ratio is not None and known.lookups_share is not None and held:
            per_mib = self._evidence.lookups_per_s * known.lookups_share * ratio.value / (held / _MIB)
        return PrefixCurve(
            pattern=known.pattern,
            lookups_share=known.lookups_share,
            hit_ratio=ratio,
            bytes_share=known.bytes_share,
            held_bytes=held,
            hits_per_s_per_mib=per_mib,
            marginal_hits_per_s=marginal,
            residence_ms=residence_ms
            if known.ttl_ms is None or residence_ms is None
            else min(residence_ms, known.ttl_ms),
            points=points,
            reason=reason,
            note=self._note(known, per_mib, held),
        )

    @property
    def _overhead(self) -> int:
        return self._evidence.fixed_overhead_bytes

    def _note(self, known: PrefixEvidence, per_mib: float | None, held: int | None) -> str:
        """Say in words if a prefix fills the cache with what hardly anybody reads."""
        if per_mib is None or held is None or self._capacity <= 0:
            return ""
        mean = self._evidence.lookups_per_s * self._evidence.hit_ratio / (self._capacity / _MIB)
        share = known.bytes_share.low if known.bytes_share is not None else held / self._capacity
        if share < _POLLUTES_BYTES or mean <= 0 or per_mib >= _POLLUTES_DENSITY * mean:
            return ""
        return (
            f"holds {held / self._capacity:.0%} of the memory and gives {per_mib / mean:.2f} of the mean hits per MiB"
        )


def _capacity(evidence: Evidence) -> float:
    """Return the memory that entries take now."""
    used = evidence.used_memory_bytes
    if evidence.maxmemory_bytes and (evidence.full or evidence.evicted_per_s):
        used = evidence.maxmemory_bytes
    return float(max(used - evidence.fixed_overhead_bytes, 1))


def _cannot(evidence: Evidence, *, as_lru: bool) -> str:
    """Say why the prefixes of a cache are not ruled by one residence time; empty where they are."""
    current = evidence.current
    binds = evidence.full or bool(evidence.evicted_per_s)
    if binds and not as_lru and (current.family != "lru" or evidence.refuses(current) is not False):
        return f"under `{current.eviction_policy}` no one residence time rules all prefixes, so no curve can be told"
    if evidence.lookups_per_s <= 0:
        return "the cache has no lookups in the window, observe for longer"
    return ""


def _on_grid(mixture: PopularityMixture, ttl_ms: int | None, grid: Floats) -> tuple[Floats, Floats]:
    """Return bytes and hit ratio at each residence time; beyond the TTL nothing changes any more."""
    held, hits = mixture.residence_curve(ttl_ms)
    if ttl_ms is None:
        return held, hits
    limits = residence.ttl_limits_s(ttl_ms / 1000.0)
    return np.interp(grid, limits, held), np.interp(grid, limits, hits)


def _fitted(
    evidence: Evidence, known: PrefixEvidence, rng: np.random.Generator, *, anchored: bool
) -> tuple[PopularityMixture, ...] | str:
    """Fit the accesses of one prefix and its replicates, or say in words why not."""
    trace, share = known.trace, known.lookups_share
    if trace is None or not share:
        return "none of its accesses were captured"
    if len(trace) < _ACCESSES_MIN or trace.duration_ms <= 0:
        return f"{len(trace)} captured accesses are too few for a curve, {_ACCESSES_MIN} are needed"
    table = ReuseTable.of(trace, evidence.capture_end_ms)
    anchor, idle = None, None
    evicts = evidence.misses is None or evidence.misses.expired + evidence.misses.refused < 0.1
    measured = anchored and evidence.full and evicts and known.ttl_ms is None
    if measured and known.keys_share and known.hit_ratio:
        anchor = Anchor(max(1, round(known.keys_share.value * evidence.resident_keys)), 1.0 - known.hit_ratio.value)
        if known.idle_ms is not None and len(known.idle_ms) >= _IDLE_KEYS_MIN:
            idle = IdleTable.of(known.idle_ms)
    entry_bytes = evidence.mean_entry_bytes
    if known.bytes_share is not None and known.keys_share is not None and known.keys_share.value > 0:
        entry_bytes *= known.bytes_share.value / known.keys_share.value

    def fit(counted: ReuseTable, start: PopularityMixture | None) -> PopularityMixture:
        return PopularityMixture.from_reuse_table(
            counted,
            evidence.lookups_per_s * share,
            mean_entry_bytes=max(entry_bytes, 1.0),
            anchor=anchor,
            idle=idle,
            start=start,
        )

    mixture = fit(table, None)
    return (mixture, *(fit(table.resampled(rng), mixture) for _ in range(_REPLICATES)))
