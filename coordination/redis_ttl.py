"""One bounded pass of a TTL rule over a keyspace: extends, spreads, shortens, puts back, without memory of its own.

What becomes of each key is decided by `ttl_deadlines`, which also has the invariant; here the keyspace is walked, the
server's clock is read, and deadlines are set under the fence. The keys of a batch are watched before they are looked
at: a key that somebody has written, given another TTL, or made anew between our look and our PEXPIREAT keeps what he
gave it, and is looked at again. GT never shortens, LT never prolongs, XX gives no TTL to a key without one. Only a rule
for keys that nobody reads does that, and NX keeps one that is there.

INVARIANT: no deadline is written unless the fence in the cache is exactly the lease's epoch, and none on a key of ours
or on one that was written since it was looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cachewarden.cachemodel.ttl_stampede import busiest_share
from cachewarden.errors import StaleFencingToken, TargetRefused
from cachewarden.messages import Lease, TtlRule
from cachewarden.ports import TtlPass
from coordination.blackboard_records import iso_utc
from coordination.redis_probe import Pacer
from coordination.redis_wire import BATCH_COMMANDS, Command, RedisWire, Refusal, Session, fence_number, require
from coordination.ttl_deadlines import (
    draw_of,
    extended_deadline_ms,
    restored_deadline_ms,
    shortened_deadline_ms,
    used_since_written,
)

__all__ = ["glob_of_prefix", "ttl_pass"]

_SCAN_COUNT: Final = 200
_SLOTS_PER_KEY: Final = 10
"""Where few keys match, a pass ends after this many slots of the keyspace for each key of its budget."""
_KEYS_OF_BATCH: Final = BATCH_COMMANDS - 3
"""Beside WATCH, GET and TIME."""
_NO_IDLE_TIMES: Final = "no idle times under LFU, so nobody can say which keys are read; take the rule back"
_IDLE_UNKNOWN: Final = (
    "idle times are only believed for the time that we saw another policy than LFU in force, {known} s, and the rule "
    "needs {needed} s; possible from {at}"
)
_PASS_S_MAX: Final = 5.0
"""A pass ends after this time with its cursor, whatever its budget of keys: what is taken back waits for it."""


def glob_of_prefix(prefix: str) -> bytes:
    """Return the pattern of MATCH for keys that begin with `prefix`, taken literally."""
    return b"".join(b"\\" + bytes([byte]) if byte in b"*?[]\\^-" else bytes([byte]) for byte in prefix.encode()) + b"*"


@dataclass(slots=True)
class _Batch:
    """One pass under way: who writes under which rule, and the deadlines that it found and left."""

    wire: RedisWire
    session: Session
    fence_key: str
    lease: Lease
    rule: TtlRule
    restore: bool
    lfu: bool
    uptime_ms: int | None = None
    idle_known_ms: int = 0
    found: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)


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
    own_prefix: bytes,
    lfu: bool = False,
    uptime_ms: int | None = None,
    idle_known_ms: int | None = None,
    now_ms: int | None = None,
) -> TtlPass:
    """SCAN from `cursor` until `max_keys` keys of the rule were examined, or five seconds have passed, and set the
    deadlines that have to change.

    `lfu`: the server counts frequencies and tells no idle times; idle times longer than `uptime_ms` are none (a switch
    from LFU leaves such behind). `idle_known_ms`: for how long idle times are known to be true (`idle_trust`); a rule
    for keys that nobody reads takes longer ones for that long, and is refused until it is `unread_ms`;
    `now_ms` of our clock, to say when. May examine one
    SCAN step more than `max_keys`, since a cursor cannot stop inside a step. Raises StaleFencingToken as soon as the
    fence is not the lease's; what was done up to then stands and is safe.
    """
    before = wire.ledger.commands.total()
    if rule.unread_ms and lfu:
        raise TargetRefused(wire.service, "OBJECT IDLETIME", _NO_IDLE_TIMES)
    known_ms = idle_known_ms or 0
    if rule.unread_ms and not restore and known_ms < rule.unread_ms:
        left_ms = rule.unread_ms - known_ms
        at = f"{left_ms / 1000:.0f} s from now on" if now_ms is None else iso_utc(-(-(now_ms + left_ms) // 1000) * 1000)
        reason = _IDLE_UNKNOWN.format(known=known_ms // 1000, needed=rule.unread_ms / 1000, at=at)
        raise TargetRefused(wire.service, "OBJECT IDLETIME", reason)
    examined = extended = slots = 0
    ends_s = pacer.free_at_s(pacer.now_s()) + _PASS_S_MAX
    glob = glob_of_prefix(rule.pattern)
    async with wire.session() as session:
        batch = _Batch(wire, session, fence_key, lease, rule, restore, lfu, uptime_ms, known_ms)
        while True:
            # Waits for the rest that all earlier steps ask for; what this one sends is only known after it.
            await pacer.spend(0)
            sent = wire.ledger.commands.total()
            count = max(1, min(_SCAN_COUNT, max_keys - examined))
            (reply,) = await session.exchange([("SCAN", cursor, "MATCH", glob, "COUNT", count)])
            cursor_reply, names = require(wire.service, reply)
            cursor = int(cursor_reply)
            slots += count
            names = [name for name in names if not name.startswith(own_prefix)]
            for start in range(0, len(names), _KEYS_OF_BATCH):
                part = names[start : start + _KEYS_OF_BATCH]
                extended += await _settle(batch, part)
                examined += len(part)
            await pacer.spend(wire.ledger.commands.total() - sent)
            done = cursor == 0 or examined >= max_keys or slots >= max_keys * _SLOTS_PER_KEY
            # The rest that was just earned is taken before the next step, or by whoever asks the server next.
            if done or pacer.free_at_s(pacer.now_s()) >= ends_s:
                break
    return TtlPass(
        cursor=cursor,
        examined=examined,
        extended=extended,
        commands=wire.ledger.commands.total() - before,
        peak_found=busiest_share(batch.found),
        peak_left=busiest_share(batch.left),
    )


async def _settle(batch: _Batch, names: Sequence[bytes]) -> int:
    """Give each key of one batch its deadline; returns how many changed.

    Where one of them was written between the look and the write nothing is done, and they are looked at again in
    halves. A single key that is written just then is left to the next pass.
    """
    deadlines, now_ms = await _watched_deadlines(batch, names)
    wanted = await _wanted(batch, deadlines, now_ms)
    changed = [(name, at_ms, _condition(deadlines[name], at_ms)) for name, at_ms in wanted.items()]
    commands: list[Command] = [("PEXPIREAT", name, at_ms, *condition) for name, at_ms, condition in changed]
    done: Sequence[Any] | None = []
    if not commands:
        await batch.session.forget_watched()
    else:
        done = await batch.session.write_all_watched(commands)
    if done is None and len(names) > 1:
        middle = len(names) // 2
        return await _settle(batch, names[:middle]) + await _settle(batch, names[middle:])
    if done is None:
        # It may have been the fence as well.
        (token,) = await batch.session.exchange([("GET", batch.fence_key)])
        _check_fence(batch, token)
    batch.found += [at_ms for at_ms in deadlines.values() if at_ms >= 0]
    took = {name: at_ms for (name, at_ms, _), one in zip(changed, done or [0] * len(changed), strict=True) if one}
    batch.left += [at_ms for at_ms in (deadlines | took).values() if at_ms >= 0]
    return len(took)


async def _watched_deadlines(batch: _Batch, names: Sequence[bytes]) -> tuple[dict[bytes, int], int]:
    """Watch the keys and the fence; return the deadlines, and the server's time before they were read, so that a TTL
    never looks shorter than it is."""
    service, fence = batch.wire.service, batch.fence_key
    looks = [("WATCH", fence, *names), ("GET", fence), ("TIME",), *(("PEXPIRETIME", name) for name in names)]
    watched, token, time_reply, *replies = await batch.session.exchange(looks)
    require(service, watched)
    _check_fence(batch, token)
    seconds, micros = require(service, time_reply)
    # Redis before 7.0 has neither PEXPIRETIME nor GT, and without them the invariant cannot be kept.
    deadlines = {name: int(require(service, reply)) for name, reply in zip(names, replies, strict=True)}
    return deadlines, int(seconds) * 1000 + int(micros) // 1000


def _check_fence(batch: _Batch, token: Any) -> None:
    found = fence_number(require(batch.wire.service, token))
    if found != batch.lease.epoch:
        raise StaleFencingToken(batch.wire.service, batch.lease.epoch, found)


async def _wanted(batch: _Batch, deadlines: dict[bytes, int], now_ms: int) -> dict[bytes, int]:
    """Return the keys that have to end at another time, and when."""
    rule = batch.rule
    if rule.unread_ms:
        return await _unread(batch, deadlines, now_ms)
    decide = restored_deadline_ms if batch.restore else extended_deadline_ms
    answers = {name: decide(rule, at_ms, now_ms, draw_of(name, at_ms)) for name, at_ms in deadlines.items()}
    wanted = {name: answer for name, answer in answers.items() if answer is not None}
    if rule.only_read and not batch.restore:
        wanted = await _read_again(batch, wanted, deadlines, now_ms)
    return wanted


def _condition(deadline_ms: int, wanted_ms: int) -> tuple[str, ...]:
    if deadline_ms == -1:
        return ("NX",)
    return ("GT",) if wanted_ms > deadline_ms else ("XX", "LT")


async def _heat(batch: _Batch, names: Sequence[bytes]) -> list[int | None]:
    """Return idle times in milliseconds, or under LFU the counters; None where the server does not tell."""
    what = "FREQ" if batch.lfu else "IDLETIME"
    replies = await batch.session.exchange([("OBJECT", what, name) for name in names]) if names else []
    return [_number(batch, reply) for reply in replies]


def _number(batch: _Batch, reply: Any) -> int | None:
    if isinstance(reply, Refusal):
        # A key that has gone is an error reply to some versions and nil to others; a refused command is neither.
        if "no such key" in reply.reason.lower():
            return None
        raise TargetRefused(batch.wire.service, reply.command, reply.reason)
    if reply is None or batch.lfu:
        return None if reply is None else int(reply)
    idle_ms = int(reply) * 1000
    return idle_ms if batch.uptime_ms is None or idle_ms <= batch.uptime_ms else None


async def _read_again(
    batch: _Batch, wanted: dict[bytes, int], deadlines: dict[bytes, int], now_ms: int
) -> dict[bytes, int]:
    """Keep those that were used since they were written."""
    heats = await _heat(batch, list(wanted))
    found = {}
    for (name, at_ms), heat in zip(wanted.items(), heats, strict=True):
        idle, frequency = (None, heat) if batch.lfu else (heat, None)
        if used_since_written(batch.rule, deadlines[name], now_ms, idle, frequency):
            found[name] = at_ms
    return found


async def _unread(batch: _Batch, deadlines: dict[bytes, int], now_ms: int) -> dict[bytes, int]:
    idle = await _heat(batch, list(deadlines))
    found = {}
    for (name, at_ms), idle_ms in zip(deadlines.items(), idle, strict=True):
        believed_ms = None if idle_ms is None else min(idle_ms, batch.idle_known_ms)
        wanted = shortened_deadline_ms(batch.rule, at_ms, now_ms, believed_ms)
        if wanted is not None:
            found[name] = wanted
    return found
