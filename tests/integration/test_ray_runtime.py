"""The agents as Ray actors: each of them is killed for real, one after the other under load, and the loop goes on."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from pathlib import Path

import pytest

from cachewarden.errors import OperatingError
from cachewarden.messages import ExecutionState, Mode
from cachewarden.protocol import FleetBeat, FleetState
from cluster.clock import SystemClock
from cluster.wiring import ALL_AGENTS
from tests.integration.world import MIB, CacheSpec, World, order_for, start_time, traffic, until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore"),
]

QUIET = {"mode": Mode.AUTO, "capture": False, "minimum_memory_bytes": 2 * MIB}


@pytest.fixture(scope="module")
def ray_here():
    """A Ray of our own; its Unix sockets have short names, so its folder lies right in the system's."""
    from cluster import ray_runtime

    folder = Path(tempfile.mkdtemp(prefix="r"))
    try:
        ray_runtime.start_ray(temporary=folder)
        yield ray_runtime
    finally:
        ray_runtime.stop_ray()
        shutil.rmtree(folder, ignore_errors=True)


class RayWorld(World):
    """The same world with actors instead of tasks."""

    mailbox = None

    async def state(self):
        try:
            state = await self.mailbox.query("coordinator", "state", SystemClock().now_ms())
        except OperatingError:
            return None
        self._last = state
        return state

    async def later(self, cycles: int = 2, timeout_s: float = 60.0) -> None:
        """Return after so many more cycles."""
        first = (await until(self.state, timeout_s, "the coordinator")).cycle

        async def there():
            state = await self.state()
            # A coordinator that begins its next life counts its cycles from 1 again.
            return state is not None and (state.cycle >= first + cycles or cycles <= state.cycle < first)

        await until(there, timeout_s, f"{cycles} more cycles")


def pid_of(agents, name: str) -> int | None:
    """Return the process of an agent's present life; None between two lives."""
    import ray

    try:
        return ray.get(agents.handles[name].process_id.remote(), timeout=5)
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError):
        return None


async def kill(agents, name: str) -> None:
    """Kill the process of an agent, and return once another one answers in its place."""
    old = await until(lambda: asyncio.to_thread(pid_of, agents, name), 30, f"the process of {name}")
    os.kill(old, signal.SIGKILL)

    async def reborn():
        new = await asyncio.to_thread(pid_of, agents, name)
        return new is not None and new != old

    await until(reborn, 60, f"the next life of {name}")


async def test_many_may_wait_for_news_and_keep_nobody_else_waiting(tmp_path, ray_here):
    spec = CacheSpec(maxmemory_bytes=8 * MIB, wishes=QUIET)
    async with RayWorld(tmp_path, spec, cycle_interval_ms=3_600_000) as world:
        agents = ray_here.RayAgents(world.plan, namespace="watch")
        world.mailbox = ray_here.RayMailbox("watch")
        waiting = []
        try:
            await asyncio.to_thread(agents.start)
            seen = (0, 0)
            # What follows needs a coordinator that has no news for seconds.
            while not isinstance(news := await world.mailbox.watch("coordinator", seen, 3.0), FleetBeat):
                if isinstance(state := await world.state(), FleetState):
                    seen = (state.life_ms, state.version)
            assert (news.life_ms, news.version) == seen
            waiting = [asyncio.create_task(world.mailbox.watch("coordinator", seen, 60.0)) for _ in range(3)]
            done, _ = await asyncio.wait(waiting, timeout=1)
            assert not done
            # One after the other would be a minute each, and this question gives up long before.
            assert isinstance(await world.mailbox.watch("coordinator", (0, 0), 0.0), FleetState)
        finally:
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await asyncio.to_thread(agents.stop)


async def test_every_agent_may_be_killed_under_load_and_the_loop_goes_on(tmp_path, ray_here):
    spec = CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop", rate_per_s=250.0), wishes=QUIET)
    async with RayWorld(tmp_path, spec, minimum_gain=1.0, cycle_interval_ms=1_000) as world:
        agents = ray_here.RayAgents(world.plan, namespace="test")
        world.mailbox = ray_here.RayMailbox("test")
        try:
            await asyncio.to_thread(agents.start)
            processes = await asyncio.to_thread(agents.process_ids)
            assert len(set(processes.values())) == len(ALL_AGENTS)
            # Given a change that is being observed, and one that is in the middle of its steps when the actuator dies
            state = await world.seen(lookups=400, timeout_s=60)
            await world.mailbox.send("test", "coordinator", order_for(world, state, [("maxmemory-samples", "10")]))
            await world.reached(ExecutionState.OBSERVING)
            for name in ("collector", "planner", "validator", "consensus"):
                await kill(agents, name)
            assert (await world.finished("p-crafted", 60)).state is ExecutionState.KEPT
            await world.later()
            order = order_for(
                world, await world.seen(lookups=400), [("maxmemory", str(3 * MIB))], proposal_id="p-shrink"
            )
            await world.mailbox.send("test", "coordinator", order)

            async def shrinking():
                return [r for r in await world.records("step_applied") if r.subject_id == "p-shrink"]

            await until(shrinking, what="the first step of the second change")
            await kill(agents, "actuator")
            for name in ("auditor", "coordinator"):
                await kill(agents, name)
            ended = await world.recorded("change_rolled_back", 60)
            assert ended.subject_id == "p-shrink"
            assert world.knob("maxmemory") == str(8 * MIB)
            await world.later()
            await world.assert_sound()
            assert (await world.state()).snapshots["shop"].hit_ratio is not None
            last = await asyncio.to_thread(agents.process_ids)
            assert all(last[name] != processes[name] for name in ALL_AGENTS)
        finally:
            await asyncio.to_thread(agents.stop)
        await until(lambda: not any(start_time(pid) for pid in last.values()), 30, "the end of all actors")
