"""Keeps caches warm behind the `KeepWarm` port: remembers names of hot keys, loads and refreshes them.

Names stay in the memory of this object and are gone with it. What may be loaded, and for how long, is `warm_rules`'
business; when a key is due, `cachewarden.keeping`'s. Our lookups are booked in the shared ledger.

INVARIANT: a key that is missing is written only if it still is (SET NX); one that is refreshed only if nobody has
touched it since before its load began (WATCH), and only if it is a string with a deadline.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cachewarden.errors import OperatingError, TargetRefused
from cachewarden.fleet import Fleet, Origin, Service
from cachewarden.keeping import CacheLife, due_early
from cachewarden.messages import Mode
from cachewarden.ports import LookupLedger
from coordination.redis_hot_keys import HotKeys
from coordination.redis_probe import Pacer, read_info, under_lfu
from coordination.redis_wire import RedisWire, require
from coordination.warm_origins import OriginClient, OriginFailed, make_origin
from coordination.warm_rules import WarmCourse, permit
from coordination.warmer import Warmer

__all__ = ["RedisKeepWarm"]

_CONNECTIONS: Final = 4
_EXAMINED_MAX: Final = 20_000
_FORGET: Final = 0.7
"""A key that a round does not find among the hottest keeps this much of its score."""
_FIRST_LOAD_MS: Final = 100.0
_SMOOTHING: Final = 0.2


@dataclass(slots=True)
class _Kept:
    """One service: its connections, what is remembered, and how long a load takes (moving average)."""

    service: Service
    wire: RedisWire
    hot: HotKeys
    origin: OriginClient
    scores: dict[str, float] = field(default_factory=dict)
    load_ms: float = _FIRST_LOAD_MS
    next_load_s: float = 0.0

    @property
    def names(self) -> list[str]:
        """Return what is remembered, the hottest first."""
        return sorted(self.scores, key=lambda name: (-self.scores[name], name))


class RedisKeepWarm:
    """See the module; bound to one event loop. `draw` gives numbers in 0..1; `passwords` by service."""

    def __init__(
        self,
        fleet: Fleet,
        services: Sequence[str],
        *,
        lookups: LookupLedger | None,
        draw: Callable[[], float],
        passwords: Mapping[str, str | None],
        reserved: Sequence[str] = ("cachewarden:",),
        timeout_s: float = 5.0,
        server_share: float = 0.01,
        make_client: Callable[[Origin], OriginClient] = make_origin,
    ) -> None:
        # The agent has looked at the mode of now; here the fleet file's must not stand in the way.
        acting = tuple(s.model_copy(update={"mode": Mode.AUTO}) if s.name in services else s for s in fleet.services)
        self._fleet = fleet.model_copy(update={"services": acting})
        self._reserved = tuple(reserved)
        self._draw = draw
        self._pacer = Pacer(share=server_share)
        self._warmer = Warmer(self._fleet, reserved=reserved, make_client=make_client)
        self._kept: dict[str, _Kept] = {}
        for name in services:
            service = self._fleet.service(name)
            if service.origin is None:
                continue
            wire = RedisWire(
                name,
                service.url,
                username=service.username,
                password=passwords.get(name),
                timeout_s=timeout_s,
                max_connections=_CONNECTIONS + 1,
                lookups=lookups,
            )
            self._kept[name] = _Kept(service, wire, HotKeys(wire, "unused"), make_client(service.origin))

    async def life(self, service: str) -> CacheLife:
        """Return what tells one life of the server from another."""
        reply = await self._of(service).wire.call("INFO")
        info = read_info(reply)
        keys = sum(_keys_of(value) for name, value in info.items() if name.startswith("db") and name[2:].isdigit())
        return CacheLife(
            run_id=info.get("run_id", ""),
            role=info.get("role", ""),
            keys=keys,
            evicted_keys=int(info.get("evicted_keys", 0)),
            loading=info.get("loading", "0") != "0",
        )

    async def remember(self, service: str, limit: int) -> int:
        """Look at up to 20,000 keys and remember the hottest that may be warmed; returns how many are remembered.

        A key that was hot in several rounds outlives one that only was in the last.
        """
        kept = self._of(service)
        info = read_info(await kept.wire.call("INFO", "memory"))
        own = self._reserved[0].encode() if self._reserved else b"cachewarden:"
        await kept.hot.collect(limit, _EXAMINED_MAX, lfu=under_lfu(info), own_prefix=own, pacer=self._pacer)
        scores = {name: score * _FORGET for name, score in kept.scores.items()}
        for raw in kept.hot.names:
            name = _text(raw)
            if name is not None and permit(self._fleet, kept.service, name, self._reserved).allowed:
                scores[name] = scores.get(name, 0.0) + 1.0
        best = sorted(scores, key=lambda name: (-scores[name], name))[:limit]
        kept.scores = {name: scores[name] for name in best if scores[name] > 0.01}
        return len(kept.scores)

    async def warm(self, service: str, rate_share: float, start: int, count: int) -> Mapping[str, int]:
        """Load what is missing of some remembered keys, the hottest first; returns keys by outcome."""
        names = self._of(service).names[start : start + count]
        if not names:
            return {}
        # Not patient: whoever asks looks after each round whether he still may.
        report = await self._warmer.warm(service, names, WarmCourse(rate_share=rate_share))
        return {name: number for name, number in report.counts().items() if number}

    async def refresh(self, service: str, period_ms: int, rate_share: float) -> Mapping[str, int]:
        """Load remembered keys anew that are due; returns keys by what became of them."""
        kept = self._of(service)
        names = kept.names
        await self._pacer.spend(len(names))
        replies = await kept.wire.ask([("PTTL", name) for name in names])
        remaining = [require(service, reply) for reply in replies]
        found = [
            name
            for name, left_ms in zip(names, remaining, strict=True)
            if due_early(int(left_ms), kept.load_ms, period_ms, self._draw())
        ]
        # What the origin's share does not permit within this period waits for the next; the hottest go first.
        due = iter(found[: 1 + int(_rate_of(kept) * rate_share * period_ms / 1000)])
        counts = Counter[str]()

        async def work() -> None:
            for name in due:
                counts[await self._refreshed(kept, name, rate_share)] += 1

        await asyncio.gather(
            *(work() for _ in range(min(_CONNECTIONS, kept.service.origin.concurrency if kept.service.origin else 1)))
        )
        return counts

    async def _refreshed(self, kept: _Kept, name: str, rate_share: float) -> str:
        allowed = permit(self._fleet, kept.service, name, self._reserved)
        if allowed.ttl_ms is None:
            return "forbidden"
        await self._turn(kept, rate_share)
        loop = asyncio.get_running_loop()
        async with kept.wire.session() as session:
            watched, kind, left_ms = await session.exchange([("WATCH", name), ("TYPE", name), ("PTTL", name)])
            require(kept.service.name, watched)
            if _word(require(kept.service.name, kind)) != "string" or int(require(kept.service.name, left_ms)) <= 0:
                await session.exchange([("UNWATCH",)])
                return "other_type"
            began_s = loop.time()
            try:
                value = await kept.origin.fetch(name)
            except OriginFailed:
                await session.exchange([("UNWATCH",)])
                return "failed"
            kept.load_ms += _SMOOTHING * ((loop.time() - began_s) * 1000 - kept.load_ms)
            lives_ms = 0 if value is None else min(allowed.ttl_ms, value.ttl_ms or allowed.ttl_ms)
            if value is None or lives_ms <= 0:
                await session.exchange([("UNWATCH",)])
                return "not_found"
            try:
                done = await session.write_watched(("SET", name, value.data, "XX", "PX", lives_ms))
            except TargetRefused:
                return "failed"
            return "refreshed" if done else "overtaken"

    async def _turn(self, kept: _Kept, rate_share: float) -> None:
        """Wait so that loads keep to their share of the origin's rate."""
        now_s = asyncio.get_running_loop().time()
        due_s = max(kept.next_load_s, now_s)
        kept.next_load_s = due_s + 1.0 / (_rate_of(kept) * rate_share)
        await asyncio.sleep(max(0.0, due_s - now_s))

    def _of(self, service: str) -> _Kept:
        kept = self._kept.get(service)
        if kept is None:
            raise OperatingError(f"`{service}` is not kept warm")
        return kept

    async def close(self) -> None:
        """Forget all names and close all connections."""
        for kept in self._kept.values():
            kept.scores = {}
            await kept.wire.close()
            await kept.origin.close()
        await self._warmer.close()


def _rate_of(kept: _Kept) -> float:
    return 1.0 if kept.service.origin is None else kept.service.origin.rate_per_s


def _text(name: bytes) -> str | None:
    """Return a name as text; None for one that is none, which no origin can be asked for."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None


def _word(reply: Any) -> str:
    return reply.decode("ascii", "replace") if isinstance(reply, bytes) else str(reply)


def _keys_of(text: str) -> int:
    """Return the number of keys in a line of INFO's keyspace section: `keys=3,expires=0,avg_ttl=0`."""
    fields = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    return int(fields.get("keys", 0))
