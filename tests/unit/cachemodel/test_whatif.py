"""What-if answers against simulated caches, and the cases where the honest answer is that there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cachewarden.cachemodel.eviction import EvictionConfig, ResidentSet, index, replay, replay_indexed, replay_looks
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, MissShares, TtlStats
from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.whatif import Answer, Insufficient, diagnose, evaluate
from cachewarden.knobs import EvictionPolicy

from .workloads import LOOKUPS_PER_S, zipf_requests

ENTRY_BYTES = 100
TRACE = zipf_requests(40_000, 0.9, 520, seed=21)
INDEXED = index(TRACE)
CAPTURE = TRACE.slice_time(300_000, 390_000)
RATE = 0.5


def setting(keys: int, eviction_policy: EvictionPolicy = "allkeys-lru", **more: int) -> CacheConfiguration:
    return CacheConfiguration(keys * ENTRY_BYTES, eviction_policy, **more)


def simulated(wanted: CacheConfiguration) -> float:
    config = EvictionConfig(
        wanted.maxmemory_bytes,
        wanted.eviction_policy,
        lfu_log_factor=wanted.lfu_log_factor,
        lfu_decay_time_min=wanted.lfu_decay_time_min,
        unknown_entry_bytes=ENTRY_BYTES,
    )
    if wanted.ttl_ms is None:
        return replay_indexed(INDEXED, config, 300_000).hit_ratio
    return replay(TRACE.with_ttl(wanted.ttl_ms), config, measure_from_ms=300_000).hit_ratio


NOW = setting(6000)
OBSERVED = simulated(NOW)


def evidence() -> Evidence:
    return Evidence(
        lookups_per_s=LOOKUPS_PER_S,
        hit_ratio=OBSERVED,
        maxmemory_bytes=NOW.maxmemory_bytes,
        used_memory_bytes=NOW.maxmemory_bytes,
        fixed_overhead_bytes=0,
        resident_keys=6001,
        mean_entry_bytes=ENTRY_BYTES,
        current=NOW,
        trace=CAPTURE.thin(RATE),
        sampling_rate=RATE,
        all_accesses=len(CAPTURE),
        capture_end_ms=390_000,
        ttl=TtlStats(0.0),
    )


def answer(given: Evidence, wanted: CacheConfiguration) -> Answer:
    (found,) = evaluate(given, [wanted], seed=1)
    assert isinstance(found, Answer), found
    return found


def refusal(given: Evidence, wanted: CacheConfiguration) -> str:
    (found,) = evaluate(given, [wanted], seed=1)
    assert isinstance(found, Insufficient)
    return found.reason


@pytest.mark.parametrize(
    "wanted",
    [
        setting(3000),
        setting(12_000),
        setting(6000, "allkeys-random"),
        setting(6000, ttl_ms=10_000),
        setting(12_000, ttl_ms=60_000),
    ],
    ids=["half", "double", "random", "ttl", "double-with-ttl"],
)
def test_a_change_is_predicted_within_a_point_and_a_half(wanted: CacheConfiguration) -> None:
    found = answer(evidence(), wanted)
    truth = simulated(wanted)
    assert found.hit_ratio.value == pytest.approx(truth, abs=0.015)
    assert found.hit_ratio.holds(truth)
    assert found.method.startswith("observed hit ratio plus modelled difference")


def test_lfu_is_predicted_to_help_a_steady_skewed_workload_about_as_much_as_it_does() -> None:
    # Given a capture long enough for LFU's counters to settle in its first half
    longer = zipf_requests(10_000, 0.9, 1500, seed=5, lookups_per_s=200)
    numbered = index(longer)

    def hit_ratio(eviction_policy: EvictionPolicy) -> float:
        config = EvictionConfig(150_000, eviction_policy, unknown_entry_bytes=ENTRY_BYTES)
        return replay_indexed(numbered, config, 750_000).hit_ratio

    capture = longer.slice_time(600_000, 1_400_000)
    given = replace(
        evidence(),
        lookups_per_s=200,
        hit_ratio=hit_ratio("allkeys-lru"),
        maxmemory_bytes=150_000,
        used_memory_bytes=150_000,
        resident_keys=1501,
        current=setting(1500),
        trace=capture,
        sampling_rate=1.0,
        all_accesses=len(capture),
        capture_end_ms=1_400_000,
    )
    found = answer(given, setting(1500, "allkeys-lfu"))
    truth = hit_ratio("allkeys-lfu")
    # Then the gain is told within a point, and it is not small
    assert found.hit_ratio.value == pytest.approx(truth, abs=0.01)
    assert found.change.value > 0.02


def test_a_lead_of_lfu_after_a_drawn_past_is_answered_with_doubt() -> None:
    wanted = setting(6000, "allkeys-lfu", lfu_log_factor=1, lfu_decay_time_min=5)
    found = answer(evidence(), wanted)
    assert found.hit_ratio.holds(simulated(wanted))
    assert found.change.low < 0.0 < found.change.value
    assert any("not believed" in note for note in found.notes)


def test_no_change_is_predicted_to_change_nothing() -> None:
    assert answer(evidence(), NOW).change.value == pytest.approx(0.0, abs=1e-9)


def test_the_same_seed_gives_the_same_answer() -> None:
    assert answer(evidence(), setting(3000)) == answer(evidence(), setting(3000))


def test_growing_far_beyond_what_was_seen_is_answered_with_a_wider_interval_and_a_note() -> None:
    near, far = answer(evidence(), setting(7000)), answer(evidence(), setting(38_000))
    assert far.hit_ratio.high - far.hit_ratio.low > 1.5 * (near.hit_ratio.high - near.hit_ratio.low)
    assert any("beyond" in note for note in far.notes)


def test_a_frozen_cache_is_judged_by_the_model_alone() -> None:
    # Given a full cache without TTLs under volatile-lru, which refuses writes and hits what it happened to hold
    frozen = replace(NOW, eviction_policy="volatile-lru")
    stuck = replace(evidence(), current=frozen, hit_ratio=0.2)
    found = answer(stuck, NOW)
    assert found.hit_ratio.value == pytest.approx(OBSERVED, abs=0.02)
    assert found.method.startswith("modelled hit ratio as such")


def test_a_capture_primed_with_sampled_residents_tells_the_difference_between_policies() -> None:
    # Given the residents of the simulated LRU cache at the beginning of the capture, seen through the same filter
    before = TRACE.slice_time(0, 300_000)
    last = dict(zip(before.key.tolist(), before.time_ms.tolist(), strict=True))
    newest = sorted(last.items(), key=lambda item: -item[1])[:6000]
    keys = np.array([key for key, _ in newest], np.uint64)
    kept = SpatialFilter(RATE).keeps_each(keys)
    idle_ms = 300_000 - np.array([time for _, time in newest])
    residents = ResidentSet(
        keys[kept], np.full(int(kept.sum()), ENTRY_BYTES), idle_ms[kept], np.zeros(int(kept.sum()), np.int64)
    )
    wanted = setting(6000, "allkeys-random")
    found = answer(replace(evidence(), residents=residents), wanted)
    assert "sampled residents" in found.method
    assert found.hit_ratio.value == pytest.approx(simulated(wanted), abs=0.025)


def test_idle_times_alone_answer_for_memory_but_not_for_lfu() -> None:
    (look,) = replay_looks(INDEXED, EvictionConfig(NOW.maxmemory_bytes, unknown_entry_bytes=ENTRY_BYTES), [390_500])
    idle_ms = np.random.default_rng(3).choice(look.residents.idle_ms, 1000, replace=False)
    passive = replace(evidence(), trace=None, idle_ms=idle_ms)
    found = answer(passive, setting(4000))
    assert "idle times" in found.method
    assert found.hit_ratio.value == pytest.approx(simulated(setting(4000)), abs=0.025)
    assert found.hit_ratio.holds(simulated(setting(4000)))
    assert "access sample" in refusal(passive, setting(6000, "allkeys-lfu"))


def test_without_samples_there_is_no_answer() -> None:
    assert "access sample" in refusal(replace(evidence(), trace=None), setting(9000))


def test_idle_times_of_a_cache_that_is_not_full_are_no_evidence() -> None:
    given = replace(evidence(), trace=None, idle_ms=np.arange(500), used_memory_bytes=1000)
    assert "full cache" in refusal(given, setting(9000))


def test_a_switch_to_noeviction_of_a_full_cache_has_no_answer() -> None:
    assert "happened to hold" in refusal(evidence(), setting(6000, "noeviction"))


def test_a_volatile_policy_needs_to_know_which_keys_have_a_ttl() -> None:
    assert "TTL" in refusal(replace(evidence(), ttl=None), setting(6000, "volatile-lru"))
    assert "TTL" in refusal(replace(evidence(), ttl=TtlStats(0.5)), setting(6000, "volatile-lru"))


def test_contradicting_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="maxmemory"):
        replace(evidence(), maxmemory_bytes=1)


def test_measured_shares_decide_the_diagnosis() -> None:
    given = replace(evidence(), misses=MissShares(cold=0.2, expired=0.5, evicted=0.3, refused=0.0))
    assert diagnose(given).binding == "expired"


def test_rates_decide_it_where_the_shares_are_unknown() -> None:
    evicting = replace(evidence(), evicted_per_s=200.0, expired_per_s=0.0)
    found = diagnose(evicting)
    assert found.binding == "evicted"
    assert found.shares is not None
    assert found.shares.evicted > 0.8
    refusing = replace(evicting, refused_per_s=LOOKUPS_PER_S * (1 - OBSERVED))
    assert diagnose(refusing).binding == "refused"


def test_a_full_cache_that_can_evict_nothing_is_diagnosed_as_refusing() -> None:
    assert diagnose(replace(evidence(), current=replace(NOW, eviction_policy="noeviction"))).binding == "refused"


def test_a_cache_that_hits_always_has_nothing_that_binds() -> None:
    assert diagnose(replace(evidence(), hit_ratio=0.9999)).binding == "none"
