"""Memory that holds what nobody reads: keys that expired but are still there, and keys that are not asked for.

What a server does not show is not made up: expired keys never come up in a sample (looking at one deletes it), so
their share is the server's own estimate (INFO `expired_stale_perc`), and only what such a key weighs is sampled here.
Whether a key is read is told by the capture alone, and only of keys that pass its spatial filter; idle times, which
writes reset too, stand in where there is no capture. It never says for how much longer a key will not be read.

INVARIANT: an estimate lies between nothing and the memory of all entries; without enough sampled keys there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.fixed_size_sample import ratio_estimate
from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.estimate import Estimate

__all__ = ["DeadMemory", "Residents", "expired_memory", "lookups_of_unread", "unread_memory"]


@dataclass(frozen=True, slots=True, eq=False)
class Residents:
    """Sampled residents, one row each: keyed `key` uint64, `size_bytes` int64 (-1 unknown), `idle_ms` int64 (-1
    unknown), `ttl_ms` int64 remaining (-1 none); `entry_bytes` the memory of all entries of the cache.
    """

    key: npt.NDArray[np.uint64]
    size_bytes: npt.NDArray[np.int64]
    idle_ms: npt.NDArray[np.int64]
    ttl_ms: npt.NDArray[np.int64]
    entry_bytes: int

    def __post_init__(self) -> None:
        if not len(self.key) == len(self.size_bytes) == len(self.idle_ms) == len(self.ttl_ms):
            raise ValueError("the columns of sampled residents need the same length")
        if self.entry_bytes < 0:
            raise ValueError(f"memory of `{self.entry_bytes}` bytes is impossible")

    @property
    def weights(self) -> npt.NDArray[np.float64]:
        """Return sizes in bytes; all 1 where one is unknown, so that shares of keys stand for shares of memory."""
        known = np.all(self.size_bytes > 0)
        return self.size_bytes.astype(np.float64) if known else np.ones(len(self.key))


@dataclass(frozen=True, slots=True)
class DeadMemory:
    """Bytes held for nothing over a horizon, and how that was found."""

    held_bytes: Estimate
    share: Estimate
    horizon_ms: int
    method: str


def unread_memory(
    residents: Residents,
    seed: int,
    *,
    capture: AccessTrace | None = None,
    spatial_rate: float = 1.0,
    idle_from_ms: int | None = None,
) -> DeadMemory | str:
    """Return the memory of keys that were not read while the capture ran or, without one, that nobody touched for
    `idle_from_ms`; or in words why the sample cannot tell.

    `capture` with the hashes of the same secret, kept at `spatial_rate`, ended when the residents were sampled; leave
    out the reads that missed, they only loaded their key. A key that was loaded just now counts as unread until it is.
    """
    weights = residents.weights
    if capture is not None and capture.duration_ms > 0:
        judged = SpatialFilter(spatial_rate).keeps_each(residents.key)
        read = np.isin(residents.key, capture.key[capture.op == Op.READ])
        horizon_ms = capture.duration_ms
        method = (
            f"sampled residents that a capture of {horizon_ms / 1000:.0f} s at rate {spatial_rate:g} saw nobody read"
        )
        unread = ~read
    elif idle_from_ms is not None and np.any(residents.idle_ms >= 0):
        judged = residents.idle_ms >= 0
        horizon_ms = idle_from_ms
        method = f"sampled residents that nobody touched for {horizon_ms / 1000:.0f} s"
        unread = residents.idle_ms >= idle_from_ms
    else:
        return "neither a capture nor idle times and a horizon are known, so nobody can say which keys are read"
    part = np.where(unread, weights, 0.0)[judged]
    share = ratio_estimate(part, weights[judged], seed)
    if isinstance(share, str):
        return share
    return DeadMemory(_scaled(share, residents.entry_bytes), share, horizon_ms, method)


def lookups_of_unread(residents: Residents, keys_per_sampled: float, idle_from_ms: int) -> float | str:
    """Return the most lookups per second that go to keys which nobody touched for `idle_from_ms`, or why it is not
    known.

    In a steady state no more keys leave that class by being read than come into it, and the keys that came into it
    within the last `idle_from_ms` are those idle for up to twice that. `keys_per_sampled` is what each sampled key
    stands for. The high end of a Poisson count's 90 % interval is taken.
    """
    known = residents.idle_ms >= 0
    if not np.any(known) or idle_from_ms <= 0:
        return "idle times are not known"
    came = int(np.count_nonzero(known & (residents.idle_ms >= idle_from_ms) & (residents.idle_ms < 2 * idle_from_ms)))
    high = came + 1.645 * float(np.sqrt(came)) + 1.35
    return keys_per_sampled * high * 1000.0 / idle_from_ms


def expired_memory(residents: Residents, seed: int, *, stale_share: float | None) -> DeadMemory | str:
    """Return the memory of keys whose TTL has run out but which are still there, or in words why it is not known.

    `stale_share` (0..1) of the keys with a TTL, as the server's own expiry found them (INFO `expired_stale_perc` /
    100, a running mean). The interval is that of the memory of keys with a TTL alone: the server does not say how sure
    its share is.
    """
    if stale_share is None:
        return "the server does not say how many of its keys have expired (INFO `expired_stale_perc`)"
    if not 0.0 <= stale_share <= 1.0:
        raise ValueError(f"share of expired keys `{stale_share}` is not within 0 to 1")
    weights = residents.weights
    volatile = residents.ttl_ms >= 0
    found = ratio_estimate(np.where(volatile, weights, 0.0), weights, seed)
    if isinstance(found, str):
        return found
    share = Estimate(found.value * stale_share, found.low * stale_share, found.high * stale_share)
    method = "the server's share of expired keys, weighed like the sampled keys that have a TTL"
    return DeadMemory(_scaled(share, residents.entry_bytes), share, 0, method)


def _scaled(share: Estimate, entry_bytes: int) -> Estimate:
    return Estimate(share.value * entry_bytes, share.low * entry_bytes, share.high * entry_bytes)
