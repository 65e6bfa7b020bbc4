"""The actuator on a good day, and everything that it refuses to begin."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from agents.actuator import Actuator
from agents.admission import refusal_of
from cachewarden import machine as m
from cachewarden.codec import digest
from cachewarden.errors import InvariantViolation
from cachewarden.messages import ActionClass, Decision, ExecutionState, Finding, KnobChange, ResolutionOutcome, Verdict
from cachewarden.protocol import CancelExecution, SetPaused
from tests.unit.agents.actuator_world import (
    FLEET,
    KNOBS,
    MIB,
    SETTINGS,
    T0,
    World,
    change,
    order,
    proposal,
)

SWITCH = (change("maxmemory-policy", "allkeys-lru"),)


def done(world, wanted):
    world.tell(order(wanted))
    return world.run()


def names(world):
    """Effects in order, without keeping the lease, which goes on at the side."""
    return [type(e).__name__ for e in world.performed if not e.ref.endswith("#renew")]


def test_it_is_an_agent():
    assert isinstance(Actuator(holder="h", settings=SETTINGS, fleet=FLEET), m.Agent)


def test_a_direct_change_is_leased_checked_recorded_written_observed_and_kept():
    world = done(World(), proposal(*SWITCH))
    assert names(world) == [
        "AcquireLease",
        "ReadKnobs",
        "ReadCounters",
        "Record",
        "Record",
        "WriteKnobs",
        "Record",
        "ReadCounters",
        "ReadCounters",
        "ReadCounters",
        "ReadCounters",
        "ReadCounters",
        "Record",
        "Record",
        "ReleaseLease",
    ]
    assert world.kinds == ["change_intended", "step_intended", "step_applied", "observed", "change_kept"]
    assert world.last.state is ExecutionState.KEPT
    assert world.last.execution_id == "e-p-1-1"
    assert world.last.hit_ratio_after == pytest.approx(0.95, abs=0.001)
    assert world.last.realised_gain == pytest.approx(0.15, abs=0.001)


def test_the_states_are_told_in_order():
    world = done(World(), proposal(*SWITCH))
    states = [r.state for r in world.reports]
    assert [s for i, s in enumerate(states) if i == 0 or s is not states[i - 1]] == ["stepping", "observing", "kept"]


def test_the_intention_holds_all_that_a_later_life_needs():
    world = done(World(), proposal(*SWITCH))
    payload = world.journal[0].payload
    assert payload["proposal"]["proposal_id"] == "p-1"
    assert payload["backup"] == {"maxmemory-policy": "noeviction"}
    assert payload["plan"][0]["kind"] == "write_knobs"
    assert payload["baseline"]["hit_ratio"] == 0.80
    assert payload["verdict_digest"] == digest(order(proposal(*SWITCH)).verdict)


def test_the_last_window_shows_predicted_and_measured_side_by_side():
    world = done(World(), proposal(*SWITCH))
    seen = next(r.payload for r in world.journal if r.kind == "observed")
    assert seen["predicted_hit_ratio"]["value"] == 0.95
    assert seen["hit_ratio"] == pytest.approx(0.95, abs=0.001)
    assert seen["traffic_shifted"] is False


def test_shrinking_waits_for_memory_to_come_down_between_its_steps():
    world = done(World(), proposal(*SWITCH, change("maxmemory", 20 * MIB), playbook="shrink"))
    assert world.last.state is ExecutionState.KEPT
    assert [int(w["maxmemory"]) for w in world.written] == [35651584, 30303847, 25758270, 21894530, 20971520]
    assert world.written[0]["maxmemory-policy"] == "allkeys-lru"
    assert world.cache.used <= 20 * MIB


def test_memory_that_does_not_come_down_takes_the_shrinking_back():
    world = World()
    world.cache.evicts = False
    done(world, proposal(*SWITCH, change("maxmemory", 20 * MIB), playbook="shrink"))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "not coming down" in world.last.reason
    assert world.cache.knobs == KNOBS


def test_writes_that_begin_to_be_refused_while_shrinking_take_it_back():
    world = World()
    world.cache.evicts = False
    world.tell(order(proposal(*SWITCH, change("maxmemory", 20 * MIB), playbook="shrink")))
    world.run(until=lambda: len(world.written) == 1)
    world.run(700, until=lambda: False)
    world.cache.refused = 50
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "refused" in world.last.reason


def test_a_hot_set_is_carried_over_to_lfu():
    wanted = proposal(
        change("maxmemory-policy", "allkeys-lfu"),
        change("maxmemory", 50 * MIB),
        playbook="keep_hot_set",
        cost={"headroom_bytes": 3 * MIB},
    )
    world = done(World(), wanted)
    work = [n for n in names(world) if n in ("CollectHotKeys", "WriteKnobs", "TouchHotKeys")]
    assert work == ["CollectHotKeys", "WriteKnobs", "TouchHotKeys", "WriteKnobs"]
    assert world.cache.touches >= 12
    assert world.cache.knobs["maxmemory"] == str(50 * MIB)


def test_less_gain_than_promised_is_taken_back():
    world = World()
    world.cache.ratio = lambda c: 0.80
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "less than promised" in world.last.reason
    assert world.cache.knobs == KNOBS
    assert world.last.hit_ratio_after == pytest.approx(0.80, abs=0.001)


def test_a_crossed_guardrail_does_not_wait_for_the_window_to_end():
    world = World()
    world.cache.ratio = lambda c: 0.60
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.now_ms - T0 < SETTINGS.observation_window_ms // 2
    announced = next(r.payload for r in world.journal if r.kind == "rollback_intended")
    assert announced["observed"]["hit_ratio"] == pytest.approx(0.60, abs=0.001)


def test_hits_that_cannot_be_told_from_our_own_neither_keep_a_change_nor_take_it_back():
    world = World()
    world.cache.ratio = lambda c: 0.10 if c.incomplete and c.knobs != KNOBS else 0.95
    world.cache.incomplete = {"own_lookups": "`collector` was looking at the cache"}
    world.tell(order(proposal(*SWITCH)))
    world.run(until=lambda: world.count(m.ReadCounters) >= 4)
    assert not world.last.state.final
    world.cache.incomplete = {}
    world.run()
    assert world.last.state is ExecutionState.KEPT
    assert world.last.hit_ratio_after == pytest.approx(0.95, abs=0.001)


def test_a_change_whose_hits_stay_unknown_to_the_end_is_taken_back_as_unproven():
    world = World()
    world.cache.incomplete = {"own_lookups": "the ledger does not answer"}
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "could not be shown: our own lookups are not known" in world.last.reason


def test_writes_that_are_refused_raise_the_alarm_even_where_hits_are_unknown():
    world = World()
    world.cache.incomplete = {"own_lookups": "the ledger does not answer"}
    world.tell(order(proposal(*SWITCH)))
    world.run(until=lambda: world.count(m.ReadCounters) >= 3)
    world.cache.refused = 500
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "writes are refused" in world.last.reason


def test_what_cannot_be_undone_is_said():
    world = World()
    world.cache.ratio = lambda c: 0.60
    done(
        world, proposal(*SWITCH, change("maxmemory", 30 * MIB), reversible=False, rollback="evicted keys stay evicted")
    )
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "evicted keys stay evicted" in world.journal[-1].payload["cannot_be_undone"]


def test_no_traffic_takes_a_reversible_promise_back():
    world = World()
    world.cache.lookups_per_s = 0.0
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.last.hit_ratio_after is None


def test_a_cache_that_is_already_so_is_not_written_to():
    world = World()
    world.cache.knobs["maxmemory-policy"] = "allkeys-lru"
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.KEPT
    assert "already so" in world.last.reason
    assert world.written == []


def test_a_changed_precondition_is_named_with_found_and_expected():
    world = World()
    world.cache.knobs["maxmemory-policy"] = "volatile-ttl"
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ABANDONED
    assert "`maxmemory-policy` is `volatile-ttl`, the proposal was made for `noeviction`" in world.last.reason
    assert world.written == []


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c: setattr(c, "role", "slave"), "role is `slave`"),
        (lambda c: setattr(c, "loading", "1"), "loading"),
    ],
)
def test_a_replica_or_a_loading_server_is_left_alone(spoil, words):
    world = World()
    spoil(world.cache)
    done(world, proposal(*SWITCH))
    assert world.last.state is ExecutionState.ABANDONED
    assert words in world.last.reason
    assert world.written == []


def test_growth_beyond_the_host_is_refused():
    world = World()
    world.cache.host_bytes = 100 * MIB
    done(world, proposal(change("maxmemory", 90 * MIB)))
    assert world.last.state is ExecutionState.ABANDONED
    assert "80% of the host's" in world.last.reason


def deny():
    finding = Finding(principle_id="fair-floor", title="t", severity="high", decision=Decision.DENY, reason="no")
    wanted = proposal(*SWITCH)
    verdict = Verdict(
        proposal_id="p-1",
        proposal_digest=digest(wanted),
        decision=Decision.DENY,
        findings=(finding,),
        constitution_digest="c",
        judged_at_ms=T0,
    )
    return order(wanted, verdict=verdict)


GOOD = order(proposal(*SWITCH))
REFUSALS = {
    "denied": (deny(), "fair-floor"),
    "another proposal judged": (
        order(proposal(*SWITCH), verdict=order(proposal(change("maxmemory-samples", 9))).verdict),
        "another",
    ),
    "not resolved": (replace(GOOD, resolution=replace(GOOD.resolution, outcome=ResolutionOutcome.WAIT)), "`wait`"),
    "resolution of another": (replace(GOOD, resolution=replace(GOOD.resolution, proposal_id="p-2")), "another"),
    "expired": (order(proposal(*SWITCH, expires_at_ms=T0)), "expired"),
    "wrong hash": (replace(GOOD, constitutional_hash="0" * 16), "constitutional hash"),
    "wrong hash inside": (order(replace(proposal(*SWITCH), constitutional_hash="x")), "constitutional hash"),
    "unknown service": (order(proposal(*SWITCH, service="nobody")), "no service of the fleet"),
    "forbidden class": (order(proposal(*SWITCH, action_class=ActionClass.FORBIDDEN)), "never carried out"),
    "understated class": (order(proposal(*SWITCH, action_class=ActionClass.REVERSIBLE)), "claims `reversible`"),
    "unknown knob": (order(proposal(KnobChange(knob="appendonly", before="no", after="yes"))), "not in the knob table"),
    "bad value": (order(proposal(change("maxmemory-samples", 64))), "allowed: 3..10"),
    "cannot be set back": (order(proposal(change("maxmemory-samples", 10, 64))), "allowed: 3..10"),
    "not as printed": (order(proposal(change("maxmemory", "64mb"))), "as the server prints it"),
    "twice": (order(proposal(*SWITCH, *SWITCH)), "twice"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_an_order_is_refused_with_its_reason_and_touches_nothing(name):
    bad, words = REFUSALS[name]
    world = World()
    world.tell(bad)
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert words in world.last.reason
    assert world.kinds == ["change_abandoned"]
    assert names(world) == ["Record"]
    assert refusal_of(bad, FLEET, SETTINGS, T0) == world.last.reason


def test_a_paused_actuator_begins_nothing_and_stays_paused_over_a_restart():
    world = World()
    world.tell(SetPaused(paused=True, by="op", reason="audit"))
    done(world, proposal(*SWITCH))
    assert "paused" in world.last.reason
    world._do_Record(m.Record(kind="paused", service=None, subject_id="op", payload={}))
    world.start()
    done(world, proposal(*SWITCH, proposal_id="p-2"))
    assert "paused" in world.last.reason


def test_a_busy_service_takes_no_second_change_but_another_service_does():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.tell(order(proposal(change("maxmemory-samples", 10), proposal_id="p-2")))
    world.tell(order(proposal(change("maxmemory-samples", 10), proposal_id="p-3", service="pages")))
    world.run(60_000, until=lambda: sum(r.state.final for r in world.reports) == 3)
    ends = {r.proposal.proposal_id: (r.state.value, r.reason) for r in world.reports if r.state.final}
    assert ends["p-1"][0] == ends["p-3"][0] == "kept"
    assert ends["p-2"][0] == "abandoned"
    assert "busy with `p-1`" in ends["p-2"][1]


def test_the_same_order_again_is_answered_and_not_carried_out_twice():
    world = done(World(), proposal(*SWITCH))
    written = len(world.written)
    world.tell(order(proposal(*SWITCH)))
    assert world.reports[-1] == world.reports[-2]
    world.start()
    world.tell(order(proposal(*SWITCH)))
    assert world.last.state is ExecutionState.KEPT
    assert len(world.written) == written


def test_a_cancel_before_any_write_abandons():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.tell(CancelExecution(service="sessions", reason="not now"))
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert world.written == []


@pytest.mark.parametrize("service", ["sessions", "*"])
def test_a_cancel_while_observing_takes_the_change_back(service):
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(until=lambda: bool(world.reports) and world.last.state is ExecutionState.OBSERVING)
    world.run(2_000, until=lambda: False)
    world.tell(CancelExecution(service=service, reason="not now"))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.last.reason == "not now"
    assert world.cache.knobs == KNOBS


def test_a_cancel_for_another_service_changes_nothing():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.tell(CancelExecution(service="pages", reason="not now"))
    assert world.run().last.state is ExecutionState.KEPT


def test_the_kill_switch_takes_back_what_is_in_flight():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(5_000, until=lambda: False)
    world.tell(SetPaused(paused=True, by="op", reason="smoke", kill=True))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == KNOBS


def test_what_is_in_flight_is_told_as_intents():
    world = World()
    world.tell(order(proposal(*SWITCH, change("maxmemory", 50 * MIB))))
    world.run(until=lambda: bool(world.actuator._runs))
    found = {i.resource: (i.direction, i.amount) for i in world.actuator.intents(T0)}
    assert found == {"maxmemory-policy": (0, 0), "maxmemory": (1, 10 * MIB), "budget": (1, 10 * MIB)}
    world.run()
    assert world.actuator.intents(T0) == ()


def test_a_server_that_restarts_with_its_old_settings_ends_the_change_as_such():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(8_000, until=lambda: False)
    world.cache.run_id, world.cache.knobs, world.cache.hits, world.cache.misses = "r2", dict(KNOBS), 0.0, 0.0
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "restarted with other settings" in world.last.reason


def test_a_server_that_restarts_with_the_new_settings_is_observed_on():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(8_000, until=lambda: False)
    world.cache.run_id, world.cache.hits, world.cache.misses = "r2", 0.0, 0.0
    world.run()
    assert world.last.state is ExecutionState.KEPT
    assert world.kinds.count("observed") == 2


def test_a_value_that_somebody_else_sets_is_left_alone():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(8_000, until=lambda: False)
    world.cache.knobs["maxmemory-policy"] = "volatile-ttl"
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "somebody else" in world.last.reason
    assert world.cache.knobs["maxmemory-policy"] == "volatile-ttl"


def test_a_primary_that_becomes_a_replica_is_left_as_it_is():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    world.run(8_000, until=lambda: False)
    world.cache.role = "slave"
    world.run()
    assert world.last.state is ExecutionState.ABANDONED
    assert "role" in world.last.reason


def test_the_lease_is_renewed_as_long_as_the_change_lives_and_then_given_back():
    world = done(World(), proposal(*SWITCH))
    assert world.count(m.AcquireLease) >= (world.now_ms - T0) // SETTINGS.lease_ttl_ms * 2
    assert world.count(m.ReleaseLease) == 1


def test_an_answer_that_nobody_asked_for_raises_and_changes_nothing():
    world = World()
    world.tell(order(proposal(*SWITCH)))
    ref = world.performed[-1].ref
    before = pickle.dumps(world.actuator)
    with pytest.raises(InvariantViolation, match="never asked for"):
        world.actuator.step(m.TimerFired(ref=ref.rpartition("#")[0] + "#99"), T0)
    with pytest.raises(InvariantViolation, match="no answer"):
        world.actuator.step(m.KnobsWritten(ref=ref, service="sessions", values={}), T0)
    assert pickle.dumps(world.actuator) == before


def test_events_of_an_earlier_life_are_ignored():
    world = World()
    assert world.actuator.step(m.TimerFired(ref="p-0@1#1"), T0) == ()
    assert world.actuator.step(m.Received(sender="api", message="hello"), T0) == ()


def test_the_same_events_give_the_same_effects():
    one, two = done(World(), proposal(*SWITCH)), done(World(), proposal(*SWITCH))
    assert one.performed == two.performed
    assert one.reports == two.reports
