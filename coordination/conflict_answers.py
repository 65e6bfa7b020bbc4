"""What others have answered to a conflict that we reported: a resolved record, a consensus session, a resolution item.

ACGS has no one answer that says "go" (`docs/INTEROP.md`), so each that exists is read, and whatever does not clearly
name one side counts as not approved. INVARIANT: an answer is for us only if it names us or our plan, or if it applies
the rule by which both sides can work it out and that rule is for us.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cachewarden.board_records import ConflictRecord, KnowledgeRecord
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH
from coordination.blackboard_records import OPEN_CONFLICT_STATES

__all__ = ["Answer", "Sides", "answer_in_item", "answer_in_record"]

_SESSION: Final = "consensus_session_event"
_RESOLUTION: Final = "conflict_resolution"
_NAMING: Final = ("winner", "winning_plan", "winning_option", "decided_for", "allocated_to", "decision")
_OPTION_FIELDS: Final = ("option_id", "option_name", "proposed_by", "plan_id", "agent_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Whether ours goes ahead, who said so, and how it is told."""

    for_us: bool
    source: str
    words: str
    in_record: bool = False
    """Whether the conflict's own record says so: then it is closed."""
    refused: bool = False
    """Whether it carries another constitutional hash, so that it does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """By which names an answer may call each side, and what `highest_priority_wins` comes to."""

    ours: frozenset[str]
    theirs: frozenset[str]
    priority_for_us: bool
    priority_words: str


def answer_in_record(record: ConflictRecord, sides: Sides) -> Answer | None:
    """Return the answer in a conflict's own record; None while it is open, in resolution or escalated."""
    if record["status"] in OPEN_CONFLICT_STATES:
        return None
    data = record["resolution_data"] or {}
    strategy = str(record["resolution_strategy"] or "no strategy")[:100]
    source = f"resolved on the blackboard by `{strategy if strategy.isprintable() else 'unprintable'}`"
    if record["status"] != "resolved":
        words = "the conflict is closed without having been resolved"
        return Answer(for_us=False, source=source, words=words, in_record=True)
    return replace(_judged(data, sides, source), in_record=True)


def answer_in_item(item: KnowledgeRecord, conflict_id: str, sides: Sides) -> Answer | None:
    """Return the answer in an item of knowledge of the space `coordination`; None where it holds none on this."""
    content = item["content"]
    if item["agent_id"] == AGENT_ID or content.get("conflict_id") != conflict_id:
        return None
    if item["knowledge_type"] == _SESSION and content.get("event_type") in ("completed", "escalated", "expired"):
        source = "a session of the consensus engine"
        if content["event_type"] != "completed" or content.get("session_status") != "completed":
            return Answer(for_us=False, source=source, words="the session ended without a decision")
        data = content.get("event_data")
        result = data.get("result") if isinstance(data, Mapping) else None
    elif item["knowledge_type"] == _RESOLUTION:
        source, result = "a resolution by ACGS's coordinator", content.get("resolution")
    else:
        return None
    if not isinstance(result, Mapping) or result.get("success") is not True:
        return Answer(for_us=False, source=source, words="it says of no side that it may go ahead")
    return _judged(
        {**result, "constitutional_hash": content.get("constitutional_hash", CONSTITUTIONAL_HASH)}, sides, source
    )


def _judged(data: Mapping[str, Any], sides: Sides, source: str) -> Answer:
    if data.get("constitutional_hash", CONSTITUTIONAL_HASH) != CONSTITUTIONAL_HASH:
        return Answer(for_us=False, source=source, words="it carries another constitutional hash", refused=True)
    named = {name for field in _NAMING for name in _names(data.get(field))}
    ours, theirs = named & sides.ours, named & sides.theirs
    if ours and not theirs:
        return Answer(for_us=True, source=source, words=f"it names `{min(ours)}`")
    if theirs:
        return Answer(for_us=False, source=source, words=f"it names `{min(theirs)}`")
    if data.get("allocation_decision") == "highest_priority_wins":
        return Answer(
            for_us=sides.priority_for_us, source=source, words=f"highest priority wins: {sides.priority_words}"
        )
    return Answer(for_us=False, source=source, words="it names neither side, which is no approval")


def _names(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [v for field in _OPTION_FIELDS if isinstance(v := value.get(field), str)]
    return []
