"""Value samples of the cache in memory, which stores lengths: its values are so many times the letter x, and only
strings.

It measures those the way the adapter does, with the same limits. INVARIANT: the same entries give the same sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard

from cachewarden.cachemodel.memory_accounting import encoding_of
from cachewarden.cachemodel.shards import hash_key
from cachewarden.value_sample import LARGE_VALUE_BYTES, VALUE_KINDS, ValueLimits, ValueSample
from coordination.monitor_lines import PatternIndex

__all__ = ["fake_value_sample"]

_NONE: npt.NDArray[Any] = np.empty(0)


def fake_value_sample(entries: Mapping[bytes, tuple[int, int]], keys: int, index: PatternIndex) -> ValueSample:
    """Return a sample of up to `keys` of the entries: key to (length of the value, size in memory)."""
    limits = ValueLimits()
    chosen = sorted(entries, key=lambda key: hash_key(b"values", key))[:keys]
    encodings = sorted({encoding_of(b"x" * min(entries[key][0], 64)).value for key in chosen})
    large = [row for row, key in enumerate(chosen) if entries[key][1] >= LARGE_VALUE_BYTES][: limits.values]
    plain = [min(entries[chosen[row]][0], limits.range_bytes) for row in large]
    compressor = zstandard.ZstdCompressor(level=3)
    return ValueSample(
        patterns=index.patterns,
        encodings=tuple(encodings),
        size_bytes=np.array([entries[key][1] for key in chosen], dtype=np.int64),
        pattern=np.array([index.of(key) for key in chosen], dtype=np.int32),
        kind=np.full(len(chosen), VALUE_KINDS.index("string"), dtype=np.int8),
        encoding=np.array(
            [encodings.index(encoding_of(b"x" * min(entries[key][0], 64)).value) for key in chosen], dtype=np.int32
        ),
        value_row=np.array(large, dtype=np.int32),
        plain_bytes=np.array(plain, dtype=np.int64),
        compressed_bytes=np.array([len(compressor.compress(b"x" * length)) for length in plain], dtype=np.int64),
        # Values of the same length are the same.
        twin=np.array([sorted(set(plain)).index(length) for length in plain], dtype=np.int32),
        collection_row=_NONE.astype(np.int32),
        entries=_NONE.astype(np.int64),
        name_bytes=_NONE.astype(np.int32),
        elements_bytes=_NONE.astype(np.int64),
        longest_bytes=_NONE.astype(np.int64),
        intset_width=_NONE.astype(np.int8),
        read_bytes=sum(plain),
    )
