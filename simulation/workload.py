"""Synthetic cache traffic: who asks for which key when, drawn from a seed.

It decides what the demo fleet and the simulator are asked for, never what a cache answers. Calibrated synthetic, not
a recorded trace: popularity is Zipf over *slots*, and each slot now and then gets a new key, as content goes out of
use in real caches, so that a frozen cache ages and a learning one does not. Sizes are lognormal with the spread of
Meta's published distributions.

INVARIANT: the same spec and seed give the same stream, however it is cut into ticks; any moment, also of the past,
can be drawn on its own.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace, Op

__all__ = ["Arrivals", "KeyPrefix", "Past", "Workload", "WorkloadSpec", "key_name"]

_BLOCK_MS = 1_000
_EPOCH_BLOCK = 1 << 40
"""Added to block numbers, which are negative in the past, since seeds must not be negative."""
_ONE_HIT, _SCAN, _POPULAR = 1, 2, 3
_KEY_HEX_DIGITS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPrefix:
    """Keys that begin with `prefix`: their share of all keys (0..1] and the TTL that the application writes (0 =
    none)."""

    prefix: str
    share: float
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What the cache has been through before time 0.

    long_ago_requests: lookups made when `turnover` (0..1) of today's keys had other keys in their places; they filled
    the cache. recent_ms: how much of the immediate past, with today's keys, came after that.
    """

    long_ago_requests: int = 0
    turnover: float = 0.0
    recent_ms: int = 120_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSpec:
    """The traffic of one service.

    rate_per_s: arrivals per second, Poisson. universe: popular keys alive at any moment. Their popularity falls with
    the rank as (rank + zipf_offset) ** -zipf_skew (Zipf-Mandelbrot; the offset keeps single keys from deciding the
    hit ratio). replaced_per_s: keys per second that go out of use for good and are followed by a new key of the same
    popularity. one_hit_share, scan_share, write_share: shares of the arrivals in 0..1 for keys never asked for again,
    for a walk round `scan_universe` keys, and for writes of popular keys. size_median_bytes, size_sigma: lognormal
    value sizes, cut to `size_limits_bytes`. Raises ValueError for shares that do not add up or an empty universe.
    """

    service: str
    rate_per_s: float
    universe: int
    zipf_skew: float
    prefixes: tuple[KeyPrefix, ...]
    zipf_offset: float = 0.0
    replaced_per_s: float = 0.0
    one_hit_share: float = 0.0
    scan_share: float = 0.0
    scan_universe: int = 0
    write_share: float = 0.0
    size_median_bytes: int = 1_000
    size_sigma: float = 0.75
    size_limits_bytes: tuple[int, int] = (64, 8_192)
    past: Past = Past()

    def __post_init__(self) -> None:
        if self.universe < 1 or self.rate_per_s <= 0:
            raise ValueError(f"workload of `{self.service}` needs a universe and a rate above 0")
        if not self.prefixes or not math.isclose(sum(p.share for p in self.prefixes), 1.0, abs_tol=1e-6):
            raise ValueError(f"the shares of the key prefixes of `{self.service}` must add up to 1")
        if self.one_hit_share + self.scan_share + self.write_share > 1.0:
            raise ValueError(f"one-hit, scan and write shares of `{self.service}` add up to more than 1")
        if self.scan_share > 0 and self.scan_universe < 1:
            raise ValueError(f"`{self.service}` scans, so it needs a scan_universe")


@dataclass(frozen=True, slots=True, eq=False)
class Arrivals:
    """Requests in time order, arrays of equal length.

    time_ms int64; key uint64; op uint8 (`cachemodel.trace.Op`); size_bytes int32, length of the value to store;
    ttl_ms int64, 0 = none; prefix uint8, index into `prefixes`.
    """

    time_ms: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    op: npt.NDArray[np.uint8]
    size_bytes: npt.NDArray[np.int32]
    ttl_ms: npt.NDArray[np.int64]
    prefix: npt.NDArray[np.uint8]
    prefixes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.time_ms)

    def rows(self, selection: npt.NDArray[np.bool_] | npt.NDArray[np.int64] | slice) -> Arrivals:
        """Return the selected rows, in the same order."""
        return Arrivals(
            self.time_ms[selection],
            self.key[selection],
            self.op[selection],
            self.size_bytes[selection],
            self.ttl_ms[selection],
            self.prefix[selection],
            self.prefixes,
        )

    def slice_time(self, from_ms: int, to_ms: int) -> Arrivals:
        """Return the rows with from_ms <= time_ms < to_ms."""
        first, last = np.searchsorted(self.time_ms, [from_ms, to_ms], side="left")
        return self.rows(slice(int(first), int(last)))

    def as_trace(self) -> AccessTrace:
        """Return the same requests for the cache models, with the memory of the whole entry as size."""
        key_len = max(len(p) for p in self.prefixes) + _KEY_HEX_DIGITS
        sizes, inverse = np.unique(self.size_bytes, return_inverse=True)
        with_ttl = bool(np.any(self.ttl_ms))
        entries = np.array([entry_bytes(key_len, int(size), with_ttl) for size in sizes], dtype=np.int32)
        whole = entries[inverse] if len(sizes) else self.size_bytes
        return AccessTrace.of(self.time_ms, self.key, self.op, whole, self.ttl_ms)

    @staticmethod
    def concat(parts: list[Arrivals]) -> Arrivals:
        """Return the parts one after the other; all must share `prefixes`. Raises ValueError for an empty list."""
        if not parts:
            raise ValueError("nothing to put together, give at least one part")
        if len(parts) == 1:
            return parts[0]
        return Arrivals(
            np.concatenate([p.time_ms for p in parts]),
            np.concatenate([p.key for p in parts]),
            np.concatenate([p.op for p in parts]),
            np.concatenate([p.size_bytes for p in parts]),
            np.concatenate([p.ttl_ms for p in parts]),
            np.concatenate([p.prefix for p in parts]),
            parts[0].prefixes,
        )


def key_name(prefix: str, key: int) -> str:
    """Return the name under which a cache knows the key."""
    return f"{prefix}{key:016x}"


def _uniform(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.float64]:
    """Return a number in (0, 1) for each 64-bit value."""
    uniform: npt.NDArray[np.float64] = ((value >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    return uniform


class Workload:
    """The stream of one service. Pure: methods depend on spec, seed and arguments only; a block is kept for speed."""

    def __init__(self, spec: WorkloadSpec, seed: int) -> None:
        self.spec = spec
        self._seeds = (seed, zlib.crc32(spec.service.encode()))
        self._salt = int(np.random.default_rng(self._seeds).integers(1, 1 << 62))
        weights = (np.arange(1, spec.universe + 1, dtype=np.float64) + spec.zipf_offset) ** -spec.zipf_skew
        self.popularity: npt.NDArray[np.float64] = weights / weights.sum()
        """Share of the popular requests that each slot takes, falling."""
        self._cumulative = np.cumsum(self.popularity)
        self._phase = _uniform(self._ids(_POPULAR, np.arange(spec.universe, dtype=np.uint64), np.uint64(1 << 20)))
        self._ends = np.cumsum([p.share for p in spec.prefixes])
        self._ttls = np.array([p.ttl_ms for p in spec.prefixes], dtype=np.int64)
        self._names = tuple(p.prefix for p in spec.prefixes)
        self._block: tuple[int, Arrivals] | None = None

    @property
    def life_ms(self) -> float:
        """Time for which a slot keeps its key; infinite without replacement."""
        replaced = self.spec.replaced_per_s
        return math.inf if replaced <= 0 else self.spec.universe / replaced * 1000.0

    def between(self, from_ms: int, to_ms: int) -> Arrivals:
        """Return the arrivals with from_ms <= time_ms < to_ms; times may be negative."""
        first, last = from_ms // _BLOCK_MS, max(from_ms, to_ms - 1) // _BLOCK_MS
        return Arrivals.concat([self._blocked(b).slice_time(from_ms, to_ms) for b in range(first, last + 1)])

    def long_ago(self) -> Arrivals:
        """Return the lookups that once filled the cache, made when `past.turnover` of the slots had other keys.

        Their times lie before the recent past and say the order only.
        """
        past = self.spec.past
        rng = np.random.default_rng((*self._seeds, 0))
        ranks = self._ranks(rng, past.long_ago_requests)
        times = np.full(len(ranks), -past.recent_ms - 1, dtype=np.int64)
        # A slot changes its key once per life, at a moment of its own; a turnover of 1 is one life, whatever its
        # length.
        generation = np.floor(self._phase[ranks] - past.turnover).astype(np.int64)
        return self._complete(times, self._popular(ranks, generation), np.zeros(len(ranks), dtype=np.uint8))

    def _blocked(self, block: int) -> Arrivals:
        if self._block is None or self._block[0] != block:
            self._block = (block, self._draw(block))
        return self._block[1]

    def _draw(self, block: int) -> Arrivals:
        spec = self.spec
        rng = np.random.default_rng((*self._seeds, block + _EPOCH_BLOCK))
        count = int(rng.poisson(spec.rate_per_s * _BLOCK_MS / 1000.0))
        times = np.sort(rng.integers(0, _BLOCK_MS, count)) + block * _BLOCK_MS
        kind = rng.random(count)
        ranks = self._ranks(rng, count)
        # Without replacement life is infinite, the quotient 0, and the generation always 0.
        generation = np.floor(times / self.life_ms + self._phase[ranks]).astype(np.int64)
        keys = self._popular(ranks, generation)
        once = kind < spec.one_hit_share
        ordinal = np.arange(count, dtype=np.uint64) + np.uint64((block + _EPOCH_BLOCK) << 16)
        keys[once] = self._ids(_ONE_HIT, ordinal[once], np.uint64(0))
        scans = (kind >= spec.one_hit_share) & (kind < spec.one_hit_share + spec.scan_share)
        if spec.scan_share > 0:
            steps_per_ms = spec.rate_per_s * spec.scan_share / 1000.0
            step = np.floor(times[scans] * steps_per_ms).astype(np.int64) % spec.scan_universe
            keys[scans] = self._ids(_SCAN, step.astype(np.uint64), np.uint64(0))
        op = np.where(kind >= 1.0 - spec.write_share, np.uint8(Op.WRITE), np.uint8(Op.READ))
        return self._complete(times, keys, op)

    def _ranks(self, rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
        found = np.searchsorted(self._cumulative, rng.random(count), side="right")
        return np.minimum(found, self.spec.universe - 1).astype(np.int64)

    def _popular(self, ranks: npt.NDArray[np.int64], generation: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
        # Generations of the past are negative; the cast wraps them round, which keeps them apart.
        return self._ids(_POPULAR, ranks.astype(np.uint64), generation.astype(np.uint64))

    def _ids(
        self, kind: int, number: npt.NDArray[np.uint64], generation: npt.NDArray[np.uint64] | np.uint64
    ) -> npt.NDArray[np.uint64]:
        return mix(mix(mix(number + np.uint64(self._salt)) ^ generation) + np.uint64(kind))

    def _complete(
        self, times: npt.NDArray[np.int64], keys: npt.NDArray[np.uint64], op: npt.NDArray[np.uint8]
    ) -> Arrivals:
        # What a key is like follows from its number alone, so that it is the same at every load.
        prefix = np.searchsorted(self._ends, _uniform(mix(keys ^ np.uint64(0x51))), side="right")
        prefix = np.minimum(prefix, len(self._names) - 1)
        normal = np.sqrt(-2.0 * np.log(_uniform(mix(keys ^ np.uint64(0x52))))) * np.cos(
            2.0 * np.pi * _uniform(mix(keys ^ np.uint64(0x53)))
        )
        sizes = self.spec.size_median_bytes * np.exp(self.spec.size_sigma * normal)
        sizes = np.clip(sizes, *self.spec.size_limits_bytes).astype(np.int32)
        return Arrivals(times, keys, op, sizes, self._ttls[prefix], prefix.astype(np.uint8), self._names)
