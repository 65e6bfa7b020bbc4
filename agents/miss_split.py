"""Why lookups missed: cold, expired, evicted or refused, as shares of all lookups.

The total is always the miss ratio that the server counted. Its parts come from a capture where there is one, and from
the balance of the server's own counters for the rest:

1. A miss of a key that the capture saw before has a known cause: its TTL had run out (expired), or not, and then the
   server pushed it out (evicted), had never stored it (refused), or somebody deleted it (cold: no setting of a cache
   brings it back). Where none of these is possible - the server evicts, expires and refuses nothing - the write after
   the read was an update and no miss.
2. A miss of a key that the capture had not seen either comes back from before the capture or is new. The fitted
   distribution of reuse times says which share of lookups goes to keys not read for ten capture lengths, or since
   the server started: these are cold. The others are shared out by what the server evicts, expires and refuses beyond
   the known ones.
3. Misses that no load follows cannot be seen in a capture. Where they are more than a fifth of the counted ones, the
   difference goes to keys that are new by the same distribution, then to what the flows explain, and cold is the rest.

Without a capture only the flows speak: refused writes, evictions and expiries each explain at most as many misses,
the rest is cold. This takes keys that are evicted and never wanted again for evicted ones, so `evicted` and `expired`
are upper bounds; `source` says which it was.

It assumes a cache-aside application and a window that is typical of the time before it. INVARIANT: parts are >= 0 and
add up to the miss ratio.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from agents.captured_reads import CapturedReads
from agents.windows import Window
from cachewarden.observation import MissSplit

__all__ = ["CAPTURE_SOURCE", "FLOW_SOURCE", "Flows", "flows_of", "split_misses"]

CAPTURE_SOURCE = "access capture, anchored on the counted miss ratio"
FLOW_SOURCE = "counters only, evicted and expired are upper bounds"

_CAPTURED_READS_MIN = 200
# Scaling a capture up further than this would give misses that it cannot see the causes of those that it can.
_SCALE_UP_MAX = 1.25
# A key that was used less than this part of the eviction age ago cannot have been evicted for being idle.
_TOO_YOUNG_TO_EVICT = 0.5
# A key that comes back later than so many capture lengths cannot be told from a new one, nor would a cache keep it.
_HORIZON_CAPTURES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Flows:
    """What the server counted in a window, as shares of lookups, >= 0; a counter that it does not print is 0."""

    missed: float
    evicted: float = 0.0
    expired: float = 0.0
    refused: float = 0.0
    uptime_ms: int | None = None
    """How long the server has run: a key last read before that is new to it."""


@dataclass(frozen=True, slots=True)
class _Parts:
    cold: float = 0.0
    expired: float = 0.0
    evicted: float = 0.0
    refused: float = 0.0

    @property
    def total(self) -> float:
        return self.cold + self.expired + self.evicted + self.refused

    def plus(self, other: _Parts, times: float = 1.0) -> _Parts:
        return _Parts(
            self.cold + times * other.cold,
            self.expired + times * other.expired,
            self.evicted + times * other.evicted,
            self.refused + times * other.refused,
        )

    def scaled_to(self, total: float) -> _Parts:
        return _Parts().plus(self, total / self.total) if self.total > 0 else _Parts(cold=total)


def flows_of(window: Window, uptime_ms: int | None = None) -> Flows | None:
    """Return the flows of a window of a server that is up since `uptime_ms`, None where it has no lookups."""
    if window.lookups == 0:
        return None
    n = window.lookups
    return Flows(
        missed=window.misses / n,
        evicted=(window.evicted or 0) / n,
        expired=(window.expired or 0) / n,
        refused=(window.refused or 0) / n,
        uptime_ms=uptime_ms,
    )


def split_misses(
    flows: Flows | None, reads: CapturedReads | None = None, eviction_age_ms: int | None = None
) -> MissSplit | None:
    """Say why lookups missed; None where the window has no lookups.

    `reads` is a capture of the same cache, not necessarily of the same time; with fewer than 200 judged reads it is
    not used.
    """
    if flows is None:
        return None
    new = None if reads is None else _new_share(flows, reads)
    known = None if reads is None or new is None else _from_capture(flows, reads, new, eviction_age_ms)
    if known is None or new is None:
        return _message(_explained_by_flows(flows, _Parts(), flows.missed), FLOW_SOURCE)
    if known.total * _SCALE_UP_MAX >= flows.missed:
        return _message(known.scaled_to(flows.missed), CAPTURE_SOURCE)
    shown = known.scaled_to(known.total * _SCALE_UP_MAX) if known.total > 0 else _Parts()
    # Lookups of new keys miss, whether or not their loads show in the capture.
    shown = shown.plus(_Parts(cold=max(0.0, min(new - shown.cold, flows.missed - shown.total))))
    left = max(0.0, flows.missed - shown.total)
    return _message(shown.plus(_explained_by_flows(flows, shown, left)).scaled_to(flows.missed), CAPTURE_SOURCE)


def _message(parts: _Parts, source: str) -> MissSplit:
    return MissSplit(
        cold=parts.cold, expired=parts.expired, evicted=parts.evicted, refused=parts.refused, source=source
    )


def _explained_by_flows(flows: Flows, known: _Parts, total: float) -> _Parts:
    """Share `total` out among the flows that are left after `known`; what they do not explain is cold."""
    left = _left(flows, known)
    return left.scaled_to(total) if left.total > total else left.plus(_Parts(cold=total - left.total))


def _left(flows: Flows, known: _Parts) -> _Parts:
    return _Parts(
        expired=max(0.0, flows.expired - known.expired),
        evicted=max(0.0, flows.evicted - known.evicted),
        refused=max(0.0, flows.refused - known.refused),
    )


def _from_capture(flows: Flows, reads: CapturedReads, new_share: float, eviction_age_ms: int | None) -> _Parts | None:
    """Return the shares of the misses that the capture shows; None where it shows too little."""
    # Reads of the second half have at least half a capture of history, so that all of them are judged alike.
    horizon_ms = reads.duration_ms // 2
    judged = reads.at_ms >= horizon_ms
    count = int(np.count_nonzero(judged))
    if count < _CAPTURED_READS_MIN:
        return None
    missed = judged & reads.missed
    known = _known_causes(flows, reads, missed & reads.seen, eviction_age_ms, count)
    unknown = float(np.count_nonzero(missed & ~reads.seen)) / count
    if unknown == 0.0:
        return known
    new = min(unknown, new_share)
    back = unknown - new
    left = _left(flows, known)
    if left.total == 0.0:
        left = _Parts(expired=flows.expired, evicted=flows.evicted, refused=flows.refused)
    returned = left.scaled_to(back) if left.total > 0.0 else _Parts(cold=back)
    return known.plus(returned).plus(_Parts(cold=new))


def _known_causes(
    flows: Flows, reads: CapturedReads, missed: npt.NDArray[np.bool_], eviction_age_ms: int | None, count: int
) -> _Parts:
    """Return the causes of the misses of keys that the capture had seen before, as shares of `count` lookups."""
    expires, evicts, refuses = flows.expired > 0, flows.evicted > 0, flows.refused > 0
    written = missed & (reads.written_ago_ms >= 0)
    overdue = written & (reads.ttl_ms > 0) & (reads.written_ago_ms >= reads.ttl_ms)
    if eviction_age_ms is not None and evicts:
        # Idle for longer than the eviction age before the TTL ran out: eviction came first.
        overdue &= reads.idle_ms - eviction_age_ms <= reads.written_ago_ms - reads.ttl_ms
    in_time = written & ~overdue
    # Seen only by reads: it was resident, its write lies before the capture, and its TTL shows in the load that
    # follows.
    resident = missed & ~written & ~reads.deleted
    may_expire = resident & (reads.load_ttl_ms > 0) & expires
    may_evict = in_time | resident
    if eviction_age_ms is not None:
        may_evict &= reads.idle_ms >= _TOO_YOUNG_TO_EVICT * eviction_age_ms
    may_evict &= evicts
    may_refuse = (in_time | resident) & refuses & ~may_evict

    def share(selected: npt.NDArray[np.bool_]) -> float:
        return float(np.count_nonzero(selected)) / count

    both = share(may_expire & may_evict)
    to_expiry = flows.expired / (flows.expired + flows.evicted) if both else 0.0
    return _Parts(
        cold=share(missed & reads.deleted),
        expired=share(overdue) + share(may_expire & ~may_evict) + both * to_expiry,
        evicted=share(may_evict & ~may_expire) + both * (1.0 - to_expiry),
        refused=share(may_refuse & ~may_expire),
    )


def _new_share(flows: Flows, reads: CapturedReads) -> float | None:
    """Return which share of lookups goes to keys that were not read within the horizon, or never before.

    The reuse times of a stationary stream look the same backwards, so the chance of no read before equals that of none
    after. None where the capture is too short for a fit.
    """
    if reads.reuse is None:
        return None
    horizon_ms = _HORIZON_CAPTURES * reads.duration_ms
    if flows.uptime_ms is not None:
        horizon_ms = min(horizon_ms, flows.uptime_ms)
    return float(reads.reuse.survival(horizon_ms)[0])
