"""A spatial sample, mended: as many keys of each popularity as a sample of its size should hold.

Which keys a hash keeps is chance, and a few keys of middling popularity too many or too few move the hit ratio by more
than all the others. How often every key of the stream came is known (`key_popularity`), so the sampled keys are put in
classes of popularity; where a class holds too many, some are left out, where it holds too few, some count twice
(post-stratification, made whole so that every key still weighs the same in the replayed cache). Errors of hit ratios
are lower than those of the count correction alone. It decides nothing and draws nothing: the hashes decide.

INVARIANT: whatever is kept is kept with all its accesses, in time order; each group is as balanced as the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.key_groups import GROUPS, group_of
from cachewarden.cachemodel.key_popularity import KeyPopularity
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["SampledKeys", "balanced"]

# A class needs some keys, or leaving one out would be as much of an accident as what it mends.
_CLASS_KEYS_MIN = 24


@dataclass(frozen=True, slots=True, eq=False)
class SampledKeys:
    """A sample ready to be replayed: `group` 0..GROUPS-1 of each row's key, `rate` 0..1 of all keys that it stands
    for, `keys` that were sampled, `counted` whether the rate rests on counting all keys.
    """

    trace: AccessTrace
    group: npt.NDArray[np.uint8]
    rate: float
    keys: int
    counted: bool


def balanced(sample: AccessTrace, rate: float, popularity: KeyPopularity | None) -> SampledKeys:
    """Return a sample that was taken at `rate` (0..1) as well balanced as what is known of all keys allows.

    Without `popularity` it is left as it is and its rate is believed.
    """
    keys, number = np.unique(sample.key, return_inverse=True)
    everything = None if popularity is None else popularity.distinct_keys()
    if popularity is None or everything is None or len(keys) == 0:
        return SampledKeys(sample, group_of(sample.key), rate, len(keys), counted=False)
    rate = min(1.0, len(keys) / max(everything, 1))
    if popularity.crowded:
        return SampledKeys(sample, group_of(sample.key), rate, len(keys), counted=True)
    counts = popularity.of(keys)
    bounds = _classes(counts)
    of_class = np.searchsorted(bounds, counts, side="right") - 1
    held = np.bincount(of_class, minlength=len(bounds))
    expected = popularity.keys_between(bounds).astype(np.float64)
    ends = np.rint(np.cumsum(expected) * len(keys) / expected.sum()).astype(np.int64)
    wanted = np.diff(ends, prepend=0)
    # Keys are sorted by hash, so their order within a class is as good as drawn.
    order = np.argsort(of_class, kind="stable")
    rank = np.empty(len(keys), np.int64)
    rank[order] = np.arange(len(keys)) - np.repeat(np.cumsum(held) - held, held)
    times = wanted[of_class] // held[of_class] + (rank < wanted[of_class] % held[of_class])
    first_place = (ends - wanted)[of_class] + rank

    repeated = times[number]
    row = np.repeat(np.arange(len(sample)), repeated)
    copy = np.arange(len(row)) - np.repeat(np.cumsum(repeated) - repeated, repeated)
    trace = AccessTrace(*(np.ascontiguousarray(column[row]) for column in _columns(sample)))
    trace.key[copy > 0] = mix(trace.key[copy > 0] ^ copy[copy > 0].astype(np.uint64))
    group = (first_place[number[row]] + copy * held[of_class[number[row]]]) % GROUPS
    return SampledKeys(trace, group.astype(np.uint8), rate, len(keys), counted=True)


def _classes(counts: npt.NDArray[np.uint16]) -> npt.NDArray[np.int64]:
    """Return the least count of each class of popularity, from 1 up, so that each holds enough sampled keys."""
    values, keys = np.unique(counts, return_counts=True)
    bounds, inside = [1], 0
    for value, some in zip(values.tolist(), keys.tolist(), strict=True):
        if inside >= _CLASS_KEYS_MIN:
            bounds.append(value)
            inside = 0
        inside += some
    if inside < _CLASS_KEYS_MIN and len(bounds) > 1:
        bounds.pop()
    return np.array(bounds, np.int64)


def _columns(trace: AccessTrace) -> tuple[npt.NDArray[np.generic], ...]:
    return trace.time_ms, trace.key, trace.op, trace.size_bytes, trace.ttl_ms
