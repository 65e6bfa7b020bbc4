"""Approvals as the journal holds them: one record for each thing asked, decided or ended, and how it is read back.

It keeps nothing and decides nothing. INVARIANT: a record names who, why and the digest of the plan, and holds the plan
as it was then; what cannot be read back whole, or does not fit its own digest, is not read back at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from cachewarden.approval import Approval, ApprovalState, Rest
from cachewarden.codec import decode, digest, to_jsonable
from cachewarden.machine import Effect, Record
from cachewarden.messages import AuditRecord, Proposal, RecordKind

__all__ = ["APPROVAL_KINDS", "KIND_OF_END", "Entry", "begun_proposal_of", "read_entry", "record_of"]

KIND_OF_END: Final[Mapping[ApprovalState, RecordKind]] = {
    ApprovalState.REJECTED: RecordKind.REJECTED,
    ApprovalState.EXPIRED: RecordKind.APPROVAL_EXPIRED,
    ApprovalState.SUPERSEDED: RecordKind.APPROVAL_SUPERSEDED,
    ApprovalState.WITHDRAWN: RecordKind.APPROVAL_WITHDRAWN,
}
APPROVAL_KINDS: Final = frozenset(
    {
        RecordKind.APPROVAL_REQUESTED,
        RecordKind.APPROVED,
        RecordKind.EDITED,
        RecordKind.ROLLBACK_REQUESTED,
        *KIND_OF_END.values(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one record puts into force: an approval in its new state, a rest, and what is to be done then."""

    subject_id: str
    approval: Approval | None = None
    rest: Rest | None = None
    decision_id: str = ""
    effects: tuple[Effect, ...] = ()


def record_of(
    ref: str, kind: RecordKind, entry: Entry, proposal: Proposal, reason: str, who: Mapping[str, Any]
) -> Record:
    """Return the record of an entry; `who` says by whom and how it was asked for."""
    payload = {
        **who,
        "reason": reason,
        "proposal_digest": digest(proposal),
        "approval": None if entry.approval is None else to_jsonable(entry.approval),
        "rest": None if entry.rest is None else to_jsonable(entry.rest),
    }
    return Record(ref=ref, kind=kind.value, service=proposal.service, subject_id=entry.subject_id, payload=payload)


def read_entry(record: AuditRecord) -> Entry | None:
    """Return what a record put into force; None where this version cannot read it."""
    payload = record.payload
    try:
        approval = None if payload.get("approval") is None else decode(Approval, payload["approval"])
        rest = None if payload.get("rest") is None else decode(Rest, payload["rest"])
    except ValidationError:
        return None
    if approval is not None and digest(approval.proposal) != approval.proposal_digest:
        return None
    return Entry(subject_id=record.subject_id, approval=approval, rest=rest)


def begun_proposal_of(record: AuditRecord) -> str:
    """Return the id of the proposal that a `change_intended` record has begun; empty where it names none."""
    proposal = record.payload.get("proposal")
    return str(proposal.get("proposal_id", "")) if isinstance(proposal, Mapping) else ""
