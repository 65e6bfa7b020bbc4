"""The settings of a primary and its replica on real servers: what differs is seen and told, and left as it is."""

from __future__ import annotations

import time

import pytest

from agents.snapshots import LookRing, make_snapshot
from coordination.settings_watch import SettingsWatch
from tests.contract.real_servers import ENGINES, RealServer

pytestmark = [pytest.mark.integration, pytest.mark.parametrize("cache_server", ENGINES, indirect=True)]

LOOK = {"sample_keys": 0, "capture_ms": 0, "capture_lines": 0, "capture_rate": 1.0}


@pytest.fixture
def replica(cache_server, tmp_path):
    folder = tmp_path / "replica"
    folder.mkdir()
    server = RealServer(cache_server.engine, folder)
    server.start("--replicaof", "127.0.0.1", str(cache_server.port))
    ends_s = time.monotonic() + 60
    while server.admin.info("replication")["master_link_status"] != "up":
        assert time.monotonic() < ends_s
        time.sleep(0.05)
    yield server
    server.kill()


class Watching:
    def __init__(self, target):
        self._target, self._ring = target, LookRing(window_ms=60_000, base_age_ms=1_000)
        self.watch, self.records = SettingsWatch(86_400_000), []

    async def look(self):
        seen = await self._target.observe(**LOOK)
        found = make_snapshot(seen, self._ring.add(seen), sample=None, access=None, reads=None, remarks={})
        self.records += self.watch.look([found], frozenset(), seen.at_ms)
        return found

    @property
    def drift(self):
        return self.watch.drift("shop")


async def test_a_replica_with_other_settings_is_seen_told_and_left_alone(cache_server, replica, make_target):
    watching = Watching(make_target(cache_server, nodes=(replica.url,)))
    await watching.look()
    await watching.look()
    assert (watching.records, watching.drift) == ([], {})
    cache_server.admin.config_set("maxmemory", 64 << 20)
    replica.admin.config_set("lfu-decay-time", 7)
    for _ in range(3):
        await watching.look()
    node = f"127.0.0.1:{replica.port}"
    assert watching.drift == {"lfu-decay-time": {node: "7"}, "maxmemory": {node: "0"}}
    drifts = [r for r in watching.records if r.kind == "setting_drift"]
    assert len(drifts) == 2
    replica.admin.config_set("lfu-decay-time", 1)
    await watching.look()
    assert watching.drift == {"maxmemory": {node: "0"}}
    assert replica.admin.config_get("maxmemory")["maxmemory"] == "0"
    # Whoever asks sets nothing: the only CONFIG SET of the replica were those of this test.
    stats = replica.admin.info("commandstats")
    assert stats["cmdstat_config|set"]["calls"] == 2
    assert not {"cmdstat_set", "cmdstat_eval", "cmdstat_scan", "cmdstat_randomkey"} & set(stats)


async def test_a_replica_that_is_gone_or_tells_nothing_is_named_and_costs_no_look(cache_server, replica, make_target):
    watching = Watching(make_target(cache_server, nodes=(replica.url, "redis://127.0.0.1:1")))
    found = await watching.look()
    assert "127.0.0.1:1" in found.incomplete["nodes"]
    assert found.knobs
    replica.admin.execute_command("ACL", "SETUSER", "default", "-config|get")
    found = await watching.look()
    assert f"`127.0.0.1:{replica.port}`" in found.incomplete["nodes"]
    assert "permission" in found.incomplete["nodes"].lower()
    assert watching.drift == {}
