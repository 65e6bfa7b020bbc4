"""ACGS's own kind of peer against a running coordinator: its tasks are run, its plans respected, its answers accepted."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis import strategies as st

from cachewarden.fleet import Fleet
from cachewarden.messages import AGENT_ID, CONSTITUTIONAL_HASH, ExecutionState, RecordKind
from cachewarden.protocol import Execute
from coordination.redis_blackboard import RedisBlackboard
from tests.acgs_blackboard_peer import AcgsPeer
from tests.contract.real_servers import RealServer
from tests.peer_stage import PeerStage, wanting
from tests.unit.policy.builders import MIB, fleet, knob, service

pytestmark = pytest.mark.integration
H = {"constitutional_hash": CONSTITUTIONAL_HASH}
SAMPLES = ("maxmemory-samples", 5, 10)


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    server = RealServer("redis", tmp_path_factory.mktemp("peers"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def server(running):
    running.admin.flushall()
    return running


@pytest.fixture
def peer(server):
    peer = AcgsPeer(f"{server.url}/1", "operational_agent")
    yield peer
    peer.close()


@pytest.fixture
async def stage(server):
    async with PeerStage(f"{server.url}/1") as stage:
        yield stage


@pytest.fixture
async def patient(server):
    """A stage that waits for an answer for as long as a loaded machine may need to give one."""
    async with PeerStage(f"{server.url}/1", conflict_wait_ms=60_000) as stage:
        yield stage


def asked(service_name: str = "cart", **more) -> dict:
    return {"request": {"service_name": service_name, **more}, "agent_id": "operational_agent", **H}


def ended(peer: AcgsPeer, task_id: str):
    task = peer.get_task(task_id)
    return task if task is not None and task.status in ("completed", "failed") else None


def plan_content(after: str = "3", **more) -> dict:
    change = {"knob": "maxmemory-samples", "before": "5", "after": after}
    return {"plan_id": "their-plan", "affected_services": ["cart"], "changes": [change], "priority": 1, **H, **more}


def conflict_between(peer: AcgsPeer):
    def find():
        return next((c for c in peer.get_open_conflicts() if AGENT_ID in c.involved_agents), None)

    return find


# --- Tasks ------------------------------------------------------------------------------------------------------------


async def test_a_task_of_a_peer_is_claimed_run_and_completed_with_what_was_done(stage, peer):
    stage.plans = wanting(stage, knob(*SAMPLES))
    task_id = peer.create_task(asked())
    task = await stage.until(lambda: ended(peer, task_id))
    assert (task.status, task.agent_id, task.error_details) == ("completed", AGENT_ID, None)
    assert task.output_data["optimization_response"]["optimization_applied"] is True
    assert task.output_data["coordination_result"]["status"] == "completed"
    assert task.output_data["constitutional_compliance"] is True
    assert [p.service for p in stage.executed] == ["cart"]
    [taken] = await stage.journalled(1, RecordKind.PEER_TASK_TAKEN)
    [over] = await stage.journalled(1, RecordKind.PEER_TASK_ENDED)
    assert (taken.subject_id, over.subject_id, over.payload["outcome"]) == (task_id, task_id, "completed")


@pytest.mark.parametrize(("powers", "forced"), [("ask,force", True), ("ask", False)])
async def test_nothing_to_do_is_a_completed_task_with_the_reason(server, peer, powers, forced):
    async with PeerStage(f"{server.url}/1", blackboard_peer_powers=powers) as stage:
        task_id = peer.create_task(asked(force_optimization=True))
        task = await stage.until(lambda: ended(peer, task_id))
        assert task.status == "completed"
        assert task.output_data["coordination_result"] == {"status": "nothing_to_do", "reason": "nothing is worth it"}
        assert (("cart",) in {q.force for q in stage.questions}) is forced


async def test_a_peer_without_powers_holds_nothing_asks_nothing_and_objects_to_nothing(server, peer):
    async with PeerStage(f"{server.url}/1", blackboard_peer_powers="") as stage:
        task_id = peer.create_task(asked())
        peer.report_conflict(["ops", AGENT_ID], "hands off", {"affected_services": ["cart"], **H}, "critical")
        peer.add_knowledge("performance", "cache_optimization_plan", plan_content(status="in_progress"))
        stage.plans = wanting(stage, knob(*SAMPLES))
        await stage.until(lambda: stage.executed)
        assert (stage.held, peer.get_task(task_id).status) == ([], "pending")


async def test_the_plan_stands_on_the_blackboard_before_its_change_begins(stage, peer):
    seen = []

    def told(message):
        if isinstance(message, Execute):
            items = peer.query_knowledge("performance", "cache_optimization_plan")
            seen.extend(i.content["status"] for i in items if i.content["plan_id"] == message.proposal.proposal_id)

    stage.overhear = told
    stage.plans = wanting(stage, knob(*SAMPLES))
    await stage.until(lambda: stage.executed)
    assert seen == ["approved"]


async def test_levels_that_are_reached_already_need_no_change(stage, peer):
    stage.plans = wanting(stage, knob(*SAMPLES), name="pages")
    task_id = peer.create_task(asked(target_metrics={"cache_hit_rate": 0.5}))
    task = await stage.until(lambda: ended(peer, task_id))
    assert task.output_data["coordination_result"]["status"] == "targets_met"


@pytest.mark.parametrize(
    ("input_data", "requirements", "code", "words"),
    [
        (asked("no-such"), {}, "UNKNOWN_SERVICE", "`cart`, `pages`"),
        (asked(optimization_type="magic"), {}, "VALIDATION_FAILED", "optimization_type"),
        (asked(typing_error=1), {}, "VALIDATION_FAILED", "typing_error"),
        ({"request": {}, **H}, {}, "VALIDATION_FAILED", "service_name"),
        ({}, {}, "VALIDATION_FAILED", "input_data.request"),
        (asked() | {"constitutional_hash": "0" * 16}, {}, "CONSTITUTIONAL_VIOLATION", "hash"),
        (asked(constitutional_hash="0" * 16), {}, "CONSTITUTIONAL_VIOLATION", "hash"),
        (asked(), {"gpu": 1}, "VALIDATION_FAILED", "gpu"),
        (asked(), {"capabilities": ["legal_analysis"]}, "VALIDATION_FAILED", "legal_analysis"),
    ],
)
async def test_a_task_that_cannot_be_run_fails_with_the_reason(stage, peer, input_data, requirements, code, words):
    task_id = peer.create_task(input_data, requirements=requirements)
    task = await stage.until(lambda: ended(peer, task_id))
    assert (task.status, task.error_details["code"]) == ("failed", code)
    assert words in task.error_details["error"]
    # ACGS's workers look for the error in the output.
    assert task.output_data["error"] == task.error_details


async def test_a_task_for_another_agent_or_of_another_kind_is_left_alone(stage, peer):
    other = peer.create_task(asked(), requirements={"agent_id": "somebody_else"})
    ethics = peer.create_task({}, task_type="ethics_review")
    ours = peer.create_task(asked(), requirements={"agent_id": AGENT_ID, "capabilities": ["memory_optimization"]})
    await stage.until(lambda: ended(peer, ours))
    assert {peer.get_task(other).status, peer.get_task(ethics).status} == {"pending"}


async def test_a_task_that_is_too_late_fails_and_says_so(stage, peer):
    task_id = peer.create_task(asked(), deadline_in_s=-1)
    task = await stage.until(lambda: ended(peer, task_id))
    assert (task.status, task.error_details["code"]) == ("failed", "DEADLINE_PASSED")


async def test_a_change_that_outlives_the_deadline_of_its_task_goes_on(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    task_id = peer.create_task(asked(), deadline_in_s=4)
    task = await stage.until(lambda: ended(peer, task_id))
    assert task.error_details["code"] == "DEADLINE_PASSED"
    assert stage.executed[0].proposal_id in task.error_details["error"]
    assert stage.cancelled == []


async def test_a_cache_that_cannot_be_seen_is_tried_as_often_as_the_task_permits(stage, peer):
    stage.seen = lambda name: None if name == "cart" else {}
    task_id = peer.create_task(asked(), max_retries=1)
    task = await stage.until(lambda: ended(peer, task_id))
    assert (task.error_details["code"], task.error_details["attempts"], task.retries) == ("NOT_OBSERVED", 2, 2)
    assert "the script hides it" in task.error_details["error"]


async def test_a_change_that_failed_fails_its_task(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), ExecutionState.ABANDONED
    task_id = peer.create_task(asked())
    task = await stage.until(lambda: ended(peer, task_id))
    assert (task.status, task.error_details["code"]) == ("failed", "CHANGE_ABANDONED")


async def test_a_task_that_its_requester_takes_away_is_forgotten(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    gone, failed = peer.create_task(asked()), peer.create_task(asked("pages"))
    stage.seen = lambda name: {}
    await stage.until(lambda: stage.executed)
    await stage.until(lambda: {peer.get_task(t).status for t in (gone, failed)} & {"claimed"})
    peer.redis.delete(f"bb:tasks:{gone}")
    await stage.until(lambda: stage.state.peers["blackboard"].counts.get("tasks_cancelled"))
    stage.report(stage.executed[0], ExecutionState.KEPT)
    await stage.until(lambda: stage.state.peers["blackboard"].counts["tasks_in_work"] == 0)
    assert peer.get_task(gone) is None


async def test_a_coordinator_that_starts_anew_ends_what_its_earlier_life_has_claimed(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    task_id = peer.create_task(asked())
    await stage.until(lambda: stage.executed)
    await stage.until(lambda: peer.get_task(task_id).status == "claimed")
    await stage.end_life()
    stage.executed.clear()
    stage.ending = ExecutionState.KEPT
    stage.begin_life()
    task = await stage.until(lambda: ended(peer, task_id))
    assert task.status == "completed"
    assert len(await stage.records(RecordKind.PEER_TASK_ENDED)) == 1


async def test_two_deployments_on_one_journal_leave_each_others_tasks_alone(server, stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    task_id = peer.create_task(asked())
    await stage.until(lambda: stage.executed)
    async with PeerStage(f"{server.url}/1") as other:
        await other.until(lambda: other.state.peers and not other.state.intents)
        await other.until(lambda: other.state.cycle >= 3)
        assert other.state.peers["blackboard"].counts["tasks_in_work"] == 0
        assert stage.state.peers["blackboard"].counts["tasks_in_work"] == 1
        stage.report(stage.executed[0], ExecutionState.KEPT)
        task = await stage.until(lambda: ended(peer, task_id))
        assert task.status == "completed"
        assert len(await stage.records(RecordKind.PEER_TASK_TAKEN)) == 1


async def test_of_two_coordinators_and_a_peer_exactly_one_takes_a_task(server, stage, peer):
    async with PeerStage(f"{server.url}/1") as other:
        ids = [peer.create_task(asked()) for _ in range(4)]
        taken = [peer.claim_task(ids[0])]
        await stage.until(lambda: all(ended(peer, i) for i in ids[1:]))
        claims = await stage.records(RecordKind.PEER_TASK_TAKEN)
        assert sorted(r.subject_id for r in claims) == sorted(i for i in ids if not (i == ids[0] and taken[0]))
        assert other.state.peers["blackboard"].healthy


async def test_a_task_that_lua_has_claimed_and_spoilt_harms_nobody(stage, peer):
    spoilt = peer.create_task(asked())
    peer.claim_task_atomic(spoilt)
    good = peer.create_task(asked("pages"))
    await stage.until(lambda: ended(peer, good))
    assert json.loads(peer.redis.hget(f"bb:tasks:{spoilt}", "data"))["agent_id"] in ("operational_agent", AGENT_ID)


# --- Plans and conflicts ----------------------------------------------------------------------------------------------


async def test_a_plan_of_a_peer_holds_ours_back_until_the_coordinator_of_acgs_has_answered(patient, peer):
    peer.add_knowledge("performance", "cache_optimization_plan", plan_content(), expires_in_s=600)
    await patient.until(lambda: patient.held)
    patient.plans = wanting(patient, knob(*SAMPLES))
    conflict = await patient.until(conflict_between(peer))
    assert conflict.conflict_type == "resource_conflict"
    assert conflict.involved_agents == [AGENT_ID, "operational_agent"]
    plans = {p["plan_id"]: p["priority"] for p in conflict.resolution_data["plans"]}
    assert plans["their-plan"] == 1
    peer.coordinate()
    await patient.until(lambda: patient.state.peers["blackboard"].counts.get("conflicts_lost"))
    [settled] = await patient.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert (settled.payload["outcome"], settled.payload["winner"]) == ("lost", "their-plan")
    assert "highest priority wins" in settled.payload["reasoning"]
    told = await patient.until(lambda: peer.query_knowledge("coordination", "conflict_resolution"))
    assert told[0].content["winner"] == "their-plan"
    assert patient.executed == []


async def test_nobody_answers__the_smaller_priority_number_goes_first_and_the_conflict_is_closed(stage, peer):
    content = plan_content() | {"priority": 5}
    peer.add_knowledge("performance", "cache_optimization_plan", content, expires_in_s=600)
    await stage.until(lambda: stage.held)
    stage.plans = wanting(stage, knob(*SAMPLES))
    conflict = await stage.until(conflict_between(peer))
    assert stage.executed == []
    await stage.until(lambda: stage.executed)
    closed = await stage.until(lambda: (c := peer.get_conflict(conflict.id)) and c.status == "resolved" and c)
    assert closed.resolution_data["outcome"] == "won"
    assert "nobody answered in time" in closed.resolution_data["reasoning"]


@pytest.mark.parametrize(
    ("winner", "outcome"), [("ours", "conflicts_won"), ("their-plan", "conflicts_lost"), (None, "conflicts_lost")]
)
async def test_a_session_of_the_consensus_engine_is_an_answer(server, patient, peer, winner, outcome):
    content = plan_content() | {"priority": 2}
    peer.add_knowledge("performance", "optimization_activity", content, expires_in_s=600)
    await patient.until(lambda: patient.held)
    patient.plans = wanting(patient, knob(*SAMPLES))
    conflict = await patient.until(conflict_between(peer))
    ours = conflict.resolution_data["plans"][0]["plan_id"]
    option = None if winner is None else {"option_id": ours if winner == "ours" else winner}
    engine = AcgsPeer(f"{server.url}/1", "consensus_engine")
    engine.add_knowledge(
        "coordination",
        "consensus_session_event",
        {
            "session_id": "s",
            "conflict_id": conflict.id,
            "event_type": "completed",
            "session_status": "completed" if option else "failed",
            "event_data": {"result": {"success": option is not None, "winning_option": option}},
        },
        priority=2,
    )
    await patient.until(lambda: patient.state.peers["blackboard"].counts.get(outcome))
    [settled] = await patient.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert "consensus engine" in settled.payload["decided_by"]
    engine.close()


async def test_an_answer_with_another_hash_does_not_count(stage, peer):
    peer.add_knowledge("performance", "cache_optimization_plan", plan_content(), expires_in_s=600)
    await stage.until(lambda: stage.held)
    stage.plans = wanting(stage, knob(*SAMPLES))
    conflict = await stage.until(conflict_between(peer))
    data = {"constitutional_hash": "0" * 16, "winner": conflict.resolution_data["plans"][0]["plan_id"]}
    peer.resolve_conflict(conflict.id, "coordinator_override", data)
    await stage.until(lambda: stage.state.peers["blackboard"].counts.get("conflicts_lost"))
    assert stage.state.peers["blackboard"].violations == 1
    assert stage.executed == []


async def test_a_plan_that_does_not_say_what_it_changes_holds_the_whole_cache(stage, peer):
    content = {"affected_services": ["cart"], "status": "in_progress", **H}
    item_id = peer.add_knowledge("performance", "optimization_activity", content, expires_in_s=600)
    await stage.until(lambda: stage.held)
    stage.plans = wanting(stage, knob(*SAMPLES))
    await stage.until(lambda: stage.state.peers["blackboard"].counts.get("conflicts_lost"))
    assert stage.executed == []
    # Once it is over, nothing stands in the way any more.
    peer.add_knowledge("performance", "optimization_activity", content | {"status": "completed"}, item_id=item_id)
    await stage.until(lambda: stage.executed)


async def test_growth_that_a_peer_announces_counts_against_the_budget(server, peer):
    small: Fleet = fleet(service("cart"), service("pages"), total_memory_bytes=40 * MIB)
    async with PeerStage(f"{server.url}/1", small) as stage:
        content = {"affected_services": ["pages"], "changes": [], "memory_delta_bytes": 6 * MIB, "priority": 1, **H}
        peer.add_knowledge("performance", "cache_optimization_plan", content, expires_in_s=600)
        await stage.until(lambda: stage.held)
        stage.plans = wanting(stage, knob("maxmemory", 16 * MIB, 20 * MIB), kinds=("memory",))
        conflict = await stage.until(conflict_between(peer))
        assert conflict.resolution_data["kind"] == "memory_budget"
        await stage.until(lambda: stage.state.peers["blackboard"].counts.get("conflicts_lost"))
        assert stage.executed == []


async def test_a_plan_on_a_cache_that_we_are_measuring_is_told_and_an_answer_takes_our_change_back(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    await stage.until(lambda: stage.executed)
    content = plan_content() | {"changes": [{"knob": "lfu-log-factor", "before": "10", "after": "12"}]}
    peer.add_knowledge("performance", "cache_optimization_plan", content, expires_in_s=600)
    conflict = await stage.until(conflict_between(peer))
    assert conflict.resolution_data["kind"] == "observation_window"
    peer.resolve_conflict(conflict.id, "coordinator_override", {"winner": "their-plan", **H})
    [order] = await stage.until(lambda: stage.cancelled)
    assert (order.service, order.proposal_id) == ("cart", stage.executed[0].proposal_id)
    assert "operational_agent" in order.reason


async def test_a_conflict_that_a_peer_reports_holds_our_plan_back_until_it_is_answered(stage, peer):
    data = {"affected_services": ["cart"], **H}
    conflict_id = peer.report_conflict(["operational_agent", AGENT_ID], "leave it", data, severity="critical")
    await stage.until(lambda: stage.held)
    stage.plans = wanting(stage, knob(*SAMPLES))
    await stage.until(lambda: stage.state.peers["blackboard"].counts.get("conflicts_reported"))
    assert stage.executed == []
    peer.resolve_conflict(conflict_id, "coordinator_override", {"winner": AGENT_ID, **H})
    await stage.until(lambda: stage.executed)
    [settled] = await stage.journalled(1, RecordKind.CONFLICT_SETTLED)
    assert (settled.subject_id, settled.payload["outcome"]) == (conflict_id, "won")


async def test_a_conflict_that_names_a_change_under_way_and_is_answered_against_us_takes_it_back(stage, peer):
    stage.plans, stage.ending = wanting(stage, knob(*SAMPLES)), None
    await stage.until(lambda: stage.executed)
    words = f"`{stage.executed[0].proposal_id}` harms us"
    conflict_id = peer.report_conflict(["operational_agent", AGENT_ID], words)
    await stage.until(lambda: stage.state.peers["blackboard"].counts.get("conflicts_reported"))
    peer.resolve_conflict(conflict_id, "coordinator_override", {"winner": "operational_agent", **H})
    assert await stage.until(lambda: stage.cancelled)


async def test_a_plan_with_another_hash_is_refused_counted_and_in_the_journal(stage, peer):
    content = plan_content() | {"constitutional_hash": "0" * 16}
    peer.add_knowledge("performance", "cache_optimization_plan", content, expires_in_s=600)
    await stage.until(lambda: stage.state.peers.get("blackboard") and stage.state.peers["blackboard"].violations)
    stage.plans = wanting(stage, knob(*SAMPLES))
    await stage.until(lambda: stage.executed)
    [refused] = await stage.records(RecordKind.REQUEST_REFUSED)
    assert (refused.payload["where"], refused.payload["caller"]) == ("blackboard", "operational_agent")
    assert stage.state.peers["blackboard"].violations == 1


async def test_ballots_of_peers_reach_the_consensus(stage, peer):
    content = {"subject": "p-1", "choice": "approve", "confidence": 0.9, "reason": "good", **H}
    peer.add_knowledge("performance", "cache_optimization_ballot", content, expires_in_s=60)
    peer.add_knowledge("performance", "cache_optimization_ballot", {"subject": "p-1"}, expires_in_s=60)
    await stage.until(lambda: stage.ballots)
    [ballot] = stage.ballots[-1].ballots
    assert (ballot.agent_id, ballot.subject, ballot.choice, ballot.confidence) == (
        "operational_agent",
        "p-1",
        "approve",
        0.9,
    )
    await stage.until(lambda: stage.state.peers["blackboard"].bad_records == 1)


# --- Faults -----------------------------------------------------------------------------------------------------------


WORDS = st.sampled_from(["cart", "pages", "maxmemory", "user:*", "in_progress", "approved", AGENT_ID, "5", "0" * 16])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | WORDS, inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "affected_keys", "affected_services", "changes", "choice", "confidence", "conflict_id", "constitutional_hash",
    "event_data", "event_type", "memory_delta_bytes", "plan_id", "priority", "resolution", "service", "status",
    "subject", "until", "request", "agent_id", "plans", "winner",
]  # fmt: skip
KINDS = ["cache_optimization_plan", "optimization_activity", "cache_optimization_ballot", "conflict_resolution"]


async def test_a_thousand_generated_plans_tasks_and_conflicts_stop_nothing(stage, peer):
    written = 0

    @hypothesis.settings(max_examples=1_000, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(
        st.sampled_from([*KINDS, "task", "conflict"]), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5)
    )
    def write(kind, content):
        nonlocal written
        written += 1
        if kind == "task":
            task = json.loads(peer.redis.hget(f"bb:tasks:{template}", "data")) | {
                "id": f"g{written}",
                "status": "pending",
            }
            task |= {"input_data": content, "requirements": {}, "priority": 5}
            peer.redis.hset(f"bb:tasks:g{written}", "data", json.dumps(task))
            peer.redis.zadd("bb:tasks:pending:priority", {f"g{written}": 5})
        elif kind == "conflict":
            peer.report_conflict(["peer", AGENT_ID], "generated", {k: v for k, v in content.items() if v == v})
        else:
            space = "coordination" if kind == "conflict_resolution" else "performance"
            peer.add_knowledge(space, kind, content, priority=5, expires_in_s=8)

    template = peer.create_task({}, task_type="template")
    await asyncio.to_thread(write)
    assert written >= 1_000
    good = peer.create_task(asked("pages"))
    task = await stage.until(lambda: ended(peer, good))
    assert task.status == "completed"
    health = stage.state.peers["blackboard"]
    assert health.healthy
    assert health.bad_records > 0
    assert health.violations > 0
    assert health.counts["tasks_in_work"] <= 20


async def test_ten_thousand_stale_ids_ahead_of_a_plan_do_not_hide_it(stage, peer):
    peer.redis.zadd("bb:performance:priority", {f"dead-{n:05}": 1 for n in range(10_000)})
    content = plan_content() | {"priority": 5}
    peer.add_knowledge("performance", "cache_optimization_plan", content, priority=5, expires_in_s=600)
    assert await stage.until(lambda: stage.held)


async def test_a_blackboard_that_restarts_and_has_lost_everything_is_looked_at_again(tmp_path):
    server = RealServer("redis", tmp_path)
    server.start()
    async with PeerStage(f"{server.url}/1") as stage:
        peer = AcgsPeer(f"{server.url}/1", "operational_agent")
        peer.add_knowledge("performance", "cache_optimization_plan", plan_content(), expires_in_s=600)
        await stage.until(lambda: stage.held)
        server.kill()
        await stage.until(lambda: not stage.state.peers["blackboard"].healthy)
        # What was known holds on: a plan does not end because nobody can read it.
        assert stage.held
        server.start()
        await stage.until(lambda: stage.state.peers["blackboard"].healthy)
        await stage.until(lambda: not stage.held)
        task_id = peer.create_task(asked())
        await stage.until(lambda: ended(peer, task_id))
        peer.close()
    server.kill()


async def test_on_a_full_blackboard_nothing_of_ours_begins_and_once_there_is_room_it_does(server, peer, tmp_path):
    journal = RealServer("redis", tmp_path)
    journal.start()
    async with PeerStage(f"{server.url}/1", journal_url=journal.url) as stage:
        # Read once, whole: until then everything counts as held.
        await stage.until(lambda: stage.state.peers and not stage.state.intents)
        server.admin.config_set("maxmemory-policy", "noeviction")
        server.admin.config_set("maxmemory", "1")
        try:
            stage.plans = wanting(stage, knob(*SAMPLES))
            held = [
                r.payload["reason"]
                for r in await stage.journalled(2, RecordKind.RESOLVED)
                if r.payload["outcome"] == "wait"
            ]
            assert held == ["held back: it could not be announced on the blackboard"]
            assert stage.executed == []
        finally:
            server.admin.config_set("maxmemory", "0")
        await stage.until(lambda: stage.executed)
    journal.kill()


async def test_acgs_reads_all_that_we_write_and_sees_us_alive_after_hours_of_its_timeout_checks(stage, peer):
    stage.plans = wanting(stage, knob(*SAMPLES))
    peer.add_knowledge("performance", "cache_optimization_plan", plan_content() | {"priority": 5}, expires_in_s=600)
    task_id = peer.create_task(asked())
    await stage.until(lambda: ended(peer, task_id))
    assert peer.get_available_tasks() is not None
    assert peer.get_open_conflicts() is not None
    for space in ("performance", "coordination", "compliance", "governance"):
        peer.query_knowledge(space)
    assert peer.get_pending_tasks() == []
    assert task_id in {t.id for t in peer.get_agent_tasks(AGENT_ID)}
    assert peer.get_metrics()["agents"]["active"] == 1
    assert peer.check_agent_timeouts() == []


async def test_a_peer_whose_timeouts_are_checked_for_hours_sees_us_alive_at_every_beat_and_gone_after_the_last(server):
    board = RedisBlackboard(f"{server.url}/1", timeout_s=2.0)
    at = [datetime.now(UTC)]
    peer = AcgsPeer(f"{server.url}/1", "timeouts", now=lambda: at[0])
    await board.register_agent(AGENT_ID, "performance_optimization", [], int(at[0].timestamp() * 1000))
    for _ in range(4 * 120):
        at[0] += timedelta(seconds=30)
        await board.heartbeat(AGENT_ID, "performance_optimization", [], int(at[0].timestamp() * 1000), life="one")
        assert peer.check_agent_timeouts() == []
        assert peer.redis.sismember("bb:agents:active", AGENT_ID)
    at[0] += timedelta(minutes=6)
    assert peer.check_agent_timeouts() == [AGENT_ID]
    # One beat brings back whoever was thrown out.
    await board.heartbeat(AGENT_ID, "performance_optimization", [], int(at[0].timestamp() * 1000))
    assert (peer.check_agent_timeouts(), peer.redis.scard("bb:agents:active")) == ([], 1)
    await board.close()
    peer.close()
