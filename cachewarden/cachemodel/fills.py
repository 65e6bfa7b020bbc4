"""From what a server saw to what the application asked: fold the fills of a cache-aside client back into its reads.

A capture shows GET, and after a miss the SET that fills the cache. Under another configuration that GET might have
hit and the SET would
not have come, so a what-if must not replay it as a write of its own. It decides nothing else.

INVARIANT: every read of the capture is a read of the result, in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.trace import AccessTrace, Op

__all__ = ["FoldedCapture", "fold_fills"]

_FILL_WITHIN_MS = 5_000
"""A client that needs longer than this to load a value is not told from one that updates it."""


@dataclass(frozen=True, slots=True, eq=False)
class FoldedCapture:
    """`trace`: reads that carry the size and TTL they would be loaded with, and writes that are real updates.

    `missed` bool[n]: rows of `trace` that are reads which missed in reality (a fill followed).
    """

    trace: AccessTrace
    missed: npt.NDArray[np.bool_]

    @property
    def hit_ratio(self) -> float | None:
        """Share of the captured reads that hit; None without reads."""
        reads = self.trace.op == Op.READ
        total = int(reads.sum())
        return None if total == 0 else 1.0 - int((self.missed & reads).sum()) / total


def fold_fills(captured: AccessTrace, typical_size_bytes: int = 0) -> FoldedCapture:
    """Return the capture with fills folded into the reads that caused them.

    A read takes size and TTL of the nearest write of its key (later first, it is the one it caused; else earlier); a
    key that was
    never written in the capture takes `typical_size_bytes` (0: the mean size of all writes) and the median TTL of
    all writes.
    """
    n = len(captured)
    if n == 0:
        return FoldedCapture(captured, np.zeros(0, dtype=bool))
    order = np.lexsort((np.arange(n), captured.key))
    key, op, time = captured.key[order], captured.op[order], captured.time_ms[order]
    same = np.concatenate(([False], key[1:] == key[:-1]))
    fill = (op == Op.WRITE) & same
    fill[1:] &= (op[:-1] == Op.READ) & (time[1:] - time[:-1] <= _FILL_WITHIN_MS)

    writes = op == Op.WRITE
    written = captured.size_bytes[order][writes]
    ttls = captured.ttl_ms[order][writes]
    size = typical_size_bytes or (int(written[written > 0].mean()) if np.any(written > 0) else 0)
    ttl = int(np.median(ttls)) if len(ttls) else 0

    nearest = _nearest_write(key, writes)
    known = nearest >= 0
    sizes = np.where(known, captured.size_bytes[order][nearest], size)
    sizes = np.where(sizes > 0, sizes, size).astype(np.int32)
    lifetimes = np.where(known, captured.ttl_ms[order][nearest], ttl).astype(np.int64)

    missed = np.zeros(n, dtype=bool)
    missed[:-1] = fill[1:]
    back = np.empty(n, dtype=np.int64)
    back[order] = np.arange(n)
    keep = ~fill[back]
    trace = AccessTrace(
        captured.time_ms[keep],
        captured.key[keep],
        captured.op[keep],
        np.ascontiguousarray(sizes[back][keep]),
        np.ascontiguousarray(lifetimes[back][keep]),
    )
    return FoldedCapture(trace, missed[back][keep])


def _nearest_write(key: npt.NDArray[np.uint64], writes: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return for each row, sorted by key and time, the row of the next write of its key, else of the last one, else
    -1."""
    n = len(key)
    index = np.arange(n, dtype=np.int64)
    following = np.where(writes, index, n)
    following = np.minimum.accumulate(following[::-1])[::-1]
    preceding = np.maximum.accumulate(np.where(writes, index, -1))
    has_next = following < n
    has_next[has_next] = key[following[has_next]] == key[has_next]
    has_last = preceding >= 0
    has_last[has_last] = key[preceding[has_last]] == key[has_last]
    return np.where(has_next, following, np.where(has_last, preceding, -1))
