"""The projection from the journal alone: what has to stand on the blackboard, whatever was lost there.

Standing plans that have not expired, changes under way or finished lately with their tasks, requests decided lately,
tasks of peers that were taken up, conflicts and votes that are open or ended lately. Ids follow from what they stand
for, so what is there already is met again instead of doubled. Our registration is not part of it: that we live, only a
running deployment may say, and its heartbeat does.

It decides nothing and only reads records. INVARIANT: the same records and time give the same operations; what the
journal does not hold is not published.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from pydantic import ValidationError

from cachewarden.balloting import Motion, MotionState, Outcome
from cachewarden.codec import decode
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import Publish
from cachewarden.messages import (
    AGENT_ID,
    CONSTITUTIONAL_HASH,
    AuditRecord,
    Proposal,
    RecordKind,
    Resolution,
    Verdict,
)
from cachewarden.peer_input import TASK_TYPE
from cachewarden.peer_messages import BallotNews
from cachewarden.settings import CacheOptimizerSettings
from coordination.ballot_records import ballot_told
from coordination.blackboard_records import task_record
from coordination.conflict_projection import replayed as conflicts_replayed
from coordination.fleet_memory import FleetMemory
from coordination.projection import execution_changed, plan_settled
from coordination.request_mirror import request_told

__all__ = ["REPLAY_KINDS", "replayed"]

T = TypeVar("T")

_REQUESTS_MAX = 1_000
"""Newest requests that get their tasks back; older ones are over."""

_PLANS = (RecordKind.PROPOSED, RecordKind.JUDGED, RecordKind.RESOLVED)
_CONFLICTS = (RecordKind.CONFLICT_REPORTED, RecordKind.CONFLICT_SETTLED)
_TASKS = (RecordKind.REQUEST_DECIDED, RecordKind.PEER_TASK_TAKEN, RecordKind.PEER_TASK_ENDED)
_VOTES = (RecordKind.BALLOT_OPENED, RecordKind.BALLOT_CLOSED)
REPLAY_KINDS: tuple[str, ...] = tuple(
    dict.fromkeys((*(kind.value for kind in (*_PLANS, *_CONFLICTS, *_TASKS, *_VOTES)), *FleetMemory.replay_kinds))
)


def replayed(records: Iterable[AuditRecord], settings: CacheOptimizerSettings, now_ms: int) -> tuple[Publish, ...]:
    """Return the operations that write the projection anew; `records` in the journal's order, others than
    `REPLAY_KINDS` are passed over, as are those that this version cannot read."""
    known = [r for r in records if r.kind in REPLAY_KINDS]
    verdicts = _of_subject(known, RecordKind.JUDGED, Verdict)
    memory = _memory(known, settings)
    return (
        *_plans(known, verdicts, now_ms),
        *_executions(known, memory, verdicts, settings, now_ms),
        *_requests(known, memory, verdicts, settings, now_ms),
        *_peer_tasks(known, settings, now_ms),
        *conflicts_replayed(known, now_ms, settings.blackboard_kept_ms),
        *_votes(known, settings, now_ms),
    )


def _read(cls: type[T], payload: Any) -> T | None:
    try:
        return decode(cls, payload)
    except (ValidationError, ValueError, TypeError):
        # Of another version: it stands in the journal, but cannot be shown.
        return None


def _of_subject(records: Iterable[AuditRecord], kind: RecordKind, cls: type[T]) -> dict[str, T]:
    """Return what the newest record of a kind holds, per subject."""
    found: dict[str, T] = {}
    for record in records:
        message = _read(cls, record.payload) if record.kind == kind else None
        if message is not None:
            found[record.subject_id] = message
    return found


def _plans(records: list[AuditRecord], verdicts: dict[str, Verdict], now_ms: int) -> list[Publish]:
    proposals = _of_subject(records, RecordKind.PROPOSED, Proposal)
    latest = {r.service: r for r in records if r.kind == RecordKind.RESOLVED and r.service}
    effects: list[Publish] = []
    for service in sorted(latest):
        record = latest[service]
        resolution = _read(Resolution, record.payload)
        proposal, verdict = proposals.get(record.subject_id), verdicts.get(record.subject_id)
        if resolution is not None and proposal is not None and verdict is not None and proposal.expires_at_ms > now_ms:
            effects += plan_settled(proposal, verdict, resolution, now_ms)
    return effects


def _memory(records: list[AuditRecord], settings: CacheOptimizerSettings) -> FleetMemory:
    names = sorted({str(r.service) for r in records if r.kind == RecordKind.CHANGE_INTENDED and r.service})
    # The memory asks a fleet only for its names, and a fleet needs one.
    services = [Service(name=name, url="redis://unknown") for name in names or ["none"]]
    memory = FleetMemory(Fleet(services=tuple(services)), settings)
    memory.replay(records)
    return memory


def _requests(
    records: list[AuditRecord],
    memory: FleetMemory,
    verdicts: dict[str, Verdict],
    settings: CacheOptimizerSettings,
    now_ms: int,
) -> list[Publish]:
    effects: list[Publish] = []
    decided = [r for r in records if r.kind == RecordKind.REQUEST_DECIDED]
    for record in [r for r in decided if now_ms - r.at_ms < settings.blackboard_kept_ms][-_REQUESTS_MAX:]:
        proposal_id = str(record.payload.get("proposal_id") or "")
        effects += request_told(record, memory.execution(proposal_id), verdicts.get(proposal_id), now_ms)
    return effects


def _peer_tasks(records: list[AuditRecord], settings: CacheOptimizerSettings, now_ms: int) -> list[Publish]:
    """Return the tasks that we have taken up, for the life that did, and their ends; a cancelled one is the
    requester's to write."""
    taken = {r.subject_id: r for r in records if r.kind == RecordKind.PEER_TASK_TAKEN}
    ended = {r.subject_id: r for r in records if r.kind == RecordKind.PEER_TASK_ENDED}
    effects: list[Publish] = []
    for task_id, record in taken.items():
        end, payload = ended.get(task_id), record.payload
        lately = now_ms - (record if end is None else end).at_ms < settings.blackboard_kept_ms
        numbers = (payload.get("created_at_ms"), payload.get("priority"))
        cancelled = end is not None and end.payload.get("outcome") == "cancelled"
        if not lately or cancelled or not all(isinstance(number, int) for number in numbers):
            continue
        task = task_record(
            task_id=task_id,
            task_type=TASK_TYPE,
            at_ms=int(payload["created_at_ms"]),
            priority=int(payload["priority"]),
            deadline_ms=payload.get("deadline_ms"),
            input_data={
                "request": payload.get("request") or {},
                "agent_id": payload.get("requester"),
                "constitutional_hash": CONSTITUTIONAL_HASH,
            },
        ) | {"claimed_by_life": str(payload.get("life", ""))}
        effects.append(Publish(operation="create_task", arguments={"task": task, "claimed_by": AGENT_ID}))
        if end is not None:
            words = {"output": end.payload.get("output") or {}, "error": end.payload.get("error")}
            who = {"task_id": task_id, "agent_id": AGENT_ID, "at_ms": end.at_ms, "retries": end.payload.get("attempts")}
            effects.append(Publish(operation="finish_task", arguments=who | words))
    return effects


def _executions(
    records: list[AuditRecord],
    memory: FleetMemory,
    verdicts: dict[str, Verdict],
    settings: CacheOptimizerSettings,
    now_ms: int,
) -> list[Publish]:
    begun = [r for r in records if r.kind == RecordKind.CHANGE_INTENDED and r.service]
    effects: list[Publish] = []
    for subject_id in dict.fromkeys(r.subject_id for r in begun):
        execution = memory.execution(subject_id)
        if execution is None:
            continue
        if execution.state.final and now_ms - execution.updated_at_ms >= settings.blackboard_kept_ms:
            continue
        effects += execution_changed(None, execution, now_ms, verdicts.get(subject_id))
    return effects


def _votes(records: list[AuditRecord], settings: CacheOptimizerSettings, now_ms: int) -> list[Publish]:
    opened = {r.subject_id: r for r in records if r.kind == RecordKind.BALLOT_OPENED}
    closed = {r.subject_id: r for r in records if r.kind == RecordKind.BALLOT_CLOSED}
    effects: list[Publish] = []
    for motion_id, record in opened.items():
        proposal = _read(Proposal, record.payload.get("proposal"))
        motion = _read(Motion, record.payload.get("motion"))
        if proposal is None or motion is None:
            continue
        open_still = Outcome(
            motion=motion,
            state=MotionState.OPEN,
            winner=None,
            score=0.0,
            reason="open",
            ballots=(),
            counted_at_ms=motion.opened_at_ms,
        )
        end = closed.get(motion_id)
        outcome = None if end is None else _read(Outcome, end.payload.get("outcome"))
        recent = end is None or now_ms - end.at_ms < settings.blackboard_kept_ms
        if recent:
            effects += ballot_told(BallotNews(outcome=open_still, proposal=proposal), now_ms)
        if recent and outcome is not None:
            effects += ballot_told(BallotNews(outcome=outcome, proposal=proposal), now_ms)
    return effects
