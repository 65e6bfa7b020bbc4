"""Commands that several tasks want to send at the same moment, put into one round trip.

It decides nothing and keeps nothing between two moments: what is wanted within one turn of the event loop goes out
together, up to `limit` commands, and each task gets its own reply or its own error. INVARIANT: a command is sent once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio as redis_async
from redis.exceptions import RedisError

__all__ = ["CommandBatches"]


class CommandBatches:
    """Batches over one client; bound to the event loop that uses it."""

    def __init__(self, client: redis_async.Redis, limit: int = 64) -> None:
        self._client = client
        self._limit = limit
        self._wanted: list[tuple[tuple[Any, ...], asyncio.Future[Any]]] = []
        self._sending: set[asyncio.Task[None]] = set()

    async def call(self, *command: Any) -> Any:
        """Send one command; returns its reply, raises redis-py's errors."""
        loop = asyncio.get_running_loop()
        reply: asyncio.Future[Any] = loop.create_future()
        self._wanted.append((command, reply))
        if len(self._wanted) >= self._limit:
            self._send()
        elif len(self._wanted) == 1:
            loop.call_soon(self._send)
        return await reply

    def _send(self) -> None:
        if not self._wanted:
            return
        batch, self._wanted = self._wanted, []
        task = asyncio.get_running_loop().create_task(self._exchange(batch))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _exchange(self, batch: list[tuple[tuple[Any, ...], asyncio.Future[Any]]]) -> None:
        replies: list[Any]
        try:
            async with self._client.pipeline(transaction=False) as pipe:
                for command, _ in batch:
                    pipe.execute_command(*command)
                replies = await pipe.execute(raise_on_error=False)
        except (RedisError, OSError) as error:
            replies = [error] * len(batch)
        except asyncio.CancelledError:
            for _, reply in batch:
                reply.cancel()
            raise
        for (_, reply), found in zip(batch, replies, strict=True):
            if reply.done():
                continue
            if isinstance(found, Exception):
                reply.set_exception(found)
            else:
                reply.set_result(found)
