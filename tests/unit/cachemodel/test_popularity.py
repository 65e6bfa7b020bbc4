"""The popularity mixture against simulated caches: what a minute of accesses tells of the hours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.eviction import EvictionConfig, index, replay, replay_indexed, replay_looks
from cachewarden.cachemodel.popularity import Anchor, PopularityMixture
from cachewarden.cachemodel.popularity_fit import ReuseTable, kaplan_meier
from cachewarden.cachemodel.residence import hits_per_load
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.knobs import EvictionPolicy

from .workloads import LOOKUPS_PER_S, zipf_requests

TRACE = zipf_requests(60_000, 0.9, 700, seed=11)
INDEXED = index(TRACE)
CAPTURE = TRACE.slice_time(300_000, 390_000)
MEASURE_FROM_MS = 300_000


def simulated(keys: int, eviction_policy: EvictionPolicy = "allkeys-lru") -> float:
    return replay_indexed(INDEXED, EvictionConfig(keys, eviction_policy), MEASURE_FROM_MS).hit_ratio


@pytest.fixture(scope="module")
def fitted() -> PopularityMixture:
    return PopularityMixture.from_accesses(CAPTURE, LOOKUPS_PER_S, end_ms=390_000)


@pytest.mark.parametrize("keys", [2000, 8000, 20_000])
def test_a_capture_of_ninety_seconds_tells_the_lru_hit_ratio_at_any_size(fitted: PopularityMixture, keys: int) -> None:
    assert fitted.lru_hit_ratio(keys)[0] == pytest.approx(simulated(keys), abs=0.015)


@pytest.mark.parametrize("keys", [2000, 8000])
def test_random_eviction_is_told_as_well(fitted: PopularityMixture, keys: int) -> None:
    assert fitted.random_hit_ratio(keys)[0] == pytest.approx(simulated(keys, "allkeys-random"), abs=0.015)


def test_ideal_lfu_bounds_the_real_one_and_lru(fitted: PopularityMixture) -> None:
    ideal = fitted.lfu_hit_ratio(5000)[0]
    assert ideal > simulated(5000, "allkeys-lfu")
    assert ideal > fitted.lru_hit_ratio(5000)[0]


@pytest.mark.parametrize("ttl_ms", [5_000, 60_000])
def test_the_hit_ratio_under_a_ttl_is_told_with_and_without_a_memory_limit(
    fitted: PopularityMixture, ttl_ms: int
) -> None:
    expiring = TRACE.with_ttl(ttl_ms)
    free = replay(expiring, EvictionConfig(None), measure_from_ms=MEASURE_FROM_MS).hit_ratio
    assert fitted.ttl_hit_ratio(ttl_ms)[0] == pytest.approx(free, abs=0.015)
    tight = replay(expiring, EvictionConfig(4000), measure_from_ms=MEASURE_FROM_MS).hit_ratio
    assert fitted.ttl_hit_ratio(ttl_ms, 4000)[0] == pytest.approx(tight, abs=0.015)


def test_a_tenth_of_the_keys_tells_the_same_once_the_count_is_corrected() -> None:
    thin = CAPTURE.thin(0.1)
    fitted = PopularityMixture.from_accesses(
        thin, LOOKUPS_PER_S, sampling_rate=0.1, all_accesses=len(CAPTURE), end_ms=390_000
    )
    assert fitted.lru_hit_ratio(8000)[0] == pytest.approx(simulated(8000), abs=0.02)


def test_plain_replay_of_a_short_capture_is_biased_and_the_mixture_is_not(fitted: PopularityMixture) -> None:
    truth = simulated(20_000)
    from_empty = replay(CAPTURE, EvictionConfig(20_000)).hit_ratio
    assert truth - from_empty > 0.05
    assert fitted.lru_hit_ratio(20_000)[0] == pytest.approx(truth, abs=0.015)


def test_a_full_cache_anchors_the_ages_beyond_a_very_short_capture() -> None:
    # Given a cache of 20,000 keys, whose eviction age is far longer than a capture of 15 seconds
    truth = simulated(20_000)
    short = TRACE.slice_time(300_000, 315_000)
    anchored = PopularityMixture.from_accesses(short, LOOKUPS_PER_S, anchor=Anchor(20_001, 1 - truth), end_ms=315_000)
    # Then the mixture agrees with it there, and tells a smaller size from the two together
    assert anchored.lru_hit_ratio(20_000)[0] == pytest.approx(truth, abs=0.01)
    assert anchored.lru_hit_ratio(10_000)[0] == pytest.approx(simulated(10_000), abs=0.02)


def test_idle_times_of_a_thousand_residents_tell_smaller_and_larger_sizes() -> None:
    # Given the idle times of the residents of an LRU cache of 8,000 keys, by the server's clock of whole seconds
    (look,) = replay_looks(INDEXED, EvictionConfig(8000), [600_500])
    idle_ms = np.random.default_rng(5).choice(look.residents.idle_ms, 1000, replace=False)
    # When the mixture is fitted to them and the miss ratio alone
    fitted = PopularityMixture.from_idle_times(idle_ms, 8000, LOOKUPS_PER_S, 1 - simulated(8000))
    # Then half and twice the size are told
    assert fitted.sampled_lru_hit_ratio(8000, 5)[0] == pytest.approx(simulated(8000), abs=0.01)
    assert fitted.sampled_lru_hit_ratio(4000, 5)[0] == pytest.approx(simulated(4000), abs=0.025)
    assert fitted.sampled_lru_hit_ratio(16_000, 5)[0] == pytest.approx(simulated(16_000), abs=0.04)


def test_survival_follows_kaplan_and_meier_inside_the_capture(fitted: PopularityMixture) -> None:
    order = np.argsort(CAPTURE.key, kind="stable")
    key, time_ms = CAPTURE.key[order], CAPTURE.time_ms[order]
    again = np.append(key[1:] == key[:-1], False)
    duration = np.where(again, np.append(np.diff(time_ms), 0), 390_000 - time_ms)
    ages = np.array([1.0, 5.0, 20.0, 45.0])
    assert fitted.survival(ages * 1000) == pytest.approx(kaplan_meier(duration / 1000, again, ages), abs=0.01)


def test_keys_that_never_come_again_are_recognised() -> None:
    # Given a third of the requests for keys that are asked for once
    rng = np.random.default_rng(2)
    once = rng.random(90_000) < 0.333
    key = np.where(once, 10**9 + np.arange(90_000), rng.integers(0, 500, 90_000)).astype(np.uint64)
    fitted = PopularityMixture.from_accesses(AccessTrace.of(np.arange(90_000), key), LOOKUPS_PER_S)
    # Then room for the 500 others is enough, and thirty times that room brings next to nothing.
    assert fitted.lru_hit_ratio(1500)[0] == pytest.approx(0.667, abs=0.02)
    assert fitted.lru_hit_ratio(25_000)[0] == pytest.approx(0.667, abs=0.02)


def test_the_load_after_a_missed_read_is_no_request_of_its_own() -> None:
    trace = AccessTrace.of([0, 1, 5000, 9000], [1, 1, 1, 1], [Op.READ, Op.WRITE, Op.READ, Op.WRITE], [0, 80, 0, 80])
    table = ReuseTable.of(trace, 10_000)
    assert table.accesses == 3
    # The size that the load knew goes to the read that caused it.
    assert table.event_bytes.sum() + table.censored_bytes.sum() == 160


def test_hot_keys_with_small_values_are_given_their_own_size() -> None:
    rng = np.random.default_rng(4)
    hot = rng.random(60_000) < 0.5
    key = np.where(hot, rng.integers(0, 50, 60_000), 1000 + rng.integers(0, 20_000, 60_000)).astype(np.uint64)
    trace = AccessTrace.of(np.arange(60_000), key, None, np.where(hot, 100, 900))
    fitted = PopularityMixture.from_accesses(trace, LOOKUPS_PER_S, mean_entry_bytes=500)
    assert np.interp(10.0, fitted.rates_per_s, fitted.entry_bytes) == pytest.approx(100, abs=40)
    assert np.interp(0.025, fitted.rates_per_s, fitted.entry_bytes) == pytest.approx(900, abs=40)


def test_the_renewal_equation_meets_its_limits() -> None:
    rates = np.array([0.01, 0.1, 1.0])
    # Idle limit above the TTL: plain Poisson hits. TTL without end: a geometric number of hits.
    assert hits_per_load(np.array([100.0]), rates, 50.0)[0] == pytest.approx(rates * 50.0)
    endless = hits_per_load(np.array([5.0]), rates, 1e7)[0]
    assert endless == pytest.approx(np.expm1(rates * 5.0), rel=0.02)


def test_a_capture_of_one_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="two accesses"):
        PopularityMixture.from_accesses(AccessTrace.of([1, 1], [1, 2]), LOOKUPS_PER_S)


def mixtures() -> st.SearchStrategy[PopularityMixture]:
    rates = np.concatenate([[0.0], np.geomspace(1e-4, 50, 12)])
    parts = st.lists(st.floats(0.0, 1.0), min_size=13, max_size=13).filter(lambda x: sum(x) > 0.01)
    sizes = st.lists(st.floats(50, 5000), min_size=13, max_size=13)
    return st.builds(
        lambda w, b, load: PopularityMixture(rates, np.array(w) / sum(w), np.array(b), load, 60_000.0),
        parts,
        sizes,
        st.floats(1.0, 1e5),
    )


@given(mixtures(), st.floats(100, 1e8), st.integers(1000, 10**8))
@settings(max_examples=50, deadline=None)
def test_every_curve_lies_within_0_and_1_and_never_falls_with_memory(
    mixture: PopularityMixture, most: float, ttl_ms: int
) -> None:
    sizes = np.linspace(0, most, 30)
    for curve in (
        mixture.lru_hit_ratio(sizes),
        mixture.random_hit_ratio(sizes),
        mixture.lfu_hit_ratio(sizes),
        1 - mixture.miss_ratio_curve(sizes, ttl_ms),
    ):
        assert np.all(np.diff(curve) >= -1e-9)
        assert curve[0] == pytest.approx(0.0, abs=1e-9)
        assert curve[-1] <= 1.0 - mixture.cold + 1e-9


@given(mixtures(), st.integers(1000, 10**8), st.floats(100, 1e8))
@settings(max_examples=50, deadline=None)
def test_a_ttl_never_helps_and_a_longer_one_never_hurts_without_a_limit(
    mixture: PopularityMixture, ttl_ms: int, size: float
) -> None:
    short, long = mixture.ttl_hit_ratio([ttl_ms, 2 * ttl_ms])
    assert short <= long + 1e-9
    assert 1 - mixture.miss_ratio_curve(size, ttl_ms)[0] <= short + 2e-3
    assert np.all(np.diff(mixture.working_set_keys([1000, 10_000, 100_000])) >= 0)
