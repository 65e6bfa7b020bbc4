"""Replays an access trace through a cache as Redis would run it: which reads hit, and why the others miss.

It decides nothing about a live cache. Reads that miss load the value at once (cache-aside). All eviction policies
are replayed with the server's own approximations: sampling, the pool of 16, the LRU clock of one second, LFU's
logarithmic counter and its decay by minutes. The configuration may change while the trace runs (`ReplaySchedule`).

INVARIANT: hits + misses = reads, misses = the sum of the misses by cause, and the same seed gives the same result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel import eviction_kernel as kernel
from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.access_field import counters_after_switch_to_lfu, idle_after_switch_to_lru
from cachewarden.cachemodel.eviction_bounds import belady, exact_lru
from cachewarden.cachemodel.eviction_config import EvictionConfig, ReplaySchedule, ScheduledChange, kernel_config
from cachewarden.cachemodel.eviction_misses import run_noting_misses
from cachewarden.cachemodel.trace import AccessTrace

__all__ = [
    "EvictionConfig",
    "IndexedTrace",
    "ReplayLook",
    "ReplayResult",
    "ReplaySchedule",
    "ResidentSet",
    "RunningReplay",
    "ScheduledChange",
    "belady",
    "exact_lru",
    "index",
    "replay",
    "replay_indexed",
    "replay_looks",
]

# How idle old keys look to LRU after a switch from LFU, in ticks of a second: weeks. Measured: 6.97 million seconds.
_MISREAD_IDLE = 1 << 22


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
    """A trace whose keys (and the initial residents) are numbered from zero, ready to be replayed many times.

    Takes 4 bytes a row beside the trace (29 bytes a row); each replay that runs takes 32 bytes for each distinct key
    (`eviction_state.BYTES_PER_KEY`) and nothing that grows with the rows.
    """

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
    schedule: ReplaySchedule | None = None,
) -> ReplayResult:
    """Replay `trace` from an empty cache or from `initial`; count from `measure_from_ms` (by default everything).

    `config` holds until the first change of `schedule`. Raises ValueError if a change would exchange the server.
    """
    return replay_indexed(index(trace, initial), config, measure_from_ms, seed, schedule)


def replay_indexed(
    indexed: IndexedTrace,
    config: EvictionConfig,
    measure_from_ms: int | None = None,
    seed: int = 1,
    schedule: ReplaySchedule | None = None,
) -> ReplayResult:
    """Replay an indexed trace; see `replay`."""
    trace = indexed.trace
    changes = () if schedule is None else schedule.changes
    unix_ms = None if schedule is None else schedule.unix_ms_at_zero
    start_ms = int(trace.time_ms[0]) if len(trace) else 0
    measure_from_ms = np.iinfo(np.int64).min if measure_from_ms is None else measure_from_ms
    running = RunningReplay(indexed, config, start_ms, measure_from_ms, seed, unix_ms)
    done = 0
    for change in changes:
        until = int(np.searchsorted(trace.time_ms, change.time_ms, side="left"))
        running.run(done, until)
        running.change(change)
        done = until
    running.run(done, len(trace))
    return running.result()


@dataclass(frozen=True, slots=True, eq=False)
class ReplayLook:
    """What a look at the replayed cache at `time_ms` would show: counts since the start, and who is resident.

    `residents` has idle times by the server's own clock, which counts whole ticks, and counters as they are stored: not
    yet decayed for the time since the key was last touched.
    """

    time_ms: int
    counts: ReplayResult
    residents: ResidentSet


def replay_looks(
    indexed: IndexedTrace, config: EvictionConfig, times_ms: Sequence[int], seed: int = 1
) -> list[ReplayLook]:
    """Replay an indexed trace once and look at the cache at each of these rising times; see `replay` for the rest."""
    trace = indexed.trace
    if list(times_ms) != sorted(times_ms):
        raise ValueError("times of looks run backwards, sort them")
    start_ms = int(trace.time_ms[0]) if len(trace) else 0
    running = RunningReplay(indexed, config, start_ms, int(np.iinfo(np.int64).min), seed, None)
    looks, done = [], 0
    for time_ms in times_ms:
        until = int(np.searchsorted(trace.time_ms, time_ms, side="left"))
        running.run(done, until)
        done = until
        looks.append(ReplayLook(int(time_ms), running.result(), running.residents(int(time_ms))))
    return looks


class RunningReplay:
    """One replay under way: the arrays of the kernel and the configuration that holds now."""

    def __init__(
        self,
        indexed: IndexedTrace,
        config: EvictionConfig,
        start_ms: int,
        measure_from_ms: int,
        seed: int,
        unix_ms: int | None,
    ) -> None:
        self.indexed = indexed
        self.config = config
        self.measure_from_ms = measure_from_ms
        self.unix_ms = unix_ms
        keys = indexed.distinct_keys
        self.table, self.expires, self.lists, self.register, self.rng = state.empty_state(keys, seed)
        phase_ms = 0 if unix_ms is None else unix_ms
        # A whole minute of the wall clock, so that seconds and minutes turn when the server's do.
        self.origin_ms = (start_ms + phase_ms) // 60_000 * 60_000 - phase_ms
        self.c = self._kernel_config()
        self.register[state.REG.next_cycle_ms] = start_ms + kernel.CYCLE_MS
        if indexed.initial is not None:
            self._prime(indexed.initial, start_ms)

    def _prime(self, initial: ResidentSet, start_ms: int) -> None:
        remaining = initial.remaining_ttl_ms
        number = self.indexed.initial_key
        kernel.prime(
            *self._arrays(),
            number,
            initial.size_bytes.astype(np.int64),
            np.where(remaining > 0, start_ms + remaining, 0),
            (start_ms - self.origin_ms - initial.idle_ms) // self.config.tick_ms,
        )
        if initial.frequency is not None and self.config.family == state.LFU:
            minutes = self.table[state.COL.access, number] // state.LFU_COUNTERS
            self.table[state.COL.access, number] = minutes * state.LFU_COUNTERS + initial.frequency

    def run(self, first: int, until: int) -> None:
        """Replay the rows from `first` to before `until`."""
        trace = self.indexed.trace
        measured = int(np.clip(np.searchsorted(trace.time_ms, self.measure_from_ms), first, until))
        for rows in (slice(first, measured), slice(measured, until)):
            self.register[state.REG.measuring] = rows.start == measured
            kernel.run(
                *self._arrays(),
                trace.time_ms[rows],
                self.indexed.key[rows],
                trace.op[rows],
                trace.size_bytes[rows],
                trace.ttl_ms[rows],
            )

    def run_noting_misses(self, first: int, until: int) -> list[int]:
        """Replay the rows from `first` to before `until`; returns the rows of reads that missed."""
        trace, rows = self.indexed.trace, slice(first, until)
        self.register[state.REG.measuring] = True
        missed = np.zeros(until - first, np.bool_)
        run_noting_misses(
            *self._arrays(),
            trace.time_ms[rows],
            self.indexed.key[rows],
            trace.op[rows],
            trace.size_bytes[rows],
            trace.ttl_ms[rows],
            missed,
        )
        return [first + int(row) for row in np.flatnonzero(missed)]

    def change(self, change: ScheduledChange) -> None:
        """Switch to another configuration as CONFIG SET does: old fields are misread, then what is too much goes."""
        old, new = self.config, change.config
        if (old.server, old.counts_tables, old.unknown_entry_bytes, old.lru_clock_resolution_ms) != (
            new.server,
            new.counts_tables,
            new.unknown_entry_bytes,
            new.lru_clock_resolution_ms,
        ):
            raise ValueError(
                "a scheduled change may not exchange the server or how it is accounted, replay it on its own"
            )
        capacity_before = int(self.c[state.CFG.capacity_bytes])
        self.config = new
        self.c = self._kernel_config()
        if new.family != old.family:
            # Scores of another kind cannot be compared; on a server at most sixteen keys feel it.
            state.clear_pool(self.register)
        if (new.family == state.LFU) != (old.family == state.LFU):
            self._misread(change.time_ms, to_lfu=new.family == state.LFU)
        if int(self.c[state.CFG.capacity_bytes]) < capacity_before:
            self.register[state.REG.measuring] = change.time_ms >= self.measure_from_ms
            kernel.make_room(*self._arrays(), (change.time_ms - self.origin_ms) // new.tick_ms)

    def _misread(self, now_ms: int, *, to_lfu: bool) -> None:
        resident = self.lists[state.RESIDENT, : int(self.register[state.REG.resident])]
        access = self.table[state.COL.access, resident].astype(np.int64)
        # What is kept is the server's field without its wrapping around.
        touched, counter = (access, np.zeros_like(access)) if to_lfu else np.divmod(access, state.LFU_COUNTERS)
        unit_ms = self.config.lru_clock_resolution_ms
        tick = (now_ms - self.origin_ms) // self.config.tick_ms
        if self.unix_ms is None:
            elapsed = np.zeros_like(access) if to_lfu else _MISREAD_IDLE + access.max(initial=0) - access
        else:
            now_unix_ms, unix_origin_ms = now_ms + self.unix_ms, self.origin_ms + self.unix_ms
            if to_lfu:
                touched_unix_ms = touched * unit_ms + unix_origin_ms
                wrap_at = self.config.server.minutes_wrap_at
                counter, elapsed = counters_after_switch_to_lfu(touched_unix_ms, now_unix_ms, wrap_at, unit_ms)
            else:
                touched_unix_min = touched + unix_origin_ms // 60_000
                elapsed = idle_after_switch_to_lru(touched_unix_min, counter, now_unix_ms, unit_ms) // unit_ms
        touched = tick - elapsed
        self.table[state.COL.access, resident] = touched * state.LFU_COUNTERS + counter if to_lfu else touched

    def _kernel_config(self) -> state.IntArray:
        c = kernel_config(self.config)
        c[state.CFG.origin_ms] = self.origin_ms
        return c

    def _arrays(
        self,
    ) -> tuple[state.IntList, state.IntArray, state.IntList, state.IntArray, state.Seed, state.IntArray]:
        return self.table, self.expires, self.lists, self.register, self.rng, self.c

    def residents(self, now_ms: int) -> ResidentSet:
        """Return who is resident now."""
        number = self.lists[state.RESIDENT, : int(self.register[state.REG.resident])]
        hashes = np.zeros(self.indexed.distinct_keys, np.uint64)
        hashes[self.indexed.key] = self.indexed.trace.key
        if self.indexed.initial is not None:
            hashes[self.indexed.initial_key] = self.indexed.initial.key
        tick = (now_ms - self.origin_ms) // self.config.tick_ms
        access = self.table[state.COL.access, number].astype(np.int64)
        lfu = self.config.family == state.LFU
        touched, counter = np.divmod(access, state.LFU_COUNTERS) if lfu else (access, None)
        expires_ms = self.expires[number]
        return ResidentSet(
            key=hashes[number],
            size_bytes=self.table[state.COL.size_bytes, number].astype(np.int64),
            idle_ms=(tick - touched) * self.config.tick_ms,
            remaining_ttl_ms=np.where(expires_ms > 0, np.maximum(expires_ms - now_ms, 1), 0),
            frequency=None if counter is None else counter.astype(np.uint8),
        )

    def result(self) -> ReplayResult:
        """Return the counts so far."""
        reg = state.REG
        count = [int(value) for value in self.register[: reg.table_units]]
        causes = count[reg.miss_by_cause : reg.miss_by_cause + 5]
        return ReplayResult(
            reads=count[reg.reads],
            hits=count[reg.hits],
            cold=causes[state.COLD],
            expired_misses=causes[state.EXPIRED],
            evicted_misses=causes[state.EVICTED],
            refused_misses=causes[state.REFUSED],
            deleted_misses=causes[state.DELETED],
            evicted=count[reg.evicted],
            expired=count[reg.expired],
            refused=count[reg.refused],
            resident_keys=count[reg.resident],
            resident_bytes=count[reg.used_bytes],
        )
