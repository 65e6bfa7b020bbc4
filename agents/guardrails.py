"""Whether a change that is being observed is kept, taken back, or watched a little longer.

Two questions, two pure functions: `alarm` is asked several times within a window and only ever says "take it back
now"; `judge` is asked at the end of each window. Neither reads a clock or a cache. What they decide by is in
`Promise`, what they see is a `Window`.

Without lookups nothing can be measured. A change that promised hits and can be taken back is then taken back, since
an unproven gain is none; one that promised none (a donor of memory that nobody reads, an observation knob) or that
cannot be taken back is kept, and its reason says `unverified`.

A change that gave less than promised is taken back unless it gave at least half of the predicted gain: the prediction
was wrong then, and is scored so, but taking the change back would lose what it did give.

INVARIANT: a change is only kept as promised if the hit ratio measured in its last window is at least the low end of
what was predicted less the operator's margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from agents.windows import Window
from cachewarden.messages import Proposal
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["LOOKUPS_MIN", "Judgement", "Promise", "Ruling", "alarm", "judge", "promise_of", "traffic_shifted"]

LOOKUPS_MIN = 100
"""Lookups below which a window proves nothing: at 100 the standard error of a hit ratio is up to 5 points."""

_IMPROVING_BY = 0.005
_WORTH_KEEPING = 0.5
"""Share of the predicted gain from which on a change that missed its interval is kept."""
_SHIFT_FACTOR = 2.0
_REFUSED_FACTOR = 2.0


class Ruling(StrEnum):
    CONTINUE = "continue"
    KEEP = "keep"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True, slots=True)
class Judgement:
    """What to do with the change, and why."""

    ruling: Ruling
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What a change is held to. Hit ratios are 0..1; `refused_per_s_before` is None where it was not measured."""

    hit_ratio_before: float | None
    hit_ratio_low: float
    gain: float
    lookups_per_s: float
    settle_ms: int
    latency_us_p99_before: float | None
    latency_us_target: float
    reversible: bool
    refused_per_s_before: float | None = None


def promise_of(
    proposal: Proposal,
    hit_ratio_before: float | None,
    latency_us_p99_before: float | None,
    settings: CacheOptimizerSettings,
) -> Promise:
    """Return what a proposal is held to; a baseline that was not measured stays None."""
    prediction = proposal.prediction
    return Promise(
        hit_ratio_before=hit_ratio_before,
        hit_ratio_low=prediction.hit_ratio_after.low,
        gain=prediction.gain.value,
        lookups_per_s=prediction.lookups_per_s,
        settle_ms=prediction.settle_ms,
        latency_us_p99_before=latency_us_p99_before,
        latency_us_target=settings.target_p99_latency_ms * 1000.0,
        reversible=proposal.reversible,
    )


def alarm(window: Window, promise: Promise, settings: CacheOptimizerSettings) -> str | None:
    """Return why the change must be taken back at once, None if nothing is wrong.

    The fall of the hit ratio has to exceed the guardrail by two standard errors, since this is asked of short pieces
    of a window too.
    """
    if window.hit_ratio is not None and window.lookups >= LOOKUPS_MIN:
        level = promise.hit_ratio_low
        if promise.hit_ratio_before is not None:
            level = min(level, promise.hit_ratio_before)
        noise = 2.0 * math.sqrt(max(window.hit_ratio * (1.0 - window.hit_ratio), 0.0) / window.lookups)
        if window.hit_ratio + noise < level - settings.guardrail_hit_ratio_drop:
            drop = settings.guardrail_hit_ratio_drop
            return f"the hit ratio fell to {window.hit_ratio:.3f}, more than {drop:.3f} below {level:.3f}"
    latency, before_us = window.latency, promise.latency_us_p99_before
    if latency is not None and before_us is not None and latency.commands >= LOOKUPS_MIN:
        allowed_us = max(before_us * settings.guardrail_latency_factor, promise.latency_us_target)
        # The lower edge of the histogram bucket: a quantile may not raise an alarm for where it lies inside its bucket.
        if latency.low_us > allowed_us:
            return f"P99 rose from {before_us:.0f} to {latency.value_us:.0f} microseconds, allowed are {allowed_us:.0f}"
    if window.refused and promise.refused_per_s_before is not None:
        rate, before = window.per_s(window.refused), promise.refused_per_s_before
        if rate > _REFUSED_FACTOR * before:
            return f"writes are refused for lack of memory, {rate:.2f} per second instead of {before:.2f}"
    return None


def judge(windows: Sequence[Window], promise: Promise, settings: CacheOptimizerSettings, observed_ms: int) -> Judgement:
    """Rule on a change after the last of `windows` has ended, `observed_ms` after the observation began."""
    last = windows[-1]
    more = len(windows) < settings.observation_windows_max
    why = alarm(last, promise, settings)
    if why is not None:
        return Judgement(Ruling.ROLL_BACK, why)
    if last.hit_ratio is None or last.lookups < LOOKUPS_MIN:
        return _without_evidence(last, promise, more=more)
    if last.hit_ratio >= promise.hit_ratio_low - settings.rollback_margin:
        return Judgement(Ruling.KEEP, f"measured {last.hit_ratio:.3f}, promised at least {promise.hit_ratio_low:.3f}")
    if more and observed_ms < promise.settle_ms:
        return Judgement(
            Ruling.CONTINUE, f"{last.hit_ratio:.3f} so far, the effect needs {promise.settle_ms} ms to show"
        )
    if more and _improves(windows, promise):
        return Judgement(Ruling.CONTINUE, f"{last.hit_ratio:.3f} so far and improving")
    gained = 0.0 if promise.hit_ratio_before is None else last.hit_ratio - promise.hit_ratio_before
    if promise.gain > 0.0 and gained >= max(_WORTH_KEEPING * promise.gain, settings.minimum_gain):
        return Judgement(
            Ruling.KEEP,
            f"below its promise: measured {last.hit_ratio:.3f}, promised at least {promise.hit_ratio_low:.3f}; "
            f"kept for the {gained * 100:.1f} points that it gives",
        )
    return Judgement(
        Ruling.ROLL_BACK,
        f"less than promised: measured {last.hit_ratio:.3f}, promised at least {promise.hit_ratio_low:.3f} "
        f"less a margin of {settings.rollback_margin:.3f}",
    )


def _without_evidence(last: Window, promise: Promise, *, more: bool) -> Judgement:
    seen = last.problem or f"only {last.lookups} lookups in the window"
    if more:
        return Judgement(Ruling.CONTINUE, f"nothing can be said yet: {seen}")
    if promise.gain <= 0.0:
        return Judgement(Ruling.KEEP, f"unverified: {seen}; it promised no hits")
    if promise.reversible:
        return Judgement(Ruling.ROLL_BACK, f"the promised gain could not be shown: {seen}")
    return Judgement(Ruling.KEEP, f"unverified: {seen}; it cannot be taken back without loss")


def _improves(windows: Sequence[Window], promise: Promise) -> bool:
    last = windows[-1].hit_ratio
    earlier = [w.hit_ratio for w in windows[:-1] if w.hit_ratio is not None]
    reference = earlier[-1] if earlier else promise.hit_ratio_before
    return last is not None and reference is not None and last > reference + _IMPROVING_BY


def traffic_shifted(window: Window, promise: Promise) -> bool:
    """Say whether lookups per second are more than twice or less than half of what the prediction was made for."""
    rate = window.per_s(window.lookups)
    if promise.lookups_per_s <= 0.0 or rate <= 0.0:
        return rate != promise.lookups_per_s
    return max(rate / promise.lookups_per_s, promise.lookups_per_s / rate) > _SHIFT_FACTOR
