"""Where warming jobs stand, on the journal's server, so that any replica of the API can tell of them and cancel them.

Keys: `{prefix}:warm:{id}`, a hash with the job's `status` (JSON without key names) and `cancel`; `{id}:outcomes`, one
byte per key in the order asked; `{prefix}:warm-busy:{service}`, the job that a service has now, for as long as it shows
signs of life. All of them run out by themselves. It decides nothing.

INVARIANT: no key name and no value is kept here.
"""

from __future__ import annotations

from typing import Any, Final

from cachewarden.errors import BlackboardUnavailable, OperatingError
from coordination.redis_wire import Command, RedisWire

__all__ = ["RedisWarmJobs"]

_KEPT_MS: Final = 6 * 3_600_000
_BUSY_MS: Final = 30_000

# KEYS: busy, job; ARGV: id, status, busy ms, kept ms. Answers the id of the job that the service has.
_BEGIN: Final = """
local found = redis.call('GET', KEYS[1])
if found then return found end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
redis.call('HSET', KEYS[2], 'status', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
return ARGV[1]
"""

# KEYS: busy, job, outcomes; ARGV: id, status, outcomes, busy ms (0: it has ended), kept ms, place of the outcomes.
# Answers 1 to be cancelled.
_TELL: Final = """
redis.call('HSET', KEYS[2], 'status', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if #ARGV[3] > 0 then redis.call('SETRANGE', KEYS[3], ARGV[6], ARGV[3]) end
redis.call('PEXPIRE', KEYS[3], ARGV[5])
local found = redis.call('GET', KEYS[1])
if not found or found == ARGV[1] then
  if ARGV[4] == '0' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[4]) end
end
if redis.call('HEXISTS', KEYS[2], 'cancel') == 1 then return 1 end
return 0
"""

# KEYS: job; ARGV: who. Answers 1 where there is such a job.
_CANCEL: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSETNX', KEYS[1], 'cancel', ARGV[1])
return 1
"""

# KEYS: job, outcomes; ARGV: from, to. Answers {status or '', who cancelled or '', outcomes}.
_READ: Final = """
local found = redis.call('HMGET', KEYS[1], 'status', 'cancel')
return {found[1] or '', found[2] or '', redis.call('GETRANGE', KEYS[2], ARGV[1], ARGV[2])}
"""


class RedisWarmJobs:
    """See the module. All methods raise BlackboardUnavailable."""

    def __init__(self, url: str, *, key_prefix: str = "cachewarden", timeout_s: float = 5.0) -> None:
        self._prefix = key_prefix
        self._wire = RedisWire("blackboard", url, username=None, password=None, timeout_s=timeout_s, max_connections=2)

    async def begin(self, job_id: str, service: str, status: str) -> str:
        """Make this the service's job unless it has one; returns the id of the one that it has."""
        return _text(
            await self._run(("EVAL", _BEGIN, 2, *self._of(service, job_id), job_id, status, _BUSY_MS, _KEPT_MS))
        )

    async def tell(self, job_id: str, service: str, status: str, outcomes: bytes, *, place: int, ended: bool) -> bool:
        """Write how it stands, and outcomes from `place` on (a gap reads as zeros); returns whether somebody wants it
        cancelled."""
        busy, job = self._of(service, job_id)
        busy_ms = 0 if ended else _BUSY_MS
        arguments = (job_id, status, outcomes, busy_ms, _KEPT_MS, place)
        return bool(await self._run(("EVAL", _TELL, 3, busy, job, f"{job}:outcomes", *arguments)))

    async def cancel(self, job_id: str, who: str) -> bool:
        """Ask for the end of a job; returns whether there is one of that id."""
        return bool(await self._run(("EVAL", _CANCEL, 1, self._of("", job_id)[1], who)))

    async def read(self, job_id: str, start: int = 0, count: int = 0) -> tuple[str, str, bytes]:
        """Return status (empty where the job is not known), who cancelled it, and `count` outcomes from `start` on."""
        job = self._of("", job_id)[1]
        # A range that ends before it begins would be empty, but -1 means the end: without a count one byte is read and
        # dropped.
        last = start + max(count, 1) - 1
        status, who, outcomes = await self._run(("EVAL", _READ, 2, job, f"{job}:outcomes", start, last))
        return _text(status), _text(who), bytes(outcomes) if count else b""

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    def _of(self, service: str, job_id: str) -> tuple[str, str]:
        return f"{self._prefix}:warm-busy:{service}", f"{self._prefix}:warm:{job_id}"

    async def _run(self, command: Command) -> Any:
        try:
            async with self._wire.session() as session:
                return await session.write(command)
        except OperatingError as error:
            raise BlackboardUnavailable(str(error)) from None


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)
