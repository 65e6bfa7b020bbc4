"""Without the journal nothing is decided and nothing is written; with it everything goes on by itself."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from cachewarden.messages import ExecutionState, Mode
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.world import MIB, CacheSpec, World, order_for, traffic, until

pytestmark = pytest.mark.integration

QUIET = {"mode": Mode.AUTO, "capture": False, "minimum_memory_bytes": 2 * MIB}
SHRINK = [("maxmemory", str(3 * MIB))]


def quiet_spec() -> CacheSpec:
    return CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop"), wishes=QUIET)


async def test_a_journal_that_is_gone_in_the_middle_stops_the_writes_and_its_return_ends_the_change(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await agents.send("test", "coordinator", order_for(world, await world.seen(lookups=400), SHRINK))
        await world.recorded("step_applied")
        await asyncio.to_thread(world.blackboard.kill)

        async def waiting():
            return [e for e in await world.executions() if "waits for the journal" in e.reason]

        await until(waiting, 40, "an execution that waits for the journal")
        stands_at, written = world.knob("maxmemory"), world.config_sets()
        cycle = (await world.state()).cycle

        async def later():
            state = await world.state()
            return state is not None and state.cycle >= cycle + 2

        await until(later, 40, "two more cycles without a journal")
        assert (world.knob("maxmemory"), world.config_sets()) == (stands_at, written)
        await asyncio.to_thread(world.blackboard.start)
        execution = await world.finished("p-crafted", 60)
        assert execution.state in (ExecutionState.ROLLED_BACK, ExecutionState.KEPT), execution.reason
        wanted = 3 * MIB if execution.state is ExecutionState.KEPT else 8 * MIB
        assert world.knob("maxmemory") == str(wanted)
        await world.assert_sound()


async def test_no_change_begins_without_a_journal(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        order = order_for(world, await world.seen(lookups=400), SHRINK)
        await asyncio.to_thread(world.blackboard.kill)
        await agents.send("test", "coordinator", order)

        async def heard():
            state = await world.state()
            standing = None if state is None else state.standing.get("shop")
            return standing is not None and standing.proposal == order.proposal

        await until(heard, 40, "the coordinator to have the order")
        await asyncio.to_thread(world.blackboard.start)
        cycle = (await world.state()).cycle

        async def later():
            state = await world.state()
            return state is not None and state.cycle >= cycle + 2

        # It was held back, and not kept for later: whoever wants it asks again.
        await until(later, 40, "two more cycles")
        assert all(e.proposal.proposal_id != "p-crafted" for e in (await world.state()).executions)
        assert world.config_sets() == 0
        assert world.knob("maxmemory") == str(8 * MIB)
        assert (await world.verified()).ok


async def test_the_api_answers_503_with_retry_after_while_the_journal_is_gone_and_recovers_by_itself(tmp_path):
    async with World(tmp_path, quiet_spec(), minimum_gain=1.0) as world, world.agents() as agents:
        await world.seen(lookups=400)
        token = create_token(tmp_path, "operator", ("operate",))
        backend = AgentBackend(world.plan, agents)
        app = create_app(backend, TokenStore(tmp_path), wait_s=1.0)
        transport = httpx.ASGITransport(app=app)
        headers = {"Authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers) as client:

            async def ask() -> httpx.Response:
                return await client.post("/api/v1/cache/optimize", json={"service_name": "shop"}, timeout=20)

            async def answers(status: int):
                response = await ask()
                return response if response.status_code == status else None

            try:
                assert await until(lambda: answers(200), what="an answer")
                await asyncio.to_thread(world.blackboard.kill)
                refused = await ask()
                assert refused.status_code == 503
                assert int(refused.headers["Retry-After"]) >= 1
                assert refused.json()["error"]["code"]
                assert "Traceback" not in refused.text
                assert (await client.get("/health")).status_code in (200, 503)
                await asyncio.to_thread(world.blackboard.start)
                assert await until(lambda: answers(200), what="an answer after the journal's return")
            finally:
                await backend.close()
        assert world.config_sets() == 0
        assert (await world.verified()).ok
