"""Claims under one agent's name by several processes: one has a task, and only what a silent one left is taken over."""

from __future__ import annotations

import asyncio

import pytest

from coordination.redis_blackboard import RedisBlackboard
from simulation.fake_blackboard import FakeBlackboard
from tests.contract.real_servers import ENGINES, RealServer
from tests.contract.test_blackboard import NOW, task

REAL = [pytest.param(engine, marks=pytest.mark.integration) for engine in ENGINES]
US = "cache_performance_optimizer"
LIFE_MS = 400


class Served:
    """A board, and how a life of it falls silent."""

    def __init__(self, board, server=None) -> None:
        self.board, self.server = board, server

    async def silence(self, life: str) -> None:
        if self.server is None:
            self.board.clock_ms += 90_001
            return
        async with asyncio.timeout(10):
            while self.server.admin.exists(f"bb:agents:{US}:lives:{life}"):
                await asyncio.sleep(0.02)

    async def beat(self, life: str) -> None:
        await self.board.heartbeat(US, "t", [], NOW, life=life)


@pytest.fixture(params=["fake", *REAL])
async def served(request, tmp_path):
    if request.param == "fake":
        yield Served(FakeBlackboard())
        return
    server = RealServer(request.param, tmp_path)
    server.start()
    board = RedisBlackboard(f"{server.url}/0", timeout_s=5.0, life_ttl_ms=LIFE_MS)
    yield Served(board, server)
    await board.close()
    server.kill()


async def test_a_claim_names_its_life_and_no_other_life_takes_it_while_that_is_heard_of(served):
    await served.board.create_task(task("t"))
    assert await served.board.claim_task("t", US, NOW, life="one")
    assert (await served.board.task("t"))["claimed_by_life"] == "one"
    await served.beat("one")
    assert not await served.board.claim_task("t", US, NOW, life="two")
    assert not await served.board.claim_task("t", US, NOW, life="two", over=True)
    assert (await served.board.task("t"))["claimed_by_life"] == "one"


async def test_of_ten_that_take_over_from_a_silent_life_exactly_one_wins(served):
    await served.board.create_task(task("t"))
    await served.board.claim_task("t", US, NOW, life="one")
    await served.silence("one")
    claims = [served.board.claim_task("t", US, NOW + 1, life=f"n{n}", over=True) for n in range(10)]
    won = await asyncio.gather(*claims)
    assert sum(won) == 1
    assert (await served.board.task("t"))["claimed_by_life"] == f"n{won.index(True)}"


async def test_only_what_was_claimed_under_our_name_by_a_life_that_it_names_is_taken_over(served):
    for name, agent, life in (("peers", "peer", "x"), ("nameless", US, ""), ("pending", "", "")):
        await served.board.create_task(task(name))
        if agent:
            await served.board.claim_task(name, agent, NOW, life=life)
    await served.silence("x")
    for name in ("peers", "nameless", "pending", "none"):
        assert not await served.board.claim_task(name, US, NOW, life="two", over=True)


async def test_a_life_does_not_take_over_from_itself_and_what_is_over_from_nobody(served):
    await served.board.create_task(task("t"))
    await served.board.claim_task("t", US, NOW, life="one")
    await served.silence("one")
    assert not await served.board.claim_task("t", US, NOW, life="one", over=True)
    await served.board.finish_task("t", US, NOW, output={}, error=None)
    assert not await served.board.claim_task("t", US, NOW, life="two", over=True)
