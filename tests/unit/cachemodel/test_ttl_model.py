"""Misses under a TTL, what longer ones give, expiries that come together, memory that nobody reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.dead_memory import DeadMemory, Residents, expired_memory, unread_memory
from cachewarden.cachemodel.eviction import EvictionConfig, ReplayResult, replay
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, TtlStats
from cachewarden.cachemodel.popularity import PopularityMixture
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.ttl_model import (
    TtlGain,
    gains_of_longer_ttls,
    share_kept_by_use,
    shortest_with_most_of_the_gain,
    ttl_ladder,
)
from cachewarden.cachemodel.ttl_stampede import (
    Jitter,
    Stampede,
    jitter_below,
    peak_share_with_jitter,
    stampede_risk,
)
from cachewarden.cachemodel.whatif import Inquiry
from cachewarden.estimate import Estimate

from .workloads import zipf_requests

SECONDS = 400
TRACE = zipf_requests(20_000, 0.8, SECONDS, seed=4)
CAPTURE = TRACE.slice_time(280_000, 400_000)


def replayed(ttl_ms: int, capacity_bytes: int | None = None) -> ReplayResult:
    config = EvictionConfig(capacity_bytes, "allkeys-lru", unknown_entry_bytes=100)
    return replay(TRACE.with_ttl(ttl_ms), config, measure_from_ms=150_000)


def asked(ttl_ms: int | None, capacity_bytes: int = 0, **changes: object) -> Inquiry:
    """What a look at that cache would know."""
    seen = replayed(ttl_ms or 0, capacity_bytes or None)
    values: dict[str, object] = {
        "lookups_per_s": 1000.0,
        "hit_ratio": seen.hit_ratio,
        "maxmemory_bytes": capacity_bytes,
        "used_memory_bytes": capacity_bytes or seen.resident_bytes,
        "fixed_overhead_bytes": 0,
        "resident_keys": seen.resident_keys,
        "mean_entry_bytes": 100.0,
        "current": CacheConfiguration(capacity_bytes, ttl_ms=ttl_ms),
        "trace": CAPTURE.with_ttl(ttl_ms or 0),
        "capture_end_ms": SECONDS * 1000,
        "ttl": TtlStats(1.0),
        "evicted_per_s": seen.evicted / 250,
    }
    return Inquiry(Evidence(**{**values, **changes}), 1)


@given(st.integers(1, 10**7), st.integers(1, 10**9))
def test_a_ladder_rises_and_ends_at_what_is_permitted(present_ms: int, longest_ms: int) -> None:
    ladder = ttl_ladder(present_ms, longest_ms)
    assert list(ladder) == sorted(set(ladder))
    assert all(present_ms < ttl_ms <= longest_ms for ttl_ms in ladder)
    assert not ladder or ladder[-1] == longest_ms
    assert bool(ladder) == (present_ms < longest_ms)


@pytest.mark.parametrize("capacity_bytes", [0, 500_000], ids=["unlimited", "full"])
def test_longer_ttls_give_what_a_replay_under_them_gives_and_never_pass_the_staleness(capacity_bytes: int) -> None:
    inquiry = asked(10_000, capacity_bytes)
    gains = gains_of_longer_ttls(inquiry, inquiry.evidence.current, 60_000)
    assert not isinstance(gains, str)
    assert [g.ttl_ms for g in gains] == [20_000, 40_000, 60_000]
    now = replayed(10_000, capacity_bytes or None)
    for gain in gains:
        then = replayed(gain.ttl_ms, capacity_bytes or None)
        assert gain.gain.value == pytest.approx(then.hit_ratio - now.hit_ratio, abs=0.01)
        assert gain.gain.holds(then.hit_ratio - now.hit_ratio)
        assert gain.hit_ratio is not None
        assert gain.hit_ratio.value == pytest.approx(then.hit_ratio, abs=0.01)


def test_what_is_left_to_miss_is_told_by_what_would_help() -> None:
    inquiry = asked(10_000, 500_000)
    gains = gains_of_longer_ttls(inquiry, inquiry.evidence.current, 40_000)
    assert not isinstance(gains, str)
    then, with_memory = replayed(40_000, 500_000), replayed(40_000)
    left = gains[-1].misses
    assert left is not None
    assert left.for_memory == pytest.approx(with_memory.hit_ratio - then.hit_ratio, abs=0.02)
    assert left.after_ttl + left.never_again == pytest.approx(1.0 - with_memory.hit_ratio, abs=0.02)
    told = gains[-1].hit_ratio
    assert told is not None
    assert left.for_memory + left.after_ttl + left.never_again == pytest.approx(1.0 - told.value)


def test_gains_are_the_numbers_of_the_same_inquiry() -> None:
    inquiry = asked(10_000)
    gains = gains_of_longer_ttls(inquiry, inquiry.evidence.current, 60_000)
    answers = inquiry.ask([CacheConfiguration(0, ttl_ms=t) for t in (20_000, 40_000, 60_000)])
    assert [g.gain for g in gains] == [a.change for a in answers]


def test_no_ttl_or_one_as_long_as_permitted_gives_a_reason() -> None:
    bound = asked(10_000)
    assert "as long as its owner permits" in str(gains_of_longer_ttls(bound, bound.evidence.current, 10_000))
    assert "no TTL" in str(gains_of_longer_ttls(bound, CacheConfiguration(0), 60_000))
    blind = asked(10_000, trace=None)
    assert "access sample" in str(gains_of_longer_ttls(blind, blind.evidence.current, 60_000))


def test_the_shortest_ttl_with_nearly_all_of_the_gain_is_enough() -> None:
    def gain(ttl_ms: int, value: float) -> TtlGain:
        return TtlGain(ttl_ms, None, Estimate(value, value, value), None)

    rising = [gain(20, 0.05), gain(40, 0.098), gain(60, 0.1)]
    assert shortest_with_most_of_the_gain(rising, 0.95).ttl_ms == 40
    assert shortest_with_most_of_the_gain(rising, 1.0).ttl_ms == 60
    with pytest.raises(ValueError, match="no TTLs"):
        shortest_with_most_of_the_gain([], 0.95)


# --- Expiries that come together


def _uniform(seed: int, n: int = 600, horizon_ms: int = 300_000) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, horizon_ms, n)


def test_a_bulk_load_shows_as_the_second_in_which_it_expires() -> None:
    together = np.concatenate([_uniform(1), np.full(200, 120_500)])
    risk = stampede_risk(together, 8_000, read_again_share=0.5)
    assert isinstance(risk, Stampede)
    assert risk.aligned
    assert 119_500 < risk.begins_ms <= 120_500
    assert risk.busiest_share.value == pytest.approx(0.25, abs=0.01)
    assert risk.loads_per_s_peak.value == pytest.approx(0.5 * 8_000 * risk.busiest_share.value)
    assert risk.loads_per_s_mean == pytest.approx(4_000 / 300, rel=0.01)
    assert risk.factor > 50
    assert risk.busiest_share.holds(0.25)


def test_independent_expiries_are_seldom_called_aligned() -> None:
    alarms = 0
    for seed in range(100):
        risk = stampede_risk(_uniform(seed), 1_000)
        assert isinstance(risk, Stampede)
        alarms += risk.aligned
    assert alarms <= 15


def test_short_ttls_among_long_ones_are_no_alignment() -> None:
    alarms = 0
    for seed in range(50):
        mixed = np.concatenate([_uniform(seed, 500, 60_000), _uniform(seed + 99, 500, 86_400_000)])
        risk = stampede_risk(mixed, 1_000)
        assert isinstance(risk, Stampede)
        alarms += risk.aligned
    assert alarms <= 8


def test_too_few_deadlines_tell_nothing() -> None:
    assert "50 are needed" in str(stampede_risk(np.full(20, 5), 100))
    assert "50 are needed" in str(stampede_risk(np.full(200, -1), 100))


REMAINING = st.lists(st.integers(0, 100_000), min_size=1, max_size=60).map(lambda rows: np.array(rows, np.int64))


@settings(deadline=None)
@given(REMAINING, st.integers(1, 50_000), st.integers(-150_000, 100_000))
def test_no_second_holds_more_than_the_peak_that_was_worked_out(
    remaining_ms: np.ndarray, jitter_ms: int, begins_ms: int
) -> None:
    peak = peak_share_with_jitter(remaining_ms, jitter_ms)
    overlap = np.minimum(remaining_ms, begins_ms + 1000) - np.maximum(remaining_ms - jitter_ms, begins_ms)
    assert np.clip(overlap, 0, None).mean() / jitter_ms <= peak + 1e-9


@settings(deadline=None)
@given(REMAINING, st.floats(0.01, 1.0))
def test_a_jitter_that_is_returned_keeps_its_bound(remaining_ms: np.ndarray, bound: float) -> None:
    found = jitter_below(remaining_ms, bound, 200_000)
    assert isinstance(found, Jitter)
    assert found.peak_share <= bound
    assert peak_share_with_jitter(remaining_ms, found.jitter_ms) == found.peak_share


def test_jitter_spreads_a_bulk_load_evenly_and_is_not_longer_than_needed() -> None:
    found = jitter_below(np.full(500, 60_000), 0.05, 60_000)
    assert isinstance(found, Jitter)
    assert 20_000 <= found.jitter_ms <= 20_000 * 1.16
    assert jitter_below(_uniform(1), 0.9, 60_000) == Jitter(0, peak_share_with_jitter(_uniform(1), 0))


def test_a_peak_that_no_permitted_jitter_removes_is_told() -> None:
    assert "permit more" in str(jitter_below(np.full(500, 60_000), 0.05, 5_000))
    assert "nothing to spread" in str(jitter_below(np.full(5, -1), 0.05, 5_000))


# --- Memory that nobody reads


def _residents(n: int = 400, unread: float = 0.3) -> tuple[Residents, AccessTrace]:
    key = mix(np.arange(n, dtype=np.uint64))
    read = key[int(n * unread) :]
    capture = AccessTrace.of(np.linspace(0, 60_000, len(read)), read)
    size = np.where(np.arange(n) < n * unread, 3_000, 1_000)
    ttl = np.where(np.arange(n) % 2, 5_000, -1)
    return Residents(key, size, np.arange(n) * 100, ttl, 1_000_000), capture


def test_unread_memory_is_weighed_by_size() -> None:
    residents, capture = _residents()
    found = unread_memory(residents, 1, capture=capture)
    assert isinstance(found, DeadMemory)
    assert found.share.value == pytest.approx(0.9 / 1.6)
    assert found.held_bytes.holds(562_500)
    assert 0 < found.held_bytes.low < found.held_bytes.high < 1_000_000
    assert found.horizon_ms == 60_000


def test_only_keys_that_the_capture_could_have_seen_are_judged() -> None:
    residents, capture = _residents(4_000)
    found = unread_memory(residents, 1, capture=capture.thin(0.2), spatial_rate=0.2)
    assert isinstance(found, DeadMemory)
    assert found.share.holds(0.9 / 1.6)


def test_without_a_capture_idle_times_stand_in_for_a_given_horizon_only() -> None:
    residents, _ = _residents()
    found = unread_memory(residents, 1, idle_from_ms=20_000)
    assert isinstance(found, DeadMemory)
    assert found.share.value == pytest.approx(200_000 / (120 * 3_000 + 280 * 1_000))
    assert "nobody can say" in str(unread_memory(residents, 1))


def test_expired_keys_weigh_what_keys_with_a_ttl_weigh() -> None:
    residents, _ = _residents()
    found = expired_memory(residents, 1, stale_share=0.1)
    assert isinstance(found, DeadMemory)
    assert found.held_bytes.value == pytest.approx(50_000)
    assert found.held_bytes.low < 50_000 < found.held_bytes.high
    assert "does not say" in str(expired_memory(residents, 1, stale_share=None))
    with pytest.raises(ValueError, match="within 0 to 1"):
        expired_memory(residents, 1, stale_share=2.0)


def test_unknown_sizes_make_shares_of_keys() -> None:
    residents, capture = _residents()
    unsized = Residents(residents.key, np.full(400, -1), residents.idle_ms, residents.ttl_ms, 1_000_000)
    found = unread_memory(unsized, 1, capture=capture)
    assert isinstance(found, DeadMemory)
    assert found.share.value == pytest.approx(0.3)


def test_a_longer_ttl_for_keys_in_use_alone_keeps_the_gain_of_hot_keys_and_little_of_cold_ones():
    def kept(rate_per_s, written_ms=60_000):
        rates, requests = np.array([0.0, rate_per_s]), np.array([0.0, 1.0])
        mixture = PopularityMixture(rates, requests, np.full(2, 1_000.0), 100.0, 600_000.0)
        return share_kept_by_use(mixture, written_ms, 600_000)

    assert kept(1.0) > 0.99
    assert 0.4 < kept(0.01) < 0.8
    assert kept(0.0005) < 0.05
    assert kept(1.0, written_ms=1_000) == 0.0
