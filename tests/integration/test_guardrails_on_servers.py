"""Guardrails, freeze windows, cool-down and change budget on real servers: what they stop, and that they end."""

from __future__ import annotations

import contextlib
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from agents.obstacles import clock_words
from cachewarden.baseline import Baseline
from cachewarden.codec import digest
from cachewarden.estimate import Estimate
from cachewarden.fleet import Guardrails, parse_freeze
from cachewarden.messages import (
    ActionClass,
    Evidence,
    ExecutionState,
    KnobChange,
    Prediction,
    Proposal,
    ResolutionOutcome,
)
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetPlanned, PlanFleet
from cluster.clock import SystemClock
from cluster.local import LocalRuntime
from tests.contract.real_servers import ENGINES, RealServer
from tests.integration.one_actuator import Bench, Traffic, change_of, until
from tests.integration.world import CacheSpec, World
from tests.integration.world import until as so_that

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(params=ENGINES)
def server(request, tmp_path):
    server = RealServer(request.param, tmp_path)
    server.start("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")
    yield server
    server.kill()


class Slow:
    """An application that reads a whole hash of 60,000 fields again and again, some milliseconds of the server each."""

    def __init__(self, server: RealServer) -> None:
        for start in range(0, 60_000, 2_000):
            server.admin.hset("user:big", mapping={f"f{n}": "v" * 8 for n in range(start, start + 2_000)})
        self._port, self._stop = server.port, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        client = redis.Redis(port=self._port, protocol=2, socket_timeout=30)
        while not self._stop.wait(0.01):
            with contextlib.suppress(redis.RedisError):
                client.hgetall("user:big")
        client.close()

    def __enter__(self) -> Slow:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


# --- Guardrails of a change -----------------------------------------------------------------------------------------


async def observing(bench: Bench) -> None:
    await until(lambda: bench.reports and bench.reports[-1].state is ExecutionState.OBSERVING, 110, "the observation")


async def test_a_p99_above_its_guardrail_takes_the_change_back_within_a_window(server, tmp_path):
    slow = Slow(server)
    with Traffic(server.port, per_s=300):
        async with Bench(server, tmp_path) as bench:
            wanted = bench.begin(change_of(server, "maxmemory-samples", 8), playbook="tune", latency_us_p99_before=50.0)
            await observing(bench)
            assert bench.knobs(wanted) == {"maxmemory-samples": "8"}
            with slow:
                done = await bench.ended()
            assert bench.knobs(wanted) == {"maxmemory-samples": "5"}
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert "P99 rose from 50" in done.reason
    assert len([r for r in bench.journal.records if r.kind == "observed"]) <= 1


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"cpu_share": 0.000_1}, "cores instead of"), ({"origin_load_per_s": 50.0}, "misses per second reach the origin")],
    ids=["cpu", "origin"],
)
async def test_the_owners_own_limits_take_a_change_back(server, tmp_path, limits, words):
    with Traffic(server.port, per_s=600) as traffic:
        async with Bench(server, tmp_path, guardrails=Guardrails(hit_ratio_drop=1.0, **limits)) as bench:
            wanted = bench.begin(
                change_of(server, "maxmemory-samples", 8),
                playbook="tune",
                before=0.5,
                low=0.01,
                baseline=Baseline(cpu_share=0.000_01),
            )
            await observing(bench)
            traffic.asks_anew = True
            done = await bench.ended()
            assert bench.knobs(wanted) == {"maxmemory-samples": "5"}
    assert done.state is ExecutionState.ROLLED_BACK, done.reason
    assert words in done.reason


async def test_in_a_freeze_window_the_actuator_itself_writes_nothing(server, tmp_path):
    day = datetime.now(UTC)
    frozen = f"{day - timedelta(hours=1):%Y-%m-%d %H:%M} - {day + timedelta(hours=1):%Y-%m-%d %H:%M}"
    async with Bench(server, tmp_path, freeze=(parse_freeze(frozen),)) as bench:
        bench.begin(change_of(server, "maxmemory-samples", 8), playbook="tune")
        done = await bench.ended()
    assert done.state is ExecutionState.ABANDONED
    assert frozen in done.reason
    stats = server.admin.info("commandstats")
    assert not {"cmdstat_config|set", "cmdstat_eval"} & set(stats)
    assert bench.journal.records[-1].kind == "change_abandoned"


# --- Cool-down, budget and freeze, from the plan to the server ------------------------------------------------------


class Restless(LocalRuntime):
    """All agents, but a planner that wants to change `maxmemory-samples` in each cycle, to another value each time."""

    async def send(self, sender: str, to: str, message: Any) -> None:
        if to == "planner" and isinstance(message, PlanFleet):
            wanted = tuple(_restless(s) for s in message.snapshots if "maxmemory-samples" in s.knobs)
            await super().send("planner", sender, FleetPlanned(cycle=message.cycle, proposals=wanted, idle_reasons={}))
        else:
            await super().send(sender, to, message)


def _restless(snapshot: Snapshot) -> Proposal:
    now_ms, before = SystemClock().now_ms(), snapshot.knobs["maxmemory-samples"]
    change = KnobChange(knob="maxmemory-samples", before=before, after=str(3 + (int(before) - 2) % 7))
    ratio = snapshot.hit_ratio or 0.5
    level = Estimate(ratio, 0.0, 1.0)
    return Proposal(
        proposal_id=f"p-{digest([snapshot.service, now_ms])[:16]}",
        service=snapshot.service,
        author="planner",
        created_at_ms=now_ms,
        expires_at_ms=now_ms + 60_000,
        kinds=("memory",),
        knob_changes=(change,),
        ttl_rules=(),
        action_class=ActionClass.REVERSIBLE,
        reversible=True,
        playbook="tune",
        rollback="set the old value again",
        rationale="a planner that never rests",
        evidence=(Evidence(name="hit_ratio", value=ratio, source="INFO", window_ms=snapshot.window_ms),),
        prediction=Prediction(
            hit_ratio_before=level,
            hit_ratio_after=level,
            gain=Estimate(0.0, -0.01, 0.01),
            lookups_per_s=0.0,
            memory_bytes_after=snapshot.maxmemory_bytes,
            latency_us_p99_after=None,
            method="a guess",
            settle_ms=1_000,
        ),
        cost={"server_cpu_ms": 0.2, "commands": 8.0, "keys_touched": 0.0, "bytes_moved": 0.0, "headroom_bytes": 0.0},
    )


async def told(world: World, words: str) -> str:
    """Return the reason of a resolution that holds `words`, once there is one."""

    async def found() -> str | None:
        state = await world.state()
        standing = None if state is None else state.standing.get("shop")
        resolution = None if standing is None else standing.resolution
        if resolution is not None and resolution.outcome is ResolutionOutcome.WAIT and words in resolution.reason:
            return resolution.reason
        return None

    reason: str = await so_that(found, 100.0, f"a resolution that says `{words}`")
    return reason


QUIET = {"capture": False}


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_changes_keep_the_cool_down_and_end_with_the_budget_of_the_hour(tmp_path, engine):
    spec = CacheSpec(engine=engine, wishes=QUIET)
    async with World(tmp_path, spec, cool_down_ms=8_000, changes_per_hour=2) as world:
        world.runtime = Restless(world.plan)
        async with world.runtime:
            assert "cools down for 8 s" in await told(world, "cools down")
            assert "its change budget is 2" in await told(world, "change budget")
            sets, value = world.config_sets(), world.knob("maxmemory-samples")
            begun = await world.records("change_intended")
            cycle = (await world.state()).cycle

            async def later() -> bool:
                return (await world.state()).cycle > cycle + 3

            await so_that(later, 60, "more cycles")
            assert world.config_sets() == sets
            assert world.knob("maxmemory-samples") == value
        first, second = begun
        ended = [r.at_ms for r in await world.records("change_kept") if r.subject_id == first.subject_id]
        # The cool-down counts from when the first change was over, by the coordinator's clock.
        assert second.at_ms - ended[0] > 7_000
        assert len(await world.records("change_intended")) == 2
        await world.assert_sound()


@pytest.mark.parametrize("engine", ["valkey", "redis"])
async def test_nothing_is_changed_in_a_freeze_window_and_the_change_comes_when_it_ends(tmp_path, engine):
    begun = datetime.now(UTC)
    # Windows are told in minutes: it ends 20 to 80 s from now.
    ends = (begun + timedelta(seconds=80)).replace(second=0, microsecond=0)
    frozen = f"{begun - timedelta(hours=1):%Y-%m-%d %H:%M} - {ends:%Y-%m-%d %H:%M}"
    spec = CacheSpec(engine=engine, wishes={**QUIET, "freeze": (parse_freeze(frozen),)})
    ends_ms = int(ends.timestamp() * 1000)
    async with World(tmp_path, spec) as world:
        world.runtime = Restless(world.plan)
        async with world.runtime:
            assert clock_words(ends_ms) in await told(world, "are frozen")
            assert world.config_sets() == 0
            intended = await world.recorded("change_intended", timeout_s=110.0)
        assert intended.at_ms >= ends_ms
