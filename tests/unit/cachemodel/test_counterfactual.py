"""What the same requests would have hit without a change: a replay that tells it moment by moment."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.effect import replayed_drift
from cachewarden.baseline import Baseline
from cachewarden.cachemodel import eviction_state as state
from cachewarden.cachemodel.counterfactual_replay import replay_unchanged
from cachewarden.cachemodel.eviction import EvictionConfig, RunningReplay, ScheduledChange, index
from cachewarden.cachemodel.evidence import CacheConfiguration
from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.counterfactual import Counterfactual

ENTRY = 1_000
MINUTE_MS = 60_000
CAPACITY = 600 * ENTRY
LRU = CacheConfiguration(maxmemory_bytes=CAPACITY, eviction_policy="allkeys-lru")


def requests(minutes: int, *, scans: tuple[int, ...] = (), per_minute: int = 3_000, seed: int = 1) -> AccessTrace:
    """Skewed reads of 2,000 keys; in the minutes of `scans` three quarters of them go to keys that never come back."""
    rng = np.random.default_rng(seed)
    rows = minutes * per_minute
    time_ms = np.arange(rows, dtype=np.int64) * MINUTE_MS // per_minute
    key = np.minimum(rng.zipf(1.2, rows), 2_000).astype(np.uint64)
    scanned = np.isin(time_ms // MINUTE_MS, scans) & (rng.random(rows) < 0.75)
    key[scanned] = 10_000 + np.arange(int(scanned.sum()), dtype=np.uint64)
    hashed = key * np.uint64(0x9E3779B97F4A7C15)
    return AccessTrace.of(time_ms, hashed, np.full(rows, int(Op.READ)), np.full(rows, ENTRY))


def told_of(trace: AccessTrace, *, wanted: CacheConfiguration = LRU, rate: float = 1.0, since_ms: int = 0):
    return replay_unchanged(trace, rate, wanted, CAPACITY, ENTRY, since_ms, 5_000)


def message(counts) -> Counterfactual:
    return Counterfactual(
        service="s",
        proposal_id="p",
        from_ms=counts.from_ms,
        bucket_ms=5_000,
        lookups=counts.lookups,
        hits=counts.hits,
        spatial_rate=1.0,
        distinct_keys=counts.distinct_keys,
    )


def ratio(told: Counterfactual, from_min: float, until_min: float) -> float:
    counted = told.counts(int(from_min * MINUTE_MS), int(until_min * MINUTE_MS))
    assert counted is not None
    return counted[1] / counted[0]


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random"])
def test_a_burst_that_comes_with_a_change_is_told_from_what_the_change_does(policy: str):
    trace = requests(30, scans=(22, 23))
    wanted = CacheConfiguration(maxmemory_bytes=CAPACITY, eviction_policy=policy)
    counts = told_of(trace, wanted=wanted)
    assert counts is not None
    traffic = ratio(message(counts), 22, 24) - ratio(message(counts), 19, 21)
    # The real cache shrinks by a third when the burst begins.
    indexed = index(trace)
    real = RunningReplay(indexed, EvictionConfig(CAPACITY, policy), 0, 0, 7, None)
    rows = np.searchsorted(trace.time_ms, np.array([0, 19, 21, 22, 24]) * MINUTE_MS).tolist()
    hits = []
    for first, until in pairwise(rows):
        if until == rows[-1]:
            real.change(ScheduledChange(22 * MINUTE_MS, EvictionConfig(CAPACITY * 2 // 3, policy)))
        before = int(real.register[state.REG.hits])
        real.run(first, until)
        hits.append((int(real.register[state.REG.hits]) - before) / (until - first))
    moved = hits[3] - hits[1]
    assert traffic < -0.4
    # What is left is what the change did: a few points of more than forty.
    assert -0.10 < moved - traffic < 0.01


def test_an_unchanged_cache_is_followed_to_a_point_minute_by_minute():
    trace = requests(30, scans=(12, 20))
    counts = told_of(trace)
    assert counts is not None
    indexed = index(trace)
    real = RunningReplay(indexed, EvictionConfig(CAPACITY), 0, 0, 99, None)
    row = 0
    for minute in range(30):
        until, before = (
            int(np.searchsorted(trace.time_ms, (minute + 1) * MINUTE_MS)),
            int(real.register[state.REG.hits]),
        )
        real.run(row, until)
        if minute >= 10:
            hit = (int(real.register[state.REG.hits]) - before) / (until - row)
            told = message(counts)
            if (minute + 1) * MINUTE_MS <= told.until_ms:
                assert ratio(told, minute, minute + 1) == pytest.approx(hit, abs=0.015)
        row = until


def test_counting_begins_when_the_replayed_cache_is_full():
    trace = requests(30)
    counts = told_of(trace)
    assert counts is not None
    assert 0 < counts.from_ms < 20 * MINUTE_MS
    assert counts.lookups[0] == counts.hits[0] == 0
    roomy = replay_unchanged(trace, 1.0, LRU, 10_000 * ENTRY, ENTRY, 0, 5_000)
    assert roomy is None


def test_only_what_was_asked_for_is_told():
    counts = told_of(requests(30), since_ms=25 * MINUTE_MS)
    assert counts is not None
    assert counts.from_ms == 25 * MINUTE_MS


@pytest.mark.parametrize(("skew", "rate"), [(0.8, 0.1), (1.0, 0.1), (1.0, 0.25)])
def test_nine_of_ten_samples_of_the_keys_are_as_far_off_a_burst_as_they_say(skew: float, rate: float):
    minutes, per_minute, keys = 10, 15_000, 40_000
    rng = np.random.default_rng(3)
    rows = minutes * per_minute
    time_ms = np.arange(rows, dtype=np.int64) * MINUTE_MS // per_minute
    weights = 1.0 / np.arange(1, keys + 1) ** skew
    key = rng.choice(keys, rows, p=weights / weights.sum()).astype(np.uint64)
    burst = (time_ms >= 8 * MINUTE_MS) & (rng.random(rows) < 0.4)
    key[burst] = keys + np.arange(int(burst.sum()), dtype=np.uint64)
    baseline = Baseline(parts=((per_minute, 0),), from_ms=6 * MINUTE_MS, until_ms=7 * MINUTE_MS)
    size = 6_000 * ENTRY
    wanted = CacheConfiguration(maxmemory_bytes=size, eviction_policy="allkeys-lru")

    def drift(hashed: np.ndarray, rate: float):
        trace = AccessTrace.of(time_ms, hashed, np.full(rows, int(Op.READ)), np.full(rows, ENTRY))
        kept = trace if rate == 1.0 else trace.rows(SpatialFilter(rate).keeps_each(trace.key))
        counts = replay_unchanged(kept, rate, wanted, size, ENTRY, 5 * MINUTE_MS, 5_000)
        assert counts is not None
        span = 8 * MINUTE_MS, 9 * MINUTE_MS
        return replayed_drift(baseline, replace(message(counts), spatial_rate=rate), span, (per_minute, per_minute))

    def hashed(salt: int) -> np.ndarray:
        # Another secret, another sample (splitmix64).
        mixed = (key + np.uint64(salt)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))

    whole = drift(hashed(0), 1.0)
    assert whole.value < -0.1
    samples = [drift(hashed(10**9 * salt), rate) for salt in range(1, 21)]
    inside = [abs(sample.value - whole.value) <= 1.645 * sample.error for sample in samples]
    assert sum(inside) >= 16
    # And they do not say so by claiming to know nothing.
    assert max(sample.error for sample in samples) < 0.03


@pytest.mark.parametrize(
    "wanted",
    [
        CacheConfiguration(maxmemory_bytes=CAPACITY, eviction_policy="volatile-lru"),
        CacheConfiguration(maxmemory_bytes=CAPACITY, eviction_policy="noeviction"),
        CacheConfiguration(maxmemory_bytes=CAPACITY, ttl_ms=60_000),
    ],
    ids=["volatile", "refuses writes", "lives by TTLs"],
)
def test_nothing_is_told_of_what_cannot_be_replayed(wanted: CacheConfiguration):
    assert told_of(requests(10), wanted=wanted) is None


def test_nothing_is_told_of_a_few_keys_or_of_nothing():
    few = requests(10)
    few = few.rows(np.isin(few.key, np.unique(few.key)[:100]))
    assert replay_unchanged(few, 1.0, LRU, 50 * ENTRY, ENTRY, 0, 5_000) is None
    assert told_of(few.rows(slice(0, 0))) is None


@given(
    buckets=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=2, max_size=12),
    span=st.tuples(st.integers(-2_000, 14_000), st.integers(-2_000, 14_000)),
    middle=st.integers(0, 12_000),
)
def test_counts_of_two_spans_that_meet_are_those_of_both_and_lie_within_what_was_replayed(buckets, span, middle):
    lookups = np.cumsum([0, *(a + b for a, b in buckets)]).tolist()
    hits = np.cumsum([0, *(a for a, _ in buckets)]).tolist()
    told = Counterfactual(
        service="s", proposal_id="p", from_ms=0, bucket_ms=1_000, lookups=tuple(lookups), hits=tuple(hits),
        spatial_rate=1.0, distinct_keys=10,
    )  # fmt: skip
    from_ms, until_ms = span
    counted = told.counts(from_ms, until_ms)
    assert (counted is not None) == (0 <= from_ms < until_ms <= told.until_ms)
    if counted is None:
        return
    assert 0 <= counted[1] <= counted[0] + 1e-9
    if from_ms < middle < until_ms:
        one, other = told.counts(from_ms, middle), told.counts(middle, until_ms)
        assert one is not None
        assert other is not None
        assert one[0] + other[0] == pytest.approx(counted[0])
        assert one[1] + other[1] == pytest.approx(counted[1])
