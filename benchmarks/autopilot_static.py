"""The best static configuration of a fleet, found by replaying every stream under every configuration at every size.

It knows the future, which no autopilot does: each service gets the eviction policy, the LFU parameters and the memory
that were best for what was going to happen. What the past alone can tell is `best_of_past`: the same search over what
has been, again and again, applied at once and without caution. A planner that forgets may do otherwise; what lies above
both is known to the future only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from benchmarks.autopilot_streams import ENTRY_BYTES, Stream
from cachewarden.cachemodel.eviction import (
    EvictionConfig,
    IndexedTrace,
    ReplaySchedule,
    ScheduledChange,
    index,
    replay_indexed,
)

__all__ = ["StaticChoice", "best_of_past", "best_static", "hits_of"]

_LFU = tuple((log, decay) for log in (1, 10) for decay in (1, 5, 30))
CONFIGURATIONS = (
    EvictionConfig(1),
    EvictionConfig(1, "allkeys-random"),
    *(EvictionConfig(1, "allkeys-lfu", lfu_log_factor=log, lfu_decay_time_min=decay) for log, decay in _LFU),
)


@dataclass(frozen=True, slots=True)
class StaticChoice:
    """What one service gets, and the hits that it has with it after `measure_from_ms`."""

    name: str
    config: EvictionConfig
    hits: int
    lru_hits: int
    """With the same memory under LRU."""


def hits_of(
    indexed: IndexedTrace,
    config: EvictionConfig,
    measure_from_ms: int,
    changes: Sequence[tuple[int, EvictionConfig]] = (),
) -> int:
    """Return the hits from `measure_from_ms` on; `changes` say what holds later, and from when on."""
    schedule = ReplaySchedule(tuple(ScheduledChange(at_ms, later) for at_ms, later in changes))
    return replay_indexed(indexed, config, measure_from_ms, schedule=schedule).hits


def best_static(
    streams: Sequence[Stream],
    total_bytes: int,
    least_bytes: int,
    measure_from_ms: int,
    floors: Sequence[float],
    points: int = 10,
) -> list[StaticChoice]:
    """Return the best split and configurations; `total_bytes` for entries alone.

    Sizes are a geometric grid per service, hits between them interpolated; the split is exact on a grid of `total /
    240` (dynamic programming).
    """
    steps = 240
    step = total_bytes / steps
    curves, configs, grids = [], [], []
    indexed = [index(stream.trace) for stream in streams]
    for stream, one in zip(streams, indexed, strict=True):
        top = min(total_bytes, stream.distinct_keys * ENTRY_BYTES * 1.02)
        grid = np.unique(np.geomspace(least_bytes, max(top, 2 * least_bytes), points).astype(np.int64))
        table = np.array(
            [
                [hits_of(one, _sized(config, size), measure_from_ms) for size in grid.tolist()]
                for config in CONFIGURATIONS
            ]
        )
        grids.append(grid)
        configs.append(table)
        curves.append(np.interp(np.arange(steps + 1) * step, grid, np.maximum.accumulate(table.max(axis=0))))
    reads = [int(np.sum(s.trace.time_ms >= measure_from_ms)) for s in streams]
    least = int(np.ceil(least_bytes / step))
    split = _split(curves, steps, least, [f * r for f, r in zip(floors, reads, strict=True)])
    found = []
    for stream, one, table, grid, taken in zip(streams, indexed, configs, grids, split, strict=True):
        size = int(taken * step)
        at = [np.interp(size, grid, row) for row in table]
        tried = [_sized(CONFIGURATIONS[i], size) for i in np.argsort(at)[::-1][:3]]
        hits = [hits_of(one, config, measure_from_ms) for config in tried]
        best = int(np.argmax(hits))
        lru = hits_of(one, EvictionConfig(size), measure_from_ms)
        config = tried[best] if hits[best] >= lru else EvictionConfig(size)
        found.append(StaticChoice(stream.name, config, max(hits[best], lru), lru))
    return found


def best_of_past(
    streams: Sequence[Stream],
    total_bytes: int,
    least_bytes: int,
    measure_from_ms: int,
    floor_below: float,
    every_ms: int,
) -> dict[str, int]:
    """Return the hits from `measure_from_ms` on of a fleet that gets, each `every_ms`, what was best until then.

    It begins with the equal split under LRU. A floor lies `floor_below` under what that gave over the same past.
    """
    each = EvictionConfig(total_bytes // len(streams))
    indexed = [index(stream.trace) for stream in streams]
    changes: list[list[tuple[int, EvictionConfig]]] = [[] for _ in streams]
    until_ms = max(int(stream.trace.time_ms[-1]) for stream in streams)
    for now_ms in range(every_ms, until_ms, every_ms):
        past = [
            replace(s, trace=s.trace.rows(slice(0, int(np.searchsorted(s.trace.time_ms, now_ms))))) for s in streams
        ]
        floors = [hits_of(index(s.trace), each, 0) / max(len(s.trace), 1) - floor_below for s in past]
        for later, choice in zip(changes, best_static(past, total_bytes, least_bytes, 0, floors), strict=True):
            later.append((now_ms, choice.config))
    return {
        stream.name: hits_of(one, each, measure_from_ms, later)
        for stream, one, later in zip(streams, indexed, changes, strict=True)
    }


def _sized(config: EvictionConfig, size: int) -> EvictionConfig:
    return replace(config, capacity_bytes=size)


def _split(curves: Sequence[npt.NDArray[np.float64]], steps: int, least: int, floors: Sequence[float]) -> list[int]:
    """Return the steps that each service gets, with the most hits in all and no floor broken."""
    best = np.zeros(steps + 1)
    taken = []
    for curve, floor in zip(curves, floors, strict=True):
        own = np.where((np.arange(steps + 1) >= least) & (curve >= floor), curve, -np.inf)
        sums = np.array([[best[have - mine] + own[mine] if mine <= have else -np.inf for mine in range(steps + 1)]
                         for have in range(steps + 1)])  # fmt: skip
        taken.append(sums.argmax(axis=1))
        best = sums.max(axis=1)
    left, split = steps, []
    for choice in reversed(taken):
        split.append(int(choice[left]))
        left -= split[-1]
    return split[::-1]
