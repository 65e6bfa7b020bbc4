"""What another target would take in memory, in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serve_world import NOW_MS, grounds, proposal, snapshot, standing, state

from cachewarden.models import CacheOptimizationRequest
from cachewarden.protocol import History, Sizing
from serve.decision import Asked, decide
from serve.sizing import SIZING_AGE_MAX_MS, least_bytes, size_in_words

MIB = 1 << 20
SIZES = (20 * MIB, 40 * MIB, 60 * MIB, 80 * MIB)


def sizing(**changes: object) -> Sizing:
    values: dict[str, object] = {
        "at_ms": NOW_MS - 1_000,
        "maxmemory_bytes": SIZES,
        "hit_ratio": (0.6, 0.8, 0.9, 0.95),
        "low": (0.55, 0.78, 0.86, 0.9),
    }
    return Sizing(**{**values, **changes})


def told(target: float, given: Sizing | None = None, **changes: object) -> list[str]:
    """The recommendations of a request with this target, where 40 MiB hit 80 %."""
    known = state(sizings={"constitutional_ai": given or sizing()}, **changes)
    request = CacheOptimizationRequest(service_name="constitutional_ai", target_metrics={"cache_hit_rate": target})
    asked = Asked(request=request, decision_id="d", caller="c", apply="never")
    response = decide(asked, known, grounds(), NOW_MS).response
    return [line for line in response.recommendations if "MiB" in line]


def test_a_size_between_two_is_interpolated():
    assert least_bytes(SIZES, (0.6, 0.8, 0.9, 0.95), 0.85) == 50 * MIB


def test_a_dip_of_the_curve_takes_nothing_back():
    assert least_bytes((1, 2, 3), (0.5, 0.4, 0.6), 0.5) == 1
    assert least_bytes((10, 20, 30), (0.5, 0.4, 0.6), 0.55) == 25


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8), st.floats(0, 1))
def test_the_least_size_lies_among_those_imagined_or_there_is_none(ratios: list[float], target: float):
    sizes = tuple(100 * (index + 1) for index in range(len(ratios)))
    found = least_bytes(sizes, ratios, target)
    assert (found is None) == (max(ratios) < target)
    assert found is None or sizes[0] <= found <= sizes[-1]


def test_a_target_that_is_not_reached_is_told_with_the_memory_that_would_reach_it():
    expected = "`cache_hit_rate` 0.86 by memory alone would take about 52.0 MiB (now 40.0 MiB)"
    assert told(0.86) == [f"{expected}, and 60.0 MiB to reach it at the low end of the 90 % interval"]


def test_where_no_size_reaches_it_at_the_low_end_that_is_told():
    assert "and more than 80.0 MiB to reach it at the low end" in told(0.94)[0]


def test_a_target_that_no_size_reaches_is_told_so():
    assert told(0.99) == [
        "more memory alone, up to 80.0 MiB (now 40.0 MiB), is not predicted to reach `cache_hit_rate` 0.99"
    ]


def test_nobody_is_told_that_less_would_do():
    assert told(0.6) == []


def test_a_plan_that_reaches_the_target_is_enough():
    assert told(0.86, standing=standing(proposal())) == []


@pytest.mark.parametrize("at_ms", [NOW_MS - SIZING_AGE_MAX_MS - 1_000, 0])
def test_what_was_imagined_long_ago_is_not_told(at_ms: int):
    assert told(0.86, sizing(at_ms=at_ms)) == []


def test_what_was_imagined_before_the_last_change_is_not_told():
    assert told(0.86, history={"constitutional_ai": History(last_change_ms=NOW_MS - 500)}) == []
    assert told(0.86, history={"constitutional_ai": History(last_change_ms=NOW_MS - 5_000)}) != []


def test_where_nothing_is_known_or_the_memory_is_unlimited_nothing_is_told():
    assert size_in_words(None, 0.9, 40 * MIB, now_ms=NOW_MS) is None
    assert told(0.86, snapshots={"constitutional_ai": snapshot(maxmemory_bytes=0)}) == []


def test_a_prediction_that_calls_the_target_met_already_is_no_advice():
    assert size_in_words(sizing(), 0.79, 40 * MIB, now_ms=NOW_MS) is None
