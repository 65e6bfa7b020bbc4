"""What another configuration would have given over the captured past: answered by replay where the capture is long
enough to warm the caches that it is replayed through.

No model of the workload is needed then, and none of its assumptions: whether the hot set moves shows in the capture.
The capture's beginning warms both caches; over the rest, a sixth of it at least, their hits are compared, piece by
piece; how much the pieces differ is what the interval is made of. A cache under LRU is warm once it is full: what was
used last is all that it holds, whatever it held before (Mattson et al. 1970). Under LFU and random eviction what stays
depends on what was there, so half of the content must have been exchanged as well. It never answers for a cache that
the first five sixths of the capture do not warm: that says nothing about a steady state, and the models of `whatif`
have to do.

INVARIANT: the difference of a configuration to itself is exactly nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.eviction import EvictionConfig, RunningReplay, index
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence
from cachewarden.cachemodel.shards import error_expected
from cachewarden.estimate import Estimate

__all__ = ["CaptureReplay", "is_steady", "replay_config"]

_KEYS_MIN = 200
_ACCESSES_MIN = 2_000
_DURATION_MIN_MS = 300_000
_SLICES = 36
"""Of the capture, equal in accesses. What is compared begins with one of them."""
_SLICES_MIN = 6
_PIECES = 6
"""Of what is compared. A piece should be longer than a burst and there must be some for a spread."""
_STUDENT_90 = 2.015
"""Student's t at 95 % for `_PIECES` - 1 degrees of freedom."""
_EXCHANGES: Final = {"lru": 0.0, "lfu": 0.5, "random": 0.5}
"""How often the content must have been exchanged before hits are compared. Over 45 caches (fifteen streams, three sizes
each) LFU that was chosen after half an exchange and ten minutes gave 0.77 points on average, after a whole one 0.64,
and neither choice ever lost half a point. Where sizes under LRU wait for none, they are compared over more of the past,
and large ones over nearly as much as small ones: the autopilot then closes 84 instead of 79 % of the gap on average
(five mixes of `benchmarks.autopilot`, all keys, no floors)."""
_SAMPLING_SHARE = 0.5
"""Error of a difference by sampling over that of a level: two to five times smaller on nine traces."""
_POLICY_ERROR = 0.5
_POLICY_FLOOR = 0.005
"""What remains of the difference between two eviction policies later on is another matter than how steady it was so
far: with this part of it, and this much always, eight to nine of ten intervals held what the next 35 to 50 minutes
brought (the 45 caches of `_EXCHANGES`); without it six to seven did. Sizes need no such margin."""
_SERVER_MARGIN = 0.002
"""What a server does otherwise than the replay, as far as it does not cancel."""
_Z90_OVER_MEAN = 2.06
"""Half a 90 % interval over the mean absolute error, for normal errors."""


def replay_config(wanted: CacheConfiguration, capacity_bytes: float, entry_bytes: int) -> EvictionConfig | None:
    """Return what a sampled capture is replayed through, with `capacity_bytes` for the entries of its sample; None for
    what it cannot be replayed through, or where there is room for a score of entries only."""
    if wanted.family not in _EXCHANGES or wanted.only_volatile or wanted.ttl_ms is not None:
        return None
    if not math.isfinite(capacity_bytes) or capacity_bytes < 20 * entry_bytes:
        return None
    return EvictionConfig(
        int(capacity_bytes),
        wanted.eviction_policy,
        maxmemory_samples=min(64, wanted.maxmemory_samples),
        lfu_log_factor=wanted.lfu_log_factor,
        lfu_decay_time_min=wanted.lfu_decay_time_min,
        unknown_entry_bytes=entry_bytes,
    )


def is_steady(running: RunningReplay, family: str) -> bool:
    """Say whether a replay that began with an empty cache hits by now what the cache would hit."""
    result = running.result()
    return bool(result.evicted) and result.evicted >= _EXCHANGES[family] * result.resident_keys


@dataclass(frozen=True, slots=True)
class _Replayed:
    """Hit ratio of each slice, and the number of the first one that found the cache in a steady state."""

    hit_ratio: npt.NDArray[np.float64]
    warm: int


class CaptureReplay:
    """One capture, numbered once and replayed once per configuration."""

    def __init__(self, evidence: Evidence, seed: int) -> None:
        self._evidence = evidence
        self._seed = seed
        self._replayed: dict[CacheConfiguration, _Replayed | None] = {}
        trace = evidence.trace
        usable = trace is not None and len(trace) >= _ACCESSES_MIN and trace.duration_ms >= _DURATION_MIN_MS
        usable = usable and evidence.current.ttl_ms is None
        self._indexed = index(trace) if usable and trace is not None else None
        if self._indexed is None or self._indexed.distinct_keys < _KEYS_MIN:
            self._indexed = None
            return
        self._edges = np.linspace(0, len(self._indexed.trace), _SLICES + 1).astype(np.int64)

    def difference(self, wanted: CacheConfiguration, base: CacheConfiguration) -> Estimate | None:
        """Return the hit ratio of `wanted` less that of `base`; None if the capture cannot tell."""
        theirs = self._of(base)
        if self._indexed is None or theirs is None:
            return None
        if wanted == base:
            return Estimate(0.0, 0.0, 0.0)
        ours = self._of(wanted)
        if ours is None:
            return None
        slices = (ours.hit_ratio - theirs.hit_ratio)[max(ours.warm, theirs.warm) :]
        slices = slices[~np.isnan(slices)]
        if len(slices) < _SLICES_MIN:
            return None
        # Pieces of equal weight.
        slices = slices[len(slices) % _PIECES :]
        pieces = np.array([part.mean() for part in np.array_split(slices, _PIECES)])
        value = float(pieces.mean())
        spread = _STUDENT_90 * float(pieces.std(ddof=1)) / math.sqrt(_PIECES)
        same_kind = replace(base, maxmemory_bytes=wanted.maxmemory_bytes)
        policy = (0.0, 0.0) if wanted == same_kind else (_POLICY_FLOOR, _POLICY_ERROR * self._lead(ours, same_kind))
        sampling = 0.0
        if self._evidence.sampling_rate < 1.0:
            sampling = _Z90_OVER_MEAN * _SAMPLING_SHARE * error_expected(self._indexed.distinct_keys)
        return Estimate.around(value, math.hypot(spread, sampling, _SERVER_MARGIN, *policy), -1.0, 1.0)

    def _lead(self, ours: _Replayed, other: CacheConfiguration) -> float:
        """Return how far the hit ratios of two eviction policies at the same size lie apart, 1 if one is not known."""
        theirs = self._of(other)
        if theirs is None:
            return 1.0
        apart = (ours.hit_ratio - theirs.hit_ratio)[max(ours.warm, theirs.warm) :]
        return 1.0 if np.isnan(apart).all() else abs(float(np.nanmean(apart)))

    def hit_ratio(self, wanted: CacheConfiguration) -> float | None:
        """Return what `wanted` would have hit once it was warm; None if the capture cannot tell."""
        replayed = self._of(wanted)
        if replayed is None or np.isnan(replayed.hit_ratio[replayed.warm :]).all():
            return None
        return float(np.nanmean(replayed.hit_ratio[replayed.warm :]))

    @property
    def method(self) -> str:
        """Return in words how the difference was found."""
        trace = self._evidence.trace
        seconds = 0.0 if trace is None else trace.duration_ms / 1000.0
        return f"observed hit ratio plus the difference over a capture of {seconds:.0f} s, replayed"

    def _of(self, wanted: CacheConfiguration) -> _Replayed | None:
        if wanted not in self._replayed:
            self._replayed[wanted] = self._replay(wanted)
        return self._replayed[wanted]

    def _replay(self, wanted: CacheConfiguration) -> _Replayed | None:
        """Return None where the capture does not bring the cache to a steady state in time."""
        evidence, indexed = self._evidence, self._indexed
        if indexed is None:
            return None
        config = replay_config(
            wanted, evidence.capacity_bytes(wanted) * evidence.sampling_rate, max(1, round(evidence.mean_entry_bytes))
        )
        if config is None:
            return None
        trace = indexed.trace
        start_ms = int(trace.time_ms[0])
        running = RunningReplay(indexed, config, start_ms, start_ms, self._seed, None)
        register = running.register
        found, warm, hits, reads = np.zeros(_SLICES), 0, 0, 0
        for number in range(_SLICES):
            if not is_steady(running, wanted.family):
                warm = number + 1
            if warm > _SLICES - _SLICES_MIN:
                return None
            running.run(int(self._edges[number]), int(self._edges[number + 1]))
            new_hits, new_reads = int(register[state.REG.hits]), int(register[state.REG.reads])
            # A slice without reads, a bulk load, tells nothing.
            found[number] = (new_hits - hits) / (new_reads - reads) if new_reads > reads else math.nan
            hits, reads = new_hits, new_reads
        return _Replayed(found, warm)
