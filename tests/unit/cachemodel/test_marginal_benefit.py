"""Dividing memory by marginal benefit: nothing is wasted, and lying pays at most what is stated."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachewarden.cachemodel.marginal_benefit import Claim, Division, Impossible, Step, divide, overstating_bound


def claim(name: str, *steps: tuple[int, float], floor: int = 0, margin: float = 1.0) -> Claim:
    made = tuple(Step(size_bytes=size, claimed=hits, proven=hits * margin) for size, hits in steps)
    return Claim(claimant=name, floor_bytes=floor, steps=made)


def shares(division) -> dict[str, int]:
    return {g.claimant: g.size_bytes for g in division.grants}


def test_bytes_go_where_they_bring_most():
    found = divide([claim("a", (10, 50.0), (10, 10.0)), claim("b", (10, 30.0), (10, 20.0))], 30)
    assert shares(found) == {"a": 10, "b": 20}
    assert (found.left_bytes, found.price) == (0, 1.0)


def test_floors_come_before_any_benefit():
    found = divide([claim("a", (10, 100.0)), claim("b", floor=8)], 10)
    assert shares(found) == {"a": 2, "b": 8}


def test_floors_that_do_not_fit_are_refused_with_the_way_out():
    found = divide([claim("a", floor=8), claim("b", floor=8)], 10)
    assert isinstance(found, Impossible)
    assert found.needed_bytes == 16
    assert "raise the budget" in found.reason


def test_a_step_beyond_a_cliff_is_pooled_with_the_steps_before_it():
    found = divide([claim("a", (10, 0.0), (10, 100.0)), claim("b", (20, 60.0))], 20)
    assert shares(found) == {"a": 20, "b": 0}


def test_what_brings_nothing_is_given_to_nobody():
    found = divide([claim("a", (10, 0.0)), claim("b", (5, -3.0))], 20)
    assert (shares(found), found.left_bytes, found.price) == ({"a": 0, "b": 0}, 20, 0.0)


def test_a_claim_beyond_the_evidence_counts_as_far_as_the_evidence_goes():
    bold = Claim(claimant="a", floor_bytes=0, steps=(Step(size_bytes=10, claimed=1_000.0, proven=10.0),))
    assert shares(divide([bold, claim("b", (10, 20.0))], 10)) == {"a": 0, "b": 10}


def test_nobody_claims_twice():
    with pytest.raises(ValueError, match="once"):
        divide([claim("a"), claim("a")], 1)


STEPS = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 10)), min_size=1, max_size=5)


@st.composite
def honest_claims(draw) -> list[Claim]:
    """Claims whose marginal values fall, as true curves of caches do, each with some evidence beyond its claim."""
    made = []
    for name in "abcd"[: draw(st.integers(2, 4))]:
        steps = sorted(draw(STEPS), key=lambda s: -s[1])
        margin = draw(st.floats(1.0, 2.0))
        floor = draw(st.integers(0, 10))
        made.append(claim(name, *((size, density * size) for size, density in steps), floor=floor, margin=margin))
    return made


def benefit(curve: Claim, size_bytes: float) -> float:
    """Hits per second that so many bytes really bring the owner of a curve."""
    left, hits = size_bytes - curve.floor_bytes, 0.0
    for step in curve.steps:
        used = min(max(left, 0.0), step.size_bytes)
        hits += step.claimed * used / step.size_bytes
        left -= used
    return hits


@given(honest_claims(), st.integers(40, 300))
def test_bytes_granted_and_left_equal_the_total_and_every_floor_holds(claims, total):
    found = divide(claims, total)
    assert isinstance(found, Division)
    assert sum(g.size_bytes for g in found.grants) + found.left_bytes == total
    assert all(found.of(c.claimant).size_bytes >= c.floor_bytes for c in claims)
    assert divide(claims[::-1], total) == found


@given(honest_claims(), st.integers(40, 300), st.data())
def test_no_other_division_brings_more_so_it_is_pareto_optimal(claims, total, data):
    found = divide(claims, total)
    best = sum(benefit(c, found.of(c.claimant).size_bytes) for c in claims)
    # Any other division: floors, and the rest cut at random places.
    rest = total - sum(c.floor_bytes for c in claims)
    cuts = sorted(data.draw(st.integers(0, rest)) for _ in claims[1:])
    parts = [end - start for start, end in zip([0, *cuts], [*cuts, rest], strict=True)]
    other = sum(benefit(c, c.floor_bytes + part) for c, part in zip(claims, parts, strict=True))
    assert other <= best + 1e-6 * max(1.0, best)


@given(honest_claims(), st.integers(40, 300), st.data())
def test_nobody_gains_more_by_overstating_than_the_stated_bound(claims, total, data):
    liar = claims[0]
    lies = tuple(
        replace(s, claimed=data.draw(st.one_of(st.floats(-10, 1e6), st.just(s.proven), st.just(s.claimed * 1.5))))
        for s in liar.steps
    )
    honest = divide(claims, total).of("a").size_bytes
    lied = divide([replace(liar, steps=lies), *claims[1:]], total).of("a").size_bytes
    bound = overstating_bound(claims, total, "a")
    assert bound is not None
    gained = benefit(liar, lied) - benefit(liar, honest)
    assert gained <= bound + 1e-6 * max(1.0, bound)


@given(honest_claims(), st.integers(40, 300))
def test_where_the_evidence_leaves_no_room_overstating_gains_nothing(claims, total):
    sure = [replace(c, steps=tuple(replace(s, proven=s.claimed) for s in c.steps)) for c in claims]
    assert overstating_bound(sure, total, "b") == 0.0
