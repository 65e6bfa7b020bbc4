"""One managed cache behind the `TargetCache` port, by redis-py.

It decides nothing: it looks, it writes what it is told under a fence, and it reports trouble as an `OperatingError`.
Names of keys stay inside; only keyed hashes leave. It works on one server and one db, those of the URL: of a cluster
it manages the node that it is given.

INVARIANT: no configuration is written unless the fence in the cache is exactly the lease's epoch, checked by the
server itself.
INVARIANT: `own_hits_total` and `own_misses_total` of an observation are exactly the lookups among the counters of its
INFO that are ours: those of all adapters that share a ledger, those of this one alone where there is none. Where they
may not be exact, `own_lookups` is in `incomplete`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from cachewarden.errors import (
    OperatingError,
    SettingsError,
    StaleFencingToken,
    TargetRefused,
    TargetTimeout,
    TargetUnavailable,
)
from cachewarden.fleet import Service
from cachewarden.knobs import KNOBS, check_value
from cachewarden.messages import KnobChange, Lease, TtlRule
from cachewarden.observation import AccessSample, Capabilities, KeyspaceSample, Observation, ProbeCost
from cachewarden.ports import Clock, LookupLedger, ReencodePass, Spread, TtlPass
from cachewarden.value_sample import ValueLimits, ValueSample
from coordination.idle_trust import IdleTrust
from coordination.redis_capture import CaptureLimits, capture_accesses
from coordination.redis_full_cache import cannot_queue, end_earlier_writers, write_when_full
from coordination.redis_hot_keys import HotKeys
from coordination.redis_probe import (
    Pacer,
    commands_since,
    latency_histograms,
    probe_capabilities,
    read_info,
    sample_keyspace,
    server_us_since,
    text_of,
    under_lfu,
    with_policy,
)
from coordination.redis_reencode import reencode_pass
from coordination.redis_side_looks import SideLooks
from coordination.redis_ttl import ttl_pass
from coordination.redis_values import sample_values
from coordination.redis_wire import RedisWire, Refusal, require

__all__ = ["RedisTarget", "TargetLimits"]

_PINGS: Final = 3

# KEYS[1] fence, ARGV[1] epoch. Answers {1 raised | 0 higher one there | 2 no number, what stood there or ''}.
# `allow-oom`, since a full cache under noeviction is what has to be cured.
_RAISE_FENCE: Final = """#!lua flags=allow-oom
local found = redis.call('GET', KEYS[1])
if found then
  if not string.match(found, '^%d+$') then return {2, found} end
  if tonumber(found) > tonumber(ARGV[1]) then return {0, found} end
end
redis.call('SET', KEYS[1], ARGV[1])
return {1, found or ''}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLimits:
    """What the adapter may cost a cache, and how long it waits for it."""

    timeout_s: float = 5.0
    """Per connect and per reply."""
    max_connections: int = 3
    probe_server_share: float = 0.01
    """Of one core of the server, for sampling, hot keys and TTL passes."""
    hot_keys_examined: int = 200_000
    capture: CaptureLimits = field(default_factory=CaptureLimits)
    values: ValueLimits = field(default_factory=ValueLimits)


class RedisTarget:
    """See the module. Bound to the event loop that first uses it."""

    def __init__(
        self,
        service: Service,
        *,
        hash_secret: bytes,
        clock: Clock,
        password: str | None = None,
        limits: TargetLimits | None = None,
        fence_key: str = "cachewarden:fence",
        lookups: LookupLedger | None = None,
    ) -> None:
        """`lookups` is needed where another adapter of ours may look at the same cache; its caller closes it."""
        self.service = service.name
        self._service = service
        self._secret = hash_secret
        self._clock = clock
        self._password = password
        self._limits = limits or TargetLimits()
        self._fence_key = fence_key
        self._ended_before: int | None = None
        """Epoch before which no writer has a connection any more; None where the server does not let us see to that."""
        # Everything of ours in a cache begins with the part of the fence's name up to its colon.
        self._own_prefix = fence_key.split(":", 1)[0].encode() + b":"
        self._patterns = tuple(pattern.prefix for pattern in service.patterns)
        self._wire = RedisWire(
            service.name,
            service.url,
            username=service.username,
            password=password,
            timeout_s=self._limits.timeout_s,
            max_connections=self._limits.max_connections,
            lookups=lookups,
        )
        self._side = SideLooks(
            self._wire, service, password=password, hash_secret=hash_secret, own_prefix=self._own_prefix,
            timeout_s=self._limits.timeout_s, server_share=self._limits.probe_server_share,
        )  # fmt: skip
        self._pacer = Pacer(share=self._limits.probe_server_share)
        self._hot_keys = HotKeys(self._wire, fence_key)
        self._probed: tuple[str, Capabilities] | None = None
        self._idle = IdleTrust()
        self._idle_known_ms: int | None = None
        """Of the newest look."""

    async def observe(
        self, *, sample_keys: int, capture_ms: int, capture_lines: int, capture_rate: float, value_keys: int = 0
    ) -> Observation:
        """Look once; INFO is read first, so the counters are those of the beginning, before sample and capture.

        A part that cannot be had is named in `incomplete`. Raises TargetUnavailable only where the server did not
        answer at all.
        """
        loop = asyncio.get_running_loop()
        started_s, earlier = loop.time(), dict(self._wire.ledger.commands)
        seen = await self._look()
        missing = dict(seen.incomplete)
        sample: KeyspaceSample | None = None
        access: AccessSample | None = None
        values: ValueSample | None = None
        if sample_keys > 0:
            sample = await self._part("sample", missing, lambda: self._sample(seen, sample_keys))
            await self._part("hot_keys", missing, lambda: self._side.hot_keys(seen.info, self._clock.now_ms()))
            await self._part("cluster", missing, lambda: self._side.slots(seen.info, self._clock.now_ms()))
        if capture_ms > 0 and capture_lines > 0:
            access = await self._part("access", missing, lambda: self._capture(capture_ms, capture_lines, capture_rate))
        if value_keys > 0:
            values = await self._part("values", missing, lambda: self._values(value_keys))
        ours = commands_since(self._wire.ledger, earlier)
        server_us = seen.cost.server_us
        if sample is not None:
            (reply,) = await self._part("cost", missing, lambda: self._wire.ask([("INFO", "commandstats")])) or (None,)
            measured = server_us_since(seen.info, read_info(reply), ours) if isinstance(reply, bytes) else None
            if measured is not None:
                server_us = measured
                self._pacer.learn(sum(ours.values()), measured)
        cost = ProbeCost(
            commands=sum(ours.values()),
            wall_ms=(loop.time() - started_s) * 1000,
            server_us=server_us,
            monitor_lines=0 if access is None else access.lines_seen,
        )
        # A capture and a look at values are beside the looks of the cycle, which have the nodes.
        seen = await self._side.seen(seen, nodes=capture_ms == 0 and value_keys == 0)
        return replace(seen, sample=sample, access=access, values=values, cost=cost, incomplete=missing)

    async def counters(self) -> Observation:
        """INFO, latency and knobs only; see `observe`."""
        return await self._look()

    async def _part(self, name: str, missing: dict[str, str], get: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        try:
            return await get()
        except OperatingError as error:
            missing[name] = error.reason if isinstance(error, TargetRefused) else str(error)
            return None

    async def _look(self) -> Observation:
        loop, wire = asyncio.get_running_loop(), self._wire
        started_s, earlier = loop.time(), dict(wire.ledger.commands)
        missing: dict[str, str] = {}
        async with wire.session() as session:
            asked_s = loop.time()
            reply, own = await session.info()
            at_ms = self._clock.now_ms()
        info = read_info(reply) if isinstance(reply, bytes) else {}
        self._idle_known_ms = self._idle.note(info, asked_s * 1000, loop.time() * 1000)
        if isinstance(reply, Refusal):
            missing["info"] = reply.reason
        if own.problem is not None:
            missing["own_lookups"] = own.problem
        capabilities = await self._capabilities(info)
        knobs: dict[str, str] = {}
        if capabilities.config_get:
            knobs = await self._part("knobs", missing, lambda: self.read_knobs(sorted(KNOBS))) or {}
        else:
            missing["knobs"] = capabilities.denied.get("CONFIG GET", "not permitted")
        latency: dict[str, tuple[tuple[int, int], ...]] = {}
        if capabilities.latency_histogram:
            reply = await self._part("latency", missing, lambda: wire.call("LATENCY", "HISTOGRAM"))
            latency = {} if reply is None else latency_histograms(reply)
        else:
            missing["latency"] = capabilities.denied.get("LATENCY HISTOGRAM", "not permitted")
        round_trip_us = await self._round_trip_us()
        ours = commands_since(wire.ledger, earlier)
        return Observation(
            service=self.service,
            at_ms=at_ms,
            info=info,
            latency_us=latency,
            knobs=knobs,
            capabilities=capabilities,
            own_hits_total=own.hits,
            own_misses_total=own.misses,
            own_lookups_basis=own.basis,
            round_trip_us=round_trip_us,
            cost=ProbeCost(
                commands=sum(ours.values()),
                wall_ms=(loop.time() - started_s) * 1000,
                server_us=server_us_since({}, info, ours) or 0.0,
            ),
            incomplete=missing,
        )

    async def _capabilities(self, info: dict[str, str]) -> Capabilities:
        run_id = info.get("run_id", "")
        if self._probed is None or self._probed[0] != run_id:
            fence = self._fence_key.encode()
            found = await probe_capabilities(self._wire, info, key=fence, capture=self._service.capture)
            self._probed = (run_id, found)
        return with_policy(self._probed[1], info)

    async def _round_trip_us(self) -> float:
        loop = asyncio.get_running_loop()
        trips = []
        async with self._wire.session() as session:
            for _ in range(_PINGS):
                started_s = loop.time()
                await session.exchange([("PING",)])
                trips.append((loop.time() - started_s) * 1e6)
        return statistics.median(trips)

    async def _sample(self, seen: Observation, keys: int) -> KeyspaceSample:
        known_ms, known_s = self._idle_known_ms, asyncio.get_running_loop().time()
        sample = await sample_keyspace(
            self._wire, keys=keys, capabilities=seen.capabilities, patterns=self._patterns, hash_secret=self._secret,
            own_prefix=self._own_prefix, pacer=self._pacer,
        )  # fmt: skip
        return replace(sample, idle_known_ms=known_ms, counted_ms=self._idle.counted_ms(seen.info, known_s * 1000))

    async def _values(self, keys: int) -> ValueSample:
        if not self._service.value_samples:
            reason = "the fleet file does not permit reading values, set `value_samples: true` for the service"
            raise TargetRefused(self.service, "GETRANGE", reason)
        return await sample_values(
            self._wire,
            keys=keys,
            patterns=self._patterns,
            hash_secret=self._secret,
            own_prefix=self._own_prefix,
            pacer=self._pacer,
            limits=self._limits.values,
        )

    async def _capture(self, capture_ms: int, capture_lines: int, capture_rate: float) -> AccessSample:
        if not self._service.capture:
            raise TargetRefused(
                self.service, "MONITOR", "the fleet file does not permit captures, set `capture: true` for the service"
            )
        return await capture_accesses(
            self._wire,
            self._service.url,
            username=self._service.username,
            password=self._password,
            timeout_s=self._limits.timeout_s,
            capture_ms=capture_ms,
            capture_lines=capture_lines,
            capture_rate=capture_rate,
            patterns=self._patterns,
            hash_secret=self._secret,
            limits=self._limits.capture,
        )

    async def read_knobs(self, knobs: Sequence[str]) -> dict[str, str]:
        """CONFIG GET of each knob, since servers before 7.0 take only one; raises TargetRefused where CONFIG GET is
        denied.
        """
        return _knobs_of(self.service, await self._wire.ask([("CONFIG", "GET", knob) for knob in knobs]))

    async def raise_fence(self, lease: Lease) -> None:
        """Set the fence to the lease's epoch unless a higher one stands there; works in a full cache that refuses
        writes.

        Repeating it does no harm. Raises StaleFencingToken with the higher one.
        """
        async with self._wire.session() as session:
            answer = await session.write(
                ("EVAL", _RAISE_FENCE, 1, self._fence_key, lease.epoch), script=_lookups_of_raise_fence
            )
        status, found = int(answer[0]), text_of(answer[1])
        if status == 0:
            raise StaleFencingToken(self.service, lease.epoch, int(found))
        if status != 1:
            raise TargetRefused(
                self.service, "EVAL", f"`{self._fence_key}` holds no fencing token, delete it or set another key prefix"
            )
        if self._ended_before != lease.epoch:
            # Once for each epoch: listing clients costs a busy server more than a fence does.
            async with self._wire.session() as session:
                if await end_earlier_writers(session, lease.epoch):
                    self._ended_before = lease.epoch

    async def write_knobs(self, lease: Lease, changes: Sequence[KnobChange]) -> dict[str, str]:
        """Set all knobs in one CONFIG SET under the fence and return what CONFIG GET says afterwards on the same
        connection.

        Raises SettingsError before anything is sent for a knob that is not in the table, a value out of range, or a
        knob named twice.
        """
        values = {change.knob: check_value(change.knob, change.after) for change in changes}
        if len(values) != len(changes) or not changes:
            raise SettingsError("a write needs at least one knob and each of them once")
        pairs = [part for pair in values.items() for part in pair]
        questions = [("CONFIG", "GET", knob) for knob in values]
        if "maxmemory-policy" in values:
            self._idle.forget(asyncio.get_running_loop().time() * 1000)
        async with self._wire.session() as session:
            # Reading first: where CONFIG GET is denied the write could not be confirmed, so it is not begun.
            _knobs_of(self.service, await session.exchange(questions))
            command = ("CONFIG", "SET", *pairs)
            try:
                await session.write_fenced(self._fence_key, lease, [command])
            except TargetRefused as error:
                self._note_denial("CONFIG SET", error.reason)
                if not cannot_queue(error) or self._ended_before != lease.epoch:
                    raise
                await write_when_full(session, self.service, self._fence_key, lease, command)
            try:
                return _knobs_of(self.service, await session.exchange(questions))
            except TargetUnavailable:
                raise TargetTimeout(self.service, "CONFIG SET") from None

    def _note_denial(self, command: str, reason: str) -> None:
        """Correct a capability that was believed until the server refused it."""
        words = reason.lower()
        if self._probed is not None and ("permission" in words or "unknown command" in words):
            run_id, known = self._probed
            self._probed = run_id, replace(known, config_set=False, denied={**known.denied, command: reason})

    async def collect_hot_keys(self, limit: int) -> int:
        """Remember the hottest `limit` of up to `hot_keys_examined` keys; returns how many."""
        info = read_info(await self._wire.call("INFO", "memory"))
        return await self._hot_keys.collect(
            limit, self._limits.hot_keys_examined, lfu=under_lfu(info), own_prefix=self._own_prefix, pacer=self._pacer
        )

    async def touch_hot_keys(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """TOUCH the remembered keys under the fence; returns how many still existed in the last round."""
        return await self._hot_keys.touch(lease, times, keys_per_s)

    async def measure_spread(self, limit: int) -> Spread:
        """OBJECT FREQ of some of the remembered keys against that of a new key."""
        return await self._hot_keys.spread(limit, self._pacer)

    async def reencode_keys(self, lease: Lease, cursor: int, max_keys: int, keys_per_s: int) -> ReencodePass:
        """One bounded pass of storing collections again; `redis_reencode` has the invariant."""
        if not self._service.reencode or not self._patterns:
            reason = "the fleet file does not permit it, set `reencode: true` and name the patterns of the service"
            raise TargetRefused(self.service, "RESTORE", reason)
        info = read_info(await self._wire.call("INFO", "memory"))
        return await reencode_pass(
            self._wire, self._fence_key, lease, [p.encode() for p in self._patterns], cursor, max_keys, keys_per_s,
            own_prefix=self._own_prefix, lfu=under_lfu(info), pacer=self._pacer,
        )  # fmt: skip

    async def rewrite_config(self, lease: Lease) -> str | None:
        """CONFIG REWRITE under the fence; a refusal by owner or server is returned in words."""
        if not self._service.config_rewrite:
            return "the fleet file does not permit CONFIG REWRITE, set `config_rewrite: true` for the service"
        info = read_info(await self._wire.call("INFO", "server"))
        if not info.get("config_file"):
            return "the server was started without a configuration file, so nothing outlives its process"
        async with self._wire.session() as session:
            try:
                await session.write_fenced(self._fence_key, lease, [("CONFIG", "REWRITE")])
            except TargetRefused as error:
                return f"the server refuses CONFIG REWRITE: {error.reason}"
        return None

    async def extend_ttls(
        self,
        lease: Lease,
        rule: TtlRule,
        cursor: int,
        max_keys: int,
        restore: bool = False,
        idle_known_ms: int = 0,
    ) -> TtlPass:
        """One bounded pass of a TTL rule; `redis_ttl` has the invariant."""
        info: dict[str, str] = {}
        known_ms, asked_ms = None, asyncio.get_running_loop().time() * 1000
        if rule.unread_ms or rule.only_read:
            for section in ("memory", "server"):
                info |= read_info(await self._wire.call("INFO", section))
            known_ms = self._idle.note(info, asked_ms, asyncio.get_running_loop().time() * 1000)
        uptime = info.get("uptime_in_seconds", "")
        if known_ms is not None and idle_known_ms > known_ms and uptime.isdecimal():
            known_ms = self._idle.vouch(min(idle_known_ms, int(uptime) * 1000), asked_ms)
        return await ttl_pass(
            self._wire, self._fence_key, lease, rule, cursor, max_keys, restore=restore, pacer=self._pacer,
            own_prefix=self._own_prefix, lfu=under_lfu(info),
            uptime_ms=int(uptime) * 1000 if uptime.isdecimal() else None, idle_known_ms=known_ms,
            now_ms=self._clock.now_ms(),
        )  # fmt: skip

    async def close(self) -> None:
        """Close all connections."""
        await self._side.close()
        await self._wire.close()


def _lookups_of_raise_fence(reply: Any) -> tuple[int, int]:
    """Return what the script's GET counts as."""
    if isinstance(reply, Refusal):
        return (1, 0) if "wrong kind of value" in reply.reason else (0, 0)
    return (1, 0) if reply[1] else (0, 1)


def _knobs_of(service: str, replies: Sequence[Any]) -> dict[str, str]:
    knobs: dict[str, str] = {}
    for reply in replies:
        pairs = require(service, reply)
        knobs |= {text_of(name): text_of(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
    return knobs
