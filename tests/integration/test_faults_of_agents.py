"""What the death of an agent does: the next life finishes or takes back what was under way, and nothing twice.

All agents live in one loop here and are ended where they stand; `test_ray_runtime.py` kills real processes.
"""

from __future__ import annotations

import pytest

import cluster.wiring
from cachewarden.messages import ExecutionState, Mode
from cluster.clock import SystemClock
from cluster.wiring import ALL_AGENTS
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration

QUIET = {"mode": Mode.AUTO, "capture": False, "minimum_memory_bytes": 2 * MIB}
SHRINK = [("maxmemory", str(3 * MIB))]


def quiet_spec() -> CacheSpec:
    return CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop"), wishes=QUIET)


def fence(world: World) -> int:
    return int(world.client("shop").get("cachewarden:fence"))


async def test_an_actuator_that_dies_between_two_steps_takes_everything_back_in_its_next_life(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await agents.send("test", "coordinator", order_for(world, await world.seen(lookups=400), SHRINK))
        await world.recorded("step_applied")
        epoch = fence(world)
        agents.kill("actuator")
        assert world.knob("maxmemory") != str(8 * MIB)
        execution = await world.finished("p-crafted", 60)
        assert execution.state is ExecutionState.ROLLED_BACK, execution.reason
        assert world.knob("maxmemory") == str(8 * MIB)
        # A write of the first life that is still on its way must find a higher fence.
        assert fence(world) > epoch
        await world.assert_sound()


async def test_an_actuator_that_dies_while_it_observes_goes_on_observing_under_a_new_epoch(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        state = await world.seen(lookups=400)
        await agents.send("test", "coordinator", order_for(world, state, [("maxmemory-samples", "10")]))
        await world.reached(ExecutionState.OBSERVING)
        epoch = fence(world)
        agents.kill("actuator")
        execution = await world.finished("p-crafted", 60)
        assert execution.state is ExecutionState.KEPT, execution.reason
        assert world.knob("maxmemory-samples") == "10"
        assert fence(world) > epoch
        assert len(await world.records("change_intended")) == 1
        await world.assert_sound()


async def test_everybody_else_may_die_during_a_change_and_it_still_comes_to_its_end(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        state = await world.seen(lookups=400)
        await agents.send("test", "coordinator", order_for(world, state, [("maxmemory-samples", "10")]))
        await world.reached(ExecutionState.OBSERVING)
        for name in ALL_AGENTS:
            if name != "actuator":
                agents.kill(name)
        execution = await world.finished("p-crafted", 60)
        assert execution.state is ExecutionState.KEPT, execution.reason
        reached = (await world.state()).cycle

        async def going_on():
            state = await world.state()
            return state is not None and state.cycle >= reached + 2 and "shop" in state.snapshots

        await until(going_on, 40, "cycles after the deaths")
        await world.assert_sound()


async def test_what_a_whole_deployment_left_behind_is_resolved_before_anything_else(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world:
        async with world.agents() as agents:
            await agents.send("test", "coordinator", order_for(world, await world.seen(lookups=400), SHRINK))
            await world.recorded("step_applied")
        assert world.knob("maxmemory") != str(8 * MIB)
        async with world.agents():
            await world.recorded("change_rolled_back", 40)
            assert world.knob("maxmemory") == str(8 * MIB)
            await world.assert_sound()


async def test_two_deployments_of_the_same_fleet_never_write_to_one_cache_at_the_same_time(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as first:
        state = await world.seen(lookups=400)
        await first.send("test", "actuator", order_for(world, state, SHRINK))
        await world.recorded("step_applied")
        epoch = fence(world)
        async with world.agents() as second:
            order = order_for(world, state, [("maxmemory-samples", "10")], proposal_id="p-second")
            await second.send("test", "actuator", order)
            refused = await world.recorded("change_abandoned")
            assert refused.subject_id == "p-second"
            assert world.knob("maxmemory-samples") == "5"
            # The second knows of the change from the journal, and waits for the first one's lease to run out.
            assert fence(world) == epoch


class JumpingClock(SystemClock):
    """The system's clock, plus what a test added to it."""

    offset_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + JumpingClock.offset_ms


@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
async def test_a_clock_that_jumps_by_an_hour_in_the_middle_of_a_change_leaves_it_whole(tmp_path, monkeypatch, jump_ms):
    monkeypatch.setattr(JumpingClock, "offset_ms", 0)
    monkeypatch.setattr(cluster.wiring, "SystemClock", JumpingClock)
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await agents.send("test", "coordinator", order_for(world, await world.seen(lookups=400), SHRINK))
        await world.recorded("step_applied")
        JumpingClock.offset_ms = jump_ms
        execution = await world.finished("p-crafted", 90)
        assert execution.state in (ExecutionState.ROLLED_BACK, ExecutionState.KEPT), execution.reason
        wanted = 3 * MIB if execution.state is ExecutionState.KEPT else 8 * MIB
        assert world.knob("maxmemory") == str(wanted)
        cycle = (await world.state()).cycle

        async def going_on():
            state = await world.state()
            return state is not None and state.cycle >= cycle + 2

        await until(going_on, what="cycles after the jump")
        await world.assert_sound()
