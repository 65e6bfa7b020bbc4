"""From what was seen of a cache to the weights of a popularity mixture: tables of reuse and idle times, and one EM for
both.

It decides how evidence is counted and censored, never what it means for a cache (`popularity` does). All likelihoods
are linear in the weights: reuse times are interval- or right-censored, idle times are a Poisson histogram, and what is
known for sure (a miss ratio at the eviction age, a number of residents) enters as heavily counted pseudo-observations.

INVARIANT: fitted weights are never negative and sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.residence import Floats, survival_area
from cachewarden.cachemodel.trace import AccessTrace, Op

__all__ = [
    "Floats",
    "IdleTable",
    "ReuseTable",
    "Rows",
    "fit_weights",
    "idle_rows",
    "kaplan_meier",
    "log_rates",
    "pinned_rows",
    "reuse_rows",
]

_GROUPS = 64
_EVENT_BINS = 120
_CENSOR_BINS = 60
# A write this soon after a read of the same key is the load that the read's miss caused, not a request of its own.
_LOAD_WINDOW_MS = 1000
_IDLE_BINS = 40
# With maxmemory-samples 5 the oldest fifth of the residents carries the trace of eviction (`passive_fit`).
_IDLE_QUANTILE = 0.8


@dataclass(frozen=True, slots=True, eq=False)
class ReuseTable:
    """Reuse times of a capture, counted by bins and by groups of keys (the groups are what a bootstrap draws).

    `edges_s` of the event bins, `events` [groups, bins] reuses inside the capture, `censor_s` mean remaining capture
    time of each censoring bin, `censored` [groups, bins] accesses whose next use the capture did not see, `*_bytes` the
    known entry bytes summed likewise with `*_sized` counts, `duration_s` of the capture.
    """

    edges_s: Floats
    events: Floats
    event_bytes: Floats
    event_sized: Floats
    censor_s: Floats
    censored: Floats
    censored_bytes: Floats
    censored_sized: Floats
    duration_s: float

    @property
    def accesses(self) -> float:
        """Return the number of accesses that were counted."""
        return float(self.events.sum() + self.censored.sum())

    @classmethod
    def of(cls, trace: AccessTrace, end_ms: int | None = None) -> ReuseTable:
        """Count the reuse times of a capture that ended at `end_ms` (by default at its last row).

        Every access inside the capture counts once, by its time to the next access of the same key, whether or not the
        key was seen before: entry into the table depends on time alone, so nothing is left-truncated. Raises ValueError
        below 2 accesses.
        """
        key, time_ms, size = _touches(trace)
        if len(key) < 2 or time_ms.max() == time_ms.min():
            raise ValueError("a capture needs at least two accesses at different times")
        end = int(trace.time_ms[-1]) if end_ms is None else end_ms
        reused = np.append(key[1:] == key[:-1], False)
        gap_s = np.append(np.diff(time_ms), 0) / 1000.0
        left_s = (end - time_ms) / 1000.0
        duration_s = (end - int(trace.time_ms[0])) / 1000.0
        group = ((key >> np.uint64(40)) % np.uint64(_GROUPS)).astype(np.int64)
        edges = np.concatenate([[0.0], np.geomspace(1e-3, duration_s, _EVENT_BINS)])
        # Clocks count whole milliseconds, so a gap of k ms lies in the bin that holds k + 0.5.
        bin_of_gap = np.clip(np.searchsorted(edges, gap_s + 5e-4, side="right") - 1, 0, _EVENT_BINS - 1)
        censor_edges = np.linspace(0.0, duration_s, _CENSOR_BINS + 1)
        bin_of_left = np.clip(np.searchsorted(censor_edges, left_s, side="right") - 1, 0, _CENSOR_BINS - 1)

        def count(chosen: npt.NDArray[np.bool_], bins: npt.NDArray[np.int64], width: int, weight: Floats) -> Floats:
            flat = np.bincount(group[chosen] * width + bins[chosen], weight[chosen], minlength=_GROUPS * width)
            return flat.reshape(_GROUPS, width).astype(np.float64)

        one = np.ones(len(key))
        sized = (size > 0).astype(np.float64)
        lost = ~reused
        total_left = count(lost, bin_of_left, _CENSOR_BINS, left_s).sum(axis=0)
        censored = count(lost, bin_of_left, _CENSOR_BINS, one)
        middle = 0.5 * (censor_edges[1:] + censor_edges[:-1])
        seen = censored.sum(axis=0)
        return cls(
            edges_s=edges,
            events=count(reused, bin_of_gap, _EVENT_BINS, one),
            event_bytes=count(reused, bin_of_gap, _EVENT_BINS, size),
            event_sized=count(reused, bin_of_gap, _EVENT_BINS, sized),
            censor_s=np.where(seen > 0, total_left / np.maximum(seen, 1.0), middle),
            censored=censored,
            censored_bytes=count(lost, bin_of_left, _CENSOR_BINS, size),
            censored_sized=count(lost, bin_of_left, _CENSOR_BINS, sized),
            duration_s=duration_s,
        )

    def resampled(self, rng: np.random.Generator) -> ReuseTable:
        """Return a bootstrap replicate: groups of keys drawn with replacement."""
        drawn = rng.integers(0, _GROUPS, _GROUPS)
        return ReuseTable(
            self.edges_s,
            self.events[drawn],
            self.event_bytes[drawn],
            self.event_sized[drawn],
            self.censor_s,
            self.censored[drawn],
            self.censored_bytes[drawn],
            self.censored_sized[drawn],
            self.duration_s,
        )


def _touches(trace: AccessTrace) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], Floats]:
    """Return key, time and size of the accesses by key and time, without deletes and without the loads after a missed
    read.
    """
    order = np.argsort(trace.key, kind="stable")
    order = order[trace.op[order] != Op.DELETE]
    key, time_ms, op = trace.key[order], trace.time_ms[order], trace.op[order]
    size = trace.size_bytes[order].astype(np.float64)
    load = np.zeros(len(key), bool)
    load[1:] = (
        (key[1:] == key[:-1])
        & (op[1:] == Op.WRITE)
        & (op[:-1] == Op.READ)
        & (time_ms[1:] - time_ms[:-1] <= _LOAD_WINDOW_MS)
    )
    # The read that missed often knows no size; the load does.
    size[:-1] = np.where(load[1:] & (size[:-1] == 0), size[1:], size[:-1])
    return key[~load], time_ms[~load], size[~load]


@dataclass(frozen=True, slots=True, eq=False)
class IdleTable:
    """Idle times of random residents as a histogram.

    `edges_s` of the bins, `counts` of sampled keys in them, `bytes_` the known entry bytes summed likewise with `sized`
    counts, `sampled_keys` in all. The last bin ends above the oldest key.
    """

    edges_s: Floats
    counts: Floats
    bytes_: Floats
    sized: Floats
    sampled_keys: int

    @classmethod
    def of(
        cls, idle_ms: npt.ArrayLike, size_bytes: npt.ArrayLike | None = None, resolution_ms: int = 1000
    ) -> IdleTable:
        """Count idle times read off a clock of `resolution_ms`, sizes -1 = unknown; raises ValueError below 50 keys."""
        idle_s = np.asarray(idle_ms, dtype=np.float64) / 1000.0
        if len(idle_s) < 50:
            raise ValueError(f"{len(idle_s)} idle times are too few to fit, sample at least 50 keys")
        step = resolution_ms / 1000.0
        # Both clocks floor, so a reading of k ticks means k plus or minus half a tick.
        ticks = np.unique(np.floor(np.quantile(idle_s, np.linspace(0.0, 1.0, _IDLE_BINS + 1)) / step))
        edges = np.concatenate([[0.0], (np.append(ticks, ticks[-1] + 1.0)[1:] - 0.5) * step])
        size = np.full(len(idle_s), -1.0) if size_bytes is None else np.asarray(size_bytes, dtype=np.float64)
        counts, _ = np.histogram(idle_s, edges)
        total, _ = np.histogram(idle_s, edges, weights=np.maximum(size, 0.0))
        sized, _ = np.histogram(idle_s, edges, weights=(size > 0).astype(np.float64))
        return cls(edges, counts.astype(np.float64), total.astype(np.float64), sized.astype(np.float64), len(idle_s))

    @property
    def sized_keys(self) -> float:
        """Return how many of the sampled keys have a known size."""
        return float(self.sized.sum())

    def quantile_s(self, share: float) -> float:
        """Return the idle time below which this share (0..1) of the sampled keys lies."""
        below = np.concatenate([[0.0], np.cumsum(self.counts)])
        return float(np.interp(share * below[-1], below, self.edges_s))

    def resampled(self, rng: np.random.Generator) -> IdleTable:
        """Return a bootstrap replicate of the sampled keys; each bin keeps the mean size of its keys."""
        drawn = rng.multinomial(self.sampled_keys, self.counts / self.counts.sum()).astype(np.float64)
        times = drawn / np.maximum(self.counts, 1.0)
        return IdleTable(self.edges_s, drawn, self.bytes_ * times, self.sized * times, self.sampled_keys)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Observations that are linear in the weights: `counts` were seen where `design` @ weights was expected, up to
    `exposure`.
    """

    design: Floats
    counts: Floats
    exposure: Floats


def log_rates(slowest_s: float, fastest_s: float, classes: int = 48) -> Floats:
    """Return rates per second on a log grid from 1/slowest_s to 1/fastest_s, with 0 (never again) in front."""
    return np.concatenate([[0.0], np.geomspace(1.0 / slowest_s, 1.0 / fastest_s, classes)])


def reuse_rows(table: ReuseTable, rates: Floats) -> Rows:
    """Return the likelihood rows of a reuse table: bin probabilities for reuses, survival for censored accesses."""
    decay = np.exp(-np.outer(table.edges_s, rates))
    design = np.vstack([decay[:-1] - decay[1:], np.exp(-np.outer(table.censor_s, rates))])
    counts = np.concatenate([table.events.sum(axis=0), table.censored.sum(axis=0)])
    return Rows(design, counts, np.full(len(rates), table.accesses))


def idle_rows(table: IdleTable, rates: Floats, resident_keys: int, lookups_per_s: float) -> Rows:
    """Return the rows of the ages that eviction leaves alone: residents of age a number lookups_per_s * P(reuse > a)
    per second of age.
    """
    scale = table.sampled_keys / resident_keys * lookups_per_s
    clean = max(1, int(np.searchsorted(table.edges_s, table.quantile_s(_IDLE_QUANTILE), side="right")) - 1)
    area = np.array([survival_area(rates, edge) for edge in table.edges_s[: clean + 1]])
    design = scale * (area[1:] - area[:-1])
    return Rows(design, table.counts[:clean], design.sum(axis=0))


def pinned_rows(
    rates: Floats, age_s: float, miss_ratio: float, resident_keys: int, lookups_per_s: float, weight: float
) -> Rows:
    """Return rows that pin P(reuse > age) to the miss ratio and the residents younger than `age_s` to their number.

    `weight` is how many observations each pin is worth.
    """
    design = np.vstack([np.exp(-rates * age_s), survival_area(rates, age_s) * (lookups_per_s / resident_keys)]) * weight
    return Rows(design, np.array([miss_ratio, 1.0]) * weight, design.sum(axis=0))


def fit_weights(rows: list[Rows], total_weight: float, start: Floats | None, iterations: int) -> Floats:
    """Return the weights that make the observations most likely (EM for linear Poisson models, Shepp and Vardi 1982).

    `total_weight` pins the sum of the weights to 1 with that many pseudo-observations; the result is then normalised.
    """
    design = np.vstack([part.design for part in rows])
    counts = np.concatenate([part.counts for part in rows])
    used = counts > 0
    design, counts = design[used], counts[used]
    exposure = np.sum([part.exposure for part in rows], axis=0) + total_weight
    weights = np.full(design.shape[1], 1.0 / design.shape[1]) if start is None else np.maximum(start, 1e-9)
    for _ in range(iterations):
        ratio = counts / np.maximum(design @ weights, 1e-300)
        weights = weights * (ratio @ design + total_weight / weights.sum()) / exposure
    fitted: Floats = weights / weights.sum()
    return fitted


def class_bytes(table: ReuseTable, rates: Floats, weights: Floats, fallback: float) -> Floats:
    """Return the mean entry bytes of each class, from the classes' shares in each bin; `fallback` where no size was
    seen.
    """
    design = reuse_rows(table, rates).design * weights
    share = design / np.maximum(design.sum(axis=1, keepdims=True), 1e-300)
    total = np.concatenate([table.event_bytes.sum(axis=0), table.censored_bytes.sum(axis=0)]) @ share
    sized = np.concatenate([table.event_sized.sum(axis=0), table.censored_sized.sum(axis=0)]) @ share
    # One access worth of the fallback keeps classes that were hardly seen near it.
    mean: Floats = (total + fallback) / (sized + 1.0)
    return mean


def kaplan_meier(time_s: npt.ArrayLike, seen: npt.ArrayLike, at_s: npt.ArrayLike) -> Floats:
    """Return the survival at `at_s` of times of which some (`seen` false) are only known to be longer (Kaplan and
    Meier 1958).
    """
    time, event = np.asarray(time_s, np.float64), np.asarray(seen, bool)
    distinct, where = np.unique(time, return_inverse=True)
    events = np.bincount(where, event, minlength=len(distinct))
    leaving = np.bincount(where, minlength=len(distinct))
    at_risk = len(time) - np.concatenate([[0], np.cumsum(leaving)[:-1]])
    survival = np.concatenate([[1.0], np.cumprod(1.0 - events / at_risk)])
    found: Floats = survival[np.searchsorted(distinct, np.asarray(at_s, np.float64), side="right")]
    return found
