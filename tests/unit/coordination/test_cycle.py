"""The coordinator: one question at a time, late answers change nothing, nothing goes to the actuator that was not agreed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cachewarden.codec import digest, to_jsonable
from cachewarden.counterfactual import Counterfactual
from cachewarden.estimate import Estimate
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import (
    Effect,
    EffectFailed,
    JournalRead,
    Publish,
    ReadJournal,
    Received,
    Record,
    Recorded,
    Send,
    SetTimer,
    Started,
    TimerFired,
)
from cachewarden.messages import (
    ActionClass,
    AuditRecord,
    Decision,
    Execution,
    ExecutionState,
    Finding,
    KnobChange,
    Mode,
    Prediction,
    Proposal,
    RecordKind,
    Resolution,
    ResolutionOutcome,
    Verdict,
)
from cachewarden.observation import Capabilities, ProbeCost, Snapshot
from cachewarden.protocol import (
    CancelExecution,
    Execute,
    ExecutionReport,
    FleetObserved,
    FleetPlanned,
    Judge,
    Judged,
    ObserveFleet,
    PauseUnread,
    PlanFleet,
    RunCycle,
    SetMode,
    SetPaused,
    Settle,
    Settled,
    Sizing,
)
from cachewarden.settings import load_settings
from coordination.cycle import Coordinator

NOW = 1_000_000
MIB = 1024 * 1024


def _snapshot(service: str = "api", ratio: float | None = 0.8) -> Snapshot:
    return Snapshot(
        service=service,
        taken_at_ms=NOW,
        window_ms=10_000,
        run_id="r",
        role="master",
        capabilities=Capabilities(config_set=True),
        knobs={"maxmemory": str(8 * MIB)},
        hits=800,
        misses=200,
        hit_ratio=ratio,
        lookups_per_s=100,
        evicted_per_s=1,
        expired_per_s=0,
        refused_per_s=0,
        miss_split=None,
        used_memory_bytes=8 * MIB,
        maxmemory_bytes=8 * MIB,
        memory_usage=1.0,
        memory_efficiency=0.9,
        fixed_overhead_bytes=MIB,
        host_memory_bytes=None,
        resident_keys=1000,
        keys_with_ttl=0,
        eviction_age_ms=60_000,
        latency_us_p99=5.0,
        round_trip_us=100.0,
        hotspot_count=0,
        cost=ProbeCost(),
    )


def _proposal(service: str = "api", after: int = 16 * MIB, proposal_id: str = "p-1") -> Proposal:
    estimate = Estimate(0.05, 0.03, 0.07)
    return Proposal(
        proposal_id=proposal_id,
        service=service,
        author="planner",
        created_at_ms=NOW,
        expires_at_ms=NOW + 60_000,
        kinds=("memory",),
        knob_changes=(KnobChange(knob="maxmemory", before=str(8 * MIB), after=str(after)),),
        ttl_rules=(),
        action_class=ActionClass.GROWTH,
        reversible=True,
        playbook="direct",
        rollback="set it back",
        rationale="evicted too early",
        evidence=(),
        cost={},
        prediction=Prediction(
            hit_ratio_before=Estimate(0.8, 0.8, 0.8),
            hit_ratio_after=Estimate(0.85, 0.83, 0.87),
            gain=estimate,
            lookups_per_s=100,
            memory_bytes_after=after,
            latency_us_p99_after=None,
            method="replay",
            settle_ms=1000,
        ),
    )


def _verdict(proposal: Proposal, decision: Decision = Decision.ALLOW) -> Verdict:
    finding = Finding(principle_id="floor", title="Floor", severity="high", decision=decision, reason="as it should be")
    return Verdict(
        proposal_id=proposal.proposal_id,
        proposal_digest=digest(proposal),
        decision=decision,
        findings=(finding,),
        constitution_digest="d",
        judged_at_ms=NOW,
    )


def _resolution(proposal: Proposal, outcome: ResolutionOutcome = ResolutionOutcome.GO) -> Resolution:
    return Resolution(
        proposal_id=proposal.proposal_id, service=proposal.service, outcome=outcome, reason="nothing in its way"
    )


class _Desk:
    """The coordinator and what it sent, newest step last."""

    def __init__(self, records: tuple[AuditRecord, ...] = ()) -> None:
        services = tuple(Service(name=n, url="redis://127.0.0.1:1", mode=Mode.AUTO) for n in ("api", "search"))
        self.coordinator = Coordinator(
            Fleet(services=services), load_settings(cycle_interval_ms=10_000, blackboard_poll_ms=0)
        )
        self.now = NOW
        self.journal = list(records)
        self.first = self.coordinator.step(Started(records=records), NOW)

    def tick(self) -> tuple[Effect, ...]:
        return self.coordinator.step(TimerFired(ref="cycle"), self.now)

    def hear(self, message: Any, sender: str = "somebody") -> tuple[Effect, ...]:
        return self.coordinator.step(Received(sender=sender, message=message), self.now)

    def confirm(self, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
        """Let the journal take every record, and return what comes of it."""
        done: list[Effect] = []
        for record in (e for e in effects if isinstance(e, Record)):
            entry = AuditRecord(
                seq=1, at_ms=self.now, kind=record.kind, agent="coordinator", service=record.service, subject_id="x"
            )
            done += self.coordinator.step(Recorded(ref=record.ref, record=entry), self.now)
        return tuple(done)

    def refuse(self, effects: tuple[Effect, ...]) -> tuple[Effect, ...]:
        """Let the journal be gone, and return what comes of it."""
        done: list[Effect] = []
        for record in (e for e in effects if isinstance(e, Record)):
            failed = EffectFailed(ref=record.ref, effect="Record", kind="JournalUnavailable", reason="no server")
            done += self.coordinator.step(failed, self.now)
        return tuple(done)

    def run_to(self, proposal: Proposal, resolution: Resolution, verdict: Verdict | None = None) -> tuple[Effect, ...]:
        self.tick()
        cycle = self.coordinator.state(self.now).cycle
        self.hear(FleetObserved(cycle=cycle, snapshots=(_snapshot(),)))
        self.hear(FleetPlanned(cycle=cycle, proposals=(proposal,), idle_reasons={"search": "nothing to do"}))
        self.hear(Judged(cycle=cycle, verdicts=(verdict or _verdict(proposal),)))
        return self.hear(Settled(cycle=cycle, resolutions=(resolution,)))


def _sent(effects: tuple[Effect, ...], kind: type) -> list[Any]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def test_a_cycle_asks_one_agent_after_the_other_and_hands_what_is_agreed_to_the_actuator():
    desk, proposal = _Desk(), _proposal()
    assert _sent(desk.tick(), ObserveFleet)[0].services == ("api", "search")
    assert _sent(desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),))), PlanFleet)
    assert _sent(desk.hear(FleetPlanned(cycle=1, proposals=(proposal,), idle_reasons={})), Judge)
    assert _sent(desk.hear(Judged(cycle=1, verdicts=(_verdict(proposal),))), Settle)
    effects = desk.hear(Settled(cycle=1, resolutions=(_resolution(proposal),)))
    assert not _sent(effects, Execute)
    order = _sent(desk.confirm(effects), Execute)[0]
    assert order.proposal == proposal
    assert order.hit_ratio_before == 0.8
    assert [e.kind for e in effects if isinstance(e, Record)] == ["proposed", "judged", "resolved"]


def _told(proposal_id: str, service: str = "api") -> Counterfactual:
    return Counterfactual(
        service=service, proposal_id=proposal_id, from_ms=0, bucket_ms=1_000, lookups=(0, 10), hits=(0, 5),
        spatial_rate=1.0, distinct_keys=300,
    )  # fmt: skip


def test_an_order_carries_what_the_cache_would_hit_without_the_change():
    desk, proposal = _Desk(), _proposal()
    desk.tick()
    desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),)))
    told = _told(proposal.proposal_id)
    effects = desk.hear(FleetPlanned(cycle=1, proposals=(proposal,), idle_reasons={}, counterfactuals=(told,)))
    # Nobody carries it out yet, so nobody is told apart from the order.
    assert _sent(effects, Counterfactual) == []
    desk.hear(Judged(cycle=1, verdicts=(_verdict(proposal),)))
    effects = desk.hear(Settled(cycle=1, resolutions=(_resolution(proposal),)))
    assert _sent(desk.confirm(effects), Execute)[0].counterfactual == told


def test_an_order_carries_nothing_that_was_told_of_another_change():
    desk, proposal = _Desk(), _proposal()
    desk.tick()
    desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),)))
    desk.hear(FleetPlanned(cycle=1, proposals=(proposal,), idle_reasons={}, counterfactuals=(_told("p-earlier"),)))
    desk.hear(Judged(cycle=1, verdicts=(_verdict(proposal),)))
    effects = desk.hear(Settled(cycle=1, resolutions=(_resolution(proposal),)))
    assert _sent(desk.confirm(effects), Execute)[0].counterfactual is None


def test_whoever_carries_a_change_out_is_told_on_what_it_would_hit_without_it():
    desk, proposal = _Desk(), _proposal()
    desk.confirm(desk.run_to(proposal, _resolution(proposal)))
    running = Execution(
        execution_id="e-1", proposal=proposal, state=ExecutionState.OBSERVING, started_at_ms=NOW, updated_at_ms=NOW
    )
    desk.hear(ExecutionReport(execution=running), "actuator")
    desk.tick()
    cycle = desk.coordinator.state(desk.now).cycle
    (question,) = _sent(desk.hear(FleetObserved(cycle=cycle, snapshots=(_snapshot(),))), PlanFleet)
    history = question.history["api"]
    assert history.in_flight == proposal.proposal_id
    assert history.in_flight_before == {c.knob: c.before for c in proposal.knob_changes}
    told = (_told(proposal.proposal_id), _told("p-9", "search"))
    effects = desk.hear(FleetPlanned(cycle=cycle, proposals=(), idle_reasons={}, counterfactuals=told))
    assert _sent(effects, Counterfactual) == [told[0]]


def test_the_newest_sizing_of_a_service_stays_known_until_there_is_another():
    desk = _Desk()
    first, second = (
        Sizing(at_ms=at_ms, maxmemory_bytes=(1, 2), hit_ratio=(0.5, 0.6), low=(0.4, 0.5)) for at_ms in (NOW, NOW + 1)
    )
    for cycle, sizings in enumerate(({"api": first}, {"search": second}, {"api": second}), start=1):
        desk.tick()
        desk.hear(FleetObserved(cycle=cycle, snapshots=(_snapshot(),)))
        desk.hear(FleetPlanned(cycle=cycle, proposals=(), idle_reasons={"api": "nothing"}, sizings=sizings))
        assert desk.coordinator.state(NOW).sizings["api"] == (second if cycle == 3 else first)
    assert desk.coordinator.state(NOW).sizings["search"] == second


@pytest.mark.parametrize("outcome", [ResolutionOutcome.WAIT, ResolutionOutcome.YIELD, ResolutionOutcome.ADVISE])
def test_what_was_not_agreed_never_reaches_the_actuator(outcome: ResolutionOutcome):
    desk, proposal = _Desk(), _proposal()
    effects = desk.run_to(proposal, _resolution(proposal, outcome))
    assert _sent((*effects, *desk.confirm(effects)), Execute) == []
    assert desk.coordinator.state(NOW).standing["api"].resolution.outcome is outcome  # type: ignore[union-attr]


def test_a_late_answer_of_an_earlier_cycle_changes_nothing():
    desk = _Desk()
    desk.tick()
    desk.hear(FleetObserved(cycle=1, snapshots=()))
    desk.tick()
    before = desk.coordinator.state(NOW)
    assert desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),))) == ()
    assert desk.coordinator.state(NOW).snapshots == before.snapshots


def test_an_answer_that_comes_twice_is_taken_once():
    desk = _Desk()
    desk.tick()
    seen = FleetObserved(cycle=1, snapshots=(_snapshot(),))
    assert desk.hear(seen) != ()
    assert desk.hear(seen) == ()


def test_an_agent_that_does_not_answer_is_named_and_the_next_cycle_comes():
    desk = _Desk()
    desk.tick()
    effects = desk.coordinator.step(TimerFired(ref="deadline:1:observing"), NOW + 20_000)
    assert [e.ref for e in effects if isinstance(e, SetTimer)] == ["cycle"]
    health = desk.coordinator.state(NOW + 20_000).agents["collector"]
    assert not health.alive
    assert "did not answer while observing" in health.detail


def test_a_planner_that_always_needs_longer_than_its_deadline_is_heard_with_the_second_question():
    desk = _Desk()
    desk.tick()
    desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),)))
    desk.coordinator.step(TimerFired(ref="deadline:1:planning"), NOW + 60_000)
    assert desk.hear(FleetPlanned(cycle=1, proposals=(), idle_reasons={"api": "late"}), "planner") == ()
    desk.tick()
    asked = desk.hear(FleetObserved(cycle=2, snapshots=(_snapshot(),)))
    assert [e.due_ms - NOW for e in asked if isinstance(e, SetTimer)] == [120_000]


def test_the_same_advice_is_recorded_once():
    desk, proposal = _Desk(), _proposal()
    wait = _resolution(proposal, ResolutionOutcome.WAIT)
    assert any(isinstance(e, Record) for e in desk.run_to(proposal, wait))
    again = _proposal(proposal_id="p-2")
    effects = desk.run_to(again, Resolution(proposal_id="p-2", service="api", outcome=wait.outcome, reason=wait.reason))
    assert not any(isinstance(e, Record) for e in effects)


def test_a_paused_coordinator_observes_but_does_not_plan_and_says_why():
    desk = _Desk()
    effects = desk.hear(SetPaused(paused=True, by="ann", reason="release night"))
    assert [e.kind for e in effects if isinstance(e, Record)] == ["paused"]
    desk.tick()
    assert _sent(desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),))), PlanFleet) == []
    state = desk.coordinator.state(NOW)
    assert state.standing["api"].idle_reason == "paused: release night"
    assert state.phase == "paused: release night"


def test_the_kill_switch_takes_back_what_is_in_flight():
    effects = _Desk().hear(SetPaused(paused=True, by="ann", reason="alarm", kill=True))
    assert _sent(effects, CancelExecution)[0].service == "*"


def test_a_pause_survives_a_restart():
    record = AuditRecord(
        seq=7,
        at_ms=NOW,
        kind=RecordKind.PAUSED,
        agent="coordinator",
        service=None,
        subject_id="ann",
        payload={"reason": "x"},
    )
    desk = _Desk(records=(record,))
    assert desk.coordinator.state(NOW).paused
    assert (
        desk.hear(
            Execute(
                proposal=_proposal(),
                verdict=_verdict(_proposal()),
                resolution=_resolution(_proposal()),
                hit_ratio_before=None,
                latency_us_p99_before=None,
            ),
            "api",
        )
        == ()
    )


def test_memory_that_a_change_in_flight_may_need_again_stays_reserved():
    desk, shrink = _Desk(), _proposal(after=4 * MIB)
    desk.run_to(shrink, _resolution(shrink))
    execution = Execution(
        execution_id="e", proposal=shrink, state=ExecutionState.OBSERVING, started_at_ms=NOW, updated_at_ms=NOW
    )
    desk.hear(ExecutionReport(execution=execution), "actuator")
    desk.tick()
    desk.hear(FleetObserved(cycle=2, snapshots=(_snapshot(),)))
    grown = _proposal("search", proposal_id="p-3")
    desk.hear(FleetPlanned(cycle=2, proposals=(grown,), idle_reasons={}))
    settle = _sent(desk.hear(Judged(cycle=2, verdicts=(_verdict(grown),))), Settle)[0]
    assert settle.memory_bytes["api"] == 8 * MIB
    assert settle.history["api"].in_flight == "p-1"


def test_a_change_that_was_taken_back_is_remembered_by_what_it_wanted():
    desk, proposal = _Desk(), _proposal()
    desk.run_to(proposal, _resolution(proposal))
    done = Execution(
        execution_id="e", proposal=proposal, state=ExecutionState.ROLLED_BACK, started_at_ms=NOW, updated_at_ms=NOW
    )
    desk.hear(ExecutionReport(execution=done), "actuator")
    desk.tick()
    question = _sent(desk.hear(FleetObserved(cycle=2, snapshots=(_snapshot(),))), PlanFleet)[0]
    assert question.history["api"].rolled_back == {f"maxmemory={16 * MIB}": NOW}
    assert question.history["api"].changes_last_hour == 1


def test_an_abandoned_attempt_counts_against_cool_down_and_budget_too():
    desk, proposal = _Desk(), _proposal()
    desk.run_to(proposal, _resolution(proposal))
    done = Execution(
        execution_id="e",
        proposal=proposal,
        state=ExecutionState.ABANDONED,
        started_at_ms=NOW,
        updated_at_ms=NOW,
        reason="refused",
    )
    desk.hear(ExecutionReport(execution=done), "actuator")
    desk.tick()
    question = _sent(desk.hear(FleetObserved(cycle=2, snapshots=(_snapshot(),))), PlanFleet)[0]
    assert (question.history["api"].last_change_ms, question.history["api"].changes_last_hour) == (NOW, 1)
    assert question.history["api"].in_flight is None


def test_a_cycle_asked_for_by_name_skips_nothing_but_runs_at_once():
    desk = _Desk()
    assert _sent(desk.hear(RunCycle(force=("api",))), ObserveFleet)
    assert _sent(desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),))), PlanFleet)[0].force == ("api",)


def test_words_that_nobody_knows_change_nothing():
    desk = _Desk()
    assert desk.hear("hello") == ()
    assert desk.coordinator.step(object(), NOW) == ()


def test_an_order_whose_decision_the_journal_did_not_take_never_leaves_and_is_decided_anew():
    desk, proposal = _Desk(), _proposal()
    effects = desk.run_to(proposal, _resolution(proposal))
    assert _sent(desk.refuse(effects), Execute) == []
    assert "no server" in desk.coordinator.state(NOW).phase
    assert desk.coordinator.state(NOW).handed_over == {}
    again = _proposal(proposal_id="p-2")
    effects = desk.run_to(again, _resolution(again))
    assert [order.proposal.proposal_id for order in _sent(desk.confirm(effects), Execute)] == ["p-2"]


def test_a_pause_holds_back_an_order_that_the_journal_confirms_after_it():
    desk, proposal = _Desk(), _proposal()
    effects = desk.run_to(proposal, _resolution(proposal))
    desk.hear(SetPaused(paused=True, by="ann", reason="alarm"))
    assert _sent(desk.confirm(effects), Execute) == []


def test_a_pause_that_the_journal_did_not_take_is_written_again_until_it_did():
    desk = _Desk()
    (timer,) = [
        e for e in desk.refuse(desk.hear(SetPaused(paused=True, by="ann", reason="alarm"))) if isinstance(e, SetTimer)
    ]
    again = desk.coordinator.step(TimerFired(ref=timer.ref), NOW)
    assert [e.kind for e in again if isinstance(e, Record)] == ["paused"]
    desk.confirm(again)
    assert desk.coordinator.step(TimerFired(ref=timer.ref), NOW) == ()


def _records(effects: tuple[Effect, ...]) -> list[str]:
    return [e.kind for e in effects if isinstance(e, Record)]


@pytest.mark.parametrize("answer", ["confirm", "refuse"])
def test_a_resumption_is_written_once_the_journal_has_answered_the_pause_before_it(answer):
    desk = _Desk()
    pause = desk.hear(SetPaused(paused=True, by="ann", reason="alarm"))
    resumption = desk.hear(SetPaused(paused=False, by="ann", reason="all is well"))
    # It counts at once all the same.
    assert not desk.coordinator.state(NOW).paused
    assert _sent(resumption, SetPaused)
    assert (_records(pause), _records(resumption)) == (["paused"], [])
    written = getattr(desk, answer)(pause)
    assert _records(written) == ["resumed"]
    assert _records(desk.confirm(written)) == []


@pytest.mark.parametrize("answer", ["confirm", "refuse"])
def test_a_kill_switch_that_waits_for_a_slow_journal_is_written_though_all_was_resumed_since(answer):
    desk = _Desk()
    pause = desk.hear(SetPaused(paused=True, by="ann", reason="alarm"))
    waiting = desk.hear(SetPaused(paused=True, by="bob", reason="fire", kill=True))
    assert _records(waiting) == []
    # What is in flight here is taken back at once all the same.
    assert _sent(waiting, CancelExecution)
    desk.hear(SetPaused(paused=False, by="bob", reason="all is well"))
    kill = getattr(desk, answer)(pause)
    assert [(e.kind, e.payload["kill"]) for e in kill if isinstance(e, Record)] == [("paused", True)]
    resumption = getattr(desk, answer)(kill)
    assert _records(resumption) == ["resumed"]
    assert _records(desk.confirm(resumption)) == []


def test_a_pause_of_another_deployment_is_learned_from_the_journal_and_so_is_its_end():
    desk = _Desk()
    _catch_up(desk, _record(2, RecordKind.PAUSED, {"reason": "elsewhere"}))
    assert desk.coordinator.state(NOW).phase == "paused: elsewhere"
    effects = _catch_up(desk, _record(3, RecordKind.RESUMED, {"reason": "all is well"}))
    assert not desk.coordinator.state(NOW).paused
    assert any(isinstance(e, SetTimer) and e.ref == "cycle" for e in effects)


def test_a_resumption_from_before_our_pause_does_not_end_it():
    desk = _Desk()
    (ours,) = [e for e in desk.hear(SetPaused(paused=True, by="ann", reason="alarm")) if isinstance(e, Record)]
    _catch_up(desk, _record(2, RecordKind.RESUMED, {"reason": "of before"}))
    assert desk.coordinator.state(NOW).paused
    _catch_up(desk, _record(3, RecordKind.PAUSED, dict(ours.payload)), _record(4, RecordKind.RESUMED, {"reason": "x"}))
    assert not desk.coordinator.state(NOW).paused


def test_a_mode_that_another_deployment_ordered_counts_at_the_next_reading_of_the_journal():
    desk = _Desk()
    payload = {"mode": "off", "file_mode": "auto", "by": "bob", "reason": "elsewhere"}
    effects = _catch_up(desk, _record(2, RecordKind.MODE_CHANGED, payload))
    assert _sent(effects, CancelExecution)[0].service == "api"
    assert desk.coordinator.state(NOW).modes == {"api": "off"}


def test_orders_that_come_after_the_journal_lost_its_tail_count_although_their_numbers_were_read_before():
    desk, mode = _Desk(), {"file_mode": "auto", "by": "bob", "reason": "elsewhere"}
    _catch_up(desk, _record(800, RecordKind.OBSERVED, {}))
    lost = _record(850, RecordKind.MODE_CHANGED, {**mode, "mode": "auto"})
    _catch_up(desk, lost, _record(851, RecordKind.RESUMED, {"reason": "x"}))
    off = replace(_record(801, RecordKind.MODE_CHANGED, {**mode, "mode": "off"}), hash="others")
    _catch_up(desk, off, replace(_record(802, RecordKind.PAUSED, {"reason": "elsewhere"}), hash="others"))
    assert desk.coordinator.state(NOW).modes == {"api": "off"}
    assert desk.coordinator.state(NOW).paused


def test_a_pause_and_a_mode_of_ours_that_the_journal_lost_are_written_again():
    desk = _Desk()
    _catch_up(desk, _record(5, RecordKind.OBSERVED, {}))
    told = (
        *desk.hear(SetPaused(paused=True, by="ann", reason="alarm")),
        *desk.hear(SetMode(service="api", mode=Mode.OFF, by="ann", reason="alarm")),
    )
    ours = [e for e in told if isinstance(e, Record)]
    written = [_record(6 + n, RecordKind(e.kind), dict(e.payload)) for n, e in enumerate(ours)]
    for effect, record in zip(ours, written, strict=True):
        desk.coordinator.step(Recorded(ref=effect.ref, record=record), NOW)
    _catch_up(desk, *written)
    again = _catch_up(desk, replace(_record(6, RecordKind.OBSERVED, {}), hash="others"))
    written = {e.kind: dict(e.payload) for e in again if isinstance(e, Record)}
    assert written == {e.kind: dict(e.payload) for e in ours}
    assert desk.coordinator.state(NOW).paused
    assert desk.coordinator.state(NOW).modes == {"api": "off"}


def test_a_pause_that_only_the_actuator_knows_is_in_force_again_and_written_down():
    desk = _Desk()
    order = SetPaused(paused=True, by="ann", reason="alarm", order_id="earlier-life:1")
    effects = desk.hear(PauseUnread(order=order), "actuator")
    (record,) = [e for e in effects if isinstance(e, Record)]
    assert (record.kind, record.payload["by"], record.payload["reason"]) == (RecordKind.PAUSED, "ann", "alarm")
    assert desk.coordinator.state(NOW).paused
    (told,) = _sent(effects, SetPaused)
    assert desk.hear(PauseUnread(order=told), "actuator") == ()


def test_a_resumption_that_only_the_actuator_knows_ends_no_pause():
    desk = _Desk(records=(_record(1, RecordKind.PAUSED, {"by": "ann", "reason": "alarm"}),))
    order = SetPaused(paused=False, by="bob", reason="fine", order_id="earlier-life:2")
    (told,) = _sent(desk.hear(PauseUnread(order=order), "actuator"), SetPaused)
    assert told.paused
    assert desk.coordinator.state(NOW).paused


def test_an_answer_to_an_order_of_ours_lifts_no_restriction_that_was_read_before_it():
    desk, mode = _Desk(), {"file_mode": "auto", "by": "bob", "reason": "elsewhere"}
    _catch_up(desk, _record(2, RecordKind.MODE_CHANGED, {**mode, "mode": "advise"}))
    raised = desk.hear(SetMode(service="api", mode=Mode.AUTO, by="ann", reason="x"))
    (record,) = [e for e in raised if isinstance(e, Record)]
    _catch_up(desk, _record(9, RecordKind.MODE_CHANGED, {**mode, "mode": "off"}))
    ours = _record(8, RecordKind.MODE_CHANGED, dict(record.payload))
    desk.coordinator.step(Recorded(ref=record.ref, record=ours), NOW)
    assert desk.coordinator.state(NOW).modes == {"api": "off"}


def _record(seq: int, kind: RecordKind, payload: dict[str, Any], proposal_id: str = "p-1") -> AuditRecord:
    return AuditRecord(
        seq=seq, at_ms=NOW, kind=kind, agent="actuator", service="api", subject_id=proposal_id, payload=payload
    )


def _intended(proposal: Proposal) -> AuditRecord:
    payload = {"execution_id": "e-1", "proposal": to_jsonable(proposal), "baseline": {"hit_ratio": 0.8}}
    return _record(1, RecordKind.CHANGE_INTENDED, payload, proposal.proposal_id)


@pytest.mark.parametrize("newest", [None, RecordKind.ROLLBACK_INTENDED])
def test_a_change_in_flight_stays_in_flight_and_its_memory_reserved_over_a_restart(newest: RecordKind | None):
    records = (_intended(_proposal(after=4 * MIB)),)
    records += () if newest is None else (_record(2, newest, {"reason": "worse"}),)
    desk = _Desk(records=records)
    desk.tick()
    question = _sent(desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot("search"),))), PlanFleet)[0]
    assert question.history["api"].in_flight == "p-1"
    assert question.memory_bytes["api"] == 8 * MIB


@pytest.mark.parametrize(
    "ending",
    [
        RecordKind.CHANGE_KEPT,
        RecordKind.CHANGE_ROLLED_BACK,
        RecordKind.CHANGE_ABANDONED,
        RecordKind.ROLLBACK_FAILED,
    ],
)
def test_a_change_that_had_ended_before_a_restart_is_not_in_flight(ending: RecordKind):
    desk = _Desk(records=(_intended(_proposal()), _record(2, ending, {"reason": "so"})))
    desk.tick()
    question = _sent(desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),))), PlanFleet)[0]
    assert question.history["api"].in_flight is None
    assert question.history["api"].changes_last_hour == 1


def test_without_a_declared_total_what_a_cache_gave_away_stays_in_the_budget():
    desk, shrink = _Desk(), _proposal(after=4 * MIB)
    desk.confirm(desk.run_to(shrink, _resolution(shrink)))
    done = Execution(execution_id="e", proposal=shrink, state=ExecutionState.KEPT, started_at_ms=NOW, updated_at_ms=NOW)
    desk.hear(ExecutionReport(execution=done), "actuator")
    desk.tick()
    shrunk = replace(_snapshot(), maxmemory_bytes=4 * MIB)
    assert _sent(desk.hear(FleetObserved(cycle=2, snapshots=(shrunk,))), PlanFleet)[0].budget_bytes == 8 * MIB


def test_without_a_declared_total_what_a_person_takes_from_a_cache_leaves_the_budget():
    desk = _Desk()
    desk.tick()
    desk.hear(FleetObserved(cycle=1, snapshots=(_snapshot(),)))
    desk.coordinator.step(TimerFired(ref="deadline:1:planning"), NOW)
    desk.tick()
    lowered = replace(_snapshot(), maxmemory_bytes=6 * MIB)
    assert _sent(desk.hear(FleetObserved(cycle=2, snapshots=(lowered,))), PlanFleet)[0].budget_bytes == 6 * MIB


def test_what_a_person_adds_to_a_growth_of_ours_that_no_look_has_seen_adds_only_that_to_the_budget():
    desk, growth = _Desk(), _proposal(after=12 * MIB)
    desk.confirm(desk.run_to(growth, _resolution(growth)))
    left = Execution(
        execution_id="e", proposal=growth, state=ExecutionState.ABANDONED, started_at_ms=NOW, updated_at_ms=NOW
    )
    desk.hear(ExecutionReport(execution=left), "actuator")
    desk.tick()
    raised = replace(_snapshot(), maxmemory_bytes=20 * MIB)
    assert _sent(desk.hear(FleetObserved(cycle=2, snapshots=(raised,))), PlanFleet)[0].budget_bytes == 16 * MIB


# --- Reports that got lost


def _catch_up(desk: _Desk, *records: AuditRecord) -> tuple[Effect, ...]:
    """Let the coordinator read the journal on, and find `records` there."""
    desk.journal = [r for r in desk.journal if not records or r.seq < records[0].seq] + list(records)
    return _read_on(desk)


def _read_on(desk: _Desk) -> tuple[Effect, ...]:
    (question,) = [e for e in desk.coordinator.step(TimerFired(ref="catch-up"), NOW) if isinstance(e, ReadJournal)]
    found = [r for r in desk.journal if r.seq > question.after_seq][: question.limit]
    effects = desk.coordinator.step(JournalRead(ref=question.ref, records=tuple(found)), NOW)
    if SetTimer(ref="catch-up", due_ms=NOW) in effects:
        return (*effects, *_read_on(desk))
    return effects


def _in_flight(desk: _Desk) -> str | None:
    return desk.coordinator.state(NOW).history["api"].in_flight


def test_an_ending_that_nobody_told_is_read_from_the_journal_so_that_the_service_is_free_again():
    desk = _Desk(records=(_intended(_proposal()),))
    assert _in_flight(desk) == "p-1"
    effects = _catch_up(desk, _record(2, RecordKind.CHANGE_KEPT, {"reason": "measured"}))
    assert _in_flight(desk) is None
    assert desk.coordinator.state(NOW).executions[-1].state is ExecutionState.KEPT
    assert any(isinstance(e, Publish) for e in effects)


def test_a_change_that_nobody_told_of_makes_its_service_busy():
    desk = _Desk()
    _catch_up(desk, _intended(_proposal()))
    assert _in_flight(desk) == "p-1"


def test_what_was_told_is_not_taken_twice():
    desk = _Desk(records=(_intended(_proposal()), _record(2, RecordKind.CHANGE_KEPT, {"reason": "measured"})))
    version = desk.coordinator.state(NOW).version
    assert _catch_up(desk, _record(2, RecordKind.CHANGE_KEPT, {"reason": "measured"})) == ()
    assert desk.coordinator.state(NOW).version == version


@pytest.mark.parametrize(("state", "told"), [(ExecutionState.KEPT, ("p-1",)), (ExecutionState.ROLLED_BACK, ())])
def test_the_consensus_is_told_which_changes_were_kept(state, told):
    desk, proposal, other = _Desk(), _proposal(), _proposal("search", proposal_id="p-3")
    desk.run_to(proposal, _resolution(proposal))
    ended = Execution(execution_id="e", proposal=proposal, state=state, started_at_ms=NOW, updated_at_ms=NOW)
    desk.hear(ExecutionReport(execution=ended), "actuator")
    desk.tick()
    desk.hear(FleetObserved(cycle=2, snapshots=(_snapshot(),)))
    desk.hear(FleetPlanned(cycle=2, proposals=(other,), idle_reasons={}))
    assert _sent(desk.hear(Judged(cycle=2, verdicts=(_verdict(other),))), Settle)[0].kept == told
