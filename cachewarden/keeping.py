"""Keeping a cache warm by itself: effects, events and the port of the agent that does it, and the arithmetic of early
refreshes.

Names of keys never appear here: the adapter behind the port remembers them. It decides nothing but whether one key is
due. INVARIANT: a key is refreshed only before its deadline, and never because of anything but its remaining time and
how long its load takes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from cachewarden.errors import OperatingError
from cachewarden.machine import Effect

__all__ = [
    "CacheLife",
    "HotRefreshed",
    "HotRemembered",
    "HotWarmed",
    "KeepWarm",
    "LifeRead",
    "ReadLife",
    "RefreshHot",
    "RememberHot",
    "WarmHot",
    "due_early",
    "keeping_performers",
]


def due_early(remaining_ms: int, load_ms: float, period_ms: int, draw: float, beta: float = 1.0) -> bool:
    """Return whether a key is to be loaded anew before it expires.

    XFetch (Vattani, Chierichetti and Lowenstein, VLDB'15): early by `load_ms * beta * -ln(draw)`, so that many keys
    with one deadline are not loaded in one moment. `draw` lies in (0, 1]; `period_ms` is the time until somebody looks
    again, by which a key would be missed. A key without a deadline, or one that is gone, is never due.
    """
    if remaining_ms <= 0:
        return False
    return remaining_ms - period_ms <= load_ms * beta * -math.log(max(draw, 1e-12))


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLife:
    """What tells one life of a server from another. Counters are cumulative."""

    run_id: str
    role: str
    keys: int
    evicted_keys: int
    loading: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadLife(Effect):
    """INFO of one cache; answered by `LifeRead`."""

    service: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RememberHot(Effect):
    """Look for the hottest `limit` keys and remember them in the adapter; answered by `HotRemembered`."""

    service: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmHot(Effect):
    """Load those of `count` remembered keys from place `start` on that are missing, the hottest first, at `rate_share`
    (0..1) of the origin's rate; answered by `HotWarmed`."""

    service: str
    rate_share: float
    start: int
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshHot(Effect):
    """Load remembered keys anew that are about to expire; `period_ms` until it is asked again; answered by
    `HotRefreshed`."""

    service: str
    period_ms: int
    rate_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LifeRead:
    ref: str
    service: str
    life: CacheLife


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRemembered:
    ref: str
    service: str
    keys: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HotWarmed:
    """`counts`: keys by outcome of warming; without any, no more are remembered."""

    ref: str
    service: str
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotRefreshed:
    """`counts`: keys that were `refreshed`, `overtaken` by a write of the application, `failed`, `other_type`."""

    ref: str
    service: str
    counts: Mapping[str, int] = field(default_factory=dict)


class KeepWarm(Protocol):
    """The caches and origins of the services that may be kept warm. All methods raise OperatingError."""

    async def life(self, service: str) -> CacheLife: ...

    async def remember(self, service: str, limit: int) -> int: ...

    async def warm(self, service: str, rate_share: float, start: int, count: int) -> Mapping[str, int]: ...

    async def refresh(self, service: str, period_ms: int, rate_share: float) -> Mapping[str, int]: ...

    async def close(self) -> None: ...


def keeping_performers(port: KeepWarm | None) -> dict[type[Effect], Callable[[Any], Awaitable[Any]]]:
    """Return how each effect of this module is performed; without a port it fails as an OperatingError."""

    def need() -> KeepWarm:
        if port is None:
            raise OperatingError("this agent keeps no cache warm")
        return port

    async def life(e: ReadLife) -> LifeRead:
        return LifeRead(ref=e.ref, service=e.service, life=await need().life(e.service))

    async def remember(e: RememberHot) -> HotRemembered:
        return HotRemembered(ref=e.ref, service=e.service, keys=await need().remember(e.service, e.limit))

    async def warm(e: WarmHot) -> HotWarmed:
        counts = await need().warm(e.service, e.rate_share, e.start, e.count)
        return HotWarmed(ref=e.ref, service=e.service, counts=counts)

    async def refresh(e: RefreshHot) -> HotRefreshed:
        counts = await need().refresh(e.service, e.period_ms, e.rate_share)
        return HotRefreshed(ref=e.ref, service=e.service, counts=counts)

    return {ReadLife: life, RememberHot: remember, WarmHot: warm, RefreshHot: refresh}
