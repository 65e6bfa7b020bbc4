"""A burst of the traffic beside a change, on real servers: by captures it is told from what the change did."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import pytest

from agents.unchanged import counterfactual_of
from cachewarden.baseline import baseline_of
from cachewarden.counterfactual import knobs_before
from cachewarden.messages import ExecutionState
from cachewarden.observation import Snapshot
from cachewarden.protocol import Execute
from tests.integration.one_actuator import Traffic
from tests.integration.world import MIB, CacheSpec, World, order_for, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]

CHANGE = [("maxmemory-samples", "6")]


def application(world: World) -> Traffic:
    server = world.caches["shop"]
    return Traffic(server.port, keys=9_000, per_s=1_000, password=urlsplit(server.url).password)


async def order_with_replay(world: World, *, promised: float | None = None) -> Execute:
    """Return an order as the agents would give it, once captures tell of the time before it."""

    async def ready() -> Execute | None:
        assert world.runtime is not None
        state = await world.state()
        snapshot: Snapshot | None = await world.runtime.query("collector", "snapshot", "shop")
        if state is None or snapshot is None or snapshot.hit_ratio is None or "shop" not in state.snapshots:
            return None
        order = order_for(world, state, CHANGE, promised=promised)
        baseline = baseline_of(state.snapshots["shop"])
        told = counterfactual_of(snapshot, order.proposal.proposal_id, knobs_before(order.proposal), world.settings)
        if told is None or baseline.from_ms is None or told.from_ms > baseline.from_ms:
            return None
        return replace(order, baseline=baseline, counterfactual=told)

    order: Execute = await until(ready, 90, "a replay that tells of the time before the change")
    return order


async def begun_and_ended(world: World, order: Execute, traffic: Traffic | None):
    await world.runtime.send("test", "actuator", order)
    await until(lambda: world.knob("maxmemory-samples") == "6", 20, "the change")
    if traffic is not None:
        traffic.asks_anew = True
    return await world.finished(order.proposal.proposal_id, 90)


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_a_burst_that_comes_with_a_change_does_not_take_it_back(tmp_path, engine):
    spec = CacheSpec(engine=engine, maxmemory_bytes=4 * MIB)
    # Settings under which nobody else proposes anything, and requests of two minutes are remembered.
    async with World(tmp_path, spec, minimum_gain=0.5, capture_ms=4_000, capture_server_share=0.5) as world:
        with application(world) as traffic:
            async with world.agents():
                order = await order_with_replay(world)
                done = await begun_and_ended(world, order, traffic)
        assert done.state is ExecutionState.KEPT, done.reason
        seen = [r.payload for r in await world.records("observed")]
        assert seen[-1]["control_drift_by"] == "the same requests without the change"
        # Nearly every read missed, and the replay of them says so.
        assert seen[-1]["control_drift"] < -0.3
        assert abs(seen[-1]["effect"]["gain"]["value"]) < 0.1
        assert done.control_drift == seen[-1]["control_drift"]
        await world.assert_sound()


async def test_the_same_burst_takes_a_change_back_where_nothing_is_captured(tmp_path):
    spec = CacheSpec(maxmemory_bytes=4 * MIB, wishes={"capture": False})
    async with World(tmp_path, spec, minimum_gain=0.5) as world:
        with application(world) as traffic:
            async with world.agents():
                state = await world.seen(lookups=2_000)
                order = replace(order_for(world, state, CHANGE), baseline=baseline_of(state.snapshots["shop"]))
                done = await begun_and_ended(world, order, traffic)
        assert done.state is ExecutionState.ROLLED_BACK
        assert "the hit ratio fell" in done.reason
        assert world.knob("maxmemory-samples") == "5"


async def test_a_change_that_did_not_give_what_it_promised_is_taken_back_with_what_the_traffic_gave(tmp_path):
    spec = CacheSpec(maxmemory_bytes=4 * MIB)
    async with World(tmp_path, spec, minimum_gain=0.5, capture_ms=4_000, capture_server_share=0.5) as world:
        with application(world):
            async with world.agents():
                order = await order_with_replay(world, promised=0.99)
                low = order.proposal.prediction.hit_ratio_after.low
                assert order.hit_ratio_before is not None
                assert low > order.hit_ratio_before + 0.03
                done = await begun_and_ended(world, order, None)
        assert done.state is ExecutionState.ROLLED_BACK
        assert "the same requests without the change" in done.reason
        await world.assert_sound()
