"""What becomes of one request, and why: the order of the questions that bind.

Pure functions of the request, the state and the verdict. Nothing is judged, worded for the wire or carried out here.
INVARIANT: `go` is said only of an allowed, unexpired, settled proposal of a service in mode `auto`, with nothing
paused and nothing in flight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from cachewarden.fleet import Service
from cachewarden.messages import Decision, Execution, ExecutionState, Mode, Proposal, ResolutionOutcome, Verdict
from cachewarden.models import CacheOptimizationRequest
from cachewarden.observation import Snapshot
from cachewarden.protocol import StandingDecision
from serve.answers import target_notes
from serve.docket import Docket

__all__ = ["Apply", "Asked", "Course", "already_so", "confirmed", "course_of", "matches"]

Apply = Literal["auto", "async", "never"]
"""auto: carry out and wait a little for the confirmation; async: carry out, do not wait; never: only say what would be
done."""

APPLIED_STATES: Final = frozenset({ExecutionState.OBSERVING, ExecutionState.KEPT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One request with everything around it: who asked, under which id, and what may be done about it."""

    request: CacheOptimizationRequest
    decision_id: str
    caller: str
    apply: Apply = "auto"


def matches(proposal: Proposal, optimization_type: str) -> bool:
    return optimization_type == "comprehensive" or optimization_type in proposal.kinds


def already_so(proposal: Proposal, snapshot: Snapshot | None) -> bool:
    """Whether the knobs, as the server itself said, are what the proposal wants; TTL rules cannot be seen there."""
    if snapshot is None or proposal.ttl_rules or not proposal.knob_changes:
        return False
    return all(snapshot.knobs.get(change.knob) == change.after for change in proposal.knob_changes)


def confirmed(execution: Execution, snapshot: Snapshot | None) -> bool:
    """Whether an execution's values were read back, and nobody was seen to change them since."""
    if execution.state not in APPLIED_STATES:
        return False
    if snapshot is None or snapshot.taken_at_ms <= execution.updated_at_ms:
        return True
    return all(snapshot.knobs.get(c.knob, c.after) == c.after for c in execution.proposal.knob_changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Which plan the answer is about, and what becomes of it."""

    state: str
    reason: str
    proposal: Proposal | None = None
    execution: Execution | None = None
    go: bool = False
    applied: bool = False
    wants_cycle: bool = False


def _without_proposal(
    asked: Asked, standing: StandingDecision | None, latest: Execution | None, snapshot: Snapshot | None
) -> Course:
    """Nothing new to do: either a kept change is in force, or nothing was worth doing."""
    request = asked.request
    reason = (
        "the service has not been examined yet"
        if standing is None
        else standing.idle_reason or "no change is worth it now"
    )
    kept = (
        latest is not None
        and latest.state is ExecutionState.KEPT
        and matches(latest.proposal, request.optimization_type)
    )
    if kept and latest is not None and confirmed(latest, snapshot):
        return Course(
            state="in_force",
            reason=f"the last plan is in force and nothing more is to be done: {reason}",
            proposal=latest.proposal,
            execution=latest,
            applied=True,
            wants_cycle=request.force_optimization,
        )
    return Course(state="nothing_to_do", reason=reason, wants_cycle=request.force_optimization)


def _about_resolution(asked: Asked, service: Service, standing: StandingDecision, proposal: Proposal) -> Course:
    """What the other intents leave of an allowed proposal."""
    resolution = standing.resolution
    forced = asked.request.force_optimization
    if resolution is None or resolution.proposal_id != proposal.proposal_id:
        return Course(
            state="waiting",
            reason="the plan has not been settled with the others yet",
            proposal=proposal,
            wants_cycle=forced,
        )
    if service.mode in (Mode.OFF, Mode.ADVISE) or resolution.outcome is ResolutionOutcome.ADVISE:
        reason = f"`{service.name}` is in mode `{service.mode}`, so the plan is advice: {resolution.reason}"
        return Course(state="advised", reason=reason, proposal=proposal)
    if resolution.outcome is ResolutionOutcome.GO and service.mode is Mode.AUTO:
        return Course(state="accepted", reason=resolution.reason, proposal=proposal, go=True)
    if service.mode is Mode.APPROVE or resolution.awaits_approval:
        return Course(state="awaits_approval", reason=resolution.reason, proposal=proposal)
    state = "waiting" if resolution.outcome is ResolutionOutcome.WAIT else "yielded"
    return Course(state=state, reason=resolution.reason, proposal=proposal, wants_cycle=forced)


def course_of(
    asked: Asked, docket: Docket, service: Service, snapshot: Snapshot | None, verdict: Verdict | None, now_ms: int
) -> Course:
    """Return what becomes of the request; the order of the questions is the order of what binds."""
    request, state = asked.request, docket.state
    standing, latest = state.standing.get(service.name), docket.latest(service.name)
    if latest is not None and not latest.state.final:
        reason = f"a change is in flight: {latest.reason or latest.state.value}"
        return Course(
            state="in_flight",
            reason=reason,
            proposal=latest.proposal,
            execution=latest,
            applied=confirmed(latest, snapshot),
        )
    proposal = standing.proposal if standing is not None else None
    if proposal is None or standing is None:
        return _without_proposal(asked, standing, latest, snapshot)
    if not matches(proposal, request.optimization_type):
        kinds = ", ".join(proposal.kinds)
        return Course(
            state="nothing_to_do",
            reason=f"the plan at hand is about {kinds}, nothing is to be done for {request.optimization_type}",
        )
    if latest is not None and latest.proposal.proposal_id == proposal.proposal_id:
        applied = confirmed(latest, snapshot)
        reason = latest.reason or f"the plan ended as {latest.state.value}"
        return Course(
            state="in_force" if applied else latest.state.value,
            reason=reason,
            proposal=proposal,
            execution=latest,
            applied=applied,
        )
    if already_so(proposal, snapshot):
        return Course(
            state="in_force", reason="the cache already is what the plan wants", proposal=proposal, applied=True
        )
    if proposal.expires_at_ms <= now_ms:
        return Course(
            state="expired",
            reason="the plan at hand is stale, the next cycle makes a new one",
            proposal=proposal,
            wants_cycle=request.force_optimization,
        )
    if verdict is None or verdict.decision is Decision.DENY:
        if verdict is None:
            return Course(state="denied", reason="the plan could not be judged, which denies it", proposal=proposal)
        denied = "; ".join(f"{f.title}: {f.reason}" for f in verdict.findings if f.decision is Decision.DENY)
        return Course(state="denied", reason=f"the constitution denies the plan: {denied}", proposal=proposal)
    targets = request.explicit_targets
    if targets and target_notes(targets, snapshot, {})[0]:
        return Course(
            state="targets_met",
            reason="every target of the request is met already, so it changes nothing",
            proposal=proposal,
        )
    if state.paused:
        return Course(
            state="paused", reason=f"changes are paused: {state.pause_reason or 'no reason given'}", proposal=proposal
        )
    return _about_resolution(asked, service, standing, proposal)
