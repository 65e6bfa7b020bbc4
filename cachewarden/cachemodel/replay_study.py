"""What a whole trace says of other memory sizes, eviction policies, LFU parameters and TTLs: by replay, not by a model.

A sampled trace is replayed through a cache that is as much smaller (miniature simulation, Waldspurger et al., ATC'17)
and its hits are corrected by count (SHARDS-adj) at the rate that the sample really has: its keys over all keys, where
they were counted. It decides nothing. Every hit ratio and every difference comes with its 90 % interval.

INVARIANT: the same trace, candidate and seed give the same outcome; the difference of a candidate to itself is exactly
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction import EvictionConfig, IndexedTrace, ReplayResult, index, replay_indexed
from cachewarden.cachemodel.key_groups import GROUPS, in_groups, sampling_margin
from cachewarden.cachemodel.shards import adjust_hits
from cachewarden.cachemodel.trace import Op
from cachewarden.cachemodel.trace_files import TraceFile
from cachewarden.estimate import Estimate
from cachewarden.knobs import EvictionPolicy

__all__ = ["Outcome", "ReplayCandidate", "ReplayStudy"]

# What stays without sampling: the server's own dice and what the replay does not model. Half the width of an interval
# that held nine of ten servers in `benchmarks/replay_accuracy.py`; in differences most of it cancels.
_SERVER_MARGIN = 0.004
_SERVER_DIFFERENCE_MARGIN = 0.002


@dataclass(frozen=True, slots=True)
class ReplayCandidate:
    """A cache to replay the trace through.

    `capacity_bytes` memory for entries, that is maxmemory less what the server needs itself. `ttl_ms` given at every
    load and write, 0 = none, None = as the trace has them.
    """

    capacity_bytes: int
    eviction_policy: EvictionPolicy = "allkeys-lru"
    maxmemory_samples: int = 5
    lfu_log_factor: int = 10
    lfu_decay_time_min: int = 1
    ttl_ms: int | None = None

    @property
    def name(self) -> str:
        """Return everything but the memory in words, e.g. `allkeys-lfu 1:10, TTL 60 s`."""
        lfu = f" {self.lfu_log_factor}:{self.lfu_decay_time_min}" if self.eviction_policy.endswith("lfu") else ""
        ttl = "" if self.ttl_ms is None else ", no TTL" if self.ttl_ms == 0 else f", TTL {self.ttl_ms / 1000:g} s"
        return f"{self.eviction_policy}{lfu}{ttl}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate gives over the measured part of the trace.

    `hit_ratio` 0..1 with its 90 % interval, which covers sampling and what a real server does otherwise than the
    replay. Shares of all lookups that missed, by cause; they and the hit ratio sum to 1. `resident_keys` at the end.
    """

    candidate: ReplayCandidate
    hit_ratio: Estimate
    cold: float
    expired: float
    evicted: float
    refused: float
    deleted: float
    resident_keys: int

    @property
    def miss_ratio(self) -> float:
        """Return 1 - hit ratio."""
        return 1.0 - self.hit_ratio.value


@dataclass(frozen=True, slots=True, eq=False)
class _Replayed:
    """An outcome and the hit ratio of each group of sampled keys; no groups where all keys were replayed."""

    outcome: Outcome
    groups: npt.NDArray[np.float64]


class ReplayStudy:
    """A trace that is numbered once and replayed as often as one likes; the same candidate is replayed only once.

    `entry_bytes` stands in for rows of unknown size; None = the mean of the known ones, or 1 where none is known, so
    that memory is counted in keys. Hits are counted after `warm_up` (0..1) of the time. Raises ValueError for values
    out of range and for a trace whose sample has no reads.
    """

    def __init__(self, file: TraceFile, *, entry_bytes: int | None = None, warm_up: float = 0.0, seed: int = 1) -> None:
        if not 0.0 <= warm_up < 1.0:
            raise ValueError(f"warm-up of `{warm_up}` is out of range, use 0 up to, but not including, 1")
        if entry_bytes is not None and entry_bytes < 1:
            raise ValueError(f"an entry of `{entry_bytes}` bytes is impossible, use 1 or more")
        trace = file.trace
        if len(trace) == 0:
            raise ValueError("the sample holds no rows, raise the sampling rate or the limit")
        self._seed = seed
        self._from_ms = int(trace.time_ms[0]) + math.ceil(trace.duration_ms * warm_up)
        self._reads = int(np.sum(trace.op[np.searchsorted(trace.time_ms, self._from_ms) :] == Op.READ))
        if self._reads == 0:
            raise ValueError("nothing is read in the measured part, lower the warm-up, or raise the sampling rate")
        self._all_reads = file.reads_from(self._from_ms)
        known = trace.size_bytes[trace.size_bytes > 0]
        self.in_keys = entry_bytes is None and len(known) == 0
        """Whether memory is counted in keys, since no size is known."""
        self.entry_bytes = entry_bytes or (round(float(known.mean())) if len(known) else 1)
        base = index(trace)
        self.sampled_keys = base.distinct_keys
        self._sampled = file.sampling_rate < 1.0
        self.rate = file.sampling_rate
        """Share of the keys that were replayed, 0..1: counted where all keys were, else as the filter meant it."""
        self._counted = self._sampled and file.distinct_keys is not None
        if self._sampled and file.distinct_keys is not None:
            self.rate = min(1.0, self.sampled_keys / max(file.distinct_keys, 1))
        # Number 0 is the whole sample, then its groups, each with its share of all keys.
        parts = [part for part in in_groups(trace) if len(part)] if self._sampled else []
        self._parts = [(base, self.rate), *((ours, self._share(ours)) for ours in map(index, parts))]
        self._ttl: tuple[int | None, list[IndexedTrace]] = (None, [part for part, _ in self._parts])
        self._replayed: dict[ReplayCandidate, _Replayed] = {}
        newest = np.zeros(base.distinct_keys, np.int64)
        newest[base.key] = np.where(trace.size_bytes > 0, trace.size_bytes, self.entry_bytes)
        self.footprint_bytes = round(float(newest.sum()) / self.rate)
        """Memory that all keys of the trace would take at once."""

    def outcome(self, candidate: ReplayCandidate) -> Outcome:
        """Return what one cache gives."""
        return self._of(candidate).outcome

    def difference(self, candidate: ReplayCandidate, baseline: ReplayCandidate) -> Estimate:
        """Return the hit ratio of `candidate` less that of `baseline`, -1..1, with its 90 % interval.

        Paired: both are replayed over the same keys, group by group, so the interval is a few times narrower than those
        of the two outcomes.
        """
        if candidate == baseline:
            return Estimate(0.0, 0.0, 0.0)
        ours, theirs = self._of(candidate), self._of(baseline)
        value = ours.outcome.hit_ratio.value - theirs.outcome.hit_ratio.value
        margin = sampling_margin(value, ours.groups - theirs.groups, self.sampled_keys, self.rate)
        return Estimate.around(value, math.hypot(margin, _SERVER_DIFFERENCE_MARGIN), -1.0, 1.0)

    def curve(self, candidate: ReplayCandidate, capacities_bytes: Sequence[int]) -> list[Outcome]:
        """Return a candidate's outcome at each of some sizes: its miss ratio curve."""
        return [self.outcome(replace(candidate, capacity_bytes=size)) for size in capacities_bytes]

    def curve_sizes(self, points: int = 20) -> list[int]:
        """Return sizes from a hundredth of the footprint to all of it, by equal factors."""
        sizes = np.geomspace(max(1.0, self.footprint_bytes / 100), self.footprint_bytes * 1.05, points)
        return sorted({math.ceil(size) for size in sizes.tolist()})

    def _of(self, candidate: ReplayCandidate) -> _Replayed:
        found = self._replayed.get(candidate)
        if found is None:
            found = self._replayed[candidate] = self._replay(candidate)
        return found

    def _replay(self, candidate: ReplayCandidate) -> _Replayed:
        results = [
            self._run(part, rate, candidate)
            for part, (_, rate) in zip(self._with_ttl(candidate.ttl_ms), self._parts, strict=True)
        ]
        ratios = [self._hit_ratio(result, rate) for result, (_, rate) in zip(results, self._parts, strict=True)]
        whole, groups = ratios[0], np.array(ratios[1:])
        margin = sampling_margin(whole, groups, self.sampled_keys, self.rate)
        result = results[0]
        share = (1.0 - whole) / result.misses if result.misses else 0.0
        outcome = Outcome(
            candidate=candidate,
            hit_ratio=Estimate.around(whole, math.hypot(margin, _SERVER_MARGIN), 0.0, 1.0),
            cold=result.cold * share,
            expired=result.expired_misses * share,
            evicted=result.evicted_misses * share,
            refused=result.refused_misses * share,
            deleted=result.deleted_misses * share,
            resident_keys=round(result.resident_keys / self.rate),
        )
        return _Replayed(outcome, groups)

    def _run(self, part: IndexedTrace, rate: float, candidate: ReplayCandidate) -> ReplayResult:
        config = EvictionConfig(
            math.ceil(candidate.capacity_bytes * rate),
            candidate.eviction_policy,
            maxmemory_samples=candidate.maxmemory_samples,
            lfu_log_factor=candidate.lfu_log_factor,
            lfu_decay_time_min=candidate.lfu_decay_time_min,
            unknown_entry_bytes=self.entry_bytes,
        )
        return replay_indexed(part, config, self._from_ms, self._seed)

    def _hit_ratio(self, result: ReplayResult, rate: float) -> float:
        if not self._sampled:
            return result.hit_ratio
        return adjust_hits(result.hits, result.reads, round(self._all_reads), rate)

    def _share(self, part: IndexedTrace) -> float:
        """Return the share of all keys that a group stands for: by count if that is known, else as it was meant."""
        return self.rate * part.distinct_keys / self.sampled_keys if self._counted else self.rate / GROUPS

    def _with_ttl(self, ttl_ms: int | None) -> list[IndexedTrace]:
        if self._ttl[0] != ttl_ms:
            # Only the newest TTL is kept beside the trace itself: each is another copy of a column.
            parts = [part for part, _ in self._parts]
            if ttl_ms is not None:
                parts = [replace(part, trace=part.trace.with_ttl(ttl_ms)) for part in parts]
            self._ttl = (ttl_ms, parts)
        return self._ttl[1]
