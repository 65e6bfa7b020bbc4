"""The projection: what others read of us, complete, in order, and the same however often it is told."""

from __future__ import annotations

import dataclasses
import json

import pytest

from cachewarden.codec import digest
from cachewarden.estimate import Estimate
from cachewarden.machine import Publish
from cachewarden.messages import (
    AGENT_ID,
    CAPABILITIES,
    CONSTITUTIONAL_HASH,
    ActionClass,
    Decision,
    Execution,
    ExecutionState,
    Finding,
    KnobChange,
    Prediction,
    Proposal,
    Resolution,
    ResolutionOutcome,
    TtlRule,
    Verdict,
)
from cachewarden.protocol import ChainChecked, FleetState, StandingDecision
from coordination import projection
from simulation.fake_blackboard import FakeBlackboard

NOW = 1_800_000_000_000


def proposal(name: str = "p-1", service: str = "shop", action_class: ActionClass = ActionClass.GROWTH) -> Proposal:
    gain = Estimate(0.03, 0.01, 0.05)
    return Proposal(
        proposal_id=name,
        service=service,
        author="planner",
        created_at_ms=NOW,
        expires_at_ms=NOW + 300_000,
        kinds=("memory", "ttl"),
        knob_changes=(KnobChange(knob="maxmemory", before="100", after="200"),),
        ttl_rules=(TtlRule(pattern="user:", written_ttl_ms=1, extended_ttl_ms=2, max_staleness_ms=3),),
        action_class=action_class,
        reversible=True,
        playbook="direct",
        rollback="put it back",
        rationale="because",
        evidence=(),
        cost={},
        prediction=Prediction(
            hit_ratio_before=Estimate(0.9, 0.9, 0.9),
            hit_ratio_after=Estimate(0.93, 0.91, 0.95),
            gain=gain,
            lookups_per_s=10.0,
            memory_bytes_after=200,
            latency_us_p99_after=None,
            method="mixture",
            settle_ms=1,
        ),
    )


def verdict(of: Proposal, decision: Decision = Decision.ALLOW) -> Verdict:
    finding = Finding(principle_id="p1", title="t", severity="high", decision=decision, reason="r")
    return Verdict(
        proposal_id=of.proposal_id,
        proposal_digest=digest(of),
        decision=decision,
        findings=(finding,),
        constitution_digest="d",
        judged_at_ms=NOW,
    )


def resolution(
    of: Proposal, outcome: ResolutionOutcome = ResolutionOutcome.GO, conflicts: tuple[str, ...] = ()
) -> Resolution:
    return Resolution(
        proposal_id=of.proposal_id, service=of.service, outcome=outcome, reason="room enough", conflicts_with=conflicts
    )


def execution(state: ExecutionState, of: Proposal | None = None, **more) -> Execution:
    return Execution(
        execution_id="e-1",
        proposal=of or proposal(),
        state=state,
        started_at_ms=NOW,
        updated_at_ms=NOW,
        reason="as promised",
        **({"hit_ratio_before": 0.9, "hit_ratio_after": 0.94} if state.final else {}) | more,
    )


async def perform(board: FakeBlackboard, effects: tuple[Publish, ...]) -> None:
    for effect in effects:
        json.dumps(dict(effect.arguments))
        await getattr(board, effect.operation)(**effect.arguments)


def operations(effects) -> list[str]:
    return [e.operation for e in effects]


async def test_we_present_ourselves_with_our_four_capabilities():
    board = FakeBlackboard()
    await perform(board, projection.register(NOW))
    await perform(board, projection.heartbeat(NOW + 30_000, 30_000, 86_400_000))
    [agent] = await board.active_agents()
    assert agent["agent_id"] == "cache_performance_optimizer"
    assert agent["agent_type"] == "performance_optimization"
    assert agent["capabilities"] == list(CAPABILITIES)
    await perform(board, projection.farewell())
    assert await board.active_agents() == []


@pytest.mark.constitutional
async def test_a_settled_plan_is_found_under_both_types_and_carries_the_hash():
    board, plan = FakeBlackboard(), proposal()
    await perform(board, projection.plan_settled(plan, verdict(plan), resolution(plan), NOW))
    for kind in ("cache_optimization_plan", "optimization_activity"):
        [item] = await board.query_knowledge("performance", kind, ["cache"])
        content = item["content"]
        assert content["constitutional_hash"] == CONSTITUTIONAL_HASH
        assert (content["status"], content["affected_services"], content["affected_keys"]) == (
            "approved",
            ["shop"],
            ["user:"],
        )
        assert item["tags"] == ["cache", "performance"]
        assert item["priority"] in (1, 2, 3)
        assert item["agent_id"] == AGENT_ID


@pytest.mark.parametrize(
    ("outcome", "decision", "status"),
    [
        (ResolutionOutcome.GO, Decision.ALLOW, "approved"),
        (ResolutionOutcome.WAIT, Decision.ALLOW, "waiting"),
        (ResolutionOutcome.YIELD, Decision.ALLOW, "yielded"),
        (ResolutionOutcome.ADVISE, Decision.ALLOW, "advised"),
        (ResolutionOutcome.YIELD, Decision.DENY, "denied"),
    ],
)
def test_the_status_of_a_plan_says_what_became_of_it(outcome, decision, status):
    plan = proposal()
    effects = projection.plan_settled(plan, verdict(plan, decision), resolution(plan, outcome), NOW)
    assert {e.arguments["item"]["content"]["status"] for e in effects} == {status}


@pytest.mark.parametrize("action_class", list(ActionClass))
def test_the_riskier_a_plan_the_more_urgent_it_is_to_read(action_class):
    plan = proposal(action_class=action_class)
    [effect, _] = projection.plan_settled(plan, verdict(plan), resolution(plan), NOW)
    assert effect.arguments["item"]["priority"] == {0: 3, 1: 3, 2: 2, 3: 1, 4: 1}[action_class]


async def test_a_change_is_a_task_that_we_create_claim_and_finish():
    board, plan = FakeBlackboard(), proposal()
    steps = [
        execution(s, plan)
        for s in (ExecutionState.LEASING, ExecutionState.STEPPING, ExecutionState.OBSERVING, ExecutionState.KEPT)
    ]
    before = None
    for step in steps:
        await perform(board, projection.execution_changed(before, step, NOW + 1_000, verdict(plan)))
        before = step
    task = await board.task(projection.task_id_of(steps[0]))
    assert (task["task_type"], task["status"], task["agent_id"], task["requirements"]) == (
        "cache_optimization",
        "completed",
        AGENT_ID,
        {},
    )
    assert task["input_data"]["agent_id"] == AGENT_ID
    assert task["input_data"]["constitutional_hash"] == CONSTITUTIONAL_HASH
    output = task["output_data"]
    assert set(output) == {"optimization_response", "coordination_result", "constitutional_compliance"}
    assert output["constitutional_compliance"] is True
    assert output["optimization_response"]["optimization_applied"] is True
    assert output["optimization_response"]["realised"]["gain"] == pytest.approx(0.04)
    [plan_item] = await board.query_knowledge("performance", "cache_optimization_plan")
    assert plan_item["content"]["status"] == "completed"
    assert plan_item["task_id"] == task["id"]


def test_the_task_is_claimed_in_the_moment_in_which_it_is_created():
    create, *_ = projection.execution_changed(None, execution(ExecutionState.LEASING), NOW)
    assert (create.operation, create.arguments["claimed_by"]) == ("create_task", AGENT_ID)


def test_a_step_that_changes_no_state_is_not_told():
    one = execution(ExecutionState.STEPPING, step=1)
    assert projection.execution_changed(one, dataclasses.replace(one, step=2), NOW) == ()


@pytest.mark.parametrize(
    ("state", "task_status", "applied"),
    [("rolled_back", "completed", False), ("abandoned", "failed", False), ("failed", "failed", False)],
)
async def test_a_change_that_was_not_kept_is_never_told_as_applied(state, task_status, applied):
    board = FakeBlackboard()
    done = execution(ExecutionState(state))
    await perform(board, projection.execution_changed(None, done, NOW, verdict(done.proposal)))
    task = await board.task(projection.task_id_of(done))
    assert task["status"] == task_status
    assert task["output_data"]["optimization_response"]["optimization_applied"] is applied
    assert (task["error_details"] is None) == (task_status == "completed")
    [item] = await board.query_knowledge("performance", "optimization_activity")
    assert item["content"]["status"] == state


def test_compliance_is_not_claimed_without_the_verdict_or_with_one_for_something_else():
    done = execution(ExecutionState.KEPT)

    def claimed(v):
        [finish] = [e for e in projection.execution_changed(None, done, NOW, v) if e.operation == "finish_task"]
        return finish.arguments["output"]["constitutional_compliance"]

    assert claimed(None) is None
    assert claimed(verdict(done.proposal)) is True
    assert claimed(verdict(done.proposal, Decision.DENY)) is False
    assert claimed(verdict(proposal("p-1", "another"))) is False


@pytest.mark.parametrize(
    ("outcome", "other"),
    [(ResolutionOutcome.WAIT, "p-2"), (ResolutionOutcome.GO, "p-2"), (ResolutionOutcome.YIELD, "peer_agent")],
)
def test_what_is_not_ours_to_settle_is_not_declared_settled(outcome, other):
    plan = proposal()
    effects = projection.plan_settled(plan, verdict(plan), resolution(plan, outcome, (other,)), NOW)
    assert set(operations(effects)) == {"add_knowledge"}
    assert effects[0].arguments["item"]["content"]["resolution"]["conflicts_with"] == [other]


async def test_a_conflict_between_our_own_plans_is_one_resolved_record_however_often_it_is_told():
    board, two = FakeBlackboard(), proposal("p-2", "other")
    for _ in range(2):
        await perform(
            board, projection.plan_settled(two, verdict(two), resolution(two, ResolutionOutcome.YIELD, ("p-1",)), NOW)
        )
    [text] = board.conflicts.values()
    conflict = json.loads(text)
    assert (conflict["conflict_type"], conflict["status"], conflict["involved_tasks"]) == (
        "resource_conflict",
        "resolved",
        [],
    )
    assert conflict["resolution_strategy"] == "priority_based_allocation"
    assert conflict["resolution_data"]["plans"] == ["p-1", "p-2"]


def state(version: int, executions: tuple[Execution, ...], standing: dict[str, StandingDecision]) -> FleetState:
    return FleetState(
        version=version,
        at_ms=NOW,
        cycle=1,
        phase="",
        paused=False,
        pause_reason="",
        snapshots={},
        missing={},
        first_hit_ratio={},
        standing=standing,
        executions=executions,
        agents={},
        journal_seq=0,
        decisions=0,
        decisions_compliant=0,
    )


async def test_a_lost_blackboard_is_rebuilt_from_the_state_and_a_second_time_changes_nothing():
    plan, idle = proposal(), StandingDecision(service="idle", decided_at_ms=NOW, idle_reason="nothing to do")
    decided = StandingDecision(
        service="shop", decided_at_ms=NOW, proposal=plan, verdict=verdict(plan), resolution=resolution(plan)
    )
    after = state(1, (execution(ExecutionState.KEPT, plan),), {"shop": decided, "idle": idle})
    board = FakeBlackboard()
    await perform(board, projection.fleet_changed(None, after, NOW))
    once = (dict(board.tasks), dict(board.knowledge), dict(board.agents))
    assert len(board.tasks) == 1
    assert len(board.knowledge) == 2
    await perform(board, projection.fleet_changed(None, after, NOW))
    assert (board.tasks, board.knowledge, board.agents) == once
    assert projection.fleet_changed(after, after, NOW) == ()


async def test_the_checkpoint_and_the_alarm_stand_apart_on_the_blackboard():
    board = FakeBlackboard()
    good = ChainChecked(ok=True, checked_at_ms=NOW, height=5, checkpoint_seq=5, checkpoint_hash="a" * 64, checked=5)
    bad = ChainChecked(
        ok=False,
        checked_at_ms=NOW,
        height=6,
        checkpoint_seq=5,
        checkpoint_hash="a" * 64,
        checked=6,
        problems=("record 6 edited",),
        problems_total=1,
    )
    await perform(board, (*projection.chain_checked(good, NOW), *projection.chain_checked(bad, NOW)))
    alarm, mark = await board.query_knowledge("compliance")
    assert (alarm["knowledge_type"], alarm["priority"]) == ("audit_chain_alarm", 1)
    assert mark["content"]["checkpoint"] == {"seq": 5, "hash": "a" * 64, "at_ms": NOW}


def test_the_blackboard_is_tidied_up_every_minute_and_not_with_every_beat():
    def tidied(interval_ms):
        beats = range(NOW, NOW + 1_800_000, interval_ms)
        told = [e.operation for at_ms in beats for e in projection.heartbeat(at_ms, interval_ms, 86_400_000)]
        assert told.count("heartbeat") == len(beats)
        return told.count("tidy")

    assert tidied(30_000) == 30
    assert tidied(600_000) == 3
