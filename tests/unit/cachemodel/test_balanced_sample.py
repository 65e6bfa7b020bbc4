"""Spatial samples mended by what is known of all keys, and the intervals from their groups."""

from __future__ import annotations

import numpy as np
import pytest

from cachewarden.cachemodel.balanced_sample import balanced
from cachewarden.cachemodel.key_groups import GROUPS, group_of, sampling_margin
from cachewarden.cachemodel.key_popularity import KeyPopularity
from cachewarden.cachemodel.trace import AccessTrace

from .workloads import zipf_requests

TRACE = zipf_requests(8_000, 0.9, 60, seed=7)


def counted(trace: AccessTrace) -> KeyPopularity:
    popularity = KeyPopularity()
    popularity.add(trace.key)
    return popularity


def keys_by_count(trace: AccessTrace, bounds: list[int]) -> np.ndarray:
    counts = np.unique(trace.key, return_counts=True)[1]
    return np.histogram(counts, [*bounds, 10**9])[0]


def test_a_balanced_sample_holds_its_share_of_rare_and_of_popular_keys() -> None:
    sample = TRACE.thin(0.1)
    found = balanced(sample, 0.1, counted(TRACE))
    bounds = [1, 2, 4, 8]
    wanted = keys_by_count(TRACE, bounds) * found.rate
    assert keys_by_count(found.trace, bounds) == pytest.approx(wanted, abs=12)
    assert (
        np.abs(keys_by_count(sample, bounds) - wanted).sum() > np.abs(keys_by_count(found.trace, bounds) - wanted).sum()
    )
    assert found.keys == sample.distinct_keys()
    assert found.rate == pytest.approx(found.keys / TRACE.distinct_keys(), rel=0.005)


def test_every_key_that_is_kept_keeps_all_its_accesses_in_time_order() -> None:
    sample = TRACE.thin(0.1)
    found = balanced(sample, 0.1, counted(TRACE))
    times = {}
    for key in np.unique(sample.key):
        times[tuple(sample.time_ms[sample.key == key].tolist())] = key
    for key in np.unique(found.trace.key):
        assert tuple(found.trace.time_ms[found.trace.key == key].tolist()) in times
    assert np.all(np.diff(found.trace.time_ms) >= 0)


def test_groups_are_disjoint_and_of_one_size() -> None:
    found = balanced(TRACE.thin(0.2), 0.2, counted(TRACE))
    sizes = [len(np.unique(found.trace.key[found.group == number])) for number in range(GROUPS)]
    assert sum(sizes) == found.trace.distinct_keys()
    assert max(sizes) - min(sizes) <= 2


def test_without_counts_the_sample_stays_as_it_is_and_its_rate_is_believed() -> None:
    sample = TRACE.thin(0.1)
    found = balanced(sample, 0.1, None)
    assert found.trace is sample
    assert (found.rate, found.counted) == (0.1, False)
    assert np.array_equal(found.group, group_of(sample.key))


def test_a_sample_of_a_few_keys_is_one_class() -> None:
    found = balanced(TRACE.thin(0.002), 0.002, counted(TRACE))
    assert found.trace.distinct_keys() == found.keys


def test_the_margin_grows_with_the_spread_and_shrinks_with_the_keys() -> None:
    narrow, wide = 0.5 + 0.001 * np.arange(-4, 4), 0.5 + 0.01 * np.arange(-4, 4)
    assert sampling_margin(0.5, narrow, 1000, 0.1) < sampling_margin(0.5, wide, 1000, 0.1)
    assert sampling_margin(0.5, narrow, 10_000, 0.1) < sampling_margin(0.5, narrow, 300, 0.1)


def test_all_keys_have_no_sampling_error_and_too_few_groups_carry_no_interval() -> None:
    assert sampling_margin(0.5, np.zeros(0), 1000, 1.0) == 0.0
    assert sampling_margin(0.5, np.full(3, 0.5), 3, 0.1) == 1.0
