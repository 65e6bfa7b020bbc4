"""Spatial sampling: which keys a capture keeps, and how counts over these keys are corrected.

A key is kept or dropped by its hash alone, so all accesses of a kept key are seen (SHARDS, Waldspurger et al.,
FAST'15). It never keeps a key name, and without the secret nobody can tell which name a hash stands for.

INVARIANT: a filter of a lower rate keeps a subset of what a filter of a higher rate keeps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cachewarden.keys import REMAINDERS, hash_key

__all__ = [
    "KEYS_BASIS",
    "MODULUS",
    "SpatialFilter",
    "adjust_hits",
    "error_expected",
    "hash_key",
    "keys_needed",
    "mix",
]

MODULUS = REMAINDERS
"""The hash space of the filter, as in SHARDS: rates down to 6e-8 can be told apart."""

_ERROR_TIMES_ROOT_KEYS = 0.57
_ERROR_TIMES_ROOT_KEYS_COUNTED = 0.25
KEYS_BASIS = (
    "mean absolute error of the hit ratio on nine application, database and synthetic traces, with the count "
    "correction: 0.57 / sqrt(sampled keys), and 0.25 / sqrt(sampled keys) where all keys were counted, so that the "
    "sample could be balanced; single traces lie between 0.1 and 0.31 / sqrt(keys), from 200 to 30,000 keys"
)
"""What `keys_needed` and `error_expected` rest on; `benchmarks/sample_accuracy.py` measures it."""


def mix(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return plain ids as well spread hashes, one to one (splitmix64's finaliser).

    For ids of published traces only: it keeps no secret.
    """
    with np.errstate(over="ignore"):
        x = keys.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: npt.NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


@dataclass(frozen=True, slots=True)
class SpatialFilter:
    """Keeps the keys whose hash modulo 2**24 is below rate * 2**24; `rate` in (0, 1], ValueError otherwise."""

    rate: float

    def __post_init__(self) -> None:
        if not 1.0 / MODULUS <= self.rate <= 1.0:
            raise ValueError(f"sampling rate `{self.rate}` is out of range, use 2**-24 to 1")

    @property
    def threshold(self) -> int:
        """Return the first hash remainder that is dropped."""
        return max(1, round(self.rate * MODULUS))

    def keeps(self, hashed: int) -> bool:
        """Say whether the key with this hash belongs to the sample."""
        return hashed % MODULUS < self.threshold

    def keeps_each(self, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
        """Say so for each hash of an array."""
        kept: npt.NDArray[np.bool_] = (hashes & np.uint64(MODULUS - 1)) < np.uint64(self.threshold)
        return kept


def adjust_hits(hits: float, sampled_accesses: int, all_accesses: int, rate: float) -> float:
    """Return the hit ratio (0..1) of all accesses from the hits of a spatial sample (SHARDS-adj).

    A sample of keys sees more or fewer accesses than rate * all_accesses because a few hot keys were caught or missed.
    These hit at any memory, so the difference is counted as hits. Raises ValueError without accesses.
    """
    expected = all_accesses * rate
    if expected <= 0:
        raise ValueError("no accesses to correct against, give the number of all accesses during the capture")
    return min(1.0, max(0.0, (hits + expected - sampled_accesses) / expected))


def keys_needed(error: float, *, counted: bool = False) -> int:
    """Return how many sampled keys give a mean absolute error of the hit ratio of about `error` (0..1, e.g. 0.01).

    `counted`: it is known how many keys there are in all. `KEYS_BASIS` says where the figure comes from; a sample that
    was taken says itself how sure it is (`replay_decision.shortage`). Raises ValueError for an error out of range.
    """
    if not 0.0 < error < 1.0:
        raise ValueError(f"error `{error}` is out of range, use a hit ratio difference between 0 and 1")
    return math.ceil((_error_times_root_keys(counted=counted) / error) ** 2)


def error_expected(keys: int, *, counted: bool = False) -> float:
    """Return the mean absolute error (0..1) that a sample of so many keys is to be trusted with; see `keys_needed`."""
    if keys < 1:
        raise ValueError(f"a sample of `{keys}` keys says nothing, use at least 1")
    return min(1.0, _error_times_root_keys(counted=counted) / math.sqrt(keys))


def _error_times_root_keys(*, counted: bool) -> float:
    return _ERROR_TIMES_ROOT_KEYS_COUNTED if counted else _ERROR_TIMES_ROOT_KEYS
