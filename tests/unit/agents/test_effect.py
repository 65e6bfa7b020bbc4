"""What a change did, told apart from what the traffic did."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from agents.effect import control_drift, measured_effect, replayed_drift
from agents.windows import Window
from cachewarden.baseline import Baseline
from cachewarden.counterfactual import Counterfactual


def parts(*ratios, lookups=1_000):
    return tuple((lookups, round(lookups * (1 - r))) for r in ratios)


def window(*ratios, lookups=1_000):
    pieces = parts(*ratios, lookups=lookups)
    total, misses = sum(n for n, _ in pieces), sum(m for _, m in pieces)
    return Window(window_ms=20_000, hits=total - misses, misses=misses, parts=pieces)


BEFORE = Baseline(parts=parts(0.80, 0.81, 0.79, 0.80))
TWIN = Baseline(
    parts=parts(0.80, 0.81, 0.79, 0.80), control="twin", control_hit_ratio=0.80, control_parts=parts(0.80, 0.80)
)


def test_without_a_twin_the_series_before_is_what_it_is_measured_against():
    found = measured_effect(0.80, BEFORE, window(0.90, 0.91, 0.89, 0.90), None, shifted=False)
    assert found.gain.value == pytest.approx(0.10, abs=1e-3)
    assert found.gain.low > 0.08


def test_an_unsteady_series_gives_a_wide_interval_and_no_sure_gain():
    unsteady = Baseline(parts=parts(0.60, 0.95, 0.70, 0.95))
    found = measured_effect(0.80, unsteady, window(0.75, 0.95, 0.80, 0.90), None, shifted=False)
    assert found.gain.low < 0.0 < found.gain.high


def test_another_traffic_without_a_twin_is_no_effect_in_either_direction():
    for ratio in (0.99, 0.30):
        found = measured_effect(0.80, BEFORE, window(ratio, ratio), None, shifted=True)
        assert found.gain is None
        assert "traffic changed" in found.basis


def test_what_happened_to_the_twin_too_is_not_the_change():
    found = measured_effect(0.80, TWIN, window(0.90, 0.90), window(0.90, 0.90), shifted=True)
    assert found.gain.value == pytest.approx(0.0, abs=1e-3)
    assert "`twin`" in found.basis


def test_what_the_change_gave_beyond_its_twin_is_its_effect():
    found = measured_effect(0.80, TWIN, window(0.75, 0.75), window(0.65, 0.65), shifted=True)
    assert found.gain.value == pytest.approx(0.10, abs=1e-3)
    assert found.gain.low > 0.0


def test_a_twin_nobody_asks_is_no_control():
    assert control_drift(TWIN, window(0.9, lookups=40)) is None
    assert control_drift(BEFORE, window(0.9, 0.9)) is None
    assert control_drift(TWIN, None) is None


def test_too_few_lookups_are_no_evidence():
    found = measured_effect(0.80, BEFORE, window(0.9, lookups=50), None, shifted=False)
    assert found.gain is None
    assert "50 lookups" in found.basis


# --- A replay of the same requests without the change -----------------------------------------------------------------

WHEN = Baseline(parts=((1_000, 200),), from_ms=60_000, until_ms=120_000)


def told(ratio_before, ratio_after, *, per_bucket=100, rate=1.0):
    """Two minutes before 120 s and two after it, in buckets of 10 s."""
    each = [ratio_before] * 12 + [ratio_after] * 12
    hits = [0]
    for ratio in each:
        hits.append(hits[-1] + round(per_bucket * ratio))
    return Counterfactual(
        service="s", proposal_id="p", from_ms=0, bucket_ms=10_000,
        lookups=tuple(per_bucket * n for n in range(25)), hits=tuple(hits), spatial_rate=rate, distinct_keys=1_000,
    )  # fmt: skip


def drift_of(replay, from_ms=130_000, until_ms=190_000, *, baseline=WHEN, counted=(600, 600)):
    parts = ((counted[0], 0),)
    return replayed_drift(replace(baseline, parts=parts), replay, (from_ms, until_ms), (counted[0], counted[1]))


def test_what_the_traffic_did_is_the_difference_between_two_moments_of_one_replay():
    drift = drift_of(told(0.80, 0.65))
    assert drift is not None
    assert drift.value == pytest.approx(-0.15)
    # Two caches differ by chance in 3 % of 600 lookups before and after.
    assert drift.error == pytest.approx(math.sqrt(2 * 0.03 / 600 + 1e-6))


def test_a_sample_of_the_keys_tells_less():
    whole, part = (drift_of(told(0.8, 0.8, rate=rate), counted=(600 / rate, 600 / rate)) for rate in (1.0, 0.1))
    assert part is not None
    assert whole is not None
    assert part.error > 1.5 * whole.error


@pytest.mark.parametrize(
    ("baseline", "from_ms", "until_ms"),
    [
        (WHEN, 200_000, 250_000),
        (WHEN, None, 190_000),
        (replace(WHEN, from_ms=-1), 130_000, 190_000),
        (replace(WHEN, until_ms=None), 130_000, 190_000),
        (WHEN, 130_000, 135_000),
    ],
    ids=["not replayed yet", "no clock", "before the replay", "no clock before", "too few lookups"],
)
def test_a_replay_that_does_not_cover_both_times_tells_nothing(baseline, from_ms, until_ms):
    assert drift_of(told(0.8, 0.7), from_ms, until_ms, baseline=baseline) is None


def test_a_hot_key_that_is_not_in_the_sample_is_no_drift():
    # The sample lacks the hottest keys: of 1,200 counted lookups it should have 600 and has 450, with the same misses.
    lacking = replace(
        told(0.8, 0.8, rate=0.5), hits=tuple(60 * n for n in range(25)), lookups=tuple(75 * n for n in range(25))
    )
    drift = drift_of(lacking, counted=(1_200, 1_200))
    assert drift is not None
    assert drift.value == 0.0
    # In the second time the hot keys are asked for more: the misses stay, and so does the hit ratio.
    more = drift_of(lacking, counted=(1_200, 1_800))
    assert more is not None
    assert more.value == pytest.approx(90 / 600 - 90 / 900)


def test_an_effect_against_the_replay_is_known_better_than_one_against_the_series_before():
    after = window(0.75, 0.70, 0.80)
    drift = drift_of(told(0.80, 0.65))
    replayed = measured_effect(0.80, WHEN, after, None, shifted=True, drift=drift)
    series = measured_effect(0.80, WHEN, after, None, shifted=False)
    assert replayed.gain is not None
    assert series.gain is not None
    assert replayed.gain.value == pytest.approx(series.gain.value + 0.15)
    assert replayed.gain.high - replayed.gain.low < series.gain.high - series.gain.low
    assert "same requests" in replayed.basis
