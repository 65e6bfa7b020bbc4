"""Replays an access trace through a cache as Redis would run it: which reads hit, and why the others miss.

It decides nothing about a live cache. Reads that miss load the value at once (cache-aside). All eight eviction policies
are replayed with Redis's own approximations: sampling, the pool of 16, the LRU clock of one second, LFU's logarithmic
counter and its decay by minutes.

INVARIANT: hits + misses = reads, misses = the sum of the misses by cause, and the same seed gives the same result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel import eviction_kernel as kernel
from cachewarden.cachemodel.eviction_bounds import belady, exact_lru
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.knobs import EVICTION_POLICIES, EvictionPolicy

__all__ = [
    "EvictionConfig",
    "IndexedTrace",
    "ReplayResult",
    "ResidentSet",
    "belady",
    "exact_lru",
    "index",
    "replay",
    "replay_indexed",
]


_FAMILY = {
    "lru": kernel.LRU,
    "lfu": kernel.LFU,
    "random": kernel.RANDOM,
    "ttl": kernel.TTL,
    "noeviction": kernel.NEVER,
}


@dataclass(frozen=True, slots=True)
class EvictionConfig:
    """How the replayed cache evicts.

    `capacity_bytes` for entries alone (maxmemory less the fixed overhead), None = unlimited. `maxmemory_samples` 1..64,
    `lfu_log_factor` >= 0, `lfu_decay_time_min` >= 0 (0 = never forget), `lru_clock_resolution_ms` 1000 in Redis.
    `unknown_entry_bytes` stands in for rows of unknown size. Raises ValueError out of these ranges.
    """

    capacity_bytes: int | None
    eviction_policy: EvictionPolicy = "allkeys-lru"
    maxmemory_samples: int = 5
    lfu_log_factor: int = 10
    lfu_decay_time_min: int = 1
    lru_clock_resolution_ms: int = 1000
    unknown_entry_bytes: int = 1

    def __post_init__(self) -> None:
        if self.eviction_policy not in EVICTION_POLICIES:
            known = ", ".join(EVICTION_POLICIES)
            raise ValueError(f"unknown eviction policy `{self.eviction_policy}`, use one of {known}")
        if self.capacity_bytes is not None and self.capacity_bytes < 0:
            raise ValueError(f"capacity of `{self.capacity_bytes}` bytes is negative, use None for no limit")
        if not 1 <= self.maxmemory_samples <= 64:
            raise ValueError(f"maxmemory-samples `{self.maxmemory_samples}` is out of range, use 1 to 64")
        if self.lfu_log_factor < 0 or self.lfu_decay_time_min < 0:
            raise ValueError("lfu-log-factor and lfu-decay-time must not be negative")
        if self.lru_clock_resolution_ms < 1 or self.unknown_entry_bytes < 1:
            raise ValueError("the LRU clock resolution and the stand-in entry size must be at least 1")


@dataclass(frozen=True, slots=True, eq=False)
class ResidentSet:
    """Keys that are in the cache before the first row: hashes, entry bytes, idle time, LFU counter (0..255), remaining
    TTL (0 = none).

    `frequency` None means the counter of a new key. Raises ValueError if the columns differ in length.
    """

    key: npt.NDArray[np.uint64]
    size_bytes: npt.NDArray[np.int64]
    idle_ms: npt.NDArray[np.int64]
    remaining_ttl_ms: npt.NDArray[np.int64]
    frequency: npt.NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.size_bytes), len(self.idle_ms), len(self.remaining_ttl_ms)}
        lengths |= set() if self.frequency is None else {len(self.frequency)}
        if lengths != {len(self.key)}:
            raise ValueError(f"every column of a resident set needs one row per key, there are {len(self.key)} keys")


@dataclass(frozen=True, slots=True)
class ReplayResult:
    """Counts over the measured part of the replay, and what is resident at its end.

    `cold`, `expired_misses`, `evicted_misses`, `refused_misses` and `deleted_misses` say why the missed key was not
    there: never seen before, or gone for that reason. `evicted`, `expired` and `refused` count keys and writes, missed
    or not.
    """

    reads: int
    hits: int
    cold: int
    expired_misses: int
    evicted_misses: int
    refused_misses: int
    deleted_misses: int
    evicted: int
    expired: int
    refused: int
    resident_keys: int
    resident_bytes: int

    @property
    def misses(self) -> int:
        """Return the reads that did not hit."""
        return self.reads - self.hits

    @property
    def hit_ratio(self) -> float:
        """Return hits per read, 0..1; raises ValueError when nothing was read in the measured part."""
        if self.reads == 0:
            raise ValueError("no reads in the measured part, measure from an earlier time")
        return self.hits / self.reads


@dataclass(frozen=True, slots=True, eq=False)
class IndexedTrace:
    """A trace whose keys (and the initial residents) are numbered from zero, ready to be replayed many times."""

    trace: AccessTrace
    key: npt.NDArray[np.int32]
    distinct_keys: int
    initial: ResidentSet | None
    initial_key: npt.NDArray[np.int32]


def index(trace: AccessTrace, initial: ResidentSet | None = None) -> IndexedTrace:
    """Number the keys once, so that several configurations can be replayed without sorting again."""
    head = np.zeros(0, np.uint64) if initial is None else initial.key
    distinct, numbers = np.unique(np.concatenate([head, trace.key]), return_inverse=True)
    if len(np.unique(numbers[: len(head)])) != len(head):
        raise ValueError("the initial resident set holds a key twice")
    return IndexedTrace(
        trace,
        numbers[len(head) :].astype(np.int32),
        len(distinct),
        initial,
        numbers[: len(head)].astype(np.int32),
    )


def replay(
    trace: AccessTrace,
    config: EvictionConfig,
    initial: ResidentSet | None = None,
    measure_from_ms: int | None = None,
    seed: int = 1,
) -> ReplayResult:
    """Replay `trace` from an empty cache or from `initial`; count from `measure_from_ms` (by default everything)."""
    return replay_indexed(index(trace, initial), config, measure_from_ms, seed)


def replay_indexed(
    indexed: IndexedTrace, config: EvictionConfig, measure_from_ms: int | None = None, seed: int = 1
) -> ReplayResult:
    """Replay an indexed trace; see `replay`."""
    trace = indexed.trace
    c = _kernel_config(config)
    table, expires, lists, register, rng = kernel.empty_state(indexed.distinct_keys, seed)
    if indexed.initial is not None:
        _prime(table, expires, lists, register, c, indexed, indexed.initial, int(trace.time_ms[0]) if len(trace) else 0)
    kernel.run(
        table,
        expires,
        lists,
        register,
        rng,
        c,
        trace.time_ms,
        indexed.key,
        trace.op,
        trace.size_bytes,
        trace.ttl_ms,
        np.iinfo(np.int64).min if measure_from_ms is None else measure_from_ms,
    )
    reg = kernel.REG
    count = [int(value) for value in register]
    causes = count[reg.miss_by_cause : reg.miss_by_cause + 5]
    return ReplayResult(
        reads=count[reg.reads],
        hits=count[reg.hits],
        cold=causes[kernel.COLD],
        expired_misses=causes[kernel.EXPIRED],
        evicted_misses=causes[kernel.EVICTED],
        refused_misses=causes[kernel.REFUSED],
        deleted_misses=causes[kernel.DELETED],
        evicted=count[reg.evicted],
        expired=count[reg.expired],
        refused=count[reg.refused],
        resident_keys=count[reg.resident],
        resident_bytes=count[reg.used_bytes],
    )


def _kernel_config(config: EvictionConfig) -> kernel.IntArray:
    c = np.zeros(kernel.CFG.size, np.int64)
    cfg = kernel.CFG
    c[cfg.capacity_bytes] = np.iinfo(np.int64).max if config.capacity_bytes is None else config.capacity_bytes
    c[cfg.family] = _FAMILY[config.eviction_policy.rpartition("-")[2]]
    c[cfg.only_volatile] = config.eviction_policy.startswith("volatile-")
    c[cfg.samples] = config.maxmemory_samples
    c[cfg.lfu_log_factor] = config.lfu_log_factor
    c[cfg.lfu_decay_time_min] = config.lfu_decay_time_min
    c[cfg.lru_clock_resolution_ms] = config.lru_clock_resolution_ms
    c[cfg.unknown_entry_bytes] = config.unknown_entry_bytes
    return c


def _prime(
    table: kernel.IntList,
    expires: kernel.IntArray,
    lists: kernel.IntList,
    register: kernel.IntArray,
    c: kernel.IntArray,
    indexed: IndexedTrace,
    initial: ResidentSet,
    start_ms: int,
) -> None:
    for row, number in enumerate(indexed.initial_key):
        remaining = int(initial.remaining_ttl_ms[row])
        touched_ms = start_ms - int(initial.idle_ms[row])
        expires_ms = start_ms + remaining if remaining > 0 else 0
        size, tick = int(initial.size_bytes[row]), touched_ms // kernel.tick_ms(c)
        kernel.admit(table, expires, lists, register, int(number), size, expires_ms, tick)
    if initial.frequency is not None:
        table[kernel.COL.counter, indexed.initial_key] = initial.frequency
