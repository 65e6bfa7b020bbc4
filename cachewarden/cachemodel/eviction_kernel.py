"""The hot loop of the replay: Redis's eviction and expiry, one access at a time, on plain arrays.

It follows `evict.c`, `expire.c` and the hash tables of Redis 7.0 and Valkey 9.1 (sampling into a pool of 16, stale
scores, dead pool entries skipped, room made before the write so that the cache overshoots by one entry; tables that
double when full, unless that would exceed maxmemory). It validates nothing: `eviction.replay` does.

INVARIANT: the used bytes are the sum of the sizes of the resident keys and, where they are counted, of the two hash
tables; memory is linear in distinct keys (`eviction_state.BYTES_PER_KEY`), whatever the length of the trace.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction_pool import offer
from cachewarden.cachemodel.eviction_state import (
    ABSENT,
    CAUSES,
    CFG,
    COL,
    DELETED,
    EVICTED,
    EXPIRED,
    FREE,
    LFU,
    LFU_COUNTERS,
    LRM,
    NEVER,
    RANDOM,
    REFUSED,
    REG,
    RESIDENT,
    TTL,
    WITH_TTL,
    IntArray,
    IntList,
    Seed,
)
from cachewarden.cachemodel.jit import compiled_loop, inlined

__all__ = ["CYCLE_MS", "make_room", "prime", "run", "tick_ms"]

CYCLE_MS = 100  # hz 10
"""Time between two active expiry cycles."""

_LFU_INIT = 5  # LFU_INIT_VAL
_LFU_MAX = 255
_MINUTE_MS = 60_000
_CATCH_UP_CYCLES_MAX = 200


@inlined
def _xorshift(x: np.uint64) -> np.uint64:
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    return x


@inlined
def _random(rng: Seed) -> np.uint64:
    x = _xorshift(rng[0])
    rng[0] = x
    return np.uint64(x >> np.uint64(32))


@inlined
def _below(x: np.uint64, bound: int) -> int:
    # Signed on purpose: numba turns an int beside a uint64 into a float.
    return int(np.int64(((x >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)))


@inlined
def _random_below(rng: Seed, bound: int) -> int:
    x = _xorshift(rng[0])
    rng[0] = x
    return _below(x, bound)


@compiled_loop
def tick_ms(c: IntArray) -> int:
    """Return the length of a tick of the access clock: a minute under LFU, the LRU clock's resolution otherwise."""
    return _MINUTE_MS if c[CFG.family] == LFU else int(c[CFG.lru_clock_resolution_ms])


@inlined
def _is_resident(table: IntList, key: int) -> bool:
    return int(table[COL.access, key]) >= ABSENT + CAUSES


@inlined
def _decayed(field: int, c: IntArray, tick: int) -> int:
    """LFUDecrAndReturn: one step down per decay time since the last access; decay time 0 never forgets."""
    counter = field % LFU_COUNTERS
    decay = int(c[CFG.lfu_decay_time_min])
    elapsed = tick - field // LFU_COUNTERS
    # Most keys were touched in this very minute, and a division costs more than the rest of the access.
    if decay > 0 and elapsed >= decay:
        counter -= elapsed // decay
    return max(counter, 0)


@inlined
def _touch(table: IntList, key: int, rng: Seed, c: IntArray, tick: int) -> None:
    """Record an access (LFULogIncr under LFU)."""
    field = tick
    if c[CFG.family] == LFU:
        counter = _decayed(int(table[COL.access, key]), c, tick)
        if counter < _LFU_MAX:
            base = max(counter - _LFU_INIT, 0)
            if float(_random(rng)) / 4294967296.0 < 1.0 / (base * int(c[CFG.lfu_log_factor]) + 1.0):
                counter += 1
        field = tick * LFU_COUNTERS + counter
    table[COL.access, key] = field


@compiled_loop
def _grow(register: IntArray, c: IntArray, which: int) -> None:
    """Double the hash table of a list that is full: not above maxmemory, unless it is crowded (dictTypeExpandAllowed,
    hashtableResizeAllowed). Moving the keys takes a fraction of a second, so the old table is gone at once.
    """
    units = register[REG.table_units + which]
    keys = register[REG.resident + which]
    doubled = max(2 * units, 1)
    room = c[CFG.capacity_bytes] - register[REG.used_bytes]
    if doubled * c[CFG.unit_bytes] <= room or keys * 1000 > units * c[CFG.unit_keys] * c[CFG.crowded_permille]:
        register[REG.used_bytes] += (doubled - units) * c[CFG.unit_bytes]
        register[REG.table_units + which] = doubled


@inlined
def _grow_if_full(register: IntArray, c: IntArray, which: int) -> None:
    if c[CFG.unit_bytes] > 0 and register[REG.resident + which] >= register[REG.table_units + which] * c[CFG.unit_keys]:
        _grow(register, c, which)


@inlined
def _shrink_if_sparse(register: IntArray, c: IntArray, which: int) -> None:
    units = register[REG.table_units + which]
    keys = register[REG.resident + which]
    if keys * 100 < units * c[CFG.unit_keys] * c[CFG.sparse_percent]:
        fitting = 1
        while fitting * c[CFG.unit_keys] < keys:
            fitting *= 2
        register[REG.used_bytes] -= (units - fitting) * c[CFG.unit_bytes]
        register[REG.table_units + which] = fitting


@inlined
def _set_expiry(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    rng: Seed,
    c: IntArray,
    key: int,
    expires_ms: int,
) -> None:
    """Give a resident key a TTL, another one, or none (0)."""
    if expires_ms > 0 and table[COL.ttl_slot, key] < 0:
        _grow_if_full(register, c, WITH_TTL)
        # The place is drawn, so that the list is in no order of age, as a hash table is; in the order of arrival the
        # expiry cycle would meet stale keys in runs and stop between them.
        last = register[REG.with_ttl]
        at = _random_below(rng, last + 1)
        moved = lists[WITH_TTL, at]
        if at < last:
            lists[WITH_TTL, last] = moved
            table[COL.ttl_slot, moved] = last
        lists[WITH_TTL, at] = key
        table[COL.ttl_slot, key] = at
        register[REG.with_ttl] += 1
    if expires_ms > 0:
        expires[key] = expires_ms
    else:
        _forget_expiry(table, expires, lists, register, key)


@inlined
def _forget_expiry(table: IntList, expires: IntArray, lists: IntList, register: IntArray, key: int) -> None:
    at = table[COL.ttl_slot, key]
    if at >= 0:
        register[REG.with_ttl] -= 1
        last = lists[WITH_TTL, register[REG.with_ttl]]
        lists[WITH_TTL, at] = last
        table[COL.ttl_slot, last] = at
        table[COL.ttl_slot, key] = -1
        expires[key] = 0


@inlined
def _remove(table: IntList, expires: IntArray, lists: IntList, register: IntArray, key: int, cause: int) -> None:
    _forget_expiry(table, expires, lists, register, key)
    at = table[COL.slot, key]
    register[REG.resident] -= 1
    last = lists[RESIDENT, register[REG.resident]]
    lists[RESIDENT, at] = last
    table[COL.slot, last] = at
    register[REG.used_bytes] -= table[COL.size_bytes, key]
    table[COL.access, key] = ABSENT + cause


@inlined
def _admit(
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
    """Make an absent key resident with a fresh LRU clock and the LFU counter of a new key."""
    _grow_if_full(register, c, RESIDENT)
    at = register[REG.resident]
    table[COL.slot, key] = at
    lists[RESIDENT, at] = key
    register[REG.resident] += 1
    table[COL.size_bytes, key] = size_bytes
    register[REG.used_bytes] += size_bytes
    table[COL.access, key] = tick * LFU_COUNTERS + _LFU_INIT if c[CFG.family] == LFU else tick
    if expires_ms > 0:
        _set_expiry(table, expires, lists, register, rng, c, key, expires_ms)


@compiled_loop
def prime(
    table: IntList,
    expires: IntArray,
    lists: IntList,
    register: IntArray,
    rng: Seed,
    c: IntArray,
    key: IntList,
    size_bytes: IntArray,
    expires_ms: IntArray,
    tick: IntArray,
) -> None:
    """Make all these absent keys resident, above the capacity if need be."""
    for i in range(len(key)):
        _admit(table, expires, lists, register, rng, c, key[i], size_bytes[i], expires_ms[i], tick[i])


@inlined
def _score(table: IntList, expires: IntArray, key: int, c: IntArray, tick: int) -> int:
    """The higher, the better to evict: inverse frequency, nearest expiry, or idle time."""
    if c[CFG.family] == LFU:
        counter = _decayed(int(table[COL.access, key]), c, tick)
        if c[CFG.sampling_decays] > 0:
            # Valkey writes back what it looked at: a decay period that was cut short by a look begins anew.
            table[COL.access, key] = tick * LFU_COUNTERS + counter
        return _LFU_MAX - counter
    if c[CFG.family] == TTL:
        return -int(expires[key])
    return tick - int(table[COL.access, key])


@inlined
def _victim(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, rng: Seed, c: IntArray, tick: int
) -> int:
    """Return the key to evict, or -1 if no key may be evicted."""
    which = WITH_TTL if c[CFG.only_volatile] else RESIDENT
    count = register[REG.with_ttl] if c[CFG.only_volatile] else register[REG.resident]
    if c[CFG.family] == NEVER or count == 0:
        return -1
    if c[CFG.family] == RANDOM:
        return int(lists[which, _random_below(rng, count)])
    # A table smaller than the sample is taken whole, as dictGetSomeKeys does.
    whole = count <= c[CFG.samples]
    while True:
        taken = count if whole else c[CFG.samples]
        # All looks come before all offers: they do not depend on one another, so their cache misses overlap.
        x = rng[0]
        for i in range(taken):
            place = i
            if not whole:
                x = _xorshift(x)
                place = _below(x, count)
            sampled = int(lists[which, place])
            register[REG.sampled_key + i] = sampled
            register[REG.sampled_score + i] = _score(table, expires, sampled, c, tick)
        rng[0] = x
        for i in range(taken):
            offer(register, register[REG.sampled_key + i], register[REG.sampled_score + i])
        while register[REG.pool_end] > register[REG.pool_lowest]:
            register[REG.pool_end] -= 1
            highest = register[REG.pool_end]
            register[REG.pool_score + highest] = FREE
            key = int(register[REG.pool_key + highest])
            # A key that left the cache since it was sampled is a ghost; one touched since then is evicted all the same.
            if (table[COL.ttl_slot, key] >= 0) if c[CFG.only_volatile] else _is_resident(table, key):
                return key


@inlined
def _make_room(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, rng: Seed, c: IntArray, tick: int
) -> bool:
    """Evict until the used bytes are within the capacity; False if no key may be evicted before that."""
    while register[REG.used_bytes] > c[CFG.capacity_bytes]:
        victim = _victim(table, expires, lists, register, rng, c, tick)
        if victim < 0:
            return False
        _remove(table, expires, lists, register, victim, EVICTED)
        register[REG.evicted] += register[REG.measuring]
    return True


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
    if not _make_room(table, expires, lists, register, rng, c, tick):
        register[REG.refused] += register[REG.measuring]
        if not _is_resident(table, key):
            table[COL.access, key] = ABSENT + REFUSED
        return
    if not _is_resident(table, key):
        _admit(table, expires, lists, register, rng, c, key, size_bytes, expires_ms, tick)
        return
    register[REG.used_bytes] += size_bytes - table[COL.size_bytes, key]
    table[COL.size_bytes, key] = size_bytes
    _touch(table, key, rng, c, tick)
    _set_expiry(table, expires, lists, register, rng, c, key, expires_ms)


@compiled_loop
def make_room(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, rng: Seed, c: IntArray, tick: int
) -> bool:
    """Evict until the used bytes are within the capacity, as a lowered maxmemory does at once; see `_make_room`."""
    return _make_room(table, expires, lists, register, rng, c, tick)


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
def _expire_cycle(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, c: IntArray, now_ms: int
) -> None:
    """One active expiry cycle: a cursor walks the keys with a TTL for as long as many of them are stale."""
    for _ in range(c[CFG.cycle_loops_max]):
        stale = 0
        looks = min(c[CFG.cycle_keys], register[REG.with_ttl])
        for _ in range(looks):
            if register[REG.with_ttl] == 0:
                return
            if register[REG.cursor] >= register[REG.with_ttl]:
                register[REG.cursor] = 0
            if _expire_if_due(table, expires, lists, register, lists[WITH_TTL, register[REG.cursor]], now_ms):
                # The last key took the place of the removed one, so the cursor stays.
                stale += 1
            else:
                register[REG.cursor] += 1
        if stale * 100 <= looks * c[CFG.cycle_stale_percent]:
            return


@compiled_loop
def _expire_cycles(
    table: IntList, expires: IntArray, lists: IntList, register: IntArray, c: IntArray, now_ms: int
) -> None:
    due = (now_ms - register[REG.next_cycle_ms]) // CYCLE_MS + 1
    for i in range(max(0, due - _CATCH_UP_CYCLES_MAX), due):
        if register[REG.with_ttl] == 0:
            break
        _expire_cycle(table, expires, lists, register, c, register[REG.next_cycle_ms] + i * CYCLE_MS)
    register[REG.next_cycle_ms] += due * CYCLE_MS
    _shrink_if_sparse(register, c, RESIDENT)
    _shrink_if_sparse(register, c, WITH_TTL)


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
) -> None:
    """Replay these rows; what they count goes to the register if `measuring`."""
    reads_touch = c[CFG.family] != LRM
    tick, wake_ms, reads, hits = 0, np.iinfo(np.int64).min, 0, 0
    for i in range(len(time_ms)):
        now_ms, k = int(time_ms[i]), int(key[i])
        if now_ms >= wake_ms:
            tick = (now_ms - c[CFG.origin_ms]) // tick_ms(c)
            if now_ms >= register[REG.next_cycle_ms]:
                _expire_cycles(table, expires, lists, register, c, now_ms)
            wake_ms = min((tick + 1) * tick_ms(c) + c[CFG.origin_ms], register[REG.next_cycle_ms])
        if register[REG.with_ttl] > 0 and expires[k] > 0:
            _expire_if_due(table, expires, lists, register, k, now_ms)
        if op[i] == 0:
            reads += 1
            if _is_resident(table, k):
                hits += 1
                if reads_touch:
                    _touch(table, k, rng, c, tick)
                continue
            register[REG.miss_by_cause + table[COL.access, k] - ABSENT] += register[REG.measuring]
        if op[i] <= 1:
            size = int(size_bytes[i]) if size_bytes[i] > 0 else int(c[CFG.unknown_entry_bytes])
            expires_ms = now_ms + int(ttl_ms[i]) if ttl_ms[i] > 0 else 0
            _store(table, expires, lists, register, rng, c, k, size, expires_ms, tick)
        elif _is_resident(table, k):
            _remove(table, expires, lists, register, k, DELETED)
    register[REG.reads] += reads * register[REG.measuring]
    register[REG.hits] += hits * register[REG.measuring]
