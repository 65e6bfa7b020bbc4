"""Two deployments on one fleet and one journal, one of them in a process of its own: one leads, the other takes over.

The virtual-time companion with many more interleavings is `tests/scenarios/test_two_optimizers.py`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cachewarden.protocol import Execute
from coordination.redis_leases import RedisLeaseStore
from tests.integration.world import MIB, ROOT, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration

QUIET = {"mode": "auto", "capture": False, "minimum_memory_bytes": 2 * MIB}
SHRINK = [("maxmemory", str(3 * MIB))]


class OtherOptimizer:
    """The second deployment; `tell` gives its actuator an order."""

    def __init__(self, world: World, folder: Path) -> None:
        self._order = folder / "order.pickle"
        settings = world.plan.settings.model_copy(update={"state_dir": folder / "state"})
        plan = folder / "plan.pickle"
        plan.write_bytes(pickle.dumps(replace(world.plan, settings=settings, holder="other")))
        command = [sys.executable, "-m", "tests.integration.optimizer_process", str(plan), str(self._order)]
        self.process = subprocess.Popen(command, cwd=ROOT)

    def tell(self, order: Execute) -> None:
        part = self._order.with_suffix(".part")
        part.write_bytes(pickle.dumps(order))
        part.replace(self._order)

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def other_optimizer(world: World, folder: Path) -> Iterator[OtherOptimizer]:
    folder.mkdir()
    other = OtherOptimizer(world, folder)
    try:
        yield other
    finally:
        other.end()


def fence(world: World) -> int:
    return int(world.client("shop").get("cachewarden:fence"))


async def leader(world: World) -> str:
    """Return the deployment that holds the lease, empty where nobody does."""
    store = RedisLeaseStore(world.plan.journal_url)
    try:
        lease = await store.holder("shop")
    finally:
        await store.close()
    return "" if lease is None else lease.holder.partition(":")[0]


@pytest.mark.parametrize("how", ["stalled", "killed"])
async def test_a_leader_that_is_lost_in_the_middle_is_followed_and_fenced_off_by_the_cache_itself(tmp_path, how):
    spec = CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop"), wishes=QUIET)
    async with World(tmp_path, spec, minimum_gain=1.0) as world, world.agents():
        with other_optimizer(world, tmp_path / "other") as other:
            other.tell(order_for(world, await world.seen(lookups=400), SHRINK))
            await world.recorded("step_applied", 60)
            assert await leader(world) == "other"
            led_under = fence(world)
            other.signal(signal.SIGSTOP if how == "stalled" else signal.SIGKILL)
            # A lease, a look into the journal, the takeover, and the way back in steps.
            rolled_back = await world.recorded("change_rolled_back", 60)
            assert rolled_back.subject_id == "p-crafted"
            assert world.knob("maxmemory") == str(8 * MIB)
            assert fence(world) > led_under
            taken_over = fence(world)
            if how == "stalled":
                sets = world.config_sets()
                other.signal(signal.SIGCONT)
                # It lives again once it answers the next order; of the change that was taken over it says nothing more.
                state = await world.seen()
                other.tell(order_for(world, state, [("maxmemory-samples", "3")], proposal_id="p-next"))
                abandoned = await world.recorded("change_abandoned", 60)
                assert abandoned.subject_id == "p-next"
                assert world.config_sets() == sets
                endings = ("change_abandoned", "change_kept", "change_rolled_back")
                assert [r.subject_id for r in await world.records(*endings)].count("p-crafted") == 1
            assert world.knob("maxmemory") == str(8 * MIB)
            assert fence(world) == taken_over
            await until(lambda: leader(world), 10, "a leader")
            assert await leader(world) == "world"
            await world.assert_sound()


async def test_while_the_leader_lives_the_other_stands_by_and_knows_what_it_does(tmp_path):
    spec = CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop"), wishes=QUIET)
    async with World(tmp_path, spec, minimum_gain=1.0) as world, world.agents() as agents:
        with other_optimizer(world, tmp_path / "other") as other:
            state = await world.seen(lookups=400)
            other.tell(order_for(world, state, [("maxmemory-samples", "10")]))
            await world.recorded("step_applied", 60)
            refused = order_for(world, state, [("maxmemory-samples", "3")], proposal_id="p-ours")
            await agents.send("test", "actuator", refused)
            abandoned = await world.recorded("change_abandoned", 30)
            assert abandoned.subject_id == "p-ours"
            assert "held by `other:" in abandoned.payload["reason"]
            # Told by the journal, since it was not our change.
            assert (await world.finished("p-crafted", 60)).state.value == "kept"
            assert world.knob("maxmemory-samples") == "10"
            assert await leader(world) == "other"
            history = (await world.state()).history["shop"]
            assert history.led_by is not None
            assert history.led_by.startswith("other:")
            assert history.changes_last_hour == 1
            await world.assert_sound()
