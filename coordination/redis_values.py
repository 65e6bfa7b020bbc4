"""Measures values of a bounded sample of keys: what collections would take in a listpack, how well strings compress.

Only where the fleet file permits it (`value_samples: true`). A value is in memory while it is measured and nowhere
else: what leaves are lengths, counts and which values were equal. It never writes, and reads under CLIENT NO-TOUCH
wherever the server knows it; an older server makes the keys that were read young, and the sample says how many.

INVARIANT: no reply with a value is kept or logged, and by what the server said of it just before, none is asked for
that is longer than `ValueLimits.range_bytes` or takes all of them beyond `total_bytes`.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import zstandard

from cachewarden.cachemodel.encoding_layout import intset_width, listpack_entry_bytes, listpack_integer
from cachewarden.errors import TargetRefused
from cachewarden.value_sample import LARGE_VALUE_BYTES, PASSED_OVER, VALUE_KINDS, ValueLimits, ValueSample
from coordination.monitor_lines import PatternIndex
from coordination.redis_probe import Pacer, text_of
from coordination.redis_wire import BATCH_COMMANDS, Command, RedisWire, Refusal, require

__all__ = ["sample_values"]

_LEVEL: Final = 3
_ASKED_FROM_BYTES: Final = 192
"""Below this no collection is a hash table or a skip list (their empty structures take more), and asking for the
encoding costs the cache a lookup."""
_BYTES_PER_COMMAND: Final = 4096
"""Reading so much of a value costs the server about as much as one more command."""
_READS_AT_ONCE: Final = 4
_SURE: Final = {
    "int": "string", "embstr": "string", "raw": "string", "quicklist": "list", "intset": "set", "skiplist": "zset",
    "stream": "stream", "listpackex": "hash",
}  # fmt: skip
_LENGTH: Final = {"hash": "HLEN", "set": "SCARD", "zset": "ZCARD"}
_LARGE_ENCODINGS: Final = frozenset({"hashtable", "skiplist"})


@dataclass(slots=True)
class _Key:
    """One sampled key while it is looked at."""

    name: bytes
    size_bytes: int
    encoding: str = ""
    kind: str = ""
    entries: int = -1


@dataclass(slots=True)
class _Measured:
    """Columns of what was read while they grow."""

    value_row: list[int] = field(default_factory=list)
    plain_bytes: list[int] = field(default_factory=list)
    compressed_bytes: list[int] = field(default_factory=list)
    twin: list[int] = field(default_factory=list)
    collections: list[tuple[int, int, int, int, int, int]] = field(default_factory=list)
    read_bytes: int = 0


async def sample_values(
    wire: RedisWire,
    *,
    keys: int,
    patterns: Sequence[str],
    hash_secret: bytes,
    own_prefix: bytes,
    pacer: Pacer,
    limits: ValueLimits,
) -> ValueSample:
    """Return what `keys` random keys (fewer where the keyspace is small) and their values measure.

    Raises TargetUnavailable, and TargetRefused naming the command that the user lacks; then nothing was read.
    """
    found = await _random_keys(wire, keys, own_prefix, pacer)
    touches = not _may_read_untouched(wire)
    await _ask_kinds(wire, found, pacer)
    measured = _Measured()
    await _compress(wire, found, measured, hash_secret, pacer, limits)
    await _measure_collections(wire, found, measured, pacer, limits)
    touched = set(measured.value_row) | {row[0] for row in measured.collections}
    return _sample(found, measured, PatternIndex(patterns), len(touched) if touches else 0)


def _may_read_untouched(wire: RedisWire) -> bool:
    """Say whether our connections leave the age of keys alone; raises TargetRefused where only the user lacks it."""
    if wire.no_touch_problem is None:
        return True
    if "permission" in wire.no_touch_problem.lower():
        raise TargetRefused(
            wire.service, "CLIENT NO-TOUCH", "reading values would make keys young, permit `+client|no-touch`"
        )
    return False


async def _random_keys(wire: RedisWire, keys: int, own_prefix: bytes, pacer: Pacer) -> list[_Key]:
    found: dict[bytes, int] = {}
    attempts = 0
    while len(found) < keys and attempts < 2 * keys:
        wanted = min(BATCH_COMMANDS, 2 * keys - attempts)
        await pacer.spend(wanted)
        drawn = await wire.ask([("RANDOMKEY",)] * wanted)
        attempts += wanted
        require(wire.service, drawn[0])
        fresh = [name for name in dict.fromkeys(drawn) if isinstance(name, bytes) and name not in found]
        fresh = [name for name in fresh if not name.startswith(own_prefix)][: keys - len(found)]
        if not fresh and all(name is None for name in drawn):
            break
        await pacer.spend(len(fresh))
        for name, size in zip(
            fresh, await wire.ask([("MEMORY", "USAGE", name, "SAMPLES", 5) for name in fresh]), strict=True
        ):
            require(wire.service, size)
            if isinstance(size, int):
                found[name] = size
    return [_Key(name, size) for name, size in found.items()]


async def _asked(wire: RedisWire, keys: Sequence[_Key], pacer: Pacer, question: Any) -> Iterator[tuple[_Key, Any]]:
    """Ask one question of each key; keys that are gone or have become something else are left out."""
    replies: list[Any] = []
    for start in range(0, len(keys), BATCH_COMMANDS):
        batch = keys[start : start + BATCH_COMMANDS]
        await pacer.spend(len(batch))
        replies += await wire.ask([question(key) for key in batch])
    for reply in replies:
        if isinstance(reply, Refusal) and "wrong kind of value" not in reply.reason:
            require(wire.service, reply)
    return ((key, reply) for key, reply in zip(keys, replies, strict=True) if not isinstance(reply, Refusal))


async def _ask_kinds(wire: RedisWire, keys: Sequence[_Key], pacer: Pacer) -> None:
    """Find encoding and type of the keys that are large enough, and the length of those in a large encoding."""
    asked = [key for key in keys if key.size_bytes >= _ASKED_FROM_BYTES]
    for key, encoding in await _asked(wire, asked, pacer, lambda key: ("OBJECT", "ENCODING", key.name)):
        key.encoding = "" if encoding is None else text_of(encoding)
        key.kind = _SURE.get(key.encoding, "")
    unsure = [key for key in asked if key.encoding and not key.kind]
    for key, kind in await _asked(wire, unsure, pacer, lambda key: ("TYPE", key.name)):
        name = text_of(kind)
        key.kind = name if name in VALUE_KINDS else "other"
    large = [key for key in asked if key.encoding in _LARGE_ENCODINGS and key.kind in _LENGTH]
    for key, length in await _asked(wire, large, pacer, lambda key: (_LENGTH[key.kind], key.name)):
        key.entries = length if isinstance(length, int) and length > 0 else -1


async def _compress(
    wire: RedisWire, keys: Sequence[_Key], measured: _Measured, secret: bytes, pacer: Pacer, limits: ValueLimits
) -> None:
    """Read, compress and forget the beginning of large strings until one of the limits is reached."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL)
    rows = [row for row, key in enumerate(keys) if key.encoding == "raw" and key.size_bytes >= LARGE_VALUE_BYTES]
    seen: dict[bytes, int] = {}
    for start in range(0, min(len(rows), limits.values), _READS_AT_ONCE):
        chosen = rows[start : min(start + _READS_AT_ONCE, limits.values)]
        wanted = sum(min(keys[row].size_bytes, limits.range_bytes) for row in chosen)
        if measured.read_bytes + wanted > limits.total_bytes:
            return
        await pacer.spend(len(chosen) + wanted // _BYTES_PER_COMMAND)
        replies = await wire.ask([("GETRANGE", keys[row].name, 0, limits.range_bytes - 1) for row in chosen])
        for row, reply in zip(chosen, replies, strict=True):
            if isinstance(reply, Refusal) and "wrong kind of value" not in reply.reason:
                require(wire.service, reply)
            if not isinstance(reply, bytes) or not reply:
                continue
            measured.read_bytes += len(reply)
            measured.value_row.append(row)
            measured.plain_bytes.append(len(reply))
            measured.compressed_bytes.append(len(compressor.compress(reply)))
            # Keyed, and only its place in this sample leaves: nobody can try out values on it.
            digest = hmac.digest(secret, reply, "sha256")
            measured.twin.append(seen.setdefault(digest, len(seen)))
        del replies


async def _measure_collections(
    wire: RedisWire, keys: Sequence[_Key], measured: _Measured, pacer: Pacer, limits: ValueLimits
) -> None:
    """Read, measure and forget the members of collections that could become small."""
    rows = [row for row, key in enumerate(keys) if key.entries > 0]
    exact: dict[int, int] = {}
    few = [row for row in rows if keys[row].entries <= limits.entries]
    # MEMORY USAGE of five members may have missed a huge one; of all of them it has not, and it is no lookup.
    by_key = {id(keys[row]): row for row in few}
    for key, size in await _asked(
        wire, [keys[row] for row in few], pacer, lambda k: ("MEMORY", "USAGE", k.name, "SAMPLES", k.entries)
    ):
        if isinstance(size, int):
            key.size_bytes = exact[by_key[id(key)]] = size
    read = 0
    for row in rows:
        key = keys[row]
        if row not in exact or exact[row] > limits.range_bytes:
            measured.collections.append((row, key.entries, len(key.name), -1, -1, 0))
            continue
        if read >= limits.collections or measured.read_bytes + exact[row] > limits.total_bytes:
            measured.collections.append((row, key.entries, len(key.name), PASSED_OVER, -1, 0))
            continue
        read += 1
        await pacer.spend(1 + exact[row] // _BYTES_PER_COMMAND)
        (reply,) = await wire.ask([_read_all(key)])
        if isinstance(reply, Refusal) and "wrong kind of value" not in reply.reason:
            require(wire.service, reply)
        if isinstance(reply, list) and reply:
            measured.read_bytes += sum(len(part) for part in reply)
            measured.collections.append((row, *_lengths(key, reply)))
        del reply


def _read_all(key: _Key) -> Command:
    if key.kind == "hash":
        return ("HGETALL", key.name)
    return ("SMEMBERS", key.name) if key.kind == "set" else ("ZRANGE", key.name, 0, -1, "WITHSCORES")


def _lengths(key: _Key, parts: Sequence[bytes]) -> tuple[int, int, int, int, int]:
    """Return (entries, length of the key's name, bytes in a listpack, longest, width in an intset)."""
    width = 0
    # A limit on the length of a member does not count scores (t_zset.c).
    bounded = parts[::2] if key.kind == "zset" else parts
    if key.kind == "set":
        numbers = [number for number in map(listpack_integer, parts) if number is not None]
        width = intset_width(numbers) if len(numbers) == len(parts) else 0
    entries = len(parts) if key.kind == "set" else len(parts) // 2
    return entries, len(key.name), sum(map(listpack_entry_bytes, parts)), max(map(len, bounded)), width


def _sample(keys: Sequence[_Key], measured: _Measured, index: PatternIndex, touched: int) -> ValueSample:
    encodings = tuple(sorted({key.encoding for key in keys if key.encoding}))
    columns = list(zip(*measured.collections, strict=True)) or [()] * 6

    def column(values: Sequence[int], dtype: type[np.generic]) -> npt.NDArray[Any]:
        return np.array(values, dtype=dtype)

    return ValueSample(
        patterns=index.patterns,
        encodings=encodings,
        size_bytes=column([key.size_bytes for key in keys], np.int64),
        pattern=column([index.of(key.name) for key in keys], np.int32),
        kind=column([VALUE_KINDS.index(key.kind) if key.kind else -1 for key in keys], np.int8),
        encoding=column([encodings.index(key.encoding) if key.encoding else -1 for key in keys], np.int32),
        value_row=column(measured.value_row, np.int32),
        plain_bytes=column(measured.plain_bytes, np.int64),
        compressed_bytes=column(measured.compressed_bytes, np.int64),
        twin=column(measured.twin, np.int32),
        collection_row=column(columns[0], np.int32),
        entries=column(columns[1], np.int64),
        name_bytes=column(columns[2], np.int32),
        elements_bytes=column(columns[3], np.int64),
        longest_bytes=column(columns[4], np.int64),
        intset_width=column(columns[5], np.int8),
        read_bytes=measured.read_bytes,
        touched_keys=touched,
    )
