"""ACGS's records as JSON: builders for ours, parsers for everybody's (`docs/INTEROP.md`).

Builders give every field that ACGS's readers expect, null where empty, with times that carry their offset. Parsers
check one record on its own and return it, repaired where the damage is a known one, or a `BadRecord` that says why it
cannot be used: what a peer writes never raises here, and one bad record never hides the others.

Nothing here decides what is published. INVARIANT: what a builder returns, the parser of its kind returns unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from cachewarden.codec import record_id

__all__ = [
    "BALLOT_TYPE",
    "CHANNELS",
    "MOTION_TYPE",
    "OPEN_CONFLICT_STATES",
    "OUTCOME_TYPE",
    "PLAN_TYPES",
    "SEVERITY_SCORE",
    "SPACES",
    "TASK_STATES",
    "BadRecord",
    "agent_record",
    "conflict_record",
    "event_message",
    "iso_utc",
    "knowledge_item",
    "parse_agent",
    "parse_conflict",
    "parse_event",
    "parse_knowledge",
    "parse_task",
    "record_id",
    "task_record",
    "time_ms",
]

SPACES: Final = ("compliance", "coordination", "governance", "performance")
TASK_STATES: Final = ("claimed", "completed", "failed", "in_progress", "pending")
OPEN_CONFLICT_STATES: Final = ("escalated", "in_resolution", "open")
SEVERITY_SCORE: Final[Mapping[str, int]] = {"critical": 1, "high": 2, "medium": 3, "low": 4}
"""Score in the index of open conflicts; any other severity counts as `medium`."""

PLAN_TYPES: Final = ("cache_optimization_plan", "optimization_activity")
"""Types of the items that plans stand in: ACGS's design publishes under the first and looks under the second."""
BALLOT_TYPE: Final = "cache_optimization_ballot"
"""Of the items that voters write, and of the conflict that stands for a vote: none that ACGS's coordinator settles."""
MOTION_TYPE: Final = "cache_optimization_motion"
OUTCOME_TYPE: Final = "conflict_resolution"
"""As ACGS's coordinator names what became of a conflict."""

CHANNELS: Final = (
    "events:agent_status",
    "events:conflict_detected",
    "events:knowledge_added",
    "events:task_claimed",
    "events:task_completed",
    "events:task_created",
)

_TTL_MS_MIN: Final = 2_000
_TEXT_CHARS_MAX: Final = 1 << 20
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be used, and why."""

    reason: str


def iso_utc(at_ms: int) -> str:
    """Return ISO 8601 with offset `+00:00`; the fraction is left out where it is 0, as ACGS's own writers do."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat()


def time_ms(text: Any) -> int | None:
    """Return milliseconds since the epoch of an ISO time, None if it is none; a time without offset counts as UTC."""
    if not isinstance(text, str):
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    try:
        return (moment - _EPOCH) // timedelta(milliseconds=1)
    except OverflowError:
        return None


# --- Builders ---------------------------------------------------------------------------------------------------------


def agent_record(agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int) -> dict[str, Any]:
    """Return an agent that registers at `at_ms`."""
    at = iso_utc(at_ms)
    return {
        "agent_id": agent_id,
        "agent_type": agent_type,
        "capabilities": list(capabilities),
        "status": "active",
        "registered_at": at,
        "last_heartbeat": at,
    }


def knowledge_item(
    *,
    item_id: str,
    space: str,
    agent_id: str,
    knowledge_type: str,
    content: Mapping[str, Any],
    at_ms: int,
    ttl_ms: int,
    priority: int = 1,
    tags: Sequence[str] = (),
    task_id: str | None = None,
    dependencies: Sequence[str] = (),
) -> dict[str, Any]:
    """Return an item of knowledge that lives `ttl_ms`, at least 2 s (less would never expire on ACGS's side)."""
    return {
        "id": item_id,
        "space": space,
        "agent_id": agent_id,
        "task_id": task_id,
        "knowledge_type": knowledge_type,
        "content": dict(content),
        "timestamp": iso_utc(at_ms),
        "priority": priority,
        "expires_at": iso_utc(at_ms + max(_TTL_MS_MIN, ttl_ms)),
        "dependencies": list(dependencies),
        "tags": list(tags),
    }


def task_record(
    *,
    task_id: str,
    task_type: str,
    input_data: Mapping[str, Any],
    at_ms: int,
    priority: int = 1,
    requirements: Mapping[str, Any] | None = None,
    dependencies: Sequence[str] = (),
    deadline_ms: int | None = None,
) -> dict[str, Any]:
    """Return a pending task."""
    return {
        "id": task_id,
        "task_type": task_type,
        "status": "pending",
        "agent_id": None,
        "priority": priority,
        "requirements": dict(requirements or {}),
        "input_data": dict(input_data),
        "output_data": None,
        "error_details": None,
        "dependencies": list(dependencies),
        "deadline": None if deadline_ms is None else iso_utc(deadline_ms),
        "created_at": iso_utc(at_ms),
        "claimed_at": None,
        "completed_at": None,
        "retries": 0,
        "max_retries": 3,
    }


def conflict_record(
    *,
    conflict_id: str,
    conflict_type: str,
    involved_agents: Sequence[str],
    involved_tasks: Sequence[str],
    description: str,
    at_ms: int,
    severity: str = "medium",
) -> dict[str, Any]:
    """Return an open conflict."""
    return {
        "id": conflict_id,
        "conflict_type": conflict_type,
        "involved_agents": list(involved_agents),
        "involved_tasks": list(involved_tasks),
        "description": description,
        "severity": severity,
        "status": "open",
        "resolution_strategy": None,
        "resolution_data": None,
        "created_at": iso_utc(at_ms),
        "resolved_at": None,
    }


def event_message(event_type: str, at_ms: int, data: Mapping[str, Any]) -> str:
    """Return the envelope that is published on `events:{event_type}`."""
    return json.dumps({"event_type": event_type, "timestamp": iso_utc(at_ms), "data": dict(data)}, allow_nan=False)


# --- Parsers ----------------------------------------------------------------------------------------------------------

_Check = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _object(value: Any) -> bool:
    return isinstance(value, dict)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _time(value: Any) -> bool:
    return time_ms(value) is not None


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _priority(value: Any) -> bool:
    return _whole(value) and 1 <= value <= 5


def _nothing_or(check: _Check) -> _Check:
    return lambda value: value is None or check(value)


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    check: _Check
    what: str
    default: Any = ...
    """Stands in for a field that is missing; `...` where the field must be there."""


_AGENT: Final = (
    _Field("agent_id", _text, "text"),
    _Field("agent_type", _text, "text"),
    _Field("capabilities", _texts, "a list of texts", []),
    _Field("status", _text, "text", "active"),
    _Field("registered_at", _time, "a time"),
    _Field("last_heartbeat", _time, "a time"),
)
_KNOWLEDGE: Final = (
    _Field("id", _text, "text"),
    _Field("space", lambda v: v in SPACES, f"one of {', '.join(SPACES)}"),
    _Field("agent_id", _text, "text"),
    _Field("task_id", _nothing_or(_text), "text or null", None),
    _Field("knowledge_type", _text, "text"),
    _Field("content", _object, "an object"),
    _Field("timestamp", _time, "a time"),
    _Field("priority", _priority, "a whole number from 1 to 5", 1),
    _Field("expires_at", _nothing_or(_time), "a time or null", None),
    _Field("dependencies", _texts, "a list of texts", []),
    _Field("tags", _texts, "a list of texts", []),
)
_TASK: Final = (
    _Field("id", _text, "text"),
    _Field("task_type", _text, "text"),
    _Field("status", lambda v: v in TASK_STATES, f"one of {', '.join(TASK_STATES)}"),
    _Field("agent_id", _nothing_or(_text), "text or null", None),
    _Field("priority", _priority, "a whole number from 1 to 5", 1),
    _Field("requirements", _object, "an object", {}),
    _Field("input_data", _object, "an object", {}),
    _Field("output_data", _nothing_or(_object), "an object or null", None),
    _Field("error_details", _nothing_or(_object), "an object or null", None),
    _Field("dependencies", _texts, "a list of texts", []),
    _Field("deadline", _nothing_or(_time), "a time or null", None),
    _Field("created_at", _time, "a time"),
    _Field("claimed_at", _nothing_or(_time), "a time or null", None),
    _Field("completed_at", _nothing_or(_time), "a time or null", None),
    _Field("retries", _whole, "a whole number", 0),
    _Field("max_retries", _whole, "a whole number", 3),
)
_CONFLICT: Final = (
    _Field("id", _text, "text"),
    _Field("conflict_type", _text, "text"),
    _Field("involved_agents", _texts, "a list of texts"),
    _Field("involved_tasks", _texts, "a list of texts", []),
    _Field("description", lambda v: isinstance(v, str), "text", ""),
    _Field("severity", _text, "text", "medium"),
    _Field("status", _text, "text"),
    _Field("resolution_strategy", _nothing_or(_text), "text or null", None),
    _Field("resolution_data", _nothing_or(_object), "an object or null", None),
    _Field("created_at", _time, "a time"),
    _Field("resolved_at", _nothing_or(_time), "a time or null", None),
)


def _parse(text: Any, fields: Sequence[_Field]) -> dict[str, Any] | BadRecord:
    record = _load(text)
    if isinstance(record, BadRecord):
        return record
    for field in fields:
        value = record.get(field.name, field.default)
        if value is ...:
            return BadRecord(f"`{field.name}` is missing")
        # Lua's cjson, as one of ACGS's programs uses it, writes an empty list as an empty object.
        if value == {} and isinstance(value, dict) and field.check is _texts:
            value = []
        if not field.check(value):
            return BadRecord(f"`{field.name}` must be {field.what}, not `{str(value)[:80]}`")
        # A default must not be shared between the records that lack the field.
        record[field.name] = value.copy() if isinstance(value, (list, dict)) else value
    return record


def _load(text: Any) -> dict[str, Any] | BadRecord:
    if not isinstance(text, str):
        return BadRecord("the record has no `data`")
    if len(text) > _TEXT_CHARS_MAX:
        return BadRecord(f"the record has {len(text)} characters, more than {_TEXT_CHARS_MAX}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return BadRecord(f"the record is no JSON: {error}")
    return value if isinstance(value, dict) else BadRecord("the record is no JSON object")


def parse_agent(text: Any) -> dict[str, Any] | BadRecord:
    """Return the agent in the text `data` of its hash."""
    return _parse(text, _AGENT)


def parse_knowledge(text: Any) -> dict[str, Any] | BadRecord:
    """Return the item of knowledge in the text `data` of its hash."""
    return _parse(text, _KNOWLEDGE)


def parse_task(text: Any) -> dict[str, Any] | BadRecord:
    """Return the task in the text `data` of its hash; fields that we do not know are kept."""
    return _parse(text, _TASK)


def parse_conflict(text: Any) -> dict[str, Any] | BadRecord:
    """Return the conflict in the text `data` of its hash."""
    return _parse(text, _CONFLICT)


def parse_event(channel: str, text: Any) -> dict[str, Any] | BadRecord:
    """Return `{event_type, timestamp, data}` of a published message; `timestamp` is None where the sender left it out.

    Three forms are in use: the envelope, the envelope with an empty timestamp, and the bare data without an envelope.
    """
    kind = channel.removeprefix("events:")
    if f"events:{kind}" not in CHANNELS:
        return BadRecord(f"`{channel[:80]}` is no channel of events")
    message = _load(text)
    if isinstance(message, BadRecord):
        return message
    if "event_type" not in message:
        return {"event_type": kind, "timestamp": None, "data": message}
    data = message.get("data")
    if message["event_type"] != kind or not isinstance(data, dict):
        return BadRecord(f"the message on `{channel}` is no event of that kind")
    timestamp = message.get("timestamp")
    return {"event_type": kind, "timestamp": timestamp if _time(timestamp) else None, "data": data}
