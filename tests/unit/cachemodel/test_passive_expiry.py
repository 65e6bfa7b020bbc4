"""What sampled residents tell where keys expire, and of single key patterns."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cachewarden.cachemodel.eviction import EvictionConfig, index, replay_looks
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence, ResidentSample, TtlStats
from cachewarden.cachemodel.passive_patterns import PatternCurve, passive_curves_by_pattern
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.cachemodel.whatif import Answer, Insufficient, evaluate
from cachewarden.observation import KeyspaceSample, PatternStats

from .workloads import zipf_requests

LOOKUPS_PER_S = 200
FROM_MS, PROBE_MS = 600_000, 1_200_500
TRACE = zipf_requests(20_000, 0.9, 1300, seed=7, lookups_per_s=LOOKUPS_PER_S)
TTL_MS = 120_000
ROOMY = 10_000_000
TIGHT = 500_000


@cache
def looks(capacity: int, ttl_ms: int):
    config = EvictionConfig(capacity, unknown_entry_bytes=100)
    return replay_looks(index(TRACE.with_ttl(ttl_ms)), config, [FROM_MS, PROBE_MS])


def hit_ratio(capacity: int, ttl_ms: int) -> float:
    before, after = (look.counts for look in looks(capacity, ttl_ms))
    return (after.hits - before.hits) / (after.reads - before.reads)


def probed(capacity: int, **changes: object) -> Evidence:
    before, after = looks(capacity, TTL_MS)
    residents = after.residents
    chosen = np.random.default_rng(3).choice(len(residents.key), min(1000, len(residents.key)), replace=False)
    seconds = (PROBE_MS - FROM_MS) / 1000
    given = Evidence(
        lookups_per_s=LOOKUPS_PER_S,
        hit_ratio=hit_ratio(capacity, TTL_MS),
        maxmemory_bytes=capacity,
        used_memory_bytes=after.counts.resident_bytes,
        fixed_overhead_bytes=0,
        resident_keys=len(residents.key),
        mean_entry_bytes=100,
        current=CacheConfiguration(capacity, ttl_ms=TTL_MS),
        sampled=ResidentSample(
            residents.idle_ms[chosen],
            residents.size_bytes[chosen],
            residents.remaining_ttl_ms[chosen],
            np.full(len(chosen), -1, np.int32),
        ),
        ttl=TtlStats(1.0),
        evicted_per_s=(after.counts.evicted - before.counts.evicted) / seconds,
        expired_per_s=(after.counts.expired - before.counts.expired) / seconds,
        window_parts=((40_000, 12_000), (40_000, 12_050), (40_000, 11_990)),
    )
    return replace(given, **changes)


def asked(given: Evidence, **more: int) -> Answer | Insufficient:
    (found,) = evaluate(given, [replace(given.current, **more)], seed=1)
    return found


def refusal(given: Evidence) -> str:
    found = asked(given, ttl_ms=2 * TTL_MS)
    assert isinstance(found, Insufficient), found
    return found.reason


@pytest.mark.parametrize("ttl_ms", [60_000, 240_000])
def test_another_ttl_is_told_where_keys_only_expire(ttl_ms: int) -> None:
    found = asked(probed(ROOMY), ttl_ms=ttl_ms)
    assert isinstance(found, Answer)
    assert found.hit_ratio.value == pytest.approx(hit_ratio(ROOMY, ttl_ms), abs=0.02)
    assert found.hit_ratio.holds(hit_ratio(ROOMY, ttl_ms))
    assert any("100% expire" in note for note in found.notes)


def test_more_memory_gives_nothing_where_keys_only_expire() -> None:
    found = asked(probed(ROOMY), maxmemory_bytes=2 * ROOMY)
    assert isinstance(found, Answer)
    assert found.change.value == 0.0


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_other_memory_is_told_where_keys_expire_and_are_evicted(factor: float) -> None:
    found = asked(probed(TIGHT), maxmemory_bytes=int(factor * TIGHT))
    assert isinstance(found, Answer)
    truth = hit_ratio(int(factor * TIGHT), TTL_MS)
    assert found.hit_ratio.value == pytest.approx(truth, abs=0.02)
    assert found.hit_ratio.holds(truth)


def changed(given: Evidence, **columns: object) -> Evidence:
    return replace(given, sampled=replace(given.sampled, **columns))


def test_keys_that_expire_without_a_sample_of_ttls_tell_nothing() -> None:
    given = probed(ROOMY)
    assert "PTTL" in refusal(changed(given, ttl_ms=np.full(len(given.sampled), -1)))


def test_some_keys_with_a_ttl_and_some_without_tell_nothing() -> None:
    assert "50%" in refusal(probed(ROOMY, ttl=TtlStats(0.5)))


def test_an_unknown_ttl_says_how_to_learn_it() -> None:
    given = probed(ROOMY, current=CacheConfiguration(ROOMY))
    found = asked(given, maxmemory_bytes=ROOMY // 100)
    assert isinstance(found, Insufficient)
    assert "capture" in found.reason


def test_several_ttls_are_noticed_by_the_long_and_by_the_short_ones() -> None:
    given = probed(ROOMY)
    sample = given.sampled
    longer = sample.ttl_ms.copy()
    longer[:50] *= 10
    assert "several TTLs" in refusal(changed(given, ttl_ms=longer))
    shorter = sample.ttl_ms.copy()
    shorter[:500] //= 10
    assert "live by several" in refusal(changed(given, ttl_ms=shorter))


def test_a_ttl_that_every_access_renews_is_noticed() -> None:
    given = probed(ROOMY)
    assert "renewed" in refusal(changed(given, ttl_ms=TTL_MS - given.sampled.idle_ms))


def test_what_expires_must_have_been_counted() -> None:
    assert "counted" in refusal(probed(ROOMY, evicted_per_s=None))


# Two patterns in one cache: one with a hot set, one whose keys hardly come again.
HOT, FLAT = "hot:", "flat:"


@cache
def shared() -> tuple[AccessTrace, AccessTrace, AccessTrace]:
    hot = zipf_requests(10_000, 1.0, 1300, seed=1, lookups_per_s=150)
    flat = zipf_requests(30_000, 0.4, 1300, seed=2, lookups_per_s=50)
    flat = replace(flat, key=mix(flat.key + np.uint64(1)))
    order = np.argsort(np.concatenate([hot.time_ms, flat.time_ms]), kind="stable")
    both = AccessTrace.of(
        np.concatenate([hot.time_ms, flat.time_ms])[order], np.concatenate([hot.key, flat.key])[order]
    )
    return hot, flat, both


def alone(trace: AccessTrace, keys: int) -> float:
    before, after = (look.counts for look in replay_looks(index(trace), EvictionConfig(keys), [FROM_MS, PROBE_MS]))
    return (after.hits - before.hits) / (after.reads - before.reads)


def by_pattern(hot_share: float | None) -> dict[str, PatternCurve | str]:
    _, flat, both = shared()
    before, after = replay_looks(index(both), EvictionConfig(5000), [FROM_MS, PROBE_MS])
    residents, reads = after.residents, after.counts.reads - before.counts.reads
    chosen = np.random.default_rng(5).choice(len(residents.key), 2000, replace=False)
    given = probed(TIGHT)
    unknown = np.full(2000, -1)
    sample = KeyspaceSample(
        key=residents.key[chosen],
        idle_ms=residents.idle_ms[chosen],
        frequency=unknown.astype(np.int32),
        size_bytes=np.full(2000, 1),
        ttl_ms=unknown,
        pattern=np.where(np.isin(residents.key[chosen], flat.key), 1, 0).astype(np.int32),
        encoding=unknown.astype(np.int32),
        patterns=(HOT, FLAT),
        encodings=(),
    )
    evidence = replace(
        given,
        hit_ratio=(after.counts.hits - before.counts.hits) / reads,
        maxmemory_bytes=5000,
        used_memory_bytes=5000,
        current=CacheConfiguration(5000),
        resident_keys=5000,
        mean_entry_bytes=1.0,
        sampled=ResidentSample.of_idle_times(sample.idle_ms),
        ttl=TtlStats(0.0),
    )
    shares = {HOT: hot_share, FLAT: None if hot_share is None else 1.0 - hot_share}
    stats = [
        PatternStats(
            pattern=name,
            resident_share=0.5,
            bytes_share=0.5,
            lookups_share=share,
            hit_ratio=None,
            written_ttl_ms=None,
            keys_with_ttl_share=0.0,
        )
        for name, share in shares.items()
    ]
    return passive_curves_by_pattern(evidence, sample, stats, seed=1)


def test_each_pattern_gets_roughly_the_curve_that_it_would_have_alone() -> None:
    hot, flat, _ = shared()
    for name, trace in ((HOT, hot), (FLAT, flat)):
        found = by_pattern(0.75)[name]
        assert isinstance(found, PatternCurve), found
        keys = round(found.curve.memory_bytes)
        assert not found.hit_ratio_seen
        assert found.curve.hit_ratio == pytest.approx(alone(trace, keys), abs=0.07)
        half = found.curve.at(found.curve.memory_bytes / 2)
        assert half.value == pytest.approx(alone(trace, keys // 2), abs=0.07)


def test_a_pattern_whose_lookups_were_never_captured_has_a_reason_instead_of_a_curve() -> None:
    found = by_pattern(None)
    assert all("capture" in str(reason) for reason in found.values())


def test_a_share_of_lookups_that_its_residents_contradict_is_refused() -> None:
    found = by_pattern(0.999)[FLAT]
    assert "residents" in str(found)
