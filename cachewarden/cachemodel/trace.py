"""What was asked of a cache, and when: the access trace that every model reads.

It decides nothing and reads no file (`trace_files` does). Keys are 64-bit hashes; a plain key name never gets here.

INVARIANT: all columns have the same length, and time never runs backwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import SpatialFilter

__all__ = ["AccessTrace", "Op"]

_COLUMNS = (("time_ms", np.int64), ("key", np.uint64), ("op", np.uint8), ("size_bytes", np.int32), ("ttl_ms", np.int64))


class Op(IntEnum):
    """What a row asks for; a read that misses also loads the value (cache-aside)."""

    READ = 0
    WRITE = 1
    DELETE = 2


@dataclass(frozen=True, slots=True, eq=False)
class AccessTrace:
    """Accesses in time order, one per row.

    `time_ms` int64, non-decreasing, any origin. `key` uint64 hashes. `op` uint8, see `Op`. `size_bytes` int32, memory
    of the whole entry as the server accounts it, 0 = unknown. `ttl_ms` int64, time to live given at a load or write, 0
    = none. Raises ValueError if a column has another type or length, if time runs backwards, or if a value is out of
    its range.
    """

    time_ms: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    op: npt.NDArray[np.uint8]
    size_bytes: npt.NDArray[np.int32]
    ttl_ms: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in _COLUMNS:
            column = getattr(self, name)
            if column.dtype != dtype or column.ndim != 1:
                raise ValueError(
                    f"column `{name}` must be one-dimensional `{np.dtype(dtype)}`, build with `AccessTrace.of`"
                )
            if len(column) != len(self.time_ms):
                raise ValueError(f"column `{name}` has {len(column)} rows, `time_ms` has {len(self.time_ms)}")
        if len(self) == 0:
            return
        if np.any(self.time_ms[1:] < self.time_ms[:-1]):
            raise ValueError("`time_ms` runs backwards, sort the rows by time")
        if int(self.op.max()) > max(Op):
            raise ValueError(f"column `op` holds `{int(self.op.max())}`, known are 0 read, 1 write, 2 delete")
        if int(self.size_bytes.min()) < 0 or int(self.ttl_ms.min()) < 0:
            raise ValueError("columns `size_bytes` and `ttl_ms` must not be negative, use 0 for unknown or none")

    @classmethod
    def of(
        cls,
        time_ms: npt.ArrayLike,
        key: npt.ArrayLike,
        op: npt.ArrayLike | None = None,
        size_bytes: npt.ArrayLike | None = None,
        ttl_ms: npt.ArrayLike | None = None,
    ) -> AccessTrace:
        """Build a trace from anything array-like; a missing column means reads, unknown sizes and no TTL.

        A scalar stands for the whole column.
        """
        times = np.ascontiguousarray(time_ms, dtype=np.int64)

        def column(values: npt.ArrayLike | None, dtype: Any) -> npt.NDArray[Any]:
            given: npt.NDArray[Any] = np.asarray(0 if values is None else values, dtype=dtype)
            return np.full(len(times), given, dtype=dtype) if given.ndim == 0 else np.ascontiguousarray(given)

        return cls(
            times,
            np.ascontiguousarray(key, dtype=np.uint64),
            column(op, np.uint8),
            column(size_bytes, np.int32),
            column(ttl_ms, np.int64),
        )

    def __len__(self) -> int:
        return len(self.time_ms)

    @property
    def duration_ms(self) -> int:
        """Return the time from the first row to the last."""
        return int(self.time_ms[-1] - self.time_ms[0]) if len(self) else 0

    def distinct_keys(self) -> int:
        """Return the number of different keys; sorts, so not free on millions of rows."""
        return len(np.unique(self.key))

    def rows(self, selection: npt.NDArray[np.bool_] | slice) -> AccessTrace:
        """Return the selected rows, in the same order."""
        return AccessTrace(*(np.ascontiguousarray(getattr(self, name)[selection]) for name, _ in _COLUMNS))

    def slice_time(self, from_ms: int, to_ms: int) -> AccessTrace:
        """Return the rows with from_ms <= time_ms < to_ms."""
        first, last = np.searchsorted(self.time_ms, [from_ms, to_ms], side="left")
        return self.rows(slice(int(first), int(last)))

    def thin(self, rate: float) -> AccessTrace:
        """Return the rows of the keys that a spatial filter of `rate` (0..1] keeps: all accesses of a key, or none.

        Filters nest, so thinning a capture that was taken at 0.1 to 0.1 changes nothing, and to 0.05 halves it.
        """
        return self.rows(SpatialFilter(rate).keeps_each(self.key))

    def with_ttl(self, ttl_ms: int) -> AccessTrace:
        """Return the same accesses where every load and write gives `ttl_ms` (0 = none)."""
        return AccessTrace(self.time_ms, self.key, self.op, self.size_bytes, np.full(len(self), ttl_ms, dtype=np.int64))

    @staticmethod
    def concat(parts: Sequence[AccessTrace]) -> AccessTrace:
        """Return the parts one after the other; each must start no earlier than the one before ends."""
        if not parts:
            return AccessTrace.of([], [])
        return AccessTrace(*(np.concatenate([getattr(part, name) for part in parts]) for name, _ in _COLUMNS))
