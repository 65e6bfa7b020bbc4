"""What a capture tells about each read: whether it missed, and what had been seen of its key before.

MONITOR does not say which read missed; a client feed does, and then its word counts. Otherwise cache-aside clients
show it: after a miss they load the value and write it. So a
read whose key's next access is a write of a value soon after is a miss, all others are hits. It decides nothing about
causes (`miss_split` does).

Limits, all towards too few misses: a miss that is never loaded (the origin has no value, or the server refused the
write; servers do not show refused commands to MONITOR) looks like a hit; of several clients that miss the same key at
once only the last is counted. An update soon after a read looks like a miss unless `miss_split` can exclude it.
INVARIANT: every column has one row per judged read, in time order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.trace import Op
from cachewarden.observation import AccessSample

__all__ = ["HOT_SHARE", "LOAD_WITHIN_MS", "CapturedReads", "read_capture"]

LOAD_WITHIN_MS = 1_000
"""A write later than this after a read is not its load: slow origins answer within a second, while longer gaps catch
mere updates.
"""

_FIT_READS_MIN = 200
_FIT_DURATION_MIN_MS = 1_000

HOT_SHARE = 0.01
"""A key that takes more than this share of all lookups is hot."""

_Bools = npt.NDArray[np.bool_]
_Longs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CapturedReads:
    """One row per read whose outcome is known; the last second of a capture is left out, since its loads may come
    after the end.

    at_ms int64 since the capture's start. missed bool. seen bool: the key occurred earlier in the capture. idle_ms
    int64 since that access, -1 unseen. written_ago_ms int64 since the key's last write in the capture, -1 none.
    ttl_ms int64 of that write, 0 none. deleted bool: the last thing done to it was a DELETE. load_ttl_ms int64 of the
    write that answers the miss, 0 none. pattern int32 index into `patterns`.
    """

    at_ms: _Longs
    missed: _Bools
    seen: _Bools
    idle_ms: _Longs
    written_ago_ms: _Longs
    ttl_ms: _Longs
    deleted: _Bools
    load_ttl_ms: _Longs
    pattern: npt.NDArray[np.int32]
    patterns: tuple[str, ...]
    written_ttl_ms: tuple[int, ...]
    """Largest TTL written per pattern, 0 where none was seen."""
    duration_ms: int
    hot_keys: int
    reuse: PopularityMixture | None
    """How soon keys are read again, beyond the capture's length too; None where fewer than 200 reads or 1 s were
    captured.
    """

    def __len__(self) -> int:
        return len(self.at_ms)

    @property
    def miss_ratio(self) -> float | None:
        """Return the share of reads that were followed by a load, None without reads."""
        return float(self.missed.mean()) if len(self) else None


def read_capture(access: AccessSample, load_within_ms: int = LOAD_WITHIN_MS) -> CapturedReads:
    """Judge every read of a capture. Sorts the capture once by key: about 100 ms for 200,000 rows."""
    trace = access.trace
    order = np.argsort(trace.key, kind="stable")
    key, time, op = trace.key[order], trace.time_ms[order], trace.op[order]
    size, ttl = trace.size_bytes[order], trace.ttl_ms[order]
    n = len(key)
    rows = np.arange(n)
    first = np.ones(n, dtype=np.bool_)
    first[1:] = key[1:] != key[:-1]
    group_start = np.maximum.accumulate(np.where(first, rows, 0)) if n else rows
    before = np.where(first, -1, rows - 1)
    after_same_key = np.zeros(n, dtype=np.bool_)
    after_same_key[:-1] = ~first[1:]
    after = np.minimum(rows + 1, max(n - 1, 0))

    # Commands that only move a deadline (EXPIRE) are writes without a value; where sizes are known at all, they are
    # told by size 0.
    writes = op == Op.WRITE
    loads = writes & (size > 0) if np.any(size[writes] > 0) else writes
    loaded = (op == Op.READ) & after_same_key & loads[after] & (time[after] - time <= load_within_ms)
    missed = loaded
    if access.missed is not None:
        # An application that reports its own accesses has seen the answers; only what it could not tell is inferred.
        told = access.missed[order]
        missed = np.where(told >= 0, told == 1, loaded)

    # The last write or delete before each row, within the same key; -1 where there is none.
    changes = writes | (op == Op.DELETE)
    latest = np.maximum.accumulate(np.where(changes, rows, -1)) if n else rows
    last_change = np.where(first, -1, latest[np.maximum(rows - 1, 0)]) if n else rows
    last_change = np.where(last_change >= group_start, last_change, -1)
    change = np.maximum(last_change, 0)
    deleted = (last_change >= 0) & (op[change] == Op.DELETE)
    written = (last_change >= 0) & ~deleted

    start = int(trace.time_ms[0]) if n else 0
    end = int(trace.time_ms[-1]) if n else 0
    judged = np.flatnonzero((op == Op.READ) & (time <= end - load_within_ms))
    judged = judged[np.argsort(order[judged], kind="stable")]
    return CapturedReads(
        at_ms=time[judged] - start,
        missed=missed[judged],
        seen=~first[judged],
        idle_ms=np.where(first, -1, time - time[np.maximum(before, 0)])[judged],
        written_ago_ms=np.where(written, time - time[change], -1)[judged],
        ttl_ms=np.where(written, ttl[change], 0)[judged],
        deleted=deleted[judged],
        load_ttl_ms=np.where(missed & loaded, ttl[after], 0)[judged],
        pattern=access.pattern[order][judged],
        patterns=access.patterns,
        written_ttl_ms=_written_ttls(access),
        duration_ms=end - start,
        hot_keys=_hot_keys(access),
        reuse=_reuse(access),
    )


def _written_ttls(access: AccessSample) -> tuple[int, ...]:
    writes = access.trace.op == Op.WRITE
    pattern, ttl = access.pattern[writes], access.trace.ttl_ms[writes]
    return tuple(int(ttl[pattern == index].max(initial=0)) for index in range(len(access.patterns)))


def _hot_keys(access: AccessSample) -> int:
    """Count the captured keys with more than HOT_SHARE of all lookups; with a spatial filter the rest of the keys is
    not seen.
    """
    reads = access.trace.key[access.trace.op == Op.READ]
    if len(reads) == 0:
        return 0
    _, counts = np.unique(reads, return_counts=True)
    return int(np.count_nonzero(counts > HOT_SHARE * len(reads) / access.spatial_rate))


def _reuse(access: AccessSample) -> PopularityMixture | None:
    reads = access.trace.rows(access.trace.op == Op.READ)
    if len(reads) < _FIT_READS_MIN or reads.duration_ms < _FIT_DURATION_MIN_MS:
        return None
    return PopularityMixture.from_accesses(reads, len(reads) * 1000.0 / reads.duration_ms)
