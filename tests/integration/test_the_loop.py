"""The whole loop on real servers: sick caches are cured, within their limits, and what made things worse is undone."""

from __future__ import annotations

import asyncio

import pytest

from cachewarden.codec import to_jsonable
from cachewarden.fleet import KeyPattern
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, ExecutionState, Mode
from simulation.workload import KeyPrefix, Past
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_full_cache_that_refuses_writes_is_cured_and_the_journal_tells_how(tmp_path, engine):
    spec = CacheSpec(engine=engine, eviction_policy="noeviction", load=traffic("shop"))
    async with World(tmp_path, spec) as world:
        before = world.driver.stats().fleets["f"]["shop"].hit_ratio
        async with world.agents() as agents:

            async def cured():
                return [e for e in await world.executions() if e.state is ExecutionState.KEPT]

            kept = (await until(cured, 60, "a kept change"))[0]
            state = await world.state()
            print(state.cycle, kept.reason, kept.proposal.knob_changes, before)
            assert world.knob("maxmemory-policy").startswith("allkeys-")
        kinds = [r.kind for r in await world.records() if r.subject_id == kept.proposal.proposal_id]
        print(kinds)
        await world.assert_sound()
