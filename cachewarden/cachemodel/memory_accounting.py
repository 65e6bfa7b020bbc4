"""What one entry costs in server memory, and how many entries fit.

It models how Redis 7.0 stores a string: sds key, value object (embedded or not), dict entry, hash table slot, each
rounded to jemalloc's size classes. It never measures; a mean from MEMORY USAGE or DBSIZE beats it where there is one.

INVARIANT: an entry never costs less than its key and value.
"""

from __future__ import annotations

import math
from enum import StrEnum

__all__ = ["Encoding", "allocation_bytes", "encoding_of", "entry_bytes", "resident_capacity", "string_bytes"]

_ROBJ_BYTES = 16
_DICT_ENTRY_BYTES = 24
_POINTER_BYTES = 8
_EMBSTR_MAX = 44  # OBJ_ENCODING_EMBSTR_SIZE_LIMIT in object.c
# A power-of-two table that doubles when full has between one and two slots a key; the mean over the logarithm is 1/ln
# 2.
_SLOTS_PER_KEY = 1.0 / math.log(2.0)


class Encoding(StrEnum):
    """How Redis stores a value, in its own words; LISTPACK stands for any small collection in one block."""

    INT = "int"
    EMBSTR = "embstr"
    RAW = "raw"
    LISTPACK = "listpack"


def allocation_bytes(wanted: int) -> int:
    """Return the jemalloc size class (16-byte quantum, four classes per doubling) that holds `wanted` > 0 bytes."""
    if wanted <= 0:
        raise ValueError(f"cannot allocate `{wanted}` bytes, ask for at least 1")
    if wanted <= 8:
        return 8
    if wanted <= 128:
        return -(-wanted // 16) * 16
    # Between 2**n and 2**(n+1) the classes lie 2**(n-2) apart.
    spacing = 1 << ((wanted - 1).bit_length() - 3)
    return -(-wanted // spacing) * spacing


def string_bytes(length: int) -> int:
    """Return header, text and terminator of a string of `length` bytes (sds.h: sdshdr5, 8, 16, 32)."""
    header = 1 if length < 1 << 5 else 3 if length < 1 << 8 else 5 if length < 1 << 16 else 9
    return header + length + 1


def encoding_of(value: bytes) -> Encoding:
    """Return the encoding that Redis gives to a string value (tryObjectEncoding in object.c)."""
    if len(value) <= 20 and value.isascii():
        text = value.decode("ascii")
        if text.lstrip("-").isdigit() and str(int(text)) == text and -(2**63) <= int(text) < 2**63:
            return Encoding.INT
    return Encoding.EMBSTR if len(value) <= _EMBSTR_MAX else Encoding.RAW


def _value_bytes(value_len: int, encoding: Encoding) -> int:
    if encoding is Encoding.INT:
        return allocation_bytes(_ROBJ_BYTES)
    if encoding is Encoding.EMBSTR:
        if value_len > _EMBSTR_MAX:
            raise ValueError(f"a value of {value_len} bytes cannot be `embstr`, its limit is {_EMBSTR_MAX}")
        # An embedded string always has the 3-byte header, however short it is.
        return allocation_bytes(_ROBJ_BYTES + 3 + value_len + 1)
    if encoding is Encoding.LISTPACK:
        # Total bytes and element count come first, one end byte last (listpack.h).
        return allocation_bytes(_ROBJ_BYTES) + allocation_bytes(value_len + 7)
    return allocation_bytes(_ROBJ_BYTES) + allocation_bytes(string_bytes(value_len))


def entry_bytes(key_len: int, value_len: int, has_ttl: bool, encoding: Encoding | None = None) -> int:
    """Return the memory of one entry in bytes, hash table slots included.

    `key_len` and `value_len` in bytes, `encoding` by default that of a string that is not an integer.
    Raises ValueError for a negative length or an impossible encoding.
    """
    if key_len < 0 or value_len < 0:
        raise ValueError(f"lengths must not be negative, got key `{key_len}` and value `{value_len}`")
    if encoding is None:
        encoding = Encoding.EMBSTR if value_len <= _EMBSTR_MAX else Encoding.RAW
    slot = _POINTER_BYTES * _SLOTS_PER_KEY
    total: float = allocation_bytes(string_bytes(key_len)) + _value_bytes(value_len, encoding)
    total += allocation_bytes(_DICT_ENTRY_BYTES) + slot
    if has_ttl:
        # The expires table shares the key but has an entry and a slot of its own; the time lies inside the entry.
        total += allocation_bytes(_DICT_ENTRY_BYTES) + slot
    return round(total)


def resident_capacity(maxmemory_bytes: int, fixed_overhead_bytes: int, mean_entry_bytes: float) -> int:
    """Return how many entries fit below maxmemory once the fixed overhead (start-up, buffers, backlog) is taken off."""
    if mean_entry_bytes <= 0:
        raise ValueError(f"mean entry of `{mean_entry_bytes}` bytes is impossible, measure it first")
    return max(0, int((maxmemory_bytes - fixed_overhead_bytes) // mean_entry_bytes))
