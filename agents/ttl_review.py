"""What TTLs do to one cache and to each of its prefixes: misses by cause, what longer ones give, expiries that come
together, memory that is held for nothing.

It reads one snapshot and proposes nothing; `appraisal` draws rules from the same gains. INVARIANT: no TTL beyond the
staleness that the owner declared is asked about, and what cannot be told is a reason in words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.captured_reads import read_capture
from agents.miss_split import Flows, split_misses
from agents.prefix_evidence import access_of, residents_of
from cachewarden.cachemodel.dead_memory import DeadMemory, Residents, expired_memory, unread_memory
from cachewarden.cachemodel.evidence import PrefixEvidence
from cachewarden.cachemodel.fills import fold_fills
from cachewarden.cachemodel.prefix_curves import SharedCache
from cachewarden.cachemodel.ttl_model import (
    TtlGain,
    gains_by_prefix,
    gains_of_longer_ttls,
    shortest_with_most_of_the_gain,
    ttl_ladder,
)
from cachewarden.cachemodel.ttl_stampede import Jitter, Stampede, jitter_below, stampede_risk
from cachewarden.cachemodel.whatif import Inquiry
from cachewarden.estimate import Estimate
from cachewarden.fleet import Service
from cachewarden.observation import KeyspaceSample, MissSplit, Snapshot

__all__ = [
    "TTL_GAIN_SHARE",
    "TtlReview",
    "jitter_for",
    "memory_held_for_nothing",
    "residents_among",
    "review_ttls",
    "stampede_among",
]

TTL_GAIN_SHARE = 0.95
"""Of the gain of the longest permitted TTL; the shortest TTL that reaches it is enough."""
_SEED = 1
_PEAK_OVER_MEAN = 2.0
"""A jitter is looked for that leaves at most this many times the mean in the busiest second, or what chance allows."""
_JITTER_SHARE = 0.5
"""Of the TTL: more jitter would halve lives."""
_UNREAD_IDLE_MS = 600_000
"""Without a capture, keys that nobody touched for so long count as unread."""


@dataclass(frozen=True, slots=True)
class TtlReview:
    """One prefix, or the whole service (`pattern` None).

    `ttl_ms` that most keys live by, `longest_ms` the declared staleness (of the service: the least one, or the longest
    where prefixes with different TTLs are told apart), each None if there is none. `gains` by rising
    TTL, or the reason; `enough_ttl_ms` the shortest with nearly all of the gain, None where nothing is surely gained.
    """

    pattern: str | None
    ttl_ms: int | None
    longest_ms: int | None
    misses: MissSplit | None
    gains: tuple[TtlGain, ...] | str
    enough_ttl_ms: int | None
    stampede: Stampede | str
    jitter: Jitter | str
    unread: DeadMemory | str
    expired: DeadMemory | str


def review_ttls(
    snapshot: Snapshot,
    service: Service,
    inquiry: Inquiry | str,
    prefixes: tuple[PrefixEvidence, ...],
) -> tuple[TtlReview, tuple[TtlReview, ...]]:
    """Return the review of the whole service and those of its prefixes.

    `inquiry` rests on the same snapshot, or is the reason why there is none.
    """
    shared = inquiry if isinstance(inquiry, str) else inquiry.shared
    staleness = {p.prefix: int(p.max_staleness_s * 1000) for p in service.patterns if p.max_staleness_s is not None}
    of_prefixes = tuple(_of_prefix(snapshot, known, staleness.get(known.pattern), shared) for known in prefixes)
    return _of_service(snapshot, inquiry, staleness), of_prefixes


def memory_held_for_nothing(snapshot: Snapshot) -> tuple[DeadMemory | str, DeadMemory | str]:
    """Return the memory of keys that nobody reads, and of keys that have expired and are still there, or why not."""
    sample = snapshot.sample
    if sample is None or len(sample) == 0:
        reason = snapshot.incomplete.get("sample", "no keys were sampled")
        return reason, reason
    residents = residents_among(snapshot, sample, np.ones(len(sample), np.bool_))
    return _unread(snapshot, residents), expired_memory(residents, _SEED, stale_share=snapshot.expired_stale_share)


def _of_service(snapshot: Snapshot, inquiry: Inquiry | str, staleness: dict[str, int]) -> TtlReview:
    gains: tuple[TtlGain, ...] | str
    longest_ms = min(staleness.values(), default=None)
    ttl_ms = None if isinstance(inquiry, str) else inquiry.evidence.current.ttl_ms
    if isinstance(inquiry, str):
        gains = inquiry
    elif longest_ms is None:
        gains = "no pattern has a declared staleness, so no TTL may be lengthened"
    elif inquiry.by_prefix is not None:
        longest_ms = max(staleness.values())
        gains = gains_by_prefix(inquiry, inquiry.evidence.current, staleness)
    else:
        gains = gains_of_longer_ttls(inquiry, inquiry.evidence.current, longest_ms)
    return _review(snapshot, None, ttl_ms, longest_ms, snapshot.miss_split, gains)


def _of_prefix(
    snapshot: Snapshot, known: PrefixEvidence, longest_ms: int | None, shared: SharedCache | str
) -> TtlReview:
    gains = shared if isinstance(shared, str) else _gains_of_prefix(known, longest_ms, shared)
    return _review(snapshot, known.pattern, known.ttl_ms, longest_ms, _misses_of(snapshot, known), gains)


def _gains_of_prefix(known: PrefixEvidence, longest_ms: int | None, shared: SharedCache) -> tuple[TtlGain, ...] | str:
    if known.ttl_ms is None:
        return "most of its keys have no TTL"
    if longest_ms is None:
        return "it has no declared staleness, so its TTL may not be lengthened"
    ladder = ttl_ladder(known.ttl_ms, longest_ms)
    if not ladder:
        return f"a TTL of {known.ttl_ms} ms is as long as its owner permits ({longest_ms} ms)"
    found = []
    for ttl_ms in ladder:
        gain = shared.ttl_gain(known.pattern, ttl_ms)
        if isinstance(gain, str):
            return gain
        found.append(TtlGain(ttl_ms, _level(known.hit_ratio, gain), gain, None))
    return tuple(found)


def _level(measured: Estimate | None, gain: Estimate) -> Estimate | None:
    """Return the hit ratio that a gain leads to, None where the present one is not measured."""
    if measured is None:
        return None
    low, value, high = (min(max(measured.value + g, 0.0), 1.0) for g in (gain.low, gain.value, gain.high))
    return Estimate(value, low, high)


def _misses_of(snapshot: Snapshot, known: PrefixEvidence) -> MissSplit | None:
    """Return why lookups of one prefix miss, as shares of its lookups."""
    if snapshot.access is None or known.hit_ratio is None or snapshot.lookups_per_s <= 0:
        return None
    per_lookup = 1.0 / snapshot.lookups_per_s
    flows = Flows(
        missed=1.0 - known.hit_ratio.value,
        evicted=snapshot.evicted_per_s * per_lookup,
        expired=0.0 if known.ttl_ms is None else snapshot.expired_per_s * per_lookup,
        refused=snapshot.refused_per_s * per_lookup,
    )
    return split_misses(flows, read_capture(access_of(snapshot.access, known.pattern)), snapshot.eviction_age_ms)


def _review(
    snapshot: Snapshot,
    pattern: str | None,
    ttl_ms: int | None,
    longest_ms: int | None,
    misses: MissSplit | None,
    gains: tuple[TtlGain, ...] | str,
) -> TtlReview:
    enough = None
    if not isinstance(gains, str) and gains[-1].gain.low > 0:
        enough = shortest_with_most_of_the_gain(gains, TTL_GAIN_SHARE).ttl_ms
    sample = snapshot.sample
    if sample is None or len(sample) == 0:
        reason = snapshot.incomplete.get("sample", "no keys were sampled")
        return TtlReview(pattern, ttl_ms, longest_ms, misses, gains, enough, reason, reason, reason, reason)
    mine = np.ones(len(sample), np.bool_) if pattern is None else residents_of(sample, pattern)
    stampede = stampede_among(snapshot, sample, mine)
    return TtlReview(
        pattern=pattern,
        ttl_ms=ttl_ms,
        longest_ms=longest_ms,
        misses=misses,
        gains=gains,
        enough_ttl_ms=enough,
        stampede=stampede,
        jitter=_jitter(stampede, sample.ttl_ms[mine & (sample.ttl_ms >= 0)], ttl_ms or 0),
        unread=_unread(snapshot, residents_among(snapshot, sample, mine)),
        expired=expired_memory(
            residents_among(snapshot, sample, mine), _SEED, stale_share=snapshot.expired_stale_share
        ),
    )


def residents_among(snapshot: Snapshot, sample: KeyspaceSample, mine: npt.NDArray[np.bool_]) -> Residents:
    """Return sampled keys, and the memory that all keys like them hold."""
    entries = max(snapshot.used_memory_bytes - snapshot.fixed_overhead_bytes, 0)
    sizes = sample.size_bytes if np.all(sample.size_bytes > 0) else np.ones(len(sample), np.int64)
    share = float(sizes[mine].sum()) / float(sizes.sum())
    return Residents(
        key=sample.key[mine],
        size_bytes=sample.size_bytes[mine],
        idle_ms=sample.idle_ms[mine],
        ttl_ms=sample.ttl_ms[mine],
        entry_bytes=int(entries * share),
    )


def _unread(snapshot: Snapshot, residents: Residents) -> DeadMemory | str:
    access, sample = snapshot.access, snapshot.sample
    if access is None or access.trace.duration_ms <= 0:
        known_ms = None if sample is None else sample.idle_known_ms
        if known_ms is not None and known_ms < _UNREAD_IDLE_MS:
            # After a restart or a switch from LFU: what the server prints may be no idle time, or all are young.
            left_s = (_UNREAD_IDLE_MS - known_ms) / 1000
            return f"idle times are known to be true for {known_ms / 1000:.0f} s, it can be told in {left_s:.0f} s"
        return unread_memory(residents, _SEED, idle_from_ms=_UNREAD_IDLE_MS)
    # The read that missed and loaded a key is no use of it: only hits are.
    folded = fold_fills(access.trace)
    hits = folded.trace.rows(~folded.missed)
    if hits.duration_ms <= 0:
        return "the capture shows no hits"
    return unread_memory(residents, _SEED, capture=hits, spatial_rate=access.spatial_rate)


def stampede_among(snapshot: Snapshot, sample: KeyspaceSample, mine: npt.NDArray[np.bool_]) -> Stampede | str:
    """Return the risk of the sampled keys that `mine` chooses, for all keys like them; or why it cannot be told."""
    volatile = mine & (sample.ttl_ms >= 0)
    sampled = int(np.count_nonzero(sample.ttl_ms >= 0))
    share = int(np.count_nonzero(volatile)) / sampled if sampled else 0.0
    return stampede_risk(sample.ttl_ms[volatile], round(snapshot.keys_with_ttl * share))


def _jitter(stampede: Stampede | str, remaining_ms: npt.NDArray[np.int64], ttl_ms: int) -> Jitter | str:
    if isinstance(stampede, str):
        return stampede
    if not stampede.aligned:
        return Jitter(0, stampede.busiest_share.value)
    return jitter_for(stampede, remaining_ms, int(_JITTER_SHARE * max(stampede.horizon_ms, ttl_ms)))


def jitter_for(stampede: Stampede, remaining_ms: npt.NDArray[np.int64], longest_ms: int) -> Jitter | str:
    """Return the least jitter up to `longest_ms` that removes a peak, or why none does."""
    wanted = min(1.0, max(_PEAK_OVER_MEAN * stampede.mean_share, stampede.chance_share))
    return jitter_below(remaining_ms, wanted, longest_ms)
