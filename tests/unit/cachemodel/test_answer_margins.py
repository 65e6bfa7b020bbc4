"""How far a modelled answer may be off: by the change, by what the model misses now, by how little it has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cachewarden.cachemodel.answer_margins import beyond, change_margins, level_margin, residual_share
from cachewarden.cachemodel.evidence import CacheConfiguration, Evidence

MIB = 1 << 20
NOW = CacheConfiguration(64 * MIB)
FULL = Evidence(
    lookups_per_s=100.0,
    hit_ratio=0.7,
    maxmemory_bytes=64 * MIB,
    used_memory_bytes=64 * MIB,
    fixed_overhead_bytes=0,
    resident_keys=1_000,
    mean_entry_bytes=64 * 1_024,
    current=NOW,
)
FILLING = replace(FULL, used_memory_bytes=32 * MIB)


def shared(evidence: Evidence, wanted: CacheConfiguration, *, captured: bool = True) -> float:
    return change_margins(evidence, wanted, 0.0, 0.1, captured=captured)[2]


def test_the_smaller_a_change_of_size_the_less_of_the_model_s_error_it_shares():
    sizes = [replace(NOW, maxmemory_bytes=n * MIB) for n in (64, 72, 96, 128, 512)]
    margins = [shared(FULL, size) for size in sizes]
    assert margins[0] == 0.0
    assert margins == sorted(margins)
    assert margins[3] == margins[4] == pytest.approx(0.05)


def test_a_cache_that_still_fills_is_trusted_less():
    larger = replace(NOW, maxmemory_bytes=96 * MIB)
    assert FULL.full
    assert not FILLING.full
    assert shared(FILLING, larger) > shared(FULL, larger)


def test_another_eviction_policy_shares_the_error_at_any_size():
    assert shared(FULL, replace(NOW, eviction_policy="allkeys-lfu")) == pytest.approx(0.025)


def test_residents_tell_less_than_a_capture():
    assert shared(FULL, NOW, captured=False) == pytest.approx(0.1)
    told, known = (change_margins(FULL, NOW, 0.1, 0.1, captured=captured) for captured in (False, True))
    assert all(a > b for a, b in zip(told, known, strict=True))
    assert level_margin(captured=False) > level_margin(captured=True) > 0.0


def test_what_lies_beyond_the_evidence_widens_by_the_doubling():
    assert beyond(1_000, ((800.0, 1.0),)) == 0.0
    assert beyond(1_000, ((4_000.0, 0.5), (100.0, 0.5))) == pytest.approx(beyond(1_000, ((2_000.0, 1.0),)))


def test_the_error_at_another_size_shrinks_like_the_root_of_the_memory():
    assert residual_share(FULL, replace(NOW, maxmemory_bytes=16 * MIB)) == pytest.approx(0.5)
    assert residual_share(FULL, replace(NOW, maxmemory_bytes=128 * MIB)) == 1.0
