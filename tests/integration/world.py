"""A small world for integration tests: real caches with traffic, a real journal, and all agents in one loop.

Everything in it is started here and ends with it. It checks nothing by itself but says what is so: what the caches
hold, what the journal tells, what the coordinator believes.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import redis

from cachewarden.chain import ChainReport
from cachewarden.codec import digest
from cachewarden.errors import OperatingError
from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, KeyPattern, Service
from cachewarden.knobs import action_class_of_change
from cachewarden.messages import (
    AuditRecord,
    Decision,
    Evidence,
    Execution,
    ExecutionState,
    KnobChange,
    Mode,
    Prediction,
    Proposal,
    Resolution,
    ResolutionOutcome,
)
from cachewarden.policy.engine import evaluate
from cachewarden.policy.facts import facts_of
from cachewarden.policy.surroundings import surroundings_of
from cachewarden.protocol import Execute, FleetState
from cachewarden.settings import CacheOptimizerSettings, load_settings
from cluster.audit import AuditResult, verify_journal
from cluster.clock import SystemClock
from cluster.demo.driver import Driver
from cluster.demo.plan import DriverPlan, PlannedService
from cluster.demo.servers import EmbeddedServer, ServerHome, ServerOptions, start_all
from cluster.local import LocalRuntime
from cluster.wiring import Plan, checkpoint_path, make_journal
from simulation.workload import KeyPrefix, Past, WorkloadSpec

__all__ = ["FAST", "MIB", "ROOT", "CacheSpec", "World", "order_for", "start_time", "traffic", "until"]

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
FAST: Mapping[str, Any] = {
    "cycle_interval_ms": 1_000,
    "observation_window_ms": 5_000,
    "observation_windows_max": 2,
    "capture_ms": 6_000,
    "capture_pause_ms": 30_000,
    "cool_down_ms": 1_000,
    # Three tests share two cores, and a fit in one of them must not make the coordinator of another look dead.
    "state_age_max_ms": 15_000,
    "changes_per_hour": 100,
    "redis_timeout": 2.0,
    "agent_heartbeat_interval": 2,
    "lease_ttl_ms": 4_000,
    "lead_ms": 6_000,
}
"""The shortest settings with which the loop still has something to measure."""


def start_time(pid: int) -> str | None:
    """Return what tells a process from a later one with the same number; None when it is gone or only waits to be
    collected."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


async def until(condition: Callable[[], Any], timeout_s: float = 20.0, what: str = "the condition") -> Any:
    """Return the first true value of `condition` (plain or async); fails when there is none within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not come about within {timeout_s:g} s"
        await asyncio.sleep(0.05)


def traffic(service: str, **changes: Any) -> WorkloadSpec:
    """Return traffic of some 400 lookups a second over values of about a kilobyte; a cache that has lived before."""
    plain: dict[str, Any] = {
        "service": service,
        "rate_per_s": 400.0,
        "universe": 6_000,
        "zipf_skew": 0.9,
        "zipf_offset": 6.0,
        "replaced_per_s": 1.0,
        "size_median_bytes": 1_000,
        "prefixes": (KeyPrefix(prefix="k:", share=1.0),),
        "past": Past(long_ago_requests=30_000, turnover=0.3, recent_ms=30_000),
    }
    return WorkloadSpec(**{**plain, **changes})


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """One cache, its owner's wishes and its traffic (None: nobody asks it anything)."""

    name: str = "shop"
    maxmemory_bytes: int = 5 * MIB
    eviction_policy: str = "allkeys-lru"
    engine: str = "valkey"
    knobs: Mapping[str, str] = field(default_factory=dict)
    load: WorkloadSpec | None = None
    wishes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the fleet file's service."""


class World:
    """Servers, fleet, plan and load; use as `async with World(tmp_path, CacheSpec(...)) as world`."""

    def __init__(
        self,
        state_dir: Path,
        *specs: CacheSpec,
        total_memory_bytes: int | None = None,
        blackboard_db: int = 0,
        **settings: Any,
    ) -> None:
        self._blackboard_db = blackboard_db
        self.home = ServerHome()
        self.specs = {s.name: s for s in specs}
        self.caches = {
            s.name: EmbeddedServer(
                ServerOptions(
                    name=s.name,
                    maxmemory_bytes=s.maxmemory_bytes,
                    eviction_policy=s.eviction_policy,
                    engine=s.engine,
                    knobs=s.knobs,
                ),
                self.home,
            )
            for s in specs
        }
        self.blackboard = EmbeddedServer(ServerOptions(name="blackboard", append_only=True), self.home)
        self.driver: Driver | None = None
        self._driving: asyncio.Task[None] | None = None
        self._state_dir = state_dir
        self._total_memory_bytes = total_memory_bytes
        self._wanted = {**FAST, **settings}
        self._clients: dict[str, redis.Redis] = {}
        self.runtime: LocalRuntime | None = None
        self._last: FleetState | None = None

    async def __aenter__(self) -> World:
        try:
            start_all([*self.caches.values(), self.blackboard])
            await self._drive()
        except BaseException:
            await self.__aexit__(None)
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and self._last is not None:
            # pytest shows what was written there only where the test failed.
            sys.stderr.write(_told(self._last) + "\n")
        if self.driver is not None and self._driving is not None:
            self.driver.stop()
            await asyncio.gather(self._driving, return_exceptions=True)
        for client in self._clients.values():
            client.close()
            client.connection_pool.disconnect()
        self.home.close()

    # --- What is run ---

    @property
    def settings(self) -> CacheOptimizerSettings:
        return load_settings(
            _env_file=None,
            journal_url=self.blackboard.url,
            state_dir=self._state_dir,
            constitution_path=ROOT / "config" / "constitution.yaml",
            blackboard_url=f"{self.blackboard.url.rpartition('/')[0]}/{self._blackboard_db}",
            **self._wanted,
        )

    @property
    def fleet(self) -> Fleet:
        services = []
        for name, server in self.caches.items():
            plain: dict[str, Any] = {
                "mode": Mode.AUTO,
                "tenant": "acgs",
                "region": "eu",
                "capture": True,
                "patterns": (KeyPattern(prefix="k:"),),
            }
            wishes = self.specs[name].wishes
            # A password in the URL would win over the one that `password_env` names.
            url = f"redis://127.0.0.1:{server.port}/0" if "password_env" in wishes else server.url
            services.append(Service(name=name, url=url, **{**plain, **wishes}))
        return Fleet(name="world", total_memory_bytes=self._total_memory_bytes, services=tuple(services))

    @property
    def plan(self) -> Plan:
        return Plan(fleet=self.fleet, settings=self.settings, secret=b"integration", holder="world")

    def agents(self) -> LocalRuntime:
        """Return all agents of the plan, to be entered by the test; `state` asks the last one made."""
        self.runtime = LocalRuntime(self.plan)
        return self.runtime

    async def _drive(self) -> None:
        services = tuple(
            PlannedService(name=name, urls={"f": self.caches[name].url}, traffic=spec.load)
            for name, spec in self.specs.items()
            if spec.load is not None
        )
        if not services:
            return
        self.driver = Driver(DriverPlan(seed=7, services=services, stats_path="-", behind_ms=300))
        self._driving = asyncio.create_task(self.driver.run(lambda _: None))
        driver, driving = self.driver, self._driving
        await until(lambda: driver.stats().phase == "load" or driving.done(), 60, "the end of the prefill")
        if driving.done():
            await driving

    # --- What is so ---

    def client(self, name: str) -> redis.Redis:
        """Return a plain client of a cache (or of `blackboard`): the application, or an administrator."""
        if name not in self._clients:
            server = self.blackboard if name == "blackboard" else self.caches[name]
            self._clients[name] = redis.Redis.from_url(server.url, decode_responses=True, socket_timeout=5)
        return self._clients[name]

    def knob(self, knob: str, service: str = "shop") -> str:
        return str(self.client(service).config_get(knob)[knob])

    def config_sets(self, service: str = "shop") -> int:
        """Return how often CONFIG SET was ever called on a cache."""
        found = self.client(service).info("commandstats").get("cmdstat_config|set", {})
        return int(found.get("calls", 0))

    async def state(self) -> FleetState | None:
        """Return what the coordinator knows; None while it is not there."""
        assert self.runtime is not None
        try:
            state: FleetState = await self.runtime.query("coordinator", "state", SystemClock().now_ms())
        except (OperatingError, RuntimeError):
            return None
        self._last = state
        return state

    async def executions(self, service: str = "shop") -> list[Execution]:
        state = await self.state()
        return [] if state is None else [e for e in state.executions if e.proposal.service == service]

    async def reached(self, state: ExecutionState, timeout_s: float = 30.0, service: str = "shop") -> Execution:
        """Return the newest execution of a service once it is in this state; fails if it ends in another one."""

        async def there() -> Execution | None:
            found = await self.executions(service)
            if found and found[-1].state.final and found[-1].state is not state:
                raise AssertionError(f"`{state}` was never reached: {found[-1].state}, {found[-1].reason}")
            return found[-1] if found and found[-1].state is state else None

        execution: Execution = await until(there, timeout_s, f"an execution that is {state}")
        return execution

    async def finished(self, proposal_id: str, timeout_s: float = 40.0) -> Execution:
        """Return the execution of a proposal once it is over."""

        async def over() -> Execution | None:
            state = await self.state()
            found = [e for e in state.executions if e.proposal.proposal_id == proposal_id] if state else []
            return found[-1] if found and found[-1].state.final else None

        execution: Execution = await until(over, timeout_s, f"the end of `{proposal_id}`")
        return execution

    async def records(self, *kinds: str) -> list[AuditRecord]:
        """Return the journal, oldest first, or only the records of these kinds."""
        journal = make_journal(self.plan)
        try:
            return await journal.read_back(kinds)
        finally:
            await journal.close()

    async def recorded(self, kind: str, timeout_s: float = 30.0, service: str | None = None) -> AuditRecord:
        """Return the first record of a kind, waiting for it."""

        async def found() -> AuditRecord | None:
            records = [r for r in await self.records(kind) if service in (None, r.service)]
            return records[0] if records else None

        record: AuditRecord = await until(found, timeout_s, f"a record `{kind}`")
        return record

    async def verified(self) -> AuditResult:
        """Return what an auditor finds who reads the whole journal and the checkpoint file."""
        journal = make_journal(self.plan)
        try:
            return await verify_journal(journal, checkpoint_path(self.settings), clock=SystemClock())
        finally:
            await journal.close()

    async def assert_sound(self) -> ChainReport:
        """Assert that the journal verifies and every intention in it has come to an end; return the report."""
        result = await self.verified()
        assert result.ok, result.text()
        assert result.report is not None
        ends = {"change_kept", "change_rolled_back", "change_abandoned", "rollback_failed"}
        records = await self.records()
        begun = {r.subject_id: r.seq for r in records if r.kind == "change_intended"}
        ended = {r.subject_id: r.seq for r in records if r.kind in ends}
        open_still = {key for key, seq in begun.items() if ended.get(key, 0) < seq}
        assert not open_still, f"unfinished changes: {open_still}"
        return result.report

    async def seen(self, service: str = "shop", lookups: int = 100, timeout_s: float = 30.0) -> FleetState:
        """Return the state once a window with so many lookups of a service is in it."""

        async def enough() -> FleetState | None:
            state = await self.state()
            snapshot = None if state is None else state.snapshots.get(service)
            return state if snapshot is not None and snapshot.hits + snapshot.misses >= lookups else None

        state: FleetState = await until(enough, timeout_s, f"a window of {lookups} lookups of `{service}`")
        return state


def _told(state: FleetState) -> str:
    """Return the last known state in words, shown where a test failed."""
    lines = [f"cycle {state.cycle}: {state.phase}; missing {dict(state.missing)}"]
    for name, decision in state.standing.items():
        resolution = decision.resolution
        lines.append(f"{name}: {decision.idle_reason or (resolution and resolution.reason)}")
        if decision.proposal is not None:
            lines.append(f"  {[(c.knob, c.before, c.after) for c in decision.proposal.knob_changes]}")
            lines.append(f"  {decision.verdict and decision.verdict.denied_by} {decision.proposal.prediction}")
    for e in state.executions:
        knobs = [(c.knob, c.before, c.after) for c in e.proposal.knob_changes]
        lines.append(f"{e.proposal.service} {knobs}: {e.state} {e.reason} {e.hit_ratio_before} {e.hit_ratio_after}")
    return "\n".join(lines)


def order_for(
    world: World,
    state: FleetState,
    changes: Sequence[tuple[str, str]],
    *,
    service: str = "shop",
    promised: float | None = None,
    proposal_id: str = "p-crafted",
    **more: Any,
) -> Execute:
    """Return an order that sets `changes` (knob, new value), judged by the real constitution on what was seen.

    `promised`: the hit ratio that the prediction claims, by default a little more than now; that it may be wrong is the
    point. Fails if the constitution denies it.
    """
    snapshot = state.snapshots[service]
    assert snapshot.hit_ratio is not None
    now_ms = SystemClock().now_ms()
    knobs = tuple(KnobChange(knob=k, before=snapshot.knobs[k], after=v) for k, v in changes)
    memory = next((int(c.after) for c in knobs if c.knob == "maxmemory"), snapshot.maxmemory_bytes)
    shrinks = memory < snapshot.maxmemory_bytes
    after = snapshot.hit_ratio + 0.005 if promised is None else promised
    proposal = Proposal(
        proposal_id=proposal_id,
        service=service,
        author="a test",
        created_at_ms=now_ms,
        expires_at_ms=now_ms + 60_000,
        kinds=("memory",),
        knob_changes=knobs,
        ttl_rules=(),
        action_class=max(action_class_of_change(c.knob, c.before, c.after) for c in knobs),
        reversible=not shrinks,
        playbook="shrink" if shrinks else "direct",
        rollback="set the old values again",
        rationale="what a wrong model might ask for",
        evidence=(Evidence(name="hit_ratio", value=snapshot.hit_ratio, source="INFO", window_ms=snapshot.window_ms),),
        prediction=Prediction(
            hit_ratio_before=Estimate(snapshot.hit_ratio, snapshot.hit_ratio - 0.005, snapshot.hit_ratio + 0.005),
            hit_ratio_after=Estimate(after, max(0.0, after - 0.1), min(1.0, after + 0.05)),
            gain=Estimate(after - snapshot.hit_ratio, after - snapshot.hit_ratio - 0.01, 1.0 - snapshot.hit_ratio),
            lookups_per_s=snapshot.lookups_per_s,
            memory_bytes_after=memory,
            latency_us_p99_after=1_000.0,
            method="a guess",
            settle_ms=1_000,
        ),
        cost={"server_cpu_ms": 1.0, "commands": 10.0, "keys_touched": 0.0, "bytes_moved": 0.0, "headroom_bytes": 0.0},
    )
    proposal = replace(proposal, **more)
    others = surroundings_of([proposal], state.snapshots.values(), world.fleet, world.settings)
    verdict = evaluate(world.plan.constitution(), proposal, facts_of(proposal, snapshot, world.fleet, others), now_ms)
    assert verdict.decision is Decision.ALLOW, [f.reason for f in verdict.findings if f.decision is Decision.DENY]
    assert verdict.proposal_digest == digest(proposal)
    resolution = Resolution(
        proposal_id=proposal_id,
        service=service,
        outcome=ResolutionOutcome.GO,
        reason="a test says so",
        resolved_at_ms=now_ms,
    )
    return Execute(
        proposal=proposal,
        verdict=verdict,
        resolution=resolution,
        hit_ratio_before=snapshot.hit_ratio,
        latency_us_p99_before=None,
    )
