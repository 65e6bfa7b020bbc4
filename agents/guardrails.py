"""Whether a change that is being observed is kept, taken back, or watched a little longer.

Two questions, two pure functions: `alarm` is asked several times within a window and only ever says "take it back
now"; `judge` is asked at the end of each window. Neither reads a clock or a cache. What they decide by is in
`Promise`, what they see is a `Window`.

Without lookups nothing can be measured. A change that promised hits and can be taken back is then taken back, since
an unproven gain is none; one that promised none (a donor of memory that nobody reads, an observation knob) or that
cannot be taken back is kept, and its reason says `unverified`.

What the traffic alone did is taken off first (`drift`), where it is known: by an unchanged twin that was looked at
beside the change, or by a replay of the same requests without it. Where it is not and the traffic has changed, the
window is evidence neither for nor against the promise: an effect is not claimed and a fall is not scored against the
prediction. A fall below the guardrail is taken back all the same.

A change that gave less than promised is taken back unless it gave at least half of the predicted gain: the prediction
was wrong then, and is scored so, but taking the change back would lose what it did give.

Traffic moves the hit ratio by itself, from one window to the next, and how far is known from the windows before
(`Baseline.hit_ratio_step`; until it is, by how much the parts of one window scatter). A shortfall within that is no
evidence against a change: it is watched as long as may be, and in the end prediction and measurement are put together,
each by its own certainty. More memory alone takes no hits away (Mattson et al. 1970), so a fall beside it is the
traffic's.

INVARIANT: a change is only kept as promised if the hit ratio measured in its last window is at least the low end of
what was predicted less the operator's margin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from agents.effect import LOOKUPS_MIN, Drift, rate_shifted, step_error
from agents.windows import Window
from cachewarden.baseline import Baseline
from cachewarden.fleet import Service
from cachewarden.messages import Proposal
from cachewarden.settings import CacheOptimizerSettings

__all__ = [
    "LOOKUPS_MIN",
    "Judgement",
    "Limits",
    "Promise",
    "Ruling",
    "alarm",
    "alarm_of_hits",
    "alarm_of_server",
    "judge",
    "limits_of",
    "promise_of",
    "traffic_shifted",
    "traffic_step",
]

_IMPROVING_BY = 0.005
_WORTH_KEEPING = 0.5
"""Share of the predicted gain from which on a change that missed its interval is kept."""
_NORMAL_90 = 1.6449
_ERROR_MIN = 1e-4
_REFUSED_FACTOR = 2.0
_CPU_FACTOR = 1.5
"""CPU above the limit is only blamed on a change if it is half as much again as before."""


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
class Limits:
    """The guardrails of one service: the owner's, and the operator's where the owner names none."""

    hit_ratio_drop: float
    latency_factor: float
    evictions_factor: float
    cpu_share: float
    origin_load_per_s: float | None = None


def limits_of(service: Service | None, settings: CacheOptimizerSettings) -> Limits:
    """Return the limits of a service; those of the settings where the fleet file does not know it."""
    own = None if service is None else service.guardrails

    def of(name: str) -> float:
        value = None if own is None else getattr(own, name)
        return float(getattr(settings, f"guardrail_{name}") if value is None else value)

    return Limits(
        hit_ratio_drop=of("hit_ratio_drop"),
        latency_factor=of("latency_factor"),
        evictions_factor=of("evictions_factor"),
        cpu_share=of("cpu_share"),
        origin_load_per_s=None if own is None else own.origin_load_per_s,
    )


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
    gain_error: float = 0.0
    """Standard error of `gain` by its interval."""
    only_grows: bool = False
    """The change gives memory and does nothing else."""
    refused_per_s_before: float | None = None
    baseline: Baseline = field(default_factory=Baseline)
    limits: Limits | None = None
    """None: those of the settings."""


def promise_of(
    proposal: Proposal,
    hit_ratio_before: float | None,
    latency_us_p99_before: float | None,
    settings: CacheOptimizerSettings,
    baseline: Baseline | None = None,
    service: Service | None = None,
) -> Promise:
    """Return what a proposal is held to; a baseline that was not measured stays None.

    One that only sets again what a restart took away promises nothing: the cache that it comes to is cold.
    """
    prediction = proposal.prediction
    again = proposal.reapplies is not None
    return Promise(
        hit_ratio_before=hit_ratio_before,
        hit_ratio_low=0.0 if again else prediction.hit_ratio_after.low,
        gain=0.0 if again else prediction.gain.value,
        baseline=baseline or Baseline(),
        limits=limits_of(service, settings),
        lookups_per_s=prediction.lookups_per_s,
        settle_ms=prediction.settle_ms,
        latency_us_p99_before=latency_us_p99_before,
        latency_us_target=settings.target_p99_latency_ms * 1000.0,
        reversible=proposal.reversible,
        gain_error=0.0 if again else (prediction.gain.high - prediction.gain.low) / (2.0 * _NORMAL_90),
        only_grows=_only_grows(proposal),
    )


def _only_grows(proposal: Proposal) -> bool:
    sizes = [c for c in proposal.knob_changes if c.knob == "maxmemory"]
    others = [c for c in proposal.knob_changes if c.knob != "maxmemory" and c.after != c.before]
    plain = all(text.isdigit() for c in sizes for text in (c.before, c.after))
    if not sizes or others or proposal.ttl_rules or not plain:
        return False
    before, after = int(sizes[0].before), int(sizes[0].after)
    return after == 0 or after > before > 0


def alarm(window: Window, promise: Promise, settings: CacheOptimizerSettings, drift: Drift | None = None) -> str | None:
    """Return why the change must be taken back at once, None if nothing is wrong.

    `drift` is by how much the hit ratio has moved without the change; None where that is not known. The fall of
    the hit ratio has to exceed the guardrail by two standard errors, since this is asked of short pieces of a window
    too, or by what the traffic does by itself, at most by the guardrail once more.
    """
    return alarm_of_hits(window, promise, settings, drift) or alarm_of_server(window, promise, settings)


def alarm_of_server(window: Window, promise: Promise, settings: CacheOptimizerSettings) -> str | None:
    """Return what is wrong with the server itself, whatever is asked of it; None if nothing is."""
    limits = promise.limits or limits_of(None, settings)
    return (
        _slowness(window, promise, limits)
        or _refusals(window, promise)
        or _evictions(window, promise, limits)
        or _effort(window, promise, limits)
    )


def alarm_of_hits(
    window: Window, promise: Promise, settings: CacheOptimizerSettings, drift: Drift | None = None
) -> str | None:
    """Return what is wrong with the hits and misses, which the traffic moves as well; None if nothing is."""
    limits = promise.limits or limits_of(None, settings)
    fall = None if promise.only_grows else _fall(window, promise, limits, drift)
    return fall or _origin_load(window, promise, limits, drift)


def _moved(drift: Drift | None) -> float:
    return 0.0 if drift is None else drift.value


def _noise(window: Window) -> float:
    ratio = window.hit_ratio or 0.0
    return 2.0 * math.sqrt(max(ratio * (1.0 - ratio), 0.0) / max(window.lookups, 1))


def _fall(window: Window, promise: Promise, limits: Limits, drift: Drift | None) -> str | None:
    if window.hit_ratio is None or window.lookups < LOOKUPS_MIN:
        return None
    level = promise.hit_ratio_low
    if promise.hit_ratio_before is not None:
        level = min(level, promise.hit_ratio_before)
    ratio, drop = window.hit_ratio - _moved(drift), limits.hit_ratio_drop
    by_itself = _NORMAL_90 * ((promise.baseline.hit_ratio_step if drift is None else drift.error) or 0.0)
    # What an owner permits may be exceeded by what the traffic does, and never by more than once again.
    by_itself = min(by_itself, drop)
    if ratio + max(_noise(window), by_itself) >= level - drop:
        return None
    beside = "" if drift is None else f" ({drift.words}: {drift.value * 100:+.1f} points)"
    if drift is None and traffic_shifted(window, promise):
        # An application that waits for its origin asks less: taking back is right, whoever is to blame.
        rate = window.per_s(window.lookups)
        beside = f" while the traffic changed from {promise.lookups_per_s:.0f} to {rate:.0f} lookups per second"
        beside += ", so it is not held against the change"
    return f"the hit ratio fell to {window.hit_ratio:.3f}{beside}, more than {drop:.3f} below {level:.3f}"


def _slowness(window: Window, promise: Promise, limits: Limits) -> str | None:
    latency, before_us = window.latency, promise.latency_us_p99_before
    if latency is None or before_us is None or latency.commands < LOOKUPS_MIN:
        return None
    allowed_us = max(before_us * limits.latency_factor, promise.latency_us_target)
    # The lower edge of the histogram bucket: a quantile may not raise an alarm for where it lies inside its bucket.
    if latency.low_us <= allowed_us:
        return None
    return f"P99 rose from {before_us:.0f} to {latency.value_us:.0f} microseconds, allowed are {allowed_us:.0f}"


def _refusals(window: Window, promise: Promise) -> str | None:
    if not window.refused or promise.refused_per_s_before is None:
        return None
    rate, before = window.per_s(window.refused), promise.refused_per_s_before
    if rate <= _REFUSED_FACTOR * before:
        return None
    return f"writes are refused for lack of memory, {rate:.2f} per second instead of {before:.2f}"


def _evictions(window: Window, promise: Promise, limits: Limits) -> str | None:
    """A cache that is full evicts about as many keys as miss, and more with more traffic."""
    before, misses = promise.baseline.evicted_per_s, promise.baseline.misses_per_s
    if before is None or misses is None or not window.evicted or window.lookups < LOOKUPS_MIN:
        return None
    traffic = max(1.0, window.per_s(window.lookups) / promise.lookups_per_s) if promise.lookups_per_s > 0 else 1.0
    rate, allowed = window.per_s(window.evicted), limits.evictions_factor * traffic * max(before, misses, 1.0)
    return f"{rate:.0f} keys are evicted per second, allowed are {allowed:.0f}" if rate > allowed else None


def _effort(window: Window, promise: Promise, limits: Limits) -> str | None:
    before, now = promise.baseline.cpu_share, window.cpu_share
    if before is None or now is None or now <= max(limits.cpu_share, _CPU_FACTOR * before):
        return None
    return f"the server takes {now:.2f} cores instead of {before:.2f}, allowed are {limits.cpu_share:.2f}"


def _origin_load(window: Window, promise: Promise, limits: Limits, drift: Drift | None) -> str | None:
    allowed, before = limits.origin_load_per_s, promise.hit_ratio_before
    if allowed is None or before is None or window.hit_ratio is None or window.lookups < LOOKUPS_MIN:
        return None
    rate = window.per_s(window.misses)
    worse = window.hit_ratio - _moved(drift) + _noise(window) < before
    if rate <= allowed or not worse:
        return None
    return f"{rate:.0f} misses per second reach the origin, it can answer {allowed:.0f}"


def judge(
    windows: Sequence[Window],
    promise: Promise,
    settings: CacheOptimizerSettings,
    observed_ms: int,
    drift: Drift | None = None,
) -> Judgement:
    """Rule on a change after the last of `windows` has ended, `observed_ms` after the observation began."""
    last = windows[-1]
    more = len(windows) < settings.observation_windows_max
    why = alarm(last, promise, settings, drift)
    if why is not None:
        return Judgement(Ruling.ROLL_BACK, why)
    if last.hit_ratio is None or last.lookups < LOOKUPS_MIN:
        return _without_evidence(last.problem or f"only {last.lookups} lookups in the window", promise, more=more)
    if drift is None and promise.gain > 0.0 and traffic_shifted(last, promise):
        rate = last.per_s(last.lookups)
        told = f"the traffic changed from {promise.lookups_per_s:.0f} to {rate:.0f} lookups per second"
        return _without_evidence(f"{told}, so nothing is held for or against the change", promise, more=more)
    return _by_measurement(windows, promise, settings, observed_ms, drift, more=more)


def _by_measurement(
    windows: Sequence[Window],
    promise: Promise,
    settings: CacheOptimizerSettings,
    observed_ms: int,
    drift: Drift | None,
    *,
    more: bool,
) -> Judgement:
    last = windows[-1]
    ratio = (last.hit_ratio or 0.0) - _moved(drift)
    beside = "" if drift is None else f" (the traffic's {drift.value * 100:+.1f} points taken off, by {drift.words})"
    if ratio >= promise.hit_ratio_low - settings.rollback_margin:
        return Judgement(Ruling.KEEP, f"measured {ratio:.3f}{beside}, promised at least {promise.hit_ratio_low:.3f}")
    if more and observed_ms < promise.settle_ms:
        return Judgement(Ruling.CONTINUE, f"{ratio:.3f} so far, the effect needs {promise.settle_ms} ms to show")
    if more and _improves(windows, promise):
        return Judgement(Ruling.CONTINUE, f"{ratio:.3f} so far and improving")
    gained = 0.0 if promise.hit_ratio_before is None else ratio - promise.hit_ratio_before
    unclear = _unclear(windows, promise, settings, drift, more=more)
    if unclear is not None:
        return unclear
    if promise.gain > 0.0 and gained >= max(_WORTH_KEEPING * promise.gain, settings.minimum_gain):
        return Judgement(
            Ruling.KEEP,
            f"below its promise: measured {ratio:.3f}{beside}, promised at least {promise.hit_ratio_low:.3f}; "
            f"kept for the {gained * 100:.1f} points that it gives",
        )
    return Judgement(
        Ruling.ROLL_BACK,
        f"less than promised: measured {ratio:.3f}{beside}, promised at least {promise.hit_ratio_low:.3f} "
        f"less a margin of {settings.rollback_margin:.3f}",
    )


def _unclear(
    windows: Sequence[Window],
    promise: Promise,
    settings: CacheOptimizerSettings,
    drift: Drift | None,
    *,
    more: bool,
) -> Judgement | None:
    """Rule on a shortfall that the traffic may have made by itself; None where it has not, or nobody can tell.

    Where nothing tells what the traffic did, all windows together are compared with the one before: where they scatter
    by `step / sqrt(2)` each, their mean less that one scatters by `step * sqrt((1 + 1/n) / 2)`. In the end prediction
    and measurement are weighted by the inverses of their variances; a prediction is never taken to be surer than the
    measurement is.
    """
    allowed = promise.limits.hit_ratio_drop if promise.limits is not None else settings.guardrail_hit_ratio_drop
    before, known = promise.hit_ratio_before, drift is not None or promise.baseline.hit_ratio_step is not None
    found = _beside_traffic(windows, promise, allowed) if drift is None else _beside_drift(windows[-1], drift)
    if found is None or before is None:
        return None
    ratio, error, seen = found
    gained = ratio - before
    lost = gained + (0.0 if drift is None else _NORMAL_90 * error) < 0.0
    if promise.only_grows and lost and (known or -gained <= allowed):
        # The traffic's loss; where a replay says that it is not, the replay is wrong.
        return Judgement(Ruling.KEEP, f"unverified: {seen}; more memory takes no hits away")
    short = promise.hit_ratio_low - settings.rollback_margin - ratio
    if short > _NORMAL_90 * error or -gained > allowed:
        return None
    if promise.only_grows:
        # It takes nothing from its cache, and who waits for a measurement keeps memory from moving meanwhile.
        return Judgement(Ruling.KEEP, f"unverified: {seen}; more memory takes no hits away")
    if more:
        return Judgement(Ruling.CONTINUE, f"{seen}: nothing can be said yet")
    trust, weight = 1.0 / max(promise.gain_error, error) ** 2, 1.0 / error**2
    expected = (promise.gain * trust + gained * weight) / (trust + weight)
    # Who promised to gain has to; who gives memory away may lose what it said that it would.
    if expected <= (0.0 if promise.gain > 0.0 else promise.hit_ratio_low - before - settings.rollback_margin):
        return None
    told = f"with its prediction {expected * 100:+.1f} points are to be expected"
    return Judgement(Ruling.KEEP, f"unverified: {seen}; {told}")


def _beside_traffic(windows: Sequence[Window], promise: Promise, allowed: float) -> tuple[float, float, str] | None:
    """Return the hit ratio of all windows, its error beside a traffic of which only the steps are known, and words."""
    step, lookups = traffic_step(promise.baseline), sum(w.lookups for w in windows)
    if step is None or not lookups:
        return None
    ratio = 1.0 - sum(w.misses for w in windows) / lookups
    if promise.baseline.hit_ratio_step is None:
        # One window is a short time to know the traffic by.
        step = min(step, allowed)
    scatter = step * math.sqrt((1.0 + 1.0 / len(windows)) / 2.0)
    error = max(scatter, math.sqrt(ratio * (1.0 - ratio) / lookups), _ERROR_MIN)
    return ratio, error, f"measured {ratio:.3f}, and the traffic alone moves it by {step:.3f} from window to window"


def _beside_drift(window: Window, drift: Drift) -> tuple[float, float, str] | None:
    """Return a window's hit ratio without what the traffic did, its error and words; None where that is not known."""
    if drift.error is None:
        return None
    ratio, error = (window.hit_ratio or 0.0) - drift.value, max(drift.error, _ERROR_MIN)
    told = f"without the traffic's {drift.value * 100:+.1f} points, by {drift.words}"
    return ratio, error, f"measured {ratio:.3f} {told}, which is known to {error:.3f}"


def traffic_step(baseline: Baseline) -> float | None:
    """Return by how much the hit ratios of two windows lie apart by themselves, a standard error; None where nothing
    was measured. Within one window the traffic moves less than from one to the next, so what its parts tell is the
    least; they are compared with their neighbours, since a cache that still warms up or drains is no traffic."""
    if baseline.hit_ratio_step is not None:
        return baseline.hit_ratio_step
    error = step_error(baseline.parts)
    return None if error is None else math.sqrt(2.0) * error


def _without_evidence(seen: str, promise: Promise, *, more: bool) -> Judgement:
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
    return rate_shifted(window.per_s(window.lookups), promise.lookups_per_s)
