"""Curves per prefix of a shared cache, against an exact LRU that is simulated key by key."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, PrefixEvidence, TtlStats
from cachewarden.cachemodel.prefix_curves import SharedCache
from cachewarden.estimate import Estimate

from .shared_lru import Lived, Prefix, live, reads_of, requests

SECONDS, CAPTURE_FROM_MS, MEASURE_FROM_MS = 300, 180_000, 120_000
CAPACITY = 2_000_000
PREFIXES = [
    Prefix("page:", 8000, 0.9, 300, 200),
    Prefix("session:", 3000, 0.5, 100, 400, ttl_ms=20_000),
    Prefix("once:", 0, None, 60, 400),
]


@cache
def rows(ttl_ms: int = 20_000):
    prefixes = [replace(p, ttl_ms=ttl_ms) if p.ttl_ms else p for p in PREFIXES]
    return requests(prefixes, SECONDS, seed=4)


@cache
def lived(capacity: float = CAPACITY, ttl_ms: int = 20_000) -> Lived:
    return live(rows(ttl_ms), capacity, MEASURE_FROM_MS)


def measured(name: str, *, measures: bool = True) -> PrefixEvidence:
    now = lived()
    total, trace = sum(now.held_bytes.values()), reads_of(rows(), name, CAPTURE_FROM_MS)
    held, ratio = now.held_bytes[name] / total, now.hit_ratio_of(name)
    residents = [r[0] for r in now.residents]
    keys = residents.count(name) / len(residents)
    return PrefixEvidence(
        name,
        trace,
        now.reads[name] / sum(now.reads.values()),
        Estimate(ratio, ratio, ratio) if measures else None,
        Estimate(keys, keys, keys) if measures else None,
        Estimate(held, held, held) if measures else None,
        ttl_ms=next(p.ttl_ms for p in PREFIXES if p.name == name) or None,
    )


def evidence(**changes: object) -> Evidence:
    now = lived()
    seconds = SECONDS - MEASURE_FROM_MS / 1000
    values: dict[str, object] = {
        "lookups_per_s": sum(now.reads.values()) / seconds,
        "hit_ratio": now.hit_ratio,
        "maxmemory_bytes": CAPACITY,
        "used_memory_bytes": CAPACITY,
        "fixed_overhead_bytes": 0,
        "resident_keys": len(now.residents),
        "mean_entry_bytes": 300.0,
        "current": CacheConfiguration(CAPACITY),
        "ttl": TtlStats(0.2),
        "evicted_per_s": now.evicted / seconds,
        "capture_end_ms": SECONDS * 1000,
    }
    return Evidence(**{**values, **changes})


@cache
def shared(*, measures: bool = True) -> SharedCache:
    return SharedCache(evidence(prefixes=tuple(measured(p.name, measures=measures) for p in PREFIXES)), 1)


@pytest.mark.parametrize("measures", [True, False])
def test_each_prefix_is_told_what_it_has_in_a_smaller_and_a_larger_cache(measures: bool):
    for found in shared(measures=measures).curves():
        assert found.reason == ""
        for point in found.points:
            if point.maxmemory_bytes / CAPACITY not in (0.25, 0.75, 2.0):
                continue
            truth = lived(point.maxmemory_bytes)
            assert point.hit_ratio.value == pytest.approx(truth.hit_ratio_of(found.pattern), abs=0.01)
            assert point.held_bytes == pytest.approx(
                truth.held_bytes[found.pattern], rel=0.03, abs=0.01 * point.maxmemory_bytes
            )


def test_what_is_measured_stands_at_the_present_size():
    for found in shared().curves():
        now = next(p for p in found.points if p.maxmemory_bytes == CAPACITY)
        assert now.hit_ratio.value == pytest.approx(lived().hit_ratio_of(found.pattern))
        assert now.held_bytes == pytest.approx(lived().held_bytes[found.pattern], rel=0.02)


def test_a_prefix_that_nobody_reads_again_has_the_fewest_hits_per_mib_and_is_named():
    *useful, polluter = shared().curves()
    assert polluter.pattern == "once:"
    assert "of the memory and gives" in polluter.note
    assert [p.note for p in useful] == ["", ""]
    assert polluter.marginal_hits_per_s.value == pytest.approx(0.0, abs=1.0)
    pages = next(p for p in useful if p.pattern == "page:")
    assert pages.marginal_hits_per_s.low > 0


def test_keys_that_live_to_their_ttl_gain_nothing_from_memory_but_from_the_ttl():
    sessions = next(p for p in shared().curves() if p.pattern == "session:")
    assert sessions.residence_ms == 20_000
    gain = shared().ttl_gain("session:", 60_000)
    truth = lived(CAPACITY, 60_000).hit_ratio_of("session:") - lived().hit_ratio_of("session:")
    assert isinstance(gain, Estimate)
    assert gain.value == pytest.approx(truth, abs=0.01)
    assert gain.holds(truth)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.05, 8.0), min_size=2, max_size=4))
def test_bytes_of_all_prefixes_add_up_and_no_hit_ratio_falls_with_memory(factors: list[float]):
    cache_ = shared()
    before = None
    for factor in sorted(factors):
        division = cache_._divide(factor * CAPACITY)
        assert division.held_bytes.sum(axis=1) == pytest.approx(factor * CAPACITY, rel=1e-3)
        if before is not None:
            assert np.all(division.hits >= before - 1e-9)
        before = division.hits


def test_points_of_all_prefixes_at_one_size_add_up_to_the_memory_for_entries():
    curves = shared().curves()
    for points in zip(*(c.points for c in curves), strict=True):
        assert len({p.maxmemory_bytes for p in points}) == 1
        assert sum(p.held_bytes for p in points) == pytest.approx(points[0].maxmemory_bytes, rel=1e-3)


def test_a_prefix_with_too_few_accesses_says_so_and_keeps_its_share_of_the_memory():
    few = measured("once:")
    thin = replace(few, trace=few.trace.rows(slice(0, 100)))
    found = SharedCache(evidence(prefixes=(measured("page:"), measured("session:"), thin)), 1)
    poor = next(c for c in found.curves() if c.pattern == "once:")
    assert "100 captured accesses are too few" in poor.reason
    assert poor.points == ()
    assert found.fixed_share == pytest.approx(few.bytes_share.value)
    rich = [c for c in found.curves() if c.points]
    for points in zip(*(c.points for c in rich), strict=True):
        held = sum(p.held_bytes for p in points)
        assert held == pytest.approx((1 - found.fixed_share) * points[0].maxmemory_bytes, rel=1e-3)


def test_under_lfu_measured_figures_stand_and_curves_are_refused():
    lfu = CacheConfiguration(CAPACITY, "allkeys-lfu")
    (found,) = SharedCache(evidence(current=lfu, prefixes=(measured("page:"),)), 1).curves()
    assert "`allkeys-lfu`" in found.reason
    assert found.points == ()
    assert found.hit_ratio is not None
    assert found.hits_per_s_per_mib is not None


def test_a_cache_with_room_to_spare_gains_nothing_per_prefix_either():
    roomy = evidence(
        maxmemory_bytes=4 * CAPACITY,
        current=CacheConfiguration(4 * CAPACITY),
        evicted_per_s=0.0,
        prefixes=tuple(measured(p.name) for p in PREFIXES),
    )
    for found in SharedCache(roomy, 1).curves():
        assert found.marginal_hits_per_s == Estimate(0.0, 0.0, 0.0)
        assert max(p.maxmemory_bytes for p in found.points) == CAPACITY


def test_an_unknown_prefix_has_no_gain():
    assert "not known" in shared().ttl_gain("nobody:", 1000)
