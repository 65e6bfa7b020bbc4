"""Warms keys of one service from its origin: bounded, paced, each key loaded once however many ask for it.

It decides nothing: `warm_rules.permit` says which keys may be warmed and for how long. It never replaces a value that
is there, never logs a key or a value, and starts no load after its deadline. INVARIANT: at most `origin.concurrency`
loads of a service run at once, at most `origin.rate_per_s` begin per second, and two requests for one key share one
load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cachewarden.errors import ConfigurationError
from cachewarden.fleet import Fleet, Origin, Service
from coordination.warm_cache import CacheClient, CacheRefused, Presence, RedisCacheClient
from coordination.warm_origins import OriginClient, OriginFailed, make_origin
from coordination.warm_rules import KeyOutcome, WarmOutcome, WarmReport, permit

__all__ = ["DEADLINE_S", "Warmer"]

DEADLINE_S: Final = 20.0


class _Pacer:
    """Lets calls through at most `rate_per_s` times per second, evenly, with a burst of a tenth of a second."""

    def __init__(self, rate_per_s: float) -> None:
        self._gap_s = 1.0 / rate_per_s
        self._next_s = 0.0

    async def turn(self, deadline_s: float) -> bool:
        """Wait for this call's turn; returns False, at once, if it would come after the deadline (loop time)."""
        now_s = asyncio.get_running_loop().time()
        due_s = max(self._next_s, now_s - 0.1)
        if due_s > deadline_s:
            return False
        self._next_s = due_s + self._gap_s
        if due_s > now_s:
            await asyncio.sleep(due_s - now_s)
        return True


@dataclass(slots=True)
class _Lane:
    """What belongs to one service: its cache, its origin, its bounds, and the loads under way."""

    service: Service
    cache: CacheClient
    origin: OriginClient | None
    slots: asyncio.Semaphore
    pacer: _Pacer
    flights: dict[str, asyncio.Task[KeyOutcome]] = field(default_factory=dict)


class Warmer:
    """Warms keys on request; make one per process and event loop, and close it."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        reserved: Sequence[str] = ("cachewarden:",),
        deadline_s: float = DEADLINE_S,
        make_cache: Callable[[Service], CacheClient] = RedisCacheClient,
        make_client: Callable[[Origin], OriginClient] = make_origin,
    ) -> None:
        self._fleet = fleet
        self._reserved = tuple(reserved)
        self._deadline_s = deadline_s
        self._make_cache = make_cache
        self._make_client = make_client
        self._lanes: dict[str, _Lane] = {}

    def _lane(self, service: Service) -> _Lane:
        lane = self._lanes.get(service.name)
        if lane is None:
            origin = service.origin
            lane = _Lane(
                service=service,
                cache=self._make_cache(service),
                origin=None if origin is None else self._make_client(origin),
                slots=asyncio.Semaphore(1 if origin is None else origin.concurrency),
                pacer=_Pacer(1.0 if origin is None else origin.rate_per_s),
            )
            self._lanes[service.name] = lane
        return lane

    async def warm(self, service_name: str, keys: Sequence[str]) -> WarmReport:
        """Return one outcome per key, in order; raises UnknownService. Trouble with cache or origin is an outcome, not
        an exception."""
        service = self._fleet.service(service_name)
        permits = {key: permit(self._fleet, service, key, self._reserved) for key in keys}
        wanted = [key for key, allowed in permits.items() if allowed.allowed]
        outcomes = {
            key: KeyOutcome(key=key, outcome=WarmOutcome.FORBIDDEN, reason=p.reason)
            for key, p in permits.items()
            if not p.allowed
        }
        presence = Presence(())
        if wanted:
            try:
                lane = self._lane(service)
                presence = await lane.cache.present(wanted)
            except ConfigurationError as error:
                outcomes.update(_all(wanted, WarmOutcome.NO_ORIGIN, str(error)))
            except CacheRefused as error:
                outcomes.update(_all(wanted, WarmOutcome.FAILED, str(error)))
            else:
                here = [key for key, there in zip(wanted, presence.there, strict=True) if there]
                outcomes.update(_all(here, WarmOutcome.ALREADY_CACHED, "the cache holds it already"))
                missing = [key for key, there in zip(wanted, presence.there, strict=True) if not there]
                outcomes.update(
                    await self._load_missing(lane, missing, {key: permits[key].ttl_ms or 1 for key in missing})
                )
        return WarmReport(
            service=service_name,
            keys=tuple(outcomes[key] for key in keys),
            own_hits=presence.own_hits,
            own_misses=presence.own_misses,
        )

    async def _load_missing(self, lane: _Lane, keys: Sequence[str], ttl_ms: dict[str, int]) -> dict[str, KeyOutcome]:
        if lane.origin is None:
            return _all(keys, WarmOutcome.NO_ORIGIN, f"`{lane.service.name}` declares no origin in the fleet file")
        deadline_s = asyncio.get_running_loop().time() + self._deadline_s
        flights = [self._flight(lane, lane.origin, key, ttl_ms[key], deadline_s) for key in keys]
        # A load that another request shares must not end because one of them goes away.
        made = await asyncio.gather(*(asyncio.shield(flight) for flight in flights))
        return dict(zip(keys, made, strict=True))

    def _flight(
        self, lane: _Lane, origin: OriginClient, key: str, ttl_ms: int, deadline_s: float
    ) -> asyncio.Task[KeyOutcome]:
        flight = lane.flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._load(lane, origin, key, ttl_ms, deadline_s))
            lane.flights[key] = flight
            flight.add_done_callback(lambda _: lane.flights.pop(key, None))
        return flight

    async def _load(self, lane: _Lane, origin: OriginClient, key: str, ttl_ms: int, deadline_s: float) -> KeyOutcome:
        made = KeyOutcome(
            key=key, outcome=WarmOutcome.FAILED, reason=f"not begun within {self._deadline_s:g} s, ask for fewer keys"
        )
        async with lane.slots:
            if not await lane.pacer.turn(deadline_s) or asyncio.get_running_loop().time() > deadline_s:
                return made
            try:
                value = await origin.fetch(key)
                if value is None:
                    return replace(made, outcome=WarmOutcome.NOT_FOUND, reason="the origin has no such key")
                lives_ms = ttl_ms if value.ttl_ms is None else min(ttl_ms, value.ttl_ms)
                if lives_ms <= 0:
                    return replace(made, outcome=WarmOutcome.NOT_FOUND, reason="the origin's value has run out already")
                stored = await lane.cache.store(key, value.data, lives_ms)
            except (OriginFailed, CacheRefused) as error:
                return replace(made, reason=str(error))
        if not stored:
            return replace(made, outcome=WarmOutcome.ALREADY_CACHED, reason="somebody else wrote it meanwhile")
        return replace(made, outcome=WarmOutcome.WARMED, reason="loaded from the origin", ttl_ms=lives_ms)

    async def close(self) -> None:
        """Wait for the loads under way (each bounded by its origin's timeout) and close all connections."""
        lanes = list(self._lanes.values())
        self._lanes = {}
        for lane in lanes:
            await asyncio.gather(*lane.flights.values())
            await lane.cache.close()
            if lane.origin is not None:
                await lane.origin.close()


def _all(keys: Sequence[str], outcome: WarmOutcome, reason: str) -> dict[str, KeyOutcome]:
    return {key: KeyOutcome(key=key, outcome=outcome, reason=reason) for key in keys}
