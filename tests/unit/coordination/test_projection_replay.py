"""The projection from the journal: the same records that were published when it happened, and none twice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cachewarden.balloting import count
from cachewarden.codec import to_jsonable
from cachewarden.machine import Record
from cachewarden.messages import AuditRecord, ExecutionState, RecordKind, ResolutionOutcome
from cachewarden.peer_input import TaskClaimed
from cachewarden.peer_messages import BallotNews
from cachewarden.protocol import StandingDecision
from cachewarden.settings import CacheOptimizerSettings
from coordination import projection
from coordination.ballot_records import ballot_told, conflict_id_of
from coordination.blackboard_records import record_id, task_record, time_ms
from coordination.conflict_desk import ConflictDesk
from coordination.fleet_memory import FleetMemory
from coordination.projection_replay import replayed
from coordination.task_desk import TaskDesk
from simulation.fake_blackboard import FakeBlackboard
from tests.unit.coordination.test_conflicts import clash, plan
from tests.unit.coordination.test_projection import NOW, execution, perform, proposal, resolution, verdict
from tests.unit.library.test_balloting import DEADLINE, T0, ballot, motion
from tests.unit.policy.builders import fleet, service

SETTINGS = CacheOptimizerSettings(_env_file=None)
FLEET = fleet(service("shop"))


class Pen:
    """Writes records in order."""

    def __init__(self) -> None:
        self.records: list[AuditRecord] = []

    def write(self, kind: RecordKind, subject: str, payload, service="shop", at_ms=NOW) -> None:
        self.records.append(
            AuditRecord(
                seq=len(self.records) + 1,
                at_ms=at_ms,
                kind=kind.value,
                agent="coordinator",
                service=service,
                subject_id=subject,
                payload=to_jsonable(payload),
            )
        )

    def plan(self, of, outcome=ResolutionOutcome.GO) -> None:
        self.write(RecordKind.PROPOSED, of.proposal_id, of, of.service)
        self.write(RecordKind.JUDGED, of.proposal_id, verdict(of), of.service)
        self.write(RecordKind.RESOLVED, of.proposal_id, resolution(of, outcome), of.service)

    def change(self, of, end: RecordKind | None = None, at_ms=NOW) -> None:
        own = {"execution_id": f"e-{of.proposal_id}", "proposal": of, "baseline": {"hit_ratio": 0.9}, "plan": []}
        self.write(RecordKind.CHANGE_INTENDED, of.proposal_id, own, of.service, at_ms)
        if end is not None:
            payload = {"execution_id": own["execution_id"], "reason": "as promised", "hit_ratio_after": 0.94}
            self.write(end, of.proposal_id, payload, of.service, at_ms)


async def rebuilt(pen: Pen, now_ms=NOW, board=None) -> FakeBlackboard:
    board = board or FakeBlackboard()
    board.clock_ms = now_ms
    await perform(board, replayed(pen.records, SETTINGS, now_ms))
    return board


async def test_a_standing_plan_and_its_kept_change_come_back_with_the_ids_they_had():
    of = proposal()
    was = FakeBlackboard()
    done = replace(execution(ExecutionState.KEPT, of), execution_id="e-p-1")
    await perform(was, projection.plan_settled(of, verdict(of), resolution(of), NOW))
    await perform(was, projection.execution_changed(None, done, NOW, verdict(of)))
    pen = Pen()
    pen.plan(of)
    pen.change(of, RecordKind.CHANGE_KEPT)
    board = await rebuilt(pen)
    assert board.knowledge.keys() == was.knowledge.keys()
    [(task_id, _)] = board.tasks.items()
    assert task_id in was.tasks
    ours, theirs = await board.task(task_id), await was.task(task_id)
    assert ours["status"] == "completed"
    assert ours["output_data"]["optimization_response"] == theirs["output_data"]["optimization_response"]
    assert ours["output_data"]["constitutional_compliance"] is True


async def test_rebuilding_what_is_there_already_changes_nothing():
    pen = Pen()
    pen.plan(proposal(), ResolutionOutcome.WAIT)
    pen.change(proposal("p-2", "cart"), RecordKind.CHANGE_ROLLED_BACK)
    board = await rebuilt(pen)
    before = dict(board.knowledge), dict(board.tasks), dict(board.conflicts)
    again = await rebuilt(pen, board=board)
    assert (again.knowledge, again.tasks, again.conflicts) == before


async def test_a_change_under_way_is_a_claimed_task():
    pen = Pen()
    pen.change(proposal())
    [task_id] = (await rebuilt(pen)).tasks
    board = await rebuilt(pen)
    assert (await board.task(task_id))["status"] == "claimed"


async def test_what_is_over_for_a_day_and_plans_that_have_expired_are_left_out():
    pen = Pen()
    pen.plan(proposal())
    pen.change(proposal("p-2", "cart"), RecordKind.CHANGE_KEPT)
    assert replayed(pen.records, SETTINGS, NOW + SETTINGS.blackboard_kept_ms + 1) == ()


async def test_of_several_plans_of_a_service_the_newest_stands():
    pen = Pen()
    pen.plan(proposal("p-1"))
    pen.plan(proposal("p-2"), ResolutionOutcome.WAIT)
    items = await (await rebuilt(pen)).query_knowledge("performance", "cache_optimization_plan")
    assert [(i["content"]["plan_id"], i["content"]["status"]) for i in items] == [("p-2", "waiting")]


async def test_votes_come_back_open_or_with_their_outcome():
    of = proposal()
    pen = Pen()
    given = motion()
    pen.write(RecordKind.BALLOT_OPENED, "p-1", {"motion": given, "proposal": of, "ballots": ()}, at_ms=T0)
    board = await rebuilt(pen, T0 + 1)
    conflict_id = conflict_id_of("p-1")
    assert (await board.conflict(conflict_id))["status"] == "open"
    outcome = count(given, [ballot("ann"), ballot("bob", "reject"), ballot("judge", "reject")], DEADLINE)
    pen.write(RecordKind.BALLOT_CLOSED, "p-1", {"outcome": outcome, "until_ms": 0}, at_ms=T0 + 5)
    board = await rebuilt(pen, T0 + 10)
    settled = await board.conflict(conflict_id)
    assert (settled["status"], settled["resolution_strategy"]) == ("resolved", "majority_vote")
    assert settled["resolution_data"]["resolution"]["decision"] == "reject"
    [item] = await board.query_knowledge("coordination", "conflict_resolution")
    assert [b["agent_id"] for b in item["content"]["ballots"]] == ["ann", "bob", "judge"]
    assert item["content"]["conflict_id"] == conflict_id


async def test_a_motion_on_the_blackboard_says_who_may_vote_how_and_until_when():
    opened = count(motion(), [], T0)
    board = FakeBlackboard()
    await perform(board, ballot_told(BallotNews(outcome=opened, proposal=proposal()), T0))
    [item] = await board.query_knowledge("performance", "cache_optimization_motion")
    content = item["content"]
    assert content["options"] == ["approve", "reject"]
    assert [v["agent_id"] for v in content["voters"]] == ["ann", "bob", "judge"]
    assert (content["algorithm"], content["plan"]["plan_id"]) == ("majority_vote", "p-1")
    conflict = await board.conflict(content["conflict_id"])
    assert conflict["resolution_data"]["reported_by"] == "cache_performance_optimizer"


class Lived:
    """A conflict as it happened: what stood on the blackboard, and what the journal was told."""

    def __init__(self) -> None:
        self.pen, self.effects = Pen(), []

    def note(self, effects, at_ms=NOW) -> None:
        for effect in effects:
            if isinstance(effect, Record):
                self.pen.write(effect.kind, effect.subject_id, effect.payload, effect.service, at_ms)
            else:
                self.effects.append(effect)

    async def board(self) -> FakeBlackboard:
        board = FakeBlackboard()
        board.clock_ms = NOW
        await perform(board, self.effects)
        return board


@pytest.mark.parametrize("outcome", ["open", "won", "moot"])
async def test_conflicts_come_back_as_they_stood(outcome):
    lived, desk = Lived(), ConflictDesk(1_000)
    lived.note(desk.meet([clash(None, plan(priority=5))], NOW))
    if outcome == "won":
        lived.note(desk.decide(NOW + 1_000), NOW + 1_000)
    elif outcome == "moot":
        lived.note(desk.forget([], NOW + 1_000), NOW + 1_000)
    was, board = await lived.board(), await rebuilt(lived.pen, NOW + 1_000)
    assert {i: json.loads(text) for i, text in board.conflicts.items()} == {
        i: json.loads(text) for i, text in was.conflicts.items()
    }
    assert board.knowledge.keys() == was.knowledge.keys()
    again = await rebuilt(lived.pen, NOW + 1_000, board)
    assert again.conflicts == board.conflicts


async def test_a_conflict_that_a_peer_has_reported_is_not_written_for_it():
    lived, desk = Lived(), ConflictDesk(1_000)
    lived.note(desk.hear_objection("theirs", clash(), NOW))
    assert (await rebuilt(lived.pen)).conflicts == {}


async def test_decided_requests_come_back_with_their_answer_or_with_the_end_of_their_change():
    pen, of = Pen(), proposal("p-2")
    decided = {"request": {"service_name": "shop"}, "state": "nothing_to_do", "reason": "r", "will_execute": False}
    pen.write(RecordKind.REQUEST_DECIDED, "d-1", decided)
    going = decided | {"will_execute": True, "proposal_id": "p-2", "state": "executing"}
    pen.write(RecordKind.REQUEST_DECIDED, "d-2", going)
    pen.change(of, RecordKind.CHANGE_KEPT)
    going = going | {"proposal_id": "p-unheard"}
    pen.write(RecordKind.REQUEST_DECIDED, "d-3", going)
    board = await rebuilt(pen)
    found = {n: await board.task(record_id("request", f"d-{n}")) for n in (1, 2, 3)}
    assert {n: task["status"] for n, task in found.items()} == {1: "completed", 2: "completed", 3: "claimed"}
    assert found[1]["output_data"]["coordination_result"]["status"] == "nothing_to_do"
    assert found[2]["output_data"]["coordination_result"]["status"] == "completed"


async def test_tasks_of_peers_come_back_under_their_own_ids_and_cancelled_ones_do_not():
    lived = Lived()
    for name in ("done", "failed", "gone", "running"):
        desk = TaskDesk(FLEET, 10_000, "here")
        asked = task_record(
            task_id=name,
            task_type="cache_optimization",
            input_data={"request": {"service_name": "nowhere" if name == "failed" else "shop"}, "agent_id": "peer"},
            at_ms=NOW,
            priority=4,
            deadline_ms=NOW + 60_000,
        )
        desk.look([asked], [], {}, NOW)
        lived.note(e for e in desk.step(TaskClaimed(ref=f"peer_task:claim:{name}", task_id=name, won=True), NOW))
        if name == "gone":
            lived.note(desk.look([], [], {"gone": None}, NOW))
        elif name == "done":
            memory = FleetMemory(FLEET, SETTINGS)
            desk.begin_cycle(1)
            memory.note_standing(StandingDecision(service="shop", decided_at_ms=NOW, idle_reason="enough"))
            lived.note(desk.end_cycle(1, NOW, memory, NOW))
    board = await rebuilt(lived.pen)
    tasks = {name: json.loads(text) for name, text in board.tasks.items()}
    assert {name: t["status"] for name, t in tasks.items()} == {
        "done": "completed",
        "failed": "failed",
        "running": "claimed",
    }
    assert tasks["failed"]["error_details"]["code"] == "UNKNOWN_SERVICE"
    assert tasks["done"]["output_data"]["coordination_result"]["reason"] == "enough"
    running = tasks["running"]
    assert (running["priority"], running["claimed_by_life"], running["input_data"]["agent_id"]) == (4, "here", "peer")
    assert time_ms(running["deadline"]) == NOW + 60_000


@pytest.mark.parametrize("spoilt", [{}, {"proposal": None}, {"motion": {"options": "none"}}])
async def test_records_that_cannot_be_read_are_passed_over(spoilt):
    pen = Pen()
    for kind in (RecordKind.PROPOSED, RecordKind.JUDGED, RecordKind.RESOLVED, RecordKind.CHANGE_INTENDED):
        pen.write(kind, "p-9", spoilt)
    for kind in (RecordKind.BALLOT_OPENED, RecordKind.BALLOT_CLOSED):
        pen.write(kind, "p-9", spoilt)
    for kind in ("conflict_reported", "conflict_settled", "peer_task_taken", "peer_task_ended"):
        pen.write(RecordKind(kind), "p-9", spoilt | {"plans": [1], "description": 2})
    assert replayed(pen.records, SETTINGS, NOW) == ()
