"""How a change at the coordinator reaches a decision replica: by asking every half second, by a long poll, by pub/sub.

Run from the repository root: `python -m benchmarks.state_propagation [--changes N]`. One Ray actor tells versions of a
fleet state, `--watchers` watch it from this process, and each way is timed from the change to the moment at which the
new state can be decided on. Printed: P50 and P99 of the delay, processor time of actor and watchers while nothing
changes, and what happens to a change that falls into a second without connection.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis.asyncio
from rich.console import Console
from rich.table import Table

from benchmarks.decision_latency import quantile
from cachewarden.machine import Received
from cachewarden.protocol import FleetBeat, FleetDelta, FleetState
from cachewarden.shell import AgentShell, Ports
from cluster.clock import SystemClock
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions
from coordination.state_feed import StateFeed, apply, with_beat

QUIET_S = 10.0


def fleet_state(services: int) -> FleetState:
    """Return a state of the size that a fleet of so many services has."""
    from tests.unit.serve import serve_world as world

    snapshots = {f"service-{n}": world.snapshot(f"service-{n}") for n in range(services)}
    plans = [world.proposal(name) for name in snapshots]
    standing = {
        plan.service: dataclasses.replace(world.standing(world.proposal())["constitutional_ai"], service=plan.service)
        for plan in plans
    }
    return world.state(life_ms=1, version=1, snapshots=snapshots, standing=standing)


class Teller:
    """An agent that does nothing but change, as often as it is told to; `phase` holds when it did."""

    name = "coordinator"

    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._feed = StateFeed()

    def step(self, event: Any, now_ms: int) -> tuple[Any, ...]:
        if isinstance(event, Received):
            one = next(iter(self._state.snapshots))
            fresh = dataclasses.replace(self._state.snapshots[one], taken_at_ms=now_ms)
            self._state = dataclasses.replace(
                self._state,
                version=self._state.version + 1,
                phase=str(time.monotonic_ns()),
                snapshots={**self._state.snapshots, one: fresh},
            )
        return ()

    def state(self, _now_ms: int) -> FleetState:
        return self._state

    def has_news(self, seen: tuple[int, int]) -> bool:
        return seen != (self._state.life_ms, self._state.version)

    def news(self, seen: tuple[int, int], _now_ms: int) -> Any:
        return self._feed.news(self._state, seen)

    def cpu_s(self) -> float:
        return time.process_time()


class Watchers:
    """Delays of everything that was seen, over all watchers."""

    def __init__(self) -> None:
        self.delays_ms: list[float] = []
        self.seen: list[int] = []

    def note(self, state: FleetState) -> None:
        self.seen.append(state.version)
        self.delays_ms.append((time.monotonic_ns() - int(state.phase)) / 1e6)

    async def long_poll(self, mailbox: Any) -> None:
        known: FleetState | None = None
        while True:
            seen = (0, 0) if known is None else (known.life_ms, known.version)
            news = await mailbox.watch("coordinator", seen, 1.0)
            if isinstance(news, FleetBeat):
                known = with_beat(known, news)
                continue
            known = apply(known, news) if isinstance(news, FleetDelta) else news
            if known is not None and known.phase.isdecimal():
                self.note(known)

    async def poll(self, mailbox: Any) -> None:
        version = 0
        while True:
            state = await mailbox.query("coordinator", "state", 0)
            if state.version != version and state.phase.isdecimal():
                version = state.version
                self.note(state)
            await asyncio.sleep(0.5)

    async def subscribe(self, url: str) -> None:
        async with redis.asyncio.Redis.from_url(url) as client, client.pubsub() as channel:
            await channel.subscribe("state")
            async for message in channel.listen():
                if message["type"] == "message":
                    # What we wrote ourselves a moment ago.
                    self.note(pickle.loads(message["data"]))


async def measure(changes: int, watchers: int, services: int, console: Console) -> None:
    with ServerHome() as home, tempfile.TemporaryDirectory(prefix="s") as folder:
        server = EmbeddedServer(ServerOptions(name="blackboard", append_only=True), home)
        server.start()
        from agents import actors
        from cluster import ray_runtime

        await asyncio.to_thread(ray_runtime.start_ray, temporary=Path(folder) / "r")
        try:
            mailbox = ray_runtime.RayMailbox()
            build = _Build(fleet_state(services))
            keep = actors.create("coordinator", ray_runtime.NAMESPACE, build)
            await mailbox.query("coordinator", "state", 0)
            table = Table(title=f"{watchers} watchers, {services} services, {changes} changes")
            for column in ("way", "seen", "P50 ms", "P99 ms", "idle: actor", "idle: watchers"):
                table.add_column(column, justify="left" if column == "way" else "right")
            client = redis.asyncio.Redis.from_url(server.url)
            local = fleet_state(services)
            for way in ("poll", "long poll", "pub/sub"):
                many = Watchers()
                work = {
                    "poll": lambda many=many: many.poll(mailbox),
                    "long poll": lambda many=many: many.long_poll(mailbox),
                    "pub/sub": lambda many=many: many.subscribe(server.url),
                }[way]
                tasks = [asyncio.create_task(work()) for _ in range(watchers)]
                await asyncio.sleep(2.0)
                before = (await mailbox.query("coordinator", "cpu_s"), time.process_time())
                await asyncio.sleep(QUIET_S)
                after = (await mailbox.query("coordinator", "cpu_s"), time.process_time())
                for number in range(changes):
                    if way == "pub/sub":
                        local = dataclasses.replace(local, version=number + 2, phase=str(time.monotonic_ns()))
                        await client.publish("state", pickle.dumps(local))
                    else:
                        await mailbox.send("bench", "coordinator", "change")
                    await asyncio.sleep(0.05)
                await asyncio.sleep(1.0)
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                idle = [100 * (b - a) / QUIET_S for a, b in zip(before, after, strict=True)]
                table.add_row(
                    way,
                    f"{len(many.seen)}/{changes * watchers}",
                    f"{quantile(many.delays_ms, 0.5):.2f}",
                    f"{quantile(many.delays_ms, 0.99):.2f}",
                    f"{idle[0]:.2f} %",
                    f"{idle[1]:.2f} %",
                )
            await client.aclose()
            console.print(table)
            del keep
        finally:
            ray_runtime.stop_ray()


class _Build:
    def __init__(self, state: FleetState) -> None:
        self._state = state

    def __call__(self) -> AgentShell:
        return AgentShell(Teller(self._state), Ports(clock=SystemClock(), mailbox=None), beat_to=None)  # type: ignore[arg-type]


def main() -> int:
    parser = argparse.ArgumentParser(description="time how a change reaches the decision replicas")
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--watchers", type=int, default=2)
    parser.add_argument("--services", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    asyncio.run(measure(arguments.changes, arguments.watchers, arguments.services, Console(width=120)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
