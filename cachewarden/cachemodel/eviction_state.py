"""Where the replay keeps what: indices into its plain arrays, and the arrays of an empty cache.

It computes nothing. Plain arrays and not objects: an attribute access in the compiled loop would cost a reference
count, which is ten times the access itself.

INVARIANT: `eviction_kernel` freezes these numbers when it is compiled and its cache on disk watches its own file only,
so a change here goes together with a change there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "ABSENT",
    "BYTES_PER_KEY",
    "CAUSES",
    "CFG",
    "COL",
    "COLD",
    "DELETED",
    "EVICTED",
    "EXPIRED",
    "FREE",
    "LFU",
    "LFU_COUNTERS",
    "LRM",
    "LRU",
    "NEVER",
    "POOL_ROOM",
    "POOL_SIZE",
    "RANDOM",
    "REFUSED",
    "REG",
    "RESIDENT",
    "TTL",
    "WITH_TTL",
    "IntArray",
    "IntList",
    "Seed",
    "clear_pool",
    "empty_state",
]

IntArray = npt.NDArray[np.int64]
IntList = npt.NDArray[np.int32]
Seed = npt.NDArray[np.uint64]

# Families of eviction policies.
LRU, LFU, RANDOM, TTL, NEVER, LRM = 0, 1, 2, 3, 4, 5

# Why a key is not resident; COLD = never was.
COLD, EXPIRED, EVICTED, REFUSED, DELETED = 0, 1, 2, 3, 4
CAUSES = 5

# Which of the two key lists, which are also the two hash tables of a server.
RESIDENT, WITH_TTL = 0, 1

POOL_SIZE = 16  # EVPOOL_SIZE
POOL_ROOM = 64
"""Places for the pool, which wanders in them."""
FREE = int(np.iinfo(np.int64).max)
"""The score of a free place in the pool, above all others."""
ABSENT = int(np.iinfo(np.int32).min)
"""The access field of a key that is not resident is this plus the cause."""
LFU_COUNTERS = 256
"""Under LFU the access field is minutes times this plus the counter, as on the server."""
_SAMPLES_MAX = 64


class Register(NamedTuple):
    """Indices into the register: sizes, clocks, counts, the eviction pool, and room for one round of samples."""

    resident: int = 0  # then with_ttl: one number per list
    with_ttl: int = 1
    used_bytes: int = 2
    cursor: int = 3
    next_cycle_ms: int = 4
    measuring: int = 5
    reads: int = 6
    hits: int = 7
    evicted: int = 8
    expired: int = 9
    refused: int = 10
    miss_by_cause: int = 11  # five in a row, by cause
    table_units: int = 16  # two: units of the hash table of each list
    pool_lowest: int = 18  # where the pool begins and ends in its room
    pool_end: int = 19
    pool_key: int = 20  # by rising score
    pool_score: int = 20 + POOL_ROOM  # free above the pool's end
    sampled_key: int = 20 + 2 * POOL_ROOM
    sampled_score: int = 20 + 2 * POOL_ROOM + _SAMPLES_MAX
    size: int = 20 + 2 * POOL_ROOM + 2 * _SAMPLES_MAX


REG = Register()


class Setting(NamedTuple):
    """Indices into the configuration, which is an array of integers because a compiled cache of a named class breaks
    on renaming.
    """

    capacity_bytes: int = 0
    family: int = 1
    only_volatile: int = 2
    samples: int = 3
    lfu_log_factor: int = 4
    lfu_decay_time_min: int = 5
    lru_clock_resolution_ms: int = 6
    unknown_entry_bytes: int = 7
    sampling_decays: int = 8
    cycle_keys: int = 9
    cycle_stale_percent: int = 10
    cycle_loops_max: int = 11
    unit_keys: int = 12  # keys that one unit of a hash table is meant for
    unit_bytes: int = 13  # 0 = the tables are not counted
    crowded_permille: int = 14  # load at which a table grows even above maxmemory
    origin_ms: int = 15  # where the ticks of the access clock are counted from, so that they fit 32 bits
    sparse_percent: int = 16  # load below which a table shrinks
    size: int = 17


CFG = Setting()


class Column(NamedTuple):
    """Columns of the key table, each contiguous and of 32 bits, so that what a hit needs stays in the processor's
    cache.
    """

    access: int = 0  # ticks of the access clock at the last access, and the counter under LFU; or why it is absent
    slot: int = 1  # place in the list of residents, if resident
    ttl_slot: int = 2  # place in the list of keys with a TTL, -1 = none
    size_bytes: int = 3
    size: int = 4


COL = Column()


BYTES_PER_KEY = 32
"""Memory of a replay for each distinct key, beside the trace itself: four columns and two list places of 4 bytes, one
expiry time of 8."""


def empty_state(keys: int, seed: int) -> tuple[IntList, IntArray, IntList, IntArray, Seed]:
    """Return table, expiry times, lists, register and generator of an empty cache for `keys` distinct keys."""
    table = np.zeros((COL.size, keys), np.int32)
    table[COL.access] = ABSENT + COLD
    table[COL.ttl_slot] = -1
    register = np.zeros(REG.size, np.int64)
    clear_pool(register)
    # xorshift has one fixed point, zero.
    mixed = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64 or 1
    return table, np.zeros(keys, np.int64), np.zeros((2, keys), np.int32), register, np.array([mixed], np.uint64)


def clear_pool(register: IntArray) -> None:
    """Forget all candidates for eviction."""
    register[[REG.pool_lowest, REG.pool_end]] = POOL_ROOM // 2
    register[REG.pool_score : REG.pool_score + POOL_ROOM] = FREE
