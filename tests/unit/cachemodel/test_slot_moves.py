"""Slot moves: the balance is never worse, and one slot that is too hot is said to be so."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.slot_moves import NodeLoad, propose_moves


def test_the_busiest_node_gives_to_the_idlest_what_evens_them_out():
    plan = propose_moves({"a": NodeLoad({1: 40.0, 2: 30.0, 3: 20.0}, 10.0), "b": NodeLoad({4: 10.0}, 10.0)})
    assert [(m.slot, m.source, m.target) for m in plan.moves] == [(1, "a", "b")]
    assert plan.after == {"a": 60.0, "b": 60.0}
    assert plan.imbalance_before == pytest.approx(100 / 60)
    assert plan.imbalance_after == pytest.approx(1.0)
    assert plan.unmovable == ()


def test_a_single_slot_that_is_too_hot_is_said_to_be_unmovable_and_stays():
    plan = propose_moves({"a": NodeLoad({7: 90.0}), "b": NodeLoad({8: 10.0}), "c": NodeLoad({}, 10.0)})
    assert plan.moves == ()
    assert plan.unmovable == ((7, "a", 90.0),)
    assert plan.imbalance_after == plan.imbalance_before


def test_what_lies_beside_a_slot_that_is_too_hot_is_moved_away_from_it():
    plan = propose_moves({"a": NodeLoad({7: 90.0, 9: 20.0}), "b": NodeLoad({8: 10.0})})
    assert [m.slot for m in plan.moves] == [9]
    assert [slot for slot, _, _ in plan.unmovable] == [7]


def test_balanced_nodes_keep_their_slots():
    assert propose_moves({"a": NodeLoad({1: 51.0}), "b": NodeLoad({2: 49.0})}).moves == ()


@pytest.mark.parametrize("nodes", [{}, {"a": NodeLoad({1: 5.0})}])
def test_one_node_has_nobody_to_give_to(nodes):
    assert "two nodes" in propose_moves(nodes)


def test_nodes_without_load_have_nothing_to_share():
    assert "no load" in propose_moves({"a": NodeLoad({1: 0.0}), "b": NodeLoad({})})


@pytest.mark.parametrize(
    "nodes",
    [
        {"a": NodeLoad({1: -1.0}), "b": NodeLoad({})},
        {"a": NodeLoad({16_384: 1.0}), "b": NodeLoad({})},
        {"a": NodeLoad({1: 1.0}), "b": NodeLoad({1: 1.0})},
        {"a": NodeLoad({}, -1.0), "b": NodeLoad({})},
    ],
)
def test_loads_that_cannot_be_are_refused(nodes):
    with pytest.raises(ValueError, match=r"slot|negative"):
        propose_moves(nodes)


@st.composite
def clusters(draw):
    slots = draw(st.lists(st.integers(0, 16_383), unique=True, max_size=60))
    count = draw(st.integers(2, 6))
    nodes = {f"n{i}": {} for i in range(count)}
    for slot in slots:
        nodes[f"n{draw(st.integers(0, count - 1))}"][slot] = draw(st.floats(0, 1e6))
    return {name: NodeLoad(held, draw(st.floats(0, 1e6))) for name, held in nodes.items()}


@given(clusters())
def test_the_balance_is_never_worse_and_no_load_is_lost(nodes):
    plan = propose_moves(nodes)
    if isinstance(plan, str):
        return
    assert max(plan.after.values()) <= max(plan.before.values()) * (1 + 1e-9)
    assert sum(plan.after.values()) == pytest.approx(sum(plan.before.values()), rel=1e-9, abs=1e-6)
    assert len({move.slot for move in plan.moves}) == len(plan.moves) <= 20
    loads = dict(plan.before)
    worst = max(loads.values())
    for move in plan.moves:
        assert nodes[move.source].slots[move.slot] == move.load
        loads[move.source] -= move.load
        loads[move.target] += move.load
        assert max(loads.values()) <= worst * (1 + 1e-9)
        worst = max(loads.values())


@given(clusters())
def test_the_same_loads_give_the_same_plan(nodes):
    assert propose_moves(nodes) == propose_moves(dict(reversed(nodes.items())))
