"""Growth: one at a time in the whole fleet, and only what the budget still holds by what the journal says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.growth_gate import BUDGET_LEASE, GrowthGate, grows, refusal_of_growth, sizes_of
from agents.recovery import read_journal
from cachewarden import machine as m
from cachewarden.messages import ExecutionState, Lease
from tests.unit.agents.actuator_world import FLEET, MIB, SETTINGS, T0, Fault, World, change, order, proposal

GROW = proposal(change("maxmemory", 60 * MIB))
LEASE = Lease(service=BUDGET_LEASE, holder="we", epoch=5, expires_at_ms=T0 + 6_000)


def changes_of(world: World):
    found = read_journal(world.journal)
    return (*found.unfinished, *found.finished)


def grown(end: str | None) -> World:
    """A world in which another deployment has let `pages` grow to 150 MiB, and ended it so."""
    world = World()
    world.tell(order(proposal(change("maxmemory", 150 * MIB), service="pages", proposal_id="p-other")))
    world.run(until=lambda: "step_applied" in world.kinds)
    if end is not None:
        world.append(end, service="pages")
    return world


def test_only_what_gives_more_memory_is_growth():
    assert grows(GROW)
    assert not grows(proposal(change("maxmemory", 20 * MIB)))
    assert not grows(proposal(change("maxmemory-policy", "allkeys-lru")))
    switch = (change("maxmemory", 40 * MIB), change("maxmemory-policy", "allkeys-lfu"))
    assert grows(proposal(*switch, cost={"headroom_bytes": 1 * MIB}))


@pytest.mark.parametrize(
    ("end", "expected_mib"),
    [
        (None, 150),
        ("change_kept", 150),
        ("change_rolled_back", 40),
        ("change_abandoned", 150),
        ("rollback_failed", 150),
    ],
)
def test_a_change_speaks_for_what_it_may_have_by_its_ending(end, expected_mib):
    assert sizes_of(changes_of(grown(end))) == {"pages": expected_mib * MIB}


def test_the_newest_ending_of_a_service_counts():
    [kept] = changes_of(grown("change_kept"))
    later = replace(kept, execution_id="e-2", outcome=ExecutionState.ROLLED_BACK, updated_ms=kept.updated_ms + 1)
    assert sizes_of([later, kept]) == {"pages": 40 * MIB}


def test_growth_fits_into_what_nobody_else_speaks_for():
    wanted = order(GROW)
    assert refusal_of_growth(wanted, {}, FLEET) is None
    assert refusal_of_growth(wanted, {"pages": 140 * MIB}, FLEET) is None
    assert "are spoken for by now" in (refusal_of_growth(wanted, {"pages": 141 * MIB}, FLEET) or "")
    # What is said of the same cache takes nothing away from it.
    assert refusal_of_growth(wanted, {"sessions": 199 * MIB}, FLEET) is None


def test_without_sizes_or_a_budget_nothing_grows():
    assert "nothing may grow" in (refusal_of_growth(order(GROW, memory_bytes=None), {}, FLEET) or "")
    free = FLEET.model_copy(update={"total_memory_bytes": None})
    assert "nothing may grow" in (refusal_of_growth(order(GROW, budget_bytes=None), {}, free) or "")
    assert refusal_of_growth(order(GROW), {}, free) is None


def test_the_next_order_waits_until_the_intention_of_the_last_is_durable():
    gate = GrowthGate(SETTINGS, FLEET)
    [ask] = gate.take(order(GROW))
    assert (ask.service, ask.fenced) == (BUDGET_LEASE, False)
    assert gate.take(order(replace(GROW, proposal_id="p-2"))) == ()
    assert gate.step(m.LeaseGranted(ref=ask.ref, lease=LEASE), T0) == ((), None)
    assert gate.reading
    admitted = gate.judge({})
    assert admitted is not None
    assert (admitted.refusal, admitted.lease) == (None, LEASE)
    # The lease goes over to the next one: given back and asked for at once, the release might come second.
    [again] = gate.done()
    assert isinstance(again, m.AcquireLease)
    assert gate.orders[0].proposal.proposal_id == "p-2"
    assert not gate.reading
    assert gate.step(m.LeaseGranted(ref=again.ref, lease=LEASE), T0) == ((), None)
    assert gate.reading
    gate.judge({})
    assert [type(e) for e in gate.done()] == [m.ReleaseLease]


def test_a_budget_that_another_keeps_is_asked_for_a_few_times_and_then_refused():
    gate = GrowthGate(SETTINGS, FLEET)
    [ask] = gate.take(order(GROW))
    denied = m.LeaseDenied(ref=ask.ref, service=BUDGET_LEASE, holder="they", reason="held by `they`")
    for _ in range(5):
        effects, admitted = gate.step(denied, T0)
        assert admitted is None
        assert isinstance(effects[0], m.SetTimer)
        assert isinstance(gate.step(m.TimerFired(ref=effects[0].ref), T0)[0][0], m.AcquireLease)
    effects, admitted = gate.step(denied, T0)
    assert admitted is not None
    assert "held by `they`" in (admitted.refusal or "")
    assert gate.done() == ()


def test_an_order_that_is_called_off_while_it_waits_comes_out_refused():
    gate = GrowthGate(SETTINGS, FLEET)
    [ask] = gate.take(order(GROW))
    gate.cancel("*", None, "kill switch")
    gate.step(m.LeaseGranted(ref=ask.ref, lease=LEASE), T0)
    admitted = gate.judge({})
    assert admitted is not None
    assert admitted.refusal == "kill switch"


# --- The whole actuator -----------------------------------------------------------------------------------------------


def test_growth_that_another_deployment_has_taken_meanwhile_is_refused_before_anything_is_written():
    world = grown(None)
    world.tell(order(GROW))
    world.run(until=lambda: any(r.proposal.proposal_id == "p-1" and r.state.final for r in world.reports))
    last = next(r for r in reversed(world.reports) if r.proposal.proposal_id == "p-1")
    assert last.state is ExecutionState.ABANDONED
    assert "are spoken for by now" in last.reason
    assert {"maxmemory": str(60 * MIB)} not in world.written


def test_the_intention_of_growth_is_fenced_by_the_lease_on_the_budget_and_gives_it_back():
    world = World()
    world.tell(order(GROW))
    world.run()
    [intended] = [e for e in world.performed if isinstance(e, m.Record) and e.kind == "change_intended"]
    assert [name for name, _ in intended.fences] == ["sessions", BUDGET_LEASE]
    given_back = [e.lease.service for e in world.performed if isinstance(e, m.ReleaseLease)]
    assert given_back[0] == BUDGET_LEASE
    assert world.last.state is ExecutionState.KEPT


def test_an_intention_under_a_budget_that_another_had_meanwhile_is_given_up():
    world = World(
        lambda _i, e: (
            Fault("LeaseLost", details={"service": BUDGET_LEASE})
            if isinstance(e, m.Record) and e.kind == "change_intended"
            else None
        )
    )
    world.tell(order(GROW))
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert world.written == []
