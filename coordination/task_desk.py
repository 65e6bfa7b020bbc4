"""The tasks that peers put onto the blackboard for us: claimed once, run with the next cycle, ended with its outcome.

    pending ─claim─► claiming ─won─► queued ─cycle begins─► running ─decided─► ended
                         │             ▲                      │  └─go─► changing ─execution ends─► ended
                         └─lost: gone  └── not decided, retried

`ended` stays until the blackboard has taken the result. A task that its requester takes away, finishes itself or gives
to somebody else is cancelled: it is forgotten, and a change that is under way by then goes on by its own right.

Several deployments may claim under our name on one blackboard, so a claim names the life that made it
(`redis_tasks.py`). A task of a life that is not heard of any more is claimed once more, by one of the others, and run
from the beginning; one of a life that is heard of is left alone.

INVARIANT: at most `_IN_WORK_MAX` tasks are in work, at most `_CLAIMS_MAX` are claimed per look and `_CLAIMS_PER_MINUTE`
per minute; a flood of tasks brings no cycle forward more often than every `pace_ms`. A task is ended once, and always
with a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cachewarden.board_records import TaskRecord
from cachewarden.fleet import Fleet
from cachewarden.machine import Effect, EffectFailed, Record
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, Execution, RecordKind
from cachewarden.peer_input import TASK_TYPE, ClaimTask, FinishTask, TaskClaimed, TaskFinished
from coordination.blackboard_records import time_ms
from coordination.fleet_memory import FleetMemory
from coordination.pace import Pace
from coordination.peer_tasks import Ask, Refusal, answer_of, error_of, output_of, read_ask, targets_met
from coordination.projection import result_of

__all__ = ["TASK_REF", "TaskDesk"]

TASK_REF: Final = "peer_task:"
"""How the refs of the desk's effects begin."""
_IN_WORK_MAX: Final = 20
_CLAIMS_MAX: Final = 5
_CLAIMS_PER_MINUTE: Final = 60
_WORK_MS_MAX: Final = 3_600_000
"""A task without a deadline is given up after an hour."""
_ORPHAN_MS: Final = 2 * _WORK_MS_MAX
"""After that a task that is claimed under our name by no life that it names, and in nobody's work here, has lost its
claimer."""
_TRY_AGAIN_MS: Final = 10_000
_REMEMBERED_MAX: Final = 1_000


@dataclass(slots=True)
class _Work:
    ask: Ask | Refusal
    state: str = "claiming"
    began_ms: int = 0
    attempts: int = 0
    cycle: int = 0
    proposal_id: str = ""
    output: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    waiting: bool = False
    """Whether the answer to an effect about it is outstanding."""


class TaskDesk:
    """Tasks of peers in work; `pace_ms` lies at least between two cycles that are brought forward for them. `life`
    names this process among all that claim under our name; not `may_force`: a task skips no cool-down."""

    def __init__(self, fleet: Fleet, pace_ms: int, life: str = "", *, may_force: bool = True) -> None:
        self._fleet = fleet
        self._life, self._may_force = life, may_force
        self._pace_ms = pace_ms
        self._works: dict[str, _Work] = {}
        self._claims = Pace(_CLAIMS_PER_MINUTE)
        self._over: dict[str, None] = {}
        """Tasks that were in work here and are no longer: a look that was under way may show them as they were."""
        self._tried: dict[str, int] = {}
        """Tasks of other lives to when we last tried to take them over."""
        self._hurried_ms = -pace_ms
        self._hurry = False
        self.counts: dict[str, int] = {}
        """Tasks since the start: `taken`, `completed`, `failed`, `cancelled`."""

    @property
    def watched(self) -> tuple[str, ...]:
        """Tasks whose records are to be read with each look."""
        return tuple(task_id for task_id, work in self._works.items() if work.state != "claiming")

    @property
    def in_work(self) -> int:
        return len(self._works)

    def take_hurry(self, now_ms: int) -> bool:
        """Whether a cycle should begin now for the sake of a task; asked once."""
        if not self._hurry or now_ms - self._hurried_ms < self._pace_ms:
            return False
        self._hurry, self._hurried_ms = False, now_ms
        return True

    # --- The blackboard ---------------------------------------------------------------------------------------------

    def look(
        self,
        pending: Iterable[TaskRecord],
        claimed: Iterable[TaskRecord],
        watched: Mapping[str, TaskRecord | None],
        now_ms: int,
    ) -> tuple[Effect, ...]:
        """Take what one look found: new tasks, those claimed under our name, and the records of those in work."""
        effects: list[Effect] = []
        for task_id, task in watched.items():
            work = self._works.get(task_id)
            settled = work is not None and work.state != "claiming" and not work.waiting
            if settled and not (_still_ours(task) and self._claimed_here(task)):
                effects += self._cancel(task_id, now_ms)
        for task in claimed:
            effects += self._recover(task, now_ms)
        for work in list(self._works.values()):
            effects += self._chase(work, now_ms)
        asks = [
            ask
            for task in pending
            if task["status"] == "pending" and task["task_type"] == TASK_TYPE and task["id"] not in self._works
            if (ask := read_ask(task, self._fleet)) is not None
        ]
        room = min(_CLAIMS_MAX, _IN_WORK_MAX - len(self._works), self._claims.left(now_ms))
        for ask in sorted(asks, key=lambda a: (a.priority, a.created_at_ms, a.task_id))[: max(0, room)]:
            self._claims.take(now_ms)
            self._works[ask.task_id] = _Work(ask=ask, began_ms=now_ms, waiting=True)
            effects.append(self._claim(ask.task_id, now_ms))
        return tuple(effects)

    def _claim(self, task_id: str, now_ms: int, *, over: bool = False) -> ClaimTask:
        ref = f"{TASK_REF}claim:{task_id}"
        return ClaimTask(ref=ref, task_id=task_id, at_ms=now_ms, life=self._life, over=over)

    def _claimed_here(self, task: TaskRecord | None) -> bool:
        """Whether a claim under our name is this life's; one that names no life may be."""
        return task is not None and task.get("claimed_by_life", self._life) in ("", self._life)

    def step(self, event: Any, now_ms: int) -> tuple[Effect, ...]:
        """Take the answer to an effect of the desk."""
        task_id = event.ref.removeprefix(TASK_REF).partition(":")[2]
        work = self._works.get(task_id)
        if work is None:
            return ()
        work.waiting = False
        if isinstance(event, TaskClaimed):
            if not event.won:
                del self._works[task_id]
                return ()
            return self._taken(work, now_ms)
        if isinstance(event, TaskFinished):
            if not event.finished:
                return self._cancel(task_id, now_ms)
            self._leave(task_id)
        elif isinstance(event, EffectFailed) and work.state == "claiming":
            # It may have been claimed all the same; the next look says so, by the life that the claim names.
            del self._works[task_id]
        return ()

    def _taken(self, work: _Work, now_ms: int) -> tuple[Effect, ...]:
        ask = work.ask
        work.state, work.began_ms = "queued", now_ms
        work.attempts = ask.retries if isinstance(ask, Ask) else 0
        self._count("taken")
        service = ask.service if isinstance(ask, Ask) else None
        payload = {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "requester": ask.requester,
            "request": ask.request.model_dump(mode="json") if isinstance(ask, Ask) else None,
            "life": self._life,
            "priority": ask.priority,
            "created_at_ms": ask.created_at_ms,
            "deadline_ms": ask.deadline_ms if isinstance(ask, Ask) else None,
        }
        taken = Record(kind=RecordKind.PEER_TASK_TAKEN, service=service, subject_id=ask.task_id, payload=payload)
        if isinstance(ask, Refusal):
            return (taken, *self._fail(work, ask.code, ask.reason, now_ms))
        self._hurry = True
        return (taken, *self._chase(work, now_ms))

    def _recover(self, task: TaskRecord, now_ms: int) -> tuple[Effect, ...]:
        """Take up a task that is claimed under our name and in nobody's work here."""
        task_id = task["id"]
        mine = task["task_type"] == TASK_TYPE and _still_ours(task) and task_id not in self._works
        ask = read_ask(task, self._fleet) if mine else None
        if ask is None or len(self._works) >= _IN_WORK_MAX:
            return ()
        life = task.get("claimed_by_life", "")
        life = life if isinstance(life, str) else ""
        if life and life == self._life and task_id not in self._over:
            # Our claim, of which we have not heard that it was won.
            self._works[task_id] = work = _Work(ask=ask, began_ms=now_ms)
            return self._taken(work, now_ms)
        if life and life != self._life:
            if now_ms - self._tried.get(task_id, -_TRY_AGAIN_MS) < _TRY_AGAIN_MS or not self._claims.take(now_ms):
                return ()
            self._tried[task_id] = now_ms
            while len(self._tried) > _REMEMBERED_MAX:
                self._tried.pop(next(iter(self._tried)))
            self._works[task_id] = _Work(ask=ask, began_ms=now_ms, waiting=True)
            return (self._claim(task_id, now_ms, over=True),)
        if now_ms - (time_ms(task["claimed_at"]) or 0) < _ORPHAN_MS:
            return ()
        self._works[task_id] = work = _Work(ask=ask, began_ms=now_ms)
        return self._fail(work, "CLAIMER_GONE", "whoever claimed it ended before it was done, ask again", now_ms)

    def _chase(self, work: _Work, now_ms: int) -> tuple[Effect, ...]:
        """End what is too late, and hand over again the results that the blackboard has not taken."""
        if work.state == "ended":
            return () if work.waiting else self._finish(work, now_ms)
        if work.state == "claiming" or isinstance(work.ask, Refusal):
            return ()
        deadline_ms = work.began_ms + _WORK_MS_MAX if work.ask.deadline_ms is None else work.ask.deadline_ms
        if now_ms < deadline_ms:
            return ()
        going = f"; the change `{work.proposal_id}` goes on, see its plan" if work.proposal_id else ""
        return self._fail(work, "DEADLINE_PASSED", f"it was not done in time, it was {work.state}{going}", now_ms)

    def _cancel(self, task_id: str, now_ms: int) -> tuple[Effect, ...]:
        work = self._leave(task_id)
        if work.state == "ended":
            return ()
        self._count("cancelled")
        return (self._ended_record(work, "cancelled", "it is gone, or no longer ours", now_ms),)

    def _leave(self, task_id: str) -> _Work:
        self._over[task_id] = None
        while len(self._over) > _REMEMBERED_MAX:
            self._over.pop(next(iter(self._over)))
        return self._works.pop(task_id)

    # --- The cycle --------------------------------------------------------------------------------------------------

    def begin_cycle(self, cycle: int) -> tuple[str, ...]:
        """Let the tasks that wait run with this cycle; returns the services that skip cool-down and minimum gain."""
        forced: set[str] = set()
        for work in self._works.values():
            if work.state == "queued" and isinstance(work.ask, Ask):
                work.state, work.cycle = "running", cycle
                forced |= {work.ask.service} if self._may_force and work.ask.request.force_optimization else set()
        return tuple(sorted(forced))

    def end_cycle(self, cycle: int, began_ms: int, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """End the tasks that the cycle has decided; those that it could not decide run again, while they may."""
        effects: list[Effect] = []
        for work in list(self._works.values()):
            ask = work.ask
            if isinstance(ask, Refusal):
                continue
            if work.state == "changing":
                lost = memory.execution(work.proposal_id) is None and memory.in_flight(ask.service, now_ms) is None
                effects += self._again(work, "NOT_DONE", "the change could not be handed over", now_ms) if lost else ()
            elif work.state == "running" and work.cycle == cycle:
                effects += self._decided(work, ask, began_ms, memory, now_ms)
        return tuple(effects)

    def _decided(self, work: _Work, ask: Ask, began_ms: int, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        if targets_met(ask, memory.snapshot(ask.service)):
            reason = "all levels that were asked for are reached already"
            return self._end(work, output_of(ask, "targets_met", reason), None, now_ms)
        if memory.paused:
            return self._fail(work, "PAUSED", f"all changes are paused: {memory.pause_reason}", now_ms)
        running = memory.in_flight(ask.service, now_ms)
        if running is not None:
            work.state, work.proposal_id = "changing", running
            return ()
        missing, standing = memory.missing(ask.service), memory.standing(ask.service)
        if missing is not None:
            return self._again(work, "NOT_OBSERVED", f"`{ask.service}` could not be observed: {missing}", now_ms)
        if standing is None or standing.decided_at_ms < began_ms:
            return self._again(work, "NOT_DONE", "the cycle ended before it had decided", now_ms)
        status, reason, code = answer_of(ask, standing)
        if status == "go":
            return self._again(work, "NOT_DONE", "the change could not be handed over", now_ms)
        if code:
            return self._fail(work, code, reason, now_ms, output_of(ask, status, reason, standing))
        return self._end(work, output_of(ask, status, reason, standing), None, now_ms)

    def note_execution(self, execution: Execution, memory: FleetMemory, now_ms: int) -> tuple[Effect, ...]:
        """End the tasks that waited for a change which has ended."""
        effects: list[Effect] = []
        key = execution.proposal.proposal_id
        for work in [w for w in self._works.values() if w.state == "changing" and w.proposal_id == key]:
            if execution.state.final:
                output, error = result_of(execution, memory.verdict(execution.proposal))
                if error is not None:
                    error |= {"code": f"CHANGE_{execution.state.value.upper()}", "attempts": work.attempts + 1}
                effects += self._end(work, output, error, now_ms)
        return tuple(effects)

    # --- The end ----------------------------------------------------------------------------------------------------

    def _again(self, work: _Work, code: str, reason: str, now_ms: int) -> tuple[Effect, ...]:
        work.attempts += 1
        if not isinstance(work.ask, Ask) or work.attempts > work.ask.max_retries:
            return self._fail(work, code, reason, now_ms)
        work.state, work.proposal_id = "queued", ""
        return ()

    def _fail(
        self, work: _Work, code: str, reason: str, now_ms: int, output: Mapping[str, Any] | None = None
    ) -> tuple[Effect, ...]:
        return self._end(work, output or {}, error_of(code, reason, work.attempts), now_ms)

    def _end(
        self, work: _Work, output: Mapping[str, Any], error: Mapping[str, Any] | None, now_ms: int
    ) -> tuple[Effect, ...]:
        work.state, work.output, work.error = "ended", output, error
        outcome = "completed" if error is None else "failed"
        self._count(outcome)
        result = output.get("coordination_result")
        reason = str(error["error"]) if error is not None else str(result["reason"]) if result else ""
        return (self._ended_record(work, outcome, reason, now_ms), *self._finish(work, now_ms))

    def _finish(self, work: _Work, now_ms: int) -> tuple[Effect, ...]:
        work.waiting = True
        return (
            FinishTask(
                ref=f"{TASK_REF}finish:{work.ask.task_id}",
                task_id=work.ask.task_id,
                at_ms=now_ms,
                output=work.output or {},
                error=work.error,
                retries=work.attempts,
            ),
        )

    def _ended_record(self, work: _Work, outcome: str, reason: str, now_ms: int) -> Record:
        ask = work.ask
        payload = {
            "constitutional_hash": CONSTITUTIONAL_HASH,
            "outcome": outcome,
            "reason": reason,
            "requester": ask.requester,
            "proposal_id": work.proposal_id,
            "attempts": work.attempts,
            "took_ms": now_ms - work.began_ms,
            "output": work.output,
            "error": work.error,
        }
        service = ask.service if isinstance(ask, Ask) else None
        return Record(kind=RecordKind.PEER_TASK_ENDED, service=service, subject_id=ask.task_id, payload=payload)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1


def _still_ours(task: TaskRecord | None) -> bool:
    return task is not None and task["status"] in ("claimed", "in_progress") and task["agent_id"] == AGENT_ID
