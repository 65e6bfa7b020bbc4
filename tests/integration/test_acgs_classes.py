"""ACGS's own blackboard class as a peer of a running coordinator: it reads what we write, and is read and answered.

ACGS's repository names no licence, so none of its code is kept here. `TEST_ACGS_CHECKOUT` names a checkout of it, from which
`services/shared/blackboard/blackboard_service.py` is loaded; without it these tests are skipped, and the same is asked
of a peer that was written from the description of the wire (`tests/acgs_blackboard_peer.py`).
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, ExecutionState, RecordKind
from coordination.redis_blackboard import RedisBlackboard
from tests.contract.real_servers import RealServer
from tests.peer_stage import PeerStage, wanting
from tests.unit.policy.builders import knob

CHECKOUT = os.environ.get("TEST_ACGS_CHECKOUT", "")
SOURCE = Path(CHECKOUT) / "services" / "shared" / "blackboard" / "blackboard_service.py"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not (CHECKOUT and SOURCE.is_file()), reason="TEST_ACGS_CHECKOUT names no checkout of ACGS"),
]
H = {"constitutional_hash": CONSTITUTIONAL_HASH}
SAMPLES = ("maxmemory-samples", 5, 10)
SPACES = ("governance", "compliance", "performance", "coordination")


@pytest.fixture(scope="module")
def acgs():
    spec = importlib.util.spec_from_file_location("acgs_blackboard_service", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def server(tmp_path):
    server = RealServer("redis", tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
async def peer(acgs, server):
    service = acgs.BlackboardService(redis_url=f"{server.url}/1")
    await service.initialize()
    await service.register_agent("operational_agent", "worker", [])
    yield service
    await service.redis_client.aclose()


@pytest.fixture
async def stage(server, peer):
    async with PeerStage(f"{server.url}/1") as stage:
        yield stage


@pytest.fixture
async def patient(server, peer):
    """A stage that waits for an answer for as long as a loaded machine may need to give one."""
    async with PeerStage(f"{server.url}/1", conflict_wait_ms=60_000) as stage:
        yield stage


@pytest.fixture
def consensus(monkeypatch):
    """ACGS's consensus engine, which works in its own process and is given the blackboard class."""
    monkeypatch.syspath_prepend(CHECKOUT)
    module = pytest.importorskip(
        "services.core.consensus_engine.consensus_mechanisms", reason="the checkout has no consensus engine that loads"
    )
    yield module
    for name in [n for n in sys.modules if n == "services" or n.startswith("services.")]:
        del sys.modules[name]


async def until(found):
    """Return the first thing that an asynchronous question finds; raises TimeoutError."""
    async with asyncio.timeout(30):
        while not (result := await found()):
            await asyncio.sleep(0.05)
        return result


def plan(acgs, **more):
    change = {"knob": "maxmemory-samples", "before": "5", "after": "3"}
    content = {"plan_id": "theirs", "affected_services": ["cart"], "changes": [change], **H, **more}
    return acgs.KnowledgeItem(
        space="performance",
        agent_id="operational_agent",
        knowledge_type="cache_optimization_plan",
        content=content,
        priority=2,
        tags={"cache", "performance"},
    )


async def test_a_task_of_the_class_is_claimed_run_and_answered(acgs, stage, peer):
    stage.plans = wanting(stage, knob(*SAMPLES))
    request = {"request": {"service_name": "cart"}, "agent_id": "operational_agent", **H}
    task = acgs.TaskDefinition(task_type="cache_optimization", requirements={}, input_data=request)
    await peer.create_task(task)

    async def ended():
        found = await peer.get_task(task.id)
        return found if found.status in ("completed", "failed") else None

    found = await until(ended)
    assert (found.status, found.agent_id) == ("completed", AGENT_ID)
    assert found.output_data["optimization_response"]["optimization_applied"] is True
    assert task.id in {t.id for t in await peer.get_agent_tasks(AGENT_ID)}


async def test_its_plan_holds_ours_and_its_answer_lets_ours_go(acgs, patient, peer):
    await peer.add_knowledge(plan(acgs))
    await patient.until(lambda: patient.held)
    patient.plans = wanting(patient, knob(*SAMPLES))

    async def conflict():
        return next((c for c in await peer.get_open_conflicts() if AGENT_ID in c.involved_agents), None)

    found = await until(conflict)
    assert patient.executed == []
    data = {"winner": AGENT_ID, **H}
    assert await peer.resolve_conflict(found.id, "coordinator_override", data)
    await patient.until(lambda: patient.executed)
    [settled] = await patient.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert (settled.subject_id, settled.payload["outcome"]) == (found.id, "won")


async def test_its_objection_takes_effect(acgs, stage, peer):
    objection = acgs.ConflictItem(
        conflict_type="resource_conflict",
        involved_agents=[AGENT_ID, "operational_agent"],
        involved_tasks=[],
        description="hands off",
        severity="critical",
        resolution_data={"affected_services": ["cart"], **H},
    )
    await peer.report_conflict(objection)
    await stage.until(lambda: stage.held)
    stage.plans = wanting(stage, knob(*SAMPLES))
    [told] = await stage.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert (told.subject_id, told.payload["outcome"]) == (objection.id, "lost")
    assert stage.executed == []


async def test_it_reads_everything_that_we_write(acgs, stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), ExecutionState.KEPT
    await peer.add_knowledge(plan(acgs, priority=5))
    await stage.until(lambda: stage.executed)

    async def finished():
        return [t for t in await peer.get_agent_tasks(AGENT_ID) if t.status == "completed"]

    assert await until(finished)
    kinds = {i.knowledge_type for space in SPACES for i in await peer.query_knowledge(space) if i.agent_id == AGENT_ID}
    assert {"cache_optimization_plan", "optimization_activity", "conflict_resolution"} <= kinds
    assert await peer.query_knowledge("performance", tags={"cache"}, agent_id=AGENT_ID)
    assert await peer.get_available_tasks() == await peer.get_pending_tasks() == []
    assert [c for c in await peer.get_open_conflicts() if AGENT_ID in c.involved_agents] == []
    assert (await peer.get_metrics())["agents"]["active"] == 2


@pytest.mark.parametrize(
    ("votes", "outcome"),
    [
        ((AGENT_ID, AGENT_ID, "operational_agent"), "won"),
        (("operational_agent",), "lost"),
        ((AGENT_ID, "other"), "lost"),
    ],
    ids=["ours", "theirs", "a tie"],
)
async def test_a_session_of_its_consensus_engine_decides_a_conflict_and_one_without_a_majority_does_not(
    acgs, consensus, patient, peer, votes, outcome
):
    await peer.add_knowledge(plan(acgs, priority=5 if outcome == "lost" else 1))
    await patient.until(lambda: patient.held)
    patient.plans = wanting(patient, knob(*SAMPLES))

    async def conflict():
        return next((c for c in await peer.get_open_conflicts() if AGENT_ID in c.involved_agents), None)

    found = await until(conflict)
    engine = consensus.ConsensusEngine(peer)
    options = {
        name: consensus.VoteOption(option_name=name, description="goes first", proposed_by=name)
        for name in (AGENT_ID, "operational_agent", "other")
    }
    voters = [f"voter-{n}" for n in range(len(votes))]
    session = await engine.initiate_consensus(
        found, consensus.ConsensusAlgorithm.MAJORITY_VOTE, voters, list(options.values())
    )
    for voter, name in zip(voters, votes, strict=True):
        assert await engine.cast_vote(session, voter, "agent", options[name].option_id, 0.9)
    await engine.execute_consensus(session)
    [settled] = await patient.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert (settled.subject_id, settled.payload["outcome"]) == (found.id, outcome)
    assert "consensus engine" in settled.payload["decided_by"]


async def test_it_sees_us_alive_after_hours_of_its_timeout_checks(acgs, server, peer, monkeypatch):
    board = RedisBlackboard(f"{server.url}/1", timeout_s=5.0)
    hours = 0.0

    class Later(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(hours=hours)

    monkeypatch.setattr(acgs, "datetime", Later)
    await board.register_agent(AGENT_ID, "performance_optimization", [], int(datetime.now(UTC).timestamp() * 1000))
    for beat in range(600):
        hours = beat / 120
        at_ms = int((datetime.now(UTC) + timedelta(hours=hours)).timestamp() * 1000)
        await board.heartbeat(AGENT_ID, "performance_optimization", [], at_ms, life="one")
        assert AGENT_ID not in await peer.check_agent_timeouts()
    assert await peer.get_active_agents() == {AGENT_ID}
    await board.close()


async def test_of_many_claimers_of_the_class_and_ours_exactly_one_wins(acgs, server, peer):
    board = RedisBlackboard(f"{server.url}/1", timeout_s=5.0)
    for _ in range(10):
        task = acgs.TaskDefinition(task_type="cache_optimization", requirements={}, input_data={})
        await peer.create_task(task)
        theirs = [peer.claim_task(task.id, f"agent-{n}") for n in range(10)]
        ours = [board.claim_task(task.id, AGENT_ID, 1, life=f"life-{n}") for n in range(10)]
        assert sum(await asyncio.gather(*theirs, *ours)) == 1
    await board.close()
