"""The records of ACGS's blackboard as they are once they were read and checked (`docs/INTEROP.md`).

They are the JSON objects themselves, so what a peer wrote beside the named fields is still there, and times are ISO
texts. Nothing is decided or checked here. INVARIANT: a record of one of these types has passed the parser of its kind
(`coordination/blackboard_records.py`): every field that is named here is there, and is of its type.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

__all__ = ["AgentRecord", "BoardRecord", "ConflictRecord", "KnowledgeRecord", "TaskRecord"]


class AgentRecord(TypedDict):
    """`bb:agents:{agent_id}`."""

    agent_id: str
    agent_type: str
    capabilities: list[str]
    status: str
    registered_at: str
    last_heartbeat: str


class KnowledgeRecord(TypedDict):
    """`bb:{space}:knowledge:{id}`; `priority` 1..5, 1 goes first."""

    id: str
    space: str
    agent_id: str
    task_id: str | None
    knowledge_type: str
    content: dict[str, Any]
    timestamp: str
    priority: int
    expires_at: str | None
    dependencies: list[str]
    tags: list[str]


class TaskRecord(TypedDict):
    """`bb:tasks:{id}`; `priority` 1..5, 1 goes first. `claimed_by_life` is ours, which process has
    claimed it; it is not checked."""

    id: str
    task_type: str
    status: str
    agent_id: str | None
    priority: int
    requirements: dict[str, Any]
    input_data: dict[str, Any]
    output_data: dict[str, Any] | None
    error_details: dict[str, Any] | None
    dependencies: list[str]
    deadline: str | None
    created_at: str
    claimed_at: str | None
    completed_at: str | None
    retries: int
    max_retries: int
    claimed_by_life: NotRequired[Any]


class ConflictRecord(TypedDict):
    """`bb:conflicts:{id}`."""

    id: str
    conflict_type: str
    involved_agents: list[str]
    involved_tasks: list[str]
    description: str
    severity: str
    status: str
    resolution_strategy: str | None
    resolution_data: dict[str, Any] | None
    created_at: str
    resolved_at: str | None


BoardRecord = KnowledgeRecord | TaskRecord | ConflictRecord
"""What one page of the blackboard may hold."""
