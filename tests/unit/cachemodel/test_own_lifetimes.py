"""A cache whose prefixes live by different TTLs: what other sizes, TTLs and eviction policies give it."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cachewarden.cachemodel.curves import MemoryCurve, curve
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, PrefixEvidence, TtlStats
from cachewarden.cachemodel.levels import changed_ttls, own_lifetimes, with_lifetimes
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.ttl_model import gains_by_prefix
from cachewarden.cachemodel.whatif import Answer, Inquiry, Insufficient

from .shared_lru import Lived, Prefix, live, reads_of, requests

SECONDS, CAPTURE_FROM_MS, MEASURE_FROM_MS = 240, 160_000, 100_000
CAPACITY = 800_000
# Most lookups go to keys that expire soon, so that more memory gives little; most keys that are held never expire.
PREFIXES = [Prefix("page:", 6000, 0.7, 100, 300), Prefix("session:", 2500, 0.5, 200, 300, ttl_ms=5_000)]


@cache
def rows(ttl_ms: int = 5_000):
    return requests([replace(p, ttl_ms=ttl_ms) if p.ttl_ms else p for p in PREFIXES], SECONDS, seed=9)


@cache
def lived(capacity: float = CAPACITY, ttl_ms: int = 5_000) -> Lived:
    return live(rows(ttl_ms), capacity, MEASURE_FROM_MS)


def evidence(**changes: object) -> Evidence:
    now = lived()
    seconds = SECONDS - MEASURE_FROM_MS / 1000
    prefixes = tuple(
        PrefixEvidence(
            p.name,
            reads_of(rows(), p.name, CAPTURE_FROM_MS),
            now.reads[p.name] / sum(now.reads.values()),
            ttl_ms=p.ttl_ms or None,
        )
        for p in PREFIXES
    )
    values: dict[str, object] = {
        "lookups_per_s": sum(now.reads.values()) / seconds,
        "hit_ratio": now.hit_ratio,
        "maxmemory_bytes": CAPACITY,
        "used_memory_bytes": CAPACITY,
        "fixed_overhead_bytes": 0,
        "resident_keys": len(now.residents),
        "mean_entry_bytes": 300.0,
        "current": CacheConfiguration(CAPACITY),
        "ttl": TtlStats(0.3),
        "evicted_per_s": now.evicted / seconds,
        "trace": with_lifetimes(prefixes, {}),
        "capture_end_ms": SECONDS * 1000,
        "prefixes": prefixes,
    }
    return Evidence(**{**values, **changes})


@cache
def inquiry() -> Inquiry:
    return Inquiry(evidence(), 1)


def answer(**changes: object) -> Answer:
    (found,) = inquiry().ask([replace(CacheConfiguration(CAPACITY), **changes)])
    assert isinstance(found, Answer), found
    return found


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0])
def test_another_size_gives_what_a_replay_with_the_own_ttls_gives(factor: float):
    found, truth = answer(maxmemory_bytes=int(factor * CAPACITY)), lived(int(factor * CAPACITY)).hit_ratio
    assert found.hit_ratio.value == pytest.approx(truth, abs=0.015)
    assert found.hit_ratio.holds(truth)
    assert "each under its own TTL" in found.method


def test_unlimited_memory_is_not_worth_what_one_ttl_for_all_would_say():
    truth = lived(1e15).hit_ratio
    (single,) = Inquiry(evidence(prefixes=()), 1).ask([CacheConfiguration(0)])
    assert isinstance(single, Answer)
    assert single.hit_ratio.value > truth + 0.1
    # Prefixes without a TTL end with what the capture has not seen again, which a finite run has.
    assert answer(maxmemory_bytes=0).hit_ratio.value == pytest.approx(truth, abs=0.05)


def test_a_longer_ttl_of_one_prefix_is_asked_by_its_name():
    found = answer(prefix_ttls_ms=(("session:", 20_000),))
    truth = lived(CAPACITY, 20_000).hit_ratio
    assert found.hit_ratio.value == pytest.approx(truth, abs=0.02)
    assert found.hit_ratio.holds(truth)
    gains = gains_by_prefix(inquiry(), CacheConfiguration(CAPACITY), {"session:": 20_000, "page:": 1_000})
    assert not isinstance(gains, str)
    assert gains[-1].hit_ratio == found.hit_ratio


def test_the_curve_has_the_points_that_the_same_inquiry_answers_alone():
    made = curve(inquiry())
    assert isinstance(made, MemoryCurve)
    assert "each under its own TTL" in made.method
    for point in made.points:
        alone = answer(maxmemory_bytes=point.maxmemory_bytes)
        assert point.hit_ratio.value == pytest.approx(alone.hit_ratio.value, abs=0.005)


def test_a_cache_of_one_lifetime_is_told_as_ever_whatever_its_prefixes():
    alike = tuple(replace(p, ttl_ms=None) for p in evidence().prefixes)
    with_prefixes, without = (Inquiry(evidence(prefixes=p), 1) for p in (alike, ()))
    wanted = [CacheConfiguration(2 * CAPACITY)]
    assert with_prefixes.by_prefix is None
    assert with_prefixes.ask(wanted) == without.ask(wanted)
    (refused,) = without.ask([replace(wanted[0], prefix_ttls_ms=(("page:", 1000),))])
    assert isinstance(refused, Insufficient)


def test_too_few_accesses_of_most_lookups_are_a_reason_and_no_number():
    page, session = evidence().prefixes
    thin = replace(session, trace=session.trace.rows(slice(0, 100)))
    (found,) = Inquiry(evidence(prefixes=(page, thin)), 1).ask([CacheConfiguration(2 * CAPACITY)])
    assert isinstance(found, Insufficient)
    assert "different TTLs" in found.reason
    assert "`session:`" in found.reason


def test_what_most_keys_live_by_does_not_make_all_of_them_volatile():
    mostly = evidence(current=CacheConfiguration(CAPACITY, ttl_ms=5_000), ttl=TtlStats(0.6))
    (found,) = Inquiry(mostly, 1).ask([CacheConfiguration(CAPACITY, "volatile-lru", ttl_ms=5_000)])
    assert isinstance(found, Insufficient)


def test_eviction_policies_are_compared_under_the_own_ttl_of_each_row():
    page, session = (AccessTrace.of([t, t + 10], [t, t + 1], ttl_ms=ttl) for t, ttl in ((0, 0), (5, [0, 70])))
    prefixes = (PrefixEvidence("page:", page, 0.5), PrefixEvidence("session:", session, 0.5, ttl_ms=60))
    assert with_lifetimes(prefixes, {}).ttl_ms.tolist() == [0, 60, 0, 70]
    assert with_lifetimes(prefixes, {"session:": None, "page:": 9}).ttl_ms.tolist() == [9, 0, 9, 0]
    own = own_lifetimes(evidence(current=CacheConfiguration(CAPACITY, ttl_ms=5_000)))
    assert own is not None
    assert own.current.ttl_ms is None
    assert np.unique(own.trace.ttl_ms).tolist() == [0, 5_000]
    found = answer(eviction_policy="allkeys-random")
    assert "eviction policy by" in found.method


def test_an_unchanged_ttl_of_the_whole_cache_leaves_each_prefix_its_own():
    now = CacheConfiguration(CAPACITY, ttl_ms=5_000)
    known = evidence(current=now)
    assert changed_ttls(known, replace(now, maxmemory_bytes=2 * CAPACITY)) == {}
    assert changed_ttls(known, replace(now, ttl_ms=None)) == {"page:": None, "session:": None}
    assert changed_ttls(known, replace(now, prefix_ttls_ms=(("session:", 9_000),))) == {"session:": 9_000}
