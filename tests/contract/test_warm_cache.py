"""The cache side of warming on real servers: existence without a trace, and a write that replaces nothing."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from cachewarden.fleet import Service
from coordination.warm_cache import CacheRefused, RedisCacheClient
from tests.contract.real_servers import ENGINES, RealServer
from tests.integration.one_actuator import until

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


@pytest.fixture(params=ENGINES)
def real(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start()
    yield server
    server.kill()


def cache_at(server: RealServer, **fields) -> RedisCacheClient:
    return RedisCacheClient(Service(name="unit", url=server.url, **fields))


async def refused(cache: RedisCacheClient) -> str:
    """Return why a write is refused."""
    try:
        with pytest.raises(CacheRefused) as told:
            await cache.store("new", b"v", 5_000)
    finally:
        await cache.close()
    return str(told.value)


async def test_a_replica_refuses_the_write_and_says_so(real: RealServer):
    real.admin.replicaof("127.0.0.1", "1")
    assert "replica" in await refused(cache_at(real))


def start_as_node(server: RealServer) -> int:
    """Start anew as a node of a cluster and return the port of its bus: by default that is 10,000 above its own, which
    may be none."""
    bus = _free_port()
    server.kill()
    server.start("--cluster-enabled", "yes", "--cluster-port", str(bus))
    return bus


async def test_a_node_that_does_not_hold_the_slot_refuses_the_write_and_says_so(real: RealServer):
    start_as_node(real)
    assert "slot" in await refused(cache_at(real))


async def test_a_slot_that_moved_elsewhere_is_a_refusal_and_never_followed(real: RealServer, tmp_path):
    """`new` belongs to a slot that another node holds: the answer names that node, which nobody has permitted."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = RealServer(real.engine, folder)
    other.start()
    try:
        start_as_node(real)
        bus = start_as_node(other)
        slot = int(real.admin.execute_command("CLUSTER", "KEYSLOT", "new"))
        for node, first, last in ((real, 0, slot - 1), (real, slot + 1, 16_383), (other, slot, slot)):
            node.admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        real.admin.execute_command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        await until(
            lambda: b"cluster_state:ok" in real.admin.execute_command("CLUSTER", "INFO"), 30, "a cluster of two nodes"
        )
        said = await refused(cache_at(real))
        assert "slot" in said.lower()
        assert other.admin.dbsize() == 0
    finally:
        other.kill()


async def test_a_server_that_is_loading_refuses_the_write_and_says_so(real: RealServer):
    pipe = real.admin.pipeline(transaction=False)
    for number in range(2_000):
        pipe.set(f"k:{number}", os.urandom(2_000))
    pipe.execute()
    real.admin.save()
    real.kill()
    real.start_loading("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    assert "loading" in (await refused(cache_at(real))).lower()


async def test_a_user_who_may_not_write_is_told_so_and_nothing_is_written(real: RealServer, monkeypatch):
    monkeypatch.setenv("UNIT_PASSWORD", "secret")
    real.admin.execute_command("ACL", "SETUSER", "limited", "on", ">secret", "~*", "+@all", "-set")
    said = await refused(cache_at(real, username="limited", password_env="UNIT_PASSWORD"))
    assert "permission" in said.lower()
    assert real.admin.dbsize() == 0
