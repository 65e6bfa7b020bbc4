"""What callers are told when what a decision rests on is slow, gone, or of another time; and that the journal agrees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import Counter

import httpx
import pytest

from cachewarden.errors import OperatingError
from cachewarden.messages import Mode
from cluster.backend import AgentBackend
from serve.api import create_app
from serve.security import TokenStore, create_token
from tests.integration.world import MIB, CacheSpec, World, traffic, until

pytestmark = pytest.mark.integration

OPTIMIZE = "/api/v1/cache/optimize"
BODY = {"service_name": "shop"}
QUIET = {"mode": Mode.APPROVE, "capture": False, "minimum_memory_bytes": 2 * MIB}


def quiet_spec() -> CacheSpec:
    return CacheSpec(maxmemory_bytes=8 * MIB, load=traffic("shop", rate_per_s=200.0), wishes=QUIET)


class Replica:
    """One replica of the API over the agents, in process."""

    def __init__(self, client: httpx.AsyncClient, backend: AgentBackend) -> None:
        self.client, self.backend = client, backend
        self.answered: list[str] = []

    async def ask(self) -> httpx.Response:
        response = await self.client.post(OPTIMIZE, json=BODY)
        if response.status_code == 200:
            self.answered.append(response.json()["decision_id"])
        return response

    async def answers(self, status: int) -> httpx.Response:
        async def there() -> httpx.Response | None:
            response = await self.ask()
            return response if response.status_code == status else None

        found: httpx.Response = await until(there, 30, f"an answer with {status}")
        return found


@contextlib.asynccontextmanager
async def replica(world: World, agents, folder):
    token = create_token(folder, "caller", ("operate",))
    backend = AgentBackend(world.plan, agents)
    transport = httpx.ASGITransport(app=create_app(backend, TokenStore(folder), wait_s=1.0))
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://api", headers=headers, timeout=60) as client:
            one = Replica(client, backend)
            await one.answers(200)
            yield one
    finally:
        await backend.close()


async def assert_audited(world: World, one: Replica, *, others: int = 0) -> None:
    """Every answer has exactly one record; at most `others` records belong to requests that were told that they may
    have failed."""
    recorded = Counter(r.subject_id for r in await world.records("request_decided"))
    assert set(one.answered) <= recorded.keys()
    assert set(recorded.values()) == {1}
    assert len(recorded) - len(one.answered) <= others
    assert (await world.verified()).ok


async def test_of_many_requests_at_once_each_is_answered_or_refused_and_the_journal_has_exactly_the_answered(tmp_path):
    async with (
        World(tmp_path, quiet_spec(), decisions_in_flight_max=40) as world,
        world.agents() as agents,
        replica(world, agents, tmp_path) as one,
    ):
        responses = await asyncio.gather(*(one.ask() for _ in range(400)))
        assert {r.status_code for r in responses} <= {200, 503}
        assert all(r.headers["Retry-After"] for r in responses if r.status_code == 503)
        assert len(one.answered) > 40
        await assert_audited(world, one)


async def test_a_journal_that_hangs_is_told_with_retry_after_and_nothing_is_doubled_when_it_goes_on(tmp_path):
    async with (
        World(tmp_path, quiet_spec(), redis_timeout=0.5) as world,
        world.agents() as agents,
        replica(world, agents, tmp_path) as one,
    ):
        assert world.blackboard.pid is not None
        os.kill(world.blackboard.pid, signal.SIGSTOP)
        try:
            responses = await asyncio.gather(*(one.ask() for _ in range(20)))
        finally:
            os.kill(world.blackboard.pid, signal.SIGCONT)
        assert {r.status_code for r in responses} == {503}
        assert all(int(r.headers["Retry-After"]) >= 1 for r in responses)
        await one.answers(200)
        # The server may have carried out what nobody heard of: then it is there once, and was told as uncertain.
        await assert_audited(world, one, others=20)


async def test_a_coordinator_that_is_silent_for_longer_than_the_bound_means_no_decision(tmp_path, monkeypatch):
    async with (
        World(tmp_path, quiet_spec(), state_age_max_ms=1_500) as world,
        world.agents() as agents,
        replica(world, agents, tmp_path) as one,
    ):

        async def silent(*_: object) -> None:
            raise OperatingError("agent `coordinator` does not answer")

        with monkeypatch.context() as patched:
            patched.setattr(agents, "watch", silent)
            refused = await one.answers(503)
            assert "has not been heard of" in refused.json()["error"]["message"]
            assert int(refused.headers["Retry-After"]) >= 1
            answered = list(one.answered)
            assert (await one.ask()).status_code == 503
            assert one.answered == answered
        await one.answers(200)
        await assert_audited(world, one)


async def test_a_coordinator_that_is_killed_comes_back_and_is_believed_again(tmp_path):
    async with (
        World(tmp_path, quiet_spec()) as world,
        world.agents() as agents,
        replica(world, agents, tmp_path) as one,
    ):
        life = (await one.backend.state()).life_ms
        agents.kill("coordinator")

        async def reborn() -> bool:
            state = await one.backend.state()
            return state is not None and state.life_ms > life

        await until(reborn, 30, "the next life of the coordinator")
        await one.answers(200)
        await assert_audited(world, one)


@pytest.mark.parametrize("step_ms", [-3_600_000, 3_600_000])
async def test_a_clock_that_was_set_means_no_decision_until_it_agrees_again(tmp_path, monkeypatch, step_ms: int):
    async with (
        World(tmp_path, quiet_spec()) as world,
        world.agents() as agents,
        replica(world, agents, tmp_path) as one,
    ):
        real = one.backend.now_ms
        with monkeypatch.context() as patched:
            patched.setattr(one.backend, "now_ms", lambda: real() + step_ms)
            refused = await one.ask()
            assert refused.status_code == 503
            assert refused.headers["Retry-After"]
        assert (await one.ask()).status_code == 200
        await assert_audited(world, one)
