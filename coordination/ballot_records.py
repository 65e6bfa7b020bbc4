"""Votes on our changes as the other ACGS agents read them: a motion, a conflict while it is open, an outcome.

A peer that knows nothing of ballots sees an open conflict that is settled in time; one that does finds the plan, the
options, who may vote and until when in the knowledge item of the motion (`docs/INTEROP.md`). As all of the projection
it is written after the journal has it, and never read to decide.

INVARIANT: the same motion gives the same ids however often it is told; every content carries the constitutional hash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cachewarden.balloting import MotionState, Outcome, is_own
from cachewarden.codec import record_id
from cachewarden.machine import Effect, Publish
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH
from cachewarden.peer_messages import BallotNews
from coordination.blackboard_records import (
    BALLOT_TYPE,
    MOTION_TYPE,
    OUTCOME_TYPE,
    conflict_record,
    iso_utc,
    knowledge_item,
)
from coordination.projection import plan_content

__all__ = [
    "BALLOT_HANDLERS",
    "ballot_told",
    "conflict_id_of",
]

_BALLOTS_MAX: Final = 100
"""More are in nobody's interest to read; the total is told."""
_TTL_MS_AFTER: Final = 3_600_000
_TTL_MS_OUTCOME: Final = 24 * 3_600_000


def conflict_id_of(motion_id: str) -> str:
    """Return the id of the conflict that stands for a motion; ballots may name either."""
    return record_id("ballot", motion_id)


def ballot_told(message: BallotNews, now_ms: int) -> tuple[Publish, ...]:
    """Tell that a motion was opened, or what its outcome is."""
    if message.outcome.state is MotionState.OPEN:
        return _opened(message, now_ms)
    return _closed(message.outcome, now_ms)


def _opened(message: BallotNews, now_ms: int) -> tuple[Publish, ...]:
    motion = message.outcome.motion
    conflict_id = conflict_id_of(motion.motion_id)
    peers = [v.voter_id for v in motion.electorate if not is_own(v.voter_id)]
    content: dict[str, Any] = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "motion_id": motion.motion_id,
        "conflict_id": conflict_id,
        "kind": motion.kind,
        "service": motion.service,
        "algorithm": motion.algorithm.value,
        "quorum": motion.quorum,
        "options": [option.option_id for option in motion.options],
        "voters": [
            {"agent_id": v.voter_id, "voter_type": v.voter_type, "weight": v.weight, "veto": v.veto}
            for v in motion.electorate
        ],
        "opened_at": iso_utc(motion.opened_at_ms),
        "deadline": iso_utc(motion.deadline_ms),
        "plan": plan_content(message.proposal, "waiting", "it is put to the vote"),
    }
    item = knowledge_item(
        item_id=record_id(MOTION_TYPE, motion.motion_id),
        space="performance",
        agent_id=AGENT_ID,
        knowledge_type=MOTION_TYPE,
        content=content,
        at_ms=now_ms,
        ttl_ms=max(0, motion.deadline_ms - now_ms) + _TTL_MS_AFTER,
        priority=1,
        tags=("ballot", "cache", "performance"),
    )
    conflict = conflict_record(
        conflict_id=conflict_id,
        conflict_type=BALLOT_TYPE,
        involved_agents=[AGENT_ID, *peers],
        involved_tasks=[],
        description=f"vote on plan `{motion.motion_id}` for `{motion.service}` until {iso_utc(motion.deadline_ms)}",
        at_ms=motion.opened_at_ms,
        severity="low",
    )
    # So that we know it for ours when we read the open conflicts, also in a later life.
    conflict["resolution_data"] = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "reported_by": AGENT_ID,
        "motion_id": motion.motion_id,
    }
    return (_publish("add_knowledge", item=item), _publish("report_conflict", conflict=conflict))


def _closed(outcome: Outcome, now_ms: int) -> tuple[Publish, ...]:
    motion = outcome.motion
    conflict_id = conflict_id_of(motion.motion_id)
    ballots = [
        {
            "agent_id": entry.ballot.voter_id,
            "choice": entry.ballot.choice,
            "confidence": entry.ballot.confidence,
            "reason": entry.ballot.reason,
            "cast_at": iso_utc(entry.ballot.cast_at_ms),
            "standing": entry.standing.value,
            "note": entry.note,
        }
        for entry in outcome.ballots[:_BALLOTS_MAX]
    ]
    resolution = {
        "success": outcome.state is MotionState.DECIDED,
        "decision": outcome.winner,
        "algorithm_used": motion.algorithm.value,
        "confidence": outcome.score,
    }
    data = {
        "constitutional_hash": CONSTITUTIONAL_HASH,
        "motion_id": motion.motion_id,
        "service": motion.service,
        "resolution": resolution,
        "reasoning": outcome.reason,
        "escalate": outcome.escalate,
        "ballots": ballots,
        "ballots_total": len(outcome.ballots),
    }
    item = knowledge_item(
        item_id=record_id(OUTCOME_TYPE, motion.motion_id),
        space="coordination",
        agent_id=AGENT_ID,
        knowledge_type=OUTCOME_TYPE,
        content={**data, "conflict_id": conflict_id, "resolution_timestamp": iso_utc(outcome.counted_at_ms)},
        at_ms=now_ms,
        ttl_ms=_TTL_MS_OUTCOME,
        priority=2,
        tags=("resolution", "conflict", "consensus"),
    )
    strategy = motion.algorithm.value
    return (
        _publish("resolve_conflict", conflict_id=conflict_id, strategy=strategy, data=data, at_ms=now_ms),
        _publish("add_knowledge", item=item),
    )


def _publish(operation: str, **arguments: Any) -> Publish:
    return Publish(operation=operation, arguments=arguments)


BALLOT_HANDLERS: Final[Mapping[type, Callable[[Any, str, int], tuple[Effect, ...]]]] = {
    BallotNews: lambda message, _sender, now_ms: ballot_told(message, now_ms),
}
"""What the coordinator does with messages about votes: it tells the blackboard."""
