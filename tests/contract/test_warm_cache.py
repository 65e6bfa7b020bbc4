"""The cache side of warming on real servers: existence without a trace, and a write that replaces nothing."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cachewarden.fleet import Service
from coordination.warm_cache import CacheRefused, RedisCacheClient

pytestmark = pytest.mark.integration


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[redis.Redis]:
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server in the path")
    port = _free_port()
    process = subprocess.Popen(
        [binary, "--port", str(port), "--save", "", "--dir", str(tmp_path), "--bind", "127.0.0.1"],
        stdout=subprocess.DEVNULL,
    )
    client = redis.Redis(port=port, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 100))
    try:
        client.ping()
        yield client
    finally:
        client.close()
        process.terminate()
        process.wait()


def cache_of(server: redis.Redis) -> RedisCacheClient:
    port = server.connection_pool.connection_kwargs["port"]
    return RedisCacheClient(Service(name="unit", url=f"redis://127.0.0.1:{port}"))


def lookups(server: redis.Redis) -> tuple[int, int]:
    stats = server.info("stats")
    return stats["keyspace_hits"], stats["keyspace_misses"]


async def test_looking_for_keys_moves_no_counter_of_the_server(server: redis.Redis):
    server.set("here", "v")
    before = lookups(server)
    cache = cache_of(server)
    presence = await cache.present(["here", *[f"gone:{i}" for i in range(250)]])
    await cache.close()
    assert presence.there == (True, *[False] * 250)
    assert (presence.own_hits, presence.own_misses) == (0, 0)
    assert lookups(server) == before


async def test_where_memory_usage_is_denied_the_lookups_are_accounted(server: redis.Redis):
    server.set("here", "v")
    server.execute_command("ACL", "SETUSER", "default", "-memory")
    before = lookups(server)
    cache = cache_of(server)
    presence = await cache.present(["here", "gone"])
    await cache.close()
    after = lookups(server)
    assert presence.there == (True, False)
    assert (presence.own_hits, presence.own_misses) == (after[0] - before[0], after[1] - before[1]) == (1, 1)


async def test_a_write_has_a_ttl_and_replaces_nothing(server: redis.Redis):
    server.set("here", "newer")
    cache = cache_of(server)
    assert await cache.store("new", b"v", 5_000) is True
    assert await cache.store("here", b"older", 5_000) is False
    await cache.close()
    assert server.get("here") == b"newer"
    assert 0 < server.pttl("new") <= 5_000


async def test_a_full_cache_and_a_dead_one_say_so(server: redis.Redis):
    server.config_set("maxmemory", "1mb")
    cache = cache_of(server)
    with pytest.raises(CacheRefused, match="full"):
        await cache.store("new", b"v", 5_000)
    await cache.close()
    gone = RedisCacheClient(Service(name="unit", url=f"redis://127.0.0.1:{_free_port()}"))
    with pytest.raises(CacheRefused, match="does not answer"):
        await gone.present(["a"])
    await gone.close()
