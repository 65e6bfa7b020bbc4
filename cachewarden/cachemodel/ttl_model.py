"""What a longer time to live would give a cache, and which misses would be left.

TTLs are fixed ones, given at each load or write (cache-aside, not sliding). Where prefixes live by different TTLs gains
come from their sum (`prefix_curves`); where all live by one, they are what an `Inquiry` answers. It never asks about a
TTL beyond the staleness that it is given.

Measured on pairs of published traces in one cache under TTLs of 60 to 600 s, one of them lengthened two or four times:
the mean error of the whole cache's gain was 0.5 to 0.8 points by prefix, and 3.5 by one TTL for all.

A replay of the capture under the longer TTL was tried and is gone: a capture shorter than some TTLs counts what it has
not seen before as first-time. On four published traces under TTLs of 60 to 300 s, lengthened up to 900 s, its mean
error was 5.4 points from four minutes of accesses, and 1.6 from ten; that of the fitted mixture is 0.5 in both
(`benchmarks/ttl_gains.py`).

INVARIANT: what is left to miss has no negative part and adds up to the predicted miss ratio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.evidence import CacheConfiguration
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.whatif import Answer, Inquiry
from cachewarden.estimate import Estimate

__all__ = [
    "MissesLeft",
    "TtlGain",
    "gains_by_prefix",
    "gains_of_longer_ttls",
    "share_kept_by_use",
    "shortest_with_most_of_the_gain",
    "ttl_ladder",
]

_RUNGS_MAX = 12
_LAST_LOOK = 0.75
_IDLE_TOLD_S = 2.0


@dataclass(frozen=True, slots=True)
class MissesLeft:
    """Shares of all lookups, by what would have to change for a hit: `never_again` nothing helps, the key does not come
    again; `after_ttl` a longer TTL, whatever the memory; `for_memory` more memory alone.

    Not the causes that a server counts: a key that was evicted and would have expired too is under `after_ttl` here.
    """

    never_again: float
    after_ttl: float
    for_memory: float


@dataclass(frozen=True, slots=True)
class TtlGain:
    """What one TTL would give: `hit_ratio` then, its `gain` over the observed one, and the misses that are left; each
    None where it is not told.
    """

    ttl_ms: int
    hit_ratio: Estimate | None
    gain: Estimate
    misses: MissesLeft | None


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


def gains_of_longer_ttls(
    inquiry: Inquiry, configuration: CacheConfiguration, longest_ms: int
) -> tuple[TtlGain, ...] | str:
    """Return what each TTL of the ladder would give in this configuration, or in words why nothing can be said.

    `longest_ms` is the staleness that the owner permits.
    """
    if configuration.ttl_ms is None:
        return "most keys have no TTL, so no TTL can be lengthened"
    ladder = ttl_ladder(configuration.ttl_ms, longest_ms)
    if not ladder:
        return f"a TTL of {configuration.ttl_ms} ms is as long as its owner permits ({longest_ms} ms)"
    answers = inquiry.ask([replace(configuration, ttl_ms=ttl_ms) for ttl_ms in ladder])
    found = [
        TtlGain(ttl_ms, answer.hit_ratio, answer.change, _misses_left(inquiry, answer))
        for ttl_ms, answer in zip(ladder, answers, strict=True)
        if isinstance(answer, Answer)
    ]
    if not found:
        return next(answer.reason for answer in answers if not isinstance(answer, Answer))
    return tuple(found)


def gains_by_prefix(
    inquiry: Inquiry, configuration: CacheConfiguration, staleness_ms: Mapping[str, int]
) -> tuple[TtlGain, ...] | str:
    """Return what each TTL of the ladder would give the whole cache if it were given to every prefix that may have it:
    up to its own staleness, and only where that is longer than what it has; or in words why nothing can be said.
    """
    present = inquiry.shared.ttls if inquiry.by_prefix is None else inquiry.by_prefix.ttls
    given = {name: ttl_ms for name, ttl_ms in present.items() if ttl_ms < staleness_ms.get(name, 0)}
    if not given:
        return inquiry.shared.reason or "no prefix with a known TTL has a declared staleness above it"
    ladder = ttl_ladder(min(given.values()), max(staleness_ms[name] for name in given))
    answers = inquiry.ask([replace(configuration, prefix_ttls_ms=_given(ttl, given, staleness_ms)) for ttl in ladder])
    found = []
    for ttl_ms, answer in zip(ladder, answers, strict=True):
        if not isinstance(answer, Answer):
            return answer.reason
        found.append(TtlGain(ttl_ms, answer.hit_ratio, answer.change, None))
    return tuple(found)


def _given(ttl_ms: int, present_ms: Mapping[str, int], staleness_ms: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Return the prefixes that a TTL lengthens, each to no more than its own staleness."""
    longest = {name: min(ttl_ms, staleness_ms[name]) for name in sorted(present_ms)}
    return tuple((name, longer) for name, longer in longest.items() if longer > present_ms[name])


def shortest_with_most_of_the_gain(gains: Sequence[TtlGain], share: float) -> TtlGain:
    """Return the shortest TTL with `share` (0..1) of the gain of the longest one: freshness is worth something too.

    Raises ValueError without gains.
    """
    if not gains:
        raise ValueError("there is no shortest of no TTLs, ask for gains first")
    return next((gain for gain in gains if gain.gain.value >= share * gains[-1].gain.value), gains[-1])


def share_kept_by_use(mixture: PopularityMixture, written_ms: int, extended_ms: int) -> float:
    """Return which share (0..1) of a longer TTL's gain is left if only keys get it that were used since their load.

    Keys are asked for at random times at their own rate r, so a key is seen to be used with probability
    p = 1 - exp(-rS), S the part of its written TTL W in which a use is seen, and lives W + (E - W)p on average; a life
    of T gives rT hits for each load. The last look at a key comes after three quarters of W on average, since each is
    looked at twice in W, and idle times are told to two seconds.
    """
    rates, requests = mixture.rates_per_s, mixture.weights
    written_s, extended_s = written_ms / 1000.0, extended_ms / 1000.0
    used = -np.expm1(-rates * max(_LAST_LOOK * written_s - _IDLE_TOLD_S, 0.0))

    def hits(life_s: npt.NDArray[np.float64] | float) -> float:
        turns = rates * life_s
        return float((turns / (1.0 + turns)) @ requests)

    least, most = hits(written_s), hits(extended_s)
    if most <= least:
        return 1.0
    return min(max((hits(written_s + (extended_s - written_s) * used) - least) / (most - least), 0.0), 1.0)


def _misses_left(inquiry: Inquiry, answer: Answer) -> MissesLeft | None:
    """Return what lookups would miss for, as the model has it, scaled to the misses that the answer leaves.

    Eviction policies other than LRU count as LRU here.
    """
    fitted, wanted = inquiry.workload, answer.candidate
    if isinstance(fitted, str) or wanted.ttl_ms is None:
        return None
    mixture = fitted.mixture
    capacity = inquiry.evidence.capacity_bytes(wanted)
    unlimited = float(mixture.ttl_hit_ratio(wanted.ttl_ms)[0])
    limited = unlimited
    if capacity != float("inf"):
        limited = min(unlimited, float(1.0 - mixture.miss_ratio_curve(capacity, wanted.ttl_ms)[0]))
    left = 1.0 - answer.hit_ratio.value
    scale = left / (1.0 - limited) if limited < 1.0 else 0.0
    late = max(0.0, 1.0 - mixture.cold - unlimited)
    return MissesLeft(scale * mixture.cold, scale * late, scale * (unlimited - limited))
