"""Fixtures: a server of each engine, and every implementation of the ports of caches and leases."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from cachewarden.fleet import KeyPattern, Service
from coordination.redis_leases import RedisLeaseStore
from coordination.redis_target import RedisTarget, TargetLimits
from simulation.fake_cache import FakeCache
from simulation.fake_leases import FakeLeaseStore
from tests.contract.real_servers import ENGINES, RealServer

SECRET = b"contract"
REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]


class SystemClock:
    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class HandClock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.at_ms = 1_800_000_000_000

    def now_ms(self) -> int:
        return self.at_ms


def service(url: str, **more: Any) -> Service:
    patterns = (KeyPattern(prefix="user:"), KeyPattern(prefix="user:vip:"), KeyPattern(prefix="page:"))
    return Service(name="shop", url=url, patterns=patterns, **({"capture": True} | more))


@pytest.fixture
def cache_server(request, tmp_path):
    """A running server of the engine in `request.param`."""
    server = RealServer(request.param, tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def make_target():
    """Build adapters and close them in the end."""
    made: list[RedisTarget] = []

    def make(
        server: RealServer, *, password: str | None = None, limits: TargetLimits | None = None, **more: Any
    ) -> RedisTarget:
        limits = limits or TargetLimits(timeout_s=5.0, probe_server_share=0.2)
        target = RedisTarget(
            service(server.url, **more), hash_secret=SECRET, clock=SystemClock(), password=password, limits=limits
        )
        made.append(target)
        return target

    yield make
    for target in made:
        await target.close()


@dataclass
class Cache:
    """A cache seen from both sides: `target` is the port under test, the rest is the application and its administrator."""

    target: Any
    server: RealServer | None = None
    fake: FakeCache | None = None
    clock: Any = None

    def put(self, key: str, ttl_ms: int = 0, value_bytes: int = 100) -> bool:
        """Store a key; False where the cache is full and refuses."""
        if self.fake is not None:
            return self.fake.set(key.encode(), value_bytes, ttl_ms)
        try:
            return bool(self.server.admin.set(key, b"x" * value_bytes, px=ttl_ms or None))
        except redis.exceptions.OutOfMemoryError:
            return False

    def look_up(self, key: str) -> bool:
        return self.fake.get(key.encode()) if self.fake is not None else self.server.admin.get(key) is not None

    def deadline_ms(self, key: str) -> int:
        return self.fake.deadline_ms(key.encode()) if self.fake is not None else self.server.admin.pexpiretime(key)

    def now_ms(self) -> int:
        if self.fake is not None:
            return self.clock.now_ms()
        seconds, micros = self.server.admin.time()
        return seconds * 1000 + micros // 1000

    def pass_time(self, milliseconds: int) -> None:
        """Let time pass by the clock of the cache."""
        if self.clock is not None:
            self.clock.at_ms += milliseconds
            return
        until_ms = self.now_ms() + milliseconds
        while self.now_ms() <= until_ms:
            time.sleep(0.01)

    def fence(self) -> int | None:
        if self.fake is not None:
            return self.fake.fence
        found = self.server.admin.get("cachewarden:fence")
        return None if found is None else int(found)

    def evict_fence(self) -> None:
        if self.fake is not None:
            self.fake.fence = None
        else:
            self.server.admin.delete("cachewarden:fence")

    def knob(self, name: str) -> str:
        if self.fake is not None:
            return self.fake._knobs[name]
        return self.server.admin.config_get(name)[name]

    def cut_off(self) -> None:
        if self.fake is not None:
            self.fake.reachable = False
        else:
            self.server.kill()


@pytest.fixture(params=[*REAL, "fake"])
async def cache(request, tmp_path, make_target):
    """Every implementation of TargetCache."""
    if request.param == "fake":
        clock = HandClock()
        fake = FakeCache(service("redis://nowhere"), clock=clock, hash_secret=SECRET)
        yield Cache(target=fake, fake=fake, clock=clock)
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    yield Cache(target=make_target(server), server=server)
    server.kill()


@pytest.fixture(params=[*REAL, "fake"])
async def measured_cache(request, tmp_path, make_target):
    """Every implementation of TargetCache, for a service that permits reading values."""
    if request.param == "fake":
        clock = HandClock()
        fake = FakeCache(service("redis://nowhere", value_samples=True), clock=clock, hash_secret=SECRET)
        yield Cache(target=fake, fake=fake, clock=clock)
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    yield Cache(target=make_target(server, value_samples=True), server=server)
    server.kill()


@dataclass
class Leases:
    """A lease store and the way to let its time pass."""

    store: Any
    server: RealServer | None = None
    clock: HandClock | None = None

    def pass_time(self, milliseconds: int) -> None:
        if self.clock is not None:
            self.clock.at_ms += milliseconds
            return
        # The server's own clock has to say so, not ours.
        seconds, micros = self.server.admin.time()
        until_ms = seconds * 1000 + micros / 1000 + milliseconds
        while (now := self.server.admin.time())[0] * 1000 + now[1] / 1000 <= until_ms:
            time.sleep(0.005)

    def cut_off(self) -> None:
        if self.server is not None:
            self.server.kill()
        else:
            self.store.reachable = False


@pytest.fixture(params=[*REAL, "fake"])
async def leases(request, tmp_path):
    """Every implementation of LeaseStore."""
    if request.param == "fake":
        clock = HandClock()
        yield Leases(store=FakeLeaseStore(clock), clock=clock)
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    store = RedisLeaseStore(server.url)
    yield Leases(store=store, server=server)
    await store.close()
    server.kill()
