"""Samples of a fixed number of keys, and the intervals that come from resampling keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.fixed_size_sample import (
    FixedSizeSample,
    KeyCounts,
    hit_ratio_estimate,
    ratio_estimate,
    thin_to_keys,
)
from cachewarden.cachemodel.shards import MODULUS, error_expected, keys_needed, mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.estimate import Estimate

from .workloads import zipf_requests

HASHES = st.lists(
    st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 20), st.integers(0, 9).map(lambda n: n * MODULUS)), max_size=80
)


@given(HASHES, st.integers(1, 10), st.sampled_from([1.0, 0.5, 0.01]))
def test_what_is_left_is_what_a_filter_of_the_final_rate_keeps_from_the_start(
    hashes: list[int], keys_max: int, rate: float
) -> None:
    # Given accesses taken one by one
    sample = FixedSizeSample(keys_max, rate)
    admitted = [hashed for hashed in hashes if sample.admits(hashed)]
    # When those of keys that were thinned out later are left out
    kept = [hashed for hashed in admitted if sample.keeps(hashed)]
    # Then no access of a key that is left was missed, and all of it is what one thinning at the end would give
    assert kept == [hashed for hashed in hashes if sample.keeps(hashed)]
    thinned, final = thin_to_keys(AccessTrace.of(np.arange(len(hashes)), np.array(hashes, np.uint64)), keys_max, rate)
    assert [int(k) for k in thinned.key] == kept
    assert final == sample.rate or not kept
    assert len(sample) == len(set(kept))


@given(HASHES, st.integers(1, 10))
def test_the_bound_holds_unless_keys_share_the_lowest_hash(hashes: list[int], keys_max: int) -> None:
    sample = FixedSizeSample(keys_max)
    rates = []
    for hashed in hashes:
        sample.admits(hashed)
        rates.append(sample.rate)
    assert rates == sorted(rates, reverse=True)
    remainders = {hashed % MODULUS for hashed in hashes if sample.keeps(hashed)}
    assert len(sample) <= keys_max or len(remainders) == 1


def test_a_sample_that_never_fills_keeps_its_rate() -> None:
    sample = FixedSizeSample(1_000, 0.1)
    for hashed in mix(np.arange(2_000, dtype=np.uint64)):
        sample.admits(int(hashed))
    assert sample.rate == 0.1
    assert 130 < len(sample) < 270


def test_a_full_sample_stands_for_its_share_of_all_keys() -> None:
    trace = zipf_requests(20_000, 0.7, 5, seed=2)
    kept, rate = thin_to_keys(trace, 500)
    assert kept.distinct_keys() == 500
    assert 500 / rate == pytest.approx(trace.distinct_keys(), rel=0.15)


@pytest.mark.parametrize("keys_max", [0, -1])
def test_a_sample_of_no_keys_is_refused(keys_max: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        FixedSizeSample(keys_max)
    with pytest.raises(ValueError, match="at least 1"):
        thin_to_keys(AccessTrace.of([], []), keys_max)


def test_keys_needed_and_error_expected_are_inverse() -> None:
    assert error_expected(keys_needed(0.01)) == pytest.approx(0.01, rel=1e-3)
    assert error_expected(1) <= 1.0
    with pytest.raises(ValueError, match="nothing"):
        error_expected(0)


def _population(seed: int, keys: int = 4_000) -> tuple[KeyCounts, int]:
    rng = np.random.default_rng(seed)
    accesses = rng.geometric(0.2, keys).astype(np.float64)
    return KeyCounts(accesses, np.floor(accesses * rng.uniform(0.3, 1.0, keys))), int(accesses.sum())


@pytest.mark.parametrize("corrected", [False, True])
def test_intervals_from_resampled_keys_hold_the_truth_about_nine_times_in_ten(corrected: bool) -> None:
    everything, total = _population(1)
    truth = float(everything.hits.sum() / everything.accesses.sum())
    inside = 0
    for seed in range(100):
        chosen = np.random.default_rng(1_000 + seed).uniform(size=len(everything.accesses)) < 0.1
        counts = KeyCounts(everything.accesses[chosen], everything.hits[chosen])
        known = {"rate": 0.1, "all_accesses": total} if corrected else {}
        estimate = hit_ratio_estimate(counts, seed, **known)
        assert isinstance(estimate, Estimate)
        inside += estimate.holds(truth)
    assert 82 <= inside <= 97


def test_hot_keys_that_were_missed_count_as_hits_under_the_correction() -> None:
    counts = KeyCounts(np.full(100, 2.0), np.full(100, 1.0))
    plain = hit_ratio_estimate(counts, 1)
    corrected = hit_ratio_estimate(counts, 1, rate=0.1, all_accesses=4_000)
    assert isinstance(plain, Estimate)
    assert isinstance(corrected, Estimate)
    assert plain.value == pytest.approx(0.5)
    assert corrected.value == pytest.approx(0.75)


def test_a_sample_without_a_single_miss_does_not_claim_certainty() -> None:
    estimate = hit_ratio_estimate(KeyCounts(np.full(60, 3.0), np.full(60, 3.0)), 1)
    assert isinstance(estimate, Estimate)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(1 - (1 - 0.05 ** (1 / 60)), abs=1e-9)


def test_too_few_keys_give_a_reason_instead_of_an_interval() -> None:
    assert "too few" in str(ratio_estimate(np.ones(5), np.ones(5), 1))
    assert "no accesses" in str(hit_ratio_estimate(KeyCounts(np.ones(50), np.ones(50)), 1, all_accesses=0))


def test_counts_are_per_key() -> None:
    counts = KeyCounts.of(np.array([7, 9, 7], np.uint64), np.array([False, True, True]))
    assert (list(counts.accesses), list(counts.hits)) == ([2, 1], [1, 1])
    with pytest.raises(ValueError, match="no more often"):
        KeyCounts(np.ones(2), np.full(2, 2.0))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=30, max_size=60),
    st.integers(0, 2**31),
    st.booleans(),
)
def test_an_estimate_stays_within_its_bounds_and_repeats_itself(
    rows: list[tuple[int, int]], seed: int, corrected: bool
) -> None:
    accesses = np.array([a for a, _ in rows], np.float64)
    counts = KeyCounts(accesses, np.minimum(accesses, [h for _, h in rows]))
    known = {"rate": 0.5, "all_accesses": int(accesses.sum() * 2)} if corrected else {}
    first, second = (hit_ratio_estimate(counts, seed, **known) for _ in range(2))
    assert first == second
    assert isinstance(first, Estimate)
    assert 0.0 <= first.low <= first.high <= 1.0
