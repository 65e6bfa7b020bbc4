"""What is worked out once for a version of the state, and what is asked again for each request."""

from __future__ import annotations

import dataclasses

import pytest
from serve_world import NOW_MS, grounds, proposal, snapshot, standing, state

from cachewarden.messages import Intent
from cachewarden.models import CacheOptimizationRequest
from cachewarden.protocol import FleetState, History
from serve.courses import Asked
from serve.decision import DecisionOutcome, decide
from serve.docket import Docket


def ask(known: FleetState, now_ms: int = NOW_MS, docket: Docket | None = None, **fields: object) -> DecisionOutcome:
    request = CacheOptimizationRequest(**{"service_name": "constitutional_ai", **fields})
    on = docket.grounds if docket is not None else grounds()
    return decide(Asked(request=request, decision_id="d1", caller="operator"), known, on, now_ms, docket)


def with_history(**changes: object) -> FleetState:
    return state(standing=standing(proposal()), history={"constitutional_ai": History(**changes)})


def test_a_docket_is_of_one_version_of_one_life_and_of_its_grounds():
    rest = grounds()
    known = state(life_ms=1, version=3)
    docket = Docket(known, rest)
    assert docket.holds(dataclasses.replace(known, at_ms=known.at_ms + 5_000), rest)
    assert not docket.holds(dataclasses.replace(known, version=4), rest)
    assert not docket.holds(dataclasses.replace(known, life_ms=2), rest)
    assert not docket.holds(known, grounds())
    nobody_counts = state(life_ms=0, version=3)
    assert not Docket(nobody_counts, rest).holds(state(life_ms=0, version=3), rest)


@pytest.mark.constitutional
def test_the_same_docket_judges_each_request_at_its_own_time():
    known = state(standing=standing(proposal()))
    docket = Docket(known, grounds())
    first, second = ask(known, NOW_MS, docket), ask(known, NOW_MS + 1_000, docket)
    assert (first.verdict.judged_at_ms, second.verdict.judged_at_ms) == (NOW_MS, NOW_MS + 1_000)
    assert first.execute is not None
    # The look at the cache has grown too old for the constitution, in the very same version of the state.
    late = NOW_MS + 130_000
    stale = dataclasses.replace(known, at_ms=late)
    aged = Docket(stale, docket.grounds)
    assert ask(stale, NOW_MS + 125_000, aged).execute is None


@pytest.mark.constitutional
def test_a_docket_gives_the_verdict_that_would_be_given_without_it():
    known = state(standing=standing(proposal()), snapshots={"constitutional_ai": snapshot(role="slave")})
    docket = Docket(known, grounds())
    for _ in range(2):
        assert ask(known, NOW_MS, docket).verdict == ask(known).verdict


def test_a_change_that_was_handed_over_meanwhile_is_in_flight_and_not_started_again():
    outcome = ask(with_history(in_flight="p-constitutional_ai"))
    assert outcome.execute is None
    assert outcome.response.state == "in_flight"


def test_another_change_of_the_service_that_is_in_flight_is_waited_for():
    outcome = ask(with_history(in_flight="p-other"))
    assert outcome.execute is None
    assert outcome.response.state == "waiting"
    assert "p-other" in outcome.response.reason


def test_a_budget_that_was_used_up_since_the_cycle_binds():
    outcome = ask(with_history(changes_last_hour=grounds().settings.changes_per_hour))
    assert outcome.execute is None
    assert outcome.response.state == "waiting"
    assert "change budget" in outcome.response.reason


def test_a_cool_down_binds_unless_the_request_is_forced_and_then_a_budget_binds_still():
    cooling = with_history(last_change_ms=NOW_MS - 1_000)
    assert ask(cooling).execute is None
    assert ask(cooling, force_optimization=True).execute is not None
    spent = with_history(last_change_ms=NOW_MS - 1_000, changes_last_hour=1_000)
    assert ask(spent, force_optimization=True).execute is None


def test_an_intent_of_somebody_else_that_came_since_the_cycle_binds():
    intent = Intent(
        service="constitutional_ai",
        resource="maxmemory-samples",
        holder="somebody",
        direction=-1,
        amount=1,
        until_ms=NOW_MS + 60_000,
    )
    outcome = ask(state(standing=standing(proposal()), intents=(intent,)))
    assert outcome.execute is None
    assert outcome.response.state == "yielded"
    assert "somebody" in outcome.response.reason


def test_notes_are_about_the_targets_that_are_asked_for_now():
    docket = Docket(state(standing=standing(proposal())), grounds())
    request = CacheOptimizationRequest(service_name="constitutional_ai", target_metrics={"cache_hit_rate": 0.9999})

    def told() -> str:
        asked = Asked(request=request, decision_id="d", caller="c", apply="never")
        return " ".join(decide(asked, docket.state, docket.grounds, NOW_MS, docket).response.recommendations)

    assert "0.9999" in told()
    # Whoever embeds the optimizer may ask again with the same object.
    request.target_metrics = {"cache_hit_rate": 0.97}
    assert "0.9999" not in told()
    assert "0.97" in told()


def test_a_verdict_that_lacks_a_finding_is_never_complete_however_often_it_is_asked_about():
    plan = proposal()
    docket = Docket(state(standing=standing(plan)), grounds())
    verdict = docket.state.standing[plan.service].verdict
    assert verdict is not None
    short = dataclasses.replace(verdict, findings=verdict.findings[1:])
    for _ in range(3):
        assert docket.is_complete(verdict, verdict.proposal_digest)
        assert not docket.is_complete(short, verdict.proposal_digest)
        assert not docket.is_complete(verdict, "")
        assert not docket.is_complete(dataclasses.replace(verdict, constitution_digest="x"), verdict.proposal_digest)
