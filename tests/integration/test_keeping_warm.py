"""Kept warm by itself on real servers: after a restart the hot set is loaded again, hot keys are refreshed before they
expire, and what the application wrote is never replaced."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import redis

from cachewarden.fleet import Fleet, KeyPattern, Origin, Service
from cachewarden.messages import Mode
from coordination.redis_keep_warm import RedisKeepWarm
from coordination.warm_origins import Value
from tests.contract.real_servers import ENGINES, RealServer
from tests.integration.world import MIB, CacheSpec, World, until

pytestmark = pytest.mark.integration


class Source:
    """An origin of plain data; `meanwhile` is what happens while it is asked."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.meanwhile = lambda _key: None

    async def fetch(self, key: str) -> Value | None:
        self.loads.append(key)
        self.meanwhile(key)
        return Value(f"fresh-{key}".encode())

    async def close(self) -> None: ...


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru")
    yield server
    server.kill()


@contextlib.asynccontextmanager
async def keeper(server: RealServer, source: Source) -> AsyncIterator[RedisKeepWarm]:
    service = Service(
        name="shop",
        url=server.url,
        patterns=(KeyPattern(prefix="k:", max_staleness_s=60),),
        origin=Origin(kind="http", url="http://origin/{key}", keep_warm=True, refresh_ahead=True, rate_per_s=5_000),
    )
    made = RedisKeepWarm(
        Fleet(services=(service,)),
        ("shop",),
        lookups=None,
        draw=lambda: 0.5,
        passwords={},
        server_share=0.2,
        make_client=lambda _: source,
    )
    try:
        yield made
    finally:
        await made.close()


async def test_what_is_remembered_is_loaded_again_and_nothing_else(server):
    for number in range(200):
        server.admin.set(f"k:{number}", "old", px=30_000)
        server.admin.set(f"other:{number}", "not ours")
    source = Source()
    async with keeper(server, source) as keep:
        assert await keep.remember("shop", 1_000) == 200
        server.admin.flushall()
        server.admin.set("k:7", "newer")
        counts = await keep.warm("shop", 1.0, 0, 1_000)
        assert counts == {"warmed": 199, "already_cached": 1}
        assert server.admin.get("k:7") == b"newer"
        assert server.admin.get("k:8") == b"fresh-k:8"
        assert 0 < server.admin.pttl("k:8") <= 60_000
        assert not [key for key in source.loads if not key.startswith("k:")]


async def test_only_keys_that_are_about_to_expire_are_refreshed_and_within_the_staleness(server):
    server.admin.set("k:soon", "old", px=1_500)
    server.admin.set("k:later", "old", px=30_000)
    server.admin.set("k:ever", "old")
    server.admin.rpush("k:list", "a")
    server.admin.pexpire("k:list", 1_500)
    source = Source()
    async with keeper(server, source) as keep:
        await keep.remember("shop", 100)
        counts = await keep.refresh("shop", 2_000, 1.0)
        assert counts == {"refreshed": 1, "other_type": 1}
        assert source.loads == ["k:soon"]
        assert server.admin.get("k:soon") == b"fresh-k:soon"
        assert 50_000 < server.admin.pttl("k:soon") <= 60_000
        assert server.admin.lrange("k:list", 0, -1) == [b"a"]
        assert server.admin.pttl("k:ever") == -1


async def test_what_the_application_does_while_a_key_is_loaded_has_the_last_word(server):
    source = Source()
    async with keeper(server, source) as keep:
        for name, act in {
            "k:rewritten": lambda key: server.admin.set(key, "newer", px=1_400),
            "k:deleted": server.admin.delete,
            "k:retyped": lambda key: (server.admin.delete(key), server.admin.hset(key, "f", "v")),
        }.items():
            server.admin.set(name, "old", px=1_500)
            source.meanwhile = act
            await keep.remember("shop", 100)
            counts = await keep.refresh("shop", 2_000, 1.0)
            assert counts.get("overtaken") == 1, (name, counts)
            server.admin.pexpire(name, 60_000)
        assert server.admin.get("k:rewritten") == b"newer"
        assert not server.admin.exists("k:deleted")
        assert server.admin.hgetall("k:retyped") == {b"f": b"v"}


async def test_our_own_looks_are_counted_as_ours(server):
    for number in range(50):
        server.admin.set(f"k:{number}", "old", px=1_500)
    source = Source()
    async with keeper(server, source) as keep:
        before = server.lookups()
        await keep.remember("shop", 100)
        await keep.refresh("shop", 2_000, 1.0)
        after = server.lookups()
        ledger = keep._kept["shop"].wire.ledger
        assert (after[0] - before[0], after[1] - before[1]) == (ledger.hits, ledger.misses)


async def test_after_a_restart_the_hot_set_is_back_without_anybody_asking(tmp_path):
    values = tmp_path / "values.json"
    values.write_text("{" + ", ".join(f'"k:{i}": "value-{i}"' for i in range(300)) + "}")
    origin = Origin(kind="file", url=str(values), keep_warm=True, rate_per_s=5_000)
    wishes = {
        "mode": Mode.AUTO,
        "capture": False,
        "patterns": (KeyPattern(prefix="k:", max_staleness_s=600),),
        "origin": origin,
    }
    async with World(tmp_path, CacheSpec(maxmemory_bytes=20 * MIB, wishes=wishes)) as world, world.agents():
        cache = world.client("shop")
        for i in range(300):
            cache.set(f"k:{i}", "old", ex=600)

        async def remembered() -> bool:
            agent = world.runtime._shells.get("warmer")
            return agent is not None and agent.agent._caches["shop"].remembered == 300

        await until(remembered, 60, "the hot list")
        server = world.caches["shop"]
        server.stop()
        server.start()

        async def back() -> bool:
            with contextlib.suppress(redis.ConnectionError):
                return world.client("shop").dbsize() >= 300
            return False

        await until(back, 60, "the hot set")
        assert cache.get("k:5") == "value-5"

        async def told() -> bool:
            return [r.payload["phase"] for r in await world.records("keys_warmed")] == ["intended", "finished"]

        await until(told, 20, "both records")
        records = await world.records("keys_warmed")
        assert records[1].payload["counts"]["warmed"] == 300
        assert "k:" not in str(records)
