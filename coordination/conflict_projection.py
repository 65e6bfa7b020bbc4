"""A conflict with another agent's plan, as the records that both sides read, and as the journal holds it.

It decides nothing. INVARIANT: each record carries the constitutional hash and both plans with their priorities, so that
`highest_priority_wins` can be worked out by whoever reads it; none carries a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachewarden.claims import priority_of
from cachewarden.machine import Publish, Record
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, AuditRecord, RecordKind
from coordination.blackboard_records import OUTCOME_TYPE, conflict_record, iso_utc, knowledge_item, record_id
from coordination.conflicts import Clash, ClashKind

__all__ = ["WITHDRAWN", "outcome_known", "outcome_words", "replayed", "reported", "settled", "settled_record"]

WITHDRAWN: Final = "withdrawn"
"""Strategy under which a conflict is closed that has no object any more: it answers nothing."""

_OUTCOME_TTL_MS: Final = 24 * 3_600_000
_SEVERITY: Final[Mapping[ClashKind, str]] = {
    ClashKind.UNDOES: "high",
    ClashKind.OPPOSITE: "high",
    ClashKind.BUDGET: "high",
    ClashKind.OBSERVATION_WINDOW: "low",
}


def _sides(clash: Clash, since_ms: int) -> dict[str, Any]:
    ours, plan = clash.proposal, clash.plan
    us = {"plan_id": ours.proposal_id, "agent_id": AGENT_ID, "priority": priority_of(ours), "since": iso_utc(since_ms)}
    them = {"plan_id": plan.plan_id, "agent_id": plan.agent_id, "priority": plan.priority}
    return {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "reported_by": AGENT_ID,
        "kind": clash.kind.value,
        "service": clash.service,
        "resource": clash.resource,
        "plans": [us, them | {"since": iso_utc(plan.first_ms)}],
    }


def reported(
    conflict_id: str, clash: Clash, since_ms: int, now_ms: int, wait_until_ms: int, *, ours: bool = True
) -> tuple[Publish, Record]:
    """Return what tells everybody of a conflict, and what the journal is told, both under one id.

    `since_ms` is when our plan was announced first; not `ours`: a peer has reported it, so only the journal is told.
    """
    sides = _sides(clash, since_ms) | {"answer_until": iso_utc(wait_until_ms)}
    description = (
        f"{clash.reason}; plan `{clash.proposal.proposal_id}` of `{AGENT_ID}` (priority {priority_of(clash.proposal)}) "
        f"against `{clash.plan.plan_id}` of `{clash.plan.agent_id}` (priority {clash.plan.priority}); "
        f"answered until {iso_utc(wait_until_ms)}, else the smaller priority number goes first"
    )
    severity = _SEVERITY.get(clash.kind, "medium")
    told = {"description": description, "severity": severity, "reported_here": ours}
    payload = {**sides, **told, "reason": clash.reason, "in_flight": clash.in_flight}
    record = Record(kind=RecordKind.CONFLICT_REPORTED, service=clash.service, subject_id=conflict_id, payload=payload)
    return _opened(conflict_id, sides, description, severity, now_ms), record


def _opened(conflict_id: str, sides: Mapping[str, Any], description: str, severity: str, at_ms: int) -> Publish:
    conflict = conflict_record(
        conflict_id=conflict_id,
        conflict_type="resource_conflict",
        involved_agents=[str(plan["agent_id"]) for plan in sides["plans"]],
        involved_tasks=[],
        description=description,
        at_ms=at_ms,
        severity=severity,
    )
    return Publish(operation="report_conflict", arguments={"conflict": conflict | {"resolution_data": dict(sides)}})


def settled(told: Record, now_ms: int) -> Publish:
    """Return what closes a conflict on the blackboard that nobody else has closed; closed once, it stays as it is.

    `told` is what the journal is told of its outcome.
    """
    moot = told.payload["outcome"] == "moot"
    data = dict(told.payload)
    strategy = WITHDRAWN if moot else "priority_based_allocation"
    if not moot:
        data |= {"strategy": strategy, "allocation_decision": "highest_priority_wins"}
    arguments = {"conflict_id": told.subject_id, "strategy": strategy, "data": data, "at_ms": now_ms}
    return Publish(operation="resolve_conflict", arguments=arguments)


def outcome_words(clash: Clash, outcome: str, source: str, reason: str) -> dict[str, Any]:
    """Return who goes first and why, in the words of records."""
    winner = {"won": clash.proposal.proposal_id, "lost": clash.plan.plan_id}.get(outcome)
    return {"outcome": outcome, "winner": winner, "decided_by": source, "reasoning": reason}


def outcome_known(told: Record, now_ms: int) -> Publish:
    """Return the outcome as knowledge, in the form in which ACGS's coordinator wrote such items."""
    outcome = str(told.payload["outcome"])
    resolution = {
        "success": outcome in ("won", "lost"),
        "decision": told.payload["winner"] or WITHDRAWN,
        "algorithm_used": told.payload["decided_by"],
        "confidence": 1.0,
    }
    content = {
        **told.payload,
        "conflict_id": told.subject_id,
        "resolution": resolution,
        "resolution_timestamp": iso_utc(now_ms),
    }
    item = knowledge_item(
        item_id=record_id(OUTCOME_TYPE, told.subject_id, outcome),
        space="coordination",
        agent_id=AGENT_ID,
        knowledge_type=OUTCOME_TYPE,
        content=content,
        at_ms=now_ms,
        ttl_ms=_OUTCOME_TTL_MS,
        priority=2,
        tags=("cache", "conflict", "consensus", "resolution"),
    )
    return Publish(operation="add_knowledge", arguments={"item": item})


def settled_record(
    conflict_id: str, clash: Clash, since_ms: int, outcome: str, source: str, reason: str, *, in_record: bool
) -> Record:
    """Return what the journal is told of an outcome; `in_record`: somebody has closed the conflict's own record."""
    payload = _sides(clash, since_ms) | outcome_words(clash, outcome, source, reason) | {"closed_there": in_record}
    return Record(kind=RecordKind.CONFLICT_SETTLED, service=clash.service, subject_id=conflict_id, payload=payload)


def replayed(records: list[AuditRecord], now_ms: int, kept_ms: int) -> list[Publish]:
    """Return what stands of conflicts on the blackboard, from their records in the journal: those that are not settled,
    and those that were lately. One that a peer has reported is the peer's to write."""
    opened = {r.subject_id: r for r in records if r.kind == RecordKind.CONFLICT_REPORTED}
    ended = {r.subject_id: r for r in records if r.kind == RecordKind.CONFLICT_SETTLED}
    effects: list[Publish] = []
    for conflict_id, record in opened.items():
        end, payload = ended.get(conflict_id), record.payload
        lately = now_ms - (record if end is None else end).at_ms < kept_ms
        plans = payload.get("plans")
        if not lately or "description" not in payload or not isinstance(plans, list):
            continue
        if not all(isinstance(plan, Mapping) and "agent_id" in plan for plan in plans):
            continue
        if payload.get("reported_here") is True:
            words, severity = str(payload["description"]), str(payload.get("severity", "medium"))
            told = ("description", "severity", "reported_here", "reason", "in_flight")
            sides = {name: value for name, value in payload.items() if name not in told}
            effects.append(_opened(conflict_id, sides, words, severity, record.at_ms))
        if end is not None and {"outcome", "winner", "decided_by"} <= end.payload.keys():
            message = Record(kind=end.kind, service=end.service, subject_id=conflict_id, payload=end.payload)
            effects += [settled(message, end.at_ms), outcome_known(message, end.at_ms)]
    return effects
