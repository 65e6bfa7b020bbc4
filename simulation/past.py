"""What a cache holds before the load starts: the workload's past as rows to replay.

It computes; whoever prefills sends. Keys without TTL are replayed in order, so that the cache's own eviction decides
which stay. Keys with a TTL cannot be replayed faster than life, since the server's clock does not run faster: what
would be left of them is computed.

INVARIANT: a key with a TTL never gets more than the TTL that the application writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cachewarden.cachemodel.trace import Op
from simulation.workload import Arrivals, Workload

__all__ = ["PastOfCache", "past_of"]

_LOOK_BACK_TTLS = 4
"""A key's load times forget where they began after a few TTLs."""


@dataclass(frozen=True, slots=True, eq=False)
class PastOfCache:
    """`replayed`: lookups and writes without TTL, oldest first. `expiring`: one row per key still alive, ttl_ms =
    what remains."""

    replayed: Arrivals
    expiring: Arrivals


def past_of(workload: Workload) -> PastOfCache:
    """Return the past of a workload up to time 0."""
    recent_ms = workload.spec.past.recent_ms
    ttls = [p.ttl_ms for p in workload.spec.prefixes]
    recent = workload.between(-recent_ms, 0)
    everything = Arrivals.concat([workload.long_ago(), recent])
    replayed = everything.rows(everything.ttl_ms == 0)
    look_back_ms = min(recent_ms, _LOOK_BACK_TTLS * max(ttls))
    return PastOfCache(replayed, _alive(recent.rows((recent.ttl_ms > 0) & (recent.time_ms >= -look_back_ms))))


def _alive(rows: Arrivals) -> Arrivals:
    """Return the last load of each key that has not expired at time 0, in the order of these loads, with its
    remaining TTL."""
    expires_ms: dict[int, int] = {}
    loaded_row: dict[int, int] = {}
    columns = zip(rows.time_ms.tolist(), rows.key.tolist(), rows.op.tolist(), rows.ttl_ms.tolist(), strict=True)
    for row, (time_ms, key, op, ttl_ms) in enumerate(columns):
        if op == Op.WRITE or expires_ms.get(key, time_ms) <= time_ms:
            expires_ms[key] = time_ms + ttl_ms
            loaded_row[key] = row
    kept = np.array(sorted(loaded_row[key] for key, until in expires_ms.items() if until > 0), dtype=np.int64)
    alive = rows.rows(kept)
    return Arrivals(
        alive.time_ms, alive.key, alive.op, alive.size_bytes, alive.ttl_ms + alive.time_ms, alive.prefix, alive.prefixes
    )
