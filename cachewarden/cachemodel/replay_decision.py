"""What to do, as far as a replayed trace can tell: change, leave it, or look for longer; and the memory for a target.

It reads a `ReplayStudy` and changes nothing. A change is worth it only where the low end of its paired gain exceeds the
least gain that the caller wants; a sample that is too small to tell is said to be so, with the size that would do.

INVARIANT: a candidate is only advised if its whole 90 % interval lies above the least gain.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cachewarden.cachemodel.replay_study import ReplayCandidate, ReplayStudy
from cachewarden.estimate import Estimate

__all__ = ["Change", "Decision", "MemoryNeeded", "NoChange", "NotEnough", "decide", "shortage", "smallest_memory"]

# Below that the eight groups of keys hold too few each for their spread to mean anything.
_KEYS_MIN = 200
# Below that the hit ratio of the trace itself says little about the next hour.
_READS_MIN = 2000
# Sizes tried are 1 % apart, from a thousandth of what everything takes.
_SIZE_STEP = 1.01
_SMALLEST_PART = 1000


@dataclass(frozen=True, slots=True)
class Change:
    """Change to `candidate`: its `gain` over the baseline (0..1) is worth it even at the low end."""

    candidate: ReplayCandidate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class NoChange:
    """Leave it: nothing gains enough for sure. `best` and its `gain`, None if there was no other candidate."""

    reason: str
    best: ReplayCandidate | None = None
    gain: Estimate | None = None


@dataclass(frozen=True, slots=True)
class NotEnough:
    """The evidence does not decide it, and in words how much would."""

    reason: str


Decision = Change | NoChange | NotEnough


@dataclass(frozen=True, slots=True)
class MemoryNeeded:
    """The smallest memory for entries that reaches a hit ratio, with its 90 % interval.

    `high_bytes` None: the low end of the hit ratio's interval does not reach it at any size.
    """

    capacity_bytes: int
    low_bytes: int
    high_bytes: int | None


def decide(
    study: ReplayStudy,
    candidates: Sequence[ReplayCandidate],
    baseline: ReplayCandidate,
    *,
    gain_min: float = 0.003,
    error_max: float = 0.02,
) -> Decision:
    """Choose among `candidates` against `baseline`, or none of them.

    `gain_min` 0..1, the least gain in hit ratio that is worth a change. `error_max` 0..1, the largest half interval of
    the gain with which "no change" is still an answer and not a lack of evidence. Among several the one with the best
    low end is chosen. Raises ValueError for values out of range.
    """
    if not 0.0 <= gain_min < 1.0 or not 0.0 < error_max < 1.0:
        raise ValueError(f"gain `{gain_min}` or error `{error_max}` is out of range, use hit ratios from 0 to 1")
    if study.reads < _READS_MIN:
        return NotEnough(f"not enough evidence: the trace has {study.reads} reads, {_READS_MIN} are needed")
    if study.rate < 1.0 and study.sampled_keys < _KEYS_MIN:
        return NotEnough(f"not enough evidence: {study.sampled_keys} keys are sampled, {_KEYS_MIN} are needed")
    others = [candidate for candidate in candidates if candidate != baseline]
    if not others:
        return NoChange("there is no other candidate")
    gains = [study.difference(candidate, baseline) for candidate in others]
    best = max(range(len(others)), key=lambda number: gains[number].low)
    if gains[best].low > gain_min:
        return Change(others[best], gains[best])
    # The most hopeful one decides whether more evidence could change the answer.
    best = max(range(len(others)), key=lambda number: gains[number].value)
    gain = gains[best]
    too_wide = [shortage(study, found, error_max) for found in gains if found.high > gain_min]
    missing = [told for told in too_wide if told is not None]
    if missing:
        return NotEnough(missing[0])
    if gain.value <= gain_min:
        told = f"no change: the best gain is {100 * gain.value:+.2f} points, {100 * gain_min:.2f} are wanted"
    else:
        told = f"no change: the gain's interval from {100 * gain.low:+.2f} points includes {100 * gain_min:.2f}"
    return NoChange(told, others[best], gain)


def shortage(study: ReplayStudy, found: Estimate, error: float) -> str | None:
    """Return in words how many keys are sampled and how many it takes for half an interval of `error` (0..1), or None
    if `found`, an outcome or difference of this study, is that sure already.

    The interval shrinks with the root of the sampled keys, and to what the replay itself may miss once all are sampled.
    Raises ValueError for an error out of range.
    """
    if not 0.0 < error < 1.0:
        raise ValueError(f"error `{error}` is out of range, use a hit ratio difference between 0 and 1")
    half = max(found.high - found.value, found.value - found.low)
    if half <= error or study.rate >= 1.0:
        return None
    keys, everything = study.sampled_keys, study.sampled_keys / study.rate
    needed = math.ceil(1.0 / (1.0 / everything + (1.0 / keys - 1.0 / everything) * (error / half) ** 2))
    return (
        f"not enough evidence: {keys} keys are sampled, about {needed} of {everything:.0f} are needed for "
        f"{100 * error:.2g} points instead of {100 * half:.2g}"
    )


def smallest_memory(study: ReplayStudy, candidate: ReplayCandidate, target: float) -> MemoryNeeded | str:
    """Return the smallest memory with which `candidate` hits `target` (0..1) of the lookups, or in words why none does.

    By bisection, so it takes for granted that more memory never hits less. Raises ValueError for a target out of range.
    """
    if not 0.0 < target < 1.0:
        raise ValueError(f"target `{target}` is out of range, use a hit ratio between 0 and 1")
    everything = math.ceil(study.footprint_bytes * 1.05)
    steps = math.ceil(math.log(_SMALLEST_PART) / math.log(_SIZE_STEP))
    sizes = sorted({math.ceil(size) for size in np.geomspace(everything / _SMALLEST_PART, everything, steps).tolist()})

    def hits(size: int) -> Estimate:
        return study.outcome(replace(candidate, capacity_bytes=size)).hit_ratio

    most = study.outcome(replace(candidate, capacity_bytes=everything))
    if most.hit_ratio.value < target:
        return (
            f"no memory reaches {target:.2%}: with room for everything {most.hit_ratio.value:.2%} hit, "
            f"{most.cold:.2%} come for the first time and {most.expired:.2%} find their key expired"
        )
    capacity = sizes[bisect.bisect_left(sizes, target, key=lambda size: hits(size).value)]
    low = sizes[bisect.bisect_left(sizes, target, key=lambda size: hits(size).high)]
    reached = most.hit_ratio.low >= target
    high = sizes[bisect.bisect_left(sizes, target, key=lambda size: hits(size).low)] if reached else None
    return MemoryNeeded(capacity, min(low, capacity), None if high is None else max(high, capacity))
