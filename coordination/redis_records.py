"""JSON records in Redis hashes: created once, changed under WATCH, found by paging an index.

The transport under `redis_blackboard.py`; it knows neither tasks nor conflicts and decides nothing. INVARIANT: a record
and the indexes that it stands in are written in one MULTI/EXEC, so no reader sees the one without the other.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError, WatchError

from cachewarden.errors import BlackboardUnavailable, InvariantViolation
from coordination import blackboard_records as records
from coordination.blackboard_records import BadRecord

__all__ = ["Change", "Parser", "Queue", "RedisRecords", "own_record", "picked", "queue_event"]

T = TypeVar("T")

Parser = Callable[[Any], dict[str, Any] | BadRecord]
Queue = Callable[[Any], None]
"""Puts further writes on the pipeline; they come after the record itself, so that an event can be the last."""
Change = Callable[[dict[str, Any]], tuple[bool, Queue | None]]
"""Edits a record in place; says whether it is to be written, and what else is."""

_log = logging.getLogger("cachewarden.blackboard")

_PAGE: Final = 100
_SCANNED_MAX: Final = 5_000
_TRIES_MAX: Final = 20


class RedisRecords:
    """One pool of connections. A command is sent once: whether it may be repeated is known only above."""

    def __init__(self, url: str, *, timeout_s: float, max_connections: int) -> None:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name="cachewarden-blackboard",
        )
        # redis-py's types do not tell its asynchronous answers from its synchronous ones, hence Any.
        self.redis: Any = Redis.from_pool(pool)
        self.bad = 0
        """Records that could not be used, since the start."""

    async def guarded(self, work: Awaitable[T]) -> T:
        """Return what `work` gives; any trouble with the server becomes BlackboardUnavailable."""
        try:
            return await work
        except (RedisError, OSError, TimeoutError) as error:
            raise BlackboardUnavailable(str(error) or type(error).__name__) from error

    @staticmethod
    async def answers(pipe: Any) -> list[Any] | None:
        """Return the answers of a transaction, errors among them; None where the server refuses one of its commands."""
        try:
            return list(await pipe.execute(raise_on_error=False))
        except ResponseError:
            return None

    def readable(self, parse: Parser, text: Any) -> dict[str, Any] | None:
        """Return the parsed record; None, counted and logged, where it is bad."""
        record = parse(text)
        if isinstance(record, BadRecord):
            self.note_bad(record)
            return None
        return record

    def note_bad(self, bad: BadRecord) -> None:
        """Count a record that a peer has spoilt."""
        self.bad += 1
        _log.warning("a record on the blackboard cannot be used: %s", bad.reason)

    async def create(self, key: str, record: Mapping[str, Any], queue: Queue) -> bool:
        """Write `record` and what `queue` adds; False, and nothing written, where the key exists."""

        async def work() -> bool:
            async with self.redis.pipeline(transaction=True) as pipe:
                for _ in range(_TRIES_MAX):
                    await pipe.watch(key)
                    if await pipe.exists(key):
                        return False
                    pipe.multi()
                    pipe.hset(key, "data", json.dumps(record))
                    queue(pipe)
                    if await _executed(pipe):
                        return True
            raise BlackboardUnavailable(f"`{key}` changes too often")

        return await self.guarded(work())

    async def change(self, key: str, parse: Parser, change: Change, absent: Sequence[str] = ()) -> bool:
        """Read, change and write one record in one step, again while others change it; False if it was not written.

        Keys in `absent` must not be there: if one is, nothing is written.
        """

        async def work() -> bool:
            async with self.redis.pipeline(transaction=True) as pipe:
                for _ in range(_TRIES_MAX):
                    await pipe.watch(key, *absent)
                    if absent and await pipe.exists(*absent):
                        return False
                    text = await pipe.hget(key, "data")
                    record = None if text is None else self.readable(parse, text)
                    if record is None:
                        return False
                    pipe.multi()
                    changed, queue = change(record)
                    if changed:
                        pipe.hset(key, "data", json.dumps(record))
                    if queue is not None:
                        queue(pipe)
                    if await _executed(pipe):
                        return changed
            raise BlackboardUnavailable(f"`{key}` changes too often")

        return await self.guarded(work())

    async def page(
        self, index: str, key_of: Callable[[str], str], parse: Parser, gone: list[str]
    ) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        """Walk a sorted set and give each readable record with its id; ids without a record are put into `gone`.

        ACGS's own readers cut the index first and look for the records then, so that dead ids at its head hide all live
        ones. This one goes on, for at most 5,000 ids.
        """
        for start in range(0, _SCANNED_MAX, _PAGE):
            ids = [str(i) for i in await self.redis.zrange(index, start, start + _PAGE - 1)]
            async with self.redis.pipeline(transaction=False) as pipe:
                for record_id in ids:
                    pipe.hget(key_of(record_id), "data")
                texts = await pipe.execute(raise_on_error=False)
            for record_id, text in zip(ids, texts, strict=True):
                if text is None:
                    gone.append(record_id)
                    continue
                record = self.readable(parse, text)
                if record is not None:
                    yield record_id, record
            if len(ids) < _PAGE:
                return

    async def close(self) -> None:
        """Give the connections back."""
        await self.redis.aclose()


async def _executed(pipe: Any) -> bool:
    try:
        await pipe.execute()
    except WatchError:
        return False
    return True


def own_record(parse: Parser, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a record of ours; one that ACGS's readers would choke on is a bug, never written."""
    checked = parse(json.dumps(dict(record)))
    if isinstance(checked, BadRecord):
        raise InvariantViolation(f"a record of ours does not fit the blackboard: {checked.reason}")
    return checked


def picked(record: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return some fields of a record, as events show them."""
    return {name: record[name] for name in names}


def queue_event(pipe: Any, event_type: str, at: str, data: Mapping[str, Any]) -> None:
    """Put an event on the pipeline, best as the last command; `at` is an ISO time."""
    pipe.publish(f"events:{event_type}", records.event_message(event_type, records.time_ms(at) or 0, data))
