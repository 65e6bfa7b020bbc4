"""Reads the bytes of trace files in pieces: plain, gzip, xz or zstd, told by the first bytes, never by the name.

It knows no format; `trace_formats` does. INVARIANT: however large a file is, one piece of it is held at a time.
"""

from __future__ import annotations

import gzip
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from cachewarden.errors import ConfigurationError

__all__ = ["TraceFileError", "line_batches", "pieces", "record_batches"]

_PIECE_BYTES = 1 << 20
# What one piece of zstd may unpack to is only bounded by its length, so these are short.
_ZSTD_PIECE_BYTES = 1 << 14
_LINE_BYTES_MAX = 1 << 20
_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\x00", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


class TraceFileError(ConfigurationError, ValueError):
    """A trace file cannot be read as asked; the message names file and line or byte, and the way out."""


def pieces(path: Path) -> Iterator[bytes]:
    """Yield the unpacked content; raises TraceFileError for a file that is missing, damaged or cut off."""
    given = 0
    try:
        with path.open("rb") as raw:
            for piece in _unpacked(raw, path):
                given += len(piece)
                yield piece
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise TraceFileError(f"damaged or cut off after {given} unpacked bytes: {error}", path=path.name) from None
    except OSError as error:
        raise TraceFileError(f"cannot be read: {error.strerror or error}", path=str(path)) from None


def _unpacked(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    head = raw.read(len(_XZ))
    raw.seek(0)
    if head.startswith(_ZSTD):
        yield from _zstd_pieces(raw, path)
        return
    if head.startswith(_XZ):
        with lzma.open(raw) as xz:
            yield from _read_on(xz.read)
    elif head.startswith(_GZIP):
        with gzip.open(raw) as gz:
            yield from _read_on(gz.read)
    else:
        yield from _read_on(raw.read)


def _read_on(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(_PIECE_BYTES):
        yield piece


def _zstd_pieces(raw: IO[bytes], path: Path) -> Iterator[bytes]:
    try:
        # It comes with the application's dependencies, not with the library's.
        import zstandard
    except ImportError:
        raise TraceFileError(
            "is packed with zstd, which needs the package `zstandard`: install it, or unpack the file",
            path=path.name,
        ) from None
    unpacker: Any = None
    try:
        while packed := raw.read(_ZSTD_PIECE_BYTES):
            # A file may hold several frames, one after the other, and a piece may hold the end of one and the next.
            while packed:
                if unpacker is None or unpacker.eof:
                    unpacker = zstandard.ZstdDecompressor().decompressobj()
                piece = unpacker.decompress(packed)
                packed = unpacker.unused_data if unpacker.eof else b""
                if piece:
                    yield piece
    except zstandard.ZstdError as error:
        raise EOFError(str(error)) from None
    if unpacker is None or not unpacker.eof:
        raise EOFError("the last frame has no end")


def line_batches(path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the number of the first line, counted from 1, and some lines without their ends."""
    number, rest = 1, b""
    for piece in pieces(path):
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > _LINE_BYTES_MAX:
            raise TraceFileError("no end of the line within 1 MiB, this is no text", path=path.name, line=number)
        if lines:
            yield number, lines
            number += len(lines)
    if rest:
        yield number, [rest]


def record_batches(path: Path, dtype: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield records of a fixed length; raises TraceFileError where the last one is not whole."""
    rest, offset = b"", 0
    for piece in pieces(path):
        joined = rest + piece
        whole = len(joined) // dtype.itemsize * dtype.itemsize
        rest = joined[whole:]
        if whole:
            yield np.frombuffer(joined, dtype=dtype, count=whole // dtype.itemsize)
            offset += whole
    if rest:
        raise TraceFileError(
            f"ends within a record: {len(rest)} of {dtype.itemsize} bytes at byte {offset}, another format or cut off",
            path=path.name,
        )
