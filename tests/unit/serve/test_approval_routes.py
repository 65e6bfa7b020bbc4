"""Approving, rejecting, editing and taking back over HTTP: who may, what is refused and why, and dry runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cachewarden.approval import Approval, ApprovalState, DecideApproval, SubmitProposal, moved, requested
from cachewarden.messages import ExecutionState, KnobChange
from serve.security import create_token
from tests.unit.serve.serve_world import (
    MIB,
    NOW_MS,
    MemoryBackend,
    Site,
    captured_look,
    execution,
    fleet,
    proposal,
    snapshot,
    standing,
    state,
)

PLANS = "/api/v1/cache/plans"
PLAN = proposal(
    "api_gateway",
    knob_changes=(KnobChange(knob="maxmemory", before=str(40 * MIB), after=str(44 * MIB)),),
    action_class=2,
)


def pending(**changes: object) -> Approval:
    return replace(requested(PLAN, NOW_MS - 5_000, 120_000), **changes)


def site_with(tmp_path: Path, approval: Approval, **more: object) -> Site:
    seen = {s.name: snapshot(s.name) for s in fleet().services}
    around = state(standing=standing(PLAN), approvals=(approval,), **{"snapshots": seen, **more})
    backend = MemoryBackend(around)
    backend.looks["api_gateway"] = captured_look(service="api_gateway", taken_at_ms=NOW_MS - 1_000)
    made = Site(backend, tmp_path)
    made.tokens["bob"] = create_token(tmp_path, "bob", ("approve",))
    made.tokens["ann"] = create_token(tmp_path, "ann", ("approve", "operate"))
    made.tokens["ann-2"] = create_token(tmp_path, "ann-2", ("approve",), subject="ann")

    return made


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return site_with(tmp_path, pending())


async def post(site: Site, verb: str, token: str = "bob", plan: str = PLAN.proposal_id, **body: object):
    return await site.ask("POST", f"{PLANS}/{plan}/{verb}", token=token, json=body)


async def test_open_plans_are_listed_with_diff_prediction_risks_and_rollback(site: Site):
    answer = (await site.ask("GET", "/api/v1/cache/approvals", token="read")).json()
    (found,) = answer["approvals"]
    assert found["diff"] == [{"what": "maxmemory", "before": str(40 * MIB), "after": str(44 * MIB)}]
    assert (found["state"], found["author"], found["approval_required"]) == ("pending", "planner", True)
    assert found["plan"]["predicted"]["gain_low"] < found["plan"]["predicted"]["gain_high"]
    assert "it takes more memory of the host" in found["risks"]
    assert found["rollback"] == PLAN.rollback
    assert found["plan_digest"] == pending().proposal_digest


async def test_ended_plans_are_shown_on_request_only(tmp_path: Path):
    site = site_with(tmp_path, pending(state=ApprovalState.REJECTED, reason="no"))
    assert (await site.ask("GET", "/api/v1/cache/approvals")).json()["approvals"] == []
    everything = (await site.ask("GET", "/api/v1/cache/approvals?show=all")).json()["approvals"]
    assert [(a["state"], a["reason"]) for a in everything] == [("rejected", "no")]


async def test_an_approval_goes_to_the_coordinator_under_the_name_of_the_token(site: Site):
    answer = await post(site, "approve", reason="looks right")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["done"], told["decision"], told["by"]) == (True, "approved", "bob")
    assert told["judged"]["decision"] == "allow", told["judged"]
    assert told["plan"]["state"] == "approved"
    (command,) = site.backend.decisions
    assert isinstance(command, DecideApproval)
    assert (command.by, command.token, command.approve) == ("bob", "bob", True)
    assert command.proposal_digest == pending().proposal_digest


async def test_a_dry_run_says_what_would_happen_and_hands_nothing_over(site: Site):
    for verb, token in (("approve", "bob"), ("reject", "bob"), ("edit", "ann")):
        body = {"reason": "trying", **({"changes": {"maxmemory": "42mb"}} if verb == "edit" else {})}
        answer = await post(site, f"{verb}?dry_run=true", token, **body)
        assert answer.status_code == 200, answer.text
        assert (answer.json()["done"], answer.json()["dry_run"]) == (False, True)
        assert answer.json()["next"]
    assert site.backend.decisions == []
    assert site.backend.records == []


@pytest.mark.parametrize("token", ["ann", "ann-2"])
async def test_the_author_is_refused_with_every_token_of_his_and_it_is_audited(tmp_path: Path, token: str):
    site = site_with(tmp_path, replace(requested(replace(PLAN, author="ann"), NOW_MS, 60_000)))
    answer = await post(site, "approve", token)
    assert answer.status_code == 403
    assert answer.json()["error"]["message"].startswith("you are the author")
    assert site.backend.decisions == []
    assert site.backend.records[-1].payload["identity"] == "ann"


async def test_an_admin_cannot_approve_what_it_authored(tmp_path: Path):
    site = site_with(tmp_path, requested(replace(PLAN, author="admin"), NOW_MS, 60_000))
    assert (await post(site, "approve", "admin")).status_code == 403


async def test_without_the_scope_nobody_decides(site: Site):
    assert (await post(site, "approve", "operate")).status_code == 403
    assert (await post(site, "reject", "read", reason="no")).status_code == 403
    assert (await post(site, "edit", "bob", reason="x", changes={"maxmemory": "42mb"})).status_code == 403
    assert (await post(site, "rollback", "bob", reason="x")).status_code == 403
    assert site.backend.decisions == []


@pytest.mark.parametrize(
    ("approval", "body", "words"),
    [
        (pending(expires_at_ms=NOW_MS), {}, "expired"),
        (pending(), {"plan_digest": "0" * 64}, "has changed"),
        (pending(state=ApprovalState.SUPERSEDED, reason="by `p-2`"), {}, "superseded"),
        (moved(pending(), ApprovalState.APPROVED, NOW_MS, by="eve"), {}, "approved by `eve` already"),
        (pending(required=False), {}, "needs no approval"),
    ],
)
async def test_what_cannot_be_approved_is_409_with_the_reason(tmp_path: Path, approval, body, words):
    site = site_with(tmp_path, approval)
    answer = await post(site, "approve", **body)
    assert answer.status_code == 409
    assert words in answer.json()["error"]["message"]
    assert site.backend.decisions == []


async def test_what_the_coordinator_refuses_is_told(site: Site):
    site.backend.decision_refusal = "another decision on the plan is being recorded"
    answer = await post(site, "approve")
    assert (answer.status_code, "another decision" in answer.text) == (409, True)


async def test_an_unknown_plan_is_404_with_a_near_miss_and_one_that_needs_no_approval_409(site: Site):
    answer = await post(site, "approve", plan="p-api_gatewai")
    assert answer.status_code == 404
    assert answer.json()["error"]["details"]["did_you_mean"] == PLAN.proposal_id
    site.backend.known = state(standing=standing(proposal()))
    assert (await post(site, "approve", plan="p-constitutional_ai")).status_code == 409


async def test_a_rejection_needs_a_reason(site: Site):
    assert (await post(site, "reject")).status_code == 422
    answer = await post(site, "reject", reason="not on a Friday")
    assert "do not propose the same change within 3600 s" in answer.json()["next"]
    assert site.backend.decisions[0].approve is False


async def test_a_typo_in_the_body_is_named(site: Site):
    answer = await post(site, "approve", resaon="x")
    assert answer.status_code == 422
    assert "did you mean `reason`" in answer.text
    assert (await post(site, "approve", by="somebody else")).status_code == 422


async def test_a_denied_plan_can_be_approved_and_the_answer_says_that_it_waits(tmp_path: Path):
    huge = replace(PLAN, knob_changes=(KnobChange(knob="maxmemory", before=str(40 * MIB), after=str(300 * MIB)),))
    site = site_with(tmp_path, requested(huge, NOW_MS, 60_000))
    told = (await post(site, "approve")).json()
    assert told["judged"]["decision"] == "deny"
    assert "the constitution denies it now" in told["next"]


async def test_an_edit_is_a_new_predicted_and_judged_plan_of_the_editor(site: Site):
    answer = await post(site, "edit", "ann", reason="half of it", changes={"maxmemory": "42mb"})
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["plan"]["author"] == "ann"
    assert told["plan"]["diff"] == [{"what": "maxmemory", "before": str(40 * MIB), "after": str(42 * MIB)}]
    assert told["plan"]["replaces"] == PLAN.proposal_id
    assert told["plan"]["plan"]["predicted"]["hit_ratio_after"] > 0
    assert told["judged"] is not None
    assert "somebody else than `ann`" in told["next"]
    (command,) = site.backend.decisions
    assert isinstance(command, SubmitProposal)
    assert command.replaces_digest == pending().proposal_digest
    assert command.proposal is not None
    assert command.proposal.author == "ann"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"maxmemory": "lots"}, "amount of memory"),
        ({"appendonly": "yes"}, "not in the knob table"),
        ({"lazyfree-lazy-eviction": "yes"}, "is not predicted"),
        ({"maxmemory": "40mb"}, "like that already"),
        ({"maxmemory": None}, "like that already"),
    ],
)
async def test_an_edit_that_makes_no_plan_is_409_with_the_reason(site: Site, changes, words):
    answer = await post(site, "edit", "ann", reason="x", changes=changes)
    assert answer.status_code == 409
    assert words in answer.json()["error"]["message"]
    assert site.backend.decisions == []


async def test_without_evidence_an_edit_is_refused_rather_than_guessed(site: Site):
    site.backend.looks["api_gateway"] = snapshot("api_gateway", hits=3, misses=1, taken_at_ms=NOW_MS - 1_000)
    answer = await post(site, "edit", "ann", reason="x", changes={"maxmemory": "42mb"})
    assert answer.status_code == 409
    assert "cannot be predicted: not enough evidence" in answer.json()["error"]["message"]


async def test_a_change_in_flight_is_stopped_by_a_rollback(tmp_path: Path):
    running = execution(PLAN, ExecutionState.OBSERVING)
    site = site_with(tmp_path, pending(state=ApprovalState.HANDED_OVER), executions=(running,))
    answer = await post(site, "rollback", "ann", reason="errors")
    assert answer.status_code == 200, answer.text
    (command,) = site.backend.decisions
    assert (command.stop, command.proposal, command.takes_back) == (True, None, PLAN)


async def test_a_kept_change_is_taken_back_by_a_plan_with_the_old_values(tmp_path: Path):
    done = execution(PLAN, ExecutionState.KEPT, hit_ratio_after=0.9)
    site = site_with(tmp_path, pending(state=ApprovalState.HANDED_OVER), executions=(done,))
    now = {"maxmemory": str(44 * MIB), "maxmemory-policy": "allkeys-lru", "maxmemory-samples": "5"}
    look = captured_look(
        service="api_gateway",
        taken_at_ms=NOW_MS - 1_000,
        knobs=now,
        maxmemory_bytes=44 * MIB,
        used_memory_bytes=43 * MIB,
    )
    site.backend.looks["api_gateway"] = look
    site.backend.known = replace(
        site.backend.known, snapshots={**site.backend.known.snapshots, "api_gateway": look.light()}
    )
    answer = await post(site, "rollback", "ann", reason="the host needs it")
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert told["plan"]["diff"] == [{"what": "maxmemory", "before": str(44 * MIB), "after": str(40 * MIB)}]
    assert told["plan"]["plan"]["playbook"] == "shrink"
    (command,) = site.backend.decisions
    assert command.proposal.takes_back == PLAN.proposal_id
    assert command.stop is False


async def test_a_knob_that_was_changed_since_is_not_taken_back(tmp_path: Path):
    done = execution(PLAN, ExecutionState.KEPT)
    site = site_with(tmp_path, pending(state=ApprovalState.HANDED_OVER), executions=(done,))
    answer = await post(site, "rollback", "ann", reason="x")
    assert answer.status_code == 409
    assert "it was changed since" in answer.json()["error"]["message"]


async def test_what_was_not_carried_out_or_is_taken_back_already_is_409(tmp_path: Path):
    site = site_with(tmp_path, pending())
    assert "was not carried out" in (await post(site, "rollback", "ann", reason="x")).text
    gone = execution(PLAN, ExecutionState.ROLLED_BACK)
    site.backend.known = replace(site.backend.known, executions=(gone,))
    answer = await post(site, "rollback", "ann", reason="x")
    assert (answer.status_code, "nothing to take back" in answer.text) == (409, True)


async def test_a_plan_that_has_ended_is_still_found_by_its_id(tmp_path: Path):
    site = site_with(tmp_path, pending(state=ApprovalState.EXPIRED, reason="nobody decided in time"))
    site.backend.known = replace(site.backend.known, standing={})
    found = (await site.ask("GET", f"{PLANS}/{PLAN.proposal_id}")).json()["plan"]
    assert (found["state"], found["reason"]) == ("expired", "nobody decided in time")
