"""What is known of one live cache when a what-if is asked: counters, memory, configuration, and samples if there are
any.

It decides nothing. A field that was not measured is None, never a guess.

INVARIANT: an `Evidence` is consistent with itself: ratios lie in 0..1, memory and counts are not negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.eviction import ResidentSet
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.estimate import Estimate
from cachewarden.knobs import EVICTION_POLICIES, EvictionPolicy

__all__ = ["CacheConfiguration", "Evidence", "MissShares", "PrefixEvidence", "ResidentSample", "TtlStats"]


@dataclass(frozen=True, slots=True)
class CacheConfiguration:
    """The knobs that decide which keys stay. `maxmemory_bytes` 0 = no limit; `ttl_ms` a fixed TTL given at every load,
    None = none known; where prefixes live by different ones it stands for all of them, and an unchanged one leaves each
    its own. `prefix_ttls_ms` (prefix, TTL) of prefixes that are given another TTL.
    """

    maxmemory_bytes: int
    eviction_policy: EvictionPolicy = "allkeys-lru"
    maxmemory_samples: int = 5
    lfu_log_factor: int = 10
    lfu_decay_time_min: int = 1
    ttl_ms: int | None = None
    prefix_ttls_ms: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        if self.maxmemory_bytes < 0:
            raise ValueError(f"maxmemory `{self.maxmemory_bytes}` is negative, use 0 for no limit")
        if self.eviction_policy not in EVICTION_POLICIES:
            known = ", ".join(EVICTION_POLICIES)
            raise ValueError(f"unknown eviction policy `{self.eviction_policy}`, use one of {known}")
        if self.maxmemory_samples < 1 or self.lfu_log_factor < 0 or self.lfu_decay_time_min < 0:
            raise ValueError("maxmemory-samples must be at least 1, lfu-log-factor and lfu-decay-time at least 0")
        for ttl_ms in (self.ttl_ms, *(given for _, given in self.prefix_ttls_ms)):
            if ttl_ms is not None and ttl_ms <= 0:
                raise ValueError(f"ttl of `{ttl_ms}` ms is impossible, use None for no TTL")

    @property
    def family(self) -> str:
        """Return `lru`, `lfu`, `random`, `ttl` or `noeviction`."""
        return self.eviction_policy.rpartition("-")[2]

    @property
    def only_volatile(self) -> bool:
        """Say whether only keys with a TTL may be evicted."""
        return self.eviction_policy.startswith("volatile-")


@dataclass(frozen=True, slots=True)
class MissShares:
    """Why lookups miss, as shares of all misses: never seen before, expired, evicted, or refused at the last load;
    they sum to 1.
    """

    cold: float
    expired: float
    evicted: float
    refused: float

    def __post_init__(self) -> None:
        shares = (self.cold, self.expired, self.evicted, self.refused)
        if min(shares) < 0 or abs(sum(shares) - 1.0) > 1e-6:
            raise ValueError(f"miss shares must be non-negative and sum to 1, got {shares}")


@dataclass(frozen=True, slots=True)
class TtlStats:
    """TTLs of sampled residents: share of the keys that have one (0..1) and their mean remaining time."""

    key_share: float
    mean_remaining_ms: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ResidentSample:
    """Random residents, one row each; -1 = unknown, in `ttl_ms` (remaining) = none. `frequency` is the LFU counter,
    decayed up to the look. `cost_us` of server time that looking took, None = not measured. Raises ValueError if the
    columns differ in length.
    """

    idle_ms: npt.NDArray[np.int64]
    size_bytes: npt.NDArray[np.int64]
    ttl_ms: npt.NDArray[np.int64]
    frequency: npt.NDArray[np.int32]
    cost_us: float | None = None

    def __post_init__(self) -> None:
        if not len(self.idle_ms) == len(self.size_bytes) == len(self.ttl_ms) == len(self.frequency):
            raise ValueError("every column of a sample of residents needs one row per key")

    def __len__(self) -> int:
        return len(self.idle_ms)

    @classmethod
    def of_idle_times(cls, idle_ms: npt.ArrayLike) -> ResidentSample:
        """Return a sample of which nothing but the idle times is known."""
        idle = np.asarray(idle_ms, dtype=np.int64)
        unknown = np.full(len(idle), -1, dtype=np.int64)
        return cls(idle, unknown, unknown, unknown.astype(np.int32))

    def rows(self, chosen: npt.NDArray[np.bool_]) -> ResidentSample:
        """Return the chosen rows."""
        return replace(
            self,
            idle_ms=self.idle_ms[chosen],
            size_bytes=self.size_bytes[chosen],
            ttl_ms=self.ttl_ms[chosen],
            frequency=self.frequency[chosen],
        )


@dataclass(frozen=True, slots=True, eq=False)
class PrefixEvidence:
    """What is known of one prefix (`""`: the keys that match none); None = not measured.

    `trace` its captured accesses with fills folded in; `lookups_share` of all lookups; `hit_ratio` measured;
    `keys_share` and `bytes_share` of the residents, from the keyspace sample; `idle_ms` of its sampled residents;
    `ttl_ms` its usual TTL, None = none.
    """

    pattern: str
    trace: AccessTrace | None
    lookups_share: float | None
    hit_ratio: Estimate | None = None
    keys_share: Estimate | None = None
    bytes_share: Estimate | None = None
    idle_ms: npt.NDArray[np.int64] | None = None
    ttl_ms: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """One cache over one observation window.

    `hit_ratio` 0..1 over the window, own probes subtracted. `used_memory_bytes` as the server counts it against
    maxmemory; `fixed_overhead_bytes` the part that is not entries. `mean_entry_bytes` memory per resident key. Samples:
    `idle_ms` of random residents; `trace` the access sample, kept at spatial rate `sampling_rate` of `all_accesses`
    (None = not counted) and ended at `capture_end_ms`; `residents` present when the capture began, kept by the same
    filter; `sampled` all that is known of random residents (None: their idle times at most). `window_parts` (lookups,
    misses) of consecutive parts of the window. `prefixes` what of all this is known of each key prefix. Rates per
    second of evicted and expired keys and refused writes, None = not measured. Raises ValueError when inconsistent.
    """

    lookups_per_s: float
    hit_ratio: float
    maxmemory_bytes: int
    used_memory_bytes: int
    fixed_overhead_bytes: int
    resident_keys: int
    mean_entry_bytes: float
    current: CacheConfiguration
    misses: MissShares | None = None
    idle_ms: npt.NDArray[np.int64] | None = None
    eviction_age_ms: int | None = None
    trace: AccessTrace | None = None
    sampling_rate: float = 1.0
    all_accesses: int | None = None
    capture_end_ms: int | None = None
    residents: ResidentSet | None = None
    ttl: TtlStats | None = None
    evicted_per_s: float | None = None
    expired_per_s: float | None = None
    refused_per_s: float | None = None
    sampled: ResidentSample | None = None
    window_parts: tuple[tuple[int, int], ...] = ()
    prefixes: tuple[PrefixEvidence, ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 <= self.hit_ratio <= 1.0:
            raise ValueError(f"hit ratio `{self.hit_ratio}` is not within 0 to 1")
        if self.maxmemory_bytes != self.current.maxmemory_bytes:
            raise ValueError(
                f"maxmemory is observed as `{self.maxmemory_bytes}` but configured as `{self.current.maxmemory_bytes}`"
            )
        if min(self.lookups_per_s, self.used_memory_bytes, self.fixed_overhead_bytes, self.resident_keys) < 0:
            raise ValueError("lookups, memory and resident keys must not be negative")
        if not 0.0 < self.sampling_rate <= 1.0:
            raise ValueError(f"sampling rate `{self.sampling_rate}` is not within 0 to 1")

    @property
    def looked_at(self) -> ResidentSample | None:
        """Return the sampled residents, of which there may be nothing but idle times."""
        if self.sampled is None and self.idle_ms is not None:
            return ResidentSample.of_idle_times(self.idle_ms)
        return self.sampled

    @property
    def full(self) -> bool:
        """Say whether memory binds: used memory within 3 % of maxmemory (eviction keeps it just below)."""
        return self.maxmemory_bytes > 0 and self.used_memory_bytes >= 0.97 * self.maxmemory_bytes

    def thinned(self, share: float) -> Evidence:
        """Return the same evidence with a spatial share (0..1] of the access sample."""
        if self.trace is None or share >= 1.0:
            return self
        rate = self.sampling_rate * share
        prefixes = tuple(p if p.trace is None else replace(p, trace=p.trace.thin(rate)) for p in self.prefixes)
        return replace(self, trace=self.trace.thin(rate), sampling_rate=rate, prefixes=prefixes)

    def capacity_bytes(self, configuration: CacheConfiguration) -> float:
        """Return the memory left for entries under a configuration, infinity without a limit."""
        if configuration.maxmemory_bytes == 0:
            return float("inf")
        return float(max(0, configuration.maxmemory_bytes - self.fixed_overhead_bytes))

    def refuses(self, configuration: CacheConfiguration) -> bool | None:
        """Say whether a full cache would refuse writes for want of anything to evict; None if some keys have a TTL and
        some have not, or unknown.
        """
        if configuration.family == "noeviction":
            return True
        if not configuration.only_volatile or configuration.ttl_ms is not None:
            return False
        if self.ttl is None:
            return None
        return True if self.ttl.key_share <= 0.02 else False if self.ttl.key_share >= 0.98 else None
