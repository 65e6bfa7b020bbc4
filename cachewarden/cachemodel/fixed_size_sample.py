"""Spatial samples of a fixed number of keys, and how sure a hit ratio from such a sample is.

The filter's threshold falls as the sample fills (fixed-size SHARDS, Waldspurger et al., FAST'15, section 4.2): memory
is bounded by keys whatever the traffic. A key that is kept at the end was below every threshold before, so all its
accesses were seen, and what is left is exactly what a filter of the final rate would have kept from the start. It
never keeps a key name and draws no random number of its own.

INVARIANT: never more than `keys_max` keys, unless more of them share the lowest hash remainder; the rate never rises.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import MODULUS, SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.estimate import Estimate

__all__ = ["FixedSizeSample", "KeyCounts", "hit_ratio_estimate", "ratio_estimate", "thin_to_keys"]

_REPLICATES = 400
_CHUNK_CELLS = 2_000_000
"""Poisson weights drawn at once: 16 MB, whatever the number of keys."""
_LOW, _HIGH = 0.05, 0.95
_KEYS_MIN = 30
"""Below that resampling itself is not to be trusted."""


class FixedSizeSample:
    """A spatial filter that thins itself out. Ask `admits` for each access; `keeps` says what is left in the end."""

    def __init__(self, keys_max: int, rate: float = 1.0) -> None:
        """Begin at `rate` (0..1]; raises ValueError for a rate out of range or a bound below 1 key."""
        if keys_max < 1:
            raise ValueError(f"a sample of `{keys_max}` keys is impossible, use at least 1")
        self._threshold = SpatialFilter(rate).threshold
        self._rate = rate
        self._keys_max = keys_max
        self._by_remainder: dict[int, set[int]] = {}
        self._highest: list[int] = []
        self._keys = 0

    @property
    def rate(self) -> float:
        """Return the spatial rate of what is kept now: the share of all keys that pass."""
        return self._rate

    def __len__(self) -> int:
        return self._keys

    def admits(self, hashed: int) -> bool:
        """Take one access; say whether its key is in the sample now. It may still be thinned out later."""
        remainder = hashed % MODULUS
        if remainder >= self._threshold:
            return False
        keys = self._by_remainder.get(remainder)
        if keys is None:
            keys = self._by_remainder[remainder] = set()
            heapq.heappush(self._highest, -remainder)
        if hashed not in keys:
            keys.add(hashed)
            self._keys += 1
            self._thin_out()
        return remainder < self._threshold

    def keeps(self, hashed: int) -> bool:
        """Say whether accesses of this key count at the present rate."""
        return hashed % MODULUS < self._threshold

    def _thin_out(self) -> None:
        # The last remainder stays, since a rate of 0 would leave a sample that says nothing.
        while self._keys > self._keys_max and len(self._highest) > 1:
            self._threshold = -heapq.heappop(self._highest)
            self._rate = self._threshold / MODULUS
            self._keys -= len(self._by_remainder.pop(self._threshold))


def thin_to_keys(trace: AccessTrace, keys_max: int, rate: float = 1.0) -> tuple[AccessTrace, float]:
    """Return the rows of at most `keys_max` keys and the spatial rate they stand for; `rate` is the trace's own.

    The same as `FixedSizeSample` access by access. Raises ValueError for a rate out of range or a bound below 1 key.
    """
    if keys_max < 1:
        raise ValueError(f"a sample of `{keys_max}` keys is impossible, use at least 1")
    threshold = SpatialFilter(rate).threshold
    remainders = np.unique(trace.key) & np.uint64(MODULUS - 1)
    remainders = np.sort(remainders[remainders < np.uint64(threshold)]).astype(np.int64)
    if len(remainders) <= keys_max or remainders[0] == remainders[-1]:
        return trace.thin(rate), rate
    threshold = int(remainders[keys_max])
    if threshold == remainders[0]:
        threshold = int(remainders[np.searchsorted(remainders, threshold, side="right")])
    return trace.thin(threshold / MODULUS), threshold / MODULUS


@dataclass(frozen=True, slots=True, eq=False)
class KeyCounts:
    """Accesses of each sampled key, and how many of them hit, float64[keys]; the unit that resampling draws."""

    accesses: npt.NDArray[np.float64]
    hits: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.accesses.shape != self.hits.shape or self.accesses.ndim != 1:
            raise ValueError("accesses and hits need one row per key each")
        if np.any(self.hits < 0) or np.any(self.hits > self.accesses):
            raise ValueError("a key hits no more often than it is asked for, and never less than 0 times")

    @classmethod
    def of(cls, key: npt.NDArray[np.uint64], hit: npt.NDArray[np.bool_]) -> KeyCounts:
        """Count by key; one row per lookup."""
        keys, inverse = np.unique(key, return_inverse=True)
        accesses = np.bincount(inverse, minlength=len(keys)).astype(np.float64)
        return cls(accesses, np.bincount(inverse, weights=hit, minlength=len(keys)).astype(np.float64))


def hit_ratio_estimate(
    counts: KeyCounts, seed: int, *, rate: float = 1.0, all_accesses: int | None = None
) -> Estimate | str:
    """Return the hit ratio of all accesses with its 90 % interval, or in words why the sample cannot carry one.

    With `all_accesses` the count correction holds (SHARDS-adj): rate * all_accesses is what the filter should have
    kept, and the difference to what it kept counts as hits, so only the sampled misses are uncertain. The interval
    comes from resampling keys, not accesses: accesses of one key are no independent evidence.
    """
    expected = None if all_accesses is None else all_accesses * rate
    if expected is not None and expected <= 0:
        return "no accesses to correct against, give the number of all accesses during the capture"
    misses = counts.accesses - counts.hits
    if expected is None:
        found = ratio_estimate(misses, counts.accesses, seed)
    else:
        found = ratio_estimate(misses, np.full(len(misses), expected / max(len(misses), 1)), seed, fixed_total=True)
    return found if isinstance(found, str) else Estimate(1.0 - found.value, 1.0 - found.high, 1.0 - found.low)


def ratio_estimate(
    part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64], seed: int, *, fixed_total: bool = False
) -> Estimate | str:
    """Return sum(part) / sum(whole) over keys, 0..1, with its 90 % interval, or in words why there is none.

    Poisson bootstrap over keys (Chamandy et al., Google 2012), 400 replicates. `fixed_total`: the whole is known and
    not resampled. Where the part is nothing or everything, resampling would claim certainty; the interval then reaches
    as far as `keys` observations without an exception allow (1 - 0.05^(1/keys), about 3/keys).
    """
    keys = len(part)
    total = float(whole.sum())
    if keys < _KEYS_MIN or total <= 0:
        return f"{keys} sampled keys are too few for an interval, {_KEYS_MIN} are needed"
    rng = np.random.default_rng(seed)
    value = min(max(float(part.sum()) / total, 0.0), 1.0)
    # Keys that look alike need one draw: the weights of m keys add up to a Poisson number of mean m.
    kinds, alike = np.unique(np.column_stack([part, whole]), axis=0, return_counts=True)
    ratios: list[npt.NDArray[np.float64]] = []
    rows = max(1, _CHUNK_CELLS // len(kinds))
    for start in range(0, _REPLICATES, rows):
        drawn = min(rows, _REPLICATES - start)
        sums = rng.poisson(alike, size=(drawn, len(kinds))).astype(np.float64) @ kinds
        below = np.full(drawn, total) if fixed_total else sums[:, 1]
        ratios.append(sums[below > 0, 0] / below[below > 0])
    low, high = np.quantile(np.concatenate(ratios), [_LOW, _HIGH])
    unseen = -math.expm1(math.log(_LOW) / keys)
    if not np.any(part > 0):
        high = unseen
    elif np.all(part >= whole) and not fixed_total:
        low = 1.0 - unseen
    return Estimate(value, min(max(float(low), 0.0), value), max(min(float(high), 1.0), value))
