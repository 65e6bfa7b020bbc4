"""Leases on the blackboard's server, behind the `LeaseStore` port.

Who holds what, until when, is decided by scripts with that server's clock; no clock of ours takes part. It never
touches a managed cache: the epoch becomes a fencing token there by `RedisTarget.raise_fence`.

Keys: `{prefix}:lease:{service}`, a hash (holder, epoch, expires_at_ms) that ends with the lease;
`{prefix}:epoch:{service}`, the last epoch, for ever; `{prefix}:tenure:{service}`, that epoch and who got it, until he
gives it back. A tenure of another epoch than the last one counts for nothing (an older version knows no tenures).

INVARIANT: at any time at most one lease per service is in force, and each tenure has a higher epoch than every one
before. A tenure ends when another takes the lease or its holder gives it back; a lease that ran out and is taken again
by the same holder, with nobody in between, is the same tenure. A new epoch is at least the server's time in
milliseconds, so it stays above the fences in the caches even if the server lost its data.
"""

from __future__ import annotations

from typing import Any, Final

from cachewarden.errors import BlackboardUnavailable, OperatingError
from cachewarden.messages import Lease
from coordination.redis_wire import Command, RedisWire

__all__ = ["RedisLeaseStore"]

# KEYS[1] lease, KEYS[2] epoch, KEYS[3] tenure; ARGV[1] holder, ARGV[2] ttl_ms.
# Answers {1 ours | 0 another's, epoch, expires_at_ms}.
_ACQUIRE: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lease = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'expires_at_ms')
local epoch = lease[2]
if lease[1] and tonumber(lease[3]) > now then
  if lease[1] ~= ARGV[1] then return {0, lease[2], lease[3]} end
else
  epoch = redis.call('GET', KEYS[2]) or '0'
  if redis.call('GET', KEYS[3]) ~= epoch .. ' ' .. ARGV[1] then
    epoch = string.format('%.0f', math.max(tonumber(epoch) + 1, now))
    redis.call('SET', KEYS[2], epoch)
    redis.call('SET', KEYS[3], epoch .. ' ' .. ARGV[1])
  end
end
local expires = string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'epoch', epoch, 'expires_at_ms', expires)
redis.call('PEXPIREAT', KEYS[1], expires)
return {1, epoch, expires}
"""

# KEYS[1] lease, KEYS[2] epoch, KEYS[3] tenure; ARGV[1] holder, ARGV[2] epoch. Ends the tenure if it is still this one.
_RELEASE: Final = """
if redis.call('GET', KEYS[3]) == ARGV[2] .. ' ' .. ARGV[1] then redis.call('DEL', KEYS[3]) end
local lease = redis.call('HMGET', KEYS[1], 'holder', 'epoch')
if lease[1] == ARGV[1] and lease[2] == ARGV[2] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS[1] lease. Answers {holder, epoch, expires_at_ms}, or {} where none is in force.
_HOLDER: Final = """
local time = redis.call('TIME')
local lease = redis.call('HMGET', KEYS[1], 'holder', 'epoch', 'expires_at_ms')
if lease[1] and tonumber(lease[3]) > time[1] * 1000 + math.floor(time[2] / 1000) then return lease end
return {}
"""


class RedisLeaseStore:
    """See the module. `holder` must name one life of one process: whoever gives the same name renews instead of taking
    over.
    """

    def __init__(
        self,
        url: str,
        *,
        key_prefix: str = "cachewarden",
        username: str | None = None,
        password: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        self._prefix = key_prefix
        self._wire = RedisWire(
            "blackboard", url, username=username, password=password, timeout_s=timeout_s, max_connections=2
        )

    async def acquire(self, service: str, holder: str, ttl_ms: int) -> Lease | None:
        """Take or renew the lease for `ttl_ms` from now, by the server's clock; None where another holds it.

        A lost answer may have taken the lease: asking again renews it. Raises BlackboardUnavailable, ValueError for
        ttl_ms < 1.
        """
        if ttl_ms < 1:
            raise ValueError(f"a lease must last at least a millisecond, got `{ttl_ms}`")
        answer = await self._run(("EVAL", _ACQUIRE, 3, *self._keys(service), holder, ttl_ms))
        ours, epoch, expires_at_ms = (int(part) for part in answer)
        if not ours:
            return None
        return Lease(service=service, holder=holder, epoch=epoch, expires_at_ms=expires_at_ms)

    async def release(self, lease: Lease) -> None:
        """Give the lease back if holder and epoch are still those in force, otherwise do nothing."""
        await self._run(("EVAL", _RELEASE, 3, *self._keys(lease.service), lease.holder, lease.epoch))

    async def holder(self, service: str) -> Lease | None:
        """Return the lease in force, if any."""
        answer = await self._run(("EVAL", _HOLDER, 1, self._lease_key(service)))
        if not answer:
            return None
        name, epoch, expires_at_ms = answer
        return Lease(service=service, holder=name.decode(), epoch=int(epoch), expires_at_ms=int(expires_at_ms))

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    def _lease_key(self, service: str) -> str:
        return f"{self._prefix}:lease:{service}"

    def _keys(self, service: str) -> tuple[str, str, str]:
        return self._lease_key(service), f"{self._prefix}:epoch:{service}", f"{self._prefix}:tenure:{service}"

    async def _run(self, command: Command) -> Any:
        try:
            async with self._wire.session() as session:
                return await session.write(command)
        except OperatingError as error:
            raise BlackboardUnavailable(str(error)) from None
