"""How far deliveries have come, on the journal's server, behind the `DeliveryCursors` port.

Keys: `{prefix}:delivery:{name}`, the mark as text `seq hash`, for ever; `{prefix}:delivery:{name}:holder`, who delivers
now, for as long as its claim lasts. Both are only touched by scripts, so that a claim is judged and a mark is moved in
one step, by that server's clock alone. It decides nothing.

INVARIANT: a mark moves only from the place where its mover believed it to be, and never while another's
claim is in force.
"""

from __future__ import annotations

from typing import Any, Final

from cachewarden.errors import BlackboardUnavailable, OperatingError
from cachewarden.peering import CursorClaim, Mark
from coordination.redis_wire import Command, RedisWire

__all__ = ["RedisDeliveryCursors"]

# KEYS: mark, holder; ARGV: holder, ttl_ms. Answers {1 ours | 0 another's, mark, holder}.
_CLAIM: Final = """
local mark = redis.call('GET', KEYS[1]) or ''
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return {0, mark, holder} end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return {1, mark, ARGV[1]}
"""

# KEYS: mark, holder; ARGV: holder, ttl_ms, mark before, mark after. Answers 1 moved | 0 not.
_MOVE: Final = """
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 0 end
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[4])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
"""


class RedisDeliveryCursors:
    """See the module. `holder` must name one life of one process."""

    def __init__(self, url: str, *, key_prefix: str = "cachewarden", timeout_s: float = 5.0) -> None:
        self._prefix = key_prefix
        self._wire = RedisWire("blackboard", url, username=None, password=None, timeout_s=timeout_s, max_connections=2)

    async def claim(self, name: str, holder: str, ttl_ms: int) -> CursorClaim:
        """Take or renew the claim and read the mark; see the port."""
        granted, mark, found = await self._run(("EVAL", _CLAIM, 2, *self._keys(name), holder, ttl_ms))
        return CursorClaim(granted=bool(int(granted)), mark=_mark(mark), holder=_text(found))

    async def move(self, name: str, holder: str, before: Mark, after: Mark, ttl_ms: int) -> bool:
        """Move the mark and renew the claim, or neither; see the port."""
        arguments = (holder, ttl_ms, _written(before), _written(after))
        return bool(int(await self._run(("EVAL", _MOVE, 2, *self._keys(name), *arguments))))

    async def close(self) -> None:
        """Close all connections."""
        await self._wire.close()

    def _keys(self, name: str) -> tuple[str, str]:
        mark = f"{self._prefix}:delivery:{name}"
        return mark, f"{mark}:holder"

    async def _run(self, command: Command) -> Any:
        try:
            async with self._wire.session() as session:
                return await session.write(command)
        except OperatingError as error:
            raise BlackboardUnavailable(str(error)) from None


def _text(value: Any) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _written(mark: Mark) -> str:
    return f"{mark.seq} {mark.hash}" if mark.seq else ""


def _mark(value: Any) -> Mark:
    text = _text(value)
    if not text:
        return Mark()
    number, _, record_hash = text.partition(" ")
    if not number.isdigit():
        # Nothing of ours writes this. Taken for no mark it would deliver everything again, which cannot be meant.
        raise BlackboardUnavailable(
            f"the mark of a delivery is `{text[:80]}`, which no delivery writes: delete its key"
        )
    return Mark(seq=int(number), hash=record_hash)
