"""Audit records as events of ACGS's Integrity Service: one table of types, one shape, nothing secret.

What leaves here is where a record stands in the chain (number, hash, hash before, digest of its content), what kind it
is, and a few words of its content that are enumerations or digests. Reasons, names of patterns and everything else
stay in the journal, which an auditor can be given. It decides nothing.

INVARIANT: `event_type` and `severity` are always of ACGS's enumerations, and the same record always gives the same
event, byte for byte, so that a repeated delivery can be recognised by its `request_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cachewarden import chain
from cachewarden.codec import digest
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, AuditRecord, RecordKind

__all__ = ["EVENT_TYPES", "SEVERITIES", "EventClass", "class_of", "event_of", "request_id_of"]

EVENT_TYPES: Final = frozenset(
    {
        "policy_creation",
        "policy_modification",
        "policy_deletion",
        "agent_evolution",
        "constitutional_validation",
        "access_control",
        "cryptographic_operation",
        "system_configuration",
        "user_authentication",
        "governance_decision",
        "rollback_operation",
        "emergency_action",
    }
)
"""ACGS's AuditEventType (`persistent_audit.py`); anything else is answered with 422."""
SEVERITIES: Final = ("low", "medium", "high", "critical")


@dataclass(frozen=True, slots=True)
class EventClass:
    """Type, severity and resource type of an event; `reason` where a type had to be chosen for want of a better one."""

    event_type: str
    severity: str = "low"
    resource_type: str = "cache"
    reason: str = ""


_PLANNING = EventClass("governance_decision", "low", "cache_optimization_plan")
_CONFIGURING = EventClass("system_configuration", "medium", "cache_configuration")
_ROLLING_BACK = EventClass("rollback_operation", "medium", "cache_configuration")

_SETTLING: Final = EventClass("governance_decision", "medium", "cache_conflict")
_SERVING: Final = EventClass("governance_decision", "low", "optimization_request")
_APPROVING: Final = EventClass("governance_decision", "medium", "cache_optimization_plan")
_CLASSES: Final[Mapping[str, EventClass]] = {
    RecordKind.AGENT_STARTED.value: EventClass("system_configuration", "low", "agent"),
    RecordKind.PROPOSED.value: _PLANNING,
    RecordKind.JUDGED.value: EventClass("constitutional_validation", "low", "cache_optimization_plan"),
    RecordKind.RESOLVED.value: _PLANNING,
    RecordKind.CHANGE_INTENDED.value: _CONFIGURING,
    RecordKind.STEP_INTENDED.value: _CONFIGURING,
    RecordKind.STEP_APPLIED.value: _CONFIGURING,
    RecordKind.STEP_FAILED.value: EventClass("system_configuration", "high", "cache_configuration"),
    RecordKind.OBSERVED.value: EventClass("system_configuration", "low", "cache_configuration"),
    RecordKind.ROLLBACK_INTENDED.value: _ROLLING_BACK,
    RecordKind.CHANGE_KEPT.value: _CONFIGURING,
    RecordKind.CHANGE_ROLLED_BACK.value: _ROLLING_BACK,
    RecordKind.CHANGE_ABANDONED.value: EventClass("system_configuration", "low", "cache_configuration"),
    RecordKind.ROLLBACK_FAILED.value: EventClass("rollback_operation", "critical", "cache_configuration"),
    RecordKind.APPROVAL_REQUESTED.value: _APPROVING,
    RecordKind.APPROVED.value: _APPROVING,
    RecordKind.REJECTED.value: _APPROVING,
    RecordKind.EDITED.value: _APPROVING,
    RecordKind.ROLLBACK_REQUESTED.value: _APPROVING,
    RecordKind.APPROVAL_EXPIRED.value: _APPROVING,
    RecordKind.APPROVAL_SUPERSEDED.value: _APPROVING,
    RecordKind.APPROVAL_WITHDRAWN.value: _APPROVING,
    RecordKind.CONFLICT_REPORTED.value: _SETTLING,
    RecordKind.CONFLICT_SETTLED.value: _SETTLING,
    RecordKind.PEER_TASK_TAKEN.value: _SERVING,
    RecordKind.PEER_TASK_ENDED.value: _SERVING,
    RecordKind.BALLOT_OPENED.value: EventClass("governance_decision", "low", "cache_optimization_plan"),
    RecordKind.BALLOT_CLOSED.value: _APPROVING,
    RecordKind.REQUEST_DECIDED.value: EventClass("governance_decision", "low", "optimization_request"),
    RecordKind.REQUEST_REFUSED.value: EventClass("access_control", "high", "optimization_request"),
    RecordKind.SETTING_CHANGED_BY_HAND.value: EventClass("system_configuration", "medium", "cache_configuration"),
    RecordKind.SETTING_CHANGED_BY_PEER.value: EventClass("system_configuration", "medium", "cache_configuration"),
    RecordKind.SETTING_DRIFT.value: EventClass("system_configuration", "medium", "cache_configuration"),
    RecordKind.SETTING_LOST.value: EventClass("system_configuration", "medium", "cache_configuration"),
    RecordKind.MODE_CHANGED.value: EventClass("system_configuration", "high", "agent"),
    RecordKind.KEYS_WARMED.value: EventClass("system_configuration", "low", "cache_content"),
    RecordKind.PAUSED.value: EventClass("emergency_action", "high", "agent"),
    RecordKind.RESUMED.value: EventClass("emergency_action", "medium", "agent"),
    RecordKind.CHECKPOINT.value: EventClass("cryptographic_operation", "low", "audit_chain"),
    chain.DAMAGED: EventClass("cryptographic_operation", "critical", "audit_chain"),
}

_WORDS: Final = ("state", "outcome", "decision", "action_class", "playbook", "applied", "will_execute", "kill", "phase")
"""Fields of a payload that are enumerations or truth values of ours."""
_DIGESTS: Final = ("proposal_digest", "constitution_digest", "execution_id", "proposal_id")
_TEXT_CHARS_MAX: Final = 200


def class_of(record: AuditRecord) -> EventClass:
    """Return the class of a record; a kind that is not in the table is a `system_configuration`, and says why."""
    found = _CLASSES.get(record.kind)
    if found is None:
        why = f"the kind `{_clean(record.kind)}` has no event type of its own"
        return EventClass("system_configuration", "low", "cache", why)
    if record.kind == RecordKind.JUDGED and record.payload.get("decision") != "allow":
        return EventClass(found.event_type, "medium", found.resource_type)
    return found


def request_id_of(record: AuditRecord) -> str:
    """Return our id of a record's delivery: its number and the beginning of its hash; the same however often sent."""
    return f"cachewarden:{record.seq}:{record.hash[:32] or 'damaged'}"


def event_of(record: AuditRecord) -> dict[str, Any]:
    """Return the body of `POST /api/v1/persistent-audit/events` for a record."""
    group = class_of(record)
    about = f" about `{_clean(record.service)}`" if record.service else ""
    metadata: dict[str, Any] = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "request_id": request_id_of(record),
        "journal_seq": record.seq,
        "record_hash": record.hash,
        "prev_hash": record.prev_hash,
        "payload_digest": _digest(record.payload),
        "kind": _clean(record.kind),
        "agent": _clean(record.agent),
        "service": None if record.service is None else _clean(record.service),
        "subject_id": _clean(record.subject_id),
        "recorded_at_ms": record.at_ms,
        **_known_words(record.payload),
    }
    if record.constitutional_hash != CONSTITUTIONAL_HASH:
        metadata["record_constitutional_hash"] = _clean(record.constitutional_hash)
    if group.reason:
        metadata["event_type_reason"] = group.reason
    return {
        "event_type": group.event_type,
        "service_name": AGENT_ID,
        "action": _clean(record.kind),
        "resource_type": group.resource_type,
        "resource_id": _clean(record.subject_id) or None,
        "description": f"journal record {record.seq}: {_clean(record.kind)} by {_clean(record.agent)}{about}",
        "severity": group.severity,
        "request_id": metadata["request_id"],
        "metadata": metadata,
    }


def _known_words(payload: Mapping[str, Any]) -> dict[str, Any]:
    words: dict[str, Any] = {}
    for name in _WORDS:
        value = payload.get(name)
        if isinstance(value, (bool, int)) or (isinstance(value, str) and len(value) <= 40 and " " not in value):
            words[name] = value
    for name in _DIGESTS:
        value = payload.get(name)
        if isinstance(value, str) and value:
            words[name] = _clean(value)
    denied_by = payload.get("denied_by")
    if isinstance(denied_by, (list, tuple)):
        words["denied_by"] = [_clean(str(name)) for name in denied_by[:50]]
    return words


def _digest(payload: Mapping[str, Any]) -> str:
    try:
        return digest(dict(payload))
    except (TypeError, ValueError):
        return ""


def _clean(text: str) -> str:
    """Return a text without control characters and lone surrogates, bounded: a database column has to take it."""
    shown = text.encode("utf-8", errors="replace").decode()[:_TEXT_CHARS_MAX]
    return "".join(c if c.isprintable() else "?" for c in shown)
