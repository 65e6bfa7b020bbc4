"""What recorders report, as the collector gets it: one batch of hashed accesses, and what has become of them.

A batch is checked when it is made, so that nobody behind it has to: what an application claims is input, not truth.
INVARIANT: a batch is bounded, its rows belong to its spatial sample, lie within its time, and are not more lookups
than it counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.trace import Op
from cachewarden.feed import LOOKUPS_MAX, MISS, ROWS_MAX, SIZE_BYTES_MAX, SPAN_MS_MAX, TTL_MS_MAX, UNKNOWN
from cachewarden.messages import Message

__all__ = ["FeedBatch", "FeedReport"]

_CLOCK_MS_MAX = 1 << 52
_COLUMNS: Mapping[str, tuple[Any, int, int]] = {
    "at_ms": (np.int64, 0, _CLOCK_MS_MAX),
    "key": (np.uint64, 0, (1 << 64) - 1),
    "op": (np.uint8, 0, max(Op)),
    "size_bytes": (np.int32, 0, SIZE_BYTES_MAX),
    "ttl_ms": (np.int64, 0, TTL_MS_MAX),
    "pattern": (np.int32, -1, (1 << 31) - 1),
    "missed": (np.int8, UNKNOWN, MISS),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FeedBatch(Message):
    """Accesses of one recorder to one service between `from_ms` and `to_ms`, sent at `sent_ms`, all by its own clock
    (milliseconds of any origin, never running back).

    `lookups`, `hits` and `misses` count all lookups of that time, also of keys outside the sample; what was neither is
    unknown. Columns have one row per sampled access, in time order: as in `AccessTrace`, and `pattern` int32 index into
    the service's patterns (-1 none), `missed` int8 (1 missed, 0 hit, -1 unknown or no read). Raises ValueError for
    anything that cannot be.
    """

    service: str
    recorder: str
    seq: int
    spatial_rate: float
    from_ms: int
    to_ms: int
    sent_ms: int
    lookups: int
    hits: int
    misses: int
    at_ms: npt.NDArray[np.int64]
    key: npt.NDArray[np.uint64]
    op: npt.NDArray[np.uint8]
    size_bytes: npt.NDArray[np.int32]
    ttl_ms: npt.NDArray[np.int64]
    pattern: npt.NDArray[np.int32]
    missed: npt.NDArray[np.int8]

    @classmethod
    def of(cls, *, columns: Mapping[str, Sequence[int]], patterns: int, **fields: Any) -> FeedBatch:
        """Make a batch from plain lists; `patterns` is how many patterns the service has."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, (kind, low, high) in _COLUMNS.items():
            values = columns[name]
            highest = patterns - 1 if name == "pattern" else high
            if len(values) and not (low <= min(values) and max(values) <= highest):
                raise ValueError(f"column `{name}` holds values outside {low} to {highest}")
            arrays[name] = np.array(values, dtype=kind)
        made: dict[str, Any] = {**fields, **arrays}
        return cls(**made)

    def __post_init__(self) -> None:
        rows = len(self.at_ms)
        if rows > ROWS_MAX:
            raise ValueError(f"a batch has at most {ROWS_MAX} rows, got {rows}")
        if any(len(getattr(self, name)) != rows for name in _COLUMNS):
            raise ValueError("the columns of a batch need one value per row each")
        if not 0 <= self.from_ms <= self.to_ms <= self.sent_ms <= _CLOCK_MS_MAX:
            raise ValueError("a batch needs 0 <= from_ms <= to_ms <= sent_ms: nothing is reported before it happened")
        if self.sent_ms - self.from_ms > 2 * SPAN_MS_MAX or self.to_ms - self.from_ms > SPAN_MS_MAX:
            raise ValueError(f"a batch covers at most {SPAN_MS_MAX} ms and is sent within as many more")
        if not (0 <= self.lookups <= LOOKUPS_MAX and min(self.hits, self.misses) >= 0):
            raise ValueError("lookups, hits and misses must not be negative or beyond all traffic")
        if self.hits + self.misses > self.lookups:
            raise ValueError(f"{self.hits} hits and {self.misses} misses are more than {self.lookups} lookups")
        if rows == 0:
            return
        if np.any(np.diff(self.at_ms) < 0) or self.at_ms[0] < self.from_ms or self.at_ms[-1] > self.to_ms:
            raise ValueError("rows must be in time order and within from_ms to to_ms")
        if not bool(SpatialFilter(self.spatial_rate).keeps_each(self.key).all()):
            raise ValueError(f"there are rows of keys that a spatial filter of `{self.spatial_rate}` drops")
        if int((self.op == Op.READ).sum()) > self.lookups:
            raise ValueError("there are more rows of reads than lookups")

    def __len__(self) -> int:
        return len(self.at_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedReport(Message):
    """What the collector makes of the feed of one service. Counts are since it started."""

    service: str
    recorders: int
    """That have reported lately."""
    batches: int
    rows_held: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Why batches were dropped, and how many."""
    coverage: float | None = None
    """Reported lookups over those that the server counted in the same time; None before both are known."""
    used: bool = False
    reason: str = ""
