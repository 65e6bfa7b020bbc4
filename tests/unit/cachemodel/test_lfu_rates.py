"""Rates from LFU counters: the law of the server simulated, and read back."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.hot_keys import hot_by_frequency, severity_of
from cachewarden.cachemodel.lfu_rates import MORE_THAN_ANY, LfuLaw, rate_of_counter
from tests.unit.cachemodel.test_hot_keys import residents


def counted(rate_per_min: float, minutes: int, law: LfuLaw, seed: int) -> int:
    """Return the counter of a key after so many minutes of Poisson accesses, by the servers' own steps."""
    dice, counter = random.Random(seed), 5
    for _ in range(minutes):
        if law.decay_min == 1:
            counter = max(0, counter - 1)
        # Accesses of one minute; their number is drawn, their chances change with the counter.
        for _ in range(np.random.default_rng(dice.randrange(2**32)).poisson(rate_per_min)):
            if counter < 255 and dice.random() < 1.0 / (max(counter - 5, 0) * law.log_factor + 1.0):
                counter += 1
    return counter


@pytest.mark.parametrize(
    ("rate_per_min", "minutes", "factor", "decay"),
    [(600, 4, 10, 1), (3_000, 2, 10, 1), (300, 60, 10, 1), (60, 20, 10, 0), (600, 5, 10, 2), (40, 60, 1, 1)],
)
def test_the_rate_lies_in_its_interval_about_as_often_as_it_should(rate_per_min, minutes, factor, decay):
    law = LfuLaw(log_factor=factor, decay_min=decay, counted_ms=minutes * 60_000)
    found = [rate_of_counter(counted(rate_per_min, minutes, law, seed), law) for seed in range(30)]
    inside = sum(one.low <= rate_per_min / 60 <= one.high for one in found)
    assert inside >= 24
    assert np.median([one.value for one in found]) == pytest.approx(rate_per_min / 60, rel=0.25)


LAWS = st.builds(
    LfuLaw,
    log_factor=st.integers(0, 100),
    decay_min=st.integers(0, 5),
    counted_ms=st.integers(1_000, 10**9),
)


@given(LAWS, st.integers(0, 254))
def test_a_higher_counter_is_never_a_lower_rate_and_the_interval_holds_its_value(law, counter):
    one, more = rate_of_counter(counter, law), rate_of_counter(counter + 1, law)
    assert 0 <= one.low <= one.value <= one.high
    assert math.isfinite(one.high)
    assert more.value >= one.value


@given(LAWS)
def test_a_counter_at_its_end_says_at_least(law):
    assert rate_of_counter(255, law).high == MORE_THAN_ANY


def test_a_key_that_has_settled_is_used_as_often_as_holds_its_counter():
    """Without an end of time the rate is (counter - 6) f + 1 a minute: what makes up for one step of decay."""
    law = LfuLaw(log_factor=10, decay_min=1, counted_ms=10**12)
    assert rate_of_counter(65, law).value * 60 == pytest.approx(591, rel=0.01)


def test_new_and_cold_keys_are_told_as_next_to_nothing():
    law = LfuLaw(log_factor=10, decay_min=1, counted_ms=60_000)
    assert {rate_of_counter(c, law).value for c in range(6)} == {0.0}


@pytest.mark.parametrize("bad", [{"log_factor": -1}, {"decay_min": -1}, {"counted_ms": 0}])
def test_what_is_no_law_is_refused(bad):
    with pytest.raises(ValueError, match="no law"):
        LfuLaw(**{"log_factor": 10, "decay_min": 1, "counted_ms": 1, **bad})
    with pytest.raises(ValueError, match="256"):
        rate_of_counter(256, LfuLaw(log_factor=10, decay_min=1, counted_ms=1))


def test_hot_keys_have_a_share_of_the_load_and_a_severity_by_it():
    law = LfuLaw(log_factor=10, decay_min=1, counted_ms=3_600_000)
    found = hot_by_frequency(residents([5, 120, 10, 0]), clients=10, law=law, lookups_per_s=100.0, resident_keys=8)
    (key,) = found.keys
    assert (key.key, key.frequency) == (1, 120)
    assert key.share.low < key.share.value < key.share.high <= 1.0
    assert severity_of(key.share) == "high"
    assert found.spatial_rate == 0.5
    assert found.share == key.share
    assert "lfu-log-factor 10" in found.source


def test_a_load_that_no_key_stands_out_of_has_no_hot_key():
    law = LfuLaw(log_factor=10, decay_min=1, counted_ms=3_600_000)
    found = hot_by_frequency(residents([12] * 50), clients=10, law=law, lookups_per_s=1_000.0, resident_keys=50)
    assert found.keys == ()
    assert found.share.value == 0.0


def test_counters_of_a_heavier_load_than_now_are_held_against_each_other():
    """All keys were used ten times as often before: the shares stay those of the keys, and none is the whole load."""
    law = LfuLaw(log_factor=10, decay_min=0, counted_ms=60_000)
    found = hot_by_frequency(residents([60, 60, 30, 30]), clients=10, law=law, lookups_per_s=1.0, resident_keys=4)
    assert sum(key.share.value for key in found.keys) == pytest.approx(1.0)
    assert found.keys[0].share.value == pytest.approx(0.4, abs=0.03)
