"""The synthetic traffic is reproducible, has the shape that its spec states, and a past that fits to its present."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.trace import Op
from simulation.past import past_of
from simulation.workload import Arrivals, KeyPrefix, Past, Workload, WorkloadSpec, key_name

SPEC = WorkloadSpec(
    service="test",
    rate_per_s=500.0,
    universe=1_000,
    zipf_skew=0.9,
    zipf_offset=2.0,
    one_hit_share=0.01,
    write_share=0.05,
    replaced_per_s=2.0,
    size_median_bytes=1_000,
    size_sigma=0.5,
    prefixes=(KeyPrefix(prefix="a:", share=0.75), KeyPrefix(prefix="b:", share=0.25, ttl_ms=15_000)),
    past=Past(long_ago_requests=5_000, turnover=0.4, recent_ms=60_000),
)


def columns(arrivals: Arrivals) -> list[list[int]]:
    names = ("time_ms", "key", "op", "size_bytes", "ttl_ms", "prefix")
    return [getattr(arrivals, name).tolist() for name in names]


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(-3_000, 5_000), max_size=8))
def test_the_stream_is_the_same_however_it_is_cut_into_ticks(cuts):
    edges = sorted({-3_000, 5_000, *cuts})
    whole = Workload(SPEC, 7).between(-3_000, 5_000)
    workload = Workload(SPEC, 7)
    pieces = Arrivals.concat([workload.between(a, b) for a, b in pairwise(edges)])
    assert columns(pieces) == columns(whole)


def test_the_same_seed_gives_the_same_stream_and_another_seed_another_one():
    first, again, other = (Workload(SPEC, seed).between(0, 10_000) for seed in (1, 1, 2))
    assert columns(first) == columns(again)
    assert not np.isin(first.key, other.key).any()


def test_two_services_with_one_seed_share_no_key():
    one = Workload(SPEC, 1).between(0, 5_000)
    two = Workload(replace(SPEC, service="another"), 1).between(0, 5_000)
    assert not np.isin(one.key, two.key).any()


def test_times_lie_in_the_interval_and_never_run_backwards():
    arrivals = Workload(SPEC, 3).between(1_234, 7_891)
    assert arrivals.time_ms.min() >= 1_234
    assert arrivals.time_ms.max() < 7_891
    assert (np.diff(arrivals.time_ms) >= 0).all()


def test_an_empty_interval_has_no_arrivals():
    assert len(Workload(SPEC, 3).between(500, 500)) == 0


def test_arrivals_are_poisson_counts_at_the_stated_rate():
    workload = Workload(SPEC, 5)
    counts = np.array([len(workload.between(s * 1000, s * 1000 + 1000)) for s in range(200)])
    assert abs(counts.mean() - 500) < 4 * np.sqrt(500 / 200)
    assert 0.7 < counts.var() / counts.mean() < 1.4


def test_shares_of_writes_prefixes_and_keys_asked_for_once_are_as_stated():
    arrivals = Workload(SPEC, 5).between(0, 100_000)
    _, index, counts = np.unique(arrivals.key, return_index=True, return_counts=True)
    assert abs((arrivals.op == Op.WRITE).mean() - 0.05) < 0.005
    assert (counts == 1).sum() / len(arrivals) >= 0.008
    assert abs((arrivals.prefix[index] == 0).mean() - 0.75) < 0.03


def test_popularity_follows_zipf_mandelbrot():
    arrivals = Workload(replace(SPEC, one_hit_share=0.0, replaced_per_s=0.0), 5).between(0, 200_000)
    seen = np.sort(np.unique(arrivals.key, return_counts=True)[1])[::-1] / len(arrivals)
    expected = (np.arange(1, 1001) + 2.0) ** -0.9
    expected /= expected.sum()
    assert np.allclose(seen[:20], expected[:20], rtol=0.15)
    assert abs(seen[:100].sum() - expected[:100].sum()) < 0.02


def test_sizes_are_lognormal_within_their_limits_and_belong_to_the_key():
    arrivals = Workload(SPEC, 5).between(0, 100_000)
    keys, index = np.unique(arrivals.key, return_index=True)
    sizes = arrivals.size_bytes[index]
    assert abs(np.median(sizes) - 1_000) < 60
    assert abs(np.log(sizes).std() - 0.5) < 0.05
    assert len(np.unique(np.stack([arrivals.key, arrivals.size_bytes.astype(np.uint64)]), axis=1).T) == len(keys)


def test_the_ttl_is_the_one_of_the_prefix():
    arrivals = Workload(SPEC, 5).between(0, 5_000)
    assert set(arrivals.ttl_ms[arrivals.prefix == 0].tolist()) == {0}
    assert set(arrivals.ttl_ms[arrivals.prefix == 1].tolist()) == {15_000}


def test_keys_go_out_of_use_at_the_stated_pace():
    workload = Workload(replace(SPEC, one_hit_share=0.0, rate_per_s=5_000.0), 5)
    now, later = workload.between(0, 2_000), workload.between(100_000, 102_000)
    # 2 of 1,000 slots a second for 100 seconds: a fifth of the popularity has moved to keys never seen before.
    assert abs(1.0 - np.isin(later.key, now.key).mean() - 0.2) < 0.08


def test_without_replacement_no_key_ever_goes_out_of_use():
    workload = Workload(replace(SPEC, one_hit_share=0.0, replaced_per_s=0.0, universe=50), 5)
    assert np.isin(workload.between(10**9, 10**9 + 2_000).key, workload.between(-5_000, 5_000).key).all()


def test_a_scan_walks_round_its_universe():
    spec = replace(SPEC, scan_share=0.5, scan_universe=100, one_hit_share=0.0)
    arrivals = Workload(spec, 5).between(0, 10_000)
    counts = np.unique(arrivals.key, return_counts=True)[1]
    assert np.isin(Workload(spec, 5).between(20_000, 21_000).key, arrivals.key).mean() > 0.9
    assert counts.max() > 20


def test_long_ago_other_keys_stood_in_the_stated_share_of_places():
    # A flat popularity, so that the share of requests is the share of places.
    spec = replace(SPEC, zipf_skew=0.0, one_hit_share=0.0, past=replace(SPEC.past, long_ago_requests=20_000))
    workload = Workload(spec, 5)
    known = np.isin(workload.between(0, 5_000).key, workload.long_ago().key).mean()
    assert 0.55 < known < 0.62


def test_the_past_replays_keys_without_ttl_oldest_first():
    past = past_of(Workload(SPEC, 5))
    assert (past.replayed.ttl_ms == 0).all()
    assert (np.diff(past.replayed.time_ms) >= 0).all()
    assert past.replayed.time_ms.max() < 0
    assert (past.replayed.time_ms == -60_001).sum() > 3_000


def test_of_keys_with_a_ttl_each_living_one_comes_once_with_what_remains():
    past = past_of(Workload(SPEC, 5))
    assert len(np.unique(past.expiring.key)) == len(past.expiring)
    assert past.expiring.ttl_ms.min() > 0
    assert past.expiring.ttl_ms.max() <= 15_000


def test_the_computed_survivors_are_those_of_a_cache_replayed_second_by_second():
    workload = Workload(replace(SPEC, prefixes=(KeyPrefix(prefix="b:", share=1.0, ttl_ms=15_000),)), 11)
    rows = workload.between(-60_000, 0)
    expires: dict[int, int] = {}
    for time_ms, key, op in zip(rows.time_ms.tolist(), rows.key.tolist(), rows.op.tolist(), strict=True):
        if op == Op.WRITE or expires.get(key, -(10**9)) <= time_ms:
            expires[key] = time_ms + 15_000
    alive = {key: until for key, until in expires.items() if until > 0}
    survivors = past_of(workload).expiring
    assert dict(zip(survivors.key.tolist(), survivors.ttl_ms.tolist(), strict=True)) == alive


def test_arrivals_become_a_trace_for_the_cache_models_with_whole_entries():
    arrivals = Workload(SPEC, 5).between(0, 2_000)
    trace = arrivals.as_trace()
    assert len(trace) == len(arrivals)
    assert (trace.size_bytes > arrivals.size_bytes).all()


def test_key_names_carry_the_prefix_and_a_fixed_width_number():
    assert key_name("a:", 255) == "a:00000000000000ff"


@pytest.mark.parametrize(
    "change",
    [
        {"universe": 0},
        {"rate_per_s": 0.0},
        {"prefixes": ()},
        {"one_hit_share": 0.99},
        {"scan_share": 0.1},
        {"prefixes": (KeyPrefix(prefix="a:", share=0.5),)},
    ],
)
def test_a_spec_that_does_not_add_up_is_refused(change):
    with pytest.raises(ValueError):
        replace(SPEC, **change)
