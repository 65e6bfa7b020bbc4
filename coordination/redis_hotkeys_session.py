"""Finds hot keys by the server's own HOTKEYS (Redis 8.6 and later): short sessions, one after the other.

`HOTKEYS START METRICS 2 CPU NET COUNT k DURATION s SAMPLE r` lets the server count, `HOTKEYS GET` tells, `HOTKEYS
RESET` frees what it took. A look starts a session, a later look fetches it, so nobody waits; DURATION ends one that
we forget. The server has one session at a time: one that is not ours is neither read out, stopped nor reset. Names of
keys are hashed as soon as they are read.

The syntax and the reply are those of the documentation of Redis 8.6 and of its src/hotkeys.c; they were tried on
captured replies, on no server, since none of that version was at hand.

INVARIANT: without the owner's permission for captures nothing is sent; no session of ours is longer than
`DURATION_S`, and no more commands are sampled than `server_share` of a core pays for, by `_SAMPLED_US` each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from cachewarden.cachemodel.shards import hash_key
from cachewarden.errors import OperatingError, TargetRefused
from cachewarden.observation import ServerHotKeys
from coordination.monitor_lines import PatternIndex
from coordination.redis_probe import text_of
from coordination.redis_wire import RedisWire, Refusal, require

__all__ = ["DURATION_S", "HotKeySessions", "fields_of", "hot_keys_of"]

DURATION_S: Final = 10
_COUNT: Final = 20
"""The server takes 1 to 64, and keeps ten times as many for its estimate."""
_SAMPLED_US: Final = 2.0
"""What the server is taken to spend on one sampled command: two updates of its top-k."""
_ABANDONED_MS: Final = 3_600_000
"""A session that ended so long ago, and is not known to be ours, was forgotten by whoever began it."""


def fields_of(reply: Any) -> dict[str, Any] | None:
    """Return the fields of a reply to HOTKEYS GET, None where there is no session. It comes as a flat array, as a
    mapping, or as one of these in an array of one. Raises ValueError for anything else."""
    while isinstance(reply, list) and len(reply) == 1:
        reply = reply[0]
    if reply is None or reply == []:
        return None
    if isinstance(reply, Mapping):
        return {text_of(name): value for name, value in reply.items()}
    if not isinstance(reply, list) or len(reply) % 2:
        raise ValueError("the reply to HOTKEYS GET has another shape than that of Redis 8.6")
    return {text_of(name): value for name, value in zip(reply[::2], reply[1::2], strict=True)}


def hot_keys_of(
    fields: Mapping[str, Any], *, hash_secret: bytes, patterns: PatternIndex, own_prefix: bytes, commands: int
) -> ServerHotKeys:
    """Return a session without its names; raises ValueError where a field is missing or no number."""
    cpu, net = _counts(fields.get("by-cpu-time-us", [])), _counts(fields.get("by-net-bytes", []))
    names = sorted({*cpu, *net}, key=lambda name: (-net.get(name, 0), -cpu.get(name, 0), name))

    def pattern_of(name: bytes) -> str | None:
        index = patterns.of(name)
        return patterns.patterns[index] if index >= 0 else None

    return ServerHotKeys(
        started_ms=_number(fields, "collection-start-time-unix-ms"),
        window_ms=_number(fields, "collection-duration-ms"),
        sample_ratio=max(1, _number(fields, "sample-ratio")),
        commands=commands,
        cpu_us=_number(fields, "all-commands-all-slots-us"),
        net_bytes=_number(fields, "net-bytes-all-commands-all-slots"),
        keys=tuple(
            (hash_key(hash_secret, name), pattern_of(name), cpu.get(name, 0), net.get(name, 0))
            for name in names
            if not name.startswith(own_prefix)
        ),
    )


def _number(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"HOTKEYS GET tells no `{name}`")
    return value


def _counts(reply: Any) -> dict[bytes, int]:
    pairs = list(reply.items()) if isinstance(reply, Mapping) else list(zip(reply[::2], reply[1::2], strict=True))
    if not all(isinstance(name, bytes) and isinstance(count, int) for name, count in pairs):
        raise ValueError("HOTKEYS GET lists something else than keys and numbers")
    return dict(pairs)


class HotKeySessions:
    """The sessions of one adapter; `newest` is the last one that was fetched."""

    def __init__(
        self,
        wire: RedisWire,
        *,
        hash_secret: bytes,
        patterns: Sequence[str],
        own_prefix: bytes,
        server_share: float,
    ) -> None:
        self._wire = wire
        self._secret = hash_secret
        self._patterns = PatternIndex(patterns)
        self._own_prefix = own_prefix
        self._sampled_per_s = max(1.0, server_share * 1e6 / _SAMPLED_US)
        self._known: tuple[str, bool] = ("", False)
        """Process of the server, and whether it has the command."""
        self._started_ms: int | None = None
        """By the server's clock, of the session of ours that it has."""
        self._ops_per_s = 0.0
        self.newest: ServerHotKeys | None = None

    async def turn(self, info: Mapping[str, str], now_ms: int, *, permitted: bool) -> None:
        """Fetch a session of ours that has ended, and begin the next one; nothing where the owner does not permit it or
        the server has no such command. Raises TargetRefused where server or user refuse, or the session is not ours."""
        if not permitted:
            return
        run_id = info.get("run_id", "")
        if self._known[0] != run_id:
            (known,) = await self._wire.ask([("COMMAND", "INFO", "HOTKEYS")])
            self._known = run_id, not isinstance(known, Refusal) and known != [None]
            self._started_ms = self.newest = None
        if not self._known[1]:
            return
        fields = self._understood(await self._wire.call("HOTKEYS", "GET"))
        if fields is not None:
            active, started_ms = bool(fields.get("tracking-active")), fields.get("collection-start-time-unix-ms", 0)
            if started_ms != self._started_ms:
                self._leave_alone(int(started_ms), now_ms, active=active)
            elif active:
                return
            else:
                self.newest = self._read(fields)
                await self._wire.call("HOTKEYS", "RESET")
        await self._begin(float(info.get("instantaneous_ops_per_sec", "0") or 0))

    def _leave_alone(self, started_ms: int, now_ms: int, *, active: bool) -> None:
        if active or now_ms - started_ms < _ABANDONED_MS:
            raise TargetRefused(
                self._wire.service, "HOTKEYS", "the server has a session of somebody else, which is left alone"
            )

    async def _begin(self, ops_per_s: float) -> None:
        self._ops_per_s, self._started_ms = ops_per_s, None
        ratio = max(1, math.ceil(ops_per_s / self._sampled_per_s))
        start = (
            "HOTKEYS",
            "START",
            "METRICS",
            2,
            "CPU",
            "NET",
            "COUNT",
            _COUNT,
            "DURATION",
            DURATION_S,
            "SAMPLE",
            ratio,
        )
        begun, reply = await self._wire.ask([start, ("HOTKEYS", "GET")])
        require(self._wire.service, begun)
        fields = self._understood(require(self._wire.service, reply))
        self._started_ms = None if fields is None else fields.get("collection-start-time-unix-ms")

    def _understood(self, reply: Any) -> dict[str, Any] | None:
        try:
            return fields_of(reply)
        except ValueError as error:
            raise TargetRefused(self._wire.service, "HOTKEYS", str(error)) from None

    def _read(self, fields: Mapping[str, Any]) -> ServerHotKeys:
        try:
            commands = round(self._ops_per_s * _number(fields, "collection-duration-ms") / 1000)
            return hot_keys_of(
                fields,
                hash_secret=self._secret,
                patterns=self._patterns,
                own_prefix=self._own_prefix,
                commands=commands,
            )
        except ValueError as error:
            raise TargetRefused(self._wire.service, "HOTKEYS", str(error)) from None

    async def end(self) -> None:
        """Stop and free a session of ours, as far as the server answers; one that it keeps ends by its DURATION."""
        if self._started_ms is None:
            return
        try:
            fields = fields_of(await self._wire.call("HOTKEYS", "GET"))
            if fields is not None and fields.get("collection-start-time-unix-ms") == self._started_ms:
                await self._wire.ask([("HOTKEYS", "STOP"), ("HOTKEYS", "RESET")])
        except (OperatingError, ValueError):
            return
        finally:
            self._started_ms = None
