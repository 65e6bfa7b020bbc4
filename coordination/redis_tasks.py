"""The tasks on ACGS's blackboard: created, claimed, taken over and ended, each in one transaction.

Several processes may work under one agent's name: deployments on one blackboard, or a new life beside one that lingers.
So a claim names the life that made it, and each life says that it lives in a key that expires; only the claims of one
that is silent are taken over.

It decides nothing. INVARIANT: a task has one claimer; what is over has a time to live from the moment of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from coordination import blackboard_records as records
from coordination.redis_indexes import RecordIndexes
from coordination.redis_records import Queue, RedisRecords, own_record, picked, queue_event

__all__ = ["LIFE_TTL_MS", "RedisTasks"]

LIFE_TTL_MS: Final = 90_000
"""Three heartbeats: a life that has not been heard of for so long is gone."""


class RedisTasks:
    """Works on `store`; `agent_id` is whose records are tidied up, always our own. All methods raise
    BlackboardUnavailable."""

    def __init__(
        self,
        store: RedisRecords,
        key: Callable[..., str],
        indexes: RecordIndexes,
        agent_id: str,
        *,
        kept_ms: int,
        life_ttl_ms: int,
    ) -> None:
        self._store, self._redis, self._key, self._indexes = store, store.redis, key, indexes
        self._agent_id, self._kept_ms, self._life_ttl_ms = agent_id, kept_ms, life_ttl_ms

    async def say_alive(self, agent_id: str, life: str, at: str) -> None:
        """Keep the claims of a life in force for some time to come."""
        await self._store.guarded(self._redis.set(self._life_key(agent_id, life), at, px=self._life_ttl_ms))

    def _life_key(self, agent_id: str, life: str) -> str:
        return self._key("agents", agent_id, "lives", life)

    async def create(self, task: Mapping[str, Any], claimed_by: str | None = None) -> str:
        """Write a pending task, or one that `claimed_by` has claimed in the same moment, so that nobody comes between.

        One of that id that is there already stays as it is. Returns the id.
        """
        record = own_record(records.parse_task, task)
        key, at = self._key("tasks", record["id"]), record["created_at"]
        if claimed_by is not None:
            record.update(status="claimed", agent_id=claimed_by, claimed_at=at)

        def queue(pipe: Any) -> None:
            self._indexes.task(pipe, record)
            pipe.sadd(self._key("agents", self._agent_id, "created"), record["id"])
            shown = {"task_id": record["id"]} | picked(record, "task_type", "priority")
            queue_event(pipe, "task_created", at, shown)
            if claimed_by is not None:
                pipe.sadd(self._key("agents", claimed_by, "tasks"), record["id"])
                shown = {"task_id": record["id"], "agent_id": claimed_by, "task_type": record["task_type"]}
                queue_event(pipe, "task_claimed", at, shown)

        await self._store.create(key, record, queue)
        return str(record["id"])

    async def claim(self, task_id: str, agent_id: str, at_ms: int, *, life: str = "", over: bool = False) -> bool:
        """Claim a task; see the port. Who claimed it stands in its field `claimed_by_life`, which ACGS's readers pass
        over; that the life is heard of, in a key of its own that expires."""
        at = records.iso_utc(at_ms)
        key = self._key("tasks", task_id)
        former = await self._claimer(key) if over else ""
        lives = [self._life_key(agent_id, name) for name in (life, former) if name]
        if over and former in ("", life):
            return False

        def change(task: dict[str, Any]) -> tuple[bool, Queue]:
            def queue(pipe: Any) -> None:
                if won:
                    self._indexes.task(pipe, task)
                    if life:
                        pipe.set(lives[0], at, px=self._life_ttl_ms)
                    pipe.sadd(self._key("agents", agent_id, "tasks"), task_id)
                    shown = {"task_id": task_id, "agent_id": agent_id, "task_type": task["task_type"]}
                    queue_event(pipe, "task_claimed", at, shown)
                else:
                    # One of ACGS's claimers leaves the id of a claimed task among the pending ones.
                    pipe.zrem(self._key("tasks", "pending", "priority"), task_id)

            if over:
                ours = task["status"] in ("claimed", "in_progress") and task["agent_id"] == agent_id
                won = ours and task.get("claimed_by_life") == former
            else:
                won = task["status"] == "pending"
            if won:
                task.update(status="claimed", agent_id=agent_id, claimed_at=at)
                task |= {"claimed_by_life": life} if life else {}
            return won, queue

        # A life that is heard of again while its task is taken over keeps it.
        watched = lives[-1:] if over else []
        return await self._store.change(key, records.parse_task, change, watched)

    async def _claimer(self, key: str) -> str:
        text = await self._store.guarded(self._redis.hget(key, "data"))
        task = None if text is None else self._store.readable(records.parse_task, text)
        life = "" if task is None else task.get("claimed_by_life", "")
        return life if isinstance(life, str) else ""

    async def finish(
        self,
        task_id: str,
        agent_id: str,
        at_ms: int,
        *,
        output: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
        retries: int | None = None,
    ) -> bool:
        """Complete a task, or fail it where `error` is given; False unless it is claimed by `agent_id`.

        The error of a failed task stands in `output_data` too, where ACGS's workers look for it. The time to live is
        set in the same transaction, so nothing of it stays if nobody ever tidies up.
        """
        key = self._key("tasks", task_id)
        state = "completed" if error is None else "failed"
        at = records.iso_utc(at_ms)

        def change(task: dict[str, Any]) -> tuple[bool, Queue | None]:
            if task["status"] not in ("claimed", "in_progress") or task["agent_id"] != agent_id:
                return False, None
            result = dict(output or {}) if error is None else {"error": dict(error), **(output or {})}
            task.update(status=state, completed_at=at, output_data=result)
            if error is not None:
                task.update(error_details=dict(error))
            if retries is not None:
                task.update(retries=retries)

            def queue(pipe: Any) -> None:
                pipe.pexpire(key, self._kept_ms)
                self._indexes.task(pipe, task, at_ms)
                if state == "completed":
                    shown = {"task_id": task_id, "agent_id": agent_id} | picked(task, "task_type", "output_data")
                    queue_event(pipe, "task_completed", at, shown)

            return True, queue

        return await self._store.change(key, records.parse_task, change)

    async def pending(self, task_type: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return up to `limit` tasks of a type that really are pending, most urgent first."""

        async def work() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            index = self._key("tasks", "pending", "priority")
            async for _, task in self._store.page(index, partial(self._key, "tasks"), records.parse_task, []):
                if task["status"] == "pending" and task["task_type"] == task_type:
                    found.append(task)
                if len(found) >= limit:
                    break
            return found

        return await self._store.guarded(work()) if limit > 0 else []

    async def one(self, task_id: str) -> dict[str, Any] | None:
        """Return one task, None where it is gone or cannot be read."""
        text = await self._store.guarded(self._redis.hget(self._key("tasks", task_id), "data"))
        return None if text is None else self._store.readable(records.parse_task, text)
