"""The eviction age of simulated caches against its estimate from idle times."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from agents.eviction_age import eviction_age
from tests.unit.agents.looks import keyspace


def _sampled_lru(keys, times, capacity, rng, candidates):
    """Play a stream; evict the most idle of `candidates` random keys (0 = exact LRU). Returns residents' last use, ages, evictions/s."""
    used, order, place, ages = OrderedDict(), [], {}, []
    for key, now in zip(keys.tolist(), times.tolist(), strict=True):
        if key in used:
            used.move_to_end(key)
        else:
            if len(used) >= capacity:
                victim = next(iter(used))
                if candidates:
                    victim = min(
                        (order[int(rng.random() * len(order))] for _ in range(candidates)), key=used.__getitem__
                    )
                ages.append((now, now - used.pop(victim)))
                hole = place.pop(victim)
                last = order.pop()
                if hole < len(order):
                    order[hole], place[last] = last, hole
            place[key] = len(order)
            order.append(key)
        used[key] = now
    end = int(times[-1])
    recent = [age for now, age in ages if now >= end - 30_000]
    return np.array([end - at for at in used.values()]), float(np.mean(recent)), len(recent) / 30.0


@pytest.mark.parametrize(("candidates", "tolerance"), [(0, 0.1), (10, 0.35)])
@pytest.mark.parametrize("skew", [0.0, 0.9])
def test_the_age_of_a_simulated_cache_is_estimated_from_a_thousand_keys(candidates, tolerance, skew):
    rng = np.random.default_rng(7)
    n, universe, capacity = 60_000, 6_000, 2_000
    popularity = np.arange(1, universe + 1) ** -skew
    keys = rng.choice(universe, size=n, p=popularity / popularity.sum())
    times = np.sort(rng.integers(0, 120_000, n))
    idle, truth, evicted_per_s = _sampled_lru(keys, times, capacity, rng, candidates)
    sampled = rng.choice(idle, 1_000, replace=False)
    got = eviction_age(keyspace(sampled), "allkeys-lru", evicted_per_s, capacity, 0)
    assert got.age_ms == pytest.approx(truth, rel=tolerance)


def test_nothing_evicted_means_no_eviction_age():
    assert eviction_age(keyspace([1_000] * 100), "allkeys-lru", 0.0, 100, 0).age_ms is None


@pytest.mark.parametrize("policy", ["allkeys-lfu", "allkeys-random", "volatile-ttl", "noeviction", None])
def test_other_eviction_policies_have_no_age_of_this_kind(policy):
    got = eviction_age(keyspace([1_000] * 100), policy, 5.0, 100, 100)
    assert got.age_ms is None
    assert "idle time" in got.reason


def test_idle_times_left_over_from_lfu_are_not_believed():
    got = eviction_age(keyspace([6_970_000_000] * 100), "allkeys-lru", 50.0, 10_000, 0)
    assert got.age_ms is None
    assert "contradict" in got.reason


def test_volatile_lru_looks_at_keys_with_a_ttl_only():
    idle = [500_000] * 100 + list(range(0, 10_000, 100))
    ttls = [-1] * 100 + [60_000] * 100
    got = eviction_age(keyspace(idle, ttl_ms=ttls), "volatile-lru", 100.0, 2_000, 1_000)
    assert 9_500 <= got.age_ms <= 10_000


def test_unknown_idle_times_give_a_reason():
    assert "idle time" in eviction_age(keyspace([-1] * 500), "allkeys-lru", 5.0, 100, 0).reason
