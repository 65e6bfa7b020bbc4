"""A conflict with another agent's plan, as the records that both sides read, and as the journal holds it.

It decides nothing. INVARIANT: each record carries the constitutional hash and both plans with their priorities, so that
`highest_priority_wins` can be worked out by whoever reads it; none carries a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachewarden.machine import Publish, Record
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, RecordKind
from coordination.blackboard_records import conflict_record, iso_utc, knowledge_item, record_id
from coordination.conflicts import Clash, ClashKind, priority_of

__all__ = ["outcome_known", "outcome_words", "reported", "settled", "settled_record"]

_OUTCOME_TTL_MS: Final = 24 * 3_600_000
_SEVERITY: Final[Mapping[ClashKind, str]] = {
    ClashKind.UNDOES: "high",
    ClashKind.OPPOSITE: "high",
    ClashKind.BUDGET: "high",
    ClashKind.OBSERVATION_WINDOW: "low",
}


def _sides(clash: Clash) -> dict[str, Any]:
    ours, plan = clash.proposal, clash.plan
    return {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "reported_by": AGENT_ID,
        "kind": clash.kind.value,
        "service": clash.service,
        "resource": clash.resource,
        "plans": [
            {"plan_id": ours.proposal_id, "agent_id": AGENT_ID, "priority": priority_of(ours)},
            {"plan_id": plan.plan_id, "agent_id": plan.agent_id, "priority": plan.priority},
        ],
    }


def reported(clash: Clash, now_ms: int, wait_until_ms: int) -> tuple[Publish, Record]:
    """Return what tells everybody of a conflict, and what the journal is told."""
    sides = _sides(clash) | {"answer_until": iso_utc(wait_until_ms)}
    description = (
        f"{clash.reason}; plan `{clash.proposal.proposal_id}` of `{AGENT_ID}` (priority {priority_of(clash.proposal)}) "
        f"against `{clash.plan.plan_id}` of `{clash.plan.agent_id}` (priority {clash.plan.priority}); "
        f"answered until {iso_utc(wait_until_ms)}, else the smaller priority number goes first"
    )
    conflict = conflict_record(
        conflict_id=clash.conflict_id,
        conflict_type="resource_conflict",
        involved_agents=[AGENT_ID, clash.plan.agent_id],
        involved_tasks=[],
        description=description,
        at_ms=now_ms,
        severity=_SEVERITY.get(clash.kind, "medium"),
    )
    conflict["resolution_data"] = sides
    payload = {**sides, "reason": clash.reason, "in_flight": clash.in_flight}
    record = Record(
        kind=RecordKind.CONFLICT_REPORTED, service=clash.service, subject_id=clash.conflict_id, payload=payload
    )
    return Publish(operation="report_conflict", arguments={"conflict": conflict}), record


def settled(conflict_id: str, clash: Clash, outcome: str, source: str, reason: str, now_ms: int) -> Publish:
    """Return what closes a conflict on the blackboard that nobody else has closed; closed once, it stays as it is."""
    strategy = "withdrawn" if outcome == "moot" else "priority_based_allocation"
    data = _sides(clash) | outcome_words(clash, outcome, source, reason)
    if outcome != "moot":
        data |= {"strategy": strategy, "allocation_decision": "highest_priority_wins"}
    arguments = {"conflict_id": conflict_id, "strategy": strategy, "data": data, "at_ms": now_ms}
    return Publish(operation="resolve_conflict", arguments=arguments)


def outcome_words(clash: Clash, outcome: str, source: str, reason: str) -> dict[str, Any]:
    """Return who goes first and why, in the words of records."""
    winner = {"won": clash.proposal.proposal_id, "lost": clash.plan.plan_id}.get(outcome)
    return {"outcome": outcome, "winner": winner, "decided_by": source, "reasoning": reason}


def outcome_known(conflict_id: str, clash: Clash, outcome: str, source: str, reason: str, now_ms: int) -> Publish:
    """Return the outcome as knowledge, in the form in which ACGS's coordinator wrote such items."""
    resolution = {
        "success": outcome in ("won", "lost"),
        "decision": {"won": clash.proposal.proposal_id, "lost": clash.plan.plan_id}.get(outcome, "withdrawn"),
        "algorithm_used": source,
        "confidence": 1.0,
    }
    content = {
        **_sides(clash),
        **outcome_words(clash, outcome, source, reason),
        "conflict_id": conflict_id,
        "resolution": resolution,
        "resolution_timestamp": iso_utc(now_ms),
    }
    item = knowledge_item(
        item_id=record_id("conflict_resolution", conflict_id, outcome),
        space="coordination",
        agent_id=AGENT_ID,
        knowledge_type="conflict_resolution",
        content=content,
        at_ms=now_ms,
        ttl_ms=_OUTCOME_TTL_MS,
        priority=2,
        tags=("cache", "conflict", "consensus", "resolution"),
    )
    return Publish(operation="add_knowledge", arguments={"item": item})


def settled_record(conflict_id: str, clash: Clash, outcome: str, source: str, reason: str) -> Record:
    """Return what the journal is told of an outcome."""
    payload = _sides(clash) | outcome_words(clash, outcome, source, reason)
    return Record(kind=RecordKind.CONFLICT_SETTLED, service=clash.service, subject_id=conflict_id, payload=payload)
