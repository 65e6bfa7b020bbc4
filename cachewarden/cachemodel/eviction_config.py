"""How a replayed cache is configured, and when that changes while the trace runs.

It decides nothing and replays nothing (`eviction` does); it refuses what no server would accept.

INVARIANT: a configuration that could be built can be replayed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.server_model import REDIS_7_0, ServerModel
from cachewarden.knobs import EVICTION_POLICIES, EvictionPolicy

__all__ = ["EvictionConfig", "ModifiedPolicy", "ReplaySchedule", "ScheduledChange", "kernel_config"]

ModifiedPolicy = Literal["allkeys-lrm", "volatile-lrm"]
"""Redis 8.6: evict what was least recently written; a read refreshes nothing."""
_MODIFIED_POLICIES: tuple[ModifiedPolicy, ...] = get_args(ModifiedPolicy)

_FAMILY = {
    "lru": state.LRU,
    "lfu": state.LFU,
    "lrm": state.LRM,
    "random": state.RANDOM,
    "ttl": state.TTL,
    "noeviction": state.NEVER,
}
# active-expire-effort in expire.c: more keys per loop, less accepted staleness and more time by each step of effort.
_CYCLE_KEYS = 20
_CYCLE_STALE_PERCENT = 10
# A cycle may take 25 % of its 100 ms at roughly 1 us a key.
_CYCLE_LOOPS_MAX = 1250
_NO_LIMIT = int(np.iinfo(np.int64).max)


@dataclass(frozen=True, slots=True)
class EvictionConfig:
    """How the replayed cache evicts.

    `capacity_bytes` is maxmemory less the fixed overhead (start-up, buffers, backlog), None = unlimited: for entries
    alone if their sizes already hold a share of the hash tables (`memory_accounting.entry_bytes`); with
    `counts_tables` the replay grows the tables of `server` itself (sizes from `ServerModel.entry_bytes`).
    `maxmemory_samples` 1..64, `lfu_log_factor` >= 0, `lfu_decay_time_min` >= 0 (0 = never forget),
    `lru_clock_resolution_ms` 1000 in Redis, `active_expire_effort` 1..10. `unknown_entry_bytes` stands in for rows of
    unknown size. Raises ValueError out of these ranges, or if `server` lacks what is asked of it.
    """

    capacity_bytes: int | None
    eviction_policy: EvictionPolicy | ModifiedPolicy = "allkeys-lru"
    maxmemory_samples: int = 5
    lfu_log_factor: int = 10
    lfu_decay_time_min: int = 1
    lru_clock_resolution_ms: int = 1000
    unknown_entry_bytes: int = 1
    active_expire_effort: int = 1
    server: ServerModel = REDIS_7_0
    counts_tables: bool = False

    def __post_init__(self) -> None:
        if self.eviction_policy not in EVICTION_POLICIES + _MODIFIED_POLICIES:
            known = ", ".join(EVICTION_POLICIES + _MODIFIED_POLICIES)
            raise ValueError(f"unknown eviction policy `{self.eviction_policy}`, use one of {known}")
        if self.eviction_policy in _MODIFIED_POLICIES and not self.server.modified_policies:
            raise ValueError(f"`{self.server.name}` does not know `{self.eviction_policy}`, replay a server that does")
        if self.counts_tables and self.server.table is None:
            raise ValueError(f"the hash tables of `{self.server.name}` are not known, replay entries alone")
        if self.capacity_bytes is not None and self.capacity_bytes < 0:
            raise ValueError(f"capacity of `{self.capacity_bytes}` bytes is negative, use None for no limit")
        if not 1 <= self.maxmemory_samples <= 64:
            raise ValueError(f"maxmemory-samples `{self.maxmemory_samples}` is out of range, use 1 to 64")
        if self.lfu_log_factor < 0 or self.lfu_decay_time_min < 0:
            raise ValueError("lfu-log-factor and lfu-decay-time must not be negative")
        if self.lru_clock_resolution_ms < 1 or self.unknown_entry_bytes < 1:
            raise ValueError("the LRU clock resolution and the stand-in entry size must be at least 1")
        if not 1 <= self.active_expire_effort <= 10:
            raise ValueError(f"active-expire-effort `{self.active_expire_effort}` is out of range, use 1 to 10")

    @property
    def family(self) -> int:
        """Return the number of the family in `eviction_state`."""
        return _FAMILY[self.eviction_policy.rpartition("-")[2]]

    @property
    def tick_ms(self) -> int:
        """Return the length of a tick of the access clock: a minute under LFU, else the LRU clock's resolution."""
        return 60_000 if self.family == state.LFU else self.lru_clock_resolution_ms


@dataclass(frozen=True, slots=True)
class ScheduledChange:
    """From `time_ms` (the trace's time) on, `config` holds, as after a CONFIG SET."""

    time_ms: int
    config: EvictionConfig


@dataclass(frozen=True, slots=True)
class ReplaySchedule:
    """Changes of configuration during a replay, in time order: staged maxmemory, a switch of the eviction policy.

    The server keeps one 24-bit field per key for LRU and LFU alike and misreads it after a switch. What it misreads
    depends on the wall clock: `unix_ms_at_zero` is the Unix time of the trace's time 0 (0 if the trace holds Unix
    times). None = unknown: then old keys get frequency 0 under LFU, and under LRU look idle for weeks, which holds for
    almost every moment. Raises ValueError if the times run backwards.
    """

    changes: tuple[ScheduledChange, ...]
    unix_ms_at_zero: int | None = None

    def __post_init__(self) -> None:
        times = [change.time_ms for change in self.changes]
        if times != sorted(times):
            raise ValueError("scheduled changes run backwards, sort them by time")


def kernel_config(config: EvictionConfig) -> state.IntArray:
    """Return the configuration as the array that the compiled replay reads."""
    c = np.zeros(state.CFG.size, np.int64)
    cfg = state.CFG
    c[cfg.capacity_bytes] = _NO_LIMIT if config.capacity_bytes is None else config.capacity_bytes
    c[cfg.family] = config.family
    c[cfg.only_volatile] = config.eviction_policy.startswith("volatile-")
    c[cfg.samples] = config.maxmemory_samples
    c[cfg.lfu_log_factor] = config.lfu_log_factor
    c[cfg.lfu_decay_time_min] = config.lfu_decay_time_min
    c[cfg.lru_clock_resolution_ms] = config.lru_clock_resolution_ms
    c[cfg.unknown_entry_bytes] = config.unknown_entry_bytes
    c[cfg.sampling_decays] = config.server.sampling_decays
    effort = config.active_expire_effort - 1
    c[cfg.cycle_keys] = _CYCLE_KEYS + effort * (_CYCLE_KEYS // 4)
    c[cfg.cycle_stale_percent] = _CYCLE_STALE_PERCENT - effort
    # 25 % of the time and 2 % more by each step, in loops of more keys each.
    c[cfg.cycle_loops_max] = _CYCLE_LOOPS_MAX * (25 + 2 * effort) * _CYCLE_KEYS // (25 * int(c[cfg.cycle_keys]))
    c[cfg.unit_keys] = 1
    if config.counts_tables and config.server.table is not None:
        c[cfg.unit_keys] = config.server.table.unit_keys
        c[cfg.unit_bytes] = config.server.table.unit_bytes
        c[cfg.crowded_permille] = round(config.server.table.crowded * 1000)
        c[cfg.sparse_percent] = round(config.server.table.sparse * 100)
    return c
