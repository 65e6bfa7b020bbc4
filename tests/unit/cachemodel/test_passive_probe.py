"""What a thousand residents and a few counters tell of other sizes, and where they must stay silent."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel import residence
from cachewarden.cachemodel.eviction import EvictionConfig, index, replay, replay_looks
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, ResidentSample, TtlStats
from cachewarden.cachemodel.lfu_rates import LFU_INITIAL
from cachewarden.cachemodel.passive_curve import PassiveCurve, miss_logit_spread, passive_curve
from cachewarden.cachemodel.passive_fit import ResidentFacts
from cachewarden.cachemodel.popularity_fit import IdleTable
from cachewarden.cachemodel.whatif import Answer, Insufficient, evaluate

from .workloads import zipf_requests

ENTRY_BYTES = 100
KEYS = 6000
LOOKUPS_PER_S = 200
TRACE = zipf_requests(40_000, 0.9, 2100, seed=31, lookups_per_s=LOOKUPS_PER_S)
INDEXED = index(TRACE)
FROM_MS, PROBE_MS = 1_000_000, 2_000_500
STEADY = ((66_000, 21_000), (66_000, 21_050), (66_000, 20_980))


@cache
def hit_ratio(keys: int, samples: int = 5) -> float:
    config = EvictionConfig(keys * ENTRY_BYTES, maxmemory_samples=samples, unknown_entry_bytes=ENTRY_BYTES)
    before, after = (look.counts for look in replay_looks(INDEXED, config, [FROM_MS, PROBE_MS]))
    return (after.hits - before.hits) / (after.reads - before.reads)


@cache
def residents() -> tuple[np.ndarray, int]:
    config = EvictionConfig(KEYS * ENTRY_BYTES, unknown_entry_bytes=ENTRY_BYTES)
    (look,) = replay_looks(INDEXED, config, [PROBE_MS])
    return look.residents.idle_ms, len(look.residents.key)


def probed(keys: int = 1000, **changes: object) -> Evidence:
    idle_ms, number = residents()
    given = Evidence(
        lookups_per_s=LOOKUPS_PER_S,
        hit_ratio=hit_ratio(KEYS),
        maxmemory_bytes=KEYS * ENTRY_BYTES,
        used_memory_bytes=KEYS * ENTRY_BYTES,
        fixed_overhead_bytes=0,
        resident_keys=number,
        mean_entry_bytes=ENTRY_BYTES,
        current=CacheConfiguration(KEYS * ENTRY_BYTES),
        sampled=ResidentSample.of_idle_times(np.random.default_rng(4).choice(idle_ms, keys, replace=False)),
        ttl=TtlStats(0.0),
        window_parts=STEADY,
    )
    return replace(given, **changes)


def asked(given: Evidence, keys: int, **more: int) -> Answer | Insufficient:
    (found,) = evaluate(given, [replace(given.current, maxmemory_bytes=keys * ENTRY_BYTES, **more)], seed=1)
    return found


def refusal(given: Evidence, keys: int = 4000) -> str:
    found = asked(given, keys)
    assert isinstance(found, Insufficient), found
    return found.reason


@pytest.mark.parametrize("keys", [1800, 3000, 4200, 5400])
def test_less_memory_is_told_within_two_points_and_inside_the_interval(keys: int) -> None:
    found = asked(probed(), keys)
    assert isinstance(found, Answer)
    assert found.hit_ratio.value == pytest.approx(hit_ratio(keys), abs=0.02)
    assert found.hit_ratio.holds(hit_ratio(keys))


def test_half_as_much_memory_again_is_told_within_two_points_and_inside_the_interval() -> None:
    found = asked(probed(), 9000)
    assert isinstance(found, Answer)
    assert found.hit_ratio.value == pytest.approx(hit_ratio(9000), abs=0.02)
    assert found.hit_ratio.holds(hit_ratio(9000))


def test_at_the_present_memory_the_answer_is_what_was_observed() -> None:
    found = asked(probed(), KEYS)
    assert isinstance(found, Answer)
    assert found.change.value == pytest.approx(0.0, abs=1e-9)
    assert found.hit_ratio.high - found.hit_ratio.low < 1e-6


@cache
def curve() -> PassiveCurve:
    idle_ms, number = residents()
    facts = ResidentFacts(number, LOOKUPS_PER_S, 1.0 - hit_ratio(KEYS), 5)
    table = IdleTable.of(np.random.default_rng(4).choice(idle_ms, 1000, replace=False))
    return passive_curve(table, facts, ENTRY_BYTES, 1, STEADY)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 4.0))
def test_more_memory_is_never_answered_with_fewer_hits(factor: float) -> None:
    now = curve().memory_bytes
    less, more = curve().at(now * factor), curve().at(now * factor * 1.1)
    assert less.low <= less.value <= less.high
    assert more.value >= less.value - 1e-9


def test_doubt_grows_with_the_distance_from_the_present_memory() -> None:
    now = curve().memory_bytes
    widths = [(found := curve().at(now * factor)).high - found.low for factor in (1.1, 1.5, 2.0, 3.0)]
    assert widths == sorted(widths)


def test_fewer_sampled_keys_and_fewer_looks_mean_more_doubt() -> None:
    many, few = asked(probed(), 3000), asked(probed(keys=250), 3000)
    unseen = asked(probed(window_parts=()), 3000)
    assert isinstance(many, Answer)
    assert isinstance(few, Answer)
    assert isinstance(unseen, Answer)
    assert few.hit_ratio.high - few.hit_ratio.low > many.hit_ratio.high - many.hit_ratio.low
    assert unseen.hit_ratio.high - unseen.hit_ratio.low > many.hit_ratio.high - many.hit_ratio.low
    assert any("one window" in note for note in unseen.notes)


def test_more_samples_per_eviction_bring_a_little() -> None:
    found = asked(probed(), KEYS, maxmemory_samples=10)
    assert isinstance(found, Answer)
    assert found.change.value == pytest.approx(hit_ratio(KEYS, 10) - hit_ratio(KEYS), abs=0.003)


def test_what_the_probe_has_cost_stands_in_the_answer() -> None:
    found = asked(probed(sampled=replace(probed().sampled, cost_us=4200.0)), 4000)
    assert isinstance(found, Answer)
    assert any("4.2 ms of server time" in note for note in found.notes)


def test_parts_of_the_window_that_miss_very_differently_are_a_burst() -> None:
    given = probed(window_parts=((50_000, 5_000), (50_000, 22_000), (50_000, 20_000)))
    assert "bursts" in refusal(given)


def test_idle_times_that_contradict_the_counted_misses_are_no_ground_for_an_answer() -> None:
    # Given a window that missed a third as often as idle times suggest
    assert "not steady" in refusal(probed(hit_ratio=0.88, window_parts=()))


def test_keys_that_leave_within_seconds_are_too_young_for_a_clock_of_whole_seconds() -> None:
    young = ResidentSample.of_idle_times(np.random.default_rng(1).integers(0, 6, 1000) * 1000)
    assert "whole seconds" in refusal(probed(sampled=young))


def test_a_size_at_which_keys_would_leave_within_seconds_has_no_answer() -> None:
    assert "whole seconds" in refusal(probed(), keys=120)


def test_too_few_keys_say_so() -> None:
    assert "200 are needed" in refusal(probed(keys=150))


def test_under_lfu_nearly_all_counters_stand_where_a_new_key_begins_so_they_tell_no_curve() -> None:
    config = EvictionConfig(KEYS * ENTRY_BYTES // 3, eviction_policy="allkeys-lfu", unknown_entry_bytes=ENTRY_BYTES)
    residents = replay_looks(INDEXED, config, [PROBE_MS])[0].residents
    assert residents.frequency is not None
    decayed = residents.frequency.astype(np.int64) - residents.idle_ms // 60_000
    assert np.mean(decayed <= LFU_INITIAL) > 0.6
    assert np.mean(decayed <= LFU_INITIAL + 1) > 0.9


def test_under_lfu_idle_times_do_not_exist_and_that_is_said() -> None:
    lfu = CacheConfiguration(KEYS * ENTRY_BYTES, "allkeys-lfu")
    assert "under LFU" in refusal(probed(current=lfu))


def test_a_cache_that_hardly_misses_says_nothing_of_what_it_evicts() -> None:
    assert "too little" in refusal(probed(hit_ratio=0.9995, window_parts=()))


def test_a_cache_with_room_to_spare_gains_nothing_from_memory_and_that_is_certain() -> None:
    roomy = probed(used_memory_bytes=1000, evicted_per_s=0.0)
    found = asked(roomy, 2 * KEYS)
    assert isinstance(found, Answer)
    assert found.change.low == found.change.high == 0.0
    # But what less memory costs is not known from it
    assert "full cache" in refusal(roomy)


def test_a_cache_without_limit_is_not_told_that_a_limit_costs_nothing() -> None:
    unlimited = probed(
        maxmemory_bytes=0, used_memory_bytes=1000, evicted_per_s=0.0, current=CacheConfiguration(0, "allkeys-lru")
    )
    assert "full cache" in refusal(unlimited, keys=10)


def test_the_unsteadiness_of_a_steady_workload_is_that_of_chance_and_taken_off() -> None:
    rng = np.random.default_rng(8)
    steady = tuple((1000, int(misses)) for misses in rng.binomial(1000, 0.3, 12))
    assert miss_logit_spread(steady) < 0.08
    assert miss_logit_spread(steady[:2]) is None
    assert miss_logit_spread(((0, 0), (0, 0), (0, 0), (10, 5))) is None


@pytest.mark.parametrize(("samples", "tolerance"), [(3, 0.006), (5, 0.005), (10, 0.005)])
def test_the_closed_form_of_sampled_eviction_agrees_with_the_replay_of_the_pool(samples: int, tolerance: float) -> None:
    popularity = np.arange(1, 40_001) ** -0.9
    rates = LOOKUPS_PER_S * popularity / popularity.sum()
    ages_s = np.geomspace(15.0, 200.0, 24)
    held, hits = residence.sampled_lru_curve(rates, rates, rates / rates.sum(), np.ones(len(rates)), samples, ages_s)
    assert np.interp(KEYS, held, hits) == pytest.approx(hit_ratio(KEYS, samples), abs=tolerance)


def test_one_sample_is_random_eviction_and_many_are_exact_lru() -> None:
    rng = np.random.default_rng(3)
    rates = np.concatenate([[0.0], np.geomspace(1e-4, 50.0, 40)])
    requests = rng.dirichlet(np.ones(41))
    keys_per_s, one, ages_s = 1000.0 * requests, np.ones(41), np.geomspace(0.1, 1e4, 200)
    for samples, known in ((1, residence.random_curve), (64, residence.lru_curve)):
        held, hits = residence.sampled_lru_curve(rates, keys_per_s, requests, one, samples, ages_s)
        sizes = np.geomspace(held[0] * 1.1, held[-1] * 0.9, 50)
        expected = np.interp(sizes, *known(rates, keys_per_s, requests))
        assert np.interp(sizes, held, hits) == pytest.approx(expected, abs=0.002)


def test_bytes_count_where_popular_keys_are_smaller() -> None:
    # Given a workload whose hot keys are small
    rank = np.unique(TRACE.key, return_counts=True)
    size = np.clip(20_000 // np.maximum(rank[1], 1), 60, 400)[np.searchsorted(rank[0], TRACE.key)].astype(np.int32)
    sized = replace(TRACE, size_bytes=size)
    numbered, capacity = index(sized), 2_400_000

    def seen(bytes_: int):
        return replay_looks(numbered, EvictionConfig(bytes_), [FROM_MS, PROBE_MS])

    def ratio(bytes_: int) -> float:
        before, after = (look.counts for look in seen(bytes_))
        return (after.hits - before.hits) / (after.reads - before.reads)

    look = seen(capacity)[1]
    chosen = np.random.default_rng(2).choice(len(look.residents.key), 1000, replace=False)
    given = probed(
        hit_ratio=ratio(capacity),
        maxmemory_bytes=capacity,
        used_memory_bytes=capacity,
        current=CacheConfiguration(capacity),
        resident_keys=look.counts.resident_keys,
        mean_entry_bytes=look.counts.resident_bytes / look.counts.resident_keys,
        sampled=ResidentSample(
            look.residents.idle_ms[chosen],
            look.residents.size_bytes[chosen],
            np.full(1000, -1),
            np.full(1000, -1, np.int32),
        ),
    )
    (found,) = evaluate(given, [CacheConfiguration(capacity // 2)], seed=1)
    assert isinstance(found, Answer)
    assert found.hit_ratio.value == pytest.approx(ratio(capacity // 2), abs=0.015)


def test_a_look_at_a_replay_counts_what_the_replay_counts() -> None:
    config = EvictionConfig(2000)
    (look,) = replay_looks(INDEXED, config, [int(TRACE.time_ms[-1]) + 1])
    whole = replay(TRACE, config)
    assert look.counts == whole
    assert len(look.residents.key) == whole.resident_keys
    assert look.residents.idle_ms.min() >= 0
    with pytest.raises(ValueError, match="backwards"):
        replay_looks(INDEXED, config, [2, 1])
