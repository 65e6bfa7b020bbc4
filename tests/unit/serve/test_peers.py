"""HTTP peers as the API shows them: a peer that is down degrades, and takes no decision away."""

from __future__ import annotations

import dataclasses

import pytest
from serve_world import CONSTITUTION, NOW_MS, SETTINGS, Site, fleet, proposal, standing, state

from cachewarden.messages import Decision
from cachewarden.models import CacheOptimizationRequest
from cachewarden.peer_messages import PeerHealth
from cachewarden.peering import Opinion
from cachewarden.policy.second_opinion import SECOND_OPINION, with_opinion
from cachewarden.protocol import AgentHealth
from serve.decision import Asked, Grounds, decide

DOWN = PeerHealth(
    name="integrity",
    healthy=False,
    detail="cannot be reached (ConnectError), 12 records wait, the oldest 35 s",
    circuit="open",
    lag_records=12,
    lag_ms=35_000,
    done=3,
    failures=8,
    violations=1,
)


@pytest.fixture
def site_with_peers(site: Site) -> Site:
    site.backend.known = dataclasses.replace(site.backend.known, peers={"integrity": DOWN})
    return site


async def test_a_peer_that_is_down_is_degraded_and_the_service_healthy(site_with_peers: Site):
    answer = await site_with_peers.ask("GET", "/health", token=None)
    assert answer.status_code == 200
    assert answer.json()["status"] == "healthy"
    assert answer.json()["components"]["peer:integrity"] == f"degraded: {DOWN.detail}"


async def test_an_envoy_that_is_down_is_degraded_too_and_any_other_agent_is_not(site_with_peers: Site):
    known = site_with_peers.backend.known
    down = AgentHealth(name="envoy", alive=False, last_seen_ms=NOW_MS)
    site_with_peers.backend.known = dataclasses.replace(known, agents={"envoy": down})
    answer = await site_with_peers.ask("GET", "/health", token=None)
    assert answer.status_code == 200
    assert answer.json()["components"]["agent:envoy"] == "degraded: down, nothing is delivered"
    site_with_peers.backend.known = dataclasses.replace(
        known, agents={"planner": dataclasses.replace(down, name="planner")}
    )
    assert (await site_with_peers.ask("GET", "/health", token=None)).status_code == 503


async def test_the_lag_is_in_the_agents_view_and_in_the_metrics(site_with_peers: Site):
    view = (await site_with_peers.ask("GET", "/api/v1/agents", token="read")).json()
    (peer,) = view["peers"]
    assert (peer["lag_records"], peer["lag_s"], peer["circuit"], peer["violations"]) == (12, 35.0, "open", 1)
    text = (await site_with_peers.ask("GET", "/metrics", token="read")).text
    for line in (
        'cachewarden_peer_healthy{peer="integrity"} 0.0',
        'cachewarden_peer_circuit_open{peer="integrity"} 1.0',
        'cachewarden_delivery_lag_records{peer="integrity"} 12.0',
        'cachewarden_delivery_lag_seconds{peer="integrity"} 35.0',
        'cachewarden_peer_failures_total{peer="integrity"} 8.0',
        'cachewarden_peer_hash_violations_total{peer="integrity"} 1.0',
    ):
        assert line in text


async def test_the_blackboard_is_a_peer_with_its_bad_records_and_what_is_counted_there(site: Site):
    board = PeerHealth(
        name="blackboard", healthy=True, done=7, bad_records=3, violations=2, counts={"plans": 4}, conflicts=("won: a",)
    )
    site.backend.known = dataclasses.replace(site.backend.known, peers={"blackboard": board})
    (peer,) = (await site.ask("GET", "/api/v1/agents", token="read")).json()["peers"]
    assert (peer["bad_records"], peer["violations"], peer["counts"]) == (3, 2, {"plans": 4})
    assert peer["conflicts"] == ["won: a"]
    text = (await site.ask("GET", "/metrics", token="read")).text
    assert 'cachewarden_peer_bad_records_total{peer="blackboard"} 3.0' in text
    assert 'cachewarden_blackboard{what="plans"} 4.0' in text
    assert (await site.ask("GET", "/health", token=None)).json()["components"]["peer:blackboard"] == "healthy"


async def test_without_peers_nothing_is_said_of_them(site: Site):
    assert (await site.ask("GET", "/api/v1/agents", token="read")).json()["peers"] == []
    assert "cachewarden_peer" not in (await site.ask("GET", "/metrics", token="read")).text


def decided(mode: str, said: Opinion | str | None):
    plan = proposal()
    known = state(standing=standing(plan))
    if said is not None:
        decision = known.standing[plan.service]
        judged = dataclasses.replace(decision, verdict=with_opinion(decision.verdict, said, mode))
        known = dataclasses.replace(known, standing={plan.service: judged})
    settings = SETTINGS.model_copy(update={"constitutional_ai_mode": mode})
    asked = Asked(
        request=CacheOptimizationRequest(service_name=plan.service), decision_id="d", caller="x", apply="auto"
    )
    return decide(asked, known, Grounds(fleet=fleet(), constitution=CONSTITUTION, settings=settings), NOW_MS)


@pytest.mark.constitutional
@pytest.mark.parametrize("mode", ["advisory", "required"])
def test_an_opinion_of_deliberation_stands_in_the_verdict_of_a_request(mode: str):
    outcome = decided(mode, Opinion(compliant=True, score=0.9))
    assert outcome.execute is not None
    assert outcome.verdict_complete
    assert outcome.execute.verdict.findings[-1].principle_id == SECOND_OPINION


@pytest.mark.constitutional
def test_where_one_is_required_nothing_is_executed_that_nobody_was_asked_about():
    outcome = decided("required", None)
    assert outcome.execute is None
    assert outcome.verdict.decision is Decision.DENY
    assert outcome.verdict_complete
    assert "has not been asked" in outcome.response.reason


@pytest.mark.constitutional
def test_an_objection_of_deliberation_denies_a_request_too():
    outcome = decided("required", Opinion(compliant=False, score=0.1, violated=("non-maleficence",)))
    assert outcome.execute is None
    assert outcome.response.state == "denied"


@pytest.mark.constitutional
def test_advice_that_is_missing_takes_nothing_away():
    assert decided("advisory", None).execute is not None
