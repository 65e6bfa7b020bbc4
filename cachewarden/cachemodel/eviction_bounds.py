"""What no cache can beat, and what an exact LRU would do: yardsticks for the replay and for the closed-form models.

Both count keys, not bytes, look at reads and writes alike, and ignore TTLs; no server runs them.

INVARIANT: at the same number of keys, `belady` hits at least as often as any eviction policy.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.jit import compiled
from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["belady", "exact_lru", "stack_distances"]

_NEVER = np.iinfo(np.int64).max


def belady(trace: AccessTrace, capacity_keys: int) -> int:
    """Return the hits of the clairvoyant cache of `capacity_keys` >= 1 keys, which may also decline to keep a key
    (Belady 1966, MIN).
    """
    if capacity_keys < 1:
        raise ValueError(f"capacity of `{capacity_keys}` keys is too small, use at least 1")
    distinct, numbers = np.unique(trace.key, return_inverse=True)
    return int(
        _belady(
            numbers.astype(np.int64), _next_uses(numbers.astype(np.int64), len(distinct)), len(distinct), capacity_keys
        )
    )


def exact_lru(trace: AccessTrace, capacity_keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the hits of an exact LRU at each capacity in keys, all from one pass (Mattson et al. 1970)."""
    distances = stack_distances(trace)
    histogram = np.bincount(distances[distances > 0], minlength=1)
    hits = np.cumsum(histogram)
    wanted = np.clip(np.asarray(capacity_keys, dtype=np.int64), 0, len(hits) - 1)
    found: npt.NDArray[np.int64] = hits[wanted]
    return found


def stack_distances(trace: AccessTrace) -> npt.NDArray[np.int64]:
    """Return for each access the number of distinct keys since the last access of its key, itself included; 0 = first
    access.
    """
    distinct, numbers = np.unique(trace.key, return_inverse=True)
    return _stack_distances(numbers.astype(np.int64), len(distinct))


@compiled
def _next_uses(key: npt.NDArray[np.int64], distinct: int) -> npt.NDArray[np.int64]:
    upcoming = np.full(distinct, _NEVER, np.int64)
    next_use = np.empty(len(key), np.int64)
    for i in range(len(key) - 1, -1, -1):
        next_use[i] = upcoming[key[i]]
        upcoming[key[i]] = i
    return next_use


@compiled
def _belady(key: npt.NDArray[np.int64], next_use: npt.NDArray[np.int64], distinct: int, capacity: int) -> int:
    due = np.full(distinct, -1, np.int64)
    farthest = [(np.int64(0), np.int64(0))]
    farthest.pop()
    resident = 0
    hits = 0
    for i in range(len(key)):
        k = key[i]
        if due[k] >= 0:
            hits += 1
        else:
            resident += 1
        due[k] = next_use[i]
        heapq.heappush(farthest, (-next_use[i], k))
        while resident > capacity:
            when, victim = heapq.heappop(farthest)
            # An entry whose key was used since is out of date; the valid one lies further down.
            if due[victim] == -when:
                due[victim] = -1
                resident -= 1
    return hits


@compiled
def _stack_distances(key: npt.NDArray[np.int64], distinct: int) -> npt.NDArray[np.int64]:
    """Count distinct keys since the last use with a Fenwick tree over positions, one mark per key at its latest use."""
    n = len(key)
    tree = np.zeros(n + 1, np.int64)
    last = np.full(distinct, -1, np.int64)
    distance = np.zeros(n, np.int64)
    seen = 0
    for i in range(n):
        previous = last[key[i]]
        if previous >= 0:
            older = 0
            j = previous + 1
            while j > 0:
                older += tree[j]
                j -= j & -j
            # `older` counts the marks up to and including the key's own, so the key itself is added back.
            distance[i] = seen - older + 1
            j = previous + 1
            while j <= n:
                tree[j] -= 1
                j += j & -j
        else:
            seen += 1
        j = i + 1
        while j <= n:
            tree[j] += 1
            j += j & -j
        last[key[i]] = i
    return distance
