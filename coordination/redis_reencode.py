"""One bounded pass that stores collections again, so that thresholds of compact encodings act on keys that exist.

DUMP and RESTORE is the way by which every server of ours gives a key the form that its thresholds ask for (`rdb.c`,
rdbLoadObject); COPY keeps the form of its source. The key is watched before it is read, with the fence, so what is
stored is exactly what was read or nothing at all. The deadline is absolute and stays as it is; idle time or frequency
goes with the key. Values pass through this process as opaque bytes and are forgotten at once.

INVARIANT: no key is stored unless neither it nor the fence was written since it was read; none outside the declared
patterns, none larger than `VALUE_BYTES_MAX`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from cachewarden.errors import StaleFencingToken, TargetRefused
from cachewarden.messages import Lease
from cachewarden.ports import ReencodePass
from coordination.redis_probe import Pacer
from coordination.redis_wire import BATCH_COMMANDS, Command, RedisWire, Refusal, Session, fence_number, require

__all__ = ["VALUE_BYTES_MAX", "reencode_pass"]

VALUE_BYTES_MAX: Final = 65_536
"""By MEMORY USAGE: DUMP and RESTORE of more would hold the event loop for longer than a millisecond."""
_SCAN_COUNT: Final = 100
_SLOTS_PER_KEY: Final = 10
"""Where few keys match, a pass ends after this many slots of the keyspace for each key of its budget."""
_PASS_S_MAX: Final = 5.0
"""A pass ends after this time with its cursor: guardrails are looked at between passes only."""
_LOOK_KEYS: Final = BATCH_COMMANDS // 4


@dataclass(frozen=True, slots=True)
class _Form:
    """A large form: the command that counts its elements, and the knobs one of which has to admit as many."""

    counts: str
    knobs: tuple[str, ...]


_FORMS: Final[Mapping[tuple[bytes, bytes], _Form]] = {
    (b"hash", b"hashtable"): _Form("HLEN", ("hash-max-listpack-entries",)),
    (b"zset", b"skiplist"): _Form("ZCARD", ("zset-max-listpack-entries",)),
    (b"set", b"hashtable"): _Form("SCARD", ("set-max-listpack-entries", "set-max-intset-entries")),
}
_KNOBS: Final = tuple(sorted({knob for form in _FORMS.values() for knob in form.knobs}))


async def reencode_pass(
    wire: RedisWire,
    fence_key: str,
    lease: Lease,
    prefixes: Sequence[bytes],
    cursor: int,
    max_keys: int,
    keys_per_s: int,
    *,
    own_prefix: bytes,
    lfu: bool,
    pacer: Pacer,
) -> ReencodePass:
    """SCAN from `cursor` until `max_keys` keys of the patterns were looked at; store again what fits its thresholds.

    At most `keys_per_s` keys are looked at in a second, and a pass takes about five seconds at most. Raises
    StaleFencingToken as soon as the fence is not the lease's, ValueError for a rate below 1; what was stored up to then
    is whole.
    """
    if keys_per_s < 1:
        raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
    loop = asyncio.get_running_loop()
    examined = reencoded = moved = slots = 0
    limits, heat = await _limits(wire), "FREQ" if lfu else "IDLETIME"
    next_at_s = loop.time()
    ends_s = next_at_s + _PASS_S_MAX
    async with wire.session() as session:
        while True:
            await pacer.spend(6 * _SCAN_COUNT)
            # A step is of one second's keys at most, so that a pass under a low rate ends in time, too.
            count = max(1, min(_SCAN_COUNT, keys_per_s, max_keys - examined))
            (reply,) = await session.exchange([("SCAN", cursor, "COUNT", count)])
            cursor_reply, names = require(wire.service, reply)
            cursor, slots = int(cursor_reply), slots + count
            wanted = [n for n in names if n.startswith(tuple(prefixes)) and not n.startswith(own_prefix)]
            for start in range(0, len(wanted), _LOOK_KEYS):
                part = wanted[start : start + _LOOK_KEYS]
                for name, warmth, form in await _candidates(wire.service, session, part, limits, heat):
                    warm = () if warmth is None else (heat, warmth)
                    size = await _store_again(wire, session, fence_key, lease, name, form, warm)
                    moved += size
                    reencoded += int(size > 0)
            examined += len(wanted)
            next_at_s = max(next_at_s, loop.time()) + len(wanted) / keys_per_s
            await asyncio.sleep(max(0.0, next_at_s - loop.time()))
            if cursor == 0 or examined >= max_keys or slots >= max_keys * _SLOTS_PER_KEY:
                break
            if pacer.free_at_s(loop.time()) >= ends_s:
                break
    return ReencodePass(cursor=cursor, examined=examined, reencoded=reencoded, bytes_moved=moved)


async def _limits(wire: RedisWire) -> dict[str, int]:
    """Return the thresholds of this server; one that it does not have is missing."""
    limits: dict[str, int] = {}
    for reply in await wire.ask([("CONFIG", "GET", knob) for knob in _KNOBS]):
        pairs = require(wire.service, reply)
        limits |= {n.decode(): int(v) for n, v in zip(pairs[::2], pairs[1::2], strict=True)}
    return limits


async def _candidates(
    service: str, session: Session, names: Sequence[bytes], limits: Mapping[str, int], heat: str
) -> list[tuple[bytes, int | None, _Form]]:
    """Return the small keys in a large form whose number of elements a compact one would admit, each with its heat and
    that form."""
    looks: list[Command] = []
    for name in names:
        # The heat comes first: on Redis 7.0, which knows no NO-TOUCH, counting elements makes a key look used.
        looks += [("OBJECT", heat, name), ("TYPE", name), ("OBJECT", "ENCODING", name), ("MEMORY", "USAGE", name)]
    replies = await session.exchange(looks) if looks else []
    large: list[tuple[bytes, int | None, _Form]] = []
    parts = (replies[::4], replies[1::4], replies[2::4], replies[3::4])
    for name, warmth, kind, encoding, usage in zip(names, *parts, strict=True):
        for reply in (kind, usage):
            require(service, reply)
        # A key that went away between the answers has no encoding.
        form = None if isinstance(encoding, Refusal) or encoding is None else _FORMS.get((_bytes(kind), encoding))
        if form is not None and usage is not None and int(usage) <= VALUE_BYTES_MAX:
            known = isinstance(warmth, int)
            large.append((name, int(warmth) if known else None, form))
    counts = await session.exchange([(form.counts, name) for name, _, form in large]) if large else []
    found = []
    for (name, warmth, form), count in zip(large, counts, strict=True):
        # WRONGTYPE: it became something else meanwhile and is left alone.
        if not isinstance(count, Refusal) and 0 < int(count) <= max(limits.get(k, 0) for k in form.knobs):
            found.append((name, warmth, form))
    return found


def _bytes(reply: Any) -> bytes:
    return reply if isinstance(reply, bytes) else str(reply).encode()


async def _store_again(
    wire: RedisWire, session: Session, fence_key: str, lease: Lease, name: bytes, form: _Form, warm: tuple[Any, ...]
) -> int:
    """Store one key again; returns the bytes of its dump, 0 where it was written meanwhile, has gone, or has become
    something else since it was chosen: what is `warm` was read of the key as it was."""
    look: tuple[Command, ...] = (("PEXPIRETIME", name), ("TYPE", name), ("OBJECT", "ENCODING", name), ("DUMP", name))
    replies = await session.exchange([("WATCH", fence_key, name), ("GET", fence_key), *look])
    watched, token, deadline, kind, encoding, dump = replies
    require(wire.service, watched)
    found = fence_number(token)
    if found != lease.epoch:
        await session.forget_watched()
        raise StaleFencingToken(wire.service, lease.epoch, found)
    trouble = next((r for r in (deadline, dump) if isinstance(r, Refusal)), None)
    changed = isinstance(encoding, Refusal) or _FORMS.get((_bytes(kind), encoding)) is not form
    if trouble is not None or dump is None or int(deadline) == -2 or changed:
        await session.forget_watched()
        if trouble is not None:
            raise TargetRefused(wire.service, trouble.command, trouble.reason)
        return 0
    command = ("RESTORE", name, max(0, int(deadline)), dump, "REPLACE", "ABSTTL", *warm)
    return len(dump) if await session.write_watched(command) else 0
