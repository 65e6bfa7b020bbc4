"""A small fleet as plain data, and a backend that keeps everything in memory: what the API is driven with."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import numpy as np

from cachewarden import chain
from cachewarden.approval import DecideApproval, SubmitProposal
from cachewarden.cachemodel.trace import AccessTrace
from cachewarden.errors import JournalUnavailable
from cachewarden.estimate import Estimate
from cachewarden.fed_accesses import FeedBatch, FeedReport
from cachewarden.feed import secret_fingerprint
from cachewarden.fleet import Fleet, parse_fleet
from cachewarden.messages import (
    ActionClass,
    AuditRecord,
    Evidence,
    Execution,
    ExecutionState,
    KnobChange,
    Prediction,
    Proposal,
    Resolution,
    ResolutionOutcome,
)
from cachewarden.modes import with_modes
from cachewarden.observation import AccessSample, Capabilities, ProbeCost, Snapshot
from cachewarden.policy.constitution import Constitution, load_constitution
from cachewarden.policy.engine import evaluate
from cachewarden.policy.facts import facts_of
from cachewarden.ports import RecordDraft
from cachewarden.protocol import AgentHealth, Execute, FleetState, RunCycle, SetMode, SetPaused, StandingDecision
from cachewarden.settings import CacheOptimizerSettings
from coordination.warm_rules import KeyOutcome, WarmCourse, WarmOutcome, WarmReport
from serve.api import create_app
from serve.docket import Grounds, others_of
from serve.security import TokenStore, create_token

SECRET = b"the secret of the key hash"
NOW_MS = 1_800_000_000_000
MIB = 1 << 20
CONSTITUTION: Constitution = load_constitution(Path("config/constitution.yaml"))
SETTINGS = CacheOptimizerSettings(_env_file=None)

FLEET_TEXT = """
name: unit
total_memory_bytes: 200mb
services:
  - {name: constitutional_ai, url: "redis://127.0.0.1:7001", mode: auto, tenant: acgs, region: local, default_ttl_s: 60, feed: true,
     hit_ratio_floor: 0.8, patterns: [{prefix: "policy:", max_staleness_s: 600}, {prefix: "policy:short:", max_staleness_s: 5}]}
  - {name: api_gateway, url: "redis://127.0.0.1:7002", mode: approve, tenant: acgs, region: local}
  - {name: integrity_service, url: "redis://127.0.0.1:7003", mode: advise, tenant: acgs, region: local}
  - {name: blackboard_service, url: "redis://127.0.0.1:7004", mode: "off", tenant: other, region: local, patterns: [{prefix: "policy:board:"}]}
"""


def fleet() -> Fleet:
    return parse_fleet(FLEET_TEXT)


def snapshot(service: str = "constitutional_ai", **changes: object) -> Snapshot:
    values: dict[str, object] = {
        "service": service,
        "taken_at_ms": NOW_MS - 2_000,
        "window_ms": 10_000,
        "run_id": "r1",
        "role": "master",
        "capabilities": Capabilities(
            server="valkey", version="9.1.2", config_get=True, config_set=True, latency_histogram=True
        ),
        "knobs": {"maxmemory": str(40 * MIB), "maxmemory-policy": "allkeys-lru", "maxmemory-samples": "5"},
        "hits": 8_000,
        "misses": 2_000,
        "hit_ratio": 0.8,
        "lookups_per_s": 1_000.0,
        "evicted_per_s": 12.0,
        "expired_per_s": 1.0,
        "refused_per_s": 0.0,
        "miss_split": None,
        "used_memory_bytes": 39 * MIB,
        "maxmemory_bytes": 40 * MIB,
        "memory_usage": 0.975,
        "memory_efficiency": 0.9,
        "fixed_overhead_bytes": MIB,
        "host_memory_bytes": 8 << 30,
        "resident_keys": 30_000,
        "keys_with_ttl": 0,
        "eviction_age_ms": 60_000,
        "latency_us_p99": 800.0,
        "round_trip_us": 300.0,
        "hotspot_count": 1,
        "cost": ProbeCost(),
    }
    return Snapshot(**{**values, **changes})


def captured_look(**changes: object) -> Snapshot:
    """A look with a capture of a minute: 30,000 reads over 40,000 keys, of which some are asked for far more often."""
    rng = np.random.default_rng(3)
    keys = (rng.zipf(1.15, 30_000) % 40_000).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    access = AccessSample(
        trace=AccessTrace.of(NOW_MS - 62_000 + np.arange(30_000) * 2, keys),
        pattern=np.full(30_000, -1, np.int32),
        patterns=(),
        spatial_rate=1.0,
        lines_seen=30_000,
    )
    return snapshot(**{"access": access, **changes})


def proposal(service: str = "constitutional_ai", **changes: object) -> Proposal:
    after = Estimate(0.96, 0.94, 0.97)
    values: dict[str, object] = {
        "proposal_id": f"p-{service}",
        "service": service,
        "author": "planner",
        "created_at_ms": NOW_MS - 1_000,
        "expires_at_ms": NOW_MS + 200_000,
        "kinds": ("memory",),
        "knob_changes": (KnobChange(knob="maxmemory-samples", before="5", after="10"),),
        "ttl_rules": (),
        "action_class": ActionClass.REVERSIBLE,
        "reversible": True,
        "playbook": "direct",
        "rollback": "set the old value again",
        "rationale": "more samples evict better",
        "evidence": (Evidence(name="hit_ratio", value=0.8, source="INFO", window_ms=10_000),),
        "prediction": Prediction(
            hit_ratio_before=Estimate(0.8, 0.79, 0.81),
            hit_ratio_after=after,
            gain=Estimate(0.16, 0.13, 0.18),
            lookups_per_s=1_000.0,
            memory_bytes_after=40 * MIB,
            latency_us_p99_after=700.0,
            method="replay",
            settle_ms=30_000,
        ),
        "cost": {"server_cpu_ms": 1.0, "commands": 3.0, "keys_touched": 0.0, "bytes_moved": 0.0},
    }
    return Proposal(**{**values, **changes})


def state(**changes: object) -> FleetState:
    values: dict[str, object] = {
        "version": 1,
        "at_ms": NOW_MS - 500,
        "cycle": 3,
        "phase": "idle",
        "paused": False,
        "pause_reason": "",
        "snapshots": {name: snapshot(name) for name in ("constitutional_ai", "api_gateway", "integrity_service")},
        "missing": {"blackboard_service": "the cache does not answer"},
        "first_hit_ratio": {"constitutional_ai": 0.7},
        "standing": {},
        "executions": (),
        "agents": {"planner": AgentHealth(name="planner", alive=True, last_seen_ms=NOW_MS)},
        "journal_seq": 10,
        "decisions": 4,
        "decisions_compliant": 4,
        "last_change_ms": None,
    }
    return FleetState(**{**values, **changes})


def grounds() -> Grounds:
    return Grounds(fleet=fleet(), constitution=CONSTITUTION, settings=SETTINGS)


def standing(
    plan: Proposal,
    outcome: ResolutionOutcome = ResolutionOutcome.GO,
    reason: str = "nothing stands against it",
    at_ms: int = NOW_MS - 800,
) -> dict[str, StandingDecision]:
    """The standing decision on one plan, judged by the real constitution."""
    around = state(standing={plan.service: StandingDecision(service=plan.service, decided_at_ms=at_ms, proposal=plan)})
    looked = around.snapshots.get(plan.service, snapshot(plan.service))
    verdict = evaluate(CONSTITUTION, plan, facts_of(plan, looked, fleet(), others_of(around, grounds())), at_ms)
    resolution = Resolution(proposal_id=plan.proposal_id, service=plan.service, outcome=outcome, reason=reason)
    return {
        plan.service: StandingDecision(
            service=plan.service, decided_at_ms=at_ms, proposal=plan, verdict=verdict, resolution=resolution
        )
    }


def idle(
    service: str = "constitutional_ai", reason: str = "nothing misses that more memory could hold"
) -> dict[str, StandingDecision]:
    return {service: StandingDecision(service=service, decided_at_ms=NOW_MS - 800, idle_reason=reason)}


def execution(plan: Proposal, stage: ExecutionState, **changes: object) -> Execution:
    values: dict[str, object] = {
        "execution_id": "e1",
        "proposal": plan,
        "state": stage,
        "started_at_ms": NOW_MS,
        "updated_at_ms": NOW_MS,
        "step": 1,
        "steps": 1,
        "reason": f"it is {stage.value}",
        "hit_ratio_before": 0.8,
    }
    return Execution(**{**values, **changes})


class MemoryWarmJobs:
    """What `RedisWarmJobs` does, in memory."""

    def __init__(self) -> None:
        self.busy: dict[str, str] = {}
        self.kept: dict[str, tuple[str, str, bytes]] = {}

    async def begin(self, job_id: str, service: str, status: str) -> str:
        holder = self.busy.setdefault(service, job_id)
        if holder == job_id:
            self.kept[job_id] = (status, "", b"")
        return holder

    async def tell(self, job_id: str, service: str, status: str, outcomes: bytes, *, place: int, ended: bool) -> bool:
        _, who, before = self.kept[job_id]
        if outcomes:
            before = before.ljust(place, b"\0")[:place] + outcomes
        self.kept[job_id] = (status, who, before)
        if ended:
            self.busy.pop(service, None)
        return bool(who)

    async def cancel(self, job_id: str, who: str) -> bool:
        if job_id not in self.kept:
            return False
        status, before, outcomes = self.kept[job_id]
        self.kept[job_id] = (status, before or who, outcomes)
        return True

    async def read(self, job_id: str, start: int = 0, count: int = 0) -> tuple[str, str, bytes]:
        status, who, outcomes = self.kept.get(job_id, ("", "", b""))
        return status, who, outcomes[start : start + count]


class MemoryBackend:
    """A backend of plain data; the actuator's reports are what the test puts into `reports`."""

    def __init__(self, known: FleetState | None, settings: CacheOptimizerSettings = SETTINGS) -> None:
        self.fleet = fleet()
        self.constitution = CONSTITUTION
        self.settings = settings
        self.budget_bytes: int | None = None
        self.secret_fingerprint = secret_fingerprint(SECRET)
        self.fed: list[FeedBatch] = []
        self.fed_reports: dict[str, FeedReport] = {}
        self.known = known
        self.records: list[AuditRecord] = []
        self.journal_down = False
        self.journal_answers: asyncio.Event | None = None
        """Set by a test that lets the journal wait; nothing is durable before."""
        self.executed: list[Execute] = []
        self.reports: list[Execution] = []
        self.decisions: list[DecideApproval | SubmitProposal] = []
        self.decision_refusal: str | None = None
        self.commands: list[SetPaused | RunCycle] = []
        self.after_cycle: FleetState | None = None
        self.parts: dict[str, str] = {"journal": "healthy"}
        self.warmed: list[str] = []
        self.warming_held = False
        self.warm_jobs = MemoryWarmJobs()
        self.clock_ms = NOW_MS
        self.looks: dict[str, Snapshot] = {}
        self.age_s: float | None = 0.1
        self.misunderstood: str | None = None
        self.waits = 0

    def now_ms(self) -> int:
        return self.clock_ms

    def key_hash(self, key: str) -> str:
        return f"{hash(key) & 0xFFFF_FFFF:016x}"

    async def state(self) -> FleetState | None:
        return self.known

    def contact_problem(self) -> str | None:
        return self.misunderstood

    def journal_waiting(self) -> int:
        return 0

    def state_age_s(self) -> float | None:
        return self.age_s

    async def changed(self, timeout_s: float) -> None:
        self.waits += 1
        await asyncio.sleep(0.002)

    async def snapshot(self, service: str) -> Snapshot | None:
        return self.looks.get(service)

    async def feed(self, batch: FeedBatch) -> FeedReport | None:
        self.fed.append(batch)
        return self.fed_reports.get(batch.service)

    async def feed_report(self, service: str) -> FeedReport | None:
        return self.fed_reports.get(service)

    async def record(self, drafts: Sequence[RecordDraft]) -> list[AuditRecord]:
        if self.journal_down:
            raise JournalUnavailable("connection refused by 10.0.0.7:6379")
        if self.journal_answers is not None:
            await self.journal_answers.wait()
        last = self.records[-1].hash if self.records else chain.GENESIS_HASH
        made = chain.seal_all(drafts, len(self.records) + 1, last)
        self.records += made
        return made

    def begin_record(self, drafts: Sequence[RecordDraft]) -> asyncio.Future[list[AuditRecord]]:
        return asyncio.ensure_future(self.record(drafts))

    async def execute(self, command: Execute) -> None:
        self.executed.append(command)

    async def execution(self, proposal_id: str) -> Execution | None:
        """Each question gets the next report; the last one stays."""
        found = [e for e in self.reports if e.proposal.proposal_id == proposal_id]
        if len(found) > 1:
            self.reports.remove(found[0])
        return found[0] if found else None

    async def set_paused(self, command: SetPaused) -> None:
        self.commands.append(command)
        if self.known is not None:
            self.known = dataclasses.replace(self.known, paused=command.paused, pause_reason=command.reason)

    async def set_mode(self, command: SetMode) -> None:
        self.commands.append(command)
        self.fleet = with_modes(self.fleet, {command.service: command.mode})

    async def decide_plan(self, command: DecideApproval | SubmitProposal) -> str | None:
        self.decisions.append(command)
        return self.decision_refusal

    async def run_cycle(self, command: RunCycle) -> None:
        self.commands.append(command)
        if self.after_cycle is not None:
            self.known = self.after_cycle

    async def audit_page(self, after_seq: int, limit: int) -> list[AuditRecord]:
        return [r for r in self.records if r.seq > after_seq][:limit]

    async def audit_verify(self) -> chain.ChainReport:
        return chain.verify(self.records)

    async def warm(self, service: str, keys: Sequence[str], course: WarmCourse | None = None) -> WarmReport:
        course = course or WarmCourse()
        outcomes = []
        for key in keys:
            await asyncio.sleep(0)
            if course.dry_run:
                made = KeyOutcome(key=key, outcome=WarmOutcome.WOULD_WARM, reason="missing")
            elif course.stop() or self.warming_held:
                made = KeyOutcome(key=key, outcome=WarmOutcome.FAILED, reason="stopped before it was loaded")
            else:
                self.warmed.append(key)
                made = KeyOutcome(key=key, outcome=WarmOutcome.WARMED, reason="loaded", ttl_ms=60_000)
            course.noted(made)
            outcomes.append(made)
            while self.warming_held and not course.stop():
                await asyncio.sleep(0)
        return WarmReport(service=service, keys=tuple(outcomes))

    def newest_state(self) -> FleetState | None:
        return self.known

    async def components(self) -> Mapping[str, str]:
        return self.parts


class Site:
    """The application with its tokens, and requests to it in process."""

    def __init__(self, backend: MemoryBackend, state_dir: Path, wait_s: float = 0.2) -> None:
        self.backend = backend
        self.state_dir = state_dir
        self.tokens = {
            "operate": create_token(state_dir, "operator", ("operate",)),
            "read": create_token(state_dir, "reader", ("read",)),
            "admin": create_token(state_dir, "admin", ("admin",)),
            "feed": create_token(state_dir, "app-server", ("feed",)),
        }
        self.app = create_app(backend, TokenStore(state_dir), wait_s=wait_s)

    async def ask(self, method: str, path: str, *, token: str | None = "operate", **more: object) -> httpx.Response:
        headers = dict(more.pop("headers", {}) or {})
        if token is not None:
            headers.setdefault("Authorization", f"Bearer {self.tokens.get(token, token)}")
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, headers=headers, **more)

    async def optimize(self, apply: str = "auto", **fields: object) -> dict:
        response = await self.ask(
            "POST", f"/api/v1/cache/optimize?apply={apply}", json={"service_name": "constitutional_ai", **fields}
        )
        assert response.status_code == 200, response.text
        return response.json()
