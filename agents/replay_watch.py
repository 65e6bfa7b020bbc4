"""When hits may be judged by a replay of the same requests without the change, and what it says of a window.

A replay comes later than the looks that it tells of: the requests must have been captured first. It decides how long
one is waited for; it judges nothing.

INVARIANT: no look waits longer than `lag_max_ms`, by our clock and by the server's, whichever is over first.
"""

from __future__ import annotations

from typing import Final

from agents.effect import LOOKUPS_MIN, Drift, replayed_drift, total_of
from agents.info_facts import facts_of
from cachewarden.baseline import Baseline
from cachewarden.counterfactual import Counterfactual
from cachewarden.observation import Observation
from cachewarden.settings import CacheOptimizerSettings

__all__ = ["lag_max_ms", "newer_of", "replay_comes", "replayed_between"]

_ARRIVES_WITHIN_MS: Final = 10_000
"""Beyond a capture and two cycles, a replay of what was captured has come after so long."""
_LAG_MAX_MS: Final = 60_000


def lag_max_ms(settings: CacheOptimizerSettings) -> int:
    """Return how long a replay is waited for: a capture, two cycles and what it takes, at most a minute or a window."""
    usual_ms = settings.capture_ms + 2 * settings.cycle_interval_ms + _ARRIVES_WITHIN_MS
    return min(usual_ms, max(_LAG_MAX_MS, settings.observation_window_ms))


def newer_of(baseline: Baseline, known: Counterfactual | None, told: Counterfactual) -> Counterfactual:
    """Return what to go by from now on: the newer one, unless it has forgotten the time before the change."""
    if known is None or baseline.from_ms is None or told.from_ms <= max(baseline.from_ms, known.from_ms):
        return told
    return known


def replay_comes(
    baseline: Baseline,
    told: Counterfactual | None,
    look: Observation,
    newest: Observation,
    settings: CacheOptimizerSettings,
) -> bool:
    """Say whether a replay that tells of `look` may still come: one has told of the time before the change, and it lags
    no further behind the newest look than it may. A clock that went back ends the waiting."""
    at_ms, newest_ms = facts_of(look).server_time_ms, facts_of(newest).server_time_ms
    if told is None or at_ms is None or newest_ms is None or baseline.control is not None:
        return False
    if baseline.from_ms is None or baseline.until_ms is None or told.from_ms > baseline.from_ms:
        return False
    if told.until_ms >= at_ms or told.tells_too_little(baseline.from_ms, baseline.until_ms, LOOKUPS_MIN):
        return False
    lag_ms = lag_max_ms(settings)
    in_time = newest_ms - told.until_ms <= lag_ms and newest.at_ms - look.at_ms <= lag_ms
    return in_time and newest_ms >= at_ms and newest.at_ms >= look.at_ms


def replayed_between(
    baseline: Baseline, told: Counterfactual | None, first: Observation, last: Observation, lookups: int
) -> Drift | None:
    """Return by how much the hit ratio of the `lookups` between two looks would differ from the baseline without the
    change; None where that is not known, or an unchanged twin tells it better."""
    if told is None or baseline.control is not None:
        return None
    span = facts_of(first).server_time_ms, facts_of(last).server_time_ms
    return replayed_drift(baseline, told, span, (total_of(baseline.parts)[0], lookups))
