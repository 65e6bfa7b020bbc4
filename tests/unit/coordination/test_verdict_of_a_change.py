"""The verdict under which a change runs is known until it has ended, whatever later cycles say of the service."""

from __future__ import annotations

from cachewarden.codec import digest
from cachewarden.messages import Decision, Finding, Verdict
from cachewarden.protocol import StandingDecision
from coordination.fleet_memory import FleetMemory
from tests.unit.policy.builders import NOW_MS, SETTINGS, fleet, proposal


def verdict_on(plan) -> Verdict:
    finding = Finding(principle_id="a", title="a", severity="low", decision=Decision.ALLOW, reason="holds")
    return Verdict(
        proposal_id=plan.proposal_id, proposal_digest=digest(plan), decision=Decision.ALLOW, findings=(finding,),
        constitution_digest="d", judged_at_ms=NOW_MS,
    )  # fmt: skip


def test_the_next_cycle_does_not_make_us_forget_under_which_verdict_a_change_was_handed_over():
    memory, plan = FleetMemory(fleet(), SETTINGS), proposal()
    verdict = verdict_on(plan)
    memory.note_standing(StandingDecision(service="cart", decided_at_ms=NOW_MS, proposal=plan, verdict=verdict))
    memory.note_handed_over(plan)
    memory.note_idle({"cart": "a change is being carried out"}, NOW_MS + 1)
    assert memory.verdict(plan) == verdict
    assert memory.verdict(proposal(proposal_id="p-other")) is None
