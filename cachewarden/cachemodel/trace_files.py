"""Reads trace files into `AccessTrace`: sampled by key and limited by rows while they are read, so that memory stays
bounded however long the file is.

It never guesses what a file does not say: a format without times gets the arrival rate that the caller names.
INVARIANT: the same file and options give the same trace.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.distinct_keys import DistinctKeys
from cachewarden.cachemodel.fills import fold_fills
from cachewarden.cachemodel.shards import SpatialFilter
from cachewarden.cachemodel.trace import AccessTrace, Op
from cachewarden.cachemodel.trace_columns import ColumnSpec
from cachewarden.cachemodel.trace_formats import Rows, TraceFormat, detect, rows_of
from cachewarden.cachemodel.trace_stream import TraceFileError

__all__ = ["ColumnSpec", "TraceFile", "TraceFileError", "TraceFormat", "load", "read_trace"]

_SIZE_MAX: Final = int(np.iinfo(np.int32).max)


@dataclass(frozen=True, slots=True, eq=False)
class TraceFile:
    """A trace and how it was read.

    `rows_read` rows of the file, of which `trace` holds those that the spatial filter of `sampling_rate` (0..1] kept,
    less the fills that were folded into their reads. `limited`: the file goes on beyond `rows_read`. `notes` say what
    was done to the rows. `mark_ms` and `mark_reads`: how many reads, kept or not, there were up to a time.
    `distinct_keys`: how many keys those rows have, kept or not; None = not counted.
    """

    trace: AccessTrace
    trace_format: TraceFormat
    rows_read: int
    limited: bool
    sampling_rate: float
    notes: tuple[str, ...]
    mark_ms: npt.NDArray[np.int64] = field(repr=False)
    mark_reads: npt.NDArray[np.int64] = field(repr=False)
    distinct_keys: int | None = None

    @property
    def sizes_known(self) -> bool:
        """Say whether any row has a size."""
        return bool(np.any(self.trace.size_bytes > 0))

    def reads_from(self, from_ms: int) -> float:
        """Return the reads of the file at or after a time: counted if all keys were kept, else interpolated between
        pieces of the file."""
        if self.sampling_rate >= 1.0:
            first = int(np.searchsorted(self.trace.time_ms, from_ms))
            return float(np.sum(self.trace.op[first:] == Op.READ))
        total = float(self.mark_reads[-1])
        return total - float(np.interp(from_ms, self.mark_ms, self.mark_reads))


def load(path: Path, rate_per_s: float | None = None) -> AccessTrace:
    """Read a whole trace file, its format told by name and content; see `read_trace`."""
    return read_trace(path, rate_per_s=rate_per_s).trace


def read_trace(
    path: Path,
    *,
    trace_format: TraceFormat | None = None,
    columns: ColumnSpec | None = None,
    rate_per_s: float | None = None,
    limit: int | None = None,
    sampling_rate: float = 1.0,
) -> TraceFile:
    """Read up to `limit` rows of a trace file and keep the keys that a spatial filter of `sampling_rate` keeps.

    `trace_format` None = as `columns`, name and content say. `rate_per_s` is the arrival rate (> 0) that rows without
    times get; rows with times keep theirs. Sizes beyond 2 GiB count as 2 GiB, rows out of order are sorted by time,
    fills of a cache-aside client in a Twitter trace are folded into the reads that caused them; `notes` say so. Raises
    TraceFileError for a file that cannot be read so, ValueError for an impossible rate.
    """
    known = trace_format or (TraceFormat.COLUMNS if columns is not None else detect(path))
    collected = _Collected(path, SpatialFilter(sampling_rate), rate_per_s)
    limited = False
    for rows in rows_of(path, known, columns):
        room = len(rows.key) if limit is None else limit - collected.rows_read
        if room <= 0:
            limited = True
            break
        limited = room < len(rows.key)
        collected.add(rows, min(room, len(rows.key)))
        if limited:
            break
    if collected.rows_read == 0:
        raise TraceFileError("holds no rows", path=path.name)
    trace, notes = collected.trace()
    if known is TraceFormat.TWITTER:
        folded = _folded(trace)
        if len(folded) < len(trace):
            notes.append(f"{len(trace) - len(folded)} writes within 5 s after a read of the key count as its fill")
        trace = folded
    if limited:
        notes.append(f"only the first {collected.rows_read} rows were read")
    return TraceFile(
        trace=trace,
        trace_format=known,
        rows_read=collected.rows_read,
        limited=limited,
        sampling_rate=sampling_rate,
        notes=tuple(notes),
        mark_ms=np.maximum.accumulate(np.array(collected.mark_ms, dtype=np.int64)),
        mark_reads=np.array(collected.mark_reads, dtype=np.int64),
        distinct_keys=collected.distinct_keys(),
    )


class _Collected:
    """The kept rows so far, and the counts over all rows."""

    def __init__(self, path: Path, spatial: SpatialFilter, rate_per_s: float | None) -> None:
        self._path = path
        self._spatial = spatial
        self._rate_per_s = rate_per_s
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []
        self._clipped = 0
        # All of the keys are at hand without sampling, so nobody needs to be told how many there are.
        self._keys = DistinctKeys() if spatial.rate < 1.0 else None
        self.rows_read = 0
        self.mark_ms: list[int] = []
        self.mark_reads: list[int] = []

    def add(self, rows: Rows, count: int) -> None:
        """Take in the first `count` rows."""
        times = self._paced(count) if rows.time_ms is None else rows.time_ms[:count]
        op = np.zeros(count, np.uint8) if rows.op is None else rows.op[:count]
        sizes = self._checked(rows.size_bytes, count, "size")
        ttls = self._checked(rows.ttl_ms, count, "TTL")
        self._clipped += int(np.sum(sizes > _SIZE_MAX))
        if not self.mark_ms:
            self.mark_ms.append(int(times[0]))
            self.mark_reads.append(0)
        self.mark_ms.append(int(times[-1]))
        self.mark_reads.append(self.mark_reads[-1] + int(np.sum(op == Op.READ)))
        self.rows_read += count
        keys = rows.key[:count]
        if self._keys is not None:
            self._keys.add(keys)
        kept = self._spatial.keeps_each(keys)
        sizes = np.minimum(sizes, _SIZE_MAX).astype(np.int32)
        self._parts.append((times[kept], keys[kept], op[kept], sizes[kept], ttls[kept]))

    def distinct_keys(self) -> int | None:
        """Return how many keys the rows have, None where all are kept and can be counted."""
        return None if self._keys is None else self._keys.estimate()

    def _checked(self, column: npt.NDArray[np.int64] | None, count: int, meaning: str) -> npt.NDArray[np.int64]:
        if column is None:
            return np.zeros(count, np.int64)
        given = column[:count]
        if np.any(given < 0):
            row = self.rows_read + int(np.argmax(given < 0)) + 1
            raise TraceFileError(f"row {row} has a negative {meaning}, another format or damaged", path=self._path.name)
        return given

    def _paced(self, count: int) -> npt.NDArray[np.int64]:
        if self._rate_per_s is None or self._rate_per_s <= 0:
            raise TraceFileError(
                "has no times, give the arrival rate to assume: `rate_per_s`, on the command line `--rate`",
                path=self._path.name,
            )
        numbers = np.arange(self.rows_read, self.rows_read + count)
        paced: npt.NDArray[np.int64] = np.floor(numbers * (1000.0 / self._rate_per_s)).astype(np.int64)
        return paced

    def trace(self) -> tuple[AccessTrace, list[str]]:
        """Return all kept rows in time order, and what was done to them; gives the parts away."""
        notes = [f"{self._clipped} rows are larger than 2 GiB and count as 2 GiB"] if self._clipped else []
        columns = [np.concatenate(column) for column in zip(*self._parts, strict=True)]
        self._parts.clear()
        if np.any(columns[0][1:] < columns[0][:-1]):
            notes.append("times ran backwards, the rows were sorted by time")
            order = np.argsort(columns[0], kind="stable")
            columns = [column[order] for column in columns]
        return AccessTrace.of(*columns), notes


def _folded(trace: AccessTrace) -> AccessTrace:
    """Return the trace of a cache-aside client without its fills.

    A read of a key that is written somewhere is loaded with size and TTL of the nearest write; one of a key that never
    is keeps the size that the file gives for it.
    """
    folded = fold_fills(trace).trace
    reads, before = folded.op == Op.READ, trace.op == Op.READ
    written = np.unique(trace.key[trace.op == Op.WRITE])
    own = trace.size_bytes[before]
    keeps_own = (own > 0) & ~np.isin(trace.key[before], written)
    sizes = folded.size_bytes.copy()
    sizes[reads] = np.where(keeps_own, own, folded.size_bytes[reads])
    return AccessTrace.of(folded.time_ms, folded.key, folded.op, sizes, folded.ttl_ms)
