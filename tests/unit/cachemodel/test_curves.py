"""Memory curves of one cache: against replays at other sizes, and what must hold whatever the evidence."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.curves import MIB, MemoryCurve, MemoryForTarget, curve, memory_for
from cachewarden.cachemodel.eviction import EvictionConfig, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, TtlStats
from cachewarden.cachemodel.whatif import Answer, Inquiry, Insufficient
from cachewarden.knobs import EvictionPolicy

from .workloads import LOOKUPS_PER_S, zipf_requests

# Entries as large as makes the cache 16 MiB, so that one MiB is a small step.
KEYS, ENTRY_BYTES = 6000, 16 * MIB // 6000
NOW_BYTES = KEYS * ENTRY_BYTES
TRACE = zipf_requests(40_000, 0.9, 520, seed=21)
INDEXED = index(TRACE)
CAPTURE = TRACE.slice_time(300_000, 420_000)


@cache
def simulated(maxmemory_bytes: int) -> float:
    config = EvictionConfig(maxmemory_bytes, "allkeys-lru", unknown_entry_bytes=ENTRY_BYTES)
    return replay_indexed(INDEXED, config, 300_000).hit_ratio


def evidence(**changes: object) -> Evidence:
    values: dict[str, object] = {
        "lookups_per_s": LOOKUPS_PER_S,
        "hit_ratio": simulated(NOW_BYTES),
        "maxmemory_bytes": NOW_BYTES,
        "used_memory_bytes": NOW_BYTES,
        "fixed_overhead_bytes": 0,
        "resident_keys": KEYS,
        "mean_entry_bytes": ENTRY_BYTES,
        "current": CacheConfiguration(NOW_BYTES),
        "trace": CAPTURE,
        "all_accesses": len(CAPTURE),
        "capture_end_ms": 420_000,
        "ttl": TtlStats(0.0),
    }
    return Evidence(**{**values, **changes})


@cache
def inquiry() -> Inquiry:
    return Inquiry(evidence(), 1)


def found(of: Inquiry | None = None) -> MemoryCurve:
    made = curve(of or inquiry())
    assert isinstance(made, MemoryCurve), made
    return made


def least(target: float, of: Inquiry | None = None) -> MemoryForTarget:
    made = memory_for(of or inquiry(), target)
    assert isinstance(made, MemoryForTarget), made
    return made


def policy(name: EvictionPolicy, **changes: object) -> Evidence:
    return evidence(current=CacheConfiguration(NOW_BYTES, name), **changes)


def test_each_size_is_told_within_a_point_and_a_half_of_the_replay():
    for point in found().points:
        if 0.25 <= point.maxmemory_bytes / NOW_BYTES <= 2.0:
            truth = simulated(point.maxmemory_bytes)
            assert point.hit_ratio.value == pytest.approx(truth, abs=0.015)
            assert point.hit_ratio.holds(truth)


def test_the_present_size_has_the_observed_hit_ratio():
    made = found()
    now = made.points[made.now]
    assert now.maxmemory_bytes == NOW_BYTES
    assert now.hit_ratio.value == made.observed == simulated(NOW_BYTES)
    assert now.change.value == 0.0


def test_a_point_is_what_the_same_inquiry_answers_alone():
    made = found()
    for point in made.points:
        (alone,) = inquiry().ask([replace(made.configuration, maxmemory_bytes=point.maxmemory_bytes)])
        assert isinstance(alone, Answer)
        assert point.hit_ratio.value == pytest.approx(alone.hit_ratio.value, abs=0.005)


@settings(max_examples=8, deadline=None)
@given(
    hit_ratio=st.floats(0.02, 0.98),
    used=st.floats(0.3, 1.0),
    evicted=st.sampled_from([None, 0.0, 100.0]),
    keys=st.integers(500, 30_000),
    ttl_ms=st.sampled_from([None, 10_000, 120_000]),
)
def test_along_rising_memory_nothing_falls_whatever_the_evidence(
    hit_ratio: float, used: float, evicted: float | None, keys: int, ttl_ms: int | None
):
    given_ = evidence(
        hit_ratio=hit_ratio,
        used_memory_bytes=int(used * NOW_BYTES),
        resident_keys=keys,
        evicted_per_s=evicted,
        current=CacheConfiguration(NOW_BYTES, ttl_ms=ttl_ms),
        trace=CAPTURE.slice_time(300_000, 303_000),
        all_accesses=None,
        capture_end_ms=303_000,
    )
    asked = Inquiry(given_, 1)
    made = curve(asked)
    assert isinstance(made, MemoryCurve)
    for end in ("value", "low", "high"):
        levels = [getattr(point.hit_ratio, end) for point in made.points]
        assert levels == sorted(levels)
    assert made.points[made.now].hit_ratio.value == hit_ratio
    assert made.marginal.hits_per_s.low >= 0.0
    ages = [point.eviction_age_ms.value for point in made.points if point.eviction_age_ms is not None]
    assert ages == sorted(ages)
    for target in (0.1, hit_ratio, 0.9):
        told = memory_for(asked, target)
        assert isinstance(told, MemoryForTarget)
        if told.maxmemory_bytes is not None and told.high_bytes is not None and not told.reason:
            assert (told.low_bytes or 0) <= told.maxmemory_bytes <= told.high_bytes


def test_eviction_ages_are_those_of_the_measured_one_scaled_by_the_model():
    measured = found(Inquiry(evidence(eviction_age_ms=50_000), 1))
    plain = found()
    assert measured.points[measured.now].eviction_age_ms.value == pytest.approx(50_000)
    factor = 50_000 / plain.points[plain.now].eviction_age_ms.value
    for with_age, without in zip(measured.points, plain.points, strict=True):
        assert with_age.eviction_age_ms.value == pytest.approx(factor * without.eviction_age_ms.value)


def test_sizes_that_keep_keys_for_longer_than_was_seen_are_called_extrapolated():
    short = CAPTURE.slice_time(300_000, 310_000)
    made = found(Inquiry(evidence(trace=short, all_accesses=len(short), capture_end_ms=310_000), 1))
    assert not made.points[0].extrapolated
    assert made.points[-1].extrapolated


def test_a_working_set_is_the_number_of_distinct_keys_of_a_window():
    made = found()
    assert made.working_set[0].window_ms == 1000
    for told in made.working_set:
        starts = range(300_000, 420_001 - told.window_ms, 10_000)
        truth = np.mean([TRACE.slice_time(s, s + told.window_ms).distinct_keys() for s in starts])
        assert told.keys.value == pytest.approx(truth, rel=0.03)
        assert told.size_bytes.value == pytest.approx(truth * ENTRY_BYTES, rel=0.03)


def test_one_mib_more_is_worth_the_slope_of_the_replayed_curve():
    marginal = found().marginal
    slope = (simulated(NOW_BYTES + 2 * MIB) - simulated(NOW_BYTES - 2 * MIB)) / 4
    assert marginal.hit_ratio.value == pytest.approx(slope, rel=0.1)
    assert marginal.hit_ratio.holds(slope)
    assert marginal.hits_per_s.value == pytest.approx(marginal.hit_ratio.value * LOOKUPS_PER_S)


def test_replicates_are_compared_in_pairs_so_the_slope_is_surer_than_the_levels():
    made = found()
    at = made.now
    level = made.points[at + 1].hit_ratio
    assert made.marginal.hit_ratio.high - made.marginal.hit_ratio.low < 0.5 * (level.high - level.low)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_the_least_memory_for_a_hit_ratio_is_the_size_that_has_it(factor: float):
    told = least(simulated(int(factor * NOW_BYTES)))
    assert told.maxmemory_bytes == pytest.approx(factor * NOW_BYTES, rel=0.1)
    assert told.low_bytes <= factor * NOW_BYTES <= told.high_bytes


def test_asking_at_the_least_memory_gives_the_goal_back():
    told = least(0.72)
    (alone,) = inquiry().ask([CacheConfiguration(told.maxmemory_bytes)])
    assert alone.hit_ratio.value == pytest.approx(0.72, abs=0.003)


def test_a_goal_beyond_first_time_keys_is_unreachable_with_the_reason():
    rng = np.random.default_rng(2)
    keys = CAPTURE.key.copy()
    new = rng.random(len(keys)) < 0.2
    keys[new] = rng.integers(0, 2**63, int(new.sum()), dtype=np.uint64)
    told = least(0.95, Inquiry(evidence(trace=replace(CAPTURE, key=keys), hit_ratio=0.55), 1))
    assert told.maxmemory_bytes is None
    assert "of the lookups are not asked again within the 120 s of evidence" in told.reason
    assert float(told.reason.split(", ")[1].split()[0]) == pytest.approx(0.35, abs=0.1)


def test_under_a_short_ttl_the_ttl_is_named_as_what_stands_in_the_way():
    bound = evidence(current=CacheConfiguration(NOW_BYTES, ttl_ms=5_000), hit_ratio=0.5, evicted_per_s=5.0)
    told = least(0.95, Inquiry(bound, 1))
    assert told.maxmemory_bytes is None
    assert "come back after the TTL of 5 s" in told.reason


def test_a_goal_that_any_size_reaches_says_so():
    told = least(0.05)
    assert "already enough" in told.reason


@pytest.mark.parametrize("target", [0.0, 1.0, -1.0, 2.0, float("nan")])
def test_an_impossible_goal_is_refused(target: float):
    with pytest.raises(ValueError, match="impossible"):
        memory_for(inquiry(), target)


def test_a_cache_with_room_to_spare_gains_nothing_from_memory():
    roomy = Inquiry(evidence(used_memory_bytes=NOW_BYTES // 2, evicted_per_s=0.0), 1)
    made = found(roomy)
    assert made.marginal.hits_per_s.high == 0.0
    assert {p.hit_ratio.value for p in made.points if p.maxmemory_bytes >= NOW_BYTES} == {made.observed}
    assert "nothing is evicted" in least(0.95, roomy).reason


def test_a_cache_without_a_limit_is_measured_by_what_it_uses():
    unlimited = evidence(
        maxmemory_bytes=0, current=CacheConfiguration(0, "noeviction"), used_memory_bytes=20 * MIB, evicted_per_s=0.0
    )
    made = found(Inquiry(unlimited, 1))
    assert made.points[made.now].maxmemory_bytes == 20 * MIB
    assert made.configuration.eviction_policy == "allkeys-lru"
    assert any("noeviction" in note for note in made.notes)


def test_a_full_cache_that_refuses_writes_is_told_what_lru_would_give():
    made = found(Inquiry(policy("noeviction", hit_ratio=0.3), 1))
    now = made.points[made.now]
    assert now.hit_ratio.value == pytest.approx(simulated(NOW_BYTES), abs=0.02)
    assert now.change.value > 0.2


def test_a_policy_that_is_replayed_has_a_curve_without_eviction_ages_and_a_doubtful_slope():
    small = replace(policy("allkeys-random"), trace=CAPTURE.thin(0.3), sampling_rate=0.3)
    made = found(Inquiry(small, 1))
    assert all(point.eviction_age_ms is None for point in made.points)
    assert made.marginal.hit_ratio.low == 0.0
    assert "LRU's slope" in made.marginal.method


def test_without_samples_there_is_no_curve_but_a_reason():
    for made in (curve(Inquiry(evidence(trace=None), 1)), memory_for(Inquiry(evidence(trace=None), 1), 0.9)):
        assert isinstance(made, Insufficient)
        assert "take an access sample" in made.reason


def test_the_same_evidence_and_seed_give_the_same_curve():
    assert curve(Inquiry(evidence(), 1)) == curve(Inquiry(evidence(), 1))
