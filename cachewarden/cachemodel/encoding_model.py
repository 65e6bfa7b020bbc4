"""Where the bytes of a cache go: memory by group (type and encoding, or key pattern) from a uniform sample of keys.

It scales what MEMORY USAGE said of sampled keys to all resident ones and gives each figure a 90 % interval by
resampling keys. It never measures. Bytes are those of keys and values; hash tables of the keyspace and of deadlines
are not in MEMORY USAGE and not in here.

INVARIANT: the shares of all groups add up to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cachewarden.estimate import Estimate
from cachewarden.observation import KeyspaceSample
from cachewarden.value_sample import VALUE_KINDS, ValueSample

__all__ = ["KEYS_MIN", "NO_PATTERN", "MemoryGroup", "Resampling", "Unknown", "by_encoding", "by_pattern"]

KEYS_MIN: Final = 30
"""Fewer sampled keys than this tell nothing about shares."""
NO_PATTERN: Final = "(no declared pattern)"
_DRAWS: Final = 400
_TAILS: Final = (5.0, 95.0)
_KIND_OF_ENCODING: Final = {
    "int": "string", "embstr": "string", "raw": "string", "quicklist": "list", "intset": "set", "skiplist": "zset",
    "stream": "stream", "hashtable": "hash or set", "listpack": "small collection", "ziplist": "small collection",
    "listpackex": "hash",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unknown:
    """No answer, and what is missing for one."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """Keys that belong together. `keys_share` and `bytes_share` 0..1 of all resident keys and of their bytes; `bytes`
    of the group in the whole cache; `mean_bytes` of one of its keys."""

    name: str
    sampled_keys: int
    keys_share: Estimate
    bytes_share: Estimate
    bytes: Estimate
    mean_bytes: float


class Resampling:
    """The Bayesian bootstrap over sampled keys (Rubin 1981): each draw gives every key a random weight.

    Unlike drawing whole keys anew it never loses all keys of a small group, so a ratio is defined in each draw.
    """

    def __init__(self, keys: int, seed: int) -> None:
        draws = np.random.default_rng(seed).standard_exponential((_DRAWS, keys))
        self.weights: npt.NDArray[np.float64] = draws / draws.sum(axis=1, keepdims=True)

    def means(self, column: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
        """Return the weighted mean of a column of length `keys` in each draw."""
        found: npt.NDArray[np.float64] = self.weights @ column.astype(np.float64)
        return found

    def estimate(self, value: float, draws: npt.NDArray[np.float64], scale: float = 1.0) -> Estimate:
        """Return `value` with the 5 % and 95 % quantiles of its draws, all times `scale` >= 0."""
        low, high = np.percentile(draws, _TAILS)
        return Estimate(scale * value, scale * min(float(low), value), scale * max(float(high), value))

    def mean(self, column: npt.NDArray[np.generic], scale: float = 1.0) -> Estimate:
        """Return the mean of a column with its interval, times `scale`."""
        return self.estimate(float(column.mean()), self.means(column), scale)

    def ratio(self, part: npt.NDArray[np.generic], whole: npt.NDArray[np.generic]) -> Estimate:
        """Return sum(part) / sum(whole) with its interval; raises ValueError where the whole is nothing."""
        total = float(whole.sum())
        if total <= 0:
            raise ValueError("a ratio needs something to be a part of")
        return self.estimate(float(part.sum()) / total, self.means(part) / self.means(whole))


def by_encoding(
    sample: KeyspaceSample | None, values: ValueSample | None, resident_keys: int, seed: int
) -> tuple[MemoryGroup, ...] | Unknown:
    """Return memory by type and encoding, largest first, e.g. `hash (hashtable)`.

    A value sample knows the type; without one `hashtable` may be a hash or a set. Its keys below the size that it asks
    about are one group, `small`.
    """
    if values is not None and len(values) >= KEYS_MIN:
        names = [_value_group(values, row) for row in range(len(values))]
        return _groups(values.size_bytes, names, resident_keys, seed)
    if sample is None:
        return Unknown("no keys were sampled")
    known = np.flatnonzero((sample.encoding >= 0) & (sample.size_bytes >= 0))
    encodings = [sample.encodings[int(number)] for number in sample.encoding[known]]
    names = [f"{_KIND_OF_ENCODING.get(encoding, 'other')} ({encoding})" for encoding in encodings]
    return _groups(sample.size_bytes[known], names, resident_keys, seed)


def _value_group(values: ValueSample, row: int) -> str:
    kind, encoding = int(values.kind[row]), int(values.encoding[row])
    if kind < 0:
        return "small"
    return f"{VALUE_KINDS[kind]} ({values.encodings[encoding]})" if encoding >= 0 else VALUE_KINDS[kind]


def by_pattern(sample: KeyspaceSample | None, resident_keys: int, seed: int) -> tuple[MemoryGroup, ...] | Unknown:
    """Return memory by declared key pattern, largest first; keys of none are a group of their own."""
    if sample is None:
        return Unknown("no keys were sampled")
    known = np.flatnonzero(sample.size_bytes >= 0)
    names = [sample.patterns[number] if number >= 0 else NO_PATTERN for number in sample.pattern[known].tolist()]
    return _groups(sample.size_bytes[known], names, resident_keys, seed)


def _groups(
    size_bytes: npt.NDArray[np.int64], names: Sequence[str], resident_keys: int, seed: int
) -> tuple[MemoryGroup, ...] | Unknown:
    if len(names) < KEYS_MIN:
        return Unknown(f"only {len(names)} sampled keys have a known size, {KEYS_MIN} are needed")
    label = np.array(names)
    resampling = Resampling(len(names), seed)
    found = []
    for name in sorted(set(names)):
        mine = label == name
        part = np.where(mine, size_bytes, 0)
        found.append(
            MemoryGroup(
                name=name,
                sampled_keys=int(mine.sum()),
                keys_share=resampling.mean(mine),
                bytes_share=resampling.ratio(part, size_bytes),
                bytes=resampling.mean(part, resident_keys),
                mean_bytes=float(size_bytes[mine].mean()),
            )
        )
    return tuple(sorted(found, key=lambda group: (-group.bytes.value, group.name)))
