"""What governs changes over time, on real servers: the canary first, and what a restart took away set again."""

from __future__ import annotations

import asyncio

import pytest

from cachewarden.messages import ExecutionState
from tests.integration.world import CacheSpec, World, traffic, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


async def kept_on(world: World, service: str, timeout_s: float = 110.0):
    async def kept():
        return [e for e in await world.executions(service) if e.state is ExecutionState.KEPT]

    return await until(kept, timeout_s, f"a kept change of {service}")


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_lossy_change_is_kept_on_the_canary_before_it_begins_elsewhere(tmp_path, engine):
    sick = {"engine": engine, "eviction_policy": "noeviction"}
    specs = (
        CacheSpec(name="shop", load=traffic("shop"), wishes={"canary": "trial"}, **sick),
        CacheSpec(name="trial", load=traffic("trial"), **sick),
    )
    async with World(tmp_path, *specs) as world, world.agents():
        first = (await kept_on(world, "trial"))[0]
        second = (await kept_on(world, "shop"))[0]
        assert world.knob("maxmemory-policy", "shop") == world.knob("maxmemory-policy", "trial")
        records = await world.records("change_intended", "change_kept")
        ended = next(r.seq for r in records if r.kind == "change_kept" and r.subject_id == first.proposal.proposal_id)
        begun = [r.seq for r in records if r.kind == "change_intended" and r.service == "shop"]
        assert ended < min(begun)
        assert second.started_at_ms >= first.updated_at_ms
        await world.assert_sound()


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_setting_that_a_restart_took_away_is_set_again_while_it_is_still_agreed(tmp_path, engine):
    spec = CacheSpec(engine=engine, eviction_policy="noeviction", load=traffic("shop"))
    async with World(tmp_path, spec) as world, world.agents():
        first = (await kept_on(world, "shop"))[0]
        policy = world.knob("maxmemory-policy")
        assert policy != "noeviction"
        await asyncio.to_thread(world.caches["shop"].kill)
        await asyncio.to_thread(world.caches["shop"].start)
        assert world.knob("maxmemory-policy") == "noeviction", "there is no file that would carry it"

        async def again():
            found = [e for e in await world.executions("shop") if e.proposal.reapplies is not None]
            return [e for e in found if e.state is ExecutionState.KEPT]

        (second,) = await until(again, 80, "the same setting again")
        assert second.proposal.reapplies == first.proposal.proposal_id
        assert world.knob("maxmemory-policy") == policy
        await world.assert_sound()
