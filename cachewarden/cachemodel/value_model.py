"""What compressing large string values in the client would give, from a sample that was compressed and thrown away.

It scales the saving of the values that were read to all large strings, per key pattern and in all, with 90 % intervals
from resampling keys. It never sees a value and recommends nothing: compression is the application's to do.

INVARIANT: nothing is claimed of values that nobody read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.encoding_model import NO_PATTERN, Resampling, Unknown
from cachewarden.estimate import Estimate
from cachewarden.value_sample import LARGE_VALUE_BYTES, VALUE_KINDS, ValueSample

__all__ = ["VALUES_MIN", "Compression", "Twins", "compression", "compression_by_pattern", "copies_share", "twins"]

VALUES_MIN: Final = 10
"""Fewer values than this tell nothing about a ratio."""
_STRING: Final = VALUE_KINDS.index("string")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compression:
    """What zstd at level 3 would make of large strings. `ratio`: plain length over compressed one; `saved_share`: of
    the memory of these values; `saved_bytes` and `saved_of_all`: in the whole cache, and as a share of its keys'
    memory.
    """

    pattern: str | None
    """None for all patterns together."""
    values_read: int
    ratio: Estimate
    saved_share: Estimate
    saved_bytes: Estimate
    saved_of_all: Estimate


@dataclass(frozen=True, slots=True)
class Twins:
    """How many of the large values that were read are copies of another one that was read. A sample finds few of the
    copies in a cache, so this is a lower bound of nothing but itself."""

    values_read: int
    copies: int


def compression(values: ValueSample, resident_keys: int, seed: int) -> Compression | Unknown:
    """Return what compression would give over all patterns."""
    return _compression(values, np.ones(len(values), dtype=np.bool_), None, resident_keys, seed)


def compression_by_pattern(
    values: ValueSample, resident_keys: int, seed: int
) -> tuple[tuple[str, Compression | Unknown], ...]:
    """Return (pattern, answer) for each pattern that has large strings in the sample."""
    found = []
    large = _large(values)
    for number in sorted(set(values.pattern[large].tolist())):
        name = values.patterns[number] if number >= 0 else NO_PATTERN
        found.append((name, _compression(values, values.pattern == number, name, resident_keys, seed)))
    return tuple(found)


def twins(values: ValueSample) -> Twins:
    """Return how many of the values that were read are copies."""
    return Twins(len(values.value_row), len(values.value_row) - len(set(values.twin.tolist())))


def copies_share(values: ValueSample) -> Estimate | str:
    """Return which share of all keys' memory (0..1) large values take that stand under several keys, or why not.

    Only values that the sample met at least twice count: of copies in small families it sees none, so nothing is said
    of those. One of each family has to stay, which in a cache of many keys is little.
    """
    read = len(values.value_row)
    if read < VALUES_MIN:
        return f"only {read} large values could be read, {VALUES_MIN} are needed"
    _, counts = np.unique(values.twin, return_counts=True)
    met_again = int(counts[counts > 1].sum())
    if met_again == 0:
        return f"no two of {read} large values are equal; copies in twos and threes would not show in such a sample"
    held = float(values.size_bytes[_large(values)].sum()) / max(float(values.size_bytes.sum()), 1.0)
    share = Estimate.of_share(met_again, read)
    return Estimate(share.value * held, share.low * held, share.high * held)


def _large(values: ValueSample) -> npt.NDArray[np.bool_]:
    found: npt.NDArray[np.bool_] = (values.kind == _STRING) & (values.size_bytes >= LARGE_VALUE_BYTES)
    return found


def _compression(
    values: ValueSample, mine: npt.NDArray[np.bool_], pattern: str | None, resident_keys: int, seed: int
) -> Compression | Unknown:
    large = _large(values) & mine
    if not large.any():
        return Unknown(f"none of {len(values)} sampled keys is a string of {LARGE_VALUE_BYTES} bytes or more")
    chosen = np.flatnonzero(mine[values.value_row] & (values.plain_bytes > 0))
    if len(chosen) < VALUES_MIN:
        return Unknown(f"only {len(chosen)} large values could be read, {VALUES_MIN} are needed")
    rows = values.value_row[chosen]
    plain, packed, saved, read = (np.zeros(len(values)) for _ in range(4))
    plain[rows], packed[rows] = values.plain_bytes[chosen], values.compressed_bytes[chosen]
    # A client keeps what does not get smaller as it is.
    packed = np.minimum(packed, plain)
    read[rows] = values.size_bytes[rows]
    # What was read of a long value stands for all of it.
    saved[rows] = values.size_bytes[rows] * (1.0 - packed[rows] / plain[rows])
    resampling = Resampling(len(values), seed)
    share, share_draws = float(saved.sum() / read.sum()), resampling.means(saved) / resampling.means(read)
    held = np.where(large, values.size_bytes, 0)
    bytes_mean, bytes_draws = float(held.mean()) * share, resampling.means(held) * share_draws
    everything, everything_draws = float(values.size_bytes.mean()), resampling.means(values.size_bytes)
    return Compression(
        pattern=pattern,
        values_read=len(chosen),
        ratio=resampling.ratio(plain, packed),
        saved_share=resampling.estimate(share, share_draws),
        saved_bytes=resampling.estimate(bytes_mean, bytes_draws, resident_keys),
        saved_of_all=resampling.estimate(bytes_mean / everything, bytes_draws / everything_draws),
    )
