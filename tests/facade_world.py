"""Embedded Valkey servers with traffic, and settings with windows of seconds: where the facade is tried in earnest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from cachewarden.errors import OperatingError
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.messages import Mode
from cachewarden.settings import CacheOptimizerSettings
from cluster.demo.driver import start_driver
from cluster.demo.fleet import blackboard_options
from cluster.demo.plan import DriverPlan, PlannedService
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
from cluster.demo.stats import read_last_stats
from simulation.workload import KeyPrefix, Past, WorkloadSpec

__all__ = ["MIB", "SERVICES", "World", "embedded_world"]

MIB = 1 << 20
SERVICES = ("constitutional_ai", "api_gateway")
CACHE_BYTES = 3 * MIB
BUDGET_BYTES = 16 * MIB


@dataclass(frozen=True)
class World:
    """`caches` by service name; `settings` name the blackboard and keep their state in the servers' directory."""

    caches: Mapping[str, EmbeddedServer]
    blackboard: EmbeddedServer
    settings: CacheOptimizerSettings
    fleet: Fleet


def _traffic(service: str, rate_per_s: float) -> WorkloadSpec:
    return WorkloadSpec(
        service=service,
        rate_per_s=rate_per_s,
        universe=2_000,
        zipf_skew=0.8,
        size_median_bytes=1_600,
        prefixes=(KeyPrefix(prefix="verdict:", share=1.0),),
        past=Past(recent_ms=60_000),
    )


@contextlib.asynccontextmanager
async def embedded_world(
    services: tuple[str, ...] = SERVICES[:1],
    *,
    mode: Mode = Mode.AUTO,
    traffic: bool = True,
    rate_per_s: float = 1_000.0,
    **changes: object,
) -> AsyncIterator[World]:
    """Start one full, too small cache per service, its load and a blackboard; everything ends with the block.

    `rate_per_s` are lookups of each service; `changes` are settings. The fleet's budget has room for every cache to grow.
    """
    with ServerHome() as home:
        caches = {
            name: EmbeddedServer(
                ServerOptions(name=name, maxmemory_bytes=CACHE_BYTES, eviction_policy="allkeys-lru"), home
            )
            for name in services
        }
        blackboard = EmbeddedServer(blackboard_options(), home)
        await asyncio.to_thread(start_all, [*caches.values(), blackboard])
        fleet = Fleet(
            name="embedded",
            total_memory_bytes=BUDGET_BYTES,
            services=tuple(
                Service(
                    name=name,
                    url=cache.url,
                    mode=mode,
                    tenant="acgs",
                    capture=True,
                    patterns=(KeyPattern(prefix="verdict:", max_staleness_s=600.0),),
                )
                for name, cache in caches.items()
            ),
        )
        given: dict[str, object] = {
            "blackboard_url": blackboard.url,
            "state_dir": home.directory / "state",
            "cycle_interval_ms": 1_000,
            "observation_window_ms": 5_000,
            "cool_down_ms": 0,
            "capture_ms": 5_000,
            "probe_sample_keys": 300,
            **changes,
        }
        settings = CacheOptimizerSettings(_env_file=None, **given)
        world = World(caches=caches, blackboard=blackboard, settings=settings, fleet=fleet)
        try:
            async with _load(caches, home, rate_per_s) if traffic else contextlib.nullcontext():
                yield world
        finally:
            for server in (*caches.values(), blackboard):
                await asyncio.to_thread(server.stop)


@contextlib.asynccontextmanager
async def _load(caches: Mapping[str, EmbeddedServer], home: ServerHome, rate_per_s: float) -> AsyncIterator[None]:
    """Drive all caches from a process of their own; begins once they hold what they would in the middle of their
    lives."""
    stats_path = home.directory / "stats.jsonl"
    services = tuple(
        PlannedService(name=name, urls={"managed": cache.url}, traffic=_traffic(name, rate_per_s))
        for name, cache in caches.items()
    )
    driver = start_driver(DriverPlan(seed=7, services=services, stats_path=str(stats_path)), home)
    try:
        async with asyncio.timeout(30):
            while (stats := read_last_stats(stats_path)) is None or stats.phase != "load":
                if driver.poll() is not None:
                    raise OperatingError(f"the load driver ended with code {driver.returncode}")
                await asyncio.sleep(0.05)
        yield
    finally:
        driver.terminate()
        await asyncio.to_thread(driver.wait, 10)
