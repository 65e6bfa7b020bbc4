"""Answers by replay of a capture that is long enough to warm the caches that it is replayed through."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cachewarden.cachemodel.capture_replay import CaptureReplay
from cachewarden.cachemodel.eviction import EvictionConfig, index, replay_indexed
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.whatif import Answer, Inquiry

ENTRY_BYTES = 1_000
NOW = CacheConfiguration(600 * ENTRY_BYTES)
LFU = replace(NOW, eviction_policy="allkeys-lfu", lfu_log_factor=1, lfu_decay_time_min=1)


def capture(requests: int = 60_000, *, moves: bool = False) -> AccessTrace:
    """Zipf over 5,000 keys at 50 requests/s; with `moves` the hot set is another one every 4 minutes."""
    weights = np.arange(1, 5_001) ** -0.9
    keys = np.random.default_rng(7).choice(5_000, requests, p=weights / weights.sum()).astype(np.uint64)
    if moves:
        keys += np.uint64(10_000) * (np.arange(requests, dtype=np.uint64) // np.uint64(12_000))
    return AccessTrace.of(np.arange(requests) * 20, mix(keys), None, ENTRY_BYTES)


def evidence_of(trace: AccessTrace, rate: float = 1.0) -> Evidence:
    return Evidence(
        lookups_per_s=50.0,
        hit_ratio=0.5,
        maxmemory_bytes=NOW.maxmemory_bytes,
        used_memory_bytes=NOW.maxmemory_bytes,
        fixed_overhead_bytes=0,
        resident_keys=600,
        mean_entry_bytes=ENTRY_BYTES,
        current=NOW,
        trace=trace.thin(rate) if rate < 1.0 else trace,
        sampling_rate=rate,
    )


STEADY = CaptureReplay(evidence_of(capture()), seed=1)


def test_the_present_configuration_differs_by_exactly_nothing() -> None:
    found = STEADY.difference(NOW, NOW)
    assert found is not None
    assert (found.low, found.value, found.high) == (0.0, 0.0, 0.0)


def test_any_two_configurations_can_be_compared_and_the_differences_fit_together() -> None:
    small, large = (replace(NOW, maxmemory_bytes=n * ENTRY_BYTES) for n in (300, 900))
    whole, parts = STEADY.difference(large, small), (STEADY.difference(large, NOW), STEADY.difference(small, NOW))
    assert whole is not None
    assert None not in parts
    # Not to the last digit: the larger of two caches is warm later, and both are compared from there on.
    assert whole.value == pytest.approx(parts[0].value - parts[1].value, abs=0.002)  # type: ignore[union-attr]


def test_on_a_steady_workload_lfu_surely_leads() -> None:
    found = STEADY.difference(LFU, NOW)
    assert found is not None
    assert found.low > 0.02


def test_where_the_hot_set_moves_the_lead_of_lfu_is_smaller_and_less_sure() -> None:
    still, moving = (
        STEADY.difference(LFU, NOW),
        CaptureReplay(evidence_of(capture(moves=True)), seed=1).difference(LFU, NOW),
    )
    assert still is not None
    assert moving is not None
    assert moving.value < still.value
    assert moving.low < still.low
    assert moving.low / abs(moving.value) < still.low / still.value


def test_what_another_eviction_policy_gives_is_less_sure_than_what_a_size_gives() -> None:
    size = STEADY.difference(replace(NOW, maxmemory_bytes=2 * NOW.maxmemory_bytes), NOW)
    policy = STEADY.difference(LFU, NOW)
    assert size is not None
    assert policy is not None
    assert (policy.high - policy.low) / policy.value > 2 * (size.high - size.low) / size.value


def test_more_memory_gives_more_and_less_gives_less() -> None:
    more = STEADY.difference(replace(NOW, maxmemory_bytes=2 * NOW.maxmemory_bytes), NOW)
    less = STEADY.difference(replace(NOW, maxmemory_bytes=NOW.maxmemory_bytes // 2), NOW)
    assert more is not None
    assert less is not None
    assert more.low > 0 > less.high


def test_a_sample_of_the_keys_gives_nearly_the_same_with_a_wider_interval() -> None:
    half = replace(NOW, maxmemory_bytes=NOW.maxmemory_bytes // 2)
    whole = STEADY.difference(half, NOW)
    part = CaptureReplay(evidence_of(capture(), 0.4), seed=1).difference(half, NOW)
    assert whole is not None
    assert part is not None
    assert part.value == pytest.approx(whole.value, abs=0.03)
    assert part.high - part.low > whole.high - whole.low


@pytest.mark.parametrize(
    "wanted",
    [
        replace(NOW, maxmemory_bytes=10_000 * ENTRY_BYTES),
        replace(NOW, eviction_policy="noeviction"),
        replace(NOW, eviction_policy="volatile-lru"),
        replace(NOW, ttl_ms=60_000),
        replace(NOW, maxmemory_bytes=0),
    ],
)
def test_what_the_capture_does_not_bring_to_a_steady_state_is_left_to_the_models(wanted: CacheConfiguration) -> None:
    assert STEADY.difference(wanted, NOW) is None


def test_a_cache_under_lru_is_told_from_the_moment_that_it_is_full() -> None:
    # It is full after two thirds of the capture, and has exchanged a quarter of its content by the end.
    size = replace(NOW, maxmemory_bytes=3_100 * ENTRY_BYTES)
    taken = CaptureReplay(evidence_of(capture(20_000)), seed=1)
    told = taken.difference(size, NOW)
    assert told is not None
    assert taken.difference(replace(size, eviction_policy="allkeys-lfu"), NOW) is None


def test_once_full_it_does_not_matter_under_lru_what_a_cache_held_before() -> None:
    whole = capture(60_000)
    late = whole.rows(slice(30_000, 60_000))
    size = replace(NOW, maxmemory_bytes=2_400 * ENTRY_BYTES)
    # The same half an hour: once with all that was before, once begun with empty caches.
    known = _difference_over_the_end(whole, size)
    begun = _difference_over_the_end(late, size)
    assert begun == pytest.approx(known, abs=0.004)


def _difference_over_the_end(trace: AccessTrace, wanted: CacheConfiguration) -> float:
    """Return what `wanted` hits more over the last 20,000 requests, by plain replays that count only those."""
    indexed = index(trace)
    from_ms = int(trace.time_ms[-20_000])
    hits = [replay_indexed(indexed, EvictionConfig(config.maxmemory_bytes), from_ms).hits for config in (wanted, NOW)]
    return (hits[0] - hits[1]) / 20_000


def test_a_short_capture_says_nothing() -> None:
    assert CaptureReplay(evidence_of(capture(3_000)), seed=1).difference(LFU, NOW) is None


def test_an_inquiry_takes_the_replay_where_there_is_one() -> None:
    (answer,) = Inquiry(evidence_of(capture()), seed=1).ask([LFU])
    assert isinstance(answer, Answer)
    assert answer.method == "observed hit ratio plus the difference over a capture of 1200 s, replayed"
    assert answer.change.low > 0.02
