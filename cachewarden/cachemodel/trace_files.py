"""Reads the published trace formats into `AccessTrace`.

It never guesses what a file does not say: a format without times gets the arrival rate that the caller names, and ids
are only mixed (one to one) so that spatial filters work on them.

INVARIANT: the same file and rate give the same trace.
"""

from __future__ import annotations

import io
import lzma
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import AccessTrace, Op

__all__ = ["load"]

_SECTOR_BYTES = 512


def load(path: Path, rate_per_s: float | None = None) -> AccessTrace:
    """Read a trace file, its format told by its name.

    `cache2k_*.trace.xz` big-endian uint32 ids; other `*.trace.xz` big-endian int64 ids; `*.lis.zst` runs of blocks
    (ARC); `*.csv.xz` disk requests with header `version,time,op,size,lbn` (CloudPhysics); `*.csv` with header
    `time_ms,key,size,ttl`. The first three have no times and need `rate_per_s`, the arrival rate to give them.
    Raises ValueError for an unknown name, a missing rate or a malformed file.
    """
    if path.name.endswith(".trace.xz"):
        width = ">u4" if path.name.startswith("cache2k") else ">i8"
        ids = np.frombuffer(lzma.decompress(path.read_bytes()), dtype=width).astype(np.uint64)
        return _paced(ids, rate_per_s, path)
    if path.name.endswith(".lis.zst"):
        return _paced(_arc_blocks(path), rate_per_s, path)
    if path.name.endswith(".csv.xz"):
        return _disk_requests(lzma.decompress(path.read_bytes()).decode("ascii"), path)
    if path.name.endswith(".csv"):
        return _plain_csv(path.read_text(encoding="utf-8"), path)
    raise ValueError(f"unknown trace format `{path.name}`, use `.trace.xz`, `.lis.zst`, `.csv.xz` or `.csv`")


def _paced(ids: npt.NDArray[np.uint64], rate_per_s: float | None, path: Path) -> AccessTrace:
    if rate_per_s is None or rate_per_s <= 0:
        raise ValueError(f"`{path.name}` has no times, give the arrival rate to assume with `rate_per_s`")
    times = np.floor(np.arange(len(ids)) * (1000.0 / rate_per_s)).astype(np.int64)
    return AccessTrace.of(times, mix(ids))


def _arc_blocks(path: Path) -> npt.NDArray[np.uint64]:
    # zstandard is needed for this one format only and comes with the application's dependencies, not with the
    # library's.
    import zstandard

    with path.open("rb") as raw:
        text = zstandard.ZstdDecompressor().stream_reader(raw).read()
    table = np.loadtxt(io.BytesIO(text), dtype=np.int64, usecols=(0, 1), ndmin=2)
    first, count = table[:, 0], table[:, 1]
    ends = np.cumsum(count)
    within = np.arange(int(ends[-1])) - np.repeat(ends - count, count)
    blocks: npt.NDArray[np.uint64] = (np.repeat(first, count) + within).astype(np.uint64)
    return blocks


def _disk_requests(text: str, path: Path) -> AccessTrace:
    header, _, body = text.partition("\n")
    if header.strip() != "version,time,op,size,lbn":
        raise ValueError(f"`{path.name}` has header `{header.strip()[:80]}`, expected `version,time,op,size,lbn`")
    rows = [line.split(",") for line in body.splitlines() if line]
    times = np.array([int(row[1]) for row in rows], dtype=np.int64) * 1000
    # SCSI WRITE(6), WRITE(10), WRITE(12) and WRITE(16); every other operation of the file reads.
    writes = np.isin(np.array([row[2] for row in rows]), ["0a", "a", "2a", "aa", "8a"])
    sizes = np.array([int(row[3]) for row in rows], dtype=np.int32)
    blocks = np.array([int(row[4]) for row in rows], dtype=np.uint64)
    order = np.argsort(times, kind="stable")
    op = np.where(writes, np.uint8(Op.WRITE), np.uint8(Op.READ))
    return AccessTrace.of(times[order], mix(blocks[order]), op[order], np.maximum(sizes[order], _SECTOR_BYTES))


def _plain_csv(text: str, path: Path) -> AccessTrace:
    header, _, body = text.partition("\n")
    if header.strip() != "time_ms,key,size,ttl":
        raise ValueError(f"`{path.name}` has header `{header.strip()[:80]}`, expected `time_ms,key,size,ttl`")
    rows = [line.split(",") for line in body.splitlines() if line]
    if any(len(row) != 4 for row in rows):
        raise ValueError(f"`{path.name}` has a row without four fields")
    columns = [np.array([int(row[i]) for row in rows], dtype=np.int64) for i in range(4)]
    order = np.argsort(columns[0], kind="stable")
    return AccessTrace.of(
        columns[0][order], mix(columns[1][order].astype(np.uint64)), None, columns[2][order], columns[3][order]
    )
