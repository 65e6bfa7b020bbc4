"""Approvals: every move of the table, what a consent covers, and which plans are the same wish."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cachewarden.approval import (
    TRANSITIONS,
    Approval,
    ApprovalState,
    DecideApproval,
    Rest,
    alike,
    moved,
    needs_approval,
    refusal_of_approval,
    refusal_of_decision,
    requested,
    rest_over,
)
from cachewarden.errors import InvariantViolation
from cachewarden.messages import ActionClass, KnobChange, Mode, Proposal
from cachewarden.settings import load_settings
from tests.unit.serve.serve_world import NOW_MS, proposal

SETTINGS = load_settings()
PLAN = proposal("api_gateway")


def pending(plan: Proposal = PLAN, **changes: object) -> Approval:
    return replace(requested(plan, NOW_MS, 60_000), **changes)


def approved(by: str = "bob") -> Approval:
    return moved(pending(), ApprovalState.APPROVED, NOW_MS, by=by)


def resized(after_mib: int, before_mib: int = 40) -> Proposal:
    change = KnobChange(knob="maxmemory", before=str(before_mib << 20), after=str(after_mib << 20))
    return proposal("api_gateway", knob_changes=(change,))


def decision(**changes: object) -> DecideApproval:
    plain = {
        "proposal_id": PLAN.proposal_id,
        "proposal_digest": pending().proposal_digest,
        "approve": True,
        "by": "bob",
        "token": "bob",
        "reason": "",
        "decision_id": "d1",
    }
    return DecideApproval(**{**plain, **changes})


@pytest.mark.parametrize(("start", "end"), list(itertools.product(ApprovalState, ApprovalState)))
def test_a_move_that_the_table_does_not_have_raises_and_changes_nothing(start: ApprovalState, end: ApprovalState):
    before = pending(state=start)
    if end in TRANSITIONS[start]:
        assert moved(before, end, NOW_MS, by="bob").state is end
        return
    with pytest.raises(InvariantViolation):
        moved(before, end, NOW_MS, by="bob")
    assert before == pending(state=start)


def test_only_a_plan_that_needs_no_approval_is_handed_over_without_one():
    assert moved(pending(required=False), ApprovalState.HANDED_OVER, NOW_MS).state is ApprovalState.HANDED_OVER


@pytest.mark.parametrize("by", ["planner", ""])
def test_nobody_approves_his_own_plan(by: str):
    with pytest.raises(InvariantViolation):
        moved(pending(), ApprovalState.APPROVED, NOW_MS, by=by)


def test_nobody_approves_after_the_end_of_the_time():
    late = pending()
    with pytest.raises(InvariantViolation, match="expired"):
        moved(late, ApprovalState.APPROVED, late.expires_at_ms, by="bob")


def test_an_approval_never_outlives_its_plan():
    assert requested(PLAN, NOW_MS, 10**9).expires_at_ms == PLAN.expires_at_ms


def test_a_consent_covers_exactly_its_content_until_it_expires():
    given = approved()
    assert refusal_of_approval(given, PLAN, NOW_MS) is None
    assert "another content" in refusal_of_approval(given, replace(PLAN, rationale="something else"), NOW_MS)
    assert "expired" in refusal_of_approval(given, PLAN, given.expires_at_ms)
    assert "awaits approval" in refusal_of_approval(None, PLAN, NOW_MS)
    assert "awaits approval" in refusal_of_approval(pending(), PLAN, NOW_MS)
    assert "awaits approval" in refusal_of_approval(given, replace(PLAN, proposal_id="p-other"), NOW_MS)
    assert "own author" in refusal_of_approval(replace(given, decided_by="planner"), PLAN, NOW_MS)
    for state in ApprovalState:
        if state is not ApprovalState.APPROVED:
            assert refusal_of_approval(replace(given, state=state), PLAN, NOW_MS) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"by": "planner"}, "is the author"),
        ({"proposal_digest": "0" * 64}, "has changed"),
        ({"proposal_id": "p-none"}, "does not await"),
    ],
)
def test_a_decision_that_cannot_be_taken_says_why(changes: dict[str, object], words: str):
    assert words in refusal_of_decision(pending(), decision(**changes), NOW_MS)


def test_a_decision_on_what_has_ended_or_is_approved_already_is_refused():
    assert refusal_of_decision(pending(), decision(), NOW_MS) is None
    assert "approved by `bob` already" in refusal_of_decision(approved(), decision(by="eve"), NOW_MS)
    assert refusal_of_decision(approved(), decision(approve=False), NOW_MS) is None
    ended = pending(state=ApprovalState.SUPERSEDED, reason="by `p-2`")
    assert "superseded" in refusal_of_decision(ended, decision(), NOW_MS)
    assert "expired" in refusal_of_decision(pending(), decision(), pending().expires_at_ms)


@pytest.mark.parametrize(
    ("mode", "action_class", "lossy_too", "needed"),
    [
        (Mode.APPROVE, ActionClass.OBSERVE, False, True),
        (Mode.AUTO, ActionClass.LOSSY, False, False),
        (Mode.AUTO, ActionClass.LOSSY, True, True),
        (Mode.AUTO, ActionClass.GROWTH, True, False),
        (Mode.ADVISE, ActionClass.LOSSY, True, False),
    ],
)
def test_who_needs_approval(mode: Mode, action_class: ActionClass, lossy_too: bool, needed: bool):
    settings = load_settings(lossy_needs_approval=lossy_too)
    assert needs_approval(action_class, mode, settings) is needed


def test_sizes_that_wander_are_one_wish_and_another_direction_is_another():
    assert alike(resized(50), resized(55))
    assert not alike(resized(50), resized(70))
    assert not alike(resized(42), resized(38))
    assert not alike(resized(50), PLAN)


def test_a_change_that_was_turned_down_rests_for_the_agents_but_not_for_persons():
    rests = (Rest(proposal=resized(50), until_ms=NOW_MS + 10, by="bob", reason="no"),)
    assert rest_over(resized(52), rests, NOW_MS) is rests[0]
    assert rest_over(resized(52), rests, NOW_MS + 10) is None
    assert rest_over(replace(resized(52), author="ann"), rests, NOW_MS) is None
