"""How much better can the demo fleet get? The control fleet beside the same fleet tuned by hand, on the same requests.

Prints hit ratios per service (control/tuned) over time, then memory, keys, evictions and idle times of the caches.
Run: `python benchmarks/demo_headroom.py --seed 1 --seconds 120`. With `--after S` the tuning is applied to the running
fleet after S seconds, as an autopilot would, and TTLs are extended once a second from then on; without it the tuned
fleet is born tuned. `--no-memory` keeps the equal split.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import redis

from cluster.demo.driver import start_driver
from cluster.demo.fleet import CACHE_BYTES, CONTROL, MANAGED, SERVICES, DemoServers, driver_plan
from cluster.demo.plan import PlannedService
from cluster.demo.servers import ServerHome
from cluster.demo.stats import DriverStats, read_last_stats

MIB = 1024 * 1024
TUNED_MIB = {
    "constitutional_ai": 15.5,
    "integrity_service": 14.0,
    "api_gateway": 17.0,
    "multi_agent_coordinator": 6.0,
    "blackboard_service": 7.5,
}
TUNED_POLICY = dict.fromkeys(SERVICES, "allkeys-lru")
TUNED_TTL_MS = 600_000


def tune(servers: DemoServers, *, memory: bool) -> None:
    for name, server in servers.managed.items():
        with redis.Redis.from_url(server.url) as client:
            client.config_set("maxmemory-policy", TUNED_POLICY[name])
            if memory:
                client.config_set("maxmemory", int(TUNED_MIB[name] * MIB))


def extend_ttls(client: redis.Redis) -> None:
    pipe = client.pipeline(transaction=False)
    for key in client.scan_iter(count=1000):
        pipe.execute_command("EXPIRE", key, TUNED_TTL_MS // 1000 - 15, "GT")
    pipe.execute()


def show(title: str, stats: DriverStats) -> None:
    cells = []
    for name in SERVICES:
        pair = [stats.fleets[fleet][name].hit_ratio for fleet in (CONTROL, MANAGED)]
        cells.append(f"{name[:12]} " + "/".join("  -  " if r is None else f"{r:.3f}" for r in pair))
    total = [stats.fleet(fleet).hit_ratio for fleet in (CONTROL, MANAGED)]
    latency = stats.fleet(MANAGED).latency_us(0.99)
    both = "/".join("  -  " if r is None else f"{r:.4f}" for r in total)
    print(
        f"{title:>10} | {' | '.join(cells)} | ALL {both}"
        f" | lag {stats.lag_ms:.0f} ms late {stats.late} cpu {stats.cpu_share:.2f} p99 {latency} us",
        flush=True,
    )


def servers_table(servers: DemoServers) -> None:
    heads = f"{'maxmem':>7} {'used':>7} {'keys':>7} {'evicted':>8} {'cpu s':>6} {'idle s p50/p98/max':>20}"
    print(f"{'cache (MiB)':40} {heads} policy")
    for fleet in (servers.control, servers.managed):
        for server in fleet.values():
            with redis.Redis.from_url(server.url) as client:
                info = client.info()
                policy = client.config_get("maxmemory-policy")["maxmemory-policy"]
                oldest = "-"
                if "lfu" not in policy:
                    names = [client.randomkey() for _ in range(300)]
                    idle = sorted(client.object("idletime", n) or 0 for n in names if n is not None)
                    oldest = f"{idle[len(idle) // 2]}/{idle[int(len(idle) * 0.98)]}/{idle[-1]}" if idle else "-"
                cpu_s = info["used_cpu_user"] + info["used_cpu_sys"]
                print(
                    f"{server.options.name:40} {info['maxmemory'] / MIB:7.1f} {info['used_memory'] / MIB:7.2f} "
                    f"{client.dbsize():7} {info['evicted_keys']:8} {cpu_s:6.1f} {oldest:>20} {policy}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=15.0)
    parser.add_argument("--after", type=float, default=None)
    parser.add_argument("--no-memory", action="store_true", help="leave the equal split of memory")
    options = parser.parse_args()
    assert sum(TUNED_MIB.values()) * MIB <= CACHE_BYTES * len(SERVICES), "the tuned split must not need more memory"
    with ServerHome() as home:
        servers = DemoServers.start(home)
        stats_path = home.directory / "stats.jsonl"
        plan = driver_plan(servers.urls, options.seed, str(stats_path), options.seconds)
        if options.after is None:
            tune(servers, memory=not options.no_memory)
            # With the tuning in force from the start the application itself writes the longer TTL to the managed fleet.
            split: list[PlannedService] = []
            for service in plan.services:
                spec = service.traffic
                if any(p.ttl_ms for p in spec.prefixes):
                    longer = replace(spec, prefixes=tuple(replace(p, ttl_ms=TUNED_TTL_MS) for p in spec.prefixes))
                    split.append(replace(service, urls={CONTROL: service.urls[CONTROL]}))
                    managed = {MANAGED: service.urls[MANAGED]}
                    split.append(replace(service, name=service.name + "+ttl", urls=managed, traffic=longer))
                else:
                    split.append(service)
            plan = replace(plan, services=tuple(split))
        driver = start_driver(plan, home)
        began = time.monotonic()
        previous: DriverStats | None = None
        tuned = options.after is None
        while driver.poll() is None:
            time.sleep(1.0)
            stats = read_last_stats(stats_path)
            if stats is None or stats.phase == "prefill":
                continue
            stats = _merged(stats)
            if previous is None:
                waited_s = time.monotonic() - began
                print(f"seed {options.seed}: prefill took {stats.prefill_ms} ms, load began after {waited_s:.1f} s")
                previous = stats
                servers_table(servers)
            if not tuned and stats.elapsed_ms >= options.after * 1000:
                tune(servers, memory=not options.no_memory)
                tuned = True
            if tuned and options.after is not None:
                server = servers.managed["multi_agent_coordinator"]
                with redis.Redis.from_url(server.url) as client:
                    extend_ttls(client)
            if stats.elapsed_ms - previous.elapsed_ms >= options.every * 1000:
                show(f"{stats.elapsed_ms / 1000:.0f} s", stats.since(previous))
                previous = stats
        final = read_last_stats(stats_path)
        print((home.directory / "driver.log").read_text()[-2000:])
        if final is not None:
            show("all", _merged(final))
            servers_table(servers)


def _merged(stats: DriverStats) -> DriverStats:
    """Put the split service together again under its own name."""
    fleets = {
        fleet: {name.removesuffix("+ttl"): counters for name, counters in services.items()}
        for fleet, services in stats.fleets.items()
    }
    return replace(stats, fleets=fleets)


if __name__ == "__main__":
    main()
