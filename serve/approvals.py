"""What becomes of a person's approval, rejection, edit or rollback: checked here, taken by the coordinator.

Everything but HTTP. Checks are repeated by the coordinator, whose word counts. INVARIANT: who decides is the
authenticated holder of the token; nobody approves what he is the author of; a dry run changes and records nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final
from uuid import uuid4

import structlog

from agents.redrafting import counter_of, edited
from cachewarden.approval import (
    Approval,
    ApprovalOrigin,
    ApprovalState,
    DecideApproval,
    SubmitProposal,
    moved,
    needs_approval,
    refusal_of_decision,
    requested,
)
from cachewarden.errors import OperatingError
from cachewarden.fleet import Service
from cachewarden.messages import CONSTITUTIONAL_HASH, Execution, ExecutionState, Mode, Proposal, RecordKind, Verdict
from cachewarden.observation import Snapshot
from cachewarden.policy.engine import evaluate
from cachewarden.policy.facts import facts_of
from cachewarden.ports import RecordDraft
from cachewarden.protocol import FleetState
from serve.approval_views import (
    DecisionRequest,
    DecisionResponse,
    EditRequest,
    approval_view,
    judged_view,
)
from serve.context import Context, known_state
from serve.docket import others_of
from serve.errors import ApiError, clip, near_miss
from serve.looks import newest_look, rules_in_force
from serve.security import Caller

__all__ = ["Person", "decide", "edit", "find_approval", "roll_back"]

log = structlog.get_logger("serve.approvals")

_STOPPED: Final = "the actuator stops it and puts back what it has changed so far, step by step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who asks, about which plan, and whether it is only to be said what would happen."""

    caller: Caller
    plan_id: str
    dry_run: bool

    @property
    def identity(self) -> str:
        return self.caller.identity


def find_approval(state: FleetState, plan_id: str) -> Approval:
    """Return what is or was open for a plan; raises ApiError 404 with a near miss, 409 for a plan that needs none."""
    found = next((a for a in state.approvals if a.proposal_id == plan_id), None)
    if found is not None:
        return found
    at_hand = [d.proposal for d in state.standing.values() if d.proposal is not None]
    known = {p.proposal_id for p in (*at_hand, *(e.proposal for e in state.executions))}
    if plan_id in known:
        raise ApiError(409, f"the plan `{clip(plan_id)}` does not await approval, see /api/v1/cache/approvals")
    known |= {a.proposal_id for a in state.approvals}
    raise ApiError(
        404,
        f"unknown plan `{clip(plan_id)}`, /api/v1/cache/approvals lists those that await approval",
        details={"did_you_mean": near_miss(plan_id, known)},
    )


async def decide(context: Context, person: Person, body: DecisionRequest, *, approve: bool) -> DecisionResponse:
    """Approve or reject a plan. Raises ApiError 403 for its author, 404, and 409 with the reason for everything that
    is too late, of another content, or decided already."""
    if not approve and not body.reason:
        raise ApiError(422, "`reason`: say why the plan is rejected, its author is told")
    state, now_ms = await known_state(context), context.backend.now_ms()
    approval = find_approval(state, person.plan_id)
    command = DecideApproval(
        proposal_id=approval.proposal_id,
        proposal_digest=body.plan_digest or approval.proposal_digest,
        approve=approve,
        by=person.identity,
        token=person.caller.name,
        reason=body.reason,
        decision_id=str(uuid4()),
    )
    refusal = refusal_of_decision(approval, command, now_ms)
    if refusal is not None and approve and approval.state.open and person.identity == approval.proposal.author:
        await _audit_refusal(context, person, approval.proposal, refusal)
        raise ApiError(403, f"you are the author: {refusal}", details={"author": approval.proposal.author})
    if refusal is not None:
        raise ApiError(409, refusal, details={"state": approval.state.value})
    own = person.identity == approval.proposal.author
    end = ApprovalState.APPROVED if approve else ApprovalState.WITHDRAWN if own else ApprovalState.REJECTED
    await _hand_over(context, person, command)
    after = moved(approval, end, now_ms, by=person.identity, reason=body.reason, decision_id=command.decision_id)
    judged = _judged(context, state, approval.proposal) if approve else None
    return DecisionResponse(
        done=not person.dry_run,
        dry_run=person.dry_run,
        decision="approved" if approve else "withdrawn" if own else "rejected",
        by=person.identity,
        reason=body.reason,
        next=_next(state, after, judged, context),
        judged=judged_view(judged),
        plan=approval_view(approval if person.dry_run else after),
        decision_id=command.decision_id,
    )


async def edit(context: Context, person: Person, body: EditRequest) -> DecisionResponse:
    """Put a plan with other values in the place of one that awaits approval; its author is the editor."""
    if not body.reason:
        raise ApiError(422, "`reason`: say why the plan is edited, whoever approves it is told")
    if not body.changes and not body.ttls_ms:
        raise ApiError(422, "`changes`: name at least one knob, or one pattern in `ttls_ms`")
    state, now_ms = await known_state(context), context.backend.now_ms()
    approval = find_approval(state, person.plan_id)
    digest = body.plan_digest or approval.proposal_digest
    probe = DecideApproval(
        proposal_id=approval.proposal_id,
        proposal_digest=digest,
        approve=False,
        by=person.identity,
        token=person.caller.name,
        reason=body.reason,
        decision_id="",
    )
    refusal = refusal_of_decision(approval, probe, now_ms)
    if refusal is not None:
        raise ApiError(409, refusal, details={"state": approval.state.value})
    service = context.backend.fleet.service(approval.service)
    snapshot = await _look(context, state, service)
    rules = rules_in_force(state, service.name)
    values = {knob: None if value is None else str(value) for knob, value in body.changes.items()}
    proposal = await context.whatif.ask(
        snapshot,
        rules,
        lambda _: edited(
            approval.proposal,
            values,
            body.ttls_ms,
            snapshot,
            service,
            rules,
            context.backend.settings,
            author=person.identity,
            now_ms=now_ms,
            interval_factor=1.0 if state.score is None else state.score.interval_factor,
        ),
    )
    command = SubmitProposal(
        proposal=None if isinstance(proposal, str) else proposal,
        origin=ApprovalOrigin.EDIT,
        by=person.identity,
        token=person.caller.name,
        reason=body.reason,
        decision_id=str(uuid4()),
        replaces=approval.proposal_id,
        replaces_digest=digest,
    )
    return await _submit(context, person, state, command, proposal)


async def roll_back(context: Context, person: Person, body: DecisionRequest) -> DecisionResponse:
    """Take a change back: at once while it is in flight and for its TTL rules, by a plan of its own for knobs that were
    kept."""
    if not body.reason:
        raise ApiError(422, "`reason`: say why the change is taken back, it stands in the audit trail")
    state, now_ms = await known_state(context), context.backend.now_ms()
    execution = await _execution(context, state, person.plan_id)
    kept = execution.proposal
    service = context.backend.fleet.service(kept.service)
    command = SubmitProposal(
        proposal=None,
        origin=ApprovalOrigin.ROLLBACK,
        by=person.identity,
        token=person.caller.name,
        reason=body.reason,
        decision_id=str(uuid4()),
        replaces=kept.proposal_id,
        takes_back=kept,
        stop=not execution.state.final or bool(kept.ttl_rules),
    )
    if not execution.state.final or not kept.knob_changes:
        return await _submit(context, person, state, command, None)
    snapshot = await _look(context, state, service)
    rules = rules_in_force(state, service.name)
    proposal = await context.whatif.ask(
        snapshot,
        rules,
        lambda _: counter_of(
            execution,
            snapshot,
            service,
            rules,
            context.backend.settings,
            author=person.identity,
            now_ms=now_ms,
            interval_factor=1.0 if state.score is None else state.score.interval_factor,
        ),
    )
    return await _submit(context, person, state, command, proposal)


async def _submit(
    context: Context, person: Person, state: FleetState, command: SubmitProposal, drawn: Proposal | str | None
) -> DecisionResponse:
    if isinstance(drawn, str):
        raise ApiError(409, drawn)
    now_ms, settings = context.backend.now_ms(), context.backend.settings
    subject = drawn or command.takes_back
    mode = Mode.OFF if subject is None else context.backend.fleet.service(subject.service).mode
    if mode in (Mode.OFF, Mode.ADVISE):
        raise ApiError(409, f"the mode of the service is `{mode.value}`, nothing is changed there")
    await _hand_over(context, person, replace(command, proposal=drawn))
    plan, judged = None, None
    told = _STOPPED
    if drawn is not None:
        plan = requested(
            drawn,
            now_ms,
            settings.approval_ttl_ms,
            origin=command.origin,
            required=needs_approval(drawn.action_class, mode, settings),
            replaces=command.replaces,
            reason=command.reason,
        )
        judged = _judged(context, state, drawn)
        told = _next(state, plan, judged, context)
    return DecisionResponse(
        done=not person.dry_run,
        dry_run=person.dry_run,
        decision="edited" if command.origin is ApprovalOrigin.EDIT else "rolled_back",
        by=person.identity,
        reason=command.reason,
        next=told,
        judged=judged_view(judged),
        plan=None if plan is None else approval_view(plan),
        decision_id=command.decision_id,
    )


async def _hand_over(context: Context, person: Person, command: DecideApproval | SubmitProposal) -> None:
    if person.dry_run:
        return
    refusal = await context.backend.decide_plan(command)
    if refusal is not None:
        raise ApiError(409, refusal)


async def _look(context: Context, state: FleetState, service: Service) -> Snapshot:
    snapshot, reason = await newest_look(context.backend, state, service)
    if snapshot is None or reason:
        raise ApiError(409, f"the effect cannot be predicted: {reason}")
    return snapshot


async def _execution(context: Context, state: FleetState, plan_id: str) -> Execution:
    found = await context.backend.execution(plan_id)
    if found is None:
        found = next((e for e in reversed(state.executions) if e.proposal.proposal_id == plan_id), None)
    if found is None:
        find_approval(state, plan_id)
        raise ApiError(409, f"the plan `{clip(plan_id)}` was not carried out, there is nothing to take back")
    if found.state.final and found.state is not ExecutionState.KEPT:
        raise ApiError(409, f"the change is `{found.state.value}`, there is nothing to take back: {found.reason}")
    return found


def _judged(context: Context, state: FleetState, proposal: Proposal) -> Verdict | None:
    """Return what the constitution says of a plan now; None where the cache was not seen."""
    snapshot = state.snapshots.get(proposal.service)
    if snapshot is None:
        return None
    facts = facts_of(proposal, snapshot, context.grounds.fleet, others_of(state, context.grounds))
    return evaluate(context.grounds.constitution, proposal, facts, context.backend.now_ms())


def _next(state: FleetState, approval: Approval, judged: Verdict | None, context: Context) -> str:
    """Return in words what comes after a decision."""
    if approval.state is ApprovalState.WITHDRAWN:
        return "the plan is gone; the next cycle may propose anew"
    if approval.state is ApprovalState.REJECTED:
        rest_s = context.backend.settings.rejection_rest_ms // 1000
        return f"the plan is gone, and the agents do not propose the same change within {rest_s} s"
    parts = []
    if judged is not None and judged.denied_by:
        parts.append(f"the constitution denies it now ({', '.join(judged.denied_by)}), so it waits until that changes")
    if state.paused:
        parts.append(f"changes are paused ({state.pause_reason or 'no reason given'}), so it waits until they go on")
    if approval.required and approval.state is ApprovalState.PENDING:
        parts.append(f"somebody else than `{approval.proposal.author}` has to approve it")
    parts.append("the next cycle judges and settles it again and hands it over if nothing stands against it")
    return "; ".join(parts)


async def _audit_refusal(context: Context, person: Person, proposal: Proposal, why: str) -> None:
    if person.dry_run:
        return
    draft = RecordDraft(
        at_ms=context.backend.now_ms(),
        kind=RecordKind.REQUEST_REFUSED.value,
        agent="api",
        service=proposal.service,
        subject_id=proposal.proposal_id,
        payload={
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "why": why,
            "caller": person.caller.name,
            "identity": person.identity,
            "endpoint": "approve",
        },
    )
    try:
        await context.backend.record([draft])
    except OperatingError as error:
        # Refusing is safe without the journal; that it went unrecorded must be seen.
        context.telemetry.unaudited()
        log.error("a refusal could not be audited", endpoint="approve", reason=str(error))
