"""The HTTP API over the real agents: what a caller gets wrong is said, audited and harmless; what is right is done."""

from __future__ import annotations

import contextlib

import httpx
import pytest

from cachewarden.errors import ConstitutionError, FleetFileError, SettingsError
from cachewarden.fleet import load_fleet, parse_fleet
from cachewarden.knobs import check_value
from cachewarden.messages import CONSTITUTIONAL_HASH, ExecutionState, Mode
from cachewarden.policy.constitution import load_constitution
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.world import ROOT, CacheSpec, World, traffic, until

pytestmark = pytest.mark.integration
OPTIMIZE = "/api/v1/cache/optimize"


@contextlib.asynccontextmanager
async def api(world: World, agents, state_dir):
    """A client of the API over these agents, with every scope but that of an approver."""
    token = create_token(state_dir, "caller", ("operate", "read"))
    backend = AgentBackend(world.plan, agents)
    transport = httpx.ASGITransport(app=create_app(backend, TokenStore(state_dir), wait_s=3.0))
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers, timeout=30) as client:

            async def up():
                return (await client.post(OPTIMIZE, json={"service_name": "shop"})).status_code == 200

            await until(up, what="an API that decides")
            yield client
    finally:
        await backend.close()


async def test_what_a_caller_gets_wrong_is_refused_audited_and_changes_nothing(tmp_path):
    spec = CacheSpec(load=traffic("shop"), wishes={"mode": Mode.APPROVE, "capture": False})
    async with World(tmp_path, spec) as world, world.agents() as agents, api(world, agents, tmp_path) as client:
        body = {"service_name": "shop"}
        in_body = await client.post(OPTIMIZE, json={**body, "constitutional_hash": "0" * 16})
        in_header = await client.post(OPTIMIZE, json=body, headers={"X-Constitutional-Hash": "nonsense"})
        for refused in (in_body, in_header):
            assert refused.status_code == 403
            assert refused.json()["error"]["code"] == "CONSTITUTIONAL_VIOLATION"
            assert refused.headers["X-Error-ID"] == refused.json()["error"]["id"]
            assert refused.json()["error"]["constitutional_hash"] == CONSTITUTIONAL_HASH
        assert [r.payload["where"] for r in await world.records("request_refused")] == ["body", "header"]
        unknown = await client.post(OPTIMIZE, json={"service_name": "shopp"})
        assert unknown.status_code == 404
        assert unknown.json()["error"]["details"]["known_services"] == ["shop"]
        assert unknown.json()["error"]["details"]["did_you_mean"] == "shop"
        assert (await client.post(OPTIMIZE, json={**body, "optimization_type": "magic"})).status_code == 422
        assert (
            await client.post(OPTIMIZE, content=b'{"service_name": ', headers={"Content-Type": "application/json"})
        ).status_code == 400
        assert (await client.post(OPTIMIZE, json=body, headers={"Authorization": "Bearer x"})).status_code == 401
        assert world.config_sets() == 0
        assert (await world.verified()).ok


async def test_an_answer_that_says_applied_is_true_of_the_cache_and_is_scored_afterwards(tmp_path):
    spec = CacheSpec(eviction_policy="noeviction", load=traffic("shop"))
    async with World(tmp_path, spec) as world, world.agents() as agents, api(world, agents, tmp_path) as client:

        async def applied():
            answer = await client.post(OPTIMIZE, json={"service_name": "shop", "force_optimization": True})
            assert answer.status_code == 200, answer.text
            return answer if answer.json()["optimization_applied"] else None

        answer = await until(applied, 60, "an answer that says applied")
        assert world.knob("maxmemory-policy").startswith("allkeys-")
        assert answer.headers["X-Constitutional-Hash"] == CONSTITUTIONAL_HASH
        assert answer.headers["X-Constitutional-Compliance"] == "verified"
        execution = await until(lambda: _final(world), 60, "the end of the change")
        assert execution.state is ExecutionState.KEPT, execution.reason
        plan = await client.get(f"/api/v1/cache/plans/{execution.proposal.proposal_id}")
        assert plan.status_code == 200
        assert str(round(execution.hit_ratio_after, 3))[:4] in plan.text
        health = (await client.get("/health")).json()
        assert health["status"] in ("healthy", "degraded")
        verify = await client.get("/api/v1/audit/verify")
        assert verify.status_code == 200
        assert verify.json()["ok"] is True
        await world.assert_sound()


async def _final(world: World):
    found = [e for e in await world.executions() if e.state.final and e.steps]
    return found[-1] if found else None


def test_a_malformed_fleet_file_is_refused_with_file_and_line(tmp_path):
    path = tmp_path / "fleet.yaml"
    path.write_text("name: mine\nservices:\n  - name: shop\n    url: redis://127.0.0.1:1\n    mode: sometimes\n")
    with pytest.raises(FleetFileError, match=r"fleet\.yaml.*5.*mode"):
        load_fleet(path)
    with pytest.raises(FleetFileError, match=r"fleet\.yaml:\d+: not readable as YAML"):
        parse_fleet("name: mine\nservices: [\n")


def test_a_malformed_constitution_is_refused_with_file_and_line(tmp_path):
    text = (
        (ROOT / "config" / "constitution.yaml")
        .read_text()
        .replace("size(group_tenants) <= 1", "size(group_tenants <= 1")
    )
    path = tmp_path / "constitution.yaml"
    path.write_text(text)
    with pytest.raises(ConstitutionError, match=r"constitution\.yaml:\d+"):
        load_constitution(path)


@pytest.mark.parametrize(
    ("knob", "value"), [("maxmemory-samples", "0"), ("maxmemory-policy", "lru"), ("maxmemory", "-5")]
)
def test_a_knob_value_that_is_not_allowed_is_refused_with_what_is(knob, value):
    with pytest.raises(SettingsError, match=knob) as refused:
        check_value(knob, value)
    assert value in str(refused.value)
    assert any(word in str(refused.value) for word in ("allowed", "between", "one of", "at least"))
