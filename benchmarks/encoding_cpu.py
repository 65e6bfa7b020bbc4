"""What a command on a listpack costs the server against one on a hash table, by number of entries.

    python -m benchmarks.encoding_cpu [--calls 20000]

prints microseconds per call by `commandstats` for both encodings on each installed server, and the line that
`cachewarden/cachemodel/encoding_cost.py` holds: extra microseconds = intercept + slope x entries. Members are drawn
at random among those that exist. Both encodings are measured in the same run on the same server, in turns, since
absolute times depend on the machine. Servers are started for it and ended.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from dataclasses import dataclass

import numpy as np
import redis.asyncio

from benchmarks.encoding_layout import set_limits
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all

ENTRIES = (16, 64, 128, 256, 512)
KEYS = 16
ROUNDS = 6
PIPELINE = 250
MEMBER_BYTES, VALUE_BYTES = 10, 20


@dataclass(frozen=True, slots=True)
class Case:
    """One command and how the collection that it works on is made; `integers` for sets of numbers."""

    command: str
    create: str
    integers: bool = False


CASES = (
    Case("HGET", "HSET"),
    Case("HSET", "HSET"),
    Case("SISMEMBER", "SADD", integers=True),
    Case("SISMEMBER", "SADD"),
    Case("ZSCORE", "ZADD"),
    Case("ZADD", "ZADD"),
)


def name_of(case: Case, number: int) -> bytes:
    """Return the member of that number."""
    return str(100_000 + 7 * number).encode() if case.integers else f"m{number:09x}".encode()


async def fill(client: redis.asyncio.Redis, case: Case, entries: int, prefix: str) -> str:
    """Make the keys of one encoding and return what the server calls it."""
    dice = random.Random(entries)
    for key in range(KEYS):
        pipe = client.pipeline(transaction=False)
        for number in range(entries):
            arguments: list[bytes] = [name_of(case, number)]
            if case.create == "HSET":
                arguments.append(b"v" * VALUE_BYTES)
            elif case.create == "ZADD":
                arguments.insert(0, repr(dice.random()).encode())
            pipe.execute_command(case.create, f"{prefix}{key}", *arguments)
        await pipe.execute()
    return str((await client.object("encoding", f"{prefix}0")).decode())


async def us_per_call(client: redis.asyncio.Redis, case: Case, entries: int, prefix: str, calls: int) -> float:
    """Return the mean time of one call, by the server's own statistics."""
    dice = random.Random(entries)
    await client.config_resetstat()
    for _ in range(0, calls, PIPELINE):
        pipe = client.pipeline(transaction=False)
        for _ in range(PIPELINE):
            key, name = f"{prefix}{dice.randrange(KEYS)}", name_of(case, dice.randrange(entries))
            if case.command == "HSET":
                pipe.execute_command("HSET", key, name, dice.randbytes(VALUE_BYTES // 2).hex())
            elif case.command == "ZADD":
                pipe.execute_command("ZADD", key, repr(dice.random()), name)
            else:
                pipe.execute_command(case.command, key, name)
        await pipe.execute()
    stats = await client.info("commandstats")
    return float(stats[f"cmdstat_{case.command.lower()}"]["usec_per_call"])


async def measure(client: redis.asyncio.Redis, engine: str, case: Case, calls: int) -> None:
    """Print one table and its line."""
    extra = []
    for entries in ENTRIES:
        await client.flushall()
        await set_limits(client, 100_000)
        small = await fill(client, case, entries, "small:")
        await set_limits(client, 0)
        # Writing to a listpack above the limit would convert it, so each encoding is measured under its own limit.
        large = await fill(client, case, entries, "large:")
        if small == large:
            print(f"{engine:<7} {case.command:<10} has no small encoding here, always {large}")
            return
        found: dict[str, list[float]] = {"small:": [], "large:": []}
        for _ in range(ROUNDS):
            for prefix, limit in (("small:", 100_000), ("large:", 0)):
                await set_limits(client, limit)
                found[prefix].append(await us_per_call(client, case, entries, prefix, calls))
        # Whatever else the machine does only ever adds, so the least of the rounds is nearest to the command itself.
        compact, table = min(found["small:"]), min(found["large:"])
        extra.append(compact - table)
        print(f"{engine:<7} {case.command:<10} {entries:>4} {small:<9}{1000 * compact:>7.0f} ns {large:<10}"
              f"{1000 * table:>7.0f} ns {1000 * (compact - table):>+7.0f} ns", flush=True)  # fmt: skip
    slope, intercept = np.polyfit(ENTRIES, extra, 1)
    worst = max(abs(intercept + slope * n - e) for n, e in zip(ENTRIES, extra, strict=True))
    print(f"{engine:<7} {case.command:<10} {small}: extra us = {intercept:+.3f} {slope:+.6f} x entries, "
          f"worst distance {worst:.3f} us")  # fmt: skip


async def run(engine: str, url: str, calls: int) -> None:
    """Measure every command on one server."""
    client = redis.asyncio.Redis.from_url(url, protocol=2)
    for case in CASES:
        await measure(client, engine, case, calls)
    await client.aclose()


def main() -> None:
    """Start a server of each engine and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=5_000, help="of each command, encoding, size and round")
    calls = parser.parse_args().calls
    with ServerHome() as home:
        servers = {
            engine: EmbeddedServer(ServerOptions(name=engine, engine=engine), home) for engine in ("redis", "valkey")
        }
        start_all(servers.values())
        try:
            for engine, server in servers.items():
                asyncio.run(run(engine, server.url, calls))
        finally:
            for server in servers.values():
                server.stop()


if __name__ == "__main__":
    main()
