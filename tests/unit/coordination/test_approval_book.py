"""Approvals in the coordinator: whatever comes in whatever order, and wherever it crashes, nothing that needs approval
goes ahead without one by somebody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from agents.consensus import Consensus
from cachewarden import chain
from cachewarden.approval import ApprovalOrigin, ApprovalState, DecideApproval, SubmitProposal, refusal_of_approval
from cachewarden.codec import digest, to_jsonable
from cachewarden.fleet import Fleet, Service
from cachewarden.machine import EffectFailed, Received, Record, Recorded, Send, Started, TimerFired
from cachewarden.messages import (
    AuditRecord,
    Execution,
    ExecutionState,
    KnobChange,
    Mode,
    Proposal,
    RecordKind,
    ResolutionOutcome,
)
from cachewarden.ports import RecordDraft
from cachewarden.protocol import (
    CancelExecution,
    Execute,
    ExecutionReport,
    FleetObserved,
    FleetPlanned,
    Judge,
    Judged,
    ObserveFleet,
    PlanFleet,
    Settle,
)
from cachewarden.settings import load_settings
from coordination.cycle import Coordinator
from tests.unit.coordination.test_cycle import MIB, NOW, _proposal, _snapshot, _verdict

SETTINGS = load_settings(approval_ttl_ms=600_000, cool_down_ms=0, blackboard_poll_ms=0)


class World:
    """The real coordinator and consensus, a planner that proposes `planned`, a validator that allows everything, a
    journal that takes records when it is told to."""

    def __init__(self, mode: Mode = Mode.APPROVE) -> None:
        services = tuple(Service(name=n, url="redis://127.0.0.1:1", mode=mode) for n in ("api", "search"))
        self.fleet = Fleet(services=services, total_memory_bytes=64 * MIB)
        self.now_ms = NOW
        self.records: list[AuditRecord] = []
        self.waiting: list[list[Record]] = []
        self.orders: list[Execute] = []
        self.cancelled: list[CancelExecution] = []
        self.holding = False
        self.failing = False
        self.planned: Proposal | None = self.plan()
        self.knobs = {"maxmemory": str(8 * MIB)}
        self.number = 0
        self.start()

    def plan(self, after: int = 16 * MIB, **changes: Any) -> Proposal:
        made = _proposal(after=after, proposal_id=f"p-{self.now_ms}-{after}")
        return replace(made, expires_at_ms=self.now_ms + 600_000, created_at_ms=self.now_ms, **changes)

    def start(self) -> None:
        """A new life: only the journal is left of the old one."""
        self.waiting.clear()
        self.coordinator = Coordinator(self.fleet, SETTINGS)
        self.consensus = Consensus(self.fleet, SETTINGS)
        kinds = Coordinator.replay_kinds
        self.step(Started(records=tuple(r for r in self.records if r.kind in kinds)))

    def step(self, event: Any) -> None:
        effects = self.coordinator.step(event, self.now_ms)
        batch = [e for e in effects if isinstance(e, Record)]
        if batch:
            self.waiting.append(batch)
            if not self.holding:
                self.flush()
        for effect in effects:
            if isinstance(effect, Send):
                self.answer(effect)

    def flush(self) -> None:
        while self.waiting:
            batch = self.waiting.pop(0)
            if self.failing:
                for r in batch:
                    self.step(EffectFailed(ref=r.ref, effect="Record", kind="JournalUnavailable", reason="down"))
                continue
            drafts = [
                RecordDraft(
                    at_ms=self.now_ms,
                    kind=r.kind,
                    agent="coordinator",
                    service=r.service,
                    subject_id=r.subject_id,
                    payload=r.payload,
                )
                for r in batch
            ]
            last = self.records[-1].hash if self.records else chain.GENESIS_HASH
            made = chain.seal_all(drafts, len(self.records) + 1, last)
            self.records += made
            for r, entry in zip(batch, made, strict=True):
                self.step(Recorded(ref=r.ref, record=entry))

    def answer(self, sent: Send) -> None:
        message = sent.message
        if isinstance(message, ObserveFleet):
            looks = tuple(replace(_snapshot(n), knobs=self.knobs, taken_at_ms=self.now_ms) for n in ("api", "search"))
            self.tell(FleetObserved(cycle=message.cycle, snapshots=looks), "collector")
        elif isinstance(message, PlanFleet):
            busy = message.history["api"].in_flight
            found = () if self.planned is None or busy else (self.planned,)
            self.tell(FleetPlanned(cycle=message.cycle, proposals=found, idle_reasons={"search": "no"}), "planner")
        elif isinstance(message, Judge):
            self.tell(Judged(cycle=message.cycle, verdicts=tuple(map(_verdict, message.proposals))), "validator")
        elif isinstance(message, Settle):
            for effect in self.consensus.step(Received(sender="coordinator", message=message), self.now_ms):
                self.tell(effect.message, "consensus")
        elif isinstance(message, Execute):
            self.check(message)
            self.orders.append(message)
        elif isinstance(message, CancelExecution):
            self.cancelled.append(message)

    def tell(self, message: Any, sender: str = "api") -> None:
        self.step(Received(sender=sender, message=message))

    def cycle(self, later_ms: int = 1_000) -> None:
        self.now_ms += later_ms
        self.step(TimerFired(ref="cycle"))

    @property
    def state(self):
        return self.coordinator.state(self.now_ms)

    @property
    def open(self):
        return next((a for a in self.state.approvals if a.state.open), None)

    def decide(self, by: str = "bob", *, approve: bool = True, **changes: Any) -> str:
        """Decide on what is open; returns why it was not taken, empty where it was."""
        approval = self.open
        self.number += 1
        plain = {
            "proposal_id": "" if approval is None else approval.proposal_id,
            "proposal_digest": "" if approval is None else approval.proposal_digest,
            "approve": approve,
            "by": by,
            "token": by,
            "reason": "because",
            "decision_id": f"d{self.number}",
        }
        self.tell(DecideApproval(**{**plain, **changes}))
        return self.state.approval_answers.get(f"d{self.number}", "nothing was said")

    def edit(self, by: str = "ann", after: int = 12 * MIB) -> str:
        approval = self.open
        self.number += 1
        new = self.plan(after, author=by)
        command = SubmitProposal(
            proposal=replace(new, proposal_id=f"p-edit-{self.number}"),
            origin=ApprovalOrigin.EDIT,
            by=by,
            token=by,
            reason="smaller",
            decision_id=f"d{self.number}",
            replaces="" if approval is None else approval.proposal_id,
            replaces_digest="" if approval is None else approval.proposal_digest,
        )
        self.tell(command)
        return self.state.approval_answers.get(f"d{self.number}", "nothing was said")

    def check(self, order: Execute) -> None:
        """The invariant, read from the journal alone."""
        plan = order.proposal
        assert refusal_of_approval(order.approval, plan, self.now_ms) is None
        about = [r for r in self.records if r.subject_id == plan.proposal_id]
        given = [r for r in about if r.kind == RecordKind.APPROVED]
        assert given, "nobody approved it"
        assert given[-1].payload["proposal_digest"] == digest(plan)
        assert given[-1].payload["by"] != plan.author
        ends = (RecordKind.REJECTED, RecordKind.APPROVAL_EXPIRED, RecordKind.APPROVAL_SUPERSEDED)
        assert not [r for r in about if r.kind in (*ends, RecordKind.APPROVAL_WITHDRAWN)]
        assert self.now_ms < given[-1].payload["approval"]["expires_at_ms"]

    def kinds(self) -> list[str]:
        return [r.kind for r in self.records if "approv" in r.kind or r.kind in ("rejected", "edited")]


def test_a_plan_is_put_up_once_and_stays_the_same_while_the_planner_makes_new_ones():
    world = World()
    world.cycle()
    first = world.open
    assert first.state is ApprovalState.PENDING
    for _ in range(3):
        world.planned = world.plan(17 * MIB)
        world.cycle()
    assert world.open == first
    assert world.state.standing["api"].proposal == first.proposal
    assert "awaits approval by someone other than its author `planner`" in world.state.standing["api"].resolution.reason
    assert world.kinds() == ["approval_requested"]
    assert world.orders == []


def test_an_approved_plan_goes_ahead_in_the_next_cycle_exactly_once():
    world = World()
    world.cycle()
    plan = world.open.proposal
    assert world.decide("bob") == ""
    world.planned = world.plan(18 * MIB)
    world.cycle()
    assert [o.proposal for o in world.orders] == [plan]
    assert world.orders[0].approval.decided_by == "bob"
    world.tell(ExecutionReport(execution=_execution(plan, ExecutionState.STEPPING)), "actuator")
    assert world.open is None
    world.cycle()
    assert len(world.orders) == 1


def test_an_order_that_the_actuator_refused_before_doing_anything_is_given_again():
    world = World()
    world.cycle()
    plan = world.open.proposal
    world.decide("bob")
    world.cycle()
    refused = replace(_execution(plan, ExecutionState.ABANDONED), steps=0)
    world.tell(ExecutionReport(execution=refused), "actuator")
    world.cycle()
    assert [o.proposal.proposal_id for o in world.orders] == [plan.proposal_id] * 2


def test_the_author_cannot_approve_and_is_told_so():
    world = World()
    world.cycle()
    assert "is the author" in world.decide("planner")
    world.cycle()
    assert world.orders == []


def test_an_edited_plan_is_a_new_one_that_its_editor_cannot_approve():
    world = World()
    world.cycle()
    old = world.open
    assert world.edit("ann") == ""
    new = world.open
    assert (new.proposal.author, new.replaces) == ("ann", old.proposal_id)
    assert "is the author" in world.decide("ann")
    assert "superseded" in world.decide("bob", proposal_id=old.proposal_id, proposal_digest=old.proposal_digest)
    assert world.decide("bob") == ""
    world.cycle()
    assert [o.proposal.author for o in world.orders] == ["ann"]


def test_a_rejected_change_rests_and_one_that_is_another_is_put_up():
    world = World()
    world.cycle()
    assert world.decide("bob", approve=False) == ""
    world.planned = world.plan(17 * MIB)
    world.cycle()
    assert world.open is None
    assert "`bob` turned this change of `api` down (because)" in world.state.standing["api"].resolution.reason
    world.planned = world.plan(30 * MIB)
    world.cycle()
    assert world.open is not None
    world.start()
    world.planned = world.plan(16 * MIB)
    world.cycle(SETTINGS.approval_ttl_ms)
    assert world.open is None, "the rest was forgotten with the restart"
    world.planned = world.plan(16 * MIB)
    world.cycle(SETTINGS.rejection_rest_ms)
    world.planned = world.plan(16 * MIB)
    world.cycle()
    assert world.open is not None


def test_an_approval_that_was_not_used_in_time_is_worth_nothing():
    world = World()
    world.cycle()
    world.decide("bob")
    world.planned = world.plan(16 * MIB, needs=("p-never",))
    world.cycle(SETTINGS.approval_ttl_ms)
    assert world.orders == []
    assert world.kinds() == ["approval_requested", "approved", "approval_expired"]


def test_a_cache_that_is_not_as_the_plan_found_it_ends_even_an_approved_plan():
    world = World()
    world.cycle()
    old = world.open
    world.decide("bob")
    world.knobs = {"maxmemory": str(9 * MIB)}
    world.planned = None
    world.cycle()
    assert world.orders == []
    assert "approval_superseded" in world.kinds()
    world.knobs = {"maxmemory": str(8 * MIB)}
    world.cycle()
    assert world.orders == []
    assert world.decide("bob", proposal_id=old.proposal_id, proposal_digest=old.proposal_digest)


def test_a_plan_is_superseded_only_by_a_clearly_better_or_an_opposite_one():
    world = World()
    world.cycle()
    first = world.open
    world.planned = world.plan(30 * MIB)
    world.cycle()
    assert world.open == first
    gain = replace(world.planned.prediction.gain, value=0.5, high=0.6)
    better = world.plan(30 * MIB)
    world.planned = replace(better, prediction=replace(better.prediction, gain=gain))
    world.cycle()
    assert world.open.proposal_id == world.planned.proposal_id
    world.planned = world.plan(4 * MIB)
    world.cycle()
    assert world.open is None or world.open.proposal_id != better.proposal_id


def test_whoever_waits_for_a_donor_waits_for_the_plan_that_stands_in_its_place():
    world = World()
    world.cycle()
    placed = world.open.proposal
    newer = world.plan(17 * MIB)
    other = replace(_proposal("search", proposal_id="p-receiver"), needs=(newer.proposal_id,))
    arranged, _ = world.coordinator._approvals.arrange(
        (newer, other), (replace(_snapshot("api"), knobs=world.knobs), _snapshot("search")), frozenset(), world.now_ms
    )
    assert [p.proposal_id for p in arranged] == [placed.proposal_id, "p-receiver"]
    assert arranged[1].needs == (placed.proposal_id,)


def test_what_the_journal_does_not_take_is_not_decided():
    world = World()
    world.cycle()
    world.failing = True
    assert "journal did not take it" in world.decide("bob")
    world.failing = False
    world.cycle()
    assert world.orders == []
    assert world.open.state is ApprovalState.PENDING


def test_a_rejection_that_is_on_its_way_into_the_journal_holds_an_approved_plan_back():
    world = World()
    world.cycle()
    world.decide("bob")
    world.holding = True
    world.decide("eve", approve=False)
    world.cycle()
    world.holding = False
    world.flush()
    world.cycle()
    assert world.orders == []
    assert world.open is None or world.open.state is ApprovalState.PENDING


def test_an_order_from_the_api_needs_the_approval_too():
    world = World()
    world.cycle()
    standing = world.state.standing["api"]
    order = Execute(
        proposal=standing.proposal,
        verdict=standing.verdict,
        resolution=replace(standing.resolution, outcome=ResolutionOutcome.GO),
        hit_ratio_before=None,
        latency_us_p99_before=None,
        approval=replace(world.open, state=ApprovalState.APPROVED, decided_by="forged"),
    )
    world.tell(order)
    assert world.orders == []


@pytest.mark.parametrize("mode", [Mode.APPROVE, Mode.AUTO])
def test_a_person_gets_old_values_back_by_a_plan_in_auto_and_after_approval_in_approve(mode: Mode):
    world = World(mode)
    world.planned = None
    world.knobs = {"maxmemory": str(16 * MIB)}
    kept = world.plan()
    back = KnobChange(knob="maxmemory", before=str(16 * MIB), after=str(8 * MIB))
    counter = replace(world.plan(), proposal_id="p-back", author="ann", knob_changes=(back,), takes_back="p-kept")
    command = SubmitProposal(
        proposal=counter,
        origin=ApprovalOrigin.ROLLBACK,
        by="ann",
        token="ann",
        reason="worse",
        decision_id="d1",
        replaces="p-kept",
        takes_back=kept,
    )
    if mode is Mode.AUTO:
        world.check = lambda order: None  # type: ignore[method-assign]
    world.tell(command)
    assert world.state.approval_answers["d1"] == ""
    world.cycle()
    assert bool(world.orders) == (mode is Mode.AUTO)
    if mode is Mode.APPROVE:
        assert world.decide("bob") == ""
        world.cycle()
    assert [o.proposal.proposal_id for o in world.orders] == ["p-back"]


def test_what_is_in_flight_is_stopped_at_once_on_request():
    world = World()
    kept = world.plan()
    command = SubmitProposal(
        proposal=None,
        origin=ApprovalOrigin.ROLLBACK,
        by="ann",
        token="ann",
        reason="errors",
        decision_id="d1",
        takes_back=kept,
        stop=True,
    )
    world.tell(command)
    assert [(c.service, c.proposal_id) for c in world.cancelled] == [("api", kept.proposal_id)]
    assert world.records[-1].kind == RecordKind.ROLLBACK_REQUESTED


def test_a_record_of_a_newer_version_ends_what_it_is_about():
    world = World()
    world.cycle()
    world.decide("bob")
    strange = {"approval": {"state": "blessed"}, "rest": None}
    last = world.records[-1]
    world.records.append(replace(last, seq=last.seq + 1, kind=RecordKind.REJECTED.value, payload=strange))
    world.start()
    assert world.open is None


def _execution(plan: Proposal, state: ExecutionState) -> Execution:
    return Execution(
        execution_id="e-1", proposal=plan, state=state, started_at_ms=NOW, updated_at_ms=NOW, step=1, steps=1
    )


def _begun(world: World, plan: Proposal) -> None:
    """The actuator's record of its intention, as the journal would hold it."""
    last = world.records[-1]
    payload = {"execution_id": "e-1", "proposal": to_jsonable(plan), "baseline": {}}
    world.records.append(
        replace(last, seq=last.seq + 1, kind=RecordKind.CHANGE_INTENDED.value, subject_id="e-1", payload=payload)
    )


@pytest.mark.parametrize(
    ("crash_at", "orders"),
    [("undecided", 0), ("decided", 1), ("resolving", 1), ("handed_over", 2), ("begun", 1)],
)
def test_an_approval_holds_across_a_crash_at_every_point_and_is_used_once(crash_at: str, orders: int):
    world = World()
    world.cycle()
    plan = world.open.proposal
    # Given a crash before the journal has the decision, right after it, while the resolution is being written, after
    # the order has left (the actuator knows it by its id), or after the actuator has begun
    world.holding = crash_at == "undecided"
    world.decide("bob")
    if crash_at not in ("undecided", "decided"):
        world.holding = crash_at == "resolving"
        world.cycle()
    if crash_at == "begun":
        _begun(world, plan)
    world.start()
    world.holding = False
    # When the new life goes on
    world.knobs = {"maxmemory": str(8 * MIB)}
    world.cycle()
    # Then the approval counts exactly where the journal has it and nobody has used it
    assert [o.proposal for o in world.orders] == [plan] * orders
    if crash_at == "undecided":
        assert world.open.state is ApprovalState.PENDING


_ACTIONS = (
    "cycle",
    "approve",
    "approve_own",
    "reject",
    "edit",
    "crash",
    "hold",
    "flush",
    "fail",
    "drift",
    "wait",
    "go",
)


@given(st.lists(st.sampled_from(_ACTIONS), max_size=14))
@hypothesis_settings(max_examples=150, deadline=None)
def test_whatever_comes_in_whatever_order_nothing_goes_ahead_without_consent(actions: list[str]):
    world = World()
    world.cycle()
    for action in actions:
        _act(world, action)
    world.holding = world.failing = False
    world.flush()
    world.cycle()


def _act(world: World, action: str) -> None:
    if action == "cycle":
        world.planned = world.plan(16 * MIB + len(world.records))
        world.cycle()
    elif action in ("approve", "approve_own", "reject"):
        approval = world.open
        author = "planner" if approval is None else approval.proposal.author
        world.decide(author if action == "approve_own" else "bob", approve=action != "reject")
    elif action == "edit":
        world.edit("ann")
    elif action == "crash":
        world.start()
    elif action in ("hold", "fail"):
        world.holding, world.failing = action == "hold", action == "fail"
    elif action == "flush":
        world.holding = world.failing = False
        world.flush()
    elif action == "drift":
        world.knobs = {"maxmemory": str(9 * MIB if world.knobs["maxmemory"] == str(8 * MIB) else 8 * MIB)}
    elif action == "wait":
        world.now_ms += SETTINGS.approval_ttl_ms
    elif world.orders:
        world.tell(ExecutionReport(execution=_execution(world.orders[-1].proposal, ExecutionState.KEPT)), "actuator")
