"""How far sizes move in one round: only those that may, and no more is given than is taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agents.memory_round import next_sizes

STEP = 10


def test_all_that_may_move_reach_their_targets():
    assert next_sizes({"a": 50, "b": 150}, {"a": 100, "b": 100}, {"a", "b"}, 0, STEP) == {"a": 50, "b": 150}


def test_who_would_take_from_one_that_waits_takes_nothing():
    assert next_sizes({"a": 50, "b": 150}, {"a": 100, "b": 100}, {"b"}, 0, STEP) == {"a": 100, "b": 100}


def test_nobody_gives_what_only_one_that_waits_would_take():
    assert next_sizes({"a": 50, "b": 150}, {"a": 100, "b": 100}, {"a"}, 0, STEP) == {"a": 100, "b": 100}


def test_givers_share_what_is_taken_now():
    targets, held = {"a": 50, "b": 60, "c": 130, "d": 160}, dict.fromkeys("abcd", 100)
    assert next_sizes(targets, held, {"a", "b", "c"}, 0, STEP) == {"a": 80, "b": 80, "c": 130, "d": 100}


def test_free_memory_is_taken_before_anybody_gives():
    assert next_sizes({"a": 50, "b": 150}, {"a": 100, "b": 100}, {"a", "b"}, 50, STEP) == {"a": 100, "b": 150}


def test_what_is_held_beyond_the_budget_is_given_although_nobody_takes_it():
    assert next_sizes({"a": 50}, {"a": 100}, {"a"}, -30, STEP) == {"a": 70}


SIZES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300), st.booleans()), min_size=1, max_size=6)


@given(SIZES, st.integers(-100, 100))
def test_nothing_is_overcommitted_and_nobody_overshoots(services, free):
    targets, held, ready = ({n: s[i] for n, s in enumerate(services)} for i in range(3))
    names = {n for n, may in ready.items() if may}
    found = next_sizes(targets, held, names, free, STEP)  # type: ignore[arg-type]
    assert all(found[n] == held[n] for n in held if n not in names)
    assert all(min(held[n], targets[n]) <= found[n] <= max(held[n], targets[n]) for n in held)
    taken = sum(max(0, found[n] - held[n]) for n in held)
    given = sum(max(0, held[n] - found[n]) for n in held)
    assert taken <= max(0, given + free)
    assert given <= max(0, sum(max(0, targets[n] - held[n]) for n in names) - free) + STEP * len(held)
