"""How well the layout model meets the growth of used_memory, on each installed server.

    python -m benchmarks.encoding_layout

prints, for collections of n members under both encodings, modelled and measured bytes and the error. Servers are
started for it and ended; nothing is written elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Iterator
from typing import Any

import redis.asyncio

from cachewarden.cachemodel.encoding_layout import (
    CollectionKind,
    CollectionLayout,
    intset_width,
    layout_of,
    listpack_entry_bytes,
)
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all

ENTRIES = (10, 20, 64, 100, 128, 200, 400)
LENGTHS = ((5, 5), (10, 20), (20, 60), (30, 110))
LIMITS = (
    "hash-max-listpack-entries", "hash-max-listpack-value", "zset-max-listpack-entries", "zset-max-listpack-value",
    "set-max-intset-entries", "set-max-listpack-entries", "set-max-listpack-value",
)  # fmt: skip


async def set_limits(client: redis.asyncio.Redis, limit: int) -> None:
    """Set every limit of the small encodings that the server has."""
    for name in LIMITS:
        if await client.config_get(name):
            await client.config_set(name, limit)


def members(entries: int, length: int, integers: bool) -> list[bytes]:
    """Return different members of that length."""
    if integers:
        return [str(100_000 + 7 * number).encode() for number in range(entries)]
    return [f"m{number:x}".ljust(length, ".").encode()[:length] for number in range(entries)]


def write(kind: CollectionKind, names: list[bytes], value_bytes: int, dice: random.Random) -> tuple[str, list[Any]]:
    """Return the command and its arguments that store such a collection."""
    if kind is CollectionKind.HASH:
        return "HSET", [part for name in names for part in (name, b"v" * value_bytes)]
    if kind is CollectionKind.ZSET:
        return "ZADD", [part for name in names for part in (repr(dice.random()).encode(), name)]
    return ("SADD" if kind is CollectionKind.SET else "RPUSH"), list(names)


READS = {CollectionKind.HASH: "HGET", CollectionKind.SET: "SISMEMBER", CollectionKind.ZSET: "ZSCORE"}


async def measured(
    client: redis.asyncio.Redis, kind: CollectionKind, names: list[bytes], value_bytes: int
) -> tuple[str, float, int]:
    """Return encoding, growth of used_memory for each copy, and MEMORY USAGE; tables have stopped rehashing."""
    await client.flushall()
    dice = random.Random(1)
    for number in range(-40, 0):
        await client.set(f"k{number:07d}", "x")
    # Small ones need many copies: what else the server allocates meanwhile would drown them.
    before, copies = 0, max(20, 4_000 // len(names))
    for copy in range(-1, copies):
        if copy == 0:
            before = (await client.info("memory"))["used_memory"]
        pipe = client.pipeline(transaction=False)
        command, arguments = write(kind, names, value_bytes, dice)
        width = 2 if kind in (CollectionKind.HASH, CollectionKind.ZSET) else 1
        for start in range(0, len(arguments), width):
            pipe.execute_command(command, f"key:{copy:04d}", *arguments[start : start + width])
        if kind in READS:
            for _ in range(2):
                for name in names:
                    pipe.execute_command(READS[kind], f"key:{copy:04d}", name)
        await pipe.execute()
    after = (await client.info("memory"))["used_memory"]
    encoding = await client.object("encoding", "key:0000")
    usage = await client.execute_command("MEMORY", "USAGE", "key:0000", "SAMPLES", 0)
    return encoding.decode(), (after - before) / copies, usage


def modelled(
    layout: CollectionLayout, kind: CollectionKind, encoding: str, names: list[bytes], value_bytes: int
) -> float:
    """Return what the model says for that encoding, with the key's own entry."""
    n, member = len(names), max(len(name) for name in names)
    score = [b"0.1234567890123456"] * n
    values = [b"v" * value_bytes] * n if kind is CollectionKind.HASH else score if kind is CollectionKind.ZSET else []
    elements = sum(map(listpack_entry_bytes, [*names, *values]))
    name_bytes = layout.name_bytes(8) + (0 if layout.bucketed else layout.allocator.rounded(24) - 24)
    if encoding in ("listpack", "ziplist"):
        return name_bytes + layout.listpack_bytes(elements)
    if encoding == "intset":
        return name_bytes + layout.intset_bytes(n, intset_width(map(int, names)))
    if encoding == "quicklist":
        return name_bytes + layout.quicklist_bytes(n, elements)
    if encoding == "skiplist":
        return name_bytes + layout.skip_list_bytes(n, member)
    return name_bytes + layout.hash_table_bytes(n, member, value_bytes if kind is CollectionKind.HASH else None)


def cases() -> Iterator[tuple[CollectionKind, int, int, bool]]:
    """Return (kind, member length, value length, integers) of the grid."""
    for member, value in LENGTHS:
        yield CollectionKind.HASH, member, value, False
    for member, _ in LENGTHS:
        yield CollectionKind.SET, member, 0, False
        yield CollectionKind.ZSET, member, 0, False
    yield CollectionKind.SET, 6, 0, True
    yield CollectionKind.LIST, 20, 0, False


async def run(url: str) -> list[tuple[str, float]]:
    """Print the table of one server and return (encoding, relative error) of each line."""
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    info = await client.info()
    server = "valkey" if "valkey_version" in info else "redis"
    layout = layout_of(server, str(info.get("valkey_version", info["redis_version"])), info["mem_allocator"])
    errors: list[tuple[str, float]] = []
    if isinstance(layout, str):
        print(layout)
        return errors
    print(f"{'server':<12}{'kind':<6}{'encoding':<11}{'n':>4}{'member':>7}{'value':>6}"
          f"{'modelled':>10}{'used':>10}{'error':>8}{'USAGE':>8}")  # fmt: skip
    for kind, member, value, integers in cases():
        for limit in (100_000, 0):
            await set_limits(client, limit)
            for entries in ENTRIES:
                names = members(entries, member, integers)
                encoding, used, usage = await measured(client, kind, names, value)
                model = modelled(layout, kind, encoding, names, value)
                errors.append((encoding, model / used - 1))
                print(f"{layout.name:<12}{kind:<6}{encoding:<11}{entries:>4}{member:>7}{value:>6}"
                      f"{model:>10.0f}{used:>10.0f}{model / used - 1:>+8.1%}{usage:>8}", flush=True)  # fmt: skip
    await client.aclose()
    for name in sorted({encoding for encoding, _ in errors}):
        found = [abs(error) for encoding, error in errors if encoding == name]
        print(f"{layout.name} {name}: mean error {sum(found) / len(found):.1%}, worst {max(found):.1%}")
    return errors


def main() -> None:
    """Start one server of each engine and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--engine", choices=("redis", "valkey"), action="append", help="both without it")
    engines = parser.parse_args().engine or ["redis", "valkey"]
    with ServerHome() as home:
        servers = [EmbeddedServer(ServerOptions(name=engine, engine=engine), home) for engine in engines]
        start_all(servers)
        try:
            for server in servers:
                asyncio.run(run(server.url))
        finally:
            for server in servers:
                server.stop()


if __name__ == "__main__":
    main()
