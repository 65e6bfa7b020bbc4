"""Warms keys of one service from its origin: bounded, paced, each key loaded once however many ask for it.

It decides nothing: `warm_rules.permit` says which keys may be warmed and for how long, `origin_gate` whether the origin
may be asked. It never replaces a value that is there, never logs a key or a value, and starts no load after its
deadline. INVARIANT: at most `origin.concurrency` loads of a service run at once, at most `origin.rate_per_s` begin per
second, and two requests for one key share one load.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from cachewarden.errors import ConfigurationError
from cachewarden.fleet import Fleet, Origin, Service
from coordination.origin_gate import OriginGate
from coordination.warm_cache import CacheClient, CacheRefused, Presence, RedisCacheClient
from coordination.warm_origins import OriginClient, OriginFailed, make_origin
from coordination.warm_rules import KeyOutcome, Permit, WarmCourse, WarmOutcome, WarmReport, permit

__all__ = ["DEADLINE_S", "Warmer"]

DEADLINE_S: Final = 20.0
_POLL_S: Final = 0.25
"""How often somebody who waits for an origin looks whether he is still wanted."""


class _Pacer:
    """Lets calls through at most `rate_per_s` times per second, evenly, with a burst of a tenth of a second."""

    def __init__(self, rate_per_s: float) -> None:
        self._gap_s = 1.0 / rate_per_s
        self._next_s = 0.0

    async def turn(self, deadline_s: float, rate_share: float = 1.0) -> bool:
        """Wait for this call's turn; returns False, at once, if it would come after the deadline (loop time)."""
        now_s = asyncio.get_running_loop().time()
        due_s = max(self._next_s, now_s - 0.1)
        if due_s > deadline_s:
            return False
        self._next_s = due_s + self._gap_s / rate_share
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
    gate: OriginGate = field(default_factory=OriginGate)
    flights: dict[str, asyncio.Task[KeyOutcome]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Task:
    """What one request wants of its loads."""

    course: WarmCourse
    deadline_s: float


class Warmer:
    """Warms keys on request; make one per process and event loop, and close it. `fleet` may be replaced by one with
    other modes at any time."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        reserved: Sequence[str] = ("cachewarden:",),
        deadline_s: float = DEADLINE_S,
        make_cache: Callable[[Service], CacheClient] = RedisCacheClient,
        make_client: Callable[[Origin], OriginClient] = make_origin,
        make_gate: Callable[[], OriginGate] = OriginGate,
    ) -> None:
        self.fleet = fleet
        self._reserved = tuple(reserved)
        self._deadline_s = deadline_s
        self._make_cache = make_cache
        self._make_client = make_client
        self._make_gate = make_gate
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
                gate=self._make_gate(),
            )
            self._lanes[service.name] = lane
        return lane

    async def warm(self, service_name: str, keys: Sequence[str], course: WarmCourse | None = None) -> WarmReport:
        """Return one outcome per key, in order; raises UnknownService. Trouble with cache or origin is an outcome, not
        an exception."""
        course = course or WarmCourse()
        service = self.fleet.service(service_name)
        outcomes: dict[str, KeyOutcome] = {}

        def told(found: dict[str, KeyOutcome]) -> None:
            outcomes.update(found)
            for outcome in found.values():
                course.noted(outcome)

        permits = {key: permit(self.fleet, service, key, self._reserved) for key in keys}
        told({key: _made(key, WarmOutcome.FORBIDDEN, p.reason) for key, p in permits.items() if not p.allowed})
        wanted = [key for key, allowed in permits.items() if allowed.allowed]
        presence = Presence(())
        if wanted:
            try:
                lane = self._lane(service)
                presence = await lane.cache.present(wanted)
            except ConfigurationError as error:
                told(_all(wanted, WarmOutcome.NO_ORIGIN, str(error)))
            except CacheRefused as error:
                told(_all(wanted, WarmOutcome.FAILED, str(error)))
            else:
                here = [key for key, there in zip(wanted, presence.there, strict=True) if there]
                told(_all(here, WarmOutcome.ALREADY_CACHED, "the cache holds it already"))
                missing = [key for key, there in zip(wanted, presence.there, strict=True) if not there]
                await self._load_missing(lane, missing, permits, course, told)
        return WarmReport(
            service=service_name,
            keys=tuple(outcomes[key] for key in keys),
            own_hits=presence.own_hits,
            own_misses=presence.own_misses,
        )

    async def _load_missing(
        self,
        lane: _Lane,
        keys: Sequence[str],
        permits: dict[str, Permit],
        course: WarmCourse,
        told: Callable[[dict[str, KeyOutcome]], None],
    ) -> None:
        origin = lane.origin
        if origin is None:
            reason = f"`{lane.service.name}` declares no origin in the fleet file"
            told(_all(keys, WarmOutcome.NO_ORIGIN, reason))
            return
        if course.dry_run:
            told(_all(keys, WarmOutcome.WOULD_WARM, "it is missing and would be loaded from the origin"))
            return
        bound_s = float("inf") if course.patient else self._deadline_s
        task = _Task(course, asyncio.get_running_loop().time() + bound_s)
        waiting: Iterator[str] = iter(keys)

        async def work() -> None:
            # All workers draw from one iterator: there are never more loads than the origin permits, however long the
            # list is.
            for key in waiting:
                if course.stop():
                    told({key: _made(key, WarmOutcome.FAILED, "stopped before it was loaded")})
                    continue
                told({key: await self._joined(lane, origin, key, permits[key].ttl_ms or 1, task)})

        workers = min(len(keys), max(1, lane.service.origin.concurrency if lane.service.origin else 1))
        await asyncio.gather(*(work() for _ in range(workers)))

    async def _joined(self, lane: _Lane, origin: OriginClient, key: str, ttl_ms: int, task: _Task) -> KeyOutcome:
        """Return the outcome of the one load of `key`, begun here or shared with another request."""
        flight = lane.flights.get(key)
        if flight is None:
            flight = asyncio.create_task(self._load(lane, origin, key, ttl_ms, task))
            lane.flights[key] = flight
            flight.add_done_callback(lambda _: lane.flights.pop(key, None))
            # A load that another request shares must not end because this one goes away.
            return await asyncio.shield(flight)
        left_s = task.deadline_s - asyncio.get_running_loop().time()
        done, _ = await asyncio.wait((flight,), timeout=None if left_s == float("inf") else max(0.0, left_s))
        if not done:
            return _made(key, WarmOutcome.FAILED, "another request loads it and is not done yet")
        return flight.result()

    async def _load(self, lane: _Lane, origin: OriginClient, key: str, ttl_ms: int, task: _Task) -> KeyOutcome:
        late = f"not begun within {self._deadline_s:g} s, ask for fewer keys"
        loop = asyncio.get_running_loop()
        async with lane.slots:
            if not task.course.patient and lane.gate.blocked(_now_ms()):
                return _made(key, WarmOutcome.FAILED, lane.gate.reason())
            if not await lane.pacer.turn(task.deadline_s, task.course.rate_share) or loop.time() > task.deadline_s:
                return _made(key, WarmOutcome.FAILED, late)
            refusal = await self._entered(lane, task)
            if refusal is not None:
                return _made(key, WarmOutcome.FAILED, refusal)
            outage = True
            try:
                value = await origin.fetch(key)
                outage = False
            except OriginFailed as error:
                outage = error.outage
                return _made(key, WarmOutcome.FAILED, str(error))
            finally:
                lane.gate.ended(_now_ms(), outage=outage)
            if value is None:
                return _made(key, WarmOutcome.NOT_FOUND, "the origin has no such key")
            lives_ms = ttl_ms if value.ttl_ms is None else min(ttl_ms, value.ttl_ms)
            if lives_ms <= 0:
                return _made(key, WarmOutcome.NOT_FOUND, "the origin's value has run out already")
            try:
                stored = await lane.cache.store(key, value.data, lives_ms)
            except CacheRefused as error:
                return _made(key, WarmOutcome.FAILED, str(error))
        if not stored:
            return _made(key, WarmOutcome.ALREADY_CACHED, "somebody else wrote it meanwhile")
        return replace(_made(key, WarmOutcome.WARMED, "loaded from the origin"), ttl_ms=lives_ms)

    async def _entered(self, lane: _Lane, task: _Task) -> str | None:
        """Wait, where that was asked for, until the origin may be asked; returns why it may not."""
        while True:
            wait_ms = lane.gate.enter(_now_ms())
            if wait_ms == 0:
                return None
            if not task.course.patient or lane.gate.given_up:
                return lane.gate.reason()
            if task.course.stop():
                return "stopped before it was loaded"
            await asyncio.sleep(min(_POLL_S, wait_ms / 1000))

    async def close(self) -> None:
        """Wait for the loads under way (each bounded by its origin's timeout) and close all connections."""
        lanes = list(self._lanes.values())
        self._lanes = {}
        for lane in lanes:
            await asyncio.gather(*lane.flights.values(), return_exceptions=True)
            await lane.cache.close()
            if lane.origin is not None:
                await lane.origin.close()


def _now_ms() -> int:
    return int(asyncio.get_running_loop().time() * 1000)


def _made(key: str, outcome: WarmOutcome, reason: str) -> KeyOutcome:
    return KeyOutcome(key=key, outcome=outcome, reason=reason)


def _all(keys: Sequence[str], outcome: WarmOutcome, reason: str) -> dict[str, KeyOutcome]:
    return {key: _made(key, outcome, reason) for key in keys}
