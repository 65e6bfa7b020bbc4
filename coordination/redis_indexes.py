"""In which indexes of ACGS's programs a task or a conflict stands, from its status.

ACGS has two programs on one blackboard that share records and keep different indexes: neither lists what the other has
written there. The sorted sets of the one are always written; the sets of the other (its "core") where the settings
want them. Here is also what the tidier has to clear.

It decides nothing and only queues commands. INVARIANT: after `task` or `conflict` the id stands in exactly those
indexes that its record's status names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from cachewarden.peer_input import TASK_TYPE
from coordination.blackboard_records import OPEN_CONFLICT_STATES, SEVERITY_SCORE, TASK_STATES

__all__ = ["CONFLICT_SETS", "CONFLICT_SORTED_SETS", "TASK_SETS", "TASK_SORTED_SETS", "RecordIndexes"]

Name = tuple[str, ...]
Key = Callable[..., str]

_OPEN_TASKS: Final = ("pending", "claimed", "in_progress")
_OVER_TASKS: Final = ("completed", "failed")
_CONFLICT_STATES: Final = (*OPEN_CONFLICT_STATES, "resolved")
_CORE_TASKS: Final[Name] = ("tasks", "priority")

TASK_SORTED_SETS: Final[tuple[Name, ...]] = (
    *(("tasks", status, "priority") for status in _OPEN_TASKS),
    *(("tasks", status, "timestamp") for status in _OVER_TASKS),
    _CORE_TASKS,
)
TASK_SETS: Final[tuple[Name, ...]] = (*(("tasks", "status", s) for s in TASK_STATES), ("tasks", "type", TASK_TYPE))
CONFLICT_SORTED_SETS: Final[tuple[Name, ...]] = (
    ("conflicts", "open", "priority"),
    ("conflicts", "resolved", "priority"),
)
CONFLICT_SETS: Final[tuple[Name, ...]] = (
    *(("conflicts", "status", s) for s in _CONFLICT_STATES),
    *(("conflicts", "severity", s) for s in sorted(SEVERITY_SCORE)),
)


class RecordIndexes:
    """Queues on a pipeline where a record has to be found; `core`: for ACGS's core too."""

    def __init__(self, key: Key, *, core: bool) -> None:
        self._key, self._core = key, core

    def core_set(self, *name: str) -> str | None:
        """Return the key of a set of ACGS's core, None where it is not kept."""
        return self._key(*name) if self._core else None

    def task(self, pipe: Any, task: Mapping[str, Any], ended_ms: int = 0) -> None:
        """Put a task into the indexes of its status and out of all others; `ended_ms` of one that is over."""
        task_id, status = task["id"], task["status"]
        # One of ACGS's claimers leaves the id of a claimed task among the pending ones.
        for other in (s for s in _OPEN_TASKS if s != status):
            pipe.zrem(self._key("tasks", other, "priority"), task_id)
        if status in _OPEN_TASKS:
            pipe.zadd(self._key("tasks", status, "priority"), {task_id: task["priority"]})
        else:
            pipe.zadd(self._key("tasks", status, "timestamp"), {task_id: ended_ms // 1000})
        if self._core:
            for other in (s for s in TASK_STATES if s != status):
                pipe.srem(self._key("tasks", "status", other), task_id)
            pipe.sadd(self._key("tasks", "status", status), task_id)
            pipe.sadd(self._key("tasks", "type", task["task_type"]), task_id)
            pipe.zadd(self._key(*_CORE_TASKS), {task_id: task["priority"]})

    def conflict(self, pipe: Any, conflict: Mapping[str, Any], ended_ms: int = 0) -> None:
        """Put a conflict into the indexes of its status and out of all others; `ended_ms` of a settled one."""
        conflict_id, status, severity = conflict["id"], conflict["status"], conflict["severity"]
        if status in OPEN_CONFLICT_STATES:
            pipe.zadd(self._key("conflicts", "open", "priority"), {conflict_id: SEVERITY_SCORE.get(severity, 3)})
        else:
            pipe.zrem(self._key("conflicts", "open", "priority"), conflict_id)
            pipe.zadd(self._key("conflicts", "resolved", "priority"), {conflict_id: ended_ms // 1000})
        if self._core:
            for other in (s for s in _CONFLICT_STATES if s != status):
                pipe.srem(self._key("conflicts", "status", other), conflict_id)
            pipe.sadd(self._key("conflicts", "status", status), conflict_id)
            pipe.sadd(self._key("conflicts", "severity", severity), conflict_id)
