"""What a `cache_optimization` task of a peer asks for, and the words in which it is answered.

`input_data.request` is the body of `POST /api/v1/cache/optimize`, read by the same model. What is not understood is
refused with a reason, never guessed. Nothing is claimed or run here (`task_desk.py` does).

INVARIANT: whatever a task holds, reading it gives an `Ask`, a `Refusal`, or None where somebody else is meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import ValidationError

from cachewarden.board_records import TaskRecord
from cachewarden.fleet import Fleet
from cachewarden.messages import AGENT_ID, CAPABILITIES, CONSTITUTIONAL_HASH, Decision, Mode, ResolutionOutcome
from cachewarden.models import CacheOptimizationRequest
from cachewarden.observation import Snapshot
from cachewarden.protocol import StandingDecision
from coordination.blackboard_records import time_ms
from coordination.peer_plans import word

__all__ = ["Ask", "Refusal", "answer_of", "error_of", "output_of", "read_ask", "targets_met"]

_REQUIREMENTS: Final = ("agent_id", "capabilities", "constitutional_hash")
_RETRIES_MAX: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One task that can be taken up; `deadline_ms` None where it has none."""

    task_id: str
    requester: str
    request: CacheOptimizationRequest
    priority: int
    created_at_ms: int
    deadline_ms: int | None
    retries: int
    max_retries: int

    @property
    def service(self) -> str:
        return self.request.service_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a task cannot be taken up: `code` is one of the API's error codes or named in `docs/INTEROP.md`."""

    task_id: str
    requester: str
    code: str
    reason: str
    priority: int = 1
    created_at_ms: int = 0


def read_ask(task: TaskRecord, fleet: Fleet) -> Ask | Refusal | None:
    """Return what a parsed task asks of us; None where it is one of our own or names another agent to do it."""
    data, requirements = task["input_data"], task["requirements"]
    requester = data.get("agent_id")
    if requester == AGENT_ID or requirements.get("agent_id", AGENT_ID) != AGENT_ID:
        return None
    by = word(requester) or "unnamed"

    def refuse(code: str, reason: str) -> Refusal:
        created_ms = time_ms(task["created_at"]) or 0
        return Refusal(
            task_id=task["id"],
            requester=by,
            code=code,
            reason=reason,
            priority=task["priority"],
            created_at_ms=created_ms,
        )

    for where, holder in (("input_data", data), ("requirements", requirements)):
        received = holder.get("constitutional_hash", CONSTITUTIONAL_HASH)
        if received != CONSTITUTIONAL_HASH:
            return refuse("CONSTITUTIONAL_VIOLATION", f"`{where}` carries another constitutional hash than ours")
    unknown = sorted(str(name)[:50] for name in requirements if name not in _REQUIREMENTS)
    if unknown:
        known = ", ".join(f"`{name}`" for name in _REQUIREMENTS)
        return refuse("VALIDATION_FAILED", f"requirements {unknown[:5]} are not known, known are {known}")
    lacking = _lacking(requirements.get("capabilities", []))
    if lacking:
        return refuse("VALIDATION_FAILED", lacking)
    body = data.get("request")
    if not isinstance(body, Mapping):
        return refuse("VALIDATION_FAILED", "`input_data.request` must be an object with a `service_name`")
    try:
        request = CacheOptimizationRequest.model_validate(dict(body))
    except (ValidationError, RecursionError) as error:
        return refuse("VALIDATION_FAILED", _problems(error))
    if request.constitutional_hash != CONSTITUTIONAL_HASH:
        return refuse("CONSTITUTIONAL_VIOLATION", "`input_data.request` carries another constitutional hash than ours")
    service = next((s for s in fleet.services if s.name == request.service_name), None)
    if service is None:
        names = ", ".join(f"`{name}`" for name in sorted(fleet.names)[:20])
        return refuse("UNKNOWN_SERVICE", f"there is no service `{request.service_name[:100]}`, there are {names}")
    if service.mode is Mode.OFF:
        return refuse("UNKNOWN_SERVICE", f"`{service.name}` is in mode `off`, nobody looks at it")
    return Ask(
        task_id=task["id"],
        requester=by,
        request=request,
        priority=task["priority"],
        created_at_ms=time_ms(task["created_at"]) or 0,
        deadline_ms=time_ms(task["deadline"]),
        retries=min(_RETRIES_MAX, max(0, task["retries"])),
        max_retries=min(_RETRIES_MAX, max(0, task["max_retries"])),
    )


def _lacking(capabilities: Any) -> str:
    if not isinstance(capabilities, list) or not all(isinstance(c, str) for c in capabilities):
        return "`requirements.capabilities` must be a list of texts"
    missing = [c for c in capabilities if c not in CAPABILITIES]
    if not missing:
        return ""
    return f"the capability `{missing[0][:100]}` is not ours, ours are {', '.join(f'`{c}`' for c in CAPABILITIES)}"


def _problems(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return "`input_data.request` is nested too deeply"
    told = [f"`{'.'.join(str(p)[:50] for p in e['loc'][:4])}` {e['msg'].lower()[:200]}" for e in error.errors()[:5]]
    return "`input_data.request`: " + "; ".join(told)


def targets_met(ask: Ask, snapshot: Snapshot | None) -> bool:
    """Whether the levels that the task names explicitly are all reached already."""
    wanted = ask.request.explicit_targets
    if snapshot is None or not wanted:
        return False
    p99_us = snapshot.latency_us_p99
    levels = {
        "cache_hit_rate": snapshot.hit_ratio,
        "memory_efficiency": snapshot.memory_efficiency,
        "p99_latency_ms": None if p99_us is None else -p99_us / 1000,
    }
    # Latency counts downwards.
    goals = {name: -goal if name == "p99_latency_ms" else goal for name, goal in wanted.items()}
    return all((level := levels[name]) is not None and level >= goal for name, goal in goals.items())


def output_of(ask: Ask, status: str, reason: str, standing: StandingDecision | None = None) -> dict[str, Any]:
    """Return the output of a task that ended without a change of ours; `standing` is what it was decided by."""
    proposal = None if standing is None else standing.proposal
    verdict = None if standing is None else standing.verdict
    return {
        "optimization_response": {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "plan_id": None if proposal is None else proposal.proposal_id,
            "service": ask.service,
            "optimization_applied": False,
            "state": status,
            "reason": reason,
        },
        "coordination_result": {"status": status, "reason": reason},
        "constitutional_compliance": None if verdict is None else verdict.decision is Decision.ALLOW,
    }


def error_of(code: str, reason: str, attempts: int) -> dict[str, Any]:
    """Return the `error_details` of a failed task."""
    return {"error": reason, "code": code, "attempts": attempts, "constitutional_hash": CONSTITUTIONAL_HASH}


_STATUS: Final[Mapping[ResolutionOutcome, str]] = {
    ResolutionOutcome.ADVISE: "advised",
    ResolutionOutcome.WAIT: "waiting",
    ResolutionOutcome.YIELD: "yielded",
}


def answer_of(ask: Ask, standing: StandingDecision) -> tuple[str, str, str]:
    """Return (status, reason, error code) of what a cycle has decided; status `go` where a change is under way.

    The code is empty where the task is completed: that there is nothing to do, or not now, is an answer too.
    """
    proposal, verdict, resolution = standing.proposal, standing.verdict, standing.resolution
    if proposal is None or verdict is None or resolution is None:
        return "nothing_to_do", standing.idle_reason or "no change is worth it now", ""
    wanted = ask.request.optimization_type
    if wanted != "comprehensive" and wanted not in proposal.kinds:
        return "nothing_to_do", f"the best plan is of {', '.join(proposal.kinds)}, `{wanted}` was asked for", ""
    if verdict.decision is Decision.DENY:
        return "denied", f"the constitution denies it: {', '.join(verdict.denied_by)}", "CONSTITUTIONAL_VIOLATION"
    if resolution.outcome is ResolutionOutcome.GO:
        return "go", resolution.reason, ""
    status = "awaiting_approval" if resolution.awaits_approval else _STATUS[resolution.outcome]
    return status, resolution.reason, ""
