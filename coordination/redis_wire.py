"""The connection to one managed cache: small pool, timeouts, errors as ours, and the ledger of our own lookups.

It decides nothing about a cache. Replies that are errors come back as `Refusal` values where a caller sends several
commands at once, and as exceptions of `errors.py` everywhere else; no exception of redis-py leaves the
`coordination.redis_*` modules.

INVARIANT: `TargetTimeout` is raised only where a write was sent and its outcome is unknown.
INVARIANT: every lookup of ours that the server counts as keyspace hit or miss is in the ledger. The one exception is a
connection lost in the middle of a batch: nobody can tell how many of its lookups the server still counted, so those
without a reply are left out, and the account that we share with other adapters begins anew.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost

from cachewarden.errors import (
    OperatingError,
    StaleFencingToken,
    TargetRefused,
    TargetTimeout,
    TargetUnavailable,
)
from cachewarden.messages import Lease
from cachewarden.ports import LookupAccount, LookupLedger
from coordination.own_lookups import OwnLookups, SharedLookups
from coordination.redis_lookups import NO_LOOKUP, Command, Refusal, command_name, lookups_of

__all__ = [
    "BATCH_COMMANDS",
    "CLIENT_NAME",
    "Command",
    "Ledger",
    "RedisWire",
    "Refusal",
    "Script",
    "Session",
    "command_name",
    "fence_number",
    "lookups_of",
    "require",
]

CLIENT_NAME: Final = "cachewarden"
BATCH_COMMANDS: Final = 100
"""Commands per pipeline: about 0.2 ms of the server's event loop, so that no client of the application waits for
longer.
"""

Script = Callable[[Any], tuple[int, int]]
"""From the reply of a script (`Refusal` for an error) to the hits and misses that it has cost."""

_INFO_TRIES: Final = 60
_INFO_PAUSE_S: Final = 0.005
"""Batches are a few milliseconds long and some tens of milliseconds apart, so a gap between those of another adapter is
found within a few tries.
"""

# Not lookups themselves, but they carry or report some, so they take the ledger's lock.
_BATCHES = frozenset({"EVAL", "EXEC", "INFO"})


@dataclass(slots=True)
class Ledger:
    """What we have cost the server since the adapter was made.

    `lock` keeps a batch of lookups and the reading of INFO apart: while it is held, hits and misses agree with the
    server's counters.
    """

    hits: int = 0
    misses: int = 0
    commands: Counter[str] = field(default_factory=Counter)
    """Calls by name as in `commandstats`, e.g. `object|idletime`."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def book(self, command: Command, reply: Any) -> None:
        """Enter one command with its reply."""
        self.commands[command_name(command)] += 1
        hits, misses = lookups_of(command, reply)
        self.add(hits, misses)

    def add(self, hits: int, misses: int) -> None:
        """Enter lookups that no command shows."""
        self.hits += hits
        self.misses += misses


def _text(error: BaseException) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


class RedisWire:
    """A few connections to one server; see the module. `close` must be awaited in the event loop that used it."""

    def __init__(
        self,
        service: str,
        url: str,
        *,
        username: str | None,
        password: str | None,
        timeout_s: float,
        max_connections: int = 3,
        lookups: LookupLedger | None = None,
    ) -> None:
        """`lookups` is where adapters on the same cache tell each other of their own lookups; None without others."""
        self.service = service
        self.ledger = Ledger()
        self.shared = None if lookups is None else SharedLookups(lookups, service)
        self.addresses: set[str] = set()
        """Our own addresses as the server sees them (`host:port`)."""
        self.no_touch_problem: str | None = "no connection yet"
        """Why reading a key makes it young on our newest connection; None under CLIENT NO-TOUCH."""
        given = {key: value for key, value in (("username", username), ("password", password)) if value is not None}
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=max_connections,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            protocol=2,
            driver_info=None,
            client_name=CLIENT_NAME,
            redis_connect_func=self._greet,
            **given,
        )

    async def _greet(self, connection: AbstractConnection) -> None:
        await connection.on_connect()
        # A courtesy: probes must not refresh what they look at. Servers before Redis 7.2 do not know the command, and
        # do not need it for OBJECT, PTTL and MEMORY USAGE, which leave the idle time alone.
        for command in (("CLIENT", "NO-TOUCH", "ON"), ("CLIENT", "INFO")):
            await connection.send_command(*command, check_health=False)
            self.ledger.commands[command_name(command)] += 1
            try:
                reply = await connection.read_response()
            except ResponseError as error:
                if command[1] == "NO-TOUCH":
                    self.no_touch_problem = _text(error)
                continue
            if command[1] == "NO-TOUCH":
                self.no_touch_problem = None
            if command[1] == "INFO":
                fields = dict(part.split("=", 1) for part in reply.decode("utf-8", "replace").split() if "=" in part)
                self.addresses.add(fields.get("addr", ""))

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """Lend one connection that has just answered; what it was doing is cut off if the body fails."""
        try:
            connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]
        except (RedisError, OSError) as error:
            raise self.trouble(error, "connect") from None
        try:
            await self._revive(connection)
            yield Session(self, connection)
        except BaseException:
            # The connection may be inside MULTI or hold unread replies.
            await connection.disconnect(nowait=True)
            raise
        finally:
            await self._pool.release(connection)

    async def _revive(self, connection: AbstractConnection) -> None:
        """Make sure that a pooled connection has not died while it lay idle, e.g. by a restart of the server.

        Without this the first write after a restart would be in doubt although nothing was ever sent.
        """
        try:
            try:
                await self._ping(connection)
            except ConnectionLost:
                await connection.disconnect(nowait=True)
                await connection.connect()  # type: ignore[no-untyped-call]
                await self._ping(connection)
        except ResponseError:
            # A user who may not PING may still do everything else; the answer came, which is all that was asked.
            return
        except (RedisError, OSError) as error:
            raise self.trouble(error, "PING") from None

    async def _ping(self, connection: AbstractConnection) -> None:
        self.ledger.commands["ping"] += 1
        await connection.send_packed_command(connection.pack_command("PING"))
        await connection.read_response()

    async def call(self, *command: Any) -> Any:
        """Send one command that changes nothing and return its reply; raises TargetRefused for an error reply."""
        (reply,) = await self.ask([command])
        return require(self.service, reply)

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands that change nothing, pipelined in batches; error replies come back as `Refusal`."""
        replies: list[Any] = []
        async with self.session() as session:
            for start in range(0, len(commands), BATCH_COMMANDS):
                replies += await session.exchange(commands[start : start + BATCH_COMMANDS])
        return replies

    def trouble(self, error: BaseException, command: str, *, in_doubt: bool = False) -> OperatingError:
        """Return our error for one of redis-py; `in_doubt` where a write was under way."""
        if isinstance(error, (BusyLoadingError, AuthenticationError, ResponseError)):
            return TargetRefused(self.service, command, _text(error))
        if in_doubt:
            return TargetTimeout(self.service, command)
        return TargetUnavailable(self.service, _text(error))

    async def close(self) -> None:
        """Close all connections; a later command opens new ones."""
        await self._pool.disconnect(inuse_connections=True)


class Session:
    """One connection for a while: WATCH, MULTI and reading back need the same one."""

    def __init__(self, wire: RedisWire, connection: AbstractConnection) -> None:
        self._wire = wire
        self._connection = connection

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands that change nothing in one go and return their replies, errors as `Refusal`."""
        return await self._exchange(commands, in_doubt=False)

    async def info(self) -> tuple[Any, OwnLookups]:
        """Read INFO, and our lookups up to then.

        Where the ledger is shared, they are exact if no other adapter was busy and no total moved while INFO was read;
        a gap between the batches of others is waited for, within bounds.
        """
        shared, ledger = self._wire.shared, self._wire.ledger
        if shared is None:
            async with ledger.lock:
                return await self._info(), OwnLookups(hits=ledger.hits, misses=ledger.misses)
        seen = LookupAccount(hits=ledger.hits, misses=ledger.misses, busy=(), basis="")
        for _ in range(_INFO_TRIES):
            async with ledger.lock:
                before = await shared.read()
                if isinstance(before, str):
                    return await self._info(), OwnLookups(hits=ledger.hits, misses=ledger.misses, problem=before)
                seen = before
                if not before.busy:
                    reply = await self._info()
                    after = await shared.read()
                    if isinstance(after, str):
                        return reply, OwnLookups(hits=ledger.hits, misses=ledger.misses, problem=after)
                    if after == before:
                        return reply, OwnLookups(hits=after.hits, misses=after.misses, basis=after.basis)
                    seen = after
            # The lock is free here: our own batches must not wait for those of others.
            await asyncio.sleep(_INFO_PAUSE_S)
        who = ", ".join(f"`{name}`" for name in seen.busy) or "another adapter of ours"
        problem = f"{who} was looking at the cache in each of {_INFO_TRIES} tries"
        return await self._info(), OwnLookups(hits=seen.hits, misses=seen.misses, basis=seen.basis, problem=problem)

    async def _info(self) -> Any:
        """Read INFO; under the lock where the ledger has to agree with it."""
        (reply,) = await self._send([("INFO", "all")], in_doubt=False)
        if isinstance(reply, Refusal):
            (reply,) = await self._send([("INFO",)], in_doubt=False)
        return reply

    async def _exchange(
        self,
        commands: Sequence[Command],
        *,
        in_doubt: bool,
        label: str | None = None,
        in_transaction: bool = False,
        script: Script | None = None,
    ) -> list[Any]:
        ledger, shared = self._wire.ledger, self._wire.shared
        looks_up = script is not None or any(command[0] not in NO_LOOKUP for command in commands)
        async with AsyncExitStack() as stack:
            if looks_up or any(command[0] in _BATCHES for command in commands):
                await stack.enter_async_context(ledger.lock)
            if looks_up and shared is not None:
                await stack.enter_async_context(shared.batch(lambda: (ledger.hits, ledger.misses)))
            return await self._send(
                commands, in_doubt=in_doubt, label=label, in_transaction=in_transaction, script=script
            )

    async def _send(
        self,
        commands: Sequence[Command],
        *,
        in_doubt: bool,
        label: str | None = None,
        in_transaction: bool = False,
        script: Script | None = None,
    ) -> list[Any]:
        """Send and book; the caller holds the ledger's lock where lookups are among the commands."""
        ledger = self._wire.ledger
        replies: list[Any] = []
        try:
            await self._connection.send_packed_command(self._connection.pack_commands(commands))
            for command in commands:
                # One by one, so that what was answered before a connection is lost still gets booked.
                replies.append(await self._reply(command))  # noqa: PERF401
        except (RedisError, OSError) as error:
            at = commands[min(len(replies), len(commands) - 1)]
            name = label or command_name(at).replace("|", " ").upper()
            raise self._wire.trouble(error, name, in_doubt=in_doubt) from None
        finally:
            answered: Sequence[Any] = replies
            if in_transaction:
                # The other replies are `QUEUED`; what was looked up is known from the reply of EXEC only.
                done = len(replies) == len(commands) and isinstance(replies[-1], list)
                answered = replies[-1] if done else ()
            for command, reply in zip(commands, answered, strict=False):
                ledger.book(command, reply)
                if script is not None:
                    ledger.add(*script(reply))
        return replies

    async def _reply(self, command: Command) -> Any:
        name = command_name(command).replace("|", " ").upper()
        try:
            reply = await self._connection.read_response()
        except ResponseError as error:
            return Refusal(name, _text(error))
        if isinstance(reply, list):
            return [Refusal(name, _text(item)) if isinstance(item, RedisError) else item for item in reply]
        return reply

    async def write(self, command: Command, script: Script | None = None) -> Any:
        """Send one command that writes, with what it looks up if it is a script; raises TargetRefused, or TargetTimeout
        where nobody knows whether it was carried out.
        """
        (reply,) = await self._exchange([command], in_doubt=True, script=script)
        return require(self._wire.service, reply)

    async def write_fenced(
        self, fence_key: str, lease: Lease, commands: Sequence[Command], attempts: int = 5
    ) -> list[Any]:
        """Carry out `commands` as one transaction if the fence is exactly the lease's epoch, then and during the whole
        of it.

        A renewal of the same lease writes the fence too, which makes the server carry out nothing; then it is tried
        again, `attempts` times in all.

        Raises StaleFencingToken (nothing was done) where the fence is another one or gone; TargetRefused for the first
        error reply, which for a transaction of one command means that nothing was done; TargetTimeout once EXEC may
        have reached the server.
        """
        service = self._wire.service
        # MULTI must have been accepted before the first write is sent: refused, the write would be carried out at once.
        watched, token, opened = await self.exchange([("WATCH", fence_key), ("GET", fence_key), ("MULTI",)])
        for reply in (watched, token, opened):
            require(service, reply)
        await self._check_fence(token, lease)
        outcome = await self._transact(commands)
        if outcome is None:
            (token,) = await self.exchange([("GET", fence_key)])
            found = fence_number(token)
            if found != lease.epoch or attempts <= 1:
                raise StaleFencingToken(service, lease.epoch, found)
            return await self.write_fenced(fence_key, lease, commands, attempts - 1)
        return outcome

    async def write_watched(self, command: Command) -> bool:
        """Carry out `command` as a transaction over what this session watches; False where that was written since, or
        where the command itself found nothing to do (a nil reply).

        Raises as `write_fenced` does, but for the fence.
        """
        replies = await self.write_all_watched([command])
        return replies is not None and replies[0] is not None

    async def write_all_watched(self, commands: Sequence[Command]) -> list[Any] | None:
        """Carry out `commands` as one transaction over what this session watches; None where that was written since,
        so that nothing was done. The watch ends either way. Raises as `write_fenced` does, but for the fence.
        """
        # MULTI must have been accepted before the write is sent: refused, the write would be carried out at once.
        (opened,) = await self.exchange([("MULTI",)])
        require(self._wire.service, opened)
        return await self._transact(commands)

    async def forget_watched(self) -> None:
        """End the watch without having written. Users of ours may DISCARD, but need not be allowed to UNWATCH."""
        await self.exchange([("MULTI",), ("DISCARD",)])

    async def _transact(self, commands: Sequence[Command]) -> list[Any] | None:
        """Queue and EXEC; None where something watched was written, so that nothing was carried out."""
        service, label = self._wire.service, command_name(commands[0]).replace("|", " ").upper()
        *queued, outcome = await self._exchange([*commands, ("EXEC",)], in_doubt=True, label=label, in_transaction=True)
        for reply in queued:
            require(service, reply)
        if require(service, outcome) is None:
            return None
        return [require(service, reply, label) for reply in outcome]

    async def _check_fence(self, token: Any, lease: Lease) -> None:
        found = fence_number(token)
        if found != lease.epoch:
            await self.exchange([("DISCARD",)])
            raise StaleFencingToken(self._wire.service, lease.epoch, found)


def require(service: str, reply: Any, command: str | None = None) -> Any:
    """Return the reply; raises TargetRefused if it is an error (of `command` if that says it better)."""
    if isinstance(reply, Refusal):
        raise TargetRefused(service, command or reply.command, reply.reason)
    return reply


def fence_number(token: Any) -> int | None:
    """Return the epoch that a fence holds; None where it is gone or is no number, which no lease can match."""
    text = token.decode("ascii", "replace") if isinstance(token, bytes) else ""
    return int(text) if text.isdecimal() else None
