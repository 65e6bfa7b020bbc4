"""The hot loop of the TTL model: one key after the other, why each read of it hits or misses.

It validates nothing: `ttl_model` sorts and checks. INVARIANT: every read gets exactly one outcome, other rows get none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.jit import compiled_loop

__all__ = ["COMPULSORY", "DELETED", "EVICTED", "EXPIRED", "HIT", "NO_READ", "judge"]

NO_READ, HIT, COMPULSORY, EXPIRED, EVICTED, DELETED = -1, 0, 1, 2, 3, 4
_READ, _WRITE = 0, 1


@compiled_loop
def judge(
    key: npt.NDArray[np.uint64],
    time_ms: npt.NDArray[np.int64],
    op: npt.NDArray[np.uint8],
    ttl_ms: npt.NDArray[np.int64],
    eviction_age_ms: int,
    outcome: npt.NDArray[np.int8],
) -> None:
    """Fill `outcome` for rows sorted by key, then time; `eviction_age_ms` < 0 = nothing is evicted, TTL 0 = none."""
    absent_as = COMPULSORY
    present = False
    expires_ms = 0
    has_ttl = False
    touched_ms = 0
    for row in range(len(key)):
        now_ms = time_ms[row]
        if row == 0 or key[row] != key[row - 1]:
            present, absent_as = False, COMPULSORY
        if present:
            evicted_ms = touched_ms + eviction_age_ms
            evicted = eviction_age_ms >= 0 and now_ms > evicted_ms
            # Redis counts a key as gone from the millisecond of its deadline on.
            expired = has_ttl and now_ms >= expires_ms
            if expired and (not evicted or expires_ms <= evicted_ms):
                present, absent_as = False, EXPIRED
            elif evicted:
                present, absent_as = False, EVICTED
        outcome[row] = NO_READ
        if op[row] == _READ:
            outcome[row] = HIT if present else absent_as
        elif op[row] != _WRITE:
            if present or absent_as != COMPULSORY:
                absent_as = DELETED
            present = False
            continue
        if not present or op[row] == _WRITE:
            present, has_ttl = True, ttl_ms[row] > 0
            expires_ms = now_ms + ttl_ms[row]
        touched_ms = now_ms
