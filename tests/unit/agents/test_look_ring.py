"""The window's parts: what each look of the ring adds to it."""

from __future__ import annotations

import numpy as np

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
