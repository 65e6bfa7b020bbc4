"""What peers have voted, read from their items of knowledge, and which of too many ballots are passed on.

Nothing is counted here (`agents/ballot_box.py` does). INVARIANT: whatever a record holds, reading it gives a value; old
ballots and strangers crowd nobody out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Set
from dataclasses import replace

from cachewarden.board_records import KnowledgeRecord
from cachewarden.messages import AGENT_ID
from cachewarden.peer_messages import PeerBallot
from coordination.blackboard_records import BadRecord, time_ms
from coordination.peer_plans import Refused, refused, word

__all__ = ["live_ballots", "read_ballot"]


def read_ballot(item: KnowledgeRecord, now_ms: int) -> PeerBallot | Refused | BadRecord | None:
    """Return the vote in a parsed item of knowledge; None where it is ours."""
    if item["agent_id"] == AGENT_ID:
        return None
    other = refused(item)
    if other is not None:
        return other
    content = item["content"]
    texts = [word(v) for v in (item["id"], item["agent_id"], content.get("subject"), content.get("choice"))]
    confidence = content.get("confidence", 1.0)
    if any(text is None for text in texts):
        return BadRecord("a ballot needs a `subject` and a `choice`, both short texts")
    if not isinstance(confidence, (int, float)) or isinstance(confidence, bool) or not 0.0 <= confidence <= 1.0:
        return BadRecord("`confidence` must be a number from 0 to 1")
    item_id, agent_id, subject, choice = (str(text) for text in texts)
    ballot = PeerBallot(
        item_id=item_id,
        agent_id=agent_id,
        subject=subject,
        choice=choice,
        confidence=float(confidence),
        reason="",
        at_ms=min(time_ms(item["timestamp"]) or 0, now_ms),
    )
    reason = content.get("reason", "")
    shown = "".join(c if c.isprintable() else " " for c in reason[:500]) if isinstance(reason, str) else ""
    return replace(ballot, reason=shown)


def live_ballots(ballots: Iterable[PeerBallot], entitled: Set[str], limit: int) -> tuple[PeerBallot, ...]:
    """Return at most `limit` ballots by (subject, agent, time, item). Of too many the newest of each entitled voter
    stay, in equal shares, then the newest of all others: old ballots and strangers crowd nobody out.
    """
    share = max(1, limit // max(1, len(entitled)))
    places: Counter[str] = Counter()
    ranked: list[tuple[bool, PeerBallot]] = []
    for ballot in sorted(ballots, key=lambda b: (-b.at_ms, b.item_id)):
        places[ballot.agent_id] += 1
        ranked.append((ballot.agent_id not in entitled or places[ballot.agent_id] > share, ballot))
    # Stable: within each group the newest come first.
    chosen = [ballot for _, ballot in sorted(ranked, key=lambda entry: entry[0])[:limit]]
    return tuple(sorted(chosen, key=lambda b: (b.subject, b.agent_id, b.at_ms, b.item_id)))
