"""The published trace formats, each read into columns piece by piece.

It never guesses what a file does not say: a column that a format lacks is None. Ids are mixed and names hashed, one to
one as far as anybody can tell, so that spatial filters work on them; no name of a key is kept.

INVARIANT: every row of a file is one row of its columns, in the order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import mix
from cachewarden.cachemodel.trace import Op
from cachewarden.cachemodel.trace_columns import Columns, ColumnSpec
from cachewarden.cachemodel.trace_stream import TraceFileError, line_batches, pieces, record_batches

__all__ = ["Rows", "TraceFormat", "detect", "rows_of"]


class TraceFormat(StrEnum):
    """Formats that can be read.

    twitter: `time s,key,key size,value size,client,operation,TTL s` (Twitter 2020). oracle-general: libCacheSim's
    records of time s uint32, id uint64, size uint32, next access int64. columns: text with the columns of a
    `ColumnSpec`. plain: `time_ms,key,size,ttl` with that header. cloudphysics: disk requests with header
    `version,time,op,size,lbn`. arc: runs of blocks. ids32, ids64: big-endian ids and nothing else.
    """

    TWITTER = "twitter"
    ORACLE_GENERAL = "oracle-general"
    COLUMNS = "columns"
    PLAIN = "plain"
    CLOUDPHYSICS = "cloudphysics"
    ARC = "arc"
    IDS32 = "ids32"
    IDS64 = "ids64"


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some rows: `key` uint64, `time_ms` int64, `op` uint8, `size_bytes` int64 and `ttl_ms` int64; None = not in the
    format."""

    key: npt.NDArray[np.uint64]
    time_ms: npt.NDArray[np.int64] | None = None
    op: npt.NDArray[np.uint8] | None = None
    size_bytes: npt.NDArray[np.int64] | None = None
    ttl_ms: npt.NDArray[np.int64] | None = None


_PLAIN_HEADER: Final = b"time_ms,key,size,ttl"
_DISK_HEADER: Final = b"version,time,op,size,lbn"
_SECTOR_BYTES: Final = 512
# A longer run than any disk request is no run; it would be unpacked in memory.
_RUN_MAX: Final = 1 << 20
# SCSI WRITE(6), WRITE(10), WRITE(12) and WRITE(16); every other operation of the file reads.
_DISK_WRITES: Final = (b"0a", b"a", b"2a", b"aa", b"8a")
_ORACLE: Final = np.dtype([("time_s", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
_OPERATIONS: Final = {
    **dict.fromkeys((b"get", b"gets", b"read"), int(Op.READ)),
    **dict.fromkeys(
        (b"set", b"add", b"replace", b"cas", b"append", b"prepend", b"incr", b"decr", b"write"), int(Op.WRITE)
    ),
    **dict.fromkeys((b"delete", b"del"), int(Op.DELETE)),
}
_TWITTER_ROW: Final = re.compile(
    rb"\d+,.+,\d+,\d+,\d*,(get|gets|set|add|replace|cas|append|prepend|delete|incr|decr),\d+"
)
_WAY_OUT: Final = "name one of " + ", ".join(TraceFormat)

_entry_bytes = lru_cache(maxsize=1 << 16)(entry_bytes)


def detect(path: Path) -> TraceFormat:
    """Tell the format by name and content; raises TraceFileError where neither says it."""
    name = re.sub(r"\.(gz|xz|zst|zstd)$", "", path.name.lower())
    head = next(pieces(path), b"")
    if "oraclegeneral" in name:
        return TraceFormat.ORACLE_GENERAL
    if name.endswith(".lis"):
        return TraceFormat.ARC
    if name.endswith(".trace"):
        return TraceFormat.IDS32 if name.startswith("cache2k") else TraceFormat.IDS64
    line = head.partition(b"\n")[0].strip()
    if line == _PLAIN_HEADER:
        return TraceFormat.PLAIN
    if line == _DISK_HEADER:
        return TraceFormat.CLOUDPHYSICS
    if _TWITTER_ROW.fullmatch(line):
        return TraceFormat.TWITTER
    if _looks_like_oracle_general(head):
        return TraceFormat.ORACLE_GENERAL
    if line and line.isascii() and line.decode("ascii").isprintable():
        first = line[:80].decode("ascii")
        raise TraceFileError(
            f"unknown trace format, its first line is `{first}`: say which columns it has, or {_WAY_OUT}",
            path=path.name,
        )
    raise TraceFileError(f"unknown trace format: {_WAY_OUT}", path=path.name)


def _looks_like_oracle_general(head: bytes) -> bool:
    """Say whether the first records have times that do not run backwards and next accesses that lie ahead or never."""
    records = np.frombuffer(head, _ORACLE, count=min(len(head) // _ORACLE.itemsize, 1000))
    if len(records) == 0:
        return False
    ahead = records["next"] > np.arange(len(records))
    never = (records["next"] == -1) | (records["next"] == np.iinfo(np.int64).max)
    return bool(np.all(records["time_s"][1:] >= records["time_s"][:-1]) and np.all(ahead | never))


def rows_of(path: Path, trace_format: TraceFormat, columns: ColumnSpec | None) -> Iterator[Rows]:
    """Yield the rows of a file; raises TraceFileError with line or byte where it is not of that format."""
    if trace_format is TraceFormat.COLUMNS:
        if columns is None:
            raise TraceFileError("say which columns it has, e.g. `time-col=1,obj-id-col=2`", path=path.name)
        return _by_columns(path, columns)
    return {
        TraceFormat.TWITTER: _twitter,
        TraceFormat.ORACLE_GENERAL: _oracle_general,
        TraceFormat.PLAIN: _plain,
        TraceFormat.CLOUDPHYSICS: _disk_requests,
        TraceFormat.ARC: _arc_blocks,
        TraceFormat.IDS32: _ids32,
        TraceFormat.IDS64: _ids64,
    }[trace_format](path)


def _ids32(path: Path) -> Iterator[Rows]:
    for ids in record_batches(path, np.dtype(">u4")):
        yield Rows(mix(ids.astype(np.uint64)))


def _ids64(path: Path) -> Iterator[Rows]:
    for ids in record_batches(path, np.dtype(">i8")):
        yield Rows(mix(ids.astype(np.uint64)))


def _oracle_general(path: Path) -> Iterator[Rows]:
    for records in record_batches(path, _ORACLE):
        yield Rows(
            mix(records["id"].astype(np.uint64)),
            records["time_s"].astype(np.int64) * 1000,
            None,
            records["size"].astype(np.int64),
        )


def _arc_blocks(path: Path) -> Iterator[Rows]:
    for number, lines in line_batches(path):
        table = Columns(path, number, lines, b" ", fields_min=2)
        if not len(table):
            continue
        first = table.integers(0, "first block")
        count = table.integers(1, "number of blocks", 0, _RUN_MAX)
        ends = np.cumsum(count)
        within = np.arange(int(ends[-1])) - np.repeat(ends - count, count)
        yield Rows(mix((np.repeat(first, count) + within).astype(np.uint64)))


def _disk_requests(path: Path) -> Iterator[Rows]:
    for number, lines in _below_header(path, _DISK_HEADER):
        table = Columns(path, number, lines, b",", fields_min=5, fields_max=5)
        if len(table):
            op = np.where(np.isin(table.texts(2), _DISK_WRITES), np.uint8(Op.WRITE), np.uint8(Op.READ))
            yield Rows(
                mix(table.integers(4, "block").astype(np.uint64)),
                table.integers(1, "time") * 1000,
                op,
                np.maximum(table.integers(3, "size"), _SECTOR_BYTES),
            )


def _plain(path: Path) -> Iterator[Rows]:
    for number, lines in _below_header(path, _PLAIN_HEADER):
        table = Columns(path, number, lines, b",", fields_min=4, fields_max=4)
        if len(table):
            yield Rows(
                mix(table.integers(1, "key").astype(np.uint64)),
                table.integers(0, "time"),
                None,
                table.integers(2, "size"),
                table.integers(3, "TTL"),
            )


def _twitter(path: Path) -> Iterator[Rows]:
    for number, lines in line_batches(path):
        # A key may hold commas, so the last five fields are taken off from behind.
        table = Columns(path, number, lines, b",", fields_min=7, fields_max=7, joined_field=1)
        if not len(table):
            continue
        op = _operations(table, 5)
        key_size = table.integers(2, "key size", 0)
        value_size = table.integers(3, "value size", 0)
        ttl_ms = table.integers(6, "TTL") * 1000
        sizes = np.fromiter(
            map(_entry_bytes, key_size.tolist(), value_size.tolist(), (ttl_ms > 0).tolist()), np.int64, len(table)
        )
        # A read without a value did not find one, which says nothing of the size that the entry would have.
        sizes[(op == Op.DELETE) | ((op == Op.READ) & (value_size == 0))] = 0
        yield Rows(_hashed(table.raw(1)), table.integers(0, "time") * 1000, op, sizes, ttl_ms)


def _by_columns(path: Path, spec: ColumnSpec) -> Iterator[Rows]:
    for number, lines in line_batches(path):
        skipped = 0
        if number == 1 and (spec.is_header(lines[0]) if spec.has_header is None else spec.has_header):
            skipped = 1
        table = Columns(path, number + skipped, lines[skipped:], spec.delimiter, fields_min=spec.last)
        if not len(table):
            continue
        if spec.key_is_number:
            keys = mix(table.integers(spec.key, "id").astype(np.uint64))
        else:
            keys = _hashed(table.raw(spec.key))
        yield Rows(
            keys,
            None if spec.time is None else table.times_ms(spec.time, spec.time_unit_ms),
            None if spec.op is None else _operations(table, spec.op),
            None if spec.size is None else table.integers(spec.size, "size"),
            None if spec.ttl is None else table.times_ms(spec.ttl, 1000.0),
        )


def _below_header(path: Path, header: bytes) -> Iterator[tuple[int, list[bytes]]]:
    seen = False
    for number, lines in line_batches(path):
        if not seen:
            found = lines[0].strip()
            if found != header:
                text = found[:80].decode("ascii", "replace")
                raise TraceFileError(f"the header is `{text}`, expected `{header.decode()}`", path=path.name, line=1)
            seen = True
            yield number + 1, lines[1:]
        else:
            yield number, lines


def _operations(table: Columns, field: int) -> npt.NDArray[np.uint8]:
    codes = [_OPERATIONS.get(word.strip().lower(), -1) for word in table.raw(field)]
    if -1 in codes:
        row = codes.index(-1)
        raise table.error(row, f"unknown operation `{table.shown(field, row)}`, known are {_known_operations()}")
    return np.array(codes, dtype=np.uint8)


def _known_operations() -> str:
    return ", ".join(word.decode() for word in sorted(_OPERATIONS))


def _hashed(names: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    joined = b"".join([blake2b(name, digest_size=8).digest() for name in names])
    hashes: npt.NDArray[np.uint64] = np.frombuffer(joined, dtype=np.dtype(">u8")).astype(np.uint64)
    return hashes
