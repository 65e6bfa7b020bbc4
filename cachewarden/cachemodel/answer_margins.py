"""How far a modelled answer may be off: the parts of the half 90 % interval that `whatif` puts around it.

All of them are hit ratios, 0..1, and taken to be independent. What the fit itself leaves open (its bootstrap) is not
known here. It decides no value. INVARIANT: a margin is never negative.
"""

from __future__ import annotations

import math
from dataclasses import replace

from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence

__all__ = ["beyond", "change_margins", "level_margin", "residual_share"]

_FLOOR = 0.005
_LEVEL_FLOOR = 0.02
"""Model error that stays however much evidence there is: of a change, and of a hit ratio as such."""
_DIFFERENCE_ERROR = 0.3
"""Part of a predicted difference that may be wrong because real workloads are not steady."""
_MISSED_BY_SIZE = 0.5
_MISSED_WHILE_FILLING = 0.75
_MISSED_BY_KIND = 0.25
"""Part of what the model misses of the current hit ratio that a change may miss of it as well: by a doubling or halving
of the memory of a full cache, of one that is still filling, and by another eviction policy or TTL. With these 91 % of
1,276 changes of size that were predicted from the first three to sixteen minutes of fifteen streams fell inside their
intervals over the ten minutes that followed, and 89 % of 558 changes that were predicted from two minutes
(`benchmarks/capture_accuracy.py`)."""
_PASSIVE_FLOOR = 0.015
_PASSIVE_LEVEL_FLOOR = 0.03
_PASSIVE_DIFFERENCE_ERROR = 0.5
"""The same for residents that expire: one look at them knows less than a capture (`benchmarks/passive_accuracy.py`)."""
_EXTRAPOLATION = 0.015
"""Hit ratio per doubling of the residence time beyond what the evidence covers."""


def change_margins(
    evidence: Evidence, candidate: CacheConfiguration, change: float, missed: float, *, captured: bool
) -> tuple[float, float, float]:
    """Return what a predicted change of the hit ratio may be off by: always, in proportion, and since the model misses
    the current hit ratio by `missed`. `captured`: it rests on accesses and not on residents alone.
    """
    floor, doubt = (_FLOOR, _DIFFERENCE_ERROR) if captured else (_PASSIVE_FLOOR, _PASSIVE_DIFFERENCE_ERROR)
    shared = _missed_share(evidence, candidate) if captured else 1.0
    return floor, doubt * abs(change), shared * abs(missed)


def level_margin(*, captured: bool) -> float:
    """Return what a modelled hit ratio as such may be off by, beside the fit."""
    return _LEVEL_FLOOR if captured else _PASSIVE_LEVEL_FLOOR


def residual_share(evidence: Evidence, candidate: CacheConfiguration) -> float:
    """Return how much of the model's error at the current size is expected at another: it shrinks like the root of the
    memory.
    """
    now, then = evidence.capacity_bytes(evidence.current), evidence.capacity_bytes(candidate)
    if math.isinf(now) or math.isinf(then) or now <= 0:
        return 1.0
    return min(1.0, math.sqrt(then / now))


def _missed_share(evidence: Evidence, candidate: CacheConfiguration) -> float:
    """Return which part of what the model misses of the current hit ratio it may miss of a change as well: the less,
    the smaller the change."""
    now, then = evidence.capacity_bytes(evidence.current), evidence.capacity_bytes(candidate)
    doublings = min(1.0, abs(math.log2(then / now))) if 0 < now < math.inf and 0 < then < math.inf else 1.0
    by_size = (_MISSED_BY_SIZE if evidence.full else _MISSED_WHILE_FILLING) * doublings
    same_kind = replace(candidate, maxmemory_bytes=evidence.current.maxmemory_bytes) == evidence.current
    return by_size if same_kind else max(by_size, _MISSED_BY_KIND)


def beyond(horizon_ms: float, ages_ms: tuple[tuple[float, float], ...]) -> float:
    """Return the margin for reuses that take longer than the evidence reaches back; `ages_ms` as
    `Levels.decisive_ages_ms` gives them."""
    doublings = [share * math.log2(min(max(age_ms / horizon_ms, 1.0), 1024.0)) for age_ms, share in ages_ms]
    return _EXTRAPOLATION * sum(doublings)
