"""Two caches want the same memory: what all agents do about it, and what the other ACGS agents see of it.

Collector, validator, consensus, actuator, auditor and coordinator are the real ones, on real servers with traffic. Only
the planner is a script, so that there is a conflict at once: it asks for more memory for both caches than the budget
has. Run by pytest, or by itself:

    python tests/integration/test_multi_agent_coordination.py --service cache_performance_optimizer
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Started by its path, Python looks for modules beside the script and not at the root.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import pytest
import redis.asyncio
from rich.console import Console
from rich.table import Table

from cachewarden.codec import digest
from cachewarden.errors import OperatingError
from cachewarden.estimate import Estimate
from cachewarden.messages import (
    AGENT_ID,
    CAPABILITIES,
    CONSTITUTIONAL_HASH,
    ActionClass,
    Evidence,
    Execution,
    KnobChange,
    Prediction,
    Proposal,
    RecordKind,
)
from cachewarden.observation import Snapshot
from cachewarden.protocol import FleetPlanned, FleetState, PlanFleet
from cluster.audit import verify_journal
from cluster.clock import SystemClock
from cluster.local import LocalRuntime
from cluster.wiring import Plan, checkpoint_path, hash_secret, make_journal
from coordination.blackboard_records import record_id, time_ms
from coordination.projection import task_id_of
from coordination.redis_blackboard import RedisBlackboard
from coordination.redis_leases import RedisLeaseStore
from tests.facade_world import MIB, SERVICES, World, embedded_world

WINNER, LOSER = SERVICES
GROWN_BYTES = 9 * MIB
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Check:
    """One promise: whether it was kept, and what was seen."""

    name: str
    ok: bool
    seen: str


class RivalPlans(LocalRuntime):
    """All agents but the planner; in its place, one growth for each cache, made as soon as both have a hit ratio."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.proposals: dict[str, Proposal] = {}

    async def send(self, sender: str, to: str, message: Any) -> None:
        if to == "planner" and isinstance(message, PlanFleet):
            await super().send("planner", sender, self._planned(message))
        else:
            await super().send(sender, to, message)

    def _planned(self, question: PlanFleet) -> FleetPlanned:
        seen = {s.service: s for s in question.snapshots}
        idle = dict.fromkeys(seen, "the script has nothing more to ask for")
        ready = set(seen) == set(SERVICES) and all(
            s.hit_ratio is not None and s.hits + s.misses >= 500 for s in seen.values()
        )
        if self.proposals or not ready:
            return FleetPlanned(cycle=question.cycle, proposals=(), idle_reasons=idle)
        now_ms = SystemClock().now_ms()
        self.proposals = {WINNER: growth(seen[WINNER], 0.10, now_ms), LOSER: growth(seen[LOSER], 0.04, now_ms)}
        return FleetPlanned(cycle=question.cycle, proposals=tuple(self.proposals.values()), idle_reasons={})


def growth(snapshot: Snapshot, gain: float, now_ms: int) -> Proposal:
    before = snapshot.hit_ratio
    assert before is not None
    change = KnobChange(knob="maxmemory", before=str(snapshot.maxmemory_bytes), after=str(GROWN_BYTES))
    return Proposal(
        proposal_id=f"p-{digest([snapshot.service, now_ms])[:16]}",
        service=snapshot.service,
        author="planner",
        created_at_ms=now_ms,
        expires_at_ms=now_ms + 300_000,
        kinds=("memory",),
        knob_changes=(change,),
        ttl_rules=(),
        action_class=ActionClass.GROWTH,
        reversible=True,
        playbook="direct",
        rollback="set maxmemory back; keys evicted by that come back as the application loads them again",
        rationale="keys are evicted before they are asked for again",
        evidence=(Evidence(name="hit_ratio", value=before, source="INFO keyspace_hits", window_ms=snapshot.window_ms),),
        prediction=Prediction(
            hit_ratio_before=Estimate(before, before, before),
            hit_ratio_after=Estimate.around(before + gain, 0.02, 0.0, 1.0),
            gain=Estimate.around(gain, 0.02),
            lookups_per_s=snapshot.lookups_per_s,
            memory_bytes_after=GROWN_BYTES,
            latency_us_p99_after=None,
            method="written into the scenario",
            settle_ms=1_000,
        ),
        cost={"server_cpu_ms": 0.2, "commands": 8.0, "keys_touched": 0.0, "bytes_moved": 0.0},
    )


async def until(found: Callable[[], Awaitable[Any]]) -> Any:
    """Return the first thing found; raises TimeoutError after `PATIENCE_S`."""
    async with asyncio.timeout(PATIENCE_S):
        while not (result := await found()):
            await asyncio.sleep(0.1)
        return result


class Onlooker:
    """Another ACGS agent: it knows nothing but the blackboard's server."""

    def __init__(self, world: World) -> None:
        url = world.settings.blackboard_url
        self.board = RedisBlackboard(url, timeout_s=5.0)
        self.redis = redis.asyncio.Redis.from_url(url, decode_responses=True)
        self.events: list[tuple[str, str]] = []

    async def listen(self) -> None:
        async for event in await self.board.events():
            data = event["data"]
            self.events.append((event["event_type"], str(data.get("task_id", data.get("conflict_id", "")))))

    async def close(self) -> None:
        await self.board.close()
        await self.redis.aclose()

    async def raw_agent(self) -> tuple[dict[str, Any], str] | None:
        data, beat = await self.redis.hmget(f"bb:agents:{AGENT_ID}", "data", "last_heartbeat")
        return None if data is None or beat is None else (json.loads(data), beat)

    async def beating_agent(self) -> tuple[dict[str, Any], str] | None:
        found = await self.raw_agent()
        return found if found is not None and (time_ms(found[1]) or 0) > time_ms(found[0]["registered_at"]) else None

    async def finished_task(self, task_id: str) -> dict[str, Any] | None:
        task = await self.board.task(task_id)
        return task if task is not None and task["status"] in ("completed", "failed") else None

    async def plans(self, knowledge_type: str) -> dict[str, dict[str, Any]]:
        items = await self.board.query_knowledge("performance", knowledge_type, ("cache",))
        return {item["content"]["affected_services"][0]: item["content"] for item in items}


async def coordinate() -> list[Check]:
    """Run the scenario; returns one check for each promise."""
    async with embedded_world(SERVICES, capture_ms=0, agent_heartbeat_interval=1) as world:
        plan = Plan(fleet=world.fleet, settings=world.settings, secret=hash_secret(world.settings), holder="scenario")
        onlooker = Onlooker(world)
        listening = asyncio.create_task(onlooker.listen())
        try:
            async with RivalPlans(plan) as runtime:
                return [*await _agent(onlooker), *await _change(plan, runtime, onlooker)]
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            await onlooker.close()


async def _agent(onlooker: Onlooker) -> list[Check]:
    record, beat = await until(onlooker.beating_agent)
    active = [a["agent_id"] for a in await onlooker.board.active_agents()]
    return [
        Check("registered as an active agent", AGENT_ID in active, f"active: {', '.join(active)}"),
        Check(
            "with its four capabilities",
            record["capabilities"] == list(CAPABILITIES) and len(CAPABILITIES) == 4,
            ", ".join(record["capabilities"]),
        ),
        Check(
            "heartbeat in both places, after the registration",
            record["last_heartbeat"] == beat,
            f"registered {record['registered_at']}, in the record {record['last_heartbeat']}, beside it {beat}",
        ),
    ]


async def _change(plan: Plan, runtime: RivalPlans, onlooker: Onlooker) -> list[Check]:
    async def over() -> Execution | None:
        try:
            state: FleetState = await runtime.query("coordinator", "state", SystemClock().now_ms())
        except (OperatingError, RuntimeError):
            return None
        ended = [e for e in state.executions if e.state.final]
        return ended[0] if ended else None

    execution: Execution = await until(over)
    task_id = task_id_of(execution)
    task = await until(lambda: onlooker.finished_task(task_id))
    return [
        *_task_checks(execution, task, onlooker, task_id),
        *await _knowledge_checks(runtime, onlooker),
        *await _conflict_checks(runtime, onlooker),
        *await _truth_checks(plan, execution),
    ]


def _task_checks(execution: Execution, task: dict[str, Any], onlooker: Onlooker, task_id: str) -> list[Check]:
    life = [kind for kind, subject in onlooker.events if subject == task_id]
    output = task["output_data"] or {}
    return [
        Check(
            "the cache with more hits per byte was changed, and it was kept",
            execution.proposal.service == WINNER and execution.state.value == "kept",
            f"{execution.proposal.service}: {execution.state.value}, {execution.reason}",
        ),
        Check(
            "a task was created, claimed, completed",
            life == ["task_created", "task_claimed", "task_completed"],
            " → ".join(life),
        ),
        Check(
            "by us, with the hash in what goes in",
            task["agent_id"] == AGENT_ID and task["input_data"]["constitutional_hash"] == CONSTITUTIONAL_HASH,
            f"{task['task_type']} of {task['agent_id']}",
        ),
        Check(
            "and an output that says what was realised",
            task["status"] == "completed"
            and output.get("constitutional_compliance") is True
            and output["optimization_response"]["optimization_applied"] is True
            and output["optimization_response"]["realised"]["gain"] is not None,
            json.dumps(output.get("optimization_response", {}).get("realised")),
        ),
    ]


async def _knowledge_checks(runtime: RivalPlans, onlooker: Onlooker) -> list[Check]:
    ids = {service: proposal.proposal_id for service, proposal in runtime.proposals.items()}
    checks = []
    for kind in ("cache_optimization_plan", "optimization_activity"):
        plans = await onlooker.plans(kind)
        ok = {s: p["plan_id"] for s, p in plans.items()} == ids and all(
            p["constitutional_hash"] == CONSTITUTIONAL_HASH for p in plans.values()
        )
        told = ", ".join(f"{s}: {p['status']}" for s, p in sorted(plans.items()))
        ok = ok and (plans[WINNER]["status"], plans[LOSER]["status"]) == ("completed", "yielded")
        checks.append(Check(f"both plans stand there as `{kind}`", ok, told))
    return checks


async def _conflict_checks(runtime: RivalPlans, onlooker: Onlooker) -> list[Check]:
    pair = sorted(p.proposal_id for p in runtime.proposals.values())
    conflict_id = record_id("conflict", *pair)
    conflict = await onlooker.board.conflict(conflict_id)
    if conflict is None:
        return [Check("the conflict was reported", False, "there is no such record")]
    data = conflict["resolution_data"] or {}
    winner = runtime.proposals[WINNER].proposal_id
    return [
        Check(
            "the conflict was reported to everybody",
            ("conflict_detected", conflict_id) in onlooker.events,
            conflict["description"],
        ),
        Check(
            "and resolved, with a reason that names the winner",
            conflict["status"] == "resolved" and winner in data.get("reasoning", ""),
            f"{conflict['resolution_strategy']}: {data.get('reasoning')}",
        ),
    ]


async def _truth_checks(plan: Plan, execution: Execution) -> list[Check]:
    journal, leases = make_journal(plan), RedisLeaseStore(plan.journal_url, key_prefix=plan.settings.key_prefix)
    try:
        verified = await verify_journal(journal, checkpoint_path(plan.settings), clock=SystemClock())
        kinds = [r.kind for r in await journal.read() if r.service == LOSER]
        holder = await leases.holder(execution.proposal.service)
    finally:
        await journal.close()
        await leases.close()
    return [
        Check("the journal verifies", verified.ok, verified.text()),
        Check(
            "and says that the loser was never touched",
            RecordKind.RESOLVED in kinds and RecordKind.CHANGE_INTENDED not in kinds,
            ", ".join(kinds),
        ),
        Check(
            "nobody but the optimizer that changed it leads the cache",
            holder is None or holder.holder.startswith(plan.holder),
            f"held by {holder.holder if holder else 'nobody'}",
        ),
    ]


@pytest.mark.integration
@pytest.mark.constitutional
async def test_two_caches_want_the_same_memory__one_grows_and_every_other_agent_can_see_why():
    checks = await coordinate()
    assert [f"{c.name}: {c.seen}" for c in checks if not c.ok] == []
    assert len(checks) == 14


def main() -> int:
    parser = argparse.ArgumentParser(description="run the coordination scenario on embedded servers")
    parser.add_argument("--service", choices=[AGENT_ID], default=AGENT_ID)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    console = Console()
    try:
        checks = asyncio.run(coordinate())
    except (OperatingError, TimeoutError) as error:
        console.print(f"the scenario did not come to its end: {error or f'nothing within {PATIENCE_S:g} s'}")
        return 1
    table = Table(title=f"{arguments.service}: coordination with the other agents", show_lines=True)
    for column in ("promise", "kept", "seen"):
        table.add_column(column, overflow="fold")
    for check in checks:
        table.add_row(check.name, "yes" if check.ok else "NO", check.seen)
    console.print(table)
    broken = sum(not c.ok for c in checks)
    console.print(f"{len(checks) - broken} of {len(checks)} promises kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
