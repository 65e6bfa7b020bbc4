"""Approvals: which proposals need another identity's consent, and whether a consent covers exactly one of them.

The table of states stands here, so that the coordinator, the consensus, the actuator and the API ask the same
functions. It keeps nothing (`coordination/approvals.py` does), reads no clock and knows no token: an identity is a
plain name that somebody else has authenticated.

INVARIANT: a consent covers a proposal only if both carry the same digest, it was given by another identity than the
author, and it has not expired; an illegal move raises InvariantViolation and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from cachewarden.codec import decode, digest, to_jsonable
from cachewarden.errors import InvariantViolation
from cachewarden.messages import ActionClass, Message, Mode, Proposal
from cachewarden.settings import CacheOptimizerSettings

__all__ = [
    "PLANNER",
    "TRANSITIONS",
    "Approval",
    "ApprovalOrigin",
    "ApprovalState",
    "DecideApproval",
    "Rest",
    "SubmitProposal",
    "alike",
    "moved",
    "needs_approval",
    "refusal_of_approval",
    "refusal_of_decision",
    "requested",
    "rest_over",
]

PLANNER: Final = "planner"
"""Author of what the agents propose by themselves; no token may carry this identity."""

_ALIKE_SHARE: Final = 0.2
"""Two values of one number are the same wish if they differ by at most this share of the larger one: the planner's
sizes wander by a few percent from cycle to cycle."""


class ApprovalState(StrEnum):
    """PENDING and APPROVED are open; all others are ends. HANDED_OVER: the actuator has begun it."""

    PENDING = "pending"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    WITHDRAWN = "withdrawn"
    HANDED_OVER = "handed_over"

    @property
    def open(self) -> bool:
        return self in (ApprovalState.PENDING, ApprovalState.APPROVED)


class ApprovalOrigin(StrEnum):
    """Where a proposal comes from: the agents, a person who edited a plan, a person who wants a kept change back."""

    PLANNER = "planner"
    EDIT = "edit"
    ROLLBACK = "rollback"


_ENDS: Final = frozenset(
    {ApprovalState.REJECTED, ApprovalState.EXPIRED, ApprovalState.SUPERSEDED, ApprovalState.WITHDRAWN}
)
TRANSITIONS: Final[Mapping[ApprovalState, frozenset[ApprovalState]]] = MappingProxyType(
    {
        ApprovalState.PENDING: _ENDS | {ApprovalState.APPROVED},
        ApprovalState.APPROVED: _ENDS | {ApprovalState.HANDED_OVER},
        **{state: frozenset() for state in ApprovalState if not state.open},
    }
)
"""Legal moves. One more is legal where no approval is needed: pending to handed over (`moved`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval(Message):
    """One proposal that awaits, has or had a consent.

    `required` False: a person's proposal for a service in mode `auto`, which goes ahead once judged and settled.
    `decided_by` is the identity that approved or rejected, `decision_id` the request by which it did.
    """

    proposal: Proposal
    proposal_digest: str
    origin: ApprovalOrigin
    required: bool
    state: ApprovalState
    requested_at_ms: int
    expires_at_ms: int
    decided_at_ms: int = 0
    decided_by: str = ""
    decision_id: str = ""
    reason: str = ""
    replaces: str = ""
    """Id of the plan that this one was edited from, or that it takes back."""

    @property
    def proposal_id(self) -> str:
        return self.proposal.proposal_id

    @property
    def service(self) -> str:
        return self.proposal.service


@dataclass(frozen=True, slots=True, kw_only=True)
class Rest(Message):
    """A change that a person turned down or took back: the agents do not propose it again before `until_ms`."""

    proposal: Proposal
    until_ms: int
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DecideApproval(Message):
    """A decision of an authenticated identity on exactly one content. `by` is never taken from a body."""

    proposal_id: str
    proposal_digest: str
    approve: bool
    by: str
    token: str
    reason: str
    decision_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitProposal(Message):
    """A person's own proposal: an edited plan, or one that takes a kept change back.

    `replaces` and `replaces_digest` name the plan that was edited; for a rollback `takes_back` is the kept proposal,
    and `proposal` None where its TTL rules, or all of it while it is in flight, only have to be stopped.
    """

    proposal: Proposal | None
    origin: ApprovalOrigin
    by: str
    token: str
    reason: str
    decision_id: str
    replaces: str = ""
    replaces_digest: str = ""
    takes_back: Proposal | None = None
    stop: bool = False
    """Whether the actuator is to stop what it still does for `takes_back`."""


def needs_approval(action_class: ActionClass, mode: Mode, settings: CacheOptimizerSettings) -> bool:
    """Say whether a change of this class needs consent: every one in mode `approve`; in mode `auto`, which is itself
    a consent, only a lossy one, and only where `lossy_needs_approval` is set."""
    if mode is Mode.APPROVE:
        return True
    return mode is Mode.AUTO and settings.lossy_needs_approval and action_class >= ActionClass.LOSSY


def requested(
    proposal: Proposal,
    now_ms: int,
    ttl_ms: int,
    *,
    origin: ApprovalOrigin = ApprovalOrigin.PLANNER,
    required: bool = True,
    replaces: str = "",
    reason: str = "",
) -> Approval:
    """Return a pending approval; it never outlives its proposal.

    The proposal is held as the journal gives it back (a whole number where a fraction may stand becomes one), so that
    its digest is the same after a restart.
    """
    proposal = decode(Proposal, to_jsonable(proposal))
    return Approval(
        proposal=proposal,
        proposal_digest=digest(proposal),
        origin=origin,
        required=required,
        state=ApprovalState.PENDING,
        requested_at_ms=now_ms,
        expires_at_ms=min(now_ms + ttl_ms, proposal.expires_at_ms),
        replaces=replaces,
        reason=reason,
    )


def moved(
    approval: Approval,
    to: ApprovalState,
    now_ms: int,
    *,
    by: str = "",
    reason: str = "",
    decision_id: str = "",
) -> Approval:
    """Return the approval in its next state; raises InvariantViolation for a move that the table does not have, for
    a consent of the author, and for one that comes too late."""
    legal = to in TRANSITIONS[approval.state]
    if not approval.required and approval.state is ApprovalState.PENDING and to is ApprovalState.HANDED_OVER:
        legal = True
    if not legal:
        raise InvariantViolation(
            f"an approval that is `{approval.state.value}` cannot become `{to.value}` (`{approval.proposal_id}`)"
        )
    if to is ApprovalState.APPROVED:
        if not by or by == approval.proposal.author:
            raise InvariantViolation(f"`{by}` cannot approve `{approval.proposal_id}`, whose author is the same")
        if now_ms >= approval.expires_at_ms:
            raise InvariantViolation(f"`{approval.proposal_id}` expired before it was approved")
    return replace(
        approval,
        state=to,
        decided_at_ms=now_ms,
        decided_by=by or approval.decided_by,
        reason=reason,
        decision_id=decision_id or approval.decision_id,
    )


def refusal_of_approval(approval: Approval | None, proposal: Proposal, now_ms: int) -> str | None:
    """Return why a proposal that needs consent does not have it, or None if `approval` covers exactly it now."""
    if approval is None or approval.proposal_id != proposal.proposal_id:
        return f"it awaits approval by someone other than its author `{proposal.author}`"
    if approval.proposal_digest != digest(proposal):
        return "the approval is of another content than the proposal has now"
    if now_ms >= approval.expires_at_ms:
        return "its approval has expired, the next cycle proposes anew"
    if approval.state is ApprovalState.PENDING:
        return f"it awaits approval by someone other than its author `{proposal.author}`"
    if approval.state is not ApprovalState.APPROVED:
        return f"its approval is `{approval.state.value}`: {approval.reason or 'no reason given'}"
    if not approval.decided_by or approval.decided_by == proposal.author:
        return f"it was approved by its own author `{proposal.author}`, which does not count"
    return None


def _values(proposal: Proposal) -> dict[str, tuple[str, str]]:
    values = {c.knob: (c.before, c.after) for c in proposal.knob_changes}
    return values | {r.name: (str(r.written_ttl_ms), str(r.extended_ttl_ms)) for r in proposal.ttl_rules}


def _near(one: tuple[str, str], other: tuple[str, str]) -> bool:
    if one[1] == other[1]:
        return True
    if not all(value.isdecimal() for value in (*one, *other)):
        return False
    (before, after), (start, end) = (int(one[0]), int(one[1])), (int(other[0]), int(other[1]))
    same_way = (after > before) == (end > start)
    return same_way and abs(after - end) <= _ALIKE_SHARE * max(after, end)


def alike(one: Proposal, other: Proposal) -> bool:
    """Say whether two proposals are the same wish: the same service, knobs and patterns, the same words, and numbers
    that go the same way and differ by at most a fifth."""
    ours, theirs = _values(one), _values(other)
    return (
        one.service == other.service
        and ours.keys() == theirs.keys()
        and all(_near(ours[name], theirs[name]) for name in ours)
    )


def rest_over(proposal: Proposal, rests: tuple[Rest, ...], now_ms: int) -> Rest | None:
    """Return the rest that binds a proposal of the agents, if there is one; a person's own proposal is bound by
    none."""
    if proposal.author != PLANNER:
        return None
    return next((r for r in rests if now_ms < r.until_ms and alike(r.proposal, proposal)), None)


def refusal_of_decision(approval: Approval | None, decision: DecideApproval, now_ms: int) -> str | None:
    """Return why a decision cannot be taken on what is open for its proposal now, or None."""
    if approval is None or approval.proposal_id != decision.proposal_id:
        return f"`{decision.proposal_id}` does not await approval"
    if not approval.state.open:
        by = f" by `{approval.decided_by}`" if approval.decided_by else ""
        return f"the plan is `{approval.state.value}`{by}: {approval.reason or 'no reason given'}"
    if now_ms >= approval.expires_at_ms:
        return "the plan has expired, the next cycle proposes anew"
    if decision.proposal_digest != approval.proposal_digest:
        return "the plan has changed since it was looked at, look again"
    if not decision.approve:
        return None
    if not approval.required:
        return "the plan needs no approval"
    if decision.by == approval.proposal.author:
        return f"`{decision.by}` is the author, somebody else has to approve"
    if approval.state is ApprovalState.APPROVED:
        return f"the plan was approved by `{approval.decided_by}` already"
    return None
