"""What time to live does to a cache: which misses it causes, and what a longer one would give.

Accesses of a capture are replayed under a fixed TTL given at each load or write (cache-aside, not sliding), with
eviction at a given idle age as a full LRU shows it. Gains come as differences on the same keys, so that what one
sample of keys makes better or worse cancels out. It never proposes a TTL beyond the staleness that it is given.

Limits: a key's first access in the capture counts as compulsory, since nobody saw what was before; leave a warm-up
out with `count_from_ms`. The eviction age is taken as fixed, although longer lives make a full cache evict earlier.

INVARIANT: hits and the four kinds of misses add up to the reads that were counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.fixed_size_sample import ratio_estimate
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.ttl_kernel import COMPULSORY, DELETED, EVICTED, EXPIRED, HIT, NO_READ, judge
from cachewarden.estimate import Estimate

__all__ = ["TtlGain", "TtlMisses", "gains_of_longer_ttls", "split_misses", "ttl_ladder"]

_RUNGS_MAX = 12


@dataclass(frozen=True, slots=True)
class TtlMisses:
    """Reads by what became of them. `expired`: the TTL had run out before eviction would have come; `deleted`: the
    application had removed the key.
    """

    reads: int
    hits: int
    compulsory: int
    expired: int
    evicted: int
    deleted: int

    @property
    def hit_ratio(self) -> float | None:
        """Return hits / reads; None without reads."""
        return None if self.reads == 0 else self.hits / self.reads


@dataclass(frozen=True, slots=True)
class TtlGain:
    """What one TTL would give over the present one. `hit_ratio_gain` is a difference of hit ratios; its interval is
    that of the sampled keys alone. `misses` as they would be.
    """

    ttl_ms: int
    misses: TtlMisses
    hit_ratio_gain: Estimate


def ttl_ladder(present_ms: int, longest_ms: int) -> tuple[int, ...]:
    """Return TTLs to ask about: the present one doubled again and again, and the longest permitted one at the end.

    Empty if the present TTL is as long as permitted. Raises ValueError for a TTL below 1 ms.
    """
    if present_ms < 1:
        raise ValueError(f"a TTL of `{present_ms}` ms is impossible, use at least 1")
    if present_ms >= longest_ms:
        return ()
    doubled = [present_ms * 2**i for i in range(1, _RUNGS_MAX)]
    return (*[ttl_ms for ttl_ms in doubled if ttl_ms < longest_ms], longest_ms)


def split_misses(
    trace: AccessTrace,
    *,
    ttl_ms: int | None = None,
    eviction_age_ms: int | None = None,
    count_from_ms: int | None = None,
) -> TtlMisses:
    """Return why the reads of a capture would miss.

    `trace`: fills folded into the reads that caused them (`fills.fold_fills`). `ttl_ms` given at every load and write,
    0 = none, None = as the trace says. `eviction_age_ms` idle time after which a full cache evicts, None = it never
    does. Reads before `count_from_ms` (same clock as the trace) warm the cache and are not counted.
    """
    _, _, outcome = _judged(trace, ttl_ms, eviction_age_ms, count_from_ms)
    return _counted(outcome)


def gains_of_longer_ttls(
    trace: AccessTrace,
    present_ttl_ms: int,
    max_staleness_ms: int,
    *,
    seed: int,
    eviction_age_ms: int | None = None,
    count_from_ms: int | None = None,
    ladder: Sequence[int] = (),
) -> tuple[TtlGain, ...] | str:
    """Return the gain of each TTL of the ladder (`ttl_ladder` if none is given), or in words why nothing can be said.

    TTLs beyond `max_staleness_ms` are left out: that much freshness is not ours to give away. Without eviction gains
    never fall with a longer TTL by more than the chance of where lives end and begin.
    """
    wanted = [ttl for ttl in ladder or ttl_ladder(present_ttl_ms, max_staleness_ms) if ttl <= max_staleness_ms]
    if not wanted:
        return f"a TTL of {present_ttl_ms} ms is as long as its owner permits ({max_staleness_ms} ms)"
    key, order, now = _judged(trace, present_ttl_ms, eviction_age_ms, count_from_ms)
    reads = now != NO_READ
    if not np.any(reads):
        return "the capture has no reads that count, capture for longer"
    group = np.cumsum(np.concatenate(([0], (key[1:] != key[:-1]).astype(np.int64))))
    accesses = np.bincount(group[reads], minlength=int(group[-1]) + 1).astype(np.float64)
    used = accesses > 0
    gains: list[TtlGain] = []
    for ttl in wanted:
        _, _, then = _judged(trace, ttl, eviction_age_ms, count_from_ms, order)
        saved = ((then == HIT).astype(np.float64) - (now == HIT))[reads]
        per_key = np.bincount(group[reads], weights=saved, minlength=len(accesses)).astype(np.float64)
        estimate = _difference(per_key[used], accesses[used], seed)
        if isinstance(estimate, str):
            return estimate
        gains.append(TtlGain(ttl, _counted(then), estimate))
    return tuple(gains)


def _difference(saved: npt.NDArray[np.float64], accesses: npt.NDArray[np.float64], seed: int) -> Estimate | str:
    """Return sum(saved) / sum(accesses), which may be negative: hits won and hits lost are resampled alike."""
    if len(saved) and not np.any(saved):
        # Resampling nothing would claim certainty; this is how much a key that was not sampled may still change.
        found = ratio_estimate(np.zeros(len(saved)), accesses, seed)
        return found if isinstance(found, str) else Estimate(0.0, -found.high, found.high)
    shifted = ratio_estimate((saved + accesses) / 2.0, accesses, seed)
    if isinstance(shifted, str):
        return shifted
    return Estimate(2.0 * shifted.value - 1.0, 2.0 * shifted.low - 1.0, 2.0 * shifted.high - 1.0)


def _judged(
    trace: AccessTrace,
    ttl_ms: int | None,
    eviction_age_ms: int | None,
    count_from_ms: int | None,
    order: npt.NDArray[np.int64] | None = None,
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int8]]:
    """Return keys sorted, the order that sorts them, and the outcome of each sorted row."""
    if ttl_ms is not None and ttl_ms < 0:
        raise ValueError(f"a TTL of `{ttl_ms}` ms is impossible, use 0 for none")
    if eviction_age_ms is not None and eviction_age_ms < 0:
        raise ValueError(f"an eviction age of `{eviction_age_ms}` ms is impossible, use None where nothing is evicted")
    sort = np.argsort(trace.key, kind="stable") if order is None else order
    key, time_ms = trace.key[sort], trace.time_ms[sort]
    ttls = trace.ttl_ms[sort] if ttl_ms is None else np.full(len(trace), ttl_ms, dtype=np.int64)
    outcome = np.full(len(trace), NO_READ, dtype=np.int8)
    judge(key, time_ms, trace.op[sort], ttls, -1 if eviction_age_ms is None else eviction_age_ms, outcome)
    if count_from_ms is not None:
        outcome[time_ms < count_from_ms] = NO_READ
    return key, sort, outcome


def _counted(outcome: npt.NDArray[np.int8]) -> TtlMisses:
    counts = np.bincount(outcome[outcome != NO_READ], minlength=DELETED + 1)
    return TtlMisses(
        reads=int(counts.sum()),
        hits=int(counts[HIT]),
        compulsory=int(counts[COMPULSORY]),
        expired=int(counts[EXPIRED]),
        evicted=int(counts[EVICTED]),
        deleted=int(counts[DELETED]),
    )
