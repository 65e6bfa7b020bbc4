"""The actuator and modes: in `advise` and `off` nothing is written, whatever is ordered, stands or was left open."""

from __future__ import annotations

import pytest

from cachewarden import machine as m
from cachewarden.messages import AuditRecord, ExecutionState, Mode, RecordKind
from cachewarden.protocol import CancelExecution, ModesChanged, SetPaused
from tests.unit.agents.actuator_world import RULE, World, change, order, proposal

WRITES = (m.AcquireLease, m.WriteKnobs, m.ExtendTtls, m.TouchHotKeys)
SAMPLES = proposal(change("maxmemory-samples", "7"))


def silenced(mode: Mode = Mode.ADVISE) -> ModesChanged:
    return ModesChanged(modes={"sessions": mode})


def quiet_for(world: World, ms: int = 60_000) -> bool:
    """Let time pass; say whether nothing was asked for that writes to a cache."""
    before = len(world.performed)
    world.run(ms, until=lambda: False)
    return not any(isinstance(effect, WRITES) for effect in world.performed[before:])


@pytest.mark.parametrize("mode", [Mode.ADVISE, Mode.OFF])
def test_an_order_is_refused(mode: Mode):
    world = World()
    world.tell(silenced(mode))
    world.tell(order(SAMPLES))
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert f"`{mode.value}`" in world.last.reason
    assert not any(isinstance(effect, WRITES) for effect in world.performed)


def test_a_standing_rule_rests_and_goes_on_when_it_may():
    world = World()
    world.tell(order(proposal(rules=(RULE,), playbook="ttl_rule")))
    world.run()
    assert world.last.state is ExecutionState.KEPT
    world.tell(silenced())
    world.run(1_000, until=lambda: False)
    assert quiet_for(world)
    world.tell(ModesChanged(modes={}))
    assert not quiet_for(world)


def test_what_an_earlier_life_left_open_is_left_alone_until_it_may_be_finished():
    world = World()
    world.tell(order(SAMPLES))
    world.run(until=lambda: "change_intended" in world.kinds)
    moded = AuditRecord(
        seq=10_000,
        at_ms=world.now_ms,
        kind=RecordKind.MODE_CHANGED.value,
        agent="coordinator",
        service="sessions",
        subject_id="sessions",
        payload={"mode": "advise", "file_mode": "auto"},
    )
    world.journal.append(moded)
    world.start()
    assert quiet_for(world)
    world.tell(ModesChanged(modes={}))
    world.run()
    assert world.last.state.final


def test_a_change_in_flight_is_taken_back_on_the_way_to_advise_and_then_it_is_quiet():
    world = World()
    world.tell(order(SAMPLES))
    world.run(until=lambda: "step_applied" in world.kinds)
    world.tell(CancelExecution(service="sessions", reason="the mode became `advise`", in_flight_only=True))
    world.tell(silenced())
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs["maxmemory-samples"] == "5"
    world.run(10_000, until=lambda: False)
    assert quiet_for(world)


def test_a_cancellation_of_what_is_in_flight_leaves_kept_rules_as_they_stand():
    world = World()
    world.tell(order(proposal(rules=(RULE,), playbook="ttl_rule")))
    world.run()
    world.tell(CancelExecution(service="sessions", reason="x", in_flight_only=True))
    world.run(10_000, until=lambda: False)
    assert world.last.state is ExecutionState.KEPT


def test_a_stop_that_was_lost_is_made_up_for_when_the_mode_is_told_again():
    world = World()
    world.tell(order(SAMPLES))
    world.run(until=lambda: "step_applied" in world.kinds)
    world.tell(silenced())
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs["maxmemory-samples"] == "5"


def test_a_kill_reaches_what_a_mode_held_back():
    world = World()
    world.tell(order(SAMPLES))
    world.run(until=lambda: "step_applied" in world.kinds)
    world.journal.append(
        AuditRecord(
            seq=10_000,
            at_ms=world.now_ms,
            kind=RecordKind.MODE_CHANGED.value,
            agent="coordinator",
            service="sessions",
            subject_id="sessions",
            payload={"mode": "advise", "file_mode": "auto"},
        )
    )
    world.start()
    assert quiet_for(world, 5_000)
    world.tell(SetPaused(paused=True, by="a person", reason="stop", kill=True))
    world.tell(SetPaused(paused=False, by="a person", reason="go on", kill=False))
    world.tell(ModesChanged(modes={}))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs["maxmemory-samples"] == "5"
