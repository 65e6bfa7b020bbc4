"""The pool of the sixteen best candidates for eviction, as `evictionPoolPopulate` of `evict.c` keeps it.

It decides where a sampled key belongs in the pool and which one falls out, and never looks at the cache.

INVARIANT: from its lowest place to its end the pool rises by score, and every place above its end is free.
`eviction_kernel` compiles this into itself and its cache on disk watches its own file only, so a change here goes
together with a change there.
"""

from __future__ import annotations

from cachewarden.cachemodel.eviction_state import FREE, POOL_ROOM, POOL_SIZE, REG, IntArray
from cachewarden.cachemodel.jit import compiled_loop, inlined

__all__ = ["offer"]


@compiled_loop
def _centre(register: IntArray) -> None:
    """Move the pool to the middle of its room."""
    keys = register[REG.pool_key : REG.pool_key + POOL_ROOM]
    scores = register[REG.pool_score : REG.pool_score + POOL_ROOM]
    lowest, end = register[REG.pool_lowest], register[REG.pool_end]
    middle = (POOL_ROOM - (end - lowest)) // 2
    register[REG.pool_lowest], register[REG.pool_end] = middle, middle + end - lowest
    step = 1 if middle < lowest else -1
    first, last = (lowest, end) if middle < lowest else (end - 1, lowest - 1)
    for i in range(first, last, step):
        keys[i + middle - lowest], scores[i + middle - lowest] = keys[i], scores[i]
    for i in range(middle + end - lowest, POOL_ROOM):
        scores[i] = FREE


@inlined
def offer(register: IntArray, key: int, score: int) -> None:
    """Put a sampled key into the pool, which is sorted by rising score (evictionPoolPopulate).

    Most entries come in at either end, so the pool has room on both sides and the fewer entries move.
    """
    keys = register[REG.pool_key : REG.pool_key + POOL_ROOM]
    scores = register[REG.pool_score : REG.pool_score + POOL_ROOM]
    full = register[REG.pool_end] - register[REG.pool_lowest] == POOL_SIZE
    if full and scores[register[REG.pool_lowest]] >= score:
        return
    if register[REG.pool_lowest] == 0 or register[REG.pool_end] == POOL_ROOM:
        _centre(register)
    lowest, end = register[REG.pool_lowest], register[REG.pool_end]
    # Free places hold the highest score, so a count of the lower ones is the place of the new entry: without a
    # branch, because no processor could guess where a search would end.
    at = lowest
    for i in range(lowest, lowest + POOL_SIZE):
        at += scores[i] < score
    if full:
        # The lowest score falls out.
        lowest += 1
    if at - lowest < end - at:
        at -= 1
        lowest -= 1
        for i in range(lowest, at):
            keys[i] = keys[i + 1]
            scores[i] = scores[i + 1]
    else:
        for i in range(end, at, -1):
            keys[i] = keys[i - 1]
            scores[i] = scores[i - 1]
        end += 1
    keys[at] = key
    scores[at] = score
    register[REG.pool_lowest] = lowest
    register[REG.pool_end] = end
