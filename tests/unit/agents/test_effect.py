"""What a change did, told apart from what the traffic did."""

from __future__ import annotations

import pytest

from agents.effect import control_drift, measured_effect
from agents.windows import Window
from cachewarden.baseline import Baseline


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
