"""What happened here, as the records that the other ACGS agents read: registration, tasks, plans, conflicts, audit.

Each function takes what is so now (and what was so before) and returns `Publish` effects, whose operations are methods
of the Blackboard port. The blackboard is a mirror: written after the fact, never read to decide, rebuilt at will from
a `FleetState`. So each id is derived from what it stands for, and publishing a thing twice changes nothing.

It decides nothing and tells nobody what to do. INVARIANT: every content carries the constitutional hash, none a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from cachewarden.claims import priority_of
from cachewarden.codec import kept_digest, to_jsonable
from cachewarden.machine import Publish
from cachewarden.messages import (
    AGENT_ID,
    CAPABILITIES,
    CONSTITUTIONAL_HASH,
    Decision,
    Execution,
    ExecutionState,
    Proposal,
    Resolution,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.peer_input import TASK_TYPE
from cachewarden.protocol import ChainChecked, FleetState
from coordination.blackboard_records import (
    PLAN_TYPES,
    conflict_record,
    iso_utc,
    knowledge_item,
    record_id,
    task_record,
)

__all__ = [
    "AGENT_TYPE",
    "ChainNews",
    "chain_checked",
    "execution_changed",
    "farewell",
    "fleet_changed",
    "heartbeat",
    "intent",
    "intent_dropped",
    "plan_content",
    "plan_settled",
    "register",
    "result_of",
    "task_id_of",
]

AGENT_TYPE: Final = "performance_optimization"

_TAGS: Final = ("cache", "performance")
_TTL_MS_SETTLED_MIN: Final = 60_000
_TTL_MS_UNDER_WAY: Final = 3_600_000
_TTL_MS_FINISHED: Final = 24 * 3_600_000
_CHAIN_AGAIN_MS: Final = 60_000
_TIDY_MS: Final = 60_000
"""About how often the blackboard is tidied up: what is over stays there for a day, so nobody waits for it."""

_PROPOSAL_ID_PREFIX: Final = "p-"
"""How `agents/drafting.py` begins the id of a proposal; anything else that a conflict names is somebody's intent."""

_STATUS_OF_OUTCOME: Final[Mapping[ResolutionOutcome, str]] = {
    ResolutionOutcome.GO: "approved",
    ResolutionOutcome.WAIT: "waiting",
    ResolutionOutcome.YIELD: "yielded",
    ResolutionOutcome.ADVISE: "advised",
}
_STATUS_OF_FINAL_STATE: Final[Mapping[ExecutionState, str]] = {
    ExecutionState.KEPT: "completed",
    ExecutionState.ROLLED_BACK: "rolled_back",
    ExecutionState.ABANDONED: "abandoned",
    ExecutionState.FAILED: "failed",
}


def register(now_ms: int) -> tuple[Publish, ...]:
    """Present ourselves to the other agents."""
    return (_publish("register_agent", **_ourselves(), at_ms=now_ms),)


def heartbeat(now_ms: int, interval_ms: int, kept_ms: int, life: str = "") -> tuple[Publish, ...]:
    """Say that we live (an agent that was forgotten is registered again by it), every `interval_ms`, and every
    minute tidy up: what is over stays `kept_ms`. `life` is whose claims of tasks are in force as long as it is heard
    of."""
    beat = _publish("heartbeat", **_ourselves(), at_ms=now_ms, life=life)
    if now_ms // _TIDY_MS == (now_ms - interval_ms) // _TIDY_MS:
        return (beat,)
    return (beat, _publish("tidy", at_ms=now_ms, kept_ms=kept_ms))


def farewell() -> tuple[Publish, ...]:
    """Leave the active agents."""
    return (_publish("deregister_agent", agent_id=AGENT_ID),)


def task_id_of(execution: Execution) -> str:
    """Return the id of the task that stands for an execution."""
    return record_id("task", execution.execution_id)


def plan_settled(proposal: Proposal, verdict: Verdict, resolution: Resolution, now_ms: int) -> tuple[Publish, ...]:
    """Tell what becomes of a proposal, and which of our own proposals it was weighed against."""
    denied = verdict.decision is Decision.DENY
    status = "denied" if denied else _STATUS_OF_OUTCOME[resolution.outcome]
    content = plan_content(proposal, status, resolution.reason) | {
        "verdict": {
            "decision": verdict.decision.value,
            "denied_by": list(verdict.denied_by),
            "constitution_digest": verdict.constitution_digest,
        },
        "resolution": {"outcome": resolution.outcome.value, "conflicts_with": list(resolution.conflicts_with)},
    }
    ttl_ms = max(_TTL_MS_SETTLED_MIN, proposal.expires_at_ms - now_ms)
    return (*_knowledge_of_plan(proposal, content, now_ms, ttl_ms), *_conflicts(proposal, resolution, now_ms))


def intent(proposal: Proposal, since_ms: int, now_ms: int) -> tuple[dict[str, Any], ...]:
    """Return the items of knowledge that have to stand on the blackboard before a change is begun.

    They are the plan's own items, under both types, so that whoever looks finds one plan in one state.
    """
    content = plan_content(proposal, "approved", "it begins unless a plan of another agent is found", since_ms)
    told = _knowledge_of_plan(proposal, content, now_ms, _TTL_MS_SETTLED_MIN)
    return tuple(effect.arguments["item"] for effect in told)


def intent_dropped(proposal: Proposal, since_ms: int, reason: str, now_ms: int) -> tuple[Publish, ...]:
    """Tell that a change which was announced does not begin."""
    content = plan_content(proposal, "waiting", reason, since_ms)
    return _knowledge_of_plan(proposal, content, now_ms, _TTL_MS_SETTLED_MIN)


def execution_changed(
    before: Execution | None, execution: Execution, now_ms: int, verdict: Verdict | None = None
) -> tuple[Publish, ...]:
    """Tell how far a change has come: its task (claimed by us at once, finished with its result) and its plan.

    `verdict` is the one under which it runs; without it the task says that its compliance is not known (null).
    """
    if before is not None and before.execution_id == execution.execution_id and before.state is execution.state:
        return ()
    effects: list[Publish] = []
    task_id = task_id_of(execution)
    if before is None or before.execution_id != execution.execution_id:
        task = task_record(
            task_id=task_id,
            task_type=TASK_TYPE,
            at_ms=execution.started_at_ms,
            priority=priority_of(execution.proposal),
            input_data=_task_input(execution.proposal),
        )
        effects.append(_publish("create_task", task=task, claimed_by=AGENT_ID))
    status = _STATUS_OF_FINAL_STATE.get(execution.state, "in_progress")
    content = plan_content(execution.proposal, status, execution.reason) | {
        "execution_id": execution.execution_id,
        "task_id": task_id,
        "state": execution.state.value,
        "step": execution.step,
        "steps": execution.steps,
        "realised": _realised(execution),
    }
    ttl_ms = _TTL_MS_FINISHED if execution.state.final else _TTL_MS_UNDER_WAY
    effects.extend(_knowledge_of_plan(execution.proposal, content, now_ms, ttl_ms, task_id))
    if execution.state.final:
        effects.append(_finish(task_id, execution, verdict, now_ms))
    return tuple(effects)


def fleet_changed(before: FleetState | None, after: FleetState, now_ms: int) -> tuple[Publish, ...]:
    """Tell everything that differs between two states of the fleet; all of it where there was none (a rebuild)."""
    effects: list[Publish] = [] if before is not None else list(register(now_ms))
    for service in sorted(after.standing):
        now, old = after.standing[service], None if before is None else before.standing.get(service)
        if now == old or now.proposal is None or now.verdict is None or now.resolution is None:
            continue
        effects.extend(plan_settled(now.proposal, now.verdict, now.resolution, now_ms))
    known = {} if before is None else {e.execution_id: e for e in before.executions}
    for execution in after.executions:
        standing = after.standing.get(execution.proposal.service)
        verdict = None if standing is None else standing.verdict
        if verdict is not None and verdict.proposal_id != execution.proposal.proposal_id:
            verdict = None
        effects.extend(execution_changed(known.get(execution.execution_id), execution, now_ms, verdict))
    return tuple(effects)


def chain_checked(message: ChainChecked, now_ms: int) -> tuple[Publish, ...]:
    """Put the newest checkpoint of the journal, or the alarm that it does not verify, where its writers do not look."""
    content = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "ok": message.ok,
        "height": message.height,
        "checkpoint": {"seq": message.checkpoint_seq, "hash": message.checkpoint_hash, "at_ms": message.checked_at_ms},
        "problems": list(message.problems),
        "problems_total": message.problems_total,
    }
    kind = "audit_checkpoint" if message.ok else "audit_chain_alarm"
    item = knowledge_item(
        item_id=record_id(kind),
        space="compliance",
        agent_id=AGENT_ID,
        knowledge_type=kind,
        content=content,
        at_ms=now_ms,
        ttl_ms=_TTL_MS_FINISHED,
        priority=3 if message.ok else 1,
        tags=("audit", "cache"),
    )
    return (_publish("add_knowledge", item=item),)


class ChainNews:
    """What was last told of the chain: the same once a minute is enough, anything else is told at once."""

    def __init__(self) -> None:
        self._told: tuple[Any, ...] = ()
        self._told_ms = 0

    def tell(self, message: ChainChecked, now_ms: int) -> tuple[Publish, ...]:
        """Return what `chain_checked` does where that is news, or was told a minute ago."""
        news = (message.ok, message.height, message.checkpoint_hash, message.problems, message.problems_total)
        if news == self._told and 0 <= now_ms - self._told_ms < _CHAIN_AGAIN_MS:
            return ()
        self._told, self._told_ms = news, now_ms
        return chain_checked(message, now_ms)


# --- Parts ------------------------------------------------------------------------------------------------------------


def _publish(operation: str, **arguments: Any) -> Publish:
    return Publish(operation=operation, arguments=arguments)


def _ourselves() -> dict[str, Any]:
    return {"agent_id": AGENT_ID, "agent_type": AGENT_TYPE, "capabilities": list(CAPABILITIES)}


def _task_input(proposal: Proposal) -> dict[str, Any]:
    request = {
        "service": proposal.service,
        "optimization_types": list(proposal.kinds),
        "proposal_id": proposal.proposal_id,
        "changes": _changes(proposal),
        "author": proposal.author,
    }
    return {"request": request, "agent_id": AGENT_ID, "constitutional_hash": CONSTITUTIONAL_HASH}


def _changes(proposal: Proposal) -> list[dict[str, Any]]:
    knobs = [{"knob": c.knob, "before": c.before, "after": c.after} for c in proposal.knob_changes]
    rules = [
        {"pattern": r.pattern, "ttl_ms_before": r.written_ttl_ms, "ttl_ms_after": r.extended_ttl_ms}
        for r in proposal.ttl_rules
    ]
    return [*knobs, *rules]


def plan_content(proposal: Proposal, status: str, reason: str, since_ms: int | None = None) -> dict[str, Any]:
    """Return what others read of a proposal, whichever item it stands in; `since_ms` is when it was announced first."""
    return {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "plan_id": proposal.proposal_id,
        "plan_digest": kept_digest(proposal),
        "status": status,
        "reason": reason,
        "priority": priority_of(proposal),
        "author": proposal.author,
        "since": iso_utc(proposal.created_at_ms if since_ms is None else since_ms),
        "affected_services": [proposal.service],
        "affected_keys": [rule.pattern for rule in proposal.ttl_rules],
        "optimization_types": list(proposal.kinds),
        "changes": _changes(proposal),
        "memory_delta_bytes": proposal.memory_delta_bytes,
        "action_class": int(proposal.action_class),
        "reversible": proposal.reversible,
        "rationale": proposal.rationale,
        "rollback": proposal.rollback,
        "predicted": {
            "hit_ratio_before": to_jsonable(proposal.prediction.hit_ratio_before),
            "hit_ratio_after": to_jsonable(proposal.prediction.hit_ratio_after),
            "gain": to_jsonable(proposal.prediction.gain),
            "method": proposal.prediction.method,
        },
    }


def _realised(execution: Execution) -> dict[str, float | None]:
    return {
        "hit_ratio_before": execution.hit_ratio_before,
        "hit_ratio_after": execution.hit_ratio_after,
        "gain": execution.realised_gain,
    }


def _knowledge_of_plan(
    proposal: Proposal, content: Mapping[str, Any], now_ms: int, ttl_ms: int, task_id: str | None = None
) -> tuple[Publish, ...]:
    # The design publishes plans under one type and looks for activity under another, so readers of either find it.
    return tuple(
        _publish(
            "add_knowledge",
            item=knowledge_item(
                item_id=record_id(kind, proposal.proposal_id),
                space="performance",
                agent_id=AGENT_ID,
                knowledge_type=kind,
                content=content,
                at_ms=now_ms,
                ttl_ms=ttl_ms,
                priority=priority_of(proposal),
                tags=_TAGS,
                task_id=task_id,
            ),
        )
        for kind in PLAN_TYPES
    )


def _conflicts(proposal: Proposal, resolution: Resolution, now_ms: int) -> tuple[Publish, ...]:
    # Only what one of our proposals lost to another one is ours to declare settled. Waiting is no conflict, and what
    # stands against a peer's intent is for that peer, or for ACGS's coordinator, to settle too.
    effects: list[Publish] = []
    if resolution.outcome is not ResolutionOutcome.YIELD:
        return ()
    for other in (o for o in resolution.conflicts_with if o.startswith(_PROPOSAL_ID_PREFIX)):
        pair = sorted((proposal.proposal_id, other))
        conflict_id = record_id("conflict", *pair)
        conflict = conflict_record(
            conflict_id=conflict_id,
            conflict_type="resource_conflict",
            involved_agents=[AGENT_ID],
            involved_tasks=[],
            description=f"plans `{pair[0]}` and `{pair[1]}`: {resolution.reason}",
            at_ms=now_ms,
            severity="low",
        )
        data = {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "strategy": "priority_based_allocation",
            "plans": pair,
            "decided_for": proposal.proposal_id,
            "outcome": resolution.outcome.value,
            "reasoning": resolution.reason,
        }
        effects.append(_publish("report_conflict", conflict=conflict))
        strategy = data["strategy"]
        effects.append(
            _publish("resolve_conflict", conflict_id=conflict_id, strategy=strategy, data=data, at_ms=now_ms)
        )
    return tuple(effects)


def result_of(execution: Execution, verdict: Verdict | None) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Return output and error (None where there is none) of a task that an ended execution has answered.

    `verdict` is the one under which it ran; without it the compliance is not known (null).
    """
    compliant: bool | None = None
    if verdict is not None:
        allows = verdict.decision is Decision.ALLOW and verdict.proposal_digest == kept_digest(execution.proposal)
        # A change that was given up before anything was written complies whatever the verdict was.
        compliant = allows or execution.state is ExecutionState.ABANDONED
    output = {
        "optimization_response": {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "plan_id": execution.proposal.proposal_id,
            "execution_id": execution.execution_id,
            "service": execution.proposal.service,
            "optimization_applied": execution.state is ExecutionState.KEPT,
            "state": execution.state.value,
            "reason": execution.reason,
            "changes": _changes(execution.proposal),
            "predicted_gain": to_jsonable(execution.proposal.prediction.gain),
            "realised": _realised(execution),
        },
        "coordination_result": {"status": _STATUS_OF_FINAL_STATE[execution.state], "reason": execution.reason},
        "constitutional_compliance": compliant,
    }
    error: dict[str, Any] | None = None
    if execution.state in (ExecutionState.ABANDONED, ExecutionState.FAILED):
        error = {
            "error": execution.reason or execution.state.value,
            "state": execution.state.value,
            "constitutional_hash": CONSTITUTIONAL_HASH,
        }
    return output, error


def _finish(task_id: str, execution: Execution, verdict: Verdict | None, now_ms: int) -> Publish:
    output, error = result_of(execution, verdict)
    return _publish("finish_task", task_id=task_id, agent_id=AGENT_ID, at_ms=now_ms, output=output, error=error)
