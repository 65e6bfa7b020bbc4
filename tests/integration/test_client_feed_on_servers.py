"""An application reports its own accesses where the server permits no MONITOR: the loop learns from them, and the
application notices nothing."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import threading
from collections import Counter
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
import redis.asyncio
import uvicorn

from cachewarden.cachemodel.memory_accounting import entry_bytes
from cachewarden.cachemodel.shards import SpatialFilter, hash_key
from cachewarden.cachemodel.trace import Op
from cachewarden.fleet import KeyPattern
from cachewarden.messages import Mode
from cachewarden.recorder import Recorder
from cluster.backend import AgentBackend
from cluster.clock import SystemClock
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.test_acl import acl_lines
from tests.integration.world import MIB, CacheSpec, World, until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

OBSERVER = "cachewarden-observer"
SECRET = "integration"
KEYS = 3_000
TTL_S = 600


@contextlib.asynccontextmanager
async def listening(world: World, agents, state_dir: Path, port: int = 0):
    """Serve the API of these agents, by default on a port of its own; yields its address."""
    backend = AgentBackend(world.plan, agents)
    sock = socket.create_server(("127.0.0.1", port))
    config = uvicorn.Config(create_app(backend, TokenStore(state_dir)), log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(server.serve(sockets=[sock]))
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
        await backend.close()


class App:
    """An application that keeps pages in the cache, in a thread of its own, and remembers what it did."""

    def __init__(self, client: redis.Redis, seed: int) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self._weights = [1.0 / (rank + 5) ** 0.9 for rank in range(KEYS)]
        self.stopping = threading.Event()
        self.errors: list[redis.RedisError] = []
        self.lookups = self.misses = 0
        self.sizes: Counter[int] = Counter()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        while not self.stopping.wait(0.05):
            names = [f"page:{n}" for n in self._rng.choices(range(KEYS), self._weights, k=30)]
            try:
                found = [self._client.get(name) for name in names[:10]]
                found += self._client.mget(names[10:20])
                with self._client.pipeline(transaction=False) as pipe:
                    for name in names[20:]:
                        pipe.get(name)
                    found += pipe.execute()
                missing = {name for name, value in zip(names, found, strict=True) if value is None}
                for name in sorted(missing):
                    size = 500 + int(name[5:]) % 1_500
                    self._client.set(name, b"x" * size, ex=TTL_S)
            except redis.RedisError as error:
                self.errors.append(error)
                return
            self.lookups += len(names)
            self.misses += sum(value is None for value in found)

    def __enter__(self) -> App:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._thread.join(10)


def shop(**wishes) -> CacheSpec:
    plain = {
        "mode": Mode.ADVISE,
        "capture": True,
        "feed": True,
        "username": OBSERVER,
        "password_env": "SHOP_PASSWORD",
        "patterns": (KeyPattern(prefix="page:"), KeyPattern(prefix="cart:")),
    }
    return CacheSpec(maxmemory_bytes=3 * MIB, wishes={**plain, **wishes})


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch):
    """Make the README's observer, who may not use MONITOR, the user of the world's cache."""

    def admit(world: World) -> None:
        words = acl_lines()[OBSERVER]
        monkeypatch.setenv("SHOP_PASSWORD", next(word[1:] for word in words if word.startswith(">")))
        world.client("shop").execute_command(*words)

    return admit


async def snapshot_that(world: World, agents, says, what: str, timeout_s: float = 60.0):
    async def found():
        with contextlib.suppress(RuntimeError):
            snapshot = await agents.query("collector", "snapshot", "shop")
            return snapshot if snapshot is not None and says(snapshot) else None

    return await until(found, timeout_s, what)


def sources(snapshot) -> dict:
    return {source.name: source for source in snapshot.sources}


async def test_where_monitor_is_denied_the_loop_learns_from_what_the_application_reports(tmp_path, observer):
    spec = shop()
    async with World(tmp_path, spec) as world:
        observer(world)
        async with world.agents() as agents, listening(world, agents, tmp_path) as url:
            token = create_token(tmp_path, "app", ("feed",))
            before = await snapshot_that(world, agents, lambda s: s.window_ms, "a first window")
            assert before.access is None
            assert "'monitor'" in before.incomplete["access"]
            assert "no recorder has reported yet" in before.incomplete["access"]
            with contextlib.ExitStack() as stack:
                recorders = [
                    stack.enter_context(Recorder(url, service="shop", token=token, secret=SECRET)) for _ in range(2)
                ]
                clients = [redis.Redis.from_url(world.caches["shop"].url) for _ in recorders]
                for recorder, client in zip(recorders, clients, strict=True):
                    stack.callback(client.close)
                    recorder.attach(client)
                await until(lambda: all(r.status()["problem"] is None for r in recorders), what="instructions")
                apps = [stack.enter_context(App(client, seed)) for seed, client in enumerate(clients)]
                snapshot = await snapshot_that(
                    world, agents, lambda s: s.access is not None and s.access.spatial_rate == 1.0, "a fed sample"
                )
                answer = await _whatif(world, agents, url, tmp_path)
                assert not [app.errors for app in apps if app.errors]
                failures = [recorder.status()["failures"] for recorder in recorders]
    access = snapshot.access
    assert access.source == "client feed"
    assert failures == [0, 0]
    # The truth: what the server counted, and what the application wrote.
    reads = access.trace.op == Op.READ
    fed_ratio = float((access.missed[reads] == 0).mean())
    assert abs(fed_ratio - snapshot.hit_ratio) < 0.1
    writes = access.trace.op == Op.WRITE
    assert set(access.trace.ttl_ms[writes].tolist()) == {TTL_S * 1000}
    hashes = {hash_key(SECRET.encode(), f"page:{n}".encode()): n for n in range(KEYS)}
    named = [hashes[key] for key in access.trace.key[writes].tolist()]
    truth = [entry_bytes(len(f"page:{n}"), 500 + n % 1_500, True) for n in named]
    assert access.trace.size_bytes[writes].tolist() == truth
    assert np.all(access.pattern == 0)
    assert SpatialFilter(access.spatial_rate).keeps_each(access.trace.key).all()
    assert access.trace.duration_ms >= world.settings.capture_ms * 0.8
    # And it is said which source answers, at which cost and error.
    found = sources(snapshot)
    assert found["client_feed"].used
    assert found["client_feed"].coverage == pytest.approx(1.0, abs=0.1)
    assert 0 < found["client_feed"].expected_error < 0.05
    assert not found["monitor_capture"].used
    assert "access" not in snapshot.incomplete
    (result,) = answer["results"]
    assert answer["observed"]["captured_accesses"] > 0
    assert result["answered"], result
    assert result["hit_ratio"] > answer["observed"]["hit_ratio"]


async def _whatif(world: World, agents, url: str, state_dir: Path) -> dict:

    token = create_token(state_dir, "asker", ("read",))
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
        body = {"service_name": "shop", "candidates": [{"maxmemory": "6mb"}]}

        async def answered():
            answer = (await client.post("/api/v1/cache/whatif", json=body)).json()
            return answer if answer.get("observed") and answer["results"][0]["answered"] else None

        view = (await client.get("/api/v1/cache/services/shop")).json()["service"]
        assert [source["name"] for source in view["sources"]][:2] == ["client_feed", "monitor_capture"]
        return await until(answered, 30, "an answer")


async def test_the_application_notices_neither_a_wrong_secret_nor_an_endpoint_that_comes_and_goes(tmp_path, observer):
    async with World(tmp_path, shop()) as world:
        observer(world)
        token = create_token(tmp_path, "app", ("feed",))
        async with world.agents() as agents:
            with contextlib.ExitStack() as stack:
                async with listening(world, agents, tmp_path) as url:
                    port = int(url.rpartition(":")[2])
                    wrong = stack.enter_context(Recorder(url, service="shop", token=token, secret="guessed"))
                    right = stack.enter_context(Recorder(url, service="shop", token=token, secret=SECRET))
                    clients = [redis.Redis.from_url(world.caches["shop"].url) for _ in range(2)]
                    for recorder, client in zip((wrong, right), clients, strict=True):
                        stack.callback(client.close)
                        recorder.attach(client)
                    apps = [stack.enter_context(App(client, seed)) for seed, client in enumerate(clients)]
                    await until(lambda: right.status()["batches_sent"] > 1, what="batches")
                    await until(lambda: "secret differs" in (wrong.status()["problem"] or ""), what="the refusal")
                    assert wrong.status()["batches_sent"] == 0
                    # Half of the processes report: that may not stand for the whole.
                    half = await snapshot_that(
                        world, agents, lambda s: "needed" in sources(s)["client_feed"].reason, "a verdict on the half"
                    )
                    assert half.access is None
                    assert sources(half)["client_feed"].coverage < 0.8
                # When the endpoint goes
                await until(lambda: right.status()["problem"], what="a failure to report")
                served = [app.lookups for app in apps]
                await until(lambda: all(a.lookups > s + 300 for a, s in zip(apps, served, strict=True)), what="service")
                sent = right.status()["batches_sent"]
                # When it comes back
                async with listening(world, agents, tmp_path, port):
                    await until(lambda: right.status()["batches_sent"] > sent, 60, "reports again")
                report = await agents.query("collector", "feed_report", "shop", SystemClock().now_ms())
                assert report.batches >= right.status()["batches_sent"] - 1
                assert not [app.errors for app in apps if app.errors]
                assert (wrong.status()["failures"], right.status()["failures"]) == (0, 0)
