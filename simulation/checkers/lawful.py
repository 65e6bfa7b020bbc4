"""No change without a verdict that allows exactly it and a resolution to go, no verdict against a principle.

And nothing at all comes of orders that were forged or carry another constitutional hash.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cachewarden.codec import decode, digest
from cachewarden.messages import CONSTITUTIONAL_HASH, AuditRecord, Proposal, RecordKind
from simulation.checkers.checker import Checker, WorldView
from simulation.facts import Appended, Fact
from simulation.interference import FORGED

__all__ = ["Lawful"]

_ACTS = frozenset(
    {
        RecordKind.CHANGE_INTENDED.value,
        RecordKind.STEP_INTENDED.value,
        RecordKind.STEP_APPLIED.value,
        RecordKind.CHANGE_KEPT.value,
        RecordKind.ROLLBACK_INTENDED.value,
    }
)


class Lawful(Checker):
    """Follows each proposal through the journal: proposed, judged, resolved, then intended, in this order."""

    name = "lawful"
    sees: tuple[type[Fact], ...] = (Appended,)

    def __init__(self) -> None:
        self._allowed: dict[str, str] = {}
        """Proposal that a verdict allows to the digest of its content that the verdict names."""
        self._go: set[str] = set()

    def see(self, fact: Any, world: WorldView) -> Sequence[str]:
        """Judge each record by those before it."""
        del world
        return [words for record in fact.records for words in self._judge(record)]

    def _judge(self, record: AuditRecord) -> list[str]:
        subject, payload = record.subject_id, record.payload
        if record.constitutional_hash != CONSTITUTIONAL_HASH:
            return [f"record {record.seq} carries the constitutional hash `{record.constitutional_hash}`"]
        if subject.startswith(FORGED) and record.kind in _ACTS:
            return [f"record {record.seq}: `{record.kind}` of `{subject}`, which was forged"]
        if record.kind == RecordKind.JUDGED:
            return self._judged(record, payload)
        if record.kind == RecordKind.RESOLVED and payload["outcome"] == "go":
            self._go.add(subject)
        elif record.kind == RecordKind.CHANGE_INTENDED:
            return self._intended(record)
        return []

    def _judged(self, record: AuditRecord, payload: Mapping[str, Any]) -> list[str]:
        findings = payload["findings"]
        refused = [f["principle_id"] for f in findings if f["decision"] != "allow" or not f["evaluated"]]
        if payload["decision"] != "allow":
            self._allowed.pop(record.subject_id, None)
            return []
        if refused or not findings:
            return [f"record {record.seq} allows `{record.subject_id}` against {', '.join(refused) or 'no finding'}"]
        self._allowed[record.subject_id] = payload["proposal_digest"]
        return []

    def _intended(self, record: AuditRecord) -> list[str]:
        proposal = decode(Proposal, record.payload["proposal"])
        subject, found = record.subject_id, []
        if self._allowed.get(subject) != digest(proposal):
            found.append(f"`{subject}` is begun (record {record.seq}) without a verdict that allows exactly it")
        if subject not in self._go:
            found.append(f"`{subject}` is begun (record {record.seq}) without a resolution to go")
        return found
