"""What one cache could be: which configuration is best depends on the size, and what a longer past shows is believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.appraisal import Appraisal, appraise
from agents.planner import curve_of, plan_fleet
from cachewarden.protocol import PlanFleet
from cachewarden.settings import CacheOptimizerSettings, load_settings
from tests.unit.agents.caches import MIB, NOW, fleet_of, snapshot_of, traffic

SETTINGS: CacheOptimizerSettings = load_settings(cycle_interval_ms=5_000)
LONG_S = 2_400.0
"""Of which the collector has captured the second half: more than the five minutes from which on a capture is replayed."""


def appraisal_of(keys: int, maxmemory_bytes: int, *, rate_per_s: float) -> Appraisal:
    trace = traffic(keys, rate_per_s=rate_per_s, seconds=LONG_S, seed=5)
    snapshot = snapshot_of("api", trace, maxmemory_bytes)
    found = appraise(snapshot, fleet_of("api").service("api"), SETTINGS)
    assert isinstance(found, Appraisal), found
    return found


SIZE = 4 * MIB
SMALL = appraisal_of(15_000, SIZE, rate_per_s=120.0)


def test_a_steady_hot_set_is_kept_best_by_frequency_at_the_present_size_and_at_others():
    for times in (0.8, 1.0, 1.2):
        best = SMALL.best_at(int(SIZE * times))
        assert best.configuration.eviction_policy == "allkeys-lfu"


def test_the_curve_is_that_of_the_policy_which_is_best_at_each_size():
    under_lru = replace(SMALL.evidence.current, maxmemory_bytes=int(SIZE * 0.8))
    (lru,) = SMALL._inquiry.ask([under_lru])
    at = dict(zip(SMALL.curve_bytes, SMALL.curve_hit_ratio, strict=True))
    assert at[int(SIZE * 0.8)] > lru.hit_ratio.value  # type: ignore[union-attr]


def test_sizes_within_one_round_s_reach_are_imagined_closely():
    sizes = np.array(SMALL.curve_bytes) / (SIZE)
    within = sizes[(sizes >= 0.59) & (sizes <= 1.41)]
    assert len(within) >= 8
    assert np.all(np.diff(SMALL.curve_hit_ratio) > -0.02)


@pytest.mark.parametrize("free_bytes", [0, MIB // 2])
def test_memory_that_nobody_holds_is_given_although_what_it_brings_is_not_sure(free_bytes: int):
    snapshot = snapshot_of("api", traffic(8_000, rate_per_s=150, seconds=60, seed=7), 4 * MIB)
    fleet = fleet_of("api", total_bytes=4 * MIB + free_bytes)
    planned = plan_fleet(PlanFleet(cycle=1, snapshots=(snapshot,), history={}), fleet, SETTINGS, NOW)
    grown = [p for p in planned.proposals if p.memory_delta_bytes > 0]
    assert len(grown) == (1 if free_bytes else 0), planned.idle_reasons
    for proposal in grown:
        assert proposal.memory_delta_bytes <= free_bytes
        assert proposal.prediction.gain.value > 0


def test_a_good_minute_does_not_lower_what_a_floor_needs():
    usual = SMALL._inquiry.usual_hit_ratio
    assert usual is not None
    service = fleet_of("api", floor=usual - 0.02).service("api")
    lucky = replace(SMALL.snapshot, hit_ratio=min(usual + 0.08, 1.0))
    found = appraise(lucky, service, SETTINGS)
    assert isinstance(found, Appraisal)
    assert found.above_usual == pytest.approx(0.08, abs=0.01)
    assert curve_of(found, service).floor_hit_ratio == pytest.approx(usual + 0.06, abs=0.01)
    assert curve_of(SMALL, fleet_of("api").service("api")).floor_hit_ratio == 0.0


def test_a_bad_minute_stops_nobody_as_far_as_the_traffic_makes_such_minutes_by_itself():
    usual = SMALL._inquiry.usual_hit_ratio
    assert usual is not None
    service = fleet_of("api", floor=usual - 0.02).service("api")
    for step, expected in ((None, 0.0), (0.03, -0.03), (0.2, -SETTINGS.guardrail_hit_ratio_drop)):
        unlucky = replace(SMALL.snapshot, hit_ratio=usual - 0.08, hit_ratio_step=step)
        found = appraise(unlucky, service, SETTINGS)
        assert isinstance(found, Appraisal)
        assert found.above_usual == pytest.approx(expected, abs=0.01)


def test_whoever_has_a_floor_keeps_what_holds_it_at_the_low_end_of_the_prediction():
    low, expected = np.array(SMALL.curve_low), np.array(SMALL.curve_hit_ratio)
    assert np.all(low <= expected + 1e-9)
    # LFU is not what this cache has, so that it holds a floor at the present size is a prediction as well.
    assert low[SMALL.curve_bytes.index(SIZE)] < expected[SMALL.curve_bytes.index(SIZE)]
    held = curve_of(SMALL, fleet_of("api", floor=0.3).service("api"))
    assert held.floor_hit_ratio == pytest.approx(0.3 + SMALL.above_usual)
    assert held.sure_hit_ratio is not None
    assert np.all(held.sure_hit_ratio <= held.hit_ratio)
