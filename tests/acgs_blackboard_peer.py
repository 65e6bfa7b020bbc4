"""A peer on the blackboard that does, byte by byte, what ACGS's own class does there, its traps included.

Written from the description of ACGS's wire; its sections are named at each method, and nothing of ACGS's code is in it
(its repository names no licence). `tests/integration/test_acgs_classes.py` asks the same of ACGS's own class where a
checkout is given. Times are made by `now`, so that a test can let hours pass. What raises there raises here: one
unreadable entry makes a whole listing fail.

| section | what it fixes here |
| --- | --- |
| 1, 1.1 | keys, types of keys, the spaces and that another one is a KeyError |
| 1.2 | the fields of each record, all written, in this order |
| 1.3 | the operations, in their order of commands, with their missing guards and events |
| 1.4 | the channels and the envelope of events |
| 1.5 | the claim by Lua that turns empty lists into empty objects; errors that stand in the output |
| 5.3 | how the coordinator answers conflicts by their type |
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, Field

SPACES = ("governance", "compliance", "performance", "coordination")
SEVERITY = {"critical": 1, "high": 2, "medium": 3, "low": 4}
LUA_CLAIM = """
local task = cjson.decode(redis.call('HGET', KEYS[1], 'data'))
if task.status ~= 'pending' then return nil end
local old = redis.call('HGET', KEYS[1], 'data')
task.status = 'claimed'
task.agent_id = ARGV[1]
task.claimed_at = ARGV[2]
redis.call('HSET', KEYS[1], 'data', cjson.encode(task))
redis.call('SADD', 'bb:agents:' .. ARGV[1] .. ':tasks', ARGV[3])
return old
"""


class _Record(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Agent(_Record):
    agent_id: str
    agent_type: str
    capabilities: list[str]
    status: str
    registered_at: datetime
    last_heartbeat: datetime


class Knowledge(_Record):
    id: str
    space: str
    agent_id: str
    task_id: str | None
    knowledge_type: str
    content: dict[str, Any]
    timestamp: datetime
    priority: int = Field(ge=1, le=5)
    expires_at: datetime | None
    dependencies: list[str]
    tags: set[str]


class Task(_Record):
    id: str
    task_type: str
    status: str
    agent_id: str | None
    priority: int = Field(ge=1, le=5)
    requirements: dict[str, Any]
    input_data: dict[str, Any]
    output_data: dict[str, Any] | None
    error_details: dict[str, Any] | None
    dependencies: list[str]
    deadline: datetime | None
    created_at: datetime
    claimed_at: datetime | None
    completed_at: datetime | None
    retries: int
    max_retries: int


class Conflict(_Record):
    id: str
    conflict_type: str
    involved_agents: list[str]
    involved_tasks: list[str]
    description: str
    severity: str
    status: str
    resolution_strategy: str | None
    resolution_data: dict[str, Any] | None
    created_at: datetime
    resolved_at: datetime | None


def system_now() -> datetime:
    return datetime.now(UTC)


class AcgsPeer:
    """One connection of one agent; `agent_id` is whose claims and knowledge these are."""

    def __init__(self, url: str, agent_id: str, now: Callable[[], datetime] = system_now) -> None:
        self.redis: Any = redis.Redis.from_url(url, decode_responses=True)
        self.agent_id = agent_id
        self.now = now

    def close(self) -> None:
        self.redis.close()

    def _write(self, key: str, record: BaseModel) -> None:
        text = record.model_dump(mode="json")
        for name, value in record:
            if isinstance(value, datetime):
                text[name] = value.isoformat()
        self.redis.hset(key, "data", json.dumps(text))

    def _publish(self, kind: str, data: dict[str, Any]) -> None:
        message = {"event_type": kind, "timestamp": self.now().isoformat(), "data": data}
        self.redis.publish(f"events:{kind}", json.dumps(message))

    # --- Agents -----------------------------------------------------------------------------------------------------

    def register_agent(self, agent_type: str = "worker", capabilities: tuple[str, ...] = ()) -> None:
        at = self.now()
        record = Agent(
            agent_id=self.agent_id,
            agent_type=agent_type,
            capabilities=list(capabilities),
            status="active",
            registered_at=at,
            last_heartbeat=at,
        )
        self._write(f"bb:agents:{self.agent_id}", record)
        self.redis.sadd("bb:agents:active", self.agent_id)

    def heartbeat(self) -> None:
        self.redis.hset(f"bb:agents:{self.agent_id}", "last_heartbeat", self.now().isoformat())

    def check_agent_timeouts(self, minutes: int = 5) -> list[str]:
        """1.3: throw out whoever's beat inside the JSON is too old; raises for one unreadable agent."""
        gone = []
        for agent_id in self.redis.smembers("bb:agents:active"):
            data = self.redis.hget(f"bb:agents:{agent_id}", "data")
            if data and self.now() - Agent.model_validate_json(data).last_heartbeat > timedelta(minutes=minutes):
                self.redis.srem("bb:agents:active", agent_id)
                gone.append(agent_id)
        return gone

    # --- Knowledge --------------------------------------------------------------------------------------------------

    def add_knowledge(
        self,
        space: str,
        knowledge_type: str,
        content: dict[str, Any],
        *,
        priority: int = 1,
        tags: tuple[str, ...] = (),
        expires_in_s: float | None = None,
        item_id: str = "",
    ) -> str:
        at = self.now()
        item = Knowledge(
            id=item_id or str(uuid.uuid4()),
            space=space,
            agent_id=self.agent_id,
            task_id=None,
            knowledge_type=knowledge_type,
            content=content,
            timestamp=at,
            priority=priority,
            expires_at=None if expires_in_s is None else at + timedelta(seconds=expires_in_s),
            dependencies=[],
            tags=set(tags),
        )
        key = f"bb:{space}:knowledge:{item.id}"
        self._write(key, item)
        if item.expires_at is not None and int((item.expires_at - at).total_seconds()) > 0:
            self.redis.expire(key, int((item.expires_at - at).total_seconds()))
        self.redis.zadd(f"bb:{space}:priority", {item.id: priority})
        self.redis.sadd(f"bb:agents:{self.agent_id}:knowledge", item.id)
        shown = {"knowledge_id": item.id, "space": space, "agent_id": self.agent_id, "knowledge_type": knowledge_type}
        self._publish("knowledge_added", shown)
        return item.id

    def query_knowledge(self, space: str, knowledge_type: str | None = None, limit: int = 100) -> list[Knowledge]:
        """1.3: cut the index at `limit` first and read then; raises for one unreadable item."""
        if space not in SPACES:
            raise KeyError(space)
        ids = self.redis.zrange(f"bb:{space}:priority", 0, limit - 1)
        texts = [self.redis.hget(f"bb:{space}:knowledge:{i}", "data") for i in ids]
        items = [Knowledge.model_validate_json(text) for text in texts if text]
        return [i for i in items if knowledge_type in (None, i.knowledge_type)]

    # --- Tasks ------------------------------------------------------------------------------------------------------

    def create_task(
        self,
        input_data: dict[str, Any],
        *,
        task_type: str = "cache_optimization",
        requirements: dict[str, Any] | None = None,
        priority: int = 1,
        deadline_in_s: float | None = None,
        max_retries: int = 3,
    ) -> str:
        at = self.now()
        task = Task(
            id=str(uuid.uuid4()),
            task_type=task_type,
            status="pending",
            agent_id=None,
            priority=priority,
            requirements=requirements or {},
            input_data=input_data,
            output_data=None,
            error_details=None,
            dependencies=[],
            deadline=None if deadline_in_s is None else at + timedelta(seconds=deadline_in_s),
            created_at=at,
            claimed_at=None,
            completed_at=None,
            retries=0,
            max_retries=max_retries,
        )
        self._write(f"bb:tasks:{task.id}", task)
        self.redis.zadd("bb:tasks:pending:priority", {task.id: priority})
        self._publish("task_created", {"task_id": task.id, "task_type": task_type, "priority": priority})
        return task.id

    def get_task(self, task_id: str) -> Task | None:
        text = self.redis.hget(f"bb:tasks:{task_id}", "data")
        return Task.model_validate_json(text) if text else None

    def claim_task(self, task_id: str) -> bool:
        key = f"bb:tasks:{task_id}"
        with self.redis.pipeline() as pipe:
            try:
                pipe.watch(key)
                text = pipe.hget(key, "data")
                task = json.loads(text) if text else None
                if task is None or task["status"] != "pending":
                    return False
                task |= {"status": "claimed", "agent_id": self.agent_id, "claimed_at": self.now().isoformat()}
                pipe.multi()
                pipe.hset(key, "data", json.dumps(task))
                pipe.zrem("bb:tasks:pending:priority", task_id)
                pipe.zadd("bb:tasks:claimed:priority", {task_id: task["priority"]})
                pipe.sadd(f"bb:agents:{self.agent_id}:tasks", task_id)
                pipe.execute()
            except redis.WatchError:
                return False
        self._publish("task_claimed", {"task_id": task_id, "agent_id": self.agent_id, "task_type": task["task_type"]})
        return True

    def claim_task_atomic(self, task_id: str) -> bool:
        """1.5: claim as ACGS's optimized class does: Lua turns each empty list into an empty object."""
        at = self.now().isoformat()
        return self.redis.eval(LUA_CLAIM, 1, f"bb:tasks:{task_id}", self.agent_id, at, task_id) is not None

    def update_task_status(self, task_id: str, status: str, output: dict[str, Any] | None = None) -> None:
        """1.3: read and write without a guard: any text, any transition, no owner."""
        task = json.loads(self.redis.hget(f"bb:tasks:{task_id}", "data"))
        old, task["status"] = task["status"], status
        if output:
            task["output_data"] = output
        if status == "completed":
            task["completed_at"] = self.now().isoformat()
        self.redis.hset(f"bb:tasks:{task_id}", "data", json.dumps(task))
        if old in ("pending", "claimed", "in_progress"):
            self.redis.zrem(f"bb:tasks:{old}:priority", task_id)
        if status in ("completed", "failed"):
            self.redis.zadd(f"bb:tasks:{status}:timestamp", {task_id: int(self.now().timestamp())})
        elif status in ("pending", "claimed", "in_progress"):
            self.redis.zadd(f"bb:tasks:{status}:priority", {task_id: task["priority"]})

    def complete_task(self, task_id: str, result: dict[str, Any]) -> bool:
        """1.3: only the claimer, only from claimed or in_progress."""
        return self._end(task_id, "completed", {"output_data": result})

    def fail_task(self, task_id: str, error: dict[str, Any]) -> bool:
        """1.3: as `complete_task`, and it publishes nothing."""
        return self._end(task_id, "failed", {"error_details": error})

    def _end(self, task_id: str, status: str, more: dict[str, Any]) -> bool:
        key = f"bb:tasks:{task_id}"
        with self.redis.pipeline() as pipe:
            while True:
                try:
                    pipe.watch(key)
                    text = pipe.hget(key, "data")
                    task = json.loads(text) if text else {}
                    old = task.get("status")
                    if task.get("agent_id") != self.agent_id or old not in ("claimed", "in_progress"):
                        return False
                    task |= {"status": status, "completed_at": self.now().isoformat(), **more}
                    pipe.multi()
                    pipe.hset(key, "data", json.dumps(task))
                    pipe.zrem(f"bb:tasks:{old}:priority", task_id)
                    pipe.zadd(f"bb:tasks:{status}:timestamp", {task_id: int(self.now().timestamp())})
                    pipe.execute()
                except redis.WatchError:
                    continue
                break
        if status == "completed":
            shown = {"task_id": task_id, "agent_id": self.agent_id, "task_type": task["task_type"], **more}
            self._publish("task_completed", shown)
        return True

    def get_pending_tasks(self, limit: int = 50) -> list[Task]:
        """1.3: the head of the index, of it only what is pending."""
        return [task for task in self.get_available_tasks(limit) if task.status == "pending"]

    def get_agent_tasks(self, agent_id: str) -> list[Task]:
        """1.3: all that an agent ever claimed, dangling ids dropped, larger priority numbers first."""
        index = f"bb:agents:{agent_id}:tasks"
        found = []
        for task_id in self.redis.smembers(index):
            task = self.get_task(task_id)
            if task is None:
                self.redis.srem(index, task_id)
            else:
                found.append(task)
        return sorted(found, key=lambda t: (-t.priority, t.created_at))

    def get_available_tasks(self, limit: int = 10) -> list[Task]:
        """1.3: the head of the index without a look at the status."""
        ids = self.redis.zrange("bb:tasks:pending:priority", 0, limit - 1)
        texts = [self.redis.hget(f"bb:tasks:{i}", "data") for i in ids]
        return [Task.model_validate_json(text) for text in texts if text]

    # --- Conflicts --------------------------------------------------------------------------------------------------

    def report_conflict(
        self, involved: list[str], description: str, data: dict[str, Any] | None = None, severity: str = "medium"
    ) -> str:
        conflict = Conflict(
            id=str(uuid.uuid4()),
            conflict_type="resource_conflict",
            involved_agents=involved,
            involved_tasks=[],
            description=description,
            severity=severity,
            status="open",
            resolution_strategy=None,
            resolution_data=data,
            created_at=self.now(),
            resolved_at=None,
        )
        self._write(f"bb:conflicts:{conflict.id}", conflict)
        self.redis.zadd("bb:conflicts:open:priority", {conflict.id: SEVERITY.get(severity, 3)})
        shown = {"conflict_id": conflict.id, "conflict_type": "resource_conflict", "severity": severity}
        self._publish("conflict_detected", shown | {"involved_agents": involved})
        return conflict.id

    def get_open_conflicts(self, limit: int = 20) -> list[Conflict]:
        """1.3: the head of the index, of it only what is `open`."""
        ids = self.redis.zrange("bb:conflicts:open:priority", 0, limit - 1)
        texts = [self.redis.hget(f"bb:conflicts:{i}", "data") for i in ids]
        found = [Conflict.model_validate_json(text) for text in texts if text]
        return [conflict for conflict in found if conflict.status == "open"]

    def get_conflict(self, conflict_id: str) -> Conflict | None:
        text = self.redis.hget(f"bb:conflicts:{conflict_id}", "data")
        return Conflict.model_validate_json(text) if text else None

    def resolve_conflict(self, conflict_id: str, strategy: str, data: dict[str, Any]) -> None:
        """1.3: read and write without a guard and without an event; resolving again overwrites."""
        conflict = json.loads(self.redis.hget(f"bb:conflicts:{conflict_id}", "data"))
        conflict |= {"status": "resolved", "resolution_strategy": strategy, "resolution_data": data}
        conflict["resolved_at"] = self.now().isoformat()
        self.redis.hset(f"bb:conflicts:{conflict_id}", "data", json.dumps(conflict))
        self.redis.zrem("bb:conflicts:open:priority", conflict_id)
        self.redis.zadd("bb:conflicts:resolved:priority", {conflict_id: int(self.now().timestamp())})

    def coordinate(self) -> None:
        """5.3: answer the open conflicts as ACGS's CoordinatorAgent does every 10 s."""
        for conflict in self.get_open_conflicts():
            if conflict.conflict_type == "resource_conflict":
                data = {"strategy": "priority_based_allocation", "allocation_decision": "highest_priority_wins"}
                self.resolve_conflict(conflict.id, "priority_based_allocation", data | {"reasoning": "priorities"})

    def get_metrics(self) -> dict[str, Any]:
        states = {s: f"bb:tasks:{s}:priority" for s in ("pending", "claimed", "in_progress")}
        states |= {s: f"bb:tasks:{s}:timestamp" for s in ("completed", "failed")}
        return {
            "tasks": {state: self.redis.zcard(key) for state, key in states.items()},
            "conflicts": {s: self.redis.zcard(f"bb:conflicts:{s}:priority") for s in ("open", "resolved")},
            "agents": {"active": self.redis.scard("bb:agents:active")},
            "knowledge_items": {space: self.redis.zcard(f"bb:{space}:priority") for space in SPACES},
        }
