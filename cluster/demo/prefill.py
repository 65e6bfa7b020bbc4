"""Gives caches their past at full speed, through the same cache-aside client as the load.

Lookups are asked with TOUCH, which refreshes and counts like GET but sends no value back. Keys with a TTL come last,
since their time runs as soon as they are stored. INVARIANT: rows reach a cache in the order of the past, so its LRU
order is right to the second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from cluster.demo.aside import CacheAside, Requests
from simulation.past import past_of
from simulation.workload import Arrivals, Workload

__all__ = ["prefill"]

_CHUNK_ROWS = 400


async def prefill(clients: Sequence[tuple[Workload, Sequence[CacheAside]]]) -> None:
    """Replay the past of each workload into each of its caches, all side by side, and return when all have answered."""
    pasts = [past_of(workload) for workload, _ in clients]
    await asyncio.gather(*(_replay(past.replayed, caches) for past, (_, caches) in zip(pasts, clients, strict=True)))
    await asyncio.gather(*(_store(past.expiring, caches) for past, (_, caches) in zip(pasts, clients, strict=True)))


async def _replay(rows: Arrivals, caches: Sequence[CacheAside]) -> None:
    for start in range(0, len(rows), _CHUNK_ROWS):
        requests = Requests(rows.rows(slice(start, start + _CHUNK_ROWS)), verb=b"TOUCH")
        done = [asyncio.get_running_loop().create_future() for _ in caches]
        for cache, future in zip(caches, done, strict=True):
            cache.send(requests, partial(future.set_result, None))
        await asyncio.gather(*done)


async def _store(rows: Arrivals, caches: Sequence[CacheAside]) -> None:
    for start in range(0, len(rows), _CHUNK_ROWS):
        requests = Requests(rows.rows(slice(start, start + _CHUNK_ROWS)))
        done = [asyncio.get_running_loop().create_future() for _ in caches]
        for cache, future in zip(caches, done, strict=True):
            cache.store_all(requests, partial(future.set_result, None))
        await asyncio.gather(*done)
