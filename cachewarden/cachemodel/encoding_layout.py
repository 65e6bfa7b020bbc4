"""What a collection costs in memory under each of its encodings, by server.

It models one value with its object, without its name in the keyspace: a listpack or intset is one block, a hash table
is many small ones. It never measures; the parameters were compared with the growth of used_memory on Redis 7.0.15
(jemalloc) and Valkey 9.1.2 (libc), see `benchmarks/encoding_layout.py`. Sources: `listpack.c`, `intset.c`, `dict.c`,
`t_hash.c`, `t_set.c`, `t_zset.c`, `quicklist.c` (Redis), `hashtable.c`, `entry.c` (Valkey).

INVARIANT: a collection never costs less than its members and values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from cachewarden.cachemodel.memory_accounting import string_bytes
from cachewarden.cachemodel.server_model import Allocator

__all__ = [
    "REDIS_7_0_LAYOUT",
    "VALKEY_9_1_LAYOUT",
    "CollectionKind",
    "CollectionLayout",
    "intset_width",
    "layout_of",
    "listpack_entry_bytes",
    "listpack_integer",
]

_OBJECT_BYTES = 16
_POINTER_BYTES = 8
_LISTPACK_FRAME_BYTES = 7  # total bytes, number of elements, end mark (listpack.h)
_INTSET_HEADER_BYTES = 8
_DICT_MIN_SLOTS = 4  # DICT_HT_INITIAL_SIZE
_LEVEL_CHANCE = 0.25  # ZSKIPLIST_P
_LEVEL_BYTES = 16
_LEVELS = 12
"""Levels above have a chance of 6e-8 and do not count."""
_BUCKET_KEYS, _BUCKET_BYTES = 7, 64
_POISSON_TERMS = 40


class CollectionKind(StrEnum):
    """What TYPE says."""

    HASH = "hash"
    LIST = "list"
    SET = "set"
    ZSET = "zset"


def listpack_integer(text: bytes) -> int | None:
    """Return the number that a listpack or intset would keep instead of this text, None where it stays text
    (string2ll: 64 bits, no leading zero, no plus sign, no minus zero)."""
    if not 0 < len(text) <= 20:
        return None
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or (digits[:1] == b"0" and text != b"0"):
        return None
    number = int(text)
    return number if -(2**63) <= number < 2**63 else None


def listpack_entry_bytes(text: bytes) -> int:
    """Return the bytes of one element in a listpack: encoding, data and the length to walk backwards (listpack.c)."""
    number = listpack_integer(text)
    if number is not None:
        body = _integer_body(number)
    else:
        length = len(text)
        body = length + (1 if length < 64 else 2 if length < 4096 else 5)
    return body + (1 if body < 1 << 7 else 2 if body < 1 << 14 else 3 if body < 1 << 21 else 4 if body < 1 << 28 else 5)


def _integer_body(number: int) -> int:
    if 0 <= number <= 127:
        return 1
    if -4096 <= number <= 4095:
        return 2
    magnitude = number if number >= 0 else -number - 1
    return next(size for bits, size in ((15, 3), (23, 4), (31, 5), (63, 9)) if magnitude < 1 << bits)


def intset_width(numbers: Iterable[int]) -> int:
    """Return the bytes of each member of an intset of these numbers: 2, 4 or 8; the widest decides (intset.c)."""
    widest = max((number if number >= 0 else -number - 1 for number in numbers), default=0)
    return 2 if widest < 1 << 15 else 4 if widest < 1 << 31 else 8


@dataclass(frozen=True, slots=True)
class CollectionLayout:
    """How one server family lays collections out.

    `bucketed`: Valkey's hash table of 64-byte buckets with field and value (or member and skip list node) in one
    block, instead of Redis's chained dict of separate strings. `set_listpack`: small sets of text may be listpacks
    (Redis 7.2, Valkey). `usage_misses`: bytes of each member that MEMORY USAGE does not count.
    """

    name: str
    allocator: Allocator
    bucketed: bool
    set_listpack: bool
    table_bytes: int
    """The table's own structure, without slots or buckets."""
    node_bytes: int
    """Skip list node without its levels and, where it is apart, the member."""

    def on(self, allocator: Allocator) -> CollectionLayout:
        """Return the same layout under another allocator."""
        return replace(self, allocator=allocator)

    def listpack_bytes(self, elements_bytes: int) -> int:
        """Return a hash, set or sorted set as listpack whose elements (`listpack_entry_bytes`) add up to that."""
        rounded = self.allocator.rounded
        return rounded(_OBJECT_BYTES) + rounded(_LISTPACK_FRAME_BYTES + elements_bytes)

    def intset_bytes(self, entries: int, width: int) -> int:
        """Return a set of integers of `width` (2, 4, 8) bytes each."""
        rounded = self.allocator.rounded
        return rounded(_OBJECT_BYTES) + rounded(_INTSET_HEADER_BYTES + entries * width)

    def quicklist_bytes(self, entries: int, elements_bytes: int, node_limit_bytes: int = 8192) -> int:
        """Return a list in nodes of up to `node_limit_bytes` (`list-max-listpack-size -2` is 8192)."""
        nodes = max(1, math.ceil(elements_bytes / node_limit_bytes)) if entries else 1
        rounded = self.allocator.rounded
        each = rounded(32) + rounded(_LISTPACK_FRAME_BYTES + math.ceil(elements_bytes / nodes))
        return rounded(_OBJECT_BYTES) + rounded(40) + nodes * each

    def hash_table_bytes(self, entries: int, member_bytes: int, value_bytes: int | None) -> int:
        """Return a hash (`value_bytes` of each value) or a set (None) as hash table, once it has stopped rehashing."""
        rounded = self.allocator.rounded
        if self.bucketed:
            return (
                rounded(_OBJECT_BYTES) + self._buckets_bytes(entries) + entries * self._pair(member_bytes, value_bytes)
            )
        strings = rounded(string_bytes(member_bytes))
        strings += 0 if value_bytes is None else rounded(string_bytes(value_bytes))
        return rounded(_OBJECT_BYTES) + self._slots_bytes(entries) + entries * (rounded(3 * _POINTER_BYTES) + strings)

    def skip_list_bytes(self, entries: int, member_bytes: int) -> int:
        """Return a sorted set as skip list and hash table; levels of nodes are taken at their mean (t_zset.c)."""
        rounded = self.allocator.rounded
        text = string_bytes(member_bytes)
        inside = 1 + text if self.bucketed else 0
        node = sum(
            (1 - _LEVEL_CHANCE)
            * _LEVEL_CHANCE ** (level - 1)
            * rounded(self.node_bytes + level * _LEVEL_BYTES + inside)
            for level in range(1, _LEVELS + 1)
        )
        head = rounded(self.node_bytes + 32 * _LEVEL_BYTES) + rounded(32) + rounded(16)
        if self.bucketed:
            return round(rounded(_OBJECT_BYTES) + head + self._buckets_bytes(entries) + entries * node)
        each = rounded(3 * _POINTER_BYTES) + rounded(text) + node
        return round(rounded(_OBJECT_BYTES) + head + self._slots_bytes(entries) + entries * each)

    def uncounted_bytes(self, entries: int) -> float:
        """Return what MEMORY USAGE leaves out of a hash table of so many members: it takes the structure of a dict
        entry for its allocation (object.c)."""
        return (
            0.0 if self.bucketed else float(entries * (self.allocator.rounded(3 * _POINTER_BYTES) - 3 * _POINTER_BYTES))
        )

    def name_bytes(self, key_bytes: int, has_ttl: bool = False) -> int:
        """Return what MEMORY USAGE adds to a collection for a key of that length."""
        rounded = self.allocator.rounded
        if self.bucketed:
            # The name lies in the object, whose 16 bytes the other functions count.
            whole = _OBJECT_BYTES + (8 if has_ttl else 0) + 1 + string_bytes(key_bytes)
            return rounded(whole) - rounded(_OBJECT_BYTES)
        return rounded(string_bytes(key_bytes)) + 3 * _POINTER_BYTES

    def _slots_bytes(self, entries: int) -> int:
        slots = _DICT_MIN_SLOTS
        while slots < entries:
            slots *= 2
        return self.allocator.rounded(self.table_bytes) + self.allocator.rounded(slots * _POINTER_BYTES)

    def _buckets_bytes(self, entries: int) -> int:
        buckets = 1
        while buckets * _BUCKET_KEYS < entries:
            buckets *= 2
        chained = buckets * _children(entries / buckets) if entries > _BUCKET_KEYS else 0.0
        rounded = self.allocator.rounded
        return round(rounded(self.table_bytes) + rounded(buckets * _BUCKET_BYTES) + chained * rounded(_BUCKET_BYTES))

    def _pair(self, member_bytes: int, value_bytes: int | None) -> int:
        rounded = self.allocator.rounded
        member = string_bytes(member_bytes)
        if value_bytes is None:
            return rounded(member)
        # Field and value in one block up to 128 bytes, else a pointer to the value in front of the field (entry.c).
        value = max(3 + value_bytes + 1, string_bytes(value_bytes))
        if member + value <= 128:
            return rounded(member + value)
        return rounded(_POINTER_BYTES + max(3 + member_bytes + 1, member)) + rounded(string_bytes(value_bytes))


def _children(load: float) -> float:
    """Return the mean number of buckets chained to one that `load` keys fell into at random: a full one gives one of
    its 7 places for the link (hashtable.c)."""
    chance, total = math.exp(-load), 0.0
    for keys in range(_POISSON_TERMS):
        if keys:
            chance *= load / keys
        total += chance * max(0, -(-(keys - 1) // 6) - 1 if keys > _BUCKET_KEYS else 0)
    return total


REDIS_7_0_LAYOUT = CollectionLayout(
    "redis-7.0", Allocator.JEMALLOC, bucketed=False, set_listpack=False, table_bytes=56, node_bytes=24
)
VALKEY_9_1_LAYOUT = CollectionLayout(
    "valkey-9.1", Allocator.LIBC, bucketed=True, set_listpack=True, table_bytes=56, node_bytes=16
)


def layout_of(server: str, version: str, allocator: str) -> CollectionLayout | str:
    """Return the layout of a server by what its INFO says, or why it is not known.

    A layout holds for the major version that it was measured on; `allocator` is `mem_allocator`.
    """
    if not allocator.startswith(("jemalloc", "libc")):
        return f"nobody has measured collections under the allocator `{allocator or 'unknown'}`"
    found = Allocator.JEMALLOC if allocator.startswith("jemalloc") else Allocator.LIBC
    if server == "redis" and version.startswith("7.0."):
        return REDIS_7_0_LAYOUT.on(found)
    if server == "valkey" and version.startswith("9."):
        return VALKEY_9_1_LAYOUT.on(found)
    return f"nobody has measured how {server} {version} lays collections out"
