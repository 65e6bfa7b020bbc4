"""Builders of value samples: an invented cache whose truth the tests know."""

from __future__ import annotations

import numpy as np

from cachewarden.cachemodel.encoding_layout import REDIS_7_0_LAYOUT, listpack_entry_bytes
from cachewarden.value_sample import LARGE_VALUE_BYTES, VALUE_KINDS, ValueSample


def large_string(plain: int = 4_000, packed: int = 1_000, pattern: int = 0, twin: int = -1) -> dict:
    return {"kind": "string", "encoding": "raw", "size": plain + 80, "pattern": pattern, "value": (plain, packed, twin)}


def big_hash(
    entries: int = 200, field: int = 10, value: int = 20, longest: int | None = None, read: int | None = None
) -> dict:
    """A hash table of that many entries; `read` instead of what a listpack of it would take."""
    layout = REDIS_7_0_LAYOUT
    size = layout.hash_table_bytes(entries, field, value) + layout.name_bytes(8) - layout.uncounted_bytes(entries)
    packed = entries * (listpack_entry_bytes(b"f" * field) + listpack_entry_bytes(b"v" * value))
    collection = (entries, 8, packed if read is None else read, max(field, value) if longest is None else longest, 0)
    return {"kind": "hash", "encoding": "hashtable", "size": int(size), "pattern": 1, "collection": collection}


def big_set(entries: int = 700, width: int = 4) -> dict:
    layout = REDIS_7_0_LAYOUT
    size = layout.hash_table_bytes(entries, 6, None) + layout.name_bytes(8) - layout.uncounted_bytes(entries)
    collection = (entries, 8, entries * 6, 6, width)
    return {"kind": "set", "encoding": "hashtable", "size": int(size), "pattern": -1, "collection": collection}


def small_string() -> dict:
    return {"kind": "", "encoding": "", "size": 90, "pattern": -1}


def value_sample(*keys: dict, patterns: tuple[str, ...] = ("page:", "user:"), touched: int = 0) -> ValueSample:
    """A sample of these keys in this order."""
    encodings = tuple(sorted({key["encoding"] for key in keys if key["encoding"]}))
    values = [(row, *key["value"]) for row, key in enumerate(keys) if "value" in key]
    collections = [(row, *key["collection"]) for row, key in enumerate(keys) if "collection" in key]
    assert all(keys[row]["size"] >= LARGE_VALUE_BYTES for row, *_ in values)
    value = list(zip(*values, strict=True)) or [()] * 4
    collection = list(zip(*collections, strict=True)) or [()] * 6
    # A twin of -1 is a value of its own.
    twin = [number if number >= 0 else 1_000_000 + row for row, number in enumerate(value[3])]
    return ValueSample(
        patterns=patterns,
        encodings=encodings,
        size_bytes=np.array([key["size"] for key in keys], dtype=np.int64),
        pattern=np.array([key["pattern"] for key in keys], dtype=np.int32),
        kind=np.array([VALUE_KINDS.index(key["kind"]) if key["kind"] else -1 for key in keys], dtype=np.int8),
        encoding=np.array(
            [encodings.index(key["encoding"]) if key["encoding"] else -1 for key in keys], dtype=np.int32
        ),
        value_row=np.array(value[0], dtype=np.int32),
        plain_bytes=np.array(value[1], dtype=np.int64),
        compressed_bytes=np.array(value[2], dtype=np.int64),
        twin=np.array(twin, dtype=np.int32),
        collection_row=np.array(collection[0], dtype=np.int32),
        entries=np.array(collection[1], dtype=np.int64),
        name_bytes=np.array(collection[2], dtype=np.int32),
        elements_bytes=np.array(collection[3], dtype=np.int64),
        longest_bytes=np.array(collection[4], dtype=np.int64),
        intset_width=np.array(collection[5], dtype=np.int8),
        read_bytes=int(sum(value[1])),
        touched_keys=touched,
    )
