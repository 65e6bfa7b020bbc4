"""What a bounded look into values brings back: lengths and compressed lengths, never a value or a name.

An adapter makes it where the fleet file permits (`value_samples`), from keys drawn uniformly at random. It decides
nothing. INVARIANT: nothing in it tells a value: only lengths, counts, and which of the sampled values are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["LARGE_VALUE_BYTES", "PASSED_OVER", "VALUE_KINDS", "ValueLimits", "ValueSample"]

VALUE_KINDS = ("string", "hash", "list", "set", "zset", "stream", "other")
"""What TYPE says; modules' own types are `other`."""
LARGE_VALUE_BYTES = 1024
"""A string is worth compressing from this MEMORY USAGE on."""

PASSED_OVER = -2
"""`elements_bytes` of a collection that was not read only because the look had read enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueLimits:
    """How much of a cache's values one look may read."""

    values: int = 50
    """Large strings that are compressed."""
    collections: int = 100
    """Collections whose members are measured."""
    range_bytes: int = 64 * 1024
    """Of one value or collection; a longer value is judged by its beginning, a larger collection is left out."""
    total_bytes: int = 4 << 20
    entries: int = 1024
    """A collection with more entries is no candidate for a listpack or intset, so it is only counted."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ValueSample:
    """Keys drawn at random (arrays of length n), and what was read of some of them.

    size_bytes: int64 MEMORY USAGE; pattern: int32 index into `patterns`, -1 none; kind: int8 index into
    `VALUE_KINDS`, -1 where the key is too small to be asked; encoding: int32 index into `encodings`, -1 unknown.

    Strings that were read, length m: value_row: int32 which key; plain_bytes, compressed_bytes: int64 lengths of what
    was read of it (zstd, level 3); twin: int32, equal for equal values.

    Collections that are hash tables or skip lists, length k: collection_row: int32 which key; entries: int64;
    name_bytes: int32 length of the key; elements_bytes: int64 what their elements would take in a listpack, -1 for
    too large a collection, `PASSED_OVER` where the look had read enough; longest_bytes: int64 of one member, or value
    of a hash; intset_width: int8 2, 4 or 8, 0 where not all members are integers.
    """

    patterns: tuple[str, ...]
    encodings: tuple[str, ...]
    size_bytes: npt.NDArray[np.int64]
    pattern: npt.NDArray[np.int32]
    kind: npt.NDArray[np.int8]
    encoding: npt.NDArray[np.int32]
    value_row: npt.NDArray[np.int32]
    plain_bytes: npt.NDArray[np.int64]
    compressed_bytes: npt.NDArray[np.int64]
    twin: npt.NDArray[np.int32]
    collection_row: npt.NDArray[np.int32]
    entries: npt.NDArray[np.int64]
    name_bytes: npt.NDArray[np.int32]
    elements_bytes: npt.NDArray[np.int64]
    longest_bytes: npt.NDArray[np.int64]
    intset_width: npt.NDArray[np.int8]
    read_bytes: int
    """Of values, by this look."""
    touched_keys: int = 0
    """Keys that the look made young for the eviction, where the server has no CLIENT NO-TOUCH."""

    def __len__(self) -> int:
        return int(self.size_bytes.shape[0])
