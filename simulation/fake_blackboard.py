"""A blackboard in memory: the Blackboard port for tests and for the simulator, with ACGS's records and rules.

It keeps texts, as Redis does, so that a peer's garbage can be put in and what we write is checked as text. Whoever
drives it sets `available` and `clock_ms`. It passes the suite of the Redis one (`tests/contract/test_blackboard.py`).
"""

from __future__ import annotations

import json
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, cast

from cachewarden.board_records import BoardRecord, ConflictRecord, TaskRecord
from cachewarden.errors import BlackboardUnavailable, InvariantViolation
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH
from cachewarden.ports import BoardPage
from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord
from simulation.versioned_texts import VersionedTexts

__all__ = ["EventStream", "FakeBlackboard"]

_EVENTS_MAX: Final = 10_000
_PAGE: Final = 500
_PARSED_MAX: Final = 5_000
_time_ms: Final = lru_cache(maxsize=_PARSED_MAX)(records.time_ms)
_DEFAULT_TTL_MS: Final = 24 * 3_600_000
_LIFE_TTL_MS: Final = 90_000


class FakeBlackboard:
    """The Blackboard port on dictionaries of text. A listing is in the order of (priority, id), as a sorted set is."""

    def __init__(self) -> None:
        self.available = True
        self.clock_ms = 0
        """The server's clock; items expire by it."""
        self.kept_ms = _DEFAULT_TTL_MS
        """How long what is over stays."""
        self.bad_records = 0
        self.agents: dict[str, str] = {}
        self.active: set[str] = set()
        self.knowledge: VersionedTexts[tuple[str, str]] = VersionedTexts(itemgetter(0))
        self.tasks: VersionedTexts[str] = VersionedTexts()
        self.conflicts: VersionedTexts[str] = VersionedTexts()
        self._lives: dict[tuple[str, str], int] = {}
        """Agent and life to when it counts as gone."""
        self._streams: list[weakref.ref[EventStream]] = []
        self._bad_seen: set[tuple[str, str]] = set()
        self._read_before: dict[tuple[Any, str], dict[str, Any] | BadRecord] = {}
        self._paged: dict[str, tuple[VersionedTexts[Any], int, list[dict[str, Any]]]] = {}
        """Area to the records that it was last read from, their version, and what was wanted of them."""
        self._scanned: dict[str, int] = {}
        self._bad_news: dict[str, int] = {}
        """Area to the bad records that no page has counted yet."""
        self._ours: set[tuple[str, str]] = set()
        """Kind and id of what we wrote, as the sets of our agent hold them."""
        self._expires_ms: dict[tuple[str, str], int] = {}

    # --- Agents -----------------------------------------------------------------------------------------------------

    async def register_agent(self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int) -> None:
        """Write the agent anew and make it active."""
        self._require_available()
        self.agents[agent_id] = json.dumps(records.agent_record(agent_id, agent_type, capabilities, at_ms))
        self.active.add(agent_id)

    async def heartbeat(
        self, agent_id: str, agent_type: str, capabilities: Sequence[str], at_ms: int, life: str = ""
    ) -> None:
        """Say that the agent lives; registers it again where its record is gone or was spoilt."""
        self._require_available()
        self._lives[agent_id, life] = self.clock_ms + _LIFE_TTL_MS
        record = self._readable(records.parse_agent, self.agents.get(agent_id))
        if record is None:
            await self.register_agent(agent_id, agent_type, capabilities, at_ms)
            return
        record["last_heartbeat"] = records.iso_utc(at_ms)
        self.agents[agent_id] = json.dumps(record)
        self.active.add(agent_id)

    async def deregister_agent(self, agent_id: str) -> None:
        """Take the agent out of the active ones; its record stays."""
        self._require_available()
        self.active.discard(agent_id)

    async def active_agents(self, limit: int = 1_000) -> list[dict[str, Any]]:
        """Return the active agents by id."""
        self._require_available()
        found = [self._readable(records.parse_agent, self.agents.get(i)) for i in sorted(self.active)[:limit]]
        return [record for record in found if record is not None]

    # --- Knowledge --------------------------------------------------------------------------------------------------

    async def add_knowledge(self, item: Mapping[str, Any]) -> str:
        """Write an item of ours; it always expires, after a day if it does not say when. Returns its id."""
        self._require_available()
        record, text = _own(records.parse_knowledge, item)
        written_ms = records.time_ms(record["timestamp"]) or 0
        expires_ms = records.time_ms(record["expires_at"])
        ttl_ms = _DEFAULT_TTL_MS if expires_ms is None else max(2_000, expires_ms - written_ms)
        if expires_ms != written_ms + ttl_ms:
            record["expires_at"] = records.iso_utc(written_ms + ttl_ms)
            text = json.dumps(record)
        self.knowledge[record["space"], record["id"]] = text
        # Written by us a moment ago: whoever looks at it next need not read it.
        self._keep(records.parse_knowledge, text, record)
        self._ours.add(("knowledge", record["id"]))
        self._expires_ms[record["space"], record["id"]] = written_ms + ttl_ms
        shown = {"knowledge_id": record["id"]} | {k: record[k] for k in ("space", "agent_id", "knowledge_type")}
        self._publish("knowledge_added", written_ms, shown)
        return str(record["id"])

    async def query_knowledge(
        self, space: str, knowledge_type: str | None = None, tags: Sequence[str] = (), limit: int = 100
    ) -> list[dict[str, Any]]:
        """Return up to `limit` live items of a space, most urgent first, that have the type and any of the tags."""
        self._require_available()
        if space not in records.SPACES:
            raise InvariantViolation(f"`{space}` is no space of the blackboard, there are: {', '.join(records.SPACES)}")
        texts = [text for (its_space, _), text in sorted(self.knowledge.items()) if its_space == space]
        items = [item for item in (self._readable(records.parse_knowledge, t) for t in texts) if item is not None]
        found = [
            item
            for item in sorted(items, key=lambda i: (i["priority"], i["id"]))
            if knowledge_type in (None, item["knowledge_type"])
            and (not tags or set(tags) & set(item["tags"]))
            and not self._expired(item)
        ]
        return found[: max(0, limit)]

    def _parsed(self, parse: Callable[[Any], dict[str, Any] | BadRecord], text: Any) -> dict[str, Any] | BadRecord:
        """Return what a text means; most are looked at again and again. Whoever gets a page must not change it."""
        known = self._read_before.get((parse, text)) if isinstance(text, str) else None
        if known is None:
            known = parse(text)
            if isinstance(text, str):
                self._keep(parse, text, known)
        return known

    def _keep(self, parse: Any, text: str, record: dict[str, Any] | BadRecord) -> None:
        if len(self._read_before) >= _PARSED_MAX:
            self._read_before.clear()
        self._read_before[parse, text] = record

    def _expired(self, item: Mapping[str, Any]) -> bool:
        text = item["expires_at"]
        if text is None:
            return False
        expires_ms = _time_ms(text)
        return expires_ms is not None and expires_ms <= self.clock_ms

    async def page(self, area: str, cursor: str = "") -> BoardPage:
        """Return the live, readable records of an area from place `cursor` on, `_PAGE` at most."""
        self._require_available()
        wanted = self._wanted(area)
        bad, self._bad_news[area] = self._bad_news.get(area, 0), 0
        found = [r for r in wanted if not self._expired(r)] if area.startswith("knowledge:") else wanted
        behind = [r for r in found if _place(r) > tuple(json.loads(cursor))] if cursor else found
        after = json.dumps(_place(behind[_PAGE - 1])) if len(behind) > _PAGE else ""
        page = cast(list[BoardRecord], behind[:_PAGE])
        return BoardPage(records=tuple(page), cursor=after, scanned=self._scanned[area], bad=bad)

    async def pages(self, cursors: Mapping[str, str]) -> dict[str, BoardPage]:
        """Return a page of each area."""
        held = await self.held(tuple(cursors))
        empty = BoardPage(records=())
        return {a: await self.page(a, c) if a in held or c else empty for a, c in cursors.items()}

    async def held(self, areas: Sequence[str]) -> frozenset[str]:
        """Return the areas whose index holds anything that is not ours."""
        self._require_available()
        return frozenset(area for area in areas if self._wanted(area) or self._bad_news.get(area))

    def _wanted(self, area: str) -> list[dict[str, Any]]:
        """Return the readable records of an area, ours left out of knowledge; worked out anew where texts changed."""
        kind, _, part = area.partition(":")
        texts: VersionedTexts[Any] = getattr(self, kind)
        version = texts.version(part if kind == "knowledge" else "")
        known = self._paged.get(area)
        if known is not None and known[0] is texts and known[1] == version:
            return known[2]
        held = list(texts.items())
        if kind == "knowledge":
            held = [(i, text) for (space, i), text in held if space == part]
        wanted, self._scanned[area] = self._selected(area, held), len(held)
        self._paged[area] = texts, version, wanted
        return wanted

    def _selected(self, area: str, held: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
        kind, _, part = area.partition(":")
        parse = {"knowledge": records.parse_knowledge, "tasks": records.parse_task}.get(kind, records.parse_conflict)
        wanted, bad = list[dict[str, Any]](), 0
        for record_id, text in held:
            record = self._parsed(parse, text)
            if isinstance(record, BadRecord) or record["id"] != record_id:
                bad += (area, text) not in self._bad_seen
                self._bad_seen.add((area, text))
            elif kind == "knowledge":
                if record["agent_id"] != AGENT_ID:
                    wanted.append(record)
            elif record["status"] == part or (kind == "conflicts" and record["status"] in records.OPEN_CONFLICT_STATES):
                wanted.append(record)
        self.bad_records += bad
        self._bad_news[area] = self._bad_news.get(area, 0) + bad
        return sorted(wanted, key=_place)

    # --- Tasks ------------------------------------------------------------------------------------------------------

    async def create_task(self, task: Mapping[str, Any], claimed_by: str | None = None) -> str:
        """Write a task, pending or claimed at once. One of that id that is there already stays as it is."""
        self._require_available()
        record, text = _own(records.parse_task, task)
        if record["id"] not in self.tasks:
            self.tasks[record["id"]] = text
            self._ours.add(("tasks", record["id"]))
            shown = {"task_id": record["id"], "task_type": record["task_type"], "priority": record["priority"]}
            self._publish("task_created", records.time_ms(record["created_at"]) or 0, shown)
            if claimed_by is not None:
                await self.claim_task(record["id"], claimed_by, records.time_ms(record["created_at"]) or 0)
        return str(record["id"])

    async def claim_task(self, task_id: str, agent_id: str, at_ms: int, *, life: str = "", over: bool = False) -> bool:
        """Claim a task; of several claimers exactly one is told True. See the port."""
        task = await self._task(task_id)
        if task is None or not (self._silent(task, agent_id, life) if over else task["status"] == "pending"):
            return False
        task.update(status="claimed", agent_id=agent_id, claimed_at=records.iso_utc(at_ms))
        if life:
            task["claimed_by_life"] = life
            self._lives[agent_id, life] = self.clock_ms + _LIFE_TTL_MS
        self.tasks[task_id] = json.dumps(task)
        shown = {"task_id": task_id, "agent_id": agent_id, "task_type": task["task_type"]}
        self._publish("task_claimed", at_ms, shown)
        return True

    def _silent(self, task: Mapping[str, Any], agent_id: str, life: str) -> bool:
        former = task.get("claimed_by_life", "")
        ours = task["status"] in ("claimed", "in_progress") and task["agent_id"] == agent_id
        return ours and former not in ("", life) and self._lives.get((agent_id, former), 0) <= self.clock_ms

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
        task = await self._task(task_id)
        if task is None or task["status"] not in ("claimed", "in_progress") or task["agent_id"] != agent_id:
            return False
        result = dict(output or {}) if error is None else {"error": dict(error), **(output or {})}
        task.update(output_data=result, completed_at=records.iso_utc(at_ms))
        task.update(status="completed" if error is None else "failed")
        if error is not None:
            task.update(error_details=dict(error))
        if retries is not None:
            task.update(retries=retries)
        self.tasks[task_id] = json.dumps(task)
        self._expires_ms["tasks", task_id] = at_ms + self.kept_ms
        if error is None:
            shown = {"task_id": task_id, "agent_id": agent_id, "task_type": task["task_type"], "output_data": result}
            self._publish("task_completed", at_ms, shown)
        return True

    async def pending_tasks(self, task_type: str, limit: int = 50) -> list[dict[str, Any]]:
        """Return up to `limit` pending tasks of a type, most urgent first."""
        self._require_available()
        tasks = [t for t in (self._readable(records.parse_task, x) for _, x in sorted(self.tasks.items())) if t]
        pending = [t for t in tasks if t["status"] == "pending" and t["task_type"] == task_type]
        return sorted(pending, key=lambda t: (t["priority"], t["id"]))[: max(0, limit)]

    async def task(self, task_id: str) -> TaskRecord | None:
        """Return one task, None where it is gone or cannot be read."""
        return cast(TaskRecord | None, await self._task(task_id))

    async def _task(self, task_id: str) -> dict[str, Any] | None:
        self._require_available()
        return self._readable(records.parse_task, self.tasks.get(task_id))

    # --- Conflicts --------------------------------------------------------------------------------------------------

    async def report_conflict(self, conflict: Mapping[str, Any]) -> str:
        """Write an open conflict. One of that id that is there already stays as it is. Returns the id."""
        self._require_available()
        record, text = _own(records.parse_conflict, conflict)
        if record["id"] not in self.conflicts:
            self.conflicts[record["id"]] = text
            self._ours.add(("conflicts", record["id"]))
            names = ("conflict_type", "severity", "involved_agents")
            shown = {"conflict_id": record["id"]} | {k: record[k] for k in names}
            self._publish("conflict_detected", records.time_ms(record["created_at"]) or 0, shown)
        return str(record["id"])

    async def resolve_conflict(self, conflict_id: str, strategy: str, data: Mapping[str, Any], at_ms: int) -> bool:
        """Settle a conflict; False where there is none of that id or it is settled already."""
        conflict = await self._conflict(conflict_id)
        if conflict is None or conflict["status"] not in records.OPEN_CONFLICT_STATES:
            return False
        conflict.update(status="resolved", resolution_strategy=strategy, resolution_data=dict(data))
        conflict.update(resolved_at=records.iso_utc(at_ms))
        self.conflicts[conflict_id] = json.dumps(conflict)
        self._expires_ms["conflicts", conflict_id] = at_ms + self.kept_ms
        return True

    async def conflict(self, conflict_id: str) -> ConflictRecord | None:
        """Return one conflict, None where it is gone or cannot be read."""
        return cast(ConflictRecord | None, await self._conflict(conflict_id))

    async def _conflict(self, conflict_id: str) -> dict[str, Any] | None:
        self._require_available()
        return self._readable(records.parse_conflict, self.conflicts.get(conflict_id))

    # --- Bounds -----------------------------------------------------------------------------------------------------

    @property
    def size(self) -> tuple[int, int]:
        """Return how many records and how many index entries of ours there are."""
        self._expire()
        return len(self.knowledge) + len(self.tasks) + len(self.conflicts), len(self._ours)

    async def tidy(self, at_ms: int, kept_ms: int) -> int:
        """Keep what we wrote bounded; see the port."""
        self._require_available()
        self._expire()
        for kind, record_id in sorted(own for own in self._ours if own[0] != "knowledge"):
            record = await (self.task(record_id) if kind == "tasks" else self.conflict(record_id))
            if record is not None and (kind, record_id) not in self._expires_ms:
                await self._age(kind, record, at_ms, kept_ms)
        present = {("knowledge", i) for _, i in self.knowledge}
        present |= {("tasks", i) for i in self.tasks} | {("conflicts", i) for i in self.conflicts}
        forgotten = len(self._ours - present)
        self._ours &= present
        return forgotten

    async def _age(self, kind: str, record: Mapping[str, Any], at_ms: int, kept_ms: int) -> None:
        open_states = ("pending", "claimed", "in_progress") if kind == "tasks" else records.OPEN_CONFLICT_STATES
        ended = record["completed_at"] if kind == "tasks" else record["resolved_at"]
        over = record["status"] not in open_states
        since = (ended if over else record.get("claimed_at")) or record["created_at"]
        since_ms = records.time_ms(since) or 0
        if over:
            self._expires_ms[kind, record["id"]] = since_ms + kept_ms
        elif at_ms - since_ms > kept_ms:
            data = {"constitutional_hash": CONSTITUTIONAL_HASH, "reasoning": "nothing was heard of it for too long"}
            if kind == "conflicts":
                await self.resolve_conflict(record["id"], "withdrawn", data, at_ms)
                return
            await self.claim_task(record["id"], AGENT_ID, at_ms)
            await self.finish_task(record["id"], AGENT_ID, at_ms, output=None, error=data)

    def _expire(self) -> None:
        """Drop what a server would have dropped by now."""
        for (kind, record_id), at_ms in list(self._expires_ms.items()):
            if at_ms > self.clock_ms:
                continue
            del self._expires_ms[kind, record_id]
            if kind in records.SPACES:
                self.knowledge.pop((kind, record_id), None)
            else:
                (self.tasks if kind == "tasks" else self.conflicts).pop(record_id, None)

    # --- Events -----------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Subscribe and return the stream of events; it pauses (`StopAsyncIteration`) where there is none yet."""
        self._require_available()
        stream = EventStream()
        self._streams = [known for known in self._streams if known() is not None]
        self._streams.append(weakref.ref(stream))
        return stream

    def publish_text(self, channel: str, text: str) -> None:
        """Publish as a peer does, whatever it is; a subscriber that does not listen loses events, as with Redis."""
        event = records.parse_event(channel, text)
        if isinstance(event, BadRecord):
            self.bad_records += 1
        else:
            self._hand_out(event)

    def _hand_out(self, event: dict[str, Any]) -> None:
        for known in self._streams:
            stream = known()
            if stream is not None:
                stream.waiting.append(event)
                if stream.on_event is not None:
                    stream.on_event()

    def _publish(self, event_type: str, at_ms: int, data: Mapping[str, Any]) -> None:
        if event_type != "task_completed":
            # What is ours is well formed, and all but results of tasks is as JSON gives it back.
            self._hand_out({"event_type": event_type, "timestamp": records.iso_utc(at_ms), "data": dict(data)})
            return
        self.publish_text(f"events:{event_type}", records.event_message(event_type, at_ms, data))

    async def close(self) -> None:
        """Nothing to give back."""

    def _readable(self, parse: Any, text: str | None) -> dict[str, Any] | None:
        if text is None:
            return None
        record = self._parsed(parse, text)
        if isinstance(record, BadRecord):
            self.bad_records += 1
            return None
        return dict(record)

    def _require_available(self) -> None:
        if not self.available:
            raise BlackboardUnavailable("the server does not answer")


class EventStream:
    """What was published since the subscription, oldest first."""

    def __init__(self) -> None:
        self.waiting: deque[dict[str, Any]] = deque(maxlen=_EVENTS_MAX)
        self.on_event: Callable[[], None] | None = None
        """Called whenever there is one more."""

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> dict[str, Any]:
        if not self.waiting:
            raise StopAsyncIteration
        return self.waiting.popleft()


def _place(record: Mapping[str, Any]) -> tuple[int, str]:
    return int(record.get("priority", 0)), str(record["id"])


def _own(parse: Any, record: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Return a record of ours as it is read back, and its text."""
    text = json.dumps(dict(record))
    checked: dict[str, Any] | BadRecord = parse(text)
    if isinstance(checked, BadRecord):
        raise InvariantViolation(f"a record of ours does not fit the blackboard: {checked.reason}")
    # Where nothing was missing it is what was written.
    return checked, text if checked == record else json.dumps(checked)
