"""The cache that is warmed: which keys are missing, and one write that never replaces anything.

Existence is asked with MEMORY USAGE, which moves neither hit counters nor idle times (checked on Redis 7.0.15 and
Valkey 9.1.2); where a server refuses that, EXISTS is used and its lookups are counted as ours. INVARIANT: the only
write is SET NX with a TTL.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import redis.asyncio as redis_async
from redis.exceptions import (
    AskError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeout

from cachewarden.fleet import Service
from coordination.redis_batches import CommandBatches

__all__ = ["CacheClient", "CacheRefused", "Presence", "RedisCacheClient"]

_BATCH: Final = 100


class CacheRefused(Exception):
    """The cache did not answer or refused; the text holds no key and may be told to the caller."""


@dataclass(frozen=True, slots=True)
class Presence:
    """Which of the keys asked for are there, in order, and which lookups of ours the cache counted in saying so."""

    there: tuple[bool, ...]
    own_hits: int = 0
    own_misses: int = 0


class CacheClient(Protocol):
    async def present(self, keys: Sequence[str]) -> Presence:
        """Say for each key whether the cache holds it; raises CacheRefused."""
        ...

    async def store(self, key: str, data: bytes, ttl_ms: int) -> bool:
        """Write if the key is missing; returns False where somebody else was first. Raises CacheRefused."""
        ...

    async def close(self) -> None: ...


_WORDS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (BusyLoadingError, "the cache is loading its data"),
    (ReadOnlyError, "the cache is a replica and takes no writes (READONLY)"),
    (NoPermissionError, "the user of the cache has no permission for the command (NOPERM)"),
    (AskError, "the slot of the key is at another node, which is not followed (MOVED or ASK)"),
    (ClusterDownError, "no node of the cluster answers for the slot of the key (CLUSTERDOWN)"),
)
"""redis-py takes the error code off the message of these, so the code is told by the type."""


def _refusal(error: Exception) -> CacheRefused:
    known = next((words for kind, words in _WORDS if isinstance(error, kind)), None)
    if known is not None:
        return CacheRefused(known)
    if isinstance(error, ResponseError):
        # Only the error code: the rest of a server's message may repeat arguments.
        word = str(error).split(" ", 1)[0]
        shown = word if word.isupper() and word.isalpha() else "ERR"
        full = "out of memory" in str(error).lower() or shown == "OOM" or type(error).__name__ == "OutOfMemoryError"
        return CacheRefused(
            "the cache is full and refuses writes" if full else f"the cache refused the command ({shown})"
        )
    if isinstance(error, (RedisTimeout, TimeoutError)):
        return CacheRefused("the cache gave no answer in time, the outcome is unknown")
    return CacheRefused("the cache does not answer")


class RedisCacheClient:
    """A few connections of our own to one managed cache."""

    def __init__(self, service: Service, timeout_s: float = 5.0, max_connections: int = 8) -> None:
        self._may_usage = True
        given: dict[str, Any] = {}
        if service.username is not None:
            given["username"] = service.username
        if service.password_env is not None:
            given["password"] = os.environ.get(service.password_env)
        self._client = redis_async.Redis(
            connection_pool=redis_async.BlockingConnectionPool.from_url(
                service.url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                timeout=timeout_s,
                max_connections=max_connections,
                client_name="cachewarden-warmer",
                **given,
            )
        )
        self._batches = CommandBatches(self._client)

    async def present(self, keys: Sequence[str]) -> Presence:
        there: list[bool] = []
        hits = misses = 0
        for start in range(0, len(keys), _BATCH):
            part = await self._present(keys[start : start + _BATCH])
            there += part.there
            hits, misses = hits + part.own_hits, misses + part.own_misses
        return Presence(tuple(there), hits, misses)

    async def _present(self, keys: Sequence[str]) -> Presence:
        if self._may_usage:
            # One sampled element: the default of five is spent on nothing, as the size is not wanted.
            replies = await self._ask([("MEMORY", "USAGE", key, "SAMPLES", "1") for key in keys])
            if not any(isinstance(reply, ResponseError) for reply in replies):
                return Presence(tuple(reply is not None for reply in replies))
            self._may_usage = False
        replies = await self._ask([("EXISTS", key) for key in keys])
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise _refusal(reply)
        there = tuple(int(reply) == 1 for reply in replies)
        return Presence(there, sum(there), len(there) - sum(there))

    async def _ask(self, commands: Sequence[tuple[str, ...]]) -> list[Any]:
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            raise _refusal(error) from None
        for reply in replies:
            if isinstance(reply, Exception) and not isinstance(reply, ResponseError):
                raise _refusal(reply)
        return replies

    async def store(self, key: str, data: bytes, ttl_ms: int) -> bool:
        try:
            return bool(await self._batches.call("SET", key, data, "PX", ttl_ms, "NX"))
        except (RedisError, OSError) as error:
            raise _refusal(error) from None

    async def close(self) -> None:
        await self._client.aclose(close_connection_pool=True)
