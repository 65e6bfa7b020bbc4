"""Finds the hottest keys of a cache and touches them, so that a switch of the eviction policy does not throw them away.

Their names stay in the memory of this object, nowhere else, and are dropped with it. It never reads a value.

INVARIANT: no TOUCH is sent once the fence in the cache is not the lease's.
"""

from __future__ import annotations

import asyncio
import heapq
from typing import Final

from cachewarden.messages import Lease
from cachewarden.ports import Spread
from coordination.redis_probe import Pacer
from coordination.redis_wire import BATCH_COMMANDS, RedisWire, require

__all__ = ["HotKeys"]

_SCAN_COUNT: Final = 200
_TOUCH_BATCH: Final = 280
"""Touches in one command: about 0.2 ms of the server, and so few round trips that a busy client keeps the rate."""
_HOTTEST_PART: Final = 5
_NEW_KEY_COUNTS: Final = 5
"""LFU_INIT_VAL of the servers' `server.h`."""


class HotKeys:
    """The hot set that was last collected; empty at first."""

    def __init__(self, wire: RedisWire, fence_key: str) -> None:
        self._wire = wire
        self._fence_key = fence_key
        self._names: list[bytes] = []

    @property
    def names(self) -> tuple[bytes, ...]:
        """The hottest first; for adapters only."""
        return tuple(self._names)

    def __len__(self) -> int:
        return len(self._names)

    async def collect(self, limit: int, examined_max: int, *, lfu: bool, own_prefix: bytes, pacer: Pacer) -> int:
        """Look at up to about `examined_max` keys and remember the `limit` hottest: least idle, or most frequent under
        LFU.

        SCAN goes in the order of a seeded hash, so what it meets first is a fair sample of a keyspace that is larger
        than the bound.
        """
        question = "FREQ" if lfu else "IDLETIME"
        sign = -1 if lfu else 1
        best: list[tuple[int, bytes]] = []
        cursor = examined = 0
        while True:
            await pacer.spend(_SCAN_COUNT)
            cursor_reply, names = await self._wire.call("SCAN", cursor, "COUNT", _SCAN_COUNT)
            cursor = int(cursor_reply)
            replies = await self._wire.ask([("OBJECT", question, name) for name in names])
            heats = [require(self._wire.service, reply) for reply in replies]
            found = [
                (sign * heat, name)
                for name, heat in zip(names, heats, strict=True)
                if heat is not None and not name.startswith(own_prefix)
            ]
            best = heapq.nsmallest(limit, {name: (heat, name) for heat, name in best + found}.values())
            examined += len(names)
            if cursor == 0 or examined >= examined_max:
                break
        self._names = [name for _, name in best]
        return len(self._names)

    async def spread(self, limit: int, pacer: Pacer) -> Spread:
        """Compare the frequencies of up to `limit` of the remembered keys, evenly chosen, with that of a new key.

        Raises TargetRefused where the policy is no LFU.
        """
        every = max(1, -(-len(self._names) // max(1, limit)))
        chosen, heats = self._names[::every], list[int]()
        for start in range(0, len(chosen), BATCH_COMMANDS):
            part = chosen[start : start + BATCH_COMMANDS]
            await pacer.spend(len(part))
            replies = await self._wire.ask([("OBJECT", "FREQ", name) for name in part])
            found = [require(self._wire.service, reply) for reply in replies]
            heats += [int(heat) for heat in found if heat is not None]
        return Spread(examined=len(heats), above=sum(heat > _NEW_KEY_COUNTS for heat in heats))

    async def touch(self, lease: Lease, times: int, keys_per_s: int) -> int:
        """TOUCH the remembered keys, the hottest fifth `2 * times` times, the others `times // 2` times, at no more
        than `keys_per_s` touches; returns how many existed.

        Key after key, the hottest first, so that those are safe soonest while keys are written. Lifted all alike, half
        of a cache would be as hard to evict as its hot set, and the hot set fall below new keys when its counters
        decay. Raises StaleFencingToken as soon as the fence has moved.
        """
        if keys_per_s < 1:
            raise ValueError(f"`keys_per_s` must be at least 1, got `{keys_per_s}`")
        if times < 1:
            return 0
        hottest = -(-len(self._names) // _HOTTEST_PART)
        existing = await self._touch(lease, self._names[:hottest], 2 * times, keys_per_s)
        return existing + await self._touch(lease, self._names[hottest:], max(1, times // 2), keys_per_s)

    async def _touch(self, lease: Lease, names: list[bytes], times: int, keys_per_s: int) -> int:
        loop = asyncio.get_running_loop()
        batch = max(1, min(_TOUCH_BATCH, keys_per_s) // times)
        existing, next_at_s = 0, loop.time()
        for start in range(0, len(names), batch):
            part = names[start : start + batch]
            await asyncio.sleep(max(0.0, next_at_s - loop.time()))
            next_at_s = max(next_at_s, loop.time()) + len(part) * times / keys_per_s
            async with self._wire.session() as session:
                (touched,) = await session.write_fenced(self._fence_key, lease, [("TOUCH", *(part * times))])
            existing += int(touched) // times
        return existing
