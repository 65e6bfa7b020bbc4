"""The optimisation over HTTP: what is waited for, recorded and told."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest
from serve_world import NOW_MS, Site, execution, idle, proposal, standing, state

from cachewarden.errors import TargetUnavailable
from cachewarden.messages import CONSTITUTIONAL_HASH, ExecutionState, ResolutionOutcome
from cachewarden.protocol import RunCycle, SetPaused, StandingDecision

ANSWER_FIELDS = {
    "optimization_applied",
    "optimization_plan",
    "performance_improvement",
    "constitutional_compliance",
    "recommendations",
    "risk_assessment",
    "estimated_impact",
    "constitutional_hash",
    "performance_metrics",
}


async def test_a_confirmed_change_is_applied_and_was_recorded_before_it_was_handed_over(site: Site):
    plan = proposal()
    site.backend.reports = [execution(plan, ExecutionState.STEPPING), execution(plan, ExecutionState.OBSERVING)]
    answer = await site.optimize()
    assert answer["optimization_applied"] is True
    assert answer["state"] == "in_flight"
    assert set(answer) >= ANSWER_FIELDS
    assert [r.kind for r in site.backend.records] == ["request_decided"]
    assert site.backend.records[0].subject_id == answer["decision_id"]
    assert site.backend.records[0].payload["caller"] == "operator"
    assert answer["performance_metrics"]["optimization_duration_ms"] >= answer["performance_metrics"]["decision_ms"] > 0


async def test_a_change_without_a_report_is_accepted_but_not_applied(site: Site):
    answer = await site.optimize()
    assert answer["optimization_applied"] is False
    assert answer["state"] == "accepted"
    assert "not reported yet" in answer["reason"]
    assert len(site.backend.executed) == 1


async def test_async_hands_over_and_does_not_wait(site: Site):
    site.backend.reports = [execution(proposal(), ExecutionState.OBSERVING)]
    answer = await site.optimize(apply="async")
    assert answer["optimization_applied"] is False
    assert len(site.backend.executed) == 1
    assert len(site.backend.reports) == 1


async def test_never_hands_nothing_over(site: Site):
    answer = await site.optimize(apply="never")
    assert answer["state"] == "dry_run"
    assert site.backend.executed == []


async def test_a_change_that_was_taken_back_says_so(site: Site):
    site.backend.reports = [execution(proposal(), ExecutionState.ROLLED_BACK, reason="less than promised")]
    answer = await site.optimize()
    assert answer["optimization_applied"] is False
    assert answer["state"] == "rolled_back"
    assert "less than promised" in answer["reason"]


@pytest.mark.constitutional
async def test_without_a_journal_nothing_is_decided_or_done(site: Site):
    site.backend.journal_down = True
    response = await site.ask("POST", "/api/v1/cache/optimize", json={"service_name": "constitutional_ai"})
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert response.json()["error"]["code"] == "SERVICE_UNAVAILABLE"
    assert "10.0.0.7" not in response.text
    assert site.backend.executed == []


@pytest.mark.constitutional
async def test_nothing_is_answered_or_done_before_the_decision_is_durable_whatever_was_made_ready_meanwhile(site: Site):
    durable = site.backend.journal_answers = asyncio.Event()
    asked = asyncio.create_task(site.optimize())
    done, _ = await asyncio.wait((asked,), timeout=0.05)
    assert not done
    assert (site.backend.executed, site.backend.records) == ([], [])
    durable.set()
    answer = await asked
    assert [r.subject_id for r in site.backend.records] == [answer["decision_id"]]
    assert len(site.backend.executed) == 1
    assert {"answer_ms", "journal_ms"} <= set(answer["performance_metrics"])


@pytest.mark.constitutional
async def test_a_decision_whose_answer_cannot_be_made_is_not_carried_out(site: Site, monkeypatch):
    def broken(*_: object) -> object:
        raise KeyError("a bug")

    monkeypatch.setattr("serve.decision.compliance_of", broken)
    response = await site.ask("POST", "/api/v1/cache/optimize", json={"service_name": "constitutional_ai"})
    assert response.status_code == 500
    assert (site.backend.executed, site.backend.records) == ([], [])


@pytest.mark.constitutional
async def test_nothing_is_decided_on_what_a_coordinator_of_another_version_says(site: Site):
    site.backend.misunderstood = "the coordinator is of another version of cachewarden"
    response = await site.ask("POST", "/api/v1/cache/optimize", json={"service_name": "constitutional_ai"})
    assert response.status_code == 503
    assert response.headers["Retry-After"]
    assert "another version" in response.json()["error"]["message"]
    assert (site.backend.executed, site.backend.records) == ([], [])
    health = await site.ask("GET", "/health")
    assert health.status_code == 503
    assert "another version" in health.json()["components"]["coordinator"]


async def test_a_stale_state_is_503_and_says_how_old_it_is(site: Site):
    site.backend.clock_ms = NOW_MS + 60_001
    response = await site.ask("POST", "/api/v1/cache/optimize", json={"service_name": "constitutional_ai"})
    assert response.status_code == 503
    assert "too old" in response.json()["error"]["message"]


async def test_a_forced_request_runs_a_cycle_and_decides_on_what_it_found(site: Site):
    site.backend.known = state(standing=standing(proposal(), ResolutionOutcome.WAIT, "cool-down"))
    site.backend.after_cycle = state(version=2, at_ms=NOW_MS + 10, standing=standing(proposal(), at_ms=NOW_MS + 5))
    site.backend.reports = [execution(proposal(), ExecutionState.OBSERVING)]
    answer = await site.optimize(force_optimization=True)
    assert site.backend.commands == [RunCycle(force=("constitutional_ai",))]
    assert answer["optimization_applied"] is True
    assert [r.kind for r in site.backend.records] == ["request_decided", "request_decided"]


async def test_a_forced_request_whose_cycle_takes_long_says_that_one_was_started(site: Site):
    site.backend.known = state(standing=idle())
    answer = await site.optimize(force_optimization=True)
    assert answer["state"] == "nothing_to_do"
    assert any("a cycle" in line for line in answer["recommendations"])


async def test_metrics_have_the_prescribed_fields_computed_over_the_fleet(site: Site):
    await site.optimize(apply="never")
    site.backend.known = dataclasses.replace(site.backend.known, last_change_ms=NOW_MS)
    answer = (await site.ask("GET", "/api/v1/cache/metrics", token="read")).json()
    assert answer["cache_hit_rate"] == pytest.approx(0.8)
    assert answer["memory_efficiency"] == pytest.approx(0.9)
    assert answer["p99_latency_ms"] == pytest.approx(0.8)
    assert answer["constitutional_compliance_rate"] == 1.0
    assert answer["decisions"] == 5
    assert answer["optimization_requests_per_second"] > 0
    assert answer["last_optimization_timestamp"].endswith("Z")
    assert set(answer["services"]) == set(site.backend.fleet.names)
    assert answer["services"]["constitutional_ai"]["hit_ratio_before"] == 0.7
    assert answer["services"]["blackboard_service"]["observed"] is False


async def test_metrics_of_nothing_are_null(site: Site):
    site.backend.known = state(snapshots={}, decisions=0, decisions_compliant=0)
    answer = (await site.ask("GET", "/api/v1/cache/metrics")).json()
    assert [
        answer[name]
        for name in ("cache_hit_rate", "memory_efficiency", "p99_latency_ms", "last_optimization_timestamp")
    ] == [None] * 4
    assert answer["constitutional_compliance_rate"] is None


async def test_plans_show_predicted_and_realised_side_by_side(site: Site):
    done = execution(proposal(), ExecutionState.KEPT, hit_ratio_after=0.95)
    site.backend.known = state(standing=standing(proposal("api_gateway")), executions=(done,))
    listed = (await site.ask("GET", "/api/v1/cache/plans")).json()["plans"]
    assert {p["id"] for p in listed} == {"p-api_gateway", "p-constitutional_ai"}
    one = (await site.ask("GET", "/api/v1/cache/plans/p-constitutional_ai")).json()["plan"]
    assert one["predicted"]["hit_ratio_after"] == 0.96
    hits = {"hit_ratio_before": 0.8, "hit_ratio_after": 0.95, "gain": pytest.approx(0.15)}
    assert one["realised"] == {**hits, "freed_bytes": None, "peak_share": None}
    assert one["inside_interval"] is True
    pending = (await site.ask("GET", "/api/v1/cache/plans/p-api_gateway")).json()["plan"]
    assert pending["realised"] is None
    assert pending["verdict"] == "allow"


async def test_an_unknown_plan_is_404_with_the_one_that_was_meant(site: Site):
    error = (await site.ask("GET", "/api/v1/cache/plans/p-constitutional_a")).json()["error"]
    assert error["status_code"] == 404
    assert error["details"]["did_you_mean"] == "p-constitutional_ai"


async def test_services_agents_and_audit_can_be_looked_at(site: Site):
    await site.optimize(apply="never")
    services = (await site.ask("GET", "/api/v1/cache/services")).json()["services"]
    assert [s["name"] for s in services] == list(site.backend.fleet.names)
    one = (await site.ask("GET", "/api/v1/cache/services/constitutional_ai")).json()["service"]
    assert one["knobs"]["maxmemory-policy"] == "allkeys-lru"
    agents = (await site.ask("GET", "/api/v1/agents")).json()
    assert agents["agent_id"] == "cache_performance_optimizer"
    assert agents["agents"][0]["name"] == "planner"
    page = (await site.ask("GET", "/api/v1/audit?limit=1")).json()
    assert page["records"][0]["kind"] == "request_decided"
    assert page["next_after_seq"] == 1
    verified = (await site.ask("GET", "/api/v1/audit/verify")).json()
    assert verified["ok"] is True
    site.backend.records[0] = dataclasses.replace(site.backend.records[0], agent="mallory")
    verified = (await site.ask("GET", "/api/v1/audit/verify")).json()
    assert verified["ok"] is False
    assert verified["problems"][0]["seq"] == 1


async def test_warming_is_audited_as_one_operation_without_key_names(site: Site):
    response = await site.ask(
        "POST",
        "/api/v1/cache/warm",
        json={"service_name": "constitutional_ai", "cache_keys": ["policy:secret-one", "policy:two"]},
    )
    answer = response.json()
    assert answer["counts"]["warmed"] == 2
    assert [k["key"] for k in answer["keys"]] == ["policy:secret-one", "policy:two"]
    intended, finished = site.backend.records
    assert intended.payload["phase"] == "intended"
    assert finished.payload["counts"]["warmed"] == 2
    assert intended.subject_id == finished.subject_id == answer["operation_id"]
    assert "secret-one" not in str(intended) + str(finished)


async def test_warming_that_breaks_off_has_an_ending_in_the_journal(site: Site, monkeypatch: pytest.MonkeyPatch):
    async def breaks(service: str, keys: object, course: object) -> None:
        raise TargetUnavailable(service, "gone")

    monkeypatch.setattr(site.backend, "warm", breaks)
    body = {"service_name": "constitutional_ai", "cache_keys": ["policy:a"]}
    assert (await site.ask("POST", "/api/v1/cache/warm", json=body)).status_code == 503
    intended, failed = site.backend.records
    assert (intended.payload["phase"], failed.payload["phase"]) == ("intended", "failed")
    assert "some keys may have been stored" in failed.payload["reason"]


async def test_nothing_is_warmed_while_paused_or_without_a_journal(site: Site):
    body = {"service_name": "constitutional_ai", "cache_keys": ["policy:a"]}
    site.backend.journal_down = True
    assert (await site.ask("POST", "/api/v1/cache/warm", json=body)).status_code == 503
    site.backend.journal_down = False
    site.backend.known = state(paused=True)
    assert (await site.ask("POST", "/api/v1/cache/warm", json=body)).status_code == 409
    assert site.backend.warmed == []


async def test_a_thousand_keys_are_answered_at_once_and_one_more_becomes_a_job(site: Site):
    keys = [f"policy:{'x' * 80}:{i}" for i in range(1001)]
    taken = await site.ask(
        "POST", "/api/v1/cache/warm", json={"service_name": "constitutional_ai", "cache_keys": keys[:1000]}
    )
    assert taken.status_code == 200
    longer = await site.ask(
        "POST", "/api/v1/cache/warm", json={"service_name": "constitutional_ai", "cache_keys": keys}
    )
    assert longer.status_code == 202
    assert longer.json()["keys_total"] == 1001


@pytest.mark.parametrize(
    ("word", "command"),
    [
        ("pause", SetPaused(paused=True, by="operator", reason="why")),
        ("resume", SetPaused(paused=False, by="operator", reason="why")),
        ("kill", SetPaused(paused=True, by="operator", reason="why", kill=True)),
    ],
)
async def test_control_reaches_the_coordinator_with_name_and_reason(site: Site, word: str, command: SetPaused):
    site.backend.known = None
    answer = await site.ask("POST", f"/api/v1/control/{word}", json={"reason": "why"})
    assert answer.json()["accepted"] is True
    assert site.backend.commands == [command]


async def test_health_needs_no_token_and_says_what_is_wrong(site: Site):
    healthy = await site.ask("GET", "/health", token=None)
    assert healthy.status_code == 200
    assert healthy.json()["status"] == "healthy"
    assert healthy.json()["constitutional_hash"] == CONSTITUTIONAL_HASH
    site.backend.parts["journal"] = "does not answer"
    sick = await site.ask("GET", "/health", token=None)
    assert sick.status_code == 503
    assert sick.json()["components"]["journal"] == "does not answer"
    site.backend.parts["journal"] = "healthy"
    site.backend.known = None
    assert (await site.ask("GET", "/health", token=None)).status_code == 503


async def test_prometheus_text_has_the_prescribed_names(site: Site):
    await site.optimize(apply="never")
    await site.ask("GET", "/api/v1/cache/metrics", headers={"X-Constitutional-Hash": "beef"})
    text = (await site.ask("GET", "/metrics", token="read")).text
    for line in (
        f'acgs_constitutional_compliance{{hash="{CONSTITUTIONAL_HASH}",service="cache_performance_optimizer"}} 1.0',
        'acgs_constitutional_hash_valid{service="cache_performance_optimizer"} 1.0',
        'acgs_constitutional_compliance_rate{service="cache_performance_optimizer"} 1.0',
        'acgs_constitutional_violations_total{severity="critical"} 1.0',
        'violation_type="wrong_header"} 1.0',
        'cachewarden_hit_ratio{cache="constitutional_ai"} 0.8',
        'acgs_http_requests_total{endpoint="/api/v1/cache/optimize",method="POST",service="cache_performance_optimizer",status_code="200"} 1.0',
        "# TYPE acgs_http_request_duration_seconds histogram",
        "acgs_service_info",
    ):
        assert line in text, line


async def test_a_plan_under_another_constitution_is_seen_in_the_metrics(site: Site):
    plan = proposal(constitutional_hash="deadbeefdeadbeef")
    standing_now = StandingDecision(service=plan.service, decided_at_ms=NOW_MS - 800, proposal=plan)
    site.backend.known = state(standing={plan.service: standing_now})
    text = (await site.ask("GET", "/metrics", token="read")).text
    assert 'acgs_constitutional_hash_valid{service="cache_performance_optimizer"} 0.0' in text


async def test_the_published_document_describes_every_route_its_errors_and_the_token(site: Site):
    document = (await site.ask("GET", "/openapi.json", token="read")).json()
    assert set(document["paths"]) == {
        "/api/v1/cache/optimize",
        "/api/v1/cache/metrics",
        "/api/v1/cache/warm",
        "/api/v1/cache/warm/{job_id}",
        *(f"/api/v1/cache/warm/{{job_id}}/{what}" for what in ("outcomes", "events", "cancel")),
        "/api/v1/cache/whatif",
        "/api/v1/cache/services/{name}/curve",
        "/api/v1/cache/services/{name}/memory",
        "/api/v1/cache/services/{name}/hotkeys",
        "/api/v1/cache/services/{name}/ttl",
        "/api/v1/cache/feed",
        "/api/v1/cache/feed/{service_name}",
        "/health",
        "/metrics",
        "/api/v1/cache/plans",
        "/api/v1/cache/plans/{plan_id}",
        "/api/v1/cache/score",
        "/api/v1/cache/services",
        "/api/v1/cache/services/{name}",
        "/api/v1/agents",
        "/api/v1/audit",
        "/api/v1/audit/verify",
        "/api/v1/control/mode",
        "/api/v1/control/pause",
        "/api/v1/control/resume",
        "/api/v1/control/kill",
        "/api/v1/cache/approvals",
        *(f"/api/v1/cache/plans/{{plan_id}}/{verb}" for verb in ("approve", "reject", "edit", "rollback")),
    }
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert {"401", "403", "404", "422", "503"} <= set(operation["responses"]), path
            assert operation["security"] == ([] if path == "/health" else [{"bearer": []}])
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"
