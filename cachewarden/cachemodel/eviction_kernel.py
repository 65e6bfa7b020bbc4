"""The hot loop of the replay: Redis's eviction and expiry, one access at a time, on plain arrays.

It follows `evict.c` and `expire.c` of Redis 7.0 (sampling into a pool of 16, stale scores, dead pool entries skipped,
room made before the write so that the cache overshoots by one entry). It validates nothing: `eviction.replay` does.

INVARIANT: the used bytes are the sum of the sizes of the resident keys, and memory is linear in distinct keys.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.jit import compiled_loop, inlined

__all__ = [
    "CFG",
    "COL",
    "COLD",
    "DELETED",
    "EVICTED",
    "EXPIRED",
    "LFU",
    "LRU",
    "NEVER",
    "RANDOM",
    "REFUSED",
    "REG",
    "TTL",
    "admit",
    "empty_state",
    "run",
    "tick_ms",
]

IntArray = npt.NDArray[np.int64]
IntList = npt.NDArray[np.int32]
Seed = npt.NDArray[np.uint64]

# Families of eviction policies.
LRU, LFU, RANDOM, TTL, NEVER = 0, 1, 2, 3, 4

# Why a key is not resident; COLD = never was.
COLD, EXPIRED, EVICTED, REFUSED, DELETED = 0, 1, 2, 3, 4

_POOL_SIZE = 16  # EVPOOL_SIZE
_LFU_INIT = 5  # LFU_INIT_VAL
_LFU_MAX = 255
_MINUTE_MS = 60_000
_CYCLE_MS = 100  # hz 10
_CYCLE_KEYS = 20  # ACTIVE_EXPIRE_CYCLE_KEYS_PER_LOOP at effort 1
_CYCLE_STALE_KEYS = 2  # the loop goes on while more than 10 % of the looked-at keys were expired
# The server stops a cycle after 25 % of a core, about 25 ms at roughly 1 us a key.
_CYCLE_LOOPS_MAX = 1250
_CATCH_UP_CYCLES_MAX = 200


# Which of the two key lists.
_RESIDENT, _WITH_TTL = 0, 1


class Register(NamedTuple):
    """Indices into the register: sizes, clocks, counts, and the eviction pool."""

    resident: int = 0
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
    pool_key: int = 16  # sixteen in a row, -1 = free
    pool_score: int = 32
    size: int = 48


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
    size: int = 8


CFG = Setting()


class Column(NamedTuple):
    """Columns of the key table, each contiguous and of 32 bits, so that what a hit needs stays in the processor's
    cache.
    """

    slot: int = 0  # place in the list of residents, -1 = not resident
    ttl_slot: int = 1  # place in the list of keys with a TTL, -1 = none
    size_bytes: int = 2
    touched: int = 3  # ticks of the access clock
    counter: int = 4  # LFU, 0..255
    gone: int = 5  # why it is not resident
    size: int = 6


COL = Column()


def empty_state(keys: int, seed: int) -> tuple[IntList, IntArray, IntList, IntArray, Seed]:
    """Return table, expiry times, lists, register and generator of an empty cache for `keys` distinct keys.

    Plain arrays and not one object: an attribute access would cost a reference count, which is ten times the access
    itself.
    """
    table = np.zeros((COL.size, keys), np.int32)
    table[[COL.slot, COL.ttl_slot]] = -1
    register = np.zeros(REG.size, np.int64)
    register[REG.pool_key : REG.pool_key + _POOL_SIZE] = -1
    # xorshift has one fixed point, zero.
    mixed = (seed * 0x9E3779B97F4A7C15 + 0xD1B54A32D192ED03) % 2**64 or 1
    return table, np.zeros(keys, np.int64), np.zeros((2, keys), np.int32), register, np.array([mixed], np.uint64)


@inlined
def _random(rng: Seed) -> np.uint64:
    x = rng[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    rng[0] = x
    return np.uint64(x >> np.uint64(32))


@inlined
def _random_below(rng: Seed, bound: int) -> int:
    # Signed on purpose: numba turns an int beside a uint64 into a float.
    return int(np.int64((_random(rng) * np.uint64(bound)) >> np.uint64(32)))


@compiled_loop
def tick_ms(c: IntArray) -> int:
    """Return the length of a tick of the access clock: a minute under LFU, the LRU clock's resolution otherwise."""
    return _MINUTE_MS if c[CFG.family] == LFU else int(c[CFG.lru_clock_resolution_ms])


@inlined
def _decayed(table: IntList, key: int, c: IntArray, tick: int) -> int:
    """LFUDecrAndReturn: one step down per decay time since the last access; decay time 0 never forgets."""
    counter = int(table[COL.counter, key])
    decay = int(c[CFG.lfu_decay_time_min])
    elapsed = tick - int(table[COL.touched, key])
    # Most keys were touched in this very minute, and a division costs more than the rest of the access.
    if decay > 0 and elapsed >= decay:
        counter -= elapsed // decay
    return max(counter, 0)


@inlined
def _touch(table: IntList, key: int, rng: Seed, c: IntArray, tick: int) -> None:
    """Record an access (LFULogIncr under LFU)."""
    if c[CFG.family] == LFU:
        counter = _decayed(table, key, c, tick)
        if counter < _LFU_MAX:
            base = max(counter - _LFU_INIT, 0)
            if float(_random(rng)) / 4294967296.0 < 1.0 / (base * int(c[CFG.lfu_log_factor]) + 1.0):
                counter += 1
        table[COL.counter, key] = counter
    table[COL.touched, key] = tick


@inlined
def _set_expiry(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, key: int, expires_ms: int
) -> None:
    """Keep the list of keys with a TTL in step; 0 = none."""
    at = table[COL.ttl_slot, key]
    if expires_ms > 0 and at < 0:
        at = register[REG.with_ttl]
        table[COL.ttl_slot, key] = at
        lists[_WITH_TTL, at] = key
        register[REG.with_ttl] += 1
    elif expires_ms == 0 and at >= 0:
        register[REG.with_ttl] -= 1
        last = lists[_WITH_TTL, register[REG.with_ttl]]
        lists[_WITH_TTL, at] = last
        table[COL.ttl_slot, last] = at
        table[COL.ttl_slot, key] = -1
    expires[key] = expires_ms


@inlined
def _remove(table: IntList, expires: IntArray, lists: IntList, register: IntArray, key: int, cause: int) -> None:
    _set_expiry(table, expires, lists, register, key, 0)
    at = table[COL.slot, key]
    register[REG.resident] -= 1
    last = lists[_RESIDENT, register[REG.resident]]
    lists[_RESIDENT, at] = last
    table[COL.slot, last] = at
    table[COL.slot, key] = -1
    register[REG.used_bytes] -= table[COL.size_bytes, key]
    table[COL.gone, key] = cause


@compiled_loop
def admit(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    key: int,
    size_bytes: int,
    expires_ms: int,
    tick: int,
) -> None:
    """Make an absent key resident with a fresh LRU clock and the LFU counter of a new key."""
    at = register[REG.resident]
    table[COL.slot, key] = at
    lists[_RESIDENT, at] = key
    register[REG.resident] += 1
    table[COL.size_bytes, key] = size_bytes
    register[REG.used_bytes] += size_bytes
    table[COL.counter, key] = _LFU_INIT
    table[COL.touched, key] = tick
    _set_expiry(table, expires, lists, register, key, expires_ms)


@inlined
def _score(table: IntList, expires: IntArray, key: int, c: IntArray, tick: int) -> int:
    """The higher, the better to evict: inverse frequency, nearest expiry, or idle time."""
    if c[CFG.family] == LFU:
        return _LFU_MAX - _decayed(table, key, c, tick)
    if c[CFG.family] == TTL:
        return -int(expires[key])
    return tick - int(table[COL.touched, key])


@inlined
def _offer(register: IntArray, key: int, score: int) -> None:
    """Put a sampled key into the pool, which is sorted by rising score (evictionPoolPopulate)."""
    keys = register[REG.pool_key : REG.pool_key + _POOL_SIZE]
    scores = register[REG.pool_score : REG.pool_score + _POOL_SIZE]
    k = 0
    while k < _POOL_SIZE and keys[k] >= 0 and scores[k] < score:
        k += 1
    full = keys[_POOL_SIZE - 1] >= 0
    if k == 0 and full:
        return
    if full:
        # Everything below the new entry moves down and the lowest score falls out.
        k -= 1
        for i in range(k):
            keys[i] = keys[i + 1]
            scores[i] = scores[i + 1]
    elif keys[k] >= 0:
        for i in range(_POOL_SIZE - 1, k, -1):
            keys[i] = keys[i - 1]
            scores[i] = scores[i - 1]
    keys[k] = key
    scores[k] = score


@inlined
def _victim(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, rng: Seed, c: IntArray, tick: int
) -> int:
    """Return the key to evict, or -1 if no key may be evicted."""
    which, column = (_WITH_TTL, COL.ttl_slot) if c[CFG.only_volatile] else (_RESIDENT, COL.slot)
    count = register[REG.with_ttl] if c[CFG.only_volatile] else register[REG.resident]
    if c[CFG.family] == NEVER or count == 0:
        return -1
    if c[CFG.family] == RANDOM:
        return int(lists[which, _random_below(rng, count)])
    # A table smaller than the sample is taken whole, as dictGetSomeKeys does.
    whole = count <= c[CFG.samples]
    while True:
        for i in range(count if whole else c[CFG.samples]):
            sampled = int(lists[which, i if whole else _random_below(rng, count)])
            _offer(register, sampled, _score(table, expires, sampled, c, tick))
        for i in range(REG.pool_key + _POOL_SIZE - 1, REG.pool_key - 1, -1):
            key = int(register[i])
            if key < 0:
                continue
            register[i] = -1
            # A key that left the cache since it was sampled is a ghost; one touched since then is evicted all the same.
            if table[column, key] >= 0:
                return key


@inlined
def _store(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    rng: Seed,
    c: IntArray,
    key: int,
    size_bytes: int,
    expires_ms: int,
    tick: int,
) -> None:
    """Load or overwrite a key: room is made before, and the write is refused if there is none."""
    while register[REG.used_bytes] > c[CFG.capacity_bytes]:
        victim = _victim(table, expires, lists, register, rng, c, tick)
        if victim < 0:
            register[REG.refused] += register[REG.measuring]
            if table[COL.slot, key] < 0:
                table[COL.gone, key] = REFUSED
            return
        _remove(table, expires, lists, register, victim, EVICTED)
        register[REG.evicted] += register[REG.measuring]
    if table[COL.slot, key] < 0:
        admit(table, expires, lists, register, key, size_bytes, expires_ms, tick)
        return
    register[REG.used_bytes] += size_bytes - table[COL.size_bytes, key]
    table[COL.size_bytes, key] = size_bytes
    _touch(table, key, rng, c, tick)
    _set_expiry(table, expires, lists, register, key, expires_ms)


@inlined
def _expire_if_due(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, key: int, now_ms: int
) -> bool:
    expires_ms = expires[key]
    if expires_ms == 0 or now_ms <= expires_ms:
        return False
    _remove(table, expires, lists, register, key, EXPIRED)
    register[REG.expired] += register[REG.measuring]
    return True


@inlined
def _expire_cycle(table: IntList, expires: IntArray, lists: IntList, register: IntArray, now_ms: int) -> None:
    """One active expiry cycle: a cursor walks the keys with a TTL for as long as many of them are stale."""
    for _ in range(_CYCLE_LOOPS_MAX):
        stale = 0
        for _ in range(min(_CYCLE_KEYS, register[REG.with_ttl])):
            if register[REG.with_ttl] == 0:
                return
            if register[REG.cursor] >= register[REG.with_ttl]:
                register[REG.cursor] = 0
            if _expire_if_due(table, expires, lists, register, lists[_WITH_TTL, register[REG.cursor]], now_ms):
                # The last key took the place of the removed one, so the cursor stays.
                stale += 1
            else:
                register[REG.cursor] += 1
        if stale <= _CYCLE_STALE_KEYS:
            return


@compiled_loop
def _expire_cycles(table: IntList, expires: IntArray, lists: IntList, register: IntArray, now_ms: int) -> None:
    due = (now_ms - register[REG.next_cycle_ms]) // _CYCLE_MS + 1
    for i in range(max(0, due - _CATCH_UP_CYCLES_MAX), due):
        if register[REG.with_ttl] == 0:
            break
        _expire_cycle(table, expires, lists, register, register[REG.next_cycle_ms] + i * _CYCLE_MS)
    register[REG.next_cycle_ms] += due * _CYCLE_MS


@compiled_loop
def run(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    rng: Seed,
    c: IntArray,
    time_ms: IntArray,
    key: IntList,
    op: npt.NDArray[np.uint8],
    size_bytes: IntList,
    ttl_ms: IntArray,
    measure_from_ms: int,
) -> None:
    """Replay all rows; counts go to the register from `measure_from_ms` on."""
    if len(time_ms) > 0:
        register[REG.next_cycle_ms] = time_ms[0] + _CYCLE_MS
    tick, tick_ends_ms = 0, np.iinfo(np.int64).min
    for i in range(len(time_ms)):
        now_ms, k = int(time_ms[i]), int(key[i])
        if now_ms >= tick_ends_ms:
            tick = now_ms // tick_ms(c)
            tick_ends_ms = (tick + 1) * tick_ms(c)
        measuring = 1 if now_ms >= measure_from_ms else 0
        register[REG.measuring] = measuring
        if now_ms >= register[REG.next_cycle_ms]:
            _expire_cycles(table, expires, lists, register, now_ms)
        if expires[k] > 0:
            _expire_if_due(table, expires, lists, register, k, now_ms)
        if op[i] == 0:
            register[REG.reads] += measuring
            if table[COL.slot, k] >= 0:
                register[REG.hits] += measuring
                _touch(table, k, rng, c, tick)
                continue
            register[REG.miss_by_cause + table[COL.gone, k]] += measuring
        if op[i] <= 1:
            size = int(size_bytes[i]) if size_bytes[i] > 0 else int(c[CFG.unknown_entry_bytes])
            expires_ms = now_ms + int(ttl_ms[i]) if ttl_ms[i] > 0 else 0
            _store(table, expires, lists, register, rng, c, k, size, expires_ms, tick)
        elif table[COL.slot, k] >= 0:
            _remove(table, expires, lists, register, k, DELETED)
