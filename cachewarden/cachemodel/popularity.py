"""What a workload is: how its lookups are spread over keys of different request rates, and what any cache would make of
it.

A `PopularityMixture` is a request-weighted mixture over a log grid of per-key Poisson rates, with a mass of keys that
never come again. It is fitted to a short capture or to idle times of residents, and answers in closed form. It assumes
a steady workload; bursts and phases show up as a residual against the observed hit ratio, which `whatif` anchors on.

INVARIANT: hit ratios lie in 0..1 - cold and never fall with more bytes or a longer TTL.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel import popularity_fit as fit
from cachewarden.cachemodel import residence
from cachewarden.cachemodel.passive_fit import ResidentFacts, class_bytes, fit_residents
from cachewarden.cachemodel.popularity_fit import Floats, IdleTable, ReuseTable
from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["Anchor", "PopularityMixture"]

_FIRST_ITERATIONS = 600
_ITERATIONS = 200
_ROUNDS = 8
# Ages this many times the horizon are still told apart; slower keys than that are as good as never coming again.
_SLOWEST_HORIZONS = 100.0
_FASTEST_S = 0.02
# Between two of these ages in a row hit ratios are drawn as a straight line.
_AGES = 160


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a full LRU-like cache shows of ages beyond a capture: its residents, and the share of lookups it misses for
    lack of memory.
    """

    resident_keys: int
    miss_ratio: float


@dataclass(frozen=True, slots=True, eq=False)
class PopularityMixture:
    """Lookups by request rate of the key they ask for.

    `rates_per_s` rising, the first one 0 = never again; `weights` share of the lookups in each class, summing to 1;
    `entry_bytes` mean memory of an entry of each class; `lookups_per_s` of the whole cache; `horizon_ms` the longest
    age that the evidence covers.
    """

    rates_per_s: Floats
    weights: Floats
    entry_bytes: Floats
    lookups_per_s: float
    horizon_ms: float

    def __post_init__(self) -> None:
        if not len(self.rates_per_s) == len(self.weights) == len(self.entry_bytes):
            raise ValueError("rates, weights and entry bytes of a mixture need the same length")
        if self.rates_per_s[0] != 0.0 or np.any(np.diff(self.rates_per_s) <= 0):
            raise ValueError("rates of a mixture must rise from 0")
        if np.any(self.weights < 0) or abs(float(self.weights.sum()) - 1.0) > 1e-6:
            raise ValueError(f"weights of a mixture must sum to 1, got `{float(self.weights.sum())}`")
        if self.lookups_per_s <= 0 or np.any(self.entry_bytes <= 0):
            raise ValueError("a mixture needs lookups and entries of more than 0 bytes")

    @classmethod
    def from_accesses(
        cls,
        trace: AccessTrace,
        lookups_per_s: float,
        *,
        sampling_rate: float = 1.0,
        all_accesses: int | None = None,
        mean_entry_bytes: float = 1.0,
        anchor: Anchor | None = None,
        end_ms: int | None = None,
    ) -> PopularityMixture:
        """Fit a capture taken at a spatial `sampling_rate`; see `from_reuse_table` for the other arguments."""
        table = ReuseTable.of(trace, end_ms)
        expected = None if all_accesses is None else all_accesses * sampling_rate
        return cls.from_reuse_table(
            table, lookups_per_s, expected_accesses=expected, mean_entry_bytes=mean_entry_bytes, anchor=anchor
        )

    @classmethod
    def from_reuse_table(
        cls,
        table: ReuseTable,
        lookups_per_s: float,
        *,
        expected_accesses: float | None = None,
        mean_entry_bytes: float = 1.0,
        anchor: Anchor | None = None,
        idle: IdleTable | None = None,
        start: PopularityMixture | None = None,
    ) -> PopularityMixture:
        """Fit reuse times, right-censored at the end of the capture.

        `expected_accesses` is what the filter should have kept of all accesses: the difference to what it kept goes to
        the hottest keys (SHARDS-adj). `mean_entry_bytes` stands in for unknown sizes. `anchor` (and `idle`) carry ages
        beyond the capture, and are only used if the cache holds keys longer than the capture lasted. `start` makes a
        refit of a resampled table fast.
        """
        rates = fit.log_rates(table.duration_s * _SLOWEST_HORIZONS, _FASTEST_S)
        rows = [fit.reuse_rows(table, rates)]
        # Weights sum to 1 by themselves for reuse times; a light pin keeps that when other rows join.
        weights = fit.fit_weights(rows, 1.0, None if start is None else start.weights, _FIRST_ITERATIONS)
        horizon_s = table.duration_s
        if anchor is not None and _residents(rates, weights, lookups_per_s, horizon_s) < anchor.resident_keys:
            if idle is not None:
                rows.append(fit.idle_rows(idle, rates, anchor.resident_keys, lookups_per_s))
            pin = max(table.accesses, 1000.0)
            weights, horizon_s = _pinned(rows, rates, weights, lookups_per_s, anchor, pin, horizon_s)
        if expected_accesses is not None:
            weights = _adjusted(weights, table.accesses, expected_accesses)
        entry_bytes = fit.class_bytes(table, rates, weights, mean_entry_bytes)
        return cls(rates, weights, entry_bytes, lookups_per_s, horizon_s * 1000.0)

    @classmethod
    def from_idle_times(
        cls,
        idle_ms: npt.ArrayLike | IdleTable,
        resident_keys: int,
        lookups_per_s: float,
        miss_ratio: float,
        *,
        samples: int = 5,
        mean_entry_bytes: float = 1.0,
    ) -> PopularityMixture:
        """Fit idle times of random residents of a full cache under an LRU eviction policy, without any capture.

        `samples` the server's maxmemory-samples. See `passive_fit` for what is assumed. Raises ValueError below 50 idle
        times, and for a cache without residents, lookups or misses.
        """
        table = idle_ms if isinstance(idle_ms, IdleTable) else IdleTable.of(idle_ms)
        facts = ResidentFacts(resident_keys, lookups_per_s, miss_ratio, samples)
        oldest_s = max(table.quantile_s(0.98), 1.0)
        rates = fit.log_rates(oldest_s * _SLOWEST_HORIZONS, _FASTEST_S)
        weights, age_s = fit_residents(table, rates, facts)
        entry_bytes = class_bytes(table, rates, weights, age_s, facts, mean_entry_bytes)
        return cls(rates, weights, entry_bytes, lookups_per_s, oldest_s * 1000.0)

    @property
    def cold(self) -> float:
        """Return the share of lookups for keys that do not come again within a hundred horizons."""
        return float(self.weights[0])

    def survival(self, age_ms: npt.ArrayLike) -> Floats:
        """Return the probability that a key is not asked for again within `age_ms`."""
        ages = np.atleast_1d(np.asarray(age_ms, np.float64)) / 1000.0
        survived: Floats = np.exp(-np.outer(ages, self.rates_per_s)) @ self.weights
        return survived

    def working_set_keys(self, window_ms: npt.ArrayLike) -> Floats:
        """Return the expected number of distinct keys asked for in a window."""
        windows = np.atleast_1d(np.asarray(window_ms, np.float64)) / 1000.0
        area = np.array([residence.survival_area(self.rates_per_s, window) for window in windows])
        keys: Floats = self.lookups_per_s * (area @ self.weights)
        return keys

    def _classes(self) -> tuple[Floats, Floats, Floats]:
        return self.rates_per_s, self.lookups_per_s * self.weights * self.entry_bytes, self.weights

    def working_set_bytes(self, window_ms: npt.ArrayLike) -> Floats:
        """Return the expected memory of the distinct keys asked for in a window, as entries."""
        windows = np.atleast_1d(np.asarray(window_ms, np.float64)) / 1000.0
        area = np.array([residence.survival_area(self.rates_per_s, window) for window in windows])
        held: Floats = self.lookups_per_s * (area @ (self.weights * self.entry_bytes))
        return held

    def characteristic_time_ms(self, capacity_bytes: npt.ArrayLike) -> Floats:
        """Return the eviction age of an LRU of that capacity; the largest known age (1e12 ms) if all keys fit."""
        held, _ = self.residence_curve()
        ages: Floats = np.interp(_atleast(capacity_bytes), held, residence.residence_grid_s()) * 1000.0
        return ages

    def eviction_age_ms(self, capacity_bytes: npt.ArrayLike, ttl_ms: float | None = None) -> Floats:
        """Return the idle time after which an LRU of that capacity evicts, infinity where all that lives at once fits.

        Under a TTL given at the load only shorter idle times are evictions; what lives to its TTL expires.
        """
        capacities = _atleast(capacity_bytes)
        if ttl_ms is None:
            held, ages_s = self.residence_curve()[0], residence.residence_grid_s()
        else:
            held, ages_s = self.residence_curve(ttl_ms)[0], residence.ttl_limits_s(ttl_ms / 1000.0)
        ages = np.interp(capacities, held, ages_s) * 1000.0
        found: Floats = np.where(capacities >= held[-1], np.inf, ages)
        return found

    def residence_curve(self, ttl_ms: float | None = None) -> tuple[Floats, Floats]:
        """Return (bytes held, hit ratio) of LRU at each of `residence.residence_grid_s`; under a TTL, at each of
        `residence.ttl_limits_s`.
        """
        return _residence_curve(self, ttl_ms)

    def lru_hit_ratio(self, capacity_bytes: npt.ArrayLike) -> Floats:
        """Return the hit ratio of LRU at each capacity for entries, without TTLs (Che's approximation)."""
        hits: Floats = np.interp(_atleast(capacity_bytes), *_from_zero(self.residence_curve()))
        return hits

    def sampled_lru_curve(self, samples: int) -> tuple[Floats, Floats]:
        """Return (bytes, hit ratio) of LRU as the server approximates it with `samples` keys per eviction, from the
        empty cache to one that keeps keys a hundred times as long as the evidence covers.
        """
        ages_s = np.geomspace(self.horizon_ms / 1e6, self.horizon_ms / 10.0, _AGES)
        rates, _, requests = self._classes()
        return _from_zero(
            residence.sampled_lru_curve(
                rates, self.lookups_per_s * self.weights, requests, self.entry_bytes, samples, ages_s
            )
        )

    def sampled_lru_hit_ratio(self, capacity_bytes: npt.ArrayLike, samples: int) -> Floats:
        """Return the hit ratio of LRU as the server approximates it, at each capacity."""
        hits: Floats = np.interp(_atleast(capacity_bytes), *self.sampled_lru_curve(samples))
        return hits

    def random_hit_ratio(self, capacity_bytes: npt.ArrayLike) -> Floats:
        """Return the hit ratio of random eviction at each capacity."""
        hits: Floats = np.interp(_atleast(capacity_bytes), *_from_zero(residence.random_curve(*self._classes())))
        return hits

    def lfu_hit_ratio(self, capacity_bytes: npt.ArrayLike) -> Floats:
        """Return the hit ratio of an LFU that knows all rates and keeps the keys with the most requests per byte: an
        upper bound.
        """
        rates, keys_bytes, requests = self._classes()
        density = rates / self.entry_bytes
        order = np.argsort(-density[1:], kind="stable") + 1
        held = np.concatenate([[0.0], np.cumsum(keys_bytes[order] / rates[order])])
        hits: Floats = np.interp(_atleast(capacity_bytes), held, np.concatenate([[0.0], np.cumsum(requests[order])]))
        return hits

    def ttl_hit_ratio(self, ttl_ms: npt.ArrayLike, capacity_bytes: int | None = None) -> Floats:
        """Return the hit ratio at each fixed TTL given at the load, with LRU eviction at `capacity_bytes` or without a
        limit.
        """
        ttls_s = _atleast(ttl_ms) / 1000.0
        if capacity_bytes is None:
            rates, _, requests = self._classes()
            turns = np.outer(ttls_s, rates)
            unlimited: Floats = (turns / (1.0 + turns)) @ requests
            return unlimited
        curves = [_from_zero(self.residence_curve(float(ttl_s) * 1000.0)) for ttl_s in ttls_s]
        return np.array([np.interp(capacity_bytes, held, hits) for held, hits in curves])

    def miss_ratio_curve(self, capacity_bytes: npt.ArrayLike, ttl_ms: int | None = None) -> Floats:
        """Return 1 - the LRU hit ratio at each capacity, under a fixed TTL if one is given."""
        if ttl_ms is None:
            return 1.0 - self.lru_hit_ratio(capacity_bytes)
        held, hits = _from_zero(self.residence_curve(ttl_ms))
        return 1.0 - np.interp(_atleast(capacity_bytes), held, hits)

    def scaled(self, lookups_factor: float) -> PopularityMixture:
        """Return the workload when every key is asked for `lookups_factor` times as often."""
        if lookups_factor <= 0:
            raise ValueError(f"lookups factor `{lookups_factor}` must be above 0")
        return replace(
            self, rates_per_s=self.rates_per_s * lookups_factor, lookups_per_s=self.lookups_per_s * lookups_factor
        )


@lru_cache(maxsize=256)
def _residence_curve(mixture: PopularityMixture, ttl_ms: float | None) -> tuple[Floats, Floats]:
    """Work out the curve once for all sizes that are asked about: under a TTL it costs tens of milliseconds."""
    rates, requests = mixture.rates_per_s, mixture.weights
    keys_bytes = mixture.lookups_per_s * mixture.weights * mixture.entry_bytes
    if ttl_ms is None:
        return residence.lru_curve(rates, keys_bytes, requests)
    return residence.ttl_curve(rates, keys_bytes, requests, ttl_ms / 1000.0)


def _atleast(values: npt.ArrayLike) -> Floats:
    return np.atleast_1d(np.asarray(values, np.float64))


def _from_zero(curve: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Put the empty cache in front, which hits nothing."""
    return np.concatenate([[0.0], curve[0]]), np.concatenate([[0.0], curve[1]])


def _residents(rates: Floats, weights: Floats, lookups_per_s: float, age_s: float) -> float:
    return float(lookups_per_s * (residence.survival_area(rates, age_s) @ weights))


def _pinned(
    rows: list[fit.Rows],
    rates: Floats,
    start: Floats | None,
    lookups_per_s: float,
    anchor: Anchor,
    pin: float,
    age_s: float,
) -> tuple[Floats, float]:
    """Fit with the tail pinned at the eviction age, which is itself the age where the fitted residents make up the
    cache.
    """
    if start is not None:
        age_s = _age_of(rates, start, lookups_per_s, anchor.resident_keys)
    weights = start if start is not None else np.full(len(rates), 1.0 / len(rates))
    for _ in range(_ROUNDS):
        pins = fit.pinned_rows(rates, age_s, anchor.miss_ratio, anchor.resident_keys, lookups_per_s, pin)
        weights = fit.fit_weights([*rows, pins], pin, weights, _ITERATIONS)
        age_s = _age_of(rates, weights, lookups_per_s, anchor.resident_keys)
    return weights, age_s


def _age_of(rates: Floats, weights: Floats, lookups_per_s: float, resident_keys: int) -> float:
    """Return the age below which the mixture has `resident_keys` residents."""
    grid = residence.residence_grid_s()
    held, _ = residence.lru_curve(rates, lookups_per_s * weights, weights)
    return float(np.interp(resident_keys, held, grid))


def _adjusted(weights: Floats, seen: float, expected: float) -> Floats:
    """Give the accesses that the spatial sample has too few of to the hottest class, or take what it has too many
    of.
    """
    scaled = weights * (seen / expected)
    missing = 1.0 - float(scaled.sum())
    if missing >= 0:
        # The keys that a sample of keys misses and that matter are the hottest ones; these hit at any memory.
        scaled[-1] += missing
        return scaled
    surplus = -missing
    for i in range(len(scaled) - 1, 0, -1):
        taken = min(surplus, float(scaled[i]))
        scaled[i] -= taken
        surplus -= taken
    adjusted: Floats = scaled / scaled.sum()
    return adjusted
