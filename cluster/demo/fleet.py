"""The demo fleet: five caches, one per ACGS service, misconfigured as caches are in the wild, and their traffic.

The faults are those that operators report most: a volatile eviction policy over keys without TTL and `noeviction`
(both refuse writes once full), LFU at its defaults over a hot set that moves, TTLs far below what the data's owner
permits, and memory that lies idle in one cache while others are short of it. Memory is split equally, and the total
never grows.

It states; it measures and tunes nothing. INVARIANT: managed and control fleet start from the same options and get the
same requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.messages import Mode
from cluster.demo.plan import DriverPlan, PlannedService
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
from simulation.workload import KeyPrefix, Past, WorkloadSpec

__all__ = [
    "CACHE_BYTES",
    "CONTROL",
    "MANAGED",
    "SERVICES",
    "DemoServers",
    "blackboard_options",
    "demo_fleet",
    "driver_plan",
    "server_options",
    "workloads",
]

MANAGED, CONTROL = "managed", "control"
SERVICES: tuple[str, ...] = (
    "constitutional_ai",
    "integrity_service",
    "api_gateway",
    "multi_agent_coordinator",
    "blackboard_service",
)
CACHE_BYTES = 12 * 1024 * 1024
"""maxmemory of each cache at the start; an empty Valkey takes about 1 MiB of it."""

_MINIMUM_BYTES = 4 * 1024 * 1024
_STALENESS_S = 600.0
_SHORT_TTL_MS = 15_000

_POLICIES: Mapping[str, str] = {
    "constitutional_ai": "volatile-lru",
    "integrity_service": "noeviction",
    "api_gateway": "allkeys-lfu",
    "multi_agent_coordinator": "allkeys-lru",
    "blackboard_service": "allkeys-lru",
}
_FLOORS: Mapping[str, float] = {
    "constitutional_ai": 0.85,
    "integrity_service": 0.85,
    "api_gateway": 0.80,
    "multi_agent_coordinator": 0.75,
    "blackboard_service": 0.90,
}
_REGION, _TENANT = "eu-central", "acgs"

# Shapes of value sizes: the spread of Meta's social graph cache (interquartile sigma 0.75) and of its general
# key-value cache (0.47), both from CacheBench's published distributions. The medians there (about 160 to 220 bytes;
# Twitter's median is 224) are scaled up here, so that a few thousand keys dwarf the server's own memory and the demo
# needs few requests a second to show its effects.
_GRAPH_SIGMA, _KEY_VALUE_SIGMA = 0.75, 0.47

# The hottest key gets about 2 % of the lookups, so that no seed is decided by the fate of one key.
_OFFSET = 6.0

_SPECS: tuple[WorkloadSpec, ...] = (
    WorkloadSpec(
        service="constitutional_ai",
        rate_per_s=650.0,
        universe=9_500,
        zipf_skew=0.95,
        zipf_offset=_OFFSET,
        replaced_per_s=1.2,
        one_hit_share=0.001,
        write_share=0.01,
        size_median_bytes=1_000,
        size_sigma=_GRAPH_SIGMA,
        prefixes=(KeyPrefix(prefix="verdict:", share=0.7), KeyPrefix(prefix="principle:", share=0.3)),
        past=Past(long_ago_requests=120_000, turnover=0.2, recent_ms=180_000),
    ),
    WorkloadSpec(
        service="integrity_service",
        rate_per_s=500.0,
        universe=7_000,
        zipf_skew=0.85,
        zipf_offset=_OFFSET,
        replaced_per_s=0.8,
        write_share=0.03,
        size_median_bytes=1_500,
        size_sigma=_KEY_VALUE_SIGMA,
        prefixes=(KeyPrefix(prefix="proof:", share=0.8), KeyPrefix(prefix="chain:", share=0.2)),
        past=Past(long_ago_requests=120_000, turnover=0.2, recent_ms=180_000),
    ),
    WorkloadSpec(
        service="api_gateway",
        rate_per_s=750.0,
        universe=9_900,
        zipf_skew=0.9,
        zipf_offset=_OFFSET,
        replaced_per_s=4.0,
        one_hit_share=0.004,
        write_share=0.01,
        size_median_bytes=950,
        size_sigma=_GRAPH_SIGMA,
        prefixes=(
            KeyPrefix(prefix="route:", share=0.5),
            KeyPrefix(prefix="session:", share=0.3),
            KeyPrefix(prefix="quota:", share=0.2),
        ),
        past=Past(long_ago_requests=300_000, turnover=0.5, recent_ms=150_000),
    ),
    WorkloadSpec(
        service="multi_agent_coordinator",
        rate_per_s=500.0,
        universe=3_000,
        zipf_skew=0.8,
        zipf_offset=_OFFSET,
        replaced_per_s=0.6,
        write_share=0.02,
        size_median_bytes=900,
        size_sigma=_KEY_VALUE_SIGMA,
        prefixes=(
            KeyPrefix(prefix="plan:", share=0.6, ttl_ms=_SHORT_TTL_MS),
            KeyPrefix(prefix="agent:", share=0.4, ttl_ms=_SHORT_TTL_MS),
        ),
        past=Past(recent_ms=90_000),
    ),
    WorkloadSpec(
        service="blackboard_service",
        rate_per_s=450.0,
        universe=4_000,
        zipf_skew=0.95,
        zipf_offset=_OFFSET,
        replaced_per_s=0.8,
        one_hit_share=0.008,
        write_share=0.05,
        size_median_bytes=800,
        size_sigma=_KEY_VALUE_SIGMA,
        prefixes=(KeyPrefix(prefix="knowledge:", share=0.75), KeyPrefix(prefix="task:", share=0.25)),
        past=Past(long_ago_requests=40_000, turnover=0.3, recent_ms=180_000),
    ),
)


def workloads(seed: int) -> tuple[WorkloadSpec, ...]:
    """Return the traffic of the five services. The seed moves rates, skews, pace of change and sizes a little."""
    rng = np.random.default_rng((seed, 0xF1EE7))
    return tuple(
        replace(
            spec,
            rate_per_s=round(spec.rate_per_s * rng.uniform(0.95, 1.05), 1),
            zipf_skew=round(spec.zipf_skew + rng.uniform(-0.02, 0.02), 4),
            replaced_per_s=round(spec.replaced_per_s * rng.uniform(0.8, 1.2), 3),
            size_median_bytes=round(spec.size_median_bytes * rng.uniform(0.97, 1.03)),
        )
        for spec in _SPECS
    )


def server_options() -> tuple[ServerOptions, ...]:
    """Return how the caches are configured when the demo begins, in the order of SERVICES."""
    return tuple(
        ServerOptions(name=name, maxmemory_bytes=CACHE_BYTES, eviction_policy=_POLICIES[name]) for name in SERVICES
    )


def blackboard_options() -> ServerOptions:
    """Return the server of blackboard and journal: it loses nothing to eviction and at most a second to a crash."""
    return ServerOptions(name="blackboard", eviction_policy="noeviction", append_only=True)


def demo_fleet(urls: Mapping[str, str]) -> Fleet:
    """Return the fleet file of the managed caches; `urls`: service to server, KeyError if one is missing."""
    services = []
    for spec in _SPECS:
        patterns = tuple(
            KeyPattern(prefix=p.prefix, max_staleness_s=_STALENESS_S if p.ttl_ms > 0 else None) for p in spec.prefixes
        )
        services.append(
            Service(
                name=spec.service,
                url=urls[spec.service],
                mode=Mode.AUTO,
                tenant=_TENANT,
                region=_REGION,
                weight=1.0,
                hit_ratio_floor=_FLOORS[spec.service],
                minimum_memory_bytes=_MINIMUM_BYTES,
                patterns=patterns,
                capture=True,
            )
        )
    return Fleet(name="demo", total_memory_bytes=CACHE_BYTES * len(SERVICES), services=tuple(services))


def driver_plan(
    urls: Mapping[str, Mapping[str, str]], seed: int, stats_path: str, duration_s: float | None = None
) -> DriverPlan:
    """Return the load for the fleets in `urls` (fleet name to service to URL)."""
    services = tuple(
        PlannedService(
            name=spec.service,
            urls={fleet: by_service[spec.service] for fleet, by_service in urls.items()},
            traffic=spec,
        )
        for spec in workloads(seed)
    )
    return DriverPlan(seed=seed, services=services, stats_path=stats_path, duration_s=duration_s)


@dataclass(frozen=True, slots=True)
class DemoServers:
    """All servers of the demo; `close` of their home ends them."""

    managed: Mapping[str, EmbeddedServer]
    control: Mapping[str, EmbeddedServer]
    blackboard: EmbeddedServer

    @staticmethod
    def start(home: ServerHome) -> DemoServers:
        """Start both fleets and the blackboard's server; raises EmbeddedServerError."""
        fleets = {
            fleet: {
                options.name: EmbeddedServer(replace(options, name=f"{fleet}-{options.name}"), home)
                for options in server_options()
            }
            for fleet in (MANAGED, CONTROL)
        }
        blackboard = EmbeddedServer(blackboard_options(), home)
        start_all([*fleets[MANAGED].values(), *fleets[CONTROL].values(), blackboard])
        return DemoServers(fleets[MANAGED], fleets[CONTROL], blackboard)

    @property
    def urls(self) -> dict[str, dict[str, str]]:
        """Fleet name to service to URL, as `driver_plan` wants it."""
        return {
            MANAGED: {name: server.url for name, server in self.managed.items()},
            CONTROL: {name: server.url for name, server in self.control.items()},
        }
