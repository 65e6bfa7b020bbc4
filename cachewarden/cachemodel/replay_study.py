"""What a whole trace says of other memory sizes, eviction policies, LFU parameters and TTLs: by replay, not by a model.

A sampled trace is replayed through a cache that is as much smaller (miniature simulation, Waldspurger et al., ATC'17)
and its hits are corrected by count (SHARDS-adj). It decides nothing, and says how wrong sampling may make it.

INVARIANT: the same trace, candidate and seed give the same outcome.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cachewarden.cachemodel.eviction import EvictionConfig, IndexedTrace, index, replay_indexed
from cachewarden.cachemodel.shards import adjust_hits
from cachewarden.cachemodel.trace import Op
from cachewarden.cachemodel.trace_files import TraceFile
from cachewarden.knobs import EvictionPolicy

__all__ = ["Outcome", "ReplayCandidate", "ReplayStudy"]

# Measured on nine traces: mean absolute error of the hit ratio is 0.57 / sqrt(sampled keys) (see `shards`).
_ERROR_TIMES_ROOT_KEYS = 0.57


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
    """What a candidate gives. `hit_ratio` 0..1; `sampling_error` its mean absolute error by sampling, 0 = all keys were
    replayed. Shares of all lookups that missed, by cause; they and the hit ratio sum to 1. `resident_keys` at the end.
    """

    candidate: ReplayCandidate
    hit_ratio: float
    sampling_error: float
    cold: float
    expired: float
    evicted: float
    refused: float
    deleted: float
    resident_keys: int

    @property
    def miss_ratio(self) -> float:
        """Return 1 - hit ratio."""
        return 1.0 - self.hit_ratio


class ReplayStudy:
    """A trace that is numbered once and replayed as often as one likes.

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
        self._rate = file.sampling_rate
        self._from_ms = int(trace.time_ms[0]) + math.ceil(trace.duration_ms * warm_up)
        self._reads = int(np.sum(trace.op[np.searchsorted(trace.time_ms, self._from_ms) :] == Op.READ))
        if self._reads == 0:
            raise ValueError("nothing is read in the measured part, lower the warm-up, or raise the sampling rate")
        self._all_reads = file.reads_from(self._from_ms)
        known = trace.size_bytes[trace.size_bytes > 0]
        self.in_keys = entry_bytes is None and len(known) == 0
        """Whether memory is counted in keys, since no size is known."""
        self.entry_bytes = entry_bytes or (round(float(known.mean())) if len(known) else 1)
        self._indexed: dict[int | None, IndexedTrace] = {None: index(trace)}
        base = self._indexed[None]
        self.sampled_keys = base.distinct_keys
        newest = np.zeros(base.distinct_keys, np.int64)
        newest[base.key] = np.where(trace.size_bytes > 0, trace.size_bytes, self.entry_bytes)
        self.footprint_bytes = round(float(newest.sum()) / self._rate)
        """Memory that all keys of the trace would take at once."""

    @property
    def sampling_error(self) -> float:
        """Return the mean absolute error of a hit ratio that sampling makes, 0 without sampling."""
        return 0.0 if self._rate >= 1.0 else _ERROR_TIMES_ROOT_KEYS / math.sqrt(self.sampled_keys)

    def replay(self, candidate: ReplayCandidate) -> Outcome:
        """Replay the trace through one cache."""
        config = EvictionConfig(
            math.ceil(candidate.capacity_bytes * self._rate),
            candidate.eviction_policy,
            maxmemory_samples=candidate.maxmemory_samples,
            lfu_log_factor=candidate.lfu_log_factor,
            lfu_decay_time_min=candidate.lfu_decay_time_min,
            unknown_entry_bytes=self.entry_bytes,
        )
        result = replay_indexed(self._with_ttl(candidate.ttl_ms), config, self._from_ms, self._seed)
        hit_ratio = result.hit_ratio
        if self._rate < 1.0:
            hit_ratio = adjust_hits(result.hits, result.reads, round(self._all_reads), self._rate)
        share = (1.0 - hit_ratio) / result.misses if result.misses else 0.0
        return Outcome(
            candidate=candidate,
            hit_ratio=hit_ratio,
            sampling_error=self.sampling_error,
            cold=result.cold * share,
            expired=result.expired_misses * share,
            evicted=result.evicted_misses * share,
            refused=result.refused_misses * share,
            deleted=result.deleted_misses * share,
            resident_keys=round(result.resident_keys / self._rate),
        )

    def curve(self, candidate: ReplayCandidate, capacities_bytes: Sequence[int]) -> list[Outcome]:
        """Replay a candidate at each of some sizes: its miss ratio curve."""
        return [self.replay(replace(candidate, capacity_bytes=size)) for size in capacities_bytes]

    def curve_sizes(self, points: int = 20) -> list[int]:
        """Return sizes from a hundredth of the footprint to all of it, by equal factors."""
        sizes = np.geomspace(max(1.0, self.footprint_bytes / 100), self.footprint_bytes * 1.05, points)
        return sorted({math.ceil(size) for size in sizes.tolist()})

    def _with_ttl(self, ttl_ms: int | None) -> IndexedTrace:
        if ttl_ms not in self._indexed:
            base = self._indexed[None]
            # Only the newest TTL is kept beside the trace itself: each is another copy of a column.
            self._indexed = {None: base, ttl_ms: replace(base, trace=base.trace.with_ttl(ttl_ms or 0))}
        return self._indexed[ttl_ms]
