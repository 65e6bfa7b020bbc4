"""What a change did, told apart from what the traffic did at the same time.

Three ways, the best first. With a control, an unchanged twin that is asked the same, the effect is the difference of
differences: what the changed cache gained beyond its twin (Card and Krueger 1994; the estimator is `E[after - before]
of one less that of the other`). Where the requests of both times were captured, their replay without the change takes
the twin's place. With neither it is an interrupted time series: the level after the change less the
level before, with the unsteadiness of the pieces before and after as its error (Wagner et al. 2002, without a slope:
four to sixteen pieces cannot carry one). When the rate of lookups has left the range in which the series was taken,
the last way can tell nothing, and says so.

INVARIANT: an effect without evidence is a reason, never a number; intervals hold 90 %.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from agents.windows import Window
from cachewarden.baseline import Baseline
from cachewarden.counterfactual import Counterfactual
from cachewarden.estimate import Estimate

__all__ = [
    "LOOKUPS_MIN",
    "SHIFT_FACTOR",
    "Drift",
    "Measured",
    "control_drift",
    "measured_effect",
    "rate_shifted",
    "replayed_drift",
    "step_error",
    "total_of",
]

SHIFT_FACTOR = 2.0
"""More than twice or less than half the lookups per second is another traffic."""
LOOKUPS_MIN = 100
"""Below that the standard error of a hit ratio is up to 5 points."""
_NORMAL_90 = 1.6449
_DISCORDANT = 0.03
"""Share of the lookups that two caches of the same configuration answer differently, since eviction samples at random:
0.010 to 0.048 over fifteen streams under LRU and LFU. The hit ratios of a minute differ by the root of it over the
lookups, as if these were independent."""
_REPLAY_ERROR = 0.001
"""What is left of the error of a replay where two of its own moments are compared: its level is off by 0.001 on average
(`benchmarks.replay_accuracy`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """By how much the hit ratio has moved since before a change without it, with the standard error of that, None not
    known; `words` say by what it is known."""

    value: float
    error: float | None = None
    words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`gain` is hit ratio after minus before, as far as the change explains it; None with the reason in `basis`."""

    gain: Estimate | None
    basis: str


def rate_shifted(rate_per_s: float, before_per_s: float) -> bool:
    """Say whether lookups per second are more than twice or less than half of what they were."""
    if before_per_s <= 0.0 or rate_per_s <= 0.0:
        return rate_per_s != before_per_s
    return max(rate_per_s / before_per_s, before_per_s / rate_per_s) > SHIFT_FACTOR


def _level(parts: Sequence[tuple[int, int]], total: tuple[int, int]) -> tuple[float, float] | None:
    """Return (hit ratio, its variance) of (lookups, misses); None with too few lookups.

    The variance is the larger of the binomial one and that of the mean of the pieces: neighbouring requests are not
    independent, so the binomial one alone is too sure.
    """
    lookups, misses = total
    if lookups < LOOKUPS_MIN:
        return None
    ratio = 1.0 - misses / lookups
    variance = ratio * (1.0 - ratio) / lookups
    ratios = [1.0 - m / n for n, m in parts if n > 0]
    if len(ratios) > 1:
        mean = sum(ratios) / len(ratios)
        variance = max(variance, sum((r - mean) ** 2 for r in ratios) / (len(ratios) - 1) / len(ratios))
    return ratio, variance


def step_error(parts: Sequence[tuple[int, int]]) -> float | None:
    """Return the standard error of the hit ratio of (lookups, misses) that follow upon each other, a trend left out;
    None with too few lookups.

    The variance of one part is half the mean squared difference of neighbours (von Neumann 1941).
    """
    lookups, misses = total_of(parts)
    if lookups < LOOKUPS_MIN:
        return None
    ratio = 1.0 - misses / lookups
    variance = ratio * (1.0 - ratio) / lookups
    ratios = [1.0 - m / n for n, m in parts if n > 0]
    if len(ratios) > 1:
        squares = [(after - before) ** 2 for before, after in pairwise(ratios)]
        variance = max(variance, sum(squares) / len(squares) / 2.0 / len(ratios))
    return math.sqrt(variance)


def total_of(parts: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return the (lookups, misses) of all parts together."""
    return sum(n for n, _ in parts), sum(m for _, m in parts)


def control_drift(baseline: Baseline, control: Window | None) -> Drift | None:
    """Return by how much the twin's hit ratio has changed since before; None where there is no control to go by."""
    if control is None or control.hit_ratio is None or control.lookups < LOOKUPS_MIN:
        return None
    if baseline.control_hit_ratio is None:
        return None
    return Drift(value=control.hit_ratio - baseline.control_hit_ratio, words="the unchanged twin")


def _replayed(told: Counterfactual | None, from_ms: int | None, until_ms: int | None) -> tuple[float, float] | None:
    return None if told is None or from_ms is None or until_ms is None else told.counts(from_ms, until_ms)


def replayed_drift(
    baseline: Baseline, told: Counterfactual, span: tuple[int | None, int | None], lookups: tuple[int, int]
) -> Drift | None:
    """Return by how much the hit ratio would have changed without the change, between the baseline and a `span` on the
    server's clock; None where the replay does not cover both. `lookups`: all that were counted in the two times.

    Its error is what chance makes a server do otherwise than a replay of it, and where not all keys were replayed that
    of the sample. Then misses are held against the counted lookups times the sampling rate: misses are of many cold
    keys, hits of a few hot ones that are in the sample with all of their lookups or not at all (as SHARDS-adj does,
    Waldspurger et al. 2015).
    """
    times = (baseline.from_ms, baseline.until_ms), span
    ratios, variance = [], 0.0
    for (from_ms, until_ms), counted in zip(times, lookups, strict=True):
        seen = None if from_ms is None or until_ms is None else told.counts(from_ms, until_ms)
        if seen is None or min(seen[0], counted) < LOOKUPS_MIN:
            return None
        asked, hits = seen
        expected = asked if told.spatial_rate >= 1.0 else told.spatial_rate * counted
        missed = (asked - hits) / expected
        ratios.append(1.0 - missed)
        variance += (1.0 - told.spatial_rate) * missed / expected + _DISCORDANT / asked
    return Drift(
        value=ratios[1] - ratios[0],
        error=math.sqrt(variance + _REPLAY_ERROR**2),
        words="the same requests without the change",
    )


def measured_effect(
    hit_ratio_before: float | None,
    baseline: Baseline,
    window: Window,
    control: Window | None,
    *,
    shifted: bool,
    drift: Drift | None = None,
) -> Measured:
    """Return what the change did to the hit ratio, by the best of three ways, or why nobody can tell."""
    after = _level(window.parts, (window.lookups, window.misses))
    if hit_ratio_before is None or after is None:
        return Measured(gain=None, basis=window.problem or f"only {window.lookups} lookups in the window")
    before = _level(baseline.parts, total_of(baseline.parts))
    variance = after[1] + (before[1] if before is not None else after[1])
    twin = control_drift(baseline, control)
    if twin is not None and control is not None:
        twin_before = _level(baseline.control_parts, total_of(baseline.control_parts))
        twin_after = _level(control.parts, (control.lookups, control.misses))
        variance += (twin_before[1] if twin_before else 0.0) + (twin_after[1] if twin_after else 0.0)
        return Measured(
            gain=_around(after[0] - hit_ratio_before - twin.value, variance),
            basis=f"against `{baseline.control}`, whose hit ratio changed by {twin.value * 100:+.1f} points meanwhile",
        )
    if drift is not None:
        # The same requests are in both, so that they scatter is no error of the difference.
        return Measured(
            gain=_around(after[0] - hit_ratio_before - drift.value, (drift.error or 0.0) ** 2),
            basis=f"against {drift.words}, whose hit ratio changed by {drift.value * 100:+.1f} points meanwhile",
        )
    if shifted:
        return Measured(gain=None, basis="the traffic changed in the window, and there is no control to tell it by")
    return Measured(gain=_around(after[0] - hit_ratio_before, variance), basis="against the series before the change")


def _around(gain: float, variance: float) -> Estimate:
    margin = _NORMAL_90 * math.sqrt(variance)
    return Estimate(gain, gain - margin, gain + margin)
