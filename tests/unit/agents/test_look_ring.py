"""The window's parts: what each look of the ring adds to it."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evidence import evidence_of
from agents.snapshots import LookRing, make_snapshot
from tests.unit.agents.looks import keyspace, look

MISSES = (0, 100, 150, 350, 360)


def ring_of(numbers: tuple[int, ...]) -> tuple[LookRing, list]:
    ring = LookRing(window_ms=30_000, base_age_ms=5_000)
    seen = [
        look(10_000 * i, keyspace_hits=1_000 * i, keyspace_misses=misses, used_memory=5_000_000)
        for i, misses in enumerate(numbers)
    ]
    return ring, seen


def test_a_window_is_the_sum_of_its_parts_from_look_to_look():
    ring, seen = ring_of(MISSES)
    *_, window = [ring.add(one) for one in seen]
    # Then the first look is beyond the window and its part is not counted
    assert window.parts == ((1_050, 50), (1_200, 200), (1_010, 10))
    assert (window.lookups, window.misses) == tuple(np.sum(window.parts, axis=0))


def test_parts_and_sampled_residents_reach_the_evidence():
    ring, seen = ring_of(MISSES)
    *_, window = [ring.add(one) for one in seen]
    sample = keyspace([5_000] * 40, ttl_ms=[60_000] * 40, size_bytes=[120] * 40)
    snapshot = make_snapshot(seen[-1], window, sample=sample, access=None, reads=None, remarks={})
    evidence = evidence_of(snapshot)
    assert not isinstance(evidence, str)
    assert evidence.window_parts == window.parts
    assert evidence.sampled is not None
    assert evidence.sampled.size_bytes.tolist() == [120] * 40
    assert evidence.sampled.cost_us == 500.0


def test_where_no_pattern_tells_the_ttl_the_longest_one_left_stands_for_it():
    ring, seen = ring_of(MISSES)
    *_, window = [ring.add(one) for one in seen]
    sample = keyspace([5_000] * 40, ttl_ms=list(range(20_000, 60_000, 1_000)))
    for keys, expected in ((900, 59_000), (100, None)):
        after = look(
            40_000,
            keyspace_hits=4_000,
            keyspace_misses=360,
            used_memory=5_000_000,
            db0=f"keys=1000,expires={keys},avg_ttl=1",
        )
        snapshot = make_snapshot(after, window, sample=sample, access=None, reads=None, remarks={})
        evidence = evidence_of(snapshot)
        assert not isinstance(evidence, str)
        assert evidence.current.ttl_ms == expected


def ratios(*hit_ratios: float, knobs: dict[int, str] | None = None) -> list[float | None]:
    """Return the step that the ring knows of after each window of 30 s with one of these hit ratios."""
    ring = LookRing(window_ms=30_000, base_age_ms=5_000)
    hits = misses = 0
    ring.add(look(0, keyspace_hits=0, keyspace_misses=0))
    steps = []
    for window, ratio in enumerate(hit_ratios):
        policy = (knobs or {}).get(window, "allkeys-lru")
        for part in range(3):
            hits, misses = hits + round(1_000 * ratio), misses + round(1_000 * (1 - ratio))
            now_ms = 30_000 * window + 10_000 * (part + 1)
            last = ring.add(
                look(now_ms, keyspace_hits=hits, keyspace_misses=misses, knobs={"maxmemory-policy": policy})
            )
        steps.append(last.hit_ratio_step)
    return steps


def test_of_a_steady_cache_the_traffic_is_known_to_move_nothing():
    assert ratios(*[0.8] * 8)[-1] == 0.0


def test_how_far_the_traffic_moves_the_hit_ratio_is_known_after_four_steps():
    steps = ratios(*[0.8, 0.7] * 5)
    assert steps[:6] == [None] * 6
    assert steps[-1] == pytest.approx(0.1)


def test_neither_a_change_of_the_configuration_nor_the_settling_after_it_is_the_traffic_s():
    settling = (0.5, 0.7, 0.9)
    steps = ratios(*[0.5] * 8, *settling, *[0.9] * 6, knobs=dict.fromkeys(range(8, 17), "allkeys-lfu"))
    assert steps[-1] == 0.0


def test_a_cache_that_fills_after_a_restart_has_no_past():
    ring = LookRing(window_ms=30_000, base_age_ms=5_000)
    steps = []
    for i in range(60):
        hits = 1_000 * i if i < 40 else 1_000 * (i - 40)
        run = {"run_id": "a" if i < 40 else "b", "uptime_in_seconds": 1_000 + 10 * (i if i < 40 else i - 140)}
        steps.append(ring.add(look(10_000 * i, keyspace_hits=hits, keyspace_misses=0, **run)).hit_ratio_step)
    assert steps[39] == 0.0
    assert steps[45] is None


def test_one_fall_and_its_recovery_are_no_measure_of_every_minute():
    assert ratios(*[0.8] * 14, 0.3, *[0.8] * 14)[-1] == 0.0


def test_only_the_last_thirty_steps_count():
    assert ratios(*[0.8, 0.6] * 3, *[0.7] * 40)[-1] == 0.0


def quiet(lookups_per_look: int, looks: int = 80) -> list[int]:
    """Return the lengths of the windows of a cache that is asked so often between looks 10 s apart."""
    ring = LookRing(window_ms=30_000, base_age_ms=5_000)
    return [
        ring.add(look(10_000 * i, keyspace_hits=lookups_per_look * i, keyspace_misses=0)).window_ms
        for i in range(looks)
    ]


def test_a_window_with_few_lookups_reaches_back_until_it_has_enough():
    assert quiet(1_000)[-1] == 30_000
    assert quiet(100)[-1] == 100_000
    assert quiet(100)[5] == 50_000


def test_a_window_never_reaches_back_more_than_four_times_its_length():
    assert quiet(1)[-1] == 120_000


def test_looks_that_no_window_needs_are_dropped():
    ring = LookRing(window_ms=30_000, base_age_ms=5_000)
    for i in range(200):
        ring.add(look(10_000 * i, keyspace_hits=1_000 * i, keyspace_misses=0))
    assert len(ring._looks) == 5
