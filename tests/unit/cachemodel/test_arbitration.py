"""The split of a memory budget over services."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cachewarden.cachemodel.arbitration import Allocation, Curve, Infeasible, allocate, jain_index

MIB = 1 << 20


def curve(
    service: str,
    hit_ratio: list[float],
    *,
    lookups_per_s: float = 1000.0,
    current: int = 2,
    minimum: int = 0,
    floor: float = 0.0,
    weight: float = 1.0,
) -> Curve:
    """A curve with one point per MiB, beginning at 0."""
    return Curve(
        service,
        np.arange(len(hit_ratio), dtype=np.int64) * MIB,
        np.array(hit_ratio),
        lookups_per_s,
        weight,
        minimum * MIB,
        floor,
        current * MIB,
    )


def split(*curves: Curve, total: int, max_step_share: float | None = None) -> dict[str, int]:
    found = allocate(curves, total * MIB, MIB, max_step_share)
    assert isinstance(found, Allocation)
    return {share.service: share.bytes // MIB for share in found.shares}


STEEP = [0.0, 0.4, 0.7, 0.9, 1.0]
FLAT = [0.0, 0.1, 0.15, 0.18, 0.2]


def test_memory_goes_where_the_next_mib_brings_the_most_hits() -> None:
    assert split(curve("flat", FLAT), curve("steep", STEEP), total=4) == {"flat": 1, "steep": 3}


def test_a_floor_is_held_by_what_a_size_surely_gives_and_not_by_what_is_expected() -> None:
    giver = curve("giver", [0.0, 0.6, 0.7, 0.8, 0.9], current=4, floor=0.6, lookups_per_s=10)
    unsure = replace(giver, sure_hit_ratio=np.array([0.0, 0.4, 0.55, 0.75, 0.9]))
    taker = curve("taker", [0.0, 0.2, 0.4, 0.6, 0.8, 0.9], current=1)
    assert split(giver, taker, total=5) == {"giver": 1, "taker": 4}
    assert split(unsure, taker, total=5) == {"giver": 3, "taker": 2}


def test_weights_and_traffic_count_alike() -> None:
    assert split(curve("busy", FLAT, lookups_per_s=10_000), curve("quiet", STEEP, lookups_per_s=100), total=4) == {
        "busy": 4,
        "quiet": 0,
    }
    assert split(curve("dear", FLAT, weight=100.0), curve("plain", STEEP), total=4) == {"dear": 4, "plain": 0}


def test_a_minimum_is_kept_however_useless_the_memory() -> None:
    assert split(curve("flat", FLAT, minimum=2), curve("steep", STEEP), total=4) == {"flat": 2, "steep": 2}


def test_a_floor_that_is_held_is_kept() -> None:
    assert split(curve("flat", FLAT, floor=0.15), curve("steep", STEEP), total=4) == {"flat": 2, "steep": 2}


def test_a_service_below_its_floor_loses_nothing() -> None:
    assert split(curve("flat", FLAT, floor=0.9, current=2), curve("steep", STEEP), total=4)["flat"] == 2


def test_a_cliff_is_jumped_when_the_whole_jump_pays() -> None:
    # No single MiB helps the cliff, all four together bring 0.9: only the hull sees that.
    cliff = curve("cliff", [0.0, 0.0, 0.0, 0.0, 0.9], current=1)
    assert split(cliff, curve("flat", FLAT, current=4), total=5) == {"cliff": 4, "flat": 1}


def test_a_cliff_that_cannot_be_reached_does_not_make_things_worse() -> None:
    cliff = curve("cliff", [0.0, 0.0, 0.0, 0.0, 0.0, 0.9], current=2)
    found = allocate([cliff, curve("flat", FLAT, current=2)], 4 * MIB, MIB)
    assert isinstance(found, Allocation)
    assert found.gain_hits_per_s >= 0


def test_one_round_moves_no_more_than_its_share() -> None:
    assert split(curve("flat", FLAT), curve("steep", STEEP), total=4, max_step_share=0.5) == {"flat": 1, "steep": 3}
    found = allocate([curve("flat", FLAT), curve("steep", STEEP)], 4 * MIB, MIB, max_step_share=0.1)
    assert isinstance(found, Allocation)
    assert [share.bytes - share.current_bytes for share in found.shares] == [-int(0.2 * MIB), int(0.2 * MIB)]


def test_impossible_minimums_are_reported_and_not_bent() -> None:
    found = allocate([curve("a", FLAT, minimum=3), curve("b", FLAT, minimum=3)], 4 * MIB, MIB)
    assert isinstance(found, Infeasible)
    assert found.needed_bytes == 6 * MIB


def test_ties_go_to_the_first_name_whatever_the_order_given() -> None:
    twins = [curve("b", STEEP, current=0), curve("a", STEEP, current=0)]
    assert split(*twins, total=3) == split(*reversed(twins), total=3) == {"a": 2, "b": 1}


def test_memory_that_nobody_gains_from_stays_where_it_is() -> None:
    full = [0.0, 0.9, 0.9, 0.9]
    found = allocate([curve("a", full, current=2), curve("b", full, current=2)], 5 * MIB, MIB)
    assert isinstance(found, Allocation)
    assert not found.changed
    assert found.unassigned_bytes == MIB


def test_every_share_says_why() -> None:
    found = allocate([curve("flat", FLAT), curve("steep", STEEP)], 4 * MIB, MIB)
    assert isinstance(found, Allocation)
    assert "gives up" in found.of("flat").reason
    assert found.of("steep").reason.startswith("gains 200 hits/s")
    assert found.of("steep").marginal_hits_per_s_per_mib == pytest.approx(100.0)


def test_fairness_is_1_for_equals_and_1_over_n_for_one_who_has_all() -> None:
    assert jain_index([3.0, 3.0, 3.0]) == pytest.approx(1.0)
    assert jain_index([1.0, 0.0, 0.0, 0.0]) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="below 0"):
        jain_index([-1.0])


def any_curve(name: str) -> st.SearchStrategy[Curve]:
    return st.builds(
        lambda rises, lookups, current, minimum, floor: curve(
            name,
            list(np.minimum(np.cumsum([0.0, *rises]), 1.0)),
            lookups_per_s=lookups,
            current=current,
            minimum=minimum,
            floor=floor,
        ),
        st.lists(st.floats(0.0, 0.3), min_size=3, max_size=10),
        st.floats(0.0, 1e4),
        st.integers(0, 8),
        st.integers(0, 2),
        st.floats(0.0, 1.0),
    )


@pytest.mark.slow
@given(
    st.tuples(*(any_curve(name) for name in "abcd")),
    st.integers(0, 10),
    st.integers(1, 3 * MIB),
    st.none() | st.floats(0.0, 1.0),
)
@settings(max_examples=150, deadline=None)
def test_the_budget_is_kept_floors_hold_and_nothing_gets_worse(
    curves: tuple[Curve, ...], spare: int, step: int, max_step_share: float | None
) -> None:
    total = sum(c.current_bytes for c in curves) + spare * MIB
    found = allocate(curves, total, step, max_step_share)
    if isinstance(found, Infeasible):
        assert found.needed_bytes > total
        return
    assert sum(share.bytes for share in found.shares) + found.unassigned_bytes == total
    assert found.unassigned_bytes >= 0
    for share, c in zip(found.shares, curves, strict=True):
        assert share.bytes >= c.minimum_bytes
        if share.current_hit_ratio < c.floor_hit_ratio:
            assert share.bytes >= c.current_bytes
        else:
            assert share.hit_ratio >= c.floor_hit_ratio - 1e-6
        if max_step_share is not None and c.current_bytes >= c.minimum_bytes:
            reach = int(c.current_bytes * max_step_share)
            assert abs(share.bytes - c.current_bytes) <= reach or share.bytes == c.minimum_bytes
    if all(c.current_bytes >= c.minimum_bytes for c in curves):
        assert found.gain_hits_per_s >= -1e-6
    # The order in which services are named means nothing.
    assert allocate(curves[::-1], total, step, max_step_share) == found


def best_by_trial(curves: tuple[Curve, ...], total: int) -> float:
    """The most weighted hits that any split in whole MiB gives, found by trying all of them."""
    best = 0.0
    for sizes in product(range(total + 1), repeat=len(curves)):
        if sum(sizes) <= total:
            best = max(best, sum(c.worth * c.at(s * MIB) for c, s in zip(curves, sizes, strict=True)))
    return best


@given(
    st.lists(st.lists(st.floats(0.0, 0.25), min_size=5, max_size=5), min_size=3, max_size=3),
    st.lists(st.floats(1.0, 1e3), min_size=3, max_size=3),
    st.integers(0, 8),
)
@settings(max_examples=40, deadline=None)
def test_on_concave_curves_no_split_is_better(rises: list[list[float]], lookups: list[float], total: int) -> None:
    concave = [list(np.minimum(np.cumsum([0.0, *sorted(r, reverse=True)]), 1.0)) for r in rises]
    curves = tuple(
        curve(name, shape, lookups_per_s=rate, current=0)
        for name, shape, rate in zip("abc", concave, lookups, strict=True)
    )
    found = allocate(curves, total * MIB, MIB)
    assert isinstance(found, Allocation)
    assert found.hits_per_s >= best_by_trial(curves, total) * (1 - 1e-9) - 1e-9


def test_memory_that_cannot_reach_over_a_cliff_goes_to_those_who_use_it() -> None:
    # Given a scan that hits nothing until it fits whole, and somebody who gains a little all the way
    cliff = curve("scan", [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0], current=0)
    steady = curve("steady", [0.0, 0.15, 0.3, 0.4, 0.45], current=0)
    assert split(cliff, steady, total=4) == {"scan": 0, "steady": 4}
    assert split(cliff, steady, total=6) == {"scan": 6, "steady": 0}


def test_a_thousand_services_are_split_with_nothing_lost() -> None:
    rng = np.random.default_rng(0)
    sizes = np.arange(0, 65, dtype=np.int64) * (16 * MIB)
    curves = [
        Curve(f"s{i:04d}", sizes, np.sort(rng.random(65)), float(rng.random() * 1000), 1.0, 16 * MIB, 0.2, 256 * MIB)
        for i in range(1000)
    ]
    found = allocate(curves, 256_000 * MIB, MIB)
    assert isinstance(found, Allocation)
    assert sum(share.bytes for share in found.shares) + found.unassigned_bytes == 256_000 * MIB
    assert found.gain_hits_per_s > 0
