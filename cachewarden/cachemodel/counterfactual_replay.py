"""Replays a captured past as if a change had never been made, moment by moment.

What a cache hits after a change differs from what it hit before for two reasons: the change, and the traffic. The same
requests replayed under the old configuration show the second alone; how far the replay's level is off from the
server's cancels where its own moments are compared with each other.

INVARIANT: counting begins only once the replayed cache hits what a server's would (`capture_replay.is_steady`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.capture_replay import is_steady, replay_config
from cachewarden.cachemodel.eviction import RunningReplay, index
from cachewarden.cachemodel.evidence import CacheConfiguration
from cachewarden.cachemodel.trace import AccessTrace

__all__ = ["ReplayedCounts", "replay_unchanged"]

_KEYS_MIN = 200
_BUCKETS_MIN = 2


@dataclass(frozen=True, slots=True)
class ReplayedCounts:
    """Lookups and hits counted up from `from_ms`, at edges of equal distance; both begin with 0."""

    from_ms: int
    lookups: tuple[int, ...]
    hits: tuple[int, ...]
    distinct_keys: int


def replay_unchanged(
    trace: AccessTrace,
    spatial_rate: float,
    unchanged: CacheConfiguration,
    capacity_bytes: float,
    entry_bytes: int,
    since_ms: int,
    bucket_ms: int,
    seed: int = 1,
) -> ReplayedCounts | None:
    """Return what `trace` hits under `unchanged` from `since_ms` on, or from when the replay is steady; None where it
    never is, or where the configuration cannot be replayed.

    `trace` has fills folded in (`fills`) and is a spatial sample at `spatial_rate` of the requests to a cache with
    `capacity_bytes` for its entries of `entry_bytes` each. The last edge is the last whole bucket of the trace.
    """
    config = replay_config(unchanged, capacity_bytes * spatial_rate, entry_bytes)
    if config is None or len(trace) == 0:
        return None
    indexed = index(trace)
    if indexed.distinct_keys < _KEYS_MIN:
        return None
    time_ms = indexed.trace.time_ms
    start_ms, end_ms = int(time_ms[0]), int(time_ms[-1])
    edges_ms = np.arange(max(since_ms, start_ms), end_ms + 1, bucket_ms)
    running = RunningReplay(indexed, config, start_ms, start_ms, seed, None)
    row, from_ms = 0, None
    lookups: list[int] = []
    hits: list[int] = []
    for edge_ms, until in zip(edges_ms.tolist(), np.searchsorted(time_ms, edges_ms).tolist(), strict=True):
        running.run(row, until)
        row = until
        if from_ms is None and not is_steady(running, unchanged.family):
            continue
        from_ms = edge_ms if from_ms is None else from_ms
        lookups.append(int(running.register[state.REG.reads]))
        hits.append(int(running.register[state.REG.hits]))
    if from_ms is None or len(lookups) < _BUCKETS_MIN:
        return None
    return ReplayedCounts(
        from_ms=from_ms,
        lookups=tuple(n - lookups[0] for n in lookups),
        hits=tuple(n - hits[0] for n in hits),
        distinct_keys=indexed.distinct_keys,
    )
