"""Each optimisation request of the API as a task on the blackboard, made of the journal's records.

Replicas decide and record; nothing is added to their way. Here the newest records are read at the pace of the looks at
the blackboard, and each decision becomes a `cache_optimization` task, claimed by us and ended with the decision, or
with the end of the change that it has brought about. It decides nothing.

INVARIANT: a look mirrors at most `_TASKS_MAX` requests, the newest; ids follow from the decisions, so nothing stands
there twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachewarden.machine import Effect, EffectFailed, JournalRead, Publish, ReadJournal
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, AuditRecord, Execution, RecordKind, Verdict
from cachewarden.peer_input import TASK_TYPE
from coordination.blackboard_records import record_id, task_record
from coordination.fleet_memory import FleetMemory
from coordination.projection import result_of

__all__ = ["REQUEST_REF", "RequestMirror", "request_task", "request_told"]

REQUEST_REF: Final = "requests:"
"""How the refs of its effects begin."""
_RECORDS: Final = 200
_TASKS_MAX: Final = 10
_GAP_MS: Final = 5_000
"""Between two looks: hints may bring looks at the blackboard closer together, the journal needs no more than that."""
_UNTOLD_MS: Final = 30_000
"""Longest time between two looks: the auditor, who tells when the journal has moved, may be the one that is gone."""
_SEEN_MAX: Final = 1_000
_AWAITED_MAX: Final = 500


class RequestMirror:
    """Mutable state of one coordinator: which decisions have a task, and which tasks wait for a change."""

    def __init__(self) -> None:
        self._seen: dict[str, None] = {}
        self._awaited: dict[str, str] = {}
        """Task to the proposal whose change ends it."""
        self._reading = False
        self._looked_ms = -_UNTOLD_MS
        self._moved = True
        """Whether the journal may end elsewhere than when it was last read."""
        self._head: tuple[int, str] = (0, "")
        self.mirrored = self.left_out = 0
        """Requests that have a task, and newer ones beyond the bound that have none, since the start."""

    def note_head(self, seq: int, head_hash: str) -> None:
        """Take note of where the journal ends, as its auditor has found it."""
        if (seq, head_hash) != self._head:
            self._head, self._moved = (seq, head_hash), True

    def look(self, now_ms: int) -> tuple[Effect, ...]:
        """Ask for the newest records, unless an answer is outstanding, the last one is too fresh, or nothing was
        written since."""
        if self._reading or 0 <= now_ms - self._looked_ms < (_GAP_MS if self._moved else _UNTOLD_MS):
            return ()
        self._reading, self._moved, self._looked_ms = True, False, now_ms
        kinds = (RecordKind.REQUEST_DECIDED.value,)
        return (ReadJournal(ref=f"{REQUEST_REF}read", kinds=kinds, limit=_RECORDS),)

    def step(self, event: Any, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """Take the answer."""
        self._reading = False
        if isinstance(event, EffectFailed) or not isinstance(event, JournalRead):
            self._moved = True
            return ()
        fresh = [r for r in event.records if r.kind == RecordKind.REQUEST_DECIDED and r.subject_id not in self._seen]
        self.left_out += max(0, len(fresh) - _TASKS_MAX)
        for record in fresh:
            self._seen[record.subject_id] = None
        while len(self._seen) > _SEEN_MAX:
            self._seen.pop(next(iter(self._seen)))
        return tuple(e for record in fresh[-_TASKS_MAX:] for e in self._mirrored(record, memory, now_ms))

    def note_execution(self, execution: Execution, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """End the tasks of the requests that have brought a change about, once it has ended."""
        if not execution.state.final:
            return ()
        key = execution.proposal.proposal_id
        tasks = [task_id for task_id, proposal_id in self._awaited.items() if proposal_id == key]
        return tuple(self._ended_with(task_id, execution, memory, now_ms) for task_id in tasks)

    def _mirrored(self, record: AuditRecord, memory: FleetMemory, now_ms: int) -> list[Effect]:
        self.mirrored += 1
        proposal_id = str(record.payload.get("proposal_id") or "")
        execution = memory.execution(proposal_id)
        verdict = None if execution is None else memory.verdict(execution.proposal)
        effects = request_told(record, execution, verdict, now_ms)
        if len(effects) == 1:
            self._awaited[request_task(record)] = proposal_id
            while len(self._awaited) > _AWAITED_MAX:
                # Its change was never heard of; the task says at least what was decided.
                self._awaited.pop(next(iter(self._awaited)))
        return [*effects]

    def _ended_with(self, task_id: str, execution: Execution, memory: FleetMemory, now_ms: int) -> Publish:
        self._awaited.pop(task_id, None)
        return _finish(task_id, *result_of(execution, memory.verdict(execution.proposal)), now_ms)


def request_task(record: AuditRecord) -> str:
    """Return the id of the task that stands for a decision."""
    return record_id("request", record.subject_id)


def request_told(
    record: AuditRecord, execution: Execution | None, verdict: Verdict | None, now_ms: int
) -> list[Publish]:
    """Return the task of a decision, and its end where there is one already; `execution` is the change that it has
    brought about, as far as that is known."""
    request = record.payload.get("request")
    task = task_record(
        task_id=request_task(record),
        task_type=TASK_TYPE,
        at_ms=record.at_ms,
        priority=2,
        input_data={
            "request": dict(request) if isinstance(request, Mapping) else {},
            "decision_id": record.subject_id,
            "agent_id": AGENT_ID,
            "constitutional_hash": CONSTITUTIONAL_HASH,
        },
    )
    created = Publish(operation="create_task", arguments={"task": task, "claimed_by": AGENT_ID})
    if record.payload.get("will_execute") is not True:
        return [created, _finish(task["id"], _decision(record), None, now_ms)]
    if execution is None or not execution.state.final:
        return [created]
    return [created, _finish(task["id"], *result_of(execution, verdict), now_ms)]


def _finish(task_id: str, output: Mapping[str, Any], error: Mapping[str, Any] | None, now_ms: int) -> Publish:
    arguments = {"task_id": task_id, "agent_id": AGENT_ID, "at_ms": now_ms, "output": output, "error": error}
    return Publish(operation="finish_task", arguments=arguments)


def _decision(record: AuditRecord) -> dict[str, Any]:
    payload = record.payload
    verdict = payload.get("verdict")
    denied: Sequence[Any] = verdict.get("denied_by", ()) if isinstance(verdict, Mapping) else ()
    return {
        "optimization_response": {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "decision_id": record.subject_id,
            "plan_id": payload.get("proposal_id"),
            "service": record.service,
            "optimization_applied": payload.get("applied") is True,
            "state": payload.get("state"),
            "reason": payload.get("reason"),
        },
        "coordination_result": {"status": payload.get("state"), "reason": payload.get("reason")},
        "constitutional_compliance": None if not isinstance(verdict, Mapping) else not denied,
    }
