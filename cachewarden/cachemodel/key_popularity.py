"""How many different keys a stream has and how often they come, in bounded memory and without keeping one of them.

2**24 counters, each key's by its hash. The share of counters that are still 0 tells how many keys there were (linear
counting, Whang et al., ACM TODS 1990); the others tell how many keys came once, twice and so on. It decides nothing.
`balanced_sample` uses it to mend what chance did to a spatial sample.

INVARIANT: the order of the accesses changes nothing.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

__all__ = ["KeyPopularity"]

_PLACES = 1 << 24
_MOST = int(np.iinfo(np.uint16).max)
# Hash bits that neither the spatial filter (the lowest 24) nor the groups of keys (from bit 56 on) use.
_SHIFT = 28
# Where more counters than that are taken, too many are shared by keys for their counts to mean anything.
_CROWDED = 0.1


class KeyPopularity:
    """Counts hashes: 32 MiB; the number of keys has a standard error below 0.02 % up to 20 million of them."""

    def __init__(self) -> None:
        self._counts = np.zeros(_PLACES, np.uint16)

    def add(self, hashes: npt.NDArray[np.uint64]) -> None:
        """Take in accesses."""
        places, times = np.unique(_places(hashes), return_counts=True)
        self._counts[places] = np.minimum(self._counts[places] + times, _MOST).astype(np.uint16)

    def distinct_keys(self) -> int | None:
        """Return how many keys there were, or None beyond some 250 million, where hardly a counter is free."""
        free = _PLACES - int(np.count_nonzero(self._counts))
        return None if free < 16 else round(_PLACES * math.log(_PLACES / free))

    @property
    def crowded(self) -> bool:
        """Say whether so many keys share counters that the counts of single keys are not to be used."""
        return int(np.count_nonzero(self._counts)) > _CROWDED * _PLACES

    def of(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
        """Return how often each of these keys came, at most 65,535."""
        found: npt.NDArray[np.uint16] = self._counts[_places(hashes)]
        return found

    def keys_between(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many keys came counts[i] to counts[i + 1] - 1 times, the last one for that often or more; rising
        counts from 1.
        """
        by_count = np.bincount(self._counts, minlength=_MOST + 1)
        found: npt.NDArray[np.int64] = np.add.reduceat(by_count, counts).astype(np.int64)
        return found


def _places(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return ((hashes >> np.uint64(_SHIFT)) & np.uint64(_PLACES - 1)).astype(np.int64)
