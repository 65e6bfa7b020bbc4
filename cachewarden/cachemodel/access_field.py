"""What a server makes of old keys when it switches between LRU and LFU: the same 24 bits, read another way.

Under LRU the field is the time of the last access in seconds; under LFU its upper 16 bits are minutes and its lower 8
the counter (`object.h`, `evict.c`, `lrulfu.c`). CONFIG SET rewrites no field, so a key keeps the misread value until it
is touched.

INVARIANT: with a known clock every bit is the server's; without one, the typical outcome is used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["counters_after_switch_to_lfu", "idle_after_switch_to_lru"]

Ints = npt.NDArray[np.int64]

_MASK = (1 << 24) - 1
_MINUTES = 1 << 16
_COUNTERS = 1 << 8


def counters_after_switch_to_lfu(
    touched_unix_ms: Ints, now_unix_ms: int, wrap_at: int, resolution_ms: int = 1000
) -> tuple[Ints, Ints]:
    """Return what LFU reads where LRU wrote: counters (0..255) and minutes since the last access (0..65535).

    `wrap_at` 65535 on Redis, which is off by one there, 65536 on Valkey.
    """
    field = (touched_unix_ms // resolution_ms) & _MASK
    now_min = (now_unix_ms // 60_000) % _MINUTES
    return field % _COUNTERS, _elapsed(now_min, field // _COUNTERS, wrap_at)


def idle_after_switch_to_lru(
    touched_unix_min: Ints, counter: Ints, now_unix_ms: int, resolution_ms: int = 1000
) -> Ints:
    """Return what LRU reads where LFU wrote: idle time in ms."""
    field = (touched_unix_min % _MINUTES) * _COUNTERS + counter
    now = (now_unix_ms // resolution_ms) & _MASK
    return _elapsed(now, field, _MASK) * resolution_ms


def _elapsed(now: int, then: Ints, wrap_at: int) -> Ints:
    elapsed: Ints = np.where(now >= then, now - then, wrap_at - then + now)
    return elapsed
