"""The embedded fleet on real servers: it starts, is driven, survives restarts, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import redis

from cluster.demo import reaper
from cluster.demo.driver import Driver, start_driver
from cluster.demo.fleet import CONTROL, MANAGED, SERVICES, DemoServers, driver_plan
from cluster.demo.plan import DriverPlan, PlannedService, TracePlan
from cluster.demo.servers import EmbeddedServer, EmbeddedServerError, ServerHome, ServerOptions
from cluster.demo.stats import DriverStats, read_last_stats
from simulation.workload import KeyPrefix, WorkloadSpec

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]


def until(condition, timeout_s: float = 20.0):
    """Wait for a condition; fails when it never holds."""
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)
    return result


@pytest.fixture
def home():
    with ServerHome() as made:
        yield made


def small_spec(**changes) -> WorkloadSpec:
    plain = {"service": "s", "rate_per_s": 400.0, "universe": 300, "zipf_skew": 0.8}
    return WorkloadSpec(**{**plain, "prefixes": (KeyPrefix(prefix="k:", share=1.0),), **changes})


@pytest.mark.parametrize("engine", ["valkey", "redis"])
def test_a_server_answers_only_with_its_password_and_is_gone_after_stop(home, engine):
    if engine == "redis" and shutil.which("redis-server") is None:
        pytest.skip("no redis-server in PATH")
    server = EmbeddedServer(
        ServerOptions(name="one", maxmemory_bytes=8 << 20, eviction_policy="allkeys-lru", engine=engine), home
    )
    server.start()
    with redis.Redis.from_url(server.url) as client, redis.Redis(port=server.port) as stranger:
        assert client.config_get("maxmemory")["maxmemory"] == str(8 << 20)
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert client.config_get("save")["save"] == ""
        with pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with pytest.raises(redis.ResponseError):
            client.execute_command("DEBUG", "SLEEP", "0")
    pid = server.pid
    server.stop()
    assert reaper.start_time(pid) is None
    assert not server.running


def test_a_restart_keeps_port_and_password_and_forgets_what_was_set(home):
    server = EmbeddedServer(ServerOptions(name="one", eviction_policy="noeviction"), home)
    server.start()
    url = server.url
    with redis.Redis.from_url(url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    server.restart()
    assert server.url == url
    with redis.Redis.from_url(url) as client:
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"


def test_a_taken_port_is_named_with_the_way_out(home):
    first = EmbeddedServer(ServerOptions(name="first"), home)
    first.start()
    with pytest.raises(EmbeddedServerError, match=rf"port {first.port} .* taken, stop what listens there"):
        EmbeddedServer(ServerOptions(name="second"), home, port=first.port).start()


def test_a_server_that_ends_at_once_shows_its_last_lines(home):
    server = EmbeddedServer(ServerOptions(name="bad", knobs={"maxmemory-samples": "lots"}), home)
    with pytest.raises(EmbeddedServerError, match="maxmemory-samples"):
        server.start()


def test_closing_the_home_ends_servers_and_removes_files():
    with ServerHome() as home:
        server = EmbeddedServer(ServerOptions(name="one"), home)
        server.start()
        pid, directory = server.pid, home.directory
    assert reaper.start_time(pid) is None
    assert not directory.exists()


@pytest.mark.parametrize("thread", ["main", "worker"])
def test_after_kill_nine_of_the_owner_nothing_stays(thread):
    # In a worker thread there is no parent-death signal, so that the reaper does it alone.
    program = textwrap.dedent("""
        import sys, threading, time
        from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
        def work():
            home = ServerHome()
            servers = [EmbeddedServer(ServerOptions(name=f"s{i}", append_only=i == 0), home) for i in range(2)]
            start_all(servers)
            print(home.directory, home.reaper_pid, *(s.pid for s in servers), flush=True)
            time.sleep(600)
        if sys.argv[1] == "main":
            work()
        else:
            t = threading.Thread(target=work); t.start(); t.join()
    """)
    owner = subprocess.Popen([sys.executable, "-c", program, thread], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    directory, *pids = owner.stdout.readline().split()
    assert all(reaper.start_time(int(pid)) for pid in pids)
    owner.kill()
    owner.wait()
    owner.stdout.close()
    until(lambda: not Path(directory).exists() and not any(reaper.start_time(int(pid)) for pid in pids), timeout_s=5.0)


async def drive(plan: DriverPlan, during=None) -> list[DriverStats]:
    readings: list[DriverStats] = []
    driver = Driver(plan)
    running = asyncio.create_task(driver.run(readings.append))
    if during is not None:
        await during(driver)
        driver.stop()
    await running
    return readings


async def loaded(driver: Driver, fleet: str, service: str, lookups: int) -> None:
    """Return once that many lookups were answered."""
    async with asyncio.timeout(20):
        # Counters have no event to wait for.
        while fleet not in (fleets := driver.stats().fleets) or fleets[fleet][service].lookups < lookups:
            await asyncio.sleep(0.05)


async def test_client_and_server_count_the_same_hits_and_both_fleets_get_the_same_requests(home):
    servers = [EmbeddedServer(ServerOptions(name=name, maxmemory_bytes=8 << 20), home) for name in ("a", "b")]
    for server in servers:
        server.start()
    service = PlannedService(
        name="s", urls={"a": servers[0].url, "b": servers[1].url}, traffic=small_spec(write_share=0.1)
    )
    plan = DriverPlan(seed=4, services=(service,), stats_path="-", duration_s=2.0, prefill=False)
    final = (await drive(plan))[-1]
    first, second = final.fleets["a"]["s"], final.fleets["b"]["s"]
    assert (first.lookups, first.hits, first.writes) == (second.lookups, second.hits, second.writes)
    assert first.lookups > 500
    assert first.errors == first.refused == first.dropped == final.late == 0
    with redis.Redis.from_url(servers[0].url) as client:
        info = client.info("stats")
        assert (info["keyspace_hits"], info["keyspace_misses"]) == (first.hits, first.lookups - first.hits)


async def test_the_driver_survives_a_crash_and_restart_of_a_server(home):
    server, other = (EmbeddedServer(ServerOptions(name=name), home) for name in ("a", "b"))
    server.start()
    other.start()
    services = tuple(
        PlannedService(name=name, urls={"f": s.url}, traffic=small_spec(service=name))
        for name, s in (("s", server), ("o", other))
    )
    plan = DriverPlan(seed=4, services=services, stats_path="-", prefill=False)

    async def crash(driver: Driver) -> None:
        await loaded(driver, "f", "s", 200)
        server.kill()
        await loaded(driver, "f", "o", driver.stats().fleets["f"]["o"].lookups + 200)
        await asyncio.to_thread(server.start)
        await loaded(driver, "f", "s", driver.stats().fleets["f"]["s"].lookups + 200)

    final = (await drive(plan, crash))[-1]
    assert final.fleets["f"]["s"].errors > 0
    assert final.fleets["f"]["o"].errors == 0


async def test_a_server_that_hangs_does_not_slow_the_others_down(home):
    server, other = (EmbeddedServer(ServerOptions(name=name), home) for name in ("a", "b"))
    server.start()
    other.start()
    services = tuple(
        PlannedService(name=name, urls={"f": s.url}, traffic=small_spec(service=name))
        for name, s in (("s", server), ("o", other))
    )
    plan = DriverPlan(seed=4, services=services, stats_path="-", prefill=False, behind_ms=300)

    async def hang(driver: Driver) -> None:
        await loaded(driver, "f", "s", 100)
        os.kill(server.pid, signal.SIGSTOP)
        try:
            await loaded(driver, "f", "o", driver.stats().fleets["f"]["o"].lookups + 500)
            assert driver.stats().fleets["f"]["s"].dropped > 0
        finally:
            os.kill(server.pid, signal.SIGCONT)
        await loaded(driver, "f", "s", driver.stats().fleets["f"]["s"].lookups + 200)

    final = (await drive(plan, hang))[-1]
    assert final.fleets["f"]["o"].dropped == 0


async def test_a_wrong_password_is_said_at_the_start(home):
    server = EmbeddedServer(ServerOptions(name="a"), home)
    server.start()
    service = PlannedService(name="s", urls={"f": f"redis://:wrong@127.0.0.1:{server.port}/0"}, traffic=small_spec())
    with pytest.raises(ConnectionError, match="does not let the driver in"):
        await drive(DriverPlan(seed=1, services=(service,), stats_path="-", duration_s=1.0))


async def test_a_users_trace_is_played_to_its_end(home, tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("time_ms,key,size,ttl\n" + "".join(f"{i * 5},{i % 10},200,60000\n" for i in range(100)))
    server = EmbeddedServer(ServerOptions(name="a"), home)
    server.start()
    service = PlannedService(name="t", urls={"f": server.url}, traffic=TracePlan(service="t", path=str(path)))
    final = (await drive(DriverPlan(seed=1, services=(service,), stats_path="-")))[-1]
    counters = final.fleets["f"]["t"]
    assert (counters.lookups, counters.errors) == (100, 0)
    assert counters.lookups - counters.hits >= 10
    with redis.Redis.from_url(server.url) as client:
        assert client.dbsize() == 10
        assert 0 < client.pttl(client.randomkey()) <= 60_000


def test_the_whole_demo_starts_full_and_with_its_faults_showing(home):
    servers = DemoServers.start(home)
    path = home.directory / "stats.jsonl"
    driver = start_driver(driver_plan(servers.urls, 11, str(path), duration_s=6.0), home)
    assert driver.wait(timeout=60) == 0
    stats = read_last_stats(path)
    assert stats is not None
    control, managed = stats.fleet(CONTROL), stats.fleet(MANAGED)
    assert 0.78 < control.hit_ratio < 0.88
    assert abs(control.hit_ratio - managed.hit_ratio) < 0.02
    for fleet in (CONTROL, MANAGED):
        by_name = stats.fleets[fleet]
        assert set(by_name) == set(SERVICES)
        assert by_name["constitutional_ai"].refused > 0
        assert by_name["integrity_service"].refused > 0
        assert by_name["blackboard_service"].hit_ratio > 0.97
        assert sum(c.errors for c in by_name.values()) == 0
    with redis.Redis.from_url(servers.blackboard.url) as client:
        assert client.config_get("appendonly")["appendonly"] == "yes"
        assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
