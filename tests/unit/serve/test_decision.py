"""What is decided on one request, from plain values."""

from __future__ import annotations

import dataclasses

import pytest
from serve_world import MIB, NOW_MS, execution, grounds, idle, proposal, snapshot, standing, state

from cachewarden.codec import digest
from cachewarden.errors import ConstitutionalComplianceError, UnknownService
from cachewarden.messages import CONSTITUTIONAL_HASH, Decision, ExecutionState, KnobChange, ResolutionOutcome
from cachewarden.models import CacheOptimizationRequest
from cachewarden.protocol import FleetState
from serve.decision import Asked, DecisionOutcome, StateTooOld, decide, with_execution


def ask(known: FleetState | None, apply: str = "auto", now_ms: int = NOW_MS, **fields: object) -> DecisionOutcome:
    request = CacheOptimizationRequest(**{"service_name": "constitutional_ai", **fields})
    return decide(Asked(request=request, decision_id="d1", caller="operator", apply=apply), known, grounds(), now_ms)


@pytest.mark.constitutional
def test_a_plan_that_everything_permits_is_executed_with_the_verdict_of_this_moment():
    plan = proposal()
    outcome = ask(state(standing=standing(plan)))
    assert outcome.response.state == "accepted"
    assert outcome.response.optimization_applied is False
    assert outcome.execute is not None
    assert outcome.execute.verdict.decision is Decision.ALLOW
    assert outcome.execute.verdict.judged_at_ms == NOW_MS
    assert outcome.execute.verdict.proposal_digest == digest(plan)
    assert outcome.execute.hit_ratio_before == 0.8
    assert outcome.verdict_complete
    assert outcome.response.constitutional_compliance["compliant"] is True
    assert outcome.record.payload["will_execute"] is True


@pytest.mark.constitutional
def test_a_plan_that_the_constitution_denies_now_is_not_executed_although_it_was_allowed_before():
    plan = proposal()
    known = state(standing=standing(plan), snapshots={"constitutional_ai": snapshot(role="slave")})
    outcome = ask(known)
    assert known.standing["constitutional_ai"].verdict.decision is Decision.ALLOW
    assert outcome.execute is None
    assert outcome.response.state == "denied"
    assert outcome.response.constitutional_compliance["compliant"] is False
    assert "out-of-bounds-stays-out" in outcome.response.constitutional_compliance["denied_by"]
    assert outcome.verdict_complete


@pytest.mark.constitutional
def test_force_does_not_force_the_constitution():
    known = state(standing=standing(proposal()), snapshots={"constitutional_ai": snapshot(role="slave")})
    outcome = ask(known, force_optimization=True)
    assert outcome.execute is None
    assert outcome.response.state == "denied"


@pytest.mark.constitutional
def test_a_plan_for_a_cache_that_nobody_sees_is_denied_by_a_complete_verdict():
    outcome = ask(state(standing=standing(proposal()), snapshots={}))
    assert outcome.response.state == "denied"
    assert outcome.verdict_complete
    assert not any(check["evaluated"] for check in outcome.response.constitutional_compliance["checks"])


def test_a_wrong_hash_is_refused_before_anything_else():
    with pytest.raises(ConstitutionalComplianceError):
        ask(None, constitutional_hash="deadbeef", service_name="nobody")


def test_an_unknown_service_names_the_known_ones():
    with pytest.raises(UnknownService, match="constitutional_ai"):
        ask(state(), service_name="constitutional_al")


@pytest.mark.parametrize("known", [None, state(at_ms=NOW_MS - 60_001), state(at_ms=NOW_MS + 60_001)])
def test_nothing_is_decided_on_a_missing_or_old_state_or_one_from_the_future(known: FleetState | None):
    with pytest.raises(StateTooOld):
        ask(known)


def test_a_state_of_three_cycles_may_still_be_decided_on():
    assert ask(state(at_ms=NOW_MS - 30_000)).response.state == "nothing_to_do"


def test_nothing_to_do_is_an_answer_with_its_reason_and_the_measured_levels():
    outcome = ask(state(standing=idle()))
    response = outcome.response
    assert response.state == "nothing_to_do"
    assert response.optimization_plan.opportunities == []
    assert "nothing misses that more memory could hold" in response.recommendations
    assert response.performance_improvement == {
        "cache_hit_rate": 0.8,
        "memory_efficiency": 0.9,
        "p99_latency_ms": 0.8,
        "latency_reduction_ms": 0.0,
    }
    assert set(response.prediction_basis.values()) == {"current"}
    assert response.constitutional_compliance["judged"] is False


def test_what_was_not_measured_is_null_and_says_so():
    bare = snapshot(hit_ratio=None, latency_us_p99=None, memory_efficiency=None)
    response = ask(state(standing=idle(), snapshots={"constitutional_ai": bare})).response
    assert set(response.performance_improvement.values()) == {None}
    assert set(response.prediction_basis.values()) == {"unknown"}


def test_a_plan_of_another_kind_is_not_what_was_asked_for():
    outcome = ask(state(standing=standing(proposal())), optimization_type="ttl")
    assert outcome.execute is None
    assert outcome.response.state == "nothing_to_do"
    assert "about memory" in outcome.response.reason


def test_a_plan_of_several_kinds_answers_each_of_them():
    plan = proposal(kinds=("memory", "ttl"))
    for kind in ("memory", "ttl", "comprehensive"):
        assert ask(state(standing=standing(plan)), optimization_type=kind).execute is not None
    assert ask(state(standing=standing(plan)), optimization_type="hotspot").execute is None


def test_a_dry_run_executes_nothing_and_says_what_it_would_do():
    outcome = ask(state(standing=standing(proposal())), apply="never")
    assert outcome.execute is None
    assert outcome.response.state == "dry_run"
    assert outcome.record.payload["will_execute"] is False


def test_while_paused_nothing_is_executed():
    outcome = ask(state(standing=standing(proposal()), paused=True, pause_reason="maintenance"))
    assert outcome.execute is None
    assert outcome.response.state == "paused"
    assert "maintenance" in outcome.response.reason


@pytest.mark.parametrize(
    ("service", "outcome_said", "expected"),
    [
        ("constitutional_ai", ResolutionOutcome.WAIT, "waiting"),
        ("constitutional_ai", ResolutionOutcome.YIELD, "yielded"),
        ("constitutional_ai", ResolutionOutcome.ADVISE, "advised"),
        ("api_gateway", ResolutionOutcome.GO, "awaits_approval"),
        ("integrity_service", ResolutionOutcome.GO, "advised"),
    ],
)
def test_only_go_in_mode_auto_is_executed(service: str, outcome_said: ResolutionOutcome, expected: str):
    plan = proposal(service)
    outcome = ask(state(standing=standing(plan, outcome_said, "cool-down until later")), service_name=service)
    assert outcome.execute is None
    assert outcome.response.state == expected
    assert "cool-down until later" in outcome.response.reason


def test_a_forced_request_that_must_wait_asks_for_a_cycle():
    known = state(standing=standing(proposal(), ResolutionOutcome.WAIT, "cool-down"))
    assert ask(known, force_optimization=True).wants_cycle
    assert not ask(known).wants_cycle
    assert not ask(known, force_optimization=True, apply="never").wants_cycle
    assert not ask(dataclasses.replace(known, paused=True), force_optimization=True).wants_cycle


def test_an_expired_plan_is_not_executed():
    plan = proposal(expires_at_ms=NOW_MS)
    assert ask(state(standing=standing(plan))).response.state in ("expired", "denied")
    assert ask(state(standing=standing(plan))).execute is None


def test_a_resolution_of_another_proposal_does_not_count():
    decided = standing(proposal())["constitutional_ai"]
    other = dataclasses.replace(decided.resolution, proposal_id="p-other")
    outcome = ask(state(standing={"constitutional_ai": dataclasses.replace(decided, resolution=other)}))
    assert outcome.execute is None
    assert outcome.response.state == "waiting"


def test_a_change_in_flight_is_told_and_not_started_again():
    plan = proposal()
    known = state(standing=standing(plan), executions=(execution(plan, ExecutionState.STEPPING),))
    outcome = ask(known)
    assert outcome.execute is None
    assert outcome.response.state == "in_flight"
    assert outcome.response.optimization_applied is False


def test_a_change_under_observation_is_applied():
    plan = proposal()
    known = state(standing=standing(plan), executions=(execution(plan, ExecutionState.OBSERVING),))
    assert ask(known).response.optimization_applied is True


def test_a_kept_change_that_the_server_still_shows_is_in_force_with_its_realised_level():
    plan = proposal()
    done = execution(plan, ExecutionState.KEPT, hit_ratio_after=0.955, updated_at_ms=NOW_MS - 5_000)
    shown = snapshot(knobs={"maxmemory-samples": "10"}, taken_at_ms=NOW_MS - 100)
    response = ask(state(standing=idle(), executions=(done,), snapshots={"constitutional_ai": shown})).response
    assert response.state == "in_force"
    assert response.optimization_applied is True
    assert response.performance_improvement["cache_hit_rate"] == 0.955
    assert response.prediction_basis["cache_hit_rate"] == "realised"


def test_a_kept_change_that_somebody_undid_is_not_in_force():
    plan = proposal()
    done = execution(plan, ExecutionState.KEPT, hit_ratio_after=0.955, updated_at_ms=NOW_MS - 5_000)
    shown = snapshot(knobs={"maxmemory-samples": "5"}, taken_at_ms=NOW_MS - 100)
    response = ask(state(standing=idle(), executions=(done,), snapshots={"constitutional_ai": shown})).response
    assert response.state == "nothing_to_do"
    assert response.optimization_applied is False


@pytest.mark.parametrize("stage", [ExecutionState.ROLLED_BACK, ExecutionState.ABANDONED, ExecutionState.FAILED])
def test_a_plan_that_ended_badly_is_told_and_not_tried_again(stage: ExecutionState):
    plan = proposal()
    outcome = ask(state(standing=standing(plan), executions=(execution(plan, stage),)))
    assert outcome.execute is None
    assert outcome.response.state == stage.value
    assert outcome.response.optimization_applied is False


def test_a_cache_that_already_is_what_the_plan_wants_is_applied_without_a_change():
    plan = proposal()
    known = state(standing=standing(plan), snapshots={"constitutional_ai": snapshot(knobs={"maxmemory-samples": "10"})})
    outcome = ask(known)
    assert outcome.execute is None
    assert outcome.response.state == "in_force"
    assert outcome.response.optimization_applied is True


def test_explicit_targets_that_are_met_change_the_plan_to_nothing():
    known = state(standing=standing(proposal()))
    assert ask(known, target_metrics={"cache_hit_rate": 0.8}).response.state == "targets_met"
    assert ask(known, target_metrics={"cache_hit_rate": 0.8}).execute is None
    assert ask(known, target_metrics={"cache_hit_rate": 0.9}).execute is not None
    assert ask(known, target_metrics={}).execute is not None


def test_a_target_that_the_plan_will_not_reach_is_said():
    response = ask(state(standing=standing(proposal())), target_metrics={"cache_hit_rate": 0.99}).response
    assert any("0.99" in line and "cache_hit_rate" in line for line in response.recommendations)


def test_the_answer_names_every_change_in_words_and_the_effect_with_its_interval():
    plan = proposal(knob_changes=(KnobChange(knob="maxmemory", before=str(40 * MIB), after=str(60 * MIB)),))
    response = ask(state(standing=standing(plan))).response
    assert any("from 40.0 MiB to 60.0 MiB" in line for line in response.recommendations)
    assert response.estimated_impact["hit_ratio_gain_low"] == 0.13
    assert response.estimated_impact["memory_delta_bytes"] == 20 * MIB
    assert response.constitutional_hash == CONSTITUTIONAL_HASH


def test_the_confirmation_of_the_actuator_is_what_makes_it_applied():
    plan = proposal()
    outcome = ask(state(standing=standing(plan)))
    assert with_execution(outcome, None, None).optimization_applied is False
    assert with_execution(outcome, execution(plan, ExecutionState.STEPPING), None).state == "in_flight"
    assert with_execution(outcome, execution(plan, ExecutionState.OBSERVING), None).optimization_applied is True
    assert with_execution(outcome, execution(plan, ExecutionState.ROLLED_BACK), None).optimization_applied is False
