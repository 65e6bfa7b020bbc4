"""Decides one optimisation request from what is known, without asking anybody: a pure function.

It takes the standing decision on the service, judges exactly that proposal again by the constitution, and says what
becomes of the request and what must be recorded before it may happen. It never executes, waits, records or reads a
clock. INVARIANT: `execute` is set only with a complete ALLOW verdict of this moment, a GO resolution, a fresh state,
an unexpired proposal, and nothing paused or in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Final

from cachewarden.codec import kept_digest
from cachewarden.errors import ConstitutionalComplianceError, OperatingError
from cachewarden.fleet import Service
from cachewarden.messages import (
    CONSTITUTIONAL_HASH,
    Execution,
    ExecutionState,
    Proposal,
    RecordKind,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.models import CacheOptimizationResponse
from cachewarden.observation import Snapshot
from cachewarden.pauses import longest_pause_ms
from cachewarden.policy.engine import refusal
from cachewarden.policy.second_opinion import carried
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute, FleetState
from cachewarden.settings import CacheOptimizerSettings
from serve.answers import Checks, checks_of, compliance_of, improvement_of
from serve.courses import Apply, Asked, Course, already_so, confirmed, course_of
from serve.docket import Docket, Grounds

__all__ = [
    "Apply",
    "Asked",
    "DecisionOutcome",
    "StateTooOld",
    "decide",
    "fresh_state",
    "max_age_ms_of",
    "with_execution",
]


NOTHING_JUDGED: Final = checks_of(None)


def _no_lap(_step: str) -> None:
    """Nobody measures."""


class StateTooOld(OperatingError):
    """What is known of the fleet is missing or too old to decide on; `public_reason` may be told to the caller."""

    def __init__(self, public_reason: str) -> None:
        self.public_reason = public_reason
        super().__init__(public_reason)


@dataclass(frozen=True, kw_only=True)
class DecisionOutcome:
    """What was decided. `record` must be durable before `execute` is sent or the response is given; `respond` makes the
    response, which nothing but the asker waits for.

    `wants_cycle`: a forced request found nothing that may go ahead now, so a cycle with the service in `force` may
    find it.
    """

    state: str
    record: RecordDraft
    respond: Callable[[], CacheOptimizationResponse]
    proposal: Proposal | None
    verdict: Verdict | None
    verdict_complete: bool
    execute: Execute | None = None
    wants_cycle: bool = False

    @cached_property
    def response(self) -> CacheOptimizationResponse:
        """The answer, made when it is first asked for."""
        return self.respond()


def max_age_ms_of(settings: CacheOptimizerSettings) -> int:
    """Return how old a state may be to be decided on: the longest pause between two cycles, and two cycles more."""
    interval_ms = settings.cycle_interval_ms
    return 2 * interval_ms + longest_pause_ms(interval_ms, settings.idle_factor)


def fresh_state(state: FleetState | None, now_ms: int, max_age_ms: int) -> FleetState:
    """Return the state if it may be decided on; raises StateTooOld."""
    if state is None:
        raise StateTooOld("the fleet has not been observed yet, ask again later")
    if state.at_ms - now_ms > max_age_ms:
        raise StateTooOld("the clock went back, the fleet has to be observed again, ask again later")
    if now_ms - state.at_ms > max_age_ms:
        raise StateTooOld(
            f"the state is too old: {(now_ms - state.at_ms) / 1000:.0f} s, "
            f"at most {max_age_ms / 1000:.0f} s may be decided on"
        )
    return state


def _judge(docket: Docket, service: Service, snapshot: Snapshot | None, now_ms: int) -> tuple[Verdict | None, bool]:
    """Judge the standing proposal now; returns the verdict and whether it is complete.

    A change that is under way, done or in force already was judged before it began; judged again it would be stale by
    its own effect, so its verdict of then is told.
    """
    state, constitution = docket.state, docket.grounds.constitution
    standing, latest = state.standing.get(service.name), docket.latest(service.name)
    proposal = standing.proposal if standing is not None else None
    another = latest is not None and not latest.state.final and latest.proposal != proposal
    if proposal is None or standing is None or another:
        order = None if latest is None else state.handed_over.get(latest.proposal.proposal_id)
        if order is None or latest is None or order.verdict is None:
            return None, False
        return order.verdict, docket.is_complete(order.verdict, kept_digest(latest.proposal))
    begun = latest is not None and (not latest.state.final or latest.proposal.proposal_id == proposal.proposal_id)
    if begun or already_so(proposal, snapshot):
        verdict = standing.verdict
        return verdict, verdict is not None and docket.is_complete(verdict, kept_digest(proposal))
    if snapshot is None:
        verdict = refusal(constitution, proposal, now_ms, "the cache could not be observed")
        return verdict, docket.is_complete(verdict, kept_digest(proposal))
    prepared = docket.prepared(proposal, snapshot)
    mode = docket.grounds.settings.constitutional_ai_mode
    verdict = carried(prepared.judge(now_ms), standing.verdict, mode, service.mode)
    return verdict, docket.is_complete(verdict, prepared.digest)


def _settled_now(asked: Asked, docket: Docket, found: Course, verdict: Verdict, now_ms: int) -> Course:
    """Return the course after a second look at what may have moved since the cycle: intents, budgets, cool-down."""
    assert found.proposal is not None
    forced = asked.request.force_optimization
    obstacle = docket.obstacle(found.proposal, verdict, now_ms, force=forced)
    if obstacle is None:
        return found
    if found.proposal.proposal_id in obstacle.conflicts_with:
        return Course(state="in_flight", reason=obstacle.reason, proposal=found.proposal)
    state = "waiting" if obstacle.outcome is ResolutionOutcome.WAIT else "yielded"
    return Course(state=state, reason=obstacle.reason, proposal=found.proposal, wants_cycle=forced)


def decide(
    asked: Asked,
    state: FleetState | None,
    grounds: Grounds,
    now_ms: int,
    docket: Docket | None = None,
    lap: Callable[[str], None] = _no_lap,
) -> DecisionOutcome:
    """Decide one request. `docket` saves time where one was made of this very state already; `lap` is told the name of
    each step when it ends.

    Raises ConstitutionalComplianceError for a wrong hash, UnknownService, and StateTooOld where the state is missing
    or older than the longest pause and two cycles.
    """
    request = asked.request
    if request.constitutional_hash != CONSTITUTIONAL_HASH:
        raise ConstitutionalComplianceError(request.constitutional_hash)
    service = grounds.fleet.service(request.service_name)
    known = fresh_state(state, now_ms, max_age_ms_of(grounds.settings))
    at_hand = docket if docket is not None and docket.holds(known, grounds) else Docket(known, grounds)
    snapshot = known.snapshots.get(service.name)
    lap("plan_ms")
    judged, complete = _judge(at_hand, service, snapshot, now_ms)
    lap("constitution_ms")
    found = course_of(asked, at_hand, service, snapshot, judged if complete else None, now_ms)
    verdict = (
        judged
        if judged is not None and found.proposal is not None and judged.proposal_id == found.proposal.proposal_id
        else None
    )
    if found.go and verdict is not None:
        found = _settled_now(asked, at_hand, found, verdict, now_ms)
    execute = _order(known, service, snapshot, found, verdict)
    if execute is not None and asked.apply == "never":
        execute = None
        found = Course(
            state="dry_run",
            reason="the plan would be carried out, but `apply=never` asks that nothing be done",
            proposal=found.proposal,
        )
    lap("settlement_ms")
    checks = NOTHING_JUDGED if verdict is None else at_hand.checks(verdict)
    record = _record(asked, found, verdict, checks, execute is not None, now_ms, known)
    lap("answer_ms")
    return DecisionOutcome(
        state=found.state,
        record=record,
        respond=partial(_response, asked, service, snapshot, found, verdict, checks, at_hand, now_ms),
        proposal=found.proposal,
        verdict=verdict,
        verdict_complete=complete and verdict is not None,
        execute=execute,
        wants_cycle=found.wants_cycle and asked.apply != "never" and not known.paused,
    )


def _order(
    state: FleetState, service: Service, snapshot: Snapshot | None, found: Course, verdict: Verdict | None
) -> Execute | None:
    standing = state.standing.get(service.name)
    if not found.go or found.proposal is None or verdict is None or standing is None or standing.resolution is None:
        return None
    return Execute(
        proposal=found.proposal,
        verdict=verdict,
        resolution=standing.resolution,
        hit_ratio_before=None if snapshot is None else snapshot.hit_ratio,
        latency_us_p99_before=None if snapshot is None else snapshot.latency_us_p99,
    )


def _response(
    asked: Asked,
    service: Service,
    snapshot: Snapshot | None,
    found: Course,
    verdict: Verdict | None,
    checks: Checks,
    docket: Docket,
    now_ms: int,
) -> CacheOptimizationResponse:
    telling = docket.telling(service, found.proposal, found.execution, verdict)
    notes = docket.notes(asked.request.target_metrics, service, telling)
    recommendations = [*(() if found.applied else telling.words), found.reason, *notes]
    missing = docket.state.missing.get(service.name)
    if missing:
        recommendations.append(f"`{service.name}` could not be observed: {missing}")
    elif snapshot is None:
        recommendations.append(f"`{service.name}` has not been observed yet")
    return CacheOptimizationResponse(
        optimization_applied=found.applied,
        optimization_plan=telling.plan,
        performance_improvement=telling.levels,
        prediction_basis=telling.basis,
        constitutional_compliance=compliance_of(
            found.proposal, verdict, checks, docket.grounds.constitution.digest, now_ms
        ),
        recommendations=recommendations,
        risk_assessment=telling.risk,
        estimated_impact=telling.impact,
        decision_id=asked.decision_id,
        service_name=service.name,
        state=found.state,
        reason=found.reason,
    )


def _record(
    asked: Asked,
    found: Course,
    verdict: Verdict | None,
    checks: Checks,
    execute: bool,
    now_ms: int,
    state: FleetState,
) -> RecordDraft:
    request = asked.request
    payload: Mapping[str, Any] = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "request": {
            "service_name": request.service_name,
            "optimization_type": request.optimization_type,
            "force_optimization": request.force_optimization,
            "target_metrics": dict(request.target_metrics),
            "apply": asked.apply,
        },
        "caller": asked.caller,
        "decided_on": {"life_ms": state.life_ms, "version": state.version, "at_ms": state.at_ms},
        "state": found.state,
        "reason": found.reason,
        "applied": found.applied,
        "will_execute": execute,
        "proposal_id": None if found.proposal is None else found.proposal.proposal_id,
        "verdict": None
        if verdict is None
        else {
            "decision": verdict.decision.value,
            "denied_by": checks.denied_by,
            "proposal_digest": verdict.proposal_digest,
            "constitution_digest": verdict.constitution_digest,
            "judged_at_ms": verdict.judged_at_ms,
        },
    }
    return RecordDraft(
        at_ms=now_ms,
        kind=RecordKind.REQUEST_DECIDED.value,
        agent="api",
        service=request.service_name,
        subject_id=asked.decision_id,
        payload=payload,
    )


def with_execution(
    outcome: DecisionOutcome, execution: Execution | None, snapshot: Snapshot | None
) -> CacheOptimizationResponse:
    """Return the answer with what became of the execution by now; None means that the actuator has not reported yet."""
    response = outcome.response
    if execution is None:
        return response
    applied = confirmed(execution, snapshot)
    levels, basis = improvement_of(outcome.proposal, snapshot, execution)
    said = execution.reason or execution.state.value
    reason = {
        ExecutionState.OBSERVING: f"the cache confirmed the new configuration, its effect is being measured: {said}",
        ExecutionState.KEPT: f"the change was kept: {said}",
        ExecutionState.ROLLED_BACK: f"the change was taken back: {said}",
        ExecutionState.ABANDONED: f"the change was not carried out: {said}",
        ExecutionState.FAILED: f"the change failed and a person has to look: {said}",
    }.get(execution.state, f"the change is being carried out: {said}")
    return response.model_copy(
        update={
            "optimization_applied": applied,
            "state": "in_flight" if not execution.state.final else "in_force" if applied else execution.state.value,
            "reason": reason,
            "performance_improvement": levels,
            "prediction_basis": basis,
            "recommendations": [*([] if applied else response.recommendations), reason],
        }
    )
