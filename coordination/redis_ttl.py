"""One bounded pass of a TTL rule over a keyspace: extends, or puts back, without any memory of its own.

What becomes of each key is decided by `ttl_deadlines`, which also has the invariant; here the keyspace is walked, the
server's clock is read, and deadlines are set under the fence. A key rewritten between our look and our PEXPIREAT is
younger than we think, so its new deadline is early, never late; GT never shortens, LT never prolongs, and a key that
has lost its TTL in the meantime gets none: it counts as living for ever, which GT leaves alone, and LT only with XX.

INVARIANT: no deadline is written unless the fence in the cache is exactly the lease's epoch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cachewarden.messages import Lease, TtlRule
from cachewarden.ports import TtlPass
from coordination.redis_probe import Pacer
from coordination.redis_wire import BATCH_COMMANDS, Command, RedisWire, Session, require
from coordination.ttl_deadlines import extended_deadline_ms, restored_deadline_ms

__all__ = ["glob_of_prefix", "ttl_pass"]

_SCAN_COUNT: Final = 200
_SLOTS_PER_KEY: Final = 10
"""Where few keys match, a pass ends after this many slots of the keyspace for each key of its budget."""


def glob_of_prefix(prefix: str) -> bytes:
    """Return the pattern of MATCH for keys that begin with `prefix`, taken literally."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in prefix.encode()) + b"*"


async def ttl_pass(
    wire: RedisWire,
    fence_key: str,
    lease: Lease,
    rule: TtlRule,
    cursor: int,
    max_keys: int,
    *,
    restore: bool,
    pacer: Pacer,
) -> TtlPass:
    """SCAN from `cursor` until `max_keys` keys of the rule were examined, and set the deadlines that have to change.

    May examine one SCAN step more than `max_keys`, since a cursor cannot stop inside a step. Raises StaleFencingToken
    as soon as the fence is not the lease's; what was done up to then stands and is safe.
    """
    before = wire.ledger.commands.total()
    examined = extended = slots = 0
    glob = glob_of_prefix(rule.pattern)
    async with wire.session() as session:
        while True:
            await pacer.spend(2 * BATCH_COMMANDS)
            count = max(1, min(_SCAN_COUNT, max_keys - examined))
            (reply,) = await session.exchange([("SCAN", cursor, "MATCH", glob, "COUNT", count)])
            cursor_reply, names = require(wire.service, reply)
            cursor = int(cursor_reply)
            slots += count
            for start in range(0, len(names), BATCH_COMMANDS - 1):
                part = names[start : start + BATCH_COMMANDS - 1]
                extended += await _settle(wire, session, fence_key, lease, rule, part, restore)
                examined += len(part)
            if cursor == 0 or examined >= max_keys or slots >= max_keys * _SLOTS_PER_KEY:
                break
    return TtlPass(cursor=cursor, examined=examined, extended=extended, commands=wire.ledger.commands.total() - before)


async def _settle(
    wire: RedisWire,
    session: Session,
    fence_key: str,
    lease: Lease,
    rule: TtlRule,
    names: Sequence[bytes],
    restore: bool,
) -> int:
    """Give each key of one batch its deadline; returns how many changed."""
    # The server's time is read before the deadlines, so that a TTL never looks shorter than it is.
    time_reply, *deadlines = await session.exchange([("TIME",), *(("PEXPIRETIME", name) for name in names)])
    seconds, micros = require(wire.service, time_reply)
    now_ms = int(seconds) * 1000 + int(micros) // 1000
    decide = restored_deadline_ms if restore else extended_deadline_ms
    commands: list[Command] = []
    for name, deadline in zip(names, deadlines, strict=True):
        # Redis before 7.0 has neither PEXPIRETIME nor GT, and without them the invariant cannot be kept.
        wanted = decide(rule, require(wire.service, deadline), now_ms)
        if wanted is not None:
            commands.append(("PEXPIREAT", name, wanted, *(("XX", "LT") if restore else ("GT",))))
    if not commands:
        return 0
    return sum(await session.write_fenced(fence_key, lease, commands))
