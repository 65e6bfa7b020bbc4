"""The Blackboard port on ACGS's Redis: the keys and indexes that its programs read and write (`docs/INTEROP.md`).

What it does better than they do, and still compatibly: the writes of one operation are one MULTI/EXEC with the event
last; read-modify-write is guarded by WATCH; a heartbeat is written where each reader looks for it and brings a
forgotten agent back; our knowledge always expires; a listing pages past ids whose record is gone; and a record that
cannot be read is counted and skipped instead of failing the listing.

It decides nothing. INVARIANT: every read and every loop is bounded, and no key is found by SCAN or KEYS.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

from cachewarden.board_records import ConflictRecord, TaskRecord
from cachewarden.errors import BlackboardUnavailable, InvariantViolation
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH
from cachewarden.ports import BoardPage
from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord
from coordination.redis_indexes import RecordIndexes
from coordination.redis_pages import RedisPages
from coordination.redis_records import Parser, Queue, RedisRecords, own_record, picked, queue_event
from coordination.redis_tasks import LIFE_TTL_MS, RedisTasks
from coordination.redis_tidy import RedisTidier

__all__ = ["STALE", "RedisBlackboard"]

_PAGE: Final = 100
_DEFAULT_TTL_MS: Final = 24 * 3_600_000
_TTL_MS_MIN: Final = 2_000
_KEPT_MS: Final = 24 * 3_600_000
STALE: Final = "nothing was heard of it for too long"
_AREAS: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...], Parser]]] = {
    "conflicts:open": (("conflicts", "open", "priority"), ("conflicts",), records.parse_conflict),
    "knowledge:coordination": (("coordination", "priority"), ("coordination", "knowledge"), records.parse_knowledge),
    "knowledge:performance": (("performance", "priority"), ("performance", "knowledge"), records.parse_knowledge),
    "tasks:claimed": (("tasks", "claimed", "priority"), ("tasks",), records.parse_task),
    "tasks:pending": (("tasks", "pending", "priority"), ("tasks",), records.parse_task),
}
"""Area to the parts of its index's key, the parts of its records' keys, and how a record is read."""


class RedisBlackboard:
    """One connection pool to the blackboard; the db number is that of the URL. All methods raise BlackboardUnavailable.

    `agent_id` is whose dangling ids are tidied up, always our own. What is over expires `kept_ms` after its end. With
    `core_indexes` the sets of ACGS's core are written and read besides.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "bb",
        agent_id: str = AGENT_ID,
        timeout_s: float = 5.0,
        max_connections: int = 8,
        kept_ms: int = _KEPT_MS,
        core_indexes: bool = False,
        life_ttl_ms: int = LIFE_TTL_MS,
    ) -> None:
        self._kept_ms = kept_ms
        self._indexes = RecordIndexes(self._key, core=core_indexes)
        self._store = RedisRecords(url, timeout_s=timeout_s, max_connections=max_connections)
        self._redis = self._store.redis
        self._pages = RedisPages(self._store.redis)
        self._counts_ours = True
        """Whether the server tells how much of an index is ours."""
        self._streams: list[AsyncGenerator[dict[str, Any], None]] = []
        self._prefix, self._agent_id, self._timeout_s = prefix, agent_id, timeout_s
        self._tasks = RedisTasks(
            self._store, self._key, self._indexes, agent_id, kept_ms=kept_ms, life_ttl_ms=life_ttl_ms
        )
        self._tidier = RedisTidier(self._redis, self._key, agent_id)

    @property
    def bad_records(self) -> int:
        """Records and events of peers that could not be used, since the start."""
        return self._store.bad

    async def close(self) -> None:
        """Give the connections back, those of subscriptions that nobody reads any more too."""
        for stream in self._streams:
            # One that is being read ends by itself, with its connection.
            with contextlib.suppress(RuntimeError):
                await stream.aclose()
        await self._store.close()

    def _key(self, *parts: str) -> str:
        return ":".join((self._prefix, *parts))

    # --- Agents -----------------------------------------------------------------------------------------------------

    async def register_agent(self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int) -> None:
        """Write the agent anew and make it active."""
        record = records.agent_record(agent_id, agent_type, capabilities, at_ms)

        async def work() -> None:
            async with self._redis.pipeline(transaction=True) as pipe:
                fields = {"data": json.dumps(record), "last_heartbeat": record["last_heartbeat"]}
                pipe.hset(self._key("agents", agent_id), mapping=fields)
                pipe.sadd(self._key("agents", "active"), agent_id)
                await pipe.execute()

        await self._store.guarded(work())

    async def heartbeat(
        self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int, life: str = ""
    ) -> None:
        """Say that the agent lives, and the life of one of its processes; registers it again where its record is gone
        or was spoilt."""

        at = records.iso_utc(at_ms)

        def beat(record: dict[str, Any]) -> tuple[bool, Queue]:
            record["last_heartbeat"] = at
            return True, queue

        def queue(pipe: Any) -> None:
            pipe.hset(self._key("agents", agent_id), "last_heartbeat", at)
            pipe.sadd(self._key("agents", "active"), agent_id)

        if life:
            await self._tasks.say_alive(agent_id, life, at)
        if not await self._store.change(self._key("agents", agent_id), records.parse_agent, beat):
            await self.register_agent(agent_id, agent_type, capabilities, at_ms)

    async def deregister_agent(self, agent_id: str) -> None:
        """Take the agent out of the active ones; its record stays."""
        await self._store.guarded(self._redis.srem(self._key("agents", "active"), agent_id))

    async def active_agents(self, limit: int = 1_000) -> list[dict[str, Any]]:
        """Return the active agents by id; `last_heartbeat` is the later one of the two that agents write."""

        async def work() -> list[dict[str, Any]]:
            ids = sorted(str(i) for i in await self._redis.smembers(self._key("agents", "active")))[:limit]
            found: list[dict[str, Any]] = []
            for start in range(0, len(ids), _PAGE):
                async with self._redis.pipeline(transaction=False) as pipe:
                    for agent_id in ids[start : start + _PAGE]:
                        pipe.hmget(self._key("agents", agent_id), "data", "last_heartbeat")
                    for data, beat in await pipe.execute():
                        record = self._store.readable(records.parse_agent, data)
                        if record is not None:
                            inside, beside = records.time_ms(record["last_heartbeat"]), records.time_ms(beat)
                            record["last_heartbeat"] = records.iso_utc(max(inside or 0, beside or 0))
                            found.append(record)
            return found

        return await self._store.guarded(work())

    # --- Knowledge --------------------------------------------------------------------------------------------------

    async def add_knowledge(self, item: Mapping[str, Any]) -> str:
        """Write an item of ours; it always expires, after a day if it does not say when. Returns its id."""
        record = own_record(records.parse_knowledge, item)
        written_ms = records.time_ms(record["timestamp"]) or 0
        expires_ms = records.time_ms(record["expires_at"])
        ttl_ms = _DEFAULT_TTL_MS if expires_ms is None else max(_TTL_MS_MIN, expires_ms - written_ms)
        record["expires_at"] = records.iso_utc(written_ms + ttl_ms)
        key = self._key(record["space"], "knowledge", record["id"])

        async def work() -> None:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.hset(key, "data", json.dumps(record))
                pipe.pexpire(key, ttl_ms)
                pipe.zadd(self._key(record["space"], "priority"), {record["id"]: record["priority"]})
                pipe.sadd(self._key("agents", record["agent_id"], "knowledge"), record["id"])
                shown = {"knowledge_id": record["id"]} | picked(record, "space", "agent_id", "knowledge_type")
                queue_event(pipe, "knowledge_added", record["timestamp"], shown)
                await pipe.execute()

        await self._store.guarded(work())
        return str(record["id"])

    async def query_knowledge(
        self, space: str, knowledge_type: str | None = None, tags: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return up to `limit` live items of a space, most urgent first, that have the type and any of the tags.

        Looks at no more than 5,000 ids. Ids of ours whose item is gone are taken out of the indexes on the way.
        """
        if space not in records.SPACES:
            raise InvariantViolation(f"`{space}` is no space of the blackboard, there are: {', '.join(records.SPACES)}")

        async def work() -> list[dict[str, Any]]:
            seconds, microseconds = await self._redis.time()
            server_ms = int(seconds) * 1000 + int(microseconds) // 1000
            found: list[dict[str, Any]] = []
            gone: list[str] = []
            key_of = partial(self._key, space, "knowledge")
            index = self._key(space, "priority")
            async for _, item in self._store.page(index, key_of, records.parse_knowledge, gone):
                expires_ms = records.time_ms(item["expires_at"])
                alive = expires_ms is None or expires_ms > server_ms
                typed = knowledge_type in (None, item["knowledge_type"])
                if alive and typed and (not tags or set(tags) & set(item["tags"])):
                    found.append(item)
                if len(found) >= limit:
                    break
            await self._tidy(space, gone)
            return found

        return await self._store.guarded(work()) if limit > 0 else []

    async def _tidy(self, space: str, gone: Sequence[str]) -> None:
        index = self._key("agents", self._agent_id, "knowledge")
        if not gone:
            return
        flags = await self._redis.smismember(index, list(gone))
        ours = [item_id for item_id, flag in zip(gone, flags, strict=True) if flag]
        if ours:
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.zrem(self._key(space, "priority"), *ours)
                pipe.srem(index, *ours)
                await pipe.execute()

    async def page(self, area: str, cursor: str = "") -> BoardPage:
        """Return the live records of one area from place `cursor` of its index on (`redis_pages.py` has the bounds)."""
        _, record, parse = _AREAS[area]
        own = self._key("agents", self._agent_id, "knowledge") if area.startswith("knowledge:") else None
        index, more = self._indexes_of(area)
        reading = self._pages.read(index, partial(self._key, *record), parse, cursor, own, more)
        return await self._store.guarded(reading)

    def _indexes_of(self, area: str) -> tuple[str, str | None]:
        """Return the keys of an area's sorted set and of its set of ACGS's core, if that is kept."""
        kind, _, status = area.partition(":")
        more = self._indexes.core_set(kind, "status", status) if kind in ("tasks", "conflicts") else None
        return self._key(*_AREAS[area][0]), more

    async def pages(self, cursors: Mapping[str, str]) -> dict[str, BoardPage]:
        """Return a page of each area; see the port. An index that is of another type is read, and fails, as ever.

        What is empty, or holds only what we wrote, is not read: most of what stands among the knowledge is ours.
        """
        asked = {area: self._indexes_of(area) for area in cursors}
        held = await self._store.guarded(self._held(asked))
        return {
            area: await self.page(area, cursor) if area in held or cursor else BoardPage(records=())
            for area, cursor in cursors.items()
        }

    async def _held(self, asked: Mapping[str, tuple[str, str | None]]) -> frozenset[str]:
        """Return the areas that hold anything of others, or that cannot be told about.

        An index and its share that is ours are counted in one transaction: counted one after the other, something of
        ours that is written in between would hide something of a peer that was there before.
        """
        own = self._key("agents", self._agent_id, "knowledge")
        async with self._redis.pipeline(transaction=True) as pipe:
            for area, (index, more) in asked.items():
                pipe.zcard(index)
                if self._counts_ours and area.startswith("knowledge:"):
                    pipe.zintercard(2, (index, own))
                elif more is not None:
                    pipe.scard(more)
            told = await self._store.answers(pipe)
        if told is None and self._counts_ours:
            # A server before 7.0 does not know `ZINTERCARD`, or its ACL denies it.
            self._counts_ours = False
            return await self._held(asked)
        if told is None:
            # Reading the areas says what is wrong.
            return frozenset(asked)
        answers = iter(told)
        held: set[str] = set()
        for area, (_, more) in asked.items():
            # As many answers as were asked for above, whatever they say.
            size, ours, beside = next(answers), 0, 0
            if self._counts_ours and area.startswith("knowledge:"):
                ours = next(answers)
            elif more is not None:
                beside = next(answers)
            # What is no number is an error, and reading the area says which.
            if size != ours or beside != 0:
                held.add(area)
        return frozenset(held)

    # --- Tasks ------------------------------------------------------------------------------------------------------

    async def create_task(self, task: Mapping[str, Any], claimed_by: str | None = None) -> str:
        """Write a pending task, or one that is claimed in the same moment; see `redis_tasks.py`."""
        return await self._tasks.create(task, claimed_by)

    async def claim_task(self, task_id: str, agent_id: str, at_ms: int, *, life: str = "", over: bool = False) -> bool:
        """Claim a task; of several claimers exactly one is told True. See the port."""
        return await self._tasks.claim(task_id, agent_id, at_ms, life=life, over=over)

    async def finish_task(
        self,
        task_id: str,
        agent_id: str,
        at_ms: int,
        *,
        output: Mapping[str, Any] | None,
        error: Mapping[str, Any] | None,
        retries: int | None = None,
    ) -> bool:
        """Complete a task, or fail it where `error` is given; False unless it is claimed by `agent_id`."""
        return await self._tasks.finish(task_id, agent_id, at_ms, output=output, error=error, retries=retries)

    async def pending_tasks(self, task_type: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return up to `limit` tasks of a type that really are pending, most urgent first."""
        return await self._tasks.pending(task_type, limit)

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return one task, None where it is gone or cannot be read."""
        return cast(TaskRecord | None, await self._tasks.one(task_id))

    # --- Conflicts --------------------------------------------------------------------------------------------------

    async def report_conflict(self, conflict: Mapping[str, Any]) -> str:
        """Write an open conflict. One of that id that is there already stays as it is. Returns the id."""
        record = own_record(records.parse_conflict, conflict)
        key = self._key("conflicts", record["id"])

        def queue(pipe: Any) -> None:
            self._indexes.conflict(pipe, record)
            pipe.sadd(self._key("agents", self._agent_id, "conflicts"), record["id"])
            shown = {"conflict_id": record["id"]} | picked(record, "conflict_type", "severity", "involved_agents")
            queue_event(pipe, "conflict_detected", record["created_at"], shown)

        await self._store.create(key, record, queue)
        return str(record["id"])

    async def resolve_conflict(self, conflict_id: str, strategy: str, data: Mapping[str, Any], at_ms: int) -> bool:
        """Settle a conflict, which expires from then on; False where there is none of that id or it is settled."""
        key, at = self._key("conflicts", conflict_id), records.iso_utc(at_ms)

        def change(conflict: dict[str, Any]) -> tuple[bool, Queue | None]:
            if conflict["status"] not in records.OPEN_CONFLICT_STATES:
                return False, None
            conflict.update(status="resolved", resolution_strategy=strategy, resolution_data=dict(data), resolved_at=at)

            def queue(pipe: Any) -> None:
                pipe.pexpire(key, self._kept_ms)
                self._indexes.conflict(pipe, conflict, at_ms)

            return True, queue

        return await self._store.change(key, records.parse_conflict, change)

    async def conflict(self, conflict_id: str) -> ConflictRecord | None:
        """Return one conflict, None where it is gone or cannot be read."""
        text = await self._store.guarded(self._redis.hget(self._key("conflicts", conflict_id), "data"))
        found = None if text is None else self._store.readable(records.parse_conflict, text)
        return cast(ConflictRecord | None, found)

    # --- Bounds -----------------------------------------------------------------------------------------------------

    async def tidy(self, at_ms: int, kept_ms: int) -> int:
        """Let what is over expire `kept_ms` after its end, and take what is gone out of the indexes, a batch at a time.

        Tasks and conflicts of ours that are open for longer than that are ended: nobody will. Returns how many ids
        left the indexes.
        """
        done = await self._store.guarded(self._tidier.tidy(at_ms, kept_ms))
        for task_id in done.stale_tasks:
            await self._end_task(task_id, at_ms)
        for conflict_id in done.stale_conflicts:
            data = {"constitutional_hash": CONSTITUTIONAL_HASH, "reasoning": STALE}
            await self.resolve_conflict(conflict_id, "withdrawn", data, at_ms)
        return done.forgotten

    async def _end_task(self, task_id: str, at_ms: int) -> None:
        # One that nobody has claimed is claimed first: only a claimed task can fail.
        await self.claim_task(task_id, self._agent_id, at_ms)
        error = {"error": STALE, "constitutional_hash": CONSTITUTIONAL_HASH}
        await self.finish_task(task_id, self._agent_id, at_ms, output=None, error=error)

    # --- Events -----------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Subscribe to all channels and return the stream of events; it ends with BlackboardUnavailable.

        Events are hints: they may be lost, come twice, or belong to another db. The keys are the truth.
        """
        pubsub = self._redis.pubsub()

        async def subscribe() -> None:
            await pubsub.subscribe(*records.CHANNELS)
            for _ in records.CHANNELS:
                if await pubsub.get_message(timeout=self._timeout_s) is None:
                    raise BlackboardUnavailable("the subscription was not confirmed in time")

        try:
            await self._store.guarded(subscribe())
        except BlackboardUnavailable:
            await pubsub.aclose()
            raise
        stream = self._listen(pubsub)
        self._streams = [s for s in self._streams if getattr(s, "ag_frame", None) is not None]
        self._streams.append(stream)
        return stream

    async def _listen(self, pubsub: Any) -> AsyncGenerator[dict[str, Any], None]:
        try:
            while True:
                waiting = pubsub.get_message(ignore_subscribe_messages=True, timeout=self._timeout_s)
                message = await self._store.guarded(waiting)
                if message is None or message.get("type") != "message":
                    continue
                event = records.parse_event(str(message["channel"]), message["data"])
                if isinstance(event, BadRecord):
                    self._store.note_bad(event)
                else:
                    yield event
        finally:
            await pubsub.aclose()
