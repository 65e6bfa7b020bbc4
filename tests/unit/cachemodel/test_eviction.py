"""The replay against hand-worked counts, and against what must hold for any trace."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.eviction import (
    EvictionConfig,
    ResidentSet,
    belady,
    exact_lru,
    replay,
)
from cachewarden.cachemodel.eviction_bounds import stack_distances
from cachewarden.cachemodel.eviction_state import BYTES_PER_KEY, empty_state
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.knobs import EVICTION_POLICIES

from .workloads import letters

# Redis makes room only when it is above the limit, before the write, so a limit of 1 holds two entries of one byte.
TWO_KEYS = 1
THREE_KEYS = 2
# Hits and evictions.
WANDERING = {"allkeys-lru": (12_663, 26_836), "allkeys-lfu": (14_922, 24_577), "allkeys-random": (11_638, 27_861)}


def counts(text: str, config: EvictionConfig, step_ms: int = 1000, ttl_ms: int = 0) -> tuple[int, int, int]:
    result = replay(letters(text, step_ms, ttl_ms), config)
    return result.hits, result.evicted, result.refused


def test_lru_evicts_the_key_that_was_idle_longest() -> None:
    # a b a (hit) c evicts b, a (hit), b evicts c
    assert counts("aba cab", EvictionConfig(TWO_KEYS, "allkeys-lru")) == (2, 2, 0)


def test_lru_cannot_tell_ages_apart_within_one_tick_of_its_clock() -> None:
    # The load of c should evict b, and does at one step a second; within one second a and b look equally idle.
    assert replay(letters("abaca", 1000), EvictionConfig(TWO_KEYS, "allkeys-lru")).hits == 2
    assert replay(letters("abaca", 1), EvictionConfig(TWO_KEYS, "allkeys-lru")).hits == 1
    assert replay(letters("abaca", 1), EvictionConfig(TWO_KEYS, "allkeys-lru", lru_clock_resolution_ms=1)).hits == 2


def test_lfu_keeps_the_key_that_was_used_most() -> None:
    # Log factor 0 counts every access. a has 8, b then c come as new keys with 5: each pushes the other out, a stays.
    assert counts("aaaa bcbc a", EvictionConfig(TWO_KEYS, "allkeys-lfu", lfu_log_factor=0)) == (4, 3, 0)


def test_lfu_forgets_by_minutes() -> None:
    # After 20 minutes the counter of a has decayed to 0, so a goes before the new keys b and c, and b is still there.
    trace = AccessTrace.of([0, 1, 2, 1_200_000, 1_200_001, 1_200_002], [1, 1, 1, 2, 3, 2], None, 1)
    forgetful = replay(trace, EvictionConfig(TWO_KEYS, "allkeys-lfu", lfu_log_factor=0, lfu_decay_time_min=1))
    assert forgetful.hits == 3
    faithful = replay(trace, EvictionConfig(TWO_KEYS, "allkeys-lfu", lfu_log_factor=0, lfu_decay_time_min=0))
    assert faithful.hits == 2


def test_noeviction_refuses_what_does_not_fit_and_keeps_the_rest() -> None:
    result = replay(letters("abc abc"), EvictionConfig(TWO_KEYS, "noeviction"))
    assert (result.hits, result.refused, result.evicted) == (2, 2, 0)
    assert (result.cold, result.refused_misses) == (3, 1)


@pytest.mark.parametrize("eviction_policy", ["volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl"])
def test_a_volatile_policy_without_ttls_behaves_as_noeviction(eviction_policy: str) -> None:
    trace = letters("abcd abcd dcba")
    assert replay(trace, EvictionConfig(TWO_KEYS, eviction_policy)) == replay(
        trace, EvictionConfig(TWO_KEYS, "noeviction")
    )


def test_volatile_lru_evicts_only_keys_with_a_ttl() -> None:
    # a has no TTL and is the oldest; b and c have one.
    trace = AccessTrace.of(np.arange(5) * 1000, [1, 2, 3, 1, 2], None, 1, [0, 90_000, 90_000, 0, 90_000])
    result = replay(trace, EvictionConfig(TWO_KEYS, "volatile-lru"))
    assert (result.hits, result.evicted) == (1, 2)


def test_volatile_ttl_evicts_what_expires_first() -> None:
    # b expires before a although a is older.
    trace = AccessTrace.of(np.arange(5) * 1000, [1, 2, 3, 1, 2], None, 1, [90_000, 10_000, 90_000, 90_000, 90_000])
    result = replay(trace, EvictionConfig(TWO_KEYS, "volatile-ttl"))
    assert result.hits == 1
    assert result.evicted_misses == 1


@pytest.mark.parametrize("eviction_policy", ["allkeys-random", "volatile-random"])
def test_random_eviction_makes_room_for_every_load(eviction_policy: str) -> None:
    result = replay(letters("abcd" * 50, ttl_ms=10**9), EvictionConfig(TWO_KEYS, eviction_policy))
    assert result.refused == 0
    assert result.evicted == result.misses - 2
    assert result.resident_keys == 2


def test_a_key_expires_after_its_ttl_and_not_before() -> None:
    # Loaded at 0 with 2 s: still there at 2000 ms (Redis expires when now is later), gone at 3000 ms.
    assert replay(letters("aaa", 1000, 2000), EvictionConfig(None)).hits == 2
    late = replay(letters("aaaa", 1000, 2000), EvictionConfig(None))
    assert (late.hits, late.expired, late.expired_misses) == (2, 1, 1)


def test_active_expiry_frees_memory_that_nobody_asks_for() -> None:
    trace = AccessTrace.of([*range(100), 60_000, 60_100, 60_200], [*range(100), 500, 501, 502], None, 1, 1000)
    result = replay(trace, EvictionConfig(None))
    assert result.expired == 100
    assert result.resident_keys == 3


def test_a_deleted_key_misses_for_that_reason() -> None:
    result = replay(letters("a -a a"), EvictionConfig(None))
    assert (result.hits, result.cold, result.deleted_misses) == (0, 1, 1)


def test_a_write_makes_a_later_read_hit_and_is_no_read_itself() -> None:
    result = replay(letters("A a"), EvictionConfig(None))
    assert (result.reads, result.hits) == (1, 1)


def test_a_larger_value_takes_the_room_of_several_small_ones() -> None:
    trace = AccessTrace.of(np.arange(6) * 1000, [1, 2, 3, 4, 5, 4], None, [1, 1, 1, 10, 1, 10])
    result = replay(trace, EvictionConfig(3, "allkeys-lru"))
    # Key 4 overshoots; the load of key 5 then evicts all older ones and key 4 itself.
    assert (result.evicted, result.hits) == (4, 0)


def test_counting_begins_where_it_is_told_to() -> None:
    result = replay(letters("abab"), EvictionConfig(None), measure_from_ms=2000)
    assert (result.reads, result.hits, result.cold) == (2, 2, 0)


def test_a_primed_cache_hits_at_once_and_evicts_by_the_ages_it_was_given() -> None:
    primed = ResidentSet(
        np.array([ord("a"), ord("b")], np.uint64), np.array([1, 1]), np.array([9000, 1000]), np.array([0, 0])
    )
    result = replay(letters("cba"), EvictionConfig(TWO_KEYS, "allkeys-lru"), primed)
    # c evicts a, the older one; b hits; a is then a miss because it was evicted.
    assert (result.hits, result.evicted_misses) == (1, 1)


def test_the_same_seed_gives_the_same_result_and_another_seed_another() -> None:
    trace = AccessTrace.of(np.arange(20_000), np.random.default_rng(1).zipf(1.3, 20_000) % 5000, None, 1)
    config = EvictionConfig(200, "allkeys-random")
    assert replay(trace, config, seed=1) == replay(trace, config, seed=1)
    assert replay(trace, config, seed=1) != replay(trace, config, seed=2)


def test_exact_lru_counts_hits_at_all_sizes_from_one_pass() -> None:
    # Stack distances of a b c a b b c: - - - 3 3 1 3
    assert list(stack_distances(letters("abcabbc"))) == [0, 0, 0, 3, 3, 1, 3]
    assert list(exact_lru(letters("abcabbc"), [0, 1, 2, 3, 99])) == [0, 1, 1, 4, 4]


def test_belady_keeps_what_is_used_soonest() -> None:
    # With one place, only the repeated b can hit; with two, a or c as well.
    assert belady(letters("abbcac"), 1) == 2
    assert belady(letters("abbcac"), 2) == 3


def keys_strategy() -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, 12), min_size=1, max_size=120)


@given(keys_strategy())
@settings(max_examples=60, deadline=None)
def test_a_larger_exact_lru_never_hits_less(keys: list[int]) -> None:
    hits = exact_lru(AccessTrace.of(np.arange(len(keys)), keys), np.arange(14))
    assert np.all(np.diff(hits) >= 0)


@given(keys_strategy(), st.integers(1, 8), st.sampled_from(EVICTION_POLICIES), st.integers(1, 10))
@settings(max_examples=100, deadline=None)
def test_no_eviction_policy_beats_belady_and_every_miss_has_one_cause(
    keys: list[int], capacity: int, eviction_policy: str, samples: int
) -> None:
    trace = AccessTrace.of(np.arange(len(keys)) * 1000, keys, None, 1, 10**9)
    result = replay(trace, EvictionConfig(capacity - 1, eviction_policy, samples))
    assert result.hits <= belady(trace, capacity)
    assert result.misses == result.cold + result.evicted_misses + result.refused_misses
    assert result.resident_keys == result.resident_bytes <= capacity


@given(keys_strategy(), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_sampling_all_keys_with_a_fine_clock_is_exact_lru(keys: list[int], capacity: int) -> None:
    trace = AccessTrace.of(np.arange(len(keys)), keys, None, 1)
    # A pool entry may be stale in Redis; with one candidate per round there is none left over to be stale.
    result = replay(trace, EvictionConfig(capacity - 1, "allkeys-lru", 64, lru_clock_resolution_ms=1))
    assert abs(result.hits - int(exact_lru(trace, capacity))) <= 0.25 * len(keys) + 2


@pytest.mark.parametrize(
    "bad",
    [
        {"capacity_bytes": -1},
        {"capacity_bytes": 1, "eviction_policy": "allkeys-fifo"},
        {"capacity_bytes": 1, "maxmemory_samples": 0},
        {"capacity_bytes": 1, "lfu_log_factor": -1},
    ],
)
def test_a_configuration_out_of_range_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"`|must"):
        EvictionConfig(**bad)  # type: ignore[arg-type]


def test_the_state_of_a_replay_takes_the_stated_bytes_for_each_key() -> None:
    table, expires, lists, _, _ = empty_state(1000, seed=1)
    assert table.nbytes + expires.nbytes + lists.nbytes == 1000 * BYTES_PER_KEY


def test_the_pool_of_candidates_may_wander_through_all_its_room() -> None:
    # Counts of the replay as it was when the pool lay still; 20,000 evictions move it against both walls many times.
    rng = np.random.default_rng(7)
    keys = (rng.random(40_000) ** 3 * 5000).astype(np.uint64)
    trace = AccessTrace.of(np.arange(40_000) * 10, keys, None, 1)
    found = [replay(trace, EvictionConfig(500, eviction_policy)) for eviction_policy in WANDERING]
    assert [(one.hits, one.evicted) for one in found] == list(WANDERING.values())
