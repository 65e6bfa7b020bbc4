"""The lookups of all our adapters in one cache, on the journal's server, behind the `LookupLedger` port.

A cache counts our probes like the application's reads. Each adapter knows its own; what it cannot know is whether
another one, perhaps in another process, was in the middle of a batch when INFO was printed. So a batch is announced
here before it is sent and settled after its replies. Who finds nobody busy and the same totals before and after its
INFO knows that each of our lookups is either in the totals and in INFO, or in neither.

It decides nothing about a cache and holds no lock: nobody ever waits for a mark, so a process that dies keeps nobody
from working. Its mark runs out by this server's clock and is from then on part of the basis.

Key: `{prefix}:lookups:{service}`, a hash, gone after a week without use: `born`, `tears`, and per adapter
`hits:{id}`, `misses:{id}`, `busy:{id}` (until when, in milliseconds). Totals of adapters that are gone keep counting.

INVARIANT: two accounts of the same basis with nobody busy differ by exactly the lookups in between. Beyond reach is an
adapter that alone is cut off from this server and goes on looking: it tells by a new basis once it is back.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cachewarden.errors import BlackboardUnavailable
from cachewarden.ports import LookupAccount

__all__ = ["RedisLookupLedger"]

_PAUSE_S: Final = 2.0
"""After a failure the server is left alone for so long, so that each batch does not wait for its time-out anew."""
_KEPT_MS: Final = 7 * 24 * 3_600_000
_TIMEOUT_S: Final = 1.0
_CONNECTIONS: Final = 4

# All three: KEYS[1] the hash; ARGV[1] adapter, ARGV[2] `1` if torn, ARGV[3] keep_ms. `born` is the server's time in
# microseconds, so that a hash which was lost and begun anew is told from the one before.
_HEAD: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local busy = 'busy:' .. ARGV[1]
redis.call('HSETNX', KEYS[1], 'born', time[1] .. string.format('%06d', time[2]))
local function tear() redis.call('HINCRBY', KEYS[1], 'tears', 1) end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
"""

# ARGV[4] busy_ms. Answers the mark. A mark of our own that still stands belongs to a batch that was never settled.
_BEGIN: Final = (
    _HEAD
    + """
if ARGV[2] == '1' or redis.call('HEXISTS', KEYS[1], busy) == 1 then tear() end
local mark = string.format('%.0f', now + ARGV[4])
redis.call('HSET', KEYS[1], busy, mark)
return mark
"""
)

# ARGV[4] mark, ARGV[5] hits, ARGV[6] misses. Without the mark the hash is another one, or the batch was given up.
_SETTLE: Final = (
    _HEAD
    + """
if redis.call('HGET', KEYS[1], busy) ~= ARGV[4] then tear() end
redis.call('HINCRBY', KEYS[1], 'hits:' .. ARGV[1], ARGV[5])
redis.call('HINCRBY', KEYS[1], 'misses:' .. ARGV[1], ARGV[6])
return redis.call('HDEL', KEYS[1], busy)
"""
)

# Answers {now, hash}.
_READ: Final = (
    _HEAD
    + """
if redis.call('HDEL', KEYS[1], busy) == 1 or ARGV[2] == '1' then tear() end
return {string.format('%.0f', now), redis.call('HGETALL', KEYS[1])}
"""
)


class RedisLookupLedger:
    """See the module. `adapter` must name one adapter in one life of one process.

    A mark lasts for `busy_ms`. A batch that takes longer is taken for lost until it is settled after all.
    """

    def __init__(
        self,
        url: str,
        *,
        adapter: str,
        key_prefix: str = "cachewarden",
        busy_ms: int = 2_000,
        timeout_s: float = _TIMEOUT_S,
        pause_s: float = _PAUSE_S,
    ) -> None:
        self._adapter = adapter
        self._prefix = key_prefix
        self._busy_ms = busy_ms
        self._pause_s = pause_s
        self._paused_until_s = 0.0
        self._trouble = ""
        # A client that repeats by itself could settle twice.
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=_CONNECTIONS,
            timeout=timeout_s,
            decode_responses=True,
            encoding_errors="surrogateescape",
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            client_name="cachewarden-lookups",
        )
        # redis-py's types do not tell its asynchronous answers from its synchronous ones, hence Any.
        self._redis: Any = Redis.from_pool(pool)

    async def begin(self, service: str, *, torn: bool = False) -> str:
        """Announce a batch; see the port."""
        return str(await self._run(_BEGIN, service, int(torn), self._busy_ms))

    async def settle(self, service: str, mark: str, hits: int, misses: int) -> None:
        """Settle a batch; see the port."""
        await self._run(_SETTLE, service, 0, mark, hits, misses)

    async def read(self, service: str, *, torn: bool = False) -> LookupAccount:
        """Return the account of one cache; see the port."""
        now, flat = await self._run(_READ, service, int(torn))
        now_ms = int(now)
        hits = misses = 0
        busy: list[str] = []
        lost: list[str] = []
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        for field in sorted(fields):
            kind, _, adapter = field.partition(":")
            if kind == "hits":
                hits += int(fields[field])
            elif kind == "misses":
                misses += int(fields[field])
            elif kind == "busy":
                running = int(fields[field]) > now_ms
                (busy if running else lost).append(adapter if running else f"{adapter}@{fields[field]}")
        basis = "/".join((fields["born"], fields.get("tears", "0"), *lost))
        return LookupAccount(hits=hits, misses=misses, busy=tuple(busy), basis=basis)

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose(close_connection_pool=True)

    async def _run(self, script: str, service: str, torn: int, *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        if loop.time() < self._paused_until_s:
            raise BlackboardUnavailable(self._trouble)
        key = f"{self._prefix}:lookups:{service}"
        try:
            return await self._redis.eval(script, 1, key, self._adapter, torn, _KEPT_MS, *arguments)
        except (RedisError, OSError) as error:
            self._trouble = f"the ledger of lookups: {str(error).strip().rstrip('.') or type(error).__name__}"
            self._paused_until_s = loop.time() + self._pause_s
            raise BlackboardUnavailable(self._trouble) from None
