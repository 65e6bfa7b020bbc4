"""Past outcomes widen what is promised next: through planner, proposal and the coordinator's memory."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents import guardrails
from agents.planner import plan_fleet
from cachewarden.cachemodel.scoring import (
    FACTOR_EVIDENCE,
    LOOKUPS_MIN,
    OUTCOMES_MIN,
    factor_of,
    outcomes_from_records,
    score,
)
from cachewarden.fleet import Fleet
from cachewarden.messages import Execution, ExecutionState, Proposal
from cachewarden.protocol import PlanFleet
from cachewarden.settings import load_settings
from coordination.fleet_memory import FleetMemory
from tests.unit.agents.actuator_world import FLEET, World, change, order, proposal
from tests.unit.agents.caches import MIB, NOW, fleet_of, snapshot_of, traffic

SETTINGS = load_settings(cycle_interval_ms=5_000)
FULL = snapshot_of("api", traffic(5_000, turnover=0.8), 6 * MIB, "noeviction")


def _plan(factor: float) -> Proposal:
    question = PlanFleet(cycle=1, snapshots=(FULL,), history={}, force=("api",), interval_factor=factor)
    (planned,) = plan_fleet(question, fleet_of("api"), SETTINGS, NOW).proposals
    return planned


def test_a_factor_widens_the_promise_around_the_same_value_and_is_named_as_evidence():
    plain, wide = _plan(1.0), _plan(1.5)
    before, after = plain.prediction.hit_ratio_after, wide.prediction.hit_ratio_after
    assert wide.knob_changes == plain.knob_changes
    assert after.value == before.value
    assert after.value - after.low == pytest.approx(1.5 * (before.value - before.low))
    assert wide.prediction.gain.low < plain.prediction.gain.low
    assert FACTOR_EVIDENCE not in {e.name for e in plain.evidence}
    assert (factor_of(plain), factor_of(wide)) == (1.0, 1.5)


def _ended(number: int, plan: Proposal, miss: float, state: ExecutionState = ExecutionState.KEPT) -> Execution:
    after = plan.prediction.hit_ratio_after
    return Execution(
        execution_id=f"e-{number}",
        proposal=replace(plan, proposal_id=f"p-{number}"),
        state=state,
        started_at_ms=NOW,
        updated_at_ms=NOW + number,
        hit_ratio_before=0.5,
        hit_ratio_after=after.value - miss * (after.value - after.low),
        comparable=True,
    )


def _memory(fleet: Fleet) -> FleetMemory:
    return FleetMemory(fleet, SETTINGS)


def test_the_coordinator_learns_the_factor_from_executions_as_they_end():
    memory, plan = _memory(fleet_of("api")), _plan(1.0)
    for number in range(OUTCOMES_MIN - 1):
        memory.note_execution(_ended(number, plan, 1.4), NOW)
    assert memory.score.interval_factor == 1.0
    memory.note_execution(_ended(99, plan, 1.4), NOW)
    assert memory.score.interval_factor == pytest.approx(1.4)
    state = memory.state(NOW, 1, "", life_ms=1)
    assert state.score is not None
    assert state.score.overall is not None
    assert state.score.overall.outcomes == OUTCOMES_MIN


def test_an_outcome_told_twice_counts_once_and_as_it_was_first_told():
    memory, plan = _memory(fleet_of("api")), _plan(1.0)
    memory.note_execution(_ended(1, plan, 0.5), NOW)
    memory.note_execution(_ended(1, plan, 5.0, ExecutionState.ROLLED_BACK), NOW)
    overall = memory.score.overall
    assert overall is not None
    assert (overall.outcomes, overall.coverage.value) == (1, 1.0)


def test_the_journal_gives_the_score_that_the_coordinator_has_learnt():
    # Given a change that the actuator keeps
    world = World()
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lru"))))
    world.run()
    memory = _memory(FLEET)
    for report in world.reports:
        memory.note_execution(report, NOW)
    # When its journal is read, by a later life or by the command line
    later = _memory(FLEET)
    later.replay(r for r in world.journal if r.kind in FleetMemory.replay_kinds)
    (outcome,) = outcomes_from_records(world.journal)
    # Then all agree
    assert (outcome.kept, outcome.comparable, outcome.inside) == (True, True, True)
    assert outcome.realised == pytest.approx(0.95, abs=0.001)
    assert memory.score.overall == later.score.overall == score([outcome]).overall
    assert memory.score.overall is not None


def test_an_outcome_under_other_traffic_is_left_out_of_the_score():
    world = World()
    world.cache.lookups_per_s = 5_000.0
    world.tell(order(proposal(change("maxmemory-policy", "allkeys-lru"))))
    world.run()
    (outcome,) = outcomes_from_records(world.journal)
    assert not outcome.comparable
    assert world.last.comparable is False


def test_what_proves_nothing_to_the_guardrails_proves_nothing_about_a_prediction():
    assert LOOKUPS_MIN == guardrails.LOOKUPS_MIN
