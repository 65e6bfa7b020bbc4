"""The projection from the journal alone: what has to stand on the blackboard, whatever was lost there.

Standing plans that have not expired, changes under way or finished lately with their tasks, votes that are open or
ended lately. Ids follow from what they stand for, so what is there already is met again instead of doubled. Our
registration is not part of it: that we live, only a running deployment may say, and its heartbeat does.

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
from cachewarden.messages import AuditRecord, Proposal, RecordKind, Resolution, Verdict
from cachewarden.protocol import BallotNews
from cachewarden.settings import CacheOptimizerSettings
from coordination.ballot_records import ballot_told
from coordination.fleet_memory import FleetMemory
from coordination.projection import execution_changed, plan_settled

__all__ = ["REPLAY_KINDS", "replayed"]

T = TypeVar("T")

_PLANS = (RecordKind.PROPOSED, RecordKind.JUDGED, RecordKind.RESOLVED)
_VOTES = (RecordKind.BALLOT_OPENED, RecordKind.BALLOT_CLOSED)
REPLAY_KINDS: tuple[str, ...] = tuple(
    dict.fromkeys((*(kind.value for kind in (*_PLANS, *_VOTES)), *FleetMemory.replay_kinds))
)


def replayed(records: Iterable[AuditRecord], settings: CacheOptimizerSettings, now_ms: int) -> tuple[Publish, ...]:
    """Return the operations that write the projection anew; `records` in the journal's order, others than
    `REPLAY_KINDS` are passed over, as are those that this version cannot read."""
    known = [r for r in records if r.kind in REPLAY_KINDS]
    verdicts = _of_subject(known, RecordKind.JUDGED, Verdict)
    return (
        *_plans(known, verdicts, now_ms),
        *_executions(known, verdicts, settings, now_ms),
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


def _executions(
    records: list[AuditRecord], verdicts: dict[str, Verdict], settings: CacheOptimizerSettings, now_ms: int
) -> list[Publish]:
    begun = [r for r in records if r.kind == RecordKind.CHANGE_INTENDED and r.service]
    if not begun:
        return []
    names = sorted({str(r.service) for r in begun})
    # The memory asks a fleet only for its names.
    fleet = Fleet(services=tuple(Service(name=name, url="redis://unknown") for name in names))
    memory = FleetMemory(fleet, settings)
    memory.replay(records)
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
