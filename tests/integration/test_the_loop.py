"""The whole loop on real servers: sick caches are cured, within their limits, and what made things worse is undone."""

from __future__ import annotations

import asyncio

import pytest
import redis.asyncio

from cachewarden.fleet import KeyPattern
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, ExecutionState, Mode, RecordKind, ResolutionOutcome
from coordination.projection import task_id_of
from coordination.redis_blackboard import RedisBlackboard
from simulation.workload import KeyPrefix, Past
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration

CYCLES_MAX = 30
"""Within so many cycles a sick cache must be cured; it takes about eight."""


async def kept_change(world: World, service: str = "shop", timeout_s: float = 70.0):
    """Return the first change of a service that was kept."""

    async def kept():
        return [e for e in await world.executions(service) if e.state is ExecutionState.KEPT]

    return (await until(kept, timeout_s, "a kept change"))[0]


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_full_cache_that_refuses_writes_is_cured_and_the_journal_tells_how(tmp_path, engine):
    spec = CacheSpec(engine=engine, eviction_policy="noeviction", load=traffic("shop"))
    async with World(tmp_path, spec) as world:
        async with world.agents():
            kept = await kept_change(world)
            state = await world.state()
            assert state.cycle <= CYCLES_MAX
            assert world.knob("maxmemory-policy").startswith("allkeys-")
            assert kept.hit_ratio_after > kept.hit_ratio_before
            assert state.decisions == state.decisions_compliant > 0
            blackboard = RedisBlackboard(world.settings.blackboard_url)
            task_id = task_id_of(kept)

            async def finished():
                task = await blackboard.task(task_id)
                return task if task is not None and task["status"] == "completed" else None

            task = await until(finished, what="the task on the blackboard")
            agents = await blackboard.active_agents()
            await blackboard.close()
        assert task["agent_id"] == AGENT_ID
        assert [a["agent_id"] for a in agents] == [AGENT_ID]
        records = await world.records()
        assert {r.constitutional_hash for r in records} == {CONSTITUTIONAL_HASH}
        told = [r.kind for r in records if kept.proposal.proposal_id in (r.subject_id, r.payload.get("proposal_id"))]
        order = [
            RecordKind.PROPOSED,
            RecordKind.JUDGED,
            RecordKind.RESOLVED,
            RecordKind.CHANGE_INTENDED,
            RecordKind.STEP_INTENDED,
            RecordKind.STEP_APPLIED,
            RecordKind.OBSERVED,
            RecordKind.CHANGE_KEPT,
        ]
        assert [told.index(kind) for kind in order] == sorted(told.index(kind) for kind in order)
        await world.assert_sound()


async def test_keys_live_longer_but_never_longer_than_their_owner_allows(tmp_path):
    # Given keys that the application lets expire after 4 s, while their owner allows 30 s
    load = traffic(
        "shop",
        universe=1_500,
        zipf_skew=0.8,
        prefixes=(KeyPrefix(prefix="k:", share=1.0, ttl_ms=4_000),),
        past=Past(recent_ms=20_000),
    )
    spec = CacheSpec(
        maxmemory_bytes=12 * MIB, load=load, wishes={"patterns": (KeyPattern(prefix="k:", max_staleness_s=30),)}
    )
    longest_ms = 0
    async with World(tmp_path, spec) as world, world.agents():
        watching = asyncio.Event()

        async def watch() -> None:
            nonlocal longest_ms
            async with redis.asyncio.Redis.from_url(world.caches["shop"].url) as client:
                while not watching.is_set():
                    # PTTL counts as a lookup of the application: so few that the hit ratio stays the load's.
                    key = await client.randomkey()
                    longest_ms = max(longest_ms, await client.pttl(key) if key else 0)
                    await asyncio.sleep(0.1)

        watcher = asyncio.create_task(watch())
        kept = await kept_change(world)
        await until(lambda: longest_ms > 10_000, what="a key that lives longer than it was written to")
        watching.set()
        await watcher
        (rule,) = kept.proposal.ttl_rules
        assert rule.written_ttl_ms == 4_000
        assert rule.extended_ttl_ms <= rule.max_staleness_ms == 30_000
        assert longest_ms <= rule.extended_ttl_ms
        assert kept.hit_ratio_after > kept.hit_ratio_before + 0.05
        await world.assert_sound()


async def test_memory_moves_between_two_caches_and_the_sum_never_exceeds_the_budget(tmp_path):
    # Given one cache with memory to spare and one that is short of it
    rich = CacheSpec(
        name="rich",
        maxmemory_bytes=10 * MIB,
        load=traffic(
            "rich",
            universe=2_000,
            rate_per_s=500.0,
            one_hit_share=0.01,
            past=Past(long_ago_requests=60_000, turnover=0.9, recent_ms=60_000),
        ),
        wishes={"minimum_memory_bytes": 3 * MIB},
    )
    poor = CacheSpec(
        name="poor",
        maxmemory_bytes=5 * MIB,
        load=traffic("poor", universe=9_000, rate_per_s=600.0, zipf_skew=0.8),
        wishes={"minimum_memory_bytes": 3 * MIB},
    )
    budget = 15 * MIB
    sums: list[int] = []
    async with World(tmp_path, rich, poor, total_memory_bytes=budget, capture_ms=12_000) as world, world.agents():
        done = asyncio.Event()

        async def watch() -> None:
            clients = [redis.asyncio.Redis.from_url(world.caches[n].url) for n in ("poor", "rich")]
            while not done.is_set():
                # The receiver is read first: read last, it might have got what the donor had already given.
                sizes = [int((await c.config_get("maxmemory"))["maxmemory"]) for c in clients]
                sums.append(sum(sizes))
                await asyncio.sleep(0.02)
            for client in clients:
                await client.aclose()

        watcher = asyncio.create_task(watch())
        try:

            async def grown():
                kept = [e for e in await world.executions("poor") if e.state is ExecutionState.KEPT]
                return [e for e in kept if e.proposal.memory_delta_bytes > 0]

            (grew, *_) = await until(grown, 80, "a kept growth of the poor cache")
        finally:
            done.set()
            await watcher
        assert len(sums) > 100
        assert max(sums) <= budget
        assert int(world.knob("maxmemory", "poor")) > 5 * MIB
        assert int(world.knob("maxmemory", "rich")) < 10 * MIB
        assert grew.hit_ratio_after > grew.hit_ratio_before


async def test_advice_is_given_and_nothing_is_ever_written_in_mode_advise(tmp_path):
    spec = CacheSpec(eviction_policy="noeviction", load=traffic("shop"), wishes={"mode": Mode.ADVISE})
    async with World(tmp_path, spec) as world:
        async with world.agents():

            async def advised():
                state = await world.state()
                standing = state.standing.get("shop") if state else None
                return standing if standing and standing.resolution else None

            standing = await until(advised, 40, "advice")
            cycle = (await world.state()).cycle

            async def later():
                state = await world.state()
                return state is not None and state.cycle >= cycle + 2

            await until(later, what="two more cycles")
        assert standing.resolution.outcome is ResolutionOutcome.ADVISE
        assert "mode `advise`" in standing.resolution.reason
        assert standing.proposal.knob_changes
        assert world.config_sets() == 0
        assert world.client("shop").get("cachewarden:fence") is None
        assert await world.records("change_intended") == []
        await world.assert_sound()


async def test_a_change_that_makes_things_worse_is_taken_back_and_the_value_is_as_it_was(tmp_path):
    spec = CacheSpec(
        maxmemory_bytes=8 * MIB,
        load=traffic("shop"),
        wishes={"mode": Mode.AUTO, "minimum_memory_bytes": 2 * MIB, "capture": False},
    )
    async with World(tmp_path, spec, minimum_gain=1.0) as world, world.agents() as agents:
        # Given an order whose prediction promises that a third of the memory does as well
        order = order_for(world, await world.seen(lookups=400), [("maxmemory", str(5 * MIB // 2))])
        await agents.send("test", "coordinator", order)
        execution = await world.finished("p-crafted")
        assert execution.state is ExecutionState.ROLLED_BACK, execution.reason
        assert world.knob("maxmemory") == str(8 * MIB)
        kinds = [r.kind for r in await world.records() if r.subject_id == "p-crafted"]
        assert kinds.index("step_applied") < kinds.index("rollback_intended") < kinds.index("change_rolled_back")
        state = await world.state()
        assert state.cycle > 0
        await world.assert_sound()


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_cache_that_is_above_its_limit_and_may_evict_nothing_can_still_be_changed(tmp_path, engine):
    # Given a full cache that holds more than its limit, as client buffers and hash tables make it in practice
    spec = CacheSpec(
        engine=engine,
        eviction_policy="noeviction",
        load=traffic("shop"),
        wishes={"mode": Mode.AUTO, "capture": False},
    )
    async with World(tmp_path, spec, minimum_gain=1.0) as world, world.agents() as agents:
        used = world.client("shop").info("memory")["used_memory"]
        world.client("shop").config_set("maxmemory", used - 300_000)
        found = world.knob("maxmemory")

        async def refreshed():
            state = await world.seen()
            return state if state.snapshots["shop"].knobs["maxmemory"] == found else None

        state = await until(refreshed, what="a look at the new limit")
        order = order_for(world, state, [("maxmemory-policy", "allkeys-lru")])
        await agents.send("test", "coordinator", order)
        execution = await world.finished("p-crafted")
        assert execution.state is ExecutionState.KEPT, execution.reason
        assert world.knob("maxmemory-policy") == "allkeys-lru"
        await world.assert_sound()
