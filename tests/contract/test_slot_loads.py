"""Loads of slots from real nodes of a cluster, up to the proposal of what to move."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from redis.crc import key_slot

from agents.snapshots import LookRing, make_snapshot
from coordination.redis_slots import primaries_of, slot_times_of
from serve.slot_moves import slot_moves_view
from tests.contract.real_servers import RealServer, free_port

pytestmark = pytest.mark.integration

LOOK = {"sample_keys": 2, "capture_ms": 0, "capture_lines": 0, "capture_rate": 1.0}
HALF = 8_192


def node(engine: str, folder: Path, bus_port: int) -> RealServer:
    folder.mkdir()
    server = RealServer(engine, folder)
    server.start("--cluster-enabled", "yes", "--cluster-port", str(bus_port))
    return server


async def so_that(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    ends_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < ends_s
        await asyncio.sleep(0.05)


@pytest.fixture
async def two_nodes(request, tmp_path):
    """Two primaries of one cluster, each with half of the slots."""
    buses, servers = [free_port(), free_port()], list[RealServer]()
    try:
        for name, bus, first in zip(("a", "b"), buses, (0, HALF), strict=True):
            servers.append(node(request.param, tmp_path / name, bus))
            servers[-1].admin.execute_command("CLUSTER", "ADDSLOTSRANGE", first, first + HALF - 1)
        servers[0].admin.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[1].port, buses[1])
        await so_that(lambda: all(s.admin.cluster("INFO")["cluster_state"] == "ok" for s in servers))
        yield servers
    finally:
        for server in servers:
            server.kill()


def names_of(slots: range, count: int) -> list[str]:
    """Return names of keys that lie in some of these slots, each in another."""
    found: dict[int, str] = {}
    number = 0
    while len(found) < count:
        name, number = f"user:{number}", number + 1
        slot = key_slot(name.encode())
        if slot in slots:
            found.setdefault(slot, name)
    return list(found.values())


def work(server: RealServer, name: str, times: int) -> None:
    pipe = server.admin.pipeline(transaction=False)
    for _ in range(times):
        pipe.getrange(name, 0, 1_000)
    pipe.execute()


@pytest.mark.parametrize("two_nodes", ["valkey"], indirect=True)
async def test_the_load_of_slots_is_seen_and_the_hot_ones_are_proposed_to_the_idle_node(two_nodes, make_target):
    busy, idle = two_nodes
    targets = [make_target(busy), make_target(idle)]
    rings = [LookRing(window_ms=60_000, base_age_ms=500) for _ in targets]
    for server in two_nodes:
        server.admin.config_set("cluster-slot-stats-enabled", "yes")
    hot, own = names_of(range(HALF), 6), names_of(range(HALF, 2 * HALF), 1)[0]
    for name in hot:
        busy.admin.set(name, "v" * 1_000)
        work(busy, name, 5)
    idle.admin.set(own, "v" * 1_000)
    work(idle, own, 5)

    async def looks():
        found = []
        for service, target, ring in zip(("a", "b"), targets, rings, strict=True):
            seen = replace(await target.observe(**LOOK), service=service)
            found.append(make_snapshot(seen, ring.add(seen), sample=None, access=None, reads=None, remarks={}))
        return found

    first = await looks()
    assert [s.cluster for s in first] == [None, None]
    began_s = time.monotonic()
    while time.monotonic() - began_s < 2:
        for name in hot:
            work(busy, name, 200)
        work(idle, own, 50)
        await asyncio.sleep(0)
    a, b = await looks()
    assert a.cluster.cluster == b.cluster.cluster
    assert a.cluster.primaries == 2
    loads = dict(a.cluster.slots)
    assert {key_slot(name.encode()) for name in hot} <= set(loads)
    told = slot_moves_view(a, [a, b])
    assert told.advised, told.reason
    # Slots are weighed by measured CPU time, so a later move may go back; the first goes from the busy to the idle one.
    assert told.moves[0]["from"] == "a"
    assert told.moves[0]["slot"] in {key_slot(name.encode()) for name in hot}
    assert max(told.shares_after.values()) < max(told.shares_before.values())
    assert busy.admin.execute_command("CLUSTER", "COUNTKEYSINSLOT", told.moves[0]["slot"]) == 1, "nothing was moved"


@pytest.mark.parametrize("two_nodes", ["valkey", "redis"], indirect=True)
async def test_without_statistics_of_slots_the_look_says_what_they_need(two_nodes, make_target):
    seen = await make_target(two_nodes[0]).observe(**LOOK)
    assert "cluster-slot-stats-enabled" in seen.incomplete["cluster"]
    assert seen.cluster is None


@pytest.mark.parametrize("cache_server", ["redis"], indirect=True)
async def test_a_server_by_itself_is_not_asked(cache_server, make_target):
    seen = await make_target(cache_server).observe(**LOOK)
    assert "cluster" not in seen.incomplete
    assert not any(name.startswith("cmdstat_cluster") for name in cache_server.admin.info("commandstats"))


def test_replies_are_read():
    text = (
        "07c 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-8191\n"
        "19d 127.0.0.1:7001@17001 slave 07c 0 1 1 connected\n"
        "0aa 127.0.0.1:7002@17002 master - 0 1 2 connected 8192-16383\n"
        "0bb 127.0.0.1:7003@17003 master - 0 1 3 connected\n"
    )
    assert primaries_of(text) == ("07c", "0aa")
    assert slot_times_of([[7, [b"key-count", 1, b"cpu-usec", 9]], [8, [b"key-count", 0]]]) == {7: 9, 8: 0}
