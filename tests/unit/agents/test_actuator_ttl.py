"""TTL rules stand as long as their change is kept: over restarts, beside other changes, until somebody takes them back."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.ttl_governor import IDLE_EVIDENCE, RuleRounds, idle_known_ms
from cachewarden import machine as m
from cachewarden.messages import Evidence, ExecutionState
from cachewarden.protocol import CancelExecution
from tests.unit.agents import actuator_world
from tests.unit.agents.actuator_world import (
    FENCE_EVICTED,
    KNOBS,
    RULE,
    SETTINGS,
    T0,
    UNAVAILABLE,
    Fault,
    World,
    change,
    order,
    proposal,
)

WANTED = proposal(rules=(RULE,), playbook="ttl_rule")


def kept(wanted=WANTED, **other):
    world = World(**other)
    world.tell(order(wanted))
    world.run()
    assert world.last.state is ExecutionState.KEPT
    return world


def passes_after(world, ms):
    before = len(world.cache.passes)
    world.run(ms, until=lambda: False)
    return world.cache.passes[before:]


def test_a_kept_rule_goes_on_for_as_long_as_it_stands_and_keeps_its_lease():
    world = kept()
    assert world.count(m.ReleaseLease) == 0
    assert len(passes_after(world, 60_000)) >= 10
    assert world._lease["sessions"][2] > world.now_ms


def test_no_key_waits_longer_than_its_written_ttl_for_the_next_visit():
    world = kept()
    world.cache.passes_per_round = 4
    starts = []
    world.cache.passes.clear()
    for _ in range(600):
        world.run(100, until=lambda: False)
        while world.cache.passes:
            if world.cache.passes.pop(0).cursor == 0:
                starts.append(world.now_ms)
    assert max(b - a for a, b in pairwise(starts)) < RULE.written_ttl_ms


def test_a_standing_rule_survives_a_restart():
    world = kept()
    world.start()
    assert len(passes_after(world, 30_000)) >= 3
    assert world.cache.fence == 2


def test_a_standing_rule_is_taken_back_and_told_so_once_its_owner_has_taken_the_consent_back(monkeypatch):
    world = kept()
    silent = tuple(s.model_copy(update={"patterns": ()}) for s in actuator_world.PERMISSIVE.services)
    monkeypatch.setattr(actuator_world, "PERMISSIVE", actuator_world.PERMISSIVE.model_copy(update={"services": silent}))
    world.start()
    passes = passes_after(world, 30_000)
    assert passes
    assert all(p.restore for p in passes)
    assert world.cache.extended == set()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert "declares no staleness" in world.last.reason
    assert world.journal[-1].kind == "change_rolled_back"


def test_a_standing_rule_waits_for_its_lease_for_as_long_as_it_takes():
    world = kept()
    world.foreign_lease = "other"
    world.start()
    assert passes_after(world, 300_000) == []
    world.foreign_lease = None
    assert passes_after(world, 60_000)


def test_taking_a_standing_rule_back_restores_the_keys_in_a_whole_round():
    world = kept()
    world.cache.passes_per_round = 3
    world.tell(CancelExecution(service="sessions", reason="stale pages"))
    world.run(60_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.extended == set()
    restoring = [p.cursor for p in world.cache.passes if p.restore]
    assert restoring == [0, 1, 2]
    assert not any(not p.restore for p in passes_after(world, 30_000))
    world.start()
    assert passes_after(world, 30_000) == []


def test_no_pass_extends_beside_the_one_that_restores():
    world = kept()
    world.cache.pass_ms = 300
    world.run(60_000, until=lambda: any(r.in_flight for run in world.actuator._runs.values() for r in run.rules))
    # The pass that is on its way is slow, the one that restores would overtake it.
    world.cache.pass_ms = 0
    world.tell(CancelExecution(service="sessions", reason="now"))
    world.run(60_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    world.run(1_000, until=lambda: False)
    assert world.cache.extended == set()
    first = next(i for i, p in enumerate(world.cache.passes) if p.restore)
    assert all(p.restore for p in world.cache.passes[first:])


def test_restoring_keeps_to_the_same_budget_as_extending():
    world = kept()
    world.cache.passes_per_round = 10
    world.tell(CancelExecution(service="sessions", reason="now"))
    begin = world.now_ms
    world.run(60_000)
    assert (world.now_ms - begin) * SETTINGS.ttl_keys_per_s // 1000 >= 9 * 1000


def test_revoking_a_rule_leaves_the_knobs_of_its_change_alone():
    world = kept(proposal(change("maxmemory-policy", "allkeys-lru"), rules=(RULE,)))
    world.tell(CancelExecution(service="*", reason="now"))
    world.run(60_000)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.knobs == {**KNOBS, "maxmemory-policy": "allkeys-lru"}


@pytest.mark.parametrize("crash_in_ms", [1, 3, 400, 700, 1_500])
def test_a_crash_while_revoking_is_finished_by_the_next_life_and_leaves_the_knobs_alone(crash_in_ms):
    world = kept(proposal(change("maxmemory-policy", "allkeys-lru"), rules=(RULE,)))
    world.cache.passes_per_round = 3
    world.tell(CancelExecution(service="*", reason="now"))
    world.run(crash_in_ms, until=lambda: False)
    world.start()
    world.run(60_000, until=lambda: "change_rolled_back" in world.kinds)
    world.run(10_000, until=lambda: False)
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.extended == set()
    assert world.cache.knobs == {**KNOBS, "maxmemory-policy": "allkeys-lru"}


def test_another_change_goes_on_beside_a_standing_rule_and_does_not_give_its_lease_away():
    world = kept()
    world.tell(order(proposal(change("maxmemory-samples", 10), proposal_id="p-2")))
    world.run(until=lambda: world.last.proposal.proposal_id == "p-2" and world.last.state.final)
    assert world.last.state is ExecutionState.KEPT
    assert world.count(m.ReleaseLease) == 0
    assert passes_after(world, 20_000)


def test_a_newer_rule_for_the_same_pattern_takes_the_place_of_the_older():
    world = kept()
    newer = replace(RULE, extended_ttl_ms=300_000)
    world.tell(order(proposal(rules=(newer,), playbook="ttl_rule", proposal_id="p-2")))
    world.run(until=lambda: world.last.proposal.proposal_id == "p-2" and world.last.state.final)
    assert {p.rule for p in passes_after(world, 30_000)} == {newer}
    world.start()
    assert {p.rule for p in passes_after(world, 30_000)} == {newer}


def test_a_fence_that_is_evicted_under_a_standing_rule_is_written_again():
    world = kept()
    world.cache.fence = None
    assert passes_after(world, 60_000)
    assert world.cache.fence == 1


def test_a_cache_that_is_away_for_a_while_is_governed_again_when_it_returns():
    world = kept()
    world.faults = lambda _i, e: UNAVAILABLE if isinstance(e, m.ExtendTtls) else None
    assert passes_after(world, 30_000) == []
    world.faults = lambda *_: None
    assert passes_after(world, 40_000)


def test_a_rule_that_brings_less_than_promised_is_taken_back():
    world = World()
    world.cache.ratio = lambda c: 0.80
    world.tell(order(WANTED))
    world.run()
    assert world.last.state is ExecutionState.ROLLED_BACK
    assert world.cache.extended == set()


def test_a_standing_rule_is_told_as_an_intent():
    world = kept()
    assert [i.resource for i in world.actuator.intents(world.now_ms)] == ["ttl:user:"]


def test_a_fence_that_is_missing_at_the_first_pass_is_written_again():
    world = World()
    seen = []

    def once(_i, e):
        if isinstance(e, m.ExtendTtls) and not seen:
            seen.append(e)
            return FENCE_EVICTED
        return None

    world.faults = once
    world.tell(order(WANTED))
    world.run()
    assert world.last.state is ExecutionState.KEPT


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5_000)), min_size=5, max_size=60), st.integers(1, 20_000))
def test_the_budget_of_keys_per_second_is_never_exceeded(passes, keys_per_s):
    rounds = RuleRounds(rule=RULE, keys_per_s=keys_per_s, round_started_ms=T0)
    now_ms, examined = T0, 0
    for more, share in passes:
        keys = min(share, rounds.pass_keys)
        examined += keys
        done = m.TtlsExtended(ref="", service="sessions", cursor=int(more), examined=keys, extended=0, commands=0)
        now_ms = rounds.note_pass(done, now_ms)
    assert examined <= keys_per_s * (now_ms - T0) / 1000 + 1


def test_a_standing_rule_that_waits_for_its_lease_does_not_block_other_changes_nor_looks_unfinished():
    world = kept()
    world.start()
    assert world.last.state is ExecutionState.KEPT
    world.tell(order(proposal(change("maxmemory-samples", 10), proposal_id="p-2")))
    world.run(1_000, until=lambda: False)
    assert "busy" not in world.last.reason


def test_a_newer_rule_takes_over_one_pattern_and_leaves_the_other_to_the_older():
    other = replace(RULE, pattern="page:")
    world = kept(proposal(rules=(RULE, other), playbook="ttl_rule"))
    newer = replace(RULE, extended_ttl_ms=300_000)
    world.tell(order(proposal(rules=(newer,), playbook="ttl_rule", proposal_id="p-2")))
    world.run(until=lambda: world.last.proposal.proposal_id == "p-2" and world.last.state.final)
    world.run(10_000, until=lambda: False)
    assert {p.rule for p in passes_after(world, 30_000)} == {newer, other}
    world.start()
    assert {p.rule for p in passes_after(world, 30_000)} == {newer, other}


def test_revoking_over_a_crash_respects_what_later_changes_have_set():
    world = kept(proposal(change("maxmemory-policy", "allkeys-lru"), rules=(RULE,)))
    world.cache.knobs["maxmemory-policy"] = "allkeys-lfu"
    world.cache.passes_per_round = 3
    world.tell(CancelExecution(service="sessions", reason="now"))
    world.run(700, until=lambda: False)
    world.start()
    world.run(60_000, until=lambda: "change_rolled_back" in world.kinds)
    assert world.kinds[-1] == "change_rolled_back"
    assert world.cache.knobs["maxmemory-policy"] == "allkeys-lfu"
    assert world.cache.extended == set()


def test_a_standing_rule_that_rests_says_why_and_no_more_once_it_goes_on():
    world = kept()
    said = world.last.reason
    refused = Fault("TargetRefused", "idle times are only believed for 3 s; possible from 12:00")
    world.faults = lambda _i, e: refused if isinstance(e, m.ExtendTtls) else None
    world.run(30_000, until=lambda: False)
    assert world.last.state is ExecutionState.KEPT
    assert "rests: " in world.last.reason
    assert "possible from 12:00" in world.last.reason
    world.faults = lambda *_: None
    assert passes_after(world, 40_000)
    assert world.last.reason == said


def test_what_the_plan_has_seen_of_idle_times_goes_with_its_passes_while_it_is_fresh():
    told = Evidence(name=IDLE_EVIDENCE, value=600_000, source="eviction policy in each look")
    plan = replace(WANTED, evidence=(told,), created_at_ms=T0)
    assert idle_known_ms(plan, T0 + 60_000) == 660_000
    assert idle_known_ms(plan, T0 + 300_001) == 0
    assert idle_known_ms(plan, T0 - 1) == 0
    assert idle_known_ms(WANTED, T0) == 0
    world = World()
    world.tell(order(plan))
    world.run()
    first = world.cache.passes[0]
    assert first.idle_known_ms >= 600_000
