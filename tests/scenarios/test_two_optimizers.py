"""Two optimizers that want different things from the same caches: one leads, the other stands by, nothing flaps."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from agents.actuator import Actuator
from cachewarden.machine import Received
from cachewarden.messages import Mode
from cachewarden.protocol import SetMode, SetPaused
from coordination.fleet_memory import LED_REST_MS
from tests.scenarios.two_optimizers import SETTINGS, TwoOptimizers

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def leader(world: TwoOptimizers, service: str = "sessions") -> str:
    return next(name for _, name, where, _ in world.writes if where == service)


def other(name: str) -> str:
    return "b" if name == "a" else "a"


def begun(world: TwoOptimizers, service: str = "sessions"):
    return lambda: "step_applied" in world.kinds(service)


def test_for_an_hour_one_optimizer_leads_each_cache_and_its_knob_does_not_flap():
    world = TwoOptimizers()
    world.run(HOUR_MS)
    per_service = {
        service: {name for _, name, where, _ in world.writes if where == service} for service in world.caches
    }
    assert {len(names) for names in per_service.values()} == {1}
    # The leader has what it wants after one change; the other waits, and says so.
    assert Counter(where for _, _, where, _ in world.writes) == {"sessions": 1, "pages": 1}
    assert world.kinds().count("change_kept") == 2
    second = world.nodes[other(leader(world))].agents["coordinator"].state(world.now_ms)
    reason = second.standing["sessions"].resolution.reason
    assert "leads `sessions`, we stand by" in reason


def test_the_one_that_stands_by_knows_of_changes_that_are_not_its_own():
    world = TwoOptimizers(second="10")
    world.run(10 * MINUTE_MS)
    for node in world.nodes.values():
        state = node.agents["coordinator"].state(world.now_ms)
        assert {e.state.value for e in state.executions if e.held_by is None} == {"kept"}
        assert {e.proposal.service for e in state.executions} == {"sessions", "pages"}
        assert all(state.history[s].changes_last_hour >= 1 for s in ("sessions", "pages"))


def test_a_leader_that_dies_in_the_middle_of_a_change_is_followed_within_two_leases():
    world = TwoOptimizers()
    assert world.run(5 * MINUTE_MS, begun(world))
    first = leader(world)
    [change] = world.open_changes("sessions")
    world.kill(first)
    died_ms = world.now_ms
    adopted = world.nodes[other(first)].agents["actuator"]
    assert world.run(HOUR_MS, lambda: any(r.proposal.proposal_id == change for r in adopted._runs.values()))
    assert world.now_ms - died_ms <= 2 * SETTINGS.lease_ttl_ms + 100
    assert world.run(5 * MINUTE_MS, lambda: not world.open_changes("sessions"))
    assert world.caches["sessions"].knobs["maxmemory-samples"] in ("5", world.nodes[first].wants)


def test_a_dead_leaders_caches_are_led_by_the_other_within_a_bounded_time():
    world = TwoOptimizers()
    world.run(10 * MINUTE_MS)
    first = leader(world)
    world.kill(first)
    world.run(SETTINGS.lead_ms + LED_REST_MS + 2 * SETTINGS.cycle_interval_ms + MINUTE_MS)
    second = other(first)
    assert world.caches["sessions"].knobs["maxmemory-samples"] == world.nodes[second].wants
    assert [name for _, name, where, _ in world.writes if where == "sessions"] == [first, second]


@pytest.mark.parametrize("stall_ms", [7_000, 30_000, 3 * MINUTE_MS])
def test_a_leader_that_was_stalled_and_wakes_up_writes_nothing_more_to_that_change(stall_ms):
    world = TwoOptimizers()
    assert world.run(5 * MINUTE_MS, lambda: "step_intended" in world.kinds("sessions"))
    first = next(r.agent for r in world.journal if r.kind == "step_intended" and r.service == "sessions")
    world.stall(first, stall_ms)
    woke_ms = world.now_ms + stall_ms
    world.run(HOUR_MS)
    assert not world.open_changes("sessions")
    taken_over = [w for w in world.writes if w[2] == "sessions" and w[1] != first and w[0] < woke_ms]
    if taken_over:
        # Whatever it had on its way was refused by the cache, or it was told before it wrote.
        between = [w for w in world.writes if w[1] == first and w[2] == "sessions" and w[0] <= woke_ms + 1_000]
        assert not between
    assert len([w for w in world.writes if w[2] == "sessions"]) <= SETTINGS.changes_per_hour


def test_a_pause_of_one_deployment_stops_the_actuator_of_the_other():
    world = TwoOptimizers()
    world.run(100)
    pause = SetPaused(paused=True, by="ann", reason="look first")
    world._later(world.nodes["a"], "coordinator", Received(sender="api", message=pause), 0)
    world.run(SETTINGS.lease_ttl_ms + 1_000)
    actuator = world.nodes["b"].agents["actuator"]
    assert isinstance(actuator, Actuator)
    assert actuator._paused


def test_a_restriction_that_one_deployment_was_told_takes_back_what_the_other_has_under_way():
    world = TwoOptimizers()
    assert world.run(5 * MINUTE_MS, begun(world))
    first = leader(world)
    restriction = SetMode(service="sessions", mode=Mode.ADVISE, by="ann", reason="a sale")
    message = Received(sender="api", message=restriction)
    world._later(world.nodes[other(first)], "coordinator", message, 0)
    assert world.run(SETTINGS.lease_ttl_ms + 5_000, lambda: "change_rolled_back" in world.kinds("sessions"))
    assert world.caches["sessions"].knobs["maxmemory-samples"] == "5"
    written = len(world.writes)
    world.run(HOUR_MS)
    assert not [w for w in world.writes[written:] if w[2] == "sessions"]


@pytest.mark.parametrize("seed", range(8))
def test_whatever_dies_stalls_and_comes_back_changes_exclude_each_other_and_end(seed):
    dice = random.Random(seed)
    world = TwoOptimizers()
    end_ms = world.now_ms + HOUR_MS // 2
    while world.now_ms < end_ms:
        # Mostly in the middle of a change, at any point of it.
        world.run(5 * MINUTE_MS, lambda: any(world.open_changes(service) for service in world.caches))
        world.run(dice.choice((0, 1, 2, 5, 10, dice.randrange(60_000))))
        name = dice.choice("ab")
        node = world.nodes[name]
        what = dice.choice(("kill", "stall", "want"))
        if node.dead:
            world.revive(name)
        elif what == "kill":
            world.kill(name)
        elif what == "stall":
            world.stall(name, dice.randrange(100, 3 * MINUTE_MS))
        else:
            node.wants = dice.choice(("3", "7", "10"))
    for name, node in world.nodes.items():
        if node.dead:
            world.revive(name)
    # With nobody dying any more everything that was begun comes to an end.
    world.run(15 * MINUTE_MS)
    assert not any(world.open_changes(service) for service in world.caches)
    for service in world.caches:
        times = [at for at, _, where, _ in world.writes if where == service]
        for start in times:
            # A change is one write and at most one to take it back.
            assert sum(start <= at < start + HOUR_MS for at in times) <= 2 * SETTINGS.changes_per_hour
