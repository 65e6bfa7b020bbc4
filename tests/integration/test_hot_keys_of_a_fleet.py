"""What a user sees of hot keys and of drifting nodes, through all agents and the API, on real servers."""

from __future__ import annotations

import pytest

from cachewarden.fleet import Guardrails, KeyPattern
from cachewarden.messages import Mode
from tests.contract.real_servers import RealServer
from tests.integration.test_modes_on_servers import Site
from tests.integration.world import MIB, CacheSpec, World, traffic, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

HOTKEYS = "/api/v1/cache/services/shop/hotkeys"


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_hot_keys_by_counters_and_settings_that_drift_are_shown(tmp_path, engine):
    folder = tmp_path / "other"
    folder.mkdir()
    other = RealServer(engine, folder)
    other.start("--maxmemory", "77mb", "--maxmemory-policy", "allkeys-lfu", "--maxmemory-samples", "9")
    wishes = {
        "mode": Mode.ADVISE,
        "capture": False,
        "nodes": (other.url,),
        "patterns": (KeyPattern(prefix="k:"),),
        "guardrails": Guardrails(),
    }
    load = traffic("shop", universe=300, zipf_skew=1.1, zipf_offset=0.0)
    spec = CacheSpec(engine=engine, maxmemory_bytes=20 * MIB, eviction_policy="allkeys-lfu", load=load, wishes=wishes)
    try:
        async with World(tmp_path, spec) as world, world.agents() as agents, Site(world, agents, tmp_path) as site:

            async def hot():
                answer = (await site.client.get(HOTKEYS)).json()
                shares = [key["share"] for key in answer.get("keys", [])]
                return answer if shares and all(shares) else None

            answer = await until(hot, 100, "hot keys with shares")
            first = answer["keys"][0]
            assert "lfu-log-factor" in answer["source"]
            assert first["share"]["low"] < first["share"]["value"] <= first["share"]["high"] <= 1.0
            assert first["severity"] in ("high", "medium")
            assert first["prefix"] == "k:"
            assert not any("k:" in key["key_hash"] for key in answer["keys"])
            assert answer["tried"]["hotkeys"]
            assert answer["slot_moves"] is None

            async def drift():
                return (await site.client.get("/api/v1/cache/services/shop")).json()["service"]["drift"] or None

            node = f"127.0.0.1:{other.port}"
            told = await until(drift, 60, "the drift")
            assert told["maxmemory"] == {node: str(77 * MIB)}
            assert told["maxmemory-samples"] == {node: "9"}
            metrics = (await site.client.get("/metrics")).text
            assert f'cachewarden_setting_drift{{cache="shop",knob="maxmemory",node="{node}"}} 1.0' in metrics
            record = await world.recorded("setting_drift")
            assert record.payload["differs"] is True
            assert "cmdstat_config|set" not in other.admin.info("commandstats")
            assert world.config_sets() == 0
    finally:
        other.kill()
