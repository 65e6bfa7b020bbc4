"""Chaos on the real thing: several Ray nodes, real Valkey, load; agents, nodes, caches and the journal's server are
killed at random; then the checkers of the simulation judge the journal that was really written.

`CHAOS_SECONDS` (30) says for how long, `CHAOS_SEED` (1) in which order. The head node dies too, and with it every
actor: in the middle where it lasts 240 s or longer, else at the end.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import pytest

from cachewarden.codec import to_jsonable
from cachewarden.errors import OperatingError
from cachewarden.messages import Mode
from cachewarden.ports import RecordDraft
from cachewarden.protocol import Execute
from cluster.clock import SystemClock
from cluster.ray_runtime import QUIET
from cluster.wiring import ALL_AGENTS, make_journal
from simulation.judging import judge_journal
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

SECONDS = float(os.environ.get("CHAOS_SECONDS", "30"))
SEED = int(os.environ.get("CHAOS_SEED", "1"))
HEAD_DIES_FROM_S = 240.0
NAMESPACE = "chaos"
# Several nodes and a new process after each kill keep a small machine busy, so whoever is asked may take its time.
# The planner needs 2,000 captured accesses of a cache: 5 s of the shop's and 15 s of the pages'. With a capture every two
# minutes, as by default, and a collector that is killed and forgets them, it would have nothing to go by for minutes.
SETTINGS = {
    "minimum_gain": 0.01,
    "redis_timeout": 5.0,
    "capture_ms": 5_000,
    "capture_pause_ms": 10_000,
    "lease_ttl_ms": 12_000,
}
# Whoever joins a Ray at 127.0.0.1 is led to the machine's outer address, where this one does not listen.
_NODE = {"node_ip_address": "127.0.0.2", "object_store_memory": 80 * MIB, "num_cpus": 1}

pytestmark = [
    pytest.mark.ray,
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600 + 2 * SECONDS),
    pytest.mark.filterwarnings("ignore"),
]


class Nodes:
    """Ray nodes of our own on this machine, and the actors on them.

    Ray sets signal handlers when a node is begun, so nodes begin and end in the main thread; the load waits meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._times = 0
        self.cluster = None
        self.workers: list[object] = []
        self.agents = None

    def start(self, plan) -> None:
        import ray
        from ray._common.utils import get_default_ray_temp_dir
        from ray.cluster_utils import Cluster

        from cluster.ingress import ALWAYS
        from cluster.ray_runtime import RayAgents
        from cluster.runtime_env import runtime_env

        os.environ.update({k: v for k, v in {**ALWAYS, **QUIET}.items() if k not in os.environ})
        self._times += 1
        # On a machine where Ray has never run: `Cluster` writes its address into Ray's usual folder, wherever its own is.
        Path(get_default_ray_temp_dir()).mkdir(parents=True, exist_ok=True)
        head = {**_NODE, "include_dashboard": False, "temp_dir": str(self._folder / str(self._times))}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.cluster.add_node(**_NODE) for _ in range(2)]
        ray.init(
            address=self.cluster.address,
            _node_ip_address=_NODE["node_ip_address"],
            namespace=NAMESPACE,
            runtime_env=runtime_env(ship=False),
            logging_level="ERROR",
            log_to_driver=False,
        )
        self.agents = RayAgents(plan, namespace=NAMESPACE)
        self.agents.start()

    def lose_worker(self, which: int) -> None:
        """End one node without a word, and let another one come in its place."""
        self.cluster.remove_node(self.workers.pop(which), allow_graceful=False)
        self.workers.append(self.cluster.add_node(**_NODE))

    def kill_agent(self, name: str) -> None:
        import ray

        try:
            os.kill(ray.get(self.agents.handles[name].process_id.remote(), timeout=5), signal.SIGKILL)
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError, ProcessLookupError):
            """Between two lives there is nothing to kill."""

    def lose_head(self) -> None:
        """End the head node without a word, while the actors still run; everything else of this Ray goes down with
        it."""
        import ray

        self.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
        ray.shutdown()
        self.cluster.head_node = None
        for worker in self.workers:
            self.cluster.remove_node(worker, allow_graceful=False)
        self.cluster = self.agents = None

    def stop(self) -> None:
        import ray

        if self.agents is not None:
            self.agents.stop()
            self.agents = None
        ray.shutdown()
        if self.cluster is not None:
            self.cluster.shutdown()
            self.cluster = None


class ChaosWorld(World):
    """The same world with actors on several nodes."""

    mailbox = None

    async def state(self):
        try:
            self._last = await self.mailbox.query("coordinator", "state", SystemClock().now_ms())
        except OperatingError:
            return None
        return self._last

    def crash(self, server) -> None:
        """Kill a server where it stands and start it again."""
        server.kill()
        server.start()


async def keep_ordering(world: ChaosWorld) -> None:
    """Order one change after the other, as the API does: decided and recorded first. What the planner finds itself comes
    on top; on a small machine that may be little."""
    journal, number = make_journal(world.plan), 0
    wishes = [("pages", "maxmemory", str(8 * MIB - n * MIB // 4)) for n in range(1, 12)]
    wishes += [(name, "maxmemory-samples", str(n)) for n in (10, 9, 8, 7, 6) for name in ("shop", "pages")]
    random.Random(SEED).shuffle(wishes)
    try:
        for service, knob, value in wishes:
            while True:
                await asyncio.sleep(0.5)
                state = await world.state()
                busy = state is None or any(
                    not e.state.final for e in state.executions if e.proposal.service == service
                )
                if busy or service not in state.snapshots or state.snapshots[service].hit_ratio is None:
                    continue
                number += 1
                try:
                    order = order_for(world, state, [(knob, value)], service=service, proposal_id=f"p-order-{number}")
                    await journal.append(_decision(order))
                    await world.mailbox.send("api", "coordinator", order)
                    break
                except (AssertionError, KeyError):
                    break  # the constitution denies it, or the knob could not be read
                except OperatingError:
                    continue
    finally:
        await journal.close()


def _decision(order: Execute) -> list[RecordDraft]:
    told = {"proposed": order.proposal, "judged": order.verdict, "resolved": order.resolution}
    common = {"agent": "api", "service": order.proposal.service, "subject_id": order.proposal.proposal_id}
    at_ms = SystemClock().now_ms()
    return [RecordDraft(at_ms=at_ms, kind=kind, payload=to_jsonable(what), **common) for kind, what in told.items()]


async def strike(world: ChaosWorld, nodes: Nodes, dice: random.Random) -> str:
    """Let one thing go wrong, and say what."""
    what = dice.choice(("agent", "agent", "agent", "node", "cache", "journal"))
    if what == "agent":
        what = dice.choice(ALL_AGENTS)
        await asyncio.to_thread(nodes.kill_agent, what)
    elif what == "node":
        nodes.lose_worker(dice.randrange(len(nodes.workers)))
    elif what == "cache":
        what = dice.choice(sorted(world.caches))
        await asyncio.to_thread(world.crash, world.caches[what])
    else:
        await asyncio.to_thread(world.crash, world.blackboard)
    return what


async def test_whatever_dies_the_journal_keeps_every_promise_and_the_loop_goes_on(tmp_path):
    folder = Path(tempfile.mkdtemp(prefix="r"))
    wishes = {"mode": Mode.AUTO, "minimum_memory_bytes": 2 * MIB}
    specs = [
        CacheSpec(
            name="shop", maxmemory_bytes=4 * MIB, eviction_policy="noeviction", load=traffic("shop"), wishes=wishes
        ),
        CacheSpec(name="pages", maxmemory_bytes=8 * MIB, load=traffic("pages", rate_per_s=150.0), wishes=wishes),
    ]
    dice, nodes, struck = random.Random(SEED), Nodes(folder), []
    from cluster.ray_runtime import RayMailbox

    try:
        async with ChaosWorld(tmp_path, *specs, **SETTINGS) as world:
            world.mailbox = RayMailbox(NAMESPACE)
            try:
                nodes.start(world.plan)
                await until(world.state, 90, "the coordinator")
                ordering = asyncio.create_task(keep_ordering(world))
                await until(lambda: world.records("change_intended"), 180, "the first change")
                ends = time.monotonic() + SECONDS
                head_dies = time.monotonic() + (HEAD_DIES_FROM_S / 2 if SECONDS >= HEAD_DIES_FROM_S else SECONDS)
                while time.monotonic() < ends or head_dies is not None:
                    struck.append(await strike(world, nodes, dice))
                    await asyncio.sleep(dice.uniform(0.5, 6.0))
                    if head_dies is not None and time.monotonic() > head_dies:
                        head_dies = None
                        struck.append("head")
                        nodes.lose_head()
                        nodes.start(world.plan)
                        # Handles of actors of a Ray that is gone are good for nothing in another one.
                        world.mailbox = RayMailbox(NAMESPACE)
                sys.stderr.write(f"struck, seed {SEED}: {' '.join(struck)}\n")
                ordering.cancel()
                await asyncio.gather(ordering, return_exceptions=True)
                # Then nothing fails any more: cycles run, and everything that was begun comes to its end.
                first = await until(world.state, 90, "the coordinator after everything")

                async def at_rest():
                    state = await world.state()
                    moved = state is not None and (state.cycle >= first.cycle + 3 or state.life_ms != first.life_ms)
                    begun = {r.subject_id: r.seq for r in await world.records("change_intended")}
                    kinds = ("change_kept", "change_rolled_back", "change_abandoned", "rollback_failed")
                    ended = {r.subject_id: r.seq for r in await world.records(*kinds)}
                    return moved and all(ended.get(key, 0) > seq for key, seq in begun.items())

                await until(at_rest, 180, "rest")
                nodes.stop()
                records = await world.records()
                broken = judge_journal(records, world.fleet, world.settings)
                assert not broken, [f"{v.checker}: {v.words}" for v in broken]
                await world.assert_sound()
                sys.stderr.write(
                    f"{len(records)} records, {sum(r.kind == 'change_intended' for r in records)} changes\n"
                )
            finally:
                nodes.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
