"""Misses under a TTL, what longer ones give, expiries that come together, memory that nobody reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.dead_memory import DeadMemory, Residents, expired_memory, unread_memory
from cachewarden.cachemodel.eviction import EvictionConfig, replay
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.cachemodel.ttl_model import TtlMisses, gains_of_longer_ttls, split_misses, ttl_ladder
from cachewarden.cachemodel.ttl_stampede import (
    Jitter,
    Stampede,
    jitter_below,
    peak_share_with_jitter,
    stampede_risk,
)

from .workloads import zipf_requests


def _reads(*times: int, key: int = 1) -> AccessTrace:
    return AccessTrace.of(list(times), [key] * len(times))


def test_a_key_is_gone_from_the_millisecond_of_its_deadline_on() -> None:
    assert split_misses(_reads(0, 99), ttl_ms=100).hits == 1
    assert split_misses(_reads(0, 100), ttl_ms=100) == TtlMisses(2, 0, 1, 1, 0, 0)


def test_a_ttl_counts_from_the_load_and_not_from_the_last_read() -> None:
    # Loaded at 0, read at 60, expired at 100, loaded again at 120 and read at 180.
    assert split_misses(_reads(0, 60, 120, 180), ttl_ms=100) == TtlMisses(4, 2, 1, 1, 0, 0)


def test_whatever_comes_first_is_the_cause_of_the_miss() -> None:
    assert split_misses(_reads(0, 500), ttl_ms=100, eviction_age_ms=200).expired == 1
    assert split_misses(_reads(0, 500), ttl_ms=300, eviction_age_ms=200).evicted == 1
    assert split_misses(_reads(0, 150, 300, 450), eviction_age_ms=200, ttl_ms=0).hits == 3


def test_a_write_gives_a_new_life_and_a_delete_ends_it() -> None:
    trace = AccessTrace.of([0, 90, 180, 200, 210], [1] * 5, [Op.READ, Op.WRITE, Op.READ, Op.DELETE, Op.READ])
    assert split_misses(trace, ttl_ms=100) == TtlMisses(3, 1, 1, 0, 0, 1)


def test_the_ttl_of_the_trace_is_used_where_none_is_given() -> None:
    assert split_misses(_reads(0, 500).with_ttl(100)).expired == 1
    assert split_misses(_reads(0, 500)).hits == 1


def test_reads_before_the_count_begins_warm_the_cache_only() -> None:
    assert split_misses(_reads(0, 50, 60), ttl_ms=100, count_from_ms=55) == TtlMisses(1, 1, 0, 0, 0, 0)


@pytest.mark.parametrize("ttl_ms", [2_000, 20_000])
def test_without_eviction_the_split_is_that_of_the_replay_of_redis(ttl_ms: int) -> None:
    trace = zipf_requests(2_000, 0.9, 10, seed=4).with_ttl(ttl_ms)
    found = split_misses(trace)
    played = replay(trace, EvictionConfig(capacity_bytes=1 << 40, eviction_policy="allkeys-lru"))
    assert (found.hits, found.compulsory, found.expired) == (played.hits, played.cold, played.expired_misses)


TRACES = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 5), st.integers(0, 2)), max_size=60).map(
    lambda rows: AccessTrace.of(
        [t for t, _, _ in sorted(rows)], [k for _, k, _ in sorted(rows)], [o for _, _, o in sorted(rows)]
    )
)


@settings(deadline=None)
@given(TRACES, st.integers(0, 500), st.one_of(st.none(), st.integers(0, 500)))
def test_hits_and_causes_add_up_to_the_reads(trace: AccessTrace, ttl_ms: int, age_ms: int | None) -> None:
    found = split_misses(trace, ttl_ms=ttl_ms, eviction_age_ms=age_ms)
    assert found.reads == int((trace.op == Op.READ).sum())
    assert found.hits + found.compulsory + found.expired + found.evicted + found.deleted == found.reads
    unbounded = split_misses(trace, ttl_ms=0)
    assert unbounded.hits >= found.hits
    assert unbounded.expired == unbounded.evicted == 0
    assert unbounded.compulsory == found.compulsory


@given(st.integers(1, 10**7), st.integers(1, 10**9))
def test_a_ladder_rises_and_ends_at_what_is_permitted(present_ms: int, longest_ms: int) -> None:
    ladder = ttl_ladder(present_ms, longest_ms)
    assert list(ladder) == sorted(set(ladder))
    assert all(present_ms < ttl_ms <= longest_ms for ttl_ms in ladder)
    assert not ladder or ladder[-1] == longest_ms
    assert bool(ladder) == (present_ms < longest_ms)


def test_longer_ttls_give_what_a_replay_under_them_gives_and_never_pass_the_staleness() -> None:
    trace = zipf_requests(2_000, 0.9, 10, seed=4)
    gains = gains_of_longer_ttls(trace, 2_000, 30_000, seed=1)
    assert not isinstance(gains, str)
    assert [g.ttl_ms for g in gains] == [4_000, 8_000, 16_000, 30_000]
    now, then = split_misses(trace, ttl_ms=2_000), split_misses(trace, ttl_ms=30_000)
    assert gains[-1].misses == then
    assert gains[-1].hit_ratio_gain.value == pytest.approx((then.hits - now.hits) / now.reads)
    assert gains[-1].hit_ratio_gain.low > 0
    assert gains_of_longer_ttls(trace, 2_000, 30_000, seed=1, ladder=(60_000,)) == (
        "a TTL of 2000 ms is as long as its owner permits (30000 ms)"
    )


def test_a_ttl_as_long_as_permitted_or_a_capture_without_reads_gives_a_reason() -> None:
    assert "as long as its owner permits" in str(gains_of_longer_ttls(_reads(0), 100, 100, seed=1))
    writes = AccessTrace.of([0, 1], [1, 2], [Op.WRITE, Op.WRITE])
    assert "no reads" in str(gains_of_longer_ttls(writes, 100, 200, seed=1))


def test_no_gain_in_the_sample_is_not_told_as_certainty() -> None:
    once = AccessTrace.of(np.arange(100), np.arange(100))
    gains = gains_of_longer_ttls(once, 100, 200, seed=1)
    assert not isinstance(gains, str)
    assert gains[0].hit_ratio_gain.low < gains[0].hit_ratio_gain.value == 0.0 < gains[0].hit_ratio_gain.high


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
