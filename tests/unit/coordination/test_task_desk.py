"""Tasks of peers: claimed within bounds, run with a cycle, ended once, taken up again after a crash."""

from __future__ import annotations

from dataclasses import replace

from cachewarden.machine import EffectFailed, Record
from cachewarden.messages import (
    AGENT_ID,
    CONSTITUTIONAL_HASH,
    Execution,
    ExecutionState,
    RecordKind,
    Resolution,
    ResolutionOutcome,
)
from cachewarden.peer_input import ClaimTask, FinishTask, TaskClaimed, TaskFinished
from cachewarden.protocol import StandingDecision
from coordination import blackboard_records as records
from coordination.fleet_memory import FleetMemory
from coordination.task_desk import TaskDesk
from tests.unit.agents.settlements import verdict
from tests.unit.policy.builders import SETTINGS, fleet, proposal, service

NOW = 1_800_000_000_000
PACE_MS = 10_000
HOUR_MS = 3_600_000


def task(name="t", service_name="cart", *, by="peer", force=False, **more):
    fields = {
        "task_id": name,
        "task_type": "cache_optimization",
        "input_data": {
            "request": {"service_name": service_name, "force_optimization": force},
            "agent_id": by,
            "constitutional_hash": CONSTITUTIONAL_HASH,
        },
        "at_ms": NOW,
    }
    changes = {
        key: more.pop(key) for key in ("status", "agent_id", "claimed_at", "claimed_by_life", "retries") if key in more
    }
    return records.task_record(**(fields | more)) | changes


class Bench:
    """A desk, the memory of a coordinator, and one cycle after the other."""

    def __init__(self):
        self.fleet = fleet(service("cart"), service("pages"))
        self.memory = FleetMemory(self.fleet, SETTINGS)
        self.desk = TaskDesk(self.fleet, PACE_MS, "here")
        self.now = NOW
        self.cycle = 0

    def offer(self, *tasks):
        return self.desk.look(tasks, (), {}, self.now)

    def take(self, *tasks):
        """Offer tasks and let the blackboard grant each claim."""
        effects = [e for e in self.offer(*tasks) if isinstance(e, ClaimTask)]
        return [
            f for e in effects for f in self.desk.step(TaskClaimed(ref=e.ref, task_id=e.task_id, won=True), self.now)
        ]

    def run(self, outcome=ResolutionOutcome.WAIT, idle="nothing is worth it", given=None, denied=()):
        """Run a cycle that decides on the cart."""
        self.cycle += 1
        forced = self.desk.begin_cycle(self.cycle)
        standing = StandingDecision(service="cart", decided_at_ms=self.now, idle_reason=idle)
        if given is not None:
            resolution = Resolution(proposal_id=given.proposal_id, service="cart", outcome=outcome, reason="why")
            standing = replace(
                standing, proposal=given, verdict=verdict(given, *denied), resolution=resolution, idle_reason=None
            )
        self.memory.note_standing(standing)
        if given is not None and outcome is ResolutionOutcome.GO:
            self.memory.note_handed_over(given)
        return forced, self.end()

    def end(self):
        return list(self.desk.end_cycle(self.cycle, self.now, self.memory, self.now))


def finished(effects):
    return [e for e in effects if isinstance(e, FinishTask)]


def kinds(effects):
    return [e.kind for e in effects if isinstance(e, Record)]


def test_a_task_is_claimed_recorded_run_and_completed():
    bench = Bench()
    [claim] = bench.offer(task())
    assert isinstance(claim, ClaimTask)
    effects = bench.desk.step(TaskClaimed(ref=claim.ref, task_id="t", won=True), NOW)
    assert kinds(effects) == [RecordKind.PEER_TASK_TAKEN]
    assert bench.desk.take_hurry(NOW)
    _, effects = bench.run()
    [done] = finished(effects)
    assert (done.error, done.output["coordination_result"]["status"]) == (None, "nothing_to_do")
    assert kinds(effects) == [RecordKind.PEER_TASK_ENDED]
    bench.desk.step(TaskFinished(ref=done.ref, task_id="t", finished=True), NOW)
    assert bench.desk.in_work == 0


def test_a_claim_that_somebody_else_won_is_forgotten():
    bench = Bench()
    [claim] = bench.offer(task())
    assert bench.desk.step(TaskClaimed(ref=claim.ref, task_id="t", won=False), NOW) == ()
    assert bench.desk.in_work == 0


def test_a_flood_is_claimed_piece_by_piece_the_most_urgent_and_oldest_first():
    bench = Bench()
    flood = [task(f"t{n:02}", priority=1 + n % 3) for n in range(60)]
    assert [e.task_id for e in bench.offer(*flood)] == ["t00", "t03", "t06", "t09", "t12"]
    for _ in range(10):
        bench.offer(*flood)
    assert bench.desk.in_work == 20


def test_a_flood_brings_cycles_forward_no_faster_than_its_pace():
    bench = Bench()
    bench.take(task("a"))
    assert bench.desk.take_hurry(NOW)
    bench.take(task("b"))
    assert not bench.desk.take_hurry(NOW + PACE_MS - 1)
    assert bench.desk.take_hurry(NOW + PACE_MS)
    assert not bench.desk.take_hurry(NOW + 2 * PACE_MS)


def test_only_who_asks_for_it_skips_cool_down_and_minimum_gain():
    bench = Bench()
    bench.take(task("a"))
    assert bench.run()[0] == ()
    bench.take(task("b", force=True))
    assert bench.run()[0] == ("cart",)


def test_our_own_tasks_are_not_taken_up():
    bench = Bench()
    assert bench.offer(task(by=AGENT_ID)) == ()


def test_a_task_waits_for_the_end_of_the_change_that_it_brought_about():
    bench, given = Bench(), proposal("cart")
    bench.take(task())
    assert finished(bench.run(ResolutionOutcome.GO, given=given)[1]) == []
    execution = Execution(
        execution_id="x", proposal=given, state=ExecutionState.OBSERVING, started_at_ms=NOW, updated_at_ms=NOW
    )
    bench.memory.note_execution(execution, NOW)
    assert bench.desk.note_execution(execution, bench.memory, NOW) == ()
    [done] = finished(bench.desk.note_execution(replace(execution, state=ExecutionState.KEPT), bench.memory, NOW))
    assert done.output["optimization_response"]["optimization_applied"] is True
    assert done.output["constitutional_compliance"] is True


def test_what_the_constitution_denies_fails_and_names_the_principle():
    bench = Bench()
    bench.take(task())
    [done] = finished(bench.run(ResolutionOutcome.YIELD, given=proposal("cart"), denied=("floor",))[1])
    assert done.error["code"] == "CONSTITUTIONAL_VIOLATION"
    assert "floor" in done.error["error"]
    assert done.output["constitutional_compliance"] is False


def test_a_cycle_that_decided_nothing_is_tried_again_as_often_as_the_task_permits():
    bench = Bench()
    bench.take(task() | {"max_retries": 1})
    for _ in range(2):
        bench.cycle += 1
        bench.desk.begin_cycle(bench.cycle)
        effects = bench.end()
    [done] = finished(effects)
    assert (done.error["code"], done.retries) == ("NOT_DONE", 2)


def test_an_order_that_never_left_is_decided_anew():
    bench, given = Bench(), proposal("cart")
    bench.take(task())
    bench.run(ResolutionOutcome.GO, given=given)
    bench.memory.note_not_handed_over(given)
    assert bench.end() == []
    assert finished(bench.run()[1])


def test_while_all_is_paused_a_task_fails_and_says_so():
    bench = Bench()
    bench.take(task())
    bench.memory.note_pause("maintenance", paused=True)
    [done] = finished(bench.run()[1])
    assert (done.error["code"], "maintenance" in done.error["error"]) == ("PAUSED", True)


def test_a_task_without_a_deadline_is_given_up_after_an_hour():
    bench = Bench()
    bench.take(task())
    assert bench.desk.look((), (), {}, NOW + HOUR_MS - 1) == ()
    [done] = finished(bench.desk.look((), (), {}, NOW + HOUR_MS))
    assert done.error["code"] == "DEADLINE_PASSED"


def test_a_result_that_the_blackboard_did_not_take_is_handed_over_again():
    bench = Bench()
    bench.take(task())
    [done] = finished(bench.run()[1])
    assert bench.desk.look((), (), {"t": task(status="claimed", agent_id=AGENT_ID)}, NOW) == ()
    failed = EffectFailed(ref=done.ref, effect="FinishTask", kind="BlackboardUnavailable", reason="r")
    assert bench.desk.step(failed, NOW) == ()
    effects = bench.desk.look((), (), {"t": task(status="claimed", agent_id=AGENT_ID)}, NOW)
    assert finished(effects) == [done]
    assert kinds(effects) == []


def test_work_that_was_taken_away_is_recorded_as_cancelled_and_never_ended():
    for record in (None, task(status="failed", agent_id=AGENT_ID), task(status="claimed", agent_id="other")):
        bench = Bench()
        bench.take(task())
        effects = bench.desk.look((), (), {"t": record}, NOW)
        assert [e.payload["outcome"] for e in effects] == ["cancelled"]
        assert finished(bench.run()[1]) == []


def test_a_claim_whose_answer_was_lost_is_ours_if_the_blackboard_says_so():
    bench = Bench()
    [claim] = bench.offer(task())
    failed = EffectFailed(ref=claim.ref, effect="ClaimTask", kind="BlackboardUnavailable", reason="r")
    bench.desk.step(failed, NOW)
    assert bench.desk.in_work == 0
    ours = task(status="claimed", agent_id=AGENT_ID, claimed_at=records.iso_utc(NOW), claimed_by_life="here")
    assert kinds(bench.desk.look((), (ours,), {}, NOW)) == [RecordKind.PEER_TASK_TAKEN]


def test_a_look_that_was_under_way_when_a_task_ended_does_not_begin_it_again():
    bench = Bench()
    bench.take(task())
    [done] = finished(bench.run()[1])
    bench.desk.step(TaskFinished(ref=done.ref, task_id="t", finished=True), NOW)
    stale = task(status="claimed", agent_id=AGENT_ID, claimed_at=records.iso_utc(NOW), claimed_by_life="here")
    assert bench.desk.look((), (stale,), {}, NOW) == ()
    assert bench.desk.in_work == 0


def test_a_task_that_another_life_has_claimed_is_asked_for_and_taken_up_only_if_that_is_granted():
    bench = Bench()
    theirs = task(status="claimed", agent_id=AGENT_ID, claimed_at=records.iso_utc(NOW), claimed_by_life="there")
    [claim] = bench.desk.look((), (theirs,), {}, NOW)
    assert (claim.over, claim.life, claim.task_id) == (True, "here", "t")
    assert bench.desk.step(TaskClaimed(ref=claim.ref, task_id="t", won=False), NOW) == ()
    assert bench.desk.in_work == 0
    # Its life is heard of, so it is left alone for a while.
    assert bench.desk.look((), (theirs,), {}, NOW + 9_999) == ()
    [claim] = bench.desk.look((), (theirs,), {}, NOW + 10_000)
    taken = bench.desk.step(TaskClaimed(ref=claim.ref, task_id="t", won=True), NOW)
    assert kinds(taken) == [RecordKind.PEER_TASK_TAKEN]
    assert taken[0].payload["life"] == "here"


def test_a_task_that_another_life_has_taken_over_is_no_longer_ours():
    bench = Bench()
    bench.take(task())
    theirs = task(status="claimed", agent_id=AGENT_ID, claimed_by_life="there")
    [record] = bench.desk.look((), (), {"t": theirs}, NOW)
    assert record.payload["outcome"] == "cancelled"


def test_a_task_forces_nothing_unless_peers_may():
    for may_force, forced in ((True, ("cart",)), (False, ())):
        bench = Bench()
        bench.desk = TaskDesk(bench.fleet, PACE_MS, "here", may_force=may_force)
        bench.take(task(force=True))
        assert bench.desk.begin_cycle(1) == forced


def test_a_task_whose_claimer_under_our_name_is_gone_fails_after_two_hours():
    bench = Bench()
    orphan = task(status="claimed", agent_id=AGENT_ID, claimed_at=records.iso_utc(NOW - 2 * HOUR_MS))
    [done] = finished(bench.desk.look((), (orphan,), {}, NOW))
    assert done.error["code"] == "CLAIMER_GONE"
