"""Which observation source answers for a cache, chosen by what is permitted, available and good enough.

The order: the applications' own feed where it covers the traffic (it costs the cache nothing and knows the outcomes),
else a bounded MONITOR capture, and beside either the passive probe, which alone knows residents. Each is reported with
its cost, its expected error and the reason why it answers or does not. It starts nothing. INVARIANT: at most one of
feed and capture is used, and a source that is used is permitted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from agents.feed_watch import FeedVerdict
from cachewarden.cachemodel.shards import KEYS_BASIS, error_expected
from cachewarden.observation import AccessSample, KeyspaceSample, ProbeCost, SourceReport

__all__ = ["CAPTURE", "COUNTERS", "FEED", "PROBE", "SourceChoice", "SourceFacts", "choose_sources"]

FEED: Final = "client_feed"
CAPTURE: Final = "monitor_capture"
PROBE: Final = "passive_probe"
COUNTERS: Final = "counters"

# Sampled keys to the mean absolute error of the hit ratio at 0.1 to 0.9 of the memory, over six workloads on a real
# server under an LRU policy: Zipf 0.7, a changing one 0.9, four published traces 0.7 to 2.8 points at 1,000 keys.
_PROBE_ERRORS: Final = ((4_000, 0.0138), (1_000, 0.0150), (300, 0.0177))
_PROBE_BASIS: Final = (
    "mean absolute error of the hit ratio at 0.1 to 0.9 of the memory over six workloads on a real server under LRU, "
    "by the number of sampled keys"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFacts:
    """What is known of the sources of one service at one look. `*_problem` in words, None where there is none.

    `feed_access` is the sample of the time that `feed` calls usable; `feed_needed_ms` how long that must be at least.
    """

    feed_permitted: bool
    feed: FeedVerdict
    feed_access: AccessSample | None
    feed_needed_ms: int
    capture_permitted: bool
    capture_problem: str | None
    capture_access: AccessSample | None
    capture_ms: int
    sample: KeyspaceSample | None
    sample_problem: str | None
    cost: ProbeCost


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceChoice:
    """The access sample that answers, None where there is none with the reason why, and a report on each source."""

    access: AccessSample | None
    feed_used: bool
    missing_reason: str
    reports: tuple[SourceReport, ...]


def choose_sources(facts: SourceFacts) -> SourceChoice:
    """Choose; see the module for the order."""
    feed_problem = _feed_problem(facts)
    feed_used = feed_problem is None
    capture_used = not feed_used and facts.capture_access is not None
    access = facts.feed_access if feed_used else facts.capture_access if capture_used else None
    capture_problem = facts.capture_problem or "no capture has ended yet"
    missing = capture_problem
    if facts.feed_permitted and feed_problem is not None:
        missing = f"{capture_problem}; client feed: {feed_problem}"
    return SourceChoice(
        access=access,
        feed_used=feed_used,
        missing_reason="" if access is not None else missing,
        reports=(
            _feed_report(facts, feed_problem),
            _capture_report(facts, capture_problem, capture_used=capture_used, feed_used=feed_used),
            _probe_report(facts),
            SourceReport(
                name=COUNTERS,
                used=True,
                reason="hits, misses, evictions and memory as the server counts them; every other source is held "
                "against them",
                cost=f"{facts.cost.commands} commands, {facts.cost.server_us / 1000:.1f} ms of the server at the last "
                "look, samples included",
                error_basis="exact for what is now; alone they predict nothing",
            ),
        ),
    )


def _feed_problem(facts: SourceFacts) -> str | None:
    if not facts.feed_permitted:
        return "the fleet file permits no client feed (`feed: true`)"
    if facts.feed.from_ms is None:
        return facts.feed.reason
    if facts.feed_access is None or facts.feed.usable_ms < facts.feed_needed_ms:
        return (
            f"{facts.feed.reason}, for {facts.feed.usable_ms / 1000:.0f} s by now, "
            f"{facts.feed_needed_ms / 1000:.0f} s are needed"
        )
    if len(facts.feed_access.trace) == 0:
        return "the reported sample holds no access"
    return None


def _error_of(access: AccessSample | None) -> tuple[float | None, str]:
    keys = 0 if access is None else len(np.unique(access.trace.key))
    if access is None or keys == 0:
        return None, ""
    return error_expected(keys), f"{keys} sampled keys at spatial rate {access.spatial_rate:g}; {KEYS_BASIS}"


def _feed_report(facts: SourceFacts, problem: str | None) -> SourceReport:
    coverage = facts.feed.coverage if facts.feed_permitted else None
    error, basis = _error_of(facts.feed_access) if problem is None else (None, "")
    if problem is None and coverage is not None and coverage < 1.0:
        basis = f"{1.0 - coverage:.1%} of the lookups are not reported and may be different ones; {basis}"
    return SourceReport(
        name=FEED,
        used=problem is None,
        reason=problem or facts.feed.reason,
        cost="no command on the cache; in the application about a microsecond for each command and one small POST "
        "every 2 s",
        expected_error=error,
        error_basis=basis,
        coverage=coverage,
    )


def _capture_report(facts: SourceFacts, problem: str, *, capture_used: bool, feed_used: bool) -> SourceReport:
    if capture_used and facts.capture_access is not None:
        aborted = facts.capture_access.aborted
        reason = "the newest capture" if aborted is None else f"the newest capture, cut off: {aborted}"
    elif feed_used and facts.capture_permitted:
        reason = "not needed while the client feed answers"
    else:
        reason = problem
    error, basis = _error_of(facts.capture_access) if capture_used else (None, "")
    lines = facts.capture_access.lines_seen if capture_used and facts.capture_access is not None else None
    cost = f"MONITOR for at most {facts.capture_ms / 1000:g} s, up to a third of a busy server's throughput meanwhile"
    return SourceReport(
        name=CAPTURE,
        used=capture_used,
        reason=reason,
        cost=cost if lines is None else f"{cost}; {lines} lines in the last one",
        expected_error=error,
        error_basis=basis,
    )


def _probe_report(facts: SourceFacts) -> SourceReport:
    sample = facts.sample
    if sample is None or len(sample) == 0:
        reason = facts.sample_problem or "no key was sampled"
        return SourceReport(name=PROBE, used=False, reason=reason, cost="about five commands for each sampled key")
    keys = len(sample)
    # Without idle times (LFU, OBJECT denied) residents are known, but not how soon they are asked for again.
    idle = int(np.count_nonzero(sample.idle_ms >= 0))
    error = next((error for least, error in _PROBE_ERRORS if idle >= least), None)
    return SourceReport(
        name=PROBE,
        used=True,
        reason=f"{keys} random resident keys" + ("" if idle else "; the server tells no idle times"),
        cost=f"about five commands for each sampled key, {5 * keys} in all",
        expected_error=error,
        error_basis="" if error is None else _PROBE_BASIS,
    )
