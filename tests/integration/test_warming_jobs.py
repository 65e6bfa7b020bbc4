"""Warming through the API against real servers: a hundred thousand keys within their limits, and origins in trouble."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
import redis

from cachewarden.fleet import KeyPattern, Origin
from cachewarden.messages import Mode
from cluster.backend import AgentBackend
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.world import MIB, CacheSpec, World, until

pytestmark = pytest.mark.integration

KEYS = 100_000
CONCURRENCY = 16


@pytest.fixture
def origin() -> Iterator[EmbeddedServer]:
    home = ServerHome()
    server = EmbeddedServer(ServerOptions(name="origin", engine="redis"), home)
    try:
        start_all([server])
        yield server
    finally:
        home.close()


def shop(engine: str, origin: Origin, mode: Mode = Mode.AUTO) -> CacheSpec:
    return CacheSpec(
        engine=engine,
        maxmemory_bytes=200 * MIB,
        wishes={"mode": mode, "patterns": (KeyPattern(prefix="k:", max_staleness_s=600),), "origin": origin},
    )


@contextlib.asynccontextmanager
async def api(world: World, agents: object, state_dir: Path) -> AsyncIterator[httpx.AsyncClient]:
    token = create_token(state_dir, "ann", ("operate",))
    backend = AgentBackend(world.plan, agents)
    transport = httpx.ASGITransport(app=create_app(backend, TokenStore(state_dir)))
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=60, headers=headers) as client:

            async def up() -> bool:
                return (await client.get("/api/v1/cache/services")).status_code == 200

            await until(up, 30, "the API")
            yield client
    finally:
        await backend.close()


async def over(client: httpx.AsyncClient, job_id: str, timeout_s: float = 100) -> dict:
    async def found() -> dict | None:
        answer = await client.get(f"/api/v1/cache/warm/{job_id}")
        return answer.json() if answer.status_code == 200 and answer.json()["state"] != "running" else None

    job: dict = await until(found, timeout_s, "the end of the job")
    return job


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["redis", "valkey"])
async def test_a_hundred_thousand_keys_stay_within_their_limits_and_replace_nothing(tmp_path, engine, origin):
    source = redis.Redis.from_url(origin.url)
    for start in range(0, KEYS, 10_000):
        source.mset({f"k:{i}": f"old-{i}" for i in range(start, start + 10_000)})
    source.config_resetstat()
    wanted = Origin(kind="redis", url=origin.url, concurrency=CONCURRENCY, rate_per_s=100_000)
    async with (
        World(tmp_path, shop(engine, wanted)) as world,
        world.agents() as agents,
        api(world, agents, tmp_path) as client,
    ):
        cache = world.client("shop")
        cache.set("k:7", "newer")
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        body = {"service_name": "shop", "cache_keys": [f"k:{i}" for i in range(KEYS)]}
        job_id = (await client.post("/api/v1/cache/warm", json=body)).json()["job_id"]
        most, newer = 0, set()
        while (await client.get(f"/api/v1/cache/warm/{job_id}")).json()["state"] == "running":
            most = max(most, source.info("clients")["connected_clients"] - 1)
            place = KEYS - 1 - len(newer) * 1_000
            if place > 0 and cache.set(f"k:{place}", "newer"):
                newer.add(place)
            await asyncio.sleep(0.25)
        job = await over(client, job_id)
        assert job["state"] == "finished", job["reason"]
        assert job["keys_done"] == job["outcomes_known"] == KEYS
        assert set(job["counts"]) <= {"warmed", "already_cached"}
        # The bounds: connections, one load per key, memory
        assert most <= CONCURRENCY + 1
        # (what the application wrote while its load was on the way was loaded in vain)
        loads = source.info("commandstats")["cmdstat_getrange"]["calls"]
        assert job["counts"]["warmed"] <= loads <= job["counts"]["warmed"] + len(newer)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 200 * 1024
        # What the application wrote is as it wrote it, everything else is there with a TTL
        assert {cache.get(f"k:{i}") for i in {7, *newer}} == {"newer"}
        assert cache.get("k:8") == "old-8"
        assert 0 < cache.ttl("k:8") <= 600
        assert cache.dbsize() >= KEYS
        records = await world.records("keys_warmed")
        assert len(records) == 2 * KEYS // 1000
        assert (await world.verified()).ok
    source.close()


async def test_an_origin_that_dies_in_the_middle_is_waited_for_and_the_rest_is_loaded(tmp_path, origin):
    source = redis.Redis.from_url(origin.url)
    source.mset({f"k:{i}": "v" for i in range(3_000)})
    wanted = Origin(kind="redis", url=origin.url, concurrency=4, rate_per_s=1_000, timeout_s=1)
    async with (
        World(tmp_path, shop("valkey", wanted)) as world,
        world.agents() as agents,
        api(world, agents, tmp_path) as client,
    ):
        cache = world.client("shop")
        body = {"service_name": "shop", "cache_keys": [f"k:{i}" for i in range(3_000)]}
        job_id = (await client.post("/api/v1/cache/warm", json=body)).json()["job_id"]
        await until(lambda: cache.dbsize() > 500, 30, "the first keys")
        source.client_pause(3_000, all=True)
        job = await over(client, job_id)
        assert job["state"] == "finished", job
        # Only what was asked for while it hung has failed.
        assert job["counts"]["warmed"] >= 2_950
        assert job["counts"]["warmed"] + job["counts"].get("failed", 0) == 3_000
    source.close()


async def test_a_job_is_cancelled_and_the_cache_is_left_as_it_is_then(tmp_path, origin):
    source = redis.Redis.from_url(origin.url)
    source.mset({f"k:{i}": "v" for i in range(5_000)})
    wanted = Origin(kind="redis", url=origin.url, concurrency=2, rate_per_s=200)
    async with (
        World(tmp_path, shop("redis", wanted)) as world,
        world.agents() as agents,
        api(world, agents, tmp_path) as client,
    ):
        cache = world.client("shop")
        body = {"service_name": "shop", "cache_keys": [f"k:{i}" for i in range(5_000)]}
        job_id = (await client.post("/api/v1/cache/warm", json=body)).json()["job_id"]
        await until(lambda: cache.dbsize() > 20, 30, "the first keys")
        await client.post(f"/api/v1/cache/warm/{job_id}/cancel")
        job = await over(client, job_id)
        assert (job["state"], job["cancel_asked_by"]) == ("cancelled", "ann")
        assert 20 < job["counts"]["warmed"] < 5_000
    source.close()


async def serve_trouble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP origin: 10 MB, garbage, nothing at all, a compressed bomb, or a value."""
    line = (await reader.readline()).decode("latin-1")
    while (await reader.readline()).strip():
        pass
    path = line.split(" ")[1]
    with contextlib.suppress(ConnectionError):
        if path.endswith("big"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            for _ in range(160):
                writer.write(b"x" * 65_536)
                await writer.drain()
        elif path.endswith("garbage"):
            writer.write(bytes(range(256)) * 8)
        elif path.endswith("slow"):
            await asyncio.sleep(3)
        elif path.endswith("bomb"):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nxxxxx")
        elif path.endswith("gone"):
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nvalue")
        await writer.drain()
    writer.close()


async def test_ten_megabytes_garbage_and_silence_are_refusals_of_their_keys_alone(tmp_path):
    server = await asyncio.start_server(serve_trouble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    wanted = Origin(kind="http", url=f"http://127.0.0.1:{port}/v/{{key}}", timeout_s=1.0, concurrency=2)
    async with (
        server,
        World(tmp_path, shop("valkey", wanted)) as world,
        world.agents() as agents,
        api(world, agents, tmp_path) as client,
    ):
        keys = [f"k:{what}" for what in ("big", "garbage", "slow", "bomb", "gone", "well")]
        answer = await client.post("/api/v1/cache/warm", json={"service_name": "shop", "cache_keys": keys})
        outcomes = {k["key"]: (k["outcome"], k["reason"]) for k in answer.json()["keys"]}
        assert outcomes["k:well"][0] == "warmed"
        assert outcomes["k:gone"][0] == "not_found"
        assert "larger than" in outcomes["k:big"][1]
        assert "RemoteProtocolError" in outcomes["k:garbage"][1]
        assert "no answer within 1 s" in outcomes["k:slow"][1]
        assert "encoding" in outcomes["k:bomb"][1]
        assert world.client("shop").keys("k:*") == ["k:well"]


async def test_a_cache_that_is_full_holds_another_type_or_forbids_the_write_says_so_key_by_key(tmp_path, origin):
    source = redis.Redis.from_url(origin.url)
    source.mset({f"k:{i}": "v" for i in range(5)})
    source.rpush("k:list", "a")
    wanted = Origin(kind="redis", url=origin.url)
    spec = shop("redis", wanted)
    async with World(tmp_path, spec) as world, world.agents() as agents, api(world, agents, tmp_path) as client:
        cache = world.client("shop")
        cache.hset("k:0", "field", "value")

        async def ask(*keys: str) -> dict[str, tuple[str, str]]:
            answer = await client.post("/api/v1/cache/warm", json={"service_name": "shop", "cache_keys": list(keys)})
            return {k["key"]: (k["outcome"], k["reason"]) for k in answer.json()["keys"]}

        assert (await ask("k:0"))["k:0"][0] == "already_cached"
        assert cache.hget("k:0", "field") == "value"
        assert "another type" in (await ask("k:list"))["k:list"][1]
        cache.config_set("maxmemory-policy", "noeviction")
        cache.config_set("maxmemory", "1mb")
        assert "refuses writes" in (await ask("k:1"))["k:1"][1]
        cache.config_set("maxmemory", "200mb")
        cache.execute_command("REPLICAOF", "127.0.0.1", "1")
        cache.config_set("replica-serve-stale-data", "yes")
        assert (await ask("k:2"))["k:2"][0] == "failed"
        cache.execute_command("REPLICAOF", "NO", "ONE")
        assert (await ask("k:2"))["k:2"][0] == "warmed"
    source.close()
