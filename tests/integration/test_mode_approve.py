"""Mode `approve` on a real server with the real loop: it waits, another person approves over HTTP, it acts and keeps;
and what is rejected, expired or edited is not carried out."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from cachewarden.messages import ExecutionState, Mode
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.world import CacheSpec, World, traffic, until

pytestmark = pytest.mark.integration


class People:
    """The API in process, and a token for each person."""

    def __init__(self, client: httpx.AsyncClient, tokens: dict[str, str]) -> None:
        self._client = client
        self._tokens = tokens

    async def ask(self, who: str, method: str, path: str, body: object = None) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._tokens[who]}"}
        return await self._client.request(method, f"/api/v1/cache{path}", json=body, headers=headers)

    async def pending(self) -> dict | None:
        answer = await self.ask("ann", "GET", "/approvals")
        found = answer.json().get("approvals", []) if answer.status_code == 200 else []
        return next((a for a in found if a["state"] == "pending"), None)


@contextlib.asynccontextmanager
async def people(world: World, agents, state_dir: Path) -> AsyncIterator[People]:
    tokens = {
        "ann": create_token(state_dir, "ann", ("operate", "approve")),
        "bob": create_token(state_dir, "bob", ("approve",)),
        "ann-at-night": create_token(state_dir, "ann-at-night", ("approve",), subject="ann"),
    }
    backend = AgentBackend(world.plan, agents)
    transport = httpx.ASGITransport(app=create_app(backend, TokenStore(state_dir), wait_s=3.0))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", timeout=60) as client:
            yield People(client, tokens)
    finally:
        await backend.close()


def shop(**changes: object) -> CacheSpec:
    return CacheSpec(eviction_policy="noeviction", load=traffic("shop"), wishes={"mode": Mode.APPROVE}, **changes)


async def test_a_plan_waits_for_a_person_and_is_applied_and_kept_once_one_approves(tmp_path):
    async with World(tmp_path, shop()) as world, world.agents() as agents, people(world, agents, tmp_path) as api:
        plan = await until(api.pending, 60, "a plan that awaits approval")
        assert plan["author"] == "planner"
        policy = next(line for line in plan["diff"] if line["what"] == "maxmemory-policy")
        assert policy["before"] == "noeviction"
        # Several cycles later it is still the same plan, and the cache is untouched
        cycle = (await world.state()).cycle

        async def later():
            return (await world.state()).cycle > cycle + 2

        await until(later, what="three more cycles")
        assert (await api.pending())["plan_id"] == plan["plan_id"]
        assert world.config_sets() == 0
        path = f"/plans/{plan['plan_id']}/approve"
        tried = await api.ask("bob", "POST", f"{path}?dry_run=true", {"reason": "only looking"})
        assert tried.json()["done"] is False
        assert (await api.pending())["plan_id"] == plan["plan_id"]
        approved = await api.ask("bob", "POST", path, {"plan_digest": plan["plan_digest"], "reason": "looks right"})
        assert approved.status_code == 200, approved.text
        execution = await world.finished(plan["plan_id"], timeout_s=60)
        assert execution.state is ExecutionState.KEPT, execution.reason
        assert world.knob("maxmemory-policy") == policy["after"]
        kinds = [r.kind for r in await world.records() if r.subject_id == plan["plan_id"]]
        assert kinds.index("approval_requested") < kinds.index("approved") < kinds.index("change_intended")
        given = (await world.records("approved"))[0].payload
        assert (given["by"], given["token"], given["reason"]) == ("bob", "bob", "looks right")
        assert given["proposal_digest"] == plan["plan_digest"]
        intended = (await world.records("change_intended"))[0].payload
        assert intended["approved_by"] == "bob"
        again = await api.ask("bob", "POST", path, {})
        assert again.status_code == 409
        await world.assert_sound()


async def test_a_rejected_plan_is_not_carried_out_and_not_proposed_again(tmp_path):
    async with World(tmp_path, shop()) as world, world.agents() as agents, people(world, agents, tmp_path) as api:
        plan = await until(api.pending, 60, "a plan that awaits approval")
        rejected = await api.ask("bob", "POST", f"/plans/{plan['plan_id']}/reject", {"reason": "not on a Friday"})
        assert rejected.status_code == 200, rejected.text
        cycle = (await world.state()).cycle

        async def told():
            state = await world.state()
            standing = state.standing["shop"]
            rests = standing.resolution is not None and "not on a Friday" in standing.resolution.reason
            return state if rests and state.cycle > cycle + 2 else None

        await until(told, 60, "cycles that let the change rest")
        assert await api.pending() is None
        assert world.config_sets() == 0
        await world.assert_sound()


async def test_an_unanswered_plan_expires_and_the_next_cycle_asks_anew(tmp_path):
    world = World(tmp_path, shop(), approval_ttl_ms=10_000, proposal_ttl_ms=10_000)
    async with world, world.agents() as agents, people(world, agents, tmp_path) as api:
        first = await until(api.pending, 60, "a plan that awaits approval")
        await world.recorded("approval_expired", timeout_s=60)
        late = await api.ask("bob", "POST", f"/plans/{first['plan_id']}/approve", {})
        assert late.status_code == 409
        assert "expired" in late.json()["error"]["message"]

        async def another():
            found = await api.pending()
            return found if found is not None and found["plan_id"] != first["plan_id"] else None

        await until(another, 60, "a new plan")
        assert world.config_sets() == 0


async def test_whoever_edits_a_plan_cannot_approve_it_not_even_with_another_token(tmp_path):
    async with World(tmp_path, shop()) as world, world.agents() as agents, people(world, agents, tmp_path) as api:
        plan = await until(api.pending, 60, "a plan that awaits approval")
        body = {"reason": "spare the volatile ones", "changes": {"maxmemory-policy": "allkeys-random"}}

        async def predicted():
            answer = await api.ask("ann", "POST", f"/plans/{plan['plan_id']}/edit", body)
            assert answer.status_code in (200, 409), answer.text
            return answer if answer.status_code == 200 else None

        answer = await until(predicted, 60, "a look that carries a prediction")
        new = answer.json()["plan"]
        assert new["author"] == "ann"
        assert new["replaces"] == plan["plan_id"]
        path = f"/plans/{new['plan_id']}/approve"
        for token in ("ann", "ann-at-night"):
            refused = await api.ask(token, "POST", path, {})
            assert refused.status_code == 403
            assert "you are the author" in refused.json()["error"]["message"]
        old = await api.ask("bob", "POST", f"/plans/{plan['plan_id']}/approve", {})
        assert old.status_code == 409
        approved = await api.ask("bob", "POST", path, {"reason": "fine"})
        assert approved.status_code == 200, approved.text
        execution = await world.finished(new["plan_id"], timeout_s=60)
        assert execution.state in (ExecutionState.KEPT, ExecutionState.ROLLED_BACK), execution.reason
        await world.assert_sound()


async def test_a_kept_change_goes_back_on_request_by_a_plan_that_somebody_else_approves(tmp_path):
    async with World(tmp_path, shop()) as world, world.agents() as agents, people(world, agents, tmp_path) as api:
        plan = await until(api.pending, 60, "a plan that awaits approval")
        assert (await api.ask("bob", "POST", f"/plans/{plan['plan_id']}/approve", {})).status_code == 200
        execution = await world.finished(plan["plan_id"], timeout_s=60)
        assert execution.state is ExecutionState.KEPT, execution.reason

        async def known_as_kept():
            answer = await api.ask("ann", "GET", f"/plans/{plan['plan_id']}")
            return answer.json()["plan"]["state"] == "kept"

        # A change that the replica still believes in flight is stopped, not judged
        await until(known_as_kept, what="the replica to have heard of the end")
        back = await api.ask("ann", "POST", f"/plans/{plan['plan_id']}/rollback", {"reason": "the team wants errors"})
        # A cache that refuses writes when it is full: the constitution denies that, and the answer says so
        assert back.status_code == 200, back.text
        assert "a-full-cache-keeps-taking-writes" in back.json()["judged"]["denied_by"]
        assert (await world.records("rollback_requested"))[0].payload["by"] == "ann"
        assert world.knob("maxmemory-policy").startswith("allkeys-")
        await world.assert_sound()


async def test_an_approval_survives_a_crash_of_the_coordinator(tmp_path):
    async with World(tmp_path, shop()) as world, world.agents() as agents, people(world, agents, tmp_path) as api:
        plan = await until(api.pending, 60, "a plan that awaits approval")
        await agents.send("test", "coordinator", world_pause(paused=True))
        approved = await api.ask("bob", "POST", f"/plans/{plan['plan_id']}/approve", {})
        assert approved.status_code == 200, approved.text
        agents.kill("coordinator")
        await agents.send("test", "coordinator", world_pause(paused=False))

        async def resumed():
            state = await world.state()
            if state is not None and state.paused:
                await agents.send("test", "coordinator", world_pause(paused=False))
            return state is not None and not state.paused

        await until(resumed, 30, "the new life to go on")
        execution = await world.finished(plan["plan_id"], timeout_s=60)
        assert execution.state is ExecutionState.KEPT, execution.reason
        assert len(await world.records("approved")) == 1
        await world.assert_sound()


def world_pause(*, paused: bool):
    from cachewarden.protocol import SetPaused

    return SetPaused(paused=paused, by="test", reason="the moment between")
