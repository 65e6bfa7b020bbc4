"""Plans that await or had approval, as the API shows them: what would change, what it would give, what it risks.

Shapes and words only; nothing is decided here. INVARIANT: every plan is shown with the digest that a decision is about.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from cachewarden.approval import Approval
from cachewarden.knobs import KNOBS
from cachewarden.messages import CONSTITUTIONAL_HASH, ActionClass, Decision, Proposal, Verdict
from serve.answers import risk_of
from serve.schemas import PlanView
from serve.timestamps import iso
from serve.views import plan_view

__all__ = [
    "ApprovalView",
    "ApprovalsResponse",
    "DecisionRequest",
    "DecisionResponse",
    "DiffLine",
    "EditRequest",
    "JudgedView",
    "approval_view",
    "diff_of",
    "judged_view",
    "risks_of",
]

_CLASS_WORDS: Final = {
    ActionClass.OBSERVE: "it only changes what is observed",
    ActionClass.REVERSIBLE: "it can be set back without loss",
    ActionClass.GROWTH: "it takes more memory of the host",
    ActionClass.LOSSY: "it is lossy: what is evicted does not come back by setting the old value",
    ActionClass.FORBIDDEN: "it is out of bounds and never carried out",
}


class DiffLine(BaseModel):
    """One value that would change: a knob, or the TTL of a pattern in milliseconds."""

    what: str
    before: str
    after: str


class JudgedView(BaseModel):
    """What the constitution says of exactly this plan at this moment."""

    decision: str
    denied_by: list[str]
    reasons: list[str]


class ApprovalView(BaseModel):
    """One plan that awaits approval, has it, or had it."""

    plan_id: str
    service: str
    state: str = Field(description="pending, approved, rejected, expired, superseded, withdrawn or handed_over")
    author: str = Field(description="who may not approve it")
    origin: str = Field(description="planner, edit or rollback")
    approval_required: bool
    plan_digest: str = Field(description="what a decision is about; send it along and a changed plan is refused")
    requested_at: str
    expires_at: str
    decided_by: str | None
    reason: str
    replaces: str | None = Field(description="the plan that this one was edited from or takes back")
    diff: list[DiffLine]
    risk_level: str
    risks: list[str]
    rollback: str
    plan: PlanView


class ApprovalsResponse(BaseModel):
    approvals: list[ApprovalView]
    constitutional_hash: str = CONSTITUTIONAL_HASH


class DecisionRequest(BaseModel):
    """Why, and optionally of which content. Who decides is the holder of the token, never a field."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("", max_length=500, description="stands in the audit trail; needed for all but approving")
    plan_digest: str | None = Field(None, max_length=64, description="of the plan as it was looked at")
    constitutional_hash: str = Field(CONSTITUTIONAL_HASH, max_length=200)


class EditRequest(DecisionRequest):
    """Other values for a plan; null leaves that part as the cache has it."""

    changes: dict[str, str | int | None] = Field(
        default_factory=dict, max_length=8, description="knob to its new value, e.g. `maxmemory`: `12mb`"
    )
    ttls_ms: dict[str, int | None] = Field(
        default_factory=dict, max_length=8, description="pattern of a TTL rule of the plan to its new TTL"
    )


class DecisionResponse(BaseModel):
    """What was decided, or with `dry_run` what would be. `plan` is the plan as it stands then."""

    done: bool = Field(description="false for a dry run")
    dry_run: bool
    decision: Literal["approved", "rejected", "withdrawn", "edited", "rolled_back"]
    by: str
    reason: str
    next: str = Field(description="what happens now")
    judged: JudgedView | None = Field(description="null where nothing is judged: rejected, or only stopped")
    plan: ApprovalView | None = Field(description="null where nothing new is proposed: the change is only stopped")
    decision_id: str
    constitutional_hash: str = CONSTITUTIONAL_HASH


def diff_of(proposal: Proposal) -> list[DiffLine]:
    """Return every value that would change, before and after."""
    lines = [DiffLine(what=c.knob, before=c.before, after=c.after) for c in proposal.knob_changes]
    return lines + [
        DiffLine(
            what=f"ttl_ms of {r.pattern}{f' {r.terms}' if r.terms else ''}",
            before=str(r.written_ttl_ms),
            after=str(r.extended_ttl_ms),
        )
        for r in proposal.ttl_rules
    ]


def risks_of(proposal: Proposal) -> list[str]:
    """Return in words what can go wrong, the class first, then the hazard of each knob."""
    risks = [_CLASS_WORDS[proposal.action_class]]
    hazards = [KNOBS[c.knob].hazard for c in proposal.knob_changes if c.knob in KNOBS]
    risks += [hazard for hazard in dict.fromkeys(hazards) if hazard]
    if not proposal.reversible:
        risks.append("not everything can be taken back, see `rollback`")
    if proposal.prediction.gain.low < 0:
        risks.append(f"the hit ratio may fall by {-100 * proposal.prediction.gain.low:.1f} points")
    return risks


def judged_view(verdict: Verdict | None) -> JudgedView | None:
    """Return a verdict in short, with the reasons of those who deny."""
    if verdict is None:
        return None
    denied = [f"{f.title}: {f.reason}" for f in verdict.findings if f.decision is Decision.DENY]
    return JudgedView(decision=verdict.decision.value, denied_by=list(verdict.denied_by), reasons=denied)


def approval_view(approval: Approval) -> ApprovalView:
    """Return one plan with its state."""
    proposal = approval.proposal
    return ApprovalView(
        plan_id=proposal.proposal_id,
        service=proposal.service,
        state=approval.state.value,
        author=proposal.author,
        origin=approval.origin.value,
        approval_required=approval.required,
        plan_digest=approval.proposal_digest,
        requested_at=iso(approval.requested_at_ms),
        expires_at=iso(approval.expires_at_ms),
        decided_by=approval.decided_by or None,
        reason=approval.reason,
        replaces=approval.replaces or None,
        diff=diff_of(proposal),
        risk_level=risk_of(proposal),
        risks=risks_of(proposal),
        rollback=proposal.rollback,
        plan=plan_view(proposal, None),
    )
