"""What watchers of the fleet are told: differences that lead to exactly the new state."""

from __future__ import annotations

import dataclasses
import random

import pytest

from cachewarden.messages import ExecutionState
from cachewarden.protocol import FleetBeat, FleetDelta, FleetState, Sizing
from coordination.state_feed import StateFeed, apply, beat_of, delta_of, with_beat
from tests.unit.serve.serve_world import NOW_MS, execution, idle, proposal, snapshot, standing, state

SERVICES = ("constitutional_ai", "api_gateway", "integrity_service")


def fields_of(value: FleetState) -> dict[str, object]:
    return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}


def grown(old: FleetState, rng: random.Random) -> FleetState:
    """Another version: some things changed, some came, some went."""
    name = rng.choice(SERVICES)
    plan = proposal(name, proposal_id=f"p-{rng.randrange(6)}")
    snapshots = dict(old.snapshots)
    snapshots[name] = snapshot(name, hits=rng.randrange(1_000))
    if rng.random() < 0.3:
        snapshots.pop(rng.choice(SERVICES), None)
    executions = {e.proposal.proposal_id: e for e in old.executions}
    executions.pop(plan.proposal_id, None)
    executions[plan.proposal_id] = execution(plan, rng.choice(list(ExecutionState)))
    if len(executions) > 3:
        executions.pop(next(iter(executions)))
    return dataclasses.replace(
        old,
        version=old.version + rng.randrange(1, 4),
        at_ms=old.at_ms + 10,
        paused=rng.random() < 0.5,
        snapshots=snapshots,
        standing={**old.standing, **(standing(plan) if rng.random() < 0.5 else idle(name, str(rng.random())))},
        executions=tuple(executions.values()),
        missing={name: "gone"} if rng.random() < 0.5 else {},
        sizings={**old.sizings, name: sizing(rng.random())} if rng.random() < 0.5 else old.sizings,
    )


def sizing(low: float) -> Sizing:
    return Sizing(at_ms=NOW_MS, maxmemory_bytes=(1, 2), hit_ratio=(1.0, 1.0), low=(low, 1.0))


def test_a_sizing_is_sent_once_and_not_with_every_news_of_another_service():
    names = SERVICES[:2]
    old = state(sizings={name: sizing(0.5) for name in names})
    assert delta_of(old, dataclasses.replace(old, version=9)).changes.sizings == {}
    newer = {**old.sizings, names[1]: sizing(0.6)}
    assert set(delta_of(old, dataclasses.replace(old, version=9, sizings=newer)).changes.sizings) == {names[1]}


@pytest.mark.parametrize("seed", range(20))
def test_differences_one_after_the_other_lead_to_exactly_the_new_state(seed: int):
    rng = random.Random(seed)
    feed, known, news = StateFeed(), state(life_ms=5), None
    news = feed.news(known, (0, 0))
    assert news is known
    mine = known
    for _ in range(10):
        known = grown(known, rng)
        news = feed.news(known, (mine.life_ms, mine.version))
        assert isinstance(news, FleetDelta)
        mine = apply(mine, news)
        assert fields_of(mine) == fields_of(known)


def test_a_difference_holds_only_what_is_new():
    old = state(life_ms=5, version=1, standing=standing(proposal()))
    new = dataclasses.replace(old, version=2, standing={**old.standing, **idle("api_gateway")})
    delta = delta_of(old, new)
    assert set(delta.changes.standing) == {"api_gateway"}
    assert delta.changes.snapshots == {}
    assert delta.changes.executions == ()


def test_a_difference_to_another_version_or_life_is_not_applied():
    old, new = state(life_ms=5, version=1), state(life_ms=5, version=2)
    delta = delta_of(old, new)
    assert apply(None, delta) is None
    assert apply(new, delta) is None
    assert apply(dataclasses.replace(old, life_ms=4), delta) is None


def test_whoever_has_seen_another_life_or_nothing_gets_the_whole():
    feed = StateFeed()
    known = state(life_ms=5, version=3)
    assert feed.news(known, (0, 0)) is known
    assert feed.news(known, (4, 3)) is known
    assert feed.news(known, (5, 2)) is known


def test_where_nothing_has_changed_only_a_beat_is_told_and_it_moves_the_clock():
    known = state(life_ms=5, version=3)
    later = dataclasses.replace(known, at_ms=known.at_ms + 1_000, phase="observing")
    beat = StateFeed().news(later, (5, 3))
    assert isinstance(beat, FleetBeat)
    mine = with_beat(known, beat)
    assert (mine.at_ms, mine.phase, mine.snapshots) == (later.at_ms, "observing", known.snapshots)
    assert with_beat(dataclasses.replace(known, version=2), beat_of(known)) is None
    assert with_beat(None, beat) is None
