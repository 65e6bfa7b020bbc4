"""A change as the coordinator knows it from the journal alone: how far it had come when it was last heard of.

Pure functions of audit records; nothing is started or told here. INVARIANT: each record of a change has one state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from cachewarden.codec import decode
from cachewarden.messages import AuditRecord, Execution, ExecutionState, Proposal, RecordKind

__all__ = ["STATE_OF_RECORD", "followed", "kept_signatures", "opened"]

STATE_OF_RECORD: Final[Mapping[RecordKind, ExecutionState]] = {
    RecordKind.CHANGE_INTENDED: ExecutionState.STEPPING,
    RecordKind.ROLLBACK_INTENDED: ExecutionState.ROLLING_BACK,
    RecordKind.CHANGE_KEPT: ExecutionState.KEPT,
    RecordKind.CHANGE_ROLLED_BACK: ExecutionState.ROLLED_BACK,
    RecordKind.CHANGE_ABANDONED: ExecutionState.ABANDONED,
    RecordKind.ROLLBACK_FAILED: ExecutionState.FAILED,
}
"""How far a change had come when it was last heard of."""


def opened(record: AuditRecord) -> Execution:
    """Return a change as the record of its intention has it; raises ValidationError for a proposal that this version
    cannot read."""
    return Execution(
        execution_id=str(record.payload.get("execution_id", record.subject_id)),
        proposal=decode(Proposal, record.payload.get("proposal")),
        state=STATE_OF_RECORD[RecordKind.CHANGE_INTENDED],
        started_at_ms=record.at_ms,
        updated_at_ms=record.at_ms,
        reason="under way when the coordinator started anew",
        hit_ratio_before=dict(record.payload.get("baseline", {})).get("hit_ratio"),
    )


def followed(known: Execution, record: AuditRecord) -> Execution:
    """Return a change as it is after one more record of it."""
    return replace(
        known,
        state=STATE_OF_RECORD[RecordKind(record.kind)],
        updated_at_ms=record.at_ms,
        reason=str(record.payload.get("reason", "")),
        hit_ratio_after=record.payload.get("hit_ratio_after", known.hit_ratio_after),
        comparable=record.payload.get("comparable", known.comparable),
        hit_ratio_step=record.payload.get("hit_ratio_step", known.hit_ratio_step),
        control_drift=record.payload.get("control_drift", known.control_drift),
        freed_bytes=dict(record.payload.get("memory") or {}).get("freed_bytes", known.freed_bytes),
        peak_share=dict(record.payload.get("expiries") or {}).get("peak_now", known.peak_share),
    )


def kept_signatures(executions: Iterable[Execution]) -> dict[str, tuple[str, ...]]:
    """Return what was kept on each service, by the signatures of the proposals."""
    found: dict[str, tuple[str, ...]] = {}
    for proposal in (e.proposal for e in executions if e.state is ExecutionState.KEPT):
        found[proposal.service] = (*found.get(proposal.service, ()), proposal.signature)
    return found
